//! The configuration: raw text from flags, environment and file in; one checked, typed [`Config`] out, once, at the start.
//!
//! - Flags beat environment variables, which beat the file, which beats the defaults.
//! - A field of [`Config`] has its key's name: `config.link.reply_ms_max` is `link.reply_ms_max` in the file,
//!   `LARDER_LINK_REPLY_MS_MAX` in the environment and `--set link.reply_ms_max=...` on the command line.
//! - Nothing after this module checks a setting again: ranges hold, units are in the types, 0 for "off" is `None`.
//! - Secrets are [`Secret`]s: no `Debug`, no message and no printed configuration shows one.
//! - A new setting is a field and a line in `Config::read`, and its entry in `larder.example.toml`; a test compares the two.
//!
//! A bad configuration is an [`ConfigErrors`], which lists everything that is wrong; there is no half-good `Config`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

pub use self::depend::DependConfig;
use self::source::Reader;
pub use self::source::{ConfigError, ConfigErrors, Origin, Setting, Sources};
pub use self::tags::TagsConfig;
pub use self::value::{CacheAccess, Credentials, DenyRule, HostPort, LogFormat, LogLevel, Secret, Upstream};
use crate::cache::warm::Subject;
use crate::policy::{Policies, Policy};
use crate::upstream::admission::Admission;

mod depend;
mod source;
mod tags;
#[cfg(test)]
mod tests;
mod value;
mod warm;

const KB: usize = 1 << 10;
const MB: usize = 1 << 20;
const GB: usize = 1 << 30;

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
/// The longest of all times; timers far beyond it would be mistakes.
const MONTH_MS: u64 = 30 * 24 * HOUR_MS;

/// The most runtimes that `threads` can ask for.
const THREADS_MAX: usize = 1024;

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect. Port 0 lets the system choose.
    pub listen: HostPort,
    /// How many runtimes serve clients, each a thread; never 0: the file's 0 has become the number of cores.
    pub threads: usize,
    /// The server behind Larder; none serves the embedded store.
    pub upstream: Option<Upstream>,
    /// Whether the start fails if the upstream does not answer.
    pub require_upstream: bool,
    /// The password of Larder's own `default` user; none leaves AUTH to the upstream.
    pub requirepass: Option<Secret>,
    /// Larder's own users besides `default`, name to password.
    pub users: BTreeMap<String, Secret>,
    /// What clients may not call.
    pub deny: Vec<DenyRule>,
    /// Who may use the CACHE command.
    pub cache_command: CacheAccess,
    /// What holds for keys by pattern; the first that matches decides.
    pub policy: Vec<Policy>,
    /// The in-process cache.
    pub l1: L1Config,
    /// The embedded store, in use when there is no upstream.
    pub store: StoreConfig,
    /// What one client, and all of them, can cost.
    pub limits: LimitsConfig,
    /// The shared, ordered connections to the upstream.
    pub link: LinkConfig,
    /// The exclusive connections to the upstream.
    pub pool: PoolConfig,
    /// When a failing upstream is left alone.
    pub breaker: BreakerConfig,
    /// What the CACHE command keeps about tags.
    pub tags: TagsConfig,
    /// How much `CACHE DEPEND` may tie together.
    pub depend: DependConfig,
    /// What is watched, for `CACHE HOTKEYS`, `BIGKEYS` and `ADVISE`.
    pub insight: InsightConfig,
    /// How L1 is filled before anybody asks.
    pub warm: WarmConfig,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// `[l1]`: the in-process cache.
