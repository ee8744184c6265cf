//! Settings that can change while Larder runs: `CACHE CONFIG GET` and `SET`.
//!
//! A new value goes through the same parser and the same checks as the file, together with the values in force; only if the
//! whole is good does anything change, and then it has changed everywhere before the answer is given. Nothing is
//! written to the file.

use crate::config::{
    self, Config, L1Config, LimitsConfig, LogConfig, LogLevel, PoolConfig, Setting, Sources, TagsConfig, WarmConfig,
};
use crate::l1::L1Settings;
use crate::server::{Backend, Shared, breaker_of, settings_of};
use larder_protocol::cache::Which;
use larder_protocol::glob::{self, Case};
use std::sync::{Mutex, PoisonError};

/// The settings that can change. Those of requests, of silence and of sockets hold for clients that connect from then on.
pub const CHANGEABLE: &[&str] = &[
    "breaker.calls_min",
    "breaker.failure_rate_max",
    "breaker.open_ms_max",
    "breaker.open_ms_min",
    "breaker.probes_max",
    "breaker.slow_ms",
    "breaker.slow_rate_max",
    "breaker.window_ms",
    "insight.advise_after_ms",
    "insight.sample_every",
    "l1.admission",
    "l1.compress_min_bytes",
    "l1.entry_bytes_max",
    "l1.refresh_ahead",
    "l1.size_bytes_max",
    "l1.soft_ms_max",
    "l1.stale_if_error_ms_max",
    "l1.touch_interval_ms",
    "l1.untracked_ttl_ms_max",
    "l1.variants_per_key_max",
    "limits.args_max",
    "limits.buffered_bytes_max",
    "limits.buffered_wait_ms_max",
    "limits.bulk_bytes_max",
    "limits.client_in_flight_max",
    "limits.client_output_bytes_max",
    "limits.client_output_soft_bytes_max",
    "limits.client_output_soft_ms_max",
    "limits.clients_max",
    "limits.idle_timeout_ms",
    "limits.inline_bytes_max",
    "limits.request_bytes_max",
    "limits.scope_idle_ms_max",
    "limits.scopes_max",
    "limits.shutdown_grace_ms",
    "limits.subscriber_output_soft_bytes_max",
    "limits.subscriber_output_soft_ms_max",
    "limits.tcp_keepalive_ms",
    "limits.tcp_user_timeout_ms",
    "link.connect_ms_max",
    "link.dead_ms",
    "link.in_flight_bytes_max",
    "link.in_flight_max",
    "link.reconnect_ms_max",
    "link.reconnect_ms_min",
    "link.reply_ms_max",
    "link.write_ms_max",
    "log.level",
    "policy",
    "pool.blocking_grace_ms",
    "pool.reply_ms_max",
    "store.size_bytes_max",
    "tags.lease_ms",
    "tags.per_key_max",
    "tags.recheck_ms",
    "tags.sweep_ms",
    "warm.keys_per_second_max",
    "warm.snapshot_keys_max",
];

/// Changes what is logged.
pub type SetLevel = Box<dyn Fn(LogLevel) + Send + Sync>;

/// The settings in force, as people read them.
pub struct Live {
    settings: Mutex<Vec<Setting>>,
    set_level: SetLevel,
}

/// Why a setting was not changed. `Display` is the error line without the dash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// No such setting.
    #[error("ERR Unknown option for CACHE CONFIG SET - '{0}'")]
    Unknown(String),
    /// It is read at the start only.
    #[error("ERR '{0}' cannot change at run time: set it in the file and restart")]
    Fixed(&'static str),
    /// The parser of the file does not take the value.
    #[error("ERR {0}")]
    Refused(String),
}

// === impl Live ===

impl Live {
    /// The settings that the process has started with.
    pub fn new(settings: Vec<Setting>, set_level: SetLevel) -> Self {
        Self { settings: Mutex::new(settings), set_level }
    }

    /// Name and value of each setting whose name matches, secrets hidden, by name.
    pub fn matching(&self, pattern: &[u8], which: Which) -> Vec<(&'static str, String)> {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let matches = |s: &&Setting| glob::matches(pattern, s.key.as_bytes(), Case::Insensitive);
        let of_kind = |s: &&Setting| match which {
            Which::All => true,
            Which::Changeable => CHANGEABLE.contains(&s.key),
            Which::ReadOnly => !CHANGEABLE.contains(&s.key),
        };
        let plain = |value: &str| value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value).to_owned();
        let mut found: Vec<_> =
            settings.iter().filter(matches).filter(of_kind).map(|s| (s.key, plain(&s.value))).collect();
        found.sort_unstable();
        found
    }
}

