//! Commands on the strings themselves.
//!
//! Each takes the [`Call`], writes one reply and tells what it changed; on a refusal it has changed nothing.

use super::call::{Call, Outcome};
use super::database::entry_cost;
use super::extended::Number;
use super::keyspace::{NewDeadline, Use};
use super::options::{
    Answer, Base, Condition, Lifetime, TimeForm, Unit, getex_options, integer, positive_moment, set_options,
};
use super::reply::Failure;
use super::slab::Place;
use super::value::{Digits, Value};

pub(super) fn get(call: &mut Call<'_>) -> Outcome {
    reply_with_value(call, call.args.arg(1));
    Ok(None)
}

pub(super) fn mget(call: &mut Call<'_>) -> Outcome {
    call.reply.array(call.args.len() - 1);
    for key in call.args.iter().skip(1) {
        reply_with_value(call, key);
        call.reply.expect_within(call.keyspace.reply_bytes_max())?;
    }
    Ok(None)
}

pub(super) fn set(call: &mut Call<'_>) -> Outcome {
    let options = set_options(call.args)?;
    let deadline = match options.lifetime {
        Lifetime::Until { form, number } => NewDeadline::At(positive_moment(form, number, call.now, call.name)?),
        Lifetime::Keep => NewDeadline::Keep,
        Lifetime::Unsaid | Lifetime::Persist => NewDeadline::Never,
    };
    let (key, value) = (call.args.arg(1), call.args.arg(2));
    if options.answer == Answer::OldValue {
        reply_with_value(call, key);
    }
    let stores = match options.condition {
        Condition::Always => true,
        Condition::IfMissing => call.find(key).is_none(),
        Condition::IfPresent => call.find(key).is_some(),
    };
    if stores {
        call.put(key, Value::new(value), deadline)?;
    }
    match (options.answer, stores) {
        (Answer::OldValue, _) => {}
        (Answer::Outcome, true) => call.reply.ok(),
        (Answer::Outcome, false) => call.reply.null(),
    }
    Ok(stores.then(|| call.changed(1)))
}

pub(super) fn setnx(call: &mut Call<'_>) -> Outcome {
    let key = call.args.arg(1);
    let stores = call.find(key).is_none();
    if stores {
        call.put(key, Value::new(call.args.arg(2)), NewDeadline::Never)?;
    }
    call.reply.integer(i64::from(stores));
    Ok(stores.then(|| call.changed(1)))
}

pub(super) fn setex(call: &mut Call<'_>) -> Outcome {
    set_with_lifetime(call, Unit::Seconds)
}

pub(super) fn psetex(call: &mut Call<'_>) -> Outcome {
    set_with_lifetime(call, Unit::Millis)
}

fn set_with_lifetime(call: &mut Call<'_>, unit: Unit) -> Outcome {
    let form = TimeForm { unit, base: Base::Now };
    let deadline = positive_moment(form, call.args.arg(2), call.now, call.name)?;
    call.put(call.args.arg(1), Value::new(call.args.arg(3)), NewDeadline::At(deadline))?;
    call.reply.ok();
    Ok(Some(call.changed(1)))
}

pub(super) fn getset(call: &mut Call<'_>) -> Outcome {
    let key = call.args.arg(1);
    reply_with_value(call, key);
    call.put(key, Value::new(call.args.arg(2)), NewDeadline::Never)?;
    Ok(Some(call.changed(1)))
}

pub(super) fn getdel(call: &mut Call<'_>) -> Outcome {
    let key = call.args.arg(1);
    reply_with_value(call, key);
    let removed = call.keyspace.remove_key(call.db, key, call.now);
    Ok(removed.then(|| call.changed(1)))
}

