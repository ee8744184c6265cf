//! The tunnel: a client on a connection of its own, for as long as the state on it lasts.
//!
//! ```text
//!   client ──request──► owed ──► borrowed connection ──► upstream
//!   client ◄─ released ◄─ fenced ◄─ pieces of replies ◄──┘
//! ```
//!
//! Transactions, blocking commands, scripts, MONITOR, client-side tracking, and replies that may be very large. Requests
//! and replies pass unchanged, in the client's own protocol; a large reply passes in pieces and is never gathered.
//!
//! * A reply is *released* only when the scope's link has answered a PING that was sent after the reply's first piece
//!   had come: L1 then knows all that the reply tells. One PING serves all pieces that wait. A request that may have
//!   changed keys is fenced on the other scopes' links, too.
//! * The connection goes back to its pool when nothing is owed and no state is left (no WATCH, MULTI, tracking); what
//!   cannot be undone closes it.
//! * While the tunnel is open nothing of the client goes down the link, so its order holds.
//!
//! How it fails: a lost connection answers everything that is owed with `UPSTREAMLOST`, and ends the client's connection
//! if it held state: as with the server itself, what was watched or queued is gone.

mod decide;
mod monitor;
mod owed;
mod patience;
mod replies;
mod swap;
mod track;
mod transaction;

pub(super) use self::owed::is_protocol_error;

use self::decide::{Next, kill_request, purpose_of, unblock_request};
use self::owed::{Owed, Reach, What, bound_of};
use self::patience::Patience;
use self::replies::Waiting;
use self::swap::{Announcement, Swap};
use self::transaction::{Own, Transaction};
use super::cache::is_cache;
use super::core::{Core, Knowledge, drop_job, fence_job};
use super::hold::pause_request;
use super::tracking::{Numbered, Redirect};
use super::{Connection, End, Input, READ_AHEAD_BYTES_MAX, Request, retold};
use crate::l1::Cause;
use crate::monitors::{Translator, Watching};
use crate::pause::{self, Beginning, Mode};
use crate::port::{Failure, Seq};
use crate::upstream::breaker::FailureCause;
use crate::upstream::link::{ARGUMENT_BYTES_MAX, OpKind};
use crate::upstream::pool::{Borrowed, Use};
use crate::upstream::raw::RawError;
use crate::upstream::scope::{ReplyTimes, Scope};
use bytes::{Bytes, BytesMut};
use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::shape::Protocol;
use larder_protocol::table::{Class, Resolved, Table};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

/// While so many bytes wait to be released, nothing is read from the upstream.
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// Commands about the client itself in one transaction; it fails with more.
const OWN_IN_TRANSACTION_MAX: usize = 64;
/// Requests that may be owed a reply at a time.
const OWED_MAX: usize = 1024;

/// A client's time on a connection of its own.
pub(super) struct Tunnel {
    connection: Borrowed,
    scope: Arc<Scope>,
    table: Arc<Table>,
    owed: VecDeque<Owed>,
    state: Held,
    /// Pieces that wait for the fence under way, and pieces that came after it was sent.
    covered: VecDeque<Waiting>,
    uncovered: VecDeque<Waiting>,
    waiting_bytes: usize,
    fence: Option<Seq>,
    /// The pieces that came after the last fence hold the reply to a request that may have changed keys.
    fence_widely: bool,
    patience: Patience,
    times: ReplyTimes,
    /// Replies that came as they should, not yet told to the breaker.
    answered: u32,
    /// What is queued so far.
    transaction: Transaction,
    /// SWAPDB was sent: all partitions are suspended until it is over.
    swap: Option<Swap>,
    /// It is over, and other Larders are being told.
    announcement: Option<Announcement>,
    /// True while the reply at hand has begun.
    in_reply: bool,
    /// True if the connection has left the database of the client's scope.
    has_selected: bool,
    upstream: Upstream,
    /// The reply at hand, while it is gathered for what is Larder's own to be put in.
    gathered: BytesMut,
    /// The place of a client that is held by CLIENT PAUSE.
    pub(super) turn: Option<pause::Waiting>,
    /// The pause that the transaction at hand holds, from before its EXEC is sent until its reply.
    pub(super) beginning: Option<Beginning>,
    /// A line of the server's MONITOR, while it comes.
    line: BytesMut,
    /// What the lines before it tell of the next one.
    lines: Translator,
    /// The client's place among those who watch.
    watching: Option<Watching>,
    /// A push that has begun.
    pushed: BytesMut,
    /// Whom the client, which tracks, redirects to.
    redirect: Option<Redirect>,
    /// About the request that is put next.
    numbered: Numbered,
    /// The state has changed after the next request was looked at.
    reconsiders: bool,
}

