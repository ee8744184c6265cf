//! `CACHE HOTKEYS`, `BIGKEYS` and `ADVISE`: each recommendation by a made workload; latencies.

use crate::support::{Client, encode};
use crate::{Kind, Larder, Pair, Server, Value, error_of, map_of, stat, wait_until};
use std::collections::BTreeMap;

/// Every request is seen, and what has been there for a tenth of a second counts.
const SEES_ALL: &[&str] = &["--set", "insight.sample_every=1", "--set", "insight.advise_after_ms=100"];

/// Sends the same request many times at once.
fn repeat(client: &mut Client, line: &str, times: usize) {
    let request = encode(&line.split(' ').collect::<Vec<_>>());
    for _ in 0..times / 200 {
        client.pipeline(&request.repeat(200), 200);
    }
}

fn maps(reply: &Value) -> Vec<BTreeMap<String, Value>> {
    reply.items().iter().map(map_of).collect()
}

/// The rules that have something to say.
fn rules(client: &mut Client) -> Vec<String> {
    maps(&client.ask("CACHE ADVISE")).iter().map(|advice| advice["rule"].text()).collect()
}

#[track_caller]
fn wait_for_rule(client: &mut Client, rule: &str) -> BTreeMap<String, Value> {
    wait_until(rule, || rules(client).iter().any(|r| r == rule));
    let all = maps(&client.ask("CACHE ADVISE"));
    all.into_iter().find(|advice| advice["rule"].text() == rule).expect("it was there")
}

fn number(value: &Value) -> f64 {
    value.text_or_int().parse().expect("a number")
}

#[test]
fn hot_keys_are_those_used_most_with_rates() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, SEES_ALL);
        let embedded = Larder::start(None, SEES_ALL);
        for address in [pair.larder.address(), embedded.address()] {
            for protocol in [2, 3] {
                let mut client = Client::speaking(protocol, address);
                client.ok(&["SET", "warm", "v"]);
                client.ok(&["SET", "hot", "v"]);
                repeat(&mut client, "GET hot", 2000);
                repeat(&mut client, "GET warm", 600);
                repeat(&mut client, "SET cold v", 200);
                let reply = client.ask("CACHE HOTKEYS 2");
                let hot = maps(&reply);
                assert_eq!(matches!(reply.items()[0], Value::Map(_)), protocol == 3);
                let names: Vec<String> = hot.iter().map(|key| key["key"].text()).collect();
                assert_eq!(names, ["hot", "warm"]);
                let ratio = number(&hot[0]["per_second"]) / number(&hot[1]["per_second"]);
                assert!((3.0..3.7).contains(&ratio), "2001 to 601, give or take the decay: {ratio}");
                assert_eq!(number(&hot[0]["error"]), 0.0, "there is room for all");
                assert!((0.6..0.8).contains(&number(&hot[0]["share"])));
                let all = maps(&client.ask("CACHE HOTKEYS"));
                let cold = all.iter().find(|key| key["key"].text() == "cold").expect("cold");
                assert_eq!(number(&cold["writes_per_second"]), number(&cold["per_second"]));
            }
        }
    }
}

#[test]
fn big_keys_are_the_largest_and_arguments_are_checked() {
    let pair = Pair::start(SEES_ALL);
    let embedded = Larder::start(None, SEES_ALL);
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, address);
            for bytes in [10, 1000, 2_000_000] {
                client.ok(&["SET".to_owned(), format!("k{bytes}"), "x".repeat(bytes)]);
                client.run(&format!("GET k{bytes}"));
            }
            let big = maps(&client.ask("CACHE BIGKEYS 2"));
            let names: Vec<String> = big.iter().map(|key| key["key"].text()).collect();
            assert_eq!(names, ["k2000000", "k1000"], "also what L1 does not keep");
            assert!((2_000_000..2_000_100).contains(&big[0]["bytes"].int()));
            for line in ["CACHE BIGKEYS 0", "CACHE HOTKEYS 1001", "CACHE HOTKEYS many"] {
                assert_eq!(error_of(&mut client, line), "ERR value is not an integer or out of range");
            }
        }
    }
}

