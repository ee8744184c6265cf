//! Inline requests: a line of words, as a person types it.
//!
//! Split as redis-server's `sdssplitargs`; a line whose quotes do not close is refused.

/// Splits an inline request into words as redis-server's `sdssplitargs`: blanks between words, `"..."` with escapes,
/// `'...'` with `\'` only. `None` if quotes do not close or are not followed by a blank.
pub(super) fn split_inline(line: &[u8]) -> Option<Vec<Vec<u8>>> {
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
