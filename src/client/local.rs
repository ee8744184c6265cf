//! What Larder answers by itself: commands about the connection, which the upstream does not see.
//!
//! The CLIENT family, which speaks of Larder's clients; PING and ECHO while the upstream is away, and to subscribers. What
//! must ask somebody first (AUTH, SELECT, HELLO, the right to CLIENT KILL) is in `apart`. Wrong numbers of arguments and
//! unknown options go to the upstream, which words the error.

use super::core::{Core, Place, Take};
use crate::clients::{Client, ClientId, until_nul};
use crate::session::{Flow, Muted, Surroundings};
use crate::upstream::link::REQUEST_BYTES_MAX;
use crate::upstream::link_io::LinkState;
use larder_protocol::args::Args;
use larder_protocol::scan::strict_i64;
use larder_protocol::shape::Protocol;
use larder_protocol::table::{Command, Group};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Which clients CLIENT KILL and CLIENT LIST are about.
#[derive(Debug, Default)]
struct Filter {
    ids: Vec<u64>,
    address: Option<Vec<u8>>,
    local_address: Option<Vec<u8>>,
    kind: Option<Vec<u8>>,
    user: Option<Vec<u8>>,
    age_s_max: Option<u64>,
    skips_me: bool,
}

// === impl Core ===

impl Core {
    /// Takes a command that Larder answers.
    pub(super) fn take_local(&mut self, command: &Command, args: Args<'_>, around: &Surroundings<'_>) -> Take {
        if command.group == Group::Larder {
            return self.take_cache();
        }
        let name = &*command.name;
        if name == "quit" && self.shared.redirects.of(self.client.id).is_some() {
            // Others redirect to it: it is to be gone for the upstream before it is told so.
            return if self.session.under_way() > 0 { Take::Wait } else { Take::Apart };
        }
        if name == "quit" {
            self.session.answer(b"+OK\r\n", &mut self.out);
            return Take::Close;
        }
        if name == "client|reply" && command.accepts(args.len()) {
            return self.take_reply_mode(args);
        }
        // What is too long for the link is answered here.
        let may_pass = args.bytes().len() <= REQUEST_BYTES_MAX;
        if matches!(name, "ping" | "echo") && command.accepts(args.len()) && may_pass && self.reaches_upstream() {
            self.session.pass_on(command, args, around, &mut self.batch);
            return Take::Taken;
        }
        let answer = if self.asks_upstream(name, args) { None } else { self.local_answer(command, args) };
        match answer {
            Some(answer) if is_counted_upstream(name) && may_pass && self.reaches_upstream() => {
                match self.session.pass_on_for(answer, command, args, around, &mut self.batch) {
                    Flow::Taken => Take::Taken,
                    _ => Take::Wait,
                }
            }
            Some(answer) => self.answer(&answer),
            None if self.session.under_way() > 0 => Take::Wait,
            None => Take::Apart,
        }
    }

    /// The answer to a command that needs to ask nobody; `None` if it does.
    pub(super) fn local_answer(&mut self, command: &Command, args: Args<'_>) -> Option<Vec<u8>> {
        if !command.accepts(args.len()) {
            return match self.place {
                Place::Upstream(_) => None,
                Place::Embedded(_) => Some(arity_error(&command.name)),
            };
        }
        match &*command.name {
            "ping" => self.pong(args),
            "echo" => Some(bulk(args.arg(1))),
            "client|id" => Some(integer(self.client.id.0)),
            "client|getname" => {
                let name = self.client.with_names(|names| names.name.clone());
                Some(if name.is_empty() { null(self.session.protocol()) } else { bulk(&name) })
            }
            "client|setname" => Some(self.set_name(args.arg(2))),
            "client|setinfo" => self.set_info(args.arg(2), args.arg(3)),
            "client|info" => Some(self.verbatim(&self.lines(std::slice::from_ref(&self.client), args))),
            "client|list" => self.client_list(args),
            "client|kill" => self.client_kill(args),
            "client|no-evict" => self.switch(args.arg(2), |client| &client.no_evict),
            "client|no-touch" => self.switch(args.arg(2), |client| &client.no_touch),
            _ => None,
        }
    }

