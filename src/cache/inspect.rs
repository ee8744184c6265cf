//! What CACHE shows: figures, the breaker, one entry.

use super::Caller;
use super::reply::Reply;
use crate::clock::Time;
use crate::port::Failure;
use crate::report::breaker_word;
use crate::upstream::breaker::{BreakerSnapshot, CauseNote, Forced, Release};
use crate::upstream::errand::Errand;
use crate::upstream::link::OpKind;
use crate::upstream::scope::Scope;
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cache::{BreakerOrder, ConfigOrder};
use larder_protocol::cursor::Cursor;
use std::fmt::Write;

/// `CACHE INFO [section]`
pub(super) fn info(caller: &Caller, section: Option<&[u8]>) -> Vec<u8> {
    let is_all =
        section.is_none_or(|s| [&b"all"[..], b"everything", b"default"].iter().any(|w| s.eq_ignore_ascii_case(w)));
    let mut text = String::new();
    for shown in caller.shared.figures() {
        if !is_all && !section.is_some_and(|s| s.eq_ignore_ascii_case(shown.name.as_bytes())) {
            continue;
        }
        let gap = if text.is_empty() { "" } else { "\r\n" };
        let _ = write!(text, "{gap}# {}\r\n", shown.name);
        for (name, figure) in shown.figures {
            let _ = write!(text, "{name}:{figure}\r\n");
        }
    }
    Reply::default().verbatim(&text).take()
}

/// `CACHE STATS`
pub(super) fn stats(caller: &Caller) -> Vec<u8> {
    let figures: Vec<_> = caller.shared.figures().into_iter().flat_map(|section| section.figures).collect();
    let mut reply = Reply::default();
    reply.map(figures.len());
    for (name, figure) in &figures {
        reply.bulk(name).figure(figure);
    }
    reply.take()
}

/// `CACHE ENTRY key`
pub(super) async fn entry(caller: &Caller, key: &[u8]) -> Vec<u8> {
    let is_held = |caller: &Caller| caller.scope.as_ref().and_then(|scope| scope.link.partition().facts(key));
    let indexed = match &caller.scope {
        Some(scope) if is_held(caller).is_some() => indexed(caller, scope, key).await,
        _ => [None, None],
    };
    let now = caller.shared.clock.now();
    let mut reply = Reply::default();
    let Some(facts) = is_held(caller).filter(|facts| facts.deadline.is_none_or(|deadline| deadline > now)) else {
        return reply.null().take();
    };
    let removal = caller.scope.as_ref().and_then(|scope| {
        let partition = scope.link.partition();
        caller.shared.insight.last_removal(partition.scope(), key)
    });
    reply.map(9);
    reply.bulk("level").bulk("l1");
    reply.bulk("age_ms").integer(ms_between(facts.filled_at, now));
    match facts.deadline {
        // Rounded up, so that an entry that is there never has none left.
        Some(deadline) => {
            reply.bulk("time_left_ms").integer(deadline.saturating_since(now).as_micros().div_ceil(1000) as u64)
        }
        None => reply.bulk("time_left_ms").integer(-1),
    };
    reply.bulk("size_bytes").integer(facts.bytes);
    reply.bulk("variants").integer(facts.variants as u64);
    reply.bulk("hits").integer(facts.hits);
    reply.bulk("last_invalidation");
    match removal {
        Some(removal) => {
            reply.map(2).bulk("cause").bulk(removal.cause.label());
            reply.bulk("ms_ago").integer(ms_between(removal.at, now));
        }
        None => drop(reply.null()),
    }
    for (name, indexed) in ["tags", "depends"].iter().zip(&indexed) {
        reply.bulk(name);
        match indexed {
            Some(names) => {
                reply.array(names.len());
                for name in names {
                    reply.bytes(name);
                }
            }
            None => drop(reply.null()),
        }
    }
    reply.take()
}

/// The tags of a key and what it depends on, as the index upstream has them; `None` for what cannot be had.
async fn indexed(caller: &Caller, scope: &Scope, key: &[u8]) -> [Option<Vec<Bytes>>; 2] {
    let prefix = caller.shared.config.tags.prefix.as_bytes();
    let record = |kind: &[u8]| (OpKind::Read, OwnedArgs::new([&b"SMEMBERS"[..], &[prefix, kind, key].concat()]));
    let answers = Errand::default().ask_each(&scope.link, &[record(b"k:"), record(b"d:")]).await;
    let mut answers = answers.unwrap_or_default().into_iter();
    [(); 2].map(|()| {
        let reply = answers.next()?.ok()?;
        let mut cursor = Cursor::new(&reply);
        let count = cursor.next_count()?;
        let mut names: Vec<Bytes> = (0..count).map_while(|_| cursor.next_bytes()).map(|n| reply.slice_ref(n)).collect();
        names.sort_unstable();
        Some(names)
    })
}

