//! The same generated commands directly at one server and through Larder at an equal one: the replies are the same bytes.
//!
//! The stream holds every family of commands with valid, invalid and odd arguments, on connections of both protocols that
//! live side by side, pipelined and not, in transactions and out. What no two servers agree on is named in [`compare`],
//! each with its reason. Both servers must hold the same data at every check and in the end.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod compare;

use std::collections::BTreeMap;
use std::time::Instant;

use compare::{Rule, rule, same};
use support::{Client, Kind, Larder, Rng, Server, Value, encode, run_seconds, seed, show, show_both};

type Command = Vec<Vec<u8>>;

/// How many batches a run with the fixed seed has.
const BATCHES_FIXED: u64 = 1500;
const FIXED_SEED: u64 = 20_240_607;
const BATCH_COMMANDS_MAX: u64 = 40;
/// How many of the last commands a failure shows.
const SHOWN_MAX: usize = 30;

/// What the lexicographical commands do with members of different scores is not specified. In a skip list it hangs on the
/// levels, which are random; in a listpack it does not.
const NO_SKIP_LISTS: &[&str] = &["--zset-max-listpack-entries", "1000000", "--zset-max-listpack-value", "1000000"];

struct Run {
    seed: u64,
    batch: u64,
    commands: u64,
    _upstream: Server,
    direct: Server,
    larder: Larder,
    /// Connections in pairs: directly, through Larder.
    pairs: Vec<(Client, Client)>,
    /// A direct connection to each server, to compare their data.
    observers: (Client, Client),
    log: Vec<String>,
    names: BTreeMap<String, u64>,
}

impl Run {
    fn start(kind: Kind, seed: u64) -> Self {
        let (upstream, direct) = (Server::start(kind, NO_SKIP_LISTS), Server::start(kind, NO_SKIP_LISTS));
        let larder = Larder::start(Some(&upstream), &[]);
        let observers = (direct.client(), upstream.client());
        let mut run = Self {
            seed,
            batch: 0,
            commands: 0,
            _upstream: upstream,
            direct,
            larder,
            pairs: Vec::new(),
            observers,
            log: Vec::new(),
            names: BTreeMap::new(),
        };
        run.pairs = [2, 2, 3, 3].map(|protocol| run.connect(protocol)).into();
        run
    }

    fn connect(&self, protocol: u8) -> (Client, Client) {
        (Client::speaking(protocol, self.direct.address()), Client::speaking(protocol, self.larder.address()))
    }

    /// Sends a batch on one pair of connections and compares all replies.
    fn compare(&mut self, pair: usize, batch: &[Command]) {
        let batch: Vec<Command> = batch.iter().filter(|command| !differs_by_nature(command)).cloned().collect();
        let batch = &batch[..];
        self.batch += 1;
        let bytes: Vec<u8> = batch.iter().flat_map(|command| encode(command)).collect();
        for command in batch {
            self.note(pair, command);
        }
        let direct = self.pairs[pair].0.try_pipeline(&bytes, batch.len());
        let through = self.pairs[pair].1.try_pipeline(&bytes, batch.len());
        let (direct, through) = match (direct, through) {
            (Ok(direct), Ok(through)) => (direct, through),
            // A command that waits (for a pause, for a key) has made both wait for too long alike.
            (Err(_), Err(_)) => {
                self.pairs[pair] = self.connect(if pair < 2 { 2 } else { 3 });
                return;
            }
            (direct, through) => {
                let text =
                    |end: std::io::Result<Vec<Vec<u8>>>| end.map_or_else(|e| e.to_string(), |_| "all replies".into());
                self.fail("a whole batch", &text(direct), &text(through));
            }
        };
        for (n, command) in batch.iter().enumerate() {
            if !same(rule(command), &direct[n], &through[n]) {
                let what = format!("{} (number {} of {} in its batch)", text(command), n + 1, batch.len());
                let (direct, through) = show_both(&direct[n], &through[n]);
                self.fail(&what, &direct, &through);
            }
        }
        self.compare_data();
    }

    fn note(&mut self, pair: usize, command: &Command) {
        self.commands += 1;
        *self.names.entry(String::from_utf8_lossy(&command[0]).to_uppercase()).or_default() += 1;
        if self.log.len() > 2 * SHOWN_MAX + BATCH_COMMANDS_MAX as usize {
            self.log.drain(..SHOWN_MAX);
        }
        self.log.push(format!("{pair}> {}", text(command)));
    }

    /// Both servers hold the same data.
    fn compare_data(&mut self) {
        let (direct, through) = &mut self.observers;
        if direct.run("DEBUG DIGEST") != through.run("DEBUG DIGEST") {
            let (direct, through) = (differing(direct, through), differing(through, direct));
            self.fail("the data", &direct, &through);
        }
    }

    #[track_caller]
    fn fail(&self, what: &str, direct: &str, through: &str) -> ! {
        let first = self.log.len().saturating_sub(SHOWN_MAX + BATCH_COMMANDS_MAX as usize);
        panic!(
            "batch {}: {what}\n  direct:  {direct}\n  through: {through}\nreplay with LARDER_TEST_SEED={}; the last commands:\n{}",
            self.batch,
            self.seed,
            self.log[first..].join("\n")
        );
    }

