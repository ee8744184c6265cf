//! Replies from RESP3 to RESP2, byte for byte as the server itself would have sent them.
//!
//! L1 and the link hold RESP3; a client that speaks RESP2 gets its form from [`to_resp2`]. Most of it follows from
//! the frame: maps and sets become arrays, doubles and big numbers bulk strings, booleans integers. What does not is
//! said by the command: whether a null was a null bulk or a null array, and whether the server nests pairs that RESP2
//! has flat. Each row of the table has a [`ShapeRule`]; [`Shape::of`] turns it into the [`Shape`] of one request's
//! reply.
//!
//! What is right is decided by the test `reply_shapes`: every command that may use the shared link, on real servers,
//! in both protocols.
//!
//! The conversion walks the frame once, without recursion, and copies runs of unchanged bytes as they are. It builds no
//! tree, so nesting costs nothing. It never panics: a frame that is not well-formed is an error.

use bytes::BufMut;
use thiserror::Error;

use crate::args::Args;
use crate::table::Command;

/// The version of the protocol that a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RESP2: what a connection speaks until it says `HELLO 3`.
    #[default]
    Resp2,
    /// RESP3.
    Resp3,
}

/// How the replies of a command are turned into RESP2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShapeRule {
    /// By the frame alone; nulls are null bulks.
    Generic,
    /// Nulls are null arrays: `LMPOP`, `GEOPOS`.
    NullArray,
    /// Nulls are null arrays if the request has at least this many arguments: `LPOP key count`.
    NullArrayFrom(u8),
    /// An array of pairs is one flat array: everything with `WITHSCORES` or `WITHVALUES`.
    Pairs,
    /// A map is an array of pairs, nulls are null arrays: `XREAD`.
    Streams,
    /// Only the fourth element can be a null array: `XPENDING`.
    Pending,
    /// Not known: the command comes from the upstream's `COMMAND` only.
    Unknown,
}

/// How one reply is turned into RESP2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    null: Null,
    layout: Layout,
}

/// What a RESP3 null was in RESP2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Null {
    Bulk,
    Array,
}

/// How the outermost aggregate differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Layout {
    Same,
    FlatPairs,
    MapOfPairs,
    FourthNullArray,
}

/// The frame is not one well-formed RESP3 reply; the number is the offset at which that shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a well-formed reply at byte {0}")]
pub struct ShapeError(pub usize);

// === impl ShapeRule ===

impl ShapeRule {
    /// The rule of a built-in command, by its full name.
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "lpop" | "rpop" => Self::NullArrayFrom(3),
            // WITHSCORE answers with an array.
            "zrank" | "zrevrank" => Self::NullArrayFrom(4),
            "lmpop" | "zmpop" | "blmpop" | "bzmpop" | "blpop" | "brpop" | "bzpopmin" | "bzpopmax" | "geopos"
            | "xrange" | "xrevrange" => Self::NullArray,
            "zrange" | "zrevrange" | "zrangebyscore" | "zrevrangebyscore" | "zunion" | "zinter" | "zdiff"
            | "zrandmember" | "zpopmin" | "zpopmax" | "hrandfield" => Self::Pairs,
            "xread" | "xreadgroup" => Self::Streams,
            "xpending" => Self::Pending,
            _ => Self::Generic,
        }
    }
}

// === impl Shape ===

impl Shape {
    /// Nothing but what the frame says.
    pub const GENERIC: Self = Self { null: Null::Bulk, layout: Layout::Same };

    /// The shape of the reply to `args`, a request for `command`; `None` if it is not known, and the reply must come
    /// from a connection that speaks the client's protocol.
    pub fn of(command: &Command, args: Args<'_>) -> Option<Self> {
        let (null, layout) = match command.shape {
            ShapeRule::Generic => (Null::Bulk, Layout::Same),
            ShapeRule::NullArray => (Null::Array, Layout::Same),
            ShapeRule::NullArrayFrom(argc) if args.len() >= usize::from(argc) => (Null::Array, Layout::Same),
            ShapeRule::NullArrayFrom(_) => (Null::Bulk, Layout::Same),
            ShapeRule::Pairs => (Null::Bulk, Layout::FlatPairs),
            ShapeRule::Streams => (Null::Array, Layout::MapOfPairs),
            ShapeRule::Pending => (Null::Bulk, Layout::FourthNullArray),
            ShapeRule::Unknown => return None,
        };
        Some(Self { null, layout })
    }
}

