//! Tags: `CACHE SET`, `TAG`, `UNTAG`, `TAGS`, `MEMBERS`, `TAGLIST`, and `LEASE`.

use super::{Access, CacheCommand, CacheError, KeyList, Subcommand, invalidate::parse_cursor, is};
use crate::args::Args;
use crate::scan::strict_i64;

/// A request about tags.
#[derive(Clone, Copy, Debug)]
pub enum TagsCommand<'a> {
    /// `SET key value [option ...] [TAGS n tag ...] [LEASE token]`
    Set(TaggedSet<'a>),
    /// `TAG key n tag ...`
    Tag(&'a [u8], KeyList<'a>),
    /// `UNTAG key n tag ...`
    Untag(&'a [u8], KeyList<'a>),
    /// `TAGS key`
    Tags(&'a [u8]),
    /// `MEMBERS tag [COUNT n] [CURSOR c]`
    Members {
        /// The tag.
        tag: &'a [u8],
        /// About how many keys one reply is to have.
        count: usize,
        /// Where the last reply has ended.
        cursor: u64,
    },
    /// `TAGLIST [MATCH glob]`
    List(Option<&'a [u8]>),
    /// `LEASE key [TAGS n tag ...]`
    Lease(&'a [u8], Option<KeyList<'a>>),
}

/// `CACHE SET`, understood as far as Larder needs to: what else is said of SET, the store judges.
#[derive(Clone, Copy, Debug)]
pub struct TaggedSet<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// The tags of the value; none are said if it has none.
    pub tags: Option<KeyList<'a>>,
    /// The token without which nothing is to be stored.
    pub lease: Option<&'a [u8]>,
    /// What decides whether the value is stored.
    pub condition: Condition<'a>,
    /// True if the reply is to be the old value.
    pub gets: bool,
    args: Args<'a>,
}

/// What decides whether `SET` stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// Nothing.
    Always,
    /// `NX`
    IfMissing,
    /// `XX`
    IfPresent,
    /// `IFEQ value`, which Valkey has.
    IfEqual(&'a [u8]),
}

/// What stands at one place behind the value.
enum Part<'a> {
    /// An option of SET, of so many words.
    Option(usize),
    Tags(KeyList<'a>),
    Lease(&'a [u8]),
}

/// Keys that a reply to `MEMBERS` has if no number is said, and most that can be asked for.
const COUNT_DEFAULT: usize = 100;
const COUNT_MAX: usize = 1000;
/// Where the options of `CACHE SET` begin.
const OPTIONS_AT: usize = 4;

pub(super) const LEASE: Subcommand = Subcommand {
    name: "lease",
    arity: -3,
    syntax: "<key> [TAGS <numtags> <tag> [<tag> ...]]",
    help: &[
        "For a <key> that is not there: a token for SET, which is void once the key or one",
        "of the tags is invalidated. Others are told to wait.",
    ],
    since: "0.1.0",
    complexity: "O(N) where N is the number of tags",
    keys: "RW,access,update/index=2/range=0,1,0",
    access: Access::Writes,
};
pub(super) const MEMBERS: Subcommand = Subcommand {
    name: "members",
    arity: -3,
    syntax: "<tag> [COUNT <count>] [CURSOR <cursor>]",
    help: &["Return a cursor and keys that have the tag, as SSCAN does; the last cursor is 0."],
    since: "0.1.0",
    complexity: "O(N) where N is COUNT",
    keys: "-",
    access: Access::Lists,
};
pub(super) const SET: Subcommand = Subcommand {
    name: "set",
    arity: -4,
    syntax: "<key> <value> [<option> ...] [TAGS <numtags> <tag> [<tag> ...]] [LEASE <token>]",
    help: &[
        "Set a value and its tags in one step; the tags that <key> had before are gone.",
        "With LEASE, fail if the token is void.",
    ],
    since: "0.1.0",
    complexity: "O(N) where N is the number of tags, of before and of now",
    keys: "RW,access,update/index=2/range=0,1,0",
    access: Access::Writes,
};
pub(super) const TAG: Subcommand = Subcommand {
    name: "tag",
    arity: -5,
    syntax: "<key> <numtags> <tag> [<tag> ...]",
    help: &["Give a key further tags. Return how many are new; 0 if there is no such key."],
    since: "0.1.0",
    complexity: "O(N) where N is the number of tags",
    keys: "RW,update/index=2/range=0,1,0",
    access: Access::Writes,
};
pub(super) const TAGLIST: Subcommand = Subcommand {
    name: "taglist",
    arity: -2,
    syntax: "[MATCH <glob>]",
    help: &["Return all tags, or those that match, each with its number of keys."],
    since: "0.1.0",
    complexity: "O(N) where N is the number of tags in use",
    keys: "-",
    access: Access::Shows,
};
pub(super) const TAGS: Subcommand = Subcommand {
    name: "tags",
    arity: 3,
    syntax: "<key>",
    help: &["Return the tags of a key."],
    since: "0.1.0",
    complexity: "O(N) where N is the number of tags of the key",
    keys: "RO,access/index=2/range=0,1,0",
    access: Access::Reads,
};
pub(super) const UNTAG: Subcommand = Subcommand {
    name: "untag",
    arity: -5,
    syntax: "<key> <numtags> <tag> [<tag> ...]",
    help: &["Take tags off a key. Return how many it had."],
    since: "0.1.0",
    complexity: "O(N) where N is the number of tags",
    keys: "RW,update/index=2/range=0,1,0",
    access: Access::Writes,
};

/// One of the subcommands above, with at least as many arguments as it needs.
pub(super) fn parse<'a>(name: &'static str, args: Args<'a>) -> Result<CacheCommand<'a>, CacheError> {
    let wrong_arity = Err(CacheError::Arity(name));
    let key = args.arg(2);
    Ok(CacheCommand::Tags(match name {
        "set" => TagsCommand::Set(parse_set(args)?),
        "tag" => TagsCommand::Tag(key, last_tags(args, 3)?),
        "untag" => TagsCommand::Untag(key, last_tags(args, 3)?),
        "tags" => TagsCommand::Tags(key),
        "members" => parse_members(args)?,
        "taglist" => match args.len() {
            2 => TagsCommand::List(None),
            4 if is(args.arg(2), "match") => TagsCommand::List(args.get(3)),
            3 | 4 => return Err(CacheError::Syntax),
            _ => return wrong_arity,
        },
        _ if args.len() == 3 => TagsCommand::Lease(key, None),
        _ if is(args.arg(3), "tags") && args.len() > 5 => TagsCommand::Lease(key, Some(last_tags(args, 4)?)),
        _ => return Err(CacheError::Syntax),
    }))
}

/// `numtags tag ...` from argument `at` on.
pub(super) fn parse_tags(args: Args<'_>, at: usize) -> Result<KeyList<'_>, CacheError> {
    KeyList::parse(args, at).map_err(|error| match error {
        CacheError::Numkeys => CacheError::Numtags,
        CacheError::KeysMissing => CacheError::TagsMissing,
        error => error,
    })
}

/// As [`parse_tags`], with nothing behind.
fn last_tags(args: Args<'_>, at: usize) -> Result<KeyList<'_>, CacheError> {
    let tags = parse_tags(args, at)?;
    if tags.end() == args.len() { Ok(tags) } else { Err(CacheError::Syntax) }
}

fn parse_members(args: Args<'_>) -> Result<TagsCommand<'_>, CacheError> {
    let (mut count, mut cursor) = (COUNT_DEFAULT, 0);
    for at in (3..args.len()).step_by(2) {
        let (word, value) = (args.arg(at), args.get(at + 1).ok_or(CacheError::Syntax)?);
        if is(word, "count") {
            let wanted = strict_i64(value).ok_or(CacheError::NotInteger)?;
            count = usize::try_from(wanted).ok().filter(|n| (1..=COUNT_MAX).contains(n)).ok_or(CacheError::Count)?;
        } else if is(word, "cursor") {
            cursor = parse_cursor(value)?;
        } else {
            return Err(CacheError::Syntax);
        }
    }
    Ok(TagsCommand::Members { tag: args.arg(2), count, cursor })
}

fn parse_set(args: Args<'_>) -> Result<TaggedSet<'_>, CacheError> {
    let (key, value) = (args.arg(2), args.arg(3));
    let mut set = TaggedSet { key, value, tags: None, lease: None, condition: Condition::Always, gets: false, args };
    let mut at = OPTIONS_AT;
    while at < args.len() {
        let (part, end) = part_at(args, at)?;
        match part {
            Part::Tags(tags) if set.tags.is_none() => set.tags = Some(tags),
            Part::Lease(token) if set.lease.is_none() => set.lease = Some(token),
            Part::Option(_) => set.note(at),
            _ => return Err(CacheError::Syntax),
        }
        at = end;
    }
    Ok(set)
}

/// What stands at argument `at`, and where the next part begins.
fn part_at(args: Args<'_>, at: usize) -> Result<(Part<'_>, usize), CacheError> {
    let word = args.arg(at);
    if is(word, "tags") {
        args.get(at + 1).ok_or(CacheError::Syntax)?;
        let tags = parse_tags(args, at + 1)?;
        return Ok((Part::Tags(tags), tags.end()));
    }
    if is(word, "lease") {
        return Ok((Part::Lease(args.get(at + 1).ok_or(CacheError::Syntax)?), at + 2));
    }
    let takes_value = ["ex", "px", "exat", "pxat", "ifeq"].iter().any(|option| is(word, option));
    let words = if takes_value && at + 1 < args.len() { 2 } else { 1 };
    Ok((Part::Option(words), at + words))
}

// === impl TaggedSet ===

impl<'a> TaggedSet<'a> {
    /// The options of SET, word by word.
    pub fn options(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let args = self.args;
        let mut at = OPTIONS_AT;
        let next = move || {
            while at < args.len() {
                // Understood before.
                let (part, end) = part_at(args, at).ok()?;
                let from = std::mem::replace(&mut at, end);
                if let Part::Option(words) = part {
                    return Some((from..from + words).map(move |i| args.arg(i)));
                }
            }
            None
        };
        std::iter::from_fn(next).flatten()
    }

    fn note(&mut self, at: usize) {
        let word = self.args.arg(at);
        match () {
            () if is(word, "get") => self.gets = true,
            () if is(word, "nx") => self.condition = Condition::IfMissing,
            () if is(word, "xx") => self.condition = Condition::IfPresent,
            () if is(word, "ifeq") => self.condition = Condition::IfEqual(self.args.get(at + 1).unwrap_or_default()),
            () => {}
        }
    }
}
