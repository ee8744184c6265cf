//! Finds the ends of replies, in pieces of any size; keeps no bytes.

use memchr::memchr;

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

/// Bytes that a look at the start of a reply takes; what is shorter, at the end of the piece, goes the long way.
const SHORT_BYTES: usize = 8;

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
            if let Some(len) = self.whole(piece) {
                self.bytes = len as u64;
                return Ok(Advance { consumed: len, complete: true });
            }
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

    /// The length of the reply at the start of `piece`, if it is all there and of a usual kind: a bulk string of up to three
    /// digits of bytes, or a line of a few bytes. Of anything else nothing is noted, nor of what may be an error: the steps
    /// look at it from its start.
    #[inline]
    fn whole(&self, piece: &[u8]) -> Option<usize> {
        let first: [u8; SHORT_BYTES] = *piece.first_chunk()?;
        match first[0] {
            b'$' => {
                let [x, y, z] = [first[1], first[2], first[3]].map(|digit| u64::from(digit.wrapping_sub(b'0')));
                let (head, body) = match first {
                    [_, _, _, b'\r', b'\n', ..] if x < 10 && y < 10 => (5, x * 10 + y),
                    [_, _, b'\r', b'\n', ..] if x < 10 => (4, x),
                    [_, _, _, _, b'\r', b'\n', ..] if x < 10 && y < 10 && z < 10 => (6, x * 100 + y * 10 + z),
                    _ => return None,
                };
                let end = head + body as usize + 2;
                (end <= piece.len() && body <= self.limits.bulk_bytes_max).then_some(end)
            }
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' if self.limits.line_bytes_max >= SHORT_BYTES => {
                first.iter().position(|byte| *byte == b'\n').map(|at| at + 1)
            }
            _ => None,
        }
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
                    if len + found > self.limits.line_bytes_max {
                        return Err(ReplyError::TooBig);
                    }
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
