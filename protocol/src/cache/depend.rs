//! Dependencies: `CACHE DEPEND`, `UNDEPEND`, `DEPENDS`.

use super::{Access, CacheCommand, CacheError, KeyList, Subcommand, is};
use crate::args::Args;

/// A request about dependencies.
#[derive(Clone, Copy, Debug)]
pub enum DependCommand<'a> {
    /// `DEPEND key ON n key ...`
    Depend(&'a [u8], KeyList<'a>),
    /// `UNDEPEND key [ON n key ...]`: of the keys named, or of all.
    Undepend(&'a [u8], Option<KeyList<'a>>),
    /// `DEPENDS key`
    Depends(&'a [u8]),
}

pub(super) const DEPEND: Subcommand = Subcommand {
    name: "depend",
    arity: -6,
    syntax: "<key> ON <numkeys> <key> [<key> ...]",
    help: &[
        "Let a key go when one of the keys behind ON changes or is invalidated. Return how",
        "many of these are new; 0 if there is neither such a key nor a lease on it.",
    ],
    since: "0.1.0",
    complexity: "O(N) where N is the number of keys named, of what they depend on, and of what depends on <key>",
    keys: "RW,update/index=2/range=0,1,0;RO/keyword=ON,3/keynum=0,1,1",
    access: Access::Writes,
};
pub(super) const DEPENDS: Subcommand = Subcommand {
    name: "depends",
    arity: 3,
    syntax: "<key>",
    help: &["Return the keys that a key depends on."],
    since: "0.1.0",
    complexity: "O(N) where N is the number of keys that the key depends on",
    keys: "RO,access/index=2/range=0,1,0",
    access: Access::Reads,
};
pub(super) const UNDEPEND: Subcommand = Subcommand {
    name: "undepend",
    arity: -3,
    syntax: "<key> [ON <numkeys> <key> [<key> ...]]",
    help: &["Let a key depend no more on the keys named, or on any. Return on how many it did."],
    since: "0.1.0",
    complexity: "O(N) where N is the number of keys named, or of those that the key depends on",
    keys: "RW,update/index=2/range=0,1,0;RO/keyword=ON,3/keynum=0,1,1",
    access: Access::Writes,
};

/// One of the subcommands above, with at least as many arguments as it needs.
pub(super) fn parse<'a>(name: &'static str, args: Args<'a>) -> Result<CacheCommand<'a>, CacheError> {
    let key = args.arg(2);
    Ok(CacheCommand::Depend(match name {
        "depend" => DependCommand::Depend(key, parse_sources(args)?),
        "depends" => DependCommand::Depends(key),
        _ if args.len() == 3 => DependCommand::Undepend(key, None),
        _ if args.len() < 6 => return Err(CacheError::Arity(UNDEPEND.name)),
        _ => DependCommand::Undepend(key, Some(parse_sources(args)?)),
    }))
}

/// `ON numkeys key ...` from argument 3 on, with nothing behind.
fn parse_sources(args: Args<'_>) -> Result<KeyList<'_>, CacheError> {
    if !is(args.arg(3), "on") {
        return Err(CacheError::Syntax);
    }
    let keys = KeyList::parse(args, 4)?;
    if keys.end() == args.len() { Ok(keys) } else { Err(CacheError::Syntax) }
}
