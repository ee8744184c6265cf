//! The store as a whole: what it must keep at every step, by seeded simulation and by hand.

use std::collections::BTreeSet;

use larder_protocol::args::OwnedArgs;

use super::database::entry_cost;
use super::*;

const START: UnixMillis = UnixMillis(1_700_000_000_000);

/// A store, a clock and the words to use them.
struct Bench {
    origin: Origin,
    now: UnixMillis,
}

// === impl Bench ===

impl Bench {
    fn new(bytes_max: u64, seed: u64) -> Self {
        let limits = OriginLimits { bytes_max, ..OriginLimits::default() };
        Self { origin: Origin::new(limits, seed), now: START }
    }

    fn run(&mut self, db: u32, words: &[&str]) -> (String, Option<Effect>) {
        let mut out = Vec::new();
        let args = OwnedArgs::new(words);
        let effect = self.origin.execute(db, Protocol::Resp2, args.args(), self.now, &mut out);
        (String::from_utf8_lossy(&out).into_owned(), effect)
    }

    fn ask(&mut self, words: &[&str]) -> String {
        self.run(0, words).0
    }

    fn version(&self, key: &str) -> Version {
        self.origin.version(0, key.as_bytes(), self.now)
    }

    /// One page of SCAN: the next cursor and the keys.
    fn scan(&mut self, cursor: &str, count: &str) -> (String, Vec<String>) {
        let reply = self.ask(&["SCAN", cursor, "COUNT", count]);
        let mut lines = reply.split("\r\n").skip(2);
        let next = lines.next().unwrap().to_owned();
        let keys = lines.skip(1).skip(1).step_by(2).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        (next, keys)
    }
}

/// A seeded source of numbers. (SplitMix64)
struct Chance(u64);

// === impl Chance ===

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

#[test]
fn other_commands_are_refused_with_the_way_out() {
    let mut bench = Bench::new(1 << 20, 1);
    assert_eq!(
        bench.ask(&["hset", "h", "f", "v"]),
        "-ERR 'HSET' needs an upstream: start larder with --upstream redis://host:port\r\n"
    );
    let odd = bench.ask(&[&("a\r\nb".to_owned() + &"c".repeat(1_000))]);
    assert!(odd.starts_with("-ERR 'A  BCCC") && odd.len() < 250 && odd.matches('\n').count() == 1);
    assert!(Origin::handles(b"GetEx") && Origin::handles(b"incrbyfloat"));
    assert!(!Origin::handles(b"HSET") && !Origin::handles(b"") && !Origin::handles(b"incrbyfloats"));
}

#[test]
fn nulls_follow_the_protocol() {
    let mut bench = Bench::new(1 << 20, 1);
    let mut out = Vec::new();
    for protocol in [Protocol::Resp2, Protocol::Resp3] {
        bench.origin.execute(0, protocol, OwnedArgs::new(["GET", "k"]).args(), START, &mut out);
    }
    assert_eq!(out, b"$-1\r\n_\r\n");
}

#[test]
fn a_database_that_is_not_there() {
    let mut bench = Bench::new(1 << 20, 1);
    assert_eq!(bench.run(16, &["GET", "k"]).0, "-ERR DB index is out of range\r\n");
    assert_eq!(bench.origin.version(99, b"k", START), bench.origin.version(98, b"k", START));
}

#[test]
fn deadlines_pass() {
    let mut bench = Bench::new(1 << 20, 1);
    bench.ask(&["SET", "k", "v", "PX", "100"]);
    bench.now = UnixMillis(START.0 + 100);
    assert_eq!(bench.ask(&["GET", "k"]), "$1\r\nv\r\n", "the last millisecond counts as life");
    bench.now = UnixMillis(START.0 + 101);
    assert_eq!(bench.ask(&["DBSIZE"]), ":1\r\n");
    assert_eq!(bench.ask(&["KEYS", "*"]), "*0\r\n");
    assert_eq!(bench.ask(&["GET", "k"]), "$-1\r\n");
    assert_eq!(bench.ask(&["DBSIZE"]), ":0\r\n");
    assert_eq!(bench.origin.stats().expired, 1);
}

