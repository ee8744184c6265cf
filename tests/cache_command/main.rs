//! The CACHE command over the wire: every subcommand and every error, in both protocols, in front of redis-server, of
//! Valkey, and on the embedded store.

#[path = "../support/mod.rs"]
mod support;

mod breaker;
mod config;
mod config_effects;
mod depend;
mod depend_first;
mod depend_histories;
mod events;
mod insight;
mod invalidate;
mod jobs;
mod leases;
mod listing;
#[cfg(feature = "mutations")]
mod planted;
mod reads;
mod refresh;
mod seen;
mod soft;
mod tag_histories;
mod tags;
mod warm;

use std::collections::BTreeMap;
use std::time::Duration;
use support::{Client, Kind, Larder, Relay, Server, Value, wait_until};

const OK: &[u8] = b"+OK\r\n";
/// How far each connection of a relay runs late at most.
const DELAY_MAX: Duration = Duration::from_millis(3);

/// An upstream with Larder in front of it.
struct Pair {
    upstream: Server,
    larder: Larder,
}

impl Pair {
    fn start(flags: &[&str]) -> Self {
        Self::of(Kind::Redis, flags)
    }

    fn of(kind: Kind, flags: &[&str]) -> Self {
        let upstream = Server::start(kind, &[]);
        let larder = Larder::start(Some(&upstream), flags);
        Self { upstream, larder }
    }
}

/// Two Larders of one upstream, each behind a relay whose connections run late.
struct Lagging {
    larders: [Larder; 2],
    _relays: [Relay; 2],
}

impl Lagging {
    fn start(upstream: &Server, seed: u64, flags: &[&str]) -> Self {
        Self::with(upstream, seed, flags, None)
    }

    /// With a bug planted in both. Only a build with the feature `mutations` has any.
    fn with(upstream: &Server, seed: u64, flags: &[&str], bug: Option<&str>) -> Self {
        let relays = [seed, seed + 1].map(|seed| Relay::start(upstream.address(), seed, DELAY_MAX));
        let larders = [0, 1].map(|n| match bug {
            Some(bug) => Larder::planted(&relays[n], flags, bug),
            None => Larder::behind(&relays[n], flags),
        });
        Self { larders, _relays: relays }
    }

    /// A client of each, and one of another user of the second.
    fn clients(&self, upstream: &Server) -> [Client; 3] {
        upstream.client().ok(&["ACL", "SETUSER", "alice", "on", ">pw", "~*", "&*", "+@all"]);
        let mut alice = self.larders[1].client();
        alice.ok(&["AUTH", "alice", "pw"]);
        [self.larders[0].client(), self.larders[1].client(), alice]
    }
}

/// The text of an error reply.
#[track_caller]
fn error_of(client: &mut Client, line: &str) -> String {
    match client.ask(line) {
        Value::Error(text) => String::from_utf8_lossy(&text).into_owned(),
        other => panic!("{line}: an error was expected, not {other:?}"),
    }
}

/// The pairs of a map, or of the flat array that it is in RESP2.
#[track_caller]
fn map_of(reply: &Value) -> BTreeMap<String, Value> {
    let items = reply.items();
    assert_eq!(items.len() % 2, 0);
    items.chunks(2).map(|pair| (pair[0].text(), pair[1].clone())).collect()
}

/// One number of `CACHE STATS`.
#[track_caller]
fn stat(client: &mut Client, name: &str) -> i64 {
    let stats = map_of(&client.ask("CACHE STATS"));
    stats.get(name).unwrap_or_else(|| panic!("no {name} in CACHE STATS")).int()
}

/// Waits for a number of `CACHE STATS`: those of the link are published by its tick.
#[track_caller]
fn wait_for_stat(client: &mut Client, name: &str, wanted: i64) {
    wait_until(&format!("{name} is {wanted}"), || stat(client, name) == wanted);
}

#[track_caller]
fn is_in_l1(client: &mut Client, key: &str) -> bool {
    client.ask(&format!("CACHE ENTRY {key}")) != Value::Null
}

