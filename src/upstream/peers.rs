//! Other Larders of the same upstream: who else must have heard of an invalidation before it is answered.
//!
//! A push reaches another Larder when it reaches it. Where more is promised (`CACHE INVALIDATE TAGS`), the invalidator
//! asks all of them and waits:
//!
//! ```text
//!   SPUBLISH <prefix>peers "<database> <where to answer> <number>"   ──►  every Larder, this one too; the reply says how many
//!       each fences its links of that database: what was sent to them before is applied
//!   SPUBLISH <where to answer> "<number>"                            ◄──  each
//! ```
//!
//! A question can have a fourth word, which asks for more ([`About`]); an answer can have a second one, `yes`. One that joins
//! greets (`GREETING`), and others answer: so each knows whether there are any.
//!
//! By the same way Larders hear of the first dependency that is declared in a database (see [`super::watch`]), and of what changes
//! without a push: swapped databases, and what users may see.
//!
//! There is one such connection for each user who has links. The promise rests on this: **a link fills and answers
//! from L1 only while the connection of its user is subscribed**, so the server's own count of receivers is the count of
//! those who could hold anything old. When the connection is lost, the partitions are suspended until it is back.
//!
//! Shard channels, because they are not in the way: `PUBSUB CHANNELS` and its kin do not show them, and what
//! `PUBSUB SHARDCHANNELS` and `SHARDNUMSUB` say of them, clients of Larder are not told ([`is_own_channel`]).
//!
//! How it fails: who may not use the channel, or whose server has no shard channels (before 7.0), stands apart: it is
//! neither asked nor asks, and a warning says so. Who does not answer in time costs the invalidator a clear error.
//!
//! Bounds: [`ASKED_MAX`] questions of others at a time; the longest wait is `tags.peers_ms_max`.

mod about;

pub use self::about::About;

use super::link::{Job, Op, OpKind};
use super::link_io::LinkHandle;
use super::node::Node;
use super::raw::{self, Identity, RawConnection, RawError};
use super::watch::{Standing, Watches};
use crate::port::{Failure, Seq};
use bytes::{Bytes, BytesMut};
use larder_protocol::args::OwnedArgs;
use larder_protocol::cursor::Cursor;
use larder_protocol::scan::ReplyLimits;
use larder_protocol::shape::Protocol;
use smallvec::smallvec;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// Names and times.
#[derive(Clone, Debug)]
pub struct PeersSettings {
    /// The channel on which all are asked.
    pub channel: String,
    /// This process's own name: where it is answered, with the identity's number behind.
    pub name: String,
    /// Longest wait for all to answer (`tags.peers_ms_max`).
    pub answers_max: Duration,
    /// Longest wait for a connection (`link.connect_ms_max`).
    pub connect_max: Duration,
    /// A connection that sends nothing for so long, though asked, is lost (`link.dead_ms`).
    pub dead_after: Duration,
    /// Bounds of replies.
    pub replies: ReplyLimits,
}

/// The channel on which all are asked, where the index's names begin with `prefix` (`tags.prefix`).
pub fn channel_of(prefix: &str) -> String {
    format!("{prefix}peers")
}

/// True for that channel and for those on which Larders are answered.
pub fn is_own_channel(prefix: &str, name: &[u8]) -> bool {
    let rest = name.strip_prefix(channel_of(prefix).as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b":"))
}

/// The connection of one user.
pub struct Peers {
    node: Arc<Node>,
    identity: Identity,
    settings: PeersSettings,
    watches: Arc<Watches>,
    family: Weak<Mutex<HashMap<Identity, Arc<Peers>>>>,
    answers_to: String,
    state: Mutex<State>,
    outbox: mpsc::Sender<Outgoing>,
    /// A link has connected.
    wanted: Notify,
    /// The standing has changed.
    settled: Notify,
    closed: AtomicBool,
    /// The user may not use the channel.
    forbidden: AtomicBool,
    /// Another Larder has been heard of, ever.
    met: AtomicBool,
}

struct State {
    standing: Standing,
    /// A link of the user is there, which is to be told of dependencies: the standing counts for [`Watches::hearing`].
    counts: bool,
    links: Vec<Entry>,
    questions: HashMap<u64, Question>,
    last_question: u64,
    asked: usize,
}

