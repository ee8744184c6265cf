//! Every transition of the breaker by itself, its texts, its settings, and the reading of error replies.

use super::*;

const MS: Duration = Duration::from_millis(1);
const FAST: Duration = Duration::from_millis(1);
const SLOW: Duration = Duration::from_millis(200);
const TIMEOUT: Outcome = Outcome::Failure(FailureCause::Timeout);

fn settings() -> BreakerSettings {
    BreakerSettings {
        window: Duration::from_secs(10),
        calls_min: 10,
        failure_rate_max: 0.5,
        slow: Duration::from_millis(100),
        slow_rate_max: 0.5,
        open_min: Duration::from_millis(500),
        open_max: Duration::from_secs(8),
        stable_min: Duration::from_secs(30),
        probes_max: 2,
        probe_wait_max: Duration::from_secs(2),
    }
}

fn at(ms: u64) -> Time {
    Time::from_micros(ms * 1_000)
}

fn breaker() -> Breaker {
    Breaker::new(settings().checked().unwrap(), 1, Time::ZERO)
}

fn pass(breaker: &mut Breaker, now: Time) -> Ticket {
    match breaker.admit(now) {
        Admission::Pass(ticket) => ticket,
        other => panic!("expected a pass, got {other:?}"),
    }
}

fn probe(breaker: &mut Breaker, now: Time) -> Ticket {
    match breaker.admit(now) {
        Admission::Probe(ticket) => ticket,
        other => panic!("expected a probe, got {other:?}"),
    }
}

