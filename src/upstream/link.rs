//! CORE of the ordered link: the one stream through which everything flows that fills or invalidates L1.
//!
//! ```text
//!   jobs of clients ──submit──►  [ PTTL k | GET k | SET k v | PING ... ]  ──► upstream
//!                                 expected: one entry for each, in order
//!   replies to ports ◄─frame───  [ :5000  | $3 abc | +OK | >invalidate k | +PONG ... ]  ◄── upstream
//!                     L1 ◄─ fills and removals, in the order of the stream, before the reply is handed on
//! ```
//!
//! Nothing here does I/O or reads a clock. [`LinkCore::submit`] takes requests and writes what is to be sent into
//! [`LinkCore::outgoing`]; [`LinkCore::frame`] takes what came back, one frame at a time, and leaves replies in the
//! clients' [`Port`]s. The shell (`link_io`) moves bytes.
//!
//! Invariants:
//! * `expected` holds exactly the requests whose reply has not come, in the order in which they were written.
//! * A fill is stored only if the key was not invalidated between the reply to its PTTL and the reply to its read.
//! * The keys of a write are removed from L1 before its reply is handed on.
//! * A client's replies are handed on in the order of its requests, joined flights included: a read joins a flight only
//!   if nothing that its client has sent stands behind that flight (see [`Port::link_position`]).
//! * A request whose client has been told of a timeout keeps its place; its reply is dropped when it comes.
//!
//! How it fails: after a PTTL that is refused the read is handed on and not kept. A reply that nobody expects, a PTTL or
//! PING answered as neither is, or a push that makes no sense, is a [`Violation`]: the shell closes the connection and calls
//! [`LinkCore::lost`]. Losing the connection empties the partition first; reads are kept for one retry, writes that may
//! have been sent are reported as such.

mod aside;
mod drops;
mod flights;
mod job;
mod soft;
mod tracking;
mod under_way;

pub use self::aside::settle;
pub use self::job::{ARGUMENT_BYTES_MAX, Each, Job, Op, OpKind, REQUEST_BYTES_MAX, SoftOrder, own_too_long, too_long};

use self::flights::{argument, slice_of};
use self::tracking::Tracking;
use self::under_way::UnderWay;
use crate::clock::Time;
use crate::l1::{Cause, Filler};
use crate::mutation::{Mutation, is_planted};
use crate::outgoing::{Outgoing, SHARED_BYTES_MIN};
use crate::port::{Delivery, Failure, Port, Seq};
use crate::received::Received;
use crate::upstream::admission::{Admission, Filter};
use crate::upstream::breaker::{ErrorKind, FailureCause, classify_error};
use crate::upstream::feed::Feed;
use crate::upstream::watch::Watch;
use bytes::Bytes;
use larder_protocol::args::{ArgRange, Args};
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::scan::{RequestLimits, RequestScanner, Step};
use larder_protocol::table::{Command, CommandId, Table};
use smallvec::{SmallVec, smallvec};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// One frame that came from the upstream.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// The same bytes, if they may be passed on without copying.
    pub shared: Option<&'a Bytes>,
}

/// Bounds and habits of a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkLimits {
    /// Most requests that may wait for a reply (`link.in_flight_max`).
    pub in_flight_max: usize,
    /// Most bytes of requests that may wait for a reply (`link.in_flight_bytes_max`).
    pub in_flight_bytes_max: usize,
    /// How long the reply to a read may take before the client is told of a timeout (`link.reply_ms_max`).
    pub reply_max: Duration,
    /// The same for a write (`link.write_ms_max`).
    pub write_max: Duration,
    /// Deadline for entries where the upstream has no tracking (`l1.untracked_ttl_ms_max`); `None` keeps nothing then.
    pub untracked_ttl: Option<Duration>,
    /// Which misses are filled (`l1.admission`).
    pub admission: Admission,
    /// How long what was kept when the feed was lost may be answered at most; `None` keeps nothing over a loss.
    pub stale_longest: Option<Duration>,
}

/// Whether replies may be kept, and if not why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// The upstream tells us of changes.
    Tracked,
    /// It does not; entries live for a bounded time if the operator allows that.
    Untracked,
    /// PTTL is refused by the user's rights: no deadline can be known, so nothing is kept.
    NoPttl,
    /// Caching is off.
    Off,
}

