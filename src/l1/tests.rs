//! Tests of [`L1`](super::L1).

use super::*;
use larder_protocol::args::OwnedArgs;
use larder_protocol::table::CommandId;
use larder_protocol::table::Table;

pub(super) fn store(size: u64) -> Arc<L1> {
    L1::new(L1Settings {
        size_bytes_max: size,
        entry_bytes_max: 4096,
        variants_per_key_max: 3,
        compress_min_bytes: None,
    })
}

fn id(name: &str) -> CommandId {
    Table::builtin().lookup(name.as_bytes()).map(|c| c.id).unwrap()
}

fn at(micros: u64) -> Time {
    Time::from_micros(micros)
}

fn read(p: &Partition, key: &str, request: &OwnedArgs, command: CommandId, now: u64) -> Option<Vec<u8>> {
    p.read(key.as_bytes(), Variant::new(command, request.args(), 1), || at(now))
        .map(|h| h.reply().unwrap().into_owned())
}

#[test]
fn holds_variants_of_a_key_and_drops_them_together() {
    let (p, mut f) = store(1 << 20).partition();
    let (get, strlen, range) = (id("get"), id("strlen"), id("getrange"));
    let r1 = OwnedArgs::new(["GETRANGE", "k", "0", "1"]);
    let r2 = OwnedArgs::new(["GETRANGE", "k", "0", "2"]);
    let plain = OwnedArgs::new(["GET", "k"]);
    f.fill(b"k", Variant::new(get, plain.args(), 1), b"$3\r\nabc\r\n", Time::MAX, at(1));
    f.fill(b"k", Variant::new(range, r1.args(), 1), b"$2\r\nab\r\n", Time::MAX, at(1));
    assert_eq!(read(&p, "k", &plain, get, 2).unwrap(), b"$3\r\nabc\r\n");
    assert_eq!(read(&p, "k", &r1, range, 2).unwrap(), b"$2\r\nab\r\n");
    assert_eq!(read(&p, "k", &r2, range, 2), None);
    assert_eq!(read(&p, "k", &plain, strlen, 2), None);
    assert_eq!(p.facts(b"k").unwrap().variants, 2);
    assert!(f.remove(b"k", Cause::Manual, at(2)));
    assert_eq!(read(&p, "k", &plain, get, 2), None);
    assert_eq!(p.store().bytes(), 0);
}

#[test]
fn never_answers_at_or_after_the_deadline() {
    let (p, mut f) = store(1 << 20).partition();
    let get = id("get");
    let plain = OwnedArgs::new(["GET", "k"]);
    f.fill(b"k", Variant::bare(get), b"_\r\n", at(100), at(1));
    assert!(read(&p, "k", &plain, get, 99).is_some());
    let hit = p.read(b"k", Variant::bare(get), || at(99)).unwrap();
    assert!(!hit.same_in_both());
    assert!(p.holds(&hit, at(99)));
    assert!(!p.holds(&hit, at(100)));
    assert!(read(&p, "k", &plain, get, 100).is_none());
    assert_eq!(f.fill(b"k", Variant::bare(get), b"_\r\n", at(100), at(100)), Filled::Dead);
}

#[test]
fn a_hit_holds_until_its_key_is_touched() {
    let (p, mut f) = store(1 << 20).partition();
    let get = Variant::bare(id("get"));
    f.fill(b"k", get, b"$1\r\na\r\n", Time::MAX, at(1));
    let hit = p.read(b"k", get, || at(1)).unwrap();
    assert!(p.holds(&hit, at(2)));
    f.remove(b"k", Cause::DataChanged, at(2));
    f.fill(b"k", get, b"$1\r\na\r\n", Time::MAX, at(3));
    assert!(!p.holds(&hit, at(4)));
    let hit = p.read(b"k", get, || at(1)).unwrap();
    f.empty(Cause::Manual);
    assert!(!p.holds(&hit, at(4)));
    assert!(p.is_empty());
    assert_eq!(p.store().entries(), 0);
}

