//! The shell around a link's core, without a socket: what `link_io` does, step by step.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use larder::clock::Time;
use larder::l1::Cause;
use larder::l1::{L1, Partition};
use larder::port::{Delivery, Failure, Port, Seq};
use larder::upstream::link::{self, Caching, Frame, Job, LinkCore, LinkLimits, Op, OpKind, Retry};
use larder_protocol::cursor::Cursor;
use larder_protocol::table::Table;
use smallvec::smallvec;

use crate::history::{Words, encode, keys_of, show};
use crate::rng::Rng;
use crate::server::{ConnId, Owner, Server, take_frame};
use crate::trace;

/// Whom a link serves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purpose {
    pub(crate) scope: usize,
    pub(crate) database: usize,
}

pub(crate) struct Link {
    pub(crate) purpose: Purpose,
    pub(crate) partition: Arc<Partition>,
    caches: Cell<bool>,
    lost_at: Cell<Time>,
    inner: RefCell<Inner>,
}

struct Inner {
    core: LinkCore,
    state: State,
    queue: Vec<Job>,
    received: BytesMut,
    retries: Vec<Retry>,
    reply_max: Duration,
    violation: Option<String>,
    /// Until when keys may be answered softly, by the orders that have reached the link.
    softened: Vec<(usize, Time)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Up(ConnId),
    Down,
}

/// All links hash keys alike, so that a run can be repeated.
const HASH_SEED: u64 = 1;

// === impl Link ===

impl Link {
    pub(crate) fn new(l1: &Arc<L1>, table: &Arc<Table>, purpose: Purpose, limits: LinkLimits) -> Self {
        let (partition, filler) = l1.partition();
        let mut core = LinkCore::new(filler, table.clone(), limits);
        core.seed(HASH_SEED);
        let inner = Inner {
            core,
            state: State::Connecting,
            queue: Vec::new(),
            received: BytesMut::new(),
            retries: Vec::new(),
            reply_max: limits.reply_max,
            violation: None,
            softened: Vec::new(),
        };
        Self {
            purpose,
            partition,
            caches: Cell::new(false),
            lost_at: Cell::new(Time::ZERO),
            inner: RefCell::new(inner),
        }
    }

    pub(crate) fn caches(&self) -> bool {
        self.caches.get()
    }

    pub(crate) fn conn(&self) -> Option<ConnId> {
        match self.inner.borrow().state {
            State::Up(conn) => Some(conn),
            _ => None,
        }
    }

    pub(crate) fn submit(&self, job: Job) -> Result<(), Failure> {
        let mut inner = self.inner.borrow_mut();
        if inner.state == State::Down {
            return Err(down());
        }
        inner.queue.push(job);
        Ok(())
    }

    /// Asks for a fence. A link without a connection has an empty partition: nothing in it can be older.
    pub(crate) fn submit_fence(&self, port: &Arc<Port>, seq: Seq) {
        self.submit_order(port, Op { seq, bytes: 0..0, kind: OpKind::Fence }, Bytes::new());
    }

    /// Who has lost a command that may have changed anything has all entries dropped.
    pub(crate) fn drop_all(&self) {
        let op = Op { seq: Seq(0), bytes: 0..0, kind: OpKind::DropAll(Cause::DataChanged) };
        self.submit_order(&Arc::default(), op, Bytes::new());
    }

    /// An operator invalidates keys softly; nobody looks at the reply.
    pub(crate) fn soften(&self, words: &Words, kind: OpKind) {
        let bytes = Bytes::from(encode(words));
        let op = Op { seq: Seq(0), bytes: 0..bytes.len() as u32, kind };
        if let OpKind::Soften(_) = kind {
            return self.submit_order(&Arc::default(), op, bytes);
        }
        // Without a link nothing is sent, and nothing softened.
        let _ = self.submit(Job { port: Arc::default(), bytes, ops: smallvec![op] });
    }

    /// Until when a key may be answered softly; `None` if nobody has ever asked for that.
    pub(crate) fn soft_until(&self, key: usize) -> Option<Time> {
        self.inner.borrow().softened.iter().filter(|(softened, _)| *softened == key).map(|(_, until)| *until).max()
    }

