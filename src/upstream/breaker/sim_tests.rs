//! A seeded simulation of the breaker against a naive model of it.
//!
//! The model keeps every event in a list and counts it anew each time; the breaker must show the same after every
//! step. A failure prints the seed and the step.

use super::window::BUCKETS;
use super::*;

const SEEDS: u64 = 4_000;
const STEPS: u32 = 300;
/// Tickets that the simulation holds on to, to record them late.
const HELD_MAX: usize = 40;

/// Prints where a run was when it panicked, wherever the panic came from.
struct Place {
    seed: u64,
    step: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("breaker simulation failed at seed {} step {}", self.seed, self.step);
        }
    }
}

/// What the model thinks the state is.
#[derive(Clone, Debug, PartialEq)]
enum Expected {
    Closed,
    Open { probe_at: Time },
    HalfOpen { under_way: Vec<(Ticket, Time)>, answered: u32, slow: u32 },
    Forced(Forced),
}

#[derive(Clone, Copy, Debug)]
struct Event {
    at: Time,
    failure: Option<FailureCause>,
    pace: Pace,
}

/// The naive model.
struct Model {
    settings: BreakerSettings,
    latest: Time,
    since: Time,
    expected: Expected,
    /// Every call counted since the circuit was last closed.
    events: Vec<Event>,
    /// Failures of the present outage, by cause, and slow calls.
    outage: Vec<(FailureCause, u64)>,
    outage_slow: u64,
    reason: OpenReason,
    openings: u32,
    notes: Vec<(FailureCause, Time, u64)>,
    transitions: u64,
    refused: u64,
}

struct Sim {
    random: Jitter,
    now: Time,
    breaker: Breaker,
    gate: Arc<BreakerGate>,
    model: Model,
    /// Tickets not recorded yet, with the model's count of transitions when they were given.
    held: Vec<(Ticket, u64)>,
    /// Of a hundred calls, how many fail, and how many are slow.
    failing: u64,
    slowness: u64,
}

#[test]
fn agrees_with_a_naive_model() {
    let mut transitions = 0;
    for seed in 0..SEEDS {
        let mut place = Place { seed, step: 0 };
        let mut sim = Sim::new(seed);
        for step in 0..STEPS {
            place.step = step;
            sim.step();
            sim.check();
        }
        place.step = STEPS;
        sim.recover();
        transitions += sim.model.transitions;
    }
    // The runs do visit the states they are there to test.
    assert!(transitions > SEEDS * 5, "only {transitions} transitions");
}

// === impl Sim ===

impl Sim {
    fn new(seed: u64) -> Self {
        let mut random = Jitter::new(seed);
        let settings = draw_settings(&mut random);
        let now = Time::from_micros(below(&mut random, 1_000_000_000));
        let breaker = Breaker::new(settings.checked().unwrap(), seed, now);
        let gate = breaker.gate();
        let model = Model::new(settings, now);
        Self { random, now, breaker, gate, model, held: Vec::new(), failing: 5, slowness: 5 }
    }

    fn step(&mut self) {
        match self.below(100) {
            0..20 => self.pass_time(),
            20..50 => self.admit(),
            50..80 => self.record(),
            80..86 => self.record_bulk(),
            86..90 => self.vanish(),
            90..92 => self.lose_link(),
            92..98 => {
                self.failing = [0, 5, 50, 100][self.pick(4)];
                self.slowness = [0, 5, 50, 100][self.pick(4)];
            }
            98 => self.force(),
            _ => self.release(),
        }
    }

    fn pass_time(&mut self) {
        let window = self.model.settings.window;
        let to = match (self.below(80), &self.model.expected) {
            (0..30, Expected::Open { probe_at }) => *probe_at,
            (30..40, Expected::Open { probe_at }) => Time::from_micros(probe_at.as_micros() - 1),
            (0..30, Expected::HalfOpen { under_way, .. }) => {
                under_way.iter().map(|(_, lost_at)| *lost_at).min().unwrap_or(self.now)
            }
            (40..50, _) => self.now.saturating_add(self.random.between(Duration::ZERO, window * 3)),
            (50, _) => self.now.saturating_add(Duration::from_secs(86_400)),
            (_, _) => self.now.saturating_add(self.random.between(Duration::ZERO, window / 8)),
        };
        self.now = self.now.max(to);
    }

