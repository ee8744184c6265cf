//! A connection's own state: HELLO, SELECT, names, ids, CLIENT and its subcommands, RESET and QUIT.

use crate::support::{Client, Kind, Larder, Server, Value, assert_same, encode, wait_until};
use crate::{Both, NIL2, OK, Twins, bulk, error_of};

#[test]
fn hello_in_all_its_forms() {
    let twins = Twins::start();
    for forms in [
        "HELLO 4",
        "HELLO 1",
        "HELLO x",
        "HELLO 3 AUTH nobody wrong",
        "HELLO 3 AUTH default",
        "HELLO 3 SETNAME with\nnewline",
        "HELLO 3 NOSUCHOPTION",
        "HELLO 2 SETNAME",
    ] {
        let mut both = twins.client(2);
        both.cmd(&forms.split(' ').collect::<Vec<_>>());
        both.run("GET missing");
        both.run("CLIENT GETNAME");
    }
    for protocol in ["2", "3"] {
        let mut client = twins.larder.client();
        let hello = client.value(&["HELLO", protocol, "SETNAME", "me"]);
        let mut direct = twins.direct.client();
        let wanted = direct.value(&["HELLO", protocol, "SETNAME", "me"]);
        for (n, (got, want)) in hello.items().iter().zip(wanted.items()).enumerate() {
            // The connection's id is its own.
            if n != 7 {
                assert_eq!(got, want, "HELLO {protocol}, element {n}");
            }
        }
        assert_eq!(client.run("CLIENT GETNAME"), bulk("me"));
    }
}

#[test]
fn hello_switches_the_protocol_back_and_forth() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    both.run("HSET h f v");
    for protocol in ["3", "2", "3", "2"] {
        both.send(&["HELLO", protocol]);
        both.direct.frame();
        both.through.frame();
        for _ in 0..2 {
            both.script("HGETALL h\n GET missing\n CONFIG GET maxmemory\n ZADD z 1.5 m\n ZSCORE z m\n LPOP missing");
        }
    }
}

#[test]
fn hello_in_a_pipeline_changes_only_what_follows() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    both.run("HSET h f v");
    both.run("HGETALL h");
    let batch = [encode(&["HGETALL", "h"]), encode(&["HELLO", "3"]), encode(&["HGETALL", "h"])].concat();
    both.send_raw(&batch);
    both.frame("before HELLO");
    both.direct.frame();
    both.through.frame();
    both.frame("after HELLO");
}

/// In a pipeline, what a transaction says of its client is of the time of EXEC, not of what is sent behind it.
#[test]
fn a_name_that_comes_behind_a_transaction_is_not_seen_in_it() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    both.run("SET k v");
    let lines: &[&[&str]] = &[
        &["MULTI"],
        &["CLIENT", "GETNAME"],
        &["CLIENT", "SETNAME", "inside"],
        &["CLIENT", "GETNAME"],
        &["EXEC"],
        &["CLIENT", "GETNAME"],
        &["CLIENT", "SETNAME", "behind"],
        &["WATCH", "k"],
        &["CLIENT", "SETNAME", "watching"],
        &["MULTI"],
        &["CLIENT", "GETNAME"],
        &["EXEC"],
        &["CLIENT", "SETNAME", "last"],
        &["CLIENT", "GETNAME"],
    ];
    for _ in 0..20 {
        both.send_raw(&lines.iter().flat_map(|line| encode(line)).collect::<Vec<u8>>());
        for line in lines {
            both.frame(&line.join(" "));
        }
        both.run("CLIENT SETNAME first");
    }
}

/// What a name may hold is for the server's version to say: since 7.2 it looks as far as a NUL byte.
#[test]
fn names_are_what_the_server_takes_for_one() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let larder = Larder::start(Some(&upstream), &[]);
        let mut both = Both { through: larder.client(), direct: upstream.client() };
        // Larder reads the server's COMMAND when it has its first link.
        wait_until("it knows what the server knows", || {
            both.through.run("CLIENT SETINFO lib-name x") == both.direct.run("CLIENT SETINFO lib-name x")
        });
        for name in ["plain", "a b", "a\0b", "a\0 ", "\0", "", "\x7f"] {
            both.cmd(&["CLIENT", "SETNAME", name]);
            both.cmd(&["CLIENT", "GETNAME"]);
            both.cmd(&["CLIENT", "SETINFO", "lib-name", name]);
            let shown = |client: &mut Client| {
                let info = String::from_utf8_lossy(&client.run("CLIENT INFO")).into_owned();
                ["name", "lib-name"].map(|field| {
                    info.split_once(&format!(" {field}="))
                        .map(|(_, rest)| rest.split(' ').next().unwrap_or_default().trim_end().to_owned())
                })
            };
            let (direct, through) = (shown(&mut both.direct), shown(&mut both.through));
            assert_eq!(direct[0], through[0], "{kind:?}, {name:?}");
            assert!(direct[1].is_none() || direct[1] == through[1], "{kind:?}, {name:?}: {direct:?}, {through:?}");
        }
    }
}

