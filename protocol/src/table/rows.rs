//! The committed rows, and the text form in which they are kept.
//!
//! `rows.txt` is written by the example `generate_table` from live servers: one line a command, columns separated by
//! one blank, `-` for an empty column, lines that begin with `#` are comments:
//!
//! ```text
//! name arity flags categories first last step tips since group key-specs
//! lpop -2 write,fast write,list,fast 1 1 1 - 1.0.0 list RW,access,delete/index=1/range=0,1,0
//! ```
//!
//! Key specifications are joined by `;`, each `flags/begin/find` with begin one of `index=N`, `keyword=WORD,FROM`,
//! `unknown` and find one of `range=LAST,STEP,LIMIT`, `keynum=AT,FIRST,STEP`, `unknown`.
//!
//! A line that cannot be parsed is left out, and its command thereby unknown, which is safe; a test sees to it that
//! there is none.

use std::borrow::Cow;

use super::class::{Class, Refinement};
use super::command::{Command, CommandId, Origin};
use super::flags::{
    CATEGORY_WORDS, Categories, FLAG_WORDS, Flags, GROUP_WORDS, Group, TIP_WORDS, Tips, from_word, from_words,
};
use super::keys::{BeginSearch, FindKeys, KeyRule, KeySpec, key_flags_from};
use crate::shape::ShapeRule;

/// The committed rows, sorted by name; a subcommand's row comes after its container's.
pub(super) const BUILTIN: &str = include_str!("rows.txt");

/// Parses every line of `text` that is a row. Ids and parents are the table's to fill in.
pub(super) fn parse(text: &'static str) -> impl Iterator<Item = Command> {
    rows_of(text).filter_map(parse_row)
}

fn rows_of(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// A row without any knowledge, to be filled in.
pub(super) fn blank(name: Cow<'static, str>, origin: Origin) -> Command {
    Command {
        id: CommandId(0),
        name,
        arity: -1,
        flags: Flags::default(),
        categories: Categories::default(),
        tips: Tips::default(),
        first_key: 0,
        last_key: 0,
        step: 0,
        key_specs: Cow::Borrowed(&[]),
        group: Group::Other,
        since: Cow::Borrowed(""),
        parent: None,
        is_container: false,
        origin,
        on_upstream: true,
        shape: ShapeRule::Unknown,
        class: Class::Exclusive,
        refinement: Refinement::Fixed,
        key_rule: KeyRule::Specs,
        single_key: 0,
    }
}

fn parse_row(line: &'static str) -> Option<Command> {
    let mut columns = line.split(' ');
    let mut row = blank(Cow::Borrowed(columns.next()?), Origin::Builtin);
    row.arity = columns.next()?.parse().ok()?;
    row.flags = from_words(FLAG_WORDS, words(columns.next()?));
    row.categories = from_words(CATEGORY_WORDS, words(columns.next()?));
    row.first_key = columns.next()?.parse().ok()?;
    row.last_key = columns.next()?.parse().ok()?;
    row.step = columns.next()?.parse().ok()?;
    row.tips = from_words(TIP_WORDS, words(columns.next()?));
    row.since = Cow::Borrowed(columns.next()?);
    row.group = from_word(GROUP_WORDS, columns.next()?.as_bytes())?;
    let specs = columns.next().filter(|specs| *specs != "-");
    row.key_specs =
        specs.into_iter().flat_map(|specs| specs.split(';')).map(parse_spec).collect::<Option<Vec<_>>>()?.into();
    columns.next().is_none().then_some(row)
}

fn words(column: &str) -> impl Iterator<Item = &[u8]> {
    column.split(',').map(str::as_bytes)
}

/// One key specification in the notation of the rows.
pub(super) fn parse_spec(text: &'static str) -> Option<KeySpec> {
    let mut parts = text.split('/');
    let flags = key_flags_from(words(parts.next()?));
    let begin = match parts.next()?.split_once('=') {
        Some(("index", index)) => BeginSearch::Index(index.parse().ok()?),
        Some(("keyword", rest)) => {
            let (word, from) = rest.split_once(',')?;
            BeginSearch::Keyword { word: Cow::Borrowed(word), from: from.parse().ok()? }
        }
        Some(_) => return None,
        None => BeginSearch::Unknown,
    };
    let find = match parts.next()?.split_once('=') {
        Some(("range", rest)) => {
            let [last, step, limit] = three(rest)?;
            FindKeys::Range { last: last.parse().ok()?, step: step.parse().ok()?, limit: limit.parse().ok()? }
        }
        Some(("keynum", rest)) => {
            let [at, first, step] = three(rest)?;
            FindKeys::Keynum { at: at.parse().ok()?, first: first.parse().ok()?, step: step.parse().ok()? }
        }
        Some(_) => return None,
        None => FindKeys::Unknown,
    };
    Some(KeySpec { flags, begin, find })
}

fn three(text: &str) -> Option<[&str; 3]> {
    let mut parts = text.split(',');
    let three = [parts.next()?, parts.next()?, parts.next()?];
    parts.next().is_none().then_some(three)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_committed_line_is_a_row() {
        for line in rows_of(BUILTIN) {
            assert!(parse_row(line).is_some(), "not a row: {line}");
        }
    }

    #[test]
    fn malformed_lines_are_left_out() {
        for line in
            ["", "get", "get 2 readonly", "get x - - 1 1 1 - 1.0.0 string -", "get 2 - - 1 1 1 - 1 string a/b=/c"]
        {
            assert!(parse_row(line).is_none(), "{line}");
        }
    }
}
