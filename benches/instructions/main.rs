//! Instructions that Larder spends on an operation in user space, counted by callgrind: what no noise of the machine hides.
//!
//! ```text
//! cargo bench --bench instructions              compares with figures.txt: fails where one is off by more than TOLERANCE
//! cargo bench --bench instructions -- --write   writes figures.txt anew
//! cargo bench --bench instructions -- get-hit   only cases whose name holds this
//! ```
//!
//! Each case runs Larder twice under callgrind, with one worker and one connection, the second time with more
//! operations. The difference of the two totals is the cost of these operations: start, connecting and stop fall away.
//! One connection makes the count repeatable (which connections become ready together depends on time) and is the worst
//! case without pipelining, where each operation is a turn of the event loop of its own. Needs `valgrind` and
//! `redis-server`. Kernel time is not seen: that is `benches/peers`' to measure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// A figure may be off by this part in either direction: a compiler's choices, and the few turns that a timer takes.
const TOLERANCE: f64 = 0.05;
/// Where the figures are kept.
const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions/figures.txt");
/// Operations of the first run; the second has three times as many.
const OPERATIONS: usize = 16_000;
/// Keys that are there.
const KEYS: usize = 1000;
/// Longest wait for a server to come up under callgrind.
const START_MAX: Duration = Duration::from_secs(60);

type Failure = Box<dyn std::error::Error>;

/// One kind of operation.
struct Case {
    name: &'static str,
    /// Requests that are sent together.
    pipeline: usize,
    request: fn(usize) -> Vec<u8>,
    /// Bytes of a reply.
    reply_len: usize,
    settings: &'static [&'static str],
}

const OFF: &[&str] = &["--set", "l1.enabled=false"];
/// L1 is full soon, so that each fill evicts, and so small that what is swept at the end is the same in both runs.
const ALWAYS: &[&str] = &["--set", "l1.admission=always", "--set", "l1.size_bytes_max=512kb"];
const CHOOSY: &[&str] = &["--set", "l1.admission=second-touch"];

const CASES: &[Case] = &[
    case("get-hit-64-p1", 1, get_small, 71, &[]),
    case("get-hit-64-p16", 16, get_small, 71, &[]),
    case("get-hit-1024-p16", 16, get_large, 1033, &[]),
    case("mget-10-hits-p16", 16, mget, 5 + 10 * 71, &[]),
    case("get-forwarded-p1", 1, get_small, 71, OFF),
    case("get-forwarded-p16", 16, get_small, 71, OFF),
    case("set-p1", 1, set, 5, &[]),
    case("set-p16", 16, set, 5, &[]),
    case("get-filled-p16", 16, get_new, 71, ALWAYS),
    case("get-not-admitted-p16", 16, get_new, 71, CHOOSY),
];

const fn case(
    name: &'static str,
    pipeline: usize,
    request: fn(usize) -> Vec<u8>,
    reply_len: usize,
    settings: &'static [&'static str],
) -> Case {
    Case { name, pipeline, request, reply_len, settings }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what the command line asks for; false if a figure is off.
fn run() -> Result<bool, Failure> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let writes = words.iter().any(|word| word == "--write");
    let wanted = |name: &str| words.iter().all(|word| word == "--write" || name.contains(word.as_str()));
    let mut figures = read_figures()?;
    let mut fits = true;
    println!("{:24} {:>10} {:>10} {:>8}", "case", "before", "now", "change");
    for case in CASES.iter().filter(|case| wanted(case.name)) {
        let now = measure(case)?;
        let before = figures.insert(case.name.to_owned(), now);
        let change = before.map(|before| now as f64 / before as f64 - 1.0);
        let off = change.is_some_and(|change| change.abs() > TOLERANCE);
        fits &= !off || writes;
        let (before, change) = (
            before.map_or("-".to_owned(), |before| before.to_string()),
            change.map_or("-".to_owned(), |change| format!("{:+.1}%", 100.0 * change)),
        );
        println!("{:24} {before:>10} {now:>10} {change:>8}{}", case.name, if off { "  OFF" } else { "" });
    }
    if writes {
        write_figures(&figures)?;
    }
    Ok(fits)
}

/// Instructions of one operation.
fn measure(case: &Case) -> Result<u64, Failure> {
    let (few, many) = (OPERATIONS, 3 * OPERATIONS);
    let (less, more) = (total(case, few)?, total(case, many)?);
    Ok(more.saturating_sub(less) / (many - few) as u64)
}

