//! CORE: recommendations, each a pure function over an immutable snapshot of figures.
//!
//! A rule is silent unless enough was seen; its thresholds are the constants below. What it says names the figures that it
//! rests on and the setting (or the habit of the application) that would change them.

use super::sizes::BigKey;
use super::sketch::HotKey;

/// Everything that rules look at, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Bytes in L1, and its limit.
    pub l1_bytes: u64,
    /// `l1.size_bytes_max`.
    pub l1_bytes_max: u64,
    /// Entries that had to go for others.
    pub l1_evictions: u64,
    /// Miss ratios of the sampled simulation at sizes in bytes, the present size first, then growing.
    pub curve: Vec<(u64, f64)>,
    /// Reads that the curve rests on.
    pub curve_reads: u64,
    /// Reads that L1 did not answer.
    pub misses: u64,
    /// Entries whose time was over before they were changed or had to go.
    pub expired: u64,
    /// What a look at a part of the entries of the caller's scope has shown.
    pub entries: Entries,
    /// The caller's keys that are used most, the first first.
    pub hot: Vec<HotKey>,
    /// The rate of all keys of the caller.
    pub hot_total: f64,
    /// The caller's largest keys, the largest first.
    pub big: Vec<BigKey>,
    /// `l1.entry_bytes_max`.
    pub entry_bytes_max: u64,
    /// Reads that passed L1 by because the reply is known to be too large.
    pub too_big: u64,
    /// Keys that the upstream tracks, and the most that it would; `None` if it does not say.
    pub tracking: Option<(u64, u64)>,
}

/// What a look at entries has shown. *Settled* are those that have been there for `insight.advise_after_ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Entries {
    /// Settled entries.
    pub settled: u64,
    /// Bytes of them.
    pub settled_bytes: u64,
    /// Settled entries that were read once, when they came, and never again.
    pub unread: u64,
    /// Bytes of them.
    pub unread_bytes: u64,
    /// Settled entries with an expiry time.
    pub mortal: u64,
    /// Of these, those that were never read again and have more than [`IDLE_FACTOR`] times their age before them.
    pub idle: u64,
    /// The mean time that those have left, in milliseconds.
    pub idle_left_ms: u64,
}

/// One recommendation.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    /// The rule, in kebab case.
    pub rule: &'static str,
    /// What was seen and what would change it, in one sentence.
    pub text: String,
    /// The setting to change, or whose it is to change something.
    pub setting: &'static str,
    /// The figures that it rests on.
    pub figures: Vec<(&'static str, f64)>,
    /// The key that it is about.
    pub key: Option<Vec<u8>>,
}

/// Fewer entries, misses or reads than this are no reason for anything.
pub const SEEN_MIN: u64 = 50;
/// The curve is trusted from so many sampled reads on.
pub const CURVE_READS_MIN: u64 = 1000;
/// A larger L1 is worth it if it saves this part of the upstream's reads.
pub const SAVED_MIN: f64 = 0.05;
/// L1 counts as full from here on.
const FULL: f64 = 0.9;
/// The smallest growth that brings this part of what the largest would.
const ENOUGH: f64 = 0.6;
/// Rates below are no load, in events a second.
pub const RATE_MIN: f64 = 5.0;
/// A key is hot alone from this share of all on, at [`HOT_RATE_MIN`] a second.
pub const HOT_SHARE: f64 = 0.2;
/// See [`HOT_SHARE`].
pub const HOT_RATE_MIN: f64 = 100.0;
/// Values are big from this size on.
pub const BIG_BYTES: u64 = 64 * 1024;
/// The share of entries from which on a habit shows in them.
const HABIT: f64 = 0.5;
/// The share of misses that came of expiry from which on times are too short.
const EXPIRED_SHARE: f64 = 0.3;
/// See [`Entries::idle`].
pub const IDLE_FACTOR: u64 = 10;
/// The tracking table is too small from this part of its limit on.
const TRACKED: f64 = 0.9;

/// A rule.
pub type Rule = fn(&Figures) -> Vec<Advice>;

/// All rules, in the order in which their advice is shown.
pub const RULES: &[Rule] = &[
    l1_too_small,
    tracking_table_too_small,
    changes_more_than_reads,
    ttl_too_short,
    ttl_too_long,
    big_values,
    scans,
    hot_single_key,
];

