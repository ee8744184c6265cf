//! Bytes on their way out of a socket: small pieces gathered, large ones passed on without copying.
//!
//! Replies and requests below [`SHARED_BYTES_MIN`] are copied into one growing buffer, so that a batch goes out with one
//! write; larger ones keep their own memory and go out by a vectored write. A queue has a buffer only while something
//! waits: the one that is drained leaves its buffer to the next of the same thread, so that batch after batch is gathered
//! in the same warm memory, which has grown once, and the idle hold nothing.
//!
//! Invariant: bytes leave in the order in which they were put. The queue itself has no bound; who puts asks
//! [`Outgoing::len`] first (`limits.client_output_bytes_max`, `link.in_flight_bytes_max`).

use bytes::{Buf, Bytes, BytesMut};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::RangeInclusive;

/// From this size on a piece keeps its own memory: below it a copy is cheaper than another slice to write.
pub const SHARED_BYTES_MIN: usize = 16 * 1024;

/// Most slices of one vectored write (Linux takes 1024 at most; more than a few dozen gain nothing).
const SLICES_MAX: usize = 64;

/// A drained buffer of so many bytes is left to the next queue; a larger one is given back to the system, a smaller one is
/// not worth keeping.
const KEPT_BYTES: RangeInclusive<usize> = 1024..=512 * 1024;

thread_local! {
    /// The buffer of the queue that was drained last.
    static SPARE: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// A queue of bytes to be written.
#[derive(Debug, Default)]
pub struct Outgoing {
    full: VecDeque<Bytes>,
    full_len: usize,
    tail: BytesMut,
}

// === impl Outgoing ===

impl Outgoing {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.full_len + self.tail.len()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.full.is_empty() && self.tail.is_empty()
    }

    /// Copies `bytes` to the end.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        self.tail().extend_from_slice(bytes);
    }

    /// Puts `bytes` at the end, without copying if they are many.
    pub fn put_shared(&mut self, bytes: Bytes) {
        if bytes.len() < SHARED_BYTES_MIN {
            self.put(&bytes);
            return;
        }
        self.seal();
        self.full_len += bytes.len();
        self.full.push_back(bytes);
    }

    /// The gathering buffer, for encoders that write to it directly.
    #[inline]
    pub fn tail(&mut self) -> &mut BytesMut {
        if self.tail.capacity() == 0
            && let Some(spare) = SPARE.take()
        {
            self.tail = spare;
        }
        &mut self.tail
    }

    /// The first slices of what waits.
    pub fn slices<'a>(&'a self, into: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut n = 0;
        for piece in self.full.iter().map(|b| &b[..]).chain([&self.tail[..]]) {
            if n < SLICES_MAX && !piece.is_empty() {
                into[n] = IoSlice::new(piece);
                n += 1;
            }
        }
        n
    }

    /// The first slice, and whether it is all that waits.
    #[inline]
    pub fn first(&self) -> (&[u8], bool) {
        match self.full.front() {
            Some(piece) => (piece, false),
            None => (&self.tail, true),
        }
    }

    /// Forgets the first `written` bytes.
    pub fn advance(&mut self, mut written: usize) {
        while let Some(front) = self.full.front_mut() {
            let here = front.len().min(written);
            front.advance(here);
            self.full_len -= here;
            written -= here;
            if !front.is_empty() {
                return;
            }
            self.full.pop_front();
        }
        if written < self.tail.len() {
            self.tail.advance(written);
        } else {
            let mut drained = std::mem::take(&mut self.tail);
            if KEPT_BYTES.contains(&drained.capacity()) {
                drained.clear();
                SPARE.set(Some(drained));
            }
        }
    }

    /// Writes as much as `stream` takes. `Ok(true)` if nothing is left, `Ok(false)` if the stream is full.
    pub fn write_to(&mut self, stream: &tokio::net::TcpStream) -> std::io::Result<bool> {
        if self.tail.is_empty() && self.tail.capacity() > 0 {
            // What was put has been taken back.
            self.advance(0);
        }
        while !self.is_empty() {
            let result = match self.first() {
                (all, true) => stream.try_write(all),
                _ => {
                    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                    let n = self.slices(&mut slices);
                    stream.try_write_vectored(&slices[..n])
                }
            };
            match result {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.full_len += tail.len();
            self.full.push_back(tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_across_small_and_large_pieces() {
        let mut out = Outgoing::default();
        let large = Bytes::from(vec![b'x'; SHARED_BYTES_MIN]);
        out.put(b"ab");
        out.put_shared(large.clone());
        out.put(b"cd");
        out.put_shared(Bytes::from_static(b"ef"));
        let expected = [b"ab", &large[..], b"cdef"].concat();
        assert_eq!(out.len(), expected.len());
        let mut got = Vec::new();
        while !out.is_empty() {
            let (piece, _) = out.first();
            let piece = piece[..piece.len().min(1000)].to_vec();
            out.advance(piece.len());
            got.extend(piece);
        }
        assert_eq!(got, expected);
        assert_eq!(out.len(), 0);
    }

    #[test]
    fn a_drained_queue_leaves_its_buffer_to_the_next_and_holds_nothing() {
        SPARE.take();
        let (mut one, mut other) = (Outgoing::default(), Outgoing::default());
        one.put(&[b'x'; 4000]);
        let buffer = one.tail().as_ptr();
        one.advance(1000);
        other.put(b"y");
        assert_ne!(other.tail().as_ptr(), buffer);
        one.advance(3000);
        assert_eq!((one.is_empty(), one.tail.capacity()), (true, 0));
        other.advance(1);
        one.put(b"small");
        one.put(&[b'x'; 2000]);
        assert_eq!(one.len(), 2005);
        // What is too large is given back.
        one.put(&vec![b'z'; 600 * 1024]);
        one.advance(one.len());
        assert!(SPARE.take().is_none());
    }
}
