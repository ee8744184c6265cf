//! The embedded store answers as redis-server does, byte for byte: seeded streams of commands, valid and odd, run on both.
//!
//! What cannot be equal is compared by [`Rule`], each with its reason. A failure prints the seed, the step and the last
//! commands. One stream has a fixed seed, one has a new seed each time (printed; `LARDER_SEED`
//! gives it again).
#![allow(clippy::unwrap_used, reason = "a test that cannot run must fail at once")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder::origin::{Origin, OriginLimits, Protocol, UnixMillis};
use larder_protocol::args::OwnedArgs;

/// Commands in a stream.
const STEPS: u64 = 12_000;
/// How far two answers may differ that tell a time to live or an idle time: the two sides run one after the other.
const TIME_TOLERANCE_MS: i64 = 5_000;
/// The longest string on both sides, in bytes: small, so that the limit can be met.
const VALUE_BYTES_MAX: u64 = 1024 * 1024;
/// Relative deadlines up to this many units are too near to be compared while they run.
const NEAR_DEADLINE_MAX: i64 = 10_000_000;
/// How long a key lives that is to expire in a stream, in milliseconds, and how long both sides wait for it.
const SHORT_LIFE_MS: &[u8] = b"20";
const SHORT_WAIT: Duration = Duration::from_millis(60);
const DATABASES: u64 = 16;
/// How long the server may take to listen: 10 seconds.
const CONNECT_ATTEMPTS_MAX: u32 = 1_000;
const CONNECT_PAUSE: Duration = Duration::from_millis(10);

type Words = Vec<Vec<u8>>;

// --- the two sides ------------------------------------------------------------------------------------------------

/// A redis-server of this test's own, gone with it.
struct Server {
    reader: BufReader<UnixStream>,
    _process: Process,
}

/// The server's process and its directory.
struct Process {
    child: Child,
    directory: PathBuf,
}

// === impl Server ===

impl Server {
    /// Listens on a socket in its own directory: no port that another process could take first.
    fn start() -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("larder-origin-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("socket");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(&socket)
            .args(["--proto-max-bulk-len", &VALUE_BYTES_MAX.to_string(), "--databases", &DATABASES.to_string()])
            .arg("--dir")
            .arg(&directory)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server must be installed");
        let process = Process { child, directory };
        for _ in 0..CONNECT_ATTEMPTS_MAX {
            if let Ok(stream) = UnixStream::connect(&socket) {
                return Self { reader: BufReader::new(stream), _process: process };
            }
            sleep(CONNECT_PAUSE);
        }
        panic!("redis-server does not listen on {}", socket.display());
    }

