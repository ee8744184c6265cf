//! CORE of the hub: who wants what, what the upstream holds, and which messages wait for which fence.
//!
//! Nothing here does I/O or reads a clock. What is to be sent is in [`HubCore::outgoing`]; [`HubCore::frame`] takes what
//! came back, in order; [`HubCore::take_fences`] tells on which scopes a fence is to be asked for, and
//! [`HubCore::fenced`] that one was answered. Messages go into the clients' [`Port`]s; calls that wait have a
//! [`Ticket`], under which [`HubCore::take_answers`] tells their end.
//!
//! Invariants:
//! * `expected` holds exactly the requests whose answer has not come, in the order in which they were written.
//! * At most one SUBSCRIBE or UNSUBSCRIBE of a topic is under way; what is wanted by then is looked at when it is
//!   answered. When nothing is under way, the topics held upstream are those that somebody here wants (or whose
//!   UNSUBSCRIBE was refused).
//! * A client is a member of a topic from the frame on that confirmed the last name of its call; a message is delivered to
//!   who was a member when it came and still is when its fence is answered.
//! * At most one fence of a scope is under way; it covers the entries that were there when it was asked for.
//! * A client's messages wait in one queue, that of its scope; when it moves they move with it.

use super::queue::{Entry, Message, Queue};
use super::{Kind, Receivers};
use crate::clients::ClientId;
use crate::clock::Time;
use crate::outgoing::Outgoing;
use crate::port::{Delivery, Failure, Port, Seq};
use crate::received::Received;
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cursor::Cursor;
use larder_protocol::glob::{self, Case};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// Bounds of the core: see [`super::HubSettings`].
#[derive(Clone, Copy, Debug)]
pub(super) struct CoreLimits {
    pub(super) message_bytes_max: usize,
    pub(super) queued_bytes_max: usize,
    pub(super) waiting_max: usize,
    pub(super) subscriptions_max: usize,
}

/// A call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(u64);

/// Tells scopes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ScopeId(pub(super) usize);

/// Who subscribes.
#[derive(Clone)]
pub(super) struct Subscriber<S> {
    pub(super) client: ClientId,
    pub(super) port: Arc<Port>,
    pub(super) scope_id: ScopeId,
    pub(super) scope: S,
}

/// A subscription that is to be confirmed.
pub(super) struct Pending {
    pub(super) ticket: Ticket,
    /// The names that are new to the client.
    pub(super) names: Vec<Bytes>,
}

/// How a call ended.
pub(super) type Answer = (Ticket, Result<(), Failure>);

/// The upstream has sent what no upstream sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}: {received}")]
pub(super) struct Violation {
    fault: Fault,
    received: Received,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("an answer that nothing had asked for")]
    Unexpected,
    #[error("a message that makes no sense")]
    Message,
}

/// What a hub holds and has done. The latter only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubCounts {
    /// Subscribed clients.
    pub clients: usize,
    /// Their subscriptions.
    pub subscriptions: usize,
    /// Subscriptions upstream.
    pub topics: usize,
    /// Calls that wait for a confirmation.
    pub waiting: usize,
    /// Bytes of messages that wait for fences.
    pub queued_bytes: usize,
    /// Messages that came.
    pub messages: u64,
    /// Messages that were left for clients.
    pub delivered: u64,
    /// Fences that were asked for.
    pub fences: u64,
    /// Times that the connection was lost.
    pub losses: u64,
    /// Clients that were disconnected because the connection was lost.
    pub killed_by_loss: u64,
    /// Clients that were disconnected because they left too much unread.
    pub killed_as_slow: u64,
    /// Clients that were disconnected because a link did not answer.
    pub killed_by_fence: u64,
}

