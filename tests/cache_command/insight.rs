//! `CACHE INFO`, `STATS`, `RESETSTATS` and `ENTRY`; removals by cause.

use crate::support::Client;
use crate::{Kind, Larder, Pair, Value, is_in_l1, map_of, stat, wait_for_stat, wait_until};

#[test]
fn info_is_text_by_sections() {
    let pair = Pair::start(&[]);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, pair.larder.address());
        let all = client.ask("CACHE INFO");
        assert_eq!(matches!(all, Value::Verbatim(_)), protocol == 3);
        let all = all.text();
        for section in ["Server", "Clients", "Commands", "L1", "Passed", "Removed", "Upstream", "Breaker", "Link"] {
            assert!(all.contains(&format!("# {section}\r\n")), "{all}");
        }
        let one = client.ask("CACHE INFO removed").text();
        assert_eq!(one.matches('#').count(), 1);
        assert!(one.trim_start_matches("txt:").starts_with("# Removed\r\nl1_removed_ttl_expired:"), "{one}");
        assert_eq!(client.ask("CACHE INFO nosuch").text().trim_start_matches("txt:"), "");
        assert!(client.ask("CACHE INFO everything").text().contains("# Link"));
    }
}

#[test]
fn stats_are_a_map_of_the_same_figures() {
    let pair = Pair::start(&[]);
    let embedded = Larder::start(None, &[]);
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, address);
            let stats = client.ask("CACHE STATS");
            assert_eq!(matches!(stats, Value::Map(_)), protocol == 3);
            let stats = map_of(&stats);
            let info = client.ask("CACHE INFO").text();
            let lines = info.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| *name != "txt");
            for (name, _) in lines.map(|(name, value)| (name.trim_start_matches("txt:"), value)) {
                assert!(stats.contains_key(name), "{name} is in INFO only");
            }
            assert!(matches!(stats["commands_processed"], Value::Int(_)));
            assert_eq!(matches!(stats["l1_hit_rate"], Value::Double(_)), protocol == 3);
        }
    }
    assert_eq!(stat(&mut embedded.client(), "store_keys"), 0);
}

#[test]
fn hits_misses_and_writes_are_counted_and_reset() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    for line in ["SET k v", "GET k", "GET k", "GET k", "GET k"] {
        client.run(line);
    }
    assert_eq!((stat(&mut client, "l1_hits"), stat(&mut client, "l1_misses"), stat(&mut client, "writes")), (3, 1, 1));
    assert_eq!(map_of(&client.ask("CACHE STATS"))["l1_hit_rate"].text(), "0.75");
    wait_for_stat(&mut client, "link_fills", 1);
    client.ok(&["CACHE", "RESETSTATS"]);
    let stats = map_of(&client.ask("CACHE STATS"));
    for name in ["l1_hits", "l1_misses", "writes", "link_fills", "connections_received", "l1_hit_rate"] {
        assert_eq!(stats[name].text_or_int(), "0", "{name}");
    }
    // What is, is not reset; nor does anything else begin anew.
    assert_eq!((stats["l1_entries"].int(), stats["connected_clients"].int()), (1, 1));
    assert!(is_in_l1(&mut client, "k"));
    client.run("GET k");
    assert_eq!((stat(&mut client, "l1_hits"), stat(&mut client, "l1_misses")), (1, 0));
    assert!(client.ask("INFO larder").text().contains("larder_l1_hits:1\r\n"));
}

impl Value {
    pub(crate) fn text_or_int(&self) -> String {
        if let Self::Int(n) = self { n.to_string() } else { self.text() }
    }
}

#[test]
fn an_entry_is_described() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, pair.larder.address());
            client.ok(&["FLUSHALL"]);
            client.ok(&["SET", "k", "0123456789"]);
            assert_eq!(client.ask("CACHE ENTRY k"), Value::Null, "a write fills nothing");
            client.run("GET k");
            let entry = client.ask("CACHE ENTRY k");
            assert_eq!(matches!(entry, Value::Map(_)), protocol == 3);
            let entry = map_of(&entry);
            let names = [
                "age_ms",
                "depends",
                "hits",
                "last_invalidation",
                "level",
                "size_bytes",
                "tags",
                "time_left_ms",
                "variants",
            ];
            assert_eq!(entry.keys().collect::<Vec<_>>(), names);
            assert_eq!((entry["level"].text(), entry["time_left_ms"].int()), ("l1".to_owned(), -1));
            assert_eq!((entry["variants"].int(), entry["hits"].int()), (1, 0));
            assert!(entry["size_bytes"].int() > 10);
            for line in ["GET k", "GET k", "STRLEN k", "GETRANGE k 0 1"] {
                client.run(line);
            }
            let entry = map_of(&client.ask("CACHE ENTRY k"));
            assert_eq!((entry["variants"].int(), entry["hits"].int()), (3, 2));
            client.run("PEXPIRE k 100000");
            client.run("GET k");
            let left = map_of(&client.ask("CACHE ENTRY k"))["time_left_ms"].int();
            assert!((1..=100_000).contains(&left), "{left}");
            client.run("GET nosuch");
            assert!(is_in_l1(&mut client, "nosuch"), "a key that is not there is an answer, too");
        }
    }
}

#[test]
fn an_entry_past_its_deadline_is_none() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    client.ok(&["SET", "k", "v", "PX", "60"]);
    client.run("GET k");
    wait_until("the entry is dead", || !is_in_l1(&mut client, "k"));
    assert_eq!(Larder::start(None, &[]).client().run("CACHE ENTRY k"), b"$-1\r\n");
}

#[test]
fn removals_are_counted_by_cause() {
    let mut pair = Pair::start(&[]);
    let (mut client, mut direct) = (pair.larder.client(), pair.upstream.client());
    for key in ["own", "direct", "named", "matched", "short", "kept"] {
        client.ok(&["SET", key, "v"]);
    }
    direct.run("PEXPIRE short 50");
    for key in ["own", "direct", "named", "matched", "short", "kept"] {
        client.run(&format!("GET {key}"));
    }
    client.ok(&["SET", "own", "w"]);
    direct.ok(&["SET", "direct", "w"]);
    wait_for_stat(&mut client, "l1_removed_data_changed", 2);
    client.run("CACHE INVALIDATE KEYS 1 named");
    client.run("CACHE INVALIDATE PATTERN match*");
    // The server's own push comes when it deletes the key.
    wait_for_stat(&mut client, "l1_removed_ttl_expired", 1);
    let counts = |client: &mut Client| {
        ["manual", "pattern_based", "feed_lost", "capacity_limit"]
            .map(|cause| stat(client, &format!("l1_removed_{cause}")))
    };
    assert_eq!(counts(&mut client), [1, 1, 0, 0]);
    pair.upstream.kill();
    wait_for_stat(&mut client, "l1_removed_feed_lost", 1);
    assert_eq!(stat(&mut client, "l1_removed_data_changed"), 2);
}

#[test]
fn evictions_are_counted() {
    let pair = Pair::start(&["--l1-size", "1mb"]);
    let mut client = pair.larder.client();
    let value = "x".repeat(2000);
    for n in 0..1500 {
        client.ok(&["SET", &format!("k{n}"), &value]);
        client.run(&format!("GET k{n}"));
    }
    assert!(stat(&mut client, "l1_removed_capacity_limit") > 500);
    assert_eq!(stat(&mut client, "l1_removed_capacity_limit"), stat(&mut client, "l1_evictions"));
}
