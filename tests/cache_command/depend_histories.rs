//! The promise of dependencies, checked on histories: writers of sources, makers of what depends on them, and readers, on
//! two Larders, each connection of which runs early or late by itself.
//!
//! `page` is made out of `a`, which is written through the first Larder, and `b`, which is written through the second; `site` is
//! made out of `page`. Both name the numbers that they were made of. Checked: a read that began after the reply to a write of
//! a source, through the same Larder, shows nothing that was made of an older one; and when all is quiet, what is there is
//! made of what is there.

use crate::support::{Client, Rng, run_seconds, seed};
use crate::{Kind, Lagging, Larder, Server, Value, map_of, wait_until};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The numbers of the last writes of `a` and `b` that have been acknowledged.
type Acknowledged = [AtomicU64; 2];

fn number(client: &mut Client, key: &str) -> String {
    match client.ask(&format!("GET {key}")) {
        Value::Null => "0".to_owned(),
        value => value.text(),
    }
}

/// Makes `key` out of `sources`, if it is not there: declares what it depends on, reads that, and sets it with a lease.
fn make(client: &mut Client, key: &str, sources: &[&str]) {
    let lease = map_of(&client.ask(&format!("CACHE LEASE {key}")));
    if lease["state"].text() != "leased" {
        return;
    }
    let depend = format!("CACHE DEPEND {key} ON {} {}", sources.len(), sources.join(" "));
    assert!(!matches!(client.ask(&depend), Value::Error(_)));
    let made: Vec<String> = sources.iter().map(|source| number(client, source)).collect();
    let token = lease["token"].text();
    // It is void if a source has changed meanwhile.
    client.run(&format!("CACHE SET {key} {} LEASE {token}", made.join("/")));
}

fn write(client: &mut Client, mut rng: Rng, of: usize, acknowledged: &Acknowledged, stop: &AtomicBool) {
    let key = ["a", "b"][of];
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        match rng.below(6) {
            // Whoever writes by CACHE waits for the same.
            2 | 3 => drop(client.run(&format!("CACHE SET {key} {n}"))),
            0 => ["MULTI".to_owned(), format!("SET {key} {n}"), "EXEC".to_owned()]
                .iter()
                .for_each(|l| drop(client.run(l))),
            1 => drop(client.run(&format!("EVAL return(redis.call('SET',KEYS[1],ARGV[1])) 1 {key} {n}"))),
            _ => drop(client.run(&format!("SET {key} {n}"))),
        }
        acknowledged[of].store(n, Ordering::SeqCst);
        // Now and then long enough for a page to be made.
        thread::sleep(Duration::from_millis(if rng.one_in(3) { rng.below(5) } else { rng.below(300) }));
    }
}

/// How many reads have shown something, or what is wrong.
fn read(
    client: &mut Client,
    mut rng: Rng,
    of: usize,
    acknowledged: &Acknowledged,
    stop: &AtomicBool,
) -> Result<u64, String> {
    let mut judged = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = ["page", "site"][rng.below(2) as usize];
        let before = acknowledged[of].load(Ordering::SeqCst);
        if let Value::Bulk(value) = client.ask(&format!("GET {key}")) {
            let value = String::from_utf8(value).expect("numbers");
            // `site` that was made while there was no page is made of nothing.
            let numbers: Vec<&str> = value.split('/').collect();
            if let [_, _] = numbers[..] {
                let made_of: u64 = numbers[of].parse().expect("a number");
                judged += 1;
                if made_of < before {
                    let source = ["a", "b"][of];
                    return Err(format!(
                        "{key} was read as {value} when write {before} of {source} had been acknowledged"
                    ));
                }
            }
        }
    }
    Ok(judged)
}

/// A history of so long, with a bug or without: how many reads were judged, or what is wrong.
pub(crate) fn run(kind: Kind, seed: u64, lasting: Duration, bug: Option<&str>) -> Result<u64, String> {
    let upstream = Server::start(kind, &[]);
    let lagging = Lagging::with(&upstream, seed, &["--set", "tags.lease_ms=200"], bug);
    let (stop, acknowledged) = (AtomicBool::new(false), Acknowledged::default());
    let mut rng = Rng::new(seed);
    let judged: Result<u64, String> = thread::scope(|scope| {
        let mut tasks = Vec::new();
        for (of, larder) in lagging.larders.iter().enumerate() {
            let (stop, acknowledged) = (&stop, &acknowledged);
            let (writer, readers) = (rng.fork(), [rng.fork(), rng.fork()]);
            scope.spawn(move || write(&mut larder.client(), writer, of, acknowledged, stop));
            scope.spawn(move || {
                let mut client = larder.client();
                while !stop.load(Ordering::Relaxed) {
                    make(&mut client, "page", &["a", "b"]);
                    make(&mut client, "site", &["page"]);
                }
            });
            for rng in readers {
                tasks.push(scope.spawn(move || read(&mut larder.client(), rng, of, acknowledged, stop)));
            }
        }
        thread::sleep(lasting);
        stop.store(true, Ordering::Relaxed);
        tasks.into_iter().map(|task| task.join().expect("a reader has failed")).sum()
    });
    let judged = judged?;
    // A write through one Larder is heard of by all, and nothing is left that was made of older numbers.
    let wanted = acknowledged.map(|n| n.into_inner().to_string()).join("/");
    let mut clients = lagging.larders.each_ref().map(Larder::client);
    wait_until("what is there is made of what is there", || {
        clients.iter_mut().all(|client| {
            ["page", "site"].iter().all(|key| match client.ask(&format!("GET {key}")) {
                Value::Null => true,
                value => value.text() == wanted || value.text() == "0",
            })
        })
    });
    Ok(judged)
}

#[test]
fn nobody_reads_what_was_made_of_something_older_than_what_was_acknowledged() {
    let seed = seed("dependency histories", None);
    for kind in [Kind::Redis, Kind::Valkey] {
        let judged = run(kind, seed, run_seconds(3), None).unwrap_or_else(|what| panic!("{kind:?}: {what}"));
        println!("{kind:?}: {judged} reads judged");
        assert!(judged > 50, "{judged}");
    }
}
