//! What the upstream's errors, silences and losses do to the circuit: on the link and on connections of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::outages::{is_outage, plain};
use crate::support::{Answer, Client, Crowd, Larder, Relay, Server, Stub, Value, wait_until};
use crate::{bulk, error_of};

/// A number, or a word, of `CACHE BREAKER`.
#[track_caller]
pub(crate) fn breaker(client: &mut Client, name: &str) -> String {
    let shown = client.ask("CACHE BREAKER");
    let items = shown.items();
    let at = items.iter().step_by(2).position(|item| item.bytes() == name.as_bytes());
    match &items[2 * at.unwrap_or_else(|| panic!("no {name} in CACHE BREAKER")) + 1] {
        Value::Int(n) => n.to_string(),
        Value::Null => String::new(),
        other => other.text(),
    }
}

#[track_caller]
fn failures(client: &mut Client) -> u64 {
    breaker(client, "failures").parse().expect("a number")
}

/// No connection beside the links, so that those can be counted.
const ALONE: &[&str] = &["--set", "tags.peers_ms_max=0"];
/// Never opens, so that only the counts show.
const COUNTS_ONLY: &[&str] =
    &["--set", "breaker.calls_min=1000000", "--set", "link.reconnect_ms_min=10", ALONE[0], ALONE[1]];

/// Each error of the table in docs/outage.md: handed to the client as it is, counted or not, and a new link or not.
#[test]
fn each_error_reply_counts_or_passes_through_as_the_table_says() {
    if plain() {
        return;
    }
    for (word, counts, reconnects) in [
        ("LOADING", true, false),
        ("MASTERDOWN", true, false),
        ("CLUSTERDOWN", true, false),
        ("READONLY", false, true),
        ("MISCONF", false, false),
        ("OOM", false, false),
        ("NOREPLICAS", false, false),
        ("BUSY", false, false),
        ("WRONGTYPE", false, false),
        ("ERR", false, false),
    ] {
        let line = format!("-{word} as a server would say it\r\n");
        let answer = line.clone();
        let stub = Stub::start(move |words| match words[0].as_str() {
            "SET" => Answer::Bytes(answer.clone().into_bytes()),
            _ => Answer::Usual,
        });
        let larder = Larder::before(stub.address(), COUNTS_ONLY);
        let mut client = larder.client();
        wait_until("the link is there", || client.run("GET k") == b"$-1\r\n");
        let connected = stub.accepted();
        assert_eq!(client.run("SET k v"), line.as_bytes());
        let mut other = larder.client();
        wait_until("it was looked at", || other.run("GET k") == b"$-1\r\n");
        match counts {
            true => wait_until(&format!("{word} counts"), || failures(&mut other) == 1),
            false => {
                // A tick of the link later, at the latest, it would.
                std::thread::sleep(std::time::Duration::from_millis(400));
                assert_eq!(failures(&mut other), 0, "{word} does not count");
            }
        }
        if reconnects {
            wait_until("the link is made anew", || stub.accepted() == connected + 1);
        } else {
            assert_eq!(stub.accepted(), connected, "{word} is no reason to connect");
        }
        wait_until("all goes on", || client.run("GET k") == b"$-1\r\n");
    }
}

/// A server that loads its data is not there yet, and says so in its own words.
#[test]
fn a_loading_server_is_waited_for() {
    if plain() {
        return;
    }
    const LOADING: &str = "-LOADING Redis is loading the dataset in memory\r\n";
    let loads = Arc::new(AtomicUsize::new(0));
    let shared = loads.clone();
    let stub = Stub::start(move |words| match words[0].as_str() {
        "PING" | "GET" if shared.fetch_add(1, Ordering::Relaxed) < 5 => Answer::Bytes(LOADING.into()),
        _ => Answer::Usual,
    });
    let larder = Larder::before(stub.address(), COUNTS_ONLY);
    let mut client = larder.client();
    let first = client.run("GET k");
    assert!(first == LOADING.as_bytes() || is_outage(&first), "{}", first.escape_ascii());
    wait_until("it has loaded", || client.run("GET k") == b"$-1\r\n");
    assert!(failures(&mut client) > 0, "what it has said counts");
}

