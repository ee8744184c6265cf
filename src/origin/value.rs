//! What a key holds: a string, kept in the smallest of three forms.
//!
//! A text that is the canonical form of a 64-bit integer is kept as the integer, so counters need no memory of their
//! own. Other texts are kept in a block of exactly their length until a command edits them in place; then they get room
//! to grow. OBJECT ENCODING tells the three forms apart as the server does (`int`, `embstr`, `raw`).

/// Longest text that the server keeps in one block with its header, in bytes.
const EMBEDDED_LEN_MAX: usize = 44;
/// Integers from zero up to (not including) this one are shared objects in the server.
const SHARED_INTEGERS: i64 = 10_000;
/// The reference count of a shared object.
const SHARED_REFERENCES: i64 = i32::MAX as i64;
/// Up to this length the room of a growing string is doubled; beyond, it gets this much or a quarter more.
const ROOM_BYTES_DOUBLED: usize = 1024 * 1024;

/// A stored string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A text that is exactly what printing this integer gives.
    Integer(i64),
    /// A text as it was stored.
    Fixed(Box<[u8]>),
    /// A text that was edited in place, with room to grow.
    Growable(Vec<u8>),
}

// === impl Value ===

impl Value {
    /// The form in which SET stores `text`.
    pub(super) fn new(text: &[u8]) -> Self {
        match parse_integer(text) {
            Some(value) => Self::Integer(value),
            None => Self::Fixed(text.into()),
        }
    }

    /// The text; `digits` lends the room for printing an integer.
    pub(super) fn text<'a>(&'a self, digits: &'a mut Digits) -> &'a [u8] {
        match self {
            Self::Integer(value) => digits.print(*value),
            Self::Fixed(text) => text,
            Self::Growable(text) => text,
        }
    }

    /// Length of the text in bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Integer(value) => Digits::default().print(*value).len(),
            Self::Fixed(text) => text.len(),
            Self::Growable(text) => text.len(),
        }
    }

    /// Bytes of the block on the heap, room to grow included.
    pub(super) fn heap_len(&self) -> usize {
        match self {
            Self::Integer(_) => 0,
            Self::Fixed(text) => text.len(),
            Self::Growable(text) => text.capacity(),
        }
    }

    /// The integer that the text is, as string2ll of the server reads it.
    pub(super) fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(value) => Some(*value),
            Self::Fixed(text) => parse_integer(text),
            Self::Growable(text) => parse_integer(text),
        }
    }

    /// Edits the text in place, in a block of `room` bytes at least.
    pub(super) fn edit(&mut self, room: usize, change: impl FnOnce(&mut Vec<u8>)) {
        let mut text = match std::mem::replace(self, Self::Integer(0)) {
            Self::Growable(text) => text,
            Self::Fixed(text) => with_room(&text, room),
            Self::Integer(value) => with_room(Digits::default().print(value), room),
        };
        if text.capacity() < room {
            text.reserve_exact(room - text.len());
        }
        change(&mut text);
        *self = Self::Growable(text);
    }

    /// What OBJECT ENCODING answers.
    pub(super) fn encoding(&self) -> &'static [u8] {
        match self {
            Self::Integer(_) => b"int",
            Self::Fixed(text) if text.len() <= EMBEDDED_LEN_MAX => b"embstr",
            Self::Fixed(_) | Self::Growable(_) => b"raw",
        }
    }

    /// What OBJECT REFCOUNT answers.
    pub(super) fn references(&self) -> i64 {
        match self {
            Self::Integer(value) if (0..SHARED_INTEGERS).contains(value) => SHARED_REFERENCES,
            _ => 1,
        }
    }
}

/// How large a block to take for an edited text of `len` bytes, so that growing byte by byte is not quadratic.
pub(super) fn room_for(len: usize) -> usize {
    len + len.min(ROOM_BYTES_DOUBLED).max(len / 4)
}

/// The integer that `text` is the canonical form of: no sign but `-`, no leading zero, no space, 64 bits.
pub(super) fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        b"0" => return Some(0),
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if !matches!(digits, [b'1'..=b'9', ..]) || digits.len() > DIGITS_MAX - 1 {
        return None;
    }
    let mut value = 0i64;
    for byte in digits {
        let digit = i64::from(byte.is_ascii_digit().then(|| byte - b'0')?);
        // Downwards, for the lowest integer has no positive counterpart.
        value = value.checked_mul(10)?.checked_sub(digit)?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

/// Length of the longest 64-bit integer in decimal, sign included.
const DIGITS_MAX: usize = 20;

/// Room for printing an integer without an allocation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Digits {
    bytes: [u8; DIGITS_MAX],
}

// === impl Digits ===

impl Digits {
    /// `value` in decimal.
    pub(super) fn print(&mut self, value: i64) -> &[u8] {
        let mut at = DIGITS_MAX;
        let mut rest = value.unsigned_abs();
        loop {
            at -= 1;
            self.bytes[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if value < 0 {
            at -= 1;
            self.bytes[at] = b'-';
        }
        &self.bytes[at..]
    }
}

fn with_room(text: &[u8], room: usize) -> Vec<u8> {
    let mut roomy = Vec::with_capacity(room.max(text.len()));
    roomy.extend_from_slice(text);
    roomy
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_canonical_integers_are_integers() {
        for (text, value) in
            [("0", 0), ("-1", -1), ("9223372036854775807", i64::MAX), ("-9223372036854775808", i64::MIN)]
        {
            assert_eq!(parse_integer(text.as_bytes()), Some(value));
        }
        for text in ["", "-", "-0", "+1", "01", " 1", "1 ", "1.0", "9223372036854775808", "-9223372036854775809", "1a"]
        {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn forms_are_told_apart() {
        assert_eq!(Value::new(b"12").encoding(), b"int");
        assert_eq!(Value::new(&[b'x'; 44]).encoding(), b"embstr");
        assert_eq!(Value::new(&[b'x'; 45]).encoding(), b"raw");
        let mut edited = Value::new(b"12");
        edited.edit(10, |text| text.push(b'3'));
        assert_eq!((edited.encoding(), edited.len(), edited.heap_len()), (&b"raw"[..], 3, 10));
    }

    proptest! {
        #[test]
        fn integers_are_printed_and_read_back(value: i64) {
            let mut digits = Digits::default();
            let text = value.to_string();
            prop_assert_eq!(digits.print(value), text.as_bytes());
            prop_assert_eq!(parse_integer(text.as_bytes()), Some(value));
        }
    }
}
