//! What a connection knows and decides, without its socket.

use super::retold::is_publish;
use crate::clients::Client;
use crate::clock::Time;
use crate::hub::{Hub, Kind, Subscriptions};
use crate::insight::ScopeId;
use crate::l1::{Cause, Partition};
use crate::metrics::Counters;
use crate::monitors::{self, Watching};
use crate::mutation::{Mutation, is_planted};
use crate::outgoing::Outgoing;
use crate::pause::Mode;
use crate::port::{CatchUp, Delivery, Failure, Seq, Taken};
use crate::received::Received;
use crate::server::{Backend, Shared};
use crate::session::{AHEAD_MAX, Advanced, Again, Batch, Flow, Session, Stale, Surroundings, Told};
use crate::upstream::feed::Listening;
use crate::upstream::link::{Job, Op, OpKind, REQUEST_BYTES_MAX};
use crate::upstream::raw::Identity;
use crate::upstream::scope::{Scope, Upstream};
use bytes::Bytes;
use larder_protocol::args::{ArgRange, Args};
use larder_protocol::scan::{Ahead, RequestError, RequestLimits, RequestScanner, Step};
use larder_protocol::shape::Protocol;
use larder_protocol::table::{Class, Command, CommandId, Flags, Group, Resolved, Table};
use smallvec::{SmallVec, smallvec};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// A client, as the server sees it.
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) client: Arc<Client>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) session: Session,
    pub(crate) out: Outgoing,
    pub(crate) batch: Batch,
    taken: Taken,
    pub(crate) place: Place,
    pub(crate) login: Login,
    pub(crate) knowledge: Knowledge,
    pub(crate) admission: Admission,
    pub(crate) subscriptions: Subscriptions,
    /// Its place among those who hear of invalidations.
    pub(super) listening: Option<Listening>,
    /// The hubs that the client's subscriptions are with: one for each user that it has been.
    hubs: Vec<(Identity, Arc<Hub>)>,
    /// True while the output ends in the middle of a reply: messages have to wait.
    pub(super) in_reply: bool,
    messages: Vec<Delivery>,
    held_message_bytes: usize,
    /// The connection is to be closed behind the answers that are due.
    pub(crate) ends_after_answer: bool,
    /// Fences that something else than a slot waits for, with how many links are still to answer.
    pub(crate) fences: BTreeMap<Seq, u32>,
    /// The command of the last request, if it reads one key: the next one may call it, too.
    pub(super) last_read: Option<CommandId>,
    /// When the bytes of the last pass came, and how many of its reads L1 has answered: still to be timed.
    pub(super) hits_to_time: (Time, u64),
    /// The database that a transaction has selected.
    pub(crate) selected_in_transaction: Option<u32>,
    /// Who is held by CLIENT PAUSE, as of the beginning of the pass over the input.
    pub(super) paused: Mode,
    /// True if somebody watches (MONITOR), as of the same moment.
    pub(super) is_watched: bool,
    /// True if the upstream tells those who watch of the request at hand.
    pub(super) is_told_by_upstream: bool,
    /// This client's own place among those who watch the embedded store.
    pub(super) watching: Option<Watching>,
    /// Who waits for this client, which watches, to catch up.
    pub(super) catch_ups: Vec<CatchUp>,
}

/// Where a client's data is.
pub(crate) enum Place {
    /// In the embedded store, in this database.
    Embedded(u32),
    /// Behind this scope.
    Upstream(Arc<Scope>),
}

/// Whether a client has shown who it is, where Larder has users of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    /// It has, or need not.
    Done,
    /// It has not.
    Missing,
}

/// Whether a client can have been told anything of the upstream's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// It has asked for nothing yet.
    Nothing,
    /// It may have been.
    Something,
}

/// Whether requests are taken, as far as all that waits in the process allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// They are.
    Open,
    /// Not for the moment.
    Closed,
    /// They are, and those for the upstream are answered with an error.
    Refusing,
}

/// What became of a request.
pub(crate) enum Take {
    /// It was taken.
    Taken,
    /// It was not taken; offer it again when something has moved.
    Wait,
    /// It was not taken: it is to be handled apart.
    Apart,
    /// It was taken, and the connection ends behind its answer.
    Close,
}