/// The upstream has sent what no upstream sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A reply without a request, or to a request that has not been sent yet.
    #[error("a reply that nothing had asked for: {0}")]
    Unexpected(Received),
    /// A reply to a command of Larder's own that has another type than this command's: replies and requests are out of
    /// step, and the next reply would be somebody else's.
    #[error("replies are out of step: {0} was answered with {1}")]
    OutOfStep(&'static str, Received),
    /// A push that cannot be read.
    #[error("a push that makes no sense: {0}")]
    Push(Received),
}

/// What the link has done, for the metrics. Counters only grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkCounts {
    /// Replies put into L1.
    pub fills: u64,
    /// Replies not put into L1 because the key changed under the read.
    pub fills_outrun: u64,
    /// Reads whose reply was not kept because fills like it have turned out to be wasted (`l1.admission`).
    pub not_admitted: u64,
    /// Reads that shared the reply of another.
    pub joined: u64,
    /// Entries dropped because of a push.
    pub dropped_by_push: u64,
    /// Entries dropped because of a write that went through.
    pub dropped_by_write: u64,
    /// Times that the partition was emptied.
    pub emptied: u64,
    /// PINGs sent for fences.
    pub fences: u64,
    /// Requests that timed out.
    pub timeouts: u64,
    /// Entries read again before their deadline.
    pub refreshes: u64,
}

/// What a read that is to be tracked is answered with if it is not.
const NOT_TRACKED: Frame<'static> =
    Frame { bytes: b"-ERR larder: the upstream does not track what it is asked to\r\n", shared: None };
/// Failures that are kept for the breaker between two looks of the shell; more would not tell it more.
const FAILURES_MAX: usize = 1024;

/// The state machine of one link.
pub struct LinkCore {
    filler: Filler,
    table: Arc<Table>,
    limits: LinkLimits,
    caching: Caching,
    tracking: Tracking,
    expected: VecDeque<Expected>,
    under_way: UnderWay,
    /// How many flights refresh.
    refreshing: usize,
    position: u64,
    in_flight_bytes: usize,
    outgoing: Outgoing,
    /// Bytes ever written into `outgoing`.
    bytes_put: u64,
    awake: Vec<Arc<Port>>,
    scanner: RequestScanner,
    /// Keys whose reply was larger than an entry may be: their next reads go another way.
    big_keys: Vec<Bytes>,
    failures: Vec<FailureCause>,
    /// A reply has told that the server at the other end is not the one that is wanted.
    elsewhere: bool,
    /// A TOUCH has been accepted on this connection.
    may_touch: bool,
    counts: LinkCounts,
    admission: Filter,
    feed: Arc<Feed>,
    watch: Option<Arc<Watch>>,
    #[cfg(feature = "mutations")]
    late: flights::Late,
}

/// What the next reply belongs to.
#[derive(Debug)]
struct Expected {
    what: What,
    sent_at: Time,
    /// Where its bytes begin in the stream of all bytes put.
    starts_at: u64,
}

#[derive(Debug)]
enum What {
    Reply {
        port: Arc<Port>,
        seq: Seq,
        request: Bytes,
        kind: OpKind,
        state: Patience,
    },
    Pttl {
        flight: u64,
        key: usize,
    },
    Encoding {
        flight: u64,
    },
    /// Whether a soft key that the order with this number has deleted is missing still.
    Settling {
        key: Bytes,
        order: u64,
    },
    Flight(u64),
    /// `CLIENT TRACKING ON`, with OPTIN or without.
    Switch {
        opts_in: bool,
    },
    /// `CLIENT CACHING YES`.
    OptIn,
    Fence {
        waiting: SmallVec<[(Arc<Port>, Seq); 1]>,
        resumes: u32,
    },
    /// TOUCH of keys that L1 answers.
    Touch(Bytes),
    Ignored,
}

/// Whether a client still waits for its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    Waiting,
    Retried,
    ToldOfTimeout,
}

// === impl What ===

