//! How replies are put to the output: as they are, in their RESP2 form, or put together from hits.

use super::{Correction, Held, HeldKind, Missing, Source, Stale, Surroundings};
use crate::l1::{Hit, SoftRead};
use crate::mutation::{Mutation, is_planted};
use crate::outgoing::Outgoing;
use bytes::Bytes;
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::shape::{self, Protocol, Shape};
use std::borrow::Cow;

pub(super) fn put_reply(shape: Option<Shape>, reply: &Bytes, out: &mut Outgoing) {
    match shape {
        Some(shape) if !shape::same_in_both(reply) => put_resp2(shape, reply, out),
        _ => out.put_shared(reply.clone()),
    }
}

/// Puts a reply with what is Larder's own in it.
pub(super) fn put_corrected(correction: &Correction, shape: Option<Shape>, reply: &Bytes, out: &mut Outgoing) {
    match (correction, Cursor::new(reply).next()) {
        (Correction::Receivers { upstream, here }, Some(Item::Integer(n))) => {
            out.put(format!(":{}\r\n", (n - upstream).max(0) + here).as_bytes());
        }
        (Correction::Answer(answer), _) if reply.first() != Some(&b'-') => out.put_shared(answer.clone()),
        _ => put_reply(shape, reply, out),
    }
}

pub(super) fn put_reply_bytes(shape: Option<Shape>, reply: &[u8], out: &mut Outgoing) {
    match shape {
        Some(shape) if !shape::same_in_both(reply) => put_resp2(shape, reply, out),
        _ => out.put(reply),
    }
}

/// Puts a reply that L1 holds, in the form of `shape` if it has another in RESP2; a large one keeps its own memory. False if it
/// cannot be unpacked: nothing was put.
pub(super) fn put_hit(hit: Hit, shape: Option<Shape>, out: &mut Outgoing) -> bool {
    if let Some(shape) = shape.filter(|_| !hit.same_in_both()) {
        let Some(reply) = hit.reply() else { return false };
        put_resp2(shape, &reply, out);
        return true;
    }
    if let Some(reply) = hit.plain().filter(|_| hit.is_short()) {
        reply.put_to(out.tail());
        return true;
    }
    hit.into_bytes().map(|reply| out.put_shared(reply)).is_some()
}

pub(super) fn put_resp2(shape: Shape, reply: &[u8], out: &mut Outgoing) {
    let tail = out.tail();
    let before = tail.len();
    if shape::to_resp2(shape, reply, tail).is_err() {
        tail.truncate(before);
        tail.extend_from_slice(b"-ERR larder: the upstream's reply cannot be put into RESP2\r\n");
    }
}

/// Puts a held answer, if what it rests on is still true.
pub(super) fn put_held(
    held: &Held,
    shape: Option<Shape>,
    muted: bool,
    soft: SoftRead,
    around: &Surroundings<'_>,
    out: &mut Outgoing,
) -> bool {
    let now = (around.now)();
    let mut hits = held.hits.iter().flatten();
    let hold = match (held.source, around.partition, around.stale) {
        (Source::Feed, Some(partition), _) => hits.all(|hit| match hit.is_soft() {
            true => partition.holds_soft(hit, soft, now),
            false => partition.holds(hit, now),
        }),
        (Source::LeftBehind, _, Some(Stale { partition, policies })) => {
            hits.all(|hit| partition.holds_left(hit, policies.stale_if_error(hit.key()), now))
        }
        _ => return false,
    };
    if !hold && !is_planted(Mutation::HeldUnchecked) {
        return false;
    }
    let came: &[u8] = match &held.missing {
        Missing::Came(reply) => reply,
        _ => &[],
    };
    if muted {
        return true;
    }
    match (held.what, &held.hits[..]) {
        (HeldKind::Single, [Some(hit)]) => put_hit(hit.clone(), shape, out),
        (what, hits) => {
            let protocol = if shape.is_some() { Protocol::Resp2 } else { Protocol::Resp3 };
            put_merged(what, hits, came, protocol, out)
        }
    }
}

/// Puts the reply to MGET or EXISTS together from hits and from the reply for the missing keys. False if the latter is
/// not what it should be (an error, say), or a hit cannot be unpacked: nothing was put.
pub(super) fn put_merged(
    what: HeldKind,
    hits: &[Option<Hit>],
    came: &[u8],
    protocol: Protocol,
    out: &mut Outgoing,
) -> bool {
    let mut cursor = Cursor::new(came);
    if what == HeldKind::Exists {
        let mut total: i64 = match (came.is_empty(), cursor.next()) {
            (true, _) => 0,
            (false, Some(Item::Integer(n))) => n,
            _ => return false,
        };
        total +=
            hits.iter().flatten().filter(|hit| hit.plain().is_some_and(|reply| reply.is(b":1\r\n"))).count() as i64;
        out.put(format!(":{total}\r\n").as_bytes());
        return true;
    }
    let missing = hits.iter().filter(|hit| hit.is_none()).count() as u64;
    if missing > 0 && cursor.next_count() != Some(missing) {
        return false;
    }
    let tail = out.tail();
    let before = tail.len();
    tail.extend_from_slice(format!("*{}\r\n", hits.len()).as_bytes());
    for hit in hits {
        let element = match hit {
            Some(hit) => hit.reply(),
            None => Some(Cow::Borrowed(cursor.next_frame().unwrap_or(b"_\r\n"))),
        };
        match element {
            Some(element) if protocol == Protocol::Resp2 && element.starts_with(b"_") => {
                tail.extend_from_slice(b"$-1\r\n");
            }
            Some(element) => tail.extend_from_slice(&element),
            None => {
                tail.truncate(before);
                return false;
            }
        }
    }
    true
}
