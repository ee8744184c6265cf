//! Tags: given, shown, taken off and invalidated; their index as it follows what becomes of the keys.

use crate::support::{Client, encode};
use crate::{Kind, Lagging, Larder, OK, Pair, Server, Value, error_of, is_in_l1, map_of, stat, wait_until};

const NIL: &[u8] = b"$-1\r\n";
/// The sweeper at work all the time.
const BRISK: [&str; 4] = ["--set", "tags.sweep_ms=10", "--set", "tags.recheck_ms=100"];

/// The names in an array, sorted.
fn names(reply: &Value) -> Vec<String> {
    let mut names: Vec<String> = reply.items().iter().map(Value::text).collect();
    names.sort_unstable();
    names
}

/// Tags and their numbers of keys.
fn tag_list(client: &mut Client) -> Vec<(String, i64)> {
    map_of(&client.ask("CACHE TAGLIST")).into_iter().map(|(tag, count)| (tag, count.int())).collect()
}

/// All members of a tag, page by page.
fn members(client: &mut Client, tag: &str, count: usize) -> Vec<String> {
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        let page = client.ask(&format!("CACHE MEMBERS {tag} COUNT {count} CURSOR {cursor}"));
        found.extend(names(&page.items()[1]));
        cursor = page.items()[0].text();
        if cursor == "0" {
            found.sort_unstable();
            found.dedup();
            return found;
        }
    }
}

/// Sets `k:0` to `k:<count - 1>` with one tag.
fn fill(client: &mut Client, count: usize, tag: &str) {
    let set = |n| encode(&["CACHE", "SET", &format!("k:{n}"), "v", "TAGS", "1", tag]);
    let requests: Vec<u8> = (0..count).flat_map(set).collect();
    assert!(client.pipeline(&requests, count).iter().all(|reply| reply == OK));
}

/// Both servers and the embedded store, and what keeps them alive.
fn everywhere() -> Vec<(Option<Server>, Larder)> {
    let behind = |kind| {
        let upstream = Server::start(kind, &[]);
        let larder = Larder::start(Some(&upstream), &BRISK);
        (Some(upstream), larder)
    };
    vec![behind(Kind::Redis), behind(Kind::Valkey), (None, Larder::start(None, &BRISK))]
}

#[test]
fn values_and_tags_are_set_shown_and_taken_off() {
    for (_upstream, larder) in everywhere() {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, larder.address());
            let nil: &[u8] = if protocol == 3 { b"_\r\n" } else { NIL };
            client.ok(&["CACHE", "INVALIDATE", "ALL"]);
            assert_eq!(client.run("CACHE SET k v TAGS 2 b a"), OK);
            assert_eq!(client.run("GET k"), b"$1\r\nv\r\n");
            assert_eq!(names(&client.ask("CACHE TAGS k")), ["a", "b"]);
            assert_eq!(client.run("CACHE SET j w EX 100 NX TAGS 1 a"), OK);
            assert!((90..=100).contains(&client.ask("TTL j").int()));
            assert_eq!(client.run("CACHE SET j x NX TAGS 1 zz"), nil);
            assert_eq!(client.run("CACHE SET nosuch x XX TAGS 1 zz"), nil);
            assert_eq!(client.run("CACHE SET nosuch x XX GET TAGS 1 zz"), nil);
            assert_eq!(client.run("CACHE SET j x NX GET TAGS 1 zz"), b"$1\r\nw\r\n");
            assert_eq!(tag_list(&mut client), [("a".into(), 2), ("b".into(), 1)], "what was not stored has no tags");
            assert_eq!(client.run("CACHE SET j y GET KEEPTTL TAGS 2 a c"), b"$1\r\nw\r\n");
            assert!(client.ask("TTL j").int() > 0);
            let list = client.ask("CACHE TAGLIST MATCH [bc]");
            assert_eq!(matches!(list, Value::Map(_)), protocol == 3);
            assert_eq!(map_of(&list).keys().collect::<Vec<_>>(), ["b", "c"]);
            assert_eq!(members(&mut client, "a", 1), ["j", "k"]);
            assert_eq!(client.ask("CACHE TAG k 3 a d d").int(), 1);
            assert_eq!(client.ask("CACHE TAG nosuch 1 a").int(), 0);
            assert_eq!(client.ask("CACHE UNTAG k 3 d nosuch b").int(), 2);
            assert_eq!(names(&client.ask("CACHE TAGS k")), ["a"]);
            assert_eq!(client.run("CACHE SET k v"), OK);
            assert!(names(&client.ask("CACHE TAGS k")).is_empty(), "a value has the tags that it is set with");
            assert!(names(&client.ask("CACHE TAGS nosuch")).is_empty());
            assert_eq!(members(&mut client, "nosuch", 10), [""; 0]);
            let (key, value) = (b"bin\r\n\0\xff".as_slice(), b"\r\n\0".as_slice());
            let tag = b"\r\n tag \xfe".as_slice();
            let reply = client.cmd(&[b"CACHE".as_slice(), b"SET", key, value, b"TAGS", b"1", tag]);
            assert_eq!(reply, OK);
            assert_eq!(client.value(&[b"CACHE".as_slice(), b"TAGS", key]).items()[0].bytes(), tag);
            assert_eq!(client.value(&[b"CACHE".as_slice(), b"INVALIDATE", b"TAGS", b"1", tag]).int(), 1);
        }
    }
}

