//! Reading: what the cache answers is what the server would have answered, and never an older value.

use std::time::{Duration, Instant};

use crate::support::{Client, Kind, Larder, Relay, Server, assert_same, encode, wait_until, words};
use crate::{NIL2, NIL3, OK, Twins, assert_spared, bulk, wait_for_reply};

/// The server itself counts whole milliseconds and still answers during the one in which a key expires; Larder must
/// not answer longer than that.
const SERVER_TICK: Duration = Duration::from_millis(2);

/// Something of each type to read.
const FIXTURE: &str = "
    SET str hello
    SET num 12345
    HSET hash f1 v1 f2 v2 n 7
    RPUSH list a b c d e
    SADD set m1 m2 m3
    SADD ints 1 2 3
    ZADD zset 1 one 2.5 two inf three -0 zero
    ZADD geo 0 placeholder
    GEOADD places 13.361389 38.115556 Palermo 15.087269 37.502669 Catania
    XADD stream 1-1 field value
    XADD stream 2-1 field value other more
    XGROUP CREATE stream group 0
    PFADD hll a b c
    SETBIT bits 7 1";

/// Cacheable reads of every type, with the name under which the server counts their calls.
const READS: &[&str] = &[
    "GET str",
    "GET missing",
    "STRLEN str",
    "GETRANGE str 1 3",
    "SUBSTR str 0 -2",
    "GETBIT bits 7",
    "BITCOUNT bits",
    "BITPOS bits 1",
    "TYPE str",
    "HGET hash f1",
    "HGET hash nofield",
    "HMGET hash f1 nofield f2",
    "HGETALL hash",
    "HGETALL missing",
    "HLEN hash",
    "HEXISTS hash f1",
    "HSTRLEN hash f1",
    "HKEYS hash",
    "HVALS hash",
    "LRANGE list 0 -1",
    "LINDEX list 1",
    "LINDEX list 99",
    "LLEN list",
    "LPOS list c",
    "SMEMBERS set",
    "SISMEMBER set m1",
    "SMISMEMBER set m1 nope",
    "SCARD set",
    "ZSCORE zset two",
    "ZSCORE zset nope",
    "ZMSCORE zset one nope three",
    "ZRANGE zset 0 -1",
    "ZRANGE zset 0 -1 WITHSCORES",
    "ZRANGE zset (1 inf BYSCORE LIMIT 0 1",
    "ZREVRANGE zset 0 -1 WITHSCORES",
    "ZRANGEBYSCORE zset -inf +inf WITHSCORES",
    "ZRANGEBYLEX geo - +",
    "ZCARD zset",
    "ZCOUNT zset 0 2",
    "ZLEXCOUNT geo - +",
    "ZRANK zset two",
    "ZRANK zset nope",
    "ZREVRANK zset two",
    "GEOPOS places Palermo nowhere",
    "GEODIST places Palermo Catania km",
    "GEOHASH places Palermo Catania",
    "GEOSEARCH places FROMLONLAT 15 37 BYRADIUS 200 km ASC WITHCOORD WITHDIST",
    "XRANGE stream - +",
    "XREVRANGE stream + - COUNT 1",
    "XLEN stream",
    "EXPIRETIME str",
];

fn fill(upstream: &Server) -> Client {
    let mut direct = upstream.client();
    for line in FIXTURE.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let reply = direct.run(line);
        assert_ne!(reply[0], b'-', "{line}: {}", reply.escape_ascii());
    }
    direct
}

fn counted_as(read: &str) -> String {
    let words: Vec<&str> = read.split(' ').collect();
    let name = words[0].to_lowercase();
    if name == "xinfo" { format!("xinfo|{}", words[1].to_lowercase()) } else { name }
}

fn every_read_is_served_once_by_the_upstream_and_then_by_the_cache(kind: Kind, protocol: u8) {
    let upstream = Server::start(kind, &[]);
    fill(&upstream);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut through = Client::speaking(protocol, larder.address());
    let mut direct = Client::speaking(protocol, upstream.address());
    for read in READS {
        let wanted = direct.run(read);
        assert_same(&format!("first {read}"), &wanted, &through.run(read));
        let second = assert_spared(&upstream, &counted_as(read), || through.run(read));
        assert_same(&format!("second {read}"), &wanted, &second);
    }
}

#[test]
fn every_read_is_served_once_by_redis_and_then_by_the_cache_in_resp2() {
    every_read_is_served_once_by_the_upstream_and_then_by_the_cache(Kind::Redis, 2);
}

