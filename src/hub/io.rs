//! The shell around the hub's core: one task, one connection, made when somebody subscribes.
//!
//! The core is behind a lock that clients take for the moment of a call; the task reads, writes and waits outside of it.
//! Answers are handed on and ports are woken after the lock was let go.

use super::core::{CoreLimits, HubCore, Pending, ScopeId, Subscriber, Ticket, Violation};
use super::{HubSettings, Kind};
use crate::clients::ClientId;
use crate::clock::Time;
use crate::outgoing::SHARED_BYTES_MIN;
use crate::port::{Delivery, Failure, Port, Seq, Taken};
use crate::upstream::backoff::Backoff;
use crate::upstream::breaker::{FailureCause, Outcome};
use crate::upstream::link::{Job, Op, OpKind};
use crate::upstream::node::Node;
use crate::upstream::raw::{self, Identity, RawConnection, RawError};
use crate::upstream::scope::Scope;
use bytes::{Buf, Bytes};
use larder_protocol::shape::Protocol;
use smallvec::smallvec;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// What the clients and the task share.
pub(super) struct Inner {
    pub(super) node: Arc<Node>,
    /// Where links leave the answers to fences.
    fences: Arc<Port>,
    state: Mutex<State>,
}

type Core = HubCore<Arc<Scope>>;
type Caller = oneshot::Sender<Result<(), Failure>>;

struct State {
    core: Core,
    callers: HashMap<Ticket, Caller>,
    waker: Option<Waker>,
    /// No attempt to connect before this time; who asks is told this.
    down: Option<(Time, Failure)>,
    life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    Closed,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum HubEnd {
    #[error("{0}")]
    Raw(#[from] RawError),
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("nothing came for {0} ms while an answer was owed")]
    Dead(u128),
    #[error("not needed")]
    Idle,
    #[error("the hub has ended")]
    Closed,
}

/// Bytes read before others have a turn.
const READ_BURST_BYTES_MAX: usize = 1024 * 1024;
/// Messages left for clients before the lock is let go and others have a turn.
const DELIVERIES_MAX: u64 = 4096;
/// How often the times are looked at, at most and at least.
const TICK_MIN: Duration = Duration::from_millis(5);
const TICK_MAX: Duration = Duration::from_millis(250);

/// What tells a scope from all others that live.
pub(super) fn id_of(scope: &Arc<Scope>) -> ScopeId {
    ScopeId(Arc::as_ptr(scope).addr())
}

// === impl Inner ===

impl Inner {
    pub(super) fn new(node: Arc<Node>, limits: CoreLimits) -> Arc<Self> {
        let state =
            State { core: HubCore::new(limits), callers: HashMap::new(), waker: None, down: None, life: Life::Open };
        Arc::new(Self { node, fences: Arc::default(), state: Mutex::new(state) })
    }

    /// Begins to subscribe; `None` if there is nothing to wait for.
    #[expect(clippy::type_complexity, reason = "a pair that its one caller takes apart")]
    pub(super) fn subscribe(
        &self,
        subscriber: Subscriber<Arc<Scope>>,
        kind: super::Kind,
        names: &[&[u8]],
    ) -> Result<Option<(Pending, oneshot::Receiver<Result<(), Failure>>)>, Failure> {
        self.with_state(|state, now| {
            if let Some((until, failure)) = &state.down
                && now < *until
            {
                return Err(failure.clone());
            }
            let pending = state.core.subscribe(subscriber, kind, names, now)?;
            Ok(pending.map(|pending| {
                let (caller, answer) = oneshot::channel();
                state.callers.insert(pending.ticket, caller);
                (pending, answer)
            }))
        })
    }

    /// Begins to settle; `None` if there is nothing to wait for.
    pub(super) fn settle(&self, client: ClientId) -> Option<oneshot::Receiver<Result<(), Failure>>> {
        self.with_state(|state, now| {
            let ticket = state.core.settle(client, now)?;
            let (caller, answer) = oneshot::channel();
            state.callers.insert(ticket, caller);
            Some(answer)
        })
    }

    /// Ends subscriptions: see [`Core::unsubscribe_all`].
    pub(super) fn unsubscribe_all(
        &self,
        client: ClientId,
        kind: Kind,
        names: &[Vec<u8>],
    ) -> Option<oneshot::Receiver<Result<(), Failure>>> {
        self.with_state(|state, now| {
            let ticket = state.core.unsubscribe_all(client, kind, names, now)?;
            let (caller, answer) = oneshot::channel();
            state.callers.insert(ticket, caller);
            Some(answer)
        })
    }