/// Instructions of a whole run.
fn total(case: &Case, operations: usize) -> Result<u64, Failure> {
    let upstream_port = free_port()?;
    let mut redis = Command::new("redis-server");
    redis.args(["--port", &upstream_port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let _upstream = Process::start(&mut redis)?;
    converse(upstream_port, &mut KEYS_THERE.iter().flat_map(|there| (0..KEYS).map(there)), 16, 5)?;
    converse(upstream_port, &mut (0..2 * KEYS + operations).map(set_new), 16, 5)?;

    let port = free_port()?;
    let out = Scratch::new(port);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.0.display())]);
    valgrind.arg(env!("CARGO_BIN_EXE_larder")).args(["--set", "threads=1"]);
    valgrind.args(["--set", &format!("listen=\"127.0.0.1:{port}\"")]);
    valgrind.args(["--set", &format!("upstream=\"redis://127.0.0.1:{upstream_port}\"")]).args(case.settings);
    let larder = Process::start(&mut valgrind)?;
    // Fills what is to be hit, and grows what grows once.
    let count = case.pipeline * (2 * KEYS / case.pipeline);
    converse(port, &mut (0..count).map(case.request), case.pipeline, case.reply_len)?;
    converse(port, &mut (count..count + operations).map(case.request), case.pipeline, case.reply_len)?;
    larder.stop()?;
    let text = std::fs::read_to_string(&out.0)?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(totals.ok_or("callgrind has written no totals")?.trim().parse()?)
}

/// Sends requests, so many at a time, and waits for their replies, which have `reply_len` bytes each.
fn converse(
    port: u16,
    requests: &mut dyn Iterator<Item = Vec<u8>>,
    pipeline: usize,
    reply_len: usize,
) -> Result<(), Failure> {
    let mut stream = connect(port)?;
    loop {
        let batch: Vec<Vec<u8>> = requests.take(pipeline).collect();
        if batch.is_empty() {
            return Ok(());
        }
        stream.write_all(&batch.concat())?;
        let mut replies = vec![0; batch.len() * reply_len];
        stream.read_exact(&mut replies)?;
        if replies[0] == b'-' {
            return Err(String::from_utf8_lossy(&replies).into());
        }
    }
}

/// Connects as soon as the server answers.
fn connect(port: u16) -> Result<TcpStream, Failure> {
    let until = Instant::now() + START_MAX;
    loop {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(START_MAX))?;
            // Any word will do: a server that loads, or has no upstream yet, answers with an error.
            stream.write_all(b"*2\r\n$6\r\nSTRLEN\r\n$6\r\nnosuch\r\n")?;
            let mut reply = [0; 4];
            if stream.read_exact(&mut reply).is_ok() && &reply == b":0\r\n" {
                return Ok(stream);
            }
        }
        if Instant::now() > until {
            return Err(format!("nothing answers on port {port}").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

// === requests ===

const KEYS_THERE: [fn(usize) -> Vec<u8>; 2] = [
    |i| encode(&[b"SET", format!("key:{:012}", i % KEYS).as_bytes(), &[b'x'; 64]]),
    |i| encode(&[b"SET", format!("large:{:010}", i % KEYS).as_bytes(), &[b'x'; 1024]]),
];

fn get_small(i: usize) -> Vec<u8> {
    encode(&[b"GET", format!("key:{:012}", i % KEYS).as_bytes()])
}

fn get_large(i: usize) -> Vec<u8> {
    encode(&[b"GET", format!("large:{:010}", i % KEYS).as_bytes()])
}

fn get_new(i: usize) -> Vec<u8> {
    encode(&[b"GET", format!("new:{i:012}").as_bytes()])
}

fn set_new(i: usize) -> Vec<u8> {
    encode(&[b"SET", format!("new:{i:012}").as_bytes(), &[b'x'; 64]])
}

fn set(i: usize) -> Vec<u8> {
    encode(&[b"SET", format!("set:{:012}", i % KEYS).as_bytes(), &[b'y'; 64]])
}

fn mget(i: usize) -> Vec<u8> {
    let keys: Vec<String> = (0..10).map(|k| format!("key:{:012}", (i + 97 * k) % KEYS)).collect();
    let words: Vec<&[u8]> = std::iter::once(&b"MGET"[..]).chain(keys.iter().map(|key| key.as_bytes())).collect();
    encode(&words)
}

fn encode(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

// === figures ===

fn read_figures() -> Result<BTreeMap<String, u64>, Failure> {
    let text = match std::fs::read_to_string(FIGURES) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once(' '));
    pairs.map(|(name, figure)| Ok((name.to_owned(), figure.trim().parse()?))).collect()
}

fn write_figures(figures: &BTreeMap<String, u64>) -> Result<(), Failure> {
    let mut text = String::from(
        "# User-space instructions of one operation, counted by callgrind: one worker, one connection.\n\
         # Written by `cargo bench --bench instructions -- --write`; compared by `cargo bench --bench instructions`.\n",
    );
    for (name, figure) in figures {
        writeln!(text, "{name:24} {figure}")?;
    }
    std::fs::write(FIGURES, text)?;
    println!("written: {}", Path::new(FIGURES).display());
    Ok(())
}

// === processes ===

/// A child that does not outlive this value.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Result<Self, Failure> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let name = command.get_program().to_string_lossy();
        Ok(Self(child.map_err(|error| format!("cannot start {name}: {error}"))?))
    }

    /// Asks it to end and waits for that, so that it writes what it has counted.
    fn stop(mut self) -> Result<(), Failure> {
        Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file that is taken away again.
struct Scratch(PathBuf);

impl Scratch {
    fn new(port: u16) -> Self {
        Self(std::env::temp_dir().join(format!("larder-instructions-{}-{port}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is not there if the run has failed early.
        let _ = std::fs::remove_file(&self.0);
    }
}
