//! Large things: in time and memory proportional to their size, and nobody else is held up by them.

use crate::support::{Client, Crowd, Larder, Server, Value, encode, wait_until};
use crate::{NIL2, OK};
use std::time::{Duration, Instant};

const MB: u64 = 1024 * 1024;
/// Longest time in which somebody else's request may be answered meanwhile: far above what it takes, far below what it
/// would take to wait for a reader that does not read.
const ELSE_MAX: Duration = Duration::from_secs(4);

/// Somebody else reads and writes; from when on the server has done what stops it for everybody.
fn others_go_on(client: &mut Client, what: &str) {
    client.run("PING");
    for n in 0..50 {
        let began = Instant::now();
        assert_eq!(client.run(&format!("SET other {n}")), OK, "{what}");
        assert_eq!(client.ask("GET other").text(), n.to_string(), "{what}");
        assert_eq!(client.ask("STRLEN other").int(), n.to_string().len() as i64, "{what}");
        assert!(began.elapsed() < ELSE_MAX, "{what}: {:?}", began.elapsed());
    }
}

/// How far the memory's peak is above what the process had before, in MB.
fn growth_mb(larder: &Larder, before_kb: u64) -> u64 {
    larder.memory_peak_kb().saturating_sub(before_kb) / 1024
}

#[test]
fn collections_of_a_million_elements() {
    let upstream = Server::redis(&[]);
    let mut direct = upstream.client();
    // In steps: one would keep the server busy for too long.
    let fill = "for n = ARGV[1] + 1, ARGV[1] + 50000, 1000 do local m, f = {}, {} \
                for i = n, n + 999 do m[#m + 1] = i f[#f + 1] = i f[#f + 1] = 'v' .. i end \
                redis.call('SADD', 'set', unpack(m)) redis.call('RPUSH', 'list', unpack(m)) \
                redis.call('HSET', 'hash', unpack(f)) end return redis.call('LLEN', 'list')";
    for n in (0..1_000_000).step_by(50_000) {
        assert_eq!(direct.value(&["EVAL", fill, "0", &n.to_string()]).int(), n + 50_000);
    }
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut reader, mut other) = (larder.client(), larder.client());
    others_go_on(&mut other, "before");
    let before_kb = larder.memory_kb();
    let mut largest = 0;
    for line in ["SMEMBERS set", "LRANGE list 0 -1", "HGETALL hash"] {
        let wanted = direct.run(line);
        largest = largest.max(wanted.len() as u64);
        // The first time it is not known to be large; later it is, and has a connection of its own.
        let mut slow = [larder.client(), larder.client()];
        for (round, slow) in slow.iter_mut().enumerate() {
            slow.send(&line.split(' ').collect::<Vec<_>>());
            others_go_on(&mut other, &format!("{line}, which is not read, round {round}"));
        }
        assert!(reader.run(line) == wanted, "{line}");
        for slow in &mut slow {
            assert!(slow.reply() == wanted, "{line}, read slowly");
        }
    }
    // One reply for each of the three, and what is on its way.
    let (growth, largest) = (growth_mb(&larder, before_kb), largest / MB);
    assert!(growth < 5 * largest + 32, "{growth} MB more, for replies of {largest} MB");
}

#[test]
fn a_value_of_100_mb() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut writer, mut reader, mut other) = (larder.client(), larder.client(), larder.client());
    let before_kb = larder.memory_kb();
    let value = b"0123456789".repeat(10 * 1024 * 1024);
    writer.send(&[&b"SET"[..], b"big", &value]);
    others_go_on(&mut other, "while it is written");
    assert_eq!(writer.reply(), OK);
    for round in 0..2 {
        let mut slow = larder.client();
        slow.send(&["GET", "big"]);
        others_go_on(&mut other, "while it is not read");
        assert!(reader.value(&["GET", "big"]).bytes() == value, "round {round}");
        let read = Value::parse(&slow.reply());
        assert!(read.bytes() == value, "round {round}, read slowly");
        assert_eq!(slow.ask("STRLEN big").int(), value.len() as i64);
    }
    let growth = growth_mb(&larder, before_kb);
    assert!(growth < 5 * 100 + 32, "{growth} MB more, for a value of 100 MB");
    wait_until("it is given back", || larder.memory_kb() / 1024 < 200);
}

