//! The scheduler: one seed, one order of everything that can happen.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use larder::clock::Time;
use larder::l1::{Cause, L1, L1Settings, Reader, SoftRead, Variant};
use larder::metrics::Counters;
use larder::policy::{Policies, Policy};
use larder::upstream::admission::Admission;
use larder::upstream::link::{LinkLimits, OpKind, SoftOrder};
use larder_protocol::args::OwnedArgs;
use larder_protocol::shape::Protocol;
use larder_protocol::table::{Resolved, Table};

use crate::client::{Around, Client, Judge, Kind};
use crate::history::{DATABASES, KEY_NAMES, KEYS, STRINGS, Words, show_words};
use crate::link::{Link, Purpose};
use crate::rng::Rng;
use crate::server::{ConnId, Owner, Refuses, Server};
use crate::trace;

/// What a run was and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) steps: u64,
    pub(crate) answers: u64,
    pub(crate) from_l1: u64,
    pub(crate) stale: u64,
    pub(crate) soft: u64,
    pub(crate) failures: u64,
    pub(crate) redone: u64,
    pub(crate) losses: u64,
}

/// What is particular to a seed.
struct Character {
    keys: usize,
    depth_max: usize,
    writes_in_ten: u64,
    /// One in so many writes is a DEL, beside those that are anyway; 0 for none.
    deletions: u64,
    /// One in so many writes goes by a connection of its own.
    apart: u64,
    /// One in so many steps; 0 for never.
    losses: u64,
    direct_writes: u64,
    evictions: u64,
    has_timeouts: bool,
    /// Longest step of time, in microseconds.
    stride_us: u64,
    ttl_ms_max: u64,
    /// One in so many writes is a FLUSHALL.
    flushes: u64,
    /// One in so many new values is larger than an entry may be; 0 for none.
    big_values: u64,
    /// How long stale answers are allowed after a loss, in milliseconds; 0 for never. Keys of one name are excepted.
    stale_ms_max: u64,
    /// One in so many steps of Larder's own is a soft invalidation; 0 for never.
    softenings: u64,
    /// After which part of its life an entry that is hit is refreshed; 0 for never.
    refresh_ahead: f64,
    /// Whether somebody deletes what is being softened.
    chases: bool,
    /// How long what they invalidate is answered at most, in milliseconds.
    soft_ms_max: u64,
    /// One in so many steps of Larder's own is another rule for what is filled, and with it another mode of tracking.
    admissions: u64,
    /// One in so many steps of the server is a change of what users may do about tracking; 0 for never.
    rights: u64,
    /// Whether links move while a client's request is looked at.
    has_threads: bool,
}

pub(crate) struct World {
    rng: Rng,
    character: Character,
    limits: LinkLimits,
    now: Time,
    server: Server,
    links: Vec<Link>,
    clients: Vec<Client>,
    judge: RefCell<Judge>,
    big_keys: BTreeSet<Vec<u8>>,
    policies: Policies,
    table: Arc<Table>,
    counters: Counters,
    tag: u64,
    losses: u64,
}

const STEPS: u64 = 700;
const AUDIT_EVERY: u64 = 16;
const SETTLING_ROUNDS_MAX: u64 = 400;
/// Scopes: two users of database 0, one of database 1.
const SCOPE_DATABASES: [usize; 3] = [0, 0, 1];

fn table() -> Arc<Table> {
    static TABLE: OnceLock<Arc<Table>> = OnceLock::new();
    TABLE.get_or_init(|| Arc::new(Table::builtin())).clone()
}

/// What a run looks at beside the answers of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looks {
    #[cfg_attr(not(feature = "mutations"), expect(dead_code, reason = "for planted bugs"))]
    /// At nothing: what no client could have noticed is no failure.
    AtAnswers,
    /// At all that L1 holds, now and then.
    IntoL1,
}