// === impl Core ===

impl Core {
    /// The state of a client that has just connected, or the line that it is to be refused with.
    pub(crate) fn new(shared: Arc<Shared>, client: Arc<Client>, counters: Arc<Counters>) -> Result<Self, String> {
        let place = shared.first_place()?;
        let login = if shared.has_own_users() { Login::Missing } else { Login::Done };
        if let Place::Upstream(scope) = &place {
            client.database.store(scope.database, Ordering::Relaxed);
        }
        Ok(Self {
            shared,
            client,
            counters,
            session: Session::new(),
            out: Outgoing::default(),
            batch: Batch::default(),
            taken: Taken::default(),
            place,
            login,
            knowledge: Knowledge::Nothing,
            admission: Admission::Open,
            subscriptions: Subscriptions::default(),
            listening: None,
            hubs: Vec::new(),
            in_reply: false,
            messages: Vec::new(),
            held_message_bytes: 0,
            ends_after_answer: false,
            fences: BTreeMap::new(),
            last_read: None,
            hits_to_time: (Time::ZERO, 0),
            selected_in_transaction: None,
            paused: Mode::Off,
            is_watched: false,
            is_told_by_upstream: false,
            watching: None,
            catch_ups: Vec::new(),
        })
    }

    /// True while another request may be taken.
    pub(crate) fn may_take(&self) -> bool {
        self.admission != Admission::Closed
            && self.session.under_way() < self.shared.client_in_flight_max.load(Ordering::Relaxed)
            && self.out.len() < super::OUTPUT_PAUSE_BYTES
            && self.batch.len() < super::OUTPUT_PAUSE_BYTES
            && self.scope().is_none_or(|scope| scope.link.has_room(&self.client.port))
    }

    /// False while the client has still to show who it is: its requests are bounded more narrowly until then.
    pub(super) fn is_authenticated(&self) -> bool {
        self.login == Login::Done && self.scope().is_none_or(|scope| scope.link.refused().is_none())
    }

    /// The scope, if there is an upstream.
    pub(crate) fn scope(&self) -> Option<&Arc<Scope>> {
        match &self.place {
            Place::Upstream(scope) => Some(scope),
            Place::Embedded(_) => None,
        }
    }

    /// The upstream, if there is one.
    pub(crate) fn upstream(&self) -> Option<Arc<Upstream>> {
        match &self.shared.backend {
            Backend::Upstream(upstream) => Some(upstream.clone()),
            Backend::Embedded(_) => None,
        }
    }

