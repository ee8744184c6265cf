//! Subscriptions: one upstream subscription for each channel, pattern or shard channel, fanned out here.
//!
//! ```text
//!   clients ── subscribe, unsubscribe, leave ──►  HubCore  ── SUBSCRIBE, UNSUBSCRIBE, PING ──► upstream
//!   ports   ◄── messages, once the scope's link has caught up ──┤  ◄── confirmations, messages ──┘
//!                                   links ◄── fences ───────────┘
//! ```
//!
//! Ten thousand subscribers of one channel are one subscription upstream, on a connection of the hub's own: the link must
//! not fall under the server's output limit for subscribers, and its stream is no place for messages. There is one hub
//! for each user, because rights to channels are a user's; subscriptions have no database.
//!
//! What a client can rely on is what it could rely on with the server itself:
//! * A subscription begins at a confirmation that was asked for after the client had asked: what was published before is
//!   never delivered, even if the channel was held already for somebody else. (A channel that is held is subscribed to
//!   once more, which the server answers without an effect; many that ask at once share one such question.)
//! * All names of one command begin together, or none does.
//! * From then on each message comes once, in the order of the upstream's stream, until [`Hub::unsubscribe`] returns.
//! * A message reaches a client only when the link of the client's scope has caught up with it (the fence), so that
//!   who acts upon a message does not read what is older than it.
//!
//! How it fails: when the connection is lost, messages may have been missed; who was subscribed through it is
//! disconnected, as the server's end would have done. The next subscription connects anew. A link that does not answer a
//! fence, and a client that leaves too many messages unread, cost the clients concerned their connection, too.
//!
//! Bounds: calls that wait ([`HubSettings::waiting_max`]), subscriptions ([`HubSettings::subscriptions_max`]), bytes that
//! wait for a fence ([`HubSettings::queued_bytes_max`], above which the connection is not read), bytes of messages that
//! wait for one client ([`HubSettings::message_bytes_max`]).

mod core;
mod io;
mod queue;
#[cfg(test)]
mod simulation;

use self::core::{CoreLimits, Subscriber};
use self::io::Inner;
use crate::clients::Client;
use crate::port::Failure;
use crate::upstream::backoff::BackoffSettings;
use crate::upstream::node::Node;
use crate::upstream::raw::Identity;
use crate::upstream::scope::Scope;
use bytes::Bytes;
use larder_protocol::scan::ReplyLimits;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

pub use self::core::HubCounts;

/// What can be subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `SUBSCRIBE`
    Channel,
    /// `PSUBSCRIBE`
    Pattern,
    /// `SSUBSCRIBE`
    Shard,
}

/// What one client is subscribed to.
#[derive(Debug, Default)]
pub struct Subscriptions {
    sets: [BTreeSet<Bytes>; 3],
}

/// Bounds and times of a hub.
#[derive(Clone, Copy, Debug)]
pub struct HubSettings {
    /// Longest wait for a connection, its set-up included.
    pub connect_max: Duration,
    /// A connection that owes an answer and sends nothing for so long is lost.
    pub dead_after: Duration,
    /// A connection that sent nothing for so long is asked for a sign of life.
    pub ping_after: Duration,
    /// A connection without subscriptions is closed after this.
    pub idle_max: Duration,
    /// How long subscriptions fail at once after a connection could not be made or was lost soon.
    pub backoff: BackoffSettings,
    /// Bounds of what the upstream sends.
    pub replies: ReplyLimits,
    /// A client for which more bytes of messages wait is disconnected.
    pub message_bytes_max: usize,
    /// While more bytes of messages wait for the fence of one scope, nothing is read from the upstream.
    pub queued_bytes_max: usize,
    /// Most calls that may wait for the upstream's confirmation.
    pub waiting_max: usize,
    /// Most subscriptions of all clients together.
    pub subscriptions_max: usize,
    /// Seed of the back-off.
    pub seed: u64,
}

/// The subscriptions of one user's clients.
pub struct Hub {
    inner: Arc<Inner>,
}

/// How many receive a message: clients here, and connections as the upstream counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receivers {
    /// Subscriptions of this hub upstream: what `PUBLISH` and `PUBSUB NUMSUB` count there for all clients together.
    pub upstream: usize,
    /// Clients here; one that hears of a message twice, by a channel and a pattern, counts twice, as the server counts.
    pub here: usize,
}