/// Runs one seed.
///
/// # Errors
/// The step and what was wrong.
pub(crate) fn run(seed: u64, looks: Looks) -> Result<Figures, String> {
    larder::l1::forget_lately_found();
    let mut world = World::new(Rng::new(seed));
    let mut steps = 0;
    while steps < STEPS {
        steps += 1;
        world.step();
        if looks == Looks::IntoL1 && steps % AUDIT_EVERY == 0 {
            world.audit();
        }
        world.wrong().map_or(Ok(()), |what| Err(format!("step {steps}: {what}")))?;
    }
    world.settle(looks).map_err(|what| format!("after step {steps}, settling: {what}"))?;
    let judge = world.judge.borrow();
    Ok(Figures {
        steps,
        answers: judge.answers,
        from_l1: judge.from_l1,
        stale: judge.stale,
        soft: judge.soft,
        failures: judge.failures,
        redone: world.counters.redone.value(),
        losses: world.losses,
    })
}

// === impl Character ===

impl Character {
    fn new(rng: &mut Rng) -> Self {
        let character = Self::of_all_kinds(rng);
        if rng.one_in(4) { character.that_softens(rng) } else { character }
    }

    /// Softness shows where a few keys are read by many and deleted again and again, and little else happens.
    fn that_softens(self, rng: &mut Rng) -> Self {
        Self {
            keys: 1 + rng.index(2),
            writes_in_ten: 1 + rng.below(2),
            losses: [0, 500][rng.index(2)],
            direct_writes: 0,
            evictions: 0,
            has_timeouts: false,
            flushes: 1000,
            ttl_ms_max: 1000,
            softenings: 2,
            chases: rng.one_in(2),
            soft_ms_max: if self.soft_ms_max > 2 { 1000 } else { 5 },
            deletions: 2,
            apart: 2,
            ..self
        }
    }

    fn of_all_kinds(rng: &mut Rng) -> Self {
        Self {
            keys: 1 + rng.index(KEYS),
            deletions: [0, 2][rng.index(2)],
            apart: [8, 2][rng.index(2)],
            depth_max: 1 + rng.index(10),
            writes_in_ten: rng.below(5),
            losses: [0, 0, 50, 100, 500][rng.index(5)],
            direct_writes: [0, 20, 80][rng.index(3)],
            evictions: [0, 50, 200][rng.index(3)],
            has_timeouts: rng.one_in(5),
            stride_us: [50, 500, 2000][rng.index(3)],
            ttl_ms_max: [3, 20, 100][rng.index(3)],
            flushes: [100, 6][rng.index(2)],
            big_values: [0, 0, 10][rng.index(3)],
            stale_ms_max: [0, 2, 10, 100][rng.index(4)],
            has_threads: rng.one_in(2),
            softenings: [0, 4, 1][rng.index(3)],
            chases: false,
            refresh_ahead: [0.0, 0.1, 0.5][rng.index(3)],
            soft_ms_max: [2, 30, 1000][rng.index(3)],
            admissions: [0, 1, 10][rng.index(3)],
            rights: [0, 0, 0, 5][rng.index(4)],
        }
    }
}

/// Links of one database know each other's partitions, as `upstream::scope` sees to.
fn introduce_peers(links: &[Link]) {
    for link in links {
        let is_peer = |other: &&Link| {
            other.purpose.database == link.purpose.database && other.purpose.scope != link.purpose.scope
        };
        link.partition.set_peers(links.iter().filter(is_peer).map(|peer| Arc::downgrade(&peer.partition)).collect());
    }
}

// === impl World ===

