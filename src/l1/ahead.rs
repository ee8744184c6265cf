//! Refresh ahead: whether an entry that is hit is so near its deadline that it should be read again before it.
//!
//! The point lies at a part of the entry's life (`l1.refresh_ahead`), less up to a tenth of that: entries that were made
//! together are not refreshed together. Where it lies follows from the key and the time at which the entry was made.
//!
//! Invariant: an entry is asked for once. (Two threads that count hits of it at the same moment may lose the mark; the link
//! does not read a key again that is being read.) An entry whose refresh brought no later deadline keeps the mark.

use super::entry::REFRESHED;
use super::{Hit, Partition};
use crate::clock::Time;
use std::hash::BuildHasher;
use std::sync::atomic::Ordering;

/// The point is earlier by up to this part of the time until it.
const JITTER: f64 = 0.1;

// === impl Partition (refresh ahead) ===

impl Partition {
    /// True, once for an entry, if its life is over by more than `part`, 0 for never and less than 1.
    pub fn takes_refresh(&self, hit: &Hit, part: f64, now: Time) -> bool {
        let header = hit.entry.header();
        if part <= 0.0 || header.deadline == Time::MAX || hit.is_soft() {
            return false;
        }
        let life = header.deadline.saturating_since(header.filled_at);
        let seed = (hit.entry.key(), header.filled_at.as_micros());
        let hash = foldhash::fast::FixedState::default().hash_one(seed);
        let jitter = JITTER * (hash >> 40) as f64 / f64::from(1 << 24);
        let lived = now.saturating_since(header.filled_at);
        lived >= life.mul_f64(part * (1.0 - jitter))
            && now < header.deadline
            && hit.entry.hits().fetch_or(REFRESHED, Ordering::Relaxed) & REFRESHED == 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::store;
    use super::super::{Cause, FillKind, Variant};
    use super::*;
    use larder_protocol::table::Table;

    #[test]
    fn the_point_comes_once_and_again_only_with_a_later_deadline() {
        let l1 = store(1 << 20);
        let (partition, mut filler) = l1.partition();
        let get = Variant::bare(Table::builtin().lookup(b"get").map(|command| command.id).unwrap());
        let at = Time::from_micros;
        let hit = |now| partition.read(b"k", get, || at(now)).unwrap();
        filler.fill(b"k", get, b"_\r\n", at(1_000), at(0));
        assert!(!partition.takes_refresh(&hit(719), 0.8, at(719)), "the jitter is a tenth at most");
        assert!(!partition.takes_refresh(&hit(900), 0.0, at(900)), "off");
        assert!(partition.takes_refresh(&hit(800), 0.8, at(800)));
        assert!(!partition.takes_refresh(&hit(900), 0.8, at(900)), "once");
        // A refresh that brings the same deadline is the last; one that brings a later one begins a new life.
        filler.fill_as(FillKind::Refresh, b"k", get, b"_\r\n", at(1_000), at(900));
        assert!(!partition.takes_refresh(&hit(999), 0.8, at(999)));
        filler.fill_as(FillKind::Refresh, b"k", get, b"_\r\n", at(2_000), at(999));
        assert_eq!(partition.facts(b"k").unwrap().deadline, Some(at(2_000)));
        assert!(!partition.takes_refresh(&hit(1_100), 0.8, at(1_100)));
        assert!(partition.takes_refresh(&hit(1_900), 0.8, at(1_900)));
        filler.remove(b"k", Cause::Manual, at(1_901));
        filler.fill(b"k", get, b"_\r\n", Time::MAX, at(1_901));
        assert!(!partition.takes_refresh(&hit(5_000), 0.8, at(5_000)), "it has no deadline");
    }

    #[test]
    fn entries_that_were_made_together_have_different_points() {
        let l1 = store(1 << 20);
        let (partition, mut filler) = l1.partition();
        let get = Variant::bare(Table::builtin().lookup(b"get").map(|command| command.id).unwrap());
        let at = Time::from_micros;
        let keys: Vec<String> = (0..100).map(|n| format!("k{n}")).collect();
        for key in &keys {
            filler.fill(key.as_bytes(), get, b"_\r\n", at(1_000_000), at(0));
        }
        let due = |now: u64| {
            let hit = |key: &String| partition.read(key.as_bytes(), get, || at(now)).unwrap();
            keys.iter().filter(|key| partition.takes_refresh(&hit(key), 0.5, at(now))).count()
        };
        let parts = [due(460_000), due(475_000), due(490_000), due(500_000)];
        assert!(parts.iter().all(|part| *part > 5), "{parts:?}");
        assert_eq!(parts.iter().sum::<usize>(), 100);
    }
}
