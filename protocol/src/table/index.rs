//! Open addressing over command names: one hash, linear probing, at most a quarter full.
//!
//! The hash folds case by setting bit 5 of every byte, which makes letters equal and a few other bytes too; equality is decided
//! by comparing the name. Names longer than 16 bytes are hashed by their first and last eight bytes and their length.
//! Subcommands live in the same index, salted with their container's id.

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
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The hash's upper half, to compare few names.
    tag: u32,
    /// The row's id plus one; 0: empty.
    id: u16,
}

// === impl Index ===

impl Index {
    /// Adds the last of `rows`; doubles, and adds all of them again, when it gets too full.
    pub(super) fn add(&mut self, rows: &[Command]) {
        let wanted = (rows.len() * SLOTS_PER_ROW).next_power_of_two();
        if wanted > self.slots.len() {
            self.slots = vec![Slot::default(); wanted];
            rows.iter().for_each(|row| self.insert(row));
        } else if let Some(row) = rows.last() {
            self.insert(row);
        }
    }

    /// The row with this name under this container.
    pub(super) fn find<'r>(&self, rows: &'r [Command], parent: Option<CommandId>, name: &[u8]) -> Option<&'r Command> {
        let hash = hash(parent, name);
        let tag = tag_of(hash);
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        // Ends at the first empty slot; three quarters of them are.
        loop {
            let slot = self.slots.get(at)?;
            let id = slot.id.checked_sub(1)?;
            if slot.tag == tag
                && let Some(row) = rows.get(usize::from(id))
                && row.parent == parent
                && row.own_name().as_bytes().eq_ignore_ascii_case(name)
            {
                return Some(row);
            }
            at = (at + 1) & mask;
        }
    }

    fn insert(&mut self, row: &Command) {
        let hash = hash(row.parent, row.own_name().as_bytes());
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at].id != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = Slot { tag: tag_of(hash), id: row.id.0 + 1 };
    }
}

fn tag_of(hash: u64) -> u32 {
    (hash >> 32) as u32
}

fn hash(parent: Option<CommandId>, name: &[u8]) -> u64 {
    let salt = parent.map_or(0, |id| u64::from(id.0) + 1);
    let (head, tail) = match name.len() {
        0..=8 => (word(name), 0),
        len => (word(&name[..8]), word(&name[len - 8..])),
    };
    let mixed = (head | CASE_BITS) ^ (tail | CASE_BITS).rotate_left(29) ^ (name.len() as u64) ^ (salt << 40);
    let spread = mixed.wrapping_mul(SPREAD);
    // The low bits of a product depend on low bits only: fold the high half in.
    (spread ^ (spread >> 29)).wrapping_mul(SPREAD).rotate_left(32)
}

/// Up to eight bytes as a number.
fn word(bytes: &[u8]) -> u64 {
    if let Ok(eight) = <[u8; 8]>::try_from(bytes) {
        return u64::from_le_bytes(eight);
    }
    bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte))
}
