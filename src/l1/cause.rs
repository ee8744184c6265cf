//! Why entries leave L1, counted.
//!
//! Whoever removes names the cause; that an entry was past its deadline when it was removed, or replaced, is seen here
//! and counts as its end by time, whatever else came along.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why an entry left L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its deadline had passed.
    TtlExpired,
    /// An operator named its key, or everything.
    Manual,
    /// Its key was written to, or the upstream said so.
    DataChanged,
    /// Others needed its place.
    CapacityLimit,
    /// An operator named a pattern that its key matches.
    PatternBased,
    /// An operator named a tag that its key had.
    TagBased,
    /// The link was lost: what is changed from now on would not be heard of.
    FeedLost,
    /// As `FeedLost`, where so many calls had failed by then that the breaker's circuit was open.
    ErrorThreshold,
}

/// How often entries left for each cause. Any thread may count.
#[derive(Debug, Default)]
pub(super) struct Causes([AtomicU64; Cause::ALL.len()]);

// === impl Cause ===

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 8] = [
        Self::TtlExpired,
        Self::Manual,
        Self::DataChanged,
        Self::CapacityLimit,
        Self::PatternBased,
        Self::TagBased,
        Self::FeedLost,
        Self::ErrorThreshold,
    ];

    /// The cause in snake case.
    pub fn label(self) -> &'static str {
        match self {
            Self::TtlExpired => "ttl_expired",
            Self::Manual => "manual",
            Self::DataChanged => "data_changed",
            Self::CapacityLimit => "capacity_limit",
            Self::PatternBased => "pattern_based",
            Self::TagBased => "tag_based",
            Self::FeedLost => "feed_lost",
            Self::ErrorThreshold => "error_threshold",
        }
    }
}

// === impl Causes ===

impl Causes {
    pub(super) fn add(&self, cause: Cause, count: u64) {
        self.0[cause as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn count(&self, cause: Cause) -> u64 {
        self.0[cause as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_a_counter_and_a_name_of_its_own() {
        let causes = Causes::default();
        for (i, cause) in Cause::ALL.into_iter().enumerate() {
            causes.add(cause, i as u64 + 1);
        }
        for (i, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(causes.count(cause), i as u64 + 1, "{}", cause.label());
        }
        let mut labels: Vec<_> = Cause::ALL.map(Cause::label).to_vec();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Cause::ALL.len());
    }
}
