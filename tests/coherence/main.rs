//! Coherence: no stale read, under concurrency and faults, with a relay that lets every connection run early or late.
//!
//! * [`linear`]: concurrent clients of all kinds, whose recorded histories must be linearizable for each key.
//! * [`order`]: writers elsewhere, whose writes come in order and never go back, and whose announcements are not overtaken.
//! * [`events`]: all that changes keys, by whatever command, here or elsewhere: nothing of before stays in L1.
//! * [`expiry`]: keys and hash fields whose time ends.
//! * [`churn`]: the server evicts keys, forgets what it tracks, and is written to all the time.
//! * [`faults`]: histories while connections are cut and servers stop, die and return.
//! * [`replacement`]: another server, or another dataset, in the upstream's place.
//! * `planted` (feature `mutations`): the checkers find bugs that are planted in a real Larder.
//!
//! Every test runs in front of redis-server and of Valkey. Each lasts a few seconds (`LARDER_TEST_SECONDS` for a long run)
//! and prints its seed and its counts. The checker itself ([`history`]) has tests with planted violations.
//!
//! `netns.sh` runs the tests of faults in a network namespace of their own, where packets are dropped as well.

#[path = "../support/mod.rs"]
mod support;

mod churn;
#[path = "../differential/commands.rs"]
#[allow(dead_code, reason = "the differential test uses the rest")]
mod commands;
mod events;
mod expiry;
mod faults;
mod history;
mod linear;
mod order;
#[cfg(feature = "mutations")]
mod planted;
mod replacement;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use support::{Client, Kind, Larder, Relay, Rng, Server, run_seconds, seed};

/// The largest delay of the relay, in each direction. A few milliseconds show nearly everything.
const DELAY_MAX: Duration = Duration::from_millis(3);

/// The admission filter is choosy from the beginning, so the link tracks by OPTIN.
const CHOOSY: &[&str] = &["--set", "l1.admission='second-touch'"];

/// An upstream, a relay that delays, and Larder behind it.
struct Scene {
    /// What is run, in front of which server.
    run: String,
    upstream: Server,
    relay: Relay,
    larder: Larder,
    rng: Rng,
    until: Instant,
}

impl Scene {
    fn start(run: &str, kind: Kind, flags: &[&str]) -> Self {
        Self::with(run, kind, flags, |relay| Larder::behind(relay, &[]))
    }

    /// With a Larder that fills at a key's second miss, and has the upstream track only what it fills.
    fn choosy(run: &str, kind: Kind) -> Self {
        Self::with(run, kind, &[], |relay| Larder::behind(relay, CHOOSY))
    }

    /// With a Larder of the test's own making.
    fn with(run: &str, kind: Kind, flags: &[&str], larder: impl FnOnce(&Relay) -> Larder) -> Self {
        let run = format!("{run}, {kind:?}");
        let mut rng = Rng::new(seed(&run, None));
        let upstream = Server::start(kind, flags);
        let relay = Relay::start(upstream.address(), rng.next(), DELAY_MAX);
        let larder = larder(&relay);
        Self { run, upstream, relay, larder, rng, until: Instant::now() + run_seconds(2) }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }
}

/// Tests that run once in front of each server.
macro_rules! on_both_servers {
    ($($name:ident: $body:expr,)*) => {
        mod redis {
            #[allow(unused_imports, reason = "some bodies are named in full")]
            use super::*;
            $(#[test] fn $name() { ($body)($crate::support::Kind::Redis); })*
        }
        mod valkey {
            #[allow(unused_imports, reason = "some bodies are named in full")]
            use super::*;
            $(#[test] fn $name() { ($body)($crate::support::Kind::Valkey); })*
        }
    };
}
use on_both_servers;

/// Waits until every invalidation that the upstream has sent so far has been applied. Behind the upstream itself in
/// Larder's place there is nothing to wait for.
#[track_caller]
fn catch_up(client: &mut Client) {
    if !Larder::is_plain() {
        client.ok(&["CACHE", "FENCE"]);
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
