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
    /// The arguments of an inline request, unquoted and encoded as a RESP array.
    inline: Vec<u8>,
    authenticated: bool,
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
    /// The last step returned a whole request.
    Done {
        inline: bool,
    },
}

/// What a header line holds.
enum Line {
    Value { value: i64, next: usize },
    Incomplete,
    NotANumber,
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
            inline: Vec::new(),
            authenticated: true,
        }
    }

    /// Tells whether the client may send long requests: redis-server bounds those of unauthenticated clients.
    pub fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
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
            RequestState::Done { inline: true } => Args::new(&self.inline, &self.args),
            _ => Args::new(buf.get(..self.seen).unwrap_or(buf), &self.args),
        }
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
        if self.inline.capacity() > 0 && !self.is_midway() {
            self.inline = Vec::new();
        }
    }

    fn reset(&mut self) {
        self.state = RequestState::Start;
        self.seen = 0;
        self.line_seen = 0;
        self.args.clear();
    }

    fn array_header(&mut self, buf: &[u8]) -> Result<Option<Step>, RequestError> {
        match number_line(buf, 1, &mut self.line_seen) {
            Line::Incomplete if buf.len() > self.limits.inline_bytes_max => Err(RequestError::CountLine),
            Line::Incomplete => Ok(Some(Step::Incomplete { bytes_needed_min: 1 })),
            Line::NotANumber => Err(RequestError::MultibulkLength),
            Line::Value { value, next } => {
                if value <= 0 {
                    self.state = RequestState::Done { inline: false };
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
                        Line::NotANumber => return Err(RequestError::BulkLength),
                        Line::Value { value, next } => {
                            let len = self.checked_bulk_len(value, next)?;
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
                    self.seen = end;
                    if missing == 1 {
                        self.state = RequestState::Done { inline: false };
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
        let line = &buf[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let words = split_inline(line).ok_or(RequestError::Quotes)?;
        self.state = RequestState::Done { inline: true };
        if words.is_empty() {
            return Ok(Step::Nothing { len: end + 1 });
        }
        self.encode_inline(&words);
        Ok(Step::Request { len: end + 1 })
    }

    fn encode_inline(&mut self, words: &[Vec<u8>]) {
        self.inline.clear();
        self.args.clear();
        self.inline.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.inline.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            self.args.push(ArgRange { start: self.inline.len() as u32, len: word.len() as u32 });
            self.inline.extend_from_slice(word);
            self.inline.extend_from_slice(b"\r\n");
        }
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
        None => Line::NotANumber,
    }
}

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

/// Splits an inline request into words as redis-server's `sdssplitargs`: blanks between words, `"..."` with escapes,
/// `'...'` with `\'` only. `None` if quotes do not close or are not followed by a blank.
fn split_inline(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        while let [b, tail @ ..] = rest
            && is_blank(*b)
        {
            rest = tail;
        }
        // A C string ends at its first NUL, and so does the line for redis-server.
        if rest.first().is_none_or(|&b| b == 0) {
            return Some(words);
        }
        let (word, tail) = inline_word(rest)?;
        words.push(word);
        rest = tail;
    }
}

fn inline_word(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut word = Vec::new();
    loop {
        match rest {
            [] | [0, ..] => return Some((word, rest)),
            [b, tail @ ..] if is_blank(*b) => return Some((word, tail)),
            [b'"', tail @ ..] => {
                rest = double_quoted(tail, &mut word)?;
                return closed(rest).then_some((word, rest));
            }
            [b'\'', tail @ ..] => {
                rest = single_quoted(tail, &mut word)?;
                return closed(rest).then_some((word, rest));
            }
            [b, tail @ ..] => {
                word.push(*b);
                rest = tail;
            }
        }
    }
}

fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] | [0, ..] => return None,
            [b'"', tail @ ..] => return Some(tail),
            [b'\\', b'x', h, l, tail @ ..] if h.is_ascii_hexdigit() && l.is_ascii_hexdigit() => {
                word.push(hex_digit(*h) * 16 + hex_digit(*l));
                rest = tail;
            }
            [b'\\', b, tail @ ..] => {
                word.push(match b {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = tail;
            }
            [b, tail @ ..] => {
                word.push(*b);
                rest = tail;
            }
        }
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] | [0, ..] => return None,
            [b'\\', b'\'', tail @ ..] => {
                word.push(b'\'');
                rest = tail;
            }
            [b'\'', tail @ ..] => return Some(tail),
            [b, tail @ ..] => {
                word.push(*b);
                rest = tail;
            }
        }
    }
}

