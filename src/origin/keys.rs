//! Commands on keys, whatever they hold, and on databases.
//!
//! Each takes the [`Call`], writes one reply and tells what it changed; on a refusal it has changed nothing.

use larder_protocol::glob::{Case, matches};

use super::call::{Call, Outcome};
use super::database::{Entry, entry_cost};
use super::keyspace::{NewDeadline, Use};
use super::options::{
    Base, Existing, TimeForm, Unit, any_moment, copy_options, database, expire_conditions, flush_option, integer,
    scan_cursor, scan_options,
};
use super::reply::Failure;
use super::{Effect, UnixMillis};

/// The answer to TTL and its kin for a key that is not there.
const TTL_NO_KEY: i64 = -2;
/// The answer to TTL and its kin for a key without deadline.
const TTL_NO_DEADLINE: i64 = -1;
/// Vacant places that SCAN steps over for each entry that it was asked for, at most.
const SCAN_PLACES_PER_ENTRY: u64 = 10;
/// The one type that is kept here.
const STRING: &[u8] = b"string";
/// The text of OBJECT HELP.
const OBJECT_HELP: [&[u8]; 6] = [
    b"OBJECT <subcommand> [<arg> ...]. Subcommands are:",
    b"ENCODING <key>: how the value is kept.",
    b"FREQ <key>: not tracked here.",
    b"IDLETIME <key>: seconds since the last use.",
    b"REFCOUNT <key>: references to the value.",
    b"HELP: this text.",
];

pub(super) fn del(call: &mut Call<'_>) -> Outcome {
    let mut removed = 0;
    for key in call.args.iter().skip(1) {
        removed += i64::from(call.keyspace.remove_key(call.db, key, call.now));
    }
    call.reply.integer(removed);
    Ok((removed > 0).then(|| call.changed_keys(1, call.args.len() - 1, 1)))
}

pub(super) fn exists(call: &mut Call<'_>) -> Outcome {
    count_found(call, Use::Peek)
}

pub(super) fn touch(call: &mut Call<'_>) -> Outcome {
    count_found(call, Use::Touch)
}

fn count_found(call: &mut Call<'_>, usage: Use) -> Outcome {
    let keys = call.args.iter().skip(1);
    let found = keys.filter(|key| call.keyspace.read(call.db, key, usage, call.now).is_some()).count();
    call.reply.integer(found as i64);
    Ok(None)
}

pub(super) fn expire(call: &mut Call<'_>) -> Outcome {
    set_deadline(call, TimeForm { unit: Unit::Seconds, base: Base::Now })
}

pub(super) fn pexpire(call: &mut Call<'_>) -> Outcome {
    set_deadline(call, TimeForm { unit: Unit::Millis, base: Base::Now })
}

pub(super) fn expireat(call: &mut Call<'_>) -> Outcome {
    set_deadline(call, TimeForm { unit: Unit::Seconds, base: Base::Epoch })
}

pub(super) fn pexpireat(call: &mut Call<'_>) -> Outcome {
    set_deadline(call, TimeForm { unit: Unit::Millis, base: Base::Epoch })
}

fn set_deadline(call: &mut Call<'_>, form: TimeForm) -> Outcome {
    let conditions = expire_conditions(call.args)?;
    let deadline = any_moment(form, integer(call.args, 2)?, call.now, call.name)?;
    let place = call.find(call.args.arg(1));
    let current = place.and_then(|place| call.keyspace.entry(call.db, place)).map(|entry| entry.deadline);
    let (Some(place), Some(current)) = (place, current) else {
        call.reply.integer(0);
        return Ok(None);
    };
    if !conditions.hold(current, deadline) {
        call.reply.integer(0);
        return Ok(None);
    }
    match u64::try_from(deadline) {
        Ok(deadline) if UnixMillis(deadline) > call.now => {
            call.keyspace.set_deadline(call.db, place, Some(UnixMillis(deadline)));
        }
        _ => {
            call.keyspace.remove(call.db, place);
        }
    }
    call.reply.integer(1);
    Ok(Some(call.changed(1)))
}

pub(super) fn ttl(call: &mut Call<'_>) -> Outcome {
    reply_with_deadline(call, TimeForm { unit: Unit::Seconds, base: Base::Now })
}

pub(super) fn pttl(call: &mut Call<'_>) -> Outcome {
    reply_with_deadline(call, TimeForm { unit: Unit::Millis, base: Base::Now })
}

pub(super) fn expiretime(call: &mut Call<'_>) -> Outcome {
    reply_with_deadline(call, TimeForm { unit: Unit::Seconds, base: Base::Epoch })
}

pub(super) fn pexpiretime(call: &mut Call<'_>) -> Outcome {
    reply_with_deadline(call, TimeForm { unit: Unit::Millis, base: Base::Epoch })
}

