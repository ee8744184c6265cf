//! Tests of the whole way from text to `Config`, and of the example file.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::source::environment_name;
use super::*;

const EXAMPLE: &str = include_str!("../../larder.example.toml");

fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, text)| (name.into(), text.into())).collect()
}

fn from_file(text: &str) -> Result<Resolved, ConfigErrors> {
    let mut sources = Sources::default();
    sources.parse_file("larder.toml", text)?;
    resolve(&sources)
}

fn from_environment(pairs: &[(&str, &str)]) -> Result<Resolved, ConfigErrors> {
    let mut sources = Sources::default();
    sources.add_environment(variables(pairs));
    resolve(&sources)
}

fn from_assignments(assignments: &[&str]) -> Result<Resolved, ConfigErrors> {
    let mut sources = Sources::default();
    assignments.iter().try_for_each(|assignment| sources.add_assignment(assignment))?;
    resolve(&sources)
}

#[track_caller]
fn refusal(outcome: Result<Resolved, ConfigErrors>) -> String {
    outcome.map(|resolved| resolved.to_toml()).expect_err("should have been refused").to_string()
}

#[track_caller]
fn upstream(url: &str) -> Upstream {
    let resolved = from_environment(&[("LARDER_UPSTREAM", url)]).unwrap_or_else(|errors| panic!("{errors}"));
    resolved.config.upstream.expect("an upstream")
}

fn credentials(user: Option<&str>, password: &str) -> Option<Credentials> {
    Some(Credentials { user: user.map(str::to_owned), password: Secret::new(password) })
}

// === the example file ===

#[test]
fn example_file_is_exactly_the_defaults() {
    let example = from_file(EXAMPLE).unwrap();
    let default = resolve(&Sources::default()).unwrap();
    assert_eq!(example.config, default.config);
    assert_eq!(example.config, Config::default());
}

#[test]
fn example_file_gives_every_key_in_the_order_of_check_config() {
    let example = from_file(EXAMPLE).unwrap();
    for setting in &example.settings {
        assert_ne!(setting.origin, Origin::Default, "larder.example.toml does not give {}", setting.key);
    }
    let keys = |text: &str| -> Vec<String> {
        let names = text.lines().filter(|line| !line.starts_with('#'));
        names.filter_map(|line| Some(line.split_once(" = ")?.0.to_owned())).collect()
    };
    assert_eq!(keys(EXAMPLE), keys(&example.to_toml()));
}

#[test]
fn every_key_of_the_example_has_a_comment_above_it_or_above_its_neighbour() {
    let mut commented = false;
    for line in EXAMPLE.lines() {
        match line {
            "" => commented = false,
            line if line.starts_with('#') => commented = true,
            line => assert!(commented || line.starts_with('['), "no comment for {line}"),
        }
    }
}

#[test]
fn names_of_variables_are_distinct() {
    let settings = resolve(&Sources::default()).unwrap().settings;
    let names: std::collections::BTreeSet<_> = settings.iter().map(|setting| environment_name(setting.key)).collect();
    assert_eq!(names.len(), settings.len());
    assert!(names.contains("LARDER_L1_SIZE_BYTES_MAX"), "{names:?}");
}

// === layers ===

#[test]
fn flags_beat_environment_beats_file_beats_defaults() {
    let mut sources = Sources::default();
    let link = |sources: &Sources| {
        let resolved = resolve(sources).unwrap();
        let origin = resolved.settings.iter().find(|setting| setting.key == "link.dead_ms").unwrap().origin.to_string();
        (resolved.config.link.dead_ms.as_millis(), origin)
    };
    assert_eq!(link(&sources), (15_000, "default".to_owned()));
    sources.parse_file("larder.toml", "[link]\ndead_ms = 1").unwrap();
    assert_eq!(link(&sources), (1, "larder.toml".to_owned()));
    sources.add_environment(variables(&[("LARDER_LINK_DEAD_MS", "2")]));
    assert_eq!(link(&sources), (2, "environment variable LARDER_LINK_DEAD_MS".to_owned()));
    sources.add_assignment("link.dead_ms = 3").unwrap();
    assert_eq!(link(&sources), (3, "flag --set".to_owned()));
    sources.add_flag("--dead", "link.dead_ms", "4");
    assert_eq!(link(&sources), (4, "flag --dead".to_owned()));
}

