//! Jobs: work that takes a while, so that its progress can be seen and its end asked for.
//!
//! Whoever does such work registers it with [`Jobs::begin`], counts what it does, looks at [`Job::is_cancelled`] between
//! its steps, and ends it with [`Running::end`]. A job that is dropped before (its client has gone) has ended as abandoned.
//!
//! Bounds: [`RUNNING_MAX`] jobs run at a time, the last [`ENDED_KEPT_MAX`] that have ended are remembered.

use super::reply::Reply;
use crate::clock::{Clock, Time};
use crate::port::Failure;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Most jobs at a time.
pub const RUNNING_MAX: usize = 64;
/// Most jobs that have ended and can still be looked at.
pub const ENDED_KEPT_MAX: usize = 64;
/// Bytes of a job's subject that are kept.
const SUBJECT_BYTES_MAX: usize = 128;

/// All jobs of the process.
#[derive(Debug, Default)]
pub struct Jobs {
    registered: Mutex<Registered>,
}

#[derive(Debug, Default)]
struct Registered {
    last_id: u64,
    running: BTreeMap<u64, Arc<Job>>,
    ended: VecDeque<Arc<Job>>,
}

/// One job, as others see it.
#[derive(Debug)]
pub struct Job {
    /// Its number, from 1 on.
    pub id: u64,
    /// What it does, in one word.
    pub kind: &'static str,
    /// What it is about.
    subject: String,
    began: Time,
    /// Steps done, steps that failed and were skipped, and steps to do; of the last 0 if it is not known.
    done: AtomicU64,
    failed: AtomicU64,
    expected: AtomicU64,
    /// True once the work cannot be left half done.
    committed: AtomicBool,
    cancelled: AtomicBool,
    cancels: Notify,
    state: Mutex<Noted>,
}

#[derive(Debug)]
struct Noted {
    state: JobState,
    /// Where to go on, if the work can be taken up again.
    cursor: Option<Bytes>,
    ended: Option<Time>,
    rounds: Option<Rounds>,
}

/// What has become of the rounds of work that is done again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rounds {
    /// Rounds that were done.
    pub done: u64,
    /// Rounds that failed.
    pub failed: u64,
    /// Rounds that were due while another was at work, and left out.
    pub left_out: u64,
    /// Why the last round has failed, if it has.
    pub error: Option<String>,
}

/// How far a job has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// At work.
    Running,
    /// All is done.
    Done,
    /// It has ended before it was done, for this reason.
    Failed(String),
    /// It was asked to end.
    Cancelled,
}

/// A job in the hands of who does it.
#[derive(Debug)]
pub struct Running<'j> {
    jobs: &'j Jobs,
    job: Arc<Job>,
    clock: Clock,
}

// === impl Jobs ===