#[test]
fn help_is_an_array_of_lines() {
    let pair = Pair::start(&[]);
    let embedded = Larder::start(None, &[]);
    let reference = pair.upstream.client().ask("OBJECT HELP");
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let help = Client::speaking(protocol, address).ask("cache Help");
            let lines = help.items();
            assert!(lines.iter().all(|line| matches!(line, Value::Simple(_))), "{help:?}");
            assert_eq!(lines[0].text(), reference.items()[0].text().replace("OBJECT", "CACHE"));
            assert_eq!(lines[lines.len() - 2].text(), "HELP");
            assert_eq!(lines[lines.len() - 1], reference.items()[reference.items().len() - 1]);
        }
    }
}

#[test]
fn errors_are_worded_as_redis_words_them() {
    let pair = Pair::start(&[]);
    let embedded = Larder::start(None, &[]);
    let script = pair.upstream.client().run("SCRIPT nosuch x");
    let (script, arity) = (String::from_utf8_lossy(&script).into_owned(), pair.upstream.client().run("OBJECT FREQ"));
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, address);
            assert_eq!(client.run("CACHE nosuch x"), script.replace("SCRIPT", "CACHE").into_bytes());
            let arity = String::from_utf8_lossy(&arity).replace("object|freq", "cache|fence");
            assert_eq!(client.run("CACHE FENCE x"), arity.into_bytes());
            for (line, error) in [
                ("CACHE", "ERR wrong number of arguments for 'cache' command"),
                ("CACHE READ fast", "ERR syntax error"),
                ("CACHE BREAKER ajar", "ERR syntax error"),
                ("CACHE ENTRY", "ERR wrong number of arguments for 'cache|entry' command"),
                ("CACHE INVALIDATE", "ERR wrong number of arguments for 'cache|invalidate' command"),
                ("CACHE INVALIDATE KEYS 0 k", "ERR numkeys should be greater than 0"),
                ("CACHE INVALIDATE KEYS 2 k", "ERR Number of keys can't be greater than number of args"),
                ("CACHE INVALIDATE KEYS 1 k j", "ERR syntax error"),
                ("CACHE INVALIDATE SOME", "ERR syntax error"),
                ("CACHE WARM", "ERR wrong number of arguments for 'cache|warm' command"),
                ("CACHE WARM COLD", "ERR syntax error"),
                ("CACHE WARM HOT 0", "ERR value is not an integer or out of range"),
                ("CACHE WARM KEYS 0 k", "ERR numkeys should be greater than 0"),
            ] {
                assert_eq!(error_of(&mut client, line), error, "{line}");
            }
        }
    }
    assert_eq!(pair.upstream.client().ask("DBSIZE").int(), 0);
}

#[test]
fn stands_in_the_order_of_a_pipeline_and_obeys_client_reply() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    for line in ["SET k v", "GET k", "CACHE ENTRY k", "CACHE INVALIDATE KEYS 1 k", "GET k", "CACHE nosuch", "PING"] {
        client.send(&support::words(line));
    }
    assert_eq!(client.reply(), OK);
    assert_eq!(client.reply(), b"$1\r\nv\r\n");
    assert!(matches!(Value::parse(&client.reply()), Value::Array(_)), "what the read before has filled is there");
    assert_eq!(client.reply(), b":1\r\n");
    assert_eq!(client.reply(), b"$-1\r\n");
    assert!(client.reply().starts_with(b"-ERR unknown subcommand"));
    assert_eq!(client.reply(), b"+PONG\r\n");
    for line in ["CLIENT REPLY SKIP", "CACHE STATS", "CACHE READ"] {
        client.send(&support::words(line));
    }
    assert_eq!(client.reply(), b"$6\r\ncached\r\n");
}

