//! The circuit breaker of one upstream node.
//!
//! It stands in front of the node's link and pool. While the upstream serves, it counts; when too large a share of
//! the calls fails or is slow, it refuses calls at once instead of letting every client wait for a timeout; after a
//! time it lets a few probes through, and closes again when they are answered.
//!
//! | state | calls | leaves it when |
//! |---|---|---|
//! | closed | pass | of at least `calls_min` calls in the window more than a set share failed, or was slow: open |
//! | open | refused | its time is over and a call comes: half-open, that call is the first probe |
//! | half-open | at most `probes_max` under way | a probe fails, or too many are slow: open for longer; all answered: closed |
//! | forced open | refused | an operator releases it: half-open |
//! | forced closed | pass, are counted | an operator releases it: closed, counting anew |
//!
//! The time for which it stays open doubles from `open_min` to `open_max`, with jitter, and starts anew once the
//! circuit was closed for `stable_min`.
//!
//! Core: no I/O, no clock, no randomness; time and seed are arguments. One thread at a time changes it (the shell
//! keeps it in a mutex); all threads read [`BreakerGate`], so that a closed circuit costs a call one relaxed load.
//!
//! Invariants, each of them checked by the simulation in `sim_tests.rs`:
//! - a closed circuit refuses nothing, and only a failed or slow call opens it;
//! - an open one admits nothing before its time, and admits a probe at the first call after it;
//! - never more than `probes_max` probes are under way; one that vanishes gives its place up after `probe_wait_max`;
//! - the result of a call from another epoch (see [`Epoch`]) changes nothing;
//! - memory is constant: a ring of buckets, a ring of causes, `probes_max` places.
//!
//! How it fails: it does not. Times that go back (two threads that raced to the mutex) count as the latest seen.

mod causes;
mod gate;
mod refusal;
mod settings;
mod window;

#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

pub use self::causes::{Counted, ErrorKind, FailureCause, classify_error};
pub use self::gate::{BreakerGate, Epoch, Ticket};
pub use self::refusal::{OpenReason, Refusal, UpstreamDown};
pub use self::settings::{
    BreakerSettings, CheckedSettings, OPEN_CEILING, OPEN_FLOOR, PROBES_LIMIT, Pace, SettingsError, WINDOW_MAX,
    WINDOW_MIN,
};

use self::gate::ProbeId;
use self::window::{Counts, Window};
use crate::clock::Time;
use crate::upstream::backoff::Jitter;

/// How many entries the list of last causes holds.
pub const CAUSES_KEPT_MAX: usize = 16;

/// How often the open time can double before the bound `open_max` surely holds it (1 ms to 2^30 ms is 12 days).
const DOUBLINGS_MAX: u32 = 30;

/// The breaker of one upstream node.
#[derive(Debug)]
pub struct Breaker {
    settings: CheckedSettings,
    jitter: Jitter,
    gate: Arc<BreakerGate>,
    phase: Phase,
    epoch: Epoch,
    since: Time,
    /// The latest time seen.
    latest: Time,
    window: Window,
    outage: Outage,
    /// Openings since the circuit was last closed for `stable_min`.
    openings: u32,
    causes: VecDeque<CauseNote>,
    transitions: u64,
    refused: u64,
}

/// The breaker's answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a call goes only if it was admitted"]
pub enum Admission {
    /// The call may go.
    Pass(Ticket),
    /// The call may go, and its result decides whether the circuit closes. Its result must be recorded in any case.
    Probe(Ticket),
    /// The call must not go.
    Refuse(Refusal),
}

/// How an admitted call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream has served it.
    Success,
    /// The upstream, or the way to it, has failed.
    Failure(FailureCause),
    /// The upstream has refused it for a reason of its own or the client's (`WRONGTYPE`, `ERR`, `OOM`, ...). Never
    /// counts as a call. For a probe it is an answer like any other: the upstream is there.
    ClientFault,
    /// Nothing is known: the client went away before the call was sent. Never counts; a probe's place is free.
    Abandoned,
}

/// What an operator can force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// Refuse everything.
    Open,
    /// Let everything pass, whatever fails.
    Closed,
}

/// What [`Breaker::release`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It was forced, and is no more.
    Released(Forced),
    /// It was not forced; nothing changed.
    NotForced,
}

