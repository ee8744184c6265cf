//! Dependencies: declared, shown, released; what goes with what, who hears of it, and what becomes of the index.

use crate::support::{Client, encode, words};
use crate::{Kind, Lagging, Larder, OK, Server, Value, error_of, is_in_l1, wait_until};
use std::time::Duration;

const NIL: &[u8] = b"$-1\r\n";
/// The sweeper at work all the time.
const BRISK: [&str; 6] =
    ["--set", "tags.sweep_ms=10", "--set", "tags.recheck_ms=100", "--set", "link.reconnect_ms_min=10"];

/// Both servers and the embedded store, and what keeps them alive.
fn everywhere() -> Vec<(Option<Server>, Larder)> {
    let behind = |kind| {
        let upstream = Server::start(kind, &[]);
        let larder = Larder::start(Some(&upstream), &BRISK);
        (Some(upstream), larder)
    };
    vec![behind(Kind::Redis), behind(Kind::Valkey), (None, Larder::start(None, &BRISK))]
}

fn names(reply: &Value) -> Vec<String> {
    reply.items().iter().map(Value::text).collect()
}

/// Sets keys, each to its name, and reads them, so that L1 has them.
fn put(client: &mut Client, keys: &str) {
    for key in keys.split(' ') {
        assert_eq!(client.run(&format!("SET {key} {key}")), OK);
        assert_eq!(client.ask(&format!("GET {key}")).text(), key);
    }
}

#[test]
fn an_entry_shows_tags_and_dependencies() {
    let upstream = Server::redis(&[]);
    upstream.client().ok(&["ACL", "SETUSER", "keys", "on", ">pw", "~k*", "&*", "+@all"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut client, mut keys) = (larder.client(), larder.client());
    keys.ok(&["AUTH", "keys", "pw"]);
    client.run("CACHE SET k v TAGS 2 t s");
    depend(&mut client, "k:b,a");
    for client in [&mut client, &mut keys] {
        client.run("GET k");
    }
    let entry = crate::map_of(&client.ask("CACHE ENTRY k"));
    assert_eq!(
        (names(&entry["tags"]), names(&entry["depends"])),
        (vec!["s".into(), "t".into()], vec!["a".into(), "b".into()])
    );
    let entry = crate::map_of(&keys.ask("CACHE ENTRY k"));
    assert_eq!((&entry["tags"], &entry["depends"]), (&Value::Null, &Value::Null), "it may not read the index");
    client.run("SET plain v");
    client.run("GET plain");
    let entry = crate::map_of(&client.ask("CACHE ENTRY plain"));
    assert!(entry["tags"].items().is_empty() && entry["depends"].items().is_empty());
}

/// `b:a,c` lets b depend on a and c.
#[track_caller]
fn depend(client: &mut Client, what: &str) {
    for one in what.split(' ') {
        let (key, sources) = one.split_once(':').expect("a key and its sources");
        let sources: Vec<&str> = sources.split(',').collect();
        let line = format!("CACHE DEPEND {key} ON {} {}", sources.len(), sources.join(" "));
        assert_eq!(client.ask(&line).int(), sources.len() as i64, "{line}");
    }
}

/// Which of the keys are there.
fn alive(client: &mut Client, keys: &str) -> String {
    let there: Vec<&str> = keys.split(' ').filter(|key| client.ask(&format!("GET {key}")) != Value::Null).collect();
    there.join(" ")
}

#[test]
fn dependencies_are_declared_shown_and_released() {
    for (_upstream, larder) in everywhere() {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, larder.address());
            client.ok(&["CACHE", "INVALIDATE", "ALL"]);
            assert_eq!(client.ask("CACHE DEPEND k ON 1 a").int(), 0, "there is no such key");
            client.run("SET k v");
            assert_eq!(client.ask("CACHE DEPEND k ON 3 b a b").int(), 2);
            assert_eq!(client.ask("CACHE DEPEND k ON 2 a c").int(), 1);
            assert_eq!(names(&client.ask("CACHE DEPENDS k")), ["a", "b", "c"]);
            assert!(client.ask("CACHE DEPENDS nosuch").items().is_empty());
            assert_eq!(client.ask("CACHE UNDEPEND k ON 2 b nosuch").int(), 1);
            assert_eq!(names(&client.ask("CACHE DEPENDS k")), ["a", "c"]);
            client.run("SET b new");
            assert_eq!(client.run("GET k"), b"$1\r\nv\r\n");
            assert_eq!(client.ask("CACHE UNDEPEND k").int(), 2);
            assert_eq!(client.ask("CACHE UNDEPEND k").int(), 0);
            client.run("SET a new");
            assert_eq!(client.run("GET k"), b"$1\r\nv\r\n");
            let (key, source) = (b"bin\r\n\0\xff".as_slice(), b"\r\n source \xfe".as_slice());
            client.cmd(&[b"SET".as_slice(), key, b"v"]);
            assert_eq!(client.value(&[b"CACHE".as_slice(), b"DEPEND", key, b"ON", b"1", source]).int(), 1);
            assert_eq!(client.value(&[b"CACHE".as_slice(), b"DEPENDS", key]).items()[0].bytes(), source);
            client.cmd(&[b"SET".as_slice(), source, b"v"]);
            assert_eq!(client.value(&[b"EXISTS".as_slice(), key]).int(), 0);
        }
    }
}

