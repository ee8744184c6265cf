//! A link while it is connected: jobs in, bytes out, bytes in, replies on; ticks, probes, and the end.
//!
//! One turn takes all jobs that wait, writes them with one call, reads what has come with one call, hands replies on, and
//! wakes each client once.

use super::{LinkHandle, LinkTimes};
use crate::buffered::{REQUEST_OVERHEAD_BYTES, Share};
use crate::clock::Time;
use crate::outgoing::SHARED_BYTES_MIN;
use crate::upstream::backoff::{Backoff, BackoffSettings};
use crate::upstream::breaker::{FailureCause, Outcome, Ticket};
use crate::upstream::link::{Frame, LinkCore, Violation};
use crate::upstream::raw::{RawConnection, RawError};
use bytes::{Buf, Bytes, BytesMut};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkEnd {
    #[error("{0}")]
    Raw(#[from] RawError),
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("nothing came for {0} ms while replies were owed")]
    Dead(u128),
    #[error("it refuses writes as a replica does: its name may lead to another server by now")]
    Moved,
    #[error("the scope ended")]
    Closed,
}

/// After a reply that tells of a replica (`READONLY`) the connection is made anew, at most so often: an upstream that is a
/// replica on purpose must not be connected to for ever.
const MOVE_BACKOFF: BackoffSettings = BackoffSettings {
    wait_min: Duration::from_secs(1),
    wait_max: Duration::from_secs(60),
    stable_min: Duration::from_secs(120),
};
/// Most keys that one TOUCH names.
const TOUCH_KEYS_MAX: usize = 512;
/// Most keys that are touched in one interval.
const TOUCH_TOTAL_MAX: usize = 100_000;
/// Most keys that are touched at once: a burst of more would keep clients waiting.
const TOUCH_BURST_MAX: usize = 8 * TOUCH_KEYS_MAX;
/// The buffer of replies that were not longer than this is kept.
const INPUT_KEPT_BYTES_MAX: usize = 512 * 1024;
/// Bytes read from the upstream before the task lets others run.
const READ_BURST_BYTES_MAX: usize = 1024 * 1024;

/// A connected link.
pub(super) struct Serving<'a> {
    handle: &'a LinkHandle,
    core: &'a mut LinkCore,
    connection: RawConnection,
    heard_at: Time,
    tick: Interval,
    touch: Option<Interval>,
    /// Keys being gathered for TOUCH, elsewhere: the whole of L1 is looked at for it.
    gathering: Option<JoinHandle<Vec<Vec<u8>>>>,
    /// Keys still to be touched.
    touched: Vec<Vec<u8>>,
    answered: u32,
    timeouts_seen: u64,
    probe: Option<(Ticket, Time)>,
    moves: &'a mut Moves,
    share: Share,
    /// What is under way is waited for, nothing more is sent, and the connection is closed.
    is_leaving: bool,
}

/// When the connection was closed because of a `READONLY`, and when that may be done again.
pub(super) struct Moves {
    backoff: Backoff,
    last: Time,
    not_before: Time,
}

// === impl Serving ===

impl Moves {
    /// None so far.
    pub(super) fn new(seed: u64) -> Self {
        Self { backoff: Backoff::new(MOVE_BACKOFF, seed), last: Time::ZERO, not_before: Time::ZERO }
    }
}

impl<'a> Serving<'a> {
    pub(super) fn new(
        handle: &'a LinkHandle,
        core: &'a mut LinkCore,
        connection: RawConnection,
        moves: &'a mut Moves,
    ) -> Self {
        let (tick, touch) = intervals(&handle.times());
        let heard_at = handle.node.clock.now();
        let timeouts_seen = core.counts().timeouts;
        // Whatever has asked for it, this connection is new.
        handle.asked_to_move.store(false, Ordering::Release);
        Self {
            handle,
            core,
            connection,
            heard_at,
            tick,
            touch,
            gathering: None,
            touched: Vec::new(),
            answered: 0,
            timeouts_seen,
            probe: None,
            moves,
            share: handle.share(),
            is_leaving: false,
        }
    }

    /// Serves until the connection ends: why, and until when the feed was whole.
    pub(super) async fn run(mut self) -> (LinkEnd, Time) {
        let end = poll_fn(|cx| self.poll_turn(cx)).await;
        self.publish();
        let whole_until = if end.is_prompt() { self.handle.node.clock.now() } else { self.heard_at };
        (end, whole_until)
    }

