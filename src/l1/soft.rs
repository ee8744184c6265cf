//! What an operator has invalidated softly (`CACHE INVALIDATE ... SOFT ms`): still answered, as stale, for a short time.
//!
//! ```text
//!   softened:   the entry of a key ──► out of the partition, into here
//!   meanwhile:  its first reader finds nothing and asks the upstream; all others are answered from here
//!   the end:    its time is over, its key was written to, or the refreshed value has come: gone for everybody
//! ```
//!
//! Invariants:
//! * A key is in the partition or here, never in both: nothing that looks for fresh answers finds what is here.
//! * Who has been told what the upstream says of a key since it was softened is not answered from here any more
//!   ([`Filler::tell_soft`], which comes before the reply is handed on): no client sees the old value again.
//! * What is here belongs to the partition as it was when it was softened: when that is emptied or suspended, whatever for,
//!   nothing is found here any more.
//! * Whoever has written to a key by another way than the link ends its softness before anybody is told of the write
//!   ([`Partition::written_elsewhere`]): of a deletion of what is gone already no push tells.
//! * Only the task of the link adds and changes; other threads look, take the one leave to refresh a key, and end.
//!
//! Bounds: [`SOFT_KEYS_MAX`] keys, and a [`SOFT_SIZE_PART`]th of L1 in bytes; [`TOLD_MAX`] clients are remembered for a
//! key. What exceeds them is invalidated as if `SOFT` had not been said.

use super::entry::{Found, Slot};
use super::{Cause, Filler, Hit, Partition, Variant, stripe_of};
use crate::clock::Time;
use crate::mutation::{Mutation, is_planted};
use larder_protocol::glob::{self, Case};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Keys of one partition that are soft at a time.
const SOFT_KEYS_MAX: usize = 65_536;
/// What is soft takes at most this part of `l1.size_bytes_max`, beside it.
const SOFT_SIZE_PART: u64 = 4;
/// Clients that may have been told of a soft key before it ends for all.
const TOLD_MAX: usize = 64;
/// Writes by other ways are remembered in so many groups of keys: keys of one group are taken for each other, where the reply of
/// a script names what it has softened.
const WRITTEN_STRIPES: usize = 32;
/// What has ended is taken out so often at most.
const SWEEP_PAUSE: Duration = Duration::from_millis(50);

/// Who reads: no two clients of a process are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader(pub u64);

/// Whose read it is, and what it has been told by other ways.
#[derive(Clone, Copy, Debug)]
pub struct SoftRead {
    /// The client.
    pub reader: Reader,
    /// What was softened before this time, or at it, is not for it: it has been told of keys by connections of its own until then.
    pub since: Time,
}

/// How a key is softened.
#[derive(Clone, Copy, Debug)]
pub struct Softening {
    /// What is known of it upstream.
    pub standing: Standing,
    /// When that was ordered.
    pub since: Time,
    /// Until when it may be answered.
    pub until: Time,
    /// Why it leaves the partition.
    pub cause: Cause,
}

/// What is known upstream of a soft key. Numbers are those of the orders to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is there, and its next change will be told.
    Kept,
    /// It is about to be deleted; until then a push tells of another change.
    Deleting(u64),
    /// It has been deleted. A push tells of that: whether it is still so, the reply to a PTTL that is under way will tell,
    /// since when the upstream tells of changes again. The PTTL stands directly behind the deletion.
    Settling(u64),
    /// As `Settling`, but other requests may stand in between, a fence among them: nobody is answered until the reply has come.
    Unsure(u64),
    /// It is not there, and its next change will be told.
    Deleted,
}

/// What became of an order to soften a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Softened {
    /// It was not in the partition.
    Absent,
    /// It was, and is soft now.
    Soft,
    /// It was, and is gone: there is no room.
    Gone,
}

/// The soft keys of a partition.
#[derive(Debug, Default)]
pub(super) struct Softs {
    /// How many there are, with those whose end is still to be told: looked at without the lock.
    count: AtomicUsize,
    keys: Mutex<Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    entries: HashMap<Box<[u8]>, SoftEntry, foldhash::fast::RandomState>,
    bytes: u64,
    /// What others have ended, for the link's task to tell of.
    ended: Vec<Box<[u8]>>,
    /// When keys of each group were last written to by another way than the link.
    written: [Option<Time>; WRITTEN_STRIPES],
    /// When it was last looked for what has ended.
    swept_at: Time,
}

