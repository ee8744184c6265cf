//! Single orders of events, each of which once went wrong and is long in coming by chance.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::Time;
use larder::l1::{Filler, L1, L1Settings, Partition, Reader, Variant};
use larder::metrics::Counters;
use larder::outgoing::Outgoing;
use larder::port::{Delivery, Failure, Port, Seq, Taken};
use larder::session::{Batch, Flow, Session, Surroundings};
use larder::upstream::link::{Caching, Each, Frame, Job, LinkCore, LinkLimits, Op, OpKind, Violation};
use larder_protocol::args::OwnedArgs;
use larder_protocol::table::{CommandId, Table};
use smallvec::smallvec;

fn id(table: &Table, name: &str) -> CommandId {
    table.lookup(name.as_bytes()).map(|command| command.id).expect("a built-in command")
}

fn partition() -> (Arc<Partition>, Filler) {
    L1::new(L1Settings {
        size_bytes_max: 1 << 20,
        entry_bytes_max: 1000,
        variants_per_key_max: 4,
        compress_min_bytes: None,
    })
    .partition()
}

fn link(table: &Arc<Table>) -> (LinkCore, Arc<Partition>) {
    let (partition, filler) = partition();
    let limits = LinkLimits {
        in_flight_max: 100,
        in_flight_bytes_max: 10_000,
        reply_max: Duration::from_secs(1),
        write_max: Duration::from_secs(1),
        untracked_ttl: None,
        admission: larder::upstream::admission::Admission::Always,
        stale_longest: None,
    };
    let mut link = LinkCore::new(filler, table.clone(), limits);
    link.seed(1);
    link.connected(Caching::Tracked, table.clone());
    (link, partition)
}

/// Everything that waits to be sent is sent.
fn send_all(link: &mut LinkCore) {
    *link.outgoing() = Outgoing::default();
}