/// What all rules have to say.
pub fn advise(figures: &Figures) -> Vec<Advice> {
    RULES.iter().flat_map(|rule| rule(figures)).collect()
}

/// L1 is full, and the curve says that more of it would save reads.
fn l1_too_small(of: &Figures) -> Vec<Advice> {
    let Some((&(now, present), larger)) = of.curve.split_first() else { return Vec::new() };
    let is_full = of.l1_evictions > 0 && of.l1_bytes as f64 >= FULL * of.l1_bytes_max as f64;
    if !is_full || of.curve_reads < CURVE_READS_MIN || present <= 0.0 {
        return Vec::new();
    }
    let saved = |ratio: f64| (present - ratio) / present;
    let most = larger.iter().map(|(_, ratio)| saved(*ratio)).fold(0.0, f64::max);
    let enough = larger.iter().find(|(_, ratio)| saved(*ratio) >= ENOUGH * most);
    let Some(&(bytes, ratio)) = enough.filter(|_| most >= SAVED_MIN) else { return Vec::new() };
    let more = bytes.saturating_sub(now);
    vec![Advice {
        rule: "l1-too-small",
        text: format!("{} more would save {:.0}% of upstream reads", in_units(more), saved(ratio) * 100.0),
        setting: "l1.size_bytes_max",
        figures: vec![
            ("size_bytes", now as f64),
            ("suggested_bytes", bytes as f64),
            ("miss_ratio", present),
            ("suggested_miss_ratio", ratio),
            ("evictions", of.l1_evictions as f64),
            ("sampled_reads", of.curve_reads as f64),
        ],
        key: None,
    }]
}

/// The upstream forgets keys that it tracks, and tells us that they have changed.
fn tracking_table_too_small(of: &Figures) -> Vec<Advice> {
    let Some((keys, max)) = of.tracking.filter(|(keys, max)| *max > 0 && *keys as f64 >= TRACKED * *max as f64) else {
        return Vec::new();
    };
    vec![Advice {
        rule: "tracking-table-too-small",
        text: format!(
            "the upstream tracks {keys} of at most {max} keys: beyond that it invalidates keys that have not changed"
        ),
        setting: "tracking-table-max-keys (upstream)",
        figures: vec![("tracked_keys", keys as f64), ("tracked_keys_max", max as f64)],
        key: None,
    }]
}

/// Keys that are thrown out of L1 by changes at least as often as L1 answers them.
fn changes_more_than_reads(of: &Figures) -> Vec<Advice> {
    let hits = |hot: &HotKey| (hot.rate - hot.misses - hot.writes).max(0.0);
    let is_so = |hot: &&HotKey| hot.changes >= RATE_MIN && hot.changes >= hits(hot) && hot.error * 2.0 <= hot.rate;
    let advice = |hot: &HotKey| Advice {
        rule: "changes-more-than-reads",
        text: format!(
            "{:.1} changes a second against {:.1} hits: keeping it in L1 costs more than it saves",
            hot.changes,
            hits(hot)
        ),
        setting: "application: read it with CACHE READ BYPASS",
        figures: vec![("changes_per_second", hot.changes), ("hits_per_second", hits(hot))],
        key: Some(hot.key.clone()),
    };
    of.hot.iter().filter(is_so).take(KEYS_SHOWN_MAX).map(advice).collect()
}

/// Keys that a rule names at most.
const KEYS_SHOWN_MAX: usize = 5;

/// Many misses come of times that were over although nothing had changed.
fn ttl_too_short(of: &Figures) -> Vec<Advice> {
    let share = of.expired as f64 / of.misses.max(1) as f64;
    if of.expired < SEEN_MIN || share < EXPIRED_SHARE {
        return Vec::new();
    }
    vec![Advice {
        rule: "ttl-too-short",
        text: format!("{:.0} entries ended by their time for every 100 misses, unchanged until then", share * 100.0),
        setting: "application: longer expiry times",
        figures: vec![("expired", of.expired as f64), ("misses", of.misses as f64)],
        key: None,
    }]
}

