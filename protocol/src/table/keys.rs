//! Where the keys of a request stand: key specifications, and the iterator that applies them.
//!
//! A [`KeySpec`] is one key specification of the server's `COMMAND` reply: where to begin (an index, or after a
//! keyword) and how to find the keys from there (a range, or a count given as an argument). [`Keys`] applies all
//! specifications of a command to the arguments of one request and yields argument indexes; it allocates nothing,
//! yields at most `arguments x specifications` indexes and never an index past the end, whatever the arguments are.
//!
//! Three commands have keys that specifications cannot tell; they have a rule of their own.
//!
//! The indexes are the ones that `COMMAND GETKEYS` answers with (a test compares them on a live server). Where the
//! server answers with an error instead, [`KeyKnowledge`] is `Incomplete`: such a request must be treated as one
//! whose keys are not known.

use std::borrow::Cow;

use bitflags::bitflags;

use super::flags::from_words;
use crate::args::Args;

bitflags! {
    /// What a command does with the keys of one specification.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct KeyFlags: u16 {
        /// Reads the value, does not change it.
        const RO = 1;
        /// Reads and changes.
        const RW = 1 << 1;
        /// Overwrites without reading.
        const OW = 1 << 2;
        /// Removes the key.
        const RM = 1 << 3;
        /// Tells the client something of the value.
        const ACCESS = 1 << 4;
        /// The new value depends on the old one or on the arguments.
        const UPDATE = 1 << 5;
        /// Adds to the value.
        const INSERT = 1 << 6;
        /// Removes from the value.
        const DELETE = 1 << 7;
        /// Not a key although it is routed like one (shard channels).
        const NOT_KEY = 1 << 8;
        /// The specification may miss keys.
        const INCOMPLETE = 1 << 9;
        /// The flags depend on the arguments.
        const VARIABLE_FLAGS = 1 << 10;
    }
}

/// Words of [`KeyFlags`].
pub const KEY_FLAG_WORDS: &[(&str, KeyFlags)] = &[
    ("RO", KeyFlags::RO),
    ("RW", KeyFlags::RW),
    ("OW", KeyFlags::OW),
    ("RM", KeyFlags::RM),
    ("access", KeyFlags::ACCESS),
    ("update", KeyFlags::UPDATE),
    ("insert", KeyFlags::INSERT),
    ("delete", KeyFlags::DELETE),
    ("not_key", KeyFlags::NOT_KEY),
    ("incomplete", KeyFlags::INCOMPLETE),
    ("variable_flags", KeyFlags::VARIABLE_FLAGS),
];

/// One key specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// What is done with these keys.
    pub flags: KeyFlags,
    /// Where to begin.
    pub begin: BeginSearch,
    /// How to find the keys from there.
    pub find: FindKeys,
}

/// Where the search for keys begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginSearch {
    /// At this argument (the command's name is argument 0).
    Index(u16),
    /// After this word (case-insensitive).
    Keyword {
        /// The word.
        word: Cow<'static, str>,
        /// First argument to look at; negative: counted from the end, searching towards the front.
        from: i16,
    },
    /// The server cannot tell.
    Unknown,
}

/// How keys are found from where the search begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindKeys {
    /// A range of arguments.
    Range {
        /// Last key, relative to the beginning; negative: counted from the end of the arguments.
        last: i16,
        /// Distance from key to key, at least 1.
        step: u16,
        /// With a negative `last`: keys take only one `limit`-th of what remains; 0 and 1: all of it.
        limit: u16,
    },
    /// The number of keys is an argument.
    Keynum {
        /// Where the number stands, relative to the beginning.
        at: u16,
        /// Where the first key stands, relative to the beginning.
        first: u16,
        /// Distance from key to key, at least 1.
        step: u16,
    },
    /// The server cannot tell.
    Unknown,
}

/// How much the specifications tell of one request's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKnowledge {
    /// The command has no keys.
    None,
    /// [`Keys`] yields every key (possibly none, where the command allows that).
    Complete,
    /// There may be keys that [`Keys`] does not yield, or the arguments make no sense to the specifications.
    Incomplete,
}

/// Commands whose keys are found by other means than their specifications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KeyRule {
    /// By the specifications.
    #[default]
    Specs,
    /// `SORT` and `SORT_RO`: the key, and the last `STORE` destination; `BY` and `GET` read keys named by values.
    Sort,
    /// `MIGRATE`: the third argument, or what follows `KEYS` if that is empty.
    Migrate,
}

/// The argument indexes of a request's keys. Made by [`Command::keys`](super::Command::keys).
#[derive(Clone, Debug)]
pub struct Keys<'a> {
    args: Args<'a>,
    specs: std::slice::Iter<'a, KeySpec>,
    skipped: KeyFlags,
    span: Span,
    then: Span,
}

/// A run of argument indexes: `next`, `next + step`, ... below `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    next: usize,
    end: usize,
    step: usize,
}

/// What one specification says of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// These keys.
    Keys(Span),
    /// None: the keyword is not there.
    Absent,
    /// None: the count is zero.
    Zero,
    /// The arguments (or the specification) make no sense.
    Invalid,
}

