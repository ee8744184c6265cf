//! Requests that are handled apart, when nothing of the client is under way: they change what the client is (AUTH, HELLO,
//! SELECT, RESET), subscribe it, or need a connection of its own.
//!
//! A client that changes its scope is fenced on its new link before the answer: what it has been told in its old scope,
//! the new scope's L1 knows, too.

use super::cache::is_cache;
use super::core::{Core, Knowledge, Login, Place};
use super::local::{arity_error, bulk, integer, null};
use super::retold::is_publish;
use super::tunnel::{is_protocol_error, push_byte};
use super::{Connection, End, Input, Request, retold};
use crate::hub::Kind;
use crate::port::{Delivery, Failure, Port, Seq, Taken};
use crate::redirect::INVALIDATE;
use crate::session::Muted;
use crate::upstream::breaker::FailureCause;
use crate::upstream::link::{ARGUMENT_BYTES_MAX, Job, Op, OpKind, too_long};
use crate::upstream::pool::{self, Use};
use crate::upstream::raw::{self, Identity, RawConnection, RawError};
use crate::upstream::scope::{Scope, Upstream};
use bytes::Bytes;
use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::cache::ReadMode;
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::scan::strict_i64;
use larder_protocol::shape::{self, Protocol, Shape};
use larder_protocol::table::{Class, Resolved};
use smallvec::smallvec;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;

/// What `HELLO` asks for.
#[derive(Debug, Default)]
struct Hello {
    protocol: Option<Protocol>,
    login: Option<(Vec<u8>, Vec<u8>)>,
    name: Option<Vec<u8>>,
}

// === impl Connection ===

