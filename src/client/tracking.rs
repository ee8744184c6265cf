//! Client-side tracking that a client asks for: the request with the upstream's numbers in it, and the upstream's
//! replies and pushes with Larder's.
//!
//! A tracking client is in a tunnel for as long as it tracks. Whom it redirects to has a stand-in upstream
//! (`crate::redirect`); who redirects to itself in RESP3 is told on its own connection, where replies and pushes have one
//! order, as they have at the server.
//!
//! How it fails: a stand-in that cannot be had is the answer, and nothing is sent; a target that does not exist has the
//! number 0 upstream, and the upstream words the error.

use super::{Connection, Request};
use crate::clients::ClientId;
use crate::port::Failure;
use crate::redirect::Lease;
use bytes::Bytes;
use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::scan::strict_i64;
use larder_protocol::shape::Protocol;
use std::ops::ControlFlow;

/// How the upstream says that the target has gone; its number follows.
const BROKEN: &[u8] = b">2\r\n$21\r\ntracking-redir-broken\r\n:";

/// Whom a client redirects to.
#[derive(Debug)]
pub(super) struct Redirect {
    pub(super) target: ClientId,
    /// What stands for it upstream.
    upstream_id: u64,
    /// Held for as long as the stand-in is needed.
    _lease: Option<Lease>,
}

/// What `CLIENT TRACKING` changes, once the upstream has agreed.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) on: bool,
    pub(super) broadcasts: bool,
    pub(super) redirect: Option<Redirect>,
}

/// Whether the number in a request's `REDIRECT` is the upstream's yet.
#[derive(Debug, Default)]
pub(super) enum Numbered {
    #[default]
    No,
    Yes(Option<Redirect>),
}

// === impl Connection ===

impl Connection {
    /// The request with the upstream's number of whom it redirects to. `own_id` is that of the client's own connection, or
    /// 0.
    pub(super) async fn numbered(
        &mut self,
        own_id: u64,
        request: Request,
    ) -> Result<(Request, Option<Redirect>), Failure> {
        let Some((at, id)) = redirect_of(request.args()) else { return Ok((request, None)) };
        let target = u64::try_from(id).ok().and_then(|id| self.core.shared.clients.find(ClientId(id)));
        let redirect = match target {
            None => None,
            Some(me) if me.id == self.core.client.id && own_id > 0 && me.protocol() == Protocol::Resp3 => {
                Some(Redirect { target: me.id, upstream_id: own_id, _lease: None })
            }
            Some(target) => {
                let (Some(upstream), Some(identity)) = (self.core.upstream(), self.core.identity()) else {
                    return Ok((request, None));
                };
                let redirects = self.core.shared.redirects.clone();
                let lease = redirects.lease(&upstream, &identity, &target).await?;
                if self.core.shared.clients.find(target.id).is_some() {
                    Some(Redirect { target: target.id, upstream_id: lease.upstream_id(), _lease: Some(lease) })
                } else {
                    redirects.leave(target.id);
                    None
                }
            }
        };
        let number = redirect.as_ref().map_or(0, |redirect| redirect.upstream_id).to_string();
        let words = request.args().iter().enumerate().map(|(i, word)| if i == at { number.as_bytes() } else { word });
        let words = OwnedArgs::new(words);
        let (bytes, ranges) = (Bytes::copy_from_slice(words.args().bytes()), words.args().ranges().to_vec());
        Ok((Request { bytes, ranges }, redirect))
    }
}

// === impl Change ===

impl Change {
    /// What the request asks for. Whom it redirects to is not known from it: see [`Numbered`].
    pub(super) fn of(args: Args<'_>) -> Self {
        let mut broadcasts = false;
        options(args, |_, option| {
            broadcasts |= option.eq_ignore_ascii_case(b"bcast");
            ControlFlow::<()>::Continue(())
        });
        Self { on: args.arg(2).eq_ignore_ascii_case(b"on"), broadcasts, redirect: None }
    }
}

// === impl Numbered ===

impl Numbered {
    /// Whom the request redirects to.
    pub(super) fn into_redirect(self) -> Option<Redirect> {
        match self {
            Self::Yes(redirect) => redirect,
            Self::No => None,
        }
    }
}

// === impl Redirect ===

