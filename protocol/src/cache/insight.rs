//! `CACHE HOTKEYS`, `BIGKEYS`, `ADVISE` and `CONFIG`: what was seen, what follows from it, and what can be changed at run time.

use super::{Access, CacheCommand, CacheError, Subcommand, is};
use crate::args::Args;
use crate::scan::strict_i64;

/// Keys that are shown if the request does not say how many.
pub const SHOWN: usize = 10;
/// Most keys that can be asked for.
pub const SHOWN_MAX: usize = 1000;

/// What `CACHE CONFIG` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigOrder<'a> {
    /// `GET pattern [CHANGEABLE|READONLY]`
    Get(&'a [u8], Which),
    /// `SET name value`
    Set(&'a [u8], &'a [u8]),
}

/// Which settings `CACHE CONFIG GET` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All.
    All,
    /// `CHANGEABLE`: those that `SET` can change.
    Changeable,
    /// `READONLY`: those that it cannot.
    ReadOnly,
}

pub(super) const ADVISE: Subcommand = Subcommand {
    name: "advise",
    arity: 2,
    syntax: "",
    help: &["Return recommendations out of what was seen, each with its figures and the", "setting to change."],
    since: "0.1.0",
    complexity: "O(N) where N is the number of entries in L1",
    keys: "-",
    access: Access::Lists,
};
pub(super) const BIGKEYS: Subcommand = Subcommand {
    name: "bigkeys",
    arity: -2,
    syntax: "[<n>]",
    help: &["Show the keys with the largest replies, of the caller's user and database."],
    since: "0.1.0",
    complexity: "O(1)",
    keys: "-",
    access: Access::Lists,
};
pub(super) const CONFIG: Subcommand = Subcommand {
    name: "config",
    arity: -4,
    syntax: "(GET <pattern> [CHANGEABLE|READONLY]|SET <name> <value>)",
    help: &[
        "Show settings, by the names of the configuration file, or change one that can",
        "change at run time. What is set is not written to the file. CHANGEABLE and",
        "READONLY show only what can, and what cannot.",
    ],
    since: "0.1.0",
    complexity: "O(N) where N is the number of settings",
    keys: "-",
    access: Access::Administers,
};
pub(super) const HOTKEYS: Subcommand = Subcommand {
    name: "hotkeys",
    arity: -2,
    syntax: "[<n>]",
    help: &["Show the keys that are used most, of the caller's user and database, with", "estimated rates."],
    since: "0.1.0",
    complexity: "O(1)",
    keys: "-",
    access: Access::Lists,
};

/// One of these, whose number of arguments is not too small.
pub(super) fn parse<'a>(name: &'static str, args: Args<'a>) -> Result<CacheCommand<'a>, CacheError> {
    let wrong_arity = Err(CacheError::Arity(name));
    match (name, args.len()) {
        ("advise", _) => Ok(CacheCommand::Advise),
        ("bigkeys", 2 | 3) => shown(args).map(CacheCommand::BigKeys),
        ("hotkeys", 2 | 3) => shown(args).map(CacheCommand::HotKeys),
        ("config", 4) if is(args.arg(2), "get") => Ok(CacheCommand::Config(ConfigOrder::Get(args.arg(3), Which::All))),
        ("config", 5) if is(args.arg(2), "get") => {
            let which = match args.arg(4) {
                word if is(word, "changeable") => Which::Changeable,
                word if is(word, "readonly") => Which::ReadOnly,
                _ => return Err(CacheError::Syntax),
            };
            Ok(CacheCommand::Config(ConfigOrder::Get(args.arg(3), which)))
        }
        ("config", 5) if is(args.arg(2), "set") => Ok(CacheCommand::Config(ConfigOrder::Set(args.arg(3), args.arg(4)))),
        ("config", _) if is(args.arg(2), "get") || is(args.arg(2), "set") => wrong_arity,
        ("config", _) => Err(CacheError::Syntax),
        _ => wrong_arity,
    }
}

/// `[n]`, from 1 to [`SHOWN_MAX`].
fn shown(args: Args<'_>) -> Result<usize, CacheError> {
    let Some(word) = args.get(2) else { return Ok(SHOWN) };
    let n = strict_i64(word).and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=SHOWN_MAX).contains(n));
    n.ok_or(CacheError::NotInteger)
}