struct Entry {
    database: u32,
    link: Weak<LinkHandle>,
    suspended: bool,
}

/// The connections of all users of one process.
pub(super) type Family = Arc<Mutex<HashMap<Identity, Arc<Peers>>>>;

/// A question of ours, and who has answered.
struct Question {
    about: About,
    answers: usize,
    yes: bool,
    asked: Option<usize>,
    done: Option<oneshot::Sender<bool>>,
}

/// What is to be sent on the connection.
enum Outgoing {
    /// We are there.
    Greeting,
    /// A question of ours.
    Ask { number: u64, database: u32, about: About },
    /// An answer to somebody's question.
    Answer { channel: Vec<u8>, text: Vec<u8> },
}

/// What was sent, and whose reply is still to come.
enum Sent {
    /// A question of ours; the reply tells how many hear it.
    Question(u64),
    /// An answer to somebody's question.
    Answer { channel: Vec<u8>, text: Vec<u8> },
    /// A sign of life.
    Ping,
}

/// What stands behind a question that asks for nothing; and its number, which no question has.
const GREETING: &str = "greeting";
const GREETING_NUMBER: u64 = 0;
/// How long a link waits to see its user joined before it goes on with its partition suspended.
const JOIN_WAIT_MAX: Duration = Duration::from_millis(500);
/// The first and the longest wait before a lost connection is made again.
const REJOIN_MIN: Duration = Duration::from_millis(20);
const REJOIN_MAX: Duration = Duration::from_secs(2);
/// Questions of others that are being answered; what is beyond them is not answered.
const ASKED_MAX: usize = 1024;
/// Messages that wait to be sent.
const OUTBOX_MAX: usize = 4096;

// === impl Peers ===

impl Peers {
    /// A connection for `identity`, made as soon as one of its links is there. Its task runs on the caller's runtime.
    pub fn start(
        node: Arc<Node>,
        identity: Identity,
        number: u64,
        settings: PeersSettings,
        watches: Arc<Watches>,
        family: &Family,
    ) -> (Arc<Self>, PeersTask) {
        let (outbox, inbox) = mpsc::channel(OUTBOX_MAX);
        let state = State {
            standing: Standing::Joining,
            counts: false,
            links: Vec::new(),
            questions: HashMap::new(),
            last_question: 0,
            asked: 0,
        };
        let answers_to = format!("{}:{}:{number}", settings.channel, settings.name);
        let peers = Arc::new(Self {
            node,
            identity,
            settings,
            watches,
            family: Arc::downgrade(family),
            answers_to,
            state: Mutex::new(state),
            outbox,
            wanted: Notify::new(),
            settled: Notify::new(),
            closed: AtomicBool::new(false),
            forbidden: AtomicBool::new(false),
            met: AtomicBool::new(false),
        });
        (peers.clone(), PeersTask { peers, inbox })
    }

    /// True while the connection is subscribed.
    pub fn is_joined(&self) -> bool {
        self.lock().standing == Standing::Joined
    }

    /// True if it is to be subscribed, and is not at present.
    pub fn is_joining(&self) -> bool {
        let state = self.lock();
        state.counts && state.standing == Standing::Joining
    }

    /// True if another Larder has been heard of since the start.
    pub fn has_met_others(&self) -> bool {
        self.met.load(Ordering::Acquire)
    }

    /// True if the user may not use the channel.
    pub fn is_forbidden(&self) -> bool {
        self.forbidden.load(Ordering::Acquire)
    }

    /// A link has connected and is about to serve and to fill its partition: waits for the connection to be subscribed or, if that
    /// takes long, suspends the partition until it is.
    pub async fn admit(&self, link: &Arc<LinkHandle>, database: u32) {
        {
            let mut state = self.lock();
            if !std::mem::replace(&mut state.counts, true) {
                self.watches.peers_changed(None, Some(state.standing));
            }
        }
        self.wanted.notify_one();
        let settled = async {
            loop {
                let change = self.settled.notified();
                if self.lock().standing != Standing::Joining {
                    return;
                }
                change.await;
            }
        };
        // Without it the link serves all the same, and keeps nothing.
        let _ = timeout(JOIN_WAIT_MAX, settled).await;
        let mut state = self.lock();
        let suspends = state.standing == Standing::Joining;
        let known = state.links.iter_mut().find(|entry| std::ptr::eq(entry.link.as_ptr(), Arc::as_ptr(link)));
        let suspended = match known {
            Some(entry) => {
                let suspended = entry.suspended;
                entry.suspended |= suspends;
                suspended
            }
            None => {
                state.links.push(Entry { database, link: Arc::downgrade(link), suspended: suspends });
                false
            }
        };
        if suspends && !suspended {
            link.partition().pause();
        }
    }

