//! `CACHE INVALIDATE TAGS`: from the commit point to the moment at which nobody reads what had the tags.
//!
//! ```text
//!   aside.lua   what has the tags is set aside: one step, whatever its number        <- the commit point
//!   step.lua    some of it is deleted, again and again; in between the upstream rests
//!   fence       the links of this Larder, then all other Larders, have heard of it   <- the reply
//! ```
//!
//! How it fails: whatever ends this after the commit point, a lost connection, a caller that goes, the end of the process, the
//! rest is deleted by the sweeper of some Larder when the claim is over.

use super::pace::{self, Pace};
use super::script;
use crate::cache::Caller;
use crate::cache::jobs::Job;
use crate::l1::Cause;
use crate::mutation::{Mutation, is_planted};
use crate::port::Failure;
use crate::upstream::errand::Errand;
use crate::upstream::link::OpKind;
use crate::upstream::link_io::LinkHandle;
use crate::upstream::scope::{Scope, Upstream};
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cache::{KeyList, Matching};
use larder_protocol::cursor::Cursor;
use std::sync::Arc;
use tokio::time::{Instant, sleep};

/// Keys that one step deletes at most, as scripts read it.
pub(in crate::cache) const STEP_KEYS: &[u8] = b"2";
const _: () = assert!(STEP_KEYS.len() == 1 && (STEP_KEYS[0] - b'0') as usize == pace::STEP_KEYS);
/// How long an invalidation is left to who has begun it.
pub(in crate::cache) const CLAIM_MS: &[u8] = b"10000";
/// Keys that are looked at in one step of a search for members.
const SEARCH_STEP: &[u8] = b"512";
/// Bytes of tags that a job shows.
const SHOWN_BYTES_MAX: usize = 128;

/// The keys of a tag, page by page.
pub(in crate::cache) struct Members {
    set: Vec<u8>,
    cursor: Option<Bytes>,
}

/// Deletes what has one, or all, of the tags: how many keys there were. `kind` says what becomes of what L1 holds of them.
pub(in crate::cache) async fn invalidate(
    caller: &Caller,
    upstream: &Upstream,
    scope: &Arc<Scope>,
    matching: Matching,
    tags: &KeyList<'_>,
    kind: OpKind,
) -> Result<u64, Failure> {
    caller.may_use(&upstream.node().table(), "UNLINK")?;
    let shown: Vec<u8> = tags.iter().flat_map(|tag| [tag, b" "].concat()).take(SHOWN_BYTES_MAX).collect();
    let job = caller.shared.jobs.begin("invalidate-tags", shown.trim_ascii_end(), caller.shared.clock)?;
    caller.shared.tags_were_used();
    let done = delete(caller, scope, matching, tags, kind, &job).await;
    let done = match done {
        Ok(()) => fence(upstream, scope).await,
        failed => failed,
    };
    let deleted = job.done();
    job.end(done.as_ref().err());
    done.map(|()| deleted)
}

async fn delete(
    caller: &Caller,
    scope: &Scope,
    matching: Matching,
    tags: &KeyList<'_>,
    kind: OpKind,
    job: &Job,
) -> Result<(), Failure> {
    let mut errand = Errand::default();
    let config = caller.shared.settings().tags.clone();
    let (prefix, id) = (config.prefix.as_bytes(), super::fresh_token());
    // A version of a tag outlives every lease that was given before.
    let lease_ms = (config.lease_ms.as_millis() * 2).to_string();
    let word: &[u8] = if matching == Matching::All { b"ALL" } else { b"ANY" };
    let mut args = vec![prefix, id.as_bytes(), CLAIM_MS, lease_ms.as_bytes(), STEP_KEYS, word];
    args.extend(tags.iter());
    job.commit();
    let reply = script::ASIDE.run(&mut errand, &scope.link, kind, None, &args).await?;
    let mut cursor = Cursor::new(&reply);
    cursor.next_count();
    job.expect(cursor.next_integer().map_or(0, i64::unsigned_abs));
    job.advance(cursor.next_integer().map_or(0, i64::unsigned_abs));
    let mut next_ids = || {
        let count = cursor.next_count().unwrap_or(0);
        (0..count).map_while(|_| cursor.next_bytes()).collect::<Vec<&[u8]>>()
    };
    let (own, others) = (next_ids(), next_ids());
    if is_planted(Mutation::LeftUndeleted) {
        return Ok(());
    }
    delete_all_aside(&mut errand, scope, prefix, &own, kind, Some(job)).await?;
    // Somebody else has taken them from under the tags. Whether they may be answered as stale for a while is not known here.
    delete_all_aside(&mut errand, scope, prefix, &others, OpKind::Named(Cause::TagBased), None).await
}

