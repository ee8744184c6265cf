//! Tags on the embedded store: the same commands and replies, with the index beside the store, under its lock.
//!
//! Each command is one step here: an invalidation deletes all its keys at once.

use super::{lease_reply, list_reply, sorted_reply, too_many_listed, too_many_tags};
use crate::cache::Caller;
use crate::cache::reply::Reply;
use crate::embedded::Store;
use crate::l1::Cause;
use crate::origin::{Lease, TagsFull, UnixMillis};
use crate::port::Failure;
use crate::server::Backend;
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cache::{Condition, KeyList, Matching, TaggedSet, TagsCommand};
use larder_protocol::cursor::Cursor;
use larder_protocol::glob::{self, Case};
use larder_protocol::shape::Protocol;

const LEASE_LOST: &[u8] =
    b"LEASELOST the key or one of its tags was written or invalidated since, or the lease is over";
const FULL: &[u8] = b"OOM larder: the embedded store keeps no more tags or leases";

/// Executes a command about tags.
pub(super) fn execute(caller: &Caller, command: TagsCommand<'_>) -> Result<Vec<u8>, Failure> {
    let db = caller.database;
    with_store(caller, |store, now| match command {
        TagsCommand::Set(set) => store_tagged(store, db, &set, now),
        TagsCommand::Tag(key, tags) => {
            if !exists(store, db, key, now) {
                return Ok(Reply::default().integer(0).take());
            }
            let own = store.tags.tags(db, key);
            let mut fresh: Vec<&[u8]> = tags.iter().filter(|tag| !own.contains(tag)).collect();
            fresh.sort_unstable();
            fresh.dedup();
            let most = caller.shared.settings().tags.per_key_max;
            if own.len() + fresh.len() > most {
                return Err(too_many_tags(most));
            }
            if !store.tags.has_room(fresh.len()) {
                return Err(Failure::Refused(Bytes::from_static(FULL)));
            }
            Ok(Reply::default().integer(store.tags.put(db, key, fresh.into_iter()) as u64).take())
        }
        TagsCommand::Untag(key, tags) => {
            Ok(Reply::default().integer(store.tags.take(db, key, tags.iter()) as u64).take())
        }
        TagsCommand::Tags(key) if !exists(store, db, key, now) => Ok(Reply::default().array(0).take()),
        TagsCommand::Tags(key) => Ok(sorted_reply(store.tags.tags(db, key))),
        TagsCommand::Members { tag, count, cursor } => {
            let (next, page) = store.tags.members(db, tag, cursor, count);
            let page: Vec<Vec<u8>> = page.into_iter().map(<[u8]>::to_vec).collect();
            let live: Vec<&Vec<u8>> = page.iter().filter(|key| exists(store, db, key, now)).collect();
            let mut reply = Reply::default();
            reply.array(2).bulk(&next.to_string()).array(live.len());
            for key in live {
                reply.bytes(key);
            }
            Ok(reply.take())
        }
        TagsCommand::List(glob) => {
            let glob = glob.unwrap_or(b"*");
            let matching = store.tags.list(db).filter(|(tag, _)| glob::matches(glob, tag, Case::Sensitive));
            let listed: Vec<_> = matching
                .take(super::LISTED_MAX + 1)
                .map(|(tag, count)| (Bytes::copy_from_slice(tag), count as u64))
                .collect();
            if listed.len() > super::LISTED_MAX { Err(too_many_listed()) } else { Ok(list_reply(listed)) }
        }
        TagsCommand::Lease(key, tags) => lease(caller, store, key, tags.as_ref(), now),
    })
}

/// Deletes what has one, or all, of the tags: how many keys there were.
pub(in crate::cache) fn invalidate(caller: &Caller, matching: Matching, tags: &KeyList<'_>) -> u64 {
    let db = caller.database;
    with_store(caller, |store, now| {
        let keys = store.tags.invalidate(db, tags.iter(), matching == Matching::All);
        let dependents = store.because(Cause::TagBased, |store| store.follow(db, keys.iter().map(Vec::as_slice), now));
        let gone = keys.iter().filter(|key| {
            let unlink = OwnedArgs::new([b"UNLINK", &key[..]]);
            let reply = store.because(Cause::TagBased, |store| run(store, db, &unlink, now));
            Cursor::new(&reply).next_integer() == Some(1)
        });
        Ok(dependents + gone.count() as u64)
    })
    .unwrap_or(0)
}

