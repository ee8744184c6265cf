//! The subscription hub against a real server, over connections that run early and late.

mod support;

use bytes::Bytes;
use larder::buffered::Buffered;
use larder::clients::{Client, Clients};
use larder::clock::Clock;
use larder::hub::{Hub, HubSettings, Kind, Subscriptions};
use larder::l1::{L1, L1Settings, Variant};
use larder::port::{Delivery, Failure, Seq, Taken};
use larder::upstream::backoff::BackoffSettings;
use larder::upstream::breaker::BreakerSettings;
use larder::upstream::link::{Job, LinkLimits, Op, OpKind};
use larder::upstream::link_io::{LinkState, LinkTimes};
use larder::upstream::node::Node;
use larder::upstream::pool::PoolLimits;
use larder::upstream::raw::{Endpoint, Identity};
use larder::upstream::scope::{Scope, Upstream, UpstreamSettings};
use larder_protocol::scan::ReplyLimits;
use larder_protocol::table::Table;
use smallvec::smallvec;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use support::{GUARD, Relay, Server, encode};
use tokio::runtime::Handle;

const HELLO: &[u8] = b">3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$5\r\nhello\r\n";
/// How far apart connections through the relay run.
const DELAY: Duration = Duration::from_millis(4);

/// A hub with all that it needs, in front of a server.
struct House {
    hub: Arc<Hub>,
    upstream: Arc<Upstream>,
    scope: Arc<Scope>,
    clients: Clients,
    clock: Clock,
}

impl House {
    /// Behind `address`, as `identity`, once the link is up.
    async fn open(address: SocketAddr, identity: Identity, settings: HubSettings) -> Self {
        let clock = Clock::start();
        let breaker = BreakerSettings::default().checked().expect("the default settings are valid");
        let endpoint = Endpoint { host: address.ip().to_string(), port: address.port() };
        let node = Arc::new(Node::new(endpoint, clock, breaker, Arc::new(Table::builtin()), 1));
        let l1 = L1::new(L1Settings {
            size_bytes_max: 1 << 20,
            entry_bytes_max: 4096,
            variants_per_key_max: 4,
            compress_min_bytes: None,
        });
        let upstream = Upstream::new(
            node.clone(),
            l1,
            upstream_settings(),
            None,
            identity.clone(),
            0,
            Buffered::new(1 << 30),
            Handle::current(),
            1,
        );
        let scope = upstream.default_scope().expect("the first scope");
        let hub = Hub::new(node, identity, settings, Handle::current());
        let house = Self { hub, upstream, scope, clients: Clients::new(100_000), clock };
        while house.scope.link.state() == LinkState::Connecting {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        house
    }

    fn client(&self) -> Arc<Client> {
        let anywhere: SocketAddr = ([127, 0, 0, 1], 1).into();
        self.clients.join(anywhere, anywhere, 0).expect("room for a client")
    }

    async fn subscribe(&self, client: &Arc<Client>, kind: Kind, name: &str) -> Result<(), Failure> {
        guarded(self.hub.subscribe(client, &self.scope, kind, name.as_bytes())).await
    }

    async fn subscribed(&self, kind: Kind, name: &str) -> Arc<Client> {
        let client = self.client();
        self.subscribe(&client, kind, name).await.expect("a subscription");
        client
    }

    /// Reads a key through the link, which keeps the reply.
    async fn fill(&self, client: &Client, key: &str) {
        let get = self.upstream.node().table().lookup(b"get").expect("GET is known").id;
        let request: Bytes = encode(&["GET", key]).into();
        let kind = OpKind::Fill { command: get, key_at: 1, may_join: false, asks_encoding: false };
        let op = Op { seq: Seq(1), bytes: 0..request.len() as u32, kind };
        let job = Job { port: client.port.clone(), bytes: request, ops: smallvec![op] };
        self.scope.link.submit(job).expect("the link is up");
        let deliveries = taken(client).await;
        assert!(matches!(deliveries[..], [Delivery::Small { seq: Seq(1), .. }]), "{deliveries:?}");
    }

    /// What L1 says a key holds.
    fn cached(&self, key: &str) -> Option<Vec<u8>> {
        let get = self.upstream.node().table().lookup(b"get").expect("GET is known").id;
        let hit = self.scope.link.partition().read(key.as_bytes(), Variant::bare(get), || self.clock.now());
        hit.map(|hit| hit.reply().expect("what L1 holds can be read").into_owned())
    }
}

fn upstream_settings() -> UpstreamSettings {
    let replies = ReplyLimits::default();
    UpstreamSettings {
        link: LinkLimits {
            in_flight_max: 10_000,
            in_flight_bytes_max: 1 << 24,
            reply_max: Duration::from_millis(800),
            write_max: Duration::from_millis(800),
            untracked_ttl: None,
            admission: larder::upstream::admission::Admission::Always,
            stale_longest: None,
        },
        times: LinkTimes {
            connect_max: Duration::from_secs(5),
            dead_after: Duration::from_secs(20),
            reply_max: Duration::from_millis(800),
            backoff: BackoffSettings::default(),
            queued_max: 10_000,
            queued_bytes_max: 1 << 24,
            touch_interval: None,
            replies,
            caches: true,
        },
        pool: PoolLimits {
            size_max: 4,
            blocking_max: 4,
            idle_max: Duration::from_secs(10),
            wait_max: Duration::from_secs(5),
            connect_max: Duration::from_secs(5),
            replies,
        },
        scopes_max: 8,
        prefix: "larder:".into(),
        scope_idle_max: Duration::from_secs(10),
    }
}

fn settings() -> HubSettings {
    HubSettings {
        connect_max: Duration::from_secs(5),
        dead_after: Duration::from_secs(20),
        backoff: BackoffSettings { wait_max: Duration::from_millis(100), ..BackoffSettings::default() },
        ..HubSettings::default()
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test)
}

async fn guarded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, work).await.expect("gave up waiting")
}

