//! Tests of the table as a whole.

use proptest::prelude::*;

use super::*;
use crate::args::OwnedArgs;
use crate::shape::Protocol;

fn known<'t>(table: &'t Table, args: &OwnedArgs) -> &'t Command {
    match table.resolve(args.args()) {
        Resolved::Known(command) => command,
        other => panic!("{other:?}"),
    }
}

fn class_of(table: &Table, line: &str) -> Class {
    let args = OwnedArgs::new(line.split(' '));
    known(table, &args).classify(args.args(), Protocol::Resp3)
}

fn keys_of(table: &Table, line: &str) -> Vec<usize> {
    let args = OwnedArgs::new(line.split(' '));
    known(table, &args).keys(args.args()).collect()
}

const SINGLE: Class = Class::Read(Cacheability::Single);

fn bypass(reason: Bypass) -> Class {
    Class::Read(Cacheability::No(reason))
}

#[test]
fn lookup_finds_every_row_in_any_case_and_nothing_else() {
    let table = Table::builtin();
    for (i, row) in table.iter().enumerate() {
        assert_eq!(usize::from(row.id.0), i);
        assert_eq!(table.by_full_name(&row.name).map(|found| found.id), Some(row.id));
        assert_eq!(table.by_full_name(&row.name.to_uppercase()).map(|found| found.id), Some(row.id));
        assert_eq!(row.parent.is_some(), row.name.contains('|'), "{}", row.name);
    }
    for name in [
        "",
        "ge",
        "gett",
        "sort\x7fro",
        "client|\u{e}o-evict",
        "ge\u{14}",
        "georadiusbymember_r",
        "client|list",
        "list",
        "no-such-command-with-a-long-name",
    ] {
        assert!(table.lookup(name.as_bytes()).is_none(), "{name}");
    }
}

#[test]
fn containers_resolve_to_their_subcommands() {
    let table = Table::builtin();
    assert_eq!(known(&table, &OwnedArgs::new(["CLIENT", "List"])).name, "client|list");
    assert_eq!(known(&table, &OwnedArgs::new(["CLIENT"])).name, "client");
    assert_eq!(known(&table, &OwnedArgs::new(["command"])).name, "command");
    let unknown = OwnedArgs::new(["OBJECT", "nope", "k"]);
    assert!(matches!(table.resolve(unknown.args()), Resolved::UnknownSubcommand(parent) if parent.name == "object"));
    let unknown = OwnedArgs::new(["nope"]);
    assert!(matches!(table.resolve(unknown.args()), Resolved::Unknown));
    let empty: [&str; 0] = [];
    assert!(matches!(table.resolve(OwnedArgs::new(empty).args()), Resolved::Unknown));
}

#[test]
fn arity_counts_the_names() {
    let table = Table::builtin();
    let get = table.by_full_name("get").unwrap();
    assert!(get.accepts(2) && !get.accepts(1) && !get.accepts(3));
    let mget = table.by_full_name("mget").unwrap();
    assert!(mget.accepts(2) && mget.accepts(9) && !mget.accepts(1));
}

