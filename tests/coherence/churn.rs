//! Upstreams that let go of keys, or of what they track, and keys that are written all the time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Client, Kind, Larder, Relay, Value, encode, wait_until};
use crate::{Floors, Scene, assert_not_before, catch_up, number, on_both_servers};

on_both_servers! {
    // Item 4: eviction, by each of the usual policies.
    evicted_keys_leave_l1_allkeys_lru: |kind| evicted_keys_leave_l1(kind, "allkeys-lru"),
    evicted_keys_leave_l1_allkeys_lfu: |kind| evicted_keys_leave_l1(kind, "allkeys-lfu"),
    evicted_keys_leave_l1_volatile_ttl: |kind| evicted_keys_leave_l1(kind, "volatile-ttl"),
    evicted_keys_leave_l1_volatile_random: |kind| evicted_keys_leave_l1(kind, "volatile-random"),
    // Item 6.
    keys_that_l1_answers_do_not_look_idle: keys_that_are_hit_do_not_look_idle,
    // Item 4: `tracking-table-max-keys`.
    a_tracking_table_that_overflows_leaves_nothing_stale: |kind| {
        let scene = Scene::start("tracking table", kind, &["--tracking-table-max-keys", "20"]);
        let told = reads_keep_up(&scene, 500);
        let tracked: u64 = scene.upstream.info("stats", "tracking_total_keys").parse().expect("a number");
        assert!(tracked <= 500 / 2, "the table did not overflow: {tracked} keys");
        println!("tracking table, {kind:?}: {told}, {tracked} keys tracked in the end");
    },
    // A writer that hammers ten keys.
    ten_keys_that_are_hammered_are_never_read_backwards: |kind| {
        let scene = Scene::start("ten keys", kind, &[]);
        println!("ten keys, {kind:?}: {}", reads_keep_up(&scene, 10));
    },
    // The same, where the upstream tracks only what fills ask for.
    ten_keys_that_are_hammered_are_never_read_backwards_where_fills_opt_in: |kind| {
        let scene = Scene::choosy("ten keys, choosy", kind);
        println!("ten keys, choosy, {kind:?}: {}", reads_keep_up(&scene, 10));
    },
    // The same with the server's threads for input and output, which must not change the order within a connection.
    threads_of_the_server_change_no_order: |kind| {
        let scene = Scene::start("threads", kind, &["--io-threads", "3"]);
        println!("threads, {kind:?}: {}", reads_keep_up(&scene, 10));
    },
}

const FILLING_BYTES: usize = 4096;

/// Keys that L1 holds are evicted upstream: none of them is read afterwards.
fn evicted_keys_leave_l1(kind: Kind, policy: &str) {
    const KEYS: usize = 300;
    const ROUNDS_MAX: u64 = 40;
    const GETS: usize = 6;
    let flags = ["--maxmemory", "12mb", "--maxmemory-policy", policy, "--maxmemory-samples", "10"];
    let scene = Scene::start(&format!("eviction, {policy}"), kind, &flags);
    // What counts is behind a fence: delays would only make it last.
    scene.relay.delay(Duration::ZERO);
    let (mut reader, mut direct) = (scene.larder.client3(), scene.upstream.client());
    let filling = "x".repeat(FILLING_BYTES);
    let (mut round, mut gone_from_l1) = (0, 0);
    while scene.goes_on() || gone_from_l1 == 0 && round < ROUNDS_MAX {
        round += 1;
        let keys: Vec<String> = (0..KEYS).map(|n| format!("key:{n}")).collect();
        for key in &keys {
            direct.cmd(&["SET", key, &format!("{key} {filling}"), "EX", "1000"]);
        }
        let held: Vec<bool> = keys.iter().map(|key| reader.value(&["GET", key]) != Value::Null).collect();
        // So much that keys must go, written here and there, and used more often than those that L1 answers for.
        let mut through = scene.larder.client();
        for batch in 0..40 {
            let writer = if batch % 2 == 0 { &mut direct } else { &mut through };
            let fill = |n: u32| {
                let key = format!("filling:{batch}:{n}");
                let gets = encode(&["GETRANGE", &key, "0", "1"]).repeat(GETS);
                [encode(&["SET", &key, &filling, "EX", "2000"]), gets].concat()
            };
            let requests: Vec<u8> = (0..100).flat_map(fill).collect();
            writer.pipeline(&requests, 100 * (1 + GETS));
        }
        catch_up(&mut reader);
        for (key, held) in keys.iter().zip(held) {
            let there = direct.value(&["GET", key]);
            let seen = reader.value(&["GET", key]);
            assert_eq!(seen, there, "{key}, which the upstream has evicted or not");
            gone_from_l1 += u64::from(held && there == Value::Null);
        }
    }
    let evicted: u64 = scene.upstream.info("stats", "evicted_keys").parse().expect("a number");
    println!("eviction, {policy}, {kind:?}: {round} rounds, {evicted} keys evicted, {gone_from_l1} of which L1 held");
    assert!(gone_from_l1 > 0, "nothing that L1 held was evicted");
}

