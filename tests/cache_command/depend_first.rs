//! The first dependency of a database: how each Larder hears of it, whichever one it is declared through; and that nothing
//! is tracked, watched or waited for before.

use crate::support::{Client, wait_until};
use crate::{Kind, Lagging, Larder, OK, Server, Value, error_of};
use std::thread;
use std::time::{Duration, Instant};

const NIL: &[u8] = b"$-1\r\n";
const KINDS: [Kind; 2] = [Kind::Redis, Kind::Valkey];
const BRISK: [&str; 2] = ["--set", "link.reconnect_ms_min=10"];

fn figure(client: &mut Client, section: &str, name: &str) -> u64 {
    let info = client.ask(&format!("INFO {section}")).text();
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("{name}:")).map(str::to_owned));
    line.expect("the figure").trim().parse().expect("a number")
}

/// The numbers of connections that are subscribed to shard channels: those to other Larders.
fn peers(direct: &mut Client) -> Vec<String> {
    let list = direct.ask("CLIENT LIST").text();
    let subscribed = list.lines().filter(|line| line.contains(" ssub=2 "));
    subscribed.map(|line| line.split(' ').next().expect("id=n").trim_start_matches("id=").to_owned()).collect()
}

/// Declares that `b` depends on `a` through `one`, and changes `a` through `two`: when that is answered, `b` is gone, for all.
#[track_caller]
fn first_dependency(one: &mut Client, two: &mut Client, direct: &mut Client, what: &str) {
    assert_eq!(one.run("SET b b"), OK, "{what}");
    assert_eq!((one.ask("GET b").text(), two.ask("GET b").text()), ("b".into(), "b".into()), "{what}");
    assert_eq!(one.ask("CACHE DEPEND b ON 1 a").int(), 1, "{what}");
    assert_eq!(two.run("SET a changed"), OK, "{what}");
    assert_eq!(direct.ask("EXISTS b").int(), 0, "{what}");
    assert_eq!(two.run("GET b"), NIL, "{what}");
    // Through the other it goes when the news of it arrives there.
    wait_until("it is gone for all", || one.run("GET b") == NIL);
}

/// A script that runs until it is killed, on a connection of its own.
fn keep_busy(upstream: &Server) -> Client {
    let mut script = upstream.client();
    script.ok(&["CONFIG", "SET", "lua-time-limit", "10"]);
    script.send(&["EVAL", "while true do end", "0"]);
    let mut direct = upstream.client();
    wait_until("the server is busy", || direct.run("PING").starts_with(b"-BUSY"));
    script
}

#[test]
fn nothing_is_tracked_and_no_write_waits_before_it() {
    for kind in KINDS {
        let upstream = Server::start(kind, &[]);
        let mut direct = upstream.client();
        direct.ok(&["ACL", "SETUSER", "alice", "on", ">pw", "~*", "&*", "+@all"]);
        let larder = Larder::start(Some(&upstream), &BRISK);
        let [mut client, mut other, mut alice] = [larder.client(), larder.client(), larder.client()];
        other.ok(&["SELECT", "1"]);
        alice.ok(&["AUTH", "alice", "pw"]);
        for client in [&mut client, &mut other, &mut alice] {
            assert_eq!(client.run("SET k v"), OK);
        }
        client.ok(&["SWAPDB", "0", "1"]);
        client.ok(&["FLUSHALL"]);
        direct.ok(&["FLUSHALL"]);
        let connections = figure(&mut direct, "clients", "connected_clients");
        for id in peers(&mut direct) {
            direct.run(&format!("CLIENT KILL ID {id}"));
        }
        wait_until("all are subscribed again, and nobody watches", || {
            peers(&mut direct).len() == 2 && figure(&mut direct, "clients", "connected_clients") <= connections
        });
        for client in [&mut client, &mut other, &mut alice] {
            assert_eq!(client.run("SET k v"), OK);
        }
        assert_eq!(figure(&mut direct, "stats", "tracking_total_keys"), 0, "{kind:?}");
        // With a watch, a write would wait until the script has ended.
        let mut script = keep_busy(&upstream);
        for client in [&mut client, &mut other, &mut alice] {
            let began = Instant::now();
            assert!(client.run("SET k v").starts_with(b"-BUSY"));
            assert!(client.run("MULTI").starts_with(b"-BUSY") || client.run("SET k v").starts_with(b"-BUSY"));
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        }
        direct.ok(&["SCRIPT", "KILL"]);
        assert!(script.reply().starts_with(b"-"));
    }
}

