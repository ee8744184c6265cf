//! Coherence while the upstream and the way to it fail: histories stay valid, whatever is lost.

use std::time::{Duration, Instant};

use crate::history::{Call, History, Op};
use crate::support::{Client, Larder, Relay, Rng, Server, Value, run_seconds, seed, wait_until};
use crate::{DELAY_MAX, Floors, assert_not_before};

/// The upstream writes every command to its file before it answers, so that a kill loses nothing that was acknowledged.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "no"];
const KEYS: u64 = 3;
const OPERATIONS_MAX: usize = 6000;

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The relay cuts all connections; new ones are accepted at once.
    Cut,
    /// The relay cuts all connections and refuses new ones for a while.
    Refuse,
    /// Nothing passes for a while, nothing is lost.
    Pause,
    /// The upstream stops in its tracks for a while.
    Stop,
    /// The upstream is killed and started again with what it had.
    Kill,
    /// The upstream closes the connections.
    ClientKill,
}

const FAULTS: &[Fault] = &[Fault::Cut, Fault::Refuse, Fault::Pause, Fault::Stop, Fault::Kill, Fault::ClientKill];

/// Does one fault after the other until the time is over, and counts them.
fn trouble(upstream: &mut Server, relay: &Relay, rng: &mut Rng, until: Instant) -> u64 {
    let mut faults = 0;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50 + rng.below(250)));
        let lasts = Duration::from_millis(5 + rng.below(80));
        match rng.pick(FAULTS) {
            Fault::Cut => drop(relay.cut()),
            Fault::Refuse => {
                relay.refuse();
                relay.cut();
                std::thread::sleep(lasts);
                relay.allow();
            }
            Fault::Pause => {
                relay.pause();
                std::thread::sleep(lasts);
                relay.resume();
            }
            Fault::Stop => {
                upstream.pause();
                std::thread::sleep(lasts);
                upstream.resume();
            }
            Fault::Kill => {
                upstream.kill();
                std::thread::sleep(lasts);
                upstream.restart();
            }
            Fault::ClientKill => drop(upstream.client().cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])),
        }
        faults += 1;
    }
    faults
}

/// A client that connects again when its connection is lost: with a server in Larder's place it is, behind Larder never.
struct Stubborn {
    address: std::net::SocketAddr,
    client: Option<Client>,
}

impl Stubborn {
    /// The reply, or `None` if it is an error or does not come.
    fn ask<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Option<Value> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::try_connect(self.address).ok()?),
        };
        match client.try_cmd(args) {
            Ok(reply) => Some(Value::parse(&reply)).filter(|value| !value.is_error()),
            Err(e) => {
                assert!(Larder::is_plain(), "Larder closed a connection or did not answer: {e}");
                self.client = None;
                None
            }
        }
    }
}

/// Stale answers allowed. They only lack what was written past Larder, so that all else holds for them as well.
const STALE: &[&str] = &["--set", "l1.stale_if_error_ms_max=600000"];

#[test]
fn histories_stay_linearizable_through_faults() {
    check_histories("faults", &[]);
}

#[test]
fn histories_stay_linearizable_through_faults_with_stale_answers() {
    check_histories("faults, stale", STALE);
}

fn check_histories(name: &str, flags: &[&str]) {
    let mut rng = Rng::new(seed(name, None));
    let mut upstream = Server::redis(DURABLE);
    let relay = Relay::start(upstream.address(), rng.next(), DELAY_MAX);
    let larder = Larder::behind(&relay, flags);
    let began = Instant::now();
    let until = began + run_seconds(5);
    let mut all = History::default();
    let mut troubles = rng.fork();
    let faults = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|id| {
                let (mut rng, address) = (rng.fork(), larder.address());
                scope.spawn(move || reads_and_writes(id, Stubborn { address, client: None }, &mut rng, began, until))
            })
            .collect();
        let faults = trouble(&mut upstream, &relay, &mut troubles, until);
        clients.into_iter().for_each(|client| all.merge(client.join().expect("a client's thread")));
        faults
    });
    println!("{name}: {} operations, {faults} faults, {} stale answers", all.len(), stale_answers(&larder));
    if let Err(e) = all.check() {
        panic!("{e}");
    }
    recovers(&larder);
}

