//! `CACHE INVALIDATE`: by key, by pattern, everything; upstream and in this L1 only.

use crate::support::{Client, encode};
use crate::{DELAY_MAX, Kind, Larder, Pair, Relay, Server, error_of, is_in_l1, stat};

const VALUE: &[u8] = b"$1\r\nv\r\n";
const NIL: &[u8] = b"$-1\r\n";

/// Sets `k:0` to `k:<count - 1>`, and reads each so that it is in L1.
fn fill(client: &mut Client, count: usize) {
    let writes: Vec<u8> = (0..count).flat_map(|n| encode(&["SET", &format!("k:{n}"), "v"])).collect();
    let reads: Vec<u8> = (0..count).flat_map(|n| encode(&["GET", &format!("k:{n}")])).collect();
    client.pipeline(&writes, count);
    client.pipeline(&reads, count);
}

#[test]
fn keys_go_upstream_and_here() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, pair.larder.address());
            fill(&mut client, 3);
            assert_eq!(client.ask("CACHE INVALIDATE KEYS 4 k:0 k:1 k:1 nosuch").int(), 2);
            assert!(!is_in_l1(&mut client, "k:0"), "{kind:?} {protocol}");
            assert!(is_in_l1(&mut client, "k:2"), "{kind:?} {protocol}");
            assert_eq!(pair.upstream.client().ask("EXISTS k:0 k:1 k:2").int(), 1);
            assert_eq!(pair.larder.client().run("GET k:0"), NIL);
        }
    }
}

#[test]
fn many_keys_go_in_chunks() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    fill(&mut client, 1500);
    let mut request = vec!["CACHE".to_owned(), "INVALIDATE".into(), "KEYS".into(), "1400".into()];
    request.extend((0..1400).map(|n| format!("k:{n}")));
    assert_eq!(client.value(&request).int(), 1400);
    assert_eq!(pair.upstream.calls("unlink"), 3);
    assert_eq!(client.ask("DBSIZE").int(), 100);
    assert_eq!(stat(&mut client, "l1_removed_manual"), 1400);
    request.push("LOCAL".into());
    request[3] = "1400".into();
    assert_eq!(client.value(&request).int(), 0);
}

#[test]
fn local_leaves_the_upstream_alone() {
    let pair = Pair::start(&[]);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, pair.larder.address());
        for (line, dropped, stays) in [
            ("CACHE INVALIDATE KEYS 2 k:0 nosuch LOCAL", Some(1), "k:1"),
            ("CACHE INVALIDATE PATTERN k:0* LOCAL", Some(1), "k:1"),
            ("CACHE INVALIDATE PATTERN * LOCAL", Some(2), ""),
            ("CACHE INVALIDATE ALL LOCAL", None, ""),
        ] {
            client.ok(&["CACHE", "INVALIDATE", "ALL"]);
            fill(&mut client, 2);
            match dropped {
                Some(count) => assert_eq!(client.ask(line).int(), count, "{line}"),
                None => assert_eq!(client.run(line), b"+OK\r\n"),
            }
            assert!(!is_in_l1(&mut client, "k:0"), "{line}");
            assert_eq!(is_in_l1(&mut client, "k:1"), stays == "k:1", "{line}");
            let before = pair.upstream.calls("get");
            assert_eq!(client.run("GET k:0"), VALUE, "{line}");
            assert_eq!(pair.upstream.calls("get"), before + 1, "{line}");
        }
    }
    assert_eq!(pair.upstream.calls("unlink"), 0);
}

#[test]
fn a_pattern_is_looked_for_in_the_whole_database() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        let mut client = pair.larder.client();
        fill(&mut client, 3000);
        client.ok(&["SET", "other", "v"]);
        client.run("GET other");
        assert_eq!(client.ask("CACHE INVALIDATE PATTERN k:*[02468]").int(), 1500);
        assert_eq!(client.ask("CACHE INVALIDATE PATTERN nosuch*").int(), 0);
        assert!(!is_in_l1(&mut client, "k:1998") && is_in_l1(&mut client, "k:1999") && is_in_l1(&mut client, "other"));
        assert_eq!(client.run("GET k:0"), NIL);
        assert_eq!(client.ask("DBSIZE").int(), 1501);
        assert_eq!(client.ask("CACHE INVALIDATE PATTERN k:* LOCAL").int(), 1501);
        assert_eq!(client.ask("CACHE INVALIDATE PATTERN *").int(), 1501);
        assert_eq!(client.ask("DBSIZE").int(), 0);
    }
}

