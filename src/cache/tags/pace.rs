//! CORE of a long deletion: how many keys the next step deletes, and how long the upstream rests before it. Time is an
//! argument.
//!
//! Whoever asks the upstream while a step runs waits for its end, and no longer, as the next step is asked for only when this one
//! has been answered. So it is the length of a step that others can notice at their 99th percentile, and its share of
//! the time that they can notice at their median. Both are bounded: a step by the number of its keys and of what the index
//! knows of them, the share by rests.
//!
//! Steps follow each other for [`BURST`], then the upstream rests for a quarter of that. More rests do not help others: a step
//! after a rest takes longer, because its part of the server is in no cache of the processor any more (measured: with a rest after
//! every five steps the 99th percentile is higher than with none at all). An upstream that is busy, or far away, answers late; there
//! a burst is a few steps.

use std::time::Duration;

/// Keys that one step deletes at most: well below a tenth of a millisecond of the upstream's time.
pub(super) const STEP_KEYS: usize = 2;
/// Tags and dependencies that a step is to take off its keys at most; where keys have more, steps have fewer keys.
const STEP_TAKEN: u64 = 8;
/// For how long steps follow each other.
const BURST: Duration = Duration::from_millis(4);
/// Shortest and longest rest between two bursts.
const REST_MIN: Duration = Duration::from_millis(1);
const REST_MAX: Duration = Duration::from_millis(100);

/// The pace of one deletion.
#[derive(Debug)]
pub(super) struct Pace {
    keys: usize,
    at_work: Duration,
}

// === impl Pace ===

impl Default for Pace {
    fn default() -> Self {
        Self { keys: STEP_KEYS, at_work: Duration::ZERO }
    }
}

impl Pace {
    /// Keys of the next step.
    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    /// A step was answered after `took`, and has taken so many tags and dependencies off: how long to rest.
    pub(super) fn after_step(&mut self, took: Duration, taken: u64) -> Option<Duration> {
        self.keys = if taken > STEP_TAKEN { (self.keys / 2).max(1) } else { (self.keys * 2).min(STEP_KEYS) };
        self.at_work += took;
        if self.at_work < BURST {
            return None;
        }
        let rest = (self.at_work / 4).clamp(REST_MIN, REST_MAX);
        self.at_work = Duration::ZERO;
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_each_other_for_a_while_and_then_the_upstream_rests() {
        let mut pace = Pace::default();
        let micros = Duration::from_micros;
        assert_eq!(pace.after_step(micros(1900), 0), None);
        assert_eq!(pace.after_step(micros(1900), 0), None);
        assert_eq!(pace.after_step(micros(400), 0), Some(micros(1050)));
        // Who answers late rests after each step, but not for ever.
        assert_eq!(pace.after_step(micros(8000), 0), Some(micros(2000)));
        assert_eq!(pace.after_step(Duration::from_secs(9), 0), Some(REST_MAX));
        assert_eq!(pace.after_step(micros(3999), 0), None);
    }

    #[test]
    fn keys_with_many_tags_go_a_few_at_a_time() {
        let mut pace = Pace::default();
        let keys: Vec<usize> = [8, 9, 500, 8, 2]
            .map(|taken| {
                pace.after_step(Duration::ZERO, taken);
                pace.keys()
            })
            .into();
        assert_eq!(keys, [2, 1, 1, 2, 2]);
    }
}
