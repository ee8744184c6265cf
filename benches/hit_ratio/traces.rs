//! Seeded traces of reads.

/// What a trace is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rank r is read in proportion to 1/r^0.99, for ever.
    Zipf,
    /// The same, and a fifth of the reads are scans: long runs over keys that nobody reads again.
    Scan,
    /// Zipf, and the keys that are hot are others twenty times in the trace.
    Shifting,
}

/// Reads, by number of key.
pub(super) struct Trace {
    reads: Vec<u64>,
    distinct: Vec<u64>,
}

/// Skew.
const THETA: f64 = 0.99;
/// Keys of one scan, as a part of the keys.
const SCAN_PART: u32 = 10;
/// Reads of other kinds behind a scan, for each of its own.
const READS_BETWEEN: u32 = 4;
/// How often the hot keys change.
const SHIFTS: u32 = 20;

// === impl Kind ===

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Zipf, Self::Scan, Self::Shifting];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Zipf => "Zipf 0.99",
            Self::Scan => "with scans",
            Self::Shifting => "shifting",
        }
    }
}

// === impl Trace ===

impl Trace {
    pub(super) fn new(kind: Kind, keys: u32, reads: u32, seed: u64) -> Self {
        let zipf = Zipf::new(keys);
        let scan = keys / SCAN_PART;
        let mut state = mix(seed);
        let made = (0..reads).map(|at| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let rank = zipf.rank(mix(state));
            match kind {
                Kind::Zipf => u64::from(rank),
                Kind::Scan => {
                    let (turn, within) = (at / (scan * (1 + READS_BETWEEN)), at % (scan * (1 + READS_BETWEEN)));
                    let scanned = u64::from(keys) + u64::from(turn) * u64::from(scan) + u64::from(within);
                    if within < scan { scanned } else { u64::from(rank) }
                }
                Kind::Shifting => {
                    let shift = u64::from(at / (reads / SHIFTS).max(1)) * u64::from(keys / SHIFTS);
                    (u64::from(rank) + shift) % u64::from(keys)
                }
            }
        });
        // Numbers of keys without an order in them: what is next in rank is not next in anything else.
        let reads: Vec<u64> = made.map(|key| mix(key ^ seed.rotate_left(32))).collect();
        let mut distinct = reads.clone();
        distinct.sort_unstable();
        distinct.dedup();
        Self { reads, distinct }
    }

    pub(super) fn reads(&self) -> &[u64] {
        &self.reads
    }

    /// All keys, each once.
    pub(super) fn distinct(&self) -> impl Iterator<Item = u64> + '_ {
        self.distinct.iter().copied()
    }
}

/// A number that follows from another and looks random (SplitMix64, by Steele, Lea and Flood).
pub(super) fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Ranks with a Zipf distribution, exactly: by their cumulated weights.
struct Zipf {
    cumulated: Vec<f64>,
}

// === impl Zipf ===

impl Zipf {
    fn new(keys: u32) -> Self {
        let mut sum = 0.0;
        let cumulated = (1..=keys).map(|rank| {
            sum += f64::from(rank).powf(-THETA);
            sum
        });
        Self { cumulated: cumulated.collect() }
    }

    /// The rank, from 0 (the most popular) on, that a random number stands for.
    fn rank(&self, random: u64) -> u32 {
        let total = self.cumulated.last().copied().unwrap_or_default();
        let wanted = (random >> 11) as f64 / (1_u64 << 53) as f64 * total;
        self.cumulated.partition_point(|sum| *sum <= wanted) as u32
    }
}
