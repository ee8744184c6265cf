//! Finds the ends of requests, RESP arrays and inline lines.
//!
//! redis-server 7.0 takes any byte behind the `\r` of a header, and any two behind an argument; Valkey 9 closes the connection
//! unless they are `\r\n`. So that no client's bytes can end a connection that others share, the arguments of a request with
//! other bytes there are encoded anew, as those of an inline request are: what [`RequestScanner::args`] shows is well formed
//! for every server. A request of that kind above [`ENCODED_BYTES_MAX`] is refused, in Valkey's words.

use super::inline::split_inline;
use super::strict_i64;
use crate::args::{ArgRange, Args};
use memchr::memchr;

/// Bounds of one request, with redis-server's defaults.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Longest bulk string in bytes (`proto-max-bulk-len`, 512 MB).
    pub bulk_bytes_max: usize,
    /// Most arguments of one request.
    pub args_max: usize,
    /// Longest inline request, and longest header line, in bytes (64 KiB, `PROTO_INLINE_MAX_SIZE`).
    pub inline_bytes_max: usize,
    /// Longest request in bytes, all arguments together (`client-query-buffer-limit`, 1 GiB). Below 4 GiB.
    pub request_bytes_max: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            bulk_bytes_max: 512 * 1024 * 1024,
            args_max: 1024 * 1024,
            inline_bytes_max: 64 * 1024,
            request_bytes_max: 1024 * 1024 * 1024,
        }
    }
}

/// Longest request that is encoded anew because of its line ends: nobody means to send one, and it takes its memory twice.
pub const ENCODED_BYTES_MAX: usize = 1024 * 1024;

/// What a look at the buffer has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The request is not complete. `bytes_needed_min` more bytes are known to be missing (at least one).
    Incomplete {
        /// A lower bound of what is missing: a hint for the size of the next read.
        bytes_needed_min: usize,
    },
    /// A request of `len` bytes stands at the start of the buffer; [`RequestScanner::args`] shows its arguments.
    Request {
        /// Bytes to consume.
        len: usize,
    },
    /// `len` bytes mean nothing (an empty line, `*0`, `*-1`): consume them and go on.
    Nothing {
        /// Bytes to consume.
        len: usize,
    },
}

/// Why a client's bytes are not a request. `Display` is redis-server's own wording, without the `-ERR ` in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The number behind `*` is no number or above the limit.
    #[error("Protocol error: invalid multibulk length")]
    MultibulkLength,
    /// The number behind `$` is no number, negative or above the limit.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// An argument does not begin with `$`.
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0))]
    ExpectedBulk(u8),
    /// The line of a `*` header does not end.
    #[error("Protocol error: too big mbulk count string")]
    CountLine,
    /// The line of a `$` header does not end.
    #[error("Protocol error: too big bulk count string")]
    BulkLine,
    /// An inline request does not end.
    #[error("Protocol error: too big inline request")]
    InlineTooBig,
    /// Quotes of an inline request do not close.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
    /// The request as a whole is longer than the limit.
    #[error("Protocol error: request exceeds the limit of the query buffer")]
    RequestTooBig,
    /// A long request with bytes that are no line end where one should be.
    #[error("Protocol error: invalid CRLF in request")]
    LineEnd,
    /// More than ten arguments before authentication, where it is required.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulk,
    /// An argument above 16 KiB before authentication, where it is required.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulk,
}

/// Finds requests, RESP arrays and inline lines, in a buffer that begins with a request.
#[derive(Debug)]
pub struct RequestScanner {
    limits: RequestLimits,
    state: RequestState,
    /// Bytes of the current request that need not be looked at again.
    seen: usize,
    /// Bytes of the unfinished header or inline line that hold no line end.
    line_seen: usize,
    args: Vec<ArgRange>,
    /// The arguments of an inline request, unquoted, or of one with wrong line ends, encoded as a RESP array.
    encoded: Vec<u8>,
    /// All lines of the array so far ended as they should.
    ends_well: bool,
    authenticated: bool,
    /// How the request at hand begins, if it is of the usual kind; what the next one may begin with, too.
    head: Option<Head>,
    /// True if the request at hand begins with the head of the one before it.
    repeats: bool,
}

/// How a request begins: the number of its arguments and the first of them, the command's name. A client mostly calls the
/// same command again, and then all of that is told by one comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    /// The first bytes of the request, of which those count that are set in `mask`.
    bytes: u128,
    mask: u128,
    /// How many count.
    len: usize,
    /// The number of arguments, the name included.
    count: usize,
    name: ArgRange,
}