#[test]
fn within_transactions_watch_and_subscriptions() {
    let pair = Pair::start(&[]);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, pair.larder.address());
        client.ok(&["MULTI"]);
        assert_eq!(error_of(&mut client, "CACHE FENCE"), "ERR Command not allowed inside a transaction");
        assert!(error_of(&mut client, "EXEC").starts_with("EXECABORT"));
        client.ok(&["MULTI"]);
        assert_eq!(error_of(&mut client, "CACHE nosuch"), "ERR Command not allowed inside a transaction");
        client.ok(&["DISCARD"]);
        // While it watches: it works, and what it deletes counts as a change.
        client.ok(&["SET", "k", "v"]);
        client.ok(&["WATCH", "k"]);
        client.ok(&["CACHE", "FENCE"]);
        assert!(error_of(&mut client, "CACHE nosuch").starts_with("ERR unknown subcommand"));
        assert_eq!(client.ask("CACHE INVALIDATE KEYS 1 k").int(), 1);
        client.ok(&["MULTI"]);
        client.run("PING");
        assert_eq!(client.ask("EXEC"), Value::Null);
    }
    let mut subscribed = pair.larder.client();
    subscribed.run("SUBSCRIBE ch");
    assert!(error_of(&mut subscribed, "CACHE HELP").starts_with("ERR Can't execute 'cache|help'"));
    let mut subscribed = pair.larder.client3();
    subscribed.send(&["SUBSCRIBE", "ch"]);
    subscribed.push();
    subscribed.ok(&["CACHE", "FENCE"]);
}

#[test]
fn who_may_use_it_is_a_setting() {
    let upstream = Server::redis(&["--requirepass", "secret"]);
    let mut admin = upstream.client();
    admin.ok(&["AUTH", "secret"]);
    admin.ok(&["ACL", "SETUSER", "alice", "on", ">pw", "~*", "&*", "+@all"]);
    admin.ok(&["ACL", "SETUSER", "bob", "on", ">pw", "~*", "&*", "+@all"]);
    let larder = Larder::start(Some(&upstream), &["--set", "cache_command={ users = ['alice'] }"]);
    let mut client = larder.client();
    assert!(error_of(&mut client, "CACHE HELP").starts_with("NOAUTH"));
    client.ok(&["AUTH", "bob", "pw"]);
    for line in ["CACHE HELP", "CACHE nosuch", "CACHE INVALIDATE ALL"] {
        assert_eq!(error_of(&mut client, line), "NOPERM this user may not use the CACHE command (cache_command)");
    }
    client.ok(&["AUTH", "alice", "pw"]);
    client.ok(&["CACHE", "FENCE"]);
    // Connections of tests come from this machine.
    let local = Larder::start(None, &["--set", "cache_command=local"]);
    local.client().ok(&["CACHE", "FENCE"]);
    let denied = Larder::start(None, &["--set", "deny=['cache|invalidate', 'cache|breaker']"]);
    let mut client = denied.client();
    assert!(error_of(&mut client, "CACHE INVALIDATE ALL").starts_with("NOPERM larder: the operator has denied"));
    client.ok(&["CACHE", "FENCE"]);
}

/// Every subcommand that the help names has a part of its own in the reference page, with its syntax.
#[test]
fn the_reference_page_knows_every_subcommand() {
    let page = include_str!("../../docs/cache-command.md");
    for subcommand in larder_protocol::cache::SUBCOMMANDS {
        let name = subcommand.name.to_uppercase();
        assert!(page.contains(&format!("\n## CACHE {name}\n")), "no part about {name}");
        assert!(page.contains(&format!("> CACHE {name}")), "no transcript of {name}");
    }
    for line in larder_protocol::cache::help() {
        assert!(page.contains(&line), "the help of the page lacks: {line}");
    }
    let parts = page.lines().filter_map(|line| line.strip_prefix("## CACHE "));
    for part in parts {
        let known = larder_protocol::cache::SUBCOMMANDS.iter().any(|s| s.name == part.to_lowercase());
        assert!(known, "the page has {part}, the grammar does not");
    }
}
