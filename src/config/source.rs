//! Where settings come from: flags over environment over file over defaults, each value remembering its origin.
//!
//! [`Reader`] hands out one setting at a time. Whoever asks for a setting thereby declares it: the list of known keys,
//! the names of the environment variables and the output of `check-config` all follow from the calls that build
//! [`Config`](super::Config), and cannot differ from it. A bad value is noted and the default stands in, so that one
//! run reports every problem; nothing built from a reader with problems is ever used.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::value;

/// A longer configuration file is refused, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Of a refused value or unknown key, at most this many characters are repeated in the message.
const SHOWN_CHARS_MAX: usize = 80;

/// What each of Larder's environment variables begins with.
const ENVIRONMENT_PREFIX: &str = "LARDER_";

/// A name further than this from every known one (in single-character edits) is not taken for a slip of the fingers.
const TYPO_EDITS_MAX: usize = 2;

/// How much less a key of another section resembles an unknown one, in single-character edits.
const OTHER_SECTION_COST: isize = 3;

/// Why a configuration was refused. The messages name the place, the key, the value and what was expected, and never
/// hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing, unreadable, too long or not UTF-8.
    #[error("{file}: cannot be read: {error}")]
    Unreadable {
        /// As it was given.
        file: String,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The file is not TOML.
    #[error("{file}: line {line}, column {column}: {message}")]
    Syntax {
        /// As it was given.
        file: String,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// From the TOML parser, on one line.
        message: String,
    },
    /// There is no such setting.
    #[error("{origin}: unknown key {key}, the nearest is {nearest}")]
    UnknownKey {
        /// Where it stood.
        origin: Origin,
        /// The whole key, as in `l1.size_bytes_max`.
        key: String,
        /// The known key, variable or section that resembles it most.
        nearest: String,
    },
    /// The value is of the wrong kind or out of range.
    #[error("{origin}: {key} = {value}: {expected}")]
    BadValue {
        /// Where it stood.
        origin: Origin,
        /// The whole key, as in `l1.size_bytes_max`.
        key: &'static str,
        /// The value as it was given, shortened; hidden if it may be a secret.
        value: String,
        /// What is accepted here.
        expected: String,
    },
    /// `--set` without a key and a value.
    #[error("flag --set: {given}: expected key=value such as l1.size_bytes_max=64mb")]
    BadAssignment {
        /// What could be the key.
        given: String,
    },
    /// Two settings that contradict each other.
    #[error("{first} = {first_value} ({first_origin}) contradicts {second} = {second_value} ({second_origin}): {rule}")]
    Conflict {
        /// The one key.
        first: &'static str,
        /// Its value.
        first_value: String,
        /// Where it stood.
        first_origin: Origin,
        /// The other key.
        second: &'static str,
        /// Its value.
        second_value: String,
        /// Where it stood.
        second_origin: Origin,
        /// What must hold.
        rule: &'static str,
    },
}

/// Everything that is wrong with a configuration, one message a line. Never empty.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// Where a setting's value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The configuration file, as its path was given.
    File(String),
    /// An environment variable, by its name.
    Environment(String),
    /// A command line flag, by its name.
    Flag(String),
}

/// One setting as it was resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The whole key, as in `l1.size_bytes_max`.
    pub key: &'static str,
    /// The value in TOML, secrets hidden.
    pub value: String,
    /// Who decided it.
    pub origin: Origin,
}

/// The layers above the defaults, not yet looked at in detail.
#[derive(Default)]
pub struct Sources {
    file: Option<(String, toml::Table)>,
    environment: BTreeMap<String, OsString>,
    /// In order; the last one for a key counts.
    flags: Vec<Flag>,
}

struct Flag {
    name: &'static str,
    key: String,
    text: String,
    syntax: Syntax,
}

/// How the text of a flag or variable is meant where a string is wanted.
#[derive(Clone, Copy)]
enum Syntax {
    /// Every character counts.
    Bare,
    /// A quoted TOML string is taken without its quotes.
    BareOrQuoted,
}

/// A value as one layer gave it.
enum Given<'a> {
    Toml(&'a toml::Value),
    Text(&'a str, Syntax),
    /// An environment variable that is not UTF-8.
    Garbled,
}

/// Hands out the settings one by one; see the module's text.
pub(super) struct Reader<'a> {
    sources: &'a Sources,
    settings: Vec<Setting>,
    problems: Vec<ConfigError>,
}

