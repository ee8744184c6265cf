//! Reads of one key each that come one after the other and that L1 answers at once: what most pipelines of a cache's clients
//! are.
//!
//! A request that is as the one before it need not be looked at as if it were the first: the command, who may call it and what
//! is done with it are known. Only its key is new. And as the keys of several are known before the first is looked for, the
//! looks at memory for all of them are made side by side ([`Partition::answer_run`]).
//!
//! Each is a hit of its own, at a moment of its own, in order; the first that is none, or cannot leave at once, ends it.

use super::put::put_hit;
use super::{Muted, Session, Surroundings};
use crate::l1::{Answered, Leaves, RUN_MAX, Variant};
use crate::outgoing::Outgoing;
use larder_protocol::cache::ReadMode;
use larder_protocol::scan::Ahead;
use larder_protocol::shape::Protocol;
use larder_protocol::table::Command;

/// So many requests are looked at together.
pub const AHEAD_MAX: usize = RUN_MAX;

// === impl Session (hits) ===

impl Session {
    /// True if nothing keeps a hit from being answered at once.
    #[inline]
    pub fn answers_hits(&self, around: &Surroundings<'_>) -> bool {
        around.partition.is_some() && self.slots.is_empty() && self.muted == Muted::No && self.reads == ReadMode::Cached
    }

    /// Which replies may leave at once.
    #[inline]
    pub(super) fn leaves(&self, around: &Surroundings<'_>) -> Leaves {
        Leaves {
            same_only: self.protocol == Protocol::Resp2 && !around.upstream_is_resp2,
            with_deadline: around.refresh_ahead.is_none(),
        }
    }

