//! Who is connected: what CLIENT LIST, INFO and KILL speak of, and the bound on how many there may be.
//!
//! The registry is locked when a client comes, goes or is asked about, never while it is served: what changes with each
//! batch of requests is in atomics.

use crate::port::Port;
use larder_protocol::shape::Protocol;
use larder_protocol::table::{CommandId, Table};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The number of a client, from 1 in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// All clients that are connected.
#[derive(Debug)]
pub struct Clients {
    connected: Mutex<BTreeMap<ClientId, Arc<Client>>>,
    next_id: AtomicU64,
    clients_max: AtomicUsize,
}

/// What others may know of a client.
#[derive(Debug)]
pub struct Client {
    /// Its number.
    pub id: ClientId,
    /// Its address.
    pub address: SocketAddr,
    /// The address that it connected to.
    pub local_address: SocketAddr,
    /// Seconds of the clock when it came.
    pub connected_at_s: u64,
    /// Its letter box.
    pub port: Arc<Port>,
    /// Seconds of the clock at its last request.
    pub heard_at_s: AtomicU64,
    /// The database that it has selected.
    pub database: AtomicU32,
    /// 2 or 3.
    pub resp: AtomicU8,
    /// Channels and patterns that it is subscribed to.
    pub subscriptions: AtomicU32,
    /// Patterns among them.
    pub patterns: AtomicU32,
    /// Shard channels that it is subscribed to.
    pub shard_subscriptions: AtomicU32,
    /// True while it waits in a blocking command.
    pub blocked: AtomicBool,
    /// True while it is in a transaction.
    pub in_transaction: AtomicBool,
    /// True while it watches (MONITOR).
    pub monitoring: AtomicBool,
    /// Bytes of its replies and messages that it has not read.
    pub output_bytes: AtomicU64,
    /// True after `CLIENT NO-EVICT ON`.
    pub no_evict: AtomicBool,
    /// True after `CLIENT NO-TOUCH ON`.
    pub no_touch: AtomicBool,
    /// The index of the last command in the table.
    pub last_command: AtomicU16,
    /// What it has asked of `CLIENT TRACKING`.
    pub tracking: Tracking,
    /// The upstream's number for the connection that it has borrowed to wait on, or 0.
    pub upstream_id: AtomicU64,
    names: Mutex<Names>,
}

/// The texts of a client.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// `CLIENT SETNAME`.
    pub name: Vec<u8>,
    /// The user that it is authenticated as.
    pub user: Vec<u8>,
    /// `CLIENT SETINFO LIB-NAME`.
    pub lib_name: Vec<u8>,
    /// `CLIENT SETINFO LIB-VER`.
    pub lib_version: Vec<u8>,
}

/// What a client has asked of `CLIENT TRACKING`.
#[derive(Debug)]
pub struct Tracking {
    redirect: AtomicI64,
    /// True in the mode `BCAST`.
    pub broadcasts: AtomicBool,
    /// True once the upstream has said that the client which it redirects to has gone.
    pub is_broken: AtomicBool,
}

// === impl Tracking ===

impl Tracking {
    /// It tracks from now on; whom it redirects to, if it does.
    pub fn begin(&self, redirect: Option<ClientId>, broadcasts: bool) {
        self.redirect.store(redirect.map_or(0, |target| target.0 as i64), Ordering::Relaxed);
        self.broadcasts.store(broadcasts, Ordering::Relaxed);
        self.is_broken.store(false, Ordering::Relaxed);
    }

    /// It does not track any more.
    pub fn end(&self) {
        self.redirect.store(-1, Ordering::Relaxed);
        self.broadcasts.store(false, Ordering::Relaxed);
        self.is_broken.store(false, Ordering::Relaxed);
    }

    /// True while it tracks.
    pub fn is_on(&self) -> bool {
        self.redirect() >= 0
    }

    /// Whom it redirects to: 0 is nobody, -1 that it does not track.
    pub fn redirect(&self) -> i64 {
        self.redirect.load(Ordering::Relaxed)
    }
}

impl Default for Tracking {
    fn default() -> Self {
        Self { redirect: AtomicI64::new(-1), broadcasts: AtomicBool::new(false), is_broken: AtomicBool::new(false) }
    }
}

// === impl Clients ===

impl Clients {
    /// An empty registry with room for so many.
    pub fn new(clients_max: usize) -> Self {
        Self { connected: Mutex::default(), next_id: AtomicU64::new(1), clients_max: AtomicUsize::new(clients_max) }
    }

    /// Registers a client; `None` if there are too many.
    pub fn join(&self, address: SocketAddr, local_address: SocketAddr, now_s: u64) -> Option<Arc<Client>> {
        let mut connected = self.lock();
        if connected.len() >= self.clients_max() {
            return None;
        }
        let id = ClientId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let client = Arc::new(Client {
            id,
            address,
            local_address,
            connected_at_s: now_s,
            port: Arc::default(),
            heard_at_s: AtomicU64::new(now_s),
            database: AtomicU32::new(0),
            resp: AtomicU8::new(2),
            subscriptions: AtomicU32::new(0),
            patterns: AtomicU32::new(0),
            shard_subscriptions: AtomicU32::new(0),
            blocked: AtomicBool::new(false),
            in_transaction: AtomicBool::new(false),
            monitoring: AtomicBool::new(false),
            output_bytes: AtomicU64::new(0),
            no_evict: AtomicBool::new(false),
            no_touch: AtomicBool::new(false),
            last_command: AtomicU16::new(u16::MAX),
            tracking: Tracking::default(),
            upstream_id: AtomicU64::new(0),
            names: Mutex::new(Names { user: b"default".to_vec(), ..Names::default() }),
        });
        connected.insert(id, client.clone());
        Some(client)
    }