#[test]
fn well_known_commands_have_their_class() {
    let table = Table::builtin();
    let mget = Class::Read(Cacheability::PerKey(PerKey::Mget));
    let exists = Class::Read(Cacheability::PerKey(PerKey::Exists));
    let cases: &[(Class, &[&str])] = &[
        (
            SINGLE,
            &[
                "GET k",
                "strlen k",
                "getrange k 0 1",
                "lrange k 0 -1",
                "hgetall k",
                "hget k f",
                "hmget k f g",
                "smembers k",
                "sismember k m",
                "zrange k 0 -1",
                "zscore k m",
                "xrange k - +",
                "xlen k",
                "type k",
                "bitcount k",
                "geopos k m",
                "geosearch k frommember m byradius 1 m",
                "expiretime k",
                "pexpiretime k",
                "sinter k",
                "zunion 1 k",
                "bitfield_ro k get u8 0",
                "georadius_ro k 1 2 3 m",
                "hexpiretime k fields 1 f",
            ],
        ),
        (mget, &["mget a", "mget a b"]),
        (exists, &["exists a", "exists a a b"]),
        (bypass(Bypass::SeveralKeys), &["sinter a b", "zunion 2 a b", "lcs a b", "sintercard 2 a b"]),
        (bypass(Bypass::AgesByItself), &["ttl k", "pttl k", "object idletime k", "httl k fields 1 f"]),
        (bypass(Bypass::NotPushed), &["object encoding k", "memory usage k", "xinfo stream k", "xpending k g"]),
        (bypass(Bypass::Nondeterministic), &["srandmember k", "dump k", "hscan k 0", "hrandfield k"]),
        (bypass(Bypass::HasEffect), &["touch k"]),
        (bypass(Bypass::DerivedKeys), &["sort_ro k"]),
        (bypass(Bypass::MayWait), &["xread streams k 0", "xread streams block 0"]),
        (
            Class::Write,
            &[
                "set k v",
                "del a b",
                "mset a 1 b 2",
                "getex k",
                "incr k",
                "lpush k a",
                "hset k f v",
                "zadd k 1 m",
                "rename a b",
                "copy a b",
                "pfcount a b",
                "sort k",
                "sort k store d",
                "zunionstore d 2 a b",
                "xadd k * f v",
                "xreadgroup group g c streams k >",
                "expire k 1",
                "restore k 0 x",
                "lmpop 1 k left",
                "unlink k",
                "georadius k 1 2 3 m store d",
                "hexpire k 1 fields 1 f",
                "spop k",
                "setbit k 0 1",
                "msetnx a 1",
            ],
        ),
        (Class::Plain, &["publish c m", "spublish c m", "dbsize", "randomkey", "time"]),
        (
            Class::Exclusive,
            &[
                "keys *",
                "scan 0",
                "info",
                "config get x",
                "flushall",
                "flushdb",
                "swapdb 0 1",
                "debug sleep 0",
                "eval s 0",
                "evalsha_ro s 1 k",
                "fcall f 1 k",
                "script load s",
                "function list",
                "move k 1",
                "copy a b db 1",
                "sort k by w_*",
                "sort_ro k get o_*",
                "migrate h 1 k 0 1",
                "georadius k 1 2 3 m store a store b",
                "zunionstore d x a",
                "acl whoami",
                "cluster info",
                "command",
                "shutdown",
                "asking",
                "get",
                "pfdebug encoding k",
                "save",
                "slowlog get",
                "memory doctor",
                "object help",
                "latency latest",
                "pubsub channels",
            ],
        ),
        (
            Class::Blocking,
            &[
                "blpop k 0",
                "brpoplpush a b 0",
                "bzmpop 0 1 k min",
                "xread block 0 streams k $",
                "wait 1 0",
                "waitaof 0 0 0",
                "xreadgroup group g c block 1 streams k >",
                "blmove a b left left 0",
            ],
        ),
        (Class::Transaction, &["multi", "exec", "discard", "watch k", "unwatch"]),
        (
            Class::PubSub,
            &["subscribe c", "unsubscribe", "psubscribe p", "punsubscribe", "ssubscribe c", "sunsubscribe"],
        ),
        (Class::Monitor, &["monitor"]),
        (
            Class::Local,
            &["ping", "hello 3", "auth p", "select 1", "quit", "reset", "client list", "client", "cache info"],
        ),
        (Class::Refused, &["sync", "psync ? -1", "replicaof no one", "slaveof no one", "failover", "replconf x"]),
    ];
    for (class, lines) in cases {
        for line in *lines {
            assert_eq!(class_of(&table, line), *class, "{line}");
        }
    }
}

#[test]
fn blocking_is_seen_in_the_options_only() {
    let table = Table::builtin();
    let blocks = |line: &str| {
        let args = OwnedArgs::new(line.split(' '));
        known(&table, &args).blocks(args.args())
    };
    assert!(blocks("blpop k 0") && blocks("xread count 1 block 5 streams k $") && blocks("wait 0 0"));
    assert!(blocks("xreadgroup group block c BLOCK 1 streams k >"));
    assert!(
        !blocks("xread streams block 0") && !blocks("xreadgroup group block block streams k >") && !blocks("get k")
    );
}

