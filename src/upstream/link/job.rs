//! What a link is asked to send: requests, and what each means for L1.
//!
//! A job is what one client sends together; it carries the bytes as they go out and one [`Op`] a request. The session
//! decides what a request means, the link only follows.

use crate::l1::Cause;
use crate::port::{Port, Seq};
use bytes::Bytes;
use larder_protocol::args::Args;
use larder_protocol::table::CommandId;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

/// A client's request that is longer goes by a connection of its own: all who share the link would wait while it is sent,
/// and a server may refuse it by closing the connection. That is then the loss of who has sent it, and of nobody else.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// An argument that every server takes, whatever its settings are now or will be: redis-server and Valkey let neither
/// `proto-max-bulk-len` nor `client-query-buffer-limit` be set below 1 MB (measured), and close the connection at an argument
/// that is longer. What must go by a connection that clients share, and may be longer than a request, is bounded by this.
pub const ARGUMENT_BYTES_MAX: usize = 960 * 1024;
/// What Larder puts in front of an argument of a client's: the prefix of its index, say.
const ADDED_BYTES_MAX: usize = 32 * 1024;

/// Requests that a client sends together.
#[derive(Debug)]
pub struct Job {
    /// Where the replies go.
    pub port: Arc<Port>,
    /// The requests, one behind the other.
    pub bytes: Bytes,
    /// What each is.
    pub ops: SmallVec<[Op; 1]>,
}

/// One request of a job.
#[derive(Clone, Debug)]
pub struct Op {
    /// The client's number for it.
    pub seq: Seq,
    /// Its bytes in [`Job::bytes`].
    pub bytes: Range<u32>,
    /// What it means for L1.
    pub kind: OpKind,
}

/// What a request means for L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// A read whose reply is not kept.
    Read,
    /// A read of Larder's own: the upstream is to tell when its keys change. An error if it will not.
    ReadTracked,
    /// A read of one key whose reply is to be kept. `key_at` is the argument that holds the key.
    Fill {
        /// The command.
        command: CommandId,
        /// Index of the argument that is the key.
        key_at: u16,
        /// True if the read may share the reply of an equal one that is under way: its client has no unanswered write.
        may_join: bool,
        /// True if the reply shows fields of a hash and the upstream has field TTLs, whose expiry sends no push when
        /// others read. Such a reply is kept only if the hash is small enough to be encoded as `listpack`, which a hash
        /// with field TTLs never is (measured on Valkey 9.1).
        asks_encoding: bool,
    },
    /// A read of several keys whose reply is to be kept key by key.
    FillEach(Each),
    /// As `Fill`, of an entry that is near its deadline: nobody waits for the reply.
    Refresh {
        /// The command.
        command: CommandId,
        /// Index of the argument that is the key.
        key_at: u16,
        /// As for `Fill`.
        asks_encoding: bool,
    },
    /// A change of the keys of this command.
    Write(CommandId),
    /// A script of Larder's own: the keys that the last element of its reply names have changed, for this cause.
    Named(Cause),
    /// A deletion of the keys behind its name: what L1 holds of them is softened.
    UnlinkSoftly(SoftOrder),
    /// As `Named`; what L1 holds of these keys is softened.
    NamedSoftly(SoftOrder),
    /// Neither reads nor changes a key, but may have an effect: never sent twice.
    Effect,
    /// Nothing is sent for the client; it is told when the link has caught up.
    Fence,
    /// As `Fence`, and at that moment the partition is emptied and its suspension ends.
    FenceAndResume,
    /// Nothing is sent: the arguments behind the first leave L1, and what is under way for them is not kept. The reply
    /// is their number.
    Drop(Cause),
    /// As `Drop`, for everything; the reply is `+OK`.
    DropAll(Cause),
    /// As `Drop`, but what was in L1 is softened.
    Soften(SoftOrder),
}

/// Why keys leave L1 softly, and for how long their entries may still be answered as stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftOrder {
    /// Why.
    pub cause: Cause,
    /// How long, in milliseconds.
    pub ms: u32,
}

/// How the reply to a read of several keys is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Each {
    /// `MGET`: element i of the reply is what key i holds, under the variants of these commands.
    Mget {
        /// A string that is there is what `GET` would say, too.
        get: CommandId,
        /// A nil may stand for another type, where `GET` would be an error.
        mget: CommandId,
    },
    /// `EXISTS`: the PTTL of each key tells whether it exists.
    Exists(CommandId),
}

// === impl Job ===

impl Job {
    /// True if nothing of it goes to the upstream for a client: fences, and orders to drop entries.
    pub fn is_order(&self) -> bool {
        self.ops.iter().all(|op| op.kind.is_order())
    }

    /// True if its bytes are sent as they are, and nothing between: all are plain requests. `keeps`: replies may be kept.
    #[inline]
    pub(super) fn is_forwarded(&self, keeps: bool) -> bool {
        let mut at = 0;
        let is_next = |op: &Op| op.bytes.start == std::mem::replace(&mut at, op.bytes.end) && op.kind.is_plain(keeps);
        self.ops.iter().all(is_next) && at as usize == self.bytes.len()
    }
}

/// The error line, without the dash, for arguments of which one may be too long for a connection that clients share.
pub fn too_long(args: Args<'_>) -> Option<String> {
    longest_beyond(args, ARGUMENT_BYTES_MAX)
        .map(|len| format!("ERR larder: an argument of {len} bytes; here it may have at most {ARGUMENT_BYTES_MAX}"))
}

/// As [`too_long`], for a request that Larder has made.
pub fn own_too_long(args: Args<'_>) -> Option<String> {
    longest_beyond(args, ARGUMENT_BYTES_MAX + ADDED_BYTES_MAX)
        .map(|len| format!("ERR larder: a name of {len} bytes is too long for the connection that clients share"))
}

fn longest_beyond(args: Args<'_>, most: usize) -> Option<usize> {
    if args.bytes().len() <= most {
        return None;
    }
    args.iter().map(<[u8]>::len).max().filter(|len| *len > most)
}

// === impl OpKind ===

impl OpKind {
    /// True if the request can be sent twice without harm.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Read | Self::ReadTracked | Self::Fill { .. } | Self::FillEach(_) | Self::Refresh { .. })
    }

    /// True if the request is sent and its reply handed on, and nothing else is written.
    fn is_plain(self, keeps: bool) -> bool {
        match self {
            Self::Read | Self::Write(_) | Self::Effect => true,
            Self::Fill { .. } | Self::FillEach(_) => !keeps,
            _ => false,
        }
    }

    /// The same for who waits for the reply: a read may have joined a refresh.
    pub(super) fn for_readers(self) -> Self {
        match self {
            Self::Refresh { command, key_at, asks_encoding } => {
                Self::Fill { command, key_at, may_join: true, asks_encoding }
            }
            kind => kind,
        }
    }

    /// True if nothing is sent to the upstream for a client.
    pub fn is_order(self) -> bool {
        matches!(self, Self::Fence | Self::FenceAndResume | Self::Drop(_) | Self::DropAll(_) | Self::Soften(_))
    }
}
