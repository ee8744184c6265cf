//! Schedules: warming again and again, by `CACHE WARM ... EVERY` or `[[warm.schedule]]`.
//!
//! A schedule is a job that ends only when it is asked to. Its rounds run one behind the other in one task, so they cannot
//! overlap; one that is due while the last is at work is left out, and counted. A round that fails (no link) is counted,
//! and the next one is tried when it is due.

use super::pace::Timetable;
use super::{Subject, Warmer, stopping};
use crate::port::Failure;
use crate::server::{Backend, Shared};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::sleep;

/// Most schedules at a time.
pub(crate) const SCHEDULES_MAX: usize = 32;

/// The name of a schedule, taken while it runs.
struct Name {
    shared: Arc<Shared>,
    name: Bytes,
}

/// Starts a schedule: the number of its job.
///
/// # Errors
/// The name is taken, or too many schedules or jobs run.
pub(super) async fn begin_schedule(
    warmer: Warmer,
    subject: Subject,
    every: Duration,
    name: Bytes,
) -> Result<u64, Failure> {
    let shared = warmer.shared.clone();
    let name = Name::take(&shared, name)?;
    let (tell, told) = oneshot::channel();
    shared.spawn(async move {
        let shown = [&name.name[..], b": ", &subject.shown()].concat();
        let (jobs, clock) = (&warmer.shared.jobs, warmer.shared.clock);
        let running = match jobs.begin("warm-schedule", &shown, clock) {
            Ok(running) => running,
            Err(failure) => return drop(tell.send(Err(failure))),
        };
        // Whoever has asked may have gone; the schedule stays.
        let _ = tell.send(Ok(running.id));
        let mut timetable = Timetable::new(every, clock.now());
        while !running.is_cancelled() {
            let result = warmer.run(&subject, &running).await;
            let (left_out, wait) = timetable.after_round(clock.now());
            running.count_round(result.as_ref().err(), left_out);
            tokio::select! {
                () = sleep(wait) => {}
                () = running.cancelled() => {}
            }
        }
        drop(name);
        running.end(None);
    });
    told.await.unwrap_or_else(|_| Err(stopping()))
}

/// Starts the schedules of the configuration, for clients that neither authenticate nor select.
pub(crate) async fn begin_configured(shared: Arc<Shared>) {
    let Backend::Upstream(upstream) = &shared.backend else { return };
    for schedule in &shared.config.warm.schedule {
        let scope = match upstream.default_scope() {
            Ok(scope) => scope,
            Err(error) => return tracing::warn!(cause = %error, "no schedule of warming can run"),
        };
        let warmer = Warmer { shared: shared.clone(), upstream: upstream.clone(), scope };
        let name = Bytes::from(schedule.name.clone());
        if let Err(error) = begin_schedule(warmer, schedule.subject.clone(), schedule.every, name).await {
            tracing::warn!(schedule = schedule.name, cause = %error, "a schedule of warming cannot run");
        }
    }
}

// === impl Name ===

impl Name {
    fn take(shared: &Arc<Shared>, name: Bytes) -> Result<Self, Failure> {
        let mut schedules = shared.warming.schedules();
        if schedules.len() >= SCHEDULES_MAX {
            let line = format!("ERR larder: {SCHEDULES_MAX} schedules run already; see CACHE JOBS");
            return Err(Failure::Refused(line.into()));
        }
        if !schedules.insert(name.clone()) {
            return Err(super::refused("ERR larder: a schedule of this name runs already; see CACHE JOBS"));
        }
        drop(schedules);
        Ok(Self { shared: shared.clone(), name })
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.shared.warming.schedules().remove(&self.name);
    }
}
