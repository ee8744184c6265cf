//! All databases together: lookups that respect deadlines, modifications that are numbered, and the limit on memory.
//!
//! **Modifications** are numbered by one counter for all databases. An entry carries the number of its last
//! modification; for keys that are not there, a table of [`CREATION_CLASSES`] counters remembers the last creation of
//! any key of the same class. Together they give [`Version`]: two different states of a key never have the same one
//! (a missing key may change its version without having changed, when another key of its class is created).
//!
//! **Eviction** is sampled LRU: of [`SAMPLES`] entries drawn evenly from one database (drawn by its share of the keys)
//! the one that was not used for the longest time goes. Whatever has expired goes first. The entries that the command at
//! work has written are spared. Work is in proportion to what was written: each eviction pays for one earlier insertion.
//!
//! Invariant: after [`Keyspace::shrink`], `bytes` is at most `bytes_max`; it is the sum over the databases.

use foldhash::quality::FixedState;

use super::database::{Database, ENTRIES_MAX, Entry, Tag, entry_cost};
use super::reply::Failure;
use super::slab::Place;
use super::value::{Value, room_for};
use super::{DatabaseStats, OriginLimits, OriginStats, UnixMillis, Version};

/// Entries that an eviction compares.
const SAMPLES: usize = 10;
/// Counters for creations; a power of two. 128 KB.
const CREATION_CLASSES: usize = 16_384;
/// Most databases that a store can have.
pub(super) const DATABASES_MAX: u32 = 1024;

/// What a lookup does to the key's time of last use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// The key is used: eviction is put off.
    Touch,
    /// The key is only looked at.
    Peek,
}

/// What a command makes of the deadline when it stores a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewDeadline {
    /// The key lives until it is removed.
    Never,
    /// As it was; a new key has none.
    Keep,
    /// The key lives until this moment.
    At(UnixMillis),
}

#[derive(Debug)]
pub(super) struct Keyspace {
    databases: Vec<Database>,
    limits: OriginLimits,
    hasher: FixedState,
    bytes: u64,
    /// Number of the last modification.
    sequence: u64,
    creations: Box<[u64]>,
    /// How often each database was swapped with another.
    swaps: Vec<u64>,
    random: u64,
    /// The database where the next active expiry begins.
    expiry_hand: usize,
    /// Keys that have expired or were evicted, while somebody wants to know.
    gone: Option<Vec<(u32, Vec<u8>)>>,
    evicted: u64,
    expired: u64,
    hits: u64,
    misses: u64,
}

// === impl Keyspace ===

impl Keyspace {
    pub(super) fn new(limits: OriginLimits, seed: u64) -> Self {
        let count = limits.databases.clamp(1, DATABASES_MAX) as usize;
        Self {
            databases: (0..count).map(|_| Database::new()).collect(),
            limits,
            hasher: FixedState::with_seed(seed),
            bytes: 0,
            sequence: 0,
            creations: vec![0; CREATION_CLASSES].into(),
            swaps: vec![0; count],
            random: seed,
            expiry_hand: 0,
            gone: None,
            evicted: 0,
            expired: 0,
            hits: 0,
            misses: 0,
        }
    }

    pub(super) fn databases(&self) -> usize {
        self.databases.len()
    }

    pub(super) fn value_bytes_max(&self) -> u64 {
        self.limits.value_bytes_max
    }

    pub(super) fn reply_bytes_max(&self) -> u64 {
        self.limits.reply_bytes_max
    }

    /// Number of the last modification: what is written later has a higher one.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// A database, for commands that look at many keys.
    pub(super) fn database(&self, db: usize) -> &Database {
        &self.databases[db]
    }

    /// The entry at a place that a lookup of the same command gave.
    pub(super) fn entry(&self, db: usize, place: Place) -> Option<&Entry> {
        self.databases[db].entry(place)
    }

    /// Looks a key up for reading: counted as a hit or a miss.
    pub(super) fn read(&mut self, db: usize, key: &[u8], usage: Use, now: UnixMillis) -> Option<&Entry> {
        let place = self.find(db, key, usage, now);
        if place.is_some() {
            self.hits += 1
        } else {
            self.misses += 1
        }
        self.databases[db].entry(place?)
    }

    /// Looks a key up. A key whose deadline has passed is removed and not found.
    pub(super) fn find(&mut self, db: usize, key: &[u8], usage: Use, now: UnixMillis) -> Option<Place> {
        let tag = Tag::new(&self.hasher, key);
        let place = self.databases[db].find(tag, key)?;
        if self.databases[db].entry(place)?.is_expired(now) {
            self.expire(db, place);
            return None;
        }
        if usage == Use::Touch {
            self.databases[db].touch(place, now);
        }
        Some(place)
    }