#[test]
fn every_read_is_served_once_by_redis_and_then_by_the_cache_in_resp3() {
    every_read_is_served_once_by_the_upstream_and_then_by_the_cache(Kind::Redis, 3);
}

#[test]
fn every_read_is_served_once_by_valkey_and_then_by_the_cache_in_resp2() {
    every_read_is_served_once_by_the_upstream_and_then_by_the_cache(Kind::Valkey, 2);
}

#[test]
fn every_read_is_served_once_by_valkey_and_then_by_the_cache_in_resp3() {
    every_read_is_served_once_by_the_upstream_and_then_by_the_cache(Kind::Valkey, 3);
}

/// An entry that a client of one protocol brought in is given to a client of the other in its own shape.
#[test]
fn both_protocols_share_entries_and_each_gets_its_own_shape() {
    let upstream = Server::redis(&[]);
    fill(&upstream);
    let larder = Larder::start(Some(&upstream), &[]);
    for (first, second) in [(2, 3), (3, 2)] {
        upstream.client().run("FLUSHALL");
        fill(&upstream);
        let mut one = Client::speaking(first, larder.address());
        let mut two = Client::speaking(second, larder.address());
        let mut direct = Client::speaking(second, upstream.address());
        for read in READS {
            one.run(read);
            let shared = assert_spared(&upstream, &counted_as(read), || two.run(read));
            assert_same(&format!("{read} in RESP{second} after RESP{first}"), &direct.run(read), &shared);
        }
    }
}

/// A key of the wrong type gives the server's own error, each time.
#[test]
fn errors_of_reads_are_the_servers_own() {
    let upstream = Server::redis(&[]);
    let mut direct = fill(&upstream);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut through = larder.client();
    for read in ["GET list", "HGET str f", "LRANGE str 0 -1", "GET", "GET a b", "LRANGE list x y", "ZSCORE str m"] {
        for _ in 0..2 {
            assert_same(read, &direct.run(read), &through.run(read));
        }
    }
}

#[test]
fn a_client_sees_its_own_write_at_once() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    for n in 0..500 {
        let text = n.to_string();
        client.ok(&["SET", "k", &text]);
        assert_eq!(client.run("GET k"), bulk(&text));
        assert_eq!(client.run("GET k"), bulk(&text));
    }
}

#[test]
fn a_client_sees_another_clients_acknowledged_write_at_once() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut writer, mut reader, mut reader3) = (larder.client(), larder.client(), larder.client3());
    for n in 0..500 {
        let text = n.to_string();
        writer.ok(&["SET", "k", &text]);
        assert_eq!(reader.run("GET k"), bulk(&text));
        assert_eq!(reader3.run("GET k"), bulk(&text));
    }
}

/// Every command that changes a key, whatever its type, takes the cached answers about that key away.
#[test]
fn each_kind_of_write_replaces_what_was_cached() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut writer = larder.client();
    let mut reader = larder.client();
    let mut direct = upstream.client();
    let steps = [
        ("APPEND str more", "GET str"),
        ("SETRANGE str 0 J", "GETRANGE str 0 -1"),
        ("INCRBY num 5", "GET num"),
        ("INCRBYFLOAT num 0.5", "STRLEN num"),
        ("GETSET str new", "GET str"),
        ("GETDEL str", "GET str"),
        ("GETEX num PERSIST", "GET num"),
        ("SETBIT bits 3 1", "BITCOUNT bits"),
        ("BITFIELD bits SET u8 0 255", "GET bits"),
        ("HSET hash f1 changed", "HGETALL hash"),
        ("HINCRBY hash n 3", "HGET hash n"),
        ("HDEL hash f2", "HLEN hash"),
        ("LPUSH list z", "LRANGE list 0 -1"),
        ("LPOP list", "LINDEX list 0"),
        ("LMOVE list other LEFT RIGHT", "LRANGE other 0 -1"),
        ("LTRIM list 0 1", "LLEN list"),
        ("SADD set m9", "SCARD set"),
        ("SMOVE set elsewhere m9", "SMEMBERS elsewhere"),
        ("SUNIONSTORE dest set ints", "SCARD dest"),
        ("ZADD zset 9 nine", "ZRANGE zset 0 -1 WITHSCORES"),
        ("ZINCRBY zset 3 one", "ZSCORE zset one"),
        ("ZPOPMIN zset", "ZCARD zset"),
        ("ZRANGESTORE zdest zset 0 -1", "ZRANGE zdest 0 -1"),
        ("GEOSEARCHSTORE pdest places FROMLONLAT 15 37 BYRADIUS 200 km", "ZCARD pdest"),
        ("XADD stream 3-1 f v", "XLEN stream"),
        ("XDEL stream 1-1", "XRANGE stream - +"),
        ("PFMERGE hll2 hll", "STRLEN hll2"),
        ("SORT ints STORE sorted", "LRANGE sorted 0 -1"),
        ("RENAME hash hash2", "HGETALL hash"),
        ("COPY hash2 hash", "HGETALL hash"),
        ("DEL list", "LRANGE list 0 -1"),
        ("UNLINK set", "SCARD set"),
        ("EXPIREAT num 1", "GET num"),
        ("MSET a 1 b 2", "GET b"),
        ("MSETNX c 3 d 4", "GET d"),
        ("SETEX c 100 five", "GET c"),
    ];
    fill(&upstream);
    for (write, read) in steps {
        reader.run(read);
        reader.run(read);
        let reply = writer.run(write);
        assert_ne!(reply[0], b'-', "{write}: {}", reply.escape_ascii());
        assert_same(&format!("{read} after {write}"), &direct.run(read), &reader.run(read));
    }
}