#[test]
fn errors_change_nothing() {
    for (_upstream, larder) in everywhere() {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, larder.address());
            let many = (0..65).map(|n| format!("t{n}")).collect::<Vec<_>>().join(" ");
            for (line, error) in [
                ("CACHE SET k", "ERR wrong number of arguments for 'cache|set' command"),
                ("CACHE SET k v BAD TAGS 1 t", "ERR syntax error"),
                ("CACHE SET k v NX XX TAGS 1 t", "ERR syntax error"),
                ("CACHE SET k v EX 0 TAGS 1 t", "ERR invalid expire time in 'set' command"),
                ("CACHE SET k v EX x TAGS 1 t", "ERR value is not an integer or out of range"),
                ("CACHE SET k v TAGS 0 t", "ERR numtags should be greater than 0"),
                ("CACHE SET k v TAGS 2 t", "ERR Number of tags can't be greater than number of args"),
                ("CACHE TAG k 1 a b", "ERR syntax error"),
                ("CACHE MEMBERS t COUNT 0", "ERR COUNT should be between 1 and 1000"),
                ("CACHE MEMBERS t CURSOR x", "ERR invalid cursor"),
                ("CACHE TAGLIST x", "ERR syntax error"),
                ("CACHE LEASE k TAGS 1", "ERR syntax error"),
                ("CACHE INVALIDATE TAGS 2 a", "ERR Number of tags can't be greater than number of args"),
                (
                    &format!("CACHE SET k v TAGS 65 {many}"),
                    "ERR larder: a key may have 64 tags at most (tags.per_key_max)",
                ),
                (&format!("CACHE TAG k 65 {many}"), "ERR larder: a key may have 64 tags at most (tags.per_key_max)"),
            ] {
                assert_eq!(error_of(&mut client, line), error, "{line}");
            }
            assert_eq!((client.ask("DBSIZE").int(), tag_list(&mut client)), (0, Vec::new()));
            let (some, more) = (many.split_once(" t40").unwrap().0, "u0 u1 u2 u3 u4 u5 u6 u7 u8 u9");
            assert_eq!(client.run(&format!("CACHE SET k v TAGS 40 {some}")), OK);
            let full = "ERR larder: a key may have 64 tags at most (tags.per_key_max)";
            let twice = format!("{more} {}", more.replace('u', "w"));
            assert_eq!(client.ask(&format!("CACHE TAG k 20 {twice}")).int(), 20);
            assert_eq!(error_of(&mut client, "CACHE TAG k 5 x0 x1 x2 x3 x4"), full);
            assert_eq!(names(&client.ask("CACHE TAGS k")).len(), 60);
            client.ok(&["CACHE", "INVALIDATE", "ALL"]);
        }
    }
}

