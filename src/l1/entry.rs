//! One entry of L1: a key, and the replies to the reads of it.
//!
//! ```text
//!   entry:    one allocation: header | time of filling | command | length of the key | key | replies
//!   replies:  usually that to one command without arguments, as it is; a short bulk string without its first line and
//!             last line end, which are written anew on the way out
//!             else (the form is LISTED):  variant | variant | ...
//!   variant:  length of its name, and whether its reply is packed
//!             | length of the reply as it stands, and whether it is the same in both protocols | name | reply
//! ```
//!
//! Most entries are one short reply to GET, and what stands around it is as short as can be: 24 bytes, and 16 for the counter
//! and the length of [`ThinArc`].
//!
//! Invariants:
//! * An entry is never changed but for its count of hits, only replaced: who holds one can tell by its address whether it
//!   is still the one in the store.
//! * No length in it is trusted beyond its end: what does not fit is not found.
//! * Its deadline is never later than the one it was given: what does not fit the six bytes is cut off.

use super::compress;
use super::store::Item;
use crate::clock::Time;
use crate::mutation::{Mutation, is_planted};
use crate::outgoing::SHARED_BYTES_MIN;
use bytes::{Bytes, BytesMut};
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
    /// True if its frame is to be put around it.
    pub(super) is_frameless: bool,
}

/// A reply in RESP3, in the pieces in which it is at hand.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// The first line of a bulk string whose frame is not kept.
    head: Option<&'static [u8; HEAD_BYTES]>,
    body: &'a [u8],
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
pub(super) struct Slot(ThinArc<Front, u8>);

/// What an entry says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) partition: u64,
    pub(super) deadline: Time,
    pub(super) filled_at: Time,
}

/// The same in 16 bytes, but for the time of filling.
#[derive(Debug)]
struct Front {
    /// Hits times [`HIT`], with [`UNTOLD`] if there was one since the upstream was told, and [`MARKED`] until the first.
    hits: AtomicU32,
    partition_low: u32,
    deadline_low: u32,
    /// From the low bits on: eight more of the partition, sixteen more of the deadline, the [form](LISTED), and [`LEFT`].
    /// Nothing but that changes.
    rest: AtomicU32,
}

/// Ids of partitions are smaller than this: 35 years, if a thousand are taken a second.
pub(super) const PARTITIONS_MAX: u64 = 1 << 40;
/// Times in an entry are at most this, in microseconds: nine years after the start. A later deadline is cut off to the one
/// before it, and this one means never.
const TIME_MAX: u64 = (1 << 48) - 1;

/// The form of an entry: its replies are a list of variants.
const LISTED: u8 = 1;
/// The one reply is a bulk string that stands there without its frame.
const FRAMELESS: u8 = 2;
/// The one reply is the same in RESP2 and RESP3.
const SAME: u8 = 4;
/// The other bits of the form are the high ones of the one reply's command.
const COMMAND_SHIFT: u32 = 3;
/// Commands from this one on are listed.
const COMMANDS_MAX: u16 = 1 << 12;
/// In [`Front::rest`], above the form: the entry has left the store.
const LEFT: u32 = 1 << 31;

/// Where the parts of the body stand: six bytes of time, the low byte of the command, the length of the key in one byte or,
/// if that is [`LONG_KEY`], in four more.
const FILLED_AT_BYTES: usize = 6;
const KEY_LENGTH_AT: usize = FILLED_AT_BYTES + 1;
const LONG_KEY: u8 = u8::MAX;
const SHORT_KEY_AT: usize = KEY_LENGTH_AT + 1;
const LONG_KEY_AT: usize = SHORT_KEY_AT + 4;

/// Longest bulk string whose frame is not kept.
const FRAMELESS_BYTES_MAX: usize = 999;
/// The first line of one: a dollar, three digits, a line end; the last of these bytes is its length.
const HEAD_BYTES: usize = 8;
/// They are looked up: that is a third of what writing them costs.
static HEADS: [[u8; HEAD_BYTES]; FRAMELESS_BYTES_MAX + 1] = heads();
const LINE_END: &[u8; 2] = b"\r\n";