    /// Forgets who waits for an answer.
    pub(super) fn forget(&self, ticket: Ticket) {
        self.lock().callers.remove(&ticket);
    }

    /// A look at, or a change of, the core; what follows from it is done before this returns.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Core, Time) -> T) -> T {
        self.with_state(|state, now| work(&mut state.core, now))
    }

    /// Has the task look again.
    pub(super) fn wake(&self) {
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the task.
    pub(super) fn close(&self) {
        self.lock().life = Life::Closed;
        self.wake();
    }

    fn with_state<T>(&self, work: impl FnOnce(&mut State, Time) -> T) -> T {
        let now = self.node.clock.now();
        let mut state = self.lock();
        let result = work(&mut state, now);
        let waker = if state.core.outgoing().is_empty() { None } else { state.waker.take() };
        let answers = state.core.take_answers();
        let answers: Vec<_> =
            answers.into_iter().filter_map(|(t, answer)| Some((state.callers.remove(&t)?, answer))).collect();
        let awake = state.core.take_awake();
        drop(state);
        for (caller, answer) in answers {
            // Who does not wait any more has said so already.
            let _: Result<(), _> = caller.send(answer);
        }
        awake.iter().for_each(|port| port.wake());
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    /// Ready when a connection is needed, with false if the hub has ended.
    fn poll_needed(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.lock();
        if state.life == Life::Closed {
            return Poll::Ready(false);
        }
        if !state.core.is_idle() {
            return Poll::Ready(true);
        }
        state.register(cx);
        Poll::Pending
    }

    /// There is no connection: whoever waits is told, and so is who asks before `wait` has passed.
    fn refuse(&self, failure: &Failure, wait: Duration) {
        self.with_state(|state, now| {
            state.down = Some((now.saturating_add(wait), failure.clone()));
            state.core.unavailable(failure);
        });
    }

    /// The connection is gone: as [`Inner::refuse`], and its subscribers are disconnected. Returns how many.
    fn lose(&self, failure: &Failure, wait: Duration) -> usize {
        self.with_state(|state, now| {
            state.down = Some((now.saturating_add(wait), failure.clone()));
            state.core.lost(failure)
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn register(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }
}

/// Runs a hub until it ends.
pub(super) async fn run(inner: Arc<Inner>, identity: Identity, settings: HubSettings) {
    let mut backoff = Backoff::new(settings.backoff, settings.seed);
    let node = inner.node.clone();
    while poll_fn(|cx| inner.poll_needed(cx)).await {
        let connection = match attempt(&node, &identity, &settings).await {
            Ok(connection) => connection,
            Err(Refused::ByBreaker(failure)) => {
                inner.refuse(&failure, Duration::ZERO);
                continue;
            }
            Err(Refused::ByUpstream(line)) => {
                inner.refuse(&Failure::Refused(line), Duration::ZERO);
                continue;
            }
            Err(Refused::Unreachable(error)) => {
                let wait = backoff.next_wait(Duration::ZERO);
                tracing::warn!(upstream = %node.endpoint, cause = %error, "no connection for subscriptions");
                let failure = node.refusal().unwrap_or_else(|| node.unreachable(&error.to_string(), wait));
                inner.refuse(&failure, wait);
                continue;
            }
        };
        let began = node.clock.now();
        let end = Serving::new(&inner, &settings, connection).run().await;
        let cause = match &end {
            HubEnd::Closed => break,
            HubEnd::Idle => continue,
            HubEnd::Raw(RawError::Reply(_)) | HubEnd::Violation(_) => FailureCause::BadProtocol,
            HubEnd::Dead(_) => FailureCause::Timeout,
            HubEnd::Raw(_) => FailureCause::LinkLost,
        };
        node.record_loss(cause);
        let lived = node.clock.now().saturating_since(began);
        let wait = backoff.next_wait(lived);
        let wait = if lived < settings.backoff.stable_min { wait } else { Duration::ZERO };
        let failure = node.unreachable(&format!("the subscription connection was lost: {end}"), wait);
        let killed = inner.lose(&failure, wait);
        tracing::warn!(upstream = %node.endpoint, cause = %end, killed, "subscription connection lost: its subscribers are disconnected");
    }
    inner.lose(&Failure::Down("the subscription hub has ended".into()), Duration::ZERO);
}

/// Why there is no connection.
enum Refused {
    ByBreaker(Failure),
    ByUpstream(Bytes),
    Unreachable(RawError),
}

/// Tries to connect once.
async fn attempt(node: &Node, identity: &Identity, settings: &HubSettings) -> Result<RawConnection, Refused> {
    let ticket = match node.admit() {
        Ok(ticket) => ticket,
        Err(_) => {
            let failure = node.refusal().unwrap_or_else(|| node.unreachable("probing", Duration::ZERO));
            return Err(Refused::ByBreaker(failure));
        }
    };
    let began = node.clock.now();
    let result = timeout(settings.connect_max, connect(node, identity, settings)).await;
    let result = result.unwrap_or(Err(RawError::ConnectTimeout(settings.connect_max.as_millis())));
    let latency = node.clock.now().saturating_since(began);
    let outcome = match &result {
        Ok(_) => Outcome::Success,
        Err(RawError::Refused(line)) if line.starts_with(b"LOADING") => Outcome::Failure(FailureCause::Loading),
        Err(RawError::Refused(_)) => Outcome::ClientFault,
        Err(RawError::Reply(_)) => Outcome::Failure(FailureCause::BadProtocol),
        Err(_) => Outcome::Failure(FailureCause::Connect),
    };
    node.record(ticket, outcome, latency);
    result.map_err(|error| match error {
        RawError::Refused(line) if outcome == Outcome::ClientFault => Refused::ByUpstream(line),
        error => Refused::Unreachable(error),
    })
}

/// Connects and sets up, in RESP3 if the upstream has it: messages and answers cannot be taken for one another then.
async fn connect(node: &Node, identity: &Identity, settings: &HubSettings) -> Result<RawConnection, RawError> {
    let mut connection = RawConnection::connect(&node.endpoint, settings.connect_max, settings.replies).await?;
    match raw::set_up(&mut connection, identity, Protocol::Resp3, 0).await {
        Ok(_) => {}
        Err(RawError::Refused(line)) if does_without_resp3(&line) => {
            raw::set_up(&mut connection, identity, Protocol::Resp2, 0).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(connection)
}

/// True if RESP2 is worth a try. A server that wants a password says so to SUBSCRIBE in the words that a client knows,
/// and to HELLO in others.
fn does_without_resp3(line: &[u8]) -> bool {
    [&b"NOPROTO"[..], b"ERR unknown command", b"NOAUTH", b"NOPERM"].iter().any(|head| line.starts_with(head))
}

/// A connected hub.
struct Serving<'a> {
    inner: &'a Inner,
    settings: &'a HubSettings,
    connection: RawConnection,
    heard_at: Time,
    needed_at: Time,
    tick: Interval,
    taken: Taken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    Nothing,
    Some,
    Burst,
}

// === impl Serving ===

impl<'a> Serving<'a> {
    fn new(inner: &'a Inner, settings: &'a HubSettings, connection: RawConnection) -> Self {
        let shortest = settings.dead_after.min(settings.ping_after).min(settings.idle_max);
        let mut tick = interval((shortest / 8).clamp(TICK_MIN, TICK_MAX));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let now = inner.node.clock.now();
        Self { inner, settings, connection, heard_at: now, needed_at: now, tick, taken: Taken::default() }
    }

    async fn run(mut self) -> HubEnd {
        poll_fn(|cx| match self.poll_turn(cx) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        })
        .await
    }

    /// One turn: fences, bytes out, bytes in, fences. Returns when there is nothing to do.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Result<(), HubEnd> {
        let now = self.inner.node.clock.now();
        {
            let mut state = self.inner.lock();
            if state.life == Life::Closed {
                return Err(HubEnd::Closed);
            }
            state.register(cx);
        }
        while self.tick.poll_tick(cx).is_ready() {
            self.look_at_times(now)?;
        }
        loop {
            let fenced = self.take_fenced(cx, now);
            if self.inner.with(|core, _| core.deliver(DELIVERIES_MAX, now)) {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            self.flush(cx)?;
            let read = self.read(cx, now)?;
            let asked = self.ask_fences();
            self.flush(cx)?;
            if read == Read::Burst {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            if !fenced && !asked && read == Read::Nothing {
                return Ok(());
            }
        }
    }

    /// Takes answers to fences out of the port.
    fn take_fenced(&mut self, cx: &mut Context<'_>, now: Time) -> bool {
        if self.inner.fences.poll_ready(cx).is_pending() {
            return false;
        }
        self.inner.fences.take(&mut self.taken);
        let deliveries = std::mem::take(&mut self.taken.deliveries);
        self.taken.recycle();
        self.inner.with(|core, _| {
            for delivery in deliveries {
                match delivery {
                    Delivery::Failed(seq, Failure::ReadTimeout(_) | Failure::WriteTimeout(_)) => {
                        tracing::warn!("a link does not answer: subscribers that wait for messages are disconnected");
                        core.fence_failed(seq, now);
                    }
                    // A fence that fails otherwise was not sent: the link is down, and its partition empty.
                    Delivery::Fenced(seq) | Delivery::Failed(seq, _) => core.fenced(seq),
                    Delivery::Small { .. } | Delivery::Large(..) | Delivery::Message(_) => {}
                    Delivery::Invalidation(_) | Delivery::Line(_) | Delivery::CatchUp(_) => {}
                }
            }
        });
        true
    }

    /// Asks for the fences that messages wait for.
    fn ask_fences(&mut self) -> bool {
        let fences = self.inner.with(|core, _| core.take_fences());
        for (scope, seq) in &fences {
            scope.link.submit_fence(fence(&self.inner.fences, *seq));
        }
        !fences.is_empty()
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), RawError> {
        loop {
            if self.connection.outgoing.is_empty() {
                std::mem::swap(self.inner.lock().core.outgoing(), &mut self.connection.outgoing);
            }
            if self.connection.outgoing.is_empty() {
                return Ok(());
            }
            match self.connection.poll_flush(cx) {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => return Ok(()),
            }
        }
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Time) -> Result<Read, HubEnd> {
        let mut total = 0;
        loop {
            if self.inner.lock().core.is_full() {
                // Nothing is heard because nothing is read; the answer to a fence wakes this task.
                self.heard_at = now;
                return Ok(if total > 0 { Read::Some } else { Read::Nothing });
            }
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
    fn frames(&mut self, now: Time) -> Result<(), HubEnd> {
        let connection = &mut self.connection;
        self.inner.with(|core, _| {
            while let Some(len) = connection.frame_len()? {
                core.frame(take_frame(connection, len), now)?;
            }
            Ok(())
        })
    }

    fn look_at_times(&mut self, now: Time) -> Result<(), HubEnd> {
        let settings = self.settings;
        let silent_for = now.saturating_since(self.heard_at);
        let (heard_at, needed_at) = (self.heard_at, &mut self.needed_at);
        self.inner.with(|core, _| {
            if core.is_idle() {
                if now.saturating_since(*needed_at) >= settings.idle_max {
                    core.unavailable(&not_needed());
                    return Err(HubEnd::Idle);
                }
            } else {
                *needed_at = now;
            }
            let silent_since = core.oldest_sent_at().map(|sent| sent.max(heard_at));
            if silent_since.is_some_and(|since| now.saturating_since(since) >= settings.dead_after) {
                return Err(HubEnd::Dead(settings.dead_after.as_millis()));
            }
            if silent_for >= settings.ping_after {
                core.keep_alive(now);
            }
            Ok(())
        })
    }
}

/// What nobody is told: when a connection ends because nobody waits.
fn not_needed() -> Failure {
    Failure::Down("the subscription connection was not needed".into())
}

/// Takes a frame out of what was received. In RESP2 messages and confirmations are arrays, and nothing else is: they get
/// the first byte that they have in RESP3.
fn take_frame(connection: &mut RawConnection, len: usize) -> Bytes {
    let input = connection.input();
    if let Some(first @ b'*') = input.first_mut() {
        *first = b'>';
    }
    if len >= SHARED_BYTES_MIN {
        return input.split_to(len).freeze();
    }
    let frame = Bytes::copy_from_slice(&input[..len]);
    input.advance(len);
    frame
}

fn fence(port: &Arc<Port>, seq: Seq) -> Job {
    Job { port: port.clone(), bytes: Bytes::new(), ops: smallvec![Op { seq, bytes: 0..0, kind: OpKind::Fence }] }
}
