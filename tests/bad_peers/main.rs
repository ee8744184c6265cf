//! Peers that send what nobody sends: upstreams ([`upstream`]) and clients ([`clients`]), each misdeed by name.
//!
//! What must hold, whatever a peer does: Larder goes on (its end fails every test, see `support::Larder`), everybody else
//! is served, **nobody gets another's reply**, memory stays bounded, and the log says what was received from whom. That
//! nobody gets another's reply shows by values: whatever a client asks for, the answer names the question, so that an
//! answer is its own, an error, or a failure of the test.
//!
//! What no proxy can find out: an upstream that answers one *client's* command twice looks, until the next command of
//! Larder's own, as if it had answered the next client. Between cached reads stands such a command each time.

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod fake;
mod line_ends;
mod upstream;

use support::Larder;

/// Far above what Larder needs in these tests, far below any of the lengths that peers claim.
const MEMORY_MB_MAX: u64 = 150;

/// Fails if Larder's memory has ever been above the bound.
#[track_caller]
fn assert_memory_bounded(larder: &Larder) {
    let peak = larder.memory_peak_kb() / 1024;
    assert!(peak < MEMORY_MB_MAX, "larder has used {peak} MB");
}

/// Waits until the log has a line with all of `parts`.
#[track_caller]
fn assert_logged(larder: &Larder, parts: &[&str]) {
    support::wait_until(&format!("a line of the log with {parts:?}"), || {
        larder.output().lines().any(|line| parts.iter().all(|part| line.contains(part)))
    });
}
