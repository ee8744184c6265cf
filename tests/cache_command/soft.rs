//! `CACHE INVALIDATE ... SOFT ms`: one reader asks the upstream, the others are answered as before, for a while.

use crate::support::{Client, Relay, Rng, run_seconds, seed};
use crate::{DELAY_MAX, Kind, Larder, OK, Pair, Server, error_of, is_in_l1, stat, wait_until};
use std::time::{Duration, Instant};

const VALUE: &[u8] = b"$1\r\nv\r\n";
const FRESH: &[u8] = b"$1\r\nw\r\n";
/// So long that nothing ends by time while a test looks.
const LONG: &str = "60000";

fn nil(protocol: u8) -> &'static [u8] {
    if protocol == 3 { b"_\r\n" } else { b"$-1\r\n" }
}

/// Sets `k`, with a tag, and has it in L1.
fn fill(client: &mut Client) {
    assert_eq!(client.run("CACHE SET k v TAGS 1 t"), OK);
    assert_eq!(client.run("GET k"), VALUE);
    assert!(is_in_l1(client, "k"));
}

/// Every target, with the reply that one key in L1 and upstream gives.
const TARGETS: [(&str, &[u8]); 4] =
    [("KEYS 1 k", b":1\r\n"), ("PATTERN k*", b":1\r\n"), ("TAGS 1 t", b":1\r\n"), ("ALL", OK)];

#[test]
fn one_reader_is_told_that_it_is_gone_and_the_others_are_answered_until_it_is_written() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        for protocol in [2, 3] {
            let speaking = || Client::speaking(protocol, pair.larder.address());
            let (mut caller, mut first, mut other, mut third) = (speaking(), speaking(), speaking(), speaking());
            for (target, reply) in TARGETS {
                let line = format!("CACHE INVALIDATE {target} SOFT {LONG}");
                fill(&mut caller);
                let stale_before = stat(&mut caller, "stale_hits_soft");
                assert_eq!(caller.run(&line), reply, "{line}");
                assert!(!is_in_l1(&mut caller, "k"));
                assert_eq!(pair.upstream.client().ask("EXISTS k").int(), 0, "{line}");
                // Its own deletion: it reads nothing older.
                assert_eq!(caller.run("GET k"), nil(protocol), "{line}");
                let gets = pair.upstream.calls("get");
                assert_eq!(first.run("GET k"), nil(protocol), "{line}");
                assert_eq!(pair.upstream.calls("get"), gets + 1);
                for _ in 0..3 {
                    assert_eq!(other.run("GET k"), VALUE, "{line}");
                    assert_eq!(third.run("GET k"), VALUE, "{line}");
                    assert_eq!(first.run("GET k"), nil(protocol), "who was told sees nothing older");
                }
                assert_eq!(stat(&mut other, "stale_hits_soft") - stale_before, 6, "{line}");
                assert_eq!(stat(&mut other, "stale_soft_keys"), 1);
                // The refresh: from its reply on nobody reads the old value.
                assert_eq!(first.run("SET k w"), OK);
                for client in [&mut other, &mut third, &mut first, &mut caller] {
                    assert_eq!(client.run("GET k"), FRESH, "{line}");
                }
                assert_eq!(stat(&mut caller, "stale_soft_keys"), 0);
            }
        }
    }
}

#[test]
fn with_local_one_reader_asks_the_upstream_and_all_have_what_it_says() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        for protocol in [2, 3] {
            let speaking = || Client::speaking(protocol, pair.larder.address());
            let (mut caller, mut first, mut other) = (speaking(), speaking(), speaking());
            for (target, reply) in TARGETS {
                let line = format!("CACHE INVALIDATE {target} SOFT {LONG} LOCAL");
                fill(&mut caller);
                let (gets, unlinks) = (pair.upstream.calls("get"), pair.upstream.calls("unlink"));
                assert_eq!(caller.run(&line), reply, "{line}");
                assert!(!is_in_l1(&mut other, "k"));
                let stale = stat(&mut other, "stale_hits_soft");
                assert_eq!(first.run("GET k"), VALUE);
                assert!(is_in_l1(&mut other, "k"), "it was refreshed");
                assert_eq!(other.run("GET k"), VALUE);
                assert_eq!(pair.upstream.calls("get"), gets + 1, "{line}");
                assert_eq!(pair.upstream.calls("unlink"), unlinks);
                assert_eq!(stat(&mut other, "stale_hits_soft"), stale, "what was refreshed is not stale");
            }
        }
    }
}

