//! RESP2 and RESP3 frames, read for comparison: where one ends, and what it holds.
//!
//! [`Scan`] finds the end of a frame without recursion and looks at each byte once. [`Value`] is the parsed form, used
//! where a test must look inside; everything else compares raw bytes. Streamed aggregates (`*?`) are not known here,
//! because no server sends them.

/// How deep [`Value::parse`] follows nested frames.
const DEPTH_MAX: usize = 64;

/// Finds the end of the frame that begins at the buffer's start; can be resumed when more bytes have come.
#[derive(Debug)]
pub(crate) struct Scan {
    at: usize,
    frames_open: u64,
}

impl Scan {
    pub(crate) fn new() -> Self {
        Self { at: 0, frames_open: 1 }
    }

    /// The frame's length once all of it is in `buffer`. The buffer may only grow between calls.
    pub(crate) fn end(&mut self, buffer: &[u8]) -> Result<Option<usize>, String> {
        while self.frames_open > 0 {
            let Some((line, next)) = line_at(buffer, self.at) else { return Ok(None) };
            let (first, rest) = line.split_first().ok_or("an empty line where a frame begins")?;
            match first {
                b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => self.at = next,
                b'$' | b'=' | b'!' => match length_of(rest)? {
                    None => self.at = next,
                    Some(len) if buffer.len() >= next + len + 2 => self.at = next + len + 2,
                    Some(_) => return Ok(None),
                },
                b'*' | b'~' | b'>' | b'%' | b'|' => {
                    self.frames_open += frames_inside(*first, rest)?;
                    self.at = next;
                }
                _ => return Err(format!("not a frame: {}", line.escape_ascii())),
            }
            self.frames_open -= 1;
        }
        Ok(Some(self.at))
    }
}

/// One reply, parsed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    Simple(Vec<u8>),
    Error(Vec<u8>),
    Int(i64),
    Bulk(Vec<u8>),
    /// `$-1`, `*-1` or `_`.
    Null,
    Double(Vec<u8>),
    Bool(bool),
    Big(Vec<u8>),
    Verbatim(Vec<u8>),
    Array(Vec<Value>),
    Set(Vec<Value>),
    Push(Vec<Value>),
    /// Keys and values in turn.
    Map(Vec<Value>),
}

impl Value {
    /// Parses one whole frame; panics if it is not one (a test's input is always a frame that [`Scan`] has cut out).
    #[track_caller]
    pub(crate) fn parse(frame: &[u8]) -> Self {
        let (value, end) = parse_at(frame, 0, 0);
        assert_eq!(end, frame.len(), "bytes after the frame: {}", frame.escape_ascii());
        value
    }

    /// The elements of an array, set, push or map (keys and values in turn).
    #[track_caller]
    pub(crate) fn items(&self) -> &[Value] {
        match self {
            Self::Array(items) | Self::Set(items) | Self::Push(items) | Self::Map(items) => items,
            other => panic!("not an aggregate: {other:?}"),
        }
    }

    /// The bytes of a string of any kind.
    #[track_caller]
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Simple(b) | Self::Error(b) | Self::Bulk(b) | Self::Double(b) | Self::Big(b) | Self::Verbatim(b) => b,
            other => panic!("not a string: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    /// An integer, or a string that holds one.
    #[track_caller]
    pub(crate) fn int(&self) -> i64 {
        match self {
            Self::Int(n) => *n,
            other => other.text().parse().unwrap_or_else(|_| panic!("not an integer: {other:?}")),
        }
    }

    /// `None` for a null, else the integer.
    #[track_caller]
    pub(crate) fn int_or_null(&self) -> Option<i64> {
        if *self == Self::Null { None } else { Some(self.int()) }
    }

    pub(crate) fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }
}

fn parse_at(frame: &[u8], at: usize, depth: usize) -> (Value, usize) {
    assert!(depth < DEPTH_MAX, "nested deeper than {DEPTH_MAX}");
    let (line, next) = line_at(frame, at).expect("a whole frame");
    let rest = &line[1..];
    let own = rest.to_vec();
    match line[0] {
        b'+' => (Value::Simple(own), next),
        b'-' => (Value::Error(own), next),
        b':' => (Value::Int(number_of(rest).expect("an integer")), next),
        b'_' => (Value::Null, next),
        b',' => (Value::Double(own), next),
        b'#' => (Value::Bool(rest == b"t"), next),
        b'(' => (Value::Big(own), next),
        kind @ (b'$' | b'=' | b'!') => match length_of(rest).expect("a length") {
            None => (Value::Null, next),
            Some(len) => (string_of(kind, frame[next..next + len].to_vec()), next + len + 2),
        },
        kind => parse_aggregate(frame, kind, rest, next, depth),
    }
}

fn parse_aggregate(frame: &[u8], kind: u8, count: &[u8], mut at: usize, depth: usize) -> (Value, usize) {
    if length_of(count).expect("a count").is_none() {
        return (Value::Null, at);
    }
    let mut items = Vec::new();
    for _ in 0..frames_inside(kind, count).expect("a count") {
        let (item, next) = parse_at(frame, at, depth + 1);
        items.push(item);
        at = next;
    }
    let value = match kind {
        b'*' => Value::Array(items),
        b'~' => Value::Set(items),
        b'>' => Value::Push(items),
        b'%' => Value::Map(items),
        // An attribute's last frame is the reply that it speaks of.
        b'|' => items.pop().expect("a reply after its attribute"),
        other => panic!("not a frame: {}", other.escape_ascii()),
    };
    (value, at)
}

fn string_of(kind: u8, bytes: Vec<u8>) -> Value {
    match kind {
        b'=' => Value::Verbatim(bytes),
        b'!' => Value::Error(bytes),
        _ => Value::Bulk(bytes),
    }
}

/// The line that begins at `at`, without its end, and where the next one begins.
fn line_at(buffer: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = buffer.get(at..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&rest[..end], at + end + 2))
}

/// How many frames follow the head of an aggregate; an attribute counts the reply that follows it.
fn frames_inside(kind: u8, count: &[u8]) -> Result<u64, String> {
    let count = length_of(count)?.unwrap_or(0) as u64;
    Ok(match kind {
        b'%' => 2 * count,
        b'|' => 2 * count + 1,
        _ => count,
    })
}

/// A length or count; `None` for the RESP2 null, -1.
fn length_of(digits: &[u8]) -> Result<Option<usize>, String> {
    let number = number_of(digits)?;
    if number == -1 {
        return Ok(None);
    }
    usize::try_from(number).map(Some).map_err(|_| format!("a negative length: {number}"))
}

fn number_of(digits: &[u8]) -> Result<i64, String> {
    let text = std::str::from_utf8(digits).map_err(|e| e.to_string())?;
    text.parse().map_err(|_| format!("not a number: {text:?}"))
}
