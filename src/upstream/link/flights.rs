//! Flights: reads under way whose reply may be kept in L1 and shared.
//!
//! A flight is written as `PTTL k` (for each key that is worth it), then the read; where the upstream tracks only what it is
//! asked to (the module `tracking`), `CLIENT CACHING YES` stands in front of each PTTL. From the reply to the PTTL on, a change of the key makes
//! the fill void; the deadline of the entry is the time before the PTTL was sent, plus its answer. An equal read of
//! another client may join, if nothing that this client has sent stands behind the flight.
//!
//! How it fails: a PTTL that is not answered by a number, a key that changed meanwhile, or an error for a reply mean that
//! the reply is handed on and not kept. A flight that is lost with its connection is kept for one retry.

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
}

#[derive(Debug)]
pub(super) struct FlightKey {
    /// Where it stands in the request, and where its state is kept; `None` if it is not worth keeping.
    at: Range<u32>,
    place: Option<usize>,
    pub(super) deadline: Option<Time>,
    pub(super) exists: bool,
    changes_seen: u64,
    /// As what it is to be kept; `None` for not at all.
    kind: Option<FillKind>,
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
pub(super) const PTTL: &[u8] = b"*2\r\n$4\r\nPTTL\r\n$";

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

    fn refreshes(&self) -> bool {
        self.keys.first().is_some_and(|k| k.kind == Some(FillKind::Refresh))
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
        let hash = self.keys.hash(key);
        if may_join && self.join(port, seq, hash, key, &request) {
            return;
        }
        let first_hits = self.filler.partition().first_hits();
        match self.admit(hash, key, first_hits, now) {
            None => {
                self.counts.not_admitted += 1;
                self.send(port, seq, OpKind::Read, request, patience, now);
            }
            kind_of_fill => {
                let wanted = Wanted { at, hash, kind: kind_of_fill };
                self.take_off(Some((port, seq)), kind, request, [wanted], patience, now);
            }
        }
    }

