//! Reads of several keys. MGET of keys that L1 holds all is written to the output key by key, without gathering hits
//! first ([`Session::answer_each`]).
//!
//! Invariant: nothing is written unless all is: a miss, an entry with a deadline or a large reply on the way, or a removal
//! in between (the values may not have been there at once), take back what was written, and the general way is gone.

use super::put::put_merged;
use super::{
    Batch, Flow, Held, HeldKind, Missing, Muted, Session, Source, Surroundings, each_of, fill_each, read_one,
    read_one_as,
};
use crate::l1::{Answered, Hit, Leaves, Partition, RUN_MAX, Reply, Variant};
use crate::metrics::Passed;
use crate::outgoing::Outgoing;
use crate::upstream::link::Each;
use bytes::BytesMut;
use larder_protocol::args::Args;
use larder_protocol::shape::Protocol;
use larder_protocol::table::{Command, CommandId, PerKey};

/// A null, as L1 holds it.
const NIL: &[u8] = b"_\r\n";

// === impl Session (reads of several keys) ===

impl Session {
    /// Answers MGET at once, if nothing is under way and all keys are there; false if not, and nothing has been done.
    fn answer_each(
        &self,
        each: Each,
        args: Args<'_>,
        partition: &Partition,
        around: &Surroundings<'_>,
        out: &mut Outgoing,
    ) -> bool {
        let Each::Mget { get, mget } = each else { return false };
        if !self.slots.is_empty() || self.muted != Muted::No || args.len() < 2 {
            return false;
        }
        let nil: &[u8] = if self.merges_to(around) == Protocol::Resp2 { b"$-1\r\n" } else { b"_\r\n" };
        let leaves = Leaves::SAME_FOR_EVER;
        let removals = partition.removals();
        let tail = out.tail();
        let before = tail.len();
        put_count(args.len() - 1, tail);
        let mut is_followed = false;
        let mut first = 1;
        let all = loop {
            let count = (args.len() - first).min(RUN_MAX);
            if count == 0 {
                break true;
            }
            let key_of = |n: usize| args.arg(first + n);
            let mut hashes = [0; RUN_MAX];
            for (n, hash) in hashes[..count].iter_mut().enumerate() {
                *hash = partition.hash_of(key_of(n));
                is_followed |= around.counters.watcher.follows(*hash);
            }
            let value = |reply: Reply<'_>| {
                reply.put_to(tail);
                true
            };
            let done = partition.answer_run(&hashes[..count], key_of, Variant::bare(get), leaves, around.now, value);
            let mut rest = hashes[..count].iter().enumerate().skip(done);
            if !rest.all(|(n, hash)| put_value(key_of(n), *hash, (get, mget), partition, leaves, nil, around, tail)) {
                break false;
            }
            first += count;
        };
        if !all || partition.removals() != removals {
            out.tail().truncate(before);
            return false;
        }
        around.counters.hits.add(args.len() as u64 - 1);
        if is_followed || !around.counters.watcher.pass(args.len() as u64 - 1) {
            for key in args.iter().skip(1) {
                around.counters.watcher.read(partition.scope(), key, true, around.now);
            }
        }
        true
    }

    pub(super) fn read_each(
        &mut self,
        command: &Command,
        per_key: PerKey,
        args: Args<'_>,
        around: &Surroundings<'_>,
        batch: &mut Batch,
        out: &mut Outgoing,
    ) -> Flow {
        let each = each_of(per_key, command, around.table);
        let (Some(partition), 0) = (around.partition, self.writes_out) else {
            if let Some(hits) = self.read_each_stale(each, args, around) {
                return self.found_each(command, per_key, args, hits, Source::LeftBehind, around, batch, out);
            }
            let reason = if self.writes_out > 0 { Passed::UnansweredWrite } else { Passed::NotTracked };
            around.counters.pass(reason);
            self.send(command, args, fill_each(each, around), around, batch);
            return Flow::Taken;
        };
        if self.answer_each(each, args, partition, around, out) {
            return Flow::Taken;
        }
        let removals = partition.removals();
        let mut hits: Vec<Option<Hit>> =
            args.iter().skip(1).map(|key| read_one(partition, each, key, around.now)).collect();
        for (key, hit) in args.iter().skip(1).zip(&hits) {
            around.counters.watcher.read(partition.scope(), key, hit.is_some(), around.now);
        }
        around.counters.hits.add(hits.iter().flatten().count() as u64);
        if let Each::Mget { get, .. } = each {
            hits.iter().flatten().for_each(|hit| self.refresh_value_ahead(hit, get, around, batch));
        }
        for (key, hit) in args.iter().skip(1).zip(&mut hits).filter(|(_, hit)| hit.is_none()) {
            *hit = read_one_as(each, |variant| self.read_soft(key, variant, partition, around));
        }
        let found = hits.iter().flatten().count();
        around.counters.misses.add((hits.len() - found) as u64);
        if found == 0 {
            self.send(command, args, fill_each(each, around), around, batch);
            return Flow::Taken;
        }
        if found == hits.len() {
            // If a removal came in between, or a deadline, the hits may not have been there at once; a held answer with
            // nothing in front of it would never be looked at again.
            let were_alive_at_once = hits.iter().flatten().all(|hit| hit.is_alive(around.now));
            if self.slots.is_empty() && (partition.removals() != removals || !were_alive_at_once) {
                self.send(command, args, fill_each(each, around), around, batch);
                return Flow::Taken;
            }
            return self.found_each(command, per_key, args, hits, Source::Feed, around, batch, out);
        }
        let missing = args.iter().skip(1).zip(&hits).filter(|(_, hit)| hit.is_none()).map(|(key, _)| key);
        let words = std::iter::once(args.arg(0)).chain(missing);
        let part = larder_protocol::args::OwnedArgs::new(words);
        let held = Held { what: HeldKind::of(per_key), source: Source::Feed, hits, missing: Missing::AskedFor };
        let seq = self.hold(command, args, held, around);
        batch.push(seq, part.args().bytes(), fill_each(each, around));
        Flow::Taken
    }

    /// All keys of a read of several were found.
    #[expect(clippy::too_many_arguments, reason = "the parts of one request, and what was found for it")]
    fn found_each(
        &mut self,
        command: &Command,
        per_key: PerKey,
        args: Args<'_>,
        hits: Vec<Option<Hit>>,
        source: Source,
        around: &Surroundings<'_>,
        batch: &mut Batch,
        out: &mut Outgoing,
    ) -> Flow {
        let what = HeldKind::of(per_key);
        if !self.slots.is_empty() {
            self.hold(command, args, Held { what, source, hits, missing: Missing::Nothing }, around);
        } else if self.take_muted() || put_merged(what, &hits, &[], self.merges_to(around), out) {
            around.counters.soft.add(soft_among(&hits));
        } else {
            let each = each_of(per_key, command, around.table);
            self.send(command, args, fill_each(each, around), around, batch);
        }
        Flow::Taken
    }

    /// As [`Session::read_stale`], for a read of several keys: all of them, or none.
    fn read_each_stale(&self, each: Each, args: Args<'_>, around: &Surroundings<'_>) -> Option<Vec<Option<Hit>>> {
        let stale = around.stale.filter(|_| self.writes_out == 0)?;
        let now = (around.now)();
        let read = |key: &[u8]| {
            let age_max = stale.policies.stale_if_error(key);
            read_one_as(each, |variant| stale.partition.read_left(key, variant, age_max, now)).map(Some)
        };
        let hits: Vec<Option<Hit>> = args.iter().skip(1).map(read).collect::<Option<_>>()?;
        // What was given up in between may have been given up for news.
        let hold = |hit: &Hit| stale.partition.holds_left(hit, stale.policies.stale_if_error(hit.key()), now);
        if !hits.iter().flatten().all(hold) {
            return None;
        }
        around.counters.stale.add(hits.len() as u64);
        Some(hits)
    }
}

