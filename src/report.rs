//! What Larder says about itself: the figures behind the `# Larder` section of INFO, `CACHE INFO` and `CACHE STATS`.
//!
//! Figures are gathered in one place, by section. Those that only grow are *counters*: `CACHE RESETSTATS` lets them begin
//! anew. Each counter has one writer that knows nothing of this, so a reset changes no counter but notes where it
//! stands, and what is shown is the difference.

use crate::insight::latency::{self, Timed};
use crate::l1::Cause;
use crate::metrics::Passed;
use crate::server::{Backend, Shared};
use crate::upstream::breaker::{Forced, State};
use crate::upstream::scope::Upstream;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Figure {
    /// Grows from the last reset on.
    Counter(u64),
    /// As it is now.
    Gauge(u64),
    /// A share between 0 and 1.
    Share(f64),
    /// A mean.
    Mean(f64),
    /// A word.
    Text(String),
}

/// Figures that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// Name and value of each; names are unique over all sections.
    pub figures: Vec<(String, Figure)>,
}

/// Where counters stood when they were reset last, by name; nowhere is 0.
#[derive(Debug, Default)]
pub struct Baseline(Mutex<HashMap<String, u64>>);

/// Gathers sections.
struct Gatherer<'a> {
    sections: Vec<Section>,
    baseline: &'a HashMap<String, u64>,
}

// === impl Shared ===

impl Shared {
    /// The upstream's INFO as it is told to clients: `connected_clients` are those of Larder.
    pub fn with_own_clients(&self, theirs: &[u8]) -> Vec<u8> {
        let clients = self.clients.all();
        let figures = OwnClients {
            connected: clients.len(),
            tracking: clients.iter().filter(|client| client.tracking.is_on()).count(),
            held: self.pauses.waiting(),
        };
        with_own_clients(theirs, figures)
    }

    /// The `# Larder` section of INFO, lines ending as INFO's do.
    pub fn info_section(&self) -> String {
        let mut text = String::from("# Larder\r\n");
        for (name, figure) in self.figures().into_iter().flat_map(|section| section.figures) {
            text.push_str(&format!("larder_{name}:{figure}\r\n"));
        }
        text
    }

    /// All figures, by section.
    pub fn figures(&self) -> Vec<Section> {
        let baseline = self.baseline.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.gather(&baseline)
    }

    /// From now on counters begin anew.
    pub fn reset_counters(&self) {
        let standing = self.gather(&HashMap::new()).into_iter().flat_map(|section| section.figures);
        let standing = standing.filter_map(|(name, figure)| match figure {
            Figure::Counter(n) => Some((name, n)),
            _ => None,
        });
        self.metrics.reset_latencies();
        *self.baseline.0.lock().unwrap_or_else(PoisonError::into_inner) = standing.collect();
    }

    fn gather(&self, baseline: &HashMap<String, u64>) -> Vec<Section> {
        let mut out = Gatherer { sections: Vec::new(), baseline };
        let metrics = &self.metrics;
        out.section("Server");
        out.text("version", env!("CARGO_PKG_VERSION"));
        out.gauge("uptime_in_seconds", self.clock.now().as_micros() / 1_000_000);
        out.section("Clients");
        out.gauge("connected_clients", self.clients.len() as u64);
        out.counter("connections_received", metrics.sum(|c| &c.accepted));
        out.counter("connections_refused", metrics.sum(|c| &c.refused));
        out.gauge("paused_clients", self.pauses.waiting() as u64);
        let closed_by_others = self.killed_as_slow() + self.monitors.closed();
        out.counter("clients_closed_output_hard", metrics.sum(|c| &c.closed_output_hard) + closed_by_others);
        out.counter("clients_closed_output_soft", metrics.sum(|c| &c.closed_output_soft));
        out.counter("clients_closed_idle", metrics.sum(|c| &c.closed_idle));
        out.counter("clients_closed_protocol", metrics.sum(|c| &c.closed_protocol));
        let of_workers: Vec<String> = self.workers.iter().map(|worker| worker.clients().to_string()).collect();
        out.text("clients_of_workers", &of_workers.join(","));
        out.section("Commands");
        out.counter("commands_processed", metrics.sum(|c| &c.commands));
        out.counter("writes", metrics.sum(|c| &c.writes));
        out.counter("exclusive", metrics.sum(|c| &c.exclusive));
        out.section("L1");
        let hits = out.counter("l1_hits", metrics.sum(|c| &c.hits));
        let misses = out.counter("l1_misses", metrics.sum(|c| &c.misses));
        out.figure("l1_hit_rate", Figure::Share(share(hits, hits + misses)));
        out.counter("l1_redone", metrics.sum(|c| &c.redone));
        out.counter("upstream_commands_saved", metrics.sum(|c| &c.hits).saturating_sub(metrics.sum(|c| &c.redone)));
        match &self.backend {
            Backend::Upstream(upstream) => gather_upstream(&mut out, self, upstream),
            Backend::Embedded(embedded) => {
                let stats = embedded.stats();
                out.section("Store");
                out.gauge("store_keys", stats.databases.iter().map(|d| d.keys).sum());
                out.gauge("store_bytes", stats.bytes_used);
                out.gauge("store_bytes_max", stats.bytes_max);
                out.counter("store_hits", stats.hits);
                out.counter("store_misses", stats.misses);
                out.counter("store_expired", stats.expired);
                out.counter("store_evicted", stats.evicted);
            }
        }
        gather_latencies(&mut out, self);
        out.section("Jobs");
        out.gauge("jobs_running", self.jobs.running() as u64);
        out.section("Buffers");
        out.gauge("buffered_bytes", self.buffered.bytes() as u64);
        out.gauge("buffered_bytes_max", self.buffered.bytes_max() as u64);
        out.counter("buffered_refused", self.buffered.refused());
        out.counter("buffered_clients_closed", self.buffered.closed());
        out.sections
    }
}

