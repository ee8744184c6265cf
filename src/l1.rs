//! L1: the in-process cache.
//!
//! One store, weighted by bytes, is shared by all threads and all scopes. A scope owns a *partition* of it, in two
//! halves: [`Partition`], which any thread reads, and [`Filler`], which only the reader task of the scope's link
//! holds. That one task changes the partition is what makes L1 as a whole a part of one state of the upstream.
//!
//! ```text
//!   store:  (partition id, key)  ->  entry
//!   entry:  one allocation: header | key | variant | variant | ...
//!   variant: command and arguments without the key  ->  the RESP3 reply, ready to send
//! ```
//!
//! Invariants:
//! * An entry holds all variants of its key, so one invalidation drops them all.
//! * Emptying a partition gives it a new id, at once and whatever its size. Entries under an old id can never be found
//!   again; they leave by eviction or are swept (the module `sweep`).
//! * An entry is never changed, only replaced; that the same entry is still there means that its key has not been
//!   touched since ([`Partition::holds`]).
//! * Nothing is answered at or after an entry's deadline.
//!
//! The bytes of a store are bounded: keys, replies, headers and what the cache itself needs for an entry are counted.

mod ahead;
mod cause;
mod compress;
mod entry;
mod front;
mod soft;
mod stale;
mod store;
mod sweep;
#[cfg(test)]
mod tests;
mod warmth;

pub use self::cause::Cause;
pub use self::entry::{EntryFacts, Hit, Reply, Variant};
pub use self::soft::{Reader, SoftRead, Softened, Softening, Standing};

use self::cause::Causes;
use self::compress::Savings;
use self::entry::{Found, HIT, Header, MARKED, PARTITIONS_MAX, REFRESHED, Slot, Stored, UNTOLD, encode};
use self::front::Known;
pub use self::front::RUN_MAX;
use self::soft::Softs;
use self::stale::Left;
use self::store::Store;
use self::sweep::Sweeps;
use crate::clock::Time;
use crate::config::L1Config;
use crate::insight::{self, Insight, ScopeId};
use crate::mutation::{Mutation, is_planted};
use crate::outgoing::SHARED_BYTES_MIN;
use arc_swap::{ArcSwap, ArcSwapOption};
use larder_protocol::glob::{self, Case};
use std::cell::Cell;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Sizes of the store.
#[derive(Clone, Copy, Debug)]
pub struct L1Settings {
    /// Most bytes of all entries together, bookkeeping included.
    pub size_bytes_max: u64,
    /// Most bytes of one entry: larger replies are not kept.
    pub entry_bytes_max: usize,
    /// Most variants of one key; one more replaces them all.
    pub variants_per_key_max: usize,
    /// Replies of so many bytes and more are compressed; `None`: none is.
    pub compress_min_bytes: Option<usize>,
}

impl L1Settings {
    /// As configured.
    pub fn of(config: &L1Config) -> Self {
        Self {
            size_bytes_max: config.size_bytes_max as u64,
            entry_bytes_max: config.entry_bytes_max,
            variants_per_key_max: config.variants_per_key_max,
            compress_min_bytes: config.compress_min_bytes,
        }
    }
}

/// The store that all partitions share.
pub struct L1 {
    store: Store<Slot>,
    hasher: foldhash::fast::RandomState,
    settings: Arc<ArcSwap<L1Settings>>,
    evictions: AtomicU64,
    causes: Causes,
    insight: Arc<Insight>,
    sweeps: Sweeps,
    savings: Savings,
}

/// A scope's part of L1, for reading.
pub struct Partition {
    l1: Arc<L1>,
    scope: ScopeId,
    id: AtomicU64,
    /// The id before the suspension at hand, whose entries are still to be swept.
    id_before: AtomicU64,
    /// True if what is under that id is still what it was: the suspension was a pause.
    before_is_whole: AtomicBool,
    filled: AtomicBool,
    removals: AtomicU64,
    first_hits: AtomicU64,
    suspended: AtomicU32,
    peers: ArcSwap<Vec<Weak<Partition>>>,
    /// False if there are none, which costs less to see than a look at them.
    has_peers: AtomicBool,
    /// What it held when the feed was lost, while that may be answered.
    left: ArcSwapOption<Left>,
    /// What an operator has invalidated softly.
    softs: Softs,
    peer_fills: [AtomicU64; PEER_FILL_STRIPES],
}

