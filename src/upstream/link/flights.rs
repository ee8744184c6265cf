//! Flights: reads under way whose reply may be kept in L1 and shared.
//!
//! A flight is written as `PTTL k` (for each key that is worth it), then the read; where the upstream tracks only what it is
//! asked to (the module `tracking`), `CLIENT CACHING YES` stands in front of each PTTL. From the reply to the PTTL on, a change of the key makes
//! the fill void; the deadline of the entry is the time before the PTTL was sent, plus its answer. An equal read of
//! another client may join, if nothing that this client has sent stands behind the flight.
//!
//! How it fails: a PTTL that is not answered by a number, a key that changed meanwhile, or an error for a reply mean that
//! the reply is handed on and not kept. A flight that is lost with its connection is kept for one retry.

use super::under_way::NO_FLIGHT;
use super::{Caching, Each, Frame, LinkCore, OpKind, Patience, Retry, What};
use crate::clock::Time;
use crate::l1::{FillKind, Filled, Variant};
use crate::mutation::{Mutation, is_planted};
use crate::port::{Delivery, Failure, Port, Seq};
use crate::upstream::admission::Verdict;
use bytes::Bytes;
use larder_protocol::args::Args;
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::table::CommandId;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A read under way whose reply may be kept and shared.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) request: Bytes,
    pub(super) kind: OpKind,
    pub(super) keys: SmallVec<[FlightKey; 1]>,
    pub(super) waiting: SmallVec<[(Arc<Port>, Seq); 1]>,
    pub(super) position: u64,
    pub(super) patience: Patience,
    pub(super) sent_at: Time,
    /// The flight in front of it in its group's list: see [`super::under_way`].
    pub(super) older: u64,
}

#[derive(Debug)]
pub(super) struct FlightKey {
    /// Where it stands in the request.
    at: Range<u32>,
    pub(super) hash: u64,
    pub(super) deadline: Option<Time>,
    pub(super) exists: bool,
    /// As what it is to be kept; `None` for not at all.
    kind: Option<FillKind>,
    /// What its group counted when its PTTL was answered, and when the flight took off.
    changes_seen: u64,
    orders_seen: u64,
    /// [`crate::l1::Partition::peer_fills`] when the read was sent.
    peer_fills: u64,
}

/// A key that is about to be read: where it stands in the request, its hash, and as what it is to be kept.
struct Wanted {
    at: Range<u32>,
    hash: u64,
    kind: Option<FillKind>,
}

/// What a PTTL begins with.
pub(super) const PTTL: &[u8] = b"*2\r\n$4\r\nPTTL\r\n";

/// Flights whose reply a planted bug keeps only when their clients have been woken.
#[cfg(feature = "mutations")]
#[derive(Debug, Default)]
pub(super) struct Late {
    landed: Vec<(Flight, Bytes)>,
    due: Vec<(Flight, Bytes)>,
}

/// Refreshes that may be under way at once; what is due beyond them is refreshed at a later hit, or misses.
const REFRESHES_MAX: usize = 64;

// === impl Flight ===

impl Flight {
    /// The name of one of its keys.
    pub(super) fn key(&self, k: &FlightKey) -> &[u8] {
        slice_of(&self.request, &k.at)
    }

    /// The hash of its key, if others may share it.
    pub(super) fn shared_hash(&self) -> Option<u64> {
        match self.kind {
            OpKind::Fill { .. } | OpKind::Refresh { .. } => self.keys.first().map(|k| k.hash),
            _ => None,
        }
    }

    fn reads_just(&self, key: &[u8]) -> bool {
        matches!(&self.keys[..], [k] if self.key(k) == key)
    }

    fn refreshes(&self) -> bool {
        self.keys.first().is_some_and(|k| k.kind == Some(FillKind::Refresh))
    }
}

// === impl FlightKey ===