    /// Mostly now; at times the time of a thread that read its clock a little earlier.
    fn racy_now(&mut self) -> Time {
        if self.below(10) == 0 {
            let early = self.below(10_000);
            return Time::from_micros(self.now.as_micros().saturating_sub(early));
        }
        self.now
    }

    fn admit(&mut self) {
        let now = self.racy_now();
        if self.below(2) == 0
            && let Some(ticket) = self.gate.admit()
        {
            assert!(self.model.passes(), "the gate passed in {:?}", self.model.expected);
            self.hold(ticket);
            return;
        }
        let admission = self.breaker.admit(now);
        self.model.admitted(&admission, now);
        match admission {
            Admission::Pass(ticket) | Admission::Probe(ticket) => self.hold(ticket),
            Admission::Refuse(refusal) => assert_ne!(refusal.retry_in(), Some(Duration::ZERO)),
        }
    }

    fn hold(&mut self, ticket: Ticket) {
        if self.held.len() == HELD_MAX {
            let place = self.pick(HELD_MAX);
            let _unheard = self.held.swap_remove(place);
        }
        self.held.push((ticket, self.model.transitions));
    }

    /// Takes a ticket, or, at times, only looks at it, so that it is recorded twice.
    fn take_held(&mut self) -> Option<(Ticket, u64)> {
        if self.held.is_empty() {
            return None;
        }
        let place = self.pick(self.held.len());
        if self.below(10) == 0 {
            return self.held.get(place).copied();
        }
        Some(self.held.swap_remove(place))
    }

    fn record(&mut self) {
        let Some((ticket, given)) = self.take_held() else { return };
        let outcome = match self.below(100) {
            0..4 => Outcome::ClientFault,
            4..8 => Outcome::Abandoned,
            _ if self.below(100) < self.failing => Outcome::Failure(self.draw_cause()),
            _ => Outcome::Success,
        };
        let slow = self.model.settings.slow;
        let pace = if self.below(100) < self.slowness { Pace::Slow } else { Pace::Fast };
        let latency = match pace {
            Pace::Slow => slow + self.random.between(Duration::ZERO, slow),
            Pace::Fast => self.random.between(Duration::ZERO, slow - Duration::from_nanos(1)),
        };
        let now = self.racy_now();
        let before = self.breaker.snapshot(now);
        self.breaker.record(ticket, outcome, latency, now);
        self.recorded(ticket, given, outcome, pace, 1, &before, now);
    }

    fn record_bulk(&mut self) {
        let Some((ticket, given)) = self.take_held() else { return };
        if ticket.is_probe() {
            self.held.push((ticket, given));
            return;
        }
        let count = self.below(30) as u32;
        let now = self.racy_now();
        let before = self.breaker.snapshot(now);
        let outcome = if self.below(100) < self.failing {
            let cause = self.draw_cause();
            self.breaker.record_failures(ticket, cause, count, now);
            Outcome::Failure(cause)
        } else {
            self.breaker.record_successes(ticket, count, now);
            Outcome::Success
        };
        self.recorded(ticket, given, outcome, Pace::Fast, count, &before, now);
    }

    /// Tells the model of a record; if the ticket is of another epoch, nothing may have changed.
    #[expect(clippy::too_many_arguments, reason = "one call of the breaker, spelled out for the model")]
    fn recorded(
        &mut self,
        ticket: Ticket,
        given: u64,
        outcome: Outcome,
        pace: Pace,
        count: u32,
        before: &BreakerSnapshot,
        now: Time,
    ) {
        if given == self.model.transitions {
            self.model.recorded(ticket, outcome, pace, count, now, &self.breaker);
        } else {
            self.model.see(now);
            assert_eq!(&self.breaker.snapshot(now), before, "a late result changed something");
        }
    }

