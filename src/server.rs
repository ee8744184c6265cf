//! The process: what all clients share, worker threads with their listeners, start and stop.
//!
//! Each worker thread has a current-thread runtime and a listener of its own on the same port (SO_REUSEPORT); who accepts
//! a connection hands it to the worker that serves the fewest ([`crate::workers`]), and there a client stays. Links and subscription hubs run on the first
//! worker. Before there is a listener, L1 is warmed with the names of hot keys that the last stop has saved
//! (`warm.snapshot_file`). A stop closes the listeners, saves those names, lets what is under way finish for at most `limits.shutdown_grace_ms`, and ends.

use crate::buffered::Buffered;
use crate::cache::warm::{self, Warming};
use crate::cache::{self, jobs::Jobs};
use crate::client::{self, Place, Registered};
use crate::clients::{Client, Clients};
use crate::clock::Clock;
use crate::config::{Config, Credentials, DenyRule, Resolved};
use crate::embedded::Embedded;
use crate::hub::{Hub, HubSettings, Kind};
use crate::insight::Insight;
use crate::l1::{L1, L1Settings};
use crate::live::{Live, SetLevel};
use crate::metrics::{Counters, Metrics};
use crate::monitors::Monitors;
use crate::pause::Pauses;
use crate::policy::Policies;
use crate::received::Ration;
use crate::redirect::Redirects;
use crate::report::Baseline;
use crate::upstream::backoff::BackoffSettings;
use crate::upstream::breaker::BreakerSettings;
use crate::upstream::link::LinkLimits;
use crate::upstream::link_io::LinkTimes;
use crate::upstream::node::Node;
use crate::upstream::peers::{self, PeersSettings};
use crate::upstream::pool::PoolLimits;
use crate::upstream::raw::{self, Endpoint, Identity, RawConnection};
use crate::upstream::scope::{ReplyTimes, Upstream, UpstreamSettings};
use crate::workers::{Seat, Workers};
use arc_swap::{ArcSwap, Guard};
use larder_protocol::scan::{ReplyLimits, RequestLimits};
use larder_protocol::shape::Protocol;
use larder_protocol::table::{Categories, Command, Table};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

/// Why serving ended other than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// As configured.
        address: String,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// A runtime or a thread cannot be had.
    #[error("cannot start a worker thread: {0}")]
    Worker(io::Error),
    /// `require_upstream` is set and the upstream does not serve.
    #[error("the upstream {endpoint} is required and not available: {cause}")]
    Upstream {
        /// Where it should be.
        endpoint: Endpoint,
        /// Why it is not.
        cause: String,
    },
}

/// What all clients share.
pub struct Shared {
    /// The settings at the start.
    pub config: Config,
    /// The settings that can change, as they are now.
    pub live: Live,
    /// The clock.
    pub clock: Clock,
    /// Where data comes from.
    pub backend: Backend,
    /// Who is connected.
    pub clients: Clients,
    /// Who watches with MONITOR.
    pub monitors: Arc<Monitors>,
    /// Who is held by CLIENT PAUSE.
    pub pauses: Arc<Pauses>,
    /// Counters of all workers.
    pub metrics: Metrics,
    /// What is seen of the keys that clients use.
    pub insight: Arc<Insight>,
    /// What clients may not call.
    pub denied: Denied,
    /// How much waits altogether.
    pub buffered: Arc<Buffered>,
    /// What holds for keys, by pattern and in general.
    pub policies: ArcSwap<Policies>,
    /// The built-in command table.
    pub table: Arc<Table>,
    /// The settings in force: those of the start, and what has been changed since.
    in_force: ArcSwap<Config>,
    /// `limits.client_in_flight_max`, for a look at each request.
    pub(crate) client_in_flight_max: AtomicUsize,
    /// Work that takes a while.
    pub jobs: Jobs,
    /// What all warming shares.
    pub(crate) warming: Warming,
    /// How often the index of tags was written to through this process.
    tag_uses: AtomicU64,
    /// How many lines of the log may be about what clients send.
    pub lines_about_clients: Ration,
    /// Where counters began when they were reset last.
    pub(crate) baseline: Baseline,
    /// Who stands upstream for the clients that others redirect their invalidations to.
    pub(crate) redirects: Arc<Redirects>,
    hubs: Mutex<HashMap<Identity, Arc<Hub>>>,
    /// The worker threads.
    pub(crate) workers: Workers,
    draining: AtomicBool,
}

