//! CACHE in COMMAND and its subcommands: what redis-cli completes by, and client libraries find keys by.

use crate::support::Client;
use crate::{Kind, Larder, Pair, Value, error_of, map_of};
use larder_protocol::cache::SUBCOMMANDS;
use std::collections::BTreeSet;

fn names(reply: &Value) -> BTreeSet<String> {
    reply.items().iter().map(Value::text).collect()
}

/// CACHE and its subcommands, by their full names.
fn own_names() -> BTreeSet<String> {
    let subcommands = SUBCOMMANDS.iter().map(|s| format!("cache|{}", s.name));
    std::iter::once("cache".to_owned()).chain(subcommands).collect()
}

#[test]
fn the_upstreams_lists_have_cache_in_them_and_nothing_else_differs() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        for protocol in [2, 3] {
            let mut direct = Client::speaking(protocol, pair.upstream.address());
            let mut client = Client::speaking(protocol, pair.larder.address());
            assert_eq!(client.ask("COMMAND COUNT").int(), direct.ask("COMMAND COUNT").int() + 1);
            let added = |line: &str, direct: &mut Client, client: &mut Client| {
                let (theirs, ours) = (names(&direct.ask(line)), names(&client.ask(line)));
                assert!(ours.is_superset(&theirs), "{line}");
                ours.difference(&theirs).cloned().collect::<BTreeSet<_>>()
            };
            assert_eq!(added("COMMAND LIST", &mut direct, &mut client), own_names());
            assert_eq!(added("COMMAND LIST FILTERBY PATTERN CACHE*", &mut direct, &mut client), own_names());
            assert_eq!(added("COMMAND LIST FILTERBY MODULE cache", &mut direct, &mut client), BTreeSet::new());
            let admin = added("command list filterby aclcat admin", &mut direct, &mut client);
            assert!(admin.contains("cache|breaker") && !admin.contains("cache|info"), "{admin:?}");
            for line in ["COMMAND", "COMMAND INFO"] {
                let (theirs, ours) = (direct.ask(line), client.ask(line));
                let (theirs, ours) = (theirs.items(), ours.items());
                assert_eq!(ours.len(), theirs.len() + 1);
                let own = &ours[ours.len() - 1];
                assert_eq!(own.items()[0].text(), "cache");
                assert_eq!(*own, client.ask("COMMAND INFO Cache").items()[0]);
            }
            let (theirs, ours) = (map_of(&direct.ask("COMMAND DOCS")), map_of(&client.ask("COMMAND DOCS")));
            assert_eq!(ours.len(), theirs.len() + 1);
            assert_eq!(ours["cache"], map_of(&client.ask("COMMAND DOCS nosuch cache"))["cache"]);
            // What is not about CACHE comes from the upstream as it is.
            for line in [
                "COMMAND INFO get nosuch",
                "COMMAND DOCS get",
                "COMMAND GETKEYS MSET a 1 b 2",
                "COMMAND GETKEYS nosuch x",
                "COMMAND GETKEYS CACHE",
                "COMMAND LIST FILTERBY NOSUCH x",
                "COMMAND COUNT x",
                "COMMAND NOSUCH",
            ] {
                assert_eq!(client.run(line), direct.run(line), "{line}");
            }
        }
    }
}

#[test]
fn a_row_of_cache_is_built_as_the_servers_own_rows() {
    let pair = Pair::start(&[]);
    let embedded = Larder::start(None, &[]);
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, address);
            let theirs = Client::speaking(protocol, pair.upstream.address()).ask("COMMAND INFO object|freq nosuch");
            let rows = client.ask("COMMAND INFO cache|entry nosuch CACHE");
            assert_eq!(rows.items()[1], Value::Null);
            let (entry, theirs) = (rows.items()[0].items(), theirs.items()[0].items());
            assert_eq!(entry[0].text(), "cache|entry");
            assert_eq!(entry.len(), theirs.len());
            for (ours, theirs) in entry.iter().zip(theirs) {
                assert_eq!(std::mem::discriminant(ours), std::mem::discriminant(theirs));
            }
            // Both have one key, read at the second argument.
            assert_eq!((&entry[3..6], &entry[8]), (&theirs[3..6], &theirs[8]));
            let subcommands = rows.items()[2].items()[9].items();
            let names: BTreeSet<String> = subcommands.iter().map(|row| row.items()[0].text()).collect();
            assert_eq!(names.len() + 1, own_names().len());
            assert!(names.is_subset(&own_names()));
        }
    }
}