/// The upstream stands still, so that the refresh is under way for as long as the test likes.
#[test]
fn while_the_upstream_is_slow_one_reader_waits_and_the_others_do_not() {
    let pair = Pair::start(&[]);
    let mut watcher = pair.larder.client();
    let mut clients: Vec<Client> = (0..20).map(|_| pair.larder.client()).collect();
    for forms in ["LOCAL SOFT 60000", "SOFT 60000 LOCAL"] {
        fill(&mut clients[0]);
        let gets = pair.upstream.calls("get");
        assert_eq!(clients[0].run(&format!("CACHE INVALIDATE KEYS 1 k {forms}")), b":1\r\n");
        let misses = stat(&mut watcher, "l1_misses");
        pair.upstream.pause();
        clients[1].send(&["GET", "k"]);
        // It has been taken: another is answered.
        wait_until("the refresh is under way", || stat(&mut watcher, "l1_misses") > misses);
        for client in &mut clients[2..] {
            assert_eq!(client.run("GET k"), VALUE);
        }
        pair.upstream.resume();
        assert_eq!(clients[1].reply(), VALUE);
        assert_eq!(pair.upstream.calls("get"), gets + 1);
        for client in &mut clients {
            assert_eq!(client.run("GET k"), VALUE);
        }
        assert_eq!(pair.upstream.calls("get"), gets + 1, "the refresh is kept");
    }
}

#[test]
fn it_ends_when_its_time_is_over() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        let (mut caller, mut first, mut other) = (pair.larder.client(), pair.larder.client(), pair.larder.client());
        fill(&mut caller);
        caller.run("CACHE INVALIDATE KEYS 1 k SOFT 700");
        assert_eq!(first.run("GET k"), nil(2));
        assert_eq!(other.run("GET k"), VALUE);
        // A second order prolongs nothing.
        caller.run(&format!("CACHE INVALIDATE KEYS 1 k SOFT {LONG}"));
        wait_until("it is over", || other.run("GET k") == nil(2));
        wait_until("it is forgotten", || stat(&mut other, "stale_soft_keys") == 0);
    }
}

#[test]
fn a_write_by_whatever_way_ends_it() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        let (mut caller, mut first, mut other) = (pair.larder.client(), pair.larder.client(), pair.larder.client());
        let mut direct = pair.upstream.client();
        let lines: [&[&str]; 4] = [
            &["SET k w"],
            &["MULTI", "SET k w", "EXEC"],
            &["CACHE SET k w TAGS 1 t"],
            &["EVAL redis.call('SET','k','w') 0"],
        ];
        for lines in lines {
            fill(&mut caller);
            caller.run(&format!("CACHE INVALIDATE KEYS 1 k SOFT {LONG}"));
            assert_eq!(first.run("GET k"), nil(2));
            assert_eq!(other.run("GET k"), VALUE);
            for line in lines {
                first.run(line);
            }
            // Not only its own client: what was acknowledged is seen by all.
            assert_eq!(other.run("GET k"), FRESH, "{lines:?}");
        }
        fill(&mut caller);
        caller.run(&format!("CACHE INVALIDATE TAGS 1 t SOFT {LONG}"));
        assert_eq!((first.run("GET k"), other.run("GET k")), (nil(2).to_vec(), VALUE.to_vec()));
        direct.run("SET k w");
        wait_until("the push has come", || other.run("GET k") == FRESH);
        // A hard invalidation is one, by whatever finds the key no more.
        for (target, _) in TARGETS {
            for hard in
                ["KEYS 1 k", "PATTERN k*", "TAGS 1 t", "ALL"].iter().flat_map(|t| [t.to_string(), format!("{t} LOCAL")])
            {
                fill(&mut caller);
                let (mut first, mut other) = (pair.larder.client(), pair.larder.client());
                caller.run(&format!("CACHE INVALIDATE {target} SOFT {LONG}"));
                assert_eq!((first.run("GET k"), other.run("GET k")), (nil(2).to_vec(), VALUE.to_vec()));
                caller.run(&format!("CACHE INVALIDATE {hard}"));
                assert_eq!(other.run("GET k"), nil(2), "{target}, then {hard}");
            }
        }
    }
}

