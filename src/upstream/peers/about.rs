//! What Larders ask each other, and what is done before it is answered.
//!
//! An answer means that it was done; who cannot do it (a link that does not catch up) does not answer, and who asks is told
//! of that in time.

use crate::port::Failure;
use crate::upstream::errand::Errand;
use crate::upstream::link_io::LinkHandle;
use crate::upstream::watch::{Before, Watch};
use std::sync::Arc;

/// What the others are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// To have applied what was sent to them.
    Invalidation,
    /// And to watch what keys depend on, as the index says it now: something was declared.
    Dependency,
    /// Whether one of them has heard of every change of what keys depend on, until now: one `yes` is enough.
    Watching,
    /// Databases have been swapped, of which no push tells: to forget what they hold of any, and to look anew at what depends on what.
    Swap,
    /// What users may see has changed, of which no push tells either: to forget what they hold.
    Rights,
}

// === impl About ===

impl About {
    /// What stands behind a question.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Invalidation => "",
            Self::Dependency => " dependency",
            Self::Watching => " watching",
            Self::Swap => " swap",
            Self::Rights => " rights",
        }
    }

    pub(super) fn parse(word: Option<&[u8]>) -> Self {
        match word {
            Some(b"dependency") => Self::Dependency,
            Some(b"watching") => Self::Watching,
            Some(b"swap") => Self::Swap,
            Some(b"rights") => Self::Rights,
            _ => Self::Invalidation,
        }
    }

    /// What is so, whoever may have heard of it.
    pub(in crate::upstream) fn done(self) -> &'static str {
        match self {
            Self::Invalidation => "the keys are gone upstream",
            Self::Swap => "the databases are swapped upstream",
            Self::Rights => "the rights are changed upstream",
            Self::Dependency | Self::Watching => "the others know of it as soon as they hear",
        }
    }

    /// True if what is told of concerns all databases and users, and no push tells of it.
    pub(super) fn is_unpushed(self) -> bool {
        matches!(self, Self::Swap | Self::Rights)
    }

    /// Does what is asked for, with links of the database and its watch, if there are any; whether the answer is `yes`.
    pub(super) async fn answer(self, links: &[Arc<LinkHandle>], watches: &[Arc<Watch>]) -> Result<bool, Failure> {
        let mut errand = Errand::default();
        if self.is_unpushed() {
            watches.iter().for_each(|watch| watch.begin_anew());
            links.iter().for_each(|link| link.partition().suspend());
            errand.fence_and_resume(links).await?;
            for watch in watches {
                errand.settle(watch).await?;
            }
            return Ok(false);
        }
        if self == Self::Dependency {
            // From here on replies to writes wait: who asks has written the index.
            watches.iter().for_each(|watch| watch.turn_on(Before::Nothing));
        }
        errand.fence_links(links.iter()).await?;
        // A database that has never had a link here has nobody who could change anything.
        let [watch] = watches else { return Ok(false) };
        let before = watch.lapses();
        if self == Self::Invalidation || (self == Self::Watching && before.is_none()) {
            return Ok(false);
        }
        errand.settle(watch).await?;
        Ok(before.is_some() && watch.lapses() == before)
    }
}