#[test]
fn select_scopes_keys() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    both.script(
        "SET k zero
        GET k
        SELECT 1
        GET k
        SET k one
        GET k
        SELECT 0
        GET k
        SELECT 15
        GET k
        SELECT 16
        GET k
        SELECT -1
        SELECT x
        SELECT
        SELECT 1
        GET k",
    );
    let mut other = twins.client(3);
    other.script("GET k\n SELECT 1\n GET k");
}

#[test]
fn every_client_has_an_id_and_a_name_of_its_own() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut one, mut two) = (larder.client(), larder.client3());
    let (id_one, id_two) = (one.ask("CLIENT ID").int(), two.ask("CLIENT ID").int());
    assert_ne!(id_one, id_two);
    assert_eq!(one.ask("CLIENT ID").int(), id_one, "the id stays");
    assert_eq!(one.run("CLIENT GETNAME"), NIL2);
    assert_eq!(one.run("CLIENT SETNAME first"), OK);
    assert_eq!(two.run("CLIENT SETNAME second"), OK);
    assert_eq!(one.run("CLIENT GETNAME"), bulk("first"));
    assert_eq!(two.run("CLIENT GETNAME"), bulk("second"));
    let info = one.ask("CLIENT INFO").text();
    assert!(info.contains(&format!("id={id_one} ")) && info.contains("name=first "), "{info}");
    let list = two.ask("CLIENT LIST").text();
    for wanted in ["name=first ", "name=second ", &format!("id={id_one} "), &format!("id={id_two} ")] {
        assert!(list.contains(wanted), "{wanted} in {list}");
    }
    assert_eq!(list.lines().count(), 2, "Larder's clients and nobody else: {list}");
    let one_only = two.ask(&format!("CLIENT LIST ID {id_one}")).text();
    assert!(one_only.contains("name=first") && !one_only.contains("name=second"), "{one_only}");
    let address = one.local_address();
    assert!(list.contains(&format!("addr={address} ")), "{address} in {list}");
}

#[test]
fn client_kill_ends_larders_clients() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut killer = larder.client();
    let by_id = |killer: &mut Client, id: i64| killer.run(&format!("CLIENT KILL ID {id}"));

    let mut victim = larder.client();
    let id = victim.ask("CLIENT ID").int();
    assert_eq!(by_id(&mut killer, id), b":1\r\n");
    assert_eq!(victim.rest(), b"");
    assert_eq!(by_id(&mut killer, id), b":0\r\n");

    let mut victim = larder.client();
    victim.run("PING");
    assert_eq!(killer.run(&format!("CLIENT KILL {}", victim.local_address())), OK);
    assert_eq!(victim.rest(), b"");

    let mut victim = larder.client();
    victim.run("PING");
    assert_eq!(killer.run(&format!("CLIENT KILL ADDR {}", victim.local_address())), b":1\r\n");
    assert_eq!(victim.rest(), b"");

    let mut blocked = larder.client();
    let id = blocked.ask("CLIENT ID").int();
    blocked.send(&["BLPOP", "nothing", "0"]);
    wait_until("the client is blocked", || upstream.info("clients", "blocked_clients") == "1");
    assert_eq!(by_id(&mut killer, id), b":1\r\n");
    assert_eq!(blocked.rest(), b"");
    wait_until("nobody is blocked", || upstream.info("clients", "blocked_clients") == "0");

    assert_eq!(error_of(&killer.run("CLIENT KILL 1.1.1.1:1")), "ERR No such client");
    let own = killer.ask("CLIENT ID").int();
    assert_eq!(by_id(&mut killer, own), b":0\r\n", "SKIPME is yes by default");
    assert_eq!(killer.run(&format!("CLIENT KILL ID {own} SKIPME no")), b":1\r\n");
    assert_eq!(killer.rest(), b"");
}

