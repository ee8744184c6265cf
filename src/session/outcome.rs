//! What becomes of requests that went down the link: replies, failures, and fences on other links, by the number of their slot.
//!
//! A number that is not known is of a request that was done again, or has ended: nothing is done then. A failure is final, but for
//! a reply that waits for a fence: it must not leave unfenced.

use super::put::put_reply_bytes;
use super::{Fence, Missing, Session, State, count_level, is_refused_as_busy};
use crate::metrics::Counters;
use crate::outgoing::Outgoing;
use crate::port::{Failure, Seq};
use bytes::Bytes;

// === impl Session (outcomes) ===

impl Session {
    /// As [`Session::replied`], for a reply that can leave at once: its slot is the first, and no other link is to be
    /// fenced. False if that is not so, and then nothing has been done.
    /// With `settles` as in [`super::Surroundings::settles`].
    pub fn replied_in_turn(
        &mut self,
        seq: Seq,
        reply: &[u8],
        settles: bool,
        counters: &Counters,
        out: &mut Outgoing,
    ) -> bool {
        let Some(slot) = self.slots.front() else { return false };
        let State::Waiting { writes } = slot.state else { return false };
        if slot.seq != seq || slot.correction.is_some() || (writes && settles && !is_refused_as_busy(reply)) {
            return false;
        }
        self.writes_out -= usize::from(writes);
        self.waited.extend(slot.timed.map(|what| (what, slot.came_at)));
        count_level(slot.timed, reply, counters);
        if !slot.muted {
            put_reply_bytes(slot.shape, reply, out);
        }
        self.slots.pop_front();
        true
    }

    /// A reply has come. A number that is not known belongs to a request that was done again, or has ended.
    pub fn replied(&mut self, seq: Seq, reply: Bytes) {
        let Some(at) = self.find(seq) else { return };
        let slot = &mut self.slots[at];
        match &mut slot.state {
            State::Waiting { writes } => {
                self.writes_out -= usize::from(*writes);
                self.kept_bytes += reply.len();
                slot.state = State::Arrived(reply);
            }
            State::Held(held) => {
                self.kept_bytes += reply.len();
                held.missing = Missing::Came(reply);
            }
            _ => {}
        }
    }

    /// A request has failed.
    pub fn failed(&mut self, seq: Seq, failure: &Failure) {
        let Some(at) = self.find(seq) else { return };
        let line = Bytes::from(format!("-{failure}\r\n"));
        let slot = &mut self.slots[at];
        match &slot.state {
            State::Waiting { writes } => self.writes_out -= usize::from(*writes),
            State::Held(_) => self.held -= 1,
            // The reply is there, but another link does not answer: it must not be given as if all were well.
            State::Arrived(_) if matches!(slot.fence, Fence::Missing(_)) => {}
            State::Arrived(_) | State::Ready(_) => return,
        }
        self.kept_bytes = self.kept_bytes.saturating_sub(slot.kept_bytes());
        slot.fence = Fence::Done;
        slot.state = State::Ready(line);
    }

    /// So many links have been asked for a fence behind this reply.
    pub fn fencing(&mut self, seq: Seq, links: u32) {
        if let Some(at) = self.find(seq) {
            self.slots[at].fence = if links == 0 { Fence::Done } else { Fence::Missing(links) };
        }
    }

    /// A link has caught up.
    pub fn fenced(&mut self, seq: Seq) {
        let Some(at) = self.find(seq) else { return };
        let fence = &mut self.slots[at].fence;
        *fence = match *fence {
            Fence::Missing(n) if n > 1 => Fence::Missing(n - 1),
            Fence::Missing(_) | Fence::Done => Fence::Done,
            Fence::Wanted => Fence::Wanted,
        };
    }
}
