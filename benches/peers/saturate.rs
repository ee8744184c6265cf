//! A load that leaves the subject no time to sleep.
//!
//! redis-benchmark makes each request anew and looks at each reply, and so costs more CPU time than the server that it
//! asks: a server that is quicker than it waits for it, and goes to sleep and is woken again for nearly each batch. That costs
//! system time, which then counts as the cost of its operations. This generator has its batches of requests ready, looks at the
//! first byte and at the number of bytes of what comes, and sends the next: it can keep any of the systems busy.

use super::load::{CONNECTIONS, Load, Verb, bulk_bytes, put_key};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Batches that are ready: they are sent in turn.
const BATCHES: usize = 256;
/// Longest wait for any reply.
const REPLY_MAX: Duration = Duration::from_secs(10);

struct Line {
    stream: TcpStream,
    /// Bytes of the replies to the batch under way that have come.
    come: usize,
}

/// What all connections send and expect.
struct Plan {
    batches: Vec<Vec<u8>>,
    reply: u8,
    replies_bytes: usize,
}

/// Asks these, with connections to each in turn, until the load's operations are done; returns operations a second.
pub(crate) fn run(addresses: &[SocketAddr], load: Load) -> io::Result<f64> {
    let plan = Plan::of(load);
    let mut poll = Poll::new()?;
    let mut lines = Vec::new();
    for (n, address) in addresses.iter().cycle().take(CONNECTIONS).enumerate() {
        // Connected before it is non-blocking, so that it can be written to at once.
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(n), Interest::READABLE)?;
        lines.push(Line { stream, come: 0 });
    }
    let wanted = load.operations / load.pipeline as u64;
    let (mut begun, mut done) = (0, 0);
    let mut events = Events::with_capacity(CONNECTIONS);
    let mut buffer = vec![0; 256 * 1024];
    let began = Instant::now();
    for line in &mut lines {
        begun += u64::from(begun < wanted && line.send(&plan, begun)?);
    }
    while done < wanted {
        poll.poll(&mut events, Some(REPLY_MAX))?;
        if events.is_empty() {
            return Err(io::Error::other("nothing comes any more"));
        }
        for event in &events {
            let Some(line) = lines.get_mut(event.token().0) else { continue };
            // No more can be there: the next batch is asked for only now.
            if line.receive(&plan, &mut buffer)? {
                done += 1;
                begun += u64::from(begun < wanted && line.send(&plan, begun)?);
            }
        }
    }
    Ok((wanted * load.pipeline as u64) as f64 / began.elapsed().as_secs_f64())
}

// === impl Plan ===

impl Plan {
    fn of(load: Load) -> Self {
        let mut draw = Draw(0x9e37_79b9);
        let batch = |_| {
            let mut batch = Vec::new();
            (0..load.pipeline).for_each(|_| put_request(&mut batch, load, &mut draw));
            batch
        };
        let (reply, reply_bytes) = match load.verb {
            Verb::Get => (b'$', bulk_bytes(load.value_bytes)),
            Verb::Set => (b'+', b"+OK\r\n".len()),
            Verb::MgetTen => (b'*', b"*10\r\n".len() + 10 * bulk_bytes(load.value_bytes)),
        };
        Self { batches: (0..BATCHES).map(batch).collect(), reply, replies_bytes: load.pipeline * reply_bytes }
    }
}

fn put_request(out: &mut Vec<u8>, load: Load, draw: &mut Draw) {
    match load.verb {
        Verb::Get => out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n"),
        Verb::Set => out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n"),
        Verb::MgetTen => out.extend_from_slice(b"*11\r\n$4\r\nMGET\r\n"),
    }
    let keys = if load.verb == Verb::MgetTen { 10 } else { 1 };
    (0..keys).for_each(|_| put_key(out, draw.below(load.keys)));
    if load.verb == Verb::Set {
        out.extend_from_slice(format!("${}\r\n{}\r\n", load.value_bytes, "x".repeat(load.value_bytes)).as_bytes());
    }
}

/// Numbers that scatter well enough (an xorshift).
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

// === impl Line ===

impl Line {
    /// Sends a batch; true, as it counts.
    fn send(&mut self, plan: &Plan, n: u64) -> io::Result<bool> {
        let batch = &plan.batches[n as usize % plan.batches.len()];
        // A socket's buffer takes more than one batch, and nothing else is in it.
        if self.stream.write(batch)? < batch.len() {
            return Err(io::Error::other("the system under measurement takes no whole batch"));
        }
        Ok(true)
    }

    /// Takes what has come; true if it completes a batch. False if nothing more is there.
    fn receive(&mut self, plan: &Plan, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            let count = match self.stream.read(buffer) {
                Ok(0) => return Err(io::Error::other("the connection was closed")),
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            };
            if self.come == 0 && buffer[0] != plan.reply {
                return Err(io::Error::other(format!(
                    "not what was asked for: {}",
                    buffer[..count.min(100)].escape_ascii()
                )));
            }
            self.come += count;
            if self.come == plan.replies_bytes {
                self.come = 0;
                return Ok(true);
            }
            if count < buffer.len() {
                return Ok(false);
            }
        }
    }
}
