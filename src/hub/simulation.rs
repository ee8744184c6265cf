//! Seeded simulation of the hub's core: clients, an upstream and links that do things in any order.
//!
//! A model beside it says what each client must hear: it is told of every frame that the core is given and of every call
//! that has returned, and knows nothing of queues, topics or fences. Each seed is a run of its own; a failure names the
//! seed and the step.

use super::Kind;
use super::core::{CoreLimits, HubCore, ScopeId, Subscriber, Ticket};
use crate::clients::ClientId;
use crate::clock::Time;
use crate::port::{Delivery, Failure, Port, Seq, Taken};
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cursor::Cursor;
use larder_protocol::glob::{self, Case};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

const SEEDS: u64 = 1500;
const STEPS: usize = 600;
const CLIENTS: usize = 6;
const MESSAGE_BYTES_MAX: usize = 250;
const SCOPES: u64 = 3;
const PUBLISHED: [&str; 4] = ["c1", "c2", "d1", "secret"];
/// What may be subscribed to; the upstream refuses what begins with `secret`.
const NAMES: [(Kind, &str); 8] = [
    (Kind::Channel, "c1"),
    (Kind::Channel, "c2"),
    (Kind::Channel, "d1"),
    (Kind::Channel, "secret"),
    (Kind::Pattern, "c*"),
    (Kind::Pattern, "?1"),
    (Kind::Shard, "c1"),
    (Kind::Shard, "d1"),
];

