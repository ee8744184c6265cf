//! CORE of a client's session: which requests are answered from L1, which go down the link, and in which order their
//! replies leave.
//!
//! A request either is answered at once (nothing of the client is under way and L1 or Larder itself knows the answer)
//! or takes a *slot*. Slots leave in order. What makes the order of answers the order of one history:
//!
//! * While the client has an unanswered write, its reads follow it down the link.
//! * A hit behind an unanswered read is *held*: it leaves only if its entry is still the one in L1 when its turn comes.
//!   It was then the key's value all the time between, so it fits behind what was answered before it and in front of
//!   what is answered after it. If not, the request and all reads behind it are done again, in order, past L1.
//! * A write behind a held hit waits until the hit has left: nothing that cannot be done again stands behind one.
//! * MGET and EXISTS whose keys are partly in L1 are held likewise, so that a reply is never torn.
//!
//! Nothing here does I/O. Requests come in with [`Session::request`]; what is to go down the link is gathered in
//! [`Batch`]; replies come in with [`Session::replied`] and its siblings; [`Session::advance`] moves what may leave to the
//! output.
//!
//! Bounds: the shell takes no more requests while [`Session::under_way`] is at `limits.client_in_flight_max`.

mod ahead;
mod each;
mod hits;
mod outcome;
mod put;
mod soft;

pub use self::hits::AHEAD_MAX;

use self::each::soft_among;
use self::put::{put_corrected, put_held, put_hit, put_reply};

use crate::clock::Time;
use crate::insight::latency::Timed;
use crate::l1::{Answered, Hit, Partition, Reader, Variant};
use crate::metrics::{Counters, Passed};
use crate::mutation::{Mutation, is_planted};
use crate::outgoing::Outgoing;
use crate::policy::Policies;
use crate::port::Seq;
use crate::upstream::link::{Each, Job, Op, OpKind};
use bytes::{Bytes, BytesMut};
use larder_protocol::args::Args;
use larder_protocol::cache::ReadMode;
use larder_protocol::shape::{Protocol, Shape};
use larder_protocol::table::{Cacheability, Class, Command, CommandId, PerKey, Table};
use smallvec::SmallVec;
use std::collections::VecDeque;

/// What a session needs to know of its surroundings to take one request.
pub struct Surroundings<'a> {
    /// The command table in force.
    pub table: &'a Table,
    /// The scope's part of L1; `None` while nothing is kept.
    pub partition: Option<&'a Partition>,
    /// What may be answered in spite of an outage; `None` while the feed is there, or where nothing may.
    pub stale: Option<Stale<'a>>,
    /// True if the upstream speaks RESP2 only: its replies are passed on as they are.
    pub upstream_is_resp2: bool,
    /// True if the upstream has hash-field TTLs: replies that show fields are kept only where there can be none.
    pub has_field_ttls: bool,
    /// True if other users' scopes may hold keys of this database: what the link has told is to be fenced there, or a
    /// client of theirs could still read what this reply shows to be gone.
    pub fences: bool,
    /// True if keys of this database depend on others: the reply to a write waits until these are gone.
    pub settles: bool,
    /// False while a pause holds writes: the server then tells of a key that has expired that it is not there, and keeps it.
    /// If that were kept here, reading the key when the pause is over would not remove it there.
    pub keeps: bool,
    /// Who the client is among those that read.
    pub reader: Reader,
    /// What part of its life an entry of a key may have behind it before a hit has it refreshed; `None` while that is
    /// nowhere asked for.
    pub refresh_ahead: Option<&'a Policies>,
    /// Whether the reply to a read of a key is known to be large.
    pub is_big: &'a dyn Fn(&[u8]) -> bool,
    /// The clock.
    pub now: &'a dyn Fn() -> Time,
    /// The thread's counters.
    pub counters: &'a Counters,
}

