//! What a RESP2 client gets from Larder is what the server itself sends on RESP2.
//!
//! Two connections, one for each protocol, stand in databases of equal content on one server. Every command that may
//! use the shared link is sent to both; the RESP3 reply, converted, must be the RESP2 reply, byte for byte. The
//! commands come from a list (every option that changes a shape) and from the documented grammar (made up from a
//! seed).

mod support;

use std::collections::BTreeMap;

use larder_protocol::args::OwnedArgs;
use larder_protocol::shape::{Protocol, Shape, same_in_both, to_resp2};
use larder_protocol::table::{Class, Command, Resolved, Table, Tips};
use support::grammar::Grammar;
use support::{Connection, Random, Server, content};

/// Invocations made up for each command and server.
const ROUNDS: usize = 100;

/// Commands whose reply differs between two calls or databases though nothing is wrong: times and counters.
const VARYING: &[&str] =
    &["time", "lastsave", "randomkey", "xadd", "memory|usage", "object|idletime", "object|freq", "xinfo|stream"];

/// Every option that changes a shape, and every kind of nothing.
const CASES: &[&str] = &[
    "GET str",
    "GET missing",
    "GET list",
    "SET str x GET",
    "SET missing x GET",
    "SET str x NX",
    "SET missing x XX",
    "SET n x NX GET",
    "GETDEL missing",
    "GETEX missing",
    "GETSET missing x",
    "MGET str missing list",
    "INCRBYFLOAT float 1.5",
    "LCS str num",
    "LCS str str IDX",
    "LCS str str IDX WITHMATCHLEN",
    "LCS missing str IDX",
    "BITFIELD num OVERFLOW FAIL INCRBY u2 0 9 GET u8 0",
    "LPOP list",
    "LPOP missing",
    "LPOP list 2",
    "LPOP missing 2",
    "LPOP list 0",
    "LPOP missing 0",
    "RPOP missing",
    "RPOP missing 1",
    "LMPOP 1 missing LEFT",
    "LMPOP 2 missing list LEFT COUNT 2",
    "LPOS list a",
    "LPOS list z",
    "LPOS list a COUNT 0",
    "LPOS list z COUNT 0",
    "LPOS missing a COUNT 1",
    "LPOS missing a",
    "LINDEX list 99",
    "LMOVE missing list LEFT LEFT",
    "RPOPLPUSH missing list",
    "LINSERT missing BEFORE a b",
    "SPOP missing",
    "SPOP missing 1",
    "SPOP set1",
    "SPOP set 99",
    "SRANDMEMBER missing",
    "SRANDMEMBER missing 2",
    "SRANDMEMBER set 99",
    "SRANDMEMBER set1 -3",
    "SMEMBERS set",
    "SMEMBERS missing",
    "SINTER set set1",
    "SUNION missing",
    "SDIFF set set1",
    "SMISMEMBER set a z",
    "SSCAN set 0",
    "HGETALL hash",
    "HGETALL missing",
    "HMGET hash a z",
    "HMGET missing a",
    "HGET hash z",
    "HKEYS hash",
    "HVALS hash",
    "HRANDFIELD hash",
    "HRANDFIELD missing",
    "HRANDFIELD hash 9",
    "HRANDFIELD hash 9 WITHVALUES",
    "HRANDFIELD missing 9 WITHVALUES",
    "HRANDFIELD hash -3 WITHVALUES",
    "HINCRBYFLOAT hash b 1.5",
    "HSCAN hash 0",
    "ZSCORE zset d",
    "ZSCORE zset z",
    "ZSCORE zinf a",
    "ZMSCORE zset a z c",
    "ZMSCORE missing a",
    "ZADD zset INCR 2.5 a",
    "ZADD zset NX INCR 1 a",
    "ZADD zset GT CH 9 a",
    "ZINCRBY zset 0.1 e",
    "ZINCRBY zinf inf b",
    "ZRANK zset a",
    "ZRANK zset z",
    "ZRANK missing a",
    "ZREVRANK zset z",
    "ZRANK zset b WITHSCORE",
    "ZRANK zset z WITHSCORE",
    "ZRANK missing z WITHSCORE",
    "ZREVRANK zset z WITHSCORE",
    "ZRANGE zset 0 -1",
    "ZRANGE zset 0 -1 WITHSCORES",
    "ZRANGE missing 0 -1 WITHSCORES",
    "ZRANGE zinf 0 -1 WITHSCORES",
    "ZRANGE zset (1 +inf BYSCORE LIMIT 1 2 WITHSCORES",
    "ZRANGE lex [a (c BYLEX",
    "ZRANGE zset 0 -1 REV WITHSCORES",
    "ZREVRANGE zset 0 -1 WITHSCORES",
    "ZRANGEBYSCORE zset -inf +inf WITHSCORES",
    "ZREVRANGEBYSCORE zset +inf -inf WITHSCORES LIMIT 0 2",
    "ZRANGEBYLEX lex - +",
    "ZREVRANGEBYLEX lex + -",
    "ZUNION 2 zset zinf WITHSCORES",
    "ZINTER 2 zset zset1 WITHSCORES",
    "ZDIFF 2 zset zset1 WITHSCORES",
    "ZUNION 1 zset",
    "ZPOPMIN zset",
    "ZPOPMIN zset 2",
    "ZPOPMIN zset 0",
    "ZPOPMIN missing",
    "ZPOPMIN missing 2",
    "ZPOPMAX zinf 9",
    "ZPOPMAX zset",
    "ZPOPMIN zset 1",
    "ZMPOP 1 zset MIN",
    "ZMPOP 1 zset MAX COUNT 9",
    "ZMPOP 1 missing MIN",
    "ZRANDMEMBER zset1",
    "ZRANDMEMBER missing",
    "ZRANDMEMBER zset 9",
    "ZRANDMEMBER zset 9 WITHSCORES",
    "ZRANDMEMBER missing 9 WITHSCORES",
    "ZRANDMEMBER zset1 -3 WITHSCORES",
    "ZSCAN zset 0",
    "ZSCAN zinf 0",
    "GEOPOS geo Palermo z",
    "GEOPOS missing a",
    "GEODIST geo Palermo Catania km",
    "GEODIST geo Palermo z",
    "GEOHASH geo Palermo z",
    "GEOHASH missing a",
    "GEOSEARCH geo FROMLONLAT 15 37 BYRADIUS 200 km ASC WITHCOORD WITHDIST WITHHASH",
    "GEOSEARCH geo FROMLONLAT 15 37 BYBOX 400 400 km ASC",
    "GEORADIUS geo 15 37 200 km WITHCOORD WITHDIST WITHHASH ASC",
    "GEORADIUS geo 15 37 200 km STORE d",
    "GEORADIUS_RO geo 15 37 200 km WITHDIST",
    "GEORADIUSBYMEMBER geo Palermo 300 km WITHCOORD",
    "GEORADIUSBYMEMBER_RO geo Palermo 300 km WITHHASH",
    "GEORADIUS missing 1 1 1 m",
    "XRANGE stream - +",
    "XRANGE missing - +",
    "XREVRANGE stream + - COUNT 1",
    "XLEN stream",
    "XREAD STREAMS stream 0",
    "XREAD COUNT 1 STREAMS stream stream1 0 0",
    "XREAD STREAMS missing 0",
    "XREAD STREAMS stream $",
    "XREADGROUP GROUP g c STREAMS stream >",
    "XREADGROUP GROUP g c STREAMS stream 0",
    "XREADGROUP GROUP empty c STREAMS stream >",
    "XREADGROUP GROUP empty c STREAMS stream 0",
    "XREADGROUP GROUP none c STREAMS stream >",
    "XPENDING stream g",
    "XPENDING stream empty",
    "XPENDING stream g - + 9",
    "XPENDING stream empty - + 9",
    "XPENDING stream none",
    "XPENDING stream g IDLE 0 - + 9 c",
    "XCLAIM stream g d 0 1-1 1-2",
    "XCLAIM stream g d 0 1-1 JUSTID",
    "XCLAIM stream g d 0 9-9 FORCE",
    "XAUTOCLAIM stream g d 0 0",
    "XAUTOCLAIM stream g d 0 0 COUNT 1",
    "XAUTOCLAIM stream g d 0 0 JUSTID",
    "XADD stream NOMKSTREAM 9-9 f v",
    "XADD missing NOMKSTREAM * f v",
    "XADD stream * f v",
    "XINFO STREAM stream",
    "XINFO STREAM stream FULL",
    "XINFO STREAM stream1",
    "XINFO STREAM stream1 FULL",
    "XINFO GROUPS stream",
    "XINFO GROUPS stream1",
    "XINFO CONSUMERS stream g",
    "XINFO CONSUMERS stream empty",
    "XINFO STREAM missing",
    "XACK stream g 1-1",
    "XTRIM stream MAXLEN 1",
    "XSETID stream 9-9",
    "XGROUP CREATE new g $ MKSTREAM",
    "XGROUP CREATE stream g 0",
    "XGROUP DESTROY stream g",
    "XGROUP CREATECONSUMER stream g n",
    "XGROUP DELCONSUMER stream g c",
    "XGROUP SETID stream g 0",
    "SORT list ALPHA",
    "SORT list ALPHA GET #",
    "SORT list ALPHA STORE d",
    "SORT missing",
    "SORT list",
    "SORT_RO ints",
    "SORT list BY nosort LIMIT 0 2",
    "TYPE str",
    "TYPE missing",
    "TTL missing",
    "EXPIRETIME ex",
    "PEXPIRETIME ex",
    "OBJECT ENCODING list",
    "OBJECT ENCODING missing",
    "OBJECT REFCOUNT list",
    "OBJECT FREQ missing",
    "OBJECT IDLETIME list",
    "MEMORY USAGE list",
    "MEMORY USAGE missing",
    "DUMP str",
    "DUMP missing",
    "TOUCH str missing",
    "EXISTS str str missing",
    "COPY str new",
    "RENAME str new",
    "RENAME missing new",
    "RENAMENX str num",
    "RANDOMKEY",
    "DBSIZE",
    "TIME",
    "LASTSAVE",
    "PUBLISH c m",
    "SPUBLISH c m",
    "PFCOUNT hll hll2",
    "PFCOUNT list",
    "PFADD hll z",
    "PFMERGE d hll hll2",
    "BITOP AND d num str",
    "BITPOS bits 1",
    "BITCOUNT missing",
    "BITFIELD_RO num GET u8 0",
    "HEXPIRE hash 100 FIELDS 2 a z",
    "HEXPIRE missing 100 FIELDS 1 a",
    "HTTL hash FIELDS 2 a z",
    "HTTL missing FIELDS 1 a",
    "HPTTL hash FIELDS 1 a",
    "HEXPIRETIME hash FIELDS 2 a z",
    "HPEXPIRETIME missing FIELDS 1 a",
    "HPERSIST hash FIELDS 2 a z",
    "HGETEX hash FIELDS 2 a z",
    "HGETEX missing FIELDS 1 a",
    "HGETDEL hash FIELDS 2 a z",
    "HGETDEL missing FIELDS 1 a",
    "HSETEX hash FIELDS 1 a 9",
    "HSETEX hash FNX FIELDS 1 a 9",
    "DELIFEQ str hello",
    "DELIFEQ str x",
    "MSETEX 1 a b EX 100",
    "MSETEX 1 str b NX",
];