/// Where data comes from.
pub enum Backend {
    /// The store within the process.
    Embedded(Embedded),
    /// A server.
    Upstream(Arc<Upstream>),
}

/// What the operator denies.
#[derive(Debug, Default)]
pub struct Denied {
    names: Vec<String>,
    categories: Categories,
}

/// How often the embedded store looks for keys that have expired.
const EXPIRY_EVERY: Duration = Duration::from_millis(100);
/// How often clients that wait because of `limits.buffered_bytes_max` look whether they may go on.
const BUFFERED_LOOK_EVERY: Duration = Duration::from_millis(50);
/// Connections that may wait to be accepted (the system may hold fewer).
const BACKLOG: i32 = 4096;
/// So much of what a client has sent is read before it is refused.
const REFUSED_READ_BYTES: usize = 4096;
/// How long accepting pauses when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until a signal asks for the end. `set_level` changes what is logged.
///
/// # Errors
/// The address, a thread or a required upstream cannot be had.
pub fn run(resolved: Resolved, set_level: SetLevel) -> Result<(), RunError> {
    let Resolved { config, settings } = resolved;
    let live = Live::new(settings, set_level);
    let clock = Clock::start();
    let threads = config.threads;
    let runtimes: Vec<Runtime> = (0..threads).map(|_| runtime()).collect::<Result<_, _>>()?;
    let Some(first) = runtimes.first() else { return Ok(()) };
    let handles = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
    let shared = Arc::new(Shared::new(config, live, clock, first.handle(), handles));
    if shared.config.require_upstream {
        first.block_on(shared.require_upstream())?;
    }
    first.block_on(warm::warm_at_start(&shared));
    let (listeners, address) = listen(&shared.config, threads)?;
    println!("{}", shared.config.banner(address));
    let (stop, stopped) = watch::channel(false);
    let mut workers = Vec::new();
    for (i, (runtime, listener)) in runtimes.into_iter().zip(listeners).enumerate() {
        let (shared, stopped) = (shared.clone(), stopped.clone());
        let signal = (i == 0).then(|| stop.clone());
        let worker = std::thread::Builder::new().name(format!("larder-{i}"));
        let work = move || runtime.block_on(work(i, listener, shared, stopped, signal));
        workers.push(worker.spawn(work).map_err(RunError::Worker)?);
    }
    drop(stop);
    for worker in workers {
        if let Ok(Err(error)) = worker.join() {
            return Err(RunError::Worker(error));
        }
    }
    Ok(())
}

// === impl Shared ===

impl Shared {
    fn new(config: Config, live: Live, clock: Clock, first: &Handle, workers: Vec<Handle>) -> Self {
        let metrics = Metrics::default();
        let table = Arc::new(Table::builtin());
        let buffered = Buffered::new(config.limits.buffered_bytes_max);
        let insight = Insight::new(config.insight.sample_every as u32);
        let backend = match &config.upstream {
            None => Backend::Embedded(Embedded::new(config.store.size_bytes_max as u64, seed())),
            Some(_) => Backend::Upstream(upstream_of(&config, clock, &table, &buffered, &insight, first)),
        };
        let limits = &config.limits;
        let workers = workers.into_iter().map(|runtime| (runtime, metrics.worker(&insight)));
        Self {
            workers: Workers::new(workers),
            clients: Clients::new(limits.clients_max),
            denied: Denied::new(&config.deny),
            policies: ArcSwap::from_pointee(config.policies()),
            buffered,
            backend,
            clock,
            monitors: Arc::new(Monitors::new(limits.subscriber_output_bytes_max)),
            pauses: Arc::default(),
            metrics,
            insight,
            live,
            table,
            in_force: ArcSwap::from_pointee(config.clone()),
            client_in_flight_max: AtomicUsize::new(config.limits.client_in_flight_max),
            jobs: Jobs::default(),
            warming: Warming::default(),
            tag_uses: AtomicU64::new(0),
            lines_about_clients: Ration::default(),
            baseline: Baseline::default(),
            redirects: Arc::default(),
            hubs: Mutex::default(),
            draining: AtomicBool::new(false),
            config,
        }
    }

    /// The settings in force. For one look: not to be kept over an await.
    pub fn settings(&self) -> Guard<Arc<Config>> {
        self.in_force.load()
    }

