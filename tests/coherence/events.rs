//! Whatever changes a key, by whatever command and from wherever: L1 says afterwards what the upstream says.
//!
//! After a change through Larder at once, for other users and in other databases, too; after a change elsewhere as soon as a
//! fence has been passed.

use std::time::{Duration, Instant};

use crate::commands;
use crate::support::{Client, Kind, Larder, Rng, Server, Value, show, words};
use crate::{Scene, catch_up, on_both_servers};

on_both_servers! {
    // Item 4.
    what_changes_whole_keys_leaves_nothing_stale: known_changes,
    // Items 1, 2 and 4: no list of known changes is complete.
    no_command_leaves_anything_stale: any_command,
}

/// Something that changes keys in a way of its own.
struct Change {
    /// Sent directly, at first.
    setup: &'static [&'static str],
    /// The change. `@other` in front: at the other server. `{other}`: its port. `{dump}`: what DUMP said of `src`.
    change: &'static [&'static str],
    /// Whether it is made through Larder only: elsewhere the upstream sends no push for it.
    only_through: bool,
}

const fn change(setup: &'static [&'static str], change: &'static [&'static str]) -> Change {
    Change { setup, change, only_through: false }
}

const CHANGES: &[Change] = &[
    change(&["SET k old"], &["FLUSHDB"]),
    change(&["SET k old"], &["FLUSHALL"]),
    change(&["SET k old"], &["FLUSHALL ASYNC"]),
    change(&["SET k old"], &["FLUSHALL", "SET k new"]),
    Change { only_through: true, ..change(&["SET k old"], &["SWAPDB 0 1"]) },
    Change { only_through: true, ..change(&["SET k old", "SET m old"], &["MULTI", "SET m new", "SWAPDB 1 0", "EXEC"]) },
    change(&["SET k old"], &["RENAME k m"]),
    change(&["SET k old", "SET m other"], &["RENAME k m"]),
    change(&["SET k old"], &["RENAMENX k m"]),
    change(&["SET k old", "SET m other"], &["COPY k m REPLACE"]),
    change(&["SET k old"], &["COPY k k DB 1"]),
    change(&["SET k old"], &["MOVE k 1"]),
    change(&["SET src new", "SET k old"], &["RESTORE k 0 {dump} REPLACE"]),
    change(&["SET src new"], &["RESTORE k 100000 {dump}"]),
    change(&["SET k old"], &["MIGRATE 127.0.0.1 {other} k 0 5000"]),
    change(&["SET k old", "SET m old"], &["MIGRATE 127.0.0.1 {other} - 0 5000 KEYS k m"]),
    change(&["SET k old"], &["@other SET k new", "@other MIGRATE 127.0.0.1 {upstream} k 0 5000 REPLACE"]),
    change(&[], &["@other SET k new", "@other MIGRATE 127.0.0.1 {upstream} k 1 5000 COPY"]),
    change(&["SET k old"], &["DEL k"]),
    change(&["SET k old"], &["UNLINK k"]),
    change(&["SET k old"], &["GETDEL k"]),
    change(&["SET k old"], &["EXPIRE k 0"]),
    change(&["SET k old"], &["PEXPIREAT k 1"]),
    change(&["SET k old"], &["GETEX k EXAT 1"]),
    change(&["SET k old"], &["EVAL redis.call('set','k','new')return(1) 0"]),
    change(&["SET k old"], &["EVAL redis.call('select',1)return(redis.call('set','k','new')) 0"]),
    change(&["SET k old"], &["EVAL redis.call('flushall')return(1) 0"]),
    change(&["SET k old"], &["MULTI", "SET k new", "SELECT 1", "SET k new", "EXEC"]),
    change(&["SET k old"], &["MULTI", "FLUSHDB", "SET k new", "EXEC"]),
    change(&["RPUSH l 2 1", "SET k old"], &["SORT l STORE k"]),
    change(&["RPUSH l 1", "SET k old"], &["BLMOVE l m LEFT LEFT 1"]),
    change(&["RPUSH k 1"], &["BLPOP k 1"]),
    change(&["ZADD k 1 a"], &["BZPOPMIN k 1"]),
    change(&["SADD l a b", "SET k old"], &["SUNIONSTORE k l"]),
    change(&["SET l new", "SET k old"], &["BITOP AND k l"]),
    change(&["SET k old PX 100000"], &["PERSIST k"]),
    change(&["SET k old PX 100000"], &["GETEX k PERSIST"]),
    change(&["SET k old"], &["PEXPIRE k 100000 NX"]),
    change(&["SET k old"], &["MULTI", "RENAME k m", "COPY m k", "GETDEL m", "EXEC"]),
    change(&["SET k old"], &["MULTI", "EXPIRE k 0", "EXEC"]),
    Change { only_through: true, ..change(&["SET k old"], &["MULTI", "MOVE k 1", "SWAPDB 0 1", "EXEC"]) },
    change(&["XADD k 1-1 f v"], &["XTRIM k MAXLEN 0"]),
    change(&["SET k old"], &["DEBUG RELOAD"]),
];

