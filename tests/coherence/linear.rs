//! One Larder, many clients, all ways to read and write: every key is linearizable.

use std::time::Instant;

use crate::history::{Call, History, Op};
use crate::support::{Client, Kind, Larder, Rng, Value, encode};
use crate::{Scene, assert_not_before, number, on_both_servers};

const CLIENTS: usize = 8;
/// Operations of one client in one round: enough to meet every race, few enough to be checked at once.
const OPERATIONS_MAX: usize = 4000;
const KEYS: u64 = 4;
/// How long one round lasts at most; each has keys of its own.
const ROUND_SECONDS_MAX: u64 = 2;

/// A client whose operations are recorded.
struct Recorder {
    client: Client,
    id: usize,
    /// What stands before the key in the history: another database holds another key.
    database: u64,
    protocol: u8,
    user: Option<&'static str>,
    /// Written values are unique: this counts them.
    written: i64,
    began: Instant,
    history: History,
}

/// Who the clients are. Several users of one database have links of their own, and join no flights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Users {
    One,
    Several,
}

on_both_servers! {
    // Item 1.
    all_clients_of_one_user_see_one_history_of_each_key: |kind| {
        one_history_of_each_key(Scene::start("linear, one user", kind, &[]), Users::One);
    },
    all_clients_of_several_users_see_one_history_of_each_key: |kind| {
        one_history_of_each_key(Scene::start("linear, several users", kind, &[]), Users::Several);
    },
    where_fills_opt_in_clients_of_one_user_see_one_history: |kind| {
        one_history_of_each_key(Scene::choosy("linear, choosy, one user", kind), Users::One);
    },
    where_fills_opt_in_clients_of_several_users_see_one_history: |kind| {
        one_history_of_each_key(Scene::choosy("linear, choosy, several users", kind), Users::Several);
    },
    an_mget_is_never_torn: mget_is_never_torn,
    // Item 2.
    an_optimistic_lock_loses_none: an_optimistic_lock_loses_no_update,
}

fn one_history_of_each_key(mut scene: Scene, users: Users) {
    let (mut rounds, mut operations) = (0, 0);
    while scene.goes_on() {
        let history = round(&mut scene, rounds, users);
        operations += history.len();
        rounds += 1;
        if let Err(e) = history.check() {
            panic!("round {rounds}: {e}");
        }
    }
    println!("linear, {}, {users:?}: {operations} operations in {rounds} rounds", scene.run);
}

/// Eight clients at once, for a while or until all are done.
pub(crate) fn round(scene: &mut Scene, round: u64, users: Users) -> History {
    let began = Instant::now();
    if users == Users::Several {
        let mut direct = scene.upstream.client();
        for user in ["alice", "bob"] {
            direct.ok(&["ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all"]);
        }
    }
    let recorders: Vec<(Recorder, Rng)> =
        (0..CLIENTS).map(|id| (recorder(scene, id, began, users), scene.rng.fork())).collect();
    let mut all = History::default();
    std::thread::scope(|scope| {
        let running: Vec<_> = recorders
            .into_iter()
            .map(|(mut recorder, mut rng)| {
                scope.spawn(move || {
                    for _ in 0..OPERATIONS_MAX {
                        if began.elapsed().as_secs() >= ROUND_SECONDS_MAX {
                            break;
                        }
                        recorder.act(&mut rng, round);
                    }
                    recorder.history
                })
            })
            .collect();
        for thread in running {
            all.merge(thread.join().expect("a client's thread"));
        }
    });
    all
}

/// Clients of both protocols, of one or three users, and one of another database.
fn recorder(scene: &Scene, id: usize, began: Instant, users: Users) -> Recorder {
    let protocol = if id.is_multiple_of(2) { 2 } else { 3 };
    let mut client = Client::speaking(protocol, scene.larder.address());
    let user = match id {
        _ if users == Users::One => None,
        4 | 5 => Some("alice"),
        6 => Some("bob"),
        _ => Some("default"),
    };
    if let Some(user) = user {
        client.ok(&["AUTH", user, "pw"]);
    }
    let database = u64::from(id == 7);
    client.ok(&["SELECT", &database.to_string()]);
    Recorder { client, id, database, protocol, user, written: 0, began, history: History::default() }
}

