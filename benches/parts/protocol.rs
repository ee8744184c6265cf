//! From bytes to a decision, and from RESP3 to RESP2.

use super::{bulk, keys};
use criterion::{Criterion, Throughput};
use larder_protocol::args::OwnedArgs;
use larder_protocol::scan::{RequestLimits, RequestScanner, Step};
use larder_protocol::shape::{Protocol, Shape, to_resp2};
use larder_protocol::table::{Resolved, Table};
use std::hint::black_box;

/// Requests in one batch, as a client that pipelines sends them.
const BATCH: usize = 16;

/// Finds the requests of a batch and their arguments.
pub(super) fn scan(c: &mut Criterion) {
    let mut group = c.benchmark_group("scan");
    let value = "x".repeat(64);
    let batch = |words: &dyn Fn(&[u8]) -> OwnedArgs| -> Vec<u8> {
        keys().iter().take(BATCH).flat_map(|key| words(key).args().bytes().to_vec()).collect()
    };
    let batches = [
        ("GET", batch(&|key| OwnedArgs::new([b"GET", key]))),
        ("SET 64 B", batch(&|key| OwnedArgs::new([b"SET", key, value.as_bytes()]))),
        ("MGET of 10", batch(&|key| OwnedArgs::new([&b"MGET"[..]].into_iter().chain([key; 10])))),
        ("inline GET", b"GET key:000000000000\r\n".repeat(BATCH)),
    ];
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, batch) in &batches {
        let mut scanner = RequestScanner::new(RequestLimits::default());
        group.bench_function(*name, |b| b.iter(|| scan_all(&mut scanner, black_box(batch))));
    }
    let mut scanner = RequestScanner::new(RequestLimits::default());
    let get = &batches[0].1;
    group.bench_function("GET, cut in the middle of each request", |b| {
        b.iter(|| {
            for request in get.chunks(get.len() / BATCH) {
                let _ = black_box(scanner.scan(black_box(&request[..request.len() / 2])));
                let _ = black_box(scanner.scan(black_box(request)));
            }
        });
    });
    group.finish();
}

fn scan_all(scanner: &mut RequestScanner, mut rest: &[u8]) -> usize {
    let mut found = 0;
    while let Ok(Step::Request { len }) = scanner.scan(rest) {
        found += scanner.args(rest).len();
        rest = &rest[len..];
    }
    found
}

/// Finds a request's row in the command table, its class and its first key.
pub(super) fn classify(c: &mut Criterion) {
    let mut group = c.benchmark_group("classify");
    let table = Table::builtin();
    let requests: [&[&str]; 5] = [
        &["GET", "key:000000000000"],
        &["hgetall", "key:000000000000"],
        &["SET", "key:000000000000", "value", "EX", "10"],
        &["XREAD", "COUNT", "2", "STREAMS", "key:000000000000", "0"],
        &["CONFIG", "GET", "maxmemory"],
    ];
    for words in requests {
        let request = OwnedArgs::new(words);
        group.bench_function(words[0], |b| {
            b.iter(|| {
                let args = black_box(request.args());
                match table.resolve(args) {
                    Resolved::Known(command) => {
                        Some((command.classify(args, Protocol::Resp2), command.first_key_at(args)))
                    }
                    _ => None,
                }
            });
        });
    }
    group.finish();
}

/// The shapes that differ: a map, doubles, nulls in an array; and a string, which passes through.
pub(super) fn shape(c: &mut Criterion) {
    let mut group = c.benchmark_group("RESP3 to RESP2");
    let map: Vec<u8> = [b"%10\r\n".to_vec(), [bulk(8), bulk(32)].concat().repeat(10)].concat();
    let doubles: Vec<u8> = [b"*20\r\n".to_vec(), b",3.14159\r\n".repeat(20)].concat();
    let nulls: Vec<u8> = [b"*20\r\n".to_vec(), [bulk(32), b"_\r\n".to_vec()].concat().repeat(10)].concat();
    for (name, reply) in [
        ("map of 10", map),
        ("array of 20 doubles", doubles),
        ("array, half nulls", nulls),
        ("string of 64 B", bulk(64)),
    ] {
        let mut out = Vec::new();
        group.throughput(Throughput::Bytes(reply.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                to_resp2(Shape::GENERIC, black_box(&reply), &mut out)
            });
        });
    }
    group.finish();
}
