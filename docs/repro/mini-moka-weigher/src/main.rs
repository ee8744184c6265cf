//! mini-moka 0.10.3: does `sync::Cache` with a byte weigher survive two threads? (Its issue 53.)
//!
//! ```sh
//! cargo run --release              # ten runs of two seconds, each in a process of its own
//! cargo run --release -- 20 5      # twenty runs of five seconds
//! cargo run --release -- --counted # the same without a weigher: bounded by the number of entries
//! ```
//!
//! Each run: two threads get, insert and invalidate keys of one range, some of them far more often than others, with
//! values of 0 to 64 KB in a cache of 1 MB. A run that ends by a signal is what this program looks for; 11 is SIGSEGV.
//! All code here is safe Rust (`unsafe_code = "forbid"`). It ends with 0 if no run crashed, and with 1 if one did.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mini_moka::sync::Cache;

const THREADS: u64 = 2;
const CAPACITY_BYTES: u64 = 1024 * 1024;
const KEYS: u64 = 20_000;
const VALUE_BYTES_MAX: u64 = 64 * 1024;
/// The bound of `--counted`.
const CAPACITY_ENTRIES: u64 = 1_000;

const ONE_RUN: &str = "--one-run";
const COUNTED: &str = "--counted";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let counted = words.iter().any(|word| word == COUNTED);
    let numbers: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let (runs, seconds) = (numbers.first().copied().unwrap_or(10), numbers.get(1).copied().unwrap_or(2));
    if words.iter().any(|word| word == ONE_RUN) {
        println!("{} operations", run(counted, Duration::from_secs(seconds), runs));
        return ExitCode::SUCCESS;
    }
    let mut crashed = 0;
    for number in 0..runs {
        let outcome = run_apart(number, seconds, counted);
        println!("run {number}: {outcome:?}");
        crashed += u64::from(outcome != Outcome::Completed);
    }
    println!("{crashed} of {runs} runs crashed");
    if crashed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Completed,
    Signal(i32),
    ExitCode(i32),
    NotStarted(String),
}

/// One run in a process of its own: a crash ends that process and not this one.
fn run_apart(seed: u64, seconds: u64, counted: bool) -> Outcome {
    let mut command = Command::new("/proc/self/exe");
    command.args([ONE_RUN, &seed.to_string(), &seconds.to_string()]).args(counted.then_some(COUNTED));
    match command.status() {
        Err(error) => Outcome::NotStarted(error.to_string()),
        Ok(status) if status.success() => Outcome::Completed,
        Ok(status) => match status.signal() {
            Some(signal) => Outcome::Signal(signal),
            None => Outcome::ExitCode(status.code().unwrap_or(-1)),
        },
    }
}

/// Works on one cache for so long; returns the number of operations.
fn run(counted: bool, length: Duration, seed: u64) -> u64 {
    let builder = Cache::builder();
    let cache: Cache<u64, Vec<u8>> = if counted {
        builder.max_capacity(CAPACITY_ENTRIES).build()
    } else {
        let bytes = |_: &u64, value: &Vec<u8>| u32::try_from(value.len()).unwrap_or(u32::MAX);
        builder.max_capacity(CAPACITY_BYTES).weigher(bytes).build()
    };
    let until = Instant::now() + length;
    let operations = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (cache, operations) = (&cache, &operations);
            scope.spawn(move || {
                let mut random = seed.wrapping_mul(THREADS).wrapping_add(thread);
                while Instant::now() < until {
                    for _ in 0..256 {
                        operate(cache, &mut random);
                    }
                    operations.fetch_add(256, Ordering::Relaxed);
                }
            });
        }
    });
    operations.into_inner()
}

/// Half of the operations look up, three eighths insert, one eighth invalidate.
fn operate(cache: &Cache<u64, Vec<u8>>, random: &mut u64) {
    let bits = next_bits(random);
    let key = skewed_key(next_bits(random));
    match bits % 8 {
        0..4 => drop(cache.get(&key)),
        4..7 => cache.insert(key, vec![0; ((bits >> 32) % VALUE_BYTES_MAX) as usize]),
        _ => cache.invalidate(&key),
    }
}

/// A key below [`KEYS`]; small ones come far more often, as in real traffic.
fn skewed_key(bits: u64) -> u64 {
    let even = (bits >> 11) as f64 / (1_u64 << 53) as f64;
    (even.powi(3) * KEYS as f64) as u64
}

/// SplitMix64.
fn next_bits(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bits = *state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
