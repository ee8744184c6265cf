//! Writers elsewhere: what a connection has seen is not unseen, and nothing that is told overtakes what it tells of.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::support::{Client, GUARD, Kind, Larder, Rng, Value, encode};
use crate::{Floors, Scene, assert_not_before, number, on_both_servers};

const PAIRS: usize = 4;

/// One writer, at the upstream or through a second Larder, writes `first` and then `second` with the same number. Many
/// readers of the first Larder: none sees a number go back, and who has seen n in `second` sees at least n in `first`.
fn reads_never_go_back_whichever_keys_they_read(kind: Kind) {
    let mut scene = Scene::start("monotonic", kind, &[]);
    let second = Larder::behind(&scene.relay, &[]);
    let mut writers = [scene.upstream.client(), second.client()];
    let floors = Floors::new(2 * PAIRS);
    let mut rng = scene.rng.fork();
    let until = scene.until;
    let (written, read) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..6)
            .map(|n| {
                let (mut client, mut rng) = (Client::speaking(2 + n % 2, scene.larder.address()), rng.fork());
                let floors = &floors;
                scope.spawn(move || {
                    let mut read = 0_u64;
                    while Instant::now() < until {
                        read_in_order(&mut client, &mut rng, floors);
                        read += 1;
                    }
                    read
                })
            })
            .collect();
        let mut n = 0;
        while Instant::now() < until {
            n += 1;
            let (writer, pair) = (&mut writers[rng.index(2)], rng.index(PAIRS));
            writer.ok(&["SET", &format!("first{pair}"), &n.to_string()]);
            writer.ok(&["SET", &format!("second{pair}"), &n.to_string()]);
        }
        let read: u64 = readers.into_iter().map(|reader| reader.join().expect("a reader's thread")).sum();
        (n, read)
    });
    println!("monotonic, {kind:?}: {written} pairs written, {read} reads");
}

/// One read of the one or the other key of a pair, in one of several ways.
fn read_in_order(client: &mut Client, rng: &mut Rng, floors: &Floors) {
    let pair = rng.index(PAIRS);
    let (first, second) = (format!("first{pair}"), format!("second{pair}"));
    let (first_floor, second_floor) = (floors.of(2 * pair), floors.of(2 * pair + 1));
    match rng.below(5) {
        0 => {
            let seen = number(client, &first);
            assert_not_before(&first, first_floor, seen);
            floors.raise(2 * pair, seen);
        }
        1 | 2 => {
            let seen = number(client, &second);
            assert_not_before(&second, second_floor, seen);
            floors.raise(2 * pair + 1, seen);
            // The first key was written before: from now on nobody sees less of it.
            floors.raise(2 * pair, seen);
        }
        3 => {
            // In one pipeline, where a hit may stand behind a miss.
            client.send_raw(&[encode(&["GET", &second]), encode(&["GET", &first])].concat());
            let [later, earlier] = [(); 2].map(|()| Value::parse(&client.reply()).int_or_null().unwrap_or(0));
            assert_not_before("second in a pipeline", second_floor, later);
            assert_not_before("first in a pipeline", first_floor.max(later), earlier);
            floors.raise(2 * pair + 1, later);
            floors.raise(2 * pair, earlier);
        }
        _ => {
            let reply = client.value(&["MGET", &second, &first]);
            let seen: Vec<i64> = reply.items().iter().map(|v| v.int_or_null().unwrap_or(0)).collect();
            assert_not_before("second by MGET", second_floor, seen[0]);
            assert_not_before("first by MGET", first_floor.max(seen[0]), seen[1]);
            floors.raise(2 * pair + 1, seen[0]);
            floors.raise(2 * pair, seen[1]);
        }
    }
}

/// How a consumer hears of new data, by Larder; the producer is at the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Blpop,
    Blmove,
    Bzpopmin,
    XreadBlock,
    XreadGroup,
    PubSub2,
    PubSub3,
    PatternAmongReads,
    Exec,
    Script,
    ScriptReadOnly,
    Get,
    Lpop,
    Sort,
    OtherDatabase,
    OtherUser,
    Redirected2,
    Redirected3,
    Tracked,
}