    fn run(&mut self, words: &[Vec<u8>]) -> Vec<u8> {
        self.reader.get_mut().write_all(OwnedArgs::new(words).args().bytes()).unwrap();
        let mut raw = Vec::new();
        read_reply(&mut self.reader, &mut raw);
        raw
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Both sides, in the same database and protocol.
struct Pair {
    server: Server,
    origin: Origin,
    db: u32,
    protocol: Protocol,
    /// What to print with a failure: the last commands.
    trail: Vec<String>,
}

// === impl Pair ===

impl Pair {
    fn start(seed: u64) -> Self {
        let limits = OriginLimits {
            bytes_max: 1 << 32,
            databases: DATABASES as u32,
            value_bytes_max: VALUE_BYTES_MAX,
            ..OriginLimits::default()
        };
        let origin = Origin::new(limits, seed);
        Self { server: Server::start(), origin, db: 0, protocol: Protocol::Resp2, trail: Vec::new() }
    }

    fn speak(&mut self, protocol: Protocol) {
        let version = if protocol == Protocol::Resp3 { "3" } else { "2" };
        self.server.run(&words(&["HELLO", version]));
        self.protocol = protocol;
    }

    fn select(&mut self, db: u32) {
        self.server.run(&words(&["SELECT", &db.to_string()]));
        self.db = db;
        self.trail.push(format!("SELECT {db}"));
    }

    fn ask_origin(&mut self, words: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        self.origin.execute(self.db, self.protocol, OwnedArgs::new(words).args(), clock(), &mut out);
        out
    }

    /// Runs one command on both sides; a difference is a panic that names `place`.
    fn check(&mut self, command: &[Vec<u8>], place: &str) {
        self.trail.push(format!("{:?} {}", self.protocol, show(command)));
        let rule = Rule::of(command);
        if rule == Rule::Count {
            // Keys that have expired count until they are removed, which in the server a SCAN does.
            walk(&words(&["SCAN", "0"]), |page| self.server.run(page));
            self.origin.expire_some(clock(), usize::MAX);
        }
        let (theirs, ours) = match rule {
            Rule::Walk => (walk(command, |page| self.server.run(page)), walk(command, |page| self.ask_origin(page))),
            _ => (self.server.run(command), self.ask_origin(command)),
        };
        if !rule.same(&theirs, &ours) {
            let trail = self.trail[self.trail.len().saturating_sub(40)..].join("\n");
            panic!("{place}\n{trail}\nserver: {}\norigin: {}", show(&[theirs]), show(&[ours]));
        }
    }
}

/// How two replies are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Byte for byte.
    Exact,
    /// DBSIZE: exact, once both have removed what has expired.
    Count,
    /// KEYS: the order is that of each side's tables.
    AnyOrder,
    /// SCAN: so are pages and cursors. The whole walks are compared; an error is compared as it is.
    Walk,
    /// RANDOMKEY: each side draws its own; both must find some key or none.
    Chance,
    /// TTL and its kin, OBJECT IDLETIME: time goes on between the two.
    Time { tolerance: i64 },
    /// TIME, OBJECT HELP and OBJECT REFCOUNT: the clocks are read one after the other, the words of the help are our
    /// own, and the server shares small integers with others or not depending on which command stored them (a COPY is
    /// not shared). A SCAN that begins in the middle: cursors mean something to their own side only.
    Shape,
}

// === impl Rule ===

impl Rule {
    fn of(command: &[Vec<u8>]) -> Self {
        let name = command[0].to_ascii_uppercase();
        let subcommand = command.get(1).map(|word| word.to_ascii_uppercase()).unwrap_or_default();
        match (name.as_slice(), subcommand.as_slice()) {
            (b"DBSIZE", _) => Self::Count,
            (b"KEYS", _) => Self::AnyOrder,
            (b"SCAN", b"0") => Self::Walk,
            (b"SCAN", _) => Self::Shape,
            (b"RANDOMKEY", _) => Self::Chance,
            (b"PTTL" | b"PEXPIRETIME", _) => Self::Time { tolerance: TIME_TOLERANCE_MS },
            (b"TTL" | b"EXPIRETIME", _) | (b"OBJECT", b"IDLETIME") => {
                Self::Time { tolerance: TIME_TOLERANCE_MS / 1_000 }
            }
            (b"TIME", _) | (b"OBJECT", b"HELP" | b"REFCOUNT") => Self::Shape,
            _ => Self::Exact,
        }
    }

