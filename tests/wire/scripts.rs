//! Scripts and functions: their replies, and what others see of what they wrote.

use crate::support::{Client, Kind, Larder, Server, wait_until};
use crate::{Twins, bulk, wait_for_reply};

fn scripts_answer_as_the_servers_own(protocol: u8) {
    let twins = Twins::start();
    let mut both = twins.client(protocol);
    for args in [
        &["EVAL", "return {1, 'two', {3.9, false, true}, redis.status_reply('fine')}", "0"][..],
        &["EVAL", "return redis.error_reply('MY error')", "0"],
        &["EVAL", "return redis.call('set', KEYS[1], ARGV[1])", "1", "k", "v"],
        &["EVAL", "return redis.call('get', KEYS[1])", "1", "k"],
        &["GET", "k"],
        &["EVAL", "return redis.call('incr', KEYS[1])", "1", "k"],
        &["EVAL", "return redis.pcall('incr', KEYS[1])['err']", "1", "k"],
        &["EVAL", "syntax error here", "0"],
        &["EVAL", "return 1", "-1"],
        &["EVAL", "return 1", "x"],
        &["EVAL", "return 1"],
        &["EVAL_RO", "return redis.call('get', KEYS[1])", "1", "k"],
        &["EVAL_RO", "return redis.call('set', KEYS[1], 'x')", "1", "k"],
        &["EVAL", "redis.setresp(3); return redis.call('hgetall', KEYS[1])", "1", "nohash"],
        &["SCRIPT", "LOAD", "return KEYS[1]"],
        &["EVALSHA", "4ca238f611c9d0ae4e9a75a5dbac22aedc1e44a2", "1", "somekey"],
        &["EVALSHA", "ffffffffffffffffffffffffffffffffffffffff", "0"],
        &["SCRIPT", "EXISTS", "4ca238f611c9d0ae4e9a75a5dbac22aedc1e44a2", "ffff"],
        &["SCRIPT", "FLUSH"],
        &["SCRIPT", "EXISTS", "4ca238f611c9d0ae4e9a75a5dbac22aedc1e44a2"],
        &["SCRIPT", "KILL"],
        &["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function(k, a) return a[1] end)"],
        &["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function(k, a) return a[1] end)"],
        &["FCALL", "f", "0", "hello"],
        &["FCALL", "nosuch", "0"],
        &["FCALL_RO", "f", "0", "hello"],
        &["FUNCTION", "LIST"],
        &["FUNCTION", "DELETE", "lib"],
        &["FUNCTION", "STATS"],
    ] {
        both.cmd(args);
    }
}

#[test]
fn scripts_answer_as_the_servers_own_in_resp2() {
    scripts_answer_as_the_servers_own(2);
}

#[test]
fn scripts_answer_as_the_servers_own_in_resp3() {
    scripts_answer_as_the_servers_own(3);
}

fn no_old_value_after_a_script(kind: Kind) {
    let upstream = Server::start(kind, &[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut writer = larder.client();
    let mut readers: Vec<Client> = (2..4).map(|protocol| Client::speaking(protocol, larder.address())).collect();
    writer.cmd(&[
        "FUNCTION",
        "LOAD",
        "#!lua name=lib\nredis.register_function('w', function(k, a) return redis.call('set', 'f', a[1]) end)",
    ]);
    for n in 0..200 {
        let text = n.to_string();
        for reader in &mut readers {
            reader.run("MGET declared undeclared f");
        }
        writer.cmd(&["EVAL", "return redis.call('set', 'undeclared', ARGV[1])", "0", &text]);
        for reader in &mut readers {
            assert_eq!(reader.run("GET undeclared"), bulk(&text), "an undeclared key");
        }
        writer.cmd(&["EVAL", "return redis.call('set', KEYS[1], ARGV[1])", "1", "declared", &text]);
        for reader in &mut readers {
            assert_eq!(reader.run("GET declared"), bulk(&text), "a declared key");
        }
        writer.cmd(&["FCALL", "w", "0", &text]);
        for reader in &mut readers {
            assert_eq!(reader.run("GET f"), bulk(&text), "a function's undeclared key");
        }
    }
}

#[test]
fn no_old_value_after_a_script_at_redis() {
    no_old_value_after_a_script(Kind::Redis);
}

#[test]
fn no_old_value_after_a_script_at_valkey() {
    no_old_value_after_a_script(Kind::Valkey);
}

/// A script may write to another database than the one that its client has selected.
#[test]
fn no_old_value_in_another_database_after_a_script() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut writer, mut reader) = (larder.client(), larder.client());
    reader.run("SELECT 7");
    for n in 0..100 {
        let text = n.to_string();
        reader.run("GET k");
        let script = "redis.call('select', 7); return redis.call('set', 'k', ARGV[1])";
        writer.cmd(&["EVAL", script, "0", &text]);
        assert_eq!(reader.run("GET k"), bulk(&text));
    }
}

#[test]
fn a_long_script_can_be_killed_by_another_client() {
    let upstream = Server::redis(&["--lua-time-limit", "50"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut stuck, mut other) = (larder.client(), larder.client());
    other.run("PING");
    stuck.send(&["EVAL", "while true do end", "0"]);
    wait_until("the server is busy", || {
        let reply = upstream.client().run("GET probe");
        reply.starts_with(b"-BUSY")
    });
    let killed = |client: &mut Client| client.run("SCRIPT KILL") == b"+OK\r\n";
    wait_until("the script is killed", || killed(&mut other));
    let reply = stuck.reply();
    assert!(reply.starts_with(b"-ERR Error running script") || reply.starts_with(b"-ERR"), "{}", reply.escape_ascii());
    wait_for_reply(&mut other, "SET k v", b"+OK\r\n");
    assert_eq!(other.run("GET k"), bulk("v"));
}

#[test]
fn a_script_may_take_longer_than_a_reply_and_others_hear_that_the_server_is_busy() {
    let upstream = Server::redis(&["--busy-reply-threshold", "100"]);
    let larder = Larder::start(Some(&upstream), &["--set", "pool.reply_ms_max=500"]);
    let (mut slow, mut other) = (larder.client(), larder.client());
    other.run("SET k v");
    let script = "redis.call('set', 'n', ARGV[1]) \
        local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end \
        local began = now() while now() - began < 3000 do end return ARGV[1]";
    for (protocol, ending) in [("2", "a"), ("3", "b")] {
        slow.run(&format!("HELLO {protocol}"));
        slow.send(&["EVAL", script, "0", ending]);
        wait_until("the server is busy", || other.run("SET k w").starts_with(b"-BUSY"));
        for line in ["PING", "EVAL return(1) 0", "DBSIZE"] {
            assert_eq!(other.run(line)[..5], *b"-BUSY", "{line}");
        }
        // What has written cannot be killed.
        assert_eq!(other.run("SCRIPT KILL")[..11], *b"-UNKILLABLE");
        assert_eq!(slow.reply(), bulk(ending));
        assert_eq!(other.run("GET n"), bulk(ending));
    }
}
