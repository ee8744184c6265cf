//! One client's connection: its socket on one side, its [`Session`](crate::session::Session) on the other.
//!
//! ```text
//!   socket ──read──► scanner ──request──► Core::take ─┬─ answered from L1 or here ──► outgoing ──write──► socket
//!                                                     ├─ slot + batch ──► link ──► port ──► slot leaves in order
//!                                                     └─ apart: AUTH, SELECT, SUBSCRIBE ... and the tunnel
//! ```
//!
//! A client is one task on one worker thread. A turn takes what has come for it from its port, reads once, looks at the
//! requests in one pass, hands what goes upstream to the link as one job, and writes once. Requests that need to wait for
//! something else than the link are handled *apart*, when nothing of the client is under way.
//!
//! Invariants: input is not read while `limits.client_in_flight_max` requests have no reply or too much output
//! waits; a request is looked at again from its start if it could not be taken; an idle client holds no read buffer (the
//! thread has one for all).
//!
//! How it fails: bytes that are no request get redis-server's error line and the connection is closed behind it; so is
//! one whose client has gone or was killed.

mod apart;
mod bounds;
mod cache;
mod core;
mod hold;
mod local;
mod peek;
mod retold;
mod tracking;
mod tunnel;

use self::bounds::Bounds;
pub(crate) use self::core::Place;
use self::core::{Admission, Core, Take};
use crate::buffered::Share;
use crate::clients::{Client, ClientId};
use crate::insight::latency::Timed;
use crate::metrics::Counters;
use crate::pause::Waiting;
use crate::server::Shared;
use bytes::{Buf, BytesMut};
use larder_protocol::args::{ArgRange, Args};
use larder_protocol::scan::{RequestScanner, Step};
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// The size of the thread's read buffer.
const READ_BYTES: usize = 64 * 1024;
/// While so much output waits, nothing is read, so that a pipeline of large answers does not gather in memory.
const OUTPUT_PAUSE_BYTES: usize = 256 * 1024;
/// Reads of one client before others have a turn.
const TURNS_MAX: usize = 8;
/// While requests wait, so much more is read from the client.
const READ_AHEAD_BYTES_MAX: usize = 64 * 1024;
/// A read of more of a request asks for this much at least.
const READ_ON_BYTES: usize = 16 * 1024;
/// A read of a large request asks for this much at most.
const LARGE_READ_BYTES: usize = 1024 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// The connection's socket and what was read from it.
struct Io {
    stream: TcpStream,
    /// Bytes that were read and not yet taken; begins with a request.
    pending: BytesMut,
    scanner: RequestScanner,
    /// Bytes that the request at hand is known to lack.
    lacks: usize,
    state: Input,
    /// True once the client has said that it will send no more.
    eof: bool,
    /// True if `pending` is known to hold no whole request.
    is_short: bool,
}

/// Whether more may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// Nothing hinders.
    Open,
    /// The request at the start of `pending` waits for its turn.
    Stalled,
    /// What it sent was no request, or it said QUIT: nothing more is taken.
    Closed,
}

/// A request that was taken out of the input.
struct Request {
    bytes: bytes::Bytes,
    ranges: Vec<ArgRange>,
}

/// Why a turn ended.
enum Turn {
    /// The connection is to be closed.
    Close,
    /// The request at the start of `pending` is to be handled apart.
    Apart,
}

/// The end of a connection.
pub(crate) enum End {
    /// The client has gone, was killed or has said QUIT.
    Closed,
    /// The socket failed.
    Io(io::Error),
}

/// Serves one client until it leaves.
pub(crate) async fn serve(stream: TcpStream, registered: Registered, client: Arc<Client>, counters: Arc<Counters>) {
    let (shared, id) = (registered.shared.clone(), client.id);
    let scanner = RequestScanner::new(shared.request_limits());
    let mut connection = match Core::new(shared.clone(), client, counters) {
        Ok(core) => {
            let bounds = Bounds::new(&shared.settings().limits);
            let share = shared.buffered.share();
            Connection {
                io: Io {
                    stream,
                    pending: BytesMut::new(),
                    scanner,
                    lacks: 0,
                    state: Input::Open,
                    eof: false,
                    is_short: true,
                },
                core,
                bounds,
                turn: None,
                share,
                crowd: None,
            }
        }
        Err(line) => {
            // The answer is a courtesy; there is nobody to tell if it cannot be written.
            let _ = stream.into_std().and_then(|mut stream| stream.write(format!("-{line}\r\n").as_bytes()));
            return;
        }
    };
    if let End::Io(error) = connection.run().await {
        tracing::debug!(client = id.0, cause = %error, "connection ended");
    }
    connection.core.leave_hub();
    // Whoever sees the connection closed finds nobody in the registry any more.
    drop(registered);
}

