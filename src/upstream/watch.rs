//! Whether keys of a database depend on others, and who waits until what follows from a change has happened.
//!
//! A handle, shared by all links of a database: [`crate::cache`] does the work behind it. While no key of the database
//! depends on another, it is *off*, and costs a client one load for each pass over its requests. While it is *on*, the
//! reply to a write waits until what depends on the keys written is gone ([`Watch::submit`]), as a reply waits for a fence.
//!
//! How a Larder hears of a first dependency, which may be declared through another one ([`Hearing`]):
//!
//! * *It is told.* Who declares a dependency asks all Larders that are subscribed to the channel of [`super::peers`], after it has
//!   written the index, and is answered when their watches stand. A Larder that is not subscribed at that time looks at
//!   the index later than that: a link when it is set up, behind its admission to the channel; each watch when the
//!   subscription is lost, and again when it is there. So each declaration is either seen by a look or told of.
//! * *It is unsure* while it is not subscribed: each watch is on, and each reply to a write waits for a look at the index.
//! * *Its links are told by the server* where there is no channel: before Redis 7, for users who may not use it, with
//!   `tags.peers_ms_max = 0`. A link then reads the name under which the index keeps all keys that others depend on, so that
//!   it is told when that changes ([`Watch::hear`]); what makes the server forget it (`FLUSHALL`) is a doubt as above.
//!
//! Looks are made on connections without tracking: as long as nothing depends on anything, the server tracks no key of
//! Larder's own, but for the last case.
//!
//! Invariants: nobody waits at a watch that is off; whoever waits is answered, if need be with a failure. A watch is turned off
//! only if the index was seen to be empty after [`Watch::heard`] was read, while there was somebody to tell of what comes.
//! How it fails: a subscription that the server has ended, which this process has not noticed yet, is not asked. A write whose
//! reply overtakes the news of that loss is answered without waiting; what depends on its keys goes a moment later.
//! Bounds: a client waits with its requests in flight, of which there are `limits.client_in_flight_max`; [`ORDERS_MAX`]
//! declarations wait at a time, more are refused.

use crate::port::{Delivery, Failure, Port, Seq};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// The watch of one database.
#[derive(Debug)]
pub struct Watch {
    /// The database.
    pub database: u32,
    /// The key that holds the names of all keys that others depend on.
    pub index: Vec<u8>,
    is_on: AtomicBool,
    state: Mutex<State>,
    /// Somebody waits, or the watch has been turned on.
    stirred: Notify,
    all: Arc<Common>,
}

/// The watches of all databases that have scopes, or had.
#[derive(Debug)]
pub struct Watches {
    prefix: Arc<str>,
    each: Mutex<HashMap<u32, Arc<Watch>>>,
    common: Arc<Common>,
}

/// What they share.
#[derive(Debug, Default)]
struct Common {
    /// How many are on.
    on: AtomicUsize,
    /// One has been turned on: for who starts their tasks.
    wanted: Notify,
    peers: Mutex<PeerCounts>,
    /// How this process hears has changed.
    changed: Notify,
}

/// Connections to other Larders, one for each user.
#[derive(Debug, Default)]
struct PeerCounts {
    joining: usize,
    joined: usize,
}

/// Whether a connection to other Larders is subscribed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not yet, or not any more.
    Joining,
    /// It is.
    Joined,
    /// It cannot be.
    Apart,
}

/// How this process hears of a first dependency of a database that is declared through another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// It is subscribed, and told.
    Told,
    /// It is not subscribed yet, or not any more.
    Unsure,
    /// By its links, which the server tells.
    Tracked,
}

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    waiting: Vec<Waiting>,
    orders: Vec<Order>,
    /// How often the index was heard to have changed.
    heard: u64,
    /// How often it has ceased to hear of every change.
    lapses: u64,
    /// What it watches is no longer what it should watch.
    begins_anew: bool,
}

