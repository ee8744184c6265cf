//! Blocking commands: a blocked client holds up nobody, gets what it waits for, and leaves nothing behind when it goes.

use std::time::{Duration, Instant};

use crate::support::{Client, Larder, Server, assert_same, encode, wait_until};
use crate::{Twins, bulk};

fn blocked(upstream: &Server) -> usize {
    upstream.info("clients", "blocked_clients").parse().expect("a count of clients")
}

/// Each blocking command waits at both servers, then the waking command comes, and the replies are compared.
fn a_blocked_client_gets_what_it_waits_for(protocol: u8) {
    let twins = Twins::start();
    let mut waker = twins.client(2);
    waker.run("XGROUP CREATE stream group $ MKSTREAM");
    for (wait, wake) in [
        ("BLPOP list 0", "RPUSH list a"),
        ("BRPOP none list1 0", "RPUSH list1 a b"),
        ("BLMOVE list to LEFT RIGHT 0", "RPUSH list c"),
        ("BRPOPLPUSH list2 to 0", "RPUSH list2 d"),
        ("BLMPOP 0 2 none list3 LEFT COUNT 2", "RPUSH list3 a b c"),
        ("BZPOPMIN zset 0", "ZADD zset 1.5 a"),
        ("BZPOPMAX zset2 0", "ZADD zset2 1 a 2 b"),
        ("BZMPOP 0 1 zset3 MIN", "ZADD zset3 1 a"),
        ("XREAD BLOCK 0 STREAMS stream $", "XADD stream 5-1 f v"),
        ("XREADGROUP GROUP group me BLOCK 0 STREAMS stream >", "XADD stream 6-1 f v"),
    ] {
        let mut both = twins.client(protocol);
        if wait.starts_with("XREADGROUP") {
            both.run("XREADGROUP GROUP group me STREAMS stream >");
        }
        both.send(&crate::support::words(wait));
        wait_until(wait, || blocked(&twins.upstream) == 1 && blocked(&twins.direct) == 1);
        waker.run(wake);
        both.frame(wait);
        both.run("PING");
        wait_until("nobody is blocked", || blocked(&twins.upstream) == 0);
    }
}

#[test]
fn a_blocked_client_gets_what_it_waits_for_in_resp2() {
    a_blocked_client_gets_what_it_waits_for(2);
}

#[test]
fn a_blocked_client_gets_what_it_waits_for_in_resp3() {
    a_blocked_client_gets_what_it_waits_for(3);
}

#[test]
fn a_blocking_command_that_need_not_wait_or_times_out_answers_alike() {
    let twins = Twins::start();
    for protocol in [2, 3] {
        let mut both = twins.client(protocol);
        both.script(
            "RPUSH l a b c
            BLPOP l 0
            BRPOP none l 1
            BLPOP none 0.05
            BLMPOP 0.05 1 none LEFT
            BZPOPMIN none 0.05
            BLMOVE none to LEFT LEFT 0.05
            XREAD BLOCK 50 STREAMS none $
            BLPOP none -1
            BLPOP none x
            BLPOP none
            SET str v
            BLPOP str 1
            WAIT 0 50
            LRANGE l 0 -1
            DEL l",
        );
    }
}

#[test]
fn blocked_clients_hold_up_nobody() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut waiting: Vec<Client> = (0..20).map(|_| larder.client()).collect();
    for (n, client) in waiting.iter_mut().enumerate() {
        client.send(&["BLPOP", &format!("queue{n}"), "0"]);
    }
    wait_until("all are blocked", || blocked(&upstream) == 20);
    let mut other = larder.client();
    for n in 0..200 {
        let text = n.to_string();
        other.ok(&["SET", "k", &text]);
        assert_eq!(other.run("GET k"), bulk(&text));
    }
    for (n, client) in waiting.iter_mut().enumerate() {
        let queue = format!("queue{n}");
        other.run(&format!("RPUSH {queue} job{n}"));
        assert_eq!(client.reply(), [b"*2\r\n".to_vec(), bulk(&queue), bulk(&format!("job{n}"))].concat());
    }
}

/// What a blocked client sent behind its blocking command waits for that command's reply.
#[test]
fn commands_behind_a_blocking_command_wait_their_turn() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    let mut waker = twins.client(2);
    both.run("SET k 1");
    both.run("GET k");
    both.send_raw(&[encode(&["BLPOP", "l", "0"]), encode(&["GET", "k"]), encode(&["INCR", "k"])].concat());
    wait_until("blocked", || blocked(&twins.upstream) == 1 && blocked(&twins.direct) == 1);
    waker.run("SET k 5");
    waker.run("RPUSH l x");
    for what in ["BLPOP", "GET after", "INCR after"] {
        both.frame(what);
    }
}

#[test]
fn a_blocked_client_that_goes_away_frees_its_upstream_connection() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut direct = upstream.client();
    for wait in ["BLPOP l 0", "BZPOPMIN z 0", "XREAD BLOCK 0 STREAMS s $", "BLMOVE l m LEFT LEFT 0"] {
        let mut gone = larder.client();
        gone.send(&crate::support::words(wait));
        wait_until("blocked", || blocked(&upstream) == 1);
        drop(gone);
        wait_until("freed", || blocked(&upstream) == 0);
        let list = direct.ask("CLIENT LIST").text();
        assert!(!list.lines().any(|line| line.contains(" flags=b")), "{list}");
    }
    // An element that comes now is not eaten on behalf of the one who left.
    direct.run("RPUSH l kept");
    assert_eq!(larder.client().run("LRANGE l 0 -1"), [b"*1\r\n".to_vec(), bulk("kept")].concat());
}

#[test]
fn client_unblock_ends_the_waiting() {
    let twins = Twins::start();
    let mut waker = twins.client(2);
    for how in ["TIMEOUT", "ERROR"] {
        let mut both = twins.client(2);
        let ids = (both.direct.ask("CLIENT ID").int(), both.through.ask("CLIENT ID").int());
        both.send(&["BLPOP", "nothing", "0"]);
        wait_until("blocked", || blocked(&twins.upstream) == 1 && blocked(&twins.direct) == 1);
        let direct = waker.direct.run(&format!("CLIENT UNBLOCK {} {how}", ids.0));
        let through = waker.through.run(&format!("CLIENT UNBLOCK {} {how}", ids.1));
        assert_same("CLIENT UNBLOCK", &direct, &through);
        both.frame(how);
    }
    assert_eq!(waker.through.run("CLIENT UNBLOCK 999999"), b":0\r\n");
}

/// A timeout is the server's to keep: not earlier, and no second one on top of it.
#[test]
fn a_timeout_is_kept() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    let began = Instant::now();
    assert_eq!(client.run("BLPOP nothing 0.3"), b"*-1\r\n");
    assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
}

/// What the blocking command popped is gone for all others once its reply is there, and what it moved has arrived.
#[test]
fn others_see_what_a_blocking_command_did() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut popper, mut reader) = (larder.client(), larder.client());
    for n in 0..100 {
        let element = format!("e{n}");
        reader.run(&format!("RPUSH from {element}"));
        reader.run("LRANGE from 0 -1");
        reader.run("LINDEX to -1");
        assert_eq!(popper.run("BLMOVE from to LEFT RIGHT 0"), bulk(&element));
        assert_eq!(reader.run("LRANGE from 0 -1"), b"*0\r\n");
        assert_eq!(reader.run("LINDEX to -1"), bulk(&element));
    }
}
