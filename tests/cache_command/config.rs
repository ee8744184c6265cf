//! `CACHE CONFIG GET` and `SET`: what it shows, what it refuses, and that what it sets takes effect at once.

use crate::support::Client;
use crate::{Larder, Pair, Value, error_of, map_of, stat, wait_until};

#[test]
fn shows_settings_by_the_names_of_the_file() {
    let pair = Pair::start(&["--l1-size", "3mb"]);
    let embedded = Larder::start(None, &["--l1-size", "3mb", "--set", "requirepass=geheim"]);
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let mut client = Client::connect(address);
            if address == embedded.address() {
                client.ok(&["AUTH", "geheim"]);
            }
            client.run(&format!("HELLO {protocol}"));
            let all = client.ask("CACHE CONFIG GET *");
            assert_eq!(matches!(all, Value::Map(_)), protocol == 3);
            let all = map_of(&all);
            assert_eq!((all["l1.size_bytes_max"].text(), all["log.level"].text()), ("3mb".into(), "info".into()));
            assert!(all.len() > 40 && all.values().all(|value| !value.text().contains("geheim")));
            let some = map_of(&client.ask("cache config get BREAKER.slow*"));
            assert_eq!(some.keys().collect::<Vec<_>>(), ["breaker.slow_ms", "breaker.slow_rate_max"]);
            assert_eq!(map_of(&client.ask("CACHE CONFIG GET nosuch")).len(), 0);
        }
    }
}

#[test]
fn refuses_what_the_file_would_refuse_and_what_cannot_change() {
    let pair = Pair::start(&[]);
    let embedded = Larder::start(None, &[]);
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, address);
            for (name, value, error) in [
                ("nosuch", "1", "ERR Unknown option for CACHE CONFIG SET - 'nosuch'"),
                ("listen", "x:1", "ERR 'listen' cannot change at run time: set it in the file and restart"),
                ("l1.size_bytes_max", "much", "ERR l1.size_bytes_max = \"much\": expected a byte size of at least 1kb"),
                ("breaker.slow_rate_max", "7", "ERR breaker.slow_rate_max = "),
                ("breaker.open_ms_min", "40000", "ERR "),
                ("log.level", "loud", "ERR log.level = "),
            ] {
                let before = client.run("CACHE CONFIG GET *");
                let said = error_of(&mut client, &format!("CACHE CONFIG SET {name} {value}"));
                assert!(said.starts_with(error), "{said}");
                assert_eq!(client.run("CACHE CONFIG GET *"), before);
            }
            assert_eq!(error_of(&mut client, "CACHE CONFIG NOSUCH x"), "ERR syntax error");
            let arity = "ERR wrong number of arguments for 'cache|config' command";
            assert_eq!(error_of(&mut client, "CACHE CONFIG SET log.level"), arity);
        }
    }
}

#[test]
fn a_smaller_l1_evicts_at_once_and_a_smaller_entry_is_not_kept() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    let value = "x".repeat(2000);
    for n in 0..2000 {
        client.ok(&["SET", &format!("k{n}"), &value]);
        client.run(&format!("GET k{n}"));
    }
    assert!(stat(&mut client, "l1_bytes") > 4_000_000);
    client.ok(&["CACHE", "CONFIG", "SET", "l1.size_bytes_max", "1mb"]);
    assert!(stat(&mut client, "l1_bytes") <= 1 << 20);
    assert_eq!(stat(&mut client, "l1_bytes_max"), 1 << 20);
    assert_eq!(map_of(&client.ask("CACHE CONFIG GET l1.size_bytes_max"))["l1.size_bytes_max"].text(), "1mb");
    client.ok(&["CACHE", "CONFIG", "SET", "L1.ENTRY_BYTES_MAX", "100"]);
    client.ok(&["SET", "large", &value]);
    client.run("GET large");
    assert_eq!(client.ask("CACHE ENTRY large"), Value::Null);
    client.ok(&["CACHE", "CONFIG", "SET", "l1.variants_per_key_max", "1"]);
    client.ok(&["SET", "small", "v"]);
    client.run("GET small");
    client.run("STRLEN small");
    assert_eq!(map_of(&client.ask("CACHE ENTRY small"))["variants"].int(), 1);
}