#[test]
fn bounds_are_errors_that_change_nothing() {
    let bounds = ["depend.sources_max=3", "depend.dependents_max=2", "depend.depth_max=3"].map(|one| ["--set", one]);
    let flags = [bounds.concat(), BRISK.to_vec()].concat();
    let upstreams = [Some(Kind::Redis), Some(Kind::Valkey), None].map(|kind| kind.map(|kind| Server::start(kind, &[])));
    for upstream in &upstreams {
        let larder = Larder::start(upstream.as_ref(), &flags);
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, larder.address());
            client.ok(&["CACHE", "INVALIDATE", "ALL"]);
            put(&mut client, "k a b c d e");
            depend(&mut client, "k:x,y a:x");
            for (line, error) in [
                ("CACHE DEPEND k ON 1 k", "ERR larder: a key cannot depend on itself"),
                ("CACHE DEPEND b ON 1 x", "ERR larder: 2 keys at most may depend on one key (depend.dependents_max)"),
                ("CACHE DEPEND k ON 2 z1 z2", "ERR larder: a key may depend on 3 keys at most (depend.sources_max)"),
                ("CACHE DEPEND b ON 4 1 2 3 4", "ERR larder: a key may depend on 3 keys at most (depend.sources_max)"),
            ] {
                assert_eq!(error_of(&mut client, line), error, "{line}");
            }
            assert_eq!(names(&client.ask("CACHE DEPENDS k")), ["x", "y"]);
            assert!(client.ask("CACHE DEPENDS b").items().is_empty());
            // a depends on x: with b and c behind it that is a chain of three.
            depend(&mut client, "b:a c:b");
            let deep = "ERR larder: a chain of dependencies may have 3 links at most (depend.depth_max)";
            assert_eq!(error_of(&mut client, "CACHE DEPEND d ON 1 c"), deep);
            assert_eq!(error_of(&mut client, "CACHE DEPEND d ON 2 free c"), deep);
            client.run("SET x new");
            assert_eq!(alive(&mut client, "k a b c d"), "d", "as deep as it may be");
        }
    }
}

