//! Users and rights: the upstream decides, and what one user's rights have read is never given to another.

use crate::support::{Client, Kind, Larder, Server, Value, assert_same, encode, wait_until};
use crate::{NIL2, OK, assert_spared, bulk, error_of};

/// An upstream with a password for the default user, and with users of different rights.
fn start() -> (Server, Larder) {
    let upstream = Server::redis(&["--requirepass", "secret"]);
    let mut admin = signed_in(&upstream, "default", "secret");
    for line in [
        "ACL SETUSER alice on >alice-pw ~a:* ~shared &* +@all",
        "ACL SETUSER bob on >bob-pw ~b:* ~shared &* +@read +@connection",
        "ACL SETUSER writer on >writer-pw ~* &* +@all",
        "ACL SETUSER off off >off-pw ~* +@all",
        "MSET a:1 of-a b:1 of-b shared 0",
    ] {
        assert_eq!(admin.run(line), OK, "{line}");
    }
    let larder = Larder::start(Some(&upstream), &[]);
    (upstream, larder)
}

fn signed_in(upstream: &Server, user: &str, password: &str) -> Client {
    let mut client = upstream.client();
    client.ok(&["AUTH", user, password]);
    client
}

fn through(larder: &Larder, user: &str) -> Client {
    let mut client = larder.client();
    client.ok(&["AUTH", user, &format!("{user}-pw")]);
    client
}

#[test]
fn nothing_works_before_auth_and_the_words_are_the_servers() {
    let (upstream, larder) = start();
    let mut direct = upstream.client();
    let mut client = larder.client();
    for line in [
        "GET a:1",
        "SET a:1 x",
        "PING",
        "MULTI",
        "SUBSCRIBE ch",
        "HELLO 3",
        "HELLO",
        "CLIENT ID",
        "SELECT 1",
        "NOSUCHCOMMAND",
        "AUTH",
        "AUTH wrong",
        "AUTH alice wrong",
        "AUTH nobody at-all",
        "AUTH off off-pw",
        "AUTH a b c",
        "HELLO 3 AUTH alice wrong",
        "GET a:1",
        "CACHE INFO",
    ] {
        let wanted = direct.run(line);
        let reply = client.run(line);
        if line.starts_with("CACHE") {
            assert!(reply.starts_with(b"-NOAUTH") || Larder::is_plain(), "{}", reply.escape_ascii());
        } else {
            assert_same(line, &wanted, &reply);
        }
    }
    for line in ["AUTH secret", "GET a:1", "GET a:1", "ACL WHOAMI", "AUTH alice alice-pw", "ACL WHOAMI", "GET b:1"] {
        assert_same(line, &direct.run(line), &client.run(line));
    }
}

#[test]
fn hello_signs_in() {
    let (_upstream, larder) = start();
    let mut client = larder.client();
    let hello = client.ask("HELLO 3 AUTH alice alice-pw SETNAME me");
    assert!(matches!(hello, Value::Map(_)), "{hello:?}");
    assert_eq!(client.run("ACL WHOAMI"), bulk("alice"));
    assert_eq!(client.run("CLIENT GETNAME"), bulk("me"));
    assert_eq!(client.run("GET a:1"), bulk("of-a"));
}

/// Alice has read it and it lies in the cache; Bob may not read it and does not get it.
#[test]
fn a_cached_entry_is_not_given_to_a_user_without_the_right() {
    let (upstream, larder) = start();
    let (mut alice, mut bob) = (through(&larder, "alice"), through(&larder, "bob"));
    let mut bob_direct = signed_in(&upstream, "bob", "bob-pw");
    for _ in 0..3 {
        assert_eq!(alice.run("GET a:1"), bulk("of-a"));
        assert_eq!(bob.run("GET b:1"), bulk("of-b"));
    }
    for line in [
        "GET a:1",
        "GET a:1",
        "MGET b:1 a:1",
        "EXISTS a:1",
        "STRLEN a:1",
        "SET b:1 x",
        "FLUSHALL",
        "DEL b:1",
        "EVAL return(1) 0",
        "MULTI",
        "SET b:1 x",
        "GET b:1",
        "EXEC",
        "GET b:1",
        "CONFIG GET maxmemory",
        "ACL LIST",
    ] {
        assert_same(line, &bob_direct.run(line), &bob.run(line));
    }
    // In one pipeline, on one connection that changes its user.
    let batch = [
        encode(&["GET", "a:1"]),
        encode(&["AUTH", "bob", "bob-pw"]),
        encode(&["GET", "a:1"]),
        encode(&["GET", "b:1"]),
        encode(&["AUTH", "alice", "alice-pw"]),
        encode(&["GET", "a:1"]),
    ];
    let replies = alice.pipeline(&batch.concat(), batch.len());
    assert_eq!(replies[0], bulk("of-a"));
    assert!(replies[2].starts_with(b"-NOPERM"), "{}", replies[2].escape_ascii());
    assert_eq!(replies[3], bulk("of-b"));
    assert_eq!(replies[5], bulk("of-a"));
}

