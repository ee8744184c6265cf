//! `CACHE FENCE` and `CACHE READ`: certainty about writers elsewhere.

use crate::support::{Client, encode, words};
use crate::{DELAY_MAX, Kind, Larder, OK, Pair, Relay, Server, is_in_l1, stat, wait_for_stat};

#[test]
fn after_a_fence_nothing_older_than_the_call_is_read() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let relay = Relay::start(upstream.address(), 7, DELAY_MAX);
        let larder = Larder::behind(&relay, &[]);
        let (mut writer, mut reader) = (upstream.client(), larder.client3());
        writer.ok(&["SET", "k", "0"]);
        for n in 1..=150 {
            reader.run("GET k");
            writer.ok(&["SET", "k", &n.to_string()]);
            reader.ok(&["CACHE", "FENCE"]);
            assert_eq!(reader.ask("GET k").int(), n, "{kind:?}");
        }
    }
}

#[test]
fn a_fence_of_an_empty_partition_and_without_an_upstream() {
    let mut pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    client.ok(&["CACHE", "FENCE"]);
    client.run("GET k");
    pair.upstream.kill();
    // What was read is gone with the link: nothing is left to wait for.
    crate::wait_until("the link is lost", || !is_in_l1(&mut client, "k"));
    client.ok(&["CACHE", "FENCE"]);
    Larder::start(None, &[]).client().ok(&["CACHE", "FENCE"]);
}

#[test]
fn a_fence_on_a_link_that_does_not_answer_ends_in_a_clear_error() {
    let pair = Pair::start(&["--set", "link.reply_ms_max=300"]);
    let mut client = pair.larder.client();
    client.run("GET k");
    pair.upstream.pause();
    let error = crate::error_of(&mut client, "CACHE FENCE");
    pair.upstream.resume();
    assert_eq!(error, "UPSTREAMTIMEOUT no reply within 300 ms; the command only reads and may be sent again");
}

#[test]
fn the_mode_is_the_connections_own() {
    let pair = Pair::start(&[]);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, pair.larder.address());
        assert_eq!(client.run("CACHE READ"), b"$6\r\ncached\r\n");
        for (word, reply) in [("STRICT", "strict"), ("bypass", "bypass"), ("Cached", "cached"), ("strict", "strict")] {
            client.ok(&["CACHE", "READ", word]);
            assert_eq!(client.ask("CACHE READ").text(), reply);
        }
        client.run("SELECT 1");
        assert_eq!(client.ask("CACHE READ").text(), "strict");
        assert_eq!(pair.larder.client().ask("CACHE READ").text(), "cached");
        client.run("RESET");
        assert_eq!(client.ask("CACHE READ").text(), "cached");
    }
}

