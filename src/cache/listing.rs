//! CACHE in `COMMAND` and its subcommands, so that redis-cli completes it and client libraries know where its keys are.
//!
//! The upstream knows nothing of CACHE. Its reply is passed on with what it lacks: a row more, a name more, one more
//! counted. What the upstream words (errors, its own commands) stays as it is.
//!
//! Invariants: a reply that is not understood is passed on unchanged; what is put in is in the protocol of the reply
//! that it is put into.

use super::reply::Reply;
use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::cache::SUBCOMMANDS;
use larder_protocol::cache::syntax::{Argument, Kind};
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::glob::{self, Case};
use larder_protocol::shape::{self, Protocol, Shape};
use larder_protocol::table::flags::{CATEGORY_WORDS, Categories, FLAG_WORDS};
use larder_protocol::table::keys::{BeginSearch, FindKeys, KEY_FLAG_WORDS, KeyFlags, KeySpec};
use larder_protocol::table::{Command, Group, KeyKnowledge, Resolved, Table};

/// The container's name.
const CACHE: &str = "cache";
/// What the container is, in `COMMAND DOCS`.
const SUMMARY: &str = "A container for the commands of the cache proxy Larder";

/// True if the reply to this request is to be passed through [`patched`].
pub(crate) fn concerns(name: &str) -> bool {
    let (container, sub) = name.split_once('|').unwrap_or((name, ""));
    container == "command" && matches!(sub, "" | "count" | "list" | "info" | "docs" | "getkeys" | "getkeysandflags")
}

/// The upstream's reply to `args`, a request of COMMAND, with what it lacks of CACHE; `None` if it lacks nothing.
pub(crate) fn patched(table: &Table, args: Args<'_>, reply: &[u8], protocol: Protocol) -> Option<Vec<u8>> {
    let sub = args.get(1).unwrap_or_default().to_ascii_lowercase();
    if matches!(&sub[..], b"getkeys" | b"getkeysandflags") {
        // The right to ask is the upstream's to give.
        let may = !reply.starts_with(b"-NOPERM") && args.len() > 3 && is_own(table, args.arg(2));
        return may.then(|| in_protocol(keys_of(table, args), protocol));
    }
    if !matches!(reply.first(), Some(b'*' | b'~' | b'%' | b':')) {
        return None;
    }
    let names: Vec<&[u8]> = args.iter().skip(2).collect();
    let mut added = Vec::new();
    match &sub[..] {
        b"" => added.push(row(table, container(table)?)),
        b"count" => return Cursor::new(reply).next_integer().map(|n| format!(":{}\r\n", n + 1).into_bytes()),
        b"list" => {
            let filter = Filter::parse(&names)?;
            let listed = table.iter().filter(|c| c.group == Group::Larder && filter.admits(c));
            added.extend(listed.map(|c| Reply::default().bulk(&c.name).take()));
        }
        b"info" if names.is_empty() => added.push(row(table, container(table)?)),
        b"info" => return with_rows(table, &names, reply, protocol),
        b"docs" if names.is_empty() => added.push(docs(table, container(table)?)),
        b"docs" => added.extend(names.iter().filter_map(|name| own(table, name)).map(|c| docs(table, c))),
        _ => return None,
    }
    appended(reply, added, protocol)
}

/// What `COMMAND INFO` says of a command, its subcommands included, in RESP3.
pub(crate) fn row(table: &Table, command: &Command) -> Vec<u8> {
    let mut reply = Reply::default();
    reply.array(10).bulk(&command.name).integer(command.arity);
    words(&mut reply, "", FLAG_WORDS.iter().filter(|(_, bit)| command.flags.contains(*bit)).map(|(word, _)| *word));
    reply.integer(command.first_key).integer(command.last_key).integer(command.step);
    let categories = CATEGORY_WORDS.iter().filter(|(_, bit)| command.categories.contains(*bit));
    words(&mut reply, "@", categories.map(|(word, _)| *word));
    reply.set(0).set(command.key_specs.len());
    for spec in command.key_specs.iter() {
        key_spec(&mut reply, spec);
    }
    let subcommands: Vec<&Command> = table.iter().filter(|c| c.parent == Some(command.id)).collect();
    reply.set(subcommands.len());
    for subcommand in subcommands {
        reply.frame(&row(table, subcommand));
    }
    reply.take()
}

