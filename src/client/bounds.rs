//! What a client may cost in time and memory before it is closed: output limits as in Redis, and the idle timeout.
//!
//! Output is what waits in the client's own queue, messages that wait for the end of a reply included; what waits in its
//! port is bounded by those who leave it there. A client is a *subscriber* while it is subscribed or watches (MONITOR): it
//! gets what it has not asked for, so its limits are lower.

use super::Connection;
use crate::config::LimitsConfig;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// The timers of one client.
#[derive(Default)]
pub(super) struct Bounds {
    /// Of `limits.idle_timeout_ms`, if there is one.
    idle: Option<Pin<Box<Sleep>>>,
    /// Since when the output has been above the soft limit, and the timer that runs meanwhile.
    soft: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// Output limits of one class of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OutputLimits {
    hard: usize,
    soft: Option<usize>,
    soft_for: Duration,
}

// === impl OutputLimits ===

impl OutputLimits {
    fn of(limits: &LimitsConfig, is_subscriber: bool) -> Self {
        if is_subscriber {
            return Self {
                hard: limits.subscriber_output_bytes_max,
                soft: limits.subscriber_output_soft_bytes_max,
                soft_for: limits.subscriber_output_soft_ms_max,
            };
        }
        Self {
            hard: limits.client_output_bytes_max,
            soft: limits.client_output_soft_bytes_max,
            soft_for: limits.client_output_soft_ms_max,
        }
    }
}

// === impl Bounds ===

impl Bounds {
    /// Timers of a client that has just connected.
    pub(super) fn new(limits: &LimitsConfig) -> Self {
        Self { idle: limits.idle_timeout_ms.map(|limit| Box::pin(sleep(limit))), soft: None }
    }
}

// === impl Connection ===

impl Connection {
    /// True if the client is to be closed because it does not read what is sent to it.
    pub(super) fn has_too_much_output(&mut self, cx: &mut Context<'_>) -> bool {
        let core = &self.core;
        let bytes = core.output_bytes();
        core.client.output_bytes.store(bytes as u64, Ordering::Relaxed);
        let is_subscriber = core.is_subscribed() || core.client.monitoring.load(Ordering::Relaxed);
        if bytes == 0 {
            self.bounds.soft = None;
            return false;
        }
        let limits = OutputLimits::of(&core.shared.settings().limits, is_subscriber);
        if bytes >= limits.hard {
            core.counters.closed_output_hard.add(1);
            tracing::warn!(client = core.client.id.0, bytes, "client closed: it does not read");
            return true;
        }
        if limits.soft.is_none_or(|soft| bytes < soft) {
            self.bounds.soft = None;
            return false;
        }
        let (since, timer) = self.bounds.soft.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(limits.soft_for))));
        let end = *since + limits.soft_for;
        if timer.deadline() != end && !timer.is_elapsed() {
            timer.as_mut().reset(end);
        }
        let is_over = timer.as_mut().poll(cx).is_ready();
        if is_over {
            core.counters.closed_output_soft.add(1);
            tracing::warn!(client = core.client.id.0, bytes, "client closed: it has not read enough for too long");
        }
        is_over
    }

    /// True if nothing has moved for `limits.idle_timeout_ms`. Subscribers, clients that watch and clients that wait may be
    /// silent for ever: `is_exempt`.
    pub(super) fn is_idle_too_long(&mut self, has_moved: bool, is_exempt: bool, cx: &mut Context<'_>) -> bool {
        let Some(idle) = &mut self.bounds.idle else { return false };
        let limit = self.core.shared.settings().limits.idle_timeout_ms.unwrap_or(Duration::MAX);
        if has_moved || is_exempt || self.core.is_subscribed() || self.core.client.monitoring.load(Ordering::Relaxed) {
            idle.as_mut().reset(Instant::now() + limit);
        }
        let is_over = Poll::is_ready(&idle.as_mut().poll(cx));
        if is_over {
            self.core.counters.closed_idle.add(1);
        }
        is_over
    }
}
