//! Refresh ahead: an entry that is hit near its deadline is read again before it, for nobody in particular.

use crate::support::Client;
use crate::{Kind, Larder, Pair, Server, stat, wait_for_stat, wait_until};
use std::time::{Duration, Instant};

/// Reads a key for a while, as a client that uses it all the time; all replies must be this.
fn use_for(client: &mut Client, time: Duration, line: &str, reply: &[u8]) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        assert_eq!(client.run(line), reply);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An upstream that tracks nothing for its clients.
fn untracked(kind: Kind) -> Server {
    let upstream = Server::start(kind, &[]);
    upstream.client().ok(&["ACL", "SETUSER", "default", "-client|tracking"]);
    upstream
}

/// Without tracking an entry ends before its key does: one that is in use is there for ever.
#[test]
fn a_hot_key_misses_once_where_entries_end_before_their_keys() {
    for kind in [Kind::Redis, Kind::Valkey] {
        for (ahead, reads) in [("0.5", "GET k"), ("0.5", "MGET k"), ("0.0", "GET k")] {
            let upstream = untracked(kind);
            let setting = format!("l1.refresh_ahead={ahead}");
            let flags = ["--set", "l1.untracked_ttl_ms_max=1000", "--set", &setting, "--set", "l1.admission=always"];
            let larder = Larder::start(Some(&upstream), &flags);
            let (mut client, mut watcher) = (larder.client(), larder.client());
            client.ok(&["SET", "k", "v"]);
            let reply: &[u8] = if reads == "GET k" { b"$1\r\nv\r\n" } else { b"*1\r\n$1\r\nv\r\n" };
            use_for(&mut client, Duration::from_millis(3500), reads, reply);
            let misses = stat(&mut watcher, "l1_misses");
            if ahead == "0.0" {
                assert!(misses >= 3, "{misses} misses");
                assert_eq!(stat(&mut watcher, "link_refreshes"), 0);
                continue;
            }
            assert_eq!(misses, 1, "{kind:?} {reads}");
            wait_until("refreshes are counted", || stat(&mut watcher, "link_refreshes") >= 3);
            // And it is the fresh value.
            upstream.client().ok(&["SET", "k", "w"]);
            wait_until("the new value", || client.run("GET k") == b"$1\r\nw\r\n");
        }
    }
}

/// No push tells of what a client writes by a connection of its own; it sees that all the same.
#[test]
fn a_client_sees_all_its_own_writes_where_nothing_is_tracked() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = untracked(kind);
        let flags = ["--set", "l1.untracked_ttl_ms_max=60000", "--set", "l1.admission=always"];
        let larder = Larder::start(Some(&upstream), &flags);
        let mut client = larder.client();
        let large = "x".repeat(300_000);
        let writes: [&[&[&str]]; 4] = [
            &[&["SET", "k", "short"]],
            &[&["SET", "k", &large]],
            &[&["MULTI"], &["SET", "k", "in a transaction"], &["EXEC"]],
            &[&["EVAL", "return redis.call('set', 'k', 'by a script')", "0"]],
        ];
        for (value, requests) in ["short", &large, "in a transaction", "by a script"].into_iter().zip(writes) {
            client.ok(&["SET", "k", "old"]);
            (0..3).for_each(|_| assert_eq!(client.value(&["GET", "k"]).text(), "old"));
            requests.iter().for_each(|request| drop(client.value(request)));
            assert_eq!(client.value(&["GET", "k"]).text(), value, "{kind:?}");
        }
    }
}

/// With tracking an entry ends with its key. It is asked for once, and that changes nothing.
#[test]
fn is_asked_for_once_where_the_deadline_stays() {
    let pair = Pair::start(&["--set", "l1.refresh_ahead=0.5"]);
    let (mut client, mut watcher) = (pair.larder.client(), pair.larder.client());
    client.ok(&["SET", "k", "v", "PX", "2000"]);
    use_for(&mut client, Duration::from_millis(1500), "GET k", b"$1\r\nv\r\n");
    wait_for_stat(&mut watcher, "link_refreshes", 1);
    assert_eq!((pair.upstream.calls("get"), stat(&mut watcher, "l1_misses")), (2, 1));
    wait_until("it ends with its key", || client.run("GET k") == b"$-1\r\n");
}

/// Many clients at once, and a key that is not to be refreshed.
#[test]
fn is_one_read_for_all_and_a_policy_decides() {
    let policy = "policy=[{ match = 'cold*', refresh_ahead = 0.0 }]";
    let pair = Pair::start(&["--set", "l1.refresh_ahead=0.3", "--set", policy]);
    let mut clients: Vec<Client> = (0..20).map(|_| pair.larder.client()).collect();
    clients[0].ok(&["SET", "hot", "v", "PX", "1500"]);
    clients[0].ok(&["SET", "cold", "v", "PX", "1500"]);
    let gets = pair.upstream.calls("get");
    clients[0].run("MGET hot cold");
    let until = Instant::now() + Duration::from_millis(1000);
    while Instant::now() < until {
        for client in &mut clients {
            client.send(&["GET", "hot"]);
            client.send(&["GET", "cold"]);
        }
        for client in &mut clients {
            assert_eq!((client.reply(), client.reply()), (b"$1\r\nv\r\n".to_vec(), b"$1\r\nv\r\n".to_vec()));
        }
    }
    assert_eq!(pair.upstream.calls("get"), gets + 1, "one of the hot key, none of the cold one");
}
