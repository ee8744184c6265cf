//! No cacheable answer changes without a push: what the table calls cacheable is so on real servers.
//!
//! A tracking connection runs every cacheable read on every key; another connection runs one command; then the tracking
//! connection reads again. Each key with an answer that differs must have been named by an invalidation in between.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use larder_protocol::args::OwnedArgs;
use larder_protocol::shape::Protocol;
use larder_protocol::table::reply::Node;
use larder_protocol::table::{Bypass, Cacheability, Class, Flags, Group, Resolved, Table};
use support::grammar::Grammar;
use support::{Connection, Random, Server, content};

/// Invocations made up for each writing command and server.
const ROUNDS: usize = 12;

/// Cacheable reads; `K` stands for the key.
const READS: &[&str] = &[
    "GET K",
    "STRLEN K",
    "GETRANGE K 0 -1",
    "BITCOUNT K",
    "BITPOS K 1",
    "GETBIT K 17",
    "BITFIELD_RO K GET u8 0",
    "TYPE K",
    "EXISTS K",
    "MGET K",
    "EXPIRETIME K",
    "PEXPIRETIME K",
    "LRANGE K 0 -1",
    "LLEN K",
    "LINDEX K 0",
    "LPOS K a",
    "SMEMBERS K",
    "SCARD K",
    "SISMEMBER K a",
    "SMISMEMBER K a b",
    "SINTER K",
    "SUNION K",
    "SDIFF K",
    "SINTERCARD 1 K",
    "HGETALL K",
    "HKEYS K",
    "HVALS K",
    "HLEN K",
    "HGET K a",
    "HMGET K a b",
    "HEXISTS K a",
    "HSTRLEN K a",
    "HEXPIRETIME K FIELDS 2 a b",
    "HPEXPIRETIME K FIELDS 2 a b",
    "ZRANGE K 0 -1 WITHSCORES",
    "ZREVRANGE K 0 -1",
    "ZRANGEBYSCORE K -inf +inf",
    "ZREVRANGEBYSCORE K +inf -inf",
    "ZRANGEBYLEX K - +",
    "ZREVRANGEBYLEX K + -",
    "ZCARD K",
    "ZCOUNT K -inf +inf",
    "ZLEXCOUNT K - +",
    "ZSCORE K a",
    "ZMSCORE K a b",
    "ZRANK K a",
    "ZREVRANK K a",
    "ZUNION 1 K",
    "ZINTER 1 K",
    "ZDIFF 1 K",
    "ZINTERCARD 1 K",
    "GEOPOS K Palermo",
    "GEOHASH K Palermo",
    "GEODIST K Palermo Catania",
    "GEOSEARCH K FROMLONLAT 15 37 BYRADIUS 400 km",
    "GEORADIUS_RO K 15 37 400 km",
    "GEORADIUSBYMEMBER_RO K Palermo 400 km",
    "XRANGE K - +",
    "XREVRANGE K + -",
    "XLEN K",
    "SUBSTR K 0 -1",
];

/// All keys that the content has, and some that it lacks.
const KEYS: &[&str] = &[
    "str", "num", "float", "bits", "ex", "list", "list1", "set", "set1", "ints", "hash", "hash1", "zset", "zset1",
    "zinf", "lex", "hll", "hll2", "geo", "stream", "stream1", "missing",
];

/// A tracking connection and what it has read.
struct Reader {
    connection: Connection,
    reads: Vec<(&'static str, Vec<&'static str>)>,
}

// === impl Reader ===

impl Reader {
    fn new(server: &Server, table: &Table) -> Self {
        let mut connection = server.connect_resp3();
        connection.must(&["CLIENT", "TRACKING", "ON"]);
        let mut reads = Vec::new();
        for key in KEYS {
            for read in READS {
                let parts: Vec<&str> = read.split(' ').map(|part| if part == "K" { key } else { part }).collect();
                let owned = OwnedArgs::new(&parts);
                let Resolved::Known(command) = table.resolve(owned.args()) else { panic!("{read}") };
                let class = command.classify(owned.args(), Protocol::Resp3);
                assert!(
                    matches!(class, Class::Read(Cacheability::Single | Cacheability::PerKey(_))),
                    "{read}: {class:?}"
                );
                if command.on_upstream {
                    reads.push((*key, parts));
                }
            }
        }
        for row in
            table.iter().filter(|row| matches!(row.class, Class::Read(Cacheability::Single | Cacheability::PerKey(_))))
        {
            let name = row.name.to_ascii_uppercase();
            assert!(READS.iter().any(|read| read.split(' ').next() == Some(&name)), "{name} is not among the reads");
        }
        Self { connection, reads }
    }

