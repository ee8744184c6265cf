//! The shell around a link's core: one task, one connection, reconnects.
//!
//! ```text
//!   clients ──LinkHandle::submit──► queue ──┐
//!                                          ▼
//!                 ┌── connect, set up ── LinkCore ◄── frames ── socket
//!                 │        ▲                │
//!                 └─ back-off, breaker ◄────┴─ lost: partition emptied, writes reported, reads kept
//! ```
//!
//! Clients leave jobs in a queue and wake the task once; it takes all jobs that wait, writes them with one call, reads
//! what has come with one call, hands replies on, and wakes each client once.
//!
//! While no connection can be made, jobs are refused at once with the cause; while the first attempt is under way they
//! wait, at most `link.connect_ms_max`. A connection is a probe of the breaker when the circuit is open; if requests on
//! a live connection have opened it (an upstream that does not answer), the task sends the probe itself.

use super::backoff::{Backoff, BackoffSettings};
use super::breaker::{FailureCause, Outcome};
use super::feed::Feed;
use super::link::{Caching, Frame, Job, LinkCore, LinkCounts, OpKind, Retry, Violation};
use super::node::{Facts, Node};
use super::peers::Peers;
use super::raw::{self, Identity, RawConnection, RawError};
use crate::clock::Time;
use crate::l1::Partition;
use crate::outgoing::SHARED_BYTES_MIN;
use crate::port::{Delivery, Failure, Port};
use bytes::{Buf, Bytes};
use larder_protocol::scan::ReplyLimits;
use larder_protocol::shape::Protocol;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};

/// Times and bounds of the shell.
#[derive(Clone, Copy, Debug)]
pub struct LinkTimes {
    /// Longest wait for a connection, its set-up included (`link.connect_ms_max`).
    pub connect_max: Duration,
    /// A connection that owes replies and sends nothing for so long is closed (`link.dead_ms`).
    pub dead_after: Duration,
    /// See [`super::link::LinkLimits::reply_max`].
    pub reply_max: Duration,
    /// Waits between attempts to connect.
    pub backoff: BackoffSettings,
    /// Requests that may wait in the queue (`link.in_flight_max`).
    pub queued_max: usize,
    /// Bytes of requests that may wait in the queue (`link.in_flight_bytes_max`).
    pub queued_bytes_max: usize,
    /// How often keys that L1 answers are touched upstream; `None` for never (`l1.touch_interval_ms`).
    pub touch_interval: Option<Duration>,
    /// Bounds of replies.
    pub replies: ReplyLimits,
    /// False if nothing is to be cached (`l1.enabled`).
    pub caches: bool,
}

/// The way to a link: what clients of its scope hold.
pub struct LinkHandle {
    queue: Mutex<Queue>,
    node: Arc<Node>,
    partition: Arc<Partition>,
    times: LinkTimes,
    /// True while replies may be kept: reads need not look in L1 otherwise.
    caches: AtomicBool,
    is_refused: AtomicBool,
    is_full: AtomicBool,
    is_up: AtomicBool,
    /// How often the upstream was found to accept the identity, elsewhere than on this link.
    admissions: AtomicU64,
    admitted: Notify,
    counts: Mutex<LinkCounts>,
    big_keys: Box<dyn Fn(Bytes) + Send + Sync>,
    feed: Arc<Feed>,
}

/// Whether the link is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// An attempt is under way; jobs wait.
    Connecting,
    /// Connected.
    Up,
    /// No connection, and none before the time is up; jobs are refused with this.
    Down(Failure),
    /// The upstream refuses this identity, word for word; jobs are refused with its line.
    Refused(Bytes),
    /// The scope has ended.
    Closed,
}

struct Queue {
    jobs: Vec<Job>,
    ops: usize,
    bytes: usize,
    waker: Option<Waker>,
    /// Clients that wait for room.
    waiting: Vec<Arc<Port>>,
    state: LinkState,
}

