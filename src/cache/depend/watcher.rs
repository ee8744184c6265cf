//! The watch at work: hears of changes of what keys depend on, and takes these out.
//!
//! One task for each database in which keys depend on others, or may, with a connection of its own. Unless something was just
//! declared, it *looks* first: as long
//! as there is no index and nobody wants to declare anything, nothing is tracked, who waits ([`Watch::submit`]) is answered when a
//! look that was sent afterwards has found nothing and the links have heard of all before it, and the watch ends as soon as this
//! process is told of what comes (see [`crate::upstream::watch`]).
//!
//! Else it turns tracking on, reads all sources by name (`EXISTS`), so that the server tells it when one changes, and the
//! index's list of them, so that it is told of new ones. Pushes are worked on in their order; a change is then followed by a
//! script on a link of the database. Who waits is answered when a PING that was sent afterwards has been answered (with `-BUSY`
//! too: what was executed before stands in front of it), all pushes in front of that have been worked on, and the links of the
//! database have heard of what was deleted.
//!
//! Why nothing is missed: a new dependency is tracked by the Larder that writes it, in the same step; by the others before
//! that Larder answers. Why little is taken out in vain: of two Larders that hear of a change, the later one may find a
//! dependency that was declared again meanwhile; it spares those with a serial number that it has not read yet, because it had
//! read all that were there at the time of the change: their announcement stands in front of it in the stream.
//!
//! How it fails: a connection that is lost is made again, and what depends on anything goes (see [`super`]). Who waits meanwhile is
//! answered if a look by the link finds no index. An upstream that does not tell of changes, or refuses it, ends the watch: `CACHE DEPEND` is refused then.

use super::{Bound, Origins, TakenOut, take_out};
use crate::l1::Cause;
use crate::port::Failure;
use crate::received::Received;
use crate::server::{Backend, Shared};
use crate::upstream::backoff::Backoff;
use crate::upstream::errand::Errand;
use crate::upstream::link::OpKind;
use crate::upstream::peers::About;
use crate::upstream::raw::{self, RawConnection, RawError};
use crate::upstream::scope::{Scope, Upstream};
use crate::upstream::watch::{Before, Hearing, Stage, Waiting, Watch};
use bytes::{Bytes, BytesMut};
use larder_protocol::args::OwnedArgs;
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::shape::Protocol;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Sources that are read at a time.
const READ_STEP: &str = "256";
/// Sources whose dependents go in one step, when all do.
const CLEAR_STEP: &str = "16";
/// How long nothing must depend on anything before the watch ends.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How often it looks after what nobody tells it.
const TICK: Duration = Duration::from_millis(500);
/// How long it waits for a server that a script keeps busy before it asks again.
const BUSY_WAIT: Duration = Duration::from_millis(50);

/// What the server has told.
enum Heard {
    /// There are new dependencies.
    Index,
    /// A key has changed.
    Key(Bytes),
    /// All may have changed, and the server has forgotten what it was to tell of.
    Everything,
}

/// Why a watch is interrupted.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Raw(#[from] RawError),
    #[error("{0}")]
    Link(#[from] Failure),
    #[error("no reply within {0} ms")]
    Silent(u128),
    #[error("a reply that makes no sense: {0}")]
    Senseless(Received),
    #[error("the database was swapped with another")]
    Swapped,
    #[error("no link of the database is up")]
    NoScope,
}

/// What is left to do for a watch that has ended well.
enum Rest {
    /// Nothing depends on anything.
    Idle,
}

/// The watch while it is connected.
struct Watcher<'a> {
    shared: &'a Shared,
    upstream: &'a Upstream,
    watch: &'a Watch,
    scope: Weak<Scope>,
    connection: RawConnection,
    frame: BytesMut,
    heard: VecDeque<Heard>,
    /// True once it has more to do than to look.
    is_certain: bool,
    /// Dependencies with a serial number up to this have been read.
    known: u64,
    /// How many keys others depend on; too many at most.
    sources: u64,
    /// True if the links have heard of all that was deleted.
    is_fenced: bool,
    /// When the server has said something last.
    spoke: Instant,
    /// Since when nothing depends on anything.
    idle_since: Instant,
}

