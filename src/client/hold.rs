//! `CLIENT PAUSE` and `CLIENT UNPAUSE`, and a client's time while it is held.
//!
//! A request is looked at as the server does it: what is wrong with it (name, number of arguments, rights as far as Larder
//! knows them) is answered at once, whatever else may be executed now; the rest waits in the client's input. What only the
//! upstream can judge in a pause of writes (EXEC, scripts that declare what they do) goes there and is held there.

use super::core::Core;
use super::tunnel::Tunnel;
use super::{Connection, End, READ_AHEAD_BYTES_MAX, Request};
use crate::pause::{Beginning, Mode, Waiting};
use crate::port::Failure;
use crate::server::Shared;
use crate::upstream::link::OpKind;
use bytes::Bytes;
use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::scan::strict_i64;
use larder_protocol::table::{Class, Command, Flags, Group, Resolved};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

/// What a pause asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) mode: Mode,
    pub(super) for_ms: u64,
}

// === impl Wanted ===

impl Wanted {
    /// `None` if the upstream will not have it.
    pub(super) fn parse(args: Args<'_>) -> Option<Self> {
        let mode = match args.get(3) {
            None => Mode::All,
            Some(word) if word.eq_ignore_ascii_case(b"all") => Mode::All,
            Some(word) if word.eq_ignore_ascii_case(b"write") => Mode::Write,
            Some(_) => return None,
        };
        let for_ms = strict_i64(args.arg(2)).and_then(|ms| u64::try_from(ms).ok())?;
        Some(Self { mode, for_ms })
    }

    /// The wider and longer of both.
    pub(super) fn merged(self, other: Option<Self>) -> Self {
        let other = other.unwrap_or(self);
        Self { mode: self.mode.max(other.mode), for_ms: self.for_ms.max(other.for_ms) }
    }
}

/// The request's words as the upstream is to hear them: there, writes alone are paused.
fn pause_words(args: Args<'_>) -> [Vec<u8>; 4] {
    let mode = match args.get(3) {
        Some(word) if !word.eq_ignore_ascii_case(b"all") => word,
        _ => b"WRITE",
    };
    [args.arg(0), args.arg(1), args.arg(2), mode].map(<[u8]>::to_vec)
}

/// As [`pause_words`], as a request.
pub(super) fn pause_request(args: Args<'_>) -> Bytes {
    Bytes::copy_from_slice(OwnedArgs::new(pause_words(args)).args().bytes())
}

fn is_mode(word: Option<&[u8]>) -> bool {
    word.is_none_or(|word| word.eq_ignore_ascii_case(b"all") || word.eq_ignore_ascii_case(b"write"))
}

// === impl Shared ===

impl Shared {
    /// The pause is in force from now on; sees to it that it ends.
    pub(super) fn confirm_pause(self: &Arc<Self>, beginning: Beginning, for_ms: u64) {
        beginning.confirm(self.clock.now().saturating_add(Duration::from_millis(for_ms)));
        if !self.pauses.needs_keeper() {
            return;
        }
        let shared = self.clone();
        self.spawn(async move {
            while let Some(until) = shared.pauses.until() {
                let left = until.saturating_since(shared.clock.now());
                tokio::select! {
                    () = tokio::time::sleep(left) => shared.pauses.expire(shared.clock.now()),
                    () = shared.pauses.changed.notified() => {}
                }
            }
        });
    }
}

// === impl Core ===

impl Core {
    /// The least mode of a pause that holds the request; `None` if none does.
    pub(super) fn held_from(&self, command: &Command, args: Args<'_>) -> Option<Mode> {
        if !command.accepts(args.len()) || command.group == Group::Larder || command.name == "quit" {
            return None;
        }
        let may_write = match &*command.name {
            // The server holds what it replicates, or may.
            "pfcount" | "publish" | "spublish" => true,
            // A script that declares its flags is judged by the server.
            "eval" => !args.arg(1).starts_with(b"#!"),
            _ => command.flags.contains(Flags::WRITE),
        };
        Some(if may_write && command.class != Class::Transaction { Mode::Write } else { Mode::All })
    }

    /// True if a pause of this mode holds the request.
    pub(super) fn is_held(&self, mode: Mode, command: &Command, args: Args<'_>) -> bool {
        self.held_from(command, args).is_some_and(|from| from <= mode)
    }
}

// === impl Connection ===

impl Connection {
    /// Waits, if the request at the start of the input is held, until it may be looked at again; true if it did.
    pub(super) async fn wait_for_unpause(&mut self) -> Result<bool, End> {
        self.turn = None;
        let mode = self.core.shared.pauses.mode();
        if mode == Mode::Off || !matches!(self.io.peek(), Ok(Some(_))) {
            return Ok(false);
        }
        let (table, args) = (self.core.table(), self.io.scanner.args(&self.io.pending));
        let held_from = match table.resolve(args) {
            Resolved::Known(command) => self.core.held_from(command, args).filter(|from| *from <= mode),
            _ => None,
        };
        let Some(held_from) = held_from else { return Ok(false) };
        let waiting = self.core.shared.pauses.wait(held_from);
        self.core.client.blocked.store(true, Ordering::Relaxed);
        let waited = poll_fn(|cx| self.poll_held(&waiting, cx)).await;
        self.core.client.blocked.store(false, Ordering::Relaxed);
        waited?;
        self.turn = Some(waiting);
        Ok(true)
    }

