//! The worker threads, and which of them serves a client.
//!
//! The system spreads new connections over the workers' listeners by a hash of their addresses: of fifty clients, one of two
//! workers gets thirty more often than not, and the busiest worker bounds what all can do. So the worker that accepts
//! a connection looks who serves the fewest clients, and hands it on if that is another. After that a client stays.
//!
//! Invariants: a worker counts the clients that it serves and those on their way to it; a count goes down however its client
//! ends. Counts are read without a lock: workers that accept at the same moment may choose the same one, which the next
//! connections make up for.

use crate::metrics::Counters;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::Handle;

/// All worker threads, in order.
#[derive(Debug)]
pub(crate) struct Workers(Vec<Worker>);

/// One worker thread.
#[derive(Debug)]
pub(crate) struct Worker {
    /// Its runtime.
    pub(crate) runtime: Handle,
    /// Its counters.
    pub(crate) counters: Arc<Counters>,
    clients: Arc<AtomicUsize>,
}

/// A client's place at a worker, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat(Arc<AtomicUsize>);

// === impl Workers ===

impl Workers {
    /// Workers with these runtimes and counters.
    pub(crate) fn new(workers: impl Iterator<Item = (Handle, Arc<Counters>)>) -> Self {
        Self(workers.map(|(runtime, counters)| Worker { runtime, counters, clients: Arc::default() }).collect())
    }

    /// The first, which runs what is nobody's in particular.
    pub(crate) fn first(&self) -> Option<&Worker> {
        self.0.first()
    }

    /// The one with this number.
    pub(crate) fn get(&self, at: usize) -> Option<&Worker> {
        self.0.get(at)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.0.iter()
    }

    /// Which of them is to serve a connection that worker `own` has accepted: itself, unless another serves fewer clients.
    pub(crate) fn choose(&self, own: usize) -> usize {
        least_loaded(self.0.iter().map(Worker::clients), own)
    }
}

// === impl Worker ===

impl Worker {
    /// Counts a client in.
    pub(crate) fn seat(&self) -> Seat {
        self.clients.fetch_add(1, Ordering::Relaxed);
        Seat(self.clients.clone())
    }

    /// How many clients it serves.
    pub(crate) fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The first of those with the lowest count, or `own` if none is below its.
fn least_loaded(counts: impl Iterator<Item = usize>, own: usize) -> usize {
    let rank = |(at, count): &(usize, usize)| (*count, *at != own, *at);
    counts.enumerate().min_by_key(rank).map_or(own, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_stays_unless_another_worker_serves_fewer() {
        let choose = |counts: &[usize], own| least_loaded(counts.iter().copied(), own);
        assert_eq!(choose(&[0], 0), 0);
        assert_eq!(choose(&[3, 3, 3], 1), 1);
        assert_eq!(choose(&[3, 2, 4], 1), 1);
        assert_eq!(choose(&[3, 2, 2], 0), 1);
        assert_eq!(choose(&[3, 2, 2], 2), 2);
        assert_eq!(choose(&[0, 9, 9], 2), 0);
        assert_eq!(choose(&[], 0), 0);
    }

    #[test]
    fn seats_are_counted_and_given_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let of = |_| (runtime.handle().clone(), Arc::<Counters>::default());
        let workers = Workers::new((0..2).map(of));
        let mut seats: Vec<Seat> = (0..9).map(|_| workers.get(workers.choose(0)).unwrap().seat()).collect();
        let counts = || workers.iter().map(Worker::clients).collect::<Vec<_>>();
        assert_eq!(counts(), [5, 4]);
        seats.truncate(2);
        assert_eq!(counts(), [1, 1]);
        seats.clear();
        assert_eq!(counts(), [0, 0]);
    }
}