fn reply_with_deadline(call: &mut Call<'_>, form: TimeForm) -> Outcome {
    let now = call.now;
    let answer = match call.peek(call.args.arg(1)).map(|entry| entry.deadline) {
        None => TTL_NO_KEY,
        Some(None) => TTL_NO_DEADLINE,
        Some(Some(deadline)) => {
            let millis = match form.base {
                Base::Now => deadline.to_signed() - now.to_signed(),
                Base::Epoch => deadline.to_signed(),
            };
            match form.unit {
                Unit::Seconds => millis.saturating_add(500) / 1_000,
                Unit::Millis => millis,
            }
        }
    };
    call.reply.integer(answer);
    Ok(None)
}

pub(super) fn persist(call: &mut Call<'_>) -> Outcome {
    let place = call.find(call.args.arg(1));
    let has_deadline = |place| call.keyspace.entry(call.db, place).is_some_and(|entry| entry.deadline.is_some());
    let place = place.filter(|&place| has_deadline(place));
    if let Some(place) = place {
        call.keyspace.set_deadline(call.db, place, None);
    }
    call.reply.integer(i64::from(place.is_some()));
    Ok(place.map(|_| call.changed(1)))
}

pub(super) fn kind(call: &mut Call<'_>) -> Outcome {
    let kind = if call.peek(call.args.arg(1)).is_some() { STRING } else { b"none" };
    call.reply.simple(kind);
    Ok(None)
}

pub(super) fn rename(call: &mut Call<'_>) -> Outcome {
    let effect = rename_to(call, Existing::Replace)?;
    call.reply.ok();
    Ok(effect)
}

pub(super) fn renamenx(call: &mut Call<'_>) -> Outcome {
    let effect = rename_to(call, Existing::Spare)?;
    call.reply.integer(i64::from(effect.is_some()));
    Ok(effect)
}

fn rename_to(call: &mut Call<'_>, existing: Existing) -> Outcome {
    let (from, to) = (call.args.arg(1), call.args.arg(2));
    let Some(place) = call.find(from) else { return Err(Failure::NoSuchKey) };
    if from == to || (call.find(to).is_some() && existing == Existing::Spare) {
        return Ok(None);
    }
    relocate(call, place_cost(call.keyspace.entry(call.db, place), to), call.db, to, from)?;
    Ok(Some(call.changed_keys(1, 2, 1)))
}

pub(super) fn move_key(call: &mut Call<'_>) -> Outcome {
    let key = call.args.arg(1);
    let to = database(call.args, 2, call.keyspace.databases())?;
    if to == call.db {
        return Err(Failure::SameObject);
    }
    let movable = call.find(key).is_some() && call.keyspace.find(to, key, Use::Touch, call.now).is_none();
    if movable {
        relocate(call, 0, to, key, key)?;
    }
    call.reply.integer(i64::from(movable));
    Ok(movable.then_some(Effect::Moved { from: call.db as u32, to: to as u32 }))
}

/// Takes the entry of `from` out and stores it as `to` in another place; refused before it is taken out.
fn relocate(call: &mut Call<'_>, cost: u64, db: usize, to: &[u8], from: &[u8]) -> Result<(), Failure> {
    call.keyspace.admit(db, cost, 1)?;
    let Some(place) = call.find(from) else { return Ok(()) };
    let Some(entry) = call.keyspace.remove(call.db, place) else { return Ok(()) };
    call.keyspace.put(db, to, entry.value, as_new(entry.deadline), call.now)
}

pub(super) fn copy(call: &mut Call<'_>) -> Outcome {
    let (from, to) = (call.args.arg(1), call.args.arg(2));
    let options = copy_options(call.args, call.db, call.keyspace.databases())?;
    if options.database == call.db && from == to {
        return Err(Failure::SameObject);
    }
    let source = call.read(from).map(|entry| (entry.value.clone(), entry.deadline));
    let target = call.keyspace.find(options.database, to, Use::Touch, call.now);
    let Some((value, deadline)) = source.filter(|_| target.is_none() || options.existing == Existing::Replace) else {
        call.reply.integer(0);
        return Ok(None);
    };
    call.keyspace.put(options.database, to, value, as_new(deadline), call.now)?;
    call.reply.integer(1);
    Ok(Some(Effect::Keys { db: options.database as u32, first: 2, last: 2, step: 1 }))
}

fn as_new(deadline: Option<UnixMillis>) -> NewDeadline {
    deadline.map_or(NewDeadline::Never, NewDeadline::At)
}

/// What an entry will cost under another key.
fn place_cost(entry: Option<&Entry>, key: &[u8]) -> u64 {
    entry.map_or(0, |entry| entry_cost(key.len(), entry.value.heap_len(), entry.deadline.is_some()))
}

pub(super) fn keys(call: &mut Call<'_>) -> Outcome {
    let pattern = call.args.arg(1);
    let database = call.keyspace.database(call.db);
    let wanted = |entry: &&Entry| !entry.is_expired(call.now) && is_match(pattern, &entry.key);
    let found: Vec<&[u8]> = database.iter().filter(wanted).map(|entry| &*entry.key).collect();
    call.reply.array(found.len());
    for key in found {
        call.reply.bulk(key);
        call.reply.expect_within(call.keyspace.reply_bytes_max())?;
    }
    Ok(None)
}

