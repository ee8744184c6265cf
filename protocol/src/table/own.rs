//! The rows of Larder's own command, made out of its grammar: one for `CACHE`, one for each subcommand.
//!
//! Nothing is said twice: what [`SUBCOMMANDS`] holds is what the table knows, so a new subcommand is one new row there.

use super::command::{Command, Origin};
use super::flags::{Categories, Flags, Group};
use super::keys::{BeginSearch, FindKeys, KeySpec};
use super::rows::{blank, parse_spec};
use crate::cache::{Access, SUBCOMMANDS, Subcommand};
use std::borrow::Cow;

/// The name of the container.
const CONTAINER: &str = "cache";
/// The version that introduced it.
const SINCE: &str = "0.1.0";

/// The container, then its subcommands.
pub(super) fn rows() -> impl Iterator<Item = Command> {
    let mut container = blank(Cow::Borrowed(CONTAINER), Origin::Builtin);
    (container.arity, container.group, container.since) = (-2, Group::Larder, Cow::Borrowed(SINCE));
    container.categories = Categories::SLOW;
    std::iter::once(container).chain(SUBCOMMANDS.iter().map(row))
}

fn row(subcommand: &Subcommand) -> Command {
    let mut row = blank(Cow::Owned(format!("{CONTAINER}|{}", subcommand.name)), Origin::Builtin);
    (row.arity, row.group, row.since) = (subcommand.arity, Group::Larder, Cow::Borrowed(subcommand.since));
    (row.flags, row.categories) = says(subcommand.access);
    let specs = subcommand.keys.split(';').filter(|spec| *spec != "-").filter_map(parse_spec);
    let specs: Vec<KeySpec> = specs.collect();
    match specs.as_slice() {
        [] => {}
        [KeySpec { begin: BeginSearch::Index(first), find: FindKeys::Range { last, step, .. }, .. }] => {
            let first = first.cast_signed();
            row.first_key = first;
            row.last_key = if *last < 0 { *last } else { first + last };
            row.step = step.cast_signed();
        }
        _ => row.flags |= Flags::MOVABLE_KEYS,
    }
    row.key_specs = specs.into();
    row
}

/// Flags and ACL categories of a subcommand.
fn says(access: Access) -> (Flags, Categories) {
    // None of them reaches a script, and none needs the upstream's data to be loaded to be understood.
    let flags = Flags::NOSCRIPT | Flags::LOADING | Flags::STALE;
    let (more, categories) = match access {
        Access::Shows => (Flags::empty(), Categories::empty()),
        Access::Connection => (Flags::empty(), Categories::CONNECTION),
        Access::Reads => (Flags::READONLY, Categories::KEYSPACE | Categories::READ),
        Access::Lists => (Flags::READONLY, Categories::KEYSPACE | Categories::READ | Categories::DANGEROUS),
        Access::Writes => (Flags::WRITE, Categories::KEYSPACE | Categories::WRITE),
        Access::Removes => (Flags::WRITE, Categories::KEYSPACE | Categories::WRITE | Categories::DANGEROUS),
        Access::Administers => (Flags::ADMIN, Categories::ADMIN | Categories::DANGEROUS),
    };
    (flags | more, categories | Categories::SLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_specification_can_be_read() {
        for subcommand in SUBCOMMANDS {
            let written = subcommand.keys.split(';').filter(|spec| *spec != "-").count();
            assert_eq!(row(subcommand).key_specs.len(), written, "{}", subcommand.name);
        }
    }

    #[test]
    fn who_may_is_said_by_categories() {
        let of = |name: &str| rows().find(|row| row.name == name).map(|row| (row.flags, row.categories));
        let (flags, categories) = of("cache|invalidate").unwrap();
        assert!(flags.contains(Flags::WRITE | Flags::MOVABLE_KEYS) && categories.contains(Categories::DANGEROUS));
        let (flags, categories) = of("cache|entry").unwrap();
        assert!(flags.contains(Flags::READONLY) && !categories.contains(Categories::DANGEROUS));
        let entry = rows().find(|row| row.name == "cache|entry").unwrap();
        assert_eq!((entry.first_key, entry.last_key, entry.step), (2, 2, 1));
        assert!(of("cache|breaker").unwrap().1.contains(Categories::ADMIN));
    }
}