/// The state as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls pass and are counted.
    Closed,
    /// Calls are refused.
    Open {
        /// From when on a call is admitted as a probe.
        probe_at: Time,
    },
    /// A bounded number of calls pass as probes.
    HalfOpen {
        /// Probes that were admitted and of which nothing is known yet.
        under_way: u32,
        /// Probes that were answered; `probes_max` of them close the circuit.
        answered: u32,
    },
    /// An operator holds it.
    Forced(Forced),
}

/// A run of equal causes in the list of last causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CauseNote {
    /// What happened.
    pub cause: FailureCause,
    /// When it happened first.
    pub first: Time,
    /// When it happened last.
    pub last: Time,
    /// How often it happened without another cause in between.
    pub count: u64,
}

/// Everything that `CACHE BREAKER` and the metrics show.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerSnapshot {
    /// The state.
    pub state: State,
    /// Since when it has been in this state (the number of probes aside).
    pub since: Time,
    /// Why it is not closed; `None` while it is.
    pub reason: Option<OpenReason>,
    /// Calls in the window, failed and slow ones included.
    pub calls: u64,
    /// Failed calls in the window.
    pub failures: u64,
    /// Slow calls in the window.
    pub slow: u64,
    /// `failures / calls`, 0 without calls.
    pub failure_rate: f64,
    /// `slow / calls`, 0 without calls.
    pub slow_rate: f64,
    /// The last causes, oldest first; at most [`CAUSES_KEPT_MAX`].
    pub causes: Vec<CauseNote>,
    /// Time until a probe is admitted, if the circuit is open by itself; zero if the next call will be one.
    pub probe_in: Option<Duration>,
    /// Changes of state so far.
    pub transitions: u64,
    /// Calls refused so far.
    pub refused: u64,
}

/// The state with what belongs to it.
#[derive(Debug)]
enum Phase {
    Closed,
    Open { probe_at: Time },
    HalfOpen(Probes),
    Forced(Forced),
}

/// The probes of one half-open epoch.
#[derive(Debug)]
struct Probes {
    /// At most `probes_max` less `answered`.
    under_way: Vec<Probe>,
    answered: u32,
    slow: u64,
    next_id: ProbeId,
}

/// A probe under way.
#[derive(Debug)]
struct Probe {
    id: ProbeId,
    /// When its place is given to another.
    lost_at: Time,
}

/// What the end of a probe means for the circuit.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    /// More probes must be answered.
    Undecided,
    /// Enough were answered, and fast enough.
    Answered,
    /// The probe failed.
    Failed,
    /// Enough were answered, but too many of them slowly.
    TooSlow { slow: u64 },
}

/// What is known of the present outage: counted from the window in which the circuit opened.
#[derive(Debug)]
struct Outage {
    counts: Counts,
    reason: OpenReason,
}

/// What opens a circuit.
#[derive(Clone, Copy, Debug)]
enum Trigger {
    Failures,
    SlowCalls,
}

// === impl Breaker ===

impl Breaker {
    /// A closed circuit. Breakers of one upstream in several proxies should have different seeds.
    pub fn new(settings: CheckedSettings, seed: u64, now: Time) -> Self {
        let window = Window::new(settings.values().window);
        Self {
            settings,
            jitter: Jitter::new(seed),
            gate: Arc::new(BreakerGate::closed(Epoch::FIRST)),
            phase: Phase::Closed,
            epoch: Epoch::FIRST,
            since: now,
            latest: now,
            window,
            outage: Outage { counts: Counts::default(), reason: OpenReason::Operator },
            openings: 0,
            causes: VecDeque::with_capacity(CAUSES_KEPT_MAX),
            transitions: 0,
            refused: 0,
        }
    }

    /// Changes the settings. Its state stays; what was counted stays, unless the window has another length.
    pub fn reconfigure(&mut self, settings: CheckedSettings) {
        if settings.values().window != self.settings.values().window {
            self.window = Window::new(settings.values().window);
        }
        self.settings = settings;
    }

    /// What threads ask without taking the breaker's lock.
    pub fn gate(&self) -> Arc<BreakerGate> {
        Arc::clone(&self.gate)
    }

    /// The settings, with which callers that record in bulk tell fast calls from slow ones.
    pub fn settings(&self) -> &CheckedSettings {
        &self.settings
    }

