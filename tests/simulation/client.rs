//! A client and its shell: what `client` and `client::core` do, without a socket; and the check of every answer.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use bytes::{Bytes, BytesMut};
use larder::clock::Time;
use larder::l1::Reader;
use larder::metrics::Counters;
use larder::outgoing::Outgoing;
use larder::policy::Policies;
use larder::port::{Delivery, Port, Seq, Taken};
use larder::session::{Again, Batch, Flow, Session, Stale, Surroundings};
use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::scan::{Ahead, RequestLimits, RequestScanner, Step};
use larder_protocol::shape::Protocol;
use larder_protocol::table::{CommandId, Resolved, Table};

use crate::history::{
    DATABASES, KEY_NAMES, KEYS, Span, Version, Words, encode, evaluate, keys_of, number, show, show_words,
};
use crate::link::Link;
use crate::rng::Rng;
use crate::server::{ConnId, Server, take_frame};
use crate::trace;

/// What a client's turn may look at.
pub(crate) struct Around<'a> {
    pub(crate) links: &'a [Link],
    pub(crate) server: &'a Server,
    pub(crate) table: &'a Table,
    pub(crate) counters: &'a Counters,
    pub(crate) big_keys: &'a BTreeSet<Vec<u8>>,
    pub(crate) policies: &'a Policies,
    pub(crate) judge: &'a RefCell<Judge>,
    pub(crate) now: Time,
    /// Moves links while a request is looked at, as another thread would; `None` if nothing moves meanwhile.
    pub(crate) meanwhile: Option<&'a RefCell<Rng>>,
}

/// What is known of all answers so far.
pub(crate) struct Judge {
    /// For each scope and slot: the version that no read which is asked for from now on may be older than.
    floors: Vec<Vec<Version>>,
    databases: Vec<usize>,
    /// Something happened that a request can fail by.
    pub(crate) faults: bool,
    /// Writes of which a client was told that they have not been sent.
    pub(crate) never_sent: Vec<Vec<u8>>,
    pub(crate) answers: u64,
    pub(crate) from_l1: u64,
    pub(crate) stale: u64,
    pub(crate) soft: u64,
    /// For each scope and slot: the latest write that was acknowledged to anybody, by version.
    written: Vec<Vec<Version>>,
    /// For each scope without a link: keys whose write was lost.
    doubted: Vec<BTreeSet<usize>>,
    /// For each scope: how often its link has had a connection again.
    recoveries: Vec<u64>,
    pub(crate) failures: u64,
    pub(crate) violation: Option<String>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    /// A read whose client is in a state in which it has a connection of its own.
    ReadApart,
    Write,
    /// A write whose client is in such a state.
    WriteApart,
    /// Moves the client to another scope.
    Enter(usize),
}

/// A request that has no answer yet.
struct Asked {
    words: Words,
    kind: Kind,
    scope: usize,
    database: usize,
    /// What was known when it was asked.
    floor: Version,
    /// For each key: the latest write that was acknowledged then.
    written: Vec<Version>,
    asked_at: Version,
    asked_ms: u64,
    /// How often the link of the scope had recovered by then.
    recoveries: u64,
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Upstream,
    L1,
    /// What a loss has left behind.
    Left,
    /// What was softly invalidated, if only for some of its keys; the upstream was asked for none.
    Soft,
    /// As `Soft`, and the upstream was asked for others.
    SoftInPart,
}

// === impl Source ===

impl Source {
    fn is_soft(self) -> bool {
        matches!(self, Self::Soft | Self::SoftInPart)
    }
}

/// What a client has been told.
struct Seen {
    /// The version that the latest answer shows at least.
    version: Version,
    /// The same for each slot, soft answers included.
    slots: Vec<Version>,
}

/// A request on a connection of its own.
enum Apart {
    /// Nothing of the kind.
    No,
    /// It is to be sent.
    ToSend,
    /// It has been sent.
    Sent,
    /// Its answer waits for links to catch up.
    Fencing { seq: Seq, missing: u32, answer: Vec<u8> },
}

