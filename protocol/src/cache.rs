//! The grammar of `CACHE`, Larder's own command: bytes to a typed enum.
//!
//! Keywords are known in any case; lists have their count in front; what is wrong is worded as Redis words it. One
//! table, [`SUBCOMMANDS`], holds what is to be said of each subcommand: the parser checks the arity by it, `CACHE HELP`
//! prints it, the command table has a row for each of its lines, and `COMMAND` and `COMMAND DOCS` show it (arguments are
//! read out of the syntax by [`syntax`]).
//!
//! Invariants: nothing is copied and nothing allocated but in errors; no arguments make it panic.

mod depend;
pub mod insight;
mod invalidate;
mod jobs;
mod subscribe;
pub mod syntax;
mod tags;
pub mod warm;

pub use self::depend::DependCommand;
pub use self::invalidate::{Matching, Reach, Soft, Target};
pub use self::jobs::JobsCommand;
pub use self::subscribe::EventsCommand;
pub use self::tags::{Condition, TaggedSet, TagsCommand};

pub use self::insight::{ConfigOrder, Which};
use self::syntax::Argument;
use self::warm::Warm;
use crate::args::Args;
use crate::scan::strict_i64;
use thiserror::Error;

/// A request for `CACHE`, understood.
#[derive(Clone, Copy, Debug)]
pub enum CacheCommand<'a> {
    /// `HELP`
    Help,
    /// `FENCE`
    Fence,
    /// `READ [CACHED|STRICT|BYPASS]`: sets the connection's mode; without one, tells it.
    Read(Option<ReadMode>),
    /// `BREAKER [OPEN|CLOSE|RELEASE]`
    Breaker(BreakerOrder),
    /// `INFO [section]`
    Info(Option<&'a [u8]>),
    /// `STATS`
    Stats,
    /// `RESETSTATS`
    ResetStats,
    /// `ENTRY key`
    Entry(&'a [u8]),
    /// `ADVISE`
    Advise,
    /// `BIGKEYS [n]`
    BigKeys(usize),
    /// `CONFIG GET|SET`
    Config(ConfigOrder<'a>),
    /// `HOTKEYS [n]`
    HotKeys(usize),
    /// `INVALIDATE ...`
    Invalidate(Target<'a>, Reach, Option<Soft>),
    /// `JOBS`, `JOB`, `CANCEL`
    Jobs(JobsCommand),
    /// `WARM ...`
    Warm(Warm<'a>),
    /// `SET`, `TAG`, `UNTAG`, `TAGS`, `MEMBERS`, `TAGLIST`, `LEASE`
    Tags(TagsCommand<'a>),
    /// `DEPEND`, `UNDEPEND`, `DEPENDS`
    Depend(DependCommand<'a>),
    /// `SUBSCRIBE`, `UNSUBSCRIBE`
    Events(EventsCommand<'a>),
}

/// Where the reads of a connection are answered from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// From L1 where it can: what a connection begins with.
    #[default]
    Cached,
    /// By the upstream, at or after the moment at which the read came; L1 is filled.
    Strict,
    /// By the upstream; L1 is neither looked at nor filled.
    Bypass,
}

/// What `CACHE BREAKER` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerOrder {
    /// Show the state.
    Show,
    /// Hold the circuit open.
    Open,
    /// Hold it closed.
    Close,
    /// End what `OPEN` or `CLOSE` has ordered.
    Release,
}

/// A list of keys within a request.
#[derive(Clone, Copy, Debug)]
pub struct KeyList<'a> {
    args: Args<'a>,
    from: usize,
    count: usize,
}

/// What is wrong with a request. `Display` is the error line without the dash.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CacheError {
    /// Too few or too many arguments for `CACHE` itself or for this subcommand.
    #[error("ERR wrong number of arguments for 'cache{gap}{name}' command", gap = if .0.is_empty() { "" } else { "|" }, name = .0)]
    Arity(&'static str),
    /// No such subcommand; its first bytes.
    #[error("ERR unknown subcommand '{0}'. Try CACHE HELP.")]
    Unknown(String),
    /// A word that is not expected where it stands.
    #[error("ERR syntax error")]
    Syntax,
    /// A number is expected where none stands.
    #[error("ERR value is not an integer or out of range")]
    NotInteger,
    /// The count of tags is no positive number.
    #[error("ERR numtags should be greater than 0")]
    Numtags,
    /// Fewer tags than were counted.
    #[error("ERR Number of tags can't be greater than number of args")]
    TagsMissing,
    /// A number of elements that is too small or too large.
    #[error("ERR COUNT should be between 1 and 1000")]
    Count,
    /// `SOFT` for no time.
    #[error("ERR SOFT should be greater than 0")]
    SoftTime,
    /// A cursor is expected where none stands.
    #[error("ERR invalid cursor")]
    Cursor,
    /// The count of keys is no positive number.
    #[error("ERR numkeys should be greater than 0")]
    Numkeys,
    /// Fewer keys than were counted.
    #[error("ERR Number of keys can't be greater than number of args")]
    KeysMissing,
}

/// What is known of one subcommand.
#[derive(Clone, Copy, Debug)]
pub struct Subcommand {
    /// Its name, in lower case.
    pub name: &'static str,
    /// Number of arguments, `CACHE` and the name included; negative: at least that many.
    pub arity: i16,
    /// Its arguments in the notation of [`syntax`].
    pub syntax: &'static str,
    /// What it does, in lines of help. The first sentence is the summary of `COMMAND DOCS`.
    pub help: &'static [&'static str],
    /// The version of Larder that introduced it.
    pub since: &'static str,
    /// What it costs, as `COMMAND DOCS` says it.
    pub complexity: &'static str,
    /// Where its keys stand, in the notation of the command table's rows; `-` for nowhere.
    pub keys: &'static str,
    /// What it does to whom: its flags and ACL categories follow from that.
    pub access: Access,
}

/// What a subcommand does to whom. `deny = ["@..."]` in the configuration goes by the categories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Shows figures of Larder; category `slow` only.
    Shows,
    /// Is about the caller's connection; category `connection`.
    Connection,
    /// Looks at what is known of a key; categories `keyspace` and `read`.
    Reads,
    /// Names keys that the caller has not named; `dangerous`, too, as `KEYS` is.
    Lists,
    /// Writes keys; categories `keyspace` and `write`.
    Writes,
    /// Removes keys, many of them perhaps; `dangerous`, too.
    Removes,
    /// Changes how Larder works; categories `admin` and `dangerous`.
    Administers,
}

/// All subcommands, by name; `HELP` is the last, as Redis has it.
pub const SUBCOMMANDS: &[Subcommand] = &[
    insight::ADVISE,
    insight::BIGKEYS,
    Subcommand {
        name: "breaker",
        arity: -2,
        syntax: "[OPEN|CLOSE|RELEASE]",
        help: &["Show the circuit breaker of the upstream, hold its circuit open or closed,", "or let it go again."],
        since: "0.1.0",
        complexity: "O(1)",
        keys: "-",
        access: Access::Administers,
    },
    jobs::CANCEL,
    insight::CONFIG,
    depend::DEPEND,
    depend::DEPENDS,
    Subcommand {
        name: "entry",
        arity: 3,
        syntax: "<key>",
        help: &["Show what L1 holds of <key>; null if nothing."],
        since: "0.1.0",
        complexity: "O(N) where N is the number of variants that L1 holds of the key",
        keys: "RO/index=2/range=0,1,0",
        access: Access::Reads,
    },
    Subcommand {
        name: "fence",
        arity: 2,
        syntax: "",
        help: &["Return when every invalidation that the upstream has sent before the call", "has been applied here."],
        since: "0.1.0",
        complexity: "O(1), and one round trip to the upstream",
        keys: "-",
        access: Access::Connection,
    },
    insight::HOTKEYS,
    Subcommand {
        name: "info",
        arity: -2,
        syntax: "[<section>]",
        help: &["Show figures about Larder as text, like INFO: all sections or one."],
        since: "0.1.0",
        complexity: "O(1)",
        keys: "-",
        access: Access::Shows,
    },
    invalidate::INVALIDATE,
    jobs::JOB,
    jobs::JOBS,
    tags::LEASE,
    tags::MEMBERS,
    Subcommand {
        name: "read",
        arity: -2,
        syntax: "[CACHED|STRICT|BYPASS]",
        help: &[
            "Show or set where the reads of this connection are answered: from L1 where it",
            "can (CACHED, the default), by the upstream (STRICT), or by the upstream without",
            "filling L1 (BYPASS).",
        ],
        since: "0.1.0",
        complexity: "O(1)",
        keys: "-",
        access: Access::Connection,
    },
    Subcommand {
        name: "resetstats",
        arity: 2,
        syntax: "",
        help: &["Let the counters begin anew."],
        since: "0.1.0",
        complexity: "O(1)",
        keys: "-",
        access: Access::Administers,
    },
    tags::SET,
    Subcommand {
        name: "stats",
        arity: 2,
        syntax: "",
        help: &["Return all figures about Larder as a map."],
        since: "0.1.0",
        complexity: "O(1)",
        keys: "-",
        access: Access::Shows,
    },
    subscribe::SUBSCRIBE,
    tags::TAG,
    tags::TAGLIST,
    tags::TAGS,
    depend::UNDEPEND,
    subscribe::UNSUBSCRIBE,
    tags::UNTAG,
    warm::WARM,
    Subcommand {
        name: "help",
        arity: 2,
        syntax: "",
        help: &["Prints this help."],
        since: "0.1.0",
        complexity: "O(1)",
        keys: "-",
        access: Access::Shows,
    },
];

/// Most bytes of an unknown word that an error repeats.
const SHOWN_BYTES_MAX: usize = 128;

// === impl CacheCommand ===

impl<'a> CacheCommand<'a> {
    /// Understands a request whose first argument is `CACHE`.
    ///
    /// # Errors
    /// [`CacheError`] says what is wrong, in the order in which Redis would notice: subcommand, number of arguments,
    /// arguments from left to right.
    pub fn parse(args: Args<'a>) -> Result<Self, CacheError> {
        let Some(name) = args.get(1) else { return Err(CacheError::Arity("")) };
        let Some(subcommand) = SUBCOMMANDS.iter().find(|s| is(name, s.name)) else {
            let shown = &name[..name.len().min(SHOWN_BYTES_MAX)];
            return Err(CacheError::Unknown(String::from_utf8_lossy(shown).replace(['\r', '\n'], " ")));
        };
        if !subcommand.accepts(args.len()) {
            return Err(CacheError::Arity(subcommand.name));
        }
        let wrong_arity = Err(CacheError::Arity(subcommand.name));
        match (subcommand.name, args.len()) {
            ("breaker", 2) => Ok(Self::Breaker(BreakerOrder::Show)),
            ("breaker", 3) => BreakerOrder::parse(args.arg(2)).map(Self::Breaker),
            ("entry", _) => Ok(Self::Entry(args.arg(2))),
            ("advise" | "bigkeys" | "config" | "hotkeys", _) => insight::parse(subcommand.name, args),
            ("depend" | "depends" | "undepend", _) => depend::parse(subcommand.name, args),
            ("fence", _) => Ok(Self::Fence),
            ("info", 2 | 3) => Ok(Self::Info(args.get(2))),
            ("invalidate", _) => invalidate::parse(args),
            ("subscribe" | "unsubscribe", _) => subscribe::parse(subcommand.name, args),
            ("cancel" | "job" | "jobs", _) => jobs::parse(subcommand.name, args),
            ("lease" | "members" | "set" | "tag" | "taglist" | "tags" | "untag", _) => {
                tags::parse(subcommand.name, args)
            }
            ("read", 2) => Ok(Self::Read(None)),
            ("read", 3) => ReadMode::parse(args.arg(2)).map(|mode| Self::Read(Some(mode))),
            ("resetstats", _) => Ok(Self::ResetStats),
            ("stats", _) => Ok(Self::Stats),
            ("warm", _) => warm::parse(args),
            ("help", _) => Ok(Self::Help),
            _ => wrong_arity,
        }
    }
}

/// The lines of `CACHE HELP`.
pub fn help() -> impl Iterator<Item = String> {
    let head = "CACHE <subcommand> [<arg> [value] [opt] ...]. Subcommands are:".to_owned();
    let lines = SUBCOMMANDS.iter().flat_map(|s| {
        let gap = if s.syntax.is_empty() { "" } else { " " };
        let title = format!("{}{gap}{}", s.name.to_uppercase(), s.syntax);
        std::iter::once(title).chain(s.help.iter().map(|line| format!("    {line}")))
    });
    std::iter::once(head).chain(lines)
}

// === impl Subcommand ===

impl Subcommand {
    /// The first sentence of its help, without the full stop, as `COMMAND DOCS` has summaries.
    pub fn summary(&self) -> String {
        let help = self.help.join(" ");
        let end = help.find(". ").unwrap_or(help.trim_end_matches('.').len());
        help[..end].to_owned()
    }

    /// Its arguments; none if the notation of its syntax cannot be read (a test sees to it that it can).
    pub fn arguments(&self) -> Vec<Argument> {
        syntax::arguments(self.syntax).unwrap_or_default()
    }

    fn accepts(&self, argc: usize) -> bool {
        let wanted = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { argc >= wanted } else { argc == wanted }
    }
}

// === impl ReadMode ===

impl ReadMode {
    /// The keyword, in lower case.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Strict => "strict",
            Self::Bypass => "bypass",
        }
    }

    fn parse(word: &[u8]) -> Result<Self, CacheError> {
        let modes = [Self::Cached, Self::Strict, Self::Bypass];
        modes.into_iter().find(|mode| is(word, mode.word())).ok_or(CacheError::Syntax)
    }
}