    /// Reads a key again before its entry ends; not if it is being read already, nor beyond the bound.
    pub(super) fn submit_refresh(&mut self, kind: OpKind, request: Bytes, key_at: usize, now: Time) {
        let Some(at) = argument(&request, key_at).filter(|_| self.keeps()) else { return };
        let key = slice_of(&request, &at);
        let hash = self.keys.hash(key);
        if self.refreshing >= REFRESHES_MAX || self.keys.find(hash, key).is_some() {
            return;
        }
        self.refreshing += 1;
        self.counts.refreshes += 1;
        let wanted = Wanted { at, hash, kind: Some(FillKind::Refresh) };
        self.take_off(None, kind, request, [wanted], Patience::Waiting, now);
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
                let hash = self.keys.hash(key);
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
        self.take_off(Some((port, seq)), kind, request, wanted, patience, now);
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
    fn join(&mut self, port: &Arc<Port>, seq: Seq, hash: u64, key: &[u8], request: &Bytes) -> bool {
        let Some(state) = self.keys.find(hash, key) else { return false };
        let sent_to = port.link_position();
        let in_order = |f: &Flight| f.position >= sent_to || is_planted(Mutation::JoinAnywhere);
        let equal = |f: &&Flight| f.patience != Patience::ToldOfTimeout && f.request == *request && in_order(f);
        let found = state.flights.iter().copied().find(|&i| self.flights.get(i).as_ref().is_some_and(equal));
        let Some(flight) = found.and_then(|i| self.flights.get_mut(i)) else { return false };
        port.set_link_position(flight.position);
        flight.waiting.push((port.clone(), seq));
        self.counts.joined += 1;
        true
    }

    fn take_off(
        &mut self,
        reader: Option<(&Arc<Port>, Seq)>,
        kind: OpKind,
        request: Bytes,
        wanted: impl IntoIterator<Item = Wanted>,
        patience: Patience,
        now: Time,
    ) {
        let number = self.flights.vacant_key();
        let mut keys: SmallVec<[FlightKey; 1]> = SmallVec::new();
        for (i, Wanted { at, hash, kind: kind_of_fill }) in wanted.into_iter().enumerate() {
            let (mut place, mut peer_fills) = (None, 0);
            if kind_of_fill.is_some() {
                let key = slice_of(&request, &at);
                peer_fills = self.filler.partition().peer_fills(key);
                place = Some(self.keys.take_off(hash, request.slice_ref(key), number));
                self.ask_about(number, i, kind, key, now);
            }
            let kind = kind_of_fill;
            keys.push(FlightKey { at, place, deadline: None, exists: true, changes_seen: 0, kind, peer_fills });
        }
        let starts_at = self.put_shared(&request);
        self.in_flight_bytes += request.len();
        self.expect(What::Flight(number), starts_at, now);
        let position = self.position;
        if let Some((port, _)) = reader {
            port.set_link_position(position);
        }
        self.flights.insert(Flight {
            request,
            kind,
            keys,
            waiting: reader.into_iter().map(|(port, seq)| (port.clone(), seq)).collect(),
            position,
            patience,
            sent_at: now,
        });
    }

    /// Asks what is to be known of a key in front of its read: when it ends, and how it is encoded if that matters.
    fn ask_about(&mut self, flight: usize, key: usize, kind: OpKind, name: &[u8], now: Time) {
        self.opt_in(now);
        let starts_at = self.put_about_key(PTTL, name);
        self.expect(What::Pttl { flight, key }, starts_at, now);
        if let OpKind::Fill { asks_encoding: true, .. } | OpKind::Refresh { asks_encoding: true, .. } = kind {
            let starts_at = self.put_about_key(b"*3\r\n$6\r\nOBJECT\r\n$8\r\nENCODING\r\n$", name);
            self.expect(What::Encoding { flight }, starts_at, now);
        }
    }

    pub(super) fn put_about_key(&mut self, head: &[u8], key: &[u8]) -> u64 {
        let starts_at = self.put(head);
        let mut digits = itoa(key.len());
        self.put(digits.text());
        self.put(b"\r\n");
        self.put(key);
        self.put(b"\r\n");
        starts_at
    }

    /// The reply to a PTTL: from here on a change of the key makes the fill void.
    pub(super) fn pttl(&mut self, flight: usize, key: usize, frame: Frame<'_>) {
        let is_tracked = self.take_tracked() || self.caching != Caching::Tracked;
        let Some(flight) = self.flights.get_mut(flight) else { return };
        let Some(k) = flight.keys.get_mut(key) else { return };
        let pttl = Cursor::new(frame.bytes).next();
        k.exists = pttl != Some(Item::Integer(-2));
        k.deadline = match pttl {
            Some(Item::Integer(-1 | -2)) => Some(Time::MAX),
            Some(Item::Integer(ms)) if ms > 0 => {
                Some(flight.sent_at.saturating_add(Duration::from_millis(ms.unsigned_abs())))
            }
            Some(Item::Error(text)) => {
                // Of the command, not of this key: other keys may be read and kept.
                let of_command = text.starts_with(b"NOPERM") && memmem(text, b"'pttl'");
                if of_command && self.caching != Caching::NoPttl {
                    tracing::warn!("the upstream refuses PTTL to this user: nothing is cached for it");
                    self.caching = Caching::NoPttl;
                }
                None
            }
            _ => None,
        };
        if self.caching == Caching::Untracked {
            let bound = self.limits.untracked_ttl.map(|ttl| flight.sent_at.saturating_add(ttl));
            k.deadline = k.deadline.zip(bound).map(|(a, b)| a.min(b));
        }
        if !is_tracked {
            k.deadline = None;
        }
        k.changes_seen = k.place.map_or(0, |place| self.keys.changes(place));
    }

    /// The reply to OBJECT ENCODING: only a hash that cannot have field TTLs may be kept, or a key that is not there.
    pub(super) fn encoding(&mut self, flight: usize, frame: Frame<'_>) {
        let keeps = matches!(Cursor::new(frame.bytes).next(), Some(Item::Bulk(b"listpack") | Item::Null));
        if let (false, Some(flight)) = (keeps, self.flights.get_mut(flight)) {
            flight.keys.iter_mut().for_each(|k| k.deadline = None);
        }
    }

    /// The reply to a read that may be kept: keep it, then hand it on.
    pub(super) fn landed(&mut self, flight: usize, frame: Frame<'_>, now: Time) {
        let Some(flight_state) = self.flights.try_remove(flight) else { return };
        self.in_flight_bytes -= flight_state.request.len();
        self.refreshing -= usize::from(flight_state.refreshes());
        let is_error = matches!(frame.bytes.first(), Some(b'-' | b'!') | None);
        let is_kept = !is_error && !is_planted(Mutation::FillFromRequester);
        self.tell_of_flight(&flight_state, is_error);
        if is_kept {
            self.keep(&flight_state, frame, now);
        }
        for k in &flight_state.keys {
            if let Some(place) = k.place {
                self.keys.land(place, flight);
            }
        }
        for (port, seq) in &flight_state.waiting {
            self.hand_on(port, *seq, frame);
        }
        #[cfg(feature = "mutations")]
        if !is_error && !is_kept {
            self.late.landed.push((flight_state, Bytes::copy_from_slice(frame.bytes)));
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
    fn fresh_until(&mut self, k: &FlightKey, place: usize, key: &[u8]) -> Option<Time> {
        if !k.exists && self.filler.is_missed(key) {
            return None;
        }
        if self.filler.partition().peer_fills(key) != k.peer_fills {
            self.counts.fills_outrun += 1;
            return None;
        }
        if self.keys.changes(place) != k.changes_seen && !is_planted(Mutation::FillOutrun) {
            self.counts.fills_outrun += 1;
            return None;
        }
        k.deadline
    }

    /// Keeps what a key was read to hold, if it was to be kept and is still fresh.
    fn keep_as(&mut self, flight: &Flight, k: &FlightKey, variant: Variant<'_>, reply: &[u8], now: Time) {
        let Some((kind, place)) = k.kind.zip(k.place) else { return };
        let key = flight.key(k);
        let Some(deadline) = self.fresh_until(k, place, key) else { return };
        match self.filler.fill_as(kind, key, variant, reply, deadline, now) {
            Filled::Stored => self.counts.fills += 1,
            Filled::TooBig => self.big_keys.push(Bytes::copy_from_slice(key)),
            Filled::Dead | Filled::Contradicted => {}
        }
    }

    pub(super) fn lost_flight(
        &mut self,
        flight: usize,
        overtaken: impl Fn(&Arc<Port>) -> bool,
        retries: &mut Vec<Retry>,
    ) {
        let Some(flight) = self.flights.try_remove(flight) else { return };
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
fn argument(request: &[u8], at: usize) -> Option<Range<u32>> {
    let number = |kind: u8, from: usize| {
        let digits = request.get(from..)?.strip_prefix(&[kind])?.iter().take_while(|byte| byte.is_ascii_digit());
        let (len, value) = digits.fold((0, 0_u32), |(len, value), digit| {
            (len + 1, value.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
        });
        Some((from + 1 + len + 2, value as usize))
    };
    let (mut next, count) = number(b'*', 0)?;
    if at >= count {
        return None;
    }
    for _ in 0..at {
        let (start, len) = number(b'$', next)?;
        next = start + len + 2;
    }
    let (start, len) = number(b'$', next)?;
    (start + len <= request.len()).then_some(start as u32..(start + len) as u32)
}

fn slice_of<'a>(request: &'a [u8], at: &Range<u32>) -> &'a [u8] {
    &request[at.start as usize..at.end as usize]
}

fn memmem(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

/// A length in decimal digits, without an allocation.
struct Digits {
    bytes: [u8; 20],
    from: usize,
}

fn itoa(mut n: usize) -> Digits {
    let mut digits = Digits { bytes: [b'0'; 20], from: 20 };
    loop {
        digits.from -= 1;
        digits.bytes[digits.from] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return digits;
        }
    }
}

// === impl Digits ===

impl Digits {
    fn text(&mut self) -> &[u8] {
        &self.bytes[self.from..]
    }
}
