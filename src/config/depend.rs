//! `[depend]`: keys that depend on others.

use super::source::Reader;

/// `[depend]`: how much `CACHE DEPEND` may tie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DependConfig {
    /// Keys that one key may depend on.
    pub sources_max: usize,
    /// Keys that may depend on one key.
    pub dependents_max: usize,
    /// Links of the longest chain.
    pub depth_max: usize,
}

// === impl DependConfig ===

impl DependConfig {
    pub(super) fn read(from: &mut Reader<'_>) -> Self {
        Self {
            sources_max: from.count("depend.sources_max", 64, 1..=1024),
            dependents_max: from.count("depend.dependents_max", 1000, 1..=100_000),
            depth_max: from.count("depend.depth_max", 8, 1..=64),
        }
    }
}
