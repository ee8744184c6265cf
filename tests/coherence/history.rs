//! Recorded histories, and the search for an order that explains them.
//!
//! A history of one key is **linearizable** (Herlihy and Wing) if each operation can be given one moment between its
//! call and its return so that, in the order of these moments, the key behaves as one copy would. Keys are checked one by
//! one: linearizability is local, so the whole is linearizable if each key is. The check is the search of Wing and Gong
//! with Lowe's improvement: walk the calls in order, take any that the model allows before the earliest return, step
//! back where that leads nowhere, and never visit the same (set of operations taken, state) twice.
//!
//! Beyond linearizability the operations of one connection must take effect in the order in which it sent them; in a
//! pipeline their times overlap, so this is a rule of its own here.
//!
//! An operation whose outcome is not known (its reply was lost) may have taken effect at any time after its call, or never.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

/// How many steps of the search are taken before it gives up. A history that is linearizable needs few more than it
/// has operations; only a faulty one makes the search wide.
const STEPS_MAX: u64 = 20_000_000;
/// How many operations around the point of failure are shown.
const SHOWN_MAX: usize = 24;

/// What was done to one key, with what it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A read and what it saw; `None` is a missing key.
    Read(Option<i64>),
    Write(i64),
    /// DEL; whether the key was there, if the reply came.
    Delete(Option<bool>),
    /// INCR; the number that it answered, if the reply came.
    Increment(Option<i64>),
}

/// One operation in time. Times are of one monotonic clock, in any unit.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) client: usize,
    pub(crate) op: Op,
    pub(crate) called: u64,
    /// When the reply was there; `None` if it never came.
    pub(crate) returned: Option<u64>,
}

/// Operations of many keys, as one client or all of them have recorded them.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    keys: HashMap<String, Vec<Call>>,
}

impl History {
    pub(crate) fn record(&mut self, key: &str, call: Call) {
        match self.keys.get_mut(key) {
            Some(calls) => calls.push(call),
            None => drop(self.keys.insert(key.to_owned(), vec![call])),
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (key, calls) in other.keys {
            self.keys.entry(key).or_default().extend(calls);
        }
    }

    /// How many operations there are.
    pub(crate) fn len(&self) -> usize {
        self.keys.values().map(Vec::len).sum()
    }

    /// Checks every key; the error tells which one cannot be explained and where.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_with_losses(&[])
    }

    /// As [`History::check`], where between the two times of each of `losses` all keys have gone.
    pub(crate) fn check_with_losses(&self, losses: &[(u64, u64)]) -> Result<(), String> {
        for (key, calls) in &self.keys {
            let first = calls.iter().map(|call| call.called).min().unwrap_or_default();
            let mut calls = calls.clone();
            let relevant = losses.iter().filter(|(_, over)| *over >= first).enumerate();
            calls.extend(relevant.map(|(n, &(called, over))| Call {
                client: usize::MAX - n,
                op: Op::Delete(None),
                called,
                returned: Some(over),
            }));
            check_key(&calls, None).map_err(|e| format!("key {key}: {e}"))?;
        }
        Ok(())
    }
}

/// Checks the history of one key that began in the state `initial`.
pub(crate) fn check_key(calls: &[Call], initial: Option<i64>) -> Result<(), String> {
    let found = Search::new(relevant(calls, Unseen::LeftOut), initial).run();
    // Who deletes tells that a value was there, without telling which.
    let deleted = calls.iter().any(|call| call.op == Op::Delete(Some(true)));
    if found.is_err() && deleted { Search::new(relevant(calls, Unseen::Kept), initial).run() } else { found }
}

/// What becomes of writes of unknown outcome whose value nobody saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unseen {
    /// They make the search wide, and seldom explain anything.
    LeftOut,
    Kept,
}

/// Leaves out what cannot explain anything: reads of unknown outcome and, unless values are seen otherwise than by being
/// read, writes of unknown outcome whose value nobody saw.
fn relevant(calls: &[Call], unseen_writes: Unseen) -> Vec<Call> {
    let seen: HashSet<i64> =
        calls.iter().filter_map(|call| if let Op::Read(Some(value)) = call.op { Some(value) } else { None }).collect();
    let unseen = |call: &Call| call.returned.is_none() && matches!(call.op, Op::Write(value) if !seen.contains(&value));
    let keeps_all = unseen_writes == Unseen::Kept || calls.iter().any(|call| matches!(call.op, Op::Increment(_)));
    let mut kept: Vec<Call> = calls.iter().filter(|call| keeps_all || !unseen(call)).cloned().collect();
    kept.retain(|call| !(call.returned.is_none() && matches!(call.op, Op::Read(_))));
    kept.sort_by_key(|call| call.called);
    kept
}

