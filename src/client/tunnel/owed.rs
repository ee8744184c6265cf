//! What is owed to a client in a tunnel: the reply to one request, how long it may take, and what is in doubt if it never
//! comes.
//!
//! Only looks at requests and the table; nothing here is sent.

use super::transaction::Transaction;
use crate::client::core::Core;
use crate::client::tracking::Change;
use crate::port::CatchUp;
use crate::upstream::scope::ReplyTimes;
use bytes::Bytes;
use larder_protocol::args::Args;
use larder_protocol::scan::strict_i64;
use larder_protocol::shape::Protocol;
use larder_protocol::table::{Categories, Class, Command, Flags, Origin, Resolved, Table};
use std::time::Duration;

/// Who is ready to wait for so long waits for ever: no clock could be set to much later moments.
const ENDLESS: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A reply that is owed to the client.
pub(super) struct Owed {
    pub what: What,
    pub muted: bool,
    /// True if the request may have changed keys.
    pub writes: bool,
    /// How long it may take; `None` if it may take as long as it takes.
    pub within: Option<Duration>,
    /// What it may have changed, whether its reply comes or is lost.
    pub reach: Reach,
    /// True if it may hold an argument that the server closes the connection at: that is then its client's doing.
    pub is_long: bool,
    /// True if it changes what no push tells of: other Larders are told before its client is.
    pub changes_unpushed: bool,
}

pub(super) enum What {
    /// Whatever the upstream says.
    Reply,
    /// As `Reply`; nothing that L1 could contradict.
    Acknowledgement,
    /// As `Reply`; the client waits in a blocking command.
    Blocking,
    /// The reply to SELECT on a connection that keeps state.
    Select(Option<u32>),
    /// The reply to a command that is being queued.
    Queued,
    /// The reply to EXEC.
    Exec(Transaction),
    /// The reply to MULTI: an error means that there is no transaction.
    Multi,
    /// The reply to MONITOR.
    Monitor,
    /// The reply to Larder's own PING of a client that watches: these wait for it.
    Mark(Vec<CatchUp>),
    /// The reply to ACL DELUSER of these.
    Removal(Vec<Vec<u8>>),
    /// The reply to CLIENT TRACKING.
    Tracking(Change),
    /// The reply to CLIENT TRACKINGINFO or GETREDIR.
    Redirection,
    /// The upstream's reply is dropped for this one.
    Instead(Bytes),
    /// Nothing comes from the upstream: Larder's own answer, in its place.
    Answer(Bytes),
}

/// True for what a server says before it closes a connection on which it has read what is no request, or what is longer than it
/// takes (`proto-max-bulk-len`). Only believed of a request of [`ARGUMENT_BYTES_MAX`] bytes and more: a script can say it, too.
///
/// [`ARGUMENT_BYTES_MAX`]: crate::upstream::link::ARGUMENT_BYTES_MAX
pub(in crate::client) fn is_protocol_error(reply: &[u8]) -> bool {
    reply.starts_with(b"-ERR Protocol error")
}

/// Keys that are remembered for the requests of a transaction; with more it may have changed anything.
const REACH_KEYS_MAX: usize = 4096;

/// What a request may change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Reach {
    /// No key.
    #[default]
    Nothing,
    /// These keys, in the client's database.
    Keys(Vec<Bytes>),
    /// Nobody can tell, or more than one database.
    Anything,
}

// === impl Owed ===

impl Owed {
    /// The reply to a request, before it is known how long it may take and what it reaches.
    pub(super) fn new(what: What, writes: bool) -> Self {
        let (muted, within, reach, is_long, changes_unpushed) = (false, None, Reach::Nothing, false, false);
        Self { what, muted, writes, within, reach, is_long, changes_unpushed }
    }

    /// The reply to a request of Larder's own, which the client does not see.
    pub(super) fn unseen(what: What, within: Duration) -> Self {
        Self { muted: true, within: Some(within), ..Self::new(what, false) }
    }

    /// True if this reply is the server's last word: it takes no such request, and closes the connection behind.
    pub(super) fn is_refused_for_good(&self, reply: &[u8]) -> bool {
        self.is_long && is_protocol_error(reply)
    }

