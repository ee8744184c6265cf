//! What waits for the fence of one scope: messages in the order of the upstream's stream.
//!
//! Invariant: entries leave in the order in which they came. At most one fence is under way; it covers the entries that
//! were there when it was asked for, and no others leave by its answer.

use super::Kind;
use super::core::Ticket;
use crate::clients::ClientId;
use crate::port::Seq;
use bytes::Bytes;
use std::collections::VecDeque;

/// Messages that wait for the fence of one scope.
pub(super) struct Queue<S> {
    pub(super) scope: S,
    pub(super) clients: usize,
    pub(super) entries: VecDeque<Entry>,
    pub(super) bytes: usize,
    fence: Option<Fence>,
}

#[derive(Clone, Copy, Debug)]
struct Fence {
    seq: Seq,
    /// The first so many entries were there when it was asked for.
    covered: usize,
    answer: FenceAnswer,
}

/// Whether what a fence covers may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FenceAnswer {
    Awaited,
    Given,
}

pub(super) enum Entry {
    /// For all members in the scope.
    Shared(Message),
    /// For a client that came from another scope, by its so manieth move, while the message waited there.
    Private(ClientId, u64, Message),
    /// A call that waits until what stands before it has been delivered.
    Mark(Ticket),
}

#[derive(Clone)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) name: Bytes,
    pub(super) position: u64,
    pub(super) frame: Bytes,
}

/// What an entry costs beside its bytes.
const ENTRY_BYTES: usize = 128;

// === impl Queue ===

impl<S> Queue<S> {
    pub(super) fn new(scope: S) -> Self {
        Self { scope, clients: 0, entries: VecDeque::new(), bytes: 0, fence: None }
    }

    /// Asks for a fence, as `seq`, if something waits that needs one and none is under way.
    pub(super) fn ask_fence(&mut self, seq: Seq) -> bool {
        if self.fence.is_some() || self.entries.is_empty() {
            return false;
        }
        self.fence = Some(Fence { seq, covered: self.entries.len(), answer: FenceAnswer::Awaited });
        true
    }

    /// True if this is the fence under way.
    pub(super) fn awaits(&self, seq: Seq) -> bool {
        self.fence.is_some_and(|fence| fence.seq == seq)
    }

    /// The fence was answered: what it covers may leave.
    pub(super) fn fenced(&mut self) {
        let given = self.fence.map(|fence| Fence { answer: FenceAnswer::Given, ..fence });
        self.fence = given.filter(|fence| fence.covered > 0);
    }

    /// Takes out all that waits; the fence under way is void.
    pub(super) fn clear(&mut self) -> VecDeque<Entry> {
        self.fence = None;
        self.bytes = 0;
        std::mem::take(&mut self.entries)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
    }

    /// Takes the first entry out if its fence was answered; a mark at the front waits for nothing.
    pub(super) fn pop_free(&mut self) -> Option<Entry> {
        match &mut self.fence {
            Some(fence) if fence.answer == FenceAnswer::Given => {
                fence.covered -= 1;
                if fence.covered == 0 {
                    self.fence = None;
                }
            }
            Some(fence) if fence.covered > 0 && matches!(self.entries.front(), Some(Entry::Mark(_))) => {
                fence.covered -= 1
            }
            None if matches!(self.entries.front(), Some(Entry::Mark(_))) => {}
            _ => return None,
        }
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.bytes();
        Some(entry)
    }
}

// === impl Entry ===

impl Entry {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Shared(message) | Self::Private(_, _, message) => message.frame.len() + ENTRY_BYTES,
            Self::Mark(_) => ENTRY_BYTES,
        }
    }
}