// === impl Recorder ===

impl Recorder {
    fn act(&mut self, rng: &mut Rng, round: u64) {
        let key = |rng: &mut Rng| format!("r{round}:k{}", rng.below(KEYS));
        let number = |rng: &mut Rng| format!("r{round}:n{}", rng.below(2));
        let (one, two) = (key(rng), key(rng));
        if rng.one_in(400) {
            return self.flush(round);
        }
        match rng.below(20) {
            0..=7 => self.get(&one),
            8 | 9 => self.set(&one),
            10 => self.delete(&one),
            11 => self.increment(&number(rng)),
            12 => self.get(&number(rng)),
            13 => self.mget(&one, &two),
            14 => self.mset(&one, &two),
            15 => self.transaction(&one, &two),
            16 => self.script(&one),
            17 => self.set_in_another_database(&one),
            18 => self.fickle_pipeline(rng, &one, &two),
            _ => self.pipeline(rng, &one, &two),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("less than 500 years")
    }

    fn fresh(&mut self) -> i64 {
        self.written += 1;
        i64::try_from(self.id).expect("a small number") * 1_000_000_000 + 1_000_000_000 + self.written
    }

    fn note(&mut self, key: &str, op: Op, called: u64) {
        self.note_in(self.database, key, op, called);
    }

    fn note_in(&mut self, database: u64, key: &str, op: Op, called: u64) {
        let returned = Some(self.now());
        self.history.record(&format!("{database}/{key}"), Call { client: self.id, op, called, returned });
    }

    fn get(&mut self, key: &str) {
        let called = self.now();
        let seen = self.client.value(&["GET", key]).int_or_null();
        self.note(key, Op::Read(seen), called);
    }

    fn set(&mut self, key: &str) {
        let value = self.fresh();
        let called = self.now();
        self.client.ok(&["SET", key, &value.to_string()]);
        self.note(key, Op::Write(value), called);
    }

    fn delete(&mut self, key: &str) {
        let called = self.now();
        let existed = self.client.value(&["DEL", key]).int() == 1;
        self.note(key, Op::Delete(Some(existed)), called);
    }

    /// FLUSHDB deletes all keys of this database.
    fn flush(&mut self, round: u64) {
        let called = self.now();
        self.client.ok(&["FLUSHDB"]);
        let keys = (0..KEYS).map(|n| format!("r{round}:k{n}")).chain((0..2).map(|n| format!("r{round}:n{n}")));
        for key in keys {
            self.note(&key, Op::Delete(None), called);
        }
    }

    fn increment(&mut self, key: &str) {
        let called = self.now();
        let answer = self.client.value(&["INCR", key]).int();
        self.note(key, Op::Increment(Some(answer)), called);
    }

    fn mget(&mut self, one: &str, two: &str) {
        let called = self.now();
        let reply = self.client.value(&["MGET", one, two]);
        for (key, value) in [one, two].into_iter().zip(reply.items()) {
            self.note(key, Op::Read(value.int_or_null()), called);
        }
    }

    fn mset(&mut self, one: &str, two: &str) {
        let (first, second) = (self.fresh(), self.fresh());
        let called = self.now();
        self.client.ok(&["MSET", one, &first.to_string(), two, &second.to_string()]);
        if one != two {
            self.note(one, Op::Write(first), called);
        }
        self.note(two, Op::Write(second), called);
    }

    fn transaction(&mut self, one: &str, two: &str) {
        let value = self.fresh();
        self.client.ok(&["MULTI"]);
        self.client.cmd(&["SET", one, &value.to_string()]);
        self.client.cmd(&["GET", two]);
        let called = self.now();
        let reply = self.client.value(&["EXEC"]);
        self.note(one, Op::Write(value), called);
        self.note(two, Op::Read(reply.items()[1].int_or_null()), called);
    }

    /// The key is not declared: only what follows the script's reply can tell of it.
    fn script(&mut self, key: &str) {
        let value = self.fresh();
        let called = self.now();
        let script = format!("redis.call('set', '{key}', ARGV[1]); return redis.call('get', '{key}')");
        let seen = self.client.value(&["EVAL", &script, "0", &value.to_string()]);
        assert_eq!(seen.int(), value);
        self.note(key, Op::Write(value), called);
    }

    fn set_in_another_database(&mut self, key: &str) {
        let other = 1 - self.database;
        let value = self.fresh();
        let script = format!("redis.call('select', {other}); return redis.call('set', KEYS[1], ARGV[1])");
        let called = self.now();
        self.client.ok(&["EVAL", &script, "1", key, &value.to_string()]);
        self.note_in(other, key, Op::Write(value), called);
    }

    /// Reads and writes of two keys in one batch, the operations of each in its order.
    fn pipeline(&mut self, rng: &mut Rng, one: &str, two: &str) {
        let plan: Vec<Step<'_>> = (0..2 + rng.below(8))
            .map(|_| {
                let key = if rng.one_in(2) { one } else { two };
                match rng.below(6) {
                    0 | 1 => Step::Set(key, self.fresh()),
                    2 => Step::Mget([key, two]),
                    _ => Step::Get(key),
                }
            })
            .collect();
        let batch: Vec<u8> = plan.iter().flat_map(Step::encode).collect();
        let called = self.now();
        self.client.send_raw(&batch);
        for step in plan {
            let reply = Value::parse(&self.client.reply());
            match step {
                Step::Get(key) => self.note(key, Op::Read(reply.int_or_null()), called),
                Step::Set(key, value) => self.note(key, Op::Write(value), called),
                Step::Mget(keys) => {
                    for (key, value) in keys.into_iter().zip(reply.items()) {
                        self.note(key, Op::Read(value.int_or_null()), called);
                    }
                }
            }
        }
    }
}

/// One request of a pipeline.
enum Step<'a> {
    Get(&'a str),
    Set(&'a str, i64),
    Mget([&'a str; 2]),
}

/// Requests that belong together in a pipeline, among which the client changes what it is.
enum Fickle {
    /// `GET`, in this database.
    Get(u64, String),
    /// `SET`, in this database; its reply is not sent if `muted`.
    Set { database: u64, key: String, value: i64, muted: bool },
    /// `GETDEL`.
    Take(u64, String),
    /// `MULTI`, `SET`, `GET`, `EXEC`.
    Transaction { database: u64, set: String, value: i64, get: String },
    /// Something with a reply that tells of no key.
    Other(Vec<u8>),
}

// === impl Recorder (fickle) ===

impl Recorder {
    /// A pipeline in which the client changes its protocol, its user, its database, where its reads are answered from, and whether
    /// replies are sent; in the end it is what it was.
    fn fickle_pipeline(&mut self, rng: &mut Rng, one: &str, two: &str) {
        let mut database = self.database;
        let mut plan = Vec::new();
        for _ in 0..4 + rng.below(8) {
            let key = if rng.one_in(2) { one } else { two }.to_owned();
            let value = self.fresh();
            plan.push(match rng.below(16) {
                0..=5 => Fickle::Get(database, key),
                6 | 7 => Fickle::Set { database, key, value, muted: rng.one_in(2) },
                8 => Fickle::Take(database, key),
                9 => Fickle::Transaction { database, set: key, value, get: two.to_owned() },
                10 => Fickle::Other(encode(&["HELLO", *rng.pick(&["2", "3"])])),
                11 | 12 if !Larder::is_plain() => {
                    Fickle::Other(encode(&["CACHE", "READ", *rng.pick(&["STRICT", "BYPASS", "CACHED", "CACHED"])]))
                }
                13 => {
                    database = 1 - database;
                    Fickle::Other(encode(&["SELECT", &database.to_string()]))
                }
                14 if self.user.is_some() => Fickle::Other(encode(&["AUTH", *rng.pick(&["alice", "bob"]), "pw"])),
                15 if rng.one_in(3) => {
                    database = 0;
                    Fickle::Other(encode(&["RESET"]))
                }
                _ => Fickle::Get(database, key),
            });
        }
        plan.extend(self.user.map(|user| Fickle::Other(encode(&["AUTH", user, "pw"]))));
        plan.push(Fickle::Other(encode(&["HELLO", &self.protocol.to_string()])));
        plan.push(Fickle::Other(encode(&["SELECT", &self.database.to_string()])));
        if !Larder::is_plain() {
            plan.push(Fickle::Other(encode(&["CACHE", "READ", "CACHED"])));
        }
        let called = self.now();
        self.client.send_raw(&plan.iter().flat_map(Fickle::encode).collect::<Vec<u8>>());
        let mut done = Vec::new();
        for step in &plan {
            let replies = (0..step.replies()).map(|_| Value::parse(&self.client.reply())).collect::<Vec<_>>();
            done.extend(step.done(&replies));
        }
        // What was muted is known to be done when the last reply has come.
        for (database, key, op) in done {
            self.note_in(database, &key, op, called);
        }
    }
}

// === impl Fickle ===

impl Fickle {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Get(_, key) => encode(&["GET", key]),
            Self::Set { key, value, muted, .. } => {
                let skip = if *muted { encode(&["CLIENT", "REPLY", "SKIP"]) } else { Vec::new() };
                [skip, encode(&["SET", key, &value.to_string()])].concat()
            }
            Self::Take(_, key) => encode(&["GETDEL", key]),
            Self::Transaction { set, value, get, .. } => [
                encode(&["MULTI"]),
                encode(&["SET", set, &value.to_string()]),
                encode(&["GET", get]),
                encode(&["EXEC"]),
            ]
            .concat(),
            Self::Other(request) => request.clone(),
        }
    }

    fn replies(&self) -> usize {
        match self {
            Self::Set { muted: true, .. } => 0,
            Self::Transaction { .. } => 4,
            _ => 1,
        }
    }

    /// What it has done, by its replies.
    fn done(&self, replies: &[Value]) -> Vec<(u64, String, Op)> {
        match self {
            Self::Get(database, key) => vec![(*database, key.clone(), Op::Read(replies[0].int_or_null()))],
            Self::Set { database, key, value, .. } => vec![(*database, key.clone(), Op::Write(*value))],
            Self::Take(database, key) => {
                let there = replies[0].int_or_null();
                // Read and deleted at once: the one as the other in itself.
                vec![
                    (*database, key.clone(), Op::Read(there)),
                    (*database, key.clone(), Op::Delete(Some(there.is_some()))),
                ]
            }
            Self::Transaction { database, set, value, get } => {
                let read = replies[3].items()[1].int_or_null();
                vec![(*database, set.clone(), Op::Write(*value)), (*database, get.clone(), Op::Read(read))]
            }
            Self::Other(request) => {
                let refused = matches!(replies[0], Value::Error(_));
                assert!(!refused, "{}: {:?}", request.escape_ascii(), replies[0]);
                Vec::new()
            }
        }
    }
}

// === impl Step ===

impl Step<'_> {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Get(key) => encode(&["GET", key]),
            Self::Set(key, value) => encode(&["SET", key, &value.to_string()]),
            Self::Mget([one, two]) => encode(&["MGET", one, two]),
        }
    }
}