#[test]
fn client_reply_off_skip_and_on() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    both.run("SET k v");
    both.run("GET k");
    for lines in [
        ["CLIENT REPLY OFF", "GET k", "SET k w", "NOSUCHCOMMAND", "CLIENT REPLY ON", "GET k"],
        ["CLIENT REPLY SKIP", "GET k", "CLIENT REPLY SKIP", "SET k x", "CLIENT REPLY ON", "GET k"],
        ["CLIENT REPLY SKIP", "GET missing", "GET k", "CLIENT REPLY SKIP", "INCR k", "PING"],
    ] {
        let batch: Vec<u8> = lines.iter().flat_map(|line| encode(&crate::support::words(line))).collect();
        both.send_raw(&batch);
        both.send_raw(&encode(&["ECHO", "done"]));
        while both.frame(lines[0]) != bulk("done") {}
    }
    both.run("CLIENT REPLY MAYBE");
}

#[test]
fn reset_makes_the_connection_new() {
    let twins = Twins::start();
    let mut both = twins.client(3);
    both.script("SELECT 3\n SET k three\n CLIENT SETNAME me\n WATCH k\n MULTI\n SET k four\n RESET\n EXEC\n GET k");
    both.script("CLIENT GETNAME\n HSET h f v\n HGETALL h\n SELECT 3\n GET k");
    let mut subscriber = twins.client(2);
    subscriber.run("SUBSCRIBE ch");
    subscriber.run("RESET");
    subscriber.run("GET k");
}

#[test]
fn quit_answers_and_closes() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    both.send_raw(&[encode(&["SET", "k", "v"]), encode(&["QUIT"]), encode(&["SET", "k", "never"])].concat());
    assert_same("SET, QUIT", &both.direct.rest(), &both.through.rest());
    assert_eq!(twins.larder.client().run("GET k"), bulk("v"));
}

/// A client that sends its commands and shuts its sending side down, as `redis-cli < file` through a pipe does.
#[test]
fn replies_reach_a_client_that_has_finished_sending() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    if Larder::is_plain() {
        // redis-server itself drops the client; Larder answers what it has read.
        return;
    }
    let mut client = larder.client();
    client.send_raw(&[encode(&["SET", "k", "v"]), encode(&["GET", "k"])].concat());
    client.finish_sending();
    assert_eq!(client.rest(), [OK.to_vec(), bulk("v")].concat());
}

/// A client library with a cache of its own gets its invalidations through Larder.
#[test]
fn client_tracking_works_through_larder() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut tracking, mut writer) = (larder.client3(), larder.client());
    writer.run("SET k 1");
    assert_eq!(tracking.run("CLIENT TRACKING ON"), OK);
    for n in 2..20 {
        assert_eq!(tracking.run("GET k"), bulk(&(n - 1).to_string()));
        writer.run(&format!("SET k {n}"));
        let push = Value::parse(&tracking.push());
        assert_eq!(push.items()[0].bytes(), b"invalidate");
        assert_eq!(push.items()[1].items()[0].bytes(), b"k");
    }
    assert_eq!(tracking.run("CLIENT TRACKING OFF"), OK);
}

#[test]
fn introspection_answers_as_the_server_does() {
    let twins = Twins::start();
    for protocol in [2, 3] {
        let mut both = twins.client(protocol);
        both.script(
            "SET k v
            COMMAND INFO get set nosuch
            COMMAND GETKEYS MSET a 1 b 2
            COMMAND GETKEYS nosuch
            COMMAND DOCS get
            CONFIG GET maxmemory-policy
            CONFIG SET nosuch 1
            OBJECT ENCODING k
            OBJECT REFCOUNT k
            OBJECT HELP
            MEMORY USAGE k
            DBSIZE
            LATENCY RESET
            DUMP missing
            SCAN 0 COUNT 1000
            RANDOMKEY
            CLIENT NO-EVICT ON
            CLIENT NO-EVICT OFF
            CLIENT GETREDIR
            CLIENT TRACKINGINFO
            ECHO hello
            PING hello
            TYPE k
            WAIT 0 10
            ACL WHOAMI
            ACL CAT nosuch",
        );
    }
}

#[test]
fn info_is_the_upstreams_with_a_section_added() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let info = larder.client().ask("INFO").text();
    let run_id = upstream.info("server", "run_id");
    assert!(info.contains(&format!("run_id:{run_id}")), "{info}");
    assert!(info.contains("# Larder") || Larder::is_plain(), "{info}");
    let server = larder.client().ask("INFO server").text();
    assert!(server.contains(&run_id) && !server.contains("# Keyspace"), "{server}");
}

