//! What is seen of the keys that clients use, from samples: hot keys, big keys, why keys left, what another size of L1 would do.
//!
//! | module | what it holds |
//! |---|---|
//! | [`sketch`] | CORE: the keys that are used most, with rates (Space-Saving) |
//! | [`shards`] | CORE: the miss ratio at other sizes (SHARDS) |
//! | [`sizes`] | CORE: the largest replies |
//! | [`removals`] | CORE: when and why a key left L1 last |
//! | [`latency`] | how long clients wait (HDR histograms) |
//! | [`advise`] | CORE: recommendations out of figures |
//!
//! On the path of a hit there is a [`Watcher`], one a worker: a countdown to the next sample, and a hash of the key that says
//! whether it is one of those that [`shards`] follows. One request in `insight.sample_every` goes further, into structures that
//! all workers share; if another thread has one at that moment the sample is left out, so that no client ever waits for it.
//!
//! Cost, counted by callgrind (one worker, `GET` hits in batches of 64, a build without optimization across crates): 17 instructions for each
//! request, and 22 for each with one in 64 sampled, half of that with one in 128, of 2870 for the whole request in user space: about 1%.
//!
//! Invariants: everything is bounded; no figure is told about a key of another scope than the asker's.

pub mod advise;
pub mod latency;
pub mod removals;
pub mod shards;
pub mod sizes;
pub mod sketch;

use self::removals::{Removal, Removals};
use self::shards::Shards;
use self::sizes::{BigKey, BigKeys};
use self::sketch::{Event, HotKey, HotKeys};
use crate::clock::Time;
use crate::l1::Cause;
use crate::metrics::Counter;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Whose keys: a partition of L1, never the same number for another; on the embedded store a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeId(pub u64);

/// Requests until a worker looks whether sampling has been turned on.
const LOOK_EVERY: u64 = 65_536;
/// The seed of hashes. They choose places in tables of estimates only: who knows it can spoil an estimate, no more.
const SEED: u64 = 0x5851_F42D_4C95_7F2D;

/// What all workers see together.
#[derive(Debug)]
pub struct Insight {
    /// One of so many requests is sampled; 0: none.
    every: AtomicU32,
    hot: Mutex<HotKeys>,
    curve: Mutex<Shards>,
    big: Mutex<BigKeys>,
    /// Replies of this size and below need not be offered to `big`; 0: all are to be.
    big_floor: AtomicU64,
    removals: Mutex<Removals>,
    changes: AtomicU64,
}

/// A worker's eye: only its thread may use it.
#[derive(Debug, Default)]
pub struct Watcher {
    insight: Option<Arc<Insight>>,
    /// Requests until the next sample.
    left: Counter,
    /// Keys with a hash below are followed by the curve.
    threshold: Counter,
    random: Counter,
}

/// What the sampled simulation says of other sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Reads that it rests on.
    pub counted: u64,
    /// Miss ratios at the number of keys asked for.
    pub miss_ratios: Vec<f64>,
}

// === impl Insight ===

impl Insight {
    /// Samples one of `every` requests; 0: none.
    pub fn new(every: u32) -> Arc<Self> {
        Arc::new(Self {
            every: AtomicU32::new(every),
            hot: Mutex::default(),
            curve: Mutex::new(Shards::new(u64::from(every))),
            big: Mutex::default(),
            big_floor: AtomicU64::new(0),
            removals: Mutex::default(),
            changes: AtomicU64::new(0),
        })
    }

    /// One of so many requests is sampled from now on; 0: none. Workers follow within [`LOOK_EVERY`] requests.
    pub fn set_every(&self, every: u32) {
        self.every.store(every, Ordering::Relaxed);
        *lock(&self.curve) = Shards::new(u64::from(every));
    }

    /// One of so many requests is sampled; 0: none.
    pub fn every(&self) -> u32 {
        self.every.load(Ordering::Relaxed)
    }

    /// The reply to a read of a key has so many bytes.
    #[inline]
    pub fn sized(&self, scope: ScopeId, key: &[u8], bytes: u64) {
        // Not even those as large as the smallest kept: where all values have one size, each would be looked for.
        let floor = self.big_floor.load(Ordering::Relaxed);
        if floor > 0 && bytes <= floor {
            return;
        }
        let floor = lock(&self.big).offer(scope, key, bytes);
        self.big_floor.store(floor, Ordering::Relaxed);
    }

    /// A key has left L1.
    pub fn removed(&self, scope: ScopeId, key: &[u8], cause: Cause, now: Time) {
        let hash = hash_of(scope, key);
        lock(&self.removals).note(hash, cause, now);
        let every = u64::from(self.every());
        if every == 0 {
            return;
        }
        if hash < u64::MAX / every {
            lock(&self.curve).forget(hash);
        }
        if cause == Cause::DataChanged && self.changes.fetch_add(1, Ordering::Relaxed).is_multiple_of(every) {
            lock(&self.hot).changed(hash, every as f64, now);
        }
    }