#[cfg(test)]
impl FlightKey {
    /// A key that is all of a request.
    pub(super) fn of_all(request: &[u8], hash: u64, orders_seen: u64) -> Self {
        let (at, kind) = (0..request.len() as u32, Some(FillKind::Miss));
        Self { at, hash, deadline: None, exists: true, kind, changes_seen: 0, orders_seen, peer_fills: 0 }
    }
}

// === impl LinkCore (flights) ===

impl LinkCore {
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one request; a struct would be built to be taken apart"
    )]
    pub(super) fn submit_fill(
        &mut self,
        port: &Arc<Port>,
        seq: Seq,
        kind: OpKind,
        request: Bytes,
        key_at: usize,
        may_join: bool,
        patience: Patience,
        now: Time,
    ) {
        let Some(at) = argument(&request, key_at) else {
            // Not a request as the session makes them: send it on and keep nothing.
            return self.submit_one(port, seq, OpKind::Read, request, patience, now);
        };
        let key = slice_of(&request, &at);
        let hash = self.under_way.hash(key);
        if may_join && self.join(port, seq, hash, &request) {
            return;
        }
        let first_hits = self.filler.partition().first_hits();
        match self.admit(hash, key, first_hits, now) {
            None => {
                self.counts.not_admitted += 1;
                self.send(port, seq, OpKind::Read, request, patience, now);
            }
            kind_of_fill => {
                let key = self.ask(0, kind, &request, Wanted { at, hash, kind: kind_of_fill }, now);
                self.take_off(Some((port, seq)), kind, request, SmallVec::from_buf([key]), patience, now);
            }
        }
    }

    /// Reads a key again before its entry ends; not if it is being read already, nor beyond the bound.
    pub(super) fn submit_refresh(&mut self, kind: OpKind, request: Bytes, key_at: usize, now: Time) {
        let Some(at) = argument(&request, key_at).filter(|_| self.keeps()) else { return };
        let key = slice_of(&request, &at);
        let hash = self.under_way.hash(key);
        if self.refreshing >= REFRESHES_MAX || self.under_way.find(hash, |f| f.reads_just(key)).is_some() {
            return;
        }
        self.refreshing += 1;
        self.counts.refreshes += 1;
        let key = self.ask(0, kind, &request, Wanted { at, hash, kind: Some(FillKind::Refresh) }, now);
        self.take_off(None, kind, request, SmallVec::from_buf([key]), Patience::Waiting, now);
    }

    pub(super) fn submit_fill_each(
        &mut self,
        port: &Arc<Port>,
        seq: Seq,
        kind: OpKind,
        request: Bytes,
        patience: Patience,
        now: Time,
    ) {
        let mut wanted: SmallVec<[Wanted; 1]> = SmallVec::new();
        if let Some(ranges) = self.scan(&request) {
            let first_hits = self.filler.partition().first_hits();
            for range in ranges.iter().skip(1) {
                let at = range.start..range.start + range.len;
                let key = slice_of(&request, &at);
                let hash = self.under_way.hash(key);
                let kind = self.admit(hash, key, first_hits, now);
                wanted.push(Wanted { at, hash, kind });
            }
            self.scanner_gives_back(ranges);
        }
        if wanted.iter().all(|key| key.kind.is_none()) {
            self.counts.not_admitted += 1;
            self.send(port, seq, OpKind::Read, request, patience, now);
            return;
        }
        let keys =
            wanted.into_iter().enumerate().map(|(index, key)| self.ask(index, kind, &request, key, now)).collect();
        self.take_off(Some((port, seq)), kind, request, keys, patience, now);
    }

    /// As what the reply to a miss of this key is to be kept, if it is worth that.
    fn admit(&mut self, hash: u64, key: &[u8], first_hits: u64, now: Time) -> Option<FillKind> {
        let verdict = self.admission.admit(hash, first_hits);
        self.suit_tracking(now);
        match verdict {
            Verdict::FillFirst => Some(FillKind::Marked),
            Verdict::Fill => Some(FillKind::Miss),
            Verdict::Pass => self.filler.is_soft(key).then_some(FillKind::Miss),
        }
    }

    /// Shares the reply of an equal read that is under way, if the client's order allows it.
    fn join(&mut self, port: &Arc<Port>, seq: Seq, hash: u64, request: &Bytes) -> bool {
        let sent_to = port.link_position();
        let in_order = |f: &Flight| f.position >= sent_to || is_planted(Mutation::JoinAnywhere);
        let equal = |f: &Flight| f.patience != Patience::ToldOfTimeout && f.request == *request && in_order(f);
        let Some(flight) = self.under_way.find(hash, equal) else { return false };
        port.set_link_position(flight.position);
        flight.waiting.push((port.clone(), seq));
        self.counts.joined += 1;
        true
    }

    /// Writes what is to be known of a key in front of its read, which is the next to take off: its key number `index`.
    #[inline]
    fn ask(&mut self, index: usize, kind: OpKind, request: &[u8], wanted: Wanted, now: Time) -> FlightKey {
        let Wanted { at, hash, kind: kind_of_fill } = wanted;
        let (mut orders_seen, mut peer_fills) = (0, 0);
        let asked = kind_of_fill.zip(bulk_of(request, &at));
        if let Some((_, bulk)) = asked {
            peer_fills = self.filler.partition().peer_fills(slice_of(request, &at));
            orders_seen = self.under_way.orders(hash);
            self.ask_about(self.under_way.next_number(), index, kind, bulk, now);
        }
        let kind = asked.map(|(kind, _)| kind);
        FlightKey { at, hash, deadline: None, exists: true, kind, changes_seen: 0, orders_seen, peer_fills }
    }

    /// Writes the read itself.
    fn take_off(
        &mut self,
        reader: Option<(&Arc<Port>, Seq)>,
        kind: OpKind,
        request: Bytes,
        keys: SmallVec<[FlightKey; 1]>,
        patience: Patience,
        now: Time,
    ) {
        let starts_at = self.put_shared(&request);
        self.in_flight_bytes += request.len();
        self.expect(What::Flight(self.under_way.next_number()), starts_at, now);
        let position = self.position;
        let mut waiting = SmallVec::new();
        if let Some((port, seq)) = reader {
            port.set_link_position(position);
            waiting.push((port.clone(), seq));
        }
        let older = NO_FLIGHT;
        self.under_way.take_off(Flight { request, kind, keys, waiting, position, patience, sent_at: now, older });
    }

    /// Asks what is to be known of a key in front of its read: when it ends, and how it is encoded if that matters.
    fn ask_about(&mut self, flight: u64, key: usize, kind: OpKind, bulk: &[u8], now: Time) {
        self.opt_in(now);
        let starts_at = self.put_both(PTTL, bulk);
        self.expect(What::Pttl { flight, key }, starts_at, now);
        if let OpKind::Fill { asks_encoding: true, .. } | OpKind::Refresh { asks_encoding: true, .. } = kind {
            let starts_at = self.put_both(b"*3\r\n$6\r\nOBJECT\r\n$8\r\nENCODING\r\n", bulk);
            self.expect(What::Encoding { flight }, starts_at, now);
        }
    }

    /// The reply to a PTTL: from here on a change of the key makes the fill void.
    pub(super) fn pttl(&mut self, flight: u64, key: usize, sent_at: Time, frame: Frame<'_>) {
        let is_tracked = self.take_tracked() || self.caching != Caching::Tracked;
        let pttl = match frame.bytes {
            b":-1\r\n" => Some(Item::Integer(-1)),
            bytes => Cursor::new(bytes).next(),
        };
        let deadline = self.deadline(pttl, sent_at).filter(|_| is_tracked);
        let Some((k, changes)) = self.under_way.key_mut(flight, key) else { return };
        (k.deadline, k.exists, k.changes_seen) = (deadline, pttl != Some(Item::Integer(-2)), changes);
    }

    /// Until when a key may be answered whose PTTL, sent at `sent_at`, was answered so; `None` for not at all.
    fn deadline(&mut self, pttl: Option<Item<'_>>, sent_at: Time) -> Option<Time> {
        let deadline = match pttl? {
            Item::Integer(-1 | -2) => Time::MAX,
            Item::Integer(ms) if ms > 0 => sent_at.saturating_add(Duration::from_millis(ms.unsigned_abs())),
            Item::Error(text) => {
                // Of the command, not of this key: other keys may be read and kept.
                let of_command = text.starts_with(b"NOPERM") && memmem(text, b"'pttl'");
                if of_command && self.caching != Caching::NoPttl {
                    tracing::warn!("the upstream refuses PTTL to this user: nothing is cached for it");
                    self.caching = Caching::NoPttl;
                }
                return None;
            }
            _ => return None,
        };
        match self.caching {
            Caching::Untracked => self.limits.untracked_ttl.map(|ttl| deadline.min(sent_at.saturating_add(ttl))),
            _ => Some(deadline),
        }
    }

    /// The reply to OBJECT ENCODING: only a hash that cannot have field TTLs may be kept, or a key that is not there.
    pub(super) fn encoding(&mut self, flight: u64, frame: Frame<'_>) {
        let keeps = matches!(Cursor::new(frame.bytes).next(), Some(Item::Bulk(b"listpack") | Item::Null));
        if let (false, Some(flight)) = (keeps, self.under_way.get_mut(flight)) {
            flight.keys.iter_mut().for_each(|k| k.deadline = None);
        }
    }

    /// The reply to a read that may be kept: keep it, then hand it on.
    pub(super) fn landed(&mut self, flight: u64, frame: Frame<'_>, now: Time) {
        let Some(mut flight) = self.under_way.land(flight) else { return };
        self.in_flight_bytes -= flight.request.len();
        self.refreshing -= usize::from(flight.refreshes());
        let is_ordered = flight.keys.iter().any(|k| k.kind.is_some() && self.under_way.orders(k.hash) != k.orders_seen);
        let is_error = matches!(frame.bytes.first(), Some(b'-' | b'!') | None);
        let is_kept = !is_error && !is_planted(Mutation::FillFromRequester);
        // What was ordered meanwhile may have been about another key of the group: the next reader refreshes.
        self.tell_of_flight(&flight, is_error || is_ordered);
        if is_ordered {
            // It is answered, and not kept.
            flight.kind = OpKind::Read;
        }
        if is_kept {
            self.keep(&flight, frame, now);
        }
        for (port, seq) in &flight.waiting {
            self.hand_on(port, *seq, frame);
        }
        #[cfg(feature = "mutations")]
        if !is_error && !is_kept {
            self.late.landed.push((flight, Bytes::copy_from_slice(frame.bytes)));
        }
    }

    fn keep(&mut self, flight: &Flight, frame: Frame<'_>, now: Time) {
        match flight.kind {
            OpKind::Fill { command, key_at, .. } | OpKind::Refresh { command, key_at, .. } => {
                self.keep_one(flight, command, usize::from(key_at), frame, now);
            }
            OpKind::FillEach(each) => self.keep_each(flight, each, frame, now),
            _ => {}
        }
    }

    /// The bug [`Mutation::FillFromRequester`]: what landed before the last call is kept now.
    #[cfg(feature = "mutations")]
    pub(super) fn fill_late(&mut self) {
        let landed = std::mem::take(&mut self.late.landed);
        for (flight, reply) in std::mem::replace(&mut self.late.due, landed) {
            self.keep(&flight, Frame { bytes: &reply, shared: None }, flight.sent_at);
        }
    }

    fn keep_one(&mut self, flight: &Flight, command: CommandId, key_at: usize, frame: Frame<'_>, now: Time) {
        let Some(k) = flight.keys.first() else { return };
        if key_at == 1 && flight.request.starts_with(b"*2\r\n") {
            return self.keep_as(flight, k, Variant::bare(command), frame.bytes, now);
        }
        let Some(ranges) = self.scan(&flight.request) else { return };
        let variant = Variant::new(command, Args::new(&flight.request, &ranges), key_at);
        self.keep_as(flight, k, variant, frame.bytes, now);
        self.scanner_gives_back(ranges);
    }

    fn keep_each(&mut self, flight: &Flight, each: Each, frame: Frame<'_>, now: Time) {
        let mut cursor = Cursor::new(frame.bytes);
        let count = match (each, cursor.next()) {
            (Each::Mget { .. }, Some(Item::Aggregate(_, n))) => n,
            (Each::Exists(_), Some(Item::Integer(_))) => flight.keys.len() as u64,
            _ => return,
        };
        if count != flight.keys.len() as u64 {
            return;
        }
        for k in &flight.keys {
            let (command, element): (CommandId, &[u8]) = match each {
                // Which of them exist, the PTTLs have told.
                Each::Exists(exists) => (exists, if k.exists { b":1\r\n" } else { b":0\r\n" }),
                Each::Mget { get, mget } => match cursor.next_frame() {
                    Some(nil) if nil.starts_with(b"_") || nil.starts_with(b"$-1") => (mget, nil),
                    Some(value) => (get, value),
                    None => return,
                },
            };
            self.keep_as(flight, k, Variant::bare(command), element, now);
        }
    }

    /// The deadline of a key that was read, unless it changed since its PTTL was answered, or another user's partition
    /// was filled with it since it was asked for: its clients may have been answered what is newer than this. That a key is
    /// missing which was softly deleted is not kept either: who may have the value of before would find that.
    fn fresh_until(&mut self, k: &FlightKey, key: &[u8]) -> Option<Time> {
        if !k.exists && self.filler.is_missed(key) {
            return None;
        }
        if self.filler.partition().peer_fills(key) != k.peer_fills {
            self.counts.fills_outrun += 1;
            return None;
        }
        let is_blind = is_planted(Mutation::FillOutrun) || is_planted(Mutation::FillFromRequester);
        if self.under_way.changes(k.hash) != k.changes_seen && !is_blind {
            self.counts.fills_outrun += 1;
            return None;
        }
        k.deadline
    }

    /// Keeps what a key was read to hold, if it was to be kept and is still fresh.
    fn keep_as(&mut self, flight: &Flight, k: &FlightKey, variant: Variant<'_>, reply: &[u8], now: Time) {
        let Some(kind) = k.kind else { return };
        let key = flight.key(k);
        let Some(deadline) = self.fresh_until(k, key) else { return };
        match self.filler.fill_as(kind, key, variant, reply, deadline, now) {
            Filled::Stored => self.counts.fills += 1,
            Filled::TooBig => self.big_keys.push(Bytes::copy_from_slice(key)),
            Filled::Dead | Filled::Contradicted => {}
        }
    }

    pub(super) fn lost_flight(
        &mut self,
        flight: u64,
        overtaken: impl Fn(&Arc<Port>) -> bool,
        retries: &mut Vec<Retry>,
    ) {
        let Some(flight) = self.under_way.land(flight) else { return };
        for (port, seq) in flight.waiting {
            if flight.patience == Patience::Retried || overtaken(&port) {
                self.leave(&port, Delivery::Failed(seq, Failure::ReadLost));
                continue;
            }
            let (request, kind, sent_at) = (flight.request.clone(), flight.kind.for_readers(), flight.sent_at);
            retries.push(Retry { port, seq, request, kind, again: Patience::Retried, sent_at });
        }
    }
}

