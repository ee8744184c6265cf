//! [`ReplyScanner`]: the same frames and the same refusal however the bytes are cut, every limit obeyed; and of each
//! frame that it finds: the cursor sees the same end, and [`to_resp2`] makes one valid RESP2 reply of it or refuses.
//!
//! The first byte of an input says where the rest is cut.

use std::sync::LazyLock;

use larder_protocol::args::OwnedArgs;
use larder_protocol::cursor::{Cursor, Item};
use larder_protocol::scan::{ReplyError, ReplyLimits, ReplyScanner};
use larder_protocol::shape::{Shape, same_in_both, to_resp2};
use larder_protocol::table::{Resolved, Table};

use super::cuts::pieces;

/// Small, so that short inputs reach every limit.
const LIMITS: ReplyLimits = ReplyLimits { depth_max: 5, bulk_bytes_max: 48, count_max: 12, line_bytes_max: 32 };
/// A RESP2 form is longer than the RESP3 form by less than this factor: `,` and a line end become `$0` and two.
const GROWTH_MAX: usize = 3;

/// What a stream of bytes came to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Where each frame ends, and the first byte that the scanner tells of it.
    frames: Vec<(usize, u8)>,
    refusal: Option<ReplyError>,
}

pub(crate) fn check(input: &[u8]) {
    let Some((&seed, bytes)) = input.split_first() else { return };
    let whole = scan(std::iter::once(bytes));
    let cut = scan(pieces(bytes, seed));
    assert_eq!(whole, cut, "the cuts have changed the outcome");
    let mut from = 0;
    for &(end, kind) in &whole.frames {
        let frame = &bytes[from..end];
        assert_eq!(frame.first(), Some(&kind));
        check_frame(frame);
        from = end;
    }
}

fn scan<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut scanner = ReplyScanner::new(LIMITS);
    let mut outcome = Outcome { frames: Vec::new(), refusal: None };
    let (mut at, mut from) = (0, 0);
    for mut piece in pieces {
        while !piece.is_empty() {
            let advance = match scanner.advance(piece) {
                Ok(advance) => advance,
                Err(refusal) => {
                    outcome.refusal = Some(refusal);
                    return outcome;
                }
            };
            assert!((1..=piece.len()).contains(&advance.consumed), "no progress");
            assert_eq!(advance.complete, scanner.is_at_boundary());
            at += advance.consumed;
            piece = &piece[advance.consumed..];
            assert_eq!(scanner.bytes(), (at - from) as u64);
            if advance.complete {
                outcome.frames.push((at, scanner.kind()));
                from = at;
            } else {
                assert!(scanner.bytes_needed_min() <= LIMITS.bulk_bytes_max + 2);
            }
        }
    }
    outcome
}

fn check_frame(frame: &[u8]) {
    assert_limits(frame);
    if let Some(seen) = Cursor::new(frame).next_frame() {
        assert_eq!(seen.len(), frame.len(), "scanner and cursor see different ends");
    }
    let same = same_in_both(frame);
    let mut out = Vec::new();
    for shape in SHAPES.iter() {
        out.clear();
        if to_resp2(*shape, frame, &mut out).is_err() {
            continue;
        }
        assert!(!same || out == frame, "said to be the same in both protocols");
        assert!(out.len() <= GROWTH_MAX * frame.len(), "{} bytes of {}", out.len(), frame.len());
        assert_one_resp2_reply(&out);
        let mut again = Vec::new();
        assert_eq!(to_resp2(Shape::GENERIC, &out, &mut again), Ok(()));
        assert_eq!(again, out, "RESP2 is not what it becomes");
    }
}

/// Walks the elements that the cursor can read; what it cannot read it must say by ending.
fn assert_limits(frame: &[u8]) {
    let mut items = 0;
    for item in Cursor::new(frame) {
        items += 1;
        match item {
            Item::Simple(text) | Item::Text(_, text) => assert!(text.len() <= LIMITS.line_bytes_max),
            Item::Bulk(body) => assert!(body.len() as u64 <= LIMITS.bulk_bytes_max),
            Item::Error(text) => assert!(text.len() as u64 <= LIMITS.bulk_bytes_max),
            Item::Aggregate(_, count) => assert!(count <= 2 * LIMITS.count_max),
            Item::Integer(_) | Item::Null => {}
        }
    }
    assert!(items <= frame.len());
}

/// One whole reply of nothing but RESP2's five types.
fn assert_one_resp2_reply(frame: &[u8]) {
    // Lines have become bulk strings, and pairs of maps elements.
    let limits = ReplyLimits { count_max: 2 * LIMITS.count_max, depth_max: LIMITS.depth_max + 1, ..LIMITS };
    let mut scanner = ReplyScanner::new(limits);
    let advance = scanner.advance(frame);
    assert!(
        advance.is_ok_and(|a| a.complete && a.consumed == frame.len()),
        "not one reply: {} ({advance:?})",
        frame.escape_ascii()
    );
    for item in Cursor::new(frame) {
        assert!(!matches!(item, Item::Text(..)), "a RESP3 scalar in {}", frame.escape_ascii());
        if let Item::Aggregate(kind, _) = item {
            assert_eq!(kind, b'*', "a RESP3 aggregate in {}", frame.escape_ascii());
        }
    }
}

/// Every way in which replies are turned into RESP2, by a command that has it.
static SHAPES: LazyLock<Vec<Shape>> = LazyLock::new(|| {
    let table = Table::builtin();
    let lines = ["get k", "lpop k 2", "zrange k 0 -1 withscores", "xread streams k 0", "xpending k g"];
    let shape = |line: &str| {
        let args = OwnedArgs::new(line.split(' '));
        let Resolved::Known(command) = table.resolve(args.args()) else { panic!("{line} is in the table") };
        Shape::of(command, args.args()).unwrap_or_else(|| panic!("{line} has a shape"))
    };
    lines.into_iter().map(shape).collect()
});
