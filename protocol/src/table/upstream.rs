//! Rows out of an upstream's `COMMAND` reply.
//!
//! Servers from 7.0 on send ten elements a row (name, arity, flags, first, last, step, categories, tips, key specs,
//! subcommands); older ones stop after the categories and list no subcommands. Elements that are missing or have
//! another type leave their column as it is; a row without a name is left out.

use std::borrow::Cow;

use super::command::{Command, Origin};
use super::flags::{CATEGORY_WORDS, FLAG_WORDS, TIP_WORDS, from_words};
use super::keys::{BeginSearch, FindKeys, KeyFlags, KeySpec, key_flags_from};
use super::reply::{Node, ReplyError};
use super::rows;

/// Longest command name taken over, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Most key specifications taken over for a command; with more, its keys are taken as unknown.
const SPECS_MAX: usize = 32;
/// Most rows taken over; a `u16` index must do, and a server with modules has about 1,000.
pub(super) const ROWS_MAX: usize = 16_384;

/// A row of an upstream, and how much of a row it is.
#[derive(Clone, Debug)]
pub(super) struct UpstreamRow {
    pub(super) command: Command,
    /// False for servers before 7.0: no tips, no key specifications, no subcommands.
    pub(super) is_full: bool,
}

/// All rows of a raw `COMMAND` reply, containers before their subcommands.
pub(super) fn read(reply: &[u8]) -> Result<Vec<UpstreamRow>, ReplyError> {
    let node = Node::read(reply)?;
    if !matches!(node, Node::List(_)) {
        return Err(ReplyError::Unexpected);
    }
    let mut rows = Vec::new();
    for row in node.items() {
        push_row(row, &mut rows)?;
        let subcommands = row.items().get(9).map(Node::items).unwrap_or_default();
        for sub in subcommands {
            push_row(sub, &mut rows)?;
        }
    }
    if rows.is_empty() { Err(ReplyError::Unexpected) } else { Ok(rows) }
}

fn push_row(row: &Node<'_>, rows: &mut Vec<UpstreamRow>) -> Result<(), ReplyError> {
    if rows.len() >= ROWS_MAX {
        return Err(ReplyError::TooLarge);
    }
    rows.extend(read_row(row));
    Ok(())
}

fn read_row(row: &Node<'_>) -> Option<UpstreamRow> {
    let columns = row.items();
    let name = std::str::from_utf8(columns.first()?.text()?).ok()?.to_ascii_lowercase();
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return None;
    }
    let mut command = rows::blank(Cow::Owned(name), Origin::Upstream);
    let small = |i: usize| columns.get(i).and_then(Node::int).and_then(|n| i16::try_from(n).ok());
    command.arity = small(1)?;
    command.flags = from_words(FLAG_WORDS, texts(columns.get(2)));
    command.first_key = small(3)?;
    command.last_key = small(4)?;
    command.step = small(5)?;
    let categories = texts(columns.get(6)).map(|word| word.strip_prefix(b"@").unwrap_or(word));
    command.categories = from_words(CATEGORY_WORDS, categories);
    command.tips = from_words(TIP_WORDS, texts(columns.get(7)));
    command.key_specs = match columns.get(8) {
        Some(specs) if specs.items().len() > SPECS_MAX => vec![unknown_spec()].into(),
        Some(specs) => specs.items().iter().map(read_spec).collect::<Vec<_>>().into(),
        None => {
            let legacy = KeySpec::legacy(KeyFlags::RW, command.first_key, command.last_key, command.step);
            legacy.into_iter().collect::<Vec<_>>().into()
        }
    };
    Some(UpstreamRow { command, is_full: columns.len() >= 9 })
}

fn texts<'n, 'a>(node: Option<&'n Node<'a>>) -> impl Iterator<Item = &'a [u8]> + use<'n, 'a> {
    node.map(Node::items).unwrap_or_default().iter().filter_map(Node::text)
}

/// A specification that tells nothing: what cannot be read is not guessed.
fn unknown_spec() -> KeySpec {
    KeySpec { flags: KeyFlags::INCOMPLETE, begin: BeginSearch::Unknown, find: FindKeys::Unknown }
}

fn read_spec(node: &Node<'_>) -> KeySpec {
    try_read_spec(node).unwrap_or_else(unknown_spec)
}

fn try_read_spec(node: &Node<'_>) -> Option<KeySpec> {
    let flags = key_flags_from(texts(node.field("flags")));
    let begin = node.field("begin_search")?;
    let spec = begin.field("spec")?;
    let begin = match begin.field("type")?.text()? {
        b"index" => BeginSearch::Index(number(spec, "index")?),
        b"keyword" => BeginSearch::Keyword {
            word: Cow::Owned(std::str::from_utf8(spec.field("keyword")?.text()?).ok()?.to_owned()),
            from: number(spec, "startfrom")?,
        },
        _ => BeginSearch::Unknown,
    };
    let find = node.field("find_keys")?;
    let spec = find.field("spec")?;
    let find = match find.field("type")?.text()? {
        b"range" => FindKeys::Range {
            last: number(spec, "lastkey")?,
            step: number(spec, "keystep")?,
            limit: number(spec, "limit")?,
        },
        b"keynum" => FindKeys::Keynum {
            at: number(spec, "keynumidx")?,
            first: number(spec, "firstkey")?,
            step: number(spec, "keystep")?,
        },
        _ => FindKeys::Unknown,
    };
    Some(KeySpec { flags, begin, find })
}

fn number<T: TryFrom<i64>>(spec: &Node<'_>, field: &str) -> Option<T> {
    spec.field(field)?.int().and_then(|n| T::try_from(n).ok())
}
