//! Processes under measurement: started on free ports, pinned to cores, ended with the run; and the CPU time they use.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take until it accepts connections.
const START_MAX: Duration = Duration::from_secs(20);
/// Ticks of `/proc/PID/stat` in a second: `USER_HZ`, 100 on every Linux that Larder runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The cores that a run may use: one for what is measured, another for all else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// For the process under measurement.
    pub(crate) subject: usize,
    /// For the generator of the load and for the server behind.
    pub(crate) others: usize,
}

/// A running process.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: SocketAddr,
    directory: PathBuf,
}

/// CPU time of one thread, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadTime {
    id: u32,
    seconds: f64,
}

/// Starts a program that listens on a port of its own. `arguments` gets the port and an empty directory; with `core`
/// the process is pinned to it.
pub(crate) fn start(
    program: &str,
    core: Option<usize>,
    arguments: impl FnOnce(u16, &PathBuf) -> Vec<String>,
) -> io::Result<Process> {
    let port = free_port()?;
    let directory = std::env::temp_dir().join(format!("larder-peers-{}-{port}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let log = fs::File::create(directory.join("log"))?;
    let mut command = match core {
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string(), program]);
            command
        }
        None => Command::new(program),
    };
    command.args(arguments(port, &directory)).current_dir(&directory);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().map_err(|e| io::Error::other(format!("starting {program}: {e}")))?;
    let mut process = Process { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), directory };
    let deadline = Instant::now() + START_MAX;
    while TcpStream::connect(process.address).is_err() {
        if process.child.try_wait()?.is_some() || Instant::now() > deadline {
            let log = fs::read_to_string(process.directory.join("log")).unwrap_or_default();
            return Err(io::Error::other(format!("{program} does not serve:\n{log}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(process)
}

/// Pins a thread, or a process of one thread, to a core.
pub(crate) fn pin(id: u32, core: usize) -> io::Result<()> {
    let mut command = Command::new("taskset");
    command.args(["-cp", &core.to_string(), &id.to_string()]).stdout(Stdio::null());
    if command.status()?.success() { Ok(()) } else { Err(io::Error::other(format!("{id} cannot be pinned"))) }
}

/// The number by which the system knows the thread that asks.
pub(crate) fn own_thread() -> io::Result<u32> {
    let link = fs::read_link("/proc/thread-self")?;
    let id = link.file_name().and_then(|name| name.to_string_lossy().parse().ok());
    id.ok_or_else(|| io::Error::other("the system does not tell a thread's number"))
}

/// True if a program can be run by its name.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// How often a thread was heard is its own affair: pairs of the same threads before and after, in seconds each.
pub(crate) fn spent(before: &[ThreadTime], after: &[ThreadTime]) -> Vec<f64> {
    let earlier = |id: u32| before.iter().find(|t| t.id == id).map_or(0.0, |t| t.seconds);
    after.iter().map(|t| t.seconds - earlier(t.id)).collect()
}

// === impl Process ===

impl Process {
    /// User and system time of each thread so far, from `/proc/PID/task/*/stat`.
    pub(crate) fn times(&self) -> io::Result<Vec<ThreadTime>> {
        let mut times = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let entry = entry?;
            let Ok(id) = entry.file_name().to_string_lossy().parse() else { continue };
            let stat = fs::read_to_string(entry.path().join("stat"))?;
            // The name, in parentheses, may hold blanks. Behind it utime and stime are the 12th and 13th field.
            let behind = stat.rsplit(')').next().unwrap_or_default();
            let ticks: u64 = behind.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
            times.push(ThreadTime { id, seconds: ticks as f64 / TICKS_PER_SECOND });
        }
        Ok(times)
    }

    /// Pins the threads whose names begin so, in the order of their names, to one core each. They may still be about to start: a
    /// listener takes connections before anybody accepts them.
    pub(crate) fn pin_threads(&self, name: &str, cores: &[usize]) -> io::Result<()> {
        let deadline = Instant::now() + START_MAX;
        let mut threads = self.threads(name)?;
        while threads.len() < cores.len() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            threads = self.threads(name)?;
        }
        if threads.len() != cores.len() {
            return Err(io::Error::other(format!("{} threads of {name}, not {}", threads.len(), cores.len())));
        }
        threads.iter().zip(cores).try_for_each(|((_, id), core)| pin(*id, *core))
    }

    fn threads(&self, name: &str) -> io::Result<Vec<(String, u32)>> {
        let mut threads: Vec<(String, u32)> = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let entry = entry?;
            let comm = fs::read_to_string(entry.path().join("comm"))?;
            if let (true, Ok(id)) = (comm.starts_with(name), entry.file_name().to_string_lossy().parse()) {
                threads.push((comm, id));
            }
        }
        threads.sort();
        Ok(threads)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; nothing can be done about a directory that stays.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