/// Where argument `at` of a request stands, as sessions make them, without looking at those behind it.
pub(super) fn argument(request: &[u8], at: usize) -> Option<Range<u32>> {
    let (mut next, count) = header(request, 0, b'*')?;
    if at >= count {
        return None;
    }
    for _ in 0..at {
        let (start, len) = header(request, next, b'$')?;
        next = start + len + 2;
    }
    let (start, len) = header(request, next, b'$')?;
    (start + len <= request.len()).then_some(start as u32..(start + len) as u32)
}

/// Where the line ends that begins here with a byte and a number, and the number. Nearly all have one digit or two.
#[inline]
fn header(request: &[u8], from: usize, kind: u8) -> Option<(usize, usize)> {
    const END: u64 = u16::from_le_bytes(*b"\r\n") as u64;
    let kind_at_start = u64::from(kind);
    if let Some(bytes) = request.get(from..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*bytes);
        let (units, tens) = (word >> 8 & 0xff, word >> 16 & 0xff);
        let digit = |byte: u64| byte.wrapping_sub(u64::from(b'0'));
        if word & 0xffff_00ff == END << 16 | kind_at_start && digit(units) < 10 {
            return Some((from + 4, digit(units) as usize));
        }
        let (tens, units) = (units, tens);
        if word & 0xff_ff00_00ff == END << 24 | kind_at_start && digit(tens) < 10 && digit(units) < 10 {
            return Some((from + 5, (digit(tens) * 10 + digit(units)) as usize));
        }
    }
    long_header(request.get(from..)?.strip_prefix(&[kind])?).map(|(len, value)| (from + 1 + len + 2, value))
}

