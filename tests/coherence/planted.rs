//! Bugs planted in a real Larder: each must be caught by what clients see, and nothing may be caught without one.
//!
//! `cargo test --features mutations --test coherence -- --nocapture planted` says how each was caught.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder::mutation::Mutation;

use crate::faults::{Stubborn, reads_and_writes};
use crate::history::History;
use crate::linear::{self, Users};
use crate::support::{Kind, Larder, Relay, Value, encode, run_seconds};
use crate::{CHOOSY, Scene, catch_up};

/// How long a bug is looked for.
const HUNT_SECONDS_MAX: u64 = 40;
/// How long each kind of hunt is tried without a bug.
const CONTROL_SECONDS: u64 = 4;

/// How much of a violation is shown.
const SHOWN_MAX: usize = 150;

/// What shows a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hunt {
    /// Histories of many clients.
    Histories(Users),
    /// The same, where only what is asked for is tracked.
    Choosy,
    /// Histories while connections are cut.
    Losses,
    /// Pairs of keys, written together, read by MGET.
    Pairs,
    /// Keys whose time ends.
    Expiry,
    /// Keys whose time is shortened while they are read.
    Deadlines,
}

const HUNTS: [Hunt; 7] = [
    Hunt::Histories(Users::One),
    Hunt::Histories(Users::Several),
    Hunt::Choosy,
    Hunt::Losses,
    Hunt::Pairs,
    Hunt::Expiry,
    Hunt::Deadlines,
];

/// What shows a bug; `None` for those in stale answers, during an outage or after a soft invalidation, which nobody asks for
/// here: the simulation looks for them.
fn hunt_for(bug: Mutation) -> Option<Hunt> {
    Some(match bug {
        Mutation::WriteRemovesNothing
        | Mutation::NullPushIgnored
        | Mutation::FenceDropped
        | Mutation::FillFromRequester
        | Mutation::JoinAnywhere
        | Mutation::LeftUnmarked => Hunt::Histories(Users::One),
        Mutation::OtherScopesUnfenced => Hunt::Histories(Users::Several),
        Mutation::OptInForgotten => Hunt::Choosy,
        Mutation::KeptOverReconnect => Hunt::Losses,
        Mutation::HeldUnchecked => Hunt::Pairs,
        Mutation::DeadlineIgnored => Hunt::Expiry,
        // The value is right even so; only its deadline is not.
        Mutation::FillOutrun => Hunt::Deadlines,
        Mutation::LeftOverReconnect | Mutation::LostWriteLeft | Mutation::LeftInSpiteOfNews | Mutation::LeftForEver => {
            return None;
        }
        // Of the CACHE command: tests/cache_command/planted.rs looks for them.
        Mutation::PeersUnasked
        | Mutation::LeftUndeleted
        | Mutation::TagLost
        | Mutation::WriteUnsettled
        | Mutation::CacheUnsettled => return None,
        Mutation::SoftToTheTold
        | Mutation::SoftOverAChange
        | Mutation::SoftForEver
        | Mutation::SoftNeverSettles
        | Mutation::SoftOverWritesElsewhere => return None,
    })
}

#[test]
fn planted_bugs_are_caught_at_the_wire() {
    if Larder::is_plain() {
        return;
    }
    for (at, hunt) in HUNTS.into_iter().enumerate() {
        let (operations, caught) = search(hunt, None, run_seconds(CONTROL_SECONDS), at);
        assert_eq!(caught, None, "{hunt:?}, without a bug");
        println!("no bug planted: nothing caught in {operations} operations ({hunt:?})");
    }
    let mut escaped = Vec::new();
    for (at, bug) in Mutation::ALL.into_iter().enumerate() {
        let Some(hunt) = hunt_for(bug) else { continue };
        match search(hunt, Some(bug), Duration::from_secs(HUNT_SECONDS_MAX), at) {
            (operations, Some(what)) => {
                let line: String = what.lines().next().unwrap_or_default().chars().take(SHOWN_MAX).collect();
                println!("planted bug {bug:?} caught after {operations} operations ({hunt:?}): {line}");
            }
            (operations, None) => {
                println!("planted bug {bug:?} NOT caught in {operations} operations ({hunt:?})");
                escaped.push(bug);
            }
        }
    }
    assert!(escaped.is_empty(), "not caught: {escaped:?}");
}