/// A whole request of one argument behind the name, as [`RequestScanner::ahead`] finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Offset of the argument.
    pub start: u32,
    /// Length of the argument.
    pub len: u32,
    /// Offset of what follows the request.
    pub end: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestState {
    Start,
    /// Looking for the header of an argument; so many arguments are missing.
    Header {
        missing: usize,
    },
    /// The body of an argument of `len` bytes begins at `seen`.
    Body {
        missing: usize,
        len: usize,
    },
    /// The last step returned a whole request; if it is `encoded`, its arguments stand there.
    Done {
        encoded: bool,
    },
}

/// What a header line holds.
enum Line {
    Value { value: i64, next: usize },
    Incomplete,
    NotANumber { next: usize },
}

// === impl RequestScanner ===

impl RequestScanner {
    /// A scanner at the start of a connection.
    pub fn new(limits: RequestLimits) -> Self {
        Self {
            limits,
            state: RequestState::Start,
            seen: 0,
            line_seen: 0,
            args: Vec::new(),
            encoded: Vec::new(),
            ends_well: true,
            authenticated: true,
            head: None,
            repeats: false,
        }
    }

    /// Tells whether the client may send long requests: redis-server bounds those of unauthenticated clients.
    pub fn set_authenticated(&mut self, authenticated: bool) {
        if self.authenticated != authenticated {
            self.authenticated = authenticated;
            self.head = None;
        }
    }

    /// True if part of a request has been looked at: the buffer must keep its place.
    pub fn is_midway(&self) -> bool {
        matches!(self.state, RequestState::Header { .. } | RequestState::Body { .. })
            || (self.state == RequestState::Start && self.line_seen > 0)
    }

    /// Looks on in `buf`, which begins with the first byte of the request at hand. After [`Step::Request`] or
    /// [`Step::Nothing`] the caller takes those bytes away and calls again; after [`Step::Incomplete`] it calls again
    /// with the same bytes and more.
    #[inline]
    pub fn scan(&mut self, buf: &[u8]) -> Result<Step, RequestError> {
        if let RequestState::Done { .. } = self.state {
            self.reset();
        }
        if self.state == RequestState::Start && self.line_seen == 0 {
            if buf.is_empty() {
                // The next request may begin as the last one did.
                return Ok(Step::Incomplete { bytes_needed_min: 1 });
            }
            if let Some(len) = self.whole(buf) {
                return Ok(Step::Request { len });
            }
        }
        self.head = None;
        self.repeats = false;
        self.scan_on(buf)
    }

    /// True if the request at hand calls the same command as the one that was found before it, in the same letters and with
    /// as many arguments.
    #[inline]
    pub fn repeats(&self) -> bool {
        self.repeats
    }