    pub(crate) fn set_limits(&self, limits: LinkLimits) {
        self.inner.borrow_mut().core.set_limits(limits);
    }

    pub(crate) fn expire_soft(&self, now: Time) {
        self.inner.borrow_mut().core.expire_soft(now);
    }

    fn submit_order(&self, port: &Arc<Port>, op: Op, bytes: Bytes) {
        let seq = op.seq;
        let job = Job { port: port.clone(), bytes, ops: smallvec![op] };
        let mut inner = self.inner.borrow_mut();
        if matches!(inner.state, State::Up(_)) {
            inner.queue.push(job);
            return;
        }
        drop(inner);
        link::settle(&self.partition, &job);
        port.leave(Delivery::Fenced(seq));
        port.wake();
    }

    /// True once a connection has been lost.
    pub(crate) fn has_been_lost(&self) -> bool {
        self.lost_at.get() > Time::ZERO
    }

    /// When the connection was lost, while there is none.
    pub(crate) fn lost_at(&self) -> Option<Time> {
        self.conn().is_none().then(|| self.lost_at.get())
    }

    /// A turn of the link's task: some jobs in, some bytes out, some frames in.
    pub(crate) fn turn(&self, server: &mut Server, now: Time, rng: &mut Rng) {
        let all = rng.one_in(2);
        {
            let mut inner = self.inner.borrow_mut();
            inner.take_jobs(now);
            inner.write_some(server, if all { None } else { Some(rng) });
        }
        let frames = if all { u64::MAX } else { rng.below(4) };
        for _ in 0..frames {
            if !self.read_one(now) {
                break;
            }
        }
    }

