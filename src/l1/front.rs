//! What a thread has found in L1 lately: to be found again without a lock, and several at once.
//!
//! What a hit in the store waits for is memory: the table's group, the place in it, the slot, the entry, each known only when
//! the one before has come, and between two locked instructions, which nothing may overtake. The front of a thread is
//! a small table of its own, from the hash of (scope, key) to the entry: two looks at memory, no locked instruction. And for
//! keys that are known together the looks for all of them are made side by side ([`run`]).
//!
//! ```text
//!   front:  (hash of scope and key) -> set of WAYS places -> the entry, the same allocation that the store holds
//! ```
//!
//! Invariants:
//! * An entry is answered from here only while it is the one in the store: it is marked when it leaves, whatever makes it leave
//!   ([`Slot::leave`]), before anybody is told of the cause and before [`super::Partition::removals`] counts it. So an
//!   answer from here is one that the store would have given at the same moment.
//! * Nothing from under an id that the partition has no more: the id is compared with each answer, as in the store. Ids are
//!   never used twice in a process, so stores do not meet here.
//! * The store learns of every [`STORE_EVERY`]th hit of an entry, so that what is hot here does not look idle there.
//!
//! Bounds: [`BYTES_MAX`] a thread for entries that have left the store and are still held here; a place is taken by the next
//! entry that belongs there.

use super::entry::Slot;
use std::cell::RefCell;

/// Sets of places; a key belongs to one of them.
const SETS: usize = 4096;
/// Places of a set: a set is one line of the processor's cache.
const WAYS: usize = 4;
/// Larger entries have no place here: their copying costs more than finding them.
const ENTRY_BYTES_MAX: usize = 2 * 1024;
/// Most bytes of entries that a thread holds.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Of an entry's hits, the store is asked for one in so many.
const STORE_EVERY: u32 = 8;
/// If all places of a set are taken, one in so many entries that belong there drives another out: where more is hot than
/// fits, most hits need not pay for it.
const INSERT_EVERY: u32 = 4;
/// Keys that [`run`] looks for side by side.
pub const RUN_MAX: usize = 16;
/// Bytes of an entry that [`run`] asks for: header, key and a short reply.
const TOUCHED_BYTES: usize = 192;
/// Bytes that come at once.
const LINE_BYTES: usize = 64;

thread_local! {
    static FRONT: RefCell<Front> = const { RefCell::new(Front { sets: Vec::new(), bytes: 0, turn: 0 }) };
}

struct Front {
    /// None until something is put here.
    sets: Vec<Set>,
    /// Bytes of the entries.
    bytes: usize,
    /// Counts up to [`INSERT_EVERY`].
    turn: u32,
}

#[derive(Default)]
#[repr(align(64))]
struct Set([Place; WAYS]);

#[derive(Default)]
struct Place {
    hash: u64,
    entry: Option<Slot>,
}

// === impl Place ===

impl Place {
    #[inline]
    fn entry_of(&self, hash: u64) -> Option<&Slot> {
        if self.hash == hash { self.entry.as_ref() } else { None }
    }
}

/// What the front knows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It was there, and it is done.
    Done,
    /// It is there, but not as it could leave from here.
    Passed,
    /// It is not there.
    No,
    /// It is there, and is not to be answered: its deadline has passed.
    Dead,
}

// === impl Front ===

impl Front {
    #[inline]
    fn set(&self, hash: u64) -> Option<&Set> {
        self.sets.get(hash as usize % SETS)
    }

    /// The place of a key with this hash, or another. Where it is, is reckoned and not branched to: which of them it is cannot be
    /// foreseen, and the processor is to ask for what stands there before it knows.
    #[inline]
    fn place_of(&self, hash: u64) -> Option<&Place> {
        let places = &self.set(hash)?.0;
        let at = (1..WAYS).fold(0, |at, n| at + n * usize::from(places[n].hash == hash));
        places.get(at)
    }