// === impl Sources ===

impl Sources {
    /// Reads a configuration file, in place of any file read before.
    pub fn read_file(&mut self, path: &Path) -> Result<(), ConfigErrors> {
        let name = path.display().to_string();
        match read_text(path) {
            Ok(text) => self.parse_file(&name, &text),
            Err(error) => Err(ConfigErrors(vec![ConfigError::Unreadable { file: name, error }])),
        }
    }

    /// Takes `text` for the content of the file `name`.
    pub fn parse_file(&mut self, name: &str, text: &str) -> Result<(), ConfigErrors> {
        match text.parse::<toml::Table>() {
            Ok(table) => {
                self.file = Some((name.to_owned(), table));
                Ok(())
            }
            Err(error) => Err(ConfigErrors(vec![describe_syntax(name, text, &error)])),
        }
    }

    /// Takes the `LARDER_*` variables among these. An empty one counts as not set.
    pub fn add_environment(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) {
        let ours = variables.into_iter().filter_map(|(name, text)| {
            let name = name.into_string().ok().filter(|name| name.starts_with(ENVIRONMENT_PREFIX))?;
            (!text.is_empty()).then_some((name, text))
        });
        self.environment.extend(ours);
    }

    /// Sets `key` by the flag `name` (as in `--listen`), whose text is taken as it is.
    pub fn add_flag(&mut self, name: &'static str, key: &'static str, text: impl Into<String>) {
        self.flags.push(Flag { name, key: key.to_owned(), text: text.into(), syntax: Syntax::Bare });
    }

    /// Takes the `key=value` of a `--set`, whose value is TOML or a bare word.
    pub fn add_assignment(&mut self, assignment: &str) -> Result<(), ConfigErrors> {
        let is_key = |key: &str| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'));
        match assignment.split_once('=') {
            Some((key, text)) if !key.trim().is_empty() && is_key(key.trim()) => {
                let (key, text) = (key.trim().to_owned(), text.trim().to_owned());
                self.flags.push(Flag { name: "--set", key, text, syntax: Syntax::BareOrQuoted });
                Ok(())
            }
            _ => {
                let given = assignment.split(|c: char| c != '.' && c != '_' && !c.is_ascii_alphanumeric()).next();
                let given = shorten(given.unwrap_or_default());
                Err(ConfigErrors(vec![ConfigError::BadAssignment { given }]))
            }
        }
    }

    /// What the highest layer says about `key`.
    fn find(&self, key: &str) -> Option<(Origin, Given<'_>)> {
        if let Some(flag) = self.flags.iter().rfind(|flag| flag.key == key) {
            return Some((Origin::Flag(flag.name.to_owned()), Given::Text(&flag.text, flag.syntax)));
        }
        if let Some((name, text)) = self.environment.get_key_value(&environment_name(key)) {
            let given = text.to_str().map_or(Given::Garbled, |text| Given::Text(text, Syntax::Bare));
            return Some((Origin::Environment(name.clone()), given));
        }
        let (name, table) = self.file.as_ref()?;
        let (parents, last) = key.rsplit_once('.').map_or((None, key), |(parents, last)| (Some(parents), last));
        let section = parents.into_iter().flat_map(|parents| parents.split('.')).try_fold(table, enter_table)?;
        Some((Origin::File(name.clone()), Given::Toml(section.get(last)?)))
    }
}

fn enter_table<'a>(table: &'a toml::Table, name: &str) -> Option<&'a toml::Table> {
    table.get(name)?.as_table()
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Line and message only: the parser's own text quotes the line, which may hold a password.
fn describe_syntax(name: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    ConfigError::Syntax {
        file: name.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message: error.message().lines().collect::<Vec<_>>().join("; "),
    }
}

