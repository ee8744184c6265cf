//! The store of L1: what stays and what goes when there is no more room.
//!
//! ```text
//!   new ──► cold: a queue ──── was hit ────► hot: a clock, who was hit goes round again
//!             │ was not                        │ was not hit for a round
//!             ▼                                ▼
//!           gone, its name is remembered  ◄────┘        who comes back while its name is remembered goes to the hot ones
//! ```
//!
//! What is read once passes through the queue and harms nobody; what is wanted again stays. How many of the bytes the hot ones
//! may have adapts: where the cold bytes are hit nearly as often as the hot ones, what is hot is so no longer, and the queue
//! grows; where they are not, the hot ones get more. (`benches/hit_ratio` compares this with published policies; why no crate
//! does it is in ARCHITECTURE.md.)
//!
//! Entries are spread over shards by the hash of their keys, each behind a lock of its own. A hit takes it for reading and
//! writes two relaxed atomics; whatever else takes it for writing. Keys are compared by the caller: the store knows an entry
//! by a 32-bit part of its hash, its *name*, and by what the caller's comparison says.
//!
//! What is answered without the store, by a thread's front, it is told of now and then only. So an entry counts its hits itself,
//! and the store looks at that count when it is told, and before it lets the entry go.
//!
//! Invariants:
//! * A place is in exactly one of three lists: cold, hot, free. The table knows all that are not free, and no other.
//! * The bytes of a shard's entries never exceed its part of the bound when an operation ends. An entry larger than that is
//!   not kept, and what it was to replace is not there either.
//! * At most one entry is there for what the caller's comparison takes for one key, as long as its hash is the same.
//! * What leaves is dropped after the lock was given back.

use hashbrown::HashTable;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What can be stored.
pub(super) trait Item: Clone {
    /// Bytes that it counts for, always the same.
    fn bytes(&self) -> u64;

    /// Hits that it has had, those included that the store was not told of (the front's). Its low bits will do.
    fn hits(&self) -> u16;

    /// It leaves the store: told while the shard's lock is still held, whatever the reason.
    fn leave(&self);
}

/// A store of entries, bounded by their bytes.
#[derive(Debug)]
pub(super) struct Store<E> {
    shards: Box<[RwLock<Shard<E>>]>,
}

/// What an insertion has done.
#[derive(Debug)]
pub(super) struct Inserted<E> {
    /// What stood there for the same key.
    pub(super) replaced: Option<E>,
    /// What had to go for it, itself if it is too large.
    pub(super) evicted: Evicted<E>,
}

pub(super) type Evicted<E> = SmallVec<[E; 2]>;

/// All entries that are there throughout, each once, and some of those that come and go meanwhile. Holds a shard's lock for one
/// entry at a time.
#[derive(Debug)]
pub(super) struct Iter<'s, E> {
    store: &'s Store<E>,
    shard: usize,
    place: usize,
}

#[derive(Debug)]
struct Shard<E> {
    /// Places by name.
    table: HashTable<u32>,
    places: Vec<Place<E>>,
    /// The first of the free places, linked by `next`.
    free: u32,
    cold: List,
    hot: List,
    bytes_max: u64,
    /// Part of the bytes that the hot ones may have, in percent.
    hot_percent: u64,
    /// Entries that came since that was judged last.
    came: usize,
    ghosts: Ghosts,
}

/// 24 bytes, with an entry that is one pointer.
#[derive(Debug)]
struct Place<E> {
    entry: Option<E>,
    name: u32,
    newer: u32,
    older: u32,
    /// Hits since it came or was last spared, at most [`HITS_MAX`].
    hits: AtomicU8,
    is_hot: bool,
    /// What [`Item::hits`] said when they were counted last.
    hits_seen: AtomicU16,
}

/// Entries in the order in which they came or were last spared.
#[derive(Debug)]
struct List {
    oldest: u32,
    newest: u32,
    bytes: u64,
    count: usize,
    /// Hits since it was judged last; two at the same moment may count once.
    hits: AtomicU64,
}

/// Names of entries that had to go: sets of [`WAYS`], the newest first. 0 is none.
#[derive(Debug, Default)]
struct Ghosts {
    sets: Vec<[u32; WAYS]>,
}