// === impl Keys ===

impl<'a> Keys<'a> {
    /// The keys of `args`, without those of specifications that have one of the `skipped` flags.
    pub(super) fn new(rule: KeyRule, specs: &'a [KeySpec], args: Args<'a>, skipped: KeyFlags) -> Self {
        let (specs, [span, then]) = match rule {
            KeyRule::Specs => (specs, [Span::default(); 2]),
            KeyRule::Sort => (&specs[..0], sort_spans(args, skipped)),
            KeyRule::Migrate => (&specs[..0], [migrate_span(args), Span::default()]),
        };
        Self { args, specs: specs.iter(), skipped: skipped | KeyFlags::NOT_KEY, span, then }
    }

    /// The one key at `index`, which the caller has checked to exist.
    pub(super) fn single(args: Args<'a>, index: usize) -> Self {
        let span = Span::one(index);
        Self { args, specs: [].iter(), skipped: KeyFlags::empty(), span, then: Span::default() }
    }

    /// No keys.
    pub(super) fn none(args: Args<'a>) -> Self {
        Self { args, specs: [].iter(), skipped: KeyFlags::empty(), span: Span::default(), then: Span::default() }
    }
}

impl Iterator for Keys<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        loop {
            if self.span.next < self.span.end {
                let index = self.span.next;
                self.span.next += self.span.step;
                return Some(index);
            }
            if self.then != Span::default() {
                self.span = std::mem::take(&mut self.then);
                continue;
            }
            let spec = self.specs.next()?;
            if spec.flags.intersects(self.skipped) {
                continue;
            }
            if let Found::Keys(span) = spec.apply(self.args) {
                self.span = span;
            }
        }
    }
}

// === impl Span ===

impl Span {
    fn one(index: usize) -> Self {
        Self { next: index, end: index + 1, step: 1 }
    }
}

// === impl KeySpec ===

impl KeySpec {
    /// The specification that the legacy first/last/step of a `COMMAND` row stands for; `None` without keys.
    pub(crate) fn legacy(flags: KeyFlags, first: i16, last: i16, step: i16) -> Option<Self> {
        let begin = u16::try_from(first).ok().filter(|first| *first > 0)?;
        let step = u16::try_from(step).ok().filter(|step| *step > 0)?;
        let last = if last < 0 { last } else { last.saturating_sub(first) };
        Some(Self { flags, begin: BeginSearch::Index(begin), find: FindKeys::Range { last, step, limit: 0 } })
    }

    /// The index of the only key that this specification can ever yield, if it is of that kind.
    pub(super) fn single_index(&self) -> Option<u16> {
        match (&self.begin, self.find) {
            (BeginSearch::Index(index), FindKeys::Range { last: 0, .. }) => Some(*index),
            _ => None,
        }
    }

    /// Where the keys of `args` stand. Arithmetic is in `i64`: arguments are bounded far below that.
    fn apply(&self, args: Args<'_>) -> Found {
        let argc = args.len() as i64;
        let begin = match &self.begin {
            BeginSearch::Index(index) => i64::from(*index),
            BeginSearch::Keyword { word, from } => match find_keyword(args, word, *from) {
                Some(index) => index as i64 + 1,
                None => return Found::Absent,
            },
            BeginSearch::Unknown => return Found::Invalid,
        };
        let (first, last, step) = match self.find {
            FindKeys::Range { last, step, limit } => {
                let end = match (i64::from(last), i64::from(limit)) {
                    (last @ 0.., _) => begin + last,
                    (last, 0 | 1) => argc + last,
                    (last, limit) => begin + (argc - begin) / limit + last,
                };
                (begin, end, step)
            }
            FindKeys::Keynum { at, first, step } => {
                let count = usize::try_from(begin + i64::from(at)).ok().and_then(|at| args.get(at)).and_then(count_of);
                match count {
                    Some(0) => return Found::Zero,
                    Some(count) => {
                        let first = begin + i64::from(first);
                        (first, first + (count - 1).saturating_mul(i64::from(step)), step)
                    }
                    None => return Found::Invalid,
                }
            }
            FindKeys::Unknown => return Found::Invalid,
        };
        if first < 1 || last < first || last >= argc || step == 0 {
            return Found::Invalid;
        }
        Found::Keys(Span { next: first as usize, end: last as usize + 1, step: usize::from(step) })
    }

    /// True if `args` hold the keyword of a written key more than once: the server obeys the last, the
    /// specification finds the first.
    fn is_ambiguous(&self, args: Args<'_>) -> bool {
        let BeginSearch::Keyword { word, from: from @ 1.. } = &self.begin else { return false };
        !self.flags.contains(KeyFlags::RO)
            && (usize::from(from.unsigned_abs())..args.len()).filter(|i| is_word(args.arg(*i), word)).count() > 1
    }
}