/// `l1.size_bytes_max` is `LARDER_L1_SIZE_BYTES_MAX`.
pub(super) fn environment_name(key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", key.replace('.', "_").to_ascii_uppercase())
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) fn new(sources: &'a Sources) -> Self {
        Self { sources, settings: Vec::new(), problems: Vec::new() }
    }

    /// One setting of any kind. `parse` refuses with what was expected; `show` prints the value in TOML without secrets;
    /// `mask` makes a refused value presentable.
    fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&Given<'_>) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
        mask: fn(&str) -> String,
    ) -> T {
        let (origin, value) = match self.sources.find(key) {
            None => (Origin::Default, default),
            Some((origin, given)) => match parse(&given) {
                Ok(value) => (origin, value),
                Err(expected) => {
                    let value = given.shown(mask);
                    self.problems.push(ConfigError::BadValue { origin, key, value, expected });
                    (Origin::Default, default)
                }
            },
        };
        self.settings.push(Setting { key, value: show(&value), origin });
        value
    }

    /// `true` or `false`.
    pub(super) fn switch(&mut self, key: &'static str, default: bool) -> bool {
        let parse = |given: &Given<'_>| {
            given.to_value().as_ref().and_then(toml::Value::as_bool).ok_or_else(|| "expected true or false".to_owned())
        };
        self.read(key, default, parse, bool::to_string, str::to_owned)
    }

    /// A whole number.
    pub(super) fn count(&mut self, key: &'static str, default: usize, range: RangeInclusive<usize>) -> usize {
        let parse = |given: &Given<'_>| {
            let number = given.to_integer().and_then(|number| usize::try_from(number).ok());
            let expected = || format!("expected a whole number from {} to {}", range.start(), range.end());
            number.filter(|number| range.contains(number)).ok_or_else(expected)
        };
        self.read(key, default, parse, usize::to_string, str::to_owned)
    }

    /// A size in bytes: a whole number, or one with a unit.
    pub(super) fn size(&mut self, key: &'static str, default: usize, min: usize) -> usize {
        let max = isize::MAX.unsigned_abs();
        let parse = |given: &Given<'_>| {
            let bytes = match given {
                Given::Toml(toml::Value::Integer(number)) => u64::try_from(*number).ok(),
                _ => given.to_text().and_then(|text| value::parse_bytes(&text)),
            };
            let expected = || {
                let min = value::format_bytes(min as u64);
                format!("expected a byte size of at least {min}, such as 268435456 or \"256mb\"")
            };
            bytes
                .and_then(|bytes| usize::try_from(bytes).ok())
                .filter(|bytes| (min..=max).contains(bytes))
                .ok_or_else(expected)
        };
        self.read(key, default, parse, |bytes| show_bytes(*bytes), str::to_owned)
    }

    /// As [`Reader::size`]; 0 is off.
    pub(super) fn size_or_off(&mut self, key: &'static str, default: usize) -> Option<usize> {
        Some(self.size(key, default, 0)).filter(|bytes| *bytes > 0)
    }

    /// A time in whole milliseconds.
    pub(super) fn millis(&mut self, key: &'static str, default_ms: u64, range_ms: RangeInclusive<u64>) -> Duration {
        let parse = |given: &Given<'_>| {
            let expected =
                || format!("expected milliseconds, a whole number from {} to {}", range_ms.start(), range_ms.end());
            let number = given.to_integer().filter(|number| range_ms.contains(number));
            number.map(Duration::from_millis).ok_or_else(expected)
        };
        self.read(key, Duration::from_millis(default_ms), parse, |time| time.as_millis().to_string(), str::to_owned)
    }

    /// A time in whole milliseconds, where 0 means "not at all".
    pub(super) fn millis_or_off(&mut self, key: &'static str, default_ms: u64, max_ms: u64) -> Option<Duration> {
        let time = self.millis(key, default_ms, 0..=max_ms);
        (!time.is_zero()).then_some(time)
    }

    /// A part of a whole, above 0 and up to 1.
    pub(super) fn rate(&mut self, key: &'static str, default: f64) -> f64 {
        let parse = |given: &Given<'_>| {
            let number = match given.to_value() {
                Some(toml::Value::Float(number)) => Some(number),
                Some(toml::Value::Integer(1)) => Some(1.0),
                _ => None,
            };
            let expected = || "expected a number above 0 and up to 1, such as 0.5".to_owned();
            number.filter(|number| *number > 0.0 && *number <= 1.0).ok_or_else(expected)
        };
        self.read(key, default, parse, |rate| toml::Value::from(*rate).to_string(), str::to_owned)
    }

    /// A part of a whole, less than 1; 0 is off.
    pub(super) fn part_or_off(&mut self, key: &'static str, default: f64) -> f64 {
        let parse = |given: &Given<'_>| {
            let part = given.to_value().as_ref().and_then(value::parse_part);
            part.ok_or_else(|| "expected a number from 0 (off) to 0.99, such as 0.8".to_owned())
        };
        self.read(key, default, parse, |part| toml::Value::from(*part).to_string(), str::to_owned)
    }

    /// One of a few words.
    pub(super) fn word<T: Copy + PartialEq>(&mut self, key: &'static str, default: T, words: &[(&str, T)]) -> T {
        let parse = |given: &Given<'_>| {
            let text = given.to_text().unwrap_or_default();
            let expected = || {
                let words: Vec<_> = words.iter().map(|(word, _)| value::quote(word)).collect();
                format!("expected one of {}", words.join(", "))
            };
            words.iter().find(|(word, _)| *word == text).map(|(_, meant)| *meant).ok_or_else(expected)
        };
        let show = |value: &T| {
            let word = words.iter().find(|(_, meant)| meant == value).map_or("", |(word, _)| *word);
            value::quote(word)
        };
        self.read(key, default, parse, show, str::to_owned)
    }

    /// A string that `parse` understands.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
        mask: fn(&str) -> String,
    ) -> T {
        let parse = |given: &Given<'_>| match given.to_text() {
            Some(text) => parse(&text),
            None => Err("expected a string".to_owned()),
        };
        self.read(key, default, parse, |value| value::quote(&show(value)), mask)
    }

    /// A list or table that `parse` understands. A flag or variable gives it in TOML, or as a bare word or, for a list,
    /// as words between commas.
    pub(super) fn compound<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&toml::Value) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
        mask: fn(&str) -> String,
    ) -> T {
        let parse = |given: &Given<'_>| {
            let value = given.to_value().ok_or_else(|| "expected text in UTF-8".to_owned())?;
            parse(&value)
        };
        self.read(key, default, parse, show, mask)
    }

    /// Notes that two settings, read before, must not stand together, unless a default stands in for a bad one.
    pub(super) fn conflict(&mut self, first: &'static str, second: &'static str, rule: &'static str) {
        let find = |key| self.settings.iter().find(|setting| setting.key == key).cloned();
        let (Some(first), Some(second)) = (find(first), find(second)) else { return };
        let refused = |key| self.problems.iter().any(|problem| problem.key() == Some(key));
        if refused(first.key) || refused(second.key) {
            return;
        }
        self.problems.push(ConfigError::Conflict {
            first: first.key,
            first_value: first.value,
            first_origin: first.origin,
            second: second.key,
            second_value: second.value,
            second_origin: second.origin,
            rule,
        });
    }

    /// Refuses what nobody asked for, and ends with the settings or with every problem met.
    pub(super) fn finish(mut self) -> Result<Vec<Setting>, ConfigErrors> {
        let known: Vec<_> = self.settings.iter().map(|setting| setting.key).collect();
        if let Some((name, table)) = &self.sources.file {
            find_unknown(table, "", &known, &mut |key| {
                self.problems.push(unknown_key(Origin::File(name.clone()), key, &known));
            });
        }
        for flag in self.sources.flags.iter().filter(|flag| !known.contains(&flag.key.as_str())) {
            self.problems.push(unknown_key(Origin::Flag(flag.name.to_owned()), &flag.key, &known));
        }
        for name in self.sources.environment.keys() {
            self.problems.extend(mistyped_variable(name, &known));
        }
        match self.problems.is_empty() {
            true => Ok(self.settings),
            false => Err(ConfigErrors(self.problems)),
        }
    }
}

