//! Requests on the wire: pipelines of any length, inline commands, torn and malformed requests.

use crate::support::{Client, Larder, Rng, Server, assert_same, encode, show};
use crate::{Twins, bulk};

/// A stream of commands whose replies do not depend on time or chance.
fn mixed(rng: &mut Rng, count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| {
            let key = format!("k{}", rng.below(50));
            let text = n.to_string();
            match rng.below(12) {
                0 | 1 => encode(&["SET", &key, &text]),
                2..=5 => encode(&["GET", &key]),
                6 => encode(&["DEL", &key]),
                7 => encode(&["APPEND", &key, &text]),
                8 => encode(&["MGET", &key, "k1", "k2"]),
                9 => encode(&["INCR", "counter"]),
                10 => encode(&["LPUSH", &key, &text]),
                _ => encode(&["PING", &text]),
            }
        })
        .collect()
}

fn ten_thousand_commands_in_one_pipeline_answer_in_order(protocol: u8) {
    let twins = Twins::start();
    let mut rng = Rng::new(u64::from(protocol));
    let mut both = twins.client(protocol);
    for _ in 0..3 {
        let commands = mixed(&mut rng, 10_000);
        let bytes = commands.concat();
        let direct = both.direct.pipeline(&bytes, commands.len());
        let through = both.through.pipeline(&bytes, commands.len());
        for (n, command) in commands.iter().enumerate() {
            assert_same(&format!("command {n}, {}", show(command)), &direct[n], &through[n]);
        }
    }
}

#[test]
fn ten_thousand_commands_in_one_resp2_pipeline_answer_in_order() {
    ten_thousand_commands_in_one_pipeline_answer_in_order(2);
}

#[test]
fn ten_thousand_commands_in_one_resp3_pipeline_answer_in_order() {
    ten_thousand_commands_in_one_pipeline_answer_in_order(3);
}

/// Runs of the same command, as most pipelines of a cache's clients are: hits and misses of all kinds, other letters, and what
/// ends a run.
fn a_run_of_reads_is_answered_as_by_the_server(protocol: u8) {
    let twins = Twins::start();
    let mut both = twins.client(protocol);
    let large = "v".repeat(20_000);
    let mut lines = vec!["SET dying x PX 100000000".to_owned(), "RPUSH list a".into(), format!("SET large {large}")];
    lines.extend((0..40).map(|n| format!("SET k{n} {}", "v".repeat(n * n))));
    for line in &lines {
        assert_eq!(both.direct.run(line), both.through.run(line));
    }
    let mut rng = Rng::new(7 + u64::from(protocol));
    for round in 0..60 {
        let mut commands = Vec::new();
        for _ in 0..rng.below(40) {
            let key = match rng.below(50) {
                0 => "dying".into(),
                1 => "list".into(),
                2 => "large".into(),
                3 => "absent".into(),
                _ => format!("k{}", rng.below(40)),
            };
            let run = 1 + rng.below(3);
            let command = *rng.pick(&["GET", "GET", "GET", "GET", "get", "STRLEN", "MGET", "TYPE", "SMEMBERS"]);
            commands.extend((0..run).map(|_| encode(&[command, &key])));
            match rng.below(40) {
                0 => commands.push(encode(&["SET", &key, "other"])),
                1 => commands.push(encode(&["GET", &key, "more"])),
                2 => commands.push(b"GET k1\r\n".to_vec()),
                3 => commands.push(encode(&["PING"])),
                _ => {}
            }
        }
        let bytes = commands.concat();
        let direct = both.direct.pipeline(&bytes, commands.len());
        let through = both.through.pipeline(&bytes, commands.len());
        for (n, command) in commands.iter().enumerate() {
            assert_same(&format!("round {round}, command {n}, {}", show(command)), &direct[n], &through[n]);
        }
    }
    let hits = both.through.run("CACHE STATS");
    assert!(String::from_utf8_lossy(&hits).contains("l1_hits"), "{}", show(&hits));
}

