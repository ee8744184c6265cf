//! Replies that L1 holds compressed (`l1.compress_min_bytes`): the same bytes as the server's, in both protocols.

use crate::support::{Larder, Rng, Server, assert_same, encode, show};
use crate::{Both, Twins, assert_spared};

/// Values that LZ4 makes smaller, of sizes that leave by a copy and of sizes that leave as they are; and one that it does not.
fn fill(both: &mut Both) {
    let json = |records: usize| -> String {
        (0..records).map(|i| format!("{{\"id\":{i},\"name\":\"item number {i}\",\"in_stock\":true}},")).collect()
    };
    for (key, records) in [("json:1k", 20), ("json:10k", 200), ("json:100k", 2000)] {
        both.cmd(&["SET", key, &json(records)]);
    }
    let mut rng = Rng::new(1);
    let noise: Vec<u8> = (0..512).flat_map(|_| rng.next().to_le_bytes()).collect();
    both.cmd(&[b"SET", &b"noise"[..], &noise]);
    both.cmd(&["SET", "small", "value"]);
    for field in 0..20 {
        both.cmd(&["HSET", "hash", &format!("field:{field}"), &json(1)]);
        both.cmd(&["RPUSH", "list", &json(2)]);
        both.cmd(&["ZADD", "scores", &format!("{field}.5"), &format!("a member of the set, number {field}")]);
    }
}

fn compressed_replies_are_the_servers_own(protocol: u8) {
    let upstream = Server::redis(&[]);
    let flags = ["--set", "l1.compress_min_bytes=256", "--set", "l1.admission=always"];
    let twins = Twins { larder: Larder::start(Some(&upstream), &flags), upstream, direct: Server::redis(&[]) };
    let mut both = twins.client(protocol);
    fill(&mut both);
    let reads = [
        "GET json:1k",
        "GET json:10k",
        "GET json:100k",
        "GET noise",
        "GET small",
        "GET nosuch",
        "GETRANGE json:10k 5 4000",
        "STRLEN json:100k",
        "HGETALL hash",
        "LRANGE list 0 -1",
        "ZRANGE scores 0 -1 WITHSCORES",
        "MGET json:1k nosuch noise json:100k small json:1k",
    ];
    reads.iter().for_each(|line| drop(both.run(line)));
    for command in ["get", "hgetall", "lrange", "zrange", "mget"] {
        let mut again = twins.client(protocol);
        assert_spared(&twins.upstream, command, || reads.iter().for_each(|line| drop(again.run(line))));
    }
    if !Larder::is_plain() {
        assert!(twins.larder.figure("l1_compressed") >= 7);
        assert!(twins.larder.figure("l1_compressed_bytes_saved") > 100_000);
        assert!(twins.larder.figure("l1_bytes") < 150_000, "{}", twins.larder.figure("l1_bytes"));
    }
    // Hits behind a miss are held, and unpacked when their turn comes.
    let held: Vec<Vec<u8>> = [&["GET missing"][..], &reads, &["GET missing2"], &reads]
        .concat()
        .iter()
        .map(|line| encode(&crate::support::words(line)))
        .collect();
    let direct = both.direct.pipeline(&held.concat(), held.len());
    let through = both.through.pipeline(&held.concat(), held.len());
    for (n, request) in held.iter().enumerate() {
        assert_same(&format!("request {n}, {}", show(request)), &direct[n], &through[n]);
    }
    // What changes is seen at once.
    both.cmd(&["APPEND", "json:10k", "end"]);
    both.run("GET json:10k");
    both.run("GET json:10k");
}

#[test]
fn compressed_replies_are_the_servers_own_in_resp2() {
    compressed_replies_are_the_servers_own(2);
}

#[test]
fn compressed_replies_are_the_servers_own_in_resp3() {
    compressed_replies_are_the_servers_own(3);
}

/// The setting can change at run time: what is filled then is compressed.
#[test]
fn compression_can_be_switched_on_and_off() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    let value = "a value that repeats itself; ".repeat(100);
    for (key, setting, compressed) in [("first", "0", 0), ("second", "1kb", 1), ("third", "3kb", 1), ("fourth", "0", 1)]
    {
        client.ok(&["CACHE", "CONFIG", "SET", "l1.compress_min_bytes", setting]);
        client.ok(&["SET", key, &value]);
        for _ in 0..3 {
            assert_eq!(client.cmd(&["GET", key]), crate::bulk(&value));
        }
        assert!(larder.figure("l1_compressed") == compressed || Larder::is_plain(), "{key}");
    }
}
