//! Which reads the upstream tracks for the link: all, or only those that it is asked to.
//!
//! While misses are filled the link tracks by default: a read needs no word more. While the admission filter is choosy most
//! reads are only forwarded, and each key that the upstream notes for nothing costs it half a microsecond, and a push when
//! its table is full. The link then tracks by `OPTIN`: a fill says `CLIENT CACHING YES` in front of its PTTL, and nothing
//! else is noted.
//!
//! ```text
//!   written:  ... GET a | CLIENT TRACKING ON OPTIN | GET b | CLIENT CACHING YES, PTTL c, GET c ...
//!   tracked:      a                                   -                         c
//! ```
//!
//! The switch stands in the one stream, so it is known of each request in which mode it is executed. Keys that were tracked
//! before stay so (measured on redis-server 7.0.15 and Valkey 9.1.2, both ways).
//!
//! Invariants:
//! * A PTTL counts as tracked only if the replies in front of it say so: the last switch that was agreed to was to the
//!   default, or the `CLIENT CACHING YES` before it was answered with `+OK`. What is not tracked is not kept.
//! * At most one switch is under way.
//!
//! How it fails: a user who may not call `CLIENT CACHING`, or may not switch, goes on in the default mode, where more is
//! tracked than need be. One who may not switch back keeps nothing from then on that it cannot opt in to.

use super::{Frame, LinkCore, What};
use crate::clock::Time;
use crate::mutation::{Mutation, is_planted};
use crate::upstream::link::Caching;

/// The mode of a connection's tracking.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    /// True if what is written now is tracked only where it opts in.
    pub(super) written_opts_in: bool,
    /// The same for what is read now: as far as the upstream has agreed.
    opts_in: bool,
    /// The next PTTL opts in, and the upstream has agreed.
    has_opted: bool,
    /// A switch waits for its reply.
    is_switching: bool,
    /// The upstream has refused something of this: the default it is.
    is_refused: bool,
}

const ALL: &[u8] = b"*3\r\n$6\r\nCLIENT\r\n$8\r\nTRACKING\r\n$2\r\nON\r\n";
const OPT_IN: &[u8] = b"*4\r\n$6\r\nCLIENT\r\n$8\r\nTRACKING\r\n$2\r\nON\r\n$5\r\nOPTIN\r\n";
const CACHING: &[u8] = b"*3\r\n$6\r\nCLIENT\r\n$7\r\nCACHING\r\n$3\r\nYES\r\n";

// === impl LinkCore (tracking) ===

impl LinkCore {
    /// Goes over to the mode that suits the admission filter, behind what has been written so far.
    pub(super) fn suit_tracking(&mut self, now: Time) {
        let opts_in = self.admission.is_choosy() && !self.tracking.is_refused;
        if opts_in != self.tracking.written_opts_in && !self.tracking.is_switching && self.caching == Caching::Tracked {
            self.tracking.written_opts_in = opts_in;
            self.tracking.is_switching = true;
            let starts_at = self.put(if opts_in { OPT_IN } else { ALL });
            self.expect(What::Switch { opts_in }, starts_at, now);
        }
    }

    /// The command that is written next names keys that are to be tracked.
    #[inline]
    pub(super) fn opt_in(&mut self, now: Time) {
        if self.tracking.written_opts_in && !is_planted(Mutation::OptInForgotten) {
            let starts_at = self.put(CACHING);
            self.expect(What::OptIn, starts_at, now);
        }
    }

    /// The reply to a switch.
    pub(super) fn switched(&mut self, opts_in: bool, frame: Frame<'_>) {
        self.tracking.is_switching = false;
        if frame.bytes == b"+OK\r\n" {
            self.tracking.opts_in = opts_in;
            return;
        }
        self.tracking.is_refused = true;
        self.tracking.written_opts_in = self.tracking.opts_in;
    }

    /// The reply to an opting in.
    pub(super) fn opted_in(&mut self, frame: Frame<'_>) {
        self.tracking.has_opted = frame.bytes == b"+OK\r\n";
        // What was written before the refusal of a switch was known opts in for nothing, and is tracked all the same.
        self.tracking.is_refused |= !self.tracking.has_opted && self.tracking.opts_in;
    }

    /// Whether the command whose reply is at hand, behind an opting in if there was one, was tracked.
    #[inline]
    pub(super) fn take_tracked(&mut self) -> bool {
        let has_opted = std::mem::take(&mut self.tracking.has_opted);
        has_opted || !self.tracking.opts_in || is_planted(Mutation::OptInForgotten)
    }
}
