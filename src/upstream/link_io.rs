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
//! wait, at most `link.connect_ms_max`; and as long as no server has been asked what it understands, clients are not read from
//! either (what becomes of a request depends on it). A connection is a probe of the breaker when the circuit is open; if requests on
//! a live connection have opened it (an upstream that does not answer), the task sends the probe itself.

mod queue;
mod serving;
mod setup;

use self::queue::Queue;
use self::serving::{LinkEnd, Moves, Serving};
use self::setup::connect;

use super::backoff::{Backoff, BackoffSettings};
use super::breaker::{FailureCause, Outcome};
use super::feed::Feed;
use super::link::{self, Job, LinkCore, LinkCounts, LinkLimits, OpKind, Retry};
use super::node::Node;
use super::peers::Peers;
use super::raw::{Identity, RawConnection, RawError};
use super::watch::Watch;
use crate::buffered::{Buffered, Share};
use crate::clock::Time;
use crate::l1::{Cause, Partition};
use crate::port::{Delivery, Failure, Port};
use arc_swap::ArcSwap;
use bytes::Bytes;
use larder_protocol::scan::ReplyLimits;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::sleep;

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
    times: ArcSwap<LinkTimes>,
    /// Bounds that the core does not know yet.
    new_limits: Mutex<Option<LinkLimits>>,
    is_reconfigured: AtomicBool,
    /// True while replies may be kept: reads need not look in L1 otherwise.
    caches: AtomicBool,
    is_refused: AtomicBool,
    is_full: AtomicBool,
    is_up: AtomicBool,
    asked_to_move: AtomicBool,
    /// How often the upstream was found to accept the identity, elsewhere than on this link.
    admissions: AtomicU64,
    admitted: Notify,
    counts: Mutex<LinkCounts>,
    big_keys: Box<dyn Fn(Bytes) + Send + Sync>,
    feed: Arc<Feed>,
    watch: Arc<Watch>,
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

// === impl LinkHandle ===

impl LinkHandle {
    /// A handle whose task is still to be started with [`run`].
    pub fn new(
        node: Arc<Node>,
        partition: Arc<Partition>,
        times: LinkTimes,
        buffered: &Arc<Buffered>,
        big_keys: Box<dyn Fn(Bytes) + Send + Sync>,
        watch: Arc<Watch>,
    ) -> Arc<Self> {
        let state = LinkState::Connecting;
        let share = buffered.share();
        let is_settling = !node.facts().is_known;
        let queue = Queue::new(state, is_settling, share);
        Arc::new(Self {
            queue: Mutex::new(queue),
            node,
            partition,
            times: ArcSwap::from_pointee(times),
            new_limits: Mutex::default(),
            is_reconfigured: AtomicBool::new(false),
            caches: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            is_full: AtomicBool::new(is_settling),
            is_up: AtomicBool::new(false),
            asked_to_move: AtomicBool::new(false),
            admissions: AtomicU64::new(0),
            admitted: Notify::new(),
            counts: Mutex::new(LinkCounts::default()),
            big_keys,
            feed: Arc::default(),
            watch,
        })
    }

    /// Times and bounds in force.
    pub(super) fn times(&self) -> LinkTimes {
        **self.times.load()
    }