/// Whether the connection can still be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upstream {
    There,
    /// Lost, or too slow: nothing more is expected of it.
    Gone,
}

/// State on the connection.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    watching: bool,
    in_multi: bool,
    tracking: bool,
    monitoring: bool,
}

/// Why the exchange over the tunnel pauses.
enum Pause {
    /// The tunnel is at rest.
    AtRest,
    /// The request at the start of the input is handled outside while the connection is kept.
    StepOut,
}

// === impl Connection ===

impl Connection {
    /// Handles `first`, and what belongs to it, on a connection of its own.
    pub(super) async fn tunnel(&mut self, first: Request) -> Result<(), End> {
        let Some(scope) = self.core.scope().cloned() else { return Ok(()) };
        self.core.is_told_by_upstream = true;
        let table = self.core.table();
        let purpose = purpose_of(&table, first.args(), self.core.shared.pauses.mode() != Mode::Off);
        self.core.counters.exclusive.add(1);
        self.core.knowledge = Knowledge::Something;
        if let Some(failure) = scope.link.node().refusal() {
            scope.link.node().count_refused(1);
            self.core.answer(format!("-{failure}\r\n").as_bytes());
            return Ok(());
        }
        let borrowed = match self.borrow(&scope, purpose).await? {
            Ok(borrowed) => borrowed,
            Err(failure) if self.core.is_disowned(&failure) => return Err(End::Closed),
            Err(failure) => {
                self.core.answer(format!("-{failure}\r\n").as_bytes());
                return Ok(());
            }
        };
        let upstream_id = borrowed.upstream_id();
        if !self.watchers_have_caught_up().await {
            return Err(End::Closed);
        }
        borrowed.lease(Some(self.core.client.address));
        let mut tunnel = Tunnel::new(borrowed, scope, table, self.core.shared.reply_times());
        let Some(first) = self.number_first(&mut tunnel, first).await else { return Ok(()) };
        self.core.client.upstream_id.store(upstream_id, Ordering::Release);
        tunnel.put_name(&self.core);
        tunnel.take(&mut self.core, first);
        let ended = loop {
            match poll_fn(|cx| self.poll_tunnel(&mut tunnel, cx)).await {
                Ok(Pause::AtRest) => break Ok(()),
                Ok(Pause::StepOut) => {
                    if let Err(end) = self.step_out(&mut tunnel).await {
                        break Err(end);
                    }
                }
                Err(end) => break Err(end),
            }
        };
        self.core.session.learnt_elsewhere(self.core.shared.clock.now());
        self.core.client.upstream_id.store(0, Ordering::Release);
        self.core.client.blocked.store(false, Ordering::Relaxed);
        self.core.client.in_transaction.store(false, Ordering::Relaxed);
        self.core.client.tracking.end();
        if let Some(seq) = tunnel.fence {
            self.core.fences.remove(&seq);
        }
        self.core.catch_ups.clear();
        if self.core.shared.monitors.any() {
            // What the server tells of this client may still be on its way: the address stays this client's.
            tunnel.connection.condemn();
        } else {
            tunnel.connection.lease(None);
        }
        if ended.is_err() && !tunnel.state.is_none() {
            tunnel.connection.condemn();
        }
        ended
    }

    /// Returns when those who watch have been told of all that was done on the borrowed connection before: that is not the
    /// client's. False if the client has been killed meanwhile.
    async fn watchers_have_caught_up(&mut self) -> bool {
        let core = &mut self.core;
        if core.shared.monitors.any() {
            let seq = core.start_fence(&[], OpKind::Fence);
            let asked = core.shared.monitors.ask_to_catch_up(core.client.id, &core.client.port, seq);
            core.fences.insert(seq, asked);
            // Nothing in it can fail; whoever does not answer is gone.
            let _: Result<(), Failure> = self.fenced(seq).await;
        }
        !self.core.client.port.is_killed()
    }