/// With dependencies too: what the server refuses as long as it is busy has changed nothing.
#[test]
fn what_a_busy_server_refuses_is_told_at_once() {
    for kind in KINDS {
        let upstream = Server::start(kind, &[]);
        let larder = Larder::start(Some(&upstream), &BRISK);
        let (mut client, mut other, mut direct) = (larder.client(), larder.client(), upstream.client());
        first_dependency(&mut client, &mut other, &mut direct, "before");
        client.run("SET b b");
        assert_eq!(client.ask("CACHE DEPEND b ON 1 a").int(), 1);
        let mut script = keep_busy(&upstream);
        let began = Instant::now();
        assert!(client.run("SET a x").starts_with(b"-BUSY"));
        assert!(other.run("EVAL return(1) 0").starts_with(b"-BUSY"));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        direct.ok(&["SCRIPT", "KILL"]);
        assert!(script.reply().starts_with(b"-"));
        assert_eq!(client.ask("GET b").text(), "b");
        assert_eq!(client.run("SET a x"), OK);
        assert_eq!(direct.ask("EXISTS b").int(), 0);
    }
}

#[test]
fn is_heard_of_by_all_whatever_came_before() {
    type Before = fn(&mut Client, &mut Client, &mut Client);
    let befores: [(&str, Before); 8] = [
        ("nothing", |_, _, _| {}),
        ("FLUSHALL through one", |one, _, _| one.ok(&["FLUSHALL"])),
        ("FLUSHALL through the other", |_, two, _| two.ok(&["FLUSHALL"])),
        ("FLUSHALL directly", |_, _, direct| direct.ok(&["FLUSHALL"])),
        ("SWAPDB through one", |one, _, _| one.ok(&["SWAPDB", "0", "1"])),
        ("SWAPDB through the other", |_, two, _| two.ok(&["SWAPDB", "0", "1"])),
        ("SWAPDB in a transaction", |one, _, _| {
            ["MULTI", "SWAPDB 0 1", "EXEC"].into_iter().for_each(|line| drop(one.run(line)));
        }),
        ("lost links", |one, two, direct| {
            direct.run("CLIENT KILL TYPE normal SKIPME yes");
            for client in [one, two] {
                wait_until("it serves", || client.run("SET n 1") == OK);
            }
        }),
    ];
    for kind in KINDS {
        for (what, before) in befores {
            let upstream = Server::start(kind, &[]);
            let lagging = Lagging::start(&upstream, 3, &BRISK);
            let [mut one, mut two, _alice] = lagging.clients(&upstream);
            let mut direct = upstream.client();
            before(&mut one, &mut two, &mut direct);
            first_dependency(&mut one, &mut two, &mut direct, &format!("{kind:?}, {what}"));
            // Once more, and the other way round, while all watch.
            before(&mut one, &mut two, &mut direct);
            first_dependency(&mut two, &mut one, &mut direct, &format!("{kind:?}, {what}, while they watch"));
        }
    }
}

/// The index of one database comes to another, in which the other Larder has a client; what depends on anything goes, as ever
/// with SWAPDB, and what is declared from then on is heard of. What L1 held is gone, through the other Larder too.
#[test]
fn swapped_databases_are_told_of() {
    for kind in KINDS {
        let upstream = Server::start(kind, &[]);
        let larders = [0, 1].map(|_| Larder::start(Some(&upstream), &BRISK));
        let [mut one, mut two] = larders.each_ref().map(Larder::client);
        let mut direct = upstream.client();
        two.ok(&["SELECT", "1"]);
        two.run("SET k old");
        assert_eq!(two.ask("GET k").text(), "old");
        for _ in 0..3 {
            one.run("SET b b");
            assert_eq!(one.ask("CACHE DEPEND b ON 1 x").int(), 1);
            one.run("CACHE UNDEPEND b");
        }
        one.run("SET b b");
        assert_eq!(one.ask("CACHE DEPEND b ON 1 a").int(), 1);
        one.ok(&["SWAPDB", "0", "1"]);
        assert_eq!(two.run("GET k"), NIL, "it is in the other database now");
        assert_eq!(two.run("SET a changed"), OK);
        direct.ok(&["SELECT", "1"]);
        assert_eq!(direct.ask("EXISTS b").int(), 0);
        two.ok(&["SELECT", "0"]);
        direct.ok(&["SELECT", "0"]);
        for n in 0..2 {
            // Its numbers begin anew in the database that has come.
            first_dependency(&mut one, &mut two, &mut direct, &format!("{kind:?}, behind the SWAPDB, {n}"));
        }
    }
}

