//! `CACHE CONFIG SET`: that what it sets is what happens from then on, where [`crate::config`] does not show it.
//!
//! That each changeable setting reaches the configuration in force is tested in `src/live.rs`.

use crate::support::Client;
use crate::{Kind, Larder, OK, Pair, Server, Value, error_of, map_of, wait_until};
use std::time::{Duration, Instant};

/// Sets a setting.
#[track_caller]
fn set(client: &mut Client, name: &str, value: &str) {
    client.ok(&["CACHE", "CONFIG", "SET", name, value]);
}

#[test]
fn leases_and_sweeps_go_by_their_new_times() {
    let pair = Pair::start(&["--set", "tags.sweep_ms=100"]);
    let (mut client, mut direct) = (pair.larder.client(), pair.upstream.client());
    set(&mut client, "tags.lease_ms", "1234");
    assert_eq!(map_of(&client.ask("CACHE LEASE k"))["ms"].int(), 1234);
    // A key that goes unseen is looked for after so long.
    set(&mut client, "tags.recheck_ms", "100");
    set(&mut client, "tags.sweep_ms", "20");
    assert_eq!(client.run("CACHE SET gone v TAGS 1 t"), OK);
    direct.run("DEL gone");
    wait_until("the index has shrunk", || direct.ask("EXISTS larder:t:t larder:k:gone larder:due").int() == 0);
}

#[test]
fn warming_keeps_to_its_new_pace_and_a_stop_saves_as_many_names_as_set() {
    let file = std::env::temp_dir().join(format!("larder-config-{}", std::process::id()));
    let upstream = Server::redis(&[]);
    let flag = format!("warm.snapshot_file={}", file.display());
    let mut larder = Larder::start(Some(&upstream), &["--set", &flag, "--set", "insight.sample_every=0"]);
    let mut client = larder.client();
    let names: Vec<String> = (0..192).map(|n| format!("k{n}")).collect();
    names.iter().for_each(|name| client.ok(&["SET", name, "v"]));
    set(&mut client, "warm.keys_per_second_max", "128");
    // Three batches of 64 keys: the third begins a second after the first.
    let job = map_of(&client.ask(&format!("CACHE WARM KEYS 192 {} SYNC", names.join(" "))));
    assert!(job["took_ms"].int() >= 900, "{job:?}");
    set(&mut client, "warm.snapshot_keys_max", "3");
    (0..3).for_each(|_| names.iter().take(9).for_each(|name| drop(client.run(&format!("GET {name}")))));
    larder.signal("TERM");
    assert_eq!(larder.wait(), Some(0));
    let saved = std::fs::read(&file).expect("names were saved");
    drop(std::fs::remove_file(&file));
    assert!(saved.starts_with(b"larder-snapshot 1 3\n"), "{}", String::from_utf8_lossy(&saved));
}

#[test]
fn large_replies_are_compressed_from_then_on_and_advice_comes_sooner() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    let value = "abc".repeat(1000);
    let size = |client: &mut Client, key: &str| {
        client.ok(&["SET", key, &value]);
        assert_eq!(client.ask(&format!("GET {key}")).text(), value);
        map_of(&client.ask(&format!("CACHE ENTRY {key}")))["size_bytes"].int()
    };
    assert!(size(&mut client, "plain") > 3000);
    set(&mut client, "l1.compress_min_bytes", "1024");
    assert!(size(&mut client, "packed") < 1000);
    (0..60).for_each(|n| drop(client.run(&format!("GET once{n}"))));
    let rules = |client: &mut Client| String::from_utf8_lossy(&client.run("CACHE ADVISE")).contains("scans");
    assert!(!rules(&mut client), "no entry is a minute old");
    set(&mut client, "insight.advise_after_ms", "1");
    wait_until("entries count", || rules(&mut client));
}

#[test]
fn bounds_of_requests_hold_for_clients_that_connect_from_then_on() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    let cases = [
        ("limits.args_max", "8", "1048576"),
        ("limits.inline_bytes_max", "1kb", "64kb"),
        ("limits.request_bytes_max", "2kb", "1gb"),
    ];
    for (name, small, large) in cases {
        let request: Vec<u8> = match name {
            "limits.args_max" => crate::support::encode(&["DEL", "a", "b", "c", "d", "e", "f", "g", "h", "i"]),
            "limits.inline_bytes_max" => format!("PING {}\r\n", "x".repeat(3000)).into_bytes(),
            _ => crate::support::encode(&["SET", "k", &"x".repeat(1500), "EX", "100", &"y".repeat(1500)]),
        };
        set(&mut client, name, small);
        let mut later = pair.larder.client();
        later.send_raw(&request);
        let told = String::from_utf8_lossy(&later.rest()).into_owned();
        assert!(told.starts_with("-ERR Protocol error"), "{name}: {told}");
        set(&mut client, name, large);
        let mut last = pair.larder.client();
        last.send_raw(&request);
        assert!(!last.reply().starts_with(b"-ERR Protocol error"), "{name}");
    }
}

