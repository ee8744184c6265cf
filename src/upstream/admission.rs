//! CORE of the admission filter: which misses are worth a fill.
//!
//! A fill costs the upstream a PTTL and Larder an entry. Where keys are read once only, that is spent for nothing, so a
//! scope can be choosy: it fills a key that misses for the second time within a window of misses. The other way round,
//! where keys are read again, waiting for the second miss costs a hit for each of them. [`Admission::Adaptive`], the
//! default, learns which it is:
//!
//! ```text
//!   filling: all misses are filled ── few of the entries made so were ever hit ──► choosy: second misses are filled,
//!      ▲                                                                              and one first miss of PROBE_EVERY
//!      └───────────── many of the entries made of first misses were hit ◄──────────────┘
//! ```
//!
//! Only entries made of *first* misses count (in `filling`, all are taken for that): what the second miss has let in has
//! been wanted twice already and says nothing of the others. L1 counts the first hit of each marked entry
//! ([`Partition::first_hits`](crate::l1::Partition::first_hits)); the filter compares that count with the fills it has let
//! in, once a window.
//!
//! Invariants: a small working set is filled at first touch: it takes [`WASTED_WINDOWS`] times [`FILLS_JUDGED`] fills
//! before the filter may become choosy at all. What is refused is forwarded as any read, and nothing else depends on it: a wrong decision costs time,
//! never truth. Memory: two bit sets of [`BITS`] bits, made when they are first needed, one lying in the other, so that a miss
//! looks at one line of the machine's cache. No clock and no randomness: the
//! hash of a key is an argument.

/// `l1.admission`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// Every miss is filled.
    Always,
    /// The second miss of a key within a window of misses is filled.
    SecondTouch,
    /// The first, until fills turn out to be wasted.
    #[default]
    Adaptive,
}

/// What is to become of a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Fill it; its entry is to be marked as made of a first miss.
    FillFirst,
    /// Fill it.
    Fill,
    /// Forward it and keep nothing.
    Pass,
}

/// The filter of one scope.
#[derive(Debug)]
pub struct Filter {
    admission: Admission,
    mood: Mood,
    /// Misses seen by the doorkeeper that were their keys' first.
    firsts: u32,
    /// Marked fills of this window, and what the count of first hits was when it began.
    judged: u32,
    hits_before: u64,
    /// Windows in a row in which fills were wasted.
    wasted: u32,
    doorkeeper: Doorkeeper,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Filling,
    Choosy,
}

/// Remembers hashes for a while: those of the current generation and of the one before.
#[derive(Debug, Default)]
struct Doorkeeper {
    words: Vec<Word>,
    count: u32,
}

/// The bits of some keys: of the current generation and of the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    current: u64,
    before: u64,
}

/// Fills after which it is judged whether they are worth it, while all misses are filled.
pub const FILLS_JUDGED: u32 = 16 * 1024;
/// The same while only probes are: one window is as many misses as above.
pub const PROBES_JUDGED: u32 = FILLS_JUDGED / PROBE_EVERY;
/// One first miss of so many is filled while the filter is choosy, to notice when that has become worth it.
pub const PROBE_EVERY: u32 = 256;
/// Fewer entries than one of so many hit: fills are wasted. A fill and the PTTL with it cost half a forward, a hit saves
/// more than that; but of a large working set that has only begun to fill, few entries have been hit either.
const WASTED_BELOW: u64 = 8;
/// Windows in a row that must look wasted: within one, keys may all be new that are read again in the next.
pub const WASTED_WINDOWS: u32 = 2;
/// More probes than one of so many hit: fills are worth it again.
const WORTH_ABOVE: u64 = 4;
/// Keys of one generation of the doorkeeper: a second miss is recognized after at most twice as many others.
pub const GENERATION: u32 = 64 * 1024;
/// Bits of a generation: sixteen a key, of which each key sets up to four, all in one word of 64, so that at most 2% of
/// first misses pass for second ones.
pub const BITS: usize = 16 * GENERATION as usize;

// === impl Filter ===

impl Filter {
    /// A filter that has learnt nothing.
    pub fn new(admission: Admission) -> Self {
        let mood = if admission == Admission::SecondTouch { Mood::Choosy } else { Mood::Filling };
        Self { admission, mood, firsts: 0, judged: 0, hits_before: 0, wasted: 0, doorkeeper: Doorkeeper::default() }
    }