/// A client's place in the registry, given up however its task ends.
pub(crate) struct Registered {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: ClientId,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.clients.leave(self.id);
        // After that: who redirects to it meanwhile looks whether it is still there.
        self.shared.redirects.leave(self.id);
    }
}

struct Connection {
    io: Io,
    core: Core,
    bounds: Bounds,
    /// The turn of a client that was held by CLIENT PAUSE: the next one goes on when its request has been handed on.
    turn: Option<Waiting>,
    /// What it holds of all that waits in the process.
    share: Share,
    /// Since so much waits altogether that nothing is read: when that ends by refusals.
    crowd: Option<Pin<Box<Sleep>>>,
}

// === impl Connection ===

impl Connection {
    async fn run(&mut self) -> End {
        loop {
            let turn = match poll_fn(|cx| self.poll_turn(cx)).await {
                Ok(turn) => turn,
                Err(error) => return End::Io(error),
            };
            match turn {
                Turn::Close => return End::Closed,
                Turn::Apart => {
                    // Boxed: what is rare and needs much room for its state must not make all clients' tasks large.
                    if let Err(end) = Box::pin(self.apart()).await {
                        return end;
                    }
                    if self.core.ends_after_answer {
                        self.io.state = Input::Closed;
                    }
                    self.io.state = if self.io.state == Input::Stalled { Input::Open } else { self.io.state };
                    self.io.is_short = false;
                }
            }
        }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Turn>> {
        if self.core.has_lost_its_user() {
            return Poll::Ready(Ok(Turn::Close));
        }
        // What a stalled request waits for may have come to pass with whatever has woken the task.
        let mut moved = true;
        let mut active = false;
        // True once the port has the waker: what is left there from then on wakes the task.
        let mut port_is_empty = false;
        self.look_around(cx);
        for turn in 0..TURNS_MAX {
            if moved && self.io.state == Input::Stalled {
                self.io.state = Input::Open;
            }
            active |= std::mem::take(&mut moved) && turn > 0;
            if !port_is_empty {
                if self.core.client.port.poll_ready(cx).is_ready() {
                    if self.core.client.port.is_killed() {
                        return Poll::Ready(Ok(Turn::Close));
                    }
                    self.core.take_deliveries();
                    moved = true;
                } else {
                    port_is_empty = true;
                }
            }
            if moved && self.io.state == Input::Stalled {
                self.io.state = Input::Open;
            }
            match self.take_input(cx)? {
                Took::Something => moved = true,
                // All has been seen to in the turn before.
                Took::Nothing if turn > 0 && !moved => return self.rest(active, cx),
                Took::Nothing => {}
                Took::Apart => {
                    self.core.submit();
                    if self.core.session.under_way() == 0 {
                        return Poll::Ready(Ok(Turn::Apart));
                    }
                }
            }
            let waited_for = self.core.session.under_way();
            self.core.submit();
            self.turn = None;
            // What could not be sent has been answered at once.
            moved |= waited_for > 0 && self.core.session.under_way() == 0;
            if self.core.session.is_head_ready() {
                self.core.advance();
                moved = true;
            }
            let waited = self.core.out.len();
            let drained = self.flush(cx)?;
            self.core.time_hits();
            moved |= self.core.out.len() < waited;
            self.tell_share(0);
            if self.is_done(drained) || self.has_too_much_output(cx) || !drained && self.holds_others_up(0) {
                return Poll::Ready(Ok(Turn::Close));
            }
            if !moved {
                return self.rest(active, cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ends a poll in which nothing is left to do.
    fn rest(&mut self, active: bool, cx: &mut Context<'_>) -> Poll<io::Result<Turn>> {
        let waits = self.core.session.under_way() > 0;
        if self.is_idle_too_long(active, waits, cx) { Poll::Ready(Ok(Turn::Close)) } else { Poll::Pending }
    }

    /// Whether so much waits in the process that nothing is to be read from clients, and for how long that was so.
    fn look_around(&mut self, cx: &mut Context<'_>) {
        if !self.share.account().is_full() {
            if self.core.admission != Admission::Open {
                self.crowd = None;
                self.core.admission = Admission::Open;
            }
            return;
        }
        let wait_max = self.core.shared.settings().limits.buffered_wait_ms_max;
        let crowd = self.crowd.get_or_insert_with(|| Box::pin(sleep(wait_max)));
        if self.core.admission != Admission::Refusing {
            let over = crowd.as_mut().poll(cx).is_ready();
            self.core.admission = if over { Admission::Refusing } else { Admission::Closed };
        }
        // Of a request that is not all there nothing can be refused but the connection.
        if self.core.admission == Admission::Refusing && self.io.is_short && self.io.pending.len() > READ_BYTES {
            self.core.refuse_for_crowd();
            self.io.state = Input::Closed;
        }
    }

    /// Tells how much waits in this connection; `elsewhere` are bytes in its tunnel.
    fn tell_share(&mut self, elsewhere: usize) {
        self.share.set(self.io.pending.len() + self.core.waiting_bytes() + elsewhere);
    }

    /// True if too much waits in the process, and more than its part for this client, who does not read it.
    fn holds_others_up(&self, elsewhere: usize) -> bool {
        let account = self.share.account();
        if !account.is_full() {
            return false;
        }
        let bytes = self.core.waiting_bytes() + elsewhere;
        let part = account.bytes_max() / self.core.shared.clients.len().max(1);
        let too_much = bytes > OUTPUT_PAUSE_BYTES.max(part);
        if too_much {
            account.count_closed();
            let client = self.core.client.id.0;
            tracing::warn!(client, bytes, "client closed: too much waits altogether, and it does not read");
        }
        too_much
    }

    fn is_done(&self, drained: bool) -> bool {
        let idle = self.core.shared.is_draining() && self.io.pending.is_empty();
        let ended =
            idle || self.io.state == Input::Closed || self.io.eof && (self.io.is_short || self.io.pending.is_empty());
        ended && drained && self.core.session.under_way() == 0
    }

    /// Takes requests from what was read, and reads more.
    fn take_input(&mut self, cx: &mut Context<'_>) -> io::Result<Took> {
        let mut took = Took::Nothing;
        if !self.io.pending.is_empty() && self.io.state == Input::Open && self.core.may_take() {
            took = self.take_pending();
            if took == Took::Apart {
                return Ok(took);
            }
        }
        if self.io.state == Input::Open && !self.io.eof && self.core.may_take() {
            let read = if self.io.pending.is_empty() && self.io.lacks <= READ_BYTES {
                self.read(cx)?
            } else {
                self.read_on(cx)?
            };
            took = match (took, read) {
                (_, Took::Apart) => Took::Apart,
                (Took::Something, _) => Took::Something,
                _ => read,
            };
        }
        Ok(took)
    }

    /// Reads once into the thread's buffer and takes the requests in it. `poll_read` knows that a read which does not fill
    /// the buffer has emptied the socket: no second one is made to find that out.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<Took> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut self.io.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(Took::Nothing),
                Poll::Ready(result) => result?,
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.io.eof = true;
                return Ok(Took::Something);
            }
            let (taken, took) = self.core.take_requests(&mut self.io.scanner, read);
            self.io.settle(took, &read[taken..]);
            Ok(took.after(taken))
        })
    }

    /// Reads more of a request that is not complete.
    fn read_on(&mut self, cx: &mut Context<'_>) -> io::Result<Took> {
        match self.io.poll_read_more(cx)? {
            Poll::Pending => Ok(Took::Nothing),
            Poll::Ready(0) => {
                self.io.eof = true;
                Ok(Took::Something)
            }
            Poll::Ready(_) => Ok(self.take_pending()),
        }
    }

    fn take_pending(&mut self) -> Took {
        let pending = std::mem::take(&mut self.io.pending);
        let (taken, took) = self.core.take_requests(&mut self.io.scanner, &pending);
        self.io.pending = pending;
        self.io.pending.advance(taken);
        self.io.settle(took, &[]);
        took.after(taken)
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        // It nearly always takes all: only where it does not, the task waits for it.
        while !self.core.out.write_to(&self.io.stream)? {
            match self.io.stream.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Ok(false),
            }
        }
        Ok(true)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Took {
    Nothing,
    Something,
    Apart,
}

/// How a pass over the input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// At the end of what was read, in the middle of a request that lacks at least so much.
    Short(usize),
    /// At a request that waits.
    Stalled,
    /// At a request to be handled apart.
    Apart,
    /// At something that ends the connection.
    Closed,
}

// === impl Pass ===

impl Pass {
    /// What the pass came to, after so many bytes were taken.
    fn after(self, taken: usize) -> Took {
        match self {
            Self::Apart => Took::Apart,
            Self::Stalled if taken == 0 => Took::Nothing,
            _ => Took::Something,
        }
    }
}

// === impl Io ===

impl Io {
    /// Notes how a pass ended and keeps what it left.
    fn settle(&mut self, pass: Pass, rest: &[u8]) {
        self.pending.extend_from_slice(rest);
        // Whatever comes next: a client that has sent much is not to keep it.
        if self.pending.is_empty() && self.pending.capacity() > 0 {
            self.pending = BytesMut::new();
        }
        self.lacks = 0;
        self.is_short = matches!(pass, Pass::Short(_));
        match pass {
            Pass::Short(lacks) => {
                self.lacks = lacks;
                self.scanner.shrink();
            }
            Pass::Stalled | Pass::Apart => self.state = Input::Stalled,
            Pass::Closed => self.state = Input::Closed,
        }
    }

