//! The tunnel of a client that watches (MONITOR), and what others' tunnels owe to those who do.

use super::Tunnel;
use super::owed::{Owed, What};
use crate::client::core::Core;
use crate::monitors::{self, MARK};
use crate::port::Seq;
use crate::upstream::raw::Piece;
use larder_protocol::args::OwnedArgs;

// === impl Tunnel (watching) ===

impl Tunnel {
    /// Gathers a line of the server's and passes it on; the piece of a reply comes back, whole if it is a simple string.
    pub(super) fn take_line(&mut self, core: &mut Core, piece: Piece) -> Option<Piece> {
        if piece.kind != b'+' || !self.state.monitoring {
            return Some(piece);
        }
        self.line.extend_from_slice(&piece.bytes);
        if !piece.ends {
            return None;
        }
        let line = self.line.split().freeze();
        if !monitors::is_line(&line) {
            return Some(Piece { bytes: line, ..piece });
        }
        if let Some(line) = self.lines.translate(line) {
            self.pass(core, line, true, true);
        }
        None
    }

    /// The server has answered MONITOR.
    pub(super) fn watch(&mut self, core: &Core, is_accepted: bool) {
        self.state.monitoring = is_accepted;
        self.watching = is_accepted.then(|| core.shared.monitors.watch(&core.client));
    }

    /// Others want to know when this client has been told what the server has done by now: a PING on its connection tells.
    pub(super) fn ask_for_mark(&mut self, core: &mut Core) {
        let is_asked = self.owed.iter().any(|owed| matches!(owed.what, What::Mark(_)));
        if !core.catch_ups.is_empty() && self.watching.is_some() && !is_asked {
            self.connection.put_request(OwnedArgs::new([&b"PING"[..], MARK]).args().bytes());
            let what = What::Mark(std::mem::take(&mut core.catch_ups));
            self.owed.push_back(Owed::unseen(what, self.times.read_max));
            if self.owed.len() == 1 {
                self.be_patient();
            }
        }
    }

    /// Those who watch are told of a reply's request before the client is told of the reply.
    pub(super) fn fence_monitors(&self, core: &mut Core, seq: Seq) {
        if !self.state.monitoring && core.shared.monitors.any() {
            let asked = core.shared.monitors.ask_to_catch_up(core.client.id, &core.client.port, seq);
            if let Some(missing) = core.fences.get_mut(&seq) {
                *missing += asked;
            }
        }
    }
}