impl World {
    fn new(mut rng: Rng) -> Self {
        let character = Character::new(&mut rng);
        let table = table();
        let l1 = L1::new(L1Settings {
            size_bytes_max: [2_000, 1 << 20][rng.index(2)],
            entry_bytes_max: 200,
            variants_per_key_max: 4,
            compress_min_bytes: None,
        });
        let limits = LinkLimits {
            in_flight_max: [8, 1000][rng.index(2)],
            in_flight_bytes_max: 1 << 20,
            reply_max: Duration::from_millis(if character.has_timeouts { 20 } else { 3_600_000 }),
            write_max: Duration::from_millis(if character.has_timeouts { 15 } else { 3_600_000 }),
            untracked_ttl: None,
            admission: [Admission::Adaptive, Admission::SecondTouch][usize::from(rng.one_in(4))],
            stale_longest: None,
        };
        let stale_max = Duration::from_millis(character.stale_ms_max);
        let excepted = String::from_utf8_lossy(KEY_NAMES[0]).into_owned();
        let never = Policy { keys: excepted, stale_if_error: Some(Duration::ZERO), refresh_ahead: None };
        let policies = Policies::new(vec![never], stale_max, character.refresh_ahead);
        let limits = LinkLimits { stale_longest: policies.stale_if_error_longest(), ..limits };
        let scopes = 1 + rng.index(SCOPE_DATABASES.len());
        let purpose = |scope| Purpose { scope, database: SCOPE_DATABASES[scope] };
        let links: Vec<Link> = (0..scopes).map(|scope| Link::new(&l1, &table, purpose(scope), limits)).collect();
        introduce_peers(&links);
        let clients = (0..2 + rng.index(4)).map(|id| {
            let protocol = if rng.one_in(2) { Protocol::Resp2 } else { Protocol::Resp3 };
            Client::new(id, rng.index(scopes), protocol)
        });
        let clients = clients.collect();
        Self {
            character,
            limits,
            now: Time::ZERO,
            server: Server::new(),
            links,
            clients,
            judge: RefCell::new(Judge::new(SCOPE_DATABASES[..scopes].to_vec())),
            policies,
            big_keys: BTreeSet::new(),
            table,
            counters: Counters::default(),
            tag: 0,
            losses: 0,
            rng,
        }
    }

    fn step(&mut self) {
        match self.rng.below(20) {
            0..=3 => self.ask(),
            4..=7 => self.some_client_turn(),
            8..=11 => self.link_turn(),
            12..=16 => self.deliver(),
            17 => {
                let us = 1 + self.rng.below(self.character.stride_us);
                self.pass(us);
            }
            18 => self.server_does_something(),
            _ => self.larder_does_something(),
        }
    }

    fn wrong(&self) -> Option<String> {
        let violation = self.judge.borrow_mut().violation.take();
        violation.or_else(|| self.links.iter().find_map(Link::violation))
    }

    fn ask(&mut self) {
        let client = self.rng.index(self.clients.len());
        for _ in 0..1 + self.rng.below(3) {
            if self.clients[client].waits_for() < self.character.depth_max {
                let (words, kind) = self.request();
                self.clients[client].ask(words, kind, &self.server, &self.judge.borrow());
            }
        }
    }

    fn some_client_turn(&mut self) {
        let awake: Vec<usize> = (0..self.clients.len()).filter(|i| self.clients[*i].is_awake()).collect();
        if !awake.is_empty() {
            let client = *self.rng.pick(&awake);
            self.client_turn(client);
        }
    }

    fn client_turn(&mut self, i: usize) {
        if !self.clients[i].is_awake() {
            return;
        }
        let rng = RefCell::new(self.rng.fork());
        let around = Around {
            links: &self.links,
            server: &self.server,
            table: &self.table,
            counters: &self.counters,
            big_keys: &self.big_keys,
            policies: &self.policies,
            judge: &self.judge,
            now: self.now,
            meanwhile: self.character.has_threads.then_some(&rng),
        };
        let client = &mut self.clients[i];
        client.turn(&around);
        let Some(request) = client.take_apart() else { return };
        let database = SCOPE_DATABASES[client.scope];
        let resp3 = client.speaks_resp3();
        let conn = *client.conn.get_or_insert_with(|| self.server.connect(Owner::Client(i), database, resp3, false));
        self.server.conns[conn.0].up.extend_from_slice(&request);
    }

    fn link_turn(&mut self) {
        let i = self.rng.index(self.links.len());
        self.links[i].turn(&mut self.server, self.now, &mut self.rng);
        self.big_keys.extend(self.links[i].take_big_keys().into_iter().map(|key| key.to_vec()));
    }

