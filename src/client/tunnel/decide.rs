//! What becomes of a request while a tunnel is open: sent, answered by Larder, or a reason to leave; and what it does to the
//! state on the connection.
//!
//! Only looks at the request, the table and the state; nothing here is sent.

use super::swap::Swap;
use super::{OWN_IN_TRANSACTION_MAX, Owed, Own, Transaction, Tunnel, What};
use crate::client::Request;
use crate::client::core::Core;
use crate::client::tracking::{Change, Numbered, redirect_of};
use crate::upstream::pool::Use;
use bytes::Bytes;
use larder_protocol::args::Args;
use larder_protocol::table::{Class, Command, Flags, Group, Resolved, Table};
use std::sync::atomic::Ordering;

/// What to do with the next request.
pub(super) enum Next {
    /// Send it.
    Send(Owed),
    /// Larder's own answer.
    Answer(Vec<u8>),
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
            _ => return Next::Send(Owed { what: What::Reply, muted: false, writes: true }),
        };
        if let Some(line) = core.refusal(command) {
            // In a transaction the upstream must hear of it, so that EXEC is refused.
            return if self.state.in_multi {
                Next::Send(Owed { what: What::Instead(line.into()), muted: false, writes: false })
            } else {
                Next::Answer(line.into_bytes())
            };
        }
        let writes = !command.flags.contains(Flags::READONLY) || command.class == Class::Exclusive;
        let owed = |what| Next::Send(Owed { what, muted: false, writes });
        match command.class {
            Class::Transaction if !command.accepts(args.len()) => owed(What::Reply),
            Class::Transaction => self.decide_transaction(command),
            Class::Local if ends_state(command, args) && !self.state.is_none() => Next::Abandon,
            Class::Local if command.group == Group::Larder && self.state.in_multi => {
                owed(What::Instead(Bytes::from_static(b"-ERR Command not allowed inside a transaction\r\n")))
            }
            Class::Local if command.group == Group::Larder => Next::Leave,
            Class::Local if self.awaits_number(command, args) => Next::Leave,
            Class::Local if self.state.in_multi && self.transaction.own.len() >= OWN_IN_TRANSACTION_MAX => {
                owed(What::Instead(Bytes::from_static(
                    b"-ERR larder: too many commands about the client itself in one transaction\r\n",
                )))
            }
            _ if self.state.in_multi => owed(What::Queued),
            Class::Monitor => owed(What::Reply),
            Class::Blocking if command.blocks(args) => owed(What::Blocking),
            // INFO has a section of Larder's own.
            Class::Exclusive if &*command.name == "info" && !self.state.monitoring => Next::Leave,
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
            "exec" => (What::Exec(Transaction::default()), true),
            // The only one of them that is queued within a transaction.
            "unwatch" if self.state.in_multi => (What::Queued, false),
            _ => (What::Acknowledgement, false),
        };
        Next::Send(Owed { what, muted: false, writes })
    }

    fn decide_local(&self, core: &mut Core, command: &Command, args: Args<'_>) -> Next {
        match &*command.name {
            _ if !command.accepts(args.len()) => Next::Send(Owed { what: What::Reply, muted: false, writes: false }),
            "client|tracking" => {
                Next::Send(Owed { what: What::Tracking(Change::of(args)), muted: false, writes: false })
            }
            "client|caching" if self.state.tracking => {
                Next::Send(Owed { what: What::Reply, muted: false, writes: false })
            }
            "client|trackinginfo" | "client|getredir" if self.state.tracking || !self.owed.is_empty() => {
                Next::Send(Owed { what: What::Redirection, muted: false, writes: false })
            }
            "client|pause" | "client|unpause" | "client|unblock" => {
                Next::Send(Owed { what: What::Reply, muted: false, writes: false })
            }
            "select" if !self.state.is_none() => {
                Next::Send(Owed { what: What::Select(database_of(args)), muted: false, writes: false })
            }
            "client|reply" if !self.state.is_none() => Next::Answer(core.reply_mode(args)),
            "hello" | "auth" | "select" | "reset" | "quit" | "client|reply" => Next::Leave,
            _ if self.state.is_none() && self.owed.is_empty() => Next::Leave,
            _ => match core.local_answer(command, args) {
                Some(answer) => Next::Answer(answer),
                // Only the upstream can word what is wrong with it.
                None => Next::Send(Owed { what: What::Reply, muted: false, writes: false }),
            },
        }
    }

    /// True if the request names a client whose number upstream is still to be found out.
    fn awaits_number(&self, command: &Command, args: Args<'_>) -> bool {
        let is_numbered = matches!(self.numbered, Numbered::Yes(_));
        &*command.name == "client|tracking" && !is_numbered && redirect_of(args).is_some()
    }

    /// Notes a command that is being queued.
    pub(super) fn queue(&mut self, request: &Request, numbered: Numbered) {
        let at = self.transaction.queued;
        self.transaction.queued += 1;
        let Resolved::Known(command) = self.table.resolve(request.args()) else { return };
        self.transaction.swaps |= changes_without_push(&command.name);
        if command.name == "select" {
            self.transaction.selects = database_of(request.args());
        }
        if &*command.name == "acl|deluser" {
            self.transaction.removes.extend(users_of(request.args()));
        }
        if command.class == Class::Local {
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
            name if changes_without_push(name) && self.swap.is_none() => self.swap = Swap::begin(core),
            _ => {}
        }
        core.client.in_transaction.store(self.state.in_multi, Ordering::Relaxed);
    }
}

/// Whole databases, or what users may see, change with these, and no push tells.
pub(super) fn changes_without_push(name: &str) -> bool {
    matches!(name, "swapdb" | "acl|setuser" | "acl|deluser" | "acl|load")
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

pub(super) fn purpose_of(table: &Table, args: Args<'_>) -> Use {
    match table.resolve(args) {
        Resolved::Known(command) if command.class == Class::Monitor => Use::Waiting,
        Resolved::Known(command) if &*command.name == "client|tracking" => Use::Waiting,
        Resolved::Known(command) if command.blocks(args) => Use::Waiting,
        _ => Use::Short,
    }
}
