//! MGET of keys that L1 holds all: written to the output key by key, without gathering hits first.
//!
//! Invariant: nothing is written unless all is: a miss, an entry with a deadline or a large reply on the way, or a removal
//! in between (the values may not have been there at once), take back what was written, and the general way is gone.

use super::{Muted, Session, Surroundings};
use crate::l1::{Answered, Hit, Partition, Variant};
use crate::outgoing::Outgoing;
use crate::upstream::link::Each;
use larder_protocol::args::Args;
use larder_protocol::shape::Protocol;

// === impl Session (reads of several keys) ===

impl Session {
    /// Answers MGET at once, if nothing is under way and all keys are there; false if not, and nothing has been done.
    pub(super) fn answer_each(
        &self,
        each: Each,
        args: Args<'_>,
        partition: &Partition,
        around: &Surroundings<'_>,
        out: &mut Outgoing,
    ) -> bool {
        let Each::Mget { get, mget } = each else { return false };
        if !self.slots.is_empty() || self.muted != Muted::No || args.len() < 2 {
            return false;
        }
        let nil: &[u8] = if self.merges_to(around) == Protocol::Resp2 { b"$-1\r\n" } else { b"_\r\n" };
        let removals = partition.removals();
        let tail = out.tail();
        let before = tail.len();
        tail.extend_from_slice(format!("*{}\r\n", args.len() - 1).as_bytes());
        let all = args.iter().skip(1).all(|key| {
            let value = |reply: &[u8]| tail.extend_from_slice(reply);
            if let Some(answered) = partition.answer(key, Variant::bare(get), true, around.now, value) {
                return match answered {
                    Answered::Put => true,
                    Answered::Hit(hit) if hit.reply() == b"_\r\n" && !hit.has_deadline() => {
                        tail.extend_from_slice(nil);
                        true
                    }
                    Answered::Hit(_) => false,
                };
            }
            let is_nil = |hit: Hit| hit.reply() == b"_\r\n" && !hit.has_deadline();
            tail.extend_from_slice(nil);
            partition.read(key, Variant::bare(mget), around.now).is_some_and(is_nil)
        });
        if !all || partition.removals() != removals {
            out.tail().truncate(before);
            return false;
        }
        around.counters.hits.add(args.len() as u64 - 1);
        for key in args.iter().skip(1) {
            around.counters.watcher.read(partition.scope(), key, true, around.now);
        }
        true
    }
}
