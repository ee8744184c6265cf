//! Requests whose lines do not end as they should. redis-server 7.0 takes any byte behind the `\r` of a header, and any
//! two behind an argument; Valkey 9 closes the connection at once. One client's must not end a connection that others share.

use crate::support::{Client, Kind, Larder, Server, Value, encode};

/// Where a line of the request ends, and what may be wrong there: both bytes behind an argument, the second behind a number.
fn spoiled(words: &[&str]) -> Vec<Vec<u8>> {
    let good = encode(words);
    let mut spoiled = Vec::new();
    // Headers and arguments in turn, the count in front.
    let mut at = good.iter().position(|&byte| byte == b'\r').expect("a header");
    let mut spoil = |places: &[usize]| {
        let mut bad = good.clone();
        places.iter().for_each(|&at| bad[at] = b'Z');
        spoiled.push(bad);
    };
    spoil(&[at + 1]);
    for word in words {
        at += 2;
        let header = good[at..].iter().position(|&byte| byte == b'\r').expect("a header") + at;
        let end = header + 2 + word.len();
        spoil(&[header + 1]);
        spoil(&[end]);
        spoil(&[end, end + 1]);
        at = end;
    }
    spoiled
}

#[test]
fn a_bad_line_end_is_the_business_of_its_client_alone() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let upstream = Server::start(kind, &[]);
        let larder = Larder::start(Some(&upstream), &[]);
        let (mut good, mut direct) = (larder.client(), upstream.client());
        assert_eq!(good.run("SET k v"), b"+OK\r\n");
        assert_eq!(good.run("GET k"), b"$1\r\nv\r\n");
        assert_ne!(good.ask("CACHE ENTRY k"), Value::Null);
        let links = |direct: &mut Client| {
            let list = direct.ask("CLIENT LIST").text();
            let tracking = list.lines().filter(|line| line.contains(" flags=t "));
            tracking.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        let link = links(&mut direct);
        assert_eq!(link.len(), 1);
        for protocol in [2, 3] {
            // A read from L1, one down the link, writes, what has a connection of its own, what is answered here.
            for words in [
                &["GET", "k"][..],
                &["GET", "other"],
                &["MGET", "k", "other", "a-key-with-a-name-of-more-than-ten"],
                &["SET", "w", "x"],
                &["EVAL", "return ARGV[1]", "0", "hello"],
                &["MULTI"],
                &["INCRBY", "n", "0"],
                &["EXEC"],
                &["BLPOP", "none", "0.01"],
                &["PING", "hello"],
                &["ECHO", "hello"],
                &["CLIENT", "GETNAME"],
                &["SELECT", "0"],
                &["CACHE", "READ"],
            ] {
                let in_multi = ["INCRBY", "EXEC"].contains(&words[0]);
                let ask = |request: &[u8]| {
                    let mut client = Client::speaking(protocol, larder.address());
                    if in_multi {
                        client.ok(&["MULTI"]);
                    }
                    client.send_raw(request);
                    client.reply()
                };
                let wanted = ask(&encode(words));
                for request in spoiled(words) {
                    assert_eq!(ask(&request), wanted, "{kind:?}, {}", request.escape_ascii());
                    // In the midst of others, and cut.
                    let mut client = Client::speaking(protocol, larder.address());
                    let ping = encode(&["PING"]);
                    if !in_multi {
                        client.send_raw(&[&ping[..], &request[..], &ping[..]].concat());
                        let replies = [client.reply(), client.reply()];
                        assert_eq!(
                            replies,
                            [b"+PONG\r\n".to_vec(), wanted.clone()],
                            "{kind:?}, {}",
                            request.escape_ascii()
                        );
                    }
                }
            }
        }
        assert_eq!(links(&mut direct), link, "{kind:?}");
        assert_ne!(good.ask("CACHE ENTRY k"), Value::Null, "{kind:?}: nothing was lost");
    }
}