/// Name and documentation of CACHE or one of its subcommands, as `COMMAND DOCS` has them, in RESP3.
pub(crate) fn docs(table: &Table, command: &Command) -> Vec<u8> {
    let mut reply = Reply::default();
    reply.bulk(&command.name);
    let Some(own) = SUBCOMMANDS.iter().find(|s| s.name == command.own_name() && command.parent.is_some()) else {
        let subcommands: Vec<&Command> = table.iter().filter(|c| c.parent == Some(command.id)).collect();
        reply.map(5).bulk("summary").bulk(SUMMARY).bulk("since").bulk(&command.since);
        reply.bulk("group").bulk("larder").bulk("complexity").bulk("Depends on subcommand.");
        reply.bulk("subcommands").map(subcommands.len());
        for subcommand in subcommands {
            reply.frame(&docs(table, subcommand));
        }
        return reply.take();
    };
    let arguments = own.arguments();
    reply.map(if arguments.is_empty() { 4 } else { 5 });
    reply.bulk("summary").bulk(&own.summary()).bulk("since").bulk(own.since);
    reply.bulk("group").bulk("larder").bulk("complexity").bulk(own.complexity);
    if !arguments.is_empty() {
        reply.bulk("arguments").array(arguments.len());
        for argument in &arguments {
            describe(&mut reply, argument);
        }
    }
    reply.take()
}

/// `COMMAND GETKEYS` and `GETKEYSANDFLAGS` for the request that `args` has behind them, in RESP3.
pub(crate) fn keys_of(table: &Table, args: Args<'_>) -> Vec<u8> {
    let request = OwnedArgs::new(args.iter().skip(2));
    let request = request.args();
    let Resolved::Known(command) = table.resolve(request) else {
        return b"-ERR Invalid command specified\r\n".to_vec();
    };
    if !command.accepts(request.len()) {
        return b"-ERR Invalid number of arguments specified for command\r\n".to_vec();
    }
    let knowledge = command.key_knowledge(request);
    if knowledge == KeyKnowledge::None {
        return b"-ERR The command has no key arguments\r\n".to_vec();
    }
    let keys: Vec<usize> = command.keys(request).collect();
    if keys.is_empty() && knowledge == KeyKnowledge::Incomplete {
        return b"-ERR Invalid arguments specified for command\r\n".to_vec();
    }
    let mut reply = Reply::default();
    reply.array(keys.len());
    let written: Vec<usize> = command.written_keys(request).collect();
    for key in keys {
        if !args.arg(1).eq_ignore_ascii_case(b"getkeysandflags") {
            reply.bytes(request.arg(key));
            continue;
        }
        let is_written = written.contains(&key);
        let spec = command.key_specs.iter().find(|spec| spec.flags.contains(KeyFlags::RO) != is_written);
        reply.array(2).bytes(request.arg(key));
        words(&mut reply, "", key_flags(spec.map_or(KeyFlags::empty(), |spec| spec.flags)));
    }
    reply.take()
}

/// The filter of `COMMAND LIST`: what is behind `LIST`.
#[derive(Debug)]
pub(crate) enum Filter<'a> {
    /// None: everything.
    All,
    /// `FILTERBY ACLCAT category`; nothing is in a category that is none.
    Category(Option<Categories>),
    /// `FILTERBY PATTERN glob`
    Pattern(&'a [u8]),
    /// `FILTERBY MODULE name`: nothing of Larder's is in a module.
    Module,
}

impl<'a> Filter<'a> {
    /// `None` for a syntax error.
    pub(crate) fn parse(words: &[&'a [u8]]) -> Option<Self> {
        let [by, what, value] = words else { return words.is_empty().then_some(Self::All) };
        let what = by.eq_ignore_ascii_case(b"filterby").then(|| what.to_ascii_lowercase())?;
        match &what[..] {
            b"aclcat" => {
                let category = CATEGORY_WORDS.iter().find(|(word, _)| value.eq_ignore_ascii_case(word.as_bytes()));
                Some(Self::Category(category.map(|(_, bit)| *bit)))
            }
            b"pattern" => Some(Self::Pattern(value)),
            b"module" => Some(Self::Module),
            _ => None,
        }
    }

    /// True if the command passes.
    pub(crate) fn admits(&self, command: &Command) -> bool {
        match self {
            Self::All => true,
            Self::Category(category) => category.is_some_and(|bit| command.categories.contains(bit)),
            Self::Pattern(glob) => glob::matches(glob, command.name.as_bytes(), Case::Insensitive),
            Self::Module => false,
        }
    }
}

fn container(table: &Table) -> Option<&Command> {
    table.lookup(CACHE.as_bytes())
}

/// CACHE, or a subcommand by its full name.
pub(crate) fn own<'t>(table: &'t Table, name: &[u8]) -> Option<&'t Command> {
    let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
    table.by_full_name(&name).filter(|c| c.group == Group::Larder)
}

fn is_own(table: &Table, name: &[u8]) -> bool {
    table.lookup(name).is_some_and(|c| c.group == Group::Larder)
}

