//! Tags: which keys have which, and everything about them but the end of those that have one.
//!
//! The index lives upstream, under the reserved prefix `tags.prefix` (`larder:` here), in each database its own:
//!
//! | key | type | what it holds |
//! |---|---|---|
//! | `larder:t:<tag>` | set | the keys that have the tag |
//! | `larder:k:<key>` | set | the tags that the key has |
//! | `larder:tags` | set | the tags that some key has |
//! | `larder:due` | sorted set | tagged keys, by when to look whether they are still there |
//! | `larder:jobs` | sorted set | invalidations under way, by when somebody else may take them up |
//! | `larder:j:<id>` | set | keys that are set aside to be deleted |
//! | `larder:jobtags` | hash | of which tag an invalidation under way has set all aside |
//! | `larder:o:<id>` | set | keys that this deletion has begun with, and which stay |
//! | `larder:l:<key>` | hash, expires | the token of a lease, and the tags' versions at its beginning |
//! | `larder:v:<tag>` | string, expires | the last invalidation of the tag, for as long as a lease could ask |
//! | `larder:sweeper` | string, expires | which Larder sweeps |
//!
//! Invariants, each kept by one script at a time (see [`script`]), so at every moment:
//! * A key stands in `t:<tag>` or is set aside in a job from the moment at which its value got the tag until the value is
//!   replaced by `CACHE SET` or the key is gone. Whoever writes it plainly changes nothing of that: tags are its name's.
//! * What is set aside are exactly the values of before: `CACHE SET` takes its key out of all jobs.
//! * Who invalidates a tag that others are about to have invalidated finds nothing under the tag, but what they have set aside:
//!   it deletes that with them before it says that nobody reads it.
//! * Each tagged key stands in `due`, and is looked at after its end and at least every `tags.recheck_ms`: the index is as
//!   large as the tagged keys that live, and those that have gone since they were looked at.
//!
//! Dependencies stand beside it: see [`super::depend`].
//!
//! The embedded store has the same in memory ([`crate::origin::TagIndex`]).

pub(super) mod embedded;
pub(super) mod invalidate;
mod pace;
pub(in crate::cache) mod script;
pub(crate) mod sweep;

use self::script::Script;
use super::Caller;
use super::reply::Reply;
use crate::mutation::{Mutation, is_planted};
use crate::port::Failure;
use crate::upstream::errand::Errand;
use crate::upstream::link::OpKind;
use crate::upstream::scope::{Scope, Upstream};
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cache::{Condition, KeyList, TaggedSet, TagsCommand};
use larder_protocol::cursor::Cursor;
use std::sync::Arc;

/// Tags that one reply to TAGLIST can have.
pub(super) const LISTED_MAX: usize = 100_000;
/// Tags that are asked for at a time.
const LIST_STEP: &[u8] = b"256";

/// A caller's way to the index.
struct Index<'a> {
    caller: &'a Caller,
    upstream: &'a Arc<Upstream>,
    scope: &'a Arc<Scope>,
    errand: Errand,
}

/// Executes a command about tags; the reply in RESP3.
pub(super) async fn execute(caller: &Caller, command: TagsCommand<'_>) -> Result<Vec<u8>, Failure> {
    check_count(caller, &command)?;
    if let TagsCommand::Set(_) = command {
        caller.may_use(&caller.table(), "SET")?;
    }
    let (Some(upstream), Some(scope)) = (caller.upstream(), &caller.scope) else {
        return embedded::execute(caller, command);
    };
    let mut index = Index { caller, upstream, scope, errand: Errand::default() };
    match command {
        TagsCommand::Set(set) => index.set(&set).await,
        TagsCommand::Tag(key, tags) => index.tag(key, &tags).await,
        TagsCommand::Untag(key, tags) => index.untag(key, &tags).await,
        TagsCommand::Tags(key) => index.tags(key).await,
        TagsCommand::Members { tag, count, cursor } => index.members(tag, count, cursor).await,
        TagsCommand::List(glob) => index.list(glob.unwrap_or(b"*")).await,
        TagsCommand::Lease(key, tags) => index.lease(key, tags.as_ref()).await,
    }
}

/// A request may not name more tags than a key may have.
fn check_count(caller: &Caller, command: &TagsCommand<'_>) -> Result<(), Failure> {
    let count = match command {
        TagsCommand::Set(TaggedSet { tags: Some(tags), .. })
        | TagsCommand::Tag(_, tags)
        | TagsCommand::Untag(_, tags)
        | TagsCommand::Lease(_, Some(tags)) => tags.len(),
        _ => 0,
    };
    let most = caller.shared.settings().tags.per_key_max;
    if count > most { Err(too_many_tags(most)) } else { Ok(()) }
}

