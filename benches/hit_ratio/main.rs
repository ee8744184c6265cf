//! Hit ratio at equal bytes: L1, with each of its admission policies, beside published simple eviction policies.
//!
//! ```text
//! cargo bench --bench hit_ratio                           the table, two minutes or so
//! cargo bench --bench hit_ratio -- --reads 500000         fewer reads
//! cargo bench --bench hit_ratio -- --seed 2 --only scan   another seed, one trace
//! ```
//!
//! Reads a trace through L1 as a link fills it (a miss is filled if the admission filter lets it) and through LRU, SIEVE,
//! S3-FIFO and W-TinyLFU, written plainly in [`policies`]. All have the same number of bytes and count the same bytes for an
//! entry: what L1 counts for it. A store's size is a part of what all keys of the trace would take together. The first fifth
//! of the reads is not counted.
//!
//! The table shows hit ratios in percent, and how far L1 with the default admission is above or below the best of the others in
//! that row, in points; below the table stands the distance to the one policy that is best on the whole. The same seed gives the
//! same traces everywhere; L1 hashes with a seed of its own, so its figures vary by some hundredths.

mod policies;
mod traces;

use clap::Parser;
use larder::clock::Time;
use larder::l1::{FillKind, Filled, Filler, L1, L1Settings, Leaves, Partition, Variant};
use larder::upstream::admission::{Admission, Filter, Verdict};
use larder_protocol::table::Table;
use policies::{Lru, Policy, S3Fifo, Sieve, WTinyLfu};
use std::error::Error;
use std::sync::Arc;
use traces::{Kind, Trace, mix};

/// Stores have this part of all keys' bytes.
const PARTS: [f64; 3] = [0.01, 0.05, 0.10];
/// Largest entry, as a part of a store: as with the defaults (1 MB of 256 MB).
const ENTRY_PART: u64 = 256;
/// Goal: so many points below the best of the others at most.
const GOAL_POINTS: f64 = 1.0;

const NOW: Time = Time::from_micros(1);

#[derive(Parser)]
struct Options {
    /// Keys of a trace (scans read others)
    #[arg(long, default_value_t = 1_000_000)]
    keys: u32,
    /// Reads of a trace
    #[arg(long, default_value_t = 5_000_000)]
    reads: u32,
    /// The seed of all traces
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only traces whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Given by cargo; means nothing here
    #[arg(long, hide = true)]
    bench: bool,
}

/// Hit ratios of one trace at one size, in the order of [`POLICIES`] and [`ADMISSIONS`].
struct Row {
    others: Vec<f64>,
    own: Vec<f64>,
}

const POLICIES: [&str; 4] = ["LRU", "SIEVE", "S3-FIFO", "W-TinyLFU"];
/// The last one is the default.
const ADMISSIONS: [(&str, Admission); 3] =
    [("always", Admission::Always), ("second-touch", Admission::SecondTouch), ("adaptive", Admission::Adaptive)];

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let scale = Scale::new()?;
    let own = ADMISSIONS.map(|(name, _)| format!("L1, {name}"));
    println!("| trace | size | {} | {} | to the best |", POLICIES.join(" | "), own.join(" | "));
    println!("|{}", "---|".repeat(3 + POLICIES.len() + ADMISSIONS.len()));
    let mut rows = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.name().contains(&options.only)) {
        let trace = Trace::new(kind, options.keys, options.reads, options.seed);
        for part in PARTS {
            let row = measure(&trace, part, &scale)?;
            let best = row.others.iter().copied().fold(0.0, f64::max);
            println!("| {} | {:.0}% | {} | {:+.1} |", kind.name(), 100.0 * part, row.cells(), row.default() - best);
            rows.push(row);
        }
    }
    summarize(&rows);
    Ok(())
}

fn measure(trace: &Trace, part: f64, scale: &Scale) -> Result<Row, Box<dyn Error>> {
    let total: u64 = trace.distinct().map(|key| scale.bytes(key)).sum();
    let size = (total as f64 * part) as u64;
    let entry_bytes = total / trace.distinct().count().max(1) as u64;
    let policies: [Box<dyn Policy>; POLICIES.len()] = [
        Box::new(Lru::new(size)),
        Box::new(Sieve::new(size)),
        Box::new(S3Fifo::new(size)),
        Box::new(WTinyLfu::new(size, entry_bytes)),
    ];
    let others = policies.into_iter().map(|mut policy| ratio(trace, |key| policy.read(key, scale.bytes(key))));
    let own = ADMISSIONS.iter().map(|(_, admission)| {
        let mut cache = Cache::new(size, *admission)?;
        Ok(ratio(trace, |key| cache.read(key)))
    });
    Ok(Row { others: others.collect(), own: own.collect::<Result<_, Box<dyn Error>>>()? })
}