pub(super) fn getex(call: &mut Call<'_>) -> Outcome {
    let lifetime = getex_options(call.args)?;
    let key = call.args.arg(1);
    reply_with_value(call, key);
    let Some(place) = call.find(key) else { return Ok(None) };
    match lifetime {
        Lifetime::Unsaid | Lifetime::Keep => return Ok(None),
        Lifetime::Persist => {
            if call.keyspace.entry(call.db, place).is_none_or(|entry| entry.deadline.is_none()) {
                return Ok(None);
            }
            call.keyspace.set_deadline(call.db, place, None);
        }
        Lifetime::Until { form, number } => {
            let deadline = positive_moment(form, number, call.now, call.name)?;
            if form.base == Base::Epoch && deadline <= call.now {
                call.keyspace.remove(call.db, place);
            } else {
                call.keyspace.set_deadline(call.db, place, Some(deadline));
            }
        }
    }
    Ok(Some(call.changed(1)))
}

pub(super) fn mset(call: &mut Call<'_>) -> Outcome {
    set_pairs(call)?;
    call.reply.ok();
    Ok(Some(call.changed_keys(1, call.args.len() - 2, 2)))
}

pub(super) fn msetnx(call: &mut Call<'_>) -> Outcome {
    call.expect_pairs()?;
    let found = (1..call.args.len()).step_by(2).any(|i| call.find(call.args.arg(i)).is_some());
    if found {
        call.reply.integer(0);
        return Ok(None);
    }
    set_pairs(call)?;
    call.reply.integer(1);
    Ok(Some(call.changed_keys(1, call.args.len() - 2, 2)))
}

/// Stores the pairs from argument 1 on: all of them or, if they cannot fit together, none.
fn set_pairs(call: &mut Call<'_>) -> Result<(), Failure> {
    call.expect_pairs()?;
    let args = call.args;
    let pairs = (1..args.len()).step_by(2);
    let cost = |i: usize| entry_cost(args.arg(i).len(), args.arg(i + 1).len(), false);
    call.keyspace.admit(call.db, pairs.clone().map(cost).sum(), pairs.len())?;
    for i in pairs {
        call.put(args.arg(i), Value::new(args.arg(i + 1)), NewDeadline::Never)?;
    }
    Ok(())
}

pub(super) fn append(call: &mut Call<'_>) -> Outcome {
    let (key, tail) = (call.args.arg(1), call.args.arg(2));
    let len = match call.find(key) {
        None => {
            call.put(key, Value::new(tail), NewDeadline::Never)?;
            tail.len()
        }
        Some(place) => {
            let len = checked_len(call, value_len(call, place) as u64, tail)?;
            call.keyspace.edit(call.db, place, len, |text| text.extend_from_slice(tail))?;
            len
        }
    };
    call.reply.integer(len as i64);
    Ok(Some(call.changed(1)))
}

pub(super) fn strlen(call: &mut Call<'_>) -> Outcome {
    let len = call.read(call.args.arg(1)).map_or(0, |entry| entry.value.len());
    call.reply.integer(len as i64);
    Ok(None)
}

pub(super) fn setrange(call: &mut Call<'_>) -> Outcome {
    let (key, part) = (call.args.arg(1), call.args.arg(3));
    let offset = u64::try_from(integer(call.args, 2)?).map_err(|_| Failure::OffsetOutOfRange)?;
    let place = call.find(key);
    let old_len = place.map_or(0, |place| value_len(call, place));
    if part.is_empty() {
        call.reply.integer(old_len as i64);
        return Ok(None);
    }
    let end = checked_len(call, offset, part)?;
    let len = end.max(old_len);
    let write = |text: &mut Vec<u8>| {
        text.resize(len, 0);
        text[end - part.len()..end].copy_from_slice(part);
    };
    match place {
        Some(place) => call.keyspace.edit(call.db, place, len, write)?,
        None => {
            // Refused before the block is taken, for the offset alone can make it huge.
            call.keyspace.admit(call.db, entry_cost(key.len(), len, false), 1)?;
            let mut text = Vec::with_capacity(len);
            write(&mut text);
            call.put(key, Value::Growable(text), NewDeadline::Never)?;
        }
    }
    call.reply.integer(len as i64);
    Ok(Some(call.changed(1)))
}