/// No place.
const NONE: u32 = u32::MAX;
/// More hits than this do not make an entry stay longer.
const HITS_MAX: u8 = 2;
/// Percent of the bytes that the hot ones may have: at the start, least, most, and by how much it changes at once.
const HOT_AT_START: u64 = 90;
const HOT_MIN: u64 = 10;
const HOT_MAX: u64 = 95;
const HOT_STEP: u64 = 5;
/// It is judged whenever one of so many entries is new, and not before so many are.
const JUDGED_PART: usize = 20;
const JUDGED_MIN: usize = 32;
/// The hot ones lose if a cold byte is hit by more than so many tenths of what a hot one is.
const COLD_TENTHS: u128 = 4;
/// Names of one set.
const WAYS: usize = 8;
/// One name for so many entries is remembered.
const ENTRIES_PER_NAME: usize = 2;
/// A shard that is empty gives its memory back if it has this many places.
const GIVEN_BACK_MIN: usize = 64;
/// Entries that a smaller bound evicts under one lock.
const EVICTED_AT_ONCE_MAX: usize = 64;

// === impl Store ===

impl<E: Item> Store<E> {
    /// An empty store.
    pub(super) fn new(bytes_max: u64, shards: usize) -> Self {
        let count = shards.max(1).next_power_of_two();
        let bytes_max = bytes_max / count as u64;
        Self { shards: (0..count).map(|_| RwLock::new(Shard::new(bytes_max))).collect() }
    }

    /// True if there is an entry with this hash for which `is` says so; it counts as hit.
    #[inline]
    pub(super) fn hit(&self, hash: u64, is: impl Fn(&E) -> bool) -> bool {
        let shard = self.read(self.shard_of(hash));
        let Some(at) = shard.find(name_of(hash), is) else { return false };
        shard.count_hit(at);
        true
    }

    /// As [`Store::hit`], but it does not count.
    pub(super) fn peek(&self, hash: u64, is: impl Fn(&E) -> bool) -> bool {
        self.read(self.shard_of(hash)).find(name_of(hash), is).is_some()
    }

    /// Puts an entry in the place of one with this hash for which `is` says that it has the same key.
    pub(super) fn insert(&self, hash: u64, entry: E, is: impl Fn(&E) -> bool) -> Inserted<E> {
        self.write(self.shard_of(hash)).insert(name_of(hash), entry, is)
    }

    /// Puts an entry there, unless there is one with this hash for which `is` says that it has the same key: then `None`, else
    /// what had to go for it.
    pub(super) fn insert_new(&self, hash: u64, entry: E, is: impl Fn(&E) -> bool) -> Option<Evicted<E>> {
        self.write(self.shard_of(hash)).insert_new(name_of(hash), entry, is)
    }

    pub(super) fn remove(&self, hash: u64, is: impl Fn(&E) -> bool) -> Option<E> {
        let mut shard = self.write(self.shard_of(hash));
        let at = shard.find(name_of(hash), is)?;
        shard.take(at)
    }

    /// Changes the bound; returns how many entries had to go.
    pub(super) fn resize(&self, bytes_max: u64) -> u64 {
        let mut evicted = 0;
        for at in 0..self.shards.len() {
            loop {
                let mut gone: Vec<E> = Vec::new();
                let mut shard = self.write(at);
                shard.bytes_max = bytes_max / self.shards.len() as u64;
                while gone.len() < EVICTED_AT_ONCE_MAX && shard.bytes() > shard.bytes_max {
                    gone.extend(shard.evict());
                }
                drop(shard);
                evicted += gone.len() as u64;
                if gone.len() < EVICTED_AT_ONCE_MAX {
                    break;
                }
            }
        }
        evicted
    }

    pub(super) fn bytes(&self) -> u64 {
        (0..self.shards.len()).map(|at| self.read(at).bytes()).sum()
    }

    pub(super) fn len(&self) -> usize {
        (0..self.shards.len()).map(|at| self.read(at).len()).sum()
    }

    pub(super) fn iter(&self) -> Iter<'_, E> {
        Iter { store: self, shard: 0, place: 0 }
    }

    /// The low half of a hash chooses the shard, the high half is the name.
    #[inline]
    fn shard_of(&self, hash: u64) -> usize {
        hash as usize & (self.shards.len() - 1)
    }

    #[inline]
    fn read(&self, at: usize) -> RwLockReadGuard<'_, Shard<E>> {
        self.shards[at].read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, at: usize) -> RwLockWriteGuard<'_, Shard<E>> {
        self.shards[at].write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hits of a place, and more of them.
