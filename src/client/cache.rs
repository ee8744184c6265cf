//! A client's side of CACHE: who may use it, what is a property of the connection, and the client's protocol.
//!
//! The command is handled apart, when all that the client has sent before has its answer: what it shows or does follows
//! all of that, and what comes behind it follows it.

use super::core::{Core, Take};
use super::local::bulk;
use super::{Connection, End, Request};
use crate::cache::listing::in_protocol;
use crate::cache::{Caller, Done};
use crate::config::CacheAccess;
use crate::l1::Cause;
use crate::server::Backend;
use crate::upstream::feed;
use crate::upstream::link::too_long;
use bytes::Bytes;
use larder_protocol::args::Args;
use larder_protocol::cache::CacheCommand;
use larder_protocol::table::{Group, Resolved, Table};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Poll;

/// True for a request of CACHE, whatever its subcommand.
pub(super) fn is_cache(table: &Table, args: Args<'_>) -> bool {
    match table.resolve(args) {
        Resolved::Known(command) | Resolved::UnknownSubcommand(command) => command.group == Group::Larder,
        Resolved::Unknown => false,
    }
}

// === impl Core ===

impl Core {
    /// Takes a request of CACHE.
    pub(super) fn take_cache(&self) -> Take {
        if self.session.under_way() > 0 { Take::Wait } else { Take::Apart }
    }

    /// Why the client may not use CACHE, as an error line without the dash; `None` if it may.
    fn cache_refusal(&self) -> Option<&'static str> {
        match &self.shared.config.cache_command {
            CacheAccess::Everyone => None,
            CacheAccess::Local if self.client.address.ip().to_canonical().is_loopback() => None,
            CacheAccess::Local => Some("NOPERM the CACHE command is for clients on this machine only (cache_command)"),
            CacheAccess::Users(users) => {
                let is_listed = self
                    .client
                    .with_names(|names| std::str::from_utf8(&names.user).is_ok_and(|user| users.contains(user)));
                (!is_listed).then_some("NOPERM this user may not use the CACHE command (cache_command)")
            }
        }
    }

    /// Hears of invalidations where the client is, and no longer elsewhere.
    pub(super) fn listen(&mut self, glob: Option<Bytes>) {
        self.listening = None;
        let feed = match &self.shared.backend {
            Backend::Upstream(_) => self.scope().map(|scope| scope.link.feed().clone()),
            Backend::Embedded(embedded) => Some(embedded.feed(self.client.database.load(Ordering::Relaxed))),
        };
        self.listening = feed.map(|feed| feed.listen(&self.client, glob));
    }

    /// The client has moved: what it hears of is what happens where it is now. What it knows is of elsewhere.
    pub(super) fn listen_here(&mut self) {
        if let Some(listening) = self.listening.take() {
            self.listen(listening.glob.clone());
            let message = feed::message(None, Cause::FeedLost, self.session.protocol());
            self.put_message(&message);
        }
    }

    fn in_own_protocol(&self, answer: Vec<u8>) -> Vec<u8> {
        in_protocol(answer, self.session.protocol())
    }
}

// === impl Connection ===

impl Connection {
    /// Handles a request of CACHE.
    pub(super) async fn cache(&mut self, request: &Request) -> Result<(), End> {
        let caller = Caller {
            shared: self.core.shared.clone(),
            scope: self.core.scope().cloned(),
            database: self.core.client.database.load(Ordering::Relaxed),
        };
        if let Some(line) = self.while_alive(caller.refusal()).await? {
            self.core.answer(format!("-{}\r\n", String::from_utf8_lossy(&line)).as_bytes());
            return Ok(());
        }
        let refusal = self.core.cache_refusal().map(str::to_owned);
        // Its arguments go down the link.
        let parsed = match refusal.or_else(|| too_long(request.args()).filter(|_| caller.scope.is_some())) {
            Some(line) => Err(line),
            None => CacheCommand::parse(request.args()).map_err(|error| error.to_string()),
        };
        let command = match parsed {
            Ok(command) => command,
            Err(line) => {
                self.core.answer(format!("-{line}\r\n").as_bytes());
                return Ok(());
            }
        };
        let done = self.while_alive(caller.execute(command)).await?;
        // What it was told of keys, and what it has deleted, counts as its own.
        self.core.session.learnt_elsewhere(self.core.shared.clock.now());
        let answer = match done {
            Ok(Done::Reply(reply)) => self.core.in_own_protocol(reply),
            Ok(Done::TellReadMode) => bulk(self.core.session.read_mode().word().as_bytes()),
            Ok(Done::SetReadMode(mode)) => {
                self.core.session.set_read_mode(mode);
                b"+OK\r\n".to_vec()
            }
            Ok(Done::Listen(glob)) => {
                self.core.listen(glob);
                b"+OK\r\n".to_vec()
            }
            Ok(Done::Unlisten) => {
                self.core.listening = None;
                b"+OK\r\n".to_vec()
            }
            Err(failure) => format!("-{failure}\r\n").into_bytes(),
        };
        self.core.answer(&answer);
        Ok(())
    }

    /// Works on something while the client gets its messages, and until it is killed.
    async fn while_alive<T>(&mut self, work: impl Future<Output = T>) -> Result<T, End> {
        let mut work = pin!(work);
        let port = self.core.client.port.clone();
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(done) = work.as_mut().poll(cx) {
                    return Poll::Ready(Ok(done));
                }
                if port.poll_ready(cx).is_pending() {
                    break;
                }
                if port.is_killed() {
                    return Poll::Ready(Err(End::Closed));
                }
                self.core.take_deliveries();
            }
            match self.flush(cx) {
                Ok(_) => Poll::Pending,
                Err(error) => Poll::Ready(Err(End::Io(error))),
            }
        })
        .await
    }
}
