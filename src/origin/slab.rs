//! Where entries live: numbered places that an entry keeps for as long as it exists.
//!
//! SCAN rests on this: its cursor is a place, and since no entry ever moves, a walk over the places meets every entry
//! that is there throughout, exactly once, whatever is added, removed or evicted meanwhile. Places come in chunks, so
//! growing moves nothing and never stops the store for long; the lowest chunk with room is filled first, and a chunk
//! that has become empty gives its memory back.
//!
//! Invariant: a chunk is listed in `roomy` if and only if it has a vacant place.

use std::collections::BTreeSet;

/// Places in a chunk.
const CHUNK_PLACES: usize = 256;

/// The number of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(pub(super) u32);

/// Entries in their places.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    roomy: BTreeSet<u32>,
}

#[derive(Debug)]
struct Chunk<T> {
    /// No memory is held while all places are vacant.
    slots: Vec<Slot<T>>,
    /// The places that were used before and are vacant now, linked through [`Slot::Vacant`].
    vacant_first: Option<u16>,
    live: usize,
}

#[derive(Debug)]
enum Slot<T> {
    Live(T),
    Vacant { next: Option<u16> },
}

// === impl Slab ===

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), roomy: BTreeSet::new() }
    }

    /// Puts `item` into a vacant place.
    pub(super) fn insert(&mut self, item: T) -> Place {
        let number = self.roomy.first().copied().unwrap_or_else(|| {
            self.chunks.push(Chunk { slots: Vec::new(), vacant_first: None, live: 0 });
            let number = (self.chunks.len() - 1) as u32;
            self.roomy.insert(number);
            number
        });
        let chunk = &mut self.chunks[number as usize];
        let index = chunk.insert(item);
        if chunk.live == CHUNK_PLACES {
            self.roomy.remove(&number);
        }
        Place(number * CHUNK_PLACES as u32 + index as u32)
    }

    /// Takes the item out of its place.
    pub(super) fn remove(&mut self, place: Place) -> Option<T> {
        let (number, index) = split(place);
        let item = self.chunks.get_mut(number)?.remove(index)?;
        self.roomy.insert(number as u32);
        Some(item)
    }

    pub(super) fn at(&self, place: Place) -> Option<&T> {
        let (number, index) = split(place);
        match self.chunks.get(number)?.slots.get(index)? {
            Slot::Live(item) => Some(item),
            Slot::Vacant { .. } => None,
        }
    }

    pub(super) fn at_mut(&mut self, place: Place) -> Option<&mut T> {
        let (number, index) = split(place);
        match self.chunks.get_mut(number)?.slots.get_mut(index)? {
            Slot::Live(item) => Some(item),
            Slot::Vacant { .. } => None,
        }
    }

    /// The first place at `from` or after it that may be live: empty chunks are stepped over. `None` at the end.
    pub(super) fn next_place(&self, from: u64) -> Option<Place> {
        let mut place = from;
        loop {
            let number = usize::try_from(place).ok()? / CHUNK_PLACES;
            let chunk = self.chunks.get(number)?;
            if (place as usize % CHUNK_PLACES) < chunk.slots.len() {
                return u32::try_from(place).ok().map(Place);
            }
            place = (number as u64 + 1) * CHUNK_PLACES as u64;
        }
    }
}

// === impl Chunk ===

impl<T> Chunk<T> {
    fn insert(&mut self, item: T) -> usize {
        self.live += 1;
        let Some(index) = self.vacant_first.map(usize::from) else {
            if self.slots.capacity() == 0 {
                self.slots.reserve_exact(CHUNK_PLACES);
            }
            self.slots.push(Slot::Live(item));
            return self.slots.len() - 1;
        };
        if let Slot::Vacant { next } = self.slots[index] {
            self.vacant_first = next;
        }
        self.slots[index] = Slot::Live(item);
        index
    }

    fn remove(&mut self, index: usize) -> Option<T> {
        let slot = self.slots.get_mut(index)?;
        if matches!(slot, Slot::Vacant { .. }) {
            return None;
        }
        let Slot::Live(item) = std::mem::replace(slot, Slot::Vacant { next: self.vacant_first }) else { return None };
        self.vacant_first = Some(index as u16);
        self.live -= 1;
        if self.live == 0 {
            self.slots = Vec::new();
            self.vacant_first = None;
        }
        Some(item)
    }
}

fn split(place: Place) -> (usize, usize) {
    (place.0 as usize / CHUNK_PLACES, place.0 as usize % CHUNK_PLACES)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn empty_chunks_hold_no_memory_and_are_filled_again_first() {
        let mut slab = Slab::new();
        let places: Vec<Place> = (0..CHUNK_PLACES * 3).map(|i| slab.insert(i)).collect();
        for &place in &places[..CHUNK_PLACES] {
            slab.remove(place);
        }
        assert_eq!(slab.chunks[0].slots.capacity(), 0);
        assert_eq!(slab.next_place(0), Some(Place(CHUNK_PLACES as u32)));
        assert_eq!(slab.insert(7), Place(0));
        assert_eq!(slab.next_place(1), Some(Place(CHUNK_PLACES as u32)));
        assert_eq!(slab.next_place(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(steps in prop::collection::vec(any::<(bool, u16)>(), 1..2_000)) {
            let mut slab = Slab::new();
            let mut model: BTreeMap<Place, u16> = BTreeMap::new();
            for (insert, number) in steps {
                if insert || model.is_empty() {
                    let place = slab.insert(number);
                    prop_assert_eq!(model.insert(place, number), None);
                } else {
                    let place = *model.keys().nth(usize::from(number) % model.len()).unwrap();
                    prop_assert_eq!(slab.remove(place), model.remove(&place));
                    prop_assert_eq!(slab.remove(place), None);
                }
                for (&place, &item) in model.iter().take(3) {
                    prop_assert_eq!(slab.at(place), Some(&item));
                }
                let roomy: Vec<u32> = (0..).zip(&slab.chunks).filter(|(_, c)| c.live < CHUNK_PLACES).map(|(i, _)| i).collect();
                prop_assert!(slab.roomy.iter().copied().eq(roomy));
            }
            let mut met = Vec::new();
            let mut from = 0;
            while let Some(place) = slab.next_place(from) {
                met.extend(slab.at(place).map(|_| place));
                from = u64::from(place.0) + 1;
            }
            prop_assert!(met.iter().eq(model.keys()));
        }
    }
}