    /// Hands one received frame to the core; false if there is none.
    pub(crate) fn read_one(&self, now: Time) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Some(frame) = take_frame(&mut inner.received) else { return false };
        trace!("  link {} reads {}", self.purpose.scope, show(&frame));
        let shared = Bytes::copy_from_slice(&frame);
        let shared = (frame.len() > 64).then_some(&shared);
        if let Err(violation) = inner.core.frame(Frame { bytes: &frame, shared }, now) {
            inner.violation = Some(violation.to_string());
        }
        inner.core.wake_clients();
        self.caches.set(inner.core.keeps());
        true
    }

    pub(crate) fn receive(&self, bytes: &[u8]) {
        self.inner.borrow_mut().received.extend_from_slice(bytes);
    }

    pub(crate) fn time_out(&self, now: Time) {
        let mut inner = self.inner.borrow_mut();
        if matches!(inner.state, State::Up(_)) {
            inner.core.time_out(now);
            inner.core.wake_clients();
        }
    }

    pub(crate) fn touch_upstream(&self, now: Time) {
        let mut inner = self.inner.borrow_mut();
        if matches!(inner.state, State::Up(_)) {
            // All of them, sorted: their order in the store is another in each process.
            let mut touched = self.partition.take_touched(usize::MAX);
            touched.sort_unstable();
            if !touched.is_empty() {
                let words: Vec<Vec<u8>> = std::iter::once(b"TOUCH".to_vec()).chain(touched).collect();
                inner.core.submit_own(&crate::history::encode(&words), now);
            }
        }
    }

    pub(crate) fn take_big_keys(&self) -> Vec<Bytes> {
        self.inner.borrow_mut().core.take_big_keys()
    }

    /// The connection is lost. A write to it may have been under way.
    pub(crate) fn lose(&self, server: &mut Server, rng: &mut Rng, now: Time) {
        let mut inner = self.inner.borrow_mut();
        let State::Up(conn) = inner.state else { return };
        if rng.one_in(2) {
            inner.write_some(server, Some(rng));
        }
        let up = &mut server.conns[conn.0].up;
        let arrives = rng.index(up.len() + 1);
        up.truncate(arrives);
        server.conns[conn.0].owner = Owner::Gone;
        inner.received.clear();
        self.caches.set(false);
        inner.retries = inner.core.lost(now, Cause::FeedLost);
        self.lost_at.set(now);
        inner.state = State::Connecting;
        let (orders, jobs): (Vec<Job>, Vec<Job>) =
            std::mem::take(&mut inner.queue).into_iter().partition(Job::is_order);
        inner.queue = jobs;
        inner.core.leave_behind(&orders);
        for job in orders {
            for op in &job.ops {
                job.port.leave(Delivery::Fenced(op.seq));
            }
            job.port.wake();
        }
        inner.core.wake_clients();
        trace!("  link {} lost conn {}, {} retries", self.purpose.scope, conn.0, inner.retries.len());
    }

    /// An attempt to connect succeeds.
    pub(crate) fn connect(&self, server: &mut Server, table: &Arc<Table>, link: usize, now: Time) {
        let mut inner = self.inner.borrow_mut();
        if matches!(inner.state, State::Up(_)) {
            return;
        }
        let conn = server.connect(Owner::Link(link), self.purpose.database, true, true);
        inner.core.connected(Caching::Tracked, table.clone());
        inner.state = State::Up(conn);
        self.caches.set(true);
        trace!("  link {} has conn {}", self.purpose.scope, conn.0);
        for retry in std::mem::take(&mut inner.retries) {
            if now.saturating_since(retry.sent_at) >= inner.reply_max {
                retry.fail(Failure::ReadLost);
            } else {
                inner.core.retry(retry, now);
            }
        }
    }

    /// An attempt to connect fails: what waits is refused.
    pub(crate) fn give_up(&self, now: Time) {
        let mut inner = self.inner.borrow_mut();
        inner.core.expire_left(now);
        if inner.state != State::Connecting {
            return;
        }
        trace!("  link {} is down", self.purpose.scope);
        inner.state = State::Down;
        inner.retries.drain(..).for_each(|retry| retry.fail(down()));
        for job in std::mem::take(&mut inner.queue) {
            for op in &job.ops {
                job.port.leave(Delivery::Failed(op.seq, down()));
            }
            job.port.wake();
        }
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.inner.borrow().violation.clone()
    }

    /// What is left under way, in words; empty if nothing.
    pub(crate) fn left(&self) -> String {
        let inner = self.inner.borrow();
        let (requests, bytes) = inner.core.in_flight();
        let parts = [requests, bytes, inner.queue.len(), inner.received.len(), inner.retries.len()];
        if parts == [0; 5] { String::new() } else { format!("requests, bytes, queue, received, retries: {parts:?}") }
    }
}

// === impl Inner ===

impl Inner {
    fn take_jobs(&mut self, now: Time) {
        if !matches!(self.state, State::Up(_)) || self.core.is_full() {
            return;
        }
        for job in std::mem::take(&mut self.queue) {
            self.core.submit(&job, now);
            for op in &job.ops {
                if let OpKind::Soften(order) | OpKind::UnlinkSoftly(order) | OpKind::NamedSoftly(order) = op.kind {
                    let until = now.saturating_add(Duration::from_millis(u64::from(order.ms)));
                    let keys = keys_of(&words_of(&job.bytes));
                    self.softened.extend(keys.into_iter().map(|key| (key, until)));
                }
            }
        }
        self.core.wake_clients();
    }

    /// Writes a random part of what is to be written, or all.
    fn write_some(&mut self, server: &mut Server, rng: Option<&mut Rng>) {
        let State::Up(conn) = self.state else { return };
        let outgoing = self.core.outgoing();
        let mut left = rng.map_or(usize::MAX, |rng| rng.index(outgoing.len() + 1));
        while left > 0 && !outgoing.is_empty() {
            let piece = outgoing.first().0;
            let n = piece.len().min(left);
            server.conns[conn.0].up.extend_from_slice(&piece[..n]);
            outgoing.advance(n);
            left -= n;
        }
    }
}

fn words_of(request: &[u8]) -> Words {
    let mut cursor = Cursor::new(request);
    let count = cursor.next_count().unwrap_or(0);
    (0..count).map_while(|_| cursor.next_bytes()).map(<[u8]>::to_vec).collect()
}

fn down() -> Failure {
    Failure::Down("the model's upstream is down".into())
}
