//! The CACHE command: what it does, for a client at its place.
//!
//! Arguments are understood by [`larder_protocol::cache`]; the client's side (who may, in which protocol, what is a
//! property of the connection) is in `client::cache`. Here a command is executed, and answered in RESP3.
//!
//! | module | what it holds |
//! |---|---|
//! | `inspect` | INFO, STATS, ENTRY, BREAKER |
//! | `invalidate` | INVALIDATE |
//! | [`jobs`] | JOBS, JOB, CANCEL: the registry of work that takes a while |
//! | `listing` | CACHE in COMMAND, COMMAND DOCS and their like |
//! | `reply` | replies in RESP3 |
//! | `depend` | DEPEND, UNDEPEND, DEPENDS: keys that go with others, and the watch over these |
//! | `tags` | SET, TAG and all else about tags; their index upstream, its invalidations and its sweeper |
//! | `seen` | HOTKEYS, BIGKEYS, ADVISE |
//! | [`warm`] | WARM |

mod depend;
mod inspect;
mod invalidate;
pub mod jobs;
pub(crate) mod listing;
mod reply;
mod seen;
mod tags;
pub mod warm;

pub(crate) use self::depend::watcher;
pub(crate) use self::tags::sweep;

use self::inspect::rounded;
use self::invalidate::Invalidated;
use self::reply::Reply;
use crate::port::Failure;
use crate::server::{Backend, Shared};
use crate::upstream::errand::Errand;
use crate::upstream::link::OpKind;
use crate::upstream::link_io::LinkState;
use crate::upstream::scope::{Scope, Upstream};
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cache::{self, CacheCommand, EventsCommand, JobsCommand, ReadMode};
use larder_protocol::shape::Protocol;
use larder_protocol::table::Table;
use std::sync::Arc;

/// For whom a command is executed.
pub(crate) struct Caller {
    /// The process.
    pub(crate) shared: Arc<Shared>,
    /// The caller's scope; none on the embedded store.
    pub(crate) scope: Option<Arc<Scope>>,
    /// The caller's database.
    pub(crate) database: u32,
}

/// What is left to do for the caller's connection.
pub(crate) enum Done {
    /// Answer with this, in RESP3.
    Reply(Vec<u8>),
    /// Answer with its mode of reading.
    TellReadMode,
    /// Change it.
    SetReadMode(ReadMode),
    /// Let it hear of invalidations of keys that match.
    Listen(Option<Bytes>),
    /// Let it hear of them no more.
    Unlisten,
}

// === impl Caller ===

impl Caller {
    /// The line with which the upstream refuses the caller, if it is known to: what it has not accepted may do nothing
    /// here. While nobody has been accepted yet, the first attempt is waited for, at most `link.connect_ms_max`; an
    /// upstream that is not there refuses nobody.
    pub(crate) async fn refusal(&self) -> Option<Bytes> {
        let (upstream, scope) = (self.upstream()?, self.scope.as_ref()?);
        if upstream.node().facts().is_known || scope.link.state() != LinkState::Connecting {
            return scope.link.refused();
        }
        let ping = OwnedArgs::new(["PING"]);
        match Errand::default().call(&scope.link, &[(OpKind::Read, &ping)]).await {
            Err(Failure::Refused(line)) => Some(line),
            _ => None,
        }
    }