type Topic = (Kind, &'static str);

/// SplitMix64, by Steele, Lea and Flood.
struct Rng(u64);

/// The server: commands come in order, frames leave in order.
#[derive(Default)]
struct Server {
    commands: VecDeque<Vec<Vec<u8>>>,
    held: BTreeSet<Topic>,
    frames: VecDeque<Bytes>,
    published: u64,
}

/// What one client does and must hear.
struct Listener {
    id: ClientId,
    port: Arc<Port>,
    scope: usize,
    joined: BTreeSet<Topic>,
    call: Option<(Ticket, Vec<Topic>)>,
    settle: Option<(Ticket, u64)>,
    /// Messages that have come and must be delivered: topic, number, step of coming.
    due: VecDeque<(Topic, u64, u64)>,
    /// Nothing with this number or below may come any more, by topic.
    after: HashMap<Topic, u64>,
    settled_to: u64,
    /// Messages in the port that have been checked.
    seen: usize,
}

struct World {
    core: HubCore<usize>,
    server: Server,
    listeners: Vec<Listener>,
    fences: Vec<(usize, Seq, u64)>,
    /// For each scope the step at which its last answered fence was asked for.
    fenced_to: [u64; SCOPES as usize],
    step: u64,
    clients: u64,
    rng: Rng,
    /// 0 for links that answer soon.
    pace: u64,
    delivered: u64,
    killed: u64,
}

// === impl Rng ===

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

// === impl Server ===

impl Server {
    fn execute(&mut self) {
        let Some(command) = self.commands.pop_front() else { return };
        let word = command[0].clone();
        if word == b"PING" {
            self.frames.push_back(Bytes::from_static(b"+PONG\r\n"));
            return;
        }
        let topic =
            |kind| NAMES.into_iter().find(|(k, n)| *k == kind && n.as_bytes() == command[1]).expect("a known name");
        for kind in Kind::ALL {
            if word == kind.subscribe_command().as_bytes() {
                if command[1].starts_with(b"secret") {
                    self.frames.push_back(Bytes::from_static(b"-NOPERM no\r\n"));
                    return;
                }
                self.held.insert(topic(kind));
                return self.frames.push_back(frame([kind.subscribe_word().as_bytes(), &command[1], b"1"]));
            }
            if word == kind.unsubscribe_command().as_bytes() {
                assert!(self.held.remove(&topic(kind)), "unsubscribed from what is not held: {:?}", topic(kind));
                return self.frames.push_back(frame([kind.unsubscribe_word().as_bytes(), &command[1], b"1"]));
            }
        }
        panic!("no such command: {word:?}");
    }

    fn publish(&mut self, rng: &mut Rng) {
        self.published += 1;
        let channel = PUBLISHED[rng.below(PUBLISHED.len())].as_bytes();
        let number = self.published.to_string();
        let is_shard = rng.below(4) == 0;
        for (kind, name) in &self.held {
            let name = name.as_bytes();
            let pushed = match kind {
                Kind::Shard if is_shard && name == channel => frame([&b"smessage"[..], channel, number.as_bytes()]),
                Kind::Channel if !is_shard && name == channel => frame([&b"message"[..], channel, number.as_bytes()]),
                Kind::Pattern if !is_shard && glob::matches(name, channel, Case::Sensitive) => {
                    frame([&b"pmessage"[..], name, channel, number.as_bytes()])
                }
                _ => continue,
            };
            self.frames.push_back(pushed);
        }
    }
}

fn frame<const N: usize>(words: [&[u8]; N]) -> Bytes {
    let mut bytes = OwnedArgs::new(words).args().bytes().to_vec();
    bytes[0] = b'>';
    bytes.into()
}

/// The topic and number of a message, `None` for other frames.
fn message_of(frame: &[u8]) -> Option<(Topic, u64)> {
    let mut words = Cursor::new(frame);
    words.next_count()?;
    let word = words.next_bytes()?;
    let kind = Kind::ALL.into_iter().find(|k| k.message_word().as_bytes() == word)?;
    let name = words.next_bytes()?;
    let number = words.last()?;
    let larder_protocol::cursor::Item::Bulk(number) = number else { return None };
    let topic = NAMES.into_iter().find(|(k, n)| *k == kind && n.as_bytes() == name)?;
    Some((topic, std::str::from_utf8(number).ok()?.parse().ok()?))
}

// === impl World ===

impl World {
    fn new(seed: u64) -> Self {
        let limits = CoreLimits {
            message_bytes_max: MESSAGE_BYTES_MAX,
            queued_bytes_max: 10_000,
            waiting_max: 4,
            subscriptions_max: 20,
        };
        let mut world = Self {
            core: HubCore::new(limits),
            server: Server::default(),
            listeners: Vec::new(),
            fences: Vec::new(),
            fenced_to: [0; SCOPES as usize],
            step: 0,
            clients: 0,
            rng: Rng(seed),
            pace: seed % 3,
            delivered: 0,
            killed: 0,
        };
        for _ in 0..CLIENTS {
            let listener = world.listener();
            world.listeners.push(listener);
        }
        world
    }

    fn listener(&mut self) -> Listener {
        self.clients += 1;
        Listener {
            id: ClientId(self.clients),
            port: Arc::default(),
            scope: self.rng.below(SCOPES as usize),
            joined: BTreeSet::new(),
            call: None,
            settle: None,
            due: VecDeque::new(),
            after: HashMap::new(),
            settled_to: 0,
            seen: 0,
        }
    }

    fn now(&self) -> Time {
        Time::from_micros(self.step)
    }

    fn turn(&mut self) {
        self.step += 1;
        let who = self.rng.below(CLIENTS);
        match self.rng.below(100) {
            0..16 => self.subscribe(who),
            16..26 => self.unsubscribe(who),
            26..28 => self.leave(who),
            28..31 => self.cancel(who),
            31..34 => self.select(who),
            34..37 => self.settle(who),
            37..45 => self.drain(who),
            45..60 => self.server.execute(),
            60..72 => self.server.publish(&mut self.rng),
            72..88 => self.receive(),
            // In some runs links are slow, and clients restless.
            88..98 if self.pace > 0 && self.rng.below(4) > 0 => self.restless(who),
            88..98 => self.answer_fence(),
            98 if self.rng.below(8) == 0 => self.lose(),
            99 if self.rng.below(3) == 0 => self.fail_fence(),
            _ => self.core.keep_alive(self.now()),
        }
        self.look();
    }

    fn subscribe(&mut self, who: usize) {
        let now = self.now();
        let kind = Kind::ALL[self.rng.below(3)];
        let of_kind: Vec<Topic> = NAMES.into_iter().filter(|(k, _)| *k == kind).collect();
        let topics: Vec<Topic> = (0..=self.rng.below(3)).map(|_| of_kind[self.rng.below(of_kind.len())]).collect();
        let listener = &mut self.listeners[who];
        if listener.call.is_some() || listener.settle.is_some() {
            return;
        }
        let subscriber = Subscriber {
            client: listener.id,
            port: listener.port.clone(),
            scope_id: ScopeId(listener.scope),
            scope: listener.scope,
        };
        let names: Vec<&[u8]> = topics.iter().map(|(_, name)| name.as_bytes()).collect();
        let fresh: BTreeSet<Topic> = topics.into_iter().filter(|t| !listener.joined.contains(t)).collect();
        match self.core.subscribe(subscriber, kind, &names, now) {
            Ok(None) => assert!(fresh.is_empty()),
            Ok(Some(pending)) => {
                assert_eq!(pending.names.len(), fresh.len());
                for topic in &fresh {
                    listener.after.insert(*topic, self.server.published);
                }
                listener.call = Some((pending.ticket, fresh.into_iter().collect()));
            }
            Err(_) => {}
        }
    }

    fn unsubscribe(&mut self, who: usize) {
        let now = self.now();
        let topic = NAMES[self.rng.below(NAMES.len())];
        if self.listeners[who].call.is_some() {
            return;
        }
        self.core.unsubscribe(self.listeners[who].id, topic.0, topic.1.as_bytes(), now);
        self.drain(who);
        let listener = &mut self.listeners[who];
        listener.joined.remove(&topic);
        listener.due.retain(|(t, _, _)| *t != topic);
    }

    fn leave(&mut self, who: usize) {
        self.cancel(who);
        self.core.leave(self.listeners[who].id, self.now());
        self.drain(who);
        if self.rng.below(2) == 0 {
            self.listeners[who] = self.listener();
        } else {
            let listener = &mut self.listeners[who];
            listener.joined.clear();
            listener.due.clear();
            listener.settle = None;
        }
    }

    fn cancel(&mut self, who: usize) {
        let now = self.now();
        if let Some((ticket, _)) = self.listeners[who].call.take() {
            self.core.cancel(ticket, now);
        }
    }

    fn select(&mut self, who: usize) {
        let scope = self.rng.below(SCOPES as usize);
        let listener = &mut self.listeners[who];
        if listener.call.is_none() && listener.settle.is_none() {
            listener.scope = scope;
            self.core.moved(listener.id, ScopeId(scope), &scope);
        }
    }

    fn restless(&mut self, who: usize) {
        match self.rng.below(3) {
            0 => self.select(who),
            1 => self.unsubscribe(who),
            _ => self.subscribe(who),
        }
    }

    fn settle(&mut self, who: usize) {
        let now = self.now();
        let listener = &mut self.listeners[who];
        if listener.call.is_some() || listener.settle.is_some() {
            return;
        }
        if let Some(ticket) = self.core.settle(listener.id, now) {
            listener.settle = Some((ticket, self.server.published));
        } else {
            assert!(listener.joined.is_empty());
        }
    }

    /// The client takes what is in its port: it must be what is due, in order.
    fn drain(&mut self, who: usize) {
        let listener = &mut self.listeners[who];
        if listener.call.is_some() {
            return;
        }
        let mut taken = Taken::default();
        listener.port.take(&mut taken);
        for delivery in taken.deliveries {
            let Delivery::Message(frame) = delivery else { panic!("not a message: {delivery:?}") };
            let (topic, number) = message_of(&frame).expect("a message");
            listener.seen = listener.seen.saturating_sub(1);
            let (due_topic, due_number, _) = listener.due.pop_front().expect("a message that is due");
            assert_eq!((topic, number), (due_topic, due_number), "client {who} hears of something else");
            assert!(number > listener.after[&topic], "published before it was subscribed to");
            self.delivered += 1;
        }
    }

    fn receive(&mut self) {
        if self.core.is_full() {
            return;
        }
        let Some(frame) = self.server.frames.pop_front() else { return };
        if let Some((topic, number)) = message_of(&frame) {
            for listener in self.listeners.iter_mut().filter(|l| l.joined.contains(&topic)) {
                assert!(number > listener.settled_to, "a message from before a settled moment comes behind it");
                listener.due.push_back((topic, number, self.step));
            }
        }
        self.core.frame(frame, self.now()).expect("no violation");
    }

    fn answer_fence(&mut self) {
        if self.fences.is_empty() {
            return;
        }
        let (scope, seq, asked) = self.fences.swap_remove(self.rng.below(self.fences.len()));
        self.fenced_to[scope] = self.fenced_to[scope].max(asked);
        self.core.fenced(seq);
        while self.core.deliver(3, self.now()) {}
    }

    fn fail_fence(&mut self) {
        if self.fences.is_empty() {
            return;
        }
        let (scope, seq, _) = self.fences.swap_remove(self.rng.below(self.fences.len()));
        let is_newest = self.fences.iter().all(|(s, other, _)| *s != scope || *other < seq);
        let waiting = if is_newest { self.waiting_in(scope) } else { BTreeSet::new() };
        self.core.fence_failed(seq, self.now());
        let killed = self.listeners.iter().filter(|l| l.port.is_killed()).map(|l| l.id).collect();
        assert_eq!(waiting, killed, "who waits for messages is disconnected, and nobody else");
    }

    fn lose(&mut self) {
        let joined = self.listeners.iter().filter(|l| !l.joined.is_empty()).count();
        let killed = self.core.lost(&Failure::Down("lost".into()));
        assert_eq!(killed, joined, "whoever is subscribed is disconnected, and nobody else");
        self.server.commands.clear();
        self.server.frames.clear();
        self.server.held.clear();
    }

    /// What follows from a step: commands on their way, answers, the dead replaced, fences asked for.
    fn look(&mut self) {
        self.send();
        for (ticket, answer) in self.core.take_answers() {
            self.answered(ticket, &answer);
        }
        self.core.take_awake().iter().for_each(|port| port.wake());
        for who in 0..CLIENTS {
            if self.listeners[who].port.is_killed() {
                self.killed += 1;
                self.core.leave(self.listeners[who].id, self.now());
                self.cancel(who);
                self.listeners[who] = self.listener();
            }
            self.check_fence(who);
        }
        let step = self.step;
        for (scope, seq) in self.core.take_fences() {
            assert!(self.fences.iter().all(|(_, s, _)| *s != seq), "a fence twice");
            self.fences.push((scope, seq, step));
        }
        self.send();
    }

    /// What has come into a client's port in this step came behind a fence of its scope that was asked for after the
    /// message had come.
    fn check_fence(&mut self, who: usize) {
        let listener = &mut self.listeners[who];
        let mut taken = Taken::default();
        listener.port.take(&mut taken);
        assert!(taken.deliveries.len() <= listener.due.len(), "client {who} hears of what it should not");
        for (i, (delivery, (topic, number, came))) in taken.deliveries.iter().zip(&listener.due).enumerate() {
            let Delivery::Message(frame) = delivery else { panic!("not a message: {delivery:?}") };
            assert_eq!(message_of(frame), Some((*topic, *number)));
            if i >= listener.seen {
                assert!(
                    *came <= self.fenced_to[listener.scope],
                    "client {who} hears of it before its link has caught up"
                );
            }
        }
        listener.seen = taken.deliveries.len();
        let bytes = taken.deliveries.iter().map(|d| if let Delivery::Message(m) = d { m.len() } else { 0 });
        assert!(bytes.sum::<usize>() <= MESSAGE_BYTES_MAX, "client {who} reads too little and is still there");
        for delivery in taken.deliveries {
            listener.port.leave(delivery);
        }
    }

    /// Clients of a scope for which messages wait that are not in their port.
    fn waiting_in(&self, scope: usize) -> BTreeSet<ClientId> {
        let waits = |l: &&Listener| l.scope == scope && l.due.len() > l.seen && !l.joined.is_empty();
        self.listeners.iter().filter(waits).map(|l| l.id).collect()
    }

    fn send(&mut self) {
        let mut sent = Vec::new();
        while !self.core.outgoing().is_empty() {
            let piece = self.core.outgoing().first().0.to_vec();
            self.core.outgoing().advance(piece.len());
            sent.extend(piece);
        }
        let mut words = Cursor::new(&sent);
        while let Some(count) = words.next_count() {
            let command = (0..count).map(|_| words.next_bytes().expect("a word").to_vec()).collect();
            self.server.commands.push_back(command);
        }
    }

    fn answered(&mut self, ticket: Ticket, answer: &Result<(), Failure>) {
        for who in 0..CLIENTS {
            let listener = &mut self.listeners[who];
            if let Some((_, topics)) = listener.call.take_if(|(t, _)| *t == ticket) {
                if answer.is_ok() {
                    assert!(!topics.iter().any(|(_, name)| name.starts_with("secret")));
                    listener.joined.extend(topics);
                } else if let Err(Failure::Refused(line)) = answer {
                    assert_eq!(&line[..], b"NOPERM no");
                    assert!(topics.iter().any(|(_, name)| name.starts_with("secret")));
                }
                return;
            }
            if let Some((_, published)) = listener.settle.take_if(|(t, _)| *t == ticket) {
                listener.settled_to = published;
                self.drain(who);
                let left = self.listeners[who].due.iter().find(|(_, number, _)| *number <= published);
                assert!(
                    left.is_none() || self.listeners[who].port.is_killed(),
                    "settled, and {left:?} is still to come"
                );
                return;
            }
        }
    }

    /// Lets everything that is under way come to its end.
    fn quieten(&mut self) {
        for _ in 0..10_000 {
            self.step += 1;
            self.server.execute();
            self.receive();
            self.answer_fence();
            (0..CLIENTS).for_each(|who| self.drain(who));
            self.look();
            let waits = self.listeners.iter().any(|l| l.call.is_some() || l.settle.is_some() || !l.due.is_empty());
            if !waits && self.server.commands.is_empty() && self.server.frames.is_empty() && self.fences.is_empty() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn check_quiet(&mut self) {
        let wanted: BTreeSet<Topic> = self.listeners.iter().flat_map(|l| l.joined.iter().copied()).collect();
        assert_eq!(self.server.held, wanted, "upstream holds what is wanted");
        let counts = self.core.counts();
        assert_eq!(counts.topics, wanted.len());
        assert_eq!(counts.subscriptions, self.listeners.iter().map(|l| l.joined.len()).sum::<usize>());
        assert_eq!(counts.clients, self.listeners.iter().filter(|l| !l.joined.is_empty()).count());
        assert_eq!((counts.waiting, counts.queued_bytes), (0, 0));
        for topic in NAMES {
            let here = self.listeners.iter().filter(|l| l.joined.contains(&topic)).count();
            let receivers = self.core.subscribers(topic.0, topic.1.as_bytes());
            assert_eq!((receivers.upstream, receivers.here), (usize::from(here > 0), here));
        }
    }
}

/// Shows where a run was when it failed.
struct Where(u64, std::cell::Cell<usize>);

impl Drop for Where {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} step {}", self.0, self.1.get());
        }
    }
}

