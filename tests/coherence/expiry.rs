//! Time that ends: keys and hash fields are not read at or after their end, by whichever clock they were given it.

use std::time::{Duration, Instant};

use crate::support::{Client, Kind, Larder, Server, Value, encode, seed};
use crate::{Scene, catch_up, on_both_servers};

/// The server counts whole milliseconds and answers during the one in which a key ends.
const SERVER_TICK: Duration = Duration::from_millis(2);

on_both_servers! {
    // Item 3.
    no_key_is_read_after_its_time: no_key_outlives_its_time,
    two_hundred_thousand_keys_end_within_a_second: many_keys_end_at_once,
}

/// Keys whose time ends, is shortened and lengthened: never read after their end.
fn no_key_outlives_its_time(kind: Kind) {
    let mut scene = Scene::start("expiry", kind, &[]);
    let (mut through, mut direct) = (scene.larder.client(), scene.upstream.client());
    direct.ok(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let mut readers: Vec<Client> = (2..6).map(|n| Client::speaking(2 + n % 2, scene.larder.address())).collect();
    let mut round = 0;
    while scene.goes_on() {
        round += 1;
        let key = format!("k{round}");
        let life_ms = 20 + scene.rng.below(60);
        let writer = if scene.rng.one_in(2) { &mut through } else { &mut direct };
        match scene.rng.below(7) {
            0 => writer.ok(&["SET", &key, "v", "PX", &life_ms.to_string()]),
            1 => {
                writer.ok(&["SET", &key, "v", "EX", "1000"]);
                number_of_reads(&mut readers, &key);
                writer.cmd(&["PEXPIRE", &key, &life_ms.to_string(), "LT"]);
            }
            2 => {
                writer.ok(&["SET", &key, "v"]);
                number_of_reads(&mut readers, &key);
                writer.cmd(&["GETEX", &key, "PX", &life_ms.to_string()]);
            }
            3 => {
                writer.ok(&["SET", &key, "v", "PX", "15"]);
                number_of_reads(&mut readers, &key);
                // Lengthened, and shortened again.
                writer.cmd(&["PEXPIRE", &key, "100000", "GT"]);
                number_of_reads(&mut readers, &key);
                writer.cmd(&["PEXPIRE", &key, &life_ms.to_string(), "XX"]);
            }
            4 => {
                writer.ok(&["SET", &key, "v", "PX", "100000"]);
                number_of_reads(&mut readers, &key);
                writer.cmd(&["PERSIST", &key]);
                number_of_reads(&mut readers, &key);
                writer.cmd(&["PEXPIRE", &key, &life_ms.to_string(), "NX"]);
            }
            5 => {
                writer.ok(&["SET", &key, "v"]);
                number_of_reads(&mut readers, &key);
                let now = writer.value(&["TIME"]);
                let now_ms = now.items()[0].int() * 1000 + now.items()[1].int() / 1000;
                writer.cmd(&["PEXPIREAT", &key, &(now_ms + life_ms as i64).to_string()]);
            }
            _ => {
                writer.ok(&["PSETEX", &key, "5", "v"]);
                writer.ok(&["SET", &key, "v", "PX", &life_ms.to_string()]);
            }
        }
        // A push of a direct change may still be on its way; it is a few delays late at most, by far less than this.
        let push = 20 * crate::DELAY_MAX;
        let end = Instant::now() + Duration::from_millis(life_ms) + SERVER_TICK + push;
        while Instant::now() < end {
            number_of_reads(&mut readers, &key);
        }
        for reader in &mut readers {
            let reply = reader.value(&["GET", &key]);
            assert_eq!(reply, Value::Null, "{key} after its time");
        }
    }
    println!("expiry, {kind:?}: {round} keys");
}

fn number_of_reads(readers: &mut [Client], key: &str) -> usize {
    readers.iter_mut().map(|reader| reader.cmd(&["GET", key])).count()
}

/// As many keys as an upstream may hold back: it deletes them, and tells of them, long after they have ended.
const MANY: usize = 200_000;
const BATCH: usize = 5_000;
/// From the writing of the keys to the second in which they end: time enough to read them all.
const LIFE_MS: i64 = 27_000;

fn many_keys_end_at_once(kind: Kind) {
    let mut rng = crate::Rng::new(seed(&format!("many keys, {kind:?}"), None));
    let upstream = Server::start(kind, &[]);
    // They are all to be kept, though most are never read again.
    let larder = Larder::start(Some(&upstream), &["--set", "l1.admission=always"]);
    let (mut direct, mut through) = (upstream.client(), larder.client());
    let (begin_ms, begin) = now_of(&mut direct);
    let script = "for n = 1, ARGV[1] do redis.call('set', 'k' .. n, 'v', 'PXAT', ARGV[2] + n % 1000) end return 1";
    direct.cmd(&["EVAL", script, "0", &MANY.to_string(), &(begin_ms + LIFE_MS).to_string()]);
    let ends = |n: usize| begin + Duration::from_millis(LIFE_MS as u64 + n as u64 % 1000);

    let mut tracking = Client::resp3(upstream.address());
    tracking.ok(&["CLIENT", "TRACKING", "ON"]);
    for first in (1..=MANY).step_by(BATCH) {
        let keys: Vec<String> = (first..first + BATCH).map(|n| format!("k{n}")).collect();
        let gets: Vec<u8> = keys.iter().flat_map(|key| encode(&["GET", key])).collect();
        let there = through.pipeline(&gets, BATCH).iter().filter(|reply| reply.starts_with(b"$1")).count();
        assert_eq!(there, BATCH, "the machine is too slow: keys ended before all had been read");
        let mget: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
        tracking.cmd(&mget);
    }
    let hits_before = upstream.calls("get");
    let probes: Vec<usize> = (0..2000).map(|_| 1 + rng.index(MANY)).collect();
    probes.iter().for_each(|n| drop(through.cmd(&["GET", &format!("k{n}")])));
    let asked = upstream.calls("get") - hits_before;
    assert!(Larder::is_plain() || asked == 0, "{asked} of {} reads were not answered from L1", probes.len());

    let lags = std::thread::scope(|scope| {
        let pushes = scope.spawn(|| lags_of_pushes(&mut tracking, &ends));
        std::thread::sleep(ends(0).saturating_duration_since(Instant::now()));
        let (mut reads, mut dead) = (0_u64, 0_u64);
        while Instant::now() < ends(999) + Duration::from_millis(700) {
            let n = 1 + rng.index(MANY);
            let has_ended = Instant::now() >= ends(n) + SERVER_TICK;
            let reply = through.value(&["GET", &format!("k{n}")]);
            assert!(reply == Value::Null || !has_ended, "k{n} was read after its end");
            reads += 1;
            dead += u64::from(has_ended);
        }
        println!("many keys, {kind:?}: {reads} reads, {dead} of them of keys that had ended: none was served");
        assert!(dead > 0);
        pushes.join().expect("the thread that reads pushes")
    });
    let lag = |share: usize| lags[(lags.len() - 1) * share / 1000];
    println!(
        "many keys, {kind:?}: the server's own pushes came {:?} (p50), {:?} (p99), {:?} (last) after the end of a key, {} of them",
        lag(500),
        lag(990),
        lag(1000),
        lags.len()
    );
}

/// The upstream's clock, in milliseconds since 1970, and a moment not earlier than that: the ends of keys, reckoned from
/// there, are not too early.
fn now_of(direct: &mut Client) -> (i64, Instant) {
    let now = direct.value(&["TIME"]);
    (now.items()[0].int() * 1000 + now.items()[1].int() / 1000, Instant::now())
}

/// How long after a key's end the server's push came, sorted; until all keys have ended.
fn lags_of_pushes(tracking: &mut Client, ends: &impl Fn(usize) -> Instant) -> Vec<Duration> {
    let mut lags = Vec::with_capacity(MANY);
    while lags.len() < MANY {
        let push = Value::parse(&tracking.push());
        let now = Instant::now();
        for key in push.items()[1].items() {
            let n: usize = key.text()[1..].parse().expect("a key's number");
            lags.push(now.saturating_duration_since(ends(n)));
        }
    }
    lags.sort_unstable();
    lags
}

/// Fields that end send no push when others read them, so a hash that may hold some is not kept. Only Valkey has them.
#[test]
fn no_hash_field_is_read_after_its_time() {
    let mut scene = Scene::start("hash fields", Kind::Valkey, &[]);
    let (mut through, mut direct, mut reader) = (scene.larder.client(), scene.upstream.client(), scene.larder.client());
    let mut rounds = 0;
    while scene.goes_on() {
        rounds += 1;
        let key = format!("h{rounds}");
        let life_ms = (20 + scene.rng.below(40)).to_string();
        direct.cmd(&["HSET", &key, "stays", "1", "ends", "2"]);
        let reads: &[&[&str]] = &[
            &["HGETALL", &key],
            &["HGET", &key, "ends"],
            &["HMGET", &key, "stays", "ends"],
            &["HEXISTS", &key, "ends"],
            &["HKEYS", &key],
            &["HVALS", &key],
            &["HLEN", &key],
            &["HSTRLEN", &key, "ends"],
            &["EXISTS", &key],
            &["TYPE", &key],
        ];
        let alone = scene.rng.one_in(3);
        if alone {
            direct.cmd(&["HDEL", &key, "stays"]);
        }
        reads.iter().for_each(|read| drop(reader.cmd(read)));
        let writer = if scene.rng.one_in(2) { &mut through } else { &mut direct };
        writer.cmd(&["HPEXPIRE", &key, &life_ms, "FIELDS", "1", "ends"]);
        let end = Instant::now() + Duration::from_millis(life_ms.parse().expect("a number")) + SERVER_TICK;
        while Instant::now() < end {
            reads.iter().for_each(|read| drop(reader.cmd(read)));
        }
        catch_up(&mut reader);
        for read in reads {
            // HLEN and EXISTS count a field until the server has come round to it: what it says is what counts.
            let before = direct.cmd(read);
            let seen = reader.cmd(read);
            let after = direct.cmd(read);
            // If it came round in between, the push may be on its way.
            let follows = |reader: &mut Client| {
                catch_up(reader);
                reader.cmd(read) == after
            };
            assert!(
                seen == before || seen == after || follows(&mut reader),
                "{read:?}: {} through Larder, {} directly",
                seen.escape_ascii(),
                after.escape_ascii()
            );
        }
        assert_eq!(reader.value(&["HGET", &key, "ends"]), Value::Null);
    }
    println!("hash fields: {rounds} rounds");
}