/// Every kind of change, through Larder: when it is answered, what depends on the key is gone.
#[test]
fn what_is_answered_has_taken_its_dependents_with_it() {
    for (upstream, larder) in everywhere() {
        let (mut client, mut other) = (larder.client(), larder.client());
        for change in [
            "SET a new",
            "DEL a",
            "APPEND a x",
            "PEXPIRE a 100000",
            "RENAME a elsewhere",
            "COPY elsewhere a REPLACE",
            "GETDEL a",
            "CACHE SET a new TAGS 1 t",
            "CACHE INVALIDATE KEYS 1 a",
            "CACHE INVALIDATE PATTERN a*",
            "CACHE INVALIDATE TAGS 1 tagged",
            "EVAL return(redis.call('SET',KEYS[1],'x')) 1 a",
            "MULTI",
            "FLUSHALL",
        ] {
            if upstream.is_none() && change.starts_with("EVAL") {
                continue;
            }
            put(&mut client, "a b c elsewhere");
            client.run("CACHE TAG a 1 tagged");
            depend(&mut client, "b:a c:b");
            other.run("GET b");
            if change == "MULTI" {
                ["MULTI", "INCR n", "SET a new", "EXEC"].into_iter().for_each(|line| drop(client.run(line)));
            } else {
                assert!(!matches!(client.ask(change), Value::Error(_)), "{change}");
            }
            assert_eq!((other.run("GET b"), client.run("GET c")), (NIL.to_vec(), NIL.to_vec()), "{change}");
            assert!(!is_in_l1(&mut client, "b") || client.run("GET b") == NIL);
            if let Some(upstream) = &upstream {
                assert_eq!(upstream.client().ask("EXISTS b c").int(), 0, "{change}");
            }
        }
        // Reads and refused commands change nothing.
        put(&mut client, "a b");
        depend(&mut client, "b:a");
        for line in ["GET a", "TTL a", "EXISTS a", "SET a x NX", "SET nosuch x XX", "INCR a", "PERSIST a"] {
            client.run(line);
            assert_eq!(client.run("GET b"), b"$1\r\nb\r\n", "{line}");
        }
    }
}

#[test]
fn chains_diamonds_and_cycles() {
    for (_upstream, larder) in everywhere() {
        let mut client = larder.client();
        for (what, change, left) in [
            ("b:a c:b d:c e:d", "SET a x", "a"),
            ("b:a c:b d:c e:d", "DEL c", "a b"),
            ("b:a c:a d:b,c", "SET a x", "a e"),
            ("b:a c:a d:b,c", "SET c x", "a b c e"),
            ("b:a a:b", "SET a x", "a c d e"),
            ("b:a c:b a:c", "SET b x", "b d e"),
            ("b:a c:b a:c d:a", "SET a x", "a e"),
            ("b:a a:b", "DEL a", "c d e"),
        ] {
            client.ok(&["CACHE", "INVALIDATE", "ALL"]);
            put(&mut client, "a b c d e");
            depend(&mut client, what);
            client.run(change);
            assert_eq!(alive(&mut client, "a b c d e"), left, "{what}, then {change}");
            // Long enough for whatever else is told of it.
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(alive(&mut client, "a b c d e"), left, "{what}, then {change}, and later");
        }
        // Of a cycle, who has changed still depends on the other.
        client.ok(&["CACHE", "INVALIDATE", "ALL"]);
        put(&mut client, "a b");
        depend(&mut client, "b:a a:b");
        client.run("SET a x");
        assert_eq!(alive(&mut client, "a b"), "a");
        client.run("SET b x");
        assert_eq!(alive(&mut client, "a b"), "b");
    }
}

#[test]
fn changes_made_elsewhere_are_heard_of() {
    for (upstream, larder) in everywhere() {
        let Some(upstream) = upstream else { continue };
        let (mut client, mut direct) = (larder.client(), upstream.client());
        for change in ["SET a new", "DEL a", "PEXPIRE a 100000", "RENAME a z", "EVAL redis.call('SET','a','x') 0"] {
            put(&mut client, "a b c");
            depend(&mut client, "b:a c:b");
            direct.run(change);
            wait_until(change, || alive(&mut client, "b c").is_empty());
            assert_eq!(direct.ask("EXISTS b c").int(), 0);
        }
        put(&mut client, "a b");
        direct.run("PEXPIRE a 30");
        assert_eq!(client.ask("CACHE DEPEND b ON 1 a").int(), 1);
        wait_until("its expiry is a change", || client.run("GET b") == NIL);
        put(&mut client, "b");
        depend(&mut client, "b:missing");
        direct.run("EXISTS missing");
        assert_eq!(client.run("GET b"), b"$1\r\nb\r\n");
        direct.run("SET missing here");
        wait_until("a key that comes to be is a change", || client.run("GET b") == NIL);
    }
}

