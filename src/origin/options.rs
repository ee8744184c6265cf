//! The options behind the fixed arguments: SET and GETEX, the EXPIRE family, COPY and SCAN.
//!
//! Parsing changes nothing and knows no key, so a refused command has had no effect. The order of the checks is the
//! server's, because it decides which error a client sees.

use larder_protocol::args::Args;

use super::UnixMillis;
use super::reply::{Failure, c_string};
use super::value::parse_integer;

/// Milliseconds in a second.
const SECOND_MS: i64 = 1_000;
/// Longest option there is (`KEEPTTL`, `PERSIST`, `REPLACE`), in bytes.
const OPTION_LEN_MAX: usize = 7;

/// How a moment is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeForm {
    pub(super) unit: Unit,
    pub(super) base: Base,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Counted from now.
    Now,
    /// Counted from the start of 1970.
    Epoch,
}

/// What SET and GETEX shall do about the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lifetime<'a> {
    /// No option was given.
    Unsaid,
    Keep,
    Persist,
    Until {
        form: TimeForm,
        number: &'a [u8],
    },
}

/// When SET stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Always,
    IfMissing,
    IfPresent,
}

/// What SET answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Outcome,
    OldValue,
}

/// The options of SET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetOptions<'a> {
    pub(super) condition: Condition,
    pub(super) answer: Answer,
    pub(super) lifetime: Lifetime<'a>,
}

/// When EXPIRE and its kin change a deadline; all that are given must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ExpireConditions {
    only: Option<Presence>,
    only_if: Option<Direction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Without,
    With,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Later,
    Earlier,
}

/// The options of SCAN.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScanOptions<'a> {
    pub(super) pattern: Option<&'a [u8]>,
    pub(super) kind: Option<&'a [u8]>,
    pub(super) count: u64,
}

/// The options of COPY.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyOptions {
    pub(super) database: usize,
    pub(super) existing: Existing,
}

/// What COPY does with a key that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Spare,
    Replace,
}

/// A word as options are compared: upper case, up to the first zero byte, longer ones as no option at all.
struct Word {
    bytes: [u8; OPTION_LEN_MAX],
    len: usize,
}

// === impl Word ===

impl Word {
    fn new(written: &[u8]) -> Self {
        let text = c_string(written);
        let mut word = Self { bytes: [0; OPTION_LEN_MAX], len: 0 };
        if text.len() <= OPTION_LEN_MAX {
            word.len = text.len();
            word.bytes[..text.len()].copy_from_slice(text);
            word.bytes.make_ascii_uppercase();
        }
        word
    }