    /// Handles a request that has nothing to do with the connection, while that keeps its state.
    async fn step_out(&mut self, tunnel: &mut Tunnel) -> Result<(), End> {
        if let Some(wanted) = tunnel.pause_to_begin() {
            tunnel.beginning = Some(self.begin_pause(wanted.mode).await);
            return Ok(());
        }
        let Ok(Some(request)) = self.io.next_request() else { return Ok(()) };
        if is_cache(&tunnel.table, request.args()) {
            return self.cache(&request).await;
        }
        let table = tunnel.table.clone();
        let Resolved::Known(command) = table.resolve(request.args()) else { return Ok(()) };
        match &*command.name {
            name if self.is_too_long_for_all(name, command.class, request.args()) => {}
            name if command.class == Class::PubSub => {
                self.subscribe(name, request.args()).await;
                self.core.tell_watchers(command, request.args());
            }
            "client|pause" => self.pause(request).await?,
            "client|unpause" => self.unpause().await,
            name @ ("client|kill" | "client|list") => {
                self.about_clients(name, request.args()).await;
                self.core.tell_watchers(command, request.args());
            }
            name if retold::concerns(name) => {
                self.retell(name, request.args()).await;
                self.core.tell_watchers(command, request.args());
            }
            "client|tracking" => {
                if let Some(request) = self.number_first(tunnel, request).await {
                    let next = tunnel.decide(&mut self.core, request.args());
                    tunnel.put(&mut self.core, request, next);
                }
            }
            "hello" | "auth" => {
                // The connection must speak the client's protocol, and be who the client is.
                tunnel.connection.condemn();
                if let Some(words) = self.words_for_upstream(&command.name, request.args()) {
                    self.call_tracking(tunnel, words).await?;
                }
                if command.name == "hello" {
                    self.hello(request).await?;
                } else {
                    self.auth(request.args()).await;
                }
            }
            _ => {
                let name = String::from_utf8_lossy(request.args().arg(0)).to_uppercase();
                let line = format!("-ERR larder: '{name}' is not possible within WATCH or client-side tracking\r\n");
                self.core.answer(line.as_bytes());
            }
        }
        Ok(())
    }