/// The state machine of one hub. `S` is what leads to a scope's link.
pub(super) struct HubCore<S> {
    limits: CoreLimits,
    topics: [HashMap<Bytes, Topic, foldhash::fast::RandomState>; 3],
    clients: BTreeMap<ClientId, Membership>,
    scopes: BTreeMap<ScopeId, Queue<S>>,
    calls: HashMap<Ticket, Call<S>, foldhash::fast::RandomState>,
    expected: VecDeque<Expected>,
    /// Who settles, and is to be told by the next PING.
    settling: Vec<(Ticket, ClientId)>,
    settling_state: Ping,
    outgoing: Outgoing,
    /// Frames that have come.
    position: u64,
    tickets: u64,
    seqs: u64,
    answers: Vec<Answer>,
    awake: Vec<Arc<Port>>,
    subscriptions: usize,
    counts: HubCounts,
}

/// Something that can be subscribed to.
#[derive(Debug, Default)]
struct Topic {
    upstream: Upstream,
    under_way: UnderWay,
    /// Calls that need a confirmation that is asked for from now on.
    asking: Vec<Ticket>,
    /// Calls not ended that name it.
    claims: usize,
    members: BTreeMap<ScopeId, BTreeMap<ClientId, Member>>,
}

/// What the upstream has last confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Upstream {
    #[default]
    Absent,
    Held,
}

/// What has been sent and not answered.
#[derive(Debug, Default)]
enum UnderWay {
    #[default]
    Nothing,
    Subscribe(Vec<Ticket>),
    Unsubscribe,
}

/// One client's place among those who hear of a topic.
#[derive(Debug)]
struct Member {
    port: Arc<Port>,
    /// True once the client has begun to unsubscribe: it gets what was published before, and counts no more.
    leaves: bool,
    /// The position of the confirmation.
    joined_at: u64,
    /// Messages behind this position come by the queue of the present scope.
    queued_from: u64,
}

/// What is known of one client.
struct Membership {
    port: Arc<Port>,
    scope: ScopeId,
    /// How often it has moved: what it has left behind in another scope's queue bears an older number.
    moves: u64,
    topics: BTreeSet<(Kind, Bytes)>,
}

/// A subscription under way.
struct Call<S> {
    subscriber: Subscriber<S>,
    kind: Kind,
    names: Vec<Bytes>,
    /// Names that are not confirmed.
    missing: usize,
}

#[derive(Debug)]
struct Expected {
    what: What,
    sent_at: Time,
}

#[derive(Debug)]
enum What {
    Subscribe(Kind, Bytes),
    Unsubscribe(Kind, Bytes),
    Ping(Vec<(Ticket, ClientId)>),
}

/// Whether a PING is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ping {
    Idle,
    UnderWay,
}

// === impl HubCore ===

impl<S: Clone> HubCore<S> {
    pub(super) fn new(limits: CoreLimits) -> Self {
        Self {
            limits,
            topics: Default::default(),
            clients: BTreeMap::new(),
            scopes: BTreeMap::new(),
            calls: HashMap::default(),
            expected: VecDeque::new(),
            settling: Vec::new(),
            settling_state: Ping::Idle,
            outgoing: Outgoing::default(),
            position: 0,
            tickets: 0,
            seqs: 0,
            answers: Vec::new(),
            awake: Vec::new(),
            subscriptions: 0,
            counts: HubCounts::default(),
        }
    }

    /// What is to be written to the connection.
    pub(super) fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// Calls that have ended since the last look.
    pub(super) fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Ports to be woken since the last look.
    pub(super) fn take_awake(&mut self) -> Vec<Arc<Port>> {
        std::mem::take(&mut self.awake)
    }

    /// When the oldest request that waits for its answer was sent.
    pub(super) fn oldest_sent_at(&self) -> Option<Time> {
        self.expected.front().map(|e| e.sent_at)
    }

    /// True if nobody is subscribed and nobody waits: the connection is of no use.
    pub(super) fn is_idle(&self) -> bool {
        self.clients.is_empty() && self.calls.is_empty() && self.settling.is_empty()
    }

    /// True if so much waits for fences that nothing should be read.
    pub(super) fn is_full(&self) -> bool {
        self.scopes.values().any(|queue| queue.bytes > self.limits.queued_bytes_max)
    }