// === impl Kind ===

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Channel, Self::Pattern, Self::Shard];

    /// The command that subscribes.
    pub fn subscribe_command(self) -> &'static str {
        ["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"][self.index()]
    }

    /// The command that unsubscribes.
    pub fn unsubscribe_command(self) -> &'static str {
        ["UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"][self.index()]
    }

    /// The first word of a confirmation.
    pub fn subscribe_word(self) -> &'static str {
        ["subscribe", "psubscribe", "ssubscribe"][self.index()]
    }

    /// The first word of the confirmation that it has ended.
    pub fn unsubscribe_word(self) -> &'static str {
        ["unsubscribe", "punsubscribe", "sunsubscribe"][self.index()]
    }

    /// The first word of a message.
    pub fn message_word(self) -> &'static str {
        ["message", "pmessage", "smessage"][self.index()]
    }

    fn index(self) -> usize {
        match self {
            Self::Channel => 0,
            Self::Pattern => 1,
            Self::Shard => 2,
        }
    }
}

// === impl Subscriptions ===

impl Subscriptions {
    /// Channels, patterns and shard channels together.
    pub fn count(&self) -> usize {
        self.sets.iter().map(BTreeSet::len).sum()
    }

    /// How many of one kind.
    pub fn count_of(&self, kind: Kind) -> usize {
        self.sets[kind.index()].len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// True if this is among them.
    pub fn contains(&self, kind: Kind, name: &[u8]) -> bool {
        self.sets[kind.index()].contains(name)
    }

    /// Adds one; false if it was there.
    pub fn insert(&mut self, kind: Kind, name: &[u8]) -> bool {
        !self.contains(kind, name) && self.sets[kind.index()].insert(Bytes::copy_from_slice(name))
    }

    /// Takes one out; false if it was not there.
    pub fn remove(&mut self, kind: Kind, name: &[u8]) -> bool {
        self.sets[kind.index()].remove(name)
    }

    /// Those of one kind, in the order of their bytes.
    pub fn iter(&self, kind: Kind) -> impl ExactSizeIterator<Item = &Bytes> {
        self.sets[kind.index()].iter()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.sets = Default::default();
    }
}

// === impl HubSettings ===

impl Default for HubSettings {
    /// The server's own limit for subscribers (32 MB), and room for a million subscriptions.
    fn default() -> Self {
        Self {
            connect_max: Duration::from_secs(2),
            dead_after: Duration::from_secs(5),
            ping_after: Duration::from_secs(15),
            idle_max: Duration::from_secs(60),
            backoff: BackoffSettings::default(),
            replies: ReplyLimits::default(),
            message_bytes_max: 32 * 1024 * 1024,
            queued_bytes_max: 32 * 1024 * 1024,
            waiting_max: 100_000,
            subscriptions_max: 1_000_000,
            seed: 0,
        }
    }
}

// === impl Hub ===

impl Hub {
    /// A hub for the clients of `identity`. Its task runs on `runtime` and ends with the hub; it connects when somebody
    /// subscribes.
    pub fn new(node: Arc<Node>, identity: Identity, settings: HubSettings, runtime: Handle) -> Arc<Self> {
        let limits = CoreLimits {
            message_bytes_max: settings.message_bytes_max,
            queued_bytes_max: settings.queued_bytes_max,
            waiting_max: settings.waiting_max,
            subscriptions_max: settings.subscriptions_max,
        };
        let inner = Inner::new(node, limits);
        runtime.spawn(io::run(inner.clone(), identity, settings));
        Arc::new(Self { inner })
    }

    /// Subscribes a client to `name`: see [`Hub::subscribe_all`].
    ///
    /// # Errors
    /// As [`Hub::subscribe_all`].
    pub async fn subscribe(
        self: &Arc<Self>,
        client: &Arc<Client>,
        scope: &Arc<Scope>,
        kind: Kind,
        name: &[u8],
    ) -> Result<(), Failure> {
        self.subscribe_all(client, scope, kind, &[name]).await
    }

