//! The ordered link: what becomes of a batch of reads that L1 could not answer, from the client's batch to its port. No
//! sockets: what would be written is thrown away, and the replies are there already.

use super::{bulk, keys};
use bytes::Bytes;
use criterion::{Criterion, Throughput};
use larder::clock::Time;
use larder::l1::{L1, L1Settings};
use larder::port::{Port, Seq, Taken};
use larder::upstream::admission::Admission;
use larder::upstream::link::{Caching, Frame, Job, LinkCore, LinkLimits, Op, OpKind};
use larder_protocol::args::OwnedArgs;
use larder_protocol::table::Table;
use std::sync::Arc;
use std::time::Duration;

/// Requests in one batch of a client.
const BATCH: usize = 16;
const NOW: Time = Time::from_micros(1);

/// A batch of reads: forwarded only; filled; and filled where others are to go for it.
pub(super) fn fill(c: &mut Criterion) {
    let mut group = c.benchmark_group("link");
    group.throughput(Throughput::Elements(BATCH as u64));
    let table = Arc::new(Table::builtin());
    let get = table.lookup(b"get").expect("the built-in table has GET").id;
    let fill = OpKind::Fill { command: get, key_at: 1, may_join: true, asks_encoding: false };
    for (name, kind, size_bytes_max) in [
        ("forward, 64 B", OpKind::Read, 1 << 30),
        ("fill, 64 B", fill, 1 << 30),
        ("fill and evict, 64 B", fill, 2 << 20),
    ] {
        let settings = L1Settings {
            size_bytes_max,
            entry_bytes_max: 64 << 10,
            variants_per_key_max: 64,
            compress_min_bytes: None,
        };
        let mut link = Link::new(&table, settings);
        let jobs: Vec<Job> = keys().chunks_exact(BATCH).map(|keys| job(&link.port, keys, kind)).collect();
        let mut at = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                at = (at + 1) % jobs.len();
                link.converse(&jobs[at], kind != OpKind::Read)
            });
        });
    }
    group.finish();
}

fn job(port: &Arc<Port>, keys: &[Vec<u8>], kind: OpKind) -> Job {
    let (mut bytes, mut ops) = (Vec::new(), Vec::new());
    for (number, key) in (0..).zip(keys) {
        let start = bytes.len() as u32;
        bytes.extend_from_slice(OwnedArgs::new([b"GET", &key[..]]).args().bytes());
        ops.push(Op { seq: Seq(number), bytes: start..bytes.len() as u32, kind });
    }
    Job { port: port.clone(), bytes: Bytes::from(bytes), ops: ops.into() }
}

/// A link, and the client whose requests it takes.
struct Link {
    core: LinkCore,
    port: Arc<Port>,
    taken: Taken,
    value: Vec<u8>,
}

// === impl Link ===

impl Link {
    fn new(table: &Arc<Table>, settings: L1Settings) -> Self {
        let limits = LinkLimits {
            in_flight_max: 65_536,
            in_flight_bytes_max: 1 << 28,
            reply_max: Duration::from_secs(10),
            write_max: Duration::from_secs(10),
            untracked_ttl: None,
            admission: Admission::Always,
            stale_longest: None,
        };
        let (_, filler) = L1::new(settings).partition();
        let mut core = LinkCore::new(filler, table.clone(), limits);
        core.connected(Caching::Tracked, table.clone());
        Self { core, port: Arc::default(), taken: Taken::default(), value: bulk(64) }
    }

    /// One batch and its replies; returns how many were left in the port.
    fn converse(&mut self, job: &Job, fills: bool) -> usize {
        self.core.submit(job, NOW);
        let outgoing = self.core.outgoing();
        outgoing.advance(outgoing.len());
        for _ in &job.ops {
            let pttl = fills.then_some(&b":60000\r\n"[..]);
            for bytes in pttl.into_iter().chain([&self.value[..]]) {
                let accepted = self.core.frame(Frame { bytes, shared: None }, NOW);
                assert!(accepted.is_ok(), "the link has asked for this reply");
            }
        }
        self.core.wake_clients();
        self.port.take(&mut self.taken);
        let count = self.taken.deliveries.len();
        self.taken.recycle();
        count
    }
}
