//! A seeded simulation of the cores: sessions, links and L1 against a model server.
//!
//! No threads, no sockets, no clock. One seed decides everything: who asks what when, how far bytes have come on each
//! connection, when time passes, keys expire or are evicted, connections are lost. Within a connection nothing is
//! reordered; between connections everything is. Every answer is judged at once:
//!
//! * each request gets one answer, in order, and a failure only if something failed;
//! * a write that is acknowledged was executed once, one that was not sent never, no write twice;
//! * for each connection there is one version of the server's data for each answer, own writes at theirs, that never
//!   decreases: its own writes are seen, nothing is unseen, whichever keys it reads, and no MGET is torn;
//! * no read is older than what had been acknowledged to anybody, or read by anybody in its scope, when it was asked;
//! * L1 answers nothing at or after the server's deadline (a read that joins another on the way may get what was alive
//!   when the server answered that one);
//! * an answer from what was left behind by a loss is given only while there is no link, never when it is older than
//!   allowed, never for a key whose write was lost, and obeys all rules above but the deadline: it is only behind what
//!   others have written elsewhere;
//! * an answer from what was softly invalidated is given only within the time of an order, never to a client that has been told
//!   something newer of one of its keys, and never after a write of one of them was acknowledged to anybody; in the order of
//!   a connection's answers it counts for its keys only;
//! * L1 as a whole is a state that the server had, and when all is quiet the one that it has.
//!
//! Not simulated: transactions and WATCH, subscriptions, CLIENT REPLY, upstreams without tracking, and the breaker.
//!
//! `LARDER_SIM_SEEDS` is the number of seeds, `LARDER_SIM_FIRST` the first of them; `LARDER_SIM_SEED` replays one and prints its trace. With the feature
//! `mutations` each planted bug must be found: `cargo test --features mutations --test simulation -- --nocapture`.

mod client;
mod history;
mod link;
#[path = "../support/rng.rs"]
#[allow(dead_code, reason = "the tests on real servers use the rest")]
mod rng;
mod scripted;
mod server;
mod trace;
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use world::{Figures, Looks};

const SEEDS: u64 = 10_000;
#[cfg(feature = "mutations")]
const SEEDS_PER_BUG: u64 = 20_000;
const TRACE_LINES: usize = 200;

#[test]
fn the_cores_keep_their_promises() {
    if let Some(seed) = number_from("LARDER_SIM_SEED") {
        trace::start(usize::MAX);
        let result = run(seed, Looks::IntoL1);
        println!("{}", trace::take().join("\n"));
        let figures = result.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        println!("seed {seed} is fine: {figures:?}");
        return;
    }
    let seeds = number_from("LARDER_SIM_SEEDS").unwrap_or(SEEDS);
    let first = number_from("LARDER_SIM_FIRST").unwrap_or(0);
    let (figures, failure) = run_all(first..first.saturating_add(seeds));
    println!("{seeds} seeds from {first} on: {figures:?}");
    if let Some((seed, what)) = failure {
        trace::start(TRACE_LINES);
        let again = run(seed, Looks::IntoL1);
        println!("{}", trace::take().join("\n"));
        panic!(
            "seed {seed}, {what} (the same again: {}); replay with LARDER_SIM_SEED={seed}",
            again == Err(what.clone())
        );
    }
    assert!(
        figures.from_l1 > seeds && figures.redone > 0 && figures.failures > 0 && figures.stale > 0 && figures.soft > 0,
        "the simulation has become idle"
    );
}

/// Each bug that can be planted is found, and within how many seeds.
#[cfg(feature = "mutations")]
#[test]
fn planted_bugs_are_found() {
    use larder::mutation::{Mutation, plant};
    let mut escaped = Vec::new();
    for mutation in Mutation::ALL {
        plant(Some(mutation));
        let found = |looks| (0..SEEDS_PER_BUG).find_map(|seed| Some((seed + 1, run(seed, looks).err()?)));
        let (by_answers, by_all) = (found(Looks::AtAnswers), found(Looks::IntoL1));
        plant(None);
        match (by_answers, by_all) {
            (Some((seeds, what)), Some((seeds_by_all, _))) => println!(
                "{mutation:?}: found by answers alone after {seeds} seeds, by a look into L1 after {seeds_by_all}: {what}"
            ),
            _ => escaped.push(mutation),
        }
    }
    assert!(escaped.is_empty(), "not found in {SEEDS_PER_BUG} seeds: {escaped:?}");
}

/// Runs seeds on all cores until one fails; the least of those that failed is returned.
fn run_all(seeds: Range<u64>) -> (Figures, Option<(u64, String)>) {
    let next = AtomicU64::new(seeds.start);
    let has_failed = AtomicBool::new(false);
    let total = Mutex::new((Figures::default(), None::<(u64, String)>));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while !has_failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let result = run(seed, Looks::IntoL1);
                    let mut total = total.lock().expect("no run panics");
                    match result {
                        Ok(figures) => total.0.add(figures),
                        Err(what) => {
                            has_failed.store(true, Ordering::Relaxed);
                            if total.1.as_ref().is_none_or(|(other, _)| seed < *other) {
                                total.1 = Some((seed, what));
                            }
                        }
                    }
                }
            });
        }
    });
    total.into_inner().expect("no run panics")
}

/// Runs a seed; a panic of the cores is a failure like others.
fn run(seed: u64, looks: Looks) -> Result<Figures, String> {
    catch_unwind(AssertUnwindSafe(|| world::run(seed, looks))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(format!("a panic: {}", text.unwrap_or_default()))
    })
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

// === impl Figures ===

impl Figures {
    fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.answers += other.answers;
        self.from_l1 += other.from_l1;
        self.stale += other.stale;
        self.soft += other.soft;
        self.failures += other.failures;
        self.redone += other.redone;
        self.losses += other.losses;
    }
}