    /// Takes a client out.
    pub fn leave(&self, id: ClientId) {
        self.lock().remove(&id);
    }

    /// The client with this number. One that has been killed is gone, though its task may still have to notice.
    pub fn find(&self, id: ClientId) -> Option<Arc<Client>> {
        self.lock().get(&id).filter(|client| !client.port.is_killed()).cloned()
    }

    /// All clients that have not been killed, by number.
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.lock().values().filter(|client| !client.port.is_killed()).cloned().collect()
    }

    /// How many are connected.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// True if nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bound on how many may be connected.
    pub fn clients_max(&self) -> usize {
        self.clients_max.load(Ordering::Relaxed)
    }

    /// Changes how many may be. Those who are there stay.
    pub fn set_clients_max(&self, clients_max: usize) {
        self.clients_max.store(clients_max, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClientId, Arc<Client>>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Client ===

impl Client {
    /// A look at, or a change of, its texts.
    pub fn with_names<T>(&self, look: impl FnOnce(&mut Names) -> T) -> T {
        look(&mut self.names.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The protocol that it speaks.
    pub fn protocol(&self) -> Protocol {
        if self.resp.load(Ordering::Relaxed) == 3 { Protocol::Resp3 } else { Protocol::Resp2 }
    }

    /// `CLIENT LIST`'s type of it.
    pub fn kind(&self) -> &'static str {
        let subscribed = self.subscriptions.load(Ordering::Relaxed) + self.shard_subscriptions.load(Ordering::Relaxed);
        if subscribed > 0 { "pubsub" } else { "normal" }
    }

    /// Its line in `CLIENT LIST`, with the fields of redis-server 7.0 in their order. `request_bytes` is
    /// what the client's request at hand takes in its input buffer; of the output `omem` tells.
    pub fn line(&self, now_s: u64, table: &Table, request_bytes: usize) -> Vec<u8> {
        let load = |n: &AtomicU32| n.load(Ordering::Relaxed);
        let names = self.with_names(|names| names.clone());
        let patterns = load(&self.patterns);
        let multi = if self.in_transaction.load(Ordering::Relaxed) { 0 } else { -1 };
        let output_bytes = self.output_bytes.load(Ordering::Relaxed);
        let mut line =
            format!("id={} addr={} laddr={} fd=0 name=", self.id.0, self.address, self.local_address).into_bytes();
        line.extend_from_slice(until_nul(&names.name));
        line.extend_from_slice(
            format!(
                " age={} idle={} flags={} db={} sub={} psub={} ssub={} multi={multi} qbuf={request_bytes} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll={} omem={output_bytes} tot-mem={} events=r cmd={} user=",
                now_s.saturating_sub(self.connected_at_s),
                now_s.saturating_sub(self.heard_at_s.load(Ordering::Relaxed)),
                self.flags(),
                load(&self.database),
                load(&self.subscriptions).saturating_sub(patterns),
                patterns,
                load(&self.shard_subscriptions),
                u8::from(output_bytes > 0),
                output_bytes + request_bytes as u64,
                table.command(CommandId(self.last_command.load(Ordering::Relaxed))).map_or("NULL", |c| &c.name),
            )
            .as_bytes(),
        );
        line.extend_from_slice(&names.user);
        line.extend_from_slice(format!(" redir={} resp=", self.tracking.redirect()).as_bytes());
        line.extend_from_slice(self.resp.load(Ordering::Relaxed).to_string().as_bytes());
        // Servers before 7.2 know nothing of libraries.
        if table.is_on_upstream("client|setinfo") {
            line.extend_from_slice(b" lib-name=");
            line.extend_from_slice(until_nul(&names.lib_name));
            line.extend_from_slice(b" lib-ver=");
            line.extend_from_slice(until_nul(&names.lib_version));
        }
        line
    }

    fn flags(&self) -> String {
        let mut flags = String::new();
        for (set, letter) in [
            (self.monitoring.load(Ordering::Relaxed), 'O'),
            (self.kind() == "pubsub", 'P'),
            (self.in_transaction.load(Ordering::Relaxed), 'x'),
            (self.blocked.load(Ordering::Relaxed), 'b'),
            (self.tracking.is_on(), 't'),
            (self.tracking.is_broken.load(Ordering::Relaxed), 'R'),
            (self.tracking.broadcasts.load(Ordering::Relaxed), 'B'),
            (self.no_evict.load(Ordering::Relaxed), 'e'),
            (self.no_touch.load(Ordering::Relaxed), 'T'),
        ] {
            if set {
                flags.push(letter);
            }
        }
        if flags.is_empty() { "N".into() } else { flags }
    }
}

/// What a server shows of a name that it keeps: it prints up to a NUL byte.
pub(crate) fn until_nul(name: &[u8]) -> &[u8] {
    name.split(|b| *b == 0).next().unwrap_or_default()
}