/// Puts what GET of a key would be answered, or null for a key that is known to have no string; false if L1 does not tell, or not
/// for a time that goes beyond this moment.
#[expect(clippy::too_many_arguments, reason = "one key of one request, and what is known of all of them")]
#[inline]
fn put_value(
    key: &[u8],
    hash: u64,
    (get, mget): (CommandId, CommandId),
    partition: &Partition,
    leaves: Leaves,
    nil: &[u8],
    around: &Surroundings<'_>,
    tail: &mut BytesMut,
) -> bool {
    let value = |reply: Reply<'_>| reply.put_to(tail);
    let is_nil = |hit: &Hit| hit.plain().is_some_and(|reply| reply.is(NIL)) && !hit.has_deadline();
    match partition.answer(key, hash, Variant::bare(get), leaves, around.now, value) {
        Some(Answered::Put) => true,
        Some(Answered::Hit(hit)) => {
            let is_nil = is_nil(&hit);
            tail.extend_from_slice(if is_nil { nil } else { &[] });
            is_nil
        }
        None => {
            tail.extend_from_slice(nil);
            partition.read(key, Variant::bare(mget), around.now).is_some_and(|hit| is_nil(&hit))
        }
    }
}

/// Puts the header of an array.
fn put_count(count: usize, tail: &mut BytesMut) {
    match count {
        0..10 => tail.extend_from_slice(&[b'*', b'0' + count as u8, b'\r', b'\n']),
        10..100 => tail.extend_from_slice(&[b'*', b'0' + (count / 10) as u8, b'0' + (count % 10) as u8, b'\r', b'\n']),
        _ => tail.extend_from_slice(format!("*{count}\r\n").as_bytes()),
    }
}

/// Hits of keys that were softly invalidated.
pub(super) fn soft_among(hits: &[Option<Hit>]) -> u64 {
    hits.iter().flatten().filter(|hit| hit.is_soft()).count() as u64
}
