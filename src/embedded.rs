//! Serving without an upstream: the embedded store behind a lock, and the commands about the server that it answers.
//!
//! INFO, COMMAND and CONFIG GET say what client libraries and redis-cli ask at their start. Everything on data is the
//! store's ([`crate::origin`]), which also words the refusal of what it does not have.

use crate::cache::listing::{self, Filter};
use crate::l1::Cause;
use crate::origin::{
    self, DependIndex, DependLimits, DependRefusal, Effect, Origin, OriginLimits, OriginStats, TagIndex, UnixMillis,
};
use crate::server::Shared;
use crate::upstream::feed::Feed;
use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::glob::{self, Case};
use larder_protocol::shape::{self, Protocol, Shape};
use larder_protocol::table::{Class, Command, Group, Table};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// The store, for all threads.
pub struct Embedded {
    store: Box<Mutex<Store>>,
    databases: u32,
}

/// The store, the tags of its keys and what they depend on, which change together.
pub(crate) struct Store {
    origin: Origin,
    pub(crate) tags: TagIndex,
    depends: DependIndex,
    /// Who hears of changes, by database.
    feeds: HashMap<u32, Arc<Feed>>,
    /// Why keys change, for who hears of it.
    cause: Cause,
}

/// Keys that one round of expiry takes out at most.
const EXPIRE_BUDGET: usize = 1000;
/// Tagged keys that one round looks at, to see whether they are still there.
const TAG_BUDGET: usize = 10_000;

// === impl Embedded ===

impl Embedded {
    /// An empty store of this size.
    pub fn new(bytes_max: u64, seed: u64) -> Self {
        let limits = OriginLimits { bytes_max, ..OriginLimits::default() };
        let store = Store {
            origin: Origin::new(limits, seed),
            tags: TagIndex::default(),
            depends: DependIndex::default(),
            feeds: HashMap::new(),
            cause: Cause::DataChanged,
        };
        Self { store: Box::new(Mutex::new(store)), databases: limits.databases }
    }

    /// Changes the size of the store; a smaller one evicts at once.
    pub fn resize(&self, bytes_max: u64) {
        self.lock().origin.resize(bytes_max, unix_now());
    }

    /// Executes a command on data; the reply in `protocol`.
    pub fn execute(&self, database: u32, protocol: Protocol, args: Args<'_>) -> Vec<u8> {
        self.lock().execute(database, protocol, args, unix_now())
    }