#[derive(Clone, Debug, PartialEq)]
pub struct L1Config {
    /// Whether anything is cached at all.
    pub enabled: bool,
    /// Bytes of all entries together, their bookkeeping included.
    pub size_bytes_max: usize,
    /// A reply larger than this is handed on and not kept, in bytes.
    pub entry_bytes_max: usize,
    /// How long a reply is kept if the upstream cannot track keys; `None`: it is not.
    pub untracked_ttl_ms_max: Option<Duration>,
    /// How often entries that were hit are touched upstream; `None`: never.
    pub touch_interval_ms: Option<Duration>,
    /// Which misses are kept.
    pub admission: Admission,
    /// Distinct commands and arguments kept of one key.
    pub variants_per_key_max: usize,
    /// From this size on a reply is compressed, in bytes; `None`: none is.
    pub compress_min_bytes: Option<usize>,
    /// How long after the loss of the upstream what was cached may still be answered; `None`: not at all.
    pub stale_if_error_ms_max: Option<Duration>,
    /// How long an invalidation with `SOFT` may let stale answers be given; `None`: there is no `SOFT`.
    pub soft_ms_max: Option<Duration>,
    /// After which part of its life an entry that is hit is refreshed; 0: never.
    pub refresh_ahead: f64,
}

/// `[store]`: the embedded store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Bytes of all keys and values together, their bookkeeping included; beyond it, keys are evicted.
    pub size_bytes_max: usize,
}

/// `[limits]`: what one client, and all of them, can cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Clients connected at once.
    pub clients_max: usize,
    /// Bytes of one client's unanswered input.
    pub request_bytes_max: usize,
    /// Bytes of one argument.
    pub bulk_bytes_max: usize,
    /// Arguments of one request, its name included.
    pub args_max: usize,
    /// Bytes of an inline request, and of a line of the protocol.
    pub inline_bytes_max: usize,
    /// A client that leaves so many bytes unread is closed.
    pub client_output_bytes_max: usize,
    /// One that leaves so many bytes unread for too long is closed; `None`: it is not.
    pub client_output_soft_bytes_max: Option<usize>,
    /// What too long is.
    pub client_output_soft_ms_max: Duration,
    /// As `client_output_bytes_max`, for clients that are subscribed or watch with MONITOR.
    pub subscriber_output_bytes_max: usize,
    /// As `client_output_soft_bytes_max`, for those.
    pub subscriber_output_soft_bytes_max: Option<usize>,
    /// As `client_output_soft_ms_max`, for those.
    pub subscriber_output_soft_ms_max: Duration,
    /// Unanswered requests of one client; what is beyond them is not read yet.
    pub client_in_flight_max: usize,
    /// Bytes of requests and replies that wait in the process altogether.
    pub buffered_bytes_max: usize,
    /// How long clients are not read from when that is reached, before they are refused.
    pub buffered_wait_ms_max: Duration,
    /// Pairs of user and database with a link and a partition of their own.
    pub scopes_max: usize,
    /// How long a scope without clients keeps its link and its partition.
    pub scope_idle_ms_max: Duration,
    /// Nesting of a reply's arrays.
    pub reply_depth_max: usize,
    /// A client that is silent for this long is closed; `None`: never.
    pub idle_timeout_ms: Option<Duration>,
    /// Silence on a client's connection before the system probes it; `None`: it does not.
    pub tcp_keepalive_ms: Option<Duration>,
    /// How long sent bytes may go without being acknowledged before the system gives the connection up
    /// (`TCP_USER_TIMEOUT`); `None`: as the system is set.
    pub tcp_user_timeout_ms: Option<Duration>,
    /// How long a stop waits for what is in flight.
    pub shutdown_grace_ms: Duration,
}

/// `[link]`: the shared, ordered connections to the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// Longest wait for a connection, its greeting included.
    pub connect_ms_max: Duration,
    /// Longest wait for the reply to a read before the client is told of a timeout.
    pub reply_ms_max: Duration,
    /// Longest wait for the reply to a write before the client is told of a timeout.
    pub write_ms_max: Duration,
    /// A link that owes replies and sends nothing for this long is closed.
    pub dead_ms: Duration,
    /// First wait before a reconnect.
    pub reconnect_ms_min: Duration,
    /// Longest wait before a reconnect; not below the first.
    pub reconnect_ms_max: Duration,
    /// Unanswered commands of one link.
    pub in_flight_max: usize,
    /// Bytes of the unanswered commands of one link.
    pub in_flight_bytes_max: usize,
}

