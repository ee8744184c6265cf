//! `CACHE JOBS`, `JOB` and `CANCEL`: seen with a pattern that is looked for in a large database.

use crate::support::{Client, encode};
use crate::{Larder, OK, Pair, Value, error_of, map_of, wait_until};

const NAMES: [&str; 11] =
    ["cursor", "done", "error", "expected", "failed", "id", "kind", "rounds", "state", "subject", "took_ms"];

fn fill(client: &mut Client, count: usize) {
    let writes: Vec<u8> = (0..count).flat_map(|n| encode(&["SET", &format!("k:{n}"), "v"])).collect();
    client.pipeline(&writes, count);
}

#[test]
fn a_pattern_is_a_job_that_is_seen_cancelled_and_taken_up_again() {
    let pair = Pair::start(&[]);
    for protocol in [2, 3] {
        let mut worker = Client::speaking(protocol, pair.larder.address());
        let mut watcher = Client::speaking(protocol, pair.larder.address());
        fill(&mut watcher, 60_000);
        worker.send(&["CACHE", "INVALIDATE", "PATTERN", "k:*"]);
        let mut id = 0;
        wait_until("the job has begun to delete", || {
            let jobs = watcher.ask("CACHE JOBS");
            let running = jobs.items().iter().map(map_of).find(|job| job["state"].text() == "running");
            id = running.as_ref().map_or(0, |job| job["id"].int());
            running.is_some_and(|job| job["done"].int() > 0)
        });
        let shown = watcher.ask(&format!("CACHE JOB {id}"));
        assert_eq!(matches!(shown, Value::Map(_)), protocol == 3, "{shown:?}");
        let job = map_of(&shown);
        assert_eq!(job.keys().collect::<Vec<_>>(), NAMES);
        assert_eq!((job["kind"].text(), job["subject"].text()), ("invalidate-pattern".into(), "k:*".into()));
        assert_eq!((job["expected"].int(), job["error"].clone()), (-1, Value::Null));
        assert_eq!(watcher.run(&format!("CACHE CANCEL {id}")), OK);
        let told = String::from_utf8_lossy(&worker.reply()).into_owned();
        assert_eq!(told, format!("-ERR larder: the job was cancelled; CACHE JOB {id} shows how far it has come\r\n"));
        let job = map_of(&watcher.ask(&format!("CACHE JOB {id}")));
        assert_eq!(job["state"].text(), "cancelled");
        let (done, left) = (job["done"].int(), watcher.ask("DBSIZE").int());
        assert!(done > 0 && left > 0 && done + left == 60_000, "{done} {left}");
        assert_eq!(error_of(&mut watcher, &format!("CACHE CANCEL {id}")), "ERR the job has ended");
        let again = format!("CACHE INVALIDATE PATTERN k:* CURSOR {}", job["cursor"].text());
        assert_eq!(worker.ask(&again).int(), left);
        assert_eq!(watcher.ask("DBSIZE").int(), 0);
    }
}

#[test]
fn errors_and_what_is_not_there() {
    let pair = Pair::start(&[]);
    let embedded = Larder::start(None, &[]);
    for address in [pair.larder.address(), embedded.address()] {
        for protocol in [2, 3] {
            let mut client = Client::speaking(protocol, address);
            assert_eq!(client.ask("CACHE JOBS"), Value::Array(Vec::new()));
            assert_eq!(client.ask("CACHE JOB 1"), Value::Null);
            assert_eq!(error_of(&mut client, "CACHE CANCEL 1"), "ERR no such job");
            assert_eq!(error_of(&mut client, "CACHE JOB x"), "ERR value is not an integer or out of range");
            assert_eq!(
                error_of(&mut client, "CACHE CANCEL"),
                "ERR wrong number of arguments for 'cache|cancel' command"
            );
        }
    }
}

#[test]
fn a_job_that_fails_says_why() {
    let upstream = crate::Server::redis(&[]);
    upstream.client().ok(&["ACL", "SETUSER", "bob", "on", ">pw", "~*", "&*", "+@all", "-scan"]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    client.ok(&["AUTH", "bob", "pw"]);
    assert!(error_of(&mut client, "CACHE INVALIDATE PATTERN *").starts_with("NOPERM"));
    let jobs = client.ask("CACHE JOBS");
    let job = map_of(&jobs.items()[0]);
    assert_eq!(job["state"].text(), "failed");
    assert!(job["error"].text().starts_with("NOPERM"));
}
