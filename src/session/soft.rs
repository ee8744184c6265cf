//! Reads of keys that an operator has invalidated softly.
//!
//! A read that L1 does not answer looks there, if its client has no unanswered write. The first reader of a key finds
//! nothing, and so does who has been told of the key by the link since; that is noted where the link's replies are read.
//! What a client was told by connections of its own, nobody has noted by key: so it is given nothing that was softened before
//! it came back from there ([`Session::learnt_elsewhere`]).

use super::{Session, Surroundings};
use crate::clock::Time;
use crate::l1::{Hit, Partition, SoftRead, Variant};

// === impl Session (soft) ===

impl Session {
    /// The client comes from a connection, or a scope, of which this one's L1 knows nothing: whatever it has been told
    /// there, it is answered no older.
    pub fn learnt_elsewhere(&mut self, now: Time) {
        self.soft_since = now;
    }

    /// Whose reads these are.
    pub(super) fn soft_read(&self, around: &Surroundings<'_>) -> SoftRead {
        SoftRead { reader: around.reader, since: self.soft_since }
    }

    /// Looks for a stale answer.
    pub(super) fn read_soft(
        &self,
        key: &[u8],
        variant: Variant<'_>,
        partition: &Partition,
        around: &Surroundings<'_>,
    ) -> Option<Hit> {
        if !partition.has_soft() {
            return None;
        }
        partition.read_soft(key, variant, self.soft_read(around), (around.now)())
    }
}