    /// Refuses what could not be stored even if everything else were evicted. `bytes` is what is to be stored by the
    /// whole command, in `entries` entries.
    pub(super) fn admit(&self, db: usize, bytes: u64, entries: usize) -> Result<(), Failure> {
        if bytes > self.limits.bytes_max || self.databases[db].len() + entries > ENTRIES_MAX {
            return Err(Failure::OutOfMemory);
        }
        Ok(())
    }

    /// Stores a value under a key, new or not.
    pub(super) fn put(
        &mut self,
        db: usize,
        key: &[u8],
        value: Value,
        deadline: NewDeadline,
        now: UnixMillis,
    ) -> Result<(), Failure> {
        let place = self.find(db, key, Use::Touch, now);
        let old = place.and_then(|place| self.databases[db].entry(place)).and_then(|entry| entry.deadline);
        let deadline = match deadline {
            NewDeadline::Never => None,
            NewDeadline::Keep => old,
            NewDeadline::At(moment) => Some(moment),
        };
        self.admit(db, entry_cost(key.len(), value.heap_len(), deadline.is_some()), 1)?;
        let sequence = self.next_sequence();
        match place {
            Some(place) => self.change(db, |database| {
                database.edit(place, sequence, |stored| *stored = value);
                if deadline != old {
                    database.set_deadline(place, deadline, sequence);
                }
            }),
            None => {
                let tag = Tag::new(&self.hasher, key);
                self.creations[tag.class(CREATION_CLASSES)] = sequence;
                let sequence = self.next_sequence();
                self.change(db, |database| {
                    database.insert(tag, key, value, deadline, sequence, now);
                });
            }
        }
        Ok(())
    }

