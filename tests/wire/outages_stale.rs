//! Stale answers during an outage: only if the operator asked for them, only what L1 held when the feed was lost, not for
//! longer than allowed, nothing that a lost write may have changed, and nothing at all once the upstream is back.

use std::time::Duration;

use crate::outages::{is_outage, plain};
use crate::support::{Client, Larder, Relay, Server, wait_until};
use crate::{NIL2, OK, bulk, error_of};

const LONG: &[&str] = &["--set", "l1.stale_if_error_ms_max=600000"];

/// Until Larder has noticed the loss and has put aside what it held.
#[track_caller]
fn wait_for_stale(larder: &Larder) {
    wait_until("something is left behind", || larder.figure("stale_scopes") > 0);
}

/// Reads `lines` so that L1 holds them.
#[track_caller]
fn warm(client: &mut Client, lines: &[&str]) {
    for line in lines {
        client.run(line);
        let reply = client.run(line);
        assert_ne!(reply[0], b'-', "{line}: {}", reply.escape_ascii());
    }
}

#[test]
fn reads_that_l1_holds_are_answered_while_the_upstream_is_away_and_never_after() {
    if plain() {
        return;
    }
    let mut upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), LONG);
    let (mut two, mut three) = (larder.client(), larder.client3());
    for round in 0..3 {
        wait_until("a write is taken", || two.run(&format!("SET k old{round}")) == OK);
        two.run("SET l 12");
        two.run("HSET h f v");
        warm(&mut two, &["GET k", "GET l", "STRLEN k", "HGETALL h", "EXISTS k l", "GET nosuch"]);
        upstream.kill();
        wait_for_stale(&larder);
        let old = format!("old{round}");
        for _ in 0..20 {
            assert_eq!(two.run("GET k"), bulk(&old));
            assert_eq!(three.run("GET k"), bulk(&old));
            assert_eq!(two.run("STRLEN k"), b":4\r\n");
            assert_eq!(two.run("HGETALL h"), b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
            assert_eq!(three.run("HGETALL h"), b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n");
            assert_eq!(two.run("MGET k l"), [b"*2\r\n".to_vec(), bulk(&old), bulk("12")].concat());
            assert_eq!(two.run("EXISTS k l"), b":2\r\n");
            assert_eq!(two.run("GET nosuch"), NIL2);
        }
        for line in ["GET other", "MGET k other", "EXISTS k other", "SET k during", "TTL k", "EVAL return(1) 0"] {
            let reply = two.run(line);
            assert!(is_outage(&reply), "{line}: {}", reply.escape_ascii());
        }
        assert_eq!(two.run("GET k"), bulk(&old), "a write that was refused has changed nothing");
        upstream.restart();
        upstream.client().run(&format!("SET k new{round}"));
        let new = bulk(&format!("new{round}"));
        wait_until("the new value is seen", || two.run("GET k") == new);
        for _ in 0..50 {
            assert_eq!(two.run("GET k"), new);
            assert_eq!(three.run("GET k"), new);
            assert_eq!(two.run("GET l"), NIL2);
        }
        assert_eq!(larder.figure("stale_scopes"), 0);
    }
    assert!(larder.figure("stale_hits_feed_lost") > 0);
}

#[test]
fn a_pipeline_in_an_outage_is_answered_in_order() {
    if plain() {
        return;
    }
    let mut upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), LONG);
    let mut client = larder.client();
    client.run("SET k v");
    warm(&mut client, &["GET k"]);
    upstream.kill();
    wait_for_stale(&larder);
    let lines = ["GET k", "GET other", "GET k", "SET k w", "GET k", "MGET k k"];
    for line in lines {
        client.send(&crate::support::words(line));
    }
    let replies: Vec<Vec<u8>> = lines.iter().map(|_| client.reply()).collect();
    assert_eq!(replies[0], bulk("v"));
    assert!(is_outage(&replies[1]) && is_outage(&replies[3]), "{replies:?}");
    for at in [2, 4] {
        assert!(replies[at] == bulk("v") || is_outage(&replies[at]), "{}", replies[at].escape_ascii());
    }
}

#[test]
fn no_longer_than_allowed() {
    if plain() {
        return;
    }
    let mut upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "l1.stale_if_error_ms_max=1500"]);
    let mut client = larder.client();
    client.run("SET k v");
    warm(&mut client, &["GET k"]);
    upstream.kill();
    wait_for_stale(&larder);
    assert_eq!(client.run("GET k"), bulk("v"));
    wait_until("the time is over", || is_outage(&client.run("GET k")));
    for _ in 0..20 {
        assert!(is_outage(&client.run("GET k")));
    }
}

#[test]
fn a_key_that_expires_in_the_outage_is_answered_and_one_that_had_expired_is_not() {
    if plain() {
        return;
    }
    let mut upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), LONG);
    let mut client = larder.client();
    client.run("SET short v PX 30");
    client.run("SET long v PX 3000");
    warm(&mut client, &["GET long"]);
    client.run("GET short");
    wait_until("it has expired", || client.run("GET short") == NIL2);
    upstream.kill();
    wait_for_stale(&larder);
    std::thread::sleep(Duration::from_millis(3100));
    assert_eq!(client.run("GET long"), bulk("v"), "it was alive when the feed was lost");
    let reply = client.run("GET short");
    assert!(reply == NIL2 || is_outage(&reply), "{}", reply.escape_ascii());
}

