//! CORE: which keys are used most, from samples, in bounded memory: Space-Saving with a decaying window.
//!
//! The sketch is [`SETS`] sets of [`WAYS`] places; a key belongs to one set by its hash. A key that has no place takes
//! that of the lightest in its set and inherits its weight, which is noted as the key's *error*. So for each key shown
//! (Metwally's Space-Saving, within its set):
//!
//! * weight - error <= what was recorded of it <= weight;
//! * a key with more than a [`WAYS`]th of its set's weight always has a place.
//!
//! Weights decay by half every [`HALF_LIFE`]. Instead of aging all places, what comes later counts more (forward decay);
//! the scale is set back when it gets large. Beside the error of the sketch there is that of sampling: with 1 of n
//! recorded (each as n), a key that was recorded c times was used n * c times, give or take a relative 1/sqrt(c).

use super::ScopeId;
use crate::clock::Time;
use std::time::Duration;

/// Sets of the sketch.
pub const SETS: usize = 128;
/// Places of a set.
pub const WAYS: usize = 8;
/// After this long what was recorded counts half.
pub const HALF_LIFE: Duration = Duration::from_secs(60);
/// Longer keys are not recorded.
pub const KEY_BYTES_MAX: usize = 1024;
/// When the weight of a new record exceeds two to this power, the scale is set back.
const EXPONENT_MAX: f64 = 64.0;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was read, and L1 (or the embedded store) had it.
    Hit,
    /// It was read, and L1 did not have it.
    Miss,
    /// A client wrote it.
    Write,
}

/// The sketch.
#[derive(Debug)]
pub struct HotKeys {
    places: Vec<Place>,
    began: Option<Time>,
    landmark: Time,
}

#[derive(Clone, Debug, Default)]
struct Place {
    scope: ScopeId,
    hash: u64,
    key: Vec<u8>,
    weight: f64,
    error: f64,
    misses: f64,
    writes: f64,
    changes: f64,
}

/// What the sketch knows of one key. Rates are in events a second over the window, of what was recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct HotKey {
    /// The key.
    pub key: Vec<u8>,
    /// Everything recorded of it; never too low.
    pub rate: f64,
    /// How much too high that may be.
    pub error: f64,
    /// Reads that L1 did not answer.
    pub misses: f64,
    /// Writes.
    pub writes: f64,
    /// Times that it left L1 because it was changed, here or elsewhere.
    pub changes: f64,
}

// === impl HotKeys ===

impl HotKeys {
    /// An empty sketch.
    pub fn new() -> Self {
        Self { places: vec![Place::default(); SETS * WAYS], began: None, landmark: Time::ZERO }
    }

    /// Records an event that stands for `count` of them. `hash` is that of scope and key.
    pub fn record(&mut self, scope: ScopeId, key: &[u8], hash: u64, event: Event, count: f64, now: Time) {
        if key.len() > KEY_BYTES_MAX {
            return;
        }
        if self.began.is_none() {
            (self.began, self.landmark) = (Some(now), now);
        }
        let weight = self.weight_at(now) * count;
        let first = (hash >> 32) as usize % SETS * WAYS;
        let set = &mut self.places[first..first + WAYS];
        let is_it = |p: &Place| p.hash == hash && p.weight > 0.0 && p.scope == scope && p.key == key;
        let at = set.iter().position(is_it).unwrap_or_else(|| lightest(set));
        let place = &mut set[at];
        if !is_it(place) {
            place.key.clear();
            place.key.extend_from_slice(key);
            (place.scope, place.hash, place.error) = (scope, hash, place.weight);
            (place.misses, place.writes, place.changes) = (0.0, 0.0, 0.0);
        }
        place.weight += weight;
        match event {
            Event::Hit => {}
            Event::Miss => place.misses += weight,
            Event::Write => place.writes += weight,
        }
    }

    /// A key has left L1 because it was changed; that stands for `count` such times. Keys without a place do not get one.
    pub fn changed(&mut self, hash: u64, count: f64, now: Time) {
        let weight = self.weight_at(now) * count;
        let first = (hash >> 32) as usize % SETS * WAYS;
        let known = self.places[first..first + WAYS].iter_mut().find(|p| p.hash == hash && p.weight > 0.0);
        if let Some(place) = known {
            place.changes += weight;
        }
    }

    /// The keys of a scope that are used most, at most `max`, the first first.
    pub fn top(&self, scope: ScopeId, max: usize, now: Time) -> Vec<HotKey> {
        let mut found: Vec<&Place> = self.places.iter().filter(|p| p.weight > 0.0 && p.scope == scope).collect();
        found.sort_by(|a, b| b.weight.total_cmp(&a.weight).then_with(|| a.key.cmp(&b.key)));
        let scale = self.scale(now);
        let shown = |p: &Place| HotKey {
            key: p.key.clone(),
            rate: p.weight * scale,
            error: p.error * scale,
            misses: p.misses * scale,
            writes: p.writes * scale,
            changes: p.changes * scale,
        };
        found.into_iter().take(max).map(shown).collect()
    }

    /// Everything recorded of a scope's keys that have a place, as a rate: what a key's share is a share of.
    pub fn total(&self, scope: ScopeId, now: Time) -> f64 {
        let of_scope = self.places.iter().filter(|p| p.scope == scope);
        of_scope.map(|p| p.weight - p.error).sum::<f64>() * self.scale(now)
    }