    /// Some bytes of some connection arrive, in one direction.
    fn deliver(&mut self) {
        let conns = &self.server.conns;
        let waiting = |id: &ConnId| {
            let conn = &conns[id.0];
            !conn.up.is_empty()
                || !conn.down.is_empty() && conn.owner != Owner::Gone
                || !conn.is_open && conn.owner != Owner::Gone
        };
        let waiting: Vec<ConnId> = (DATABASES..conns.len()).map(ConnId).filter(waiting).collect();
        if waiting.is_empty() {
            return;
        }
        let id = *self.rng.pick(&waiting);
        let all = self.rng.one_in(2);
        if self.server.conns[id.0].up.is_empty() || self.rng.one_in(2) {
            self.deliver_down(id, all);
        } else {
            self.deliver_up(id, all);
        }
    }

    fn deliver_up(&mut self, id: ConnId, all: bool) {
        let waiting = self.server.conns[id.0].up.len();
        let len = if all { waiting } else { self.rng.index(waiting + 1) };
        self.server.arrive(id, len);
        let conn = &self.server.conns[id.0];
        if conn.owner == Owner::Gone && conn.up.is_empty() && conn.is_open && id.0 >= DATABASES {
            self.server.close(id);
        }
    }

    fn deliver_down(&mut self, id: ConnId, all: bool) {
        let conn = &mut self.server.conns[id.0];
        let waiting = conn.down.len();
        let len = if all { waiting } else { self.rng.index(waiting + 1) };
        let bytes = conn.down.split_to(len);
        let ended = conn.down.is_empty() && !conn.is_open;
        match conn.owner {
            Owner::Link(link) if ended => {
                self.links[link].receive(&bytes);
                if self.rng.one_in(2) {
                    while self.links[link].read_one(self.now) {}
                }
                self.lose_link(link);
            }
            Owner::Link(link) => self.links[link].receive(&bytes),
            Owner::Client(client) if !bytes.is_empty() => {
                let around = Around {
                    links: &self.links,
                    server: &self.server,
                    table: &self.table,
                    counters: &self.counters,
                    big_keys: &self.big_keys,
                    policies: &self.policies,
                    judge: &self.judge,
                    now: self.now,
                    meanwhile: None,
                };
                self.clients[client].receive(&bytes, &around);
            }
            _ => {}
        }
    }

    fn lose_link(&mut self, link: usize) {
        self.losses += 1;
        self.judge.borrow_mut().faults = true;
        self.links[link].lose(&mut self.server, &mut self.rng, self.now);
    }

    fn connect(&mut self, link: usize) {
        if self.links[link].conn().is_none() {
            self.judge.borrow_mut().recovered(self.links[link].purpose.scope);
        }
        self.links[link].connect(&mut self.server, &self.table, link, self.now);
    }

    fn pass(&mut self, us: u64) {
        self.now = self.now.saturating_add(Duration::from_micros(us));
        self.server.advance_to(self.now.as_micros() / 1000);
        if self.character.has_timeouts {
            self.judge.borrow_mut().faults = true;
            self.links.iter().for_each(|link| link.time_out(self.now));
        }
    }

    fn server_does_something(&mut self) {
        let slot = self.rng.index(DATABASES * KEYS);
        if self.rng.one_in(2) {
            self.server.come_round(slot);
        }
        if self.happens(self.character.direct_writes / 10) {
            self.write_directly();
        }
        if self.happens(self.character.evictions / 10) {
            self.server.evict(slot);
        }
        if self.happens(self.character.evictions / 10) {
            self.server.untrack(slot % KEYS);
        }
        if self.happens(self.character.rights) {
            self.server.refuses = Refuses { tracking: self.rng.one_in(2), caching: self.rng.one_in(2) };
        }
    }

    /// A writer elsewhere does a few things at once. One that has flushed everything often fills it again.
    fn write_directly(&mut self) {
        let database = self.rng.index(DATABASES);
        let mut requests: Vec<Words> = (0..1 + self.rng.below(4)).map(|_| self.write().0).collect();
        if requests.iter().any(|words| words[0] == b"FLUSHALL") && self.rng.one_in(2) {
            for key in &KEY_NAMES[..STRINGS] {
                self.tag += 1;
                let (value, ttl) = (self.value(0), self.ttl());
                requests.push(vec![b"SET".to_vec(), key.to_vec(), value, b"PX".to_vec(), ttl]);
            }
        }
        for words in requests {
            trace!("directly in database {database}: {}", show_words(&words));
            self.server.execute_directly(database, &words);
        }
    }

