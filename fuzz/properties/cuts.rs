//! Where a stream of bytes is cut into pieces: the same cuts for the same seed.

/// Splits `bytes` into pieces. Seed 0 makes pieces of one byte; others make short and long ones in turn.
pub(super) fn pieces(bytes: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut state = u64::from(seed);
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let wanted = if seed == 0 { 1 } else { next_length(&mut state) };
        let (piece, later) = rest.split_at(wanted.min(rest.len()));
        rest = later;
        Some(piece)
    })
}

/// Mostly a few bytes, now and then many (SplitMix64, by Steele, Lea and Flood).
fn next_length(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let bound = if mixed & 7 == 0 { 200 } else { 6 };
    1 + (mixed >> 32) as usize % bound
}