/// What has been left for a client, as soon as there is something.
async fn taken(client: &Client) -> Vec<Delivery> {
    guarded(poll_fn(|cx| client.port.poll_ready(cx))).await;
    let mut taken = Taken::default();
    client.port.take(&mut taken);
    taken.deliveries
}

fn messages(deliveries: Vec<Delivery>) -> Vec<Bytes> {
    let message = |delivery| match delivery {
        Delivery::Message(message) => message,
        other => panic!("not a message: {other:?}"),
    };
    deliveries.into_iter().map(message).collect()
}

/// The next `n` messages.
async fn heard(client: &Client, n: usize) -> Vec<Bytes> {
    let mut all = Vec::new();
    while all.len() < n {
        assert!(!client.port.is_killed(), "disconnected after {all:?}");
        all.extend(messages(taken(client).await));
    }
    all
}

async fn killed(client: &Client) {
    guarded(async {
        while !client.port.is_killed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// The upstream's count of subscribers, asked without stopping the runtime.
async fn numsub(server: &Server, channel: &str) -> i64 {
    let (mut direct, channel) = (server.client(), channel.to_owned());
    let asking = tokio::task::spawn_blocking(move || direct.value(&["PUBSUB", "NUMSUB", &channel]).items()[1].int());
    asking.await.expect("an answer")
}

#[test]
fn subscribers_share_and_hear_every_message_in_order() {
    let server = Server::redis(&[]);
    run(async {
        let house = House::open(server.address(), Identity::Anonymous, settings()).await;
        let mut all = Vec::new();
        for _ in 0..500 {
            all.push(house.subscribed(Kind::Channel, "ch").await);
        }
        let both = &all[0];
        house.subscribe(both, Kind::Pattern, "c?").await.expect("a pattern");
        house.subscribe(both, Kind::Shard, "ch").await.expect("a shard channel");
        assert_eq!(numsub(&server, "ch").await, 1);
        let receivers = house.hub.receivers(b"ch");
        assert_eq!((receivers.upstream, receivers.here), (2, 501));
        let mut direct = server.client();
        for _ in 0..20 {
            direct.run("PUBLISH ch hello");
        }
        direct.run("SPUBLISH ch hello");
        for client in &all[1..] {
            assert!(heard(client, 20).await.iter().all(|m| m == HELLO));
        }
        let pmessage = b">4\r\n$8\r\npmessage\r\n$2\r\nc?\r\n$2\r\nch\r\n$5\r\nhello\r\n";
        let heard_by_both = heard(both, 41).await;
        for pair in heard_by_both[..40].chunks(2) {
            assert_eq!((&pair[0][..], &pair[1][..]), (HELLO, &pmessage[..]));
        }
        assert_eq!(&heard_by_both[40][..], b">3\r\n$8\r\nsmessage\r\n$2\r\nch\r\n$5\r\nhello\r\n");
        for client in &all[1..] {
            house.hub.unsubscribe(client, Kind::Channel, b"ch");
        }
        assert_eq!(numsub(&server, "ch").await, 1);
        let mut subscriptions = Subscriptions::default();
        subscriptions.insert(Kind::Channel, b"ch");
        house.hub.leave(both, &mut subscriptions);
        assert!(subscriptions.is_empty());
        while numsub(&server, "ch").await != 0 {}
        let counts = house.hub.counts();
        assert_eq!((counts.clients, counts.subscriptions, counts.messages), (0, 0, 41));
    });
}

/// An upstream that refuses HELLO is spoken to in RESP2; what clients get is the same.
#[test]
fn works_in_resp2_and_passes_refusals_on_word_for_word() {
    let server = Server::redis(&[]);
    server.client().ok(&["ACL", "SETUSER", "old", "on", ">pw", "~*", "+@all", "-hello", "resetchannels", "&ch", "&d*"]);
    run(async {
        let identity = Identity::User { name: b"old"[..].into(), password: b"pw"[..].into() };
        let house = House::open(server.address(), identity, settings()).await;
        let client = house.subscribed(Kind::Channel, "ch").await;
        server.client().run("PUBLISH ch hello");
        assert_eq!(heard(&client, 1).await, [HELLO]);
        let names: [&[u8]; 3] = [b"ch", b"d1", b"secret"];
        let refused = guarded(house.hub.subscribe_all(&client, &house.scope, Kind::Channel, &names)).await;
        let mut direct = server.client();
        direct.ok(&["AUTH", "old", "pw"]);
        let line = direct.cmd(&["SUBSCRIBE", "secret"]);
        let line = Bytes::copy_from_slice(&line[1..line.len() - 2]);
        assert_eq!(refused, Err(Failure::Refused(line)));
        while numsub(&server, "d1").await != 0 {}
        server.client().run("PUBLISH ch hello");
        assert_eq!(heard(&client, 1).await, [HELLO], "what it had before it still has");
        house.hub.settle(&client).await;
        server.client().run("PUBLISH d1 hello");
        house.hub.settle(&client).await;
        assert_eq!(house.hub.counts().delivered, 2, "none of the refused command's names is subscribed to");
    });
}

#[test]
fn a_password_that_is_missing_or_wrong_is_answered_in_the_servers_words() {
    let server = Server::redis(&["--requirepass", "pw"]);
    run(async {
        let expected: [(Identity, &[u8]); 2] = [
            (Identity::Anonymous, b"NOAUTH Authentication required."),
            (Identity::Password(b"no"[..].into()), b"WRONGPASS invalid username-password pair or user is disabled."),
        ];
        for (identity, line) in expected {
            let house = House::open(server.address(), identity, settings()).await;
            let refused = house.subscribe(&house.client(), Kind::Channel, "ch").await;
            assert_eq!(refused, Err(Failure::Refused(Bytes::from_static(line))));
        }
    });
}

#[test]
fn a_lost_connection_disconnects_its_subscribers_and_the_next_one_is_made() {
    let server = Server::redis(&[]);
    run(async {
        let house = House::open(server.address(), Identity::Anonymous, settings()).await;
        let subscriber = house.subscribed(Kind::Channel, "ch").await;
        let bystander = house.client();
        server.client().run("CLIENT KILL TYPE pubsub");
        killed(&subscriber).await;
        assert!(!bystander.port.is_killed());
        assert_eq!(house.hub.counts().killed_by_loss, 1);
        // The server is well; only the back-off is in the way for a moment.
        guarded(async {
            while house.subscribe(&bystander, Kind::Channel, "ch").await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        server.client().run("PUBLISH ch hello");
        assert_eq!(heard(&bystander, 1).await, [HELLO]);
    });
}

#[test]
fn an_upstream_that_is_down_or_silent_costs_an_error() {
    let mut server = Server::redis(&[]);
    run(async {
        let settings = HubSettings { dead_after: Duration::from_millis(300), ..settings() };
        let house = House::open(server.address(), Identity::Anonymous, settings).await;
        let subscriber = house.subscribed(Kind::Channel, "ch").await;
        server.pause();
        let other = house.client();
        assert!(matches!(house.subscribe(&other, Kind::Channel, "other").await, Err(Failure::Down(_))));
        killed(&subscriber).await;
        server.resume();
        server.kill();
        assert!(matches!(house.subscribe(&other, Kind::Channel, "other").await, Err(Failure::Down(_))));
        server.restart();
        guarded(async {
            while house.subscribe(&other, Kind::Channel, "ch").await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        server.client().run("PUBLISH ch hello");
        assert_eq!(heard(&other, 1).await, [HELLO]);
    });
}

/// Who hears of a write by a message does not find the older value in L1, however early the message's connection runs.
#[test]
fn a_message_does_not_overtake_the_invalidations() {
    let server = Server::redis(&[]);
    let relay = Relay::start(server.address(), support::seed("hub fence", None), DELAY);
    run(async {
        let house = House::open(relay.address(), Identity::Anonymous, settings()).await;
        let (client, reader) = (house.subscribed(Kind::Channel, "ch").await, house.client());
        let mut direct = server.client();
        let mut filled = 0;
        for n in 0..150 {
            house.fill(&reader, "k").await;
            filled += usize::from(house.cached("k").is_some());
            let text = n.to_string();
            direct.pipeline(&[encode(&["SET", "k", &text]), encode(&["PUBLISH", "ch", &text])].concat(), 2);
            assert!(heard(&client, 1).await[0].ends_with(format!("{n}\r\n").as_bytes()));
            assert_eq!(house.cached("k"), None, "the older value after message {n}");
        }
        assert!(filled > 100, "L1 was filled only {filled} times");
        assert!(house.scope.link.counts().fences > 100);
    });
}

/// What was published before a SUBSCRIBE is not heard, and what was published before an UNSUBSCRIBE is, though the
/// hub's own connection lags behind.
#[test]
fn subscriptions_begin_and_end_where_the_servers_own_would() {
    let server = Server::redis(&[]);
    let relay = Relay::start(server.address(), support::seed("hub order", None), DELAY);
    run(async {
        let house = House::open(relay.address(), Identity::Anonymous, settings()).await;
        let first = house.subscribed(Kind::Channel, "ch").await;
        let mut direct = server.client();
        for n in 0..60 {
            direct.run(&format!("PUBLISH ch before{n}"));
            let late = house.subscribed(Kind::Channel, "ch").await;
            direct.run(&format!("PUBLISH ch behind{n}"));
            house.hub.settle(&late).await;
            house.hub.unsubscribe(&late, Kind::Channel, b"ch");
            direct.run(&format!("PUBLISH ch never{n}"));
            let texts = messages(taken(&late).await);
            assert_eq!(texts.len(), 1, "{texts:?}");
            assert!(texts[0].ends_with(format!("behind{n}\r\n").as_bytes()), "{texts:?}");
        }
        assert_eq!(heard(&first, 180).await.len(), 180);
    });
}

#[test]
fn a_link_that_does_not_answer_and_a_client_that_does_not_read_cost_connections() {
    let server = Server::redis(&[]);
    let relay = Relay::start(server.address(), 1, Duration::ZERO);
    run(async {
        // The link goes through the relay, and the hub's own connection does not.
        let behind = House::open(relay.address(), Identity::Anonymous, settings()).await;
        let house =
            House::open(server.address(), Identity::Anonymous, HubSettings { message_bytes_max: 10_000, ..settings() })
                .await;
        let client = house.client();
        guarded(house.hub.subscribe(&client, &behind.scope, Kind::Channel, b"ch")).await.expect("a subscription");
        behind.fill(&behind.client(), "k").await;
        relay.pause();
        let mut direct = server.client();
        direct.run("PUBLISH ch hello");
        killed(&client).await;
        relay.resume();
        let mut taken = Taken::default();
        client.port.take(&mut taken);
        assert!(taken.deliveries.is_empty(), "not fenced, not delivered: {:?}", taken.deliveries);
        assert_eq!(house.hub.counts().killed_by_fence, 1);

        let (slow, quick) = (house.subscribed(Kind::Channel, "ch").await, house.subscribed(Kind::Channel, "ch").await);
        let text = "x".repeat(3000);
        for _ in 0..5 {
            direct.run(&format!("PUBLISH ch {text}"));
            heard(&quick, 1).await;
        }
        killed(&slow).await;
        assert!(!quick.port.is_killed());
        assert_eq!(house.hub.counts().killed_as_slow, 1);
    });
}

#[test]
fn an_idle_hub_closes_its_connection() {
    let server = Server::redis(&[]);
    run(async {
        let settings = HubSettings { idle_max: Duration::from_millis(50), ..settings() };
        let house = House::open(server.address(), Identity::Anonymous, settings).await;
        let without = server.info("clients", "connected_clients");
        for _ in 0..2 {
            let client = house.subscribed(Kind::Channel, "ch").await;
            assert_ne!(server.info("clients", "connected_clients"), without);
            house.hub.leave(&client, &mut Subscriptions::default());
            guarded(async {
                while server.info("clients", "connected_clients") != without {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
            assert!(!client.port.is_killed());
        }
    });
}