#[test]
fn one_of_several_tags_or_all_of_them() {
    for (_upstream, larder) in everywhere() {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, larder.address());
            for (form, gone, left) in [
                ("CACHE INVALIDATE TAGS 1 a", 2, vec!["b", "none"]),
                ("CACHE INVALIDATE TAGS ANY 2 a b", 3, vec!["none"]),
                ("cache invalidate tags all 2 a b", 1, vec!["a", "b", "none"]),
                ("CACHE INVALIDATE TAGS ALL 2 a nosuch", 0, vec!["a", "ab", "b", "none"]),
                ("CACHE INVALIDATE TAGS 1 nosuch", 0, vec!["a", "ab", "b", "none"]),
            ] {
                for line in ["a a TAGS 1 a", "ab ab TAGS 2 a b", "b b TAGS 1 b", "none v"] {
                    assert_eq!(client.run(&format!("CACHE SET {line}")), OK);
                    client.run(&format!("GET {}", line.split(' ').next().unwrap()));
                }
                assert_eq!(client.ask(form).int(), gone, "{form}");
                let there = |key: &&&str| client.ask(&format!("GET {key}")) != Value::Null;
                let found: Vec<_> = ["a", "ab", "b", "none"].iter().filter(there).collect();
                assert_eq!(found, left.iter().collect::<Vec<_>>(), "{form}");
                assert_eq!(client.ask("EXISTS a ab b none").int() as usize, left.len());
                client.ok(&["CACHE", "INVALIDATE", "ALL"]);
            }
        }
    }
}

#[test]
fn with_local_only_this_l1_forgets() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    for (form, dropped) in [("ANY 2 a b", 3), ("ALL 2 a b", 1), ("1 a", 2)] {
        for line in ["a v TAGS 1 a", "ab v TAGS 2 a b", "b v TAGS 1 b"] {
            client.run(&format!("CACHE SET {line}"));
            client.run(&format!("GET {}", line.split(' ').next().unwrap()));
        }
        assert_eq!(client.ask(&format!("CACHE INVALIDATE TAGS {form} LOCAL")).int(), dropped, "{form}");
        assert!(!is_in_l1(&mut client, "ab"));
        assert_eq!(client.ask("EXISTS a ab b").int(), 3);
    }
    assert_eq!(stat(&mut client, "l1_removed_tag_based"), 6);
}

#[test]
fn values_are_plain_and_l1_follows_at_once() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        let (mut client, mut direct) = (pair.larder.client(), pair.upstream.client());
        for n in 0..100 {
            client.run("GET k");
            assert_eq!(client.run(&format!("CACHE SET k v{n} TAGS 1 t")), OK);
            assert_eq!(client.ask("GET k").text(), format!("v{n}"));
            assert_eq!(direct.ask("GET k").text(), format!("v{n}"));
            assert_eq!(direct.ask("TYPE k").text(), "string");
            assert_eq!(client.ask("CACHE INVALIDATE TAGS 1 t").int(), 1);
            assert_eq!(client.run("GET k"), NIL);
            assert_eq!(direct.run("GET k"), NIL);
        }
        assert_eq!(stat(&mut client, "l1_removed_tag_based"), 100);
    }
}

/// What carries a tag is never spared, whatever plain writers have done to it meanwhile.
#[test]
fn tags_belong_to_the_name_and_survive_plain_writes() {
    for (upstream, larder) in everywhere() {
        let mut client = larder.client();
        let mut plain = upstream.as_ref().map_or_else(|| larder.client(), Server::client);
        for (set, change) in [
            ("k v TAGS 1 t", "SET k w"),
            ("k v PX 200 TAGS 1 t", "PERSIST k"),
            ("k v PX 200 TAGS 1 t", "PEXPIRE k 100000"),
            ("k v TAGS 1 t", "PEXPIRE k 100000"),
            ("k v TAGS 1 t", "APPEND k w"),
            ("k v TAGS 1 t", "COPY k other"),
        ] {
            wait_until("it has not expired before the change", || {
                assert_eq!(client.run(&format!("CACHE SET {set}")), OK);
                plain.run(change) != b":0\r\n"
            });
            // Long enough for the sweeper to look at it more than once.
            std::thread::sleep(std::time::Duration::from_millis(300));
            assert_eq!(client.ask("CACHE INVALIDATE TAGS 1 t").int(), 1, "{change}");
            assert_eq!(client.run("GET k"), NIL, "{change}");
        }
    }
}