    #[inline]
    fn find(&self, hash: u64) -> Option<&Slot> {
        self.place_of(hash)?.entry_of(hash)
    }

    /// The place that an entry would take; `None` if it is not its turn to drive another out.
    fn place_for(&mut self, hash: u64) -> Option<usize> {
        if self.sets.is_empty() {
            self.sets.resize_with(SETS, Set::default);
        }
        self.turn = self.turn.wrapping_add(1);
        let is_due = self.turn.is_multiple_of(INSERT_EVERY);
        let places = &self.set(hash)?.0;
        let free = places.iter().position(|place| place.hash == hash || place.entry.is_none());
        free.or(is_due.then_some(WAYS - 1))
    }

    fn put(&mut self, hash: u64, at: usize, entry: Slot) {
        let Some(Set(places)) = self.sets.get_mut(hash as usize % SETS) else { return };
        let bytes = self.bytes - places[at].entry.as_ref().map_or(0, Slot::len) + entry.len();
        if bytes <= BYTES_MAX {
            self.bytes = bytes;
            places[at] = Place { hash, entry: Some(entry) };
            // Whoever came first goes first.
            places[..=at].rotate_right(1);
        }
    }
}

/// Has `answer` look at the entry of a key; it says whether it has made use of it. The entry may be another's, or have left
/// the store ([`Slot::stands_for`]).
#[inline]
pub(super) fn find(hash: u64, answer: impl FnOnce(&Slot) -> Known) -> Known {
    FRONT.with_borrow(|front| front.find(hash).map_or(Known::No, answer))
}

/// As [`find`], for at most [`RUN_MAX`] keys, one after the other, until `answer` says false. What stands for all of them is
/// asked for first, and nothing depends on what comes: the processor asks for all of it at once.
#[inline]
pub(super) fn run(hashes: &[u64], mut answer: impl FnMut(usize, &Slot) -> bool) {
    FRONT.with_borrow(|front| {
        let mut places = [None; RUN_MAX];
        for (place, hash) in places.iter_mut().zip(hashes) {
            *place = front.place_of(*hash);
        }
        let places = &places[..hashes.len().min(RUN_MAX)];
        // One alone is looked at in a moment.
        if places.len() > 1 {
            let entries = places.iter().flatten().filter_map(|place| place.entry.as_ref());
            std::hint::black_box(entries.fold(0, |seen, entry| seen ^ entry.touch(LINE_BYTES, TOUCHED_BYTES)));
        }
        for (n, (place, hash)) in places.iter().zip(hashes).enumerate() {
            let entry = place.and_then(|place| place.entry_of(*hash));
            if !entry.is_some_and(|entry| answer(n, entry)) {
                break;
            }
        }
    });
}

/// True if the store is to learn of a hit that is about to be counted.
#[inline]
pub(super) fn is_told(entry: &Slot) -> bool {
    entry.hit_count().is_multiple_of(STORE_EVERY)
}

/// The place for the entry of a key that was not known here, should the store give it; `None` if there is none.
pub(super) fn place_for(hash: u64) -> Option<usize> {
    FRONT.with_borrow_mut(|front| front.place_for(hash))
}

/// True if an entry is small enough to be kept here.
pub(super) fn takes(entry: &Slot) -> bool {
    entry.len() <= ENTRY_BYTES_MAX
}

/// Keeps an entry that the store has just given, in the place that [`place_for`] has named.
pub(super) fn put(hash: u64, at: usize, entry: Slot) {
    FRONT.with_borrow_mut(|front| front.put(hash, at, entry));
}

/// Forgets everything.
pub(super) fn clear() {
    FRONT.with_borrow_mut(|front| *front = Front { sets: Vec::new(), bytes: 0, turn: 0 });
}

#[cfg(test)]
mod tests {
    use super::super::tests::store;
    use super::super::{Answered, Cause, Filler, L1Settings, Leaves, Partition, Variant};
    use super::*;
    use crate::clock::Time;
    use larder_protocol::table::{CommandId, Table};
    use std::cell::Cell;
    use std::sync::atomic::Ordering;

