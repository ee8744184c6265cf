//! A link's connection, from the first byte until it may carry requests: greeting, what the server is, tracking.
//!
//! A PING comes when the server is known: one that still loads its data greets like any other, and is not there yet. Then the
//! link joins those who are asked by other Larders, and looks whether keys depend on others (see [`crate::upstream::watch`]): in
//! this order, so that whatever is declared is either seen here or told of, and before tracking, so that the server does not
//! note the look. Until the end nothing is told by the connection, and what was left behind for stale answers may be used; then it
//! goes, first.

use super::{LinkHandle, LinkPurpose};
use crate::received::Received;
use crate::upstream::breaker::{ErrorKind, classify_error};
use crate::upstream::link::{Caching, LinkCore};
use crate::upstream::node::{Facts, Node};
use crate::upstream::raw::{self, RawConnection, RawError};
use crate::upstream::watch::{Before, Hearing};
use bytes::Bytes;
use larder_protocol::shape::Protocol;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Connects and sets up; tells the core what may be kept.
pub(super) async fn connect(
    handle: &Arc<LinkHandle>,
    core: &mut LinkCore,
    purpose: &LinkPurpose,
) -> Result<RawConnection, RawError> {
    let node = &handle.node;
    let times = handle.times();
    let mut connection = RawConnection::connect(&node.endpoint, times.connect_max, times.replies).await?;
    let resp3 = raw::set_up(&mut connection, &purpose.identity, Protocol::Resp3, purpose.database).await;
    let hello = match resp3 {
        Ok(hello) => hello,
        Err(RawError::Refused(line)) if speaks_no_resp3(&line) => {
            raw::set_up(&mut connection, &purpose.identity, Protocol::Resp2, purpose.database).await?
        }
        Err(error) => return Err(error),
    };
    learn(node, &mut connection, hello.clone()).await?;
    // A server that still loads its data, or has lost its master, greets like any other.
    let answer = connection.call(["PING"]).await?;
    if let Some(line) = answer.strip_prefix(b"-").map(|line| answer.slice_ref(line.trim_ascii_end()))
        && let ErrorKind::Failure(_) = classify_error(&line)
    {
        return Err(RawError::Refused(line));
    }
    // Who is not told of changes cannot watch, and is not to be waited for.
    if hello.is_some() {
        if let Some(peers) = &purpose.peers {
            peers.admit(handle, purpose.database).await;
        }
        match handle.watch.hearing() {
            Hearing::Told => look(handle, &mut connection).await?,
            Hearing::Unsure => handle.watch.turn_on(Before::Unknown),
            Hearing::Tracked => {}
        }
    }
    let caching = caching(handle, &mut connection, hello.is_some()).await?;
    if caching == Caching::Tracked && handle.watch.hearing() == Hearing::Tracked {
        // The last call of all: pushes that come from now on are read by the core.
        look(handle, &mut connection).await?;
    }
    core.connected(caching, node.table());
    let caches = match caching {
        Caching::Tracked => true,
        Caching::Untracked => core.may_keep_untracked(),
        Caching::NoPttl | Caching::Off => false,
    };
    handle.caches.store(caches, Ordering::Release);
    Ok(connection)
}

/// Turns the watch on if the index is there. (Who may not read it cannot watch either.)
async fn look(handle: &LinkHandle, connection: &mut RawConnection) -> Result<(), RawError> {
    let index = connection.call([b"EXISTS", &handle.watch.index[..]]).await?;
    if &index[..] == b":1\r\n" {
        handle.watch.turn_on(Before::Unknown);
    }
    Ok(())
}

fn speaks_no_resp3(line: &[u8]) -> bool {
    line.starts_with(b"NOPROTO") || line.starts_with(b"ERR unknown command")
}

/// Turns tracking on, and says once what follows if it cannot be.
async fn caching(handle: &LinkHandle, connection: &mut RawConnection, resp3: bool) -> Result<Caching, RawError> {
    if !handle.times().caches {
        return Ok(Caching::Off);
    }
    let reply = if resp3 { Some(connection.call(["CLIENT", "TRACKING", "ON"]).await?) } else { None };
    if reply.as_deref() == Some(b"+OK\r\n") {
        return Ok(Caching::Tracked);
    }
    let reason = reply.map_or("it does not speak RESP3".into(), |reply| Received::of(&reply).to_string());
    tracing::warn!(
        upstream = %handle.node.endpoint,
        %reason,
        "no client-side caching upstream: commands are forwarded, and nothing is cached unless l1.untracked_ttl_ms_max is set"
    );
    Ok(Caching::Untracked)
}

/// Asks the server for its commands, so that those of its modules and of its version are classified too.
async fn learn(node: &Node, connection: &mut RawConnection, hello: Option<Bytes>) -> Result<(), RawError> {
    let known = node.facts();
    if known.is_known && known.hello == hello {
        return Ok(());
    }
    let reply = connection.call(["COMMAND"]).await?;
    let table = match known.table.completed(&reply) {
        Ok(table) => Arc::new(table),
        Err(error) => {
            tracing::warn!(upstream = %node.endpoint, cause = %error, "COMMAND cannot be read: the built-in table is used");
            known.table.clone()
        }
    };
    let has_field_ttls = table.is_on_upstream("hpexpire");
    node.set_facts(Facts { table, hello, has_field_ttls, is_known: true });
    Ok(())
}