    pub(super) fn counts(&self) -> HubCounts {
        let held = |t: &&Topic| t.upstream == Upstream::Held;
        HubCounts {
            clients: self.clients.len(),
            subscriptions: self.subscriptions,
            topics: self.topics.iter().flat_map(HashMap::values).filter(held).count(),
            waiting: self.calls.len(),
            queued_bytes: self.scopes.values().map(|queue| queue.bytes).sum(),
            ..self.counts
        }
    }

    /// Begins to subscribe. `None` if the client has all of `names` already.
    pub(super) fn subscribe(
        &mut self,
        subscriber: Subscriber<S>,
        kind: Kind,
        names: &[&[u8]],
        now: Time,
    ) -> Result<Option<Pending>, Failure> {
        let has = |name: &Bytes| {
            self.clients.get(&subscriber.client).is_some_and(|c| c.topics.contains(&(kind, name.clone())))
        };
        let distinct: BTreeSet<&[u8]> = names.iter().copied().collect();
        let names: Vec<Bytes> = distinct.into_iter().map(Bytes::copy_from_slice).filter(|name| !has(name)).collect();
        if names.is_empty() {
            return Ok(None);
        }
        if self.calls.len() >= self.limits.waiting_max {
            return Err(Failure::Full);
        }
        if self.subscriptions + names.len() > self.limits.subscriptions_max {
            return Err(Failure::Refused(Bytes::from_static(b"ERR too many subscriptions: Larder's limit is reached")));
        }
        let ticket = self.ticket();
        self.subscriptions += names.len();
        self.calls.insert(ticket, Call { subscriber, kind, names: names.clone(), missing: names.len() });
        for name in &names {
            let topic = self.topics[kind.index()].entry(name.clone()).or_default();
            topic.claims += 1;
            topic.asking.push(ticket);
            self.reconcile(kind, name, now);
        }
        Ok(Some(Pending { ticket, names }))
    }

    /// Gives a call up that has not ended.
    pub(super) fn cancel(&mut self, ticket: Ticket, now: Time) {
        let Some(call) = self.calls.remove(&ticket) else { return };
        self.subscriptions -= call.names.len();
        for name in &call.names {
            if let Some(topic) = self.topics[call.kind.index()].get_mut(name) {
                topic.claims -= 1;
                topic.asking.retain(|t| *t != ticket);
            }
            self.reconcile(call.kind, name, now);
        }
    }

    pub(super) fn unsubscribe(&mut self, client: ClientId, kind: Kind, name: &[u8], now: Time) {
        let Some(membership) = self.clients.get_mut(&client) else { return };
        let Some((key, _)) = self.topics[kind.index()].get_key_value(name) else { return };
        let key = key.clone();
        if !membership.topics.remove(&(kind, key.clone())) {
            return;
        }
        let scope = membership.scope;
        let is_last = membership.topics.is_empty();
        self.part(client, scope, kind, &key, now);
        if is_last {
            self.clients.remove(&client);
            self.leave_scope(scope);
        }
    }

    /// The client is about to unsubscribe: nobody is told any more that it would receive what is published.
    pub(super) fn announce(&mut self, client: ClientId, kind: Kind, name: &[u8]) {
        let Some(scope) = self.clients.get(&client).map(|membership| membership.scope) else { return };
        let topic = self.topics[kind.index()].get_mut(name);
        if let Some(member) = topic.and_then(|topic| topic.members.get_mut(&scope)?.get_mut(&client)) {
            member.leaves = true;
        }
    }

    /// Ends subscriptions. The ticket tells when the upstream has been told, and has done, what follows from it; `None` if the
    /// client has none.
    pub(super) fn unsubscribe_all(
        &mut self,
        client: ClientId,
        kind: Kind,
        names: &[Vec<u8>],
        now: Time,
    ) -> Option<Ticket> {
        self.clients.contains_key(&client).then(|| {
            names.iter().for_each(|name| self.unsubscribe(client, kind, name, now));
            self.ask_to_settle(client, now)
        })
    }

