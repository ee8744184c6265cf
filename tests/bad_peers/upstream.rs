//! An upstream that misbehaves, on the link, on exclusive connections and on the connection for subscriptions.

use std::net::SocketAddr;

use crate::fake::{Deed, Fake, bulk};
use crate::support::{Client, Larder, Rng, encode, show, wait_until};
use crate::{assert_logged, assert_memory_bounded};

/// Times and rates for tests: reconnects without long waits, and a breaker that stays out of it.
const SETTINGS: &[&str] = &[
    "--set",
    "link.reconnect_ms_min=5",
    "--set",
    "link.reconnect_ms_max=20",
    "--set",
    "breaker.failure_rate_max=1",
    "--set",
    "breaker.slow_rate_max=1",
];
/// One request in so many is answered with a misdeed.
const MISDEED_EVERY: u64 = 23;
const CLIENTS: u64 = 8;
const ROUNDS: u64 = 60;
/// Requests of one client that are under way at once on the link.
const BATCH: u64 = 5;

/// Where the upstream misbehaves: each kind of request has connections of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Link,
    Exclusive,
    Blocking,
}

impl Place {
    const ALL: [Self; 3] = [Self::Link, Self::Exclusive, Self::Blocking];

    fn command(self) -> &'static str {
        match self {
            Self::Link => "GET",
            Self::Exclusive => "EVAL",
            Self::Blocking => "BLPOP",
        }
    }

    fn request(self, key: &str) -> Vec<u8> {
        match self {
            Self::Link => encode(&["GET", key]),
            Self::Exclusive => encode(&["EVAL", "return ARGV[1]", "0", key]),
            Self::Blocking => encode(&["BLPOP", key, "0"]),
        }
    }

    /// On a connection of its own a client could only be given its own replies, out of step; so that this shows as well,
    /// it asks one thing at a time there.
    fn batch(self) -> u64 {
        if self == Self::Link { BATCH } else { 1 }
    }

    fn own_answer(self, key: &str) -> Vec<u8> {
        let value = bulk(&format!("value of {key}"));
        if self == Self::Blocking { [b"*2\r\n", &bulk(key)[..], &value].concat() } else { value }
    }
}

macro_rules! misdeeds {
    ($($name:ident: $deed:expr, logged $logged:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn nobody_gets_anothers_reply() {
                for place in Place::ALL {
                    nobody_gets_anothers_reply_from(place, $deed, $logged);
                }
            }

            #[test]
            fn no_subscriber_gets_anothers_message() {
                no_subscriber_gets_anothers_message_from($deed, $logged);
            }
        }
    )*};
}

