//! What a partition held when its feed was lost: kept aside for as long as the upstream is away, if the operator allows
//! stale answers (`stale_if_error_ms_max`).
//!
//! ```text
//!   feed lost:   entries of the partition ──► left behind, under the partition's old id; the partition is empty
//!   outage:      reads that may be answered stale look here, and only here
//!   recovery, or any news:  gone, at once, before anybody is told of the news
//! ```
//!
//! Invariants:
//! * The partition itself is empty meanwhile, under another id: nothing that looks for fresh answers finds these.
//! * What is left behind is L1 as it was at one position of the link's stream: all that this process has told to clients of
//!   the scope is in it. It is given up as soon as anything newer can be told to one of them ([`Partition::drop_left`]).
//! * An entry whose deadline had passed when the feed was lost is not answered. One whose deadline passes later is
//!   answered until the feed has been lost for the time allowed: so never longer than that after its deadline, either.
//! * Entries are only removed, by any thread; none is ever added.

use super::entry::Found;
use super::{Cause, Filler, Hit, NOWHERE, Partition, Variant};
use crate::clock::Time;
use crate::mutation::{Mutation, is_planted};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Entries left behind by a partition.
#[derive(Debug)]
pub(super) struct Left {
    /// The partition's id until then.
    id: u64,
    /// When the feed was still whole.
    lost_at: Time,
    /// Why it was lost.
    cause: Cause,
}

// === impl Left ===

impl Left {
    /// True if the feed has been lost for longer than `age_max`.
    fn is_older_than(&self, age_max: Duration, now: Time) -> bool {
        let is_old = now.saturating_since(self.lost_at) > age_max && !is_planted(Mutation::LeftForEver);
        age_max.is_zero() || is_old
    }
}

// === impl Partition ===

impl Partition {
    /// Looks for the reply to a read of `key` among what was left behind, if the feed has not been lost for longer than
    /// `age_max`.
    pub fn read_left(&self, key: &[u8], variant: Variant<'_>, age_max: Duration, now: Time) -> Option<Hit> {
        let left = self.left.load();
        let left = left.as_ref().filter(|left| !left.is_older_than(age_max, now))?;
        let entry = self.l1.find(left.id, key)?;
        if entry.is_dead(left.lost_at) {
            return None;
        }
        Hit::of(entry, variant, Found::There)
    }

    /// True if the entry of a `hit` that [`Partition::read_left`] has given may still be answered.
    pub fn holds_left(&self, hit: &Hit, age_max: Duration, now: Time) -> bool {
        let left = self.left.load();
        let Some(left) = left.as_ref().filter(|left| !left.is_older_than(age_max, now)) else { return false };
        let held = || self.l1.peek(left.id, hit.entry.key());
        hit.entry.header().partition == left.id && held().is_some_and(|entry| entry.is(&hit.entry))
    }

    /// True while something is left behind.
    pub fn has_left(&self) -> bool {
        self.left.load().is_some()
    }

    /// When the feed was lost, while something is left behind.
    pub fn left_since(&self) -> Option<Time> {
        self.left.load().as_ref().map(|left| left.lost_at)
    }

    /// Gives up what was left behind: the upstream is back, or there is news of it.
    pub fn drop_left(&self) {
        if self.has_left()
            && let Some(left) = self.left.swap(None)
        {
            self.l1.sweep(left.id, left.cause);
        }
    }

    /// Gives up what was left behind if it is too old by now for any key.
    pub fn expire_left(&self, age_max: Duration, now: Time) {
        if self.left.load().as_ref().is_some_and(|left| left.is_older_than(age_max, now)) {
            self.drop_left();
        }
    }

    /// Gives one key up: it may have been changed by who cannot tell.
    pub fn forget_left(&self, key: &[u8]) {
        let left = self.left.load();
        let Some(left) = left.as_ref() else { return };
        if self.l1.remove(left.id, key).is_some() {
            self.l1.causes.add(left.cause, 1);
        }
    }
}

// === impl Filler ===

impl Filler {
    /// The feed was lost, and whole until `lost_at`. Empties the partition as [`Filler::empty`] does, but puts its entries
    /// aside; they can be found after [`Filler::leave_behind`].
    pub fn set_aside(&mut self, lost_at: Time, cause: Cause) {
        self.partition.drop_left();
        self.aside = None;
        if self.partition.is_empty() {
            return;
        }
        let (id, is_whole) = self.take_id();
        self.aside = (id != NOWHERE && is_whole).then_some(Left { id, lost_at, cause });
        if !is_whole {
            self.partition.l1.sweep(id, cause);
        }
    }

    /// A key among what was put aside may have been changed by a command that was lost.
    pub fn forget_aside(&mut self, key: &[u8]) {
        let Some(aside) = &self.aside else { return };
        if self.partition.l1.remove(aside.id, key).is_some() {
            self.partition.l1.causes.add(aside.cause, 1);
        }
    }

    /// What was put aside is given up.
    pub fn drop_aside(&mut self) {
        if let Some(aside) = self.aside.take() {
            self.partition.l1.sweep(aside.id, aside.cause);
        }
    }

    /// From now on what was put aside may be answered.
    pub fn leave_behind(&mut self) {
        if let Some(aside) = self.aside.take() {
            self.partition.left.store(Some(Arc::new(aside)));
        }
    }
}

// === impl Filler (ids) ===

