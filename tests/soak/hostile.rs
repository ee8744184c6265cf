//! Under a limit of the address space, with clients that mean it no good: the process is not killed, does not abort for
//! want of memory, serves everybody else, and stays under the total that its settings come to.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Client, GUARD, Larder, Rng, Server, Value, encode, run_seconds, seed, show, wait_until};

/// What the process may map at most, the code, stacks and unused room of allocators included (RLIMIT_AS).
const ADDRESS_SPACE_BYTES: u64 = 1024 * MB;
const MB: u64 = 1024 * 1024;
const HOSTILE: u64 = 60;
/// Bytes of a value that hostile clients ask for and do not read.
const VALUE_BYTES: usize = 256 * 1024;

/// The settings that bound memory, and the total that they come to.
const SETTINGS: &[&str] = &[
    "--set",
    "l1.size_bytes_max=32mb",
    "--set",
    "limits.clients_max=100",
    "--set",
    "limits.request_bytes_max=1mb",
    "--set",
    "limits.bulk_bytes_max=512kb",
    "--set",
    "limits.client_output_bytes_max=1mb",
    "--set",
    "link.in_flight_bytes_max=16mb",
    "--threads",
    "2",
];
/// L1; for each client an unfinished request, output and what a pass adds to it (another megabyte, twice in a buffer that
/// grows); the link's requests under way and in its queue; a process that does nothing.
const STATED_TOTAL_BYTES: u64 = 32 * MB + 100 * 4 * MB + 2 * 16 * MB + 40 * MB;

#[test]
fn hostile_clients_do_not_exhaust_its_memory() {
    if Larder::is_plain() {
        return;
    }
    let mut rng = Rng::new(seed("hostile", None));
    let upstream = Server::redis(&[]);
    let larder = Larder::limited(&upstream, SETTINGS, ADDRESS_SPACE_BYTES);
    upstream.client().ok(&["SET", "large", &"x".repeat(VALUE_BYTES)]);
    let before = larder.memory_kb();
    let stop = AtomicBool::new(false);
    let (attacks, served, unserved) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let until = Instant::now() + run_seconds(6).min(Duration::from_secs(120));
    std::thread::scope(|scope| {
        for _ in 0..HOSTILE {
            let (address, mut rng, stop, attacks) = (larder.address(), rng.fork(), &stop, &attacks);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    attack(address, &mut rng, stop);
                    attacks.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for id in 0..4 {
            let (address, stop, served, unserved) = (larder.address(), &stop, &served, &unserved);
            scope.spawn(move || work(id, address, stop, served, unserved));
        }
        // A machine that is very busy gets some more time to serve anybody at all.
        while Instant::now() < until || (served.load(Ordering::SeqCst) == 0 && Instant::now() < until + GUARD) {
            std::thread::sleep(Duration::from_millis(200));
        }
        stop.store(true, Ordering::SeqCst);
    });
    let peak = larder.memory_peak_kb();
    let (attacks, served, unserved) = (attacks.into_inner(), served.into_inner(), unserved.into_inner());
    println!(
        "hostile: {attacks} attacks by {HOSTILE} clients, {served} requests of others served, {unserved} not within {GUARD:?}; \
         memory {before} KiB before, {peak} KiB at most, stated total {} KiB, limit of the address space {} KiB",
        STATED_TOTAL_BYTES / 1024,
        ADDRESS_SPACE_BYTES / 1024
    );
    assert!(attacks > 0 && served > 0);
    assert!(peak * 1024 < STATED_TOTAL_BYTES, "{peak} KiB");
    // Its end would fail the test when `larder` is dropped; that it still serves says more.
    wait_until("it serves as before", || larder.client().run("SET after 1") == b"+OK\r\n");
}

/// One client's worth of trouble, a second or so of it.
fn attack(larder: SocketAddr, rng: &mut Rng, stop: &AtomicBool) {
    let Ok(mut stream) = TcpStream::connect(larder) else { return };
    let limits =
        stream.set_read_timeout(Some(GUARD)).and_then(|()| stream.set_write_timeout(Some(Duration::from_millis(200))));
    limits.expect("time limits");
    let until = Instant::now() + Duration::from_millis(300 + rng.below(1500));
    let filling = vec![b'v'; 64 * 1024];
    let kind = rng.below(7);
    let (head, body): (Vec<u8>, Vec<u8>) = match kind {
        // Asks for much and reads nothing.
        0 | 1 => (Vec::new(), encode(&["GET", "large"]).repeat(50)),
        2 => (encode(&["HELLO", "3"]), encode(&["EVAL", "return redis.call('get', 'large')", "0"]).repeat(20)),
        // A request that does not end, and one with very many arguments.
        3 => (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$524288\r\n".to_vec(), filling),
        4 => (b"*1048576\r\n".to_vec(), b"$1\r\na\r\n".repeat(8000)),
        // Large writes, one after the other.
        5 => (Vec::new(), encode(&["SET", "written", &"w".repeat(300 * 1024)])),
        // A line that does not end.
        _ => (b"GET ".to_vec(), filling),
    };
    let mut sent = stream.write_all(&head);
    // It is Larder that is under attack, not the memory in which the upstream gathers what a script has answered.
    let rounds_max = if kind == 2 { 3 } else { u64::MAX };
    let mut rounds = 0;
    while sent.is_ok() && rounds < rounds_max && Instant::now() < until && !stop.load(Ordering::SeqCst) {
        sent = stream.write_all(&body);
        rounds += 1;
        // Time for Larder: on few cores this loop would take all of it.
        std::thread::sleep(Duration::from_millis(3));
    }
    // Lets what is owed wait for a while.
    while Instant::now() < until && !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(20));
    }
    if rng.one_in(2) {
        // Some read a little of it in the end.
        let _ = stream.read(&mut [0; 4096]);
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// A client that minds its own business: its answers are its own. Others may take the upstream's time, so that an answer
/// can be an error of Larder's.
fn work(id: u64, larder: SocketAddr, stop: &AtomicBool, served: &AtomicU64, unserved: &AtomicU64) {
    let mut client = Client::connect(larder);
    let (key, mut n, mut stored) = (format!("own{id}"), 0, false);
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        for request in [encode(&["SET", &key, &format!("{id}:{n}")]), encode(&["GET", &key])] {
            // Who finds no room in the link's queue is not read from; on a busy machine that can take long.
            let Ok(reply) = client.try_send_raw(&request).and_then(|()| client.try_reply()) else {
                unserved.fetch_add(1, Ordering::SeqCst);
                client = Client::connect(larder);
                continue;
            };
            match Value::parse(&reply) {
                Value::Error(line) if line.starts_with(b"UPSTREAM") => continue,
                Value::Simple(ok) if ok == b"OK" => stored = true,
                Value::Bulk(value) if value.starts_with(format!("{id}:").as_bytes()) => {}
                Value::Null if !stored => {}
                _ => panic!("client {id} has got {}", show(&reply)),
            }
            served.fetch_add(1, Ordering::SeqCst);
        }
    }
}
