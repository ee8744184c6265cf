//! `CACHE INVALIDATE`: keys, patterns, everything; upstream or in this L1 only.
//!
//! Upstream, keys are deleted by writes on the scope's link, in chunks, so that no command stops the server for long and
//! L1 follows by the rules that hold for every write. What is returned to the client has been heard by all links of
//! the database. A pattern is looked for by SCAN on a borrowed connection; between its steps the upstream rests for as
//! long as the last one has taken.
//!
//! `LOCAL` drops entries in the order of the link, and leaves the upstream alone. It works while there is no upstream.
//!
//! `SOFT` leaves what L1 holds to be answered as stale for a while ([`crate::l1`]). Upstream the same keys are deleted; `ALL`
//! goes key by key then, as `PATTERN *` does: of FLUSHDB every connection is told that everything has gone.
//!
//! How it fails: an error in the middle ends it, with that error; what was deleted until then stays deleted. A pattern is a
//! job, whose cursor tells where to go on.

use super::depend::{self, Bound, Origins};
use super::jobs::Job;
use super::{Caller, tags};
use crate::l1::Cause;
use crate::port::Failure;
use crate::upstream::breaker::FailureCause;
use crate::upstream::errand::Errand;
use crate::upstream::link::{OpKind, SoftOrder};
use crate::upstream::pool::Use;
use crate::upstream::scope::{Scope, Upstream};
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cache::{Reach, Soft, Target};
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::shape::Protocol;
use larder_protocol::table::CommandId;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Keys that one request deletes at most: well below a millisecond of the upstream's time.
const KEYS_PER_REQUEST_MAX: usize = 512;
/// Keys that one step of SCAN looks at, about.
const SCAN_COUNT: &str = "512";
/// Shortest and longest rest between two steps.
const REST_MIN: Duration = Duration::from_millis(1);
const REST_MAX: Duration = Duration::from_millis(100);
/// Keys that are gathered from L1 at a time.
const GATHERED_KEYS_MAX: usize = 65_536;

/// What an invalidation has done.
#[derive(Debug)]
pub(super) enum Invalidated {
    /// So many keys.
    Keys(u64),
    /// Everything.
    All,
}

/// The upstream's side of an invalidation.
struct Deletion<'a> {
    upstream: &'a Upstream,
    scope: &'a Arc<Scope>,
    errand: Errand,
    word: &'static str,
    command: CommandId,
    cause: Cause,
    soft_ms: Option<u32>,
    prefix: &'a str,
}

/// Invalidates.
pub(super) async fn invalidate(
    caller: &Caller,
    target: Target<'_>,
    reach: Reach,
    soft: Option<Soft>,
) -> Result<Invalidated, Failure> {
    let soft_ms = check_soft(caller, soft)?;
    let (Some(upstream), Some(scope)) = (caller.upstream(), &caller.scope) else {
        return invalidate_embedded(caller, target, reach).await;
    };
    let invalidated = invalidate_upstream(caller, upstream, scope, target, reach, soft_ms).await;
    if soft_ms.is_none() {
        end_softness(caller, upstream, scope, target, reach);
    }
    invalidated
}

