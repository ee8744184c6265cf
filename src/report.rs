//! What Larder says about itself: the `# Larder` section of INFO.

use crate::metrics::Passed;
use crate::server::{Backend, Shared};
use std::fmt::Write;

// === impl Shared ===

impl Shared {
    /// The upstream's INFO as it is told to clients: `connected_clients` are those of Larder.
    pub fn with_own_clients(&self, theirs: &[u8]) -> Vec<u8> {
        with_own_clients(theirs, self.clients.len())
    }

    /// The `# Larder` section of INFO, lines ending as INFO's do.
    pub fn info_section(&self) -> String {
        let metrics = &self.metrics;
        let mut text = String::from("# Larder\r\n");
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let _ = write!(text, "{name}:{value}\r\n");
        };
        let (hits, misses) = (metrics.sum(|c| &c.hits), metrics.sum(|c| &c.misses));
        let looked = hits + misses;
        line("larder_version", &env!("CARGO_PKG_VERSION"));
        line("larder_uptime_in_seconds", &(self.clock.now().as_micros() / 1_000_000));
        line("larder_connected_clients", &self.clients.len());
        line("larder_connections_received", &metrics.sum(|c| &c.accepted));
        line("larder_connections_refused", &metrics.sum(|c| &c.refused));
        line("larder_commands_processed", &metrics.sum(|c| &c.commands));
        line("larder_l1_hits", &hits);
        line("larder_l1_misses", &misses);
        line("larder_l1_hit_rate", &format!("{:.4}", if looked == 0 { 0.0 } else { hits as f64 / looked as f64 }));
        line("larder_l1_redone", &metrics.sum(|c| &c.redone));
        line("larder_writes", &metrics.sum(|c| &c.writes));
        line("larder_exclusive", &metrics.sum(|c| &c.exclusive));
        for reason in Passed::all() {
            line(&format!("larder_l1_passed_{}", reason.label()), &metrics.passed(reason));
        }
        if let Backend::Upstream(upstream) = &self.backend {
            let l1 = upstream.l1();
            line("larder_l1_entries", &l1.entries());
            line("larder_l1_bytes", &l1.bytes());
            line("larder_l1_bytes_max", &l1.settings().size_bytes_max);
            line("larder_l1_evictions", &l1.evictions());
            let breaker = upstream.node().snapshot();
            line("larder_upstream", &upstream.node().endpoint);
            line("larder_breaker_state", &breaker_word(&breaker.state));
            line("larder_breaker_transitions", &breaker.transitions);
            let scopes = upstream.scopes();
            line("larder_scopes", &scopes.len());
            let (mut used, mut idle) = (0, 0);
            for scope in &scopes {
                let (u, i) = scope.pools.counts();
                (used, idle) = (used + u, idle + i);
            }
            line("larder_pool_in_use", &used);
            line("larder_pool_idle", &idle);
            let counts: Vec<_> = scopes.iter().map(|scope| scope.link.counts()).collect();
            line("larder_link_fills", &counts.iter().map(|c| c.fills).sum::<u64>());
            line("larder_link_fills_outrun", &counts.iter().map(|c| c.fills_outrun).sum::<u64>());
            line("larder_link_joined", &counts.iter().map(|c| c.joined).sum::<u64>());
            line("larder_link_dropped_by_push", &counts.iter().map(|c| c.dropped_by_push).sum::<u64>());
            line("larder_link_dropped_by_write", &counts.iter().map(|c| c.dropped_by_write).sum::<u64>());
            line("larder_link_emptied", &counts.iter().map(|c| c.emptied).sum::<u64>());
            line("larder_link_fences", &counts.iter().map(|c| c.fences).sum::<u64>());
            line("larder_link_timeouts", &counts.iter().map(|c| c.timeouts).sum::<u64>());
        }
        text
    }
}

/// The upstream's INFO, with Larder's clients in the place of Larder's own connections.
fn with_own_clients(theirs: &[u8], connected: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(theirs.len());
    for line in theirs.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b"connected_clients:") {
            text.extend_from_slice(format!("connected_clients:{connected}\r\n").as_bytes());
        } else {
            text.extend_from_slice(line);
        }
    }
    text
}

fn breaker_word(state: &crate::upstream::breaker::State) -> &'static str {
    use crate::upstream::breaker::{Forced, State};
    match state {
        State::Closed => "closed",
        State::Open { .. } => "open",
        State::HalfOpen { .. } => "half-open",
        State::Forced(Forced::Open) => "forced-open",
        State::Forced(Forced::Closed) => "forced-closed",
    }
}

#[cfg(test)]
mod tests {
    use super::with_own_clients;

    #[test]
    fn info_tells_of_larders_clients_and_leaves_the_rest_alone() {
        let theirs = b"# Clients\r\nconnected_clients:7\r\nmaxclients:10000\r\n\r\n# Memory\r\nx:1\r\n";
        let ours = b"# Clients\r\nconnected_clients:12\r\nmaxclients:10000\r\n\r\n# Memory\r\nx:1\r\n";
        assert_eq!(with_own_clients(theirs, 12), ours);
        assert_eq!(with_own_clients(b"no lines", 12), b"no lines");
    }
}
