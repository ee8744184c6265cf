//! Keys that depend on others: when one of these changes or is invalidated, they go, too.
//!
//! ```text
//!   CACHE DEPEND page ON 2 user:7 menu        page ──depends on──► user:7, menu          (sources)
//!
//!   SET user:7 ...  ──► the upstream ──push──► the watch: "user:7 has changed"           (watcher)
//!                                              takeout.lua: page is deleted, then what depends on page
//!                   ◄── reply, when all that has happened and the links have heard of it
//! ```
//!
//! The index lives upstream beside that of tags (see [`super::tags`]), in each database its own:
//!
//! | key | type | what it holds |
//! |---|---|---|
//! | `larder:d:<key>` | set | what the key depends on |
//! | `larder:s:<key>` | sorted set | what depends on the key, by the serial number of the dependency; negative if the key was not there then |
//! | `larder:sources` | sorted set | all keys that others depend on, by the serial number of their newest dependency |
//! | `larder:serial` | string | the last serial number |
//!
//! Each Larder watches: on a connection of its own, made when the first dependency is declared, it reads all sources, so
//! that the server tells it of every change, by whomever, expiry and eviction included. Whoever hears of one first takes
//! out what depends on it; the others find nothing left. While nothing depends on anything, nobody watches, nothing is tracked and no
//! write waits; how a Larder hears of a first dependency that was declared through another is told in
//! [`crate::upstream::watch`].
//!
//! Invariants:
//! * What a key depends on is its name's, as tags are: until the key is gone, or `CACHE UNDEPEND`.
//! * A key that goes takes its dependencies with it, and what depends on it goes, too: so each deletion ends, cycles or not.
//!   Who has changed does not go by its own change, though it may depend on itself by others.
//! * From the step on in which a dependency is written, the Larder that writes it is told of changes of its source: both are
//!   one script on the connection of the watch.
//! * Each dependent stands in `larder:due`: the sweeper forgets it when it has gone.
//!
//! How it fails: what changed while nobody watched is not known; so a watch that begins, or was interrupted, takes out all that
//! depends on anything, unless another Larder says that it has watched all the time.
//!
//! Bounds: `depend.sources_max`, `depend.dependents_max`, `depend.depth_max`; [`LOOKED_MAX`].

pub(super) mod embedded;
pub(crate) mod watcher;

use super::Caller;
use super::reply::Reply;
use super::tags::invalidate::{CLAIM_MS, STEP_KEYS, delete_aside};
use super::tags::{fresh_token, script, sorted_reply};
use crate::l1::Cause;
use crate::port::Failure;
use crate::upstream::errand::Errand;
use crate::upstream::link::OpKind;
use crate::upstream::scope::{Scope, Upstream};
use crate::upstream::watch::{Before, Hearing};
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cache::{DependCommand, KeyList};
use larder_protocol::cursor::Cursor;
use std::sync::Arc;

/// Keys that are looked at to find the longest chain; more must not be connected.
const LOOKED_MAX: usize = 4096;

/// Which dependencies on a changed key are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// All.
    All,
    /// Those that were declared until this one, and not on a key that was not there and is not there.
    UpTo(u64),
}

/// Whether the keys that have changed can go by what depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origins {
    Stay,
    Go,
}

/// What has become of the dependents of some keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TakenOut {
    /// Keys that were deleted.
    pub(super) deleted: u64,
    /// Dependencies that were spared.
    pub(super) spared: u64,
}

/// Executes a command about dependencies; the reply in RESP3.
pub(super) async fn execute(caller: &Caller, command: DependCommand<'_>) -> Result<Vec<u8>, Failure> {
    let (Some(upstream), Some(scope)) = (caller.upstream(), &caller.scope) else {
        return embedded::execute(caller, command);
    };
    match command {
        DependCommand::Depend(key, sources) => depend(caller, upstream, scope, key, &sources).await,
        DependCommand::Depends(key) => {
            Ok(sorted_reply(sources(caller, scope, key).await?.iter().map(|s| &s[..]).collect()))
        }
        DependCommand::Undepend(key, sources) => {
            let mut args = vec![prefix(caller)];
            args.extend(sources.iter().flat_map(KeyList::iter));
            let (errand, link) = (&mut Errand::default(), &scope.link);
            let reply = script::UNDEPEND.run(errand, link, OpKind::Effect, Some(key), &args).await?;
            Ok(reply.to_vec())
        }
    }
}

/// What a key depends on.
pub(super) async fn sources(caller: &Caller, scope: &Scope, key: &[u8]) -> Result<Vec<Bytes>, Failure> {
    let record = [prefix(caller), b"d:", key].concat();
    let request = OwnedArgs::new([&b"SMEMBERS"[..], &record]);
    let reply = Errand::default().call(&scope.link, &[(OpKind::Read, &request)]).await?;
    let mut cursor = Cursor::new(&reply);
    let count = cursor.next_count().unwrap_or(0);
    Ok((0..count).map_while(|_| cursor.next_bytes()).map(|source| reply.slice_ref(source)).collect())
}