    /// Borrows a connection; meanwhile notices if the client is killed.
    async fn borrow(&mut self, scope: &Arc<Scope>, purpose: Use) -> Result<Result<Borrowed, Failure>, End> {
        let port = self.core.client.port.clone();
        let borrowing = scope.pools.borrow(purpose, self.core.session.protocol());
        tokio::pin!(borrowing);
        poll_fn(|cx| {
            if let Poll::Ready(borrowed) = borrowing.as_mut().poll(cx) {
                return Poll::Ready(Ok(borrowed));
            }
            if port.poll_ready(cx).is_ready() {
                if port.is_killed() {
                    return Poll::Ready(Err(End::Closed));
                }
                self.core.take_deliveries();
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }

    fn poll_tunnel(&mut self, tunnel: &mut Tunnel, cx: &mut Context<'_>) -> Poll<Result<Pause, End>> {
        let mut has_moved = false;
        loop {
            let mut moved = false;
            if self.core.client.port.poll_ready(cx).is_ready() {
                if self.core.client.port.is_killed() {
                    return Poll::Ready(Err(End::Closed));
                }
                self.core.take_deliveries();
                moved = true;
            }
            tunnel.ask_for_mark(&mut self.core);
            let mut fed = self.feed(tunnel, cx)?;
            moved |= fed == Fed::Something;
            match tunnel.exchange(&mut self.core, cx) {
                Ok(exchanged) => moved |= exchanged,
                Err(error) => {
                    tell_of_loss(&self.core, tunnel, &error);
                    tunnel.lost(&self.core, error.cause(), |owed| {
                        if owed.writes { Failure::WriteLost } else { Failure::ReadLost }
                    });
                    moved = true;
                }
            }
            if self.core.ends_after_answer {
                self.io.state = Input::Closed;
            }
            match tunnel.release(&mut self.core) {
                Ok(released) => moved |= released,
                Err(failure) => {
                    self.fence_failed(tunnel, &failure)?;
                    moved = true;
                }
            }
            let waited = self.core.out.len();
            self.flush(cx).map_err(End::Io)?;
            // What was drained makes room for more.
            moved |= self.core.out.len() < waited;
            self.tell_share(tunnel.waiting_bytes());
            let holds_up = !self.core.out.is_empty() && self.holds_others_up(tunnel.waiting_bytes());
            if self.has_too_much_output(cx) || holds_up {
                return Poll::Ready(Err(End::Closed));
            }
            if std::mem::take(&mut tunnel.reconsiders) && fed == Fed::Leave {
                fed = Fed::Nothing;
                moved = true;
            }
            if let Some(pause) = self.pause_of(tunnel, fed)? {
                return Poll::Ready(Ok(pause));
            }
            if tunnel.is_out_of_patience(&self.core, cx) {
                let ms = tunnel.bound().unwrap_or_default().as_millis() as u64;
                tunnel.lost(&self.core, FailureCause::Timeout, |owed| {
                    if owed.writes { Failure::WriteTimeout(ms) } else { Failure::ReadTimeout(ms) }
                });
                moved = true;
            }
            has_moved |= moved;
            if !moved {
                let waits = !tunnel.is_quiet();
                let ends = self.is_idle_too_long(has_moved, waits, cx);
                return if ends { Poll::Ready(Err(End::Closed)) } else { Poll::Pending };
            }
        }
    }

    /// Whether, and why, the exchange is to pause.
    fn pause_of(&mut self, tunnel: &mut Tunnel, fed: Fed) -> Result<Option<Pause>, End> {
        if self.core.shared.is_draining() && (tunnel.is_blocked() || tunnel.is_quiet()) {
            return Err(End::Closed);
        }
        if !tunnel.is_quiet() {
            return Ok(None);
        }
        if tunnel.upstream == Upstream::Gone && (self.core.in_reply || !tunnel.state.is_none()) {
            // Half a reply cannot be taken back, nor can lost state be told otherwise.
            self.io.state = Input::Closed;
        }
        if fed == Fed::Abandon || self.io.state == Input::Closed {
            tunnel.state = Held::default();
            tunnel.connection.condemn();
        }
        if tunnel.state.is_none() {
            tunnel.leave(&mut self.core);
            return Ok(Some(Pause::AtRest));
        }
        Ok((fed == Fed::Leave).then_some(Pause::StepOut))
    }

    /// Takes requests that belong into the tunnel from the client.
    fn feed(&mut self, tunnel: &mut Tunnel, cx: &mut Context<'_>) -> Result<Fed, End> {
        let mut fed = Fed::Nothing;
        loop {
            if self.io.state == Input::Closed {
                return Ok(Fed::Abandon);
            }
            if !tunnel.has_room() || self.share.account().is_full() {
                self.read_ahead(tunnel, cx)?;
                return Ok(fed);
            }
            match self.io.peek() {
                Err(error) => {
                    self.core.tell_of_refused(error, &self.io.pending);
                    tunnel.answer(&mut self.core, format!("-ERR {error}\r\n").into());
                    self.io.state = Input::Closed;
                    return Ok(Fed::Something);
                }
                Ok(Some(_)) if self.is_held_in_tunnel(tunnel, cx)? => return Ok(fed),
                Ok(Some(_)) if tunnel.is_changing_unpushed() => {
                    self.read_ahead(tunnel, cx)?;
                    return Ok(fed);
                }
                Ok(Some(len)) => {
                    let args = self.io.scanner.args(&self.io.pending);
                    let next = tunnel.decide(&mut self.core, args);
                    if let (Next::Answer(_), true, Resolved::Known(command)) =
                        (&next, self.core.shared.monitors.any(), tunnel.table.resolve(args))
                        && command.class == Class::Local
                    {
                        self.core.tell_watchers(command, args);
                    }
                    let outside = match next {
                        Next::Later => {
                            self.read_ahead(tunnel, cx)?;
                            return Ok(fed);
                        }
                        Next::Leave => Some(Fed::Leave),
                        Next::Abandon => Some(Fed::Abandon),
                        Next::Send(_) | Next::Answer(_) => None,
                    };
                    if let Some(outside) = outside {
                        self.read_ahead(tunnel, cx)?;
                        return Ok(outside);
                    }
                    let Some(request) = self.io.take_peeked(len) else { return Ok(fed) };
                    tunnel.put(&mut self.core, request, next);
                    fed = Fed::Something;
                }
                Ok(None) if self.io.eof => return Ok(Fed::Abandon),
                Ok(None) => match self.io.poll_read_more(cx) {
                    Poll::Pending => return Ok(fed),
                    Poll::Ready(Ok(0)) => self.ended(tunnel)?,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(e)) => return Err(End::Io(e)),
                },
            }
        }
    }

    /// Reads on while requests wait, so that the end of the client is noticed.
    fn read_ahead(&mut self, tunnel: &mut Tunnel, cx: &mut Context<'_>) -> Result<(), End> {
        while !self.io.eof && self.io.pending.len() < READ_AHEAD_BYTES_MAX {
            match self.io.poll_read_more(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => self.ended(tunnel)?,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(e)) => return Err(End::Io(e)),
            }
        }
        Ok(())
    }

    /// The client sends no more. One that waits in a blocking command is gone: what it waits for must not be taken for it.
    fn ended(&mut self, tunnel: &mut Tunnel) -> Result<(), End> {
        self.io.eof = true;
        if tunnel.is_blocked() || tunnel.state.monitoring {
            tunnel.connection.condemn();
            return Err(End::Closed);
        }
        Ok(())
    }

    /// What waits for the fence may tell what L1 does not know yet: it is not shown.
    fn fence_failed(&mut self, tunnel: &mut Tunnel, failure: &Failure) -> Result<(), End> {
        tunnel.covered.clear();
        tunnel.uncovered.clear();
        tunnel.owed.clear();
        tunnel.upstream = Upstream::Gone;
        tunnel.connection.condemn();
        self.io.state = Input::Closed;
        if self.core.in_reply {
            return Err(End::Closed);
        }
        self.core.out.put(format!("-{failure}\r\n").as_bytes());
        Ok(())
    }
}

/// What a server never sends is told to the operator; that connections end is nothing new.
fn tell_of_loss(core: &Core, tunnel: &Tunnel, error: &RawError) {
    let (client, upstream) = (core.client.id.0, &tunnel.scope.link.node().endpoint);
    if let RawError::Reply(_) = error {
        tracing::warn!(client, %upstream, cause = %error, "exclusive connection lost");
    } else {
        tracing::debug!(client, %upstream, cause = %error, "exclusive connection lost");
    }
}

/// What came from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fed {
    Nothing,
    Something,
    /// A request that is not for the tunnel.
    Leave,
    /// A request that ends the tunnel's state.
    Abandon,
}

