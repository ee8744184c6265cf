//! Exclusive connections: borrowed for as long as a client's state on them lasts. The only file that names bb8.
//!
//! A pool belongs to one scope and one protocol, so that a borrowed connection is already the right user, in the right
//! database, and answers in the bytes that the client expects. There are two of each: one for transactions, scripts and
//! the like, which are short, and one for clients that wait (blocking commands, MONITOR, client-side tracking).
//!
//! bb8 does the bookkeeping (how many, who waits, what is idle for too long); the connection is our own
//! [`RawConnection`], whose [`RawConnection::is_broken`] decides whether it may come back. Checking at each check-out
//! costs a round trip and is off: a connection that has died while idle shows itself by an error before anything was
//! sent on it, or by one that is reported as what it is.

use super::breaker::Outcome;
use super::node::Node;
use super::raw::{self, Identity, RawConnection, RawError};
use crate::clock::Time;
use crate::port::Failure;
use bytes::Bytes;
use larder_protocol::scan::ReplyLimits;
use larder_protocol::shape::Protocol;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// A borrowed connection: goes back to its pool when dropped, or is closed if it is broken.
pub type Borrowed = bb8::PooledConnection<'static, Maker>;

/// Bounds of the pools of one scope and protocol.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Connections for short use (`pool.size_max`).
    pub size_max: u32,
    /// Connections for clients that wait (`pool.blocking_max`).
    pub blocking_max: u32,
    /// How long an unused connection is kept (`pool.idle_ms_max`).
    pub idle_max: Duration,
    /// Longest wait for a free connection (`pool.wait_ms_max`).
    pub wait_max: Duration,
    /// Longest wait for a new connection (`link.connect_ms_max`).
    pub connect_max: Duration,
    /// Bounds of replies.
    pub replies: ReplyLimits,
}

/// What a connection is borrowed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// For a moment.
    Short,
    /// For as long as a client waits.
    Waiting,
}

/// The pools of one scope.
pub struct Pools {
    short: [bb8::Pool<Maker>; 2],
    waiting: [bb8::Pool<Maker>; 2],
    limits: PoolLimits,
    troubles: Arc<Troubles>,
    generation: Arc<AtomicU64>,
    retired_at_us: AtomicU64,
}

/// How often all connections of a pool may be replaced because the upstream refuses writes.
const RETIRE_PAUSE: Duration = Duration::from_secs(5);

/// Makes connections of one scope and protocol.
pub struct Maker {
    node: Arc<Node>,
    identity: Identity,
    database: u32,
    protocol: Protocol,
    purpose: Use,
    limits: PoolLimits,
    troubles: Arc<Troubles>,
    generation: Arc<AtomicU64>,
}

/// Tells all that wait for a connection that one could not be made: bb8 itself would let them wait for their full time.
#[derive(Default)]
struct Troubles {
    last: Mutex<Option<Failure>>,
    news: Notify,
}

// === impl Pools ===

impl Pools {
    /// Pools without connections: the first use makes them, and from then on one for short use is kept ready.
    pub fn new(node: &Arc<Node>, identity: &Identity, database: u32, limits: PoolLimits) -> Self {
        let (troubles, generation): (Arc<Troubles>, Arc<AtomicU64>) = Default::default();
        let pool = |purpose, protocol, size| {
            let (node, identity) = (node.clone(), identity.clone());
            let (troubles, generation) = (troubles.clone(), generation.clone());
            let maker = Maker { node, identity, database, protocol, purpose, limits, troubles, generation };
            bb8::Pool::builder()
                .max_size(size)
                // A spare one: while a script keeps the server busy, a new connection cannot be set up, and SCRIPT KILL
                // must get through.
                .min_idle((purpose == Use::Short).then_some(1))
                .connection_timeout(limits.wait_max)
                .idle_timeout(Some(limits.idle_max))
                .max_lifetime(None)
                .test_on_check_out(false)
                .retry_connection(false)
                .build_unchecked(maker)
        };
        let both = |purpose, size| [pool(purpose, Protocol::Resp2, size), pool(purpose, Protocol::Resp3, size)];
        let (short, waiting) = (both(Use::Short, limits.size_max), both(Use::Waiting, limits.blocking_max));
        Self { short, waiting, limits, troubles, generation, retired_at_us: AtomicU64::new(0) }
    }

