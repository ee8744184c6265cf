//! One entry of L1: a key, and the replies to the reads of it.
//!
//! ```text
//!   entry:    one allocation: header | key | variant | variant | ...
//!   variant:  length of its name, and whether its reply is packed
//!             | length of the reply as it stands, and whether it is the same in both protocols | name | reply
//! ```
//!
//! Invariants:
//! * An entry is never changed but for its count of hits, only replaced: who holds one can tell by its address whether it
//!   is still the one in the store.
//! * No length in it is trusted beyond its end: what does not fit is not found.

use super::compress;
use crate::clock::Time;
use crate::mutation::{Mutation, is_planted};
use bytes::Bytes;
use larder_protocol::args::Args;
use larder_protocol::shape;
use larder_protocol::table::CommandId;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use triomphe::ThinArc;

/// A read without its key: what tells the variants of a key apart.
#[derive(Clone, Copy, Debug)]
pub struct Variant<'a> {
    command: CommandId,
    args: Args<'a>,
    key_at: usize,
}

/// An answer found in L1. It keeps its bytes alive, and remembers which entry they came from.
#[derive(Clone, Debug)]
pub struct Hit {
    pub(super) entry: Slot,
    pub(super) stored: Stored,
    pub(super) found: Found,
}

/// Where a reply stands in an entry, and how.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) at: Range<u32>,
    /// True if it is the same in RESP2.
    pub(super) same_in_both: bool,
    /// True if it is to be unpacked.
    pub(super) is_packed: bool,
}

/// Where the entry of a hit stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// In the partition, or among what it left behind.
    There,
    /// Among what was softly invalidated.
    Softly,
}

/// Facts about an entry, for inspection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryFacts {
    /// Bytes that the entry counts for.
    pub bytes: u64,
    /// Number of variants held.
    pub variants: usize,
    /// Hits since the entry was made, approximately (concurrent hits may be counted once).
    pub hits: u32,
    /// When the entry was made.
    pub filled_at: Time,
    /// When it stops being answered; `None` for never.
    pub deadline: Option<Time>,
}

/// One entry, shared by the store and by hits on their way out.
#[derive(Clone, Debug)]
pub(super) struct Slot(ThinArc<Header, u8>);

#[derive(Debug)]
pub(super) struct Header {
    pub(super) partition: u64,
    pub(super) deadline: Time,
    pub(super) filled_at: Time,
    /// Length of the key; with [`LEFT`] once the entry has left the store.
    pub(super) key_len: AtomicU32,
    /// Hits times [`HIT`], with [`UNTOLD`] if there was one since the upstream was told, and [`MARKED`] until the first.
    pub(super) hits: AtomicU32,
}

/// What the cache crate and the allocator need for an entry beside its own bytes, measured by `examples/footprint.rs` as
/// growth of the process: a slot of the slab (32) and of the table (11), the counter and length in front of the header
/// (16), the allocation's own header and its rounding up (15).
const ENTRY_OVERHEAD_BYTES: u64 = 74;

/// Bytes in front of each variant: length of its name with the top bit for "packed", length of its reply with the top bit for
/// "the same in RESP2 and RESP3".
const VARIANT_HEADER_BYTES: usize = 8;
const PACKED: u32 = 1 << 31;
const SAME_IN_BOTH: u32 = 1 << 31;

/// In [`Header::key_len`]: no key is so long.
const LEFT: u32 = 1 << 31;

/// One hit in [`Header::hits`], and the mark that the upstream has not been told of one.
pub(super) const HIT: u32 = 8;
pub(super) const UNTOLD: u32 = 1;
/// In [`Header::hits`]: the first hit is to be counted, see [`super::Partition::first_hits`].
pub(super) const MARKED: u32 = 2;
/// In [`Header::hits`]: the entry is being refreshed before its deadline, or has been, and that has brought no later one.
pub(super) const REFRESHED: u32 = 4;

// === impl Variant ===

