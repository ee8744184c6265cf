//! The `larder` binary: command line in, configuration resolved, then serve, check or ping.
//!
//! It ends with 0 when all went well, 2 for a bad command line or configuration, 1 for anything that failed later; the
//! reason stands on stderr.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use larder::config::{self, ConfigErrors, HostPort, LogConfig, LogFormat, LogLevel, Resolved, Sources};
use larder::live::SetLevel;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry, reload};

mod ping;

/// The exit code of a bad configuration; clap ends with the same for a bad command line.
const EXIT_BAD_CONFIGURATION: u8 = 2;

/// A coherent Redis-protocol cache proxy. Without a command it serves.
#[derive(Parser)]
#[command(version, about)]
struct CommandLine {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The flags that decide settings. Their texts are checked with all other settings, not by clap.
#[derive(Args, Default)]
struct SettingFlags {
    /// The configuration file, in TOML; larder.example.toml describes it
    #[arg(long, global = true, value_name = "FILE", env = "LARDER_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Where clients connect [default: 127.0.0.1:6380]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// The server behind Larder, redis://[user:password@]host[:port][/database], or none for the embedded store
    #[arg(long, global = true, value_name = "URL")]
    upstream: Option<String>,
    /// How many threads serve clients [default: one for each core]
    #[arg(long, global = true, value_name = "COUNT")]
    threads: Option<String>,
    /// Bytes of the in-process cache, such as 64mb [default: 256mb]
    #[arg(long, global = true, value_name = "SIZE")]
    l1_size: Option<String>,
    /// Fail at the start if the upstream does not answer
    #[arg(long, global = true)]
    require_upstream: bool,
    /// off, error, warn, info, debug or trace [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any setting by its key, such as link.dead_ms=5000; can be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Check a configuration file, and print what it comes to with the environment and the flags, secrets hidden
    CheckConfig {
        /// The file
        file: PathBuf,
    },
    /// Ask a running Larder for a sign of life; ends with 0 if there is one
    Ping {
        /// Where it listens [default: as configured]
        #[arg(long, value_name = "HOST:PORT")]
        addr: Option<String>,
        /// Sent with AUTH before the PING
        #[arg(long)]
        password: Option<String>,
    },
}

/// Plants the bug that the environment names, for the tests that must find it.
#[cfg(feature = "mutations")]
fn plant_bug() -> Result<(), String> {
    let Ok(name) = env::var("PLANTED_BUG") else { return Ok(()) };
    let bug = larder::mutation::Mutation::named(&name).ok_or(format!("PLANTED_BUG: no such bug: {name}"))?;
    larder::mutation::plant_everywhere(bug);
    Ok(())
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    #[cfg(feature = "mutations")]
    if let Err(refusal) = plant_bug() {
        eprintln!("larder: {refusal}");
        return ExitCode::from(EXIT_BAD_CONFIGURATION);
    }
    match line.command {
        None => match resolve(&line.settings, None) {
            Ok(resolved) => serve(resolved),
            Err(errors) => refuse(&errors),
        },
        Some(Command::CheckConfig { file }) => match resolve(&line.settings, Some(&file)) {
            Ok(resolved) => print(&resolved.to_toml()),
            Err(errors) => refuse(&errors),
        },
        Some(Command::Ping { addr, password }) => match choose_ping_address(addr, &line.settings) {
            Ok(address) => ping(&address, password.as_deref()),
            Err(errors) => refuse(&errors),
        },
    }
}

fn serve(resolved: Resolved) -> ExitCode {
    let set_level = start_log(&resolved.config.log);
    match larder::server::run(resolved, set_level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn ping(address: &HostPort, password: Option<&str>) -> ExitCode {
    match ping::ping(address, password) {
        Ok(reply) => print(&format!("{reply}\n")),
        Err(error) => fail(&format!("ping {address}: {error}")),
    }
}

/// All layers together. `file` stands in for `--config`.
fn resolve(flags: &SettingFlags, file: Option<&Path>) -> Result<Resolved, ConfigErrors> {
    let mut sources = Sources::default();
    if let Some(path) = file.or(flags.config.as_deref()) {
        sources.read_file(path)?;
    }
    sources.add_environment(env::vars_os());
    let require_upstream = flags.require_upstream.then(|| "true".to_owned());
    let texts = [
        ("--listen", "listen", &flags.listen),
        ("--upstream", "upstream", &flags.upstream),
        ("--threads", "threads", &flags.threads),
        ("--l1-size", "l1.size_bytes_max", &flags.l1_size),
        ("--require-upstream", "require_upstream", &require_upstream),
        ("--log-level", "log.level", &flags.log_level),
        ("--log-format", "log.format", &flags.log_format),
    ];
    for (name, key, text) in texts {
        if let Some(text) = text {
            sources.add_flag(name, key, text.as_str());
        }
    }
    flags.set.iter().try_for_each(|assignment| sources.add_assignment(assignment))?;
    config::resolve(&sources)
}

/// `--addr`, or where the same settings would make a Larder of this machine listen.
fn choose_ping_address(addr: Option<String>, flags: &SettingFlags) -> Result<HostPort, ConfigErrors> {
    let asked = SettingFlags { listen: addr, ..SettingFlags::default() };
    let listen = match &asked.listen {
        Some(_) => resolve(&asked, None)?.config.listen,
        None => resolve(flags, None)?.config.listen,
    };
    Ok(match listen.host.as_str() {
        "0.0.0.0" => HostPort::new("127.0.0.1", listen.port),
        "::" => HostPort::new("::1", listen.port),
        _ => listen,
    })
}

/// Log lines go to stderr, in colour only if a person reads them there. Returns what changes the level.
fn start_log(log: &LogConfig) -> SetLevel {
    let (filter, handle) = reload::Layer::new(filter_of(log.level));
    let lines = fmt::layer().with_writer(io::stderr);
    match log.format {
        LogFormat::Text => registry().with(filter).with(lines.with_ansi(io::stderr().is_terminal())).init(),
        LogFormat::Json => registry().with(filter).with(lines.json()).init(),
    }
    // It fails only once there is no subscriber any more.
    Box::new(move |level| drop(handle.reload(filter_of(level))))
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// A reader that went away early (`larder check-config FILE | head`) is no failure.
fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot write to stdout: {error}")),
    }
}

fn refuse(errors: &ConfigErrors) -> ExitCode {
    for error in &errors.0 {
        eprintln!("larder: {error}");
    }
    ExitCode::from(EXIT_BAD_CONFIGURATION)
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("larder: {reason}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(words: &[&str]) -> CommandLine {
        CommandLine::try_parse_from(["larder"].iter().chain(words)).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn command_line_is_well_formed() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_flag_reaches_its_setting() {
        let line = parse(&[
            "--listen=[::1]:7000",
            "--upstream=redis://cache",
            "--threads=3",
            "--l1-size=64mb",
            "--require-upstream",
            "--log-level=warn",
            "--log-format=json",
            "--set=link.dead_ms=7",
            "--set",
            "pool.size_max=9",
        ]);
        let config = resolve(&line.settings, None).unwrap().config;
        assert_eq!(config.listen.to_string(), "[::1]:7000");
        assert_eq!(config.upstream.unwrap().to_string(), "redis://cache:6379");
        assert_eq!((config.threads, config.l1.size_bytes_max), (3, 64 << 20));
        assert!(config.require_upstream);
        assert_eq!(config.log, LogConfig { level: LogLevel::Warn, format: LogFormat::Json });
        assert_eq!((config.link.dead_ms.as_millis(), config.pool.size_max), (7, 9));
    }

    #[test]
    fn flags_may_follow_the_command() {
        let line = parse(&["check-config", "larder.toml", "--set", "threads=2", "--listen", "a:1"]);
        assert!(matches!(&line.command, Some(Command::CheckConfig { file }) if file == Path::new("larder.toml")));
        assert_eq!(line.settings.set, ["threads=2"]);
        assert_eq!(line.settings.listen.as_deref(), Some("a:1"));
    }

    #[test]
    fn ping_goes_where_larder_listens() {
        let address = |addr: Option<&str>, listen: &str| {
            let flags = SettingFlags { listen: Some(listen.to_owned()), ..SettingFlags::default() };
            choose_ping_address(addr.map(str::to_owned), &flags).unwrap().to_string()
        };
        assert_eq!(address(None, "0.0.0.0:7000"), "127.0.0.1:7000");
        assert_eq!(address(None, "[::]:7000"), "[::1]:7000");
        assert_eq!(address(None, "10.0.0.5:1"), "10.0.0.5:1");
        assert_eq!(address(Some("cache:2"), "10.0.0.5:1"), "cache:2");
    }
}