#[test]
fn fewer_clients_are_let_in() {
    let larder = Larder::start(None, &[]);
    let mut client = larder.client();
    client.ok(&["CACHE", "CONFIG", "SET", "limits.clients_max", "1"]);
    let refused = larder.client().rest();
    assert_eq!(refused, b"-ERR max number of clients reached\r\n");
    wait_until("only one is there", || stat(&mut client, "connections_refused") >= 1);
    client.ok(&["CACHE", "CONFIG", "SET", "limits.clients_max", "10"]);
    assert_eq!(larder.client().run("PING"), b"+PONG\r\n");
}

#[test]
fn the_breaker_opens_by_its_new_settings() {
    let pair = Pair::start(&["--set", "breaker.calls_min=1000000"]);
    let mut client = pair.larder.client();
    client.ok(&["CACHE", "CONFIG", "SET", "breaker.slow_ms", "1"]);
    client.ok(&["CACHE", "CONFIG", "SET", "breaker.slow_rate_max", "0.1"]);
    client.ok(&["CACHE", "CONFIG", "SET", "breaker.calls_min", "1"]);
    // The upstream is slow now: a call of 20 ms is slower than one.
    let mut busy = pair.upstream.client();
    let open = |client: &mut Client| map_of(&client.ask("CACHE BREAKER"))["state"].text() != "closed";
    wait_until("it opens", || {
        busy.send(&["DEBUG", "SLEEP", "0.02"]);
        client.run("GET nosuch-and-not-cached-yet");
        client.run("CACHE INVALIDATE ALL LOCAL");
        busy.reply();
        open(&mut client)
    });
}

#[test]
fn the_log_says_more_or_less() {
    let larder = Larder::start(None, &["--log-level", "warn"]);
    let mut client = larder.client();
    client.ok(&["CACHE", "CONFIG", "SET", "log.level", "info"]);
    larder.client().send_raw(b"*1\r\n$x\r\n");
    wait_until("a line of info", || larder.output().contains("not a request"));
    client.ok(&["CACHE", "CONFIG", "SET", "log.level", "off"]);
    let before = larder.output();
    let mut wrong = larder.client();
    wrong.send_raw(b"*1\r\n$x\r\n");
    wrong.rest();
    assert_eq!(client.run("PING"), b"+PONG\r\n");
    assert_eq!(larder.output(), before);
}

#[test]
fn sampling_is_turned_on_and_off() {
    let larder = Larder::start(None, &["--set", "insight.sample_every=1"]);
    let mut client = larder.client();
    client.run("GET k");
    assert_eq!(client.ask("CACHE HOTKEYS").items().len(), 1);
    client.ok(&["CACHE", "CONFIG", "SET", "insight.sample_every", "0"]);
    for n in 0..5 {
        client.run(&format!("GET other{n}"));
    }
    assert_eq!(client.ask("CACHE HOTKEYS").items().len(), 1);
}

/// Sets a setting.
fn set(client: &mut Client, name: &str, value: &str) {
    client.ok(&["CACHE", "CONFIG", "SET", name, value]);
}

#[test]
fn tells_what_can_change_from_what_cannot() {
    let pair = Pair::start(&[]);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, pair.larder.address());
        let names = |client: &mut Client, line: &str| map_of(&client.ask(line)).into_keys().collect::<Vec<_>>();
        let all = names(&mut client, "CACHE CONFIG GET *");
        let can = names(&mut client, "CACHE CONFIG GET * CHANGEABLE");
        let cannot = names(&mut client, "CACHE CONFIG GET * readonly");
        assert_eq!(all.len(), can.len() + cannot.len());
        assert!(can.iter().any(|name| name == "link.reply_ms_max") && cannot.iter().any(|name| name == "listen"));
        assert_eq!(error_of(&mut client, "CACHE CONFIG GET * SOME"), "ERR syntax error");
        for name in cannot {
            let said = error_of(&mut client, &format!("CACHE CONFIG SET {name} 1"));
            assert_eq!(said, format!("ERR '{name}' cannot change at run time: set it in the file and restart"));
        }
        // Each takes the value that it has.
        let values = map_of(&client.ask("CACHE CONFIG GET * CHANGEABLE"));
        values.iter().for_each(|(name, value)| set(&mut client, name, &value.text()));
        assert_eq!(map_of(&client.ask("CACHE CONFIG GET * CHANGEABLE")), values);
    }
}