fn show_bytes(bytes: usize) -> String {
    let text = value::format_bytes(bytes as u64);
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text } else { value::quote(&text) }
}

/// Calls `report` with each key of the file that is neither a setting nor on the way to one.
fn find_unknown(table: &toml::Table, prefix: &str, known: &[&str], report: &mut impl FnMut(&str)) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        if known.contains(&key.as_str()) {
            continue;
        }
        let section = format!("{key}.");
        match value {
            toml::Value::Table(inner) if known.iter().any(|known| known.starts_with(&section)) => {
                find_unknown(inner, &section, known, report);
            }
            _ => report(&key),
        }
    }
}

fn unknown_key(origin: Origin, key: &str, known: &[&str]) -> ConfigError {
    ConfigError::UnknownKey { origin, key: shorten(key), nearest: nearest_key(key, known) }
}

/// An unknown `LARDER_*` variable is refused if it looks like a slip. Others are left alone: container platforms make
/// variables such as `LARDER_PORT_6380_TCP_ADDR` of a service's name.
fn mistyped_variable(name: &str, known: &[&str]) -> Option<ConfigError> {
    let names = known.iter().map(|key| environment_name(key));
    let (edits, nearest) = names.map(|known| (count_edits(name, &known), known)).min()?;
    (1..=TYPO_EDITS_MAX).contains(&edits).then(|| ConfigError::UnknownKey {
        origin: Origin::Environment(name.to_owned()),
        key: shorten(name),
        nearest,
    })
}

