//! The bytes that L1 counts (`l1.size_bytes_max`) against what the process really takes.
//!
//! Alone in its file, for other tests in the same process would be measured too. Linux with glibc only, whose figures
//! the accounting uses.
#![allow(clippy::unwrap_used, reason = "a test that cannot run must fail at once")]
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use larder::clock::Time;
use larder::l1::{Filled, L1, L1Settings, Variant};
use larder_protocol::table::Table;
use std::sync::Arc;

/// How far the process's growth may be from the count, as a share of this.
const DIFFERENCE_MAX: f64 = 0.05;
/// The same where entries of many sizes have come and gone: what the allocator cannot use again in between is not counted.
const CHURNED_MAX: f64 = 0.12;
const NOW: Time = Time::from_micros(1);

/// Resident bytes of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Fills an L1; it, and what the process has grown by.
fn fill(size_bytes_max: u64, count: u64, value_len: impl Fn(u64) -> usize) -> (Arc<L1>, u64) {
    let get = Variant::bare(Table::builtin().lookup(b"get").unwrap().id);
    let before = resident_bytes();
    let l1 = L1::new(L1Settings {
        size_bytes_max,
        entry_bytes_max: 64 << 10,
        variants_per_key_max: 1,
        compress_min_bytes: None,
    });
    let (_partition, mut filler) = l1.partition();
    for i in 0..count {
        let key = format!("key:{i:012}");
        let value = "v".repeat(value_len(i));
        let reply = format!("${}\r\n{value}\r\n", value.len());
        assert_eq!(filler.fill(key.as_bytes(), get, reply.as_bytes(), Time::MAX, NOW), Filled::Stored);
    }
    let grown = resident_bytes().saturating_sub(before);
    // Dropped, it would empty the partition.
    std::mem::forget(filler);
    (l1, grown)
}

#[test]
fn what_is_counted_is_what_the_process_takes() {
    let mut kept = Vec::new();
    let mut check = |what: &str, difference_max: f64, (l1, taken): (Arc<L1>, u64)| {
        let share = taken as f64 / l1.bytes() as f64;
        println!("{what}: {} counted, {taken} taken, ratio {share:.3}", l1.bytes());
        assert!((share - 1.0).abs() <= difference_max, "{what}: ratio {share:.3}");
        // Kept until the end, so that no store takes what another has given back.
        kept.push(l1);
    };
    for value_len in [10, 64, 100, 1_000] {
        check(&format!("values of {value_len}"), DIFFERENCE_MAX, fill(1 << 40, 200_000, |_| value_len));
    }
    let (size, count) = (64 << 20, 800_000);
    let mixed = |i: u64| 20 + (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % 600;
    let churned = fill(size, count, mixed);
    assert!(churned.0.bytes() <= size && churned.0.bytes() > size / 10 * 9 && churned.0.evictions() > count / 2);
    check("mixed values, most of them evicted", CHURNED_MAX, churned);
}