    /// Answers the first of `requests`, which stand in `input` and are reads of `command`
    /// ([`Command::reads_its_argument`]), as long as L1 has their replies, each the same in both protocols, and less than
    /// `output_max` waits. Returns how many were answered. Only where [`Session::answers_hits`].
    #[inline]
    pub fn answer_hits(
        &mut self,
        command: &Command,
        input: &[u8],
        requests: &[Ahead],
        output_max: usize,
        around: &Surroundings<'_>,
        out: &mut Outgoing,
    ) -> usize {
        let Some(partition) = around.partition else { return 0 };
        let leaves = self.leaves(around);
        let key_of = |request: &Ahead| {
            let start = request.start as usize;
            input.get(start..start + request.len as usize).unwrap_or_default()
        };
        let mut hashes = [0; AHEAD_MAX];
        let mut is_followed = false;
        for (hash, request) in hashes.iter_mut().zip(requests) {
            *hash = partition.hash_of(key_of(request));
            is_followed |= around.counters.watcher.follows(*hash);
        }
        let hashes = &hashes[..requests.len().min(AHEAD_MAX)];
        let variant = Variant::bare(command.id);
        let mut answered = partition.answer_run(
            hashes,
            |n| key_of(&requests[n]),
            variant,
            leaves,
            around.now,
            |reply| {
                reply.put_to(out.tail());
                out.len() < output_max
            },
        );
        for (request, hash) in requests.iter().zip(hashes).skip(answered) {
            if out.len() >= output_max {
                break;
            }
            match partition
                .answer(key_of(request), *hash, variant, leaves, around.now, |reply| reply.put_to(out.tail()))
            {
                Some(Answered::Put) => {}
                // It is long, or packed.
                Some(Answered::Hit(hit)) if leaves.allows(&hit) => {
                    if !put_hit(hit, None, out) {
                        break;
                    }
                }
                _ => break,
            }
            answered += 1;
        }
        around.counters.hits.add(answered as u64);
        if is_followed || !around.counters.watcher.pass(answered as u64) {
            for (request, hash) in requests.iter().zip(hashes).take(answered) {
                around.counters.watcher.read_hashed(partition.scope(), key_of(request), *hash, true, around.now);
            }
        }
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;
    use crate::l1::{Cause, Filler, L1, L1Settings, Reader};
    use crate::metrics::Counters;
    use crate::outgoing::SHARED_BYTES_MIN;
    use larder_protocol::args::OwnedArgs;
    use larder_protocol::scan::{RequestLimits, RequestScanner};
    use larder_protocol::table::Table;
    use std::cell::Cell;

    const FIRST: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\n-\r\n";

    /// What a client gets for GETs of these keys, and how many were answered at once; twice, as the second time finds the
    /// entries elsewhere.
    fn gets(filler: &Filler, keys: &[&str], protocol: Protocol, output_max: usize, now: u64) -> (String, usize) {
        let (table, counters) = (Table::builtin(), Counters::default());
        let at = Cell::new(Time::from_micros(now));
        let around = Surroundings {
            table: &table,
            partition: Some(filler.partition()),
            stale: None,
            upstream_is_resp2: false,
            has_field_ttls: false,
            fences: false,
            settles: false,
            keeps: true,
            reader: Reader(1),
            refresh_ahead: None,
            is_big: &|_| false,
            now: &|| at.get(),
            counters: &counters,
        };
        let mut session = Session::new();
        session.set_protocol(protocol);
        assert!(session.answers_hits(&around));
        let input: Vec<u8> = keys.iter().flat_map(|key| OwnedArgs::new(["GET", key]).args().bytes().to_vec()).collect();
        let mut scanner = RequestScanner::new(RequestLimits::default());
        scanner.scan(&[FIRST, &input].concat()).unwrap();
        let mut requests = [Ahead::default(); AHEAD_MAX];
        let count = scanner.ahead(&input, &mut requests);
        let command = table.lookup(b"get").unwrap();
        assert!(command.reads_its_argument());
        let mut once = || {
            let mut out = Outgoing::default();
            let answered = session.answer_hits(command, &input, &requests[..count], output_max, &around, &mut out);
            let mut got = Vec::new();
            while !out.is_empty() {
                let piece = out.first().0.to_vec();
                out.advance(piece.len());
                got.extend(piece);
            }
            (String::from_utf8(got).unwrap(), answered)
        };
        let (first, second) = (once(), once());
        assert_eq!(first, second);
        assert_eq!(counters.hits.value(), 2 * first.1 as u64);
        first
    }

    fn filled() -> Filler {
        let l1 = L1::new(L1Settings {
            size_bytes_max: 1 << 24,
            entry_bytes_max: 1 << 20,
            variants_per_key_max: 4,
            compress_min_bytes: None,
        });
        let (_, mut filler) = l1.partition();
        let get = Variant::bare(Table::builtin().lookup(b"get").unwrap().id);
        let large = format!("${SHARED_BYTES_MIN}\r\n{}\r\n", "x".repeat(SHARED_BYTES_MIN));
        let dies = Time::from_micros(50);
        for (key, reply, deadline) in [
            ("a", "$1\r\n1\r\n", Time::MAX),
            ("b", "$2\r\n22\r\n", Time::MAX),
            ("nil", "_\r\n", Time::MAX),
            ("dying", "$1\r\nd\r\n", dies),
            ("large", &large, Time::MAX),
        ] {
            filler.fill(key.as_bytes(), get, reply.as_bytes(), deadline, Time::ZERO);
        }
        filler
    }

    #[test]
    fn hits_are_answered_in_order_until_one_is_none() {
        let mut filler = filled();
        let got = |filler: &Filler, keys: &[&str]| gets(filler, keys, Protocol::Resp2, usize::MAX, 1);
        assert_eq!(got(&filler, &["a", "b", "a"]), ("$1\r\n1\r\n$2\r\n22\r\n$1\r\n1\r\n".into(), 3));
        assert_eq!(got(&filler, &["b", "absent", "a"]), ("$2\r\n22\r\n".into(), 1));
        assert_eq!(got(&filler, &["absent"]), (String::new(), 0));
        assert_eq!(got(&filler, &["a"; 40]).1, AHEAD_MAX);
        assert_eq!(gets(&filler, &["a"; 9], Protocol::Resp2, 8, 1).1, 2, "too much waits");
        let (text, answered) = got(&filler, &["a", "large", "b"]);
        assert_eq!(
            (answered, text.starts_with("$1\r\n1\r\n$16384\r\nx"), text.ends_with("x\r\n$2\r\n22\r\n")),
            (3, true, true)
        );
        filler.remove(b"b", Cause::DataChanged, Time::ZERO);
        assert_eq!(got(&filler, &["a", "b", "a"]).1, 1);
    }

    #[test]
    fn what_is_another_in_resp2_and_what_has_died_is_left_to_the_general_way() {
        let filler = filled();
        assert_eq!(gets(&filler, &["a", "nil", "a"], Protocol::Resp2, usize::MAX, 1).1, 1);
        assert_eq!(gets(&filler, &["a", "nil"], Protocol::Resp3, usize::MAX, 1), ("$1\r\n1\r\n_\r\n".into(), 2));
        assert_eq!(gets(&filler, &["dying", "a"], Protocol::Resp2, usize::MAX, 49).1, 2);
        assert_eq!(gets(&filler, &["dying", "a"], Protocol::Resp2, usize::MAX, 50).1, 0);
    }
}