    /// Works on store and tags in one step.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Store, UnixMillis) -> T) -> T {
        work(&mut self.lock(), unix_now())
    }

    /// Those who hear of changes in a database.
    pub(crate) fn feed(&self, database: u32) -> Arc<Feed> {
        self.lock().feeds.entry(database).or_default().clone()
    }

    /// Forgets tags and dependencies of keys that have gone.
    pub(crate) fn sweep_tags(&self) {
        let (mut store, now) = (self.lock(), unix_now());
        let Store { origin, tags, depends, .. } = &mut *store;
        tags.sweep(TAG_BUDGET, now, |db, key| origin.holds(db, key, now));
        depends.sweep(TAG_BUDGET, |db, key| origin.holds(db, key, now) || tags.is_leased(db, key, now));
        store.follow_gone(now);
    }

    /// What the store has and what it has done.
    pub fn stats(&self) -> OriginStats {
        self.lock().origin.stats()
    }

    /// Takes out keys that have expired.
    pub fn expire_some(&self) {
        let (mut store, now) = (self.lock(), unix_now());
        store.origin.expire_some(now, EXPIRE_BUDGET);
        store.follow_gone(now);
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Store ===

impl Store {
    /// Executes a command on data; the reply in `protocol`.
    pub(crate) fn execute(&mut self, database: u32, protocol: Protocol, args: Args<'_>, now: UnixMillis) -> Vec<u8> {
        let protocol = match protocol {
            Protocol::Resp2 => origin::Protocol::Resp2,
            Protocol::Resp3 => origin::Protocol::Resp3,
        };
        let mut out = Vec::new();
        let effect = self.origin.execute(database, protocol, args, now, &mut out);
        self.heed(effect, args, now);
        out
    }

    /// Tells those who hear of changes, and lets happen what follows from them.
    fn heed(&mut self, effect: Option<Effect>, args: Args<'_>, now: UnixMillis) {
        match effect {
            Some(Effect::Flushed { db }) => {
                self.tags.flush(Some(db));
                self.depends.flush(Some(db));
                self.tell(db, None);
            }
            Some(Effect::FlushedAll) => {
                self.tags.flush(None);
                self.depends.flush(None);
                self.feeds.values().for_each(|feed| feed.tell(None, self.cause));
            }
            Some(Effect::Swapped { first, second }) => {
                self.tags.swap(first, second);
                self.depends.swap(first, second);
                [first, second].into_iter().for_each(|db| self.tell(db, None));
            }
            Some(Effect::Moved { from, to }) => {
                for db in [from, to] {
                    self.tell(db, args.get(1));
                    self.follow(db, args.get(1).into_iter(), now);
                }
            }
            Some(Effect::Keys { db, first, last, step }) => {
                let keys = (first..=last).step_by(step.max(1)).filter_map(|at| args.get(at));
                keys.clone().for_each(|key| self.tell(db, Some(key)));
                self.follow(db, keys, now);
            }
            None => {}
        }
        self.follow_gone(now);
    }

    /// Lets a key depend on others.
    pub(crate) fn depend<'k>(
        &mut self,
        db: u32,
        key: &[u8],
        sources: impl Iterator<Item = &'k [u8]>,
        limits: DependLimits,
    ) -> Result<usize, DependRefusal> {
        let added = self.depends.depend(db, key, sources, limits);
        self.origin.note_gone(!self.depends.is_empty());
        added
    }

    /// Lets a key depend on others no more.
    pub(crate) fn undepend<'k>(
        &mut self,
        db: u32,
        key: &[u8],
        sources: Option<impl Iterator<Item = &'k [u8]>>,
    ) -> usize {
        let released = self.depends.release(db, key, sources);
        self.origin.note_gone(!self.depends.is_empty());
        released
    }

    /// What keys depend on.
    pub(crate) fn depends(&self) -> &DependIndex {
        &self.depends
    }

    /// Some keys have changed: what depends on them goes. How many keys those were.
    pub(crate) fn follow<'k>(&mut self, db: u32, changed: impl Iterator<Item = &'k [u8]>, now: UnixMillis) -> u64 {
        if self.depends.is_empty() {
            return 0;
        }
        let changed: Vec<Vec<u8>> = changed.map(<[u8]>::to_vec).collect();
        let gone = self.depends.take_out(db, &changed);
        let unlinked = gone.iter().filter(|key| self.unlink_dependent(db, key, now)).count();
        self.origin.note_gone(!self.depends.is_empty());
        unlinked as u64
    }

    /// The same for keys that have expired or were evicted.
    fn follow_gone(&mut self, now: UnixMillis) {
        while !self.depends.is_empty() {
            let gone = self.origin.take_gone();
            if gone.is_empty() {
                return;
            }
            for (db, key) in gone {
                self.follow(db, std::iter::once(&key[..]), now);
            }
        }
        self.origin.note_gone(false);
    }

    /// True if it was there.
    fn unlink_dependent(&mut self, db: u32, key: &[u8], now: UnixMillis) -> bool {
        self.tags.end_lease(db, key);
        self.tags.forget(db, key);
        let (request, mut out) = (OwnedArgs::new([b"UNLINK", key]), Vec::new());
        self.origin.execute(db, origin::Protocol::Resp3, request.args(), now, &mut out);
        self.tell(db, Some(key));
        out == b":1\r\n"
    }

    /// Works on the store for a reason that those who hear of changes are told.
    pub(crate) fn because<T>(&mut self, cause: Cause, work: impl FnOnce(&mut Self) -> T) -> T {
        self.cause = cause;
        let done = work(self);
        self.cause = Cause::DataChanged;
        done
    }

    fn tell(&self, db: u32, key: Option<&[u8]>) {
        if let Some(feed) = self.feeds.get(&db) {
            feed.tell(key, self.cause);
        }
    }

    /// True if a key is there.
    pub(crate) fn holds(&mut self, database: u32, key: &[u8], now: UnixMillis) -> bool {
        self.origin.holds(database, key, now)
    }
}

/// The wall clock: deadlines of the embedded store are points in time, as a server's are.
fn unix_now() -> UnixMillis {
    UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64))
}

// === impl Shared ===

