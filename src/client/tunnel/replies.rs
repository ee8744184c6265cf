//! What comes from the upstream in a tunnel: matched with what is owed, held until its fence is answered, then released.
//!
//! A piece of a reply waits in `uncovered` until a fence is sent that covers it, and in `covered` until that is answered.

use super::owed::What;
use super::swap::Announcement;
use super::transaction::Transaction;
use super::{Tunnel, Upstream};
use crate::client::core::Core;
use crate::port::{CatchUp, Failure};
use crate::received::Received;
use crate::upstream::breaker::{ErrorKind, classify_error};
use crate::upstream::link::OpKind;
use crate::upstream::raw::Piece;
use bytes::Bytes;
use std::sync::atomic::Ordering;

/// A piece that waits for a fence.
pub(super) struct Waiting {
    pub(super) bytes: Bytes,
    /// True if a reply ends with it.
    pub(super) ends: bool,
    /// True if the reply tells that something was changed of which other Larders are told first.
    pub(super) tells_of_unpushed: bool,
    /// Who waits until the client has been told.
    pub(super) catch_ups: Vec<CatchUp>,
}

// === impl Tunnel (replies) ===

impl Tunnel {
    /// A piece of a reply, or of a push, has come.
    pub(super) fn came(&mut self, core: &mut Core, piece: Piece) {
        self.be_patient();
        if piece.kind == b'>' {
            if let Some(push) = self.whole_push(core, piece) {
                // It tells of keys in any database.
                self.fence_widely = true;
                self.pass(core, push, true, true);
            }
            return;
        }
        let Some(piece) = self.take_line(core, piece) else { return };
        let Some(owed) = self.owed.front_mut() else {
            let (upstream, received) = (&self.scope.link.node().endpoint, Received::of(&piece.bytes));
            tracing::warn!(%upstream, %received, "a reply that nothing had asked for, on an exclusive connection");
            return self.connection.condemn();
        };
        let first = !self.in_reply;
        if first && piece.ends && owed.is_refused_for_good(&piece.bytes) {
            return self.end_as_the_server_does(core, piece);
        }
        self.in_reply = !piece.ends;
        let (writes, muted, changes_unpushed) = (owed.writes, owed.muted, owed.changes_unpushed);
        let fenced = match &owed.what {
            What::Monitor => false,
            // Who watches is to hear of it first.
            _ if core.shared.monitors.any() => true,
            What::Acknowledgement | What::Multi | What::Queued | What::Select(_) | What::Tracking(_) => {
                piece.kind != b'+'
            }
            _ => true,
        };
        match &mut owed.what {
            What::Mark(_) if !piece.ends => return,
            What::Mark(catch_ups) => {
                let catch_ups = std::mem::take(catch_ups);
                self.uncovered.push_back(Waiting { catch_ups, ..Waiting::new(Bytes::new(), true) });
                return drop(self.owed.pop_front());
            }
            What::Monitor if piece.ends => self.watch(core, piece.kind == b'+'),
            _ => {}
        }
        let Some(owed) = self.owed.front_mut() else { return };
        if first && fenced {
            owed.reach.end_softness(core);
        }
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
            What::Exec(_) => owed.is_about_client(),
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
        if executed {
            removed.extend_from_slice(&transaction.removes);
        }
        let instead = if let What::Instead(line) = &owed.what { Some(line.clone()) } else { None };
        // What is read in another database belongs to other scopes than the client's own.
        if first && fenced && (writes || self.has_selected) {
            self.fence_widely = true;
        }
        let is_the_servers = matches!(owed.what, What::Acknowledgement | What::Multi | What::Queued | What::Blocking);
        if first && piece.kind == b'-' && is_the_servers {
            self.heed_error(&piece.bytes);
        } else if piece.ends {
            self.answered += 1;
        }
        if piece.ends {
            self.owed.pop_front();
            self.pause_or_unpause(core, &transaction, executed);
            self.be_patient();
            core.client.blocked.store(self.is_blocked(), Ordering::Relaxed);
        }
        if let Some(change) = change {
            self.track(core, change);
        }
        if !removed.is_empty() {
            core.end_users(&removed);
        }
        // The end of such a reply waits, however long the reply is.
        let fenced = fenced && (first || changes_unpushed);
        let waited = self.uncovered.len();
        match instead {
            _ if gathers => self.gather(core, transaction.own, piece, muted),
            Some(line) if piece.ends && !muted => self.pass(core, line, true, false),
            None if !muted => self.pass(core, piece.bytes, piece.ends, fenced),
            // Nobody is told, but what was changed must be known in time all the same.
            _ if fenced && writes => self.pass(core, Bytes::new(), true, true),
            _ => {}
        }
        self.uncovered.iter_mut().skip(waited).for_each(|piece| piece.tells_of_unpushed = changes_unpushed);
    }