    const NOW: Time = Time::from_micros(1);
    const NEVER: Time = Time::MAX;

    fn get() -> CommandId {
        Table::builtin().lookup(b"get").map(|command| command.id).unwrap()
    }

    fn answer(p: &Partition, key: &[u8], now: Time) -> Option<Vec<u8>> {
        let (leaves, mut reply) = (Leaves { same_only: false, with_deadline: true }, Vec::new());
        let answered = p.answer(
            key,
            p.hash_of(key),
            Variant::bare(get()),
            leaves,
            || now,
            |bytes| reply.extend_from_slice(&bytes.whole()),
        )?;
        Some(match answered {
            Answered::Put => reply,
            Answered::Hit(hit) => hit.reply().unwrap().into_owned(),
        })
    }

    fn known(p: &Partition, key: &[u8]) -> Known {
        known_as(p, p.id.load(Ordering::Relaxed), key)
    }

    fn known_as(p: &Partition, id: u64, key: &[u8]) -> Known {
        find(p.hash_of(key), |entry| if entry.stands_for(id, key) { Known::Done } else { Known::No })
    }

    /// What a run answers of these keys.
    fn run_of(p: &Partition, keys: &[&[u8]], now: Time, more: impl Fn(usize) -> bool) -> (usize, Vec<u8>) {
        let hashes: Vec<u64> = keys.iter().map(|key| p.hash_of(key)).collect();
        let (leaves, mut replies) = (Leaves { same_only: false, with_deadline: true }, Vec::new());
        let (mut count, variant) = (0, Variant::bare(get()));
        let answered = p.answer_run(
            &hashes,
            |n| keys[n],
            variant,
            leaves,
            &|| now,
            |reply| {
                replies.extend_from_slice(&reply.whole());
                count += 1;
                more(count)
            },
        );
        (answered, replies)
    }

    fn fill(f: &mut Filler, key: &[u8], reply: &[u8], deadline: Time) {
        f.fill(key, Variant::bare(get()), reply, deadline, NOW);
    }

    /// A partition with a key that the front of this thread knows.
    fn with_known(key: &[u8]) -> (std::sync::Arc<Partition>, Filler) {
        let (p, mut f) = store(1 << 20).partition();
        fill(&mut f, key, b"$3\r\nold\r\n", NEVER);
        assert_eq!((known(&p, key), answer(&p, key, NOW).as_deref()), (Known::No, Some(&b"$3\r\nold\r\n"[..])));
        assert_eq!((known(&p, key), answer(&p, key, NOW).as_deref()), (Known::Done, Some(&b"$3\r\nold\r\n"[..])));
        (p, f)
    }

    #[test]
    fn what_has_left_the_store_is_not_answered() {
        let (p, mut f) = with_known(b"removed");
        f.remove(b"removed", Cause::DataChanged, NOW);
        assert_eq!((known(&p, b"removed"), answer(&p, b"removed", NOW)), (Known::No, None));

        let (p, mut f) = with_known(b"replaced");
        fill(&mut f, b"replaced", b"$3\r\nnew\r\n", NEVER);
        assert_eq!(known(&p, b"replaced"), Known::No);
        assert_eq!(answer(&p, b"replaced", NOW).unwrap(), b"$3\r\nnew\r\n");
        assert_eq!(
            (known(&p, b"replaced"), answer(&p, b"replaced", NOW).unwrap()),
            (Known::Done, b"$3\r\nnew\r\n".into())
        );

        let (p, _f) = with_known(b"evicted");
        p.store().resize(L1Settings { size_bytes_max: 1, ..p.store().settings() });
        assert_eq!((known(&p, b"evicted"), answer(&p, b"evicted", NOW)), (Known::No, None));

        let (p, mut f) = with_known(b"emptied");
        f.empty(Cause::DataChanged);
        assert_eq!((known(&p, b"emptied"), answer(&p, b"emptied", NOW)), (Known::No, None));

        let (p, _f) = with_known(b"suspended");
        p.suspend();
        assert_eq!((known(&p, b"suspended"), answer(&p, b"suspended", NOW)), (Known::No, None));
        p.resume();
        assert_eq!((known(&p, b"suspended"), answer(&p, b"suspended", NOW)), (Known::No, None));
    }

