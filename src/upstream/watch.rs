//! Whether keys of a database depend on others, and who waits until what follows from a change has happened.
//!
//! A handle, shared by all links of a database: [`crate::cache`] does the work behind it. While no key of the database
//! depends on another, it is *off*, and costs a client one load for each pass over its requests. While it is *on*, the
//! reply to a write waits until what depends on the keys written is gone ([`Watch::submit`]), as a reply waits for a fence.
//!
//! How a Larder hears of the first dependency, which may be declared through another one: each link reads, when it is set up, the
//! name under which the index keeps all keys that others depend on, so it is told when that changes ([`Watch::hear`]).
//!
//! Invariants: nobody waits at a watch that is off; whoever waits is answered, if need be with a failure.
//! Bounds: a client waits with its requests in flight, of which there are `limits.client_in_flight_max`; [`ORDERS_MAX`]
//! declarations wait at a time, more are refused.

use crate::port::{Delivery, Failure, Port, Seq};
use bytes::Bytes;
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
    all: Arc<Watches>,
}

/// What the watches of all databases share.
#[derive(Debug, Default)]
pub struct Watches {
    /// How many are on.
    on: AtomicUsize,
    /// One has been turned on: for who starts their tasks.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    standing: Standing,
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
pub enum Standing {
    /// Nothing depends on anything, as far as is known.
    #[default]
    Off,
    /// It is to begin.
    Wanted(Before),
    /// A task is at it, and may have missed something until it has looked.
    Beginning,
    /// Every change is heard.
    Watching,
}

/// What may have happened before a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// The index was empty, and whoever has written to it watches: nothing was missed.
    Nothing,
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
    /// The watch of a database whose index is kept under `prefix`.
    pub fn new(database: u32, prefix: &str, all: Arc<Watches>) -> Self {
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
    pub fn standing(&self) -> Standing {
        self.lock().standing
    }

    /// A link was told that a key has changed: if it is the index, somebody has declared a dependency.
    #[inline]
    pub fn hear(&self, key: &[u8]) {
        if key == self.index {
            self.turn_on(Before::Nothing);
        }
    }

    /// Turns it on, if it is off.
    pub fn turn_on(&self, before: Before) {
        let mut state = self.lock();
        state.heard += 1;
        if state.standing == Standing::Off {
            state.standing = Standing::Wanted(before);
            self.is_on.store(true, Ordering::Release);
            self.all.on.fetch_add(1, Ordering::AcqRel);
            self.all.wanted.notify_one();
        }
    }

    /// Takes the task of a watch that is wanted; what may have been missed.
    pub fn take_on(&self) -> Option<Before> {
        let mut state = self.lock();
        match state.standing {
            Standing::Wanted(before) => {
                state.standing = Standing::Beginning;
                Some(before)
            }
            _ => None,
        }
    }

    /// From now on every change is heard; or not any more.
    pub fn stands(&self, standing: Standing) {
        let mut state = self.lock();
        if state.standing != Standing::Off {
            state.lapses += u64::from(state.standing == Standing::Watching && standing != Standing::Watching);
            state.standing = standing;
        }
    }

    /// How often it has ceased to hear of every change; `None` while it does not hear of every change.
    pub fn lapses(&self) -> Option<u64> {
        let state = self.lock();
        (state.standing == Standing::Watching).then_some(state.lapses)
    }

    /// The database has become another one (`SWAPDB`): what is watched is to be looked up anew.
    pub fn begin_anew(&self) {
        let mut state = self.lock();
        if state.standing == Standing::Off {
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

    /// Sends a request on the watch's own connection; its reply.
    ///
    /// # Errors
    /// Too many wait already, or the connection was lost.
    pub async fn call(&self, request: Bytes) -> Result<Bytes, Failure> {
        let (done, reply) = oneshot::channel();
        {
            let mut state = self.lock();
            if state.standing == Standing::Off {
                return Err(Failure::Down("the scope has ended".into()));
            }
            if state.orders.len() >= ORDERS_MAX {
                return Err(Failure::Full);
            }
            state.orders.push(Order { request, done });
        }
        self.stirred.notify_one();
        reply.await.map_err(|_| Failure::WriteLost)
    }

    /// All requests that are to be sent.
    pub fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut self.lock().orders)
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
        if state.standing != Standing::Off {
            self.all.on.fetch_sub(1, Ordering::AcqRel);
        }
        state.standing = Standing::Off;
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
        if state.standing == Standing::Off {
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

    /// Returns when somebody begins to wait.
    pub async fn stirred(&self) {
        self.stirred.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Watches ===

impl Watches {
    /// True if a watch of any database is on.
    #[inline]
    pub fn any(&self) -> bool {
        self.on.load(Ordering::Acquire) > 0
    }

    /// Returns when a watch has been turned on.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
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
        assert_eq!((watch.take_on(), watch.standing()), (None, Standing::Beginning));
    }

    #[tokio::test]
    async fn declarations_beyond_the_bound_are_refused() {
        let watch = Arc::new(watch());
        let declare = |watch: &Arc<Watch>| {
            let watch = watch.clone();
            tokio::spawn(async move { watch.call(Bytes::from_static(b"x")).await })
        };
        assert!(matches!(declare(&watch).await.unwrap(), Err(Failure::Down(_))), "it is off");
        watch.turn_on(Before::Nothing);
        let waiting: Vec<_> = (0..ORDERS_MAX).map(|_| declare(&watch)).collect();
        tokio::task::yield_now().await;
        while watch.lock().orders.len() < ORDERS_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(declare(&watch).await.unwrap(), Err(Failure::Full));
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