    /// A call of which nothing is ever heard again.
    fn vanish(&mut self) {
        if !self.held.is_empty() {
            let place = self.pick(self.held.len());
            let _unheard = self.held.swap_remove(place);
        }
    }

    fn lose_link(&mut self) {
        let (cause, now) = (self.draw_cause(), self.racy_now());
        self.breaker.link_lost(cause, now);
        self.model.link_lost(cause, now, &self.breaker);
    }

    fn force(&mut self) {
        let forced = if self.below(2) == 0 { Forced::Open } else { Forced::Closed };
        self.breaker.force(forced, self.now);
        self.model.forced(forced, self.now);
    }

    fn release(&mut self) {
        let found = self.breaker.release(self.now);
        assert_eq!(found, self.model.released(self.now));
    }

    /// The breaker shows what the model expects.
    fn check(&self) {
        let snapshot = self.breaker.snapshot(self.now);
        assert_eq!(snapshot, self.model.snapshot(self.now));
        assert_eq!(self.breaker.state(self.now), snapshot.state);
        assert_eq!(self.gate.is_closed(), self.model.passes());
        self.model.check_window(&snapshot, self.now);
        if let State::HalfOpen { under_way, answered } = snapshot.state {
            let probes_max = self.model.settings.probes_max;
            assert!(under_way + answered <= probes_max && answered < probes_max, "{snapshot:?}");
        }
    }

    /// From any state, a healthy upstream and patience lead back to closed in a bounded number of calls.
    fn recover(&mut self) {
        self.release();
        // Probes under way may all have vanished, and slow ones from before may open it once more.
        let calls_max = 4 * self.model.settings.probes_max + 4;
        for _ in 0..calls_max {
            let admission = self.breaker.admit(self.now);
            self.model.admitted(&admission, self.now);
            match admission {
                Admission::Pass(_) => break,
                Admission::Probe(ticket) => {
                    self.breaker.record(ticket, Outcome::Success, Duration::ZERO, self.now);
                    self.model.recorded(ticket, Outcome::Success, Pace::Fast, 1, self.now, &self.breaker);
                }
                Admission::Refuse(refusal) => {
                    self.now = self.now.saturating_add(refusal.retry_in().unwrap());
                }
            }
            self.check();
        }
        assert_eq!(self.breaker.state(self.now), State::Closed, "not closed after {calls_max} calls");
        self.now = self.now.saturating_add(self.model.settings.window);
        let forgotten = self.breaker.snapshot(self.now);
        assert_eq!((forgotten.calls, forgotten.failures, forgotten.slow), (0, 0, 0));
    }

    fn below(&mut self, bound: u64) -> u64 {
        below(&mut self.random, bound)
    }

    fn pick(&mut self, bound: usize) -> usize {
        self.below(bound as u64) as usize
    }

    fn draw_cause(&mut self) -> FailureCause {
        FailureCause::ALL[self.pick(FailureCause::ALL.len())]
    }
}

// === impl Model ===

impl Model {
    fn new(settings: BreakerSettings, now: Time) -> Self {
        Self {
            settings,
            latest: now,
            since: now,
            expected: Expected::Closed,
            events: Vec::new(),
            outage: Vec::new(),
            outage_slow: 0,
            reason: OpenReason::Operator,
            openings: 0,
            notes: Vec::new(),
            transitions: 0,
            refused: 0,
        }
    }

    fn passes(&self) -> bool {
        matches!(self.expected, Expected::Closed | Expected::Forced(Forced::Closed))
    }

    /// Time as the breaker sees it.
    fn see(&mut self, now: Time) -> Time {
        self.latest = self.latest.max(now);
        self.latest
    }

    fn enter(&mut self, expected: Expected, now: Time) {
        self.expected = expected;
        self.since = now;
        self.transitions += 1;
        if self.passes() {
            self.events.clear();
        }
    }