/// Replies that are out of step with the requests are found by what stands between these, and end the link: before
/// anything has been sent, by the type of the reply to a PTTL, and by that of the reply to a fence's PING.
#[test]
fn replies_out_of_step_are_violations() {
    let table = Arc::new(Table::builtin());
    let get = id(&table, "get");
    let asked = |kind: OpKind| {
        let (mut link, _) = link(&table);
        let request = Bytes::from_static(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
        let op = Op { seq: Seq(1), bytes: 0..request.len() as u32, kind };
        link.submit(&Job { port: Arc::new(Port::default()), bytes: request, ops: smallvec![op] }, Time::ZERO);
        link
    };
    let fill = OpKind::Fill { command: get, key_at: 1, may_join: false, asks_encoding: false };
    let come = |link: &mut LinkCore, bytes: &[u8]| link.frame(Frame { bytes, shared: None }, Time::ZERO);
    let mut unsent = asked(fill);
    assert!(matches!(come(&mut unsent, b":-1\r\n"), Err(Violation::Unexpected(_))));
    for refused in [&b"-NOPERM no\r\n"[..], b":5\r\n"] {
        let mut link = asked(fill);
        send_all(&mut link);
        assert_eq!(come(&mut link, refused), Ok(()));
    }
    let mut text = asked(fill);
    send_all(&mut text);
    assert!(matches!(come(&mut text, b"$1\r\nv\r\n"), Err(Violation::OutOfStep("PTTL", _))));
    // Behind a read that has been kept a fence is a PING.
    let mut fence = asked(fill);
    fence.submit(
        &Job {
            port: Arc::new(Port::default()),
            bytes: Bytes::new(),
            ops: smallvec![Op { seq: Seq(2), bytes: 0..0, kind: OpKind::Fence }],
        },
        Time::ZERO,
    );
    send_all(&mut fence);
    assert_eq!(come(&mut fence, b":-1\r\n"), Ok(()));
    assert_eq!(come(&mut fence, b"$1\r\nv\r\n"), Ok(()));
    assert!(matches!(come(&mut fence, b"$1\r\nv\r\n"), Err(Violation::OutOfStep("PING", _))));
}

/// A key's deadline is not the one from before a FLUSHALL that came between two of an MGET's PTTLs: after it the key was
/// written again, with a deadline, and no longer tracked.
#[test]
fn a_null_push_between_the_pttls_of_an_mget_voids_the_earlier_one() {
    let table = Arc::new(Table::builtin());
    let (get, mget) = (id(&table, "get"), id(&table, "mget"));
    let (mut link, partition) = link(&table);
    let now = Time::ZERO;
    let request = Bytes::from_static(b"*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$1\r\nb\r\n");
    let op = Op { seq: Seq(1), bytes: 0..request.len() as u32, kind: OpKind::FillEach(Each::Mget { get, mget }) };
    link.submit(&Job { port: Arc::new(Port::default()), bytes: request, ops: smallvec![op] }, now);
    send_all(&mut link);
    let frames: [&[u8]; 4] = [b":-1\r\n", b">2\r\n$10\r\ninvalidate\r\n_\r\n", b":-2\r\n", b"*2\r\n$3\r\nnew\r\n_\r\n"];
    for bytes in frames {
        assert_eq!(link.frame(Frame { bytes, shared: None }, now), Ok(()));
    }
    assert!(partition.read(b"a", Variant::bare(get), || now).is_none(), "kept without its deadline");
    assert!(partition.read(b"b", Variant::bare(mget), || now).is_some());
}

/// A write of which a byte has left is not sent again, even if the connection broke within the same flush.
#[test]
fn what_has_left_in_part_is_not_sent_again() {
    let table = Arc::new(Table::builtin());
    let (mut link, _) = link(&table);
    let port = Arc::new(Port::default());
    let request = Bytes::from_static(b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n");
    let (len, kind) = (request.len() as u32, OpKind::Write(id(&table, "incr")));
    for seq in 1..=3 {
        let op = Op { seq: Seq(seq), bytes: 0..len, kind };
        link.submit(&Job { port: port.clone(), bytes: request.clone(), ops: smallvec![op] }, Time::ZERO);
    }
    link.outgoing().advance(request.len() + 1);
    assert_eq!(link.lost(Time::ZERO, larder::l1::Cause::FeedLost).len(), 1);
    let mut taken = Taken::default();
    port.take(&mut taken);
    let lost = |delivery: &Delivery| match delivery {
        Delivery::Failed(seq, Failure::WriteLost) => *seq,
        other => panic!("{other:?}"),
    };
    assert_eq!(taken.deliveries.iter().map(lost).collect::<Vec<_>>(), [Seq(1), Seq(2)]);
}

/// The link removes a key while an MGET looks at the next one: with nothing else under way the answer must not wait for
/// something to come.
#[test]
fn an_mget_that_is_overtaken_by_a_removal_is_asked_of_the_upstream() {
    let table = Table::builtin();
    let (partition, mut filler) = partition();
    let deadline = Time::from_micros(1_000);
    for key in [b"a", b"b"] {
        filler.fill(key, Variant::bare(id(&table, "get")), b"$1\r\nv\r\n", deadline, Time::ZERO);
    }
    let filler = RefCell::new(filler);
    let now = || {
        filler.borrow_mut().remove(b"c", larder::l1::Cause::DataChanged, larder::clock::Time::ZERO);
        Time::ZERO
    };
    let around = Surroundings {
        table: &table,
        partition: Some(&partition),
        stale: None,
        upstream_is_resp2: false,
        has_field_ttls: false,
        fences: false,
        settles: false,
        keeps: true,
        reader: Reader(1),
        refresh_ahead: None,
        is_big: &|_| false,
        now: &now,
        counters: &Counters::default(),
    };
    let (mut session, mut batch, mut out) = (Session::new(), Batch::default(), Outgoing::default());
    let request = OwnedArgs::new(["MGET", "a", "b"]);
    let command = table.lookup(b"mget").expect("a built-in command");
    assert_eq!(session.request(command, request.args(), &around, &mut batch, &mut out), Flow::Taken);
    assert!(!batch.is_empty() && out.is_empty());
}

/// The first key's time ends while an MGET looks at the second, which is filled only then: the two were never there at once.
#[test]
fn an_mget_that_is_overtaken_by_a_deadline_is_asked_of_the_upstream() {
    let table = Table::builtin();
    let (partition, mut filler) = partition();
    let get = Variant::bare(id(&table, "get"));
    filler.fill(b"a", get, b"$1\r\nv\r\n", Time::from_micros(1_000), Time::ZERO);
    let (filler, looks) = (RefCell::new(filler), std::cell::Cell::new(0));
    let now = || {
        looks.set(looks.get() + 1);
        if looks.get() > 1 {
            return Time::from_micros(2_000);
        }
        filler.borrow_mut().fill(b"b", get, b"$1\r\nw\r\n", Time::from_micros(9_000), Time::ZERO);
        Time::ZERO
    };
    let around = Surroundings {
        table: &table,
        partition: Some(&partition),
        stale: None,
        upstream_is_resp2: false,
        has_field_ttls: false,
        fences: false,
        settles: false,
        keeps: true,
        reader: Reader(1),
        refresh_ahead: None,
        is_big: &|_| false,
        now: &now,
        counters: &Counters::default(),
    };
    let (mut session, mut batch, mut out) = (Session::new(), Batch::default(), Outgoing::default());
    let request = OwnedArgs::new(["MGET", "a", "b"]);
    let command = table.lookup(b"mget").expect("a built-in command");
    assert_eq!(session.request(command, request.args(), &around, &mut batch, &mut out), Flow::Taken);
    assert!(!batch.is_empty() && out.is_empty());
}

/// Two users of one database. Bob's read is under way when Alice's partition is filled with a newer value, which her
/// clients may have hit before it went again: Bob's clients must not hit the older one afterwards.
#[test]
fn a_read_that_another_users_fill_has_overtaken_is_not_kept() {
    let table = Arc::new(Table::builtin());
    let l1 = L1::new(L1Settings {
        size_bytes_max: 1 << 20,
        entry_bytes_max: 1000,
        variants_per_key_max: 4,
        compress_min_bytes: None,
    });
    let limits = LinkLimits {
        in_flight_max: 100,
        in_flight_bytes_max: 10_000,
        reply_max: Duration::from_secs(1),
        write_max: Duration::from_secs(1),
        admission: larder::upstream::admission::Admission::Always,
        untracked_ttl: None,
        stale_longest: None,
    };
    let link = || {
        let (partition, filler) = l1.partition();
        let mut link = LinkCore::new(filler, table.clone(), limits);
        link.seed(1);
        link.connected(Caching::Tracked, table.clone());
        (link, partition)
    };
    let ((mut alice, alices), (mut bob, bobs)) = (link(), link());
    alices.set_peers(vec![Arc::downgrade(&bobs)]);
    bobs.set_peers(vec![Arc::downgrade(&alices)]);
    let get = id(&table, "get");
    let ask = |link: &mut LinkCore| {
        let request = Bytes::from_static(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
        let kind = OpKind::Fill { command: get, key_at: 1, may_join: false, asks_encoding: false };
        let op = Op { seq: Seq(1), bytes: 0..request.len() as u32, kind };
        link.submit(&Job { port: Arc::new(Port::default()), bytes: request, ops: smallvec![op] }, Time::ZERO);
        send_all(link);
    };
    let come = |link: &mut LinkCore, frames: &[&[u8]]| {
        for bytes in frames {
            assert_eq!(link.frame(Frame { bytes, shared: None }, Time::ZERO), Ok(()));
        }
    };
    let held = |partition: &Partition| partition.read(b"k", Variant::bare(get), || Time::ZERO).is_some();
    ask(&mut bob);
    ask(&mut alice);
    come(&mut alice, &[b":-1\r\n", b"$3\r\nnew\r\n"]);
    assert!(held(&alices), "a client of hers may hit it now");
    come(&mut alice, &[b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"]);
    come(&mut bob, &[b":-1\r\n", b"$3\r\nold\r\n"]);
    assert!(!held(&bobs), "older than what her client has seen");
    ask(&mut bob);
    come(&mut bob, &[b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n", b":-1\r\n", b"$5\r\nnewer\r\n"]);
    assert!(held(&bobs), "a later read is kept");
}
