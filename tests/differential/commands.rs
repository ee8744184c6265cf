//! Which commands the generated stream is made of, in a small language, and how their arguments are drawn.
//!
//! A template is a line of words. A word is taken as it stands, except:
//! * `{k}` and the like draw an argument (see [`draw`]);
//! * `A|B|C` is one of these;
//! * `?word` is there every second time; `*word` is there one to four times;
//! * `a:b` within such a word stands for two arguments.

use crate::support::Rng;

/// Templates of every family whose replies can be compared. Named twice: asked for more often.
pub(crate) const TEMPLATES: &[&str] = &[
    // Strings
    "GET {s}",
    "GET {k}",
    "SET {s} {v}",
    "SET {s} {v} ?NX|XX ?GET ?EX:{ttl}",
    "SET {s} {v} KEEPTTL|GET|PX|EXAT",
    "SET {s} {n} ?PX:{ms}",
    "GETEX {s} ?EX:{ttl}",
    "GETEX {s} PERSIST",
    "GETDEL {s}",
    "GETSET {s} {v}",
    "MGET *{s}",
    "MGET *{k}",
    "MSET *{s}:{v}",
    "MSETNX *{s}:{v}",
    "SETNX {s} {v}",
    "SETEX {s} {ttl} {v}",
    "PSETEX {s} {ms} {v}",
    "APPEND {s} {v}",
    "STRLEN {s}",
    "SETRANGE {s} {i} {v}",
    "GETRANGE {s} {i} {i}",
    "SUBSTR {s} {i} {i}",
    "INCR|DECR {s}",
    "INCRBY|DECRBY {s} {n}",
    "INCRBYFLOAT {s} {d}",
    "LCS {s} {s} ?LEN ?IDX ?WITHMATCHLEN",
    "SETBIT {s} {c} 0|1",
    "GETBIT {s} {c}",
    "BITCOUNT {s} ?{i}:{i} ?BIT|BYTE",
    "BITPOS {s} 0|1 ?{i} ?{i}",
    "BITOP AND|OR|XOR|NOT {s} *{s}",
    "BITFIELD {s} GET u8 {c} SET i5 {c} {n} INCRBY u2 {c} 1 OVERFLOW SAT|WRAP|FAIL",
    "BITFIELD_RO {s} GET u8 {c}",
    // Keys
    "DEL *{k}",
    "UNLINK {k}",
    "EXISTS *{k}",
    "TOUCH *{k}",
    "TYPE {k}",
    "EXPIRE {k} {ttl} ?NX|XX|GT|LT",
    "PEXPIRE {k} 0|-1|5000000 ?NX|XX|GT|LT",
    "EXPIREAT {k} 1|33177117420 ?NX|XX|GT|LT",
    "PEXPIREAT {k} 1|33177117420000",
    "PERSIST {k}",
    "TTL|PTTL|EXPIRETIME|PEXPIRETIME {k}",
    "RENAME {k} {k}",
    "RENAMENX {k} {k}",
    "COPY {k} {k} ?REPLACE ?DB:{db}",
    "MOVE {k} {db}",
    "KEYS {pat}",
    "SCAN 0 ?MATCH:{pat} COUNT 10000 ?TYPE:string|list|hash",
    "SCAN 0 TYPE nosuch COUNT 10000",
    "RANDOMKEY",
    "DBSIZE",
    "DUMP {k}",
    "RESTORE {k} 0 notadump ?REPLACE",
    "OBJECT ENCODING|REFCOUNT|IDLETIME|FREQ {k}",
    "MEMORY USAGE {k}",
    "SORT {l} ?ALPHA ?DESC ?LIMIT:0:3",
    "SORT {t} ALPHA ?DESC ?STORE:{l}",
    "SORT_RO {l} ALPHA ?DESC ?GET:#",
    // Hashes
    "HGET {h} {f}",
    "HGET {h} {f}",
    "HSET {h} *{f}:{v}",
    "HSETNX {h} {f} {v}",
    "HMSET {h} *{f}:{v}",
    "HMGET {h} *{f}",
    "HGETALL {h}",
    "HDEL {h} *{f}",
    "HEXISTS|HSTRLEN {h} {f}",
    "HLEN {h}",
    "HKEYS|HVALS {h}",
    "HINCRBY {h} {f} {n}",
    "HINCRBYFLOAT {h} {f} {d}",
    "HRANDFIELD {h} ?{i} ?WITHVALUES",
    "HSCAN {h} 0 COUNT 10000",
    "HEXPIRE {h} {ttl} FIELDS 1 {f}",
    "HPERSIST {h} FIELDS 1 {f}",
    "HTTL|HPTTL {h} FIELDS 1 {f}",
    // Lists
    "LPUSH|RPUSH {l} *{v}",
    "LPUSHX|RPUSHX {l} *{v}",
    "LPOP|RPOP {l} ?{c}",
    "LRANGE {l} {i} {i}",
    "LRANGE {l} 0 -1",
    "LINDEX {l} {i}",
    "LLEN {l}",
    "LSET {l} {i} {v}",
    "LINSERT {l} BEFORE|AFTER {v} {v}",
    "LREM {l} {i} {v}",
    "LTRIM {l} {i} {i}",
    "LPOS {l} {v} ?RANK:{i} ?COUNT:{c} ?MAXLEN:{c}",
    "LMOVE {l} {l} LEFT|RIGHT LEFT|RIGHT",
    "RPOPLPUSH {l} {l}",
    "LMPOP 2 {l} {l} LEFT|RIGHT ?COUNT:{c}",
    // Sets
    "SADD {t} *{m}",
    "SREM {t} *{m}",
    "SMEMBERS {t}",
    "SISMEMBER {t} {m}",
    "SMISMEMBER {t} *{m}",
    "SCARD {t}",
    "SMOVE {t} {t} {m}",
    "SPOP {t} ?{c}",
    "SRANDMEMBER {t} ?{i}",
    "SINTER|SUNION|SDIFF *{t}",
    "SINTERSTORE|SUNIONSTORE|SDIFFSTORE {t} *{t}",
    "SINTERCARD 2 {t} {t} ?LIMIT:{c}",
    "SSCAN {t} 0 COUNT 10000",
    // Sorted sets
    "ZADD {z} *{d}:{m}",
    "ZADD {z} ?NX|XX ?GT|LT ?CH ?INCR {d} {m}",
    "ZREM {z} *{m}",
    "ZSCORE|ZRANK|ZREVRANK {z} {m}",
    "ZMSCORE {z} *{m}",
    "ZINCRBY {z} {d} {m}",
    "ZCARD {z}",
    "ZCOUNT {z} {min} {max}",
    "ZLEXCOUNT {z} -|[a +|[z",
    "ZRANGE|ZREVRANGE {z} {i} {i} ?WITHSCORES",
    "ZRANGE {z} {min} {max} BYSCORE ?REV ?LIMIT:{c}:{i} ?WITHSCORES",
    "ZRANGE {z} -|[a +|[z BYLEX ?LIMIT:{c}:{i}",
    "ZRANGEBYSCORE {z} {min} {max} ?WITHSCORES ?LIMIT:{c}:{i}",
    "ZREVRANGEBYSCORE {z} {max} {min} ?WITHSCORES",
    "ZRANGEBYLEX {z} -|[a +|[z",
    "ZREVRANGEBYLEX {z} +|[z -|[a",
    "ZRANGESTORE {z} {z} {i} {i}",
    "ZREMRANGEBYRANK {z} {i} {i}",
    "ZREMRANGEBYSCORE {z} {min} {max}",
    "ZREMRANGEBYLEX {z} -|[a +|[z",
    "ZPOPMIN|ZPOPMAX {z} ?{c}",
    "ZMPOP 1 {z} MIN|MAX ?COUNT:{c}",
    "ZINTER|ZUNION|ZDIFF 2 {z} {z} ?WITHSCORES",
    "ZINTER|ZUNION 2 {z} {t} WEIGHTS {d} {d} AGGREGATE SUM|MIN|MAX WITHSCORES",
    "ZINTERSTORE|ZUNIONSTORE|ZDIFFSTORE {z} 2 {z} {z}",
    "ZINTERCARD 2 {z} {z} ?LIMIT:{c}",
    "ZRANDMEMBER {z} ?{i} ?WITHSCORES",
    "ZSCAN {z} 0 COUNT 10000",
    // Geo
    "GEOADD {g} ?NX|XX ?CH {lon} {lat} {m}",
    "GEOPOS|GEOHASH {g} *{m}",
    "GEODIST {g} {m} {m} ?m|km|ft|mi",
    "GEOSEARCH {g} FROMLONLAT {lon} {lat} BYRADIUS 5000 km ASC|DESC ?COUNT:{c} ?WITHCOORD ?WITHDIST ?WITHHASH",
    "GEOSEARCH {g} FROMMEMBER {m} BYBOX 5000 5000 km ASC|DESC",
    "GEOSEARCHSTORE {g} {g} FROMLONLAT {lon} {lat} BYRADIUS 5000 km ?STOREDIST",
    "GEORADIUS {g} {lon} {lat} 5000 km ASC ?WITHDIST ?WITHCOORD",
    "GEORADIUSBYMEMBER_RO {g} {m} 5000 km ASC",
    // HyperLogLogs
    "PFADD {p} *{m}",
    "PFCOUNT *{p}",
    "PFMERGE {p} *{p}",
    // Streams
    "XADD {x} ?NOMKSTREAM ?MAXLEN:{c} {id} *{f}:{v}",
    "XADD {x} {id} {f} {v}",
    "XLEN {x}",
    "XRANGE {x} -|{id} +|{id} ?COUNT:{c}",
    "XREVRANGE {x} +|{id} -|{id} ?COUNT:{c}",
    "XREAD ?COUNT:{c} STREAMS {x} 0|{id}|$",
    "XREAD COUNT 2 STREAMS {x} {x} 0 0",
    "XDEL {x} *{id}",
    "XTRIM {x} MAXLEN|MINID {c}",
    "XSETID {x} {id}",
    "XGROUP CREATE {x} {grp} 0|$ ?MKSTREAM",
    "XGROUP SETID {x} {grp} 0",
    "XGROUP CREATECONSUMER|DELCONSUMER {x} {grp} {f}",
    "XGROUP DESTROY {x} {grp}",
    "XREADGROUP GROUP {grp} {f} ?COUNT:{c} ?NOACK STREAMS {x} >|0",
    "XACK {x} {grp} *{id}",
    "XPENDING {x} {grp}",
    "XPENDING {x} {grp} - + {c}",
    "XCLAIM {x} {grp} {f} 0 {id} ?JUSTID",
    "XAUTOCLAIM {x} {grp} {f} 0 0 ?COUNT:{c}",
    "XINFO STREAM {x}",
    "XINFO GROUPS {x}",
    "XINFO CONSUMERS {x} {grp}",
    // Scripts
    "EVAL return({KEYS[1],ARGV[1],1,{2}}) 1 {k} {v}",
    "EVAL return(redis.call('get',KEYS[1])) 1 {s}",
    "EVAL return(redis.call('set',KEYS[1],ARGV[1])) 1 {s} {v}",
    "EVAL return(redis.call('incr','s1')) 0",
    "EVAL return(redis.pcall('lpush',KEYS[1],ARGV[1])) 1 {k} {v}",
    "EVAL_RO return(redis.call('get',KEYS[1])) 1 {k}",
    "EVAL redis.setresp(3)return(redis.call('zscore',KEYS[1],'a')) 1 z1",
    "EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0",
    "SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db",
    "FCALL nosuch 0",
    "FUNCTION LIST|STATS",
    // Connection and server
    "PING ?{v}",
    "ECHO {v}",
    "SELECT {db}",
    "CLIENT SETNAME {f}",
    "CLIENT GETNAME|ID|GETREDIR|TRACKINGINFO",
    "CLIENT NO-EVICT ON|OFF|maybe",
    "HELLO 2|3",
    "RESET",
    "TIME|LASTSAVE|READONLY|READWRITE|ASKING",
    "COMMAND COUNT",
    "COMMAND INFO get nosuch",
    "COMMAND DOCS set",
    "COMMAND GETKEYS MSET a 1 b 2",
    "CONFIG GET maxmemory-policy|nosuch",
    "PUBLISH {v} {v}",
    "PUBSUB CHANNELS|NUMPAT",
    "PUBSUB NUMSUB {f}",
    "WAIT 0 0",
    "ACL WHOAMI",
    "ACL GETUSER default|nosuch",
    "SWAPDB {db} {db}",
    "UNWATCH",
    "WATCH {k} {k}",
    "EXEC|DISCARD",
    "NOSUCHCOMMAND {v} {v}",
];

