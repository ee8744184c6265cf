//! Reads a reply element by element, without building a tree.
//!
//! The cursor walks bytes in which a [`crate::scan::ReplyScanner`] has found a whole reply; on other bytes it
//! returns `None` early instead of panicking. Aggregates are announced with their count and their elements follow, so
//! that nothing recurses.

use crate::scan::strict_i64;
use memchr::memchr;

/// One element of a reply. Aggregates carry the number of elements that follow (a map's pair counts twice).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Item<'a> {
    /// `+`
    Simple(&'a [u8]),
    /// `-` or `!`, without the type byte
    Error(&'a [u8]),
    /// `:`
    Integer(i64),
    /// `$` or `=` (the latter with its `txt:` prefix)
    Bulk(&'a [u8]),
    /// `_`, `$-1` or `*-1`
    Null,
    /// `,`, `(` and `#` as text
    Text(u8, &'a [u8]),
    /// `*`, `~`, `>`, `%` or `|` with the count of elements that follow
    Aggregate(u8, u64),
}

/// A position in the bytes of a reply.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

// === impl Cursor ===

impl<'a> Cursor<'a> {
    /// Starts at the first element of `frame`.
    pub fn new(frame: &'a [u8]) -> Self {
        Self { rest: frame }
    }

    /// The element at the cursor as a string of bytes, whatever string type it has.
    pub fn next_bytes(&mut self) -> Option<&'a [u8]> {
        match self.next()? {
            Item::Simple(b) | Item::Bulk(b) | Item::Error(b) | Item::Text(_, b) => Some(b),
            _ => None,
        }
    }

    /// The element at the cursor as an integer.
    pub fn next_integer(&mut self) -> Option<i64> {
        match self.next()? {
            Item::Integer(n) => Some(n),
            _ => None,
        }
    }

    /// The count of the aggregate at the cursor.
    pub fn next_count(&mut self) -> Option<u64> {
        match self.next()? {
            Item::Aggregate(_, n) => Some(n),
            _ => None,
        }
    }

    /// Passes over one whole element and returns its bytes, nested elements included.
    pub fn next_frame(&mut self) -> Option<&'a [u8]> {
        let from = self.rest;
        let mut missing: u64 = 1;
        while missing > 0 {
            match self.next()? {
                // Counts are the peer's word: their sum may be more than there are numbers.
                Item::Aggregate(b'|', n) => missing = missing.checked_add(n)?,
                Item::Aggregate(_, n) => missing = (missing - 1).checked_add(n)?,
                _ => missing -= 1,
            }
        }
        from.get(..from.len() - self.rest.len())
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        let end = memchr(b'\n', self.rest)?;
        let line = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }

    fn body(&mut self, len: i64) -> Option<&'a [u8]> {
        let len = usize::try_from(len).ok()?;
        let body = self.rest.get(..len)?;
        self.rest = self.rest.get(len.checked_add(2)?..)?;
        Some(body)
    }
}

impl<'a> Iterator for Cursor<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        self.rest = rest;
        let line = self.line()?;
        Some(match kind {
            b'+' => Item::Simple(line),
            b'-' => Item::Error(line),
            b':' => Item::Integer(strict_i64(line)?),
            b'_' => Item::Null,
            b',' | b'(' | b'#' => Item::Text(kind, line),
            b'$' | b'=' | b'!' => match strict_i64(line)? {
                -1 => Item::Null,
                len if kind == b'!' => Item::Error(self.body(len)?),
                len => Item::Bulk(self.body(len)?),
            },
            b'*' | b'~' | b'>' | b'%' | b'|' => match strict_i64(line)? {
                -1 => Item::Null,
                n => {
                    let n = u64::try_from(n).ok()?;
                    Item::Aggregate(kind, if matches!(kind, b'%' | b'|') { n.checked_mul(2)? } else { n })
                }
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn walks_nested_replies() {
        let mut c = Cursor::new(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n:5\r\n");
        assert_eq!(c.next_count(), Some(2));
        assert_eq!(c.next_bytes(), Some(&b"invalidate"[..]));
        assert_eq!(c.next_frame(), Some(&b"*1\r\n$1\r\nk\r\n"[..]));
        assert_eq!(c.next_integer(), Some(5));
        assert_eq!(c.next(), None);
    }

    #[test]
    fn counts_that_overflow_end_the_walk() {
        let bomb = b"%4611686018427387904\r\n".repeat(3);
        assert_eq!(Cursor::new(&bomb).next_frame(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut c = Cursor::new(&bytes);
            while c.next_frame().is_some() {}
        }
    }
}