    #[test]
    fn a_deadline_is_a_deadline() {
        let (p, mut f) = store(1 << 20).partition();
        fill(&mut f, b"k", b"$1\r\nv\r\n", Time::from_micros(100));
        for _ in 0..3 {
            assert!(answer(&p, b"k", Time::from_micros(99)).is_some());
        }
        assert_eq!((known(&p, b"k"), answer(&p, b"k", Time::from_micros(100))), (Known::Done, None));
    }

    #[test]
    fn stores_and_partitions_of_a_thread_do_not_meet() {
        let (p1, _f1) = with_known(b"k");
        let (p2, mut f2) = p1.store().partition();
        let (p3, _f3) = store(1 << 20).partition();
        assert_eq!((answer(&p2, b"k", NOW), answer(&p3, b"k", NOW)), (None, None));
        fill(&mut f2, b"k", b"$3\r\ntwo\r\n", NEVER);
        for _ in 0..3 {
            assert_eq!(answer(&p2, b"k", NOW).unwrap(), b"$3\r\ntwo\r\n");
            assert_eq!(answer(&p1, b"k", NOW).unwrap(), b"$3\r\nold\r\n");
        }
        // Not even where the hashes are the same.
        assert_eq!(known_as(&p1, p2.id.load(Ordering::Relaxed), b"k"), Known::No);
        let is_of_another = |entry: &Slot| !entry.stands_for(p1.id.load(Ordering::Relaxed), b"K");
        assert_eq!(
            find(p1.hash_of(b"k"), |entry| if is_of_another(entry) { Known::No } else { Known::Done }),
            Known::No
        );
    }

    #[test]
    fn the_store_is_told_now_and_then_and_all_hits_are_counted() {
        let (p, mut f) = with_known(b"k");
        let told = |p: &Partition| {
            let told = Cell::new(false);
            find(p.hash_of(b"k"), |entry| {
                told.set(is_told(entry));
                Known::Done
            });
            told.get()
        };
        let asked = (0..8 * STORE_EVERY).filter(|n| {
            let is_told = told(&p);
            if n % 2 == 0 {
                assert!(answer(&p, b"k", NOW).is_some());
            } else {
                assert_eq!(run_of(&p, &[b"k"], NOW, |_| true).0, 1);
            }
            is_told
        });
        assert_eq!(asked.count(), 8);
        assert_eq!(p.facts(b"k").unwrap().hits, 2 + 8 * STORE_EVERY);
        f.remove(b"k", Cause::DataChanged, NOW);
    }

    #[test]
    fn what_is_hit_here_stays_in_a_store_that_is_full() {
        for runs in [false, true] {
            let (p, mut f) = store(20_000).partition();
            fill(&mut f, b"hot", b"$1\r\nh\r\n", NEVER);
            assert!(answer(&p, b"hot", NOW).is_some());
            for n in 0..2000 {
                fill(&mut f, format!("k{n}").as_bytes(), b"$1\r\nv\r\n", NEVER);
                let answered =
                    if runs { run_of(&p, &[b"hot"], NOW, |_| true).0 == 1 } else { answer(&p, b"hot", NOW).is_some() };
                assert!(answered, "{n}");
            }
        }
    }