    fn admitted(&mut self, admission: &Admission, now: Time) {
        let now = self.see(now);
        if matches!(self.expected, Expected::Open { probe_at } if probe_at <= now) {
            self.enter(Expected::HalfOpen { under_way: Vec::new(), answered: 0, slow: 0 }, now);
        }
        let reason = self.reason;
        match (&mut self.expected, admission) {
            (Expected::Closed | Expected::Forced(Forced::Closed), Admission::Pass(ticket)) => {
                assert!(!ticket.is_probe());
            }
            (Expected::Forced(Forced::Open), Admission::Refuse(refusal)) => assert_eq!(*refusal, Refusal::Forced),
            (Expected::Open { probe_at }, Admission::Refuse(refusal)) => {
                let probe_in = Duration::from_micros(probe_at.as_micros() - now.as_micros());
                assert_eq!(*refusal, Refusal::Open { reason, probe_in });
            }
            (Expected::HalfOpen { under_way, answered, .. }, admission) => {
                under_way.retain(|(_, lost_at)| *lost_at > now);
                let full = under_way.len() as u32 + *answered >= self.settings.probes_max;
                match admission {
                    Admission::Probe(ticket) => {
                        assert!(!full && ticket.is_probe(), "one probe too many");
                        assert!(under_way.iter().all(|(other, _)| other != ticket), "a ticket given twice");
                        under_way.push((*ticket, now.saturating_add(self.settings.probe_wait_max)));
                    }
                    Admission::Refuse(refusal) => {
                        let first = under_way.iter().map(|(_, lost_at)| *lost_at).min();
                        assert!(full, "refused a probe that had a place");
                        let slot_in = first.unwrap().saturating_since(now);
                        assert_eq!(*refusal, Refusal::Probing { reason, slot_in });
                    }
                    Admission::Pass(_) => panic!("passed while half-open"),
                }
            }
            (expected, admission) => panic!("{admission:?} in {expected:?}"),
        }
        if matches!(admission, Admission::Refuse(_)) {
            self.refused += 1;
        }
    }

    /// A result of the current epoch.
    fn recorded(&mut self, ticket: Ticket, outcome: Outcome, pace: Pace, count: u32, now: Time, breaker: &Breaker) {
        let now = self.see(now);
        if count == 0 {
            return;
        }
        if let Outcome::Failure(cause) = outcome {
            self.notes.push((cause, now, u64::from(count)));
        }
        match outcome {
            _ if self.passes() => match outcome {
                Outcome::Success => self.count(None, pace, count, now, breaker),
                Outcome::Failure(cause) => self.count(Some(cause), pace, count, now, breaker),
                Outcome::ClientFault | Outcome::Abandoned => {}
            },
            Outcome::Failure(cause) => {
                self.blame(cause, 1);
                self.outage_slow += u64::from(pace == Pace::Slow);
                self.open_for_failures(now, breaker);
            }
            Outcome::Success | Outcome::ClientFault => self.answered(ticket, pace, now, breaker),
            Outcome::Abandoned => {
                let Expected::HalfOpen { under_way, .. } = &mut self.expected else { return };
                under_way.retain(|(other, _)| *other != ticket);
            }
        }
    }

    fn answered(&mut self, ticket: Ticket, pace: Pace, now: Time, breaker: &Breaker) {
        let Expected::HalfOpen { under_way, answered, slow } = &mut self.expected else { return };
        let before = under_way.len();
        under_way.retain(|(other, _)| *other != ticket);
        if under_way.len() == before {
            return;
        }
        *answered += 1;
        *slow += u32::from(pace == Pace::Slow);
        if *answered == self.settings.probes_max {
            let slow = *slow;
            if f64::from(slow) / f64::from(self.settings.probes_max) > self.settings.slow_rate_max {
                self.outage_slow += u64::from(slow);
                self.reason = OpenReason::SlowCalls { count: self.outage_slow };
                self.open(now, breaker);
            } else {
                self.enter(Expected::Closed, now);
            }
        }
    }

