//! MONITOR: who watches, and what a line says.
//!
//! A watching client sees what Larder's clients ask for, in the order in which it is accepted. Two sources meet in its
//! output. What goes down a shared link, comes from L1 or is answered by Larder is told *here*, when it is accepted. What has
//! a connection of its own (transactions, scripts, blocking commands), what scripts do, and what strangers do at the server
//! the server tells: each watching client has a connection in MONITOR there, whose lines of Larder's connections are turned
//! into lines of the clients that they are lent to, or left out ([`Translator`]).
//!
//! Both keep one order: what is told here is told before anything more can be sent for that client; and while somebody
//! watches, a reply that came by a connection of its own is released only when those who watch have caught up with it
//! ([`crate::port::CatchUp`]).
//!
//! Cost without watchers: one relaxed load for each pass over a client's input. Bounds: as for subscribers, a client that
//! leaves too much unread is closed (`limits.subscriber_output_bytes_max`).

use crate::clients::{Client, ClientId};
use crate::port::{CatchUp, Delivery, Port, Seq};
use crate::upstream::addresses::{self, Owner};
use bytes::Bytes;
use larder_protocol::args::Args;
use larder_protocol::table::{Class, Command, Flags};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What Larder's own PING of a watching connection carries, to be told from a client's.
pub const MARK: &[u8] = b"larder.monitor.mark";

/// The clients that watch.
#[derive(Debug, Default)]
pub struct Monitors {
    count: AtomicUsize,
    ports: Mutex<Vec<(ClientId, Arc<Port>)>>,
    bytes_max: usize,
    closed: AtomicU64,
}

/// A client's place among those who watch, until it is dropped.
#[derive(Debug)]
pub struct Watching {
    monitors: Arc<Monitors>,
    client: Arc<Client>,
}

// === impl Monitors ===

impl Monitors {
    /// Nobody yet; a client for which more bytes of lines wait in its port is disconnected.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    /// True if somebody watches.
    #[inline]
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// How many were disconnected because they left too much unread.
    pub fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }

    /// A client watches from now on.
    pub fn watch(self: &Arc<Self>, client: &Arc<Client>) -> Watching {
        let mut ports = self.lock();
        ports.push((client.id, client.port.clone()));
        self.count.store(ports.len(), Ordering::Relaxed);
        client.monitoring.store(true, Ordering::Relaxed);
        Watching { monitors: self.clone(), client: client.clone() }
    }

    /// Tells all that watch.
    pub fn tell(&self, line: &Bytes) {
        for (_, port) in self.lock().iter() {
            if port.leave(Delivery::Line(line.clone())) {
                port.wake();
            }
            if port.message_bytes() > self.bytes_max && !port.is_killed() {
                self.closed.fetch_add(1, Ordering::Relaxed);
                port.kill();
            }
        }
    }

    /// Asks all that watch, but `me`, to tell `port` by `seq` when they have caught up with the server: how many were asked.
    pub fn ask_to_catch_up(&self, me: ClientId, port: &Arc<Port>, seq: Seq) -> u32 {
        let mut asked = 0;
        for (_, watching) in self.lock().iter().filter(|(id, _)| *id != me) {
            if watching.leave(Delivery::CatchUp(CatchUp::new(port.clone(), seq))) {
                watching.wake();
            }
            asked += 1;
        }
        asked
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(ClientId, Arc<Port>)>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut ports = self.monitors.lock();
        ports.retain(|(id, _)| *id != self.client.id);
        self.monitors.count.store(ports.len(), Ordering::Relaxed);
        self.client.monitoring.store(false, Ordering::Relaxed);
    }
}

/// True if the server shows such a request to those who watch, and shows it when it is called and not, as scripts, itself.
pub fn is_shown(command: &Command, args: Args<'_>) -> bool {
    let hidden = Flags::ADMIN | Flags::SKIP_MONITOR;
    command.accepts(args.len()) && !command.flags.intersects(hidden) && command.class != Class::Refused
}

/// The line of a request: `at` is the time since the epoch.
pub fn line(at: Duration, database: u32, address: SocketAddr, command: &Command, args: Args<'_>) -> Bytes {
    let head = format!("+{}.{:06} [{database} {address}]", at.as_secs(), at.subsec_micros());
    let mut line = head.into_bytes();
    let secret_from = match &*command.name {
        "auth" => 1..args.len(),
        "hello" => secrets_of_hello(args),
        _ => 0..0,
    };
    for (at, word) in args.iter().enumerate() {
        line.push(b' ');
        put_quoted(if secret_from.contains(&at) { b"(redacted)" } else { word }, &mut line);
    }
    line.extend_from_slice(b"\r\n");
    line.into()
}

fn secrets_of_hello(args: Args<'_>) -> std::ops::Range<usize> {
    let auth = args.iter().skip(2).position(|word| word.eq_ignore_ascii_case(b"auth"));
    auth.map_or(0..0, |at| at + 3..at + 5)
}