const fn heads() -> [[u8; HEAD_BYTES]; FRAMELESS_BYTES_MAX + 1] {
    let mut heads = [[0; HEAD_BYTES]; FRAMELESS_BYTES_MAX + 1];
    let mut length = 0;
    while length <= FRAMELESS_BYTES_MAX {
        let digits = 1 + (length > 9) as usize + (length > 99) as usize;
        let head = &mut heads[length];
        head[0] = b'$';
        let (mut at, mut rest) = (digits, length);
        while at > 0 {
            head[at] = b'0' + (rest % 10) as u8;
            (at, rest) = (at - 1, rest / 10);
        }
        (head[digits + 1], head[digits + 2], head[HEAD_BYTES - 1]) = (b'\r', b'\n', digits as u8 + 3);
        length += 1;
    }
    heads
}

/// What [`super::store`] needs for an entry: a place (24 bytes), its part of the table (six to eleven, as that doubles) and of
/// the names that are remembered (two to three). `examples/footprint.rs` measures the growth of the process.
const STORE_BYTES: u64 = 35;
/// In front of an entry in its allocation: the counter and the length of [`ThinArc`], and the header.
const FRONT_BYTES: u64 = 16 + size_of::<Front>() as u64;
/// The allocator's own bytes for an allocation, and what it rounds up to.
const ALLOCATION_BYTES: u64 = 8;
const ALLOCATION_STEP: u64 = 16;

/// Bytes in front of each variant: length of its name with the top bit for "packed", length of its reply with the top bit for
/// "the same in RESP2 and RESP3".
const VARIANT_HEADER_BYTES: usize = 8;
const PACKED: u32 = 1 << 31;
const SAME_IN_BOTH: u32 = 1 << 31;

/// One hit in [`Slot::hits`], and the mark that the upstream has not been told of one.
pub(super) const HIT: u32 = 8;
pub(super) const UNTOLD: u32 = 1;
/// In [`Slot::hits`]: the first hit is to be counted, see [`super::Partition::first_hits`].
pub(super) const MARKED: u32 = 2;
/// In [`Slot::hits`]: the entry is being refreshed before its deadline, or has been, and that has brought no later one.
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
            Some(reply) => Some(reply.whole()),
            None => compress::unpack(self.entry.bytes_of(&self.stored)).map(Cow::Owned),
        }
    }

    /// The reply, in RESP3, if it is not packed; one that is very short never is.
    #[inline]
    pub fn plain(&self) -> Option<Reply<'_>> {
        (!self.stored.is_packed).then(|| self.entry.reply(&self.stored))
    }

    /// True if the bytes that are kept are few: it is to be copied rather than shared.
    #[inline]
    pub fn is_short(&self) -> bool {
        self.stored.at.len() < SHARED_BYTES_MIN
    }

    /// The reply, in RESP3; one that is large and not packed is not copied. `None` as with [`Hit::reply`].
    pub fn into_bytes(self) -> Option<Bytes> {
        if self.stored.is_packed || self.stored.is_frameless {
            return self.reply().map(|reply| Bytes::from(reply.into_owned()));
        }
        Some(Bytes::from_owner(Owner(self)))
    }

    /// The key whose entry it is from.
    pub fn key(&self) -> &[u8] {
        self.entry.key()
    }

    /// True if its deadline has not passed. `now` is asked for only if there is one.
    pub fn is_alive(&self, now: impl FnOnce() -> Time) -> bool {
        !self.has_deadline() || self.entry.header().deadline > now()
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
        self.0.entry.bytes_of(&self.0.stored)
    }
}

// === impl Reply ===

impl<'a> Reply<'a> {
    fn framed(body: &'a [u8]) -> Self {
        Self { head: None, body }
    }

    /// A bulk string; what is longer than [`FRAMELESS_BYTES_MAX`] has no head.
    #[inline]
    fn of_bulk(body: &'a [u8]) -> Self {
        Self { head: HEADS.get(body.len()), body }
    }

    /// Puts it behind what is there.
    #[inline]
    pub fn put_to(&self, out: &mut BytesMut) {
        let Some(head) = self.head else {
            out.extend_from_slice(self.body);
            return;
        };
        // Copied at full length, which is no call, and cut off.
        out.extend_from_slice(head);
        out.truncate(out.len() - HEAD_BYTES + head_len(head));
        out.extend_from_slice(self.body);
        out.extend_from_slice(LINE_END);
    }