#[test]
fn times_of_links_change_at_once() {
    let pair = Pair::start(&[]);
    let (mut client, mut other) = (pair.larder.client(), pair.larder.client());
    client.ok(&["SET", "k", "v"]);
    set(&mut other, "link.reply_ms_max", "150");
    set(&mut other, "link.write_ms_max", "120");
    pair.upstream.pause();
    let timeout = error_of(&mut client, "GET nosuch");
    assert!(timeout.starts_with("UPSTREAMTIMEOUT no reply within 150 ms"), "{timeout}");
    let timeout = error_of(&mut client, "SET k w");
    assert!(timeout.starts_with("UPSTREAMTIMEOUT no reply within 120 ms"), "{timeout}");
    // A connection that owes replies is given up.
    set(&mut other, "link.dead_ms", "300");
    wait_until("the link is given up", || stat(&mut other, "links_up") == 0);
    pair.upstream.resume();
}

#[test]
fn what_l1_keeps_and_answers_changes_at_once() {
    let mut pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    client.ok(&["SET", "k", "v"]);
    set(&mut client, "l1.soft_ms_max", "10");
    assert!(error_of(&mut client, "CACHE INVALIDATE KEYS 1 k SOFT 11").ends_with("between 1 and 10 (l1.soft_ms_max)"));
    set(&mut client, "l1.admission", "second-touch");
    client.run("GET k");
    assert_eq!(client.ask("CACHE ENTRY k"), Value::Null);
    client.run("GET k");
    assert_ne!(client.ask("CACHE ENTRY k"), Value::Null);
    set(&mut client, "l1.admission", "always");
    set(&mut client, "l1.refresh_ahead", "0.1");
    client.ok(&["SET", "dying", "v", "PX", "5000"]);
    wait_until("a refresh", || {
        client.run("GET dying");
        stat(&mut client, "link_refreshes") > 0
    });
    assert_eq!(pair.upstream.calls("touch"), 0);
    set(&mut client, "l1.touch_interval_ms", "100");
    wait_until("keys are touched", || {
        client.run("GET k");
        pair.upstream.calls("touch") > 0
    });
    set(&mut client, "l1.stale_if_error_ms_max", "60000");
    set(
        &mut client,
        "policy",
        "[{ match = 'k', stale_if_error_ms_max = 60000 }, { match = '*', stale_if_error_ms_max = 0 }]",
    );
    client.ok(&["SET", "j", "x"]);
    client.run("GET j");
    pair.upstream.kill();
    wait_until("the link is lost", || client.run("GET j").starts_with(b"-UPSTREAM"));
    assert_eq!(client.run("GET k"), b"$1\r\nv\r\n");
}

#[test]
fn limits_of_clients_scopes_and_tags_change() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    set(&mut client, "limits.bulk_bytes_max", "1kb");
    let large = "x".repeat(2000);
    client.ok(&["SET", "k", &large]);
    let mut later = pair.larder.client();
    later.send(&["SET", "k", &large]);
    assert!(later.reply().starts_with(b"-ERR Protocol error"), "who connects from then on");
    set(&mut client, "limits.scopes_max", "1");
    assert!(error_of(&mut client, "SELECT 5").contains("the limit is 1 (limits.scopes_max)"));
    set(&mut client, "limits.scopes_max", "2");
    client.ok(&["SELECT", "5"]);
    set(&mut client, "tags.per_key_max", "1");
    assert!(error_of(&mut client, "CACHE SET k v TAGS 2 a b").contains("may have 1 tags"));
    set(&mut client, "limits.idle_timeout_ms", "200");
    assert_eq!(pair.larder.client().rest(), b"", "a silent client is closed");
    let embedded = Larder::start(None, &[]);
    let mut client = embedded.client();
    for n in 0..1500 {
        client.ok(&["SET", &format!("k{n}"), &large]);
    }
    set(&mut client, "store.size_bytes_max", "1mb");
    assert!((1..600).contains(&client.ask("DBSIZE").int()));
}
