//! What a run comes to: counts by kind, and whatever was wrong, in words.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::io::ErrorKind;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::WAIT_MAX;
use crate::faults::{Fault, Outcome};
use crate::history::History;
use crate::support::{Value, show};

/// Errors of Larder that say that nothing was done: whatever they answer must not have taken effect.
const NOTHING_DONE: &[&str] = &["UPSTREAMDOWN", "POOLFULL", "BUSYLINK", "LOADING", "EXECABORT"];
/// Errors that say that nobody knows.
const NOT_KNOWN: &[&str] = &["UPSTREAMLOST", "UPSTREAMTIMEOUT"];
/// How often stalls of the machine are looked for, and the shortest that counts.
const BEAT: Duration = Duration::from_millis(20);
/// A request passes the test, Larder, the relay and the server; each may be stalled.
const PROCESSES: u32 = 4;
/// So many of the last faults are shown with what was wrong.
const FAULTS_SHOWN_MAX: usize = 6;
/// Most wrong answers that are kept in words; their number is exact.
const WRONG_SHOWN_MAX: usize = 5;

/// Counts of a run; all threads write into it.
#[derive(Default)]
pub(crate) struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    rounds: u64,
    operations: u64,
    undecided: u64,
    requests: u64,
    answered: BTreeMap<&'static str, u64>,
    errors: BTreeMap<String, u64>,
    closed: BTreeMap<String, u64>,
    faults: BTreeMap<Fault, u64>,
    faults_last: VecDeque<Fault>,
    wrong: Vec<String>,
    wrong_count: u64,
    lost: u64,
    wait_longest: Duration,
    waits_over_bound: u64,
    stalled: Duration,
    stall_longest: Duration,
    memory_kb: Vec<u64>,
}

/// A wait that is being measured.
pub(crate) struct Stopwatch {
    began: Instant,
    stalled: Duration,
}

// === impl Tally ===

impl Tally {
    /// How many rounds are over.
    pub(crate) fn rounds(&self) -> u64 {
        self.lock().rounds
    }