/// Deletes what depends on `keys`, and what depends on that.
pub(super) async fn take_out(
    errand: &mut Errand,
    scope: &Scope,
    prefix: &[u8],
    keys: &[&[u8]],
    bound: Bound,
    origins: Origins,
    cause: Cause,
) -> Result<TakenOut, Failure> {
    let id = format!("dep:{}", fresh_token());
    let bound = match bound {
        Bound::All => "-1".to_owned(),
        Bound::UpTo(serial) => serial.to_string(),
    };
    let stay: &[u8] = if origins == Origins::Stay { b"1" } else { b"0" };
    let mut args = vec![prefix, id.as_bytes(), CLAIM_MS, STEP_KEYS, bound.as_bytes(), stay];
    args.extend(keys);
    let kind = OpKind::Named(cause);
    let reply = script::TAKEOUT.run(errand, &scope.link, kind, None, &args).await?;
    let mut cursor = Cursor::new(&reply);
    cursor.next_count();
    let mut number = || cursor.next_integer().map_or(0, i64::unsigned_abs);
    let (mut deleted, spared) = (number(), number());
    let left = cursor.next_count().unwrap_or(0);
    let ids: Vec<&[u8]> = (0..left).map_while(|_| cursor.next_bytes()).collect();
    // What another Larder is at may be what follows from this change: it is helped.
    for job in ids {
        let gone = delete_aside(errand, scope, prefix, job, kind, None).await?;
        deleted += if job == id.as_bytes() { gone } else { 0 };
    }
    Ok(TakenOut { deleted, spared })
}

/// `CACHE DEPEND`: when it is answered, every Larder watches.
async fn depend(
    caller: &Caller,
    upstream: &Upstream,
    scope: &Arc<Scope>,
    key: &[u8],
    sources: &KeyList<'_>,
) -> Result<Vec<u8>, Failure> {
    caller.may_use(&upstream.node().table(), "UNLINK")?;
    let limits = &caller.shared.config.depend;
    if sources.len() > limits.sources_max {
        return Err(too_many_sources(limits.sources_max));
    }
    caller.shared.tags_were_used();
    let mut rights = vec![prefix(caller)];
    rights.extend(sources.iter());
    script::RIGHTS.run(&mut Errand::default(), &scope.link, OpKind::Effect, Some(key), &rights).await?;
    if upstream.may_not_tell() {
        let line = "NOPERM larder: no user here may tell other Larders of dependencies: each needs the right to the shard channel ";
        return Err(Failure::Refused([line.as_bytes(), prefix(caller), b"peers"].concat().into()));
    }
    let watch = scope.link.watch();
    // Who was told of changes would have been told of an index that was there.
    let before = match watch.hearing() {
        Hearing::Told => Before::Nothing,
        Hearing::Tracked if scope.link.caches() => Before::Nothing,
        Hearing::Tracked | Hearing::Unsure => Before::Unknown,
    };
    let request = Bytes::copy_from_slice(request(caller, key, sources).args().bytes());
    let reply = watch.call(request, before).await?;
    if let Some(line) = reply.strip_prefix(b"-") {
        return Err(Failure::Refused(reply.slice_ref(line.trim_ascii_end())));
    }
    // Who reads the sources now, to make the key out of them, must not be answered from before.
    Errand::default().fence(std::slice::from_ref(scope)).await?;
    upstream.tell_of_dependency(&scope.identity, scope.database).await?;
    Ok(reply.to_vec())
}

/// The script that writes the index, with all sources declared.
fn request(caller: &Caller, key: &[u8], sources: &KeyList<'_>) -> OwnedArgs {
    let config = caller.shared.settings();
    let limits = &config.depend;
    let count = sources.len().to_string();
    let head = [&b"EVAL"[..], script::DEPEND.body().as_bytes(), count.as_bytes()];
    let numbers = [
        config.tags.recheck_ms.as_millis().to_string(),
        limits.sources_max.to_string(),
        limits.dependents_max.to_string(),
        limits.depth_max.to_string(),
        LOOKED_MAX.to_string(),
    ];
    let tail = [prefix(caller), key].into_iter().chain(numbers.iter().map(String::as_bytes));
    OwnedArgs::new(head.into_iter().chain(sources.iter()).chain(tail))
}

fn prefix(caller: &Caller) -> &[u8] {
    caller.shared.config.tags.prefix.as_bytes()
}

fn too_many_sources(most: usize) -> Failure {
    Failure::Refused(format!("ERR larder: a key may depend on {most} keys at most (depend.sources_max)").into())
}

/// An integer as a reply.
fn integer_reply(number: u64) -> Vec<u8> {
    Reply::default().integer(number).take()
}
