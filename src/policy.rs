//! What an operator has laid down for keys by pattern: `[[policy]]` in the configuration.
//!
//! A list of rules, each a glob pattern and what holds for the keys that match it. The first rule that matches a key
//! decides, for all that it says; what it leaves open, and keys that no rule matches, have the general setting. At
//! present a rule can say how long a key's value may be answered during an outage, and when it is refreshed before its end.
//!
//! Where no rule and no general setting asks for a refresh, nothing here is asked for on the way of a request while the upstream
//! is there.

use larder_protocol::glob::{self, Case};
use std::time::Duration;

/// Most rules; a longer list stops the start.
pub const POLICIES_MAX: usize = 256;

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The glob pattern of the keys.
    pub keys: String,
    /// `stale_if_error_ms_max`: zero for never, `None` if the rule leaves it open.
    pub stale_if_error: Option<Duration>,
    /// `refresh_ahead`: 0 for never, `None` if the rule leaves it open.
    pub refresh_ahead: Option<f64>,
}

/// All rules, with the general settings behind them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    rules: Vec<Policy>,
    stale_if_error: Duration,
    stale_if_error_longest: Option<Duration>,
    refresh_ahead: f64,
    refreshes: bool,
}

// === impl Policies ===

impl Policies {
    /// `rules` in their order; `stale_if_error` and `refresh_ahead` are what holds where they say nothing, zero for never.
    pub fn new(rules: Vec<Policy>, stale_if_error: Duration, refresh_ahead: f64) -> Self {
        let longest = rules.iter().filter_map(|rule| rule.stale_if_error).fold(stale_if_error, Duration::max);
        let refreshes =
            refresh_ahead > 0.0 || rules.iter().any(|rule| rule.refresh_ahead.is_some_and(|part| part > 0.0));
        let stale_if_error_longest = (!longest.is_zero()).then_some(longest);
        Self { rules, stale_if_error, stale_if_error_longest, refresh_ahead, refreshes }
    }

    /// How long after the loss of the invalidation feed the value of `key` may still be answered; zero for not at all.
    pub fn stale_if_error(&self, key: &[u8]) -> Duration {
        self.rule_of(key).and_then(|rule| rule.stale_if_error).unwrap_or(self.stale_if_error)
    }

    /// The longest time that [`Policies::stale_if_error`] can come to; `None` if nothing is ever answered so.
    pub fn stale_if_error_longest(&self) -> Option<Duration> {
        self.stale_if_error_longest
    }

    /// The part of an entry's life after which a hit has it refreshed; 0 for never.
    pub fn refresh_ahead(&self, key: &[u8]) -> f64 {
        self.rule_of(key).and_then(|rule| rule.refresh_ahead).unwrap_or(self.refresh_ahead)
    }

    /// True if [`Policies::refresh_ahead`] can come to more than 0.
    pub fn refreshes(&self) -> bool {
        self.refreshes
    }

    fn rule_of(&self, key: &[u8]) -> Option<&Policy> {
        let matches = |rule: &&Policy| rule.keys == "*" || glob::matches(rule.keys.as_bytes(), key, Case::Sensitive);
        self.rules.iter().find(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(keys: &str, ms: Option<u64>) -> Policy {
        Policy { keys: keys.to_owned(), stale_if_error: ms.map(Duration::from_millis), refresh_ahead: None }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules =
            vec![rule("session:*", Some(0)), rule("open:*", None), rule("s*", Some(50)), rule("open:x", Some(9))];
        let policies = Policies::new(rules, Duration::from_millis(7), 0.0);
        let ms = |key: &[u8]| policies.stale_if_error(key).as_millis();
        assert_eq!([ms(b"session:1"), ms(b"s1"), ms(b"other"), ms(b"open:x"), ms(b"")], [0, 50, 7, 7, 7]);
        assert_eq!(policies.stale_if_error_longest(), Some(Duration::from_millis(50)));
        let all = Policies::new(vec![rule("*", Some(3))], Duration::ZERO, 0.0);
        assert_eq!(all.stale_if_error(b""), Duration::from_millis(3));
    }

    #[test]
    fn a_rule_may_say_when_keys_are_refreshed() {
        let refreshing = |keys: &str, part| Policy { refresh_ahead: Some(part), ..rule(keys, None) };
        let policies = Policies::new(vec![refreshing("cold:*", 0.0), refreshing("hot:*", 0.5)], Duration::ZERO, 0.8);
        let part = |key: &[u8]| policies.refresh_ahead(key);
        assert_eq!([part(b"cold:1"), part(b"hot:1"), part(b"other")], [0.0, 0.5, 0.8]);
        assert!(policies.refreshes());
        assert!(Policies::new(vec![refreshing("hot:*", 0.5)], Duration::ZERO, 0.0).refreshes());
        assert!(!Policies::new(vec![refreshing("hot:*", 0.0)], Duration::ZERO, 0.0).refreshes());
    }

    #[test]
    fn without_a_time_nothing_is_ever_answered() {
        assert_eq!(Policies::default().stale_if_error_longest(), None);
        assert_eq!(
            Policies::new(vec![rule("*", Some(0)), rule("a", None)], Duration::ZERO, 0.0).stale_if_error_longest(),
            None
        );
        assert_eq!(Policies::default().stale_if_error(b"k"), Duration::ZERO);
    }
}
