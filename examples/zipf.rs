//! A Zipf-distributed workload through Larder, whose every answer is verified.
//!
//! `cargo run --release --example zipf -- --larder 127.0.0.1:6380 --upstream 127.0.0.1:6379 --keys 1000000 --seconds 30`
//!
//! Each value carries its key, a version that only grows, and a filling that follows from both. Who reads can so tell a
//! **wrong** value (of another key, torn, or never written) and a **stale** one: older than what was acknowledged through
//! Larder, or seen by any reader, before the read began. A second client writes directly to the upstream meanwhile; its
//! writes may be unseen for as long as a push takes, which is measured. In the end all written keys are read once more
//! on both ways and must be equal. How many reads the upstream was spared is its own count, from `INFO commandstats`.
//!
//! The exit status is 1 if anything was wrong or stale.

#[path = "../tests/support/client.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod client;
#[path = "../tests/support/frame.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod frame;
#[path = "../tests/support/rng.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod rng;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use clap::Parser;
use client::{Client, encode};
use frame::Value;
use rng::Rng;

/// Keys set, or read in the last check, in one batch.
const BATCH_KEYS: usize = 500;
/// How long writes may still be on their way to Larder before the last check counts them as never seen.
const SETTLE: Duration = Duration::from_secs(5);
/// How many delays are kept for the percentiles.
const DELAYS_MAX: usize = 1_000_000;
/// The first bytes of a value: key and version, eight hexadecimal digits each.
const HEAD_BYTES: usize = 16;

/// What to run against what.
#[derive(Parser, Clone)]
struct Options {
    /// Where Larder listens
    #[arg(long, default_value = "127.0.0.1:6380")]
    larder: String,
    /// Where its upstream listens
    #[arg(long, default_value = "127.0.0.1:6379")]
    upstream: String,
    /// How many keys there are
    #[arg(long, default_value_t = 1_000_000)]
    keys: u32,
    /// Size of a value
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
    /// How long the workload runs
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Connections through Larder, each with a thread
    #[arg(long, default_value_t = 8)]
    connections: u64,
    /// Commands sent at once on each connection
    #[arg(long, default_value_t = 1)]
    pipeline: usize,
    /// Reads among a hundred commands
    #[arg(long, default_value_t = 95)]
    reads_percent: u64,
    /// Skew: the rank r is asked for in proportion to 1/r^theta
    #[arg(long, default_value_t = 0.99)]
    theta: f64,
    /// Writes a second that go directly to the upstream (0: none)
    #[arg(long, default_value_t = 200)]
    direct_writes: u32,
    /// Seconds that run before counting begins, to fill the cache
    #[arg(long, default_value_t = 5)]
    warmup_seconds: u64,
    /// The keys are there already, from an earlier run with --seed and --keys alike and no writes
    #[arg(long)]
    no_load: bool,
    /// The seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What is known of one key.
#[derive(Default)]
struct Known {
    /// The newest version that has been sent to anybody.
    issued: AtomicU32,
    /// The newest version that was acknowledged through Larder or seen by a reader: nobody may read less from then on.
    certain: AtomicU32,
    /// The newest version that the upstream acknowledged to the direct writer, and when (ms since the start).
    direct: AtomicU32,
    direct_at_ms: AtomicU32,
    /// One writer at a time, so that versions reach the upstream in their order.
    writing: AtomicBool,
}

#[derive(Default)]
struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
    direct_writes: AtomicU64,
    errors: AtomicU64,
    wrong: AtomicU64,
    stale: AtomicU64,
    behind: AtomicU64,
}

struct Run {
    options: Options,
    larder: SocketAddr,
    upstream: SocketAddr,
    zipf: Zipf,
    known: Vec<Known>,
    counts: Counts,
    began: Instant,
    stop: AtomicBool,
}

