//! Commands that change many keys, or keys elsewhere than they seem to: none of them leaves a stale entry.

use crate::support::{Client, Larder, Server, Value, assert_same, wait_until};
use crate::{NIL2, OK, bulk, wait_for_reply};

struct Scene {
    upstream: Server,
    larder: Larder,
}

impl Scene {
    fn start() -> Self {
        let upstream = Server::redis(&[]);
        let larder = Larder::start(Some(&upstream), &[]);
        Self { upstream, larder }
    }

    /// A client in database `db` that has the given keys in the cache.
    fn reader(&self, db: u32, keys: &[&str]) -> Client {
        let mut client = self.larder.client();
        assert_eq!(client.run(&format!("SELECT {db}")), OK);
        for key in keys {
            client.run(&format!("GET {key}"));
            client.run(&format!("GET {key}"));
        }
        client
    }
}

#[test]
fn flushall_and_flushdb_through_larder_leave_nothing() {
    let scene = Scene::start();
    let mut writer = scene.larder.client();
    for (command, other_stays) in
        [("FLUSHDB", true), ("FLUSHALL", false), ("FLUSHDB ASYNC", true), ("FLUSHALL SYNC", false)]
    {
        writer.run("SELECT 1");
        writer.run("SET k one");
        writer.run("SELECT 0");
        writer.run("SET k zero");
        let mut zero = scene.reader(0, &["k"]);
        let mut one = scene.reader(1, &["k"]);
        assert_eq!(writer.run(command), OK);
        assert_eq!(zero.run("GET k"), NIL2, "{command}");
        let wanted = if other_stays { bulk("one") } else { NIL2.to_vec() };
        assert_eq!(one.run("GET k"), wanted, "{command}");
    }
}

#[test]
fn flushes_made_directly_are_seen() {
    let scene = Scene::start();
    let mut direct = scene.upstream.client();
    for command in ["FLUSHDB", "FLUSHALL"] {
        direct.run("SET k v");
        let mut reader = scene.larder.client();
        wait_for_reply(&mut reader, "GET k", &bulk("v"));
        direct.run(command);
        wait_for_reply(&mut reader, "GET k", NIL2);
    }
}

#[test]
fn swapdb_swaps_what_every_client_sees() {
    let scene = Scene::start();
    let mut writer = scene.larder.client();
    writer.run("SET k zero");
    writer.run("SELECT 1");
    writer.run("SET k one");
    let mut zero = scene.reader(0, &["k", "missing"]);
    let mut one = scene.reader(1, &["k"]);
    for round in 0..20 {
        let (in_zero, in_one) = if round % 2 == 0 { ("one", "zero") } else { ("zero", "one") };
        assert_eq!(writer.run("SWAPDB 0 1"), OK);
        assert_eq!(zero.run("GET k"), bulk(in_zero));
        assert_eq!(one.run("GET k"), bulk(in_one));
        zero.run("GET k");
        one.run("GET k");
    }
    let mut direct = scene.upstream.client();
    for bad in ["SWAPDB 0 99", "SWAPDB x 1", "SWAPDB 0"] {
        assert_same(bad, &direct.run(bad), &writer.run(bad));
    }
}

#[test]
fn renamed_copied_moved_and_restored_keys_are_seen() {
    let scene = Scene::start();
    let mut writer = scene.larder.client();
    let all = ["a", "b"];
    let check = |reader: &mut Client, key: &str, wanted: Option<&str>| {
        let wanted = wanted.map_or(NIL2.to_vec(), bulk);
        assert_eq!(reader.run(&format!("GET {key}")), wanted, "{key}");
    };
    for round in 0..20 {
        let text = format!("v{round}");
        writer.run("FLUSHALL");
        writer.run(&format!("SET a {text}"));

        let mut reader = scene.reader(0, &all);
        assert_eq!(writer.run("RENAME a b"), OK);
        check(&mut reader, "a", None);
        check(&mut reader, "b", Some(&text));

        let mut reader = scene.reader(0, &all);
        assert_eq!(writer.run("RENAMENX b a"), b":1\r\n");
        check(&mut reader, "a", Some(&text));
        check(&mut reader, "b", None);

        let mut reader = scene.reader(0, &all);
        assert_eq!(writer.run("COPY a b"), b":1\r\n");
        check(&mut reader, "b", Some(&text));

        let mut there = scene.reader(3, &all);
        assert_eq!(writer.run("COPY a b DB 3"), b":1\r\n");
        check(&mut there, "b", Some(&text));

        let mut here = scene.reader(0, &all);
        let mut there = scene.reader(4, &all);
        assert_eq!(writer.run("MOVE a 4"), b":1\r\n");
        check(&mut here, "a", None);
        check(&mut there, "a", Some(&text));

        let mut reader = scene.reader(0, &all);
        let dumped = Value::parse(&writer.run("DUMP b"));
        let restore: [&[u8]; 5] = [b"RESTORE", b"a", b"0", dumped.bytes(), b"REPLACE"];
        assert_eq!(writer.cmd(&restore), OK);
        check(&mut reader, "a", Some(&text));
    }
}