/// Starts the watch of each database that needs one, for as long as the process lives.
pub(crate) async fn run(shared: Arc<Shared>) {
    let Backend::Upstream(upstream) = &shared.backend else { return };
    loop {
        for watch in upstream.watches().all() {
            if let Some(before) = watch.take_on() {
                tokio::spawn(attend(shared.clone(), upstream.clone(), watch, before));
            }
        }
        upstream.watches().wanted().await;
    }
}

/// Watches a database, until nothing there depends on anything.
async fn attend(shared: Arc<Shared>, upstream: Arc<Upstream>, watch: Arc<Watch>, mut before: Before) {
    let times = upstream.settings().times;
    let mut backoff = Backoff::new(times.backoff, crate::server::seed());
    // Something did depend on something when the watch was last connected.
    let mut is_certain = false;
    loop {
        let began = Instant::now();
        let heard = watch.heard();
        if watch.takes_anew() {
            before = Before::Unwatched;
        }
        let end = match Watcher::connect(&shared, &upstream, &watch).await {
            Ok(mut watcher) => {
                let end = watcher.work(before).await;
                is_certain = watcher.is_certain;
                end
            }
            Err(end) => Err(end),
        };
        watch.comes_to(Stage::Beginning);
        let end = match end {
            Ok(Rest::Idle) => return,
            Err(end) => end,
        };
        // Who waits for a reply is told what is said here, or that the connection was lost.
        let orders = watch.take_orders();
        tracing::debug!(database = watch.database, cause = %end, "the watch over dependencies was interrupted");
        match &end {
            End::NoScope if !upstream.scopes().iter().any(|scope| scope.database == watch.database) => {
                // Nobody can read here; who comes finds what there is.
                if watch.turn_off(heard) {
                    return;
                }
            }
            End::Raw(RawError::Refused(line)) if is_final(line) => {
                if before == Before::Nothing || !orders.is_empty() {
                    let cause = String::from_utf8_lossy(line);
                    tracing::warn!(database = watch.database, %cause, "dependencies are not watched here");
                }
                let refused = [b"-ERR larder: dependencies cannot be watched upstream: ", &line[..], b"\r\n"].concat();
                for order in orders {
                    // Who has asked may have gone.
                    let _: Result<(), Bytes> = order.done.send(Bytes::from(refused.clone()));
                }
                if watch.turn_off(heard) {
                    return;
                }
            }
            _ => drop(orders),
        }
        before = if let End::Swapped = end { Before::Unwatched } else { Before::Unknown };
        let wait = Instant::now() + backoff.next_wait(began.elapsed());
        while Instant::now() < wait {
            tokio::select! {
                () = sleep((wait - Instant::now()).min(TICK)) => {}
                () = watch.stirred() => look_by_link(&upstream, &watch, is_certain).await,
            }
            watch.time_out(times.reply_max);
        }
    }
}

/// True if a refusal says that this user or this server cannot watch.
fn is_final(line: &[u8]) -> bool {
    let no_room = line.starts_with(b"ERR max number of clients");
    [&b"NOPERM"[..], b"NOPROTO", b"ERR"].iter().any(|word| line.starts_with(word)) && !no_room
}