    /// The keys of a scope that are used most, with the rate of all its keys that are known.
    pub fn hot(&self, scope: ScopeId, max: usize, now: Time) -> (Vec<HotKey>, f64) {
        let hot = lock(&self.hot);
        (hot.top(scope, max, now), hot.total(scope, now))
    }

    /// The largest keys of a scope.
    pub fn big(&self, scope: ScopeId, max: usize) -> Vec<BigKey> {
        lock(&self.big).top(scope, max)
    }

    /// When and why a key left L1 last, if that is still known.
    pub fn last_removal(&self, scope: ScopeId, key: &[u8]) -> Option<Removal> {
        lock(&self.removals).last(hash_of(scope, key))
    }

    /// The miss ratios that an L1 of so many keys would have; `None` before anything was read.
    pub fn curve(&self, keys: &[f64]) -> Option<Curve> {
        let curve = lock(&self.curve);
        let miss_ratios = keys.iter().map(|keys| curve.miss_ratio(*keys)).collect::<Option<Vec<f64>>>()?;
        Some(Curve { counted: curve.counted(), miss_ratios })
    }
}

// === impl Watcher ===

impl Watcher {
    /// The eye of a worker; workers have different seeds.
    pub fn new(insight: Arc<Insight>, seed: u64) -> Self {
        let this = Self { insight: Some(insight), ..Self::default() };
        this.random.set(seed | 1);
        this.rearm();
        this
    }

    /// A key was read.
    #[inline]
    pub fn read(&self, scope: ScopeId, key: &[u8], is_hit: bool, now: &dyn Fn() -> Time) {
        self.read_hashed(scope, key, hash_of(scope, key), is_hit, now);
    }

    /// As [`Watcher::read`], where the key's hash is at hand.
    #[inline]
    pub fn read_hashed(&self, scope: ScopeId, key: &[u8], hash: u64, is_hit: bool, now: &dyn Fn() -> Time) {
        let left = self.left.value();
        self.left.set(left.wrapping_sub(1));
        if left == 0 || hash < self.threshold.value() {
            self.sample_read(scope, key, hash, is_hit, left == 0, now);
        }
    }

    /// True if the reads of a key with this hash are followed, each of them.
    #[inline]
    pub fn follows(&self, hash: u64) -> bool {
        hash < self.threshold.value()
    }

    /// So many keys were read, none of which is followed. False if one of them is the next sample: then nothing is noted, and
    /// each is to be told by itself.
    #[inline]
    pub fn pass(&self, count: u64) -> bool {
        let left = self.left.value();
        if left < count {
            return false;
        }
        self.left.set(left - count);
        true
    }

