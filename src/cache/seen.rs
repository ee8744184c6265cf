//! `CACHE HOTKEYS`, `BIGKEYS` and `ADVISE`: what was seen of the caller's keys, and what follows from it.
//!
//! Keys of others are not told: the sketches are asked for the caller's scope, its user and its database. What is not about a key (the
//! size of L1, its misses) is the same for all.

use super::reply::Reply;
use super::{Caller, rounded};
use crate::insight::ScopeId;
use crate::insight::advise::{self, Advice, Entries, Figures, IDLE_FACTOR};
use crate::insight::sketch::HotKey;
use crate::l1::{Cause, L1, Partition};
use crate::metrics::Passed;
use crate::upstream::errand::Errand;
use crate::upstream::link::OpKind;
use crate::upstream::scope::Scope;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cursor::{Cursor, Item};

/// Entries of L1 that are looked at for advice.
const ENTRIES_SEEN_MAX: usize = 10_000;
/// Hot keys that are looked at for advice.
const HOT_SEEN_MAX: usize = 100;
/// Sizes of L1 that the curve is asked for, as parts of the present one.
const GROWTHS: [f64; 6] = [1.0, 1.25, 1.5, 2.0, 3.0, 4.0];

// === impl Caller ===

impl Caller {
    /// Whose keys the caller may see.
    fn seen_scope(&self) -> ScopeId {
        match &self.scope {
            Some(scope) => scope.link.partition().scope(),
            None => ScopeId(u64::from(self.database)),
        }
    }

    /// `CACHE HOTKEYS [n]`
    pub(super) fn hot_keys(&self, max: usize) -> Vec<u8> {
        let (hot, total) = self.shared.insight.hot(self.seen_scope(), max, self.shared.clock.now());
        let mut reply = Reply::default();
        reply.array(hot.len());
        for key in &hot {
            show_hot(&mut reply, key, total);
        }
        reply.take()
    }

    /// `CACHE BIGKEYS [n]`
    pub(super) fn big_keys(&self, max: usize) -> Vec<u8> {
        let (scope, insight, now) = (self.seen_scope(), &self.shared.insight, self.shared.clock.now());
        let (hot, _) = insight.hot(scope, usize::MAX, now);
        let big = insight.big(scope, max);
        let mut reply = Reply::default();
        reply.array(big.len());
        for key in &big {
            let rate = hot.iter().find(|hot| hot.key == key.key).map_or(0.0, |hot| hot.rate);
            reply.map(3).bulk("key").bytes(&key.key).bulk("bytes").integer(key.bytes);
            reply.bulk("per_second").double(rounded(rate));
        }
        reply.take()
    }

    /// `CACHE ADVISE`
    pub(super) async fn advise(&self) -> Vec<u8> {
        let advice = match &self.scope {
            Some(scope) => advise::advise(&self.figures(scope).await),
            None => advise::advise(&self.figures_embedded()),
        };
        let mut reply = Reply::default();
        reply.array(advice.len());
        for one in &advice {
            show_advice(&mut reply, one);
        }
        reply.take()
    }

    /// Without an upstream there is no L1: what can be said is said of keys alone.
    fn figures_embedded(&self) -> Figures {
        let (scope, insight) = (self.seen_scope(), &self.shared.insight);
        let (hot, hot_total) = insight.hot(scope, HOT_SEEN_MAX, self.shared.clock.now());
        Figures { hot, hot_total, big: insight.big(scope, HOT_SEEN_MAX), ..Figures::default() }
    }

    async fn figures(&self, scope: &Scope) -> Figures {
        let partition = scope.link.partition();
        let (l1, metrics) = (partition.store(), &self.shared.metrics);
        let (curve, curve_reads) = curve(l1);
        Figures {
            l1_bytes: l1.bytes(),
            l1_bytes_max: l1.settings().size_bytes_max,
            l1_evictions: l1.evictions(),
            curve,
            curve_reads,
            misses: metrics.sum(|c| &c.misses),
            expired: l1.removed(Cause::TtlExpired),
            entries: self.entries(partition),
            entry_bytes_max: l1.settings().entry_bytes_max as u64,
            too_big: metrics.passed(Passed::TooBig),
            tracking: tracking(scope).await,
            ..self.figures_embedded()
        }
    }