macro_rules! announcements {
    ($($name:ident: $news:expr,)*) => {
        on_both_servers! {
            reads_do_not_go_back_whichever_keys_they_read: reads_never_go_back_whichever_keys_they_read,
            $($name: |kind| news_never_overtakes($news, kind),)*
        }
    };
}

announcements! {
    what_blpop_tells_of_is_seen: News::Blpop,
    what_blmove_tells_of_is_seen: News::Blmove,
    what_bzpopmin_tells_of_is_seen: News::Bzpopmin,
    what_a_blocking_xread_tells_of_is_seen: News::XreadBlock,
    what_a_consumer_group_tells_of_is_seen: News::XreadGroup,
    what_a_resp2_message_tells_of_is_seen: News::PubSub2,
    what_a_resp3_message_tells_of_is_seen: News::PubSub3,
    what_a_pattern_message_among_reads_tells_of_is_seen: News::PatternAmongReads,
    what_a_transaction_tells_of_is_seen: News::Exec,
    what_a_script_tells_of_is_seen: News::Script,
    what_a_read_only_script_tells_of_is_seen: News::ScriptReadOnly,
    what_a_cached_read_tells_of_is_seen: News::Get,
    what_a_pop_tells_of_is_seen: News::Lpop,
    what_an_uncached_read_tells_of_is_seen: News::Sort,
    what_another_database_tells_of_is_seen: News::OtherDatabase,
    what_is_told_to_another_user_is_seen: News::OtherUser,
    what_a_redirected_resp2_invalidation_tells_of_is_seen: News::Redirected2,
    what_a_redirected_resp3_invalidation_tells_of_is_seen: News::Redirected3,
    what_an_invalidation_tells_of_is_seen: News::Tracked,
}

/// The producer writes `data` and `data:n` directly at the upstream and announces n after that. The consumer, and
/// a second client whom it tells, must then see at least n, though the older values are in the cache all the time.
fn news_never_overtakes(news: News, kind: Kind) {
    let scene = Scene::start(&format!("{news:?}"), kind, &[]);
    let mut producer = scene.upstream.client();
    producer.ok(&["ACL", "SETUSER", "alice", "on", ">pw", "~*", "&*", "+@all"]);
    producer.cmd(&["XGROUP", "CREATE", "stream", "group", "$", "MKSTREAM"]);
    let mut consumer = Consumer::start(news, scene.larder.address());
    let mut other = scene.larder.client();
    let (heard, may_go_on) = channel();
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        // Both end with this closure, in whichever way it ends, and the threads with them.
        let _stopped = Stopper(&stop);
        let heard = heard;
        scope.spawn(|| keep_cached(scene.larder.address(), &stop));
        let until = scene.until;
        scope.spawn(move || {
            let mut n = 0;
            while Instant::now() < until {
                n += 1;
                announce(&mut producer, news, n);
                if may_go_on.recv() != Ok(n) {
                    return;
                }
            }
            announce(&mut producer, news, END);
        });
        let mut rounds = 0;
        loop {
            let fresh = format!("data:{}", rounds + 1);
            // Both the old value and the nil are in the cache before the news comes.
            consumer.data(&fresh);
            consumer.data("data");
            let n = consumer.hear(rounds);
            if n == END {
                break rounds;
            }
            rounds = n;
            assert_not_before("data", n, consumer.data("data"));
            assert_not_before("fresh data", n, consumer.data(&fresh));
            assert_not_before("data, for another client", n, number(&mut other, "data"));
            heard.send(n).expect("a producer");
        }
    });
    println!("{news:?}, {kind:?}: {rounds} rounds");
}

/// The announcement that no more will come.
const END: i64 = i64::MAX;