    /// Ends all subscriptions of a client.
    pub(super) fn leave(&mut self, client: ClientId, now: Time) {
        let Some(membership) = self.clients.remove(&client) else { return };
        for (kind, name) in &membership.topics {
            self.part(client, membership.scope, *kind, name, now);
        }
        self.leave_scope(membership.scope);
    }

    /// Begins to wait until what the upstream has sent so far is delivered. `None` if the client is not subscribed.
    pub(super) fn settle(&mut self, client: ClientId, now: Time) -> Option<Ticket> {
        self.clients.contains_key(&client).then(|| self.ask_to_settle(client, now))
    }

    fn ask_to_settle(&mut self, client: ClientId, now: Time) -> Ticket {
        let ticket = self.ticket();
        self.settling.push((ticket, client));
        if self.settling_state == Ping::Idle {
            self.ping(now);
        }
        ticket
    }

    /// Asks the upstream for a sign of life, unless one is owed anyway.
    pub(super) fn keep_alive(&mut self, now: Time) {
        if self.expected.is_empty() {
            self.ping(now);
        }
    }

    /// Moves a client to another scope, with the messages that wait for it.
    pub(super) fn moved(&mut self, client: ClientId, to: ScopeId, scope: &S) {
        let Some(membership) = self.clients.get(&client).filter(|m| m.scope != to) else { return };
        let (from, names) = (membership.scope, membership.topics.clone());
        let left = self.scopes.get(&from).into_iter().flat_map(|queue| &queue.entries);
        let waiting: Vec<Message> = left.filter_map(|entry| self.message_for(client, from, entry)).cloned().collect();
        let Some(membership) = self.clients.get_mut(&client) else { return };
        membership.scope = to;
        membership.moves += 1;
        let moves = membership.moves;
        for (kind, name) in &names {
            let Some(topic) = self.topics[kind.index()].get_mut(name) else { continue };
            if let Some(mut member) = topic.remove(from, client) {
                member.queued_from = self.position;
                topic.members.entry(to).or_default().insert(client, member);
            }
        }
        let queue = self.scopes.entry(to).or_insert_with(|| Queue::new(scope.clone()));
        queue.clients += 1;
        waiting.into_iter().for_each(|message| queue.push(Entry::Private(client, moves, message)));
        self.leave_scope(from);
    }

    /// Takes over one frame that came from the upstream; messages and confirmations begin with `>` whatever the protocol.
    pub(super) fn frame(&mut self, frame: Bytes, now: Time) -> Result<(), Violation> {
        self.take(frame.clone(), now).map_err(|fault| Violation { fault, received: Received::of(&frame) })
    }

    /// Scopes on whose link a fence is to be asked for now, after all that has been read.
    pub(super) fn take_fences(&mut self) -> Vec<(S, Seq)> {
        let mut fences = Vec::new();
        for queue in self.scopes.values_mut() {
            let seq = Seq(self.seqs + 1);
            if queue.ask_fence(seq) {
                self.seqs += 1;
                fences.push((queue.scope.clone(), seq));
            }
        }
        self.counts.fences += fences.len() as u64;
        fences
    }

    /// The link has caught up: what waited for it may be delivered, by [`HubCore::deliver`].
    pub(super) fn fenced(&mut self, seq: Seq) {
        if let Some((_, queue)) = self.find_fence(seq) {
            queue.fenced();
        }
    }

    /// Delivers what may be, about `deliveries_max` at most (the subscribers of one message are not parted). True if more
    /// is left: others have a turn first.
    pub(super) fn deliver(&mut self, deliveries_max: u64, now: Time) -> bool {
        let end = self.counts.delivered + deliveries_max;
        while self.counts.delivered < end {
            let Some((scope, entry)) = self.next_free_entry() else { return false };
            self.release(scope, entry, now);
        }
        true
    }