/// Commands that may wait. The servers look at their time limits ten times a second when they have nothing else to do,
/// so these are drawn rarely.
const BLOCKING: &[&str] = &[
    "BLPOP|BRPOP {l} {l} 0.001",
    "BLMOVE {l} {l} LEFT|RIGHT LEFT|RIGHT 0.001",
    "BRPOPLPUSH {l} {l} 0.001",
    "BLMPOP 0.001 1 {l} LEFT|RIGHT",
    "BZPOPMIN|BZPOPMAX {z} 0.001",
    "BZMPOP 0.001 1 {z} MIN|MAX",
    "XREAD ?COUNT:{c} BLOCK 1 STREAMS {x} 0|{id}|$",
    "XREADGROUP GROUP {grp} {f} BLOCK 1 STREAMS {x} >",
];

/// Arguments that hardly any command expects.
const ODD: &[&[u8]] = &[
    b"",
    b"-",
    b"-0",
    b"+1",
    b" 1",
    b"0x10",
    b"1e400",
    b"nan",
    b"-inf",
    b"9223372036854775807",
    b"9223372036854775808",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"\r\n",
    b"$3\r\nfoo\r\n",
    b"\0",
    b"\xff\xfe",
    b"NX",
    b"WITHSCORES",
    b"STREAMS",
    b"COUNT",
    b"*",
    b"1-1",
];

