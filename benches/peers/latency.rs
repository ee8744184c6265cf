//! Latency at a fixed rate, without coordinated omission.
//!
//! Requests are due at fixed moments, whatever became of those before. A request that is sent late, because replies were,
//! counts from the moment at which it was due. One thread goes round over all connections: no timer of the
//! generator's own is part of what it measures. When a round finds nothing to do it yields its core: the server behind a proxy may
//! share that, and would wait for the generator's time to be over.

use super::load::{CONNECTIONS, bulk_bytes, put_get};
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest latency that is told from a longer one, in nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// How long replies that are still due are waited for at the end.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What is asked, how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
    pub(crate) per_second: f64,
    pub(crate) seconds: f64,
}

struct Line {
    stream: TcpStream,
    due: VecDeque<Instant>,
    /// Bytes of the reply at hand that have come.
    come: usize,
}

/// Sends GETs at a pace; returns the latencies in nanoseconds.
pub(crate) fn measure(address: SocketAddr, pace: Pace) -> io::Result<Histogram<u64>> {
    let mut histogram = Histogram::new_with_max(LATENCY_NS_MAX, 3).map_err(io::Error::other)?;
    let mut lines = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        lines.push(Line { stream, due: VecDeque::new(), come: 0 });
    }
    let total = (pace.per_second * pace.seconds) as u64;
    let interval = Duration::from_secs_f64(1.0 / pace.per_second);
    let began = Instant::now();
    let (mut sent, mut outstanding, mut request) = (0_u64, 0_u64, Vec::new());
    while sent < total || outstanding > 0 {
        let (now, before) = (Instant::now(), (sent, outstanding));
        while sent < total && began + interval * u32::try_from(sent).unwrap_or(u32::MAX) <= now {
            let due = began + interval * u32::try_from(sent).unwrap_or(u32::MAX);
            let at = usize::try_from(sent).unwrap_or(0) % lines.len();
            request.clear();
            // A multiplier without a common factor with the number of keys visits them in a scattered order.
            put_get(&mut request, sent.wrapping_mul(7919) % pace.keys);
            lines[at].send(&request, due)?;
            (sent, outstanding) = (sent + 1, outstanding + 1);
        }
        for line in lines.iter_mut().filter(|line| !line.due.is_empty()) {
            outstanding -= line.receive(bulk_bytes(pace.value_bytes), &mut histogram)?;
        }
        if (sent, outstanding) == before {
            std::thread::yield_now();
        }
        if sent == total && now > began + interval * u32::try_from(total).unwrap_or(u32::MAX) + DRAIN_MAX {
            return Err(io::Error::other(format!("{outstanding} replies did not come")));
        }
    }
    Ok(histogram)
}

// === impl Line ===

impl Line {
    fn send(&mut self, request: &[u8], due: Instant) -> io::Result<()> {
        // A socket's buffer that is full of 33-byte requests means that nothing is answered at all.
        let written = self.stream.write(request)?;
        if written < request.len() {
            return Err(io::Error::other("the system under measurement takes nothing more"));
        }
        self.due.push_back(due);
        Ok(())
    }

    /// Takes what has come; returns how many replies it completes.
    fn receive(&mut self, reply_bytes: usize, histogram: &mut Histogram<u64>) -> io::Result<u64> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(io::Error::other("the connection was closed")),
            Ok(count) => {
                if self.come == 0 && buffer[0] != b'$' {
                    return Err(io::Error::other(format!("not a value: {}", buffer[..count.min(100)].escape_ascii())));
                }
                let now = Instant::now();
                self.come += count;
                let replies = self.come / reply_bytes;
                self.come %= reply_bytes;
                for due in self.due.drain(..replies.min(self.due.len())) {
                    let latency = u64::try_from((now - due).as_nanos()).unwrap_or(LATENCY_NS_MAX);
                    histogram.saturating_record(latency.min(LATENCY_NS_MAX));
                }
                Ok(replies as u64)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(e) => Err(e),
        }
    }
}