pub(crate) struct Client {
    pub(crate) id: usize,
    pub(crate) scope: usize,
    /// The scope of the next request to be asked.
    pub(crate) next_scope: usize,
    session: Session,
    port: Arc<Port>,
    batch: Batch,
    out: Outgoing,
    taken: Taken,
    received: BytesMut,
    asked: VecDeque<Asked>,
    /// How many of the youngest of `asked` have not been taken.
    untaken: usize,
    stalled: bool,
    apart: Apart,
    pub(crate) conn: Option<ConnId>,
    flag: Arc<Flag>,
    waker: Waker,
    seen: Seen,
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const IN_FLIGHT_MAX: usize = 12;
const TURNS_MAX: usize = 8;

// === impl Kind ===

impl Kind {
    fn writes(self) -> bool {
        matches!(self, Self::Write | Self::WriteApart)
    }
}

// === impl Client ===

impl Client {
    pub(crate) fn new(id: usize, scope: usize, protocol: Protocol) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let mut session = Session::new();
        session.set_protocol(protocol);
        Self {
            id,
            scope,
            next_scope: scope,
            session,
            port: Arc::new(Port::default()),
            batch: Batch::default(),
            out: Outgoing::default(),
            taken: Taken::default(),
            received: BytesMut::new(),
            asked: VecDeque::new(),
            untaken: 0,
            stalled: false,
            apart: Apart::No,
            conn: None,
            waker: flag.clone().into(),
            flag,
            seen: Seen { version: 0, slots: vec![0; DATABASES * KEYS] },
        }
    }

    pub(crate) fn waits_for(&self) -> usize {
        self.asked.len()
    }

    pub(crate) fn speaks_resp3(&self) -> bool {
        self.session.protocol() == Protocol::Resp3
    }

    /// What is left under way, in words; empty if nothing.
    pub(crate) fn left(&self) -> String {
        match self.asked.front() {
            None if self.session.under_way() == 0 => String::new(),
            None => format!("{} slots that nobody asked for", self.session.under_way()),
            Some(first) => format!(
                "{} requests, {} not taken, {} under way, stalled {}, apart {}, the first of which is {}",
                self.asked.len(),
                self.untaken,
                self.session.under_way(),
                self.stalled,
                !matches!(self.apart, Apart::No),
                show_words(&first.words)
            ),
        }
    }

    /// The client sends a request.
    pub(crate) fn ask(&mut self, words: Words, kind: Kind, server: &Server, judge: &Judge) {
        let scope = self.next_scope;
        let database = judge.databases[scope];
        let floor = keys_of(&words).into_iter().map(|key| judge.floors[scope][database * KEYS + key]).max();
        let written = keys_of(&words).into_iter().map(|key| judge.written[scope][database * KEYS + key]).collect();
        trace!("client {} in scope {scope} asks {}", self.id, show_words(&words));
        if let Kind::Enter(next) = kind {
            self.next_scope = next;
        }
        self.asked.push_back(Asked {
            words,
            kind,
            scope,
            database,
            floor: floor.unwrap_or(0),
            written,
            asked_at: server.history.now,
            asked_ms: server.now_ms,
            recoveries: judge.recoveries[scope],
            source: Source::Upstream,
        });
        self.untaken += 1;
        self.flag.0.store(true, Ordering::Relaxed);
    }

    /// True if the client's task would run.
    pub(crate) fn is_awake(&self) -> bool {
        self.flag.0.load(Ordering::Relaxed)
    }

    /// One turn of the client's task.
    pub(crate) fn turn(&mut self, around: &Around<'_>) {
        self.flag.0.store(false, Ordering::Relaxed);
        let waker = self.waker.clone();
        let mut cx = Context::from_waker(&waker);
        for _ in 0..TURNS_MAX {
            let mut moved = false;
            if self.port.poll_ready(&mut cx).is_ready() {
                self.take_deliveries(around);
                moved = true;
            }
            if !matches!(self.apart, Apart::No) {
                moved |= self.finish_apart(around);
            } else {
                // With nothing under way no delivery would ever come that lets a stalled request go on.
                self.stalled &= !moved && self.session.under_way() > 0;
                if self.untaken > 0 && !self.stalled && self.may_take() {
                    self.take_requests(around);
                    moved = true;
                }
            }
            self.submit(around);
            self.read_answers(around);
            if !moved {
                return;
            }
        }
        self.flag.0.store(true, Ordering::Relaxed);
    }