#[test]
fn a_write_made_directly_at_the_upstream_is_seen() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut reader = larder.client();
    let mut direct = upstream.client();
    for n in 0..100 {
        let text = n.to_string();
        direct.ok(&["SET", "k", &text]);
        wait_for_reply(&mut reader, "GET k", &bulk(&text));
    }
}

#[test]
fn a_missing_key_is_cached_and_replaced_when_it_appears() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut two, mut three) = (larder.client(), larder.client3());
    assert_eq!(two.run("GET k"), NIL2);
    let seen = assert_spared(&upstream, "get", || (two.run("GET k"), three.run("GET k")));
    assert_eq!(seen, (NIL2.to_vec(), NIL3.to_vec()));
    upstream.client().run("SET k here");
    wait_for_reply(&mut two, "GET k", &bulk("here"));
    assert_eq!(three.run("DEL k"), b":1\r\n");
    assert_eq!(two.run("GET k"), NIL2);
    assert_eq!(two.run("SET k again"), OK);
    assert_eq!(three.run("GET k"), bulk("again"));
}

#[test]
fn mget_and_exists_are_answered_key_by_key() {
    let upstream = Server::redis(&[]);
    let mut direct = fill(&upstream);
    direct.run("MSET a 1 b 2 c 3");
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    for read in ["MGET a b missing c a list", "EXISTS a missing b a list", "MGET c", "EXISTS missing"] {
        assert_same(read, &direct.run(read), &client.run(read));
        let name = read.split(' ').next().unwrap().to_lowercase();
        let second = assert_spared(&upstream, &name, || client.run(read));
        assert_same(&format!("second {read}"), &direct.run(read), &second);
    }
    client.run("SET b changed");
    assert_same("after a write", &direct.run("MGET a b c"), &client.run("MGET a b c"));
    client.run("DEL a");
    assert_same("after DEL", &direct.run("EXISTS a b"), &client.run("EXISTS a b"));
    assert_same("no keys", &direct.run("MGET"), &client.run("MGET"));
}

#[test]
fn no_value_is_served_after_its_expiry() {
    let upstream = Server::redis(&[]);
    // Expired keys stay in the server's memory, and no push tells of them, until somebody touches them.
    upstream.client().run("DEBUG SET-ACTIVE-EXPIRE 0");
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut writer, mut reader) = (larder.client(), larder.client());
    for (round, life_ms) in [30_u64, 60, 90, 120, 150].into_iter().cycle().take(20).enumerate() {
        let key = format!("k{round}");
        writer.ok(&["SET", &key, "v", "PX", &life_ms.to_string()]);
        let acknowledged = Instant::now();
        loop {
            let asked = Instant::now();
            let reply = reader.run(&format!("GET {key}"));
            if asked >= acknowledged + Duration::from_millis(life_ms) + SERVER_TICK {
                assert_eq!(reply, NIL2, "read after the expiry");
                break;
            }
        }
    }
}

