//! MULTI, EXEC, DISCARD, WATCH: queueing, errors, aborts, optimistic locks, and what others see afterwards.

use crate::support::{Larder, Server, encode, wait_until};
use crate::{NIL2, OK, Twins, bulk, error_of};

fn transactions_answer_as_the_servers_own(protocol: u8) {
    let twins = Twins::start();
    let mut both = twins.client(protocol);
    both.script(
        "EXEC
        DISCARD
        MULTI
        MULTI
        SET k 1
        INCR k
        GET k
        HSET h f v
        HGETALL h
        EXEC
        GET k
        MULTI
        EXEC
        MULTI
        SET k
        NOSUCHCOMMAND
        GET k
        EXEC
        MULTI
        SET k x
        DISCARD
        GET k
        MULTI
        LPUSH k wrongtype
        SET k after
        EXEC
        GET k
        WATCH
        WATCH k
        MULTI
        WATCH k
        UNWATCH
        SET k watched
        EXEC
        WATCH k
        SET k changed-by-myself
        MULTI
        SET k never
        EXEC
        GET k
        WATCH k missing
        UNWATCH
        SET missing now
        MULTI
        GET missing
        EXEC
        MULTI
        SELECT 2
        SET k two
        EXEC
        GET k
        SELECT 0
        GET k
        MULTI
        BLPOP nothing 0
        LPUSH list a b
        BRPOP list 0
        EXEC
        MULTI
        PING
        ECHO x
        EVAL return(1) 0
        CLIENT SETNAME inside
        EXEC
        CLIENT GETNAME
        MULTI
        SUBSCRIBE ch
        DISCARD",
    );
}

#[test]
fn transactions_answer_as_the_servers_own_in_resp2() {
    transactions_answer_as_the_servers_own(2);
}

#[test]
fn transactions_answer_as_the_servers_own_in_resp3() {
    transactions_answer_as_the_servers_own(3);
}

#[test]
fn a_whole_transaction_in_one_pipeline() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    let lines = ["GET k", "WATCH k", "GET k", "MULTI", "INCR k", "INCR k", "GET k", "EXEC", "GET k"];
    for _ in 0..50 {
        let batch: Vec<u8> = lines.iter().flat_map(|line| encode(&crate::support::words(line))).collect();
        both.send_raw(&batch);
        for line in lines {
            both.frame(line);
        }
    }
}

#[test]
fn a_watched_key_that_another_client_changes_aborts_the_transaction() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut mine, mut other, mut direct) = (larder.client(), larder.client(), upstream.client());
    for round in 0..20 {
        mine.run("WATCH k");
        mine.run("GET k");
        let text = round.to_string();
        let writer = if round % 2 == 0 { &mut other } else { &mut direct };
        writer.ok(&["SET", "k", &text]);
        mine.run("MULTI");
        mine.run("SET k mine");
        assert_eq!(mine.run("EXEC"), b"*-1\r\n");
        assert_eq!(mine.run("GET k"), bulk(&text));
        mine.run("DEL k");
    }
}

#[test]
fn a_transactions_writes_are_seen_once_it_is_acknowledged() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut writer, mut reader) = (larder.client(), larder.client3());
    for n in 0..300 {
        reader.run("MGET a b");
        let text = n.to_string();
        writer.run("MULTI");
        writer.run(&format!("SET a {n}"));
        writer.run(&format!("SET b {n}"));
        // Queued is not done.
        if n > 0 {
            assert_eq!(reader.run("GET a"), bulk(&(n - 1).to_string()));
        }
        assert_eq!(writer.run("EXEC"), b"*2\r\n+OK\r\n+OK\r\n");
        assert_eq!(reader.run("GET a"), bulk(&text));
        assert_eq!(reader.run("GET b"), bulk(&text));
    }
}

/// Eight clients increment one number by WATCH, GET, MULTI, SET, EXEC: none of the successes may be lost.
#[test]
fn an_optimistic_lock_loses_no_update() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    larder.client().run("SET total 0");
    let done: i64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = larder.client();
                    let mut done = 0;
                    for _ in 0..200 {
                        client.run("GET total");
                        client.run("WATCH total");
                        let seen = client.ask("GET total").int();
                        client.run("MULTI");
                        client.run(&format!("SET total {}", seen + 1));
                        if client.run("EXEC") != b"*-1\r\n" {
                            done += 1;
                        }
                    }
                    done
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert!(done > 0);
    assert_eq!(larder.client().ask("GET total").int(), done);
}

