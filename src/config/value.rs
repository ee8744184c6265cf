//! The kinds of value that a setting can have: text or TOML in, a typed value out, and back to TOML for printing.
//!
//! Every `parse_*` here is pure and answers `Err(what was expected)` for a value that it refuses; the layer above adds
//! where the value stood. Nothing here may put a secret into such a message.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv6Addr;

use crate::policy::{POLICIES_MAX, Policy};
use std::time::Duration;
use url::{Host, Url};

/// The port of an upstream whose URL names none: the registered port of Redis.
const UPSTREAM_PORT_DEFAULT: u16 = 6379;

/// The highest database number that SELECT can take: Redis keeps `databases` in a C `int`.
const DATABASE_MAX: u32 = i32::MAX as u32;

/// What is printed instead of a secret.
pub(super) const HIDDEN: &str = "(hidden)";

/// The ACL categories of Redis 8 and Valkey 9, those of the modules that Redis 8 ships included (`ACL CAT`).
const ACL_CATEGORIES: [&str; 30] = [
    "admin",
    "bitmap",
    "blocking",
    "bloom",
    "cms",
    "connection",
    "cuckoo",
    "dangerous",
    "fast",
    "geo",
    "hash",
    "hyperloglog",
    "json",
    "keyspace",
    "list",
    "pubsub",
    "read",
    "scripting",
    "search",
    "set",
    "slow",
    "sortedset",
    "stream",
    "string",
    "tdigest",
    "timeseries",
    "topk",
    "transaction",
    "vectorset",
    "write",
];

/// The units of a byte size, as in redis.conf: `k` is 1000 and `kb` is 1024. The longest suffix is tried first.
const BYTE_UNITS: [(&str, u64); 7] =
    [("kb", 1 << 10), ("mb", 1 << 20), ("gb", 1 << 30), ("k", 1_000), ("m", 1_000_000), ("g", 1_000_000_000), ("b", 1)];

/// A host name or address, and a port. An IPv6 address is held without its brackets and printed with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A DNS name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The TCP port. 0, where one listens, lets the system choose.
    pub port: u16,
}

/// A password or the like. `Debug` and `Display` print `(hidden)`; the bytes come out by [`Secret::expose`] only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// The upstream server, from `redis://[user:password@]host[:port][/database]`.
///
/// `Display` gives the URL with the password hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where the server listens. The name is resolved anew at each connect.
    pub address: HostPort,
    /// Whom Larder authenticates as; none sends no AUTH.
    pub credentials: Option<Credentials>,
    /// The database that a client is in before its first SELECT.
    pub database: u32,
}

/// What Larder sends with AUTH to the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The ACL user; none is the one-argument form `AUTH password`, the server's `default` user.
    pub user: Option<String>,
    /// The password, already percent-decoded.
    pub password: Secret,
}

/// One entry of `deny`: what clients may not call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenyRule {
    /// Every command of an ACL category; the name is in lower case, without the `@`.
    Category(String),
    /// A command (`shutdown`) or a subcommand (`config|set`), in lower case.
    Command(String),
}

/// Who may use the `CACHE` command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheAccess {
    /// Every client that may use Larder at all.
    Everyone,
    /// Clients whose address is a loopback address.
    Local,
    /// Clients that have authenticated as one of these users.
    Users(BTreeSet<String>),
}

/// How much is logged; each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What stops Larder or costs clients errors.
    Error,
    /// What an operator should look at.
    Warn,
    /// What happens once in a while: start, reconnect, breaker.
    Info,
    /// What happens to each connection.
    Debug,
    /// What happens to each request; keys and values are never logged.
    Trace,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: one line, coloured on a terminal.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

// === impl HostPort ===