fn refusal(breaker: &mut Breaker, now: Time) -> Refusal {
    match breaker.admit(now) {
        Admission::Refuse(refusal) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Fails calls until the circuit opens; gives the time of its first probe.
fn trip(breaker: &mut Breaker, now: Time) -> Time {
    for _ in 0..settings().calls_min {
        let ticket = pass(breaker, now);
        breaker.record(ticket, TIMEOUT, SLOW, now);
    }
    probe_at(breaker, now)
}

fn probe_at(breaker: &Breaker, now: Time) -> Time {
    match breaker.state(now) {
        State::Open { probe_at } => probe_at,
        other => panic!("expected an open circuit, got {other:?}"),
    }
}

#[test]
fn closed_until_enough_calls_have_failed() {
    let mut breaker = breaker();
    let ticket = pass(&mut breaker, at(0));
    breaker.record_failures(ticket, FailureCause::Connect, 9, at(1));
    assert_eq!(breaker.state(at(1)), State::Closed);
    breaker.record(ticket, TIMEOUT, SLOW, at(2));
    assert!(matches!(breaker.state(at(2)), State::Open { .. }));
    let snapshot = breaker.snapshot(at(2));
    assert_eq!(snapshot.reason, Some(OpenReason::Failures { cause: FailureCause::Connect, count: 9 }));
    assert_eq!((snapshot.calls, snapshot.failures, snapshot.slow, snapshot.transitions), (10, 10, 1, 1));
}

#[test]
fn half_failed_is_not_more_than_half() {
    let mut breaker = breaker();
    let ticket = pass(&mut breaker, at(0));
    breaker.record_successes(ticket, 50, at(0));
    breaker.record_failures(ticket, FailureCause::LinkLost, 50, at(1));
    assert_eq!(breaker.state(at(1)), State::Closed);
    assert_eq!(breaker.snapshot(at(1)).failure_rate, 0.5);
    breaker.record_failures(ticket, FailureCause::LinkLost, 1, at(1));
    assert!(matches!(breaker.state(at(1)), State::Open { .. }));
}

#[test]
fn a_success_does_not_open() {
    let mut breaker = breaker();
    let ticket = pass(&mut breaker, at(0));
    breaker.record_failures(ticket, FailureCause::Timeout, 9, at(0));
    breaker.record_successes(ticket, 1, at(0));
    assert_eq!(breaker.state(at(0)), State::Closed);
    breaker.record_failures(ticket, FailureCause::Timeout, 0, at(0));
    assert_eq!(breaker.state(at(0)), State::Closed);
}

#[test]
fn slow_calls_open() {
    let mut breaker = breaker();
    for _ in 0..10 {
        let ticket = pass(&mut breaker, at(0));
        breaker.record(ticket, Outcome::Success, SLOW, at(0));
    }
    let refusal = refusal(&mut breaker, at(1));
    assert!(matches!(refusal, Refusal::Open { reason: OpenReason::SlowCalls { count: 10 }, .. }));
    let text = UpstreamDown { address: "cache:1", refusal }.to_string();
    assert!(
        text.starts_with("UPSTREAMDOWN upstream cache:1 unavailable (circuit open after 10 slow calls; "),
        "{text}"
    );
}

#[test]
fn exactly_slow_is_slow() {
    let settings = settings().checked().unwrap();
    assert_eq!(settings.pace(Duration::from_millis(100)), Pace::Slow);
    assert_eq!(settings.pace(Duration::from_micros(99_999)), Pace::Fast);
}

#[test]
fn client_faults_and_abandoned_calls_never_count() {
    let mut breaker = breaker();
    for _ in 0..100 {
        let ticket = pass(&mut breaker, at(0));
        breaker.record(ticket, Outcome::ClientFault, SLOW, at(0));
        breaker.record(ticket, Outcome::Abandoned, SLOW, at(0));
    }
    let snapshot = breaker.snapshot(at(0));
    assert_eq!((snapshot.calls, snapshot.slow, snapshot.state), (0, 0, State::Closed));
}

#[test]
fn the_window_forgets() {
    let mut breaker = breaker();
    let ticket = pass(&mut breaker, at(0));
    breaker.record_failures(ticket, FailureCause::Timeout, 9, at(100));
    assert_eq!(breaker.snapshot(at(9_700)).calls, 9);
    assert_eq!(breaker.snapshot(at(10_100)).calls, 0);
    breaker.record_failures(ticket, FailureCause::Timeout, 9, at(10_100));
    assert_eq!(breaker.state(at(10_100)), State::Closed);
}

#[test]
fn open_refuses_until_its_time_then_probes() {
    let mut breaker = breaker();
    let probe_at = trip(&mut breaker, at(1_000));
    let wait = probe_at.saturating_since(at(1_000));
    assert!(wait >= 500 * MS && wait <= 1_000 * MS, "{wait:?}");
    assert_eq!(breaker.snapshot(at(1_000)).probe_in, Some(wait));
    let early = Time::from_micros(probe_at.as_micros() - 1);
    assert_eq!(refusal(&mut breaker, early).retry_in(), Some(Duration::from_micros(1)));
    assert_eq!(breaker.snapshot(probe_at).probe_in, Some(Duration::ZERO));
    assert!(probe(&mut breaker, probe_at).is_probe());
    assert_eq!(breaker.state(probe_at), State::HalfOpen { under_way: 1, answered: 0 });
    assert_eq!(breaker.snapshot(probe_at).refused, 1);
}

#[test]
fn answered_probes_close() {
    let mut breaker = breaker();
    let now = trip(&mut breaker, at(0));
    let first = probe(&mut breaker, now);
    let second = probe(&mut breaker, now);
    let reason = OpenReason::Failures { cause: FailureCause::Timeout, count: 10 };
    assert_eq!(refusal(&mut breaker, now), Refusal::Probing { reason, slot_in: 2_000 * MS });
    breaker.record(first, Outcome::Success, FAST, now);
    breaker.record(first, Outcome::Success, FAST, now);
    assert_eq!(breaker.state(now), State::HalfOpen { under_way: 1, answered: 1 });
    assert!(matches!(breaker.admit(now), Admission::Refuse(Refusal::Probing { .. })));
    breaker.record(second, Outcome::ClientFault, FAST, now);
    let snapshot = breaker.snapshot(now);
    assert_eq!((snapshot.state, snapshot.reason, snapshot.calls), (State::Closed, None, 0));
    assert_eq!(snapshot.transitions, 3);
    assert!(!pass(&mut breaker, now).is_probe());
}

#[test]
fn a_failed_probe_opens_for_longer() {
    let mut breaker = breaker();
    let mut now = trip(&mut breaker, at(0));
    for doublings in 1..8 {
        let ticket = probe(&mut breaker, now);
        breaker.record(ticket, TIMEOUT, SLOW, now);
        let next = probe_at(&breaker, now);
        let high = (500 * MS * (2 << doublings)).min(8_000 * MS);
        let wait = next.saturating_since(now);
        assert!(wait >= high / 2 && wait <= high, "{wait:?} of {high:?}");
        now = next;
    }
    let reason = OpenReason::Failures { cause: FailureCause::Timeout, count: 17 };
    assert_eq!(breaker.snapshot(now).reason, Some(reason));
}

#[test]
fn slow_probes_open_again() {
    let mut breaker = breaker();
    let now = trip(&mut breaker, at(0));
    let tickets = [probe(&mut breaker, now), probe(&mut breaker, now)];
    tickets.into_iter().for_each(|ticket| breaker.record(ticket, Outcome::Success, SLOW, now));
    // The ten timeouts were slow, too.
    assert_eq!(breaker.snapshot(now).reason, Some(OpenReason::SlowCalls { count: 12 }));
}

#[test]
fn a_vanished_probe_gives_its_place_up() {
    let mut breaker = breaker();
    let now = trip(&mut breaker, at(0));
    let lost = [probe(&mut breaker, now), probe(&mut breaker, now)];
    let slot_in = refusal(&mut breaker, now).retry_in().unwrap();
    let later = now.saturating_add(slot_in);
    let third = probe(&mut breaker, later);
    breaker.record(lost[0], Outcome::Success, FAST, later);
    assert_eq!(breaker.state(later), State::HalfOpen { under_way: 1, answered: 0 });
    breaker.record(third, Outcome::Abandoned, FAST, later);
    assert_eq!(breaker.state(later), State::HalfOpen { under_way: 0, answered: 0 });
    breaker.record(lost[1], TIMEOUT, SLOW, later);
    assert!(matches!(breaker.state(later), State::Open { .. }));
}

#[test]
fn results_of_an_old_epoch_change_nothing() {
    let mut breaker = breaker();
    let old = pass(&mut breaker, at(0));
    let now = trip(&mut breaker, at(0));
    let before = breaker.snapshot(now);
    breaker.record(old, TIMEOUT, SLOW, now);
    assert_eq!(breaker.snapshot(now), before);
    let (stale, other) = (probe(&mut breaker, now), probe(&mut breaker, now));
    breaker.record(old, Outcome::Success, FAST, now);
    breaker.record(other, TIMEOUT, SLOW, now);
    let now = probe_at(&breaker, now);
    let current = probe(&mut breaker, now);
    let before = breaker.snapshot(now);
    breaker.record(stale, TIMEOUT, SLOW, now);
    breaker.record_failures(old, FailureCause::LinkLost, 1_000, now);
    breaker.record_successes(stale, 1_000, now);
    assert_eq!(breaker.snapshot(now), before);
    assert_ne!(current.epoch(), stale.epoch());
}

#[test]
fn a_stable_close_resets_the_open_time() {
    for (closed_ms, high_ms) in [(29_999, 2_000), (30_000, 1_000)] {
        let mut breaker = breaker();
        let now = trip(&mut breaker, at(0));
        for _ in 0..2 {
            let ticket = probe(&mut breaker, now);
            breaker.record(ticket, Outcome::Success, FAST, now);
        }
        let later = now.saturating_add(closed_ms * MS);
        let wait = trip(&mut breaker, later).saturating_since(later);
        assert!(wait >= high_ms * MS / 2 && wait <= high_ms * MS, "{wait:?} after {closed_ms} ms");
    }
}

#[test]
fn lost_links_count_by_state() {
    let mut breaker = breaker();
    for _ in 0..10 {
        breaker.link_lost(FailureCause::Connect, at(0));
    }
    let now = probe_at(&breaker, at(0));
    let before = breaker.snapshot(at(1));
    breaker.link_lost(FailureCause::Resolve, at(1));
    let after = breaker.snapshot(at(1));
    assert_eq!((after.state, after.reason, after.calls), (before.state, before.reason, before.calls));
    assert_eq!(after.causes.last().map(|note| note.cause), Some(FailureCause::Resolve));
    let _probe = probe(&mut breaker, now);
    breaker.link_lost(FailureCause::LinkLost, now);
    assert!(matches!(breaker.state(now), State::Open { .. }));
}

#[test]
fn the_list_of_causes_is_bounded_and_runs_are_joined() {
    let mut breaker = breaker();
    breaker.force(Forced::Closed, at(0));
    for ms in 0..100 {
        let cause = if ms % 4 < 2 { FailureCause::Timeout } else { FailureCause::LinkLost };
        breaker.link_lost(cause, at(ms));
    }
    let causes = breaker.snapshot(at(100)).causes;
    assert_eq!(causes.len(), CAUSES_KEPT_MAX);
    let last = CauseNote { cause: FailureCause::LinkLost, first: at(98), last: at(99), count: 2 };
    assert_eq!(causes.last(), Some(&last));
    assert_eq!(causes.first().map(|note| note.first), Some(at(68)));
}

#[test]
fn an_operator_forces_and_releases() {
    let mut breaker = breaker();
    assert_eq!(breaker.release(at(0)), Release::NotForced);
    let old = pass(&mut breaker, at(0));
    breaker.force(Forced::Open, at(1));
    breaker.force(Forced::Open, at(2));
    assert_eq!((breaker.transitions(), breaker.snapshot(at(2)).since), (1, at(1)));
    assert_eq!(refusal(&mut breaker, at(1_000_000)), Refusal::Forced);
    breaker.record(old, TIMEOUT, SLOW, at(1_000_000));
    assert_eq!(breaker.release(at(1_000_000)), Release::Released(Forced::Open));
    let _probe = probe(&mut breaker, at(1_000_000));
    breaker.force(Forced::Closed, at(1_000_000));
    let ticket = pass(&mut breaker, at(1_000_000));
    breaker.record_failures(ticket, FailureCause::Timeout, 1_000, at(1_000_001));
    assert_eq!(breaker.state(at(1_000_001)), State::Forced(Forced::Closed));
    assert_eq!(breaker.snapshot(at(1_000_001)).failures, 1_000);
    assert_eq!(breaker.release(at(1_000_002)), Release::Released(Forced::Closed));
    assert_eq!(breaker.state(at(1_000_002)), State::Closed);
    assert_eq!(breaker.snapshot(at(1_000_002)).calls, 0);
}

#[test]
fn the_gate_mirrors_the_state() {
    let mut breaker = breaker();
    let gate = breaker.gate();
    assert_eq!(gate.admit(), Some(pass(&mut breaker, at(0))));
    let now = trip(&mut breaker, at(0));
    assert!(!gate.is_closed());
    assert_eq!(gate.admit(), None);
    for _ in 0..2 {
        let ticket = probe(&mut breaker, now);
        assert!(!gate.is_closed());
        breaker.record(ticket, Outcome::Success, FAST, now);
    }
    assert!(gate.is_closed());
    assert_eq!(gate.admit(), Some(pass(&mut breaker, now)));
    breaker.force(Forced::Open, now);
    assert!(!gate.is_closed());
    breaker.force(Forced::Closed, now);
    assert!(gate.is_closed());
}

#[test]
fn a_time_that_goes_back_is_the_latest_seen() {
    let mut breaker = breaker();
    let now = trip(&mut breaker, at(5_000));
    let _probe = probe(&mut breaker, now);
    let ticket = probe(&mut breaker, at(0));
    breaker.record(ticket, Outcome::Success, FAST, at(0));
    assert_eq!(breaker.snapshot(at(0)).since, now);
    assert_eq!(breaker.state(at(0)), State::HalfOpen { under_way: 1, answered: 1 });
}

#[test]
fn the_end_of_time_is_survived() {
    let mut breaker = breaker();
    let now = trip(&mut breaker, Time::MAX);
    assert_eq!(now, Time::MAX);
    let _probe = probe(&mut breaker, now);
    assert_eq!(breaker.snapshot(now).calls, 10);
}

#[test]
fn texts() {
    let reason = OpenReason::Failures { cause: FailureCause::Timeout, count: 12 };
    let down = |refusal| UpstreamDown { address: "10.0.0.7:6379", refusal }.to_string();
    assert_eq!(
        down(Refusal::Open { reason, probe_in: 740 * MS }),
        "UPSTREAMDOWN upstream 10.0.0.7:6379 unavailable (circuit open after 12 timeouts; next probe in 740 ms)"
    );
    assert_eq!(
        down(Refusal::Probing { reason: OpenReason::SlowCalls { count: 1 }, slot_in: Duration::from_micros(1) }),
        "UPSTREAMDOWN upstream 10.0.0.7:6379 unavailable \
         (circuit half-open after 1 slow call; probes under way for at most 1 ms)"
    );
    assert_eq!(
        down(Refusal::Forced),
        "UPSTREAMDOWN upstream 10.0.0.7:6379 unavailable (circuit forced open by an operator)"
    );
    assert_eq!(OpenReason::Operator.to_string(), "an operator's order");
    assert_eq!(FailureCause::Loading.counted(1).to_string(), "1 loading reply");
    for cause in FailureCause::ALL {
        let text = cause.counted(2).to_string();
        assert!(text.starts_with("2 ") && text.ends_with('s') && text == text.to_lowercase(), "{text}");
        assert_eq!(cause.counted(1).to_string(), format!("1 {cause}"));
    }
}

#[test]
fn causes_stand_at_their_index() {
    for (place, cause) in FailureCause::ALL.into_iter().enumerate() {
        assert_eq!(cause.index(), place);
    }
}

#[test]
fn of_two_equal_causes_the_first_dominates() {
    let mut counts = Counts::failed_calls(FailureCause::ClusterDown, 2);
    counts.add(&Counts::failed_calls(FailureCause::Connect, 2));
    assert_eq!(counts.dominating(), Some((FailureCause::Connect, 2)));
    assert_eq!(Counts::default().dominating(), None);
}

#[test]
fn error_replies_are_understood() {
    let failure = |cause| ErrorKind::Failure(cause);
    let cases: &[(&[u8], ErrorKind)] = &[
        (b"LOADING Redis is loading the dataset in memory", failure(FailureCause::Loading)),
        (b"-LOADING Valkey is loading the dataset in memory\r\n", failure(FailureCause::Loading)),
        (b"MASTERDOWN Link with MASTER is down", failure(FailureCause::MasterDown)),
        (b"-CLUSTERDOWN\r\n", failure(FailureCause::ClusterDown)),
        (b"READONLY You can't write against a read only replica.", ErrorKind::Reconnect),
        (b"MISCONF Errors writing to the AOF file: full", ErrorKind::PassThrough),
        (b"OOM command not allowed when used memory > 'maxmemory'.", ErrorKind::PassThrough),
        (b"NOREPLICAS Not enough good replicas to write.", ErrorKind::PassThrough),
        (b"BUSY Redis is busy running a script.", ErrorKind::PassThrough),
        (b"WRONGTYPE Operation against a key", ErrorKind::PassThrough),
        (b"NOPERM this user has no permissions", ErrorKind::PassThrough),
        (b"ERR LOADING is only the second word", ErrorKind::PassThrough),
        (b"LOADINGS", ErrorKind::PassThrough),
        (b"loading", ErrorKind::PassThrough),
        (b"", ErrorKind::PassThrough),
        (b"-", ErrorKind::PassThrough),
        (b"\xff\x00", ErrorKind::PassThrough),
    ];
    for (reply, kind) in cases {
        assert_eq!(classify_error(reply), *kind, "{}", String::from_utf8_lossy(reply));
    }
}

#[test]
fn settings_are_checked() {
    let good = settings();
    assert!(good.checked().is_ok());
    assert_eq!(BreakerSettings::default().checked(), Ok(CheckedSettings::default()));
    let bad = [
        BreakerSettings { window: Duration::from_millis(9), ..good },
        BreakerSettings { window: Duration::MAX, ..good },
        BreakerSettings { calls_min: 0, ..good },
        BreakerSettings { failure_rate_max: 1.1, ..good },
        BreakerSettings { slow_rate_max: -0.1, ..good },
        BreakerSettings { open_min: Duration::ZERO, ..good },
        BreakerSettings { open_min: Duration::from_secs(9), ..good },
        BreakerSettings { open_max: Duration::MAX, ..good },
        BreakerSettings { probes_max: 0, ..good },
        BreakerSettings { probes_max: PROBES_LIMIT + 1, ..good },
        BreakerSettings { probe_wait_max: Duration::ZERO, ..good },
    ];
    for settings in bad {
        let error = settings.checked().unwrap_err().to_string();
        assert!(error.contains("must be"), "{error}");
    }
    assert!(BreakerSettings { failure_rate_max: f64::NAN, ..good }.checked().is_err());
}