    /// Changes times and bounds. They are in force for all that is submitted from now on.
    pub fn reconfigure(&self, times: LinkTimes, limits: LinkLimits) {
        self.times.store(Arc::new(times));
        *self.new_limits.lock().unwrap_or_else(PoisonError::into_inner) = Some(limits);
        self.is_reconfigured.store(true, Ordering::Release);
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Tells the core of new bounds; true if there are any.
    fn tell_core(&self, core: &mut LinkCore) -> bool {
        if !self.is_reconfigured.swap(false, Ordering::AcqRel) {
            return false;
        }
        if let Some(limits) = self.new_limits.lock().unwrap_or_else(PoisonError::into_inner).take() {
            core.set_limits(limits);
        }
        true
    }

    /// The partition that the link fills.
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// Who hears of what the partition forgets.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Whether keys of the database depend on others.
    #[inline]
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
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
        queue.push(job);
        let full = queue.is_full(&self.times());
        self.is_full.store(full || queue.is_settling, Ordering::Release);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// True if the queue takes more, and it is known what the server understands. Else `port` is woken when it does: a client whose requests find no room is not read
    /// from meanwhile. The bounds may be exceeded by one job of each client.
    #[inline]
    pub fn has_room(&self, port: &Arc<Port>) -> bool {
        !self.is_full.load(Ordering::Acquire) || self.has_room_again(port)
    }

    fn has_room_again(&self, port: &Arc<Port>) -> bool {
        let mut queue = self.lock();
        let full = queue.is_full(&self.times()) || queue.is_settling;
        if full && !queue.waiting.iter().any(|p| Arc::ptr_eq(p, port)) {
            queue.waiting.push_back(port.clone());
        }
        !full
    }

    /// Hands a fence, or an order to drop entries, over; it is never refused. Without a connection the partition is empty,
    /// which is all that either wants, and is answered as a fence. What was left behind for stale answers goes first:
    /// who wants a fence has news.
    pub fn submit_fence(&self, job: Job) {
        let mut queue = self.lock();
        if queue.state == LinkState::Up {
            queue.push(job);
            let waker = queue.waker.take();
            drop(queue);
            if let Some(waker) = waker {
                waker.wake();
            }
            return;
        }
        drop(queue);
        self.settle(&job);
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

    /// Another connection was told `READONLY`: the link should be made anew, when it may. It looks at its next turn.
    pub fn ask_to_move(&self) {
        self.asked_to_move.store(true, Ordering::Release);
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

    /// The account of what waits.
    fn share(&self) -> Share {
        self.lock().share()
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
        if std::mem::take(&mut queue.is_settling) {
            self.is_full.store(queue.is_full(&self.times()), Ordering::Release);
            queue.waiting.drain(..).for_each(|port| port.wake());
        }
        let Some(failure) = failure else { return };
        self.is_full.store(false, Ordering::Release);
        let jobs = queue.take();
        drop(queue);
        for job in jobs {
            self.fail(&job, &failure);
        }
    }

    /// The connection is lost. In one step with the change of state: what was put aside is left behind for stale answers,
    /// less what fences and drops that wait in the queue speak against. These are answered.
    fn lose(&self, core: &mut LinkCore) {
        self.is_refused.store(false, Ordering::Release);
        self.is_up.store(false, Ordering::Release);
        let mut queue = self.lock();
        if queue.state != LinkState::Closed {
            queue.state = LinkState::Connecting;
        }
        let orders = queue.take_orders();
        core.leave_behind(&orders);
        drop(queue);
        orders.iter().for_each(|job| self.fail(job, &Failure::ReadLost));
    }

    /// Answers a fence, or an order to drop entries, while there is no connection.
    fn settle(&self, job: &Job) {
        link::settle(&self.partition, job);
        self.fail(job, &Failure::ReadLost);
    }

    /// Tells the clients whose requests have waited in the queue for too long: nothing of them was sent. So it is with a fence;
    /// what waits for one is not shown then.
    fn time_out(&self, now: Time) {
        let within = self.times().reply_max;
        let mut queue = self.lock();
        let late = queue.take_late(now, within);
        if late.is_empty() {
            return;
        }
        self.is_full.store(queue.is_full(&self.times()), Ordering::Release);
        drop(queue);
        for job in late {
            for op in &job.ops {
                job.port.leave(match op.kind {
                    // What waits for it may be a write's reply.
                    OpKind::Fence => Delivery::Failed(op.seq, Failure::WriteTimeout(within.as_millis() as u64)),
                    OpKind::Refresh { .. } => continue,
                    _ => Delivery::Failed(op.seq, Failure::Full),
                });
            }
            job.port.wake();
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
                kind if kind.is_order() => Delivery::Fenced(op.seq),
                // Nobody waits for it.
                OpKind::Refresh { .. } => continue,
                _ => Delivery::Failed(op.seq, failure.clone()),
            });
        }
        job.port.wake();
    }

    /// Ready with the jobs that wait, as far as there is room for so many requests and bytes, or when the scope has ended.
    fn poll_jobs(&self, cx: &mut Context<'_>, room: (usize, usize)) -> Poll<Vec<Job>> {
        let mut queue = self.lock();
        if queue.is_empty() && queue.state != LinkState::Closed {
            match &mut queue.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let jobs = queue.take_for(room);
        self.is_full.store(queue.is_full(&self.times()), Ordering::Release);
        Poll::Ready(jobs)
    }
}

/// Runs a link until its scope ends. One call for each handle.
pub async fn run(handle: Arc<LinkHandle>, mut core: LinkCore, purpose: LinkPurpose, seed: u64) {
    core.set_feed(handle.feed.clone());
    core.set_watch(handle.watch.clone());
    let mut backoff = Backoff::new(handle.times().backoff, seed);
    let mut moves = Moves::new(seed);
    let mut retries: Vec<Retry> = Vec::new();
    while !handle.is_closed() {
        backoff.reconfigure(handle.times().backoff);
        handle.tell_core(&mut core);
        let connection = match attempt(&handle, &mut core, &purpose).await {
            Ok(connection) => connection,
            Err(wait) => {
                give_up(&handle, &mut retries);
                core.expire_left(handle.node.clock.now());
                let wait = wait.unwrap_or_else(|| backoff.next_wait(Duration::ZERO));
                pause(&handle, wait).await;
                continue;
            }
        };
        let began = handle.node.clock.now();
        for retry in retries.drain(..) {
            if began.saturating_since(retry.sent_at) >= handle.times().reply_max {
                let failure = retry.given_up();
                retry.fail(failure);
            } else {
                core.retry(retry, began);
            }
        }
        let (end, whole_until) = Serving::new(&handle, &mut core, connection, &mut moves).run().await;
        handle.caches.store(false, Ordering::Release);
        let failure = end.cause();
        if let Some(cause) = failure {
            handle.node.record_loss(cause);
        }
        // The loss itself may be the failure that opens the circuit.
        let cause = match handle.node.has_failed() {
            true => Cause::ErrorThreshold,
            false => Cause::FeedLost,
        };
        retries = core.lost(whole_until, cause);
        handle.lose(&mut core);
        core.wake_clients();
        if let LinkEnd::Closed = end {
            break;
        }
        tracing::warn!(upstream = %handle.node.endpoint, database = purpose.database, cause = %end, "link lost");
        if failure.is_none() {
            continue;
        }
        let lived = handle.node.clock.now().saturating_since(began);
        if lived < handle.times().backoff.stable_min {
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
    let result = tokio::time::timeout(handle.times().connect_max, setting_up).await;
    let latency = node.clock.now().saturating_since(began);
    let error = match result {
        Ok(Ok(connection)) => {
            node.record(ticket, Outcome::Success, latency);
            handle.set_state(LinkState::Up);
            return Ok(connection);
        }
        Ok(Err(error)) => error,
        Err(_) => RawError::ConnectTimeout(handle.times().connect_max.as_millis()),
    };
    match (&error, error.connect_cause()) {
        (RawError::Refused(line), None) => {
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
            // Whom the upstream does not know is shown nothing of it.
            handle.partition.drop_left();
            handle.set_state(LinkState::Refused(line));
            node.disowned().notify_one();
        }
        (_, cause) => {
            node.record(ticket, Outcome::Failure(cause.unwrap_or(FailureCause::Connect)), latency);
            let failure = match &error {
                // A server that loads its data says so in its own words, for as long as the circuit is closed.
                RawError::Refused(line) => Failure::Refused(line.clone()),
                error => node.unreachable(&error.to_string(), handle.times().backoff.wait_min),
            };
            let failure = node.refusal().unwrap_or(failure);
            handle.set_state(LinkState::Down(failure));
        }
    }
    tracing::warn!(upstream = %node.endpoint, cause = %error, "no link");
    Err(None)
}

fn give_up(handle: &LinkHandle, retries: &mut Vec<Retry>) {
    let failure = match handle.state() {
        LinkState::Down(failure) => failure,
        _ => handle.node.unreachable("reconnecting", handle.times().backoff.wait_min),
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
            jobs = poll_fn(|cx| handle.poll_jobs(cx, (usize::MAX, usize::MAX))) => jobs,
        };
        if handle.is_closed() {
            return;
        }
        let failure = handle.node.refusal().unwrap_or_else(|| handle.node.unreachable("reconnecting", wait));
        jobs.iter().for_each(|job| handle.fail(job, &failure));
    }
}
