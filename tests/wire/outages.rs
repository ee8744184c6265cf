//! The upstream fails: a fast, clear error, never a hang, never a value from before, and recovery by itself.

use std::time::{Duration, Instant};

use crate::support::{Client, Larder, Relay, Server, encode, wait_until};
use crate::{NIL2, OK, bulk, error_of};

/// These tests are about what Larder does when its upstream is gone, which a server in its place cannot show.
pub(crate) fn plain() -> bool {
    Larder::is_plain()
}

pub(crate) fn is_outage(reply: &[u8]) -> bool {
    [&b"-UPSTREAMDOWN "[..], b"-UPSTREAMLOST ", b"-UPSTREAMTIMEOUT "].iter().any(|code| reply.starts_with(code))
}

/// What has a connection of its own: the error comes when it is promised, not later for asking whether a script runs.
#[test]
fn a_server_that_stands_still_is_told_in_time_on_every_path() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let flags = [
        "link.connect_ms_max=4000",
        "link.reply_ms_max=1200",
        "link.write_ms_max=1200",
        "pool.reply_ms_max=1200",
        "pool.blocking_grace_ms=200",
        "breaker.calls_min=1000000",
    ];
    let flags: Vec<&str> = flags.iter().flat_map(|flag| ["--set", *flag]).collect();
    let larder = Larder::start(Some(&upstream), &flags);
    for (line, bound_ms) in [
        ("EVAL return(1) 0", 1200),
        ("SCRIPT EXISTS x", 1200),
        ("BLPOP nothing 1", 1200),
        ("WAIT 1 1000", 1200),
        ("EXEC", 1200),
        ("SET k v", 1200),
    ] {
        let mut client = larder.client();
        // So that a connection is there: making one takes time of its own.
        assert_eq!(client.run("EVAL return(1) 0"), b":1\r\n");
        assert_eq!(client.run("BLPOP nothing 0.01"), b"*-1\r\n");
        if line == "EXEC" {
            assert_eq!(client.run("MULTI"), OK);
            client.run("SET k v");
        }
        upstream.pause();
        let began = Instant::now();
        let told = error_of(&client.run(line));
        let took = began.elapsed().as_millis();
        upstream.resume();
        assert!(told.starts_with("UPSTREAMTIMEOUT "), "{line}: {told}");
        // The link looks at its requests every eighth of the bound; the rest is for a busy machine.
        assert!((bound_ms..bound_ms + 600).contains(&took), "{line}: after {took} ms");
        wait_until("it answers again", || larder.client().run("SET other 1") == OK);
    }
}

/// A link that has no room does not take what waits in its queue. That waits no longer than what is under way.
#[test]
fn what_waits_for_room_on_the_link_is_told_in_time() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let flags = [
        "link.in_flight_max=1",
        "link.reply_ms_max=500",
        "link.write_ms_max=500",
        "link.dead_ms=60000",
        "breaker.calls_min=1000000",
        "tags.peers_ms_max=0",
    ];
    let flags: Vec<&str> = flags.iter().flat_map(|flag| ["--set", *flag]).collect();
    let larder = Larder::start(Some(&upstream), &flags);
    let mut clients: Vec<Client> = (0..8).map(|_| larder.client()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.run("SET k v"), OK));
    upstream.pause();
    let began = Instant::now();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(&if n % 2 == 0 { vec!["SET", "k", "w"] } else { vec!["GET", "other"] });
    }
    let mut told: Vec<String> = clients.iter_mut().map(|client| error_of(&client.reply())).collect();
    let took = began.elapsed();
    upstream.resume();
    // Who is not read from meanwhile waits for the queue to be cleared, and then in it.
    assert!(took < Duration::from_secs(6), "{took:?}: {told:?}");
    told.sort();
    assert!(told[0].starts_with("BUSYLINK ") && told[0].ends_with("nothing was sent"), "{told:?}");
    assert!(told[7].starts_with("UPSTREAMTIMEOUT "), "{told:?}");
    wait_until("it answers again", || clients[0].run("GET other") == b"$-1\r\n");
    assert_eq!(clients[1].run("GET k").len(), bulk("v").len());
}