    fn may_take(&self) -> bool {
        self.session.under_way() < IN_FLIGHT_MAX
    }

    fn take_requests(&mut self, around: &Around<'_>) {
        while self.untaken > 0 {
            if !self.may_take() {
                self.stalled = true;
                return;
            }
            match self.take_one(around) {
                Flow::Taken => self.untaken -= 1,
                Flow::Wait => {
                    self.stalled = true;
                    return;
                }
                Flow::Exclusive => {
                    self.submit(around);
                    self.stalled = true;
                    if self.session.under_way() == 0 {
                        self.untaken -= 1;
                        self.stalled = false;
                        self.begin_apart(around);
                    }
                    return;
                }
            }
        }
    }

    fn take_one(&mut self, around: &Around<'_>) -> Flow {
        let at = self.asked.len() - self.untaken;
        let asked = &self.asked[at];
        if !matches!(asked.kind, Kind::Read | Kind::Write) {
            return if self.session.under_way() == 0 { Flow::Exclusive } else { Flow::Wait };
        }
        let request = OwnedArgs::new(&asked.words);
        let Resolved::Known(command) = around.table.resolve(request.args()) else {
            panic!("{} is not in the table", show_words(&asked.words));
        };
        let before = self.batch.len();
        let stale_before = around.counters.stale.value();
        let soft_before = around.counters.soft.value();
        let (session, batch, out) = (&mut self.session, &mut self.batch, &mut self.out);
        let flow = surrounded(around, self.scope, self.port.reader(), |s| {
            // Each other read goes the way of those that come one after the other.
            if at.is_multiple_of(2)
                && command.reads_its_argument()
                && request.args().len() == 2
                && session.answers_hits(s)
            {
                let key = request.args().ranges()[1];
                let ahead = Ahead { start: key.start, len: key.len, end: request.args().bytes().len() as u32 };
                if session.answer_hits(command, request.args().bytes(), &[ahead], usize::MAX, s, out) == 1 {
                    return Flow::Taken;
                }
            }
            session.request(command, request.args(), s, batch, out)
        });
        if flow == Flow::Taken && self.batch.len() == before {
            let is_stale = around.counters.stale.value() > stale_before;
            self.asked[at].source = if is_stale { Source::Left } else { Source::L1 };
        }
        if flow == Flow::Taken && around.counters.soft.value() > soft_before {
            self.asked[at].source = if self.batch.len() == before { Source::Soft } else { Source::SoftInPart };
        }
        flow
    }

    /// The request that was just taken goes another way than the link.
    fn begin_apart(&mut self, around: &Around<'_>) {
        let at = self.asked.len() - self.untaken - 1;
        match self.asked[at].kind {
            Kind::Enter(scope) => {
                self.apart = self.start_fence(around, &[scope], b"+OK\r\n".to_vec());
                self.conn = None;
            }
            _ => self.apart = Apart::ToSend,
        }
    }

    /// The bytes that are to go out on the connection of its own.
    pub(crate) fn take_apart(&mut self) -> Option<Vec<u8>> {
        if !matches!(self.apart, Apart::ToSend) {
            return None;
        }
        self.apart = Apart::Sent;
        let at = self.asked.len() - self.untaken - 1;
        Some(encode(&self.asked[at].words))
    }

    /// Bytes have come on the connection of its own.
    pub(crate) fn receive(&mut self, bytes: &[u8], around: &Around<'_>) {
        self.received.extend_from_slice(bytes);
        let Some(reply) = take_frame(&mut self.received) else { return };
        let at = self.asked.len() - self.untaken - 1;
        let asked = &self.asked[at];
        let name: &[u8] = &asked.words[0];
        let reaches = |scope: &usize| match asked.kind {
            _ if *scope == self.scope => true,
            _ if asked.kind.writes() => true,
            // What was only read can be contradicted by the scopes of other users of the database, too.
            _ => around.links[*scope].purpose.database == asked.database,
        };
        let scopes: Vec<usize> = (0..around.links.len()).filter(reaches).collect();
        // Nobody knows what a script has done.
        let keys = if matches!(name, b"FLUSHALL" | b"EVAL") { Vec::new() } else { keys_of(&asked.words) };
        for link in around.links.iter().filter(|_| asked.kind.writes()) {
            match &keys[..] {
                [] => link.partition.written_elsewhere(None, around.now),
                keys => keys.iter().for_each(|key| link.partition.written_elsewhere(Some(KEY_NAMES[*key]), around.now)),
            }
        }
        self.apart = self.start_fence(around, &scopes, reply);
        self.flag.0.store(true, Ordering::Relaxed);
    }

