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
mod swap;
mod track;

use self::decide::{Next, purpose_of};
use self::swap::Swap;
use super::cache::is_cache;
use super::core::Core;
use super::tracking::{Change, Numbered, Redirect};
use super::{Connection, End, Input, Request};
use crate::clients::ClientId;
use crate::port::{Failure, Seq};
use crate::upstream::link::OpKind;
use crate::upstream::pool::{Borrowed, Use};
use crate::upstream::raw::{Piece, RawError};
use crate::upstream::scope::Scope;
use bytes::{Bytes, BytesMut};
use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::scan::strict_i64;
use larder_protocol::shape::Protocol;
use larder_protocol::table::{Class, Resolved, Table};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// While so many bytes wait to be released, nothing is read from the upstream.
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// Commands about the client itself in one transaction; it fails with more.
const OWN_IN_TRANSACTION_MAX: usize = 64;
/// While requests wait, so much more is read from the client.
const READ_AHEAD_BYTES_MAX: usize = 64 * 1024;
/// Requests that may be owed a reply at a time.
const OWED_MAX: usize = 1024;

/// A client's time on a connection of its own.
struct Tunnel {
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
    patience: Pin<Box<Sleep>>,
    reply_max: Duration,
    /// What is queued so far.
    transaction: Transaction,
    /// SWAPDB was sent: all partitions are suspended until it is over.
    swap: Option<Swap>,
    /// True while the reply at hand has begun.
    in_reply: bool,
    /// True if the connection has left the database of the client's scope.
    has_selected: bool,
    upstream: Upstream,
    /// The reply at hand, while it is gathered for what is Larder's own to be put in.
    gathered: BytesMut,
    /// A push that has begun.
    pushed: BytesMut,
    /// Whom the client, which tracks, redirects to.
    redirect: Option<Redirect>,
    /// About the request that is put next.
    numbered: Numbered,
    /// The state has changed after the next request was looked at.
    reconsiders: bool,
}

/// What a transaction holds that Larder must know of when it is executed.
#[derive(Default)]
struct Transaction {
    /// Commands queued.
    queued: usize,
    /// Those that Larder answers.
    own: Vec<Own>,
    /// The database that the last SELECT names.
    selects: Option<u32>,
    /// True if databases are swapped, or rights changed.
    swaps: bool,
    /// Users that are removed.
    removes: Vec<Vec<u8>>,
}

/// A command in a transaction that is about Larder's client and not about the upstream's connection.
struct Own {
    /// Its place in the transaction. (If another is not queued after all, there is no reply to put it into.)
    at: usize,
    request: Request,
    /// What it changes, if it is CLIENT TRACKING.
    tracking: Option<Change>,
}

/// A piece that waits for a fence.
struct Waiting {
    bytes: Bytes,
    /// True if a reply ends with it.
    ends: bool,
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

/// A reply that is owed to the client.
struct Owed {
    what: What,
    muted: bool,
    /// True if the request may have changed keys.
    writes: bool,
}

enum What {
    /// Whatever the upstream says.
    Reply,
    /// As `Reply`; nothing that L1 could contradict.
    Acknowledgement,
    /// As `Reply`, and it may take as long as it takes.
    Blocking,
    /// The reply to SELECT on a connection that keeps state.
    Select(Option<u32>),
    /// The reply to a command that is being queued.
    Queued,
    /// The reply to EXEC.
    Exec(Transaction),
    /// The reply to MULTI: an error means that there is no transaction.
    Multi,
    /// The reply to ACL DELUSER of these.
    Removal(Vec<Vec<u8>>),
    /// The reply to CLIENT TRACKING.
    Tracking(Change),
    /// The reply to CLIENT TRACKINGINFO or GETREDIR.
    Redirection,
    /// The upstream's reply is dropped for this one.
    Instead(Bytes),
    /// Nothing comes from the upstream: Larder's own answer, in its place.
    Answer(Bytes),
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
        let table = self.core.table();
        let purpose = purpose_of(&table, first.args());
        self.core.counters.exclusive.add(1);
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
        let mut tunnel = Tunnel::new(borrowed, scope, table, self.core.shared.config.link.reply_ms_max);
        let Some(first) = self.number_first(&mut tunnel, first).await else { return Ok(()) };
        self.core.client.upstream_id.store(upstream_id, Ordering::Release);
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
        self.core.client.upstream_id.store(0, Ordering::Release);
        self.core.client.blocked.store(false, Ordering::Relaxed);
        self.core.client.in_transaction.store(false, Ordering::Relaxed);
        self.core.client.tracking.end();
        if let Some(seq) = tunnel.fence {
            self.core.fences.remove(&seq);
        }
        if ended.is_err() && !tunnel.state.is_none() {
            tunnel.connection.condemn();
        }
        ended
    }