/// An upstream's user beside the default one.
fn with_alice(upstream: &Server) {
    upstream.client().ok(&["ACL", "SETUSER", "alice", "on", ">pw", "~*", "&*", "+@all"]);
}

fn alice(larder: &Larder) -> Client {
    let mut alice = larder.client();
    alice.ok(&["AUTH", "alice", "pw"]);
    alice
}

/// Ways to delete `k` once more: no push tells of a deletion of what is not there.
const DELETIONS: [&[&str]; 12] = [
    &["DEL k"],
    &["UNLINK j k"],
    &["GETDEL k"],
    &["PEXPIRE k 0"],
    &["BLPOP k 0.01"],
    &["MULTI", "DEL k", "EXEC"],
    &["WATCH j", "DEL k", "UNWATCH"],
    &["EVAL return(redis.call('del','k')) 0"],
    &["MOVE k 1"],
    &["SELECT 1", "EVAL redis.call('select',0)return(redis.call('del','k')) 0", "SELECT 0"],
    &["CACHE INVALIDATE KEYS 1 k"],
    &["CACHE INVALIDATE TAGS 1 t"],
];

#[test]
fn a_deletion_of_what_is_gone_ends_it_whoever_deletes_by_whatever_way() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        with_alice(&pair.upstream);
        let (mut caller, mut other) = (pair.larder.client(), pair.larder.client());
        let mut writers = [pair.larder.client(), alice(&pair.larder)];
        let mut listener = pair.larder.client3();
        assert_eq!(listener.run("CACHE SUBSCRIBE PATTERN k"), OK);
        for (nth, writer) in writers.iter_mut().enumerate() {
            for lines in DELETIONS {
                fill(&mut caller);
                caller.run(&format!("CACHE INVALIDATE KEYS 1 k SOFT {LONG}"));
                assert_eq!(pair.larder.client().run("GET k"), nil(2));
                assert_eq!(other.run("GET k"), VALUE, "{lines:?}");
                // What others have heard by then.
                listener.ok(&["CACHE", "FENCE"]);
                while listener.has_push() {
                    listener.push();
                }
                for line in lines {
                    writer.run(line);
                }
                assert_eq!(other.run("GET k"), nil(2), "{lines:?}, writer {nth}");
                assert_eq!(stat(&mut other, "stale_soft_keys"), 0, "{lines:?}, writer {nth}");
                let event = String::from_utf8_lossy(&listener.push()).into_owned();
                assert!(event.contains("cache-invalidate") && event.contains("\r\nk\r\n"), "{lines:?}: {event}");
            }
        }
    }
}

#[test]
fn what_changes_nothing_of_it_leaves_it() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        with_alice(&pair.upstream);
        let (mut caller, mut other) = (pair.larder.client(), pair.larder.client());
        let lines: [&[&str]; 8] = [
            &["DEL j"],
            &["GET k"],
            &["MULTI", "GET k", "SET j 1", "EXEC"],
            &["EVAL_RO return(redis.call('get','k')) 0"],
            &["SCRIPT LOAD return(1)"],
            &["CONFIG GET maxmemory"],
            &["CLIENT LIST"],
            &["BLPOP j 0.01"],
        ];
        fill(&mut caller);
        caller.run(&format!("CACHE INVALIDATE KEYS 1 k SOFT {LONG}"));
        assert_eq!(pair.larder.client().run("GET k"), nil(2));
        for mut writer in [pair.larder.client(), alice(&pair.larder)] {
            for lines in lines {
                for line in lines {
                    writer.run(line);
                }
                assert_eq!(other.run("GET k"), VALUE, "{lines:?}");
            }
        }
    }
}