#[test]
fn expiry_and_eviction_are_changes_on_the_embedded_store() {
    let larder = Larder::start(None, &["--set", "store.size_bytes_max=1048576"]);
    let mut client = larder.client();
    put(&mut client, "a b c");
    depend(&mut client, "b:a c:b");
    client.run("PEXPIRE a 20");
    assert_eq!(alive(&mut client, "b c"), "");
    put(&mut client, "b");
    client.run("SET a v PX 20");
    depend(&mut client, "b:a");
    wait_until("its expiry is a change", || client.run("GET b") == NIL);
    put(&mut client, "a b");
    depend(&mut client, "b:a");
    let value = "x".repeat(1000);
    let mut n = 0;
    wait_until("a is evicted, and b with it", || {
        n += 1;
        client.run("GET b");
        client.run(&format!("SET fill:{n} {value}"));
        client.ask("OBJECT ENCODING a") == Value::Null
    });
    assert_eq!(client.run("GET b"), NIL);
}

/// What the recipe of the reference page rests on: declare first, then read, then set with the lease.
#[test]
fn with_a_lease_a_change_in_between_is_not_missed() {
    for (_upstream, larder) in everywhere() {
        let (mut client, mut other) = (larder.client(), larder.client());
        client.run("SET a 1");
        for changes in [false, true] {
            client.run("DEL page");
            client.run("CACHE UNDEPEND page");
            let lease = crate::map_of(&client.ask("CACHE LEASE page"));
            let token = lease["token"].text();
            assert_eq!(client.ask("CACHE DEPEND page ON 1 a").int(), 1, "there is a lease");
            assert_eq!(client.ask("GET a").text(), "1");
            if changes {
                other.run("SET a 1");
            }
            // The sweeper may look at it meanwhile.
            std::thread::sleep(Duration::from_millis(150));
            let reply = client.ask(&format!("CACHE SET page v LEASE {token}"));
            assert_eq!(matches!(reply, Value::Error(_)), changes, "{reply:?}");
            assert_eq!(client.run("GET page") == NIL, changes);
        }
        client.run("CACHE SET page v");
        assert!(client.ask("CACHE DEPENDS page").items().is_empty(), "what went is gone");
    }
}

#[test]
fn the_index_shrinks_with_the_keys_that_have_gone() {
    for (upstream, larder) in everywhere() {
        let mut client = larder.client();
        let mut direct = upstream.as_ref().map_or_else(|| larder.client(), Server::client);
        for round in 0..200 {
            let key = format!("k{round}");
            client.run(&format!("SET {key} v"));
            depend(&mut client, &format!("{key}:s{},t", round % 7));
            match round % 4 {
                0 => drop(direct.run(&format!("DEL {key}"))),
                1 => drop(direct.run(&format!("PEXPIRE {key} 10"))),
                2 => drop(direct.run(&format!("RENAME {key} other"))),
                _ => drop(client.run(&format!("CACHE UNDEPEND {key}"))),
            }
        }
        wait_until("nobody depends on anything", || {
            (0..200).all(|n| client.ask(&format!("CACHE DEPENDS k{n}")).items().is_empty())
        });
        if let Some(upstream) = &upstream {
            wait_until("of the index its counter is left", || {
                upstream.client().ask("KEYS larder:*").items().iter().all(|key| key.text() == "larder:serial")
            });
        }
    }
}

#[test]
fn databases_have_dependencies_of_their_own() {
    for (_upstream, larder) in everywhere() {
        let (mut client, mut other) = (larder.client(), larder.client());
        other.ok(&["SELECT", "1"]);
        for client in [&mut client, &mut other] {
            put(client, "a b");
        }
        depend(&mut client, "b:a");
        other.run("DEL b");
        other.run("SET b mine");
        client.run("SET a x");
        assert_eq!((client.run("GET b"), other.ask("GET b").text()), (NIL.to_vec(), "mine".to_owned()));
        put(&mut client, "b");
        depend(&mut client, "b:a");
        client.run("FLUSHDB");
        assert!(client.ask("CACHE DEPENDS b").items().is_empty());
        // Who swaps databases begins anew: upstream what depends on anything goes, and what is declared from then on holds.
        put(&mut client, "a b");
        depend(&mut client, "b:a");
        client.run("SWAPDB 0 1");
        put(&mut client, "a b");
        depend(&mut client, "b:a");
        client.run("SET a x");
        assert_eq!(client.run("GET b"), NIL);
    }
}

