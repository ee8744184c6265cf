//! Publish and subscribe: every subscriber gets every message, while the upstream sees each channel once.

use crate::support::{Client, Larder, Server, encode, wait_until};
use crate::{Both, Twins, bulk, error_of};

fn subscriptions_answer_as_the_servers_own(protocol: u8) {
    let twins = Twins::start();
    let mut both = twins.client(protocol);
    let mut publisher = twins.client(2);
    // Confirmations: one frame for each channel.
    both.send(&["SUBSCRIBE", "one", "two", "one"]);
    for _ in 0..3 {
        both.frame("SUBSCRIBE");
    }
    both.run("PSUBSCRIBE t*");
    both.run("SSUBSCRIBE shard");
    publisher.run("PUBLISH one hello");
    both.frame("a message");
    publisher.run("PUBLISH two hello");
    both.frame("a message of a channel");
    both.frame("the same message by a pattern");
    publisher.run("PUBLISH three hello");
    both.frame("a message by a pattern");
    publisher.run("SPUBLISH shard hello");
    both.frame("a message of a shard channel");
    publisher.run("PUBLISH nobody hello");
    both.run("PING");
    both.run("PING text");
    if protocol == 2 {
        both.run("GET k");
        both.run("MULTI");
        both.run("NOSUCHCOMMAND");
    } else {
        both.script("SET k v\n GET k\n GET k\n INCR n");
    }
    both.run("UNSUBSCRIBE one");
    publisher.run("PUBLISH one gone");
    both.run("UNSUBSCRIBE never");
    both.run("UNSUBSCRIBE");
    both.run("PUNSUBSCRIBE");
    both.run("PUNSUBSCRIBE");
    both.run("SUNSUBSCRIBE");
    both.run("UNSUBSCRIBE");
    both.run("GET k");
    both.run("SUBSCRIBE");
    both.run("PSUBSCRIBE");
}

#[test]
fn subscriptions_answer_as_the_servers_own_in_resp2() {
    subscriptions_answer_as_the_servers_own(2);
}

#[test]
fn subscriptions_answer_as_the_servers_own_in_resp3() {
    subscriptions_answer_as_the_servers_own(3);
}

#[test]
fn many_subscribers_cost_the_upstream_one_subscription() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut direct = upstream.client();
    let numsub = |direct: &mut Client| direct.ask("PUBSUB NUMSUB news").items()[1].int();
    let numpat = |direct: &mut Client| direct.ask("PUBSUB NUMPAT").int();
    let mut subscribers: Vec<Client> = (0..200).map(|n| Client::speaking(2 + n % 2, larder.address())).collect();
    for client in &mut subscribers {
        client.send(&["SUBSCRIBE", "news"]);
        client.frame();
        client.send(&["PSUBSCRIBE", "n?ws"]);
        client.frame();
    }
    if !Larder::is_plain() {
        assert_eq!(numsub(&mut direct), 1);
        assert_eq!(numpat(&mut direct), 1);
    }
    for n in 0..50 {
        direct.run(&format!("PUBLISH news message{n}"));
    }
    for client in &mut subscribers {
        for n in 0..50 {
            for _ in 0..2 {
                let frame = client.frame();
                let text = bulk(&format!("message{n}"));
                assert!(frame.ends_with(&text), "message {n}, not {}", frame.escape_ascii());
            }
        }
    }
    subscribers.truncate(1);
    direct.run("PUBLISH news still-there");
    assert!(subscribers[0].frame().ends_with(&bulk("still-there")));
    subscribers.clear();
    wait_until("the last one's leaving ends it upstream", || numsub(&mut direct) == 0 && numpat(&mut direct) == 0);
}

/// A message that is published through Larder finds subscribers on both sides of it, and is counted as the server counts.
#[test]
fn publishing_through_larder_reaches_everybody() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut inside, mut outside) = (larder.client(), upstream.client());
    for client in [&mut inside, &mut outside] {
        client.send(&["SUBSCRIBE", "ch"]);
        client.frame();
    }
    assert_eq!(larder.client().run("PUBLISH ch hello"), b":2\r\n");
    for client in [&mut inside, &mut outside] {
        assert_eq!(client.frame(), b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$5\r\nhello\r\n");
    }
}

/// In RESP3 messages come between replies, never inside them, and the replies stay in order.
#[test]
fn resp3_messages_stand_between_replies() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client3();
    client.send(&["SUBSCRIBE", "ch"]);
    client.frame();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let batch: Vec<u8> = (0..2000).flat_map(|n| encode(&["PUBLISH", "ch", &format!("m{n}")])).collect();
            upstream.client().pipeline(&batch, 2000);
        });
        for n in 0..500 {
            let text = format!("v{n}");
            client.ok(&["SET", "k", &text]);
            assert_eq!(client.run("GET k"), bulk(&text));
        }
    });
    for n in 0..2000 {
        assert!(client.push().ends_with(&bulk(&format!("m{n}"))), "message {n} in its place");
    }
}

/// Whoever hears of a write by a message sees that write, though the old value was cached.
#[test]
fn a_message_does_not_overtake_the_write_that_it_speaks_of() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut hearer, mut reader) = (larder.client(), larder.client());
    hearer.send(&["SUBSCRIBE", "ch"]);
    hearer.frame();
    let mut direct = upstream.client();
    for n in 0..300 {
        reader.run("GET k");
        let text = n.to_string();
        direct.pipeline(&[encode(&["SET", "k", &text]), encode(&["PUBLISH", "ch", &text])].concat(), 2);
        assert!(hearer.frame().ends_with(&bulk(&text)));
        assert_eq!(reader.run("GET k"), bulk(&text));
    }
}