/// What a link is for.
#[derive(Clone)]
pub struct LinkPurpose {
    /// Whom it authenticates as.
    pub identity: Identity,
    /// Which database it selects.
    pub database: u32,
    /// Whom it tells of itself before it fills; nobody, if other Larders are not to wait for this one.
    pub peers: Option<Arc<Peers>>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum LinkEnd {
    #[error("{0}")]
    Raw(#[from] RawError),
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("nothing came for {0} ms while replies were owed")]
    Dead(u128),
    #[error("the scope ended")]
    Closed,
}

/// Most keys that one TOUCH names.
const TOUCH_KEYS_MAX: usize = 512;
/// Most keys that are touched in one interval.
const TOUCH_TOTAL_MAX: usize = 100_000;
/// Bytes read from the upstream before the task lets others run.
const READ_BURST_BYTES_MAX: usize = 1024 * 1024;

// === impl LinkHandle ===

impl LinkHandle {
    /// A handle whose task is still to be started with [`run`].
    pub fn new(
        node: Arc<Node>,
        partition: Arc<Partition>,
        times: LinkTimes,
        big_keys: Box<dyn Fn(Bytes) + Send + Sync>,
    ) -> Arc<Self> {
        let state = LinkState::Connecting;
        let queue = Queue { jobs: Vec::new(), ops: 0, bytes: 0, waker: None, waiting: Vec::new(), state };
        Arc::new(Self {
            queue: Mutex::new(queue),
            node,
            partition,
            times,
            caches: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            is_up: AtomicBool::new(false),
            admissions: AtomicU64::new(0),
            admitted: Notify::new(),
            counts: Mutex::new(LinkCounts::default()),
            big_keys,
            feed: Arc::default(),
        })
    }

    /// The partition that the link fills.
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// Who hears of what the partition forgets.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// True while the link's replies are kept.
    #[inline]
    pub fn caches(&self) -> bool {
        self.caches.load(Ordering::Acquire)
    }

    /// Hands requests over. Their replies come to the job's port.
    ///
    /// # Errors
    /// Nothing has been sent: the upstream is down, or too much waits.
    pub fn submit(&self, job: Job) -> Result<(), Failure> {
        if let Some(failure) = self.node.refusal() {
            self.node.count_refused(job.ops.len() as u64);
            return Err(failure);
        }
        let mut queue = self.lock();
        match &queue.state {
            LinkState::Connecting | LinkState::Up => {}
            LinkState::Down(failure) => return Err(failure.clone()),
            LinkState::Refused(line) => return Err(Failure::Refused(line.clone())),
            LinkState::Closed => return Err(Failure::Down("the scope has ended".into())),
        }
        queue.ops += job.ops.len();
        queue.bytes += job.bytes.len();
        queue.jobs.push(job);
        let full = queue.ops >= self.times.queued_max || queue.bytes >= self.times.queued_bytes_max;
        self.is_full.store(full, Ordering::Release);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// True if the queue takes more. Else `port` is woken when it does: a client whose requests find no room is not read
    /// from meanwhile. The bounds may be exceeded by one job of each client.
    pub fn has_room(&self, port: &Arc<Port>) -> bool {
        if !self.is_full.load(Ordering::Acquire) {
            return true;
        }
        let mut queue = self.lock();
        let full = queue.ops >= self.times.queued_max || queue.bytes >= self.times.queued_bytes_max;
        if full && !queue.waiting.iter().any(|p| Arc::ptr_eq(p, port)) {
            queue.waiting.push(port.clone());
        }
        !full
    }

    /// Hands a fence, or an order to drop entries, over; it is never refused. Without a connection the partition is empty,
    /// which is all that either wants, and is answered as a fence.
    pub fn submit_fence(&self, job: Job) {
        let mut queue = self.lock();
        if queue.state == LinkState::Up {
            queue.ops += job.ops.len();
            queue.jobs.push(job);
            let waker = queue.waker.take();
            drop(queue);
            if let Some(waker) = waker {
                waker.wake();
            }
            return;
        }
        drop(queue);
        self.fail(&job, &Failure::ReadLost);
    }

    /// True while there is a connection, and the circuit is closed.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Acquire) && self.node.refusal().is_none()
    }