#[test]
fn requests_of_100_000_keys() {
    const KEYS: usize = 100_000;
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut client, mut other, mut direct) = (larder.client(), larder.client(), upstream.client());
    let before_kb = larder.memory_kb();
    let names: Vec<String> = (0..KEYS).map(|n| format!("key:{n:06}")).collect();
    let request = |word: &str| encode(&[word].into_iter().chain(names.iter().map(String::as_str)).collect::<Vec<_>>());
    let pairs = names.iter().flat_map(|name| [name.as_str(), &name[4..]]);
    let mset = encode(&["MSET"].into_iter().chain(pairs).collect::<Vec<_>>());
    let values: Vec<u8> = names.iter().flat_map(|name| format!("$6\r\n{}\r\n", &name[4..]).into_bytes()).collect();
    let all = [format!("*{KEYS}\r\n").into_bytes(), values].concat();
    let none = [format!("*{KEYS}\r\n").into_bytes(), NIL2.repeat(KEYS)].concat();
    for round in 0..2 {
        let mut ask = |request: &[u8]| {
            client.send_raw(request);
            others_go_on(&mut other, "meanwhile");
            client.reply()
        };
        assert_eq!(ask(&mset), OK);
        assert!(ask(&request("MGET")) == all && ask(&request("MGET")) == all, "round {round}");
        assert_eq!(ask(&request("EXISTS")), format!(":{KEYS}\r\n").into_bytes());
        assert_eq!(ask(&request("TOUCH")), format!(":{KEYS}\r\n").into_bytes());
        // Written elsewhere, between two reads of all.
        direct.run("SET key:050000 elsewhere");
        wait_until("it is seen", || ask(&request("MGET")) != all);
        let removal = if round == 0 { "DEL" } else { "UNLINK" };
        assert_eq!(ask(&request(removal)), format!(":{KEYS}\r\n").into_bytes());
        assert!(ask(&request("MGET")) == none, "round {round}");
        assert_eq!(direct.ask("DBSIZE").int(), 1);
    }
    let growth = growth_mb(&larder, before_kb);
    assert!(growth < 160, "{growth} MB more");
}

#[test]
fn ten_thousand_subscribers_to_one_channel() {
    let crowd = Crowd::of_at_most(10_000);
    let count = crowd.clients() as i64;
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "limits.clients_max=12000"]);
    let mut subscribers: Vec<Client> = (0..count)
        .map(|n| {
            let mut client = Client::speaking(if n % 100 == 0 { 3 } else { 2 }, larder.address());
            client.send(&["SUBSCRIBE", "news"]);
            client
        })
        .collect();
    for client in &mut subscribers {
        assert!(client.frame().ends_with(b"$4\r\nnews\r\n:1\r\n"));
    }
    let (mut direct, mut publisher) = (upstream.client(), larder.client());
    assert_eq!(direct.ask("PUBSUB NUMSUB news").items()[1].int(), 1, "the upstream has one");
    assert_eq!(publisher.ask("PUBSUB NUMSUB news").items()[1].int(), count);
    assert_eq!(publisher.ask("PUBLISH news through").int(), count);
    assert_eq!(direct.ask("PUBLISH news directly").int(), 1);
    others_go_on(&mut publisher, "while all are told");
    for client in &mut subscribers {
        assert!(client.frame().ends_with(b"$7\r\nmessage\r\n$4\r\nnews\r\n$7\r\nthrough\r\n"));
        assert!(client.frame().ends_with(b"$7\r\nmessage\r\n$4\r\nnews\r\n$8\r\ndirectly\r\n"));
    }
    drop(subscribers);
    wait_until("the upstream has none", || direct.ask("PUBSUB NUMSUB news").items()[1].int() == 0);
}