    /// From now on these are in force, for all that looks at them ([`Shared::settings`]).
    pub(crate) fn put_in_force(&self, config: Config) {
        self.client_in_flight_max.store(config.limits.client_in_flight_max, Ordering::Relaxed);
        self.buffered.set_bytes_max(config.limits.buffered_bytes_max);
        self.policies.store(Arc::new(config.policies()));
        self.in_force.store(Arc::new(config));
    }

    /// Bounds of the requests of a client that connects now.
    pub(crate) fn request_limits(&self) -> RequestLimits {
        let limits = &self.settings().limits;
        RequestLimits {
            bulk_bytes_max: limits.bulk_bytes_max,
            args_max: limits.args_max,
            inline_bytes_max: limits.inline_bytes_max,
            request_bytes_max: limits.request_bytes_max,
        }
    }

    /// True once the process has been asked to end.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The index of tags has been written to: there may be something to sweep.
    pub(crate) fn tags_were_used(&self) {
        self.tag_uses.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that grows with each write to the index.
    pub(crate) fn tag_uses(&self) -> u64 {
        self.tag_uses.load(Ordering::Relaxed)
    }

    /// Runs a task on the first worker.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(first) = self.workers.first() {
            drop(first.runtime.spawn(task));
        }
    }

    /// Returns when every worker has ended the turn that it is in: what was stored before is seen by all turns that follow.
    pub(crate) async fn let_all_workers_see(&self) {
        for worker in self.workers.iter() {
            // A worker that has ended has no turns any more.
            let _: Result<(), tokio::task::JoinError> = worker.runtime.spawn(async {}).await;
        }
    }

    /// How long replies may take.
    pub fn reply_times(&self) -> ReplyTimes {
        reply_times_of(&self.settings())
    }

    /// True if clients authenticate with Larder and not with the upstream.
    pub fn has_own_users(&self) -> bool {
        self.config.requirepass.is_some() || !self.config.users.is_empty()
    }

    /// True if `name` is one of Larder's own users and this is its password.
    pub fn knows_user(&self, name: &[u8], password: &[u8]) -> bool {
        let secret = match name {
            b"default" if self.config.requirepass.is_some() => self.config.requirepass.as_ref(),
            _ => std::str::from_utf8(name).ok().and_then(|name| self.config.users.get(name)),
        };
        secret.is_some_and(|secret| secret.matches(password))
    }

    /// Where a client begins.
    pub(crate) fn first_place(&self) -> Result<Place, String> {
        match &self.backend {
            Backend::Embedded(_) => Ok(Place::Embedded(0)),
            Backend::Upstream(upstream) => upstream.default_scope().map(Place::Upstream).map_err(|e| e.to_string()),
        }
    }

    /// The subscription hub of an identity.
    pub fn hub(&self, identity: &Identity) -> Option<Arc<Hub>> {
        let Backend::Upstream(upstream) = &self.backend else { return None };
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        let hub = hubs.entry(identity.clone()).or_insert_with(|| {
            let pool = upstream.settings().pool;
            let settings = HubSettings {
                connect_max: pool.connect_max,
                replies: pool.replies,
                message_bytes_max: self.config.limits.subscriber_output_bytes_max,
                ..HubSettings::default()
            };
            Hub::new(upstream.node().clone(), identity.clone(), settings, upstream.runtime().clone())
        });
        Some(hub.clone())
    }

    /// Who hears of a message on `channel` through Larder: subscriptions that the upstream counts, and the clients here that
    /// stand behind them. `None` if there are neither.
    pub fn receivers(&self, kind: Kind, channel: &[u8]) -> Option<(i64, i64)> {
        let hubs: Vec<Arc<Hub>> = self.hubs.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let receivers = hubs.iter().map(|hub| match kind {
            // Patterns are for channels that are not sharded.
            Kind::Shard => hub.subscribers(kind, channel),
            _ => hub.receivers(channel),
        });
        let sums = receivers.fold((0, 0), |(up, here), r| (up + r.upstream as i64, here + r.here as i64));
        (sums != (0, 0)).then_some(sums)
    }

    /// Clients that the hubs have disconnected because they left too much unread.
    pub fn killed_as_slow(&self) -> u64 {
        let hubs: Vec<Arc<Hub>> = self.hubs.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        hubs.iter().map(|hub| hub.counts().killed_as_slow).sum()
    }

    /// Who is subscribed through Larder to exactly this: as [`Shared::receivers`].
    pub fn subscribers(&self, kind: Kind, name: &[u8]) -> (i64, i64) {
        let hubs: Vec<Arc<Hub>> = self.hubs.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let receivers = hubs.iter().map(|hub| hub.subscribers(kind, name));
        receivers.fold((0, 0), |(up, here), r| (up + r.upstream as i64, here + r.here as i64))
    }

    async fn require_upstream(&self) -> Result<(), RunError> {
        let Backend::Upstream(upstream) = &self.backend else { return Ok(()) };
        let endpoint = upstream.node().endpoint.clone();
        let pool = upstream.settings().pool;
        let asked = async {
            let mut connection = RawConnection::connect(&endpoint, pool.connect_max, pool.replies).await?;
            raw::set_up(&mut connection, upstream.default_identity(), Protocol::Resp2, upstream.default_database())
                .await?;
            raw::accepted(connection.call(["PING"]).await?)
        };
        match tokio::time::timeout(pool.connect_max, asked).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(cause)) => Err(RunError::Upstream { endpoint, cause: cause.to_string() }),
            Err(_) => Err(RunError::Upstream { endpoint, cause: "no answer in time".into() }),
        }
    }
}