    fn larder_does_something(&mut self) {
        let link = self.rng.index(self.links.len());
        if self.rng.one_in(10) {
            self.links[link].touch_upstream(self.now);
        }
        if self.happens(self.character.softenings) {
            self.soften(link);
        }
        if self.happens(self.character.admissions) {
            let admission = [Admission::Always, Admission::SecondTouch][self.rng.index(2)];
            self.links[link].set_limits(LinkLimits { admission, ..self.limits });
        }
        if self.rng.one_in(5) {
            self.links[link].expire_soft(self.now);
        }
        match self.links[link].conn() {
            None if self.rng.one_in(3) && self.losses > 0 => self.links[link].give_up(self.now),
            // An outage lasts for a while.
            None if self.links[link].has_been_lost() && self.rng.below(4) > 0 => {}
            None => self.connect(link),
            Some(_) if self.happens(self.character.losses / 10) => self.lose_link(link),
            Some(conn) if self.happens(self.character.losses / 10) => {
                trace!("the server closes conn {}", conn.0);
                self.server.close(conn);
            }
            Some(_) => {}
        }
        let client = self.rng.index(self.clients.len());
        if self.happens(self.character.losses / 10)
            && let Some(conn) = self.clients[client].conn
        {
            trace!("client {client} loses conn {}", conn.0);
            self.judge.borrow_mut().faults = true;
            self.server.conns[conn.0].owner = Owner::Gone;
            self.clients[client].lose_conn(&self.links);
        }
        if self.rng.one_in(20) {
            self.big_keys.clear();
        }
    }

    /// An operator invalidates a few keys softly.
    fn soften(&mut self, link: usize) {
        self.tag += 1;
        let order = SoftOrder { cause: Cause::Manual, ms: 1 + self.rng.below(self.character.soft_ms_max) as u32 };
        let (name, kind): (&[u8], OpKind) = match self.rng.below(3) {
            0 => (b"DEL", OpKind::Soften(order)),
            1 => (b"DEL", OpKind::UnlinkSoftly(order)),
            _ => (b"DELNAMED", OpKind::NamedSoftly(order)),
        };
        let mut words = self.several(name);
        words.push(format!("#{}", self.tag).into_bytes());
        trace!("link {link} softens: {kind:?} {}", show_words(&words));
        self.links[link].soften(&words, kind);
        let client = self.rng.index(self.clients.len());
        if self.character.chases && self.clients[client].waits_for() < self.character.depth_max {
            // Somebody deletes them once more, by another way.
            self.tag += 1;
            words[0] = b"DEL".to_vec();
            words.push(format!("#{}", self.tag).into_bytes());
            self.clients[client].ask(words, Kind::WriteApart, &self.server, &self.judge.borrow());
        }
    }

    /// True once in so many times; never for 0.
    fn happens(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.rng.one_in(one_in)
    }

    /// Everything comes to its end: nobody asks any more, and all that is under way arrives.
    fn settle(&mut self, looks: Looks) -> Result<(), String> {
        trace!("settling");
        for _ in 0..SETTLING_ROUNDS_MAX {
            self.pass(100);
            for link in 0..self.links.len() {
                self.connect(link);
                self.links[link].turn(&mut self.server, self.now, &mut self.rng);
            }
            for id in (DATABASES..self.server.conns.len()).map(ConnId) {
                self.deliver_up(id, true);
                self.deliver_down(id, true);
            }
            for client in 0..self.clients.len() {
                self.client_turn(client);
            }
            self.wrong().map_or(Ok(()), Err)?;
            let links_left = self.links.iter().any(|link| !link.left().is_empty());
            if !links_left && self.clients.iter().all(|client| client.left().is_empty()) {
                return self.is_settled(looks);
            }
        }
        let links = self.links.iter().map(|link| format!("link {}: {}", link.purpose.scope, link.left()));
        let clients = self.clients.iter().map(|client| format!("client {}: {}", client.id, client.left()));
        let left: Vec<String> = links.chain(clients).filter(|line| !line.ends_with(": ")).collect();
        Err(format!("something never ends: {}", left.join("; ")))
    }