// === impl BreakerOrder ===

impl BreakerOrder {
    fn parse(word: &[u8]) -> Result<Self, CacheError> {
        match () {
            () if is(word, "open") => Ok(Self::Open),
            () if is(word, "close") => Ok(Self::Close),
            () if is(word, "release") => Ok(Self::Release),
            () => Err(CacheError::Syntax),
        }
    }
}

// === impl KeyList ===

impl<'a> KeyList<'a> {
    /// The keys, in the order of the request.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let (args, from) = (self.args, self.from);
        (from..from + self.count).map(move |i| args.arg(i))
    }

    /// How many there are; at least one.
    #[expect(clippy::len_without_is_empty, reason = "the grammar takes no empty list")]
    pub fn len(&self) -> usize {
        self.count
    }

    /// The argument behind the last one.
    fn end(&self) -> usize {
        self.from + self.count
    }

    /// `numkeys key ...` from argument `at` on.
    fn parse(args: Args<'a>, at: usize) -> Result<Self, CacheError> {
        let count = strict_i64(args.arg(at)).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let count = count.ok_or(CacheError::Numkeys)?;
        let from = at + 1;
        if count > args.len().saturating_sub(from) {
            return Err(CacheError::KeysMissing);
        }
        Ok(Self { args, from, count })
    }
}