/// One command drawn from a template, sometimes with something wrong in it.
pub(crate) fn command(rng: &mut Rng) -> Vec<Vec<u8>> {
    let template = if rng.one_in(250) { *rng.pick(BLOCKING) } else { *rng.pick(TEMPLATES) };
    let mut args = expand(rng, template);
    // An odd pattern would list the whole configuration, with each server's own paths in it. Valkey 9.1.2 repeats an odd
    // argument of FUNCTION LIST in its error, line ends and all, so that the reply is no frame.
    if rng.one_in(12) && args[0] != b"CONFIG" && args[0] != b"FUNCTION" {
        spoil(rng, &mut args);
    }
    if rng.one_in(8) {
        args[0].make_ascii_lowercase();
    }
    args
}

/// The arguments that a template stands for this time.
pub(crate) fn expand(rng: &mut Rng, template: &str) -> Vec<Vec<u8>> {
    template.split(' ').flat_map(|word| expand_word(rng, word)).collect()
}

fn expand_word(rng: &mut Rng, word: &str) -> Vec<Vec<u8>> {
    if word.contains("redis.") || word.contains("return(") {
        return vec![word.as_bytes().to_vec()];
    }
    if let Some(rest) = word.strip_prefix('?') {
        return if rng.one_in(2) { expand_parts(rng, rest) } else { Vec::new() };
    }
    match word.strip_prefix('*') {
        Some(rest) => (0..1 + rng.below(4)).flat_map(|_| expand_parts(rng, rest)).collect(),
        None => vec![expand_choice(rng, word)],
    }
}