/// Both keys of a pair are always written together: an MGET that shows different values has mixed two states.
fn mget_is_never_torn(kind: Kind) {
    let mut scene = Scene::start("torn", kind, &[]);
    let (read, torn) = read_pairs_written_together(&mut scene);
    assert_eq!(torn, None, "after {read} pairs");
    println!("torn, {kind:?}: {read} pairs read");
}

/// Reads pairs until the scene's time is over: how many there were, and one that was never there, if there was one.
pub(crate) fn read_pairs_written_together(scene: &mut Scene) -> (u64, Option<String>) {
    let mut writers = [scene.larder.client(), scene.larder.client(), scene.upstream.client()];
    let mut rng = scene.rng.fork();
    let until = scene.until;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|n| {
                let (mut client, mut rng) = (Client::speaking(2 + n % 2, scene.larder.address()), rng.fork());
                scope.spawn(move || read_pairs(&mut client, &mut rng, until))
            })
            .collect();
        let mut n = 0;
        while Instant::now() < until {
            n += 1;
            write_pair(rng.pick(&[0, 1, 2, 3]), &mut writers[n % 3], n);
        }
        let results = readers.into_iter().map(|reader| reader.join().expect("a reader's thread"));
        results.fold((0, None), |(sum, first), (read, torn)| (sum + read, first.or(torn)))
    })
}