#[test]
fn nobody_learns_the_keys_of_others() {
    let upstream = Server::redis(&[]);
    upstream.client().ok(&["ACL", "SETUSER", "alice", "on", ">pw", "~*", "&*", "+@all"]);
    let larder = Larder::start(Some(&upstream), SEES_ALL);
    let (mut anonymous, mut alice, mut elsewhere) = (larder.client(), larder.client(), larder.client());
    alice.ok(&["AUTH", "alice", "pw"]);
    elsewhere.ok(&["SELECT", "3"]);
    let value = "x".repeat(100_000);
    alice.ok(&["SET", "secret", &value]);
    repeat(&mut alice, "GET secret", 2000);
    for other in [&mut anonymous, &mut elsewhere] {
        assert_eq!(other.ask("CACHE HOTKEYS"), Value::Array(vec![]));
        assert_eq!(other.ask("CACHE BIGKEYS"), Value::Array(vec![]));
        assert!(!String::from_utf8_lossy(&other.run("CACHE ADVISE")).contains("secret"));
    }
    assert_eq!(maps(&alice.ask("CACHE HOTKEYS"))[0]["key"].text(), "secret");
    assert!(rules(&mut alice).contains(&"big-values".to_owned()));
}

#[test]
fn advice_has_figures_and_a_setting_in_both_protocols() {
    let pair = Pair::start(SEES_ALL);
    let embedded = Larder::start(None, SEES_ALL);
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, address);
            client.ok(&["SET", "hot", "v"]);
            repeat(&mut client, "GET hot", 4000);
            let advice = wait_for_rule(&mut client, "hot-single-key");
            assert_eq!(advice["key"].text(), "hot");
            assert!(advice["advice"].text().starts_with("one key has "), "{advice:?}");
            assert!(!advice["setting"].text().is_empty());
            assert!(number(&map_of(&advice["figures"])["share"]) > 0.5);
        }
    }
    assert_eq!(rules(&mut Pair::start(SEES_ALL).larder.client()), [""; 0], "nothing seen, nothing said");
}

#[test]
fn a_small_l1_shows_in_the_curve() {
    let flags = [SEES_ALL, &["--l1-size", "1mb", "--set", "l1.entry_bytes_max=16kb"]].concat();
    let pair = Pair::start(&flags);
    let mut client = pair.larder.client();
    let value = "x".repeat(2000);
    for round in 0..4 {
        for n in 0..1000 {
            if round == 0 {
                client.ok(&["SET", &format!("k{n}"), &value]);
            }
            client.run(&format!("GET k{n}"));
        }
    }
    let advice = wait_for_rule(&mut client, "l1-too-small");
    assert_eq!(advice["setting"].text(), "l1.size_bytes_max");
    assert!(advice["advice"].text().contains("more would save"), "{advice:?}");
    let figures = map_of(&advice["figures"]);
    // A thousand keys of two kilobytes fit into twice to three times the size.
    let suggested = number(&figures["suggested_bytes"]) / number(&figures["size_bytes"]);
    assert!((2.0..=3.0).contains(&suggested), "{suggested}");
    // What is advised helps: with three times the size nothing is missed any more.
    client.ok(&["CACHE", "CONFIG", "SET", "l1.size_bytes_max", "4mb"]);
    let read_all = |client: &mut Client| {
        for n in 0..1000 {
            client.run(&format!("GET k{n}"));
        }
    };
    read_all(&mut client);
    let misses = stat(&mut client, "l1_misses");
    read_all(&mut client);
    assert_eq!(stat(&mut client, "l1_misses"), misses);
}

#[test]
fn changes_expiry_big_values_and_scans_are_noticed() {
    let pair = Pair::start(SEES_ALL);
    let mut client = pair.larder.client();
    for n in 0..60 {
        client.ok(&["SET", &format!("short{n}"), "v", "PX", "30"]);
        client.run(&format!("GET short{n}"));
    }
    let advice = wait_for_rule(&mut client, "ttl-too-short");
    assert!(number(&map_of(&advice["figures"])["expired"]) >= 50.0);
    for n in 0..100 {
        client.ok(&["SET", &format!("long{n}"), "v", "EX", "100000"]);
        client.run(&format!("GET long{n}"));
    }
    wait_for_rule(&mut client, "ttl-too-long");
    wait_for_rule(&mut client, "scans");
    client.ok(&["SET", "big", &"x".repeat(70_000)]);
    client.run("GET big");
    assert_eq!(wait_for_rule(&mut client, "big-values")["key"].text(), "big");
    for n in 0..500 {
        client.ok(&["SET", "restless", &n.to_string()]);
        client.run("GET restless");
    }
    let advice = wait_for_rule(&mut client, "changes-more-than-reads");
    assert_eq!(advice["key"].text(), "restless");
}