#[test]
fn an_expiry_that_is_moved_counts_from_then_on() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    let mut direct = upstream.client();
    client.run("SET k v EX 1000");
    assert_eq!(client.run("GET k"), bulk("v"));
    client.run("PEXPIRE k 40");
    let shortened = Instant::now();
    wait_until("the shortened time ends", || shortened.elapsed() > Duration::from_millis(40) + SERVER_TICK);
    assert_eq!(client.run("GET k"), NIL2);

    client.run("SET k v PX 60");
    client.run("GET k");
    let short = Instant::now();
    client.run("PERSIST k");
    if client.run("GET k") == bulk("v") {
        wait_until("the removed time is over", || short.elapsed() > Duration::from_millis(80));
        assert_eq!(client.run("GET k"), bulk("v"), "the key has no expiry any more");
    }

    client.run("SET k v");
    client.run("GET k");
    direct.run("PEXPIREAT k 1");
    wait_for_reply(&mut client, "GET k", NIL2);
}

/// Only Valkey 9 has expiring hash fields; other clients' reads of one send no push.
#[test]
fn an_expired_hash_field_is_not_served_from_the_cache() {
    let upstream = Server::valkey(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    client.run("HSET h stays 1 goes 2");
    assert_eq!(client.run("HPEXPIRE h 60 FIELDS 1 goes"), b"*1\r\n:1\r\n");
    let set = Instant::now();
    let mut direct = upstream.client();
    loop {
        let asked = Instant::now();
        let reply = client.run("HGET h goes");
        direct.run("HGETALL h");
        if asked >= set + Duration::from_millis(60) + SERVER_TICK {
            assert_eq!(reply, NIL2);
            break;
        }
    }
    assert_same("HGETALL", &direct.run("HGETALL h"), &client.run("HGETALL h"));
}

#[test]
fn keys_and_values_are_any_bytes() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut through = larder.client();
    let mut direct = upstream.client();
    let all: Vec<u8> = (0..=255).collect();
    let odd: [&[u8]; 6] = [b"", b"\r\n", b"$5\r\nfake\r\n", b"\0", &all, b"\xff\xfe"];
    for key in odd {
        for value in odd {
            assert_eq!(through.cmd(&[b"SET".as_slice(), key, value]), OK);
            for _ in 0..2 {
                let get = [b"GET".as_slice(), key];
                assert_same("GET", &direct.cmd(&get), &through.cmd(&get));
            }
        }
    }
}

#[test]
fn a_value_of_ten_megabytes_comes_back_whole() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    let value: Vec<u8> = (0..10 * 1024 * 1024_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let set = encode(&[b"SET".as_slice(), b"big", &value]);
    assert_eq!(client.pipeline(&set, 1), [OK]);
    let mut wanted = format!("${}\r\n", value.len()).into_bytes();
    wanted.extend_from_slice(&value);
    wanted.extend_from_slice(b"\r\n");
    for _ in 0..3 {
        let reply = client.run("GET big");
        assert!(reply == wanted, "{} bytes, not the {} wanted", reply.len(), wanted.len());
    }
    client.run("SET big small");
    assert_eq!(client.run("GET big"), bulk("small"));
}

#[test]
fn a_collection_of_a_hundred_thousand_elements_comes_back_whole() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut through = larder.client();
    let mut direct = upstream.client();
    let elements: Vec<String> = (0..100_000).map(|n| format!("element-{n}")).collect();
    let mut push = vec!["RPUSH", "long"];
    push.extend(elements.iter().map(String::as_str));
    assert_eq!(through.pipeline(&encode(&push), 1), [b":100000\r\n"]);
    for _ in 0..3 {
        assert_same("LRANGE", &direct.run("LRANGE long 0 -1"), &through.run("LRANGE long 0 -1"));
    }
    let mut set: Vec<&str> = vec!["MSET"];
    set.extend(elements.iter().flat_map(|e| [e.as_str(), "v"]));
    assert_eq!(through.pipeline(&encode(&set), 1), [OK]);
    let mut get = vec!["MGET"];
    get.extend(elements.iter().map(String::as_str));
    let get = encode(&get);
    for _ in 0..2 {
        assert_same("MGET", &direct.pipeline(&get, 1)[0], &through.pipeline(&get, 1)[0]);
    }
}

/// A key that the cache answers must not look idle to the upstream, nor may a read be counted as a change.
#[test]
fn reading_changes_nothing_at_the_upstream() {
    let upstream = Server::redis(&[]);
    let mut direct = fill(&upstream);
    let larder = Larder::start(Some(&upstream), &[]);
    let before = direct.run("DEBUG DIGEST");
    let mut client = larder.client();
    for read in READS {
        client.run(read);
        client.run(read);
    }
    assert_same("DEBUG DIGEST", &before, &direct.run("DEBUG DIGEST"));
}

