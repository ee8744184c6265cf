//! Replies of CACHE, written in RESP3. What a RESP2 client gets follows from the frame.

use crate::report::Figure;

/// A reply, or its beginning.
#[derive(Debug, Default)]
pub(super) struct Reply(Vec<u8>);

// === impl Reply ===

impl Reply {
    /// A map whose `len` pairs follow.
    pub(super) fn map(&mut self, len: usize) -> &mut Self {
        self.line('%', &len.to_string())
    }

    /// An array whose `len` elements follow.
    pub(super) fn array(&mut self, len: usize) -> &mut Self {
        self.line('*', &len.to_string())
    }

    /// A set whose `len` elements follow.
    pub(super) fn set(&mut self, len: usize) -> &mut Self {
        self.line('~', &len.to_string())
    }

    /// Frames that are written already.
    pub(super) fn frame(&mut self, frame: &[u8]) -> &mut Self {
        self.0.extend_from_slice(frame);
        self
    }

    pub(super) fn simple(&mut self, text: &str) -> &mut Self {
        self.line('+', text)
    }

    pub(super) fn null(&mut self) -> &mut Self {
        self.line('_', "")
    }

    pub(super) fn bulk(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// A bulk string that need not be text: a key.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.line('$', &bytes.len().to_string());
        self.0.extend_from_slice(bytes);
        self.0.extend_from_slice(b"\r\n");
        self
    }

    pub(super) fn verbatim(&mut self, text: &str) -> &mut Self {
        self.line('=', &(text.len() + 4).to_string());
        self.0.extend_from_slice(b"txt:");
        self.0.extend_from_slice(text.as_bytes());
        self.0.extend_from_slice(b"\r\n");
        self
    }

    pub(super) fn integer(&mut self, n: impl Into<i128>) -> &mut Self {
        let n: i128 = n.into();
        self.line(':', &n.clamp(i128::from(i64::MIN), i128::from(i64::MAX)).to_string())
    }

    pub(super) fn double(&mut self, n: f64) -> &mut Self {
        self.line(',', &format!("{n}"))
    }

    pub(super) fn figure(&mut self, figure: &Figure) -> &mut Self {
        match figure {
            Figure::Counter(n) | Figure::Gauge(n) => self.integer(*n),
            Figure::Share(share) => self.double((share * 10_000.0).round() / 10_000.0),
            Figure::Mean(mean) => self.double((mean * 10.0).round() / 10.0),
            Figure::Text(text) => self.bulk(text),
        }
    }

    /// The bytes.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    fn line(&mut self, kind: char, text: &str) -> &mut Self {
        self.0.extend_from_slice(format!("{kind}{text}\r\n").as_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_resp3() {
        let mut reply = Reply::default();
        reply.map(2).bulk("a").integer(u64::MAX).bulk("b").array(3).null().double(0.25).verbatim("x");
        let written = "%2\r\n$1\r\na\r\n:9223372036854775807\r\n$1\r\nb\r\n*3\r\n_\r\n,0.25\r\n=5\r\ntxt:x\r\n";
        assert_eq!(String::from_utf8(reply.take()).unwrap(), written);
    }
}
