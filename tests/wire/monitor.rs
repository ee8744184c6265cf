//! MONITOR: a client that watches sees what Larder's clients ask for, as theirs, in order, and not what Larder does.

use crate::support::{Client, Larder, Server, encode, wait_until};
use crate::{OK, Twins};

/// A line without its time and, where it is `client`'s, with `[db me]` for its address.
fn told(watcher: &mut Client, client: &Client) -> String {
    let line = String::from_utf8(watcher.frame()).expect("a line of text");
    let (time, rest) = line.split_once(' ').expect("a time and the rest");
    let (seconds, micros) = time[1..].split_once('.').expect("seconds and microseconds");
    assert!(line.starts_with('+') && seconds.parse::<u64>().is_ok() && micros.len() == 6, "{line:?}");
    rest.trim_end().replace(&client.local_address().to_string(), "me")
}

/// Everything that the watcher is told until `client` says `mark`.
fn told_until_mark(watcher: &mut Client, client: &mut Client) -> Vec<String> {
    client.run("ECHO mark");
    let mut lines = Vec::new();
    loop {
        let line = told(watcher, client);
        if line == "[0 me] \"ECHO\" \"mark\"" {
            return lines;
        }
        lines.push(line);
    }
}

const SCRIPT: [&str; 5] = ["EVAL", "redis.call('set',KEYS[1],ARGV[1]) return redis.call('get',KEYS[1])", "1", "k", "v"];

/// What the server says of all kinds of commands, compared with what is said through Larder.
fn lines_are_the_servers(protocol: u8) {
    let twins = Twins::start();
    let mut watchers = twins.client(protocol);
    watchers.run("MONITOR");
    let mut both = twins.client(2);
    for line in [
        "SET foo bar",
        "GET foo",
        "GET foo",
        "get foo",
        "MGET foo missing",
        "EXISTS foo",
        "GETDEL foo",
        "SET foo",
        "NOSUCH x",
        "LPUSH foo a",
        "INCR foo",
        "CLIENT SETNAME me",
        "CLIENT GETNAME",
        "CLIENT LIST ID 1",
        "CONFIG GET maxmemory",
        "CONFIG SET maxmemory 0",
        "ACL WHOAMI",
        "AUTH secret",
        "AUTH user secret",
        "HELLO 2 AUTH user secret",
        "PING",
        "PING x",
        "MULTI",
        "SET foo 1",
        "INCR foo",
        "NOSUCH",
        "EXEC",
        "MULTI",
        "SET foo 1",
        "GET foo",
        "EXEC",
        "MULTI",
        "SET a b",
        "DISCARD",
        "WATCH foo",
        "SET foo 2",
        "MULTI",
        "GET foo",
        "EXEC",
        "UNWATCH",
        "BLPOP missing 0.01",
        "EXPIRE foo 100",
        "DBSIZE",
        "PUBLISH ch x",
        "SELECT 3",
        "SET three 3",
        "GET three",
        "SELECT 0",
        "SLOWLOG LEN",
        "SCAN 0 COUNT 10",
        "OBJECT ENCODING foo",
        "SUBSCRIBE ch",
        "UNSUBSCRIBE ch",
    ] {
        both.send(&crate::support::words(line));
        both.direct.frame();
        both.through.frame();
    }
    both.cmd(&SCRIPT);
    both.cmd(&["SET", "quoted", "a \"b\"\\ \r\n\t\u{7}\u{8}\u{1}\u{e9}"]);
    both.run("GET quoted");
    let direct = told_until_mark(&mut watchers.direct, &mut both.direct);
    let through = told_until_mark(&mut watchers.through, &mut both.through);
    assert!(direct.len() > 40, "{direct:#?}");
    assert_eq!(through, direct);
}

#[test]
fn lines_are_the_servers_in_resp2() {
    lines_are_the_servers(2);
}

#[test]
fn lines_are_the_servers_in_resp3() {
    lines_are_the_servers(3);
}

#[test]
fn lines_keep_the_order_of_requests_whatever_way_they_go() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "threads=2"]);
    let (mut one, mut other) = (larder.client(), larder.client3());
    let mut watchers = [larder.client(), larder.client3()];
    for watcher in &mut watchers {
        assert_eq!(watcher.run("MONITOR"), OK);
    }
    for round in 0..200 {
        let value = round.to_string();
        one.cmd(&["SET", "k", &value]);
        other.cmd(&["EVAL", "return redis.call('incr', 'n')", "0", &value]);
        one.cmd(&["GET", "k"]);
        other.cmd(&["MULTI"]);
        other.cmd(&["LPUSH", "l", &value]);
        other.cmd(&["EXEC"]);
        one.cmd(&["GET", "k"]);
    }
    for watcher in &mut watchers {
        for round in 0..200 {
            let words = [
                format!("\"SET\" \"k\" \"{round}\""),
                format!("\"EVAL\" \"return redis.call('incr', 'n')\" \"0\" \"{round}\""),
                "\"incr\" \"n\"".to_owned(),
                "\"GET\" \"k\"".to_owned(),
                "\"MULTI\"".to_owned(),
                format!("\"LPUSH\" \"l\" \"{round}\""),
                "\"EXEC\"".to_owned(),
                "\"GET\" \"k\"".to_owned(),
            ];
            for (n, wanted) in words.iter().enumerate() {
                let whose = match n {
                    2 => "lua".to_owned(),
                    0 | 3 | 7 => one.local_address().to_string(),
                    _ => other.local_address().to_string(),
                };
                let line = told(watcher, &larder_unknown(&larder));
                assert_eq!(line, format!("[0 {whose}] {wanted}"), "round {round}");
            }
        }
    }
}