/// An upstream that stays a replica is not connected to again and again.
#[test]
fn a_replica_on_purpose_costs_few_reconnects_and_no_write_is_lost() {
    if plain() {
        return;
    }
    let primary = Server::redis(&[]);
    let upstream = Server::redis(&[]);
    let address = primary.address();
    upstream.client().run(&format!("REPLICAOF {} {}", address.ip(), address.port()));
    wait_until("it has followed", || upstream.info("replication", "master_link_status") == "up");
    let relay = Relay::start(upstream.address(), 3, std::time::Duration::ZERO);
    let larder = Larder::behind(&relay, &[]);
    let mut client = larder.client();
    let expected = upstream.client().run("SET k v");
    assert!(expected.starts_with(b"-READONLY"), "{}", expected.escape_ascii());
    let before = relay.accepted();
    for _ in 0..500 {
        assert_eq!(client.run("SET k v"), expected);
        assert_eq!(client.run("GET k"), b"$-1\r\n");
    }
    let made = relay.accepted() - before;
    assert!((1..=6).contains(&made), "{made} new connections for 500 refused writes");
    assert_eq!(breaker(&mut client, "state"), "closed");
}

/// After a failover the name leads elsewhere: writes find the new primary without anybody's help.
#[test]
fn a_failover_is_followed() {
    if plain() {
        return;
    }
    let is_replica = Arc::new(AtomicUsize::new(0));
    let shared = is_replica.clone();
    // The name stays; whom it leads to is decided when a connection is made.
    let stub = Stub::start(move |words| match words[0].as_str() {
        "HELLO" => {
            shared.fetch_add(1, Ordering::Relaxed);
            Answer::Usual
        }
        "SET" if shared.load(Ordering::Relaxed) < 2 => Answer::Bytes(b"-READONLY You can't write\r\n".to_vec()),
        _ => Answer::Usual,
    });
    let larder = Larder::before(stub.address(), ALONE);
    let mut client = larder.client();
    wait_until("the write is taken", || client.run("SET k v") == b"+OK\r\n");
    assert_eq!(is_replica.load(Ordering::Relaxed), 2, "one new connection was enough");
}

#[test]
fn lost_exclusive_connections_count_and_the_clients_own_errors_do_not() {
    if plain() {
        return;
    }
    let stub = Stub::start(|words| match (words[0].as_str(), words.get(1).map(String::as_str)) {
        ("EVAL", Some("lost")) => Answer::Close,
        ("EVAL", Some("wrong")) => Answer::Bytes(b"-ERR Error compiling script\r\n".to_vec()),
        ("EVAL", Some("forged")) => Answer::Bytes(b"-LOADING says the script\r\n".to_vec()),
        ("EVAL", _) => Answer::Bytes(b":1\r\n".to_vec()),
        _ => Answer::Usual,
    });
    let larder = Larder::before(stub.address(), COUNTS_ONLY);
    let mut client = larder.client();
    wait_until("the link is there", || client.run("EVAL fine 0") == b":1\r\n");
    for _ in 0..20 {
        assert!(client.run("EVAL wrong 0").starts_with(b"-ERR"));
        assert!(client.run("EVAL forged 0").starts_with(b"-LOADING"));
    }
    assert_eq!(failures(&mut client), 0);
    for n in 1..=5 {
        let error = error_of(&client.run("EVAL lost 0"));
        assert!(error.starts_with("UPSTREAMLOST") && error.contains("may or may not"), "{error}");
        assert_eq!(failures(&mut client), n);
    }
    // Those that go well count, too: a few losses among many calls do not open the circuit.
    let calls = |client: &mut Client| -> u64 { breaker(client, "calls").parse().expect("a number") };
    let before = calls(&mut client);
    for _ in 0..50 {
        client.run("EVAL fine 0");
    }
    assert!(calls(&mut client) >= before + 50);
}