impl Jobs {
    /// Registers a job about `subject`.
    ///
    /// # Errors
    /// [`RUNNING_MAX`] jobs run already.
    pub fn begin(&self, kind: &'static str, subject: &[u8], clock: Clock) -> Result<Running<'_>, Failure> {
        let mut registered = self.lock();
        if registered.running.len() >= RUNNING_MAX {
            let line = format!("ERR larder: {RUNNING_MAX} jobs are running already; see CACHE JOBS");
            return Err(Failure::Refused(line.into()));
        }
        registered.last_id += 1;
        let shown = &subject[..subject.len().min(SUBJECT_BYTES_MAX)];
        let job = Arc::new(Job {
            id: registered.last_id,
            kind,
            subject: String::from_utf8_lossy(shown).into_owned(),
            began: clock.now(),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            committed: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            cancels: Notify::new(),
            state: Mutex::new(Noted { state: JobState::Running, cursor: None, ended: None, rounds: None }),
        });
        registered.running.insert(job.id, job.clone());
        Ok(Running { jobs: self, job, clock })
    }

    /// The job with this number, if it runs or has ended not long ago.
    pub fn find(&self, id: u64) -> Option<Arc<Job>> {
        let registered = self.lock();
        let ended = || registered.ended.iter().find(|job| job.id == id);
        registered.running.get(&id).or_else(ended).cloned()
    }

    /// Those that run and those that have ended not long ago, by number.
    pub fn all(&self) -> Vec<Arc<Job>> {
        let registered = self.lock();
        let mut all: Vec<Arc<Job>> = registered.ended.iter().chain(registered.running.values()).cloned().collect();
        all.sort_unstable_by_key(|job| job.id);
        all
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.lock().running.len()
    }

    /// Asks a job to end.
    ///
    /// # Errors
    /// There is none with this number, it has ended, or it cannot be left half done any more.
    pub fn cancel(&self, id: u64) -> Result<(), Failure> {
        let job = self.find(id).ok_or(Failure::Refused(Bytes::from_static(b"ERR no such job")))?;
        if job.state() != JobState::Running {
            return Err(Failure::Refused(Bytes::from_static(b"ERR the job has ended")));
        }
        if job.committed.load(Ordering::Acquire) {
            return Err(Failure::Refused(Bytes::from_static(b"ERR the job can no longer be cancelled")));
        }
        job.cancelled.store(true, Ordering::Release);
        job.cancels.notify_waiters();
        Ok(())
    }

    fn ended(&self, job: &Arc<Job>) {
        let mut registered = self.lock();
        if registered.running.remove(&job.id).is_some() {
            registered.ended.push_back(job.clone());
        }
        if registered.ended.len() > ENDED_KEPT_MAX {
            registered.ended.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registered> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Job ===

impl Job {
    /// So many steps more are done.
    pub fn advance(&self, steps: u64) {
        self.done.fetch_add(steps, Ordering::Relaxed);
    }

    /// So many steps more have failed and are skipped.
    pub fn skip(&self, steps: u64) {
        self.failed.fetch_add(steps, Ordering::Relaxed);
    }

    /// So many steps are to be done in all.
    pub fn expect(&self, steps: u64) {
        self.expected.store(steps, Ordering::Relaxed);
    }

    /// So many steps more are to be done.
    pub fn expect_more(&self, steps: u64) {
        self.expected.fetch_add(steps, Ordering::Relaxed);
    }

    /// A round has ended, with this failure or well; so many were due meanwhile and are left out.
    pub fn count_round(&self, failure: Option<&Failure>, left_out: u64) {
        let mut noted = self.noted();
        let rounds = noted.rounds.get_or_insert_default();
        match failure {
            None => rounds.done += 1,
            Some(_) => rounds.failed += 1,
        }
        rounds.left_out += left_out;
        rounds.error = failure.map(Failure::to_string);
    }

    /// From now on the work cannot be left half done: it cannot be cancelled.
    pub fn commit(&self) {
        self.committed.store(true, Ordering::Release);
    }

    /// Notes where the work can be taken up again.
    pub fn stands_at(&self, cursor: &Bytes) {
        self.noted().cursor = Some(cursor.clone());
    }

    /// Steps done so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// True once the job was asked to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Returns when the job is asked to end.
    pub async fn cancelled(&self) {
        let cancels = self.cancels.notified();
        if !self.is_cancelled() {
            cancels.await;
        }
    }

    /// How far it has come.
    pub fn state(&self) -> JobState {
        self.noted().state.clone()
    }

    /// Appends what `CACHE JOB` shows.
    pub(super) fn show(&self, reply: &mut Reply, now: Time) {
        let noted = self.noted();
        let (word, error) = match &noted.state {
            JobState::Running if self.is_cancelled() => ("ending", None),
            JobState::Running => ("running", None),
            JobState::Done => ("done", None),
            JobState::Failed(why) => ("failed", Some(why)),
            JobState::Cancelled => ("cancelled", None),
        };
        let took = noted.ended.unwrap_or(now).saturating_since(self.began);
        reply.map(11);
        reply.bulk("id").integer(self.id);
        reply.bulk("kind").bulk(self.kind);
        reply.bulk("subject").bulk(&self.subject);
        reply.bulk("state").bulk(word);
        reply.bulk("done").integer(self.done());
        reply.bulk("failed").integer(self.failed.load(Ordering::Relaxed));
        reply.bulk("expected").integer(match self.expected.load(Ordering::Relaxed) {
            0 => -1,
            steps => i128::from(steps),
        });
        reply.bulk("took_ms").integer(took.as_millis() as u64);
        reply.bulk("cursor");
        match &noted.cursor {
            Some(cursor) => reply.bulk(&String::from_utf8_lossy(cursor)),
            None => reply.null(),
        };
        reply.bulk("rounds");
        match &noted.rounds {
            Some(rounds) => {
                reply.map(3).bulk("done").integer(rounds.done).bulk("failed").integer(rounds.failed);
                reply.bulk("left_out").integer(rounds.left_out)
            }
            None => reply.null(),
        };
        let error = error.or(noted.rounds.as_ref().and_then(|rounds| rounds.error.as_ref()));
        reply.bulk("error");
        match error {
            Some(why) => reply.bulk(why),
            None => reply.null(),
        };
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Running ===

impl Running<'_> {
    /// The job has ended: with this failure or, if it was asked to end and did, cancelled, or done.
    pub fn end(self, failure: Option<&Failure>) {
        let state = match failure {
            None if self.job.is_cancelled() => JobState::Cancelled,
            None => JobState::Done,
            Some(failure) => JobState::Failed(failure.to_string()),
        };
        self.note(state);
    }

    fn note(&self, state: JobState) {
        let mut noted = self.job.noted();
        if noted.state == JobState::Running {
            noted.state = state;
            noted.ended = Some(self.clock.now());
        }
    }
}

impl Deref for Running<'_> {
    type Target = Job;

    fn deref(&self) -> &Job {
        &self.job
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.note(JobState::Failed("abandoned: who had asked for it has gone".into()));
        self.jobs.ended(&self.job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_seen_from_its_beginning_to_its_end() {
        let (jobs, clock) = (Jobs::default(), Clock::start());
        let first = jobs.begin("one", b"a", clock).unwrap();
        first.advance(3);
        let second = jobs.begin("two", &[b'x'; 1000], clock).unwrap();
        assert_eq!(
            jobs.all().iter().map(|job| (job.id, job.state())).collect::<Vec<_>>(),
            [(1, JobState::Running), (2, JobState::Running)]
        );
        assert_eq!(second.subject.len(), SUBJECT_BYTES_MAX);
        first.end(None);
        drop(second);
        assert_eq!(jobs.running(), 0);
        assert_eq!(jobs.find(1).map(|job| (job.done(), job.state())), Some((3, JobState::Done)));
        assert!(matches!(jobs.find(2).unwrap().state(), JobState::Failed(why) if why.starts_with("abandoned")));
        assert!(jobs.find(3).is_none());
    }

    #[test]
    fn who_is_asked_to_end_ends_as_cancelled() {
        let (jobs, clock) = (Jobs::default(), Clock::start());
        let job = jobs.begin("one", b"", clock).unwrap();
        assert_eq!(jobs.cancel(7).unwrap_err().to_string(), "ERR no such job");
        jobs.cancel(1).unwrap();
        assert!(job.is_cancelled());
        job.end(None);
        assert_eq!(jobs.find(1).unwrap().state(), JobState::Cancelled);
        assert_eq!(jobs.cancel(1).unwrap_err().to_string(), "ERR the job has ended");
        let job = jobs.begin("one", b"", clock).unwrap();
        job.commit();
        assert_eq!(jobs.cancel(2).unwrap_err().to_string(), "ERR the job can no longer be cancelled");
        job.end(Some(&Failure::ReadLost));
        assert!(matches!(jobs.find(2).unwrap().state(), JobState::Failed(why) if why.starts_with("UPSTREAMLOST")));
    }

    #[test]
    fn rounds_are_counted() {
        let (jobs, clock) = (Jobs::default(), Clock::start());
        let job = jobs.begin("one", b"", clock).unwrap();
        job.count_round(None, 2);
        job.count_round(Some(&Failure::ReadLost), 1);
        let rounds = job.noted().rounds.clone().unwrap();
        assert_eq!((rounds.done, rounds.failed, rounds.left_out), (1, 1, 3));
        assert!(rounds.error.unwrap().starts_with("UPSTREAMLOST"));
        job.count_round(None, 0);
        assert_eq!(job.noted().rounds.clone().unwrap().error, None);
    }

    #[test]
    fn both_numbers_of_jobs_are_bounded() {
        let (jobs, clock) = (Jobs::default(), Clock::start());
        let mut running: Vec<_> = (0..RUNNING_MAX).map(|_| jobs.begin("one", b"", clock).unwrap()).collect();
        assert!(jobs.begin("one", b"", clock).unwrap_err().to_string().contains("jobs are running already"));
        running.pop();
        drop(jobs.begin("one", b"", clock).unwrap());
        drop(running);
        (0..100).for_each(|_| jobs.begin("one", b"", clock).unwrap().end(None));
        assert_eq!(jobs.all().len(), ENDED_KEPT_MAX);
        assert!(jobs.find(1).is_none());
    }
}