/// One command of a batch that is on its way.
enum Sent {
    Read { key: u32, floor: u32, direct_floor: u32 },
    Write { key: u32, version: u32 },
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("zipf: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> io::Result<ExitCode> {
    let run = Run {
        larder: resolve(&options.larder)?,
        upstream: resolve(&options.upstream)?,
        zipf: Zipf::new(options.keys, options.theta),
        known: (0..options.keys).map(|_| Known::default()).collect(),
        counts: Counts::default(),
        began: Instant::now(),
        stop: AtomicBool::new(false),
        options,
    };
    if !run.options.no_load {
        run.load()?;
    }
    let (asked, mut delays_ms) = run.work()?;
    let never_seen = run.compare_all()?;
    run.report(asked, &mut delays_ms, never_seen);
    let faults = run.counts.wrong.load(SeqCst) + run.counts.stale.load(SeqCst) + never_seen;
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

// === impl Run ===

impl Run {
    /// Sets every key to its version 0, directly at the upstream.
    fn load(&self) -> io::Result<()> {
        let mut client = Client::try_connect(self.upstream)?;
        let keys: Vec<u32> = (0..self.options.keys).collect();
        for batch in keys.chunks(BATCH_KEYS) {
            let requests: Vec<u8> = batch.iter().flat_map(|&key| self.set(key, 0)).collect();
            let replies = client.try_pipeline(&requests, batch.len())?;
            if let Some(refused) = replies.iter().find(|reply| *reply != b"+OK\r\n") {
                return Err(io::Error::other(format!("loading: {}", refused.escape_ascii())));
            }
        }
        println!("loaded {} keys of {} bytes", self.options.keys, self.options.value_bytes);
        Ok(())
    }

    /// Runs the workload. Returns how many GETs the upstream has answered meanwhile, and how many milliseconds old
    /// the direct writes were that a read did not see.
    fn work(&self) -> io::Result<(u64, Vec<u32>)> {
        let mut rng = Rng::new(self.options.seed);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.options.connections)
                .map(|_| {
                    let mut rng = rng.fork();
                    scope.spawn(move || self.read_and_write(&mut rng))
                })
                .collect();
            let mut direct_rng = rng.fork();
            let direct = scope.spawn(move || self.write_directly(&mut direct_rng));
            std::thread::sleep(Duration::from_secs(self.options.warmup_seconds));
            self.counts.reads.store(0, SeqCst);
            self.counts.writes.store(0, SeqCst);
            let before = self.gets();
            std::thread::sleep(Duration::from_secs(self.options.seconds));
            let asked = self.gets().and_then(|after| Ok(after - before?));
            self.stop.store(true, SeqCst);
            let mut delays = Vec::new();
            for worker in workers {
                delays.extend(worker.join().map_err(|_| io::Error::other("a connection's thread died"))??);
            }
            direct.join().map_err(|_| io::Error::other("the direct writer died"))??;
            Ok((asked?, delays))
        })
    }

    fn read_and_write(&self, rng: &mut Rng) -> io::Result<Vec<u32>> {
        let mut client = Client::try_connect(self.larder)?;
        let mut delays = Vec::new();
        let mut sent = Vec::with_capacity(self.options.pipeline);
        while !self.stop.load(SeqCst) {
            let mut requests = Vec::new();
            for _ in 0..self.options.pipeline {
                self.add_command(rng, &mut sent, &mut requests);
            }
            let replies = client.try_pipeline(&requests, sent.len())?;
            for (command, reply) in sent.drain(..).zip(&replies) {
                self.judge(&command, reply, &mut delays);
            }
        }
        Ok(delays)
    }

    fn add_command(&self, rng: &mut Rng, sent: &mut Vec<Sent>, requests: &mut Vec<u8>) {
        let key = self.zipf.draw(rng);
        let known = &self.known[key as usize];
        if rng.below(100) >= self.options.reads_percent && !known.writing.swap(true, SeqCst) {
            let version = known.issued.fetch_add(1, SeqCst) + 1;
            requests.extend(self.set(key, version));
            sent.push(Sent::Write { key, version });
            return;
        }
        // A write of this very batch comes first upstream, so that the read must see it.
        let own = sent.iter().rev().find_map(|earlier| match earlier {
            Sent::Write { key: of, version } if *of == key => Some(*version),
            _ => None,
        });
        let floor = known.certain.load(SeqCst).max(own.unwrap_or(0));
        sent.push(Sent::Read { key, floor, direct_floor: known.direct.load(SeqCst) });
        requests.extend(encode(&["GET".to_owned(), name(key)]));
    }

    fn judge(&self, command: &Sent, reply: &[u8], delays: &mut Vec<u32>) {
        match *command {
            Sent::Write { key, version } => {
                let known = &self.known[key as usize];
                if reply == b"+OK\r\n" {
                    known.certain.fetch_max(version, SeqCst);
                    self.counts.writes.fetch_add(1, SeqCst);
                } else {
                    self.complain(&self.counts.errors, &format!("SET {}: {}", name(key), reply.escape_ascii()));
                }
                known.writing.store(false, SeqCst);
            }
            Sent::Read { key, floor, direct_floor } => self.judge_read(key, floor, direct_floor, reply, delays),
        }
    }

    fn judge_read(&self, key: u32, floor: u32, direct_floor: u32, reply: &[u8], delays: &mut Vec<u32>) {
        if reply[0] == b'-' {
            return self.complain(&self.counts.errors, &format!("GET {}: {}", name(key), reply.escape_ascii()));
        }
        self.counts.reads.fetch_add(1, SeqCst);
        let known = &self.known[key as usize];
        let version = match self.version_in(key, reply) {
            Ok(version) if version <= known.issued.load(SeqCst) => version,
            Ok(version) => return self.complain(&self.counts.wrong, &format!("{}: version {version}", name(key))),
            Err(e) => return self.complain(&self.counts.wrong, &format!("{}: {e}", name(key))),
        };
        if version < floor {
            self.complain(&self.counts.stale, &format!("{}: version {version} after {floor}", name(key)));
        } else if version < direct_floor {
            self.counts.behind.fetch_add(1, SeqCst);
            if delays.len() < DELAYS_MAX {
                delays.push(self.now_ms().saturating_sub(known.direct_at_ms.load(SeqCst)));
            }
        }
        known.certain.fetch_max(version, SeqCst);
    }

    fn write_directly(&self, rng: &mut Rng) -> io::Result<()> {
        let Some(pause) = Duration::from_secs(1).checked_div(self.options.direct_writes) else { return Ok(()) };
        let mut client = Client::try_connect(self.upstream)?;
        while !self.stop.load(SeqCst) {
            std::thread::sleep(pause);
            let key = self.zipf.draw(rng);
            let known = &self.known[key as usize];
            if known.writing.swap(true, SeqCst) {
                continue;
            }
            let version = known.issued.fetch_add(1, SeqCst) + 1;
            let reply = client.try_pipeline(&self.set(key, version), 1)?;
            if reply[0] == b"+OK\r\n" {
                known.direct_at_ms.store(self.now_ms(), SeqCst);
                known.direct.store(version, SeqCst);
                self.counts.direct_writes.fetch_add(1, SeqCst);
            }
            known.writing.store(false, SeqCst);
        }
        Ok(())
    }

    /// Reads all written keys through Larder and directly; the number of those that stay different.
    fn compare_all(&self) -> io::Result<u64> {
        let (mut through, mut direct) = (Client::try_connect(self.larder)?, Client::try_connect(self.upstream)?);
        let written = |key: &u32| self.known[*key as usize].issued.load(SeqCst) > 0;
        let mut different: Vec<u32> = (0..self.options.keys).filter(written).collect();
        println!("comparing {} written keys", different.len());
        let deadline = Instant::now() + SETTLE;
        loop {
            let mut still = Vec::new();
            for batch in different.chunks(BATCH_KEYS) {
                let requests: Vec<u8> = batch.iter().flat_map(|&key| encode(&["GET".to_owned(), name(key)])).collect();
                let here = through.try_pipeline(&requests, batch.len())?;
                let there = direct.try_pipeline(&requests, batch.len())?;
                still.extend(
                    batch.iter().zip(here.iter().zip(&there)).filter(|(_, (a, b))| a != b).map(|(key, _)| *key),
                );
            }
            if still.is_empty() || Instant::now() > deadline {
                return Ok(still.len() as u64);
            }
            different = still;
        }
    }

    fn report(&self, asked: u64, delays_ms: &mut [u32], never_seen: u64) {
        let count = |counter: &AtomicU64| counter.load(SeqCst);
        let (reads, writes) = (count(&self.counts.reads), count(&self.counts.writes));
        let spared = 100.0 * (1.0 - asked as f64 / reads.max(1) as f64);
        println!(
            "operations      {} in {} s: {}/s",
            reads + writes,
            self.options.seconds,
            (reads + writes) / self.options.seconds.max(1)
        );
        println!("reads           {reads}, of which the upstream answered {asked}: spared {spared:.2}%");
        println!("writes          {writes} through Larder, {} directly", count(&self.counts.direct_writes));
        delays_ms.sort_unstable();
        let at = |part: f64| delays_ms.get((delays_ms.len() as f64 * part) as usize).copied().unwrap_or(0);
        let last = delays_ms.last().copied().unwrap_or(0);
        println!(
            "not yet seen    {} reads did not see a direct write; it was p50 {} p99 {} p99.9 {} max {last} ms old",
            count(&self.counts.behind),
            at(0.5),
            at(0.99),
            at(0.999)
        );
        println!("errors          {}", count(&self.counts.errors));
        println!("wrong           {}", count(&self.counts.wrong));
        println!("stale           {}", count(&self.counts.stale));
        println!("never seen      {never_seen}");
    }

    /// Counts a fault and shows the first few of its kind.
    fn complain(&self, counter: &AtomicU64, what: &str) {
        const SHOWN_MAX: u64 = 5;
        if counter.fetch_add(1, SeqCst) < SHOWN_MAX {
            eprintln!("{what}");
        }
    }

    fn now_ms(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_millis()).unwrap_or(u32::MAX)
    }

    /// How many GETs the upstream has counted.
    fn gets(&self) -> io::Result<u64> {
        let info = Client::try_connect(self.upstream)?.try_cmd(&["INFO", "commandstats"])?;
        let info = Value::parse(&info).text();
        let calls = info.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls="));
        let calls = calls.and_then(|rest| rest.split(',').next()).unwrap_or("0");
        calls.parse().map_err(|e| io::Error::other(format!("INFO commandstats: {e}")))
    }

    fn set(&self, key: u32, version: u32) -> Vec<u8> {
        encode(&[b"SET".to_vec(), name(key).into_bytes(), value(key, version, self.options.value_bytes)])
    }

    /// The version of the value in a reply, if it is one that was made for this key.
    fn version_in(&self, key: u32, reply: &[u8]) -> Result<u32, String> {
        let Value::Bulk(got) = Value::parse(reply) else { return Err(format!("no value: {}", reply.escape_ascii())) };
        let head = got.get(8..HEAD_BYTES).and_then(|hex| std::str::from_utf8(hex).ok());
        let version = head.and_then(|hex| u32::from_str_radix(hex, 16).ok()).ok_or("a value without a version")?;
        if got == value(key, version, self.options.value_bytes) {
            Ok(version)
        } else {
            Err(format!("not this key's value: {}", got[..HEAD_BYTES.min(got.len())].escape_ascii()))
        }
    }
}