#[test]
fn each_user_has_a_cache_of_its_own_and_both_see_every_write() {
    let (upstream, larder) = start();
    let (mut alice, mut bob, mut writer) =
        (through(&larder, "alice"), through(&larder, "bob"), through(&larder, "writer"));
    for n in 0..200 {
        let text = n.to_string();
        alice.run("GET shared");
        bob.run("GET shared");
        match n % 3 {
            0 => writer.ok(&["SET", "shared", &text]),
            1 => alice.ok(&["SET", "shared", &text]),
            _ => drop(writer.cmd(&["EVAL", "return redis.call('set', 'shared', ARGV[1])", "0", &text])),
        }
        assert_eq!(alice.run("GET shared"), bulk(&text));
        assert_eq!(bob.run("GET shared"), bulk(&text));
    }
    let counted = |alice: &mut Client, bob: &mut Client| {
        alice.run("GET shared");
        bob.run("GET shared");
    };
    let calls = |upstream: &Server| {
        let info = signed_in(upstream, "default", "secret").ask("INFO commandstats").text();
        info.lines().find(|line| line.starts_with("cmdstat_get:")).unwrap_or_default().to_owned()
    };
    let before = calls(&upstream);
    counted(&mut alice, &mut bob);
    assert!(calls(&upstream) == before || Larder::is_plain(), "both are served by the cache");
}

#[test]
fn a_right_that_is_taken_away_through_larder_is_gone_at_once() {
    let (upstream, larder) = start();
    let (mut alice, mut admin) = (through(&larder, "alice"), larder.client());
    admin.ok(&["AUTH", "secret"]);
    alice.run("GET a:1");
    alice.run("GET a:1");
    assert_eq!(admin.run("ACL SETUSER alice resetkeys ~other:*"), OK);
    let mut direct = signed_in(&upstream, "alice", "alice-pw");
    assert_same("GET a:1", &direct.run("GET a:1"), &alice.run("GET a:1"));
}

/// What another Larder of the same upstream holds for a user goes, too, before the change is answered.
#[test]
fn a_right_that_is_taken_away_through_another_larder_is_gone_at_once() {
    if Larder::is_plain() {
        return;
    }
    let file = std::env::temp_dir().join(format!("larder-users-{}.acl", std::process::id()));
    for kind in [Kind::Redis, Kind::Valkey] {
        std::fs::write(&file, "user default on nopass ~* &* +@all\n").expect("the file of users");
        let upstream = Server::start(kind, &["--aclfile", file.to_str().expect("a path in UTF-8")]);
        let [here, there] = [0, 1].map(|_| Larder::start(Some(&upstream), &[]));
        let mut admin = here.client();
        // Keeps a connection to other Larders at the other one, by which a user's link hears of it in any case.
        let mut bystander = there.client();
        assert_eq!(bystander.run("PING"), b"+PONG\r\n");
        assert_eq!(admin.run("SET a:1 of-a"), OK);
        // Whether the user may hear of other Larders, or not.
        for channels in ["&*", "resetchannels"] {
            for (n, change) in [
                &["ACL SETUSER NAME resetkeys ~b:*"][..],
                &["ACL SETUSER NAME -get"],
                &["ACL SETUSER NAME -@all"],
                &["ACL SETUSER NAME reset on >pw"],
                &["MULTI", "ACL SETUSER NAME resetkeys", "EXEC"],
                // There it is not.
                &["ACL LOAD"],
            ]
            .into_iter()
            .enumerate()
            {
                let name = format!("user{n}{}", channels.len());
                assert_eq!(admin.run(&format!("ACL SETUSER {name} on >{name}-pw ~a:* {channels} +@all")), OK);
                let mut user = through(&there, &name);
                wait_until("L1 has it", || {
                    user.run("GET a:1");
                    let before = upstream.calls("get");
                    user.run("GET a:1") == bulk("of-a") && upstream.calls("get") == before
                });
                for line in change {
                    let told = admin.run(&line.replace("NAME", &name));
                    assert_ne!(told[0], b'-', "{line}: {}", told.escape_ascii());
                }
                // Who is no user any more is disconnected, as directly.
                let told = user.try_cmd(&["GET", "a:1"]).unwrap_or_default();
                let what = format!("{kind:?}, {channels}, {change:?}: {}", told.escape_ascii());
                let is_gone = told.is_empty() || told.starts_with(b"-WRONGPASS");
                assert!(told.starts_with(b"-NOPERM") || change[0] == "ACL LOAD" && is_gone, "{what}");
            }
        }
        assert!(!here.output().contains("may not know"), "{}", here.output());
    }
    let _: std::io::Result<()> = std::fs::remove_file(&file);
}