    fn text(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The 64-bit integer in argument `i`.
pub(super) fn integer(args: Args<'_>, i: usize) -> Result<i64, Failure> {
    parse_integer(args.arg(i)).ok_or(Failure::NotInteger)
}

/// The number of a database in argument `i`, below `count`.
pub(super) fn database(args: Args<'_>, i: usize, count: usize) -> Result<usize, Failure> {
    let (min, max) = (i64::from(i32::MIN), i64::from(i32::MAX));
    let number = integer(args, i)?;
    if !(min..=max).contains(&number) {
        return Err(Failure::IntegerOutOfRange { min, max });
    }
    usize::try_from(number).ok().filter(|&number| number < count).ok_or(Failure::DatabaseIndex)
}

/// Options of SET, from argument 3 on.
pub(super) fn set_options(args: Args<'_>) -> Result<SetOptions<'_>, Failure> {
    let mut options = SetOptions { condition: Condition::Always, answer: Answer::Outcome, lifetime: Lifetime::Unsaid };
    let mut i = 3;
    while i < args.len() {
        match (Word::new(args.arg(i)).text(), options.condition) {
            (b"NX", Condition::Always | Condition::IfMissing) => options.condition = Condition::IfMissing,
            (b"XX", Condition::Always | Condition::IfPresent) => options.condition = Condition::IfPresent,
            (b"GET", _) => options.answer = Answer::OldValue,
            (b"KEEPTTL", _) if matches!(options.lifetime, Lifetime::Unsaid | Lifetime::Keep) => {
                options.lifetime = Lifetime::Keep;
            }
            _ => {
                options.lifetime = until(args, i, options.lifetime)?;
                i += 1;
            }
        }
        i += 1;
    }
    Ok(options)
}

/// Options of GETEX, from argument 2 on.
pub(super) fn getex_options(args: Args<'_>) -> Result<Lifetime<'_>, Failure> {
    let mut lifetime = Lifetime::Unsaid;
    let mut i = 2;
    while i < args.len() {
        if Word::new(args.arg(i)).text() == b"PERSIST" && matches!(lifetime, Lifetime::Unsaid | Lifetime::Persist) {
            lifetime = Lifetime::Persist;
        } else {
            lifetime = until(args, i, lifetime)?;
            i += 1;
        }
        i += 1;
    }
    Ok(lifetime)
}

/// EX, PX, EXAT or PXAT at argument `i` and its number behind it. The same one may be said twice: the last counts.
fn until<'a>(args: Args<'a>, i: usize, before: Lifetime<'a>) -> Result<Lifetime<'a>, Failure> {
    let form = match Word::new(args.arg(i)).text() {
        b"EX" => TimeForm { unit: Unit::Seconds, base: Base::Now },
        b"PX" => TimeForm { unit: Unit::Millis, base: Base::Now },
        b"EXAT" => TimeForm { unit: Unit::Seconds, base: Base::Epoch },
        b"PXAT" => TimeForm { unit: Unit::Millis, base: Base::Epoch },
        _ => return Err(Failure::Syntax),
    };
    let allowed = match before {
        Lifetime::Unsaid => true,
        Lifetime::Until { form: said, .. } => said == form,
        Lifetime::Keep | Lifetime::Persist => false,
    };
    match args.get(i + 1) {
        Some(number) if allowed => Ok(Lifetime::Until { form, number }),
        _ => Err(Failure::Syntax),
    }
}

/// The moment that an option of SET, SETEX or GETEX names: above zero and within 64 bits.
pub(super) fn positive_moment(
    form: TimeForm,
    number: &[u8],
    now: UnixMillis,
    command: &'static str,
) -> Result<UnixMillis, Failure> {
    let refused = Failure::ExpireTime { command };
    let number = parse_integer(number).ok_or(Failure::NotInteger)?;
    if number <= 0 {
        return Err(refused);
    }
    let moment = moment(form, number, now).and_then(|moment| u64::try_from(moment).ok());
    moment.map(UnixMillis).ok_or(refused)
}

/// The moment that EXPIRE and its kin name: negative ones are allowed.
pub(super) fn any_moment(form: TimeForm, number: i64, now: UnixMillis, command: &'static str) -> Result<i64, Failure> {
    moment(form, number, now).ok_or(Failure::ExpireTime { command })
}

fn moment(form: TimeForm, number: i64, now: UnixMillis) -> Option<i64> {
    let millis = match form.unit {
        Unit::Seconds => number.checked_mul(SECOND_MS)?,
        Unit::Millis => number,
    };
    match form.base {
        Base::Now => millis.checked_add(now.to_signed()),
        Base::Epoch => Some(millis),
    }
}

/// Options of EXPIRE and its kin, from argument 3 on.
pub(super) fn expire_conditions(args: Args<'_>) -> Result<ExpireConditions, Failure> {
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for option in args.iter().skip(3) {
        match Word::new(option).text() {
            b"NX" => nx = true,
            b"XX" => xx = true,
            b"GT" => gt = true,
            b"LT" => lt = true,
            _ => return Err(Failure::UnsupportedOption { option: option.to_vec() }),
        }
    }
    if nx && (xx || gt || lt) {
        return Err(Failure::ExpireConflict);
    }
    if gt && lt {
        return Err(Failure::ExpireDirectionConflict);
    }
    Ok(ExpireConditions {
        only: if nx { Some(Presence::Without) } else { xx.then_some(Presence::With) },
        only_if: if gt { Some(Direction::Later) } else { lt.then_some(Direction::Earlier) },
    })
}

// === impl ExpireConditions ===

impl ExpireConditions {
    /// True if a key that lives until `current` (for ever, if none) may get the deadline `new`.
    pub(super) fn hold(self, current: Option<UnixMillis>, new: i64) -> bool {
        let presence = match self.only {
            None => true,
            Some(Presence::Without) => current.is_none(),
            Some(Presence::With) => current.is_some(),
        };
        let direction = match (self.only_if, current) {
            (None, _) | (Some(Direction::Earlier), None) => true,
            (Some(Direction::Later), None) => false,
            (Some(Direction::Later), Some(current)) => new > current.to_signed(),
            (Some(Direction::Earlier), Some(current)) => new < current.to_signed(),
        };
        presence && direction
    }
}

/// The cursor of SCAN, as C's `strtoul` reads it.
pub(super) fn scan_cursor(written: &[u8]) -> Result<u64, Failure> {
    let text = c_string(written);
    if text.is_empty() {
        return Ok(0);
    }
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Failure::InvalidCursor);
    }
    let append = |value: u64, digit: &u8| value.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
    let value = digits.iter().try_fold(0, append).ok_or(Failure::InvalidCursor)?;
    Ok(if negative { value.wrapping_neg() } else { value })
}

/// Options of SCAN, from argument 2 on.
pub(super) fn scan_options(args: Args<'_>) -> Result<ScanOptions<'_>, Failure> {
    const COUNT_DEFAULT: u64 = 10;
    let mut options = ScanOptions { pattern: None, kind: None, count: COUNT_DEFAULT };
    for i in (2..args.len()).step_by(2) {
        let value = args.get(i + 1).ok_or(Failure::Syntax)?;
        match Word::new(args.arg(i)).text() {
            b"COUNT" => {
                let count = integer(args, i + 1)?;
                options.count = u64::try_from(count).ok().filter(|&count| count > 0).ok_or(Failure::Syntax)?;
            }
            b"MATCH" => options.pattern = Some(value),
            b"TYPE" => options.kind = Some(c_string(value)),
            _ => return Err(Failure::Syntax),
        }
    }
    Ok(options)
}

/// Options of COPY, from argument 3 on.
pub(super) fn copy_options(args: Args<'_>, database_from: usize, count: usize) -> Result<CopyOptions, Failure> {
    let mut options = CopyOptions { database: database_from, existing: Existing::Spare };
    let mut i = 3;
    while i < args.len() {
        match Word::new(args.arg(i)).text() {
            b"REPLACE" => options.existing = Existing::Replace,
            b"DB" if i + 1 < args.len() => {
                i += 1;
                options.database = database(args, i, count)?;
            }
            _ => return Err(Failure::Syntax),
        }
        i += 1;
    }
    Ok(options)
}

/// The one option of FLUSHDB and FLUSHALL: both ways empty at once here.
pub(super) fn flush_option(args: Args<'_>) -> Result<(), Failure> {
    match (args.len(), Word::new(args.arg(1)).text()) {
        (1, _) | (2, b"SYNC" | b"ASYNC") => Ok(()),
        _ => Err(Failure::Syntax),
    }
}
