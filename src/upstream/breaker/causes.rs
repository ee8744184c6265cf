//! What counts as a failure of the upstream, and what its error replies mean.

use std::fmt;

/// How many kinds of failure there are.
pub(super) const CAUSES: usize = 9;

/// Why a call, or a link, failed through the fault of the upstream or of the way to it.
///
/// `Display` gives the lower-case noun ("timeout"); [`FailureCause::counted`] a number of them ("12 timeouts").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureCause {
    /// The upstream's name could not be resolved.
    Resolve,
    /// No connection: refused, unreachable, or not made in time.
    Connect,
    /// Connected, but the greeting failed: wrong password, no RESP3, no tracking. Only for the credentials of Larder's
    /// own configuration: a client's wrong password is its own fault and must not open the circuit for all.
    Handshake,
    /// No reply in time.
    Timeout,
    /// The connection broke while the call was under way, or without one.
    LinkLost,
    /// The server answers `LOADING`: it reads its data set and serves nothing yet.
    Loading,
    /// The replica answers `MASTERDOWN`: it has lost its primary and must not serve old data.
    MasterDown,
    /// The node answers `CLUSTERDOWN`: its cluster does not serve this slot, or any.
    ClusterDown,
    /// What came is not RESP, or not an answer to anything asked.
    BadProtocol,
}

/// What an error reply of the upstream asks of Larder, beyond being handed to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The upstream cannot serve: record [`Outcome::Failure`](super::Outcome::Failure) with this cause.
    Failure(FailureCause),
    /// The upstream works and has refused this command: record [`Outcome::ClientFault`](super::Outcome::ClientFault).
    PassThrough,
    /// As `PassThrough`; besides, the server at the other end is no longer the one that is wanted, so that the link
    /// should resolve the name anew and connect again, within the limits of its back-off.
    Reconnect,
}

/// A number of failures of one kind, for texts: "1 timeout", "12 timeouts".
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    cause: FailureCause,
    count: u64,
}

/// Understands an error reply of the upstream by its first word, which is a part of Redis's and Valkey's interface.
/// `reply` is the error's text, with or without the `-` in front and the line's end.
///
/// | first word | counts | reconnect | why |
/// |---|---|---|---|
/// | `LOADING` | yes | no | serves no key until its data set is read; a new connection would hear the same |
/// | `MASTERDOWN` | yes | no | a replica without its primary that must not answer (`replica-serve-stale-data no`) |
/// | `CLUSTERDOWN` | yes | no | the cluster has no owner for the slot or no majority |
/// | `READONLY` | no | yes | the server has become a replica: after a failover the name leads to another server; reads still work, so the circuit stays closed |
/// | `MISCONF` | no | no | the disk is full or snapshots fail: writes are refused on purpose, reads work |
/// | `OOM` | no | no | over `maxmemory` with nothing to evict: commands that need memory are refused, others work |
/// | `NOREPLICAS` | no | no | too few replicas for writes (`min-replicas-to-write`); reads work |
/// | `BUSY` | no | no | a script runs too long: the server answers at once, and must stay reachable for `SCRIPT KILL` |
/// | `UNBLOCKED` | no | no | ends one blocking command, by `CLIENT UNBLOCK` or a change of role |
/// | `MOVED`, `ASK`, `TRYAGAIN`, `CROSSSLOT` | no | no | a cluster's answer about the key's place |
/// | `NOAUTH`, `NOPERM`, `WRONGPASS` | no | no | the client's own rights; on Larder's own greeting the link records `Handshake` |
/// | `ERR`, `WRONGTYPE`, `EXECABORT`, `NOSCRIPT`, `BUSYGROUP`, any other | no | no | the client's own command |
///
/// Two limits. A script can return any error text it likes (`redis.error_reply`): replies to scripts and functions
/// must not be given to this function, or a client could open the circuit for all. And a `READONLY` server can be a
/// replica on purpose, with a client that keeps writing to it: a reconnect must be held to the link's back-off, or
/// such a client would empty the cache at each write.
pub fn classify_error(reply: &[u8]) -> ErrorKind {
    let text = reply.strip_prefix(b"-").unwrap_or(reply);
    let word = text.split(|byte| matches!(byte, b' ' | b'\r' | b'\n')).next().unwrap_or_default();
    match word {
        b"LOADING" => ErrorKind::Failure(FailureCause::Loading),
        b"MASTERDOWN" => ErrorKind::Failure(FailureCause::MasterDown),
        b"CLUSTERDOWN" => ErrorKind::Failure(FailureCause::ClusterDown),
        b"READONLY" => ErrorKind::Reconnect,
        _ => ErrorKind::PassThrough,
    }
}

// === impl FailureCause ===

impl FailureCause {
    /// Every cause, in the order of declaration.
    pub const ALL: [FailureCause; CAUSES] = [
        FailureCause::Resolve,
        FailureCause::Connect,
        FailureCause::Handshake,
        FailureCause::Timeout,
        FailureCause::LinkLost,
        FailureCause::Loading,
        FailureCause::MasterDown,
        FailureCause::ClusterDown,
        FailureCause::BadProtocol,
    ];

    /// So many of them, for a text.
    pub fn counted(self, count: u64) -> Counted {
        Counted { cause: self, count }
    }

    /// Its place in [`FailureCause::ALL`].
    pub(super) fn index(self) -> usize {
        self as usize
    }

    /// The noun, and its plural.
    fn nouns(self) -> (&'static str, &'static str) {
        match self {
            FailureCause::Resolve => ("failed name lookup", "failed name lookups"),
            FailureCause::Connect => ("connect error", "connect errors"),
            FailureCause::Handshake => ("failed handshake", "failed handshakes"),
            FailureCause::Timeout => ("timeout", "timeouts"),
            FailureCause::LinkLost => ("lost link", "lost links"),
            FailureCause::Loading => ("loading reply", "loading replies"),
            FailureCause::MasterDown => ("master-down reply", "master-down replies"),
            FailureCause::ClusterDown => ("cluster-down reply", "cluster-down replies"),
            FailureCause::BadProtocol => ("protocol error", "protocol errors"),
        }
    }
}

impl fmt::Display for FailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.nouns().0)
    }
}

// === impl Counted ===

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (one, many) = self.cause.nouns();
        write!(f, "{} {}", self.count, if self.count == 1 { one } else { many })
    }
}