/// What a scope's partition held when its feed was lost, and how long that may be answered.
#[derive(Clone, Copy)]
pub struct Stale<'a> {
    /// The scope's part of L1.
    pub partition: &'a Partition,
    /// What the operator allows.
    pub policies: &'a Policies,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It was taken.
    Taken,
    /// It was not taken: offer it again when something has left.
    Wait,
    /// It was not taken: nothing is under way, and it needs a connection of its own.
    Exclusive,
}

/// Requests that go down the link together.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: BytesMut,
    ops: SmallVec<[Op; 1]>,
}

/// A client's session.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    slots: VecDeque<Slot>,
    next_seq: u64,
    /// Slots of writes whose reply has not come.
    writes_out: usize,
    /// Slots that are held.
    held: usize,
    /// Bytes of replies of the link that wait for their turn.
    kept_bytes: usize,
    /// What the replies that have left since the last [`Session::advance`] were, and when their requests came.
    waited: Vec<(Timed, Time)>,
    /// Reads that are not held but sent down the link: what a client that mixes reads and writes is better served by.
    follows: u32,
    muted: Muted,
    reads: ReadMode,
    /// What was softened before is not for this client: see [`Session::learnt_elsewhere`].
    soft_since: Time,
    /// When the bytes came in which the requests at hand stand.
    batch_at: Time,
}

/// A batch of up to so many bytes leaves its buffer to the next.
const BATCH_KEPT_BYTES_MAX: usize = 64 * 1024;
/// Requests that there is room for behind the first, when there is a second.
const BATCH_OPS_MORE: usize = 15;
/// Room for so many replies' times is kept from batch to batch.
const WAITED_KEPT_MAX: usize = 32;

/// `CLIENT REPLY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Muted {
    /// Replies are sent.
    #[default]
    No,
    /// The reply to the next request is not sent.
    Next,
    /// No replies are sent.
    All,
}

#[derive(Debug)]
struct Slot {
    seq: Seq,
    state: State,
    shape: Option<Shape>,
    muted: bool,
    /// The request, where it may have to be done again.
    request: Option<Bytes>,
    fence: Fence,
    /// What its reply is to be counted as; `None` for nothing.
    timed: Option<Timed>,
    /// When the bytes came in which it stood.
    came_at: Time,
    /// What is Larder's own in the reply; rare, so a slot has little room for it.
    correction: Option<Box<Correction>>,
}

/// What the upstream cannot know of a reply, unless it is an error.
#[derive(Debug)]
enum Correction {
    /// PUBLISH: subscriptions that the upstream counts for Larder, and the clients here that stand behind them.
    Receivers { upstream: i64, here: i64 },
    /// All of it.
    Answer(Bytes),
}

/// Whether other scopes' links have heard of what the reply tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fence {
    /// Nothing that came from the upstream, or they all have.
    Done,
    /// They are still to be asked.
    Wanted,
    /// So many are still to answer.
    Missing(u32),
}

#[derive(Debug)]
enum State {
    /// Its reply has not come.
    Waiting { writes: bool },
    /// Its reply has come, in the upstream's protocol.
    Arrived(Bytes),
    /// Its reply is known, in the client's protocol.
    Ready(Bytes),
    /// An answer from L1, complete or with parts that have been asked for.
    Held(Held),
}

#[derive(Debug)]
struct Held {
    what: HeldKind,
    source: Source,
    hits: Vec<Option<Hit>>,
    missing: Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeldKind {
    Single,
    Mget,
    Exists,
}

/// Where the hits of a held answer are from, and must still be when it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// L1 as the feed keeps it, what is soft included.
    Feed,
    /// What was left behind when the feed was lost.
    LeftBehind,
}

#[derive(Debug)]
enum Missing {
    Nothing,
    AskedFor,
    Came(Bytes),
}

/// What is left to do after [`Session::advance`].
#[derive(Debug, Default)]
pub struct Advanced {
    /// Requests to be offered again by [`Session::request_again`], in order, before any other.
    pub again: Vec<Again>,
    /// Replies that wait for others: ask them with this number, and tell [`Session::fencing`] how many.
    pub fence: SmallVec<[(Seq, Told); 1]>,
}