    /// The connection of its own is lost.
    pub(crate) fn lose_conn(&mut self, links: &[Link]) {
        self.conn = None;
        self.received.clear();
        if matches!(self.apart, Apart::Sent) {
            if self.asked[self.asked.len() - self.untaken - 1].kind.writes() {
                links.iter().for_each(Link::drop_all);
            }
            let answer = b"-UPSTREAMLOST connection lost\r\n".to_vec();
            self.apart = Apart::Fencing { seq: self.session.fresh_seq(), missing: 0, answer };
            self.flag.0.store(true, Ordering::Relaxed);
        }
    }

    fn start_fence(&mut self, around: &Around<'_>, scopes: &[usize], answer: Vec<u8>) -> Apart {
        let seq = self.session.fresh_seq();
        for scope in scopes {
            around.links[*scope].submit_fence(&self.port, seq);
        }
        Apart::Fencing { seq, missing: scopes.len() as u32, answer }
    }

    fn finish_apart(&mut self, around: &Around<'_>) -> bool {
        let Apart::Fencing { missing: 0, answer, .. } = &mut self.apart else { return false };
        let answer = std::mem::take(answer);
        self.apart = Apart::No;
        let at = self.asked.len() - self.untaken - 1;
        if let Kind::Enter(scope) = self.asked[at].kind {
            self.scope = scope;
        }
        self.session.learnt_elsewhere(around.now);
        self.session.answer(&answer, &mut self.out);
        self.read_answers(around);
        true
    }

    fn submit(&mut self, around: &Around<'_>) {
        if self.batch.is_empty() {
            return;
        }
        let job = self.batch.take(&self.port);
        let seqs: Vec<Seq> = job.ops.iter().map(|op| op.seq).collect();
        if let Err(failure) = around.links[self.scope].submit(job) {
            for seq in seqs {
                self.session.failed(seq, &failure);
            }
            self.advance(around);
        }
    }

    fn take_deliveries(&mut self, around: &Around<'_>) {
        let mut taken = std::mem::take(&mut self.taken);
        self.port.take(&mut taken);
        let fences = surrounded(around, self.scope, self.port.reader(), |s| s.fences);
        let mut at = 0;
        for delivery in taken.deliveries.drain(..) {
            match delivery {
                Delivery::Small { seq, len } => {
                    let reply = &taken.bytes[at..at + len];
                    at += len;
                    if fences || !self.session.replied_in_turn(seq, reply, false, around.counters, &mut self.out) {
                        self.session.replied(seq, Bytes::copy_from_slice(reply));
                    }
                }
                Delivery::Large(seq, reply) => self.session.replied(seq, reply),
                Delivery::Failed(seq, failure) => {
                    if let Apart::Fencing { seq: fence, missing, answer } = &mut self.apart
                        && *fence == seq
                    {
                        *missing = 0;
                        *answer = format!("-{failure}\r\n").into_bytes();
                    }
                    self.session.failed(seq, &failure);
                }
                Delivery::Fenced(seq) => {
                    if let Apart::Fencing { seq: fence, missing, .. } = &mut self.apart
                        && *fence == seq
                    {
                        *missing = missing.saturating_sub(1);
                    }
                    self.session.fenced(seq);
                }
                Delivery::Message(_) | Delivery::Invalidation(_) => panic!("a message without a subscription"),
                Delivery::Line(_) | Delivery::CatchUp(_) => panic!("nobody watches"),
            }
        }
        taken.recycle();
        self.taken = taken;
        self.advance(around);
    }