async fn invalidate_upstream(
    caller: &Caller,
    upstream: &Arc<Upstream>,
    scope: &Arc<Scope>,
    target: Target<'_>,
    reach: Reach,
    soft_ms: Option<u32>,
) -> Result<Invalidated, Failure> {
    match (target, reach) {
        (Target::Keys(keys), Reach::Everywhere) => {
            let mut deletion = Deletion::begin(caller, upstream, scope, Cause::Manual, soft_ms)?;
            let count = deletion.delete(keys.iter()).await?;
            deletion.finish().await?;
            Ok(Invalidated::Keys(count))
        }
        (Target::Pattern { glob, from }, Reach::Everywhere) => {
            let deletion = Deletion::begin(caller, upstream, scope, Cause::PatternBased, soft_ms)?;
            delete_matching(caller, deletion, glob, from).await.map(Invalidated::Keys)
        }
        (Target::Tags(matching, tags), Reach::Everywhere) => {
            let kind = named(Cause::TagBased, soft_ms);
            let deleted = tags::invalidate::invalidate(caller, upstream, scope, matching, &tags, kind).await?;
            Ok(Invalidated::Keys(deleted))
        }
        (Target::Tags(matching, tags), Reach::Local) => {
            let members = tags::invalidate::members(caller, scope, matching, &tags).await?;
            let members = members.iter().map(|key| &key[..]);
            let dropped = drop_keys(scope, members, dropping(Cause::TagBased, soft_ms)).await?;
            Ok(Invalidated::Keys(dropped))
        }
        (Target::All, Reach::Everywhere) if soft_ms.is_some() => {
            let deletion = Deletion::begin(caller, upstream, scope, Cause::Manual, soft_ms)?;
            delete_matching(caller, deletion, b"*", None).await.map(|_| Invalidated::All)
        }
        (Target::All, Reach::Everywhere) => flush(caller, upstream, scope).await,
        (Target::Keys(keys), Reach::Local) => {
            let dropped = drop_keys(scope, keys.iter(), dropping(Cause::Manual, soft_ms)).await?;
            Ok(Invalidated::Keys(dropped))
        }
        (Target::Pattern { glob, .. }, Reach::Local) => {
            let kind = dropping(Cause::PatternBased, soft_ms);
            drop_matching(caller, scope, glob, kind).await.map(Invalidated::Keys)
        }
        (Target::All, Reach::Local) if soft_ms.is_some() => {
            let kind = dropping(Cause::Manual, soft_ms);
            drop_matching(caller, scope, b"*", kind).await.map(|_| Invalidated::All)
        }
        (Target::All, Reach::Local) => {
            Errand::default().drop_all(&scope.link, Cause::Manual).await?;
            Ok(Invalidated::All)
        }
    }
}

/// What was softly deleted before is found neither upstream nor in L1, nor does the index still know its tags: it is ended here. Keys
/// that are named, and everything, end by the orders to drop them.
fn end_softness(caller: &Caller, upstream: &Upstream, scope: &Arc<Scope>, target: Target<'_>, reach: Reach) {
    let others = if reach == Reach::Everywhere { upstream.others(scope, Some(scope.database)) } else { Vec::new() };
    let now = caller.shared.clock.now();
    for scope in others.iter().chain([scope]) {
        let partition = scope.link.partition();
        match target {
            Target::Pattern { glob, .. } => partition.end_soft_matching(glob, now),
            Target::Tags(..) => partition.written_elsewhere(None, now),
            Target::Keys(_) | Target::All => {}
        }
    }
}

/// The milliseconds of `SOFT`, if they are allowed.
fn check_soft(caller: &Caller, soft: Option<Soft>) -> Result<Option<u32>, Failure> {
    let Some(Soft { ms }) = soft else { return Ok(None) };
    let max = caller.shared.settings().l1.soft_ms_max.map_or(0, |max| max.as_millis() as u64);
    match u32::try_from(ms) {
        Ok(soft) if ms <= max => Ok(Some(soft)),
        _ if max == 0 => Err(refused("ERR larder: SOFT is switched off (l1.soft_ms_max)")),
        _ => Err(Failure::Refused(format!("ERR SOFT should be between 1 and {max} (l1.soft_ms_max)").into())),
    }
}

/// The order to take keys out of L1.
fn dropping(cause: Cause, soft_ms: Option<u32>) -> OpKind {
    soft_ms.map_or(OpKind::Drop(cause), |ms| OpKind::Soften(SoftOrder { cause, ms }))
}

/// A script that tells which keys it has deleted.
fn named(cause: Cause, soft_ms: Option<u32>) -> OpKind {
    soft_ms.map_or(OpKind::Named(cause), |ms| OpKind::NamedSoftly(SoftOrder { cause, ms }))
}

