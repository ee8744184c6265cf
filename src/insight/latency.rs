//! How long clients wait: HDR histograms of hits, misses and writes, one set a worker.
//!
//! Times are microseconds, up to [`MICROS_MAX`] (longer ones count as that), to two significant digits: the relative error of a
//! percentile is below 1%. A histogram is recorded into by its worker, once a batch, and read by whoever adds them up.

use hdrhistogram::Histogram;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Longest time that is told apart, in microseconds: ten minutes.
pub const MICROS_MAX: u64 = 600_000_000;
/// Significant digits.
const DIGITS: u8 = 2;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// A read that L1 answered: from the moment at which the bytes with it were read to that at which its answer was written.
    Hit,
    /// A read that the upstream answered: from the same moment to that at which its reply was ready to be written.
    Miss,
    /// A write, likewise.
    Write,
}

/// The histograms of one worker.
#[derive(Debug)]
pub struct Latencies(Mutex<[Histogram<u64>; 3]>);

/// What is shown of a histogram, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// How many were measured.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Percentiles 50, 95, 99 and 99.9.
    pub percentiles: [u64; 4],
}

// === impl Timed ===

impl Timed {
    /// All that is measured.
    pub const ALL: [Self; 3] = [Self::Hit, Self::Miss, Self::Write];
    /// The percentiles of a [`Summary`].
    pub const PERCENTILES: [(&'static str, f64); 4] = [("p50", 50.0), ("p95", 95.0), ("p99", 99.0), ("p99_9", 99.9)];

    /// Its name in figures.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Write => "write",
        }
    }
}

// === impl Latencies ===

impl Latencies {
    /// `count` of them have taken so long.
    pub fn record(&self, what: Timed, micros: u64, count: u64) {
        self.lock()[what as usize].saturating_record_n(micros, count);
    }

    /// Several, each with its time.
    pub fn record_all(&self, times: impl Iterator<Item = (Timed, u64)>) {
        let mut histograms = self.lock();
        for (what, micros) in times {
            histograms[what as usize].saturating_record(micros);
        }
    }

    /// Adds to `sum` what was measured of one thing.
    pub fn add_to(&self, what: Timed, sum: &mut Histogram<u64>) {
        // Both have the same bounds, so that nothing can be out of them.
        let _ = sum.add(&self.lock()[what as usize]);
    }

    /// Begins anew.
    pub fn reset(&self) {
        self.lock().iter_mut().for_each(Histogram::reset);
    }

    fn lock(&self) -> MutexGuard<'_, [Histogram<u64>; 3]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self(Mutex::new([histogram(), histogram(), histogram()]))
    }
}

/// An empty histogram with the bounds of all.
#[expect(
    clippy::expect_used,
    reason = "the bounds are constants that the crate takes: a low of 1, a high of at least 2, 0 to 5 digits"
)]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MICROS_MAX, DIGITS).expect("constant bounds")
}

/// What is shown of a histogram.
pub fn summary(of: &Histogram<u64>) -> Summary {
    if of.is_empty() {
        return Summary::default();
    }
    let percentiles = Timed::PERCENTILES.map(|(_, p)| of.value_at_percentile(p));
    Summary { count: of.len(), mean: of.mean(), percentiles }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_workers_to_one_percent() {
        let (a, b) = (Latencies::default(), Latencies::default());
        (1..=1000).for_each(|micros| a.record(Timed::Hit, micros, 1));
        b.record(Timed::Hit, 5000, 999);
        b.record_all([(Timed::Miss, 7), (Timed::Hit, u64::MAX)].into_iter());
        let mut sum = histogram();
        a.add_to(Timed::Hit, &mut sum);
        b.add_to(Timed::Hit, &mut sum);
        let shown = summary(&sum);
        assert_eq!(shown.count, 2000);
        for (shown, exact) in shown.percentiles.iter().zip([1000.0, 5000.0, 5000.0, 5000.0]) {
            assert!((*shown as f64 / exact - 1.0).abs() < 0.01, "{shown} and {exact}");
        }
        assert!(sum.max() >= MICROS_MAX);
        a.reset();
        let mut sum = histogram();
        a.add_to(Timed::Hit, &mut sum);
        assert_eq!(summary(&sum), Summary::default());
    }
}