/// Without a connection of its own: answers who waits, if nothing depends on anything. (The server may have no room for
/// connections. That it tracks the name for the link then is the lesser evil.)
async fn look_by_link(upstream: &Upstream, watch: &Watch, is_certain: bool) {
    let waiting = Claimed::of(watch);
    let Some(scope) = upstream.scope_of_each_database().remove(&watch.database) else {
        let scopes = upstream.scopes();
        let mut here = scopes.iter().filter(|scope| scope.database == watch.database);
        // Nobody can read here, and a link looks before anybody can. (Who waits has changed something from another database.)
        if !is_certain || here.all(|scope| scope.link.refused().is_some()) {
            waiting.done();
        }
        return;
    };
    let request = OwnedArgs::new([b"EXISTS", &watch.index[..]]);
    let looked = Errand::default().call(&scope.link, &[(OpKind::Read, &request)]).await;
    let is_there = looked.map_or(true, |reply| Cursor::new(&reply).next_integer() != Some(0));
    if !is_there && fence_links(upstream, watch).await.is_ok() {
        waiting.done();
    }
}

/// The links of the database have heard of all that was done before.
async fn fence_links(upstream: &Upstream, watch: &Watch) -> Result<(), Failure> {
    let mut scopes = upstream.scopes();
    scopes.retain(|scope| scope.database == watch.database);
    Errand::default().fence(&scopes).await
}

// === impl Watcher ===

impl<'a> Watcher<'a> {
    async fn connect(shared: &'a Shared, upstream: &'a Upstream, watch: &'a Watch) -> Result<Self, End> {
        let scope = upstream.scope_of_each_database().remove(&watch.database).ok_or(End::NoScope)?;
        let (node, times) = (upstream.node(), &upstream.settings().times);
        let connecting = async {
            let mut connection = RawConnection::connect(&node.endpoint, times.connect_max, times.replies).await?;
            raw::set_up(&mut connection, &scope.identity, Protocol::Resp3, watch.database).await?;
            Ok(connection)
        };
        let connection = timeout(times.connect_max, connecting)
            .await
            .unwrap_or(Err(RawError::ConnectTimeout(times.connect_max.as_millis())))?;
        Ok(Self {
            shared,
            upstream,
            watch,
            scope: Arc::downgrade(&scope),
            connection,
            frame: BytesMut::new(),
            heard: VecDeque::new(),
            is_certain: false,
            known: 0,
            sources: 0,
            is_fenced: false,
            spoke: Instant::now(),
            idle_since: Instant::now(),
        })
    }

    async fn work(&mut self, mut before: Before) -> Result<Rest, End> {
        if let Some(rest) = self.look(&mut before).await? {
            return Ok(rest);
        }
        self.is_certain = true;
        self.call(["CLIENT", "TRACKING", "ON"]).await?;
        self.begin(before).await?;
        loop {
            if self.watch.takes_anew() {
                return Err(End::Swapped);
            }
            self.declare().await?;
            self.answer().await?;
            if self.sources > 0 {
                self.idle_since = Instant::now();
            } else if self.idle_since.elapsed() > IDLE_MAX {
                let heard = self.watch.heard();
                self.idle_since = Instant::now();
                if !self.is_index_there().await? && self.turns_off(heard).await? {
                    return Ok(Rest::Idle);
                }
            }
            tokio::select! {
                frame = self.connection.next_frame(&mut self.frame) => self.take_push(&frame?)?,
                () = self.watch.stirred() => {}
                () = sleep(TICK) => {
                    if self.spoke.elapsed() > self.upstream.settings().times.dead_after / 3 {
                        self.call(["PING"]).await?;
                    }
                }
            }
        }
    }

    /// Looks whether anything depends on anything, until that is so, somebody wants it to be, or there is no more reason to.
    async fn look(&mut self, before: &mut Before) -> Result<Option<Rest>, End> {
        loop {
            if self.watch.takes_anew() {
                *before = Before::Unwatched;
            }
            // What was declared a moment ago may have gone again, and come back: to go off and on with it would take its time.
            if self.watch.has_orders() || *before == Before::Nothing {
                return Ok(None);
            }
            let heard = self.watch.heard();
            let waiting = Claimed::of(self.watch);
            if self.is_index_there().await? {
                return Ok(None);
            }
            if !waiting.is_empty() {
                fence_links(self.upstream, self.watch).await?;
            }
            waiting.done();
            if self.turns_off(heard).await? {
                return Ok(Some(Rest::Idle));
            }
            tokio::select! {
                frame = self.connection.next_frame(&mut self.frame) => drop(frame?),
                () = self.watch.stirred() => {}
                () = sleep(TICK) => {}
            }
        }
    }