pub(super) fn getrange(call: &mut Call<'_>) -> Outcome {
    let (start, end) = (integer(call.args, 2)?, integer(call.args, 3)?);
    let key = call.args.arg(1);
    let Some(entry) = call.keyspace.read(call.db, key, Use::Touch, call.now) else {
        call.reply.bulk(b"");
        return Ok(None);
    };
    let mut digits = Digits::default();
    let text = entry.value.text(&mut digits);
    call.reply.bulk(part(text, start, end));
    Ok(None)
}

/// The bytes from `start` to `end`, both included; negative positions count from the end.
fn part(text: &[u8], start: i64, end: i64) -> &[u8] {
    if start < 0 && end < 0 && start > end {
        return b"";
    }
    let len = text.len() as i64;
    let from_front = |position: i64| if position < 0 { (len + position).max(0) } else { position };
    let (start, end) = (from_front(start), from_front(end).min(len - 1));
    if start > end { b"" } else { &text[start as usize..=end as usize] }
}

pub(super) fn incr(call: &mut Call<'_>) -> Outcome {
    add(call, 1)
}

pub(super) fn decr(call: &mut Call<'_>) -> Outcome {
    add(call, -1)
}

pub(super) fn incrby(call: &mut Call<'_>) -> Outcome {
    add(call, integer(call.args, 2)?)
}

pub(super) fn decrby(call: &mut Call<'_>) -> Outcome {
    add(call, integer(call.args, 2)?.checked_neg().ok_or(Failure::DecrementOverflow)?)
}

fn add(call: &mut Call<'_>, amount: i64) -> Outcome {
    let key = call.args.arg(1);
    let old = match call.find_entry(key) {
        Some(entry) => entry.value.as_integer().ok_or(Failure::NotInteger)?,
        None => 0,
    };
    let new = old.checked_add(amount).ok_or(Failure::IncrementOverflow)?;
    call.put(key, Value::Integer(new), NewDeadline::Keep)?;
    call.reply.integer(new);
    Ok(Some(call.changed(1)))
}

pub(super) fn incrbyfloat(call: &mut Call<'_>) -> Outcome {
    let key = call.args.arg(1);
    let old = match call.find_entry(key).map(|entry| &entry.value) {
        None => Number::ZERO,
        Some(Value::Integer(value)) => Number::from_integer(*value),
        Some(Value::Fixed(text)) => Number::parse(text).ok_or(Failure::NotFloat)?,
        Some(Value::Growable(text)) => Number::parse(text).ok_or(Failure::NotFloat)?,
    };
    let amount = Number::parse(call.args.arg(2)).ok_or(Failure::NotFloat)?;
    let text = old.add(amount).to_text().ok_or(Failure::IncrementNotFinite)?;
    call.reply.bulk(&text);
    // Kept as a text even if it is an integer, as in the server.
    call.put(key, Value::Fixed(text.into()), NewDeadline::Keep)?;
    Ok(Some(call.changed(1)))
}

fn reply_with_value(call: &mut Call<'_>, key: &[u8]) {
    match call.keyspace.read(call.db, key, Use::Touch, call.now) {
        Some(entry) => call.reply.bulk(entry.value.text(&mut Digits::default())),
        None => call.reply.null(),
    }
}

fn value_len(call: &Call<'_>, place: Place) -> usize {
    call.keyspace.entry(call.db, place).map_or(0, |entry| entry.value.len())
}

/// `before` and the length of `part` together, unless that is longer than a string may be.
fn checked_len(call: &Call<'_>, before: u64, part: &[u8]) -> Result<usize, Failure> {
    let len = before.checked_add(part.len() as u64).filter(|&len| len <= call.keyspace.value_bytes_max());
    len.and_then(|len| usize::try_from(len).ok()).ok_or(Failure::StringTooLong)
}
