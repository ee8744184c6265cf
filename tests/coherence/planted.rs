//! Bugs planted in a real Larder: each must be caught by what clients see, and nothing may be caught without one.
//!
//! `cargo test --features mutations --test coherence -- --nocapture planted` says how each was caught.

use std::time::{Duration, Instant};

use larder::mutation::Mutation;

use crate::faults::{Stubborn, reads_and_writes};
use crate::history::History;
use crate::linear::{self, Users};
use crate::support::{Kind, Larder, Relay, Value, run_seconds};
use crate::{Scene, catch_up};

/// How long a bug is looked for.
const HUNT_SECONDS_MAX: u64 = 40;
/// How long each kind of hunt is tried without a bug.
const CONTROL_SECONDS: u64 = 4;

/// What shows a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hunt {
    /// Histories of many clients.
    Histories(Users),
    /// Histories while connections are cut.
    Losses,
    /// Pairs of keys, written together, read by MGET.
    Pairs,
    /// Keys whose time ends.
    Expiry,
}

const HUNTS: [Hunt; 5] =
    [Hunt::Histories(Users::One), Hunt::Histories(Users::Several), Hunt::Losses, Hunt::Pairs, Hunt::Expiry];

fn hunt_for(bug: Mutation) -> Hunt {
    match bug {
        Mutation::WriteRemovesNothing
        | Mutation::FillOutrun
        | Mutation::NullPushIgnored
        | Mutation::FenceDropped
        | Mutation::FillFromRequester
        | Mutation::JoinAnywhere => Hunt::Histories(Users::One),
        Mutation::OtherScopesUnfenced => Hunt::Histories(Users::Several),
        Mutation::KeptOverReconnect => Hunt::Losses,
        Mutation::HeldUnchecked => Hunt::Pairs,
        Mutation::DeadlineIgnored => Hunt::Expiry,
    }
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
        let hunt = hunt_for(bug);
        match search(hunt, Some(bug), Duration::from_secs(HUNT_SECONDS_MAX), at) {
            (operations, Some(what)) => {
                let line = what.lines().next().unwrap_or_default();
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
    let larder = |relay: &Relay| match bug {
        Some(bug) => Larder::planted(relay, &[], &format!("{bug:?}")),
        None => Larder::behind(relay, &[]),
    };
    let run = format!("{hunt:?}, {}", bug.map_or("no bug".to_owned(), |bug| format!("{bug:?}")));
    let mut scene = Scene::with(&run, kind, &[], larder);
    let began = Instant::now();
    let (mut operations, mut rounds) = (0, 0);
    while began.elapsed() < at_most {
        let (more, caught) = match hunt {
            Hunt::Histories(users) => checked(linear::round(&mut scene, rounds, users)),
            Hunt::Losses => checked(losses(&mut scene)),
            Hunt::Pairs => pairs(&mut scene),
            Hunt::Expiry => expiry(&mut scene, rounds),
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
    scene.upstream.client().ok(&["FLUSHALL"]);
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
    match linear::read_pairs_written_together(scene) {
        Ok(read) => (read, None),
        Err(torn) => (0, Some(torn)),
    }
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