    /// How much a record counts now, on the scale of the landmark.
    fn weight_at(&mut self, now: Time) -> f64 {
        let exponent = self.half_lives(now);
        if exponent <= EXPONENT_MAX {
            return exponent.exp2();
        }
        let shrink = (-exponent).exp2();
        for p in &mut self.places {
            for weight in [&mut p.weight, &mut p.error, &mut p.misses, &mut p.writes, &mut p.changes] {
                *weight *= shrink;
            }
        }
        self.landmark = now;
        1.0
    }

    fn half_lives(&self, now: Time) -> f64 {
        now.saturating_since(self.landmark).as_secs_f64() / HALF_LIFE.as_secs_f64()
    }

    /// From weights to rates a second. The window has not been open for longer than the sketch, and no rate is told
    /// of less than a second.
    fn scale(&self, now: Time) -> f64 {
        let open = now.saturating_since(self.began.unwrap_or(now)).as_secs_f64().max(1.0);
        let filled = 1.0 - (-open / HALF_LIFE.as_secs_f64()).exp2();
        let window = HALF_LIFE.as_secs_f64() / std::f64::consts::LN_2 * filled;
        (-self.half_lives(now)).exp2() / window
    }
}

impl Default for HotKeys {
    fn default() -> Self {
        Self::new()
    }
}

fn lightest(set: &[Place]) -> usize {
    let lightest = set.iter().enumerate().min_by(|(_, a), (_, b)| a.weight.total_cmp(&b.weight));
    lightest.map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Zipf;
    use super::*;
    use std::collections::HashMap;

    const SCOPE: ScopeId = ScopeId(1);

    fn hash(key: &[u8]) -> u64 {
        super::super::hash_of(SCOPE, key)
    }

    fn at(seconds: f64) -> Time {
        Time::from_micros((seconds * 1e6) as u64)
    }

    /// Against exact counts of a Zipf stream: the bounds hold for every key shown, and the top 20 are found to 2%.
    #[test]
    fn finds_the_top_of_a_zipf_stream_within_its_stated_error() {
        for seed in 1..=5 {
            let mut zipf = Zipf::new(100_000, 0.99, seed);
            let (mut sketch, mut exact) = (HotKeys::new(), HashMap::<Vec<u8>, f64>::new());
            for _ in 0..300_000 {
                let key = format!("key:{}", zipf.draw()).into_bytes();
                sketch.record(SCOPE, &key, hash(&key), Event::Hit, 1.0, at(1.0));
                *exact.entry(key).or_default() += 1.0;
            }
            let scale = sketch.scale(at(1.0));
            let shown = sketch.top(SCOPE, usize::MAX, at(1.0));
            for hot in &shown {
                let (true_rate, slack) = (exact[&hot.key] * scale, 1e-6);
                let lower = hot.rate - hot.error;
                assert!(lower <= true_rate + slack && true_rate <= hot.rate + slack, "seed {seed}: {hot:?}");
            }
            let mut ranked: Vec<_> = exact.into_iter().collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
            for (rank, (key, count)) in ranked.iter().take(20).enumerate() {
                let hot = shown.iter().find(|h| h.key == *key);
                let hot = hot.unwrap_or_else(|| panic!("seed {seed}: rank {rank} is missing"));
                let off = (hot.rate / scale - count) / count;
                assert!((0.0..0.02).contains(&off), "seed {seed}, rank {rank}: off by {off}");
            }
        }
    }

    #[test]
    fn rates_decay_and_start_right() {
        let mut sketch = HotKeys::new();
        let record = |sketch: &mut HotKeys, from: u32, to: u32| {
            for tenth in from * 10..to * 10 {
                sketch.record(SCOPE, b"k", hash(b"k"), Event::Hit, 1.0, at(f64::from(tenth) / 10.0));
            }
        };
        record(&mut sketch, 0, 20);
        let early = sketch.top(SCOPE, 1, at(20.0))[0].rate;
        assert!((early - 10.0).abs() < 0.3, "ten a second from the first second on, not {early}");
        record(&mut sketch, 20, 600);
        let steady = sketch.top(SCOPE, 1, at(600.0))[0].rate;
        assert!((steady - 10.0).abs() < 0.3, "{steady}");
        let later = sketch.top(SCOPE, 1, at(660.0))[0].rate;
        assert!((later - steady / 2.0).abs() < 0.2, "after a half-life: {later}");
        // The scale is set back several times on the way.
        record(&mut sketch, 5000, 20_000);
        let rate = sketch.top(SCOPE, 1, at(20_000.0))[0].rate;
        assert!((rate - 10.0).abs() < 0.3, "{rate}");
    }

    #[test]
    fn scopes_are_apart_and_events_counted_each() {
        let mut sketch = HotKeys::new();
        let other = ScopeId(2);
        for (n, event) in [Event::Hit, Event::Miss, Event::Miss, Event::Write].into_iter().enumerate() {
            sketch.record(SCOPE, b"k", hash(b"k"), event, 1.0, at(n as f64));
        }
        sketch.record(other, b"k", super::super::hash_of(other, b"k"), Event::Hit, 1.0, at(4.0));
        sketch.record(SCOPE, &vec![b'x'; KEY_BYTES_MAX + 1], 7, Event::Hit, 1.0, at(4.0));
        let mine = sketch.top(SCOPE, 9, at(4.0));
        assert_eq!(mine.len(), 1);
        assert!(
            (mine[0].misses / mine[0].rate - 0.5).abs() < 0.02 && (mine[0].writes / mine[0].rate - 0.25).abs() < 0.02
        );
        assert_eq!(sketch.top(other, 9, at(4.0)).len(), 1);
        assert_eq!(sketch.top(ScopeId(3), 9, at(4.0)), []);
    }
}