fn with_more(hits: u8, more: u16) -> u8 {
    u16::from(HITS_MAX).min(more.saturating_add(hits.into())) as u8
}

#[inline]
fn name_of(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The hash that the table is given: its place comes from the low bits, its tag from the high ones.
#[inline]
fn spread(name: u32) -> u64 {
    u64::from(name) << 32 | u64::from(name)
}

// === impl Iter ===

impl<E: Item> Iterator for Iter<'_, E> {
    type Item = E;

    fn next(&mut self) -> Option<E> {
        while self.shard < self.store.shards.len() {
            let shard = self.store.read(self.shard);
            let rest = shard.places.iter().enumerate().skip(self.place);
            if let Some((at, entry)) = rest.filter_map(|(at, place)| Some((at, place.entry.as_ref()?))).next() {
                self.place = at + 1;
                return Some(entry.clone());
            }
            (self.shard, self.place) = (self.shard + 1, 0);
        }
        None
    }
}

// === impl Shard ===

impl<E: Item> Shard<E> {
    fn new(bytes_max: u64) -> Self {
        Self {
            table: HashTable::new(),
            places: Vec::new(),
            free: NONE,
            cold: List::new(),
            hot: List::new(),
            bytes_max,
            hot_percent: HOT_AT_START,
            came: 0,
            ghosts: Ghosts::default(),
        }
    }

    fn bytes(&self) -> u64 {
        self.cold.bytes + self.hot.bytes
    }

    fn len(&self) -> usize {
        self.cold.count + self.hot.count
    }

    #[inline]
    fn find(&self, name: u32, is: impl Fn(&E) -> bool) -> Option<u32> {
        let wanted = |at: &u32| {
            let place = &self.places[*at as usize];
            place.name == name && place.entry.as_ref().is_some_and(&is)
        };
        self.table.find(spread(name), wanted).copied()
    }