    /// The answers to all reads. Pushes that come before the last of them are about earlier reads.
    fn read_all(&mut self) -> (Vec<Vec<u8>>, BTreeSet<String>) {
        let lines: Vec<&[&str]> = self.reads.iter().map(|(_, parts)| parts.as_slice()).collect();
        self.connection.send(&lines);
        let mut invalidated = BTreeSet::new();
        let mut answers = Vec::new();
        while answers.len() < self.reads.len() {
            let reply = self.connection.reply();
            if reply.starts_with(b">") { invalidated.extend(keys_of(&reply)) } else { answers.push(reply) }
        }
        (answers, invalidated)
    }
}

/// The keys of an invalidation; every key for a null one.
fn keys_of(push: &[u8]) -> Vec<String> {
    let node = Node::read(push).expect("a well-formed reply");
    match &node.items()[1] {
        Node::Null => KEYS.iter().map(|key| (*key).to_owned()).collect(),
        keys => {
            keys.items().iter().filter_map(Node::text).map(|key| String::from_utf8_lossy(key).into_owned()).collect()
        }
    }
}

/// The lines of an answer, sorted: servers may tell the elements of a set or hash in another order at any time.
fn canonical(answer: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = answer.split(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    lines
}

/// Commands that may change what a key holds: everything with keys that is not pure administration.
fn may_write(table: &Table, name: &str) -> bool {
    let Some(row) = table.by_full_name(name) else { return false };
    let keyed = !row.key_specs.is_empty() && !matches!(row.group, Group::Scripting | Group::Server | Group::Pubsub);
    let effect = matches!(row.class, Class::Read(Cacheability::No(Bypass::HasEffect | Bypass::NotPushed)));
    keyed
        && (row.flags.contains(Flags::WRITE) || effect || row.name == "pfcount")
        && !matches!(name, "migrate" | "move")
}

#[test]
fn cacheable_answers_change_only_with_a_push() {
    for server in Server::all() {
        let mut writer = server.connect_resp3();
        let table = Table::builtin().completed(&writer.must(&["COMMAND"])).expect("a well-formed reply");
        let grammar = Grammar::read(&mut writer);
        let dump = content::dump(&mut writer);
        let mut reader = Reader::new(&server, &table);
        let mut changes: BTreeMap<&str, usize> = BTreeMap::new();
        for (n, name) in grammar.names().filter(|name| may_write(&table, name)).enumerate() {
            let seed = n as u64 + 5000;
            let mut random = Random(seed);
            for round in 0..ROUNDS {
                writer.prepare(content::LINES);
                let (before, _) = reader.read_all();
                let mut value = |argument: &_, random: &mut _| content::value(name, argument, random, &dump);
                let parts = grammar.invocation(name, &mut random, &mut value);
                if content::may_wait_for_ever(&table, &parts) {
                    continue;
                }
                writer.call(&parts);
                // A PING first: pushes for the write have all been sent before its answer.
                reader.connection.send(&[["PING"]]);
                let mut invalidated = BTreeSet::new();
                loop {
                    let reply = reader.connection.reply();
                    if !reply.starts_with(b">") {
                        break;
                    }
                    invalidated.extend(keys_of(&reply));
                }
                let (after, _) = reader.read_all();
                for (i, (key, read)) in
                    reader.reads.iter().enumerate().filter(|(i, _)| canonical(&before[*i]) != canonical(&after[*i]))
                {
                    *changes.entry(name).or_default() += 1;
                    let shown: Vec<_> = parts.iter().map(|part| String::from_utf8_lossy(part)).collect();
                    let (before, after) = (before[i].escape_ascii(), after[i].escape_ascii());
                    assert!(
                        invalidated.contains(*key),
                        "{} seed {seed} round {round}: {shown:?} changed {read:?} without a push: {before} -> {after}",
                        server.name
                    );
                }
            }
        }
        assert!(changes.len() > 50, "{}: too few commands changed anything: {changes:?}", server.name);
    }
}