#[test]
fn resp2_subscribers_may_say_little_else() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    client.send(&["SUBSCRIBE", "ch"]);
    client.frame();
    let error = error_of(&client.run("GET k"));
    assert!(error.starts_with("ERR Can't execute 'get': only (P|S)SUBSCRIBE"), "{error}");
    assert_eq!(client.run("PING"), b"*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    assert_eq!(client.run("QUIT"), b"+OK\r\n");
    assert_eq!(client.rest(), b"");
}

#[test]
fn keyspace_notifications_come_through() {
    let twins = Twins::with_flags(&["--notify-keyspace-events", "KEA"]);
    let mut both = twins.client(2);
    let mut writer = twins.client(2);
    both.run("PSUBSCRIBE __key*__:*");
    writer.run("SET k v");
    both.frame("keyspace event");
    both.frame("keyevent event");
}

#[test]
fn who_has_unsubscribed_is_not_counted_any_more() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &["--set", "threads=2"]);
    let (mut subscriber, mut publisher, mut direct) = (larder.client(), larder.client(), upstream.client());
    let mut other = upstream.client();
    other.send(&["SUBSCRIBE", "ch"]);
    other.frame();
    for round in 0..100 {
        subscriber.send(&["SUBSCRIBE", "ch"]);
        subscriber.frame();
        assert_eq!(publisher.run("PUBLISH ch x"), b":2\r\n", "round {round}");
        subscriber.frame();
        subscriber.send(&["UNSUBSCRIBE"]);
        subscriber.frame();
        assert_eq!(direct.run("PUBLISH ch x"), b":1\r\n", "round {round}: straight at the server");
        assert_eq!(publisher.run("PUBLISH ch x"), b":1\r\n", "round {round}");
    }
}

/// Larders speak to each other by shard channels. Of these a client is told nothing, unless clients subscribe to them.
fn channels_of_larders_are_not_told(protocol: u8) {
    let twins = Twins::start();
    let second = Larder::start(Some(&twins.upstream), &[]);
    let mut direct = twins.upstream.client();
    if !Larder::is_plain() {
        second.client().run("GET k");
        wait_until("both have their channels", || direct.ask("PUBSUB SHARDCHANNELS").items().len() >= 3);
    }
    let asks = "PUBSUB SHARDCHANNELS
        PUBSUB SHARDCHANNELS *
        PUBSUB SHARDCHANNELS larder*
        PUBSUB SHARDNUMSUB larder:peers mine
        PUBSUB SHARDNUMSUB
        PUBSUB CHANNELS
        PUBSUB NUMSUB larder:peers";
    let mut both = twins.client(protocol);
    both.run("MULTI");
    both.script(asks);
    both.run("PUBSUB NOSUCH");
    both.run("EXEC");
    within_and_without_transactions(&mut both, asks);
    let mut subscriber = twins.client(2);
    subscriber.run("SSUBSCRIBE mine");
    both.script(asks);
    subscriber.run("SSUBSCRIBE larder:peers");
    both.run("PUBSUB SHARDNUMSUB larder:peers mine");
    both.run("PUBSUB SHARDCHANNELS larder*");
}

/// Runs the lines by themselves, in a transaction, and while a key is watched.
fn within_and_without_transactions(both: &mut Both, lines: &str) {
    both.script(lines);
    both.run("MULTI");
    both.script(lines);
    both.run("EXEC");
    both.run("WATCH k");
    both.script(lines);
    both.run("UNWATCH");
}

#[test]
fn channels_of_larders_are_not_told_in_resp2() {
    channels_of_larders_are_not_told(2);
}

#[test]
fn channels_of_larders_are_not_told_in_resp3() {
    channels_of_larders_are_not_told(3);
}

/// However it is published, receivers are counted as the server counts, and a publisher that is subscribed itself hears of
/// its message before it is answered.
#[test]
fn receivers_are_counted_wherever_something_is_published() {
    let twins = Twins::start();
    let subscribers: Vec<_> = (0..3)
        .map(|_| {
            let mut both = twins.client(3);
            both.run("SUBSCRIBE c");
            both.run("SSUBSCRIBE s");
            both
        })
        .collect();
    let mut both = twins.client(3);
    let asks = "PUBLISH c x
        SPUBLISH s x
        SPUBLISH c x
        PUBLISH s x
        PUBLISH nobody x";
    within_and_without_transactions(&mut both, asks);
    both.send_raw(&[encode(&["BLPOP", "q", "0.01"]), encode(&["PUBLISH", "c", "x"])].concat());
    both.frame("BLPOP");
    both.frame("PUBLISH behind BLPOP");
    both.run("SUBSCRIBE c");
    both.run("PSUBSCRIBE [cd]");
    both.run("SSUBSCRIBE s");
    for _ in 0..20 {
        both.send_raw(&[encode(&["PUBLISH", "c", "x"]), encode(&["SPUBLISH", "s", "x"])].concat());
        for what in ["the message", "the same by a pattern", "the answer", "the sharded message", "its answer"] {
            both.frame(what);
        }
    }
    drop(subscribers);
}
