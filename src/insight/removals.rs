//! CORE: when and why a key last left L1, for the keys that did so lately; bounded.
//!
//! A table of [`SETS`] sets of [`WAYS`] by hash; a new removal takes the place of the oldest in its set. Keys are known by 64 bits of
//! hash only: that two share them is one chance in 2^64 for each pair.

use crate::clock::Time;
use crate::l1::Cause;

/// Sets of the table.
const SETS: usize = 1024;
/// Places of a set.
const WAYS: usize = 4;

/// A key's last removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    hash: u64,
    /// When.
    pub at: Time,
    /// Why.
    pub cause: Cause,
}

/// The table.
#[derive(Debug)]
pub struct Removals {
    places: Vec<Option<Removal>>,
}

// === impl Removals ===

impl Removals {
    /// An empty table.
    pub fn new() -> Self {
        Self { places: vec![None; SETS * WAYS] }
    }

    /// A key has left.
    pub fn note(&mut self, hash: u64, cause: Cause, now: Time) {
        let set = self.set(hash);
        let known = set.iter().position(|place| place.is_some_and(|r| r.hash == hash));
        let oldest = || set.iter().enumerate().min_by_key(|(_, place)| place.map(|r| r.at)).map_or(0, |(at, _)| at);
        let at = known.unwrap_or_else(oldest);
        set[at] = Some(Removal { hash, at: now, cause });
    }

    /// When and why a key left last, if that is still known.
    pub fn last(&mut self, hash: u64) -> Option<Removal> {
        self.set(hash).iter().flatten().find(|removal| removal.hash == hash).copied()
    }

    fn set(&mut self, hash: u64) -> &mut [Option<Removal>] {
        let first = (hash >> 32) as usize % SETS * WAYS;
        &mut self.places[first..first + WAYS]
    }
}

impl Default for Removals {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_latest_and_forgets_the_oldest() {
        let mut removals = Removals::new();
        let at = Time::from_micros;
        // All in one set.
        for n in 0..5_u64 {
            removals.note(n, Cause::DataChanged, at(n));
        }
        assert_eq!(removals.last(0), None);
        removals.note(3, Cause::Manual, at(9));
        let last = removals.last(3).unwrap();
        assert_eq!((last.at, last.cause), (at(9), Cause::Manual));
        assert_eq!(removals.last(1).unwrap().cause, Cause::DataChanged);
        assert_eq!(removals.last(7), None);
    }
}