/// The reply to `COMMAND INFO name ...`: rows in the places of nulls.
fn with_rows(table: &Table, names: &[&[u8]], reply: &[u8], protocol: Protocol) -> Option<Vec<u8>> {
    let mut cursor = Cursor::new(reply);
    let count = cursor.next_count().filter(|n| *n == names.len() as u64)?;
    let mut out = format!("*{count}\r\n").into_bytes();
    for name in names {
        let theirs = cursor.next_frame()?;
        match own(table, name) {
            Some(command) => out.extend(in_protocol(row(table, command), protocol)),
            None => out.extend_from_slice(theirs),
        }
    }
    Some(out)
}

/// An aggregate with elements (for a map: pairs) more.
fn appended(reply: &[u8], added: Vec<Vec<u8>>, protocol: Protocol) -> Option<Vec<u8>> {
    let mut cursor = Cursor::new(reply);
    let Some(Item::Aggregate(kind, count)) = cursor.next() else { return None };
    // What is added to a map is name and value in one.
    let of_pairs = kind == b'%' || added.iter().any(|frame| holds_two(frame));
    let elements = count + added.len() as u64 * if of_pairs { 2 } else { 1 };
    let shown = if kind == b'%' { elements / 2 } else { elements };
    let mut out = format!("{}{shown}\r\n", char::from(kind)).into_bytes();
    let head = reply.iter().position(|b| *b == b'\n')? + 1;
    out.extend_from_slice(&reply[head..]);
    for frame in added {
        let mut rest = Cursor::new(&frame);
        while let Some(element) = rest.next_frame().filter(|element| !element.is_empty()) {
            out.extend(in_protocol(element.to_vec(), protocol));
        }
    }
    Some(out)
}

fn holds_two(frame: &[u8]) -> bool {
    let mut cursor = Cursor::new(frame);
    cursor.next_frame().is_some() && cursor.next_frame().is_some()
}

/// What RESP3 says, in the given protocol.
pub(crate) fn in_protocol(frame: Vec<u8>, protocol: Protocol) -> Vec<u8> {
    if protocol == Protocol::Resp3 {
        return frame;
    }
    let mut resp2 = Vec::with_capacity(frame.len());
    match shape::to_resp2(Shape::GENERIC, &frame, &mut resp2) {
        Ok(()) => resp2,
        Err(_) => frame,
    }
}

fn words<'w>(reply: &mut Reply, prefix: &str, words: impl Iterator<Item = &'w str>) {
    let mut seen: Vec<&str> = Vec::new();
    for word in words {
        // Two servers have two words for one flag.
        if word != "skip_commandlog" {
            seen.push(word);
        }
    }
    reply.set(seen.len());
    for word in seen {
        reply.simple(&format!("{prefix}{word}"));
    }
}

fn key_flags(flags: KeyFlags) -> impl Iterator<Item = &'static str> {
    KEY_FLAG_WORDS.iter().filter(move |(_, bit)| flags.contains(*bit)).map(|(word, _)| *word)
}

fn key_spec(reply: &mut Reply, spec: &KeySpec) {
    reply.map(3).bulk("flags");
    words(reply, "", key_flags(spec.flags));
    reply.bulk("begin_search").map(2).bulk("type");
    match &spec.begin {
        BeginSearch::Index(index) => reply.bulk("index").bulk("spec").map(1).bulk("index").integer(*index),
        BeginSearch::Keyword { word, from } => {
            reply.bulk("keyword").bulk("spec").map(2).bulk("keyword").bulk(word).bulk("startfrom").integer(*from)
        }
        BeginSearch::Unknown => reply.bulk("unknown").bulk("spec").map(0),
    };
    reply.bulk("find_keys").map(2).bulk("type");
    match spec.find {
        FindKeys::Range { last, step, limit } => {
            reply.bulk("range").bulk("spec").map(3).bulk("lastkey").integer(last);
            reply.bulk("keystep").integer(step).bulk("limit").integer(limit)
        }
        FindKeys::Keynum { at, first, step } => {
            reply.bulk("keynum").bulk("spec").map(3).bulk("keynumidx").integer(at);
            reply.bulk("firstkey").integer(first).bulk("keystep").integer(step)
        }
        FindKeys::Unknown => reply.bulk("unknown").bulk("spec").map(0),
    };
}