/// Looks for a violation: how many operations it took, and what it was.
fn search(hunt: Hunt, bug: Option<Mutation>, at_most: Duration, at: usize) -> (u64, Option<String>) {
    let kind = if at.is_multiple_of(2) { Kind::Redis } else { Kind::Valkey };
    let flags = match hunt {
        Hunt::Choosy => CHOOSY,
        // The connection by which Larders ask each other is lost with the link, and suspends L1 by itself.
        Hunt::Losses => &["--set", "tags.peers_ms_max=0"],
        _ => &[],
    };
    let larder = |relay: &Relay| match bug {
        Some(bug) => Larder::planted(relay, flags, &format!("{bug:?}")),
        None => Larder::behind(relay, flags),
    };
    let run = format!("{hunt:?}, {}", bug.map_or("no bug".to_owned(), |bug| format!("{bug:?}")));
    let mut scene = Scene::with(&run, kind, &[], larder);
    let began = Instant::now();
    let (mut operations, mut rounds) = (0, 0);
    while began.elapsed() < at_most {
        let (more, caught) = match hunt {
            Hunt::Histories(users) => checked(linear::round(&mut scene, rounds, users)),
            Hunt::Choosy => checked(linear::round(&mut scene, rounds, Users::One)),
            Hunt::Losses => checked(losses(&mut scene)),
            Hunt::Pairs => pairs(&mut scene),
            Hunt::Expiry => expiry(&mut scene, rounds),
            Hunt::Deadlines => deadlines(&mut scene),
        };
        operations += more;
        rounds += 1;
        if caught.is_some() {
            return (operations, caught);
        }
    }
    (operations, None)
}

fn checked(history: History) -> (u64, Option<String>) {
    (history.len() as u64, history.check().err())
}

/// Three clients, while the relay cuts all connections now and then.
fn losses(scene: &mut Scene) -> History {
    let began = Instant::now();
    let until = began + Duration::from_secs(2);
    let mut all = History::default();
    // Done elsewhere, and its push is lost with the connection: it is seen when Larder has noticed that.
    scene.relay.refuse();
    scene.relay.cut();
    scene.upstream.client().ok(&["FLUSHALL"]);
    scene.relay.allow();
    catch_up(&mut scene.larder.client());
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|id| {
                let (mut rng, address) = (scene.rng.fork(), scene.larder.address());
                scope.spawn(move || reads_and_writes(id, Stubborn::of(address), &mut rng, began, until))
            })
            .collect();
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(150));
            scene.relay.cut();
        }
        clients.into_iter().for_each(|client| all.merge(client.join().expect("a client's thread")));
    });
    all
}

fn pairs(scene: &mut Scene) -> (u64, Option<String>) {
    scene.until = Instant::now() + Duration::from_secs(2);
    linear::read_pairs_written_together(scene)
}

/// Keys without an end are read all the time while they are written anew, with one: what was read then must end with them.
fn deadlines(scene: &mut Scene) -> (u64, Option<String>) {
    const KEYS: u64 = 100;
    let mut direct = scene.upstream.client();
    direct.ok(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let all = |more: &[&str]| -> Vec<u8> {
        let set = |n| encode(&[&["SET", &format!("d{n}"), "v"], more].concat());
        (0..KEYS).flat_map(set).collect()
    };
    let stop = AtomicBool::new(false);
    let reads: u64 = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (mut client, mut rng, stop) = (scene.larder.client(), scene.rng.fork(), &stop);
                scope.spawn(move || {
                    let mut reads = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let batch: Vec<u8> =
                            (0..10).flat_map(|_| encode(&["GET", &format!("d{}", rng.below(KEYS))])).collect();
                        client.pipeline(&batch, 10);
                        reads += 10;
                    }
                    reads
                })
            })
            .collect();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {
            direct.pipeline(&all(&[]), KEYS as usize);
            std::thread::sleep(Duration::from_millis(1));
        }
        direct.pipeline(&all(&["PX", "60"]), KEYS as usize);
        std::thread::sleep(Duration::from_millis(65));
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().expect("a reader's thread")).sum()
    });
    let mut reader = scene.larder.client();
    catch_up(&mut reader);
    let late = (0..KEYS).find(|n| reader.value(&["GET", &format!("d{n}")]) != Value::Null);
    (reads, late.map(|n| format!("d{n} was read after its end")))
}

/// A key is read until after its end, which the server, told so, does not announce.
fn expiry(scene: &mut Scene, round: u64) -> (u64, Option<String>) {
    let (mut direct, mut reader) = (scene.upstream.client(), scene.larder.client());
    direct.ok(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let key = format!("e{round}");
    direct.ok(&["SET", &key, "v", "PX", "50"]);
    let end = Instant::now() + Duration::from_millis(55);
    let mut reads = 0;
    while Instant::now() < end {
        reader.cmd(&["GET", &key]);
        reads += 1;
    }
    catch_up(&mut reader);
    match reader.value(&["GET", &key]) {
        Value::Null => (reads, None),
        seen => (reads, Some(format!("{key} was read after its end: {seen:?}"))),
    }
}