#[test]
fn a_killed_upstream_is_an_error_at_once_and_recovery_leaves_nothing_stale() {
    if plain() {
        return;
    }
    let mut upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut two, mut three) = (larder.client(), larder.client3());
    for _ in 0..3 {
        assert_eq!(two.run("SET k before"), OK);
        assert_eq!(two.run("GET k"), bulk("before"));
        assert_eq!(three.run("GET k"), bulk("before"));
        upstream.kill();
        // The end of the feed is noticed at once; what was read before is not served as fresh from then on.
        wait_until("the loss is noticed", || is_outage(&two.run("GET k")));
        for _ in 0..50 {
            for client in [&mut two, &mut three] {
                for line in
                    ["GET k", "SET k during", "MULTI", "BLPOP l 0", "EVAL return(1) 0", "SUBSCRIBE ch", "MGET k l"]
                {
                    if line == "MULTI" {
                        // A transaction may begin without a server; it cannot be carried out.
                        client.run(line);
                        client.run("GET k");
                        let exec = client.run("EXEC");
                        assert_eq!(exec[0], b'-', "EXEC: {}", exec.escape_ascii());
                        continue;
                    }
                    if line.starts_with("SUBSCRIBE") {
                        continue;
                    }
                    let reply = client.run(line);
                    assert!(is_outage(&reply), "{line}: {}", reply.escape_ascii());
                }
            }
        }
        upstream.restart();
        wait_until("the link is back", || !is_outage(&two.run("GET k")));
        assert_eq!(two.run("GET k"), b"$-1\r\n", "the server came back empty");
        wait_until("the other client too", || three.run("GET k") == b"_\r\n");
        wait_until("a write is taken", || two.run("SET after 1") == OK);
        assert_eq!(three.run("GET after"), bulk("1"));
    }
}

#[test]
fn larder_may_be_started_before_its_upstream() {
    if plain() {
        return;
    }
    let mut upstream = Server::redis(&[]);
    upstream.kill();
    let larder = Larder::before(upstream.address(), &[]);
    let mut client = larder.client();
    let reply = client.run("GET k");
    assert!(is_outage(&reply), "{}", reply.escape_ascii());
    upstream.restart();
    wait_until("the upstream is found", || client.run("SET k v") == OK);
    assert_eq!(client.run("GET k"), bulk("v"));
    crate::assert_spared(&upstream, "get", || client.run("GET k"));
}

#[test]
fn a_hanging_upstream_is_an_error_and_recovery_leaves_nothing_stale() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    client.run("SET k v");
    upstream.pause();
    let reply = client.run("SET k hanging");
    assert!(is_outage(&reply), "{}", reply.escape_ascii());
    upstream.resume();
    // The write that was not answered may have been executed or not; from now on all see the same.
    wait_until("it answers again", || !is_outage(&client.run("GET k")));
    let mut direct = upstream.client();
    wait_until("both see the same", || client.run("GET k") == direct.run("GET k"));
    wait_until("a write is taken", || client.run("SET k last") == OK);
    assert_eq!(direct.run("GET k"), bulk("last"));
}

/// The connections are cut while values change at the upstream: nothing that was cached before is served after.
#[test]
fn a_cut_connection_leaves_nothing_stale() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let relay = Relay::start(upstream.address(), 7, Duration::from_millis(1));
    let larder = Larder::behind(&relay, &[]);
    let mut client = larder.client();
    let mut direct = upstream.client();
    for n in 0..20 {
        direct.run(&format!("SET k old{n}"));
        wait_until("the old value is read", || client.run("GET k") == bulk(&format!("old{n}")));
        relay.refuse();
        assert!(relay.cut() > 0);
        direct.run(&format!("SET k new{n}"));
        wait_until("the loss is noticed", || is_outage(&client.run("GET k")));
        relay.allow();
        wait_until("the link is back", || !is_outage(&client.run("GET k")));
        assert_eq!(client.run("GET k"), bulk(&format!("new{n}")));
    }
}

/// A write whose reply is lost is never sent a second time.
#[test]
fn a_lost_write_is_never_repeated() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let relay = Relay::start(upstream.address(), 11, Duration::from_millis(2));
    let larder = Larder::behind(&relay, &[]);
    let mut direct = upstream.client();
    let (mut acknowledged, mut unknown) = (0, 0);
    for _ in 0..30 {
        let mut client = larder.client();
        wait_until("the link is back", || !is_outage(&client.run("GET n")));
        let batch: Vec<u8> = (0..50).flat_map(|_| encode(&["INCR", "n"])).collect();
        client.send_raw(&batch);
        relay.cut();
        for _ in 0..50 {
            let reply = client.reply();
            match reply[0] {
                b':' => acknowledged += 1,
                b'-' if reply.starts_with(b"-UPSTREAMDOWN") => {}
                _ => {
                    assert!(is_outage(&reply), "{}", reply.escape_ascii());
                    unknown += 1;
                }
            }
        }
    }
    let total = direct.ask("GET n").int_or_null().unwrap_or(0);
    assert!(
        (acknowledged..=acknowledged + unknown).contains(&total),
        "{total} at the server: {acknowledged} acknowledged, {unknown} perhaps"
    );
}

