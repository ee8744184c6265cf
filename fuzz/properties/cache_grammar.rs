//! Requests understood: the grammar of CACHE, and what the command table says of any request.
//!
//! An input is a list of words with a blank between two. The first byte says whether `CACHE` stands in front of them, a
//! command of the table (its number in the second byte and the lowest bits of the first), or nothing.

use std::mem::discriminant;
use std::sync::LazyLock;

use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::cache::{CacheCommand, CacheError, Target};
use larder_protocol::shape::{Protocol, Shape};
use larder_protocol::table::{Cacheability, Class, Command, KeyKnowledge, Resolved, Table};

/// Longest error line: a word that is repeated in it is cut.
const ERROR_BYTES_MAX: usize = 600;

static TABLE: LazyLock<Table> = LazyLock::new(Table::builtin);

pub(crate) fn check(input: &[u8]) {
    let Some((&how, rest)) = input.split_first() else { return };
    let words = |bytes| <[u8]>::split(bytes, |&b| b == b' ');
    let args = match (how >> 6, rest.split_first()) {
        (0 | 1, _) => OwnedArgs::new(std::iter::once(&b"CACHE"[..]).chain(words(rest))),
        (2, Some((&low, rest))) => {
            let id = usize::from(how & 0x3f) << 8 | usize::from(low);
            let command = TABLE.iter().nth(id % TABLE.len()).map_or("get", |command| &*command.name);
            OwnedArgs::new(command.as_bytes().split(|&b| b == b'|').chain(words(rest)))
        }
        _ => OwnedArgs::new(words(rest)),
    };
    let args = args.args();
    check_request(&TABLE, args);
    if args.arg(0).eq_ignore_ascii_case(b"cache") {
        check_cache(args);
    }
}

/// What is understood has the arity and the keys that the table's row for it tells, and is the same in capitals and in
/// small letters; what is not understood gets one line.
fn check_cache(args: Args<'_>) {
    let parsed = CacheCommand::parse(args);
    for fold in [<[u8]>::to_ascii_uppercase, <[u8]>::to_ascii_lowercase] {
        let folded = OwnedArgs::new(args.iter().map(fold));
        match (&parsed, CacheCommand::parse(folded.args())) {
            (Ok(one), Ok(other)) => assert_eq!(discriminant(one), discriminant(&other), "case has changed the meaning"),
            (Err(one), Err(other)) => assert_eq!(discriminant(one), discriminant(&other), "case has changed the error"),
            (one, other) => panic!("case decides: {one:?}, {other:?}"),
        }
    }
    let command = match parsed {
        Ok(command) => command,
        Err(error) => return check_error(&error),
    };
    let Resolved::Known(row) = TABLE.resolve(args) else { panic!("{command:?} has no row in the table") };
    assert!(row.accepts(args.len()), "{command:?} of {} arguments", args.len());
    let keys: Vec<&[u8]> = row.keys(args).map(|at| args.arg(at)).collect();
    match command {
        CacheCommand::Entry(key) => assert_eq!(keys, [key]),
        CacheCommand::Invalidate(Target::Keys(list), ..) => {
            assert!(list.len() > 0 && list.iter().len() == list.len());
            assert!(list.iter().eq(keys), "{list:?} are not the keys that the table tells");
        }
        CacheCommand::Help | CacheCommand::Fence | CacheCommand::Stats => assert_eq!(args.len(), 2),
        _ => {}
    }
}

fn check_error(error: &CacheError) {
    let line = error.to_string();
    assert!(line.starts_with("ERR ") && line.len() <= ERROR_BYTES_MAX, "{line}");
    assert!(!line.contains(['\r', '\n']), "an error of two lines: {line:?}");
}

/// What the table says of a request: whatever it is, keys stand within it, and what may use the shared link or be
/// cached has keys that are known.
pub(super) fn check_request(table: &Table, args: Args<'_>) {
    let command = match table.resolve(args) {
        Resolved::Known(command) | Resolved::UnknownSubcommand(command) => command,
        Resolved::Unknown => return,
    };
    let keys: Vec<usize> = command.keys(args).collect();
    assert!(keys.iter().all(|i| (1..args.len()).contains(i)), "{}: keys {keys:?} of {}", command.name, args.len());
    assert!(keys.len() <= args.len() * command.key_specs.len().max(2), "{}: {} keys", command.name, keys.len());
    assert!(command.written_keys(args).all(|i| keys.contains(&i)), "{}: a written key that is none", command.name);
    let knowledge = command.key_knowledge(args);
    // A request whose arity is wrong is refused before anybody asks for its class.
    if command.accepts(args.len()) {
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            check_class(command, args, protocol, &keys, knowledge);
        }
    }
    let _ = command.blocks(args);
    let _ = Shape::of(command, args);
}

fn check_class(command: &Command, args: Args<'_>, protocol: Protocol, keys: &[usize], knowledge: KeyKnowledge) {
    let class = command.classify(args, protocol);
    let name = &command.name;
    if class.is_shared() {
        let shape = Shape::of(command, args);
        assert!(protocol == Protocol::Resp3 || shape.is_some(), "{name}: a shared reply without a RESP2 form");
        assert!(!command.blocks(args), "{name}: may wait on the shared link");
        assert!(knowledge != KeyKnowledge::Incomplete, "{name}: unknown keys on the shared link");
    }
    if class == Class::Write {
        assert_eq!(knowledge, KeyKnowledge::Complete, "{name}: a shared write of unknown keys");
    }
    match class {
        Class::Read(Cacheability::Single) => assert_eq!(keys.len(), 1, "{name}: one entry for several keys"),
        Class::Read(Cacheability::PerKey(_)) => assert!(!keys.is_empty(), "{name}: a cached read without a key"),
        _ => {}
    }
}
