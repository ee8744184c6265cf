//! A TCP relay in front of a server that delays every connection, in each direction, by its own wandering amount.
//!
//! On an undisturbed loopback the order of events *between* connections is nearly always the order in which they were
//! caused, so that most faults of coherence never show. Here each connection runs early or late by itself, as connections
//! over a network and through busy servers do. Bytes of one direction of one connection stay in order, always; what was
//! sent together may come in pieces.
//!
//! It can also be paused (nothing passes, nothing is lost), cut (RST to both sides), and told to refuse connections.
//! Each direction has a thread that reads and one that writes when the time has come, so that delay costs no throughput.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::process::free_port;
use super::rng::Rng;

const POLL: Duration = Duration::from_millis(1);
const CHUNK_BYTES: usize = 64 * 1024;
/// One in so many chunks is passed on in pieces.
const TORN_ONE_IN: u64 = 4;
/// Chunks that may be on their way in one direction; then the sender is held up.
const CHUNKS_MAX: usize = 1024;

/// A running relay; everything that passes through it is cut when it is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: Mutex<SocketAddr>,
    delay_us_max: AtomicU64,
    paused: AtomicBool,
    refusing: AtomicBool,
    stopped: AtomicBool,
    connections: Mutex<Vec<Arc<Connection>>>,
    accepted: AtomicU64,
}

/// Both sockets of one relayed connection.
#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    cut: AtomicBool,
}

impl Relay {
    /// Starts a relay before `upstream` whose delays wander between 0 and `delay_max`.
    pub(crate) fn start(upstream: SocketAddr, seed: u64, delay_max: Duration) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let listener = listen(address);
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            delay_us_max: AtomicU64::new(micros(delay_max)),
            paused: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            connections: Mutex::new(Vec::new()),
            accepted: AtomicU64::new(0),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&shared, address, listener, Rng::new(seed))
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the largest delay, for connections that are open too.
    pub(crate) fn delay(&self, delay_max: Duration) {
        self.shared.delay_us_max.store(micros(delay_max), Ordering::Relaxed);
    }

    /// Lets nothing pass until [`Relay::resume`]; nothing is lost.
    pub(crate) fn pause(&self) {
        self.shared.paused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn resume(&self) {
        self.shared.paused.store(false, Ordering::Relaxed);
    }

    /// Cuts every connection (RST to both sides); what was on its way is lost. Returns how many there were.
    pub(crate) fn cut(&self) -> usize {
        let cut = std::mem::take(&mut *lock(&self.shared.connections));
        cut.iter().for_each(|connection| connection.cut());
        cut.len()
    }

    /// Refuses new connections until [`Relay::allow`]; those that are open stay.
    pub(crate) fn refuse(&self) {
        self.shared.refusing.store(true, Ordering::Relaxed);
        super::wait_until("the relay refuses", || TcpStream::connect(self.address).is_err());
    }

    pub(crate) fn allow(&self) {
        self.shared.refusing.store(false, Ordering::Relaxed);
        super::wait_until("the relay accepts", || TcpStream::connect(self.address).is_ok());
    }

    /// Leads new connections to another server; those that are open stay where they are.
    pub(crate) fn lead_to(&self, upstream: SocketAddr) {
        *lock(&self.shared.upstream) = upstream;
    }

    /// How many connections it has accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            // A panic of the acceptor has been printed already.
            let _ = acceptor.join();
        }
        self.cut();
    }
}

// === impl Connection ===

impl Connection {
    /// Ends the connection with an RST: no lingering, and both halves woken so that the last owner closes it.
    fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
        for socket in [&self.client, &self.server] {
            // A socket that is already gone needs no cutting.
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Read);
        }
    }
}

fn accept(shared: &Arc<Shared>, address: SocketAddr, listener: TcpListener, mut rng: Rng) {
    let mut listener = Some(listener);
    while !shared.stopped.load(Ordering::Relaxed) {
        match (&listener, shared.refusing.load(Ordering::Relaxed)) {
            (Some(_), true) => listener = None,
            (None, false) => listener = Some(listen(address)),
            (Some(open), false) => match open.accept() {
                Ok((client, _)) => {
                    shared.accepted.fetch_add(1, Ordering::Relaxed);
                    relay(shared, client, &mut rng);
                }
                Err(_) => std::thread::sleep(POLL),
            },
            (None, true) => std::thread::sleep(POLL),
        }
    }
}

