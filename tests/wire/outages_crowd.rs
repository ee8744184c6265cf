//! The bound on all that waits: memory stays under a stated total, whoever does not read or does not answer.
//!
//! The total is that of the limits that are set here (L1 and `limits.buffered_bytes_max`), twice the latter for what the
//! allocator keeps and for what comes in between two looks at the account, and [`BASE_BYTES`] for everything else.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::outages::plain;
use crate::support::{Answer, Larder, Server, Stub, encode, wait_until};
use crate::{OK, bulk};

const MB: u64 = 1024 * 1024;
/// The program, its threads, tables, and a few buffers for each of the clients here.
const BASE_BYTES: u64 = 64 * MB;
const L1_BYTES: u64 = 4 * MB;
const BUFFERED_BYTES: u64 = 32 * MB;
const TOTAL_BYTES: u64 = L1_BYTES + 2 * BUFFERED_BYTES + BASE_BYTES;

const FLAGS: &[&str] = &[
    "--set",
    "l1.size_bytes_max=4mb",
    "--set",
    "limits.buffered_bytes_max=32mb",
    "--set",
    "limits.buffered_wait_ms_max=200",
    "--set",
    "breaker.failure_rate_max=1.0",
    "--set",
    "breaker.slow_rate_max=1.0",
];

/// Sends requests without end, and reads what comes back, until it is told to stop: how many were refused.
fn send_without_end(larder: &Larder, request: &[u8], stop: &AtomicBool, refused: &AtomicU64) {
    let mut stream = TcpStream::connect(larder.address()).expect("connecting");
    stream.set_nonblocking(true).expect("a socket that does not block");
    let (mut at, mut replies) = (0, vec![0; 64 * 1024]);
    while !stop.load(Ordering::Relaxed) {
        let mut moved = false;
        match stream.write(&request[at..]) {
            Ok(n) => (at, moved) = ((at + n) % request.len(), true),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        match stream.read(&mut replies) {
            Ok(0) => return,
            Ok(n) => {
                let lines =
                    replies[..n].split(|b| *b == b'\n').filter(|line| line.starts_with(b"-BUSYBUFFERS")).count();
                refused.fetch_add(lines as u64, Ordering::Relaxed);
                moved = true;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if !moved {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// An upstream that accepts and never answers, while clients keep sending.
#[test]
fn a_silent_upstream_and_clients_that_keep_sending_fill_no_memory() {
    if plain() {
        return;
    }
    let stub = Stub::start(|words| if words[0] == "SET" { Answer::Silence } else { Answer::Usual });
    let larder = Larder::before(stub.address(), &[FLAGS, &["--set", "link.dead_ms=600000"]].concat());
    wait_until("the link is there", || larder.client().run("GET k") == b"$-1\r\n");
    let value = "x".repeat(200 * 1024);
    let (stop, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for n in 0..40 {
            let request = encode(&["SET", &format!("k{n}"), &value]);
            let (larder, stop, refused) = (&larder, &stop, &refused);
            scope.spawn(move || send_without_end(larder, &request, stop, refused));
        }
        wait_until("requests are refused", || refused.load(Ordering::Relaxed) > 100);
        stop.store(true, Ordering::Relaxed);
    });
    let peak = larder.memory_peak_bytes();
    println!("{} MB at the most, {} MB are promised", peak / MB, TOTAL_BYTES / MB);
    assert!(peak < TOTAL_BYTES, "{} MB at the most, {} MB were promised", peak / MB, TOTAL_BYTES / MB);
    assert!(larder.figure("buffered_refused") > 100);
}

/// Clients that ask for much more than fits, and read nothing.
#[test]
fn clients_that_never_read_fill_no_memory_and_hold_up_nobody() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[FLAGS, &["--set", "l1.enabled=false"]].concat());
    let mut good = larder.client();
    let value = "x".repeat(500 * 1024);
    assert_eq!(good.cmd(&["SET", "big", &value]), OK);
    assert_eq!(good.run("SET k v"), OK);
    let ask: Vec<u8> = (0..60).flat_map(|_| encode(&["GET", "big"])).collect();
    // 20 times 60 replies of 500 kB: 600 MB.
    let mut greedy: Vec<TcpStream> = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(larder.address()).expect("connecting");
        stream.write_all(&ask).expect("sending");
        greedy.push(stream);
    }
    wait_until("some are closed", || larder.figure("buffered_clients_closed") > 0);
    wait_until("others are served", || good.run("GET k") == bulk("v"));
    drop(greedy);
    wait_until("all is given back", || larder.figure("buffered_bytes") < 4 * MB);
    assert_eq!(good.cmd(&["GET", "big"]), bulk(&value));
    let peak = larder.memory_peak_bytes();
    println!("{} MB at the most, {} MB are promised", peak / MB, TOTAL_BYTES / MB);
    assert!(peak < TOTAL_BYTES, "{} MB at the most, {} MB were promised", peak / MB, TOTAL_BYTES / MB);
}
