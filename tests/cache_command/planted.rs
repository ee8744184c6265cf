//! Bugs planted in what the CACHE command promises of tags and of dependencies: the histories must find each, and nothing
//! without one.
//!
//! `cargo test --features mutations --test cache_command -- --nocapture planted` says how each was found.

use crate::support::{Larder, run_seconds};
use crate::{Kind, depend_histories, tag_histories};
use larder::mutation::Mutation;
use std::time::Duration;

/// A history is so long; a bug may take so many.
const HISTORY: Duration = Duration::from_secs(2);
const HISTORIES_MAX: u64 = 12;

/// What looks for a bug.
type Search = fn(Kind, u64, Duration, Option<&str>) -> Result<u64, String>;

fn search_for(bug: Mutation) -> Search {
    match bug {
        Mutation::WriteUnsettled | Mutation::CacheUnsettled => depend_histories::run,
        _ => tag_histories::run,
    }
}

#[test]
fn planted_bugs_are_found_in_histories_of_tags_and_dependencies() {
    if Larder::is_plain() {
        return;
    }
    for (search, what) in [(tag_histories::run as Search, "tags"), (depend_histories::run, "dependencies")] {
        let judged = search(Kind::Valkey, 7, run_seconds(4), None);
        println!("no bug planted: nothing found in {judged:?} reads ({what})");
        assert!(judged.is_ok(), "{what}, without a bug: {judged:?}");
    }
    let mut escaped = Vec::new();
    for bug in Mutation::OF_CACHE {
        let kind = |n: u64| if n.is_multiple_of(2) { Kind::Redis } else { Kind::Valkey };
        let name = format!("{bug:?}");
        let found = (0..HISTORIES_MAX)
            .find_map(|n| Some((n + 1, search_for(bug)(kind(n), 100 + 2 * n, HISTORY, Some(&name)).err()?)));
        match found {
            Some((histories, what)) => println!("planted bug {name} found in history {histories}: {what}"),
            None => escaped.push(bug),
        }
    }
    assert!(escaped.is_empty(), "not found: {escaped:?}");
}