    /// True if it is these bytes.
    pub fn is(&self, reply: &[u8]) -> bool {
        let Some(head) = self.head else { return reply == self.body };
        let rest = reply.strip_prefix(&head[..head_len(head)]);
        rest.and_then(|rest| rest.strip_suffix(LINE_END)) == Some(self.body)
    }

    /// The same in one piece.
    pub fn whole(&self) -> Cow<'a, [u8]> {
        match self.head {
            None => Cow::Borrowed(self.body),
            Some(head) => Cow::Owned([&head[..head_len(head)], self.body, LINE_END].concat()),
        }
    }
}

#[inline]
fn head_len(head: &[u8; HEAD_BYTES]) -> usize {
    usize::from(head[HEAD_BYTES - 1])
}

/// What is in a bulk string that can do without its frame: [`Reply::of_bulk`] makes the same bytes of it.
fn bulk_without_frame(reply: &[u8]) -> Option<&[u8]> {
    let head_len = match reply {
        [b'$', _, b'\r', ..] => 4,
        [b'$', _, _, b'\r', ..] => 5,
        [b'$', _, _, _, b'\r', ..] => 6,
        _ => return None,
    };
    let (first, rest) = reply.split_at_checked(head_len)?;
    let body = rest.strip_suffix(LINE_END)?;
    (first == HEADS.get(body.len())?.get(..head_len)?).then_some(body)
}

// === impl Slot ===

impl Slot {
    /// An entry of what [`encode`] has made. The partition is one below [`PARTITIONS_MAX`].
    pub(super) fn new(header: Header, hits: u32, body: &Body) -> Self {
        let deadline = match header.deadline {
            Time::MAX => TIME_MAX,
            deadline => deadline.as_micros().min(TIME_MAX - 1),
        };
        let front = Front {
            hits: AtomicU32::new(hits),
            partition_low: header.partition as u32,
            deadline_low: deadline as u32,
            rest: AtomicU32::new(
                (header.partition >> 32) as u32 & 0xff | ((deadline >> 32) as u32) << 8 | u32::from(body.form) << 24,
            ),
        };
        Self(ThinArc::from_header_and_slice(front, &body.bytes))
    }

    #[inline]
    fn front(&self) -> &Front {
        &self.0.header.header
    }

    #[inline]
    pub(super) fn header(&self) -> Header {
        let front = self.front();
        let deadline = u64::from(self.rest() >> 8 & 0xffff) << 32 | u64::from(front.deadline_low);
        let mut filled_at = [0; 8];
        if let Some(bytes) = self.0.slice.first_chunk::<FILLED_AT_BYTES>() {
            filled_at[..FILLED_AT_BYTES].copy_from_slice(bytes);
        }
        Header {
            partition: self.partition(),
            deadline: if deadline == TIME_MAX { Time::MAX } else { Time::from_micros(deadline) },
            filled_at: Time::from_micros(u64::from_le_bytes(filled_at)),
        }
    }

    #[inline]
    fn partition(&self) -> u64 {
        u64::from(self.rest() & 0xff) << 32 | u64::from(self.front().partition_low)
    }

    /// Hits and marks.
    #[inline]
    pub(super) fn hits(&self) -> &AtomicU32 {
        &self.front().hits
    }

    #[inline]
    fn form(&self) -> u8 {
        ((self.rest() & !LEFT) >> 24) as u8
    }

    #[inline]
    fn rest(&self) -> u32 {
        self.front().rest.load(Ordering::Relaxed)
    }

    /// True if it is the entry of this key.
    #[inline]
    pub(super) fn is_of(&self, partition: u64, key: &[u8]) -> bool {
        partition == self.partition() && key == self.key()
    }

    /// True if it is the entry of this key in this partition, and in the store.
    #[inline]
    pub(super) fn stands_for(&self, partition: u64, key: &[u8]) -> bool {
        self.front().rest.load(Ordering::Acquire) & LEFT == 0 && self.is_of(partition, key)
    }

    /// Bytes of its allocation, about.
    #[inline]
    pub(super) fn len(&self) -> usize {
        size_of::<Front>() + self.0.slice.len()
    }

    /// Hits so far.
    #[inline]
    pub(super) fn hit_count(&self) -> u32 {
        self.hits().load(Ordering::Relaxed) / HIT
    }

    /// Looks at one byte in each `step` of the first `max`; what comes means nothing.
    #[inline]
    pub(super) fn touch(&self, step: usize, max: usize) -> u8 {
        let header = self.rest() as u8;
        (step / 2..max).step_by(step).filter_map(|at| self.0.slice.get(at)).fold(header, |seen, byte| seen ^ byte)
    }