    /// True if the upstream is to answer PING and ECHO, with what it may have to say (BUSY, LOADING, NOPERM). While it is
    /// away Larder answers: it can still serve what it was told to serve then.
    fn reaches_upstream(&self) -> bool {
        let link = self.scope().map(|scope| scope.link.state());
        self.subscriptions.count() == 0 && matches!(link, Some(LinkState::Up | LinkState::Connecting))
    }

    /// True for what cannot be answered here at once: PING of a subscriber, which is to find behind it what was published
    /// before; CLIENT KILL with filters that the upstream knows.
    pub(super) fn asks_upstream(&self, name: &str, args: Args<'_>) -> bool {
        // Who has authenticated with the server has its rights, and no more.
        let has_rights_of_its_own =
            self.upstream().is_some_and(|u| self.identity().as_ref() != Some(u.default_identity()));
        if has_rights_of_its_own && (name == "client|kill" || name == "client|list" && !self.reaches_upstream()) {
            return true;
        }
        name == "ping" && self.subscriptions.count() > 0
            // Those who are killed are to be gone for the upstream before that is said.
            || name == "client|kill" && !self.shared.redirects.is_empty()
            || self.knows_filters_from_upstream(name, args)
    }

    /// True for a CLIENT KILL whose filters the upstream is to judge: which there are depends on its version, and USER names
    /// one of its users, where Larder has none of its own. While it is away Larder does what it understands.
    pub(super) fn knows_filters_from_upstream(&self, name: &str, args: Args<'_>) -> bool {
        let names_user = || args.iter().skip(2).step_by(2).any(|option| option.eq_ignore_ascii_case(b"user"));
        let is_asked = || if names_user() { !self.shared.has_own_users() } else { self.reaches_upstream() };
        name == "client|kill" && matches!(self.place, Place::Upstream(_)) && args.len() > 3 && is_asked()
    }

    fn pong(&self, args: Args<'_>) -> Option<Vec<u8>> {
        if args.len() > 2 {
            return match self.place {
                Place::Upstream(_) => None,
                Place::Embedded(_) => Some(arity_error("ping")),
            };
        }
        if self.session.protocol() == Protocol::Resp2 && self.subscriptions.count() > 0 {
            return Some([&b"*2\r\n$4\r\npong\r\n"[..], &bulk(args.arg(1))].concat());
        }
        Some(args.get(1).map_or_else(|| b"+PONG\r\n".to_vec(), bulk))
    }

    fn take_reply_mode(&mut self, args: Args<'_>) -> Take {
        let answer = self.reply_mode(args);
        if answer.is_empty() { Take::Taken } else { self.answer(&answer) }
    }

    /// CLIENT REPLY: changes the mode; the answer, if there is one.
    pub(super) fn reply_mode(&mut self, args: Args<'_>) -> Vec<u8> {
        let mode = args.arg(2);
        if mode.eq_ignore_ascii_case(b"on") {
            self.session.set_muted(Muted::No);
            return b"+OK\r\n".to_vec();
        }
        if mode.eq_ignore_ascii_case(b"off") {
            self.session.set_muted(Muted::All);
        } else if mode.eq_ignore_ascii_case(b"skip") {
            self.session.skip_next();
        } else {
            return b"-ERR syntax error\r\n".to_vec();
        }
        Vec::new()
    }

    fn set_name(&self, name: &[u8]) -> Vec<u8> {
        if !self.is_attribute(name) {
            return b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n".to_vec();
        }
        self.client.with_names(|names| names.name = name.to_vec());
        b"+OK\r\n".to_vec()
    }