    #[inline]
    fn count_hit(&self, at: u32) {
        let place = &self.places[at as usize];
        let more = place.hits_unseen().max(1);
        place.hits.store(with_more(place.hits.load(Ordering::Relaxed), more), Ordering::Relaxed);
        let counter = if place.is_hot { &self.hot.hits } else { &self.cold.hits };
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(more.into()), Ordering::Relaxed);
    }

    fn insert(&mut self, name: u32, entry: E, is: impl Fn(&E) -> bool) -> Inserted<E> {
        let bytes = entry.bytes();
        let at = self.find(name, is);
        if bytes > self.bytes_max {
            let replaced = at.and_then(|at| self.take(at));
            return Inserted { replaced, evicted: SmallVec::from_iter([entry]) };
        }
        if let Some(at) = at {
            let replaced = self.replace(at, entry);
            return Inserted { replaced, evicted: self.make_room(0) };
        }
        Inserted { replaced: None, evicted: self.add(name, entry, bytes) }
    }

    fn insert_new(&mut self, name: u32, entry: E, is: impl Fn(&E) -> bool) -> Option<Evicted<E>> {
        let bytes = entry.bytes();
        if self.find(name, is).is_some() {
            return None;
        }
        if bytes > self.bytes_max {
            return Some(SmallVec::from_iter([entry]));
        }
        Some(self.add(name, entry, bytes))
    }

    /// Puts an entry there that is new and not too large.
    fn add(&mut self, name: u32, entry: E, bytes: u64) -> Evicted<E> {
        self.came += 1;
        if self.came >= JUDGED_MIN.max(self.len() / JUDGED_PART) {
            self.judge();
        }
        // While there is room for all, the first are as good as any.
        let has_room = self.bytes() + bytes <= self.bytes_max && self.hot.bytes + bytes <= self.hot_bytes();
        let is_hot = self.ghosts.take(name) || has_room;
        let evicted = self.make_room(bytes);
        self.put(name, entry, is_hot);
        evicted
    }

    fn replace(&mut self, at: u32, entry: E) -> Option<E> {
        let bytes = entry.bytes();
        self.count_hit(at);
        let place = &mut self.places[at as usize];
        let list = if place.is_hot { &mut self.hot } else { &mut self.cold };
        *place.hits_seen.get_mut() = entry.hits();
        let replaced = place.entry.replace(entry);
        replaced.iter().for_each(E::leave);
        list.bytes = list.bytes + bytes - replaced.as_ref().map_or(0, E::bytes);
        replaced
    }

    /// Lets entries go until there is room for so many bytes more.
    fn make_room(&mut self, bytes: u64) -> Evicted<E> {
        let mut evicted = SmallVec::new();
        while self.bytes() + bytes > self.bytes_max || self.len() >= NONE as usize {
            match self.evict() {
                Some(entry) => evicted.push(entry),
                None => break,
            }
        }
        evicted
    }

    fn hot_bytes(&self) -> u64 {
        // Of the product of both, which need not fit.
        self.bytes_max / 100 * self.hot_percent + self.bytes_max % 100 * self.hot_percent / 100
    }

    /// Decides who has to go. Each turn of the loop spares an entry for a hit that it has had, or ends it.
    fn evict(&mut self) -> Option<E> {
        loop {
            let from_hot = self.hot.bytes > self.hot_bytes() || self.cold.oldest == NONE;
            let at = if from_hot { self.hot.oldest } else { self.cold.oldest };
            let place = self.places.get_mut(at as usize)?;
            // What was not told spares it, too; but it came some time ago, and tells no more what is hot now.
            let unseen = place.hits_unseen();
            let hits = place.hits.get_mut();
            *hits = with_more(*hits, unseen);
            if *hits == 0 {
                let name = place.name;
                self.ghosts.put(name, self.len());
                return self.take(at);
            }
            *hits -= 1;
            self.unlink(at);
            self.link(at, true);
        }
    }

    /// Compares how often a byte of either kind was hit.
    fn judge(&mut self) {
        let taken = |hits: &mut AtomicU64| u128::from(std::mem::take(hits.get_mut()));
        let (cold, hot) = (taken(&mut self.cold.hits), taken(&mut self.hot.hits));
        let cold_wins = cold * u128::from(self.hot.bytes) * 10 > hot * u128::from(self.cold.bytes) * COLD_TENTHS;
        self.hot_percent = match cold_wins {
            true => self.hot_percent.saturating_sub(HOT_STEP).max(HOT_MIN),
            false => (self.hot_percent + HOT_STEP).min(HOT_MAX),
        };
        self.came = 0;
    }

    fn put(&mut self, name: u32, entry: E, is_hot: bool) {
        let (hits, hits_seen) = (AtomicU8::new(0), AtomicU16::new(entry.hits()));
        let place = Place { entry: Some(entry), name, newer: NONE, older: NONE, hits, is_hot, hits_seen };
        let at = self.free;
        match self.places.get_mut(at as usize) {
            Some(free) => {
                self.free = free.newer;
                *free = place;
                self.register(name, at, is_hot);
            }
            None => {
                let at = self.places.len() as u32;
                self.places.push(place);
                self.register(name, at, is_hot);
            }
        }
    }

    fn register(&mut self, name: u32, at: u32, is_hot: bool) {
        self.link(at, is_hot);
        let places = &self.places;
        self.table.insert_unique(spread(name), at, |other| spread(places[*other as usize].name));
    }

    /// Takes an entry out and frees its place.
    fn take(&mut self, at: u32) -> Option<E> {
        self.unlink(at);
        let free = self.free;
        let place = self.places.get_mut(at as usize)?;
        let entry = place.entry.take();
        entry.iter().for_each(E::leave);
        place.newer = free;
        self.free = at;
        if let Ok(known) = self.table.find_entry(spread(place.name), |other| *other == at) {
            known.remove();
        }
        if self.len() == 0 && self.places.len() >= GIVEN_BACK_MIN {
            // What was emptied takes no memory; nothing in it is worth keeping.
            *self = Self { hot_percent: self.hot_percent, ..Self::new(self.bytes_max) };
        }
        entry
    }

    /// Makes an entry the newest of a list.
    fn link(&mut self, at: u32, is_hot: bool) {
        let list = if is_hot { &mut self.hot } else { &mut self.cold };
        let older = std::mem::replace(&mut list.newest, at);
        if let Some(place) = self.places.get_mut(older as usize) {
            place.newer = at;
        } else {
            list.oldest = at;
        }
        let place = &mut self.places[at as usize];
        (place.older, place.newer, place.is_hot) = (older, NONE, is_hot);
        list.bytes += place.entry.as_ref().map_or(0, E::bytes);
        list.count += 1;
    }

    fn unlink(&mut self, at: u32) {
        let place = &self.places[at as usize];
        let list = if place.is_hot { &mut self.hot } else { &mut self.cold };
        list.bytes -= place.entry.as_ref().map_or(0, E::bytes);
        list.count -= 1;
        let (older, newer) = (place.older, place.newer);
        match self.places.get_mut(older as usize) {
            Some(place) => place.newer = newer,
            None => list.oldest = newer,
        }
        match self.places.get_mut(newer as usize) {
            Some(place) => place.older = older,
            None => list.newest = older,
        }
    }
}

