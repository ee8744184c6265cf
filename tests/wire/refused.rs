//! What no proxy can give, and what is denied unless the operator allows it; and MONITOR, which works.

use crate::support::{Client, Larder, Server, wait_until};
use crate::{bulk, error_of};

#[test]
fn replication_is_refused_and_nothing_happens() {
    if Larder::is_plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    for line in ["SYNC", "PSYNC ? -1", "REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "SLAVEOF 127.0.0.1 1", "FAILOVER"] {
        let mut client = larder.client();
        let error = error_of(&client.run(line));
        let name = line.split(' ').next().unwrap();
        assert!(error.to_uppercase().contains(name), "{line}: {error}");
        assert_eq!(client.run("PING"), b"+PONG\r\n", "the connection goes on");
    }
    assert_eq!(upstream.info("replication", "role"), "master");
    assert_eq!(upstream.info("replication", "connected_slaves"), "0");
}

#[test]
fn shutdown_is_denied_by_default() {
    if Larder::is_plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    for line in ["SHUTDOWN", "SHUTDOWN NOSAVE", "shutdown now"] {
        let error = error_of(&client.run(line));
        assert!(error.contains("SHUTDOWN") || error.contains("shutdown"), "{error}");
    }
    // Nor does a transaction get around it.
    client.run("MULTI");
    error_of(&client.run("SHUTDOWN"));
    assert!(client.run("EXEC").starts_with(b"-EXECABORT"));
    assert_eq!(upstream.client().run("PING"), b"+PONG\r\n");
    assert_eq!(client.run("SET k v"), b"+OK\r\n");
}

#[test]
fn monitor_shows_what_the_server_does() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut monitor: Client = larder.client();
    assert_eq!(monitor.run("MONITOR"), b"+OK\r\n");
    larder.client().run("SET monitored 1");
    wait_until("MONITOR shows the command", || {
        let line = monitor.frame();
        String::from_utf8_lossy(&line).contains("\"SET\" \"monitored\" \"1\"")
    });
    drop(monitor);
    wait_until("the upstream has no monitor", || {
        let list = upstream.client().ask("CLIENT LIST").text();
        !list.lines().any(|line| line.contains(" flags=O"))
    });
    assert_eq!(larder.client().run("GET monitored"), bulk("1"));
}