    async fn is_index_there(&mut self) -> Result<bool, End> {
        let index = self.watch.index.clone();
        let reply = self.call([b"EXISTS", &index[..]]).await?;
        Ok(Cursor::new(&reply).next_integer() != Some(0))
    }

    /// Reads what there is; sees to what may have happened before.
    async fn begin(&mut self, before: Before) -> Result<(), End> {
        self.read_index().await?;
        if self.sources > 0 && matches!(before, Before::Unknown | Before::Unwatched) {
            self.clear(before).await?;
        }
        self.watch.comes_to(Stage::Watching);
        Ok(())
    }

    /// What depends on anything goes, unless another Larder has watched all the time.
    async fn clear(&mut self, before: Before) -> Result<(), End> {
        let scope = self.scope()?;
        if before == Before::Unknown {
            // A subscription that was lost with this connection is back in a moment.
            let _: Result<(), _> = timeout(TICK, self.upstream.watches().settled()).await;
            let asked = self.upstream.ask_peers(&scope.identity, self.watch.database, About::Watching).await;
            if asked.unwrap_or(false) {
                return Ok(());
            }
        }
        tracing::info!(
            database = self.watch.database,
            keys = self.sources,
            "nobody has watched for a time: all that depends on other keys is deleted"
        );
        let mut from = "-inf".to_owned();
        loop {
            let (sources, last) = self.page(&from, CLEAR_STEP).await?;
            let keys: Vec<&[u8]> = sources.iter().map(|source| &source[..]).collect();
            if keys.is_empty() {
                return Ok(());
            }
            self.take_out(&scope, &keys, Bound::All, Origins::Go).await?;
            from = format!("({last}");
        }
    }

    /// Reads the dependencies that have not been read yet: from then on the server tells of changes of their sources.
    async fn read_index(&mut self) -> Result<(), End> {
        loop {
            let (sources, last) = self.page(&format!("({}", self.known), READ_STEP).await?;
            if sources.is_empty() {
                break;
            }
            // One dependency can have several sources: all of its serial number are read before one goes on behind it.
            let serial = last.to_string();
            let index = self.watch.index.clone();
            let same: [&[u8]; 4] = [b"ZRANGEBYSCORE", &index, serial.as_bytes(), serial.as_bytes()];
            let rest = self.call(same).await?;
            let mut names = Cursor::new(&rest);
            let count = names.next_count().unwrap_or(0);
            let rest = (0..count).map_while(|_| names.next_bytes()).map(<[u8]>::to_vec);
            let all = sources.iter().map(|source| source.to_vec()).chain(rest);
            let words: Vec<Vec<u8>> = std::iter::once(b"EXISTS".to_vec()).chain(all).collect();
            self.call(words).await?;
            self.known = last;
        }
        let index = self.watch.index.clone();
        let reply = self.call([b"ZCARD", &index[..]]).await?;
        self.sources = Cursor::new(&reply).next_integer().map_or(0, i64::unsigned_abs);
        Ok(())
    }

    /// Up to `count` sources of the index with a serial number from `from` on, in order, and the number of the last.
    async fn page(&mut self, from: &str, count: &str) -> Result<(Vec<Bytes>, u64), End> {
        let index = self.watch.index.clone();
        let (from, count) = (from.as_bytes(), count.as_bytes());
        let range: [&[u8]; 8] = [b"ZRANGEBYSCORE", &index, from, b"+inf", b"WITHSCORES", b"LIMIT", b"0", count];
        let reply = self.call(range).await?;
        Ok(names_and_last_score(&reply))
    }