/// A client that says nothing: nobody's address is replaced.
fn larder_unknown(larder: &Larder) -> Client {
    larder.client()
}

#[test]
fn strangers_are_shown_and_a_watcher_that_goes_leaves_nothing() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut client, mut direct) = (larder.client(), upstream.client());
    client.run("SET k 1");
    let mut watcher = larder.client();
    assert_eq!(watcher.run("MONITOR"), OK);
    direct.run("SET k 2");
    assert_eq!(told(&mut watcher, &direct), "[0 me] \"SET\" \"k\" \"2\"");
    let list = client.value(&["CLIENT", "LIST"]).text();
    assert!(list.lines().any(|line| line.contains(" flags=O ") && line.contains("cmd=monitor")), "{list}");
    watcher.send(&["MONITOR"]);
    assert_eq!(watcher.run("PING"), b"+PONG\r\n", "a second MONITOR is not answered");
    assert_eq!(watcher.run("GET k")[0], b'+', "its own PING is shown to it");
    assert_eq!(watcher.frame(), b"-ERR Replica can't interact with the keyspace\r\n");
    assert!(upstream.client().value(&["CLIENT", "LIST"]).text().contains("flags=O"));
    drop(watcher);
    wait_until("the server knows of no watcher", || !direct.value(&["CLIENT", "LIST"]).text().contains("flags=O"));
    assert_eq!(client.cmd(&SCRIPT), b"$1\r\nv\r\n", "nobody is waited for");
}

#[test]
fn what_larders_own_scripts_do_is_not_shown() {
    for upstream in [Server::redis(&[]), Server::valkey(&[])] {
        let larder = Larder::start(Some(&upstream), &["--set", "tags.sweep_ms=20"]);
        let (mut watcher, mut client) = (larder.client(), larder.client());
        assert_eq!(watcher.run("MONITOR"), OK);
        assert_eq!(client.run("CACHE SET k v TAGS 1 t"), OK);
        // Some sweeps.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let lines = told_until_mark(&mut watcher, &mut client);
        assert!(lines.is_empty(), "{lines:?}");
        client.cmd(&SCRIPT);
        let lines = told_until_mark(&mut watcher, &mut client);
        assert_eq!(lines.iter().filter(|line| line.starts_with("[0 lua] ")).count(), 2, "{lines:?}");
    }
}

#[test]
fn a_watcher_can_reset_and_go_on() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut watcher, mut client) = (larder.client(), larder.client());
    assert_eq!(watcher.run("MONITOR"), OK);
    assert_eq!(watcher.run("RESET"), b"+RESET\r\n");
    client.run("SET k 1");
    assert_eq!(watcher.run("GET k"), b"$1\r\n1\r\n");
}

#[test]
fn a_watcher_that_does_not_read_is_closed() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "limits.subscriber_output_bytes_max=1mb"]);
    let (mut watcher, mut client) = (larder.client(), larder.client());
    assert_eq!(watcher.run("MONITOR"), OK);
    let value = "x".repeat(100_000);
    wait_until("it is closed", || {
        client.pipeline(&encode(&["SET", "k", &value]).repeat(20), 20);
        client.cmd(&SCRIPT);
        !client.value(&["CLIENT", "LIST"]).text().contains("flags=O")
    });
    assert!(client.value(&["INFO", "larder"]).text().contains("larder_clients_closed_output_hard:1"));
}

#[test]
fn the_embedded_store_can_be_watched() {
    let larder = Larder::start(None, &[]);
    let (mut watcher, mut client) = (larder.client(), larder.client());
    assert_eq!(watcher.run("MONITOR"), OK);
    for line in ["SET k v", "GET k", "SELECT 2", "GET k", "NOSUCH", "SET k", "SELECT 0"] {
        client.run(line);
    }
    let lines = told_until_mark(&mut watcher, &mut client);
    let wanted = [
        "[0 me] \"SET\" \"k\" \"v\"",
        "[0 me] \"GET\" \"k\"",
        "[2 me] \"SELECT\" \"2\"",
        "[2 me] \"GET\" \"k\"",
        "[0 me] \"SELECT\" \"0\"",
    ];
    assert_eq!(lines, wanted);
    assert_eq!(watcher.run("GET k"), b"-ERR Replica can't interact with the keyspace\r\n");
    assert_eq!(watcher.run("RESET"), b"+RESET\r\n");
    assert_eq!(watcher.run("GET k"), b"$1\r\nv\r\n");
}