/// A Larder that is not there hears nothing: what depends on anything goes when one begins, if none was there in between.
#[test]
fn what_may_have_changed_while_nobody_watched_goes() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let first = Larder::start(Some(&upstream), &BRISK);
        let mut client = first.client();
        put(&mut client, "a b c free");
        depend(&mut client, "b:a c:b");
        drop(client);
        drop(first);
        let mut direct = upstream.client();
        direct.run("SET a changed");
        assert_eq!(direct.ask("EXISTS b c").int(), 2, "nobody has heard of it");
        let second = Larder::start(Some(&upstream), &BRISK);
        wait_until("it is cleared", || direct.ask("EXISTS b c").int() == 0);
        let mut client = second.client();
        assert_eq!(alive(&mut client, "a b c free"), "a free");
        put(&mut client, "b");
        depend(&mut client, "b:a");
        client.run("SET a x");
        assert_eq!(client.run("GET b"), NIL);
    }
}

/// One that comes later, or was interrupted, need not clear anything as long as another has watched.
#[test]
fn who_begins_asks_whether_another_has_watched() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let first = Larder::start(Some(&upstream), &BRISK);
        let mut client = first.client();
        put(&mut client, "a b");
        depend(&mut client, "b:a");
        for _ in 0..3 {
            let second = Larder::start(Some(&upstream), &BRISK);
            let mut other = second.client();
            assert_eq!(other.ask("GET b").text(), "b");
            // A write through it waits until it watches.
            assert_eq!(other.run("SET unrelated v"), OK);
            assert_eq!(client.ask("GET b").text(), "b", "nothing was cleared");
            other.run("SET a x");
            assert_eq!(other.run("GET b"), NIL);
            put(&mut client, "b");
            depend(&mut client, "b:a");
            drop(second);
        }
    }
}

/// The watch's connection is lost, and a change happens before it is back.
#[test]
fn a_change_while_the_watch_was_interrupted_is_not_missed() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let larder = Larder::start(Some(&upstream), &BRISK);
        let (mut client, mut direct) = (larder.client(), upstream.client());
        for _ in 0..5 {
            put(&mut client, "a b");
            depend(&mut client, "b:a");
            direct.run("MULTI");
            direct.run("CLIENT KILL TYPE normal SKIPME yes");
            direct.run("SET a elsewhere");
            direct.run("EXEC");
            wait_until("b is gone", || direct.ask("EXISTS b").int() == 0);
            wait_until("it serves", || client.run("SET n 1") == OK);
        }
    }
}

/// After the reply, no client of the Larder through which the change went reads what depends on it; through another
/// Larder, and directly at the upstream, it is gone as well.
#[test]
fn behind_links_that_lag_nobody_reads_what_is_gone() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let lagging = Lagging::start(&upstream, 7, &[]);
        let [mut one, mut two, mut alice] = lagging.clients(&upstream);
        let mut direct = upstream.client();
        for n in 0..40 {
            one.run("SET b b");
            one.run("SET c c");
            depend(&mut one, "b:a c:b");
            wait_until("all have it", || two.run("GET c") != NIL && alice.run("GET c") != NIL);
            // Declared through one, changed through the other.
            assert_eq!(two.run(&format!("SET a {n}")), OK);
            assert_eq!(direct.ask("EXISTS b c").int(), 0, "{kind:?}, round {n}");
            assert_eq!((two.run("GET c"), alice.run("GET c")), (NIL.to_vec(), NIL.to_vec()), "{kind:?}, round {n}");
        }
    }
}

