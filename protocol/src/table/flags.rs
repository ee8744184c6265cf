//! The words of a `COMMAND` reply as bit sets: flags, ACL categories, tips, and the group.
//!
//! Each set has one list of (word, bit): the row parser, the reader of an upstream's `COMMAND` and the generator all
//! use it, so a word cannot mean two things. Words that are not in a list are ignored: a newer server may send
//! more of them, and nothing here depends on a word being absent except where a doc comment says so.

use bitflags::bitflags;

bitflags! {
    /// What the server says of a command as a whole (third element of its `COMMAND` row).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Flags: u32 {
        /// May change the data set.
        const WRITE = 1;
        /// Never changes the data set; its keys are tracked.
        const READONLY = 1 << 1;
        /// Refused when the server is out of memory.
        const DENYOOM = 1 << 2;
        /// Administration.
        const ADMIN = 1 << 3;
        /// Pub/Sub.
        const PUBSUB = 1 << 4;
        /// Not allowed in scripts.
        const NOSCRIPT = 1 << 5;
        /// May wait (servers from 7.0 on say so).
        const BLOCKING = 1 << 6;
        /// Allowed while the server loads its data.
        const LOADING = 1 << 7;
        /// Allowed on a replica with stale data.
        const STALE = 1 << 8;
        /// Not shown by MONITOR.
        const SKIP_MONITOR = 1 << 9;
        /// Not recorded in the slow log (`skip_commandlog` on Valkey).
        const SKIP_SLOWLOG = 1 << 10;
        /// Accepts keys of an importing slot.
        const ASKING = 1 << 11;
        /// O(1) or O(log n).
        const FAST = 1 << 12;
        /// Allowed before AUTH.
        const NO_AUTH = 1 << 13;
        /// May replicate although it is not a write.
        const MAY_REPLICATE = 1 << 14;
        /// The legacy first/last/step do not tell all keys.
        const MOVABLE_KEYS = 1 << 15;
        /// Not allowed in MULTI.
        const NO_MULTI = 1 << 16;
        /// Not allowed while loading asynchronously.
        const NO_ASYNC_LOADING = 1 << 17;
        /// Allowed while a script runs too long.
        const ALLOW_BUSY = 1 << 18;
        /// Zero keys is a valid number of keys.
        const NO_MANDATORY_KEYS = 1 << 19;
        /// Comes from a loaded module.
        const MODULE = 1 << 20;
        /// Servers before 7.0: the reply differs from call to call.
        const RANDOM = 1 << 21;
    }
}

bitflags! {
    /// ACL categories of a command (without the `@`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Categories: u32 {
        /// Keyspace.
        const KEYSPACE = 1;
        /// Reads.
        const READ = 1 << 1;
        /// Writes.
        const WRITE = 1 << 2;
        /// Sets.
        const SET = 1 << 3;
        /// Sorted sets.
        const SORTEDSET = 1 << 4;
        /// Lists.
        const LIST = 1 << 5;
        /// Hashes.
        const HASH = 1 << 6;
        /// Strings.
        const STRING = 1 << 7;
        /// Bitmaps.
        const BITMAP = 1 << 8;
        /// HyperLogLogs.
        const HYPERLOGLOG = 1 << 9;
        /// Geo indexes.
        const GEO = 1 << 10;
        /// Streams.
        const STREAM = 1 << 11;
        /// Pub/Sub.
        const PUBSUB = 1 << 12;
        /// Administration.
        const ADMIN = 1 << 13;
        /// Fast.
        const FAST = 1 << 14;
        /// Slow.
        const SLOW = 1 << 15;
        /// May wait.
        const BLOCKING = 1 << 16;
        /// Dangerous.
        const DANGEROUS = 1 << 17;
        /// Connection.
        const CONNECTION = 1 << 18;
        /// Transactions.
        const TRANSACTION = 1 << 19;
        /// Scripts and functions.
        const SCRIPTING = 1 << 20;
    }
}

bitflags! {
    /// Tips: what a proxy may want to know of a command (eighth element of its `COMMAND` row, from 7.0 on).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Tips: u32 {
        /// Two calls on the same data may answer differently.
        const NONDETERMINISTIC_OUTPUT = 1;
        /// Two calls on the same data may answer in a different order.
        const NONDETERMINISTIC_OUTPUT_ORDER = 1 << 1;
        /// Cluster: ask every node.
        const REQUEST_ALL_NODES = 1 << 2;
        /// Cluster: ask every shard.
        const REQUEST_ALL_SHARDS = 1 << 3;
        /// Cluster: split by slot.
        const REQUEST_MULTI_SHARD = 1 << 4;
        /// Cluster: a way of its own to ask.
        const REQUEST_SPECIAL = 1 << 5;
        /// Cluster: succeeded if one did.
        const RESPONSE_ONE_SUCCEEDED = 1 << 6;
        /// Cluster: succeeded if all did.
        const RESPONSE_ALL_SUCCEEDED = 1 << 7;
        /// Cluster: and of the answers.
        const RESPONSE_AGG_LOGICAL_AND = 1 << 8;
        /// Cluster: or of the answers.
        const RESPONSE_AGG_LOGICAL_OR = 1 << 9;
        /// Cluster: least of the answers.
        const RESPONSE_AGG_MIN = 1 << 10;
        /// Cluster: greatest of the answers.
        const RESPONSE_AGG_MAX = 1 << 11;
        /// Cluster: sum of the answers.
        const RESPONSE_AGG_SUM = 1 << 12;
        /// Cluster: a way of its own to join the answers.
        const RESPONSE_SPECIAL = 1 << 13;
    }
}

