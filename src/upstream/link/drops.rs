//! Removals that an operator has ordered.
//!
//! They take their place among the requests of the link: what was in L1, or on its way into it, when the order came, is
//! not answered afterwards. Reads under way stay what they are for those who wait for them, and are kept no more.

use super::{Frame, LinkCore, OpKind};
use crate::clock::Time;
use crate::l1::Cause;
use crate::port::{Port, Seq};
use larder_protocol::args::Args;
use std::sync::Arc;

// === impl LinkCore ===

impl LinkCore {
    /// Drops the keys that `request` names behind its first argument; answers with how many were in L1.
    pub(super) fn drop_keys(&mut self, port: &Arc<Port>, seq: Seq, request: &[u8], cause: Cause, now: Time) {
        let mut dropped = 0;
        if let Some(ranges) = self.scan(request) {
            for key in Args::new(request, &ranges).iter().skip(1) {
                let flights = self.keys.get(key).map(|state| state.flights.clone()).unwrap_or_default();
                flights.into_iter().for_each(|flight| self.keep_no_more(flight));
                dropped += u64::from(self.remove(key, cause, now));
            }
            self.scanner_gives_back(ranges);
        }
        self.hand_on(port, seq, Frame { bytes: format!(":{dropped}\r\n").as_bytes(), shared: None });
    }

    /// Empties the partition.
    pub(super) fn drop_all(&mut self, port: &Arc<Port>, seq: Seq, cause: Cause) {
        self.filler.empty(cause);
        self.counts.emptied += 1;
        let flights: Vec<usize> = self.flights.iter().map(|(flight, _)| flight).collect();
        flights.into_iter().for_each(|flight| self.keep_no_more(flight));
        self.hand_on(port, seq, Frame { bytes: b"+OK\r\n", shared: None });
    }

    /// A read under way is from now on one whose reply is only handed on.
    fn keep_no_more(&mut self, flight: usize) {
        if let Some(flight) = self.flights.get_mut(flight) {
            flight.kind = OpKind::Read;
        }
    }
}
