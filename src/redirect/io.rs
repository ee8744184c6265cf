//! The task of one stand-in: its connection, the fences on the links, the target's port.

use super::queue::{Entry, Queue};
use super::{INVALIDATE, Redirects, StandIn};
use crate::clients::Client;
use crate::clock::Time;
use crate::outgoing::SHARED_BYTES_MIN;
use crate::port::{Delivery, Failure, Port, Seq, Taken};
use crate::upstream::link::{Job, Op, OpKind};
use crate::upstream::raw::{self, Identity, RawConnection, RawError};
use crate::upstream::scope::Upstream;
use bytes::Bytes;
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::shape::Protocol;
use smallvec::smallvec;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// What is asked of the task.
#[derive(Debug)]
pub(super) enum Call {
    /// Leave [`Delivery::Fenced`] in this port behind all that has been sent before.
    Settle(Arc<Port>, Seq),
    /// The target goes: end, and say when the upstream has seen it.
    Leave(Option<oneshot::Sender<()>>),
}

/// Why the task ends.
#[derive(Debug, thiserror::Error)]
enum Ending {
    #[error("{0}")]
    Raw(#[from] RawError),
    #[error("an answer that nothing had asked for")]
    Unexpected,
    #[error("nothing came for {0} ms while an answer was owed")]
    Dead(u128),
    #[error("a link does not answer")]
    Unfenced,
    #[error("the target leaves too much unread")]
    Unread,
    #[error("not needed")]
    Idle,
    #[error("the target has gone")]
    Left(Option<oneshot::Sender<()>>),
}

/// While more bytes of invalidations wait for fences, nothing is read from the upstream.
const QUEUED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A target for which more bytes of invalidations wait is disconnected: the server's own limit for subscribers.
const UNREAD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes read before others have a turn.
const READ_BURST_BYTES_MAX: usize = 1024 * 1024;
/// How often the times are looked at.
const TICK: Duration = Duration::from_millis(250);
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const QUIT: &[u8] = b"*1\r\n$4\r\nQUIT\r\n";

/// Makes a stand-in, tells whether that went well, and serves it until its end.
pub(super) async fn run(
    redirects: Arc<Redirects>,
    upstream: Arc<Upstream>,
    identity: Identity,
    target: Arc<Client>,
    made: oneshot::Sender<Result<Arc<StandIn>, Failure>>,
) {
    let pool = upstream.settings().pool;
    let connecting = timeout(pool.connect_max, connect(&upstream, &identity));
    let connected = connecting.await.unwrap_or(Err(RawError::ConnectTimeout(pool.connect_max.as_millis())));
    let (connection, upstream_id) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            let failure = match error {
                RawError::Refused(line) => Failure::Refused(line),
                error => upstream.node().unreachable(&error.to_string(), Duration::ZERO),
            };
            // Who does not wait any more has no use for it.
            let _: Result<(), _> = made.send(Err(failure));
            return;
        }
    };
    let (calls, called) = mpsc::unbounded_channel();
    let stand_in = Arc::new(StandIn { target: target.id, upstream_id, trackers: AtomicUsize::new(0), calls });
    if made.send(Ok(stand_in.clone())).is_err() {
        return;
    }
    let mut serving = Serving::new(upstream, stand_in.clone(), target.clone(), connection, called);
    loop {
        match poll_fn(|cx| serving.poll_turn(cx)).await {
            // Somebody has begun to redirect to it in this very moment.
            Ending::Idle if !redirects.retire(&stand_in) => {}
            Ending::Idle => break,
            Ending::Left(told) => {
                serving.quit().await;
                redirects.remove(&stand_in);
                // Who does not wait any more need not be told.
                let _: Option<Result<(), ()>> = told.map(|told| told.send(()));
                break;
            }
            lost => {
                redirects.remove(&stand_in);
                let is_in_use = stand_in.trackers.load(Ordering::Acquire) > 0;
                if is_in_use || matches!(lost, Ending::Unread | Ending::Unfenced) {
                    tracing::warn!(client = target.id.0, cause = %lost, "client disconnected: invalidations for it may be lost");
                    target.port.kill();
                }
                break;
            }
        }
    }
    serving.release_all();
}

/// Connects in RESP3, and learns the connection's number from the greeting.
async fn connect(upstream: &Upstream, identity: &Identity) -> Result<(RawConnection, u64), RawError> {
    let pool = upstream.settings().pool;
    let mut connection = RawConnection::connect(&upstream.node().endpoint, pool.connect_max, pool.replies).await?;
    let greeting = raw::set_up(&mut connection, identity, Protocol::Resp3, 0).await?;
    let id = greeting.as_deref().and_then(id_of);
    let id = id.ok_or_else(|| RawError::Refused(Bytes::from_static(b"ERR the upstream's greeting holds no id")))?;
    Ok((connection, id))
}