/// The right to change a partition. There is one for each, held by the reader task of the scope's link.
pub struct Filler {
    partition: Arc<Partition>,
    /// What will be left behind.
    aside: Option<Left>,
    settings: arc_swap::Cache<Arc<ArcSwap<L1Settings>>, Arc<L1Settings>>,
    /// The buffer in which entries are made up.
    scratch: Vec<u8>,
}

/// How a read was answered.
#[derive(Clone, Debug)]
pub enum Answered {
    /// The reply has been handed out.
    Put,
    /// The reply is not small, not the same in both protocols, or has a deadline that had to be looked at: here it is.
    Hit(Hit),
}

/// Which replies may leave at once.
#[derive(Clone, Copy, Debug)]
pub struct Leaves {
    /// Only those that are the same in both protocols.
    pub same_only: bool,
    /// Those with a deadline, too: nobody wants to know how near it is.
    pub with_deadline: bool,
}

/// What a reply that is offered to L1 was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillKind {
    /// A read that L1 could not answer.
    Miss,
    /// The same; the first hit of the entry is to be counted, unless the key has an entry already.
    Marked,
    /// To refresh the entry before its deadline.
    Refresh,
}

/// What became of a reply that was offered to L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// It is in L1.
    Stored,
    /// It is larger than `l1.entry_bytes_max`.
    TooBig,
    /// Another user's scope still holds another answer.
    Contradicted,
    /// Its deadline has passed already, or the partition is suspended.
    Dead,
}

/// Fills of peers are counted in so many groups of keys. Keys of one group are taken for each other, which costs a fill.
const PEER_FILL_STRIPES: usize = 64;

/// The id of a suspended partition: no entry has it.
const NOWHERE: u64 = 0;

/// Ids are not used twice in a process, whatever the store: see the module `front`.
static LAST_ID: AtomicU64 = AtomicU64::new(NOWHERE);

// === impl L1 ===

impl L1 {
    /// A store of the given size, empty.
    pub fn new(settings: L1Settings) -> Arc<Self> {
        Self::watched(settings, Insight::new(0))
    }

    /// As [`L1::new`]; what happens to keys is told to `insight`.
    pub fn watched(settings: L1Settings, insight: Arc<Insight>) -> Arc<Self> {
        let store = Store::new(settings.size_bytes_max, shards_for(settings));
        let (causes, sweeps, savings) = (Causes::default(), Sweeps::default(), Savings::default());
        let (hasher, settings) = (foldhash::fast::RandomState::default(), Arc::new(ArcSwap::from_pointee(settings)));
        Arc::new(Self { store, hasher, settings, evictions: AtomicU64::new(0), causes, insight, sweeps, savings })
    }

    /// A new partition, empty, with the one right to fill it.
    pub fn partition(self: &Arc<Self>) -> (Arc<Partition>, Filler) {
        let id = self.next_id();
        let partition = Arc::new(Partition {
            l1: self.clone(),
            scope: ScopeId(id),
            id: AtomicU64::new(id),
            id_before: AtomicU64::new(NOWHERE),
            before_is_whole: AtomicBool::new(false),
            filled: AtomicBool::new(false),
            removals: AtomicU64::new(0),
            first_hits: AtomicU64::new(0),
            suspended: AtomicU32::new(0),
            peers: ArcSwap::default(),
            has_peers: AtomicBool::new(false),
            left: ArcSwapOption::empty(),
            softs: Softs::default(),
            peer_fills: std::array::from_fn(|_| AtomicU64::new(0)),
        });
        let settings = arc_swap::Cache::new(self.settings.clone());
        (partition.clone(), Filler { partition, aside: None, settings, scratch: Vec::new() })
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.store.bytes()
    }