impl What {
    /// Checks the reply to a command of Larder's own. These stand between the commands of clients, so that a server that
    /// answers twice, or not at all, is found out before its replies reach the wrong clients.
    fn check_type(&self, frame: Frame<'_>) -> Result<(), Violation> {
        let kind = frame.bytes.first().copied().unwrap_or_default();
        let (command, good) = match self {
            Self::Pttl { .. } | Self::Settling { .. } => ("PTTL", kind == b':'),
            Self::Encoding { .. } => ("OBJECT ENCODING", matches!(kind, b'$' | b'+' | b'_')),
            Self::Fence { .. } => ("PING", frame.bytes == b"+PONG\r\n"),
            Self::Switch { .. } | Self::OptIn => ("CLIENT", frame.bytes == b"+OK\r\n"),
            Self::Touch(_) => ("TOUCH", kind == b':'),
            Self::Reply { .. } | Self::Flight(_) | Self::Ignored => return Ok(()),
        };
        // Any command may be refused.
        if good || matches!(kind, b'-' | b'!') {
            return Ok(());
        }
        Err(Violation::OutOfStep(command, Received::of(frame.bytes)))
    }
}

// === impl LinkCounts ===

impl std::ops::Add for LinkCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            fills: self.fills + other.fills,
            fills_outrun: self.fills_outrun + other.fills_outrun,
            not_admitted: self.not_admitted + other.not_admitted,
            joined: self.joined + other.joined,
            dropped_by_push: self.dropped_by_push + other.dropped_by_push,
            dropped_by_write: self.dropped_by_write + other.dropped_by_write,
            emptied: self.emptied + other.emptied,
            fences: self.fences + other.fences,
            timeouts: self.timeouts + other.timeouts,
            refreshes: self.refreshes + other.refreshes,
        }
    }
}

// === impl LinkCore ===

impl LinkCore {
    /// A link without a connection, whose partition is `filler`'s.
    pub fn new(filler: Filler, table: Arc<Table>, limits: LinkLimits) -> Self {
        Self {
            filler,
            table,
            limits,
            caching: Caching::Off,
            tracking: Tracking::default(),
            expected: VecDeque::new(),
            under_way: UnderWay::default(),
            refreshing: 0,
            position: 0,
            in_flight_bytes: 0,
            outgoing: Outgoing::default(),
            bytes_put: 0,
            awake: Vec::new(),
            scanner: RequestScanner::new(RequestLimits {
                request_bytes_max: u32::MAX as usize,
                args_max: usize::MAX,
                bulk_bytes_max: u32::MAX as usize,
                ..RequestLimits::default()
            }),
            big_keys: Vec::new(),
            failures: Vec::new(),
            elsewhere: false,
            may_touch: false,
            counts: LinkCounts::default(),
            admission: Filter::new(limits.admission),
            feed: Arc::default(),
            watch: None,
            #[cfg(feature = "mutations")]
            late: flights::Late::default(),
        }
    }

    /// Changes the bounds. The admission filter keeps what it has learnt, unless it is to go by another rule.
    pub fn set_limits(&mut self, limits: LinkLimits) {
        if limits.admission != self.limits.admission {
            self.admission = Filter::new(limits.admission);
        }
        self.limits = limits;
    }

    /// Seeds the hash of keys, before anything is submitted: what a simulation does is then repeatable.
    pub fn seed(&mut self, seed: u64) {
        self.under_way.seed(seed);
    }

    /// Who hears of what L1 forgets.
    pub fn set_feed(&mut self, feed: Arc<Feed>) {
        self.feed = feed;
    }

    /// Who is to hear of dependencies that others declare.
    pub fn set_watch(&mut self, watch: Arc<Watch>) {
        self.watch = Some(watch);
    }

    /// A connection has been set up; what may be kept from now on. Before anybody can be told anything by it, what was
    /// left behind for stale answers goes.
    pub fn connected(&mut self, caching: Caching, table: Arc<Table>) {
        if !is_planted(Mutation::LeftOverReconnect) {
            self.filler.partition().drop_left();
        }
        self.caching = caching;
        self.tracking = Tracking::default();
        self.may_touch = false;
        self.table = table;
        self.admission.reset();
    }

    /// True if replies may be kept for a bounded time where there is no tracking.
    pub fn may_keep_untracked(&self) -> bool {
        self.limits.untracked_ttl.is_some()
    }