/// Deletes keys, and their leases: how many there were.
pub(in crate::cache) fn unlink(caller: &Caller, keys: &[&[u8]], cause: Cause) -> Result<u64, Failure> {
    let db = caller.database;
    with_store(caller, |store, now| {
        keys.iter().for_each(|key| store.tags.end_lease(db, key));
        let dependents = store.because(cause, |store| store.follow(db, keys.iter().copied(), now));
        let words = std::iter::once(&b"UNLINK"[..]).chain(keys.iter().copied());
        let reply = store.because(cause, |store| run(store, db, &OwnedArgs::new(words), now));
        Ok(dependents + Cursor::new(&reply).next_integer().map_or(0, i64::unsigned_abs))
    })
}

pub(in crate::cache) fn with_store<T>(
    caller: &Caller,
    work: impl FnOnce(&mut Store, UnixMillis) -> Result<T, Failure>,
) -> Result<T, Failure> {
    match &caller.shared.backend {
        Backend::Embedded(embedded) => embedded.with(work),
        Backend::Upstream(_) => Err(Failure::Refused(Bytes::from_static(b"ERR larder: the scope has ended"))),
    }
}

fn store_tagged(store: &mut Store, db: u32, set: &TaggedSet<'_>, now: UnixMillis) -> Result<Vec<u8>, Failure> {
    if let Some(token) = set.lease {
        let void = exists(store, db, set.key, now) || !store.tags.holds(db, set.key, token, now);
        if void {
            return Err(Failure::Refused(Bytes::from_static(LEASE_LOST)));
        }
    }
    let tags: Vec<&[u8]> = set.tags.iter().flat_map(KeyList::iter).collect();
    if !store.tags.has_room(tags.len()) {
        return Err(Failure::Refused(Bytes::from_static(FULL)));
    }
    let words = [&b"SET"[..], set.key, set.value].into_iter().chain(set.options());
    let reply = run(store, db, &OwnedArgs::new(words), now);
    let is_null = reply.starts_with(b"_");
    let stored = match (reply.first(), set.gets, set.condition) {
        (Some(b'-'), _, _) => false,
        (_, false, _) => !is_null,
        (_, true, Condition::IfMissing) => is_null,
        (_, true, Condition::IfPresent | Condition::IfEqual(_)) => !is_null,
        (_, true, Condition::Always) => true,
    };
    if stored {
        let lives = exists(store, db, set.key, now);
        store.tags.replace(db, set.key, tags.into_iter().filter(|_| lives));
    }
    match reply.strip_prefix(b"-") {
        Some(line) => Err(Failure::Refused(Bytes::copy_from_slice(line.trim_ascii_end()))),
        None => Ok(reply),
    }
}

fn lease(
    caller: &Caller,
    store: &mut Store,
    key: &[u8],
    tags: Option<&KeyList<'_>>,
    now: UnixMillis,
) -> Result<Vec<u8>, Failure> {
    let db = caller.database;
    if exists(store, db, key, now) {
        return Ok(lease_reply("exists", None, -1));
    }
    let (token, ms) = (super::fresh_token(), caller.shared.settings().tags.lease_ms.as_millis() as u64);
    let tags = tags.into_iter().flat_map(KeyList::iter);
    match store.tags.lease(db, key, &token, tags, UnixMillis(now.0 + ms), now) {
        Ok(Lease::Leased) => Ok(lease_reply("leased", Some(&token), ms as i64)),
        Ok(Lease::Wait(ms)) => Ok(lease_reply("wait", None, ms as i64)),
        Err(TagsFull) => Err(Failure::Refused(Bytes::from_static(FULL))),
    }
}

pub(in crate::cache) fn exists(store: &mut Store, db: u32, key: &[u8], now: UnixMillis) -> bool {
    store.holds(db, key, now)
}

fn run(store: &mut Store, db: u32, request: &OwnedArgs, now: UnixMillis) -> Vec<u8> {
    store.execute(db, Protocol::Resp3, request.args(), now)
}