#[test]
fn partitions_do_not_see_each_other() {
    let l1 = store(1 << 20);
    let ((p1, mut f1), (p2, mut f2)) = (l1.partition(), l1.partition());
    let get = Variant::bare(id("get"));
    f1.fill(b"k", get, b"$1\r\na\r\n", Time::MAX, at(1));
    assert!(p2.read(b"k", get, || at(1)).is_none());
    f2.empty(Cause::Manual);
    assert!(p1.read(b"k", get, || at(1)).is_some());
    drop(f1);
    assert!(p1.read(b"k", get, || at(1)).is_none());
}

#[test]
fn is_bounded_in_bytes_variants_and_entry_size() {
    let l1 = store(64 * 1024);
    let (p, mut f) = l1.partition();
    let get = Variant::bare(id("get"));
    for i in 0..10_000 {
        f.fill(format!("key{i}").as_bytes(), get, &[b'x'; 100], Time::MAX, at(1));
    }
    assert!(l1.bytes() <= 64 * 1024);
    assert!(l1.entries() > 100);
    assert_eq!(l1.evictions() as usize, 10_000 - l1.entries());
    assert_eq!(f.fill(b"big", get, &[b'x'; 5000], Time::MAX, at(1)), Filled::TooBig);
    for i in 0..10 {
        let request = OwnedArgs::new(["GETRANGE".to_string(), "v".into(), "0".into(), i.to_string()]);
        f.fill(b"v", Variant::new(id("getrange"), request.args(), 1), b"$0\r\n\r\n", Time::MAX, at(1));
        assert!(p.facts(b"v").unwrap().variants <= 3);
    }
}

#[test]
fn counts_hits_and_tells_once_of_them() {
    let (p, mut f) = store(1 << 20).partition();
    let get = Variant::bare(id("get"));
    f.fill(b"k", get, b"_\r\n", Time::MAX, at(1));
    assert!(p.take_touched(9).is_empty());
    for _ in 0..3 {
        p.read(b"k", get, || at(2)).unwrap();
    }
    assert_eq!(p.facts(b"k").unwrap().hits, 3);
    assert_eq!(p.take_touched(9), [b"k".to_vec()]);
    assert!(p.take_touched(9).is_empty());
    assert_eq!(p.facts(b"k").unwrap().hits, 3);
}

#[test]
fn finds_keys_by_pattern_and_age() {
    let l1 = store(1 << 20);
    let ((p, mut f), (_, mut f2)) = (l1.partition(), l1.partition());
    let get = Variant::bare(id("get"));
    for (key, filled_at) in [("a:1", 1), ("a:2", 2), ("b:1", 1), ("", 1)] {
        f.fill(key.as_bytes(), get, b"_\r\n", Time::MAX, at(filled_at));
        f2.fill(b"a:other", get, b"_\r\n", Time::MAX, at(1));
    }
    assert_eq!(p.keys_matching(b"a:*", at(1), 9), [b"a:1".to_vec()]);
    assert_eq!(p.keys_matching(b"a:*", at(2), 9).len(), 2);
    assert_eq!(p.keys_matching(b"*", at(2), 9).len(), 4);
    assert_eq!(p.keys_matching(b"*", at(2), 3).len(), 3);
}

#[test]
fn counts_removals_by_cause() {
    let l1 = store(1 << 20);
    let (_, mut f) = l1.partition();
    let get = Variant::bare(id("get"));
    let fill = |f: &mut Filler, key: &[u8], deadline| f.fill(key, get, b"_\r\n", deadline, at(1));
    fill(&mut f, b"changed", Time::MAX);
    fill(&mut f, b"late", at(5));
    fill(&mut f, b"replaced", at(5));
    assert!(f.remove(b"changed", Cause::DataChanged, at(9)));
    assert!(!f.remove(b"changed", Cause::DataChanged, at(9)));
    assert!(f.remove(b"late", Cause::DataChanged, at(9)));
    f.fill(b"replaced", get, b"_\r\n", Time::MAX, at(9));
    f.fill(b"other", get, b"_\r\n", Time::MAX, at(9));
    f.empty(Cause::FeedLost);
    let counts = Cause::ALL.map(|cause| l1.removed(cause));
    assert_eq!(counts, [2, 0, 1, 0, 0, 0, 2, 0]);
}

fn compressing() -> Arc<L1> {
    L1::new(L1Settings {
        size_bytes_max: 1 << 20,
        entry_bytes_max: 64 << 10,
        variants_per_key_max: 3,
        compress_min_bytes: Some(100),
    })
}