pub(super) fn too_many_tags(most: usize) -> Failure {
    Failure::Refused(format!("ERR larder: a key may have {most} tags at most (tags.per_key_max)").into())
}

/// A token that nobody can guess.
pub(in crate::cache) fn fresh_token() -> String {
    format!("{:016x}{:016x}", crate::server::seed(), crate::server::seed())
}

/// The reply to LEASE.
pub(super) fn lease_reply(state: &str, token: Option<&str>, wait_ms: i64) -> Vec<u8> {
    let mut reply = Reply::default();
    reply.map(3).bulk("state").bulk(state).bulk("token");
    match token {
        Some(token) => reply.bulk(token),
        None => reply.null(),
    };
    reply.bulk("ms").integer(wait_ms).take()
}

/// The reply to TAGLIST.
pub(super) fn list_reply(mut tags: Vec<(Bytes, u64)>) -> Vec<u8> {
    tags.sort_unstable();
    tags.dedup_by(|a, b| a.0 == b.0);
    let mut reply = Reply::default();
    reply.map(tags.len());
    for (tag, count) in &tags {
        reply.bytes(tag).integer(*count);
    }
    reply.take()
}

pub(super) fn too_many_listed() -> Failure {
    let line = format!("ERR larder: more than {LISTED_MAX} tags match; ask for fewer with MATCH");
    Failure::Refused(line.into())
}

/// Strings in the order of their bytes, as an array.
pub(in crate::cache) fn sorted_reply(mut names: Vec<&[u8]>) -> Vec<u8> {
    names.sort_unstable();
    let mut reply = Reply::default();
    reply.array(names.len());
    for name in names {
        reply.bytes(name);
    }
    reply.take()
}

// === impl Index ===

impl<'a> Index<'a> {
    async fn set(&mut self, set: &TaggedSet<'_>) -> Result<Vec<u8>, Failure> {
        let mut tags: Vec<&[u8]> = set.tags.iter().flat_map(KeyList::iter).collect();
        if is_planted(Mutation::TagLost) {
            tags.truncate(1);
        }
        let (condition, equal): (&[u8], &[u8]) = match set.condition {
            Condition::Always => (b"always", b""),
            Condition::IfMissing => (b"nx", b""),
            Condition::IfPresent => (b"xx", b""),
            Condition::IfEqual(value) => (b"ifeq", value),
        };
        let (recheck, count) = (self.recheck_ms(), tags.len().to_string());
        let gets: &[u8] = if set.gets { b"1" } else { b"0" };
        let lease = set.lease.unwrap_or_default();
        let mut args = vec![set.value, lease, recheck.as_bytes(), count.as_bytes(), gets, condition, equal];
        args.extend(&tags);
        args.extend(set.options());
        self.write(&script::SET, set.key, &args).await.map(|reply| reply.to_vec())
    }

    async fn tag(&mut self, key: &[u8], tags: &KeyList<'_>) -> Result<Vec<u8>, Failure> {
        let (recheck, most) = (self.recheck_ms(), self.caller.shared.settings().tags.per_key_max.to_string());
        let mut args = vec![recheck.as_bytes(), most.as_bytes()];
        args.extend(tags.iter());
        self.write(&script::TAG, key, &args).await.map(|reply| reply.to_vec())
    }

    async fn untag(&mut self, key: &[u8], tags: &KeyList<'_>) -> Result<Vec<u8>, Failure> {
        let args: Vec<&[u8]> = tags.iter().collect();
        self.write(&script::UNTAG, key, &args).await.map(|reply| reply.to_vec())
    }

    async fn tags(&mut self, key: &[u8]) -> Result<Vec<u8>, Failure> {
        let exists = self.read(&[b"EXISTS", key]).await?;
        if Cursor::new(&exists).next_integer() != Some(1) {
            return Ok(Reply::default().array(0).take());
        }
        let record = self.name(b"k:", key);
        let reply = self.read(&[b"SMEMBERS", &record]).await?;
        let mut cursor = Cursor::new(&reply);
        let count = cursor.next_count().unwrap_or(0);
        Ok(sorted_reply((0..count).map_while(|_| cursor.next_bytes()).collect()))
    }