impl HostPort {
    /// Joins a host (an IPv6 address without brackets) and a port.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// The form that `ToSocketAddrs` and tokio's `connect` and `lookup_host` take.
    pub fn as_pair(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

// === impl Secret ===

impl Secret {
    /// Hides these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The secret itself: for AUTH and for nothing that is printed.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether a client's password is this one. The time taken tells the length at most.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        let difference = self.0.iter().zip(candidate).fold(0, |seen, (ours, theirs)| seen | (ours ^ theirs));
        self.0.len() == candidate.len() && difference == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

// === impl Upstream ===

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redis://")?;
        if let Some(credentials) = &self.credentials {
            let user = credentials.user.as_deref().unwrap_or_default();
            write!(f, "{}:{HIDDEN}@", user.escape_debug())?;
        }
        write!(f, "{}", self.address)?;
        if self.database != 0 {
            write!(f, "/{}", self.database)?;
        }
        Ok(())
    }
}

// === parsing ===

/// A host and a port: `127.0.0.1:6380`, `localhost:6380`, `[::1]:6380`.
pub(super) fn parse_host_port(text: &str) -> Result<HostPort, String> {
    let expected = || "expected host:port such as 127.0.0.1:6380 or [::1]:6380".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let port = parse_digits(port).and_then(|port| u16::try_from(port).ok()).ok_or_else(expected)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(|address| address.to_string()),
        None => is_host_name(host).then(|| host.to_owned()),
    };
    Ok(HostPort { host: host.ok_or_else(expected)?, port })
}

/// The upstream's URL; `none` is the embedded store. The message never repeats the URL, which may hold a password.
pub(super) fn parse_upstream(text: &str) -> Result<Option<Upstream>, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let expected = "expected \"none\" or redis://[user:password@]host[:port][/database]";
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("{expected}, without spaces (write one as %20 in a password)"));
    }
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("redis") => {}
        Some("rediss") => return Err("rediss:// (TLS) is not supported yet; use redis://".to_owned()),
        Some("unix") => return Err("unix:// (a Unix socket) is not supported yet; use redis://".to_owned()),
        _ => return Err(expected.to_owned()),
    }
    let url = Url::parse(text).map_err(|error| {
        format!("{expected} ({error}; in user and password, write @ as %40, : as %3A, / as %2F, # as %23)")
    })?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{expected}, without ? and # (write # as %23 in a password)"));
    }
    let host = match url.host() {
        Some(Host::Domain(name)) if is_host_name(name) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        _ => return Err(format!("{expected}, with a host name or address")),
    };
    let port = url.port().unwrap_or(UPSTREAM_PORT_DEFAULT);
    if port == 0 {
        return Err(format!("{expected}, with a port from 1 to 65535"));
    }
    let database = match url.path().trim_start_matches('/') {
        "" => 0,
        number => parse_digits(number)
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| *number <= DATABASE_MAX)
            .ok_or_else(|| format!("{expected}, with a database number from 0 to {DATABASE_MAX}"))?,
    };
    Ok(Some(Upstream { address: HostPort { host, port }, credentials: parse_credentials(&url)?, database }))
}

/// User and password of a URL. A user alone is refused: clients disagree on whether it is a user or a password.
fn parse_credentials(url: &Url) -> Result<Option<Credentials>, String> {
    let Some(password) = url.password() else {
        return match url.username() {
            "" => Ok(None),
            _ => Err("expected user:password@ or :password@ before the host, not one word".to_owned()),
        };
    };
    let bad_escape = || "expected %XX escapes of two hexadecimal digits in user and password".to_owned();
    let password = decode_percent(password).ok_or_else(bad_escape)?;
    let user = decode_percent(url.username()).ok_or_else(bad_escape)?;
    let user = String::from_utf8(user).map_err(|_| "expected a user name in UTF-8".to_owned())?;
    let user = (!user.is_empty()).then_some(user);
    Ok(Some(Credentials { user, password: Secret::new(password) }))
}

fn decode_percent(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digit = |at: usize| digits.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        decoded.push(u8::try_from(digit(0)? * 16 + digit(1)?).ok()?);
        rest = after;
    }
    Some(decoded)
}

