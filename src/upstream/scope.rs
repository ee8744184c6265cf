//! Scopes: (user, database) pairs, each with a link, a partition of L1 and pools of its own.
//!
//! A client's scope decides whose rights its requests have and in which database they are looked up; a partition is
//! never read from another scope, so what one user may see is not shown to another. With no AUTH and no SELECT there is
//! exactly one.
//!
//! Invariants: one scope for an identity and a database at a time; a scope without clients ends after
//! `limits.scope_idle_ms_max`, the first one never does; there are at most `limits.scopes_max`.

use super::link::{LinkCore, LinkCounts, LinkLimits};
use super::link_io::{self, LinkHandle, LinkPurpose, LinkState, LinkTimes};
use super::node::Node;
use super::peers::{About, Family, Peers, PeersSettings};
use super::pool::{PoolLimits, Pools};
use super::raw::Identity;
use super::watch::{Hearing, Watches};
use crate::buffered::Buffered;
use crate::l1::L1;
use crate::port::Failure;
use arc_swap::ArcSwap;
use bytes::Bytes;
use mini_moka::sync::Cache;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

/// Bounds and habits of all that leads to an upstream.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Of each link's core.
    pub link: LinkLimits,
    /// Of each link's shell.
    pub times: LinkTimes,
    /// Of each scope's pools.
    pub pool: PoolLimits,
    /// Most scopes at once (`limits.scopes_max`).
    pub scopes_max: usize,
    /// How long a scope without clients lives (`limits.scope_idle_ms_max`).
    pub scope_idle_max: Duration,
    /// What the names of Larder's own keys begin with (`tags.prefix`).
    pub prefix: Arc<str>,
}

/// How long replies may take, by class of command, before the client is told of a timeout.
#[derive(Clone, Copy, Debug)]
pub struct ReplyTimes {
    /// Reads (`link.reply_ms_max`).
    pub read_max: Duration,
    /// Writes (`link.write_ms_max`).
    pub write_max: Duration,
    /// Scripts, transactions, administration, and whatever else runs on a connection of its own (`pool.reply_ms_max`).
    pub exclusive_max: Duration,
    /// What a blocking command gets beyond its own timeout (`pool.blocking_grace_ms`).
    pub blocking_grace: Duration,
}

/// The upstream with its scopes.
pub struct Upstream {
    node: Arc<Node>,
    l1: Arc<L1>,
    buffered: Arc<Buffered>,
    settings: ArcSwap<UpstreamSettings>,
    identity: Identity,
    database: u32,
    scopes: Mutex<HashMap<(Identity, u32), Held>>,
    /// How other Larders are asked, if they are; and the connections of the users that have scopes.
    peers_settings: Option<PeersSettings>,
    peers: Family,
    watches: Arc<Watches>,
    /// What the links of scopes that have ended had done.
    ended: Mutex<LinkCounts>,
    count: AtomicUsize,
    next_seed: AtomicU64,
    runtime: Handle,
    big_keys: Cache<Bytes, ()>,
    /// Set with the first big key: most never see one.
    has_big_keys: Arc<AtomicBool>,
}

/// A (user, database) pair.
pub struct Scope {
    /// Whose rights apply.
    pub identity: Identity,
    /// Which database is selected.
    pub database: u32,
    /// The ordered link.
    pub link: Arc<LinkHandle>,
    /// Exclusive connections.
    pub pools: Pools,
    /// Scopes of other users of the same database.
    peers: AtomicUsize,
}

// === impl Scope ===

impl Scope {
    /// The upstream refuses writes as a replica does: after a failover its name leads to another server. Connections are
    /// made anew, the link's within its bounds.
    pub fn moved(&self) {
        self.pools.retire(self.link.node().clock.now());
        self.link.ask_to_move();
    }
}

/// No further scope can be had.
#[derive(Debug, thiserror::Error)]
#[error("ERR too many (user, database) pairs are in use at once: the limit is {0} (limits.scopes_max)")]
pub struct TooManyScopes(usize);

struct Held {
    scope: Arc<Scope>,
    idle_for: Duration,
}

/// How many keys are remembered as too big for L1, and for how long: a small, count-bounded, time-to-live cache off the
/// hot path.
const BIG_KEYS_MAX: u64 = 10_000;
const BIG_KEY_REMEMBERED: Duration = Duration::from_secs(60);
/// How long other Larders are waited for before they are asked again, at first; and before another user asks them when one
/// could not.
const ASKS_AGAIN_AFTER: Duration = Duration::from_millis(250);
const ASKS_ANOTHER_AFTER: Duration = Duration::from_millis(10);
/// How often idle scopes are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

// === impl Upstream ===