fn reads_and_writes(id: usize, mut client: Stubborn, rng: &mut Rng, began: Instant, until: Instant) -> History {
    let mut history = History::default();
    let now = || u64::try_from(began.elapsed().as_nanos()).expect("less than 500 years");
    let mut written = i64::try_from(id).expect("a small number") * 1_000_000_000 + 1_000_000_000;
    // Reads that hit take microseconds: the pause spreads the operations over the whole run.
    let pause = (until - began) / u32::try_from(OPERATIONS_MAX).expect("a small number");
    for _ in 0..OPERATIONS_MAX {
        if Instant::now() >= until {
            break;
        }
        std::thread::sleep(pause);
        let key = format!("k{}", rng.below(KEYS));
        let called = now();
        if rng.one_in(4) {
            written += 1;
            let answered = client.ask(&["SET", &key, &written.to_string()]).map(|_| now());
            history.record(&key, Call { client: id, op: Op::Write(written), called, returned: answered });
        } else if let Some(seen) = client.ask(&["GET", &key]) {
            let op = Op::Read(seen.int_or_null());
            history.record(&key, Call { client: id, op, called, returned: Some(now()) });
        }
    }
    history
}

/// A writer at the upstream writes ever larger numbers: no reader sees a smaller one after a larger one, though Larder
/// loses its feed again and again.
#[test]
fn reads_never_go_back_through_faults() {
    check_order("faults, monotonic", &[]);
}

#[test]
fn reads_never_go_back_through_faults_with_stale_answers() {
    check_order("faults, monotonic, stale", STALE);
}

fn check_order(name: &str, flags: &[&str]) {
    let mut rng = Rng::new(seed(name, None));
    let mut upstream = Server::redis(DURABLE);
    let relay = Relay::start(upstream.address(), rng.next(), DELAY_MAX);
    let larder = Larder::behind(&relay, flags);
    let until = Instant::now() + run_seconds(5);
    let floors = Floors::new(2);
    let mut troubles = rng.fork();
    let (faults, read) = std::thread::scope(|scope| {
        let mut writer = Stubborn { address: upstream.address(), client: None };
        scope.spawn(move || {
            let mut n = 0_i64;
            while Instant::now() < until {
                n += 1;
                let text = n.to_string();
                // A direct connection is lost when the server is killed: the next number goes over a new one.
                let client = match &mut writer.client {
                    Some(client) => client,
                    none => match Client::try_connect(writer.address) {
                        Ok(client) => none.insert(client),
                        Err(_) => continue,
                    },
                };
                let first = client.try_cmd(&["SET", "first", &text]);
                if first.is_err() || client.try_cmd(&["SET", "second", &text]).is_err() {
                    writer.client = None;
                }
            }
        });
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (mut rng, address, floors) = (rng.fork(), larder.address(), &floors);
                scope.spawn(move || read_forward(Stubborn { address, client: None }, &mut rng, floors, until))
            })
            .collect();
        let faults = trouble(&mut upstream, &relay, &mut troubles, until);
        let read: u64 = readers.into_iter().map(|reader| reader.join().expect("a reader's thread")).sum();
        (faults, read)
    });
    println!("{name}: {read} reads, {faults} faults, {} stale answers", stale_answers(&larder));
    recovers(&larder);
}

fn read_forward(mut client: Stubborn, rng: &mut Rng, floors: &Floors, until: Instant) -> u64 {
    let mut read = 0;
    while Instant::now() < until {
        let n = rng.index(2);
        let floor = floors.of(n);
        let key = ["first", "second"][n];
        let Some(seen) = client.ask(&["GET", key]).map(|value| value.int_or_null().unwrap_or(0)) else { continue };
        assert_not_before(key, floor, seen);
        floors.raise(n, seen);
        if n == 1 {
            // The first is written before the second.
            floors.raise(0, seen);
        }
        read += 1;
    }
    read
}

fn stale_answers(larder: &Larder) -> u64 {
    if Larder::is_plain() { 0 } else { larder.figure("stale_hits_feed_lost") }
}

/// When the trouble is over, all works as before.
fn recovers(larder: &Larder) {
    let mut client = Stubborn { address: larder.address(), client: None };
    wait_until("a write is taken", || client.ask(&["SET", "last", "1"]).is_some());
    assert_eq!(client.ask(&["GET", "last"]).map(|value| value.int()), Some(1));
}