    /// True for what the upstream would take for a name.
    fn is_attribute(&self, text: &[u8]) -> bool {
        // A server since 7.2, which knows SETINFO, looks at what stands before a NUL byte (measured).
        let looks_as_far_as_nul = self.table().is_on_upstream("client|setinfo");
        let looked_at = if looks_as_far_as_nul { until_nul(text) } else { text };
        looked_at.iter().all(|b| (b'!'..=b'~').contains(b))
    }

    fn set_info(&self, option: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        let is_name = option.eq_ignore_ascii_case(b"lib-name");
        if !is_name && !option.eq_ignore_ascii_case(b"lib-ver") || !self.is_attribute(value) {
            return match self.place {
                Place::Upstream(_) => None,
                Place::Embedded(_) => Some(b"-ERR syntax error\r\n".to_vec()),
            };
        }
        self.client
            .with_names(|names| *(if is_name { &mut names.lib_name } else { &mut names.lib_version }) = value.to_vec());
        Some(b"+OK\r\n".to_vec())
    }

    fn switch(&self, word: &[u8], of: impl Fn(&Client) -> &std::sync::atomic::AtomicBool) -> Option<Vec<u8>> {
        let on = word.eq_ignore_ascii_case(b"on");
        if !on && !word.eq_ignore_ascii_case(b"off") {
            return Some(b"-ERR syntax error\r\n".to_vec());
        }
        of(&self.client).store(on, Ordering::Relaxed);
        Some(b"+OK\r\n".to_vec())
    }

    fn client_list(&self, args: Args<'_>) -> Option<Vec<u8>> {
        let filter = match args.len() {
            2 => Filter::default(),
            4 if args.arg(2).eq_ignore_ascii_case(b"type") => {
                let kind = args.arg(3).to_ascii_lowercase();
                if !is_kind(&kind) {
                    return Some(unknown_kind(args.arg(3)));
                }
                Filter { kind: Some(kind), ..Filter::default() }
            }
            n if n > 3 && args.arg(2).eq_ignore_ascii_case(b"id") => {
                let ids: Option<Vec<u64>> = args.iter().skip(3).map(positive).collect();
                let Some(ids) = ids else { return Some(b"-ERR Invalid client ID\r\n".to_vec()) };
                Filter { ids, ..Filter::default() }
            }
            _ => return Some(b"-ERR syntax error\r\n".to_vec()),
        };
        Some(self.verbatim(&self.lines(&self.matching(&filter), args)))
    }

    fn client_kill(&mut self, args: Args<'_>) -> Option<Vec<u8>> {
        let old_form = args.len() == 3;
        let filter = if old_form {
            Filter { address: Some(args.arg(2).to_vec()), ..Filter::default() }
        } else {
            match Filter::parse(args) {
                Ok(filter) => filter,
                Err(line) => return Some(line),
            }
        };
        let killed = self.matching(&filter);
        let me = self.client.id;
        for client in killed.iter().filter(|c| c.id != me) {
            client.port.kill();
        }
        if killed.iter().any(|c| c.id == me) {
            self.ends_after_answer = true;
        }
        Some(match (old_form, killed.is_empty()) {
            (true, true) => b"-ERR No such client\r\n".to_vec(),
            (true, false) => b"+OK\r\n".to_vec(),
            (false, _) => integer(killed.len() as u64),
        })
    }

    fn matching(&self, filter: &Filter) -> Vec<Arc<Client>> {
        let now_s = self.now_s();
        self.shared.clients.all().into_iter().filter(|c| filter.admits(c, self.client.id, now_s)).collect()
    }

    /// One line for each client; `args` is the request at hand of this one.
    fn lines(&self, clients: &[Arc<Client>], args: Args<'_>) -> Vec<u8> {
        let (now_s, table) = (self.now_s(), self.table());
        let mut lines = Vec::new();
        for client in clients {
            let request_bytes = if client.id == self.client.id { args.bytes().len() } else { 0 };
            lines.extend_from_slice(&client.line(now_s, &table, request_bytes));
            lines.push(b'\n');
        }
        lines
    }

    fn now_s(&self) -> u64 {
        self.shared.clock.now().as_micros() / 1_000_000
    }