/// `[pool]`: the exclusive connections to the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Connections for transactions and the like.
    pub size_max: usize,
    /// Connections for clients that block or hold one for long.
    pub blocking_max: usize,
    /// How long an unused connection is kept.
    pub idle_ms_max: Duration,
    /// Longest wait for a free connection.
    pub wait_ms_max: Duration,
    /// Longest wait for the reply to a script, a transaction or administration.
    pub reply_ms_max: Duration,
    /// What a blocking command gets beyond the timeout that it names.
    pub blocking_grace_ms: Duration,
}

/// `[breaker]`: when a failing upstream is left alone.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerConfig {
    /// How far back calls are counted.
    pub window_ms: Duration,
    /// Calls within the window before their rates mean anything.
    pub calls_min: usize,
    /// Above this part of failed calls the breaker opens; above 0, up to 1, where it never does for this.
    pub failure_rate_max: f64,
    /// A call that takes this long or longer is a slow one.
    pub slow_ms: Duration,
    /// Above this part of slow calls the breaker opens; above 0, up to 1, where it never does for this.
    pub slow_rate_max: f64,
    /// How long the breaker stays open the first time.
    pub open_ms_min: Duration,
    /// How long it stays open at most; not below the first time.
    pub open_ms_max: Duration,
    /// Calls let through at once while half-open.
    pub probes_max: usize,
}

/// `[insight]`: what is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InsightConfig {
    /// One of so many requests is sampled; 0: none.
    pub sample_every: usize,
    /// What was seen for a shorter time gives no reason for advice.
    pub advise_after_ms: Duration,
}

/// `[warm]`: how L1 is filled before anybody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmConfig {
    /// Keys read in a second, by all warming together.
    pub keys_per_second_max: usize,
    /// Where the names of the hot keys are saved at a stop; `None`: they are not.
    pub snapshot_file: Option<PathBuf>,
    /// Most names that are saved.
    pub snapshot_keys_max: usize,
    /// How long the start waits for those keys at most.
    pub start_ms_max: Duration,
    /// What is warmed again and again.
    pub schedule: Vec<WarmSchedule>,
}

/// One `[[warm.schedule]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmSchedule {
    /// Its name, different from the others'.
    pub name: String,
    /// From the beginning of a round to that of the next.
    pub every: Duration,
    /// Which keys.
    pub subject: Subject,
}

/// `[log]`: what is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// How much.
    pub level: LogLevel,
    /// In which form.
    pub format: LogFormat,
}

/// The outcome of [`resolve`].
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// What Larder works with.
    pub config: Config,
    /// Every setting, in the order of the example file, with its origin; for people.
    pub settings: Vec<Setting>,
}

/// Checks everything and settles which layer decides.
///
/// # Errors
/// All problems at once: values that are refused, unknown keys, contradictions.
pub fn resolve(sources: &Sources) -> Result<Resolved, ConfigErrors> {
    let mut reader = Reader::new(sources);
    let config = Config::read(&mut reader);
    config.note_conflicts(&mut reader);
    Ok(Resolved { config, settings: reader.finish()? })
}

// === impl Config ===

impl Config {
    /// The line to print once clients can connect: what is served, where from, how large L1 is, how to try it.
    pub fn banner(&self, local_addr: SocketAddr) -> String {
        let size = |bytes: usize| value::format_bytes(bytes as u64);
        let what = match &self.upstream {
            Some(upstream) if self.l1.enabled => format!("{upstream} with {} of L1", size(self.l1.size_bytes_max)),
            Some(upstream) => format!("{upstream} without L1"),
            None => format!("its embedded store of {} (no upstream)", size(self.store.size_bytes_max)),
        };
        let host = match local_addr.ip() {
            ip if ip.is_unspecified() || ip.to_string() == "127.0.0.1" => String::new(),
            ip => format!(" -h {ip}"),
        };
        let port = local_addr.port();
        let version = env!("CARGO_PKG_VERSION");
        format!("larder {version} serves {what} on {local_addr}; try: redis-cli{host} -p {port} set hello world")
    }

    /// What holds for keys, by pattern and in general.
    pub fn policies(&self) -> Policies {
        let stale_if_error = self.l1.stale_if_error_ms_max.unwrap_or_default();
        Policies::new(self.policy.clone(), stale_if_error, self.l1.refresh_ahead)
    }