/// What a reply that waits for others tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// What a key holds: all links of the database are to have heard of it.
    Read,
    /// A change: what follows from it is to have happened, too.
    Change,
}

/// A slot that is done again.
#[derive(Debug)]
pub enum Again {
    /// A request.
    Request {
        /// Its bytes.
        request: Bytes,
        /// Whether its reply is not to be sent.
        muted: bool,
    },
    /// An answer of Larder's own, that stands between requests.
    Answer {
        /// Its bytes, in the client's protocol.
        answer: Bytes,
        /// Whether it is not to be sent.
        muted: bool,
    },
}

/// How many reads of a client follow its requests down the link after one of its writes had to wait for a held hit.
const FOLLOWS_AFTER_A_WAIT: u32 = 64;

// === impl Session ===

impl Session {
    /// The session of a client that has just connected.
    pub fn new() -> Self {
        Self {
            protocol: Protocol::Resp2,
            slots: VecDeque::new(),
            next_seq: 1,
            writes_out: 0,
            held: 0,
            kept_bytes: 0,
            waited: Vec::new(),
            follows: 0,
            muted: Muted::No,
            reads: ReadMode::Cached,
            soft_since: Time::ZERO,
            batch_at: Time::ZERO,
        }
    }

    /// The requests that are taken from now on came at this time.
    pub fn begin_batch(&mut self, at: Time) {
        self.batch_at = at;
    }

    /// Where reads are answered from.
    pub fn read_mode(&self) -> ReadMode {
        self.reads
    }

    /// Changes where reads are answered from. Only when nothing is under way.
    pub fn set_read_mode(&mut self, reads: ReadMode) {
        self.reads = reads;
    }

    /// The protocol that the client speaks.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Changes the protocol. Only when nothing is under way.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// Changes what `CLIENT REPLY` says.
    pub fn set_muted(&mut self, muted: Muted) {
        self.muted = muted;
    }

    /// `CLIENT REPLY SKIP`: neither this request nor the next one gets a reply.
    pub fn skip_next(&mut self) {
        if self.muted == Muted::No {
            self.muted = Muted::Next;
        }
    }