#[test]
fn empty_variable_counts_as_not_set() {
    let mut sources = Sources::default();
    sources.parse_file("larder.toml", "upstream = 'redis://cache'").unwrap();
    sources.add_environment(variables(&[("LARDER_UPSTREAM", "")]));
    assert!(resolve(&sources).unwrap().config.upstream.is_some());
    sources.add_environment(variables(&[("LARDER_UPSTREAM", "none")]));
    assert_eq!(resolve(&sources).unwrap().config.upstream, None);
}

#[test]
fn text_of_flags_and_variables_is_taken_as_its_key_needs_it() {
    let config = from_assignments(&["requirepass=12345", "log.level=\"debug\"", "l1.size_bytes_max=\"2mb\""]);
    let config = config.unwrap().config;
    assert!(config.requirepass.unwrap().matches(b"12345"));
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.l1.size_bytes_max, 2 * MB);

    let quoted = from_environment(&[("LARDER_REQUIREPASS", "\"quoted\"")]).unwrap().config;
    assert!(quoted.requirepass.unwrap().matches(b"\"quoted\""));

    let deny = vec![DenyRule::Category("dangerous".to_owned()), DenyRule::Command("config|set".to_owned())];
    for text in ["@dangerous,CONFIG|SET", "['@dangerous', 'config|set']"] {
        assert_eq!(from_environment(&[("LARDER_DENY", text)]).unwrap().config.deny, deny, "{text}");
    }
    assert_eq!(from_assignments(&["deny=@dangerous"]).unwrap().config.deny, deny[..1]);
    assert_eq!(from_assignments(&["deny=[]"]).unwrap().config.deny, []);

    let users = "cache_command={ users = ['alice', 'bob'] }";
    let expected = CacheAccess::Users(["alice".to_owned(), "bob".to_owned()].into());
    assert_eq!(from_assignments(&[users]).unwrap().config.cache_command, expected);
    assert_eq!(from_assignments(&["cache_command=local"]).unwrap().config.cache_command, CacheAccess::Local);
}

#[test]
fn zero_is_off_where_the_type_says_so() {
    let config =
        from_file("[l1]\ntouch_interval_ms = 0\n[limits]\ntcp_keepalive_ms = 0\nidle_timeout_ms = 5").unwrap().config;
    assert_eq!(config.l1.touch_interval_ms, None);
    assert_eq!(config.limits.tcp_keepalive_ms, None);
    assert_eq!(config.limits.idle_timeout_ms, Some(Duration::from_millis(5)));
    assert!(config.threads > 0);
}

// === refusals ===

#[test]
fn bad_value_names_file_key_value_and_expectation() {
    assert_eq!(
        refusal(from_file("[l1]\nsize_bytes_max = \"lots\"")),
        "larder.toml: l1.size_bytes_max = \"lots\": expected a byte size of at least 1kb, such as 268435456 or \"256mb\""
    );
    assert_eq!(
        refusal(from_environment(&[("LARDER_LINK_DEAD_MS", "soon")])),
        "environment variable LARDER_LINK_DEAD_MS: link.dead_ms = \"soon\": \
         expected milliseconds, a whole number from 1 to 3600000"
    );
    assert_eq!(
        refusal(from_assignments(&["threads=-1"])),
        "flag --set: threads = \"-1\": expected a whole number from 0 to 1024"
    );
}