fn expand_parts(rng: &mut Rng, parts: &str) -> Vec<Vec<u8>> {
    parts.split(':').map(|part| expand_choice(rng, part)).collect()
}

fn expand_choice(rng: &mut Rng, choice: &str) -> Vec<u8> {
    let choices: Vec<&str> = choice.split('|').collect();
    let chosen = *rng.pick(&choices);
    match chosen.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
        Some(name) => draw(rng, name),
        None => chosen.as_bytes().to_vec(),
    }
}

/// An argument by the name of its kind.
fn draw(rng: &mut Rng, name: &str) -> Vec<u8> {
    let from = |rng: &mut Rng, values: &[&str]| rng.pick(values).as_bytes().to_vec();
    match name {
        "s" | "h" | "l" | "t" | "z" | "g" | "p" | "x" => draw_key(rng, name),
        "k" => {
            let kind = *rng.pick(&["s", "h", "l", "t", "z", "g", "p", "x", "missing"]);
            draw_key(rng, kind)
        }
        "v" => draw_value(rng),
        "m" => from(rng, &["a", "b", "c", "d", "e", "1", "2", "m"]),
        "f" => from(rng, &["f1", "f2", "f3", "n"]),
        "n" => from(rng, &["0", "1", "-1", "7", "42", "1000000", "9223372036854775800"]),
        "d" => from(rng, &["0", "1", "-1", "1.5", "2.25", "1e3", "-0.1", "3.0", "inf"]),
        "i" => from(rng, &["0", "1", "2", "-1", "-2", "5", "100"]),
        "c" => from(rng, &["0", "1", "2", "3", "7", "10"]),
        "ttl" => from(rng, &["100", "1000", "5000", "0", "-1"]),
        "ms" => from(rng, &["1000000", "5000000", "0", "-1"]),
        "db" => from(rng, &["0", "1", "2"]),
        "id" => format!("{}-{}", rng.below(20), rng.below(3)).into_bytes(),
        "grp" => from(rng, &["grp1", "grp2"]),
        "min" => from(rng, &["-inf", "0", "(1", "1"]),
        "max" => from(rng, &["+inf", "3", "(3", "1000"]),
        "lon" => from(rng, &["13.361389", "15.087269", "2.349014", "200"]),
        "lat" => from(rng, &["38.115556", "37.502669", "48.864716", "-95"]),
        "pat" => from(rng, &["*", "s*", "[hl]?", "nothing", "*1"]),
        other => panic!("no such kind of argument: {other}"),
    }
}