/// The deletion and the soft invalidation race, over connections that run late: whichever is first, once both are done nobody
/// reads what was before.
#[test]
fn no_deletion_that_was_acknowledged_is_unseen() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        with_alice(&upstream);
        let mut rng = Rng::new(seed(&format!("soft, {kind:?}"), None));
        let relay = Relay::start(upstream.address(), rng.next(), DELAY_MAX);
        let larder = Larder::behind(&relay, &[]);
        let mut caller = larder.client();
        let mut writers = [larder.client(), alice(&larder)];
        let mut readers = [larder.client(), larder.client3(), alice(&larder)];
        let until = Instant::now() + run_seconds(3);
        // A string is no list, and is moved to another database once only.
        let is_sure = |lines: &&&[&str]| !["BLPOP", "MOVE"].iter().any(|word| lines[0].starts_with(word));
        let deletions: Vec<&[&str]> = DELETIONS.iter().filter(is_sure).copied().collect();
        let (mut rounds, mut soft) = (0, 0);
        while Instant::now() < until {
            fill(&mut caller);
            readers.iter_mut().for_each(|reader| drop(reader.run("GET k")));
            let target = *rng.pick(&["KEYS 1 k", "TAGS 1 t", "TAGS 1 t", "PATTERN k*"]);
            let (writer, lines) = (&mut writers[rng.index(2)], *rng.pick(&deletions));
            let wait = Duration::from_micros(rng.below(12_000));
            let seen = std::thread::scope(|scope| {
                let caller = &mut caller;
                let invalidation =
                    scope.spawn(move || drop(caller.run(&format!("CACHE INVALIDATE {target} SOFT {LONG}"))));
                let deletion = scope.spawn(move || {
                    std::thread::sleep(wait);
                    lines.iter().for_each(|line| drop(writer.run(line)));
                });
                let (mut seen, mut turns) = (0, 0);
                while !invalidation.is_finished() || !deletion.is_finished() {
                    seen += usize::from(readers[turns % 3].run("GET k") == VALUE);
                    turns += 1;
                    std::thread::sleep(Duration::from_micros(100));
                }
                seen
            });
            soft += seen;
            for (nth, reader) in readers.iter_mut().enumerate() {
                let reply = reader.run("GET k");
                assert_ne!(reply, VALUE, "round {rounds}, reader {nth}: {target}, {lines:?}");
            }
            rounds += 1;
        }
        println!("soft, {kind:?}: {rounds} rounds, {soft} reads of what was going");
        assert!(rounds > 0 && stat(&mut caller, "stale_hits_soft") > 0);
    }
}

/// Whoever has seen by any means that the key is gone does not see it again.
#[test]
fn who_has_been_told_by_another_way_sees_nothing_older() {
    let pair = Pair::start(&[]);
    let ways: [&[&str]; 8] = [
        &["CACHE READ STRICT", "GET k", "CACHE READ CACHED"],
        &["CACHE READ BYPASS", "EXISTS k", "CACHE READ CACHED"],
        &["STRLEN k"],
        &["TTL k"],
        &["MULTI", "GET k", "EXEC"],
        &["WATCH k", "GET k", "UNWATCH"],
        &["EVAL_RO return(redis.call('GET','k')) 0"],
        &["SELECT 1", "SELECT 0"],
    ];
    for way in ways {
        let (mut caller, mut first, mut other) = (pair.larder.client(), pair.larder.client(), pair.larder.client());
        let mut told = pair.larder.client();
        fill(&mut caller);
        caller.run(&format!("CACHE INVALIDATE KEYS 1 k SOFT {LONG}"));
        assert_eq!(first.run("GET k"), nil(2));
        for line in way {
            told.run(line);
        }
        assert_eq!(other.run("GET k"), VALUE, "{way:?}");
        assert_eq!(told.run("GET k"), nil(2), "{way:?}");
        assert_eq!(other.run("GET k"), VALUE, "{way:?}");
    }
}

