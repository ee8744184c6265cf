//! Published eviction policies, as plainly as they can be written, with sizes in bytes.
//!
//! - LRU.
//! - SIEVE (Zhang et al., NSDI 2024): a queue, a bit for each entry, a hand that goes from the oldest to the newest.
//! - S3-FIFO (Yang et al., SOSP 2023): a small queue of 10% of the bytes, a main queue, and the names of what left the small one,
//!   as many as would fill the main one.
//! - W-TinyLFU (Einziger, Friedman, Manes, 2017), as its best known implementation sets it up: a window of 1%, a main part of
//!   which 80% are protected, a count-min sketch of 4-bit counters that are halved after ten reads for each entry. A candidate
//!   goes in if it is more frequent than each entry that would have to go for it.
//!
//! What is larger than a store is not kept.

use super::traces::mix;
use foldhash::fast::FixedState;
use std::collections::HashMap;

/// A cache that is told of reads and decides what it holds.
pub(super) trait Policy {
    /// A read of a key whose entry has this many bytes; true for a hit. After a miss the policy may keep the entry.
    fn read(&mut self, key: u64, bytes: u64) -> bool;
}

type Map<V> = HashMap<u64, V, FixedState>;

/// Keys in an order, with their bytes: a doubly linked list that finds its elements by key.
#[derive(Default)]
struct Order {
    nodes: Map<Node>,
    newest: Option<u64>,
    oldest: Option<u64>,
    bytes: u64,
}

struct Node {
    newer: Option<u64>,
    older: Option<u64>,
    bytes: u64,
    is_visited: bool,
}

// === impl Order ===

impl Order {
    fn has(&self, key: u64) -> bool {
        self.nodes.contains_key(&key)
    }

    fn push(&mut self, key: u64, bytes: u64) {
        let older = self.newest.replace(key);
        self.nodes.insert(key, Node { newer: None, older, bytes, is_visited: false });
        match older.and_then(|older| self.nodes.get_mut(&older)) {
            Some(node) => node.newer = Some(key),
            None => self.oldest = Some(key),
        }
        self.bytes += bytes;
    }

    /// Takes a key out; returns its bytes.
    fn remove(&mut self, key: u64) -> Option<u64> {
        let Node { newer, older, bytes, .. } = self.nodes.remove(&key)?;
        match newer.and_then(|newer| self.nodes.get_mut(&newer)) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match older.and_then(|older| self.nodes.get_mut(&older)) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
        self.bytes -= bytes;
        Some(bytes)
    }

    fn pop(&mut self) -> Option<(u64, u64)> {
        let key = self.oldest?;
        Some((key, self.remove(key)?))
    }

    /// Makes a key the newest; true if it is there.
    fn renew(&mut self, key: u64) -> bool {
        let bytes = self.remove(key);
        bytes.inspect(|bytes| self.push(key, *bytes)).is_some()
    }
}

/// Least recently used.
pub(super) struct Lru {
    size: u64,
    order: Order,
}

// === impl Lru ===

impl Lru {
    pub(super) fn new(size: u64) -> Self {
        Self { size, order: Order::default() }
    }
}

impl Policy for Lru {
    fn read(&mut self, key: u64, bytes: u64) -> bool {
        if self.order.renew(key) {
            return true;
        }
        if bytes <= self.size {
            self.order.push(key, bytes);
        }
        while self.order.bytes > self.size {
            self.order.pop();
        }
        false
    }
}

/// SIEVE.
pub(super) struct Sieve {
    size: u64,
    order: Order,
    hand: Option<u64>,
}

// === impl Sieve ===

impl Sieve {
    pub(super) fn new(size: u64) -> Self {
        Self { size, order: Order::default(), hand: None }
    }

    fn evict(&mut self) {
        let mut at = self.hand.or(self.order.oldest);
        while let Some(key) = at {
            let Some(node) = self.order.nodes.get_mut(&key) else { return };
            let newer = node.newer;
            if std::mem::take(&mut node.is_visited) {
                at = newer.or(self.order.oldest);
                continue;
            }
            self.hand = newer;
            self.order.remove(key);
            return;
        }
    }
}

impl Policy for Sieve {
    fn read(&mut self, key: u64, bytes: u64) -> bool {
        if let Some(node) = self.order.nodes.get_mut(&key) {
            node.is_visited = true;
            return true;
        }
        if bytes > self.size {
            return false;
        }
        while self.order.bytes + bytes > self.size {
            self.evict();
        }
        self.order.push(key, bytes);
        false
    }
}

/// S3-FIFO. An entry's node is in one of the queues; how often it was hit stands beside.
pub(super) struct S3Fifo {
    size: u64,
    small: Order,
    main: Order,
    ghost: Order,
    /// Hits of an entry since it came or was last spared, up to [`HITS_MAX`].
    hits: Map<u8>,
}

const HITS_MAX: u8 = 3;
/// Part of the bytes that are the small queue's.
const SMALL_PART: u64 = 10;

// === impl S3Fifo ===

impl S3Fifo {
    pub(super) fn new(size: u64) -> Self {
        let [small, main, ghost] = std::array::from_fn(|_| Order::default());
        Self { size, small, main, ghost, hits: Map::default() }
    }

    fn small_size(&self) -> u64 {
        self.size / SMALL_PART
    }