    fn report(&self, name: &str) {
        println!("{name}: {} commands of {} names, {} batches", self.commands, self.names.len(), self.batch);
    }
}

/// The keys of `one` that the other does not have or has with another value.
fn differing(one: &mut Client, other: &mut Client) -> String {
    let mut found = Vec::new();
    for db in ["0", "1", "2"] {
        one.ok(&["SELECT", db]);
        other.ok(&["SELECT", db]);
        for key in one.value(&["KEYS", "*"]).items() {
            let digest: [&[u8]; 3] = [b"DEBUG", b"DIGEST-VALUE", key.bytes()];
            let ttl: [&[u8]; 2] = [b"TTL", key.bytes()];
            if one.cmd(&digest) != other.cmd(&digest) || one.cmd(&ttl) != other.cmd(&ttl) {
                let kind = one.value(&[b"TYPE".as_slice(), key.bytes()]).text();
                found.push(format!("{kind} {} of database {db}", show(key.bytes())));
            }
        }
    }
    found.join(", ")
}

/// A batch of one command or many; a transaction in one piece now and then.
fn batch(rng: &mut Rng) -> Vec<Command> {
    let len = if rng.one_in(2) { 1 } else { 2 + rng.below(BATCH_COMMANDS_MAX - 2) };
    let mut batch = Vec::new();
    while (batch.len() as u64) < len {
        if rng.one_in(20) {
            transaction(rng, &mut batch);
        } else {
            push(commands::command(rng), &mut batch);
        }
    }
    if rng.one_in(60) {
        batch.push(words(if rng.one_in(2) { "FLUSHALL" } else { "FLUSHDB" }));
    }
    batch
}

fn push(command: Command, batch: &mut Vec<Command>) {
    let undo = undo(&command);
    batch.push(command);
    batch.extend(undo);
}

/// What takes chance out of the data again: SPOP takes another member at each server.
fn undo(command: &Command) -> Option<Command> {
    let name = command[0].to_ascii_uppercase();
    (name == b"SPOP" && command.len() > 1).then(|| vec![b"DEL".to_vec(), command[1].clone()])
}

/// MULTI, some commands whose replies can be compared to the byte, and EXEC.
fn transaction(rng: &mut Rng, batch: &mut Vec<Command>) {
    if rng.one_in(3) {
        batch.push(commands::expand(rng, "WATCH {k} {k}"));
    }
    batch.push(words("MULTI"));
    let len = rng.below(6);
    for _ in 0..len {
        let command = commands::command(rng);
        if rule(&command) == Rule::Exact && undo(&command).is_none() {
            batch.push(command);
        }
    }
    batch.push(words(if rng.one_in(6) { "DISCARD" } else { "EXEC" }));
}