#[test]
fn a_transaction_tells_the_same_of_clients_and_commands_as_there_is_without() {
    let upstream = Server::redis(&[]);
    for protocol in [2, 3] {
        let larder = Larder::start(Some(&upstream), &[]);
        let mut client = Client::speaking(protocol, larder.address());
        let asks = ["COMMAND COUNT", "COMMAND INFO cache get", "COMMAND GETKEYS CACHE INSPECT k", "PUBSUB CHANNELS"];
        let without = asks.map(|ask| client.run(ask)).concat();
        client.run("MULTI");
        for ask in asks.iter().chain(&["INFO clients", "INFO larder", "INFO"]) {
            assert_eq!(client.run(ask), b"+QUEUED\r\n", "{ask}");
        }
        let reply = client.run("EXEC");
        assert!(reply.starts_with(&[b"*7\r\n", &without[..]].concat()), "{}", reply.escape_ascii());
        if Larder::is_plain() {
            continue;
        }
        let texts: Vec<String> = Value::parse(&reply).items()[4..].iter().map(Value::text).collect();
        assert!(texts[0].contains("connected_clients:1\r\n") && !texts[0].contains("# Larder"), "{}", texts[0]);
        assert!(texts[1].contains("# Larder") && !texts[1].contains("# Clients"), "{}", texts[1]);
        assert!(texts[2].contains("# Keyspace") && texts[2].contains("# Larder"), "{}", texts[2]);
    }
}

#[test]
fn slowlog_tells_the_name_of_who_was_slow() {
    let upstream = Server::redis(&["--slowlog-log-slower-than", "100000"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut one, mut other) = (larder.client(), larder.client());
    for (client, name) in [(&mut one, "first"), (&mut other, "second"), (&mut larder.client(), "")] {
        client.run(&format!("CLIENT SETNAME {name}"));
        if name.is_empty() {
            client.cmd(&["CLIENT", "SETNAME", ""]);
        }
        client.ok(&["DEBUG", "SLEEP", "0.15"]);
    }
    let entries = one.value(&["SLOWLOG", "GET"]);
    let names: Vec<String> = entries.items().iter().map(|entry| entry.items()[5].text()).collect();
    assert_eq!(names, ["", "second", "first"]);
}

/// Who has been killed is gone when that is answered, for whoever asks.
#[test]
fn the_killed_are_not_listed_any_more() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "threads=2"]);
    let mut one = larder.client();
    for round in 0..50 {
        let mut others: Vec<Client> = (0..4).map(|_| larder.client()).collect();
        others.iter_mut().for_each(|other| assert_eq!(other.run("PING"), b"+PONG\r\n"));
        assert_eq!(one.run("CLIENT KILL TYPE normal"), b":4\r\n", "round {round}");
        assert_eq!(one.ask("CLIENT LIST").text().lines().count(), 1, "round {round}");
        assert_eq!(one.run("CLIENT KILL TYPE normal"), b":0\r\n", "round {round}");
    }
}

/// Which filters there are is the upstream's to say, in whatever mode the client is that asks.
#[test]
fn filters_of_kill_are_the_servers() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    for lines in
        ["CLIENT NOSUCH\nCLIENT KILL USER nobody", "CLIENT KILL\nCLIENT KILL MAXAGE 100000\nCLIENT KILL ID 77777"]
    {
        both.script(lines);
        let batch: Vec<Vec<u8>> = lines.lines().map(|line| encode(&line.split(' ').collect::<Vec<_>>())).collect();
        both.send_raw(&batch.concat());
        batch.iter().for_each(|_| drop(both.frame(lines)));
    }
}

/// The system's own spreading would leave 40 clients of 4 workers to 10 each about once in a hundred times.
#[test]
fn clients_are_spread_evenly_over_the_workers() {
    if Larder::is_plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "threads=4"]);
    let mut clients: Vec<_> = (0..40).map(|_| larder.client()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.run("PING"), b"+PONG\r\n"));
    let counts = |client: &mut Client| -> Vec<u64> {
        let info = client.ask("INFO larder").text();
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix("larder_clients_of_workers:"))
            .expect("the counts")
            .to_owned();
        line.split(',').map(|count| count.parse().expect("a number")).collect()
    };
    let is_even = |counts: &[u64], sum: u64| {
        // The connection that waited for the start may have been counted while the others came.
        counts.len() == 4 && counts.iter().sum::<u64>() == sum && counts.iter().all(|n| n.abs_diff(sum / 4) <= 1)
    };
    wait_until("all are at work", || is_even(&counts(&mut clients[0]), 40));
    clients.truncate(1);
    wait_until("their places are given up", || counts(&mut clients[0]).iter().sum::<u64>() == 1);
    for _ in 0..11 {
        clients.push(larder.client());
        assert_eq!(clients.last_mut().expect("it is there").run("PING"), b"+PONG\r\n");
    }
    wait_until("new ones go where there are few", || is_even(&counts(&mut clients[0]), 12));
}