    /// Entries in use, those of emptied partitions included until they have been swept.
    pub fn entries(&self) -> usize {
        self.store.len()
    }

    /// Entries that had to go for others since the start.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Entries that left for this cause since the start.
    pub fn removed(&self, cause: Cause) -> u64 {
        match cause {
            Cause::CapacityLimit => self.evictions(),
            _ => self.causes.count(cause),
        }
    }

    /// Replies that were compressed (`l1.compress_min_bytes`), and bytes that this has saved, since the start.
    pub fn compressed(&self) -> (u64, u64) {
        self.savings.totals()
    }

    /// What is seen of the keys.
    pub fn insight(&self) -> &Arc<Insight> {
        &self.insight
    }

    /// The limits in force.
    pub fn settings(&self) -> L1Settings {
        **self.settings.load()
    }

    /// Changes the limits. A smaller store evicts at once; entries that are larger than they may be now stay until they go.
    pub fn resize(&self, settings: L1Settings) {
        self.settings.store(Arc::new(settings));
        self.evictions.fetch_add(self.store.resize(settings.size_bytes_max), Ordering::Relaxed);
    }

    /// Visits an entry, as one that is in use, while the lock of its shard is held. So a hit is copied out without taking a
    /// reference to the entry and giving it back, two locked instructions on memory that all threads share. `visit` must be
    /// short and must not use the store, nor call what may (a simulation moves the link wherever the clock is asked for).
    #[inline]
    fn visit(&self, partition: u64, key: &[u8], visit: impl Fn(&Slot)) {
        self.store.hit(self.hash(partition, key), |entry| {
            let is = entry.is_of(partition, key);
            if is {
                visit(entry);
            }
            is
        });
    }

    /// An entry, as one that is in use.
    fn find(&self, partition: u64, key: &[u8]) -> Option<Slot> {
        let found = Cell::new(None);
        self.visit(partition, key, |entry| found.set(Some(entry.clone())));
        found.into_inner()
    }

    /// An entry, without a trace of its having been looked at.
    fn peek(&self, partition: u64, key: &[u8]) -> Option<Slot> {
        let found = Cell::new(None);
        self.store.peek(self.hash(partition, key), |entry| {
            let is = entry.is_of(partition, key);
            if is {
                found.set(Some(entry.clone()));
            }
            is
        });
        found.into_inner()
    }

    /// Puts an entry into the store; returns the one that it has replaced.
    fn insert(&self, partition: u64, key: &[u8], entry: Slot) -> Option<Slot> {
        let inserted = self.store.insert(self.hash(partition, key), entry, |other| other.is_of(partition, key));
        self.evictions.fetch_add(inserted.evicted.len() as u64, Ordering::Relaxed);
        inserted.replaced
    }

    /// Puts an entry into the store, if there is none of its key; false if there is.
    fn insert_new(&self, partition: u64, key: &[u8], entry: Slot) -> bool {
        let is = |other: &Slot| other.is_of(partition, key);
        let Some(evicted) = self.store.insert_new(self.hash(partition, key), entry, is) else { return false };
        if !evicted.is_empty() {
            self.evictions.fetch_add(evicted.len() as u64, Ordering::Relaxed);
        }
        true
    }

    fn remove(&self, partition: u64, key: &[u8]) -> Option<Slot> {
        self.store.remove(self.hash(partition, key), |entry| entry.is_of(partition, key))
    }

    #[inline]
    fn hash(&self, partition: u64, key: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        hasher.write_u64(partition);
        hasher.finish()
    }