/// Two Larders, at each the default user and, if wanted at the other one, an admin; and the default user's value in the other's L1.
struct Two {
    upstream: Server,
    here: Larder,
    there: Larder,
    admin: Client,
    user: Client,
    _bystander: Option<Client>,
}

impl Two {
    fn start(kind: Kind, has_bystander: bool, flags: &[&str]) -> Self {
        let upstream = Server::start(kind, &[]);
        let mut direct = upstream.client();
        assert_eq!(direct.run("ACL SETUSER admin on >admin-pw ~* &* +@all"), OK);
        assert_eq!(direct.run("SET a:1 of-a"), OK);
        let (here, there) = (Larder::start(Some(&upstream), flags), Larder::start(Some(&upstream), &[]));
        let mut admin = through(&here, "admin");
        assert_eq!(admin.run("GET a:1"), bulk("of-a"));
        assert_eq!(here.client().run("GET a:1"), bulk("of-a"));
        let _bystander = has_bystander.then(|| {
            let mut bystander = through(&there, "admin");
            assert_eq!(bystander.run("GET a:1"), bulk("of-a"));
            bystander
        });
        let mut user = there.client();
        wait_until("L1 has it", || {
            user.run("GET a:1");
            let before = upstream.calls("get");
            user.run("GET a:1") == bulk("of-a") && upstream.calls("get") == before
        });
        let all = 3 + i64::from(has_bystander);
        wait_until("all can be asked", || direct.ask("PUBSUB SHARDNUMSUB larder:peers").items()[1].int() == all);
        Self { upstream, here, there, admin, user, _bystander }
    }

    /// The user at the other Larder is refused at once.
    #[track_caller]
    fn user_is_refused(&mut self, after: &str) {
        let got = self.user.run("GET a:1");
        assert!(got.starts_with(b"-NOPERM"), "{after}: {}", got.escape_ascii());
    }
}

/// As whom a Larder speaks to others, and by whom these hear it, is not left to a user whose rights have just gone.
#[test]
fn rights_of_the_default_user_that_are_taken_away_through_another_larder_are_gone_at_once() {
    if Larder::is_plain() {
        return;
    }
    for kind in [Kind::Redis, Kind::Valkey] {
        for (change, has_bystander) in [
            ("ACL SETUSER default -@all", true),
            ("ACL SETUSER default resetkeys -spublish", true),
            // The server ends its subscriptions, here and there.
            ("ACL SETUSER default resetkeys resetchannels", true),
            ("ACL SETUSER default resetkeys", false),
            // The other Larder hears it, and has nobody left who could say so.
            ("ACL SETUSER default -@all", false),
        ] {
            let mut two = Two::start(kind, has_bystander, &[]);
            let what = format!("{kind:?}, {change}, {has_bystander}");
            assert_eq!(two.admin.run(change), OK, "{what}");
            two.user_is_refused(&what);
        }
    }
}