#[test]
fn the_same_done_directly_is_seen() {
    let scene = Scene::start();
    let mut direct = scene.upstream.client();
    direct.run("SET a 1");
    let mut here = scene.reader(0, &["a", "b", "c"]);
    let mut there = scene.reader(2, &["a", "b", "c"]);
    direct.run("RENAME a b");
    wait_for_reply(&mut here, "GET a", NIL2);
    wait_for_reply(&mut here, "GET b", &bulk("1"));
    direct.run("COPY b c DB 2");
    wait_for_reply(&mut there, "GET c", &bulk("1"));
    direct.run("MOVE b 2");
    wait_for_reply(&mut here, "GET b", NIL2);
    wait_for_reply(&mut there, "GET b", &bulk("1"));
}

#[test]
fn evicted_keys_are_not_served() {
    let upstream = Server::redis(&["--maxmemory", "4mb", "--maxmemory-policy", "allkeys-random"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut writer, mut reader) = (larder.client(), larder.client());
    let value = "x".repeat(1000);
    for n in 0..6000 {
        writer.cmd(&["SET", &format!("k{n}"), &value]);
        if n % 3 == 0 {
            reader.run(&format!("GET k{n}"));
        }
    }
    assert_ne!(upstream.info("stats", "evicted_keys"), "0");
    let mut direct = upstream.client();
    wait_until("reads agree with the upstream", || {
        (0..6000).step_by(3).all(|n| reader.run(&format!("GET k{n}")) == direct.run(&format!("GET k{n}")))
    });
}

/// The server forgets which keys it has told us of when its tracking table is full; it says so by a push.
#[test]
fn a_full_tracking_table_leaves_no_stale_entry() {
    let upstream = Server::redis(&["--tracking-table-max-keys", "100"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut reader = larder.client();
    let mut direct = upstream.client();
    for n in 0..2000 {
        direct.run(&format!("SET k{n} old"));
        reader.run(&format!("GET k{n}"));
    }
    for n in 0..2000 {
        direct.run(&format!("SET k{n} new"));
    }
    for n in 0..2000 {
        wait_for_reply(&mut reader, &format!("GET k{n}"), &bulk("new"));
    }
}

#[test]
fn killing_larders_connections_at_the_upstream_leaves_no_stale_entry() {
    let scene = Scene::start();
    let mut direct = scene.upstream.client();
    let mut reader = scene.larder.client();
    for n in 0..20 {
        let text = n.to_string();
        direct.run(&format!("SET k {text}"));
        wait_for_reply(&mut reader, "GET k", &bulk(&text));
        direct.run("CLIENT KILL TYPE normal SKIPME yes");
        if Larder::is_plain() {
            reader = scene.larder.client();
        }
        direct.run(&format!("SET k again{text}"));
        wait_for_reply(&mut reader, "GET k", &bulk(&format!("again{text}")));
    }
}

#[test]
fn scans_visit_every_key_once() {
    let scene = Scene::start();
    let mut client = scene.larder.client();
    for n in 0..1000 {
        client.run(&format!("SET key:{n} v"));
        client.run(&format!("HSET hash field:{n} v"));
    }
    for (command, wanted) in [("SCAN", 1001), ("HSCAN hash", 2000)] {
        let mut cursor = "0".to_owned();
        let mut seen = 0;
        loop {
            let reply = client.ask(&format!("{command} {cursor} COUNT 50"));
            seen += reply.items()[1].items().len();
            cursor = reply.items()[0].text();
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(seen, wanted, "{command}");
    }
}
