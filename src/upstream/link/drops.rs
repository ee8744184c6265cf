//! Removals that an operator has ordered.
//!
//! They take their place among the requests of the link: what was in L1, or on its way into it, when the order came, is
//! not answered afterwards. Reads under way stay what they are for those who wait for them, and are kept no more.

use super::soft::{keys_of, named};
use super::{Frame, LinkCore};
use crate::clock::Time;
use crate::l1::Cause;
use crate::port::{Port, Seq};
use larder_protocol::args::Args;
use std::sync::Arc;

// === impl LinkCore ===

impl LinkCore {
    /// Drops the keys that `request` names behind its first argument; answers with how many were in L1.
    pub(super) fn drop_keys(&mut self, port: &Arc<Port>, seq: Seq, request: &[u8], cause: Cause, now: Time) {
        let mut dropped = 0;
        if let Some(ranges) = self.scan(request) {
            for key in Args::new(request, &ranges).iter().skip(1) {
                self.under_way.keep_nothing_of(key);
                dropped += u64::from(self.remove(key, cause, now));
            }
            self.scanner_gives_back(ranges);
        }
        self.hand_on(port, seq, Frame { bytes: format!(":{dropped}\r\n").as_bytes(), shared: None });
    }

    /// Empties the partition.
    pub(super) fn drop_all(&mut self, port: &Arc<Port>, seq: Seq, cause: Cause) {
        self.filler.empty(cause);
        self.feed.tell(None, cause);
        self.counts.emptied += 1;
        self.under_way.keep_nothing();
        self.hand_on(port, seq, Frame { bytes: b"+OK\r\n", shared: None });
    }

