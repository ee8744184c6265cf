//! What the upstream says of its clients, channels and commands, as it is told to Larder's: INFO, COMMAND, PUBSUB, and
//! PUBLISH where it does not go down the link.
//!
//! The upstream sees connections of Larder where there are clients, one subscription where many share it, Larder's own
//! channels where nobody has subscribed, and no CACHE. Its reply is passed on with that put right, within a transaction
//! as without. What a script asks of it is not seen here.
//!
//! Invariants: what the upstream words (errors) stays as it is, and so does a reply that is not understood.

use super::Connection;
use super::core::Core;
use super::local::bulk;
use crate::cache::listing;
use crate::hub::Kind;
use crate::upstream::peers;
use larder_protocol::args::Args;
use larder_protocol::cursor::{Cursor, Item};

/// True if the reply to this command is to be told by [`Core::retold`].
pub(super) fn concerns(name: &str) -> bool {
    is_publish(name)
        || matches!(name, "info" | "pubsub|numsub" | "pubsub|shardnumsub" | "pubsub|shardchannels")
        || listing::concerns(name)
}

// === impl Connection ===

impl Connection {
    /// Answers one of these commands.
    pub(super) async fn retell(&mut self, name: &str, args: Args<'_>) {
        if name == "info" && asks_for_section(args) == Asks::Ours {
            let answer = self.core.verbatim(self.core.shared.info_section().as_bytes());
            self.core.answer(&answer);
            return;
        }
        match self.ask(args.iter().map(<[u8]>::to_vec)).await {
            Ok(reply) => {
                if is_publish(name) {
                    // What the client hears of its own message stands before the answer.
                    self.settle().await;
                }
                let retold = self.core.retold(name, args, &reply);
                self.core.answer(retold.as_deref().unwrap_or(&reply));
            }
            Err(failure) => self.answer_failure(&failure),
        }
    }
}

// === impl Core ===

impl Core {
    /// The upstream's reply to `args`, a request of the command `name`, as it is told; `None` if it stays as it is.
    pub(super) fn retold(&self, name: &str, args: Args<'_>, reply: &[u8]) -> Option<Vec<u8>> {
        match name {
            "info" => self.info(args, reply),
            "pubsub|numsub" => self.count_subscribers(Kind::Channel, reply),
            "pubsub|shardnumsub" => self.count_subscribers(Kind::Shard, reply),
            "pubsub|shardchannels" => self.shard_channels(reply),
            "publish" | "spublish" => {
                let ((upstream, here), n) = self.receivers(args).zip(Cursor::new(reply).next_integer())?;
                Some(format!(":{}\r\n", (n - upstream).max(0) + here).into_bytes())
            }
            _ => listing::patched(&self.table(), args, reply, self.session.protocol()),
        }
    }

    /// INFO: what it says of clients said of Larder's, and a section about Larder.
    fn info(&self, args: Args<'_>, reply: &[u8]) -> Option<Vec<u8>> {
        let Some(Item::Bulk(theirs)) = Cursor::new(reply).next() else { return None };
        let mut text = self.shared.with_own_clients(theirs.strip_prefix(b"txt:").unwrap_or(theirs));
        if asks_for_section(args) != Asks::Theirs {
            if !text.is_empty() {
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(self.shared.info_section().as_bytes());
        }
        Some(self.verbatim(&text))
    }

    /// PUBSUB NUMSUB and SHARDNUMSUB: the upstream counts one subscription where many clients of Larder share it.
    fn count_subscribers(&self, kind: Kind, reply: &[u8]) -> Option<Vec<u8>> {
        let mut cursor = Cursor::new(reply);
        let Some(Item::Aggregate(kind_byte, count)) = cursor.next() else { return None };
        let mut out = format!("{}{count}\r\n", char::from(kind_byte)).into_bytes();
        while let (Some(name), Some(Item::Integer(n))) = (cursor.next_bytes(), cursor.next()) {
            let (upstream, here) = self.shared.subscribers(kind, name);
            let elsewhere = if self.is_own_channel(kind, name) { 0 } else { (n - upstream).max(0) };
            out.extend_from_slice(&bulk(name));
            out.extend_from_slice(format!(":{}\r\n", elsewhere + here).as_bytes());
        }
        Some(out)
    }

    /// PUBSUB SHARDCHANNELS without those that only Larders have subscribed to.
    fn shard_channels(&self, reply: &[u8]) -> Option<Vec<u8>> {
        let mut cursor = Cursor::new(reply);
        let Some(Item::Aggregate(kind_byte, _)) = cursor.next() else { return None };
        let (mut names, mut count) = (Vec::new(), 0);
        while let Some(name) = cursor.next_bytes() {
            if !self.is_own_channel(Kind::Shard, name) || self.shared.subscribers(Kind::Shard, name).1 > 0 {
                names.extend_from_slice(&bulk(name));
                count += 1;
            }
        }
        Some([format!("{}{count}\r\n", char::from(kind_byte)).as_bytes(), &names].concat())
    }

    fn is_own_channel(&self, kind: Kind, name: &[u8]) -> bool {
        kind == Kind::Shard && peers::is_own_channel(&self.shared.config.tags.prefix, name)
    }
}

/// True for PUBLISH and SPUBLISH.
pub(super) fn is_publish(name: &str) -> bool {
    matches!(name, "publish" | "spublish")
}

/// Whose sections an INFO asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Theirs,
    Ours,
    Both,
}

fn asks_for_section(args: Args<'_>) -> Asks {
    let is = |section: &[u8], names: &[&[u8]]| names.iter().any(|name| section.eq_ignore_ascii_case(name));
    match args.len() {
        1 => Asks::Both,
        2 if is(args.arg(1), &[b"larder"]) => Asks::Ours,
        _ if args.iter().skip(1).any(|s| is(s, &[b"all", b"everything", b"default", b"larder"])) => Asks::Both,
        _ => Asks::Theirs,
    }
}
