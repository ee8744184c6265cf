//! What Larder does with a command: computed from the row, with a short list of named exceptions.
//!
//! The order of the rules is the order of safety: what is named comes first, then everything that may hold state, wait
//! or touch keys that nobody can tell, and only what is left may use the shared link. A row that no rule understands
//! is [`Class::Exclusive`], which is always right and only slower.

use super::command::{Command, Origin};
use super::flags::{Categories, Flags, Tips};
use super::keys::{BeginSearch, FindKeys, KeyFlags, KeyRule, is_word};
use crate::args::Args;

/// What Larder does with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Read-only with known keys: on the shared link, from L1 where the [`Cacheability`] allows.
    Read(Cacheability),
    /// Changes only keys that are known: on the shared link; its keys leave L1 before the reply is handed on.
    Write,
    /// No keys, no state, cheap: on the shared link, filling nothing.
    Plain,
    /// On a borrowed connection that speaks the client's protocol, followed by a fence: everything that is
    /// unknown, administrative, a script, keyless and large, or that crosses databases.
    Exclusive,
    /// Like [`Class::Exclusive`], and may wait for other clients.
    Blocking,
    /// MULTI, EXEC, DISCARD, WATCH, UNWATCH.
    Transaction,
    /// Subscribing and unsubscribing.
    PubSub,
    /// MONITOR.
    Monitor,
    /// Answered by Larder itself: about the connection, or Larder's own.
    Local,
    /// Refused: no proxy can serve replication.
    Refused,
}

/// Whether and how a read's reply may stay in L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cacheability {
    /// One key, one entry.
    Single,
    /// Answered key by key, each like a read of its own.
    PerKey(PerKey),
    /// Never, for this reason.
    No(Bypass),
}

/// Reads of several keys whose reply can be put together from replies for one key each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PerKey {
    /// `MGET`: an array of what `GET` answers, nil for another type.
    Mget,
    /// `EXISTS`: the sum, a key that is named twice counting twice.
    Exists,
}

/// Why a read is not cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// The server's tip says that two calls may answer differently (`SRANDMEMBER`, `DUMP`, `SCAN`-likes).
    Nondeterministic,
    /// The answer changes with time alone (`TTL`, `HTTL`, `OBJECT IDLETIME`).
    AgesByItself,
    /// The answer shows things whose change sends no push: consumer groups, encodings, memory.
    NotPushed,
    /// The request names several keys, and an entry belongs to one.
    SeveralKeys,
    /// Reading is not its point: `TOUCH` must reach the server.
    HasEffect,
    /// Reads keys that values name (`SORT_RO ... BY`/`GET`).
    DerivedKeys,
    /// A command that can wait, here without its `BLOCK` option.
    MayWait,
    /// Known only from the upstream's `COMMAND`: whether its answer depends on its key alone is not known.
    NotInTable,
}

/// What must be looked at in the arguments before the class of a request is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Refinement {
    /// Nothing beyond the presence of the only key.
    #[default]
    Fixed,
    /// Whether all keys are known.
    Knowledge,
    /// As [`Refinement::Knowledge`]; and a cacheable read must have exactly one key.
    KeyCount,
    /// As [`Refinement::Knowledge`]; and `BLOCK` makes it wait.
    BlockOption,
    /// As [`Refinement::Knowledge`]; and `DB` lets it cross databases.
    DbOption,
}

// === impl Class ===

impl Class {
    /// True for what runs on the shared link.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::Read(_) | Self::Write | Self::Plain)
    }

    /// A short name for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Write => "write",
            Self::Plain => "plain",
            Self::Exclusive => "exclusive",
            Self::Blocking => "blocking",
            Self::Transaction => "transaction",
            Self::PubSub => "pubsub",
            Self::Monitor => "monitor",
            Self::Local => "local",
            Self::Refused => "refused",
        }
    }
}

// === impl Bypass ===

impl Bypass {
    /// Every reason, for metrics that want one series each.
    pub const ALL: [Self; 8] = [
        Self::Nondeterministic,
        Self::AgesByItself,
        Self::NotPushed,
        Self::SeveralKeys,
        Self::HasEffect,
        Self::DerivedKeys,
        Self::MayWait,
        Self::NotInTable,
    ];

    /// The reason in snake case.
    pub fn label(self) -> &'static str {
        match self {
            Self::Nondeterministic => "nondeterministic",
            Self::AgesByItself => "ages_by_itself",
            Self::NotPushed => "not_pushed",
            Self::SeveralKeys => "several_keys",
            Self::HasEffect => "has_effect",
            Self::DerivedKeys => "derived_keys",
            Self::MayWait => "may_wait",
            Self::NotInTable => "not_in_table",
        }
    }
}

impl std::fmt::Display for Bypass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// The class of `row`, and what is still to be looked at in a request's arguments.
pub(super) fn classify(row: &Command) -> (Class, Refinement) {
    let container = row.name.split('|').next().unwrap_or_default();
    if let Some(class) = named_class(container, &row.name) {
        return (class, if class.is_shared() { shared_refinement(row) } else { Refinement::Fixed });
    }
    let waits = row.flags.contains(Flags::BLOCKING) || row.categories.contains(Categories::BLOCKING);
    if waits {
        let option = matches!(&*row.name, "xread" | "xreadgroup");
        return (Class::Blocking, if option { Refinement::BlockOption } else { Refinement::Fixed });
    }
    if !may_share(row) {
        return (Class::Exclusive, Refinement::Fixed);
    }
    if row.flags.contains(Flags::WRITE) {
        return (Class::Write, if row.name == "copy" { Refinement::DbOption } else { shared_refinement(row) });
    }
    let cacheability = cacheability(row);
    let refinement = match cacheability {
        Cacheability::Single if row.single_key == 0 => Refinement::KeyCount,
        _ => shared_refinement(row),
    };
    (Class::Read(cacheability), refinement)
}

