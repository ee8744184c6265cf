//! Faults of real servers: what a client sees is what the server says, the circuit stays closed where the server works, and
//! all is well when the fault is over.

use std::time::Duration;

use crate::outages::{is_outage, plain};
use crate::outages_replies::breaker;
use crate::support::{Larder, Server, wait_until};
use crate::{OK, bulk, wait_for_reply};

/// Asserts that `line` is refused in the server's own words, while reads work and the circuit stays closed.
#[track_caller]
fn passes_through(larder: &Larder, upstream: &Server, line: &str, word: &str) {
    let (mut client, mut direct) = (larder.client(), upstream.client());
    for _ in 0..60 {
        let reply = client.run(line);
        assert!(reply.starts_with(format!("-{word} ").as_bytes()), "{line}: {}", reply.escape_ascii());
        assert_eq!(reply, direct.run(line));
    }
    assert_eq!(client.run("GET k"), bulk("v"), "reads work");
    assert_eq!(client.run("GET missing"), b"$-1\r\n");
    if !plain() {
        assert_eq!(breaker(&mut client, "state"), "closed", "{word} is no failure of the upstream");
    }
}

/// The disk is gone: snapshots fail, and the server refuses writes until it is told not to.
#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let upstream = Server::redis(&["--save", "3600 1000000", "--stop-writes-on-bgsave-error", "yes"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut client, mut direct) = (larder.client(), upstream.client());
    assert_eq!(client.run("SET k v"), OK);
    let gone = std::env::temp_dir().join(format!("larder-gone-{}", std::process::id()));
    std::fs::create_dir_all(&gone).expect("a directory to take away");
    let path = gone.to_string_lossy().into_owned();
    assert_eq!(direct.cmd(&["CONFIG", "SET", "dir", &path]), OK);
    std::fs::remove_dir_all(&gone).expect("taking the directory away");
    direct.run("BGSAVE");
    wait_until("the snapshot has failed", || upstream.info("persistence", "rdb_last_bgsave_status") == "err");
    passes_through(&larder, &upstream, "SET other w", "MISCONF");
    assert_eq!(direct.run("CONFIG SET stop-writes-on-bgsave-error no"), OK);
    assert_eq!(client.run("SET k w"), OK);
    assert_eq!(client.run("GET k"), bulk("w"));
}

#[test]
fn a_server_without_memory_or_replicas_refuses_writes_and_nothing_else() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut client, mut direct) = (larder.client(), upstream.client());
    assert_eq!(client.run("SET k v"), OK);
    assert_eq!(direct.run("CONFIG SET maxmemory 1"), OK);
    passes_through(&larder, &upstream, "SET other w", "OOM");
    assert_eq!(direct.run("CONFIG SET maxmemory 0"), OK);
    assert_eq!(direct.run("CONFIG SET min-replicas-to-write 1"), OK);
    passes_through(&larder, &upstream, "SET other w", "NOREPLICAS");
    assert_eq!(direct.run("CONFIG SET min-replicas-to-write 0"), OK);
    assert_eq!(client.run("SET k w"), OK);
}

