//! The promise of tags, checked on histories: writers, invalidators and readers on two Larders, each connection of which
//! runs early or late by itself.
//!
//! Checked: a read that began after the reply to an invalidation does not return a value whose write had been acknowledged
//! before the invalidation was asked for; and what was written after the last reply is there at the end.

use crate::support::{Client, Rng, run_seconds, seed};
use crate::{Kind, Lagging, OK, Server};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const KEYS: u64 = 6;
const TAGS: u64 = 2;

/// What one client did and saw.
#[derive(Default)]
struct History {
    writes: Vec<Write>,
    reads: Vec<Read>,
    invalidations: Vec<Invalidation>,
}

struct Write {
    key: u64,
    value: String,
    /// Its tags, as bits.
    tags: u64,
    began: Instant,
    ended: Instant,
}

struct Read {
    value: String,
    began: Instant,
}

struct Invalidation {
    /// The tags named, as bits; with `all`, a value must have had each.
    tags: u64,
    all: bool,
    began: Instant,
    ended: Instant,
}

// === impl Invalidation ===

impl Invalidation {
    fn concerns(&self, write: &Write) -> bool {
        if self.all { write.tags & self.tags == self.tags } else { write.tags & self.tags != 0 }
    }
}

fn named(tags: u64) -> String {
    let names: Vec<String> = (0..TAGS).filter(|n| tags >> n & 1 == 1).map(|n| format!("t{n}")).collect();
    format!("{} {}", names.len(), names.join(" "))
}

/// One writer for a part of the keys, so that its own order is the order of the key's values.
fn write(client: &mut Client, mut rng: Rng, part: u64, stop: &AtomicBool) -> History {
    let mut history = History::default();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let key = rng.below(KEYS / 2) * 2 + part;
        let (tags, value) = (1 + rng.below((1 << TAGS) - 1), format!("{part}:{n}"));
        let began = Instant::now();
        assert_eq!(client.run(&format!("CACHE SET h{key} {value} TAGS {}", named(tags))), OK);
        history.writes.push(Write { key, value, tags, began, ended: Instant::now() });
    }
    history
}

fn invalidate(client: &mut Client, mut rng: Rng, stop: &AtomicBool) -> History {
    let mut history = History::default();
    while !stop.load(Ordering::Relaxed) {
        let (tags, all) = (1 + rng.below((1 << TAGS) - 1), rng.one_in(3));
        let word = if all { "ALL" } else { "ANY" };
        let began = Instant::now();
        client.ask(&format!("CACHE INVALIDATE TAGS {word} {}", named(tags))).int();
        history.invalidations.push(Invalidation { tags, all, began, ended: Instant::now() });
        thread::sleep(Duration::from_millis(rng.below(8)));
    }
    history
}

fn read(client: &mut Client, mut rng: Rng, stop: &AtomicBool) -> History {
    let mut history = History::default();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let reply = client.run(&format!("GET h{}", rng.below(KEYS)));
        if reply != b"$-1\r\n" {
            let value = crate::Value::parse(&reply).text();
            history.reads.push(Read { value, began });
        }
    }
    history
}

/// How many reads of older values there were, or what is wrong.
fn check(histories: &[History]) -> Result<u64, String> {
    let writes: HashMap<&str, &Write> =
        histories.iter().flat_map(|h| &h.writes).map(|write| (&write.value[..], write)).collect();
    let mut judged = 0;
    for invalidation in histories.iter().flat_map(|h| &h.invalidations) {
        for read in histories.iter().flat_map(|h| &h.reads).filter(|read| read.began > invalidation.ended) {
            let write = writes[&read.value[..]];
            let is_old = write.ended < invalidation.began;
            judged += u64::from(is_old);
            if is_old && invalidation.concerns(write) {
                return Err(format!(
                    "h{} was read as {} {:?} after the reply to an invalidation that was asked for {:?} after its write",
                    write.key,
                    write.value,
                    read.began - invalidation.ended,
                    invalidation.began - write.ended,
                ));
            }
        }
    }
    Ok(judged)
}

/// What was written after all invalidations were answered is there, wherever it is read.
fn check_last(histories: &[History], lagging: &Lagging) -> Result<(), String> {
    let last = histories.iter().flat_map(|h| &h.invalidations).map(|i| i.ended).max();
    for key in 0..KEYS {
        let of_key = histories.iter().flat_map(|h| &h.writes).filter(|write| write.key == key);
        let Some(write) = of_key.max_by_key(|write| write.ended) else { continue };
        if last.is_none_or(|last| write.began > last) {
            for larder in &lagging.larders {
                let read = larder.client().run(&format!("GET h{key}"));
                if read != format!("${}\r\n{}\r\n", write.value.len(), write.value).into_bytes() {
                    return Err(format!("h{key} was written last as {} and is {read:?}", write.value));
                }
            }
        }
    }
    Ok(())
}

/// A history of so long, with a bug or without: how many reads were judged, or what is wrong.
pub(crate) fn run(kind: Kind, seed: u64, lasting: Duration, bug: Option<&str>) -> Result<u64, String> {
    let upstream = Server::start(kind, &[]);
    let lagging = Lagging::with(&upstream, seed, &[], bug);
    let stop = AtomicBool::new(false);
    let mut rng = Rng::new(seed);
    let histories: Vec<History> = thread::scope(|scope| {
        let mut tasks = Vec::new();
        for (n, larder) in lagging.larders.iter().enumerate() {
            let (stop, part) = (&stop, n as u64);
            let rngs = [0; 5].map(|_| rng.fork());
            let [a, b, c, d, e] = rngs;
            tasks.push(scope.spawn(move || write(&mut larder.client(), a, part, stop)));
            tasks.push(scope.spawn(move || invalidate(&mut larder.client(), b, stop)));
            for rng in [c, d, e] {
                tasks.push(scope.spawn(move || read(&mut larder.client(), rng, stop)));
            }
        }
        thread::sleep(lasting);
        stop.store(true, Ordering::Relaxed);
        tasks.into_iter().map(|task| task.join().expect("a client of the history has failed")).collect()
    });
    let judged = check(&histories)?;
    check_last(&histories, &lagging)?;
    Ok(judged)
}

#[test]
fn no_read_after_the_reply_returns_what_had_the_tag_before_the_call() {
    let seed = seed("tag histories", None);
    for kind in [Kind::Redis, Kind::Valkey] {
        let judged = run(kind, seed, run_seconds(3), None).unwrap_or_else(|what| panic!("{kind:?}: {what}"));
        println!("{kind:?}: {judged} reads of values from before an invalidation judged");
    }
}