    fn advance(&mut self, around: &Around<'_>) {
        loop {
            let (session, out) = (&mut self.session, &mut self.out);
            let advanced = surrounded(around, self.scope, self.port.reader(), |s| session.advance(s, out));
            self.read_answers(around);
            let (fenced, redone) = (!advanced.fence.is_empty(), !advanced.again.is_empty());
            if redone {
                // Whatever was held is asked of the upstream now.
                let left = self.asked.iter_mut().filter(|asked| asked.source == Source::Left);
                left.for_each(|asked| asked.source = Source::Upstream);
            }
            for (seq, _) in advanced.fence {
                self.fence_others(seq, around);
            }
            if redone {
                let taken = self.asked.len() - self.untaken;
                self.asked.iter_mut().take(taken).for_each(|asked| asked.source = Source::Upstream);
                trace!("client {} does {} requests again", self.id, advanced.again.len());
            }
            for again in advanced.again {
                self.request_again(again, around);
            }
            if redone {
                self.submit(around);
            }
            if !fenced && !redone {
                return;
            }
        }
    }

    fn fence_others(&mut self, seq: Seq, around: &Around<'_>) {
        let database = around.links[self.scope].purpose.database;
        let other = |link: &&Link| link.purpose.scope != self.scope && link.purpose.database == database;
        let others: Vec<&Link> = around.links.iter().filter(other).collect();
        self.session.fencing(seq, others.len() as u32);
        for link in others {
            link.submit_fence(&self.port, seq);
        }
    }

    fn request_again(&mut self, again: Again, around: &Around<'_>) {
        let resolve = |args: Args<'_>| -> Option<CommandId> {
            match around.table.resolve(args) {
                Resolved::Known(command) => Some(command.id),
                _ => None,
            }
        };
        let scan = |request: &Bytes| {
            let mut scanner = RequestScanner::new(RequestLimits::default());
            matches!(scanner.scan(request), Ok(Step::Request { .. })).then(|| scanner.take_ranges())
        };
        let (session, batch, out) = (&mut self.session, &mut self.batch, &mut self.out);
        surrounded(around, self.scope, self.port.reader(), |s| {
            session.request_again(again, resolve, scan, s, batch, out)
        });
    }

    /// Reads what Larder has sent, and judges it.
    fn read_answers(&mut self, around: &Around<'_>) {
        if self.out.is_empty() {
            return;
        }
        let mut bytes = BytesMut::new();
        while !self.out.is_empty() {
            let piece = self.out.first().0;
            bytes.extend_from_slice(piece);
            let len = piece.len();
            self.out.advance(len);
        }
        let mut judge = around.judge.borrow_mut();
        while let Some(answer) = take_frame(&mut bytes) {
            let result = match self.asked.pop_front() {
                None => Err("an answer that nobody asked for".into()),
                Some(_) if self.untaken > self.asked.len() => Err("an answer before its request".into()),
                Some(asked) => {
                    trace!("client {} gets {} for {}", self.id, show(&answer), show_words(&asked.words));
                    let result = judge
                        .may_be_stale(&asked, &answer, around)
                        .and_then(|()| judge.answer(&asked, &answer, &mut self.seen, self.session.protocol(), around));
                    result.map_err(|e| format!("{e}; asked was {} in scope {}", show_words(&asked.words), asked.scope))
                }
            };
            if let Err(what) = result {
                let line = format!("client {}: {what}; the answer is {}", self.id, show(&answer));
                judge.violation.get_or_insert(line);
            }
        }
        if !bytes.is_empty() {
            judge.violation.get_or_insert(format!("client {}: half an answer: {}", self.id, show(&bytes)));
        }
    }
}

fn surrounded<T>(around: &Around<'_>, scope: usize, reader: Reader, work: impl FnOnce(&Surroundings<'_>) -> T) -> T {
    let link = &around.links[scope];
    let now = || {
        if let Some(rng) = around.meanwhile
            && rng.borrow_mut().one_in(3)
        {
            link.read_one(around.now);
        }
        around.now
    };
    work(&Surroundings {
        table: around.table,
        partition: link.caches().then(|| &*link.partition),
        // Also once there is a link again: a client on another thread may have looked around before.
        stale: Some(Stale { partition: &link.partition, policies: around.policies }),
        upstream_is_resp2: false,
        has_field_ttls: false,
        fences: around.links.len() > 1,
        settles: false,
        keeps: true,
        reader,
        refresh_ahead: around.policies.refreshes().then_some(around.policies),
        is_big: &|key| around.big_keys.contains(key),
        now: &now,
        counters: around.counters,
    })
}

