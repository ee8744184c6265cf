//! Time as a plain number, and the one place that reads the clock.
//!
//! The cores (session, link, breaker, cache) take the time as an argument, so that a simulation can run hours in
//! a millisecond and repeat them exactly. [`Time`] is what they take; [`Clock`] is what a shell asks for it.
//!
//! Invariants: a [`Time`] never lies before the clock's start; arithmetic saturates and never wraps or panics.
//! Precision is one microsecond, rounded down. Monotonic: setting the wall clock changes nothing here.

use std::time::{Duration, Instant};

/// A point in time: microseconds since the process's clock was started. 64 bits hold more than 500,000 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

/// The monotonic clock of the process; the only reader of [`Instant::now`].
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Instant,
}

// === impl Time ===

impl Time {
    /// The start of the clock.
    pub const ZERO: Time = Time(0);
    /// The end of time: what additions saturate at.
    pub const MAX: Time = Time(u64::MAX);

    /// The point this many microseconds after the start of the clock.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the start of the clock.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// This point plus `wait` (rounded down to microseconds), or `None` past [`Time::MAX`].
    pub fn checked_add(self, wait: Duration) -> Option<Time> {
        let micros = u64::try_from(wait.as_micros()).ok()?;
        self.0.checked_add(micros).map(Time)
    }

    /// This point plus `wait` (rounded down to microseconds), at most [`Time::MAX`].
    #[must_use]
    pub fn saturating_add(self, wait: Duration) -> Time {
        self.checked_add(wait).unwrap_or(Time::MAX)
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    pub fn saturating_since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

// === impl Clock ===

impl Clock {
    /// Starts the clock: this moment is [`Time::ZERO`].
    pub fn start() -> Self {
        Self { base: Instant::now() }
    }

    /// The time now.
    pub fn now(&self) -> Time {
        Time::ZERO.saturating_add(self.base.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_and_subtracts() {
        let noon = Time::from_micros(1_000);
        assert_eq!(noon.saturating_add(Duration::from_millis(2)), Time::from_micros(3_000));
        assert_eq!(noon.saturating_since(Time::from_micros(400)), Duration::from_micros(600));
        assert_eq!(noon.saturating_since(Time::from_micros(1_001)), Duration::ZERO);
        assert_eq!(noon.saturating_add(Duration::from_nanos(1_999)), Time::from_micros(1_001));
    }

    #[test]
    fn saturates_at_the_end() {
        let late = Time::from_micros(u64::MAX - 1);
        assert_eq!(late.checked_add(Duration::from_micros(1)), Some(Time::MAX));
        assert_eq!(late.checked_add(Duration::from_micros(2)), None);
        assert_eq!(Time::ZERO.checked_add(Duration::MAX), None);
        assert_eq!(late.saturating_add(Duration::MAX), Time::MAX);
    }

    #[test]
    fn the_clock_does_not_go_back() {
        let clock = Clock::start();
        let first = clock.now();
        assert!(clock.now() >= first);
    }
}