    fn link_lost(&mut self, cause: FailureCause, now: Time, breaker: &Breaker) {
        let now = self.see(now);
        self.notes.push((cause, now, 1));
        match self.expected {
            Expected::Closed | Expected::Forced(Forced::Closed) => {
                self.count(Some(cause), Pace::Fast, 1, now, breaker);
            }
            Expected::HalfOpen { .. } => {
                self.blame(cause, 1);
                self.open_for_failures(now, breaker);
            }
            Expected::Open { .. } | Expected::Forced(Forced::Open) => {}
        }
    }

    fn forced(&mut self, forced: Forced, now: Time) {
        let now = self.see(now);
        if self.expected != Expected::Forced(forced) {
            self.openings = 0;
            self.outage.clear();
            self.outage_slow = 0;
            self.reason = OpenReason::Operator;
            self.enter(Expected::Forced(forced), now);
        }
    }

    fn released(&mut self, now: Time) -> Release {
        let now = self.see(now);
        let Expected::Forced(forced) = self.expected else { return Release::NotForced };
        match forced {
            Forced::Open => self.enter(Expected::HalfOpen { under_way: Vec::new(), answered: 0, slow: 0 }, now),
            Forced::Closed => self.enter(Expected::Closed, now),
        }
        Release::Released(forced)
    }

    /// Counts calls while closed, and decides by counting everything anew whether the circuit opens.
    fn count(&mut self, failure: Option<FailureCause>, pace: Pace, count: u32, now: Time, breaker: &Breaker) {
        self.events.extend((0..count).map(|_| Event { at: now, failure, pace }));
        if self.expected != Expected::Closed || (failure.is_none() && pace == Pace::Fast) {
            return;
        }
        let (calls, failures, slow) = self.totals(now);
        let failing = failures as f64 / calls as f64 > self.settings.failure_rate_max;
        let slowing = slow as f64 / calls as f64 > self.settings.slow_rate_max;
        if calls < u64::from(self.settings.calls_min) || !(failing || slowing) {
            return;
        }
        if now.saturating_since(self.since) >= self.settings.stable_min {
            self.openings = 0;
        }
        self.outage.clear();
        self.outage_slow = slow;
        let live: Vec<Event> = self.live(now).copied().collect();
        live.iter().filter_map(|event| event.failure).for_each(|cause| self.blame(cause, 1));
        if failing {
            self.open_for_failures(now, breaker);
        } else {
            self.reason = OpenReason::SlowCalls { count: slow };
            self.open(now, breaker);
        }
    }

    fn blame(&mut self, cause: FailureCause, count: u64) {
        match self.outage.iter_mut().find(|(other, _)| *other == cause) {
            Some((_, sum)) => *sum += count,
            None => self.outage.push((cause, count)),
        }
    }

    fn open_for_failures(&mut self, now: Time, breaker: &Breaker) {
        let most = self.outage.iter().map(|(_, count)| *count).max().unwrap();
        let first = FailureCause::ALL.into_iter().find(|cause| self.outage.contains(&(*cause, most)));
        self.reason = OpenReason::Failures { cause: first.unwrap(), count: most };
        self.open(now, breaker);
    }

    /// The breaker's own draw of the open time is taken over, after it was seen to lie within its bounds.
    fn open(&mut self, now: Time, breaker: &Breaker) {
        let State::Open { probe_at } = breaker.state(now) else {
            panic!("expected an open circuit, got {:?}", breaker.state(now))
        };
        let wait = probe_at.saturating_since(now);
        let doubled = self.settings.open_min.as_secs_f64() * 2f64.powi(self.openings as i32 + 1);
        let high = Duration::from_secs_f64(doubled.min(self.settings.open_max.as_secs_f64()));
        let low = (high / 2).max(self.settings.open_min).saturating_sub(Duration::from_micros(1));
        assert!(wait >= self.settings.open_min && wait <= self.settings.open_max, "open for {wait:?}");
        assert!(wait >= low && wait <= high, "open for {wait:?}, not from {low:?} to {high:?}");
        self.openings += 1;
        self.enter(Expected::Open { probe_at }, now);
    }