    /// May this call go? Asked before anything is written to a socket.
    pub fn admit(&mut self, now: Time) -> Admission {
        let now = self.advance(now);
        if matches!(self.phase, Phase::Open { probe_at } if now >= probe_at) {
            self.enter(Phase::HalfOpen(Probes::none(&self.settings)), now);
        }
        let reason = self.outage.reason;
        let refusal = match &mut self.phase {
            Phase::Closed | Phase::Forced(Forced::Closed) => {
                return Admission::Pass(Ticket { epoch: self.epoch, probe: None });
            }
            Phase::Forced(Forced::Open) => Refusal::Forced,
            Phase::Open { probe_at } => Refusal::Open { reason, probe_in: probe_at.saturating_since(now) },
            Phase::HalfOpen(probes) => match probes.admit(&self.settings, now) {
                Ok(id) => return Admission::Probe(Ticket { epoch: self.epoch, probe: Some(id) }),
                Err(slot_in) => Refusal::Probing { reason, slot_in },
            },
        };
        self.refused = self.refused.saturating_add(1);
        Admission::Refuse(refusal)
    }

    /// Records how a call ended, and how long it took from its sending to its last byte.
    ///
    /// The result of a call that was admitted in another epoch changes nothing.
    pub fn record(&mut self, ticket: Ticket, outcome: Outcome, latency: Duration, now: Time) {
        let slow = u64::from(self.settings.pace(latency) == Pace::Slow);
        self.record_all(ticket, outcome, Counts { calls: 1, slow, ..Counts::default() }, now);
    }

    /// Records `count` fast successes of calls that held equal tickets.
    pub fn record_successes(&mut self, ticket: Ticket, count: u32, now: Time) {
        self.record_all(ticket, Outcome::Success, Counts { calls: u64::from(count), ..Counts::default() }, now);
    }

    /// Records `count` failures of calls that held equal tickets, as when a link is lost. None counts as slow.
    pub fn record_failures(&mut self, ticket: Ticket, cause: FailureCause, count: u32, now: Time) {
        let counts = Counts { calls: u64::from(count), ..Counts::default() };
        self.record_all(ticket, Outcome::Failure(cause), counts, now);
    }

    /// Records that a link was lost, or could not be made. Closed: counts as one failed call, besides those that
    /// were under way on it. Half-open: opens the circuit again. Open: noted among the last causes only.
    pub fn link_lost(&mut self, cause: FailureCause, now: Time) {
        let now = self.advance(now);
        self.note(cause, 1, now);
        match self.phase {
            Phase::Closed | Phase::Forced(Forced::Closed) => self.count(&Counts::failed_calls(cause, 1), now),
            Phase::HalfOpen(_) => self.open(&Counts::failed_calls(cause, 1), Trigger::Failures, now),
            Phase::Open { .. } | Phase::Forced(Forced::Open) => {}
        }
    }

    /// An operator's order: holds the circuit open or closed until [`Breaker::release`].
    pub fn force(&mut self, forced: Forced, now: Time) {
        let now = self.advance(now);
        if matches!(self.phase, Phase::Forced(held) if held == forced) {
            return;
        }
        self.openings = 0;
        self.outage = Outage { counts: Counts::default(), reason: OpenReason::Operator };
        self.enter(Phase::Forced(forced), now);
    }

    /// Ends an operator's order: a circuit that was held open is half-open, one that was held closed is closed.
    pub fn release(&mut self, now: Time) -> Release {
        let now = self.advance(now);
        let Phase::Forced(forced) = self.phase else { return Release::NotForced };
        match forced {
            Forced::Open => self.enter(Phase::HalfOpen(Probes::none(&self.settings)), now),
            Forced::Closed => self.enter(Phase::Closed, now),
        }
        Release::Released(forced)
    }