#[test]
fn every_subscriber_hears_what_it_should_and_nothing_else() {
    let mut sums = [0; 5];
    for seed in 0..SEEDS {
        let place = Where(seed, std::cell::Cell::new(0));
        let mut world = World::new(seed);
        for step in 0..STEPS {
            place.1.set(step);
            world.turn();
            if step % 200 == 199 {
                world.quieten();
                world.check_quiet();
            }
        }
        for who in 0..CLIENTS {
            world.leave(who);
            world.look();
        }
        world.quieten();
        world.check_quiet();
        assert!(world.core.is_idle());
        let counts = world.core.counts();
        let of_run =
            [world.delivered, world.killed, counts.killed_by_loss, counts.killed_as_slow, counts.killed_by_fence];
        sums.iter_mut().zip(of_run).for_each(|(sum, n)| *sum += n);
    }
    // The runs are worth something only if much happens in them.
    assert!(sums[0] > 20 * SEEDS && sums[1..].iter().all(|n| *n > SEEDS / 4), "{sums:?}");
}

/// A client moves while a message waits, gives the channel up and asks for it again before the fence: what it has given
/// up does not come back, and what follows comes.
#[test]
fn what_was_given_up_does_not_come_back_with_a_new_subscription() {
    let mut world = World::new(0);
    let (c1, d1) = ((Kind::Channel, "c1"), (Kind::Channel, "d1"));
    let subscriber = Subscriber { client: ClientId(1), port: Arc::<Port>::default(), scope_id: ScopeId(0), scope: 0 };
    let confirm = |world: &mut World, topics: &[Topic]| {
        let names: Vec<&[u8]> = topics.iter().map(|(_, name)| name.as_bytes()).collect();
        world.core.subscribe(subscriber.clone(), Kind::Channel, &names, Time::ZERO).expect("room").expect("new names");
        for topic in topics {
            world.core.frame(frame([b"subscribe", topic.1.as_bytes(), b"1"]), Time::ZERO).expect("asked for");
        }
    };
    let message = |number: &str| frame([&b"message"[..], b"c1", number.as_bytes()]);
    confirm(&mut world, &[c1, d1]);
    world.core.frame(message("1"), Time::ZERO).expect("a message");
    world.core.moved(ClientId(1), ScopeId(1), &1);
    world.core.unsubscribe(ClientId(1), c1.0, c1.1.as_bytes(), Time::ZERO);
    world.core.frame(frame([b"unsubscribe", b"c1", b"1"]), Time::ZERO).expect("asked for");
    confirm(&mut world, &[c1]);
    world.core.frame(message("2"), Time::ZERO).expect("a message");
    let fences = world.core.take_fences();
    assert_eq!(fences.iter().map(|(scope, _)| *scope).collect::<Vec<_>>(), [1]);
    world.core.fenced(fences[0].1);
    assert!(!world.core.deliver(10, Time::ZERO));
    let mut taken = Taken::default();
    subscriber.port.take(&mut taken);
    assert!(matches!(&taken.deliveries[..], [Delivery::Message(m)] if *m == message("2")), "{:?}", taken.deliveries);
}
