//! How long a tunnel waits for a reply.
//!
//! As long as [`super::owed::bound_of`] says of the request at the front; but not while a pause may hold the request at the upstream, and not while a script
//! runs there, whose own client waits for it as long as it would without Larder. Whether one runs the upstream tells whoever
//! asks, on a connection made for that: `-BUSY`. (The others are told so at once; SCRIPT KILL ends it.)
//!
//! The question is asked some time before the end ([`Tunnel::head_start`]), and who has not answered by the end is not busy: an
//! upstream that stands still answers nobody, and its client is told in time.

use super::owed::{Owed, What};
use super::{Tunnel, Upstream};
use crate::client::core::Core;
use crate::pause::Mode;
use crate::upstream::raw::is_busy;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// The timer, and what it runs for.
pub(super) struct Patience {
    timer: Pin<Box<Sleep>>,
    ends_at: Instant,
    stage: Stage,
}

enum Stage {
    /// Until it is time to ask.
    Waiting,
    /// Until the end, or until it is known that the upstream is busy.
    Asking(Pin<Box<dyn Future<Output = bool> + Send>>),
    /// Until the end: it is not busy.
    Last,
}

/// At most this part of a bound is for the question.
const HEAD_START_PART: u32 = 4;

// === impl Patience ===

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self { timer: Box::pin(sleep(limit)), ends_at: Instant::now() + limit, stage: Stage::Waiting }
    }
}

// === impl Tunnel (patience) ===

impl Tunnel {
    /// Something has moved: the wait begins anew.
    pub(super) fn be_patient(&mut self) {
        if let Some(bound) = self.bound() {
            self.patience.ends_at = Instant::now() + bound;
            let asks_at = self.patience.ends_at - self.head_start(bound);
            self.patience.timer.as_mut().reset(asks_at);
        }
        self.patience.stage = Stage::Waiting;
    }

    /// How long before the end the upstream is asked. Who blocks has its reply when its own timeout is over: not before that.
    fn head_start(&self, bound: Duration) -> Duration {
        let most = self.scope.pools.limits().connect_max.min(bound / HEAD_START_PART);
        match self.owed.front() {
            Some(Owed { what: What::Blocking, .. }) => most.min(self.times.blocking_grace / 2),
            _ => most,
        }
    }

    /// True if what is owed has been waited for in vain.
    pub(super) fn is_out_of_patience(&mut self, core: &Core, cx: &mut Context<'_>) -> bool {
        if self.bound().is_none() || self.upstream == Upstream::Gone {
            return false;
        }
        if core.shared.pauses.mode() != Mode::Off {
            self.be_patient();
        }
        loop {
            if let Stage::Asking(question) = &mut self.patience.stage {
                match question.as_mut().poll(cx) {
                    Poll::Ready(true) => self.be_patient(),
                    Poll::Ready(false) => self.patience.stage = Stage::Last,
                    Poll::Pending => {}
                }
            }
            if self.patience.timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            let Stage::Waiting = self.patience.stage else { return true };
            let ends_at = self.patience.ends_at;
            let (node, replies) = (self.scope.link.node().clone(), self.scope.pools.limits().replies);
            let (identity, within) = (self.scope.identity.clone(), ends_at.saturating_duration_since(Instant::now()));
            let question = async move { is_busy(&node.endpoint, &identity, within, replies).await };
            self.patience.stage = Stage::Asking(Box::pin(question));
            self.patience.timer.as_mut().reset(ends_at);
        }
    }
}