/// What INFO tells of clients.
#[derive(Clone, Copy)]
struct OwnClients {
    connected: usize,
    tracking: usize,
    /// Those whom Larder holds in a pause: blocked, like those whom the upstream holds.
    held: usize,
}

/// The upstream's INFO, with Larder's clients in the place of Larder's own connections.
fn with_own_clients(theirs: &[u8], own: OwnClients) -> Vec<u8> {
    let OwnClients { connected, tracking, held } = own;
    let mut text = Vec::with_capacity(theirs.len());
    for line in theirs.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b"connected_clients:") {
            text.extend_from_slice(format!("connected_clients:{connected}\r\n").as_bytes());
        } else if let Some(blocked) = number_after(b"blocked_clients:", line) {
            text.extend_from_slice(format!("blocked_clients:{}\r\n", blocked.saturating_add(held)).as_bytes());
        } else if line.starts_with(b"tracking_clients:") {
            text.extend_from_slice(format!("tracking_clients:{tracking}\r\n").as_bytes());
        } else {
            text.extend_from_slice(line);
        }
    }
    text
}

fn number_after(name: &[u8], line: &[u8]) -> Option<usize> {
    std::str::from_utf8(line.strip_prefix(name)?.trim_ascii()).ok()?.parse().ok()
}

/// Means and percentiles of what clients waited for, in microseconds, since the last reset.
fn gather_latencies(out: &mut Gatherer<'_>, shared: &Shared) {
    out.section("Latency");
    for what in Timed::ALL {
        let (label, shown) = (what.label(), latency::summary(&shared.metrics.latencies(what)));
        out.gauge(&format!("latency_{label}_count"), shown.count);
        out.figure(&format!("latency_{label}_us_mean"), Figure::Mean(shown.mean));
        for ((name, _), value) in Timed::PERCENTILES.iter().zip(shown.percentiles) {
            out.gauge(&format!("latency_{label}_us_{name}"), value);
        }
    }
}