    /// Gathers once for many requests what each needs to know.
    pub(super) fn with_surroundings<T>(&mut self, work: impl FnOnce(&mut Self, &Surroundings<'_>) -> T) -> T {
        let clock = self.shared.clock;
        let now = move || clock.now();
        let counters = self.counters.clone();
        let (scope, upstream) = match (&self.place, &self.shared.backend) {
            (Place::Upstream(scope), Backend::Upstream(upstream)) => (scope.clone(), upstream.clone()),
            _ => {
                let shared = self.shared.clone();
                let around = Surroundings {
                    table: &shared.table,
                    partition: None,
                    stale: None,
                    upstream_is_resp2: false,
                    has_field_ttls: false,
                    fences: false,
                    settles: false,
                    keeps: false,
                    reader: self.client.port.reader(),
                    refresh_ahead: None,
                    is_big: &|_| false,
                    now: &now,
                    counters: &counters,
                };
                return work(self, &around);
            }
        };
        let facts = upstream.node().facts();
        let partition: Option<&Partition> = scope.link.caches().then(|| &**scope.link.partition());
        let shared = self.shared.clone();
        let has_left = partition.is_none() && scope.link.partition().has_left();
        let policies = shared.policies.load();
        let stale = has_left.then(|| Stale { partition: scope.link.partition(), policies: &policies });
        let around = Surroundings {
            table: &facts.table,
            partition,
            stale,
            upstream_is_resp2: facts.is_known && facts.hello.is_none(),
            has_field_ttls: facts.has_field_ttls,
            fences: upstream.has_peers(&scope),
            settles: scope.link.watch().is_on(),
            keeps: self.shared.pauses.mode() == Mode::Off,
            reader: self.client.port.reader(),
            refresh_ahead: policies.refreshes().then_some(&**policies),
            is_big: &|key| upstream.is_big(key),
            now: &now,
            counters: &counters,
        };
        work(self, &around)
    }

    /// Takes one request. `last` is for the caller to keep from request to request: the command of the one before, if it was
    /// taken and nothing speaks against another; `repeats` if this one calls the same, in the same letters and with as many
    /// arguments.
    pub(super) fn take<'t>(
        &mut self,
        args: Args<'_>,
        repeats: bool,
        last: &mut Option<&'t Command>,
        around: &Surroundings<'t>,
    ) -> Take {
        self.counters.commands.add(1);
        let command = match *last {
            Some(command) if repeats => command,
            _ => {
                (*last, self.last_read) = (None, None);
                let command = match around.table.resolve(args) {
                    Resolved::Known(command) => command,
                    Resolved::Unknown => return self.take_unknown(None, args),
                    Resolved::UnknownSubcommand(container) => return self.take_unknown(Some(container), args),
                };
                self.client.last_command.store(command.id.0, Ordering::Relaxed);
                if let Some(line) = self.refusal(command) {
                    return self.answer(line.as_bytes());
                }
                // The upstream words the error.
                let is_malformed = command.class == Class::Refused && !command.accepts(args.len());
                if (command.is_foreign() || is_malformed) && matches!(self.place, Place::Upstream(_)) {
                    return self.take_unknown(None, args);
                }
                // Whether a client may be answered here can change by itself; so can which subcommand it calls.
                let may_change = command.class == Class::Local || command.is_container || command.parent.is_some();
                *last = (!may_change).then_some(command);
                self.last_read = last.filter(|command| command.reads_its_argument()).map(|command| command.id);
                command
            }
        };
        if self.paused != Mode::Off && self.is_held(self.paused, command, args) {
            return if self.session.under_way() > 0 { Take::Wait } else { Take::Apart };
        }
        let took = self.take_by_class(command, args, around);
        if self.is_watched && matches!(took, Take::Taken) {
            self.tell_watchers(command, args);
        }
        took
    }