    /// Sends what others want to declare.
    async fn declare(&mut self) -> Result<(), End> {
        for order in self.watch.take_orders() {
            let reply = self.send(&order.request).await?;
            // Until the index has been read anew, there may be one source more.
            self.sources += 1;
            self.heard.push_back(Heard::Index);
            // Who has asked may have gone.
            let _: Result<(), Bytes> = order.done.send(reply);
        }
        Ok(())
    }

    /// Works on all that was heard, and answers who waits for it.
    async fn answer(&mut self) -> Result<(), End> {
        let waiting = Claimed::of(self.watch);
        if !waiting.is_empty() {
            self.catch_up().await?;
        }
        while let Some(heard) = self.heard.pop_front() {
            match heard {
                Heard::Index => self.read_index().await?,
                Heard::Key(key) => {
                    self.is_fenced = false;
                    self.follow(&key).await?;
                }
                Heard::Everything => {
                    self.is_fenced = false;
                    self.known = 0;
                    self.read_index().await?;
                    if self.sources > 0 {
                        self.clear(Before::Unwatched).await?;
                        self.read_index().await?;
                    }
                }
            }
        }
        if !self.is_fenced && !waiting.is_empty() {
            fence_links(self.upstream, self.watch).await?;
            self.is_fenced = true;
        }
        waiting.done();
        Ok(())
    }

    /// A key has changed: what depends on it goes.
    async fn follow(&mut self, key: &Bytes) -> Result<(), End> {
        let scope = self.scope()?;
        let taken = self.take_out(&scope, &[key], Bound::UpTo(self.known), Origins::Stay).await?;
        if taken.spared == 0 {
            return Ok(());
        }
        // The server has told of it once, and will not again unless it is asked to. What was spared because the key is not
        // there is in doubt if it is there by now.
        let reply = self.call([b"EXISTS", &key[..]]).await?;
        if Cursor::new(&reply).next_integer() != Some(0) {
            self.take_out(&scope, &[key], Bound::UpTo(self.known), Origins::Stay).await?;
        }
        Ok(())
    }

