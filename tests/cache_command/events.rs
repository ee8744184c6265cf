//! `CACHE SUBSCRIBE`: invalidations as they happen, for applications that keep caches of their own.

use crate::support::Client;
use crate::{Kind, Larder, OK, Pair, Server, Value, error_of, wait_until};

/// The next message: its key, and why.
#[track_caller]
fn event(client: &mut Client) -> (Option<String>, String) {
    let frame = Value::parse(&client.frame());
    let items = frame.items();
    assert_eq!((items.len(), items[0].text()), (3, "cache-invalidate".into()), "{frame:?}");
    let key = if items[1] == Value::Null { None } else { Some(items[1].text()) };
    (key, items[2].text())
}

/// Reads messages up to this one.
#[track_caller]
fn hears(client: &mut Client, key: Option<&str>, cause: &str) {
    let wanted = (key.map(str::to_owned), cause.to_owned());
    // A client's own write may be told twice.
    for _ in 0..10 {
        if event(client) == wanted {
            return;
        }
    }
    panic!("{wanted:?} was not told");
}

#[test]
fn tells_every_way_in_which_a_key_is_forgotten() {
    for kind in [Kind::Redis, Kind::Valkey] {
        for protocol in [2, 3] {
            let mut pair = Pair::of(kind, &[]);
            let (mut client, mut direct) = (pair.larder.client(), pair.upstream.client());
            let mut listener = Client::speaking(protocol, pair.larder.address());
            assert_eq!(listener.run("CACHE SUBSCRIBE"), OK);
            let read = |client: &mut Client| drop(client.run("GET k"));
            for (command, cause) in [
                ("SET k v", "data_changed"),
                ("CACHE SET k v TAGS 1 t", "data_changed"),
                ("CACHE INVALIDATE TAGS 1 t", "tag_based"),
                ("CACHE INVALIDATE KEYS 1 k", "manual"),
                ("CACHE INVALIDATE KEYS 1 k LOCAL", "manual"),
                ("CACHE INVALIDATE PATTERN k* LOCAL", "pattern_based"),
            ] {
                read(&mut client);
                client.run(command);
                hears(&mut listener, Some("k"), cause);
            }
            read(&mut client);
            direct.run("SET k elsewhere");
            hears(&mut listener, Some("k"), "data_changed");
            read(&mut client);
            client.run("CACHE INVALIDATE PATTERN k*");
            hears(&mut listener, Some("k"), "pattern_based");
            for (command, cause) in [("CACHE INVALIDATE ALL LOCAL", "manual"), ("FLUSHALL", "data_changed")] {
                read(&mut client);
                client.run(command);
                hears(&mut listener, None, cause);
            }
            read(&mut client);
            pair.upstream.kill();
            hears(&mut listener, None, "feed_lost");
        }
    }
}

#[test]
fn a_pattern_chooses_and_an_end_is_an_end() {
    let pair = Pair::start(&[]);
    let embedded = Larder::start(None, &[]);
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let (mut client, mut listener) = (Client::connect(address), Client::speaking(protocol, address));
            assert_eq!(error_of(&mut listener, "CACHE SUBSCRIBE k*"), "ERR syntax error");
            assert_eq!(listener.run("CACHE SUBSCRIBE PATTERN a*"), OK);
            for key in ["b1", "a1", "b2", "a2"] {
                client.run(&format!("GET {key}"));
                client.run(&format!("SET {key} v"));
            }
            hears(&mut listener, Some("a1"), "data_changed");
            hears(&mut listener, Some("a2"), "data_changed");
            if protocol == 2 {
                // As with the server's own messages.
                listener.send(&["GET", "k"]);
                while !listener.frame().starts_with(b"-ERR Can't execute 'get'") {}
            }
            client.run("GET b3");
            client.run("CACHE FENCE");
            listener.send(&["CACHE", "SUBSCRIBE", "PATTERN", "b*"]);
            while listener.frame() != OK {}
            client.run("SET b3 v");
            hears(&mut listener, Some("b3"), "data_changed");
            listener.send(&["CACHE", "UNSUBSCRIBE"]);
            while listener.frame() != OK {}
            client.run("GET b4");
            client.run("SET b4 v");
            assert_eq!(listener.run("CACHE READ"), b"$6\r\ncached\r\n");
            assert!(!listener.has_push());
        }
    }
}

#[test]
fn on_the_embedded_store_every_change_is_told() {
    let larder = Larder::start(None, &[]);
    let (mut client, mut listener) = (larder.client(), larder.client());
    assert_eq!(listener.run("CACHE SUBSCRIBE"), OK);
    for (command, key, cause) in [
        ("CACHE SET k v TAGS 1 t", Some("k"), "data_changed"),
        ("CACHE INVALIDATE TAGS 1 t", Some("k"), "tag_based"),
        ("MSET a 1 k 2", Some("k"), "data_changed"),
        ("CACHE INVALIDATE KEYS 1 k", Some("k"), "manual"),
        ("CACHE INVALIDATE PATTERN a*", Some("a"), "pattern_based"),
        ("FLUSHDB", None, "data_changed"),
    ] {
        client.run(command);
        hears(&mut listener, key, cause);
    }
}

/// What is told of is over when it is told.
#[test]
fn who_acts_upon_it_reads_the_new_value_and_one_who_moves_hears_of_the_new_place() {
    let pair = Pair::start(&[]);
    let mut direct = pair.upstream.client();
    let (mut listener, mut reader) = (pair.larder.client3(), pair.larder.client());
    assert_eq!(listener.run("CACHE SUBSCRIBE"), OK);
    for n in 0..200 {
        reader.run("GET k");
        direct.ok(&["SET", "k", &n.to_string()]);
        hears(&mut listener, Some("k"), "data_changed");
        assert_eq!(reader.ask("GET k").int(), n);
    }
    listener.send(&["SELECT", "1"]);
    hears(&mut listener, None, "feed_lost");
    assert_eq!(listener.reply(), OK);
    let mut other = pair.larder.client();
    other.ok(&["SELECT", "1"]);
    other.run("GET there");
    other.run("SET there v");
    hears(&mut listener, Some("there"), "data_changed");
}

#[test]
fn one_who_does_not_read_is_closed() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut client, mut listener) = (larder.client(), larder.client());
    listener.ok(&["CLIENT", "SETNAME", "deaf"]);
    assert_eq!(listener.run("CACHE SUBSCRIBE"), OK);
    let key = "k".repeat(200_000);
    client.cmd(&["GET", &key]);
    wait_until("it has been closed", || {
        client.ok(&["SET", &key, "v"]);
        !client.ask("CLIENT LIST").text().contains("name=deaf")
    });
}