/// How far a watch has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Nothing depends on anything, as far as is known.
    #[default]
    Off,
    /// It is to begin.
    Wanted(Before),
    /// A task is at it: it does not know yet whether anything depends on anything, or may have missed something.
    Beginning,
    /// Every change is heard.
    Watching,
}

/// What may have happened before a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Something was declared; the index was empty before, and whoever has written to it watches: nothing was missed.
    Nothing,
    /// The same, if something was declared at all: the server has forgotten that it was to tell of it.
    Forgotten,
    /// The index was there: keys may have changed, unless another Larder has watched all the time.
    Unknown,
    /// Nobody can have watched.
    Unwatched,
}

/// Most declarations that wait.
pub const ORDERS_MAX: usize = 1024;

/// A request that is to be sent on the watch's own connection.
#[derive(Debug)]
pub struct Order {
    /// The request.
    pub request: Bytes,
    /// Who waits for its reply.
    pub done: oneshot::Sender<Bytes>,
}

/// Who waits.
#[derive(Debug)]
pub struct Waiting {
    port: Arc<Port>,
    seq: Seq,
    since: Instant,
}

// === impl Watch ===

impl Watch {
    fn new(database: u32, prefix: &str, all: Arc<Common>) -> Self {
        Self {
            database,
            index: format!("{prefix}sources").into_bytes(),
            is_on: AtomicBool::new(false),
            state: Mutex::default(),
            stirred: Notify::new(),
            all,
        }
    }

    /// True while keys may depend on others: replies to writes are to wait.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// How far it has come.
    pub fn stage(&self) -> Stage {
        self.lock().stage
    }

    /// A link was told that a key has changed: if it is the index, somebody has declared a dependency.
    #[inline]
    pub fn hear(&self, key: &[u8]) {
        if key == self.index {
            self.turn_on(Before::Nothing);
        }
    }

    /// A link was told that all keys may have changed: the server has forgotten what it was to tell of.
    pub fn hear_all(&self) {
        if self.hearing() == Hearing::Tracked {
            self.turn_on(Before::Forgotten);
        }
    }

    /// How this process hears of a first dependency.
    pub fn hearing(&self) -> Hearing {
        self.all.hearing()
    }

    /// Turns it on, if it is off: somebody has declared a dependency, or may have. Its task looks first.
    pub fn turn_on(&self, before: Before) {
        self.turn_on_within(&mut self.lock(), before);
    }

    fn turn_on_within(&self, state: &mut State, before: Before) {
        state.heard += 1;
        if state.stage == Stage::Off {
            state.stage = Stage::Wanted(before);
            self.is_on.store(true, Ordering::Release);
            self.all.on.fetch_add(1, Ordering::AcqRel);
            self.all.wanted.notify_one();
        }
    }

    /// Takes the task of a watch that is wanted; what may have been missed.
    pub fn take_on(&self) -> Option<Before> {
        let mut state = self.lock();
        match state.stage {
            Stage::Wanted(before) => {
                state.stage = Stage::Beginning;
                Some(before)
            }
            _ => None,
        }
    }

    /// From now on every change is heard; or not any more.
    pub fn comes_to(&self, stage: Stage) {
        let mut state = self.lock();
        if state.stage != Stage::Off {
            state.lapses += u64::from(state.stage == Stage::Watching && stage != Stage::Watching);
            state.stage = stage;
        }
    }

    /// How often it has ceased to hear of every change; `None` while it does not hear of every change.
    pub fn lapses(&self) -> Option<u64> {
        let state = self.lock();
        (state.stage == Stage::Watching).then_some(state.lapses)
    }

    /// The database has become another one (`SWAPDB`): what is watched is to be looked up anew.
    pub fn begin_anew(&self) {
        let mut state = self.lock();
        if state.stage == Stage::Off {
            drop(state);
            return self.turn_on(Before::Unwatched);
        }
        state.begins_anew = true;
        drop(state);
        self.stirred.notify_one();
    }

