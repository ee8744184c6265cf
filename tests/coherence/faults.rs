//! Coherence while the upstream and the way to it fail: histories stay valid, whatever is lost.
//!
//! With `LARDER_TEST_NETNS=1`, which `netns.sh` sets in a network namespace of its own, packets on the way to the upstream
//! are lost as well: all or some, for a moment or for seconds, or the interface goes down.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::history::{Call, History, Op};
use crate::support::{Client, Kind, Larder, Relay, Rng, Server, Value, run_seconds, seed, wait_until};
use crate::{DELAY_MAX, Floors, assert_not_before, on_both_servers};

/// The upstream writes every command to its file before it answers, so that a kill loses nothing that was acknowledged.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "no"];
const KEYS: u64 = 3;
const OPERATIONS_MAX: usize = 6000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Every third packet to or from the upstream is lost.
    LosePackets,
    /// No packet to or from the upstream arrives, for longer than a link may be silent.
    Silence,
    /// The interface goes down, also for long.
    LinkDown,
}

const FAULTS: &[Fault] = &[Fault::Cut, Fault::Refuse, Fault::Pause, Fault::Stop, Fault::Kill, Fault::ClientKill];
const NETWORK_FAULTS: &[Fault] =
    &[Fault::LosePackets, Fault::Silence, Fault::LinkDown, Fault::Cut, Fault::Kill, Fault::ClientKill];
/// In a network that goes silent a link is given up early, so that a run meets this often.
const IMPATIENT: &[&str] = &["--set", "link.dead_ms=900", "--set", "link.reply_ms_max=600"];

/// Whether the test runs in a network namespace of its own, where packets may be lost.
fn has_own_network() -> bool {
    std::env::var("LARDER_TEST_NETNS").is_ok_and(|v| v == "1")
}

fn flags() -> &'static [&'static str] {
    if has_own_network() { IMPATIENT } else { &[] }
}

/// Runs a tool of the system that must succeed.
fn run(tool: &str, line: &str) {
    let status = Command::new(tool).args(line.split(' ')).status();
    assert!(status.is_ok_and(|s| s.success()), "{tool} {line}");
}

/// Lets some or all packets to and from a port of this namespace be lost.
fn lose_packets(port: u16, which: &str, lasts: Duration) {
    run("nft", "add table inet larder");
    run("nft", "add chain inet larder in { type filter hook input priority 0 ; }");
    for side in ["dport", "sport"] {
        run("nft", &format!("add rule inet larder in tcp {side} {port} {which}drop"));
    }
    std::thread::sleep(lasts);
    run("nft", "delete table inet larder");
}

/// How often each fault was done.
#[derive(Default)]
struct Troubles(Vec<(Fault, u64)>);

// === impl Troubles ===

impl Troubles {
    fn count(&mut self, fault: Fault) {
        match self.0.iter_mut().find(|(other, _)| *other == fault) {
            Some((_, count)) => *count += 1,
            None => self.0.push((fault, 1)),
        }
    }
}

impl std::fmt::Display for Troubles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} faults", self.0.iter().map(|(_, count)| count).sum::<u64>())?;
        for (at, (fault, count)) in self.0.iter().enumerate() {
            write!(f, "{}{count} {fault:?}", if at == 0 { ": " } else { ", " })?;
        }
        Ok(())
    }
}

/// Does one fault after the other until the time is over, and counts them.
fn trouble(upstream: &mut Server, relay: &Relay, rng: &mut Rng, until: Instant) -> Troubles {
    let mut faults = Troubles::default();
    let kinds = if has_own_network() { NETWORK_FAULTS } else { FAULTS };
    let port = upstream.address().port();
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50 + rng.below(250)));
        let lasts = Duration::from_millis(5 + rng.below(80));
        let fault = *rng.pick(kinds);
        faults.count(fault);
        match fault {
            Fault::LosePackets => lose_packets(port, "numgen random mod 3 0 ", lasts * 10),
            Fault::Silence => lose_packets(port, "", lasts * 25),
            Fault::LinkDown => {
                run("ip", "link set lo down");
                std::thread::sleep(lasts * 25);
                run("ip", "link set lo up");
            }
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
    }
    faults
}

on_both_servers! {
    // Items 1, 4 and 5.
    histories_stay_valid_through_faults: histories_stay_linearizable_through_faults,
    // Items 2 and 5.
    reads_do_not_go_back_through_faults: reads_never_go_back_through_faults,
    // Stale answers only lack what was written past Larder: all else holds for them as well.
    histories_stay_valid_through_faults_with_stale_answers: histories_stay_linearizable_with_stale_answers,
    reads_do_not_go_back_through_faults_with_stale_answers: reads_never_go_back_with_stale_answers,
}

