//! Seeded randomness (SplitMix64, by Steele, Lea and Flood): small, and the same on every machine.

use std::time::{SystemTime, UNIX_EPOCH};

/// A stream of pseudo-random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another stream, independent of this one for all practical purposes.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`. The bias of the remainder is far below what a test could notice.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// An index into something with `len` elements.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("an index below a usize is a usize")
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }

    /// True once in `n` times on average.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The seed of this run: `LARDER_TEST_SEED`, or `fixed`, or a new one; printed, so that a failure can be replayed.
pub(crate) fn seed(run: &str, fixed: Option<u64>) -> u64 {
    let given = std::env::var("LARDER_TEST_SEED").ok();
    let seed = match (given, fixed) {
        (Some(text), _) => text.parse().expect("LARDER_TEST_SEED is a number"),
        (None, Some(seed)) => seed,
        (None, None) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
            u64::from(now.subsec_nanos()) ^ now.as_secs()
        }
    };
    println!("{run}: replay with LARDER_TEST_SEED={seed}");
    seed
}

/// How long a generated run lasts: `LARDER_TEST_SECONDS`, else `default`.
pub(crate) fn run_seconds(default: u64) -> std::time::Duration {
    let seconds = match std::env::var("LARDER_TEST_SECONDS") {
        Ok(text) => text.parse().expect("LARDER_TEST_SECONDS is a number"),
        Err(_) => default,
    };
    std::time::Duration::from_secs(seconds)
}