impl Redirect {
    /// The reply to `CLIENT GETREDIR` or `CLIENT TRACKINGINFO` with Larder's number in it.
    pub(super) fn with_own_number(&self, reply: &[u8]) -> Vec<u8> {
        let (theirs, ours) = (format!(":{}\r\n", self.upstream_id), format!(":{}\r\n", self.target.0));
        if reply == theirs.as_bytes() {
            return ours.into_bytes();
        }
        let mut cursor = Cursor::new(reply);
        let Some(Item::Aggregate(kind, count)) = cursor.next() else { return reply.to_vec() };
        let head = if kind == b'%' { count / 2 } else { count };
        let mut out = format!("{}{head}\r\n", char::from(kind)).into_bytes();
        let mut is_redirect = false;
        while let Some(frame) = cursor.next_frame() {
            out.extend_from_slice(if is_redirect && frame == theirs.as_bytes() { ours.as_bytes() } else { frame });
            is_redirect = Cursor::new(frame).next_bytes() == Some(b"redirect");
        }
        out
    }

    /// `push` with Larder's number in it, if it says that the target has gone.
    pub(super) fn broken(&self, push: &[u8]) -> Option<Vec<u8>> {
        push.starts_with(BROKEN).then(|| [BROKEN, format!("{}\r\n", self.target.0).as_bytes()].concat())
    }
}

/// Where the number behind `REDIRECT` stands, and the number. `None` if there is none, or none that the upstream could
/// take: it words the error.
pub(super) fn redirect_of(args: Args<'_>) -> Option<(usize, i64)> {
    let found = options(args, |at, option| {
        let id = args.get(at + 1).filter(|_| option.eq_ignore_ascii_case(b"redirect"));
        id.map_or(ControlFlow::Continue(()), |id| ControlFlow::Break(strict_i64(id).map(|id| (at + 1, id))))
    });
    found.flatten()
}

/// Looks at the options of `CLIENT TRACKING`, and not at their values, until it is told to stop.
fn options<T>(args: Args<'_>, mut look: impl FnMut(usize, &[u8]) -> ControlFlow<T>) -> Option<T> {
    let mut at = 3;
    while let Some(option) = args.get(at) {
        if let ControlFlow::Break(found) = look(at, option) {
            return Some(found);
        }
        let has_value = [&b"redirect"[..], b"prefix"].iter().any(|name| option.eq_ignore_ascii_case(name));
        at += if has_value { 2 } else { 1 };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> OwnedArgs {
        OwnedArgs::new(line.split(' '))
    }

    #[test]
    fn finds_the_number_behind_redirect_and_not_in_a_prefix() {
        let found = |line: &str| redirect_of(words(line).args());
        assert_eq!(found("CLIENT TRACKING ON"), None);
        assert_eq!(found("CLIENT TRACKING ON redirect 7"), Some((4, 7)));
        assert_eq!(found("CLIENT TRACKING ON BCAST PREFIX REDIRECT REDIRECT 7"), Some((7, 7)));
        assert_eq!(found("CLIENT TRACKING ON PREFIX REDIRECT 7"), None);
        assert_eq!(found("CLIENT TRACKING ON REDIRECT"), None);
        assert_eq!(found("CLIENT TRACKING ON REDIRECT x"), None);
        assert_eq!(found("CLIENT TRACKING ON REDIRECT -1"), Some((4, -1)));
    }

    #[test]
    fn tells_what_a_request_asks_for() {
        let change = |line: &str| Change::of(words(line).args());
        assert!(change("CLIENT TRACKING on").on && !change("CLIENT TRACKING off").on);
        assert!(change("CLIENT TRACKING ON NOLOOP bcast").broadcasts);
        assert!(!change("CLIENT TRACKING ON PREFIX BCAST").broadcasts);
    }

    #[test]
    fn puts_its_own_number_where_the_upstreams_stands() {
        let redirect = Redirect { target: ClientId(3), upstream_id: 120, _lease: None };
        assert_eq!(redirect.with_own_number(b":120\r\n"), b":3\r\n");
        assert_eq!(redirect.with_own_number(b":0\r\n"), b":0\r\n");
        let info = |id| {
            format!(
                "%3\r\n$5\r\nflags\r\n~1\r\n$2\r\non\r\n$8\r\nredirect\r\n:{id}\r\n$8\r\nprefixes\r\n*1\r\n$8\r\nredirect\r\n"
            )
        };
        assert_eq!(redirect.with_own_number(info(120).as_bytes()), info(3).as_bytes());
        assert_eq!(redirect.with_own_number(info(12).as_bytes()), info(12).as_bytes());
        let two = info(120).replace("%3", "*6").replace('~', "*");
        assert_eq!(redirect.with_own_number(two.as_bytes()), two.replace(":120", ":3").as_bytes());
        let broken = |id| format!(">2\r\n$21\r\ntracking-redir-broken\r\n:{id}\r\n").into_bytes();
        assert_eq!(redirect.broken(&broken(120)), Some(broken(3)));
        assert_eq!(redirect.broken(b">2\r\n$10\r\ninvalidate\r\n_\r\n"), None);
    }
}
