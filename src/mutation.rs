//! Bugs that can be planted, in the cores and in what the CACHE command promises, to show that the simulation, and the checkers
//! of recorded histories, find them.
//!
//! Only a build with the feature `mutations` can plant one; in any other [`is_planted`] is the constant `false` and
//! costs nothing. One bug at a time: in the thread that plants it, or in the whole process, named at its start by the
//! environment variable `PLANTED_BUG`.

/// A bug, one for each rule that coherence rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The keys of a write stay in L1 when its reply is handed on; only the push that follows removes them.
    WriteRemovesNothing,
    /// A reply is kept although its key was invalidated between the PTTL and the read.
    FillOutrun,
    /// A null push changes nothing.
    NullPushIgnored,
    /// A fence is answered without asking the link.
    FenceDropped,
    /// Losing the connection leaves the partition as it is.
    KeptOverReconnect,
    /// A held hit leaves without a look at whether it still holds.
    HeldUnchecked,
    /// A read joins a flight that stands in front of what its client has sent since.
    JoinAnywhere,
    /// L1 answers after an entry's deadline.
    DeadlineIgnored,
    /// A write is not fenced on the links of other scopes.
    OtherScopesUnfenced,
    /// What was left behind when the feed was lost is still answered when there is a feed again.
    LeftOverReconnect,
    /// The keys of a write that was lost with the link are left behind with the rest.
    LostWriteLeft,
    /// News that come by another connection while the link is down leave what was left behind as it is.
    LeftInSpiteOfNews,
    /// What was left behind is answered whatever its age.
    LeftForEver,
    /// L1 is not filled where the reply is read but later, as a client's own task would do it.
    FillFromRequester,
    /// Who has been told what the upstream says of a soft key is still answered with what was before.
    SoftToTheTold,
    /// A write, or a push, leaves the soft entry of its key.
    SoftOverAChange,
    /// What is soft is answered whatever its time.
    SoftForEver,
    /// A push is taken for that of the deletion as long as it could be one.
    SoftNeverSettles,
    /// A fill does not ask the upstream to track its key where the upstream tracks only what it is asked to.
    OptInForgotten,
    /// A write that does not come by the link of a soft key leaves it, unless a push tells of it.
    SoftOverWritesElsewhere,
    /// An invalidation by tags is answered before other Larders have heard of it.
    PeersUnasked,
    /// It is answered when it is certain what goes, and not when it has gone.
    LeftUndeleted,
    /// A value gets only the first of its tags.
    TagLost,
    /// The reply to a write does not wait for what follows from it for keys that depend on its keys.
    WriteUnsettled,
    /// The reply to `CACHE SET`, and to `CACHE INVALIDATE`, does not.
    CacheUnsettled,
    /// A thread that has found an entry answers it when it is no more in L1.
    LeftUnmarked,
}

// === impl Mutation ===

impl Mutation {
    /// Those of the CACHE command, about tags and dependencies.
    pub const OF_CACHE: [Self; 5] =
        [Self::PeersUnasked, Self::LeftUndeleted, Self::TagLost, Self::WriteUnsettled, Self::CacheUnsettled];

    /// Every bug in the cores of session, link and L1.
    pub const ALL: [Self; 21] = [
        Self::WriteRemovesNothing,
        Self::FillOutrun,
        Self::NullPushIgnored,
        Self::FenceDropped,
        Self::KeptOverReconnect,
        Self::HeldUnchecked,
        Self::JoinAnywhere,
        Self::DeadlineIgnored,
        Self::OtherScopesUnfenced,
        Self::LeftOverReconnect,
        Self::LostWriteLeft,
        Self::LeftInSpiteOfNews,
        Self::LeftForEver,
        Self::FillFromRequester,
        Self::SoftToTheTold,
        Self::SoftOverAChange,
        Self::SoftForEver,
        Self::SoftNeverSettles,
        Self::OptInForgotten,
        Self::SoftOverWritesElsewhere,
        Self::LeftUnmarked,
    ];

    /// The bug of this name, as `Debug` writes it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain(Self::OF_CACHE).find(|mutation| format!("{mutation:?}") == name)
    }
}

#[cfg(feature = "mutations")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in this thread, or takes it out.
#[cfg(feature = "mutations")]
pub fn plant(mutation: Option<Mutation>) {
    PLANTED.set(mutation);
}

#[cfg(feature = "mutations")]
static PLANTED_EVERYWHERE: std::sync::OnceLock<Mutation> = std::sync::OnceLock::new();

/// Plants a bug in all threads, for as long as the process lives. The first call counts.
#[cfg(feature = "mutations")]
pub fn plant_everywhere(mutation: Mutation) {
    let _ = PLANTED_EVERYWHERE.set(mutation);
}

/// True if this bug is planted in this thread.
#[cfg(feature = "mutations")]
pub(crate) fn is_planted(mutation: Mutation) -> bool {
    PLANTED.get() == Some(mutation) || PLANTED_EVERYWHERE.get() == Some(&mutation)
}

/// Nothing is.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub(crate) const fn is_planted(_: Mutation) -> bool {
    false
}