fn words(line: &str) -> Command {
    line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

fn text(command: &Command) -> String {
    let words: Vec<String> = command.iter().map(|arg| show(arg)).collect();
    words.join(" ")
}

fn fixed(kind: Kind) {
    let mut run = Run::start(kind, seed("differential, fixed", Some(FIXED_SEED)));
    let mut rng = Rng::new(run.seed);
    for _ in 0..BATCHES_FIXED {
        let pair = rng.index(run.pairs.len());
        run.compare(pair, &batch(&mut rng));
    }
    run.compare_data();
    run.report("differential, fixed");
}

fn random(kind: Kind) {
    let mut run = Run::start(kind, seed("differential, random", None));
    let mut rng = Rng::new(run.seed);
    let until = Instant::now() + run_seconds(5);
    while Instant::now() < until {
        let pair = rng.index(run.pairs.len());
        // Now and then a connection ends, whatever it was in the middle of, and another takes its place.
        if rng.one_in(40) {
            run.pairs[pair] = run.connect(if rng.one_in(2) { 2 } else { 3 });
        }
        run.compare(pair, &batch(&mut rng));
    }
    run.compare_data();
    run.report("differential, random");
}

#[test]
fn the_fixed_stream_answers_alike_at_redis() {
    fixed(Kind::Redis);
}

#[test]
fn the_fixed_stream_answers_alike_at_valkey() {
    fixed(Kind::Valkey);
}

#[test]
fn a_random_stream_answers_alike_at_redis() {
    random(Kind::Redis);
}

#[test]
fn a_random_stream_answers_alike_at_valkey() {
    random(Kind::Valkey);
}

/// Commands and subcommands that the sweep leaves out, and why.
const NOT_SWEPT: &[(&str, &str)] = &[
    ("shutdown", "ends the server, and is denied by Larder"),
    ("debug", "may end or stop the server"),
    ("replicaof", "refused by Larder"),
    ("slaveof", "refused by Larder"),
    ("sync", "refused by Larder"),
    ("psync", "refused by Larder"),
    ("cluster|syncslots", "refused by Larder: a replication handshake"),
    ("replconf", "part of replication"),
    ("failover", "refused by Larder"),
    ("monitor", "makes the connection a stream without end"),
    ("save", "writes files"),
    ("bgsave", "writes files, in the background"),
    ("bgrewriteaof", "writes files, in the background"),
    ("lastsave", "compared in the streams"),
    ("lolwut", "draws by chance"),
    ("info", "each server's own figures, with a section added"),
    ("memory|stats", "each server's own figures"),
    ("memory|doctor", "each server's own figures"),
    ("memory|malloc-stats", "each server's own figures"),
    ("latency|doctor", "each server's own figures"),
    ("latency|histogram", "each server's own figures"),
    ("slowlog|get", "each server's own times"),
    ("slowlog|len", "each server's own times"),
    ("client|list", "each server's own clients"),
    ("client|info", "each server's own clients"),
    ("client|reply", "changes what is answered: has tests of its own"),
    ("client|kill", "has tests of its own"),
    ("client|capa", "says nothing but changes the connection's meaning"),
    ("client|id", "compared in the streams"),
    ("subscribe", "answers once for each channel: has tests of its own"),
    ("psubscribe", "answers once for each channel: has tests of its own"),
    ("ssubscribe", "answers once for each channel: has tests of its own"),
    ("unsubscribe", "answers once for each channel: has tests of its own"),
    ("punsubscribe", "answers once for each channel: has tests of its own"),
    ("sunsubscribe", "answers once for each channel: has tests of its own"),
    ("quit", "closes the connection"),
    ("time", "a clock"),
    ("randomkey", "chance"),
    ("acl|genpass", "chance"),
    ("acl|log", "each server's own times"),
    ("acl|cat", "the order of a hash table"),
    ("acl|deluser", "an argument of the sweep may not name a user: has tests of its own"),
    ("command", "the order of a hash table"),
    ("command|list", "the order of a hash table"),
    ("command|docs", "the order of a hash table"),
    ("config|get", "the order of a hash table"),
    ("commandlog|get", "each server's own times"),
    ("cluster|myid", "each server's own identity"),
    ("cluster|reset", "each server's own identity"),
    ("script|debug", "changes the connection into a debugger"),
    ("function|dump", "payloads have versions"),
    ("hello", "compared in the streams"),
];

/// Every command of the server's own table, and every subcommand, with no arguments, with one, and with many, which make
/// little sense: errors are the server's own to the letter, and what is valid by chance answers alike.
fn sweep(kind: Kind) {
    let mut run = Run::start(kind, 0);
    let mut names: Vec<String> = Vec::new();
    let listing = run.direct.client().value(&["COMMAND", "INFO"]);
    for info in listing.items() {
        names.push(info.items()[0].text());
        names.extend(info.items().get(9).map(Value::items).unwrap_or_default().iter().map(|sub| sub.items()[0].text()));
    }
    names.sort();
    let skipped = |name: &str| {
        NOT_SWEPT.iter().any(|(of, _)| *of == name || name.strip_prefix(of).is_some_and(|rest| rest.starts_with('|')))
    };
    for name in names.iter().filter(|name| !skipped(name)) {
        // None of these ends in a number, which a blocking command would take for a time to wait.
        for arguments in ["", "s1", "s1 x", "s1 0 x", "1 s1 0 x", "s1 x y z 0 1 2 3 4 5 6 7 8 x", "STREAMS s1 0-0"] {
            // A container without its subcommand would fall on one of those that are left out.
            let container = names.iter().any(|other| other.starts_with(&format!("{name}|")));
            if container && !arguments.is_empty() {
                continue;
            }
            let mut command = words(&name.replace('|', " "));
            command.extend(arguments.split_whitespace().map(|arg| arg.as_bytes().to_vec()));
            for pair in [0, 2] {
                run.compare(pair, std::slice::from_ref(&command));
            }
            // Whatever state it has left: both connections begin anew.
            for (pair, protocol) in [(0, 2), (2, 3)] {
                run.pairs[pair] = run.connect(protocol);
            }
        }
    }
    run.compare_data();
    run.report("sweep");
}

#[test]
fn every_command_answers_odd_arguments_alike_at_redis() {
    sweep(Kind::Redis);
}

#[test]
fn every_command_answers_odd_arguments_alike_at_valkey() {
    sweep(Kind::Valkey);
}

/// What no two servers answer alike, and what leaves them with different data: an entry of a stream that is named by
/// the server's clock, and a SCAN from a cursor that only the server's own hash seed gives a meaning to.
fn differs_by_nature(command: &Command) -> bool {
    let is = |name: &str| command[0].eq_ignore_ascii_case(name.as_bytes());
    is("xadd") && command.iter().skip(2).any(|word| word == b"*")
        // It makes a skip list of a sorted set, for good.
        || (is("sort") || is("sort_ro")) && command.get(1).is_some_and(|key| key.starts_with(b"z") || key.starts_with(b"g"))
        || is("scan") && command.get(1).is_some_and(|cursor| cursor != b"0")
}