    /// The name of the command that the request at the start of `buf` calls, if it begins as the last one that was found did,
    /// and that one had one argument.
    #[inline]
    pub fn repeated_name<'a>(&self, buf: &'a [u8]) -> Option<&'a [u8]> {
        let head = self.head.filter(|head| head.count == 2 && head.begins(buf) && !self.is_midway())?;
        let start = head.name.start as usize;
        buf.get(start..start + head.name.len as usize)
    }

    /// Looks for whole requests at the start of `buf`, which begins behind the request at hand, that call the same command
    /// as that one, in the same letters, with one argument each. Returns how many there are, at most as many as `into` has
    /// places. Nothing is taken: the next [`RequestScanner::scan`] may begin behind any of them.
    #[inline]
    pub fn ahead(&self, buf: &[u8], into: &mut [Ahead]) -> usize {
        let Some(head) = self.head.filter(|head| head.count == 2) else { return 0 };
        let mut at = 0;
        for (n, ahead) in into.iter_mut().enumerate() {
            let Some(rest) = buf.get(at..).filter(|rest| head.begins(rest)) else { return n };
            let Some((body, len)) = short_argument(rest, head.len) else { return n };
            let end = body + len + 2;
            if !ends_well(rest, end) || !self.allows(len, end, head.count) {
                return n;
            }
            *ahead = Ahead { start: (at + body) as u32, len: len as u32, end: (at + end) as u32 };
            at += end;
        }
        into.len()
    }

    /// Any request, in as many pieces as it comes.
    #[inline(never)]
    fn scan_on(&mut self, buf: &[u8]) -> Result<Step, RequestError> {
        if self.state == RequestState::Start {
            match buf.first() {
                None => return Ok(Step::Incomplete { bytes_needed_min: 1 }),
                Some(b'*') => {
                    if let Some(step) = self.array_header(buf)? {
                        return Ok(step);
                    }
                }
                Some(_) => return self.inline_line(buf),
            }
        }
        self.arguments(buf)
    }

    /// The arguments of the request that the last [`Step::Request`] found, borrowed from `buf`.
    #[inline]
    pub fn args<'a>(&'a self, buf: &'a [u8]) -> Args<'a> {
        match self.state {
            RequestState::Done { encoded: true } => Args::new(&self.encoded, &self.args),
            _ => Args::new(buf.get(..self.seen).unwrap_or(buf), &self.args),
        }
    }

    /// True if [`RequestScanner::args`] borrows from the scanner and not from the buffer.
    pub fn is_encoded(&self) -> bool {
        self.state == RequestState::Done { encoded: true }
    }

    /// The ranges behind [`RequestScanner::args`], moved out so that the scanner can be left while they are in use.
    /// Give them back with [`RequestScanner::give_ranges`] and their memory is used again.
    pub fn take_ranges(&mut self) -> Vec<ArgRange> {
        std::mem::take(&mut self.args)
    }

    /// Takes back what [`RequestScanner::take_ranges`] gave.
    pub fn give_ranges(&mut self, ranges: Vec<ArgRange>) {
        self.args = ranges;
    }

    /// Gives back memory that an unusually large request has left behind.
    pub fn shrink(&mut self) {
        const ARGS_KEPT_MAX: usize = 64;
        if self.args.capacity() > ARGS_KEPT_MAX && !self.is_midway() {
            self.args = Vec::new();
        }
        if self.encoded.capacity() > 0 && !self.is_midway() {
            self.encoded = Vec::new();
        }
    }

    fn reset(&mut self) {
        self.state = RequestState::Start;
        self.seen = 0;
        self.line_seen = 0;
        self.ends_well = true;
        self.args.clear();
    }

    /// The length of the request at the start of `buf`, if it is all there and of the usual kind: up to 99 arguments,
    /// of up to three digits of bytes each. Of anything else nothing is noted, nor of what may be an error: the steps
    /// that take any request look at it from its start.
    #[inline]
    fn whole(&mut self, buf: &[u8]) -> Option<usize> {
        let (count, found, mut at) = match self.head {
            Some(head) if head.begins(buf) => {
                self.args.push(head.name);
                self.repeats = true;
                (head.count, 1, head.len)
            }
            _ => {
                self.repeats = false;
                let (count, at) = short_count(buf).filter(|(count, _)| *count <= 10 || self.authenticated)?;
                (count, 0, at)
            }
        };
        for n in found..count {
            let Some((body, len)) = short_argument(buf, at) else { return self.not_whole() };
            at = body + len + 2;
            if !ends_well(buf, at) || len > self.limits.bulk_bytes_max {
                return self.not_whole();
            }
            let range = ArgRange { start: body as u32, len: len as u32 };
            self.args.push(range);
            if n == 0 {
                self.head = Head::new(buf, at, count, range);
            }
        }
        if !self.allows(0, at, count) {
            return self.not_whole();
        }
        self.seen = at;
        self.state = RequestState::Done { encoded: false };
        Some(at)
    }

    /// True if a request of so many bytes and arguments, one of which is so long, is within the limits.
    #[inline]
    fn allows(&self, len: usize, bytes: usize, count: usize) -> bool {
        let limits = &self.limits;
        len <= limits.bulk_bytes_max && bytes <= limits.request_bytes_max && count <= limits.args_max
    }

    fn not_whole(&mut self) -> Option<usize> {
        self.args.clear();
        None
    }

    fn array_header(&mut self, buf: &[u8]) -> Result<Option<Step>, RequestError> {
        match number_line(buf, 1, &mut self.line_seen) {
            Line::Incomplete if buf.len() > self.limits.inline_bytes_max => Err(RequestError::CountLine),
            Line::Incomplete => Ok(Some(Step::Incomplete { bytes_needed_min: 1 })),
            Line::NotANumber { next } if self.is_too_long(0, next) => Err(RequestError::CountLine),
            Line::NotANumber { .. } => Err(RequestError::MultibulkLength),
            Line::Value { value, next } => {
                if value <= 0 {
                    self.state = RequestState::Done { encoded: false };
                    return Ok(Some(Step::Nothing { len: next }));
                }
                let count = usize::try_from(value).map_err(|_| RequestError::MultibulkLength)?;
                if count > self.limits.args_max {
                    return Err(RequestError::MultibulkLength);
                }
                if count > 10 && !self.authenticated {
                    return Err(RequestError::UnauthenticatedMultibulk);
                }
                self.seen = next;
                self.line_seen = 0;
                self.note_end(buf, next)?;
                self.state = RequestState::Header { missing: count };
                Ok(None)
            }
        }
    }

    fn arguments(&mut self, buf: &[u8]) -> Result<Step, RequestError> {
        loop {
            match self.state {
                RequestState::Header { missing } => {
                    let Some(&first) = buf.get(self.seen) else {
                        return Ok(Step::Incomplete { bytes_needed_min: 1 });
                    };
                    if first != b'$' {
                        return Err(RequestError::ExpectedBulk(first));
                    }
                    match number_line(buf, self.seen + 1, &mut self.line_seen) {
                        Line::Incomplete if buf.len() - self.seen > self.limits.inline_bytes_max => {
                            return Err(RequestError::BulkLine);
                        }
                        Line::Incomplete => return Ok(Step::Incomplete { bytes_needed_min: 1 }),
                        Line::NotANumber { next } if self.is_too_long(self.seen, next) => {
                            return Err(RequestError::BulkLine);
                        }
                        Line::NotANumber { .. } => return Err(RequestError::BulkLength),
                        Line::Value { value, next } => {
                            let len = self.checked_bulk_len(value, next)?;
                            self.note_end(buf, next)?;
                            self.seen = next;
                            self.line_seen = 0;
                            self.state = RequestState::Body { missing, len };
                        }
                    }
                }
                RequestState::Body { missing, len } => {
                    let end = self.seen + len + 2;
                    if buf.len() < end {
                        return Ok(Step::Incomplete { bytes_needed_min: end - buf.len() });
                    }
                    self.args.push(ArgRange { start: self.seen as u32, len: len as u32 });
                    self.note_end(buf, end)?;
                    self.seen = end;
                    if missing == 1 {
                        if !self.ends_well {
                            self.encode_anew(buf);
                        }
                        self.state = RequestState::Done { encoded: !self.ends_well };
                        return Ok(Step::Request { len: end });
                    }
                    self.state = RequestState::Header { missing: missing - 1 };
                }
                RequestState::Start | RequestState::Done { .. } => {
                    return Ok(Step::Incomplete { bytes_needed_min: 1 });
                }
            }
        }
    }

    /// A line of the request ends in front of `next`.
    fn note_end(&mut self, buf: &[u8], next: usize) -> Result<(), RequestError> {
        self.ends_well &= ends_well(buf, next);
        if !self.ends_well && next > ENCODED_BYTES_MAX { Err(RequestError::LineEnd) } else { Ok(()) }
    }

    /// True if the line from `start` to `next` would have been refused had its last byte come later than the others:
    /// what is too long must not depend on how the bytes were cut. (A number is never too long.)
    fn is_too_long(&self, start: usize, next: usize) -> bool {
        next - 1 - start > self.limits.inline_bytes_max
    }

    fn checked_bulk_len(&self, value: i64, next: usize) -> Result<usize, RequestError> {
        let len = usize::try_from(value).map_err(|_| RequestError::BulkLength)?;
        if len > self.limits.bulk_bytes_max {
            return Err(RequestError::BulkLength);
        }
        if len > 16 * 1024 && !self.authenticated {
            return Err(RequestError::UnauthenticatedBulk);
        }
        if next + len + 2 > self.limits.request_bytes_max.min(u32::MAX as usize) {
            return Err(RequestError::RequestTooBig);
        }
        Ok(len)
    }

    fn inline_line(&mut self, buf: &[u8]) -> Result<Step, RequestError> {
        let from = self.line_seen.min(buf.len());
        let Some(found) = memchr(b'\n', &buf[from..]) else {
            if buf.len() > self.limits.inline_bytes_max {
                return Err(RequestError::InlineTooBig);
            }
            self.line_seen = buf.len();
            return Ok(Step::Incomplete { bytes_needed_min: 1 });
        };
        let end = from + found;
        if end > self.limits.inline_bytes_max {
            return Err(RequestError::InlineTooBig);
        }
        let line = &buf[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let words = split_inline(line).ok_or(RequestError::Quotes)?;
        self.state = RequestState::Done { encoded: true };
        if words.is_empty() {
            return Ok(Step::Nothing { len: end + 1 });
        }
        if words.len() > self.limits.args_max {
            return Err(RequestError::MultibulkLength);
        }
        self.args.clear();
        self.encode(words.iter().map(Vec::as_slice));
        Ok(Step::Request { len: end + 1 })
    }

    /// The arguments that were found in `buf`, encoded as they should have been.
    fn encode_anew(&mut self, buf: &[u8]) {
        let found = std::mem::take(&mut self.args);
        self.encode(Args::new(buf, &found).iter());
    }

    fn encode<'a>(&mut self, words: impl ExactSizeIterator<Item = &'a [u8]>) {
        self.encoded.clear();
        self.encoded.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.encoded.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            self.args.push(ArgRange { start: self.encoded.len() as u32, len: word.len() as u32 });
            self.encoded.extend_from_slice(word);
            self.encoded.extend_from_slice(b"\r\n");
        }
    }
}