#[test]
fn a_small_tracking_table_is_noticed() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &["--tracking-table-max-keys", "100"]);
        let larder = Larder::start(Some(&upstream), SEES_ALL);
        let mut client = larder.client();
        assert!(!rules(&mut client).contains(&"tracking-table-too-small".to_owned()));
        for n in 0..200 {
            client.run(&format!("GET k{n}"));
        }
        let advice = wait_for_rule(&mut client, "tracking-table-too-small");
        assert_eq!(number(&map_of(&advice["figures"])["tracked_keys_max"]), 100.0);
    }
}

#[test]
fn latencies_are_measured_and_reset() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        let mut client = pair.larder.client();
        client.ok(&["SET", "k", "v"]);
        client.run("GET k");
        repeat(&mut client, "GET k", 1000);
        client.run("GET nosuch");
        let stats = map_of(&client.ask("CACHE STATS"));
        let counts = ["hit", "miss", "write"].map(|what| stats[&format!("latency_{what}_count")].int());
        assert_eq!(counts, [1000, 2, 1]);
        for what in ["hit", "miss", "write"] {
            let of = |figure: &str| number(&stats[&format!("latency_{what}_us_{figure}")]);
            let rising = [of("p50"), of("p95"), of("p99"), of("p99_9")];
            assert!(rising.is_sorted() && rising[0] >= 1.0, "{what}: {rising:?}");
            assert!(of("mean") >= 0.5 && of("mean") <= rising[3], "{what}: {}", of("mean"));
        }
        assert_eq!((stats["l2_hits"].int(), stats["l2_misses"].int()), (1, 1));
        assert_eq!(stats["upstream_commands_saved"].int(), 1000);
        assert_eq!((stats["links_up"].int(), stats["jobs_running"].int()), (1, 0));
        client.ok(&["CACHE", "RESETSTATS"]);
        let stats = map_of(&client.ask("CACHE STATS"));
        for name in ["latency_hit_count", "latency_miss_us_p99", "l2_hits", "upstream_commands_saved"] {
            assert_eq!(stats[name].int(), 0, "{name}");
        }
    }
}

/// A miss takes what the upstream takes; a hit does not.
#[test]
fn misses_take_the_upstreams_time_and_hits_do_not() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    client.ok(&["SET", "k", "v"]);
    client.run("GET k");
    client.ok(&["CACHE", "RESETSTATS"]);
    upstream.pause();
    client.run("GET k");
    client.send(&["GET", "other"]);
    let mut observer = larder.client();
    // The pause is what is measured: it ends when it has been long enough for the histogram to tell.
    let began = std::time::Instant::now();
    wait_until("a pause", || began.elapsed().as_millis() >= 50);
    upstream.resume();
    client.reply();
    let stats = map_of(&observer.ask("CACHE STATS"));
    assert!(stats["latency_miss_us_p50"].int() >= 49_000, "{stats:?}");
    assert!(stats["latency_hit_us_p50"].int() < stats["latency_miss_us_p50"].int());
}

#[test]
fn an_entry_tells_of_its_last_invalidation() {
    let pair = Pair::start(&[]);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, pair.larder.address());
        let key = format!("k{protocol}");
        client.run(&format!("GET {key}"));
        assert_eq!(map_of(&client.ask(&format!("CACHE ENTRY {key}")))["last_invalidation"], Value::Null);
        for (remove, cause) in
            [(format!("SET {key} v"), "data_changed"), (format!("CACHE INVALIDATE KEYS 1 {key} LOCAL"), "manual")]
        {
            client.run(&remove);
            client.run(&format!("GET {key}"));
            let last = map_of(&map_of(&client.ask(&format!("CACHE ENTRY {key}")))["last_invalidation"]);
            assert_eq!(last["cause"].text(), cause);
            assert!(last["ms_ago"].int() < 30_000);
        }
    }
}