    /// True for a transaction of which Larder answers a part when its reply comes.
    pub(super) fn is_about_client(&self) -> bool {
        matches!(&self.what, What::Exec(transaction) if !transaction.own.is_empty())
    }
}

// === impl Reach ===

impl Reach {
    /// What a request may change.
    pub(super) fn of(table: &Table, args: Args<'_>) -> Self {
        let Resolved::Known(command) = table.resolve(args) else { return Self::Anything };
        if command.flags.contains(Flags::READONLY) {
            return Self::Nothing;
        }
        match command.classify(args, Protocol::Resp3) {
            Class::Write | Class::Blocking => {
                let keys: Vec<Bytes> = command.keys(args).map(|at| Bytes::copy_from_slice(args.arg(at))).collect();
                match keys.is_empty() {
                    true if command.flags.contains(Flags::WRITE) => Self::Anything,
                    true => Self::Nothing,
                    false => Self::Keys(keys),
                }
            }
            Class::Exclusive if is_about_the_server(command) => Self::Nothing,
            Class::Exclusive => Self::Anything,
            _ => Self::Nothing,
        }
    }

    /// The reply has come, and is fenced next: what the request may have changed is soft no more. A push tells of changes;
    /// none does of a key that was deleted again. Names count in all databases, as they do for the server's tracking.
    pub(super) fn end_softness(&self, core: &Core) {
        let keys: &[Bytes] = match self {
            Self::Nothing => return,
            Self::Keys(keys) => keys,
            Self::Anything => &[],
        };
        let now = core.shared.clock.now();
        for scope in core.upstream().iter().flat_map(|upstream| upstream.scopes()) {
            let partition = scope.link.partition();
            match keys {
                [] => partition.written_elsewhere(None, now),
                keys => keys.iter().for_each(|key| partition.written_elsewhere(Some(key), now)),
            }
        }
    }

    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, reach) | (reach, Self::Nothing) => reach,
            (Self::Keys(mut keys), Self::Keys(more)) if keys.len() + more.len() <= REACH_KEYS_MAX => {
                keys.extend(more);
                Self::Keys(keys)
            }
            _ => Self::Anything,
        }
    }
}

/// True for administration that neither changes a key nor runs what could.
fn is_about_the_server(command: &Command) -> bool {
    let runs_scripts = command.categories.contains(Categories::SCRIPTING) && !command.key_specs.is_empty();
    let container = command.name.split('|').next().unwrap_or_default();
    command.origin == Origin::Builtin
        && !runs_scripts
        && !command.flags.intersects(Flags::WRITE | Flags::MAY_REPLICATE | Flags::MODULE)
        && !matches!(container, "debug" | "module")
}

/// How long the reply to a request may take. Who blocks has said how long by itself, and gets a grace on top; a script,
/// and whatever is no plain read or write, has a bound of its own; MONITOR and blocking for ever have none.
pub(super) fn bound_of(table: &Table, args: Args<'_>, what: &What, times: &ReplyTimes) -> Option<Duration> {
    if let What::Exec(_) = what {
        return Some(times.exclusive_max);
    }
    let Resolved::Known(command) = table.resolve(args) else { return Some(times.exclusive_max) };
    match (what, command.class) {
        (What::Blocking, _) => own_timeout(&command.name, args).map(|own| own.saturating_add(times.blocking_grace)),
        (What::Queued | What::Multi | What::Acknowledgement, _) => Some(times.write_max),
        (_, Class::Monitor) => Some(times.read_max),
        (_, Class::Read(_)) => Some(times.read_max),
        (_, Class::Write | Class::Plain | Class::Blocking) => Some(times.write_max),
        _ => Some(times.exclusive_max),
    }
}

