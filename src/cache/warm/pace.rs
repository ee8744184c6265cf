//! CORE of warming: when the next keys may be read, and when the next round of a schedule begins. Time is an argument.

use crate::clock::Time;
use std::time::Duration;

/// Spreads keys over time. In any span of time, no more begin than its share of `per_second` and one batch.
#[derive(Debug, Default)]
pub(super) struct Pace {
    free_at: Time,
}

/// When the rounds of a schedule are due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timetable {
    every: Duration,
    due: Time,
}

// === impl Pace ===

impl Pace {
    /// Takes the next places for so many keys: how long to wait for them.
    pub(super) fn take(&mut self, keys: usize, per_second: usize, now: Time) -> Duration {
        let begin = self.free_at.max(now);
        let micros = (keys as u64).saturating_mul(1_000_000) / per_second.max(1) as u64;
        self.free_at = begin.saturating_add(Duration::from_micros(micros));
        begin.saturating_since(now)
    }
}

// === impl Timetable ===

impl Timetable {
    /// The first round is due now; `every` is more than a microsecond.
    pub(super) fn new(every: Duration, now: Time) -> Self {
        Self { every, due: now }
    }

    /// A round has ended: how many were due while it ran, which are left out, and how long until the next.
    pub(super) fn after_round(&mut self, now: Time) -> (u64, Duration) {
        let rounds = (now.saturating_since(self.due).as_micros() / self.every.as_micros().max(1)) as u64;
        let forward = self.every.as_micros().saturating_mul(u128::from(rounds) + 1);
        self.due = self.due.saturating_add(Duration::from_micros(u64::try_from(forward).unwrap_or(u64::MAX)));
        (rounds, self.due.saturating_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1000)
    }

    #[test]
    fn keys_are_spread_over_time_whoever_asks() {
        let mut pace = Pace::default();
        let ms = Duration::from_millis;
        assert_eq!(pace.take(10, 100, at(1000)), ms(0));
        assert_eq!(pace.take(10, 100, at(1000)), ms(100));
        assert_eq!(pace.take(1, 100, at(1050)), ms(150));
        // What was not used is not saved up.
        assert_eq!(pace.take(50, 100, at(9000)), ms(0));
        assert_eq!(pace.take(1, 100, at(9000)), ms(500));
    }

    #[test]
    fn rounds_that_are_due_meanwhile_are_left_out() {
        let mut timetable = Timetable::new(Duration::from_secs(1), at(500));
        assert_eq!(timetable.after_round(at(700)), (0, Duration::from_millis(800)));
        // Due at 1500; it took until 4600, when those of 2500, 3500 and 4500 were due.
        assert_eq!(timetable.after_round(at(4600)), (3, Duration::from_millis(900)));
        // One that ends as the next is due leaves that one out: it cannot have begun yet.
        assert_eq!(timetable.after_round(at(6500)), (1, Duration::from_millis(1000)));
    }
}