    /// The upstream's line, if it refuses the link's identity.
    pub fn refused(&self) -> Option<Bytes> {
        if !self.is_refused.load(Ordering::Acquire) {
            return None;
        }
        match self.state() {
            LinkState::Refused(line) => Some(line),
            _ => None,
        }
    }

    /// The upstream has just accepted the link's identity: a refusal from before does not count any more (the user may
    /// have been made anew), and there is no reason to wait for the next attempt.
    pub fn admit(&self) {
        self.admissions.fetch_add(1, Ordering::AcqRel);
        if self.refused().is_some() {
            self.set_state(LinkState::Connecting);
        }
        if !self.is_up.load(Ordering::Acquire) {
            self.admitted.notify_one();
        }
    }

    /// Whether the link is there.
    pub fn state(&self) -> LinkState {
        self.lock().state.clone()
    }

    /// Ends the link.
    pub fn close(&self) {
        let mut queue = self.lock();
        queue.state = LinkState::Closed;
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }

    /// What the link has done so far.
    pub fn counts(&self) -> LinkCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The upstream that the link leads to.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.lock().state == LinkState::Closed
    }

    /// Sets the state, unless the scope has ended; refuses what waits if the link is not to be waited for.
    fn set_state(&self, state: LinkState) {
        let failure = match &state {
            LinkState::Down(failure) => Some(failure.clone()),
            LinkState::Refused(line) => Some(Failure::Refused(line.clone())),
            _ => None,
        };
        self.is_refused.store(matches!(state, LinkState::Refused(_)), Ordering::Release);
        self.is_up.store(state == LinkState::Up, Ordering::Release);
        let mut queue = self.lock();
        if queue.state != LinkState::Closed {
            queue.state = state;
        }
        let Some(failure) = failure else { return };
        self.is_full.store(false, Ordering::Release);
        let jobs = queue.take();
        drop(queue);
        for job in jobs {
            self.fail(&job, &failure);
        }
    }

    /// Tells a client that none of a job's requests were sent.
    fn fail(&self, job: &Job, failure: &Failure) {
        for op in &job.ops {
            if op.kind == OpKind::FenceAndResume {
                self.partition.resume();
            }
            job.port.leave(match op.kind {
                // No connection, no entries: nothing is left to wait for, or to drop.
                OpKind::Fence | OpKind::FenceAndResume | OpKind::Drop(_) | OpKind::DropAll(_) => {
                    Delivery::Fenced(op.seq)
                }
                _ => Delivery::Failed(op.seq, failure.clone()),
            });
        }
        job.port.wake();
    }

