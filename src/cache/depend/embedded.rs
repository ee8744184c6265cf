//! Dependencies on the embedded store: the same commands and replies, with the index beside the store, under its lock.
//!
//! What follows from a change happens in the same step as the change.

use super::{LOOKED_MAX, integer_reply};
use crate::cache::Caller;
use crate::cache::tags::embedded::{exists, with_store};
use crate::cache::tags::sorted_reply;
use crate::origin::{DEPENDENCIES_MAX, DependLimits, DependRefusal};
use crate::port::Failure;
use larder_protocol::cache::{DependCommand, KeyList};

/// Executes a command about dependencies.
pub(super) fn execute(caller: &Caller, command: DependCommand<'_>) -> Result<Vec<u8>, Failure> {
    let db = caller.database;
    let config = &caller.shared.config.depend;
    let limits = DependLimits {
        sources_max: config.sources_max,
        dependents_max: config.dependents_max,
        depth_max: config.depth_max,
        looked_max: LOOKED_MAX,
        dependencies_max: DEPENDENCIES_MAX,
    };
    if let DependCommand::Depend(..) = command {
        caller.may_use(&caller.table(), "UNLINK")?;
    }
    with_store(caller, |store, now| match command {
        DependCommand::Depend(key, sources) => {
            if !exists(store, db, key, now) && !store.tags.is_leased(db, key, now) {
                return Ok(integer_reply(0));
            }
            let added = store.depend(db, key, sources.iter(), limits);
            added.map(|added| integer_reply(added as u64)).map_err(|why| refused(why, limits))
        }
        DependCommand::Depends(key) => Ok(sorted_reply(store.depends().sources(db, key))),
        DependCommand::Undepend(key, sources) => {
            let released = store.undepend(db, key, sources.as_ref().map(KeyList::iter));
            Ok(integer_reply(released as u64))
        }
    })
}

fn refused(why: DependRefusal, limits: DependLimits) -> Failure {
    let DependLimits { sources_max, dependents_max, depth_max, looked_max, .. } = limits;
    let line = match why {
        DependRefusal::Itself => "ERR larder: a key cannot depend on itself".to_owned(),
        DependRefusal::Sources => return super::too_many_sources(sources_max),
        DependRefusal::Dependents => {
            format!("ERR larder: {dependents_max} keys at most may depend on one key (depend.dependents_max)")
        }
        DependRefusal::Depth => {
            format!("ERR larder: a chain of dependencies may have {depth_max} links at most (depend.depth_max)")
        }
        DependRefusal::Connected => format!("ERR larder: more than {looked_max} keys are connected with these"),
        DependRefusal::Full => "OOM larder: the embedded store keeps no more dependencies".to_owned(),
    };
    Failure::Refused(line.into())
}
