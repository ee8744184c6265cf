//! The flights of a link, in the order in which they land, and what happens meanwhile to the keys that they read.
//!
//! Flights take off and land in the order of the stream, so they stand in a queue and are known by their number. Keys are
//! counted in groups, by a part of their hash. A flight enters its key nowhere and takes it out of nowhere: it notes the counts
//! of the key's group when it begins, and compares them when it ends.
//!
//! ```text
//!   group:  changes | orders | latest ──► flight ──older──► flight ──older──► (a number below the first: has landed)
//! ```
//!
//! Invariants:
//! * A change of a key, or an order to keep nothing of it, while a read of it is under way changes the count of its group.
//!   Keys of one group are taken for each other, which costs a fill, never a truth.
//! * There are at least as many groups as flights (and [`GROUPS_MIN`]): which keys share one depends on the seed of the hash.
//! * The flights of one key that can be shared are all in its group's list, the latest first.

use super::flights::{Flight, FlightKey};
use foldhash::fast::{FixedState, RandomState};
use std::collections::VecDeque;
use std::hash::BuildHasher;

/// The flights under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    flights: VecDeque<Flight>,
    /// The number of the first of them.
    first: u64,
    /// A power of two of them, or none before the first flight.
    groups: Vec<Group>,
    hasher: FixedState,
}

/// What is known of the keys whose hashes end alike.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    changes: u64,
    /// Orders to keep nothing of what is under way.
    orders: u64,
    /// The number of the latest flight that can be shared; [`NO_FLIGHT`], or one that has landed, for none.
    latest: u64,
}

/// The number that no flight has.
pub(super) const NO_FLIGHT: u64 = 0;
/// Groups that there are with the first flight: 6 KB.
const GROUPS_MIN: usize = 256;

// === impl UnderWay ===

impl Default for UnderWay {
    fn default() -> Self {
        let (flights, groups) = (VecDeque::new(), Vec::new());
        let seed = RandomState::default().hash_one(NO_FLIGHT);
        Self { flights, first: NO_FLIGHT + 1, groups, hasher: FixedState::with_seed(seed) }
    }
}