// === impl Denied ===

impl Denied {
    /// The commands that the rules name.
    pub fn new(rules: &[DenyRule]) -> Self {
        let mut denied = Self::default();
        for rule in rules {
            match rule {
                DenyRule::Command(name) => denied.names.push(name.clone()),
                DenyRule::Category(name) => {
                    denied.categories |= Categories::from_name(&name.to_uppercase()).unwrap_or(Categories::empty());
                }
            }
        }
        denied
    }

    /// True if `command`, or the container that it belongs to, is denied.
    pub fn denies(&self, command: &Command) -> bool {
        if command.categories.intersects(self.categories) {
            return true;
        }
        // The name itself, or that of its container.
        let ends = |rest: &[u8]| matches!(rest, [] | [b'|', ..]);
        self.names.iter().any(|name| command.name.as_bytes().strip_prefix(name.as_bytes()).is_some_and(ends))
    }
}

fn runtime() -> Result<Runtime, RunError> {
    Builder::new_current_thread().enable_all().build().map_err(RunError::Worker)
}

/// A number that others cannot foresee, from the system by way of the standard library's hasher.
pub(crate) fn seed() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn upstream_of(
    config: &Config,
    clock: Clock,
    table: &Arc<Table>,
    buffered: &Arc<Buffered>,
    insight: &Arc<Insight>,
    runtime: &Handle,
) -> Arc<Upstream> {
    let (endpoint, identity, database) = match &config.upstream {
        Some(upstream) => (
            Endpoint { host: upstream.address.host.clone(), port: upstream.address.port },
            upstream.credentials.as_ref().map_or(Identity::Anonymous, identity_of),
            upstream.database,
        ),
        None => (Endpoint { host: String::new(), port: 0 }, Identity::Anonymous, 0),
    };
    let breaker = breaker_of(config);
    let node = Arc::new(Node::new(endpoint, clock, breaker, table.clone(), seed()));
    let l1 = L1::watched(L1Settings::of(&config.l1), insight.clone());
    let buffered = buffered.clone();
    Upstream::new(
        node,
        l1,
        settings_of(config),
        peers_of(config),
        identity,
        database,
        buffered,
        runtime.clone(),
        seed(),
    )
}

fn identity_of(credentials: &Credentials) -> Identity {
    let password: Arc<[u8]> = credentials.password.expose().into();
    match &credentials.user {
        None => Identity::Password(password),
        Some(name) => Identity::User { name: name.as_bytes().into(), password },
    }
}

/// The breaker's settings as configured.
pub(crate) fn breaker_of(config: &Config) -> crate::upstream::breaker::CheckedSettings {
    let breaker = &config.breaker;
    let settings = BreakerSettings {
        window: breaker.window_ms,
        calls_min: breaker.calls_min as u32,
        failure_rate_max: breaker.failure_rate_max,
        slow: breaker.slow_ms,
        slow_rate_max: breaker.slow_rate_max,
        open_min: breaker.open_ms_min,
        open_max: breaker.open_ms_max,
        stable_min: breaker.open_ms_max,
        probes_max: breaker.probes_max as u32,
        // A probe is answered, or its connection given up, within these.
        probe_wait_max: config.link.connect_ms_max.max(config.link.dead_ms) + Duration::from_secs(1),
    };
    settings.checked().unwrap_or_else(|error| {
        tracing::warn!(cause = %error, "the breaker's settings cannot be used; the defaults are");
        Default::default()
    })
}