// === impl Deletion ===

impl<'a> Deletion<'a> {
    fn begin(
        caller: &'a Caller,
        upstream: &'a Upstream,
        scope: &'a Arc<Scope>,
        cause: Cause,
        soft_ms: Option<u32>,
    ) -> Result<Self, Failure> {
        let table = upstream.node().table();
        // Servers before 4.0 have no UNLINK.
        let unlink = table.lookup(b"unlink").filter(|command| command.on_upstream).map(|command| ("UNLINK", command));
        let del = || table.lookup(b"del").map(|command| ("DEL", command));
        let Some((word, command)) = unlink.or_else(del) else {
            return Err(refused("ERR larder: the upstream has no command that deletes keys"));
        };
        caller.may_use(&table, word)?;
        let prefix = &caller.shared.config.tags.prefix;
        Ok(Self { upstream, scope, errand: Errand::default(), word, command: command.id, cause, soft_ms, prefix })
    }

    /// Deletes keys in chunks: how many there were.
    async fn delete(&mut self, keys: impl ExactSizeIterator<Item = &[u8]>) -> Result<u64, Failure> {
        let mut deleted = 0;
        let mut keys = keys;
        while keys.len() > 0 {
            let chunk: Vec<&[u8]> = keys.by_ref().take(KEYS_PER_REQUEST_MAX).collect();
            self.end_leases(&chunk).await?;
            deleted += self.delete_dependents(&chunk).await?;
            let request = OwnedArgs::new(std::iter::once(self.word.as_bytes()).chain(chunk));
            let (link, cause) = (&self.scope.link, self.cause);
            let reply = match self.soft_ms {
                None => self.errand.delete(link, cause, &request, OpKind::Write(self.command)).await?,
                Some(ms) => {
                    let softly = OpKind::UnlinkSoftly(SoftOrder { cause, ms });
                    self.errand.call(link, &[(softly, &request)]).await?
                }
            };
            deleted += Cursor::new(&reply).next_integer().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        }
        Ok(deleted)
    }

    /// What depends on the keys goes first, even if they are not there: how many there were.
    async fn delete_dependents(&mut self, keys: &[&[u8]]) -> Result<u64, Failure> {
        if !self.scope.link.watch().is_on() {
            return Ok(0);
        }
        let (errand, prefix, cause) = (&mut self.errand, self.prefix.as_bytes(), self.cause);
        let taken = depend::take_out(errand, self.scope, prefix, keys, Bound::All, Origins::Stay, cause).await?;
        Ok(taken.deleted)
    }

