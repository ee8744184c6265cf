//! The notation in which a subcommand's arguments are written for people, read as a tree for programs.
//!
//! ```text
//! <name>              an argument; its type follows from its name
//! WORD                a keyword
//! WORD <name>         a keyword with its value
//! [ ... ]             may be left out
//! ( a | b )           one of these; within brackets without parentheses
//! <name> [<name> ...] one or more; [<name> ...] none or more
//! ```
//!
//! `CACHE HELP` prints the notation as it is; `COMMAND DOCS` shows the tree. So both always say the same.
//!
//! Invariants: any text is either read or refused, in time linear in its length; brackets nest at most
//! [`DEPTH_MAX`] deep.

use thiserror::Error;

/// How deep brackets may nest.
pub const DEPTH_MAX: usize = 8;

/// One argument, as `COMMAND DOCS` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name, in lower case.
    pub name: String,
    /// The keyword in front of it, or that it is, in upper case.
    pub token: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// True if it may be left out.
    pub is_optional: bool,
    /// True if it may be given more than once.
    pub is_multiple: bool,
}

/// What an argument is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A key.
    Key,
    /// A glob pattern.
    Pattern,
    /// A whole number.
    Integer,
    /// Any text.
    Text,
    /// Nothing but its keyword.
    Token,
    /// One of these.
    OneOf(Vec<Argument>),
    /// All of these, one behind the other.
    Block(Vec<Argument>),
}

/// A text that is not in the notation; where that shows, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not in the notation of arguments at byte {0}")]
pub struct NotationError(pub usize);

/// Reads a text in the notation.
///
/// # Errors
/// [`NotationError`] says where the text is not in the notation.
pub fn arguments(text: &str) -> Result<Vec<Argument>, NotationError> {
    let mut reader = Reader { text, at: 0 };
    let mut choices = reader.choices(0)?;
    if reader.at < text.len() {
        return Err(NotationError(reader.at));
    }
    match choices.len() {
        1 => Ok(choices.swap_remove(0)),
        _ => Ok(vec![one_of(choices)]),
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

// === impl Argument ===

impl Argument {
    /// The fewest words that it takes in a request.
    pub fn words_min(&self) -> usize {
        let sum = |parts: &[Self]| parts.iter().map(Self::words_min).sum();
        match &self.kind {
            _ if self.is_optional => 0,
            Kind::Token => 1,
            Kind::OneOf(choices) => choices.iter().map(Self::words_min).min().unwrap_or(0),
            Kind::Block(parts) => sum(parts),
            Kind::Key | Kind::Pattern | Kind::Integer | Kind::Text => 1 + usize::from(self.token.is_some()),
        }
    }

    /// The word for its kind in `COMMAND DOCS`.
    pub fn type_word(&self) -> &'static str {
        match self.kind {
            Kind::Key => "key",
            Kind::Pattern => "pattern",
            Kind::Integer => "integer",
            Kind::Text => "string",
            Kind::Token => "pure-token",
            Kind::OneOf(_) => "oneof",
            Kind::Block(_) => "block",
        }
    }

    fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_lowercase(), token: None, kind, is_optional: false, is_multiple: false }
    }

    fn token(word: &str) -> Self {
        Self { token: Some(word.to_owned()), ..Self::new(word, Kind::Token) }
    }

    /// A value; its name tells what it is.
    fn value(name: &str) -> Self {
        let kind = match name {
            "key" => Kind::Key,
            "glob" | "pattern" => Kind::Pattern,
            "n" | "count" | "ms" | "seconds" | "cursor" => Kind::Integer,
            _ if name.starts_with("num") => Kind::Integer,
            _ => Kind::Text,
        };
        Self::new(name, kind)
    }
}

// === impl Reader ===

impl<'t> Reader<'t> {
    /// Sequences with bars between them, up to a closing bracket or the end.
    fn choices(&mut self, depth: usize) -> Result<Vec<Vec<Argument>>, NotationError> {
        if depth > DEPTH_MAX {
            return Err(NotationError(self.at));
        }
        let mut choices = vec![self.sequence(depth)?];
        while self.takes("|") {
            choices.push(self.sequence(depth)?);
        }
        if choices.len() > 1 && choices.iter().any(Vec::is_empty) {
            return Err(NotationError(self.at));
        }
        Ok(choices)
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Argument>, NotationError> {
        let mut sequence: Vec<Argument> = Vec::new();
        loop {
            self.skip_blanks();
            let start = self.at;
            if self.takes("[") {
                let (inner, is_multiple) = self.group("]", depth)?;
                push_optional(&mut sequence, inner, is_multiple);
            } else if self.takes("(") {
                let (inner, _) = self.group(")", depth)?;
                sequence.push(inner);
            } else if self.takes("<") {
                let name = self.word().ok_or(NotationError(start))?;
                if !self.takes(">") {
                    return Err(NotationError(self.at));
                }
                push_value(&mut sequence, name);
            } else if let Some(word) = self.word() {
                sequence.push(Argument::token(word));
            } else {
                return Ok(sequence);
            }
        }
    }

    /// What is between brackets, the closing one included; whether it may be repeated.
    fn group(&mut self, end: &str, depth: usize) -> Result<(Argument, bool), NotationError> {
        let start = self.at;
        let mut choices = self.choices(depth + 1)?;
        self.skip_blanks();
        let is_multiple = self.takes("...");
        self.skip_blanks();
        if !self.takes(end) || choices.iter().any(Vec::is_empty) {
            return Err(NotationError(start));
        }
        let group = if choices.len() == 1 { as_one(choices.swap_remove(0)) } else { one_of(choices) };
        Ok((group, is_multiple))
    }

    fn word(&mut self) -> Option<&'t str> {
        let rest = &self.text[self.at..];
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let len = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        self.at += len;
        Some(&rest[..len]).filter(|word| !word.is_empty())
    }

