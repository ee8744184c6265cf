//! How long a tunnel waits for a reply.
//!
//! As long as [`super::owed::bound_of`] says of the request at the front; but not while a pause may hold the request at the upstream, and not while a script
//! runs there, whose own client waits for it as long as it would without Larder. Whether one runs the upstream tells whoever
//! asks, on a connection made for that: `-BUSY`. (The others are told so at once; SCRIPT KILL ends it.)

use super::{Tunnel, Upstream};
use crate::client::core::Core;
use crate::pause::Mode;
use crate::upstream::raw::is_busy;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// The timer, and the question that is asked when it has run out.
pub(super) struct Patience {
    timer: Pin<Box<Sleep>>,
    question: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
}

// === impl Patience ===

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self { timer: Box::pin(sleep(limit)), question: None }
    }
}

// === impl Tunnel (patience) ===

impl Tunnel {
    /// Something has moved: the wait begins anew.
    pub(super) fn be_patient(&mut self) {
        if let Some(bound) = self.bound() {
            self.patience.timer.as_mut().reset(Instant::now() + bound);
        }
        self.patience.question = None;
    }

    /// True if what is owed has been waited for in vain.
    pub(super) fn is_out_of_patience(&mut self, core: &Core, cx: &mut Context<'_>) -> bool {
        if self.bound().is_none() || self.upstream == Upstream::Gone {
            return false;
        }
        if core.shared.pauses.mode() != Mode::Off {
            self.be_patient();
        }
        if self.patience.question.is_none() && self.patience.timer.as_mut().poll(cx).is_ready() {
            let (node, pool) = (self.scope.link.node().clone(), core.shared.settings().link.connect_ms_max);
            let (identity, replies) = (self.scope.identity.clone(), self.scope.pools.limits().replies);
            let question = async move { is_busy(&node.endpoint, &identity, pool, replies).await };
            self.patience.question = Some(Box::pin(question));
        }
        match self.patience.question.as_mut().map(|question| question.as_mut().poll(cx)) {
            Some(Poll::Ready(true)) => {
                self.be_patient();
                // Registers the timer.
                self.patience.timer.as_mut().poll(cx).is_ready()
            }
            Some(Poll::Ready(false)) => true,
            _ => false,
        }
    }
}