// === impl Judge ===

impl Judge {
    pub(crate) fn new(databases: Vec<usize>) -> Self {
        Self {
            floors: vec![vec![0; DATABASES * KEYS]; databases.len()],
            doubted: vec![BTreeSet::new(); databases.len()],
            recoveries: vec![0; databases.len()],
            stale: 0,
            soft: 0,
            written: vec![vec![0; DATABASES * KEYS]; databases.len()],
            databases,
            faults: false,
            never_sent: Vec::new(),
            answers: 0,
            from_l1: 0,
            failures: 0,
            violation: None,
        }
    }

    fn answer(
        &mut self,
        asked: &Asked,
        answer: &[u8],
        seen: &mut Seen,
        protocol: Protocol,
        around: &Around<'_>,
    ) -> Result<(), String> {
        let server = around.server;
        self.answers += 1;
        self.stale += u64::from(asked.source == Source::Left);
        self.from_l1 += u64::from(asked.source == Source::L1);
        if answer.starts_with(b"-") {
            return self.failure(asked, answer, around);
        }
        match asked.kind {
            Kind::Enter(_) if answer == b"+OK\r\n" => Ok(()),
            Kind::Enter(_) => Err("not the answer to a change of scope".into()),
            Kind::Write | Kind::WriteApart => self.write(asked, answer, seen, server),
            Kind::Read | Kind::ReadApart => self.read(asked, answer, seen, protocol, around),
        }
    }

    fn failure(&mut self, asked: &Asked, answer: &[u8], around: &Around<'_>) -> Result<(), String> {
        let server = around.server;
        self.failures += 1;
        if !self.faults || !answer.starts_with(b"-UPSTREAM") {
            return Err("an error that nothing explains".into());
        }
        if asked.kind.writes() {
            let request = encode(&asked.words);
            if server.history.executions(&request).len() > 1 {
                return Err("a write was executed twice".into());
            }
            if answer.starts_with(b"-UPSTREAMDOWN") {
                self.never_sent.push(request);
            }
            // One that was asked for before the link recovered may have been lost with the connection before: a client may
            // be late in reading that. What is left behind now was read after it.
            let is_of_this_loss = asked.recoveries == self.recoveries[asked.scope];
            if answer.starts_with(b"-UPSTREAMLOST") && is_of_this_loss && around.links[asked.scope].conn().is_none() {
                let all = matches!(&asked.words[0][..], b"EVAL" | b"FLUSHALL");
                let keys = if all { (0..KEYS).collect() } else { keys_of(&asked.words) };
                self.doubted[asked.scope].extend(keys);
            }
        }
        Ok(())
    }

    /// An answer from what a loss has left behind: only while there is no link, not too old, and not about what a lost
    /// write may have changed.
    fn may_be_stale(&self, asked: &Asked, answer: &[u8], around: &Around<'_>) -> Result<(), String> {
        if asked.source != Source::Left || answer.starts_with(b"-") {
            return Ok(());
        }
        let Some(lost_at) = around.links[asked.scope].lost_at() else {
            return Err("a stale answer while there is a link".into());
        };
        let age = around.now.saturating_since(lost_at);
        for key in keys_of(&asked.words) {
            let age_max = around.policies.stale_if_error(KEY_NAMES[key]);
            if age_max.is_zero() || age > age_max {
                return Err(format!("a stale answer {age:?} after the loss, {age_max:?} are allowed"));
            }
            if self.doubted[asked.scope].contains(&key) {
                return Err("a stale answer about a key whose write was lost".into());
            }
        }
        Ok(())
    }

    /// The latest write of a key that was acknowledged to anybody.
    pub(crate) fn written(&self, scope: usize, slot: usize) -> Version {
        self.written[scope][slot]
    }

