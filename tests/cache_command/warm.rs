//! `CACHE WARM`: what was warmed is answered without the upstream; the pace, ends, errors; schedules.

use crate::support::{Client, encode};
use crate::{Kind, Larder, Pair, Relay, Server, Value, error_of, is_in_l1, map_of, wait_until};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// A key of each type that is warmed, with the read that is answered from L1 then, and the name of its counter.
const TYPES: [(&str, &str, &str); 5] = [
    ("SET s v", "GET s", "get"),
    ("HSET h f v", "HGETALL h", "hgetall"),
    ("SADD set m", "SMEMBERS set", "smembers"),
    ("RPUSH l a b", "LRANGE l 0 -1", "lrange"),
    ("ZADD z 1 a 2 b", "ZRANGE z 0 -1", "zrange"),
];

fn fill(upstream: &Server, count: usize) {
    let writes: Vec<u8> = (0..count).flat_map(|n| encode(&["SET", &format!("k:{n}"), "v"])).collect();
    upstream.client().pipeline(&writes, count);
}

fn keys_request(count: usize, more: &[&str]) -> Vec<String> {
    let mut request = vec!["CACHE".to_owned(), "WARM".into(), "KEYS".into(), count.to_string()];
    request.extend((0..count).map(|n| format!("k:{n}")));
    request.extend(more.iter().map(|&word| word.to_owned()));
    request
}

fn job(client: &mut Client, id: i64) -> BTreeMap<String, Value> {
    map_of(&client.ask(&format!("CACHE JOB {id}")))
}

fn round(job: &BTreeMap<String, Value>, which: &str) -> i64 {
    match &job["rounds"] {
        Value::Null => 0,
        rounds => map_of(rounds)[which].int(),
    }
}

/// Done and failed.
fn counts(job: &BTreeMap<String, Value>) -> (i64, i64) {
    (job["done"].int(), job["failed"].int())
}

#[test]
fn the_first_read_of_what_was_warmed_does_not_reach_the_upstream() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &[]);
        let mut direct = pair.upstream.client();
        TYPES.iter().for_each(|(write, ..)| drop(direct.run(write)));
        direct.run("XADD x * f v");
        fill(&pair.upstream, 300);
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, pair.larder.address());
            client.ok(&["CACHE", "INVALIDATE", "ALL", "LOCAL"]);
            let told = map_of(&client.ask("CACHE WARM KEYS 7 s h set l z x nosuch SYNC"));
            assert_eq!(counts(&told), (5, 2), "{kind:?} {protocol}: a stream and what is not there are skipped");
            assert_eq!((told["state"].text(), told["expected"].int()), ("done".into(), 7));
            let told = map_of(&client.ask("CACHE WARM PATTERN k:* SYNC"));
            assert_eq!((told["done"].int() >= 300, told["failed"].int()), (true, 0));
            let before = TYPES.map(|(_, _, counter)| pair.upstream.calls(counter));
            for (_, read, _) in TYPES {
                assert_eq!(client.run(read), Client::speaking(protocol, pair.upstream.address()).run(read), "{read}");
            }
            (0..300).for_each(|n| assert_eq!(client.run(&format!("GET k:{n}")), b"$1\r\nv\r\n"));
            // Those asked directly, for comparison, are the only ones.
            let after = TYPES.map(|(_, _, counter)| pair.upstream.calls(counter));
            assert_eq!(after, before.map(|calls| calls + 1), "{kind:?} {protocol}");
        }
    }
}

