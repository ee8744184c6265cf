//! How long to wait before the next connect attempt: back-off with decorrelated jitter.
//!
//! Each wait is drawn evenly from `wait_min ..= 3 * previous wait`, cut at `wait_max`. On average the waits grow
//! by half each time, and proxies that lost the same upstream at the same moment soon ask at different moments.
//!
//! A connection counts as a success only after it has lived for `stable_min`: an upstream that accepts and closes
//! at once must not be asked again at the shortest wait for ever.
//!
//! Core: no clock, no randomness of its own; the seed is an argument. Invariant: every wait lies in
//! `wait_min ..= wait_max`. Nothing here can fail.

use std::time::Duration;

/// The shortest wait that can be configured: a wait of zero would make a failed upstream a busy loop.
pub const WAIT_FLOOR: Duration = Duration::from_millis(1);

/// How many times the previous wait the next one may be.
const GROWTH_MAX: u32 = 3;

/// The bounds of a [`Backoff`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffSettings {
    /// The shortest wait; raised to [`WAIT_FLOOR`] if it is less.
    pub wait_min: Duration,
    /// The longest wait; raised to `wait_min` if it is less.
    pub wait_max: Duration,
    /// How long a connection must have lived to count as a success.
    pub stable_min: Duration,
}

/// The waits between the connect attempts of one link.
#[derive(Clone, Debug)]
pub struct Backoff {
    settings: BackoffSettings,
    jitter: Jitter,
    previous: Duration,
    attempts: u32,
}

/// A small seeded source of jitter (SplitMix64); not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Jitter(u64);

// === impl BackoffSettings ===

impl Default for BackoffSettings {
    /// 50 ms to 5 s; stable after 10 s.
    fn default() -> Self {
        Self {
            wait_min: Duration::from_millis(50),
            wait_max: Duration::from_secs(5),
            stable_min: Duration::from_secs(10),
        }
    }
}

// === impl Backoff ===

impl Backoff {
    /// Changes the bounds, from the next wait on.
    pub fn reconfigure(&mut self, settings: BackoffSettings) {
        self.settings = settings;
    }

    /// A back-off before its first wait. Links that share an upstream should have different seeds.
    pub fn new(settings: BackoffSettings, seed: u64) -> Self {
        let wait_min = settings.wait_min.max(WAIT_FLOOR);
        let settings = BackoffSettings { wait_min, wait_max: settings.wait_max.max(wait_min), ..settings };
        Self { settings, jitter: Jitter::new(seed), previous: wait_min, attempts: 0 }
    }

    /// The wait before the next attempt. `lived` is how long the connection that has just ended had lived, zero if
    /// it was never made; from `stable_min` on the waits begin anew.
    pub fn next_wait(&mut self, lived: Duration) -> Duration {
        if !lived.is_zero() && lived >= self.settings.stable_min {
            self.previous = self.settings.wait_min;
            self.attempts = 0;
        }
        let high = self.previous.saturating_mul(GROWTH_MAX).min(self.settings.wait_max);
        self.previous = self.jitter.between(self.settings.wait_min, high);
        self.attempts = self.attempts.saturating_add(1);
        self.previous
    }

    /// Waits handed out since the last stable connection.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

// === impl Jitter ===

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 evenly distributed bits.
    pub(crate) fn next_bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A duration in `low ..= high`, in steps of a nanosecond; `low` if the range is empty.
    ///
    /// The bias of the remainder is below one part in a thousand million for any range up to a few seconds.
    pub(crate) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_nanos()).unwrap_or(u64::MAX);
        let offset = match span.checked_add(1) {
            Some(choices) => self.next_bits() % choices,
            None => self.next_bits(),
        };
        low.saturating_add(Duration::from_nanos(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: BackoffSettings = BackoffSettings {
        wait_min: Duration::from_millis(50),
        wait_max: Duration::from_secs(5),
        stable_min: Duration::from_secs(10),
    };

    #[test]
    fn waits_stay_within_bounds() {
        for seed in 0..500 {
            let mut backoff = Backoff::new(SETTINGS, seed);
            let mut previous = SETTINGS.wait_min;
            for step in 0..200 {
                let wait = backoff.next_wait(Duration::ZERO);
                assert!(wait >= SETTINGS.wait_min && wait <= SETTINGS.wait_max, "seed {seed} step {step}: {wait:?}");
                assert!(wait <= previous * GROWTH_MAX, "seed {seed} step {step}: {wait:?} after {previous:?}");
                previous = wait;
            }
            assert_eq!(backoff.attempts(), 200);
        }
    }

    #[test]
    fn waits_grow_and_differ() {
        let late = |seed| {
            let mut backoff = Backoff::new(SETTINGS, seed);
            (0..30).map(|_| backoff.next_wait(Duration::ZERO)).last().unwrap_or_default()
        };
        let total: Duration = (0..200).map(late).sum();
        assert!(total / 200 > Duration::from_secs(1), "mean {:?}", total / 200);
        assert_ne!(late(1), late(2));
        assert_eq!(late(1), late(1));
    }

    #[test]
    fn only_a_stable_connection_resets() {
        let mut backoff = Backoff::new(SETTINGS, 7);
        for _ in 0..20 {
            backoff.next_wait(Duration::ZERO);
        }
        backoff.next_wait(SETTINGS.stable_min - Duration::from_millis(1));
        assert_eq!(backoff.attempts(), 21);
        let wait = backoff.next_wait(SETTINGS.stable_min);
        assert_eq!(backoff.attempts(), 1);
        assert!(wait <= SETTINGS.wait_min * GROWTH_MAX);
    }

    #[test]
    fn an_attempt_that_never_connected_is_never_stable() {
        let mut backoff = Backoff::new(BackoffSettings { stable_min: Duration::ZERO, ..SETTINGS }, 7);
        backoff.next_wait(Duration::ZERO);
        backoff.next_wait(Duration::ZERO);
        assert_eq!(backoff.attempts(), 2);
    }

    #[test]
    fn bad_bounds_are_raised() {
        let zero = BackoffSettings { wait_min: Duration::ZERO, wait_max: Duration::ZERO, ..SETTINGS };
        let mut backoff = Backoff::new(zero, 3);
        assert_eq!(backoff.next_wait(Duration::ZERO), WAIT_FLOOR);
        assert_eq!(backoff.next_wait(Duration::ZERO), WAIT_FLOOR);
        let endless = BackoffSettings { wait_max: Duration::MAX, ..SETTINGS };
        let mut backoff = Backoff::new(endless, 3);
        (0..2_000).for_each(|_| assert!(backoff.next_wait(Duration::ZERO) >= SETTINGS.wait_min));
    }
}