/// In each database.
const CHECKS: &[&str] = &[
    "GET k",
    "GET m",
    "EXISTS k m",
    "MGET k m",
    "TYPE k",
    "STRLEN m",
    "LRANGE k 0 -1",
    "ZCARD k",
    "EXPIRETIME k",
    "XLEN k",
];

fn known_changes(kind: Kind) {
    let scene = Scene::start("changes", kind, &["--appendonly", "yes"]);
    // What counts is behind a fence, or an answer: delays would only make it last.
    scene.relay.delay(Duration::from_micros(500));
    let other = Server::start(kind, &[]);
    scene.upstream.client().ok(&["ACL", "SETUSER", "alice", "on", ">pw", "~*", "&*", "+@all"]);
    let mut done = 0;
    for change in CHANGES {
        for through in [false, true] {
            let at_other = change.change.iter().any(|line| line.starts_with('@'));
            if !(through && at_other || !through && change.only_through) {
                make(&scene, &other, change, through);
                done += 1;
            }
        }
    }
    println!("changes, {kind:?}: {done} changes of {} kinds", CHANGES.len());
}

fn make(scene: &Scene, other: &Server, change: &Change, through: bool) {
    let mut direct = [scene.upstream.client(), scene.upstream.client()];
    let mut readers = [scene.larder.client(), scene.larder.client3(), scene.larder.client()];
    let mut writer = if through { scene.larder.client() } else { scene.upstream.client() };
    direct[1].ok(&["SELECT", "1"]);
    readers[1].ok(&["SELECT", "1"]);
    readers[2].ok(&["AUTH", "alice", "pw"]);
    // A client that wants no idle times touched has what it reads kept like any other. (Not known before Redis 7.2.)
    readers[0].cmd(&["CLIENT", "NO-TOUCH", "ON"]);
    direct[0].ok(&["FLUSHALL"]);
    other.client().ok(&["FLUSHALL"]);
    change.setup.iter().for_each(|line| drop(direct[0].run(line)));
    let dump = match direct[0].value(&["DUMP", "src"]) {
        Value::Null => Vec::new(),
        dump => dump.bytes().to_vec(),
    };
    for reader in &mut readers {
        catch_up(reader);
        CHECKS.iter().chain(CHECKS).for_each(|check| drop(reader.run(check)));
    }
    for line in change.change {
        let (line, at_other) = line.strip_prefix("@other ").map_or((*line, false), |rest| (rest, true));
        let args: Vec<Vec<u8>> = words(line)
            .into_iter()
            .map(|word| match word {
                "{other}" => other.address().port().to_string().into_bytes(),
                "{upstream}" => scene.upstream.address().port().to_string().into_bytes(),
                "{dump}" => dump.clone(),
                // An empty word.
                "-" => Vec::new(),
                word => word.as_bytes().to_vec(),
            })
            .collect();
        let reply = if at_other { other.client().cmd(&args) } else { writer.cmd(&args) };
        assert!(!reply.starts_with(b"-"), "{line}: {}", show(&reply));
    }
    for (nth, reader) in readers.iter_mut().enumerate() {
        let database = nth % 2;
        if !through {
            catch_up(reader);
        }
        for check in CHECKS {
            let (seen, there) = (reader.ask(check), direct[database].ask(check));
            assert_eq!(
                seen, there,
                "{check} for reader {nth} in database {database} after {:?}, through Larder: {through}",
                change.change
            );
        }
    }
}