// === impl Head ===

impl Head {
    /// The head of a request whose first argument ends at `len`; `None` if it is too long to be compared at once.
    fn new(buf: &[u8], len: usize, count: usize, name: ArgRange) -> Option<Self> {
        let bytes = u128::from_le_bytes(*buf.first_chunk()?);
        let unused = 16_usize.checked_sub(len)?;
        let mask = u128::MAX >> (8 * unused);
        Some(Self { bytes: bytes & mask, mask, len, count, name })
    }

    /// True if `buf` begins with it.
    #[inline]
    fn begins(&self, buf: &[u8]) -> bool {
        buf.first_chunk().is_some_and(|first| u128::from_le_bytes(*first) & self.mask == self.bytes)
    }
}

/// The number of arguments, of one or two digits, and where the first of them begins.
#[inline]
fn short_count(buf: &[u8]) -> Option<(usize, usize)> {
    match *buf {
        [b'*', a @ b'1'..=b'9', b'\r', b'\n', ..] => Some((usize::from(a - b'0'), 4)),
        [b'*', a @ b'1'..=b'9', b @ b'0'..=b'9', b'\r', b'\n', ..] => {
            Some((usize::from(a - b'0') * 10 + usize::from(b - b'0'), 5))
        }
        _ => None,
    }
}