/// Each class of command has its time; after a timeout the connection is not used again, so that no late reply can come
/// to the wrong request.
#[test]
fn exclusive_timeouts_count_and_late_replies_go_nowhere() {
    if plain() {
        return;
    }
    let stub = Stub::start(|words| match (words[0].as_str(), words.get(1).map(String::as_str)) {
        ("EVAL", Some("late")) => {
            std::thread::sleep(std::time::Duration::from_millis(2500));
            Answer::Bytes(b":666\r\n".to_vec())
        }
        ("EVAL", _) => Answer::Bytes(b":1\r\n".to_vec()),
        ("BLPOP", Some("never")) => Answer::Silence,
        ("BLPOP", _) => {
            std::thread::sleep(std::time::Duration::from_millis(700));
            Answer::Bytes(b"*-1\r\n".to_vec())
        }
        _ => Answer::Usual,
    });
    let flags =
        ["--set", "pool.reply_ms_max=1500", "--set", "pool.blocking_grace_ms=1500", "--set", "breaker.slow_ms=500"];
    let larder = Larder::before(stub.address(), &[&flags[..], COUNTS_ONLY].concat());
    let mut client = larder.client();
    wait_until("the link is there", || client.run("EVAL fine 0") == b":1\r\n");
    let error = error_of(&client.run("EVAL late 0"));
    assert!(error.starts_with("UPSTREAMTIMEOUT no reply within 1500 ms"), "{error}");
    assert_eq!(failures(&mut client), 1);
    for _ in 0..60 {
        assert_eq!(client.run("EVAL fine 0"), b":1\r\n");
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
    // A blocking command is measured from its own timeout, and its waiting is not slow.
    assert_eq!(client.run("BLPOP k 1"), b"*-1\r\n");
    assert_eq!((failures(&mut client), breaker(&mut client, "slow")), (1, "0".into()));
    let error = error_of(&client.run("BLPOP never 0.5"));
    assert!(error.starts_with("UPSTREAMTIMEOUT no reply within 2000 ms"), "{error}");
    assert_eq!(failures(&mut client), 2);
}

#[test]
fn link_timeouts_are_by_class_and_late_replies_are_dropped_in_order() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let flags = ["--set", "link.reply_ms_max=200", "--set", "link.write_ms_max=2000"];
    let larder = Larder::start(Some(&upstream), &[&flags[..], COUNTS_ONLY].concat());
    let mut client = larder.client();
    for n in 0..20 {
        client.run(&format!("SET k{n} v{n}"));
    }
    let mut direct = upstream.client();
    direct.send(&["DEBUG", "SLEEP", "0.8"]);
    wait_until("it sleeps", || is_outage(&client.run("TTL k0")));
    // Reads are given up, the write behind them is waited for.
    let batch: Vec<u8> = (1..20).flat_map(|n| crate::support::encode(&["GET", &format!("k{n}")])).collect();
    client.send_raw(&batch);
    client.send(&["SET", "w", "1"]);
    for _ in 1..20 {
        let reply = client.reply();
        assert!(is_outage(&reply) || reply.starts_with(b"$"), "{}", reply.escape_ascii());
    }
    assert_eq!(client.reply(), b"+OK\r\n");
    for n in 0..20 {
        assert_eq!(client.run(&format!("GET k{n}")), bulk(&format!("v{n}")), "its own reply, not a late one");
    }
}