/// The timeout that a blocking command names; `None` for none, and for what is no number (the upstream refuses it).
fn own_timeout(name: &str, args: Args<'_>) -> Option<Duration> {
    let last = args.len().checked_sub(1)?;
    let (word, in_seconds) = match name {
        "xread" | "xreadgroup" => (args.arg(1 + args.iter().position(|a| a.eq_ignore_ascii_case(b"block"))?), false),
        "wait" | "waitaof" => (args.arg(last), false),
        "blmpop" | "bzmpop" => (args.arg(1), true),
        _ => (args.arg(last), true),
    };
    let own = if in_seconds {
        let seconds: f64 = std::str::from_utf8(word).ok()?.parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()?
    } else {
        Duration::from_millis(u64::try_from(strict_i64(word)?).ok()?)
    };
    (!own.is_zero() && own < ENDLESS).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_protocol::args::OwnedArgs;

    fn times() -> ReplyTimes {
        let ms = Duration::from_millis;
        ReplyTimes { read_max: ms(1), write_max: ms(2), exclusive_max: ms(3), blocking_grace: ms(500) }
    }

    fn bound(line: &str, what: What) -> Option<u128> {
        let request = OwnedArgs::new(line.split(' '));
        bound_of(&Table::builtin(), request.args(), &what, &times()).map(|bound| bound.as_millis())
    }

    fn reach(line: &str) -> Reach {
        Reach::of(&Table::builtin(), OwnedArgs::new(line.split(' ')).args())
    }

    fn keys(keys: &[&'static str]) -> Reach {
        Reach::Keys(keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect())
    }

    #[test]
    fn who_blocks_is_waited_for_as_long_as_it_asked_and_a_grace() {
        for (line, expected) in [
            ("BLPOP a b 1.5", Some(2000)),
            ("BLMOVE a b LEFT RIGHT 2", Some(2500)),
            ("BLMPOP 3 1 a LEFT", Some(3500)),
            ("BZMPOP 0 1 a MIN", None),
            ("XREAD COUNT 2 BLOCK 250 STREAMS s $", Some(750)),
            ("XREADGROUP GROUP g c BLOCK 0 STREAMS s >", None),
            ("WAIT 1 100", Some(600)),
            ("BRPOP a 0", None),
            ("BRPOP a nonsense", None),
            ("BRPOP a -1", None),
            ("BRPOP a inf", None),
            ("BLPOP a 9223372036854775807", None),
            ("XREAD BLOCK 9223372036854775807 STREAMS s $", None),
        ] {
            assert_eq!(bound(line, What::Blocking), expected, "{line}");
        }
    }

    #[test]
    fn each_class_has_its_bound() {
        assert_eq!(bound("GET k", What::Reply), Some(1));
        assert_eq!(bound("SET k v", What::Reply), Some(2));
        assert_eq!(bound("SET k v", What::Queued), Some(2));
        assert_eq!(bound("EVAL return(1) 0", What::Reply), Some(3));
        assert_eq!(bound("CONFIG GET *", What::Reply), Some(3));
        assert_eq!(bound("NOSUCHCOMMAND", What::Reply), Some(3));
        assert_eq!(bound("EXEC", What::Exec(Transaction::default())), Some(3));
    }

    #[test]
    fn knows_what_a_lost_request_may_have_changed() {
        assert_eq!(reach("GET k"), Reach::Nothing);
        assert_eq!(reach("KEYS *"), Reach::Nothing);
        assert_eq!(reach("SET k v"), keys(&["k"]));
        assert_eq!(reach("BLPOP a b 0"), keys(&["a", "b"]));
        for line in
            ["EVAL return(1) 0", "FCALL f 0", "FLUSHALL", "SWAPDB 0 1", "MOVE k 1", "NOSUCHCOMMAND k", "DEBUG RELOAD"]
        {
            assert_eq!(reach(line), Reach::Anything, "{line}");
        }
        for line in ["CONFIG GET *", "EVAL_RO return(1) 0", "SCRIPT LOAD return(1)", "INFO", "ACL LIST"] {
            assert_eq!(reach(line), Reach::Nothing, "{line}");
        }
        let many = || Reach::Keys(vec![Bytes::from_static(b"k"); REACH_KEYS_MAX]);
        assert_eq!(many().and(Reach::Nothing), many());
        assert_eq!(many().and(keys(&["a"])), Reach::Anything);
        assert_eq!(keys(&["a"]).and(Reach::Nothing).and(keys(&["b"])), keys(&["a", "b"]));
        assert_eq!(keys(&["a"]).and(Reach::Anything), Reach::Anything);
    }
}