/// What `specs` (by `rule`) tell of the keys of `args`. `zero_allowed`: the command may have no key at all.
pub(super) fn knowledge(rule: KeyRule, specs: &[KeySpec], args: Args<'_>, zero_allowed: bool) -> KeyKnowledge {
    match rule {
        KeyRule::Specs => {}
        KeyRule::Sort => return sort_knowledge(args),
        KeyRule::Migrate if migrate_span(args) == Span::default() => return KeyKnowledge::Incomplete,
        KeyRule::Migrate => return KeyKnowledge::Complete,
    }
    let (mut keyed, mut found) = (false, false);
    for spec in specs.iter().filter(|spec| !spec.flags.contains(KeyFlags::NOT_KEY)) {
        keyed = true;
        if spec.flags.contains(KeyFlags::INCOMPLETE) || spec.is_ambiguous(args) {
            return KeyKnowledge::Incomplete;
        }
        match spec.apply(args) {
            Found::Keys(_) => found = true,
            Found::Absent => {}
            Found::Zero if zero_allowed => found = true,
            Found::Zero | Found::Invalid => return KeyKnowledge::Incomplete,
        }
    }
    match (keyed, found) {
        (false, _) => KeyKnowledge::None,
        (true, true) => KeyKnowledge::Complete,
        (true, false) => KeyKnowledge::Incomplete,
    }
}

/// The flags that `words` name.
pub(crate) fn key_flags_from<'a>(words: impl Iterator<Item = &'a [u8]>) -> KeyFlags {
    from_words(KEY_FLAG_WORDS, words)
}

/// True if `arg` is `word`, in whatever case.
pub(crate) fn is_word(arg: &[u8], word: &str) -> bool {
    arg.eq_ignore_ascii_case(word.as_bytes())
}

/// Index of the first argument that is `word`, looking from `from` on; negative: from the end towards the front.
fn find_keyword(args: Args<'_>, word: &str, from: i16) -> Option<usize> {
    let distance = usize::from(from.unsigned_abs());
    if from >= 0 {
        return (distance.max(1)..args.len()).find(|i| is_word(args.arg(*i), word));
    }
    let start = args.len().checked_sub(distance)?;
    (1..=start).rev().find(|i| is_word(args.arg(*i), word))
}

/// A number of keys as the server reads it: decimal digits, no sign, no leading zero, at most 18 of them.
fn count_of(arg: &[u8]) -> Option<i64> {
    match arg {
        [b'0'] => Some(0),
        [b'1'..=b'9', rest @ ..] if rest.len() < 18 && rest.iter().all(u8::is_ascii_digit) => {
            Some(arg.iter().fold(0, |n, digit| n * 10 + i64::from(digit - b'0')))
        }
        _ => None,
    }
}

/// One step through the options of `SORT`.
enum SortOption {
    Store(usize),
    Lookup,
    Other,
}

/// The options of `SORT` in order, each read as the server reads it.
fn sort_options(args: Args<'_>) -> impl Iterator<Item = SortOption> {
    let mut i = 2;
    std::iter::from_fn(move || {
        let option = args.get(i)?;
        let left = args.len() - i - 1;
        let (taken, option) = if is_word(option, "limit") {
            (3, SortOption::Other)
        } else if is_word(option, "get") {
            // `GET #` is the element itself: no other key is read.
            (2, if args.get(i + 1) == Some(b"#") { SortOption::Other } else { SortOption::Lookup })
        } else if is_word(option, "by") {
            // A pattern without `*` reads nothing: it only means "do not sort".
            let reads = args.arg(i + 1).contains(&b'*');
            (2, if reads { SortOption::Lookup } else { SortOption::Other })
        } else if is_word(option, "store") && left >= 1 {
            (2, SortOption::Store(i + 1))
        } else {
            (1, SortOption::Other)
        };
        i += taken;
        Some(option)
    })
}

fn sort_spans(args: Args<'_>, skipped: KeyFlags) -> [Span; 2] {
    if args.len() < 2 {
        return [Span::default(); 2];
    }
    let source = if skipped.contains(KeyFlags::RO) { Span::default() } else { Span::one(1) };
    // SORT_RO has no STORE: the server answers with a syntax error, and a key too many is harmless there.
    let stored = sort_options(args).filter_map(|o| if let SortOption::Store(i) = o { Some(i) } else { None }).last();
    [source, stored.map(Span::one).unwrap_or_default()]
}

fn sort_knowledge(args: Args<'_>) -> KeyKnowledge {
    if args.len() < 2 || sort_options(args).any(|option| matches!(option, SortOption::Lookup)) {
        return KeyKnowledge::Incomplete;
    }
    KeyKnowledge::Complete
}

/// `MIGRATE host port key|"" db timeout [COPY] [REPLACE] [AUTH p | AUTH2 u p] [KEYS key ...]`; empty if malformed.
fn migrate_span(args: Args<'_>) -> Span {
    let single = match args.get(3) {
        None => return Span::default(),
        Some(key) => !key.is_empty(),
    };
    let mut i = 6;
    while let Some(option) = args.get(i) {
        if is_word(option, "keys") {
            let several = i + 1 < args.len() && !single;
            return if several { Span { next: i + 1, end: args.len(), step: 1 } } else { Span::default() };
        }
        i += match () {
            () if is_word(option, "auth") => 2,
            () if is_word(option, "auth2") => 3,
            () => 1,
        };
    }
    Span::one(3)
}
