//! Larder, started as its users start it.

use std::net::SocketAddr;
use std::process::Command;

use super::client::Client;
use super::frame::Value;
use super::process::{Process, TempDir};
use super::relay::Relay;
use super::server::Server;

/// A running Larder, or, with `LARDER_TEST_PLAIN=1`, its upstream in its place.
#[derive(Debug)]
pub(crate) struct Larder {
    address: SocketAddr,
    process: Option<Process>,
    _files: TempDir,
}

impl Larder {
    /// Starts Larder in front of `upstream` (or with its embedded store) with further flags.
    pub(crate) fn start(upstream: Option<&Server>, flags: &[&str]) -> Self {
        match upstream {
            Some(server) => Self::before(server.address(), flags),
            None => Self::launch(None, flags, None),
        }
    }

    /// Starts Larder in front of a relay.
    pub(crate) fn behind(relay: &Relay, flags: &[&str]) -> Self {
        Self::before(relay.address(), flags)
    }

    /// Starts Larder in front of whatever is, or will be, at `upstream`.
    pub(crate) fn before(upstream: SocketAddr, flags: &[&str]) -> Self {
        if Self::is_plain() {
            return Self { address: upstream, process: None, _files: TempDir::new() };
        }
        Self::launch(Some(format!("redis://{upstream}")), flags, None)
    }

    /// As [`Larder::behind`], with a bug planted. Only a build with the feature `mutations` has any.
    pub(crate) fn planted(relay: &Relay, flags: &[&str], bug: &str) -> Self {
        Self::launch(Some(format!("redis://{}", relay.address())), flags, Some(bug))
    }

    /// Starts Larder in front of `upstream` with an address space of so many bytes and not one more (RLIMIT_AS).
    pub(crate) fn limited(upstream: &Server, flags: &[&str], address_space_bytes: u64) -> Self {
        let url = format!("redis://{}", upstream.address());
        Self::launch_with(&["prlimit", &format!("--as={address_space_bytes}")], Some(url), flags, None)
    }

    /// Starts Larder with an upstream URL of the test's own making (a password, a database).
    pub(crate) fn with_url(url: &str, flags: &[&str]) -> Self {
        Self::launch(Some(url.to_owned()), flags, None)
    }

    fn launch(upstream: Option<String>, flags: &[&str], bug: Option<&str>) -> Self {
        Self::launch_with(&[], upstream, flags, bug)
    }

    /// Starts Larder as the last argument of `wrapper`, a program that becomes the one that it starts.
    fn launch_with(wrapper: &[&str], upstream: Option<String>, flags: &[&str], bug: Option<&str>) -> Self {
        let files = TempDir::new();
        let process = Process::start("larder", &files.path().join("log"), None, |port| {
            let words: Vec<String> = wrapper.iter().map(|&word| word.to_owned()).chain([binary()]).collect();
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            // What the environment of the person who runs the tests says about Larder must not change the result.
            for (name, _) in std::env::vars_os() {
                if name.to_string_lossy().starts_with("LARDER_") {
                    command.env_remove(name);
                }
            }
            command.current_dir(files.path()).args(["--listen", &format!("127.0.0.1:{port}")]);
            if let Some(url) = &upstream {
                command.args(["--upstream", url]);
            }
            command.args(flags);
            if let Some(bug) = bug {
                command.env("PLANTED_BUG", bug);
            }
            command
        });
        Self { address: process.address(), process: Some(process), _files: files }
    }

    /// Whether the upstream stands in Larder's place, so that nothing is spared, fenced or refused.
    pub(crate) fn is_plain() -> bool {
        std::env::var("LARDER_TEST_PLAIN").is_ok_and(|v| v == "1")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection through Larder.
    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// A connection through Larder that speaks RESP3.
    #[track_caller]
    pub(crate) fn client3(&self) -> Client {
        Client::resp3(self.address)
    }

    /// The most memory that the process has ever held, in KiB (`VmHWM` of Linux).
    #[track_caller]
    pub(crate) fn memory_peak_kb(&self) -> u64 {
        self.status_kb("VmHWM:")
    }

    /// The memory that the process holds, in KiB (`VmRSS` of Linux).
    #[track_caller]
    pub(crate) fn memory_kb(&self) -> u64 {
        self.status_kb("VmRSS:")
    }

    #[track_caller]
    fn status_kb(&self, field: &str) -> u64 {
        let id = self.process.as_ref().expect("Larder runs as a process of its own").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("the status of a process");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field in the status");
        line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
    }

    /// Sends the process a signal by name.
    #[track_caller]
    pub(crate) fn signal(&self, signal: &str) {
        self.process.as_ref().expect("Larder runs as a process of its own").signal(signal);
    }

    /// Waits until the process ends by itself, for its exit code.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.process.as_mut().expect("Larder runs as a process of its own").wait()
    }

    /// The most memory that the process has had so far, in bytes.
    #[track_caller]
    pub(crate) fn memory_peak_bytes(&self) -> u64 {
        self.process.as_ref().expect("Larder runs as a process of its own").memory_peak_kb() * 1024
    }

    /// A figure of Larder's section of INFO, by its name without the prefix.
    #[track_caller]
    pub(crate) fn figure(&self, name: &str) -> u64 {
        let info = self.client().value(&["CACHE", "STATS"]);
        let items = info.items();
        let at = items.iter().position(|item| matches!(item, Value::Bulk(b) if b == name.as_bytes()));
        let at = at.unwrap_or_else(|| panic!("no {name} in CACHE STATS"));
        u64::try_from(items[at + 1].int()).expect("a figure is not negative")
    }

    /// All that it has written to stdout and stderr.
    #[track_caller]
    pub(crate) fn output(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }
}

impl Drop for Larder {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // A Larder that has died is a failure of every test, whatever else the test was about.
            let running = process.is_running();
            if !running && !std::thread::panicking() {
                let code = process.wait();
                assert_eq!(code, Some(0), "larder ended during the test:\n{}", process.log());
            }
        }
    }
}

/// The binary under test.
pub(crate) fn binary() -> String {
    std::env::var("LARDER_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_larder").to_owned())
}