/// Who takes its own right to speak away is not told that others know if nobody is left who could ask them.
#[test]
fn who_cannot_tell_other_larders_any_more_is_told_so() {
    if Larder::is_plain() {
        return;
    }
    let upstream = Server::redis(&[]);
    let [here, there] = [0, 1].map(|_| Larder::start(Some(&upstream), &[]));
    let (mut admin, mut other, mut direct) = (here.client(), there.client(), upstream.client());
    for client in [&mut admin, &mut other] {
        assert_eq!(client.run("GET k"), NIL2);
    }
    wait_until("both can be asked", || direct.ask("PUBSUB SHARDNUMSUB larder:peers").items()[1].int() == 2);
    // Each asks whether it may, and greets; one answers at least.
    wait_until("they have met", || upstream.calls("spublish") >= 5);
    let wanted = "PEERTIMEOUT other Larders cannot be told at present; the rights are changed upstream";
    assert_eq!(error_of(&admin.run("ACL SETUSER default -spublish")), wanted);
    // Alone, nobody is left in doubt.
    let upstream = Server::redis(&[]);
    let here = Larder::start(Some(&upstream), &[]);
    let mut admin = here.client();
    admin.run("GET k");
    let mut direct = upstream.client();
    wait_until("it can be asked", || direct.ask("PUBSUB SHARDNUMSUB larder:peers").items()[1].int() == 1);
    assert_eq!(admin.run("ACL SETUSER default -spublish"), OK);
}

#[test]
fn a_larder_that_does_not_hear_of_changed_rights_or_databases_is_named() {
    if Larder::is_plain() {
        return;
    }
    let mut two = Two::start(Kind::Redis, false, &["--set", "tags.peers_ms_max=300"]);
    two.there.signal("STOP");
    let untold = "PEERTIMEOUT 2 of 3 Larders have confirmed within 300 ms; ";
    let rights = format!("{untold}the rights are changed upstream");
    assert_eq!(error_of(&two.admin.run("ACL SETUSER bob on nopass +@all")), rights);
    assert_eq!(error_of(&two.admin.run("SWAPDB 0 1")), format!("{untold}the databases are swapped upstream"));
    assert_eq!(two.upstream.client().run("GET a:1"), NIL2, "they are");
    // What has not been done is what the server says.
    let refused = error_of(&two.admin.run("SWAPDB 0 99999"));
    assert!(refused.starts_with("ERR "), "{refused}");
    two.admin.send_raw(&[encode(&["MULTI"]), encode(&["ACL", "DELUSER", "bob"]), encode(&["EXEC"])].concat());
    assert_eq!((two.admin.frame(), two.admin.frame()), (OK.to_vec(), b"+QUEUED\r\n".to_vec()));
    assert_eq!(error_of(&two.admin.frame()), rights);
    two.there.signal("CONT");
    wait_until("all know", || two.admin.run("SWAPDB 0 1") == OK);
    assert!(two.here.output().contains("another Larder may not know"), "{}", two.here.output());
}

/// What is sent behind it, and waits, does not let the answer out before others have been told.
#[test]
fn a_change_of_rights_in_a_pipeline_is_not_answered_earlier() {
    if Larder::is_plain() {
        return;
    }
    let mut two = Two::start(Kind::Redis, true, &[]);
    let change = encode(&["ACL", "SETUSER", "default", "resetkeys"]);
    two.admin.send_raw(&[change, encode(&["BLPOP", "nothing", "0"]), encode(&["PING"])].concat());
    assert_eq!(two.admin.frame(), OK);
    two.user_is_refused("in front of BLPOP");
    let mut pusher = through(&two.here, "admin");
    assert_eq!(pusher.run("LPUSH nothing x"), b":1\r\n");
    assert!(two.admin.frame().starts_with(b"*2\r\n"));
    assert_eq!(two.admin.frame(), b"+PONG\r\n");
}