/// Against the one policy that is best on the whole, and where L1 is farthest below it.
fn summarize(rows: &[Row]) {
    let mean = |of: &dyn Fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len().max(1) as f64;
    let means: Vec<f64> = (0..POLICIES.len()).map(|at| mean(&|row| row.others[at])).collect();
    let Some(best) = (0..POLICIES.len()).max_by(|a, b| means[*a].total_cmp(&means[*b])) else { return };
    let cells = POLICIES.iter().zip(&means).map(|(name, mean)| format!("{name} {mean:.1}")).collect::<Vec<_>>();
    println!("\nMeans: {}, L1 {:.1}.", cells.join(", "), mean(&Row::default));
    let lowest = rows.iter().map(|row| row.default() - row.others[best]).fold(f64::INFINITY, f64::min);
    println!(
        "Best on the whole: {}; L1 with the default admission is at worst {lowest:+.1} points from it (goal: -{GOAL_POINTS:.0}).",
        POLICIES[best]
    );
}

// === impl Row ===

impl Row {
    fn cells(&self) -> String {
        let cells = self.others.iter().chain(&self.own).map(|ratio| format!("{ratio:.1}"));
        cells.collect::<Vec<_>>().join(" | ")
    }

    /// L1 as it comes.
    fn default(&self) -> f64 {
        self.own.last().copied().unwrap_or_default()
    }
}

/// Percent of the reads that hit, the first fifth aside.
fn ratio(trace: &Trace, mut read: impl FnMut(u64) -> bool) -> f64 {
    let skipped = trace.reads().len() / 5;
    let mut hits = 0_u64;
    for (at, key) in trace.reads().iter().enumerate() {
        let hit = read(*key);
        hits += u64::from(hit && at >= skipped);
    }
    100.0 * hits as f64 / (trace.reads().len() - skipped) as f64
}

/// What L1 counts for the entry of a key, by the size of its value.
struct Scale {
    bytes: [u64; VALUE_BYTES.len()],
}

/// Bytes of a key's name.
const NAME_BYTES: usize = 16;
/// Sizes of values: most are small, some are large; which, the key says.
const VALUE_BYTES: [usize; 8] = [32, 64, 64, 128, 128, 256, 512, 2048];

/// Which of them.
fn value_of(key: u64) -> usize {
    (mix(key ^ 0x5eed) % VALUE_BYTES.len() as u64) as usize
}

/// A reply to GET.
fn bulk(bytes: usize, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(format!("${bytes}\r\n").as_bytes());
    out.resize(out.len() + bytes, b'x');
    out.extend_from_slice(b"\r\n");
}

fn name(key: u64) -> [u8; NAME_BYTES] {
    let mut name = [0; NAME_BYTES];
    for (at, digit) in name.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(key >> (60 - 4 * at)) as usize & 15];
    }
    name
}

fn get() -> Result<Variant<'static>, Box<dyn Error>> {
    Ok(Variant::bare(Table::builtin().lookup(b"get").ok_or("no GET in the table")?.id))
}

// === impl Scale ===

impl Scale {
    fn new() -> Result<Self, Box<dyn Error>> {
        let (mut bytes, mut reply) = ([0; VALUE_BYTES.len()], Vec::new());
        for (bytes, value) in bytes.iter_mut().zip(VALUE_BYTES) {
            let l1 = L1::new(L1Settings {
                size_bytes_max: 1 << 20,
                entry_bytes_max: 1 << 16,
                variants_per_key_max: 1,
                compress_min_bytes: None,
            });
            let (_partition, mut filler) = l1.partition();
            bulk(value, &mut reply);
            filler.fill(&name(1), get()?, &reply, Time::MAX, NOW);
            *bytes = l1.bytes();
        }
        Ok(Self { bytes })
    }

    fn bytes(&self, key: u64) -> u64 {
        self.bytes[value_of(key)]
    }
}

/// L1, filled as a link fills it.
struct Cache {
    partition: Arc<Partition>,
    filler: Filler,
    filter: Filter,
    get: Variant<'static>,
    reply: Vec<u8>,
}

// === impl Cache ===

impl Cache {
    fn new(size: u64, admission: Admission) -> Result<Self, Box<dyn Error>> {
        let entry_bytes_max = (size / ENTRY_PART).max(8 * 1024) as usize;
        let l1 = L1::new(L1Settings {
            size_bytes_max: size,
            entry_bytes_max,
            variants_per_key_max: 64,
            compress_min_bytes: None,
        });
        let (partition, filler) = l1.partition();
        Ok(Self { partition, filler, filter: Filter::new(admission), get: get()?, reply: Vec::new() })
    }

    fn read(&mut self, key: u64) -> bool {
        let name = name(key);
        if self
            .partition
            .answer(&name, self.partition.hash_of(&name), self.get, Leaves::SAME_FOR_EVER, || NOW, |_| ())
            .is_some()
        {
            return true;
        }
        let verdict = self.filter.admit(mix(key), self.partition.first_hits());
        if verdict == Verdict::Pass {
            return false;
        }
        bulk(VALUE_BYTES[value_of(key)], &mut self.reply);
        let filled = match verdict {
            Verdict::FillFirst => self.filler.fill_as(FillKind::Marked, &name, self.get, &self.reply, Time::MAX, NOW),
            _ => self.filler.fill(&name, self.get, &self.reply, Time::MAX, NOW),
        };
        assert_eq!(filled, Filled::Stored, "all values are small enough");
        false
    }
}
