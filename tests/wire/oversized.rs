//! Requests that the upstream closes a connection at: the loss is the sender's, and nobody else's.
//!
//! `proto-max-bulk-len` and `client-query-buffer-limit` of the upstream can be as low as 1 MB, and can change at any time.

use std::time::Duration;

use crate::support::{Client, Kind, Larder, Server, encode, wait_until};
use crate::{OK, bulk, error_of};

const MB: usize = 1 << 20;
const KINDS: [Kind; 2] = [Kind::Redis, Kind::Valkey];

/// Somebody else of the same scope: a cached key, a subscription, and a link whose loss would show.
struct Bystander {
    larder: Larder,
    upstream: Server,
    reader: Client,
    subscriber: Client,
}

impl Bystander {
    fn start(kind: Kind, flags: &[&str]) -> Self {
        let upstream = Server::start(kind, flags);
        let larder = Larder::start(Some(&upstream), &[]);
        let (mut reader, mut subscriber) = (larder.client(), larder.client3());
        assert_eq!(reader.run("SET cached value"), OK);
        assert_eq!(reader.run("GET cached"), bulk("value"));
        subscriber.send(&["SUBSCRIBE", "news"]);
        subscriber.frame();
        if !Larder::is_plain() {
            // It is told now and then.
            wait_until("the fill is counted", || larder.figure("link_fills") == 1);
        }
        Self { larder, upstream, reader, subscriber }
    }

    /// Nothing was lost, and nothing counts against the upstream.
    #[track_caller]
    fn has_seen_nothing(&mut self, after: &str) {
        assert_eq!(self.reader.run("GET cached"), bulk("value"), "after {after}");
        assert_eq!(self.reader.run("SET other 1"), OK, "after {after}");
        assert_eq!(self.larder.client().run("PUBLISH news n"), b":1\r\n", "after {after}");
        assert!(self.subscriber.frame().starts_with(b">3\r\n$7\r\nmessage"), "after {after}");
        if Larder::is_plain() {
            return;
        }
        // A partition that had been emptied would have been filled anew.
        assert_eq!(self.larder.figure("link_fills"), 1, "after {after}");
        assert!(!self.larder.output().contains("link lost"), "after {after}: {}", self.larder.output());
        let breaker = self.larder.client().value(&["CACHE", "BREAKER"]);
        assert!(!format!("{breaker:?}").contains("lost"), "after {after}: {breaker:?}");
    }
}

/// What a client gets before it is closed.
fn until_closed(mut client: Client, request: &[u8]) -> Vec<u8> {
    client.read_timeout(Duration::from_secs(5));
    // It may be closed before all has been written.
    let _: std::io::Result<()> = client.try_send_raw(request);
    client.rest()
}

/// Requests with an argument of more than a megabyte, each on a path of its own through Larder.
fn oversized() -> Vec<(&'static str, Vec<u8>)> {
    let long = &"x".repeat(MB + 1)[..];
    let in_multi = [encode(&["MULTI"]), encode(&["SET", "k", long])].concat();
    let behind = [encode(&["SET", "k", "1"]), encode(&["SET", "k", long]), encode(&["GET", "k"])].concat();
    vec![
        ("SET", encode(&["SET", "k", long])),
        ("GET of a long key", encode(&["GET", long])),
        ("MGET of a long key", encode(&["MGET", "cached", long])),
        ("PUBLISH", encode(&["PUBLISH", "elsewhere", long])),
        ("EVAL", encode(&["EVAL", "return 1", "0", long])),
        ("an unknown command", encode(&["NOSUCHCOMMAND", long])),
        ("in MULTI", in_multi),
        ("between others", behind),
    ]
}

#[test]
fn an_argument_beyond_the_upstreams_limit_ends_only_its_client_as_directly() {
    for kind in KINDS {
        let flags = ["--proto-max-bulk-len", "1048576"];
        let direct = Server::start(kind, &flags);
        let mut bystander = Bystander::start(kind, &flags);
        for (what, request) in oversized() {
            let wanted = until_closed(direct.client(), &request);
            assert!(wanted.ends_with(b"-ERR Protocol error: invalid bulk length\r\n"), "{}", wanted.escape_ascii());
            let got = until_closed(bystander.larder.client(), &request);
            assert_eq!(got, wanted, "{kind:?}, {what}: {}", got.escape_ascii());
            bystander.has_seen_nothing(what);
        }
        // As long as it may be.
        let most = "x".repeat(MB);
        let mut client = bystander.larder.client();
        client.ok(&["SET", "most", &most]);
        assert_eq!(client.cmd(&["STRLEN", "most"]), b":1048576\r\n");
        assert_eq!(client.cmd(&["GET", "most"]).len(), MB + "$1048576\r\n\r\n".len());
        bystander.has_seen_nothing("what may be");
    }
}

