//! What the upstream is asked to track: nothing that is not kept, while the admission filter is choosy; and everything that is.

use crate::support::{Client, Kind, Larder, Server, encode};
use crate::{OK, assert_spared, bulk, wait_for_reply};

const CHOOSY: &[&str] = &["--set", "l1.admission='second-touch'"];

/// Reads of one key of each way to keep a reply.
const READS: &[(&str, &str)] =
    &[("GET s", "get"), ("HGETALL h", "hgetall"), ("EXISTS e", "exists"), ("MGET m", "mget")];

fn tracked(upstream: &Server) -> u64 {
    upstream.info("stats", "tracking_total_keys").parse().expect("a number")
}

fn start(kind: Kind) -> (Server, Client) {
    let upstream = Server::start(kind, &[]);
    let mut direct = upstream.client();
    for line in ["SET s 1", "HSET h f 1", "SET e 1", "SET m 1"] {
        direct.run(line);
    }
    (upstream, direct)
}

fn only_what_is_kept_is_tracked(kind: Kind) {
    if Larder::is_plain() {
        return;
    }
    let (upstream, mut direct) = start(kind);
    let larder = Larder::start(Some(&upstream), CHOOSY);
    let mut client = larder.client();
    // The first miss has the link go over to it.
    client.run("GET first");
    let before = tracked(&upstream);
    for (read, _) in READS {
        client.run(read);
    }
    (0..100).for_each(|n| drop(client.run(&format!("GET once:{n}"))));
    client.run("MGET once:a once:b once:c");
    assert_eq!(tracked(&upstream), before, "what is only forwarded is tracked");
    for (at, (read, counted)) in READS.iter().enumerate() {
        let wanted = client.run(read);
        assert_eq!(tracked(&upstream), before + 1 + at as u64, "{read} is not tracked");
        assert_eq!(assert_spared(&upstream, counted, || client.run(read)), wanted);
    }
    for (change, read, wanted) in [
        ("SET s 2", "GET s", bulk("2")),
        ("HSET h f 2", "HGETALL h", [&b"*2\r\n"[..], &bulk("f"), &bulk("2")].concat()),
        ("DEL e", "EXISTS e", b":0\r\n".to_vec()),
        ("SET m 2", "MGET m", [&b"*1\r\n"[..], &bulk("2")].concat()),
    ] {
        direct.run(change);
        wait_for_reply(&mut client, read, &wanted);
    }
}

#[test]
fn only_what_is_kept_is_tracked_by_redis() {
    only_what_is_kept_is_tracked(Kind::Redis);
}

#[test]
fn only_what_is_kept_is_tracked_by_valkey() {
    only_what_is_kept_is_tracked(Kind::Valkey);
}

/// Of several keys only those that have missed before are kept: the others are asked for, and tracked, no more than alone.
#[test]
fn an_mget_keeps_the_keys_that_are_worth_it() {
    if Larder::is_plain() {
        return;
    }
    let (upstream, mut direct) = start(Kind::Redis);
    let larder = Larder::start(Some(&upstream), CHOOSY);
    let mut client = larder.client();
    client.run("GET s");
    let before = (tracked(&upstream), upstream.calls("pttl"));
    let wanted = [&b"*3\r\n"[..], &bulk("1"), &bulk("1"), &bulk("1")].concat();
    assert_eq!(client.run("MGET m s e"), wanted);
    assert_eq!((tracked(&upstream), upstream.calls("pttl")), (before.0 + 1, before.1 + 1));
    assert_spared(&upstream, "get", || client.run("GET s"));
    direct.run("SET s 2");
    wait_for_reply(&mut client, "GET s", &bulk("2"));
}

/// Who may not say CLIENT CACHING goes on with all reads tracked; who may not use CLIENT TRACKING at all keeps nothing.
#[test]
fn a_user_without_the_right_to_opt_in_is_tracked_as_before() {
    if Larder::is_plain() {
        return;
    }
    for (right, keeps) in [("client|caching", true), ("client|tracking", false)] {
        let (upstream, mut direct) = start(Kind::Redis);
        assert_eq!(direct.run(&format!("ACL SETUSER u on >pw ~* &* +@all -{right}")), OK);
        let larder = Larder::with_url(&format!("redis://u:pw@{}", upstream.address()), CHOOSY);
        let mut client = larder.client();
        // The second miss is refused, and with it the mode.
        (0..4).for_each(|_| drop(client.run("GET s")));
        let before = upstream.calls("get");
        assert_eq!(client.run("GET s"), bulk("1"));
        assert_eq!(upstream.calls("get") == before, keeps, "without {right}");
        direct.run("SET s 2");
        wait_for_reply(&mut client, "GET s", &bulk("2"));
    }
}

/// The filter becomes choosy by what it sees, and what was kept before is still told of.
#[test]
fn what_was_kept_before_the_filter_became_choosy_is_still_told_of() {
    if Larder::is_plain() {
        return;
    }
    let (upstream, mut direct) = start(Kind::Redis);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    client.run("GET s");
    let opts_in = (0..200).any(|round| {
        let batch: Vec<u8> = (0..1000).flat_map(|n| encode(&["GET", &format!("once:{round}:{n}")])).collect();
        client.pipeline(&batch, 1000);
        upstream.calls("client|caching") > 0
    });
    assert!(opts_in, "200,000 keys that are read once leave the filter as it was");
    assert_spared(&upstream, "get", || client.run("GET s"));
    direct.run("SET s 2");
    wait_for_reply(&mut client, "GET s", &bulk("2"));
}