#[test]
fn a_run_of_resp2_reads_is_answered_as_by_the_server() {
    a_run_of_reads_is_answered_as_by_the_server(2);
}

#[test]
fn a_run_of_resp3_reads_is_answered_as_by_the_server() {
    a_run_of_reads_is_answered_as_by_the_server(3);
}

/// A pipelined read follows the connection's own unanswered writes, though an older value is cached.
#[test]
fn a_read_in_a_pipeline_sees_the_writes_before_it() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    client.run("SET k 0");
    for n in 1..300 {
        client.run("GET k");
        let text = n.to_string();
        let batch = [encode(&["GET", "k"]), encode(&["SET", "k", &text]), encode(&["GET", "k"])].concat();
        let replies = client.pipeline(&batch, 3);
        assert_eq!(replies[0], bulk(&(n - 1).to_string()));
        assert_eq!(replies[2], bulk(&text));
    }
}

/// Blocking, transactional and plain commands in one pipeline: each kind may go another way, the order stays.
#[test]
fn a_pipeline_of_all_kinds_of_commands_keeps_its_order() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    let lines = [
        "SET k 1",
        "GET k",
        "MULTI",
        "INCR k",
        "GET k",
        "EXEC",
        "GET k",
        "RPUSH l a b",
        "BLPOP l 1",
        "LRANGE l 0 -1",
        "EVAL return(redis.call('incr',KEYS[1])) 1 k",
        "GET k",
        "SELECT 1",
        "GET k",
        "SET k other",
        "SELECT 0",
        "GET k",
        "WATCH k",
        "GET k",
        "MULTI",
        "SET k watched",
        "EXEC",
        "GET k",
        "KEYS nothing*",
        "DEL k",
        "GET k",
    ];
    for _ in 0..20 {
        let batch: Vec<u8> = lines.iter().flat_map(|line| encode(&crate::support::words(line))).collect();
        both.send_raw(&batch);
        for line in lines {
            both.frame(line);
        }
    }
}

#[test]
fn inline_commands_work() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    for line in [
        "PING\r\n",
        "PING\n",
        "set inline value\r\n",
        "GET inline\r\n",
        "SET quoted \"a b\\x00\\n\"\r\n",
        "GET quoted\r\n",
        "SET single 'it\\'s'\r\n",
        "  GET   single  \r\n",
        "EXISTS inline quoted\r\n",
        "\r\nPING\r\n",
        "PING \"\"\r\n",
    ] {
        both.send_raw(line.as_bytes());
        both.frame(line);
    }
}

#[test]
fn a_request_that_comes_byte_by_byte_is_one_request() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    for byte in [encode(&["SET", "k", "\r\n$3\r\n"]), encode(&["GET", "k"]), b"PING\r\n".to_vec()].concat() {
        both.send_raw(&[byte]);
    }
    for what in ["SET", "GET", "PING"] {
        both.frame(what);
    }
}

/// What the server answers to each of these before it closes (or does not close) the connection.
#[test]
fn protocol_errors_are_worded_as_the_servers_own() {
    let twins = Twins::start();
    let long_inline = [b'a'; 70_000].to_vec();
    let long_count = [b"*".to_vec(), vec![b'1'; 70_000]].concat();
    let bad: Vec<Vec<u8>> = vec![
        b"*x\r\n".to_vec(),
        b"*3\r\n$x\r\n".to_vec(),
        b"*1\r\n:1\r\n".to_vec(),
        b"*2\r\n$3\r\nGET\r\n+k\r\n".to_vec(),
        b"*1\r\n$-5\r\n".to_vec(),
        b"*1\r\n$536870913\r\n".to_vec(),
        b"*01\r\n$4\r\nPING\r\n".to_vec(),
        b"*1\r\n$04\r\nPING\r\n".to_vec(),
        b"*2147483648\r\n".to_vec(),
        b"*99999999999999999999\r\n".to_vec(),
        b"GET \"unbalanced\r\n".to_vec(),
        b"GET 'a'b\r\n".to_vec(),
        long_inline,
        long_count,
    ];
    for bytes in bad {
        let mut both = twins.client(2);
        // The server closes with an error, perhaps before all has been sent.
        let sent = [both.direct.try_send_raw(&bytes), both.through.try_send_raw(&bytes)];
        drop(sent);
        assert_same(&show(&bytes), &both.direct.rest(), &both.through.rest());
    }
}

