//! `CACHE INVALIDATE`: what is to go, and how far.

use super::tags::parse_tags;
use super::{Access, CacheCommand, CacheError, KeyList, Subcommand, is};
use crate::args::Args;
use crate::scan::strict_i64;

/// What is to be invalidated.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// These keys, at least one.
    Keys(KeyList<'a>),
    /// All keys that match a glob pattern.
    Pattern {
        /// The pattern.
        glob: &'a [u8],
        /// Where an earlier call has ended; from the beginning if there was none.
        from: Option<u64>,
    },
    /// All keys that have one, or all, of these tags.
    Tags(Matching, KeyList<'a>),
    /// The whole database.
    All,
}

/// How many of several tags a key must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matching {
    /// `ANY`, which need not be said: at least one.
    Any,
    /// `ALL` of them.
    All,
}

/// How far an invalidation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The keys are deleted upstream, and so are gone from every cache.
    Everywhere,
    /// `LOCAL`: they leave this L1 only.
    Local,
}

/// `SOFT ms`: what L1 holds of the keys may still be answered, as stale, for at most so many milliseconds, while one reader
/// refreshes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Soft {
    /// The milliseconds, at least 1.
    pub ms: u64,
}

pub(super) const INVALIDATE: Subcommand = Subcommand {
    name: "invalidate",
    arity: -3,
    syntax: "(KEYS <numkeys> <key> [<key> ...]|PATTERN <glob> [CURSOR <cursor>]|TAGS [ANY|ALL] <numtags> <tag> [<tag> ...]|ALL) [LOCAL] [SOFT <ms>]",
    help: &[
        "Delete keys upstream, and so from every cache. With LOCAL, only drop them",
        "from the L1 of this Larder. Return the number of keys; OK for ALL.",
        "With CURSOR, look on from where an earlier call has ended (see CACHE JOBS).",
        "With SOFT, this L1 answers what it holds for at most so long, as stale, while",
        "one reader of each key gets what the upstream says.",
    ],
    since: "0.1.0",
    complexity: "O(N) where N is the number of keys named, or of keys in the database for PATTERN and ALL, or of keys with the tags",
    keys: "RW,delete/keyword=KEYS,2/keynum=0,1,1",
    access: Access::Removes,
};

/// `CACHE INVALIDATE` and at least one argument.
pub(super) fn parse(args: Args<'_>) -> Result<CacheCommand<'_>, CacheError> {
    let kind = args.arg(2);
    let wrong_arity = Err(CacheError::Arity("invalidate"));
    let (target, end) = match () {
        () if is(kind, "keys") && args.len() < 5 => return wrong_arity,
        () if is(kind, "keys") => {
            let keys = KeyList::parse(args, 3)?;
            (Target::Keys(keys), keys.end())
        }
        () if is(kind, "pattern") => match args.get(3) {
            Some(glob) => parse_pattern(args, glob)?,
            None => return wrong_arity,
        },
        () if is(kind, "tags") => parse_tagged(args)?,
        () if is(kind, "all") => (Target::All, 3),
        () => return Err(CacheError::Syntax),
    };
    let goes_on = matches!(target, Target::Pattern { from: Some(_), .. });
    let (reach, soft) = parse_modifiers(args, end)?;
    if goes_on && reach == Reach::Local {
        return Err(CacheError::Syntax);
    }
    Ok(CacheCommand::Invalidate(target, reach, soft))
}

/// `[LOCAL] [SOFT ms]`, in any order, each once, to the end.
fn parse_modifiers(args: Args<'_>, mut at: usize) -> Result<(Reach, Option<Soft>), CacheError> {
    let (mut reach, mut soft) = (Reach::Everywhere, None);
    while let Some(word) = args.get(at) {
        match args.get(at + 1) {
            _ if is(word, "local") && reach == Reach::Everywhere => {
                reach = Reach::Local;
                at += 1;
            }
            Some(ms) if is(word, "soft") && soft.is_none() => {
                let ms = strict_i64(ms).ok_or(CacheError::NotInteger)?;
                let ms = u64::try_from(ms).ok().filter(|ms| *ms > 0).ok_or(CacheError::SoftTime)?;
                soft = Some(Soft { ms });
                at += 2;
            }
            _ => return Err(CacheError::Syntax),
        }
    }
    Ok((reach, soft))
}

/// `[ANY|ALL] numtags tag ...`, and where it ends.
fn parse_tagged(args: Args<'_>) -> Result<(Target<'_>, usize), CacheError> {
    let said = args.get(3).unwrap_or_default();
    let (matching, at) = match () {
        () if is(said, "any") => (Matching::Any, 4),
        () if is(said, "all") => (Matching::All, 4),
        () => (Matching::Any, 3),
    };
    if args.len() < at + 2 {
        return Err(CacheError::Arity("invalidate"));
    }
    let tags = parse_tags(args, at)?;
    Ok((Target::Tags(matching, tags), tags.end()))
}

/// `glob [CURSOR cursor]`, and where it ends.
fn parse_pattern<'a>(args: Args<'a>, glob: &'a [u8]) -> Result<(Target<'a>, usize), CacheError> {
    if !args.get(4).is_some_and(|word| is(word, "cursor")) {
        return Ok((Target::Pattern { glob, from: None }, 4));
    }
    let cursor = args.get(5).ok_or(CacheError::Syntax)?;
    Ok((Target::Pattern { glob, from: Some(parse_cursor(cursor)?) }, 6))
}

/// A cursor as SCAN gives them.
pub(super) fn parse_cursor(word: &[u8]) -> Result<u64, CacheError> {
    let digits = std::str::from_utf8(word).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or(CacheError::Cursor)
}