    /// Borrows a connection.
    ///
    /// # Errors
    /// Nothing has been sent: none was free in time, none could be made, or the upstream refuses the identity.
    pub async fn borrow(&self, purpose: Use, protocol: Protocol) -> Result<Borrowed, Failure> {
        let pools = if purpose == Use::Short { &self.short } else { &self.waiting };
        let pool = &pools[usize::from(protocol == Protocol::Resp3)];
        loop {
            let news = self.troubles.news.notified();
            let mut borrowed = tokio::select! {
                borrowed = pool.get_owned() => match borrowed {
                    Ok(borrowed) => borrowed,
                    Err(_) => return Err(Failure::PoolFull(self.limits.wait_max.as_millis() as u64)),
                },
                () = news => match self.troubles.last() {
                    Some(failure) => return Err(failure),
                    None => continue,
                },
            };
            // The server may have closed it while it was idle, or another have taken its place; nothing has been sent yet.
            if borrowed.is_alive() && borrowed.generation == self.generation.load(Ordering::Acquire) {
                return Ok(borrowed);
            }
            borrowed.condemn();
        }
    }

    /// Their bounds.
    pub fn limits(&self) -> &PoolLimits {
        &self.limits
    }

    /// Connections that were made until now are not lent out any more. Not again for [`RETIRE_PAUSE`]: an upstream may be a
    /// replica on purpose.
    pub fn retire(&self, now: Time) {
        let last = self.retired_at_us.load(Ordering::Acquire);
        let is_due = last == 0 || now.saturating_since(Time::from_micros(last)) >= RETIRE_PAUSE;
        let us = now.as_micros();
        let order = (Ordering::AcqRel, Ordering::Acquire);
        if is_due && self.retired_at_us.compare_exchange(last, us, order.0, order.1).is_ok() {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Connections in use and idle, short and waiting together.
    pub fn counts(&self) -> (u32, u32) {
        let states = self.short.iter().chain(&self.waiting).map(bb8::Pool::state);
        states.fold((0, 0), |(used, idle), s| (used + s.connections - s.idle_connections, idle + s.idle_connections))
    }
}

impl bb8::ManageConnection for Maker {
    type Connection = RawConnection;
    type Error = RawError;

    async fn connect(&self) -> Result<RawConnection, RawError> {
        let Some(ticket) = self.node.ticket() else {
            return Err(RawError::CircuitOpen).inspect_err(|error| self.tell(error));
        };
        let began = self.node.clock.now();
        // Before the name is resolved, so that what was made meanwhile counts as made before.
        let generation = self.generation.load(Ordering::Acquire);
        let connecting = async {
            let limits = &self.limits;
            let mut connection =
                RawConnection::connect(&self.node.endpoint, limits.connect_max, limits.replies).await?;
            raw::set_up(&mut connection, &self.identity, self.protocol, self.database).await?;
            if self.purpose == Use::Waiting {
                connection.learn_id().await?;
            }
            connection.generation = generation;
            Ok(connection)
        };
        let limit = self.limits.connect_max;
        let connected = tokio::time::timeout(limit, connecting).await;
        let connected = connected.unwrap_or(Err(RawError::ConnectTimeout(limit.as_millis())));
        let outcome = match &connected {
            Ok(_) => Outcome::Success,
            Err(error) => error.connect_cause().map_or(Outcome::ClientFault, Outcome::Failure),
        };
        self.node.record(ticket, outcome, self.node.clock.now().saturating_since(began));
        connected.inspect_err(|error| self.tell(error))
    }

    async fn is_valid(&self, _: &mut RawConnection) -> Result<(), RawError> {
        Ok(())
    }

    fn has_broken(&self, connection: &mut RawConnection) -> bool {
        connection.is_broken()
    }
}

// === impl Maker ===

impl Maker {
    fn tell(&self, error: &RawError) {
        let failure = match error {
            RawError::Refused(line) => Failure::Refused(line.clone()),
            error => {
                let node = &self.node;
                node.refusal().unwrap_or_else(|| node.unreachable(&error.to_string(), Duration::ZERO))
            }
        };
        *self.troubles.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        self.troubles.news.notify_waiters();
    }
}

// === impl Troubles ===

impl Troubles {
    fn last(&self) -> Option<Failure> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A connection that has just been made for a client's AUTH, and the upstream's own reply to it.
pub async fn try_identity(node: &Node, identity: &Identity, limits: PoolLimits) -> Result<Result<(), Bytes>, RawError> {
    let connecting = async {
        let mut connection = RawConnection::connect(&node.endpoint, limits.connect_max, limits.replies).await?;
        raw::set_up(&mut connection, identity, Protocol::Resp2, 0).await
    };
    let connected = tokio::time::timeout(limits.connect_max, connecting).await;
    match connected.unwrap_or(Err(RawError::ConnectTimeout(limits.connect_max.as_millis()))) {
        Ok(_) => Ok(Ok(())),
        Err(RawError::Refused(line)) => Ok(Err(line)),
        Err(error) => Err(error),
    }
}