    /// Nothing is under way: L1 must hold what the server holds, and no write may have been executed that was not sent.
    fn is_settled(&mut self, looks: Looks) -> Result<(), String> {
        (0..DATABASES * KEYS).for_each(|slot| self.server.come_round(slot));
        for id in (0..self.server.conns.len()).map(ConnId) {
            self.deliver_down(id, true);
        }
        for link in &self.links {
            while link.read_one(self.now) {}
            for (words, reply) in self.held(link) {
                let base = link.purpose.database * KEYS;
                let current = crate::history::evaluate(&words, true, |key| self.server.value(base + key));
                if looks == Looks::IntoL1 && current != reply {
                    return Err(format!("L1 of scope {} is stale: {}", link.purpose.scope, show_words(&words)));
                }
            }
        }
        self.look_softly()?;
        for request in &self.judge.borrow().never_sent {
            if !self.server.history.executions(request).is_empty() {
                return Err(format!("executed, though a client was told otherwise: {}", crate::history::show(request)));
            }
        }
        self.wrong().map_or(Ok(()), Err)
    }

    /// What a client that has just come would be answered softly: with nothing under way it is what the server holds, or of a key
    /// that is missing there; and nothing older than the last write of the key that anybody was told of.
    fn look_softly(&self) -> Result<(), String> {
        let request = OwnedArgs::new(["GET", ""]);
        let Resolved::Known(get) = self.table.resolve(request.args()) else { return Ok(()) };
        for (link, (key, name)) in
            self.links.iter().flat_map(|link| KEY_NAMES.iter().enumerate().map(move |k| (link, k)))
        {
            let current = self.server.value(link.purpose.database * KEYS + key);
            // The first may be sent to the upstream.
            for reader in [Reader(u64::MAX), Reader(u64::MAX - 1)] {
                let by = SoftRead { reader, since: Time::ZERO };
                let Some(hit) = link.partition.read_soft(name, Variant::bare(get.id), by, self.now) else { continue };
                let mut reply = Vec::new();
                crate::history::put_bulk(current.as_deref(), true, &mut reply);
                if current.is_some() && hit.reply().as_deref() != Some(&reply[..]) {
                    return Err(format!("a change ends no softness: GET {}", String::from_utf8_lossy(name)));
                }
                let slot = link.purpose.database * KEYS + key;
                let written = self.judge.borrow().written(link.purpose.scope, slot);
                let is_known = self.server.history.since(slot, written).iter().any(|span| {
                    let mut value = Vec::new();
                    crate::history::put_bulk(span.value.as_deref(), true, &mut value);
                    hit.reply().as_deref() == Some(&value[..])
                });
                if !is_known {
                    let name = String::from_utf8_lossy(name);
                    return Err(format!("a write that was acknowledged ends no softness: GET {name}"));
                }
            }
        }
        Ok(())
    }

    fn audit(&self) {
        let mut judge = self.judge.borrow_mut();
        for link in &self.links {
            if let Err(what) = judge.audit(link.purpose.scope, &self.held(link), &self.server) {
                judge.violation.get_or_insert(what);
            }
        }
    }

    /// The answers that L1 would give now for a scope.
    fn held(&self, link: &Link) -> Vec<(Words, Vec<u8>)> {
        if !link.caches() {
            return Vec::new();
        }
        let mut held = Vec::new();
        for name in KEY_NAMES {
            for (command, more) in [("GET", &[][..]), ("STRLEN", &[]), ("EXISTS", &[]), ("GETRANGE", &["1", "3"])] {
                let mut words: Words = vec![command.into(), name.to_vec()];
                words.extend(more.iter().map(|w| w.as_bytes().to_vec()));
                let request = OwnedArgs::new(&words);
                let Resolved::Known(command) = self.table.resolve(request.args()) else { continue };
                let variant = Variant::new(command.id, request.args(), 1);
                if let Some(hit) = link.partition.read(name, variant, || self.now) {
                    held.push((words, hit.reply().expect("what L1 holds can be read").into_owned()));
                }
            }
        }
        held
    }

