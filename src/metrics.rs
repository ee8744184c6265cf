//! Counters: what was answered from where, and why L1 was passed by.
//!
//! Each worker thread has counters of its own, written only by it (a load and a store, no locked instruction) and read
//! by whoever sums them up. A sum is therefore never torn, but may miss the last few operations of other threads.

use crate::insight::latency::{Latencies, Timed, histogram};
use crate::insight::{Insight, Watcher};
use hdrhistogram::Histogram;
use larder_protocol::table::Bypass;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A counter that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// Why a read did not look in L1, or its reply was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// What the command table says of the command.
    Table(Bypass),
    /// The client has an unanswered write: its reads follow it down the link.
    UnansweredWrite,
    /// The link is not there, or the upstream has no tracking.
    NotTracked,
    /// The reply is known to be larger than an entry may be.
    TooBig,
    /// Within WATCH, MULTI, client-side tracking: on a connection of its own.
    Exclusive,
    /// The client has asked for it with `CACHE READ`.
    ReadMode,
}

/// The counters of one worker thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests of clients.
    pub commands: Counter,
    /// Reads (for MGET and EXISTS: keys) answered from L1.
    pub hits: Counter,
    /// Reads that looked in L1 and did not find.
    pub misses: Counter,
    /// Reads (for MGET and EXISTS: keys) answered with what was left behind when the feed was lost.
    pub stale: Counter,
    /// Reads (for MGET and EXISTS: keys) answered with what was softly invalidated.
    pub soft: Counter,
    /// Reads that the upstream answered with something.
    pub l2_hits: Counter,
    /// Reads that the upstream answered with null.
    pub l2_misses: Counter,
    /// Writes that went through.
    pub writes: Counter,
    /// Requests that borrowed a connection.
    pub exclusive: Counter,
    /// Hits that were read again because their key changed before their turn came.
    pub redone: Counter,
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections refused at the limit.
    pub refused: Counter,
    /// Clients closed because they left more unread than the hard limit.
    pub closed_output_hard: Counter,
    /// Clients closed because they left more unread than the soft limit for too long.
    pub closed_output_soft: Counter,
    /// Clients closed because they were silent for too long.
    pub closed_idle: Counter,
    /// Clients closed because what they sent was no request, or beyond a limit of requests.
    pub closed_protocol: Counter,
    /// How long clients waited.
    pub latencies: Latencies,
    /// What is seen of the keys.
    pub watcher: Watcher,
    passed: [Counter; Bypass::ALL.len() + 5],
}

/// All workers' counters.
#[derive(Debug, Default)]
pub struct Metrics {
    workers: Mutex<Vec<Arc<Counters>>>,
}

/// The seed of the first worker's samples; the others' are multiples.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

// === impl Counter ===

impl Counter {
    /// Adds; only the owning thread may.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets a number that is no count; only the owning thread may.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The count.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Passed ===

impl Passed {
    /// Every reason.
    pub fn all() -> impl Iterator<Item = Self> {
        let own = [Self::UnansweredWrite, Self::NotTracked, Self::TooBig, Self::Exclusive, Self::ReadMode];
        Bypass::ALL.into_iter().map(Self::Table).chain(own)
    }

    /// The reason in snake case.
    pub fn label(self) -> &'static str {
        match self {
            Self::Table(bypass) => bypass.label(),
            Self::UnansweredWrite => "unanswered_write",
            Self::NotTracked => "not_tracked",
            Self::TooBig => "too_big",
            Self::Exclusive => "exclusive",
            Self::ReadMode => "read_mode",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Table(bypass) => Bypass::ALL.iter().position(|b| *b == bypass).unwrap_or(0),
            Self::UnansweredWrite => Bypass::ALL.len(),
            Self::NotTracked => Bypass::ALL.len() + 1,
            Self::TooBig => Bypass::ALL.len() + 2,
            Self::Exclusive => Bypass::ALL.len() + 3,
            Self::ReadMode => Bypass::ALL.len() + 4,
        }
    }
}

// === impl Counters ===

impl Counters {
    /// Counts a read that passed L1 by.
    pub fn pass(&self, reason: Passed) {
        self.passed[reason.index()].add(1);
    }
}

// === impl Metrics ===

impl Metrics {
    /// Counters for a worker thread, whose samples go to `insight`.
    pub fn worker(&self, insight: &Arc<Insight>) -> Arc<Counters> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let seed = SEED.wrapping_mul(workers.len() as u64 + 1);
        let counters = Counters { watcher: Watcher::new(insight.clone(), seed), ..Counters::default() };
        let counters = Arc::new(counters);
        workers.push(counters.clone());
        counters
    }

    /// What all workers have measured of one thing.
    pub fn latencies(&self, what: Timed) -> Histogram<u64> {
        let mut sum = histogram();
        for worker in self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            worker.latencies.add_to(what, &mut sum);
        }
        sum
    }

    /// Lets the histograms begin anew.
    pub fn reset_latencies(&self) {
        for worker in self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            worker.latencies.reset();
        }
    }

    /// The sum of one counter over all workers.
    pub fn sum(&self, of: impl Fn(&Counters) -> &Counter) -> u64 {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.iter().map(|w| of(w).value()).sum()
    }

    /// How many reads passed L1 by for `reason`.
    pub fn passed(&self, reason: Passed) -> u64 {
        self.sum(|c| &c.passed[reason.index()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_of_its_own() {
        let metrics = Metrics::default();
        let insight = Insight::new(0);
        let (a, b) = (metrics.worker(&insight), metrics.worker(&insight));
        for reason in Passed::all() {
            a.pass(reason);
            b.pass(reason);
        }
        a.pass(Passed::TooBig);
        for reason in Passed::all() {
            assert_eq!(metrics.passed(reason), if reason == Passed::TooBig { 3 } else { 2 }, "{}", reason.label());
        }
        let mut labels: Vec<_> = Passed::all().map(Passed::label).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Passed::all().count());
    }
}