/// The part of the documentation that a command stands in; from `COMMAND DOCS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the server's documentation")]
pub enum Group {
    Bitmap,
    Cluster,
    Connection,
    Generic,
    Geo,
    Hash,
    Hyperloglog,
    List,
    Pubsub,
    Scripting,
    Sentinel,
    Server,
    Set,
    SortedSet,
    Stream,
    String,
    Transactions,
    /// Larder's own commands.
    Larder,
    /// Not known: learnt from an upstream's `COMMAND`, which does not tell the group.
    #[default]
    Other,
}

/// Words of [`Flags`].
pub const FLAG_WORDS: &[(&str, Flags)] = &[
    ("write", Flags::WRITE),
    ("readonly", Flags::READONLY),
    ("denyoom", Flags::DENYOOM),
    ("admin", Flags::ADMIN),
    ("pubsub", Flags::PUBSUB),
    ("noscript", Flags::NOSCRIPT),
    ("blocking", Flags::BLOCKING),
    ("loading", Flags::LOADING),
    ("stale", Flags::STALE),
    ("skip_monitor", Flags::SKIP_MONITOR),
    ("skip_slowlog", Flags::SKIP_SLOWLOG),
    ("skip_commandlog", Flags::SKIP_SLOWLOG),
    ("asking", Flags::ASKING),
    ("fast", Flags::FAST),
    ("no_auth", Flags::NO_AUTH),
    ("may_replicate", Flags::MAY_REPLICATE),
    ("movablekeys", Flags::MOVABLE_KEYS),
    ("no_multi", Flags::NO_MULTI),
    ("no_async_loading", Flags::NO_ASYNC_LOADING),
    ("allow_busy", Flags::ALLOW_BUSY),
    ("no_mandatory_keys", Flags::NO_MANDATORY_KEYS),
    ("module", Flags::MODULE),
    ("random", Flags::RANDOM),
];

/// Words of [`Categories`], without the `@`.
pub const CATEGORY_WORDS: &[(&str, Categories)] = &[
    ("keyspace", Categories::KEYSPACE),
    ("read", Categories::READ),
    ("write", Categories::WRITE),
    ("set", Categories::SET),
    ("sortedset", Categories::SORTEDSET),
    ("list", Categories::LIST),
    ("hash", Categories::HASH),
    ("string", Categories::STRING),
    ("bitmap", Categories::BITMAP),
    ("hyperloglog", Categories::HYPERLOGLOG),
    ("geo", Categories::GEO),
    ("stream", Categories::STREAM),
    ("pubsub", Categories::PUBSUB),
    ("admin", Categories::ADMIN),
    ("fast", Categories::FAST),
    ("slow", Categories::SLOW),
    ("blocking", Categories::BLOCKING),
    ("dangerous", Categories::DANGEROUS),
    ("connection", Categories::CONNECTION),
    ("transaction", Categories::TRANSACTION),
    ("scripting", Categories::SCRIPTING),
];

/// Words of [`Tips`].
pub const TIP_WORDS: &[(&str, Tips)] = &[
    ("nondeterministic_output", Tips::NONDETERMINISTIC_OUTPUT),
    ("nondeterministic_output_order", Tips::NONDETERMINISTIC_OUTPUT_ORDER),
    ("request_policy:all_nodes", Tips::REQUEST_ALL_NODES),
    ("request_policy:all_shards", Tips::REQUEST_ALL_SHARDS),
    ("request_policy:multi_shard", Tips::REQUEST_MULTI_SHARD),
    ("request_policy:special", Tips::REQUEST_SPECIAL),
    ("response_policy:one_succeeded", Tips::RESPONSE_ONE_SUCCEEDED),
    ("response_policy:all_succeeded", Tips::RESPONSE_ALL_SUCCEEDED),
    ("response_policy:agg_logical_and", Tips::RESPONSE_AGG_LOGICAL_AND),
    ("response_policy:agg_logical_or", Tips::RESPONSE_AGG_LOGICAL_OR),
    ("response_policy:agg_min", Tips::RESPONSE_AGG_MIN),
    ("response_policy:agg_max", Tips::RESPONSE_AGG_MAX),
    ("response_policy:agg_sum", Tips::RESPONSE_AGG_SUM),
    ("response_policy:special", Tips::RESPONSE_SPECIAL),
];

/// Words of [`Group`].
pub const GROUP_WORDS: &[(&str, Group)] = &[
    ("bitmap", Group::Bitmap),
    ("cluster", Group::Cluster),
    ("connection", Group::Connection),
    ("generic", Group::Generic),
    ("geo", Group::Geo),
    ("hash", Group::Hash),
    ("hyperloglog", Group::Hyperloglog),
    ("list", Group::List),
    ("pubsub", Group::Pubsub),
    ("scripting", Group::Scripting),
    ("sentinel", Group::Sentinel),
    ("server", Group::Server),
    ("set", Group::Set),
    ("sorted-set", Group::SortedSet),
    ("stream", Group::Stream),
    ("string", Group::String),
    ("transactions", Group::Transactions),
    ("larder", Group::Larder),
    ("other", Group::Other),
];

/// The bits of `words` that `list` knows, case-insensitively; the others are ignored.
pub(crate) fn from_words<'a, T: Copy + Default + std::ops::BitOr<Output = T>>(
    list: &[(&str, T)],
    words: impl Iterator<Item = &'a [u8]>,
) -> T {
    words.fold(T::default(), |set, word| set | from_word(list, word).unwrap_or_default())
}

/// What `word` stands for in `list`, case-insensitively.
pub(crate) fn from_word<T: Copy>(list: &[(&str, T)], word: &[u8]) -> Option<T> {
    list.iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(word)).map(|(_, bit)| *bit)
}