/// What one invalidation has set aside and not deleted yet is not under the tag any more: another one must not say that it is
/// gone.
#[test]
fn who_invalidates_a_tag_that_another_is_about_to_waits_for_what_that_has_begun() {
    for kind in [Kind::Redis, Kind::Valkey] {
        for word in ["ANY", "ALL"] {
            let upstream = Server::start(kind, &[]);
            let [one, other] = [(); 2].map(|()| Larder::start(Some(&upstream), &[]));
            const KEYS: usize = 4000;
            let (mut first, mut second, mut direct) = (one.client(), other.client(), upstream.client());
            let sets: Vec<u8> =
                (0..KEYS).flat_map(|n| encode(&["CACHE", "SET", &format!("k{n}"), "v", "TAGS", "1", "t"])).collect();
            first.pipeline(&sets, KEYS);
            let keys = |direct: &mut Client| {
                let words: Vec<String> = (0..KEYS).map(|n| format!("k{n}")).collect();
                let words = std::iter::once("EXISTS").chain(words.iter().map(String::as_str));
                direct.value(&words.collect::<Vec<_>>()).int() as usize
            };
            assert_eq!(keys(&mut direct), KEYS);
            first.send(&["CACHE", "INVALIDATE", "TAGS", "ANY", "1", "t"]);
            wait_until("it has begun", || direct.ask("EXISTS larder:t:t").int() == 0);
            let left = keys(&mut direct);
            second.ask(&format!("CACHE INVALIDATE TAGS {word} 1 t")).int();
            assert_eq!(keys(&mut direct), 0, "{kind:?} {word}: of {left} that were there when it was asked");
            assert!(left > 0, "the first one was too quick to be overtaken");
            first.frame();
            assert_eq!(direct.ask("EXISTS larder:jobs larder:jobtags").int(), 0);
        }
    }
}

#[test]
fn the_index_shrinks_with_the_keys_that_have_gone() {
    for (upstream, larder) in everywhere() {
        let mut client = larder.client();
        let mut plain = upstream.as_ref().map_or_else(|| larder.client(), Server::client);
        client.run("CACHE SET expires v PX 30 TAGS 2 t u");
        client.run("CACHE SET deleted v TAGS 2 t u");
        client.run("CACHE SET renamed v TAGS 2 t u");
        client.run("CACHE SET stays v PX 100000 TAGS 1 t");
        plain.run("DEL deleted");
        plain.run("RENAME renamed other");
        wait_until("only what lives is known", || tag_list(&mut client) == [("t".to_owned(), 1)]);
        assert_eq!(members(&mut client, "t", 10), ["stays"]);
        plain.run("DEL stays other");
        wait_until("nothing is known", || tag_list(&mut client).is_empty());
        if let Some(upstream) = &upstream {
            wait_until("nothing is left upstream", || upstream.client().ask("DBSIZE").int() == 0);
        }
    }
}

#[test]
fn databases_have_tags_of_their_own() {
    for (_upstream, larder) in everywhere() {
        let (mut client, mut other) = (larder.client(), larder.client());
        other.ok(&["SELECT", "1"]);
        client.run("CACHE SET k v TAGS 1 t");
        other.run("CACHE SET k v TAGS 1 t");
        assert_eq!(client.ask("CACHE INVALIDATE TAGS 1 t").int(), 1);
        assert_eq!((client.run("GET k"), other.run("GET k")), (NIL.to_vec(), b"$1\r\nv\r\n".to_vec()));
        other.run("SWAPDB 0 1");
        assert_eq!(client.ask("CACHE INVALIDATE TAGS 1 t").int(), 1);
        client.run("CACHE SET k v TAGS 1 t");
        client.run("FLUSHDB");
        assert!(tag_list(&mut client).is_empty());
    }
}