/// The beginning of a long reply is passed on while the rest comes; the end waits for other Larders, or does not come.
#[test]
fn a_change_of_rights_behind_a_long_reply_is_not_answered_earlier() {
    if Larder::is_plain() {
        return;
    }
    let long = "x".repeat(8 << 20);
    let change = ["ACL", "SETUSER", "default", "resetkeys"];
    let transaction = [encode(&["MULTI"]), encode(&["GET", "long"]), encode(&change), encode(&["EXEC"])].concat();
    for hears in [true, false] {
        let mut two = Two::start(Kind::Redis, true, &["--set", "tags.peers_ms_max=1000"]);
        two.admin.ok(&["SET", "long", &long]);
        if !hears {
            two.there.signal("STOP");
        }
        two.admin.send_raw(&transaction);
        assert_eq!(two.admin.frame(), OK);
        for _ in 0..2 {
            assert_eq!(two.admin.frame(), b"+QUEUED\r\n");
        }
        let told = two.admin.try_frame();
        if hears {
            assert!(told.expect("a reply").ends_with(b"+OK\r\n"));
            two.user_is_refused("in a transaction");
        } else {
            assert!(told.is_err(), "half a reply, or nothing");
            two.there.signal("CONT");
        }
    }
}

/// Rights that are changed at the server, where no Larder sees it: nothing tells of them, but keys that are in use are touched
/// there now and then, and that is refused.
#[test]
fn a_right_to_keys_that_is_taken_away_directly_is_noticed_when_they_are_touched() {
    if Larder::is_plain() {
        return;
    }
    for kind in [Kind::Redis, Kind::Valkey] {
        for change in ["ACL SETUSER alice resetkeys ~b:*", "ACL SETUSER alice -@all"] {
            let upstream = Server::start(kind, &[]);
            let mut direct = upstream.client();
            assert_eq!(direct.run("ACL SETUSER alice on >alice-pw ~a:* ~b:* &* +@all"), OK);
            assert_eq!(direct.run("MSET a:1 of-a b:1 of-b"), OK);
            let larder = Larder::start(Some(&upstream), &["--set", "l1.touch_interval_ms=200"]);
            let mut alice = through(&larder, "alice");
            for key in ["a:1", "b:1"] {
                alice.run(&format!("GET {key}"));
            }
            wait_until("it is touched", || {
                alice.run("GET a:1");
                upstream.calls("touch") > 0
            });
            assert_eq!(direct.run(change), OK);
            wait_until("it is refused", || alice.run("GET a:1").starts_with(b"-NOPERM"));
            let mine = alice.run("GET b:1");
            assert!(mine == bulk("of-b") || change.ends_with("-@all"), "{}", mine.escape_ascii());
        }
    }
}

#[test]
fn a_user_that_is_removed_directly_reads_no_more() {
    let (upstream, larder) = start();
    let mut alice = through(&larder, "alice");
    alice.run("GET a:1");
    signed_in(&upstream, "default", "secret").run("ACL DELUSER alice");
    let refused = |client: &mut Client| {
        // The server closes the connections of a user that is removed: an error or a closed connection will do.
        client.try_cmd(&["GET", "a:1"]).map_or(true, |reply| reply[0] == b'-')
    };
    wait_until("the removed user is refused", || refused(&mut alice));
    let mut again = larder.client();
    assert!(again.run("AUTH alice alice-pw").starts_with(b"-WRONGPASS"));
}

/// Idle, subscribed, tracking, blocked: whoever is a user that is removed is disconnected at once, and nobody else.
#[test]
fn a_user_that_is_removed_through_larder_is_disconnected_at_once() {
    for removal in [&["ACL DELUSER nobody alice"][..], &["MULTI", "ACL DELUSER alice", "EXEC"]] {
        let (_upstream, larder) = start();
        let mut admin = larder.client();
        admin.ok(&["AUTH", "secret"]);
        let [mut idle, mut subscribed, mut tracking, mut watching, mut bob] =
            ["alice", "alice", "alice", "alice", "bob"].map(|user| through(&larder, user));
        idle.run("GET a:1");
        subscribed.run("SUBSCRIBE ch");
        assert_eq!(tracking.run("CLIENT TRACKING ON"), OK);
        assert_eq!(watching.run("WATCH a:1"), OK);
        for line in removal {
            admin.run(line);
        }
        for (client, what) in [
            (&mut idle, "idle"),
            (&mut subscribed, "subscribed"),
            (&mut tracking, "tracking"),
            (&mut watching, "watching"),
        ] {
            assert_eq!(client.rest().escape_ascii().to_string(), "", "{what}");
        }
        assert_eq!(bob.run("GET b:1"), bulk("of-b"), "another user stays");
        assert_eq!(admin.run("PING"), b"+PONG\r\n", "and so does who did it");
        // The name means somebody else now, who starts as everybody does.
        assert_eq!(admin.run("ACL SETUSER alice on >alice-pw ~a:* +@all"), OK);
        assert_eq!(through(&larder, "alice").run("GET a:1"), bulk("of-a"));
    }
}