/// Appends the RESP2 form of `frame`, which is exactly one RESP3 reply, to `out`.
///
/// # Errors
///
/// [`ShapeError`] if `frame` is not one well-formed reply (a push or a streamed value is none). `out` may then have got
/// a part of it.
pub fn to_resp2(shape: Shape, frame: &[u8], out: &mut impl BufMut) -> Result<(), ShapeError> {
    let mut converter = Converter { frame, at: 0, kept: 0, out };
    converter.reply(shape)?;
    if converter.at != frame.len() {
        return Err(ShapeError(converter.at));
    }
    converter.flush(frame.len());
    Ok(())
}

/// True if `frame` is the same in both protocols whatever the command: a string, an integer, an error, or a flat
/// array of these. False may also mean that this could not be told cheaply.
pub fn same_in_both(frame: &[u8]) -> bool {
    match frame.first() {
        Some(b'$' | b'+' | b'-' | b':') => true,
        Some(b'*') => is_flat_and_plain(frame).unwrap_or(false),
        _ => false,
    }
}

fn is_flat_and_plain(frame: &[u8]) -> Option<bool> {
    let header = Header::read(frame, 0).ok()?;
    let mut at = header.end;
    for _ in 0..header.count().unwrap_or(0) {
        let header = Header::read(frame, at).ok()?;
        if !matches!(header.kind, b'$' | b'+' | b'-' | b':') {
            return Some(false);
        }
        at = header.skip_body(frame).ok()?;
    }
    Some(true)
}

/// The first line of a value.
#[derive(Clone, Copy, Debug)]
struct Header<'f> {
    kind: u8,
    text: &'f [u8],
    start: usize,
    end: usize,
}

/// Walks a frame; what lies between `kept` and `at` is unchanged so far and not yet written.
struct Converter<'f, 'o, B> {
    frame: &'f [u8],
    at: usize,
    kept: usize,
    out: &'o mut B,
}

// === impl Header ===

impl<'f> Header<'f> {
    fn read(frame: &'f [u8], start: usize) -> Result<Self, ShapeError> {
        let rest = frame.get(start..).unwrap_or_default();
        let line = memchr::memchr(b'\n', rest).and_then(|end| rest.get(..end)?.strip_suffix(b"\r"));
        let (kind, text) = line.and_then(<[u8]>::split_first).ok_or(ShapeError(start))?;
        Ok(Self { kind: *kind, text, start, end: start + line.map_or(0, <[u8]>::len) + 2 })
    }

    /// The length that the line tells; `None` for -1, an error for anything that is no length.
    fn length(&self) -> Result<Option<usize>, ShapeError> {
        if self.text == b"-1" {
            return Ok(None);
        }
        // 18 digits fit into 64 bits.
        if self.text.is_empty() || self.text.len() > 18 || !self.text.iter().all(u8::is_ascii_digit) {
            return Err(ShapeError(self.start));
        }
        Ok(Some(self.text.iter().fold(0, |n, digit| n * 10 + usize::from(digit - b'0'))))
    }

    fn count(&self) -> Option<usize> {
        self.length().ok().flatten()
    }

    /// Where a string's body ends, its line end excluded.
    fn body_end(&self, frame: &[u8]) -> Result<Option<usize>, ShapeError> {
        let Some(len) = self.length()? else { return Ok(None) };
        let end = self.end.checked_add(len).ok_or(ShapeError(self.start))?;
        match frame.get(end..end.saturating_add(2)) {
            Some(b"\r\n") => Ok(Some(end)),
            _ => Err(ShapeError(self.start)),
        }
    }

    /// Where a scalar ends.
    fn skip_body(&self, frame: &[u8]) -> Result<usize, ShapeError> {
        match self.kind {
            b'$' | b'=' | b'!' => Ok(self.body_end(frame)?.map_or(self.end, |end| end + 2)),
            _ => Ok(self.end),
        }
    }