    /// The link does not answer: whoever waits for messages cannot have them and must not miss them.
    pub(super) fn fence_failed(&mut self, seq: Seq, now: Time) {
        let Some((scope, queue)) = self.find_fence(seq) else { return };
        let entries = queue.clear();
        let mut doomed = BTreeSet::new();
        for entry in entries {
            match entry {
                Entry::Shared(message) => {
                    let members = self.members(scope, &message).into_iter().flatten();
                    doomed.extend(members.filter(|(_, m)| m.queued_from < message.position).map(|(id, _)| *id));
                }
                Entry::Private(client, moves, message) => {
                    doomed.extend(self.private_member(client, scope, moves, &message).map(|_| client));
                }
                Entry::Mark(ticket) => self.answers.push((ticket, Ok(()))),
            }
        }
        self.counts.killed_by_fence += doomed.len() as u64;
        doomed.into_iter().for_each(|client| self.kill(client, now));
    }

    /// There is no connection, and could not be one: whoever waits is told.
    pub(super) fn unavailable(&mut self, failure: &Failure) {
        self.reset(failure);
    }

    /// The connection is gone. Whoever was subscribed is disconnected; whoever waited is told. Returns how many were
    /// disconnected.
    pub(super) fn lost(&mut self, failure: &Failure) -> usize {
        let killed = self.clients.len();
        self.counts.losses += 1;
        self.counts.killed_by_loss += killed as u64;
        self.reset(failure);
        killed
    }

    /// Who would receive a message on `channel`.
    pub(super) fn receivers(&self, channel: &[u8]) -> Receivers {
        let patterns = self.topics[Kind::Pattern.index()].iter();
        let matching = patterns.filter(|(pattern, _)| glob::matches(pattern, channel, Case::Sensitive));
        matching.fold(self.subscribers(Kind::Channel, channel), |sum, (_, topic)| {
            let more = topic.receivers();
            Receivers { upstream: sum.upstream + more.upstream, here: sum.here + more.here }
        })
    }

    /// Who is subscribed to exactly this.
    pub(super) fn subscribers(&self, kind: Kind, name: &[u8]) -> Receivers {
        self.topics[kind.index()].get(name).map(Topic::receivers).unwrap_or_default()
    }

    fn reset(&mut self, failure: &Failure) {
        for membership in std::mem::take(&mut self.clients).into_values() {
            membership.port.kill();
        }
        for (ticket, _) in std::mem::take(&mut self.calls) {
            self.answers.push((ticket, Err(failure.clone())));
        }
        let expected = std::mem::take(&mut self.expected);
        let pings =
            expected.into_iter().filter_map(|e| if let What::Ping(waiting) = e.what { Some(waiting) } else { None });
        let marks = std::mem::take(&mut self.scopes).into_values().flat_map(|q| q.entries);
        let marks = marks.filter_map(|e| if let Entry::Mark(ticket) = e { Some(ticket) } else { None });
        let settling = pings.flatten().chain(std::mem::take(&mut self.settling)).map(|(ticket, _)| ticket);
        self.answers.extend(settling.chain(marks).map(|ticket| (ticket, Ok(()))));
        self.topics = Default::default();
        self.settling_state = Ping::Idle;
        self.outgoing = Outgoing::default();
        self.subscriptions = 0;
    }

    fn take(&mut self, frame: Bytes, now: Time) -> Result<(), Fault> {
        self.position += 1;
        match frame.first() {
            Some(b'>') => self.push(frame, now),
            Some(b'+') => self.answered_ping(now),
            Some(b'-') => {
                let line = frame.slice(1..frame.len().saturating_sub(2).max(1));
                self.refused(line, now)
            }
            _ => Err(Fault::Unexpected),
        }
    }

