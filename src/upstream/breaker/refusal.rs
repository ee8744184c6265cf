//! Why a call was refused, and the error text that a client gets for it.

use std::fmt;
use std::time::Duration;

use super::causes::FailureCause;

/// Why the circuit is not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenReason {
    /// Too many calls, or a probe, failed: the most frequent cause since the outage began, and how often it came.
    Failures {
        /// The most frequent cause.
        cause: FailureCause,
        /// How often it came: within the window when the circuit opened, and probes since.
        count: u64,
    },
    /// Too many calls, or probes, were slow.
    SlowCalls {
        /// How many: within the window when the circuit opened, and probes since.
        count: u64,
    },
    /// An operator forced it open.
    Operator,
}

/// A call that the breaker did not admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The circuit is open.
    Open {
        /// Since what.
        reason: OpenReason,
        /// Time until a probe will be admitted; above zero.
        probe_in: Duration,
    },
    /// The circuit is half-open and all its probes are under way.
    Probing {
        /// Why it was open.
        reason: OpenReason,
        /// Time until a probe's place is free again at the latest; above zero.
        slot_in: Duration,
    },
    /// An operator has forced the circuit open; only an operator ends that.
    Forced,
}

/// The text of the error reply for a refused call, without the leading `-` and the line's end.
///
/// `UPSTREAMDOWN upstream 10.0.0.7:6379 unavailable (circuit open after 12 timeouts; next probe in 740 ms)`
#[derive(Clone, Copy, Debug)]
pub struct UpstreamDown<A> {
    /// The upstream's address as the operator knows it; must hold no line's end.
    pub address: A,
    /// What the breaker said.
    pub refusal: Refusal,
}

// === impl OpenReason ===

impl fmt::Display for OpenReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenReason::Failures { cause, count } => write!(f, "{}", cause.counted(*count)),
            OpenReason::SlowCalls { count: 1 } => f.write_str("1 slow call"),
            OpenReason::SlowCalls { count } => write!(f, "{count} slow calls"),
            OpenReason::Operator => f.write_str("an operator's order"),
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// After how long it is worth asking again; `None` if that is up to an operator.
    pub fn retry_in(&self) -> Option<Duration> {
        match self {
            Refusal::Open { probe_in, .. } => Some(*probe_in),
            Refusal::Probing { slot_in, .. } => Some(*slot_in),
            Refusal::Forced => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Open { reason, probe_in } => {
                write!(f, "circuit open after {reason}; next probe in {} ms", ms_up(*probe_in))
            }
            Refusal::Probing { reason, slot_in } => {
                write!(f, "circuit half-open after {reason}; probes under way for at most {} ms", ms_up(*slot_in))
            }
            Refusal::Forced => f.write_str("circuit forced open by an operator"),
        }
    }
}

// === impl UpstreamDown ===

impl<A: fmt::Display> fmt::Display for UpstreamDown<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UPSTREAMDOWN upstream {} unavailable ({})", self.address, self.refusal)
    }
}

/// Milliseconds, rounded up: who waits so long is not refused again.
fn ms_up(wait: Duration) -> u128 {
    wait.as_nanos().div_ceil(1_000_000)
}