    fn next_id(&self) -> u64 {
        LAST_ID.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// This thread forgets where it has found entries lately, of whatever store: what it does from now on does not depend on what
/// it did before.
pub fn forget_lately_found() {
    front::clear();
}

/// A shard must hold several of the largest entries, or it would have no choice in what to evict.
fn shards_for(settings: L1Settings) -> usize {
    let by_size = settings.size_bytes_max / (8 * settings.entry_bytes_max.max(1) as u64);
    let by_threads = std::thread::available_parallelism().map_or(4, usize::from) * 4;
    (by_size as usize).clamp(1, by_threads)
}

// === impl Partition ===

impl Partition {
    /// Looks for the reply to a read of `key`. `now` is asked for only if the entry has a deadline.
    #[inline]
    pub fn read(&self, key: &[u8], variant: Variant<'_>, now: impl FnOnce() -> Time) -> Option<Hit> {
        let entry = self.l1.find(self.id.load(Ordering::Acquire), key)?;
        let hit = Hit::of(entry, variant, Found::There)?;
        hit.entry.is_hit(now, &self.first_hits).then_some(hit)
    }

    /// As [`Partition::read`], for a reply that can leave at once: one that is short, and is as `leaves` says, is given to
    /// `put` without a reference to its entry being taken. `hash` is [`Partition::hash_of`] the key.
    #[inline]
    pub fn answer(
        &self,
        key: &[u8],
        hash: u64,
        variant: Variant<'_>,
        leaves: Leaves,
        now: impl Fn() -> Time,
        put: impl FnOnce(Reply<'_>),
    ) -> Option<Answered> {
        let id = self.id.load(Ordering::Acquire);
        let mut put = Some(put);
        let tells_store = Cell::new(false);
        let known = front::find(hash, |entry| {
            if !entry.stands_for(id, key) {
                return Known::No;
            }
            tells_store.set(front::is_told(entry));
            if let Some(reply) = entry.ready(variant, key.len(), leaves.same_only) {
                entry.count_hit(&self.first_hits);
                if let Some(put) = put.take() {
                    put(reply);
                }
                return Known::Done;
            }
            let Some(stored) = entry.variant(variant).filter(|stored| leaves.at_once(entry, stored)) else {
                return Known::Passed;
            };
            if !entry.is_hit(&now, &self.first_hits) {
                return Known::Dead;
            }
            if let Some(put) = put.take() {
                put(entry.reply(&stored));
            }
            Known::Done
        });
        match known {
            Known::Done => {
                if tells_store.get() {
                    self.l1.visit(id, key, |_| {});
                }
                return Some(Answered::Put);
            }
            Known::Dead => return None,
            Known::Passed | Known::No => {}
        }
        let place = if known == Known::No { front::place_for(hash) } else { None };
        let (answered, put, found) = (Cell::new(None), Cell::new(put), Cell::new(None));
        self.l1.visit(id, key, |entry| {
            let ready = entry.ready(variant, key.len(), leaves.same_only);
            let stored = if ready.is_none() { entry.variant(variant) } else { None };
            if place.is_some() && (ready.is_some() || stored.is_some()) && front::takes(entry) {
                found.set(Some(entry.clone()));
            }
            let may_leave = |stored: &Stored| leaves.at_once(entry, stored) && !entry.has_deadline();
            let reply = ready.or_else(|| stored.as_ref().filter(|stored| may_leave(stored)).map(|s| entry.reply(s)));
            if let Some(reply) = reply
                && let Some(put) = put.take()
            {
                entry.count_hit(&self.first_hits);
                put(reply);
                answered.set(Some(Answered::Put));
            } else if let Some(stored) = stored {
                let entry = entry.clone();
                answered.set(Some(Answered::Hit(Hit { entry, stored, found: Found::There })));
            }
        });
        if let (Some(found), Some(place)) = (found.into_inner(), place) {
            front::put(hash, place, found);
        }
        match answered.into_inner()? {
            Answered::Hit(hit) if !hit.entry.is_hit(now, &self.first_hits) => None,
            answered => Some(answered),
        }
    }

    /// As [`Partition::answer`], for at most [`RUN_MAX`] keys, one after the other, each at a moment of its own, as long as this
    /// thread has found them lately, they can leave at once, and `put` says true. Returns how many were answered.
    #[inline]
    pub fn answer_run<'k>(
        &self,
        hashes: &[u64],
        key_of: impl Fn(usize) -> &'k [u8],
        variant: Variant<'_>,
        leaves: Leaves,
        now: &dyn Fn() -> Time,
        mut put: impl FnMut(Reply<'_>) -> bool,
    ) -> usize {
        let (mut answered, mut told) = (0, 0_u32);
        front::run(hashes, |n, entry| {
            let key = key_of(n);
            if !entry.stands_for(self.id.load(Ordering::Acquire), key) {
                return false;
            }
            let is_told = front::is_told(entry);
            let reply = if let Some(reply) = entry.ready(variant, key.len(), leaves.same_only) {
                entry.count_hit(&self.first_hits);
                reply
            } else {
                let stored = entry.variant(variant).filter(|stored| leaves.at_once(entry, stored));
                let Some(stored) = stored.filter(|_| entry.is_hit(now, &self.first_hits)) else { return false };
                entry.reply(&stored)
            };
            answered = n + 1;
            told |= u32::from(is_told) << n;
            put(reply)
        });
        while told != 0 {
            self.l1.visit(self.id.load(Ordering::Acquire), key_of(told.trailing_zeros() as usize), |_| {});
            told &= told - 1;
        }
        answered
    }

    /// The hash of one of its keys, the same for ever, whatever is emptied.
    #[inline]
    pub fn hash_of(&self, key: &[u8]) -> u64 {
        insight::hash_of(self.scope, key)
    }

    /// The partition's number for [`Insight`]: its own for ever, whatever is emptied.
    #[inline]
    pub fn scope(&self) -> ScopeId {
        self.scope
    }

    /// True if the entry of `hit` is still the one in L1 and alive: its key has had the same value from the time of
    /// the hit until now.
    pub fn holds(&self, hit: &Hit, now: Time) -> bool {
        hit.entry.header().deadline > now
            && hit.entry.header().partition == self.id.load(Ordering::Acquire)
            && self.peek(hit.entry.key()).is_some_and(|e| e.is(&hit.entry))
    }

    /// Sets the partitions of other users of the same database. While one of them holds another answer to the same read,
    /// this one is not filled with it: a client of this scope would be told at once what a client of that scope could
    /// still be told to be otherwise. All their links run on one thread, so that looking and filling are one step. One call at
    /// a time.
    pub fn set_peers(&self, peers: Vec<Weak<Partition>>) {
        let has_peers = !peers.is_empty();
        self.has_peers.fetch_or(has_peers, Ordering::SeqCst);
        self.peers.store(Arc::new(peers));
        self.has_peers.store(has_peers, Ordering::SeqCst);
    }

    /// True if there are partitions of other users of the same database.
    #[inline]
    pub(crate) fn has_peers(&self) -> bool {
        self.has_peers.load(Ordering::Acquire)
    }

    fn is_contradicted(&self, key: &[u8], variant: Variant<'_>, reply: &[u8]) -> bool {
        let differs = |peer: &Weak<Partition>| {
            let held = peer.upgrade().and_then(|peer| peer.peek(key));
            let is_theirs =
                |entry: Slot| Hit::of(entry, variant, Found::There)?.reply().map(|theirs| *theirs == *reply);
            // An entry without this variant may be older, too: nothing is known of it.
            held.is_some_and(|entry| is_theirs(entry) != Some(true))
        };
        self.has_peers() && self.peers.load().iter().any(differs)
    }

    /// A number that grows when a peer is filled with this key; 0 without peers. A read that was sent before a peer was
    /// filled may be older than what clients of that peer have been answered since, even if the peer holds it no more: it
    /// is not to be kept.
    pub fn peer_fills(&self, key: &[u8]) -> u64 {
        match self.has_peers() {
            true => self.peer_fills[stripe_of(key, PEER_FILL_STRIPES)].load(Ordering::Relaxed),
            false => 0,
        }
    }

    fn tell_peers(&self, key: &[u8]) {
        if !self.has_peers() {
            return;
        }
        let stripe = stripe_of(key, PEER_FILL_STRIPES);
        for peer in self.peers.load().iter().filter_map(Weak::upgrade) {
            peer.peer_fills[stripe].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A number that grows after each removal and before any later fill. Hits between two equal readings were all true
    /// at once: who sees a fill that came after a removal sees the number that the removal left.
    pub fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// How many of the entries made by [`FillKind::Marked`] have been hit at least once, ever (approximately: two
    /// threads may hit one at the same moment).
    pub fn first_hits(&self) -> u64 {
        self.first_hits.load(Ordering::Relaxed)
    }

    /// True if nothing has been filled since the partition was emptied: there is nothing that could be stale.
    pub fn is_empty(&self) -> bool {
        !self.filled.load(Ordering::Acquire)
    }

    /// From now until as many calls of [`Partition::resume`] nothing is answered from the partition and nothing filled.
    pub fn suspend(&self) {
        self.suspended.fetch_add(1, Ordering::SeqCst);
        self.before_is_whole.store(false, Ordering::SeqCst);
        self.hide();
        self.drop_left();
    }

    /// As [`Partition::suspend`], where nothing is wrong with what is there: if the feed is lost meanwhile, that can be
    /// left behind.
    pub fn pause(&self) {
        self.suspended.fetch_add(1, Ordering::SeqCst);
        if self.hide() {
            self.before_is_whole.store(true, Ordering::SeqCst);
        }
    }

    /// From now on nothing is found; false if that was so before.
    fn hide(&self) -> bool {
        let id = self.id.swap(NOWHERE, Ordering::SeqCst);
        if id != NOWHERE {
            self.id_before.store(id, Ordering::SeqCst);
        }
        self.removals.fetch_add(1, Ordering::SeqCst);
        self.softs.clear();
        id != NOWHERE
    }

    /// Ends one suspension. What was filled before it stays out of reach.
    pub fn resume(&self) {
        if self.suspended.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.id.store(self.l1.next_id(), Ordering::SeqCst);
            // Another suspension may have begun between the two.
            if self.suspended.load(Ordering::SeqCst) > 0 {
                self.id.store(NOWHERE, Ordering::SeqCst);
            }
        }
    }

    /// What is known of the entry of `key`, if there is one.
    pub fn facts(&self, key: &[u8]) -> Option<EntryFacts> {
        let entry = self.peek(key)?;
        Some(entry.facts())
    }

    /// What is known of at most `max` entries. Looks at the whole store: not for a task that others wait for.
    pub fn some_facts(&self, max: usize) -> Vec<EntryFacts> {
        let id = self.id.load(Ordering::Acquire);
        let own = self.l1.store.iter().filter(|slot| slot.header().partition == id);
        own.take(max).map(|slot| slot.facts()).collect()
    }

    /// The store that the partition is a part of.
    pub fn store(&self) -> &Arc<L1> {
        &self.l1
    }

    /// Keys of entries that were hit since the last call, at most `max` of them: what the upstream should be told is
    /// in use. Looks at the whole store: not for a task that others wait for.
    pub fn take_touched(&self, max: usize) -> Vec<Vec<u8>> {
        let id = self.id.load(Ordering::Acquire);
        let touched = |slot: &Slot| {
            slot.header().partition == id && slot.hits().fetch_and(!UNTOLD, Ordering::Relaxed) & UNTOLD > 0
        };
        self.l1.store.iter().filter(touched).take(max).map(|slot| slot.key().to_vec()).collect()
    }

    /// Keys that match a glob pattern, of entries made at `made_by` or before, at most `max` of them. Looks at the whole
    /// store: not for a task that others wait for.
    pub fn keys_matching(&self, pattern: &[u8], made_by: Time, max: usize) -> Vec<Vec<u8>> {
        let id = self.id.load(Ordering::Acquire);
        let wanted = |slot: &Slot| {
            let header = slot.header();
            let matches = || pattern == b"*" || glob::matches(pattern, slot.key(), Case::Sensitive);
            header.partition == id && header.filled_at <= made_by && matches()
        };
        self.l1.store.iter().filter(wanted).take(max).map(|slot| slot.key().to_vec()).collect()
    }

    fn peek(&self, key: &[u8]) -> Option<Slot> {
        self.l1.peek(self.id.load(Ordering::Acquire), key)
    }
}

// === impl Leaves ===

impl Leaves {
    /// Those that are the same in both protocols and have no deadline.
    pub const SAME_FOR_EVER: Self = Self { same_only: true, with_deadline: false };

    /// True if a hit may leave at once, whatever its length.
    pub fn allows(self, hit: &Hit) -> bool {
        (hit.same_in_both() || !self.same_only) && (self.with_deadline || !hit.has_deadline())
    }

    #[inline]
    fn at_once(self, entry: &Slot, stored: &Stored) -> bool {
        stored.at.len() < SHARED_BYTES_MIN
            && !stored.is_packed
            && (stored.same_in_both || !self.same_only)
            && (self.with_deadline || !entry.has_deadline())
    }
}

// === impl Filler ===

impl Filler {
    /// The reading half.
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// Puts a RESP3 reply into L1, beside the other variants of its key.
    pub fn fill(&mut self, key: &[u8], variant: Variant<'_>, reply: &[u8], deadline: Time, now: Time) -> Filled {
        self.fill_as(FillKind::Miss, key, variant, reply, deadline, now)
    }

    /// As [`Filler::fill`], for what `kind` says.
    pub fn fill_as(
        &mut self,
        kind: FillKind,
        key: &[u8],
        variant: Variant<'_>,
        reply: &[u8],
        deadline: Time,
        now: Time,
    ) -> Filled {
        if now >= deadline {
            return Filled::Dead;
        }
        // Before the check for a suspension, so that what is filled in spite of one is filled under an id of before it.
        let partition = self.partition.id.load(Ordering::Acquire);
        if partition == NOWHERE || partition >= PARTITIONS_MAX {
            return Filled::Dead;
        }
        if self.partition.is_contradicted(key, variant, reply) {
            return Filled::Contradicted;
        }
        // The upstream is there: what other users' scopes of this database have left behind is older than this.
        if self.partition.has_peers() {
            self.partition.peers.load().iter().filter_map(Weak::upgrade).for_each(|peer| peer.drop_left());
        }
        let l1 = &self.partition.l1;
        let settings = **self.settings.load();
        l1.insight.sized(self.partition.scope, key, reply.len() as u64);
        if reply.len() > settings.entry_bytes_max {
            return Filled::TooBig;
        }
        let packed = compress::pack(reply, settings.compress_min_bytes);
        let body = encode(std::mem::take(&mut self.scratch), (key, now), &[], variant, reply, packed.as_deref());
        let is_too_big = body.len() > settings.entry_bytes_max;
        let mark = if kind == FillKind::Marked { MARKED } else { 0 };
        let slot = (!is_too_big).then(|| Slot::new(Header { partition, deadline, filled_at: now }, mark, &body));
        self.scratch = body.into_buffer();
        let Some(slot) = slot else { return Filled::TooBig };
        // Before the entry can be seen, so that who finds the partition empty cannot have missed it.
        self.partition.filled.store(true, Ordering::Release);
        self.partition.tell_peers(key);
        if kind == FillKind::Refresh || !l1.insert_new(partition, key, slot) {
            let Some(slot) =
                self.beside_old(kind, (partition, key), variant, reply, packed.as_deref(), (deadline, now))
            else {
                return Filled::TooBig;
            };
            if let Some(old) = self.partition.l1.insert(partition, key, slot) {
                self.partition.l1.causes.add(Cause::TtlExpired, u64::from(old.is_dead(now)));
            }
        }
        if let Some(packed) = packed {
            self.partition.l1.savings.add(reply.len(), packed.len());
        }
        Filled::Stored
    }

    /// The entry that takes the place of the one that may be there: with its other variants, its hits, and no longer a life, if
    /// it is alive. `None` if that is larger than an entry may be.
    fn beside_old(
        &self,
        kind: FillKind,
        (partition, key): (u64, &[u8]),
        variant: Variant<'_>,
        reply: &[u8],
        packed: Option<&[u8]>,
        (deadline, now): (Time, Time),
    ) -> Option<Slot> {
        let settings = self.partition.l1.settings();
        let stored_bytes = packed.map_or(reply.len(), <[u8]>::len);
        let encoded = |others: &[u8]| encode(Vec::new(), (key, now), others, variant, reply, packed);
        let old = self.partition.peek(key);
        let kept = old.as_ref().filter(|e| !e.is_dead(now));
        let kept = kept.map(|e| (e.other_variants(variant, settings.variants_per_key_max), e));
        let (body, deadline, hits) = match kept {
            // What is as young as the reply only by this one's deadline must not outlive its own. The mark goes with a time
            // that was extended, not with one that was measured anew.
            Some((_, e)) if kind == FillKind::Refresh && deadline > e.header().deadline => {
                let header = e.header();
                let life = header.deadline.saturating_since(header.filled_at);
                let is_extended = deadline.saturating_since(header.deadline) >= life / 8;
                let mark = if is_extended { REFRESHED } else { 0 };
                (encoded(&[]), deadline, e.hits().load(Ordering::Relaxed) & !mark)
            }
            Some((others, e)) if key.len() + others.len() + stored_bytes < settings.entry_bytes_max => {
                (encoded(&others), deadline.min(e.header().deadline), e.hits().load(Ordering::Relaxed))
            }
            _ => (encoded(&[]), deadline, if kind == FillKind::Marked { MARKED } else { 0 }),
        };
        let fits = body.len() <= settings.entry_bytes_max;
        fits.then(|| Slot::new(Header { partition, deadline, filled_at: now }, hits, &body))
    }

    /// Drops the entry of `key`, a soft one included; true if there was one that was not soft. If its deadline has passed,
    /// that is what counts as the cause.
    pub fn remove(&mut self, key: &[u8], cause: Cause, now: Time) -> bool {
        if !is_planted(Mutation::SoftOverAChange) {
            self.end_soft(key);
        }
        self.take_out(key, cause, now).is_some()
    }

    /// As [`Filler::remove`], but a soft entry stays.
    pub fn remove_but_soft(&mut self, key: &[u8], cause: Cause, now: Time) -> bool {
        self.take_out(key, cause, now).is_some()
    }

    fn take_out(&mut self, key: &[u8], cause: Cause, now: Time) -> Option<Slot> {
        if self.partition.is_empty() {
            return None;
        }
        let mut partition = self.partition.id.load(Ordering::Acquire);
        if partition == NOWHERE {
            // What is hidden may be left behind, and must then be as the stream says.
            partition = self.partition.id_before.load(Ordering::Acquire);
        }
        let removed = self.partition.l1.remove(partition, key);
        self.partition.removals.fetch_add(1, Ordering::AcqRel);
        let slot = removed?;
        let cause = if slot.is_dead(now) { Cause::TtlExpired } else { cause };
        self.partition.l1.causes.add(cause, 1);
        self.partition.l1.insight.removed(self.partition.scope, key, cause, now);
        Some(slot)
    }

    /// Empties the partition, at once. The memory is given back by a sweep over the store.
    pub fn empty(&mut self, cause: Cause) {
        if self.partition.is_empty() {
            return;
        }
        let (old, _) = self.take_id();
        self.partition.l1.sweep(old, cause);
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.drop_aside();
        self.partition.drop_left();
        self.empty(Cause::FeedLost);
    }
}

/// Which of `groups` of keys a key is in.
fn stripe_of(key: &[u8], groups: usize) -> usize {
    (foldhash::fast::FixedState::default().hash_one(key) % groups as u64) as usize
}