    async fn members(&mut self, tag: &[u8], count: usize, cursor: u64) -> Result<Vec<u8>, Failure> {
        let (cursor, count) = (cursor.to_string(), count.to_string());
        let args = [self.prefix(), tag, cursor.as_bytes(), count.as_bytes()];
        let (errand, link) = (&mut self.errand, &self.scope.link);
        script::MEMBERS.run(errand, link, OpKind::Effect, None, &args).await.map(|reply| reply.to_vec())
    }

    async fn list(&mut self, glob: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut listed = Vec::new();
        let mut cursor = Bytes::from_static(b"0");
        let registry = self.name(b"tags", b"");
        loop {
            let step = self.read(&[b"SSCAN", &registry, &cursor, b"MATCH", glob, b"COUNT", LIST_STEP]).await?;
            let mut items = Cursor::new(&step);
            items.next_count();
            cursor = Bytes::copy_from_slice(items.next_bytes().unwrap_or(b"0"));
            let count = items.next_count().unwrap_or(0);
            let tags: Vec<Bytes> =
                (0..count).map_while(|_| items.next_bytes()).map(|tag| step.slice_ref(tag)).collect();
            let asked: Vec<(OpKind, OwnedArgs)> = tags
                .iter()
                .map(|tag| (OpKind::Read, OwnedArgs::new([&b"SCARD"[..], &self.name(b"t:", tag)])))
                .collect();
            for (tag, size) in tags.into_iter().zip(self.errand.ask_each(&self.scope.link, &asked).await?) {
                let size = Cursor::new(&size?).next_integer().unwrap_or(0);
                if size > 0 {
                    listed.push((tag, size.unsigned_abs()));
                }
            }
            if listed.len() > LISTED_MAX {
                return Err(too_many_listed());
            }
            if cursor == "0" {
                return Ok(list_reply(listed));
            }
        }
    }

    async fn lease(&mut self, key: &[u8], tags: Option<&KeyList<'_>>) -> Result<Vec<u8>, Failure> {
        let (token, ms) = (fresh_token(), self.caller.shared.settings().tags.lease_ms.as_millis().to_string());
        let mut args = vec![token.as_bytes(), ms.as_bytes()];
        args.extend(tags.iter().flat_map(|tags| tags.iter()));
        // It changes nothing of the key itself: what is soft stays so for other readers.
        let reply = self.run(&script::LEASE, OpKind::Effect, key, &args).await?;
        let mut cursor = Cursor::new(&reply);
        cursor.next_count();
        let state = cursor.next_bytes().unwrap_or(b"wait").to_owned();
        let ms = cursor.next_integer().unwrap_or(-1);
        let token = (state == b"leased").then_some(&token[..]);
        Ok(lease_reply(&String::from_utf8_lossy(&state), token, ms))
    }

    /// Runs a script that changes `key`; returns when all links of the database have heard of it.
    async fn write(&mut self, script: &Script, key: &[u8], args: &[&[u8]]) -> Result<Bytes, Failure> {
        let table = self.upstream.node().table();
        // Both have their keys in the same place.
        let kind = table.lookup(b"evalsha").map_or(OpKind::Effect, |command| OpKind::Write(command.id));
        self.run(script, kind, key, args).await
    }

    async fn run(&mut self, script: &Script, kind: OpKind, key: &[u8], args: &[&[u8]]) -> Result<Bytes, Failure> {
        self.caller.shared.tags_were_used();
        let mut all = vec![self.prefix()];
        all.extend(args);
        let reply = script.run(&mut self.errand, &self.scope.link, kind, Some(key), &all).await?;
        self.fence().await?;
        Ok(reply)
    }

    async fn read(&mut self, words: &[&[u8]]) -> Result<Bytes, Failure> {
        self.errand.call(&self.scope.link, &[(OpKind::Read, &OwnedArgs::new(words))]).await
    }

    /// What scripts have changed beside their keys is told by pushes behind their replies, and on other users' links.
    async fn fence(&mut self) -> Result<(), Failure> {
        self.errand.settle(self.scope.link.watch()).await?;
        let mut scopes = self.upstream.others(self.scope, Some(self.scope.database));
        scopes.push(self.scope.clone());
        self.errand.fence(&scopes).await
    }

    fn prefix(&self) -> &'a [u8] {
        self.caller.shared.config.tags.prefix.as_bytes()
    }

    fn name(&self, kind: &[u8], rest: &[u8]) -> Vec<u8> {
        [self.prefix(), kind, rest].concat()
    }

    fn recheck_ms(&self) -> String {
        self.caller.shared.settings().tags.recheck_ms.as_millis().to_string()
    }
}
