//! CORE: invalidations that wait until the links have caught up with them, in order.
//!
//! Invariants: entries leave in the order in which they came, and only by a fence that was asked for after they had come;
//! at most one fence is under way. A mark at the front waits for nothing.

use bytes::Bytes;
use std::collections::VecDeque;

/// What waits. `M` is who is told when a mark's turn has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry<M> {
    /// An invalidation, as the upstream sent it.
    Push(Bytes),
    /// Somebody waits for all that stands before it.
    Mark(M),
}

/// Entries in the order of the upstream.
#[derive(Debug)]
pub(super) struct Queue<M> {
    covered: VecDeque<Entry<M>>,
    uncovered: VecDeque<Entry<M>>,
    bytes: usize,
    fence: Fence,
}

/// Whether a fence is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fence {
    None,
    /// So many links are still to answer.
    Missing(usize),
}

/// What an entry costs beside its bytes.
const ENTRY_BYTES: usize = 64;

// === impl Queue ===

impl<M> Queue<M> {
    pub(super) fn new() -> Self {
        Self { covered: VecDeque::new(), uncovered: VecDeque::new(), bytes: 0, fence: Fence::None }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts an entry behind all others.
    pub(super) fn push(&mut self, entry: Entry<M>) {
        self.bytes += entry.bytes();
        self.uncovered.push_back(entry);
    }

    /// True if something waits that needs a fence, and none is under way: the caller asks for one and says of how many
    /// links by [`Queue::fencing`].
    pub(super) fn wants_fence(&self) -> bool {
        self.fence == Fence::None && self.covered.is_empty() && !self.uncovered.is_empty()
    }

    /// A fence on so many links was asked for: it covers all that waits now.
    pub(super) fn fencing(&mut self, links: usize) {
        std::mem::swap(&mut self.covered, &mut self.uncovered);
        self.fence = if links == 0 { Fence::None } else { Fence::Missing(links) };
    }

    /// One link has answered.
    pub(super) fn fenced(&mut self) {
        if let Fence::Missing(links) = self.fence {
            self.fence = if links > 1 { Fence::Missing(links - 1) } else { Fence::None };
        }
    }

    /// The next entry that may leave.
    pub(super) fn pop_free(&mut self) -> Option<Entry<M>> {
        let from = match self.fence {
            Fence::None if !self.covered.is_empty() => &mut self.covered,
            _ if self.covered.is_empty() && matches!(self.uncovered.front(), Some(Entry::Mark(_))) => {
                &mut self.uncovered
            }
            Fence::Missing(_) if matches!(self.covered.front(), Some(Entry::Mark(_))) => &mut self.covered,
            _ => return None,
        };
        let entry = from.pop_front()?;
        self.bytes -= entry.bytes();
        Some(entry)
    }

    /// All that waits, in order; nothing waits any more.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Entry<M>> {
        self.bytes = 0;
        self.fence = Fence::None;
        std::mem::take(&mut self.covered).into_iter().chain(std::mem::take(&mut self.uncovered))
    }
}

// === impl Entry ===

impl<M> Entry<M> {
    fn bytes(&self) -> usize {
        match self {
            Self::Push(push) => push.len() + ENTRY_BYTES,
            Self::Mark(_) => ENTRY_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn push(n: usize) -> Entry<usize> {
        Entry::Push(Bytes::from(n.to_string()))
    }

    #[test]
    fn an_entry_waits_for_a_fence_that_was_asked_for_behind_it() {
        let mut queue = Queue::new();
        queue.push(push(1));
        assert!(queue.wants_fence() && queue.pop_free().is_none());
        queue.fencing(2);
        queue.push(push(2));
        queue.fenced();
        assert_eq!(queue.pop_free(), None, "one of two links has answered");
        queue.fenced();
        assert_eq!(queue.pop_free(), Some(push(1)));
        assert_eq!(queue.pop_free(), None, "the second came after the fence");
        assert!(queue.wants_fence());
    }

    #[test]
    fn a_mark_waits_only_for_what_stands_before_it() {
        let mut queue = Queue::new();
        queue.push(Entry::Mark(7));
        assert_eq!(queue.pop_free(), Some(Entry::Mark(7)));
        queue.push(push(1));
        queue.push(Entry::Mark(8));
        assert_eq!(queue.pop_free(), None);
        queue.fencing(1);
        assert_eq!(queue.pop_free(), None);
        queue.fenced();
        assert_eq!(queue.pop_free(), Some(push(1)));
        assert_eq!(queue.pop_free(), Some(Entry::Mark(8)));
        assert_eq!((queue.pop_free(), queue.bytes()), (None, 0));
    }

    proptest! {
        /// Whatever happens in between: entries leave in order, each once, and a push only after all the links answered a
        /// fence that was asked for behind it.
        #[test]
        fn entries_leave_in_order_and_fenced(steps in prop::collection::vec(0_u8..5, 0..200)) {
            let mut queue = Queue::new();
            let (mut came, mut left, mut fenced, mut asked, mut missing) = (0, 0, 0, 0, 0);
            for step in steps {
                match step {
                    0 => { queue.push(push(came)); came += 1; }
                    1 => { queue.push(Entry::Mark(came)); came += 1; }
                    2 if queue.wants_fence() => { queue.fencing(3); asked = came; missing = 3; }
                    3 if missing > 0 => { queue.fenced(); missing -= 1; if missing == 0 { fenced = asked; } }
                    _ => while let Some(entry) = queue.pop_free() {
                        match entry {
                            Entry::Push(bytes) => {
                                prop_assert_eq!(bytes, left.to_string());
                                prop_assert!(left < fenced);
                            }
                            Entry::Mark(at) => prop_assert_eq!(at, left),
                        }
                        left += 1;
                    },
                }
            }
            let rest = queue.drain().count();
            prop_assert_eq!((left + rest, queue.bytes()), (came, 0));
        }
    }
}