/// Letters, digits, dots, dashes and underscores (container names have these), as in DNS and IPv4.
fn is_host_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// Decimal digits only: no sign, no space, no underscore.
pub(super) fn parse_digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// A size as redis.conf writes it: `1048576`, `64mb`, `1GB`; `None` for anything else, overflow included.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let (digits, unit) =
        BYTE_UNITS.iter().find_map(|(suffix, unit)| Some((lower.strip_suffix(suffix)?, *unit))).unwrap_or((&lower, 1));
    parse_digits(digits)?.checked_mul(unit)
}

/// The shortest exact form: the largest of gb, mb and kb that divides it, else plain bytes.
pub(super) fn format_bytes(bytes: u64) -> String {
    let exact = [("gb", 1u64 << 30), ("mb", 1 << 20), ("kb", 1 << 10)]
        .into_iter()
        .find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
    match exact {
        Some((suffix, unit)) => format!("{}{suffix}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// Commands and `@categories`, in any case.
pub(super) fn parse_deny(value: &toml::Value) -> Result<Vec<DenyRule>, String> {
    let expected = "expected a list of command names and ACL categories such as [\"shutdown\", \"@dangerous\"]";
    parse_strings(value).ok_or(expected)?.into_iter().map(|entry| parse_deny_rule(&entry, expected)).collect()
}

fn parse_deny_rule(entry: &str, expected: &str) -> Result<DenyRule, String> {
    let lower = entry.to_ascii_lowercase();
    if let Some(category) = lower.strip_prefix('@') {
        return match ACL_CATEGORIES.contains(&category) {
            true => Ok(DenyRule::Category(category.to_owned())),
            false => Err(format!("expected one of the ACL categories @{}", ACL_CATEGORIES.join(", @"))),
        };
    }
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    };
    match lower.split_once('|') {
        Some((command, subcommand)) if is_name(command) && is_name(subcommand) => Ok(DenyRule::Command(lower)),
        None if is_name(&lower) => Ok(DenyRule::Command(lower)),
        _ => Err(expected.to_owned()),
    }
}

/// `everyone`, `local`, or `{ users = [...] }`.
pub(super) fn parse_cache_access(value: &toml::Value) -> Result<CacheAccess, String> {
    let named = match value {
        toml::Value::String(word) if word == "everyone" => Some(CacheAccess::Everyone),
        toml::Value::String(word) if word == "local" => Some(CacheAccess::Local),
        toml::Value::Table(table) if table.len() == 1 => table
            .get("users")
            .and_then(parse_strings)
            .filter(|users| !users.is_empty() && users.iter().all(|user| is_user_name(user)))
            .map(|users| CacheAccess::Users(users.into_iter().collect())),
        _ => None,
    };
    named.ok_or_else(|| "expected \"everyone\", \"local\" or { users = [\"name\", ...] }".to_owned())
}

/// A table of user name to password. The message repeats neither.
pub(super) fn parse_users(value: &toml::Value) -> Result<BTreeMap<String, Secret>, String> {
    let expected =
        "expected a table such as { alice = \"her password\" }, with names free of spaces and no empty password";
    let table = value.as_table().ok_or(expected)?;
    let user = |(name, password): (&String, &toml::Value)| match password.as_str() {
        Some(password) if is_user_name(name) && !password.is_empty() => Ok((name.clone(), Secret::new(password))),
        _ => Err(expected.to_owned()),
    };
    table.iter().map(user).collect()
}

/// A list of rules for keys by pattern: `[[policy]]` in a file.
pub(super) fn parse_policies(value: &toml::Value) -> Result<Vec<Policy>, String> {
    let expected = || {
        format!(
            "expected a list of at most {POLICIES_MAX} tables such as [[policy]] match = \"session:*\" \
             stale_if_error_ms_max = 0 refresh_ahead = 0.8, with milliseconds up to {}, parts up to 0.99 and no other keys",
            super::MONTH_MS
        )
    };
    let rule = |value: &toml::Value| -> Option<Policy> {
        let table = value.as_table()?;
        let keys = table.get("match")?.as_str().filter(|pattern| !pattern.is_empty())?.to_owned();
        let stale = match table.get("stale_if_error_ms_max") {
            None => None,
            Some(ms) => Some(u64::try_from(ms.as_integer()?).ok().filter(|ms| *ms <= super::MONTH_MS)?),
        };
        let refresh_ahead = match table.get("refresh_ahead") {
            None => None,
            Some(part) => Some(parse_part(part)?),
        };
        let is_known = |name: &String| matches!(&name[..], "match" | "stale_if_error_ms_max" | "refresh_ahead");
        let stale_if_error = stale.map(Duration::from_millis);
        table.keys().all(is_known).then_some(Policy { keys, stale_if_error, refresh_ahead })
    };
    let rules = value.as_array().filter(|rules| rules.len() <= POLICIES_MAX).ok_or_else(expected)?;
    rules.iter().map(|value| rule(value).ok_or_else(expected)).collect()
}

/// A part of a whole, from 0 to 0.99.
pub(super) fn parse_part(value: &toml::Value) -> Option<f64> {
    let part = match value {
        toml::Value::Float(part) => *part,
        toml::Value::Integer(0) => 0.0,
        _ => return None,
    };
    (0.0..=0.99).contains(&part).then_some(part)
}

/// ACL names in Redis hold neither spaces nor NUL bytes.
fn is_user_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '\0')
}