#[test]
fn the_scripts_are_sent_again_when_the_server_has_forgotten_them() {
    let mut pair = Pair::start(&["--set", "link.reconnect_ms_min=10"]);
    let mut client = pair.larder.client();
    assert_eq!(client.run("CACHE SET k v TAGS 1 t"), OK);
    pair.upstream.client().ok(&["SCRIPT", "FLUSH"]);
    assert_eq!(client.run("CACHE SET k v TAGS 1 t"), OK);
    pair.upstream.restart();
    wait_until("the link is back", || client.run("CACHE SET k v TAGS 1 t") == OK);
    assert_eq!(client.ask("CACHE INVALIDATE TAGS 1 t").int(), 1);
}

#[test]
fn obeys_the_upstreams_rights_and_the_operators() {
    let upstream = Server::redis(&[]);
    let mut admin = upstream.client();
    admin.ok(&["ACL", "SETUSER", "keys", "on", ">pw", "~k*", "&*", "+@all"]);
    admin.ok(&["ACL", "SETUSER", "index", "on", ">pw", "~larder:*", "~k*", "&*", "+@all"]);
    let larder = Larder::start(Some(&upstream), &["--set", "tags.sweep_ms=20"]);
    let (mut client, mut keys, mut index) = (larder.client(), larder.client(), larder.client());
    keys.ok(&["AUTH", "keys", "pw"]);
    index.ok(&["AUTH", "index", "pw"]);
    assert!(client.run("CACHE SET secret v TAGS 1 t") == OK && client.run("CACHE SET k v TAGS 1 t") == OK);
    // Without rights to the index nothing happens, and the value is not written either.
    for line in ["CACHE SET k w TAGS 1 t", "CACHE TAG k 1 u", "CACHE INVALIDATE TAGS 1 t"] {
        assert!(matches!(keys.ask(line), Value::Error(_)), "{line}");
    }
    assert_eq!(client.run("GET k"), b"$1\r\nv\r\n");
    assert_eq!(index.run("CACHE SET k w TAGS 1 t"), OK);
    assert!(matches!(index.ask("CACHE SET secret w TAGS 1 t"), Value::Error(_)));
    assert_eq!(client.run("GET secret"), b"$1\r\nv\r\n");
    // One who may not delete a key is told; what is set aside goes all the same, by the sweeper's hand.
    assert!(matches!(index.ask("CACHE INVALIDATE TAGS 1 t"), Value::Error(_)));
    wait_until("the sweeper has ended it", || client.ask("EXISTS k secret").int() == 0);
    let strict = Larder::start(Some(&upstream), &["--set", "deny=['unlink', 'set']"]);
    for line in ["CACHE SET k v TAGS 1 t", "CACHE INVALIDATE TAGS 1 t"] {
        assert!(error_of(&mut strict.client(), line).starts_with("NOPERM larder: the operator has denied"), "{line}");
    }
}

#[test]
fn many_keys_go_step_by_step_and_what_comes_after_the_call_stays() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        let (mut worker, mut other) = (pair.larder.client(), pair.larder.client());
        fill(&mut other, 20_000, "t");
        worker.send(&["CACHE", "INVALIDATE", "TAGS", "1", "t"]);
        let mut running = None;
        wait_until("it has begun to delete", || {
            let jobs = other.ask("CACHE JOBS");
            running = jobs.items().iter().map(map_of).find(|job| job["done"].int() > 0);
            running.is_some()
        });
        let job = running.expect("a job was waited for");
        assert_eq!((job["kind"].text(), job["subject"].text()), ("invalidate-tags".into(), "t".into()));
        assert_eq!((job["expected"].int(), job["state"].text()), (20_000, "running".into()));
        let cancel = format!("CACHE CANCEL {}", job["id"].int());
        assert_eq!(error_of(&mut other, &cancel), "ERR the job can no longer be cancelled");
        // Of these some have been deleted by now, and some not.
        for n in (0..20_000).step_by(500) {
            assert_eq!(other.run(&format!("CACHE SET k:{n} new TAGS 1 t")), OK);
        }
        let gone = Value::parse(&worker.reply()).int();
        assert!((20_000 - 40..=20_000).contains(&gone), "{gone}");
        assert_eq!(members(&mut other, "t", 1000).len(), 40);
        assert_eq!(other.ask("GET k:19500").text(), "new");
        assert_eq!(other.ask("EXISTS k:19501 k:1").int(), 0);
    }
}