impl Upstream {
    /// The upstream `node`, with the scope of clients that neither authenticate nor select. Links run on `runtime`, and what
    /// waits in them counts for `buffered`.
    #[expect(clippy::too_many_arguments, reason = "called once, with what an upstream is made of")]
    pub fn new(
        node: Arc<Node>,
        l1: Arc<L1>,
        settings: UpstreamSettings,
        peers_settings: Option<PeersSettings>,
        identity: Identity,
        database: u32,
        buffered: Arc<Buffered>,
        runtime: Handle,
        seed: u64,
    ) -> Arc<Self> {
        let big_keys = Cache::builder().max_capacity(BIG_KEYS_MAX).time_to_live(BIG_KEY_REMEMBERED).build();
        let this = Arc::new(Self {
            node,
            l1,
            buffered,
            watches: Arc::new(Watches::new(settings.prefix.clone())),
            settings: ArcSwap::from_pointee(settings),
            identity,
            database,
            scopes: Mutex::new(HashMap::new()),
            peers_settings,
            peers: Family::default(),
            ended: Mutex::default(),
            count: AtomicUsize::new(0),
            next_seed: AtomicU64::new(seed),
            runtime,
            big_keys,
            has_big_keys: Arc::default(),
        });
        let sweeper = Arc::downgrade(&this);
        this.runtime.spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                match sweeper.upgrade() {
                    Some(upstream) => upstream.sweep(),
                    None => return,
                }
            }
        });
        this
    }

    /// The server.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The store of which each scope has a partition.
    pub fn l1(&self) -> &Arc<L1> {
        &self.l1
    }

    /// The bounds in force.
    pub fn settings(&self) -> Arc<UpstreamSettings> {
        self.settings.load_full()
    }

    /// Changes bounds and habits: of links at once, of pools not at all.
    pub fn reconfigure(&self, settings: UpstreamSettings) {
        let scopes = self.lock();
        scopes.values().for_each(|held| held.scope.link.reconfigure(settings.times, settings.link));
        self.settings.store(Arc::new(UpstreamSettings { pool: self.settings().pool, ..settings }));
    }

    /// The identity of clients that do not authenticate.
    pub fn default_identity(&self) -> &Identity {
        &self.identity
    }

    /// The scope of clients that neither authenticate nor select.
    pub fn default_scope(&self) -> Result<Arc<Scope>, TooManyScopes> {
        self.scope(&self.identity, self.database)
    }

    /// The database of clients that do not select.
    pub fn default_database(&self) -> u32 {
        self.database
    }

    /// The scope of an identity and a database; it is made if it is not there. That the upstream accepts them must have
    /// been found out before.
    pub fn scope(&self, identity: &Identity, database: u32) -> Result<Arc<Scope>, TooManyScopes> {
        let mut scopes = self.lock();
        if let Some(held) = scopes.get_mut(&(identity.clone(), database)) {
            held.idle_for = Duration::ZERO;
            return Ok(held.scope.clone());
        }
        let scopes_max = self.settings().scopes_max;
        if scopes.len() >= scopes_max {
            return Err(TooManyScopes(scopes_max));
        }
        let scope = self.start(identity, database);
        scopes.insert((identity.clone(), database), Held { scope: scope.clone(), idle_for: Duration::ZERO });
        self.count_scopes(&scopes);
        Ok(scope)
    }

    /// As [`Upstream::scope`], for an identity that the upstream has just accepted: its links try again if they were
    /// refused before.
    pub fn accepted_scope(&self, identity: &Identity, database: u32) -> Result<Arc<Scope>, TooManyScopes> {
        for ((of, _), held) in self.lock().iter() {
            if of == identity {
                held.scope.link.admit();
            }
        }
        self.scope(identity, database)
    }

    /// True if the scope of an identity and a database is there already.
    pub fn has_scope(&self, identity: &Identity, database: u32) -> bool {
        self.lock().contains_key(&(identity.clone(), database))
    }

    /// True if there is a scope beside the one that asks.
    #[inline]
    pub fn has_several_scopes(&self) -> bool {
        self.count.load(Ordering::Acquire) > 1
    }

    /// The runtime that links and hubs run on.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs a task of the upstream's on the thread of its links.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// True if another user has a scope of the same database.
    pub fn has_peers(&self, scope: &Scope) -> bool {
        scope.peers.load(Ordering::Acquire) > 0
    }

    /// The other live scopes: all, or those of one database.
    pub fn others(&self, than: &Scope, database: Option<u32>) -> Vec<Arc<Scope>> {
        let scopes = self.lock();
        let other = |s: &&Arc<Scope>| !std::ptr::eq(&***s, than) && database.is_none_or(|d| s.database == d);
        scopes.values().map(|held| &held.scope).filter(other).cloned().collect()
    }

    /// All live scopes.
    pub fn scopes(&self) -> Vec<Arc<Scope>> {
        self.lock().values().map(|held| held.scope.clone()).collect()
    }

    /// What all links have done since the start, those of scopes that have ended included.
    pub fn link_counts(&self) -> LinkCounts {
        let scopes = self.lock();
        let ended = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        scopes.values().fold(ended, |sum, held| sum + held.scope.link.counts())
    }

    /// True if the upstream serves who has not authenticated. Where that is being found out, waits for it, at most for as
    /// long as a connection may take.
    pub async fn admits_anonymous(&self) -> bool {
        let scope = self.lock().get(&(Identity::Anonymous, self.database)).map(|held| held.scope.clone());
        let Some(scope) = scope else { return false };
        let settled = async {
            while scope.link.state() == LinkState::Connecting {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let in_time = tokio::time::timeout(self.settings().times.connect_max, settled).await;
        in_time.is_ok() && scope.link.is_up()
    }

    /// True if the reply to a read of `key` was too large for L1 a short while ago.
    pub fn is_big(&self, key: &[u8]) -> bool {
        self.has_big_keys.load(Ordering::Relaxed) && self.big_keys.get(&Bytes::copy_from_slice(key)).is_some()
    }

    fn start(&self, identity: &Identity, database: u32) -> Arc<Scope> {
        let (partition, filler) = self.l1.partition();
        let big_keys = self.big_keys.clone();
        let has_big_keys = self.has_big_keys.clone();
        let remember = Box::new(move |key| {
            big_keys.insert(key, ());
            has_big_keys.store(true, Ordering::Relaxed);
        });
        let (settings, watch) = (self.settings(), self.watches.of(database));
        let link = LinkHandle::new(self.node.clone(), partition, settings.times, &self.buffered, remember, watch);
        let core = LinkCore::new(filler, self.node.table(), settings.link);
        let peers = self.peers_of(identity);
        let purpose = LinkPurpose { identity: identity.clone(), database, peers };
        let seed = self.next_seed.fetch_add(1, Ordering::Relaxed);
        self.runtime.spawn(link_io::run(link.clone(), core, purpose, seed));
        let _guard = self.runtime.enter();
        let pools = Pools::new(&self.node, identity, database, settings.pool);
        Arc::new(Scope { identity: identity.clone(), database, link, pools, peers: AtomicUsize::new(0) })
    }

    /// The watches of all databases.
    #[inline]
    pub fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }

    /// A scope of each database that there are links for: that of the default user, if it has one.
    pub fn scope_of_each_database(&self) -> HashMap<u32, Arc<Scope>> {
        let mut found: HashMap<u32, Arc<Scope>> = HashMap::new();
        for scope in self.scopes().into_iter().filter(|scope| scope.link.is_up()) {
            let preferred = scope.identity == self.identity;
            if preferred || !found.contains_key(&scope.database) {
                found.insert(scope.database, scope);
            }
        }
        found
    }

    /// The connection of a user to other Larders; it is made if it is not there.
    fn peers_of(&self, identity: &Identity) -> Option<Arc<Peers>> {
        let settings = self.peers_settings.as_ref()?;
        let mut all = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peers) = all.get(identity) {
            return Some(peers.clone());
        }
        let number = self.next_seed.fetch_add(1, Ordering::Relaxed);
        let (node, watches) = (self.node.clone(), self.watches.clone());
        let (peers, task) = Peers::start(node, identity.clone(), number, settings.clone(), watches, &self.peers);
        self.runtime.spawn(task.run());
        all.insert(identity.clone(), peers.clone());
        Some(peers)
    }

    /// Returns when every Larder of the upstream has applied what was sent to it for `database` before.
    ///
    /// # Errors
    /// As [`Upstream::tell_peers`].
    pub async fn fence_peers(&self, identity: &Identity, database: u32) -> Result<(), Failure> {
        self.tell_peers(identity, database, About::Invalidation).await
    }

    /// Asks all Larders of the upstream, this one too: whether one has said `yes`. See [`Peers::ask`].
    ///
    /// # Errors
    /// Not all have answered in time.
    pub async fn ask_peers(&self, identity: &Identity, database: u32, about: About) -> Result<bool, Failure> {
        match self.joined_peers(identity) {
            Some(peers) => peers.ask(database, about).await,
            None => Ok(false),
        }
    }

    /// Tells all Larders of the upstream, this one too, of what has changed; returns when all have obeyed.
    ///
    /// Who has changed it speaks, if it may. If it was its own rights that it has changed, another user does; a connection that
    /// was lost is waited for. As long as there is no answer, all are asked again now and then: a Larder whose users have all
    /// lost the right to answer is subscribed no more then, and is not waited for. (It has obeyed before.)
    ///
    /// # Errors
    /// Not all have answered in time, or there are others and nobody here can ask them any more.
    pub async fn tell_peers(&self, identity: &Identity, database: u32, about: About) -> Result<(), Failure> {
        let Some(settings) = &self.peers_settings else { return Ok(()) };
        let until = Instant::now() + settings.answers_max;
        let (mut asking, mut patience, mut failure) = (JoinSet::new(), ASKS_AGAIN_AFTER, None);
        while Instant::now() < until {
            match self.joined_peers(identity) {
                Some(peers) => {
                    asking.spawn(async move { peers.ask_until(database, about, until).await });
                }
                None if asking.is_empty() && !self.any_peers(Peers::is_joining) => {
                    failure = None;
                    break;
                }
                None => {}
            }
            let again = Instant::now() + patience;
            // Who is asked last is given as long as who was asked before.
            let again = if again + patience > until { until } else { again };
            match timeout_at(again, asking.join_next()).await {
                Ok(Some(Ok(Ok(_)))) => return Ok(()),
                Ok(Some(Ok(Err(told)))) => {
                    failure = Some(told);
                    sleep(ASKS_ANOTHER_AFTER).await;
                }
                Ok(Some(Err(_)) | None) => sleep(ASKS_ANOTHER_AFTER).await,
                Err(_) => patience *= 2,
            }
        }
        while let Some(asked) = asking.join_next().await {
            match asked {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(told)) => failure = Some(told),
                Err(_) => {}
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None if self.any_peers(Peers::has_met_others) => {
                let line = format!("PEERTIMEOUT other Larders cannot be told at present; {}", about.done());
                Err(Failure::Refused(line.into()))
            }
            None => Ok(()),
        }
    }

    /// Tells all Larders of the upstream, this one too, that something was declared; returns when their watches stand.
    ///
    /// # Errors
    /// Not all have answered in time, or there was no way to ask them.
    pub async fn tell_of_dependency(&self, identity: &Identity, database: u32) -> Result<(), Failure> {
        let Some(settings) = &self.peers_settings else { return Ok(()) };
        // A subscription that was lost comes back; the others are told then.
        let in_time = tokio::time::timeout(settings.answers_max, self.watches.settled()).await;
        match self.joined_peers(identity) {
            Some(peers) => peers.ask(database, About::Dependency).await.map(drop),
            None if in_time.is_ok() && self.watches.hearing() == Hearing::Tracked => Ok(()),
            None => Err(Failure::Refused("PEERTIMEOUT other Larders cannot be told at present; it is declared".into())),
        }
    }

    /// True if other Larders could be told of dependencies, but none of the users here may.
    pub fn may_not_tell(&self) -> bool {
        self.watches.hearing() == Hearing::Tracked && self.any_peers(Peers::is_forbidden)
    }

    /// True if it is so for one of the connections to other Larders.
    fn any_peers(&self, is_so: fn(&Peers) -> bool) -> bool {
        let all = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().any(|peers| is_so(peers))
    }

    /// A connection that is subscribed: the user's own, else another's.
    fn joined_peers(&self, identity: &Identity) -> Option<Arc<Peers>> {
        let all = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.get(identity).filter(|peers| peers.is_joined());
        own.or_else(|| all.values().find(|peers| peers.is_joined())).cloned()
    }

    fn sweep(&self) {
        let mut scopes = self.lock();
        scopes.retain(|(identity, database), held| {
            let in_use = Arc::strong_count(&held.scope) > 1;
            let is_default = *identity == self.identity && *database == self.database;
            held.idle_for = if in_use || is_default { Duration::ZERO } else { held.idle_for + SWEEP_EVERY };
            let ends = held.idle_for > self.settings().scope_idle_max;
            if ends {
                held.scope.link.close();
                let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
                *ended = *ended + held.scope.link.counts();
            }
            !ends
        });
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).retain(|identity, peers| {
            let has_scopes = scopes.keys().any(|(of, _)| of == identity);
            if !has_scopes {
                peers.close();
            }
            has_scopes
        });
        self.count_scopes(&scopes);
    }

    fn count_scopes(&self, scopes: &HashMap<(Identity, u32), Held>) {
        for held in scopes.values() {
            let same = scopes.values().filter(|other| other.scope.database == held.scope.database).count();
            held.scope.peers.store(same - 1, Ordering::Release);
            let peer =
                |other: &&Held| other.scope.database == held.scope.database && !Arc::ptr_eq(&other.scope, &held.scope);
            let peers = scopes.values().filter(peer).map(|other| Arc::downgrade(other.scope.link.partition()));
            held.scope.link.partition().set_peers(peers.collect());
        }
        self.count.store(scopes.len(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Identity, u32), Held>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