    /// How many values an aggregate holds: 0 for a scalar.
    fn children(&self) -> Result<usize, ShapeError> {
        let len = match self.kind {
            b'*' | b'~' | b'%' | b'|' => self.length()?.unwrap_or(0),
            _ => 0,
        };
        match self.kind {
            b'%' => len.checked_mul(2).ok_or(ShapeError(self.start)),
            // The attributes, and then the value that they are about.
            b'|' => len.checked_mul(2).and_then(|n| n.checked_add(1)).ok_or(ShapeError(self.start)),
            _ => Ok(len),
        }
    }
}

// === impl Converter ===

impl<'f, B: BufMut> Converter<'f, '_, B> {
    fn reply(&mut self, shape: Shape) -> Result<(), ShapeError> {
        self.drop_attributes()?;
        let header = Header::read(self.frame, self.at)?;
        match (shape.layout, header.kind) {
            (Layout::FlatPairs, b'*') => self.flat_pairs(header, shape.null),
            (Layout::MapOfPairs, b'%') => self.map_of_pairs(header, shape.null),
            (Layout::FourthNullArray, b'*') if header.text == b"4" => {
                self.at = header.end;
                self.values(3, Null::Bulk)?;
                self.values(1, Null::Array)
            }
            _ => self.values(1, shape.null),
        }
    }

    fn flat_pairs(&mut self, header: Header<'f>, null: Null) -> Result<(), ShapeError> {
        let pairs = header.children()?;
        let nested = pairs > 0 && Header::read(self.frame, header.end)?.kind == b'*';
        if !nested {
            return self.values(1, null);
        }
        self.replace_line(header, b'*', pairs.checked_mul(2).ok_or(ShapeError(header.start))?);
        for _ in 0..pairs {
            let pair = Header::read(self.frame, self.at)?;
            if (pair.kind, pair.text) != (b'*', b"2") {
                return Err(ShapeError(pair.start));
            }
            self.drop_until(pair.end);
            self.values(2, null)?;
        }
        Ok(())
    }

    fn map_of_pairs(&mut self, header: Header<'f>, null: Null) -> Result<(), ShapeError> {
        let pairs = header.length()?.unwrap_or(0);
        self.replace_line(header, b'*', pairs);
        for _ in 0..pairs {
            self.flush(self.at);
            self.out.put_slice(b"*2\r\n");
            self.values(2, null)?;
        }
        Ok(())
    }

    /// Converts `wanted` values and all that they hold.
    fn values(&mut self, mut wanted: usize, null: Null) -> Result<(), ShapeError> {
        while wanted > 0 {
            self.drop_attributes()?;
            let children = self.value(null)?;
            wanted = (wanted - 1).checked_add(children).ok_or(ShapeError(self.at))?;
        }
        Ok(())
    }

    /// Converts one scalar, or the header of an aggregate, and returns how many values the aggregate holds.
    fn value(&mut self, null: Null) -> Result<usize, ShapeError> {
        let header = Header::read(self.frame, self.at)?;
        let children = header.children()?;
        match header.kind {
            b'+' | b'-' | b':' | b'*' => self.at = header.end,
            b'$' => self.at = header.skip_body(self.frame)?,
            b'%' | b'~' => self.replace_line(header, b'*', children),
            b',' | b'(' => self.bulk_instead(header, header.text, header.end),
            b'#' => match header.text {
                b"t" => self.instead(header, b":1\r\n"),
                b"f" => self.instead(header, b":0\r\n"),
                _ => return Err(ShapeError(header.start)),
            },
            b'_' => match null {
                Null::Bulk => self.instead(header, b"$-1\r\n"),
                Null::Array => self.instead(header, b"*-1\r\n"),
            },
            b'=' => {
                let end = header.body_end(self.frame)?.ok_or(ShapeError(header.start))?;
                // Three letters of format and a colon.
                let text = self.frame.get(header.end + 4..end).ok_or(ShapeError(header.start))?;
                self.bulk_instead(header, text, end + 2);
            }
            _ => return Err(ShapeError(header.start)),
        }
        Ok(children)
    }

    /// Leaves out attributes that stand before the next value.
    fn drop_attributes(&mut self) -> Result<(), ShapeError> {
        while self.frame.get(self.at) == Some(&b'|') {
            let header = Header::read(self.frame, self.at)?;
            self.flush(header.start);
            let mut wanted = header.children()?.saturating_sub(1);
            self.at = header.end;
            while wanted > 0 {
                let header = Header::read(self.frame, self.at)?;
                self.at = header.skip_body(self.frame)?;
                wanted = (wanted - 1).checked_add(header.children()?).ok_or(ShapeError(self.at))?;
            }
            self.kept = self.at;
        }
        Ok(())
    }

    /// Writes what has been kept, up to `end`.
    fn flush(&mut self, end: usize) {
        self.out.put_slice(self.frame.get(self.kept..end).unwrap_or_default());
        self.kept = end;
    }

    /// Writes what has been kept and goes on at `end`, leaving out what lies between.
    fn drop_until(&mut self, end: usize) {
        self.flush(self.at);
        (self.at, self.kept) = (end, end);
    }

    fn instead(&mut self, header: Header<'f>, bytes: &[u8]) {
        self.drop_until(header.end);
        self.out.put_slice(bytes);
    }

    fn replace_line(&mut self, header: Header<'f>, kind: u8, number: usize) {
        self.drop_until(header.end);
        put_line(self.out, kind, number);
    }

    fn bulk_instead(&mut self, header: Header<'f>, text: &[u8], end: usize) {
        debug_assert_eq!(header.start, self.at, "a value is replaced where it begins");
        self.drop_until(end);
        put_line(self.out, b'$', text.len());
        self.out.put_slice(text);
        self.out.put_slice(b"\r\n");
    }
}

