//! Going round the keys of all databases, a few at a time.
//!
//! Invariant: a key that stays is come to once in each round, whatever comes and goes meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

/// Where a round goes on: behind this key of this database.
#[derive(Debug, Default)]
pub(super) struct Round(Option<(u32, Vec<u8>)>);

// === impl Round ===

impl Round {
    /// The next keys, with their databases, `budget` at most; fewer if the round has come to its end.
    pub(super) fn advance<D, V>(
        &mut self,
        databases: &HashMap<u32, D>,
        keys_of: impl Fn(&D) -> &BTreeMap<Vec<u8>, V>,
        budget: usize,
    ) -> Vec<(u32, Vec<u8>)> {
        let (first, after) = self.0.take().unwrap_or_default();
        let mut rest: Vec<(u32, &D)> =
            databases.iter().map(|(db, database)| (*db, database)).filter(|(db, _)| *db >= first).collect();
        rest.sort_unstable_by_key(|(db, _)| *db);
        let mut seen = Vec::new();
        for (db, database) in rest {
            let from = if db == first { Bound::Excluded(&after) } else { Bound::Unbounded };
            let keys = keys_of(database).range::<Vec<u8>, _>((from, Bound::Unbounded));
            seen.extend(keys.map(|(key, _)| (db, key.clone())).take(budget - seen.len()));
            if seen.len() == budget {
                self.0 = seen.last().cloned();
                break;
            }
        }
        seen
    }
}