    /// The state and all numbers as they are at `now`. Changes nothing.
    pub fn snapshot(&self, now: Time) -> BreakerSnapshot {
        let now = now.max(self.latest);
        let counts = self.window.totals_at(now);
        let state = self.state(now);
        BreakerSnapshot {
            state,
            since: self.since,
            reason: match state {
                State::Closed | State::Forced(Forced::Closed) => None,
                State::Open { .. } | State::HalfOpen { .. } | State::Forced(Forced::Open) => Some(self.outage.reason),
            },
            calls: counts.calls,
            failures: counts.failed(),
            slow: counts.slow,
            failure_rate: share(counts.failed(), counts.calls),
            slow_rate: share(counts.slow, counts.calls),
            causes: self.causes.iter().copied().collect(),
            probe_in: match state {
                State::Open { probe_at } => Some(probe_at.saturating_since(now)),
                State::Closed | State::HalfOpen { .. } | State::Forced(_) => None,
            },
            transitions: self.transitions,
            refused: self.refused,
        }
    }

    /// The state at `now`. An open circuit whose time is over stays open until a call comes.
    pub fn state(&self, now: Time) -> State {
        match &self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { probe_at } => State::Open { probe_at: *probe_at },
            Phase::HalfOpen(probes) => {
                let under_way = probes.under_way.iter().filter(|probe| probe.lost_at > now.max(self.latest)).count();
                State::HalfOpen { under_way: u32::try_from(under_way).unwrap_or(u32::MAX), answered: probes.answered }
            }
            Phase::Forced(forced) => State::Forced(*forced),
        }
    }

    /// Changes of state so far; a caller that compares it before and after a call knows when to log.
    pub fn transitions(&self) -> u64 {
        self.transitions
    }

    /// Moves the window on; gives the time to go by, which never goes back.
    fn advance(&mut self, now: Time) -> Time {
        self.latest = self.latest.max(now);
        self.window.advance(self.latest);
        self.latest
    }

    /// Records calls that ended alike: `counts` holds their number and how many were slow.
    fn record_all(&mut self, ticket: Ticket, outcome: Outcome, mut counts: Counts, now: Time) {
        let now = self.advance(now);
        if ticket.epoch != self.epoch || counts.calls == 0 {
            return;
        }
        if let Outcome::Failure(cause) = outcome {
            counts.failures[cause.index()] = counts.calls;
            self.note(cause, counts.calls, now);
        }
        match (&mut self.phase, ticket.probe) {
            (Phase::Closed | Phase::Forced(Forced::Closed), None) => match outcome {
                Outcome::Success | Outcome::Failure(_) => self.count(&counts, now),
                Outcome::ClientFault | Outcome::Abandoned => {}
            },
            (Phase::HalfOpen(probes), Some(id)) => match probes.settle(id, outcome, &counts, &self.settings) {
                Verdict::Undecided => {}
                Verdict::Answered => self.enter(Phase::Closed, now),
                Verdict::Failed => self.open(&counts, Trigger::Failures, now),
                Verdict::TooSlow { slow } => {
                    self.open(&Counts { slow, ..Counts::default() }, Trigger::SlowCalls, now);
                }
            },
            _ => {}
        }
    }

    /// Closed: counts calls; a bad one may open the circuit.
    fn count(&mut self, counts: &Counts, now: Time) {
        self.window.add(counts);
        let bad = counts.slow > 0 || counts.failed() > 0;
        if let (Phase::Closed, true, Some(trigger)) = (&self.phase, bad, self.trigger()) {
            if now.saturating_since(self.since) >= self.settings.values().stable_min {
                self.openings = 0;
            }
            self.outage.counts = Counts::default();
            let in_window = *self.window.totals();
            self.open(&in_window, trigger, now);
        }
    }

    /// Whether the window holds enough to open the circuit.
    fn trigger(&self) -> Option<Trigger> {
        let settings = self.settings.values();
        let totals = self.window.totals();
        if totals.calls < u64::from(settings.calls_min) {
            None
        } else if share(totals.failed(), totals.calls) > settings.failure_rate_max {
            Some(Trigger::Failures)
        } else if share(totals.slow, totals.calls) > settings.slow_rate_max {
            Some(Trigger::SlowCalls)
        } else {
            None
        }
    }

    /// Opens the circuit, and adds what led to it to the outage's account.
    fn open(&mut self, counts: &Counts, trigger: Trigger, now: Time) {
        self.outage.counts.add(counts);
        let slow = OpenReason::SlowCalls { count: self.outage.counts.slow };
        self.outage.reason = match (trigger, self.outage.counts.dominating()) {
            (Trigger::Failures, Some((cause, count))) => OpenReason::Failures { cause, count },
            (Trigger::Failures, None) | (Trigger::SlowCalls, _) => slow,
        };
        let wait = self.draw_open_wait();
        self.enter(Phase::Open { probe_at: now.saturating_add(wait) }, now);
    }

    /// How long to stay open: from half of the doubled time to all of it, within `open_min ..= open_max`.
    fn draw_open_wait(&mut self) -> Duration {
        let settings = self.settings.values();
        let factor = 2u32 << self.openings.min(DOUBLINGS_MAX - 1);
        let high = settings.open_min.saturating_mul(factor).min(settings.open_max);
        let low = (high / 2).max(settings.open_min);
        self.openings = self.openings.saturating_add(1);
        self.jitter.between(low, high)
    }

    /// Changes the state: a new epoch, the gate with it; a state that counts begins with an empty window.
    fn enter(&mut self, phase: Phase, now: Time) {
        self.phase = phase;
        self.epoch = self.epoch.next();
        self.since = now;
        self.transitions = self.transitions.saturating_add(1);
        match self.phase {
            Phase::Closed | Phase::Forced(Forced::Closed) => {
                self.window.clear();
                self.gate.close(self.epoch);
            }
            Phase::Open { .. } | Phase::HalfOpen(_) | Phase::Forced(Forced::Open) => self.gate.bar(self.epoch),
        }
    }

    /// Puts a cause on the list; equal ones that follow each other share an entry.
    fn note(&mut self, cause: FailureCause, count: u64, now: Time) {
        match self.causes.back_mut() {
            Some(note) if note.cause == cause => {
                note.last = now;
                note.count = note.count.saturating_add(count);
            }
            _ => {
                if self.causes.len() == CAUSES_KEPT_MAX {
                    self.causes.pop_front();
                }
                self.causes.push_back(CauseNote { cause, first: now, last: now, count });
            }
        }
    }
}