    /// Decides on a miss of the key with this hash. `first_hits`: how many marked entries have been hit so far, ever.
    pub fn admit(&mut self, hash: u64, first_hits: u64) -> Verdict {
        match (self.admission, self.mood) {
            (Admission::Always, _) => Verdict::Fill,
            (Admission::SecondTouch, _) if self.doorkeeper.knows(hash) => Verdict::Fill,
            (Admission::SecondTouch, _) => Verdict::Pass,
            (Admission::Adaptive, Mood::Filling) => {
                // If it becomes choosy next, what is wanted again is not to be taken for new.
                if self.wasted > 0 {
                    self.doorkeeper.knows(hash);
                }
                self.mark(first_hits)
            }
            (Admission::Adaptive, Mood::Choosy) => {
                if self.doorkeeper.knows(hash) {
                    return Verdict::Fill;
                }
                self.firsts += 1;
                if self.firsts < PROBE_EVERY {
                    return Verdict::Pass;
                }
                self.firsts = 0;
                self.mark(first_hits)
            }
        }
    }

    /// Begins anew, as with a partition that has been emptied with its link: all of it is to be filled again.
    pub fn reset(&mut self) {
        *self = Self::new(self.admission);
    }

    /// True while first misses are not filled.
    pub fn is_choosy(&self) -> bool {
        self.mood == Mood::Choosy
    }

    fn mark(&mut self, first_hits: u64) -> Verdict {
        if self.judged == 0 {
            self.hits_before = first_hits;
        }
        self.judged += 1;
        let window = if self.mood == Mood::Filling { FILLS_JUDGED } else { PROBES_JUDGED };
        if self.judged >= window {
            let hit = first_hits.saturating_sub(self.hits_before);
            let made = u64::from(self.judged);
            self.judged = 0;
            self.wasted = if hit * WASTED_BELOW < made { self.wasted + 1 } else { 0 };
            match self.mood {
                Mood::Filling if self.wasted >= WASTED_WINDOWS => {
                    self.mood = Mood::Choosy;
                    self.firsts = 0;
                }
                Mood::Choosy if hit * WORTH_ABOVE > made => self.mood = Mood::Filling,
                _ => {}
            }
        }
        Verdict::FillFirst
    }
}

// === impl Doorkeeper ===