misdeeds! {
    garbage: Deed::Send(b"HTTP/1.1 400 Bad Request\r\nx: \x1b[2J\r\n\r\n".to_vec()), logged Some(r#"received "HTTP/1.1 400 Bad Request\r\nx: \x1b[2J"#);
    a_truncated_reply_and_the_end: Deed::SendAndClose(b"$100\r\nvalue of".to_vec()), logged None;
    the_end_in_the_middle_of_an_array: Deed::SendAndClose(b"*3\r\n$1\r\na\r\n*2\r\n:1\r\n".to_vec()), logged None;
    the_end_in_place_of_a_reply: Deed::SendAndClose(Vec::new()), logged None;
    an_unasked_for_reply: Deed::HonestAnd(b"+surprise\r\n".to_vec()), logged Some("+surprise");
    two_replies_for_one_request: Deed::Twice, logged None;
    a_nested_bomb: Deed::Send(b"*1\r\n".repeat(9000)), logged Some("nesting above the limit");
    a_nested_bomb_of_maps: Deed::Send(b"%1\r\n+k\r\n".repeat(9000)), logged Some("nesting above the limit");
    a_length_of_4_gb: Deed::Send(b"$4294967296\r\nvalue".to_vec()), logged Some(r#"received "$4294967296\r\n"#);
    a_count_beyond_all_bounds: Deed::Send(b"*99999999999999999\r\n".to_vec()), logged Some("*99999999999999999");
    a_promise_of_1_gb_and_the_end: Deed::SendAndClose(b"$1073741823\r\nvalue".to_vec()), logged None;
    a_senseless_push: Deed::HonestAnd(b">1\r\n$10\r\ninvalidate\r\n>1\r\n$7\r\nmessage\r\n".to_vec()), logged None;
    a_line_that_does_not_end: Deed::Endless, logged Some("above the limit");
    bytes_that_come_slowly: Deed::Slowly, logged None;
}

/// Many clients of both protocols, several requests each under way, each for a key of its own, while the upstream
/// misbehaves now and then: each answer is its own or an error, and some are their own.
fn nobody_gets_anothers_reply_from(place: Place, deed: Deed, logged: Option<&str>) {
    let command = place.command().as_bytes();
    let fake = Fake::start(
        move |words, n| {
            if words[0] == command && n % MISDEED_EVERY == 7 { deed.clone() } else { Deed::Honest }
        },
    );
    let larder = Larder::before(fake.address(), SETTINGS);
    wait_until("Larder is connected", || larder.client().cmd(&["GET", "first"]) == bulk("value of first"));
    let (own, errors) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|id| {
                scope.spawn({
                    let address = larder.address();
                    move || ask(place, id, address)
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client's thread"))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    });
    println!("{place:?}: {own} own answers, {errors} errors, {} misdeeds", fake.misdeeds());
    assert!(fake.misdeeds() > 0, "{place:?}: the upstream has been honest");
    assert!(own > 0, "{place:?}: nobody was served");
    if let Some(beginning) = logged {
        assert_logged(&larder, &[&fake.address().to_string(), beginning]);
    }
    assert_memory_bounded(&larder);
}

/// One client's requests, in batches. Returns how many answers were its own, and how many errors.
fn ask(place: Place, id: u64, larder: SocketAddr) -> (u64, u64) {
    let protocol = 2 + u8::from(id.is_multiple_of(2));
    let (mut own, mut errors) = (0, 0);
    let mut client = Client::speaking(protocol, larder);
    for round in 0..ROUNDS {
        let keys: Vec<String> = (0..place.batch()).map(|n| format!("c{id}r{round}n{n}")).collect();
        let batch: Vec<u8> = keys.iter().flat_map(|key| place.request(key)).collect();
        let mut open = client.try_send_raw(&batch).is_ok();
        for key in &keys {
            match if open { client.try_reply() } else { Err(std::io::ErrorKind::NotConnected.into()) } {
                Ok(reply) if reply == place.own_answer(key) => own += 1,
                Ok(reply) if reply.starts_with(b"-UPSTREAM") => errors += 1,
                Ok(reply) => panic!("{place:?}: client {id} has asked for {key} and got {}", show(&reply)),
                // A reply that had begun cannot be ended otherwise.
                Err(e) => {
                    assert_ne!(e.kind(), std::io::ErrorKind::WouldBlock, "{place:?}: no answer at all for {key}");
                    (errors, open) = (errors + 1, false);
                }
            }
        }
        if !open {
            client = Client::speaking(protocol, larder);
        }
    }
    (own, errors)
}

/// Subscribers to a channel each: whatever they are told, it is about that channel.
fn no_subscriber_gets_anothers_message_from(deed: Deed, logged: Option<&str>) {
    let fake =
        Fake::start(move |words, n| if words[0] == b"SUBSCRIBE" && n % 5 == 3 { deed.clone() } else { Deed::Honest });
    let larder = Larder::before(fake.address(), SETTINGS);
    let told: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|id| {
                scope.spawn({
                    let address = larder.address();
                    move || subscribe(id, address)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("a client's thread")).sum()
    });
    println!("subscribers: {told} were told something of their own, {} misdeeds", fake.misdeeds());
    assert!(fake.misdeeds() > 0, "the upstream has been honest");
    if let Some(beginning) = logged {
        assert_logged(&larder, &[&fake.address().to_string(), beginning]);
    }
    assert_memory_bounded(&larder);
}

fn subscribe(id: u64, larder: SocketAddr) -> u64 {
    let protocol = 2 + u8::from(id.is_multiple_of(2));
    let mut told = 0;
    for round in 0..12 {
        let channel = format!("c{id}r{round}");
        let mut client = Client::speaking(protocol, larder);
        client.send(&["SUBSCRIBE", &channel]);
        // A confirmation, and what may follow it until the test has seen enough.
        for _ in 0..2 {
            client.read_timeout(std::time::Duration::from_millis(500));
            let Ok(frame) = client.try_frame() else { break };
            let is_own = frame.windows(channel.len()).any(|window| window == channel.as_bytes());
            assert!(is_own || frame.starts_with(b"-UPSTREAM"), "{channel} was told {}", show(&frame));
            told += u64::from(is_own);
        }
    }
    told
}

/// A pipeline on an exclusive connection whose upstream answers twice: its client may be given its own replies out of
/// step, which nobody can tell; another client's it is never given.
#[test]
fn replies_out_of_step_stay_with_their_client() {
    let fake = Fake::start(|words, n| match &words[0][..] {
        b"EVAL" if n % MISDEED_EVERY == 7 => Deed::Twice,
        _ => Deed::Honest,
    });
    let larder = Larder::before(fake.address(), SETTINGS);
    std::thread::scope(|scope| {
        for id in 0..CLIENTS {
            let address = larder.address();
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mut client = Client::connect(address);
                    let keys = (0..BATCH).map(|n| format!("c{id}r{round}n{n}"));
                    let batch: Vec<u8> = keys.flat_map(|key| Place::Exclusive.request(&key)).collect();
                    client.send_raw(&batch);
                    for _ in 0..BATCH {
                        let Ok(reply) = client.try_reply() else { break };
                        let own = format!("value of c{id}r{round}n");
                        let is_own = reply.windows(own.len()).any(|window| window == own.as_bytes());
                        assert!(is_own || reply.starts_with(b"-UPSTREAM"), "client {id}: {}", show(&reply));
                    }
                }
            });
        }
    });
    assert!(fake.misdeeds() > 0, "the upstream has been honest");
}

/// The set-up of connections is answered with other types than any server's: no connection, a clear error, and a line in
/// the log; and where Larder can do without (COMMAND, CLIENT TRACKING) it does.
#[test]
fn wrong_types_in_the_set_up_are_found() {
    for (command, reply, serves) in [
        ("HELLO", &b":1\r\n"[..], false),
        ("HELLO", b"+OK\r\n", false),
        ("HELLO", b"*0\r\n", false),
        ("CLIENT", b":1\r\n", true),
        ("CLIENT", b"%0\r\n", true),
        ("COMMAND", b":1\r\n", true),
        ("COMMAND", b"*1\r\n*1\r\n*1\r\n:1\r\n", true),
        ("COMMAND", b"%1\r\n+get\r\n_\r\n", true),
    ] {
        let fake = Fake::start(
            move |words, _| {
                if words[0] == command.as_bytes() { Deed::Send(reply.to_vec()) } else { Deed::Honest }
            },
        );
        let larder = Larder::before(fake.address(), SETTINGS);
        let mut client = larder.client();
        if serves {
            wait_until("it serves", || client.cmd(&["GET", "k"]) == bulk("value of k"));
        } else {
            let answer = client.cmd(&["GET", "k"]);
            assert!(answer.starts_with(b"-UPSTREAMDOWN"), "{command}: {}", show(&answer));
            let shown = format!("{command} was answered with \"{}\"", reply.escape_ascii());
            assert_logged(&larder, &[&fake.address().to_string(), &shown]);
        }
    }
}

/// A PTTL that is answered with something else than a number shows that replies and requests are out of step.
#[test]
fn a_pttl_of_another_type_ends_the_link() {
    let fake = Fake::start(|words, n| match &words[0][..] {
        b"PTTL" if n < 40 => Deed::Send(b"$3\r\nabc\r\n".to_vec()),
        _ => Deed::Honest,
    });
    let larder = Larder::before(fake.address(), SETTINGS);
    let mut client = larder.client();
    wait_until("it serves in the end", || client.cmd(&["GET", "k"]) == bulk("value of k"));
    assert_logged(&larder, &[&fake.address().to_string(), r#"PTTL was answered with "$3\r\nabc\r\n""#]);
}

/// Bytes that come at a moment when nothing is under way, on all connections at once.
#[test]
fn what_nobody_has_asked_for_reaches_nobody() {
    let fake = Fake::start(|_, _| Deed::Honest);
    let larder = Larder::before(fake.address(), SETTINGS);
    let mut rng = Rng::new(3);
    for round in 0..30 {
        let mut client = Client::speaking(2 + round % 2, larder.address());
        for place in Place::ALL {
            let key = format!("r{round}{place:?}");
            let ask = |client: &mut Client| {
                client.send_raw(&place.request(&key));
                client.reply()
            };
            wait_until("it is answered", || {
                let answer = ask(&mut client);
                let own = answer == place.own_answer(&key);
                assert!(own || answer.starts_with(b"-UPSTREAM"), "{key}: {}", show(&answer));
                own
            });
        }
        let kinds = ["+surprise\r\n", "$5\r\nvalue\r\n", "*1\r\n", "\r\n", ":-1\r\n", ">1\r\n+x\r\n"];
        fake.blurt(rng.pick(&kinds).as_bytes());
        // They are there before the next request is.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_logged(&larder, &[&fake.address().to_string(), "nothing had asked for"]);
}