fn name(key: u32) -> String {
    format!("key:{key:08}")
}

/// The value of a key in one version: both in hexadecimal, and a filling that follows from them.
fn value(key: u32, version: u32, bytes: usize) -> Vec<u8> {
    let mut value = format!("{key:08x}{version:08x}").into_bytes();
    let filling = Rng::new(u64::from(key) << 32 | u64::from(version)).next().to_le_bytes();
    value.extend(filling.iter().cycle().take(bytes.saturating_sub(HEAD_BYTES)));
    value
}

fn resolve(address: &str) -> io::Result<SocketAddr> {
    let found = address.to_socket_addrs().map_err(|e| io::Error::other(format!("{address}: {e}")))?.next();
    found.ok_or_else(|| io::Error::other(format!("{address}: no such host")))
}

/// Ranks with a Zipf distribution, by the method of Gray et al., "Quickly generating billion-record synthetic databases".
struct Zipf {
    keys: f64,
    theta: f64,
    alpha: f64,
    eta: f64,
    zeta: f64,
}

// === impl Zipf ===

impl Zipf {
    fn new(keys: u32, theta: f64) -> Self {
        let zeta: f64 = (1..=keys).map(|rank| f64::from(rank).powf(-theta)).sum();
        let zeta_two = 1.0 + 0.5_f64.powf(theta);
        let n = f64::from(keys);
        let eta = (1.0 - (2.0 / n).powf(1.0 - theta)) / (1.0 - zeta_two / zeta);
        Self { keys: n, theta, alpha: 1.0 / (1.0 - theta), eta, zeta }
    }

    /// A key, from 0 (the most popular) on.
    fn draw(&self, rng: &mut Rng) -> u32 {
        let uniform = (rng.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(self.theta) {
            return 1;
        }
        let rank = self.keys * (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        (rank as u32).min(self.keys as u32 - 1)
    }
}