    /// Removes the keys that the last element of a reply names. (The pushes about them come behind it.)
    pub(super) fn remove_named(&mut self, frame: Frame<'_>, cause: Cause, now: Time) {
        let Some((cursor, count)) = named(frame) else { return };
        for key in keys_of(cursor, count) {
            self.written(key, cause, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l1::{L1, L1Settings, Partition};
    use crate::outgoing::Outgoing;
    use crate::port::{Delivery, Taken};
    use crate::upstream::link::{Caching, Job, LinkLimits, Op, OpKind};
    use bytes::Bytes;
    use larder_protocol::args::OwnedArgs;
    use larder_protocol::table::Table;
    use smallvec::smallvec;
    use std::time::Duration;

    const NOW: Time = Time::from_micros(1);

    fn link() -> (Arc<Partition>, LinkCore) {
        let l1 = L1::new(L1Settings {
            size_bytes_max: 1 << 20,
            entry_bytes_max: 4096,
            variants_per_key_max: 3,
            compress_min_bytes: None,
        });
        let (partition, filler) = l1.partition();
        let limits = LinkLimits {
            in_flight_max: 100,
            in_flight_bytes_max: 1 << 20,
            reply_max: Duration::from_secs(1),
            write_max: Duration::from_secs(1),
            untracked_ttl: None,
            admission: crate::upstream::admission::Admission::Always,
            stale_longest: None,
        };
        let table = Arc::new(Table::builtin());
        let mut core = LinkCore::new(filler, table.clone(), limits);
        core.connected(Caching::Tracked, table);
        (partition, core)
    }

    fn submit(core: &mut LinkCore, port: &Arc<Port>, seq: u64, kind: OpKind, words: &[&str]) {
        let request = OwnedArgs::new(words);
        let bytes = Bytes::copy_from_slice(request.args().bytes());
        let op = Op { seq: Seq(seq), bytes: 0..bytes.len() as u32, kind };
        core.submit(&Job { port: port.clone(), bytes, ops: smallvec![op] }, NOW);
    }

    fn fill_kind() -> OpKind {
        let command = Table::builtin().lookup(b"get").map(|c| c.id).unwrap();
        OpKind::Fill { command, key_at: 1, may_join: true, asks_encoding: false }
    }

    /// Everything has been sent by now.
    fn receive(core: &mut LinkCore, frames: &[&[u8]]) {
        *core.outgoing() = Outgoing::default();
        for bytes in frames {
            core.frame(Frame { bytes, shared: None }, NOW).unwrap();
        }
    }

    /// The small replies that were left, each with its number.
    fn replies(port: &Port) -> Vec<(u64, String)> {
        let mut taken = Taken::default();
        port.take(&mut taken);
        let mut at = 0;
        let reply = |delivery: &Delivery| match delivery {
            Delivery::Small { seq, len } => {
                at += len;
                (seq.0, String::from_utf8_lossy(&taken.bytes[at - len..at]).trim().to_owned())
            }
            other => panic!("{other:?}"),
        };
        taken.deliveries.iter().map(reply).collect()
    }

    #[test]
    fn drops_what_is_there_and_counts_it() {
        let (partition, mut core) = link();
        let port: Arc<Port> = Arc::default();
        for (seq, key) in [(1, "a"), (2, "b")] {
            submit(&mut core, &port, seq, fill_kind(), &["GET", key]);
            receive(&mut core, &[b":-1\r\n", b"$1\r\nv\r\n"]);
        }
        assert!(partition.facts(b"a").is_some() && partition.facts(b"b").is_some());
        submit(&mut core, &port, 3, OpKind::Drop(Cause::Manual), &["DROP", "a", "a", "nosuch"]);
        assert!(partition.facts(b"a").is_none() && partition.facts(b"b").is_some());
        assert_eq!(replies(&port).last().unwrap(), &(3, ":1".to_owned()));
        submit(&mut core, &port, 4, OpKind::DropAll(Cause::Manual), &["DROP"]);
        assert!(partition.facts(b"b").is_none());
        assert_eq!(replies(&port), [(4, "+OK".to_owned())]);
        assert_eq!(partition.store().removed(Cause::Manual), 2);
        assert_eq!(core.in_flight(), (0, 0));
    }

    #[test]
    fn the_reply_of_a_script_names_what_leaves() {
        let (partition, mut core) = link();
        let port: Arc<Port> = Arc::default();
        for (seq, key) in [(1, "a"), (2, "b")] {
            submit(&mut core, &port, seq, fill_kind(), &["GET", key]);
            receive(&mut core, &[b":-1\r\n", b"$1\r\nv\r\n"]);
        }
        submit(&mut core, &port, 3, OpKind::Named(Cause::TagBased), &["EVALSHA", "x", "0"]);
        receive(&mut core, &[b"*3\r\n:2\r\n*1\r\n$1\r\nb\r\n*2\r\n$1\r\na\r\n$1\r\nx\r\n"]);
        assert!(partition.facts(b"a").is_none() && partition.facts(b"b").is_some());
        assert_eq!(partition.store().removed(Cause::TagBased), 1);
        submit(&mut core, &port, 4, OpKind::Named(Cause::TagBased), &["EVALSHA", "x", "0"]);
        receive(&mut core, &[b"-ERR no\r\n"]);
        assert!(partition.facts(b"b").is_some());
    }

    #[test]
    fn what_is_under_way_is_answered_and_not_kept() {
        for orders in [(OpKind::Drop(Cause::PatternBased), "k"), (OpKind::DropAll(Cause::Manual), "")] {
            // The order comes before, between and behind the two replies of the read.
            for position in 0..=2 {
                let (partition, mut core) = link();
                let port: Arc<Port> = Arc::default();
                submit(&mut core, &port, 1, fill_kind(), &["GET", "k"]);
                for (at, frame) in [&b":-1\r\n"[..], b"$1\r\nv\r\n"].into_iter().enumerate() {
                    if at == position {
                        submit(&mut core, &port, 2, orders.0, &["DROP", orders.1]);
                    }
                    receive(&mut core, &[frame]);
                }
                if position == 2 {
                    submit(&mut core, &port, 2, orders.0, &["DROP", orders.1]);
                }
                assert!(partition.facts(b"k").is_none(), "{orders:?} {position}");
                assert!(replies(&port).contains(&(1, "$1\r\nv".to_owned())));
                submit(&mut core, &port, 3, fill_kind(), &["GET", "k"]);
                receive(&mut core, &[b":-1\r\n", b"$1\r\nv\r\n"]);
                assert!(partition.facts(b"k").is_some(), "a later read is kept");
            }
        }
    }
}