    fn takes(&mut self, sign: &str) -> bool {
        let is_there = self.text[self.at..].starts_with(sign);
        self.at += if is_there { sign.len() } else { 0 };
        is_there
    }

    fn skip_blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches(' ').len();
    }
}

/// A value behind a keyword that has none yet belongs to it.
fn push_value(sequence: &mut Vec<Argument>, name: &str) {
    let value = Argument::value(name);
    match sequence.last_mut() {
        Some(last) if last.kind == Kind::Token && !last.is_optional => {
            *last = Argument { token: last.token.take(), ..value };
        }
        _ => sequence.push(value),
    }
}

/// `<key> [<key> ...]` is one argument that may be repeated.
fn push_optional(sequence: &mut Vec<Argument>, inner: Argument, is_multiple: bool) {
    match sequence.last_mut() {
        Some(last) if is_multiple && last.kind == inner.kind && last.name == inner.name => last.is_multiple = true,
        _ => sequence.push(Argument { is_optional: true, is_multiple, ..inner }),
    }
}

fn as_one(mut sequence: Vec<Argument>) -> Argument {
    match sequence.len() {
        1 => sequence.swap_remove(0),
        _ => {
            let first = sequence.first();
            let name = first.map(|a| a.token.as_deref().unwrap_or(&a.name)).unwrap_or_default();
            Argument::new(name, Kind::Block(sequence.clone()))
        }
    }
}

fn one_of(choices: Vec<Vec<Argument>>) -> Argument {
    let choices: Vec<Argument> = choices.into_iter().map(as_one).collect();
    let names: Vec<&str> = choices.iter().map(|c| c.token.as_deref().unwrap_or(&c.name)).collect();
    Argument::new(&names.join("-"), Kind::OneOf(choices))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The tree in the notation again, types and flags included.
    fn shown(arguments: &[Argument]) -> String {
        let one = |a: &Argument| {
            let token = a.token.as_ref().map(|t| format!("{t}=")).unwrap_or_default();
            let body = match &a.kind {
                Kind::OneOf(parts) => format!("one({})", shown(parts)),
                Kind::Block(parts) => format!("all({})", shown(parts)),
                _ => format!("{}:{}", a.name, a.type_word()),
            };
            let optional = if a.is_optional { "?" } else { "" };
            let multiple = if a.is_multiple { "+" } else { "" };
            format!("{token}{body}{optional}{multiple}")
        };
        arguments.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn reads_what_help_prints() {
        for (text, tree) in [
            ("", ""),
            ("<key>", "key:key"),
            ("[<section>]", "section:string?"),
            ("[COUNT <n>] [<word> ...]", "COUNT=n:integer? word:string?+"),
            ("<key> <numtags> <tag> [<tag> ...]", "key:key numtags:integer tag:string+"),
            ("[OPEN|CLOSE]", "one(OPEN=open:pure-token CLOSE=close:pure-token)?"),
            (
                "(KEYS <numkeys> <key> [<key> ...]|PATTERN <glob>|ALL) [LOCAL]",
                "one(all(KEYS=numkeys:integer key:key+) PATTERN=glob:pattern ALL=all:pure-token) LOCAL=local:pure-token?",
            ),
            ("GET <pattern> | SET <name> <value>", "one(GET=pattern:pattern all(SET=name:string value:string))"),
            ("<a> [LIMIT <n> <m>]", "a:string all(LIMIT=n:integer m:string)?"),
            ("[<name> <value> ...]", "all(name:string value:string)?+"),
        ] {
            assert_eq!(arguments(text).map(|a| shown(&a)), Ok(tree.to_owned()), "{text}");
        }
        assert_eq!(arguments("<key> (A <n>|B)").map(|a| a.iter().map(Argument::words_min).sum::<usize>()), Ok(2));
    }

    #[test]
    fn refuses_what_is_not_in_the_notation() {
        for text in ["<key", "[a", "a]", "(a|)", "()", "<>", "a...", "ä", &"[".repeat(100)] {
            assert!(arguments(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[A-B a-c<>\\[\\]()|.]{0,40}") {
            let _ = arguments(&text);
        }
    }
}