impl UnderWay {
    /// Which keys share a group depends on this, from now on: for nothing that is under way.
    pub(super) fn seed(&mut self, seed: u64) {
        self.hasher = FixedState::with_seed(seed);
    }

    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// The number of the flight that takes off next.
    pub(super) fn next_number(&self) -> u64 {
        self.first + self.flights.len() as u64
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Flight> {
        self.flights.get_mut(number.checked_sub(self.first)? as usize)
    }

    /// A key of a flight, and how often it, or one like it, has changed.
    pub(super) fn key_mut(&mut self, number: u64, key: usize) -> Option<(&mut FlightKey, u64)> {
        let at = number.checked_sub(self.first)? as usize;
        let changes = self.changes(self.flights.get(at)?.keys.get(key)?.hash);
        Some((self.flights[at].keys.get_mut(key)?, changes))
    }

    /// A flight takes off.
    pub(super) fn take_off(&mut self, mut flight: Flight) {
        if self.flights.len() >= self.groups.len() {
            self.grow();
        }
        let number = self.next_number();
        if let Some(group) = flight.shared_hash().and_then(|hash| self.group_mut(hash)) {
            flight.older = std::mem::replace(&mut group.latest, number);
        }
        self.flights.push_back(flight);
    }

    /// The flight with this number, which is the first, ends.
    pub(super) fn land(&mut self, number: u64) -> Option<Flight> {
        if number != self.first {
            return None;
        }
        let flight = self.flights.pop_front()?;
        self.first += 1;
        Some(flight)
    }

    /// The latest flight that can be shared whose key has this hash, or one like it, and that is the wanted one.
    pub(super) fn find(&mut self, hash: u64, is: impl Fn(&Flight) -> bool) -> Option<&mut Flight> {
        let mut number = self.group(hash)?.latest;
        loop {
            let flight = self.flights.get(number.checked_sub(self.first)? as usize)?;
            if is(flight) {
                return self.get_mut(number);
            }
            number = flight.older;
        }
    }

    /// What is known of a key may have become wrong.
    pub(super) fn changed(&mut self, key: &[u8]) {
        if !self.is_empty() {
            let hash = self.hash(key);
            self.group_mut(hash).into_iter().for_each(|group| group.changes += 1);
        }
    }

    /// The same of all keys.
    pub(super) fn all_changed(&mut self) {
        self.groups.iter_mut().for_each(|group| group.changes += 1);
    }

    /// What is under way for a key is not to be kept.
    pub(super) fn keep_nothing_of(&mut self, key: &[u8]) {
        if !self.is_empty() {
            let hash = self.hash(key);
            self.group_mut(hash).into_iter().for_each(|group| group.orders += 1);
        }
    }

    /// The same for all keys.
    pub(super) fn keep_nothing(&mut self) {
        self.groups.iter_mut().for_each(|group| group.orders += 1);
    }

    /// How often a key with this hash, or one like it, has changed.
    pub(super) fn changes(&self, hash: u64) -> u64 {
        self.group(hash).map_or(0, |group| group.changes)
    }

    /// How often nothing was to be kept of it.
    pub(super) fn orders(&self, hash: u64) -> u64 {
        self.group(hash).map_or(0, |group| group.orders)
    }

    /// All flights have ended. Takes their memory back.
    pub(super) fn clear(&mut self) {
        self.first = self.next_number();
        self.flights = VecDeque::new();
        self.groups = Vec::new();
    }

    /// Twice as many groups. Each takes over the counts of the one that its keys were in, so that what was noted stays true.
    fn grow(&mut self) {
        let old = std::mem::take(&mut self.groups);
        let len = (2 * old.len()).max(GROUPS_MIN);
        let counts = old.iter().map(|group| Group { latest: NO_FLIGHT, ..*group });
        self.groups = counts.cycle().take(len).collect();
        self.groups.resize(len, Group::default());
        for at in 0..self.flights.len() {
            let number = self.first + at as u64;
            let shared = self.flights[at].shared_hash();
            if let Some(group) = shared.and_then(|hash| self.group_mut(hash)) {
                self.flights[at].older = std::mem::replace(&mut group.latest, number);
            }
        }
    }

    fn group(&self, hash: u64) -> Option<&Group> {
        self.groups.get(hash as usize & self.groups.len().wrapping_sub(1))
    }

    fn group_mut(&mut self, hash: u64) -> Option<&mut Group> {
        let at = hash as usize & self.groups.len().wrapping_sub(1);
        self.groups.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;
    use crate::upstream::link::{OpKind, Patience};
    use bytes::Bytes;
    use larder_protocol::table::CommandId;
    use smallvec::SmallVec;

    fn name(n: u64) -> Vec<u8> {
        format!("key {n}").into_bytes()
    }

    /// A read of the key with this number takes off; `position` tells it from others of the same key.
    fn take_off(under_way: &mut UnderWay, n: u64, position: u64) -> u64 {
        let number = under_way.next_number();
        let request = Bytes::from(name(n));
        let key = FlightKey::of_all(&request, under_way.hash(&request), under_way.orders(under_way.hash(&request)));
        let kind = OpKind::Fill { command: CommandId(1), key_at: 1, may_join: true, asks_encoding: false };
        let (keys, patience, sent_at) = (SmallVec::from_buf([key]), Patience::Waiting, Time::ZERO);
        let waiting = SmallVec::new();
        under_way.take_off(Flight { request, kind, keys, waiting, position, patience, sent_at, older: NO_FLIGHT });
        number
    }

    fn found(under_way: &mut UnderWay, n: u64) -> Option<u64> {
        let (hash, name) = (under_way.hash(&name(n)), name(n));
        under_way.find(hash, |flight| flight.request == name).map(|flight| flight.position)
    }

    #[test]
    fn the_latest_read_of_a_key_is_found_until_it_has_landed() {
        let mut under_way = UnderWay::default();
        assert_eq!(found(&mut under_way, 0), None);
        // More than there are groups at the start: they grow meanwhile.
        let count = 10 * GROUPS_MIN as u64;
        let numbers: Vec<u64> = (0..count).map(|n| take_off(&mut under_way, n / 2, n)).collect();
        assert!(under_way.groups.len() >= count as usize);
        assert!((0..count / 2).all(|n| found(&mut under_way, n) == Some(2 * n + 1)));
        assert!(under_way.land(numbers[1]).is_none(), "it is not the first");
        for n in 0..count / 2 {
            assert_eq!(under_way.land(numbers[2 * n as usize]).map(|flight| flight.position), Some(2 * n));
            assert_eq!(found(&mut under_way, n), Some(2 * n + 1));
            assert!(under_way.land(numbers[2 * n as usize + 1]).is_some() && found(&mut under_way, n).is_none());
        }
        assert!(under_way.is_empty() && under_way.land(under_way.first).is_none());
    }

    #[test]
    fn what_happens_to_a_key_is_seen_whatever_takes_off_meanwhile() {
        let mut under_way = UnderWay::default();
        under_way.changed(b"nobody reads this");
        assert!(under_way.groups.is_empty());
        take_off(&mut under_way, 0, 0);
        let hashes: Vec<u64> = (0..100).map(|n| under_way.hash(&name(n))).collect();
        let counts = |under_way: &UnderWay, n: usize| (under_way.changes(hashes[n]), under_way.orders(hashes[n]));
        let before: Vec<_> = (0..100).map(|n| counts(&under_way, n)).collect();
        under_way.changed(&name(7));
        under_way.keep_nothing_of(&name(8));
        (0..2 * GROUPS_MIN as u64).for_each(|n| _ = take_off(&mut under_way, 1000 + n, n));
        assert_eq!(counts(&under_way, 7), (before[7].0 + 1, before[7].1));
        assert_eq!(counts(&under_way, 8), (before[8].0, before[8].1 + 1));
        // A few share the group of one of these.
        let same = (0..100).filter(|n| counts(&under_way, *n) == before[*n]).count();
        assert!((90..=98).contains(&same), "{same}");
        let before: Vec<_> = (0..100).map(|n| counts(&under_way, n)).collect();
        under_way.all_changed();
        under_way.keep_nothing();
        assert!((0..100).all(|n| counts(&under_way, n) == (before[n].0 + 1, before[n].1 + 1)));
        let last = under_way.next_number();
        under_way.clear();
        assert!(under_way.is_empty() && under_way.next_number() == last && under_way.get_mut(last - 1).is_none());
    }
}
