//! SWAPDB and changes of rights: what changes whole databases, or what users may see, and sends no push.
//!
//! From before such a command is sent until its reply has been fenced, all partitions are suspended: nothing is answered
//! from them and nothing is stored, and they begin anew, empty. Scopes that are made meanwhile are emptied with them. Other
//! Larders are told, and do the same, before the client is.
//!
//! How it fails: if the client goes, or the connection is lost, before the answer, L1 stays suspended for `link.dead_ms`. If
//! not all other Larders confirm it, the client is told that in place of the server's reply, which has told that it is done.

use crate::client::core::{Core, fence_job};
use crate::port::{Delivery, Failure, Seq};
use crate::upstream::link::OpKind;
use crate::upstream::peers::About;
use crate::upstream::raw::Identity;
use crate::upstream::scope::{Scope, Upstream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What changes, and no push tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unpushed {
    /// What users may see.
    Rights,
    /// Whole databases.
    Databases,
}

/// L1 is suspended in all scopes until the databases have been swapped.
pub(super) struct Swap {
    scopes: Vec<Arc<Scope>>,
    upstream: Arc<Upstream>,
    grace: Duration,
    what: Unpushed,
    /// Who has asked for it.
    by: Identity,
}

/// What became of telling other Larders.
#[derive(Default)]
pub(super) struct Announcement(Arc<OnceLock<Failure>>);

// === impl Swap ===

impl Swap {
    /// From now on nothing is answered from L1, in any scope.
    pub(super) fn begin(core: &Core, what: Unpushed) -> Option<Self> {
        let (upstream, by) = (core.upstream()?, core.identity()?);
        let scopes = upstream.scopes();
        for scope in &scopes {
            scope.link.partition().suspend();
        }
        Some(Self { scopes, upstream, grace: core.shared.settings().link.dead_ms, what, by })
    }

    /// The scopes whose suspension the caller ends: also those that have begun meanwhile, and may have read what was there
    /// before.
    fn finish(mut self) -> Vec<Arc<Scope>> {
        self.what.tell(&self.upstream);
        with_later_scopes(std::mem::take(&mut self.scopes), &self.upstream)
    }

    /// Ends the suspension, by a fence behind which the client may be told: what the server says, unless the announcement
    /// has failed.
    pub(super) fn start_fence(self, core: &mut Core) -> (Seq, Announcement) {
        let (upstream, what, by) = (self.upstream.clone(), self.what, self.by.clone());
        let announcement = Announcement::default();
        let failed = Announcement(announcement.0.clone());
        let seq = core.start_wide_fence(&self.finish(), OpKind::FenceAndResume);
        let port = core.await_one_more(seq);
        upstream.clone().spawn(async move {
            if let Err(failure) = what.announce(&upstream, &by).await {
                failed.0.get_or_init(|| failure);
            }
            if port.leave(Delivery::Fenced(seq)) {
                port.wake();
            }
        });
        (seq, announcement)
    }
}

// === impl Announcement ===

impl Announcement {
    /// Why not all know of it; to be asked behind the fence.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.0.get()
    }
}

// === impl Unpushed ===

impl Unpushed {
    /// What keys depend on, and what does, has changed with the databases.
    fn tell(self, upstream: &Upstream) {
        if self == Self::Databases {
            upstream.watches().all().iter().for_each(|watch| watch.begin_anew());
        }
    }

    /// Tells other Larders, by the user who has changed it if that is possible. What was done is done: if one does not confirm it,
    /// the log says so, and the client is told.
    async fn announce(self, upstream: &Upstream, by: &Identity) -> Result<(), Failure> {
        let about = match self {
            Self::Databases => About::Swap,
            Self::Rights => About::Rights,
        };
        let told = upstream.tell_peers(by, upstream.default_database(), about).await;
        if let Err(failure) = &told {
            tracing::warn!(cause = %failure, "another Larder may not know yet of {self}");
        }
        told
    }
}

impl std::fmt::Display for Unpushed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Databases => "databases that were swapped",
            Self::Rights => "rights that were changed",
        })
    }
}

impl Drop for Swap {
    /// The client has gone, or the connection was lost, before the answer came: whether and when the upstream will execute
    /// it nobody knows. L1 stays suspended for `link.dead_ms`; what has not been executed by then never will be.
    fn drop(&mut self) {
        if self.scopes.is_empty() {
            return;
        }
        let (scopes, upstream, grace) = (std::mem::take(&mut self.scopes), self.upstream.clone(), self.grace);
        let (what, by) = (self.what, self.by.clone());
        self.upstream.spawn(async move {
            tokio::time::sleep(grace).await;
            what.tell(&upstream);
            // There is nobody to be told.
            let _: Result<(), Failure> = what.announce(&upstream, &by).await;
            let nobody = Arc::default();
            for scope in with_later_scopes(scopes, &upstream) {
                scope.link.submit_fence(fence_job(&nobody, Seq(0), OpKind::FenceAndResume));
            }
        });
    }
}

fn with_later_scopes(mut scopes: Vec<Arc<Scope>>, upstream: &Upstream) -> Vec<Arc<Scope>> {
    for scope in upstream.scopes() {
        if !scopes.iter().any(|s| Arc::ptr_eq(s, &scope)) {
            scope.link.partition().suspend();
            scopes.push(scope);
        }
    }
    scopes
}
