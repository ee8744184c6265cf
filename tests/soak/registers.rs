//! Clients of both protocols, two users and two databases read and write numbers in all ways; everything is recorded.

use std::time::{Duration, Instant};

use crate::faults::{Caller, Outcome};
use crate::history::{Call, History, Op};
use crate::support::{Rng, Value, encode};
use crate::{CLIENTS, Run};

/// Registers of one round and database, and counters.
const KEYS: u64 = 5;
const COUNTERS: u64 = 3;
/// Operations of one client in one round. A history's check takes time and memory by its length.
const OPERATIONS_MAX: u32 = 1500;

/// A client whose operations are recorded.
struct Recorder<'a> {
    caller: Caller<'a>,
    run: &'a Run,
    id: usize,
    round: u64,
    /// What stands before the key in the history: another database holds another key.
    database: u64,
    /// Written values are unique: this counts them.
    written: i64,
    history: History,
}

/// Runs all clients for one round, with keys of its own.
pub(crate) fn round(run: &Run, round: u64, rng: &mut Rng, lasts: Duration) -> History {
    let until = Instant::now() + lasts;
    let mut all = History::default();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|id| {
                let mut rng = rng.fork();
                scope.spawn(move || {
                    let mut recorder = Recorder::new(run, id, round);
                    for _ in 0..OPERATIONS_MAX {
                        if Instant::now() >= until {
                            break;
                        }
                        recorder.act(&mut rng);
                        std::thread::sleep(lasts / OPERATIONS_MAX);
                    }
                    recorder.history
                })
            })
            .collect();
        clients.into_iter().for_each(|client| all.merge(client.join().expect("a client's thread")));
    });
    all
}

// === impl Recorder ===

impl<'a> Recorder<'a> {
    fn new(run: &'a Run, id: usize, round: u64) -> Self {
        let database = u64::from(id % 5 == 4);
        let select = ["SELECT", "1"];
        let auth = ["AUTH", "alice", "pw"];
        let mut set_up: Vec<&[&str]> = Vec::new();
        if id % 5 == 2 {
            set_up.push(&auth);
        }
        if database == 1 {
            set_up.push(&select);
        }
        let protocol = if id.is_multiple_of(2) { 2 } else { 3 };
        let caller = Caller::new(run, protocol, &set_up);
        Self { caller, run, id, round, database, written: 0, history: History::default() }
    }

    fn act(&mut self, rng: &mut Rng) {
        let one = format!("r{}:k{}", self.round, rng.below(KEYS));
        let two = format!("r{}:k{}", self.round, rng.below(KEYS));
        let counter = format!("r{}:n{}", self.round, rng.below(COUNTERS));
        match rng.below(40) {
            0..=13 => self.read(&["GET", &one], &one),
            14..=18 => self.set(&one),
            19 => self.delete(&["DEL", &one], &one),
            20 => self.increment(&counter),
            21 => self.read(&["GET", &counter], &counter),
            22 | 23 => self.mget(&one, &two),
            24 => self.mset(&one, &two),
            25 | 26 => self.transaction(&one, &two),
            27 | 28 => self.script(&one),
            29 => self.read(&["EVAL", "return redis.call('get', KEYS[1])", "1", &one], &one),
            30 => self.read_in_mode(rng, &one),
            31 => self.invalidate(&one),
            32 => self.inspect(rng, &one),
            _ => self.pipeline(rng, &one, &two),
        }
    }

    fn fresh(&mut self) -> i64 {
        self.written += 1;
        let id = i64::try_from(self.id).expect("a small number") + 1;
        let round = i64::try_from(self.round).expect("a small number");
        id * 1_000_000_000_000 + round * 100_000 + self.written
    }

    fn note(&mut self, key: &str, op: Op, called: u64, returned: Option<u64>) {
        self.history.record(&format!("{}/{key}", self.database), Call { client: self.id, op, called, returned });
    }