/// Keys that live on for long after their last read.
fn ttl_too_long(of: &Figures) -> Vec<Advice> {
    let share = of.entries.idle as f64 / of.entries.mortal.max(1) as f64;
    if of.entries.mortal < SEEN_MIN || share < HABIT {
        return Vec::new();
    }
    let left_s = of.entries.idle_left_ms as f64 / 1000.0;
    vec![Advice {
        rule: "ttl-too-long",
        text: format!(
            "{:.0}% of the keys with an expiry time were read once and live on for {left_s:.0} s",
            share * 100.0
        ),
        setting: "application: shorter expiry times",
        figures: vec![("keys", of.entries.mortal as f64), ("idle", of.entries.idle as f64), ("left_seconds", left_s)],
        key: None,
    }]
}

/// Values of which each takes the place of many.
fn big_values(of: &Figures) -> Vec<Advice> {
    let Some(largest) = of.big.first().filter(|big| big.bytes >= BIG_BYTES) else { return Vec::new() };
    let count = of.big.iter().filter(|big| big.bytes >= BIG_BYTES).count();
    vec![Advice {
        rule: "big-values",
        text: format!(
            "replies of {} and more: {count} keys, the largest of {}; {} reads could not be kept",
            in_units(BIG_BYTES),
            in_units(largest.bytes),
            of.too_big
        ),
        setting: "l1.entry_bytes_max",
        figures: vec![
            ("keys", count as f64),
            ("largest_bytes", largest.bytes as f64),
            ("entry_bytes_max", of.entry_bytes_max as f64),
            ("reads_too_big", of.too_big as f64),
        ],
        key: Some(largest.key.clone()),
    }]
}

/// Much of L1 is filled by reads that are not repeated.
fn scans(of: &Figures) -> Vec<Advice> {
    let share = of.entries.unread_bytes as f64 / of.entries.settled_bytes.max(1) as f64;
    if of.entries.settled < SEEN_MIN || share < HABIT {
        return Vec::new();
    }
    vec![Advice {
        rule: "scans",
        text: format!("{:.0}% of the bytes in L1 belong to keys that were read once and not again", share * 100.0),
        setting: "application: CACHE READ BYPASS for jobs that read everything once",
        figures: vec![
            ("entries", of.entries.settled as f64),
            ("read_once", of.entries.unread as f64),
            ("share_of_bytes", share),
        ],
        key: None,
    }]
}

/// One key that is a large part of everything.
fn hot_single_key(of: &Figures) -> Vec<Advice> {
    let Some(hot) = of.hot.first() else { return Vec::new() };
    let sure = hot.rate - hot.error;
    let share = sure / of.hot_total.max(sure).max(f64::MIN_POSITIVE);
    if sure < HOT_RATE_MIN || share < HOT_SHARE {
        return Vec::new();
    }
    vec![Advice {
        rule: "hot-single-key",
        text: format!("one key has {:.0}% of all requests, {sure:.0} a second", share * 100.0),
        setting: "application: CLIENT TRACKING, or copies under several names",
        figures: vec![("requests_per_second", sure), ("share", share)],
        key: Some(hot.key.clone()),
    }]
}