#[test]
fn what_has_a_tag_is_warmed_page_by_page() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let pair = Pair::of(kind, &["--set", "warm.keys_per_second_max=100000"]);
        let mut client = pair.larder.client();
        let set =
            |n: usize| encode(&["CACHE", "SET", &format!("k:{n}"), "v", "TAGS", "2", "all", ["odd", "even"][n % 2]]);
        let requests: Vec<u8> = (0..1500).flat_map(set).collect();
        client.pipeline(&requests, 1500);
        client.run("CACHE SET gone v TAGS 1 all");
        client.run("SET untagged v");
        pair.upstream.client().run("DEL gone");
        client.ok(&["CACHE", "INVALIDATE", "ALL", "LOCAL"]);
        let told = map_of(&client.ask("CACHE WARM TAGS 1 odd SYNC"));
        assert_eq!((counts(&told), told["subject"].text()), ((750, 0), "TAGS odd".into()));
        assert!(is_in_l1(&mut client, "k:0") && !is_in_l1(&mut client, "k:1"));
        let told = map_of(&client.ask("CACHE WARM TAGS 3 nosuch all odd SYNC"));
        assert_eq!((told["done"].int(), told["failed"].int()), (2250, 1), "{kind:?}: what has gone is skipped");
        let before = pair.upstream.calls("get");
        (0..1500).for_each(|n| assert_eq!(client.run(&format!("GET k:{n}")), b"$1\r\nv\r\n"));
        assert_eq!(pair.upstream.calls("get"), before);
        assert!(!is_in_l1(&mut client, "untagged"));
    }
    let configured = Server::redis(&[]);
    let schedule = "warm.schedule=[{ name = 'news', every_seconds = 3600, tags = ['news'] }]";
    let first = Larder::start(Some(&configured), &[]);
    first.client().run("CACHE SET k v TAGS 1 news");
    let second = Larder::start(Some(&configured), &["--set", schedule]);
    wait_until("the schedule has warmed it", || is_in_l1(&mut second.client(), "k"));
    let denied = Larder::start(Some(&configured), &["--set", "deny=['sscan']"]);
    let told = error_of(&mut denied.client(), "CACHE WARM TAGS 1 news");
    assert!(told.starts_with("NOPERM larder: the operator has denied"), "{told}");
}

#[test]
fn what_was_warmed_is_as_coherent_as_any_entry() {
    let pair = Pair::start(&[]);
    let (mut client, mut writer) = (pair.larder.client(), pair.upstream.client());
    writer.ok(&["SET", "k", "v"]);
    writer.ok(&["SET", "brief", "v", "PX", "60000"]);
    client.run("CACHE WARM KEYS 2 k brief SYNC");
    assert!(is_in_l1(&mut client, "k"));
    let left = map_of(&client.ask("CACHE ENTRY brief"))["time_left_ms"].int();
    assert!((1..=60_000).contains(&left), "{left}");
    writer.ok(&["SET", "k", "w"]);
    client.ok(&["CACHE", "FENCE"]);
    assert_eq!(client.run("GET k"), b"$1\r\nw\r\n");
}

#[test]
fn the_keys_used_most_are_warmed_when_l1_has_lost_them() {
    let pair = Pair::start(&["--set", "insight.sample_every=1"]);
    fill(&pair.upstream, 6);
    let mut client = pair.larder.client();
    (0..6).for_each(|n| (0..if n < 3 { 30 } else { 2 }).for_each(|_| drop(client.run(&format!("GET k:{n}")))));
    client.ok(&["CACHE", "INVALIDATE", "ALL", "LOCAL"]);
    let told = map_of(&client.ask("CACHE WARM HOT 3 SYNC"));
    assert_eq!((counts(&told), told["subject"].text()), ((3, 0), "HOT 3".into()));
    for n in 0..6 {
        assert_eq!(is_in_l1(&mut client, &format!("k:{n}")), n < 3, "{n}");
    }
    // All that are known, which is what is shown: a sample that would have to wait is left out.
    let known = client.ask("CACHE HOTKEYS 1000").items().len() as i64;
    assert_eq!(map_of(&client.ask("CACHE WARM HOT SYNC"))["done"].int(), known);
}

