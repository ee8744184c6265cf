//! How much waits in this process altogether: requests on their way to the upstream, and replies on their way to clients.
//!
//! Each holder (a client's connection, a link's queue, a link) has bounds of its own; this is the bound over all of them.
//! A holder has a [`Share`] and says now and then, once a batch, how much it holds; differences of less than
//! [`STEP_BYTES`] are not told, so that who holds little costs nothing. A holder that ends gives its share back.
//!
//! When the bound (`limits.buffered_bytes_max`) is reached:
//! * clients are not read from, for at most `limits.buffered_wait_ms_max`; then their requests for the upstream are refused;
//! * a client that holds more than its part, and does not read what waits for it, is closed: what it has asked for cannot
//!   be given back otherwise.
//!
//! It counts as reached until an eighth of it is free again.
//!
//! Not counted: L1 and the embedded store, which have bounds of their own; messages of subscriptions that wait for a fence
//! (`queued_bytes_max` of a hub); what the system's sockets hold; bookkeeping of less than [`STEP_BYTES`] a holder.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// What a holder need not tell.
pub const STEP_BYTES: usize = 4 * 1024;
/// What a request on its way costs beside its bytes: places in queues, references to its client.
pub const REQUEST_OVERHEAD_BYTES: usize = 256;

/// The account of all that waits.
#[derive(Debug)]
pub struct Buffered {
    bytes: AtomicUsize,
    bytes_max: AtomicUsize,
    is_full: AtomicBool,
    refused: AtomicU64,
    closed: AtomicU64,
}

/// What one holder has told. Given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    account: Arc<Buffered>,
    told: usize,
}

// === impl Buffered ===

impl Buffered {
    /// An account that is full at `bytes_max`.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: AtomicUsize::new(0),
            bytes_max: AtomicUsize::new(bytes_max),
            is_full: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            closed: AtomicU64::new(0),
        })
    }

    /// The share of a new holder.
    pub fn share(self: &Arc<Self>) -> Share {
        Share { account: self.clone(), told: 0 }
    }

    /// True from when the bound is reached until an eighth of it is free again.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Bytes that wait, as far as they were told.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The bound.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max.load(Ordering::Relaxed)
    }

    /// Moves the bound.
    pub fn set_bytes_max(&self, bytes_max: usize) {
        self.bytes_max.store(bytes_max, Ordering::Release);
        self.is_full.store(self.bytes() >= bytes_max, Ordering::Release);
    }

    /// A request was refused because the account is full.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests refused so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A client was closed because the account is full.
    pub fn count_closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// Clients closed so far.
    pub fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        let before = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        if before + bytes >= self.bytes_max() && !self.is_full() {
            self.is_full.store(true, Ordering::Release);
        }
    }

    fn take(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        if self.is_full() && before.saturating_sub(bytes) < self.bytes_max() - self.bytes_max() / 8 {
            self.is_full.store(false, Ordering::Release);
            // Another may have filled it between the two.
            if self.bytes.load(Ordering::Acquire) >= self.bytes_max() {
                self.is_full.store(true, Ordering::Release);
            }
        }
    }
}

// === impl Share ===

impl Share {
    /// The holder holds so many bytes now.
    #[inline]
    pub fn set(&mut self, bytes: usize) {
        if bytes.abs_diff(self.told) >= STEP_BYTES {
            self.tell(bytes);
        }
    }

    fn tell(&mut self, bytes: usize) {
        match bytes > self.told {
            true => self.account.add(bytes - self.told),
            false => self.account.take(self.told - bytes),
        }
        self.told = bytes;
    }

    /// The account.
    pub fn account(&self) -> &Arc<Buffered> {
        &self.account
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.tell(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_what_is_told_and_forgets_who_is_gone() {
        let account = Buffered::new(100 * STEP_BYTES);
        let (mut a, mut b) = (account.share(), account.share());
        a.set(STEP_BYTES - 1);
        assert_eq!(account.bytes(), 0, "not worth telling");
        a.set(3 * STEP_BYTES);
        b.set(2 * STEP_BYTES);
        a.set(2 * STEP_BYTES + 1);
        assert_eq!(account.bytes(), 5 * STEP_BYTES);
        a.set(0);
        assert_eq!(account.bytes(), 2 * STEP_BYTES);
        drop(b);
        assert_eq!(account.bytes(), 0);
    }

    #[test]
    fn is_full_until_an_eighth_is_free() {
        let account = Buffered::new(80 * STEP_BYTES);
        let mut share = account.share();
        share.set(79 * STEP_BYTES);
        assert!(!account.is_full());
        share.set(80 * STEP_BYTES);
        assert!(account.is_full());
        share.set(70 * STEP_BYTES);
        assert!(account.is_full(), "an eighth is not free yet");
        share.set(69 * STEP_BYTES);
        assert!(!account.is_full());
    }

    #[test]
    fn many_threads_leave_nothing_behind() {
        let account = Buffered::new(10 * STEP_BYTES);
        std::thread::scope(|scope| {
            for seed in 1..5 {
                let mut share = account.share();
                scope.spawn(move || (0..10_000).for_each(|n| share.set((n * seed) % 7 * STEP_BYTES)));
            }
        });
        assert_eq!(account.bytes(), 0);
        assert!(!account.is_full());
    }
}