    fn read(from: &mut Reader<'_>) -> Self {
        let listen = HostPort::new("127.0.0.1", 6380);
        let deny = vec![DenyRule::Command("shutdown".to_owned())];
        Self {
            listen: from.text("listen", listen, value::parse_host_port, HostPort::to_string, str::to_owned),
            threads: match from.count("threads", 0, 0..=THREADS_MAX) {
                0 => thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX),
                threads => threads,
            },
            upstream: from.text("upstream", None, value::parse_upstream, show_upstream, value::mask_url),
            require_upstream: from.switch("require_upstream", false),
            requirepass: from.text("requirepass", None, parse_password, show_password, hide),
            users: from.compound("users", BTreeMap::new(), value::parse_users, value::users_to_toml, hide),
            deny: from.compound("deny", deny, value::parse_deny, |rules| value::deny_to_toml(rules), str::to_owned),
            cache_command: from.compound(
                "cache_command",
                CacheAccess::Everyone,
                value::parse_cache_access,
                CacheAccess::to_toml,
                str::to_owned,
            ),
            policy: from.compound(
                "policy",
                Vec::new(),
                value::parse_policies,
                |policies| value::policies_to_toml(policies),
                str::to_owned,
            ),
            l1: L1Config::read(from),
            store: StoreConfig { size_bytes_max: from.size("store.size_bytes_max", 256 * MB, MB) },
            limits: LimitsConfig::read(from),
            link: LinkConfig::read(from),
            pool: PoolConfig::read(from),
            breaker: BreakerConfig::read(from),
            tags: TagsConfig::read(from),
            depend: DependConfig::read(from),
            insight: InsightConfig::read(from),
            warm: WarmConfig::read(from),
            log: LogConfig::read(from),
        }
    }

    fn note_conflicts(&self, reader: &mut Reader<'_>) {
        if self.require_upstream && self.upstream.is_none() {
            reader.conflict("require_upstream", "upstream", "without an upstream there is none to require");
        }
        if !self.warm.schedule.is_empty() && self.upstream.is_none() {
            reader.conflict("warm.schedule", "upstream", "without an upstream there is no L1 to warm");
        }
        if self.warm.snapshot_file.is_some() && self.upstream.is_none() {
            reader.conflict("warm.snapshot_file", "upstream", "without an upstream there is no L1 to warm");
        }
        if self.requirepass.is_some() && self.users.contains_key("default") {
            reader.conflict("requirepass", "users", "requirepass is the password of the user default");
        }
        if self.link.reconnect_ms_min > self.link.reconnect_ms_max {
            let rule = "the first wait cannot be longer than the longest";
            reader.conflict("link.reconnect_ms_min", "link.reconnect_ms_max", rule);
        }
        if self.breaker.open_ms_min > self.breaker.open_ms_max {
            let rule = "the first time cannot be longer than the longest";
            reader.conflict("breaker.open_ms_min", "breaker.open_ms_max", rule);
        }
    }
}

impl Default for Config {
    /// What no file, no variable and no flag gives.
    fn default() -> Self {
        Self::read(&mut Reader::new(&Sources::default()))
    }
}

fn show_upstream(upstream: &Option<Upstream>) -> String {
    upstream.as_ref().map_or_else(|| "none".to_owned(), Upstream::to_string)
}

fn parse_password(text: &str) -> Result<Option<Secret>, String> {
    Ok((!text.is_empty()).then(|| Secret::new(text)))
}

fn show_password(password: &Option<Secret>) -> String {
    password.as_ref().map(Secret::to_string).unwrap_or_default()
}

fn hide(_: &str) -> String {
    value::HIDDEN.to_owned()
}

// === impl of the sections ===

/// The words of `l1.admission`.
const ADMISSIONS: [(&str, Admission); 3] =
    [("always", Admission::Always), ("second-touch", Admission::SecondTouch), ("adaptive", Admission::Adaptive)];