    /// The server closes the connection behind this reply, and has read nothing of what follows: so it is here.
    fn end_as_the_server_does(&mut self, core: &mut Core, piece: Piece) {
        let muted = self.owed.front().is_some_and(|owed| owed.muted);
        self.owed.clear();
        self.connection.condemn();
        self.connection.outgoing = crate::outgoing::Outgoing::default();
        self.upstream = Upstream::Gone;
        core.ends_after_answer = true;
        if !muted {
            self.pass(core, piece.bytes, true, true);
        }
    }

    /// An error reply that no script can have made up: it may tell that the upstream does not serve, or is another's.
    fn heed_error(&mut self, reply: &[u8]) {
        match classify_error(reply) {
            ErrorKind::Failure(cause) => self.scope.link.node().record_failures(cause, 1),
            ErrorKind::Reconnect => self.scope.moved(),
            ErrorKind::PassThrough => {}
        }
    }

    /// Passes a piece to the client, or lets it wait for a fence. `ends` tells whether a reply ends with it.
    pub(super) fn pass(&mut self, core: &mut Core, bytes: Bytes, ends: bool, fenced: bool) {
        let piece = Waiting::new(bytes, ends);
        if !fenced && self.covered.is_empty() && self.uncovered.is_empty() {
            return piece.put(core);
        }
        self.waiting_bytes += piece.bytes.len();
        self.uncovered.push_back(piece);
    }

    /// Releases what has been fenced; starts the next fence.
    pub(super) fn release(&mut self, core: &mut Core) -> Result<bool, Failure> {
        let mut moved = false;
        if let Some(seq) = self.fence {
            match core.fence_state(seq) {
                None => return Ok(false),
                Some(fenced) => {
                    self.fence = None;
                    fenced.map_err(|()| Failure::WriteTimeout(self.times.write_max.as_millis() as u64))?;
                    self.tell_if_unannounced(core)?;
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
            Some(swap) => {
                let (seq, announcement) = swap.start_fence(core);
                self.announcement = Some(announcement);
                seq
            }
            None if std::mem::take(&mut self.fence_widely) => {
                core.start_wide_fence(&core.links_to_fence(true), OpKind::Fence)
            }
            None => core.start_fence(&core.links_to_fence(false), OpKind::Fence),
        };
        self.fence_monitors(core, seq);
        self.fence = Some(seq);
        Ok(true)
    }

    /// What was changed is known to the server, but perhaps not to all other Larders: the client is told that, in place of the
    /// server's reply.
    ///
    /// # Errors
    /// A part of that reply has been told already.
    fn tell_if_unannounced(&mut self, core: &Core) -> Result<(), Failure> {
        let announcement = self.announcement.take();
        let Some(failure) = announcement.as_ref().and_then(Announcement::failure) else { return Ok(()) };
        let Some(at) = self.covered.iter().position(|piece| piece.tells_of_unpushed) else { return Ok(()) };
        if at == 0 && core.in_reply {
            return Err(failure.clone());
        }
        let reply = &self.covered[at].bytes;
        // Nothing was changed, or the client does not want to know.
        if reply.is_empty() || [&b"-"[..], b"_", b"*-1"].iter().any(|none| reply.starts_with(none)) {
            return Ok(());
        }
        let mut line = Bytes::from(format!("-{failure}\r\n"));
        for piece in self.covered.iter_mut().filter(|piece| piece.tells_of_unpushed) {
            self.waiting_bytes -= piece.bytes.len();
            piece.bytes = std::mem::take(&mut line);
            self.waiting_bytes += piece.bytes.len();
        }
        Ok(())
    }
}

// === impl Waiting ===

impl Waiting {
    fn new(bytes: Bytes, ends: bool) -> Self {
        Self { bytes, ends, tells_of_unpushed: false, catch_ups: Vec::new() }
    }

    pub(super) fn put(self, core: &mut Core) {
        core.out.put_shared(self.bytes);
        if self.ends {
            core.put_messages();
        } else {
            core.in_reply = true;
        }
        drop(self.catch_ups);
    }
}