/// Commands that change their connection, wait, or, sent directly, are known to send no push; and reads whose answers change
/// by themselves or by chance.
const LEFT_OUT: &[&str] = &[
    "SELECT",
    "SWAPDB",
    "HELLO",
    "RESET",
    "CLIENT",
    "WATCH",
    "UNWATCH",
    "EXEC",
    "DISCARD",
    "MULTI",
    "READONLY",
    "READWRITE",
    "ASKING",
    "CONFIG",
    "TTL",
    "PTTL",
    "HTTL",
    "HPTTL",
    "OBJECT",
    "MEMORY",
    "DUMP",
    "RANDOMKEY",
    "SRANDMEMBER",
    "HRANDFIELD",
    "ZRANDMEMBER",
    "SCAN",
    "SSCAN",
    "HSCAN",
    "ZSCAN",
    "KEYS",
    "DBSIZE",
    "XPENDING",
    "XINFO",
    "FUNCTION",
    "SCRIPT",
    "FCALL",
    "TIME|LASTSAVE|READONLY|READWRITE|ASKING",
    "TTL|PTTL|EXPIRETIME|PEXPIRETIME",
    "HTTL|HPTTL",
];
/// Reads that are looked at after each change.
const WATCHED_MAX: usize = 80;

fn any_command(kind: Kind) {
    let mut scene = Scene::start("any command", kind, &[]);
    scene.relay.delay(Duration::ZERO);
    let (mut direct, mut writers) = (scene.upstream.client(), [scene.upstream.client(), scene.larder.client()]);
    let mut direct3 = Client::resp3(scene.upstream.address());
    let mut readers = [scene.larder.client(), scene.larder.client3()];
    let mut templates: Vec<(&str, bool)> = commands::TEMPLATES
        .iter()
        .filter(|template| !LEFT_OUT.iter().any(|name| template.split(' ').next() == Some(name)))
        .map(|template| (*template, is_read(&mut direct, template)))
        .collect();
    templates.push(("EXPIRETIME|PEXPIRETIME {k}", true));
    templates.push(("EVAL_RO return(redis.call('exists',KEYS[1])) 1 {k}", true));
    let rng = &mut scene.rng;
    let (mut watched, mut changes, mut compared) = (Vec::<(usize, Vec<Vec<u8>>)>::new(), 0_u64, 0_u64);
    while Instant::now() < scene.until {
        for _ in 0..8 {
            let read = draw(rng, &templates, true);
            let protocol = rng.index(2);
            readers[protocol].cmd(&read);
            if watched.len() >= WATCHED_MAX {
                watched.swap_remove(rng.index(WATCHED_MAX));
            }
            watched.push((protocol, read));
        }
        let write = draw(rng, &templates, false);
        let through = rng.one_in(3);
        writers[usize::from(through)].cmd(&write);
        changes += 1;
        if !through {
            catch_up(&mut readers[0]);
        }
        for (protocol, read) in &watched {
            let seen = readers[*protocol].cmd(read);
            let there = if *protocol == 0 { direct.cmd(read) } else { direct3.cmd(read) };
            compared += 1;
            assert!(
                seen == there,
                "{} after {} (through Larder: {through}): {} instead of {}",
                line(read),
                line(&write),
                show(&seen),
                show(&there)
            );
        }
    }
    let hits = if Larder::is_plain() { 1 } else { hits(&mut readers[0]) };
    println!("any command, {kind:?}: {changes} changes, {compared} answers compared, {hits} of them from L1");
    assert!(hits > 0 && changes > 0);
}

/// Whether all that a template stands for only reads, as the server says.
fn is_read(direct: &mut Client, template: &str) -> bool {
    let names = template.split(' ').next().unwrap_or_default();
    names.split('|').all(|name| {
        let info = direct.value(&["COMMAND", "INFO", name]);
        let Some(Value::Array(row)) = info.items().first() else { return false };
        row[2].items().iter().any(|flag| flag.text() == "readonly")
    })
}

fn draw(rng: &mut Rng, templates: &[(&str, bool)], reads: bool) -> Vec<Vec<u8>> {
    loop {
        let (template, is_read) = *rng.pick(templates);
        if is_read == reads {
            return commands::expand(rng, template);
        }
    }
}

/// How many reads L1 has answered.
fn hits(client: &mut Client) -> u64 {
    let stats = client.value(&["CACHE", "STATS"]);
    let at = stats.items().iter().position(|item| *item == Value::Bulk(b"l1_hits".to_vec()));
    at.map_or(0, |at| u64::try_from(stats.items()[at + 1].int()).unwrap_or(0))
}

fn line(args: &[Vec<u8>]) -> String {
    args.iter().map(|arg| format!("{} ", show(arg))).collect()
}