    /// The reply that [`Slot::variant`] has given, if it is not packed.
    #[inline]
    pub(super) fn reply(&self, stored: &Stored) -> Reply<'_> {
        let bytes = self.bytes_of(stored);
        if stored.is_frameless { Reply::of_bulk(bytes) } else { Reply::framed(bytes) }
    }

    /// The bytes of a reply as they stand there.
    #[inline]
    fn bytes_of(&self, stored: &Stored) -> &[u8] {
        self.0.slice.get(stored.at.start as usize..stored.at.end as usize).unwrap_or_default()
    }

    /// What it takes of the process's memory, with its part of the store.
    #[inline]
    pub(super) fn bytes(&self) -> u64 {
        let asked_for = FRONT_BYTES + (self.0.slice.len() as u64).next_multiple_of(align_of::<usize>() as u64);
        (asked_for + ALLOCATION_BYTES).next_multiple_of(ALLOCATION_STEP) + STORE_BYTES
    }

    /// True for the same entry, not just an equal one.
    pub(super) fn is(&self, other: &Slot) -> bool {
        std::ptr::eq(self.0.slice.as_ptr(), other.0.slice.as_ptr())
    }

    #[inline]
    pub(super) fn has_deadline(&self) -> bool {
        let front = self.front();
        front.deadline_low != u32::MAX || self.rest() >> 8 & 0xffff != 0xffff
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
        let hits = self.hits().load(Ordering::Relaxed);
        if hits & MARKED != 0 {
            first_hits.fetch_add(1, Ordering::Relaxed);
        }
        // It begins anew at the end, so that it goes on to grow: who looks, looks at differences.
        self.hits().store((hits & !MARKED).wrapping_add(HIT) | UNTOLD, Ordering::Relaxed);
    }

    pub(super) fn facts(&self) -> EntryFacts {
        let header = self.header();
        EntryFacts {
            bytes: self.bytes(),
            variants: if self.is_listed() { self.variants().count() } else { 1 },
            hits: self.hits().load(Ordering::Relaxed) / HIT,
            filled_at: header.filled_at,
            deadline: (header.deadline != Time::MAX).then_some(header.deadline),
        }
    }

    pub(super) fn is_dead(&self, now: Time) -> bool {
        self.header().deadline <= now
    }

    #[inline]
    pub(super) fn key(&self) -> &[u8] {
        self.0.slice.get(self.key_range()).unwrap_or_default()
    }

    #[inline]
    fn key_range(&self) -> Range<usize> {
        match self.0.slice.get(KEY_LENGTH_AT) {
            Some(length) if *length != LONG_KEY => SHORT_KEY_AT..SHORT_KEY_AT + usize::from(*length),
            _ => LONG_KEY_AT..LONG_KEY_AT + self.number(SHORT_KEY_AT).unwrap_or_default() as usize,
        }
    }

    #[inline]
    fn is_listed(&self) -> bool {
        self.form() & LISTED != 0
    }

    /// The command whose reply this is, if it is but one.
    #[inline]
    fn command(&self) -> CommandId {
        let low = self.0.slice.get(FILLED_AT_BYTES).copied().unwrap_or_default();
        CommandId(u16::from(self.form() >> COMMAND_SHIFT) << 8 | u16::from(low))
    }

    /// The reply, if it is but one.
    #[inline]
    fn only(&self) -> Stored {
        let at = self.key_range().end as u32..self.0.slice.len() as u32;
        let form = self.form();
        Stored { at, same_in_both: form & SAME != 0, is_packed: false, is_frameless: form & FRAMELESS != 0 }
    }

    /// The name of each listed variant as a range of the slice, and its reply.
    fn variants(&self) -> impl Iterator<Item = (Range<usize>, Stored)> + '_ {
        let mut at = self.key_range().end;
        std::iter::from_fn(move || {
            let (name_len, reply_len) = (self.number(at)?, self.number(at + 4)?);
            let name = at + VARIANT_HEADER_BYTES..at + VARIANT_HEADER_BYTES + (name_len & !PACKED) as usize;
            at = name.end + (reply_len & !SAME_IN_BOTH) as usize;
            let stored = Stored {
                at: name.end as u32..at as u32,
                same_in_both: reply_len & SAME_IN_BOTH != 0,
                is_packed: name_len & PACKED != 0,
                is_frameless: false,
            };
            (at <= self.0.slice.len()).then_some((name, stored))
        })
    }

    #[inline]
    pub(super) fn variant(&self, wanted: Variant<'_>) -> Option<Stored> {
        if !self.is_listed() {
            return (self.command() == wanted.command && wanted.is_bare()).then(|| self.only());
        }
        self.variants().find(|(name, _)| wanted.matches(&self.0.slice[name.clone()])).map(|(_, stored)| stored)
    }

    /// The reply to a read that has found this entry by a key of this length, if it can leave as it is: the only one, bare, short,
    /// the same in both protocols if it must be, and without a deadline. Nearly all hits are this, so it is one look at each
    /// word of the header.
    #[inline]
    pub(super) fn ready(&self, wanted: Variant<'_>, key_len: usize, same_only: bool) -> Option<Reply<'_>> {
        let (form, slice) = (self.form(), &self.0.slice);
        let is_wanted = u32::from(form & !(FRAMELESS | SAME)) == u32::from(wanted.command.0 >> 8) << COMMAND_SHIFT
            && slice.get(FILLED_AT_BYTES) == Some(&(wanted.command.0 as u8))
            && wanted.is_bare();
        if !is_wanted || (same_only && form & SAME == 0) || self.has_deadline() {
            return None;
        }
        let key_at = if key_len < usize::from(LONG_KEY) { SHORT_KEY_AT } else { LONG_KEY_AT };
        let body = slice.get(key_at + key_len..).filter(|body| body.len() < SHARED_BYTES_MIN)?;
        Some(if form & FRAMELESS != 0 { Reply::of_bulk(body) } else { Reply::framed(body) })
    }

    /// The variants other than `but`, as they are listed; none if there are `max` or more.
    pub(super) fn other_variants(&self, but: Variant<'_>, max: usize) -> Vec<u8> {
        if !self.is_listed() {
            let own = Variant::bare(self.command());
            let is_other = self.command() != but.command || !but.is_bare();
            let mut listed = Vec::new();
            if is_other && max > 1 {
                list(&mut listed, own, &self.reply(&self.only()).whole(), None);
            }
            return listed;
        }
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

impl Item for Slot {
    #[inline]
    fn bytes(&self) -> u64 {
        self.bytes()
    }

    #[inline]
    fn hits(&self) -> u16 {
        self.hit_count() as u16
    }

    fn leave(&self) {
        if !is_planted(Mutation::LeftUnmarked) {
            self.front().rest.fetch_or(LEFT, Ordering::Release);
        }
    }
}

/// The body of an entry, and the form that it has.
#[derive(Debug)]
pub(super) struct Body {
    form: u8,
    bytes: Vec<u8>,
}

impl Body {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The buffer that it stands in, for the next one; nothing of it if it is large.
    pub(super) fn into_buffer(mut self) -> Vec<u8> {
        self.bytes.clear();
        if self.bytes.capacity() > BUFFER_KEPT_BYTES_MAX { Vec::new() } else { self.bytes }
    }
}

/// A buffer larger than this is given back.
const BUFFER_KEPT_BYTES_MAX: usize = 16 * 1024;

/// The body of an entry: a key, variants that are listed already, and one more, whose reply stands there packed if it is given
/// so. `bytes` is an empty buffer for it.
pub(super) fn encode(
    mut bytes: Vec<u8>,
    (key, filled_at): (&[u8], Time),
    others: &[u8],
    variant: Variant<'_>,
    reply: &[u8],
    packed: Option<&[u8]>,
) -> Body {
    let stored_len = packed.map_or(reply.len(), <[u8]>::len);
    bytes.reserve(LONG_KEY_AT + key.len() + others.len() + VARIANT_HEADER_BYTES + variant.name_len() + stored_len);
    let command = variant.command.0;
    let mut head = filled_at.as_micros().min(TIME_MAX).to_le_bytes();
    head[FILLED_AT_BYTES] = command as u8;
    head[KEY_LENGTH_AT] = u8::try_from(key.len()).unwrap_or(LONG_KEY);
    bytes.extend_from_slice(&head);
    if head[KEY_LENGTH_AT] == LONG_KEY {
        bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
    }
    bytes.extend_from_slice(key);
    if !others.is_empty() || packed.is_some() || !variant.is_bare() || command >= COMMANDS_MAX {
        bytes.extend_from_slice(others);
        list(&mut bytes, variant, reply, packed);
        return Body { form: LISTED, bytes };
    }
    let body = bulk_without_frame(reply);
    bytes.extend_from_slice(body.unwrap_or(reply));
    let form = match body {
        Some(_) => FRAMELESS | SAME,
        None if shape::same_in_both(reply) => SAME,
        None => 0,
    };
    Body { form: form | ((command >> 8) as u8) << COMMAND_SHIFT, bytes }
}

/// Puts a variant behind others.
fn list(bytes: &mut Vec<u8>, variant: Variant<'_>, reply: &[u8], packed: Option<&[u8]>) {
    let stored = packed.unwrap_or(reply);
    let is_packed = if packed.is_some() { PACKED } else { 0 };
    let same = if shape::same_in_both(reply) { SAME_IN_BOTH } else { 0 };
    bytes.extend_from_slice(&(variant.name_len() as u32 & !PACKED | is_packed).to_le_bytes());
    bytes.extend_from_slice(&(stored.len() as u32 & !SAME_IN_BOTH | same).to_le_bytes());
    variant.write_name(bytes);
    bytes.extend_from_slice(stored);
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_protocol::args::OwnedArgs;
    use larder_protocol::table::Table;
    use proptest::prelude::*;

    fn header(partition: u64, deadline: Time, filled_at: Time) -> Header {
        Header { partition, deadline, filled_at }
    }

    fn get() -> Variant<'static> {
        Variant::bare(Table::builtin().lookup(b"get").unwrap().id)
    }

    fn reply_of(slot: &Slot, variant: Variant<'_>) -> Option<Vec<u8>> {
        slot.variant(variant).map(|stored| slot.reply(&stored).whole().into_owned())
    }

    #[test]
    fn the_usual_entry_takes_a_hundred_and_twenty_eight_bytes_of_the_allocator() {
        let reply = [&b"$64\r\n"[..], &[b'x'; 64], b"\r\n"].concat();
        let body = encode(Vec::new(), (&[b'k'; 16], Time::ZERO), &[], get(), &reply, None);
        let slot = Slot::new(header(1, Time::MAX, Time::ZERO), 0, &body);
        assert_eq!(slot.bytes(), 128 + STORE_BYTES);
        assert_eq!(size_of::<Option<Slot>>(), 8);
    }

    #[test]
    fn every_short_bulk_string_gets_its_frame_back_and_nothing_else_loses_it() {
        for length in 0..2 * FRAMELESS_BYTES_MAX {
            let body = vec![b'x'; length];
            let reply = [format!("${length}\r\n").as_bytes(), &body, b"\r\n"].concat();
            assert_eq!(bulk_without_frame(&reply).is_some(), length <= FRAMELESS_BYTES_MAX, "{length}");
            if length <= FRAMELESS_BYTES_MAX {
                let made = Reply::of_bulk(&body);
                let mut out = BytesMut::from(&b"before"[..]);
                made.put_to(&mut out);
                assert_eq!(out, [b"before", &reply[..]].concat());
                assert!(made.is(&reply) && made.whole() == reply);
                assert!(!made.is(&reply[1..]) && !made.is(&body) && !made.is(b""));
            }
        }
        for odd in [
            "$01\r\nx\r\n",
            "$2\r\nx\r\n",
            "$0\r\nx\r\n",
            "$1\r\nx\r\r",
            "$-1\r\n",
            "+OK\r\n",
            "_\r\n",
            "$",
            "$1\n\r",
            "",
            "$1\nx\r\n",
        ] {
            assert_eq!(bulk_without_frame(odd.as_bytes()), None, "{odd:?}");
        }
    }

    #[test]
    fn a_deadline_that_does_not_fit_is_sooner_and_never_none() {
        let body = encode(Vec::new(), (b"k", Time::MAX), &[], get(), b"_\r\n", None);
        let held = |deadline| Slot::new(header(PARTITIONS_MAX - 1, deadline, Time::ZERO), 0, &body);
        for micros in [TIME_MAX - 1, TIME_MAX, TIME_MAX + 1, u64::MAX - 1] {
            let slot = held(Time::from_micros(micros));
            assert!(slot.has_deadline() && slot.header().deadline == Time::from_micros(TIME_MAX - 1), "{micros}");
        }
        assert!(!held(Time::MAX).has_deadline() && held(Time::MAX).header().deadline == Time::MAX);
        assert_eq!(held(Time::MAX).header().filled_at, Time::from_micros(TIME_MAX));
        assert!(held(Time::from_micros(u64::from(u32::MAX))).has_deadline());
        assert_eq!(held(Time::MAX).header().partition, PARTITIONS_MAX - 1);
    }

    fn replies() -> impl Strategy<Value = Vec<u8>> {
        let bulk = prop::collection::vec(any::<u8>(), 0..300)
            .prop_map(|body| [format!("${}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat());
        let others = prop::sample::select(vec![
            "_\r\n",
            ":1\r\n",
            "+OK\r\n",
            "*1\r\n_\r\n",
            "%0\r\n",
            "$-1\r\n",
            "=5\r\ntxt:x\r\n",
        ]);
        prop_oneof![bulk, others.prop_map(|reply| reply.as_bytes().to_vec())]
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            key in prop_oneof![0..40_usize, 250..260_usize, 600..601_usize].prop_flat_map(|n| prop::collection::vec(any::<u8>(), n)),
            (partition, deadline, filled_at) in (0..PARTITIONS_MAX, 0..TIME_MAX, 0..TIME_MAX),
            (first, second) in (replies(), replies()),
            command in prop_oneof![0..300_u16, any::<u16>()],
        ) {
            let (deadline, filled_at) = (Time::from_micros(deadline), Time::from_micros(filled_at));
            let (bare, range) = (Variant::bare(CommandId(command)), OwnedArgs::new(["GETRANGE", "k", "0", "1"]));
            let range = Variant::new(CommandId(command), range.args(), 1);
            let body = encode(Vec::new(), (&key, filled_at), &[], bare, &first, None);
            let one = Slot::new(header(partition, deadline, filled_at), HIT, &body);
            prop_assert_eq!(one.key(), &key[..]);
            prop_assert!(one.is_of(partition, &key) && !one.is_of(partition ^ 1, &key) && !one.is_of(partition ^ 1 << 39, &key));
            let told = one.header();
            prop_assert_eq!((told.partition, told.deadline, told.filled_at), (partition, deadline, filled_at));
            prop_assert_eq!(reply_of(&one, bare), Some(first.clone()));
            prop_assert_eq!(one.variant(bare).unwrap().same_in_both, shape::same_in_both(&first));
            prop_assert_eq!(reply_of(&one, range), None);
            let never = Slot::new(header(partition, Time::MAX, filled_at), HIT, &body);
            let ready = |variant, same_only| never.ready(variant, key.len(), same_only).map(|reply| reply.whole().into_owned());
            let is_only = command < COMMANDS_MAX;
            prop_assert_eq!(ready(bare, false), is_only.then(|| first.clone()));
            prop_assert_eq!(ready(bare, true), (is_only && shape::same_in_both(&first)).then(|| first.clone()));
            prop_assert!(ready(range, false).is_none() && ready(Variant::bare(CommandId(command ^ 0x2000)), false).is_none());
            prop_assert!(one.ready(bare, key.len(), false).is_none(), "it has a deadline");
            prop_assert_eq!(reply_of(&one, Variant::bare(CommandId(command ^ 0x100))), None);
            prop_assert_eq!((one.facts().variants, one.facts().hits), (1, 1));
            // Beside another variant it is the same.
            prop_assert!(one.other_variants(bare, 9).is_empty() && one.other_variants(range, 1).is_empty());
            let body = encode(Vec::new(), (&key, filled_at), &one.other_variants(range, 2), range, &second, None);
            let two = Slot::new(header(partition, deadline, filled_at), 0, &body);
            prop_assert_eq!(two.key(), &key[..]);
            prop_assert_eq!((reply_of(&two, bare), reply_of(&two, range)), (Some(first), Some(second.clone())));
            prop_assert_eq!(two.facts().variants, 2);
            let body = encode(Vec::new(), (&key, filled_at), &two.other_variants(bare, 9), bare, &second, None);
            let again = Slot::new(header(partition, deadline, filled_at), 0, &body);
            prop_assert_eq!((reply_of(&again, bare), reply_of(&again, range)), (Some(second.clone()), Some(second)));
        }
    }
}