#[test]
fn docs_describe_every_subcommand() {
    let pair = Pair::start(&[]);
    let embedded = Larder::start(None, &[]);
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, address);
            let docs = map_of(&map_of(&client.ask("COMMAND DOCS cache"))["cache"]);
            assert_eq!(docs["group"].text(), "larder");
            let subcommands = map_of(&docs["subcommands"]);
            assert_eq!(subcommands.len(), SUBCOMMANDS.len());
            for subcommand in SUBCOMMANDS {
                let docs = map_of(&subcommands[&format!("cache|{}", subcommand.name)]);
                assert_eq!(docs["summary"].text(), subcommand.summary());
                assert_eq!(docs["since"].text(), subcommand.since);
                assert_eq!(docs.contains_key("arguments"), !subcommand.syntax.is_empty());
            }
            let one = client.ask("COMMAND DOCS cache|invalidate");
            let arguments = map_of(&map_of(&one)["cache|invalidate"])["arguments"].clone();
            let target = map_of(&arguments.items()[0]);
            assert_eq!(target["type"].text(), "oneof");
            let keys = map_of(&map_of(&target["arguments"].items()[0])["arguments"].items()[1]);
            assert_eq!((keys["name"].text(), keys["type"].text()), ("key".to_owned(), "key".to_owned()));
            assert_eq!(keys["flags"].items(), [Value::Simple(b"multiple".to_vec())]);
            let local = map_of(&arguments.items()[1]);
            assert_eq!((local["type"].text(), local["token"].text()), ("pure-token".into(), "LOCAL".into()));
        }
    }
}

#[test]
fn getkeys_knows_the_keys_of_cache() {
    let pair = Pair::start(&[]);
    let embedded = Larder::start(None, &[]);
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, address);
            assert_eq!(client.run("COMMAND GETKEYS CACHE ENTRY k"), b"*1\r\n$1\r\nk\r\n");
            let keys = client.ask("COMMAND GETKEYS CACHE INVALIDATE KEYS 2 a b LOCAL");
            assert_eq!(names(&keys), BTreeSet::from(["a".to_owned(), "b".to_owned()]));
            let with_flags = client.ask("COMMAND GETKEYSANDFLAGS cache entry k");
            assert_eq!(with_flags.items()[0].items()[0].text(), "k");
            assert!(names(&with_flags.items()[0].items()[1]).contains("RO"));
            assert_eq!(error_of(&mut client, "COMMAND GETKEYS CACHE STATS"), "ERR The command has no key arguments");
            assert_eq!(error_of(&mut client, "COMMAND GETKEYS CACHE NOSUCH"), "ERR Invalid command specified");
        }
    }
}

#[test]
fn who_may_not_call_command_learns_nothing_here() {
    let pair = Pair::start(&[]);
    pair.upstream.client().ok(&["ACL", "SETUSER", "bob", "on", ">pw", "~*", "+@all", "-command"]);
    let mut bob = pair.larder.client();
    bob.ok(&["AUTH", "bob", "pw"]);
    for line in ["COMMAND", "COMMAND COUNT", "COMMAND DOCS cache", "COMMAND GETKEYS CACHE ENTRY k"] {
        assert!(error_of(&mut bob, line).starts_with("NOPERM"), "{line}");
    }
    // The categories of CACHE are what an operator can deny it by.
    let larder = Larder::start(None, &["--set", "deny=['@dangerous']"]);
    let mut client = larder.client();
    for line in ["CACHE INVALIDATE ALL", "CACHE RESETSTATS", "CACHE BREAKER"] {
        assert!(error_of(&mut client, line).starts_with("NOPERM"), "{line}");
    }
    client.ok(&["CACHE", "FENCE"]);
}