// === impl Shared ===

impl Shared {
    /// Changes a setting, at once and everywhere.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed then.
    pub fn change(&self, name: &str, value: &str) -> Result<(), ChangeError> {
        let mut settings = self.live.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let name = name.to_ascii_lowercase();
        let Some(key) = settings.iter().map(|s| s.key).find(|key| *key == name) else {
            return Err(ChangeError::Unknown(one_line(&name)));
        };
        if !CHANGEABLE.contains(&key) {
            return Err(ChangeError::Fixed(key));
        }
        let config = checked(&settings, key, value)?;
        let config = (merged(&self.config, config.0), config.1);
        let changed = |prefix: &str| key.starts_with(prefix);
        match &self.backend {
            Backend::Upstream(upstream) => {
                if changed("l1.") {
                    upstream.l1().resize(L1Settings::of(&config.0.l1));
                }
                // A probe's patience rests on the times of links.
                if changed("breaker.") || changed("link.") {
                    upstream.node().reconfigure(breaker_of(&config.0));
                }
                upstream.reconfigure(settings_of(&config.0));
            }
            Backend::Embedded(embedded) if key == "store.size_bytes_max" => {
                embedded.resize(config.0.store.size_bytes_max as u64);
            }
            Backend::Embedded(_) => {}
        }
        match key {
            "limits.clients_max" => self.clients.set_clients_max(config.0.limits.clients_max),
            "insight.sample_every" => self.insight.set_every(config.0.insight.sample_every as u32),
            "log.level" => (self.live.set_level)(config.0.log.level),
            _ => {}
        }
        self.put_in_force(config.0);
        if changed("limits.") {
            // Who waits for a client that does not read would hear of nothing else.
            self.clients.all().iter().for_each(|client| client.port.wake());
        }
        for setting in settings.iter_mut().filter(|s| s.key == key) {
            setting.value.clone_from(&config.1);
        }
        tracing::info!(setting = key, "changed by CACHE CONFIG SET");
        Ok(())
    }
}

/// The settings of the start, with what can change as it is now.
fn merged(start: &Config, now: Config) -> Config {
    Config {
        policy: now.policy,
        l1: L1Config { enabled: start.l1.enabled, ..now.l1 },
        store: now.store,
        limits: LimitsConfig {
            reply_depth_max: start.limits.reply_depth_max,
            subscriber_output_bytes_max: start.limits.subscriber_output_bytes_max,
            ..now.limits
        },
        link: now.link,
        pool: PoolConfig {
            reply_ms_max: now.pool.reply_ms_max,
            blocking_grace_ms: now.pool.blocking_grace_ms,
            ..start.pool.clone()
        },
        breaker: now.breaker,
        tags: TagsConfig { prefix: start.tags.prefix.clone(), peers_ms_max: start.tags.peers_ms_max, ..now.tags },
        insight: now.insight,
        warm: WarmConfig {
            keys_per_second_max: now.warm.keys_per_second_max,
            snapshot_keys_max: now.warm.snapshot_keys_max,
            ..start.warm.clone()
        },
        log: LogConfig { level: now.log.level, ..start.log.clone() },
        ..start.clone()
    }
}