fn gather_upstream(out: &mut Gatherer<'_>, shared: &Shared, upstream: &Upstream) {
    let l1 = upstream.l1();
    out.gauge("l1_entries", l1.entries() as u64);
    out.gauge("l1_bytes", l1.bytes());
    out.gauge("l1_bytes_max", l1.settings().size_bytes_max);
    out.counter("l1_evictions", l1.evictions());
    let (compressed, saved) = l1.compressed();
    out.counter("l1_compressed", compressed);
    out.counter("l1_compressed_bytes_saved", saved);
    out.section("L2");
    let hits = out.counter("l2_hits", shared.metrics.sum(|c| &c.l2_hits));
    let misses = out.counter("l2_misses", shared.metrics.sum(|c| &c.l2_misses));
    out.figure("l2_hit_rate", Figure::Share(share(hits, hits + misses)));
    out.section("Passed");
    for reason in Passed::all() {
        out.counter(&format!("l1_passed_{}", reason.label()), shared.metrics.passed(reason));
    }
    out.counter("l1_passed_not_admitted", upstream.link_counts().not_admitted);
    out.section("Removed");
    for cause in Cause::ALL {
        out.counter(&format!("l1_removed_{}", cause.label()), l1.removed(cause));
    }
    out.section("Stale");
    out.counter("stale_hits_feed_lost", shared.metrics.sum(|c| &c.stale));
    out.counter("stale_hits_soft", shared.metrics.sum(|c| &c.soft));
    let soft: usize = upstream.scopes().iter().map(|scope| scope.link.partition().soft_keys()).sum();
    out.gauge("stale_soft_keys", soft as u64);
    let now = shared.clock.now();
    let left: Vec<_> = upstream.scopes().iter().filter_map(|scope| scope.link.partition().left_since()).collect();
    out.gauge("stale_scopes", left.len() as u64);
    let oldest = left.into_iter().min().map_or(0, |since| now.saturating_since(since).as_millis() as u64);
    out.gauge("stale_age_ms", oldest);
    out.section("Upstream");
    out.text("upstream", &upstream.node().endpoint.to_string());
    let scopes = upstream.scopes();
    out.gauge("scopes", scopes.len() as u64);
    out.gauge("links_up", scopes.iter().filter(|scope| scope.link.is_up()).count() as u64);
    let counts = scopes.iter().map(|scope| scope.pools.counts());
    let (used, idle) = counts.fold((0, 0), |(used, idle), (u, i)| (used + u64::from(u), idle + u64::from(i)));
    out.gauge("pool_in_use", used);
    out.gauge("pool_idle", idle);
    out.section("Breaker");
    let breaker = upstream.node().snapshot();
    out.text("breaker_state", breaker_word(&breaker.state));
    out.counter("breaker_transitions", breaker.transitions);
    out.counter("breaker_refused", upstream.node().requests_refused());
    out.section("Link");
    let counts = upstream.link_counts();
    out.counter("link_fills", counts.fills);
    out.counter("link_fills_outrun", counts.fills_outrun);
    out.counter("link_joined", counts.joined);
    out.counter("link_dropped_by_push", counts.dropped_by_push);
    out.counter("link_dropped_by_write", counts.dropped_by_write);
    out.counter("link_emptied", counts.emptied);
    out.counter("link_fences", counts.fences);
    out.counter("link_timeouts", counts.timeouts);
    out.counter("link_refreshes", counts.refreshes);
}

/// The state of a breaker in one word.
pub fn breaker_word(state: &State) -> &'static str {
    match state {
        State::Closed => "closed",
        State::Open { .. } => "open",
        State::HalfOpen { .. } => "half-open",
        State::Forced(Forced::Open) => "forced-open",
        State::Forced(Forced::Closed) => "forced-closed",
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

// === impl Gatherer ===

impl Gatherer<'_> {
    fn section(&mut self, name: &'static str) {
        self.sections.push(Section { name, figures: Vec::new() });
    }

    fn figure(&mut self, name: &str, figure: Figure) {
        if let Some(section) = self.sections.last_mut() {
            section.figures.push((name.to_owned(), figure));
        }
    }

    /// What a counter shows.
    fn counter(&mut self, name: &str, stands_at: u64) -> u64 {
        let began_at = self.baseline.get(name).copied().unwrap_or(0);
        let shown = stands_at.saturating_sub(began_at);
        self.figure(name, Figure::Counter(shown));
        shown
    }

    fn gauge(&mut self, name: &str, value: u64) {
        self.figure(name, Figure::Gauge(value));
    }

    fn text(&mut self, name: &str, text: &str) {
        self.figure(name, Figure::Text(text.to_owned()));
    }
}

// === impl Figure ===

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counter(n) | Self::Gauge(n) => write!(f, "{n}"),
            Self::Share(share) => write!(f, "{share:.4}"),
            Self::Mean(mean) => write!(f, "{mean:.1}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_counters_from_where_they_were_reset() {
        let baseline = HashMap::from([("seen".to_owned(), 40)]);
        let mut out = Gatherer { sections: Vec::new(), baseline: &baseline };
        out.section("A");
        assert_eq!((out.counter("seen", 42), out.counter("new", 7), out.counter("seen", 39)), (2, 7, 0));
        out.gauge("seen_now", 42);
        assert_eq!(out.sections[0].figures[3], ("seen_now".to_owned(), Figure::Gauge(42)));
        assert_eq!(Figure::Share(share(1, 3)).to_string(), "0.3333");
        assert_eq!(share(0, 0), 0.0);
    }

    #[test]
    fn info_tells_of_larders_clients_and_leaves_the_rest_alone() {
        let theirs =
            b"# Clients\r\nconnected_clients:7\r\nblocked_clients:2\r\ntracking_clients:5\r\n\r\n# Memory\r\nx:1\r\n";
        let ours =
            b"# Clients\r\nconnected_clients:12\r\nblocked_clients:6\r\ntracking_clients:3\r\n\r\n# Memory\r\nx:1\r\n";
        let own = OwnClients { connected: 12, tracking: 3, held: 4 };
        assert_eq!(with_own_clients(theirs, own), ours);
        assert_eq!(with_own_clients(b"no lines", own), b"no lines");
        assert_eq!(with_own_clients(b"blocked_clients:x", own), b"blocked_clients:x");
    }
}