/// True if a line that is all there ends in front of `end`, as it should.
#[inline]
fn ends_well(buf: &[u8], end: usize) -> bool {
    buf.get(end - 2..end) == Some(b"\r\n")
}

/// Where the body of the argument at `at` begins, and its length, of up to three digits. It need not be all there.
#[inline]
fn short_argument(buf: &[u8], at: usize) -> Option<(usize, usize)> {
    // An argument is six bytes long at least.
    let [b'$', a, b, c, d, e] = *buf.get(at..)?.first_chunk()? else { return None };
    let [x, y, z] = [a, b, c].map(|d| usize::from(d.wrapping_sub(b'0')));
    if (c, d) == (b'\r', b'\n') && x < 10 && y < 10 && x > 0 {
        Some((at + 5, x * 10 + y))
    } else if (b, c) == (b'\r', b'\n') && x < 10 {
        Some((at + 4, x))
    } else if (d, e) == (b'\r', b'\n') && x < 10 && y < 10 && z < 10 && x > 0 {
        Some((at + 6, x * 100 + y * 10 + z))
    } else {
        None
    }
}

/// Reads the decimal number at `from` up to `\r` and the byte behind it, as strictly as redis-server's `string2ll`:
/// no plus sign, no leading zero, no blank.
#[inline]
fn number_line(buf: &[u8], from: usize, line_seen: &mut usize) -> Line {
    // The common case, one to four digits and the line end in the buffer, without a search.
    let mut value: i64 = 0;
    for i in 0..5 {
        match buf.get(from + i) {
            Some(d @ b'0'..=b'9') if i < 4 && !(i > 0 && value == 0) => value = value * 10 + i64::from(d - b'0'),
            Some(b'\r') if i > 0 && buf.len() > from + i + 1 => return Line::Value { value, next: from + i + 2 },
            _ => break,
        }
    }
    let start = from + *line_seen;
    let Some(found) = buf.get(start..).and_then(|rest| memchr(b'\r', rest)) else {
        *line_seen = buf.len().saturating_sub(from);
        return Line::Incomplete;
    };
    let end = start + found;
    if buf.len() < end + 2 {
        *line_seen = end - from;
        return Line::Incomplete;
    }
    match strict_i64(&buf[from..end]) {
        Some(value) => Line::Value { value, next: end + 2 },
        None => Line::NotANumber { next: end + 2 },
    }
}