    fn push(&mut self, frame: Bytes, now: Time) -> Result<(), Fault> {
        let mut cursor = Cursor::new(&frame);
        let word = cursor.next_count().and_then(|_| cursor.next_bytes()).ok_or(Fault::Message)?;
        if word == b"pong" {
            return self.answered_ping(now);
        }
        let Some((kind, role)) = role_of(word) else { return Ok(()) };
        let name = cursor.next_bytes().ok_or(Fault::Message)?;
        if role == Role::Message {
            self.queue(kind, name, &frame);
            return Ok(());
        }
        let expected = self.expected.pop_front().ok_or(Fault::Unexpected)?;
        match (role, expected.what) {
            (Role::Subscribed, What::Subscribe(k, n)) if k == kind && n == name => self.subscribed(kind, &n, now),
            (Role::Unsubscribed, What::Unsubscribe(k, n)) if k == kind && n == name => {
                if let Some(topic) = self.topics[kind.index()].get_mut(&n) {
                    topic.upstream = Upstream::Absent;
                    topic.under_way = UnderWay::Nothing;
                }
                self.reconcile(kind, &n, now);
            }
            _ => return Err(Fault::Unexpected),
        }
        Ok(())
    }

    fn subscribed(&mut self, kind: Kind, name: &Bytes, now: Time) {
        let Some(topic) = self.topics[kind.index()].get_mut(name) else { return };
        topic.upstream = Upstream::Held;
        if let UnderWay::Subscribe(tickets) = std::mem::take(&mut topic.under_way) {
            for ticket in tickets {
                let Some(call) = self.calls.get_mut(&ticket) else { continue };
                call.missing -= 1;
                if call.missing == 0
                    && let Some(call) = self.calls.remove(&ticket)
                {
                    self.join(call);
                    self.answers.push((ticket, Ok(())));
                }
            }
        }
        self.reconcile(kind, name, now);
    }

    /// All names of a call are confirmed: the client is a member of each from here on.
    fn join(&mut self, call: Call<S>) {
        let Subscriber { client, port, scope_id, scope } = call.subscriber;
        let membership = self.clients.entry(client).or_insert_with(|| {
            self.scopes.entry(scope_id).or_insert_with(|| Queue::new(scope)).clients += 1;
            Membership { port: port.clone(), scope: scope_id, moves: 0, topics: BTreeSet::new() }
        });
        for name in call.names {
            let Some(topic) = self.topics[call.kind.index()].get_mut(&name) else { continue };
            topic.claims -= 1;
            if !membership.topics.insert((call.kind, name)) {
                self.subscriptions -= 1;
                continue;
            }
            let member =
                Member { port: port.clone(), leaves: false, joined_at: self.position, queued_from: self.position };
            topic.members.entry(membership.scope).or_default().insert(client, member);
        }
    }

    /// An error in the place of an answer.
    fn refused(&mut self, line: Bytes, now: Time) -> Result<(), Fault> {
        let expected = self.expected.pop_front().ok_or(Fault::Unexpected)?;
        match expected.what {
            What::Subscribe(kind, name) => {
                let Some(topic) = self.topics[kind.index()].get_mut(&name) else { return Ok(()) };
                if let UnderWay::Subscribe(tickets) = std::mem::take(&mut topic.under_way) {
                    for ticket in tickets.into_iter().filter(|t| self.calls.contains_key(t)).collect::<Vec<_>>() {
                        self.cancel(ticket, now);
                        self.answers.push((ticket, Err(Failure::Refused(line.clone()))));
                    }
                }
                self.reconcile(kind, &name, now);
            }
            // It stays; asking again would have the same answer. Who asks for it anew is served from it.
            What::Unsubscribe(kind, name) => {
                if let Some(topic) = self.topics[kind.index()].get_mut(&name) {
                    topic.under_way = UnderWay::Nothing;
                    if !topic.asking.is_empty() {
                        self.reconcile(kind, &name, now);
                    }
                }
            }
            // A user who may not PING: the error comes where the answer would have.
            What::Ping(waiting) => self.settled(waiting, now),
        }
        Ok(())
    }

    fn answered_ping(&mut self, now: Time) -> Result<(), Fault> {
        match self.expected.pop_front().ok_or(Fault::Unexpected)?.what {
            What::Ping(waiting) => self.settled(waiting, now),
            _ => return Err(Fault::Unexpected),
        }
        Ok(())
    }