#[test]
fn reads_of_several_keys_and_held_ones_are_answered_too() {
    let pair = Pair::start(&[]);
    let (mut caller, mut first, mut other) = (pair.larder.client(), pair.larder.client(), pair.larder.client());
    fill(&mut caller);
    caller.run("SET j x");
    caller.run("MGET j k");
    caller.run("EXISTS k");
    caller.run(&format!("CACHE INVALIDATE KEYS 1 k SOFT {LONG}"));
    assert_eq!(first.run("MGET j k"), b"*2\r\n$1\r\nx\r\n$-1\r\n");
    assert_eq!(other.run("MGET k j k"), b"*3\r\n$1\r\nv\r\n$1\r\nx\r\n$1\r\nv\r\n");
    assert_eq!((other.run("EXISTS k"), first.run("EXISTS k")), (b":1\r\n".to_vec(), b":0\r\n".to_vec()));
    // Behind a read that L1 does not answer.
    other.send(&["GET", "nosuch"]);
    other.send(&["GET", "k"]);
    assert_eq!((other.reply(), other.reply()), (nil(2).to_vec(), VALUE.to_vec()));
    // What is held is looked at again when its turn comes: who waits for the news is not told the old value behind it.
    other.send(&["TTL", "k"]);
    other.send(&["GET", "k"]);
    assert_eq!((other.reply(), other.reply()), (b":-2\r\n".to_vec(), nil(2).to_vec()));
}

#[test]
fn the_loss_of_the_upstream_ends_it_also_where_stale_answers_are_allowed() {
    let mut pair = Pair::start(&["--set", "l1.stale_if_error_ms_max=60000"]);
    let (mut caller, mut first, mut other) = (pair.larder.client(), pair.larder.client(), pair.larder.client());
    caller.run("SET j x");
    caller.run("GET j");
    fill(&mut caller);
    caller.run(&format!("CACHE INVALIDATE KEYS 1 k SOFT {LONG}"));
    assert_eq!((first.run("GET k"), other.run("GET k")), (nil(2).to_vec(), VALUE.to_vec()));
    pair.upstream.kill();
    wait_until("the link is lost", || other.run("GET k") != VALUE);
    assert!(error_of(&mut other, "GET k").starts_with("UPSTREAM"));
    assert_eq!(other.run("GET j"), b"$1\r\nx\r\n", "what was not invalidated is answered");
}

/// An application that keeps what it reads, and drops what it hears of, does not keep the stale value.
#[test]
fn who_listens_hears_of_its_beginning_and_of_its_end() {
    for end in ["time", "write", "refresh"] {
        let pair = Pair::start(&[]);
        let (mut caller, mut first, mut other) = (pair.larder.client(), pair.larder.client(), pair.larder.client());
        fill(&mut caller);
        let mut listener = pair.larder.client3();
        assert_eq!(listener.run("CACHE SUBSCRIBE PATTERN k"), OK);
        let ms = if end == "time" { "500" } else { LONG };
        let local = if end == "refresh" { " LOCAL" } else { "" };
        caller.run(&format!("CACHE INVALIDATE KEYS 1 k SOFT {ms}{local}"));
        let heard = |listener: &mut Client, cause: &str| {
            let event = format!(">3\r\n$16\r\ncache-invalidate\r\n$1\r\nk\r\n${}\r\n{cause}\r\n", cause.len());
            for _ in 0..10 {
                if listener.frame() == event.as_bytes() {
                    return;
                }
            }
            panic!("{cause} was not told");
        };
        heard(&mut listener, "manual");
        if end != "refresh" {
            assert_eq!((first.run("GET k"), other.run("GET k")), (nil(2).to_vec(), VALUE.to_vec()));
        }
        match end {
            "time" => heard(&mut listener, "manual"),
            "write" => {
                // Its beginning is told twice, by the push of the deletion; that has come.
                heard(&mut listener, "data_changed");
                first.run("SET k w");
                heard(&mut listener, "data_changed");
            }
            _ => {
                first.run("GET k");
                heard(&mut listener, "data_changed");
            }
        }
    }
}