/// As the server quotes (`sdscatrepr`).
fn put_quoted(word: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in word {
        match byte {
            b'\\' | b'"' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x07 => out.extend_from_slice(b"\\a"),
            0x08 => out.extend_from_slice(b"\\b"),
            b' '..=b'~' => out.push(*byte),
            _ => out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
    out.push(b'"');
}

/// True for a line of the server's MONITOR, which no reply looks like.
pub fn is_line(frame: &[u8]) -> bool {
    frame.first() == Some(&b'+') && frame.get(1).is_some_and(u8::is_ascii_digit) && frame.contains(&b'[')
}

/// Turns the server's lines into what a client of Larder is to see: Larder's connections are its clients, or nobody.
///
/// What a script does stands behind the script's own line and bears no address: it is told of if that was.
#[derive(Debug, Default)]
pub struct Translator {
    /// The last line that was not a script's was of a connection that is nobody's.
    hides_scripts: bool,
}

// === impl Translator ===

impl Translator {
    /// The next line, in the order of the server's; `None` if it is not to be seen.
    pub fn translate(&mut self, line: Bytes) -> Option<Bytes> {
        let Some((before, address, behind)) = address_in(&line) else {
            self.hides_scripts &= is_of_a_script(&line);
            return (!self.hides_scripts).then_some(line);
        };
        let owner = addresses::owner(address);
        self.hides_scripts = owner == Owner::Larder;
        match owner {
            Owner::Stranger => Some(line),
            Owner::Larder => None,
            Owner::Client(_) if behind.windows(MARK.len()).any(|window| window == MARK) => None,
            Owner::Client(client) => Some([before, client.to_string().as_bytes(), behind].concat().into()),
        }
    }
}

fn is_of_a_script(line: &[u8]) -> bool {
    let open = line.iter().position(|b| *b == b'[').unwrap_or_default();
    let words = line[open..].splitn(3, |b| *b == b' ').nth(1);
    words == Some(b"lua]")
}

/// The address in a line, and what stands before and behind it; `None` for what a script does, or for a socket of the system.
fn address_in(line: &[u8]) -> Option<(&[u8], SocketAddr, &[u8])> {
    let open = line.iter().position(|b| *b == b'[')?;
    let start = open + line[open..].iter().position(|b| *b == b' ')? + 1;
    let end = start + line[start..].windows(2).position(|two| two == b"] ")?;
    let address = std::str::from_utf8(&line[start..end]).ok()?.parse().ok()?;
    Some((&line[..start], address, &line[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::addresses::Registered;
    use larder_protocol::args::OwnedArgs;
    use larder_protocol::table::{Resolved, Table};

    fn line_of(words: &[&[u8]]) -> String {
        let (table, args) = (Table::builtin(), OwnedArgs::new(words));
        let Resolved::Known(command) = table.resolve(args.args()) else { panic!("{words:?} is not known") };
        let at = Duration::from_micros(1_700_000_000_000_042);
        let line = line(at, 9, SocketAddr::from(([127, 0, 0, 1], 5)), command, args.args());
        String::from_utf8(line.to_vec()).expect("text")
    }

    #[test]
    fn quotes_as_the_server_does() {
        let line = line_of(&[b"SET", b"a \"\\\n\r\t\x07\x08\x01\xc3", b""]);
        let wanted = "+1700000000.000042 [9 127.0.0.1:5] \"SET\" \"a \\\"\\\\\\n\\r\\t\\a\\b\\x01\\xc3\" \"\"\r\n";
        assert_eq!(line, wanted);
    }

    #[test]
    fn tells_no_secrets() {
        assert!(line_of(&[b"auth", b"u", b"p"]).ends_with("\"auth\" \"(redacted)\" \"(redacted)\"\r\n"));
        assert!(
            line_of(&[b"HELLO", b"3", b"SETNAME", b"n", b"auth", b"u", b"p"])
                .ends_with("\"HELLO\" \"3\" \"SETNAME\" \"n\" \"auth\" \"(redacted)\" \"(redacted)\"\r\n")
        );
    }

    #[test]
    fn turns_larders_connections_into_its_clients() {
        let [own, lent, client] = [[192, 0, 2, 3]; 3].map(std::net::IpAddr::from);
        let (own, lent) = (Registered::new((own, 1).into()), (Registered::new((lent, 2).into())));
        lent.lease(Some((client, 3).into()));
        let mut translator = Translator::default();
        let mut told = |line: &'static str| {
            let line = translator.translate(Bytes::from_static(line.as_bytes()));
            line.map(|line| String::from_utf8_lossy(&line).into_owned())
        };
        assert_eq!(told("+1.2 [0 192.0.2.3:1] \"GET\" \"k\"\r\n"), None);
        assert_eq!(
            told("+1.2 [0 192.0.2.3:2] \"GET\" \"[0 192.0.2.3:1] \"\r\n").as_deref(),
            Some("+1.2 [0 192.0.2.3:3] \"GET\" \"[0 192.0.2.3:1] \"\r\n")
        );
        assert_eq!(told("+1.2 [0 192.0.2.3:2] \"PING\" \"larder.monitor.mark\"\r\n"), None);
        for others in
            ["+1.2 [0 lua] \"GET\" \"k\"\r\n", "+1.2 [0 192.0.2.3:9] \"GET\"\r\n", "+1.2 [0 unix:/s] \"GET\"\r\n"]
        {
            assert!(is_line(others.as_bytes()));
            assert_eq!(told(others).as_deref(), Some(others));
        }
        // What a script of Larder's own does is nobody's, until another line shows that it has ended.
        assert_eq!(told("+1.2 [0 192.0.2.3:1] \"EVALSHA\" \"x\" \"0\"\r\n"), None);
        assert_eq!(told("+1.2 [0 lua] \"GET\" \"k\"\r\n"), None);
        assert!(told("+1.2 [0 unix:/s] \"GET\" \" [0 lua] \"\r\n").is_some());
        assert!(told("+1.2 [0 lua] \"GET\" \"k\"\r\n").is_some());
        assert_eq!(told("+1.2 [0 192.0.2.3:1] \"EVALSHA\" \"x\" \"0\"\r\n"), None);
        assert!(told("+1.2 [0 192.0.2.3:2] \"EVAL\" \"x\" \"0\"\r\n").is_some());
        assert!(told("+1.2 [0 lua] \"GET\" \"k\"\r\n").is_some());
        drop((own, lent));
    }
}