/// The state after `op` in `state`, if the op could have answered so.
fn step(state: Option<i64>, op: &Op) -> Option<Option<i64>> {
    match op {
        Op::Read(seen) => (*seen == state).then_some(state),
        Op::Write(value) => Some(Some(*value)),
        Op::Delete(None) => Some(None),
        Op::Delete(Some(existed)) => (*existed == state.is_some()).then_some(None),
        Op::Increment(answer) => {
            let next = state.unwrap_or(0) + 1;
            answer.is_none_or(|answer| answer == next).then_some(Some(next))
        }
    }
}

/// An entry of the list of events, which is linked both ways so that taking an operation out and putting it back is cheap.
#[derive(Clone, Copy, Debug)]
struct Event {
    call: usize,
    kind: EventKind,
    before: usize,
    after: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EventKind {
    /// At equal times calls come before returns: what may overlap is taken to overlap.
    Call,
    Return,
}

struct Search {
    calls: Vec<Call>,
    /// For each call, the one before it by the same client.
    predecessors: Vec<Option<usize>>,
    /// Entry 0 is the list's head and its end.
    events: Vec<Event>,
    call_events: Vec<usize>,
    return_events: Vec<Option<usize>>,
    taken: Bits,
    state: Option<i64>,
    known_left: usize,
}

impl Search {
    fn new(calls: Vec<Call>, initial: Option<i64>) -> Self {
        let mut last: HashMap<usize, usize> = HashMap::new();
        let predecessors = calls.iter().enumerate().map(|(n, call)| last.insert(call.client, n)).collect();
        let mut order: Vec<(u64, EventKind, usize)> = Vec::with_capacity(2 * calls.len());
        for (n, call) in calls.iter().enumerate() {
            order.push((call.called, EventKind::Call, n));
            order.extend(call.returned.map(|returned| (returned, EventKind::Return, n)));
        }
        order.sort_unstable();
        let entries = order.len() + 1;
        let head = Event { call: usize::MAX, kind: EventKind::Return, before: entries - 1, after: 1 % entries };
        let mut events = vec![head];
        let mut call_events = vec![0; calls.len()];
        let mut return_events = vec![None; calls.len()];
        for (n, (_, kind, call)) in order.into_iter().enumerate() {
            match kind {
                EventKind::Call => call_events[call] = n + 1,
                EventKind::Return => return_events[call] = Some(n + 1),
            }
            events.push(Event { call, kind, before: n, after: (n + 2) % entries });
        }
        let known_left = return_events.iter().flatten().count();
        let taken = Bits::new(calls.len());
        Self { calls, predecessors, events, call_events, return_events, taken, state: initial, known_left }
    }

    fn run(&mut self) -> Result<(), String> {
        let mut visited = HashSet::new();
        let mut path: Vec<(usize, Option<i64>)> = Vec::new();
        let mut deepest = (0, 0);
        let mut at = self.events[0].after;
        for _ in 0..STEPS_MAX {
            if self.known_left == 0 {
                return Ok(());
            }
            let event = self.events[at];
            if at != 0 && event.kind == EventKind::Call {
                if let Some(next) = self.try_take(event.call, &mut visited) {
                    path.push((event.call, self.state));
                    self.state = next;
                    self.lift(event.call);
                    at = self.events[0].after;
                } else {
                    at = event.after;
                }
                continue;
            }
            // The operation that returns here has not been taken, and nothing after its return may come before it.
            if path.len() >= deepest.0 {
                deepest = (path.len(), event.call);
            }
            let Some((call, state)) = path.pop() else {
                return Err(self.explain(deepest.1));
            };
            self.state = state;
            self.unlift(call);
            at = self.events[self.call_events[call]].after;
        }
        Err(format!("undecided after {STEPS_MAX} steps; {}", self.explain(deepest.1)))
    }

    /// The state after `call`, if it may come next and this has not been tried before.
    fn try_take(&mut self, call: usize, visited: &mut HashSet<(Vec<u64>, Option<i64>)>) -> Option<Option<i64>> {
        let in_order = self.predecessors[call]
            .is_none_or(|earlier| self.taken.contains(earlier) || self.calls[earlier].returned.is_none());
        if !in_order {
            return None;
        }
        let next = step(self.state, &self.calls[call].op)?;
        self.taken.insert(call);
        let new = visited.insert((self.taken.key(), next));
        self.taken.remove(call);
        new.then_some(next)
    }