#[test]
fn has_a_bound_that_is_a_setting() {
    let pair = Pair::start(&["--set", "l1.soft_ms_max=500"]);
    let embedded = Larder::start(None, &["--set", "l1.soft_ms_max=500"]);
    let off = Pair::start(&["--set", "l1.soft_ms_max=0"]);
    for protocol in [2, 3] {
        for address in [pair.larder.address(), embedded.address()] {
            let mut client = Client::speaking(protocol, address);
            client.ok(&["SET", "k", "v"]);
            for (line, error) in [
                ("CACHE INVALIDATE KEYS 1 k SOFT 501", "ERR SOFT should be between 1 and 500 (l1.soft_ms_max)"),
                (
                    "CACHE INVALIDATE ALL SOFT 9223372036854775807",
                    "ERR SOFT should be between 1 and 500 (l1.soft_ms_max)",
                ),
                ("CACHE INVALIDATE ALL SOFT 0", "ERR SOFT should be greater than 0"),
                ("CACHE INVALIDATE ALL SOFT soon", "ERR value is not an integer or out of range"),
                ("CACHE INVALIDATE ALL SOFT", "ERR syntax error"),
                ("CACHE INVALIDATE ALL SOFT 1 SOFT 1", "ERR syntax error"),
            ] {
                assert_eq!(error_of(&mut client, line), error);
            }
            assert_eq!(client.run("GET k"), VALUE, "nothing has gone");
            assert_eq!(client.run("CACHE INVALIDATE KEYS 1 k SOFT 500"), b":1\r\n");
        }
    }
    let refused = error_of(&mut off.larder.client(), "CACHE INVALIDATE ALL LOCAL SOFT 1");
    assert_eq!(refused, "ERR larder: SOFT is switched off (l1.soft_ms_max)");
}

/// There is no L1 that could answer: what is invalidated is gone.
#[test]
fn on_the_embedded_store_keys_go_at_once() {
    let larder = Larder::start(None, &[]);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, larder.address());
        for (target, reply) in TARGETS {
            client.run("CACHE SET k v TAGS 1 t");
            assert_eq!(client.run(&format!("CACHE INVALIDATE {target} SOFT {LONG}")), reply);
            assert_eq!(Client::speaking(protocol, larder.address()).run("GET k"), nil(protocol));
        }
        client.run("CACHE SET k v TAGS 1 t");
        assert_eq!(client.run("CACHE INVALIDATE KEYS 1 k SOFT 100 LOCAL"), b":0\r\n");
        assert_eq!(client.run("GET k"), VALUE);
    }
}

/// Other users, and other Larders, have nothing soft: they hear of a deletion.
#[test]
fn only_the_callers_own_scope_answers_as_before() {
    let upstream = Server::redis(&[]);
    upstream.client().ok(&["ACL", "SETUSER", "alice", "on", ">pw", "~*", "&*", "+@all"]);
    let (here, there) = (Larder::start(Some(&upstream), &[]), Larder::start(Some(&upstream), &[]));
    let (mut caller, mut alice, mut elsewhere) = (here.client(), here.client(), there.client());
    alice.ok(&["AUTH", "alice", "pw"]);
    fill(&mut caller);
    assert_eq!((elsewhere.run("GET k"), alice.run("GET k")), (VALUE.to_vec(), VALUE.to_vec()));
    caller.run(&format!("CACHE INVALIDATE TAGS 1 t SOFT {LONG}"));
    assert_eq!((alice.run("GET k"), elsewhere.run("GET k")), (nil(2).to_vec(), nil(2).to_vec()));
    assert_eq!((here.client().run("GET k"), here.client().run("GET k")), (nil(2).to_vec(), VALUE.to_vec()));
}
