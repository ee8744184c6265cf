//! Finds the ends of requests and replies: bounded, resumable, without recursion and without copying.
//!
//! Two scanners, one for each direction:
//!
//! * [`RequestScanner`] looks at a client's bytes from the first byte of a request and says where the request ends
//!   and where its arguments stand. What it accepts and how it words what it refuses is redis-server's own
//!   (`processMultibulkBuffer` and `processInlineBuffer` of 7.0.15, measured on the wire).
//! * [`ReplyScanner`] consumes an upstream's bytes in pieces of any size and says when a reply is complete. It keeps
//!   no bytes, so that a large reply can be passed on while it arrives.
//!
//! Invariants: each byte is looked at once, however the bytes are cut; nothing is allocated per argument (the range
//! vector is reused); nesting, counts and lengths have bounds; no input makes it panic. A scanner that has returned
//! an error must not be used again: the connection is to be closed.

mod inline;
mod reply;
mod request;

pub use self::reply::{Advance, ReplyError, ReplyLimits, ReplyScanner};
pub use self::request::{Ahead, ENCODED_BYTES_MAX, RequestError, RequestLimits, RequestScanner, Step};

/// A decimal number in the one form that redis-server accepts (`string2ll`), or `None`.
pub fn strict_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut value: u64 = 0;
    for d in digits {
        if !d.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(d - b'0'))?;
    }
    if negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan_all(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Vec<Vec<u8>>>, RequestError> {
        let mut scanner = RequestScanner::new(RequestLimits { inline_bytes_max: 200, ..RequestLimits::default() });
        let mut out = Vec::new();
        let mut buf = Vec::new();
        let mut rest = bytes;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            buf.extend_from_slice(now);
            rest = later;
            loop {
                match scanner.scan(&buf)? {
                    Step::Incomplete { .. } => break,
                    Step::Nothing { len } => drop(buf.drain(..len)),
                    Step::Request { len } => {
                        out.push(scanner.args(&buf).iter().map(<[u8]>::to_vec).collect());
                        buf.drain(..len);
                    }
                }
            }
        }
        Ok(out)
    }

    fn words(list: &[&str]) -> Vec<Vec<u8>> {
        list.iter().map(|w| w.as_bytes().to_vec()).collect()
    }

    #[test]
    fn finds_arrays_inline_requests_and_nothing() {
        let got =
            scan_all(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n\r\n*0\r\n*-1\r\nSET a \"b\\x41 c\"\r\nPING\n", &[]).unwrap();
        assert_eq!(got, vec![words(&["GET", "k"]), words(&["SET", "a", "bA c"]), words(&["PING"])]);
    }

    #[test]
    fn what_repeats_is_the_command_in_its_letters_with_as_many_arguments() {
        let mut scanner = RequestScanner::new(RequestLimits::default());
        let pad = b"*1\r\n$4\r\nPING\r\n";
        let mut repeats = |request: &[u8]| {
            let buf = [request, pad].concat();
            assert_eq!(scanner.scan(&buf), Ok(Step::Request { len: request.len() }));
            scanner.repeats()
        };
        let get = |key: &str| format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).into_bytes();
        assert!(!repeats(&get("a")));
        assert!(
            repeats(&get("longer")) && repeats(&get("")) && repeats(&get(&"k".repeat(5000))) == repeats(b"GET a\r\n")
        );
        assert!(!repeats(&get("a")) && repeats(&get("b")));
        assert!(!repeats(b"*2\r\n$3\r\nget\r\n$1\r\na\r\n"), "other letters");
        assert!(!repeats(&get("a")) && !repeats(b"*3\r\n$3\r\nGET\r\n$1\r\na\r\n$1\r\nb\r\n"), "more arguments");
        assert!(!repeats(pad) && repeats(pad));
        let long = b"*2\r\n$7\r\nHGETALL\r\n$1\r\nh\r\n";
        assert!(!repeats(long) && !repeats(long), "too long for one comparison");
    }

    #[test]
    fn requests_ahead_are_whole_and_alike() {
        let mut scanner = RequestScanner::new(RequestLimits { bulk_bytes_max: 20, ..RequestLimits::default() });
        let get = |key: &str| format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len());
        let first = get("key");
        let bytes = [&first, &get("a"), &get("bcdefghijkl"), &get(""), &get("xy")].map(String::as_str).concat();
        let len = first.len();
        assert_eq!(scanner.scan(bytes.as_bytes()), Ok(Step::Request { len }));
        let keys = |rest: &[u8], max: usize| {
            let mut found = vec![Ahead::default(); max];
            let count = scanner.ahead(rest, &mut found);
            let key = |a: &Ahead| String::from_utf8_lossy(&rest[a.start as usize..][..a.len as usize]).into_owned();
            let ends = found[..count].iter().map(|a| a.end as usize);
            (found[..count].iter().map(key).collect::<Vec<_>>(), ends.max().unwrap_or(0))
        };
        let rest = &bytes.as_bytes()[len..];
        assert_eq!(keys(rest, 9), (vec!["a".into(), "bcdefghijkl".into(), "".into(), "xy".into()], rest.len()));
        assert_eq!(keys(rest, 1).0, ["a"]);
        // The last one is not all there.
        assert_eq!(keys(&rest[..rest.len() - 1], 9).0.len(), 3);
        for other in
            [get(&"k".repeat(21)), "GET a\r\n".into(), "*2\r\n$3\r\nTTL\r\n$1\r\na\r\n".into(), get("a").to_lowercase()]
        {
            assert_eq!(
                keys(format!("{}{other}{rest}", get("one"), rest = get("k")).as_bytes(), 9).0,
                ["one"],
                "{other}"
            );
        }
        assert_eq!(scanner.scan(rest), Ok(Step::Request { len: get("a").len() }), "nothing was taken");
    }

    #[test]
    fn words_its_refusals_as_redis_does() {
        let text = |bytes: &[u8]| scan_all(bytes, &[]).unwrap_err().to_string();
        assert_eq!(text(b"*x\r\n"), "Protocol error: invalid multibulk length");
        assert_eq!(text(b"*01\r\n"), "Protocol error: invalid multibulk length");
        assert_eq!(text(b"*3000000000\r\n"), "Protocol error: invalid multibulk length");
        assert_eq!(text(b"*1\r\nfoo\r\n"), "Protocol error: expected '$', got 'f'");
        assert_eq!(text(b"*1\r\n$-1\r\n"), "Protocol error: invalid bulk length");
        assert_eq!(text(b"*1\r\n$2000000000\r\n"), "Protocol error: invalid bulk length");
        assert_eq!(text(b"GET \"a\r\n"), "Protocol error: unbalanced quotes in request");
        assert_eq!(text(&[b'a'; 300]), "Protocol error: too big inline request");
        let mut long = b"*".to_vec();
        long.extend([b'1'; 300]);
        assert_eq!(text(&long), "Protocol error: too big mbulk count string");
        let mut long = b"*1\r\n$".to_vec();
        long.extend([b'1'; 300]);
        assert_eq!(text(&long), "Protocol error: too big bulk count string");
    }

    #[test]
    fn wrong_line_ends_are_put_right() {
        let request: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$10\r\n0123456789\r\n";
        // The second byte of the end of each header, both of the end of each argument.
        let ends = request.iter().enumerate().filter(|(_, byte)| matches!(byte, b'\r' | b'\n'));
        let headers_cr = [2, 6, 15, 23];
        for at in ends.map(|(at, _)| at).filter(|at| !headers_cr.contains(at)) {
            let mut bad = request.to_vec();
            bad[at] = b'X';
            for cut in [1, bad.len()] {
                let mut scanner = RequestScanner::new(RequestLimits::default());
                let seen = (1..=bad.len()).filter(|n| n % cut == 0).map(|n| scanner.scan(&bad[..n]));
                assert_eq!(seen.last(), Some(Ok(Step::Request { len: bad.len() })), "{at}");
                assert!(scanner.is_encoded());
                assert_eq!(scanner.args(&bad).bytes(), request, "{at}");
                assert_eq!(scanner.args(&bad).iter().last(), Some(&b"0123456789"[..]));
            }
        }
        let long =
            |end: &str| format!("*1\r\n${ENCODED_BYTES_MAX}\r\n{}{end}", "x".repeat(ENCODED_BYTES_MAX)).into_bytes();
        assert_eq!(scan_all(&long("XY"), &[]), Err(RequestError::LineEnd));
        assert_eq!(scan_all(&long("\r\n"), &[]).map(|requests| requests.len()), Ok(1));
        let mut scanner = RequestScanner::new(RequestLimits::default());
        assert_eq!(scanner.scan(b"*0\rX"), Ok(Step::Nothing { len: 4 }));
        assert_eq!(scanner.scan(request), Ok(Step::Request { len: request.len() }));
        assert!(!scanner.is_encoded());
        assert_eq!(scanner.args(request).bytes(), request);
    }

    #[test]
    fn what_is_too_long_is_so_whole_and_in_pieces() {
        let line = |head: &str, len: usize, end: &str| format!("{head}{}{end}", "1".repeat(len)).into_bytes();
        for (bytes, refusal) in [
            (line("", 201, "\n"), RequestError::InlineTooBig),
            (line("*", 201, "\r\n"), RequestError::CountLine),
            (line("*1\r\n$", 201, "\r\n"), RequestError::BulkLine),
        ] {
            assert_eq!(scan_all(&bytes, &[]), Err(refusal));
            assert_eq!(scan_all(&bytes, &vec![1; bytes.len()]), Err(refusal));
        }
        assert_eq!(scan_all(&line("", 200, "\n"), &[]).map(|requests| requests.len()), Ok(1));
        let mut scanner = RequestScanner::new(RequestLimits { args_max: 2, ..RequestLimits::default() });
        assert_eq!(scanner.scan(b"a b c\r\n"), Err(RequestError::MultibulkLength));
        for cut in [1, 9] {
            let mut scanner = ReplyScanner::new(ReplyLimits { line_bytes_max: 5, ..ReplyLimits::default() });
            let mut outcomes = b"+123456\n".chunks(cut).map(|piece| scanner.advance(piece));
            assert!(outcomes.any(|outcome| outcome == Err(ReplyError::TooBig)), "in pieces of {cut}");
        }
    }

    #[test]
    fn bounds_what_the_unauthenticated_may_send() {
        let mut scanner = RequestScanner::new(RequestLimits::default());
        scanner.set_authenticated(false);
        assert_eq!(scanner.scan(b"*11\r\n"), Err(RequestError::UnauthenticatedMultibulk));
        let mut scanner = RequestScanner::new(RequestLimits::default());
        scanner.set_authenticated(false);
        assert_eq!(scanner.scan(b"*1\r\n$16385\r\n"), Err(RequestError::UnauthenticatedBulk));
    }

    #[test]
    fn reads_numbers_as_strictly_as_redis() {
        for (text, value) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-0", None),
            ("00", None),
            ("+1", None),
            (" 1", None),
            ("", None),
            ("-", None),
            ("1a", None),
        ] {
            assert_eq!(strict_i64(text.as_bytes()), value, "{text}");
        }
    }

    fn ends(bytes: &[u8], cuts: &[usize]) -> Result<Vec<usize>, ReplyError> {
        let mut scanner = ReplyScanner::new(ReplyLimits { depth_max: 8, ..ReplyLimits::default() });
        let mut out = Vec::new();
        let mut at = 0;
        let mut rest = bytes;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let (mut piece, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            while !piece.is_empty() {
                let advance = scanner.advance(piece)?;
                at += advance.consumed;
                piece = &piece[advance.consumed..];
                if advance.complete {
                    out.push(at);
                }
            }
        }
        Ok(out)
    }

    #[test]
    fn finds_the_ends_of_replies_of_every_type() {
        let frames: [&[u8]; 16] = [
            b"+OK\r\n",
            b"-ERR no\r\n",
            b":12\r\n",
            b"$5\r\nhello\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
            b"%1\r\n+a\r\n~2\r\n:1\r\n:2\r\n",
            b"_\r\n",
            b"#t\r\n",
            b",3.5\r\n",
            b"(123456789012345678901234567890\r\n",
            b"=7\r\ntxt:abc\r\n",
            b"|1\r\n+ttl\r\n:3\r\n$1\r\nx\r\n",
            b">2\r\n$10\r\ninvalidate\r\n_\r\n",
        ];
        let all: Vec<u8> = frames.concat();
        let mut at = 0;
        let expected: Vec<usize> = frames
            .iter()
            .map(|f| {
                at += f.len();
                at
            })
            .collect();
        assert_eq!(ends(&all, &[]).unwrap(), expected);
        assert_eq!(ends(&all, &vec![1; all.len()]).unwrap(), expected);
    }

    #[test]
    fn refuses_bad_replies() {
        assert_eq!(ends(b"hello", &[]), Err(ReplyError::Type(b'h')));
        assert_eq!(ends(b"$4294967296\r\n", &[]), Err(ReplyError::TooBig));
        assert_eq!(ends(b"$99999999999999999999\r\n", &[]), Err(ReplyError::TooBig));
        assert_eq!(ends(b"*-2\r\n", &[]), Err(ReplyError::Number));
        assert_eq!(ends(b"$\r\n", &[]), Err(ReplyError::Number));
        assert_eq!(ends(b"$?\r\n", &[]), Err(ReplyError::Number));
        assert_eq!(ends(&b"*1\r\n".repeat(9), &[]), Err(ReplyError::TooDeep));
    }

    fn request_strategy() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..6)
    }

    proptest! {
        #[test]
        fn requests_are_found_however_they_are_cut(
            requests in prop::collection::vec(request_strategy(), 0..8),
            cuts in prop::collection::vec(0usize..30, 0..40),
        ) {
            let mut bytes = Vec::new();
            for request in &requests {
                bytes.extend_from_slice(crate::args::OwnedArgs::new(request).args().bytes());
            }
            prop_assert_eq!(scan_all(&bytes, &cuts).unwrap(), requests);
        }

        #[test]
        fn any_bytes_give_the_same_answer_however_they_are_cut(
            bytes in prop::collection::vec(prop_oneof![Just(b'*'), Just(b'$'), Just(b'1'), Just(b'\r'), Just(b'\n'), any::<u8>()], 0..200),
            cuts in prop::collection::vec(0usize..9, 0..60),
        ) {
            prop_assert_eq!(scan_all(&bytes, &cuts), scan_all(&bytes, &[]));
            prop_assert_eq!(ends(&bytes, &cuts), ends(&bytes, &[]));
        }
    }
}
