//! [`RequestScanner`]: the same requests and the same refusal however the bytes are cut, every limit obeyed, and
//! arguments that survive being encoded and scanned again. What is said of the requests ahead is what comes.
//!
//! The first byte of an input says where the rest is cut, and whether the client counts as authenticated.

use larder_protocol::args::{Args, OwnedArgs};
use larder_protocol::scan::{Ahead, RequestError, RequestLimits, RequestScanner, Step};

use super::cuts::pieces;

/// Small, so that short inputs reach every limit.
const LIMITS: RequestLimits =
    RequestLimits { bulk_bytes_max: 48, args_max: 12, inline_bytes_max: 32, request_bytes_max: 100 };
/// Most bytes that are taken of a request before it is refused: what may be complete, and a header line behind it.
const UNFINISHED_BYTES_MAX: usize = LIMITS.request_bytes_max + LIMITS.inline_bytes_max;
/// So many requests ahead are asked for.
const AHEAD_MAX: usize = 3;
/// The bound of a client that has not said who it is, as redis-server has it.
const ARGS_UNAUTHENTICATED_MAX: usize = 10;

/// What a stream of bytes came to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    requests: Vec<Vec<Vec<u8>>>,
    /// Bytes that were consumed, by requests and by what means nothing.
    consumed: usize,
    refusal: Option<RequestError>,
}

pub(crate) fn check(input: &[u8]) {
    let Some((&seed, bytes)) = input.split_first() else { return };
    let authenticated = seed & 0x80 == 0;
    let whole = scan(std::iter::once(bytes), authenticated);
    let cut = scan(pieces(bytes, seed & 0x7f), authenticated);
    assert_eq!(whole, cut, "the cuts have changed the outcome");
}

fn scan<'a>(pieces: impl Iterator<Item = &'a [u8]>, authenticated: bool) -> Outcome {
    let mut scanner = RequestScanner::new(LIMITS);
    scanner.set_authenticated(authenticated);
    let mut outcome = Outcome { requests: Vec::new(), consumed: 0, refusal: None };
    let mut buf: Vec<u8> = Vec::new();
    // The scanner has said that nothing can be complete with fewer bytes than these.
    let mut complete_at_min = 0;
    // It has said that these requests come next, and how long they are.
    let mut ahead: Vec<(Vec<Vec<u8>>, usize)> = Vec::new();
    for piece in pieces {
        assert!(buf.len() <= UNFINISHED_BYTES_MAX, "{} bytes of one request are kept", buf.len());
        buf.extend_from_slice(piece);
        loop {
            let step = match scanner.scan(&buf) {
                Ok(step) => step,
                Err(refusal) => {
                    outcome.refusal = Some(refusal);
                    assert!(ahead.is_empty(), "what was ahead has been refused");
                    return outcome;
                }
            };
            let len = match step {
                Step::Incomplete { bytes_needed_min } => {
                    assert!(ahead.is_empty(), "what was ahead is not complete");
                    assert!(bytes_needed_min > 0, "nothing is missing of an incomplete request");
                    complete_at_min = buf.len() + bytes_needed_min;
                    break;
                }
                Step::Nothing { len } => {
                    assert!(ahead.is_empty(), "what was ahead is nothing");
                    len
                }
                Step::Request { len } => {
                    // They repeat this one's name, so it is read before the scanner is used for anything else.
                    let further = requests_ahead(&scanner, &buf, len);
                    let request = take_request(&mut scanner, &buf, len, authenticated);
                    if !ahead.is_empty() {
                        assert_eq!(ahead.remove(0), (request.clone(), len), "another request was ahead");
                    }
                    assert!(further.starts_with(&ahead), "fewer requests are ahead than were");
                    ahead = further;
                    outcome.requests.push(request);
                    len
                }
            };
            assert!((1..=buf.len()).contains(&len), "{len} of {} bytes", buf.len());
            assert!(buf.len() >= complete_at_min, "more bytes were said to be missing than were");
            assert!(!scanner.is_midway(), "midway behind the end of a request");
            buf.drain(..len);
            outcome.consumed += len;
            complete_at_min = 0;
            scanner.shrink();
        }
    }
    outcome
}

/// The requests behind the one at hand, which ends at `len`, as far as the scanner tells of them, and their lengths.
fn requests_ahead(scanner: &RequestScanner, buf: &[u8], len: usize) -> Vec<(Vec<Vec<u8>>, usize)> {
    let (mut found, rest) = ([Ahead::default(); AHEAD_MAX], &buf[len..]);
    let count = scanner.ahead(rest, &mut found);
    let name = scanner.args(buf).arg(0).to_vec();
    let mut at = 0;
    let told = found[..count].iter().map(|request| {
        let (start, end) = (request.start as usize, request.end as usize);
        let argument = rest[start..start + request.len as usize].to_vec();
        let len = end - at;
        at = end;
        (vec![name.clone(), argument], len)
    });
    told.collect()
}

/// The arguments of the request that was found, checked against the limits and against another scan of themselves.
fn take_request(scanner: &mut RequestScanner, buf: &[u8], len: usize, authenticated: bool) -> Vec<Vec<u8>> {
    let args = scanner.args(buf);
    let owned: Vec<Vec<u8>> = args.iter().map(<[u8]>::to_vec).collect();
    let is_array = buf.first() == Some(&b'*');
    assert!(!args.is_empty() && owned.len() == args.len());
    assert!(args.len() <= LIMITS.args_max, "{} arguments", args.len());
    if is_array {
        // As it came, or with the line ends that it should have had.
        assert_eq!(args.bytes().len(), len);
        assert_eq!(scanner.is_encoded(), args.bytes() != &buf[..len]);
        assert!(len <= LIMITS.request_bytes_max, "a request of {len} bytes");
        assert!(owned.iter().all(|arg| arg.len() <= LIMITS.bulk_bytes_max), "an argument above the limit");
        assert!(authenticated || args.len() <= ARGS_UNAUTHENTICATED_MAX, "{} arguments", args.len());
    } else {
        assert!(len <= LIMITS.inline_bytes_max + 1, "an inline request of {len} bytes");
        assert!(owned.iter().map(Vec::len).sum::<usize>() < len, "an inline request has grown");
    }
    assert_round_trip(args);
    assert!(args.bytes() == OwnedArgs::new(args.iter()).args().bytes(), "not well formed");
    let is_encoded = scanner.is_encoded();
    let ranges = scanner.take_ranges();
    assert!(
        is_encoded || Args::new(buf, &ranges).iter().eq(owned.iter().map(Vec::as_slice)),
        "ranges that were moved out"
    );
    scanner.give_ranges(ranges);
    owned
}

/// Encoded anew, and the request as the scanner shows it: both scan to the same arguments.
fn assert_round_trip(args: Args<'_>) {
    let encoded = OwnedArgs::new(args.iter());
    for bytes in [encoded.args().bytes(), args.bytes()] {
        let mut scanner = RequestScanner::new(RequestLimits::default());
        assert_eq!(scanner.scan(bytes), Ok(Step::Request { len: bytes.len() }));
        assert!(scanner.args(bytes).iter().eq(args.iter()), "not the same arguments");
    }
}
