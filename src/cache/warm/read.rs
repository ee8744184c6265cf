//! One batch of keys: what they are, and the reads that fill L1.
//!
//! First each key is asked for its type and its size, then it is read as a whole, by the command that its type is read with.
//! What is much larger than an entry may be is not read: its reply would occupy the link for nothing.

use super::super::jobs::Job;
use super::{Warmer, refused};
use crate::l1::Variant;
use crate::port::Failure;
use crate::upstream::errand::Errand;
use crate::upstream::link::OpKind;
use crate::upstream::node::Facts;
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::shape::Protocol;
use larder_protocol::table::{Cacheability, Class, CommandId};

/// How a value of each type is read. Streams and types of modules have no read of the whole that is usual.
const READS: [(&[u8], &str, &[&str]); 5] = [
    (b"string", "GET", &[]),
    (b"hash", "HGETALL", &[]),
    (b"set", "SMEMBERS", &[]),
    (b"list", "LRANGE", &["0", "-1"]),
    (b"zset", "ZRANGE", &["0", "-1"]),
];
/// The key's place in each of them.
const KEY_AT: usize = 1;
/// Bytes of values, as far as their sizes are known, that are asked for at a time.
const ASKED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The read that fills L1 with a key.
struct Read {
    key: Bytes,
    command: CommandId,
    kind: OpKind,
    request: OwnedArgs,
    bytes: usize,
}

// === impl Warmer ===

impl Warmer {
    /// Reads keys that L1 does not hold yet. Those that it holds afterwards count as done, the others as failed.
    pub(super) async fn read_batch(&self, errand: &mut Errand, keys: &[Bytes], job: &Job) -> Result<(), Failure> {
        let facts = self.upstream.node().facts();
        let missing: Vec<&Bytes> = keys.iter().filter(|key| !self.is_warm(&facts, key)).collect();
        job.advance((keys.len() - missing.len()) as u64);
        if missing.is_empty() {
            return Ok(());
        }
        let mut reads = self.look_at(errand, &facts, &missing).await?;
        job.skip((missing.len() - reads.len()) as u64);
        while !reads.is_empty() {
            let rest = reads.split_off(count_within(&reads, ASKED_BYTES_MAX));
            self.read(errand, reads, job).await?;
            reads = rest;
        }
        Ok(())
    }

    /// Asks for types and sizes: the reads of those keys that can be kept.
    async fn look_at(&self, errand: &mut Errand, facts: &Facts, keys: &[&Bytes]) -> Result<Vec<Read>, Failure> {
        let usage = facts.table.by_full_name("memory|usage");
        let asks_size = usage.is_some_and(|usage| usage.on_upstream && !self.shared.denied.denies(usage));
        let mut questions = Vec::new();
        for key in keys {
            questions.push((OpKind::Read, OwnedArgs::new([&b"TYPE"[..], key])));
            if asks_size {
                questions.push((OpKind::Read, OwnedArgs::new([&b"MEMORY"[..], b"USAGE", key])));
            }
        }
        let link = &self.scope.link;
        let answers = errand.ask_each(link, &questions).await?;
        if !link.is_up() {
            return Err(Failure::ReadLost);
        }
        if !link.caches() {
            return Err(refused(
                "ERR larder: replies are not kept (l1.enabled, or an upstream that cannot track keys)",
            ));
        }
        let of_each = answers.chunks(1 + usize::from(asks_size));
        let reads = keys.iter().zip(of_each).filter_map(|(key, answers)| {
            let (kind, size) = (answers.first()?.as_ref().ok()?, answers.get(1));
            let Some(Item::Simple(kind)) = Cursor::new(kind).next() else { return None };
            let entry_bytes_max = self.upstream.l1().settings().entry_bytes_max;
            let size = size.and_then(|size| Cursor::new(size.as_ref().ok()?).next_integer());
            let bytes = size.and_then(|size| usize::try_from(size).ok()).unwrap_or(entry_bytes_max);
            // In memory a value is larger than its reply, as a rule by less than this.
            let is_big = bytes > entry_bytes_max.saturating_mul(2) || self.upstream.is_big(key);
            if is_big { None } else { self.read_of(facts, kind, key, bytes) }
        });
        Ok(reads.collect())
    }

    /// Sends reads and waits for their replies, which have filled L1 when they come.
    async fn read(&self, errand: &mut Errand, reads: Vec<Read>, job: &Job) -> Result<(), Failure> {
        let (requests, wanted): (Vec<_>, Vec<_>) =
            reads.into_iter().map(|read| ((read.kind, read.request), (read.key, read.command))).unzip();
        self.outwait_pause(job).await;
        if job.is_cancelled() {
            return Ok(());
        }
        let answers = errand.ask_each(&self.scope.link, &requests).await?;
        let (partition, now) = (self.scope.link.partition(), self.shared.clock.now());
        for ((answer, (_, request)), (key, command)) in answers.iter().zip(&requests).zip(&wanted) {
            let variant = Variant::new(*command, request.args(), KEY_AT);
            match answer.is_ok() && partition.would_answer(key, variant, now) {
                true => job.advance(1),
                false => job.skip(1),
            }
        }
        Ok(())
    }

    /// The read of a key of this type, if there is one whose reply may be kept.
    fn read_of(&self, facts: &Facts, kind: &[u8], key: &Bytes, bytes: usize) -> Option<Read> {
        let (_, word, more) = READS.iter().find(|(name, ..)| *name == kind)?;
        let command = facts.table.lookup(word.as_bytes()).filter(|command| !self.shared.denied.denies(command))?;
        let head = [word.as_bytes(), key];
        let request = OwnedArgs::new(head.into_iter().chain(more.iter().map(|word| word.as_bytes())));
        let Class::Read(Cacheability::Single) = command.classify(request.args(), Protocol::Resp3) else { return None };
        let asks_encoding = facts.has_field_ttls && command.reads_hash_fields();
        let kind = OpKind::Fill { command: command.id, key_at: KEY_AT as u16, may_join: false, asks_encoding };
        Some(Read { key: key.clone(), command: command.id, kind, request, bytes })
    }

    /// True if L1 would answer the read that this key would be warmed with, whatever its type is.
    fn is_warm(&self, facts: &Facts, key: &Bytes) -> bool {
        let (partition, now) = (self.scope.link.partition(), self.shared.clock.now());
        self.scope.link.caches() && partition.facts(key).is_some() && {
            let answers = |(kind, ..): &(&[u8], &str, &[&str])| {
                self.read_of(facts, kind, key, 0).is_some_and(|read| {
                    partition.would_answer(key, Variant::new(read.command, read.request.args(), KEY_AT), now)
                })
            };
            READS.iter().any(answers)
        }
    }
}

/// How many of the first reads bring so many bytes together; at least one.
fn count_within(reads: &[Read], bytes_max: usize) -> usize {
    let mut bytes = 0_usize;
    let within = reads.iter().take_while(|read| {
        bytes = bytes.saturating_add(read.bytes);
        bytes <= bytes_max
    });
    within.count().clamp(1, reads.len().max(1))
}