/// Stops the background reader when the test ends, in whichever way.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Reads `data` again and again, as other clients would.
fn keep_cached(larder: SocketAddr, stop: &AtomicBool) {
    let mut client = Client::connect(larder);
    while !stop.load(Ordering::SeqCst) {
        client.cmd(&["GET", "data"]);
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn announce(producer: &mut Client, news: News, n: i64) {
    let text = n.to_string();
    if n != END {
        producer.ok(&["MSET", "data", &text, &format!("data:{n}"), &text]);
    }
    let announcement = match news {
        News::Blpop | News::Blmove | News::Lpop => encode(&["RPUSH", "queue", &text]),
        News::Bzpopmin => encode(&["ZADD", "zqueue", "1", &text]),
        News::XreadBlock | News::XreadGroup => encode(&["XADD", "stream", "*", "n", &text]),
        News::PubSub2 | News::PubSub3 | News::PatternAmongReads => encode(&["PUBLISH", "channel", &text]),
        News::Sort => {
            encode(&["EVAL", "redis.call('del', 'flags'); redis.call('rpush', 'flags', ARGV[1])", "0", &text])
        }
        News::OtherDatabase => {
            let script = "redis.call('select', 1); return redis.call('set', 'flag', ARGV[1])";
            encode(&["EVAL", script, "0", &text])
        }
        News::Redirected2 | News::Redirected3 | News::Tracked => encode(&["SET", &format!("note:{text}"), ""]),
        News::Exec | News::Script | News::ScriptReadOnly | News::Get | News::OtherUser => {
            encode(&["SET", "flag", &text])
        }
    };
    producer.pipeline(&announcement, 1);
}

/// Hears of new data in one way and reads data on the same connection where the protocol allows it.
struct Consumer {
    news: News,
    hears: Client,
    /// A RESP2 subscriber cannot read on its own connection.
    reads: Option<Client>,
    /// Has its invalidations redirected to `hears`.
    tracks: Option<Client>,
    stream_last: String,
}

// === impl Consumer ===

impl Consumer {
    fn start(news: News, larder: SocketAddr) -> Self {
        let resp3 = [News::PubSub3, News::PatternAmongReads, News::Blmove, News::Redirected3, News::Tracked];
        let protocol = if resp3.contains(&news) { 3 } else { 2 };
        let mut hears = Client::speaking(protocol, larder);
        let (mut reads, mut tracks) = (None, None);
        match news {
            News::PubSub2 => {
                hears.send(&["SUBSCRIBE", "channel"]);
                hears.frame();
                reads = Some(Client::connect(larder));
            }
            News::PubSub3 => {
                hears.send(&["SUBSCRIBE", "channel"]);
                hears.frame();
            }
            News::PatternAmongReads => {
                hears.send(&["PSUBSCRIBE", "chan*"]);
                hears.frame();
            }
            News::Redirected2 | News::Redirected3 => {
                // A library's connection for invalidations need not be in the database that it reads in.
                hears.ok(&["SELECT", "9"]);
                let id = hears.ask("CLIENT ID").int().to_string();
                if news == News::Redirected2 {
                    hears.send(&["SUBSCRIBE", "__redis__:invalidate"]);
                    hears.frame();
                }
                let mut tracker = Client::connect(larder);
                tracker.ok(&["CLIENT", "TRACKING", "ON", "REDIRECT", &id, "BCAST", "PREFIX", "note:"]);
                (reads, tracks) = (Some(Client::connect(larder)), Some(tracker));
            }
            News::Tracked => {
                hears.ok(&["SELECT", "9"]);
                hears.ok(&["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "note:"]);
                reads = Some(Client::connect(larder));
            }
            _ => {}
        }
        Self { news, hears, reads, tracks, stream_last: "0".to_owned() }
    }

    fn data(&mut self, key: &str) -> i64 {
        number(self.reads.as_mut().unwrap_or(&mut self.hears), key)
    }

    /// Waits for a number above `last`.
    fn hear(&mut self, last: i64) -> i64 {
        match self.news {
            News::PubSub2 | News::PubSub3 | News::PatternAmongReads => return self.hear_message(),
            News::Redirected2 | News::Redirected3 | News::Tracked => return self.hear_invalidation(),
            _ => {}
        }
        let deadline = Instant::now() + GUARD;
        loop {
            if let Some(n) = self.ask().filter(|&n| n > last) {
                return n;
            }
            assert!(Instant::now() < deadline, "{:?}: no news after {last}", self.news);
        }
    }

    fn hear_message(&mut self) -> i64 {
        let frame = match self.news {
            News::PubSub2 => self.hears.frame(),
            News::PatternAmongReads => loop {
                // The message may come between the replies to these.
                if self.hears.has_push() {
                    break self.hears.push();
                }
                self.hears.cmd(&["GET", "data"]);
            },
            _ => self.hears.push(),
        };
        Value::parse(&frame).items().last().expect("a message's text").int()
    }

    /// The number is in the key, behind `note:`.
    fn hear_invalidation(&mut self) -> i64 {
        let frame = Value::parse(&self.hears.frame());
        let keys = frame.items().last().expect("keys").items();
        let note = keys.last().expect("a key").text();
        // Whoever tracks stays connected.
        assert_eq!(self.tracks.is_some(), self.news != News::Tracked);
        note.strip_prefix("note:").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no note: {note}"))
    }

    fn ask(&mut self) -> Option<i64> {
        let client = &mut self.hears;
        let reply = match self.news {
            News::Blpop => client.value(&["BLPOP", "queue", "0"]).items()[1].clone(),
            News::Blmove => client.value(&["BLMOVE", "queue", "done", "LEFT", "RIGHT", "0"]),
            News::Bzpopmin => client.value(&["BZPOPMIN", "zqueue", "0"]).items()[1].clone(),
            News::XreadBlock => return Some(self.read_stream()),
            News::XreadGroup => {
                let ask = ["XREADGROUP", "GROUP", "group", "me", "NOACK", "BLOCK", "0", "STREAMS", "stream", ">"];
                return Some(last_entry(&client.value(&ask)).1);
            }
            News::Exec => {
                client.ok(&["MULTI"]);
                client.cmd(&["GET", "flag"]);
                client.value(&["EXEC"]).items()[0].clone()
            }
            News::Script => client.value(&["EVAL", "return redis.call('get', 'flag')", "0"]),
            News::ScriptReadOnly => client.value(&["EVAL_RO", "return redis.call('get', KEYS[1])", "1", "flag"]),
            News::Get => client.value(&["GET", "flag"]),
            News::Lpop => client.value(&["LPOP", "queue"]),
            News::Sort => {
                client.value(&["SORT", "flags", "BY", "nosort"]).items().first().cloned().unwrap_or(Value::Null)
            }
            News::OtherDatabase => {
                client.ok(&["SELECT", "1"]);
                let flag = client.value(&["GET", "flag"]);
                client.ok(&["SELECT", "0"]);
                flag
            }
            News::OtherUser => {
                client.ok(&["AUTH", "alice", "pw"]);
                let flag = client.value(&["GET", "flag"]);
                client.ok(&["AUTH", "default", ""]);
                flag
            }
            News::PubSub2 | News::PubSub3 | News::PatternAmongReads => panic!("messages are not asked for"),
            News::Redirected2 | News::Redirected3 | News::Tracked => panic!("invalidations are not asked for"),
        };
        reply.int_or_null()
    }

    fn read_stream(&mut self) -> i64 {
        let reply = self.hears.value(&["XREAD", "BLOCK", "0", "STREAMS", "stream", &self.stream_last]);
        let (id, n) = last_entry(&reply);
        self.stream_last = id;
        n
    }
}

/// The id and the number of the last entry in the reply of XREAD of one stream.
fn last_entry(reply: &Value) -> (String, i64) {
    let streams = reply.items();
    let entries = match streams {
        [Value::Array(stream)] => &stream[1],
        other => panic!("one stream, not {other:?}"),
    };
    let entry = entries.items().last().expect("an entry").items();
    (entry[0].text(), entry[1].items()[1].int())
}
