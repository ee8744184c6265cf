//! Glob patterns as KEYS, SCAN MATCH, PSUBSCRIBE and CONFIG GET understand them.
//!
//! `*` stands for any run of bytes, `?` for one byte, `[abc]`, `[^abc]` and `[a-z]` for one byte of a class, and `\`
//! takes the special meaning from the byte that follows. The odd corners follow redis-server 7.0 as well:
//!
//! - a class that is never closed ends with the pattern (`[ab` is `[ab]`, `[^` is any byte);
//! - a range is swapped when its ends are, and its bytes compare as signed numbers (the server's `char` on x86-64);
//! - an empty text matches the empty pattern only, not even `*` (the server's commands know the lone `*` themselves).
//!
//! Invariant: a match takes at most `pattern.len() * text.len()` steps and constant memory, whatever the pattern.
//! Every element but `*` takes exactly one byte, so to come back to the *last* star is enough: what an earlier star
//! could give by growing, the last one can give too.

/// How letters compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Byte for byte: keys and channels.
    Sensitive,
    /// ASCII letters match in either case: names of settings and commands.
    Insensitive,
}

/// True if the whole of `text` matches `pattern`.
pub fn matches(pattern: &[u8], text: &[u8], case: Case) -> bool {
    if text.is_empty() {
        return pattern.is_empty();
    }
    let (mut p, mut t) = (0, 0);
    let mut last_star: Option<Star> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            last_star = Some(Star { resume_at: p, taken_until: t });
            continue;
        }
        let next = if p < pattern.len() { match_one(pattern, p, text[t], case) } else { None };
        match (next, &mut last_star) {
            (Some(after), _) => {
                p = after;
                t += 1;
            }
            (None, Some(star)) => {
                star.taken_until += 1;
                p = star.resume_at;
                t = star.taken_until;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// Where to go on when what follows the last `*` does not match: the star takes one byte more.
struct Star {
    resume_at: usize,
    taken_until: usize,
}

/// Matches the one-byte element at `p` with `byte`; the position after the element, or `None`.
fn match_one(pattern: &[u8], p: usize, byte: u8, case: Case) -> Option<usize> {
    match pattern[p] {
        b'?' => Some(p + 1),
        b'[' => match_class(pattern, p + 1, byte, case),
        b'\\' if p + 1 < pattern.len() => same(pattern[p + 1], byte, case).then_some(p + 2),
        literal => same(literal, byte, case).then_some(p + 1),
    }
}

/// Matches the class whose `[` stands before `p` with `byte`; the position after the class, or `None`.
fn match_class(pattern: &[u8], mut p: usize, byte: u8, case: Case) -> Option<usize> {
    let negated = pattern.get(p) == Some(&b'^');
    if negated {
        p += 1;
    }
    let mut found = false;
    loop {
        match pattern[p.min(pattern.len())..] {
            [] => break,
            [b'\\', escaped, ..] => {
                // The server compares an escaped byte as it is, in either mode.
                found |= escaped == byte;
                p += 2;
            }
            [b']', ..] => {
                p += 1;
                break;
            }
            [from, b'-', to, ..] => {
                found |= in_range(from, to, byte, case);
                p += 3;
            }
            [member, ..] => {
                found |= same(member, byte, case);
                p += 1;
            }
        }
    }
    (found != negated).then_some(p)
}

fn in_range(from: u8, to: u8, byte: u8, case: Case) -> bool {
    let signed = |b: u8| if case == Case::Insensitive { b.to_ascii_lowercase() as i8 } else { b as i8 };
    // The server orders the ends first and folds the case second.
    let (low, high) = if (from as i8) > (to as i8) { (to, from) } else { (from, to) };
    (signed(low)..=signed(high)).contains(&signed(byte))
}

fn same(a: u8, b: u8, case: Case) -> bool {
    match case {
        Case::Sensitive => a == b,
        Case::Insensitive => a.eq_ignore_ascii_case(&b),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hits(pattern: &str, text: &str) -> bool {
        matches(pattern.as_bytes(), text.as_bytes(), Case::Sensitive)
    }

    #[test]
    fn stars_and_marks() {
        assert!(hits("*", "anything"));
        assert!(hits("h*llo", "hllo"));
        assert!(hits("h*llo", "heeeello"));
        assert!(hits("a*b*c", "a-b-b-c"));
        assert!(!hits("a*b*c", "a-b-b-d"));
        assert!(hits("a**", "a"));
        assert!(hits("h?llo", "hello"));
        assert!(!hits("h?llo", "hllo"));
        assert!(!hits("abc?", "abc"));
    }

    #[test]
    fn classes() {
        assert!(hits("h[ae]llo", "hallo"));
        assert!(!hits("h[ae]llo", "hillo"));
        assert!(hits("h[^e]llo", "hallo"));
        assert!(!hits("h[^e]llo", "hello"));
        assert!(hits("h[a-c]llo", "hbllo"));
        assert!(hits("h[c-a]llo", "hbllo"));
        assert!(hits("[\\]]", "]"));
        assert!(hits("[\\-x]", "-"));
    }

    #[test]
    fn unclosed_classes_end_with_the_pattern() {
        assert!(hits("[ab", "a"));
        assert!(hits("[^", "z"));
        assert!(!hits("[", "["));
        assert!(!hits("a[", "ab"));
        assert!(hits("[a-]", "a"));
        assert!(hits("[\\", "\\"));
    }

    #[test]
    fn escapes() {
        assert!(hits("a\\*b", "a*b"));
        assert!(!hits("a\\*b", "axb"));
        assert!(hits("\\", "\\"));
        assert!(hits("\\\\", "\\"));
    }

    #[test]
    fn an_empty_text_matches_the_empty_pattern_only() {
        assert!(hits("", ""));
        assert!(!hits("*", ""));
        assert!(!hits("**", ""));
        assert!(!hits("", "a"));
    }

    #[test]
    fn letters_fold_when_asked() {
        assert!(matches(b"MAX[a-z]EMORY*", b"maxMemory-policy", Case::Insensitive));
        assert!(!hits("MAX*", "maxmemory"));
    }

    #[test]
    fn many_stars_take_bounded_steps() {
        // A matcher that goes back to every star would not come to an end here.
        let pattern = "a*".repeat(2_000) + "b";
        let text = "a".repeat(20_000);
        assert!(!hits(&pattern, &text));
    }

    /// The definition, as plain recursion: what a pattern means, without any thought of its cost.
    fn by_definition(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', rest @ ..] => (0..=text.len()).any(|taken| by_definition(rest, &text[taken..])),
            _ => match text {
                [] => false,
                [first, others @ ..] => match match_one(pattern, 0, *first, Case::Sensitive) {
                    Some(after) => by_definition(&pattern[after..], others),
                    None => false,
                },
            },
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in r"[ab*?\[\]^\\-]{0,9}", text in "[ab*^-]{1,9}") {
            prop_assert_eq!(hits(&pattern, &text), by_definition(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn takes_any_bytes(pattern: Vec<u8>, text: Vec<u8>) {
            matches(&pattern, &text, Case::Insensitive);
            let mut quoted = Vec::new();
            for &byte in &text {
                quoted.extend([b'\\', byte]);
            }
            prop_assert!(matches(&quoted, &text, Case::Sensitive));
        }
    }
}
