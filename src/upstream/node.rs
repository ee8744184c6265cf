//! One upstream server: where it is, whether it is well, what it understands.
//!
//! Shared by all links and pools that lead to the server. The breaker's core is here behind a lock; a closed circuit
//! costs a request one relaxed load ([`Node::refusal`]). Only tasks that hold a connection record results: clients
//! never probe, so that nobody's request is spent on finding out whether the server is back.

use super::breaker::{
    Admission, Breaker, BreakerGate, BreakerSnapshot, CheckedSettings, FailureCause, Forced, OpenReason, Outcome,
    Refusal, Release, State, Ticket, UpstreamDown,
};
use super::raw::{Endpoint, RawError};
use crate::clock::Clock;
use crate::port::Failure;
use arc_swap::ArcSwap;
use bytes::Bytes;
use larder_protocol::table::Table;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// An upstream server.
pub struct Node {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The process's clock.
    pub clock: Clock,
    breaker: Mutex<Breaker>,
    gate: Arc<BreakerGate>,
    /// Calls that take so long are slow, in microseconds.
    slow_micros: AtomicU64,
    refused: AtomicU64,
    facts: ArcSwap<Facts>,
    disowned: Notify,
}

/// What is known of the server since the last connection was set up.
#[derive(Clone)]
pub struct Facts {
    /// The command table, completed by the server's own.
    pub table: Arc<Table>,
    /// Its reply to `HELLO 3`, if it speaks RESP3.
    pub hello: Option<Bytes>,
    /// True if it has hash-field TTLs: fields can vanish without a push.
    pub has_field_ttls: bool,
    /// True once a server has been asked.
    pub is_known: bool,
}

// === impl Node ===

impl Node {
    /// A server of which nothing is known yet.
    pub fn new(endpoint: Endpoint, clock: Clock, settings: CheckedSettings, table: Arc<Table>, seed: u64) -> Self {
        let slow = settings.values().slow;
        let breaker = Breaker::new(settings, seed, clock.now());
        let gate = breaker.gate();
        let facts = Facts { table, hello: None, has_field_ttls: false, is_known: false };
        Self {
            endpoint,
            clock,
            breaker: Mutex::new(breaker),
            gate,
            slow_micros: AtomicU64::new(slow.as_micros() as u64),
            refused: AtomicU64::new(0),
            facts: ArcSwap::from_pointee(facts),
            disowned: Notify::new(),
        }
    }

    /// Told whenever the server refuses a link's identity: it may have admitted it before.
    pub fn disowned(&self) -> &Notify {
        &self.disowned
    }

    /// What is known of the server.
    pub fn facts(&self) -> Arc<Facts> {
        self.facts.load_full()
    }

    /// The command table, without a count of references: for one look.
    pub fn table(&self) -> Arc<Table> {
        self.facts.load().table.clone()
    }

    /// Sets what is known of the server.
    pub fn set_facts(&self, facts: Facts) {
        self.facts.store(Arc::new(facts));
    }

    /// `None` while requests may pass; else the error that answers them.
    #[inline]
    pub fn refusal(&self) -> Option<Failure> {
        if self.gate.is_closed() { None } else { Some(self.refused()) }
    }

    /// Requests were answered with what [`Node::refusal`] said.
    pub fn count_refused(&self, requests: u64) {
        self.refused.fetch_add(requests, Ordering::Relaxed);
    }

    /// Requests that an open circuit has refused so far.
    pub fn requests_refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Asks for leave to try a connection, as a probe if the circuit is open.
    pub fn admit(&self) -> Result<Ticket, Refusal> {
        match self.breaker().admit(self.clock.now()) {
            Admission::Pass(ticket) | Admission::Probe(ticket) => Ok(ticket),
            Admission::Refuse(refusal) => Err(refusal),
        }
    }

    /// Changes the breaker's settings. What it has counted stays, unless its window has another length.
    pub fn reconfigure(&self, settings: CheckedSettings) {
        self.slow_micros.store(settings.values().slow.as_micros() as u64, Ordering::Relaxed);
        self.breaker().reconfigure(settings);
    }

    /// The ticket under which results of requests count, while the circuit is closed.
    pub fn ticket(&self) -> Option<Ticket> {
        self.gate.admit()
    }

    /// True if a call that took so long counts as slow.
    pub fn is_slow(&self, latency: Duration) -> bool {
        latency.as_micros() as u64 >= self.slow_micros.load(Ordering::Relaxed)
    }

    /// Records how a call ended.
    pub fn record(&self, ticket: Ticket, outcome: Outcome, latency: Duration) {
        self.breaker().record(ticket, outcome, latency, self.clock.now());
    }

    /// Records calls that went well and fast.
    pub fn record_successes(&self, count: u32) {
        if let Some(ticket) = self.ticket() {
            self.breaker().record_successes(ticket, count, self.clock.now());
        }
    }

    /// Records calls that failed.
    pub fn record_failures(&self, cause: FailureCause, count: u32) {
        if let Some(ticket) = self.ticket() {
            self.breaker().record_failures(ticket, cause, count, self.clock.now());
        }
    }

    /// Records the loss of a connection.
    pub fn record_loss(&self, cause: FailureCause) {
        self.breaker().link_lost(cause, self.clock.now());
    }

    /// True while the circuit is open, or being tried, because too large a part of the calls has failed.
    pub fn has_failed(&self) -> bool {
        !self.gate.is_closed() && matches!(self.snapshot().reason, Some(OpenReason::Failures { .. }))
    }

    /// The breaker, for inspection.
    pub fn snapshot(&self) -> BreakerSnapshot {
        self.breaker().snapshot(self.clock.now())
    }

    /// An operator holds the circuit.
    pub fn force(&self, forced: Forced) {
        self.breaker().force(forced, self.clock.now());
    }

    /// The operator lets go.
    pub fn release(&self) -> Release {
        self.breaker().release(self.clock.now())
    }

    /// A connection outside of links and pools could not be made, or has failed: counts that, and gives the error for the
    /// client.
    pub fn not_reached(&self, error: &RawError) -> Failure {
        if let Some(cause) = error.connect_cause() {
            self.record_failures(cause, 1);
        }
        self.refusal().unwrap_or_else(|| self.unreachable(&error.to_string(), Duration::ZERO))
    }

    /// The error line for a server that a connection could not be made to.
    pub fn unreachable(&self, cause: &str, retry_in: Duration) -> Failure {
        Failure::Down(format!(
            "upstream {} unavailable ({cause}; next attempt in {} ms)",
            self.endpoint,
            retry_in.as_millis().max(1)
        ))
    }

    fn refused(&self) -> Failure {
        let now = self.clock.now();
        let snapshot = self.snapshot();
        let refusal = match (snapshot.state, snapshot.reason) {
            (State::Open { probe_at }, Some(reason)) => {
                Refusal::Open { reason, probe_in: probe_at.saturating_since(now).max(Duration::from_millis(1)) }
            }
            (State::HalfOpen { .. }, Some(reason)) => Refusal::Probing { reason, slot_in: Duration::from_millis(1) },
            _ => Refusal::Forced,
        };
        let line = UpstreamDown { address: &self.endpoint, refusal }.to_string();
        Failure::Down(line.strip_prefix("UPSTREAMDOWN ").unwrap_or(&line).to_owned())
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