    /// The link of a scope has a connection again.
    pub(crate) fn recovered(&mut self, scope: usize) {
        self.doubted[scope].clear();
        self.recoveries[scope] += 1;
    }

    fn write(&mut self, asked: &Asked, answer: &[u8], seen: &mut Seen, server: &Server) -> Result<(), String> {
        let [(version, reply)] = server.history.executions(&encode(&asked.words)) else {
            return Err("a write that was acknowledged has not been executed exactly once".into());
        };
        if reply != answer {
            return Err(format!("the server's answer was {}", show(reply)));
        }
        if *version < asked.asked_at {
            return Err(format!("executed at v{version}, before it was asked for at v{}", asked.asked_at));
        }
        if *version < seen.version {
            return Err(format!("executed at v{version}, but the client has seen v{} by then", seen.version));
        }
        seen.version = *version;
        let written: Vec<usize> = match &asked.words[0][..] {
            b"FLUSHALL" => (0..DATABASES * KEYS).collect(),
            _ => keys_of(&asked.words).into_iter().map(|key| asked.database * KEYS + key).collect(),
        };
        for slot in written {
            seen.slots[slot] = *version;
            let scopes = self.floors.iter_mut().zip(&mut self.written).zip(&self.databases);
            for ((floors, written), _) in scopes.filter(|(_, database)| slot / KEYS == **database) {
                floors[slot] = floors[slot].max(*version);
                written[slot] = written[slot].max(*version);
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        asked: &Asked,
        answer: &[u8],
        seen: &mut Seen,
        protocol: Protocol,
        around: &Around<'_>,
    ) -> Result<(), String> {
        let server = around.server;
        let history = &server.history;
        let slots: Vec<usize> = keys_of(&asked.words).into_iter().map(|key| asked.database * KEYS + key).collect();
        let lower = seen.version.max(asked.floor);
        let fits = |version| {
            let span = |slot: usize| history.at(slot, version);
            let alive = |slot: &usize| span(*slot).deadline_ms.is_none_or(|deadline| server.now_ms <= deadline);
            // What was alive when the link was lost may be answered beyond its time.
            let lives_on = |slot: &usize| {
                let age_max = around.policies.stale_if_error(KEY_NAMES[slot % KEYS]).as_millis() as u64;
                span(*slot).deadline_ms.is_none_or(|deadline| server.now_ms <= deadline + age_max + 1)
            };
            let lives = match asked.source {
                Source::Upstream | Source::SoftInPart => true,
                Source::L1 | Source::Soft => slots.iter().all(alive),
                Source::Left => slots.iter().all(lives_on),
            };
            if !lives {
                return false;
            }
            if asked.words[0] == b"PTTL" {
                return fits_pttl(answer, &span(slots[0]).value.is_some(), span(slots[0]).deadline_ms, asked, server);
            }
            let resp3 = protocol == Protocol::Resp3;
            evaluate(&asked.words, resp3, |key| span(asked.database * KEYS + key).value.clone()) == answer
        };
        let fitting = history.least(&slots, lower, fits);
        if asked.source.is_soft() {
            let softly = self.softly(asked, answer, seen, protocol, around);
            if softly.is_ok() || fitting.is_none() {
                return softly;
            }
        }
        let Some(version) = fitting else {
            return Err(format!(
                "no version from v{lower} (v{} seen by the client, v{} acknowledged before) to v{} gives this{}",
                seen.version,
                asked.floor,
                history.now,
                match asked.source {
                    Source::Upstream => "",
                    Source::L1 => ", from L1,",
                    Source::Left => ", from what a loss has left behind,",
                    Source::Soft | Source::SoftInPart => ", softly,",
                }
            ));
        };
        seen.version = version;
        for slot in &slots {
            seen.slots[*slot] = seen.slots[*slot].max(history.at(*slot, version).from);
        }
        // Users of one database have partitions of their own, and still see one history of each key.
        for (floors, database) in self.floors.iter_mut().zip(&self.databases) {
            if *database == asked.database {
                for slot in &slots {
                    floors[*slot] = floors[*slot].max(history.at(*slot, version).from);
                }
            }
        }
        Ok(())
    }

    /// An answer that shows keys which were softly invalidated: one version for each of them, not older than what the client has
    /// been told of this key, nor than what was acknowledged of it to anybody.
    fn softly(
        &mut self,
        asked: &Asked,
        answer: &[u8],
        seen: &mut Seen,
        protocol: Protocol,
        around: &Around<'_>,
    ) -> Result<(), String> {
        let history = &around.server.history;
        let keys = keys_of(&asked.words);
        let in_time = |key: &usize| around.links[asked.scope].soft_until(*key).is_some_and(|until| around.now < until);
        if !keys.iter().any(in_time) {
            return Err("a soft answer that nobody has asked for, or whose time is over".into());
        }
        let lower = |nth: usize| seen.slots[asked.database * KEYS + keys[nth]].max(asked.written[nth]);
        let spans: Vec<_> =
            (0..keys.len()).map(|nth| history.since(asked.database * KEYS + keys[nth], lower(nth))).collect();
        // What the upstream was asked for was alive when it answered.
        let alive = |span: &Span| {
            asked.source == Source::SoftInPart || span.deadline_ms.is_none_or(|end| around.server.now_ms <= end)
        };
        let mut chosen = vec![0; keys.len()];
        loop {
            let span_of = |key: usize| {
                let nth = keys.iter().position(|k| *k == key).unwrap_or(0);
                &spans[nth][chosen[nth]]
            };
            let value = |key: usize| span_of(key).value.clone();
            let resp3 = protocol == Protocol::Resp3;
            if keys.iter().all(|key| alive(span_of(*key))) && evaluate(&asked.words, resp3, value) == answer {
                // A sum does not tell which of its keys are there.
                let tells = asked.words[0] != b"EXISTS" || keys.len() == 1;
                for (nth, key) in keys.iter().enumerate().filter(|_| tells) {
                    let slot = asked.database * KEYS + key;
                    seen.slots[slot] = seen.slots[slot].max(spans[nth][chosen[nth]].from);
                }
                self.soft += 1;
                return Ok(());
            }
            // The next combination, as a number is counted up.
            let Some(nth) = (0..chosen.len()).find(|nth| chosen[*nth] + 1 < spans[*nth].len()) else {
                return Err("no value of its keys that they may still have gives this soft answer".into());
            };
            chosen[nth] += 1;
            chosen[..nth].fill(0);
        }
    }

    /// Looks at all that L1 holds for a scope: it must be true at one version that is not older than what anybody in
    /// the scope knows.
    pub(crate) fn audit(&self, scope: usize, held: &[(Words, Vec<u8>)], server: &Server) -> Result<(), String> {
        let base = self.databases[scope] * KEYS;
        let slots: Vec<usize> = held.iter().flat_map(|(words, _)| keys_of(words)).map(|key| base + key).collect();
        let lower = slots.iter().map(|slot| self.floors[scope][*slot]).max().unwrap_or(0);
        let fits = |version| {
            let span = |key: usize| server.history.at(base + key, version);
            let alive = |slot: &usize| span(*slot - base).deadline_ms.is_none_or(|d| server.now_ms <= d);
            let value = |key: usize| span(key).value.clone();
            slots.iter().all(alive) && held.iter().all(|(words, reply)| evaluate(words, true, value) == *reply)
        };
        match server.history.least(&slots, lower, fits) {
            Some(_) => Ok(()),
            None => {
                let shown: Vec<String> = held.iter().map(|(w, r)| format!("{} = {}", show_words(w), show(r))).collect();
                Err(format!("L1 of scope {scope} is no state from v{lower} on: {}", shown.join(", ")))
            }
        }
    }
}

fn fits_pttl(answer: &[u8], there: &bool, deadline_ms: Option<u64>, asked: &Asked, server: &Server) -> bool {
    let ms: i64 = number(&answer[1..answer.len() - 2]);
    match (there, deadline_ms) {
        (false, _) => ms == -2,
        (true, None) => ms == -1,
        (true, Some(deadline)) => {
            let bounds = deadline as i64 - server.now_ms as i64..=deadline as i64 - asked.asked_ms as i64;
            ms >= 0 && bounds.contains(&ms)
        }
    }
}