#[derive(Debug)]
struct SoftEntry {
    entry: Slot,
    how: Softening,
    refresh: Refresh,
    /// Who is to be told nothing older than what the upstream says.
    told: SmallVec<[Reader; 2]>,
}

/// Whether a reader has been sent to the upstream for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refresh {
    Wanted,
    UnderWay,
}

// === impl Partition (soft) ===

impl Partition {
    /// True while keys are soft.
    #[inline]
    pub fn has_soft(&self) -> bool {
        self.softs.count.load(Ordering::Acquire) > 0
    }

    /// How many keys are soft, those included whose time has just ended.
    pub fn soft_keys(&self) -> usize {
        self.softs.count.load(Ordering::Acquire)
    }

    /// Looks for the stale reply to a read of a soft key. The first who could have it is given nothing: that client is to ask
    /// the upstream, as it would without `SOFT`, and is answered from here no more.
    pub fn read_soft(&self, key: &[u8], variant: Variant<'_>, by: SoftRead, now: Time) -> Option<Hit> {
        if !self.has_soft() {
            return None;
        }
        let mut keys = self.softs.lock();
        let soft = keys.entries.get_mut(key).filter(|soft| soft.is_for(self, by, now))?;
        let stored = soft.entry.variant(variant)?;
        if soft.refresh == Refresh::Wanted {
            soft.refresh = Refresh::UnderWay;
            soft.told.push(by.reader);
            return None;
        }
        Some(Hit { entry: soft.entry.clone(), stored, found: Found::Softly })
    }

    /// True if the entry of a hit is soft and may still be answered to this client.
    pub fn holds_soft(&self, hit: &Hit, by: SoftRead, now: Time) -> bool {
        if !self.has_soft() {
            return false;
        }
        let keys = self.softs.lock();
        keys.entries.get(hit.key()).is_some_and(|soft| soft.entry.is(&hit.entry) && soft.is_for(self, by, now))
    }

    /// A request that has not come by the link may have written to `key`, or to whatever it liked (`None`). Its reply was there at
    /// `now`, and has been told to nobody yet. What it has changed the link will hear; that it has deleted what had been
    /// deleted softly before, it will not.
    pub fn written_elsewhere(&self, key: Option<&[u8]>, now: Time) {
        if is_planted(Mutation::SoftOverWritesElsewhere) {
            return;
        }
        let mut keys = self.softs.lock();
        match key {
            Some(key) => {
                keys.written[stripe_of(key, WRITTEN_STRIPES)] = Some(now);
                keys.end(key);
            }
            None => {
                keys.written.fill(Some(now));
                // Of what was not deleted, every change is told.
                keys.end_all(|_, soft| soft.how.standing != Standing::Kept);
            }
        }
        self.softs.publish(&keys);
    }

    /// An operator invalidates the keys that match a glob pattern, and not softly.
    pub fn end_soft_matching(&self, pattern: &[u8], now: Time) {
        let mut keys = self.softs.lock();
        // A script under way may have deleted some of them.
        keys.written.fill(Some(now));
        keys.end_all(|key, _| glob::matches(pattern, key, Case::Sensitive));
        self.softs.publish(&keys);
    }

    /// The same in the partitions of other users of the same database, for a write whose reply this one's link has read.
    pub(crate) fn tell_peers_of_write(&self, key: &[u8], now: Time) {
        self.peers.load().iter().filter_map(Weak::upgrade).for_each(|peer| peer.written_elsewhere(Some(key), now));
    }
}

// === impl Filler (soft) ===

impl Filler {
    /// Takes the entry of `key` out of the partition, to be answered as stale for a while. A key that is soft already stays
    /// so, and not for longer than before.
    pub fn soften(&mut self, key: &[u8], how: Softening, now: Time) -> Softened {
        let partition = self.partition().clone();
        if let Some(soft) = partition.softs.lock().entries.get_mut(key) {
            soft.how.until = soft.how.until.min(how.until);
            return Softened::Absent;
        }
        let Some(entry) = self.take_out(key, how.cause, now) else { return Softened::Absent };
        if entry.is_dead(now) {
            return Softened::Gone;
        }
        let mut keys = partition.softs.lock();
        let bytes_max = partition.l1.settings().size_bytes_max / SOFT_SIZE_PART;
        if keys.is_overtaken(key, how) || keys.len() >= SOFT_KEYS_MAX || keys.bytes + entry.bytes() > bytes_max {
            return Softened::Gone;
        }
        keys.bytes += entry.bytes();
        let soft = SoftEntry { entry, how, refresh: Refresh::Wanted, told: SmallVec::new() };
        keys.entries.insert(key.into(), soft);
        partition.softs.publish(&keys);
        Softened::Soft
    }