const STALE: &[&str] = &["--set", "l1.stale_if_error_ms_max=600000"];

/// A client that connects again when its connection is lost: with a server in Larder's place it is, behind Larder only in
/// the middle of a reply on an exclusive connection.
pub(crate) struct Stubborn {
    address: std::net::SocketAddr,
    client: Option<Client>,
}

// === impl Stubborn ===

impl Stubborn {
    pub(crate) fn of(address: std::net::SocketAddr) -> Self {
        Self { address, client: None }
    }

    /// The reply, or `None` if it is an error or does not come.
    pub(crate) fn ask<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Option<Value> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::try_connect(self.address).ok()?),
        };
        match client.try_cmd(args) {
            Ok(reply) => Some(Value::parse(&reply)).filter(|value| !value.is_error()),
            Err(e) => {
                // A reply that began to pass on an exclusive connection cannot be ended when that is lost. In a silent
                // network one may have come whose fence is not answered: it is not shown, and the connection ends.
                let may_close = Larder::is_plain() || args[0].as_ref() == b"EVAL" || has_own_network();
                assert!(may_close, "Larder closed a connection or did not answer: {e}");
                self.client = None;
                None
            }
        }
    }
}

fn histories_stay_linearizable_through_faults(kind: Kind) {
    check_histories(kind, flags());
}

fn histories_stay_linearizable_with_stale_answers(kind: Kind) {
    check_histories(kind, &[flags(), STALE].concat());
}

fn check_histories(kind: Kind, flags: &[&str]) {
    let mut rng = Rng::new(seed(&format!("faults, {kind:?}"), None));
    let mut upstream = Server::start(kind, DURABLE);
    let relay = Relay::start(upstream.address(), rng.next(), DELAY_MAX);
    let larder = Larder::behind(&relay, flags);
    let began = Instant::now();
    let until = began + run_seconds(4);
    let mut all = History::default();
    let mut troubles = rng.fork();
    let faults = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|id| {
                let (mut rng, address) = (rng.fork(), larder.address());
                scope.spawn(move || reads_and_writes(id, Stubborn::of(address), &mut rng, began, until))
            })
            .collect();
        let faults = trouble(&mut upstream, &relay, &mut troubles, until);
        clients.into_iter().for_each(|client| all.merge(client.join().expect("a client's thread")));
        faults
    });
    println!("faults, {kind:?}: {} operations, {faults}, {} stale answers", all.len(), stale_answers(&larder));
    if let Err(e) = all.check() {
        panic!("{e}");
    }
    recovers(&larder);
}

pub(crate) fn reads_and_writes(
    id: usize,
    mut client: Stubborn,
    rng: &mut Rng,
    began: Instant,
    until: Instant,
) -> History {
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
            let text = written.to_string();
            // A script's key is told by the push only.
            let answered = if rng.one_in(4) {
                let script = format!("return redis.call('set', '{key}', ARGV[1])");
                client.ask(&["EVAL", &script, "0", &text])
            } else {
                client.ask(&["SET", &key, &text])
            };
            let answered = answered.map(|_| now());
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
fn reads_never_go_back_through_faults(kind: Kind) {
    check_order(kind, flags());
}

fn reads_never_go_back_with_stale_answers(kind: Kind) {
    check_order(kind, &[flags(), STALE].concat());
}

fn check_order(kind: Kind, flags: &[&str]) {
    let mut rng = Rng::new(seed(&format!("faults, monotonic, {kind:?}"), None));
    let mut upstream = Server::start(kind, DURABLE);
    let relay = Relay::start(upstream.address(), rng.next(), DELAY_MAX);
    let larder = Larder::behind(&relay, flags);
    let until = Instant::now() + run_seconds(4);
    let floors = Floors::new(2);
    let mut troubles = rng.fork();
    let (faults, read) = std::thread::scope(|scope| {
        let mut writer = Stubborn::of(upstream.address());
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
                scope.spawn(move || read_forward(Stubborn::of(address), &mut rng, floors, until))
            })
            .collect();
        let faults = trouble(&mut upstream, &relay, &mut troubles, until);
        let read: u64 = readers.into_iter().map(|reader| reader.join().expect("a reader's thread")).sum();
        (faults, read)
    });
    println!("faults, monotonic, {kind:?}: {read} reads, {faults}, {} stale answers", stale_answers(&larder));
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
    let mut client = Stubborn::of(larder.address());
    wait_until("a write is taken", || client.ask(&["SET", "last", "1"]).is_some());
    assert_eq!(client.ask(&["GET", "last"]).map(|value| value.int()), Some(1));
}