/// One argument as `COMMAND DOCS` has it.
fn describe(reply: &mut Reply, argument: &Argument) {
    let inner = match &argument.kind {
        Kind::OneOf(parts) | Kind::Block(parts) => Some(parts),
        _ => None,
    };
    let flags = [(argument.is_optional, "optional"), (argument.is_multiple, "multiple")];
    let flags: Vec<&str> = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, word)| word).collect();
    let is_key = argument.kind == Kind::Key;
    let fields = [is_key, argument.token.is_some(), !flags.is_empty(), inner.is_some()];
    reply.map(2 + fields.iter().filter(|is_there| **is_there).count());
    reply.bulk("name").bulk(&argument.name).bulk("type").bulk(argument.type_word());
    if is_key {
        reply.bulk("key_spec_index").integer(0);
    }
    if let Some(token) = &argument.token {
        reply.bulk("token").bulk(token);
    }
    if !flags.is_empty() {
        reply.bulk("flags");
        words(reply, "", flags.into_iter());
    }
    if let Some(parts) = inner {
        reply.bulk("arguments").array(parts.len());
        for part in parts {
            describe(reply, part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &str, theirs: &str, protocol: Protocol) -> Option<String> {
        let args = OwnedArgs::new(line.split_whitespace());
        patched(&Table::builtin(), args.args(), theirs.as_bytes(), protocol).map(|r| String::from_utf8(r).unwrap())
    }

    #[test]
    fn puts_in_what_the_reply_lacks() {
        use Protocol::{Resp2, Resp3};
        assert_eq!(ask("command count", ":240\r\n", Resp2).unwrap(), ":241\r\n");
        assert_eq!(ask("COMMAND LIST FILTERBY PATTERN nosuch*", "*0\r\n", Resp2).unwrap(), "*0\r\n");
        let one = ask("COMMAND LIST FILTERBY PATTERN cache|e*", "*1\r\n$1\r\nx\r\n", Resp2).unwrap();
        assert_eq!(one, "*2\r\n$1\r\nx\r\n$11\r\ncache|entry\r\n");
        assert_eq!(ask("COMMAND LIST FILTERBY MODULE m", "*0\r\n", Resp3).unwrap(), "*0\r\n");
        let info = ask("COMMAND INFO nosuch cache|fence", "*2\r\n_\r\n_\r\n", Resp3).unwrap();
        assert_eq!(
            info,
            "*2\r\n_\r\n*10\r\n$11\r\ncache|fence\r\n:2\r\n~3\r\n+noscript\r\n+loading\r\n+stale\r\n:0\r\n:0\r\n:0\r\n~2\r\n+@slow\r\n+@connection\r\n~0\r\n~0\r\n~0\r\n"
        );
        let info = ask("COMMAND INFO cache|fence", "*1\r\n*-1\r\n", Resp2).unwrap();
        assert!(info.starts_with("*1\r\n*10\r\n$11\r\ncache|fence\r\n:2\r\n*3\r\n+noscript\r\n"), "{info}");
        let docs = ask("COMMAND DOCS nosuch cache|entry", "%0\r\n", Resp3).unwrap();
        assert!(docs.starts_with("%1\r\n$11\r\ncache|entry\r\n%5\r\n$7\r\nsummary\r\n"), "{docs}");
        let docs = ask("COMMAND DOCS cache|entry get", "*2\r\n$3\r\nget\r\n*0\r\n", Resp2).unwrap();
        assert!(docs.starts_with("*4\r\n$3\r\nget\r\n*0\r\n$11\r\ncache|entry\r\n*10\r\n"), "{docs}");
    }

    #[test]
    fn passes_on_what_is_not_to_be_changed() {
        for (line, reply) in [
            ("COMMAND", "-NOPERM no\r\n"),
            ("COMMAND INFO get", "-LOADING\r\n"),
            ("COMMAND GETKEYS get k", "*1\r\n$1\r\nk\r\n"),
            ("COMMAND GETKEYS cache entry k", "-NOPERM no\r\n"),
            ("COMMAND HELP", "*0\r\n"),
            ("COMMAND DOCS x", "garbage"),
        ] {
            assert_eq!(ask(line, reply, Protocol::Resp2), None, "{line}");
        }
        assert_eq!(ask("COMMAND INFO a b", "*1\r\n_\r\n", Protocol::Resp3), None, "not as many rows as names");
    }

    #[test]
    fn tells_the_keys_of_requests() {
        let unknown = "-ERR Invalid command specified\r\n";
        for (line, reply) in [
            ("COMMAND GETKEYS CACHE ENTRY k", "*1\r\n$1\r\nk\r\n"),
            ("COMMAND GETKEYS cache invalidate keys 2 a b", "*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
            ("COMMAND GETKEYSANDFLAGS CACHE ENTRY k", "*1\r\n*2\r\n$1\r\nk\r\n*1\r\n+RO\r\n"),
            ("COMMAND GETKEYS CACHE STATS", "-ERR The command has no key arguments\r\n"),
            ("COMMAND GETKEYS CACHE INVALIDATE ALL", "-ERR Invalid arguments specified for command\r\n"),
            ("COMMAND GETKEYS CACHE ENTRY", "-ERR Invalid number of arguments specified for command\r\n"),
            ("COMMAND GETKEYS CACHE NOSUCH", unknown),
        ] {
            assert_eq!(ask(line, unknown, Protocol::Resp2).as_deref(), Some(reply), "{line}");
        }
    }
}