    /// The order with this number has deleted `key` upstream.
    pub fn deleted_softly(&mut self, key: &[u8], order: u64) {
        self.change_soft(key, |soft| {
            if soft.how.standing == Standing::Deleting(order) {
                soft.how.standing = Standing::Settling(order);
            }
        });
    }

    /// Whether a soft key that an order has deleted is missing upstream still; false if that ends it.
    pub fn settle_soft(&mut self, key: &[u8], order: u64, is_missing: bool) -> bool {
        let mut stays = true;
        self.change_soft(key, |soft| {
            if matches!(soft.how.standing, Standing::Settling(of) | Standing::Unsure(of) if of == order) {
                if !is_planted(Mutation::SoftNeverSettles) {
                    soft.how.standing = Standing::Deleted;
                }
                stays = is_missing;
            }
        });
        stays || !self.end_soft(key)
    }

    /// True if a push about `key` tells of the deletion that has made it soft.
    pub fn is_settling(&self, key: &[u8]) -> bool {
        self.soft_standing(key).is_some_and(|standing| matches!(standing, Standing::Settling(_) | Standing::Unsure(_)))
    }

    /// True if `key` is soft.
    pub fn is_soft(&self, key: &[u8]) -> bool {
        self.soft_standing(key).is_some()
    }

    /// True if `key` is soft and was deleted: that it is missing is no news, and not to be put in its place.
    pub fn is_missed(&self, key: &[u8]) -> bool {
        self.soft_standing(key).is_some_and(|standing| standing != Standing::Kept)
    }

    /// A client is about to be told what the upstream says of `key`. False if that ends it for all: too many know.
    pub fn tell_soft(&mut self, key: &[u8], reader: Reader) -> bool {
        let mut stays = true;
        self.change_soft(key, |soft| {
            // What stands in front of the deletion tells of the value that is still answered.
            let is_of_before = matches!(soft.how.standing, Standing::Deleting(_));
            if is_of_before || soft.told.contains(&reader) || is_planted(Mutation::SoftToTheTold) {
                return;
            }
            stays = soft.told.len() < TOLD_MAX;
            soft.told.push(reader);
        });
        stays || !self.end_soft(key)
    }

    /// The refresh of `key` has failed: the next reader may try.
    pub fn refresh_failed(&mut self, key: &[u8]) {
        self.change_soft(key, |soft| soft.refresh = Refresh::Wanted);
    }

    /// From now on nobody is answered with the soft entry of `key`; true if there was one.
    pub fn end_soft(&mut self, key: &[u8]) -> bool {
        let softs = &self.partition().softs;
        if softs.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut keys = softs.lock();
        let removed = keys.remove(key);
        softs.publish(&keys);
        removed
    }

    /// Keys whose softness others have ended since the last call.
    pub fn take_ended(&mut self) -> Vec<Box<[u8]>> {
        let softs = &self.partition().softs;
        if softs.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut keys = softs.lock();
        let ended = std::mem::take(&mut keys.ended);
        softs.publish(&keys);
        ended
    }

    /// Takes out what has ended by time: the keys, each with why it had been invalidated.
    pub fn expire_soft(&mut self, now: Time) -> Vec<(Box<[u8]>, Cause)> {
        let softs = &self.partition().softs;
        if softs.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut keys = softs.lock();
        if now.saturating_since(keys.swept_at) < SWEEP_PAUSE {
            return Vec::new();
        }
        keys.swept_at = now;
        let ended = keys.entries.iter().filter(|(_, soft)| soft.is_over(now));
        let ended: Vec<(Box<[u8]>, Cause)> = ended.map(|(key, soft)| (key.clone(), soft.how.cause)).collect();
        for (key, _) in &ended {
            keys.remove(key);
        }
        softs.publish(&keys);
        ended
    }

    fn soft_standing(&self, key: &[u8]) -> Option<Standing> {
        let softs = &self.partition().softs;
        if softs.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        softs.lock().entries.get(key).map(|soft| soft.how.standing)
    }