/// These look wrong and are not: the server goes on, so the connection must be as good as new.
#[test]
fn odd_but_valid_requests_are_no_errors() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    for bytes in ["*0\r\n", "*-1\r\n", "*-10\r\n", "\r\n", "*1\r\n$4\r\nPING\r\n\r\n"] {
        let mut both_sent = bytes.as_bytes().to_vec();
        both_sent.extend_from_slice(b"ECHO done\r\n");
        both.send_raw(&both_sent);
        loop {
            if both.frame(bytes) == bulk("done") {
                break;
            }
        }
    }
}

/// Replies to what came before a protocol error are still given.
#[test]
fn a_protocol_error_does_not_eat_the_replies_before_it() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    both.send_raw(&[encode(&["SET", "k", "v"]), encode(&["GET", "k"]), b"*1\r\n!\r\n".to_vec()].concat());
    assert_same("all that came", &both.direct.rest(), &both.through.rest());
}

#[test]
fn commands_are_named_in_any_case() {
    let twins = Twins::start();
    let mut both = twins.client(2);
    both.script(
        "set k v
        gEt k
        Config get maxmemory
        object ENCODING k
        nosuchcommand a b c
        NoSuchCommand
        CLIENT nosuchsubcommand
        OBJECT
        get",
    );
}

/// A hostile peer: deep nesting and absurd counts, then the next client is served as always.
#[test]
fn absurd_requests_hurt_nobody_else() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    for bytes in [b"*1\r\n".repeat(10_000), b"*1000000\r\n".to_vec(), b"*2\r\n$3\r\nGET\r\n$500000000\r\n".to_vec()] {
        let mut hostile = Client::connect(larder.address());
        // Whether it is closed while it still sends is not the question here.
        let _ = hostile.try_send_raw(&bytes);
        let mut other = larder.client();
        assert_eq!(other.run("PING"), b"+PONG\r\n");
    }
}

/// Valkey 9.1.2 repeats an unknown argument of FUNCTION LIST in its error as it is: who puts a line end into it makes the
/// server send frames of his own choice. They must not reach anybody else as replies.
#[test]
fn a_reply_with_frames_smuggled_into_it_reaches_nobody_else() {
    let upstream = Server::valkey(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut victim = larder.client();
    victim.run("SET n 0");
    for n in 1..50 {
        let mut smuggler = larder.client();
        let smuggled = "x\r\n$6\r\npoison\r\n:666\r\n+poison";
        smuggler.send_raw(&[encode(&["FUNCTION", "LIST", smuggled]), encode(&["GET", "n"])].concat());
        let batch = [encode(&["INCR", "n"]), encode(&["GET", "n"])].concat();
        let replies = victim.pipeline(&batch, 2);
        assert_eq!(replies[0], format!(":{n}\r\n").as_bytes());
        assert_eq!(replies[1], bulk(&n.to_string()));
        smuggler.frame();
    }
}

/// A reader that takes its time with a large answer does not delay anybody.
#[test]
fn a_slow_reader_holds_up_nobody() {
    let upstream = Server::redis(&[]);
    let larder = Larder::start(Some(&upstream), &[]);
    let mut client = larder.client();
    let value = "x".repeat(1024 * 1024);
    client.ok(&["SET", "big", &value]);
    let mut slow = larder.client();
    for _ in 0..64 {
        slow.send(&["GET", "big"]);
    }
    for n in 0..100 {
        let text = n.to_string();
        client.ok(&["SET", "k", &text]);
        assert_eq!(client.run("GET k"), bulk(&text));
    }
    for _ in 0..64 {
        assert!(slow.reply() == bulk(&value), "a whole value");
    }
}
