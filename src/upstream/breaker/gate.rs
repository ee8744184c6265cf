//! The breaker's closed state, readable by every thread without a lock, and the tickets that calls carry.
//!
//! A closed circuit costs a call one relaxed load of one word. The word holds the epoch and whether calls pass; only
//! the breaker writes it. A thread that reads it just before the circuit opens lets one more call through: harmless,
//! as the call's ticket then belongs to an old epoch and its result is ignored. Nothing else is read under the
//! protection of this word, so relaxed order is enough.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

/// A period between two changes of state. Results of calls that were admitted in another epoch are not counted.
///
/// It wraps around after 2^32 changes of state; a call would have to be under way that long to be confounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(u32);

/// Names one probe within its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ProbeId(NonZeroU32);

/// Under what an admitted call stands; handed back with its result.
///
/// Plain calls of one epoch hold equal tickets, so that results can be recorded in bulk. A probe's ticket is its own,
/// and recording it twice does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a call's result is recorded with its ticket"]
pub struct Ticket {
    pub(super) epoch: Epoch,
    pub(super) probe: Option<ProbeId>,
}

/// What every thread may ask of a breaker without taking its lock.
#[derive(Debug)]
pub struct BreakerGate {
    /// The epoch in the upper bits, [`PASSES`] in the lowest.
    word: AtomicU64,
}

const PASSES: u64 = 1;

// === impl BreakerGate ===

impl BreakerGate {
    pub(super) fn closed(epoch: Epoch) -> Self {
        Self { word: AtomicU64::new(u64::from(epoch.0) << 1 | PASSES) }
    }

    /// Whether calls pass: the circuit is closed, by itself or by force.
    pub fn is_closed(&self) -> bool {
        self.word.load(Ordering::Relaxed) & PASSES == PASSES
    }

    /// Admits a call if the circuit is closed; with `None` the breaker itself must be asked.
    pub fn admit(&self) -> Option<Ticket> {
        let word = self.word.load(Ordering::Relaxed);
        let epoch = Epoch((word >> 1) as u32);
        (word & PASSES == PASSES).then_some(Ticket { epoch, probe: None })
    }

    pub(super) fn close(&self, epoch: Epoch) {
        self.word.store(u64::from(epoch.0) << 1 | PASSES, Ordering::Relaxed);
    }

    pub(super) fn bar(&self, epoch: Epoch) {
        self.word.store(u64::from(epoch.0) << 1, Ordering::Relaxed);
    }
}

// === impl Epoch ===

impl Epoch {
    pub(super) const FIRST: Epoch = Epoch(0);

    pub(super) fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

// === impl ProbeId ===

impl ProbeId {
    pub(super) const FIRST: ProbeId = ProbeId(NonZeroU32::MIN);

    pub(super) fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(NonZeroU32::MIN))
    }
}

// === impl Ticket ===

impl Ticket {
    /// The epoch in which the call was admitted.
    pub fn epoch(self) -> Epoch {
        self.epoch
    }

    /// Whether the call is a probe: its result alone decides more than others do.
    pub fn is_probe(self) -> bool {
        self.probe.is_some()
    }
}