impl Shared {
    /// The answer of a Larder without an upstream.
    pub(crate) fn execute_embedded(&self, database: u32, protocol: Protocol, args: Args<'_>) -> Vec<u8> {
        let crate::server::Backend::Embedded(embedded) = &self.backend else { return Vec::new() };
        if Origin::handles(args.arg(0)) {
            return embedded.execute(database, protocol, args);
        }
        let answer = match args.arg(0).to_ascii_lowercase().as_slice() {
            b"info" => Some(text_frame(&self.info_embedded(embedded, args))),
            b"command" => self.command_embedded(args),
            b"config" if args.len() >= 3 && args.arg(1).eq_ignore_ascii_case(b"get") => {
                Some(self.config_embedded(args))
            }
            _ => None,
        };
        match answer {
            Some(resp3) if protocol == Protocol::Resp3 => resp3,
            Some(resp3) => {
                let mut resp2 = Vec::with_capacity(resp3.len());
                match shape::to_resp2(Shape::GENERIC, &resp3, &mut resp2) {
                    Ok(()) => resp2,
                    Err(_) => resp3,
                }
            }
            None => embedded.execute(database, protocol, args),
        }
    }

    /// How many databases the embedded store has.
    pub(crate) fn databases_embedded(&self) -> u32 {
        match &self.backend {
            crate::server::Backend::Embedded(embedded) => embedded.databases,
            crate::server::Backend::Upstream(_) => 0,
        }
    }

    /// What HELLO says without an upstream, in RESP3; number and protocol of the connection are put in by others.
    pub(crate) fn own_greeting(&self) -> bytes::Bytes {
        let version = env!("CARGO_PKG_VERSION");
        let greeting = format!(
            "%7\r\n$6\r\nserver\r\n$6\r\nlarder\r\n$7\r\nversion\r\n${}\r\n{version}\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:0\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n",
            version.len()
        );
        greeting.into()
    }

    fn info_embedded(&self, embedded: &Embedded, args: Args<'_>) -> String {
        let stats = embedded.stats();
        let uptime_s = self.clock.now().as_micros() / 1_000_000;
        let wanted: Vec<Vec<u8>> = args.iter().skip(1).map(<[u8]>::to_ascii_lowercase).collect();
        let wants = |section: &str| {
            wanted.is_empty()
                || wanted
                    .iter()
                    .any(|w| matches!(&w[..], b"all" | b"default" | b"everything") || w == section.as_bytes())
        };
        let mut info = String::new();
        let mut section = |name: &str, lines: String| {
            if wants(&name.to_lowercase()) {
                let gap = if info.is_empty() { "" } else { "\r\n" };
                let _ = write!(info, "{gap}# {name}\r\n{lines}");
            }
        };
        section(
            "Server",
            format!(
                "larder_version:{}\r\nredis_mode:standalone\r\nprocess_id:{}\r\nuptime_in_seconds:{uptime_s}\r\n",
                env!("CARGO_PKG_VERSION"),
                std::process::id()
            ),
        );
        let (clients, most) = (self.clients.len(), self.clients.clients_max());
        section("Clients", format!("connected_clients:{clients}\r\nmaxclients:{most}\r\n"));
        section("Memory", format!("used_memory:{}\r\nmaxmemory:{}\r\n", stats.bytes_used, stats.bytes_max));
        section(
            "Stats",
            format!(
                "total_connections_received:{}\r\ntotal_commands_processed:{}\r\nexpired_keys:{}\r\nevicted_keys:{}\r\nkeyspace_hits:{}\r\nkeyspace_misses:{}\r\n",
                self.metrics.sum(|c| &c.accepted),
                self.metrics.sum(|c| &c.commands),
                stats.expired,
                stats.evicted,
                stats.hits,
                stats.misses
            ),
        );
        let keyspace =
            stats.databases.iter().enumerate().filter(|(_, d)| d.keys > 0).fold(String::new(), |mut lines, (i, d)| {
                let _ = write!(lines, "db{i}:keys={},expires={},avg_ttl=0\r\n", d.keys, d.expires);
                lines
            });
        section("Keyspace", keyspace);
        info
    }