    /// Edits the text of a value in place; `len` is its length afterwards.
    pub(super) fn edit(
        &mut self,
        db: usize,
        place: Place,
        len: usize,
        edit: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Failure> {
        let Some(entry) = self.databases[db].entry(place) else { return Ok(()) };
        let cost_with = |room: usize| entry_cost(entry.key.len(), room, entry.deadline.is_some());
        self.admit(db, cost_with(len), 0)?;
        // Room to grow only if a longer text is to come and the room itself can be had.
        let room = if len <= entry.value.heap_len() || self.admit(db, cost_with(room_for(len)), 0).is_err() {
            len
        } else {
            room_for(len)
        };
        let sequence = self.next_sequence();
        self.change(db, |database| database.edit(place, sequence, |value| value.edit(room, edit)));
        Ok(())
    }

    pub(super) fn set_deadline(&mut self, db: usize, place: Place, deadline: Option<UnixMillis>) {
        let sequence = self.next_sequence();
        self.change(db, |database| database.set_deadline(place, deadline, sequence));
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, db: usize, place: Place) -> Option<Entry> {
        self.change(db, |database| database.remove(place))
    }

    /// Removes a key; false if it was not there.
    pub(super) fn remove_key(&mut self, db: usize, key: &[u8], now: UnixMillis) -> bool {
        match self.find(db, key, Use::Peek, now) {
            Some(place) => self.remove(db, place).is_some(),
            None => false,
        }
    }

    /// Empties a database. Takes time in proportion to its size.
    pub(super) fn flush(&mut self, db: usize) {
        self.change(db, |database| *database = Database::new());
    }

    pub(super) fn swap(&mut self, first: usize, second: usize) {
        self.databases.swap(first, second);
        self.swaps[first] += 1;
        self.swaps[second] += 1;
    }

    /// A key drawn evenly among those that have not expired; drawn ones that have are removed.
    pub(super) fn random_key(&mut self, db: usize, now: UnixMillis) -> Option<&[u8]> {
        let place = loop {
            let position = self.below(self.databases[db].len())?;
            let (place, entry) = self.databases[db].nth(position)?;
            if !entry.is_expired(now) {
                break place;
            }
            self.expire(db, place);
        };
        self.databases[db].entry(place).map(|entry| &*entry.key)
    }

    pub(super) fn version(&self, db: usize, key: &[u8], now: UnixMillis) -> Version {
        let tag = Tag::new(&self.hasher, key);
        let entry = self.databases[db].find(tag, key).and_then(|place| self.databases[db].entry(place));
        let sequence = match entry {
            Some(entry) if !entry.is_expired(now) => entry.sequence,
            _ => self.creations[tag.class(CREATION_CLASSES)],
        };
        Version { swaps: self.swaps[db], sequence }
    }

    /// Removes up to `budget` entries whose deadline has passed; how many there were.
    pub(super) fn expire_some(&mut self, now: UnixMillis, budget: usize) -> usize {
        let mut removed = 0;
        for _ in 0..self.databases.len() {
            let db = self.expiry_hand;
            while let Some(place) = self.databases[db].first_expired(now) {
                if removed == budget {
                    return removed;
                }
                self.expire(db, place);
                removed += 1;
            }
            self.expiry_hand = (db + 1) % self.databases.len();
        }
        removed
    }

    /// Changes the limit of bytes, and evicts until it is kept.
    pub(super) fn resize(&mut self, bytes_max: u64, now: UnixMillis) {
        self.limits.bytes_max = bytes_max;
        self.shrink(u64::MAX, now);
    }

    /// Evicts until the limit is kept, sparing what was modified after `spared_after` as long as there is anything else.
    pub(super) fn shrink(&mut self, spared_after: u64, now: UnixMillis) {
        let mut sweep: Option<Hand> = None;
        while self.bytes > self.limits.bytes_max {
            if self.expire_some(now, 1) == 1 {
                continue;
            }
            // Once chance has failed, what is left to evict is rare: from there on it is looked for in order.
            let drawn = if sweep.is_none() { self.sample(spared_after) } else { None };
            let victim = drawn.or_else(|| self.sweep(sweep.get_or_insert_default(), spared_after));
            let Some((db, place)) = victim.or_else(|| self.sample(u64::MAX)) else { return };
            let entry = self.remove(db, place);
            self.note(db, entry);
            self.evicted += 1;
        }
    }

    pub(super) fn stats(&self) -> OriginStats {
        let databases = self
            .databases
            .iter()
            .map(|database| DatabaseStats { keys: database.len() as u64, expires: database.deadlines_len() as u64 });
        OriginStats {
            databases: databases.collect(),
            bytes_used: self.bytes,
            bytes_max: self.limits.bytes_max,
            evicted: self.evicted,
            expired: self.expired,
            hits: self.hits,
            misses: self.misses,
        }
    }

    pub(super) fn note_gone(&mut self, notes: bool) {
        if notes != self.gone.is_some() {
            self.gone = notes.then(Vec::new);
        }
    }

    pub(super) fn take_gone(&mut self) -> Vec<(u32, Vec<u8>)> {
        self.gone.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn note(&mut self, db: usize, entry: Option<Entry>) {
        if let (Some(gone), Some(entry)) = (&mut self.gone, entry) {
            gone.push((db as u32, entry.key.to_vec()));
        }
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn change<R>(&mut self, db: usize, change: impl FnOnce(&mut Database) -> R) -> R {
        let database = &mut self.databases[db];
        let before = database.bytes();
        let outcome = change(database);
        self.bytes = self.bytes - before + database.bytes();
        outcome
    }

    fn expire(&mut self, db: usize, place: Place) {
        let entry = self.remove(db, place);
        self.note(db, entry);
        self.expired += 1;
    }

    /// The least recently used of a few entries drawn by chance, or `None` if all of them are spared.
    fn sample(&mut self, spared_after: u64) -> Option<(usize, Place)> {
        let keys = self.databases.iter().map(Database::len).sum();
        let mut share = self.below(keys)?;
        let db = self.databases.iter().position(|database| {
            let found = share < database.len();
            share = share.saturating_sub(database.len());
            found
        })?;
        let mut oldest: Option<(UnixMillis, Place)> = None;
        for _ in 0..SAMPLES {
            let position = self.below(self.databases[db].len())?;
            let Some((place, entry)) = self.databases[db].nth(position) else { continue };
            if entry.sequence <= spared_after && oldest.is_none_or(|(accessed, _)| entry.accessed < accessed) {
                oldest = Some((entry.accessed, place));
            }
        }
        oldest.map(|(_, place)| (db, place))
    }

    /// The next entry that is not spared, looked for one by one from where `hand` stands.
    fn sweep(&mut self, hand: &mut Hand, spared_after: u64) -> Option<(usize, Place)> {
        while hand.db < self.databases.len() {
            while let Some((place, entry)) = self.databases[hand.db].nth(hand.position) {
                if entry.sequence <= spared_after {
                    return Some((hand.db, place));
                }
                hand.position += 1;
            }
            *hand = Hand { db: hand.db + 1, position: 0 };
        }
        None
    }

    /// A number below `limit`, evenly drawn; `None` if there is none. (SplitMix64)
    fn below(&mut self, limit: usize) -> Option<usize> {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (limit > 0).then(|| ((u128::from(mixed) * limit as u128) >> 64) as usize)
    }

    /// Recomputes what the invariants promise and tells the first difference.
    #[cfg(test)]
    pub(super) fn audit(&self) -> Result<(), String> {
        self.databases.iter().try_for_each(Database::audit)?;
        let bytes: u64 = self.databases.iter().map(Database::bytes).sum();
        if bytes != self.bytes {
            return Err(format!("{} bytes accounted, {bytes} in the databases", self.bytes));
        }
        if bytes > self.limits.bytes_max {
            return Err(format!("{bytes} bytes are more than the limit of {}", self.limits.bytes_max));
        }
        Ok(())
    }
}

/// Where a sweep stands.
#[derive(Default)]
struct Hand {
    db: usize,
    position: usize,
}