/// The known key that looks most like this one, or the section, if the key stands in none.
fn nearest_key(key: &str, known: &[&str]) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness =
        |known: &str| rate_likeness(key, known).max(rate_likeness(&last(key), &last(known)) - OTHER_SECTION_COST);
    let keys = known.iter().map(|known| (likeness(known), (*known).to_owned()));
    let sections = known.iter().filter_map(|known| Some(known.rsplit_once('.')?.0));
    let sections = sections.map(|section| (rate_likeness(key, section), format!("[{section}]")));
    let nearest = match key.contains('.') {
        true => keys.max(),
        false => keys.chain(sections).max(),
    };
    nearest.map(|(_, name)| name).unwrap_or_default()
}

/// Rewards a common beginning, so that a shortened name finds the whole one, and punishes edits.
fn rate_likeness(left: &str, right: &str) -> isize {
    let common = left.chars().zip(right.chars()).take(SHOWN_CHARS_MAX).take_while(|(ours, theirs)| ours == theirs);
    common.count().cast_signed() - count_edits(left, right).cast_signed()
}

/// Levenshtein's distance, of the first [`SHOWN_CHARS_MAX`] characters.
fn count_edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(SHOWN_CHARS_MAX).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, from) in left.chars().take(SHOWN_CHARS_MAX).enumerate() {
        let mut diagonal = at;
        let mut before = at + 1;
        for (to, cell) in right.iter().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = *cell;
            before = replaced.min(*cell + 1).min(before + 1);
            *cell = before;
        }
        if let Some(first) = row.first_mut() {
            *first = at + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

// === impl Given ===

impl Given<'_> {
    /// As a string, if it is one.
    fn to_text(&self) -> Option<String> {
        match self {
            Self::Toml(toml::Value::String(text)) => Some(text.clone()),
            Self::Toml(_) | Self::Garbled => None,
            Self::Text(text, Syntax::Bare) => Some((*text).to_owned()),
            Self::Text(text, Syntax::BareOrQuoted) => match parse_toml(text) {
                Some(toml::Value::String(inner)) => Some(inner),
                _ => Some((*text).to_owned()),
            },
        }
    }

    fn to_integer(&self) -> Option<u64> {
        match self {
            Self::Toml(value) => u64::try_from(value.as_integer()?).ok(),
            Self::Text(text, _) => value::parse_digits(text),
            Self::Garbled => None,
        }
    }

    /// As TOML; a text that is not TOML is words between commas, or a single word.
    fn to_value(&self) -> Option<toml::Value> {
        match self {
            Self::Toml(value) => Some((*value).clone()),
            Self::Text(text, _) => Some(parse_toml(text).unwrap_or_else(|| {
                let words = || text.split(',').map(|word| toml::Value::from(word.trim()));
                if text.contains(',') { toml::Value::Array(words().collect()) } else { toml::Value::from(*text) }
            })),
            Self::Garbled => None,
        }
    }

    /// For a message: shortened, and masked wherever a secret could be.
    fn shown(&self, mask: fn(&str) -> String) -> String {
        match self {
            Self::Toml(toml::Value::String(text)) => format!("\"{}\"", shorten(&mask(text))),
            Self::Toml(value) => shorten(&mask(&value.to_string())),
            Self::Text(text, _) => format!("\"{}\"", shorten(&mask(text))),
            Self::Garbled => "(not UTF-8)".to_owned(),
        }
    }
}

fn parse_toml(text: &str) -> Option<toml::Value> {
    text.parse::<toml::Value>().ok()
}

// === impl ConfigError ===

impl ConfigError {
    /// The setting that was refused, if it was one setting.
    fn key(&self) -> Option<&'static str> {
        match self {
            Self::BadValue { key, .. } => Some(key),
            _ => None,
        }
    }
}

// === impl Origin ===

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(name) => f.write_str(name),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}
