//! One database of the embedded store: its entries and the three ways to find them.
//!
//! - by key: hash tables from a key's hash to the entry's [`Place`], split so that growing one copies little;
//! - by deadline: an ordered set, so that what expires next is known and nothing is searched for;
//! - by chance: a dense list of the places in use, from which evictions and RANDOMKEY draw evenly.
//!
//! Invariants: all three name the same entries; `deadlines` holds exactly the entries that have one; `bytes` is the sum
//! of [`Entry::cost`] over the entries. `Database::audit` recomputes all that, for tests.
//!
//! **Accounting.** An entry costs what the allocator gives it: [`ENTRY_BYTES`] for its place and its share of the
//! tables, [`DEADLINE_BYTES`] if it has a deadline, and a [`block_bytes`] for key and value each. The figures fit the
//! process's own growth on x86-64 with glibc within 15% (`tests/origin_memory.rs` measures it). What is not counted:
//! places that were given up while their chunk still holds another entry.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};

use foldhash::quality::FixedState;
use hashbrown::HashTable;

use super::UnixMillis;
use super::slab::{Place, Slab};
use super::value::Value;

/// An entry's place (72 bytes) and its share of the hash tables (9 bytes a bucket, on average two thirds full) and of
/// the list of places (4 bytes, on average three quarters full).
pub(super) const ENTRY_BYTES: u64 = 72 + 14 + 6;
/// What the ordered set of deadlines takes for one of them (16 bytes, in nodes that are half to three quarters full).
pub(super) const DEADLINE_BYTES: u64 = 28;
/// Header of a block on the heap.
const BLOCK_HEADER_BYTES: u64 = 8;
/// Blocks come in multiples of this.
const BLOCK_STEP_BYTES: u64 = 16;
/// The smallest block.
const BLOCK_BYTES_MIN: u64 = 32;
/// Hash tables of a database; a power of two, chosen by the top bits of the hash.
const TABLES: usize = 32;
/// A table that is this many times larger than its content gives memory back.
const SLACK_MAX: usize = 8;
/// Most entries in a database: what the numbers of places can tell apart, less a margin for one command.
pub(super) const ENTRIES_MAX: usize = 0xf000_0000;

/// One key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Box<[u8]>,
    pub(super) value: Value,
    /// The moment after which the key is gone.
    pub(super) deadline: Option<UnixMillis>,
    /// When a command last looked at the key.
    pub(super) accessed: UnixMillis,
    /// Number of the modification that made the entry what it is; no two are equal.
    pub(super) sequence: u64,
    /// Where the place stands in [`Database::places`].
    position: u32,
    tag: Tag,
}

/// The part of a key's hash that the tables keep: the key's own bytes decide in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u32);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tag: Tag,
    place: Place,
}

/// One database.
#[derive(Debug)]
pub(super) struct Database {
    entries: Slab<Entry>,
    tables: [HashTable<Bucket>; TABLES],
    places: Vec<Place>,
    deadlines: BTreeSet<(UnixMillis, Place)>,
    bytes: u64,
}

// === impl Entry ===

impl Entry {
    /// True once the deadline has passed. The millisecond of the deadline itself still counts as life, as in the server.
    pub(super) fn is_expired(&self, now: UnixMillis) -> bool {
        self.deadline.is_some_and(|deadline| now > deadline)
    }

    /// Accounted bytes.
    pub(super) fn cost(&self) -> u64 {
        entry_cost(self.key.len(), self.value.heap_len(), self.deadline.is_some())
    }
}

/// Accounted bytes of an entry whose value takes a block of `value_len` bytes.
pub(super) fn entry_cost(key_len: usize, value_len: usize, has_deadline: bool) -> u64 {
    let deadline = if has_deadline { DEADLINE_BYTES } else { 0 };
    ENTRY_BYTES + deadline + block_bytes(key_len) + block_bytes(value_len)
}

/// What the allocator takes for a block of `len` bytes.
fn block_bytes(len: usize) -> u64 {
    if len == 0 {
        return 0;
    }
    (len as u64 + BLOCK_HEADER_BYTES).next_multiple_of(BLOCK_STEP_BYTES).max(BLOCK_BYTES_MIN)
}

// === impl Tag ===

impl Tag {
    pub(super) fn new(hasher: &FixedState, key: &[u8]) -> Self {
        let mut state = hasher.build_hasher();
        state.write(key);
        Self((state.finish() >> 32) as u32)
    }

    /// The table that the key belongs to.
    fn table(self) -> usize {
        self.0 as usize >> (u32::BITS - TABLES.trailing_zeros())
    }

