//! Single orders of events, each of which once went wrong or would be long in coming by chance.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::Time;
use larder::l1::{L1, L1Settings, Variant};
use larder::port::{Port, Seq};
use larder::upstream::link::{Caching, Each, Frame, Job, LinkCore, LinkLimits, Op, OpKind};
use larder_protocol::table::Table;
use smallvec::smallvec;

/// A key's deadline is not the one from before a FLUSHALL that came between two of an MGET's PTTLs: after it the key was
/// written again, with a deadline, and no longer tracked.
#[test]
fn a_null_push_between_the_pttls_of_an_mget_voids_the_earlier_one() {
    let table = Arc::new(Table::builtin());
    let id = |name: &str| table.lookup(name.as_bytes()).map(|command| command.id).expect("a built-in command");
    let settings = L1Settings { size_bytes_max: 1 << 20, entry_bytes_max: 1000, variants_per_key_max: 4 };
    let (partition, filler) = L1::new(settings).partition();
    let limits = LinkLimits {
        in_flight_max: 100,
        in_flight_bytes_max: 10_000,
        reply_max: Duration::from_secs(1),
        untracked_ttl: None,
    };
    let mut link = LinkCore::new(filler, table.clone(), limits);
    link.connected(Caching::Tracked, table.clone());
    let now = Time::ZERO;
    let request = Bytes::from_static(b"*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$1\r\nb\r\n");
    let kind = OpKind::FillEach(Each::Mget { get: id("get"), mget: id("mget") });
    let op = Op { seq: Seq(1), bytes: 0..request.len() as u32, kind };
    link.submit(&Job { port: Arc::new(Port::default()), bytes: request, ops: smallvec![op] }, now);
    let frames: [&[u8]; 4] = [b":-1\r\n", b">2\r\n$10\r\ninvalidate\r\n_\r\n", b":-2\r\n", b"*2\r\n$3\r\nnew\r\n_\r\n"];
    for bytes in frames {
        assert_eq!(link.frame(Frame { bytes, shared: None }, now), Ok(()));
    }
    assert!(partition.read(b"a", Variant::bare(id("get")), || now).is_none(), "kept without its deadline");
    assert!(partition.read(b"b", Variant::bare(id("mget")), || now).is_some());
}
