//! A client that tracks, in its tunnel: what the upstream agrees to, and what it pushes.
//!
//! The state changes when the upstream has agreed, not when it is asked. Pushes are passed on whole, so that nothing of
//! Larder's comes to stand within one.

use super::decide::database_of;
use super::{Own, Tunnel};
use crate::client::apart::within;
use crate::client::core::Core;
use crate::client::tracking::{Change, Numbered};
use crate::client::{Connection, End, Request, retold};
use crate::upstream::link::OpKind;
use crate::upstream::raw::Piece;
use bytes::Bytes;
use larder_protocol::args::Args;
use larder_protocol::table::Resolved;
use std::sync::atomic::Ordering;

// === impl Connection ===

impl Connection {
    /// Replaces the number behind `REDIRECT`, if there is one; `None` if that fails, which is answered.
    pub(super) async fn number_first(&mut self, tunnel: &mut Tunnel, request: Request) -> Option<Request> {
        let table = tunnel.table.clone();
        if !matches!(table.resolve(request.args()), Resolved::Known(c) if &*c.name == "client|tracking") {
            return Some(request);
        }
        match self.numbered(tunnel.connection.upstream_id(), request).await {
            Ok((request, redirect)) => {
                tunnel.numbered = Numbered::Yes(redirect);
                Some(request)
            }
            Err(failure) => {
                self.core.answer(format!("-{failure}\r\n").as_bytes());
                None
            }
        }
    }

    /// HELLO and AUTH as they are for the upstream: Larder's own users are none of its business.
    pub(super) fn words_for_upstream(&self, name: &str, args: Args<'_>) -> Option<Vec<Vec<u8>>> {
        let all = || args.iter().map(<[u8]>::to_vec);
        match (self.core.shared.has_own_users(), name) {
            (false, _) => Some(all().collect()),
            (true, "hello") => Some(all().take(2).collect()),
            (true, _) => None,
        }
    }

    /// Calls something on the connection of a client that tracks; what is pushed meanwhile is put out.
    pub(super) async fn call_tracking(&mut self, tunnel: &mut Tunnel, words: Vec<Vec<u8>>) -> Result<(), End> {
        let mut pushed = Vec::new();
        let called = tunnel.connection.call_beside(words, |piece| pushed.push(piece));
        within(tunnel.times.write_max, called).await.map_err(|_| End::Closed)?;
        if !pushed.is_empty() {
            let scopes = self.core.links_to_fence(true);
            let seq = self.core.start_fence(&scopes, OpKind::Fence);
            self.fenced(seq).await.map_err(|_| End::Closed)?;
        }
        for piece in pushed {
            if let Some(push) = tunnel.whole_push(&self.core, piece) {
                self.core.out.put_shared(push);
            }
        }
        Ok(())
    }
}

// === impl Tunnel ===

impl Tunnel {
    /// What Larder answers, in a transaction, in the place of the upstream; `None` if that has the word.
    pub(super) fn own_answer(&mut self, core: &mut Core, own: Own, theirs: &[u8]) -> Option<Vec<u8>> {
        if let Some(change) = own.tracking {
            if theirs.starts_with(b"+") {
                self.track(core, change);
            }
            return None;
        }
        let table = self.table.clone();
        let Resolved::Known(command) = table.resolve(own.request.args()) else { return None };
        match &*command.name {
            "client|getredir" | "client|trackinginfo" => self.redirect.as_ref().map(|r| r.with_own_number(theirs)),
            "select" => {
                if theirs.starts_with(b"+") {
                    core.selected_in_transaction = database_of(own.request.args());
                }
                None
            }
            name if retold::concerns(name) => core.retold(name, own.request.args(), theirs),
            // There is no such filter, or no such user. (What is killed by an address, the upstream never has.)
            "client|kill" if theirs.starts_with(b"-") && own.request.args().len() > 3 => None,
            _ => core.local_answer(command, own.request.args()),
        }
    }

    /// The upstream has agreed to CLIENT TRACKING.
    pub(super) fn track(&mut self, core: &Core, change: Change) {
        let tracking = &core.client.tracking;
        if change.on {
            tracking.begin(change.redirect.as_ref().map(|redirect| redirect.target), change.broadcasts);
        } else {
            tracking.end();
        }
        self.state.tracking = change.on;
        self.redirect = change.redirect.filter(|_| change.on);
        self.reconsiders = true;
    }

    /// A push, once it is whole, with Larder's numbers in it.
    pub(super) fn whole_push(&mut self, core: &Core, piece: Piece) -> Option<Bytes> {
        if !piece.ends || !self.pushed.is_empty() {
            self.pushed.extend_from_slice(&piece.bytes);
        }
        if !piece.ends {
            return None;
        }
        let push = if self.pushed.is_empty() { piece.bytes } else { self.pushed.split().freeze() };
        match self.redirect.as_ref().and_then(|redirect| redirect.broken(&push)) {
            Some(broken) => {
                core.client.tracking.is_broken.store(true, Ordering::Relaxed);
                Some(broken.into())
            }
            None => Some(push),
        }
    }
}