/// Ten thousand that wait do not knock: connects are made by one link and few pools, behind the breaker.
#[test]
fn a_crowd_of_clients_makes_no_storm_of_connects() {
    if plain() {
        return;
    }
    let crowd = Crowd::of_at_most(10_000);
    let count = crowd.clients();
    let stub = Stub::start(|_| Answer::Usual);
    // One client more is there for a moment: the one that waited until Larder had started.
    let larder = Larder::before(stub.address(), &["--set", "limits.clients_max=10100"]);
    let mut clients: Vec<Client> = (0..count).map(|_| larder.client()).collect();
    wait_until("the link is there", || clients[0].run("GET k") == b"$-1\r\n");
    stub.refuse();
    wait_until("the loss is noticed", || is_outage(&clients[0].run("SET k v")));
    let before = stub.accepted();
    let began = std::time::Instant::now();
    for round in 0..3 {
        for (i, client) in clients.iter_mut().enumerate() {
            let line: &[&str] = match (i + round) % 4 {
                0 => &["GET", "k"],
                1 => &["EVAL", "return 1", "0"],
                2 => &["BLPOP", "k", "1"],
                _ => &["AUTH", "user", "password"],
            };
            client.send(line);
        }
        for client in &mut clients {
            let reply = client.reply();
            assert!(is_outage(&reply), "{}", reply.escape_ascii());
        }
    }
    let (made, seconds) = (stub.accepted() - before, began.elapsed().as_secs());
    println!("{made} connects for {} requests of {count} clients in {seconds} s", 3 * count);
    // Until the circuit opens: what a window takes, and what is under way in the pools. Then one probe at a time.
    assert!(made <= 300 + 25 * seconds, "{made} connects for {} requests in {seconds} s", 3 * count);
    let error = error_of(&clients[1].run("GET k"));
    assert!(error.starts_with("UPSTREAMDOWN upstream "), "{error}");
    stub.allow();
    wait_until("all goes on", || clients[0].run("GET k") == b"$-1\r\n");
    wait_until("for all", || clients.iter_mut().all(|client| client.run("GET k") == b"$-1\r\n"));
}

/// The line that the design promises, word for word, without a socket touched.
#[test]
fn an_open_circuit_says_why_and_until_when() {
    if plain() {
        return;
    }
    let stub = Stub::start(|words| if words[0] == "GET" { Answer::Silence } else { Answer::Usual });
    let flags = ["link.reply_ms_max=100", "link.dead_ms=60000", "breaker.calls_min=3", "breaker.open_ms_min=60000"];
    let mut set: Vec<&str> = flags.iter().flat_map(|flag| ["--set", *flag]).collect();
    set.extend(["--set", "breaker.open_ms_max=60000"]);
    let larder = Larder::before(stub.address(), &set);
    let mut client = larder.client();
    wait_until("the circuit opens", || client.run("GET k").starts_with(b"-UPSTREAMDOWN"));
    let (accepted, requests) = (stub.accepted(), stub.requests());
    for line in ["GET k", "SET k v", "EVAL return(1) 0", "BLPOP k 0", "AUTH a b", "SELECT 3"] {
        let error = error_of(&client.run(line));
        let head = format!("UPSTREAMDOWN upstream {} unavailable (circuit open after ", stub.address());
        let tail = error.strip_prefix(&head).unwrap_or_else(|| panic!("{line}: {error}"));
        let (count, rest) = tail.split_once(" timeout").unwrap_or_else(|| panic!("{line}: {error}"));
        assert!(count.parse::<u64>().is_ok_and(|n| n >= 2), "{line}: {error}");
        let probe = rest.trim_start_matches('s').strip_prefix("; next probe in ").and_then(|r| r.strip_suffix(" ms)"));
        assert!(probe.is_some_and(|ms| ms.parse::<u64>().is_ok()), "{line}: {error}");
    }
    assert_eq!((stub.accepted(), stub.requests()), (accepted, requests), "nothing was asked of the upstream");
}