    /// How many operations are in the histories of the rounds that are over.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub(crate) fn note_fault(&self, fault: Fault) {
        let mut inner = self.lock();
        *inner.faults.entry(fault).or_default() += 1;
        inner.faults_last.push_back(fault);
        if inner.faults_last.len() > FAULTS_SHOWN_MAX {
            inner.faults_last.pop_front();
        }
    }

    /// Something that must not be.
    pub(crate) fn note_wrong(&self, what: String) {
        let mut inner = self.lock();
        inner.wrong_count += 1;
        if inner.wrong.len() < WRONG_SHOWN_MAX {
            eprintln!("WRONG: {what}; the last faults: {:?}", inner.faults_last);
            inner.wrong.push(what);
        }
    }

    /// An answer of some kind that was verified beyond its type.
    pub(crate) fn note_verified(&self, kind: &'static str) {
        *self.lock().answered.entry(kind).or_default() += 1;
    }

    /// What a reply means; an error that Larder has no business with is wrong.
    pub(crate) fn outcome_of(&self, reply: &[u8]) -> Outcome {
        self.lock().requests += 1;
        if reply.first() != Some(&b'-') {
            return Outcome::Answered(Value::parse(reply));
        }
        let line = String::from_utf8_lossy(&reply[1..]).trim().to_owned();
        let code = line.split(' ').next().unwrap_or_default().to_owned();
        *self.lock().errors.entry(code.clone()).or_default() += 1;
        if NOT_KNOWN.contains(&code.as_str()) {
            return Outcome::Unknown;
        }
        // EXEC on a connection whose MULTI was refused.
        if !NOTHING_DONE.contains(&code.as_str()) && line != "ERR EXEC without MULTI" {
            self.note_wrong(format!("an error that nobody should get: {}", show(reply)));
        }
        Outcome::Refused
    }

    /// Begins to measure a wait.
    pub(crate) fn stopwatch(&self) -> Stopwatch {
        Stopwatch { began: Instant::now(), stalled: self.lock().stalled }
    }

    /// Measures until the run ends how much later than it should a thread that does nothing is woken: for so long the
    /// machine had no time for this process, nor, it must be supposed, for Larder, the relay and the server.
    pub(crate) fn feel_stalls(&self, goes_on: impl Fn() -> bool) {
        while goes_on() {
            let began = Instant::now();
            std::thread::sleep(BEAT);
            let late = began.elapsed().saturating_sub(BEAT);
            if late > BEAT {
                let mut inner = self.lock();
                inner.stalled += late;
                inner.stall_longest = inner.stall_longest.max(late);
            }
        }
    }

    /// The reply to request `at` of a batch has come so long after the batch was sent, or after the reply before it.
    pub(crate) fn note_wait(&self, wait: &Stopwatch, batch: &[u8], at: usize, reply: &[u8]) {
        let waited = wait.began.elapsed();
        let mut inner = self.lock();
        inner.wait_longest = inner.wait_longest.max(waited);
        let stalled = inner.stalled.saturating_sub(wait.stalled);
        inner.waits_over_bound += u64::from(waited > WAIT_MAX);
        drop(inner);
        if waited > WAIT_MAX + stalled * PROCESSES {
            let (batch, reply) = (show(batch), show(reply));
            self.note_wrong(format!(
                "a client has waited {waited:?} (stalls {stalled:?}) for reply {at} to {batch}: {reply}"
            ));
        }
    }

    /// A connection was closed under way. A time-out of the test's own is an answer that never came.
    pub(crate) fn note_closed(&self, error: &std::io::Error) {
        let mut inner = self.lock();
        if error.kind() == ErrorKind::WouldBlock {
            inner.lost += 1;
        }
        *inner.closed.entry(error.kind().to_string()).or_default() += 1;
    }

    /// A round is over, and this is what its check has said.
    pub(crate) fn note_round(&self, history: &History, checked: Result<(), String>) {
        let mut inner = self.lock();
        inner.rounds += 1;
        inner.operations += history.len() as u64;
        drop(inner);
        match checked {
            Err(why) if why.contains("undecided") => {
                self.lock().undecided += 1;
                println!("{why}");
            }
            Err(why) => self.note_wrong(why),
            Ok(()) => {}
        }
    }

    pub(crate) fn note_memory(&self, kb: u64) {
        self.lock().memory_kb.push(kb);
    }

    /// All of it, for people.
    pub(crate) fn report(&self, lasted: Duration, memory_before_kb: u64, memory_peak_kb: u64) -> String {
        let inner = self.lock();
        let mut text = String::new();
        let mut line = |what: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{what:<34}{value}");
        };
        let faults: u64 = inner.faults.values().sum();
        let errors: u64 = inner.errors.values().sum();
        line("lasted", format!("{} s", lasted.as_secs()));
        line("requests answered", format!("{}", inner.requests));
        line("operations in histories", format!("{} in {} rounds", inner.operations, inner.rounds));
        for (kind, count) in &inner.answered {
            line(kind, format!("{count}"));
        }
        line("faults", format!("{faults}"));
        for (fault, count) in &inner.faults {
            line(&format!("  {fault:?}"), format!("{count}"));
        }
        line("errors", format!("{errors}"));
        for (code, count) in &inner.errors {
            line(&format!("  {code}"), format!("{count}"));
        }
        for (kind, count) in &inner.closed {
            line(&format!("connections ended ({kind})"), format!("{count}"));
        }
        line(
            "longest wait",
            format!(
                "{} ms, bound {} ms on an idle machine; {} waits were longer",
                inner.wait_longest.as_millis(),
                WAIT_MAX.as_millis(),
                inner.waits_over_bound
            ),
        );
        line(
            "stalls of the machine",
            format!("{} s in all, {} ms the longest", inner.stalled.as_secs(), inner.stall_longest.as_millis()),
        );
        let last = inner.memory_kb.last().copied().unwrap_or_default();
        line(
            "memory",
            format!("{memory_before_kb} KiB at the beginning, {last} KiB at the end, {memory_peak_kb} KiB at most"),
        );
        line("histories undecided", format!("{}", inner.undecided));
        line("lost answers", format!("{}", inner.lost));
        line("wrong answers", format!("{}", inner.wrong_count));
        text
    }

    /// Fails if anything was wrong or lost.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let inner = self.lock();
        assert!(inner.wrong_count == 0, "{} wrong:\n{}", inner.wrong_count, inner.wrong.join("\n"));
        assert_eq!(inner.lost, 0, "answers that never came");
        assert!(inner.requests > 0 && inner.operations > 0, "nothing was done");
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