/// One key is read all the time, from L1; the upstream must not take it for idle, and must not be asked for it either.
fn keys_that_are_hit_do_not_look_idle(kind: Kind) {
    /// The server counts idle time in seconds.
    const IDLE_S: i64 = 4;
    let larder = |relay: &Relay| Larder::behind(relay, &["--set", "l1.touch_interval_ms=300"]);
    let scene = Scene::with("idle keys", kind, &[], larder);
    let (mut reader, mut direct) = (scene.larder.client(), scene.upstream.client());
    for key in ["hit", "left alone"] {
        direct.ok(&["SET", key, "v"]);
        reader.cmd(&["GET", key]);
    }
    let mut asked = 0;
    // Right after the start nothing may be kept yet.
    wait_until("the key is answered from L1", || {
        let before = std::mem::replace(&mut asked, scene.upstream.calls("get"));
        reader.cmd(&["GET", "hit"]);
        Larder::is_plain() || before > 0 && before == asked && scene.upstream.calls("get") == asked
    });
    let mut reads = 0_u64;
    let idle = |direct: &mut Client, key: &str| direct.value(&["OBJECT", "IDLETIME", key]).int();
    wait_until("the other key looks idle", || {
        reader.cmd(&["GET", "hit"]);
        reads += 1;
        idle(&mut direct, "left alone") >= IDLE_S
    });
    let (hit, alone) = (idle(&mut direct, "hit"), idle(&mut direct, "left alone"));
    println!("idle keys, {kind:?}: {hit} s after {reads} reads, {alone} s without");
    if !Larder::is_plain() {
        assert!(hit < IDLE_S - 1, "a key that L1 answers looks idle for {hit} s");
        assert_eq!(scene.upstream.calls("get"), asked, "TOUCH has sent a push, or the reads were no hits");
    }
}

/// Writers here and elsewhere write ever larger numbers into keys, each into its own half of them. Reads of a key never go
/// back, and in the end L1 says what the upstream says. Returns what was done, in words.
fn reads_keep_up(scene: &Scene, keys: usize) -> String {
    let floors = Floors::new(keys);
    let written = AtomicI64::new(0);
    let until = scene.until;
    let read: u64 = std::thread::scope(|scope| {
        for (half, address) in [scene.upstream.address(), scene.larder.address()].into_iter().enumerate() {
            let mut rng = crate::Rng::new(scene.rng.clone().next() ^ half as u64);
            let written = &written;
            scope.spawn(move || {
                let mut writer = Client::connect(address);
                let mut n = 0;
                while Instant::now() < until {
                    let batch: Vec<u8> = (0..8)
                        .flat_map(|_| {
                            n += 1;
                            encode(&["SET", &format!("k{}", 2 * rng.index(keys / 2) + half), &n.to_string()])
                        })
                        .collect();
                    writer.pipeline(&batch, 8);
                    written.fetch_add(8, Ordering::Relaxed);
                }
            });
        }
        let readers: Vec<_> = (0..4)
            .map(|n| {
                let (mut rng, floors) = (crate::Rng::new(scene.rng.clone().next() ^ (100 + u64::from(n))), &floors);
                let mut client = Client::speaking(2 + n % 2, scene.larder.address());
                scope.spawn(move || {
                    let mut read = 0;
                    while Instant::now() < until {
                        let key = rng.index(keys);
                        let floor = floors.of(key);
                        let seen = number(&mut client, &format!("k{key}"));
                        assert_not_before("a key", floor, seen);
                        floors.raise(key, seen);
                        read += 1;
                    }
                    read
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader's thread")).sum::<u64>()
    });
    let (mut reader, mut direct) = (scene.larder.client(), scene.upstream.client());
    catch_up(&mut reader);
    for key in (0..keys).map(|n| format!("k{n}")) {
        assert_eq!(number(&mut reader, &key), number(&mut direct, &key), "{key} in the end");
    }
    format!("{read} reads, {} writes", written.load(Ordering::Relaxed))
}
