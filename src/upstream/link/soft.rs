//! Keys that an operator invalidates softly: what L1 held of them is still answered, as stale, for a while ([`crate::l1`]).
//!
//! ```text
//!   LOCAL:  in its place among the requests   entry ──► soft; the upstream still tracks the key
//!   else:   UNLINK k, PTTL k are written      entry ──► soft, Deleting: a push tells of another change
//!           the reply to UNLINK               Settling: a push tells of the deletion
//!           the reply to PTTL                 Deleted, if k is still missing: since then the upstream tracks it again
//!   tags:   the reply of a script names k     entry ──► soft, Unsure: nobody is answered yet; PTTL k is written
//! ```
//!
//! Why a push may be passed over while a key is settling: the server executes the PTTL after the deletion, and its answer says
//! whether the key is missing then. Whatever happened in between is in that answer, and what happens later comes behind it.
//! Who is told of it before, by a reply of this link, is noted; who is told by another connection waits for a fence, which
//! stands behind the PTTL. (A fence may have left before the reply of a script was read, and be answered before the PTTL:
//! hence `Unsure`.)
//!
//! Every end of softness is told to who listens (`CACHE SUBSCRIBE`): they may have kept the stale value.

use super::flights::{Flight, PTTL};
use super::{Frame, LinkCore, OpKind, Patience, SoftOrder, What};
use crate::clock::Time;
use crate::l1::{Cause, Softened, Softening, Standing};
use crate::port::{Port, Seq};
use bytes::Bytes;
use larder_protocol::args::Args;
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::table::Resolved;
use std::sync::Arc;
use std::time::Duration;

// === impl LinkCore (soft) ===

impl LinkCore {
    /// Softens the keys that `request` names behind its first argument; answers with how many were in L1.
    pub(super) fn soften_keys(&mut self, port: &Arc<Port>, seq: Seq, request: &[u8], order: SoftOrder, now: Time) {
        let how = order.softening(Standing::Kept, now);
        let mut dropped = 0;
        if let Some(ranges) = self.scan(request) {
            for key in Args::new(request, &ranges).iter().skip(1) {
                dropped += u64::from(self.soften(key, how, now) != Softened::Absent);
            }
            self.scanner_gives_back(ranges);
        }
        self.hand_on(port, seq, Frame { bytes: format!(":{dropped}\r\n").as_bytes(), shared: None });
    }

    /// Sends a deletion; what L1 holds of its keys is soft from now on.
    pub(super) fn unlink_softly(
        &mut self,
        port: &Arc<Port>,
        seq: Seq,
        request: Bytes,
        order: SoftOrder,
        state: Patience,
        now: Time,
    ) {
        let number = self.send(port, seq, OpKind::UnlinkSoftly(order), request.clone(), state, now);
        let how = order.softening(Standing::Deleting(number), now);
        let Some(ranges) = self.scan(&request) else { return };
        for key in Args::new(&request, &ranges).iter().skip(1) {
            if self.soften(key, how, now) == Softened::Soft {
                self.ask_whether_missing(request.slice_ref(key), number, now);
            }
        }
        self.scanner_gives_back(ranges);
    }

    /// The reply to a soft deletion.
    pub(super) fn unlinked_softly(&mut self, request: &Bytes, number: u64, cause: Cause, frame: Frame<'_>, now: Time) {
        let is_done = frame.bytes.first() == Some(&b':');
        let Some(ranges) = self.scan(request) else { return };
        for key in Args::new(request, &ranges).iter().skip(1) {
            if is_done {
                self.under_way.changed(key);
                self.filler.remove_but_soft(key, cause, now);
                self.filler.deleted_softly(key, number);
            } else {
                self.remove(key, cause, now);
            }
        }
        self.scanner_gives_back(ranges);
    }

    /// The keys that the last element of a reply names have been deleted by the request that began at `number`.
    pub(super) fn soften_named(&mut self, frame: Frame<'_>, number: u64, order: SoftOrder, sent_at: Time, now: Time) {
        let how = order.softening(Standing::Unsure(number), sent_at);
        let keys: Vec<Bytes> = match named(frame) {
            Some((cursor, count)) => keys_of(cursor, count).map(Bytes::copy_from_slice).collect(),
            None => return,
        };
        for key in keys {
            self.under_way.changed(&key);
            if self.soften(&key, how, now) == Softened::Soft {
                self.ask_whether_missing(key, number, now);
            }
        }
    }

    /// The upstream has said whether a key that was softly deleted is missing still.
    pub(super) fn settled_softly(&mut self, key: &[u8], number: u64, frame: Frame<'_>) {
        let is_missing = self.take_tracked() && Cursor::new(frame.bytes).next() == Some(Item::Integer(-2));
        if !self.filler.settle_soft(key, number, is_missing) {
            self.feed.tell(Some(key), Cause::DataChanged);
        }
    }

