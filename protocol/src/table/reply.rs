//! Reads a whole `COMMAND` (or `COMMAND DOCS`) reply into a small tree.
//!
//! RESP3 and RESP2 alike. The bytes come from the upstream, so they are bounded and never trusted: at most
//! [`DEPTH_MAX`] levels and [`NODES_MAX`] values, no allocation that a length in the reply alone could make large.
//! Used at start-up and by the generator, never for a client's request.

use thiserror::Error;

/// Deepest nesting read: `COMMAND` needs 8 levels, `COMMAND DOCS` 12.
pub const DEPTH_MAX: usize = 24;
/// Most values read: `COMMAND` of Redis 7.0 has about 15,000.
pub const NODES_MAX: usize = 1 << 20;

/// One value of the reply. Errors are not values: see [`ReplyError::Upstream`].
#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    /// A simple or bulk string, or any other scalar, as text.
    Text(&'a [u8]),
    /// An integer.
    Int(i64),
    /// An array or a set.
    List(Vec<Node<'a>>),
    /// A map: keys and values alternate.
    Map(Vec<Node<'a>>),
    /// A null of any kind.
    Null,
}

/// Why a reply could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReplyError {
    /// The upstream answered with an error.
    #[error("the upstream refused: {0}")]
    Upstream(String),
    /// The reply is not well-formed, or not complete.
    #[error("malformed reply at byte {0}")]
    Malformed(usize),
    /// The reply is larger than [`NODES_MAX`] or deeper than [`DEPTH_MAX`].
    #[error("the reply has too many values or levels")]
    TooLarge,
    /// The reply is well-formed but not the list of commands that was asked for.
    #[error("the reply is not a list of commands")]
    Unexpected,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: usize,
}

// === impl Node ===

impl<'a> Node<'a> {
    /// Reads the one value that `bytes` hold.
    ///
    /// # Errors
    ///
    /// [`ReplyError`] if they hold anything else, an error reply included.
    pub fn read(bytes: &'a [u8]) -> Result<Self, ReplyError> {
        let mut reader = Reader { bytes, at: 0, nodes: 0 };
        let node = reader.value(0)?;
        if reader.at == bytes.len() { Ok(node) } else { Err(ReplyError::Malformed(reader.at)) }
    }

    /// The text of a string.
    pub fn text(&self) -> Option<&'a [u8]> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The number.
    pub fn int(&self) -> Option<i64> {
        if let Self::Int(n) = self { Some(*n) } else { None }
    }

    /// The elements of an array, a set or a map (keys and values alternating); empty for anything else.
    pub fn items(&self) -> &[Node<'a>] {
        match self {
            Self::List(items) | Self::Map(items) => items,
            _ => &[],
        }
    }

    /// The value of `key` in a map, or in an array in which keys and values alternate (the RESP2 form).
    pub fn field(&self, key: &str) -> Option<&Node<'a>> {
        self.items().chunks_exact(2).find(|pair| pair[0].text() == Some(key.as_bytes())).map(|pair| &pair[1])
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    // Recursive, but never deeper than DEPTH_MAX.
    fn value(&mut self, depth: usize) -> Result<Node<'a>, ReplyError> {
        self.nodes += 1;
        if depth > DEPTH_MAX || self.nodes > NODES_MAX {
            return Err(ReplyError::TooLarge);
        }
        let line = self.line()?;
        let (kind, rest) = line.split_first().ok_or(ReplyError::Malformed(self.at))?;
        match kind {
            b'+' | b',' | b'#' | b'(' => Ok(Node::Text(rest)),
            b':' => Ok(Node::Int(self.number(rest)?)),
            b'-' => Err(ReplyError::Upstream(String::from_utf8_lossy(rest).into_owned())),
            b'_' => Ok(Node::Null),
            b'$' | b'=' | b'!' => match usize::try_from(self.number(rest)?) {
                Ok(len) => self.bulk(len).map(Node::Text),
                Err(_) => Ok(Node::Null),
            },
            b'*' | b'~' | b'>' => match usize::try_from(self.number(rest)?) {
                Ok(len) => self.values(len, depth).map(Node::List),
                Err(_) => Ok(Node::Null),
            },
            b'%' => {
                let pairs = usize::try_from(self.number(rest)?).map_err(|_| ReplyError::Malformed(self.at))?;
                self.values(pairs.saturating_mul(2), depth).map(Node::Map)
            }
            _ => Err(ReplyError::Malformed(self.at)),
        }
    }

    fn values(&mut self, len: usize, depth: usize) -> Result<Vec<Node<'a>>, ReplyError> {
        // The vector grows with what is read, not with what the length claims.
        (0..len).map(|_| self.value(depth + 1)).collect::<Result<Vec<_>, _>>()
    }

    fn line(&mut self) -> Result<&'a [u8], ReplyError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = memchr::memchr(b'\n', rest).ok_or(ReplyError::Malformed(self.at))?;
        let line = rest.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(ReplyError::Malformed(self.at))?;
        self.at += end + 1;
        Ok(line)
    }

    fn bulk(&mut self, len: usize) -> Result<&'a [u8], ReplyError> {
        let malformed = ReplyError::Malformed(self.at);
        let end = self.at.checked_add(len).ok_or_else(|| malformed.clone())?;
        let text = self.bytes.get(self.at..end).ok_or_else(|| malformed.clone())?;
        if self.bytes.get(end..end.saturating_add(2)) != Some(b"\r\n") {
            return Err(malformed);
        }
        self.at = end + 2;
        Ok(text)
    }

    fn number(&self, text: &[u8]) -> Result<i64, ReplyError> {
        std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(ReplyError::Malformed(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nested_values_and_refuses_what_is_not_one() {
        let node = Node::read(b"*2\r\n%1\r\n+a\r\n:1\r\n~1\r\n$1\r\nx\r\n").unwrap();
        assert_eq!(node.items()[0].field("a").and_then(Node::int), Some(1));
        assert_eq!(node.items()[1].items()[0].text(), Some(&b"x"[..]));
        assert_eq!(Node::read(b"-ERR no\r\n"), Err(ReplyError::Upstream("ERR no".into())));
        for bytes in [
            &b""[..],
            b"*1\r\n",
            b"$5\r\nab\r\n",
            b"+a\r\n+b\r\n",
            b"*99999999999\r\n",
            b"%-1\r\n",
            b"$18446744073709551615\r\n",
        ] {
            assert!(Node::read(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(Node::read(&b"*1\r\n".repeat(10_000)), Err(ReplyError::TooLarge));
    }
}
