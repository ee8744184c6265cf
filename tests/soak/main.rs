//! The soak: a mixed workload through Larder while faults of all kinds come at random, every answer verified.
//!
//! `LARDER_TEST_SECONDS=1200 cargo test --test soak -- --nocapture` runs it for twenty minutes; without the variable it
//! lasts a few seconds. It prints its seed, and at the end its counts: operations, faults by kind, errors by kind, wrong
//! and lost answers (which must be none), the longest wait of a client against its bound, and Larder's memory.
//!
//! What is verified:
//! * [`registers`]: reads and writes of all kinds are recorded, and the history of each key must be linearizable. A write
//!   that Larder reports as `UPSTREAMLOST` or `UPSTREAMTIMEOUT` may have taken effect or not; one that it reports with
//!   any other error must not have.
//! * [`news`]: what blocking pops take was put there once and is taken once; messages of a channel come in order, none
//!   twice, none of another channel.
//! * Every request is answered within the bound that the settings imply (and what time the machine had for nobody), by a reply of the right kind or an error of
//!   Larder's that says what happened.
//! * [`hostile`]: the same process under a limit of its address space, with clients that mean it no good.

#[path = "../coherence/history.rs"]
mod history;
#[path = "../support/mod.rs"]
mod support;

mod faults;
mod hostile;
mod news;
mod registers;
mod tally;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use faults::Faults;
use history::History;
use support::{Larder, Relay, Rng, Server, run_seconds, seed};
use tally::Tally;

/// Every write is in the server's file before it is answered: a kill loses nothing that was acknowledged.
const SERVER_FLAGS: &[&str] =
    &["--appendonly", "yes", "--appendfsync", "no", "--user", "alice", "on", ">pw", "~*", "&*", "+@all"];
const REPLY_MS_MAX: u64 = 1500;
const POOL_WAIT_MS_MAX: u64 = 1000;
const CONNECT_MS_MAX: u64 = 1000;
/// A request may wait for a connection to be made and for one to become free, then for its reply, and a read that was
/// lost with its link once more; a fence behind it waits for one more reply. The rest is for a machine that is busy.
pub(crate) const WAIT_MAX: Duration =
    Duration::from_millis(3 * REPLY_MS_MAX + POOL_WAIT_MS_MAX + CONNECT_MS_MAX + 2000);
/// How long the keys of one round are used; then their history is checked.
const ROUND: Duration = Duration::from_secs(4);
const CLIENTS: usize = 10;

/// What all threads share.
pub(crate) struct Run {
    pub(crate) larder: Larder,
    pub(crate) tally: Tally,
    pub(crate) began: Instant,
    stop: AtomicBool,
    /// Times between which the upstream lost all of its data, in the history's unit.
    pub(crate) losses: Mutex<Vec<(u64, u64)>>,
}

impl Run {
    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    /// Nanoseconds since the beginning: the unit of histories.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("less than 500 years")
    }
}

#[test]
fn every_answer_is_right_through_faults() {
    if Larder::is_plain() {
        return;
    }
    let lasts = run_seconds(8);
    let mut rng = Rng::new(seed("soak", None));
    let mut upstream = Server::redis(SERVER_FLAGS);
    let relay = Relay::start(upstream.address(), rng.next(), Duration::from_millis(1));
    let larder = Larder::behind(&relay, &settings());
    wait_until_served(&larder);
    let run = Run {
        larder,
        tally: Tally::default(),
        began: Instant::now(),
        stop: AtomicBool::new(false),
        losses: Mutex::default(),
    };
    let memory_before = run.larder.memory_kb();
    std::thread::scope(|scope| {
        let mut faults = Faults::new(&mut upstream, &relay, rng.fork());
        let shared = &run;
        scope.spawn(move || faults.trouble(shared));
        scope.spawn(move || shared.tally.feel_stalls(|| shared.goes_on()));
        for (id, rng) in (0..4).map(|id| (id, rng.fork())).collect::<Vec<_>>() {
            let run = &run;
            scope.spawn(move || news::work(run, id, rng));
        }
        // A machine that is very busy gets some more time to do anything at all.
        while run.began.elapsed() < lasts
            || (run.tally.operations() == 0 && run.began.elapsed() < lasts + support::GUARD)
        {
            let round = run.tally.rounds();
            let history = registers::round(&run, round, &mut rng, ROUND.min(lasts));
            run.tally.note_round(&history, check(&run, &history));
            run.tally.note_memory(run.larder.memory_kb());
        }
        run.stop.store(true, Ordering::SeqCst);
    });
    println!("{}", run.tally.report(run.began.elapsed(), memory_before, run.larder.memory_peak_kb()));
    run.tally.assert_clean();
    wait_until_served(&run.larder);
}

/// All is well, or again so.
fn wait_until_served(larder: &Larder) {
    support::wait_until("a write is taken", || larder.client().run("SET served 1") == b"+OK\r\n");
}

/// Flags for times that are shorter than the defaults, so that all of them are met often.
fn settings() -> Vec<&'static str> {
    static TEXTS: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    let texts = TEXTS.get_or_init(|| {
        vec![
            format!("link.reply_ms_max={REPLY_MS_MAX}"),
            format!("pool.wait_ms_max={POOL_WAIT_MS_MAX}"),
            format!("link.connect_ms_max={CONNECT_MS_MAX}"),
            "link.dead_ms=2500".to_owned(),
            "link.reconnect_ms_max=200".to_owned(),
            "breaker.open_ms_min=100".to_owned(),
            "breaker.open_ms_max=500".to_owned(),
            "l1.size_bytes_max=16mb".to_owned(),
        ]
    });
    texts.iter().flat_map(|text| ["--set", text]).collect()
}

/// Each key's history, with what was lost at the server as deletions of every key.
fn check(run: &Run, history: &History) -> Result<(), String> {
    let losses = run.losses.lock().expect("no panic while locked").clone();
    history.check_with_losses(&losses)
}
