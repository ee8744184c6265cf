//! CLIENT PAUSE and UNPAUSE: of Larder's clients, without the shared link standing still; WAIT for what the link wrote.

use std::time::{Duration, Instant};

use crate::support::{Client, Kind, Larder, Server, encode, wait_until};
use crate::{OK, Twins, bulk};

/// A long time: nothing in a test waits for it.
const LONG: &str = "100000";

fn blocked(larder: &Larder) -> usize {
    let info = larder.client().value(&["INFO", "clients"]).text();
    let line = info.lines().find_map(|line| line.strip_prefix("blocked_clients:"));
    line.expect("a count of blocked clients").trim().parse().expect("a number")
}

#[test]
fn a_pause_of_writes_holds_what_may_write_and_nothing_else() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut admin = larder.client();
    for line in ["SET k 1", "RPUSH l a", "PFADD h a", "GET k"] {
        admin.run(line);
    }
    assert_eq!(admin.run(&format!("CLIENT PAUSE {LONG} WRITE")), OK);
    let mut reader = larder.client();
    for line in ["GET k", "PING", "MGET k missing", "EVAL_RO return(1) 0", "LRANGE l 0 -1", "CLIENT ID"] {
        let reply = reader.run(line);
        assert_ne!(reply[0], b'-', "{line}: {}", reply.escape_ascii());
    }
    // The transaction reads only.
    for line in ["MULTI", "GET k", "EXEC"] {
        reader.run(line);
    }
    assert_eq!(blocked(&larder), 0);
    let held = ["SET k 2", "PFCOUNT h", "PUBLISH ch x", "EVAL return(1) 0", "LPOP l", "BLPOP l2 1", "GETEX k"];
    let mut writers: Vec<Client> = held.iter().map(|_| larder.client()).collect();
    for (n, (writer, line)) in writers.iter_mut().zip(held).enumerate() {
        writer.send(&crate::support::words(line));
        wait_until(line, || blocked(&larder) == n + 1);
    }
    assert_eq!(reader.run("GET k"), bulk("1"));
    assert_eq!(admin.run("SET k"), b"-ERR wrong number of arguments for 'set' command\r\n");
    assert_eq!(admin.run("CLIENT PAUSE 1 OTHER"), b"-ERR CLIENT PAUSE mode must be WRITE or ALL\r\n");
    assert_eq!(admin.run("CLIENT PAUSE x"), b"-ERR timeout is not an integer or out of range\r\n");
    assert_eq!(admin.run("CLIENT UNPAUSE"), OK);
    let replies: Vec<Vec<u8>> = writers.iter_mut().map(Client::reply).collect();
    assert_eq!(&replies[..5], [OK.to_vec(), b":1\r\n".to_vec(), b":0\r\n".to_vec(), b":1\r\n".to_vec(), bulk("a")]);
    assert_eq!(replies[6], bulk("2"));
    assert_eq!(blocked(&larder), 0);
}

#[test]
fn a_held_request_waits_in_its_place_and_holds_what_follows() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut admin, mut client) = (larder.client(), larder.client());
    client.run("SET k 1");
    admin.run(&format!("CLIENT PAUSE {LONG} WRITE"));
    client.send_raw(&[encode(&["GET", "k"]), encode(&["SET", "k", "2"]), encode(&["GET", "k"])].concat());
    assert_eq!(client.frame(), bulk("1"), "what stands before it is answered");
    wait_until("it is held", || blocked(&larder) == 1);
    client.send(&["CLIENT", "UNPAUSE"]);
    client.read_timeout(Duration::from_millis(100));
    assert!(client.try_frame().is_err(), "what stands behind it waits");
    client.read_timeout(Duration::from_secs(30));
    admin.run("CLIENT UNPAUSE");
    assert_eq!([client.frame(), client.frame(), client.frame()], [OK.to_vec(), bulk("2"), OK.to_vec()]);
}