    /// Requests that have no reply yet.
    #[inline]
    pub fn under_way(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of replies of the link that wait for their turn.
    #[inline]
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// A number for something that is not a request (a fence of the shell's).
    pub fn fresh_seq(&mut self) -> Seq {
        let seq = Seq(self.next_seq);
        self.next_seq += 1;
        seq
    }

    /// Whether the reply to the request at hand is to be swallowed; call once for each request.
    pub fn take_muted(&mut self) -> bool {
        match self.muted {
            Muted::No => false,
            Muted::All => true,
            Muted::Next => {
                self.muted = Muted::No;
                true
            }
        }
    }

    /// Takes an answer of Larder's own, in the client's protocol.
    pub fn answer(&mut self, answer: &[u8], out: &mut Outgoing) {
        let muted = self.take_muted();
        self.put_answer(answer, muted, out);
    }

    fn put_answer(&mut self, answer: &[u8], muted: bool, out: &mut Outgoing) {
        if self.slots.is_empty() {
            if !muted {
                out.put(answer);
            }
            return;
        }
        let seq = self.fresh_seq();
        let state = State::Ready(Bytes::copy_from_slice(answer));
        self.slots.push_back(Slot {
            seq,
            state,
            shape: None,
            muted,
            request: None,
            fence: Fence::Done,
            timed: None,
            came_at: self.batch_at,
            correction: None,
        });
    }

    /// Takes a request of a class that uses the link, or says what else is to be done with it.
    #[inline]
    pub fn request(
        &mut self,
        command: &Command,
        args: Args<'_>,
        around: &Surroundings<'_>,
        batch: &mut Batch,
        out: &mut Outgoing,
    ) -> Flow {
        match command.classify(args, self.protocol) {
            Class::Read(Cacheability::Single | Cacheability::PerKey(_)) if self.reads != ReadMode::Cached => {
                self.read_past(command, args, around, batch)
            }
            Class::Read(Cacheability::Single) => self.read(command, args, around, batch, out),
            Class::Read(Cacheability::PerKey(per_key)) => self.read_each(command, per_key, args, around, batch, out),
            Class::Read(Cacheability::No(bypass)) => {
                around.counters.pass(Passed::Table(bypass));
                self.send(command, args, OpKind::Read, around, batch);
                Flow::Taken
            }
            Class::Write => self.write(command, args, OpKind::Write(command.id), around, batch),
            Class::Plain => self.write(command, args, OpKind::Effect, around, batch),
            _ if self.slots.is_empty() => Flow::Exclusive,
            _ => Flow::Wait,
        }
    }

    /// Takes a request of Larder's own commands that the upstream is to answer in Larder's place.
    pub fn pass_on(&mut self, command: &Command, args: Args<'_>, around: &Surroundings<'_>, batch: &mut Batch) {
        self.send(command, args, OpKind::Read, around, batch);
    }

    /// Takes a request that is done again: it does not look in L1.
    pub fn request_again(
        &mut self,
        again: Again,
        command: impl FnOnce(Args<'_>) -> Option<CommandId>,
        args: impl FnOnce(&Bytes) -> Option<Vec<larder_protocol::args::ArgRange>>,
        around: &Surroundings<'_>,
        batch: &mut Batch,
        out: &mut Outgoing,
    ) {
        let (request, muted) = match again {
            Again::Answer { answer, muted } => return self.put_answer(&answer, muted, out),
            Again::Request { request, muted } => (request, muted),
        };
        let ranges = args(&request).unwrap_or_default();
        let args = Args::new(&request, &ranges);
        let Some(command) = command(args).and_then(|id| around.table.command(id)) else { return };
        let kind = match command.classify(args, self.protocol) {
            Class::Read(Cacheability::Single) => fill_of(command, args, false, around),
            Class::Read(Cacheability::PerKey(per_key)) => fill_each(each_of(per_key, command, around.table), around),
            _ => OpKind::Read,
        };
        let held_before = std::mem::replace(&mut self.muted, if muted { Muted::Next } else { Muted::No });
        self.send(command, args, kind, around, batch);
        self.muted = held_before;
    }

    /// The request that was taken last is a PUBLISH: of the receivers that the upstream will count, so many stand for
    /// so many clients here.
    pub fn publishes_to(&mut self, upstream: i64, here: i64) {
        if let Some(slot) = self.slots.back_mut() {
            slot.correction = Some(Box::new(Correction::Receivers { upstream, here }));
        }
    }

    /// As [`Session::pass_on`], for a request that the upstream is to count and may refuse, and that Larder answers.
    pub fn pass_on_for(
        &mut self,
        answer: Vec<u8>,
        command: &Command,
        args: Args<'_>,
        around: &Surroundings<'_>,
        batch: &mut Batch,
    ) -> Flow {
        // What is held may have it done again, and would not know the answer.
        if self.held > 0 {
            return Flow::Wait;
        }
        self.send(command, args, OpKind::Read, around, batch);
        if let Some(slot) = self.slots.back_mut() {
            slot.correction = Some(Box::new(Correction::Answer(answer.into())));
        }
        Flow::Taken
    }

    /// A read that L1 may not answer (`CACHE READ`). It follows down the link and does not share the reply of an earlier
    /// one: the upstream answers it after it has come. That costs no more than a fence in front of a hit would.
    fn read_past(&mut self, command: &Command, args: Args<'_>, around: &Surroundings<'_>, batch: &mut Batch) -> Flow {
        around.counters.pass(Passed::ReadMode);
        if command.keys(args).any(|at| (around.is_big)(args.arg(at))) {
            return if self.slots.is_empty() { Flow::Exclusive } else { Flow::Wait };
        }
        let is_there = |key_at| {
            let key = Variant::new(command.id, args, key_at);
            around.partition.is_some_and(|p| p.read(args.arg(key_at), key, around.now).is_some())
        };
        let kind = match command.classify(args, self.protocol) {
            _ if self.reads == ReadMode::Bypass => OpKind::Read,
            Class::Read(Cacheability::PerKey(per_key)) => fill_each(each_of(per_key, command, around.table), around),
            // What is there is dropped by a push if it is not right; it need not be kept twice.
            _ if command.keys(args).next().is_some_and(is_there) => OpKind::Read,
            _ => fill_of(command, args, false, around),
        };
        self.send(command, args, kind, around, batch);
        Flow::Taken
    }

    fn read(
        &mut self,
        command: &Command,
        args: Args<'_>,
        around: &Surroundings<'_>,
        batch: &mut Batch,
        out: &mut Outgoing,
    ) -> Flow {
        let Some(key_at) = command.first_key_at(args) else {
            self.send(command, args, OpKind::Read, around, batch);
            return Flow::Taken;
        };
        let Some(partition) = around.partition else {
            if let Some(hit) = self.read_stale(command, args, key_at, around) {
                return self.found(command, args, (hit, Source::LeftBehind), around, batch, out);
            }
            // The link decides whether it keeps the reply: it may be about to connect.
            around.counters.pass(Passed::NotTracked);
            self.send(command, args, fill_of(command, args, self.writes_out == 0, around), around, batch);
            return Flow::Taken;
        };
        let key = args.arg(key_at);
        let variant = Variant::new(command.id, args, key_at);
        let hash = partition.hash_of(key);
        let hit = if self.slots.is_empty() && self.muted == Muted::No {
            match partition
                .answer(key, hash, variant, self.leaves(around), around.now, |reply| reply.put_to(out.tail()))
            {
                Some(Answered::Put) => {
                    around.counters.hits.add(1);
                    around.counters.watcher.read_hashed(partition.scope(), key, hash, true, around.now);
                    return Flow::Taken;
                }
                Some(Answered::Hit(hit)) => Some(hit),
                None => None,
            }
        } else {
            partition.read(key, variant, around.now)
        };
        around.counters.watcher.read_hashed(partition.scope(), key, hash, hit.is_some(), around.now);
        if self.writes_out > 0 {
            around.counters.pass(Passed::UnansweredWrite);
            let kind = if hit.is_some() { OpKind::Read } else { fill_of(command, args, false, around) };
            self.send(command, args, kind, around, batch);
            return Flow::Taken;
        }
        if let Some(hit) = hit {
            around.counters.hits.add(1);
            self.refresh_ahead(&hit, command, args, key_at, around, batch);
            return self.found(command, args, (hit, Source::Feed), around, batch, out);
        }
        if let Some(hit) = self.read_soft(key, variant, partition, around) {
            return self.found(command, args, (hit, Source::Feed), around, batch, out);
        }
        around.counters.misses.add(1);
        if (around.is_big)(key) {
            around.counters.pass(Passed::TooBig);
            return if self.slots.is_empty() { Flow::Exclusive } else { Flow::Wait };
        }
        self.send(command, args, fill_of(command, args, true, around), around, batch);
        Flow::Taken
    }

    #[inline]
    fn found(
        &mut self,
        command: &Command,
        args: Args<'_>,
        (hit, source): (Hit, Source),
        around: &Surroundings<'_>,
        batch: &mut Batch,
        out: &mut Outgoing,
    ) -> Flow {
        if self.slots.is_empty() {
            let soft = u64::from(hit.is_soft());
            if self.take_muted() {
                return Flow::Taken;
            }
            let is_as_stored = self.protocol == Protocol::Resp3 || hit.same_in_both() || around.upstream_is_resp2;
            let shape = if is_as_stored { None } else { Shape::of(command, args) };
            if put_hit(hit, shape, out) {
                around.counters.soft.add(soft);
            } else {
                self.send(command, args, fill_of(command, args, true, around), around, batch);
            }
            return Flow::Taken;
        }
        if self.follows > 0 {
            self.follows -= 1;
            self.send(command, args, OpKind::Read, around, batch);
            return Flow::Taken;
        }
        let held = Held { what: HeldKind::Single, source, hits: vec![Some(hit)], missing: Missing::Nothing };
        self.hold(command, args, held, around);
        Flow::Taken
    }

    /// What was left behind for a read, while the upstream is away. A client with an unanswered write waits for that.
    fn read_stale(&self, command: &Command, args: Args<'_>, key_at: usize, around: &Surroundings<'_>) -> Option<Hit> {
        let stale = around.stale.filter(|_| self.writes_out == 0)?;
        let key = args.arg(key_at);
        let age_max = stale.policies.stale_if_error(key);
        let hit = stale.partition.read_left(key, Variant::new(command.id, args, key_at), age_max, (around.now)())?;
        around.counters.stale.add(1);
        Some(hit)
    }

    fn write(
        &mut self,
        command: &Command,
        args: Args<'_>,
        kind: OpKind,
        around: &Surroundings<'_>,
        batch: &mut Batch,
    ) -> Flow {
        if self.held > 0 {
            self.follows = FOLLOWS_AFTER_A_WAIT;
            return Flow::Wait;
        }
        around.counters.writes.add(1);
        if let Some(partition) = around.partition {
            let keys = command.written_keys(args).map(|at| args.arg(at));
            around.counters.watcher.write(partition.scope(), keys, around.now);
        }
        self.send(command, args, kind, around, batch);
        Flow::Taken
    }

    /// Sends a request down the link and gives it a slot.
    fn send(&mut self, command: &Command, args: Args<'_>, kind: OpKind, around: &Surroundings<'_>, batch: &mut Batch) {
        let writes = !kind.is_read();
        let slot = Slot {
            seq: self.fresh_seq(),
            state: State::Waiting { writes },
            shape: self.shape_for(command, args, around),
            muted: self.take_muted(),
            request: (self.held > 0).then(|| Bytes::copy_from_slice(args.bytes())),
            fence: Fence::Wanted,
            timed: match kind {
                OpKind::Fill { .. } | OpKind::FillEach(_) => Some(Timed::Miss),
                OpKind::Write(_) | OpKind::Effect => Some(Timed::Write),
                _ => None,
            },
            came_at: self.batch_at,
            correction: None,
        };
        self.writes_out += usize::from(writes);
        batch.push(slot.seq, args.bytes(), kind);
        self.slots.push_back(slot);
    }

    fn hold(&mut self, command: &Command, args: Args<'_>, held: Held, around: &Surroundings<'_>) -> Seq {
        around.counters.soft.add(soft_among(&held.hits));
        let seq = self.fresh_seq();
        let fence = if let Missing::Nothing = held.missing { Fence::Done } else { Fence::Wanted };
        let slot = Slot {
            seq,
            state: State::Held(held),
            shape: self.shape_for(command, args, around),
            muted: self.take_muted(),
            request: Some(Bytes::copy_from_slice(args.bytes())),
            fence,
            timed: None,
            came_at: self.batch_at,
            correction: None,
        };
        self.held += 1;
        self.slots.push_back(slot);
        seq
    }

    /// How the reply is to be turned into RESP2, if it is.
    fn shape_for(&self, command: &Command, args: Args<'_>, around: &Surroundings<'_>) -> Option<Shape> {
        let converts = self.protocol == Protocol::Resp2 && !around.upstream_is_resp2;
        if converts { Shape::of(command, args) } else { None }
    }

    fn merges_to(&self, around: &Surroundings<'_>) -> Protocol {
        if around.upstream_is_resp2 { Protocol::Resp3 } else { self.protocol }
    }

    /// True if the first slot waits for nothing but [`Session::advance`]: a held answer with nothing in front of it.
    pub fn is_head_ready(&self) -> bool {
        let head = self.slots.front().map(|slot| &slot.state);
        matches!(head, Some(State::Held(Held { missing: Missing::Nothing, .. })))
    }

    /// Moves what may leave to `out`, in order.
    pub fn advance(&mut self, around: &Surroundings<'_>, out: &mut Outgoing) -> Advanced {
        let mut advanced = Advanced::default();
        let mut waited = std::mem::take(&mut self.waited);
        let fences = around.fences && !is_planted(Mutation::OtherScopesUnfenced);
        let soft = self.soft_read(around);
        while let Some(slot) = self.slots.front_mut() {
            match &slot.state {
                State::Waiting { .. } | State::Held(Held { missing: Missing::AskedFor, .. }) => break,
                _ if matches!(slot.fence, Fence::Missing(_)) => break,
                _ if slot.fence == Fence::Wanted && (fences || (around.settles && slot.told() == Told::Change)) => {
                    break;
                }
                State::Arrived(reply) => {
                    waited.extend(slot.timed.map(|what| (what, slot.came_at)));
                    count_level(slot.timed, reply, around.counters);
                    if !slot.muted {
                        match &slot.correction {
                            Some(correction) => put_corrected(correction, slot.shape, reply, out),
                            None => put_reply(slot.shape, reply, out),
                        }
                    }
                }
                State::Ready(answer) => {
                    if !slot.muted {
                        out.put_shared(answer.clone());
                    }
                }
                State::Held(held) => {
                    if !put_held(held, slot.shape, slot.muted, soft, around, out) {
                        advanced.again = self.take_back(around.counters);
                        break;
                    }
                    self.held -= 1;
                }
            }
            if let Some(slot) = self.slots.pop_front() {
                self.kept_bytes = self.kept_bytes.saturating_sub(slot.kept_bytes());
            }
        }
        if !waited.is_empty() {
            let now = (around.now)();
            let micros = |came_at: Time| now.saturating_since(came_at).as_micros() as u64;
            around.counters.latencies.record_all(waited.iter().map(|(what, at)| (*what, micros(*at))));
            waited.clear();
        }
        if waited.capacity() <= WAITED_KEPT_MAX {
            self.waited = waited;
        }
        if fences || around.settles {
            let waits = |slot: &&Slot| slot.fence == Fence::Wanted && (fences || slot.told() == Told::Change);
            let arrived = self.slots.iter().filter(waits).filter(|slot| slot.has_arrived());
            advanced.fence = arrived.map(|slot| (slot.seq, slot.told())).collect();
        }
        advanced
    }

    /// Forgets all slots: a held hit has become void, so it and all behind it are done again.
    fn take_back(&mut self, counters: &Counters) -> Vec<Again> {
        self.held = 0;
        self.writes_out = 0;
        self.kept_bytes = 0;
        counters.redone.add(self.slots.len() as u64);
        let again = |slot: Slot| match (slot.state, slot.request) {
            (State::Ready(answer), _) => Some(Again::Answer { answer, muted: slot.muted }),
            (_, Some(request)) => Some(Again::Request { request, muted: slot.muted }),
            _ => None,
        };
        std::mem::take(&mut self.slots).into_iter().filter_map(again).collect()
    }

    fn find(&self, seq: Seq) -> Option<usize> {
        match self.slots.front() {
            Some(front) if front.seq == seq => Some(0),
            _ => self.slots.binary_search_by_key(&seq, |slot| slot.seq).ok(),
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

/// True if the server has not executed a command because a script keeps it busy: then nothing follows from it. (No script of a
/// client's runs on a link, which could have made the line up.)
fn is_refused_as_busy(reply: &[u8]) -> bool {
    reply.starts_with(b"-BUSY ")
}

// === impl HeldKind ===

impl HeldKind {
    fn of(per_key: PerKey) -> Self {
        if per_key == PerKey::Mget { Self::Mget } else { Self::Exists }
    }
}

// === impl Slot ===

impl Slot {
    /// Bytes of the reply that it keeps.
    fn kept_bytes(&self) -> usize {
        match &self.state {
            State::Arrived(reply) | State::Held(Held { missing: Missing::Came(reply), .. }) => reply.len(),
            _ => 0,
        }
    }

    /// What its reply tells of.
    fn told(&self) -> Told {
        match &self.state {
            State::Arrived(reply) if is_refused_as_busy(reply) => Told::Read,
            _ if self.timed == Some(Timed::Write) => Told::Change,
            _ => Told::Read,
        }
    }

    /// True if what was asked of the link has come.
    fn has_arrived(&self) -> bool {
        matches!(&self.state, State::Arrived(_) | State::Held(Held { missing: Missing::Came(_), .. }))
    }
}

// === impl Batch ===

impl Batch {
    /// True if nothing is to be sent.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes gathered.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The requests as a job for `port`; the batch is empty then.
    pub fn take(&mut self, port: &std::sync::Arc<crate::port::Port>) -> Job {
        let bytes = match self.bytes.len() {
            // What is split off keeps the whole buffer alive until its rest is given back, too.
            len if len > BATCH_KEPT_BYTES_MAX => std::mem::take(&mut self.bytes),
            _ => self.bytes.split(),
        };
        Job { port: port.clone(), bytes: bytes.freeze(), ops: std::mem::take(&mut self.ops) }
    }

    fn push(&mut self, seq: Seq, request: &[u8], kind: OpKind) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(request);
        if self.ops.len() == 1 {
            // Where there is a second, there are mostly more: room is made once.
            self.ops.reserve(BATCH_OPS_MORE);
        }
        self.ops.push(Op { seq, bytes: start..self.bytes.len() as u32, kind });
    }
}

/// Whether the upstream had what was asked for.
fn count_level(timed: Option<Timed>, reply: &[u8], counters: &Counters) {
    if timed == Some(Timed::Miss) {
        let is_null = matches!(reply, b"_\r\n" | b"$-1\r\n" | b"*-1\r\n");
        if is_null { counters.l2_misses.add(1) } else { counters.l2_hits.add(1) }
    }
}

fn fill_of(command: &Command, args: Args<'_>, may_join: bool, around: &Surroundings<'_>) -> OpKind {
    let asks_encoding = around.has_field_ttls && command.reads_hash_fields();
    // A flight that began before this read may bring what another user's client was just told to be gone.
    let may_join = may_join && !around.fences;
    match command.first_key_at(args).filter(|_| around.keeps) {
        Some(key_at) => OpKind::Fill { command: command.id, key_at: key_at as u16, may_join, asks_encoding },
        None => OpKind::Read,
    }
}

fn fill_each(each: Each, around: &Surroundings<'_>) -> OpKind {
    if around.keeps { OpKind::FillEach(each) } else { OpKind::Read }
}

fn each_of(per_key: PerKey, command: &Command, table: &Table) -> Each {
    match per_key {
        PerKey::Exists => Each::Exists(command.id),
        PerKey::Mget => Each::Mget { get: table.lookup(b"get").map_or(command.id, |get| get.id), mget: command.id },
    }
}

fn read_one(partition: &Partition, each: Each, key: &[u8], now: &dyn Fn() -> Time) -> Option<Hit> {
    read_one_as(each, |variant| partition.read(key, variant, now))
}

/// Looks for one key of several under each of the variants that it may be held as.
fn read_one_as(each: Each, look: impl Fn(Variant<'static>) -> Option<Hit>) -> Option<Hit> {
    match each {
        Each::Exists(exists) => look(Variant::bare(exists)),
        Each::Mget { get, mget } => look(Variant::bare(get)).or_else(|| look(Variant::bare(mget))),
    }
}
