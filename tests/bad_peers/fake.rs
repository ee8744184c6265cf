//! An upstream that answers as told: enough of a server for Larder to connect to, and a place to misbehave.
//!
//! Honest answers name the question: `GET k` is answered with `value of k`, a script with `value of` its first argument,
//! and a subscription is confirmed and followed by a message whose text is the channel.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Scan, Value};

/// What is done in the place of an honest answer.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Honest,
    /// These bytes, and on with the next request.
    Send(Vec<u8>),
    /// These bytes, and the connection is closed.
    SendAndClose(Vec<u8>),
    /// The honest answer, and these bytes with it.
    HonestAnd(Vec<u8>),
    /// The honest answer twice.
    Twice,
    /// The honest answer, one byte at a time.
    Slowly,
    /// A line that does not end.
    Endless,
}

/// Decides what is done with a request: its words, and a number that counts the requests of all connections.
pub(crate) type Conscience = dyn Fn(&[Vec<u8>], u64) -> Deed + Send + Sync;

/// The upstream. It ends, with all its connections, when it is dropped.
pub(crate) struct Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    conscience: Box<Conscience>,
    requests: AtomicU64,
    misdeeds: AtomicU64,
    stopped: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

// === impl Fake ===

impl Fake {
    pub(crate) fn start(conscience: impl Fn(&[Vec<u8>], u64) -> Deed + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            conscience: Box::new(conscience),
            requests: AtomicU64::new(0),
            misdeeds: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let handle = stream.try_clone().expect("a second handle");
                accepting.connections.lock().expect("no panic while locked").push(handle);
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || shared.serve(&stream));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often it has not been honest.
    pub(crate) fn misdeeds(&self) -> u64 {
        self.shared.misdeeds.load(Ordering::SeqCst)
    }

    /// Sends bytes that nobody has asked for on all connections.
    pub(crate) fn blurt(&self, bytes: &[u8]) {
        for mut connection in self.shared.connections.lock().expect("no panic while locked").iter() {
            // One that Larder has closed is not meant.
            let _ = connection.write_all(bytes);
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        for connection in self.shared.connections.lock().expect("no panic while locked").iter() {
            // It may be closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Answers until one of both closes.
    fn serve(&self, mut stream: &TcpStream) {
        stream.set_nodelay(true).expect("a socket without Nagle's delay");
        let (mut buffer, mut chunk) = (Vec::new(), [0; 16 * 1024]);
        let mut scan = Scan::new();
        loop {
            while let Some(end) = scan.end(&buffer).expect("Larder sends requests") {
                let request: Vec<u8> = buffer.drain(..end).collect();
                scan = Scan::new();
                let words: Vec<Vec<u8>> =
                    Value::parse(&request).items().iter().map(|word| word.bytes().to_vec()).collect();
                if self.answer(&words, stream).is_err() {
                    // Closed by the other side, or to be closed.
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
            }
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(n) => buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }

    fn answer(&self, words: &[Vec<u8>], mut stream: &TcpStream) -> std::io::Result<()> {
        let deed = (self.conscience)(words, self.requests.fetch_add(1, Ordering::SeqCst));
        let honest = honest(words);
        if !matches!(deed, Deed::Honest) {
            self.misdeeds.fetch_add(1, Ordering::SeqCst);
        }
        match deed {
            Deed::Honest => stream.write_all(&honest),
            Deed::Send(bytes) => stream.write_all(&bytes),
            Deed::SendAndClose(bytes) => {
                stream.write_all(&bytes)?;
                Err(std::io::ErrorKind::ConnectionAborted.into())
            }
            Deed::HonestAnd(more) => stream.write_all(&[honest, more].concat()),
            Deed::Twice => stream.write_all(&[honest.clone(), honest].concat()),
            Deed::Slowly => honest.iter().try_for_each(|byte| {
                std::thread::sleep(Duration::from_micros(200));
                stream.write_all(&[*byte])
            }),
            Deed::Endless => {
                stream.write_all(b"+")?;
                while !self.stopped.load(Ordering::SeqCst) {
                    stream.write_all(&[b'x'; 16 * 1024])?;
                }
                Ok(())
            }
        }
    }
}

/// What a server would say.
fn honest(words: &[Vec<u8>]) -> Vec<u8> {
    let word = |at: usize| String::from_utf8_lossy(words.get(at).map_or(&b""[..], |word| word)).into_owned();
    match word(0).to_uppercase().as_str() {
        "HELLO" => {
            b"%3\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n".to_vec()
        }
        "CLIENT" if word(1).eq_ignore_ascii_case("ID") => b":7\r\n".to_vec(),
        "COMMAND" => b"*0\r\n".to_vec(),
        "PTTL" => b":-1\r\n".to_vec(),
        "PING" => b"+PONG\r\n".to_vec(),
        "GET" => bulk(&format!("value of {}", word(1))),
        "EVAL" => bulk(&format!("value of {}", word(3))),
        "BLPOP" => [b"*2\r\n".to_vec(), bulk(&word(1)), bulk(&format!("value of {}", word(1)))].concat(),
        "SUBSCRIBE" => {
            let name = bulk(&word(1));
            [b">3\r\n$9\r\nsubscribe\r\n", &name[..], b":1\r\n>3\r\n$7\r\nmessage\r\n", &name, &name].concat()
        }
        "UNSUBSCRIBE" => [b">3\r\n$11\r\nunsubscribe\r\n", &bulk(&word(1))[..], b":0\r\n"].concat(),
        _ => b"+OK\r\n".to_vec(),
    }
}

pub(crate) fn bulk(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}