    /// Spread over 64 bits, for the tables look at the highest and the lowest.
    fn hash(self) -> u64 {
        u64::from(self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// One of `count` classes, a power of two.
    pub(super) fn class(self, count: usize) -> usize {
        self.0 as usize & (count - 1)
    }
}

// === impl Database ===

impl Database {
    pub(super) fn new() -> Self {
        Self {
            entries: Slab::new(),
            tables: [const { HashTable::new() }; TABLES],
            places: Vec::new(),
            deadlines: BTreeSet::new(),
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Entries that have a deadline.
    pub(super) fn deadlines_len(&self) -> usize {
        self.deadlines.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Finds a key, expired or not.
    pub(super) fn find(&self, tag: Tag, key: &[u8]) -> Option<Place> {
        let is_key = |bucket: &Bucket| {
            bucket.tag == tag && self.entries.at(bucket.place).is_some_and(|entry| *entry.key == *key)
        };
        self.tables[tag.table()].find(tag.hash(), is_key).map(|bucket| bucket.place)
    }

    pub(super) fn entry(&self, place: Place) -> Option<&Entry> {
        self.entries.at(place)
    }

    /// Marks an entry as used.
    pub(super) fn touch(&mut self, place: Place, now: UnixMillis) {
        if let Some(entry) = self.entries.at_mut(place) {
            entry.accessed = now;
        }
    }

    /// Adds a key, which must not be there.
    pub(super) fn insert(
        &mut self,
        tag: Tag,
        key: &[u8],
        value: Value,
        deadline: Option<UnixMillis>,
        sequence: u64,
        now: UnixMillis,
    ) -> Place {
        let position = self.places.len() as u32;
        let entry = Entry { key: key.into(), value, deadline, accessed: now, sequence, position, tag };
        self.bytes += entry.cost();
        let place = self.entries.insert(entry);
        self.places.push(place);
        self.tables[tag.table()].insert_unique(tag.hash(), Bucket { tag, place }, |bucket| bucket.tag.hash());
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, place));
        }
        place
    }

    /// Changes the value of an entry in any way.
    pub(super) fn edit(&mut self, place: Place, sequence: u64, change: impl FnOnce(&mut Value)) {
        let Some(entry) = self.entries.at_mut(place) else { return };
        let before = entry.cost();
        change(&mut entry.value);
        entry.sequence = sequence;
        self.bytes = self.bytes - before + entry.cost();
    }

    /// Sets or takes away the deadline of an entry.
    pub(super) fn set_deadline(&mut self, place: Place, deadline: Option<UnixMillis>, sequence: u64) {
        let Some(entry) = self.entries.at_mut(place) else { return };
        let before = entry.cost();
        let old = std::mem::replace(&mut entry.deadline, deadline);
        entry.sequence = sequence;
        self.bytes = self.bytes - before + entry.cost();
        if let Some(old) = old {
            self.deadlines.remove(&(old, place));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, place));
        }
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, place: Place) -> Option<Entry> {
        let entry = self.entries.remove(place)?;
        self.bytes -= entry.cost();
        if let Some(deadline) = entry.deadline {
            self.deadlines.remove(&(deadline, place));
        }
        let table = &mut self.tables[entry.tag.table()];
        if let Ok(bucket) = table.find_entry(entry.tag.hash(), |bucket| bucket.place == place) {
            bucket.remove();
        }
        if table.capacity() > SLACK_MAX * (table.len() + SLACK_MAX) {
            table.shrink_to(2 * table.len(), |bucket| bucket.tag.hash());
        }
        self.places.swap_remove(entry.position as usize);
        if let Some(moved) = self.places.get(entry.position as usize)
            && let Some(moved) = self.entries.at_mut(*moved)
        {
            moved.position = entry.position;
        }
        if self.places.capacity() > SLACK_MAX * (self.places.len() + SLACK_MAX) {
            self.places.shrink_to(2 * self.places.len());
        }
        Some(entry)
    }

    /// The entry at a place of the dense list, counted from zero.
    pub(super) fn nth(&self, position: usize) -> Option<(Place, &Entry)> {
        let place = *self.places.get(position)?;
        self.entries.at(place).map(|entry| (place, entry))
    }

    /// The entry whose deadline comes first, if that has passed.
    pub(super) fn first_expired(&self, now: UnixMillis) -> Option<Place> {
        self.deadlines.first().filter(|(deadline, _)| now > *deadline).map(|(_, place)| *place)
    }

    /// All entries, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.places.iter().filter_map(|place| self.entries.at(*place))
    }

    /// Walks over the places from `cursor` on: at most `entries_max` entries and `places_max` places. Returns where the
    /// next walk begins, zero at the end.
    pub(super) fn walk<'a>(
        &'a self,
        cursor: u64,
        entries_max: u64,
        places_max: u64,
        mut visit: impl FnMut(&'a Entry),
    ) -> u64 {
        let (mut entries_left, mut places_left) = (entries_max, places_max);
        let mut cursor = cursor;
        while let Some(place) = self.entries.next_place(cursor) {
            cursor = u64::from(place.0);
            if entries_left == 0 || places_left == 0 {
                return cursor;
            }
            places_left -= 1;
            if let Some(entry) = self.entries.at(place) {
                entries_left -= 1;
                visit(entry);
            }
            cursor += 1;
        }
        0
    }

    /// Recomputes what the invariants promise and tells the first difference.
    #[cfg(test)]
    pub(super) fn audit(&self) -> Result<(), String> {
        let bytes: u64 = self.iter().map(Entry::cost).sum();
        if bytes != self.bytes {
            return Err(format!("{} bytes accounted, {bytes} counted", self.bytes));
        }
        let indexed: usize = self.tables.iter().map(HashTable::len).sum();
        if indexed != self.places.len() {
            return Err(format!("{indexed} keys in the tables, {} in the list", self.places.len()));
        }
        for (position, &place) in self.places.iter().enumerate() {
            let entry = self.entries.at(place).ok_or("a vacant place in the list")?;
            if entry.position as usize != position || self.find(entry.tag, &entry.key) != Some(place) {
                return Err(format!("{:?} is not found where it should be", entry.key));
            }
            if entry.deadline.is_some_and(|deadline| !self.deadlines.contains(&(deadline, place))) {
                return Err(format!("the deadline of {:?} is not in the set", entry.key));
            }
        }
        let volatile = self.iter().filter(|entry| entry.deadline.is_some()).count();
        if volatile == self.deadlines.len() { Ok(()) } else { Err("deadlines without entries".into()) }
    }
}