fn is(word: &[u8], keyword: &str) -> bool {
    word.eq_ignore_ascii_case(keyword.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::warm::{WarmCourse, WarmSubject};
    use super::*;
    use crate::args::OwnedArgs;
    use crate::table::{Class, Group, Table};
    use proptest::prelude::*;

    /// What a line means, as `Debug` shows it, or its error.
    fn parsed(line: &str) -> String {
        let args = OwnedArgs::new(line.split_whitespace());
        match CacheCommand::parse(args.args()) {
            Ok(CacheCommand::Invalidate(Target::Keys(keys), reach, soft)) => {
                format!("Keys({}) {reach:?}{}", listed(&keys), softly(soft))
            }
            Ok(CacheCommand::Invalidate(Target::Pattern { glob, from }, reach, soft)) => {
                let from = from.map_or(String::new(), |cursor| format!(" from {cursor}"));
                format!("Pattern({}){from} {reach:?}{}", String::from_utf8_lossy(glob), softly(soft))
            }
            Ok(CacheCommand::Warm(warm)) => {
                let subject = match warm.subject {
                    WarmSubject::Keys(keys) => {
                        let keys: Vec<_> = keys.iter().map(String::from_utf8_lossy).collect();
                        format!("Keys({})", keys.join(","))
                    }
                    WarmSubject::Tags(tags) => format!("Tags({})", listed(&tags)),
                    WarmSubject::Pattern(glob) => format!("Pattern({})", String::from_utf8_lossy(glob)),
                    other => format!("{other:?}"),
                };
                let course = match warm.course {
                    WarmCourse::Every { seconds, name } => format!("{} every {seconds}", String::from_utf8_lossy(name)),
                    other => format!("{other:?}"),
                };
                format!("Warm {subject} {course}")
            }
            Ok(CacheCommand::Invalidate(Target::Tags(matching, tags), reach, soft)) => {
                format!("Tags({matching:?} {}) {reach:?}{}", listed(&tags), softly(soft))
            }
            Ok(CacheCommand::Tags(command)) => shown(command),
            Ok(CacheCommand::Depend(command)) => shown_dependency(command),
            Ok(CacheCommand::Entry(key)) => format!("Entry({})", String::from_utf8_lossy(key)),
            Ok(CacheCommand::Info(section)) => format!("Info({:?})", section.map(String::from_utf8_lossy)),
            Ok(command) => format!("{command:?}"),
            Err(error) => error.to_string(),
        }
    }

    fn softly(soft: Option<Soft>) -> String {
        soft.map_or(String::new(), |soft| format!(" softly {}", soft.ms))
    }

    fn listed(keys: &KeyList<'_>) -> String {
        keys.iter().map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
    }

    fn shown(command: TagsCommand<'_>) -> String {
        let text = String::from_utf8_lossy;
        match command {
            TagsCommand::Set(set) => {
                let options: Vec<_> = set.options().map(text).collect();
                let (tags, lease) = (set.tags.map(|tags| listed(&tags)), set.lease.map(text));
                let condition = match set.condition {
                    Condition::IfEqual(value) => format!("IfEqual({})", text(value)),
                    other => format!("{other:?}"),
                };
                let (key, value) = (text(set.key), text(set.value));
                format!("Set({key} {value} [{}] {tags:?} {lease:?} {condition} {})", options.join(" "), set.gets)
            }
            TagsCommand::Tag(key, tags) => format!("Tag({} {})", text(key), listed(&tags)),
            TagsCommand::Untag(key, tags) => format!("Untag({} {})", text(key), listed(&tags)),
            TagsCommand::Tags(key) => format!("Tags({})", text(key)),
            TagsCommand::Members { tag, count, cursor } => format!("Members({} {count} {cursor})", text(tag)),
            TagsCommand::List(glob) => format!("List({:?})", glob.map(text)),
            TagsCommand::Lease(key, tags) => format!("Lease({} {:?})", text(key), tags.map(|tags| listed(&tags))),
        }
    }

    fn shown_dependency(command: DependCommand<'_>) -> String {
        let text = String::from_utf8_lossy;
        match command {
            DependCommand::Depend(key, sources) => format!("Depend({} {})", text(key), listed(&sources)),
            DependCommand::Undepend(key, sources) => {
                format!("Undepend({} {:?})", text(key), sources.map(|sources| listed(&sources)))
            }
            DependCommand::Depends(key) => format!("Depends({})", text(key)),
        }
    }

    #[test]
    fn understands_dependencies() {
        for (line, meaning) in [
            ("CACHE DEPEND k ON 2 a b", "Depend(k a,b)"),
            ("cache depend on on 1 on", "Depend(on on)"),
            ("CACHE UNDEPEND k", "Undepend(k None)"),
            ("CACHE UNDEPEND k on 2 a b", "Undepend(k Some(\"a,b\"))"),
            ("CACHE DEPENDS k", "Depends(k)"),
            ("CACHE DEPEND k ON 1", "ERR wrong number of arguments for 'cache|depend' command"),
            ("CACHE DEPEND k OF 1 a", "ERR syntax error"),
            ("CACHE DEPEND k ON 0 a", "ERR numkeys should be greater than 0"),
            ("CACHE DEPEND k ON 2 a", "ERR Number of keys can't be greater than number of args"),
            ("CACHE DEPEND k ON 1 a b", "ERR syntax error"),
            ("CACHE UNDEPEND", "ERR wrong number of arguments for 'cache|undepend' command"),
            ("CACHE UNDEPEND k ON 1", "ERR wrong number of arguments for 'cache|undepend' command"),
            ("CACHE UNDEPEND k ON 1 a b", "ERR syntax error"),
            ("CACHE DEPENDS", "ERR wrong number of arguments for 'cache|depends' command"),
        ] {
            assert_eq!(parsed(line), meaning, "{line}");
        }
    }

    #[test]
    fn understands_tags() {
        for (line, meaning) in [
            ("CACHE SET k v", "Set(k v [] None None Always false)"),
            ("CACHE SET k v ex 10 NX", "Set(k v [ex 10 NX] None None IfMissing false)"),
            (
                "cache set tags lease TAGS 2 tags ex XX GET",
                "Set(tags lease [XX GET] Some(\"tags,ex\") None IfPresent true)",
            ),
            (
                "CACHE SET k v PX 5 tags 1 t LEASE x KEEPTTL",
                "Set(k v [PX 5 KEEPTTL] Some(\"t\") Some(\"x\") Always false)",
            ),
            ("CACHE SET k v IFEQ nx", "Set(k v [IFEQ nx] None None IfEqual(nx) false)"),
            ("CACHE SET k v EX", "Set(k v [EX] None None Always false)"),
            ("CACHE TAG k 2 a b", "Tag(k a,b)"),
            ("CACHE UNTAG k 1 a", "Untag(k a)"),
            ("CACHE TAGS k", "Tags(k)"),
            ("CACHE MEMBERS t", "Members(t 100 0)"),
            ("CACHE MEMBERS t cursor 18446744073709551615 COUNT 7", "Members(t 7 18446744073709551615)"),
            ("CACHE TAGLIST", "List(None)"),
            ("CACHE TAGLIST match a*", "List(Some(\"a*\"))"),
            ("CACHE LEASE k", "Lease(k None)"),
            ("CACHE LEASE k TAGS 2 a b", "Lease(k Some(\"a,b\"))"),
            ("CACHE INVALIDATE TAGS 2 a b", "Tags(Any a,b) Everywhere"),
            ("CACHE INVALIDATE TAGS any 1 all", "Tags(Any all) Everywhere"),
            ("CACHE INVALIDATE tags ALL 2 a b LOCAL", "Tags(All a,b) Local"),
            ("CACHE SET k v TAGS", "ERR syntax error"),
            ("CACHE SET k v TAGS 0 t", "ERR numtags should be greater than 0"),
            ("CACHE SET k v TAGS 2 t", "ERR Number of tags can't be greater than number of args"),
            ("CACHE SET k v TAGS 1 t TAGS 1 u", "ERR syntax error"),
            ("CACHE SET k v LEASE", "ERR syntax error"),
            ("CACHE SET k", "ERR wrong number of arguments for 'cache|set' command"),
            ("CACHE TAG k 1", "ERR wrong number of arguments for 'cache|tag' command"),
            ("CACHE TAG k 1 a b", "ERR syntax error"),
            ("CACHE UNTAG k x a", "ERR numtags should be greater than 0"),
            ("CACHE TAGS", "ERR wrong number of arguments for 'cache|tags' command"),
            ("CACHE MEMBERS t COUNT", "ERR syntax error"),
            ("CACHE MEMBERS t COUNT x", "ERR value is not an integer or out of range"),
            ("CACHE MEMBERS t COUNT 0", "ERR COUNT should be between 1 and 1000"),
            ("CACHE MEMBERS t COUNT 1001", "ERR COUNT should be between 1 and 1000"),
            ("CACHE MEMBERS t CURSOR -1", "ERR invalid cursor"),
            ("CACHE MEMBERS t NEXT 1", "ERR syntax error"),
            ("CACHE TAGLIST a", "ERR syntax error"),
            ("CACHE TAGLIST MATCH a b", "ERR wrong number of arguments for 'cache|taglist' command"),
            ("CACHE LEASE k TAGS", "ERR syntax error"),
            ("CACHE LEASE k TAGS 1 a b", "ERR syntax error"),
            ("CACHE INVALIDATE TAGS", "ERR wrong number of arguments for 'cache|invalidate' command"),
            ("CACHE INVALIDATE TAGS ALL 1", "ERR wrong number of arguments for 'cache|invalidate' command"),
            ("CACHE INVALIDATE TAGS 2 a", "ERR Number of tags can't be greater than number of args"),
        ] {
            assert_eq!(parsed(line), meaning, "{line}");
        }
    }

    #[test]
    fn understands_every_form_in_any_case() {
        for (line, meaning) in [
            ("CACHE HELP", "Help"),
            ("cache fence", "Fence"),
            ("CACHE read", "Read(None)"),
            ("CACHE READ strict", "Read(Some(Strict))"),
            ("CACHE READ Bypass", "Read(Some(Bypass))"),
            ("CACHE READ CACHED", "Read(Some(Cached))"),
            ("CACHE BREAKER", "Breaker(Show)"),
            ("CACHE BREAKER open", "Breaker(Open)"),
            ("CACHE BREAKER CLOSE", "Breaker(Close)"),
            ("CACHE BREAKER RELEASE", "Breaker(Release)"),
            ("CACHE INFO", "Info(None)"),
            ("CACHE INFO l1", "Info(Some(\"l1\"))"),
            ("CACHE STATS", "Stats"),
            ("CACHE RESETSTATS", "ResetStats"),
            ("CACHE ENTRY k", "Entry(k)"),
            ("CACHE ADVISE", "Advise"),
            ("CACHE BIGKEYS", "BigKeys(10)"),
            ("CACHE bigkeys 1000", "BigKeys(1000)"),
            ("CACHE HOTKEYS 1", "HotKeys(1)"),
            ("CACHE CONFIG GET l1.*", "Config(Get([108, 49, 46, 42]))"),
            ("CACHE config set a b", "Config(Set([97], [98]))"),
            ("CACHE JOBS", "Jobs(List)"),
            ("CACHE SUBSCRIBE", "Events(Subscribe(None))"),
            ("CACHE SUBSCRIBE pattern k", "Events(Subscribe(Some([107])))"),
            ("CACHE UNSUBSCRIBE", "Events(Unsubscribe)"),
            ("CACHE JOB 7", "Jobs(Show(7))"),
            ("CACHE CANCEL 7", "Jobs(Cancel(7))"),
            ("CACHE INVALIDATE KEYS 2 a b", "Keys(a,b) Everywhere"),
            ("CACHE invalidate keys 1 local LOCAL", "Keys(local) Local"),
            ("CACHE INVALIDATE PATTERN a*", "Pattern(a*) Everywhere"),
            ("CACHE INVALIDATE PATTERN a* local", "Pattern(a*) Local"),
            ("CACHE INVALIDATE PATTERN a* CURSOR 17", "Pattern(a*) from 17 Everywhere"),
            ("CACHE INVALIDATE ALL", "Invalidate(All, Everywhere, None)"),
            ("CACHE INVALIDATE ALL SOFT 7", "Invalidate(All, Everywhere, Some(Soft { ms: 7 }))"),
            ("CACHE INVALIDATE KEYS 1 soft SOFT 500", "Keys(soft) Everywhere softly 500"),
            ("CACHE INVALIDATE KEYS 1 k soft 500 LOCAL", "Keys(k) Local softly 500"),
            ("CACHE INVALIDATE PATTERN a* LOCAL SOFT 1", "Pattern(a*) Local softly 1"),
            ("CACHE INVALIDATE PATTERN a* CURSOR 17 SOFT 1", "Pattern(a*) from 17 Everywhere softly 1"),
            ("CACHE INVALIDATE TAGS 1 t SOFT 1", "Tags(Any t) Everywhere softly 1"),
            ("CACHE INVALIDATE ALL LOCAL", "Invalidate(All, Local, None)"),
            ("CACHE WARM KEYS 2 a sync", "Warm Keys(a,sync) Once"),
            ("cache warm keys 1 a SYNC", "Warm Keys(a) Sync"),
            ("CACHE WARM PATTERN a*", "Warm Pattern(a*) Once"),
            ("CACHE WARM PATTERN a* EVERY 60 NAME n", "Warm Pattern(a*) n every 60"),
            ("CACHE WARM TAGS 2 a b SYNC", "Warm Tags(a,b) Sync"),
            ("cache warm tags 1 sync EVERY 60 NAME n", "Warm Tags(sync) n every 60"),
            ("CACHE WARM HOT", "Warm Hot(1000) Once"),
            ("CACHE WARM SNAPSHOT hot SYNC", "Warm Snapshot([104, 111, 116]) Sync"),
            ("CACHE WARM HOT sync", "Warm Hot(1000) Sync"),
            ("CACHE WARM HOT 5 every 2592000 name n", "Warm Hot(5) n every 2592000"),
        ] {
            assert_eq!(parsed(line), meaning, "{line}");
        }
    }

    #[test]
    fn words_errors_as_redis_does() {
        const SYNTAX: &str = "ERR syntax error";
        for (line, error) in [
            ("CACHE", "ERR wrong number of arguments for 'cache' command"),
            ("CACHE nope x", "ERR unknown subcommand 'nope'. Try CACHE HELP."),
            ("CACHE FENCE x", "ERR wrong number of arguments for 'cache|fence' command"),
            ("CACHE READ STRICT x", "ERR wrong number of arguments for 'cache|read' command"),
            ("CACHE READ fast", SYNTAX),
            ("CACHE BREAKER HALF", SYNTAX),
            ("CACHE CONFIG NOSUCH x", SYNTAX),
            ("CACHE CONFIG GET a b", "ERR wrong number of arguments for 'cache|config' command"),
            ("CACHE CONFIG SET a", "ERR wrong number of arguments for 'cache|config' command"),
            ("CACHE CONFIG", "ERR wrong number of arguments for 'cache|config' command"),
            ("CACHE WARM TAGS 1", "ERR wrong number of arguments for 'cache|warm' command"),
            ("CACHE WARM TAGS 0 t", "ERR numtags should be greater than 0"),
            ("CACHE WARM TAGS 2 t", "ERR Number of tags can't be greater than number of args"),
            ("CACHE WARM TAGS 1 t u", SYNTAX),
            ("CACHE HOTKEYS 0", "ERR value is not an integer or out of range"),
            ("CACHE HOTKEYS 1001", "ERR value is not an integer or out of range"),
            ("CACHE BIGKEYS x", "ERR value is not an integer or out of range"),
            ("CACHE BIGKEYS 1 2", "ERR wrong number of arguments for 'cache|bigkeys' command"),
            ("CACHE ADVISE x", "ERR wrong number of arguments for 'cache|advise' command"),
            ("CACHE BREAKER OPEN x", "ERR wrong number of arguments for 'cache|breaker' command"),
            ("CACHE INFO a b", "ERR wrong number of arguments for 'cache|info' command"),
            ("CACHE ENTRY", "ERR wrong number of arguments for 'cache|entry' command"),
            ("CACHE STATS x", "ERR wrong number of arguments for 'cache|stats' command"),
            ("CACHE RESETSTATS x", "ERR wrong number of arguments for 'cache|resetstats' command"),
            ("CACHE SUBSCRIBE PATTERN", SYNTAX),
            ("CACHE SUBSCRIBE k*", SYNTAX),
            ("CACHE SUBSCRIBE PATTERN a b", "ERR wrong number of arguments for 'cache|subscribe' command"),
            ("CACHE UNSUBSCRIBE x", "ERR wrong number of arguments for 'cache|unsubscribe' command"),
            ("CACHE JOB", "ERR wrong number of arguments for 'cache|job' command"),
            ("CACHE JOB -1", "ERR value is not an integer or out of range"),
            ("CACHE CANCEL x", "ERR value is not an integer or out of range"),
            ("CACHE HELP x", "ERR wrong number of arguments for 'cache|help' command"),
            ("CACHE INVALIDATE", "ERR wrong number of arguments for 'cache|invalidate' command"),
            ("CACHE INVALIDATE KEYS 1", "ERR wrong number of arguments for 'cache|invalidate' command"),
            ("CACHE INVALIDATE PATTERN", "ERR wrong number of arguments for 'cache|invalidate' command"),
            ("CACHE INVALIDATE KEYS 0 k", "ERR numkeys should be greater than 0"),
            ("CACHE INVALIDATE KEYS x k", "ERR numkeys should be greater than 0"),
            ("CACHE INVALIDATE KEYS 2 k", "ERR Number of keys can't be greater than number of args"),
            ("CACHE INVALIDATE KEYS 9223372036854775807 k", "ERR Number of keys can't be greater than number of args"),
            ("CACHE INVALIDATE KEYS 1 k j", SYNTAX),
            ("CACHE INVALIDATE KEYS 1 k LOCAL x", SYNTAX),
            ("CACHE INVALIDATE PATTERN a b", SYNTAX),
            ("CACHE INVALIDATE PATTERN a CURSOR", SYNTAX),
            ("CACHE INVALIDATE PATTERN a CURSOR x", "ERR invalid cursor"),
            ("CACHE INVALIDATE PATTERN a CURSOR 7 LOCAL", SYNTAX),
            ("CACHE INVALIDATE ALL here", SYNTAX),
            ("CACHE INVALIDATE ALL SOFT", SYNTAX),
            ("CACHE INVALIDATE ALL SOFT 1 SOFT 1", SYNTAX),
            ("CACHE INVALIDATE ALL LOCAL LOCAL", SYNTAX),
            ("CACHE INVALIDATE PATTERN a CURSOR 7 SOFT 1 LOCAL", SYNTAX),
            ("CACHE INVALIDATE ALL SOFT 1.5", "ERR value is not an integer or out of range"),
            ("CACHE INVALIDATE ALL SOFT LOCAL", "ERR value is not an integer or out of range"),
            ("CACHE INVALIDATE ALL SOFT 0", "ERR SOFT should be greater than 0"),
            ("CACHE INVALIDATE ALL SOFT -1", "ERR SOFT should be greater than 0"),
            ("CACHE INVALIDATE SOME", SYNTAX),
            ("CACHE WARM", "ERR wrong number of arguments for 'cache|warm' command"),
            ("CACHE WARM KEYS 1", "ERR wrong number of arguments for 'cache|warm' command"),
            ("CACHE WARM SNAPSHOT", "ERR wrong number of arguments for 'cache|warm' command"),
            ("CACHE WARM PATTERN", "ERR wrong number of arguments for 'cache|warm' command"),
            ("CACHE WARM KEYS 0 k", "ERR numkeys should be greater than 0"),
            ("CACHE WARM KEYS 2 k", "ERR Number of keys can't be greater than number of args"),
            ("CACHE WARM KEYS 1 k j", SYNTAX),
            ("CACHE WARM HOT 0", "ERR value is not an integer or out of range"),
            ("CACHE WARM HOT 1001", "ERR value is not an integer or out of range"),
            ("CACHE WARM HOT 5 SYNC EVERY 1 NAME n", SYNTAX),
            ("CACHE WARM HOT EVERY 0 NAME n", "ERR value is not an integer or out of range"),
            ("CACHE WARM HOT EVERY 2592001 NAME n", "ERR value is not an integer or out of range"),
            ("CACHE WARM HOT EVERY 1", SYNTAX),
            ("CACHE WARM HOT EVERY 1 CALLED n", SYNTAX),
            ("CACHE WARM COLD", SYNTAX),
        ] {
            assert_eq!(parsed(line), error, "{line}");
        }
        let long = OwnedArgs::new([b"CACHE".to_vec(), vec![b'\n'; 100_000]]);
        let error = CacheCommand::parse(long.args()).map(drop).unwrap_err().to_string();
        assert!(error.len() < 200 && !error.contains('\n'));
    }

    #[test]
    fn help_names_every_subcommand_once() {
        let lines: Vec<String> = help().collect();
        for subcommand in SUBCOMMANDS {
            let name = subcommand.name.to_uppercase();
            let titles = lines.iter().filter(|line| line.split(' ').next() == Some(&name)).count();
            assert_eq!(titles, 1, "{name}");
        }
        assert!(lines.iter().all(|line| line.len() <= 150));
    }

    #[test]
    fn the_command_table_has_a_row_for_each_subcommand() {
        let table = Table::builtin();
        for subcommand in SUBCOMMANDS {
            let row = table.by_full_name(&format!("cache|{}", subcommand.name)).unwrap();
            assert_eq!((row.arity, row.class, row.group), (subcommand.arity, Class::Local, Group::Larder));
        }
        let rows = table.iter().filter(|row| row.name.starts_with("cache|")).count();
        assert_eq!(rows, SUBCOMMANDS.len());
    }

    #[test]
    fn every_row_is_fit_to_be_shown() {
        for subcommand in SUBCOMMANDS {
            let Subcommand { name, syntax, .. } = subcommand;
            assert!(syntax::arguments(syntax).is_ok(), "{name}: the syntax cannot be read: {syntax}");
            assert_eq!(subcommand.arguments().is_empty(), subcommand.syntax.is_empty(), "{name}");
            let summary = subcommand.summary();
            assert!(!summary.is_empty() && !summary.ends_with('.') && !subcommand.complexity.is_empty(), "{name}");
            // What the syntax demands and what the arity demands are the same.
            let least = 2 + subcommand.arguments().iter().map(Argument::words_min).sum::<usize>();
            assert_eq!(usize::from(subcommand.arity.unsigned_abs()), least, "{name}: {syntax}");
            let names_keys = syntax.contains("<key>");
            assert_eq!(subcommand.keys != "-", names_keys, "{name}: {syntax}");
        }
    }

    #[test]
    fn the_keys_of_a_request_are_those_that_it_names() {
        let table = Table::builtin();
        for (line, keys) in [
            ("CACHE ENTRY k", &["k"][..]),
            ("CACHE INVALIDATE KEYS 2 a b LOCAL", &["a", "b"]),
            ("CACHE INVALIDATE PATTERN KEYS", &[]),
            ("CACHE WARM KEYS 2 a b SYNC", &["a", "b"]),
            ("CACHE STATS", &[]),
        ] {
            let args = OwnedArgs::new(line.split_whitespace());
            let crate::table::Resolved::Known(command) = table.resolve(args.args()) else { panic!("{line}") };
            let found: Vec<_> = command.keys(args.args()).map(|i| args.args().arg(i)).collect();
            assert_eq!(found, keys.iter().map(|k| k.as_bytes()).collect::<Vec<_>>(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_arguments_do_not_panic(
            words in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..12),
                    prop::sample::select(vec![
                        "invalidate", "KEYS", "pattern", "ALL", "LOCAL", "SOFT", "read", "strict", "breaker", "open", "info",
                        "entry", "help", "warm", "hot", "every", "name", "set", "tag", "members", "lease", "tags", "count", "cursor", "ex", "1", "2", "-1", "18446744073709551615", "9223372036854775807",
                    ]).prop_map(|word| word.as_bytes().to_vec()),
                ],
                0..8,
            )
        ) {
            let args = OwnedArgs::new(std::iter::once(b"CACHE".to_vec()).chain(words));
            match CacheCommand::parse(args.args()) {
                Ok(CacheCommand::Invalidate(Target::Keys(keys), ..)) => prop_assert_eq!(keys.iter().count(), keys.len()),
                Ok(CacheCommand::Tags(TagsCommand::Set(set))) => prop_assert!(set.options().count() < 8),
                _ => {}
            }
        }
    }
}