    fn request(&mut self) -> (Words, Kind) {
        if self.rng.one_in(60) {
            let scope = self.rng.index(self.links.len());
            return (vec![b"SELECT".to_vec(), scope.to_string().into_bytes()], Kind::Enter(scope));
        }
        if self.rng.below(10) < self.character.writes_in_ten { self.write() } else { self.read() }
    }

    fn read(&mut self) -> (Words, Kind) {
        let key = self.key();
        let words: Words = match self.rng.below(20) {
            0..=8 => vec![b"GET".to_vec(), key],
            9 => vec![b"STRLEN".to_vec(), key],
            10 => vec![b"GETRANGE".to_vec(), key, b"1".to_vec(), b"3".to_vec()],
            11 => vec![b"PTTL".to_vec(), key],
            12 => vec![b"TOUCH".to_vec(), key],
            13 | 14 => self.several(b"EXISTS"),
            _ => self.several(b"MGET"),
        };
        (words, if self.rng.one_in(20) { Kind::ReadApart } else { Kind::Read })
    }

    /// A write. No two have the same bytes.
    pub(crate) fn write(&mut self) -> (Words, Kind) {
        self.tag += 1;
        let tag = format!("#{}", self.tag).into_bytes();
        if self.rng.one_in(self.character.flushes) {
            return (vec![b"FLUSHALL".to_vec(), tag], Kind::Write);
        }
        let kind = if self.happens(self.character.deletions) { 10 } else { self.rng.below(25) };
        let words: Words = match kind {
            0..=6 => vec![b"SET".to_vec(), self.string(), self.value(0)],
            7..=9 => {
                vec![b"SET".to_vec(), self.string(), self.value(0), b"PX".to_vec(), self.ttl()]
            }
            10..=12 => {
                let mut words = self.several(b"DEL");
                words.push(tag);
                words
            }
            13..=15 => vec![b"INCR".to_vec(), KEY_NAMES[STRINGS + self.rng.index(KEYS - STRINGS)].to_vec(), tag],
            16..=18 => {
                vec![b"PEXPIRE".to_vec(), self.key(), self.ttl(), tag]
            }
            19 => vec![b"PUBLISH".to_vec(), b"channel".to_vec(), tag],
            20 => self.pairs(&[b"EVAL", b"script", b"0"]),
            21 => self.pairs(&[b"EVAL", b"delete", b"0"]),
            _ => self.pairs(&[b"MSET"]),
        };
        let is_apart = words[0] != b"PUBLISH" && self.rng.one_in(self.character.apart);
        (words, if is_apart { Kind::WriteApart } else { Kind::Write })
    }

    fn key(&mut self) -> Vec<u8> {
        KEY_NAMES[self.rng.index(self.character.keys)].to_vec()
    }

    fn string(&mut self) -> Vec<u8> {
        KEY_NAMES[self.rng.index(self.character.keys.min(STRINGS))].to_vec()
    }

    fn value(&mut self, nth: usize) -> Vec<u8> {
        let padding = if self.happens(self.character.big_values) { 300 } else { self.rng.index(4) };
        format!("{}.{nth}{}", self.tag, "-".repeat(padding)).into_bytes()
    }

    fn ttl(&mut self) -> Vec<u8> {
        (1 + self.rng.below(self.character.ttl_ms_max)).to_string().into_bytes()
    }

    fn several(&mut self, name: &[u8]) -> Words {
        let mut words = vec![name.to_vec()];
        for _ in 0..1 + self.rng.below(3) {
            words.push(self.key());
        }
        words
    }

    fn pairs(&mut self, name: &[&[u8]]) -> Words {
        let mut words: Words = name.iter().map(|w| w.to_vec()).collect();
        for nth in 0..1 + self.rng.index(3) {
            words.push(self.string());
            words.push(self.value(nth));
        }
        words
    }
}
