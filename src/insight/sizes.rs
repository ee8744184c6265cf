//! CORE: the largest replies of single keys, in bounded memory.
//!
//! Exact for what was seen: every reply that is filled into L1, or is too large for it, is offered; the [`KEPT_MAX`]
//! largest keys are kept, each with the size of its last reply. A key that has become small leaves when a larger one comes.

use super::ScopeId;
use super::sketch::KEY_BYTES_MAX;

/// Keys that are kept.
pub const KEPT_MAX: usize = 256;

/// The largest keys.
#[derive(Debug, Default)]
pub struct BigKeys {
    kept: Vec<BigKey>,
}

/// A key and the size of the last reply to a read of it, in bytes of RESP3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BigKey {
    /// Whose key it is.
    pub scope: ScopeId,
    /// The key.
    pub key: Vec<u8>,
    /// Bytes.
    pub bytes: u64,
}

// === impl BigKeys ===

impl BigKeys {
    /// A reply to a read of a key has come. Returns the size of the smallest that is kept, 0 while there is room: what is not larger need not be
    /// offered.
    pub fn offer(&mut self, scope: ScopeId, key: &[u8], bytes: u64) -> u64 {
        if key.len() > KEY_BYTES_MAX {
            return self.floor();
        }
        if let Some(known) = self.kept.iter_mut().find(|big| big.scope == scope && big.key == key) {
            known.bytes = bytes;
        } else if self.kept.len() < KEPT_MAX {
            self.kept.push(BigKey { scope, key: key.to_vec(), bytes });
        } else if let Some(smallest) = self.kept.iter_mut().min_by_key(|big| big.bytes)
            && smallest.bytes < bytes
        {
            *smallest = BigKey { scope, key: key.to_vec(), bytes };
        }
        self.floor()
    }

    /// The largest keys of a scope, at most `max`, the largest first.
    pub fn top(&self, scope: ScopeId, max: usize) -> Vec<BigKey> {
        let mut found: Vec<BigKey> = self.kept.iter().filter(|big| big.scope == scope).cloned().collect();
        found.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.key.cmp(&b.key)));
        found.truncate(max);
        found
    }

    fn floor(&self) -> u64 {
        if self.kept.len() < KEPT_MAX { 0 } else { self.kept.iter().map(|big| big.bytes).min().unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_largest_of_many_exactly() {
        let mut big = BigKeys::default();
        for n in 0..10_000_u64 {
            let n = n * 7919 % 10_000;
            big.offer(ScopeId(n % 2), format!("k{n}").as_bytes(), n);
        }
        assert_eq!(big.kept.len(), KEPT_MAX);
        let top: Vec<u64> = big.top(ScopeId(1), 3).iter().map(|b| b.bytes).collect();
        assert_eq!(top, [9999, 9997, 9995]);
        assert_eq!(big.floor(), 10_000 - KEPT_MAX as u64);
        big.offer(ScopeId(1), b"k9999", 5);
        assert_eq!(big.top(ScopeId(1), 1)[0].bytes, 9997, "it has become small");
        big.offer(ScopeId(1), &[b'x'; KEY_BYTES_MAX + 1], u64::MAX);
        assert_eq!(big.top(ScopeId(1), 1)[0].bytes, 9997, "too long a key to keep");
    }
}
