//! `[tags]`: the index of tags, leases, and other Larders.

use super::source::Reader;
use super::{HOUR_MS, MINUTE_MS, SECOND_MS};
use std::time::Duration;

/// `[tags]`: what the CACHE command keeps about tags, and how it looks after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagsConfig {
    /// What the names of the index's keys begin with, upstream; not empty, and the same for all Larders of an upstream.
    pub prefix: String,
    /// Tags of one key.
    pub per_key_max: usize,
    /// How often the index is looked at for what can go.
    pub sweep_ms: Duration,
    /// The longest time until a tagged key is looked at again, to see whether it is still there.
    pub recheck_ms: Duration,
    /// How long a lease lasts.
    pub lease_ms: Duration,
    /// Longest wait for other Larders to have heard of an invalidation; `None`: they are not asked, and do not ask us.
    pub peers_ms_max: Option<Duration>,
}

// === impl TagsConfig ===

impl TagsConfig {
    pub(super) fn read(from: &mut Reader<'_>) -> Self {
        let own = |text: &str| text.to_owned();
        Self {
            prefix: from.text("tags.prefix", "larder:".to_owned(), parse_prefix, String::clone, own),
            per_key_max: from.count("tags.per_key_max", 64, 1..=1024),
            sweep_ms: from.millis("tags.sweep_ms", SECOND_MS, 10..=HOUR_MS),
            recheck_ms: from.millis("tags.recheck_ms", 5 * MINUTE_MS, SECOND_MS / 10..=24 * HOUR_MS),
            lease_ms: from.millis("tags.lease_ms", 10 * SECOND_MS, 1..=HOUR_MS),
            peers_ms_max: from.millis_or_off("tags.peers_ms_max", 5 * SECOND_MS, HOUR_MS),
        }
    }
}

fn parse_prefix(text: &str) -> Result<String, String> {
    const PREFIX_BYTES_MAX: usize = 128;
    let is_sound = (1..=PREFIX_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if is_sound { Ok(text.to_owned()) } else { Err("1 to 128 visible ASCII characters".to_owned()) }
}