#[test]
fn those_who_wait_go_on_in_their_order() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "threads=2"]);
    let mut admin = larder.client();
    for round in 0..5 {
        admin.run(&format!("CLIENT PAUSE {LONG} WRITE"));
        let mut writers: Vec<Client> = (0..20).map(|_| larder.client()).collect();
        for (n, writer) in writers.iter_mut().enumerate() {
            writer.send(&["RPUSH", &format!("l{round}"), &n.to_string()]);
            wait_until("it is held", || blocked(&larder) == n + 1);
        }
        admin.run("CLIENT UNPAUSE");
        for (n, writer) in writers.iter_mut().enumerate() {
            assert_eq!(writer.reply(), format!(":{}\r\n", n + 1).into_bytes(), "round {round}");
        }
    }
}

#[test]
fn a_pause_of_all_holds_hits_and_ends_by_itself() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(
        Some(&upstream),
        &["--set", "link.dead_ms=1000", "--set", "link.reply_ms_max=900", "--set", "pool.reply_ms_max=900"],
    );
    let (mut admin, mut reader, mut watcher) = (larder.client(), larder.client(), larder.client());
    reader.run("SET k 1");
    reader.run("GET k");
    watcher.run("WATCH k");
    let began = Instant::now();
    assert_eq!(admin.run("CLIENT PAUSE 2500"), OK);
    // Less than asked for: a pause is only ever prolonged.
    reader.send(&["GET", "k"]);
    watcher.send(&["MULTI"]);
    admin.send(&["CLIENT", "UNPAUSE"]);
    let mut late = larder.client();
    assert_eq!(late.run("SET k"), b"-ERR wrong number of arguments for 'set' command\r\n");
    assert_eq!(late.run("NOSUCHCOMMAND")[0], b'-');
    late.send(&["PING"]);
    let mut gone = larder.client();
    gone.send(&["SET", "k", "gone"]);
    drop(gone);
    assert_eq!(reader.reply(), bulk("1"));
    assert!(began.elapsed() >= Duration::from_millis(2400), "it was held for {:?}", began.elapsed());
    assert_eq!(watcher.reply(), OK);
    assert_eq!(admin.reply(), OK);
    assert_eq!(late.reply(), b"+PONG\r\n");
    assert_eq!(late.run("GET k"), bulk("1"), "what a client had asked for that went while it was held is not done");
    // The link has been there all the time, although it does not bear a silence as long as the pause.
    assert_eq!(late.run("SET k 2"), OK);
}

#[test]
fn a_later_pause_only_prolongs() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut admin, mut writer) = (larder.client(), larder.client());
    let began = Instant::now();
    admin.run("CLIENT PAUSE 1000 WRITE");
    admin.run("CLIENT PAUSE 10 WRITE");
    assert_eq!(writer.run("SET k 1"), OK);
    assert!(began.elapsed() >= Duration::from_millis(990), "{:?}", began.elapsed());
}

#[test]
fn nothing_expires_and_nobody_writes_at_the_server_during_a_pause() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let larder = Larder::start(Some(&upstream), &[]);
        let mut admin = larder.client();
        for line in ["MULTI", "SET k v PX 20", "CLIENT PAUSE 100000", "SET after v", "EXEC"] {
            admin.run(line);
        }
        // All are paused: only the server itself can be asked.
        let mut direct = upstream.client();
        wait_until("the key has expired", || direct.run("GET k") == b"$-1\r\n");
        assert_eq!(upstream.info("stats", "expired_keys"), "0");
        assert_eq!(direct.run("GET after"), bulk("v"), "the pause begins behind the transaction");
        direct.send(&["SET", "other", "v"]);
        wait_until("a direct writer is held", || upstream.info("clients", "blocked_clients") == "1");
        let mut through = larder.client();
        through.send(&["GET", "after"]);
        through.read_timeout(Duration::from_millis(100));
        assert!(through.try_frame().is_err(), "Larder's clients are held altogether");
    }
}