// === impl Place ===

impl<E: Item> Place<E> {
    /// Hits of its entry since they were counted last; they are counted now.
    fn hits_unseen(&self) -> u16 {
        let hits = self.entry.as_ref().map_or(0, E::hits);
        let seen = self.hits_seen.load(Ordering::Relaxed);
        self.hits_seen.store(hits, Ordering::Relaxed);
        let unseen = hits.wrapping_sub(seen);
        // Another thread may have counted between the looks at the two: that is none, not nearly all that there could be.
        if unseen < u16::MAX / 2 { unseen } else { 0 }
    }
}

// === impl List ===

impl List {
    fn new() -> Self {
        Self { oldest: NONE, newest: NONE, bytes: 0, count: 0, hits: AtomicU64::new(0) }
    }
}

// === impl Ghosts ===

impl Ghosts {
    /// Remembers a name; `entries` says for how many there is to be room.
    fn put(&mut self, name: u32, entries: usize) {
        let wanted = (entries / (ENTRIES_PER_NAME * WAYS)).max(1);
        if self.sets.len() * 4 < wanted * 3 || self.sets.len() > wanted * 2 {
            let old = std::mem::replace(&mut self.sets, vec![[0; WAYS]; wanted]);
            old.iter().flat_map(|set| set.iter().rev()).for_each(|name| self.push(*name));
        }
        self.push(name);
    }

    fn push(&mut self, name: u32) {
        if name != 0
            && let Some(set) = self.set(name)
        {
            set.copy_within(..WAYS - 1, 1);
            set[0] = name;
        }
    }

    /// Forgets a name; true if it was remembered.
    fn take(&mut self, name: u32) -> bool {
        let Some(set) = self.set(name) else { return false };
        let Some(at) = set.iter().position(|other| *other == name).filter(|_| name != 0) else { return false };
        set.copy_within(at + 1.., at);
        set[WAYS - 1] = 0;
        true
    }