#[test]
fn rules_by_key_pattern_decide_before_the_general_one() {
    if plain() {
        return;
    }
    let mut upstream = Server::redis(&[]);
    let rules = "policy=[{ match = 'session:*', stale_if_error_ms_max = 0 }, { match = 's*' }]";
    let larder = Larder::start(Some(&upstream), &["--set", rules, LONG[0], LONG[1]]);
    let mut client = larder.client();
    for key in ["session:1", "s1", "k"] {
        client.run(&format!("SET {key} v"));
        warm(&mut client, &[&format!("GET {key}")]);
    }
    upstream.kill();
    wait_for_stale(&larder);
    assert_eq!(client.run("GET k"), bulk("v"));
    assert_eq!(client.run("GET s1"), bulk("v"));
    assert!(is_outage(&client.run("GET session:1")));
    assert!(is_outage(&client.run("MGET k session:1")), "all of its keys, or none");
}

/// Writes whose fate is unknown: their keys are not answered from before, others are.
#[test]
fn what_a_lost_write_may_have_changed_is_not_answered() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let relay = Relay::start(upstream.address(), 5, Duration::ZERO);
    let larder = Larder::behind(&relay, LONG);
    let mut client = larder.client();
    let (mut writer, mut blocked) = (larder.client(), larder.client());
    for line in ["SET k v", "SET other v", "RPUSH list a", "DEL queue"] {
        client.run(line);
    }
    warm(&mut client, &["GET k", "GET other", "LRANGE list 0 -1", "LLEN queue"]);
    blocked.send(&["BLPOP", "queue", "0"]);
    wait_until("it is blocked", || upstream.info("clients", "blocked_clients") == "1");
    warm(&mut client, &["LLEN queue"]);
    relay.pause();
    writer.send(&["SET", "k", "changed"]);
    // The write is on its way, and nothing comes back.
    std::thread::sleep(Duration::from_millis(100));
    relay.refuse();
    relay.cut();
    let lost = error_of(&writer.reply());
    assert!(lost.starts_with("UPSTREAMLOST") && lost.contains("may or may not"), "{lost}");
    assert!(is_outage(&blocked.reply()));
    wait_for_stale(&larder);
    assert_eq!(client.run("GET other"), bulk("v"));
    assert_eq!(client.run("LRANGE list 0 -1"), b"*1\r\n$1\r\na\r\n");
    for line in ["GET k", "LLEN queue"] {
        for who in [&mut client, &mut writer] {
            let reply = who.run(line);
            assert!(is_outage(&reply), "{line}: {}", reply.escape_ascii());
        }
    }
    relay.resume();
    relay.allow();
    let mut direct = upstream.client();
    wait_until("both see the same", || client.run("GET k") == direct.run("GET k"));
}

/// Whom the upstream does not know any more is shown nothing, and all is well again with the right password.
#[test]
fn a_user_whose_password_was_changed_is_refused_and_comes_back() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&["--requirepass", "first"]);
    let url = format!("redis://:first@{}", upstream.address());
    let larder = Larder::with_url(&url, LONG);
    let mut client = larder.client();
    client.run("SET k v");
    warm(&mut client, &["GET k"]);
    let mut admin = upstream.client();
    assert_eq!(admin.run("AUTH first"), OK);
    admin.run("CONFIG SET requirepass second");
    admin.run("CLIENT KILL TYPE normal SKIPME yes");
    let is_refused = |reply: &[u8]| reply.starts_with(b"-WRONGPASS") || reply.starts_with(b"-NOAUTH");
    wait_until("the link is refused", || is_refused(&client.run("GET k")));
    for _ in 0..20 {
        let reply = client.run("GET k");
        assert!(is_refused(&reply), "{}", reply.escape_ascii());
    }
    assert_eq!(admin.run("CONFIG SET requirepass first"), OK);
    admin.run("SET k new");
    wait_until("the user is known again", || client.run("GET k") == bulk("new"));
}

/// A new client may select its database in an outage, and that takes nothing away from others.
#[test]
fn scopes_stay_apart_and_may_be_entered() {
    if plain() {
        return;
    }
    let mut upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), LONG);
    let (mut zero, mut one) = (larder.client(), larder.client());
    one.run("SELECT 1");
    zero.run("SET k zero");
    one.run("SET k one");
    warm(&mut zero, &["GET k"]);
    warm(&mut one, &["GET k"]);
    upstream.kill();
    wait_until("both are left behind", || larder.figure("stale_scopes") == 2);
    let mut new = larder.client();
    new.run("CLIENT SETNAME new");
    assert_eq!(new.run("SELECT 1"), OK);
    assert_eq!(new.run("GET k"), bulk("one"));
    assert_eq!(zero.run("GET k"), bulk("zero"));
    assert_eq!(one.run("GET k"), bulk("one"));
    // What is dropped by hand is gone.
    assert_eq!(zero.run("CACHE INVALIDATE KEYS 1 k LOCAL")[0], b':');
    assert!(is_outage(&zero.run("GET k")));
    assert_eq!(one.run("GET k"), bulk("one"));
}
