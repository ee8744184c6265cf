//! Redirected invalidations: what `CLIENT TRACKING ON REDIRECT id` sends to another of Larder's clients.
//!
//! ```text
//!   client A, tracking ── requests ──► A's exclusive connection X ── CLIENT TRACKING ON REDIRECT Y ──► upstream
//!   client B, target   ◄── port ◄── fences on all links ◄── stand-in Y (RESP3) ◄── invalidations ────────┘
//! ```
//!
//! The server knows connections, and a client of Larder has none of its own that could be named to it. So each client
//! that others redirect to has a *stand-in* upstream: one RESP3 connection, whose number takes the place of the target's
//! in requests, and the target's takes its place in replies. What the stand-in is told reaches the target's port, and the
//! target's task gives it the form that the server would have given it (`client/apart.rs`).
//!
//! Invariants:
//! * The stand-in lives while its target lives and somebody redirects to it, and for a while after that. So what the
//!   server says of a target that has gone (`tracking-redir-broken`, `broken_redirect`) it says at the right time by
//!   itself: a target that takes its leave ([`Redirects::end`]) is gone for the upstream before it is answered.
//! * Invalidations reach the target in the order of the upstream, each when all links have caught up with it: key names
//!   in them have no database, so whoever acts upon one may read it in any scope.
//! * [`StandIn::settle`] is answered behind all that had come before.
//!
//! How it fails: a stand-in that is lost may have missed invalidations, so its target is disconnected, as the server's
//! end of it would have been; so is a target that leaves too much unread, or whose fence is not answered.
//!
//! Bounds: one connection for a target; bytes that wait for fences (`QUEUED_BYTES_MAX`, above which the upstream is not
//! read) and for the client (`UNREAD_BYTES_MAX`); silence (`link.dead_ms`).

mod io;
mod queue;

use self::io::Call;
use crate::clients::{Client, ClientId};
use crate::port::{Delivery, Failure, Port, Seq};
use crate::upstream::raw::Identity;
use crate::upstream::scope::Upstream;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// How the upstream's push of an invalidation begins, in RESP3; what follows is the array of keys, or null.
pub const INVALIDATE: &[u8] = b">2\r\n$10\r\ninvalidate\r\n";

/// The stand-ins of all clients that others redirect to.
#[derive(Debug, Default)]
pub struct Redirects {
    by_target: Mutex<BTreeMap<ClientId, Arc<StandIn>>>,
}

/// The connection upstream that stands for one target.
#[derive(Debug)]
pub struct StandIn {
    target: ClientId,
    upstream_id: u64,
    trackers: AtomicUsize,
    /// What the target asks of the task: one thing at a time, so this holds few.
    calls: mpsc::UnboundedSender<Call>,
}

/// A tracking client's hold on the stand-in that it redirects to.
#[derive(Debug)]
pub struct Lease {
    stand_in: Arc<StandIn>,
}

// === impl Redirects ===

impl Redirects {
    /// The stand-in of `target`, made as `identity` if there is none.
    ///
    /// If the target leaves meanwhile, the caller has to find that out afterwards and call [`Redirects::leave`].
    ///
    /// # Errors
    /// It cannot be made: the upstream is away, or refuses.
    pub async fn lease(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        identity: &Identity,
        target: &Arc<Client>,
    ) -> Result<Lease, Failure> {
        if let Some(lease) = self.lock().get(&target.id).map(StandIn::lease) {
            return Ok(lease);
        }
        if let Some(failure) = upstream.node().refusal() {
            return Err(failure);
        }
        let (made, making) = oneshot::channel();
        upstream.spawn(io::run(self.clone(), upstream.clone(), identity.clone(), target.clone(), made));
        let stand_in = making.await.unwrap_or_else(|_| Err(Failure::Down("the stand-in has ended".into())))?;
        let mut by_target = self.lock();
        let kept = by_target.entry(target.id).or_insert_with(|| stand_in.clone());
        if !Arc::ptr_eq(kept, &stand_in) {
            // Another was quicker. If the task has ended already, it need not be told.
            let _: Result<(), _> = stand_in.calls.send(Call::Leave(None));
        }
        Ok(kept.lease())
    }

    /// The stand-in of a client, if others redirect to it.
    pub fn of(&self, target: ClientId) -> Option<Arc<StandIn>> {
        self.lock().get(&target).cloned()
    }

    /// True if nobody redirects.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// A client has gone: so has its stand-in, soon.
    pub fn leave(&self, target: ClientId) {
        if let Some(stand_in) = self.of(target) {
            // If the task has ended already, it need not be told.
            let _: Result<(), _> = stand_in.calls.send(Call::Leave(None));
        }
    }

    /// A client goes: returns when its stand-in is gone for the upstream, too.
    pub async fn end(&self, target: ClientId) {
        let Some(stand_in) = self.of(target) else { return };
        let (gone, going) = oneshot::channel();
        if stand_in.calls.send(Call::Leave(Some(gone))).is_ok() {
            // An answer that does not come any more is one, too.
            let _: Result<(), _> = going.await;
        }
    }

    /// Targets among clients for which `is_leaving` holds.
    pub fn targets(&self, is_leaving: impl Fn(ClientId) -> bool) -> Vec<ClientId> {
        self.lock().keys().copied().filter(|target| is_leaving(*target)).collect()
    }

    /// Takes `stand_in` out if nobody redirects to it any more.
    fn retire(&self, stand_in: &Arc<StandIn>) -> bool {
        let mut by_target = self.lock();
        let is_idle = stand_in.trackers.load(Ordering::Acquire) == 0;
        if is_idle && by_target.get(&stand_in.target).is_some_and(|s| Arc::ptr_eq(s, stand_in)) {
            by_target.remove(&stand_in.target);
        }
        is_idle
    }

    /// Takes `stand_in` out: it has ended.
    fn remove(&self, stand_in: &Arc<StandIn>) {
        let mut by_target = self.lock();
        if by_target.get(&stand_in.target).is_some_and(|s| Arc::ptr_eq(s, stand_in)) {
            by_target.remove(&stand_in.target);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClientId, Arc<StandIn>>> {
        self.by_target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl StandIn ===

impl StandIn {
    /// Leaves [`Delivery::Fenced`] with `seq` in the target's `port` behind every invalidation that the upstream had sent
    /// before.
    pub fn settle(&self, port: &Arc<Port>, seq: Seq) {
        if self.calls.send(Call::Settle(port.clone(), seq)).is_err() && port.leave(Delivery::Fenced(seq)) {
            port.wake();
        }
    }

    fn lease(self: &Arc<Self>) -> Lease {
        self.trackers.fetch_add(1, Ordering::AcqRel);
        Lease { stand_in: self.clone() }
    }
}

// === impl Lease ===

impl Lease {
    /// The number by which the upstream knows the stand-in.
    pub fn upstream_id(&self) -> u64 {
        self.stand_in.upstream_id
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stand_in.trackers.fetch_sub(1, Ordering::AcqRel);
    }
}