impl L1Config {
    fn read(from: &mut Reader<'_>) -> Self {
        Self {
            enabled: from.switch("l1.enabled", true),
            size_bytes_max: from.size("l1.size_bytes_max", 256 * MB, KB),
            entry_bytes_max: from.size("l1.entry_bytes_max", MB, 1),
            untracked_ttl_ms_max: from.millis_or_off("l1.untracked_ttl_ms_max", 0, MONTH_MS),
            touch_interval_ms: from.millis_or_off("l1.touch_interval_ms", MINUTE_MS, MONTH_MS),
            admission: from.word("l1.admission", Admission::Adaptive, &ADMISSIONS),
            variants_per_key_max: from.count("l1.variants_per_key_max", 64, 1..=65_536),
            compress_min_bytes: from.size_or_off("l1.compress_min_bytes", 0),
            stale_if_error_ms_max: from.millis_or_off("l1.stale_if_error_ms_max", 0, MONTH_MS),
            soft_ms_max: from.millis_or_off("l1.soft_ms_max", MINUTE_MS, HOUR_MS),
            refresh_ahead: from.part_or_off("l1.refresh_ahead", 0.0),
        }
    }
}

impl LimitsConfig {
    fn read(from: &mut Reader<'_>) -> Self {
        Self {
            clients_max: from.count("limits.clients_max", 10_000, 1..=1_000_000),
            request_bytes_max: from.size("limits.request_bytes_max", GB, KB),
            bulk_bytes_max: from.size("limits.bulk_bytes_max", 512 * MB, KB),
            args_max: from.count("limits.args_max", 1_048_576, 1..=i32::MAX as usize),
            inline_bytes_max: from.size("limits.inline_bytes_max", 64 * KB, 64),
            client_output_bytes_max: from.size("limits.client_output_bytes_max", GB, KB),
            client_output_soft_bytes_max: from.size_or_off("limits.client_output_soft_bytes_max", 0),
            client_output_soft_ms_max: from.millis("limits.client_output_soft_ms_max", 0, 0..=HOUR_MS),
            subscriber_output_bytes_max: from.size("limits.subscriber_output_bytes_max", 32 * MB, KB),
            subscriber_output_soft_bytes_max: from.size_or_off("limits.subscriber_output_soft_bytes_max", 8 * MB),
            subscriber_output_soft_ms_max: from.millis("limits.subscriber_output_soft_ms_max", MINUTE_MS, 0..=HOUR_MS),
            client_in_flight_max: from.count("limits.client_in_flight_max", 1024, 1..=1_048_576),
            buffered_bytes_max: from.size("limits.buffered_bytes_max", GB, MB),
            buffered_wait_ms_max: from.millis("limits.buffered_wait_ms_max", 2 * SECOND_MS, 0..=HOUR_MS),
            scopes_max: from.count("limits.scopes_max", 64, 1..=65_536),
            scope_idle_ms_max: from.millis("limits.scope_idle_ms_max", MINUTE_MS, 0..=MONTH_MS),
            reply_depth_max: from.count("limits.reply_depth_max", 8192, 8..=65_536),
            idle_timeout_ms: from.millis_or_off("limits.idle_timeout_ms", 0, MONTH_MS),
            tcp_keepalive_ms: from.millis_or_off("limits.tcp_keepalive_ms", 5 * MINUTE_MS, MONTH_MS),
            tcp_user_timeout_ms: from.millis_or_off("limits.tcp_user_timeout_ms", 30 * SECOND_MS, MONTH_MS),
            shutdown_grace_ms: from.millis("limits.shutdown_grace_ms", 5 * SECOND_MS, 0..=HOUR_MS),
        }
    }
}

impl LinkConfig {
    fn read(from: &mut Reader<'_>) -> Self {
        Self {
            connect_ms_max: from.millis("link.connect_ms_max", 2 * SECOND_MS, 1..=HOUR_MS),
            reply_ms_max: from.millis("link.reply_ms_max", 10 * SECOND_MS, 1..=HOUR_MS),
            write_ms_max: from.millis("link.write_ms_max", 10 * SECOND_MS, 1..=HOUR_MS),
            dead_ms: from.millis("link.dead_ms", 15 * SECOND_MS, 1..=HOUR_MS),
            reconnect_ms_min: from.millis("link.reconnect_ms_min", 50, 1..=HOUR_MS),
            reconnect_ms_max: from.millis("link.reconnect_ms_max", 2 * SECOND_MS, 1..=HOUR_MS),
            in_flight_max: from.count("link.in_flight_max", 65_536, 1..=16_777_216),
            in_flight_bytes_max: from.size("link.in_flight_bytes_max", 256 * MB, KB),
        }
    }
}