    fn poll_held(&mut self, waiting: &Waiting, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let port = self.core.client.port.clone();
        while port.poll_ready(cx).is_ready() {
            if port.is_killed() {
                return Poll::Ready(Err(End::Closed));
            }
            self.core.take_deliveries();
        }
        if waiting.poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        self.read_while_held(cx)?;
        self.flush(cx).map_err(End::Io)?;
        if self.core.shared.is_draining() || self.has_too_much_output(cx) {
            return Poll::Ready(Err(End::Closed));
        }
        Poll::Pending
    }

    /// Reads on, so that the end of the client is noticed: what it has asked for is then not done.
    fn read_while_held(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        while self.io.pending.len() < READ_AHEAD_BYTES_MAX {
            match self.io.poll_read_more(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(End::Closed),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(End::Io(error)),
            }
        }
        Ok(())
    }

    /// In a tunnel: true if the request at the start of the input has to wait in Larder. A pause of writes is the
    /// upstream's business there.
    pub(super) fn is_held_in_tunnel(&mut self, tunnel: &mut Tunnel, cx: &mut Context<'_>) -> Result<bool, End> {
        if tunnel.beginning.is_some() || self.core.shared.pauses.mode() != Mode::All {
            if tunnel.turn.take().is_some() {
                self.core.client.blocked.store(false, Ordering::Relaxed);
            }
            return Ok(false);
        }
        let table = self.core.table();
        let args = self.io.scanner.args(&self.io.pending);
        let is_held =
            matches!(table.resolve(args), Resolved::Known(command) if self.core.is_held(Mode::All, command, args));
        if !is_held {
            return Ok(false);
        }
        let turn = tunnel.turn.get_or_insert_with(|| self.core.shared.pauses.wait(Mode::All));
        if turn.poll(cx).is_ready() {
            tunnel.turn = None;
            return Ok(false);
        }
        self.core.client.blocked.store(true, Ordering::Relaxed);
        self.read_while_held(cx)?;
        Ok(true)
    }

    /// `CLIENT PAUSE`.
    pub(super) async fn pause(&mut self, request: Request) -> Result<(), End> {
        let wanted = Wanted::parse(request.args());
        if self.core.scope().is_none() {
            let answer = match wanted {
                Some(wanted) => {
                    self.core.shared.confirm_pause(self.core.shared.pauses.begin(wanted.mode), wanted.for_ms);
                    &b"+OK\r\n"[..]
                }
                None if !is_mode(request.args().get(3)) => b"-ERR CLIENT PAUSE mode must be WRITE or ALL\r\n",
                None if request.args().arg(2).starts_with(b"-") => b"-ERR timeout is negative\r\n",
                None => b"-ERR timeout is not an integer or out of range\r\n",
            };
            self.core.answer(answer);
            return Ok(());
        }
        let beginning = match wanted {
            Some(wanted) => Some(self.begin_pause(wanted.mode).await),
            // The upstream words the error.
            None => None,
        };
        let words = match wanted {
            Some(_) => pause_words(request.args()).to_vec(),
            None => request.args().iter().map(<[u8]>::to_vec).collect(),
        };
        match self.ask(words).await {
            Ok(reply) => {
                if let (Some(beginning), Some(wanted), b"+OK\r\n") = (beginning, wanted, &reply[..]) {
                    self.core.shared.confirm_pause(beginning, wanted.for_ms);
                }
                self.core.answer(&reply);
            }
            Err(failure) => self.answer_failure(&failure),
        }
        Ok(())
    }

    /// Holds clients, and returns when no write is under way on any link: none may stand there when the upstream pauses.
    pub(super) async fn begin_pause(&mut self, mode: Mode) -> Beginning {
        let shared = self.core.shared.clone();
        let beginning = shared.pauses.begin(mode);
        shared.let_all_workers_see().await;
        for scope in self.core.upstream().map(|upstream| upstream.scopes()).unwrap_or_default() {
            let seq = self.core.start_fence(std::slice::from_ref(&scope), OpKind::Fence);
            // A link that fails has nothing under way any more.
            let _: Result<(), Failure> = self.fenced(seq).await;
        }
        beginning
    }

    /// `CLIENT UNPAUSE`.
    pub(super) async fn unpause(&mut self) {
        if self.core.scope().is_none() {
            self.core.shared.pauses.end();
            self.core.answer(b"+OK\r\n");
            return;
        }
        match self.ask([b"CLIENT".to_vec(), b"UNPAUSE".to_vec()]).await {
            Ok(reply) => {
                if &reply[..] == b"+OK\r\n" {
                    self.core.shared.pauses.end();
                }
                self.core.answer(&reply);
            }
            Err(failure) => self.answer_failure(&failure),
        }
    }
}