#[test]
fn obeys_the_upstreams_rights_and_the_operators() {
    let upstream = Server::redis(&[]);
    let mut admin = upstream.client();
    admin.ok(&["ACL", "SETUSER", "keys", "on", ">pw", "~k*", "&*", "+@all"]);
    admin.ok(&["ACL", "SETUSER", "index", "on", ">pw", "~larder:*", "~k*", "&*", "+@all"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut client, mut keys, mut index) = (larder.client(), larder.client(), larder.client());
    keys.ok(&["AUTH", "keys", "pw"]);
    index.ok(&["AUTH", "index", "pw"]);
    put(&mut client, "k secret");
    assert!(matches!(keys.ask("CACHE DEPEND k ON 1 k2"), Value::Error(_)));
    assert!(error_of(&mut index, "CACHE DEPEND secret ON 1 k2").starts_with("NOPERM"));
    assert!(matches!(index.ask("CACHE DEPEND k ON 1 secret"), Value::Error(_)));
    assert!(client.ask("CACHE DEPENDS k").items().is_empty() && client.ask("CACHE DEPENDS secret").items().is_empty());
    assert_eq!(index.ask("CACHE DEPEND k ON 1 k2").int(), 1);
    keys.run("SET k2 v");
    assert_eq!(client.run("GET k"), NIL);
    let strict = Larder::start(Some(&upstream), &["--set", "deny=['unlink']"]);
    assert!(
        error_of(&mut strict.client(), "CACHE DEPEND k ON 1 a").starts_with("NOPERM larder: the operator has denied")
    );
    admin.ok(&["ACL", "SETUSER", "default", "-client|tracking"]);
    let blind = Larder::start(Some(&upstream), &[]);
    let told = error_of(&mut blind.client(), "CACHE DEPEND secret ON 1 a");
    assert!(told.starts_with("ERR larder: dependencies cannot be watched upstream: NOPERM"), "{told}");
}

/// More than one step can delete: all of it has gone when the write is answered, from both Larders' upstream.
#[test]
fn a_wide_and_deep_family_goes_as_a_whole() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let larders = [0, 1].map(|_| Larder::start(Some(&upstream), &[]));
        let [mut one, mut two] = larders.each_ref().map(Larder::client);
        for round in 0..5 {
            for n in 0..60 {
                one.run(&format!("SET child.{n} v"));
                one.run(&format!("SET grandchild.{n} v"));
                depend(&mut one, &format!("child.{n}:root grandchild.{n}:child.{n}"));
            }
            let changed = if round % 2 == 0 { &mut one } else { &mut two };
            assert_eq!(changed.run(&format!("SET root {round}")), OK);
            assert!(upstream.client().ask("KEYS *child*").items().is_empty(), "round {round}");
        }
    }
}

/// A change of one key takes thousands with it; the Larder at work is killed in the middle of that. Restarted, it ends what was begun;
/// so does another one, which has not heard of the change itself (it keeps nothing, and so is told of nothing).
#[test]
fn dependents_that_a_killed_larder_leaves_are_deleted_by_its_restart_or_by_another() {
    const CHILDREN: usize = 900;
    for (kind, restarts) in [(Kind::Redis, true), (Kind::Valkey, true), (Kind::Redis, false), (Kind::Valkey, false)] {
        let upstream = Server::start(kind, &[]);
        let killed = Larder::start(Some(&upstream), &[]);
        let other = Larder::start(Some(&upstream), &[&BRISK[..], &["--set", "l1.enabled=false"]].concat());
        let mut client = killed.client();
        let mut declare = |line: &dyn Fn(usize) -> String| {
            let requests: Vec<u8> = (0..CHILDREN).flat_map(|n| encode(&words(&line(n)))).collect();
            client.pipeline(&requests, CHILDREN)
        };
        declare(&|n| format!("SET child:{n} v"));
        declare(&|n| format!("SET grandchild:{n} v"));
        for line in [&(|n| format!("CACHE DEPEND child:{n} ON 1 root")) as &dyn Fn(usize) -> String, &|n| {
            format!("CACHE DEPEND grandchild:{n} ON 1 child:{n}")
        }] {
            assert!(declare(line).iter().all(|reply| reply == b":1\r\n"));
        }
        let there = |direct: &mut Client| {
            let keys = direct.ask("KEYS *child:*");
            keys.items().iter().filter(|key| !key.text().starts_with("larder:")).count()
        };
        let mut direct = upstream.client();
        assert_eq!(there(&mut direct), 2 * CHILDREN);
        client.send(&["SET", "root", "changed"]);
        wait_until("it has begun to delete", || there(&mut direct) < 2 * CHILDREN);
        drop(killed);
        let remaining = there(&mut direct);
        assert!(remaining > 100, "{kind:?}: {remaining} were left");
        let _ends = if restarts { Larder::start(Some(&upstream), &[]) } else { other };
        wait_until("it is ended", || there(&mut direct) == 0);
        assert_eq!(direct.ask("GET root").text(), "changed");
    }
}
