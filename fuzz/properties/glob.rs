//! Patterns: any bytes match or do not as the definition has it, and an escaped text always matches itself.
//!
//! Pattern and text stand on both sides of the first line end. The definition is worked out here by a table of (place in
//! the pattern, place in the text), so that its cost is the product of the two; a matcher whose work has another bound
//! shows as a run into libFuzzer's time limit.

use larder_protocol::glob::{Case, matches};

/// One element of a pattern that takes one byte, or `*`.
enum Element {
    Star,
    /// The bytes that it takes.
    OneOf(Box<[bool; 256]>),
}

pub(crate) fn check(input: &[u8]) {
    let at = input.iter().position(|&b| b == b'\n').unwrap_or(input.len());
    let (pattern, text) = (&input[..at], input.get(at + 1..).unwrap_or_default());
    for case in [Case::Sensitive, Case::Insensitive] {
        let expected = by_definition(&elements(pattern, case), text);
        assert_eq!(matches(pattern, text, case), expected, "{} {}", pattern.escape_ascii(), text.escape_ascii());
    }
    let escaped: Vec<u8> = text.iter().flat_map(|&b| [b'\\', b]).collect();
    assert!(matches(&escaped, text, Case::Sensitive));
    assert!(text.is_empty() || matches(b"*", text, Case::Sensitive));
}

/// `reached[i]`: the first `i` elements can match the text so far.
fn by_definition(elements: &[Element], text: &[u8]) -> bool {
    if text.is_empty() {
        return elements.is_empty();
    }
    let mut reached = vec![false; elements.len() + 1];
    reached[0] = true;
    pass_stars(elements, &mut reached);
    for &byte in text {
        let mut next = vec![false; reached.len()];
        for (i, element) in elements.iter().enumerate().filter(|(i, _)| reached[*i]) {
            match element {
                Element::Star => next[i] = true,
                Element::OneOf(bytes) => next[i + 1] |= bytes[usize::from(byte)],
            }
        }
        pass_stars(elements, &mut next);
        reached = next;
    }
    reached[elements.len()]
}

/// A star may take nothing.
fn pass_stars(elements: &[Element], reached: &mut [bool]) {
    for (i, element) in elements.iter().enumerate() {
        if matches!(element, Element::Star) && reached[i] {
            reached[i + 1] = true;
        }
    }
}

fn elements(pattern: &[u8], case: Case) -> Vec<Element> {
    let mut elements = Vec::new();
    let mut rest = pattern;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        elements.push(match first {
            b'*' => Element::Star,
            b'?' => Element::OneOf(Box::new([true; 256])),
            b'[' => {
                let (bytes, behind) = class(tail, case);
                rest = behind;
                Element::OneOf(bytes)
            }
            b'\\' if !tail.is_empty() => {
                rest = &tail[1..];
                only(tail[0], case)
            }
            literal => only(literal, case),
        });
    }
    elements
}

fn only(byte: u8, case: Case) -> Element {
    let mut bytes = Box::new([false; 256]);
    add(&mut bytes, byte, case);
    Element::OneOf(bytes)
}

fn add(bytes: &mut [bool; 256], byte: u8, case: Case) {
    bytes[usize::from(byte)] = true;
    if case == Case::Insensitive {
        bytes[usize::from(byte.to_ascii_lowercase())] = true;
        bytes[usize::from(byte.to_ascii_uppercase())] = true;
    }
}

/// The bytes of a class whose `[` has been read, and what stands behind it.
fn class(mut rest: &[u8], case: Case) -> (Box<[bool; 256]>, &[u8]) {
    let negated = rest.first() == Some(&b'^');
    rest = if negated { &rest[1..] } else { rest };
    let mut bytes = Box::new([false; 256]);
    loop {
        match *rest {
            [] => break,
            [b']', ..] => {
                rest = &rest[1..];
                break;
            }
            // An escaped byte is taken as it is, in either mode.
            [b'\\', escaped, ..] => {
                bytes[usize::from(escaped)] = true;
                rest = &rest[2..];
            }
            [from, b'-', to, ..] => {
                add_range(&mut bytes, from, to, case);
                rest = &rest[3..];
            }
            [member, ..] => {
                add(&mut bytes, member, case);
                rest = &rest[1..];
            }
        }
    }
    if negated {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
    }
    (bytes, rest)
}

/// A range of signed bytes, its ends in either order; folded ends and a folded byte are compared where case is not.
fn add_range(bytes: &mut [bool; 256], from: u8, to: u8, case: Case) {
    let (low, high) = if (from as i8) <= (to as i8) { (from, to) } else { (to, from) };
    let fold = |byte: u8| if case == Case::Insensitive { byte.to_ascii_lowercase() as i8 } else { byte as i8 };
    for byte in 0..=255_u8 {
        bytes[usize::from(byte)] |= (fold(low)..=fold(high)).contains(&fold(byte));
    }
}
