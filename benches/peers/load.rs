//! The load of the throughput measurements.
//!
//! What asks for random keys is redis-benchmark, so that anyone can repeat it by hand. What it cannot do, to read each key
//! exactly once, [`read_once`] does.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connections of every load.
pub(crate) const CONNECTIONS: usize = 50;
/// Requests in one batch of [`populate`].
const POPULATE_BATCH: u64 = 500;
/// Digits of a key's number, as redis-benchmark writes it: all keys have one length.
const DIGITS: usize = 12;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// `GET k`
    Get,
    /// `SET k v`
    Set,
    /// `MGET` of ten keys.
    MgetTen,
}

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) verb: Verb,
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
    pub(crate) pipeline: usize,
    pub(crate) operations: u64,
}

/// Writes `keys` keys of `value_bytes` each.
pub(crate) fn populate(address: SocketAddr, keys: u64, value_bytes: usize) -> io::Result<()> {
    let mut stream = std::net::TcpStream::connect(address)?;
    let mut reply = vec![0; 5 * POPULATE_BATCH as usize];
    for from in (0..keys).step_by(POPULATE_BATCH as usize) {
        let until = keys.min(from + POPULATE_BATCH);
        let mut batch = Vec::new();
        for key in from..until {
            batch.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
            put_key(&mut batch, key);
            batch.extend_from_slice(format!("${value_bytes}\r\n").as_bytes());
            batch.resize(batch.len() + value_bytes, b'x');
            batch.extend_from_slice(b"\r\n");
        }
        stream.write_all(&batch)?;
        let expected = &mut reply[..5 * (until - from) as usize];
        stream.read_exact(expected)?;
        if !expected.chunks(5).all(|r| r == b"+OK\r\n") {
            return Err(wrong(expected));
        }
    }
    Ok(())
}

/// Reads all keys once through a connection, so that they are in L1 afterwards.
pub(crate) fn warm(address: SocketAddr, keys: u64, value_bytes: usize) -> io::Result<()> {
    let mut stream = std::net::TcpStream::connect(address)?;
    let mut reply = vec![0; bulk_bytes(value_bytes) * POPULATE_BATCH as usize];
    for from in (0..keys).step_by(POPULATE_BATCH as usize) {
        let until = keys.min(from + POPULATE_BATCH);
        let mut batch = Vec::new();
        (from..until).for_each(|key| put_get(&mut batch, key));
        stream.write_all(&batch)?;
        stream.read_exact(&mut reply[..bulk_bytes(value_bytes) * (until - from) as usize])?;
    }
    Ok(())
}

/// Runs redis-benchmark, on one core if it is named; returns operations a second.
pub(crate) fn random_keys(address: SocketAddr, load: Load, core: Option<usize>) -> io::Result<f64> {
    let mut command = match core {
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string(), "redis-benchmark"]);
            command
        }
        None => Command::new("redis-benchmark"),
    };
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "--csv", "-e"]);
    command.args(["-c", &CONNECTIONS.to_string(), "-P", &load.pipeline.to_string()]);
    command.args(["-n", &load.operations.to_string(), "-r", &load.keys.to_string()]);
    match load.verb {
        Verb::Get => command.args(["GET", "key:__rand_int__"]),
        Verb::Set => command.args(["SET", "key:__rand_int__", &"x".repeat(load.value_bytes)]),
        Verb::MgetTen => command.arg("MGET").args(["key:__rand_int__"; 10]),
    };
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().last().and_then(|line| line.split(',').nth(1)).map(|n| n.trim_matches('"').parse());
    match rate {
        Some(Ok(rate)) if output.status.success() => Ok(rate),
        _ => Err(io::Error::other(format!("redis-benchmark: {text}{}", String::from_utf8_lossy(&output.stderr)))),
    }
}

/// Reads `operations` keys, each once, from the key `from` on; returns operations a second. Every reply is looked at.
pub(crate) fn read_once(address: SocketAddr, load: Load, from: u64) -> io::Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let next = Arc::new(AtomicU64::new(from));
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        let began = Instant::now();
        let until = from + load.operations;
        let tasks: Vec<_> =
            streams.into_iter().map(|stream| tokio::spawn(drive(stream, load, next.clone(), until))).collect();
        for task in tasks {
            task.await.map_err(io::Error::other)??;
        }
        Ok(load.operations as f64 / began.elapsed().as_secs_f64())
    })
}

async fn drive(mut stream: TcpStream, load: Load, next: Arc<AtomicU64>, until: u64) -> io::Result<()> {
    let mut batch = Vec::new();
    let reply_bytes = bulk_bytes(load.value_bytes);
    let mut replies = vec![0; load.pipeline * reply_bytes];
    loop {
        let first = next.fetch_add(load.pipeline as u64, Ordering::Relaxed);
        let end = until.min(first + load.pipeline as u64);
        if first >= end {
            return Ok(());
        }
        batch.clear();
        (first..end).for_each(|key| put_get(&mut batch, key));
        stream.write_all(&batch).await?;
        let expected = &mut replies[..(end - first) as usize * reply_bytes];
        stream.read_exact(expected).await?;
        if !expected.chunks(reply_bytes).all(|reply| reply.starts_with(b"$") && reply.ends_with(b"\r\n")) {
            return Err(wrong(expected));
        }
    }
}

/// Appends `GET` of the key with this number.
pub(crate) fn put_get(out: &mut Vec<u8>, key: u64) {
    out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
    put_key(out, key);
}

/// Bytes of the reply that carries a value.
pub(crate) fn bulk_bytes(value_bytes: usize) -> usize {
    format!("${value_bytes}\r\n").len() + value_bytes + 2
}

/// Appends the key with this number, as an argument.
pub(crate) fn put_key(out: &mut Vec<u8>, key: u64) {
    out.extend_from_slice(format!("${}\r\nkey:{key:0DIGITS$}\r\n", DIGITS + 4).as_bytes());
}

fn wrong(reply: &[u8]) -> io::Error {
    io::Error::other(format!("not the reply that was expected: {}", reply[..reply.len().min(200)].escape_ascii()))
}