/// A read that is lost with its link is asked once more on the next one; a write never, and its client is told.
#[test]
fn a_lost_read_is_asked_once_more_and_a_lost_write_never() {
    if plain() {
        return;
    }
    let (gets, sets) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (seen_gets, seen_sets) = (gets.clone(), sets.clone());
    let stub = Stub::start(move |words| match (words[0].as_str(), words.get(1).map(String::as_str)) {
        ("GET", Some("once")) if seen_gets.fetch_add(1, Ordering::Relaxed) == 0 => Answer::Close,
        ("GET", Some("once")) => Answer::Bytes(b"$5\r\nvalue\r\n".to_vec()),
        ("GET", Some("always")) => {
            seen_gets.fetch_add(1, Ordering::Relaxed);
            Answer::Close
        }
        ("SET", Some("k")) => {
            seen_sets.fetch_add(1, Ordering::Relaxed);
            Answer::Close
        }
        _ => Answer::Usual,
    });
    let larder = Larder::before(stub.address(), COUNTS_ONLY);
    let mut client = larder.client();
    wait_until("the link is there", || client.run("GET k") == b"$-1\r\n");
    assert_eq!(client.run("GET once"), bulk("value"), "the loss does not show");
    assert_eq!(gets.swap(0, Ordering::Relaxed), 2);
    let error = error_of(&client.run("GET always"));
    assert_eq!(error, "UPSTREAMLOST connection lost; the command only reads and may be sent again");
    assert_eq!(gets.load(Ordering::Relaxed), 2, "asked twice, and not for ever");
    wait_until("the link is back", || client.run("GET k") == b"$-1\r\n");
    let error = error_of(&client.run("SET k v"));
    assert_eq!(error, "UPSTREAMLOST connection lost; the command may or may not have been executed");
    wait_until("the link is back", || client.run("GET k") == b"$-1\r\n");
    assert_eq!(sets.load(Ordering::Relaxed), 1, "sent once");
}

/// A request that is too long for the link goes on a connection of its own, behind its client's name if that has one: what it
/// does if its reply is lost follows from the command.
#[test]
fn a_long_read_of_a_named_client_is_told_to_be_one() {
    if Larder::is_plain() {
        return;
    }
    let is_long = |words: &[String]| words.iter().any(|word| word.len() > 256 * 1024);
    let stub = Stub::start(move |words| if is_long(words) { Answer::Close } else { Answer::Usual });
    let larder = Larder::before(stub.address(), COUNTS_ONLY);
    let mut client = larder.client();
    let long = "x".repeat(300 * 1024);
    for name in ["", "named"] {
        client.ok(&["CLIENT", "SETNAME", name]);
        for (request, doubt) in [
            (&["GET", &long[..]][..], "the command only reads and may be sent again"),
            (&["MGET", "k", &long], "the command only reads and may be sent again"),
            (&["SET", "k", &long], "the command may or may not have been executed"),
        ] {
            wait_until("the link is there", || client.run("GET k") == b"$-1\r\n");
            let error = error_of(&client.cmd(request));
            assert_eq!(error, format!("UPSTREAMLOST connection lost; {doubt}"), "{name:?}: {}", request[0]);
        }
    }
}

/// An upstream that accepts and does not greet; and a pool that is used up.
#[test]
fn connecting_and_waiting_for_a_connection_have_their_time() {
    if plain() {
        return;
    }
    let mute = Stub::start(|_| Answer::Silence);
    let larder = Larder::before(mute.address(), &["--set", "link.connect_ms_max=300"]);
    let error = error_of(&larder.client().run("GET k"));
    assert!(error.starts_with("UPSTREAMDOWN") && error.contains("no connection within 300 ms"), "{error}");
    drop(larder);

    let stub = Stub::start(|words| if words[0] == "EVAL" { Answer::Silence } else { Answer::Usual });
    let larder = Larder::before(stub.address(), &["--set", "pool.size_max=1", "--set", "pool.wait_ms_max=200"]);
    let (mut first, mut second) = (larder.client(), larder.client());
    wait_until("the link is there", || second.run("GET k") == b"$-1\r\n");
    let before = stub.requests();
    first.send(&["EVAL", "return 1", "0"]);
    wait_until("it was sent", || stub.requests() > before);
    let error = error_of(&second.cmd(&["EVAL", "return 1", "0"]));
    assert_eq!(error, "POOLFULL no exclusive connection to the upstream became free within 200 ms; nothing was sent");
}