/// A writer that is not seen by Larder, and readers that must see each of its writes once it is acknowledged, while
/// another client keeps the key in L1 and in flight all the time.
#[test]
fn strict_and_bypassing_reads_see_what_was_written_elsewhere() {
    for mode in ["STRICT", "BYPASS"] {
        let upstream = Server::redis(&[]);
        let relay = Relay::start(upstream.address(), 11, DELAY_MAX);
        let larder = Larder::behind(&relay, &[]);
        let mut writer = upstream.client();
        writer.ok(&["MSET", "k", "0", "j", "x"]);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut other = larder.client();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    other.run("GET k");
                    other.run("MGET k j");
                }
            });
            for protocol in [2, 3] {
                let mut reader = Client::speaking(protocol, larder.address());
                reader.ok(&["CACHE", "READ", mode]);
                for n in 1..=40 {
                    let n = n.to_string();
                    writer.ok(&["SET", "k", &n]);
                    let bulk = crate::Value::Bulk(n.clone().into_bytes());
                    assert_eq!(reader.ask("GET k"), bulk);
                    writer.ok(&["SET", "k", &format!("{n}0")]);
                    assert_eq!(reader.ask("MGET k j").items()[0].text(), format!("{n}0"));
                    writer.run("DEL k");
                    assert_eq!(reader.ask("EXISTS k j").int(), 1);
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}

#[test]
fn strict_fills_and_bypass_does_not() {
    let pair = Pair::start(&[]);
    let mut client = pair.larder.client();
    client.ok(&["MSET", "a", "1", "b", "2", "c", "3", "d", "4"]);
    client.ok(&["CACHE", "READ", "BYPASS"]);
    for line in ["GET a", "GET a", "MGET a b", "EXISTS a b", "STRLEN b"] {
        client.run(line);
    }
    assert!(!is_in_l1(&mut client, "a") && !is_in_l1(&mut client, "b"));
    assert_eq!(pair.upstream.calls("pttl"), 0);
    client.ok(&["CACHE", "READ", "STRICT"]);
    client.run("GET c");
    client.run("MGET d");
    assert!(is_in_l1(&mut client, "c") && is_in_l1(&mut client, "d"));
    let before = pair.upstream.calls("get");
    for _ in 0..5 {
        assert_eq!(client.run("GET c"), b"$1\r\n3\r\n");
    }
    assert_eq!(pair.upstream.calls("get"), before + 5, "a strict read goes upstream each time");
    client.ok(&["CACHE", "READ", "CACHED"]);
    let before = pair.upstream.calls("get");
    assert_eq!(client.run("GET c"), b"$1\r\n3\r\n");
    assert_eq!(pair.upstream.calls("get"), before);
    assert_eq!(stat(&mut client, "l1_passed_read_mode"), 12);
}

#[test]
fn the_second_miss_is_filled_where_the_operator_says_so() {
    let pair = Pair::start(&["--set", "l1.admission=second-touch"]);
    let mut client = pair.larder.client();
    client.ok(&["MSET", "a", "1", "b", "2", "c", "3"]);
    assert_eq!(client.run("GET a"), b"$1\r\n1\r\n");
    client.run("MGET b c");
    assert!(!is_in_l1(&mut client, "a") && !is_in_l1(&mut client, "b"));
    assert_eq!(pair.upstream.calls("pttl"), 0);
    wait_for_stat(&mut client, "l1_passed_not_admitted", 2);
    client.run("GET a");
    client.run("MGET b nosuch");
    assert!(["a", "b"].into_iter().all(|key| is_in_l1(&mut client, key)));
    assert!(!is_in_l1(&mut client, "nosuch"), "its first miss");
    let before = pair.upstream.calls("get");
    assert_eq!(client.run("GET a"), b"$1\r\n1\r\n");
    assert_eq!(pair.upstream.calls("get"), before);
}

#[test]
fn modes_in_pipelines() {
    let pair = Pair::start(&[]);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, pair.larder.address());
        for mode in ["STRICT", "BYPASS", "CACHED"] {
            let lines =
                ["SET k 1", "GET k", "GET k", "INCR k", "MGET k nosuch", "EXISTS k", "CACHE READ", "DEL k", "GET k"];
            let mut requests = encode(&["CACHE", "READ", mode]);
            lines.iter().for_each(|line| requests.extend(encode(&words(line))));
            let replies = client.pipeline(&requests, lines.len() + 1);
            let nil: &[u8] = if protocol == 3 { b"_\r\n" } else { b"$-1\r\n" };
            let mget = [&b"*2\r\n$1\r\n2\r\n"[..], nil].concat();
            let word = format!("$6\r\n{}\r\n", mode.to_lowercase()).into_bytes();
            let one: &[u8] = b"$1\r\n1\r\n";
            let wanted: [&[u8]; 10] = [OK, OK, one, one, b":2\r\n", &mget, b":1\r\n", &word, b":1\r\n", nil];
            for (reply, wanted) in replies.iter().zip(wanted) {
                assert_eq!(reply.escape_ascii().to_string(), wanted.escape_ascii().to_string(), "{mode}");
            }
        }
    }
}