    /// A text for people: verbatim in RESP3, a bulk string in RESP2.
    pub(super) fn verbatim(&self, text: &[u8]) -> Vec<u8> {
        match self.session.protocol() {
            Protocol::Resp2 => bulk(text),
            Protocol::Resp3 => [format!("={}\r\ntxt:", text.len() + 4).as_bytes(), text, b"\r\n"].concat(),
        }
    }
}

// === impl Filter ===

impl Filter {
    /// `CLIENT KILL filter value ...`
    fn parse(args: Args<'_>) -> Result<Self, Vec<u8>> {
        let mut filter = Self { skips_me: true, ..Self::default() };
        if !args.len().is_multiple_of(2) {
            return Err(b"-ERR syntax error\r\n".to_vec());
        }
        for at in (2..args.len()).step_by(2) {
            let (option, value) = (args.arg(at).to_ascii_lowercase(), args.arg(at + 1));
            match &option[..] {
                b"id" => match positive(value) {
                    Some(id) => filter.ids.push(id),
                    None => return Err(b"-ERR client-id should be greater than 0\r\n".to_vec()),
                },
                b"type" if is_kind(&value.to_ascii_lowercase()) => filter.kind = Some(value.to_ascii_lowercase()),
                b"type" => return Err(unknown_kind(value)),
                b"addr" => filter.address = Some(value.to_vec()),
                b"laddr" => filter.local_address = Some(value.to_vec()),
                b"user" => filter.user = Some(value.to_vec()),
                b"maxage" => match positive(value) {
                    Some(age) => filter.age_s_max = Some(age),
                    None => return Err(b"-ERR maxage is not an integer or out of range\r\n".to_vec()),
                },
                b"skipme" if value.eq_ignore_ascii_case(b"yes") => filter.skips_me = true,
                b"skipme" if value.eq_ignore_ascii_case(b"no") => filter.skips_me = false,
                _ => return Err(b"-ERR syntax error\r\n".to_vec()),
            }
        }
        Ok(filter)
    }

    fn admits(&self, client: &Client, me: ClientId, now_s: u64) -> bool {
        let is = |wanted: &Option<Vec<u8>>, text: &[u8]| wanted.as_ref().is_none_or(|w| w == text);
        (self.ids.is_empty() || self.ids.contains(&client.id.0))
            && is(&self.address, client.address.to_string().as_bytes())
            && is(&self.local_address, client.local_address.to_string().as_bytes())
            && is(&self.kind, client.kind().as_bytes())
            && is(&self.user, &client.with_names(|names| names.user.clone()))
            && self.age_s_max.is_none_or(|age| now_s.saturating_sub(client.connected_at_s) >= age)
            && !(self.skips_me && client.id == me)
    }
}

/// True for what says something of clients and changes nothing: the upstream may refuse it, and counts it, before it is
/// answered.
fn is_counted_upstream(name: &str) -> bool {
    matches!(name, "client|id" | "client|info" | "client|list" | "client|getname")
}

fn is_kind(kind: &[u8]) -> bool {
    matches!(kind, b"normal" | b"master" | b"replica" | b"slave" | b"pubsub")
}

fn unknown_kind(kind: &[u8]) -> Vec<u8> {
    [b"-ERR Unknown client type '", kind, b"'\r\n"].concat()
}

fn positive(text: &[u8]) -> Option<u64> {
    strict_i64(text).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0)
}

pub(super) fn bulk(text: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

pub(super) fn integer(n: u64) -> Vec<u8> {
    format!(":{n}\r\n").into_bytes()
}

pub(super) fn null(protocol: Protocol) -> Vec<u8> {
    match protocol {
        Protocol::Resp2 => b"$-1\r\n".to_vec(),
        Protocol::Resp3 => b"_\r\n".to_vec(),
    }
}

pub(super) fn arity_error(name: &str) -> Vec<u8> {
    format!("-ERR wrong number of arguments for '{name}' command\r\n").into_bytes()
}