#[test]
fn what_a_larder_leaves_half_done_another_ends() {
    let upstream = Server::redis(&[]);
    let first = Larder::start(Some(&upstream), &[]);
    let second = Larder::start(Some(&upstream), &BRISK);
    let (mut worker, mut other) = (first.client(), second.client());
    fill(&mut other, 20_000, "t");
    other.run("GET k:1");
    worker.send(&["CACHE", "INVALIDATE", "TAGS", "1", "t"]);
    let mut direct = upstream.client();
    wait_until("it has begun to delete", || direct.ask("DBSIZE").int() < 40_000);
    first.signal("STOP");
    let left = direct.ask("DBSIZE").int();
    assert!(left > 1000, "{left}");
    wait_until("another has ended it", || direct.ask("EXISTS k:0 k:1 k:10000 k:19999").int() == 0);
    wait_until("nothing is left", || tag_list(&mut other).is_empty() && direct.ask("KEYS k:*").items().is_empty());
    first.signal("CONT");
}

/// The end of a process is worse than its standing still: its links and its connection to the others go.
#[test]
fn what_a_larder_that_is_killed_leaves_half_done_another_ends() {
    const KEYS: u64 = 20_000;
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let killed = Larder::start(Some(&upstream), &[]);
        let left = Larder::start(Some(&upstream), &BRISK);
        let (mut worker, mut other, mut direct) = (killed.client(), left.client(), upstream.client());
        fill(&mut other, KEYS as usize, "t");
        let reads: Vec<u8> = (0..KEYS).flat_map(|n| encode(&["GET", &format!("k:{n}")])).collect();
        assert!(other.pipeline(&reads, KEYS as usize).iter().all(|reply| reply == b"$1\r\nv\r\n"));
        worker.send(&["CACHE", "INVALIDATE", "TAGS", "1", "t"]);
        wait_until("it has begun to delete", || direct.ask("DBSIZE").int() < 2 * KEYS as i64);
        drop(killed);
        let remaining = direct.ask("KEYS k:*").items().len();
        assert!(remaining > 1000, "{kind:?}: {remaining} were left");
        // While it is ended by the other: what has gone does not come back, and what is new stays.
        let mut rng = crate::support::Rng::new(11);
        let mut gone = std::collections::BTreeSet::new();
        for n in 0..50 {
            assert_eq!(other.run(&format!("CACHE SET k:{n} new TAGS 1 t")), OK);
        }
        wait_until("another has ended it", || {
            for _ in 0..200 {
                let n = rng.below(KEYS);
                let reply = other.run(&format!("GET k:{n}"));
                match &reply[..] {
                    NIL => drop(gone.insert(n)),
                    b"$3\r\nnew\r\n" => assert!(n < 50),
                    _ => assert!(reply == b"$1\r\nv\r\n" && n >= 50 && !gone.contains(&n), "k:{n} came back"),
                }
            }
            direct.ask("ZCARD larder:jobs").int() == 0
        });
        let replies = other.pipeline(&reads, KEYS as usize);
        for (n, reply) in replies.iter().enumerate() {
            assert_eq!(&reply[..], if n < 50 { &b"$3\r\nnew\r\n"[..] } else { NIL }, "{kind:?}: k:{n}");
        }
        assert_eq!(direct.ask("KEYS k:*").items().len(), 50);
        assert_eq!(tag_list(&mut other), [("t".to_owned(), 50)]);
    }
}