/// A bulk string that LZ4 makes much smaller.
fn long_reply(letter: char) -> Vec<u8> {
    format!("$5000\r\n{}\r\n", letter.to_string().repeat(5000)).into_bytes()
}

#[test]
fn what_is_compressed_takes_less_and_is_answered_whole() {
    let l1 = compressing();
    let (p, mut f) = l1.partition();
    let (get, range) = (id("get"), id("getrange"));
    let r1 = OwnedArgs::new(["GETRANGE", "k", "0", "1"]);
    let plain = OwnedArgs::new(["GET", "k"]);
    assert_eq!(f.fill(b"k", Variant::bare(get), &long_reply('a'), Time::MAX, at(1)), Filled::Stored);
    f.fill(b"k", Variant::new(range, r1.args(), 1), b"$2\r\naa\r\n", Time::MAX, at(1));
    assert!(l1.bytes() < 400, "{}", l1.bytes());
    assert_eq!(l1.compressed().0, 1);
    assert!(l1.compressed().1 > 4900);
    // Beside another variant, which may be looked at first.
    assert_eq!(read(&p, "k", &plain, get, 2).unwrap(), long_reply('a'));
    assert_eq!(read(&p, "k", &r1, range, 2).unwrap(), b"$2\r\naa\r\n");
    assert_eq!(p.facts(b"k").unwrap().variants, 2);
    let hit = p.read(b"k", Variant::bare(get), || at(2)).unwrap();
    assert!(hit.plain().is_none() && hit.same_in_both());
    assert_eq!(hit.into_bytes().unwrap(), long_reply('a'));
    let put = p.answer(
        b"k",
        p.hash_of(b"k"),
        Variant::bare(get),
        Leaves::SAME_FOR_EVER,
        || at(2),
        |_| panic!("what is packed is not put as it stands"),
    );
    assert!(matches!(put, Some(Answered::Hit(_))));
    // What an entry may be is said of what is answered, not of what it takes.
    let long = [&b"$70000\r\n"[..], &[b'x'; 70_000], b"\r\n"].concat();
    assert_eq!(f.fill(b"long", Variant::bare(get), &long, Time::MAX, at(1)), Filled::TooBig);
}

#[test]
fn what_is_compressed_is_compared_by_what_it_says() {
    let l1 = compressing();
    let ((p1, mut f1), (p2, mut f2)) = (l1.partition(), l1.partition());
    p1.set_peers(vec![Arc::downgrade(&p2)]);
    p2.set_peers(vec![Arc::downgrade(&p1)]);
    let get = Variant::bare(id("get"));
    f1.fill(b"k", get, &long_reply('a'), Time::MAX, at(1));
    assert_eq!(f2.fill(b"k", get, &long_reply('b'), Time::MAX, at(1)), Filled::Contradicted);
    assert_eq!(f2.fill(b"k", get, &long_reply('a'), Time::MAX, at(1)), Filled::Stored);
}

#[test]
fn what_cannot_be_unpacked_is_no_answer() {
    let l1 = compressing();
    let (p, mut f) = l1.partition();
    let get = Variant::bare(id("get"));
    let packed = compress::pack(&long_reply('a'), Some(1)).unwrap();
    for at_byte in 0..packed.len() {
        let mut faulty = packed.clone();
        faulty[at_byte] ^= 0x80;
        let body = encode(Vec::new(), (b"k", at(1)), &[], get, &long_reply('a'), Some(&faulty));
        let partition = p.id.load(Ordering::Relaxed);
        let header = Header { partition, deadline: Time::MAX, filled_at: at(1) };
        p.filled.store(true, Ordering::Relaxed);
        l1.insert(partition, b"k", Slot::new(header, 0, &body));
        let hit = p.read(b"k", get, || at(1)).unwrap();
        if at_byte < 4 {
            assert!(hit.reply().is_none(), "a wrong length, byte {at_byte}");
        }
        assert_eq!(hit.reply().is_some(), hit.into_bytes().is_some());
    }
    f.fill(b"k", get, &long_reply('a'), Time::MAX, at(1));
    assert_eq!(p.read(b"k", get, || at(1)).unwrap().reply().unwrap()[..], long_reply('a'));
}