impl Connection {
    /// Handles the request at the start of the input.
    pub(super) async fn apart(&mut self) -> Result<(), End> {
        if self.wait_for_unpause().await? {
            return Ok(());
        }
        let request = match self.io.next_request() {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.core.refuse_input(error, &self.io.pending);
                self.io.state = Input::Closed;
                return Ok(());
            }
        };
        let table = self.core.table();
        if is_cache(&table, request.args()) {
            return self.cache(&request).await;
        }
        self.core.is_told_by_upstream = false;
        let watched = self.core.shared.monitors.any();
        let shown = watched.then(|| Request { bytes: request.bytes.clone(), ranges: request.ranges.clone() });
        let (name, class, accepts) = match table.resolve(request.args()) {
            Resolved::Known(c) if c.on_upstream || self.core.upstream().is_none() => {
                (c.name.to_string(), c.class, c.accepts(request.args().len()))
            }
            _ => (String::new(), Class::Exclusive, true),
        };
        match (&name[..], class) {
            (name, class) if self.is_too_long_for_all(name, class, request.args()) => {}
            (_, Class::Local | Class::PubSub) if !accepts => self.refuse_arity(&name, request).await?,
            (_, Class::PubSub) => {
                self.core.knowledge = Knowledge::Something;
                self.subscribe(&name, request.args()).await;
            }
            ("auth", _) => self.auth(request.args()).await,
            ("hello", _) => self.hello(request).await?,
            ("select", _) => self.select(request).await?,
            ("reset", _) => self.reset().await,
            ("client|pause", _) => self.pause(request).await?,
            ("client|unpause", _) => self.unpause().await,
            ("quit", _) => self.quit().await,
            (name, _) if retold::concerns(name) && self.core.scope().is_some() => {
                self.retell(name, request.args()).await
            }
            ("ping", _) if request.args().len() <= 2 => self.ping(request.args()).await,
            ("monitor", _) if self.core.scope().is_none() && accepts => {
                let (monitors, client) = (&self.core.shared.monitors, &self.core.client);
                if self.core.watching.is_none() {
                    self.core.watching = Some(monitors.watch(client));
                    self.core.answer(b"+OK\r\n");
                }
            }
            _ if self.core.scope().is_none() => {
                let name = String::from_utf8_lossy(request.args().arg(0)).to_uppercase();
                let way_out = "start larder with --upstream redis://host:port";
                self.core.answer(format!("-ERR '{name}' needs an upstream: {way_out}\r\n").as_bytes());
            }
            ("client|kill" | "client|list", _) => self.about_clients(&name, request.args()).await,
            ("script|kill" | "function|kill" | "function|stats", _) => self.call_while_busy(request.args()).await,
            _ => self.tunnel(request).await?,
        }
        if let Some(request) = shown.filter(|_| !self.core.is_told_by_upstream)
            && let Resolved::Known(command) = table.resolve(request.args())
        {
            self.core.tell_watchers(command, request.args());
        }
        if let Some(database) = self.core.selected_in_transaction.take()
            && self.enter_database(database).await != b"+OK\r\n"
        {
            // It was told that it is there already.
            return Err(End::Closed);
        }
        Ok(())
    }

    /// Answers what may be too long for a connection that clients share, or for one that is made before it is known who asks:
    /// a server closes that. True if it was.
    pub(super) fn is_too_long_for_all(&mut self, name: &str, class: Class, args: Args<'_>) -> bool {
        let concerned = class == Class::PubSub || matches!(name, "auth" | "hello");
        match too_long(args).filter(|_| concerned && self.core.upstream().is_some()) {
            Some(line) => {
                self.core.answer(format!("-{line}\r\n").as_bytes());
                true
            }
            None => false,
        }
    }

    async fn refuse_arity(&mut self, name: &str, request: Request) -> Result<(), End> {
        if self.core.scope().is_some() {
            return self.tunnel(request).await;
        }
        self.core.answer(&arity_error(name));
        Ok(())
    }

    pub(super) async fn auth(&mut self, args: Args<'_>) {
        let (user, password) = match args.len() {
            2 => (None, args.arg(1)),
            3 => (Some(args.arg(1)), args.arg(2)),
            _ => {
                self.core.answer(b"-ERR syntax error\r\n");
                return;
            }
        };
        let answer = match self.log_in(user, password).await {
            Ok(()) => b"+OK\r\n".to_vec(),
            Err(line) => error(&line),
        };
        self.core.answer(&answer);
    }

    /// Authenticates with Larder's own users, or with the upstream.
    async fn log_in(&mut self, user: Option<&[u8]>, password: &[u8]) -> Result<(), Bytes> {
        if self.core.shared.has_own_users() {
            let name = user.unwrap_or(b"default");
            if !self.core.shared.knows_user(name, password) {
                return Err(Bytes::from_static(b"WRONGPASS invalid username-password pair or user is disabled."));
            }
            self.core.login = Login::Done;
            self.core.client.with_names(|names| names.user = name.to_vec());
            return Ok(());
        }
        let Some(upstream) = self.core.upstream() else {
            return match user {
                None => Err(Bytes::from_static(
                    b"ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
                )),
                Some(b"default") => Ok(()),
                Some(_) => Err(Bytes::from_static(b"WRONGPASS invalid username-password pair or user is disabled.")),
            };
        };
        let identity = match user {
            None => Identity::Password(password.into()),
            Some(name) => Identity::User { name: name.into(), password: password.into() },
        };
        if let Some(failure) = upstream.node().refusal() {
            return Err(failure.to_string().into());
        }
        let limits = upstream.settings().pool;
        match pool::try_identity(upstream.node(), &identity, limits).await {
            Ok(Ok(())) => {}
            Ok(Err(line)) => return Err(line),
            Err(cause) => return Err(upstream.node().not_reached(&cause).to_string().into()),
        }
        let database = self.core.scope().map_or(0, |scope| scope.database);
        // Where the default user needs no password, it is who the client was before: the same rights, the same scope.
        let identity = match (identity.name(), upstream.default_identity()) {
            (b"default", Identity::Anonymous) if upstream.admits_anonymous().await => Identity::Anonymous,
            _ => identity,
        };
        let scope = upstream.accepted_scope(&identity, database).map_err(|e| Bytes::from(e.to_string()))?;
        self.enter(scope).await.map_err(|failure| failure.to_string().into())
    }

    pub(super) async fn hello(&mut self, request: Request) -> Result<(), End> {
        let hello = match Hello::parse(request.args()) {
            Ok(hello) => hello,
            Err(line) => {
                self.core.answer(&line);
                return Ok(());
            }
        };
        if let Some((user, password)) = &hello.login
            && let Err(line) = self.log_in(Some(user), password).await
        {
            self.core.answer(&error(&line));
            return Ok(());
        }
        if self.core.login == Login::Missing {
            self.core.answer(
                b"-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time\r\n",
            );
            return Ok(());
        }
        if let Some(name) = &hello.name {
            let args = OwnedArgs::new([&b"CLIENT"[..], b"SETNAME", name]);
            let table = self.core.table();
            if let Resolved::Known(command) = table.resolve(args.args())
                && let Some(answer) = self.core.local_answer(command, args.args())
                && answer != b"+OK\r\n"
            {
                self.core.answer(&answer);
                return Ok(());
            }
        }
        let greeting = match self.greeting().await {
            Ok(greeting) => greeting,
            Err(line) => {
                self.core.answer(&error(&line));
                return Ok(());
            }
        };
        if let Some(protocol) = hello.protocol {
            self.settle_invalidations().await;
            self.core.session.set_protocol(protocol);
            self.core.client.resp.store(if protocol == Protocol::Resp3 { 3 } else { 2 }, Ordering::Relaxed);
        }
        let answer = self.core.greet(&greeting);
        self.core.answer(&answer);
        Ok(())
    }

    /// What the upstream says to HELLO, in RESP3, as far as it is known; else it is asked.
    async fn greeting(&mut self) -> Result<Bytes, Bytes> {
        let Some(upstream) = self.core.upstream() else { return Ok(self.core.shared.own_greeting()) };
        let refused = self.core.scope().and_then(|scope| scope.link.refused());
        if refused.is_none()
            && let Some(hello) = upstream.node().facts().hello.clone()
        {
            return Ok(hello);
        }
        if let Some(failure) = upstream.node().refusal() {
            return Err(failure.to_string().into());
        }
        let asked = async {
            let pool = upstream.settings().pool;
            let mut connection =
                RawConnection::connect(&upstream.node().endpoint, pool.connect_max, pool.replies).await?;
            let identity = self.core.identity().unwrap_or(Identity::Anonymous);
            raw::set_up(&mut connection, &identity, Protocol::Resp2, 0).await?;
            raw::accepted(connection.call(["HELLO", "3"]).await?)
        };
        within(upstream.settings().pool.connect_max, asked).await.map_err(|cause| match cause {
            RawError::Refused(line) => line,
            cause => upstream.node().not_reached(&cause).to_string().into(),
        })
    }

    async fn select(&mut self, request: Request) -> Result<(), End> {
        let index = strict_i64(request.args().arg(1));
        let answer = match index.and_then(|index| u32::try_from(index).ok()) {
            Some(database) if database <= i32::MAX as u32 => self.enter_database(database).await,
            // The upstream words what is wrong with it.
            _ if self.core.scope().is_some() => return self.tunnel(request).await,
            _ if index.is_none() => b"-ERR value is not an integer or out of range\r\n".to_vec(),
            _ => b"-ERR DB index is out of range\r\n".to_vec(),
        };
        self.core.answer(&answer);
        Ok(())
    }

    /// Moves the client to another database of its user; the answer to SELECT. Whether the user may select it is asked each
    /// time: the rights to it may be others than when its scope was made.
    async fn enter_database(&mut self, database: u32) -> Vec<u8> {
        let (Some(upstream), Some(identity)) = (self.core.upstream(), self.core.identity()) else {
            return self.core.select_embedded(database);
        };
        let stays = self.core.scope().is_some_and(|scope| scope.database == database);
        let is_known = stays || upstream.has_scope(&identity, database);
        let asked = if is_known { select_on_link(&upstream, &identity, database).await } else { None };
        let may = match asked {
            Some(may) => may,
            None => match (select_elsewhere(&upstream, &identity, database).await, is_known) {
                // It was allowed once. What is asked for next says what there is to say.
                (Err(Failure::Down(_)), true) => Ok(()),
                (may, _) => may,
            },
        };
        if let Err(failure) = may {
            return format!("-{failure}\r\n").into_bytes();
        }
        if stays {
            return b"+OK\r\n".to_vec();
        }
        match upstream.scope(&identity, database) {
            Ok(scope) => match self.enter(scope).await {
                Ok(()) => b"+OK\r\n".to_vec(),
                Err(failure) => format!("-{failure}\r\n").into_bytes(),
            },
            Err(refused) => format!("-{refused}\r\n").into_bytes(),
        }
    }

    /// Enters a scope, behind a fence on its link. A client that knows nothing yet needs none; while the link is down one
    /// would take what may be answered stale away from all.
    async fn enter(&mut self, scope: Arc<Scope>) -> Result<(), Failure> {
        if self.core.knowledge == Knowledge::Nothing && !scope.link.is_up() {
            self.core.enter(scope);
            return Ok(());
        }
        let seq = self.core.start_fence(std::slice::from_ref(&scope), OpKind::Fence);
        self.fenced(seq).await?;
        self.core.enter(scope);
        Ok(())
    }

    /// Waits for a fence. A client that is killed meanwhile ends at its next turn.
    pub(super) async fn fenced(&mut self, seq: Seq) -> Result<(), Failure> {
        let core = &mut self.core;
        let reply_ms = core.shared.settings().link.reply_ms_max.as_millis() as u64;
        poll_fn(|cx| {
            loop {
                if let Some(state) = core.fence_state(seq) {
                    return Poll::Ready(state.map_err(|()| Failure::ReadTimeout(reply_ms)));
                }
                if core.client.port.is_killed() {
                    return Poll::Ready(Err(Failure::ReadLost));
                }
                match core.client.port.poll_ready(cx) {
                    Poll::Ready(()) => core.take_deliveries(),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    async fn reset(&mut self) {
        let core = &mut self.core;
        core.leave_hub();
        core.take_deliveries();
        core.session.set_protocol(Protocol::Resp2);
        core.session.set_muted(Muted::No);
        core.session.set_read_mode(ReadMode::Cached);
        core.client.resp.store(2, Ordering::Relaxed);
        core.client.no_evict.store(false, Ordering::Relaxed);
        core.client.no_touch.store(false, Ordering::Relaxed);
        core.watching = None;
        core.client.with_names(|names| {
            names.name.clear();
            names.user = b"default".to_vec();
        });
        core.login = if core.shared.has_own_users() { Login::Missing } else { Login::Done };
        core.note_subscriptions();
        let entered = match core.shared.first_place() {
            Ok(Place::Upstream(scope)) => self.enter(scope).await.map_err(|failure| failure.to_string()),
            Ok(Place::Embedded(database)) => {
                core.select_embedded(database);
                Ok(())
            }
            Err(line) => Err(line),
        };
        match entered {
            Ok(()) => self.core.answer(b"+RESET\r\n"),
            Err(line) => self.core.answer(&error(line.as_bytes())),
        };
    }

    /// Calls a command on a connection of the scope's, outside of what is fenced: it must not tell of keys. What others hear of it
    /// cannot be unheard: a message whose reply is missing is told to be in doubt.
    pub(super) async fn ask(&mut self, words: impl IntoIterator<Item = Vec<u8>>) -> Result<Bytes, Failure> {
        let Some(scope) = self.core.scope().cloned() else { return Err(Failure::ReadLost) };
        let mut borrowed = scope.pools.borrow(Use::Short, self.core.session.protocol()).await?;
        let request = OwnedArgs::new(words);
        let publishes = is_publish(&String::from_utf8_lossy(request.args().arg(0)).to_ascii_lowercase());
        let link = &self.core.shared.settings().link;
        let reply_max = if publishes { link.write_ms_max } else { link.reply_ms_max };
        let is_long = request.args().bytes().len() > ARGUMENT_BYTES_MAX;
        match timeout(reply_max, borrowed.call(request.args().iter())).await {
            Ok(Ok(reply)) => {
                if is_long && is_protocol_error(&reply) {
                    borrowed.condemn();
                    self.core.ends_after_answer = true;
                }
                Ok(reply)
            }
            // The server may have closed the connection because of it.
            Ok(Err(_)) if is_long => Err(Failure::WriteLost),
            Ok(Err(error)) => {
                scope.link.node().record_loss(error.cause());
                Err(if publishes { Failure::WriteLost } else { Failure::ReadLost })
            }
            Err(_) => {
                // The reply is still to come, and not for the next borrower.
                borrowed.condemn();
                scope.link.node().record_failures(FailureCause::Timeout, 1);
                let within = reply_max.as_millis() as u64;
                Err(if publishes { Failure::WriteTimeout(within) } else { Failure::ReadTimeout(within) })
            }
        }
    }

    pub(super) fn answer_failure(&mut self, failure: &Failure) {
        self.core.answer(format!("-{failure}\r\n").as_bytes());
    }

    /// CLIENT LIST and CLIENT KILL speak of Larder's clients, but whether the user may call them the upstream knows.
    pub(super) async fn about_clients(&mut self, name: &str, args: Args<'_>) {
        // A client that nobody has: the question is only whether it is refused.
        let nobody = ["ID", "9223372036854775807"];
        let question = name.split('|').chain(nobody).map(|word| word.as_bytes().to_vec());
        match self.ask(question).await {
            Ok(reply) if reply.starts_with(b"-NOPERM") => drop(self.core.answer(&reply)),
            Err(failure) => self.answer_failure(&failure),
            Ok(_) if self.core.knows_filters_from_upstream(name, args) => self.kill(args).await,
            Ok(_) => self.answer_locally(args),
        }
        self.bury_killed().await;
    }

    fn answer_locally(&mut self, args: Args<'_>) {
        let table = self.core.table();
        if let Resolved::Known(command) = table.resolve(args)
            && let Some(answer) = self.core.local_answer(command, args)
        {
            self.core.answer(&answer);
        }
    }

    /// Returns when all who were killed, and whom others redirect to, are gone for the upstream.
    async fn bury_killed(&mut self) {
        let shared = self.core.shared.clone();
        let is_leaving = |id| shared.clients.find(id).is_none();
        for target in shared.redirects.targets(is_leaving) {
            shared.redirects.end(target).await;
        }
    }

    async fn quit(&mut self) {
        self.core.shared.redirects.end(self.core.client.id).await;
        self.core.answer(b"+OK\r\n");
        self.io.state = Input::Closed;
    }

    /// CLIENT KILL with filters: which there are, and what users, only the upstream knows. It is asked with one filter
    /// more, which no connection passes; who is killed are Larder's clients.
    async fn kill(&mut self, args: Args<'_>) {
        let words = args.iter().map(<[u8]>::to_vec).chain([b"ADDR".to_vec(), b"0:0".to_vec()]);
        match self.ask(words).await {
            Ok(reply) if reply.first() == Some(&b':') => self.answer_locally(args),
            Ok(refusal) => drop(self.core.answer(&refusal)),
            Err(failure) => self.answer_failure(&failure),
        }
    }

    /// What must get through while a script keeps the upstream busy: on a connection of its own, in database 0, because
    /// a busy server refuses SELECT. These commands have no keys.
    async fn call_while_busy(&mut self, args: Args<'_>) {
        let (Some(upstream), Some(identity)) = (self.core.upstream(), self.core.identity()) else { return };
        if let Some(failure) = upstream.node().refusal() {
            return self.answer_failure(&failure);
        }
        let (pool, protocol) = (upstream.settings().pool, self.core.session.protocol());
        let asked = async {
            let mut connection =
                RawConnection::connect(&upstream.node().endpoint, pool.connect_max, pool.replies).await?;
            raw::set_up(&mut connection, &identity, protocol, 0).await?;
            connection.call(args.iter().map(<[u8]>::to_vec)).await
        };
        let reply_max = self.core.shared.settings().link.reply_ms_max;
        match timeout(reply_max, asked).await {
            Err(_) => self.answer_failure(&Failure::WriteTimeout(reply_max.as_millis() as u64)),
            Ok(Ok(reply)) => drop(self.core.answer(&reply)),
            Ok(Err(RawError::Refused(line))) => drop(self.core.answer(&error(&line))),
            Ok(Err(cause)) => self.answer_failure(&upstream.node().not_reached(&cause)),
        }
    }

    /// (P|S)SUBSCRIBE and (P|S)UNSUBSCRIBE: one confirmation for each name.
    pub(super) async fn subscribe(&mut self, command: &str, args: Args<'_>) {
        let kind = match command {
            "subscribe" | "unsubscribe" => Kind::Channel,
            "psubscribe" | "punsubscribe" => Kind::Pattern,
            _ => Kind::Shard,
        };
        // Confirmations are pushes: the server sends them to clients that want no replies, too.
        let muted = self.core.session.take_muted();
        if command.contains("unsubscribe") {
            return self.unsubscribe(command, args, kind).await;
        }
        self.settle_invalidations().await;
        let names: Vec<&[u8]> = args.iter().skip(1).collect();
        if let Err(failure) = self.subscribe_all(kind, &names).await {
            if !muted {
                self.core.out.put(format!("-{failure}\r\n").as_bytes());
            }
            return;
        }
        for name in names {
            self.core.subscriptions.insert(kind, name);
            self.core.note_subscriptions();
            let confirmation = self.core.confirmation(command, Some(name), kind);
            self.core.out.put(&confirmation);
        }
    }

    /// PING of a subscriber: what was published before is delivered before it is answered.
    async fn ping(&mut self, args: Args<'_>) {
        self.settle().await;
        self.answer_locally(args);
    }

    /// What had been sent to the client before is put out.
    pub(super) async fn settle(&mut self) {
        self.settle_invalidations().await;
        for hub in self.core.hubs() {
            hub.settle(&self.core.client).await;
            self.core.take_deliveries();
        }
    }

    /// Invalidations that others redirect to the client, and that had been sent before, are put out, or dropped, as what the
    /// client is now.
    async fn settle_invalidations(&mut self) {
        let Some(stand_in) = self.core.shared.redirects.of(self.core.client.id) else { return };
        let seq = self.core.await_fences(1);
        stand_in.settle(&self.core.client.port, seq);
        // It fails only if the client was killed: its next turn ends it.
        let _: Result<(), Failure> = self.fenced(seq).await;
    }

    async fn subscribe_all(&mut self, kind: Kind, names: &[&[u8]]) -> Result<(), Failure> {
        let (Some(hub), Some(scope)) = (self.core.hub(), self.core.scope().cloned()) else {
            return Err(Failure::Refused(Bytes::from_static(
                b"ERR 'SUBSCRIBE' needs an upstream: start larder with --upstream redis://host:port",
            )));
        };
        hub.subscribe_all(&self.core.client, &scope, kind, names).await
    }

    async fn unsubscribe(&mut self, command: &str, args: Args<'_>, kind: Kind) {
        let mut names: Vec<Vec<u8>> = args.iter().skip(1).map(<[u8]>::to_vec).collect();
        if names.is_empty() {
            names = self.core.subscriptions.iter(kind).map(|name| name.to_vec()).collect();
        }
        for hub in self.core.hubs() {
            hub.announce_unsubscribe(&self.core.client, kind, &names);
        }
        // What was published before is still delivered.
        self.settle().await;
        for hub in self.core.hubs() {
            hub.unsubscribe_all(&self.core.client, kind, &names).await;
            self.core.take_deliveries();
        }
        let nothing = names.is_empty();
        for name in names.iter().map(|name| Some(&name[..])).chain(nothing.then_some(None)) {
            if let Some(name) = name {
                self.core.subscriptions.remove(kind, name);
                self.core.note_subscriptions();
            }
            let confirmation = self.core.confirmation(command, name, kind);
            self.core.out.put(&confirmation);
        }
    }
}

// === impl Core ===

impl Core {
    /// Puts a message of a subscription out, in the client's protocol.
    pub(super) fn put_message(&mut self, message: &Bytes) {
        match self.session.protocol() {
            Protocol::Resp3 => self.out.put_shared(message.clone()),
            Protocol::Resp2 => {
                self.out.put(b"*");
                self.out.put_shared(message.slice(1..));
            }
        }
    }

    /// Puts an invalidation out that another client redirects to this one, as the server does: to who speaks RESP3, or
    /// else has subscribed to anything at all.
    pub(super) fn put_invalidation(&mut self, push: &Bytes) {
        match self.session.protocol() {
            Protocol::Resp3 => self.out.put_shared(push.clone()),
            Protocol::Resp2 if self.subscriptions.is_empty() => {}
            Protocol::Resp2 => {
                self.out.put(b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n");
                self.out.put_shared(push.slice(INVALIDATE.len()..));
            }
        }
    }

    /// The confirmation of one subscription or its end, with the client's own count.
    fn confirmation(&self, command: &str, name: Option<&[u8]>, kind: Kind) -> Vec<u8> {
        let protocol = self.session.protocol();
        let mut out = vec![push_byte(protocol)];
        out.extend_from_slice(b"3\r\n");
        out.extend_from_slice(&bulk(command.as_bytes()));
        out.extend_from_slice(&name.map_or_else(|| null(protocol), bulk));
        let count = match kind {
            Kind::Shard => self.subscriptions.count_of(Kind::Shard),
            _ => self.subscriptions.count_of(Kind::Channel) + self.subscriptions.count_of(Kind::Pattern),
        };
        out.extend_from_slice(&integer(count as u64));
        out
    }

    /// Shows others what the client is subscribed to.
    fn note_subscriptions(&self) {
        let count = |kind| self.subscriptions.count_of(kind) as u32;
        let client = &self.client;
        client.subscriptions.store(count(Kind::Channel) + count(Kind::Pattern), Ordering::Relaxed);
        client.patterns.store(count(Kind::Pattern), Ordering::Relaxed);
        client.shard_subscriptions.store(count(Kind::Shard), Ordering::Relaxed);
    }

    /// The answer to HELLO: the upstream's greeting with this connection's number and protocol.
    fn greet(&self, greeting: &[u8]) -> Vec<u8> {
        let mut cursor = Cursor::new(greeting);
        let Some(Item::Aggregate(_, count)) = cursor.next() else { return greeting.to_vec() };
        let mut out = format!("%{}\r\n", count / 2).into_bytes();
        for _ in 0..count / 2 {
            let Some(key) = cursor.next_bytes() else { break };
            let Some(value) = cursor.next_frame() else { break };
            out.extend_from_slice(&bulk(key));
            match key {
                b"id" => out.extend_from_slice(&integer(self.client.id.0)),
                b"proto" => {
                    out.extend_from_slice(&integer(if self.session.protocol() == Protocol::Resp3 { 3 } else { 2 }));
                }
                _ => out.extend_from_slice(value),
            }
        }
        if self.session.protocol() == Protocol::Resp3 {
            return out;
        }
        let mut resp2 = Vec::with_capacity(out.len());
        match shape::to_resp2(Shape::GENERIC, &out, &mut resp2) {
            Ok(()) => resp2,
            Err(_) => out,
        }
    }

    fn select_embedded(&mut self, database: u32) -> Vec<u8> {
        if database >= self.shared.databases_embedded() {
            return b"-ERR DB index is out of range\r\n".to_vec();
        }
        self.client.database.store(database, Ordering::Relaxed);
        self.place = Place::Embedded(database);
        self.listen_here();
        b"+OK\r\n".to_vec()
    }
}

// === impl Hello ===

impl Hello {
    fn parse(args: Args<'_>) -> Result<Self, Vec<u8>> {
        let mut hello = Self::default();
        let Some(version) = args.get(1) else { return Ok(hello) };
        hello.protocol = match strict_i64(version) {
            Some(2) => Some(Protocol::Resp2),
            Some(3) => Some(Protocol::Resp3),
            Some(_) => return Err(b"-NOPROTO unsupported protocol version\r\n".to_vec()),
            None => return Err(b"-ERR Protocol version is not an integer or out of range\r\n".to_vec()),
        };
        let mut at = 2;
        while let Some(option) = args.get(at) {
            if option.eq_ignore_ascii_case(b"auth") && at + 2 < args.len() {
                hello.login = Some((args.arg(at + 1).to_vec(), args.arg(at + 2).to_vec()));
                at += 3;
            } else if option.eq_ignore_ascii_case(b"setname") && at + 1 < args.len() {
                hello.name = Some(args.arg(at + 1).to_vec());
                at += 2;
            } else {
                // To the server it is a C string, and an error is one line.
                let shown = option.split(|b| *b == 0).next().unwrap_or_default();
                let shown: Vec<u8> = shown.iter().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { *b }).collect();
                return Err([b"-ERR Syntax error in HELLO option '", &shown[..], b"'\r\n"].concat());
            }
        }
        Ok(hello)
    }
}

/// Asks the upstream whether a user may select a database, on the link of its scope, which has it selected anyway. `None` if
/// there is no such link, or it was lost.
async fn select_on_link(upstream: &Upstream, identity: &Identity, database: u32) -> Option<Result<(), Failure>> {
    let scope = upstream.scope(identity, database).ok().filter(|scope| scope.link.is_up())?;
    let request = OwnedArgs::new(["SELECT".to_string(), database.to_string()]);
    let bytes = Bytes::copy_from_slice(request.args().bytes());
    // A box of its own: the session knows nothing of this request.
    let port: Arc<Port> = Arc::default();
    let op = Op { seq: Seq(0), bytes: 0..bytes.len() as u32, kind: OpKind::Read };
    scope.link.submit(Job { port: port.clone(), bytes, ops: smallvec![op] }).ok()?;
    poll_fn(|cx| port.poll_ready(cx)).await;
    let mut taken = Taken::default();
    port.take(&mut taken);
    let reply = match taken.deliveries.pop()? {
        Delivery::Small { .. } => Bytes::from(taken.bytes),
        Delivery::Large(_, reply) => reply,
        Delivery::Failed(_, failure @ Failure::ReadTimeout(_)) => return Some(Err(failure)),
        _ => return None,
    };
    Some(match raw::accepted(reply) {
        Err(RawError::Refused(line)) => Err(Failure::Refused(line)),
        _ => Ok(()),
    })
}

/// As [`select_on_link`], on a connection that is made for this.
async fn select_elsewhere(upstream: &Upstream, identity: &Identity, database: u32) -> Result<(), Failure> {
    if let Some(failure) = upstream.node().refusal() {
        return Err(failure);
    }
    let pool = upstream.settings().pool;
    let tried = async {
        let endpoint = &upstream.node().endpoint;
        let mut connection = RawConnection::connect(endpoint, pool.connect_max, pool.replies).await?;
        // Also for database 0, which set_up would not select.
        raw::set_up(&mut connection, identity, Protocol::Resp2, 0).await?;
        raw::accepted(connection.call(["SELECT".to_string(), database.to_string()]).await?)
    };
    match within(pool.connect_max, tried).await {
        Ok(_) => Ok(()),
        Err(RawError::Refused(line)) => Err(Failure::Refused(line)),
        Err(cause) => Err(upstream.node().unreachable(&cause.to_string(), Default::default())),
    }
}

/// Waits so long and no longer for a connection that is used at once.
pub(super) async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = Result<T, RawError>>,
) -> Result<T, RawError> {
    tokio::time::timeout(limit, asked).await.unwrap_or(Err(RawError::ConnectTimeout(limit.as_millis())))
}

fn error(line: &[u8]) -> Vec<u8> {
    [b"-", line, b"\r\n"].concat()
}