    /// True if it is to begin anew; once for each time.
    pub fn takes_anew(&self) -> bool {
        std::mem::take(&mut self.lock().begins_anew)
    }

    /// Sends a request on the watch's own connection, for which it is turned on if need be; the reply.
    ///
    /// # Errors
    /// Too many wait already, or the connection was lost.
    pub async fn call(&self, request: Bytes, before: Before) -> Result<Bytes, Failure> {
        let (done, reply) = oneshot::channel();
        {
            let mut state = self.lock();
            if state.orders.len() >= ORDERS_MAX {
                return Err(Failure::Full);
            }
            self.turn_on_within(&mut state, before);
            state.orders.push(Order { request, done });
        }
        self.stirred.notify_one();
        reply.await.map_err(|_| Failure::WriteLost)
    }

    /// All requests that are to be sent.
    pub fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut self.lock().orders)
    }

    /// True if somebody wants to declare something.
    pub fn has_orders(&self) -> bool {
        !self.lock().orders.is_empty()
    }

    /// A number that grows when the index is heard to have changed.
    pub fn heard(&self) -> u64 {
        self.lock().heard
    }

    /// Turns it off, unless the index was heard to have changed since [`Watch::heard`] said `heard`. Who waits is answered:
    /// there is nothing to wait for.
    pub fn turn_off(&self, heard: u64) -> bool {
        let mut state = self.lock();
        if state.heard != heard || !state.orders.is_empty() || state.begins_anew {
            return false;
        }
        if state.stage != Stage::Off {
            self.all.on.fetch_sub(1, Ordering::AcqRel);
        }
        state.stage = Stage::Off;
        self.is_on.store(false, Ordering::Release);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waiting::done);
        true
    }

    /// Leaves [`Delivery::Fenced`] in the port when all that follows from what has happened upstream until now is done, or
    /// a failure.
    pub fn submit(&self, port: &Arc<Port>, seq: Seq) {
        let waiting = Waiting { port: port.clone(), seq, since: Instant::now() };
        let mut state = self.lock();
        if state.stage == Stage::Off {
            drop(state);
            return waiting.done();
        }
        state.waiting.push(waiting);
        drop(state);
        self.stirred.notify_one();
    }

    /// All that wait now.
    pub fn take_waiting(&self) -> Vec<Waiting> {
        std::mem::take(&mut self.lock().waiting)
    }

    /// Puts back who was taken to be answered, and could not be.
    pub fn give_back(&self, waiting: Vec<Waiting>) {
        let mut state = self.lock();
        state.waiting.splice(..0, waiting);
        if state.stage == Stage::Off {
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_iter().for_each(Waiting::done);
        }
    }

    /// True if somebody waits.
    pub fn is_waited_for(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Tells those who have waited for longer than `wait_max` that it takes too long.
    pub fn time_out(&self, wait_max: Duration) {
        let mut state = self.lock();
        let (late, waiting) =
            std::mem::take(&mut state.waiting).into_iter().partition(|w| w.since.elapsed() >= wait_max);
        state.waiting = waiting;
        drop(state);
        let late: Vec<Waiting> = late;
        late.into_iter().for_each(|waiting| waiting.fail(wait_max));
    }

    /// Returns when somebody begins to wait, or there is another reason to look.
    pub async fn stirred(&self) {
        self.stirred.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Watches ===

impl Watches {
    /// Those of databases whose index is kept under `prefix`.
    pub fn new(prefix: Arc<str>) -> Self {
        Self { prefix, each: Mutex::default(), common: Arc::default() }
    }

    /// That of a database; it is made if it is not there.
    pub fn of(&self, database: u32) -> Arc<Watch> {
        let fresh = || Arc::new(Watch::new(database, &self.prefix, self.common.clone()));
        self.lock().entry(database).or_insert_with(fresh).clone()
    }

    /// That of a database, if it is there.
    pub fn find(&self, database: u32) -> Option<Arc<Watch>> {
        self.lock().get(&database).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Watch>> {
        self.lock().values().cloned().collect()
    }

    /// True if a watch of any database is on.
    #[inline]
    pub fn any(&self) -> bool {
        self.common.on.load(Ordering::Acquire) > 0
    }

    /// Returns when a watch has been turned on.
    pub async fn wanted(&self) {
        self.common.wanted.notified().await;
    }

    /// How this process hears of a first dependency.
    pub fn hearing(&self) -> Hearing {
        self.common.hearing()
    }

    /// Returns when this process knows how it hears.
    pub async fn settled(&self) {
        loop {
            let change = self.common.changed.notified();
            if self.hearing() != Hearing::Unsure {
                return;
            }
            change.await;
        }
    }

    /// A connection to other Larders has come to stand otherwise, has begun or ended. Who was told, and is not any more, may have
    /// missed something; who is from now on looks once more.
    pub fn peers_changed(&self, from: Option<Standing>, to: Option<Standing>) {
        let (before, after) = {
            let mut peers = self.common.peers();
            let before = peers.hearing();
            peers.joining -= usize::from(from == Some(Standing::Joining));
            peers.joined -= usize::from(from == Some(Standing::Joined));
            peers.joining += usize::from(to == Some(Standing::Joining));
            peers.joined += usize::from(to == Some(Standing::Joined));
            (before, peers.hearing())
        };
        if before == after {
            return;
        }
        self.common.changed.notify_waiters();
        for watch in self.all() {
            if before == Hearing::Told {
                watch.turn_on(Before::Unknown);
            }
            watch.stirred.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Watch>>> {
        self.each.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Common ===

impl Common {
    fn hearing(&self) -> Hearing {
        self.peers().hearing()
    }

    fn peers(&self) -> MutexGuard<'_, PeerCounts> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl PeerCounts ===

impl PeerCounts {
    fn hearing(&self) -> Hearing {
        match self {
            Self { joined: 1.., .. } => Hearing::Told,
            Self { joining: 1.., .. } => Hearing::Unsure,
            _ => Hearing::Tracked,
        }
    }
}

// === impl Waiting ===

impl Waiting {
    /// It has happened.
    pub fn done(self) {
        self.tell(Delivery::Fenced(self.seq));
    }

    /// It has not, within `wait_max`: the reply is not to be shown as if it had.
    pub fn fail(self, wait_max: Duration) {
        self.tell(Delivery::Failed(self.seq, Failure::WriteTimeout(wait_max.as_millis() as u64)));
    }

    fn tell(&self, delivery: Delivery) {
        if self.port.leave(delivery) {
            self.port.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Taken;

    fn watch() -> Watch {
        Watch::new(0, "larder:", Arc::default())
    }

    fn answers(port: &Port) -> Vec<String> {
        let mut taken = Taken::default();
        port.take(&mut taken);
        taken.deliveries.iter().map(|delivery| format!("{delivery:?}")).collect()
    }

    #[test]
    fn only_the_index_turns_it_on() {
        let watch = watch();
        watch.hear(b"larder:other");
        assert!(!watch.is_on() && watch.take_on().is_none());
        watch.hear(b"larder:sources");
        watch.turn_on(Before::Unknown);
        assert!(watch.is_on());
        assert_eq!(watch.take_on(), Some(Before::Nothing), "the first reason counts");
        assert_eq!((watch.take_on(), watch.stage()), (None, Stage::Beginning));
    }

    #[tokio::test]
    async fn declarations_beyond_the_bound_are_refused() {
        let watch = Arc::new(watch());
        let declare = |watch: &Arc<Watch>| {
            let watch = watch.clone();
            tokio::spawn(async move { watch.call(Bytes::from_static(b"x"), Before::Nothing).await })
        };
        let waiting: Vec<_> = (0..ORDERS_MAX).map(|_| declare(&watch)).collect();
        tokio::task::yield_now().await;
        while watch.lock().orders.len() < ORDERS_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(declare(&watch).await.unwrap(), Err(Failure::Full));
        assert!(watch.is_on(), "who wants to declare something turns it on");
        assert!(!watch.turn_off(watch.heard()), "somebody wants to declare something");
        let mut orders = watch.take_orders();
        let answered = orders.swap_remove(0);
        answered.done.send(Bytes::from_static(b":1")).unwrap();
        drop(orders);
        let mut told = Vec::new();
        for one in waiting {
            told.push(one.await.unwrap());
        }
        assert_eq!(told.iter().filter(|told| **told == Ok(Bytes::from_static(b":1"))).count(), 1);
        assert_eq!(told.iter().filter(|told| **told == Err(Failure::WriteLost)).count(), ORDERS_MAX - 1);
    }

    #[test]
    fn who_is_not_told_any_more_looks() {
        let watches = Watches::new("larder:".into());
        let watch = watches.of(3);
        assert_eq!(watches.hearing(), Hearing::Tracked, "there is no channel");
        watch.hear_all();
        assert!(watch.is_on(), "the server has forgotten");
        assert_eq!(watch.take_on(), Some(Before::Forgotten));
        assert!(watch.turn_off(watch.heard()));
        let (joining, joined) = (Some(Standing::Joining), Some(Standing::Joined));
        watches.peers_changed(None, joining);
        assert_eq!((watches.hearing(), watch.is_on()), (Hearing::Unsure, false), "its links are still told");
        watches.peers_changed(joining, joined);
        watch.hear_all();
        assert_eq!((watches.hearing(), watch.is_on()), (Hearing::Told, false));
        // A second user's connection comes and goes: there is still one.
        watches.peers_changed(None, joining);
        watches.peers_changed(joining, Some(Standing::Apart));
        watches.peers_changed(Some(Standing::Apart), None);
        assert_eq!((watches.hearing(), watch.is_on()), (Hearing::Told, false));
        let heard = watch.heard();
        watches.peers_changed(joined, joining);
        assert_eq!((watches.hearing(), watch.take_on()), (Hearing::Unsure, Some(Before::Unknown)));
        assert!(!watch.turn_off(heard), "what was seen before is old");
        watches.peers_changed(joining, None);
        assert_eq!(watches.hearing(), Hearing::Tracked);
    }

    #[test]
    fn who_cannot_be_answered_yet_goes_on_waiting() {
        let (watch, port) = (watch(), Arc::new(Port::default()));
        watch.turn_on(Before::Unknown);
        watch.submit(&port, Seq(1));
        let taken = watch.take_waiting();
        watch.submit(&port, Seq(2));
        watch.give_back(taken);
        assert!(answers(&port).is_empty() && watch.is_waited_for());
        let taken = watch.take_waiting();
        assert!(watch.turn_off(watch.heard()));
        watch.give_back(taken);
        assert_eq!(answers(&port), ["Fenced(Seq(1))", "Fenced(Seq(2))"], "there is nothing to wait for any more");
    }

    #[test]
    fn who_waits_is_answered_whatever_becomes_of_it() {
        let (watch, port) = (watch(), Arc::new(Port::default()));
        watch.submit(&port, Seq(1));
        assert_eq!(answers(&port), ["Fenced(Seq(1))"], "nobody waits while it is off");
        watch.turn_on(Before::Nothing);
        watch.submit(&port, Seq(2));
        watch.time_out(Duration::from_secs(60));
        assert!(answers(&port).is_empty() && watch.is_waited_for());
        watch.time_out(Duration::ZERO);
        assert_eq!(answers(&port), ["Failed(Seq(2), WriteTimeout(0))"]);
        watch.submit(&port, Seq(3));
        let heard = watch.heard();
        watch.hear(b"larder:sources");
        assert!(!watch.turn_off(heard), "somebody has declared something meanwhile");
        assert!(answers(&port).is_empty());
        assert!(watch.turn_off(watch.heard()) && !watch.is_on());
        assert_eq!(answers(&port), ["Fenced(Seq(3))"]);
    }
}