/// Two connections to one server, each in a database of its own.
struct Pair {
    name: &'static str,
    table: Table,
    resp2: Connection,
    resp3: Connection,
    /// Databases are only filled again after something may have changed them.
    is_fresh: bool,
    counts: BTreeMap<String, Count>,
    /// The first difference of each command.
    differences: BTreeMap<String, String>,
}

/// How often a command was compared.
#[derive(Clone, Copy, Default)]
struct Count {
    answered: usize,
    failed: usize,
    not_shared: usize,
}

// === impl Pair ===

impl Pair {
    fn new(server: &Server) -> Self {
        let mut resp2 = server.connect();
        let mut resp3 = server.connect_resp3();
        let table = Table::builtin().completed(&resp3.must(&["COMMAND"])).expect("a well-formed reply");
        resp2.must(&["SELECT", "2"]);
        resp3.must(&["SELECT", "3"]);
        Self {
            name: server.name,
            table,
            resp2,
            resp3,
            is_fresh: false,
            counts: BTreeMap::new(),
            differences: BTreeMap::new(),
        }
    }

    /// Sends `parts` on both, if Larder would send it on the shared link, and compares.
    fn compare(&mut self, parts: &[Vec<u8>], context: &str) {
        let owned = OwnedArgs::new(parts);
        let args = owned.args();
        let Resolved::Known(command) = self.table.resolve(args) else { return };
        if !command.on_upstream {
            return;
        }
        let class = command.classify(args, Protocol::Resp2);
        let count = self.counts.entry(command.name.to_string()).or_default();
        if !class.is_shared() {
            count.not_shared += 1;
            return;
        }
        if !self.is_fresh {
            self.resp2.prepare(content::LINES);
            self.resp3.prepare(content::LINES);
        }
        let wanted = self.resp2.call(parts);
        let frame = self.resp3.call(parts);
        self.is_fresh = matches!(class, Class::Read(_) | Class::Plain) || frame.starts_with(b"-");
        if frame.starts_with(b"-") {
            count.failed += 1
        } else {
            count.answered += 1
        }

        let shown: Vec<_> = parts.iter().map(|part| String::from_utf8_lossy(part)).collect();
        let shown = format!("{} {context}: {shown:?}", self.name);
        let shape = Shape::of(command, args).unwrap_or_else(|| panic!("{shown}: no shape"));
        let mut ours = Vec::new();
        to_resp2(shape, &frame, &mut ours).unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert!(!same_in_both(&frame) || ours == frame, "{shown}: not the same in both");
        if ours == wanted || (varies(command) && skeleton(&ours) == skeleton(&wanted)) {
            return;
        }
        let (frame, ours, wanted) = (frame.escape_ascii(), ours.escape_ascii(), wanted.escape_ascii());
        let difference = format!("{shown}\n RESP3 {frame}\n ours  {ours}\n RESP2 {wanted}\n");
        self.differences.entry(command.name.to_string()).or_insert(difference);
    }