fn closed(rest: &[u8]) -> bool {
    rest.first().is_none_or(|&b| b == 0 || is_blank(b))
}

/// C's `isspace` in the "C" locale.
fn is_blank(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

fn hex_digit(b: u8) -> u8 {
    match b {
        b'0'..=b'9' => b - b'0',
        b'a'..=b'f' => b - b'a' + 10,
        _ => b.wrapping_sub(b'A') + 10,
    }
}

/// Bounds of one reply.
#[derive(Clone, Copy, Debug)]
pub struct ReplyLimits {
    /// Deepest nesting of aggregates.
    pub depth_max: usize,
    /// Longest bulk string in bytes.
    pub bulk_bytes_max: u64,
    /// Most elements of one aggregate (a map's pair counts twice).
    pub count_max: u64,
    /// Longest line (simple string, error, number) in bytes.
    pub line_bytes_max: usize,
}

impl Default for ReplyLimits {
    fn default() -> Self {
        Self { depth_max: 128, bulk_bytes_max: 1024 * 1024 * 1024, count_max: 1 << 32, line_bytes_max: 1024 * 1024 }
    }
}

/// Why an upstream's bytes are not a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// No reply begins with this byte.
    #[error("unknown reply type byte 0x{0:02x}")]
    Type(u8),
    /// A length or count is no number, or is followed by something else than a line end.
    #[error("bad length or count")]
    Number,
    /// A length, count or line above its limit.
    #[error("length or count above the limit")]
    TooBig,
    /// Nesting above its limit.
    #[error("nesting above the limit")]
    TooDeep,
}

/// How far a piece of the stream has brought the reply at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Bytes of the piece that belong to the reply at hand.
    pub consumed: usize,
    /// True if the reply ends with them; the next byte begins another.
    pub complete: bool,
}

/// Consumes RESP2 and RESP3 replies in pieces and finds their ends.
#[derive(Debug)]
pub struct ReplyScanner {
    limits: ReplyLimits,
    state: ReplyState,
    /// Elements that are missing at each level of nesting, innermost last.
    open: Vec<u64>,
    kind: u8,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReplyState {
    /// At the first byte of a reply.
    Top,
    /// At the first byte of an element.
    Element,
    /// Within the digits of a length or count.
    Number { kind: u8, value: u64, digits: u8, negative: bool },
    /// Behind the `\r` of a length or count line.
    NumberEnd { kind: u8, value: u64, negative: bool },
    /// Within a line without a length; so many bytes of it are behind.
    Line { len: usize },
    /// So many bytes of a bulk string, its line end included, are missing.
    Body { missing: u64 },
}

// === impl ReplyScanner ===

impl ReplyScanner {
    /// A scanner at the start of a stream of replies.
    pub fn new(limits: ReplyLimits) -> Self {
        Self { limits, state: ReplyState::Top, open: Vec::new(), kind: 0, bytes: 0 }
    }

    /// The first byte of the reply at hand (or of the last complete one): `+ - : $ * _ # , ( ! = % ~ > |`.
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// Bytes of the reply at hand (or of the last complete one) that have been consumed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True between replies.
    pub fn is_at_boundary(&self) -> bool {
        self.state == ReplyState::Top
    }

    /// Bytes that the reply at hand is known to miss, zero if that is not known: a hint for the size of the next read.
    pub fn bytes_needed_min(&self) -> u64 {
        match self.state {
            ReplyState::Body { missing } => missing,
            _ => 0,
        }
    }

    /// Consumes `piece`, which follows what was consumed before, up to the end of the reply at hand.
    #[inline]
    pub fn advance(&mut self, piece: &[u8]) -> Result<Advance, ReplyError> {
        let mut at = 0;
        if self.state == ReplyState::Top && !piece.is_empty() {
            self.kind = piece[0];
            self.bytes = 0;
            self.state = ReplyState::Element;
        }
        while at < piece.len() {
            let complete = self.step(piece, &mut at)?;
            if complete {
                self.state = ReplyState::Top;
                self.bytes += at as u64;
                return Ok(Advance { consumed: at, complete: true });
            }
        }
        self.bytes += at as u64;
        Ok(Advance { consumed: at, complete: false })
    }