    #[test]
    fn a_run_ends_with_what_is_not_known_and_where_it_is_told_to() {
        let (p, mut f) = with_known(b"a");
        for key in [&b"b"[..], b"c", b"long"] {
            fill(&mut f, key, b"$3\r\nold\r\n", NEVER);
            answer(&p, key, NOW);
        }
        let old = b"$3\r\nold\r\n";
        assert_eq!(run_of(&p, &[b"a", b"b", b"c"], NOW, |_| true), (3, old.repeat(3)));
        assert_eq!(run_of(&p, &[b"a", b"b", b"c"], NOW, |n| n < 2), (2, old.repeat(2)));
        assert_eq!(run_of(&p, &[b"a", b"absent", b"c"], NOW, |_| true), (1, old.to_vec()));
        assert_eq!(run_of(&p, &[b"absent", b"a"], NOW, |_| true).0, 0);
        assert_eq!(run_of(&p, &[], NOW, |_| true).0, 0);
        f.remove(b"b", Cause::DataChanged, NOW);
        assert_eq!(run_of(&p, &[b"a", b"b", b"c"], NOW, |_| true).0, 1);
        fill(&mut f, b"b", b"$3\r\nnew\r\n", NEVER);
        assert_eq!(run_of(&p, &[b"b"], NOW, |_| true).0, 0, "it is another entry");
        answer(&p, b"b", NOW);
        assert_eq!(run_of(&p, &[b"b"], NOW, |_| true).1, b"$3\r\nnew\r\n");
        // One that dies is answered until then.
        fill(&mut f, b"c", b"$1\r\nc\r\n", Time::from_micros(2));
        answer(&p, b"c", NOW);
        assert_eq!(run_of(&p, &[b"c"], NOW, |_| true).1, b"$1\r\nc\r\n");
        assert_eq!(run_of(&p, &[b"c"], Time::from_micros(2), |_| true).0, 0);
        p.suspend();
        assert_eq!(run_of(&p, &[b"a"], NOW, |_| true).0, 0);
    }

    #[test]
    fn a_removal_in_the_middle_of_a_run_is_seen() {
        let (p, mut f) = with_known(b"a");
        fill(&mut f, b"b", b"$1\r\nb\r\n", NEVER);
        answer(&p, b"b", NOW);
        let hashes = [p.hash_of(b"a"), p.hash_of(b"b")];
        let (leaves, variant) = (Leaves { same_only: false, with_deadline: true }, Variant::bare(get()));
        let key_of = |n: usize| if n == 0 { &b"a"[..] } else { b"b" };
        let answered = p.answer_run(&hashes, key_of, variant, leaves, &|| NOW, |_| {
            f.remove(b"b", Cause::DataChanged, NOW);
            true
        });
        assert_eq!(answered, 1);
    }

    #[test]
    fn holds_so_many_entries_and_bytes() {
        let (p, mut f) = store(1 << 28).partition();
        let reply = [&b"$1500\r\n"[..], &[b'x'; 1500], b"\r\n"].concat();
        // A quarter more than there is room for.
        let count = BYTES_MAX / reply.len() * 5 / 4;
        for n in 0..count {
            let key = format!("k{n}").into_bytes();
            fill(&mut f, &key, &reply, NEVER);
            assert_eq!(answer(&p, &key, NOW).unwrap(), reply);
        }
        let held =
            |front: &Front| front.sets.iter().flat_map(|set| &set.0).filter_map(|place| place.entry.clone()).collect();
        let entries: Vec<Slot> = FRONT.with_borrow(held);
        let bytes: usize = entries.iter().map(Slot::len).sum();
        assert_eq!(bytes, FRONT.with_borrow(|front| front.bytes));
        assert!(bytes <= BYTES_MAX && bytes > BYTES_MAX - 2 * reply.len(), "{bytes}");
        let large = [&b"$3000\r\n"[..], &[b'x'; 3000], b"\r\n"].concat();
        fill(&mut f, b"large", &large, NEVER);
        assert_eq!((answer(&p, b"large", NOW).unwrap(), known(&p, b"large")), (large, Known::No));
    }
}