// === impl Tunnel ===

impl Tunnel {
    fn new(connection: Borrowed, scope: Arc<Scope>, table: Arc<Table>, times: ReplyTimes) -> Self {
        Self {
            connection,
            scope,
            table,
            owed: VecDeque::new(),
            state: Held::default(),
            covered: VecDeque::new(),
            uncovered: VecDeque::new(),
            waiting_bytes: 0,
            fence: None,
            fence_widely: false,
            patience: Patience::new(times.exclusive_max),
            times,
            answered: 0,
            transaction: Transaction::default(),
            swap: None,
            announcement: None,
            in_reply: false,
            has_selected: false,
            upstream: Upstream::There,
            gathered: BytesMut::new(),
            turn: None,
            beginning: None,
            line: BytesMut::new(),
            lines: Translator::default(),
            watching: None,
            pushed: BytesMut::new(),
            redirect: None,
            numbered: Numbered::No,
            reconsiders: false,
        }
    }

    /// True if nothing is owed and nothing waits; there may be state.
    fn is_quiet(&self) -> bool {
        self.owed.is_empty()
            && self.covered.is_empty()
            && self.uncovered.is_empty()
            && self.fence.is_none()
            && self.connection.outgoing.is_empty()
    }

    /// True until what no push tells of has been changed, and is being announced. Nothing is sent behind it meanwhile, for its
    /// reply to be the last that waits: it is not told before, nor kept from the client by what takes longer.
    fn is_changing_unpushed(&self) -> bool {
        let waits = !(self.owed.is_empty() && self.covered.is_empty() && self.uncovered.is_empty());
        self.swap.is_some() && waits
    }

    /// True while more requests may be taken.
    fn has_room(&self) -> bool {
        self.owed.len() < OWED_MAX
            && self.connection.outgoing.len() < WAITING_BYTES_MAX
            && self.upstream == Upstream::There
    }

    /// Bytes that wait in it, on either way.
    fn waiting_bytes(&self) -> usize {
        self.waiting_bytes + self.gathered.len() + self.connection.outgoing.len()
    }