    /// Subscribes a client of `scope` to all of `names`, as one command of the client does, and returns when the upstream
    /// has confirmed them all. Messages that follow are left in the client's port, fenced on the scope's link.
    ///
    /// The caller must not take from the port while it waits, must write its confirmations first when it goes on, and
    /// then what the port holds. If it stops waiting, nothing new is subscribed to.
    ///
    /// # Errors
    /// None of `names` that is new is subscribed to then. [`Failure::Refused`] holds the upstream's line word for word;
    /// [`Failure::Down`] if there is no connection, or it was lost; [`Failure::Full`] if too many wait.
    pub async fn subscribe_all(
        self: &Arc<Self>,
        client: &Arc<Client>,
        scope: &Arc<Scope>,
        kind: Kind,
        names: &[&[u8]],
    ) -> Result<(), Failure> {
        if let Some(failure) = self.inner.node.refusal() {
            return Err(failure);
        }
        let subscriber = Subscriber {
            client: client.id,
            port: client.port.clone(),
            scope_id: io::id_of(scope),
            scope: scope.clone(),
        };
        let Some((pending, answer)) = self.inner.subscribe(subscriber, kind, names)? else { return Ok(()) };
        let mut unfinished = Unfinished { inner: &self.inner, client, kind, pending: Some(pending) };
        let answer = answer.await;
        unfinished.pending = None;
        answer.unwrap_or_else(|_| Err(Failure::Down("the subscription hub has ended".into())))
    }

    /// Ends a subscription; the last one here ends it upstream. No message of it is left in the client's port after this
    /// has returned; those that are there came before.
    ///
    /// To be as exact as the server, where what was published before is still delivered, call [`Hub::settle`] first.
    pub fn unsubscribe(&self, client: &Client, kind: Kind, name: &[u8]) {
        self.inner.with(|core, now| core.unsubscribe(client.id, kind, name, now));
    }

    /// The client is about to end these subscriptions: from now on it does not count as a receiver.
    pub fn announce_unsubscribe(&self, client: &Client, kind: Kind, names: &[Vec<u8>]) {
        self.inner.with(|core, _| names.iter().for_each(|name| core.announce(client.id, kind, name)));
    }

    /// Ends subscriptions as [`Hub::unsubscribe`], and returns when those that nobody else here has have ended upstream, too:
    /// whoever publishes there then does not count them.
    pub async fn unsubscribe_all(&self, client: &Client, kind: Kind, names: &[Vec<u8>]) {
        if let Some(answer) = self.inner.unsubscribe_all(client.id, kind, names) {
            // As in [`Hub::settle`].
            let _: Result<_, oneshot::error::RecvError> = answer.await;
        }
    }

    /// Returns when all that the upstream had published to the client's subscriptions before this call is in its port, or
    /// the client has been killed. At once if it has none.
    pub async fn settle(&self, client: &Client) {
        if let Some(answer) = self.inner.settle(client.id) {
            // An answer that does not come any more is one, too: what was to be waited for is no longer there.
            let _: Result<_, oneshot::error::RecvError> = answer.await;
        }
    }

    /// The client has gone, or has given all up: ends all its subscriptions.
    pub fn leave(&self, client: &Client, subscriptions: &mut Subscriptions) {
        subscriptions.clear();
        self.inner.with(|core, now| core.leave(client.id, now));
    }

    /// The client is in another scope: from now on its messages, those included that wait already, are fenced on that
    /// scope's link.
    pub fn moved(&self, client: &Arc<Client>, scope: &Arc<Scope>) {
        self.inner.with(|core, _| core.moved(client.id, io::id_of(scope), scope));
        self.inner.wake();
    }

    /// Who would receive a message that is published on `channel`: by the channel itself, and by each pattern that matches.
    pub fn receivers(&self, channel: &[u8]) -> Receivers {
        self.inner.with(|core, _| core.receivers(channel))
    }

    /// Who is subscribed to exactly this.
    pub fn subscribers(&self, kind: Kind, name: &[u8]) -> Receivers {
        self.inner.with(|core, _| core.subscribers(kind, name))
    }

    /// What the hub holds and has done.
    pub fn counts(&self) -> HubCounts {
        self.inner.with(|core, _| core.counts())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.inner.close();
    }
}

/// A call that its caller may stop waiting for.
struct Unfinished<'a> {
    inner: &'a Inner,
    client: &'a Client,
    kind: Kind,
    pending: Option<core::Pending>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        self.inner.forget(pending.ticket);
        self.inner.with(|core, now| {
            core.cancel(pending.ticket, now);
            // The answer may have been on its way already.
            pending.names.iter().for_each(|name| core.unsubscribe(self.client.id, self.kind, name, now));
        });
    }
}
