//! Coherence: no stale read, under concurrency and faults, with a relay that lets every connection run early or late.
//!
//! * [`linear`]: concurrent clients of all kinds, whose recorded histories must be linearizable for each key.
//! * [`order`]: writers elsewhere, whose writes come in order and never go back, and whose announcements are not overtaken.
//! * [`faults`]: the same while connections are cut and servers stop, die and return.
//!
//! Each test runs for a few seconds (`LARDER_TEST_SECONDS` for a long run) and prints its seed and its counts. The
//! checker itself ([`history`]) has tests with planted violations.

#[path = "../support/mod.rs"]
mod support;

mod faults;
mod history;
mod linear;
mod order;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use support::{Client, Larder, Relay, Rng, Server, run_seconds, seed};

/// The largest delay of the relay, in each direction. A few milliseconds show nearly everything.
const DELAY_MAX: Duration = Duration::from_millis(3);

/// An upstream, a relay that delays, and Larder behind it.
struct Scene {
    upstream: Server,
    relay: Relay,
    larder: Larder,
    rng: Rng,
    until: Instant,
}

impl Scene {
    fn start(run: &str, flags: &[&str]) -> Self {
        let mut rng = Rng::new(seed(run, None));
        let upstream = Server::redis(flags);
        let relay = Relay::start(upstream.address(), rng.next(), DELAY_MAX);
        let larder = Larder::behind(&relay, &[]);
        Self { upstream, relay, larder, rng, until: Instant::now() + run_seconds(3) }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }
}

/// The largest value of each key that anybody has seen: whoever asks later must not see a smaller one.
struct Floors(Vec<AtomicI64>);

impl Floors {
    fn new(keys: usize) -> Self {
        Self((0..keys).map(|_| AtomicI64::new(0)).collect())
    }

    fn of(&self, key: usize) -> i64 {
        self.0[key].load(Ordering::SeqCst)
    }

    fn raise(&self, key: usize, seen: i64) {
        self.0[key].fetch_max(seen, Ordering::SeqCst);
    }
}

/// Fails unless a read that began when `floor` had been seen has seen at least that.
#[track_caller]
fn assert_not_before(what: &str, floor: i64, seen: i64) {
    assert!(seen >= floor, "{what}: saw {seen} after {floor} had been seen");
}

/// GET of a number; a missing key is 0.
#[track_caller]
fn number(client: &mut Client, key: &str) -> i64 {
    client.value(&["GET", key]).int_or_null().unwrap_or(0)
}
