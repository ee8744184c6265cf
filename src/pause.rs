//! CORE of `CLIENT PAUSE`: who is held, until when, and in which order those who wait go on.
//!
//! The pause is of Larder's clients, and Larder holds them: what must not stand still is the shared link, on which a
//! paused server would answer nobody. The server is told, too, but of the pause of *writes* only, whatever the client
//! has asked for: so the writers that come to it directly are halted, scripts and transactions are judged by the one who
//! knows what they do, and no key is expired or evicted, while the link's reads and PINGs go through.
//!
//! Meanwhile no write may be on a link, where the server would hold it and everything behind it. So a pause *begins*
//! ([`Pauses::begin`]): clients are held from then on; then the shell waits until what was taken before has been answered;
//! then the server is told; and then the pause has an end ([`Beginning::confirm`]).
//!
//! Invariants: as in the server, a later pause only prolongs and only widens; those who wait go on one after the other, in
//! the order in which they came ([`Waiting`]); the mode can be read without a lock.
//!
//! Bounds: at most one that waits for each client.

use crate::clock::Time;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;

/// Who is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Nobody.
    #[default]
    Off,
    /// Requests that may change data or reach replicas.
    Write,
    /// All requests.
    All,
}

/// The pauses of all clients.
#[derive(Debug, Default)]
pub struct Pauses {
    mode: AtomicU8,
    state: Mutex<State>,
    /// Tells the keeper of the time that the end has changed.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The pause in force, and its end.
    confirmed: Option<(Mode, Time)>,
    /// Pauses that begin, of writes and of all.
    beginning: [usize; 2],
    next_ticket: u64,
    waiting: BTreeMap<u64, Waiter>,
    has_keeper: bool,
}

#[derive(Debug)]
struct Waiter {
    /// The least mode that holds it.
    held_from: Mode,
    waker: Option<Waker>,
}

/// A pause that has begun and has no end yet. Dropped, it has never been.
#[derive(Debug)]
pub struct Beginning {
    pauses: Arc<Pauses>,
    mode: Mode,
}

/// A held client's place among those who wait. Who comes next goes on when it is dropped.
#[derive(Debug)]
pub struct Waiting {
    pauses: Arc<Pauses>,
    ticket: u64,
}

// === impl Mode ===

impl Mode {
    fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Off,
            1 => Self::Write,
            _ => Self::All,
        }
    }
}

// === impl Pauses ===

impl Pauses {
    /// Who is held now.
    #[inline]
    pub fn mode(&self) -> Mode {
        Mode::from_bits(self.mode.load(Ordering::Relaxed))
    }

    /// Holds clients from now on.
    pub fn begin(self: &Arc<Self>, mode: Mode) -> Beginning {
        let mut state = self.lock();
        if let Some(count) = state.count_of(mode) {
            *count += 1;
        }
        self.settle(&mut state);
        Beginning { pauses: self.clone(), mode }
    }

    /// Ends the pause.
    pub fn end(&self) {
        let mut state = self.lock();
        state.confirmed = None;
        self.settle(&mut state);
    }

    /// Ends the pause if its time is over.
    pub fn expire(&self, now: Time) {
        let mut state = self.lock();
        if state.confirmed.is_some_and(|(_, until)| until <= now) {
            state.confirmed = None;
            self.settle(&mut state);
        }
    }

    /// When the pause in force ends; `None` if there is none: the keeper of the time ends, too.
    pub fn until(&self) -> Option<Time> {
        let mut state = self.lock();
        let until = state.confirmed.map(|(_, until)| until);
        state.has_keeper = until.is_some();
        until
    }

    /// True if somebody must look after the end and nobody does; from now on the caller does.
    pub fn needs_keeper(&self) -> bool {
        let mut state = self.lock();
        state.confirmed.is_some() && !std::mem::replace(&mut state.has_keeper, true)
    }