    /// As [`take_out`]; keys that may not be deleted are left, and told of.
    async fn take_out(&self, scope: &Scope, keys: &[&[u8]], bound: Bound, origins: Origins) -> Result<TakenOut, End> {
        let (prefix, cause) = (self.shared.config.tags.prefix.as_bytes(), Cause::DataChanged);
        loop {
            match take_out(&mut Errand::default(), scope, prefix, keys, bound, origins, cause).await {
                Ok(taken) => return Ok(taken),
                Err(Failure::Refused(line)) if line.starts_with(b"BUSY") => sleep(BUSY_WAIT).await,
                Err(Failure::Refused(line)) if line.starts_with(b"NOPERM") || line.starts_with(b"ERR") => {
                    let cause = String::from_utf8_lossy(&line);
                    tracing::warn!(database = self.watch.database, %cause, "what depends on a changed key cannot be deleted");
                    return Ok(TakenOut::default());
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Turns the watch off, if this process hears of what is declared from now on: the index was seen to be empty since
    /// [`Watch::heard`] said `heard`.
    async fn turns_off(&mut self, heard: u64) -> Result<bool, End> {
        match self.watch.hearing() {
            // Who was told of something between the look and this has been heard.
            Hearing::Told => return Ok(self.watch.turn_off(heard)),
            Hearing::Unsure => return Ok(false),
            Hearing::Tracked => {}
        }
        for scope in self.upstream.scopes().iter().filter(|scope| scope.database == self.watch.database) {
            let request = OwnedArgs::new([b"EXISTS", &self.watch.index[..]]);
            let reply = Errand::default().call(&scope.link, &[(OpKind::ReadTracked, &request)]).await?;
            if Cursor::new(&reply).next_integer() != Some(0) {
                return Ok(false);
            }
        }
        Ok(self.watch.turn_off(heard))
    }

    fn scope(&self) -> Result<Arc<Scope>, End> {
        self.scope.upgrade().ok_or(End::NoScope)
    }

    async fn call<T: AsRef<[u8]>>(&mut self, words: impl IntoIterator<Item = T>) -> Result<Bytes, End> {
        let request = OwnedArgs::new(words);
        let reply = self.send(request.args().bytes()).await?;
        Ok(raw::accepted(reply)?)
    }

    /// Sends a request: its reply, an error reply too. What is heard in between is kept. Asks again while a script keeps the
    /// server busy.
    async fn send(&mut self, request: &[u8]) -> Result<Bytes, End> {
        let limit = self.upstream.settings().times.reply_max;
        let until = Instant::now() + limit;
        loop {
            let reply = self.ask(request, until).await?;
            if !reply.starts_with(b"-BUSY") {
                return Ok(reply);
            }
            if Instant::now() >= until {
                return Err(End::Silent(limit.as_millis()));
            }
            sleep(BUSY_WAIT).await;
        }
    }

    /// Hears of all that has been done until now.
    async fn catch_up(&mut self) -> Result<(), End> {
        let until = Instant::now() + self.upstream.settings().times.reply_max;
        let reply = self.ask(OwnedArgs::new(["PING"]).args().bytes(), until).await?;
        if !reply.starts_with(b"-BUSY") {
            raw::accepted(reply)?;
        }
        Ok(())
    }

    async fn ask(&mut self, request: &[u8], until: Instant) -> Result<Bytes, End> {
        let limit = self.upstream.settings().times.reply_max;
        self.connection.put_request(request);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let frame = timeout(left, self.connection.next_frame(&mut self.frame));
            let frame = frame.await.map_err(|_| End::Silent(limit.as_millis()))??;
            if frame.first() != Some(&b'>') {
                self.spoke = Instant::now();
                return Ok(frame);
            }
            self.take_push(&frame)?;
        }
    }

    fn take_push(&mut self, frame: &Bytes) -> Result<(), End> {
        let senseless = || End::Senseless(Received::of(frame));
        let mut cursor = Cursor::new(frame);
        let _count = cursor.next_count().filter(|_| frame.first() == Some(&b'>')).ok_or_else(senseless)?;
        if cursor.next_bytes().ok_or_else(senseless)? != b"invalidate" {
            return Ok(());
        }
        match cursor.next().ok_or_else(senseless)? {
            Item::Null => self.heard.push_back(Heard::Everything),
            Item::Aggregate(_, n) => {
                for _ in 0..n {
                    let key = cursor.next_bytes().ok_or_else(senseless)?;
                    self.heard.push_back(match key == self.watch.index {
                        true => Heard::Index,
                        false => Heard::Key(frame.slice_ref(key)),
                    });
                }
            }
            _ => return Err(senseless()),
        }
        Ok(())
    }
}

/// Those who wait, in the hands of who works for them: if that is given up, they go on waiting.
struct Claimed<'w>(Vec<Waiting>, &'w Watch);

// === impl Claimed ===

impl<'w> Claimed<'w> {
    fn of(watch: &'w Watch) -> Self {
        Self(watch.take_waiting(), watch)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn done(mut self) {
        std::mem::take(&mut self.0).into_iter().for_each(Waiting::done);
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            self.1.give_back(std::mem::take(&mut self.0));
        }
    }
}

/// The members of a reply `WITHSCORES`, and the last score; RESP3 has pairs, RESP2 a flat list.
fn names_and_last_score(reply: &Bytes) -> (Vec<Bytes>, u64) {
    let (mut cursor, mut names, mut last) = (Cursor::new(reply), Vec::new(), 0);
    let count = cursor.next_count().unwrap_or(0);
    for _ in 0..count {
        if cursor.next_count() != Some(2) {
            break;
        }
        let (Some(name), Some(score)) = (cursor.next_bytes(), cursor.next()) else { break };
        names.push(reply.slice_ref(name));
        last = match score {
            Item::Text(b',', text) => {
                std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) as u64
            }
            _ => last,
        };
    }
    (names, last)
}
