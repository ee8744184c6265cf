//! What dependencies (`CACHE DEPEND`) cost: writes of a key on which so many others depend, and reads and writes of other keys while
//! a watch is on.
//!
//! `cargo run --release --example dependency_cost -- --larder 127.0.0.1:6380 --upstream 127.0.0.1:6379`
//!
//! One client, one request at a time. For each number of dependents they are made anew before each write; the write is answered when
//! they are gone. Medians and 99th percentiles in microseconds. Use an upstream without data: its keys are deleted.
//!
//! The exit status is 1 if a dependent was still there when its write was answered.

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
use std::time::{Duration, Instant};

/// How many keys depend on the one that is written.
const DEPENDENTS: [usize; 4] = [0, 1, 10, 1000];

/// What to run against what.
#[derive(Parser)]
struct Options {
    /// Where Larder listens
    #[arg(long, default_value = "127.0.0.1:6380")]
    larder: String,
    /// Where its upstream listens
    #[arg(long, default_value = "127.0.0.1:6379")]
    upstream: String,
    /// Requests of each kind
    #[arg(long, default_value_t = 5000)]
    requests: usize,
    /// Writes with dependents, of each number
    #[arg(long, default_value_t = 30)]
    writes: usize,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut client = Client::connect(address(&options.larder));
    let mut direct = Client::connect(address(&options.upstream));
    direct.ok(&["FLUSHALL"]);
    others(&mut client, &options, "nothing depends on anything");
    client.ok(&["SET", "dependent", "v"]);
    assert_eq!(client.value(&["CACHE", "DEPEND", "dependent", "ON", "1", "source"]).int(), 1);
    others(&mut client, &options, "a watch is on");
    let left: i64 = DEPENDENTS.iter().map(|&count| with_dependents(&mut client, &mut direct, &options, count)).sum();
    if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn address(text: &str) -> SocketAddr {
    let found = text.to_socket_addrs().ok().and_then(|mut all| all.next());
    found.unwrap_or_else(|| panic!("no address: {text}"))
}

fn show(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |q: f64| took.get((took.len() as f64 * q) as usize).map_or(0, Duration::as_micros);
    println!("{what:<60} p50 {:>7} p99 {:>7}", at(0.5), at(0.99));
}

fn timed(count: usize, mut request: impl FnMut(usize)) -> Vec<Duration> {
    let once = |n| {
        let began = Instant::now();
        request(n);
        began.elapsed()
    };
    (0..count).map(once).collect()
}

/// Keys on which nothing depends.
fn others(client: &mut Client, options: &Options, when: &str) {
    let write = timed(options.requests, |n| client.ok(&["SET", &format!("other:{n}"), "v"]));
    show(&format!("SET of another key, {when}"), write);
    let read = |n: usize| format!("other:{n}");
    let miss = timed(options.requests, |n| assert_ne!(client.value(&["GET", &read(n)]), Value::Null));
    show(&format!("GET, a miss, {when}"), miss);
    let hit = timed(options.requests, |n| assert_ne!(client.value(&["GET", &read(n)]), Value::Null));
    show(&format!("GET, a hit, {when}"), hit);
}

/// How many dependents were there when a write had been answered.
fn with_dependents(client: &mut Client, direct: &mut Client, options: &Options, count: usize) -> i64 {
    let keys: Vec<String> = (0..count).map(|n| format!("page:{n}")).collect();
    let mut left = 0;
    let mut took = Vec::new();
    for n in 0..options.writes {
        let made: Vec<u8> = keys.iter().flat_map(|key| encode(&["SET", key, "v"])).collect();
        client.pipeline(&made, count);
        let declared: Vec<u8> =
            keys.iter().flat_map(|key| encode(&["CACHE", "DEPEND", key, "ON", "1", "written"])).collect();
        assert!(client.pipeline(&declared, count).iter().all(|reply| reply == b":1\r\n"));
        let began = Instant::now();
        client.ok(&["SET", "written", &n.to_string()]);
        took.push(began.elapsed());
        if count > 0 {
            let exist: Vec<&str> = std::iter::once("EXISTS").chain(keys.iter().map(String::as_str)).collect();
            left += direct.value(&exist).int();
        }
    }
    show(&format!("SET of a key with {count} dependents"), took);
    left
}