/// Deletes what was set aside under each of these ids, and what depends on it.
async fn delete_all_aside(
    errand: &mut Errand,
    scope: &Scope,
    prefix: &[u8],
    ids: &[&[u8]],
    kind: OpKind,
    job: Option<&Job>,
) -> Result<(), Failure> {
    for id in ids {
        delete_aside(errand, scope, prefix, id, kind, job).await?;
        if scope.link.watch().is_on() && !id.starts_with(b"dep:") {
            let dependents = [b"dep:", *id].concat();
            delete_aside(errand, scope, prefix, &dependents, kind, job).await?;
        }
    }
    Ok(())
}

/// Deletes what was set aside as `id`, step by step: how many keys there were.
pub(in crate::cache) async fn delete_aside(
    errand: &mut Errand,
    scope: &Scope,
    prefix: &[u8],
    id: &[u8],
    kind: OpKind,
    job: Option<&Job>,
) -> Result<u64, Failure> {
    let (mut total, mut pace) = (0, Pace::default());
    loop {
        let (began, keys) = (Instant::now(), pace.keys().to_string());
        let args = [prefix, id, CLAIM_MS, keys.as_bytes()];
        let reply = script::STEP.run(errand, &scope.link, kind, None, &args).await?;
        let mut cursor = Cursor::new(&reply);
        cursor.next_count();
        let deleted = cursor.next_integer().map_or(0, i64::unsigned_abs);
        let has_ended = cursor.next_integer() != Some(0);
        let taken = cursor.next_integer().map_or(0, i64::unsigned_abs);
        if let Some(job) = job {
            job.advance(deleted);
        }
        total += deleted;
        if has_ended {
            return Ok(total);
        }
        if let Some(rest) = pace.after_step(began.elapsed(), taken) {
            sleep(rest).await;
        }
    }
}

/// Everybody has heard of it: the links of this Larder, then all other Larders; and what follows from it has happened.
async fn fence(upstream: &Upstream, scope: &Arc<Scope>) -> Result<(), Failure> {
    Errand::default().settle(scope.link.watch()).await?;
    let mut scopes = upstream.others(scope, Some(scope.database));
    scopes.push(scope.clone());
    Errand::default().fence(&scopes).await?;
    if is_planted(Mutation::PeersUnasked) {
        return Ok(());
    }
    upstream.fence_peers(&scope.identity, scope.database).await
}

/// The keys that have one, or all, of the tags at this time.
pub(in crate::cache) async fn members(
    caller: &Caller,
    scope: &Scope,
    matching: Matching,
    tags: &KeyList<'_>,
) -> Result<Vec<Bytes>, Failure> {
    let mut errand = Errand::default();
    let prefix = caller.shared.config.tags.prefix.as_bytes();
    let sets: Vec<Vec<u8>> = tags.iter().map(|tag| [prefix, b"t:", tag].concat()).collect();
    let searched = if matching == Matching::All { &sets[..1] } else { &sets[..] };
    let mut found = Vec::new();
    for set in searched {
        let mut members = Members { set: set.clone(), cursor: Some(Bytes::from_static(b"0")) };
        while let Some(keys) = members.next_page(&mut errand, &scope.link).await? {
            found.extend(if matching == Matching::All {
                with_all(&mut errand, scope, keys, &sets[1..]).await?
            } else {
                keys
            });
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

// === impl Members ===

impl Members {
    /// Those of a tag.
    pub(in crate::cache) fn of(prefix: &str, tag: &[u8]) -> Self {
        Self { set: [prefix.as_bytes(), b"t:", tag].concat(), cursor: Some(Bytes::from_static(b"0")) }
    }

    /// The next of them, perhaps none; `None` behind the last.
    pub(in crate::cache) async fn next_page(
        &mut self,
        errand: &mut Errand,
        link: &LinkHandle,
    ) -> Result<Option<Vec<Bytes>>, Failure> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        let words = [&b"SSCAN"[..], &self.set, &cursor, b"COUNT", SEARCH_STEP];
        let reply = errand.call(link, &[(OpKind::Read, &OwnedArgs::new(words))]).await?;
        let mut items = Cursor::new(&reply);
        items.next_count();
        let next = items.next_bytes().unwrap_or(b"0");
        self.cursor = (next != b"0").then(|| Bytes::copy_from_slice(next));
        let count = items.next_count().unwrap_or(0);
        Ok(Some((0..count).map_while(|_| items.next_bytes()).map(|key| reply.slice_ref(key)).collect()))
    }
}

/// Those of `keys` that all the sets have.
async fn with_all(
    errand: &mut Errand,
    scope: &Scope,
    mut keys: Vec<Bytes>,
    sets: &[Vec<u8>],
) -> Result<Vec<Bytes>, Failure> {
    for set in sets {
        if keys.is_empty() {
            break;
        }
        let words = [&b"SMISMEMBER"[..], set].into_iter().chain(keys.iter().map(|key| &key[..]));
        let reply = errand.call(&scope.link, &[(OpKind::Read, &OwnedArgs::new(words))]).await?;
        let mut flags = Cursor::new(&reply);
        flags.next_count();
        keys.retain(|_| flags.next_integer() == Some(1));
    }
    Ok(keys)
}