    fn lift(&mut self, call: usize) {
        self.taken.insert(call);
        self.unlink(self.call_events[call]);
        if let Some(at) = self.return_events[call] {
            self.unlink(at);
            self.known_left -= 1;
        }
    }

    fn unlift(&mut self, call: usize) {
        self.taken.remove(call);
        if let Some(at) = self.return_events[call] {
            self.relink(at);
            self.known_left += 1;
        }
        self.relink(self.call_events[call]);
    }

    fn unlink(&mut self, at: usize) {
        let Event { before, after, .. } = self.events[at];
        self.events[before].after = after;
        self.events[after].before = before;
    }

    fn relink(&mut self, at: usize) {
        let Event { before, after, .. } = self.events[at];
        self.events[before].after = at;
        self.events[after].before = at;
    }

    fn explain(&self, stuck: usize) -> String {
        let mut text = format!("not linearizable: no order explains {:?}; around it:\n", self.calls[stuck]);
        let first = stuck.saturating_sub(SHOWN_MAX * 2 / 3);
        for call in self.calls.iter().skip(first).take(SHOWN_MAX) {
            let returned = call.returned.map_or("never".to_owned(), |at| at.to_string());
            // Writing to a string does not fail.
            let _ = writeln!(text, "  client {:2} {:>12}..{returned:>12} {:?}", call.client, call.called, call.op);
        }
        text
    }
}

/// A set of small numbers.
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    fn insert(&mut self, n: usize) {
        self.0[n / 64] |= 1 << (n % 64);
    }

    fn remove(&mut self, n: usize) {
        self.0[n / 64] &= !(1 << (n % 64));
    }

    fn contains(&self, n: usize) -> bool {
        self.0[n / 64] & (1 << (n % 64)) != 0
    }

    /// The set in little space: nearly all numbers below some point are in it, and none above another.
    fn key(&self) -> Vec<u64> {
        let full = self.0.iter().take_while(|&&word| word == u64::MAX).count();
        let end = self.0.iter().rposition(|&word| word != 0).map_or(full, |last| last + 1);
        let mut key = vec![full as u64];
        key.extend_from_slice(&self.0[full..end.max(full)]);
        key
    }
}

#[cfg(test)]
mod tests {
    use super::{Call, History, Op, check_key};
    use crate::support::Rng;

    fn call(client: usize, op: Op, called: u64, returned: u64) -> Call {
        Call { client, op, called, returned: Some(returned) }
    }

    fn lost(client: usize, op: Op, called: u64) -> Call {
        Call { client, op, called, returned: None }
    }

    fn holds(calls: &[Call]) -> bool {
        check_key(calls, None).is_ok()
    }

    #[test]
    fn one_after_the_other() {
        assert!(holds(&[]));
        assert!(holds(&[call(0, Op::Write(1), 0, 1), call(0, Op::Read(Some(1)), 2, 3)]));
        assert!(holds(&[call(0, Op::Read(None), 0, 1), call(0, Op::Increment(Some(1)), 2, 3)]));
        assert!(!holds(&[call(0, Op::Read(Some(1)), 0, 1)]), "a value that nobody wrote");
    }

    #[test]
    fn a_stale_read_is_caught() {
        let old = [call(0, Op::Write(1), 0, 1), call(0, Op::Write(2), 2, 3), call(1, Op::Read(Some(1)), 4, 5)];
        assert!(!holds(&old));
        let nil = [call(0, Op::Read(None), 0, 1), call(0, Op::Write(1), 2, 3), call(1, Op::Read(None), 4, 5)];
        assert!(!holds(&nil));
        let deleted =
            [call(0, Op::Write(1), 0, 1), call(0, Op::Delete(Some(true)), 2, 3), call(1, Op::Read(Some(1)), 4, 5)];
        assert!(!holds(&deleted));
    }

    #[test]
    fn overlapping_operations_may_come_in_either_order() {
        let write = call(0, Op::Write(1), 0, 10);
        assert!(holds(&[write.clone(), call(1, Op::Read(None), 1, 2), call(1, Op::Read(Some(1)), 3, 4)]));
        assert!(!holds(&[write, call(1, Op::Read(Some(1)), 1, 2), call(2, Op::Read(None), 3, 4)]), "unseen again");
    }

    #[test]
    fn a_lost_update_is_caught() {
        let twice = [call(0, Op::Increment(Some(1)), 0, 5), call(1, Op::Increment(Some(1)), 1, 6)];
        assert!(!holds(&twice));
    }