fn relay(shared: &Arc<Shared>, client: TcpStream, rng: &mut Rng) {
    let upstream = *lock(&shared.upstream);
    let Ok(server) = TcpStream::connect(upstream) else { return };
    client.set_nonblocking(false).expect("a blocking socket");
    client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).expect("sockets without Nagle's delay");
    let connection = Arc::new(Connection { client, server, cut: AtomicBool::new(false) });
    lock(&shared.connections).push(Arc::clone(&connection));
    pump(shared, &connection, Direction::ToServer, rng.fork());
    pump(shared, &connection, Direction::ToClient, rng.fork());
}

#[derive(Clone, Copy)]
enum Direction {
    ToServer,
    ToClient,
}

impl Direction {
    fn ends(self, connection: &Connection) -> (&TcpStream, &TcpStream) {
        match self {
            Self::ToServer => (&connection.client, &connection.server),
            Self::ToClient => (&connection.server, &connection.client),
        }
    }
}

fn pump(shared: &Arc<Shared>, connection: &Arc<Connection>, direction: Direction, rng: Rng) {
    let (send, receive) = sync_channel(CHUNKS_MAX);
    let (reader_shared, reader_connection) = (Arc::clone(shared), Arc::clone(connection));
    std::thread::spawn(move || read(&reader_shared, &reader_connection, direction, rng, &send));
    let (shared, connection) = (Arc::clone(shared), Arc::clone(connection));
    std::thread::spawn(move || {
        write(&shared, &connection, direction, &receive);
        forget(&shared, &connection);
    });
}

/// Reads chunks and gives each the time at which it may leave: later than now by a wandering delay, never before its
/// predecessor.
fn read(shared: &Shared, connection: &Connection, direction: Direction, mut rng: Rng, out: &SyncSender<Chunk>) {
    let (mut from, _) = direction.ends(connection);
    let mut chunk = vec![0; CHUNK_BYTES];
    // In millionths of the largest delay.
    let mut wander = rng.below(1_000_000);
    let mut leaves_last = Instant::now();
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        wander = next_wander(&mut rng, wander);
        let delay_us_max = shared.delay_us_max.load(Ordering::Relaxed);
        let latest = Instant::now() + Duration::from_micros(delay_us_max);
        leaves_last = leaves_last.max(Instant::now() + Duration::from_micros(delay_us_max * wander / 1_000_000));
        let mut rest = &chunk[..read];
        // A reply and what stands behind it need not come together: torn anywhere, but not so often that delays add up.
        while rest.len() > 1 && leaves_last < latest && rng.one_in(TORN_ONE_IN) {
            let (piece, left) = rest.split_at(1 + rng.index(rest.len() - 1));
            if out.send((leaves_last, piece.to_vec())).is_err() {
                return;
            }
            leaves_last += Duration::from_micros(rng.below(delay_us_max));
            rest = left;
        }
        if out.send((leaves_last, rest.to_vec())).is_err() {
            return;
        }
    }
}

type Chunk = (Instant, Vec<u8>);

/// A walk with small steps and, now and then, a jump.
fn next_wander(rng: &mut Rng, wander: u64) -> u64 {
    if rng.one_in(16) {
        return rng.below(1_000_000);
    }
    (wander + rng.below(200_000)).saturating_sub(100_000).min(1_000_000)
}

fn write(shared: &Shared, connection: &Connection, direction: Direction, chunks: &Receiver<Chunk>) {
    let (_, mut to) = direction.ends(connection);
    let is_cut = || connection.cut.load(Ordering::Relaxed);
    for (leaves, chunk) in chunks {
        std::thread::sleep(leaves.saturating_duration_since(Instant::now()));
        while shared.paused.load(Ordering::Relaxed) && !is_cut() {
            std::thread::sleep(POLL);
        }
        if is_cut() || to.write_all(&chunk).is_err() {
            break;
        }
    }
    if !is_cut() {
        // The other side has closed already if this fails.
        let _ = to.shutdown(Shutdown::Write);
    }
}

/// Drops the list's handle on a connection one half of which has ended, so that its sockets close with its threads.
fn forget(shared: &Shared, ended: &Arc<Connection>) {
    let (client, server) = (&ended.client, &ended.server);
    // A peer that has closed one direction wants the other closed too: no Redis client uses a half-open connection.
    let _ = client.shutdown(Shutdown::Read);
    let _ = server.shutdown(Shutdown::Read);
    lock(&shared.connections).retain(|connection| !Arc::ptr_eq(connection, ended));
}

fn listen(address: SocketAddr) -> TcpListener {
    let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("relay on {address}: {e}"));
    listener.set_nonblocking(true).expect("a listener that does not block");
    listener
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
