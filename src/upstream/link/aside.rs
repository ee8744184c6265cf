//! What becomes of L1 when the feed is lost: given up, or put aside for stale answers.
//!
//! What is put aside must not contradict what clients of the scope have been told, or are about to be:
//! * The keys of writes that may have been executed are forgotten: their clients are told `UPSTREAMLOST`, and must not
//!   then be shown the value of before as if nothing had happened.
//! * Where somebody waits for a fence, news has come by another connection that the stream had not shown yet: nothing is
//!   put aside.

use super::{Job, LinkCore, OpKind, What};
use crate::clock::Time;
use crate::l1::{Cause, Partition};
use crate::mutation::{Mutation, is_planted};
use bytes::Bytes;
use larder_protocol::args::Args;
use larder_protocol::cursor::Cursor;
use larder_protocol::table::CommandId;

// === impl LinkCore ===

impl LinkCore {
    /// Empties the partition. Its entries are put aside where stale answers are allowed, less those that are in doubt.
    pub(super) fn part_from_feed(&mut self, whole_until: Time, cause: Cause) {
        if self.limits.stale_longest.is_none() {
            self.filler.empty(cause);
            return;
        }
        self.filler.set_aside(whole_until, cause);
        let sent = self.bytes_sent();
        let expected = std::mem::take(&mut self.expected);
        for one in &expected {
            match &one.what {
                What::Reply { request, kind: OpKind::Write(command), .. }
                    if one.starts_at < sent && !is_planted(Mutation::LostWriteLeft) =>
                {
                    self.forget_keys_of(*command, request);
                }
                What::Reply { request, kind: OpKind::UnlinkSoftly(_), .. } if one.starts_at < sent => {
                    self.forget_named(request);
                }
                // Which keys it has deleted, its reply would have told.
                What::Reply { kind: OpKind::Named(_) | OpKind::NamedSoftly(_), .. } if one.starts_at < sent => {
                    self.filler.drop_aside()
                }
                What::Fence { waiting, resumes } if !waiting.is_empty() || *resumes > 0 => self.filler.drop_aside(),
                _ => {}
            }
        }
        self.expected = expected;
    }

    /// What was put aside may be answered from now on, less what `orders` (fences, and drops of keys, that had not reached
    /// the link) speak against.
    pub fn leave_behind(&mut self, orders: &[Job]) {
        for job in orders {
            for op in &job.ops {
                match op.kind {
                    OpKind::Drop(_) | OpKind::Soften(_) => {
                        let request = job.bytes.slice(op.bytes.start as usize..op.bytes.end as usize);
                        self.forget_named(&request);
                    }
                    OpKind::Fence | OpKind::FenceAndResume | OpKind::DropAll(_) => self.filler.drop_aside(),
                    _ => {}
                }
            }
        }
        self.filler.leave_behind();
    }

    /// Gives up what was left behind if it is too old by now.
    pub fn expire_left(&self, now: Time) {
        if let Some(longest) = self.limits.stale_longest {
            self.filler.partition().expire_left(longest, now);
        }
    }

    fn forget_keys_of(&mut self, command: CommandId, request: &Bytes) {
        let ranges = self.scan(request);
        let table = self.table.clone();
        let (Some(ranges), Some(command)) = (ranges, table.command(command)) else { return self.filler.drop_aside() };
        let args = Args::new(request, &ranges);
        let mut named = 0;
        for key_at in command.keys(args) {
            self.filler.forget_aside(args.arg(key_at));
            named += 1;
        }
        if named == 0 {
            self.filler.drop_aside();
        }
        self.scanner_gives_back(ranges);
    }

    /// Forgets the keys behind the first argument.
    fn forget_named(&mut self, request: &Bytes) {
        let Some(ranges) = self.scan(request) else { return self.filler.drop_aside() };
        Args::new(request, &ranges).iter().skip(1).for_each(|key| self.filler.forget_aside(key));
        self.scanner_gives_back(ranges);
    }
}

/// An order (a fence, or a drop of keys) has come while there is no connection: what was left behind must not speak
/// against it. Who wants a fence has news, so all of it goes.
pub fn settle(partition: &Partition, job: &Job) {
    for op in &job.ops {
        match op.kind {
            OpKind::Drop(_) | OpKind::Soften(_) => {
                let mut words = Cursor::new(&job.bytes[op.bytes.start as usize..op.bytes.end as usize]);
                let keys = words.next_count().unwrap_or(0).saturating_sub(1);
                words.next_bytes();
                (0..keys).map_while(|_| words.next_bytes()).for_each(|key| partition.forget_left(key));
            }
            _ if is_planted(Mutation::LeftInSpiteOfNews) => {}
            _ => partition.drop_left(),
        }
    }
}