    /// Keys were written.
    #[inline]
    pub fn write<'k>(&self, scope: ScopeId, keys: impl Iterator<Item = &'k [u8]>, now: &dyn Fn() -> Time) {
        let left = self.left.value();
        self.left.set(left.wrapping_sub(1));
        if left == 0 {
            self.sample_write(scope, keys, now);
        }
    }

    #[cold]
    fn sample_read(&self, scope: ScopeId, key: &[u8], hash: u64, is_hit: bool, is_due: bool, now: &dyn Fn() -> Time) {
        let Some(insight) = &self.insight else { return };
        let every = if is_due { self.rearm() } else { insight.every() };
        if every == 0 {
            return;
        }
        if is_due && let Some(mut hot) = try_lock(&insight.hot) {
            let event = if is_hit { Event::Hit } else { Event::Miss };
            hot.record(scope, key, hash, event, f64::from(every), now());
        }
        if let Some(mut curve) = try_lock(&insight.curve) {
            if is_due {
                curve.expect(f64::from(every));
            }
            curve.read(hash);
        }
    }

    #[cold]
    fn sample_write<'k>(&self, scope: ScopeId, keys: impl Iterator<Item = &'k [u8]>, now: &dyn Fn() -> Time) {
        let Some(insight) = &self.insight else { return };
        let every = self.rearm();
        if every > 0
            && let Some(mut hot) = try_lock(&insight.hot)
        {
            let now = now();
            for key in keys {
                hot.record(scope, key, hash_of(scope, key), Event::Write, f64::from(every), now);
            }
        }
    }

    /// Draws when the next sample is: geometrically, so that no rhythm of the clients' meets one of ours.
    fn rearm(&self) -> u32 {
        let every = self.insight.as_ref().map_or(0, |insight| insight.every());
        if every == 0 {
            self.left.set(LOOK_EVERY);
            self.threshold.set(0);
            return 0;
        }
        self.threshold.set(u64::MAX / u64::from(every));
        let mut x = self.random.value();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        let uniform = ((x >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        let skip = if every == 1 { 0.0 } else { uniform.ln() / (1.0 - 1.0 / f64::from(every)).ln() };
        self.left.set((skip as u64).min(LOOK_EVERY));
        every
    }
}

/// The hash of a scope's key.
#[inline]
pub fn hash_of(scope: ScopeId, key: &[u8]) -> u64 {
    let mut hasher = foldhash::fast::FixedState::with_seed(SEED).build_hasher();
    hasher.write(key);
    hasher.write_u64(scope.0);
    hasher.finish()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Streams of keys for tests.

    /// Draws numbers from 0 on by Zipf's law.
    pub(crate) struct Zipf {
        cumulative: Vec<f64>,
        state: u64,
    }

    impl Zipf {
        pub(crate) fn new(keys: usize, skew: f64, seed: u64) -> Self {
            let mut sum = 0.0;
            let weights = (1..=keys).map(|rank| (rank as f64).powf(-skew));
            let cumulative = weights.map(|w| {
                sum += w;
                sum
            });
            Self { cumulative: cumulative.collect(), state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 }
        }

        pub(crate) fn draw(&mut self) -> u64 {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let total = self.cumulative.last().copied().unwrap_or(0.0);
            let wanted = (self.state >> 11) as f64 / (1_u64 << 53) as f64 * total;
            self.cumulative.partition_point(|c| *c < wanted) as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Zipf;
    use super::*;

    const SCOPE: ScopeId = ScopeId(7);

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    /// A stream of a million reads in a minute, one in 16 sampled: rates of the top keys to 10%, the curve to 0.03 of what
    /// the unsampled one says.
    #[test]
    fn a_sample_tells_what_all_requests_would() {
        let (sampled, all) = (Insight::new(16), Insight::new(1));
        let watchers = [Watcher::new(sampled.clone(), 5), Watcher::new(all.clone(), 5)];
        let mut zipf = Zipf::new(20_000, 0.99, 3);
        for n in 0..1_000_000_u64 {
            let key = format!("key:{}", zipf.draw());
            for watcher in &watchers {
                watcher.read(SCOPE, key.as_bytes(), true, &|| at(n * 60 / 1_000_000));
            }
        }
        let (exact, _) = all.hot(SCOPE, 10, at(60));
        let (found, total) = sampled.hot(SCOPE, 1000, at(60));
        for hot in &exact {
            let estimate = found.iter().find(|f| f.key == hot.key).map_or(0.0, |f| f.rate);
            assert!((estimate / hot.rate - 1.0).abs() < 0.1, "{estimate} is not {}", hot.rate);
        }
        assert!(total > 0.0 && found[0].rate < total);
        let sizes = [500.0, 2000.0, 8000.0];
        let (exact, found) = (all.curve(&sizes).unwrap(), sampled.curve(&sizes).unwrap());
        for (exact, found) in exact.miss_ratios.iter().zip(&found.miss_ratios) {
            assert!((exact - found).abs() < 0.03, "{exact} and {found}");
        }
    }

    #[test]
    fn sampling_can_be_off_and_turned_on() {
        let insight = Insight::new(0);
        let watcher = Watcher::new(insight.clone(), 1);
        let read = |n: u64| (0..n).for_each(|_| watcher.read(SCOPE, b"k", true, &|| at(1)));
        read(1000);
        assert_eq!((insight.hot(SCOPE, 9, at(1)).0.len(), insight.curve(&[1.0])), (0, None));
        insight.set_every(1);
        read(LOOK_EVERY + 1);
        assert!(insight.hot(SCOPE, 9, at(1)).0.len() == 1 && insight.curve(&[1.0]).is_some());
        Watcher::default().read(SCOPE, b"k", true, &|| at(1));
    }

    #[test]
    fn values_of_one_size_are_offered_until_there_are_enough() {
        let insight = Insight::new(1);
        for n in 0..10_000_u64 {
            insight.sized(SCOPE, format!("k{n}").as_bytes(), 100);
        }
        assert_eq!(insight.big_floor.load(Ordering::Relaxed), 100);
        assert_eq!(insight.big(SCOPE, 10_000).len(), sizes::KEPT_MAX);
        insight.sized(SCOPE, b"larger", 101);
        assert_eq!(insight.big(SCOPE, 1)[0].key, b"larger");
    }

    #[test]
    fn writes_and_changes_are_seen() {
        let insight = Insight::new(1);
        let watcher = Watcher::new(insight.clone(), 1);
        watcher.write(SCOPE, [&b"a"[..], b"b"].into_iter(), &|| at(1));
        insight.removed(SCOPE, b"a", Cause::DataChanged, at(1));
        let (hot, _) = insight.hot(SCOPE, 9, at(2));
        assert_eq!(hot.len(), 2);
        assert!(hot.iter().all(|h| h.writes == h.rate));
        assert!(hot.iter().any(|h| h.key == b"a" && h.changes > 0.0));
        assert_eq!(insight.last_removal(SCOPE, b"a").map(|r| r.cause), Some(Cause::DataChanged));
        assert_eq!(insight.last_removal(SCOPE, b"b"), None);
    }
}
