//! What other clients notice while a tag with many keys is invalidated.
//!
//! `cargo run --release --example tag_invalidation -- --larder 127.0.0.1:6380 --upstream 127.0.0.1:6379 --keys 100000`
//!
//! Each round sets `--keys` keys with one tag, measures what `GET` costs for a while (the normal), then invalidates the tag
//! and measures again until the reply has come. Half of the clients that measure ask the upstream directly, half ask
//! through Larder past its L1, each `--rate` times a second, so that neither machine nor server is saturated by the
//! measuring. The medians over the rounds are what counts: a single round on a busy machine says little; with a real-time
//! priority (`chrt -r 5`) for the servers, Larder and this, the rest of the machine's work hardly shows.
//!
//! Then the control: as many plain keys are deleted by one client at the upstream, `--control-keys` in an `UNLINK`, one after the
//! other in about the time that the invalidation took. What others notice of that is the server's own.
//!
//! The exit status is 1 if the number of keys that were invalidated is not the number of those that were set, or one of
//! them is still there.

#[path = "../tests/support/client.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod client;
#[path = "../tests/support/frame.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod frame;

use clap::Parser;
use client::{Client, encode};
use frame::Value;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Keys set in one batch.
const BATCH_KEYS: usize = 500;

/// What to run against what.
#[derive(Parser, Clone)]
struct Options {
    /// Where Larder listens
    #[arg(long, default_value = "127.0.0.1:6380")]
    larder: String,
    /// Where its upstream listens
    #[arg(long, default_value = "127.0.0.1:6379")]
    upstream: String,
    /// How many keys have the tag
    #[arg(long, default_value_t = 100_000)]
    keys: usize,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Clients that measure: half of them directly, half through Larder
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Requests that each sends a second
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Seconds of measuring before each invalidation
    #[arg(long, default_value_t = 5)]
    normal_seconds: u64,
    /// Keys in one UNLINK of the control; 0 for none
    #[arg(long, default_value_t = 16)]
    control_keys: usize,
    /// Several tags on each key, of which the others stay
    #[arg(long, default_value_t = 1)]
    tags: usize,
}

/// Latencies in microseconds, sorted.
struct Latencies(Vec<u64>);

/// One round's outcome.
struct Round {
    normal: Latencies,
    during: Latencies,
    control: Option<Latencies>,
    deleted: i64,
    left: i64,
}

// === impl Latencies ===

impl Latencies {
    fn of(mut micros: Vec<u64>) -> Self {
        micros.sort_unstable();
        Self(micros)
    }