#[test]
fn is_heard_of_when_the_connection_to_the_others_was_lost() {
    for kind in KINDS {
        for round in 0..4 {
            let upstream = Server::start(kind, &[]);
            let mut direct = upstream.client();
            let first = Larder::start(Some(&upstream), &BRISK);
            let mut one = first.client();
            assert_eq!(one.run("SET n 1"), OK);
            wait_until("it is subscribed", || peers(&mut direct).len() == 1);
            let its = peers(&mut direct);
            let second = Larder::start(Some(&upstream), &BRISK);
            let mut two = second.client();
            wait_until("both are", || peers(&mut direct).len() == 2);
            let id = peers(&mut direct).into_iter().find(|id| !its.contains(id)).expect("the other's");
            assert_eq!(direct.ask(&format!("CLIENT KILL ID {id}")).int(), 1);
            thread::sleep(Duration::from_millis(5 * round));
            first_dependency(&mut one, &mut two, &mut direct, &format!("{kind:?}, round {round}"));
            wait_until("it is back", || peers(&mut direct).len() == 2);
        }
    }
}

/// The upstream has no room for further connections: writes are answered all the same, as long as nothing depends on
/// anything; then they wait until the watch stands.
#[test]
fn is_heard_of_by_who_cannot_connect() {
    for kind in KINDS {
        let upstream = Server::start(kind, &[]);
        let mut direct = upstream.client();
        let first = Larder::start(Some(&upstream), &BRISK);
        let mut one = first.client();
        // It watches from here on.
        one.run("SET b b");
        assert_eq!(one.ask("CACHE DEPEND b ON 1 a").int(), 1);
        one.run("CACHE UNDEPEND b");
        let its = peers(&mut direct);
        let second = Larder::start(Some(&upstream), &BRISK);
        let mut two = second.client();
        assert_eq!(two.run("SET n 1"), OK);
        wait_until("both are subscribed", || peers(&mut direct).len() == 2);
        let id = peers(&mut direct).into_iter().find(|id| !its.contains(id)).expect("the other's");
        let connections = figure(&mut direct, "clients", "connected_clients");
        direct.ok(&["CONFIG", "SET", "maxclients", &(connections - 1).to_string()]);
        assert_eq!(direct.ask(&format!("CLIENT KILL ID {id}")).int(), 1);
        for n in 0..20 {
            let began = Instant::now();
            assert_eq!(two.run(&format!("SET n {n}")), OK);
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(one.ask("CACHE DEPEND b ON 1 a").int(), 1);
        let makes_room = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            direct.ok(&["CONFIG", "SET", "maxclients", "10000"]);
            direct
        });
        assert_eq!(two.run("SET a changed"), OK);
        let mut direct = makes_room.join().expect("no panic");
        assert_eq!(direct.ask("EXISTS b").int(), 0);
        assert_eq!((two.run("GET b"), one.run("GET b")), (NIL.to_vec(), NIL.to_vec()));
    }
}

/// Where Larders cannot tell each other, their links are told by the server; a moment later, that is.
#[test]
fn is_heard_of_without_a_channel() {
    for kind in KINDS {
        let upstream = Server::start(kind, &[]);
        let mut direct = upstream.client();
        direct.ok(&["ACL", "SETUSER", "mute", "on", ">pw", "~*", "resetchannels", "+@all"]);
        let mute = format!("redis://mute:pw@{}", upstream.address());
        let alone = ["--set", "tags.peers_ms_max=0"];
        for n in 0..2 {
            let (first, second) = match n {
                0 => (Larder::start(Some(&upstream), &alone), Larder::start(Some(&upstream), &alone)),
                _ => (Larder::start(Some(&upstream), &[]), Larder::with_url(&mute, &[])),
            };
            let (mut one, mut two) = (first.client(), second.client());
            // Who begins while something depends on something clears it.
            assert_eq!((one.run("SET n 1"), two.run("SET n 1")), (OK.to_vec(), OK.to_vec()));
            for flush in [false, true] {
                if flush {
                    assert_eq!(two.run("SET n 1"), OK);
                    direct.ok(&["FLUSHALL"]);
                    thread::sleep(Duration::from_millis(50));
                }
                one.run("SET b b");
                assert_eq!(one.ask("CACHE DEPEND b ON 1 a").int(), 1);
                // Long enough for its watch to stand.
                thread::sleep(Duration::from_millis(200));
                assert_eq!(two.ask("GET b").text(), "b", "case {n}, {flush}");
                assert_eq!(two.run("SET a changed"), OK);
                assert_eq!(direct.ask("EXISTS b").int(), 0, "case {n}, {flush}");
                assert_eq!(two.run("GET b"), NIL);
            }
            if n == 1 {
                let told = error_of(&mut two, "CACHE DEPEND n ON 1 a");
                assert!(told.starts_with("NOPERM larder: no user here may tell other Larders"), "{told}");
                assert!(matches!(two.ask("CACHE DEPENDS n"), Value::Array(none) if none.is_empty()));
            }
        }
    }
}
