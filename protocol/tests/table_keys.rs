//! The keys that the table finds are the keys that `COMMAND GETKEYS` of real servers finds.

mod support;

use larder_protocol::args::OwnedArgs;
use larder_protocol::table::{KeyKnowledge, Resolved, Table};
use support::grammar::{Argument, Grammar};
use support::{Connection, Random, Server};

/// Invocations made up for each command and server.
const ROUNDS: usize = 40;
/// Values that are no keys, some of which look like keywords.
const WORDS: [&str; 8] = ["a", "STORE", "store", "KEYS", "STREAMS", "limit", "by", "x*"];

fn value(argument: &Argument, random: &mut Random) -> Vec<u8> {
    match &*argument.kind {
        "key" => format!("key:{}", random.below(100)).into_bytes(),
        "integer" | "double" | "unix-time" => (1 + random.below(9)).to_string().into_bytes(),
        _ if random.below(4) == 0 => random.pick(&WORDS).as_bytes().to_vec(),
        _ => b"v".to_vec(),
    }
}

fn compare(table: &Table, server: &mut Connection, parts: &[Vec<u8>], context: &str) {
    let owned = OwnedArgs::new(parts);
    let args = owned.args();
    let shown: Vec<_> = parts.iter().map(|part| String::from_utf8_lossy(part)).collect();
    let Resolved::Known(command) = table.resolve(args) else { panic!("{context}: not known: {shown:?}") };
    let ours: Vec<Vec<u8>> = command.keys(args).map(|i| args.arg(i).to_vec()).collect();
    let knowledge = command.key_knowledge(args);
    match (server.getkeys(parts), knowledge) {
        (Some(theirs), KeyKnowledge::Complete) => assert_eq!(ours, theirs, "{context}: {shown:?}"),
        (Some(theirs), KeyKnowledge::None) => assert_eq!(theirs.len(), 0, "{context}: {shown:?}"),
        (Some(theirs), KeyKnowledge::Incomplete) => {
            assert!(ours.iter().all(|key| theirs.contains(key)), "{context}: {shown:?} {ours:?} {theirs:?}");
        }
        (None, KeyKnowledge::Complete) => {
            assert!(!command.accepts(parts.len()), "{context}: no keys in {shown:?}, the table finds {ours:?}");
        }
        (None, _) => {}
    }
}

#[test]
fn keys_are_those_of_getkeys_for_every_documented_grammar() {
    for server in Server::all() {
        let mut connection = server.connect_resp3();
        let grammar = Grammar::read(&mut connection);
        let command = connection.must(&["COMMAND"]);
        for (which, table) in [
            ("built-in", Table::builtin()),
            ("completed", Table::builtin().completed(&command).expect("a COMMAND reply")),
        ] {
            for (n, name) in grammar.names().enumerate() {
                let seed = n as u64;
                let mut random = Random(seed);
                for round in 0..ROUNDS {
                    let parts = grammar.invocation(name, &mut random, &mut value);
                    let context = format!("{} {which} seed {seed} round {round}", server.name);
                    compare(&table, &mut connection, &parts, &context);
                }
            }
        }
    }
}

#[test]
fn keys_are_those_of_getkeys_for_odd_invocations() {
    let cases = [
        "migrate h 1 k 0 5",
        "migrate h 1 k 0 5 copy auth keys",
        "migrate h 1 k 0 5 keys a b",
        "xread count 2 streams a b 0 0",
        "xread streams a b c 0 0 0",
        "xreadgroup group streams c streams k >",
        "sort k by w_* get # get o_*->f limit 0 2 store d",
        "sort k store a store b",
        "sort k get store",
        "georadius k 1 2 3 m store d",
        "georadius k 1 2 3 m count 1 storedist d",
        "georadiusbymember k m 3 m store d",
        "eval s 0",
        "eval s 2 a b c",
        "eval s 3 a b",
        "eval s x a",
        "fcall f 1 a",
        "eval_ro s 0 a",
        "zunionstore d 2 a b weights 1 2",
        "zunionstore d 3 a b",
        "zunionstore d 0 a",
        "zinter 01 a",
        "zdiff -1 a",
        "lmpop 1 a left",
        "blmpop 0 2 a b left count 3",
        "sintercard 2 a b limit 1",
        "bitop and d a b c",
        "mset a 1 b 2",
        "mset a 1 b",
        "msetnx a 1",
        "blpop a b 0",
        "get",
        "object freq k",
        "object help",
        "xgroup create k g $",
        "memory usage k samples 3",
        "spublish c m",
        "publish c m",
        "restore k 0 x",
        "del",
        "pfmerge d",
        "pfmerge d a",
        "copy a b",
        "bitfield k get u8 0",
        "set k v get ex 10",
        "lcs a b",
    ];
    for server in Server::all() {
        let mut connection = server.connect_resp3();
        let table = Table::builtin();
        for case in cases {
            let parts: Vec<Vec<u8>> = case.split(' ').map(|part| part.as_bytes().to_vec()).collect();
            compare(&table, &mut connection, &parts, server.name);
        }
    }
}

#[test]
fn the_table_is_completed_alike_from_either_protocol() {
    for server in Server::all() {
        let resp2 = Table::builtin().completed(&server.connect().must(&["COMMAND"])).expect("a COMMAND reply");
        let resp3 = Table::builtin().completed(&server.connect_resp3().must(&["COMMAND"])).expect("a COMMAND reply");
        assert_eq!(resp2.len(), Table::builtin().len(), "{}: the committed rows lack some", server.name);
        for (a, b) in resp2.iter().zip(resp3.iter()) {
            assert_eq!((&a.name, a.arity, a.flags, a.on_upstream), (&b.name, b.arity, b.flags, b.on_upstream));
            assert_eq!((a.tips, a.categories, &a.key_specs, a.class), (b.tips, b.categories, &b.key_specs, b.class));
            let builtin = Table::builtin().by_full_name(&a.name).map(|row| (row.class, row.shape));
            assert_eq!(
                builtin,
                Some((a.class, a.shape)),
                "{}: {} has another class than committed",
                server.name,
                a.name
            );
        }
    }
}