    /// Ready with all jobs that wait, or when the scope has ended.
    fn poll_jobs(&self, cx: &mut Context<'_>) -> Poll<Vec<Job>> {
        let mut queue = self.lock();
        if queue.jobs.is_empty() && queue.state != LinkState::Closed {
            match &mut queue.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        self.is_full.store(false, Ordering::Release);
        Poll::Ready(queue.take())
    }
}

// === impl Queue ===

impl Queue {
    fn take(&mut self) -> Vec<Job> {
        self.ops = 0;
        self.bytes = 0;
        for port in self.waiting.drain(..) {
            port.wake();
        }
        std::mem::take(&mut self.jobs)
    }
}

/// Runs a link until its scope ends. One call for each handle.
pub async fn run(handle: Arc<LinkHandle>, mut core: LinkCore, purpose: LinkPurpose, seed: u64) {
    core.set_feed(handle.feed.clone());
    let mut backoff = Backoff::new(handle.times.backoff, seed);
    let mut retries: Vec<Retry> = Vec::new();
    while !handle.is_closed() {
        let connection = match attempt(&handle, &mut core, &purpose).await {
            Ok(connection) => connection,
            Err(wait) => {
                give_up(&handle, &mut retries);
                let wait = wait.unwrap_or_else(|| backoff.next_wait(Duration::ZERO));
                pause(&handle, wait).await;
                continue;
            }
        };
        let began = handle.node.clock.now();
        for retry in retries.drain(..) {
            if began.saturating_since(retry.sent_at) >= handle.times.reply_max {
                let failure = retry.given_up();
                retry.fail(failure);
            } else {
                core.retry(retry, began);
            }
        }
        let end = Serving::new(&handle, &mut core, connection).run().await;
        handle.caches.store(false, Ordering::Release);
        retries = core.lost();
        core.wake_clients();
        handle.set_state(LinkState::Connecting);
        if let LinkEnd::Closed = end {
            break;
        }
        tracing::warn!(upstream = %handle.node.endpoint, database = purpose.database, cause = %end, "link lost");
        handle.node.record_loss(end.cause());
        let lived = handle.node.clock.now().saturating_since(began);
        if lived < handle.times.backoff.stable_min {
            sleep(backoff.next_wait(lived)).await;
        }
    }
    let ended = Failure::Down("the scope has ended".into());
    retries.into_iter().for_each(|retry| retry.fail(ended.clone()));
    let left = handle.lock().take();
    left.iter().for_each(|job| handle.fail(job, &ended));
}

/// Tries to connect once. An error carries how long the breaker wants to be left alone, if it does.
async fn attempt(
    handle: &Arc<LinkHandle>,
    core: &mut LinkCore,
    purpose: &LinkPurpose,
) -> Result<RawConnection, Option<Duration>> {
    let node = &handle.node;
    let ticket = match node.admit() {
        Ok(ticket) => ticket,
        Err(refusal) => {
            handle.set_state(LinkState::Connecting);
            return Err(Some(refusal.retry_in().unwrap_or(Duration::from_millis(100))));
        }
    };
    let began = node.clock.now();
    let admissions = handle.admissions.load(Ordering::Acquire);
    let setting_up = connect(handle, core, purpose);
    let result = tokio::time::timeout(handle.times.connect_max, setting_up).await;
    let latency = node.clock.now().saturating_since(began);
    let error = match result {
        Ok(Ok(connection)) => {
            node.record(ticket, Outcome::Success, latency);
            handle.set_state(LinkState::Up);
            return Ok(connection);
        }
        Ok(Err(error)) => error,
        Err(_) => RawError::ConnectTimeout(handle.times.connect_max.as_millis()),
    };
    match &error {
        RawError::Refused(line) if !line.starts_with(b"LOADING") => {
            // The server is there and has made its decision about this identity.
            node.record(ticket, Outcome::ClientFault, latency);
            if handle.admissions.load(Ordering::Acquire) != admissions {
                handle.set_state(LinkState::Connecting);
                return Err(Some(Duration::ZERO));
            }
            // HELLO has words of its own for this, which no other command gets.
            let unauthenticated = line.starts_with(b"NOAUTH");
            let line =
                if unauthenticated { Bytes::from_static(b"NOAUTH Authentication required.") } else { line.clone() };
            handle.set_state(LinkState::Refused(line));
            node.disowned().notify_one();
        }
        _ => {
            let cause = match &error {
                RawError::Refused(_) => FailureCause::Loading,
                RawError::Reply(_) => FailureCause::BadProtocol,
                _ => FailureCause::Connect,
            };
            node.record(ticket, Outcome::Failure(cause), latency);
            let failure = node.refusal();
            let failure =
                failure.unwrap_or_else(|| node.unreachable(&error.to_string(), handle.times.backoff.wait_min));
            handle.set_state(LinkState::Down(failure));
        }
    }
    tracing::warn!(upstream = %node.endpoint, cause = %error, "no link");
    Err(None)
}

fn give_up(handle: &LinkHandle, retries: &mut Vec<Retry>) {
    let failure = match handle.state() {
        LinkState::Down(failure) => failure,
        _ => handle.node.unreachable("reconnecting", handle.times.backoff.wait_min),
    };
    retries.drain(..).for_each(|retry| retry.fail(failure.clone()));
}

/// Waits, but not beyond the end of the scope; what comes in meanwhile is refused as the state says.
async fn pause(handle: &LinkHandle, wait: Duration) {
    let waiting = sleep(wait);
    tokio::pin!(waiting);
    loop {
        let jobs = tokio::select! {
            () = &mut waiting => return,
            () = handle.admitted.notified() => return,
            jobs = poll_fn(|cx| handle.poll_jobs(cx)) => jobs,
        };
        if handle.is_closed() {
            return;
        }
        let failure = handle.node.refusal().unwrap_or_else(|| handle.node.unreachable("reconnecting", wait));
        jobs.iter().for_each(|job| handle.fail(job, &failure));
    }
}

/// Connects and sets up; tells the core what may be kept.
async fn connect(
    handle: &Arc<LinkHandle>,
    core: &mut LinkCore,
    purpose: &LinkPurpose,
) -> Result<RawConnection, RawError> {
    let node = &handle.node;
    let times = &handle.times;
    let mut connection = RawConnection::connect(&node.endpoint, times.connect_max, times.replies).await?;
    let resp3 = raw::set_up(&mut connection, &purpose.identity, Protocol::Resp3, purpose.database).await;
    let hello = match resp3 {
        Ok(hello) => hello,
        Err(RawError::Refused(line)) if speaks_no_resp3(&line) => {
            raw::set_up(&mut connection, &purpose.identity, Protocol::Resp2, purpose.database).await?
        }
        Err(error) => return Err(error),
    };
    learn(node, &mut connection, hello.clone()).await?;
    let caching = caching(handle, &mut connection, hello.is_some()).await?;
    if let (Caching::Tracked, Some(peers)) = (caching, &purpose.peers) {
        peers.admit(handle, purpose.database).await;
    }
    core.connected(caching, node.table());
    let caches = match caching {
        Caching::Tracked => true,
        Caching::Untracked => core.may_keep_untracked(),
        Caching::NoPttl | Caching::Off => false,
    };
    handle.caches.store(caches, Ordering::Release);
    Ok(connection)
}

fn speaks_no_resp3(line: &[u8]) -> bool {
    line.starts_with(b"NOPROTO") || line.starts_with(b"ERR unknown command")
}

/// Turns tracking on, and says once what follows if it cannot be.
async fn caching(handle: &LinkHandle, connection: &mut RawConnection, resp3: bool) -> Result<Caching, RawError> {
    if !handle.times.caches {
        return Ok(Caching::Off);
    }
    let reply = if resp3 { Some(connection.call(["CLIENT", "TRACKING", "ON"]).await?) } else { None };
    if reply.as_deref() == Some(b"+OK\r\n") {
        return Ok(Caching::Tracked);
    }
    let reason = reply.map_or("it does not speak RESP3".into(), |r| String::from_utf8_lossy(&r).trim().to_owned());
    tracing::warn!(
        upstream = %handle.node.endpoint,
        %reason,
        "no client-side caching upstream: commands are forwarded, and nothing is cached unless l1.untracked_ttl_ms_max is set"
    );
    Ok(Caching::Untracked)
}

/// Asks the server for its commands, so that those of its modules and of its version are classified too.
async fn learn(node: &Node, connection: &mut RawConnection, hello: Option<Bytes>) -> Result<(), RawError> {
    let known = node.facts();
    if known.is_known && known.hello == hello {
        return Ok(());
    }
    let reply = connection.call(["COMMAND"]).await?;
    let table = match known.table.completed(&reply) {
        Ok(table) => Arc::new(table),
        Err(error) => {
            tracing::warn!(upstream = %node.endpoint, cause = %error, "COMMAND cannot be read: the built-in table is used");
            known.table.clone()
        }
    };
    let has_field_ttls = table.lookup(b"hpexpire").is_some_and(|c| c.on_upstream);
    node.set_facts(Facts { table, hello, has_field_ttls, is_known: true });
    Ok(())
}

/// A connected link.
struct Serving<'a> {
    handle: &'a LinkHandle,
    core: &'a mut LinkCore,
    connection: RawConnection,
    heard_at: Time,
    tick: Interval,
    touch: Option<Interval>,
    answered: u32,
    timeouts_seen: u64,
    probe: Option<(super::breaker::Ticket, Time)>,
}