#[test]
fn active_expiry_keeps_to_its_budget() {
    let mut bench = Bench::new(1 << 20, 1);
    for i in 0..50u32 {
        bench.run(i % 3, &["SET", &format!("k{i}"), "v", "PX", "10"]);
        bench.run(i % 3, &["SET", &format!("l{i}"), "v", "PX", "1000"]);
    }
    assert_eq!(bench.origin.expire_some(START, 100), 0);
    let later = UnixMillis(START.0 + 500);
    assert_eq!([30, 30, 30].map(|budget| bench.origin.expire_some(later, budget)), [30, 20, 0]);
    assert_eq!(bench.origin.stats().databases.iter().map(|db| db.keys).sum::<u64>(), 50);
}

#[test]
fn a_value_that_can_never_fit_is_refused_and_changes_nothing() {
    let mut bench = Bench::new(2_000, 1);
    let refused = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
    bench.ask(&["SET", "k", "old"]);
    let large = "x".repeat(2_000);
    assert_eq!(bench.ask(&["SET", "k", &large]), refused);
    assert_eq!(bench.ask(&["SET", "k", &large, "GET"]), refused);
    assert_eq!(bench.ask(&["APPEND", "k", &large]), refused);
    assert_eq!(bench.ask(&["SETRANGE", "k", "400000000", "x"]), refused);
    assert_eq!(bench.ask(&["SETRANGE", "n", "400000000", "x"]), refused);
    assert_eq!(bench.ask(&["MSET", "k", &large[..900], "l", &large[..900]]), refused);
    assert_eq!(bench.ask(&["RENAME", "k", &large]), refused);
    assert_eq!(bench.ask(&["MGET", "k", "l", "n"]), "*3\r\n$3\r\nold\r\n$-1\r\n$-1\r\n");
    bench.origin.keyspace.audit().unwrap();
}

#[test]
fn a_reply_that_repeats_large_values_is_given_up() {
    let limits = OriginLimits { reply_bytes_max: 10_000, ..OriginLimits::default() };
    let mut bench = Bench { origin: Origin::new(limits, 1), now: START };
    bench.ask(&["SET", "k", &"x".repeat(4_000)]);
    assert!(bench.ask(&["MGET", "k", "k"]).starts_with("*2\r\n"));
    assert_eq!(bench.ask(&["MGET", "k", "k", "k"]), "-ERR the reply would be longer than 10000 bytes\r\n");
}

#[test]
fn appending_byte_by_byte_gives_room_in_proportion() {
    let mut bench = Bench::new(64 << 20, 1);
    let mut blocks = BTreeSet::new();
    for _ in 0..100_000 {
        bench.ask(&["APPEND", "k", "x"]);
        blocks.insert(bench.origin.stats().bytes_used);
    }
    assert!(blocks.len() < 40, "{} different blocks", blocks.len());
}

#[test]
fn versions_change_with_the_key() {
    let mut bench = Bench::new(1 << 20, 1);
    let missing = bench.version("k");
    bench.ask(&["SET", "k", "1"]);
    bench.ask(&["DEL", "k"]);
    assert_ne!(bench.version("k"), missing, "came and went");
    let mut last = bench.version("k");
    let steps: [&[&str]; 9] = [
        &["SET", "k", "1"],
        &["INCR", "k"],
        &["EXPIRE", "k", "10"],
        &["PERSIST", "k"],
        &["APPEND", "k", "1"],
        &["SETRANGE", "k", "0", "9"],
        &["RENAME", "k", "l"],
        &["COPY", "l", "k"],
        &["FLUSHDB"],
    ];
    for step in steps {
        let (reply, effect) = bench.run(0, step);
        assert!(effect.is_some(), "{step:?} {reply}");
        assert_ne!(bench.version("k"), last, "{step:?}");
        last = bench.version("k");
    }
    let quiet: [&[&str]; 5] =
        [&["GET", "k"], &["DEL", "k"], &["EXPIRE", "k", "1"], &["SET", "k", "v", "XX"], &["SETRANGE", "k", "9", ""]];
    for step in quiet {
        assert_eq!(bench.run(0, step).1, None, "{step:?}");
        assert_eq!(bench.version("k"), last, "{step:?}");
    }
}

#[test]
fn versions_change_with_time_and_with_swaps() {
    let mut bench = Bench::new(1 << 20, 1);
    bench.ask(&["SET", "k", "v", "PX", "10"]);
    let alive = bench.version("k");
    bench.now = UnixMillis(START.0 + 11);
    let gone = bench.version("k");
    assert_ne!(alive, gone);
    bench.origin.expire_some(bench.now, 10);
    assert_eq!(bench.version("k"), gone, "to remove what has expired changes nothing");
    bench.ask(&["SWAPDB", "0", "1"]);
    bench.ask(&["SWAPDB", "0", "1"]);
    assert_ne!(bench.version("k"), gone);
}