#[test]
fn who_removes_itself_is_answered_and_disconnected() {
    let (_upstream, larder) = start();
    let (mut writer, mut other) = (through(&larder, "writer"), through(&larder, "writer"));
    writer.send_raw(&[encode(&["ACL", "DELUSER", "writer"]), encode(&["GET", "shared"])].concat());
    assert_eq!(writer.rest(), b":1\r\n", "the answer, and nothing behind it");
    assert_eq!(other.rest(), b"");
}

#[test]
fn an_idle_client_of_a_user_that_is_removed_directly_is_disconnected() {
    let (upstream, larder) = start();
    let (mut alice, mut bob) = (through(&larder, "alice"), through(&larder, "bob"));
    alice.run("GET a:1");
    signed_in(&upstream, "default", "secret").run("ACL DELUSER alice");
    assert_eq!(alice.rest(), b"");
    assert_eq!(bob.run("GET b:1"), bulk("of-b"));
}

/// The server does not disconnect users whose rights or passwords change.
#[test]
fn a_user_that_is_changed_stays_connected() {
    let (upstream, larder) = start();
    let (mut alice, mut direct) = (through(&larder, "alice"), signed_in(&upstream, "alice", "alice-pw"));
    let mut admin = larder.client();
    admin.ok(&["AUTH", "secret"]);
    for change in ["ACL SETUSER alice >another", "ACL SETUSER alice <alice-pw", "ACL SETUSER alice off"] {
        assert_eq!(admin.run(change), OK);
        for line in ["GET a:1", "SET a:2 x", "GET a:2", "GET b:1"] {
            assert_same(&format!("{change}: {line}"), &direct.run(line), &alice.run(line));
        }
    }
}

/// Whether a user may select a database is asked each time, also where it is already, or others have been before.
#[test]
fn select_is_refused_as_the_server_refuses_it() {
    let (upstream, larder) = start();
    let mut admin = signed_in(&upstream, "default", "secret");
    let mut earlier = through(&larder, "writer");
    earlier.run("SELECT 1");
    for rules in [
        "on >writer-pw ~* +@all -select",
        "on >writer-pw ~* +@read",
        "on >writer-pw ~* +@read +select|1",
        "on >writer-pw +get (+select ~x)",
        "on >writer-pw ~* +@all",
    ] {
        // Changed and not removed: the scopes stay.
        assert_eq!(admin.run(&format!("ACL SETUSER writer reset {rules}")), OK);
        let (mut direct, mut client) = (signed_in(&upstream, "writer", "writer-pw"), through(&larder, "writer"));
        for line in ["SELECT 1", "SELECT 0", "SELECT 0", "SELECT 1", "SELECT 1", "SELECT 99", "SELECT x", "SELECT 0"] {
            assert_same(&format!("{rules}: {line}"), &direct.run(line), &client.run(line));
        }
        let (mut direct, mut client) = (upstream.client(), larder.client());
        for line in ["AUTH secret", "SELECT 1", "AUTH writer writer-pw", "SELECT 1", "SELECT 0"] {
            assert_same(&format!("{rules}, from within: {line}"), &direct.run(line), &client.run(line));
        }
    }
}

#[test]
fn a_user_without_pttl_is_served_uncached() {
    let (upstream, larder) = start();
    let mut admin = signed_in(&upstream, "default", "secret");
    assert_eq!(admin.run("ACL SETUSER narrow on >narrow-pw ~* &* +get +set +auth +ping"), OK);
    let mut narrow = through(&larder, "narrow");
    for n in 0..50 {
        let text = n.to_string();
        narrow.ok(&["SET", "n", &text]);
        assert_eq!(narrow.run("GET n"), bulk(&text));
        admin.run(&format!("SET n direct{n}"));
        assert_eq!(narrow.run("GET n"), bulk(&format!("direct{n}")));
    }
    assert!(narrow.run("PTTL n").starts_with(b"-NOPERM"));
}