impl<'a> Variant<'a> {
    /// The variant that `command` with `args` reads, the key being argument `key_at`. `None` stands for a command whose
    /// replies are stored key by key: there are no other arguments.
    pub fn new(command: CommandId, args: Args<'a>, key_at: usize) -> Self {
        Self { command, args, key_at }
    }

    /// The variant of a command without further arguments.
    pub fn bare(command: CommandId) -> Self {
        Self { command, args: Args::new(&[], &[]), key_at: 0 }
    }

    /// True if there are no arguments beside the key.
    #[inline]
    fn is_bare(&self) -> bool {
        match self.key_at {
            0 => self.args.is_empty(),
            1 => self.args.len() <= 2,
            _ => false,
        }
    }

    fn arguments(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let key_at = self.key_at;
        self.args.iter().enumerate().skip(1).filter(move |(i, _)| *i != key_at).map(|(_, a)| a)
    }

    fn name_len(&self) -> usize {
        2 + self.arguments().map(|a| 4 + a.len()).sum::<usize>()
    }

    fn matches(&self, name: &[u8]) -> bool {
        let Some(mut rest) = name.strip_prefix(&self.command.0.to_le_bytes()) else { return false };
        for argument in self.arguments() {
            let Some(tail) = rest.strip_prefix(&(argument.len() as u32).to_le_bytes()) else { return false };
            let Some(tail) = tail.strip_prefix(argument) else { return false };
            rest = tail;
        }
        rest.is_empty()
    }

    fn write_name(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.command.0.to_le_bytes());
        for argument in self.arguments() {
            out.extend_from_slice(&(argument.len() as u32).to_le_bytes());
            out.extend_from_slice(argument);
        }
    }
}

// === impl Hit ===

impl Hit {
    /// What an entry holds for a read.
    #[inline]
    pub(super) fn of(entry: Slot, variant: Variant<'_>, found: Found) -> Option<Self> {
        let stored = entry.variant(variant)?;
        Some(Self { entry, stored, found })
    }

    /// The reply, in RESP3; unpacked, if need be. `None` means that it cannot be, and is to be taken for a miss: nothing but
    /// a fault of the memory brings that about.
    pub fn reply(&self) -> Option<Cow<'_, [u8]>> {
        match self.plain() {
            Some(reply) => Some(Cow::Borrowed(reply)),
            None => compress::unpack(self.entry.reply(&self.stored.at)).map(Cow::Owned),
        }
    }

    /// The reply, in RESP3, if it is not packed; one that is very short never is.
    #[inline]
    pub fn plain(&self) -> Option<&[u8]> {
        (!self.stored.is_packed).then(|| self.entry.reply(&self.stored.at))
    }

    /// The reply, in RESP3, without copying it unless it is packed. `None` as with [`Hit::reply`].
    pub fn into_bytes(self) -> Option<Bytes> {
        if self.stored.is_packed {
            return compress::unpack(self.entry.reply(&self.stored.at)).map(Bytes::from);
        }
        Some(Bytes::from_owner(Owner(self)))
    }

    /// The key whose entry it is from.
    pub fn key(&self) -> &[u8] {
        self.entry.key()
    }

    /// True if its deadline has not passed. `now` is asked for only if there is one.
    pub fn is_alive(&self, now: impl FnOnce() -> Time) -> bool {
        let deadline = self.entry.header().deadline;
        deadline == Time::MAX || deadline > now()
    }

    /// True if its entry stops being answered at some time.
    pub fn has_deadline(&self) -> bool {
        self.entry.has_deadline()
    }

    /// True if it is stale: its key was softly invalidated before it was looked for.
    pub fn is_soft(&self) -> bool {
        self.found == Found::Softly
    }

    /// True if the reply is the same bytes in RESP2.
    pub fn same_in_both(&self) -> bool {
        self.stored.same_in_both
    }
}