pub(super) fn scan(call: &mut Call<'_>) -> Outcome {
    let cursor = scan_cursor(call.args.arg(1))?;
    let options = scan_options(call.args)?;
    let kind_fits = options.kind.is_none_or(|kind| kind.eq_ignore_ascii_case(STRING));
    let mut found: Vec<&[u8]> = Vec::new();
    let places_max = options.count.saturating_mul(SCAN_PLACES_PER_ENTRY);
    let next = call.keyspace.database(call.db).walk(cursor, options.count, places_max, |entry| {
        let pattern_fits = options.pattern.is_none_or(|pattern| is_match(pattern, &entry.key));
        if kind_fits && pattern_fits && !entry.is_expired(call.now) {
            found.push(&entry.key);
        }
    });
    call.reply.array(2);
    call.reply.bulk(next.to_string().as_bytes());
    call.reply.array(found.len());
    for key in found {
        call.reply.bulk(key);
        call.reply.expect_within(call.keyspace.reply_bytes_max())?;
    }
    Ok(None)
}

/// A lone star matches every key, the empty one too, which the patterns themselves would not.
fn is_match(pattern: &[u8], key: &[u8]) -> bool {
    pattern == b"*" || matches(pattern, key, Case::Sensitive)
}

pub(super) fn dbsize(call: &mut Call<'_>) -> Outcome {
    call.reply.integer(call.keyspace.database(call.db).len() as i64);
    Ok(None)
}

pub(super) fn randomkey(call: &mut Call<'_>) -> Outcome {
    match call.keyspace.random_key(call.db, call.now) {
        Some(key) => call.reply.bulk(key),
        None => call.reply.null(),
    }
    Ok(None)
}

pub(super) fn flushdb(call: &mut Call<'_>) -> Outcome {
    flush_option(call.args)?;
    call.keyspace.flush(call.db);
    call.reply.ok();
    Ok(Some(Effect::Flushed { db: call.db as u32 }))
}

pub(super) fn flushall(call: &mut Call<'_>) -> Outcome {
    flush_option(call.args)?;
    for db in 0..call.keyspace.databases() {
        call.keyspace.flush(db);
    }
    call.reply.ok();
    Ok(Some(Effect::FlushedAll))
}

pub(super) fn swapdb(call: &mut Call<'_>) -> Outcome {
    let number = |i, refused| integer(call.args, i).ok().and_then(|n| i32::try_from(n).ok()).ok_or(refused);
    let first = number(1, Failure::FirstDatabaseIndex)?;
    let second = number(2, Failure::SecondDatabaseIndex)?;
    let count = call.keyspace.databases();
    let index = |n: i32| usize::try_from(n).ok().filter(|&n| n < count).ok_or(Failure::DatabaseIndex);
    let (first, second) = (index(first)?, index(second)?);
    call.reply.ok();
    if first == second {
        return Ok(None);
    }
    call.keyspace.swap(first, second);
    Ok(Some(Effect::Swapped { first: first as u32, second: second as u32 }))
}

pub(super) fn time(call: &mut Call<'_>) -> Outcome {
    let millis = call.now.0;
    call.reply.array(2);
    call.reply.bulk((millis / 1_000).to_string().as_bytes());
    call.reply.bulk((millis % 1_000 * 1_000).to_string().as_bytes());
    Ok(None)
}

pub(super) fn object(call: &mut Call<'_>) -> Outcome {
    let subcommand = call.args.arg(1).to_ascii_lowercase();
    let (name, len) = match &*subcommand {
        b"encoding" => ("object|encoding", 3),
        b"freq" => ("object|freq", 3),
        b"help" => ("object|help", 2),
        b"idletime" => ("object|idletime", 3),
        b"refcount" => ("object|refcount", 3),
        _ => return Err(Failure::UnknownSubcommand { subcommand: call.args.arg(1).to_vec() }),
    };
    if call.args.len() != len {
        return Err(Failure::Arity { command: name });
    }
    if subcommand == b"help" {
        call.reply.array(OBJECT_HELP.len());
        OBJECT_HELP.iter().for_each(|line| call.reply.simple(line));
        return Ok(None);
    }
    let place = call.keyspace.find(call.db, call.args.arg(2), Use::Peek, call.now);
    match (place.and_then(|place| call.keyspace.entry(call.db, place)), &*subcommand) {
        (None, _) => call.reply.null(),
        (Some(entry), b"encoding") => call.reply.bulk(entry.value.encoding()),
        (Some(entry), b"refcount") => call.reply.integer(entry.value.references()),
        (Some(entry), b"idletime") => {
            let idle_ms = call.now.0.saturating_sub(entry.accessed.0);
            call.reply.integer((idle_ms / 1_000) as i64);
        }
        (Some(_), _) => return Err(Failure::NoFrequency),
    }
    Ok(None)
}