    /// Records a write by what became of it.
    fn note_write(&mut self, key: &str, op: Op, called: u64, outcome: &Outcome) {
        let returned = match outcome {
            Outcome::Answered(_) => Some(self.run.now()),
            Outcome::Unknown => None,
            Outcome::Refused => return,
        };
        self.note(key, op, called, returned);
    }

    fn note_read(&mut self, key: &str, seen: &Value, called: u64) {
        let returned = Some(self.run.now());
        self.note(key, Op::Read(self.number(seen)), called, returned);
    }

    /// A number or a null; anything else is somebody else's answer.
    fn number(&self, value: &Value) -> Option<i64> {
        match value {
            Value::Null => None,
            Value::Int(n) => Some(*n),
            Value::Bulk(text) => match std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
                Some(n) => Some(n),
                None => self.wrong(value),
            },
            other => self.wrong(other),
        }
    }

    fn wrong(&self, value: &Value) -> Option<i64> {
        self.run.tally.note_wrong(format!("client {} has got {value:?} for a number", self.id));
        None
    }

    /// The reply must be `+OK`.
    fn expect_ok(&self, outcome: &Outcome) {
        if let Outcome::Answered(value) = outcome
            && *value != Value::Simple(b"OK".to_vec())
        {
            self.run.tally.note_wrong(format!("client {} has got {value:?} for OK", self.id));
        }
    }

    fn read(&mut self, request: &[&str], key: &str) {
        let called = self.run.now();
        if let Outcome::Answered(seen) = self.caller.ask(request) {
            self.note_read(key, &seen, called);
        }
    }

    fn set(&mut self, key: &str) {
        let value = self.fresh();
        let called = self.run.now();
        let outcome = self.caller.ask(&["SET", key, &value.to_string()]);
        self.expect_ok(&outcome);
        self.note_write(key, Op::Write(value), called, &outcome);
    }

    fn delete(&mut self, request: &[&str], key: &str) {
        let called = self.run.now();
        let outcome = self.caller.ask(request);
        let existed = if let Outcome::Answered(n) = &outcome { self.number(n).map(|n| n == 1) } else { None };
        self.note_write(key, Op::Delete(existed), called, &outcome);
    }

    fn increment(&mut self, key: &str) {
        let called = self.run.now();
        let outcome = self.caller.ask(&["INCR", key]);
        let answer = if let Outcome::Answered(n) = &outcome { self.number(n) } else { None };
        self.note_write(key, Op::Increment(answer), called, &outcome);
    }

    fn mget(&mut self, one: &str, two: &str) {
        let called = self.run.now();
        match self.caller.ask(&["MGET", one, two]) {
            Outcome::Answered(Value::Array(items)) if items.len() == 2 => {
                self.note_read(one, &items[0], called);
                self.note_read(two, &items[1], called);
            }
            Outcome::Answered(other) => drop(self.wrong(&other)),
            Outcome::Unknown | Outcome::Refused => {}
        }
    }

    fn mset(&mut self, one: &str, two: &str) {
        let (first, second) = (self.fresh(), self.fresh());
        let called = self.run.now();
        let outcome = self.caller.ask(&["MSET", one, &first.to_string(), two, &second.to_string()]);
        self.expect_ok(&outcome);
        if one != two {
            self.note_write(one, Op::Write(first), called, &outcome);
        }
        self.note_write(two, Op::Write(second), called, &outcome);
    }

    fn transaction(&mut self, one: &str, two: &str) {
        let value = self.fresh();
        let text = value.to_string();
        let requests: [&[&str]; 4] = [&["MULTI"], &["SET", one, &text], &["GET", two], &["EXEC"]];
        let batch: Vec<u8> = requests.iter().flat_map(|request| encode(request)).collect();
        let called = self.run.now();
        let outcomes = self.caller.ask_all(&batch, requests.len());
        match &outcomes[3] {
            Outcome::Answered(Value::Array(items)) if items.len() == 2 => {
                self.note_write(one, Op::Write(value), called, &outcomes[3]);
                if one == two {
                    if self.number(&items[1]) != Some(value) {
                        self.wrong(&items[1]);
                    }
                } else {
                    self.note_read(two, &items[1], called);
                }
            }
            // Where MULTI was refused, the commands behind it were executed one by one.
            Outcome::Answered(other) => drop(self.wrong(other)),
            outcome => {
                let alone = matches!(&outcomes[1], Outcome::Answered(v) if *v == Value::Simple(b"OK".to_vec()));
                let set = if alone { &outcomes[1] } else { outcome };
                let unknown = matches!(outcomes[1], Outcome::Unknown) || matches!(set, Outcome::Unknown);
                let set = if unknown { &Outcome::Unknown } else { set };
                self.note_write(one, Op::Write(value), called, set);
            }
        }
    }

    /// The key is not declared: only what follows the script's reply can tell of it.
    fn script(&mut self, key: &str) {
        let value = self.fresh();
        let script = format!("redis.call('set', '{key}', ARGV[1]); return redis.call('get', '{key}')");
        let called = self.run.now();
        let outcome = self.caller.ask(&["EVAL", &script, "0", &value.to_string()]);
        if let Outcome::Answered(seen) = &outcome
            && self.number(seen) != Some(value)
        {
            self.wrong(seen);
        }
        self.note_write(key, Op::Write(value), called, &outcome);
    }

    /// As `CACHE READ` says, and back to the mode that all begin with.
    fn read_in_mode(&mut self, rng: &mut Rng, key: &str) {
        let mode = *rng.pick(&["STRICT", "BYPASS"]);
        let set_mode = self.caller.ask(&["CACHE", "READ", mode]);
        self.expect_ok(&set_mode);
        self.read(&["GET", key], key);
        let outcome = self.caller.ask(&["CACHE", "READ", "CACHED"]);
        self.expect_ok(&outcome);
    }

    fn invalidate(&mut self, key: &str) {
        self.delete(&["CACHE", "INVALIDATE", "KEYS", "1", key], key);
    }

    /// Commands about the cache: they change nothing, and a fence changes nothing that anybody could tell.
    fn inspect(&mut self, rng: &mut Rng, key: &str) {
        let requests: [&[&str]; 5] = [
            &["CACHE", "FENCE"],
            &["CACHE", "ENTRY", key],
            &["CACHE", "STATS"],
            &["CACHE", "BREAKER"],
            &["CACHE", "INVALIDATE", "KEYS", "1", key, "LOCAL"],
        ];
        if let Outcome::Answered(_) = self.caller.ask(requests[rng.index(requests.len())]) {
            self.run.tally.note_verified("CACHE commands answered");
        }
    }

    /// Reads and writes of two keys in one batch, the operations of each in its order.
    fn pipeline(&mut self, rng: &mut Rng, one: &str, two: &str) {
        let plan: Vec<(&str, Option<i64>)> = (0..2 + rng.below(8))
            .map(|_| {
                let key = if rng.one_in(2) { one } else { two };
                (key, rng.one_in(3).then(|| self.fresh()))
            })
            .collect();
        let request = |(key, write): &(&str, Option<i64>)| match write {
            Some(value) => encode(&["SET", key, &value.to_string()]),
            None => encode(&["GET", key]),
        };
        let batch: Vec<u8> = plan.iter().flat_map(request).collect();
        let called = self.run.now();
        let outcomes = self.caller.ask_all(&batch, plan.len());
        for ((key, write), outcome) in plan.into_iter().zip(outcomes) {
            match (write, outcome) {
                (Some(value), outcome) => {
                    self.expect_ok(&outcome);
                    self.note_write(key, Op::Write(value), called, &outcome);
                }
                (None, Outcome::Answered(seen)) => self.note_read(key, &seen, called),
                (None, _) => {}
            }
        }
    }
}