#[test]
fn what_cannot_be_warmed_is_counted_and_skipped() {
    let upstream = Server::redis(&[]);
    let mut direct = upstream.client();
    direct.ok(&["ACL", "SETUSER", "bob", "on", ">pw", "~*", "&*", "+@all", "-hgetall", "-memory"]);
    direct.ok(&["SET", "small", "v"]);
    direct.ok(&["SET", "large", &"x".repeat(20_000)]);
    direct.run("HSET h f v");
    let larder = Larder::start(Some(&upstream), &["--set", "l1.entry_bytes_max=4kb"]);
    let mut client = larder.client();
    assert_eq!(counts(&map_of(&client.ask("CACHE WARM KEYS 3 small large h SYNC"))), (2, 1));
    assert_eq!(upstream.calls("get"), 1, "what is too large is not read");
    client.ok(&["AUTH", "bob", "pw"]);
    let told = map_of(&client.ask("CACHE WARM KEYS 3 small large h SYNC"));
    assert_eq!(counts(&told), (1, 2), "{told:?}");
    // The operator's word counts, too, and where nothing is kept nothing can be warmed.
    let denied = Larder::start(Some(&upstream), &["--set", "deny=['get', 'scan']"]);
    let mut client = denied.client();
    assert_eq!(counts(&map_of(&client.ask("CACHE WARM KEYS 2 small h SYNC"))), (1, 1));
    assert!(error_of(&mut client, "CACHE WARM PATTERN * SYNC").starts_with("NOPERM larder: the operator has denied"));
    let off = Larder::start(Some(&upstream), &["--set", "l1.enabled=false"]);
    assert!(
        error_of(&mut off.client(), "CACHE WARM KEYS 1 small SYNC").starts_with("ERR larder: replies are not kept")
    );
    let embedded = Larder::start(None, &[]);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, embedded.address());
        for line in ["CACHE WARM KEYS 1 k", "CACHE WARM HOT SYNC", "CACHE WARM PATTERN * EVERY 1 NAME n"] {
            let error = error_of(&mut client, line);
            assert_eq!(error, "ERR larder: the embedded store has no L1 that could be warmed", "{line}");
        }
    }
}

