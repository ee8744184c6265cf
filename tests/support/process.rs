//! Child processes that end with the test, on ports of their own, in directories of their own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::GUARD;

/// Below the range from which the kernel takes the local ports of outgoing connections, so that a server that restarts
/// finds its port free.
const PORT_FIRST: u32 = 10_000;
const PORT_COUNT: u32 = 22_000;
/// How often a start is tried again when another process was quicker to take the port.
const START_ATTEMPTS_MAX: usize = 5;
/// How much of a log a failed test shows.
const LOG_TAIL_LINES: usize = 40;

/// A directory that is removed when it is dropped.
#[derive(Debug)]
pub(super) struct TempDir(PathBuf);

impl TempDir {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("larder-test-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).expect("creating a directory for temporary files");
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Nothing useful can be done about a directory that stays.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server process that listens on one port. Killed when dropped; its log is shown when the test failed.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    address: SocketAddr,
}

impl Process {
    /// Starts what `command` builds for a port and waits until it accepts there. With `port` the same one is used
    /// again, else a free one.
    pub(super) fn start(name: &str, log: &Path, port: Option<u16>, command: impl Fn(u16) -> Command) -> Self {
        for _ in 0..START_ATTEMPTS_MAX {
            let port = port.unwrap_or_else(free_port);
            if let Some(process) = Self::try_start(name, log, port, command(port)) {
                return process;
            }
        }
        panic!("{name} did not start:\n{}", tail(log));
    }

    fn try_start(name: &str, log: &Path, port: u16, mut command: Command) -> Option<Self> {
        let out = File::options().create(true).append(true).open(log).expect("opening a log");
        let err = out.try_clone().expect("sharing a log");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("starting {name} ({command:?}): {e}"));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let deadline = Instant::now() + GUARD;
        loop {
            if child.try_wait().expect("asking about a child").is_some() {
                return None;
            }
            if TcpStream::connect(address).is_ok() {
                return Some(Self { name: name.to_owned(), child, log: log.to_owned(), address });
            }
            assert!(Instant::now() < deadline, "{name} does not accept on {address}:\n{}", tail(log));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The most memory that it has had so far (`VmHWM`), in kilobytes.
    pub(super) fn memory_peak_kb(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the status of a child");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM in the status");
        line.trim().trim_end_matches(" kB").parse().expect("a number of kilobytes")
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, as `kill` knows it.
    pub(super) fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.is_ok_and(|s| s.success()), "kill -{signal} {} ({})", self.child.id(), self.name);
    }

    /// Ends the process at once (SIGKILL) and waits for its end.
    pub(super) fn kill(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until the process ends by itself; its exit code, if it was not a signal.
    pub(super) fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + GUARD;
        loop {
            if let Some(status) = self.child.try_wait().expect("asking about a child") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, tail(&self.log));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("asking about a child").is_none()
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- last lines of {}:\n{}", self.name, tail(&self.log));
        }
    }
}

/// A port on which nobody listens now.
pub(super) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side begin at different places.
    let begin = std::process::id().wrapping_mul(97);
    for _ in 0..PORT_COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORT_FIRST + begin.wrapping_add(step) % PORT_COUNT;
        let port = u16::try_from(port).expect("a port below 65536");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {PORT_FIRST} on");
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}