    /// COMMAND [COUNT | LIST | INFO [name ...] | DOCS [name ...] | GETKEYS command ...] for what the store has.
    fn command_embedded(&self, args: Args<'_>) -> Option<Vec<u8>> {
        let served = |c: &&Command| c.parent.is_none() && is_served(c);
        let all = || self.table.iter().filter(served);
        let sub = args.get(1).map(<[u8]>::to_ascii_lowercase);
        let own = |name| listing::own(&self.table, name);
        let named = || args.iter().skip(2).map(|name| self.table.lookup(name).filter(served).or_else(|| own(name)));
        let command_info = |c| command_info(&self.table, c);
        let command_docs = |c| command_docs(&self.table, c);
        Some(match sub.as_deref() {
            None => frames('*', all().map(command_info)),
            Some(b"count") => format!(":{}\r\n", all().count()).into_bytes(),
            Some(b"list") => {
                let names: Vec<&[u8]> = args.iter().skip(2).collect();
                let Some(filter) = Filter::parse(&names) else { return Some(b"-ERR syntax error\r\n".to_vec()) };
                let listed = self.table.iter().filter(|c| served(c) || c.group == Group::Larder);
                frames('*', listed.filter(|c| filter.admits(c)).map(|c| bulk(c.name.as_bytes())))
            }
            Some(b"info") if args.len() == 2 => frames('*', all().map(command_info)),
            Some(b"info") => frames('*', named().map(|c| c.map_or_else(|| b"*-1\r\n".to_vec(), command_info))),
            Some(b"docs") if args.len() == 2 => frames('%', all().map(command_docs)),
            Some(b"docs") => frames('%', named().flatten().map(command_docs)),
            Some(b"getkeys" | b"getkeysandflags") if args.len() > 3 => listing::keys_of(&self.table, args),
            _ => return None,
        })
    }

    fn config_embedded(&self, args: Args<'_>) -> Vec<u8> {
        let settings = [
            ("appendonly", "no".to_string()),
            ("databases", self.databases_embedded().to_string()),
            ("maxclients", self.clients.clients_max().to_string()),
            ("maxmemory", self.settings().store.size_bytes_max.to_string()),
            ("maxmemory-policy", "allkeys-lru".to_string()),
            ("proto-max-bulk-len", self.settings().limits.bulk_bytes_max.to_string()),
            ("save", String::new()),
        ];
        let matches = |name: &str| args.iter().skip(2).any(|p| glob::matches(p, name.as_bytes(), Case::Insensitive));
        let found = settings.iter().filter(|(name, _)| matches(name));
        frames('%', found.map(|(name, value)| [bulk(name.as_bytes()), bulk(value.as_bytes())].concat()))
    }
}

fn is_served(command: &Command) -> bool {
    Origin::handles(command.name.as_bytes())
        || matches!(command.class, Class::Local)
        || matches!(&*command.name, "info" | "command" | "config")
}

/// The first seven fields of `COMMAND INFO`, and empty ones for the rest.
fn command_info(table: &Table, command: &Command) -> Vec<u8> {
    if command.group == Group::Larder {
        return listing::row(table, command);
    }
    let flags = frames('~', command.flags.iter_names().map(|(n, _)| simple(&n.to_lowercase())));
    let categories =
        frames('~', command.categories.iter_names().map(|(n, _)| simple(&format!("@{}", n.to_lowercase()))));
    let head = format!(
        ":{}\r\n{}:{}\r\n:{}\r\n:{}\r\n",
        command.arity,
        String::from_utf8_lossy(&flags),
        command.first_key,
        command.last_key,
        command.step
    );
    let mut info = b"*10\r\n".to_vec();
    info.extend_from_slice(&bulk(command.name.as_bytes()));
    info.extend_from_slice(head.as_bytes());
    info.extend_from_slice(&categories);
    info.extend_from_slice(b"*0\r\n*0\r\n*0\r\n");
    info
}

fn command_docs(table: &Table, command: &Command) -> Vec<u8> {
    if command.group == Group::Larder {
        return listing::docs(table, command);
    }
    let group = format!("{:?}", command.group).to_lowercase();
    let mut docs = bulk(command.name.as_bytes());
    docs.extend_from_slice(b"%2\r\n");
    for text in ["group", &group, "since", &command.since] {
        docs.extend_from_slice(&bulk(text.as_bytes()));
    }
    docs
}

fn frames(kind: char, elements: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let elements: Vec<Vec<u8>> = elements.collect();
    [format!("{kind}{}\r\n", elements.len()).into_bytes(), elements.concat()].concat()
}

fn bulk(text: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

fn simple(text: &str) -> Vec<u8> {
    format!("+{text}\r\n").into_bytes()
}

fn text_frame(text: &str) -> Vec<u8> {
    format!("={}\r\ntxt:{text}\r\n", text.len() + 4).into_bytes()
}