// === impl Serving ===

impl<'a> Serving<'a> {
    fn new(handle: &'a LinkHandle, core: &'a mut LinkCore, connection: RawConnection) -> Self {
        let times = &handle.times;
        let shortest = times.reply_max.min(times.dead_after);
        let mut tick = interval((shortest / 8).clamp(Duration::from_millis(5), Duration::from_millis(250)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let touch = times.touch_interval.map(|every| {
            let mut touch = tokio::time::interval_at(Instant::now() + every, every);
            touch.set_missed_tick_behavior(MissedTickBehavior::Skip);
            touch
        });
        let heard_at = handle.node.clock.now();
        let timeouts_seen = core.counts().timeouts;
        Self { handle, core, connection, heard_at, tick, touch, answered: 0, timeouts_seen, probe: None }
    }

    async fn run(mut self) -> LinkEnd {
        let end = poll_fn(|cx| self.poll_turn(cx)).await;
        self.publish();
        end
    }

    /// One turn: jobs in, bytes out, bytes in, replies on. Pending when there is nothing to do.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<LinkEnd> {
        let now = self.handle.node.clock.now();
        if let Err(end) = self.take_ticks(cx, now) {
            return Poll::Ready(end);
        }
        loop {
            let was_full = self.core.is_full();
            let took = match self.take_jobs(cx, now) {
                Ok(took) => took,
                Err(end) => return Poll::Ready(end),
            };
            if let Err(e) = self.flush(cx) {
                return Poll::Ready(e.into());
            }
            let read = match self.read(cx, now) {
                Ok(read) => read,
                Err(end) => {
                    self.core.wake_clients();
                    return Poll::Ready(end);
                }
            };
            self.core.wake_clients();
            match read {
                // More may be there; others have a turn first.
                Read::Burst => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                // What did not fit before may fit now.
                Read::Some if was_full && !self.core.is_full() => {}
                Read::Some | Read::Nothing if !took => return Poll::Pending,
                _ => {}
            }
        }
    }

    fn take_jobs(&mut self, cx: &mut Context<'_>, now: Time) -> Result<bool, LinkEnd> {
        if self.core.is_full() {
            return Ok(false);
        }
        let Poll::Ready(jobs) = self.handle.poll_jobs(cx) else { return Ok(false) };
        if jobs.is_empty() && self.handle.is_closed() {
            return Err(LinkEnd::Closed);
        }
        for job in &jobs {
            self.core.submit(job, now);
        }
        Ok(true)
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), RawError> {
        while !self.core.outgoing().is_empty() {
            match self.connection.stream().poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => break,
            }
            let all = self.core.outgoing().write_to(self.connection.stream())?;
            if all {
                break;
            }
        }
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Time) -> Result<Read, LinkEnd> {
        let mut total = 0;
        loop {
            let Poll::Ready(read) = self.connection.poll_fill(cx) else {
                return Ok(if total > 0 { Read::Some } else { Read::Nothing });
            };
            total += read?;
            self.heard_at = now;
            self.frames(now)?;
            if total >= READ_BURST_BYTES_MAX {
                return Ok(Read::Burst);
            }
        }
    }