    /// The connection is given up: everything that is owed is answered with an error, behind what has come.
    fn lost(&mut self, core: &Core, cause: FailureCause, failure: impl Fn(&Owed) -> Failure) {
        self.tell_breaker();
        if self.connection.owed() > 0 && !self.owed.iter().any(|owed| owed.is_long) {
            self.scope.link.node().record_loss(cause);
        }
        self.doubt(core);
        if self.owed.iter().any(|owed| owed.changes_unpushed) {
            // Whether it is executed, and when, nobody knows.
            drop(self.swap.take());
        }
        self.connection.condemn();
        self.connection.outgoing = crate::outgoing::Outgoing::default();
        self.upstream = Upstream::Gone;
        if std::mem::take(&mut self.in_reply) {
            // What has begun cannot be ended: the client's connection is closed behind it.
            self.owed.clear();
        }
        for owed in &mut self.owed {
            let line = match &owed.what {
                What::Answer(_) => continue,
                What::Instead(line) => line.clone(),
                _ => format!("-{}\r\n", failure(owed)).into(),
            };
            owed.what = What::Answer(line);
        }
    }

    /// The server is to know the connection by its client's name, in SLOWLOG say. (Who watches would see it.)
    fn put_name(&mut self, core: &Core) {
        let name = core.client.with_names(|names| names.name.clone());
        let is_long = name.len() > ARGUMENT_BYTES_MAX;
        if name != self.connection.name() && !is_long && !core.shared.monitors.any() {
            self.connection.put_name(name);
            self.owed.push_back(Owed::unseen(What::Reply, self.times.write_max));
        }
    }

    /// What the requests that are owed a reply may have changed must not be answered stale, as if they had not. (What is soft
    /// meanwhile is not concerned: nobody has been told that they were executed.)
    fn doubt(&mut self, core: &Core) {
        if core.shared.policies.load().stale_if_error_longest().is_none() {
            return;
        }
        let reaches = self.owed.iter_mut().map(|owed| std::mem::take(&mut owed.reach));
        let (keys, scopes) = match (reaches.fold(Reach::Nothing, Reach::and), core.upstream()) {
            (Reach::Nothing, _) | (_, None) => return,
            (Reach::Keys(keys), _) if !self.has_selected => (keys, vec![self.scope.clone()]),
            (_, Some(upstream)) => (Vec::new(), upstream.scopes()),
        };
        let nobody = Arc::default();
        let words = std::iter::once(Bytes::from_static(b"DROP")).chain(keys.iter().cloned());
        let named = Bytes::copy_from_slice(OwnedArgs::new(words).args().bytes());
        for scope in scopes {
            scope.link.submit_fence(match keys.is_empty() {
                true => fence_job(&nobody, Seq(0), OpKind::DropAll(Cause::DataChanged)),
                false => drop_job(&nobody, named.clone(), Cause::DataChanged),
            });
        }
    }

    /// How long the reply at the front may take.
    fn bound(&self) -> Option<Duration> {
        self.owed.front().and_then(|owed| owed.within)
    }

    /// Tells the breaker of replies that have come. How long they took is the client's business: it has chosen what is
    /// executed, and it alone waits.
    fn tell_breaker(&mut self) {
        if self.answered > 0 {
            self.scope.link.node().record_successes(std::mem::take(&mut self.answered));
        }
    }

    /// Takes the request that opened the tunnel.
    fn take(&mut self, core: &mut Core, first: Request) {
        let next = self.decide_first(core, first.args());
        self.put(core, first, next);
    }

