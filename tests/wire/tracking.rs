//! Client-side tracking asked for by clients: modes, redirection, and what is told of them, in all pairs of protocols.
//!
//! The same script runs through Larder and at an equal server; the clients' numbers, which differ, are replaced by names
//! before the bytes are compared.

use crate::support::{Client, Kind, Larder, Server, Value, assert_same, encode, wait_until, words};
use crate::{OK, error_of};
use std::net::SocketAddr;

/// A client that tracks, one that it redirects to, and one that writes.
struct Trio {
    tracker: Client,
    target: Client,
    writer: Client,
    names: Vec<(String, &'static str)>,
}

/// The same three twice: through Larder, and at an equal server.
struct Pair {
    through: Trio,
    direct: Trio,
    _processes: (Larder, Server, Server),
}

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Tracker,
    Target,
    Writer,
}

use Who::{Target, Tracker, Writer};

// === impl Trio ===

impl Trio {
    fn connect(address: SocketAddr, protocols: (u8, u8)) -> Self {
        let mut tracker = Client::speaking(protocols.0, address);
        let mut target = Client::speaking(protocols.1, address);
        let names = vec![
            (tracker.ask("CLIENT ID").int().to_string(), "<tracker>"),
            (target.ask("CLIENT ID").int().to_string(), "<target>"),
        ];
        Self { tracker, target, writer: Client::connect(address), names }
    }

    fn client(&mut self, who: Who) -> &mut Client {
        match who {
            Tracker => &mut self.tracker,
            Target => &mut self.target,
            Writer => &mut self.writer,
        }
    }

    fn send(&mut self, who: Who, line: &str) {
        let words: Vec<String> = words(line).into_iter().map(|word| self.number(word)).collect();
        self.client(who).send(&words);
    }

    /// The next frame, with names for the numbers that stand in it.
    fn frame(&mut self, who: Who) -> Vec<u8> {
        let frame = self.client(who).frame();
        let mut text = String::from_utf8(frame).expect("these tests use text");
        for (number, name) in &self.names {
            text = text.replace(&format!(":{number}\r\n"), &format!(":{name}\r\n"));
        }
        text.into_bytes()
    }

    fn number(&self, word: &str) -> String {
        self.names.iter().find(|(_, name)| *name == word).map_or(word, |(number, _)| number).to_owned()
    }
}

// === impl Pair ===

impl Pair {
    fn start(kind: Kind, protocols: (u8, u8)) -> Self {
        let upstream = Server::start(kind, &[]);
        let direct = Server::start(kind, &[]);
        let larder = Larder::start(Some(&upstream), &[]);
        // Numbers of one place are never those of the other.
        drop((larder.client().run("PING"), direct.client().run("PING")));
        let (through, of_direct) =
            (Trio::connect(larder.address(), protocols), Trio::connect(direct.address(), protocols));
        Self { through, direct: of_direct, _processes: (larder, upstream, direct) }
    }

    /// Sends a command in both places.
    fn send(&mut self, who: Who, line: &str) {
        self.direct.send(who, line);
        self.through.send(who, line);
    }

    /// The next frame in both places, which must be the same.
    #[track_caller]
    fn frame(&mut self, who: Who, what: &str) -> Vec<u8> {
        let (direct, through) = (self.direct.frame(who), self.through.frame(who));
        assert_same(&format!("{who:?}: {what}"), &direct, &through);
        through
    }

    #[track_caller]
    fn run(&mut self, who: Who, line: &str) -> Vec<u8> {
        self.send(who, line);
        self.frame(who, line)
    }

    #[track_caller]
    fn script(&mut self, steps: &[(Who, &str)]) {
        for (who, line) in steps {
            self.run(*who, line);
        }
    }
}

/// Every pair of protocols at redis-server, and one of each at Valkey.
fn pairs() -> impl Iterator<Item = (Kind, (u8, u8))> {
    let redis = [(2, 2), (2, 3), (3, 2), (3, 3)].map(|protocols| (Kind::Redis, protocols));
    redis.into_iter().chain([(Kind::Valkey, (2, 2)), (Kind::Valkey, (3, 3))])
}