/// A key of the kind, or now and then one of another.
fn draw_key(rng: &mut Rng, kind: &str) -> Vec<u8> {
    let kind = if rng.one_in(25) { *rng.pick(&["s", "h", "l", "t", "z", "x"]) } else { kind };
    format!("{kind}{}", 1 + rng.below(3)).into_bytes()
}

fn draw_value(rng: &mut Rng) -> Vec<u8> {
    match rng.below(10) {
        0..=3 => rng.below(20).to_string().into_bytes(),
        4..=6 => rng.pick(&["hello", "world", "a", "b", "3.5"]).as_bytes().to_vec(),
        7 => rng.pick(ODD).to_vec(),
        8 => vec![b'x'; rng.index(300)],
        _ => (0..rng.below(20)).map(|_| rng.next().to_le_bytes()[0]).collect(),
    }
}

/// Leaves an argument out, puts one too many, or makes one odd. The name stays.
fn spoil(rng: &mut Rng, args: &mut Vec<Vec<u8>>) {
    match rng.below(3) {
        0 if args.len() > 1 => drop(args.remove(1 + rng.index(args.len() - 1))),
        1 if args.len() > 1 => {
            let at = 1 + rng.index(args.len() - 1);
            args[at] = rng.pick(ODD).to_vec();
        }
        _ => args.push(rng.pick(ODD).to_vec()),
    }
}