pub(crate) fn settings_of(config: &Config) -> UpstreamSettings {
    let (link, pool, limits) = (&config.link, &config.pool, &config.limits);
    let replies = ReplyLimits { depth_max: limits.reply_depth_max, ..ReplyLimits::default() };
    UpstreamSettings {
        link: LinkLimits {
            in_flight_max: link.in_flight_max,
            in_flight_bytes_max: link.in_flight_bytes_max,
            reply_max: link.reply_ms_max,
            write_max: link.write_ms_max,
            untracked_ttl: config.l1.untracked_ttl_ms_max,
            admission: config.l1.admission,
            stale_longest: config.policies().stale_if_error_longest(),
        },
        times: LinkTimes {
            connect_max: link.connect_ms_max,
            dead_after: link.dead_ms,
            reply_max: link.reply_ms_max,
            backoff: BackoffSettings {
                wait_min: link.reconnect_ms_min,
                wait_max: link.reconnect_ms_max,
                ..BackoffSettings::default()
            },
            queued_max: link.in_flight_max,
            queued_bytes_max: link.in_flight_bytes_max,
            touch_interval: config.l1.touch_interval_ms,
            replies,
            caches: config.l1.enabled,
        },
        pool: PoolLimits {
            size_max: pool.size_max as u32,
            blocking_max: pool.blocking_max as u32,
            idle_max: pool.idle_ms_max,
            wait_max: pool.wait_ms_max,
            connect_max: link.connect_ms_max,
            replies,
        },
        scopes_max: limits.scopes_max,
        scope_idle_max: limits.scope_idle_ms_max,
        prefix: config.tags.prefix.as_str().into(),
    }
}

fn peers_of(config: &Config) -> Option<PeersSettings> {
    // With L1 off it is told of dependencies all the same.
    let answers_max = config.tags.peers_ms_max?;
    Some(PeersSettings {
        channel: peers::channel_of(&config.tags.prefix),
        name: format!("{:016x}", seed()),
        answers_max,
        connect_max: config.link.connect_ms_max,
        dead_after: config.link.dead_ms,
        replies: ReplyLimits::default(),
    })
}

fn reply_times_of(config: &Config) -> ReplyTimes {
    ReplyTimes {
        read_max: config.link.reply_ms_max,
        write_max: config.link.write_ms_max,
        exclusive_max: config.pool.reply_ms_max,
        blocking_grace: config.pool.blocking_grace_ms,
    }
}