#[test]
fn effects_name_the_keys() {
    let mut bench = Bench::new(1 << 20, 1);
    let keys = |db, first, last, step| Some(Effect::Keys { db, first, last, step });
    assert_eq!(bench.run(2, &["MSET", "a", "1", "b", "2"]).1, keys(2, 1, 3, 2));
    assert_eq!(bench.run(2, &["DEL", "a", "x"]).1, keys(2, 1, 2, 1));
    assert_eq!(bench.run(2, &["COPY", "b", "c", "DB", "3"]).1, keys(3, 2, 2, 1));
    assert_eq!(bench.run(2, &["MOVE", "b", "4"]).1, Some(Effect::Moved { from: 2, to: 4 }));
    assert_eq!(bench.run(2, &["SWAPDB", "1", "2"]).1, Some(Effect::Swapped { first: 1, second: 2 }));
    assert_eq!(bench.run(2, &["FLUSHALL"]).1, Some(Effect::FlushedAll));
}

#[test]
fn eviction_prefers_what_is_not_used() {
    let cost = entry_cost("k0000".len(), 100, false);
    let mut bench = Bench::new(1_000 * cost, 7);
    let value = "x".repeat(100);
    for i in 0..4_000 {
        bench.now = UnixMillis(bench.now.0 + 1);
        bench.ask(&["SET", &format!("k{i:04}"), &value]);
        // A tenth of the capacity is kept in use throughout.
        bench.ask(&["GET", &format!("k{:04}", i % 100)]);
    }
    let hot = (0..100).filter(|i| bench.ask(&["EXISTS", &format!("k{i:04}")]) == ":1\r\n").count();
    assert!(hot >= 95, "{hot} of 100 keys in use were kept");
    assert_eq!(bench.origin.stats().evicted, 3_000);
}

#[test]
fn what_has_expired_goes_before_anything_is_evicted() {
    let cost = entry_cost(2, 100, true);
    let mut bench = Bench::new(10 * cost, 7);
    let value = "x".repeat(100);
    for i in 0..10 {
        bench.run(i % 2, &["SET", &format!("k{i}"), &value, "PX", if i < 4 { "10" } else { "1000" }]);
    }
    bench.now = UnixMillis(START.0 + 11);
    for i in 0..4 {
        bench.run(5, &["SET", &format!("l{i}"), &value, "PX", "1000"]);
    }
    let stats = bench.origin.stats();
    assert_eq!((stats.expired, stats.evicted), (4, 0));
}

#[test]
fn a_command_does_not_evict_what_it_has_written() {
    let cost = entry_cost(4, 100, false);
    let mut bench = Bench::new(100 * cost, 3);
    let value = "x".repeat(100);
    for i in 0..100 {
        bench.ask(&["SET", &format!("o{i:03}"), &value]);
    }
    let keys: Vec<String> = (0..99).map(|i| format!("n{i:03}")).collect();
    let mut words = vec!["MSET"];
    keys.iter().for_each(|key| words.extend([key.as_str(), &value]));
    assert_eq!(bench.ask(&words), "+OK\r\n");
    let mut words = vec!["EXISTS"];
    words.extend(keys.iter().map(String::as_str));
    assert_eq!(bench.ask(&words), ":99\r\n");
    assert_eq!(bench.ask(&["DBSIZE"]), ":100\r\n");
}