/// What the parser of the file makes of the values in force with the new one among them, and how it shows the new one.
fn checked(settings: &[Setting], key: &'static str, value: &str) -> Result<(Config, String), ChangeError> {
    let mut sources = Sources::default();
    for setting in settings.iter().filter(|s| CHANGEABLE.contains(&s.key) && s.key != key) {
        let assigned = sources.add_assignment(&format!("{}={}", setting.key, setting.value));
        assigned.map_err(|errors| ChangeError::Refused(one_line(&errors.to_string())))?;
    }
    sources.add_flag("CACHE CONFIG SET", key, value);
    match config::resolve(&sources) {
        Ok(resolved) => {
            let shown = resolved.settings.into_iter().find(|s| s.key == key).map(|s| s.value).unwrap_or_default();
            Ok((resolved.config, shown))
        }
        Err(errors) => {
            let text = one_line(&errors.to_string());
            Err(ChangeError::Refused(text.strip_prefix("flag CACHE CONFIG SET: ").unwrap_or(&text).to_owned()))
        }
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Vec<Setting> {
        config::resolve(&Sources::default()).unwrap().settings
    }

    #[test]
    fn every_changeable_setting_exists_and_takes_its_own_value() {
        let settings = settings();
        for key in CHANGEABLE {
            let setting = settings.iter().find(|s| s.key == *key).unwrap();
            let value = setting.value.trim_matches('"');
            let (_, shown) = checked(&settings, setting.key, value).unwrap();
            assert_eq!(shown, setting.value);
        }
    }

    /// Each place reads a setting in what [`merged`] has made; one that is not taken over there would change nothing.
    #[test]
    fn every_changeable_setting_reaches_what_is_in_force_and_no_other_does() {
        let settings = settings();
        let resolved = config::resolve(&Sources::default()).unwrap();
        // Values other than the default, where doubling it does not make one.
        let other = |key: &str| match key {
            "l1.admission" => Some("always"),
            "l1.refresh_ahead" => Some("0.8"),
            "breaker.failure_rate_max" | "breaker.slow_rate_max" => Some("0.25"),
            "log.level" => Some("warn"),
            "policy" => Some("[{ match = 'a*', stale_if_error_ms_max = 5 }]"),
            "breaker.open_ms_min" => Some("1500"),
            "link.reconnect_ms_min" => Some("60"),
            _ => None,
        };
        for key in CHANGEABLE {
            let setting = settings.iter().find(|s| s.key == *key).unwrap();
            let tried = other(key).map(|value| vec![value.to_owned()]).unwrap_or_else(|| {
                ["3", "77", "1234", "4kb", "3mb", "5000", "90000", "3gb"].map(str::to_owned).to_vec()
            });
            let changes = tried.iter().filter_map(|value| checked(&settings, setting.key, value).ok());
            let reached = changes.map(|(config, _)| merged(&resolved.config, config)).any(|now| now != resolved.config);
            assert!(reached, "{key} is the same whatever is set");
        }
        // What cannot change does not, even if it got here.
        for key in settings.iter().map(|s| s.key).filter(|key| !CHANGEABLE.contains(key)) {
            for value in ["3", "true", "false", "3mb", "127.0.0.1:1", "x", "everyone", "local", "json", "[]"] {
                if let Ok((config, _)) = checked(&settings, key, value) {
                    assert_eq!(merged(&resolved.config, config), resolved.config, "{key} = {value}");
                }
            }
        }
    }

    #[test]
    fn the_parser_of_the_file_decides() {
        let settings = settings();
        let refusal = |key, value| checked(&settings, key, value).map(|_| ()).unwrap_err().to_string();
        assert!(refusal("l1.size_bytes_max", "much").starts_with("ERR l1.size_bytes_max = "));
        assert!(refusal("breaker.failure_rate_max", "2").contains("breaker.failure_rate_max"));
        // Against another one in force.
        assert!(refusal("breaker.open_ms_min", "60000").contains("the first time cannot be longer"));
        assert!(!refusal("log.level", "a\nb").contains('\n'));
        let (config, shown) = checked(&settings, "l1.size_bytes_max", "64mb").unwrap();
        assert_eq!((config.l1.size_bytes_max, shown), (64 << 20, "\"64mb\"".to_owned()));
    }

    #[test]
    fn what_cannot_change_stays_as_it_was_at_the_start() {
        let mut sources = Sources::default();
        for fixed in [
            "l1.enabled=false",
            "limits.reply_depth_max=100",
            "limits.subscriber_output_bytes_max=2mb",
            "pool.size_max=3",
            "tags.prefix=x:",
            "tags.peers_ms_max=7",
            "warm.start_ms_max=9",
            "log.format=json",
            "threads=5",
        ] {
            sources.add_assignment(fixed).unwrap();
        }
        let start = config::resolve(&sources).unwrap().config;
        assert_ne!(start, Config::default());
        assert_eq!(merged(&start, Config::default()), start);
        let mut other = Config::default();
        other.l1.soft_ms_max = None;
        assert_eq!(merged(&start, other).l1.soft_ms_max, None);
    }

    #[test]
    fn settings_are_found_by_pattern_without_secrets() {
        let mut sources = Sources::default();
        sources.add_assignment("requirepass=geheim").unwrap();
        let live = Live::new(config::resolve(&sources).unwrap().settings, Box::new(|_| {}));
        let found = live.matching(b"L1.*", Which::All);
        assert!(found.iter().any(|(key, value)| (*key, &value[..]) == ("l1.size_bytes_max", "256mb")), "{found:?}");
        assert!(found.iter().all(|(key, _)| key.starts_with("l1.")));
        assert!(live.matching(b"*", Which::All).iter().all(|(_, value)| !value.contains("geheim")));
    }
}
