//! What becomes of a request while a tunnel is open: sent, answered by Larder, or a reason to leave; and what it does to the
//! state on the connection.
//!
//! Only looks at the request, the table and the state; nothing here is sent.

use super::owed::{Owed, Reach, What};
use super::swap::{Swap, Unpushed};
use super::{OWN_IN_TRANSACTION_MAX, Own, Transaction, Tunnel};
use crate::client::core::Core;
use crate::client::hold::Wanted;
use crate::client::tracking::{Change, Numbered, redirect_of};
use crate::client::{Request, retold};
use crate::clients::ClientId;
use crate::upstream::pool::Use;
use bytes::Bytes;
use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::scan::strict_i64;
use larder_protocol::table::{Class, Command, Flags, Group, Resolved, Table};
use std::sync::atomic::Ordering;

/// What to do with the next request.
pub(super) enum Next {
    /// Send it.
    Send(Owed),
    /// Larder's own answer.
    Answer(Vec<u8>),
    /// Not before what is owed has come.
    Later,
    /// It is not for this connection: leave the tunnel, or step out of it, when nothing is owed.
    Leave,
    /// It ends all state on this connection: give that up and leave.
    Abandon,
}

// === impl Tunnel (decisions) ===

impl Tunnel {
    /// What is to be done with a request while the tunnel is open.
    pub(super) fn decide(&mut self, core: &mut Core, args: Args<'_>) -> Next {
        let table = self.table.clone();
        let command = match table.resolve(args) {
            Resolved::Known(command) => command,
            Resolved::UnknownSubcommand(command) if command.group == Group::Larder => command,
            _ => return Next::Send(Owed::new(What::Reply, true)),
        };
        if let Some(line) = core.refusal(command) {
            // In a transaction the upstream must hear of it, so that EXEC is refused.
            return if self.state.in_multi {
                Next::Send(Owed::new(What::Instead(line.into()), false))
            } else {
                Next::Answer(line.into_bytes())
            };
        }
        let writes = may_write(command);
        let owed = |what| Next::Send(Owed::new(what, writes));
        match command.class {
            // The upstream words the error.
            _ if command.is_foreign() => owed(What::Reply),
            Class::Transaction if !command.accepts(args.len()) => owed(What::Reply),
            Class::Transaction => self.decide_transaction(command),
            Class::Local if ends_state(command, args) && !self.state.is_none() => Next::Abandon,
            Class::Local if command.group == Group::Larder && self.state.in_multi => {
                owed(What::Instead(Bytes::from_static(b"-ERR Command not allowed inside a transaction\r\n")))
            }
            Class::Local if command.group == Group::Larder => Next::Leave,
            Class::Local if self.awaits_number(command, args) => Next::Leave,
            // The server queues it, and then sends a reply to EXEC that is short of it.
            Class::Local if self.state.in_multi && &*command.name == "client|reply" => owed(What::Instead(
                Bytes::from_static(b"-ERR larder: CLIENT REPLY is not possible within a transaction\r\n"),
            )),
            Class::Local if self.state.in_multi && self.transaction.own.len() >= OWN_IN_TRANSACTION_MAX => {
                owed(What::Instead(Bytes::from_static(
                    b"-ERR larder: too many commands about the client itself in one transaction\r\n",
                )))
            }
            _ if self.state.in_multi => owed(What::Queued),
            // The server does not answer it.
            Class::Monitor if self.state.monitoring => Next::Answer(Vec::new()),
            Class::Monitor if command.accepts(args.len()) => owed(What::Monitor),
            Class::Monitor => owed(What::Reply),
            Class::Blocking if command.blocks(args) => owed(What::Blocking),
            // What nobody here hears of needs no correction.
            Class::Plain if retold::is_publish(&command.name) && core.receivers(args).is_none() => owed(What::Reply),
            Class::Exclusive | Class::Plain if retold::concerns(&command.name) && !self.state.monitoring => Next::Leave,
            Class::Exclusive if &*command.name == "acl|deluser" => owed(What::Removal(users_of(args))),
            Class::Exclusive | Class::Blocking => owed(What::Reply),
            Class::Local => self.decide_local(core, command, args),
            Class::Refused if !command.accepts(args.len()) => owed(What::Reply),
            Class::PubSub if !command.accepts(args.len()) => owed(What::Reply),
            Class::PubSub | Class::Refused => Next::Leave,
            _ if self.state.is_none() && !self.owed.is_empty() => Next::Leave,
            _ => owed(What::Reply),
        }
    }