    /// Hands all whole frames that have been received to the core.
    fn frames(&mut self, now: Time) -> Result<(), LinkEnd> {
        while let Some(len) = self.connection.frame_len()? {
            self.heed(now);
            if len >= SHARED_BYTES_MIN {
                let shared = self.connection.input().split_to(len).freeze();
                self.core.frame(Frame { bytes: &shared, shared: Some(&shared) }, now)?;
            } else {
                let input = self.connection.input();
                self.core.frame(Frame { bytes: &input[..len], shared: None }, now)?;
                input.advance(len);
            }
        }
        Ok(())
    }

    /// Notes for the breaker that a reply, or a push, is there.
    fn heed(&mut self, now: Time) {
        if self.connection.input().first() == Some(&b'>') {
            return;
        }
        let latency = self.core.oldest_sent_at().map_or(Duration::ZERO, |sent| now.saturating_since(sent));
        match self.handle.node.ticket() {
            Some(ticket) if self.handle.node.is_slow(latency) => {
                self.handle.node.record(ticket, Outcome::Success, latency);
            }
            _ => self.answered += 1,
        }
    }

    fn take_ticks(&mut self, cx: &mut Context<'_>, now: Time) -> Result<(), LinkEnd> {
        while self.tick.poll_tick(cx).is_ready() {
            self.core.time_out(now);
            self.publish();
            let owes = self.core.oldest_sent_at();
            let silent_since = owes.map(|sent| sent.max(self.heard_at));
            if silent_since.is_some_and(|since| now.saturating_since(since) >= self.handle.times.dead_after) {
                return Err(LinkEnd::Dead(self.handle.times.dead_after.as_millis()));
            }
            // An idle connection that is gone without a word would leave what was cached over it in use.
            let idle = owes.is_none() && now.saturating_since(self.heard_at) >= self.handle.times.dead_after / 3;
            if idle {
                self.core.submit_own(b"*1\r\n$4\r\nPING\r\n", now);
            }
            self.probe(now);
        }
        if let Some(touch) = &mut self.touch
            && touch.poll_tick(cx).is_ready()
        {
            self.touch_upstream(now);
        }
        Ok(())
    }