    /// What is to be written to the connection. What is still in it when the connection is lost counts as not sent.
    pub fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// Requests and bytes of requests that wait for a reply.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.expected.len(), self.in_flight_bytes)
    }

    /// True if the bounds of the link are reached: the shell takes no more jobs until replies have come.
    pub fn is_full(&self) -> bool {
        self.expected.len() >= self.limits.in_flight_max || self.in_flight_bytes >= self.limits.in_flight_bytes_max
    }

    /// How many requests, and bytes of requests, there is room for. One that is begun may go beyond it.
    pub fn room(&self) -> (usize, usize) {
        let LinkLimits { in_flight_max, in_flight_bytes_max, .. } = self.limits;
        (in_flight_max.saturating_sub(self.expected.len()), in_flight_bytes_max.saturating_sub(self.in_flight_bytes))
    }

    /// When the oldest request that waits for a reply was sent.
    pub fn oldest_sent_at(&self) -> Option<Time> {
        self.expected.front().map(|e| e.sent_at)
    }

    /// What has been done so far.
    pub fn counts(&self) -> LinkCounts {
        self.counts
    }

    /// Failures of the upstream that its replies have told of (`LOADING`, `MASTERDOWN` ...), since the last call.
    pub fn take_failures(&mut self) -> Vec<FailureCause> {
        std::mem::take(&mut self.failures)
    }

    /// True if a reply since the last call has told that the name may lead to another server by now (`READONLY`).
    pub fn take_elsewhere(&mut self) -> bool {
        std::mem::take(&mut self.elsewhere)
    }

    /// Keys whose reply turned out larger than an entry may be, since the last call.
    pub fn take_big_keys(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.big_keys)
    }

    /// Wakes the clients that something was left for since the last call.
    pub fn wake_clients(&mut self) {
        #[cfg(feature = "mutations")]
        self.fill_late();
        for port in self.awake.drain(..) {
            port.wake();
        }
    }

    /// Takes a client's requests over: writes what is to be sent, expects what will come.
    pub fn submit(&mut self, job: &Job, now: Time) {
        if job.bytes.len() < SHARED_BYTES_MIN && job.ops.len() > 1 && job.is_forwarded(self.keeps()) {
            return self.submit_whole(job, now);
        }
        for op in &job.ops {
            let request = job.bytes.slice(op.bytes.start as usize..op.bytes.end as usize);
            self.submit_one(&job.port, op.seq, op.kind, request, Patience::Waiting, now);
        }
    }

    /// The same, where nothing is to stand between the requests: they are written as one.
    fn submit_whole(&mut self, job: &Job, now: Time) {
        let begins_at = self.put(&job.bytes);
        for op in &job.ops {
            let request = job.bytes.slice(op.bytes.start as usize..op.bytes.end as usize);
            let starts_at = begins_at + u64::from(op.bytes.start);
            self.expect_reply(&job.port, op.seq, op.kind, request, Patience::Waiting, starts_at, now);
        }
    }

    /// Sends a request of Larder's own, whose reply nobody waits for.
    pub fn submit_own(&mut self, request: &[u8], now: Time) {
        let starts_at = self.put(request);
        self.expect(What::Ignored, starts_at, now);
    }

    /// Tells the upstream that keys are in use; `request` is a TOUCH.
    pub fn submit_touch(&mut self, request: Bytes, now: Time) {
        let starts_at = self.put(&request);
        self.expect(What::Touch(request), starts_at, now);
    }

    /// Takes over one frame that came from the upstream.
    pub fn frame(&mut self, frame: Frame<'_>, now: Time) -> Result<(), Violation> {
        if frame.bytes.first() == Some(&b'>') {
            return self.push(frame, now);
        }
        let sent = self.bytes_sent();
        let asked_for = self.expected.front().is_some_and(|expected| expected.starts_at < sent);
        let expected = if asked_for { self.expected.pop_front() } else { None };
        let expected = expected.ok_or_else(|| Violation::Unexpected(Received::of(frame.bytes)))?;
        expected.what.check_type(frame)?;
        if frame.bytes.first() == Some(&b'-') {
            match classify_error(frame.bytes) {
                ErrorKind::Failure(cause) if self.failures.len() < FAILURES_MAX => self.failures.push(cause),
                ErrorKind::Reconnect => self.elsewhere = true,
                ErrorKind::Failure(_) | ErrorKind::PassThrough => {}
            }
        }
        match expected.what {
            What::Reply { port, seq, request, kind, state } => {
                self.in_flight_bytes -= request.len();
                let frame = if kind == OpKind::ReadTracked && !self.take_tracked() { NOT_TRACKED } else { frame };
                match kind {
                    OpKind::Write(_) if is_planted(Mutation::WriteRemovesNothing) => {}
                    OpKind::Write(command) => self.remove_keys_of(command, &request, now),
                    OpKind::Named(cause) => self.remove_named(frame, cause, now),
                    OpKind::UnlinkSoftly(order) => {
                        self.unlinked_softly(&request, expected.starts_at, order.cause, frame, now);
                    }
                    OpKind::NamedSoftly(order) => {
                        self.soften_named(frame, expected.starts_at, order, expected.sent_at, now);
                    }
                    _ => self.tell_of_read(&port, &request),
                }
                if state != Patience::ToldOfTimeout {
                    self.hand_on(&port, seq, frame);
                }
            }
            What::Pttl { flight, key } => self.pttl(flight, key, expected.sent_at, frame),
            What::Encoding { flight } => self.encoding(flight, frame),
            What::Settling { key, order } => self.settled_softly(&key, order, frame),
            What::Flight(flight) => self.landed(flight, frame, now),
            What::Switch { opts_in } => self.switched(opts_in, frame),
            What::OptIn => self.opted_in(frame),
            What::Fence { waiting, resumes } => self.fenced(waiting, resumes),
            What::Touch(request) => self.touched(&request, frame, now),
            What::Ignored => {}
        }
        Ok(())
    }

    /// A user who might touch keys, and may not any more, has lost rights, of which no push tells: what L1 holds of these keys
    /// goes.
    fn touched(&mut self, request: &[u8], frame: Frame<'_>, now: Time) {
        self.may_touch |= frame.bytes.first() == Some(&b':');
        if !self.may_touch || !frame.bytes.starts_with(b"-NOPERM") {
            return;
        }
        let Some(ranges) = self.scan(request) else { return };
        for key in Args::new(request, &ranges).iter().skip(1) {
            self.remove(key, Cause::DataChanged, now);
        }
        self.scanner_gives_back(ranges);
    }

    /// Tells clients whose request is older than allowed. Their places in the stream stay.
    pub fn time_out(&mut self, now: Time) {
        let LinkLimits { reply_max, write_max, .. } = self.limits;
        let (read_ms, write_ms) = (reply_max.as_millis() as u64, write_max.as_millis() as u64);
        let mut told: Vec<(Arc<Port>, Delivery)> = Vec::new();
        for expected in &mut self.expected {
            let age = now.saturating_since(expected.sent_at);
            if age < reply_max.min(write_max) {
                break;
            }
            match &mut expected.what {
                What::Reply { port, seq, kind, state, .. } if *state != Patience::ToldOfTimeout => {
                    let failure = match kind.is_read() {
                        true if age >= reply_max => Failure::ReadTimeout(read_ms),
                        false if age >= write_max => Failure::WriteTimeout(write_ms),
                        _ => continue,
                    };
                    *state = Patience::ToldOfTimeout;
                    told.push((port.clone(), Delivery::Failed(*seq, failure)));
                }
                What::Flight(flight) if age >= reply_max => {
                    if let Some(flight) = self.under_way.get_mut(*flight) {
                        let failed = |seq| Delivery::Failed(seq, Failure::ReadTimeout(read_ms));
                        told.extend(flight.waiting.drain(..).map(|(port, seq)| (port, failed(seq))));
                        flight.patience = Patience::ToldOfTimeout;
                    }
                }
                // A fence that cannot be answered must not let its reply go: the client is told of a timeout, too.
                What::Fence { waiting, .. } if age >= reply_max => told.extend(
                    waiting.drain(..).map(|(p, seq)| (p, Delivery::Failed(seq, Failure::WriteTimeout(read_ms)))),
                ),
                _ => {}
            }
        }
        self.counts.timeouts += told.len() as u64;
        for (port, delivery) in told {
            self.leave(&port, delivery);
        }
    }

    /// The connection is gone, and was whole until `whole_until`. Empties the partition before anything else, tells what
    /// became of what was under way, and returns the reads that are to be sent once more on the next connection, oldest
    /// first. `cause` is what counts for what leaves L1. [`LinkCore::leave_behind`] is to be called next.
    pub fn lost(&mut self, whole_until: Time, cause: Cause) -> Vec<Retry> {
        if !is_planted(Mutation::KeptOverReconnect) {
            self.part_from_feed(whole_until, cause);
            self.feed.tell(None, cause);
        }
        self.counts.emptied += 1;
        self.caching = Caching::Off;
        let sent = self.bytes_sent();
        let mut retries = Vec::new();
        let writes = self.last_writes(sent);
        for (at, expected) in std::mem::take(&mut self.expected).into_iter().enumerate() {
            let unsent = expected.starts_at >= sent;
            let overtaken = |port: &Arc<Port>| writes.get(&Arc::as_ptr(port)).is_some_and(|write| *write > at);
            match expected.what {
                What::Reply { port, seq, request, kind, state } => {
                    let state = if kind.is_read() && overtaken(&port) { state.exhausted() } else { state };
                    self.lost_one(port, seq, request, kind, state, unsent, expected.sent_at, &mut retries);
                }
                What::Flight(flight) => self.lost_flight(flight, overtaken, &mut retries),
                // What the fence was for, that L1 holds nothing older, is true of an empty L1.
                What::Fence { waiting, resumes } => self.fenced(waiting, resumes),
                What::Pttl { .. } | What::Encoding { .. } | What::Settling { .. } => {}
                What::Switch { .. } | What::OptIn | What::Touch(_) | What::Ignored => {}
            }
        }
        self.under_way.clear();
        self.refreshing = 0;
        self.in_flight_bytes = 0;
        self.outgoing = Outgoing::default();
        self.bytes_put = 0;
        retries
    }

    /// Sends a read once more, after [`LinkCore::lost`].
    pub fn retry(&mut self, retry: Retry, now: Time) {
        let Retry { port, seq, request, kind, again, .. } = retry;
        self.submit_one(&port, seq, kind, request, again, now);
    }

    fn submit_one(&mut self, port: &Arc<Port>, seq: Seq, kind: OpKind, request: Bytes, state: Patience, now: Time) {
        match kind {
            OpKind::Fill { key_at, may_join, .. } if self.keeps() => {
                self.submit_fill(port, seq, kind, request, usize::from(key_at), may_join, state, now);
            }
            OpKind::Refresh { key_at, .. } => self.submit_refresh(kind, request, usize::from(key_at), now),
            OpKind::FillEach(_) if self.keeps() => self.submit_fill_each(port, seq, kind, request, state, now),
            OpKind::Fence | OpKind::FenceAndResume => {
                self.submit_fence(port, seq, kind == OpKind::FenceAndResume, now);
            }
            OpKind::Drop(cause) => self.drop_keys(port, seq, &request, cause, now),
            OpKind::DropAll(cause) => self.drop_all(port, seq, cause),
            OpKind::Soften(order) => self.soften_keys(port, seq, &request, order, now),
            OpKind::ReadTracked => {
                self.opt_in(now);
                self.send(port, seq, kind, request, state, now);
            }
            OpKind::UnlinkSoftly(order) => self.unlink_softly(port, seq, request, order, state, now),
            _ => {
                self.send(port, seq, kind, request, state, now);
            }
        }
    }

    /// Writes a request whose reply is for a client; where it begins among all bytes put.
    fn send(&mut self, port: &Arc<Port>, seq: Seq, kind: OpKind, request: Bytes, state: Patience, now: Time) -> u64 {
        let starts_at = self.put_shared(&request);
        self.expect_reply(port, seq, kind, request, state, starts_at, now);
        starts_at
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one expected reply, put together here")]
    fn expect_reply(
        &mut self,
        port: &Arc<Port>,
        seq: Seq,
        kind: OpKind,
        request: Bytes,
        state: Patience,
        starts_at: u64,
        now: Time,
    ) {
        self.in_flight_bytes += request.len();
        self.expect(What::Reply { port: port.clone(), seq, request, kind, state }, starts_at, now);
        port.set_link_position(self.position);
    }

    fn submit_fence(&mut self, port: &Arc<Port>, seq: Seq, resumes: bool, now: Time) {
        self.tell_of_ended();
        let nothing_is_older = self.filler.partition().is_empty() && self.under_way.is_empty();
        if nothing_is_older && !resumes || is_planted(Mutation::FenceDropped) {
            self.leave(port, Delivery::Fenced(seq));
            return;
        }
        // A PING that has not left yet will be sent after this moment, too.
        let sent = self.bytes_sent();
        if let Some(Expected { what: What::Fence { waiting, resumes: also }, starts_at, .. }) = self.expected.back_mut()
            && *starts_at >= sent
        {
            waiting.push((port.clone(), seq));
            *also += u32::from(resumes);
            return;
        }
        let starts_at = self.put(b"*1\r\n$4\r\nPING\r\n");
        self.expect(
            What::Fence { waiting: smallvec![(port.clone(), seq)], resumes: u32::from(resumes) },
            starts_at,
            now,
        );
        self.counts.fences += 1;
    }

    /// True if replies are kept at present.
    pub fn keeps(&self) -> bool {
        match self.caching {
            Caching::Tracked => true,
            Caching::Untracked => self.limits.untracked_ttl.is_some(),
            Caching::NoPttl | Caching::Off => false,
        }
    }

    fn push(&mut self, frame: Frame<'_>, now: Time) -> Result<(), Violation> {
        let senseless = || Violation::Push(Received::of(frame.bytes));
        let mut cursor = Cursor::new(frame.bytes);
        let _count = cursor.next_count().ok_or_else(senseless)?;
        if cursor.next_bytes().ok_or_else(senseless)? != b"invalidate" {
            return Ok(());
        }
        match cursor.next().ok_or_else(senseless)? {
            Item::Null if is_planted(Mutation::NullPushIgnored) => {}
            Item::Null => {
                if let Some(watch) = &self.watch {
                    watch.hear_all();
                }
                self.empty();
            }
            Item::Aggregate(_, n) => {
                for _ in 0..n {
                    let key = cursor.next_bytes().ok_or_else(senseless)?;
                    if let Some(watch) = &self.watch {
                        watch.hear(key);
                    }
                    self.counts.dropped_by_push += u64::from(self.pushed(key, now));
                }
            }
            _ => return Err(senseless()),
        }
        Ok(())
    }

    /// Everything may have changed: for the keys of flights under way, too.
    fn empty(&mut self) {
        self.filler.empty(Cause::DataChanged);
        self.feed.tell(None, Cause::DataChanged);
        self.counts.emptied += 1;
        self.under_way.all_changed();
    }

    fn remove(&mut self, key: &[u8], cause: Cause, now: Time) -> bool {
        self.under_way.changed(key);
        let removed = self.filler.remove(key, cause, now);
        // Afterwards: who acts upon the news must not find the entry.
        self.feed.tell(Some(key), cause);
        removed
    }

    fn remove_keys_of(&mut self, command: CommandId, request: &Bytes, now: Time) {
        let partition = self.filler.partition();
        if partition.is_empty() && self.under_way.is_empty() && !partition.has_peers() {
            return;
        }
        // Most write one key, whose place is known.
        let single = self.table.command(command).and_then(Command::single_key_at);
        if let Some(at) = single.and_then(|at| argument(request, at)) {
            return self.remove_written(slice_of(request, &at), now);
        }
        let table = self.table.clone();
        let Some(command) = table.command(command) else { return };
        let Some(ranges) = self.scan(request) else { return };
        let args = Args::new(request, &ranges);
        for key_at in command.keys(args) {
            self.remove_written(args.arg(key_at), now);
        }
        self.scanner_gives_back(ranges);
    }

    fn remove_written(&mut self, key: &[u8], now: Time) {
        let removed = self.written(key, Cause::DataChanged, now);
        self.counts.dropped_by_write += u64::from(removed);
    }

    fn fenced(&mut self, waiting: SmallVec<[(Arc<Port>, Seq); 1]>, resumes: u32) {
        // Where no push tells of what the fence waited for, all that is held may be older than that.
        if resumes > 0 || self.caching == Caching::Untracked {
            self.empty();
        }
        (0..resumes).for_each(|_| self.filler.partition().resume());
        for (port, seq) in waiting {
            self.leave(&port, Delivery::Fenced(seq));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one expected reply, taken apart by the caller")]
    fn lost_one(
        &mut self,
        port: Arc<Port>,
        seq: Seq,
        request: Bytes,
        kind: OpKind,
        state: Patience,
        unsent: bool,
        sent_at: Time,
        retries: &mut Vec<Retry>,
    ) {
        match state {
            Patience::ToldOfTimeout => {}
            _ if unsent => retries.push(Retry { port, seq, request, kind, again: state, sent_at }),
            Patience::Waiting if kind.is_read() => {
                retries.push(Retry { port, seq, request, kind, again: Patience::Retried, sent_at });
            }
            Patience::Retried => self.leave(&port, Delivery::Failed(seq, Failure::ReadLost)),
            Patience::Waiting => self.leave(&port, Delivery::Failed(seq, Failure::WriteLost)),
        }
    }

    /// Where the last write of each client stands among the requests that have been sent. A read in front of it is not sent
    /// again: it could see that write.
    fn last_writes(&self, sent: u64) -> HashMap<*const Port, usize> {
        let gone = self.expected.iter().enumerate().take_while(|(_, expected)| expected.starts_at < sent);
        let writes = gone.filter_map(|(at, expected)| match &expected.what {
            What::Reply { port, kind, .. } if !kind.is_read() => Some((Arc::as_ptr(port), at)),
            _ => None,
        });
        writes.collect()
    }

    fn hand_on(&mut self, port: &Arc<Port>, seq: Seq, frame: Frame<'_>) {
        if port.reply(seq, frame.bytes, frame.shared) {
            self.awake.push(port.clone());
        }
    }

    fn leave(&mut self, port: &Arc<Port>, delivery: Delivery) {
        if port.leave(delivery) {
            self.awake.push(port.clone());
        }
    }

    /// How many of the bytes put have left `outgoing`.
    fn bytes_sent(&self) -> u64 {
        self.bytes_put - self.outgoing.len() as u64
    }

    fn put(&mut self, bytes: &[u8]) -> u64 {
        let starts_at = self.bytes_put;
        self.outgoing.put(bytes);
        self.bytes_put += bytes.len() as u64;
        starts_at
    }

    /// Writes two pieces of one request.
    fn put_both(&mut self, head: &[u8], rest: &[u8]) -> u64 {
        let starts_at = self.put(head);
        self.put(rest);
        starts_at
    }

    fn put_shared(&mut self, bytes: &Bytes) -> u64 {
        let starts_at = self.bytes_put;
        if bytes.len() < SHARED_BYTES_MIN {
            self.outgoing.put(bytes);
        } else {
            self.outgoing.put_shared(bytes.clone());
        }
        self.bytes_put += bytes.len() as u64;
        starts_at
    }

    fn expect(&mut self, what: What, starts_at: u64, now: Time) {
        self.position += 1;
        self.expected.push_back(Expected { what, sent_at: now, starts_at });
    }

    /// The argument ranges of a request that a session has made. The vector is to be given back.
    fn scan(&mut self, request: &[u8]) -> Option<Vec<ArgRange>> {
        match self.scanner.scan(request) {
            Ok(Step::Request { .. }) => Some(self.scanner.take_ranges()),
            _ => {
                self.scanner = RequestScanner::new(RequestLimits::default());
                None
            }
        }
    }

    fn scanner_gives_back(&mut self, ranges: Vec<ArgRange>) {
        self.scanner.give_ranges(ranges);
    }
}

/// A read that is to be sent once more.
#[derive(Debug)]
pub struct Retry {
    port: Arc<Port>,
    seq: Seq,
    request: Bytes,
    kind: OpKind,
    again: Patience,
    /// When it was sent first: its deadline counts from there.
    pub sent_at: Time,
}

// === impl Retry ===

impl Retry {
    /// What a client is told of a request that was never executed and has waited too long.
    pub fn given_up(&self) -> Failure {
        if self.kind.is_read() {
            return Failure::ReadLost;
        }
        Failure::Down("the connection was lost, and no other could be made in time; nothing was executed".into())
    }

    /// Gives up: tells the client.
    pub fn fail(self, failure: Failure) {
        self.port.leave(Delivery::Failed(self.seq, failure));
        self.port.wake();
    }
}

// === impl Patience ===

impl Patience {
    /// The same for a request that is not to be sent again once it has been sent.
    fn exhausted(self) -> Self {
        if self == Self::Waiting { Self::Retried } else { self }
    }
}
