//! `CACHE WARM`: fills L1 before anybody asks.

use super::insight::SHOWN_MAX;
use super::tags::parse_tags;
use super::{Access, CacheCommand, CacheError, KeyList, Subcommand, is};
use crate::args::Args;
use crate::scan::strict_i64;

/// Longest time between two rounds of a schedule, in seconds: 30 days.
pub const EVERY_SECONDS_MAX: u64 = 30 * 24 * 60 * 60;
/// Most bytes of the name of a schedule.
pub const NAME_BYTES_MAX: usize = 64;

/// A request to warm.
#[derive(Clone, Copy, Debug)]
pub struct Warm<'a> {
    /// Which keys.
    pub subject: WarmSubject<'a>,
    /// When, and who waits.
    pub course: WarmCourse<'a>,
}

/// Which keys are to be warmed.
#[derive(Clone, Copy, Debug)]
pub enum WarmSubject<'a> {
    /// `KEYS n key ...`
    Keys(KeyList<'a>),
    /// `PATTERN glob`
    Pattern(&'a [u8]),
    /// `TAGS n tag ...`: those that have one of the tags.
    Tags(KeyList<'a>),
    /// `HOT [n]`: those that were used most.
    Hot(usize),
    /// `SNAPSHOT file`: those whose names were saved in it.
    Snapshot(&'a [u8]),
}

/// When it is done, and who waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmCourse<'a> {
    /// At once; the caller gets the job's number.
    Once,
    /// `SYNC`: at once; the caller waits for the end.
    Sync,
    /// `EVERY seconds NAME name`: at once, and again and again.
    Every {
        /// From the beginning of a round to that of the next.
        seconds: u64,
        /// The schedule's name.
        name: &'a [u8],
    },
}

pub(super) const WARM: Subcommand = Subcommand {
    name: "warm",
    arity: -3,
    syntax: "(KEYS <numkeys> <key> [<key> ...]|PATTERN <glob>|TAGS <numtags> <tag> [<tag> ...]|HOT [<n>]|SNAPSHOT <file>) [SYNC|EVERY <seconds> NAME <name>]",
    help: &[
        "Read keys into L1: those named, that match, with one of the tags, used most, or",
        "saved at a stop. Return the number of a job (see CACHE JOB); with SYNC, the job",
        "when it has ended. With EVERY, do it again and again, until CACHE CANCEL.",
    ],
    since: "0.1.0",
    complexity: "O(N) where N is the number of keys named, or with the tags, or of keys in the database for PATTERN",
    keys: "RO/keyword=KEYS,2/keynum=0,1,1",
    access: Access::Lists,
};

/// `CACHE WARM` and at least one argument.
pub(super) fn parse(args: Args<'_>) -> Result<CacheCommand<'_>, CacheError> {
    let wrong_arity = Err(CacheError::Arity(WARM.name));
    let kind = args.arg(2);
    let (subject, end) = match (args.get(3), args.len()) {
        (_, len) if is(kind, "keys") && len < 5 => return wrong_arity,
        (_, len) if is(kind, "tags") && len < 5 => return wrong_arity,
        _ if is(kind, "tags") => {
            let tags = parse_tags(args, 3)?;
            (WarmSubject::Tags(tags), tags.end())
        }
        _ if is(kind, "keys") => {
            let keys = KeyList::parse(args, 3)?;
            (WarmSubject::Keys(keys), keys.end())
        }
        (Some(glob), _) if is(kind, "pattern") => (WarmSubject::Pattern(glob), 4),
        (Some(name), _) if is(kind, "snapshot") => (WarmSubject::Snapshot(name), 4),
        (None, _) if is(kind, "pattern") || is(kind, "snapshot") => return wrong_arity,
        (Some(word), _) if is(kind, "hot") && !is(word, "sync") && !is(word, "every") => {
            (WarmSubject::Hot(parse_number(word, SHOWN_MAX as u64)? as usize), 4)
        }
        _ if is(kind, "hot") => (WarmSubject::Hot(SHOWN_MAX), 3),
        _ => return Err(CacheError::Syntax),
    };
    let course = parse_course(args, end)?;
    Ok(CacheCommand::Warm(Warm { subject, course }))
}

/// What stands from argument `at` on.
fn parse_course(args: Args<'_>, at: usize) -> Result<WarmCourse<'_>, CacheError> {
    match (args.get(at), args.len() - at) {
        (None, _) => Ok(WarmCourse::Once),
        (Some(word), 1) if is(word, "sync") => Ok(WarmCourse::Sync),
        (Some(word), 4) if is(word, "every") && is(args.arg(at + 2), "name") => {
            let seconds = parse_number(args.arg(at + 1), EVERY_SECONDS_MAX)?;
            let name = args.arg(at + 3);
            let is_good = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
            if is_good { Ok(WarmCourse::Every { seconds, name }) } else { Err(CacheError::Syntax) }
        }
        _ => Err(CacheError::Syntax),
    }
}

/// A whole number from 1 to `max`.
fn parse_number(word: &[u8], max: u64) -> Result<u64, CacheError> {
    let n = strict_i64(word).and_then(|n| u64::try_from(n).ok()).filter(|n| (1..=max).contains(n));
    n.ok_or(CacheError::NotInteger)
}