#[test]
fn nothing_is_filled_while_writes_are_paused() {
    let pair = Pair::start(&[]);
    fill(&pair.upstream, 1);
    let mut client = pair.larder.client();
    client.ok(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    let id = client.value(&keys_request(1, &[])).int();
    wait_until("the key was asked for its type", || pair.upstream.calls("type") == 1);
    client.ok(&["CACHE", "FENCE"]);
    assert_eq!((pair.upstream.calls("get"), counts(&job(&mut client, id))), (0, (0, 0)));
    client.ok(&["CLIENT", "UNPAUSE"]);
    wait_until("it is warm", || counts(&job(&mut client, id)) == (1, 0));
    assert!(is_in_l1(&mut client, "k:0"));
}

#[test]
fn all_jobs_together_keep_the_pace_and_can_be_cancelled() {
    let pair = Pair::start(&["--set", "warm.keys_per_second_max=20"]);
    fill(&pair.upstream, 1000);
    let (mut client, mut waiting) = (pair.larder.client(), pair.larder.client3());
    let first = client.value(&keys_request(1000, &[])).int();
    waiting.send(&keys_request(1000, &["SYNC"]));
    let second = first + 1;
    wait_until("both are at work", || {
        [first, second].iter().all(|id| match client.ask(&format!("CACHE JOB {id}")) {
            Value::Null => false,
            shown => counts(&map_of(&shown)).0 > 0,
        })
    });
    let done = counts(&job(&mut client, second)).0;
    let shown = job(&mut client, first);
    // Two keys are a batch: one may be ahead of the pace, and one of each job is of this moment.
    let allowed = shown["took_ms"].int() * 20 / 1000 + 6;
    assert!(shown["done"].int() + done <= allowed, "{done} and {shown:?}, not more than {allowed}");
    for id in [first, second] {
        client.ok(&["CACHE", "CANCEL", &id.to_string()]);
    }
    let told = String::from_utf8_lossy(&waiting.reply()).into_owned();
    assert_eq!(told, format!("-ERR larder: the job was cancelled; CACHE JOB {second} shows how far it has come\r\n"));
    wait_until("the other has ended, too", || job(&mut client, first)["state"].text() == "cancelled");
    assert!(counts(&job(&mut client, first)).0 < 1000);
}

#[test]
fn a_schedule_does_not_overlap_with_itself_and_ends_when_asked_to() {
    let pair = Pair::start(&["--set", "warm.keys_per_second_max=20"]);
    fill(&pair.upstream, 30);
    for protocol in [2, 3] {
        let mut client = Client::speaking(protocol, pair.larder.address());
        // A round takes a second and a half at this pace.
        let id = client.value(&keys_request(30, &["EVERY", "1", "NAME", "fronts"])).int();
        let error = error_of(&mut client, "CACHE WARM HOT EVERY 1 NAME fronts");
        assert_eq!(error, "ERR larder: a schedule of this name runs already; see CACHE JOBS");
        wait_until("a round was left out", || round(&job(&mut client, id), "left_out") > 0);
        let shown = job(&mut client, id);
        assert_eq!((shown["kind"].text(), shown["subject"].text()), ("warm-schedule".into(), "fronts: KEYS 30".into()));
        assert!(shown["done"].int() <= 30 * (round(&shown, "done") + 1), "{shown:?}");
        // What leaves L1 comes back by itself.
        pair.upstream.client().ok(&["SET", "k:0", "w"]);
        wait_until("it is back", || is_in_l1(&mut client, "k:0"));
        client.ok(&["CACHE", "CANCEL", &id.to_string()]);
        wait_until("it has ended", || job(&mut client, id)["state"].text() == "cancelled");
        let again = client.value(&keys_request(1, &["EVERY", "60", "NAME", "fronts"])).int();
        client.ok(&["CACHE", "CANCEL", &again.to_string()]);
        wait_until("it has ended", || job(&mut client, again)["state"].text() == "cancelled");
    }
}

#[test]
fn a_schedule_outlives_the_link() {
    let upstream = Server::redis(&[]);
    fill(&upstream, 3);
    let relay = Relay::start(upstream.address(), 1, Duration::ZERO);
    let larder =
        Larder::behind(&relay, &["--set", "warm.schedule=[{ name = 'fronts', every_seconds = 1, pattern = 'k:*' }]"]);
    let mut client = larder.client();
    wait_until("it was warmed from the start on", || is_in_l1(&mut client, "k:2"));
    relay.refuse();
    relay.cut();
    wait_until("a round has failed", || round(&job(&mut client, 1), "failed") > 0);
    assert_ne!(job(&mut client, 1)["error"], Value::Null);
    assert!(!is_in_l1(&mut client, "k:2"));
    relay.allow();
    wait_until("it is back", || is_in_l1(&mut client, "k:2"));
    wait_until("the last round was well", || job(&mut client, 1)["error"] == Value::Null);
    assert_eq!(job(&mut client, 1)["state"].text(), "running");
}

/// A directory of a test's own.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("larder-warm-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a directory for the test");
        Self(path)
    }

    /// The flag that sets `warm.snapshot_file` to a file in it.
    fn flag(&self) -> String {
        format!("warm.snapshot_file={}", self.0.join("hot").display())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[test]
fn a_restart_begins_with_the_keys_that_were_hot() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let directory = Directory::new(&format!("restart-{kind:?}"));
        let upstream = Server::start(kind, &[]);
        fill(&upstream, 50);
        let flag = directory.flag();
        // Without samples, which are chance, hits alone decide.
        let samples = "insight.sample_every=0";
        let flags = ["--set", &flag[..], "--set", "warm.snapshot_keys_max=11", "--set", samples];
        let mut larder = Larder::start(Some(&upstream), &flags);
        assert!(larder.output().contains("no names of keys were saved"), "{}", larder.output());
        let mut client = larder.client();
        client.ok(&["SELECT", "3"]);
        client.ok(&["SET", "other", "v"]);
        (0..9).for_each(|_| drop(client.run("GET other")));
        client.ok(&["SELECT", "0"]);
        (0..10).for_each(|n| (0..9).for_each(|_| drop(client.run(&format!("GET k:{n}")))));
        (10..50).for_each(|n| drop(client.run(&format!("GET k:{n}"))));
        drop(client);
        larder.signal("TERM");
        assert_eq!(larder.wait(), Some(0));
        let file = directory.0.join("hot");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 1, "nothing else is left");
        assert!(std::fs::read(&file).unwrap().starts_with(b"larder-snapshot 1 11\n"));

        let larder = Larder::start(Some(&upstream), &flags);
        let before = upstream.calls("get");
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, larder.address());
            assert_eq!(job(&mut client, 1)["kind"].text(), "warm-start");
            assert_eq!(counts(&job(&mut client, 1)), (11, 0));
            (0..10).for_each(|n| assert_eq!(client.run(&format!("GET k:{n}")), b"$1\r\nv\r\n"));
            client.ok(&["SELECT", "3"]);
            assert_eq!(client.run("GET other"), b"$1\r\nv\r\n");
            assert_eq!(upstream.calls("get"), before, "{kind:?}");
        }
        let mut client = larder.client();
        client.ok(&["CACHE", "INVALIDATE", "ALL", "LOCAL"]);
        let told = map_of(&client.ask("CACHE WARM SNAPSHOT hot SYNC"));
        assert_eq!((counts(&told), told["subject"].text()), ((10, 0), "SNAPSHOT hot".into()), "of this database");
        assert!(is_in_l1(&mut client, "k:0"));
        for (name, error) in [
            ("nosuch", "ERR larder: the snapshot cannot be used: No such file"),
            ("../hot", "ERR larder: a snapshot is named by a plain name"),
        ] {
            let told = error_of(&mut client, &format!("CACHE WARM SNAPSHOT {name} SYNC"));
            assert!(told.starts_with(error), "{told}");
        }
    }
}