impl Filler {
    /// Empties the partition by a new id; gives the old one ([`NOWHERE`] if it was taken since a suspension), and whether what
    /// is under it is still what the stream says.
    pub(super) fn take_id(&mut self) -> (u64, bool) {
        let mut old = self.partition.id.load(Ordering::Acquire);
        let mut is_whole = true;
        if old == NOWHERE {
            old = self.partition.id_before.swap(NOWHERE, Ordering::AcqRel);
            is_whole = self.partition.before_is_whole.load(Ordering::Acquire);
        } else {
            let next = self.partition.l1.next_id();
            // A failed exchange means a suspension: there is nothing to be found then either.
            let _ = self.partition.id.compare_exchange(old, next, Ordering::AcqRel, Ordering::Acquire);
        }
        self.partition.softs.clear();
        self.partition.filled.store(false, Ordering::Release);
        self.partition.removals.fetch_add(1, Ordering::AcqRel);
        (old, is_whole)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::store;
    use super::*;
    use larder_protocol::table::Table;

    const MAX: Duration = Duration::from_micros(100);

    fn at(micros: u64) -> Time {
        Time::from_micros(micros)
    }

    fn get() -> Variant<'static> {
        Variant::bare(Table::builtin().lookup(b"get").map(|command| command.id).unwrap())
    }

    /// A partition with three keys, one of which dies at 10 and one at 70.
    fn filled() -> (Arc<Partition>, Filler) {
        let l1 = store(1 << 20);
        let (partition, mut filler) = l1.partition();
        for (key, deadline) in [(&b"k"[..], Time::MAX), (b"dead", at(10)), (b"dying", at(70))] {
            filler.fill(key, get(), b"$1\r\nv\r\n", deadline, at(1));
        }
        (partition, filler)
    }

    fn lose(filler: &mut Filler, micros: u64) {
        filler.set_aside(at(micros), Cause::FeedLost);
        filler.leave_behind();
    }

    #[test]
    fn is_found_for_as_long_as_allowed_and_not_among_what_is_fresh() {
        let (p, mut f) = filled();
        assert!(p.read_left(b"k", get(), MAX, at(2)).is_none(), "the feed is there");
        lose(&mut f, 50);
        assert!(p.is_empty() && p.read(b"k", get(), || at(51)).is_none());
        assert_eq!(p.left_since(), Some(at(50)));
        let hit = p.read_left(b"k", get(), MAX, at(150)).unwrap();
        assert!(hit.plain().is_some_and(|reply| reply.is(b"$1\r\nv\r\n")));
        assert!(p.holds_left(&hit, MAX, at(150)) && !p.holds_left(&hit, MAX, at(151)));
        assert!(p.read_left(b"k", get(), MAX, at(151)).is_none());
        assert!(p.read_left(b"k", get(), Duration::ZERO, at(50)).is_none(), "not allowed for this key");
        assert!(p.read_left(b"nosuch", get(), MAX, at(60)).is_none());
        p.expire_left(MAX, at(150));
        assert!(p.has_left());
        p.expire_left(MAX, at(151));
        assert!(!p.has_left());
        assert_eq!(p.store().entries(), 0);
    }

    #[test]
    fn what_was_dead_when_the_feed_was_lost_stays_dead() {
        let (p, mut f) = filled();
        lose(&mut f, 10);
        assert!(p.read_left(b"dead", get(), MAX, at(11)).is_none());
        assert!(p.read_left(b"dying", get(), MAX, at(71)).is_some(), "it was alive when the feed was lost");
    }

    #[test]
    fn is_given_up_key_by_key_and_as_a_whole() {
        let (p, mut f) = filled();
        lose(&mut f, 5);
        let hit = p.read_left(b"k", get(), MAX, at(6)).unwrap();
        p.forget_left(b"k");
        assert!(!p.holds_left(&hit, MAX, at(6)) && p.read_left(b"k", get(), MAX, at(6)).is_none());
        assert!(p.read_left(b"dying", get(), MAX, at(6)).is_some());
        p.drop_left();
        assert!(p.read_left(b"dying", get(), MAX, at(6)).is_none());
        assert_eq!((p.store().entries(), p.store().removed(Cause::FeedLost)), (0, 3));
    }

    #[test]
    fn what_is_put_aside_is_not_found_before_it_is_left_behind() {
        let (p, mut f) = filled();
        f.set_aside(at(5), Cause::FeedLost);
        assert!(p.is_empty() && !p.has_left());
        f.forget_aside(b"k");
        f.leave_behind();
        assert!(p.read_left(b"k", get(), MAX, at(6)).is_none() && p.read_left(b"dying", get(), MAX, at(6)).is_some());
        let (p, mut f) = filled();
        f.set_aside(at(5), Cause::FeedLost);
        f.drop_aside();
        f.leave_behind();
        assert!(!p.has_left() && p.store().entries() == 0);
    }

    #[test]
    fn goes_with_a_suspension_a_peers_fill_and_the_scope() {
        let (p, mut f) = filled();
        lose(&mut f, 5);
        p.suspend();
        assert!(!p.has_left());
        p.resume();
        lose(&mut f, 6);
        assert!(!p.has_left(), "there was nothing to leave");

        let (p, mut f) = filled();
        let (peer, mut peers_filler) = p.store().partition();
        peer.set_peers(vec![Arc::downgrade(&p)]);
        lose(&mut f, 5);
        peers_filler.fill(b"other", get(), b"_\r\n", Time::MAX, at(6));
        assert!(!p.has_left(), "the upstream is there for another user");

        let (p, mut f) = filled();
        lose(&mut f, 5);
        drop(f);
        assert!(!p.has_left());
    }
}
