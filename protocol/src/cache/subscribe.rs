//! `CACHE SUBSCRIBE` and `CACHE UNSUBSCRIBE`: hearing of invalidations.

use super::{Access, CacheCommand, CacheError, Subcommand, is};
use crate::args::Args;

/// A request about invalidation events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventsCommand<'a> {
    /// `SUBSCRIBE [PATTERN glob]`
    Subscribe(Option<&'a [u8]>),
    /// `UNSUBSCRIBE`
    Unsubscribe,
}

pub(super) const SUBSCRIBE: Subcommand = Subcommand {
    name: "subscribe",
    arity: -2,
    syntax: "[PATTERN <glob>]",
    help: &["Hear of each key that caches must forget, and why: all keys, or those that match."],
    since: "0.1.0",
    complexity: "O(1)",
    keys: "-",
    access: Access::Lists,
};
pub(super) const UNSUBSCRIBE: Subcommand = Subcommand {
    name: "unsubscribe",
    arity: 2,
    syntax: "",
    help: &["Hear of it no more."],
    since: "0.1.0",
    complexity: "O(1)",
    keys: "-",
    access: Access::Connection,
};

/// One of the two, whose number of arguments is at least right.
pub(super) fn parse<'a>(name: &str, args: Args<'a>) -> Result<CacheCommand<'a>, CacheError> {
    let command = match (name, args.len()) {
        ("unsubscribe", _) => EventsCommand::Unsubscribe,
        (_, 2) => EventsCommand::Subscribe(None),
        (_, 4) if is(args.arg(2), "pattern") => EventsCommand::Subscribe(args.get(3)),
        (_, 3 | 4) => return Err(CacheError::Syntax),
        _ => return Err(CacheError::Arity("subscribe")),
    };
    Ok(CacheCommand::Events(command))
}
