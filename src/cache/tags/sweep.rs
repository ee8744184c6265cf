//! The sweeper: lets the index shrink with the keys that have gone, and ends invalidations that nobody ends.
//!
//! Each Larder looks every `tags.sweep_ms` at the index of each database that it has links for; of several, one sweeps (a
//! lock upstream, which is there to save work: all steps are sound whoever does them). While there is much to do, steps
//! follow each other with rests of four times their length, so that the upstream has most of its time for others. Where
//! there is no index, it is looked for once in [`IDLE_LOOK`] and whenever tags were used through this Larder.

use super::invalidate::{CLAIM_MS, delete_aside};
use super::script;
use crate::l1::Cause;
use crate::port::Failure;
use crate::server::{Backend, Shared};
use crate::upstream::errand::Errand;
use crate::upstream::link::OpKind;
use crate::upstream::scope::Scope;
use bytes::Bytes;
use larder_protocol::cursor::Cursor;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Keys that one step looks at.
const STEP_KEYS: usize = 64;
/// Steps of one round.
const STEPS_MAX: usize = 4096;
/// Shortest and longest rest between two steps.
const REST_MIN: Duration = Duration::from_millis(1);
const REST_MAX: Duration = Duration::from_millis(200);
/// How often a database without an index is looked at.
const IDLE_LOOK: Duration = Duration::from_secs(30);

/// What a step has found.
struct Step {
    looked_at: u64,
    known: u64,
    job: Option<Bytes>,
}

/// When a database is looked at next, unless tags are used before.
struct Idle {
    until: Instant,
    uses: u64,
}

/// Sweeps for as long as the process lives.
pub(crate) async fn run(shared: Arc<Shared>) {
    let name = super::fresh_token();
    let mut idle: HashMap<u32, Idle> = HashMap::new();
    loop {
        {
            let every = shared.settings().tags.sweep_ms;
            sleep(every).await
        };
        match &shared.backend {
            Backend::Embedded(embedded) => embedded.sweep_tags(),
            Backend::Upstream(upstream) => {
                let scopes = upstream.scope_of_each_database();
                idle.retain(|database, _| scopes.contains_key(database));
                for (database, scope) in scopes {
                    let uses = shared.tag_uses();
                    let rests = idle.get(&database).is_some_and(|i| i.uses == uses && Instant::now() < i.until);
                    if rests {
                        continue;
                    }
                    idle.remove(&database);
                    let has_index = round(&shared, &scope, &name).await.unwrap_or_else(|failure| {
                        tracing::debug!(database, cause = %failure, "the index of tags cannot be swept");
                        false
                    });
                    if !has_index {
                        idle.insert(database, Idle { until: Instant::now() + IDLE_LOOK, uses });
                    }
                }
            }
        }
    }
}

/// Sweeps a database until nothing is due: whether it has an index.
async fn round(shared: &Shared, scope: &Scope, name: &str) -> Result<bool, Failure> {
    let mut errand = Errand::default();
    let prefix = shared.config.tags.prefix.as_bytes();
    for _ in 0..STEPS_MAX {
        let began = Instant::now();
        let step = step(shared, &mut errand, scope, name).await?;
        if let Some(id) = &step.job {
            tracing::info!(database = scope.database, "an invalidation by tags that was left is taken up");
            delete_aside(&mut errand, scope, prefix, id, OpKind::Named(Cause::TagBased), None).await?;
        } else if step.looked_at < STEP_KEYS as u64 {
            return Ok(step.known > 0);
        }
        sleep((began.elapsed() * 4).clamp(REST_MIN, REST_MAX)).await;
    }
    Ok(true)
}

async fn step(shared: &Shared, errand: &mut Errand, scope: &Scope, name: &str) -> Result<Step, Failure> {
    let config = shared.settings().tags.clone();
    let lock_ms = (config.sweep_ms * 3).as_millis().to_string();
    let (recheck_ms, keys) = (config.recheck_ms.as_millis().to_string(), STEP_KEYS.to_string());
    let args = [
        config.prefix.as_bytes(),
        name.as_bytes(),
        lock_ms.as_bytes(),
        CLAIM_MS,
        recheck_ms.as_bytes(),
        keys.as_bytes(),
    ];
    let reply = script::SWEEP.run(errand, &scope.link, OpKind::Effect, None, &args).await?;
    let mut cursor = Cursor::new(&reply);
    cursor.next_count();
    let mut number = || cursor.next_integer().map_or(0, i64::unsigned_abs);
    let (has_lock, looked_at, _gone, known) = (number(), number(), number(), number());
    let job = cursor.next_bytes().filter(|id| !id.is_empty()).map(Bytes::copy_from_slice);
    // Without the lock nothing is known of the index: it is looked at again in time.
    Ok(Step { looked_at, known: if has_lock == 1 { known } else { 1 }, job })
}