impl Doorkeeper {
    /// True if the hash was seen in this generation or the one before; it has been seen from now on.
    fn knows(&mut self, hash: u64) -> bool {
        if self.words.is_empty() {
            self.words = vec![Word::default(); BITS / 64];
        }
        let word = &mut self.words[hash as usize % (BITS / 64)];
        let bits = [40, 46, 52, 58].iter().fold(0, |bits, shift| bits | 1 << (hash >> shift & 63));
        let in_current = word.current & bits == bits;
        let known = in_current || word.before & bits == bits;
        if !in_current {
            word.current |= bits;
            self.count += 1;
            if self.count >= GENERATION {
                self.count = 0;
                self.words.iter_mut().for_each(|word| *word = Word { current: 0, before: word.current });
            }
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// SplitMix64: hashes, and a workload's choices.
    fn mix(x: u64) -> u64 {
        let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// A cache without bounds in front of the filter, and what a workload has cost.
    struct World {
        filter: Filter,
        /// Entries: marked and not yet hit, or not.
        entries: HashMap<u64, bool>,
        first_hits: u64,
        reads: u64,
        hits: u64,
        fills: u64,
    }

    impl World {
        fn new(admission: Admission) -> Self {
            let filter = Filter::new(admission);
            Self { filter, entries: HashMap::new(), first_hits: 0, reads: 0, hits: 0, fills: 0 }
        }

        fn read(&mut self, key: u64) {
            self.reads += 1;
            if let Some(unhit) = self.entries.get_mut(&key) {
                self.hits += 1;
                self.first_hits += u64::from(std::mem::take(unhit));
                return;
            }
            let verdict = self.filter.admit(mix(key), self.first_hits);
            if verdict != Verdict::Pass {
                self.fills += 1;
                self.entries.insert(key, verdict == Verdict::FillFirst);
            }
        }

        /// Reads for a while; the part of them that was hits, and the part that was filled.
        fn run(&mut self, reads: u64, mut key: impl FnMut(u64) -> u64) -> (f64, f64) {
            (self.reads, self.hits, self.fills) = (0, 0, 0);
            for i in 0..reads {
                self.read(key(i));
            }
            (self.hits as f64 / reads as f64, self.fills as f64 / reads as f64)
        }
    }

    #[test]
    fn what_is_read_once_is_hardly_filled_after_a_while() {
        for seed in 0..8 {
            let mut world = World::new(Admission::Adaptive);
            world.run(u64::from(WASTED_WINDOWS * FILLS_JUDGED), |i| mix(seed ^ (i << 8)));
            assert!(world.filter.is_choosy(), "seed {seed}");
            let (_, filled) = world.run(500_000, |i| mix(seed ^ ((i + 1_000_000) << 8)));
            assert!(filled < 0.02, "seed {seed}: {filled} of the misses were filled");
            assert!(world.filter.is_choosy(), "seed {seed}");
        }
    }

    #[test]
    fn a_working_set_is_filled_at_first_touch() {
        for seed in 0..8 {
            for keys in [10, 1000, 30_000] {
                let mut world = World::new(Admission::Adaptive);
                world.run(5 * keys, |i| mix(seed ^ (i << 8)) % keys);
                let missed = world.reads - world.hits;
                assert_eq!(missed, world.fills, "seed {seed}, {keys} keys: a miss was not filled");
                let (hit, _) = world.run(100_000, |i| mix(seed ^ (i << 9)) % keys);
                assert!(hit > 0.99, "seed {seed}, {keys} keys: {hit}");
            }
        }
    }

    #[test]
    fn learns_again_when_keys_begin_to_be_read_again() {
        for seed in 0..8 {
            let mut world = World::new(Admission::Adaptive);
            world.run(100_000, |i| mix(seed ^ (i << 8)));
            assert!(world.filter.is_choosy(), "seed {seed}");
            // Each key is read four times, far apart.
            let key = |i: u64| (1 << 40) + seed + i / 80_000 * 20_000 + i % 20_000;
            world.run(2_000_000, key);
            assert!(!world.filter.is_choosy(), "seed {seed}");
            let (hit, _) = world.run(80_000, |i| key(i + 2_000_000));
            assert!(hit > 0.74, "seed {seed}: {hit}");
        }
    }

    #[test]
    fn the_second_touch_within_the_window_is_filled() {
        let mut filter = Filter::new(Admission::SecondTouch);
        assert_eq!(filter.admit(mix(1), 0), Verdict::Pass);
        let passed = (2..u64::from(GENERATION)).filter(|i| filter.admit(mix(*i), 0) == Verdict::Pass).count();
        assert!(passed as f64 > 0.97 * f64::from(GENERATION), "{passed}");
        assert_eq!(filter.admit(mix(1), 0), Verdict::Fill);
        // Two generations later it has been forgotten.
        for i in 0..2 * u64::from(GENERATION) + 10_000 {
            filter.admit(mix(i + (1 << 33)), 0);
        }
        let remembered = (2..1002).filter(|i| filter.admit(mix(*i), 0) == Verdict::Fill).count();
        assert!(remembered < 100, "{remembered} of 1000");
    }

    #[test]
    fn what_missed_shortly_before_it_became_choosy_is_no_first_miss() {
        let mut filter = Filter::new(Admission::Adaptive);
        for i in 0..u64::from(WASTED_WINDOWS * FILLS_JUDGED) {
            assert_eq!(filter.admit(mix(i), 0), Verdict::FillFirst);
        }
        assert!(filter.is_choosy());
        let of_the_last_window = u64::from(WASTED_WINDOWS * FILLS_JUDGED) - 1000;
        assert!((0..1000).all(|i| filter.admit(mix(of_the_last_window + i), 0) == Verdict::Fill));
    }

    #[test]
    fn always_fills_and_marks_nothing() {
        let mut filter = Filter::new(Admission::Always);
        for i in 0..100_000 {
            assert_eq!(filter.admit(mix(i), 0), Verdict::Fill);
        }
        filter.reset();
        assert!(!filter.is_choosy());
    }
}