    /// The command that `input` begins with, if the last request of the pass before called it, too, in the same letters, and
    /// nothing speaks against another. What [`Core::take`] looks at for a first request is looked at here.
    #[inline]
    pub(super) fn recall<'t>(
        &mut self,
        scanner: &RequestScanner,
        input: &[u8],
        around: &Surroundings<'t>,
    ) -> Option<&'t Command> {
        let id = self.last_read.filter(|_| self.may_take())?;
        let name = scanner.repeated_name(input)?;
        // The table may be another by now.
        let command = around.table.command(id).filter(|command| command.name.as_bytes().eq_ignore_ascii_case(name))?;
        if !command.reads_its_argument() || command.is_foreign() || self.refusal(command).is_some() {
            return None;
        }
        self.client.last_command.store(id.0, Ordering::Relaxed);
        self.knowledge = Knowledge::Something;
        Some(command)
    }

    /// Takes requests from the start of `input` that are as the one before, a call of `last`, and that L1 answers at once: how
    /// many bytes.
    #[inline]
    pub(super) fn take_hits(
        &mut self,
        scanner: &RequestScanner,
        input: &[u8],
        last: Option<&Command>,
        around: &Surroundings<'_>,
    ) -> usize {
        let Some(command) = last.filter(|command| command.reads_its_argument()) else { return 0 };
        let is_usual = self.paused == Mode::Off && !self.is_watched && self.admission == Admission::Open;
        let mut taken = 0;
        while is_usual && self.session.answers_hits(around) && self.batch.is_empty() {
            let mut ahead = [Ahead::default(); AHEAD_MAX];
            let input = &input[taken..];
            let count = scanner.ahead(input, &mut ahead);
            let output_max = super::OUTPUT_PAUSE_BYTES;
            let answered = self.session.answer_hits(command, input, &ahead[..count], output_max, around, &mut self.out);
            self.counters.commands.add(answered as u64);
            taken += ahead[..answered].last().map_or(0, |request| request.end as usize);
            if answered < AHEAD_MAX {
                break;
            }
        }
        taken
    }

    fn take_by_class(&mut self, command: &Command, args: Args<'_>, around: &Surroundings<'_>) -> Take {
        match command.class {
            Class::Local => self.take_local(command, args, around),
            Class::Refused => {
                let name = String::from_utf8_lossy(args.arg(0)).to_uppercase();
                self.answer(format!("-ERR '{name}' is refused: a proxy cannot take part in replication\r\n").as_bytes())
            }
            Class::Monitor if matches!(self.place, Place::Embedded(_)) => Take::Apart,
            Class::PubSub if self.session.under_way() == 0 => Take::Apart,
            Class::PubSub => Take::Wait,
            _ => match &self.place {
                Place::Upstream(_) => self.take_shared(command, args, around),
                Place::Embedded(database) => self.take_embedded(*database, args),
            },
        }
    }

    fn take_shared(&mut self, command: &Command, args: Args<'_>, around: &Surroundings<'_>) -> Take {
        if self.admission == Admission::Refusing {
            return self.refuse_for_crowd();
        }
        self.knowledge = Knowledge::Something;
        if args.bytes().len() > REQUEST_BYTES_MAX {
            return if self.session.under_way() == 0 { Take::Apart } else { Take::Wait };
        }
        if command.class == Class::Plain && !self.subscriptions.is_empty() && is_publish(&command.name) {
            // It may be told of what it publishes, and before it is answered.
            return if self.session.under_way() == 0 { Take::Apart } else { Take::Wait };
        }
        match self.session.request(command, args, around, &mut self.batch, &mut self.out) {
            Flow::Taken => {
                if command.class == Class::Plain
                    && is_publish(&command.name)
                    && let Some((upstream, here)) = self.receivers(args)
                {
                    self.session.publishes_to(upstream, here);
                }
                Take::Taken
            }
            Flow::Wait => Take::Wait,
            Flow::Exclusive => Take::Apart,
        }
    }

    /// As [`Shared::receivers`], of a PUBLISH or SPUBLISH.
    pub(super) fn receivers(&self, args: Args<'_>) -> Option<(i64, i64)> {
        let is_sharded = args.arg(0).eq_ignore_ascii_case(b"spublish");
        self.shared.receivers(if is_sharded { Kind::Shard } else { Kind::Channel }, args.arg(1))
    }

    fn take_unknown(&mut self, container: Option<&Command>, args: Args<'_>) -> Take {
        if let Some(line) = container.and_then(|c| self.refusal(c)) {
            return self.answer(line.as_bytes());
        }
        if container.is_some_and(|c| c.group == Group::Larder) {
            return self.take_cache();
        }
        match &self.place {
            Place::Embedded(_) => {
                let line = unknown(container, args);
                self.answer(&line)
            }
            Place::Upstream(_) if self.session.under_way() > 0 => Take::Wait,
            // The upstream words the error.
            Place::Upstream(_) => Take::Apart,
        }
    }

    fn take_embedded(&mut self, database: u32, args: Args<'_>) -> Take {
        let answer = self.shared.execute_embedded(database, self.session.protocol(), args);
        self.watch_embedded(ScopeId(u64::from(database)), args, answer.len());
        self.answer(&answer)
    }

    fn watch_embedded(&self, scope: ScopeId, args: Args<'_>, answer_bytes: usize) {
        let Resolved::Known(command) = self.shared.table.resolve(args) else { return };
        let (watcher, clock) = (&self.counters.watcher, self.shared.clock);
        let now = move || clock.now();
        let keys = || command.keys(args).map(|at| args.arg(at));
        if command.flags.contains(Flags::WRITE) {
            return watcher.write(scope, keys(), &now);
        }
        keys().for_each(|key| watcher.read(scope, key, true, &now));
        if let (Some(key), None) = (keys().next(), keys().nth(1)) {
            self.shared.insight.sized(scope, key, answer_bytes as u64);
        }
    }

    /// Why a command may not be used now, as an error reply; `None` if it may. Every request is
    /// asked for here: names are compared only where the client's state, or the class, gives a reason to.
    #[inline]
    pub(super) fn refusal(&self, command: &Command) -> Option<String> {
        if (self.login == Login::Missing || command.class == Class::Local)
            && !matches!(&*command.name, "auth" | "hello" | "quit" | "reset")
        {
            if self.login == Login::Missing {
                return Some("-NOAUTH Authentication required.\r\n".into());
            }
            if let Some(line) = self.scope().and_then(|scope| scope.link.refused()) {
                return Some(format!("-{}\r\n", String::from_utf8_lossy(&line)));
            }
        }
        if self.shared.denied.denies(command) {
            let name = command.name.replace('|', " ");
            return Some(format!("-NOPERM larder: the operator has denied the '{name}' command\r\n"));
        }
        if self.watching.is_some() && command.flags.intersects(Flags::READONLY | Flags::WRITE) {
            return Some("-ERR Replica can't interact with the keyspace\r\n".into());
        }
        if self.session.protocol() == Protocol::Resp2 && self.is_subscribed() && !may_run_subscribed(command) {
            let name = command.name.as_ref();
            return Some(format!(
                "-ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context\r\n"
            ));
        }
        None
    }

    /// True if messages may come that it has not asked for one by one.
    pub(super) fn is_subscribed(&self) -> bool {
        self.subscriptions.count() > 0 || self.listening.is_some()
    }

    /// Tells those who watch of a request that the upstream does not tell them of.
    pub(super) fn tell_watchers(&self, command: &Command, args: Args<'_>) {
        if monitors::is_shown(command, args) {
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let database = self.client.database.load(Ordering::Relaxed);
            self.shared.monitors.tell(&monitors::line(at, database, self.client.address, command, args));
        }
    }

    /// Bytes of replies and messages that the client has not read.
    pub(super) fn output_bytes(&self) -> usize {
        self.out.len() + self.held_message_bytes
    }

    /// Answers a request.
    pub(crate) fn answer(&mut self, answer: &[u8]) -> Take {
        self.session.answer(answer, &mut self.out);
        Take::Taken
    }

    /// Refuses a request because too much waits altogether.
    pub(super) fn refuse_for_crowd(&mut self) -> Take {
        self.shared.buffered.count_refused();
        self.answer(format!("-{}\r\n", Failure::Buffered).as_bytes())
    }

    /// Bytes that wait here: for the link, for their turn, for the client to read them.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.out.len() + self.batch.len() + self.session.kept_bytes()
    }

    /// Answers bytes that are no request.
    pub(super) fn refuse_input(&mut self, error: RequestError, input: &[u8]) {
        self.counters.closed_protocol.add(1);
        self.tell_of_refused(error, input);
        self.session.answer(format!("-ERR {error}\r\n").as_bytes(), &mut self.out);
    }

    /// Tells the log what a client has sent that is no request.
    pub(super) fn tell_of_refused(&self, error: RequestError, input: &[u8]) {
        let Some(left_out) = self.shared.lines_about_clients.admit(self.shared.clock.now()) else { return };
        let (id, address) = (self.client.id.0, self.client.address);
        tracing::info!(client = id, %address, cause = %error, received = %Received::of(input), left_out, "not a request");
    }

    /// Hands what was gathered to the link.
    pub(crate) fn submit(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let job = self.batch.take(&self.client.port);
        let seqs: SmallVec<[Seq; 32]> = job.ops.iter().map(|op| op.seq).collect();
        let Some(scope) = self.scope() else { return };
        if let Err(failure) = scope.link.submit(job) {
            if self.is_disowned(&failure) {
                self.client.port.kill();
            }
            for seq in seqs {
                self.session.failed(seq, &failure);
            }
            self.advance();
        }
    }

    /// True if the upstream has disowned the client's user, which it admitted before: it would have closed the connection.
    pub(super) fn is_disowned(&self, failure: &Failure) -> bool {
        let Failure::Refused(line) = failure else { return false };
        let disowned = line.starts_with(b"WRONGPASS") || line.starts_with(b"NOAUTH");
        let (upstream, identity) = (self.upstream(), self.identity());
        disowned && upstream.zip(identity).is_some_and(|(upstream, identity)| identity != *upstream.default_identity())
    }

    /// True if the client's user is no more, or is refused: the server would have closed the connection.
    pub(super) fn has_lost_its_user(&self) -> bool {
        self.scope()
            .and_then(|scope| scope.link.refused())
            .is_some_and(|line| self.is_disowned(&Failure::Refused(line)))
    }

    /// The upstream has removed users: ends the connections of all who are one of them, its own behind the answer.
    pub(super) fn end_users(&mut self, names: &[Vec<u8>]) {
        if self.shared.has_own_users() {
            return;
        }
        for client in self.shared.clients.all() {
            let user = client.with_names(|names| names.user.clone());
            if user == b"default" || !names.contains(&user) {
                continue;
            }
            if client.id == self.client.id {
                self.ends_after_answer = true;
            } else {
                client.port.kill();
            }
        }
    }

    /// Takes everything out of the port and moves on.
    pub(crate) fn take_deliveries(&mut self) {
        let mut taken = std::mem::take(&mut self.taken);
        self.client.port.take(&mut taken);
        let fences = self.fences_replies();
        let settles = self.scope().is_some_and(|scope| scope.link.watch().is_on());
        let mut at = 0;
        for delivery in taken.deliveries.drain(..) {
            match delivery {
                Delivery::Small { seq, len } => {
                    let reply = &taken.bytes[at..at + len];
                    at += len;
                    let (counters, out) = (&self.counters, &mut self.out);
                    if fences || !self.session.replied_in_turn(seq, reply, settles, counters, out) {
                        self.session.replied(seq, Bytes::copy_from_slice(reply));
                    }
                }
                Delivery::Large(seq, reply) => self.session.replied(seq, reply),
                Delivery::Failed(seq, failure) => {
                    // A fence that failed has failed for the reply that waits for it.
                    if self.fences.remove(&seq).is_some() {
                        self.fences.insert(seq, u32::MAX);
                    }
                    self.session.failed(seq, &failure);
                }
                Delivery::Fenced(seq) => {
                    if let Some(missing) = self.fences.get_mut(&seq) {
                        *missing -= u32::from(*missing != u32::MAX);
                    }
                    self.session.fenced(seq);
                }
                Delivery::Message(_) | Delivery::Invalidation(_) | Delivery::Line(_) if self.in_reply => {
                    self.hold_message(delivery);
                }
                Delivery::Line(line) => self.out.put_shared(line),
                Delivery::CatchUp(catch_up) if self.client.monitoring.load(Ordering::Relaxed) => {
                    self.catch_ups.push(catch_up);
                }
                Delivery::CatchUp(_) => {}
                Delivery::Message(message) => self.put_message(&message),
                Delivery::Invalidation(push) => self.put_invalidation(&push),
            }
        }
        taken.recycle();
        self.taken = taken;
        self.advance();
    }

    /// What [`Surroundings::fences`] is.
    fn fences_replies(&self) -> bool {
        match (&self.place, &self.shared.backend) {
            (Place::Upstream(scope), Backend::Upstream(upstream)) => upstream.has_peers(scope),
            _ => false,
        }
    }

    /// Moves what may leave to the output; does again what must be.
    pub(crate) fn advance(&mut self) {
        loop {
            let (moved, again) = self.with_surroundings(|core, around| {
                let Advanced { again, fence } = core.session.advance(around, &mut core.out);
                let fenced = !fence.is_empty();
                for (seq, told) in fence {
                    core.ask_others(seq, told);
                }
                let redone = !again.is_empty();
                for one in again {
                    core.request_again(one, around);
                }
                (fenced, redone)
            });
            if again {
                self.submit();
            }
            if !moved && !again {
                return;
            }
        }
    }

    fn request_again(&mut self, again: Again, around: &Surroundings<'_>) {
        let resolve = |args: Args<'_>| match around.table.resolve(args) {
            Resolved::Known(command) => Some(command.id),
            _ => None,
        };
        self.session.request_again(again, resolve, scan_again, around, &mut self.batch, &mut self.out);
    }

    /// Asks the links of the other scopes for a fence behind a reply; and, behind that to a write, the watch for what
    /// follows from it.
    fn ask_others(&mut self, seq: Seq, told: Told) {
        let Some((upstream, scope)) = self.upstream().zip(self.scope().cloned()) else {
            return self.session.fencing(seq, 0);
        };
        let others = upstream.others(&scope, Some(scope.database));
        let settles = told == Told::Change && !is_planted(Mutation::WriteUnsettled);
        let watch = Some(scope.link.watch()).filter(|watch| settles && watch.is_on());
        self.session.fencing(seq, others.len() as u32 + u32::from(watch.is_some()));
        for other in others {
            other.link.submit_fence(fence_job(&self.client.port, seq, OpKind::Fence));
        }
        if let Some(watch) = watch {
            watch.submit(&self.client.port, seq);
        }
    }

    /// Starts a fence on links; [`Core::fence_state`] tells when it is done.
    pub(crate) fn start_fence(&mut self, scopes: &[Arc<Scope>], kind: OpKind) -> Seq {
        let seq = self.session.fresh_seq();
        self.fences.insert(seq, scopes.len() as u32);
        for scope in scopes {
            scope.link.submit_fence(fence_job(&self.client.port, seq, kind));
        }
        seq
    }

    /// As [`Core::start_fence`], behind the reply to a request that may have changed keys, of any database: what follows
    /// from that has happened, too.
    pub(crate) fn start_wide_fence(&mut self, scopes: &[Arc<Scope>], kind: OpKind) -> Seq {
        let seq = self.start_fence(scopes, kind);
        let Some(upstream) = self.upstream().filter(|upstream| upstream.watches().any()) else { return seq };
        for watch in upstream.watches().all().iter().filter(|watch| watch.is_on()) {
            if let Some(missing) = self.fences.get_mut(&seq) {
                *missing += 1;
            }
            watch.submit(&self.client.port, seq);
        }
        seq
    }

    /// A fence that has been started waits for one more to leave [`Delivery::Fenced`] in the port, which is returned.
    pub(crate) fn await_one_more(&mut self, seq: Seq) -> Arc<crate::port::Port> {
        if let Some(missing) = self.fences.get_mut(&seq) {
            *missing += 1;
        }
        self.client.port.clone()
    }

    /// As [`Core::start_fence`], where the caller asks `answers` others to leave [`Delivery::Fenced`] in the port.
    pub(super) fn await_fences(&mut self, answers: u32) -> Seq {
        let seq = self.session.fresh_seq();
        self.fences.insert(seq, answers);
        seq
    }

    /// `None` while links are still to answer; then whether all did.
    pub(crate) fn fence_state(&mut self, seq: Seq) -> Option<Result<(), ()>> {
        match self.fences.get(&seq) {
            None | Some(0) => {
                self.fences.remove(&seq);
                Some(Ok(()))
            }
            Some(&u32::MAX) => {
                self.fences.remove(&seq);
                Some(Err(()))
            }
            Some(_) => None,
        }
    }

    /// The scope's own link and those of other users of its database or, if `widely`, of all other scopes.
    pub(crate) fn links_to_fence(&self, widely: bool) -> Vec<Arc<Scope>> {
        let Some(scope) = self.scope() else { return Vec::new() };
        let mut scopes = vec![scope.clone()];
        if let Some(upstream) = self.upstream().filter(|u| u.has_several_scopes()) {
            // What was only read can be contradicted by the scopes of other users of this database.
            scopes.extend(upstream.others(scope, if widely { None } else { Some(scope.database) }));
        }
        scopes
    }

    /// The command table in force.
    pub(crate) fn table(&self) -> Arc<Table> {
        match &self.shared.backend {
            Backend::Upstream(upstream) => upstream.node().table(),
            Backend::Embedded(_) => self.shared.table.clone(),
        }
    }

    /// Moves the client to another scope.
    pub(crate) fn enter(&mut self, scope: Arc<Scope>) {
        self.client.database.store(scope.database, Ordering::Relaxed);
        self.client.with_names(|names| names.user = scope.identity.name().to_vec());
        for (_, hub) in &self.hubs {
            hub.moved(&self.client, &scope);
        }
        self.place = Place::Upstream(scope);
        self.session.learnt_elsewhere(self.shared.clock.now());
        self.listen_here();
    }

    /// Who the client is for the upstream.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.scope().map(|scope| scope.identity.clone())
    }

    /// The hub of the user that the client is now.
    pub(super) fn hub(&mut self) -> Option<Arc<Hub>> {
        let identity = self.identity()?;
        if let Some((_, hub)) = self.hubs.iter().find(|(i, _)| *i == identity) {
            return Some(hub.clone());
        }
        let hub = self.shared.hub(&identity)?;
        self.hubs.push((identity, hub.clone()));
        Some(hub)
    }

    /// All hubs that the client has subscriptions with.
    pub(super) fn hubs(&self) -> Vec<Arc<Hub>> {
        self.hubs.iter().map(|(_, hub)| hub.clone()).collect()
    }

    fn hold_message(&mut self, message: Delivery) {
        if let Delivery::Message(bytes) | Delivery::Invalidation(bytes) | Delivery::Line(bytes) = &message {
            self.held_message_bytes += bytes.len();
        }
        self.messages.push(message);
    }

    /// Puts the messages out that had to wait for the end of a reply.
    pub(super) fn put_messages(&mut self) {
        self.in_reply = false;
        self.held_message_bytes = 0;
        for message in std::mem::take(&mut self.messages) {
            match message {
                Delivery::Invalidation(push) => self.put_invalidation(&push),
                Delivery::Message(message) => self.put_message(&message),
                Delivery::Line(line) => self.out.put_shared(line),
                _ => {}
            }
        }
    }

    /// Ends all subscriptions.
    pub(super) fn leave_hub(&mut self) {
        self.listening = None;
        for (_, hub) in self.hubs.drain(..) {
            hub.leave(&self.client, &mut self.subscriptions);
        }
    }
}