    /// Handles a request that has nothing to do with the connection, while that keeps its state.
    async fn step_out(&mut self, tunnel: &mut Tunnel) -> Result<(), End> {
        let Ok(Some(request)) = self.io.next_request() else { return Ok(()) };
        if is_cache(&tunnel.table, request.args()) {
            return self.cache(&request).await;
        }
        let table = tunnel.table.clone();
        let Resolved::Known(command) = table.resolve(request.args()) else { return Ok(()) };
        match &*command.name {
            name if command.class == Class::PubSub => self.subscribe(name, request.args()).await,
            "info" => self.info(request.args()).await,
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
        loop {
            let mut moved = false;
            if self.core.client.port.poll_ready(cx).is_ready() {
                if self.core.client.port.is_killed() {
                    return Poll::Ready(Err(End::Closed));
                }
                self.core.take_deliveries();
                moved = true;
            }
            let mut fed = self.feed(tunnel, cx)?;
            moved |= fed == Fed::Something;
            match tunnel.exchange(&mut self.core, cx) {
                Ok(exchanged) => moved |= exchanged,
                Err(error) => {
                    tracing::debug!(client = self.core.client.id.0, cause = %error, "exclusive connection lost");
                    tunnel.lost(|owed| if owed.writes { Failure::WriteLost } else { Failure::ReadLost });
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
            if self.has_too_much_output() {
                return Poll::Ready(Err(End::Closed));
            }
            if std::mem::take(&mut tunnel.reconsiders) && fed == Fed::Leave {
                fed = Fed::Nothing;
                moved = true;
            }
            if let Some(pause) = self.pause_of(tunnel, fed)? {
                return Poll::Ready(Ok(pause));
            }
            if tunnel.is_out_of_patience(cx) {
                let ms = tunnel.reply_max.as_millis() as u64;
                tunnel.lost(|owed| if owed.writes { Failure::WriteTimeout(ms) } else { Failure::ReadTimeout(ms) });
                moved = true;
            }
            if !moved {
                return Poll::Pending;
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
            if !tunnel.has_room() {
                self.read_ahead(tunnel, cx)?;
                return Ok(fed);
            }
            match self.io.peek() {
                Err(error) => {
                    tunnel.answer(&mut self.core, format!("-ERR {error}\r\n").into());
                    self.io.state = Input::Closed;
                    return Ok(Fed::Something);
                }
                Ok(Some(len)) => {
                    let next = tunnel.decide(&mut self.core, self.io.scanner.args(&self.io.pending));
                    let outside = match next {
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
    fn new(connection: Borrowed, scope: Arc<Scope>, table: Arc<Table>, reply_max: Duration) -> Self {
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
            patience: Box::pin(sleep(reply_max)),
            reply_max,
            transaction: Transaction::default(),
            swap: None,
            in_reply: false,
            has_selected: false,
            upstream: Upstream::There,
            gathered: BytesMut::new(),
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

    /// True while more requests may be taken.
    fn has_room(&self) -> bool {
        self.owed.len() < OWED_MAX
            && self.connection.outgoing.len() < WAITING_BYTES_MAX
            && self.upstream == Upstream::There
    }

    /// The connection is given up: everything that is owed is answered with an error, behind what has come.
    fn lost(&mut self, failure: impl Fn(&Owed) -> Failure) {
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

    /// Takes the request that opened the tunnel.
    fn take(&mut self, core: &mut Core, first: Request) {
        let next = match self.decide(core, first.args()) {
            // It was found to need a connection of its own: whatever it is, it is sent.
            Next::Leave | Next::Abandon => Next::Send(Owed { what: What::Reply, muted: false, writes: true }),
            next => next,
        };
        self.put(core, first, next);
    }

    /// Puts a request, or Larder's answer to it, behind what is owed.
    fn put(&mut self, core: &mut Core, request: Request, next: Next) {
        let numbered = std::mem::take(&mut self.numbered);
        let mut owed = match next {
            Next::Send(owed) => owed,
            Next::Answer(answer) => return self.answer(core, answer.into()),
            Next::Leave | Next::Abandon => return,
        };
        owed.muted = core.session.take_muted();
        match &mut owed.what {
            What::Queued => self.queue(&request, numbered),
            What::Tracking(change) => change.redirect = numbered.into_redirect(),
            What::Exec(transaction) => {
                *transaction = std::mem::take(&mut self.transaction);
                if transaction.swaps && self.swap.is_none() {
                    self.swap = Swap::begin(core);
                }
            }
            _ => {}
        }
        // What is refused here never gets there.
        if !matches!(owed.what, What::Instead(_)) {
            self.note_state(core, request.args());
        }
        let request = match &owed.what {
            What::Reply if self.is_unblock(request.args()) => unblock_request(core, request.args()),
            _ => request.bytes,
        };
        if self.owed.is_empty() {
            self.patience.as_mut().reset(tokio::time::Instant::now() + self.reply_max);
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
    }

    fn answer(&mut self, core: &mut Core, answer: Bytes) {
        let muted = core.session.take_muted();
        if self.owed.is_empty() && self.covered.is_empty() && self.uncovered.is_empty() {
            if !muted {
                core.out.put(&answer);
            }
            return;
        }
        self.owed.push_back(Owed { what: What::Answer(answer), muted, writes: false });
    }

    /// Writes what waits and takes what has come.
    fn exchange(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Result<bool, RawError> {
        let mut moved = self.put_answers(core);
        if self.upstream == Upstream::Gone {
            return Ok(moved);
        }
        if let Poll::Ready(flushed) = self.connection.poll_flush(cx) {
            flushed?;
        }
        while self.waiting_bytes + core.out.len() < WAITING_BYTES_MAX {
            match self.connection.poll_piece(cx) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(piece) => self.came(core, piece?),
            }
            self.put_answers(core);
            moved = true;
        }
        // It is the client that does not read.
        self.be_patient();
        Ok(moved)
    }

    fn be_patient(&mut self) {
        self.patience.as_mut().reset(tokio::time::Instant::now() + self.reply_max);
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

    /// A piece of a reply, or of a push, has come.
    fn came(&mut self, core: &mut Core, piece: Piece) {
        self.be_patient();
        if piece.kind == b'>' {
            if let Some(push) = self.whole_push(core, piece) {
                // It tells of keys in any database.
                self.fence_widely = true;
                self.pass(core, push, true, true);
            }
            return;
        }
        if self.state.monitoring && self.owed.is_empty() {
            return self.pass(core, piece.bytes, piece.ends, true);
        }
        let Some(owed) = self.owed.front_mut() else { return self.connection.condemn() };
        let first = !self.in_reply;
        self.in_reply = !piece.ends;
        let (writes, muted) = (owed.writes, owed.muted);
        let fenced = match &owed.what {
            What::Acknowledgement | What::Multi | What::Queued | What::Select(_) | What::Tracking(_) => {
                piece.kind != b'+'
            }
            _ => true,
        };
        if let (What::Select(database), b'+') = (&owed.what, piece.kind) {
            core.selected_in_transaction = *database;
            self.has_selected = true;
        }
        if let (What::Multi | What::Acknowledgement | What::Exec(_), b'-', true) = (&owed.what, piece.kind, first) {
            // What state is left only the upstream knows: the connection is not given to others.
            self.connection.condemn();
            if matches!(owed.what, What::Multi) && !piece.bytes.starts_with(b"-ERR MULTI calls") {
                self.state.in_multi = false;
            }
        }
        let gathers = match &owed.what {
            What::Exec(transaction) => !transaction.own.is_empty(),
            What::Redirection => true,
            _ => false,
        };
        let mut removed = match &mut owed.what {
            What::Removal(users) if piece.kind == b':' && piece.ends => std::mem::take(users),
            _ => Vec::new(),
        };
        let change = match &mut owed.what {
            What::Tracking(change) if piece.kind == b'+' && piece.ends => Some(std::mem::take(change)),
            _ => None,
        };
        let transaction = match &mut owed.what {
            What::Exec(transaction) if piece.ends => std::mem::take(transaction),
            _ => Transaction::default(),
        };
        let executed = piece.kind == b'*' && !(first && piece.bytes.starts_with(b"*-1"));
        if let (true, Some(database)) = (executed, transaction.selects) {
            core.selected_in_transaction = Some(database);
        }
        if executed {
            removed.extend_from_slice(&transaction.removes);
        }
        let instead = if let What::Instead(line) = &owed.what { Some(line.clone()) } else { None };
        // What is read in another database belongs to other scopes than the client's own.
        if first && fenced && (writes || self.has_selected) {
            self.fence_widely = true;
        }
        if piece.ends {
            self.owed.pop_front();
            core.client.blocked.store(self.is_blocked(), Ordering::Relaxed);
        }
        if let Some(change) = change {
            self.track(core, change);
        }
        if !removed.is_empty() {
            core.end_users(&removed);
        }
        if gathers {
            return self.gather(core, transaction.own, piece, muted);
        }
        match instead {
            Some(line) if piece.ends && !muted => self.pass(core, line, true, false),
            None if !muted => self.pass(core, piece.bytes, piece.ends, fenced && first),
            // Nobody is told, but what was changed must be known in time all the same.
            _ if fenced && first && writes => self.pass(core, Bytes::new(), true, true),
            _ => {}
        }
    }

    /// Gathers the reply to EXEC, or one about redirection, and puts Larder's own answers and numbers into it.
    fn gather(&mut self, core: &mut Core, own: Vec<Own>, piece: Piece, muted: bool) {
        self.gathered.extend_from_slice(&piece.bytes);
        if !piece.ends {
            return;
        }
        let reply = self.gathered.split().freeze();
        let mut cursor = Cursor::new(&reply);
        let patched = match cursor.next() {
            _ if own.is_empty() => self.redirect.as_ref().map_or(reply.clone(), |r| r.with_own_number(&reply).into()),
            Some(Item::Aggregate(b'*', count)) => {
                let mut out = format!("*{count}\r\n").into_bytes();
                let mut own = own.into_iter().peekable();
                for at in 0..count as usize {
                    let theirs = cursor.next_frame().unwrap_or_default();
                    let ours = own.next_if(|own| own.at == at).and_then(|own| self.own_answer(core, own, theirs));
                    out.extend_from_slice(ours.as_deref().unwrap_or(theirs));
                }
                out.into()
            }
            _ => reply,
        };
        self.pass(core, if muted { Bytes::new() } else { patched }, true, true);
    }

    fn is_unblock(&self, args: Args<'_>) -> bool {
        matches!(self.table.resolve(args), Resolved::Known(command) if &*command.name == "client|unblock")
    }

    fn is_blocked(&self) -> bool {
        matches!(self.owed.front(), Some(Owed { what: What::Blocking, .. }))
    }

    /// Passes a piece to the client, or lets it wait for a fence. `ends` tells whether a reply ends with it.
    fn pass(&mut self, core: &mut Core, bytes: Bytes, ends: bool, fenced: bool) {
        let piece = Waiting { bytes, ends };
        if !fenced && self.covered.is_empty() && self.uncovered.is_empty() {
            return piece.put(core);
        }
        self.waiting_bytes += piece.bytes.len();
        self.uncovered.push_back(piece);
    }

    /// Releases what has been fenced; starts the next fence.
    fn release(&mut self, core: &mut Core) -> Result<bool, Failure> {
        let mut moved = false;
        if let Some(seq) = self.fence {
            match core.fence_state(seq) {
                None => return Ok(false),
                Some(fenced) => {
                    self.fence = None;
                    fenced.map_err(|()| Failure::WriteTimeout(self.reply_max.as_millis() as u64))?;
                    for piece in self.covered.drain(..) {
                        self.waiting_bytes -= piece.bytes.len();
                        piece.put(core);
                    }
                    moved = true;
                }
            }
        }
        if self.uncovered.is_empty() {
            return Ok(moved);
        }
        std::mem::swap(&mut self.covered, &mut self.uncovered);
        let swap_over = self.owed.is_empty() && !self.state.in_multi;
        let seq = match self.swap.take_if(|_| swap_over) {
            Some(swap) => core.start_fence(&swap.finish(), OpKind::FenceAndResume),
            None => {
                let scopes = core.links_to_fence(std::mem::take(&mut self.fence_widely));
                core.start_fence(&scopes, OpKind::Fence)
            }
        };
        self.fence = Some(seq);
        Ok(true)
    }

    fn is_out_of_patience(&mut self, cx: &mut Context<'_>) -> bool {
        let endless = self.owed.is_empty() || self.is_blocked() || self.upstream == Upstream::Gone;
        !endless && self.patience.as_mut().poll(cx).is_ready()
    }

    /// Nothing is left to do: the client goes back to its link.
    fn leave(&mut self, core: &mut Core) {
        core.client.in_transaction.store(false, Ordering::Relaxed);
        drop(self.swap.take());
        tracing::trace!(database = self.scope.database, "tunnel closed");
    }
}

// === impl Waiting ===

impl Waiting {
    fn put(self, core: &mut Core) {
        core.out.put_shared(self.bytes);
        if self.ends {
            core.put_messages();
        } else {
            core.in_reply = true;
        }
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

/// CLIENT UNBLOCK with the number that the upstream knows the client's connection by.
fn unblock_request(core: &Core, args: Args<'_>) -> Bytes {
    let id = strict_i64(args.arg(2)).and_then(|id| u64::try_from(id).ok());
    let Some(id) = id else { return Bytes::copy_from_slice(args.bytes()) };
    let target = core.shared.clients.find(ClientId(id)).filter(|client| client.blocked.load(Ordering::Relaxed));
    // 0 is nobody: the upstream answers that nobody was unblocked.
    let upstream_id = target.map_or(0, |client| client.upstream_id.load(Ordering::Acquire)).to_string();
    let word = |(i, word): (usize, &[u8])| if i == 2 { upstream_id.clone().into_bytes() } else { word.to_vec() };
    let words: Vec<Vec<u8>> = args.iter().enumerate().map(word).collect();
    Bytes::copy_from_slice(OwnedArgs::new(words).args().bytes())
}
