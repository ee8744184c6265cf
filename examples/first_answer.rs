//! What there is before the first request: the time from the start to the first answer, the size of the binary, the crates of a
//! clean build.
//!
//! ```text
//! cargo run --release --example first_answer
//! ```
//!
//! Builds the release binary, if it is not there, and starts it so many times, with the embedded store and in front of a
//! redis-server; the time is from before the process is made to the reply to a PING, tried every 0.2 ms. Needs
//! redis-server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

const STARTS: usize = 20;
/// Goals.
const START_MS: f64 = 50.0;
const BINARY_MB: f64 = 12.0;
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

fn main() -> Result<(), Failure> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    run(Command::new(&cargo).args(["build", "--release", "--locked", "--bin", "larder"]).current_dir(here))?;
    let larder = std::env::current_exe()?.parent().and_then(Path::parent).map(|target| target.join("larder"));
    let larder = larder.filter(|binary| binary.is_file()).ok_or("the binary is not beside this example")?;
    let redis_at = free_address()?;
    let _redis = Process::start("redis-server".as_ref(), &["--port", &redis_at.port().to_string(), "--save", ""])?;
    first_answer(redis_at)?;

    println!("{:44} {:>8} {:>8}", "", "", "goal");
    let upstream = format!("redis://{redis_at}");
    for (what, flags) in [("embedded store", &[][..]), ("in front of redis-server", &["--upstream", &upstream])] {
        let median = median_start(&larder, flags)?;
        println!("{:44} {median:>8.1} {START_MS:>8.0}", format!("start to first answer, ms: {what}"));
    }
    let megabytes = std::fs::metadata(&larder)?.len() as f64 / 1e6;
    println!("{:44} {megabytes:>8.1} {BINARY_MB:>8.0}", "release binary, MB");
    println!("{:44} {:>8}", "crates of others in it", crates(&cargo, here, "normal")?);
    println!("{:44} {:>8}", "the same with what only the build needs", crates(&cargo, here, "normal,build")?);
    Ok(())
}

fn median_start(larder: &Path, flags: &[&str]) -> Result<f64, Failure> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let address = free_address()?;
        let listen = address.to_string();
        let began = Instant::now();
        let _larder = Process::start(larder, &[&["--listen", &listen][..], flags].concat())?;
        first_answer(address)?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[STARTS / 2 - 1] + times[STARTS / 2]) / 2.0)
}

/// Asks until there is an answer.
fn first_answer(address: SocketAddr) -> Result<(), Failure> {
    let until = Instant::now() + ANSWER_MAX;
    loop {
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(ANSWER_MAX))?;
            stream.write_all(b"PING\r\n")?;
            let mut reply = [0; 7];
            if stream.read_exact(&mut reply).is_ok() && &reply == b"+PONG\r\n" {
                return Ok(());
            }
        }
        if Instant::now() > until {
            return Err(format!("no answer on {address}").into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Crates of others that the binary is built from: names and versions, each once.
fn crates(cargo: &str, here: &Path, edges: &str) -> Result<usize, Failure> {
    let mut command = Command::new(cargo);
    command.args(["tree", "--locked", "--package", "larder", "--edges", edges, "--prefix", "none"]).current_dir(here);
    let output = command.stderr(Stdio::null()).output()?;
    if !output.status.success() {
        return Err("cargo tree has failed".into());
    }
    let text = String::from_utf8(output.stdout)?;
    let named = text.lines().filter_map(|line| line.split_once(' '));
    let mut crates: Vec<(&str, &str)> =
        named.map(|(name, rest)| (name, rest.split(' ').next().unwrap_or_default())).collect();
    crates.retain(|(name, _)| !name.starts_with("larder"));
    crates.sort_unstable();
    crates.dedup();
    Ok(crates.len())
}

fn run(command: &mut Command) -> Result<(), Failure> {
    if command.status()?.success() { Ok(()) } else { Err("the build has failed".into()) }
}

fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A child that does not outlive this value, in an empty directory of its own.
struct Process {
    child: Child,
    directory: PathBuf,
}

// === impl Process ===

impl Process {
    fn start(program: &Path, arguments: &[&str]) -> Result<Self, Failure> {
        let directory = std::env::temp_dir().join(format!("larder-first-answer-{}", free_address()?.port()));
        std::fs::create_dir_all(&directory)?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&directory).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn();
        Ok(Self { child: child.map_err(|error| format!("cannot start {}: {error}", program.display()))?, directory })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; nothing can be done about a directory that stays.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