/// The password in the URL is Larder's own; clients need none, as the default user of a server without a password.
#[test]
fn a_password_in_the_url_serves_clients_that_have_none() {
    let (upstream, _) = start();
    if Larder::is_plain() {
        return;
    }
    let url = format!("redis://:secret@{}", upstream.address());
    let larder = Larder::with_url(&url, &[]);
    let mut client = larder.client();
    assert_eq!(client.run("GET a:1"), bulk("of-a"));
    assert_eq!(client.run("SET fresh 1"), OK);
    assert_eq!(client.run("GET fresh"), bulk("1"));

    let url = format!("redis://alice:alice-pw@{}/2", upstream.address());
    let larder = Larder::with_url(&url, &[]);
    let mut client = larder.client();
    assert_eq!(client.run("GET a:1"), NIL2, "database 2 is empty");
    assert!(client.run("GET b:1").starts_with(b"-NOPERM"));
    assert!(!larder.output().contains("alice-pw") && !larder.output().contains("secret"), "no secret in the log");
}

#[test]
fn without_a_password_auth_answers_as_the_server() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut direct, mut client) = (upstream.client(), larder.client());
    for line in ["AUTH any", "AUTH default any", "AUTH nobody any", "ACL WHOAMI", "GET k", "HELLO 3 AUTH default any"] {
        if line.starts_with("HELLO") {
            assert_eq!(direct.run(line)[0], client.run(line)[0]);
        } else {
            assert_same(line, &direct.run(line), &client.run(line));
        }
    }
    assert_spared(&upstream, "get", || client.run("GET k"));
}

/// CLIENT ID and its like are Larder's to answer, and the upstream's to refuse and to count.
#[test]
fn what_is_said_of_clients_is_refused_and_counted_by_the_upstream() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    upstream.client().ok(&["ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", "-client"]);
    for protocol in [2, 3] {
        let both = [larder.address(), upstream.address()];
        let [mut through, mut direct] = both.map(|address| Client::speaking(protocol, address));
        for line in ["AUTH narrow pw", "CLIENT ID", "CLIENT INFO", "CLIENT LIST", "CLIENT GETNAME", "CLIENT ID x"] {
            assert_same(line, &direct.run(line), &through.run(line));
        }
        let batch = [encode(&["GET", "k"]), encode(&["CLIENT", "ID"]), encode(&["GET", "k"])].concat();
        let (direct, through) = (direct.pipeline(&batch, 3), through.pipeline(&batch, 3));
        assert_eq!(direct, through);
    }
    let (mut client, mut direct) = (larder.client(), upstream.client());
    client.run("CLIENT SETNAME me");
    direct.ok(&["CONFIG", "RESETSTAT"]);
    let id = client.ask("CLIENT ID").int();
    assert_eq!(client.run("CLIENT GETNAME"), bulk("me"));
    assert!(client.ask("CLIENT LIST").text().contains(&format!("id={id} ")));
    assert!(client.ask("CLIENT INFO").text().starts_with(&format!("id={id} ")));
    for name in ["client|id", "client|getname", "client|list", "client|info"] {
        assert_eq!(upstream.calls(name), 1, "{name}");
    }
}

/// A hit that is held behind a miss may have become void; what stands behind it is done again, and CLIENT ID is not.
#[test]
fn larders_answers_stay_its_own_among_hits_that_are_done_again() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let (mut client, mut writer) = (larder.client(), larder.client());
    let id = format!(":{}\r\n", client.ask("CLIENT ID").int()).into_bytes();
    let batch = [
        encode(&["GET", "miss"]),
        encode(&["GET", "hit"]),
        encode(&["CLIENT", "ID"]),
        encode(&["GET", "hit"]),
        encode(&["CLIENT", "ID"]),
    ];
    for n in 0..300 {
        client.run("GET hit");
        writer.send(&["MSET", "hit", &n.to_string(), "miss", &n.to_string()]);
        let replies = client.pipeline(&batch.concat(), batch.len());
        assert_eq!((&replies[2], &replies[4]), (&id, &id), "round {n}");
        writer.frame();
    }
}