    /// Puts a request, or Larder's answer to it, behind what is owed.
    fn put(&mut self, core: &mut Core, request: Request, next: Next) {
        let numbered = std::mem::take(&mut self.numbered);
        let mut owed = match next {
            Next::Send(owed) => owed,
            Next::Answer(answer) => return self.answer(core, answer.into()),
            Next::Leave | Next::Abandon | Next::Later => return,
        };
        owed.muted = core.session.take_muted();
        owed.is_long = request.args().bytes().len() > ARGUMENT_BYTES_MAX;
        owed.within = bound_of(&self.table, request.args(), &owed.what, &self.times);
        match &mut owed.what {
            What::Queued => self.queue(&request, numbered),
            What::Tracking(change) => change.redirect = numbered.into_redirect(),
            What::Exec(transaction) => {
                *transaction = std::mem::take(&mut self.transaction);
                owed.reach = std::mem::take(&mut transaction.reach);
                if let (Some(what), None) = (transaction.swaps, &self.swap) {
                    self.swap = Swap::begin(core, what);
                }
            }
            What::Reply | What::Blocking => owed.reach = Reach::of(&self.table, request.args()),
            _ => {}
        }
        // What is refused here never gets there.
        if !matches!(owed.what, What::Instead(_)) {
            self.note_state(core, request.args());
        }
        owed.changes_unpushed = self.swap.is_some();
        let asks_replicas = ["wait", "waitaof"].iter().any(|name| self.is_call_of(name, request.args()));
        let request = match &owed.what {
            What::Reply | What::Queued if self.is_call_of("client|unblock", request.args()) => {
                unblock_request(core, request.args())
            }
            What::Queued if self.is_call_of("client|kill", request.args()) => kill_request(request.args()),
            What::Queued if self.is_call_of("client|pause", request.args()) => pause_request(request.args()),
            _ => request.bytes,
        };
        let is_first = self.owed.is_empty();
        if asks_replicas && !self.state.in_multi {
            // WAIT counts replicas that have what was written before the connection's last command: with one more, it counts
            // what came by the link, too.
            self.connection.put_request(b"*1\r\n$5\r\nHELLO\r\n");
            self.owed.push_back(Owed::unseen(What::Reply, self.times.write_max));
        }
        match owed.what {
            // Not a command of any server: it marks the transaction as failed.
            What::Instead(_) => self.connection.put_request(b"*1\r\n$15\r\nlarder.refused.\r\n"),
            _ => self.connection.put_request_shared(request),
        }
        if let What::Blocking = owed.what {
            core.client.blocked.store(true, Ordering::Relaxed);
        }
        self.owed.push_back(owed);
        if is_first {
            self.be_patient();
        }
    }

    fn answer(&mut self, core: &mut Core, answer: Bytes) {
        let muted = core.session.take_muted();
        if self.owed.is_empty() && self.covered.is_empty() && self.uncovered.is_empty() {
            if !muted {
                core.out.put(&answer);
            }
            return;
        }
        self.owed.push_back(Owed { muted, ..Owed::new(What::Answer(answer), false) });
    }

    /// Writes what waits and takes what has come.
    fn exchange(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Result<bool, RawError> {
        let mut moved = self.put_answers(core);
        if self.upstream == Upstream::Gone {
            return Ok(moved);
        }
        // That it cannot be written any more the reading side tells, behind what the upstream had said before.
        let _: Poll<Result<(), RawError>> = self.connection.poll_flush(cx);
        // A client that watches is closed when it does not read: the server is not to gather its lines.
        let most = if self.watching.is_some() {
            core.shared.config.limits.subscriber_output_bytes_max
        } else {
            WAITING_BYTES_MAX
        };
        while self.waiting_bytes + core.out.len() < most {
            match self.connection.poll_piece(cx) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(piece) => self.came(core, piece?),
            }
            if self.upstream == Upstream::Gone {
                return Ok(true);
            }
            self.put_answers(core);
            moved = true;
        }
        // It is the client that does not read.
        self.be_patient();
        Ok(moved)
    }

    /// Larder's own answers whose turn it is.
    fn put_answers(&mut self, core: &mut Core) -> bool {
        let mut moved = false;
        while !self.in_reply && matches!(self.owed.front(), Some(Owed { what: What::Answer(_), .. })) {
            let Some(Owed { what: What::Answer(answer), muted, .. }) = self.owed.pop_front() else { break };
            if !muted {
                self.pass(core, answer, true, false);
            }
            moved = true;
        }
        moved
    }

    fn is_call_of(&self, name: &str, args: Args<'_>) -> bool {
        matches!(self.table.resolve(args), Resolved::Known(command) if command.name == name && command.accepts(args.len()))
    }

    fn is_blocked(&self) -> bool {
        matches!(self.owed.front(), Some(Owed { what: What::Blocking, .. }))
    }

    /// Nothing is left to do: the client goes back to its link.
    fn leave(&mut self, core: &mut Core) {
        core.client.in_transaction.store(false, Ordering::Relaxed);
        drop(self.swap.take());
        self.tell_breaker();
        tracing::trace!(database = self.scope.database, "tunnel closed");
    }
}

// === impl Held ===

impl Held {
    fn is_none(self) -> bool {
        !(self.watching || self.in_multi || self.tracking || self.monitoring)
    }
}

/// The first byte of a push in a protocol.
pub(super) fn push_byte(protocol: Protocol) -> u8 {
    if protocol == Protocol::Resp3 { b'>' } else { b'*' }
}