#[test]
fn many_scripts_can_wait_and_a_blocked_client_times_out() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "pool.size_max=2", "--set", "pool.wait_ms_max=200"]);
    let (mut admin, mut waiting) = (larder.client(), larder.client());
    let sha = admin.value(&["SCRIPT", "LOAD", "return 7"]).text();
    waiting.send(&["BLPOP", "l", "1"]);
    wait_until("it waits", || blocked(&larder) == 1);
    admin.run(&format!("CLIENT PAUSE {LONG} WRITE"));
    assert_eq!(waiting.reply(), b"*-1\r\n");
    let mut writers: Vec<Client> = (0..5).map(|_| larder.client()).collect();
    for writer in &mut writers {
        writer.send(&["EVALSHA", &sha, "0"]);
    }
    wait_until("the server holds them", || blocked(&larder) == 5);
    admin.run("CLIENT UNPAUSE");
    for writer in &mut writers {
        assert_eq!(writer.reply(), b":7\r\n");
    }
}

#[test]
fn pausing_is_refused_to_whom_the_server_refuses_it() {
    let twins = Twins::start();
    for server in [&twins.upstream, &twins.direct] {
        server.client().ok(&["ACL", "SETUSER", "u", "on", "nopass", "~*", "+@all", "-client|pause", "-client|unpause"]);
    }
    let mut both = twins.client(2);
    both.run("AUTH u x");
    both.run("CLIENT PAUSE 1000 WRITE");
    both.run("CLIENT UNPAUSE");
    both.run("SET k v");
}

#[test]
fn the_embedded_store_pauses_too() {
    let larder = Larder::start(None, &[]);
    let (mut admin, mut writer, mut reader) = (larder.client(), larder.client(), larder.client());
    assert_eq!(admin.run("CLIENT PAUSE 1 OTHER"), b"-ERR CLIENT PAUSE mode must be WRITE or ALL\r\n");
    assert_eq!(admin.run("CLIENT PAUSE x"), b"-ERR timeout is not an integer or out of range\r\n");
    assert_eq!(admin.run("CLIENT PAUSE -1"), b"-ERR timeout is negative\r\n");
    assert_eq!(admin.run(&format!("CLIENT PAUSE {LONG} WRITE")), OK);
    writer.send(&["SET", "k", "v"]);
    writer.read_timeout(Duration::from_millis(100));
    assert!(writer.try_frame().is_err());
    writer.read_timeout(Duration::from_secs(30));
    assert_eq!(reader.run("GET k"), b"$-1\r\n");
    assert_eq!(admin.run("CLIENT UNPAUSE"), OK);
    assert_eq!(writer.reply(), OK);
}

#[test]
fn wait_counts_replicas_that_have_what_came_by_the_link() {
    let upstream = Server::redis(&["--repl-diskless-sync-delay", "0"]);
    let port = upstream.address().port().to_string();
    let replica = Server::redis(&["--replicaof", "127.0.0.1", &port]);
    wait_until("the replica follows", || {
        upstream.client().value(&["INFO", "replication"]).text().contains("state=online")
    });
    upstream.client().ok(&["ACL", "SETUSER", "u", "on", "nopass", "~*", "+@write", "+@read", "+wait"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    let mut limited = larder.client();
    assert_eq!(limited.run("AUTH u x"), OK);
    for round in 0..3 {
        for client in [&mut client, &mut limited] {
            assert_eq!(client.run(&format!("SET k {round}")), OK);
            assert_eq!(client.run("WAIT 1 10000"), b":1\r\n");
        }
        // What a connection that has done nothing since would count by is acknowledged: only the writes to come are not.
        wait_until("the replica has acknowledged all", || {
            let offset = upstream.info("replication", "master_repl_offset");
            upstream.info("replication", "slave0").contains(&format!("offset={offset},"))
        });
        replica.pause();
        for client in [&mut client, &mut limited] {
            assert_eq!(client.run(&format!("SET k {round}again")), OK);
            assert_eq!(client.run("WAIT 1 100"), b":0\r\n", "round {round}: the replica stands still");
        }
        replica.resume();
        assert_eq!(client.run("WAIT 1 10000"), b":1\r\n");
    }
}