    /// What the upstream had sent by the time of these calls has come: it remains to be delivered.
    fn settled(&mut self, waiting: Vec<(Ticket, ClientId)>, now: Time) {
        for (ticket, client) in waiting {
            let scope = self.clients.get(&client).map(|m| m.scope);
            match scope.and_then(|s| self.scopes.get_mut(&s)).filter(|q| !q.entries.is_empty()) {
                Some(queue) => queue.push(Entry::Mark(ticket)),
                None => self.answers.push((ticket, Ok(()))),
            }
        }
        self.settling_state = Ping::Idle;
        if !self.settling.is_empty() {
            self.ping(now);
        }
    }

    fn ping(&mut self, now: Time) {
        let waiting = std::mem::take(&mut self.settling);
        self.settling_state = Ping::UnderWay;
        self.outgoing.put(b"*1\r\n$4\r\nPING\r\n");
        self.expected.push_back(Expected { what: What::Ping(waiting), sent_at: now });
    }

    /// A message: it waits for the fence of each scope that has members.
    fn queue(&mut self, kind: Kind, name: &[u8], frame: &Bytes) {
        self.counts.messages += 1;
        let Some((name, topic)) = self.topics[kind.index()].get_key_value(name) else { return };
        for scope in topic.members.keys() {
            if let Some(queue) = self.scopes.get_mut(scope) {
                let message = Message { kind, name: name.clone(), position: self.position, frame: frame.clone() };
                queue.push(Entry::Shared(message));
            }
        }
    }

    /// Lets one entry go whose fence was answered.
    fn release(&mut self, scope: ScopeId, entry: Entry, now: Time) {
        let mut to = Recipients { awake: Vec::new(), delivered: 0, slow: Vec::new(), limits: self.limits };
        match entry {
            Entry::Shared(message) => {
                for (client, member) in self.members(scope, &message).into_iter().flatten() {
                    if member.queued_from < message.position {
                        to.leave(*client, &member.port, &message.frame);
                    }
                }
            }
            Entry::Private(client, moves, message) => {
                if let Some(member) = self.private_member(client, scope, moves, &message) {
                    to.leave(client, &member.port, &message.frame);
                }
            }
            Entry::Mark(ticket) => self.answers.push((ticket, Ok(()))),
        }
        let Recipients { awake, delivered, slow, .. } = to;
        self.awake.extend(awake);
        self.counts.delivered += delivered;
        self.counts.killed_as_slow += slow.len() as u64;
        slow.into_iter().for_each(|client| self.kill(client, now));
    }

