//! The queue in front of a link: what clients have handed over, and the task has not taken yet.
//!
//! The task takes what the link has room for. A link without room (`link.in_flight_max`, an upstream that does not
//! answer) leaves it waiting, so the queue knows roughly since when: within [`AGES`] parts of what a request may wait.
//!
//! Invariants: jobs stay in their order; `ops` and `bytes` are theirs; `ages` grows in both parts and never tells of more jobs than
//! there are.

use super::{LinkState, LinkTimes};
use crate::buffered::{REQUEST_OVERHEAD_BYTES, Share};
use crate::clock::Time;
use crate::port::Port;
use crate::upstream::link::{Job, Op, OpKind};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

/// Into so many parts the time is divided that a job may wait.
const AGES: u32 = 16;

pub(super) struct Queue {
    jobs: VecDeque<Job>,
    ops: usize,
    bytes: usize,
    /// So many jobs of the first were there at that time.
    ages: VecDeque<(Time, usize)>,
    pub(super) waker: Option<Waker>,
    /// Clients that wait for room.
    pub(super) waiting: VecDeque<Arc<Port>>,
    pub(super) state: LinkState,
    /// The first attempt is under way, and what the server understands is not known.
    pub(super) is_settling: bool,
    share: Share,
}

// === impl Queue ===

