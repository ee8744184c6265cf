//! `CACHE WARM`: L1 is filled before anybody asks, at once or again and again.
//!
//! | module | what it holds |
//! |---|---|
//! | `pace` | CORE: how many keys a second; when a schedule's next round is due |
//! | `read` | one batch of keys: what they are, and the reads that fill L1 |
//! | `schedule` | rounds |
//! | `snapshot` | names of hot keys, from one start to the next |
//!
//! A warmed key is read as a client would read it: as a fill on the scope's ordered link, so that its entry is as coherent
//! as any other. One read a key, by its type: what the whole value is. All warming of the process together reads at most
//! `warm.keys_per_second_max` keys a second; a job has one batch under way at a time.
//!
//! How it fails: a key that cannot be warmed is counted and skipped. Without a link, or while replies are not kept, the
//! job ends with an error; of a schedule only the round does.

mod pace;
mod read;
mod schedule;
mod snapshot;

pub(crate) use self::schedule::{SCHEDULES_MAX, begin_configured};
pub(crate) use self::snapshot::{save, warm_at_start};

use self::pace::Pace;
use self::schedule::begin_schedule;
use super::Caller;
use super::invalidate::scan;
use super::jobs::Job;
use super::reply::Reply;
use super::tags::invalidate::Members;
use crate::pause::Mode;
use crate::port::Failure;
use crate::server::Shared;
use crate::upstream::errand::Errand;
use crate::upstream::scope::{Scope, Upstream};
use bytes::Bytes;
use larder_protocol::cache::warm::{Warm, WarmCourse, WarmSubject};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::sleep;

/// Keys of one batch at most.
const BATCH_KEYS_MAX: usize = 64;
/// A batch is this part of a second's keys, if that is fewer.
const BATCHES_PER_SECOND: usize = 10;
/// How often is looked whether CLIENT PAUSE is over.
const PAUSE_LOOK_EVERY: Duration = Duration::from_millis(50);

/// What all warming of the process shares.
#[derive(Debug, Default)]
pub(crate) struct Warming {
    pace: Mutex<Pace>,
    /// Names of the schedules that run.
    schedules: Mutex<BTreeSet<Bytes>>,
}

/// Which keys are to be warmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// These.
    Keys(Vec<Bytes>),
    /// Those that match.
    Pattern(Bytes),
    /// Those that have one of these tags.
    Tags(Vec<Bytes>),
    /// So many of those that were used most.
    Hot(usize),
    /// Those whose names were saved in a file of this name, where `warm.snapshot_file` lies.
    Snapshot(String),
}

/// Fills the L1 of a scope.
#[derive(Clone)]
pub(crate) struct Warmer {
    shared: Arc<Shared>,
    upstream: Arc<Upstream>,
    scope: Arc<Scope>,
}

/// Does what a caller asks for: the reply.
///
/// # Errors
/// There is no L1; the operator denies what is needed; too many jobs run; with `SYNC`, what has ended the job.
pub(super) async fn warm(caller: &Caller, warm: Warm<'_>) -> Result<Vec<u8>, Failure> {
    let (Some(upstream), Some(scope)) = (caller.upstream(), &caller.scope) else {
        return Err(refused("ERR larder: the embedded store has no L1 that could be warmed"));
    };
    let table = upstream.node().table();
    caller.may_use(&table, "TYPE")?;
    match warm.subject {
        WarmSubject::Pattern(_) => caller.may_use(&table, "SCAN")?,
        WarmSubject::Tags(_) => caller.may_use(&table, "SSCAN")?,
        _ => {}
    }
    let subject = Subject::of(warm.subject)?;
    let warmer = Warmer { shared: caller.shared.clone(), upstream: upstream.clone(), scope: scope.clone() };
    let id = match warm.course {
        WarmCourse::Sync => return warmer.run_and_show(&subject).await,
        WarmCourse::Once => warmer.begin(subject).await?,
        WarmCourse::Every { seconds, name } => {
            let name = Bytes::copy_from_slice(name);
            begin_schedule(warmer, subject, Duration::from_secs(seconds), name).await?
        }
    };
    Ok(Reply::default().integer(id).take())
}

// === impl Subject ===

impl Subject {
    fn of(subject: WarmSubject<'_>) -> Result<Self, Failure> {
        Ok(match subject {
            WarmSubject::Keys(keys) => Self::Keys(keys.iter().map(Bytes::copy_from_slice).collect()),
            WarmSubject::Pattern(glob) => Self::Pattern(Bytes::copy_from_slice(glob)),
            WarmSubject::Tags(tags) => Self::Tags(tags.iter().map(Bytes::copy_from_slice).collect()),
            WarmSubject::Hot(max) => Self::Hot(max),
            WarmSubject::Snapshot(name) => {
                let not_plain = "ERR larder: a snapshot is named by a plain name, without a directory";
                Self::snapshot(name).ok_or(refused(not_plain))?
            }
        })
    }

    /// What a job shows of it.
    fn shown(&self) -> Vec<u8> {
        match self {
            Self::Keys(keys) => format!("KEYS {}", keys.len()).into_bytes(),
            Self::Pattern(glob) => [b"PATTERN ", &glob[..]].concat(),
            Self::Tags(tags) => [b"TAGS ", &tags.join(&b" "[..])[..]].concat(),
            Self::Hot(max) => format!("HOT {max}").into_bytes(),
            Self::Snapshot(name) => format!("SNAPSHOT {name}").into_bytes(),
        }
    }
}

