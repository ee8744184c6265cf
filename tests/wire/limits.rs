//! What a client may cost before it is closed, and that each end is counted.

use std::time::{Duration, Instant};

use crate::OK;
use crate::support::{Client, Larder, Server, encode, wait_until};

fn figure(larder: &Larder, name: &str) -> u64 {
    let info = larder.client().value(&["INFO", "larder"]).text();
    let head = format!("larder_{name}:");
    let line = info.lines().find_map(|line| line.strip_prefix(&head)).unwrap_or_else(|| panic!("no {name}"));
    line.trim().parse().expect("a number")
}

fn is_connected(larder: &Larder, name: &str) -> bool {
    larder.client().value(&["CLIENT", "LIST"]).text().contains(&format!(" name={name} "))
}

/// The unread bytes that CLIENT LIST tells of a client.
fn unread(larder: &Larder, name: &str) -> u64 {
    let list = larder.client().value(&["CLIENT", "LIST"]).text();
    let Some(line) = list.lines().find(|line| line.contains(&format!(" name={name} "))) else { return 0 };
    let omem = line.split(' ').find_map(|field| field.strip_prefix("omem="));
    omem.expect("omem").parse().expect("a number")
}

fn subscriber(larder: &Larder, name: &str) -> Client {
    let mut client = larder.client();
    client.ok(&["CLIENT", "SETNAME", name]);
    client.send(&["SUBSCRIBE", "ch"]);
    client.frame();
    client
}

/// Publishes until so much waits for the subscriber of this name, which does not read.
fn fill(larder: &Larder, name: &str, bytes: u64) {
    let mut publisher = larder.client();
    let request = encode(&["PUBLISH", "ch", &"x".repeat(50_000)]);
    wait_until("the output waits", || {
        publisher.pipeline(&request, 1);
        unread(larder, name) >= bytes
    });
}

#[test]
fn a_subscriber_that_does_not_read_is_closed_at_the_hard_limit() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "limits.subscriber_output_bytes_max=2mb"]);
    let slow = subscriber(&larder, "slow");
    let mut quick = subscriber(&larder, "quick");
    let mut publisher = larder.client();
    let request = encode(&["PUBLISH", "ch", &"x".repeat(50_000)]);
    let mut published = 0;
    wait_until("it is closed", || {
        publisher.pipeline(&request, 1);
        quick.frame();
        published += 1;
        !is_connected(&larder, "slow")
    });
    assert!(published * 50_000 > 2 << 20, "after {published} messages");
    assert!(is_connected(&larder, "quick"));
    assert_eq!(figure(&larder, "clients_closed_output_hard"), 1);
    assert_eq!(figure(&larder, "clients_closed_output_soft"), 0);
    drop(slow);
}

#[test]
fn a_subscriber_above_the_soft_limit_is_closed_after_its_time_unless_it_recovers() {
    let upstream = Server::redis(&[]);
    let flags = ["limits.subscriber_output_soft_bytes_max=1mb", "limits.subscriber_output_soft_ms_max=1500"];
    let larder = Larder::start(Some(&upstream), &["--set", flags[0], "--set", flags[1]]);
    let mut recovers = subscriber(&larder, "recovers");
    fill(&larder, "recovers", 1 << 20);
    while unread(&larder, "recovers") > 0 {
        recovers.frame();
    }
    let began = Instant::now();
    let slow = subscriber(&larder, "slow");
    // One reads what comes, the other does not.
    let mut publisher = larder.client();
    let request = encode(&["PUBLISH", "ch", &"x".repeat(50_000)]);
    wait_until("the output waits", || {
        publisher.pipeline(&request, 1);
        while unread(&larder, "recovers") > 0 {
            recovers.frame();
        }
        unread(&larder, "slow") >= 1 << 20
    });
    assert!(is_connected(&larder, "slow"), "it has its time");
    let above_since = Instant::now();
    wait_until("it is closed", || !is_connected(&larder, "slow"));
    assert!(began.elapsed() >= Duration::from_millis(1500));
    assert!(above_since.elapsed() < Duration::from_secs(20));
    assert!(is_connected(&larder, "recovers"));
    assert_eq!(figure(&larder, "clients_closed_output_soft"), 1);
    assert_eq!(figure(&larder, "clients_closed_output_hard"), 0);
    drop(slow);
}

#[test]
fn a_client_that_does_not_read_its_replies_is_closed_at_the_limit_of_its_class() {
    let upstream = Server::redis(&[]);
    let flags = ["limits.client_output_bytes_max=8mb", "limits.subscriber_output_bytes_max=64kb"];
    let larder = Larder::start(Some(&upstream), &["--set", flags[0], "--set", flags[1]]);
    let mut client = larder.client();
    client.ok(&["CLIENT", "SETNAME", "greedy"]);
    client.ok(&["SET", "k", &"x".repeat(500_000)]);
    // Below the limit it is only not read from.
    client.send_raw(&encode(&["GET", "k"]).repeat(8));
    for _ in 0..8 {
        assert_eq!(client.frame().len(), 500_011);
    }
    // Past L1, so that all are under way at once.
    client.ok(&["CACHE", "READ", "BYPASS"]);
    client.send_raw(&encode(&["GET", "k"]).repeat(200));
    wait_until("it is closed", || !is_connected(&larder, "greedy"));
    assert_eq!(figure(&larder, "clients_closed_output_hard"), 1);
}

#[test]
fn silence_ends_a_client_but_none_that_waits() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "limits.idle_timeout_ms=700"]);
    let mut subscribed = subscriber(&larder, "subscribed");
    let (mut idle, mut queueing, mut waiting, mut busy) =
        (larder.client(), larder.client(), larder.client(), larder.client());
    idle.run("PING");
    queueing.run("MULTI");
    waiting.send(&["BLPOP", "l", "0"]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        assert_eq!(busy.run("SET k v"), OK);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(idle.rest(), b"");
    assert_eq!(queueing.rest(), b"");
    busy.run("RPUSH l a");
    assert_eq!(waiting.reply(), b"*2\r\n$1\r\nl\r\n$1\r\na\r\n");
    busy.run("PUBLISH ch x");
    assert_eq!(subscribed.frame(), b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$1\r\nx\r\n");
    assert_eq!(figure(&larder, "clients_closed_idle"), 2);
}

#[test]
fn what_is_no_request_is_counted() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "limits.args_max=10"]);
    for bytes in [&b"*1\r\n!x\r\n"[..], b"*11\r\n", b"*1\r\n$-5\r\n"] {
        let mut client = larder.client();
        client.send_raw(bytes);
        assert_eq!(client.rest()[..4], *b"-ERR");
    }
    assert_eq!(figure(&larder, "clients_closed_protocol"), 3);
}