/// `CACHE CONFIG GET pattern` and `SET name value`
pub(super) fn config(caller: &Caller, order: ConfigOrder<'_>) -> Result<Vec<u8>, Failure> {
    let mut reply = Reply::default();
    match order {
        ConfigOrder::Get(pattern, which) => {
            let found = caller.shared.live.matching(pattern, which);
            reply.map(found.len());
            for (name, value) in &found {
                reply.bulk(name).bulk(value);
            }
        }
        ConfigOrder::Set(name, value) => {
            let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
            let changed = caller.shared.change(&name, &value);
            changed.map_err(|error| Failure::Refused(error.to_string().into()))?;
            reply.simple("OK");
        }
    }
    Ok(reply.take())
}

/// `CACHE BREAKER [OPEN|CLOSE|RELEASE]`
pub(super) fn breaker(caller: &Caller, order: BreakerOrder) -> Result<Vec<u8>, Failure> {
    const NO_UPSTREAM: &[u8] = b"ERR larder serves its embedded store: there is no upstream and no circuit breaker";
    const NOT_FORCED: &[u8] = b"ERR the circuit breaker is not forced open or closed";
    let upstream = caller.upstream().ok_or(Failure::Refused(Bytes::from_static(NO_UPSTREAM)))?;
    let node = upstream.node();
    let ok = || Reply::default().simple("OK").take();
    match order {
        BreakerOrder::Show => Ok(show_breaker(
            &node.snapshot(),
            &node.endpoint.to_string(),
            node.requests_refused(),
            caller.shared.clock.now(),
        )),
        BreakerOrder::Open => {
            tracing::warn!(upstream = %node.endpoint, "an operator holds the circuit open");
            node.force(Forced::Open);
            Ok(ok())
        }
        BreakerOrder::Close => {
            tracing::warn!(upstream = %node.endpoint, "an operator holds the circuit closed");
            node.force(Forced::Closed);
            Ok(ok())
        }
        BreakerOrder::Release => match node.release() {
            Release::Released(_) => {
                tracing::warn!(upstream = %node.endpoint, "an operator lets the circuit go");
                Ok(ok())
            }
            Release::NotForced => Err(Failure::Refused(Bytes::from_static(NOT_FORCED))),
        },
    }
}

fn show_breaker(breaker: &BreakerSnapshot, upstream: &str, refused: u64, now: Time) -> Vec<u8> {
    let mut reply = Reply::default();
    reply.map(13);
    reply.bulk("upstream").bulk(upstream);
    reply.bulk("state").bulk(breaker_word(&breaker.state));
    reply.bulk("since_ms").integer(ms_between(breaker.since, now));
    reply.bulk("reason");
    match &breaker.reason {
        Some(reason) => reply.bulk(&reason.to_string()),
        None => reply.null(),
    };
    reply.bulk("calls").integer(breaker.calls);
    reply.bulk("failures").integer(breaker.failures);
    reply.bulk("failure_rate").double(rounded(breaker.failure_rate));
    reply.bulk("slow").integer(breaker.slow);
    reply.bulk("slow_rate").double(rounded(breaker.slow_rate));
    // -1 where no probe is due by itself; 0 where the next attempt will be one.
    let probe_ms = breaker.probe_in.map_or(-1, |wait| wait.as_micros().div_ceil(1000) as i64);
    reply.bulk("next_probe_ms").integer(probe_ms);
    reply.bulk("transitions").integer(breaker.transitions);
    reply.bulk("refused").integer(refused);
    reply.bulk("causes").array(breaker.causes.len());
    for cause in &breaker.causes {
        show_cause(&mut reply, cause, now);
    }
    reply.take()
}

fn show_cause(reply: &mut Reply, note: &CauseNote, now: Time) {
    reply.map(4);
    reply.bulk("cause").bulk(&note.cause.to_string());
    reply.bulk("count").integer(note.count);
    reply.bulk("first_ms_ago").integer(ms_between(note.first, now));
    reply.bulk("last_ms_ago").integer(ms_between(note.last, now));
}

fn ms_between(then: Time, now: Time) -> u64 {
    now.saturating_since(then).as_millis() as u64
}

pub(super) fn rounded(rate: f64) -> f64 {
    (rate * 10_000.0).round() / 10_000.0
}