/// The digits in front of a line end, and the number that they are.
#[inline(never)]
fn long_header(line: &[u8]) -> Option<(usize, usize)> {
    let len = line.iter().position(|byte| *byte == b'\r').filter(|len| *len > 0)?;
    let add = |value: usize, byte: &u8| {
        let digit = byte.wrapping_sub(b'0');
        if digit < 10 { value.checked_mul(10)?.checked_add(usize::from(digit)) } else { None }
    };
    Some((len, line[..len].iter().try_fold(0, add)?))
}

/// An argument of a request with the line in front of it and the line end behind, as sessions make them.
fn bulk_of<'a>(request: &'a [u8], at: &Range<u32>) -> Option<&'a [u8]> {
    let (start, end) = (at.start as usize, at.end as usize);
    let digits = (end - start).checked_ilog10().unwrap_or(0) as usize + 1;
    let bulk = request.get(start.checked_sub(digits + 3)?..end + 2)?;
    (bulk.first() == Some(&b'$')).then_some(bulk)
}

pub(super) fn slice_of<'a>(request: &'a [u8], at: &Range<u32>) -> &'a [u8] {
    &request[at.start as usize..at.end as usize]
}

fn memmem(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_protocol::args::OwnedArgs;

    #[test]
    fn arguments_of_any_length_are_found_where_they_stand() {
        let lengths = [0, 1, 9, 10, 99, 100, 999, 1000, 70_000];
        for (at, length) in (0..).zip(lengths) {
            for behind in [0, 1, 12, 120] {
                let mut words = vec![vec![b'w'; 3]; at];
                words.push(vec![b'$'; length]);
                words.extend(vec![vec![b'x'; 11]; behind]);
                let request = OwnedArgs::new(&words);
                let request = request.args().bytes();
                let found = argument(request, at).unwrap();
                assert_eq!(slice_of(request, &found), words[at], "{at} of {}", words.len());
                let bulk = [format!("${length}\r\n").as_bytes(), &words[at], b"\r\n"].concat();
                assert_eq!(bulk_of(request, &found), Some(&bulk[..]));
                assert_eq!(argument(request, words.len()), None);
                if length > 0 {
                    assert_eq!(argument(&request[..found.end as usize - 1], at), None, "it is cut off");
                }
            }
        }
        for odd in [
            "",
            "*",
            "*1",
            "*1\r\n",
            "*1\r\n$",
            "*1\r\n$1\r\n",
            "*x\r\n$1\r\nk\r\n",
            "*1\r\n$-1\r\n",
            "*1\r\n:1\r\nk\r\n",
            "*1\r\n$99999999999999999999999\r\nk\r\n",
            "$1\r\n$1\r\nk\r\n",
            "*1\r\n$/\r\nk\r\n        ",
            "*1\r\n$:0\r\nk\r\n        ",
        ] {
            assert_eq!(argument(odd.as_bytes(), 0), None, "{odd:?}");
        }
    }
}
