//! A client's letter box: where other tasks leave what concerns the client, and wake it once for a batch.
//!
//! The reader of a link, the subscription hub and `CLIENT KILL` run on other threads than the client they speak to.
//! They leave deliveries here; the client's task takes them all at once. Small replies are copied into one buffer, so
//! that a batch of replies costs no allocation each and keeps no receive buffer of the link alive; large ones are
//! passed on by reference.
//!
//! Invariants: deliveries keep the order in which they were left; a client is woken only when its box was empty.
//! Bounds: replies are bounded by the client's requests in flight; messages of subscriptions by
//! `limits.subscriber_output_bytes_max`, above which the client is disconnected as redis-server would.

use crate::l1::Reader;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The number of a client's request: replies are matched by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// What was left for a client.
#[derive(Debug)]
pub enum Delivery {
    /// A reply of the link, `len` bytes further on in [`Taken::bytes`].
    Small {
        /// Which request it answers.
        seq: Seq,
        /// Its length.
        len: usize,
    },
    /// A large reply of the link.
    Large(Seq, Bytes),
    /// The request could not be answered.
    Failed(Seq, Failure),
    /// The link has caught up with the moment at which the fence was asked for.
    Fenced(Seq),
    /// A message of a subscription, in RESP3.
    Message(Bytes),
    /// An invalidation that another client's tracking redirects to this one: the push that the upstream has sent.
    Invalidation(Bytes),
    /// A line for a client that watches (MONITOR).
    Line(Bytes),
    /// Somebody waits until this client, which watches, has caught up with the server.
    CatchUp(CatchUp),
}

/// Somebody waits for a client that watches: told, as of a fence, when this is dropped, for whatever reason.
#[derive(Debug)]
pub struct CatchUp {
    port: Arc<Port>,
    seq: Seq,
}

/// Why a request has no reply. `Display` is the error line without the dash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nothing was sent: a retry is safe.
    #[error("UPSTREAMDOWN {0}")]
    Down(String),
    /// A read was lost with its link twice: a retry is safe.
    #[error("UPSTREAMLOST connection lost; the command only reads and may be sent again")]
    ReadLost,
    /// A write was lost with its link.
    #[error("UPSTREAMLOST connection lost; the command may or may not have been executed")]
    WriteLost,
    /// No reply to a read in time: a retry is safe.
    #[error("UPSTREAMTIMEOUT no reply within {0} ms; the command only reads and may be sent again")]
    ReadTimeout(u64),
    /// No reply to a write in time.
    #[error("UPSTREAMTIMEOUT no reply within {0} ms; the command may or may not have been executed")]
    WriteTimeout(u64),
    /// The upstream has refused the connection on which the request would have gone: its line, without the dash.
    #[error("{}", String::from_utf8_lossy(.0))]
    Refused(Bytes),
    /// No exclusive connection was free in time; nothing was sent.
    #[error("POOLFULL no exclusive connection to the upstream became free within {0} ms; nothing was sent")]
    PoolFull(u64),
    /// Too much waits in the process altogether; nothing was sent.
    #[error(
        "BUSYBUFFERS too much waits for the upstream and for clients altogether (limits.buffered_bytes_max); nothing was sent"
    )]
    Buffered,
    /// Too much is under way already; nothing was sent.
    #[error("BUSYLINK too many requests in flight to the upstream; nothing was sent")]
    Full,
}

/// The letter box.
#[derive(Debug)]
pub struct Port {
    reader: Reader,
    inbox: Mutex<Inbox>,
    killed: AtomicBool,
    link_position: AtomicU64,
}

/// What a client has taken from its box.
#[derive(Debug, Default)]
pub struct Taken {
    /// Deliveries in order.
    pub deliveries: Vec<Delivery>,
    /// The bytes of the small replies, in order.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Inbox {
    taken: Taken,
    message_bytes: usize,
    waker: Option<Waker>,
}

/// Buffers larger than this are given back when the box has been emptied.
const KEPT_BYTES_MAX: usize = 4 * 1024;

/// Readers are numbered over the whole process.
static LAST_READER: AtomicU64 = AtomicU64::new(0);

// === impl Port ===

impl Default for Port {
    fn default() -> Self {
        Self {
            reader: Reader(LAST_READER.fetch_add(1, Ordering::Relaxed) + 1),
            inbox: Mutex::default(),
            killed: AtomicBool::new(false),
            link_position: AtomicU64::new(0),
        }
    }
}

impl Port {
    /// Leaves a reply. True if the box was empty: the caller wakes the client after its batch by [`Port::wake`].
    /// It is copied unless `shared` holds the same bytes.
    #[inline]
    pub fn reply(&self, seq: Seq, reply: &[u8], shared: Option<&Bytes>) -> bool {
        let mut inbox = self.lock();
        let was_empty = inbox.taken.deliveries.is_empty();
        match shared {
            Some(shared) => inbox.taken.deliveries.push(Delivery::Large(seq, shared.clone())),
            None => {
                inbox.taken.bytes.extend_from_slice(reply);
                inbox.taken.deliveries.push(Delivery::Small { seq, len: reply.len() });
            }
        }
        was_empty
    }

    /// Leaves something else than a reply; true if the box was empty.
    pub fn leave(&self, delivery: Delivery) -> bool {
        let mut inbox = self.lock();
        let was_empty = inbox.taken.deliveries.is_empty();
        if let Delivery::Message(message) | Delivery::Invalidation(message) | Delivery::Line(message) = &delivery {
            inbox.message_bytes += message.len();
        }
        inbox.taken.deliveries.push(delivery);
        was_empty
    }

    /// Bytes of subscription messages and invalidations that wait here.
    pub fn message_bytes(&self) -> usize {
        self.lock().message_bytes
    }

    /// Who it belongs to, for what is soft in L1.
    #[inline]
    pub fn reader(&self) -> Reader {
        self.reader
    }

    /// Wakes the client's task.
    pub fn wake(&self) {
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Tells the client's task to end, and wakes it.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.wake();
    }

    /// True once [`Port::kill`] was called.
    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Moves all deliveries to `into`, which must be empty.
    pub fn take(&self, into: &mut Taken) {
        let mut inbox = self.lock();
        inbox.message_bytes = 0;
        std::mem::swap(&mut inbox.taken, into);
    }

    /// Ready when there is something to take or the client was killed; registers the task's waker otherwise.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inbox = self.lock();
        if !inbox.taken.deliveries.is_empty() || self.is_killed() {
            return Poll::Ready(());
        }
        match &mut inbox.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The position in the link's stream of the last request of this client. Only the link's task sets it.
    pub fn link_position(&self) -> u64 {
        self.link_position.load(Ordering::Relaxed)
    }

    /// Sets what [`Port::link_position`] returns.
    pub fn set_link_position(&self, position: u64) {
        self.link_position.store(position, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl CatchUp ===

impl CatchUp {
    /// `port` is told by `seq`.
    pub fn new(port: Arc<Port>, seq: Seq) -> Self {
        Self { port, seq }
    }
}

impl Drop for CatchUp {
    fn drop(&mut self) {
        if self.port.leave(Delivery::Fenced(self.seq)) {
            self.port.wake();
        }
    }
}

// === impl Taken ===

impl Taken {
    /// Empties the buffers, giving back what is large.
    pub fn recycle(&mut self) {
        self.deliveries.clear();
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
        if self.deliveries.capacity() * size_of::<Delivery>() > KEPT_BYTES_MAX {
            self.deliveries = Vec::new();
        }
    }
}