/// A script that never ends: the server says BUSY to all, and is reached by who can end the script.
#[test]
fn a_busy_server_is_reached_by_who_can_end_the_script() {
    let upstream = Server::redis(&["--busy-reply-threshold", "50"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut client, mut endless) = (larder.client(), larder.client());
    assert_eq!(client.run("SET k v"), OK);
    assert_eq!(client.cmd(&["EVAL", "return 1", "0"]), b":1\r\n");
    endless.send(&["EVAL", "while true do end", "0"]);
    wait_until("it is busy", || client.run("SET other w").starts_with(b"-BUSY "));
    for _ in 0..60 {
        assert!(client.run("SET other w").starts_with(b"-BUSY "));
    }
    if !plain() {
        assert_eq!(breaker(&mut client, "state"), "closed");
    }
    assert_eq!(client.run("SCRIPT KILL"), OK);
    assert_eq!(endless.reply()[0], b'-');
    wait_for_reply(&mut client, "SET other w", OK);
}

/// A replica that has lost its primary and may not answer: its words, until the circuit opens; and back by itself.
#[test]
fn a_replica_without_its_primary_is_a_failing_upstream() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&["--replica-serve-stale-data", "no"]);
    let larder =
        Larder::start(Some(&upstream), &["--set", "breaker.open_ms_min=100", "--set", "breaker.open_ms_max=200"]);
    let (mut client, mut direct) = (larder.client(), upstream.client());
    assert_eq!(client.run("SET k v"), OK);
    // A port on which nobody listens.
    assert_eq!(direct.run("REPLICAOF 127.0.0.1 9"), OK);
    let first = client.run("GET missing");
    assert!(first.starts_with(b"-MASTERDOWN") || is_outage(&first), "{}", first.escape_ascii());
    wait_until("the circuit opens", || client.run("GET missing").starts_with(b"-UPSTREAMDOWN"));
    assert_eq!(direct.run("REPLICAOF NO ONE"), OK);
    wait_for_reply(&mut client, "GET missing", b"$-1\r\n");
    wait_for_reply(&mut client, "SET k w", OK);
}

/// `CLIENT PAUSE` at the upstream: who can wait waits, nothing is lost, nothing comes twice.
#[test]
fn a_paused_server_is_waited_for() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut client, mut direct) = (larder.client(), upstream.client());
    assert_eq!(client.run("SET k v"), OK);
    assert_eq!(client.run("GET k"), bulk("v"));
    for mode in ["WRITE", "ALL"] {
        assert_eq!(direct.run(&format!("CLIENT PAUSE 400 {mode}")), OK);
        let batch: Vec<u8> = (0..50).flat_map(|_| crate::support::encode(&["INCR", mode])).collect();
        client.send_raw(&batch);
        assert_eq!(larder.client().run("GET k"), bulk("v"));
        for n in 1..=50 {
            assert_eq!(client.reply(), format!(":{n}\r\n").as_bytes());
        }
    }
}

/// A server that stands still for longer than a client's time, again and again: errors, and never another's reply.
#[test]
fn a_server_that_stands_still_costs_errors_and_nothing_else() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let flags = ["link.reply_ms_max=150", "link.write_ms_max=150", "link.dead_ms=600", "breaker.open_ms_min=50"];
    let mut set: Vec<&str> = flags.iter().flat_map(|flag| ["--set", *flag]).collect();
    set.extend(["--set", "breaker.open_ms_max=100"]);
    let larder = Larder::start(Some(&upstream), &set);
    let mut client = larder.client();
    let mut unknown = 0;
    let mut acknowledged = 0;
    for round in 0..6 {
        wait_for_reply(&mut client, &format!("SET round {round}"), OK);
        // Shorter and longer than the link's patience.
        let seconds = if round % 2 == 0 { 0.4 } else { 1.0 };
        upstream.client().send(&["DEBUG", "SLEEP", &seconds.to_string()]);
        std::thread::sleep(Duration::from_millis(20));
        for n in 0..20 {
            client.send(&["INCR", "count"]);
            client.send(&["GET", &format!("unique:{n}")]);
        }
        for _ in 0..20 {
            match client.reply() {
                reply if reply.starts_with(b":") => acknowledged += 1,
                reply if reply.starts_with(b"-UPSTREAMDOWN") => {}
                reply => {
                    assert!(is_outage(&reply), "{}", reply.escape_ascii());
                    unknown += 1;
                }
            }
            let read = client.reply();
            assert!(is_outage(&read) || read == b"$-1\r\n", "not the reply to this read: {}", read.escape_ascii());
        }
    }
    wait_for_reply(&mut client, "SET done 1", OK);
    let total = upstream.client().ask("GET count").int_or_null().unwrap_or(0);
    assert!((acknowledged..=acknowledged + unknown).contains(&total), "{total}: {acknowledged} and perhaps {unknown}");
}