#[test]
fn keys_by_every_kind_of_specification() {
    let table = Table::builtin();
    assert_eq!(keys_of(&table, "get k"), [1]);
    assert_eq!(keys_of(&table, "mset a 1 b 2"), [1, 3]);
    assert_eq!(keys_of(&table, "blpop a b 0"), [1, 2]);
    assert_eq!(keys_of(&table, "object freq k"), [2]);
    assert_eq!(keys_of(&table, "zunionstore d 2 a b"), [1, 3, 4]);
    assert_eq!(keys_of(&table, "xread count 1 streams a b 0 0"), [4, 5]);
    assert_eq!(keys_of(&table, "sort k store x limit 0 1 store d"), [1, 8]);
    assert_eq!(keys_of(&table, "migrate h 1 k 0 5"), [3]);
    assert_eq!(keys_of(&table, "spublish c m"), [0; 0]);
    let args = OwnedArgs::new("zunionstore d 2 a b".split(' '));
    assert_eq!(known(&table, &args).written_keys(args.args()).collect::<Vec<_>>(), [1]);
    let args = OwnedArgs::new(["set", "k", "v"]);
    assert_eq!(known(&table, &args).written_keys(args.args()).collect::<Vec<_>>(), [1]);
}

#[test]
fn hash_reads_are_marked() {
    let table = Table::builtin();
    let reads = |name: &str| table.by_full_name(name).unwrap().reads_hash_fields();
    assert!(reads("hget") && reads("hgetall") && reads("hexpiretime") && !reads("hset") && !reads("get"));
}

/// A `COMMAND` reply of a server of today with one command that is known and two that are not.
const NEWER: &str = "*3\r\n\
    *10\r\n$3\r\nget\r\n:-2\r\n~2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n~1\r\n+@read\r\n*0\r\n\
      *1\r\n%3\r\n$5\r\nflags\r\n~1\r\n+RO\r\n$12\r\nbegin_search\r\n%2\r\n$4\r\ntype\r\n$5\r\nindex\r\n\
      $4\r\nspec\r\n%1\r\n$5\r\nindex\r\n:1\r\n$9\r\nfind_keys\r\n%2\r\n$4\r\ntype\r\n$5\r\nrange\r\n\
      $4\r\nspec\r\n%3\r\n$7\r\nlastkey\r\n:-1\r\n$7\r\nkeystep\r\n:1\r\n$5\r\nlimit\r\n:0\r\n*0\r\n\
    *10\r\n$8\r\nJSON.GET\r\n:-2\r\n~2\r\n+readonly\r\n+module\r\n:1\r\n:1\r\n:1\r\n*0\r\n*0\r\n\
      *1\r\n%3\r\n$5\r\nflags\r\n~1\r\n+RO\r\n$12\r\nbegin_search\r\n%2\r\n$4\r\ntype\r\n$5\r\nindex\r\n\
      $4\r\nspec\r\n%1\r\n$5\r\nindex\r\n:1\r\n$9\r\nfind_keys\r\n%2\r\n$4\r\ntype\r\n$5\r\nrange\r\n\
      $4\r\nspec\r\n%3\r\n$7\r\nlastkey\r\n:0\r\n$7\r\nkeystep\r\n:1\r\n$5\r\nlimit\r\n:0\r\n*0\r\n\
    *10\r\n$8\r\njson.set\r\n:-4\r\n~2\r\n+write\r\n+module\r\n:1\r\n:1\r\n:1\r\n*0\r\n*0\r\n*0\r\n*0\r\n";

