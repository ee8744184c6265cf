//! A small database of every type, and values that fit it.

use larder_protocol::args::OwnedArgs;
use larder_protocol::table::{Class, Resolved, Table};

use super::grammar::Argument;
use super::{Connection, Random};

/// Commands that fill an empty database with every type, some of them with one element, with elements like numbers,
/// with infinite scores, in other encodings; a stream with groups, entries pending and deleted.
pub(crate) const LINES: &[&str] = &[
    "FLUSHDB",
    "SET str hello",
    "SET num 41",
    "SET float 3.25",
    "SETBIT bits 17 1",
    "SET ex v",
    "EXPIREAT ex 32503680000",
    "RPUSH list a b c a d 1 2 3",
    "RPUSH list1 a",
    "SADD set a b c 1 2",
    "SADD set1 a",
    "SADD ints 1 2 3",
    "HSET hash a 1 b 2.5 c x",
    "HSET hash1 a 1",
    "ZADD zset 1 a 2 b 2.5 c 3e20 d 0.1 e",
    "ZADD zset1 1 a",
    "ZADD zinf -inf a inf b 1 c",
    "ZADD lex 0 a 0 b 0 c 0 d",
    "PFADD hll a b c",
    "PFADD hll2 c d",
    "GEOADD geo 13.361389 38.115556 Palermo 15.087269 37.502669 Catania",
    "XADD stream 1-1 f v",
    "XADD stream 1-2 f v g w",
    "XADD stream 2-0 f v",
    "XGROUP CREATE stream g 0",
    "XGROUP CREATE stream empty $",
    "XREADGROUP GROUP g c COUNT 2 STREAMS stream >",
    "XDEL stream 1-2",
    "XADD stream1 1-1 f v",
    "XDEL stream1 1-1",
];

/// A serialized list, as `RESTORE` takes it. Leaves the content in the connection's database.
pub(crate) fn dump(connection: &mut Connection) -> Vec<u8> {
    connection.prepare(LINES);
    let dump = connection.must(&["DUMP", "list"]);
    let start = dump.iter().position(|byte| *byte == b'\n').expect("a bulk string") + 1;
    dump[start..dump.len() - 2].to_vec()
}

/// True for a request that may wait: no other connection would end it.
pub(crate) fn may_wait_for_ever(table: &Table, parts: &[Vec<u8>]) -> bool {
    let owned = OwnedArgs::new(parts);
    match table.resolve(owned.args()) {
        Resolved::Known(command) => command.class == Class::Blocking && command.blocks(owned.args()),
        _ => false,
    }
}

/// A value for an argument that makes success likely and failure possible.
pub(crate) fn value(command: &str, argument: &Argument, random: &mut Random, dump: &[u8]) -> Vec<u8> {
    let name = argument.name.to_ascii_lowercase();
    let options: &[&str] = match (&*argument.kind, &*name) {
        ("key", _) => return key(command, random),
        ("unix-time", name) if name.contains("milli") => &["32503680000000"],
        ("unix-time", _) => &["32503680000", "1"],
        (_, "serialized-value") => return dump.to_vec(),
        (_, "milliseconds" | "seconds" | "ttl") => &["100000", "0"],
        (_, "longitude" | "latitude") => &["15", "37.5"],
        (_, "radius" | "width" | "height") => &["300", "0.5"],
        (_, "member" | "member1" | "member2") if command.starts_with("geo") => &["Palermo", "Catania", "z"],
        (_, "bit") => &["0", "1"],
        (_, "cursor") => &["0"],
        (_, "operation") => &["AND", "NOT"],
        (_, "encoding") => &["u8", "i5"],
        (_, "min-idle-time") => &["0"],
        (_, "group" | "groupname") => &["g", "empty", "none"],
        (_, "consumer" | "consumername") => &["c", "d"],
        (_, "min" | "max" | "start" | "stop" | "end") if command.contains("lex") => &["-", "+", "[b", "(c"],
        (_, "start" | "end" | "min" | "max") if command.starts_with('x') => &["-", "+", "1", "2-0", "(1-1"],
        (_, "min" | "max") => &["-inf", "+inf", "1", "(2"],
        (_, "start" | "stop" | "end") => &["0", "1", "-1", "-2", "99"],
        (_, "id" | "lastid" | "last-id" | "id-selector" | "entries-added" | "max-deleted-id") => {
            &["0", "1-1", "9-9", "$", ">", "*"]
        }
        (_, "threshold") => &["1", "2-0"],
        ("double", _) => &["1", "2.5", "-0.1", "3e20"],
        ("integer", _) => &["1", "2", "0", "-1", "5"],
        (_, "pattern") => &["*", "a*", "nosort"],
        _ => &["a", "b", "1", "2.5", "z", "c"],
    };
    random.pick(options).as_bytes().to_vec()
}

fn key(command: &str, random: &mut Random) -> Vec<u8> {
    let any: &[&str] = &["str", "num", "list", "set", "hash", "zset", "geo", "stream", "missing", "hll", "ex", "ints"];
    let own: &[&str] = match command.as_bytes() {
        [b'l' | b'r', ..] if !command.starts_with("re") => &["list", "list1", "missing"],
        [b's', ..] if !command.starts_with("se") && !command.starts_with("so") => &["set", "set1", "ints", "missing"],
        [b'h', ..] => &["hash", "hash1", "missing"],
        [b'z', ..] => &["zset", "zset1", "zinf", "lex", "missing"],
        [b'x', ..] => &["stream", "stream1", "missing"],
        [b'g', b'e', b'o', ..] => &["geo", "missing"],
        [b'p', b'f', ..] => &["hll", "hll2", "missing"],
        [b'g' | b'i' | b'd' | b'a' | b'b', ..] => &["str", "num", "float", "bits", "missing"],
        _ => any,
    };
    let from = if random.below(10) == 0 { any } else { own };
    random.pick(from).as_bytes().to_vec()
}