    fn decide_transaction(&self, command: &Command) -> Next {
        let (what, writes) = match &*command.name {
            "multi" => (What::Multi, false),
            "exec" if self.state.in_multi && self.pause_to_begin().is_some() => return Next::Leave,
            "exec" => (What::Exec(Transaction::default()), true),
            // The only one of them that is queued within a transaction.
            "unwatch" if self.state.in_multi => (What::Queued, false),
            _ => (What::Acknowledgement, false),
        };
        Next::Send(Owed::new(what, writes))
    }

    fn decide_local(&self, core: &mut Core, command: &Command, args: Args<'_>) -> Next {
        match &*command.name {
            _ if !command.accepts(args.len()) => Next::Send(Owed::new(What::Reply, false)),
            "client|tracking" => Next::Send(Owed::new(What::Tracking(Change::of(args)), false)),
            "client|caching" if self.state.tracking => Next::Send(Owed::new(What::Reply, false)),
            "client|unblock" => Next::Send(Owed::new(What::Reply, false)),
            "client|pause" | "client|unpause" => Next::Leave,
            "client|trackinginfo" | "client|getredir" if self.state.tracking || !self.owed.is_empty() => {
                Next::Send(Owed::new(What::Redirection, false))
            }
            "select" if !self.state.is_none() => Next::Send(Owed::new(What::Select(database_of(args)), false)),
            "client|reply" if !self.state.is_none() => Next::Answer(core.reply_mode(args)),
            "hello" | "auth" | "select" | "reset" | "quit" | "client|reply" => Next::Leave,
            _ if self.state.is_none() && self.owed.is_empty() => Next::Leave,
            // What is about the client in a transaction is done when that has been executed.
            _ if self.owed.iter().any(Owed::is_about_client) => Next::Later,
            "client|kill" | "client|list" if core.asks_upstream(&command.name, args) => Next::Leave,
            _ => match core.local_answer(command, args) {
                Some(answer) => Next::Answer(answer),
                // Only the upstream can word what is wrong with it.
                None => Next::Send(Owed::new(What::Reply, false)),
            },
        }
    }

    /// True if the request names a client whose number upstream is still to be found out.
    fn awaits_number(&self, command: &Command, args: Args<'_>) -> bool {
        let is_numbered = matches!(self.numbered, Numbered::Yes(_));
        &*command.name == "client|tracking" && !is_numbered && redirect_of(args).is_some()
    }

    /// As [`Tunnel::decide`], for the request that has opened the tunnel: it was found to need a connection of its own, and is
    /// sent, whatever it is.
    pub(super) fn decide_first(&mut self, core: &mut Core, args: Args<'_>) -> Next {
        match self.decide(core, args) {
            Next::Leave | Next::Abandon | Next::Later => {
                let writes = !matches!(self.table.resolve(args), Resolved::Known(command) if !may_write(command));
                Next::Send(Owed::new(What::Reply, writes))
            }
            next => next,
        }
    }

    /// Notes a command that is being queued.
    pub(super) fn queue(&mut self, request: &Request, numbered: Numbered) {
        let at = self.transaction.queued;
        self.transaction.queued += 1;
        let so_far = std::mem::take(&mut self.transaction.reach);
        self.transaction.reach = so_far.and(Reach::of(&self.table, request.args()));
        let Resolved::Known(command) = self.table.resolve(request.args()) else { return };
        self.transaction.swaps = self.transaction.swaps.max(changes_without_push(&command.name));
        match &*command.name {
            "client|pause" if command.accepts(request.args().len()) => {
                let transaction = &mut self.transaction;
                transaction.pause =
                    Wanted::parse(request.args()).map(|w| w.merged(transaction.pause)).or(transaction.pause);
            }
            "client|unpause" if command.accepts(request.args().len()) => {
                (self.transaction.pause, self.transaction.unpauses) = (None, true);
            }
            _ => {}
        }
        if &*command.name == "acl|deluser" {
            self.transaction.removes.extend(users_of(request.args()));
        }
        let is_retold = retold::concerns(&command.name) && self.transaction.own.len() < OWN_IN_TRANSACTION_MAX;
        if command.class == Class::Local || is_retold {
            let request = Request { bytes: request.bytes.clone(), ranges: request.ranges.clone() };
            let is_tracking = &*command.name == "client|tracking";
            let tracking =
                is_tracking.then(|| Change { redirect: numbered.into_redirect(), ..Change::of(request.args()) });
            self.transaction.own.push(Own { at, request, tracking });
        }
    }