/// Argument ranges of a request that has been scanned before.
pub(super) fn scan_again(request: &Bytes) -> Option<Vec<ArgRange>> {
    let limits =
        RequestLimits { args_max: usize::MAX, request_bytes_max: u32::MAX as usize, ..RequestLimits::default() };
    let mut scanner = RequestScanner::new(limits);
    match scanner.scan(request) {
        Ok(Step::Request { .. }) => Some(scanner.take_ranges()),
        _ => None,
    }
}

/// A job that fences one link.
pub(super) fn fence_job(port: &Arc<crate::port::Port>, seq: Seq, kind: OpKind) -> Job {
    Job { port: port.clone(), bytes: Bytes::new(), ops: smallvec![Op { seq, bytes: 0..0, kind }] }
}

/// A job that drops the keys that `named` names behind its first word.
pub(super) fn drop_job(port: &Arc<crate::port::Port>, named: Bytes, cause: Cause) -> Job {
    let op = Op { seq: Seq(0), bytes: 0..named.len() as u32, kind: OpKind::Drop(cause) };
    Job { port: port.clone(), bytes: named, ops: smallvec![op] }
}

/// What redis-server says to a command that it does not know.
fn unknown(container: Option<&Command>, args: Args<'_>) -> Vec<u8> {
    const SHOWN_BYTES_MAX: usize = 128;
    let shown = |word: &[u8]| String::from_utf8_lossy(&word[..word.len().min(SHOWN_BYTES_MAX)]).into_owned();
    if let Some(container) = container {
        let name = container.name.to_uppercase();
        let sub = shown(args.arg(1));
        return format!("-ERR unknown subcommand '{sub}'. Try {name} HELP.\r\n").into_bytes();
    }
    let mut list = String::new();
    for word in args.iter().skip(1) {
        if list.len() >= SHOWN_BYTES_MAX {
            break;
        }
        list.push_str(&format!("'{}' ", shown(word)));
    }
    let line = format!("ERR unknown command '{}', with args beginning with: {list}", shown(args.arg(0)));
    format!("-{}\r\n", line.replace(['\r', '\n'], " ")).into_bytes()
}

fn may_run_subscribed(command: &Command) -> bool {
    const ALLOWED: [&str; 5] = ["ping", "quit", "reset", "cache|subscribe", "cache|unsubscribe"];
    command.class == Class::PubSub || ALLOWED.contains(&&*command.name)
}