    /// Executes a command.
    ///
    /// # Errors
    /// What the client is told instead.
    pub(crate) async fn execute(&self, command: CacheCommand<'_>) -> Result<Done, Failure> {
        Ok(Done::Reply(match command {
            CacheCommand::Read(None) => return Ok(Done::TellReadMode),
            CacheCommand::Read(Some(mode)) => return Ok(Done::SetReadMode(mode)),
            CacheCommand::Events(EventsCommand::Subscribe(glob)) => {
                return Ok(Done::Listen(glob.map(Bytes::copy_from_slice)));
            }
            CacheCommand::Events(EventsCommand::Unsubscribe) => return Ok(Done::Unlisten),
            CacheCommand::Help => help(),
            CacheCommand::Fence => self.fence().await?,
            CacheCommand::Info(section) => inspect::info(self, section),
            CacheCommand::Stats => inspect::stats(self),
            CacheCommand::ResetStats => {
                self.shared.reset_counters();
                ok()
            }
            CacheCommand::Advise => self.advise().await,
            CacheCommand::BigKeys(max) => self.big_keys(max),
            CacheCommand::HotKeys(max) => self.hot_keys(max),
            CacheCommand::Config(order) => inspect::config(self, order)?,
            CacheCommand::Entry(key) => inspect::entry(self, key).await,
            CacheCommand::Breaker(order) => inspect::breaker(self, order)?,
            CacheCommand::Invalidate(target, reach, soft) => {
                match invalidate::invalidate(self, target, reach, soft).await? {
                    Invalidated::Keys(count) => Reply::default().integer(count).take(),
                    Invalidated::All => ok(),
                }
            }
            CacheCommand::Jobs(command) => self.about_jobs(command)?,
            CacheCommand::Warm(order) => warm::warm(self, order).await?,
            CacheCommand::Tags(command) => tags::execute(self, command).await?,
            CacheCommand::Depend(command) => depend::execute(self, command).await?,
        }))
    }

    /// `CACHE JOBS`, `CACHE JOB id`, `CACHE CANCEL id`
    fn about_jobs(&self, command: JobsCommand) -> Result<Vec<u8>, Failure> {
        let (jobs, now) = (&self.shared.jobs, self.shared.clock.now());
        let mut reply = Reply::default();
        match command {
            JobsCommand::List => {
                let all = jobs.all();
                reply.array(all.len());
                all.iter().for_each(|job| job.show(&mut reply, now));
            }
            JobsCommand::Show(id) => match jobs.find(id) {
                Some(job) => job.show(&mut reply, now),
                None => {
                    reply.null();
                }
            },
            JobsCommand::Cancel(id) => {
                jobs.cancel(id)?;
                reply.simple("OK");
            }
        }
        Ok(reply.take())
    }

    /// Returns when the scope's link has read all that the upstream had sent before.
    ///
    /// An empty partition with nothing on its way into it needs no PING: there is nothing that an invalidation could
    /// take out, and whatever is read from now on is asked of the upstream from now on.
    async fn fence(&self) -> Result<Vec<u8>, Failure> {
        if let Some(scope) = &self.scope {
            let fenced = Errand::default().fence(std::slice::from_ref(scope)).await;
            fenced.map_err(|failure| match failure {
                // It changes nothing, and may be sent again.
                Failure::WriteTimeout(ms) => Failure::ReadTimeout(ms),
                failure => failure,
            })?;
        }
        Ok(ok())
    }

    fn upstream(&self) -> Option<&Arc<Upstream>> {
        match &self.shared.backend {
            Backend::Upstream(upstream) => Some(upstream),
            Backend::Embedded(_) => None,
        }
    }

    /// The command table in force.
    fn table(&self) -> Arc<Table> {
        self.upstream().map_or_else(|| self.shared.table.clone(), |upstream| upstream.node().table())
    }

    /// What the operator denies to clients, CACHE does not do for them.
    fn may_use(&self, table: &Table, word: &str) -> Result<(), Failure> {
        match table.lookup(word.as_bytes()) {
            Some(command) if self.shared.denied.denies(command) => {
                let line = format!("NOPERM larder: the operator has denied the '{}' command", command.name);
                Err(Failure::Refused(line.into()))
            }
            _ => Ok(()),
        }
    }

    fn execute_embedded(&self, words: &[&[u8]]) -> Result<Bytes, Failure> {
        let request = OwnedArgs::new(words);
        let reply = Bytes::from(self.shared.execute_embedded(self.database, Protocol::Resp3, request.args()));
        if reply.starts_with(b"-") {
            return Err(Failure::Refused(reply.slice(1..reply.len().saturating_sub(2).max(1))));
        }
        Ok(reply)
    }
}

fn help() -> Vec<u8> {
    let lines: Vec<String> = cache::help().collect();
    let mut reply = Reply::default();
    reply.array(lines.len());
    for line in &lines {
        reply.simple(line);
    }
    reply.take()
}

fn ok() -> Vec<u8> {
    Reply::default().simple("OK").take()
}