    fn finish(&self) {
        let differences: String = self.differences.values().map(String::as_str).collect();
        assert!(differences.is_empty(), "{differences}");
    }
}

fn varies(command: &Command) -> bool {
    command.tips.contains(Tips::NONDETERMINISTIC_OUTPUT) || VARYING.contains(&&*command.name)
}

/// The reply's structure: kinds, counts and nulls, without the values.
fn skeleton(reply: &[u8]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < reply.len() {
        let end = support::frame_end(&reply[at..], 0)
            .map_or(reply.len(), |_| at + reply[at..].windows(2).position(|pair| pair == b"\r\n").unwrap_or(0) + 2);
        let line = &reply[at..end];
        match line[0] {
            b'*' => out.push_str(&line.escape_ascii().to_string()),
            b'$' if line == b"$-1\r\n" => out.push_str("null "),
            b'$' => {
                out.push_str("bulk ");
                let len: usize = String::from_utf8_lossy(&line[1..]).trim().parse().expect("a well-formed reply");
                at = end + len + 2;
                continue;
            }
            kind => out.push(char::from(kind)),
        }
        at = end;
    }
    out
}

#[test]
fn listed_commands_have_their_resp2_form() {
    for server in Server::all() {
        let mut pair = Pair::new(&server);
        for case in CASES {
            let parts: Vec<Vec<u8>> = case.split(' ').map(|part| part.as_bytes().to_vec()).collect();
            pair.compare(&parts, "listed");
        }
        pair.finish();
    }
}

#[test]
fn made_up_commands_have_their_resp2_form() {
    for server in Server::all() {
        let mut pair = Pair::new(&server);
        let grammar = Grammar::read(&mut server.connect_resp3());
        let dump = content::dump(&mut pair.resp2);
        for (n, name) in grammar.names().enumerate() {
            let seed = n as u64 + 1000;
            let mut random = Random(seed);
            for round in 0..ROUNDS {
                let group = name.to_owned();
                let parts = grammar.invocation(name, &mut random, &mut |argument, random| {
                    content::value(&group, argument, random, &dump)
                });
                pair.compare(&parts, &format!("seed {seed} round {round}"));
            }
        }
        pair.finish();
        // A command that never succeeded has not been tested.
        let mut never = Vec::new();
        for row in pair.table.iter().filter(|row| row.on_upstream && row.class.is_shared()) {
            let count = pair.counts.get(&*row.name).copied().unwrap_or_default();
            if count.answered == 0 {
                never.push(format!("{} ({} errors)", row.name, count.failed));
            }
        }
        assert!(never.is_empty(), "{}: nothing but errors from {never:?}", pair.name);
    }
}