    /// Returns when every Larder that is subscribed has applied what the upstream had sent to it for `database` before, or
    /// when it is known what they say; whether one has said `yes`.
    ///
    /// # Errors
    /// Not all have answered in time.
    pub async fn ask(&self, database: u32, about: About) -> Result<bool, Failure> {
        self.ask_until(database, about, Instant::now() + self.settings.answers_max).await
    }

    /// As [`Peers::ask`], where the wait has begun before. Ends early if the connection does.
    ///
    /// # Errors
    /// Not all have answered in time.
    pub async fn ask_until(&self, database: u32, about: About, until: Instant) -> Result<bool, Failure> {
        let (done, answered) = oneshot::channel();
        let number = {
            let mut state = self.lock();
            state.last_question += 1;
            let number = state.last_question;
            let question = Question { about, answers: 0, yes: false, asked: None, done: Some(done) };
            state.questions.insert(number, question);
            number
        };
        let _forgotten = Forgets { peers: self, number };
        let asked = async {
            self.outbox.send(Outgoing::Ask { number, database, about }).await.ok()?;
            answered.await.ok()
        };
        if let Ok(Some(yes)) = timeout_at(until, asked).await {
            return Ok(yes);
        }
        let state = self.lock();
        let heard = state.questions.get(&number).map_or((0, None), |q| (q.answers, q.asked));
        let of = heard.1.map_or("those of the upstream".to_owned(), |asked| asked.to_string());
        let (done, ms) = (about.done(), self.settings.answers_max.as_millis());
        let line = format!("PEERTIMEOUT {} of {of} Larders have confirmed within {ms} ms; {done}", heard.0);
        Err(Failure::Refused(line.into()))
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wanted.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    async fn connect(&self) -> Result<RawConnection, RawError> {
        let settings = &self.settings;
        let connecting = async {
            let endpoint = &self.node.endpoint;
            let mut connection = RawConnection::connect(endpoint, settings.connect_max, settings.replies).await?;
            raw::set_up(&mut connection, &self.identity, Protocol::Resp3, 0).await?;
            // Who could hear but not answer would be waited for in vain. (Nobody hears this.)
            raw::accepted(connection.call(["SPUBLISH", self.answers_to.as_str(), ""]).await?)?;
            // The one on which others ask comes last: what is heard from then on is heard by `serve`.
            for channel in [&self.answers_to, &settings.channel] {
                connection.put_request(OwnedArgs::new(["SSUBSCRIBE", channel.as_str()]).args().bytes());
                let mut frame = BytesMut::new();
                let confirmed = raw::accepted(connection.next_frame(&mut frame).await?)?;
                if confirmed.first() != Some(&b'>') {
                    return Err(RawError::Refused(Bytes::from_static(b"ERR not a confirmation of SSUBSCRIBE")));
                }
            }
            Ok(connection)
        };
        let limit = settings.connect_max;
        timeout(limit, connecting).await.unwrap_or(Err(RawError::ConnectTimeout(limit.as_millis())))
    }

    /// From now on the links may fill.
    fn join(&self) {
        let mut state = self.lock();
        self.come_to(&mut state, Standing::Joined);
        self.resume(&mut state);
    }

    /// Larder does what it can without: nothing is suspended.
    fn stand_apart(&self, line: &Bytes) {
        tracing::warn!(
            user = %String::from_utf8_lossy(self.identity.name()),
            cause = %String::from_utf8_lossy(line),
            "no shard channel: other Larders do not wait for this one when they invalidate tags"
        );
        self.forbidden.store(line.starts_with(b"NOPERM"), Ordering::Release);
        let mut state = self.lock();
        self.come_to(&mut state, Standing::Apart);
        self.resume(&mut state);
    }

    /// From now on nothing may be answered from what the links have filled.
    fn part(&self) {
        let mut state = self.lock();
        self.come_to(&mut state, Standing::Joining);
        state.questions.clear();
        state.links.retain(|entry| entry.link.strong_count() > 0);
        for entry in state.links.iter_mut().filter(|entry| !entry.suspended) {
            if let Some(link) = entry.link.upgrade() {
                link.partition().pause();
                entry.suspended = true;
            }
        }
    }

    fn come_to(&self, state: &mut State, standing: Standing) {
        let from = std::mem::replace(&mut state.standing, standing);
        if state.counts {
            self.watches.peers_changed(Some(from), Some(standing));
        }
    }

    /// The user is refused, or its links have ended: nobody waits for it to be told of anything.
    fn counts_no_more(&self) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.counts, false) {
            self.watches.peers_changed(Some(state.standing), None);
        }
    }

    fn resume(&self, state: &mut State) {
        for entry in state.links.iter_mut().filter(|entry| entry.suspended) {
            entry.suspended = false;
            if let Some(link) = entry.link.upgrade() {
                let ops = smallvec![Op { seq: Seq(0), bytes: 0..0, kind: OpKind::FenceAndResume }];
                link.submit_fence(Job { port: Arc::default(), bytes: Bytes::new(), ops });
            }
        }
        self.settled.notify_waiters();
    }

    /// Somebody asks: answers when the links of that database have caught up.
    fn answer(self: &Arc<Self>, question: &[u8]) {
        let mut words = question.split(|b| *b == b' ');
        let (Some(database), Some(channel), Some(number)) = (words.next(), words.next(), words.next()) else { return };
        let word = words.next();
        self.met.fetch_or(!self.is_of_this_process(channel), Ordering::AcqRel);
        if word == Some(GREETING.as_bytes()) {
            return self.greet(channel);
        }
        let about = About::parse(word);
        let database = std::str::from_utf8(database).ok().and_then(|text| text.parse::<u32>().ok());
        {
            let mut state = self.lock();
            if state.asked >= ASKED_MAX {
                return;
            }
            state.asked += 1;
        }
        // Who has changed what no push tells of has seen to it for this process.
        let is_seen_to = about.is_unpushed() && self.is_of_this_process(channel);
        let watches = match (about, database) {
            (About::Swap, _) if !is_seen_to => self.watches.all(),
            (About::Swap | About::Rights, _) | (_, None) => Vec::new(),
            (_, Some(database)) => Vec::from_iter(self.watches.find(database)),
        };
        let links = match about.is_unpushed() {
            true if is_seen_to => Vec::new(),
            true => self.links_of_all_users(),
            false => self.links(|of| Some(of) == database),
        };
        let (peers, channel, mut text) = (self.clone(), channel.to_vec(), number.to_vec());
        tokio::spawn(async move {
            let answered = about.answer(&links, &watches).await;
            peers.lock().asked -= 1;
            // A link that does not catch up must not be said to have; an outbox that has gone has no use for it.
            if let Ok(yes) = answered {
                text.extend_from_slice(if yes { b" yes" } else { b"" });
                let _ = peers.outbox.send(Outgoing::Answer { channel, text }).await;
            }
        });
    }

    /// Somebody has joined, who is to know that others are there.
    fn greet(&self, channel: &[u8]) {
        if !self.is_of_this_process(channel) {
            let answer = Outgoing::Answer { channel: channel.to_vec(), text: GREETING_NUMBER.to_string().into_bytes() };
            // Where there is no room for it, questions are under way that tell it as well.
            let _: Result<(), _> = self.outbox.try_send(answer);
        }
    }

    fn links(&self, of: impl Fn(u32) -> bool) -> Vec<Arc<LinkHandle>> {
        let state = self.lock();
        state.links.iter().filter(|entry| of(entry.database)).filter_map(|entry| entry.link.upgrade()).collect()
    }

    /// The user has lost the right to answer since it was asked: another user's connection does.
    fn answer_by_another(&self, answer: Outgoing) {
        let Some(family) = self.family.upgrade() else { return };
        let family = family.lock().unwrap_or_else(PoisonError::into_inner);
        let other = family.values().find(|peers| !std::ptr::eq(&***peers, self) && peers.is_joined());
        if let Some(other) = other {
            // Who asks is told if there is no room for it.
            let _: Result<(), _> = other.outbox.try_send(answer);
        }
    }

    /// Also of users who may not use the channel, and of those whose subscription the server has just ended because of what
    /// is told here.
    fn links_of_all_users(&self) -> Vec<Arc<LinkHandle>> {
        let Some(family) = self.family.upgrade() else { return self.links(|_| true) };
        let all: Vec<Arc<Self>> = family.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.iter().flat_map(|peers| peers.links(|_| true)).collect()
    }

    fn is_of_this_process(&self, answers_to: &[u8]) -> bool {
        let own = format!("{}:{}:", self.settings.channel, self.settings.name);
        answers_to.starts_with(own.as_bytes())
    }

    fn answered(&self, answer: &[u8]) {
        let (number, yes) = answer.strip_suffix(b" yes").map_or((answer, false), |number| (number, true));
        let number = std::str::from_utf8(number).ok().and_then(|text| text.parse::<u64>().ok());
        if number == Some(GREETING_NUMBER) {
            return self.met.store(true, Ordering::Release);
        }
        let mut state = self.lock();
        if let Some(question) = number.and_then(|number| state.questions.get_mut(&number)) {
            question.answers += 1;
            question.yes |= yes;
            question.settle();
        }
    }

    fn asked(&self, number: u64, receivers: usize) {
        if let Some(question) = self.lock().questions.get_mut(&number) {
            question.asked = Some(receivers);
            question.settle();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that nobody waits for any more is forgotten.
struct Forgets<'p> {
    peers: &'p Peers,
    number: u64,
}

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        self.peers.lock().questions.remove(&self.number);
    }
}

