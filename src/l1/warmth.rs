//! What warming asks a partition: whether a read would be answered, and which keys are worth keeping over a restart.

use super::{HIT, Partition, Variant};
use crate::clock::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;

// === impl Partition (warmth) ===

impl Partition {
    /// True if a read would be answered at `now`. It does not count as a hit.
    pub fn would_answer(&self, key: &[u8], variant: Variant<'_>, now: Time) -> bool {
        let entry = self.peek(key);
        entry.is_some_and(|entry| entry.header().deadline > now && entry.variant(variant).is_some())
    }

    /// Keys of the `max` entries that were hit most, with their hits, in no order. Looks at the whole store: not for a
    /// task that others wait for.
    pub fn hottest(&self, max: usize) -> Vec<(u32, Vec<u8>)> {
        let id = self.id.load(Ordering::Acquire);
        let mut hottest = BinaryHeap::new();
        for slot in self.l1.store.iter().filter(|slot| slot.header().partition == id) {
            hottest.push(Reverse((slot.hits().load(Ordering::Relaxed) / HIT, slot.key().to_vec())));
            if hottest.len() > max {
                hottest.pop();
            }
        }
        hottest.into_iter().map(|Reverse(hit)| hit).collect()
    }
}
