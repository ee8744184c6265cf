//! `CACHE LEASE` and `CACHE SET ... LEASE`: what was computed from old data does not sneak in behind an invalidation.

use crate::support::Client;
use crate::{Kind, Larder, OK, Server, Value, error_of, map_of, wait_until};

const LOST: &str = "LEASELOST the key or one of its tags was written or invalidated since, or the lease is over";

fn everywhere(flags: &[&str]) -> Vec<(Option<Server>, Larder, Larder)> {
    let behind = |kind| {
        let upstream = Server::start(kind, &[]);
        let larders = [0, 1].map(|_| Larder::start(Some(&upstream), flags));
        let [one, two] = larders;
        (Some(upstream), one, two)
    };
    // The embedded store is one process's own.
    let embedded = Larder::start(None, flags);
    let spare = Larder::start(None, flags);
    vec![behind(Kind::Redis), behind(Kind::Valkey), (None, embedded, spare)]
}

#[track_caller]
fn token(client: &mut Client, line: &str) -> String {
    let reply = map_of(&client.ask(line));
    assert_eq!(reply["state"].text(), "leased", "{line}: {reply:?}");
    assert!((1..=10_000).contains(&reply["ms"].int()));
    reply["token"].text()
}

#[test]
fn one_client_computes_and_the_others_wait() {
    for (_upstream, one, two) in everywhere(&[]) {
        for protocol in [2, 3] {
            let mut first = Client::speaking(protocol, one.address());
            let mut second = Client::speaking(protocol, one.address());
            let shown = first.ask("CACHE LEASE k TAGS 2 a b");
            assert_eq!(matches!(shown, Value::Map(_)), protocol == 3);
            let token = map_of(&shown)["token"].text();
            let wait = map_of(&second.ask("CACHE LEASE k"));
            assert_eq!((wait["state"].text(), wait["token"].clone()), ("wait".into(), Value::Null));
            assert!((1..=10_000).contains(&wait["ms"].int()));
            assert_eq!(error_of(&mut second, "CACHE SET k old LEASE x"), LOST);
            assert_eq!(first.run(&format!("CACHE SET k v EX 100 TAGS 2 a b LEASE {token}")), OK);
            assert_eq!(error_of(&mut first, &format!("CACHE SET k again LEASE {token}")), LOST);
            let there = map_of(&second.ask("CACHE LEASE k"));
            assert_eq!((there["state"].text(), there["ms"].int()), ("exists".into(), -1));
            assert_eq!(first.ask("GET k").text(), "v");
            first.ok(&["CACHE", "INVALIDATE", "ALL"]);
        }
        drop(two);
    }
}

#[test]
fn what_happens_in_between_makes_it_void() {
    for (upstream, one, two) in everywhere(&[]) {
        let mut computer = one.client();
        // The other Larder, where there is one; and nobody's, the server itself.
        let mut other = if upstream.is_some() { two.client() } else { one.client() };
        let mut plain = upstream.as_ref().map_or_else(|| one.client(), Server::client);
        for event in [
            "CACHE INVALIDATE KEYS 1 k",
            "CACHE INVALIDATE TAGS 1 a",
            "CACHE INVALIDATE TAGS ANY 3 x b y",
            "CACHE INVALIDATE TAGS ALL 2 a b",
            "CACHE INVALIDATE ALL",
            "CACHE SET k new",
            "CACHE SET k new TAGS 1 a",
        ] {
            let token = token(&mut computer, "CACHE LEASE k TAGS 2 a b");
            let told = other.ask(event);
            assert!(!told.is_error(), "{event}: {told:?}");
            let late = computer.ask(&format!("CACHE SET k old TAGS 2 a b LEASE {token}"));
            assert_eq!(late, Value::Error(LOST.as_bytes().to_vec()), "{event}");
            assert_ne!(plain.ask("GET k"), Value::Bulk(b"old".to_vec()), "{event}");
            plain.run("DEL k larder:l:k");
            other.run("CACHE INVALIDATE KEYS 1 k");
        }
        let held = token(&mut computer, "CACHE LEASE k");
        plain.run("SET k plain");
        assert_eq!(error_of(&mut computer, &format!("CACHE SET k old LEASE {held}")), LOST);
        plain.run("DEL k");
        // What concerns other keys and tags does not matter.
        other.run("CACHE INVALIDATE KEYS 1 k");
        let held = token(&mut computer, "CACHE LEASE k TAGS 1 a");
        other.run("CACHE INVALIDATE KEYS 1 other");
        other.run("CACHE INVALIDATE TAGS 1 b");
        assert_eq!(computer.run(&format!("CACHE SET k v TAGS 1 a LEASE {held}")), OK);
    }
}

#[test]
fn a_lease_that_is_over_is_void_and_leaves_nothing() {
    for (upstream, one, _two) in everywhere(&["--set", "tags.lease_ms=50", "--set", "tags.sweep_ms=10"]) {
        let mut client = one.client();
        let old = map_of(&client.ask("CACHE LEASE k TAGS 1 t"))["token"].text();
        wait_until("the lease is over", || map_of(&client.ask("CACHE LEASE k"))["state"].text() == "leased");
        assert_eq!(error_of(&mut client, &format!("CACHE SET k old LEASE {old}")), LOST);
        client.run("CACHE INVALIDATE TAGS 1 t");
        if let Some(upstream) = &upstream {
            wait_until("nothing is left upstream", || upstream.client().ask("DBSIZE").int() == 0);
        }
    }
}