    fn set(&mut self, name: u32) -> Option<&mut [u32; WAYS]> {
        let at = (u64::from(name) * self.sets.len() as u64) >> 32;
        self.sets.get_mut(at as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// An entry: its key, its bytes, and which of its key's it is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Thing {
        key: u32,
        bytes: u64,
        version: u32,
    }

    impl Item for Thing {
        fn bytes(&self) -> u64 {
            self.bytes
        }

        fn hits(&self) -> u16 {
            0
        }

        fn leave(&self) {}
    }

    fn hash(key: u32) -> u64 {
        use std::hash::BuildHasher;
        foldhash::quality::FixedState::default().hash_one(key)
    }

    fn insert(store: &Store<Thing>, thing: Thing) -> Inserted<Thing> {
        store.insert(hash(thing.key), thing, |other| other.key == thing.key)
    }

    fn hit(store: &Store<Thing>, key: u32) -> bool {
        store.hit(hash(key), |thing| thing.key == key)
    }

    /// Reads as L1 is read: what misses is filled. Returns how many hit.
    fn read(store: &Store<Thing>, keys: impl Iterator<Item = u32>) -> usize {
        let missed = |key: &u32| {
            let missed = !hit(store, *key);
            if missed {
                insert(store, Thing { key: *key, bytes: 10, version: 0 });
            }
            missed
        };
        let keys: Vec<u32> = keys.collect();
        keys.len() - keys.iter().filter(|key| missed(key)).count()
    }

    fn check(shard: &Shard<Thing>) {
        let mut listed = 0;
        for (list, is_hot) in [(&shard.cold, false), (&shard.hot, true)] {
            let (mut at, mut older, mut bytes, mut count) = (list.oldest, NONE, 0, 0);
            while at != NONE {
                let place = &shard.places[at as usize];
                let thing = place.entry.unwrap();
                assert_eq!((place.older, place.is_hot, place.name), (older, is_hot, name_of(hash(thing.key))));
                assert!(shard.table.find(spread(place.name), |other| *other == at).is_some());
                (bytes, count) = (bytes + thing.bytes, count + 1);
                (older, at) = (at, place.newer);
            }
            assert_eq!((list.newest, list.bytes, list.count), (older, bytes, count));
            listed += count;
        }
        let (mut free, mut at) = (0, shard.free);
        while let Some(place) = shard.places.get(at as usize) {
            assert!(place.entry.is_none());
            (free, at) = (free + 1, place.newer);
        }
        assert_eq!((listed, listed + free), (shard.table.len(), shard.places.len()));
        assert!(shard.bytes() <= shard.bytes_max);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u64),
        InsertNew(u32, u64),
        Hit(u32),
        Remove(u32),
        Resize(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..60_u32, prop_oneof![20 => 1..40_u64, 1 => 300..900_u64]).prop_map(|(key, bytes)| Step::Insert(key, bytes)),
            4 => (0..60_u32, prop_oneof![20 => 1..40_u64, 1 => 300..900_u64]).prop_map(|(key, bytes)| Step::InsertNew(key, bytes)),
            8 => (0..60_u32).prop_map(Step::Hit),
            2 => (0..60_u32).prop_map(Step::Remove),
            1 => (0..900_u64).prop_map(Step::Resize),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn what_has_not_left_is_there_and_nothing_else(steps in steps(), shards in 1..3_usize) {
            let store = Store::new(500, shards);
            let mut held: HashMap<u32, Thing> = HashMap::new();
            for (version, step) in (0..).zip(steps) {
                match step {
                    Step::Insert(key, bytes) => {
                        let thing = Thing { key, bytes, version };
                        let Inserted { replaced, evicted } = insert(&store, thing);
                        prop_assert_eq!(replaced, held.insert(key, thing));
                        for gone in evicted {
                            prop_assert_eq!(held.remove(&gone.key), Some(gone));
                        }
                    }
                    Step::InsertNew(key, bytes) => {
                        let thing = Thing { key, bytes, version };
                        let evicted = store.insert_new(hash(key), thing, |other| other.key == key);
                        prop_assert_eq!(evicted.is_none(), held.contains_key(&key));
                        if evicted.is_some() {
                            held.insert(key, thing);
                        }
                        for gone in evicted.into_iter().flatten() {
                            prop_assert_eq!(held.remove(&gone.key), Some(gone));
                        }
                    }
                    Step::Hit(key) => prop_assert_eq!(hit(&store, key), held.contains_key(&key)),
                    Step::Remove(key) => {
                        prop_assert_eq!(store.remove(hash(key), |thing| thing.key == key), held.remove(&key));
                    }
                    Step::Resize(bytes_max) => {
                        let before = store.len();
                        let evicted = store.resize(bytes_max);
                        held = store.iter().map(|thing| (thing.key, thing)).collect();
                        prop_assert_eq!(before, held.len() + evicted as usize);
                    }
                }
                store.shards.iter().for_each(|shard| check(&shard.read().unwrap()));
                let there: HashMap<u32, Thing> = store.iter().map(|thing| (thing.key, thing)).collect();
                prop_assert_eq!(&there, &held);
                prop_assert_eq!((store.len(), store.bytes()), (held.len(), held.values().map(|t| t.bytes).sum()));
            }
        }
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_wanted_again() {
        let store = Store::new(10_000, 1);
        for _ in 0..5 {
            read(&store, 0..500);
        }
        read(&store, 1_000_000..1_050_000);
        assert!(read(&store, 0..500) > 450);
    }

    #[test]
    fn what_was_hot_gives_way_to_what_is() {
        let store = Store::new(10_000, 1);
        for _ in 0..5 {
            read(&store, 0..900);
        }
        // Each of the new ones is read twice soon after another: there is always a hit among the cold.
        for round in 0..20 {
            read(&store, (0..2_000).map(|at| 10_000 + round * 500 + at / 2 % 1_000));
        }
        let shard = store.shards[0].read().unwrap();
        assert!(shard.hot_percent < HOT_AT_START, "{}", shard.hot_percent);
        drop(shard);
        assert!((0..900).filter(|key| hit(&store, *key)).count() < 100);
    }

    /// An entry that counts its hits itself.
    #[derive(Clone)]
    struct Counting(u32, std::sync::Arc<AtomicU16>);

    impl Item for Counting {
        fn bytes(&self) -> u64 {
            10
        }

        fn hits(&self) -> u16 {
            self.1.load(Ordering::Relaxed)
        }

        fn leave(&self) {}
    }

    #[test]
    fn hits_that_the_store_was_not_told_of_count_when_it_looks() {
        let store = Store::new(1_000, 1);
        let is = |key| move |other: &Counting| other.0 == key;
        let put = |key| _ = store.insert_new(hash(key), Counting(key, std::sync::Arc::default()), is(key));
        (0..100).for_each(put);
        let counters: HashMap<u32, _> = store.iter().map(|entry| (entry.0, entry.1)).collect();
        let shard = store.shards[0].read().unwrap();
        let cold: Vec<u32> =
            shard.places.iter().filter(|place| !place.is_hot).map(|p| p.entry.as_ref().unwrap().0).collect();
        drop(shard);
        assert!(cold.len() >= 5);
        // Who is hit by an account of its own stays when the others go, without the store having been told.
        let hit = &cold[2..4];
        hit.iter().for_each(|key| _ = counters[key].fetch_add(3, Ordering::Relaxed));
        (1000..1000 + 2 * cold.len() as u32).for_each(put);
        assert!(cold.iter().all(|key| store.peek(hash(*key), is(*key)) == hit.contains(key)));
        // Told of one, the store counts all.
        let hot_hits = || store.shards[0].read().unwrap().hot.hits.load(Ordering::Relaxed);
        assert!(store.hit(hash(hit[0]), is(hit[0])));
        let before = hot_hits();
        counters[&hit[0]].fetch_add(8, Ordering::Relaxed);
        assert!(store.hit(hash(hit[0]), is(hit[0])));
        assert_eq!(hot_hits() - before, 8);
    }

    #[test]
    fn who_comes_back_is_hot() {
        let store = Store::new(1_000, 1);
        read(&store, 0..200);
        let gone = (0..200).rev().find(|key| !hit(&store, *key)).unwrap();
        read(&store, gone..=gone);
        let shard = store.shards[0].read().unwrap();
        let at = shard.find(name_of(hash(gone)), |thing| thing.key == gone).unwrap();
        assert!(shard.places[at as usize].is_hot);
    }

    #[test]
    fn names_are_remembered_for_half_of_the_entries_and_forgotten_in_their_order() {
        let mut ghosts = Ghosts::default();
        let names = |from: u32| (from..from + 2_000).map(|key| name_of(hash(key)));
        names(0).for_each(|name| ghosts.put(name, 8_000));
        assert_eq!(ghosts.sets.len(), 500);
        // More than fit only where a set has got many.
        let known = names(0).filter(|name| ghosts.take(*name)).count();
        assert!(known > 1_950 && names(0).all(|name| !ghosts.take(name)), "{known}");
        names(0).chain(names(10_000)).chain(names(20_000)).for_each(|name| ghosts.put(name, 8_000));
        let known = [0, 10_000, 20_000].map(|from| names(from).filter(|name| ghosts.take(*name)).count());
        assert!(known[0] < known[1] && known[1] < known[2] && known[2] > 1_900, "{known:?}");
        // Room for more keeps what is known, room for less the newest of it.
        names(0).for_each(|name| ghosts.put(name, 8_000));
        names(10_000).take(1).for_each(|name| ghosts.put(name, 32_000));
        assert!(ghosts.sets.len() == 2_000 && names(0).filter(|name| ghosts.take(*name)).count() > 1_950);
        names(0).for_each(|name| ghosts.put(name, 32_000));
        names(10_000).take(1).for_each(|name| ghosts.put(name, 1_600));
        assert!(ghosts.sets.len() == 100 && names(0).filter(|name| ghosts.take(*name)).count() >= 700);
    }

    #[test]
    fn a_shard_that_was_emptied_gives_its_memory_back() {
        let store = Store::new(100_000, 1);
        read(&store, 0..5_000);
        (0..5_000).for_each(|key| assert_eq!(store.remove(hash(key), |thing| thing.key == key).unwrap().key, key));
        assert_eq!((store.len(), store.bytes(), store.shards[0].read().unwrap().places.capacity()), (0, 0, 0));
    }
}