    fn quantile(&self, q: f64) -> u64 {
        let at = ((self.0.len() as f64 * q) as usize).min(self.0.len().saturating_sub(1));
        self.0.get(at).copied().unwrap_or(0)
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let (larder, upstream) = (address(&options.larder), address(&options.upstream));
    let rounds: Vec<Round> = (0..options.rounds).map(|n| round(&options, larder, upstream, n)).collect();
    println!("medians over the rounds, p50 and p99 of GET in microseconds:");
    let line = |what: &str, of: &dyn Fn(&Round) -> Option<&Latencies>| {
        let quantiles = |q| rounds.iter().filter_map(|round| Some(of(round)?.quantile(q) as f64)).collect();
        let ratios = rounds.iter().filter_map(|round| Some(ratio(of(round)?, &round.normal))).collect();
        let (p50, p99, ratio) = (median(quantiles(0.5)), median(quantiles(0.99)), median(ratios));
        println!("{what:<24} p50 {p50:>6} p99 {p99:>6}, p99 of a round / its normal {ratio:.2}");
    };
    line("normal", &|round| Some(&round.normal));
    line("while the tag goes", &|round| Some(&round.during));
    if options.control_keys > 0 {
        line("while plain keys go", &|round| round.control.as_ref());
    }
    let sound = rounds.iter().all(|round| round.deleted == options.keys as i64 && round.left == 0);
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn address(text: &str) -> SocketAddr {
    let found = text.to_socket_addrs().ok().and_then(|mut all| all.next());
    found.unwrap_or_else(|| panic!("no address: {text}"))
}

/// The 99th percentile, beside the normal one.
fn ratio(during: &Latencies, normal: &Latencies) -> f64 {
    during.quantile(0.99) as f64 / normal.quantile(0.99).max(1) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn round(options: &Options, larder: SocketAddr, upstream: SocketAddr, n: usize) -> Round {
    let mut client = Client::connect(larder);
    fill(options, &mut client);
    let normal = measure(options, larder, upstream, || std::thread::sleep(Duration::from_secs(options.normal_seconds)));
    let (mut deleted, mut took) = (0, Duration::ZERO);
    client.read_timeout(Duration::from_secs(600));
    let during = measure(options, larder, upstream, || {
        let began = Instant::now();
        deleted = client.value(&["CACHE", "INVALIDATE", "TAGS", "1", "bench"]).int();
        took = began.elapsed();
    });
    let first_and_last = [0, options.keys / 2, options.keys - 1].map(key);
    let left = client.value(&["EXISTS", &first_and_last[0], &first_and_last[1], &first_and_last[2]]).int();
    let control = (options.control_keys > 0).then(|| control(options, larder, upstream, took));
    let round = Round { normal, during, control, deleted, left };
    println!(
        "round {n}: {deleted} keys in {:.2} s; GET p50 {} us (normal {}), p99 {} us (normal {}), p99.9 {} us (normal {})",
        took.as_secs_f64(),
        round.during.quantile(0.5),
        round.normal.quantile(0.5),
        round.during.quantile(0.99),
        round.normal.quantile(0.99),
        round.during.quantile(0.999),
        round.normal.quantile(0.999),
    );
    round
}

/// The latencies of GET while as many plain keys are deleted directly, within about the same time.
fn control(options: &Options, larder: SocketAddr, upstream: SocketAddr, within: Duration) -> Latencies {
    let mut direct = Client::connect(upstream);
    let keys: Vec<String> = (0..options.keys).map(|n| format!("plain:{n}")).collect();
    for batch in keys.chunks(BATCH_KEYS) {
        let requests: Vec<u8> = batch.iter().flat_map(|key| encode(&["SET", key, "a value of a few bytes"])).collect();
        direct.pipeline(&requests, batch.len());
    }
    measure(options, larder, upstream, || {
        let began = Instant::now();
        for (n, batch) in keys.chunks(options.control_keys).enumerate() {
            let words: Vec<&str> = std::iter::once("UNLINK").chain(batch.iter().map(String::as_str)).collect();
            direct.value(&words).int();
            let due = within.mul_f64((n + 1) as f64 * options.control_keys as f64 / options.keys as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    })
}

fn key(n: usize) -> String {
    format!("bench:{n}")
}

fn fill(options: &Options, client: &mut Client) {
    let others: Vec<String> = (1..options.tags).map(|n| format!("other{n}")).collect();
    let count = options.tags.to_string();
    let keys: Vec<usize> = (0..options.keys).collect();
    for batch in keys.chunks(BATCH_KEYS) {
        let mut requests = Vec::new();
        for n in batch {
            let key = key(*n);
            let mut words = vec!["CACHE", "SET", &key, "a value of a few bytes", "TAGS", &count, "bench"];
            words.extend(others.iter().map(String::as_str));
            requests.extend(encode(&words));
        }
        let replies = client.pipeline(&requests, batch.len());
        assert!(replies.iter().all(|reply| reply == b"+OK\r\n"), "a key could not be set");
    }
}

/// The latencies of GET while `work` is done.
fn measure(options: &Options, larder: SocketAddr, upstream: SocketAddr, work: impl FnOnce()) -> Latencies {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let probes: Vec<_> = (0..options.clients)
            .map(|n| {
                let (stop, direct) = (&stop, n % 2 == 0);
                let pause = Duration::from_secs(1) / options.rate.max(1);
                scope.spawn(move || probe(if direct { upstream } else { larder }, direct, pause, stop))
            })
            .collect();
        work();
        stop.store(true, SeqCst);
        Latencies::of(probes.into_iter().flat_map(|probe| probe.join().unwrap_or_default()).collect())
    })
}

fn probe(address: SocketAddr, direct: bool, pause: Duration, stop: &AtomicBool) -> Vec<u64> {
    let mut client = Client::connect(address);
    if !direct {
        client.ok(&["CACHE", "READ", "BYPASS"]);
    }
    let mut micros = Vec::new();
    while !stop.load(SeqCst) {
        let asked = Instant::now();
        let reply = client.value(&["GET", "somebody else's"]);
        assert_eq!(reply, Value::Null);
        micros.push(asked.elapsed().as_micros() as u64);
        std::thread::sleep(pause.saturating_sub(asked.elapsed()));
    }
    micros
}