#[test]
fn each_kind_refuses_what_it_cannot_be() {
    let cases = [
        ("threads = 1.5", "expected a whole number from 0 to 1024"),
        ("threads = 1025", "expected a whole number from 0 to 1024"),
        ("threads = '4'", "expected a whole number from 0 to 1024"),
        ("require_upstream = 'yes'", "expected true or false"),
        ("listen = 6380", "expected a string"),
        ("listen = 'localhost'", "expected host:port such as 127.0.0.1:6380 or [::1]:6380"),
        ("listen = '::1:6380'", "expected host:port such as 127.0.0.1:6380 or [::1]:6380"),
        ("listen = 'a:65536'", "expected host:port such as 127.0.0.1:6380 or [::1]:6380"),
        ("breaker.failure_rate_max = 0", "expected a number above 0 and up to 1, such as 0.5"),
        ("breaker.failure_rate_max = 1.01", "expected a number above 0 and up to 1, such as 0.5"),
        ("breaker.failure_rate_max = nan", "expected a number above 0 and up to 1, such as 0.5"),
        ("link.reply_ms_max = 0", "expected milliseconds, a whole number from 1 to 3600000"),
        ("link.reply_ms_max = '5s'", "expected milliseconds, a whole number from 1 to 3600000"),
        ("link.reply_ms_max = 18446744073709551616", "line 1, column"),
        ("limits.bulk_bytes_max = -1", "expected a byte size of at least 1kb, such as 268435456 or \"256mb\""),
        ("limits.bulk_bytes_max = '99999999999gb'", "expected a byte size of at least 1kb"),
        ("log.level = 'verbose'", "expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\""),
        ("log.format = 7", "expected one of \"text\", \"json\""),
        ("deny = ['@dangrous']", "expected one of the ACL categories @admin, "),
        ("deny = ['two words']", "expected a list of command names and ACL categories such as"),
        ("deny = [1]", "expected a list of command names and ACL categories such as"),
        ("cache_command = 'nobody'", "expected \"everyone\", \"local\" or { users = [\"name\", ...] }"),
        ("cache_command = { users = [] }", "expected \"everyone\", \"local\" or { users = [\"name\", ...] }"),
        ("users = 'alice'", "expected a table such as"),
        ("users = { alice = '' }", "expected a table such as"),
        ("policy = 'session:*'", "expected a list of at most 256 tables such as [[policy]] match = "),
        ("policy = [{ stale_if_error_ms_max = 1 }]", "expected a list of at most 256 tables such as"),
        ("policy = [{ match = '', stale_if_error_ms_max = 1 }]", "expected a list of at most 256 tables such as"),
        (
            "policy = [{ match = 'a', stale_if_error_ms_max = -1 }]",
            "with milliseconds up to 2592000000, parts up to 0.99 and no other keys",
        ),
        ("policy = [{ match = 'a', refresh_ahead = 1.0 }]", "parts up to 0.99"),
        ("policy = [{ match = 'a', stale = 1 }]", "expected a list of at most 256 tables such as"),
    ];
    for (text, expected) in cases {
        let message = refusal(from_file(text));
        assert!(message.starts_with("larder.toml: "), "{text}: {message}");
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn unknown_key_is_refused_with_the_nearest() {
    let cases = [
        ("listn = 'x'", "larder.toml: unknown key listn, the nearest is listen"),
        ("[l1]\nsize_bytes = 1", "larder.toml: unknown key l1.size_bytes, the nearest is l1.size_bytes_max"),
        ("[l1]\nsizes = 1", "larder.toml: unknown key l1.sizes, the nearest is l1.size_bytes_max"),
        ("[log]\nformt = 1", "larder.toml: unknown key log.formt, the nearest is log.format"),
        ("entry_bytes_max = 1", "larder.toml: unknown key entry_bytes_max, the nearest is l1.entry_bytes_max"),
        ("[limit]\nargs_max = 1", "larder.toml: unknown key limit, the nearest is [limits]"),
        ("l1 = 5", "larder.toml: unknown key l1, the nearest is [l1]"),
    ];
    for (text, expected) in cases {
        assert_eq!(refusal(from_file(text)), expected);
    }
    assert_eq!(
        refusal(from_assignments(&["l1.sise_bytes_max=1"])),
        "flag --set: unknown key l1.sise_bytes_max, the nearest is l1.size_bytes_max"
    );
}

#[test]
fn mistyped_variable_is_refused_and_a_stranger_is_not() {
    assert_eq!(
        refusal(from_environment(&[("LARDER_REQUIRE_PASS", "x")])),
        "environment variable LARDER_REQUIRE_PASS: unknown key LARDER_REQUIRE_PASS, the nearest is LARDER_REQUIREPASS"
    );
    let strangers = [
        ("LARDER_PORT", "tcp://10.0.0.1:6380"),
        ("LARDER_SERVICE_HOST", "10.0.0.1"),
        ("LARDER_PORT_6380_TCP_ADDR", "10.0.0.1"),
        ("LARDER_CONFIG", "larder.toml"),
        ("LARDER_TEST_REDIS_SERVER", "redis-server"),
        ("PATH", "/bin"),
    ];
    assert_eq!(from_environment(&strangers).unwrap().config, Config::default());
}

#[test]
fn variable_that_is_not_utf8_is_refused() {
    let mut sources = Sources::default();
    sources.add_environment([("LARDER_LISTEN".into(), OsString::from_vec(vec![0xff]))]);
    let message = refusal(resolve(&sources));
    assert_eq!(message, "environment variable LARDER_LISTEN: listen = (not UTF-8): expected a string");
}

#[test]
fn assignment_without_key_or_value_is_refused_without_repeating_what_may_be_secret() {
    for given in ["requirepass", "requirepass:hunter2", "=x", "a b=c"] {
        let message = refusal(from_assignments(&[given]));
        assert!(message.starts_with("flag --set: "), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn contradictions_name_both_sides() {
    assert_eq!(
        refusal(from_file("require_upstream = true")),
        "require_upstream = true (larder.toml) contradicts upstream = \"none\" (default): \
         without an upstream there is none to require"
    );
    let cases = ["[link]\nreconnect_ms_min = 3000", "[breaker]\nopen_ms_max = 999"];
    for text in cases {
        assert!(refusal(from_file(text)).contains(" contradicts "), "{text}");
    }
    let message = refusal(from_file("requirepass = 'hunter2'\nusers = { default = 'hunter2' }"));
    assert!(message.contains("contradicts") && !message.contains("hunter2"), "{message}");
}

#[test]
fn a_refused_value_makes_no_contradiction_of_its_own() {
    let message = refusal(from_file("require_upstream = true\nupstream = 'http://cache'"));
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn every_problem_is_reported_at_once() {
    let message = refusal(from_file("threads = 'many'\nlisten = 'here'\nlisen = 1"));
    assert_eq!(message.lines().count(), 3, "{message}");
}

#[test]
fn syntax_error_names_line_and_column_and_quotes_nothing() {
    let message = refusal(from_file("threads = 1\nrequirepass = \"hunter2\n"));
    assert!(message.starts_with("larder.toml: line 2, column "), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn missing_file_is_named() {
    let mut sources = Sources::default();
    let error = sources.read_file(std::path::Path::new("no/such/larder.toml")).unwrap_err().to_string();
    assert!(error.starts_with("no/such/larder.toml: cannot be read: "), "{error}");
}

#[test]
fn long_value_is_shortened_and_control_characters_are_escaped() {
    let message = refusal(from_file(&format!("log.level = \"\\u001b{}\"", "x".repeat(5_000))));
    assert!(message.len() < 300 && message.contains("\\u{1b}xxx"), "{message}");
}

// === byte sizes ===

#[test]
fn byte_sizes_are_those_of_redis() {
    let cases = [
        ("1024", Some(1024)),
        ("2k", Some(2_000)),
        ("2kb", Some(2_048)),
        ("2M", Some(2_000_000)),
        ("2Mb", Some(2 << 20)),
        ("1g", Some(1_000_000_000)),
        ("1GB", Some(1 << 30)),
        ("7b", Some(7)),
        (" 7kb ", Some(7 << 10)),
        ("", None),
        ("mb", None),
        ("1.5mb", None),
        ("-1", None),
        ("1 mb", None),
        ("1tb", None),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("18446744073709551615kb", None),
    ];
    for (text, bytes) in cases {
        assert_eq!(value::parse_bytes(text), bytes, "{text:?}");
    }
    for bytes in [0, 1, 1023, 1024, 1 << 20, 3 << 20, 1 << 30, 1_000_000, u64::MAX] {
        assert_eq!(value::parse_bytes(&value::format_bytes(bytes)), Some(bytes));
    }
}

// === addresses ===

#[test]
fn listen_takes_names_and_both_kinds_of_address() {
    for (text, host, port) in
        [("0.0.0.0:0", "0.0.0.0", 0), ("localhost:6380", "localhost", 6380), ("[::1]:7000", "::1", 7000)]
    {
        let config = from_environment(&[("LARDER_LISTEN", text)]).unwrap().config;
        assert_eq!(config.listen, HostPort::new(host, port));
        assert_eq!(config.listen.to_string(), text);
    }
}

#[test]
fn upstream_url_in_all_its_forms() {
    let at = |host: &str, port, credentials, database| Upstream {
        address: HostPort::new(host, port),
        credentials,
        database,
    };
    assert_eq!(upstream("redis://cache"), at("cache", 6379, None, 0));
    assert_eq!(upstream("REDIS://my_cache.internal:7000/"), at("my_cache.internal", 7000, None, 0));
    assert_eq!(upstream("redis://10.0.0.7:6380/15"), at("10.0.0.7", 6380, None, 15));
    assert_eq!(upstream("redis://[::1]"), at("::1", 6379, None, 0));
    assert_eq!(upstream("redis://[2001:db8::1]:7000/3"), at("2001:db8::1", 7000, None, 3));
    assert_eq!(upstream("redis://:pass@cache"), at("cache", 6379, credentials(None, "pass"), 0));
    assert_eq!(upstream("redis://alice:pass@cache:1/2"), at("cache", 1, credentials(Some("alice"), "pass"), 2));
    assert_eq!(
        upstream("redis://al%40ice:p%3a%2F%23%25%20^s@[::1]:1"),
        at("::1", 1, credentials(Some("al@ice"), "p:/#% ^s"), 0)
    );
    let raw = upstream("redis://:%ff%00@cache").credentials.unwrap();
    assert!(raw.password.matches(&[0xff, 0]));
}

#[test]
fn upstream_url_is_refused_with_a_reason_and_without_its_password() {
    let cases = [
        ("rediss://cache", "rediss:// (TLS) is not supported yet"),
        ("unix:///run/redis.sock", "unix:// (a Unix socket) is not supported yet"),
        ("rediss://:hunter2@cache", "rediss:// (TLS) is not supported yet"),
        ("http://cache", "expected \"none\" or redis://"),
        ("cache:6379", "expected \"none\" or redis://"),
        ("redis://", "host name or address"),
        ("redis://:6379", "expected \"none\" or redis://"),
        ("redis://cache:0", "a port from 1 to 65535"),
        ("redis://cache:65536", "expected"),
        ("redis://cache/one", "a database number"),
        ("redis://cache/1/2", "a database number"),
        ("redis://cache/2147483648", "a database number"),
        ("redis://cache/0?protocol=3", "without ? and #"),
        ("redis://hunter2@cache", "not one word"),
        ("redis://alice:hunter2", "expected"),
        ("redis://:hunter2#x@cache", "expected"),
        ("redis://:hunter2/x@cache", "expected"),
        ("redis://:hunter2%4@cache", "%XX escapes"),
        ("redis://:hunter2 x@cache", "without spaces"),
        ("redis://%ff:hunter2@cache", "UTF-8"),
    ];
    for (url, expected) in cases {
        let message = refusal(from_environment(&[("LARDER_UPSTREAM", url)]));
        assert!(message.contains(expected), "{url}: {message}");
        assert!(!message.contains("hunter2"), "{url}: {message}");
        assert!(message.contains("upstream = \""), "{url}: {message}");
    }
}

// === secrets ===

#[test]
fn no_secret_is_printed() {
    let text = "upstream = 'redis://alice:hunter2@cache/1'\nrequirepass = 'hunter2'\nusers = { bob = 'hunter2' }";
    let resolved = from_file(text).unwrap();
    let printed = format!("{:?} {:#?} {}", resolved.config, resolved.settings, resolved.to_toml());
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(!resolved.config.banner("127.0.0.1:1".parse().unwrap()).contains("hunter2"));
    let toml = resolved.to_toml();
    assert!(toml.contains("upstream = \"redis://alice:(hidden)@cache:6379/1\"  # larder.toml"), "{toml}");
    assert!(toml.contains("requirepass = \"(hidden)\""), "{toml}");
    assert!(toml.contains("users = { bob = \"(hidden)\" }"), "{toml}");

    for text in ["requirepass = 5", "requirepass = ['hunter2']", "users = { bob = ['hunter2'] }", "users = ['hunter2']"]
    {
        let message = refusal(from_file(text));
        assert!(message.contains("= (hidden): expected"), "{message}");
    }
}

#[test]
fn secret_matches_only_itself() {
    let secret = Secret::new("hunter2");
    assert!(secret.matches(b"hunter2"));
    for other in ["", "hunter", "hunter22", "Hunter2"] {
        assert!(!secret.matches(other.as_bytes()), "{other}");
    }
}

// === printing ===

#[test]
fn printed_configuration_parses_to_the_same() {
    let text = "threads = 3\nupstream = 'redis://[::1]:1/2'\ndeny = ['@slow', 'config|set']\n\
        cache_command = { users = ['ab', 'c'] }\n[l1]\nenabled = false\nentry_bytes_max = 1000\n[breaker]\nslow_rate_max = 1";
    let resolved = from_file(text).unwrap();
    assert_eq!(from_file(&resolved.to_toml()).unwrap().config, resolved.config);
}

#[test]
fn banner_says_what_is_served_and_how_to_try_it() {
    let banner = |text: &str, address: &str| from_file(text).unwrap().config.banner(address.parse().unwrap());
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        banner("", "127.0.0.1:6380"),
        format!(
            "larder {version} serves its embedded store of 256mb (no upstream) on 127.0.0.1:6380; \
             try: redis-cli -p 6380 set hello world"
        )
    );
    assert_eq!(
        banner("upstream = 'redis://:x@cache'\nl1.size_bytes_max = '64mb'", "10.0.0.5:1"),
        format!(
            "larder {version} serves redis://:(hidden)@cache:6379 with 64mb of L1 on 10.0.0.5:1; \
             try: redis-cli -h 10.0.0.5 -p 1 set hello world"
        )
    );
    assert!(banner("upstream = 'redis://cache'\nl1.enabled = false", "0.0.0.0:1").contains("cache:6379 without L1"));
}

// === rules by key pattern ===

#[test]
fn rules_by_key_pattern_stand_as_tables_or_on_one_line() {
    let file = "[l1]\nstale_if_error_ms_max = 7\n\n[[policy]]\nmatch = 'a:*'\nstale_if_error_ms_max = 0\n\n[[policy]]\nmatch = 'b'\n";
    let from_tables = from_file(file).unwrap();
    let ms = |key: &[u8]| from_tables.config.policies().stale_if_error(key).as_millis();
    assert_eq!([ms(b"a:1"), ms(b"b"), ms(b"c")], [0, 7, 7]);
    let again = from_file(&from_tables.to_toml()).unwrap();
    assert_eq!(again.config, from_tables.config, "what is printed can be read");
    let many = |count: usize| format!("policy = [{}]", "{ match = 'a' },".repeat(count));
    assert!(from_file(&many(256)).is_ok());
    assert!(refusal(from_file(&many(257))).contains("at most 256"));
}