    /// One turn: jobs in, bytes out, bytes in, replies on. Pending when there is nothing to do.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<LinkEnd> {
        let now = self.handle.node.clock.now();
        if self.handle.tell_core(self.core) {
            (self.tick, self.touch) = intervals(&self.handle.times());
            self.publish();
        }
        if let Err(end) = self.take_ticks(cx, now) {
            return Poll::Ready(end);
        }
        let turn = self.take_turn(cx, now);
        let (requests, bytes) = self.core.in_flight();
        let unsent = self.core.outgoing().len();
        self.share.set(bytes + unsent + requests * REQUEST_OVERHEAD_BYTES + self.connection.input().len());
        turn
    }

    fn take_turn(&mut self, cx: &mut Context<'_>, now: Time) -> Poll<LinkEnd> {
        loop {
            let was_full = self.core.is_full();
            let took = match self.take_jobs(cx, now) {
                Ok(took) => took,
                Err(end) => return Poll::Ready(end),
            };
            self.flush(cx);
            let read = match self.read(cx, now) {
                Ok(read) => read,
                Err(end) => {
                    self.core.wake_clients();
                    return Poll::Ready(end);
                }
            };
            self.core.wake_clients();
            if self.leaves(now) {
                return Poll::Ready(LinkEnd::Moved);
            }
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

    /// True if the connection is to be closed now: the server at its other end refuses writes as a replica does. What is
    /// under way is answered before, so that nothing is lost; what waits goes to whoever the name leads to.
    fn leaves(&mut self, now: Time) -> bool {
        let told = self.core.take_elsewhere() | self.handle.asked_to_move.swap(false, Ordering::AcqRel);
        if told && !self.is_leaving && now >= self.moves.not_before {
            self.is_leaving = true;
            let lived = now.saturating_since(self.moves.last);
            self.moves.last = now;
            self.moves.not_before = now.saturating_add(self.moves.backoff.next_wait(lived));
        }
        self.is_leaving && self.core.in_flight().0 == 0
    }

    fn take_jobs(&mut self, cx: &mut Context<'_>, now: Time) -> Result<bool, LinkEnd> {
        if self.is_leaving || self.core.is_full() {
            return Ok(false);
        }
        let Poll::Ready(jobs) = self.handle.poll_jobs(cx, self.core.room()) else { return Ok(false) };
        if jobs.is_empty() && self.handle.is_closed() {
            return Err(LinkEnd::Closed);
        }
        for job in &jobs {
            self.core.submit(job, now);
        }
        Ok(true)
    }

    /// Writes what waits. That it cannot be written any more is for the reading side to tell: what the upstream had sent
    /// before it closed the connection, replies to what it has done and pushes, comes first there.
    fn flush(&mut self, cx: &mut Context<'_>) {
        while !self.core.outgoing().is_empty() {
            let Poll::Ready(Ok(())) = self.connection.stream().poll_write_ready(cx) else { return };
            match self.core.outgoing().write_to(self.connection.stream()) {
                Ok(false) => {}
                Ok(true) | Err(_) => return,
            }
        }
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
        let mut longest = 0;
        // What was sent later, and is answered now as well, is no slower.
        let mut is_fast = false;
        while let Some(len) = self.connection.frame_len()? {
            if self.connection.input().first() != Some(&b'>') {
                is_fast = is_fast || self.is_fast(now);
                self.answered += u32::from(is_fast);
            }
            longest = longest.max(len);
            if len >= SHARED_BYTES_MIN {
                let shared = self.connection.input().split_to(len).freeze();
                self.core.frame(Frame { bytes: &shared, shared: Some(&shared) }, now)?;
            } else {
                let input = self.connection.input();
                self.core.frame(Frame { bytes: &input[..len], shared: None }, now)?;
                input.advance(len);
            }
        }
        if longest > INPUT_KEPT_BYTES_MAX {
            // What is left is in the large reply's buffer, which would stay for as long as the link.
            let input = self.connection.input();
            *input = BytesMut::from(&input[..]);
        }
        Ok(())
    }

    /// True if the reply that is there has not taken long, or nobody is to be told of that; else the breaker is.
    fn is_fast(&self, now: Time) -> bool {
        let latency = self.core.oldest_sent_at().map_or(Duration::ZERO, |sent| now.saturating_since(sent));
        if !self.handle.node.is_slow(latency) {
            return true;
        }
        let Some(ticket) = self.handle.node.ticket() else { return true };
        self.handle.node.record(ticket, Outcome::Success, latency);
        false
    }

    fn take_ticks(&mut self, cx: &mut Context<'_>, now: Time) -> Result<(), LinkEnd> {
        while self.tick.poll_tick(cx).is_ready() {
            self.core.time_out(now);
            self.handle.time_out(now);
            self.core.expire_soft(now);
            self.publish();
            let owes = self.core.oldest_sent_at();
            let silent_since = owes.map(|sent| sent.max(self.heard_at));
            if silent_since.is_some_and(|since| now.saturating_since(since) >= self.handle.times().dead_after) {
                return Err(LinkEnd::Dead(self.handle.times().dead_after.as_millis()));
            }
            // An idle connection that is gone without a word would leave what was cached over it in use.
            let idle = owes.is_none() && now.saturating_since(self.heard_at) >= self.handle.times().dead_after / 3;
            if idle {
                self.core.submit_own(b"*1\r\n$4\r\nPING\r\n", now);
            }
            self.probe(now);
            self.touch_upstream(now);
        }
        if let Some(touch) = &mut self.touch
            && touch.poll_tick(cx).is_ready()
            && self.gathering.is_none()
            && self.touched.is_empty()
        {
            let partition = self.handle.partition.clone();
            self.gathering = Some(tokio::task::spawn_blocking(move || partition.take_touched(TOUCH_TOTAL_MAX)));
        }
        if let Some(gathering) = &mut self.gathering
            && let Poll::Ready(gathered) = Pin::new(gathering).poll(cx)
        {
            self.gathering = None;
            self.touched = gathered.unwrap_or_default();
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
        // A reply that tells of a failure is a failed call, and no other.
        let failures = self.core.take_failures();
        self.answered = self.answered.saturating_sub(failures.len() as u32);
        for cause in failures {
            self.handle.node.record_failures(cause, 1);
        }
        if self.answered > 0 {
            self.handle.node.record_successes(std::mem::take(&mut self.answered));
        }
        for key in self.core.take_big_keys() {
            (self.handle.big_keys)(key);
        }
        self.handle.caches.store(self.core.keeps(), Ordering::Release);
        *self.handle.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// Tells the upstream, in bursts, which keys are in use here, or it would take the hottest for idle and evict them first.
    fn touch_upstream(&mut self, now: Time) {
        let left = self.touched.len().saturating_sub(TOUCH_BURST_MAX);
        for keys in self.touched.split_off(left).chunks(TOUCH_KEYS_MAX) {
            let words = std::iter::once(&b"TOUCH"[..]).chain(keys.iter().map(|k| &k[..]));
            let request = larder_protocol::args::OwnedArgs::new(words);
            self.core.submit_touch(Bytes::copy_from_slice(request.args().bytes()), now);
        }
    }
}

/// When to look at what waits, and when to gather the keys that are to be touched.
fn intervals(times: &LinkTimes) -> (Interval, Option<Interval>) {
    let shortest = times.reply_max.min(times.dead_after);
    let mut tick = interval((shortest / 8).clamp(Duration::from_millis(5), Duration::from_millis(250)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let touch = times.touch_interval.map(|every| {
        let mut touch = tokio::time::interval_at(Instant::now() + every, every);
        touch.set_missed_tick_behavior(MissedTickBehavior::Skip);
        touch
    });
    (tick, touch)
}

enum Read {
    Nothing,
    Some,
    Burst,
}

// === impl LinkEnd ===

impl LinkEnd {
    /// True if the end came in its place in the stream: all that the upstream had sent before it has been read.
    fn is_prompt(&self) -> bool {
        match self {
            Self::Raw(RawError::Io(error)) => error.kind() == std::io::ErrorKind::ConnectionReset,
            Self::Raw(RawError::Closed) | Self::Closed => true,
            Self::Raw(_) | Self::Violation(_) | Self::Dead(_) => false,
            Self::Moved => true,
        }
    }

    /// What the breaker counts; `None` for an end that Larder has made.
    pub(super) fn cause(&self) -> Option<FailureCause> {
        match self {
            Self::Raw(error) => Some(error.cause()),
            Self::Violation(_) => Some(FailureCause::BadProtocol),
            Self::Dead(_) => Some(FailureCause::Timeout),
            Self::Moved | Self::Closed => None,
        }
    }
}