impl PoolConfig {
    fn read(from: &mut Reader<'_>) -> Self {
        let size_max = from.count("pool.size_max", 64, 1..=65_536);
        Self {
            size_max,
            blocking_max: from.count("pool.blocking_max", 1024, 1..=65_536),
            idle_ms_max: from.millis("pool.idle_ms_max", 30 * SECOND_MS, 1..=MONTH_MS),
            wait_ms_max: from.millis("pool.wait_ms_max", 2 * SECOND_MS, 1..=HOUR_MS),
            reply_ms_max: from.millis("pool.reply_ms_max", MINUTE_MS, 1..=24 * HOUR_MS),
            blocking_grace_ms: from.millis("pool.blocking_grace_ms", 2 * SECOND_MS, 1..=HOUR_MS),
        }
    }
}

impl BreakerConfig {
    fn read(from: &mut Reader<'_>) -> Self {
        Self {
            window_ms: from.millis("breaker.window_ms", 10 * SECOND_MS, 100..=HOUR_MS),
            calls_min: from.count("breaker.calls_min", 20, 1..=1_000_000),
            failure_rate_max: from.rate("breaker.failure_rate_max", 0.5),
            slow_ms: from.millis("breaker.slow_ms", 2 * SECOND_MS, 1..=HOUR_MS),
            slow_rate_max: from.rate("breaker.slow_rate_max", 0.8),
            open_ms_min: from.millis("breaker.open_ms_min", SECOND_MS, 1..=HOUR_MS),
            open_ms_max: from.millis("breaker.open_ms_max", 30 * SECOND_MS, 1..=HOUR_MS),
            probes_max: from.count("breaker.probes_max", 1, 1..=64),
        }
    }
}

impl InsightConfig {
    fn read(from: &mut Reader<'_>) -> Self {
        Self {
            sample_every: from.count("insight.sample_every", 128, 0..=65_536),
            advise_after_ms: from.millis("insight.advise_after_ms", MINUTE_MS, 1..=HOUR_MS),
        }
    }
}

impl WarmConfig {
    fn read(from: &mut Reader<'_>) -> Self {
        Self {
            keys_per_second_max: from.count("warm.keys_per_second_max", 2000, 1..=1_000_000),
            snapshot_file: from.text("warm.snapshot_file", None, warm::parse_file, warm::show_file, str::to_owned),
            snapshot_keys_max: from.count("warm.snapshot_keys_max", 10_000, 1..=100_000),
            start_ms_max: from.millis("warm.start_ms_max", 5 * SECOND_MS, 1..=HOUR_MS),
            schedule: from.compound(
                "warm.schedule",
                Vec::new(),
                warm::parse_schedules,
                |schedules| warm::schedules_to_toml(schedules),
                str::to_owned,
            ),
        }
    }
}

impl LogConfig {
    fn read(from: &mut Reader<'_>) -> Self {
        let levels = [
            ("off", LogLevel::Off),
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ];
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        Self {
            level: from.word("log.level", LogLevel::Info, &levels),
            format: from.word("log.format", LogFormat::Text, &formats),
        }
    }
}

// === impl Resolved ===

impl Resolved {
    /// The settings as a TOML file, secrets hidden, with the origin of each that is not a default.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for setting in &self.settings {
            let (parent, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
            if parent != section {
                text.push_str(&format!("\n[{parent}]\n"));
                section = parent;
            }
            let origin = match &setting.origin {
                Origin::Default => String::new(),
                origin => format!("  # {origin}"),
            };
            text.push_str(&format!("{name} = {}{origin}\n", setting.value));
        }
        text
    }
}
