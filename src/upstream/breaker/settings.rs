//! What can be set on a breaker: checked once, so that the breaker itself cannot be handed nonsense.

use std::time::Duration;

/// The shortest window: one microsecond a bucket would be absurd, ten milliseconds is short enough for any test.
pub const WINDOW_MIN: Duration = Duration::from_millis(10);
/// The longest window: a day.
pub const WINDOW_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest time for which a circuit can be configured to stay open.
pub const OPEN_FLOOR: Duration = Duration::from_millis(1);
/// The longest time for which a circuit can be configured to stay open: a day.
pub const OPEN_CEILING: Duration = Duration::from_secs(24 * 60 * 60);
/// The most probes that can be configured; they are looked through one by one.
pub const PROBES_LIMIT: u32 = 64;

/// The settings of one breaker as they are written in a configuration; [`BreakerSettings::checked`] makes them usable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerSettings {
    /// How long a call is remembered; [`WINDOW_MIN`] to [`WINDOW_MAX`]. A call is forgotten at most one
    /// thirty-second of this early.
    pub window: Duration,
    /// With fewer calls than this in the window the circuit does not open; at least 1.
    pub calls_min: u32,
    /// The circuit opens when a larger share of the calls than this fails; 0 to 1, at 1 it never opens for this.
    pub failure_rate_max: f64,
    /// A call that takes this long or longer is slow, whether it fails or not.
    pub slow: Duration,
    /// The circuit opens when a larger share of the calls than this is slow; 0 to 1, at 1 it never opens for this.
    pub slow_rate_max: f64,
    /// The shortest time for which the circuit stays open; at least [`OPEN_FLOOR`].
    pub open_min: Duration,
    /// The longest time for which the circuit stays open, reached by doubling; at most [`OPEN_CEILING`].
    pub open_max: Duration,
    /// How long the circuit must have been closed for its next opening to start from `open_min` again.
    pub stable_min: Duration,
    /// How many probes may be under way at a time, and how many must be answered to close the circuit; 1 to
    /// [`PROBES_LIMIT`].
    pub probes_max: u32,
    /// A probe of which nothing was heard for so long gives its place to another; above zero.
    pub probe_wait_max: Duration,
}

/// Settings that a [`Breaker`](super::Breaker) can work with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CheckedSettings(BreakerSettings);

/// Why a [`BreakerSettings`] cannot be used. The text names the field.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// `window` outside [`WINDOW_MIN`] to [`WINDOW_MAX`].
    #[error("window must be from {WINDOW_MIN:?} to {WINDOW_MAX:?}, is {0:?}")]
    Window(Duration),
    /// `calls_min` is zero.
    #[error("calls_min must be at least 1")]
    CallsMin,
    /// `failure_rate_max` is no share.
    #[error("failure_rate_max must be from 0 to 1, is {0}")]
    FailureRate(f64),
    /// `slow_rate_max` is no share.
    #[error("slow_rate_max must be from 0 to 1, is {0}")]
    SlowRate(f64),
    /// `open_min` and `open_max` are out of order or out of bounds.
    #[error("open_min ({min:?}) and open_max ({max:?}) must be in order and from {OPEN_FLOOR:?} to {OPEN_CEILING:?}")]
    Open {
        /// `open_min` as given.
        min: Duration,
        /// `open_max` as given.
        max: Duration,
    },
    /// `probes_max` outside 1 to [`PROBES_LIMIT`].
    #[error("probes_max must be from 1 to {PROBES_LIMIT}, is {0}")]
    ProbesMax(u32),
    /// `probe_wait_max` is below a microsecond.
    #[error("probe_wait_max must be at least a microsecond")]
    ProbeWait,
}

/// Whether a call took long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Faster than `slow`.
    Fast,
    /// As slow as `slow`, or slower.
    Slow,
}

// === impl BreakerSettings ===

impl Default for BreakerSettings {
    /// Opens when more than half of at least 20 calls within 10 s fail, or more than four in five take a second.
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            calls_min: 20,
            failure_rate_max: 0.5,
            slow: Duration::from_secs(1),
            slow_rate_max: 0.8,
            open_min: Duration::from_millis(500),
            open_max: Duration::from_secs(30),
            stable_min: Duration::from_secs(30),
            probes_max: 3,
            probe_wait_max: Duration::from_secs(5),
        }
    }
}

impl BreakerSettings {
    /// The settings, if they are usable.
    ///
    /// # Errors
    /// [`SettingsError`] for the first field that is out of bounds.
    pub fn checked(self) -> Result<CheckedSettings, SettingsError> {
        let share = |rate: f64| (0.0..=1.0).contains(&rate);
        if self.window < WINDOW_MIN || self.window > WINDOW_MAX {
            return Err(SettingsError::Window(self.window));
        }
        if self.calls_min == 0 {
            return Err(SettingsError::CallsMin);
        }
        if !share(self.failure_rate_max) {
            return Err(SettingsError::FailureRate(self.failure_rate_max));
        }
        if !share(self.slow_rate_max) {
            return Err(SettingsError::SlowRate(self.slow_rate_max));
        }
        if self.open_min < OPEN_FLOOR || self.open_min > self.open_max || self.open_max > OPEN_CEILING {
            return Err(SettingsError::Open { min: self.open_min, max: self.open_max });
        }
        if self.probes_max == 0 || self.probes_max > PROBES_LIMIT {
            return Err(SettingsError::ProbesMax(self.probes_max));
        }
        if self.probe_wait_max < Duration::from_micros(1) {
            return Err(SettingsError::ProbeWait);
        }
        Ok(CheckedSettings(self))
    }
}

// === impl CheckedSettings ===

impl CheckedSettings {
    /// The values.
    pub fn values(&self) -> &BreakerSettings {
        &self.0
    }

    /// Whether a call of this latency is slow. Callers that record in bulk sort their calls with it.
    pub fn pace(&self, latency: Duration) -> Pace {
        if latency >= self.0.slow { Pace::Slow } else { Pace::Fast }
    }
}

impl Default for CheckedSettings {
    /// [`BreakerSettings::default`], which a test checks.
    fn default() -> Self {
        Self(BreakerSettings::default())
    }
}