    /// The message of an entry, if it is to be delivered to this client from this queue.
    fn message_for<'a>(&self, client: ClientId, scope: ScopeId, entry: &'a Entry) -> Option<&'a Message> {
        match entry {
            Entry::Shared(message) => {
                let member = self.members(scope, message)?.get(&client)?;
                (member.queued_from < message.position).then_some(message)
            }
            Entry::Private(who, moves, message) if *who == client => {
                self.private_member(client, scope, *moves, message).map(|_| message)
            }
            _ => None,
        }
    }

    fn members(&self, scope: ScopeId, message: &Message) -> Option<&BTreeMap<ClientId, Member>> {
        self.topics[message.kind.index()].get(&message.name)?.members.get(&scope)
    }

    /// The client for which a private entry is, if it has neither moved on nor subscribed anew.
    fn private_member(&self, client: ClientId, scope: ScopeId, moves: u64, message: &Message) -> Option<&Member> {
        self.clients.get(&client).filter(|membership| membership.moves == moves)?;
        self.members(scope, message)?.get(&client).filter(|member| member.joined_at < message.position)
    }

    fn kill(&mut self, client: ClientId, now: Time) {
        if let Some(membership) = self.clients.get(&client) {
            membership.port.kill();
            self.leave(client, now);
        }
    }

    /// Takes a client out of a topic.
    fn part(&mut self, client: ClientId, scope: ScopeId, kind: Kind, name: &Bytes, now: Time) {
        if let Some(topic) = self.topics[kind.index()].get_mut(name)
            && topic.remove(scope, client).is_some()
        {
            self.subscriptions -= 1;
        }
        self.reconcile(kind, name, now);
    }

    fn leave_scope(&mut self, scope: ScopeId) {
        let Some(queue) = self.scopes.get_mut(&scope) else { return };
        queue.clients -= 1;
        if queue.clients == 0
            && let Some(queue) = self.scopes.remove(&scope)
        {
            let marks = queue.entries.into_iter().filter_map(|e| if let Entry::Mark(t) = e { Some(t) } else { None });
            self.answers.extend(marks.map(|ticket| (ticket, Ok(()))));
        }
    }

    /// Sends what brings the upstream nearer to what is wanted, if nothing of the topic is under way.
    fn reconcile(&mut self, kind: Kind, name: &Bytes, now: Time) {
        let Some(topic) = self.topics[kind.index()].get_mut(name) else { return };
        if !matches!(topic.under_way, UnderWay::Nothing) {
            return;
        }
        let wanted = topic.claims > 0 || !topic.members.is_empty();
        let (command, what) = if !topic.asking.is_empty() {
            topic.under_way = UnderWay::Subscribe(std::mem::take(&mut topic.asking));
            (kind.subscribe_command(), What::Subscribe(kind, name.clone()))
        } else if wanted {
            return;
        } else if topic.upstream == Upstream::Held {
            topic.under_way = UnderWay::Unsubscribe;
            (kind.unsubscribe_command(), What::Unsubscribe(kind, name.clone()))
        } else {
            self.topics[kind.index()].remove(name);
            return;
        };
        self.outgoing.put(OwnedArgs::new([command.as_bytes(), name]).args().bytes());
        self.expected.push_back(Expected { what, sent_at: now });
    }

    /// The next entry that nothing holds back.
    fn next_free_entry(&mut self) -> Option<(ScopeId, Entry)> {
        self.scopes.iter_mut().find_map(|(scope, queue)| queue.pop_free().map(|entry| (*scope, entry)))
    }

    fn find_fence(&mut self, seq: Seq) -> Option<(ScopeId, &mut Queue<S>)> {
        let mut scopes = self.scopes.iter_mut();
        scopes.find(|(_, q)| q.awaits(seq)).map(|(id, queue)| (*id, queue))
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }
}

// === impl Topic ===

impl Topic {
    fn remove(&mut self, scope: ScopeId, client: ClientId) -> Option<Member> {
        let members = self.members.get_mut(&scope)?;
        let member = members.remove(&client);
        if members.is_empty() {
            self.members.remove(&scope);
        }
        member
    }

    fn receivers(&self) -> Receivers {
        // What is being given up may still be counted there.
        let upstream = usize::from(self.upstream == Upstream::Held || matches!(self.under_way, UnderWay::Unsubscribe));
        let members = self.members.values().flat_map(BTreeMap::values);
        Receivers { upstream, here: members.filter(|member| !member.leaves).count() }
    }
}

/// Where messages are left, and what came of it.
struct Recipients {
    awake: Vec<Arc<Port>>,
    delivered: u64,
    slow: Vec<ClientId>,
    limits: CoreLimits,
}

// === impl Recipients ===

impl Recipients {
    fn leave(&mut self, client: ClientId, port: &Arc<Port>, frame: &Bytes) {
        self.delivered += 1;
        if port.leave(Delivery::Message(frame.clone())) {
            self.awake.push(port.clone());
        }
        if port.message_bytes() > self.limits.message_bytes_max {
            self.slow.push(client);
        }
    }
}

/// What the first word of a push says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Message,
    Subscribed,
    Unsubscribed,
}

fn role_of(word: &[u8]) -> Option<(Kind, Role)> {
    Kind::ALL.into_iter().find_map(|kind| {
        let roles = [
            (kind.message_word(), Role::Message),
            (kind.subscribe_word(), Role::Subscribed),
            (kind.unsubscribe_word(), Role::Unsubscribed),
        ];
        roles.into_iter().find(|(w, _)| w.as_bytes() == word).map(|(_, role)| (kind, role))
    })
}