/// A hit that is not packed, as the owner of its bytes.
struct Owner(Hit);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.entry.reply(&self.0.stored.at)
    }
}

// === impl Slot ===

impl Slot {
    /// An entry of what [`encode`] has made.
    pub(super) fn new(header: Header, body: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice(header, body))
    }

    #[inline]
    pub(super) fn header(&self) -> &Header {
        &self.0.header.header
    }

    /// The bytes of a range that [`Slot::variant`] has given.
    #[inline]
    pub(super) fn reply(&self, range: &Range<u32>) -> &[u8] {
        &self.0.slice[range.start as usize..range.end as usize]
    }

    /// Length of the key.
    #[inline]
    fn key_len(&self) -> u32 {
        self.header().key_len.load(Ordering::Relaxed) & !LEFT
    }

    /// The entry leaves the store. To be called behind that, and before anybody is told why.
    pub(super) fn leave(&self) {
        if !is_planted(Mutation::LeftUnmarked) {
            self.header().key_len.fetch_or(LEFT, Ordering::Release);
        }
    }

    /// True if it is the entry of this key in this partition, and in the store.
    #[inline]
    pub(super) fn stands_for(&self, partition: u64, key: &[u8]) -> bool {
        let header = self.header();
        // With the mark it is the length of no key.
        header.key_len.load(Ordering::Acquire) as usize == key.len()
            && header.partition == partition
            && self.0.slice.starts_with(key)
    }

    /// Bytes of its allocation, about.
    #[inline]
    pub(super) fn len(&self) -> usize {
        size_of::<Header>() + self.0.slice.len()
    }

    /// Hits so far.
    #[inline]
    pub(super) fn hits(&self) -> u32 {
        self.header().hits.load(Ordering::Relaxed) / HIT
    }

    /// Looks at one byte in each `step` of the first `max`; what comes means nothing.
    #[inline]
    pub(super) fn touch(&self, step: usize, max: usize) -> u8 {
        let header = self.header().key_len.load(Ordering::Relaxed) as u8;
        (step / 2..max).step_by(step).filter_map(|at| self.0.slice.get(at)).fold(header, |seen, byte| seen ^ byte)
    }

    /// Bytes that it counts for.
    pub(super) fn bytes(&self) -> u64 {
        (size_of::<Header>() + self.0.slice.len()) as u64 + ENTRY_OVERHEAD_BYTES
    }

    /// True for the same entry, not just an equal one.
    pub(super) fn is(&self, other: &Slot) -> bool {
        std::ptr::eq(self.0.slice.as_ptr(), other.0.slice.as_ptr())
    }

    #[inline]
    pub(super) fn has_deadline(&self) -> bool {
        self.header().deadline != Time::MAX
    }

    /// Counts a hit, unless the entry's deadline has passed. The clock is read only if there is one.
    #[inline]
    pub(super) fn is_hit(&self, now: impl FnOnce() -> Time, first_hits: &AtomicU64) -> bool {
        if self.has_deadline() && now() >= self.header().deadline && !is_planted(Mutation::DeadlineIgnored) {
            return false;
        }
        self.count_hit(first_hits);
        true
    }

    #[inline]
    pub(super) fn count_hit(&self, first_hits: &AtomicU64) {
        let header = self.header();
        let hits = header.hits.load(Ordering::Relaxed);
        if hits & MARKED != 0 {
            first_hits.fetch_add(1, Ordering::Relaxed);
        }
        header.hits.store((hits & !MARKED).checked_add(HIT).unwrap_or(hits) | UNTOLD, Ordering::Relaxed);
    }

    pub(super) fn facts(&self) -> EntryFacts {
        let header = self.header();
        EntryFacts {
            bytes: self.bytes(),
            variants: self.variants().count(),
            hits: header.hits.load(Ordering::Relaxed) / HIT,
            filled_at: header.filled_at,
            deadline: (header.deadline != Time::MAX).then_some(header.deadline),
        }
    }

    pub(super) fn is_dead(&self, now: Time) -> bool {
        self.header().deadline <= now
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.0.slice[..self.key_len() as usize]
    }

    /// The name of each variant as a range of the slice, and its reply.
    pub(super) fn variants(&self) -> impl Iterator<Item = (Range<usize>, Stored)> + '_ {
        let mut at = self.key_len() as usize;
        std::iter::from_fn(move || {
            let (name_len, reply_len) = (self.number(at)?, self.number(at + 4)?);
            let name = at + VARIANT_HEADER_BYTES..at + VARIANT_HEADER_BYTES + (name_len & !PACKED) as usize;
            at = name.end + (reply_len & !SAME_IN_BOTH) as usize;
            let stored = Stored {
                at: name.end as u32..at as u32,
                same_in_both: reply_len & SAME_IN_BOTH != 0,
                is_packed: name_len & PACKED != 0,
            };
            Some((name, stored))
        })
    }

    #[inline]
    pub(super) fn variant(&self, wanted: Variant<'_>) -> Option<Stored> {
        if wanted.is_bare()
            && let Some(first) = self.first_bare(wanted.command)
        {
            return Some(first);
        }
        self.variants().find(|(name, _)| wanted.matches(&self.0.slice[name.clone()])).map(|(_, stored)| stored)
    }

    /// The first variant, if it is this command without arguments, not packed: most entries have no other.
    #[inline]
    fn first_bare(&self, command: CommandId) -> Option<Stored> {
        let key_len = self.key_len();
        let [l0, l1, l2, l3, c0, c1, c2, c3, n0, n1] = *self.0.slice.get(key_len as usize..)?.first_chunk()?;
        let (name_len, coded) = (u32::from_le_bytes([l0, l1, l2, l3]), u32::from_le_bytes([c0, c1, c2, c3]));
        if name_len != 2 || u16::from_le_bytes([n0, n1]) != command.0 {
            return None;
        }
        let start = key_len + VARIANT_HEADER_BYTES as u32 + 2;
        let at = start..start + (coded & !SAME_IN_BOTH);
        Some(Stored { at, same_in_both: coded & SAME_IN_BOTH != 0, is_packed: false })
    }

    /// The encoded variants other than `but`, none if there are `max` or more.
    pub(super) fn other_variants(&self, but: Variant<'_>, max: usize) -> Vec<u8> {
        let others = self.variants().filter(|(name, _)| !but.matches(&self.0.slice[name.clone()]));
        let ranges: Vec<Range<usize>> =
            others.map(|(name, stored)| name.start - VARIANT_HEADER_BYTES..stored.at.end as usize).collect();
        if ranges.len() >= max {
            return Vec::new();
        }
        ranges.into_iter().flat_map(|r| &self.0.slice[r]).copied().collect()
    }

    fn number(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.0.slice.get(at..at + 4)?.try_into().ok()?))
    }
}

/// The body of an entry: a key, variants that are encoded already, and one more, whose reply stands there packed if it is given so.
pub(super) fn encode(key: &[u8], others: &[u8], variant: Variant<'_>, reply: &[u8], packed: Option<&[u8]>) -> Vec<u8> {
    let name_len = variant.name_len();
    let stored = packed.unwrap_or(reply);
    let mut body = Vec::with_capacity(key.len() + others.len() + VARIANT_HEADER_BYTES + name_len + stored.len());
    let is_packed = if packed.is_some() { PACKED } else { 0 };
    let same = if shape::same_in_both(reply) { SAME_IN_BOTH } else { 0 };
    body.extend_from_slice(key);
    body.extend_from_slice(others);
    body.extend_from_slice(&(name_len as u32 & !PACKED | is_packed).to_le_bytes());
    body.extend_from_slice(&(stored.len() as u32 & !SAME_IN_BOTH | same).to_le_bytes());
    variant.write_name(&mut body);
    body.extend_from_slice(stored);
    body
}