    fn same(self, theirs: &[u8], ours: &[u8]) -> bool {
        if theirs.first() == Some(&b'-') || ours.first() == Some(&b'-') {
            return theirs == ours;
        }
        match self {
            Self::Exact | Self::Count => theirs == ours,
            Self::AnyOrder => {
                let (mut theirs, mut ours) = (strings(theirs), strings(ours));
                theirs.sort();
                ours.sort();
                theirs == ours
            }
            Self::Walk => strings(theirs) == strings(ours),
            Self::Chance => (theirs.first() == Some(&b'$')) == (ours.first() == Some(&b'$')),
            Self::Time { tolerance } => match (integer(theirs), integer(ours)) {
                (Some(a), Some(b)) if a >= 0 && b >= 0 => (a - b).abs() <= tolerance,
                _ => theirs == ours,
            },
            Self::Shape => theirs.first() == ours.first(),
        }
    }
}

/// Follows the cursor of a SCAN to its end; an array of all keys that came, in order and once each, or the error.
fn walk(first: &[Vec<u8>], mut run: impl FnMut(&[Vec<u8>]) -> Vec<u8>) -> Vec<u8> {
    let mut page = first.to_vec();
    let mut met = BTreeSet::new();
    loop {
        let reply = run(&page);
        if reply.first() == Some(&b'-') {
            return reply;
        }
        let mut found = strings(&reply);
        page[1] = found.remove(0);
        met.extend(found);
        if page[1] == b"0" {
            return OwnedArgs::new(met).args().bytes().to_vec();
        }
    }
}

/// Reads one reply, arrays with all their elements, without changing a byte.
fn read_reply(reader: &mut impl BufRead, raw: &mut Vec<u8>) {
    let start = raw.len();
    reader.read_until(b'\n', raw).unwrap();
    let line = &raw[start..];
    assert!(line.ends_with(b"\r\n"), "the connection has ended");
    let number = std::str::from_utf8(&line[1..line.len() - 2]).ok().and_then(|text| text.parse::<i64>().ok());
    match (line[0], number) {
        (b'$' | b'=', Some(len)) if len >= 0 => {
            reader.by_ref().take(len as u64 + 2).read_to_end(raw).unwrap();
        }
        (b'*' | b'~', Some(count)) => (0..count).for_each(|_| read_reply(reader, raw)),
        (b'%', Some(count)) => (0..2 * count).for_each(|_| read_reply(reader, raw)),
        _ => {}
    }
}

/// The bulk strings of a reply in order, whatever arrays they stand in.
fn strings(mut reply: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while !reply.is_empty() {
        let (kind, mut one) = (reply[0], Vec::new());
        if matches!(kind, b'*') {
            reply.read_until(b'\n', &mut one).unwrap();
            continue;
        }
        read_reply(&mut reply, &mut one);
        let end_of_line = one.iter().position(|&byte| byte == b'\n').unwrap();
        if kind == b'$' && end_of_line + 1 < one.len() {
            found.push(one[end_of_line + 1..one.len() - 2].to_vec());
        }
    }
    found
}

fn integer(reply: &[u8]) -> Option<i64> {
    std::str::from_utf8(reply.strip_prefix(b":")?).ok()?.trim_end().parse().ok()
}

fn clock() -> UnixMillis {
    UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

fn words(words: &[&str]) -> Words {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn show(words: &[Vec<u8>]) -> String {
    let shown: Vec<String> = words.iter().map(|w| format!("\"{}\"", w[..w.len().min(200)].escape_ascii())).collect();
    shown.join(" ")
}

// --- what is asked ------------------------------------------------------------------------------------------------

fn key_pool() -> Words {
    let odd: [&[u8]; 6] = [b"", b"b\xff", b"z\0y", b"a-]", b"a*b", b"^\\"];
    let mut pool: Words = odd.iter().map(|key| key.to_vec()).collect();
    pool.extend(words(&["a", "ab", "abc", "k", "key:1", "key:2", "aab", "b"]));
    pool
}

/// A seeded source of choices. (SplitMix64)
struct Chance(u64);

// === impl Chance ===

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn one_of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn key(&mut self) -> Vec<u8> {
        let pool = key_pool();
        pool[self.below(pool.len() as u64) as usize].clone()
    }

    fn value(&mut self) -> Vec<u8> {
        match self.below(8) {
            0..=2 => self.number(),
            3 => self.float(),
            4 => Vec::new(),
            5 => vec![b'v'; self.below(60) as usize],
            6 => vec![b'w'; self.below(3_000) as usize],
            _ => b"b\r\n\0\xffv".to_vec(),
        }
    }

    fn number(&mut self) -> Vec<u8> {
        let odd = [
            "0",
            "1",
            "-1",
            "9999",
            "10000",
            "9223372036854775807",
            "-9223372036854775808",
            "9223372036854775808",
            "9223372036854775",
            "-9223372036854776",
            "abc",
            "",
            " 1",
            "1 ",
            "01",
            "+1",
            "-0",
            "1.5",
            "-",
            "12",
            "99999999999999999999999",
            "2147483648",
        ];
        match self.below(3) {
            0 => (self.below(40) as i64 - 20).to_string().into_bytes(),
            _ => self.one_of(&odd).as_bytes().to_vec(),
        }
    }

    fn float(&mut self) -> Vec<u8> {
        let odd = [
            "0.1",
            "10.50",
            "-0.1",
            "5.0e3",
            "3.0e3",
            "1e17",
            "1.17",
            "inf",
            "-inf",
            "nan",
            "0x1p3",
            "0xA.8",
            "1e4940",
            "1e-4940",
            "1e-4960",
            "1e5000",
            ".5",
            "5.",
            "1e",
            " 1",
            "1 ",
            "+2.25",
            "-1e-20",
            "1e19",
            "123456789.987654321",
            "0.30000000000000004",
            "1e400",
            "-1e4931",
            "infinity",
            "1000.1",
            "1.5.2",
            "0x",
            "1e+2",
            "1e-2",
            "3.4028235e38",
        ];
        match self.below(3) {
            0 => format!("{}.{:06}", self.below(100_000) as i64 - 50_000, self.below(1_000_000)).into_bytes(),
            _ => self.one_of(&odd).as_bytes().to_vec(),
        }
    }

    /// A number for a deadline: far away, long past, or no good.
    fn moment(&mut self) -> Vec<u8> {
        let far = 20_000_000 + self.below(900_000_000);
        let now = clock().0;
        match self.below(6) {
            0 => self.number(),
            1 => (now / 1_000 + far).to_string().into_bytes(),
            2 => (now + far * 1_000).to_string().into_bytes(),
            _ => far.to_string().into_bytes(),
        }
    }

    fn pattern(&mut self) -> Vec<u8> {
        let letters: [&[u8]; 14] =
            [b"a", b"b", b"*", b"*", b"?", b"[", b"]", b"^", b"-", b"\\", b"k", b"\xff", b"[a-c]", b"key:"];
        (0..self.below(6)).flat_map(|_| self.one_of(&letters).to_vec()).collect()
    }

    /// Options of SET, GETEX and the EXPIRE family, as they may and as they may not be combined.
    fn options(&mut self, words: &mut Words) {
        let names =
            ["NX", "XX", "GET", "KEEPTTL", "PERSIST", "EX", "PX", "EXAT", "PXAT", "GT", "LT", "nx", "Get", "ex", "FOO"];
        for _ in 0..self.below(4) {
            let name = self.one_of(&names);
            words.push(name.as_bytes().to_vec());
            if name.to_ascii_uppercase().trim_end_matches("AT").ends_with('X') && !matches!(name, "NX" | "XX" | "nx") {
                words.push(self.moment());
            }
        }
    }

    fn command(&mut self) -> Words {
        let names = [
            "GET",
            "SET",
            "SET",
            "SET",
            "SET",
            "GETEX",
            "GETEX",
            "GETDEL",
            "GETSET",
            "MGET",
            "MSET",
            "MSETNX",
            "SETNX",
            "SETEX",
            "PSETEX",
            "APPEND",
            "APPEND",
            "STRLEN",
            "SETRANGE",
            "GETRANGE",
            "SUBSTR",
            "INCR",
            "DECR",
            "INCRBY",
            "DECRBY",
            "INCRBYFLOAT",
            "INCRBYFLOAT",
            "INCRBYFLOAT",
            "DEL",
            "UNLINK",
            "EXISTS",
            "TOUCH",
            "EXPIRE",
            "PEXPIRE",
            "EXPIREAT",
            "PEXPIREAT",
            "TTL",
            "PTTL",
            "EXPIRETIME",
            "PEXPIRETIME",
            "PERSIST",
            "TYPE",
            "RENAME",
            "RENAMENX",
            "COPY",
            "COPY",
            "KEYS",
            "KEYS",
            "SCAN",
            "SCAN",
            "DBSIZE",
            "RANDOMKEY",
            "SWAPDB",
            "MOVE",
            "TIME",
            "OBJECT",
            "OBJECT",
            "OBJECT",
            "FLUSHDB",
            "FLUSHALL",
        ];
        let name = self.one_of(&names);
        let mut words: Words = vec![name.as_bytes().to_vec()];
        match name {
            "SET" => {
                words.extend([self.key(), self.value()]);
                self.options(&mut words);
            }
            "GETEX" => {
                words.push(self.key());
                self.options(&mut words);
            }
            "GETSET" | "SETNX" | "APPEND" => words.extend([self.key(), self.value()]),
            "MSET" | "MSETNX" => (0..=self.below(3)).for_each(|_| words.extend([self.key(), self.value()])),
            "SETEX" | "PSETEX" => words.extend([self.key(), self.moment(), self.value()]),
            "SETRANGE" => {
                let far = [b"1048575".to_vec(), b"1048576".to_vec(), b"9223372036854775807".to_vec()];
                let offset = match self.below(12) {
                    0 => far[self.below(3) as usize].clone(),
                    1 => self.number(),
                    _ => self.below(100).to_string().into_bytes(),
                };
                words.extend([self.key(), offset, self.value()]);
            }
            "GETRANGE" | "SUBSTR" => words.extend([self.key(), self.number(), self.number()]),
            "INCRBY" | "DECRBY" => words.extend([self.key(), self.number()]),
            "INCRBYFLOAT" => words.extend([self.key(), self.float()]),
            "DEL" | "UNLINK" | "EXISTS" | "TOUCH" | "MGET" => {
                (0..=self.below(3)).for_each(|_| words.push(self.key()));
            }
            "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" => {
                words.extend([self.key(), self.moment()]);
                for _ in 0..self.below(3) {
                    words.push(self.one_of(&["NX", "XX", "GT", "LT", "gt", "FOO"]).as_bytes().to_vec());
                }
            }
            "RENAME" | "RENAMENX" => words.extend([self.key(), self.key()]),
            "COPY" => {
                words.extend([self.key(), self.key()]);
                for _ in 0..self.below(3) {
                    match self.below(5) {
                        0 => words.extend([b"db".to_vec(), self.number()]),
                        1 | 2 => words.extend([b"DB".to_vec(), self.below(4).to_string().into_bytes()]),
                        3 => words.push(b"REPLACE".to_vec()),
                        _ => words.push(b"Replace".to_vec()),
                    }
                }
            }
            "MOVE" => words.extend([self.key(), self.below(4).to_string().into_bytes()]),
            "SWAPDB" => (0..2).for_each(|_| words.push(self.below(4).to_string().into_bytes())),
            "KEYS" => words.push(if self.below(4) == 0 { b"*".to_vec() } else { self.pattern() }),
            "SCAN" => self.scan(&mut words),
            "OBJECT" => {
                let subcommand = self.one_of(&["ENCODING", "encoding", "REFCOUNT", "IDLETIME", "FREQ", "HELP", "FOO"]);
                words.push(subcommand.as_bytes().to_vec());
                if subcommand != "HELP" {
                    words.push(self.key());
                }
            }
            "DBSIZE" | "RANDOMKEY" | "TIME" => {}
            "FLUSHDB" | "FLUSHALL" => {
                if self.below(3) > 0 {
                    words.push(self.one_of(&["ASYNC", "sync", "FOO"]).as_bytes().to_vec());
                }
            }
            _ => words.push(self.key()),
        }
        words
    }

    fn scan(&mut self, words: &mut Words) {
        words.push(match self.below(6) {
            0 => self.number(),
            _ => b"0".to_vec(),
        });
        for _ in 0..self.below(3) {
            match self.below(6) {
                0 => words.extend([b"COUNT".to_vec(), self.number()]),
                1 => words.extend([b"count".to_vec(), (1 + self.below(5)).to_string().into_bytes()]),
                2 | 3 => words.extend([b"MATCH".to_vec(), self.pattern()]),
                4 => words.extend([b"TYPE".to_vec(), self.one_of(&["string", "STRING", "hash", "foo"]).into()]),
                _ => words.push(b"FOO".to_vec()),
            }
        }
    }

    /// Makes a command odd: an argument too many, too few or of another kind.
    fn spoil(&mut self, words: &mut Words) {
        let at = 1 + self.below(words.len() as u64) as usize;
        match self.below(3) {
            0 if at < words.len() => {
                words.remove(at);
            }
            1 if at < words.len() => words[at] = self.number(),
            _ => words.insert(at, self.number()),
        }
    }
}

/// True for commands whose outcome depends on when exactly they run: a deadline that comes during the test.
fn is_racy(words: &[Vec<u8>]) -> bool {
    let name = words[0].to_ascii_uppercase();
    let relative = [&b"EXPIRE"[..], b"PEXPIRE", b"SETEX", b"PSETEX"].contains(&name.as_slice());
    (1..words.len()).any(|i| {
        let before = words[i - 1].to_ascii_uppercase();
        let is_deadline = (relative && i == 2) || [&b"EX"[..], b"PX"].contains(&before.as_slice());
        let number = std::str::from_utf8(&words[i]).ok().and_then(|text| text.parse::<i64>().ok());
        is_deadline && number.is_some_and(|number| (1..=NEAR_DEADLINE_MAX).contains(&number))
    })
}

fn run_stream(seed: u64) {
    println!("seed {seed}");
    let mut chance = Chance(seed);
    let mut pair = Pair::start(seed);
    for step in 0..STEPS {
        let place = format!("seed {seed}, step {step}");
        match chance.below(300) {
            0 => {
                pair.check(
                    &[b"SET".to_vec(), chance.key(), b"short".to_vec(), b"PX".to_vec(), SHORT_LIFE_MS.to_vec()],
                    &place,
                );
                sleep(SHORT_WAIT);
            }
            1 => {
                pair.check(&[b"PEXPIRE".to_vec(), chance.key(), SHORT_LIFE_MS.to_vec()], &place);
                sleep(SHORT_WAIT);
            }
            2 | 3 => pair.select(chance.below(4) as u32),
            4 => pair.speak(if chance.below(2) == 0 { Protocol::Resp2 } else { Protocol::Resp3 }),
            roll => {
                let mut command = chance.command();
                // Flushes are rare, so that there is something to ask about.
                if command[0].starts_with(b"FLUSH") && roll % 8 != 0 {
                    continue;
                }
                if roll % 10 == 0 {
                    chance.spoil(&mut command);
                }
                if !is_racy(&command) {
                    pair.check(&command, &place);
                }
            }
        }
    }
}

#[test]
fn a_fixed_stream_of_commands_is_answered_alike() {
    run_stream(20_260_701);
}

#[test]
fn a_new_stream_of_commands_is_answered_alike() {
    let given = std::env::var("LARDER_SEED").ok().and_then(|seed| seed.parse().ok());
    run_stream(given.unwrap_or(clock().0));
}

/// Every sequence of up to three options, on a key that is there with a deadline, there without one, and not there.
#[test]
fn every_combination_of_options_is_answered_alike() {
    let mut pair = Pair::start(1);
    let far = (clock().0 / 1_000 + 30_000_000).to_string();
    let farther_ms = (clock().0 + 40_000_000_000).to_string();
    let options: [&[&str]; 15] = [
        &[],
        &["NX"],
        &["XX"],
        &["GET"],
        &["KEEPTTL"],
        &["PERSIST"],
        &["EX", "50000000"],
        &["px", "60000000000"],
        &["EXAT", &far],
        &["PXAT", &farther_ms],
        &["EXAT", "1"],
        &["GT"],
        &["LT"],
        &["EX"],
        &["FOO"],
    ];
    let bases: [&[&str]; 4] =
        [&["SET", "k", "v"], &["GETEX", "k"], &["EXPIRE", "k", "45000000"], &["PEXPIREAT", "k", &farther_ms]];
    let before: [&[&str]; 3] = [&["SET", "k", "old", "EX", "45000001"], &["SET", "k", "old"], &["DEL", "k"]];
    for (protocol, base) in [Protocol::Resp2, Protocol::Resp3].into_iter().flat_map(|p| bases.map(|b| (p, b))) {
        pair.speak(protocol);
        for number in 0..options.len().pow(3) {
            let chosen = [number % 15, number / 15 % 15, number / 225].map(|i| options[i]);
            let command = words(&[base, chosen[0], chosen[1], chosen[2]].concat());
            // Two empty options before a real one give a sequence that has been had already.
            if chosen[0].is_empty() && !(chosen[1].is_empty() && chosen[2].is_empty()) {
                continue;
            }
            let state = before[number % 3];
            pair.check(&words(state), "options");
            pair.check(&command, "options");
            pair.check(&words(&["GET", "k"]), "options");
            pair.check(&words(&["PTTL", "k"]), "options");
        }
    }
}

/// Patterns of every kind on keys that they nearly match, bytes beyond ASCII included (on x86-64, whose `char` is signed).
#[cfg(target_arch = "x86_64")]
#[test]
fn patterns_are_answered_alike() {
    let seed = clock().0;
    println!("seed {seed}");
    let mut chance = Chance(seed);
    let mut pair = Pair::start(seed);
    let letters = b"ab-]^\\*\x7f\x80\xff";
    for _ in 0..300 {
        let key: Vec<u8> = (0..chance.below(5)).map(|_| letters[chance.below(letters.len() as u64) as usize]).collect();
        pair.check(&[b"SET".to_vec(), key, b"v".to_vec()], "patterns");
    }
    let elements = b"ab-]^\\*?[[[---\x7f\x80\xff*";
    for step in 0..4_000 {
        let element = |chance: &mut Chance| elements[chance.below(elements.len() as u64) as usize];
        let pattern: Vec<u8> = (0..chance.below(10)).map(|_| element(&mut chance)).collect();
        pair.check(&[b"KEYS".to_vec(), pattern], &format!("seed {seed}, step {step}"));
    }
}

/// Sums of numbers of all sizes, which the server adds as 80-bit floats (on x86-64, where it has them).
#[cfg(target_arch = "x86_64")]
#[test]
fn sums_of_floats_are_answered_alike() {
    let seed = clock().0;
    println!("seed {seed}");
    let mut chance = Chance(seed);
    let mut pair = Pair::start(seed);
    for step in 0..6_000 {
        let number = |chance: &mut Chance| {
            let digits: String = (0..1 + chance.below(25)).map(|_| char::from(b'0' + chance.below(10) as u8)).collect();
            let point = chance.below(digits.len() as u64 + 1) as usize;
            let sign = chance.one_of(&["", "-", "+"]);
            let power = match chance.below(3) {
                0 => String::new(),
                1 => format!("e{}", chance.below(40) as i64 - 20),
                _ => format!("E{}", chance.below(9_920) as i64 - 4_960),
            };
            format!("{sign}{}.{}{power}", &digits[..point], &digits[point..]).into_bytes()
        };
        let place = format!("seed {seed}, step {step}");
        pair.check(&[b"SET".to_vec(), b"k".to_vec(), number(&mut chance)], &place);
        pair.check(&[b"INCRBYFLOAT".to_vec(), b"k".to_vec(), number(&mut chance)], &place);
        pair.check(&[b"INCRBYFLOAT".to_vec(), b"k".to_vec(), number(&mut chance)], &place);
        pair.check(&words(&["GET", "k"]), &place);
    }
}
