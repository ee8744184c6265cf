//! What compressing large replies in L1 saves and costs (`l1.compress_min_bytes`), on values like JSON documents.
//!
//! ```text
//! cargo run --release --example compression
//! ```
//!
//! For each size: the bytes that L1 counts for an entry, without and with compression; and the time of a fill and of a hit,
//! each the best of several rounds over many keys, so that what else the machine does counts little.

use bytes::BytesMut;
use larder::clock::Time;
use larder::l1::{L1, L1Settings, Partition, Variant};
use larder_protocol::table::Table;
use std::fmt::Write;
use std::hint::black_box;
use std::time::Instant;

const KB: usize = 1024;
const SIZES: [usize; 4] = [KB, 4 * KB, 16 * KB, 64 * KB];
const ROUNDS: usize = 15;
/// Bytes of all values of one size together: more than fits into a core's own caches.
const BYTES: usize = 16 << 20;
const NOW: Time = Time::from_micros(1);

/// What one way of keeping values costs, for each of them.
struct Cost {
    bytes: f64,
    fill_us: f64,
    hit_us: f64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let get = Variant::bare(Table::builtin().lookup(b"get").ok_or("no GET")?.id);
    println!("| value | bytes, plain | compressed | part | fill us, plain | compressed | hit us, plain | compressed |");
    println!("|---|---|---|---|---|---|---|---|");
    for size in SIZES {
        let replies: Vec<Vec<u8>> = (0..BYTES / size).map(|i| document(size, i)).collect();
        let (plain, packed) = (measure(&replies, get, None), measure(&replies, get, Some(1)));
        println!(
            "| {} KB | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
            size / KB,
            plain.bytes,
            packed.bytes,
            packed.bytes / plain.bytes,
            plain.fill_us,
            packed.fill_us,
            plain.hit_us,
            packed.hit_us
        );
    }
    Ok(())
}

fn measure(replies: &[Vec<u8>], get: Variant<'_>, compress_min_bytes: Option<usize>) -> Cost {
    let settings =
        L1Settings { size_bytes_max: 1 << 30, entry_bytes_max: 1 << 20, variants_per_key_max: 64, compress_min_bytes };
    let keys: Vec<Vec<u8>> = (0..replies.len()).map(|i| format!("key:{i:012}").into_bytes()).collect();
    let l1 = L1::new(settings);
    let (partition, mut filler) = l1.partition();
    let fill_us = best_of_rounds(keys.len(), |i| {
        filler.fill(&keys[i], get, &replies[i], Time::MAX, NOW);
    });
    let mut out = BytesMut::with_capacity(KB * KB);
    let hit_us = best_of_rounds(keys.len(), |i| {
        out.clear();
        hit(&partition, &keys[i], get, &mut out);
        black_box(&out);
    });
    Cost { bytes: l1.bytes() as f64 / keys.len() as f64, fill_us, hit_us }
}

/// A hit as a session takes it, up to the bytes that would be written; a large one is not copied.
fn hit(partition: &Partition, key: &[u8], get: Variant<'_>, out: &mut BytesMut) {
    use larder::l1::{Answered, Leaves};
    let (hash, leaves) = (partition.hash_of(key), Leaves::SAME_FOR_EVER);
    if let Some(Answered::Hit(hit)) = partition.answer(key, hash, get, leaves, || NOW, |reply| reply.put_to(out)) {
        black_box(hit.into_bytes());
    }
}

fn best_of_rounds(count: usize, mut work: impl FnMut(usize)) -> f64 {
    let round = |_| {
        let began = Instant::now();
        (0..count).for_each(&mut work);
        began.elapsed().as_secs_f64() * 1e6 / count as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

/// The reply to GET of a list of records, as applications store them: the same fields again and again, with numbers, words
/// and times that differ.
fn document(bytes: usize, number: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "north", "coffee", "ledger", "window", "silver", "garden", "orbit", "paper", "lantern", "harbour", "copper",
        "meadow", "signal", "velvet", "thunder", "quiet",
    ];
    let mut state = number as u64;
    let mut next = move || {
        // SplitMix64, by Steele, Lea and Flood.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB)
    };
    let mut text = String::from("[");
    while text.len() < bytes {
        let mut below = |bound: u64| (next() >> 16) % bound;
        let mut word = || WORDS[below(16) as usize];
        let (first, second, tag) = (word(), word(), word());
        let _ = write!(
            text,
            "{{\"id\":{},\"user\":\"{:08x}\",\"name\":\"{first} {second}\",\"price\":{}.{:02},\"tags\":[\"{tag}\"],\
             \"in_stock\":{},\"updated_at\":\"2026-{:02}-{:02}T{:02}:{:02}:00Z\"}},",
            below(1_000_000),
            below(1 << 32),
            below(500),
            below(100),
            below(2) == 0,
            1 + below(12),
            1 + below(28),
            below(24),
            below(60)
        );
    }
    text.truncate(bytes);
    format!("${bytes}\r\n{text}\r\n").into_bytes()
}