// === impl Probes ===

impl Probes {
    fn none(settings: &CheckedSettings) -> Self {
        let under_way = Vec::with_capacity(settings.values().probes_max as usize);
        Self { under_way, answered: 0, slow: 0, next_id: ProbeId::FIRST }
    }

    /// A place for a probe, or the time until one is free at the latest.
    fn admit(&mut self, settings: &CheckedSettings, now: Time) -> Result<ProbeId, Duration> {
        let settings = settings.values();
        self.under_way.retain(|probe| probe.lost_at > now);
        let places = settings.probes_max.saturating_sub(self.answered) as usize;
        if self.under_way.len() >= places {
            let first_lost = self.under_way.iter().map(|probe| probe.lost_at).min().unwrap_or(now);
            return Err(first_lost.saturating_since(now));
        }
        let id = self.next_id;
        self.next_id = id.next();
        self.under_way.push(Probe { id, lost_at: now.saturating_add(settings.probe_wait_max) });
        Ok(id)
    }

    /// A probe ended; `counts` says whether it was slow.
    fn settle(&mut self, id: ProbeId, outcome: Outcome, counts: &Counts, settings: &CheckedSettings) -> Verdict {
        let settings = settings.values();
        let was_under_way = self.remove(id);
        match outcome {
            // Also if its place was given away: an upstream on which probes hang until they fail is not there.
            Outcome::Failure(_) => return Verdict::Failed,
            Outcome::Success | Outcome::ClientFault if was_under_way => {}
            Outcome::Success | Outcome::ClientFault | Outcome::Abandoned => return Verdict::Undecided,
        }
        self.answered += 1;
        self.slow += u64::from(counts.slow > 0);
        if self.answered < settings.probes_max {
            Verdict::Undecided
        } else if share(self.slow, u64::from(settings.probes_max)) > settings.slow_rate_max {
            Verdict::TooSlow { slow: self.slow }
        } else {
            Verdict::Answered
        }
    }

    /// Takes a probe off the list; `false` if it is not there: recorded before, or its place was given away.
    fn remove(&mut self, id: ProbeId) -> bool {
        let place = self.under_way.iter().position(|probe| probe.id == id);
        place.map(|place| self.under_way.swap_remove(place)).is_some()
    }
}

// === helpers ===

/// `part / whole`, 0 without a whole. Exact enough: the numbers stay far below 2^53.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
