//! `CACHE BREAKER`: the circuit, shown and held by hand.

use crate::support::Client;
use crate::{Larder, OK, Pair, Value, error_of, map_of, wait_until};

#[track_caller]
fn state(client: &mut Client) -> String {
    map_of(&client.ask("CACHE BREAKER"))["state"].text()
}

#[test]
fn is_shown_as_a_map_in_both_protocols() {
    let pair = Pair::start(&[]);
    let names = [
        "calls",
        "causes",
        "failure_rate",
        "failures",
        "next_probe_ms",
        "reason",
        "refused",
        "since_ms",
        "slow",
        "slow_rate",
        "state",
        "transitions",
        "upstream",
    ];
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, pair.larder.address());
        client.run("GET k");
        let shown = client.ask("CACHE BREAKER");
        assert_eq!(matches!(shown, Value::Map(_)), protocol == 3, "{shown:?}");
        let map = map_of(&shown);
        assert_eq!(map.keys().collect::<Vec<_>>(), names);
        assert_eq!(map["state"].text(), "closed");
        assert_eq!(map["upstream"].text(), pair.upstream.address().to_string());
        assert_eq!((map["next_probe_ms"].int(), map["reason"].clone()), (-1, Value::Null));
        assert_eq!(map["failure_rate"].text(), "0");
        assert_eq!(matches!(map["failure_rate"], Value::Double(_)), protocol == 3);
    }
}

#[test]
fn is_forced_and_released() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    client.ok(&["SET", "k", "v"]);
    client.run("GET k");
    assert_eq!(error_of(&mut client, "CACHE BREAKER RELEASE"), "ERR the circuit breaker is not forced open or closed");
    client.ok(&["CACHE", "BREAKER", "OPEN"]);
    assert_eq!(state(&mut client), "forced-open");
    assert_eq!(client.run("GET k"), b"$1\r\nv\r\n", "what L1 holds is still right: the link is up");
    let error = error_of(&mut client, "GET other");
    let address = pair.upstream.address();
    assert_eq!(error, format!("UPSTREAMDOWN upstream {address} unavailable (circuit forced open by an operator)"));
    assert!(error_of(&mut client, "BLPOP l 1").starts_with("UPSTREAMDOWN"));
    assert!(error_of(&mut client, "CACHE INVALIDATE KEYS 1 k").starts_with("UPSTREAMDOWN"));
    assert_eq!(client.run("GET k"), b"$1\r\nv\r\n", "what was refused has dropped nothing");
    assert_eq!(client.ask("CACHE INVALIDATE KEYS 1 k LOCAL").int(), 1, "local orders need no upstream");
    assert!(map_of(&client.ask("CACHE BREAKER"))["refused"].int() >= 3);
    client.ok(&["CACHE", "BREAKER", "RELEASE"]);
    wait_until("the circuit closes after its probes", || state(&mut client) == "closed");
    assert_eq!(client.run("GET other"), b"$-1\r\n");
    client.ok(&["CACHE", "BREAKER", "CLOSE"]);
    assert_eq!(state(&mut client), "forced-closed");
    client.ok(&["CACHE", "BREAKER", "release"]);
    assert_eq!(state(&mut client), "closed");
    assert!(map_of(&client.ask("CACHE BREAKER"))["transitions"].int() >= 5);
}

#[test]
fn shows_why_it_has_opened() {
    let mut pair = Pair::start(&["--set", "breaker.calls_min=1", "--set", "link.reconnect_ms_min=10"]);
    let mut client = pair.larder.client3();
    assert_eq!(client.run("SET k v"), OK);
    pair.upstream.kill();
    wait_until("the circuit opens", || matches!(state(&mut client).as_str(), "open" | "half-open"));
    let map = map_of(&client.ask("CACHE BREAKER"));
    let causes = map["causes"].items();
    assert!(!causes.is_empty());
    let last = map_of(&causes[causes.len() - 1]);
    assert_eq!(last.keys().collect::<Vec<_>>(), ["cause", "count", "first_ms_ago", "last_ms_ago"]);
    assert!(last["first_ms_ago"].int() >= last["last_ms_ago"].int());
    assert!(map["failures"].int() > 0 && map["reason"] != Value::Null, "{map:?}");
    pair.upstream.restart();
    wait_until("the circuit closes", || state(&mut client) == "closed");
}

#[test]
fn is_not_there_on_the_embedded_store() {
    let larder = Larder::start(None, &[]);
    for line in ["CACHE BREAKER", "CACHE BREAKER OPEN", "CACHE BREAKER RELEASE"] {
        let error = error_of(&mut larder.client(), line);
        assert_eq!(error, "ERR larder serves its embedded store: there is no upstream and no circuit breaker");
    }
}

/// What leaves L1 because the upstream fails so often that its circuit is open is counted, and told, as that.
#[test]
fn what_leaves_l1_for_too_many_errors_has_a_cause_of_its_own() {
    // By replies that do not come in time; by the loss of the connection, if one failure is too many.
    let slow = ["link.reply_ms_max=200", "link.dead_ms=900", "breaker.calls_min=3", "breaker.failure_rate_max=0.2"];
    let strict = ["breaker.calls_min=1", "breaker.failure_rate_max=0.01", "l1.stale_if_error_ms_max=200"];
    let tolerant = ["breaker.calls_min=1000"];
    for (settings, cause) in [(&slow[..], "error_threshold"), (&strict, "error_threshold"), (&tolerant, "feed_lost")] {
        let flags: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let mut pair = Pair::start(&flags);
        let (mut client, mut listener) = (pair.larder.client(), pair.larder.client3());
        client.ok(&["SET", "k", "v"]);
        client.run("GET k");
        assert_eq!(listener.run("CACHE SUBSCRIBE"), crate::OK);
        if settings == slow {
            pair.upstream.pause();
            for _ in 0..4 {
                assert!(error_of(&mut client, "GET nosuch").starts_with("UPSTREAM"));
            }
        } else {
            pair.upstream.kill();
        }
        let heard = listener.frame();
        let end = format!("_\r\n${}\r\n{cause}\r\n", cause.len());
        assert!(heard.ends_with(end.as_bytes()), "{settings:?}: {}", String::from_utf8_lossy(&heard));
        crate::wait_for_stat(&mut client, &format!("l1_removed_{cause}"), 1);
        let other = if cause == "feed_lost" { "l1_removed_error_threshold" } else { "l1_removed_feed_lost" };
        assert_eq!(crate::stat(&mut client, other), 0, "{settings:?}");
        if settings == slow {
            pair.upstream.resume();
        }
    }
}
