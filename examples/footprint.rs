//! Memory that Larder takes for an entry of L1, for an idle connection, and after many connections have come and gone.
//!
//! ```text
//! cargo run --release --example footprint               all of it, with 200,000 short connections
//! cargo run --release --example footprint -- 1000000    with as many short connections
//! ```
//!
//! What is told is the growth of a process's resident memory, as the system counts it: allocator, tables and fragmentation
//! included. For entries this process holds the L1; for connections another process of this program serves the embedded
//! store, and this one connects to it. Linux only; 10,000 open files must be allowed (`ulimit -n`).

use larder::clock::Time;
use larder::config::{Sources, resolve};
use larder::l1::{L1, L1Settings, Variant};
use larder_protocol::table::Table;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

/// Entries that are put into L1: of eight shards, each has a table that has just doubled, or is about to.
const ENTRIES: [(&str, usize); 2] = [("tables just doubled", 950_000), ("tables full", 900_000)];
/// Bytes of a key and of a value.
const KEY_BYTES: usize = 16;
const VALUE_BYTES: usize = 64;
/// Goal: bytes an entry, over its key and value.
const ENTRY_GOAL: f64 = 96.0;
/// Idle connections at once.
const CONNECTIONS: usize = 10_000;
/// Goal: bytes an idle connection.
const CONNECTION_GOAL: f64 = 4096.0;
/// Short connections, unless the command line says otherwise.
const CHURN: usize = 200_000;
/// Goal: bytes that a short connection leaves behind.
const CHURN_GOAL: f64 = 1.0;

fn main() -> Result<(), Failure> {
    let word = std::env::args().nth(1);
    if word.as_deref() == Some("serve") {
        let port = std::env::args().nth(2).ok_or("serve needs a port")?;
        return serve(&port);
    }
    let churn = word.map_or(Ok(CHURN), |word| word.parse())?;
    println!("{:64} {:>10} {:>10}", "", "bytes", "goal");
    for (what, entries) in ENTRIES {
        show(&format!("an entry, over key and value, {what}"), entry(entries)?, ENTRY_GOAL);
    }
    let server = Server::start()?;
    show("an idle connection", connection(&server)?, CONNECTION_GOAL);
    show(&format!("left by each of {churn} short connections"), left_by_churn(&server, churn)?, CHURN_GOAL);
    Ok(())
}

fn show(what: &str, bytes: f64, goal: f64) {
    println!("{what:64} {bytes:>10.1} {goal:>10.1}{}", if bytes > goal { "  OVER" } else { "" });
}

/// Bytes an entry of L1, over its key and value. What it fills stays until the end, so that nothing is measured that others
/// have given back.
fn entry(entries: usize) -> Result<f64, Failure> {
    let settings = L1Settings {
        size_bytes_max: 1 << 30,
        entry_bytes_max: 1 << 20,
        variants_per_key_max: 64,
        compress_min_bytes: None,
    };
    let l1 = L1::new(settings);
    let (_partition, mut filler) = l1.partition();
    let get = Variant::bare(Table::builtin().lookup(b"get").ok_or("no GET")?.id);
    let reply = [format!("${VALUE_BYTES}\r\n").as_bytes(), &[b'x'; VALUE_BYTES], b"\r\n"].concat();
    let before = resident("self")?;
    for i in 0..entries {
        let key = format!("key:{i:0width$}", width = KEY_BYTES - 4);
        filler.fill(key.as_bytes(), get, &reply, Time::MAX, Time::from_micros(1));
    }
    let grown = resident("self")? - before;
    if l1.entries() != entries {
        return Err(format!("{} of {entries} entries are held", l1.entries()).into());
    }
    let counted = l1.bytes() as f64 / entries as f64;
    let an_entry = grown / entries as f64;
    println!("{:64} {an_entry:>10.1}", "an entry in all");
    println!("{:64} {counted:>10.1}", "what l1.size_bytes_max counts for it");
    std::mem::forget(filler);
    Ok(an_entry - (KEY_BYTES + VALUE_BYTES) as f64)
}

/// Bytes a connection that has been used and is idle now.
fn connection(server: &Server) -> Result<f64, Failure> {
    // What grows once, grows now.
    drop(open(server, 500)?);
    std::thread::sleep(Duration::from_millis(200));
    let before = server.resident()?;
    let connections = open(server, CONNECTIONS)?;
    let grown = server.resident()? - before;
    Ok(grown / connections.len() as f64)
}

fn open(server: &Server, count: usize) -> Result<Vec<TcpStream>, Failure> {
    (0..count).map(|_| server.converse()).collect()
}

/// Bytes that each of many short connections leaves behind.
fn left_by_churn(server: &Server, count: usize) -> Result<f64, Failure> {
    let run = |count: usize| -> Result<f64, Failure> {
        for _ in 0..count {
            // Reset, not closed: the system would run out of ports.
            let stream = server.converse()?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        std::thread::sleep(Duration::from_millis(200));
        server.resident()
    };
    let before = run(count / 10)?;
    Ok((run(count)? - before) / count as f64)
}

/// A process that serves the embedded store.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start() -> Result<Self, Failure> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.args(["serve", &port.to_string()]).stdout(Stdio::null()).spawn()?;
        let this = Self { child, port };
        let until = Instant::now() + Duration::from_secs(10);
        while this.converse().is_err() {
            if Instant::now() > until {
                return Err("the server does not come up".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(this)
    }

    /// A connection on which a pipeline of requests has been answered.
    fn converse(&self) -> Result<TcpStream, Failure> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(b"*2\r\n$3\r\nGET\r\n$6\r\nnosuch\r\n*1\r\n$4\r\nPING\r\n")?;
        let mut replies = [0; 12];
        stream.read_exact(&mut replies)?;
        if &replies != b"$-1\r\n+PONG\r\n" {
            return Err(String::from_utf8_lossy(&replies).into());
        }
        Ok(stream)
    }

    fn resident(&self) -> Result<f64, Failure> {
        resident(&self.child.id().to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(port: &str) -> Result<(), Failure> {
    let mut sources = Sources::default();
    for assignment in [&format!("listen=\"127.0.0.1:{port}\""), "threads=2", "limits.clients_max=20000"] {
        sources.add_assignment(assignment)?;
    }
    larder::server::run(resolve(&sources)?, Box::new(|_| ()))?;
    Ok(())
}

/// Resident bytes of a process.
fn resident(process: &str) -> Result<f64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kilobytes * 1024.0)
}
