//! Open addressing over command names: one hash, linear probing, at most a quarter full.
//!
//! Names are hashed and compared as two words, their first and last eight bytes, with case folded by setting bit 5 of
//! every byte. That makes letters equal in either case, and a few other bytes too: so a name that is not all letters,
//! or is longer than 16 bytes, is compared byte by byte after that. Subcommands live in the same index, salted with
//! their container's id.

use super::command::{Command, CommandId};

/// Slots per row, at least.
const SLOTS_PER_ROW: usize = 4;
/// Odd multiplier that spreads the bits (the golden ratio of 2^64).
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
/// Bit 5 of each byte: the only difference between upper and lower case letters.
const CASE_BITS: u64 = 0x2020_2020_2020_2020;

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// A power of two of slots, or none.
    slots: Vec<Slot>,
    /// How far a hash is shifted to the right to give a slot's index.
    shift: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    words: Words,
    /// The row's id plus one; 0: empty.
    id: u16,
    /// The id of the row's container plus one; 0: it has none.
    parent: u16,
    /// The length of the row's own name.
    len: u8,
    /// True if the two words and the length tell the name: letters only, and at most 16.
    is_exact: bool,
}

/// A name's first and last eight bytes, case folded; the second is constant for names of at most eight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Words(u64, u64);

// === impl Index ===

impl Index {
    /// Adds the last of `rows`; doubles, and adds all of them again, when it gets too full.
    pub(super) fn add(&mut self, rows: &[Command]) {
        let wanted = (rows.len() * SLOTS_PER_ROW).next_power_of_two();
        if wanted > self.slots.len() {
            self.slots = vec![Slot::default(); wanted];
            self.shift = 64 - wanted.trailing_zeros();
            rows.iter().for_each(|row| self.insert(row));
        } else if let Some(row) = rows.last() {
            self.insert(row);
        }
    }

    /// The row with this name under this container.
    #[inline]
    pub(super) fn find<'r>(&self, rows: &'r [Command], parent: Option<CommandId>, name: &[u8]) -> Option<&'r Command> {
        let words = Words::of(name);
        let parent = parent.map_or(0, |id| id.0 + 1);
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = words.hash(parent, name.len(), self.shift);
        // Ends at the first empty slot; three quarters of them are.
        loop {
            let slot = self.slots.get(at)?;
            let row = usize::from(slot.id.checked_sub(1)?);
            if slot.words == words && usize::from(slot.len) == name.len() && slot.parent == parent {
                let row = rows.get(row)?;
                if slot.is_exact || row.own_name().as_bytes().eq_ignore_ascii_case(name) {
                    return Some(row);
                }
            }
            at = (at + 1) & mask;
        }
    }

    fn insert(&mut self, row: &Command) {
        let own = row.own_name().as_bytes();
        let words = Words::of(own);
        let parent = row.parent.map_or(0, |id| id.0 + 1);
        let mask = self.slots.len() - 1;
        let mut at = words.hash(parent, own.len(), self.shift);
        while self.slots[at].id != 0 {
            at = (at + 1) & mask;
        }
        let is_exact = own.len() <= 16 && own.iter().all(u8::is_ascii_lowercase);
        // Names are at most 128 bytes long.
        self.slots[at] = Slot { words, id: row.id.0 + 1, parent, len: own.len() as u8, is_exact };
    }
}

// === impl Words ===

impl Words {
    #[inline]
    fn of(name: &[u8]) -> Self {
        let (head, tail) = match (name.first_chunk::<8>(), name.last_chunk::<8>()) {
            (Some(head), Some(tail)) => (u64::from_le_bytes(*head), u64::from_le_bytes(*tail)),
            _ => (short_word(name), 0),
        };
        Self(head | CASE_BITS, tail | CASE_BITS)
    }

    #[inline]
    fn hash(self, parent: u16, len: usize, shift: u32) -> usize {
        let mixed = self.0 ^ self.1.rotate_left(29) ^ len as u64 ^ (u64::from(parent) << 40);
        // The high bits of a product depend on all bits.
        (mixed.wrapping_mul(SPREAD) >> shift) as usize
    }
}

/// Fewer than eight bytes as a number, different for different bytes of the same length. Loads of fixed width: a loop
/// over the bytes of a short name would cost more than all the rest of a lookup.
fn short_word(bytes: &[u8]) -> u64 {
    match (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        (Some(head), Some(tail)) => u64::from(u32::from_le_bytes(*head)) << 32 | u64::from(u32::from_le_bytes(*tail)),
        _ => match bytes {
            [a, b, c] => u64::from(*a) << 16 | u64::from(*b) << 8 | u64::from(*c),
            [a, b] => u64::from(*a) << 8 | u64::from(*b),
            [a] => u64::from(*a),
            _ => 0,
        },
    }
}