fn write_pair(how: &u8, writer: &mut Client, n: usize) {
    let text = n.to_string();
    match how {
        0 | 1 => writer.ok(&["MSET", "a", &text, "b", &text]),
        2 => {
            let batch = ["MULTI", &format!("SET a {n}"), &format!("SET b {n}"), "EXEC"].map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                encode(&words)
            });
            writer.pipeline(&batch.concat(), 4);
        }
        _ => {
            let script = "redis.call('set', 'a', ARGV[1]); return redis.call('set', 'b', ARGV[1])";
            writer.ok(&["EVAL", script, "0", &text]);
        }
    }
}

fn read_pairs(client: &mut Client, rng: &mut Rng, until: Instant) -> (u64, Option<String>) {
    let mut read = 0;
    while Instant::now() < until {
        // Now and then one of the two alone, so that one is cached and the other is not.
        match rng.below(4) {
            0 => drop(client.cmd(&["GET", "a"])),
            1 => drop(client.cmd(&["GET", "b"])),
            _ => {
                let reply = client.value(&["MGET", "a", "b"]);
                if reply.items()[0] != reply.items()[1] {
                    return (read, Some(format!("a pair that was never there: {reply:?}")));
                }
                read += 1;
            }
        }
    }
    (read, None)
}

/// Read, then write under WATCH: if an EXEC succeeds though its read was stale, the sum is wrong.
fn an_optimistic_lock_loses_no_update(kind: Kind) {
    let scene = Scene::start("lock", kind, &[]);
    let until = scene.until;
    let done: i64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..6)
            .map(|n| {
                // The last one works at the upstream directly.
                let address = if n == 5 { scene.upstream.address() } else { scene.larder.address() };
                let mut client = Client::speaking(2 + n % 2, address);
                scope.spawn(move || {
                    let mut done = 0;
                    while Instant::now() < until {
                        done += add_one(&mut client);
                        if n == 5 {
                            // Without the relay's delay it would win every time.
                            std::thread::sleep(crate::DELAY_MAX);
                        }
                    }
                    done
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker's thread")).sum()
    });
    println!("lock, {kind:?}: {done} updates");
    assert!(done > 0);
    assert_eq!(number(&mut scene.upstream.client(), "total"), done);
}

fn add_one(client: &mut Client) -> i64 {
    let before = number(client, "total");
    client.ok(&["WATCH", "total"]);
    let watched = number(client, "total");
    assert_not_before("the watched read", before, watched);
    client.ok(&["MULTI"]);
    client.cmd(&["SET", "total", &(watched + 1).to_string()]);
    i64::from(client.value(&["EXEC"]) != Value::Null)
}