#[test]
fn scan_meets_every_key_that_is_there_throughout() {
    for seed in 0..30 {
        let mut chance = Chance(seed);
        let mut bench = Bench::new(200_000, seed);
        for i in 0..600 {
            bench.ask(&["SET", &format!("k{i}"), "a value that is no integer"]);
        }
        let mut throughout: BTreeSet<String> = (0..600).map(|i| format!("k{i}")).collect();
        let mut met = BTreeSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let (next, keys) = bench.scan(&cursor, &chance.below(20).saturating_add(1).to_string());
            for key in keys {
                // A key that was removed and stored anew may come again; these are only ever overwritten.
                assert!(met.insert(key.clone()) || !key.starts_with('k'), "seed {seed}: {key} came twice");
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
            for _ in 0..chance.below(30) {
                let number = chance.below(1_500);
                let key = format!("{}{number}", if number < 600 { 'k' } else { 'n' });
                match chance.below(3) {
                    0 => bench.ask(&["DEL", &key]),
                    1 if number < 600 => bench.ask(&["SET", &key, "another value, also no integer", "XX"]),
                    _ => bench.ask(&["SET", &format!("n{number}"), &"evicting ".repeat(20)]),
                };
            }
            throughout.retain(|key| bench.ask(&["EXISTS", key]) == ":1\r\n");
        }
        // What is left was there at the first call and after every other one, and was never stored anew (XX).
        let missed: Vec<&String> = throughout.difference(&met).collect();
        assert!(missed.is_empty(), "seed {seed}: missed {missed:?}");
    }
}

#[test]
fn a_scan_over_removed_keys_comes_to_its_end_in_bounded_steps() {
    let mut bench = Bench::new(64 << 20, 1);
    for i in 0..20_000 {
        bench.ask(&["SET", &format!("k{i}"), "v"]);
    }
    for i in 0..20_000 {
        if i % 100 != 0 {
            bench.ask(&["DEL", &format!("k{i}")]);
        }
    }
    let (mut cursor, mut met, mut pages) = ("0".to_owned(), 0, 0);
    loop {
        let (next, keys) = bench.scan(&cursor, "10");
        met += keys.len();
        pages += 1;
        cursor = next;
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(met, 200);
    assert!(pages <= 20_000 / 100 + 1, "{pages} pages");
    assert_eq!(bench.scan("18446744073709551615", "10"), ("0".into(), vec![]));
}

/// One step of the simulation: any command, any key of a few, any size.
fn any_command(chance: &mut Chance) -> Vec<String> {
    let key = |chance: &mut Chance| "k".repeat(chance.below(4) as usize) + &chance.below(60).to_string();
    let value = |chance: &mut Chance| match chance.below(3) {
        0 => chance.below(1_000).to_string(),
        1 => "v".repeat(chance.below(300) as usize),
        _ => "v".repeat(chance.below(6_000) as usize),
    };
    let (k, l, v) = (key(chance), key(chance), value(chance));
    let n = chance.below(3_000).to_string();
    let words: &[&str] = match chance.below(24) {
        0..=5 => &["SET", &k, &v],
        6 => &["SET", &k, &v, "PX", &n],
        7 => &["SET", &k, &v, "KEEPTTL", "GET"],
        8 | 9 => &["APPEND", &k, &v],
        10 => &["SETRANGE", &k, &n, &v],
        11 => &["INCR", &k],
        12 => &["INCRBYFLOAT", &k, "0.5"],
        13 => &["DEL", &k, &l],
        14 => &["PEXPIRE", &k, &n],
        15 => &["PERSIST", &k],
        16 => &["RENAME", &k, &l],
        17 => &["COPY", &k, &l, "DB", "1", "REPLACE"],
        18 => &["MOVE", &k, "2"],
        19 => &["MSET", &k, &v, &l, &v, "m", &n],
        20 => &["GETEX", &k, "PX", &n],
        21 => &["GETDEL", &k],
        22 => &["SWAPDB", "0", "1"],
        _ => &["GET", &k],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn the_accounts_are_right_and_the_limit_is_kept_after_every_command() {
    for seed in 0..12 {
        let mut chance = Chance(seed);
        let mut bench = Bench::new(2_000 + chance.below(40_000), seed);
        for step in 0..3_000 {
            let words = any_command(&mut chance);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let db = chance.below(3) as u32;
            let (reply, effect) = bench.run(db, &words);
            assert!(!reply.is_empty() && reply.ends_with("\r\n"), "seed {seed} step {step}: {words:?}");
            assert!(!(reply.starts_with('-') && effect.is_some()), "seed {seed} step {step}: {words:?}");
            if let Err(difference) = bench.origin.keyspace.audit() {
                panic!("seed {seed} step {step}: {words:?}: {difference}");
            }
            bench.now = UnixMillis(bench.now.0 + chance.below(50));
            if chance.below(400) == 0 {
                bench.run(db, &["FLUSHDB"]);
            }
        }
        let stats = bench.origin.stats();
        assert!(stats.evicted > 0 && stats.expired > 0, "seed {seed}: {stats:?}");
    }
}