#[test]
fn blocked_and_subscribed_clients_hear_of_the_loss() {
    if plain() {
        return;
    }
    let mut upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut blocked, mut subscribed): (Client, Client) = (larder.client(), larder.client());
    blocked.send(&["BLPOP", "l", "0"]);
    subscribed.send(&["SUBSCRIBE", "ch"]);
    subscribed.frame();
    wait_until("blocked", || upstream.info("clients", "blocked_clients") == "1");
    upstream.kill();
    let error = error_of(&blocked.reply());
    assert!(error.starts_with("UPSTREAM"), "{error}");
    upstream.restart();
    // A subscriber either is closed, so that its library subscribes again, or is subscribed again by Larder.
    wait_until("messages flow again, or the client knows", || {
        upstream.client().run("PUBLISH ch hello");
        subscribed.read_timeout(Duration::from_millis(100));
        match subscribed.try_frame() {
            Ok(frame) => frame.ends_with(&bulk("hello")),
            Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
        }
    });
}

#[test]
fn sigterm_answers_what_is_in_flight_and_exits_0() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let mut larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    client.run("SET k v");
    let batch: Vec<u8> = (0..1000).flat_map(|_| encode(&["INCR", "n"])).collect();
    client.send_raw(&batch);
    assert_eq!(client.reply(), b":1\r\n");
    larder.signal("TERM");
    assert_eq!(larder.wait(), Some(0));
    let rest = client.rest();
    let answered = rest.split(|&b| b == b'\n').filter(|line| line.starts_with(b":")).count() + 1;
    let done = upstream.client().ask("GET n").int();
    assert_eq!(i64::try_from(answered), Ok(done), "every executed command has been answered");
}

/// What an operator orders is told to be done when it is done.
#[test]
fn an_order_that_waits_for_room_on_the_link_is_not_said_to_be_done() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let flags = [
        "link.in_flight_max=4",
        "link.reply_ms_max=500",
        "link.write_ms_max=500",
        "link.dead_ms=60000",
        "breaker.calls_min=1000000",
        "tags.peers_ms_max=0",
    ];
    let flags: Vec<&str> = flags.iter().flat_map(|flag| ["--set", *flag]).collect();
    let larder = Larder::start(Some(&upstream), &flags);
    let (mut client, mut operator, mut writer) = (larder.client(), larder.client(), larder.client());
    assert_eq!(client.run("SET k v"), OK);
    wait_until("it is in L1", || client.run("GET k") == bulk("v") && operator.run("CACHE ENTRY k") != NIL2);
    upstream.pause();
    (0..4).for_each(|_| writer.send(&["SET", "other", "w"]));
    // Until they are under way; if they were not yet, the first order would be done.
    std::thread::sleep(Duration::from_millis(200));
    for line in ["CACHE INVALIDATE KEYS 1 k LOCAL", "CACHE INVALIDATE ALL LOCAL", "CACHE INVALIDATE PATTERN * LOCAL"] {
        let told = operator.run(line);
        assert!(is_outage(&told), "{line}: {}", told.escape_ascii());
    }
    upstream.resume();
    wait_until("it is done all the same", || operator.run("CACHE ENTRY k") == NIL2);
    assert_eq!(client.run("GET k"), bulk("v"));
}

#[test]
fn a_message_of_any_length_whose_reply_is_missing_is_in_doubt() {
    if plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "link.write_ms_max=500", "--set", "pool.reply_ms_max=500"]);
    let mut client = larder.client();
    client.run("PUBLISH channel message");
    upstream.pause();
    for length in [10, 300_000] {
        let told = client.cmd(&["PUBLISH", "channel", &"x".repeat(length)]);
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(told.starts_with("-UPSTREAMTIMEOUT") && told.contains("may or may not have been executed"), "{told}");
    }
    upstream.resume();
}