#[test]
fn a_start_is_neither_failed_nor_held_up_by_a_snapshot() {
    let directory = Directory::new("start");
    let upstream = Server::redis(&[]);
    fill(&upstream, 20);
    let flag = directory.flag();
    for broken in [&b"REDIS0011"[..], b"larder-snapshot 1 2\n0 1\nk\n", b""] {
        std::fs::write(directory.0.join("hot"), broken).unwrap();
        let larder = Larder::start(Some(&upstream), &["--set", &flag]);
        assert_eq!(larder.client().run("GET k:0"), b"$1\r\nv\r\n");
        assert!(larder.output().contains("nothing is warmed: the file cannot be used"), "{}", larder.output());
    }
    let keys: String = (0..20).map(|n| format!("0 {}\nk:{n}\n", format!("k:{n}").len())).collect();
    std::fs::write(directory.0.join("hot"), format!("larder-snapshot 1 20\n{keys}")).unwrap();
    let flags = ["--set", &flag[..], "--set", "warm.keys_per_second_max=1", "--set", "warm.start_ms_max=100"];
    let larder = Larder::start(Some(&upstream), &flags);
    let shown = job(&mut larder.client(), 1);
    assert_eq!((shown["state"].text(), shown["done"].int() < 20), ("failed".into(), true));
    assert!(shown["error"].text().ends_with("(warm.start_ms_max)"), "{shown:?}");
    // Nor by an upstream that is not there.
    let nobody = Server::redis(&[]).address();
    let larder = Larder::before(nobody, &["--set", &flag]);
    assert_eq!(job(&mut larder.client(), 1)["state"].text(), "failed");
}
