//! Who wants to hear of invalidations: `CACHE SUBSCRIBE`.
//!
//! A feed belongs to one link (or to one database of the embedded store). Whatever makes L1 forget a key, or would if it
//! held it, is told to those who listen, before anything that came behind it in the link's stream: an application that
//! keeps what it has read through Larder, and drops what the feed names, is as coherent as L1.
//!
//! Told at least once; a client's own write may be told twice (by its reply, and by the upstream's push behind it).
//!
//! Bounds: a listener that leaves [`UNREAD_BYTES_MAX`] of messages unread is disconnected.

use crate::clients::{Client, ClientId};
use crate::l1::Cause;
use crate::port::Delivery;
use bytes::Bytes;
use larder_protocol::glob::{self, Case};
use larder_protocol::shape::Protocol;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of messages that may wait for one client: the server's own limit for subscribers.
pub const UNREAD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The first word of a message.
const WORD: &str = "cache-invalidate";

/// The listeners of one link.
#[derive(Debug, Default)]
pub struct Feed {
    /// Looked at without the lock: most feeds have none.
    count: AtomicUsize,
    listeners: Mutex<Vec<Listener>>,
}

#[derive(Debug)]
struct Listener {
    client: Arc<Client>,
    glob: Option<Bytes>,
}

/// A client's place in a feed, given up when this is dropped.
#[derive(Debug)]
pub struct Listening {
    feed: Arc<Feed>,
    client: ClientId,
    /// Which keys are told of; all without it.
    pub glob: Option<Bytes>,
}

// === impl Feed ===

impl Feed {
    /// From now on `client` hears of keys that match.
    pub fn listen(self: &Arc<Self>, client: &Arc<Client>, glob: Option<Bytes>) -> Listening {
        let mut listeners = self.lock();
        listeners.push(Listener { client: client.clone(), glob: glob.clone() });
        self.count.store(listeners.len(), Ordering::Release);
        Listening { feed: self.clone(), client: client.id, glob }
    }

    /// A key, or everything, has been forgotten.
    #[inline]
    pub fn tell(&self, key: Option<&[u8]>, cause: Cause) {
        if self.count.load(Ordering::Acquire) > 0 {
            self.tell_all(key, cause);
        }
    }

    fn tell_all(&self, key: Option<&[u8]>, cause: Cause) {
        for listener in self.lock().iter().filter(|listener| listener.wants(key)) {
            let port = &listener.client.port;
            let message = message(key, cause, listener.client.protocol());
            if port.message_bytes() + message.len() > UNREAD_BYTES_MAX {
                tracing::warn!(client = listener.client.id.0, "client closed: it does not read invalidations");
                port.kill();
            } else if port.leave(Delivery::Message(message)) {
                port.wake();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Listener ===

impl Listener {
    fn wants(&self, key: Option<&[u8]>) -> bool {
        match (&self.glob, key) {
            (Some(glob), Some(key)) => glob::matches(glob, key, Case::Sensitive),
            _ => true,
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut listeners = self.feed.lock();
        if let Some(at) = listeners.iter().position(|listener| listener.client.id == self.client) {
            listeners.swap_remove(at);
        }
        self.feed.count.store(listeners.len(), Ordering::Release);
    }
}

/// `cache-invalidate key cause`, the key null for everything; a push, whose first byte is put right for RESP2 later.
pub fn message(key: Option<&[u8]>, cause: Cause, protocol: Protocol) -> Bytes {
    let label = cause.label();
    let mut out = format!(">3\r\n${}\r\n{WORD}\r\n", WORD.len()).into_bytes();
    match (key, protocol) {
        (Some(key), _) => {
            out.extend_from_slice(format!("${}\r\n", key.len()).as_bytes());
            out.extend_from_slice(key);
            out.extend_from_slice(b"\r\n");
        }
        (None, Protocol::Resp3) => out.extend_from_slice(b"_\r\n"),
        (None, Protocol::Resp2) => out.extend_from_slice(b"$-1\r\n"),
    }
    out.extend_from_slice(format!("${}\r\n{label}\r\n", label.len()).as_bytes());
    out.into()
}