    /// A push names a key.
    pub(super) fn pushed(&mut self, key: &[u8], now: Time) -> bool {
        if !self.filler.is_settling(key) {
            return self.remove(key, Cause::DataChanged, now);
        }
        self.under_way.changed(key);
        let removed = self.filler.remove_but_soft(key, Cause::DataChanged, now);
        self.feed.tell(Some(key), Cause::DataChanged);
        removed
    }

    /// The reply to a request that is not kept is about to be handed on: its client knows its keys as they are upstream.
    pub(super) fn tell_of_read(&mut self, port: &Arc<Port>, request: &Bytes) {
        if !self.filler.partition().has_soft() {
            return;
        }
        let Some(ranges) = self.scan(request) else { return };
        let table = self.table.clone();
        let args = Args::new(request, &ranges);
        if let Resolved::Known(command) = table.resolve(args) {
            for key_at in command.keys(args) {
                self.tell_of(port, args.arg(key_at));
            }
        }
        self.scanner_gives_back(ranges);
    }

    /// The reply to a read is about to be kept and handed on. A value, or the truth about a key that was not deleted from
    /// here, is what was waited for.
    pub(super) fn tell_of_flight(&mut self, flight: &Flight, has_failed: bool) {
        if !self.filler.partition().has_soft() {
            return;
        }
        let is_refresh = matches!(flight.kind, OpKind::Fill { .. } | OpKind::FillEach(_) | OpKind::Refresh { .. });
        for k in &flight.keys {
            let key = flight.key(k);
            for (port, _) in &flight.waiting {
                self.tell_of(port, key);
            }
            match is_refresh {
                true if has_failed => self.filler.refresh_failed(key),
                true if k.exists || !self.filler.is_missed(key) => self.end_softness(key),
                _ => {}
            }
        }
    }

    /// Others have ended the softness of keys: who listens is told before whoever waits for a fence.
    pub(super) fn tell_of_ended(&mut self) {
        for key in self.filler.take_ended() {
            self.feed.tell(Some(&key), Cause::DataChanged);
        }
    }

    /// Ends what may be answered as stale no longer.
    pub fn expire_soft(&mut self, now: Time) {
        self.tell_of_ended();
        for (key, cause) in self.filler.expire_soft(now) {
            self.feed.tell(Some(&key), cause);
        }
    }

    /// A write of `key` by this link is about to be acknowledged: the key leaves L1, and is soft for no user of the database.
    pub(super) fn written(&mut self, key: &[u8], cause: Cause, now: Time) -> bool {
        let removed = self.remove(key, cause, now);
        self.filler.partition().tell_peers_of_write(key, now);
        removed
    }

    fn soften(&mut self, key: &[u8], how: Softening, now: Time) -> Softened {
        self.under_way.keep_nothing_of(key);
        let softened = self.filler.soften(key, how, now);
        self.feed.tell(Some(key), how.cause);
        softened
    }

    fn ask_whether_missing(&mut self, key: Bytes, order: u64, now: Time) {
        self.opt_in(now);
        let bulk = [format!("${}\r\n", key.len()).as_bytes(), &key, b"\r\n"].concat();
        let starts_at = self.put_both(PTTL, &bulk);
        self.expect(What::Settling { key, order }, starts_at, now);
    }

    fn tell_of(&mut self, port: &Arc<Port>, key: &[u8]) {
        if !self.filler.tell_soft(key, port.reader()) {
            self.feed.tell(Some(key), Cause::DataChanged);
        }
    }

    fn end_softness(&mut self, key: &[u8]) {
        if self.filler.end_soft(key) {
            self.feed.tell(Some(key), Cause::DataChanged);
        }
    }
}

// === impl SoftOrder ===

impl SoftOrder {
    fn softening(self, standing: Standing, since: Time) -> Softening {
        let until = since.saturating_add(Duration::from_millis(u64::from(self.ms)));
        Softening { standing, since, until, cause: self.cause }
    }
}

/// The list that is the last element of a reply, and its length.
pub(super) fn named<'f>(frame: Frame<'f>) -> Option<(Cursor<'f>, u64)> {
    let mut cursor = Cursor::new(frame.bytes);
    let Some(Item::Aggregate(_, elements)) = cursor.next() else { return None };
    let named = (1..elements).all(|_| cursor.next_frame().is_some());
    let count = cursor.next_count().filter(|_| named)?;
    Some((cursor, count))
}

/// The strings of such a list.
pub(super) fn keys_of<'f>(mut cursor: Cursor<'f>, count: u64) -> impl Iterator<Item = &'f [u8]> {
    (0..count).map_while(move |_| cursor.next_bytes())
}