#[test]
fn invalidations_reach_the_client_that_they_are_redirected_to() {
    for (kind, protocols) in pairs() {
        let mut pair = Pair::start(kind, protocols);
        pair.script(&[(Target, "SUBSCRIBE __redis__:invalidate"), (Tracker, "CLIENT TRACKING ON REDIRECT <target>")]);
        for value in ["1", "2", "3"] {
            pair.script(&[(Tracker, "GET k"), (Tracker, "MGET a b"), (Writer, &format!("SET k {value}"))]);
            let push = pair.frame(Target, "SET by another");
            assert!(push.ends_with(b"*1\r\n$1\r\nk\r\n"), "{}", push.escape_ascii());
        }
        pair.script(&[(Tracker, "GET k"), (Tracker, "SET k own")]);
        pair.frame(Target, "SET by the tracker itself");
        pair.script(&[(Tracker, "GET k"), (Writer, "FLUSHDB")]);
        let everything = pair.frame(Target, "FLUSHDB by another");
        // Null has the form of the tracker's protocol, not of the target's.
        let null: &[u8] = if protocols.0 == 3 { b"_\r\n" } else { b"$-1\r\n" };
        assert!(everything.ends_with(null), "{}", everything.escape_ascii());
        pair.script(&[(Tracker, "FLUSHALL")]);
        pair.frame(Target, "FLUSHALL by the tracker itself");
        pair.script(&[(Tracker, "GET k"), (Tracker, "CLIENT TRACKING OFF"), (Writer, "SET k 4")]);
        pair.script(&[(Tracker, "CLIENT TRACKING ON REDIRECT <target>"), (Tracker, "GET k2"), (Writer, "SET k2 1")]);
        let next = pair.frame(Target, "after OFF and ON");
        assert!(next.ends_with(b"$2\r\nk2\r\n"), "nothing was sent while it was off: {}", next.escape_ascii());
    }
}

#[test]
fn every_mode_can_be_redirected() {
    for (kind, protocols) in pairs() {
        let mut pair = Pair::start(kind, protocols);
        pair.script(&[
            (Target, "SUBSCRIBE __redis__:invalidate"),
            (Tracker, "CLIENT TRACKING ON BCAST PREFIX a: PREFIX b: REDIRECT <target>"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Writer, "SET c:1 x"),
            (Writer, "SET a:1 x"),
        ]);
        pair.frame(Target, "a key with one of the prefixes");
        pair.script(&[(Tracker, "CLIENT TRACKING ON BCAST PREFIX c: REDIRECT <target>"), (Writer, "SET c:1 x")]);
        pair.frame(Target, "a prefix that was added");
        pair.script(&[
            (Tracker, "CLIENT TRACKING ON BCAST PREFIX aa REDIRECT <target>"),
            (Tracker, "CLIENT TRACKING ON BCAST PREFIX a:2 REDIRECT <target>"),
            (Tracker, "CLIENT TRACKING ON REDIRECT <target>"),
            (Tracker, "CLIENT TRACKING OFF"),
            (Tracker, "CLIENT TRACKING ON NOLOOP REDIRECT <target>"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Tracker, "MGET own other"),
            (Tracker, "SET own x"),
            (Writer, "SET other x"),
        ]);
        let push = pair.frame(Target, "NOLOOP");
        assert!(push.ends_with(b"$5\r\nother\r\n"), "own writes are left out: {}", push.escape_ascii());
        pair.script(&[
            (Tracker, "CLIENT TRACKING OFF"),
            (Tracker, "CLIENT TRACKING ON BCAST NOLOOP REDIRECT <target>"),
            (Tracker, "SET own y"),
            (Writer, "SET other y"),
        ]);
        let push = pair.frame(Target, "BCAST NOLOOP");
        assert!(push.ends_with(b"*1\r\n$5\r\nother\r\n"), "own writes are left out: {}", push.escape_ascii());
        pair.script(&[
            (Tracker, "CLIENT TRACKING OFF"),
            (Tracker, "CLIENT TRACKING ON OPTIN REDIRECT <target>"),
            (Tracker, "CLIENT CACHING NO"),
            (Tracker, "GET passed"),
            (Tracker, "CLIENT CACHING YES"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Tracker, "GET wanted"),
            (Writer, "SET passed x"),
            (Writer, "SET wanted x"),
        ]);
        let push = pair.frame(Target, "OPTIN");
        assert!(push.ends_with(b"$6\r\nwanted\r\n"), "{}", push.escape_ascii());
        pair.script(&[
            (Tracker, "CLIENT TRACKING ON OPTOUT REDIRECT <target>"),
            (Tracker, "CLIENT TRACKING OFF"),
            (Tracker, "CLIENT TRACKING ON OPTOUT REDIRECT <target>"),
            (Tracker, "CLIENT CACHING YES"),
            (Tracker, "CLIENT CACHING NO"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Tracker, "GET passed"),
            (Tracker, "GET wanted"),
            (Writer, "SET passed y"),
            (Writer, "SET wanted y"),
        ]);
        let push = pair.frame(Target, "OPTOUT");
        assert!(push.ends_with(b"$6\r\nwanted\r\n"), "{}", push.escape_ascii());
    }
}

