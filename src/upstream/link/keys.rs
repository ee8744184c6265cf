//! Keys of the reads under way whose reply may be kept: which reads, and how often each key has changed since the first
//! of them.
//!
//! A key is hashed once, when its read is submitted; the read remembers the place of its key's state. The table holds the
//! places, so a key's bytes are in its state only.

use bytes::Bytes;
use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;
use std::hash::BuildHasher;

/// What is known of the keys of reads under way.
#[derive(Debug, Default)]
pub(super) struct Keys {
    places: HashTable<usize>,
    states: Slab<KeyState>,
    hasher: foldhash::fast::RandomState,
}

#[derive(Debug)]
pub(super) struct KeyState {
    key: Bytes,
    hash: u64,
    pub(super) flights: SmallVec<[usize; 2]>,
    pub(super) changes: u64,
}

// === impl Keys ===

impl Keys {
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// The state of a key with this hash.
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<&KeyState> {
        if self.is_empty() {
            return None;
        }
        let place = self.places.find(hash, |place| self.states.get(*place).is_some_and(|state| state.key == *key))?;
        self.states.get(*place)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&KeyState> {
        if self.is_empty() { None } else { self.find(self.hash(key), key) }
    }

    /// What is known of a key may have become wrong.
    pub(super) fn changed(&mut self, key: &[u8]) {
        if self.is_empty() {
            return;
        }
        let Self { places, states, hasher } = self;
        let is_it = |place: &usize| states.get(*place).is_some_and(|state| state.key == *key);
        let place = places.find(hasher.hash_one(key), is_it).copied();
        if let Some(state) = place.and_then(|place| states.get_mut(place)) {
            state.changes += 1;
        }
    }

    /// The same of all keys.
    pub(super) fn all_changed(&mut self) {
        self.states.iter_mut().for_each(|(_, state)| state.changes += 1);
    }

    /// How often the key at this place has changed.
    pub(super) fn changes(&self, place: usize) -> u64 {
        self.states.get(place).map_or(0, |state| state.changes)
    }

    /// A read of a key begins; the place of the key's state.
    pub(super) fn take_off(&mut self, hash: u64, key: Bytes, flight: usize) -> usize {
        let Self { places, states, .. } = self;
        let is_it = |place: &usize| states.get(*place).is_some_and(|state| state.key == key);
        if let Some(place) = places.find(hash, is_it).copied() {
            if let Some(state) = states.get_mut(place) {
                state.flights.push(flight);
            }
            return place;
        }
        let state = KeyState { key, hash, flights: SmallVec::from_slice(&[flight]), changes: 0 };
        let place = states.insert(state);
        places.insert_unique(hash, place, |place| states.get(*place).map_or(0, |state| state.hash));
        place
    }

    /// A read of the key at this place ends.
    pub(super) fn land(&mut self, place: usize, flight: usize) {
        let Some(state) = self.states.get_mut(place) else { return };
        state.flights.retain(|other| *other != flight);
        if state.flights.is_empty() {
            let state = self.states.remove(place);
            if let Ok(entry) = self.places.find_entry(state.hash, |other| *other == place) {
                entry.remove();
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.places.clear();
        self.states.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_as_long_as_it_is_read() {
        let mut keys = Keys::default();
        let name = |n: usize| Bytes::from(format!("key {n}"));
        let hash = |keys: &Keys, n| keys.hash(&name(n));
        let places: Vec<usize> = (0..100).map(|n| keys.take_off(hash(&keys, n), name(n), n)).collect();
        keys.changed(&name(7));
        assert_eq!(keys.take_off(hash(&keys, 7), name(7), 1007), places[7]);
        keys.changed(&name(7));
        keys.changed(b"nobody reads this");
        assert_eq!((keys.changes(places[7]), keys.changes(places[8])), (2, 0));
        assert_eq!(keys.get(&name(7)).map(|state| state.flights.to_vec()), Some(vec![7, 1007]));
        keys.land(places[7], 7);
        assert_eq!(keys.changes(places[7]), 2, "somebody reads it still");
        keys.land(places[7], 1007);
        assert!(keys.get(&name(7)).is_none() && keys.get(&name(6)).is_some());
        // A new read of it begins anew.
        let place = keys.take_off(hash(&keys, 7), name(7), 8);
        assert_eq!(keys.changes(place), 0);
        keys.all_changed();
        assert_eq!((keys.changes(place), keys.changes(places[3])), (1, 1));
        (0..100).filter(|n| *n != 7).for_each(|n| keys.land(places[n], n));
        keys.land(place, 8);
        assert!(keys.is_empty() && keys.places.is_empty());
    }
}