    /// Where requests on a live connection have opened the circuit, only this task finds out whether it may close.
    fn probe(&mut self, now: Time) {
        if let Some((ticket, sent_at)) = self.probe {
            // Replies come in order: one that was sent later has its answer, so has the probe.
            if self.core.oldest_sent_at().is_none_or(|oldest| oldest > sent_at) {
                self.handle.node.record(ticket, Outcome::Success, now.saturating_since(sent_at));
                self.probe = None;
            }
        } else if self.handle.node.refusal().is_some()
            && let Ok(ticket) = self.handle.node.admit()
        {
            self.core.submit_own(b"*1\r\n$4\r\nPING\r\n", now);
            self.probe = Some((ticket, now));
        }
    }

    fn publish(&mut self) {
        let counts = self.core.counts();
        let timeouts = counts.timeouts - self.timeouts_seen;
        self.timeouts_seen = counts.timeouts;
        if timeouts > 0 {
            self.handle.node.record_failures(FailureCause::Timeout, timeouts as u32);
        }
        if self.answered > 0 {
            self.handle.node.record_successes(std::mem::take(&mut self.answered));
        }
        for cause in self.core.take_failures() {
            self.handle.node.record_failures(cause, 1);
        }
        for key in self.core.take_big_keys() {
            (self.handle.big_keys)(key);
        }
        self.handle.caches.store(self.core.keeps(), Ordering::Release);
        *self.handle.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// Tells the upstream which keys are in use here, or it would take the hottest for idle and evict them first.
    fn touch_upstream(&mut self, now: Time) {
        for keys in self.handle.partition.take_touched(TOUCH_TOTAL_MAX).chunks(TOUCH_KEYS_MAX) {
            let words = std::iter::once(&b"TOUCH"[..]).chain(keys.iter().map(|k| &k[..]));
            self.core.submit_own(larder_protocol::args::OwnedArgs::new(words).args().bytes(), now);
        }
    }
}

enum Read {
    Nothing,
    Some,
    Burst,
}

// === impl LinkEnd ===

impl LinkEnd {
    fn cause(&self) -> FailureCause {
        match self {
            Self::Raw(RawError::Reply(_)) | Self::Violation(_) => FailureCause::BadProtocol,
            Self::Dead(_) => FailureCause::Timeout,
            _ => FailureCause::LinkLost,
        }
    }
}