    /// Takes one state over; true if the whole reply is complete.
    #[inline]
    fn step(&mut self, piece: &[u8], at: &mut usize) -> Result<bool, ReplyError> {
        match self.state {
            ReplyState::Top | ReplyState::Element => {
                let kind = piece[*at];
                *at += 1;
                self.state = match kind {
                    b'$' | b'*' | b'%' | b'~' | b'>' | b'=' | b'!' | b'|' => {
                        ReplyState::Number { kind, value: 0, digits: 0, negative: false }
                    }
                    b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => ReplyState::Line { len: 0 },
                    other => return Err(ReplyError::Type(other)),
                };
                Ok(false)
            }
            ReplyState::Number { kind, value, digits, negative } => {
                self.number(piece, at, kind, value, digits, negative)?;
                Ok(false)
            }
            ReplyState::NumberEnd { kind, value, negative } => {
                if piece[*at] != b'\n' {
                    return Err(ReplyError::Number);
                }
                *at += 1;
                self.opened(kind, value, negative)
            }
            ReplyState::Line { len } => match memchr(b'\n', &piece[*at..]) {
                Some(found) => {
                    *at += found + 1;
                    Ok(self.closed_one())
                }
                None => {
                    let len = len + piece.len() - *at;
                    if len > self.limits.line_bytes_max {
                        return Err(ReplyError::TooBig);
                    }
                    *at = piece.len();
                    self.state = ReplyState::Line { len };
                    Ok(false)
                }
            },
            ReplyState::Body { missing } => {
                let here = (piece.len() - *at) as u64;
                if here < missing {
                    *at = piece.len();
                    self.state = ReplyState::Body { missing: missing - here };
                    return Ok(false);
                }
                *at += missing as usize;
                Ok(self.closed_one())
            }
        }
    }

    #[inline]
    fn number(
        &mut self,
        piece: &[u8],
        at: &mut usize,
        kind: u8,
        mut value: u64,
        mut digits: u8,
        mut negative: bool,
    ) -> Result<(), ReplyError> {
        while let Some(&b) = piece.get(*at) {
            *at += 1;
            match b {
                b'0'..=b'9' if digits < 18 => {
                    value = value * 10 + u64::from(b - b'0');
                    digits += 1;
                }
                b'-' if digits == 0 && !negative => negative = true,
                b'\r' if digits > 0 => {
                    self.state = ReplyState::NumberEnd { kind, value, negative };
                    return Ok(());
                }
                b'0'..=b'9' => return Err(ReplyError::TooBig),
                _ => return Err(ReplyError::Number),
            }
        }
        self.state = ReplyState::Number { kind, value, digits, negative };
        Ok(())
    }

    /// Behind the header of a bulk string or an aggregate.
    #[inline]
    fn opened(&mut self, kind: u8, value: u64, negative: bool) -> Result<bool, ReplyError> {
        if negative {
            // Only the null bulk string and the null array have a negative length.
            return if value == 1 && matches!(kind, b'$' | b'*') {
                Ok(self.closed_one())
            } else {
                Err(ReplyError::Number)
            };
        }
        if matches!(kind, b'$' | b'=' | b'!') {
            if value > self.limits.bulk_bytes_max {
                return Err(ReplyError::TooBig);
            }
            self.state = ReplyState::Body { missing: value + 2 };
            return Ok(false);
        }
        if value > self.limits.count_max {
            return Err(ReplyError::TooBig);
        }
        let elements = match kind {
            b'%' => value * 2,
            // The element that an attribute speaks of follows it and takes its place.
            b'|' => value * 2 + 1,
            _ => value,
        };
        if elements == 0 {
            return Ok(self.closed_one());
        }
        if self.open.len() >= self.limits.depth_max {
            return Err(ReplyError::TooDeep);
        }
        self.open.push(elements);
        self.state = ReplyState::Element;
        Ok(false)
    }

    /// One element has ended; true if that ends the whole reply.
    #[inline]
    fn closed_one(&mut self) -> bool {
        while let Some(missing) = self.open.last_mut() {
            *missing -= 1;
            if *missing > 0 {
                self.state = ReplyState::Element;
                return false;
            }
            self.open.pop();
        }
        true
    }
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