/// Bytes for people.
fn in_units(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{} KB", bytes / 1024),
        _ => format!("{} MB", bytes / 1_048_576),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ScopeId;
    use super::*;

    const MB: u64 = 1 << 20;

    fn rules_of(figures: &Figures) -> Vec<&'static str> {
        advise(figures).into_iter().map(|advice| advice.rule).collect()
    }

    fn hot(rate: f64, error: f64, misses: f64, writes: f64, changes: f64) -> HotKey {
        HotKey { key: b"k".to_vec(), rate, error, misses, writes, changes }
    }

    #[test]
    fn nothing_seen_is_nothing_said() {
        assert_eq!(advise(&Figures::default()), []);
    }

    #[test]
    fn l1_is_too_small_only_if_more_of_it_would_help() {
        let small = Figures {
            l1_bytes: 255 * MB,
            l1_bytes_max: 256 * MB,
            l1_evictions: 10,
            curve: vec![(256 * MB, 0.50), (320 * MB, 0.44), (512 * MB, 0.42)],
            curve_reads: CURVE_READS_MIN,
            ..Figures::default()
        };
        let advice = advise(&small);
        assert_eq!(advice[0].text, "64 MB more would save 12% of upstream reads");
        assert_eq!((advice[0].setting, advice.len()), ("l1.size_bytes_max", 1));
        for silent in [
            Figures { l1_evictions: 0, ..small.clone() },
            Figures { l1_bytes: 100 * MB, ..small.clone() },
            Figures { curve_reads: CURVE_READS_MIN - 1, ..small.clone() },
            Figures { curve: vec![(256 * MB, 0.50), (512 * MB, 0.48)], ..small.clone() },
            Figures { curve: vec![(256 * MB, 0.0), (512 * MB, 0.0)], ..small },
        ] {
            assert_eq!(rules_of(&silent), [""; 0]);
        }
    }

    #[test]
    fn the_tracking_table_is_too_small_near_its_limit() {
        let of = |tracking| rules_of(&Figures { tracking, ..Figures::default() });
        assert_eq!(of(Some((900, 1000))), ["tracking-table-too-small"]);
        assert_eq!(of(Some((899, 1000))), [""; 0]);
        assert_eq!(of(Some((5000, 0))), [""; 0], "0 is no limit");
    }

    #[test]
    fn keys_change_more_than_they_are_read() {
        let of = |hot| rules_of(&Figures { hot: vec![hot], hot_total: 1e6, ..Figures::default() });
        assert_eq!(of(hot(30.0, 0.0, 10.0, 10.0, 10.0)), ["changes-more-than-reads"]);
        assert_eq!(of(hot(31.0, 0.0, 10.0, 10.0, 10.0)), [""; 0], "more hits than changes");
        assert_eq!(of(hot(9.0, 0.0, 4.0, 4.0, 4.0)), [""; 0], "too rare");
        assert_eq!(of(hot(30.0, 16.0, 10.0, 10.0, 10.0)), [""; 0], "too uncertain");
    }

    #[test]
    fn times_are_too_short_or_too_long() {
        let short = |expired, misses| rules_of(&Figures { expired, misses, ..Figures::default() });
        assert_eq!(short(SEEN_MIN, 100), ["ttl-too-short"]);
        assert_eq!(short(SEEN_MIN, 1000), [""; 0]);
        assert_eq!(short(SEEN_MIN - 1, 60), [""; 0]);
        let long = |mortal, idle| {
            let entries = Entries { mortal, idle, idle_left_ms: 60_000, ..Entries::default() };
            rules_of(&Figures { entries, ..Figures::default() })
        };
        assert_eq!(long(100, 50), ["ttl-too-long"]);
        assert_eq!(long(100, 49), [""; 0]);
        assert_eq!(long(SEEN_MIN - 1, 40), [""; 0]);
    }

    #[test]
    fn big_values_scans_and_hot_keys() {
        let big = |bytes| {
            let big = vec![BigKey { scope: ScopeId(1), key: b"k".to_vec(), bytes }];
            rules_of(&Figures { big, ..Figures::default() })
        };
        assert_eq!(big(BIG_BYTES), ["big-values"]);
        assert_eq!(big(BIG_BYTES - 1), [""; 0]);
        let scan = |settled, unread_bytes| {
            let entries = Entries { settled, settled_bytes: 1000, unread: 1, unread_bytes, ..Entries::default() };
            rules_of(&Figures { entries, ..Figures::default() })
        };
        assert_eq!(scan(SEEN_MIN, 500), ["scans"]);
        assert_eq!(scan(SEEN_MIN, 499), [""; 0]);
        assert_eq!(scan(SEEN_MIN - 1, 900), [""; 0]);
        let single = |key, hot_total| rules_of(&Figures { hot: vec![key], hot_total, ..Figures::default() });
        assert_eq!(single(hot(150.0, 0.0, 0.0, 0.0, 0.0), 500.0), ["hot-single-key"]);
        assert_eq!(single(hot(150.0, 60.0, 0.0, 0.0, 0.0), 500.0), [""; 0], "what is sure of it is too little");
        assert_eq!(single(hot(150.0, 0.0, 0.0, 0.0, 0.0), 5000.0), [""; 0]);
    }
}