#[test]
fn a_newer_upstream_completes_the_table() {
    let builtin = Table::builtin();
    let table = builtin.completed(NEWER.as_bytes()).unwrap();
    assert_eq!(table.len(), builtin.len() + 2);
    let get = table.lookup(b"get").unwrap();
    assert_eq!((get.arity, get.on_upstream, get.origin), (-2, true, Origin::Builtin));
    assert_eq!(keys_of(&table, "get a b"), [1, 2]);
    assert_eq!(class_of(&table, "get a b"), bypass(Bypass::SeveralKeys));
    assert_eq!(class_of(&table, "get a"), SINGLE);
    assert!(
        !table.lookup(b"set").unwrap().on_upstream
            && table.lookup(b"set").unwrap().id == builtin.lookup(b"set").unwrap().id
    );
    assert!(!table.by_full_name("object|freq").unwrap().on_upstream);
    let args = OwnedArgs::new(["json.get", "k"]);
    assert_eq!(known(&table, &args).classify(args.args(), Protocol::Resp3), bypass(Bypass::NotInTable));
    assert_eq!(known(&table, &args).classify(args.args(), Protocol::Resp2), Class::Exclusive);
    assert_eq!(class_of(&table, "json.set k $ 1"), Class::Exclusive);
}

#[test]
fn an_old_upstream_leaves_the_committed_columns() {
    let old = "*2\r\n*7\r\n$3\r\nttl\r\n:2\r\n*2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n*1\r\n+@read\r\n\
        *7\r\n$6\r\nobject\r\n:-2\r\n*1\r\n+readonly\r\n:2\r\n:2\r\n:1\r\n*1\r\n+@read\r\n";
    let table = Table::builtin().completed(old.as_bytes()).unwrap();
    assert_eq!(class_of(&table, "ttl k"), bypass(Bypass::AgesByItself));
    assert!(table.lookup(b"ttl").unwrap().tips.contains(Tips::NONDETERMINISTIC_OUTPUT));
    assert!(table.by_full_name("object|freq").unwrap().on_upstream);
    assert!(!table.by_full_name("client|list").unwrap().on_upstream);
}

#[test]
fn what_is_no_command_reply_is_refused() {
    let table = Table::builtin();
    for reply in [&b""[..], b"-NOPERM no\r\n", b"*0\r\n", b"+OK\r\n", b"*1\r\n", b"%0\r\n", b"*1\r\n*0\r\n"] {
        assert!(table.completed(reply).is_err(), "{reply:?}");
    }
}

fn any_argument() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..6),
        proptest::sample::select(vec![
            "0",
            "1",
            "2",
            "7",
            "-1",
            "999999999999999999",
            "9223372036854775807",
            "STREAMS",
            "store",
            "KEYS",
            "block",
            "db",
            "by",
            "get",
            "limit",
            "",
        ])
        .prop_map(|word| word.as_bytes().to_vec()),
    ]
}

proptest! {
    #[test]
    fn no_arguments_make_a_row_panic(rest in proptest::collection::vec(any_argument(), 0..12)) {
        let table = Table::builtin();
        for row in table.iter() {
            let mut parts: Vec<Vec<u8>> = row.name.split('|').map(|part| part.as_bytes().to_vec()).collect();
            parts.extend(rest.iter().cloned());
            let owned = OwnedArgs::new(&parts);
            let args = owned.args();
            let keys: Vec<usize> = row.keys(args).collect();
            prop_assert!(keys.iter().all(|key| (1..args.len()).contains(key)), "{} {:?}", row.name, keys);
            prop_assert!(row.written_keys(args).all(|key| keys.contains(&key)));
            let class = row.classify(args, Protocol::Resp2);
            if matches!(class, Class::Read(Cacheability::Single)) {
                prop_assert_eq!(keys.len(), 1, "{}", row.name);
            }
            if matches!(class, Class::Read(_) | Class::Write) {
                prop_assert_eq!(row.key_knowledge(args), KeyKnowledge::Complete, "{}", row.name);
            }
            prop_assert!(class != Class::Blocking || row.blocks(args));
        }
    }

    #[test]
    fn no_reply_makes_completing_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 0..NEWER.len(),
        at in 0..NEWER.len(),
        byte: u8,
    ) {
        let table = Table::builtin();
        let _ = table.completed(&bytes);
        prop_assert!(table.completed(&NEWER.as_bytes()[..cut]).is_err());
        let mut changed = NEWER.as_bytes().to_vec();
        changed[at] = byte;
        if let Ok(table) = table.completed(&changed) {
            for row in table.iter() {
                let owned = OwnedArgs::new([row.own_name(), "2", "a", "b"]);
                prop_assert!(row.keys(owned.args()).count() <= 4 * 32);
            }
        }
    }
}
