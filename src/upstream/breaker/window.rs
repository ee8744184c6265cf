//! A sliding window over calls: a ring of buckets with running totals.
//!
//! Invariants: the totals are the sum of the buckets; a call recorded at time t is counted for more than
//! `window - window / BUCKETS` and never for longer than `window`. Recording and moving on cost a bounded number
//! of steps whatever the distance in time.

use std::time::Duration;

use super::causes::{CAUSES, FailureCause};
use crate::clock::Time;

/// Into how many buckets a window is cut.
pub(super) const BUCKETS: usize = 32;
const BUCKETS_U64: u64 = BUCKETS as u64;

/// What was counted in a bucket, in a window, or since an outage began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) calls: u64,
    pub(super) slow: u64,
    pub(super) failures: [u64; CAUSES],
}

/// The window.
#[derive(Clone, Debug)]
pub(super) struct Window {
    bucket_us: u64,
    /// Number of the current bucket since the start of the clock; its place in the ring is the remainder.
    head: u64,
    buckets: [Counts; BUCKETS],
    totals: Counts,
}

// === impl Counts ===

impl Counts {
    /// So many failed calls, none of them slow.
    pub(super) fn failed_calls(cause: FailureCause, calls: u64) -> Self {
        let mut counts = Counts { calls, ..Counts::default() };
        counts.failures[cause.index()] = calls;
        counts
    }

    pub(super) fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// The most frequent cause and its count; of two equal ones the first in the order of [`FailureCause::ALL`].
    pub(super) fn dominating(&self) -> Option<(FailureCause, u64)> {
        let counted = FailureCause::ALL.into_iter().map(|cause| (cause, self.failures[cause.index()]));
        counted.filter(|&(_, count)| count > 0).rev().max_by_key(|&(_, count)| count)
    }

    pub(super) fn add(&mut self, more: &Counts) {
        self.calls = self.calls.saturating_add(more.calls);
        self.slow = self.slow.saturating_add(more.slow);
        self.failures.iter_mut().zip(more.failures).for_each(|(sum, n)| *sum = sum.saturating_add(n));
    }

    fn remove(&mut self, gone: &Counts) {
        self.calls = self.calls.saturating_sub(gone.calls);
        self.slow = self.slow.saturating_sub(gone.slow);
        self.failures.iter_mut().zip(gone.failures).for_each(|(sum, n)| *sum = sum.saturating_sub(n));
    }
}

// === impl Window ===

impl Window {
    /// An empty window of this length (at least 32 us; settings are checked for more).
    pub(super) fn new(length: Duration) -> Self {
        let length_us = u64::try_from(length.as_micros()).unwrap_or(u64::MAX);
        let empty = Counts::default();
        Self { bucket_us: (length_us / BUCKETS_U64).max(1), head: 0, buckets: [empty; BUCKETS], totals: empty }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buckets = [Counts::default(); BUCKETS];
        self.totals = Counts::default();
    }

    /// Moves on to `now`, forgetting what is too old. A time before the last one changes nothing.
    pub(super) fn advance(&mut self, now: Time) {
        let number = now.as_micros() / self.bucket_us;
        let steps = number.saturating_sub(self.head).min(BUCKETS_U64);
        for step in 1..=steps {
            let bucket = &mut self.buckets[place(self.head.wrapping_add(step))];
            self.totals.remove(bucket);
            *bucket = Counts::default();
        }
        self.head = self.head.max(number);
    }

    /// Counts into the bucket of the last time moved to.
    pub(super) fn add(&mut self, counts: &Counts) {
        self.buckets[place(self.head)].add(counts);
        self.totals.add(counts);
    }

    /// What the window held when it was last moved.
    pub(super) fn totals(&self) -> &Counts {
        &self.totals
    }

    /// What the window would hold at `now`, without moving it.
    pub(super) fn totals_at(&self, now: Time) -> Counts {
        let number = (now.as_micros() / self.bucket_us).max(self.head);
        let mut totals = Counts::default();
        for age in 0..BUCKETS_U64.min(self.head.saturating_add(1)) {
            let bucket_number = self.head - age;
            if number - bucket_number < BUCKETS_U64 {
                totals.add(&self.buckets[place(bucket_number)]);
            }
        }
        totals
    }
}

/// The place in the ring of the bucket of this number.
fn place(number: u64) -> usize {
    (number % BUCKETS_U64) as usize
}