    /// Leases go before the keys, so that nobody can set a key with a lease of before in between.
    async fn end_leases(&mut self, keys: &[&[u8]]) -> Result<(), Failure> {
        let names = keys.iter().map(|key| [self.prefix.as_bytes(), b"l:", key].concat());
        let request = OwnedArgs::new(std::iter::once(b"DEL".to_vec()).chain(names));
        match self.errand.call(&self.scope.link, &[(OpKind::Effect, &request)]).await {
            // Who may not use the index has no leases.
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Looks for keys from `cursor` on and deletes them, until all have been seen or the job is asked to end.
    async fn delete_matching(&mut self, glob: &[u8], mut cursor: Bytes, job: &Job) -> Result<(), Failure> {
        while !job.is_cancelled() {
            let began = Instant::now();
            let (next, keys) = scan(self.upstream, self.scope, &cursor, glob).await?;
            job.advance(self.delete(keys.iter().map(|key| &key[..])).await?);
            job.stands_at(&next);
            if next == "0" {
                break;
            }
            cursor = next;
            sleep(began.elapsed().clamp(REST_MIN, REST_MAX)).await;
        }
        Ok(())
    }

    /// What follows from it has happened, and other users' links of the database have heard of it, too.
    async fn finish(mut self) -> Result<(), Failure> {
        self.errand.settle(self.scope.link.watch()).await?;
        let others = self.upstream.others(self.scope, Some(self.scope.database));
        self.errand.fence(&others).await
    }
}

/// One step of SCAN: the next cursor and the keys found.
pub(super) async fn scan(
    upstream: &Upstream,
    scope: &Scope,
    cursor: &Bytes,
    glob: &[u8],
) -> Result<(Bytes, Vec<Bytes>), Failure> {
    let words = [&b"SCAN"[..], cursor, b"MATCH", glob, b"COUNT", SCAN_COUNT.as_bytes()];
    let reply_max = upstream.settings().times.reply_max;
    if let Some(failure) = upstream.node().refusal() {
        return Err(failure);
    }
    let mut borrowed = scope.pools.borrow(Use::Short, Protocol::Resp2).await?;
    let reply = match timeout(reply_max, borrowed.call(words)).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => {
            upstream.node().record_loss(error.cause());
            return Err(Failure::ReadLost);
        }
        Err(_) => {
            upstream.node().record_failures(FailureCause::Timeout, 1);
            return Err(Failure::ReadTimeout(reply_max.as_millis() as u64));
        }
    };
    drop(borrowed);
    let mut items = Cursor::new(&reply);
    match items.next() {
        Some(Item::Error(line)) => return Err(Failure::Refused(reply.slice_ref(line))),
        Some(Item::Aggregate(_, 2)) => {}
        _ => return Err(refused("ERR larder: the upstream's reply to SCAN cannot be read")),
    }
    let next = items.next_bytes().map(|next| reply.slice_ref(next));
    let count = items.next_count().unwrap_or(0);
    let keys = (0..count).map_while(|_| items.next_bytes()).map(|key| reply.slice_ref(key)).collect();
    next.map(|next| (next, keys)).ok_or_else(|| refused("ERR larder: the upstream's reply to SCAN cannot be read"))
}

/// A pattern's job: how many keys it has deleted.
async fn delete_matching(
    caller: &Caller,
    mut deletion: Deletion<'_>,
    glob: &[u8],
    from: Option<u64>,
) -> Result<u64, Failure> {
    caller.may_use(&deletion.upstream.node().table(), "SCAN")?;
    let job = caller.shared.jobs.begin("invalidate-pattern", glob, caller.shared.clock)?;
    let cursor = Bytes::from(from.unwrap_or(0).to_string());
    let done = deletion.delete_matching(glob, cursor, &job).await;
    let done = done.and(deletion.finish().await);
    let (id, deleted, cancelled) = (job.id, job.done(), job.is_cancelled());
    job.end(done.as_ref().err());
    done?;
    if cancelled {
        let line = format!("ERR larder: the job was cancelled; CACHE JOB {id} shows how far it has come");
        return Err(Failure::Refused(line.into()));
    }
    Ok(deleted)
}

/// Empties the database upstream. Every tracking connection hears of it, whatever its database.
async fn flush(caller: &Caller, upstream: &Upstream, scope: &Arc<Scope>) -> Result<Invalidated, Failure> {
    caller.may_use(&upstream.node().table(), "FLUSHDB")?;
    let mut errand = Errand::default();
    let request = OwnedArgs::new(["FLUSHDB", "ASYNC"]);
    let requests = [(OpKind::DropAll(Cause::Manual), &request), (OpKind::Effect, &request)];
    errand.call(&scope.link, &requests).await?;
    errand.fence(&upstream.scopes()).await?;
    Ok(Invalidated::All)
}

async fn drop_keys<'k>(
    scope: &Scope,
    keys: impl ExactSizeIterator<Item = &'k [u8]>,
    kind: OpKind,
) -> Result<u64, Failure> {
    let mut errand = Errand::default();
    let mut dropped = 0;
    let mut keys = keys;
    while keys.len() > 0 {
        let chunk = keys.by_ref().take(KEYS_PER_REQUEST_MAX);
        let request = OwnedArgs::new(std::iter::once(&b"DROP"[..]).chain(chunk));
        dropped += errand.drop_keys(&scope.link, kind, &request).await?;
    }
    Ok(dropped)
}