    /// Queues a client that is held while the mode is `held_from` or wider.
    pub fn wait(self: &Arc<Self>, held_from: Mode) -> Waiting {
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.insert(ticket, Waiter { held_from, waker: None });
        Waiting { pauses: self.clone(), ticket }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Sets the mode, and wakes who goes on first.
    fn settle(&self, state: &mut State) {
        let mode = state.mode();
        self.mode.store(mode as u8, Ordering::Release);
        state.wake_first(mode);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn mode(&self) -> Mode {
        let confirmed = self.confirmed.map_or(Mode::Off, |(mode, _)| mode);
        let beginning = match self.beginning {
            [0, 0] => Mode::Off,
            [_, 0] => Mode::Write,
            _ => Mode::All,
        };
        confirmed.max(beginning)
    }

    fn count_of(&mut self, mode: Mode) -> Option<&mut usize> {
        self.beginning.get_mut((mode as usize).checked_sub(1)?)
    }

    fn first_free(&self, mode: Mode) -> Option<u64> {
        self.waiting.iter().find(|(_, waiter)| waiter.held_from > mode).map(|(ticket, _)| *ticket)
    }

    fn wake_first(&mut self, mode: Mode) {
        let waiter = self.first_free(mode).and_then(|ticket| self.waiting.get_mut(&ticket));
        if let Some(waker) = waiter.and_then(|waiter| waiter.waker.take()) {
            waker.wake();
        }
    }
}

// === impl Beginning ===

impl Beginning {
    /// The pause is in force, until then at least.
    pub fn confirm(self, until: Time) {
        let mut state = self.pauses.lock();
        let (mode, end) = state.confirmed.unwrap_or((Mode::Off, Time::ZERO));
        state.confirmed = Some((mode.max(self.mode), end.max(until)));
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        let mut state = self.pauses.lock();
        if let Some(count) = state.count_of(self.mode) {
            *count -= 1;
        }
        self.pauses.settle(&mut state);
    }
}

// === impl Waiting ===

impl Waiting {
    /// Ready when it is this client's turn to go on.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.pauses.lock();
        if state.first_free(state.mode()) == Some(self.ticket) {
            return Poll::Ready(());
        }
        if let Some(waiter) = state.waiting.get_mut(&self.ticket) {
            waiter.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.pauses.lock();
        state.waiting.remove(&self.ticket);
        let mode = state.mode();
        state.wake_first(mode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ready(waiting: &Waiting) -> bool {
        waiting.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1000)
    }

    #[test]
    fn a_later_pause_only_prolongs_and_widens() {
        let pauses: Arc<Pauses> = Arc::default();
        pauses.begin(Mode::All).confirm(at(100));
        pauses.begin(Mode::Write).confirm(at(50));
        assert_eq!((pauses.mode(), pauses.until()), (Mode::All, Some(at(100))));
        pauses.begin(Mode::Write).confirm(at(150));
        pauses.expire(at(149));
        assert_eq!((pauses.mode(), pauses.until()), (Mode::All, Some(at(150))));
        pauses.expire(at(150));
        assert_eq!((pauses.mode(), pauses.until()), (Mode::Off, None));
        pauses.begin(Mode::Write).confirm(at(200));
        assert_eq!(pauses.mode(), Mode::Write, "what is over counts no more");
        pauses.end();
        assert_eq!(pauses.mode(), Mode::Off);
    }

    #[test]
    fn one_that_was_not_confirmed_has_never_been() {
        let pauses: Arc<Pauses> = Arc::default();
        let beginning = pauses.begin(Mode::All);
        assert_eq!((pauses.mode(), pauses.until()), (Mode::All, None));
        pauses.begin(Mode::Write).confirm(at(10));
        drop(beginning);
        assert_eq!((pauses.mode(), pauses.until()), (Mode::Write, Some(at(10))));
    }

    #[test]
    fn those_who_wait_go_on_in_order_and_one_that_leaves_holds_up_nobody() {
        let pauses: Arc<Pauses> = Arc::default();
        pauses.begin(Mode::All).confirm(at(10));
        let beginning = pauses.begin(Mode::Write);
        let reads: Vec<Waiting> = (0..2).map(|_| pauses.wait(Mode::All)).collect();
        let [first, second, third] = [(); 3].map(|()| pauses.wait(Mode::Write));
        assert!(!is_ready(&reads[0]) && pauses.waiting() == 5);
        pauses.end();
        assert!(is_ready(&reads[0]) && !is_ready(&reads[1]) && !is_ready(&first), "writes are still held");
        drop(reads);
        assert!(!is_ready(&first));
        drop(beginning);
        assert!(is_ready(&first) && !is_ready(&second) && !is_ready(&third));
        drop(second);
        drop(first);
        assert!(is_ready(&third));
    }

    #[test]
    fn there_is_one_keeper_while_there_is_an_end() {
        let pauses: Arc<Pauses> = Arc::default();
        assert!(!pauses.needs_keeper());
        pauses.begin(Mode::Write).confirm(at(10));
        assert!(pauses.needs_keeper() && !pauses.needs_keeper());
        pauses.end();
        assert_eq!(pauses.until(), None);
        pauses.begin(Mode::Write).confirm(at(10));
        assert!(pauses.needs_keeper());
    }
}