/// A list of strings, or a single one.
fn parse_strings(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(only) => Some(vec![only.clone()]),
        toml::Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

// === printing ===

/// A string as TOML writes it, quoted.
pub(super) fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// The list of `deny`, as it is written.
pub(super) fn deny_to_toml(rules: &[DenyRule]) -> String {
    let entry = |rule: &DenyRule| match rule {
        DenyRule::Category(name) => toml::Value::from(format!("@{name}")),
        DenyRule::Command(name) => toml::Value::from(name.as_str()),
    };
    toml::Value::Array(rules.iter().map(entry).collect()).to_string()
}

/// The list of `policy`, as it is written on one line.
pub(super) fn policies_to_toml(policies: &[Policy]) -> String {
    let entry = |policy: &Policy| {
        let stale = policy.stale_if_error.map(|max| format!(", stale_if_error_ms_max = {}", max.as_millis()));
        let ahead = policy.refresh_ahead.map(|part| format!(", refresh_ahead = {}", toml::Value::from(part)));
        format!("{{ match = {}{}{} }}", quote(&policy.keys), stale.unwrap_or_default(), ahead.unwrap_or_default())
    };
    format!("[{}]", policies.iter().map(entry).collect::<Vec<_>>().join(", "))
}

impl CacheAccess {
    pub(super) fn to_toml(&self) -> String {
        match self {
            Self::Everyone => quote("everyone"),
            Self::Local => quote("local"),
            Self::Users(users) => {
                let users = users.iter().map(|user| toml::Value::from(user.as_str())).collect();
                format!("{{ users = {} }}", toml::Value::Array(users))
            }
        }
    }
}

/// The table of users, every password hidden.
pub(super) fn users_to_toml(users: &BTreeMap<String, Secret>) -> String {
    let hidden = users.keys().map(|name| (name.clone(), toml::Value::from(HIDDEN))).collect();
    toml::Value::Table(hidden).to_string()
}

/// A URL as a message may show it. Only `scheme://host:port/database` is repeated; before an `@`, or in whatever else
/// does not look like that, there may be a password.
pub(super) fn mask_url(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if is_host_name(scheme) => (format!("{scheme}://"), rest),
        _ => (String::new(), text),
    };
    let (user, address) = match rest.rsplit_once('@') {
        Some((_, address)) => ("(hidden)@", address),
        None => ("", rest),
    };
    let (authority, database) = address.split_once('/').unwrap_or((address, "0"));
    let port = match authority.rsplit_once(':') {
        Some((_, port)) if !authority.ends_with(']') => port,
        _ => "0",
    };
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match is_number(port) && is_number(database) && !authority.starts_with(':') {
        true => format!("{scheme}{user}{address}"),
        false => format!("{scheme}{HIDDEN}"),
    }
}