#[test]
fn everything_goes_in_this_database_only() {
    let pair = Pair::start(&[]);
    let (mut client, mut other) = (pair.larder.client(), pair.larder.client());
    other.ok(&["SELECT", "1"]);
    fill(&mut client, 3);
    fill(&mut other, 3);
    client.ok(&["CACHE", "INVALIDATE", "ALL"]);
    assert_eq!(client.run("GET k:0"), NIL);
    assert_eq!(other.run("GET k:0"), VALUE);
    assert_eq!((client.ask("DBSIZE").int(), other.ask("DBSIZE").int()), (0, 3));
}

/// Whoever has been told of an invalidation, or hears of it by whatever way, reads nothing older, as any user.
#[test]
fn other_users_hear_of_it_before_it_is_answered() {
    let upstream = Server::redis(&[]);
    upstream.client().ok(&["ACL", "SETUSER", "alice", "on", ">pw", "~*", "&*", "+@all"]);
    let relay = Relay::start(upstream.address(), 3, DELAY_MAX);
    let larder = Larder::behind(&relay, &[]);
    let (mut one, mut other) = (larder.client(), larder.client());
    other.ok(&["AUTH", "alice", "pw"]);
    let forms = ["CACHE INVALIDATE KEYS 1 k", "CACHE INVALIDATE PATTERN k", "CACHE INVALIDATE ALL"];
    for form in forms.iter().cycle().take(90) {
        one.ok(&["SET", "k", "v"]);
        assert_eq!(other.run("GET k"), VALUE);
        assert_eq!(one.run("GET k"), VALUE);
        one.run(form);
        assert_eq!(other.run("GET k"), NIL, "{form}");
        assert_eq!(one.run("GET k"), NIL, "{form}");
    }
}

#[test]
fn obeys_the_upstreams_rights_and_the_operators() {
    let upstream = Server::redis(&[]);
    upstream.client().ok(&["ACL", "SETUSER", "bob", "on", ">pw", "~*", "&*", "+@all", "-unlink", "-scan", "-flushdb"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    client.ok(&["SET", "k", "v"]);
    client.ok(&["AUTH", "bob", "pw"]);
    assert_eq!(client.run("GET k"), VALUE);
    for line in ["CACHE INVALIDATE KEYS 1 k", "CACHE INVALIDATE PATTERN *", "CACHE INVALIDATE ALL"] {
        assert!(error_of(&mut client, line).starts_with("NOPERM"), "{line}");
        assert_eq!(client.run("GET k"), VALUE);
    }
    let strict = Larder::start(Some(&upstream), &["--set", "deny=['unlink', 'flushdb']"]);
    for line in ["CACHE INVALIDATE KEYS 1 k", "CACHE INVALIDATE PATTERN *", "CACHE INVALIDATE ALL"] {
        assert!(error_of(&mut strict.client(), line).starts_with("NOPERM larder: the operator has denied"), "{line}");
    }
    strict.client().ok(&["CACHE", "INVALIDATE", "ALL", "LOCAL"]);
    assert_eq!(upstream.client().run("GET k"), VALUE);
}

#[test]
fn without_the_upstream_it_fails_fast_and_local_works() {
    let mut pair = Pair::start(&["--set", "link.connect_ms_max=500"]);
    let mut client = pair.larder.client();
    fill(&mut client, 1);
    pair.upstream.kill();
    crate::wait_until("the link is lost", || !is_in_l1(&mut client, "k:0"));
    for line in ["CACHE INVALIDATE KEYS 1 k", "CACHE INVALIDATE PATTERN *", "CACHE INVALIDATE ALL"] {
        assert!(error_of(&mut client, line).starts_with("UPSTREAM"), "{line}");
    }
    assert_eq!(client.ask("CACHE INVALIDATE KEYS 1 k:0 LOCAL").int(), 0);
    assert_eq!(client.ask("CACHE INVALIDATE PATTERN * LOCAL").int(), 0);
    client.ok(&["CACHE", "INVALIDATE", "ALL", "LOCAL"]);
}

#[test]
fn on_the_embedded_store_it_deletes() {
    let larder = Larder::start(None, &[]);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, larder.address());
        fill(&mut client, 1200);
        assert_eq!(client.ask("CACHE INVALIDATE KEYS 3 k:0 k:1 nosuch LOCAL").int(), 0);
        client.ok(&["CACHE", "INVALIDATE", "ALL", "LOCAL"]);
        assert_eq!(client.ask("CACHE INVALIDATE KEYS 3 k:0 k:1 nosuch").int(), 2);
        assert_eq!(client.ask("CACHE INVALIDATE PATTERN k:1*").int(), 310);
        client.ok(&["SELECT", "1"]);
        client.ok(&["CACHE", "INVALIDATE", "ALL"]);
        client.ok(&["SELECT", "0"]);
        assert_eq!(client.ask("DBSIZE").int(), 888);
        client.ok(&["CACHE", "INVALIDATE", "ALL"]);
        assert_eq!(client.ask("DBSIZE").int(), 0);
    }
}
