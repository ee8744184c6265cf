//! What the parts of the hot path cost, each by itself: scanner, command table, L1, reply shapes, link.
//!
//! ```text
//! cargo bench --bench parts               all of it, a minute and a half or so
//! cargo bench --bench parts -- l1/        only what has this in its name
//! cargo bench --bench parts -- --quick    a look
//! ```
//!
//! For telling where time goes and whether a change of one part helps. What a whole operation costs, system calls included,
//! is `benches/peers`' to say; what noise would hide, `benches/instructions`'. Criterion keeps the figures of the last run in
//! `target/criterion` and prints the difference.
//!
//! Every part is given as many different keys as do not fit into the first caches, in an order without a pattern: a
//! benchmark of one key over and over would measure what never happens.

mod l1;
mod link;
mod protocol;

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::Duration;

/// Keys that are there.
const KEYS: usize = 100_000;

criterion_group! {
    name = parts;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = protocol::scan, protocol::classify, protocol::shape, l1::read, l1::change, link::fill
}
criterion_main!(parts);

/// The names of all keys, 16 bytes each, in an order without a pattern.
fn keys() -> Vec<Vec<u8>> {
    // A multiplier without a common factor with their number visits all of them.
    (0..KEYS).map(|i| format!("key:{:012}", i * 7919 % KEYS).into_bytes()).collect()
}

/// A string as a server sends it.
fn bulk(bytes: usize) -> Vec<u8> {
    [format!("${bytes}\r\n").as_bytes(), &vec![b'x'; bytes], b"\r\n"].concat()
}
