//! How stale a read may be that a writer elsewhere has overtaken: measured.
//!
//! `cargo run --release --example staleness -- --seconds 20`
//!
//! Starts a server on a free port and two Larders in front of it (the binary beside this one), and measures, round by
//! round, from the moment at which a writer has its acknowledgement:
//!
//! * **push**: until a bare RESP3 connection with `CLIENT TRACKING ON`, which has read the key, has the server's push in its
//!   hands. No cache that the server invalidates can know sooner.
//! * **direct**: until a reader of the first Larder, which has the key in L1, is answered the new value, when the write was
//!   made directly at the server.
//! * **second**: the same, when the write was made through the second Larder.
//! * **same**: the same, when the write was made through the first Larder itself. Here nothing may be stale.
//!
//! The readers ask again and again, without a pause: what is measured is the time until the last old answer had been
//! asked for, rounded up to the time of the first new one. A round in which the very first question is answered anew, or
//! whose push was there before the acknowledgement, counts as 0. All readers of a round run at the same time.
//!
//! Prints a table, and behind it one line of JSON. The exit status is 1 if a read through the same Larder was stale.

#[path = "../tests/support/client.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod client;
#[path = "../tests/support/frame.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod frame;

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Parser;
use client::Client;
use frame::Value;

/// What to run, and for how long.
#[derive(Parser)]
struct Options {
    /// The server's binary
    #[arg(long, default_value = "redis-server")]
    server: String,
    /// The binary of Larder [default: beside this one's directory]
    #[arg(long)]
    larder: Option<PathBuf>,
    /// How long it is measured
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// A child process that ends with this one.
struct Process {
    child: Child,
    address: SocketAddr,
}

/// Delays in nanoseconds, of one kind.
#[derive(Default)]
struct Delays(Vec<u64>);

/// How long a process may take until it accepts.
const START_MAX: Duration = Duration::from_secs(10);
const KEY: &str = "staleness";

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("staleness: a read through the same Larder was stale");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("staleness: {error}");
            ExitCode::from(2)
        }
    }
}

/// Measures and prints; whether nothing was stale that must not be.
fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let server = Process::start(&options.server, |command, port| {
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]);
    })?;
    let larder = match &options.larder {
        Some(path) => path.clone(),
        None => {
            std::env::current_exe()?.parent().and_then(|p| p.parent()).map(|p| p.join("larder")).ok_or("no larder")?
        }
    };
    let upstream = format!("redis://{}", server.address);
    let start_larder = || {
        Process::start(&larder.to_string_lossy(), |command, port| {
            let listen = format!("127.0.0.1:{port}");
            command.args(["--upstream", &upstream, "--listen", &listen, "--log-level", "error"]);
        })
    };
    let (first, second) = (start_larder()?, start_larder()?);
    let version = Client::connect(server.address).value(&["INFO", "server"]).text();
    let line = |name| version.lines().find(|line: &&str| line.starts_with(name));
    let version = line("valkey_version").or_else(|| line("redis_version"));

    let mut writers =
        [Client::connect(server.address), Client::connect(second.address), Client::connect(first.address)];
    let mut delays: [Delays; 4] = Default::default();
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let mut n = 0_u64;
    while Instant::now() < until {
        for (way, writer) in writers.iter_mut().enumerate() {
            n += 1;
            let (push, read) = measure(server.address, first.address, writer, n)?;
            delays[0].0.push(push);
            delays[1 + way].0.push(read);
        }
    }
    let same_is_fresh = delays[3].0.iter().all(|delay| *delay == 0);
    report(&mut delays, options, version.unwrap_or_default());
    Ok(same_is_fresh)
}

/// One write: how long the push took, and how long the reader was answered what was before.
fn measure(server: SocketAddr, larder: SocketAddr, writer: &mut Client, n: u64) -> Result<(u64, u64), Box<dyn Error>> {
    let new = n.to_string();
    let (mut bare, mut reader) = (Client::resp3(server), Client::connect(larder));
    bare.ok(&["CLIENT", "TRACKING", "ON"]);
    bare.cmd(&["GET", KEY]);
    // Twice: by now it is in L1.
    reader.cmd(&["GET", KEY]);
    reader.cmd(&["GET", KEY]);
    let pushed: JoinHandle<Instant> = std::thread::spawn(move || {
        bare.push();
        Instant::now()
    });
    let wanted = Value::Bulk(new.clone().into_bytes());
    let asked: JoinHandle<Vec<(Instant, Instant, bool)>> = std::thread::spawn(move || {
        let mut asked = Vec::new();
        loop {
            let called = Instant::now();
            let is_new = reader.value(&["GET", KEY]) == wanted;
            asked.push((called, Instant::now(), is_new));
            if is_new {
                return asked;
            }
        }
    });
    // The reader is at it by the time of the write.
    std::thread::sleep(Duration::from_micros(300));
    writer.ok(&["SET", KEY, &new]);
    let acknowledged = Instant::now();
    let pushed = pushed.join().map_err(|_| "the reader of pushes failed")?;
    let asked = asked.join().map_err(|_| "the reader failed")?;
    let push = nanos(pushed.saturating_duration_since(acknowledged));
    let is_stale = asked.iter().any(|(called, _, is_new)| *called > acknowledged && !is_new);
    let first_new = asked.last().map_or(acknowledged, |(_, returned, _)| *returned);
    Ok((push, if is_stale { nanos(first_new.saturating_duration_since(acknowledged)) } else { 0 }))
}

fn report(delays: &mut [Delays; 4], options: &Options, version: &str) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{} ({version}), {cores} cores, loopback, {} s", options.server, options.seconds);
    println!(
        "{:28} {:>8} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "us after the OK", "rounds", "not 0", "p50", "p99", "p99.9", "max"
    );
    let names = [
        ("push", "the server's own push"),
        ("direct", "written at the server"),
        ("second", "through a second Larder"),
        ("same", "through the same Larder"),
    ];
    let mut json = Vec::new();
    for ((name, what), delays) in names.into_iter().zip(delays) {
        delays.0.sort_unstable();
        let count = delays.0.len();
        let late = delays.0.iter().filter(|delay| **delay > 0).count();
        let [p50, p99, p999, max] = [500, 990, 999, 1000].map(|share| delays.at(share));
        println!("{what:28} {count:>8} {late:>8} {p50:>10.1} {p99:>10.1} {p999:>10.1} {max:>10.1}");
        json.push(format!(
            "\"{name}\":{{\"rounds\":{count},\"late\":{late},\"p50_us\":{p50:.1},\"p99_us\":{p99:.1},\"p999_us\":{p999:.1},\"max_us\":{max:.1}}}"
        ));
    }
    println!("{{{}}}", json.join(","));
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// === impl Delays ===

impl Delays {
    /// The delay below which so many thousandths lie, in microseconds. They are sorted.
    fn at(&self, share: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last * share).div_ceil(1000)).map_or(0.0, |nanos| *nanos as f64 / 1000.0)
    }
}

// === impl Process ===

impl Process {
    /// Starts a program on a free port and waits until it accepts.
    fn start(program: &str, configure: impl Fn(&mut Command, u16)) -> Result<Self, Box<dyn Error>> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new(program);
        configure(&mut command, port);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(|e| format!("{program}: {e}"))?;
        let process = Self { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) };
        let began = Instant::now();
        while TcpStream::connect(process.address).is_err() {
            if began.elapsed() > START_MAX {
                return Err(format!("{program} does not accept on {}", process.address).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
