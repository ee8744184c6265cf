//! Another server, or another dataset, in the place of the one that L1 was filled from.

use std::time::{Duration, Instant};

use crate::faults::{Stubborn, reads_and_writes};
use crate::history::{Call, History, Op};
use crate::support::{Kind, Larder, Relay, Rng, Server, Value, run_seconds, seed, wait_until};
use crate::{DELAY_MAX, on_both_servers};

on_both_servers! {
    // Item 4: a failover to a replica.
    histories_stay_valid_through_failovers: histories_stay_linearizable_through_failovers,
    // Items 4 and 5: a restart with another dataset.
    nothing_of_another_dataset_is_served: nothing_of_the_dataset_before_is_served,
}

/// Two servers take turns: the one that is to lead has all that the other has acknowledged, and is written to directly
/// before Larder finds it.
fn histories_stay_linearizable_through_failovers(kind: Kind) {
    let mut rng = Rng::new(seed(&format!("failover, {kind:?}"), None));
    let servers = [Server::start(kind, &["--repl-diskless-sync-delay", "0"]), Server::start(kind, &[])];
    let relay = Relay::start(servers[0].address(), rng.next(), DELAY_MAX);
    let larder = Larder::behind(&relay, &[]);
    let began = Instant::now();
    let until = began + run_seconds(5);
    let now = || u64::try_from(began.elapsed().as_nanos()).expect("less than 500 years");
    let mut all = History::default();
    let failovers = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|id| {
                let (mut rng, address) = (rng.fork(), larder.address());
                scope.spawn(move || reads_and_writes(id, Stubborn::of(address), &mut rng, began, until))
            })
            .collect();
        let mut failovers = 0;
        while Instant::now() < until {
            let (old, new) = (&servers[failovers % 2], &servers[(failovers + 1) % 2]);
            replicate(new, old);
            std::thread::sleep(Duration::from_millis(200));
            relay.refuse();
            relay.cut();
            promote(new, old);
            for key in ["k0", "k1", "k2"] {
                let value = 90_000_000_000 + failovers as i64 * 10;
                let called = now();
                new.client().ok(&["SET", key, &value.to_string()]);
                let call = Call { client: 100, op: Op::Write(value), called, returned: Some(now()) };
                all.record(key, call);
            }
            relay.lead_to(new.address());
            relay.allow();
            failovers += 1;
            std::thread::sleep(Duration::from_millis(300));
        }
        clients.into_iter().for_each(|client| all.merge(client.join().expect("a client's thread")));
        failovers
    });
    println!("failover, {kind:?}: {} operations, {failovers} failovers", all.len());
    if let Err(e) = all.check() {
        panic!("{e}");
    }
}

fn replicate(replica: &Server, primary: &Server) {
    replica.client().ok(&["REPLICAOF", "127.0.0.1", &primary.address().port().to_string()]);
    wait_until("the replica has its primary", || replica.info("replication", "master_link_status") == "up");
}

/// Nothing more is written to `old`: when `new` has caught up with it, it leads.
fn promote(new: &Server, old: &Server) {
    // What the relay had passed on before it was cut may still be executed.
    std::thread::sleep(Duration::from_millis(20));
    wait_until("the replica has caught up", || {
        let offset = |server: &Server, field| server.info("replication", field);
        offset(old, "master_repl_offset") == offset(new, "slave_repl_offset")
    });
    new.client().ok(&["REPLICAOF", "NO", "ONE"]);
}

/// The upstream is killed and comes back with other data. From the first error on, nothing from before is answered.
fn nothing_of_the_dataset_before_is_served(kind: Kind) {
    const KEYS: usize = 200;
    let mut rng = Rng::new(seed(&format!("another dataset, {kind:?}"), None));
    let mut upstream = Server::start(kind, &[]);
    let relay = Relay::start(upstream.address(), rng.next(), DELAY_MAX);
    let larder = Larder::behind(&relay, &[]);
    let mut client = Stubborn::of(larder.address());
    let keys: Vec<String> = (0..KEYS).map(|n| format!("k{n}")).collect();
    let until = Instant::now() + run_seconds(3);
    let (mut round, mut refused) = (0_u64, 0_u64);
    while Instant::now() < until {
        let text = |n: usize, round: u64| if n.is_multiple_of(3) { None } else { Some(format!("{n} of {round}")) };
        let mut direct = upstream.client();
        for (n, key) in keys.iter().enumerate() {
            text(n, round).iter().for_each(|value| direct.ok(&["SET", key, value]));
        }
        // Read twice: by the second time from L1, nils too.
        for (n, key) in keys.iter().enumerate().chain(keys.iter().enumerate()) {
            wait_until("it is read", || client.ask(&["GET", key]).is_some_and(|v| is(&v, text(n, round))));
        }
        relay.refuse();
        upstream.kill();
        relay.cut();
        wait_until("the loss is noticed", || client.ask(&["GET", rng.pick(&keys).as_str()]).is_none());
        for key in &keys {
            assert_eq!(client.ask(&["GET", key]), None, "{key} while there is no upstream");
            refused += 1;
        }
        upstream.restart();
        round += 1;
        let mut direct = upstream.client();
        for (n, key) in keys.iter().enumerate().filter(|(n, _)| n % 2 == 0) {
            text(n, round).iter().for_each(|value| direct.ok(&["SET", key, value]));
        }
        relay.allow();
        wait_until("Larder is back", || client.ask(&["GET", "k0"]).is_some());
        for (n, key) in keys.iter().enumerate() {
            let there = if n % 2 == 0 { text(n, round) } else { None };
            let seen = client.ask(&["GET", key]).expect("an answer");
            assert!(is(&seen, there), "{key} of round {round}: {seen:?}");
        }
        direct.ok(&["FLUSHALL"]);
        round += 1;
    }
    println!("another dataset, {kind:?}: {round} datasets, {refused} reads refused meanwhile");
}

fn is(seen: &Value, text: Option<String>) -> bool {
    text.map_or(Value::Null, |text| Value::Bulk(text.into_bytes())) == *seen
}
