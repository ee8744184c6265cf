//! What Larder must know of a transaction when it is executed, and what it does to the reply to EXEC.

use super::Tunnel;
use super::owed::Reach;
use super::swap::Unpushed;
use crate::client::Request;
use crate::client::core::Core;
use crate::client::hold::Wanted;
use crate::client::tracking::Change;
use crate::upstream::raw::Piece;
use bytes::Bytes;
use larder_protocol::cursor::{Cursor, Item};

/// What a transaction holds that Larder must know of when it is executed.
#[derive(Default)]
pub(super) struct Transaction {
    /// Commands queued.
    pub(super) queued: usize,
    /// Those that Larder answers.
    pub(super) own: Vec<Own>,
    /// The database that the last SELECT names.
    pub(super) selects: Option<u32>,
    /// True if databases are swapped, or rights changed.
    pub(super) swaps: Option<Unpushed>,
    /// What its CLIENT PAUSEs come to.
    pub(super) pause: Option<Wanted>,
    /// True if it ends a pause, before its own.
    pub(super) unpauses: bool,
    /// What it changes when it is executed.
    pub(super) reach: Reach,
    /// Users that are removed.
    pub(super) removes: Vec<Vec<u8>>,
}

/// A command in a transaction that is about Larder's client and not about the upstream's connection.
pub(super) struct Own {
    /// Its place in the transaction. (If another is not queued after all, there is no reply to put it into.)
    pub(super) at: usize,
    pub(super) request: Request,
    /// What it changes, if it is CLIENT TRACKING.
    pub(super) tracking: Option<Change>,
}

// === impl Tunnel (transactions) ===

impl Tunnel {
    /// A transaction was, or was not, executed: what it says of CLIENT PAUSE is so.
    pub(super) fn pause_or_unpause(&mut self, core: &Core, transaction: &Transaction, executed: bool) {
        let beginning = self.beginning.take();
        if executed && transaction.unpauses {
            core.shared.pauses.end();
        }
        if let (true, Some(beginning), Some(wanted)) = (executed, beginning, transaction.pause) {
            core.shared.confirm_pause(beginning, wanted.for_ms);
        }
    }

    /// The pause that must begin before the transaction may be executed.
    pub(super) fn pause_to_begin(&self) -> Option<Wanted> {
        self.transaction.pause.filter(|_| self.beginning.is_none())
    }

    /// Gathers the reply to EXEC, or one about redirection, and puts Larder's own answers and numbers into it.
    pub(super) fn gather(&mut self, core: &mut Core, own: Vec<Own>, piece: Piece, muted: bool) {
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
}