/// One reply can have so many tags and no more.
#[test]
fn more_tags_than_a_reply_may_have_are_an_error() {
    const LISTED_MAX: usize = 100_000;
    for (_upstream, larder) in everywhere() {
        let mut client = larder.client();
        let keys = LISTED_MAX / 50;
        let set = |key: usize, tags: usize| {
            let mut request = vec!["CACHE".to_owned(), "SET".into(), format!("k:{key}"), "v".into(), "TAGS".into()];
            request.push(tags.to_string());
            request.extend((0..tags).map(|n| format!("t:{key}:{n}")));
            encode(&request)
        };
        for first in (0..keys).step_by(200) {
            let requests: Vec<u8> = (first..first + 200).flat_map(|key| set(key, 50)).collect();
            assert!(client.pipeline(&requests, 200).iter().all(|reply| reply == OK));
        }
        assert_eq!(client.ask("CACHE TAGLIST").items().len(), 2 * LISTED_MAX);
        client.pipeline(&set(keys, 1), 1);
        let full = "ERR larder: more than 100000 tags match; ask for fewer with MATCH";
        assert_eq!(error_of(&mut client, "CACHE TAGLIST"), full);
        assert_eq!(client.ask("CACHE TAGLIST MATCH t:1:*").items().len(), 2 * 50);
    }
}

/// After the reply no client of any user of any Larder reads the value, though the news reaches each when it does.
#[test]
fn all_larders_have_heard_of_it_before_it_is_answered() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let lagging = Lagging::start(&upstream, 5, &[]);
        let [mut one, mut two, mut alice] = lagging.clients(&upstream);
        for n in 0..60 {
            assert_eq!(one.run("CACHE SET k v TAGS 1 t"), OK);
            wait_until("the others have it", || {
                two.run("GET k") != NIL && alice.run("GET k") != NIL && one.run("GET k") != NIL
            });
            assert_eq!(one.ask("CACHE INVALIDATE TAGS 1 t").int(), 1);
            assert_eq!((two.run("GET k"), alice.run("GET k")), (NIL.to_vec(), NIL.to_vec()), "round {n}");
        }
    }
}

#[test]
fn a_larder_that_does_not_answer_is_named_and_not_waited_for_for_ever() {
    let upstream = Server::redis(&[]);
    let first = Larder::start(Some(&upstream), &["--set", "tags.peers_ms_max=300"]);
    let second = Larder::start(Some(&upstream), &[]);
    let (mut client, mut other) = (first.client(), second.client());
    other.run("GET k");
    // Only then do the others wait for it: until then its L1 is silent, and it need not be asked.
    let mut direct = upstream.client();
    wait_until("both can be asked", || direct.ask("PUBSUB SHARDNUMSUB larder:peers").items()[1].int() == 2);
    client.run("CACHE SET k v TAGS 1 t");
    second.signal("STOP");
    let told = error_of(&mut client, "CACHE INVALIDATE TAGS 1 t");
    let wanted = "PEERTIMEOUT 1 of 2 Larders have confirmed within 300 ms; the keys are gone upstream";
    assert_eq!(told, wanted);
    assert_eq!(upstream.client().ask("EXISTS k").int(), 0);
    second.signal("CONT");
    client.run("CACHE SET k v TAGS 1 t");
    wait_until("both answer again", || !matches!(client.ask("CACHE INVALIDATE TAGS 1 t"), Value::Error(_)));
}

/// A Larder that cannot ask the others at present does not say that they have heard.
#[test]
fn who_has_lost_its_connection_to_other_larders_does_not_answer_for_them() {
    let upstream = Server::redis(&[]);
    let first = Larder::start(Some(&upstream), &["--set", "tags.peers_ms_max=300"]);
    let (mut client, mut direct) = (first.client(), upstream.client());
    client.run("CACHE SET k v TAGS 1 t");
    let mut subscribed = |count: i64| {
        wait_until("they can be asked", || direct.ask("PUBSUB SHARDNUMSUB larder:peers").items()[1].int() == count);
        direct.ask("CLIENT LIST TYPE pubsub").text()
    };
    let list = subscribed(1);
    let own = list.split_whitespace().next().and_then(|word| word.strip_prefix("id=")).expect("a number").to_owned();
    let second = Larder::start(Some(&upstream), &[]);
    second.client().run("GET k");
    subscribed(2);
    assert_eq!(client.ask("CACHE INVALIDATE TAGS 1 t").int(), 1);
    // No connection can be made any more.
    let mut direct = upstream.client();
    assert_eq!(direct.run("CONFIG SET maxclients 1"), b"+OK\r\n");
    assert_eq!(direct.ask(&format!("CLIENT KILL ID {own}")).int(), 1);
    for _ in 0..4 {
        let told = error_of(&mut client, "CACHE INVALIDATE TAGS 1 t");
        assert!(told.starts_with("PEERTIMEOUT "), "{told}");
    }
    assert_eq!(direct.run("CONFIG SET maxclients 1000"), b"+OK\r\n");
    wait_until("it asks again", || !matches!(client.ask("CACHE INVALIDATE TAGS 1 t"), Value::Error(_)));
}