    /// What the request does to the state on the connection.
    pub(super) fn note_state(&mut self, core: &Core, args: Args<'_>) {
        let table = self.table.clone();
        let Resolved::Known(command) = table.resolve(args) else { return };
        if !command.accepts(args.len()) {
            return;
        }
        let state = &mut self.state;
        match &*command.name {
            "multi" => state.in_multi = true,
            "exec" | "discard" if state.in_multi => {
                self.transaction = Transaction::default();
                state.in_multi = false;
                state.watching = false;
            }
            // State that a connection cannot be given back with.
            _ if state.in_multi && matches!(command.class, Class::Local | Class::PubSub) => self.connection.condemn(),
            _ if state.in_multi => {}
            "watch" => state.watching = true,
            "unwatch" => state.watching = false,
            "monitor" => state.monitoring = true,
            "client|tracking" | "select" | "script|debug" | "readonly" | "readwrite" | "asking" => {
                self.connection.condemn()
            }
            name if self.swap.is_none() => {
                self.swap = changes_without_push(name).and_then(|what| Swap::begin(core, what));
            }
            _ => {}
        }
        core.client.in_transaction.store(self.state.in_multi, Ordering::Relaxed);
    }
}

/// True if a command may change keys.
fn may_write(command: &Command) -> bool {
    !command.flags.contains(Flags::READONLY) || command.class == Class::Exclusive
}

/// Whole databases, or what users may see, change with these, and no push tells.
pub(super) fn changes_without_push(name: &str) -> Option<Unpushed> {
    match name {
        "swapdb" => Some(Unpushed::Databases),
        "acl|setuser" | "acl|deluser" | "acl|load" => Some(Unpushed::Rights),
        _ => None,
    }
}

/// The users that ACL DELUSER names.
fn users_of(args: Args<'_>) -> Vec<Vec<u8>> {
    args.iter().skip(2).map(<[u8]>::to_vec).collect()
}

pub(super) fn database_of(args: Args<'_>) -> Option<u32> {
    std::str::from_utf8(args.arg(1)).ok()?.parse().ok()
}

/// True for RESET and QUIT, which are executed at once even within a transaction.
fn ends_state(command: &Command, args: Args<'_>) -> bool {
    matches!(&*command.name, "reset" | "quit") && command.accepts(args.len())
}

pub(super) fn purpose_of(table: &Table, args: Args<'_>, is_paused: bool) -> Use {
    match table.resolve(args) {
        Resolved::Known(command) if command.class == Class::Monitor => Use::Waiting,
        Resolved::Known(command) if &*command.name == "client|tracking" => Use::Waiting,
        Resolved::Known(command) if command.blocks(args) => Use::Waiting,
        // It may be held there until the pause is over.
        _ if is_paused => Use::Waiting,
        _ => Use::Short,
    }
}

/// CLIENT UNBLOCK with the number that the upstream knows the client's connection by.
pub(super) fn unblock_request(core: &Core, args: Args<'_>) -> Bytes {
    let id = strict_i64(args.arg(2)).and_then(|id| u64::try_from(id).ok());
    let Some(id) = id else { return Bytes::copy_from_slice(args.bytes()) };
    let target = core.shared.clients.find(ClientId(id)).filter(|client| client.blocked.load(Ordering::Relaxed));
    // 0 is nobody: the upstream answers that nobody was unblocked.
    let upstream_id = target.map_or(0, |client| client.upstream_id.load(Ordering::Acquire)).to_string();
    let word = |(i, word): (usize, &[u8])| if i == 2 { upstream_id.clone().into_bytes() } else { word.to_vec() };
    let words: Vec<Vec<u8>> = args.iter().enumerate().map(word).collect();
    Bytes::copy_from_slice(OwnedArgs::new(words).args().bytes())
}

/// CLIENT KILL as it is queued upstream: with one filter more, which no connection passes. Whether its filters can be, the
/// upstream says; the numbers and addresses in them are Larder's, and so are the clients that are killed.
pub(super) fn kill_request(args: Args<'_>) -> Bytes {
    let (kept, nobody): (usize, &[&[u8]]) = match args.len() {
        3 => (2, &[b"0:0"]),
        all => (all, &[b"ADDR", b"0:0"]),
    };
    Bytes::copy_from_slice(OwnedArgs::new(args.iter().take(kept).chain(nobody.iter().copied())).args().bytes())
}