#[test]
fn exclusive_connections_keep_to_their_new_times() {
    let pair = Pair::start(&[]);
    let (mut client, mut other) = (pair.larder.client(), pair.larder.client());
    assert_eq!(client.run("EVAL return(1) 0"), b":1\r\n");
    set(&mut other, "pool.reply_ms_max", "200");
    set(&mut other, "pool.blocking_grace_ms", "100");
    pair.upstream.pause();
    let told = error_of(&mut client, "EVAL return(1) 0");
    assert!(told.starts_with("UPSTREAMTIMEOUT no reply within 200 ms"), "{told}");
    pair.upstream.resume();
    let mut waiting = pair.larder.client();
    waiting.send(&["BLPOP", "nosuch", "1"]);
    std::thread::sleep(Duration::from_millis(300));
    pair.upstream.pause();
    let told = waiting.reply();
    pair.upstream.resume();
    // A second of its own, and the grace.
    assert!(told.starts_with(b"-UPSTREAMTIMEOUT no reply within 1100 ms"), "{}", String::from_utf8_lossy(&told));
}

/// Asks for 100 MB past L1, so that all is under way at once, and reads none of it.
fn asks_and_reads_nothing(larder: &Larder) -> Client {
    let mut client = larder.client();
    client.ok(&["CACHE", "READ", "BYPASS"]);
    // It may be closed before all is sent.
    drop(client.try_send_raw(&crate::support::encode(&["GET", "large"]).repeat(200)));
    client
}

#[test]
fn clients_that_read_nothing_are_closed_by_the_new_bounds() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    client.ok(&["SET", "large", &"x".repeat(500_000)]);
    // Neither is met. Who waits for nothing new is not looked at again.
    let patient = asks_and_reads_nothing(&pair.larder);
    std::thread::sleep(Duration::from_millis(300));
    set(&mut client, "limits.client_output_soft_bytes_max", "8mb");
    set(&mut client, "limits.client_output_soft_ms_max", "300");
    let slow = asks_and_reads_nothing(&pair.larder);
    wait_until("who is over the soft bound for too long is closed", || {
        crate::stat(&mut client, "clients_closed_output_soft") == 1
    });
    drop((patient, slow));
    set(&mut client, "limits.client_output_soft_ms_max", "0");
    set(&mut client, "limits.client_output_soft_bytes_max", "0");
    set(&mut client, "limits.client_output_bytes_max", "16mb");
    let greedy = asks_and_reads_nothing(&pair.larder);
    wait_until("who is over the hard bound is closed", || crate::stat(&mut client, "clients_closed_output_hard") == 1);
    drop(greedy);
}

#[test]
fn who_subscribes_and_reads_nothing_is_closed_by_the_new_soft_bound() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    let mut listener = pair.larder.client();
    listener.send(&["SUBSCRIBE", "news"]);
    listener.frame();
    set(&mut client, "limits.subscriber_output_soft_bytes_max", "4mb");
    set(&mut client, "limits.subscriber_output_soft_ms_max", "200");
    let message = "x".repeat(1 << 20);
    // Too much for the buffers of sockets, too little for the hard bound.
    (0..20).for_each(|_| drop(client.cmd(&["PUBLISH", "news", &message])));
    wait_until("it is closed", || crate::stat(&mut client, "connected_clients") == 1);
}

#[test]
fn scopes_end_and_a_stop_waits_as_newly_set() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    client.ok(&["SELECT", "4"]);
    client.run("GET k");
    client.ok(&["SELECT", "0"]);
    assert_eq!(crate::stat(&mut client, "scopes"), 2);
    set(&mut client, "limits.scope_idle_ms_max", "100");
    wait_until("the scope has ended", || crate::stat(&mut client, "scopes") == 1);
    // One who waits holds the stop up for that long; five seconds else.
    set(&mut client, "limits.shutdown_grace_ms", "300");
    let mut waiting = pair.larder.client();
    waiting.send(&["BLPOP", "nosuch", "0"]);
    std::thread::sleep(Duration::from_millis(200));
    let Pair { upstream: _upstream, mut larder } = pair;
    let began = Instant::now();
    larder.signal("TERM");
    larder.wait();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn one_request_at_a_time_is_sent_if_no_more_may_be_under_way() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        let (mut client, mut other) = (pair.larder.client(), pair.larder.client());
        set(&mut other, "limits.client_in_flight_max", "1");
        let mut later = pair.larder.client();
        for who in [&mut client, &mut later] {
            who.run("CACHE READ BYPASS");
            let requests: Vec<u8> = (0..50).flat_map(|n| crate::support::encode(&["GET", &format!("k{n}")])).collect();
            assert!(who.pipeline(&requests, 50).iter().all(|reply| reply == b"$-1\r\n"));
        }
        set(&mut other, "link.in_flight_max", "16");
        set(&mut other, "link.in_flight_bytes_max", "64kb");
        pair.upstream.pause();
        let full = (0..40).map(|n| {
            let mut one = pair.larder.client();
            one.send(&["GET", &format!("j{n}")]);
            one
        });
        let mut waiting: Vec<Client> = full.collect();
        std::thread::sleep(Duration::from_millis(300));
        pair.upstream.resume();
        let told: Vec<Value> = waiting.iter_mut().map(|one| Value::parse(&one.reply())).collect();
        assert!(told.iter().all(|reply| matches!(reply, Value::Null | Value::Error(_))), "{told:?}");
    }
}