    fn change_soft(&mut self, key: &[u8], change: impl FnOnce(&mut SoftEntry)) {
        let softs = &self.partition().softs;
        if softs.count.load(Ordering::Acquire) > 0
            && let Some(soft) = softs.lock().entries.get_mut(key)
        {
            change(soft);
        }
    }
}

// === impl Softs ===

impl Softs {
    /// Gives all up.
    pub(super) fn clear(&self) {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut keys = self.lock();
            keys.entries = HashMap::default();
            keys.ended = Vec::new();
            keys.bytes = 0;
            self.publish(&keys);
        }
    }

    fn publish(&self, keys: &Keys) {
        self.count.store(keys.len(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Keys ===

impl Keys {
    fn len(&self) -> usize {
        self.entries.len() + self.ended.len()
    }

    /// True if `key` was perhaps written to, by another way than the link, since a script was sent whose reply now says that it
    /// has deleted it. (What is softened before its deletion is sent is found here by whoever writes to it.)
    fn is_overtaken(&self, key: &[u8], how: Softening) -> bool {
        let written = self.written[stripe_of(key, WRITTEN_STRIPES)];
        matches!(how.standing, Standing::Unsure(_)) && written.is_some_and(|at| at >= how.since)
    }

    /// Ends the softness of `key`; that is still to be told.
    fn end(&mut self, key: &[u8]) {
        if self.remove(key) {
            self.ended.push(key.into());
        }
    }

    /// The same for all keys for which `ends` is true.
    fn end_all(&mut self, ends: impl Fn(&[u8], &SoftEntry) -> bool) {
        let ending = self.entries.iter().filter(|(key, soft)| ends(key, soft));
        let ending: Vec<Box<[u8]>> = ending.map(|(key, _)| key.clone()).collect();
        ending.iter().for_each(|key| self.end(key));
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        let removed = self.entries.remove(key);
        self.bytes -= removed.as_ref().map_or(0, |soft| soft.entry.bytes());
        removed.is_some()
    }
}

// === impl SoftEntry ===

impl SoftEntry {
    fn is_over(&self, now: Time) -> bool {
        (now >= self.how.until || self.entry.is_dead(now)) && !is_planted(Mutation::SoftForEver)
    }

    /// True if this client may be answered with it.
    fn is_for(&self, partition: &Partition, by: SoftRead, now: Time) -> bool {
        self.entry.header().partition == partition.id.load(Ordering::Acquire)
            && !self.is_over(now)
            && !matches!(self.how.standing, Standing::Unsure(_))
            && self.how.since > by.since
            && !self.told.contains(&by.reader)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{L1, L1Settings};
    use super::*;
    use larder_protocol::table::Table;
    use std::sync::Arc;

    const ONE: SoftRead = SoftRead { reader: Reader(1), since: Time::ZERO };
    const TWO: SoftRead = SoftRead { reader: Reader(2), since: Time::ZERO };

    fn at(micros: u64) -> Time {
        Time::from_micros(micros)
    }

    fn get() -> Variant<'static> {
        Variant::bare(Table::builtin().lookup(b"get").map(|command| command.id).unwrap())
    }

    fn how(standing: Standing) -> Softening {
        Softening { standing, since: at(10), until: at(100), cause: Cause::Manual }
    }

    /// A partition with keys `k` and `dying`, whose deadline is 50.
    fn filled() -> (Arc<Partition>, Filler) {
        let l1 = L1::new(L1Settings {
            size_bytes_max: 1 << 16,
            entry_bytes_max: 16_000,
            variants_per_key_max: 3,
            compress_min_bytes: None,
        });
        let (partition, mut filler) = l1.partition();
        filler.fill(b"k", get(), b"$1\r\nv\r\n", Time::MAX, at(1));
        filler.fill(b"dying", get(), b"$1\r\nv\r\n", at(50), at(1));
        (partition, filler)
    }

    #[test]
    fn the_first_reader_asks_the_upstream_and_others_are_answered_until_the_end() {
        let (p, mut f) = filled();
        assert_eq!(f.soften(b"k", how(Standing::Kept), at(10)), Softened::Soft);
        assert_eq!(f.soften(b"nosuch", how(Standing::Kept), at(10)), Softened::Absent);
        assert!(p.read(b"k", get(), || at(11)).is_none() && p.facts(b"k").is_none(), "nothing fresh is found");
        assert_eq!(p.store().removed(Cause::Manual), 1);
        assert!(p.read_soft(b"k", get(), ONE, at(11)).is_none(), "it is to ask");
        assert!(p.read_soft(b"k", get(), ONE, at(11)).is_none(), "and is not answered from here afterwards");
        let hit = p.read_soft(b"k", get(), TWO, at(99)).unwrap();
        assert!(hit.plain().is_some_and(|reply| reply.is(b"$1\r\nv\r\n")));
        assert!(p.holds_soft(&hit, TWO, at(99)) && !p.holds_soft(&hit, TWO, at(100)) && !p.holds(&hit, at(99)));
        assert!(p.read_soft(b"k", get(), TWO, at(100)).is_none());
        let later = SoftRead { since: at(10), ..TWO };
        assert!(p.read_soft(b"k", get(), later, at(50)).is_none(), "it was told by another way since");
        assert!(f.end_soft(b"k") && !p.has_soft() && !f.end_soft(b"k"));
    }

    #[test]
    fn a_deadline_holds_for_what_is_soft_and_a_second_order_prolongs_nothing() {
        let (p, mut f) = filled();
        f.soften(b"dying", how(Standing::Kept), at(10));
        f.soften(b"k", how(Standing::Kept), at(10));
        assert_eq!(f.soften(b"k", Softening { until: at(20), ..how(Standing::Kept) }, at(11)), Softened::Absent);
        assert_eq!(f.soften(b"k", Softening { until: at(500), ..how(Standing::Kept) }, at(11)), Softened::Absent);
        for key in [&b"k"[..], b"dying"] {
            assert!(p.read_soft(key, get(), ONE, at(12)).is_none());
        }
        assert!(p.read_soft(b"k", get(), TWO, at(19)).is_some() && p.read_soft(b"k", get(), TWO, at(20)).is_none());
        assert!(p.read_soft(b"dying", get(), TWO, at(49)).is_some());
        assert!(p.read_soft(b"dying", get(), TWO, at(50)).is_none());
        let ended = f.expire_soft(at(60_000));
        assert_eq!(ended.len(), 2);
        assert!(!p.has_soft());
    }

    #[test]
    fn who_was_told_is_not_answered_and_too_many_end_it() {
        let (p, mut f) = filled();
        f.soften(b"k", how(Standing::Kept), at(10));
        assert!(f.tell_soft(b"k", Reader(2)));
        assert!(p.read_soft(b"k", get(), TWO, at(11)).is_none());
        assert!(p.read_soft(b"k", get(), ONE, at(11)).is_none(), "who was told did not take the leave to refresh");
        for reader in 3..3 + TOLD_MAX as u64 - 2 {
            assert!(f.tell_soft(b"k", Reader(reader)));
        }
        assert!(p.has_soft() && !f.tell_soft(b"k", Reader(1000)));
        assert!(!p.has_soft());
    }

    #[test]
    fn a_deletion_settles_once_the_upstream_has_said_that_it_is_missing() {
        let (p, mut f) = filled();
        f.soften(b"k", how(Standing::Deleting(7)), at(10));
        assert!(!f.is_settling(b"k") && f.is_missed(b"k"));
        f.deleted_softly(b"k", 6);
        assert!(!f.is_settling(b"k"), "another order");
        f.deleted_softly(b"k", 7);
        assert!(f.is_settling(b"k"));
        assert!(f.settle_soft(b"k", 6, false) && f.is_settling(b"k"));
        assert!(f.settle_soft(b"k", 7, true) && !f.is_settling(b"k") && f.is_soft(b"k"));
        f.end_soft(b"k");
        f.soften(b"dying", how(Standing::Unsure(8)), at(10));
        assert!(f.is_settling(b"dying") && p.read_soft(b"dying", get(), ONE, at(11)).is_none());
        assert!(p.read_soft(b"dying", get(), TWO, at(11)).is_none(), "nobody is answered, nobody is sent");
        assert!(!f.settle_soft(b"dying", 8, false) && !p.has_soft(), "it was written anew");
    }

    #[test]
    fn a_write_by_another_way_ends_it_and_that_is_still_to_be_told() {
        let (p, mut f) = filled();
        f.soften(b"k", how(Standing::Deleting(7)), at(10));
        f.soften(b"dying", how(Standing::Kept), at(10));
        p.written_elsewhere(Some(b"other"), at(11));
        assert!(f.is_soft(b"k") && f.take_ended().is_empty());
        p.written_elsewhere(None, at(11));
        assert!(!f.is_soft(b"k") && f.is_soft(b"dying"), "of what was not deleted every change is told");
        assert!(p.read_soft(b"k", get(), ONE, at(12)).is_none() && p.read_soft(b"k", get(), TWO, at(12)).is_none());
        p.written_elsewhere(Some(b"dying"), at(11));
        assert!(p.has_soft(), "the end is to be told");
        assert_eq!(f.take_ended(), [Box::from(&b"k"[..]), Box::from(&b"dying"[..])]);
        assert!(!p.has_soft() && f.take_ended().is_empty());
        f.fill(b"k", get(), b"$1\r\nv\r\n", Time::MAX, at(12));
        f.soften(b"k", how(Standing::Kept), at(13));
        p.end_soft_matching(b"[ab]*", at(13));
        assert!(f.is_soft(b"k"));
        p.end_soft_matching(b"[jk]*", at(13));
        assert!(!f.is_soft(b"k"));
    }

    /// The script was executed first, and its reply is read last: nobody may be answered what the write has acknowledged to be gone.
    #[test]
    fn what_was_written_while_a_script_was_under_way_is_not_softened_by_it() {
        for (sent_at, softened) in [(19, Softened::Gone), (20, Softened::Gone), (21, Softened::Soft)] {
            for key in [Some(&b"k"[..]), None] {
                let (p, mut f) = filled();
                p.written_elsewhere(key, at(20));
                let how = Softening { since: at(sent_at), ..how(Standing::Unsure(7)) };
                assert_eq!(f.soften(b"k", how, at(30)), softened, "{sent_at}");
                assert!(p.facts(b"k").is_none());
            }
        }
        let (p, mut f) = filled();
        p.written_elsewhere(Some(b"k"), at(20));
        assert_eq!(
            f.soften(b"k", how(Standing::Deleting(7)), at(30)),
            Softened::Soft,
            "that deletion is still to come"
        );
    }

    #[test]
    fn goes_with_the_partition_a_suspension_and_a_removal() {
        type End = fn(&Partition, &mut Filler);
        let ends: [End; 4] = [
            |_, f| f.empty(Cause::DataChanged),
            |p, _| p.suspend(),
            |_, f| assert!(!f.remove(b"k", Cause::DataChanged, at(12))),
            |_, f| f.set_aside(at(12), Cause::FeedLost),
        ];
        for end in ends {
            let (p, mut f) = filled();
            f.soften(b"k", how(Standing::Kept), at(10));
            assert!(p.read_soft(b"k", get(), ONE, at(11)).is_none());
            let hit = p.read_soft(b"k", get(), TWO, at(11)).unwrap();
            end(&p, &mut f);
            assert!(p.read_soft(b"k", get(), TWO, at(13)).is_none() && !p.holds_soft(&hit, TWO, at(13)));
            f.leave_behind();
            assert!(p.read_left(b"k", get(), Duration::from_secs(1), at(13)).is_none(), "nor by another way");
        }
    }

    #[test]
    fn is_bounded_in_bytes() {
        let (p, mut f) = filled();
        let large = vec![b'x'; 10_000];
        for key in [&b"a"[..], b"b"] {
            f.fill(key, get(), &large, Time::MAX, at(1));
        }
        assert_eq!(f.soften(b"a", how(Standing::Kept), at(10)), Softened::Soft);
        assert_eq!(f.soften(b"b", how(Standing::Kept), at(10)), Softened::Gone);
        assert_eq!((p.soft_keys(), p.store().removed(Cause::Manual)), (1, 2));
    }

    #[test]
    fn a_refresh_that_has_failed_is_for_the_next_reader() {
        let (p, mut f) = filled();
        f.soften(b"k", how(Standing::Kept), at(10));
        assert!(p.read_soft(b"k", get(), ONE, at(11)).is_none());
        f.refresh_failed(b"k");
        assert!(p.read_soft(b"k", get(), TWO, at(11)).is_none());
        assert!(p.read_soft(b"k", get(), SoftRead { reader: Reader(3), ..ONE }, at(11)).is_some());
    }
}