/// The commands whose keys are found by rules of their own.
pub(super) fn key_rule(name: &str) -> KeyRule {
    match name {
        "sort" | "sort_ro" => KeyRule::Sort,
        "migrate" => KeyRule::Migrate,
        _ => KeyRule::Specs,
    }
}

/// True if `args` of `XREAD` or `XREADGROUP` hold `BLOCK` among the options, which end at `STREAMS`.
pub(super) fn has_block_option(args: Args<'_>) -> bool {
    let mut i = 1;
    while let Some(option) = args.get(i) {
        if is_word(option, "block") {
            return true;
        }
        if is_word(option, "streams") {
            return false;
        }
        i += match () {
            () if is_word(option, "count") => 2,
            () if is_word(option, "group") => 3,
            () => 1,
        };
    }
    false
}

/// True if `args` of `COPY` hold `DB` among the options.
pub(super) fn has_db_option(args: Args<'_>) -> bool {
    args.iter().skip(3).any(|option| is_word(option, "db"))
}

/// The exceptions: commands whose class cannot be computed from their flags, and why.
fn named_class(container: &str, name: &str) -> Option<Class> {
    let by_container = match container {
        // About the connection between client and Larder, which the upstream does not see; CACHE is Larder's own.
        "ping" | "echo" | "hello" | "auth" | "select" | "quit" | "reset" | "client" | "cache" => Some(Class::Local),
        // Connection state that lasts from command to command.
        "multi" | "exec" | "discard" | "watch" | "unwatch" => Some(Class::Transaction),
        "subscribe" | "unsubscribe" | "psubscribe" | "punsubscribe" | "ssubscribe" | "sunsubscribe" => {
            Some(Class::PubSub)
        }
        "monitor" => Some(Class::Monitor),
        // Replication: the connection would become the server's replica, or the server another's.
        "sync" | "psync" | "replconf" | "replicaof" | "slaveof" | "failover" => Some(Class::Refused),
        // No keys and no state, one short reply; on the link they stand in order with everything else.
        "publish" | "spublish" | "dbsize" | "randomkey" | "time" | "lastsave" => Some(Class::Plain),
        // They wait for replicas or the disk; servers before 7.2 do not flag them as blocking.
        "wait" | "waitaof" => Some(Class::Blocking),
        // The same key in another database, whose L1 the link does not feed. MIGRATE stops the server meanwhile.
        "move" | "migrate" => Some(Class::Exclusive),
        // Flagged read-only, but rewrites the cardinality that is cached inside the value.
        "pfcount" => Some(Class::Write),
        _ => None,
    };
    by_container.or(match name {
        // Slot migration's own handshake: turns the connection into a replication link.
        "cluster|syncslots" => Some(Class::Refused),
        _ => None,
    })
}

/// True if nothing but its keys stands against the shared link. Whether the keys of a request are all known is
/// decided for each request.
fn may_share(row: &Command) -> bool {
    let (reads, writes) = (row.flags.contains(Flags::READONLY), row.flags.contains(Flags::WRITE));
    let keyed = row.key_specs.iter().any(|spec| !spec.flags.contains(KeyFlags::NOT_KEY));
    let findable = row.key_rule != KeyRule::Specs
        || row.key_specs.iter().all(|spec| {
            spec.begin != BeginSearch::Unknown
                && spec.find != FindKeys::Unknown
                && !spec.flags.contains(KeyFlags::INCOMPLETE)
        });
    let set_apart = Flags::ADMIN | Flags::PUBSUB | Flags::NOSCRIPT;
    // What a module writes besides its keys nobody can tell.
    let module_write = writes && row.flags.contains(Flags::MODULE);
    (reads || writes)
        && keyed
        && findable
        && !module_write
        && !row.flags.intersects(set_apart)
        && !row.categories.contains(Categories::SCRIPTING)
}

fn shared_refinement(row: &Command) -> Refinement {
    let keyed = row.key_specs.iter().any(|spec| !spec.flags.contains(KeyFlags::NOT_KEY));
    if !keyed || row.single_key > 0 { Refinement::Fixed } else { Refinement::Knowledge }
}

fn cacheability(row: &Command) -> Cacheability {
    let named = match &*row.name {
        "mget" => Some(Cacheability::PerKey(PerKey::Mget)),
        "exists" => Some(Cacheability::PerKey(PerKey::Exists)),
        "ttl" | "pttl" | "httl" | "hpttl" | "object|idletime" | "object|freq" => {
            Some(Cacheability::No(Bypass::AgesByItself))
        }
        // Adding consumers, reading through a group and acknowledging send no push; nor does a new encoding.
        "xinfo|stream" | "xinfo|groups" | "xinfo|consumers" | "xpending" | "object|encoding" | "object|refcount"
        | "memory|usage" => Some(Cacheability::No(Bypass::NotPushed)),
        "touch" => Some(Cacheability::No(Bypass::HasEffect)),
        "sort_ro" => Some(Cacheability::No(Bypass::DerivedKeys)),
        // Always two keys.
        "lcs" => Some(Cacheability::No(Bypass::SeveralKeys)),
        _ => None,
    };
    match named {
        Some(named) => named,
        None if row.origin == Origin::Upstream => Cacheability::No(Bypass::NotInTable),
        None if row.tips.contains(Tips::NONDETERMINISTIC_OUTPUT) || row.flags.contains(Flags::RANDOM) => {
            Cacheability::No(Bypass::Nondeterministic)
        }
        None => Cacheability::Single,
    }
}