// === impl Question ===

impl Question {
    fn settle(&mut self) {
        let is_known = self.about == About::Watching && self.yes;
        if (is_known || self.asked.is_some_and(|asked| self.answers >= asked))
            && let Some(done) = self.done.take()
        {
            // Who has asked may have gone.
            let _ = done.send(self.yes);
        }
    }
}

/// True if a refusal says that there is no channel for this user, and not that there is no room at present.
fn is_final(line: &[u8]) -> bool {
    line.starts_with(b"NOPERM") || (line.starts_with(b"ERR") && !line.starts_with(b"ERR max number of clients"))
}

/// The task of a [`Peers`].
pub struct PeersTask {
    peers: Arc<Peers>,
    inbox: mpsc::Receiver<Outgoing>,
}

// === impl PeersTask ===

impl PeersTask {
    /// Keeps the connection until it is closed.
    pub async fn run(mut self) {
        self.keep().await;
        self.peers.counts_no_more();
    }

    async fn keep(&mut self) {
        let mut wait = None;
        while !self.peers.is_closed() {
            self.rest(wait).await;
            if self.peers.is_closed() {
                return;
            }
            match self.peers.connect().await {
                Ok(mut connection) => {
                    self.peers.join();
                    let end = self.serve(&mut connection).await;
                    self.peers.part();
                    // Only then is it closed: whom the server counts no more has nothing left to tell.
                    drop(connection);
                    wait = match end {
                        RawError::Refused(line) => {
                            self.peers.stand_apart(&line);
                            None
                        }
                        end => {
                            tracing::debug!(cause = %end, "the connection to other Larders was lost");
                            Some(REJOIN_MIN)
                        }
                    };
                }
                Err(RawError::Refused(line)) if is_final(&line) => {
                    self.peers.stand_apart(&line);
                    wait = None;
                }
                // Who is not known to the upstream has no link either, or none that is made anew.
                Err(RawError::Refused(line)) if !line.starts_with(b"ERR") => {
                    self.peers.counts_no_more();
                    wait = None;
                }
                Err(_) => wait = Some(wait.map_or(REJOIN_MIN, |wait: Duration| (wait * 2).min(REJOIN_MAX))),
            }
        }
    }

