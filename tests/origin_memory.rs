//! The accounted bytes of the embedded store against what the process really takes.
//!
//! Alone in its file, for other tests in the same process would be measured too. Linux with glibc only, whose figures
//! the accounting uses.
#![allow(clippy::unwrap_used, reason = "a test that cannot run must fail at once")]
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use larder::origin::{Origin, OriginLimits, Protocol, UnixMillis};
use larder_protocol::args::OwnedArgs;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
/// Keys of one store. Enough for the fixed parts not to matter.
const KEYS: u64 = 200_000;
/// How far the process's growth may be from the accounts, as a share of these.
const DIFFERENCE_MAX: f64 = 0.15;

/// Resident bytes of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Fills a store with values of `value_len` bytes; what is accounted and what the process has grown by.
fn fill(value_len: usize, lifetime: &[&str]) -> (Origin, u64, u64) {
    let before = resident_bytes();
    let mut origin = Origin::new(OriginLimits { bytes_max: 1 << 40, ..OriginLimits::default() }, 1);
    let mut out = Vec::new();
    let value = "v".repeat(value_len);
    for i in 0..KEYS {
        // Deadlines in no order, as keys of a cache have them.
        let until = (NOW.0 + 1_000_000 + i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1_000_000_000).to_string();
        let key = format!("user:{i:010}");
        let mut words = vec!["SET", &key, &value];
        words.extend(lifetime);
        if !lifetime.is_empty() {
            words.push(&until);
        }
        out.clear();
        origin.execute(0, Protocol::Resp2, OwnedArgs::new(&words).args(), NOW, &mut out);
        assert_eq!(out, b"+OK\r\n");
    }
    let accounted = origin.stats().bytes_used;
    (origin, accounted, resident_bytes() - before)
}

#[test]
fn the_accounts_are_what_the_process_takes() {
    let mut kept = Vec::new();
    for (value_len, lifetime) in [(10, &[][..]), (10, &["PXAT"]), (100, &["PXAT"]), (1_000, &[])] {
        let (origin, accounted, taken) = fill(value_len, lifetime);
        let share = taken as f64 / accounted as f64;
        println!("values of {value_len} {lifetime:?}: {accounted} accounted, {taken} taken, ratio {share:.3}");
        assert!((share - 1.0).abs() <= DIFFERENCE_MAX, "values of {value_len} {lifetime:?}: ratio {share:.3}");
        // Kept until the end, so that no store takes what another has given back.
        kept.push(origin);
    }
}