/// The `id` in the reply to HELLO.
fn id_of(greeting: &[u8]) -> Option<u64> {
    let mut cursor = Cursor::new(greeting);
    let count = cursor.next_count()?;
    for _ in 0..count / 2 {
        let is_id = cursor.next_bytes()? == b"id";
        let value = Cursor::new(cursor.next_frame()?).next();
        if let (true, Some(Item::Integer(id))) = (is_id, value) {
            return u64::try_from(id).ok();
        }
    }
    None
}

/// A connected stand-in.
struct Serving {
    upstream: Arc<Upstream>,
    stand_in: Arc<StandIn>,
    target: Arc<Client>,
    connection: RawConnection,
    calls: mpsc::UnboundedReceiver<Call>,
    /// Where links leave the answers to fences.
    fences: Arc<Port>,
    fence_last: u64,
    taken: Taken,
    queue: Queue<(Arc<Port>, Seq)>,
    /// PINGs under way, with who waits for the answer.
    pings: VecDeque<Option<(Arc<Port>, Seq)>>,
    heard_at: Time,
    needed_at: Time,
    tick: Interval,
}

// === impl Serving ===

impl Serving {
    fn new(
        upstream: Arc<Upstream>,
        stand_in: Arc<StandIn>,
        target: Arc<Client>,
        connection: RawConnection,
        calls: mpsc::UnboundedReceiver<Call>,
    ) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let now = upstream.node().clock.now();
        Self {
            upstream,
            stand_in,
            target,
            connection,
            calls,
            fences: Arc::default(),
            fence_last: 0,
            taken: Taken::default(),
            queue: Queue::new(),
            pings: VecDeque::new(),
            heard_at: now,
            needed_at: now,
            tick,
        }
    }

    /// One turn: calls, bytes in, fences, deliveries, bytes out. Ready at the end.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        match self.turn(cx) {
            Ok(()) => Poll::Pending,
            Err(ending) => Poll::Ready(ending),
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), Ending> {
        let now = self.upstream.node().clock.now();
        while self.tick.poll_tick(cx).is_ready() {
            self.look_at_times(now)?;
        }
        let mut read = 0;
        loop {
            let mut moved = self.take_calls(cx)?;
            let bytes = self.read(cx, now)?;
            read += bytes;
            moved |= bytes > 0;
            moved |= self.take_fenced(cx)?;
            moved |= self.deliver()?;
            moved |= self.ask_fence();
            if let Poll::Ready(flushed) = self.connection.poll_flush(cx) {
                flushed?;
            }
            if !moved {
                return Ok(());
            }
            if read > READ_BURST_BYTES_MAX {
                cx.waker().wake_by_ref();
                return Ok(());
            }
        }
    }

    fn take_calls(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        let mut took = false;
        while let Poll::Ready(call) = self.calls.poll_recv(cx) {
            took = true;
            match call {
                Some(Call::Settle(port, seq)) => self.ping(Some((port, seq))),
                Some(Call::Leave(told)) => return Err(Ending::Left(told)),
                None => return Err(Ending::Left(None)),
            }
        }
        Ok(took)
    }

    fn ping(&mut self, who: Option<(Arc<Port>, Seq)>) {
        self.connection.put_request(PING);
        self.pings.push_back(who);
    }

    /// Reads once, and takes all whole frames; how many bytes were read.
    fn read(&mut self, cx: &mut Context<'_>, now: Time) -> Result<usize, Ending> {
        if self.queue.bytes() > QUEUED_BYTES_MAX {
            // Nothing is heard because nothing is read; the answer to a fence wakes this task.
            self.heard_at = now;
            return Ok(0);
        }
        let Poll::Ready(read) = self.connection.poll_fill(cx) else { return Ok(0) };
        let read = read?;
        self.heard_at = now;
        while let Some(len) = self.connection.frame_len()? {
            let frame = self.connection.input().split_to(len).freeze();
            if frame.starts_with(b">") {
                if frame.starts_with(INVALIDATE) {
                    // A small one does not keep the buffer alive that it came in.
                    let small = len < SHARED_BYTES_MIN;
                    self.queue.push(Entry::Push(if small { Bytes::copy_from_slice(&frame) } else { frame }));
                }
                continue;
            }
            // Whatever it says to a PING: it has come behind what was sent before.
            match self.pings.pop_front() {
                Some(Some(who)) => self.queue.push(Entry::Mark(who)),
                Some(None) => {}
                None => return Err(Ending::Unexpected),
            }
        }
        Ok(read)
    }

    /// Asks all links for a fence if something waits for one.
    fn ask_fence(&mut self) -> bool {
        if !self.queue.wants_fence() {
            return false;
        }
        let scopes = self.upstream.scopes();
        self.fence_last += 1;
        self.queue.fencing(scopes.len());
        for scope in scopes {
            let op = Op { seq: Seq(self.fence_last), bytes: 0..0, kind: OpKind::Fence };
            scope.link.submit_fence(Job { port: self.fences.clone(), bytes: Bytes::new(), ops: smallvec![op] });
        }
        true
    }

    fn take_fenced(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        if self.fences.poll_ready(cx).is_pending() {
            return Ok(false);
        }
        self.fences.take(&mut self.taken);
        let deliveries = std::mem::take(&mut self.taken.deliveries);
        self.taken.recycle();
        for delivery in deliveries {
            match delivery {
                Delivery::Failed(_, Failure::ReadTimeout(_) | Failure::WriteTimeout(_)) => {
                    return Err(Ending::Unfenced);
                }
                // A fence that fails otherwise was not sent: the link is down, and its partition empty.
                Delivery::Fenced(_) | Delivery::Failed(..) => self.queue.fenced(),
                Delivery::Small { .. }
                | Delivery::Large(..)
                | Delivery::Message(_)
                | Delivery::Invalidation(_)
                | Delivery::Line(_)
                | Delivery::CatchUp(_) => {}
            }
        }
        Ok(true)
    }

    /// Leaves in ports what may leave the queue.
    fn deliver(&mut self) -> Result<bool, Ending> {
        let mut moved = false;
        while let Some(entry) = self.queue.pop_free() {
            moved = true;
            match entry {
                Entry::Push(push) => {
                    if self.target.port.message_bytes() + push.len() > UNREAD_BYTES_MAX {
                        return Err(Ending::Unread);
                    }
                    self.target.port.leave(Delivery::Invalidation(push));
                }
                Entry::Mark((port, seq)) => {
                    port.leave(Delivery::Fenced(seq));
                    port.wake();
                }
            }
        }
        if moved {
            self.target.port.wake();
        }
        Ok(moved)
    }

    fn look_at_times(&mut self, now: Time) -> Result<(), Ending> {
        let settings = self.upstream.settings();
        let silent_for = now.saturating_since(self.heard_at);
        if self.stand_in.trackers.load(Ordering::Acquire) > 0 {
            self.needed_at = now;
        } else if now.saturating_since(self.needed_at) >= settings.pool.idle_max && self.pings.is_empty() {
            self.needed_at = now;
            return Err(Ending::Idle);
        }
        let dead_after = settings.times.dead_after;
        if self.pings.is_empty() {
            // A connection that is gone without a word would be missed by nobody.
            if silent_for >= dead_after / 3 {
                self.heard_at = now;
                self.ping(None);
            }
        } else if silent_for >= dead_after {
            return Err(Ending::Dead(dead_after.as_millis()));
        }
        Ok(())
    }

    /// Takes leave of the upstream and waits until it has closed: from then on it knows nobody by this number.
    async fn quit(&mut self) {
        self.connection.put_request(QUIT);
        let closed = poll_fn(|cx| {
            loop {
                let flushed = self.connection.poll_flush(cx);
                if let Poll::Ready(Err(_)) = flushed {
                    return Poll::Ready(());
                }
                match self.connection.poll_fill(cx) {
                    Poll::Ready(Ok(_)) => self.connection.input().clear(),
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        // If it does not close in time, dropping the connection has to do.
        drop(timeout(self.upstream.settings().times.reply_max, closed).await);
    }

    /// Nothing more comes: nobody is to wait for it.
    fn release_all(&mut self) {
        self.calls.close();
        let mut waiting: Vec<(Arc<Port>, Seq)> = self.pings.drain(..).flatten().collect();
        waiting.extend(self.queue.drain().filter_map(|entry| match entry {
            Entry::Mark(who) => Some(who),
            Entry::Push(_) => None,
        }));
        while let Ok(call) = self.calls.try_recv() {
            match call {
                Call::Settle(port, seq) => waiting.push((port, seq)),
                Call::Leave(told) => {
                    let _: Option<Result<(), ()>> = told.map(|told| told.send(()));
                }
            }
        }
        for (port, seq) in waiting {
            port.leave(Delivery::Fenced(seq));
            port.wake();
        }
    }
}
