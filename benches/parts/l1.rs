//! The cache: a hit, a miss, and what changes it.

use super::{bulk, keys};
use bytes::BytesMut;
use criterion::Criterion;
use larder::clock::Time;
use larder::l1::{Cause, Filler, L1, L1Settings, Leaves, Partition, Variant};
use larder_protocol::table::Table;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

const SETTINGS: L1Settings = L1Settings {
    size_bytes_max: 1 << 30,
    entry_bytes_max: 1 << 20,
    variants_per_key_max: 64,
    compress_min_bytes: None,
};
const NOW: Time = Time::from_micros(1);

/// `GET`, as L1 knows it.
fn get() -> Variant<'static> {
    Variant::bare(Table::builtin().lookup(b"get").expect("the built-in table has GET").id)
}

/// A partition that holds all keys.
fn filled(keys: &[Vec<u8>], reply: &[u8], deadline: Time) -> (Arc<Partition>, Filler) {
    let (partition, mut filler) = L1::new(SETTINGS).partition();
    let get = get();
    for key in keys {
        filler.fill(key, get, reply, deadline, NOW);
    }
    (partition, filler)
}

/// Looks for keys, copies what is found.
pub(super) fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("l1");
    let (keys, get) = (keys(), get());
    let soon = NOW.saturating_add(Duration::from_secs(1));
    for (name, bytes, deadline) in [
        ("hit, 64 B", 64, Time::MAX),
        ("hit, 64 B, with a deadline", 64, soon),
        ("hit, 1 KB", 1024, Time::MAX),
        ("hit, 16 KB, not copied", 16 * 1024, Time::MAX),
    ] {
        // The large ones would not all fit.
        let keys = &keys[..if bytes > 4096 { 10_000 } else { keys.len() }];
        let (partition, _filler) = filled(keys, &bulk(bytes), deadline);
        let (mut at, mut out) = (0, BytesMut::with_capacity(64 * 1024));
        group.bench_function(name, |b| {
            b.iter(|| {
                at = (at + 1) % keys.len();
                out.clear();
                let (key, leaves) = (black_box(&keys[at]), Leaves::SAME_FOR_EVER);
                partition.answer(key, partition.hash_of(key), get, leaves, || NOW, |reply| reply.put_to(&mut out))
            });
        });
    }
    let (partition, _filler) = filled(&keys, &bulk(64), Time::MAX);
    let absent: Vec<Vec<u8>> = keys.iter().map(|key| [key, &b"-"[..]].concat()).collect();
    let mut at = 0;
    group.bench_function("miss", |b| {
        b.iter(|| {
            at = (at + 1) % absent.len();
            partition.read(black_box(&absent[at]), get, || NOW).is_some()
        });
    });
    group.finish();
}

/// Puts entries in and takes them out.
pub(super) fn change(c: &mut Criterion) {
    let mut group = c.benchmark_group("l1");
    let (keys, get, reply) = (keys(), get(), bulk(64));
    let (_partition, mut filler) = filled(&keys, &reply, Time::MAX);
    let mut at = 0;
    group.bench_function("replace, 64 B", |b| {
        b.iter(|| {
            at = (at + 1) % keys.len();
            filler.fill(black_box(&keys[at]), get, &reply, Time::MAX, NOW)
        });
    });
    group.bench_function("remove and insert, 64 B", |b| {
        b.iter(|| {
            at = (at + 1) % keys.len();
            filler.remove(black_box(&keys[at]), Cause::DataChanged, NOW);
            filler.fill(&keys[at], get, &reply, Time::MAX, NOW)
        });
    });
    // A store that holds a tenth of the keys: each goes for another.
    let small = L1Settings { size_bytes_max: 2 << 20, entry_bytes_max: 64 << 10, ..SETTINGS };
    let (_partition, mut filler) = L1::new(small).partition();
    group.bench_function("insert and evict, 64 B", |b| {
        b.iter(|| {
            at = (at + 1) % keys.len();
            filler.fill(black_box(&keys[at]), get, &reply, Time::MAX, NOW)
        });
    });
    group.finish();
}