// === impl Warming ===

impl Warming {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn schedules(&self) -> MutexGuard<'_, BTreeSet<Bytes>> {
        self.schedules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Warmer ===

impl Warmer {
    /// Warms while the caller waits; the job as it has ended.
    async fn run_and_show(&self, subject: &Subject) -> Result<Vec<u8>, Failure> {
        let (jobs, clock) = (&self.shared.jobs, self.shared.clock);
        let running = jobs.begin("warm", &subject.shown(), clock)?;
        let id = running.id;
        let result = self.run(subject, &running).await;
        let is_cancelled = running.is_cancelled();
        running.end(result.as_ref().err());
        result?;
        if is_cancelled {
            let line = format!("ERR larder: the job was cancelled; CACHE JOB {id} shows how far it has come");
            return Err(Failure::Refused(line.into()));
        }
        let mut reply = Reply::default();
        match jobs.find(id) {
            Some(job) => job.show(&mut reply, clock.now()),
            None => drop(reply.null()),
        }
        Ok(reply.take())
    }

    /// Warms as a job of its own: its number.
    async fn begin(self, subject: Subject) -> Result<u64, Failure> {
        let shared = self.shared.clone();
        let (tell, told) = oneshot::channel();
        shared.spawn(async move {
            let running = match self.shared.jobs.begin("warm", &subject.shown(), self.shared.clock) {
                Ok(running) => running,
                Err(failure) => return drop(tell.send(Err(failure))),
            };
            // Whoever has asked may have gone; the job goes on.
            let _ = tell.send(Ok(running.id));
            let result = self.run(&subject, &running).await;
            running.end(result.as_ref().err());
        });
        told.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Warms once, until all is done or the job is asked to end.
    async fn run(&self, subject: &Subject, job: &Job) -> Result<(), Failure> {
        let mut errand = Errand::default();
        match subject {
            Subject::Pattern(glob) => self.read_matching(&mut errand, glob, job).await,
            Subject::Tags(tags) => self.read_tagged(&mut errand, tags, job).await,
            Subject::Keys(keys) => self.read_named(&mut errand, keys, job).await,
            Subject::Hot(max) => {
                let scope = self.scope.link.partition().scope();
                let (hot, _) = self.shared.insight.hot(scope, *max, self.shared.clock.now());
                let keys: Vec<Bytes> = hot.into_iter().map(|hot| hot.key.into()).collect();
                self.read_named(&mut errand, &keys, job).await
            }
            Subject::Snapshot(name) => {
                let keys = self.keys_saved(name).await?;
                self.read_named(&mut errand, &keys, job).await
            }
        }
    }

    /// As [`Warmer::read_all`], of keys whose number is known.
    async fn read_named(&self, errand: &mut Errand, keys: &[Bytes], job: &Job) -> Result<(), Failure> {
        job.expect_more(keys.len() as u64);
        self.read_all(errand, keys, job).await
    }

    async fn read_matching(&self, errand: &mut Errand, glob: &Bytes, job: &Job) -> Result<(), Failure> {
        let mut cursor = Bytes::from_static(b"0");
        while !job.is_cancelled() {
            let (next, keys) = scan(&self.upstream, &self.scope, &cursor, glob).await?;
            // A step that finds nothing costs the upstream as much as one that does.
            self.keep_pace(1, job).await;
            self.read_all(errand, &keys, job).await?;
            if next == "0" {
                break;
            }
            cursor = next;
        }
        Ok(())
    }

    /// Page by page, as the index has them. A key with several of the tags is read again for each.
    async fn read_tagged(&self, errand: &mut Errand, tags: &[Bytes], job: &Job) -> Result<(), Failure> {
        for tag in tags {
            let mut members = Members::of(&self.shared.config.tags.prefix, tag);
            while let Some(keys) = members.next_page(errand, &self.scope.link).await? {
                self.keep_pace(1, job).await;
                self.read_named(errand, &keys, job).await?;
                if job.is_cancelled() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn read_all(&self, errand: &mut Errand, keys: &[Bytes], job: &Job) -> Result<(), Failure> {
        let per_second = self.shared.settings().warm.keys_per_second_max;
        for batch in keys.chunks((per_second / BATCHES_PER_SECOND).clamp(1, BATCH_KEYS_MAX)) {
            self.keep_pace(batch.len(), job).await;
            if job.is_cancelled() {
                break;
            }
            self.read_batch(errand, batch, job).await?;
        }
        Ok(())
    }

    /// Waits until so many keys more may be read.
    async fn keep_pace(&self, keys: usize, job: &Job) {
        let (per_second, now) = (self.shared.settings().warm.keys_per_second_max, self.shared.clock.now());
        let wait = self.shared.warming.pace().take(keys, per_second, now);
        tokio::select! {
            () = sleep(wait) => {}
            () = job.cancelled() => {}
        }
    }

    /// While CLIENT PAUSE holds writes nothing may be kept: see `session::Surroundings::keeps`. What is sent before the
    /// caller's turn ends is sent before the pause: whoever pauses waits for all turns.
    async fn outwait_pause(&self, job: &Job) {
        while self.shared.pauses.mode() != Mode::Off && !job.is_cancelled() {
            sleep(PAUSE_LOOK_EVERY).await;
        }
    }
}

fn refused(line: &'static str) -> Failure {
    Failure::Refused(Bytes::from_static(line.as_bytes()))
}

fn stopping() -> Failure {
    refused("ERR larder: stopping")
}
