//! Refresh ahead: a hit of an entry that is near its deadline has the key read again, for nobody in particular.
//!
//! The read goes into the client's batch and takes no slot: its reply ends at the link. The client is answered from L1.

use super::{Batch, Session, Surroundings};
use crate::l1::Hit;
use crate::upstream::link::OpKind;
use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::table::{Command, CommandId};

// === impl Session (refresh ahead) ===

impl Session {
    /// The read that found `hit` is sent, if the entry is due.
    #[inline]
    pub(super) fn refresh_ahead(
        &mut self,
        hit: &Hit,
        command: &Command,
        args: Args<'_>,
        key_at: usize,
        around: &Surroundings<'_>,
        batch: &mut Batch,
    ) {
        if hit.has_deadline() && is_due(hit, around) {
            let asks_encoding = around.has_field_ttls && command.reads_hash_fields();
            let kind = OpKind::Refresh { command: command.id, key_at: key_at as u16, asks_encoding };
            batch.push(self.fresh_seq(), args.bytes(), kind);
        }
    }

    /// The same for a key of MGET.
    #[inline]
    pub(super) fn refresh_value_ahead(
        &mut self,
        hit: &Hit,
        get: CommandId,
        around: &Surroundings<'_>,
        batch: &mut Batch,
    ) {
        if hit.has_deadline() && is_due(hit, around) {
            let request = OwnedArgs::new([&b"GET"[..], hit.key()]);
            let kind = OpKind::Refresh { command: get, key_at: 1, asks_encoding: false };
            batch.push(self.fresh_seq(), request.args().bytes(), kind);
        }
    }
}

fn is_due(hit: &Hit, around: &Surroundings<'_>) -> bool {
    let (Some(policies), Some(partition), true) = (around.refresh_ahead, around.partition, around.keeps) else {
        return false;
    };
    partition.takes_refresh(hit, policies.refresh_ahead(hit.key()), (around.now)())
}
