//! Larder over the wire, as its users meet it: a real binary in front of real servers, and raw bytes.
//!
//! Wherever an upstream could have answered by itself, the bytes that come through Larder are compared with those of a
//! direct connection; what is written out by hand here is only what Larder promises beyond that.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod blocking;
mod choosy;
mod clients;
mod compressed;
mod databases;
mod embedded;
mod large;
mod limits;
mod monitor;
mod outages;
mod outages_crowd;
mod outages_faults;
mod outages_replies;
mod outages_stale;
mod oversized;
mod pause;
mod pipelines;
mod pubsub;
mod reads;
mod refused;
mod scripts;
mod tracking;
mod transactions;

use support::{Client, Larder, Server, Value, assert_same, wait_until};

/// An upstream with Larder in front of it, and an equal server without.
struct Twins {
    upstream: Server,
    larder: Larder,
    direct: Server,
}

/// The same client twice: one through Larder, one at the equal server.
struct Both {
    through: Client,
    direct: Client,
}

impl Twins {
    fn start() -> Self {
        Self::with_flags(&[])
    }

    fn with_flags(flags: &[&str]) -> Self {
        let upstream = Server::redis(flags);
        let larder = Larder::start(Some(&upstream), &[]);
        Self { upstream, larder, direct: Server::redis(flags) }
    }

    #[track_caller]
    fn client(&self, protocol: u8) -> Both {
        Both {
            through: Client::speaking(protocol, self.larder.address()),
            direct: Client::speaking(protocol, self.direct.address()),
        }
    }
}

impl Both {
    /// Runs a command in both places, asserts that the replies are the same bytes, and returns them.
    #[track_caller]
    fn run(&mut self, line: &str) -> Vec<u8> {
        self.cmd(&support::words(line))
    }

    #[track_caller]
    fn cmd<A: AsRef<[u8]> + std::fmt::Debug>(&mut self, args: &[A]) -> Vec<u8> {
        self.send(args);
        self.frame(&format!("{args:?}"))
    }

    #[track_caller]
    fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        self.direct.send(args);
        self.through.send(args);
    }

    /// Sends the same bytes to both.
    #[track_caller]
    fn send_raw(&mut self, bytes: &[u8]) {
        self.direct.send_raw(bytes);
        self.through.send_raw(bytes);
    }

    /// The next frame of both, pushes included.
    #[track_caller]
    fn frame(&mut self, what: &str) -> Vec<u8> {
        let (direct, through) = (self.direct.frame(), self.through.frame());
        assert_same(what, &direct, &through);
        through
    }

    /// Runs every line of a script.
    #[track_caller]
    fn script(&mut self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.run(line);
        }
    }
}

/// Runs `reads` and asserts that the upstream was spared them: it has not counted one more call of `command`.
#[track_caller]
fn assert_spared<T>(upstream: &Server, command: &str, reads: impl FnOnce() -> T) -> T {
    let before = upstream.calls(command);
    let result = reads();
    let asked = upstream.calls(command) - before;
    assert!(asked == 0 || Larder::is_plain(), "the upstream was asked {command} {asked} times more");
    result
}

/// Polls through `client` until the command's reply is `wanted`.
#[track_caller]
fn wait_for_reply(client: &mut Client, line: &str, wanted: &[u8]) {
    wait_until(&format!("{line} answers {}", wanted.escape_ascii()), || client.run(line) == wanted);
}

/// A bulk string as it stands on the wire.
fn bulk(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}

const NIL2: &[u8] = b"$-1\r\n";
const NIL3: &[u8] = b"_\r\n";
const OK: &[u8] = b"+OK\r\n";

/// The text of an error reply.
#[track_caller]
fn error_of(reply: &[u8]) -> String {
    match Value::parse(reply) {
        Value::Error(text) => String::from_utf8_lossy(&text).into_owned(),
        other => panic!("an error was expected, not {other:?}"),
    }
}
