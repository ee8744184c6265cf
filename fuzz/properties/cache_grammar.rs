//! Requests understood: the grammar of CACHE, and what the command table says of any request.
//!
//! An input is a list of words with a blank between two. The first byte says whether `CACHE` stands in front of them, a
//! command of the table (its number in the second byte and the lowest bits of the first), or nothing.

use std::sync::LazyLock;

use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::cache::{BreakerOrder, CacheCommand, CacheError, Reach, Target};
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

/// What is understood can be written down again and means the same; what is not gets one line.
fn check_cache(args: Args<'_>) {
    match CacheCommand::parse(args) {
        Ok(command) => {
            let Some(words) = written(&command) else { return };
            let again = OwnedArgs::new(&words);
            let again = CacheCommand::parse(again.args()).map(|again| written(&again));
            assert_eq!(again, Ok(Some(words.clone())), "it does not mean what it says");
            assert_eq!(words.len(), args.len(), "a word was passed over");
            let same = |(word, arg): (&Vec<u8>, &[u8])| word.eq_ignore_ascii_case(arg);
            assert!(words.iter().zip(args.iter()).skip(1).all(same), "a word was changed");
        }
        Err(error) => check_error(&error),
    }
}

fn check_error(error: &CacheError) {
    let line = error.to_string();
    assert!(line.starts_with("ERR ") && line.len() <= ERROR_BYTES_MAX, "{line}");
    assert!(!line.contains(['\r', '\n']), "an error of two lines: {line:?}");
}

/// A command as its shortest request; `None` for those whose form this module does not know.
fn written(command: &CacheCommand<'_>) -> Option<Vec<Vec<u8>>> {
    let words: Vec<&[u8]> = match command {
        CacheCommand::Help => vec![b"help"],
        CacheCommand::Fence => vec![b"fence"],
        CacheCommand::Read(None) => vec![b"read"],
        CacheCommand::Read(Some(mode)) => vec![b"read", mode.word().as_bytes()],
        CacheCommand::Breaker(BreakerOrder::Show) => vec![b"breaker"],
        CacheCommand::Breaker(BreakerOrder::Open) => vec![b"breaker", b"open"],
        CacheCommand::Breaker(BreakerOrder::Close) => vec![b"breaker", b"close"],
        CacheCommand::Breaker(BreakerOrder::Release) => vec![b"breaker", b"release"],
        CacheCommand::Info(None) => vec![b"info"],
        CacheCommand::Info(Some(section)) => vec![b"info", section],
        CacheCommand::Stats => vec![b"stats"],
        CacheCommand::ResetStats => vec![b"resetstats"],
        CacheCommand::Entry(key) => vec![b"entry", key],
        CacheCommand::Invalidate(target, reach) => return Some(invalidate(target, *reach)),
        #[allow(unreachable_patterns, reason = "the grammar grows")]
        _ => return None,
    };
    Some(std::iter::once(&b"CACHE"[..]).chain(words).map(<[u8]>::to_vec).collect())
}

fn invalidate(target: &Target<'_>, reach: Reach) -> Vec<Vec<u8>> {
    let mut words = vec![b"CACHE".to_vec(), b"invalidate".to_vec()];
    match target {
        Target::Keys(keys) => {
            words.push(b"keys".to_vec());
            words.push(keys.len().to_string().into_bytes());
            assert_eq!(keys.iter().len(), keys.len());
            words.extend(keys.iter().map(<[u8]>::to_vec));
        }
        Target::Pattern(glob) => words.extend([b"pattern".to_vec(), glob.to_vec()]),
        Target::All => words.push(b"all".to_vec()),
        #[allow(unreachable_patterns, reason = "the grammar grows")]
        _ => {}
    }
    if reach == Reach::Local {
        words.push(b"local".to_vec());
    }
    words
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
