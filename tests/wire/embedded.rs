//! Larder without an upstream: the embedded store answers strings as a server would.

use std::time::{Duration, Instant};

use crate::support::{Client, Larder, Server, assert_same, wait_until};
use crate::{NIL2, OK, bulk, error_of};

/// Every string command with its options, valid and not.
const SCRIPT: &str = "
    SET k v
    GET k
    SET k w NX
    SET n w NX
    SET k w XX GET
    SET missing v XX
    SET k v EX 0
    SET k v EX -1
    SET k v EX x
    SET k v EX 10 PX 10
    SET k v NX XX
    SET k v KEEPTTL
    SET k v EX 100
    SET k w KEEPTTL
    TTL k
    SET k v NOSUCH
    SET k
    GET
    GETEX k
    GETEX k PERSIST
    TTL k
    GETEX k EX 100
    GETEX missing
    GETDEL k
    GETDEL k
    GETSET k new
    MSET a 1 b 2 c 3
    MSET a 1 b
    MGET a b missing c
    MSETNX a 9 z 9
    MSETNX y 8 z 9
    SETNX z 1
    SETEX s 100 v
    SETEX s 0 v
    PSETEX s 100000 v
    APPEND a xyz
    APPEND fresh xyz
    STRLEN a
    STRLEN missing
    SETRANGE a 2 --
    SETRANGE a -1 x
    SETRANGE pad 5 x
    GET pad
    GETRANGE a 0 -1
    GETRANGE a -3 -2
    GETRANGE a 5 1
    SUBSTR a 0 1
    SET num 10
    INCR num
    DECR num
    INCRBY num 5
    DECRBY num 20
    INCRBY num 9223372036854775807
    INCRBY num 9223372036854775807
    INCRBY num x
    INCR a
    INCRBYFLOAT num 1.5
    INCRBYFLOAT num x
    INCRBYFLOAT fl 3.0e3
    GET fl
    DEL a b nothing
    UNLINK c
    EXISTS y y z nothing
    TOUCH y z nothing
    TYPE y
    TYPE nothing
    EXPIRE y 100
    EXPIRE y 200 NX
    EXPIRE y 200 XX
    EXPIRE y 100 GT
    EXPIRE y 100 LT
    EXPIRE y 100 NX XX
    EXPIRE y x
    EXPIRE nothing 100
    PERSIST y
    PERSIST y
    TTL y
    PTTL nothing
    EXPIREAT y 33177117420
    EXPIRETIME y
    PEXPIRETIME y
    PEXPIREAT y 33177117420000
    EXPIRE y -1
    EXISTS y
    RENAME z zz
    RENAME nothing zz
    RENAMENX zz num
    RENAMENX zz new-name
    DBSIZE
    SELECT 1
    DBSIZE
    SET other db
    KEYS *
    FLUSHDB
    DBSIZE
    SELECT 0
    SELECT 99
    KEYS new-na?e
    KEYS [fm]resh
    SCAN 0 MATCH new-* COUNT 1000
    SCAN 0 COUNT 1000 TYPE nosuch
    SCAN x
    PING
    PING hello
    ECHO hello
    ECHO
    NOSUCHCOMMAND a b
    FLUSHALL
    DBSIZE
    RANDOMKEY
    KEYS *";

fn embedded_strings_answer_as_a_server_does(protocol: u8) {
    if Larder::is_plain() {
        return;
    }
    let server = Server::redis(&[]);
    let larder = Larder::start(None, &[]);
    let mut direct = Client::speaking(protocol, server.address());
    let mut client = Client::speaking(protocol, larder.address());
    for line in SCRIPT.lines().map(str::trim).filter(|line| !line.is_empty()) {
        assert_same(line, &direct.run(line), &client.run(line));
    }
}

#[test]
fn embedded_strings_answer_as_a_server_does_in_resp2() {
    embedded_strings_answer_as_a_server_does(2);
}

#[test]
fn embedded_strings_answer_as_a_server_does_in_resp3() {
    embedded_strings_answer_as_a_server_does(3);
}

#[test]
fn another_data_type_names_the_way_out() {
    if Larder::is_plain() {
        return;
    }
    let larder = Larder::start(None, &[]);
    let mut client = larder.client();
    for line in ["HSET h f v", "LPUSH l a", "ZADD z 1 m", "XADD s * f v", "SADD s m"] {
        let name = line.split(' ').next().unwrap();
        let wanted = format!("ERR '{name}' needs an upstream: start larder with --upstream redis://host:port");
        assert_eq!(error_of(&client.run(line)), wanted);
    }
}

#[test]
fn embedded_keys_expire() {
    if Larder::is_plain() {
        return;
    }
    let larder = Larder::start(None, &[]);
    let mut client = larder.client();
    assert_eq!(client.run("SET k v PX 40"), OK);
    let set = Instant::now();
    wait_until("the time is over", || set.elapsed() > Duration::from_millis(45));
    assert_eq!(client.run("GET k"), NIL2);
    assert_eq!(client.run("EXISTS k"), b":0\r\n");
    assert_eq!(client.run("DBSIZE"), b":0\r\n");
}

#[test]
fn the_banner_says_what_is_served() {
    if Larder::is_plain() {
        return;
    }
    let larder = Larder::start(None, &[]);
    let address = larder.address().to_string();
    wait_until("the banner names the address", || larder.output().contains(&address));
    let port = larder.address().port().to_string();
    let output = larder.output();
    assert!(output.contains("redis-cli") && output.contains(&port), "{output}");
}

#[test]
fn embedded_clients_share_one_store() {
    if Larder::is_plain() {
        return;
    }
    let larder = Larder::start(None, &[]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = larder.client();
                for _ in 0..500 {
                    client.run("INCR n");
                }
            });
        }
    });
    assert_eq!(larder.client().run("GET n"), bulk("4000"));
}