    fn evict(&mut self) {
        if self.small.bytes > self.small_size() || self.main.bytes == 0 {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    /// The oldest of the small queue goes to the main one if it was hit more than once, and else leaves its name.
    fn evict_small(&mut self) {
        let Some((key, bytes)) = self.small.pop() else { return };
        if self.hits.get(&key).is_some_and(|hits| *hits > 1) {
            self.hits.insert(key, 0);
            self.main.push(key, bytes);
            return;
        }
        self.hits.remove(&key);
        self.ghost.push(key, bytes);
        while self.ghost.bytes > self.size - self.small_size() {
            self.ghost.pop();
        }
    }

    /// The oldest of the main queue that was not hit goes; those in front of it lose a hit and go round.
    fn evict_main(&mut self) {
        while let Some((key, bytes)) = self.main.pop() {
            match self.hits.get_mut(&key) {
                Some(hits) if *hits > 0 => {
                    *hits -= 1;
                    self.main.push(key, bytes);
                }
                _ => {
                    self.hits.remove(&key);
                    return;
                }
            }
        }
    }
}

impl Policy for S3Fifo {
    fn read(&mut self, key: u64, bytes: u64) -> bool {
        if let Some(hits) = self.hits.get_mut(&key) {
            *hits = (*hits + 1).min(HITS_MAX);
            return true;
        }
        if bytes > self.small_size() {
            return false;
        }
        while self.small.bytes + self.main.bytes + bytes > self.size {
            self.evict();
        }
        let was_here = self.ghost.remove(key).is_some();
        let queue = if was_here { &mut self.main } else { &mut self.small };
        queue.push(key, bytes);
        self.hits.insert(key, 0);
        false
    }
}

/// W-TinyLFU.
pub(super) struct WTinyLfu {
    size: u64,
    window: Order,
    probation: Order,
    protected: Order,
    sketch: Sketch,
}

/// Part of the bytes that are the window's.
const WINDOW_PART: u64 = 100;
/// Percent of the main part that are protected.
const PROTECTED_PERCENT: u64 = 80;

// === impl WTinyLfu ===

impl WTinyLfu {
    /// `entry_bytes` is what an entry has on average, for the size of the sketch.
    pub(super) fn new(size: u64, entry_bytes: u64) -> Self {
        let [window, probation, protected] = std::array::from_fn(|_| Order::default());
        Self { size, window, probation, protected, sketch: Sketch::new(size / entry_bytes.max(1)) }
    }

    fn window_size(&self) -> u64 {
        self.size / WINDOW_PART
    }

    fn main_size(&self) -> u64 {
        self.size - self.window_size()
    }

    fn hit(&mut self, key: u64) -> bool {
        if self.window.renew(key) || self.protected.renew(key) {
            return true;
        }
        let Some(bytes) = self.probation.remove(key) else { return false };
        self.protected.push(key, bytes);
        while self.protected.bytes > self.main_size() * PROTECTED_PERCENT / 100 {
            let Some((key, bytes)) = self.protected.pop() else { break };
            self.probation.push(key, bytes);
        }
        true
    }

    /// What has left the window goes in if it is more frequent than each that would have to go for it.
    fn admit(&mut self, key: u64, bytes: u64) {
        let frequency = self.sketch.frequency(key);
        let mut victims = Vec::new();
        let mut at = self.probation.oldest;
        let mut freed = 0;
        while self.probation.bytes + self.protected.bytes + bytes > self.main_size() + freed {
            let Some(victim) = at.or_else(|| self.protected.oldest.filter(|key| !victims.contains(key))) else {
                return;
            };
            if self.sketch.frequency(victim) >= frequency {
                return;
            }
            let order = if self.probation.has(victim) { &self.probation } else { &self.protected };
            let Some(node) = order.nodes.get(&victim) else { return };
            freed += node.bytes;
            at = node.newer;
            victims.push(victim);
        }
        for victim in victims {
            let _ = self.probation.remove(victim).or_else(|| self.protected.remove(victim));
        }
        self.probation.push(key, bytes);
    }
}

impl Policy for WTinyLfu {
    fn read(&mut self, key: u64, bytes: u64) -> bool {
        self.sketch.count(key);
        if self.hit(key) {
            return true;
        }
        if bytes > self.main_size() {
            return false;
        }
        self.window.push(key, bytes);
        while self.window.bytes > self.window_size() {
            let Some((key, bytes)) = self.window.pop() else { break };
            self.admit(key, bytes);
        }
        false
    }
}

/// How often keys were read, roughly: four rows of counters up to 15, the least of four counts.
struct Sketch {
    rows: [Vec<u8>; 4],
    reads: u64,
    halved_after: u64,
}

/// Reads for each entry of the store after which all counters are halved.
const SAMPLE: u64 = 10;
const COUNT_MAX: u8 = 15;

// === impl Sketch ===

impl Sketch {
    fn new(entries: u64) -> Self {
        let width = entries.max(64).next_power_of_two() as usize;
        Self { rows: std::array::from_fn(|_| vec![0; width]), reads: 0, halved_after: SAMPLE * entries.max(64) }
    }

    fn places(&self, key: u64) -> [usize; 4] {
        let width = self.rows[0].len() as u64;
        std::array::from_fn(|row| (mix(key.wrapping_add(row as u64 * 0x1234_5677)) % width) as usize)
    }

    fn frequency(&self, key: u64) -> u8 {
        let places = self.places(key);
        self.rows.iter().zip(places).map(|(row, at)| row[at]).min().unwrap_or_default()
    }

    fn count(&mut self, key: u64) {
        let places = self.places(key);
        for (row, at) in self.rows.iter_mut().zip(places) {
            row[at] = (row[at] + 1).min(COUNT_MAX);
        }
        self.reads += 1;
        if self.reads >= self.halved_after {
            self.reads /= 2;
            self.rows.iter_mut().flatten().for_each(|counter| *counter /= 2);
        }
    }
}