impl Queue {
    pub(super) fn new(state: LinkState, is_settling: bool, share: Share) -> Self {
        Self {
            jobs: VecDeque::new(),
            ops: 0,
            bytes: 0,
            ages: VecDeque::new(),
            waker: None,
            waiting: VecDeque::new(),
            state,
            is_settling,
            share,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn is_full(&self, times: &LinkTimes) -> bool {
        self.ops >= times.queued_max || self.bytes >= times.queued_bytes_max
    }

    /// A share of the account that the queue's own is of.
    pub(super) fn share(&self) -> Share {
        self.share.account().share()
    }

    pub(super) fn push(&mut self, job: Job) {
        self.ops += job.ops.len();
        self.bytes += job.bytes.len();
        self.jobs.push_back(job);
        self.tell();
    }

    /// Takes all, and wakes who waits for room.
    pub(super) fn take(&mut self) -> Vec<Job> {
        let jobs = std::mem::take(&mut self.jobs);
        self.begin_anew(VecDeque::new());
        jobs.into()
    }

    /// Takes the first of them, until there is no room for more. If all are taken, all who wait for room are woken, else as many as
    /// requests have left, in the order in which they came.
    pub(super) fn take_for(&mut self, (ops, bytes): (usize, usize)) -> Vec<Job> {
        let mut left = (ops, bytes);
        let count = self.jobs.iter().take_while(|job| {
            let has_room = left.0 > 0 && left.1 > 0;
            left = (left.0.saturating_sub(job.ops.len()), left.1.saturating_sub(job.bytes.len()));
            has_room
        });
        let count = count.count();
        if count == self.jobs.len() {
            return self.take();
        }
        let taken: Vec<Job> = self.jobs.drain(..count).collect();
        let left = taken.iter().map(|job| job.ops.len()).sum::<usize>();
        self.ops -= left;
        self.bytes -= taken.iter().map(|job| job.bytes.len()).sum::<usize>();
        self.forget_ages_of(count);
        self.tell();
        for port in self.waiting.drain(..left.min(self.waiting.len())) {
            port.wake();
        }
        taken
    }

    /// The first `count` jobs are gone.
    fn forget_ages_of(&mut self, count: usize) {
        self.ages.retain_mut(|(_, jobs)| {
            *jobs = jobs.saturating_sub(count);
            *jobs > 0
        });
    }

    /// Takes what is nothing but fences and orders to drop entries.
    pub(super) fn take_orders(&mut self) -> Vec<Job> {
        let (orders, jobs): (VecDeque<Job>, VecDeque<Job>) =
            std::mem::take(&mut self.jobs).into_iter().partition(Job::is_order);
        self.begin_anew(jobs);
        orders.into()
    }

    /// Takes requests and fences that have waited for `within`. What is ordered otherwise stays, and is done for nobody: who waits
    /// for it is told by what is taken in its place.
    pub(super) fn take_late(&mut self, now: Time, within: Duration) -> Vec<Job> {
        let mut late = 0;
        while let Some((at, count)) = self.ages.front()
            && now.saturating_since(*at) >= within
        {
            late = *count;
            self.ages.pop_front();
        }
        let mut taken = Vec::new();
        if late > 0 {
            let (jobs, ages) = (std::mem::take(&mut self.jobs), std::mem::take(&mut self.ages));
            let mut stay = VecDeque::with_capacity(jobs.len());
            let before = jobs.len();
            for (at, mut job) in jobs.into_iter().enumerate() {
                if at >= late {
                    stay.push_back(job);
                } else if is_to_be_done(&job) {
                    taken.push(who_waits_for(&mut job));
                    stay.push_back(job);
                } else {
                    taken.push(job);
                }
            }
            let gone = before - stay.len();
            self.begin_anew(stay);
            self.ages = ages;
            self.forget_ages_of(gone);
        }
        let is_noted = self.ages.back().is_some_and(|(at, _)| now.saturating_since(*at) < within / AGES);
        if !self.jobs.is_empty() && !is_noted {
            self.ages.push_back((now, self.jobs.len()));
        }
        taken
    }

    fn begin_anew(&mut self, jobs: VecDeque<Job>) {
        self.ops = jobs.iter().map(|job| job.ops.len()).sum();
        self.bytes = jobs.iter().map(|job| job.bytes.len()).sum();
        self.jobs = jobs;
        self.ages.clear();
        self.tell();
        for port in self.waiting.drain(..) {
            port.wake();
        }
    }

    /// Tells how much waits in it.
    fn tell(&mut self) {
        self.share.set(self.bytes + self.ops * REQUEST_OVERHEAD_BYTES);
    }
}

fn is_to_be_done(job: &Job) -> bool {
    job.is_order() && job.ops.iter().any(|op| op.kind != OpKind::Fence)
}

/// A fence for each of the orders' numbers, and with it who waits for them.
fn who_waits_for(order: &mut Job) -> Job {
    let fence = |op: &Op| Op { seq: op.seq, bytes: 0..0, kind: OpKind::Fence };
    let ops = order.ops.iter().map(fence).collect();
    Job { port: std::mem::take(&mut order.port), bytes: Bytes::new(), ops }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffered::Buffered;
    use crate::l1::Cause;
    use crate::port::Seq;
    use smallvec::smallvec;

    const WITHIN: Duration = Duration::from_millis(1600);

    fn job(seq: u64, kind: OpKind) -> Job {
        Job { port: Arc::default(), bytes: Bytes::new(), ops: smallvec![Op { seq: Seq(seq), bytes: 0..0, kind }] }
    }

    fn seqs(jobs: &[Job]) -> Vec<u64> {
        jobs.iter().map(|job| job.ops[0].seq.0).collect()
    }

    fn at(ms: u64) -> Time {
        Time::ZERO.saturating_add(Duration::from_millis(ms))
    }

    #[test]
    fn what_has_waited_too_long_is_taken_in_order_and_orders_stay() {
        let buffered = Buffered::new(1 << 20);
        let mut queue = Queue::new(LinkState::Up, false, buffered.share());
        queue.push(job(1, OpKind::Read));
        queue.push(job(2, OpKind::DropAll(Cause::Manual)));
        queue.push(job(3, OpKind::Fence));
        queue.push(job(4, OpKind::FenceAndResume));
        assert!(queue.take_late(at(1000), WITHIN).is_empty());
        queue.push(job(5, OpKind::Effect));
        assert!(queue.take_late(at(1010), WITHIN).is_empty(), "so soon it is not noted");
        assert!(queue.take_late(at(1500), WITHIN).is_empty());
        queue.push(job(6, OpKind::Read));
        assert!(queue.take_late(at(2599), WITHIN).is_empty());
        let late = queue.take_late(at(2600), WITHIN);
        assert_eq!(seqs(&late), [1, 2, 3, 4]);
        assert!(late[1..].iter().all(|job| job.ops[0].kind == OpKind::Fence), "they are told of, not done");
        assert_eq!(seqs(&queue.take_late(at(3100), WITHIN)), [2, 4, 5], "of the orders nobody hears");
        assert_eq!(seqs(&queue.take_late(at(4199), WITHIN)), [2, 4, 6], "noted at 2599");
        let orders = queue.take();
        assert_eq!(seqs(&orders), [2, 4]);
        assert!(queue.is_empty());
        let kinds: Vec<OpKind> = orders.iter().map(|job| job.ops[0].kind).collect();
        assert_eq!(kinds, [OpKind::DropAll(Cause::Manual), OpKind::FenceAndResume]);
        assert!(late.iter().all(|job| orders.iter().all(|order| !Arc::ptr_eq(&order.port, &job.port))));
    }

    #[test]
    fn no_more_is_taken_than_there_is_room_for_and_what_stays_keeps_its_age() {
        let buffered = Buffered::new(1 << 20);
        let mut queue = Queue::new(LinkState::Up, false, buffered.share());
        let full = |seq| Job { bytes: Bytes::from(vec![0; 100]), ..job(seq, OpKind::Read) };
        (1..=6).for_each(|seq| queue.push(full(seq)));
        queue.take_late(at(0), WITHIN);
        assert_eq!(seqs(&queue.take_for((2, usize::MAX))), [1, 2]);
        // The last may go beyond it.
        assert_eq!(seqs(&queue.take_for((usize::MAX, 101))), [3, 4]);
        assert!(queue.take_for((0, 100)).is_empty() && queue.take_for((1, 0)).is_empty());
        assert_eq!((queue.ops, queue.bytes), (2, 200));
        assert!(queue.take_late(at(1599), WITHIN).is_empty());
        assert_eq!(seqs(&queue.take_late(at(1600), WITHIN)), [5, 6]);
        queue.push(full(7));
        assert_eq!(seqs(&queue.take_for((1, 1))), [7]);
        assert_eq!((queue.ops, queue.bytes, queue.ages.len()), (0, 0, 0));
    }

    #[test]
    fn the_notes_of_ages_are_bounded() {
        let buffered = Buffered::new(1 << 20);
        let mut queue = Queue::new(LinkState::Up, false, buffered.share());
        for ms in 0..10_000 {
            queue.push(job(ms, OpKind::Read));
            queue.take_late(at(ms), WITHIN);
            assert!(queue.ages.len() <= AGES as usize + 1);
            assert!(queue.jobs.len() <= 1600 + 100, "{}", queue.jobs.len());
        }
    }
}