    /// Reads into `pending`; ready with the number of bytes, zero at the end.
    fn poll_read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            match self.stream.poll_read_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(ready) => ready?,
            }
            self.pending.reserve(self.lacks.clamp(READ_ON_BYTES, LARGE_READ_BYTES));
            match self.stream.try_read_buf(&mut self.pending) {
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

// === impl Request ===

impl Request {
    fn args(&self) -> Args<'_> {
        Args::new(&self.bytes, &self.ranges)
    }
}

// === impl Core (the pass over the input) ===

impl Core {
    /// Takes requests from `input` as far as possible: how many bytes were taken, and why no more.
    fn take_requests(&mut self, scanner: &mut RequestScanner, input: &[u8]) -> (usize, Pass) {
        scanner.set_authenticated(self.is_authenticated());
        self.paused = self.shared.pauses.mode();
        self.is_watched = self.shared.monitors.any();
        let mut at = 0;
        let came_at = self.shared.clock.now();
        self.session.begin_batch(came_at);
        let hits_before = self.counters.hits.value();
        let pass = self.with_surroundings(|core, around| {
            let mut last = core.recall(scanner, input, around);
            at += core.take_hits(scanner, input, last, around);
            // Where looking ahead has found nothing, it would find nothing again.
            let mut looks_ahead = last.is_none() || at > 0;
            loop {
                if !core.may_take() {
                    return Pass::Stalled;
                }
                let step = match scanner.scan(&input[at..]) {
                    Ok(step) => step,
                    Err(error) => {
                        core.refuse_input(error, &input[at..]);
                        return Pass::Closed;
                    }
                };
                match step {
                    Step::Incomplete { bytes_needed_min } => return Pass::Short(bytes_needed_min),
                    Step::Nothing { len } => at += len,
                    Step::Request { len } => {
                        match core.take(scanner.args(&input[at..]), scanner.repeats(), &mut last, around) {
                            Take::Taken => {
                                at += len;
                                if looks_ahead {
                                    let taken = core.take_hits(scanner, &input[at..], last, around);
                                    looks_ahead = taken > 0;
                                    at += taken;
                                }
                            }
                            Take::Wait => return Pass::Stalled,
                            Take::Apart => return Pass::Apart,
                            Take::Close => {
                                at += len;
                                return Pass::Closed;
                            }
                        }
                    }
                }
                if core.ends_after_answer {
                    return Pass::Closed;
                }
            }
        });
        self.hits_to_time = (came_at, self.counters.hits.value().wrapping_sub(hits_before));
        self.client.heard_at_s.store(came_at.as_micros() / 1_000_000, Ordering::Relaxed);
        (at, pass)
    }

    /// The answers of the last pass have been written: that is how long its hits took. One look at the clock for all.
    fn time_hits(&mut self) {
        let (came_at, hits) = std::mem::take(&mut self.hits_to_time);
        if hits > 0 {
            let micros = self.shared.clock.now().saturating_since(came_at).as_micros() as u64;
            self.counters.latencies.record(Timed::Hit, micros, hits);
        }
    }
}