    fn live(&self, now: Time) -> impl Iterator<Item = &Event> {
        let bucket_us = self.settings.window.as_micros() as u64 / BUCKETS as u64;
        let number = now.max(self.latest).as_micros() / bucket_us;
        self.events.iter().filter(move |event| number - event.at.as_micros() / bucket_us < BUCKETS as u64)
    }

    /// Calls, failures and slow calls in the window.
    fn totals(&self, now: Time) -> (u64, u64, u64) {
        self.live(now).fold((0, 0, 0), |(calls, failures, slow), event| {
            let failed = u64::from(event.failure.is_some());
            (calls + 1, failures + failed, slow + u64::from(event.pace == Pace::Slow))
        })
    }

    /// The window holds all that is younger than its length less a bucket, and nothing older than its length.
    fn check_window(&self, snapshot: &BreakerSnapshot, now: Time) {
        let younger = |age: Duration| self.events.iter().filter(|event| now.saturating_since(event.at) < age).count();
        let bucket = self.settings.window / BUCKETS as u32 + Duration::from_micros(BUCKETS as u64);
        assert!(snapshot.calls >= younger(self.settings.window.saturating_sub(bucket)) as u64);
        assert!(snapshot.calls <= younger(self.settings.window) as u64);
    }

    fn snapshot(&self, now: Time) -> BreakerSnapshot {
        let now = now.max(self.latest);
        let (calls, failures, slow) = self.totals(now);
        let rate = |part: u64| if calls == 0 { 0.0 } else { part as f64 / calls as f64 };
        let state = match &self.expected {
            Expected::Closed => State::Closed,
            Expected::Open { probe_at } => State::Open { probe_at: *probe_at },
            Expected::HalfOpen { under_way, answered, .. } => State::HalfOpen {
                under_way: under_way.iter().filter(|(_, lost_at)| *lost_at > now).count() as u32,
                answered: *answered,
            },
            Expected::Forced(forced) => State::Forced(*forced),
        };
        let probe_in = match state {
            State::Open { probe_at } => Some(probe_at.saturating_since(now)),
            _ => None,
        };
        BreakerSnapshot {
            state,
            since: self.since,
            reason: (!self.passes()).then_some(self.reason),
            calls,
            failures,
            slow,
            failure_rate: rate(failures),
            slow_rate: rate(slow),
            causes: self.causes(),
            probe_in,
            transitions: self.transitions,
            refused: self.refused,
        }
    }

    /// The last runs of equal causes.
    fn causes(&self) -> Vec<CauseNote> {
        let runs = self.notes.chunk_by(|(left, ..), (right, ..)| left == right);
        let mut causes: Vec<CauseNote> = runs
            .map(|run| CauseNote {
                cause: run[0].0,
                first: run[0].1,
                last: run[run.len() - 1].1,
                count: run.iter().map(|(.., count)| count).sum(),
            })
            .collect();
        causes.drain(..causes.len().saturating_sub(CAUSES_KEPT_MAX));
        causes
    }
}

// === helpers ===

fn below(random: &mut Jitter, bound: u64) -> u64 {
    random.next_bits() % bound
}

fn draw_settings(random: &mut Jitter) -> BreakerSettings {
    let rates = [0.0, 0.1, 0.5, 0.9, 1.0];
    let open_min = Duration::from_millis(1 + below(random, 1_000));
    BreakerSettings {
        window: Duration::from_millis(10 + below(random, 20_000)),
        calls_min: 1 + below(random, 20) as u32,
        failure_rate_max: rates[below(random, 5) as usize],
        slow: Duration::from_millis(1 + below(random, 1_000)),
        slow_rate_max: rates[below(random, 5) as usize],
        open_min,
        open_max: open_min + Duration::from_millis(below(random, 60_000)),
        stable_min: Duration::from_millis(below(random, 10_000)),
        probes_max: 1 + below(random, 5) as u32,
        probe_wait_max: Duration::from_millis(1 + below(random, 5_000)),
    }
}