#[test]
fn a_resp2_target_hears_only_while_it_is_subscribed_to_anything() {
    let mut pair = Pair::start(Kind::Redis, (3, 2));
    pair.script(&[
        (Tracker, "CLIENT TRACKING ON REDIRECT <target>"),
        (Tracker, "GET k"),
        (Writer, "SET k dropped"),
        (Target, "PING"),
    ]);
    for (begin, end) in
        [("SUBSCRIBE ch", "UNSUBSCRIBE"), ("PSUBSCRIBE p*", "PUNSUBSCRIBE"), ("SSUBSCRIBE s", "SUNSUBSCRIBE")]
    {
        pair.script(&[(Target, begin), (Tracker, "GET k"), (Writer, "SET k heard")]);
        let message = pair.frame(Target, begin);
        assert!(message.starts_with(b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n"));
        // What was sent before stands before the answers to these.
        pair.script(&[(Tracker, "GET k"), (Writer, "SET k heard")]);
        pair.send(Target, "PING");
        pair.frame(Target, "an invalidation before PING");
        pair.frame(Target, "PING");
        pair.script(&[(Tracker, "GET k"), (Writer, "SET k heard")]);
        pair.send(Target, end);
        pair.frame(Target, "an invalidation before the end");
        pair.frame(Target, end);
    }
    // In RESP3 it hears in any case, and among its own replies.
    pair.send(Target, "HELLO 3");
    pair.direct.target.frame();
    pair.through.target.frame();
    pair.script(&[(Target, "GET k"), (Tracker, "GET k"), (Writer, "SET k pushed")]);
    let push = pair.frame(Target, "a push");
    assert!(push.starts_with(b">2\r\n$10\r\ninvalidate\r\n"), "{}", push.escape_ascii());
    pair.send(Target, "CLIENT REPLY OFF");
    pair.script(&[(Tracker, "GET k"), (Writer, "SET k pushed")]);
    pair.frame(Target, "a push for who wants no replies");
    pair.run(Target, "CLIENT REPLY ON");
}

#[test]
fn a_real_message_on_the_channel_is_one() {
    for protocols in [(3, 2), (2, 3)] {
        let mut pair = Pair::start(Kind::Redis, protocols);
        pair.script(&[(Target, "SUBSCRIBE __redis__:invalidate"), (Writer, "PUBLISH __redis__:invalidate hello")]);
        pair.frame(Target, "a message");
        pair.script(&[
            (Tracker, "CLIENT TRACKING ON REDIRECT <target>"),
            (Tracker, "GET k"),
            (Writer, "PUBLISH __redis__:invalidate hello"),
        ]);
        pair.frame(Target, "a message");
        pair.run(Writer, "SET k v");
        pair.frame(Target, "an invalidation");
    }
}

#[test]
fn what_is_asked_of_tracking_speaks_of_larders_clients() {
    for (kind, protocols) in pairs() {
        let mut pair = Pair::start(kind, protocols);
        pair.script(&[
            (Tracker, "CLIENT GETREDIR"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Tracker, "CLIENT TRACKING ON REDIRECT <target>"),
            (Tracker, "CLIENT GETREDIR"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Tracker, "CLIENT TRACKING ON REDIRECT 987654321"),
            (Tracker, "CLIENT TRACKING ON REDIRECT 0"),
            (Tracker, "CLIENT TRACKING ON REDIRECT -1"),
            (Tracker, "CLIENT TRACKING ON REDIRECT x"),
            (Tracker, "CLIENT TRACKING ON REDIRECT"),
            (Tracker, "CLIENT TRACKING ON REDIRECT <target> REDIRECT <tracker>"),
            (Tracker, "CLIENT TRACKING ON NOSUCH REDIRECT <target>"),
            (Tracker, "CLIENT TRACKING ON OPTIN OPTOUT REDIRECT <target>"),
            (Tracker, "CLIENT TRACKING ON BCAST REDIRECT <target>"),
            (Tracker, "CLIENT TRACKING MAYBE REDIRECT <target>"),
            (Tracker, "CLIENT TRACKING OFF REDIRECT 987654321"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Tracker, "CLIENT TRACKING ON"),
            (Tracker, "CLIENT GETREDIR"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Tracker, "CLIENT TRACKING OFF REDIRECT <target>"),
            (Tracker, "CLIENT GETREDIR"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Tracker, "CLIENT TRACKING ON NOSUCH"),
            (Tracker, "GET k"),
            (Tracker, "CLIENT TRACKINGINFO"),
        ]);
    }
}

#[test]
fn tracking_that_begins_in_a_transaction_lasts() {
    for protocols in [(2, 3), (3, 2)] {
        let mut pair = Pair::start(Kind::Redis, protocols);
        pair.script(&[
            (Target, "SUBSCRIBE ch"),
            (Tracker, "MULTI"),
            (Tracker, "CLIENT TRACKING ON REDIRECT <target>"),
            (Tracker, "CLIENT GETREDIR"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Tracker, "CLIENT ID"),
            (Tracker, "EXEC"),
            (Tracker, "CLIENT GETREDIR"),
            (Tracker, "GET k"),
            (Writer, "SET k v"),
        ]);
        pair.frame(Target, "an invalidation");
        pair.script(&[
            (Tracker, "MULTI"),
            (Tracker, "CLIENT TRACKING OFF"),
            (Tracker, "DISCARD"),
            (Tracker, "CLIENT GETREDIR"),
            (Tracker, "MULTI"),
            (Tracker, "CLIENT TRACKING ON REDIRECT 987654321"),
            (Tracker, "CLIENT TRACKING OFF"),
            (Tracker, "EXEC"),
            (Tracker, "CLIENT GETREDIR"),
        ]);
        let on = ["CLIENT", "TRACKING", "ON"];
        let batch =
            [encode(&on), encode(&["GET", "k"]), encode(&["CLIENT", "GETREDIR"]), encode(&["GET", "k"])].concat();
        pair.direct.tracker.send_raw(&batch);
        pair.through.tracker.send_raw(&batch);
        for n in 0..4 {
            pair.frame(Tracker, &format!("reply {n} of a pipeline"));
        }
    }
}

#[test]
fn a_target_that_has_gone_is_told_of_as_the_server_tells_of_it() {
    /// How the target goes.
    #[derive(Clone, Copy, Debug)]
    enum Gone {
        Quit,
        Killed,
    }
    for (protocols, gone) in
        [((3, 2), Gone::Quit), ((3, 3), Gone::Killed), ((2, 3), Gone::Quit), ((2, 2), Gone::Killed)]
    {
        let mut pair = Pair::start(Kind::Redis, protocols);
        pair.script(&[(Tracker, "CLIENT TRACKING ON REDIRECT <target>"), (Tracker, "GET k")]);
        // Once this is answered it is gone, for the tracking client, too.
        match gone {
            Gone::Quit => pair.run(Target, "QUIT"),
            Gone::Killed => pair.run(Writer, "CLIENT KILL ID <target>"),
        };
        pair.run(Writer, "SET k 1");
        for round in 0..2 {
            if protocols.0 == 3 {
                let push = pair.frame(Tracker, "the target has gone");
                assert_eq!(push, b">2\r\n$21\r\ntracking-redir-broken\r\n:<target>\r\n", "{gone:?}");
            }
            pair.script(&[
                (Tracker, "CLIENT TRACKINGINFO"),
                (Tracker, "CLIENT GETREDIR"),
                (Tracker, "CLIENT TRACKING ON REDIRECT <target>"),
                (Tracker, "GET k"),
                (Writer, &format!("SET k again{round}")),
            ]);
        }
    }
}

/// A target whose connection breaks is gone soon.
#[test]
fn a_target_that_breaks_off_is_gone_soon() {
    let mut pair = Pair::start(Kind::Redis, (3, 3));
    let trio = &mut pair.through;
    trio.send(Tracker, "CLIENT TRACKING ON REDIRECT <target>");
    assert_eq!(trio.frame(Tracker), OK);
    trio.target = Client::speaking(3, pair._processes.0.address());
    wait_until("the tracker is told", || {
        trio.tracker.run("GET k");
        trio.writer.run("SET k 1");
        trio.tracker.run("PING");
        trio.tracker.has_push()
    });
    let push = Value::parse(&trio.tracker.push());
    assert_eq!(push.items()[0].bytes(), b"tracking-redir-broken");
}

#[test]
fn a_client_can_redirect_to_itself() {
    for (kind, protocols) in [(Kind::Redis, (3, 3)), (Kind::Valkey, (3, 3))] {
        let mut pair = Pair::start(kind, protocols);
        pair.script(&[
            (Tracker, "CLIENT TRACKING ON REDIRECT <tracker>"),
            (Tracker, "CLIENT TRACKINGINFO"),
            (Tracker, "CLIENT GETREDIR"),
            (Tracker, "GET k"),
            (Tracker, "SET k own"),
        ]);
        pair.frame(Tracker, "behind the reply to its own write");
        pair.script(&[(Tracker, "GET k"), (Writer, "SET k other")]);
        pair.frame(Tracker, "a write of another");
        pair.script(&[(Tracker, "GET k"), (Tracker, "MULTI"), (Tracker, "INCR n"), (Tracker, "SET k x")]);
        pair.run(Tracker, "EXEC");
        pair.frame(Tracker, "behind the reply to EXEC");
    }
    let mut pair = Pair::start(Kind::Redis, (2, 2));
    pair.script(&[
        (Tracker, "CLIENT TRACKING ON REDIRECT <tracker>"),
        (Tracker, "GET k"),
        (Tracker, "GET l"),
        (Writer, "SET k dropped"),
        (Tracker, "SUBSCRIBE ch"),
        (Writer, "SET l heard"),
    ]);
    pair.frame(Tracker, "a message");
}

/// What is told of tracking in lines for people.
#[test]
fn client_list_and_info_tell_of_tracking() {
    let mut pair = Pair::start(Kind::Redis, (2, 2));
    let told = |pair: &mut Pair| {
        let of = |trio: &mut Trio| {
            let info = trio.tracker.ask("CLIENT INFO").text();
            let field = |name: &str| {
                let value = info.split(' ').find_map(|field| field.strip_prefix(name)).expect("the field");
                trio.names.iter().find(|(number, _)| number == value).map_or(value, |(_, name)| name).to_owned()
            };
            let clients = trio.writer.ask("INFO clients").text();
            let tracking =
                clients.lines().find(|line| line.starts_with("tracking_clients:")).expect("a line").to_owned();
            (field("flags="), field("redir="), tracking)
        };
        let (direct, through) = (of(&mut pair.direct), of(&mut pair.through));
        assert_eq!(direct, through);
        through
    };
    assert_eq!(told(&mut pair), ("N".into(), "-1".into(), "tracking_clients:0".into()));
    pair.run(Tracker, "CLIENT TRACKING ON");
    assert_eq!(told(&mut pair), ("t".into(), "0".into(), "tracking_clients:1".into()));
    pair.script(&[(Tracker, "CLIENT TRACKING OFF"), (Tracker, "CLIENT TRACKING ON BCAST REDIRECT <target>")]);
    assert_eq!(told(&mut pair), ("tB".into(), "<target>".into(), "tracking_clients:1".into()));
    pair.run(Tracker, "RESET");
    assert_eq!(told(&mut pair), ("N".into(), "-1".into(), "tracking_clients:0".into()));
    // INFO of a client that tracks is Larder's, too.
    pair.run(Tracker, "CLIENT TRACKING ON REDIRECT <target>");
    assert_eq!(told(&mut pair).2, "tracking_clients:1");
    for trio in [&mut pair.direct, &mut pair.through] {
        let info = trio.tracker.ask("INFO clients").text();
        assert!(info.contains("tracking_clients:1\r\n"), "{info}");
    }
}

#[test]
fn hello_keeps_tracking_and_loses_no_invalidation() {
    let mut pair = Pair::start(Kind::Redis, (3, 2));
    pair.script(&[(Target, "SUBSCRIBE ch"), (Tracker, "CLIENT TRACKING ON REDIRECT <target>")]);
    for protocol in ["2", "3", "2", "3"] {
        pair.run(Tracker, "GET k");
        pair.send(Tracker, &format!("HELLO {protocol}"));
        pair.direct.tracker.frame();
        pair.through.tracker.frame();
        pair.script(&[(Tracker, "CLIENT TRACKINGINFO"), (Writer, "SET k v")]);
        pair.frame(Target, "an invalidation");
    }
    pair.script(&[(Tracker, "CLIENT TRACKING OFF"), (Tracker, "CLIENT TRACKING ON")]);
    // Whenever it comes, before or after the answer to HELLO, it comes.
    for round in 0..50 {
        let trio = &mut pair.through;
        trio.tracker.run("GET k");
        trio.writer.send(&["SET", "k", &round.to_string()]);
        assert!(trio.tracker.run("HELLO 3").starts_with(b"%"));
        trio.writer.frame();
        let push = trio.tracker.push();
        assert_eq!(push, b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n", "round {round}");
    }
}

/// Many trackers of one target share one connection upstream; what is not needed ends.
#[test]
fn targets_cost_one_connection_and_give_it_back() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "pool.idle_ms_max=500"]);
    if Larder::is_plain() {
        return;
    }
    let mut target = larder.client3();
    let id = target.ask("CLIENT ID").int();
    let connected = || upstream.info("clients", "connected_clients").parse::<i64>().expect("a number");
    let mut trackers: Vec<Client> = (0..8).map(|_| larder.client()).collect();
    let mut writer = larder.client();
    writer.run("GET k");
    let before = connected();
    for tracker in &mut trackers {
        assert_eq!(tracker.run(&format!("CLIENT TRACKING ON REDIRECT {id}")), OK);
        tracker.run("GET k");
    }
    // Each tracker has a connection of its own, and the target one for all. (A spare one may have come or gone.)
    assert!((8 + 1..=8 + 2).contains(&(connected() - before)), "{before} -> {}", connected());
    writer.run("SET k v");
    for _ in &trackers {
        assert_eq!(target.push(), b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n");
    }
    drop(trackers);
    wait_until("the connections have ended", || connected() <= before);
    // And begin anew.
    let mut tracker = larder.client();
    assert_eq!(tracker.run(&format!("CLIENT TRACKING ON REDIRECT {id}")), OK);
    tracker.run("GET k");
    writer.run("SET k w");
    assert_eq!(target.push(), b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n");
}

/// Invalidations may have been missed: the target is disconnected, as the server's end of it would have been.
#[test]
fn a_target_does_not_survive_the_loss_of_its_invalidations() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut target, mut tracker) = (larder.client3(), larder.client3());
    let id = target.ask("CLIENT ID").int();
    assert_eq!(tracker.run(&format!("CLIENT TRACKING ON REDIRECT {id}")), OK);
    let upstream_id = upstream.client().ask("CLIENT LIST").text();
    let redir = upstream_id.lines().find_map(|line| {
        let redir = line.split(' ').find_map(|field| field.strip_prefix("redir="))?;
        redir.parse::<i64>().ok().filter(|id| *id > 0)
    });
    let redir = redir.expect("somebody redirects");
    assert_eq!(upstream.client().run(&format!("CLIENT KILL ID {redir}")), b":1\r\n");
    assert_eq!(target.rest(), b"");
    assert_eq!(
        error_of(&tracker.run(&format!("CLIENT TRACKING ON REDIRECT {id}"))),
        "ERR The client ID you want redirect to does not exist"
    );
}