/// While a Larder is not heard of by the others, its L1 is silent.
#[test]
fn l1_is_silent_while_the_others_do_not_see_it() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    client.run("SET k v");
    client.run("GET k");
    assert!(is_in_l1(&mut client, "k"));
    let mut admin = pair.upstream.client();
    assert_eq!(admin.ask("CLIENT KILL TYPE pubsub").int(), 1);
    wait_until("L1 has been emptied", || stat(&mut client, "link_emptied") > 0);
    wait_until("L1 is at work again", || {
        client.run("GET k");
        is_in_l1(&mut client, "k")
    });
    let apart = Larder::start(Some(&pair.upstream), &["--set", "tags.peers_ms_max=0"]);
    apart.client().run("GET k");
    assert_eq!(admin.ask("CLIENT KILL TYPE pubsub").int(), 1, "that one tells nobody of itself");
}

/// A day's worth of churn: keys that are set, overwritten, expire and are deleted, faster than they do in a day.
#[test]
fn after_a_day_of_churn_the_index_is_as_large_as_what_lives() {
    const KEYS: u64 = 40_000;
    for (upstream, larder) in everywhere() {
        let mut client = larder.client();
        let mut plain = upstream.as_ref().map_or_else(|| larder.client(), Server::client);
        let mut rng = crate::support::Rng::new(7);
        let mut largest = 0;
        for round in 0..KEYS / 2000 {
            let mut requests = Vec::new();
            for n in 0..2000 {
                let (key, tag) = (format!("k:{}", round * 2000 + n), format!("user:{}", rng.below(50_000)));
                let ms = (1 + rng.below(200)).to_string();
                let request: Vec<&str> = match rng.below(10) {
                    0 => vec!["CACHE", "SET", &key, "v", "TAGS", "2", &tag, "deleted"],
                    _ => vec!["CACHE", "SET", &key, "v", "PX", &ms, "TAGS", "2", &tag, "all"],
                };
                requests.extend(encode(&request));
            }
            assert!(client.pipeline(&requests, 2000).iter().all(|reply| reply == OK));
            let deletes: Vec<u8> =
                (0..2000).flat_map(|n| encode(&["DEL", &format!("k:{}", round * 2000 + n)])).collect();
            if round % 2 == 0 {
                plain.pipeline(&deletes, 2000);
            }
            if let Some(upstream) = &upstream {
                largest = largest.max(upstream.client().ask("ZCARD larder:due").int());
            }
        }
        let mut direct = upstream.as_ref().map_or_else(|| larder.client(), Server::client);
        let alive = |direct: &mut Client| direct.ask("KEYS k:*").items().len() as i64;
        wait_until("the index is as large as what lives", || {
            let tags = tag_list(&mut client);
            let all = tags.iter().find(|(tag, _)| tag == "all");
            let deleted = tags.iter().find(|(tag, _)| tag == "deleted").map_or(0, |(_, count)| *count);
            all.is_none() && deleted == alive(&mut direct)
        });
        if upstream.is_some() {
            let live = alive(&mut direct);
            assert!(live > 500 && live < KEYS as i64 / 10, "{live}");
            assert_eq!(direct.ask("ZCARD larder:due").int(), live);
            assert_eq!(direct.ask("KEYS larder:k:*").items().len() as i64, live);
            let tags = direct.ask("SCARD larder:tags").int();
            assert_eq!(direct.ask("KEYS larder:t:*").items().len() as i64, tags);
            assert!(largest < KEYS as i64 / 2, "the index had {largest} keys while there were at most {KEYS}");
        }
    }
}