    /// Waits for a link to be there, or for the next attempt.
    async fn rest(&self, wait: Option<Duration>) {
        let pause = async {
            match wait {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pause => {}
            () = self.peers.wanted.notified() => {}
        }
    }

    async fn serve(&mut self, connection: &mut RawConnection) -> RawError {
        let silence_max = self.peers.settings.dead_after;
        let mut frame = BytesMut::new();
        let mut owed = VecDeque::from([self.send(connection, Outgoing::Greeting)]);
        let (mut heard, mut asks_at) = (Instant::now(), Instant::now() + silence_max / 3);
        while !self.peers.is_closed() {
            tokio::select! {
                came = connection.next_frame(&mut frame) => {
                    heard = Instant::now();
                    match came {
                        Ok(frame) => {
                            if let Err(error) = self.take(&frame, &mut owed) {
                                return error;
                            }
                        }
                        Err(error) => return error,
                    }
                }
                Some(outgoing) = self.inbox.recv() => owed.push_back(self.send(connection, outgoing)),
                // At its time, however much is sent meanwhile: who asks must not keep a silent connection alive.
                () = sleep_until(asks_at) => {
                    if heard.elapsed() >= silence_max {
                        return RawError::Closed;
                    }
                    asks_at = Instant::now() + silence_max / 3;
                    connection.put_request(b"*1\r\n$4\r\nPING\r\n");
                    owed.push_back(Sent::Ping);
                }
                () = self.peers.wanted.notified() => {}
            }
        }
        RawError::Closed
    }

    fn send(&self, connection: &mut RawConnection, outgoing: Outgoing) -> Sent {
        match outgoing {
            Outgoing::Greeting => {
                let greeting = format!("0 {} {GREETING_NUMBER} {GREETING}", self.peers.answers_to);
                let words = ["SPUBLISH", &self.peers.settings.channel, &greeting];
                connection.put_request(OwnedArgs::new(words).args().bytes());
                Sent::Question(GREETING_NUMBER)
            }
            Outgoing::Ask { number, database, about } => {
                let question = format!("{database} {} {number}{}", self.peers.answers_to, about.word());
                let words = ["SPUBLISH", &self.peers.settings.channel, &question];
                connection.put_request(OwnedArgs::new(words).args().bytes());
                Sent::Question(number)
            }
            Outgoing::Answer { channel, text } => {
                connection.put_request(OwnedArgs::new([b"SPUBLISH", &channel[..], &text]).args().bytes());
                Sent::Answer { channel, text }
            }
        }
    }

    /// Takes a reply or a message.
    ///
    /// # Errors
    /// The user may not speak any more: then it must not hear either, or who asks would wait for it in vain.
    fn take(&self, frame: &Bytes, owed: &mut VecDeque<Sent>) -> Result<(), RawError> {
        let mut cursor = Cursor::new(frame);
        if frame.first() != Some(&b'>') {
            match (owed.pop_front(), raw::accepted(frame.clone())) {
                (Some(Sent::Question(number)), Ok(_)) => {
                    let receivers = cursor.next_integer().and_then(|n| usize::try_from(n).ok());
                    self.peers.asked(number, receivers.unwrap_or(0));
                }
                (Some(sent), Err(RawError::Refused(line))) if line.starts_with(b"NOPERM") => {
                    if let Sent::Answer { channel, text } = sent {
                        self.peers.answer_by_another(Outgoing::Answer { channel, text });
                    }
                    return Err(RawError::Refused(line));
                }
                _ => {}
            }
            return Ok(());
        }
        cursor.next_count();
        let (Some(word), Some(channel), Some(text)) = (cursor.next_bytes(), cursor.next_bytes(), cursor.next_bytes())
        else {
            return Ok(());
        };
        match word {
            b"smessage" if channel == self.peers.settings.channel.as_bytes() => self.peers.answer(text),
            b"smessage" => self.peers.answered(text),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::upstream::breaker::BreakerSettings;
    use crate::upstream::raw::Endpoint;
    use larder_protocol::table::Table;

    const ANSWERS_MAX: Duration = Duration::from_millis(40);

    /// A connection that is never made: what is to be sent stays in the box.
    fn peers() -> (Arc<Peers>, PeersTask) {
        let breaker = BreakerSettings::default().checked().unwrap();
        let endpoint = Endpoint { host: "127.0.0.1".to_owned(), port: 1 };
        let node = Arc::new(Node::new(endpoint, Clock::start(), breaker, Arc::new(Table::builtin()), 1));
        let settings = PeersSettings {
            channel: "larder:peers".to_owned(),
            name: "me".to_owned(),
            answers_max: ANSWERS_MAX,
            connect_max: ANSWERS_MAX,
            dead_after: ANSWERS_MAX,
            replies: ReplyLimits::default(),
        };
        Peers::start(
            node,
            Identity::Anonymous,
            7,
            settings,
            Arc::new(Watches::new("larder:".into())),
            &Family::default(),
        )
    }

    fn refused(outcome: Result<bool, Failure>) -> String {
        outcome.expect_err("nobody has answered").to_string()
    }

    #[tokio::test]
    async fn questions_of_others_beyond_the_bound_are_not_answered() {
        let (peers, mut task) = peers();
        peers.lock().asked = ASKED_MAX - 1;
        peers.answer(b"0 larder:peers:other 5");
        assert_eq!(peers.lock().asked, ASKED_MAX, "the last place");
        peers.answer(b"0 larder:peers:other 6");
        assert_eq!(peers.lock().asked, ASKED_MAX, "there is no place: nothing has begun");
        let Some(Outgoing::Answer { channel, text }) = task.inbox.recv().await else { panic!("no answer") };
        assert_eq!((&channel[..], &text[..]), (&b"larder:peers:other"[..], &b"5"[..]));
        assert_eq!(peers.lock().asked, ASKED_MAX - 1, "its place is free again");
        assert!(task.inbox.try_recv().is_err(), "the other question has no answer");
    }

    #[tokio::test]
    async fn who_sends_while_the_box_is_full_waits_and_is_told_when_it_takes_too_long() {
        let (peers, mut task) = peers();
        let message = || Outgoing::Answer { channel: b"c".to_vec(), text: b"1".to_vec() };
        for _ in 0..OUTBOX_MAX {
            assert!(peers.outbox.try_send(message()).is_ok());
        }
        assert!(peers.outbox.try_send(message()).is_err());
        let told = refused(peers.ask(0, About::Invalidation).await);
        let wanted =
            "PEERTIMEOUT 0 of those of the upstream Larders have confirmed within 40 ms; the keys are gone upstream";
        assert_eq!(told, wanted);
        assert!(peers.lock().questions.is_empty(), "who waits no more is forgotten");
        // A place is free: the question leaves, and is answered.
        task.inbox.recv().await;
        let asking = tokio::spawn({
            let peers = peers.clone();
            async move { peers.ask(0, About::Watching).await }
        });
        let asked = loop {
            match task.inbox.recv().await {
                Some(Outgoing::Ask { number, about: About::Watching, .. }) => break number,
                Some(_) => {}
                None => panic!("the box is closed"),
            }
        };
        peers.asked(asked, 2);
        peers.answered(format!("{asked} yes").as_bytes());
        assert_eq!(asking.await.unwrap(), Ok(true), "one yes is enough");
    }

    #[tokio::test]
    async fn who_asks_does_not_keep_a_silent_connection_alive() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let endpoint = Endpoint { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let limit = Duration::from_secs(2);
        let mut connection = RawConnection::connect(&endpoint, limit, ReplyLimits::default()).await.unwrap();
        let _silent = listener.accept().await.unwrap();
        let (peers, mut task) = peers();
        let asks = async {
            loop {
                let message = Outgoing::Answer { channel: b"c".to_vec(), text: b"1".to_vec() };
                assert!(peers.outbox.send(message).await.is_ok());
                sleep(ANSWERS_MAX / 10).await;
            }
        };
        let serves = async {
            tokio::select! {
                end = task.serve(&mut connection) => end,
                () = asks => panic!("it asks for ever"),
            }
        };
        let end = timeout(limit, serves).await.expect("the silence is noticed");
        assert!(matches!(end, RawError::Closed), "{end}");
    }

    #[tokio::test]
    async fn all_are_waited_for_and_a_yes_is_passed_on() {
        let (peers, mut task) = peers();
        for (about, answers, outcome) in [
            (About::Invalidation, &["", ""][..], Ok(false)),
            (About::Dependency, &["", " yes"], Ok(true)),
            (About::Watching, &["", ""], Ok(false)),
            (About::Watching, &[""], Err(())),
            (About::Dependency, &[" yes"], Err(())),
        ] {
            let asking = tokio::spawn({
                let peers = peers.clone();
                async move { peers.ask(3, about).await }
            });
            let Some(Outgoing::Ask { number, database: 3, .. }) = task.inbox.recv().await else {
                panic!("no question")
            };
            for answer in answers {
                peers.answered(format!("{number}{answer}").as_bytes());
            }
            peers.asked(number, 2);
            assert_eq!(asking.await.unwrap().map_err(drop), outcome, "{about:?} {answers:?}");
        }
    }
}
