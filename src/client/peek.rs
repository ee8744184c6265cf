//! Looking at a client's next request before taking it: who takes it depends on what it is.

use super::{Io, Request};
use bytes::Bytes;
use larder_protocol::scan::{RequestError, Step};

// === impl Io ===

impl Io {
    /// The length of the next whole request, if it is there; empty lines are passed over.
    pub(super) fn peek(&mut self) -> Result<Option<usize>, RequestError> {
        loop {
            match self.scanner.scan(&self.pending)? {
                Step::Incomplete { bytes_needed_min } => {
                    self.lacks = bytes_needed_min;
                    return Ok(None);
                }
                Step::Nothing { len } => drop(self.pending.split_to(len)),
                Step::Request { len } => return Ok(Some(len)),
            }
        }
    }

    pub(super) fn take_peeked(&mut self, len: usize) -> Option<Request> {
        let args = self.scanner.args(&self.pending);
        let ranges = args.ranges().to_vec();
        let encoded = self.scanner.is_encoded().then(|| Bytes::copy_from_slice(args.bytes()));
        let raw = self.pending.split_to(len).freeze();
        Some(Request { bytes: encoded.unwrap_or(raw), ranges })
    }

    /// Takes the next whole request.
    pub(super) fn next_request(&mut self) -> Result<Option<Request>, RequestError> {
        Ok(self.peek()?.and_then(|len| self.take_peeked(len)))
    }
}
