//! A server that says what a test wants it to say: for errors that a real one cannot be brought to, for silence, and for
//! counting who connects.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::frame::{Scan, Value};
use super::process::free_port;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// What a server without data would say, to what connections are set up with and to reads.
    Usual,
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing, and nothing more on this connection, ever.
    Silence,
    /// The connection is closed.
    Close,
}

type Script = dyn Fn(&[String]) -> Answer + Send + Sync;

/// The server. It ends when it is dropped.
pub(crate) struct Stub {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    script: Box<Script>,
    refusing: AtomicBool,
    stopped: AtomicBool,
    accepted: AtomicU64,
    requests: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

const POLL: Duration = Duration::from_millis(1);

impl Stub {
    /// Starts one that answers as `script` says; it is given the words of each request, the first in capitals.
    pub(crate) fn start(script: impl Fn(&[String]) -> Answer + Send + Sync + 'static) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("stub on {address}: {e}"));
        listener.set_nonblocking(true).expect("a listener that does not block");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            refusing: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            streams: Mutex::new(Vec::new()),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&shared, &listener)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on connections are accepted and closed at once; those that are open are closed.
    pub(crate) fn refuse(&self) {
        self.shared.refusing.store(true, Ordering::Relaxed);
        self.shared.close_all();
    }

    /// From now on connections are served again.
    pub(crate) fn allow(&self) {
        self.shared.refusing.store(false, Ordering::Relaxed);
    }

    /// How many connections were accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many requests have come so far.
    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.shared.close_all();
        if let Some(acceptor) = self.acceptor.take() {
            // A panic of the acceptor has been printed already.
            let _ = acceptor.join();
        }
        self.shared.close_all();
    }
}

impl Shared {
    fn close_all(&self) {
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    while !shared.stopped.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(POLL);
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        if shared.refusing.load(Ordering::Relaxed) {
            continue;
        }
        stream.set_nonblocking(false).expect("a blocking socket");
        let handle = stream.try_clone().expect("a second handle on a socket");
        shared.streams.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || serve(&shared, stream));
    }
}

/// Serves one connection until either side closes it.
fn serve(shared: &Shared, mut stream: TcpStream) {
    let mut buffer = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    let mut is_silent = false;
    loop {
        while let Ok(Some(end)) = Scan::new().end(&buffer) {
            let request: Vec<u8> = buffer.drain(..end).collect();
            shared.requests.fetch_add(1, Ordering::Relaxed);
            let words = words(&request);
            let answer = match (shared.script)(&words) {
                _ if is_silent => continue,
                Answer::Silence => {
                    is_silent = true;
                    continue;
                }
                Answer::Usual => usual(&words),
                Answer::Bytes(bytes) => bytes,
                Answer::Close => {
                    // It may be closed already.
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                    return;
                }
            };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
        }
    }
}

fn words(request: &[u8]) -> Vec<String> {
    let mut words: Vec<String> = Value::parse(request).items().iter().map(Value::text).collect();
    if let Some(first) = words.first_mut() {
        *first = first.to_uppercase();
    }
    words
}

fn usual(words: &[String]) -> Vec<u8> {
    let answer: &[u8] = match (words[0].as_str(), words.get(1).map(|w| w.to_uppercase()).as_deref()) {
        ("HELLO", _) => b"%1\r\n$5\r\nproto\r\n:3\r\n",
        ("PING", _) => b"+PONG\r\n",
        ("CLIENT", Some("ID")) => b":7\r\n",
        ("CLIENT" | "SELECT" | "AUTH" | "SET" | "MULTI", _) => b"+OK\r\n",
        ("PTTL", _) => b":-2\r\n",
        ("GET", _) => b"_\r\n",
        _ => b"-ERR the stub does not know this\r\n",
    };
    answer.to_vec()
}