/// What becomes of a request depends on what the server understands: the first ones wait until that is known.
#[test]
fn requests_right_after_the_start_wait_for_what_the_server_understands() {
    let upstream = Server::redis(&[]);
    let mut direct = upstream.client();
    // None of these is known to redis-server 7.0: Larder knows them, and could answer some by itself.
    for (n, line) in
        ["CLIENT NO-TOUCH ON", "CLIENT CAPA redirect", "HPEXPIRE h 1 FIELDS 1 f", "CLIENT SETINFO LIB-NAME x", "GET k"]
            .into_iter()
            .enumerate()
    {
        let slow = Relay::start(upstream.address(), n as u64, Duration::from_millis(150));
        let larder = Larder::behind(&slow, &[]);
        for protocol in [2, 3] {
            let mut client = Client::connect(larder.address());
            let wanted = if protocol == 3 { Client::resp3(upstream.address()).run(line) } else { direct.run(line) };
            // In one go with HELLO, which makes Larder wait for nothing.
            let hello = if protocol == 3 { encode(&["HELLO", "3"]) } else { Vec::new() };
            client.send_raw(&[hello, encode(&crate::support::words(line))].concat());
            if protocol == 3 {
                client.reply();
            }
            assert_eq!(client.reply(), wanted, "{line}");
        }
    }
    // A server that is not there is said not to be, all the same.
    let nowhere = Larder::before(std::net::SocketAddr::from(([127, 0, 0, 1], 1)), &[]);
    assert!(nowhere.client().run("GET k").starts_with(b"-UPSTREAMDOWN"));
    assert_eq!(nowhere.client().run("PING"), b"+PONG\r\n");
}

/// A request that begins as the one before it did is taken for a call of the same command; whether it may be called is looked
/// at anew, and so is what came in between.
#[test]
fn a_read_as_the_one_before_is_judged_by_what_came_in_between() {
    let twins = Twins::start();
    let between: [&[&str]; 13] = [
        &["TTL k"],
        &["GEX k"],
        &["get k"],
        &["SET k 2", "GET k", "SET k 1"],
        &["SELECT 1", "GET k", "GET k", "SELECT 0"],
        &["WATCH k", "GET k", "MULTI", "GET k", "GET k", "EXEC"],
        &["MULTI", "GET k", "DISCARD"],
        &["BLPOP nothing 0.01"],
        &["SUBSCRIBE channel", "GET k", "GET k", "UNSUBSCRIBE channel"],
        &["STRLEN k", "TYPE k", "STRLEN k"],
        &["DEL k", "GET k", "GET k", "RPUSH k x", "GET k", "GET k", "DEL k", "SET k 1"],
        &["HELLO 3", "GET nothing", "GET nothing", "HELLO 2", "GET nothing"],
        &["PING", "ECHO k", "PING k"],
    ];
    for protocol in [2, 3] {
        let mut both = twins.client(protocol);
        both.run("SET k 1");
        for lines in between {
            // One at a time, so that each is the first that is read from the socket.
            for _ in 0..4 {
                both.run("GET k");
            }
            for line in lines {
                if line.starts_with("HELLO") {
                    // It tells the connection's own number.
                    both.direct.run(line);
                    both.through.run(line);
                } else {
                    both.run(line);
                }
            }
            both.run("GET k");
        }
    }
}

#[test]
fn who_has_reset_the_connection_reads_nothing_more() {
    let twins = Twins::with_flags(&["--requirepass", "secret"]);
    let mut both = twins.client(2);
    both.run("AUTH secret");
    both.run("SET k 1");
    for _ in 0..4 {
        both.run("GET k");
    }
    both.run("RESET");
    assert_eq!(both.run("GET k"), b"-NOAUTH Authentication required.\r\n");
}

#[test]
fn a_reply_that_is_not_wanted_is_not_given_to_a_read_as_the_one_before() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    both.run("SET k 1");
    for _ in 0..4 {
        both.run("GET k");
    }
    for end in ["CLIENT REPLY SKIP", "CLIENT REPLY OFF"] {
        both.send(&words(end));
        both.send(&["GET", "k"]);
        if end.ends_with("OFF") {
            both.send(&["GET", "k"]);
            both.run("CLIENT REPLY ON");
        }
        assert_eq!(both.run("GET k"), bulk("1"));
    }
}