#[test]
fn a_limit_that_is_lowered_later_is_heeded_and_one_that_is_raised_too() {
    for kind in KINDS {
        let mut bystander = Bystander::start(kind, &[]);
        let request = encode(&["SET", "k", &"x".repeat(3 * MB)]);
        let mut client = bystander.larder.client();
        assert_eq!(client.pipeline(&request, 1)[0], OK);
        for directly in [true, false] {
            let mut admin = if directly { bystander.upstream.client() } else { bystander.larder.client() };
            assert_eq!(admin.run("CONFIG SET proto-max-bulk-len 2097152"), OK);
            let told = until_closed(bystander.larder.client(), &request);
            assert_eq!(told, b"-ERR Protocol error: invalid bulk length\r\n", "{}", told.escape_ascii());
            bystander.has_seen_nothing("a lower limit");
            assert_eq!(admin.run("CONFIG SET proto-max-bulk-len 512mb"), OK);
            assert_eq!(bystander.larder.client().pipeline(&request, 1)[0], OK);
            bystander.has_seen_nothing("a higher limit");
        }
    }
}

#[test]
fn a_request_beyond_the_upstreams_query_buffer_is_lost_alone() {
    for kind in KINDS {
        let mut bystander = Bystander::start(kind, &["--client-query-buffer-limit", "1mb"]);
        let long = "x".repeat(MB + MB / 2);
        // The server says nothing here: it closes the connection.
        let mut client = bystander.larder.client();
        let told = client.pipeline(&encode(&["SET", "k", &long]), 1).remove(0);
        assert!(error_of(&told).starts_with("UPSTREAMLOST "), "{}", told.escape_ascii());
        bystander.has_seen_nothing("a lost SET");
        assert_eq!(client.run("GET k"), b"$-1\r\n");
        // Much more than the limit, in many requests and in one of many arguments: the server takes it piece by piece.
        let value = "x".repeat(100_000);
        let many = encode(&["SET", "k", &value]).repeat(40);
        assert!(client.pipeline(&many, 40).iter().all(|reply| reply == OK));
        let pairs: Vec<String> = (0..40).flat_map(|i| [format!("k{i}"), value.clone()]).collect();
        let words: Vec<&str> = std::iter::once("MSET").chain(pairs.iter().map(String::as_str)).collect();
        assert_eq!(client.cmd(&words), OK);
        bystander.has_seen_nothing("many requests");
    }
}

/// While the server holds the link (a pause that Larder does not see), all that is sent gathers in its query buffer. What Larder
/// sends is bounded by `link.in_flight_bytes_max` and one client's batch.
#[test]
fn a_held_link_is_not_filled_beyond_the_upstreams_query_buffer() {
    if Larder::is_plain() {
        return;
    }
    for kind in KINDS {
        let upstream = Server::start(kind, &["--client-query-buffer-limit", "2mb"]);
        let larder = Larder::start(Some(&upstream), &["--set", "link.in_flight_bytes_max=512kb"]);
        let mut clients: Vec<Client> = (0..40).map(|_| larder.client()).collect();
        clients.iter_mut().for_each(|client| assert_eq!(client.run("SET k v"), OK));
        let batch = encode(&["SET", "k", &"x".repeat(2000)]).repeat(100);
        assert_eq!(upstream.client().run("CLIENT PAUSE 1500 WRITE"), OK);
        clients.iter_mut().for_each(|client| client.send_raw(&batch));
        for client in &mut clients {
            (0..100).for_each(|_| assert_eq!(client.reply(), OK));
        }
        assert!(!larder.output().contains("link lost"), "{kind:?}: {}", larder.output());
    }
}

#[test]
fn what_goes_by_connections_that_clients_share_is_bounded_by_what_every_server_takes() {
    for kind in KINDS {
        let mut bystander = Bystander::start(kind, &["--proto-max-bulk-len", "1048576"]);
        let long = vec![b'x'; MB + 1];
        let long = &long[..];
        let requests: [&[&[u8]]; 7] = [
            &[b"SUBSCRIBE", long],
            &[b"PSUBSCRIBE", b"a", long],
            &[b"UNSUBSCRIBE", long],
            &[b"AUTH", b"default", long],
            &[b"CACHE", b"INVALIDATE", b"KEYS", long],
            &[b"CACHE", b"SET", b"k", long],
            &[b"CACHE", b"TAG", b"k", long],
        ];
        for request in requests {
            let what = request[0].escape_ascii();
            let mut client = bystander.larder.client();
            let told = error_of(&client.cmd(request));
            assert!(told.starts_with("ERR larder: an argument of 1048577 bytes"), "{what}: {told}");
            assert_eq!(client.run("GET cached"), bulk("value"), "{what}");
            bystander.has_seen_nothing("a refusal");
        }
        for request in [[&b"ECHO"[..], long], [b"PING", long]] {
            let told = bystander.larder.client().cmd(&request);
            assert_eq!(told.len(), long.len() + "$1048577\r\n\r\n".len());
        }
        bystander.has_seen_nothing("ECHO");
        // A name that nobody could have sent.
        let made = "redis.call('SET', string.rep('n', 2000000), 'v') return 1";
        assert_eq!(bystander.larder.client().cmd(&["EVAL", made, "0"]), b":1\r\n");
        let mut client = bystander.larder.client();
        let told = client.cmd(&["CACHE", "INVALIDATE", "PATTERN", "n*"]);
        wait_until("the job has ended", || client.cmd(&["CACHE", "JOBS"]).windows(7).all(|w| w != b"running"));
        bystander.has_seen_nothing(&format!("a long name: {}", told.escape_ascii()));
    }
}