    #[test]
    fn a_connections_own_order_counts_within_a_pipeline() {
        let (write, read) = (Op::Write(1), Op::Read(None));
        assert!(!holds(&[call(0, write.clone(), 0, 9), call(0, read.clone(), 0, 9)]), "its own write unseen");
        assert!(holds(&[call(0, write, 0, 9), call(1, read, 0, 9)]));
    }

    #[test]
    fn an_unknown_outcome_may_be_either_but_not_both() {
        let write = lost(0, Op::Write(1), 0);
        assert!(holds(&[write.clone(), call(1, Op::Read(None), 1, 2), call(1, Op::Read(Some(1)), 3, 4)]));
        assert!(holds(&[write.clone(), call(1, Op::Read(None), 1, 2)]));
        let back = [write, call(1, Op::Read(Some(1)), 1, 2), call(1, Op::Read(None), 3, 4)];
        assert!(!holds(&back));
        assert!(!holds(&[call(1, Op::Read(Some(1)), 0, 1), lost(0, Op::Write(1), 2)]), "read before it was written");
    }

    #[test]
    fn who_deletes_has_seen_what_a_lost_write_wrote() {
        let (write, none) = (lost(0, Op::Write(1), 0), call(1, Op::Read(None), 1, 2));
        let deleted = call(1, Op::Delete(Some(true)), 3, 4);
        assert!(holds(&[write.clone(), none.clone(), deleted.clone()]));
        assert!(!holds(&[none.clone(), deleted.clone()]), "nobody wrote");
        assert!(!holds(&[none.clone(), deleted.clone(), lost(0, Op::Write(1), 5)]), "too late");
        let twice = [write, none, deleted, call(2, Op::Delete(Some(true)), 5, 6)];
        assert!(!holds(&twice), "written twice");
    }

    #[test]
    fn what_the_server_has_lost_is_gone_for_all() {
        let mut history = History::default();
        history.record("k", call(0, Op::Write(1), 0, 1));
        history.record("k", call(1, Op::Read(None), 6, 7));
        assert!(history.check().is_err());
        assert!(history.check_with_losses(&[(2, 5)]).is_ok());
        assert!(history.check_with_losses(&[(8, 9)]).is_err(), "lost too late to explain it");
        history.record("k", call(1, Op::Read(Some(1)), 8, 9));
        assert!(history.check_with_losses(&[(2, 5)]).is_err(), "there again");
    }

    /// Histories made by a true register pass; the same with one read turned stale do not.
    #[test]
    fn generated_histories_pass_and_planted_violations_do_not() {
        let mut rng = Rng::new(4);
        for _ in 0..200 {
            let mut calls = register_history(&mut rng, 400);
            check_key(&calls, None).expect("a history made by a register");
            if plant_stale_read(&mut rng, &mut calls) {
                assert!(check_key(&calls, None).is_err(), "the planted stale read was not found");
            }
        }
    }

    /// Six clients whose operations take effect at a moment between call and return.
    fn register_history(rng: &mut Rng, len: usize) -> Vec<Call> {
        let mut free_at = [0_u64; 6];
        let mut moment = 0;
        let mut state = None;
        let mut calls = Vec::new();
        for n in 0..len {
            moment += 1 + rng.below(4);
            let client = rng.index(free_at.len());
            if free_at[client] >= moment {
                continue;
            }
            let called = moment - rng.below(moment - free_at[client]).min(10);
            let returned = moment + rng.below(10);
            free_at[client] = returned + 1;
            let op = match rng.below(8) {
                0 | 1 => {
                    state = Some(1_000_000 + n as i64);
                    Op::Write(1_000_000 + n as i64)
                }
                2 => Op::Delete(Some(state.take().is_some())),
                3 => {
                    state = Some(state.unwrap_or(0) + 1);
                    Op::Increment(state)
                }
                _ => Op::Read(state),
            };
            calls.push(call(client, op, called, returned));
        }
        calls
    }

    /// Makes one late read see a value that had been overwritten, for all to know, long before.
    fn plant_stale_read(rng: &mut Rng, calls: &mut [Call]) -> bool {
        let first = calls.len() / 2 + rng.index(calls.len() / 4);
        let Some(at) = (first..calls.len()).find(|&n| matches!(calls[n].op, Op::Read(Some(_)))) else { return false };
        let Some(Op::Write(old)) =
            calls[..first / 2].iter().map(|c| c.op.clone()).find(|op| matches!(op, Op::Write(_)))
        else {
            return false;
        };
        if calls[at].op == Op::Read(Some(old)) {
            return false;
        }
        calls[at].op = Op::Read(Some(old));
        true
    }
}
