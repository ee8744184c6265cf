//! Clients that misbehave while others work: the others do not notice.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{Client, GUARD, Larder, Server, encode, show};
use crate::{assert_logged, assert_memory_bounded};

/// What a bad client sends, and how it goes on.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// Reads until Larder closes the connection.
    IsClosed,
    /// Closes at once.
    Closes,
    /// Goes on sending these bytes until Larder closes.
    SendsOn(&'static [u8]),
}

/// Each with what the log shows of it, if it does.
const MISDEEDS: &[(&[u8], Then, Option<&str>)] = &[
    (b"*1\r\n*1\r\n*1\r\n*1\r\n", Then::IsClosed, Some(r"*1\r\n*1\r\n*1")),
    (b"*2\r\n$3\r\nGET\r\n$4294967296\r\nk", Then::IsClosed, Some(r"$4294967296\r\n")),
    (b"*4294967296\r\n", Then::IsClosed, Some(r"*4294967296\r\n")),
    (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\nvalue", Then::Closes, None),
    (b"*1048576\r\n$1\r\na\r\n", Then::Closes, None),
    (b"*2\r\n$3\r\nGET\r\n$100\r\nk", Then::Closes, None),
    (b"*2\r\n:1\r\n:2\r\n", Then::IsClosed, Some("expected '$', got ':'")),
    (b"*1\r\n$x\r\n", Then::IsClosed, Some("invalid bulk length")),
    (b"GET \"a\r\n", Then::IsClosed, Some("unbalanced quotes")),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Then::SendsOn(&[0xff; 4096]), Some(r"\x16\x03\x01\x02\x00")),
    (b"x", Then::SendsOn(&[b'x'; 4096]), Some("too big inline request")),
    (b"*", Then::SendsOn(&[b'1'; 4096]), Some("too big mbulk count string")),
    (b"*1\r\n$", Then::SendsOn(&[b'1'; 4096]), Some("too big bulk count string")),
    (b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*2\r\n$4\r\nPING", Then::Closes, None),
    (b"*1\r\n$5\r\nMULTI\r\n*1\r\n$-5\r\n", Then::IsClosed, Some(r"*1\r\n$-5\r\n")),
    (b"+OK\r\n:1\r\n$5\r\nhello\r\n%1\r\n+a\r\n>1\r\n+x\r\n", Then::Closes, None),
    (b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n*1\r\n!", Then::IsClosed, Some("got '!'")),
];

#[test]
fn nobody_notices_bad_clients_and_the_log_tells_of_them() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let stop = AtomicBool::new(false);
    let asked = AtomicU64::new(0);
    std::thread::scope(|scope| {
        // Ends with this closure, in whichever way it ends, and the threads with it.
        let _stopped = Stopper(&stop);
        for id in 0..6 {
            let (address, stop, asked) = (larder.address(), &stop, &asked);
            scope.spawn(move || work(id, address, stop, asked));
        }
        for (round, (bytes, then, shown)) in (0..4).flat_map(|round| MISDEEDS.iter().map(move |m| (round, *m))) {
            let from = misbehave(larder.address(), bytes, then);
            if let (0, Some(shown)) = (round, shown) {
                assert_logged(&larder, &[&from.to_string(), shown]);
                // The log is rationed to ten lines a second.
                std::thread::sleep(Duration::from_millis(120));
            }
        }
    });
    assert!(asked.load(Ordering::SeqCst) > 100);
    assert_memory_bounded(&larder);
}

/// Stops the good clients when the test ends.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Sends, and goes on as told. Returns the client's address.
fn misbehave(larder: SocketAddr, bytes: &[u8], then: Then) -> SocketAddr {
    let mut stream = TcpStream::connect(larder).expect("Larder accepts");
    stream.set_read_timeout(Some(GUARD)).and_then(|()| stream.set_write_timeout(Some(GUARD))).expect("time limits");
    let address = stream.local_addr().expect("an address");
    stream.write_all(bytes).expect("sending");
    match then {
        Then::Closes => {}
        Then::IsClosed => drop(read_to_the_end(&mut stream)),
        Then::SendsOn(more) => {
            // What fits into the system's buffers is taken in any case; the error is Larder's closing.
            let until = std::time::Instant::now() + GUARD;
            while stream.write_all(more).is_ok() {
                assert!(std::time::Instant::now() < until, "Larder takes a line that does not end");
            }
        }
    }
    address
}

fn read_to_the_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    match stream.read_to_end(&mut got) {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("not closed after {}", show(&got)),
        // A reset counts as closing.
        _ => got,
    }
}

/// A good client: writes and reads values that name their key, in pipelines; all answers come and are right.
fn work(id: u64, larder: SocketAddr, stop: &AtomicBool, asked: &AtomicU64) {
    let mut client = Client::speaking(2 + u8::from(id.is_multiple_of(2)), larder);
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        round += 1;
        let key = format!("c{id}k{}", round % 7);
        let value = format!("{key} in round {round}");
        let batch = [
            encode(&["SET", &key, &value]),
            encode(&["GET", &key]),
            encode(&["EVAL", "return ARGV[1]", "0", &value]),
            encode(&["GET", &key]),
        ];
        let replies = client.pipeline(&batch.concat(), batch.len());
        let own = format!("${}\r\n{value}\r\n", value.len()).into_bytes();
        assert_eq!(replies[0], b"+OK\r\n");
        assert!(replies[1..].iter().all(|reply| *reply == own), "client {id}, {value}: {replies:?}");
        asked.fetch_add(4, Ordering::SeqCst);
    }
}

/// A request that comes byte by byte is a request.
#[test]
fn slow_clients_are_served() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut slow = larder.client();
    let batch = [encode(&["SET", "k", "v\r\n"]), b"GET k\r\n".to_vec(), encode(&["EVAL", "return 7", "0"])].concat();
    for byte in batch {
        slow.send_raw(&[byte]);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(slow.reply(), b"+OK\r\n");
    assert_eq!(slow.reply(), b"$3\r\nv\r\n\r\n");
    assert_eq!(slow.reply(), b":7\r\n");
}

/// Hundreds of clients promise half a gigabyte each and send nothing of it.
#[test]
fn promised_bytes_cost_nothing() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let promise = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n";
    let clients: Vec<TcpStream> = (0..300)
        .map(|_| {
            let mut stream = TcpStream::connect(larder.address()).expect("Larder accepts");
            stream.write_all(promise).and_then(|()| stream.write_all(&[b'v'; 1000])).expect("sending");
            stream
        })
        .collect();
    let mut client = larder.client();
    assert_eq!(client.run("SET other 1"), b"+OK\r\n");
    assert_memory_bounded(&larder);
    for client in clients {
        // Whether it can still be told is of no interest.
        let _ = client.shutdown(Shutdown::Both);
    }
    assert_eq!(client.run("EXISTS k"), b":0\r\n");
}