/// Drops the entries whose keys match: those of now, and those that were on their way.
async fn drop_matching(caller: &Caller, scope: &Arc<Scope>, glob: &[u8], kind: OpKind) -> Result<u64, Failure> {
    Errand::default().fence(std::slice::from_ref(scope)).await?;
    let made_by = caller.shared.clock.now();
    let mut dropped = 0;
    loop {
        let (partition, pattern) = (scope.link.partition().clone(), glob.to_vec());
        let search = move || partition.keys_matching(&pattern, made_by, GATHERED_KEYS_MAX);
        let keys = tokio::task::spawn_blocking(search).await.unwrap_or_default();
        let here = drop_keys(scope, keys.iter().map(|key| &key[..]), kind).await?;
        dropped += here;
        // Fewer than were asked for are all; and where nothing goes, nothing would go the next time.
        if keys.len() < GATHERED_KEYS_MAX || here == 0 {
            return Ok(dropped);
        }
    }
}

/// Without an upstream there is no L1: what is invalidated is deleted, and LOCAL finds nothing.
async fn invalidate_embedded(caller: &Caller, target: Target<'_>, reach: Reach) -> Result<Invalidated, Failure> {
    let Reach::Everywhere = reach else {
        return Ok(if matches!(target, Target::All) { Invalidated::All } else { Invalidated::Keys(0) });
    };
    let table = &caller.shared.table;
    match target {
        Target::Keys(keys) => {
            caller.may_use(table, "UNLINK")?;
            Ok(Invalidated::Keys(unlink_embedded(caller, keys.iter(), Cause::Manual)?))
        }
        Target::Pattern { glob, from } => {
            caller.may_use(table, "UNLINK")?;
            caller.may_use(table, "SCAN")?;
            let (mut cursor, mut deleted) = (from.unwrap_or(0).to_string().into_bytes(), 0);
            loop {
                let reply =
                    caller.execute_embedded(&[b"SCAN", &cursor, b"MATCH", glob, b"COUNT", SCAN_COUNT.as_bytes()])?;
                let mut items = Cursor::new(&reply);
                items.next_count();
                cursor = items.next_bytes().unwrap_or(b"0").to_vec();
                let count = items.next_count().unwrap_or(0);
                let keys: Vec<&[u8]> = (0..count).map_while(|_| items.next_bytes()).collect();
                deleted += unlink_embedded(caller, keys.into_iter(), Cause::PatternBased)?;
                if cursor == b"0" {
                    return Ok(Invalidated::Keys(deleted));
                }
                // Others of the thread have their turn.
                tokio::task::yield_now().await;
            }
        }
        Target::Tags(matching, tags) => {
            caller.may_use(table, "UNLINK")?;
            Ok(Invalidated::Keys(tags::embedded::invalidate(caller, matching, &tags)))
        }
        Target::All => {
            caller.may_use(table, "FLUSHDB")?;
            caller.execute_embedded(&[b"FLUSHDB"])?;
            Ok(Invalidated::All)
        }
    }
}

fn unlink_embedded<'k>(
    caller: &Caller,
    keys: impl ExactSizeIterator<Item = &'k [u8]>,
    cause: Cause,
) -> Result<u64, Failure> {
    let mut deleted = 0;
    let mut keys = keys;
    while keys.len() > 0 {
        let chunk: Vec<&[u8]> = keys.by_ref().take(KEYS_PER_REQUEST_MAX).collect();
        deleted += tags::embedded::unlink(caller, &chunk, cause)?;
    }
    Ok(deleted)
}

fn refused(line: &'static str) -> Failure {
    Failure::Refused(Bytes::from_static(line.as_bytes()))
}