/// Writes `kind`, a number and a line end, without allocating.
fn put_line(out: &mut impl BufMut, kind: u8, number: usize) {
    let mut digits = [0; 20];
    let mut left = number;
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.put_u8(kind);
    out.put_slice(&digits[at..]);
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::args::OwnedArgs;
    use crate::table::{Resolved, Table};

    fn converted(line: &str, frame: &str) -> Result<String, ShapeError> {
        let table = Table::builtin();
        let args = OwnedArgs::new(line.split(' '));
        let Resolved::Known(command) = table.resolve(args.args()) else { panic!("{line}") };
        let mut out = Vec::new();
        to_resp2(Shape::of(command, args.args()).unwrap(), frame.as_bytes(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn scalars_and_aggregates_by_the_frame() {
        let cases = [
            ("$1\r\na\r\n", "$1\r\na\r\n"),
            ("_\r\n", "$-1\r\n"),
            (",1.5\r\n", "$3\r\n1.5\r\n"),
            (",-inf\r\n", "$4\r\n-inf\r\n"),
            ("(12345678901234567890\r\n", "$20\r\n12345678901234567890\r\n"),
            ("#t\r\n", ":1\r\n"),
            ("#f\r\n", ":0\r\n"),
            ("=7\r\ntxt:a\r\n\r\n", "$3\r\na\r\n\r\n"),
            ("%2\r\n+a\r\n~1\r\n:1\r\n+b\r\n_\r\n", "*4\r\n+a\r\n*1\r\n:1\r\n+b\r\n$-1\r\n"),
            ("|1\r\n+k\r\n%1\r\n+x\r\n,1\r\n*2\r\n:1\r\n|1\r\n+k\r\n#t\r\n:2\r\n", "*2\r\n:1\r\n:2\r\n"),
            ("-WRONGTYPE x\r\n", "-WRONGTYPE x\r\n"),
            ("%0\r\n", "*0\r\n"),
        ];
        for (resp3, resp2) in cases {
            assert_eq!(converted("get k", resp3).as_deref(), Ok(resp2), "{resp3:?}");
        }
    }

    #[test]
    fn commands_have_their_rules() {
        let cases = [
            ("lpop k", "_\r\n", "$-1\r\n"),
            ("lpop k 2", "_\r\n", "*-1\r\n"),
            ("geopos k a b", "*2\r\n_\r\n*2\r\n,1\r\n,2\r\n", "*2\r\n*-1\r\n*2\r\n$1\r\n1\r\n$1\r\n2\r\n"),
            (
                "zrange k 0 -1 withscores",
                "*2\r\n*2\r\n+a\r\n,1\r\n*2\r\n+b\r\n,2\r\n",
                "*4\r\n+a\r\n$1\r\n1\r\n+b\r\n$1\r\n2\r\n",
            ),
            ("zrange k 0 -1", "*2\r\n+a\r\n+b\r\n", "*2\r\n+a\r\n+b\r\n"),
            ("zrange k 0 -1", "*0\r\n", "*0\r\n"),
            ("zpopmin k", "*2\r\n+a\r\n,1\r\n", "*2\r\n+a\r\n$1\r\n1\r\n"),
            ("xread streams k 0", "%1\r\n+k\r\n*0\r\n", "*1\r\n*2\r\n+k\r\n*0\r\n"),
            ("xread streams k 0", "_\r\n", "*-1\r\n"),
            ("xpending k g", "*4\r\n:0\r\n_\r\n_\r\n_\r\n", "*4\r\n:0\r\n$-1\r\n$-1\r\n*-1\r\n"),
        ];
        for (line, resp3, resp2) in cases {
            assert_eq!(converted(line, resp3).as_deref(), Ok(resp2), "{line} {resp3:?}");
        }
    }

    #[test]
    fn what_is_not_one_reply_is_an_error() {
        for frame in [
            "",
            "$",
            "$1\r\na",
            "$1\r\nab\r\n",
            "*2\r\n:1\r\n",
            ":1\r\n:2\r\n",
            ">1\r\n:1\r\n",
            "$?\r\n",
            "*?\r\n",
            "#x\r\n",
            "%99999999999999999999\r\n",
            "*999999999999999999\r\n",
            "=2\r\nab\r\n",
            "=-1\r\n",
            "|1\r\n:1\r\n",
            "$-2\r\n",
            "\r\n",
            "%999999999999999999\r\n*999999999999999999\r\n",
        ] {
            assert!(converted("get k", frame).is_err(), "{frame:?}");
        }
        assert!(converted("zrange k 0 1", "*2\r\n*2\r\n:1\r\n:1\r\n:1\r\n").is_err());
    }

    #[test]
    fn deep_nesting_is_walked_without_a_stack() {
        let deep = format!("{}:1\r\n", "%1\r\n+k\r\n".repeat(100_000));
        let flat = format!("{}:1\r\n", "*2\r\n+k\r\n".repeat(100_000));
        assert_eq!(converted("get k", &deep), Ok(flat));
    }

    #[test]
    fn what_is_the_same_in_both_is_seen() {
        for frame in ["+OK\r\n", ":1\r\n", "$0\r\n\r\n", "-ERR\r\n", "*0\r\n", "*2\r\n$1\r\na\r\n:1\r\n"] {
            assert!(same_in_both(frame.as_bytes()), "{frame:?}");
            assert_eq!(converted("get k", frame).as_deref(), Ok(frame));
        }
        for frame in
            ["", "_\r\n", ",1\r\n", "*1\r\n_\r\n", "*1\r\n*0\r\n", "%0\r\n", "*2\r\n:1\r\n", "*1\r\n$5\r\na\r\n"]
        {
            assert!(!same_in_both(frame.as_bytes()), "{frame:?}");
        }
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let token = proptest::sample::select(vec![
            "*2\r\n",
            "*4\r\n",
            "%1\r\n",
            "~1\r\n",
            "|1\r\n",
            "_\r\n",
            "#t\r\n",
            ",1\r\n",
            "$1\r\na\r\n",
            "=5\r\ntxt:a\r\n",
            ":1\r\n",
            "*-1\r\n",
            "$-1\r\n",
            ">1\r\n",
            "*0\r\n",
            "$",
            "\r\n",
            "9",
            "!",
        ]);
        proptest::collection::vec(token, 0..20).prop_map(|tokens| tokens.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(frame in any_frame(), noise in proptest::collection::vec(any::<u8>(), 0..40)) {
            for null in [Null::Bulk, Null::Array] {
                for layout in [Layout::Same, Layout::FlatPairs, Layout::MapOfPairs, Layout::FourthNullArray] {
                    let mut out = Vec::new();
                    if to_resp2(Shape { null, layout }, &frame, &mut out).is_ok() {
                        // What came out is one RESP2 reply: converting it again changes nothing.
                        let mut again = Vec::new();
                        prop_assert_eq!(to_resp2(Shape { null, layout: Layout::Same }, &out, &mut again), Ok(()));
                        prop_assert_eq!(&again, &out);
                        prop_assert!(!same_in_both(&frame) || out == frame);
                    }
                    let _ = to_resp2(Shape { null, layout }, &noise, &mut out);
                }
            }
            let _ = same_in_both(&noise);
        }
    }
}