    fn entries(&self, partition: &Partition) -> Entries {
        let (now, settles) = (self.shared.clock.now(), self.shared.settings().insight.advise_after_ms);
        let mut seen = Entries::default();
        let mut left_ms = 0;
        for facts in partition.some_facts(ENTRIES_SEEN_MAX) {
            let age = now.saturating_since(facts.filled_at);
            if age < settles {
                continue;
            }
            let is_unread = facts.hits == 0;
            seen.settled += 1;
            seen.settled_bytes += facts.bytes;
            seen.unread += u64::from(is_unread);
            seen.unread_bytes += if is_unread { facts.bytes } else { 0 };
            let Some(deadline) = facts.deadline else { continue };
            let left = deadline.saturating_since(now);
            seen.mortal += 1;
            if is_unread && left > age.saturating_mul(IDLE_FACTOR as u32) {
                seen.idle += 1;
                left_ms += left.as_millis() as u64;
            }
        }
        seen.idle_left_ms = left_ms / seen.idle.max(1);
        seen
    }
}

/// Miss ratios at the present size and at larger ones. The curve knows keys; how many fit follows from their mean size.
fn curve(l1: &L1) -> (Vec<(u64, f64)>, u64) {
    let (bytes_max, entries) = (l1.settings().size_bytes_max as f64, l1.entries() as f64);
    if entries == 0.0 {
        return (Vec::new(), 0);
    }
    let mean = l1.bytes() as f64 / entries;
    let keys = GROWTHS.map(|growth| bytes_max * growth / mean);
    let Some(curve) = l1.insight().curve(&keys) else { return (Vec::new(), 0) };
    let sizes = GROWTHS.map(|growth| (bytes_max * growth) as u64);
    (sizes.into_iter().zip(curve.miss_ratios).collect(), curve.counted)
}

/// Keys that the upstream tracks and the most that it would; `None` if it does not tell this user.
async fn tracking(scope: &Scope) -> Option<(u64, u64)> {
    let mut errand = Errand::default();
    let info = OwnedArgs::new(["INFO", "stats"]);
    let info = errand.call(&scope.link, &[(OpKind::Read, &info)]).await.ok()?;
    let keys = number_in(&info, "tracking_total_keys:")?;
    let get = OwnedArgs::new(["CONFIG", "GET", "tracking-table-max-keys"]);
    let reply = errand.call(&scope.link, &[(OpKind::Read, &get)]).await.ok()?;
    let mut cursor = Cursor::new(&reply);
    cursor.next_count().filter(|count| *count == 2)?;
    cursor.next_bytes()?;
    let max = std::str::from_utf8(cursor.next_bytes()?).ok()?.parse().ok()?;
    Some((keys, max))
}

fn number_in(info: &[u8], name: &str) -> Option<u64> {
    let Some(Item::Bulk(text)) = Cursor::new(info).next() else { return None };
    let text = std::str::from_utf8(text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

fn show_hot(reply: &mut Reply, key: &HotKey, total: f64) {
    let share = if total > 0.0 { ((key.rate - key.error) / total).clamp(0.0, 1.0) } else { 0.0 };
    reply.map(7).bulk("key").bytes(&key.key);
    reply.bulk("per_second").double(rounded(key.rate)).bulk("error").double(rounded(key.error));
    reply.bulk("misses_per_second").double(rounded(key.misses));
    reply.bulk("writes_per_second").double(rounded(key.writes));
    reply.bulk("changes_per_second").double(rounded(key.changes));
    reply.bulk("share").double(rounded(share));
}

fn show_advice(reply: &mut Reply, advice: &Advice) {
    reply.map(4 + usize::from(advice.key.is_some()));
    reply.bulk("rule").bulk(advice.rule);
    if let Some(key) = &advice.key {
        reply.bulk("key").bytes(key);
    }
    reply.bulk("advice").bulk(&advice.text).bulk("setting").bulk(advice.setting);
    reply.bulk("figures").map(advice.figures.len());
    for (name, figure) in &advice.figures {
        reply.bulk(name).double(rounded(*figure));
    }
}