/// A listener for each worker, all on the same address.
fn listen(config: &Config, count: usize) -> Result<(Vec<std::net::TcpListener>, SocketAddr), RunError> {
    let failed = |error| RunError::Listen { address: config.listen.to_string(), error };
    let mut address = config
        .listen
        .as_pair()
        .to_socket_addrs()
        .map_err(failed)?
        .next()
        .ok_or_else(|| failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")))?;
    // Alone first: SO_REUSEPORT would share the port with a stranger of the same user.
    drop(bind(address, false).map_err(failed)?);
    let mut listeners = Vec::new();
    for _ in 0..count {
        let listener = bind(address, true).map_err(failed)?;
        address = listener.local_addr().map_err(failed)?;
        listeners.push(listener);
    }
    Ok((listeners, address))
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if shared {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

/// One worker: accepts until the stop, then waits for its clients.
async fn work(
    own: usize,
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    signal: Option<watch::Sender<bool>>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let is_first = signal.is_some();
    if let Some(stop) = signal {
        tokio::spawn(wait_for_signal(stop));
        tokio::spawn(expire_embedded(shared.clone()));
        tokio::spawn(cache::sweep::run(shared.clone()));
        tokio::spawn(cache::watcher::run(shared.clone()));
        tokio::spawn(watch_buffered(shared.clone()));
        tokio::spawn(wake_disowned(shared.clone()));
        tokio::spawn(warm::begin_configured(shared.clone()));
    }
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => seat(stream, address, &shared, own),
                Err(error) => {
                    tracing::warn!(cause = %error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = stopped.changed() => break,
        }
    }
    drop(listener);
    shared.draining.store(true, Ordering::Release);
    if is_first {
        let shared = shared.clone();
        // It has said what went wrong.
        drop(tokio::task::spawn_blocking(move || warm::save(&shared)).await);
    }
    let deadline = tokio::time::Instant::now() + shared.settings().limits.shutdown_grace_ms;
    while !shared.clients.is_empty() && tokio::time::Instant::now() < deadline {
        for client in shared.clients.all() {
            client.port.wake();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Registers who has connected to worker `own`, and hands the connection to the worker that is to serve it.
fn seat(stream: TcpStream, address: SocketAddr, shared: &Arc<Shared>, own: usize) {
    let at = shared.workers.choose(own);
    let (Some(here), Some(there)) = (shared.workers.get(own), shared.workers.get(at)) else { return };
    if let Err(error) = prepare(&stream, shared) {
        tracing::debug!(cause = %error, "connection lost while it was accepted");
        return;
    }
    let local = stream.local_addr().unwrap_or(address);
    let now_s = shared.clock.now().as_micros() / 1_000_000;
    let Some(client) = shared.clients.join(address, local, now_s) else {
        here.counters.refused.add(1);
        return refuse(stream);
    };
    there.counters.accepted.add(1);
    let seat = there.seat();
    let registered = Registered { shared: shared.clone(), id: client.id };
    let counters = there.counters.clone();
    if at == own {
        tokio::spawn(serve(stream, registered, client, counters, seat));
        return;
    }
    let runtime = there.runtime.clone();
    // A stream belongs to the runtime in which it was made.
    let moved = stream.into_std().map(|stream| {
        runtime.spawn(async move {
            match TcpStream::from_std(stream) {
                Ok(stream) => serve(stream, registered, client, counters, seat).await,
                Err(error) => tracing::warn!(cause = %error, "a connection cannot be handed to another worker"),
            }
        })
    });
    if let Err(error) = moved {
        tracing::warn!(cause = %error, "a connection cannot be handed to another worker");
    }
}

async fn serve(stream: TcpStream, registered: Registered, client: Arc<Client>, counters: Arc<Counters>, seat: Seat) {
    client::serve(stream, registered, client, counters).await;
    drop(seat);
}

/// The answer is a courtesy: there is nobody to tell if it cannot be written. What has come already is taken from the socket, or the
/// system would reset the connection, and the answer with it.
fn refuse(stream: TcpStream) {
    let Ok(mut stream) = stream.into_std() else { return };
    let _ = stream.write(b"-ERR max number of clients reached\r\n");
    let _ = stream.read(&mut [0; REFUSED_READ_BYTES]);
}

fn prepare(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if let Some(idle) = shared.settings().limits.tcp_keepalive_ms {
        SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
    }
    if let Some(limit) = shared.settings().limits.tcp_user_timeout_ms {
        SockRef::from(stream).set_tcp_user_timeout(Some(limit))?;
    }
    Ok(())
}

async fn wait_for_signal(stop: watch::Sender<bool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("signals cannot be heard: only a kill ends this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping");
    let _ = stop.send(true);
}

/// While too much waits altogether, and once when that is over, all clients look at what they hold and whether they may
/// go on.
async fn watch_buffered(shared: Arc<Shared>) {
    let mut was_full = false;
    loop {
        tokio::time::sleep(BUFFERED_LOOK_EVERY).await;
        let is_full = shared.buffered.is_full();
        if is_full && !was_full {
            tracing::warn!(bytes = shared.buffered.bytes(), "limits.buffered_bytes_max is reached: clients wait");
        }
        if is_full || was_full {
            shared.clients.all().iter().for_each(|client| client.port.wake());
        }
        was_full = is_full;
    }
}

/// Wakes clients when the upstream refuses a user, so that those who are that user notice without a request.
async fn wake_disowned(shared: Arc<Shared>) {
    if let Backend::Upstream(upstream) = &shared.backend {
        loop {
            upstream.node().disowned().notified().await;
            shared.clients.all().iter().for_each(|client| client.port.wake());
        }
    }
}

async fn expire_embedded(shared: Arc<Shared>) {
    if let Backend::Embedded(embedded) = &shared.backend {
        loop {
            tokio::time::sleep(EXPIRY_EVERY).await;
            embedded.expire_some();
        }
    }
}