/// A client that goes away in the middle of a transaction leaves nothing of it to the next user of its connection.
#[test]
fn an_abandoned_transaction_leaves_nothing_behind() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    for _ in 0..20 {
        let mut gone = larder.client();
        gone.run("SELECT 5");
        gone.run("WATCH k");
        gone.run("MULTI");
        gone.run("SET k never");
        drop(gone);
        let mut next = larder.client();
        assert_eq!(next.run("MULTI"), OK);
        assert_eq!(next.run("SET mine 1"), b"+QUEUED\r\n");
        assert_eq!(next.run("EXEC"), b"*1\r\n+OK\r\n");
        assert_eq!(next.run("GET k"), NIL2);
        assert_eq!(next.run("GET mine"), bulk("1"));
        next.run("DEL mine");
    }
    let mut direct = upstream.client();
    assert_eq!(direct.run("DBSIZE"), b":0\r\n");
    direct.run("SELECT 5");
    assert_eq!(direct.run("DBSIZE"), b":0\r\n");
}

/// Transactions borrow connections; they do not open one each.
#[test]
fn transactions_reuse_connections() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    client.run("PING");
    let received = || upstream.info("stats", "total_connections_received").parse::<u64>().unwrap();
    let run = |client: &mut crate::support::Client| {
        client.run("MULTI");
        client.run("INCR n");
        client.run("EXEC");
    };
    run(&mut client);
    let before = received();
    for _ in 0..100 {
        run(&mut client);
    }
    let mut fresh = larder.client();
    run(&mut fresh);
    let opened = received() - before;
    // The measuring connections count too: one for each question.
    assert!(opened <= 12 || Larder::is_plain(), "{opened} connections for 101 transactions");
    wait_until("all are counted", || client.ask("GET n").int() == 102);
}

/// What a transaction selects lasts, what it selects in vain changes nothing, and what it cannot hold is refused.
fn selecting_and_asking_about_clients_within(protocol: u8) {
    let twins = Twins::start();
    let mut both = twins.client(protocol);
    let mut by_id = twins.client(protocol);
    both.script(
        "MULTI
        SELECT 99
        SELECT 3
        SELECT x
        EXEC
        SET k three
        SELECT 0
        GET k
        MULTI
        SELECT 3
        SELECT 99
        EXEC
        GET k
        MULTI
        CLIENT KILL USER nobody
        CLIENT KILL MAXAGE 3
        CLIENT KILL TYPE pubsub
        CLIENT KILL ID 999999
        CLIENT KILL 1.1.1.1:1
        CLIENT UNBLOCK 999999
        CLIENT UNBLOCK x
        EXEC
        GET k
        WATCH k
        CLIENT KILL USER nobody
        CLIENT KILL MAXAGE 3
        CLIENT KILL ID 999999
        UNWATCH",
    );
    // Who is killed in a transaction is a client of Larder, and none of its connections.
    for client in [&mut both.through, &mut both.direct] {
        client.run("MULTI");
        client.run("CLIENT KILL TYPE normal");
    }
    both.run("EXEC");
    both.run("GET k");
    assert!(by_id.through.rest().is_empty() && by_id.direct.rest().is_empty(), "it was killed");
}

#[test]
fn selecting_and_asking_about_clients_within_a_transaction_in_resp2() {
    selecting_and_asking_about_clients_within(2);
}

#[test]
fn selecting_and_asking_about_clients_within_a_transaction_in_resp3() {
    selecting_and_asking_about_clients_within(3);
}

/// The server would queue it, and then answer EXEC with an array that is short of it.
#[test]
fn a_transaction_holds_no_client_reply() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    if Larder::is_plain() {
        return;
    }
    let mut client = larder.client();
    client.run("MULTI");
    let error = error_of(&client.run("CLIENT REPLY SKIP"));
    assert_eq!(error, "ERR larder: CLIENT REPLY is not possible within a transaction");
    client.run("SET k v");
    assert!(error_of(&client.run("EXEC")).starts_with("EXECABORT"));
    assert_eq!(client.run("GET k"), NIL2);
}
