//! What a peer has sent that it should not have: how it is shown in the log.
//!
//! An operator who reads "not a reply" wants to see what came. What came may be somebody's data (a reply that nothing
//! had asked for is a good reply, to somebody), so only its beginning is kept, [`SHOWN_BYTES_MAX`] bytes, and it is
//! escaped: no bytes of a peer reach a terminal or break a line of the log.
//!
//! Who sends nonsense can send much of it: lines about clients are rationed ([`Ration`]), [`LINES_MAX`] a second, and
//! the next line tells how many were left out. (Lines about the upstream need no ration: each is one connection to it,
//! and those are paced.)

use crate::clock::Time;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many bytes of what came are kept and shown.
pub const SHOWN_BYTES_MAX: usize = 64;
/// Lines in one second.
pub const LINES_MAX: u64 = 10;

/// The beginning of what came. `Display` shows it in quotes, escaped, with the length of all that there was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    beginning: Box<[u8]>,
    len: usize,
}

/// Bounds the lines that are written about what peers do.
#[derive(Debug, Default)]
pub struct Ration {
    /// The second at hand, in the upper bits, and the lines written in it, in the lower [`LINE_BITS`].
    window: AtomicU64,
    left_out: AtomicU64,
}

const LINE_BITS: u32 = 8;

// === impl Received ===

impl Received {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let shown = bytes.len().min(SHOWN_BYTES_MAX);
        Self { beginning: bytes[..shown].into(), len: bytes.len() }
    }
}

impl std::fmt::Display for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.beginning.escape_ascii())?;
        if self.len > self.beginning.len() {
            write!(f, "... ({} bytes)", self.len)?;
        }
        Ok(())
    }
}

// === impl Ration ===

impl Ration {
    /// Whether a line may be written at `now`, and if so how many were left out since the last one.
    pub fn admit(&self, now: Time) -> Option<u64> {
        let second = now.as_micros() / 1_000_000;
        let counted = self.window.fetch_update(Ordering::AcqRel, Ordering::Acquire, |window| {
            let lines = if window >> LINE_BITS == second { window & ((1 << LINE_BITS) - 1) } else { 0 };
            (lines < LINES_MAX).then_some(second << LINE_BITS | (lines + 1))
        });
        if counted.is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn shows_the_beginning_escaped() {
        assert_eq!(Received::of(b"GET / HTTP\r\n\x1b[2J").to_string(), r#""GET / HTTP\r\n\x1b[2J""#);
        let long = Received::of(&[b'a'; 1000]).to_string();
        assert_eq!(long, format!("\"{}\"... (1000 bytes)", "a".repeat(SHOWN_BYTES_MAX)));
    }

    #[test]
    fn lines_are_rationed_and_those_left_out_are_told() {
        let ration = Ration::default();
        let now = Time::ZERO.saturating_add(Duration::from_secs(7));
        let admitted = (0..25).filter(|_| ration.admit(now).is_some()).count();
        assert_eq!(admitted as u64, LINES_MAX);
        let later = now.saturating_add(Duration::from_secs(1));
        assert_eq!(ration.admit(later), Some(15));
        assert_eq!(ration.admit(later), Some(0));
    }
}
