//! Compression of large replies in L1 (`l1.compress_min_bytes`): one LZ4 block each, where that earns its space.
//!
//! ```text
//!   packed reply:   its length, four bytes  |  an LZ4 block
//! ```
//!
//! The link packs a reply when it fills; whoever is answered from it unpacks it, outside of the store's lock and only when the
//! answer leaves, so that hits that wait hold what is packed.
//!
//! Invariants:
//! * What is unpacked is what was packed, or nothing: a block that is not one, or is of another length, is no answer. The read
//!   is then taken for a miss, and the fill that follows mends it. That takes a fault of the memory: nobody else writes here.
//! * A reply is packed only if it gets smaller by [`SAVED_PART`] at least.
//! * A length that no LZ4 block of this size can have is not believed, so that no fault asks for much memory.

use std::sync::atomic::{AtomicU64, Ordering};

/// A packed reply must be smaller by one of so many parts.
const SAVED_PART: usize = 8;

/// Bytes in front of the block: the length of what is packed.
const LENGTH_BYTES: usize = 4;

/// A block of LZ4 holds at most so many times its own bytes.
const RATIO_MAX: usize = 255;

/// A reply in its packed form, if it has `min` bytes and that is worth it.
pub(super) fn pack(reply: &[u8], min: Option<usize>) -> Option<Vec<u8>> {
    let length = u32::try_from(reply.len()).ok()?;
    if min.is_none_or(|min| reply.len() < min) {
        return None;
    }
    let room = LENGTH_BYTES + lz4_flex::block::get_maximum_output_size(reply.len());
    let mut packed = vec![0; room];
    packed[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    let written = lz4_flex::block::compress_into(reply, &mut packed[LENGTH_BYTES..]).ok()?;
    packed.truncate(LENGTH_BYTES + written);
    (packed.len() <= reply.len() - reply.len() / SAVED_PART).then_some(packed)
}

/// What [`pack`] was given.
pub(super) fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let (length, block) = packed.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if length / RATIO_MAX > block.len() {
        return None;
    }
    let mut reply = vec![0; length];
    let written = lz4_flex::block::decompress_into(block, &mut reply).ok()?;
    (written == length).then_some(reply)
}

/// What packing has brought so far.
#[derive(Debug, Default)]
pub(super) struct Savings {
    replies: AtomicU64,
    bytes: AtomicU64,
}

// === impl Savings ===

impl Savings {
    /// A reply of so many bytes was packed and stored.
    pub(super) fn add(&self, reply_bytes: usize, packed_bytes: usize) {
        self.replies.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(reply_bytes.saturating_sub(packed_bytes) as u64, Ordering::Relaxed);
    }

    /// Replies packed, and bytes that this has saved, since the start.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.replies.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldhash::quality::FixedState;
    use proptest::prelude::*;
    use std::hash::BuildHasher;

    #[test]
    fn packs_what_gets_smaller_and_nothing_else() {
        let text = b"{\"id\":1,\"name\":\"a name\"},".repeat(100);
        let packed = pack(&text, Some(text.len())).unwrap();
        assert!(packed.len() < text.len() / 10);
        assert_eq!(unpack(&packed).unwrap(), text);
        assert!(pack(&text, Some(text.len() + 1)).is_none(), "below the size asked for");
        assert!(pack(&text, None).is_none(), "off");
        let noise: Vec<u8> = (0..512_u64).flat_map(|i| FixedState::default().hash_one(i).to_le_bytes()).collect();
        assert!(pack(&noise, Some(1)).is_none(), "no smaller");
        for short in [&b""[..], b"_\r\n", b":1\r\n", b"$0\r\n\r\n", b"*0\r\n"] {
            assert!(pack(short, Some(0)).is_none());
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_not_believed() {
        let packed = pack(&[b'x'; 1000], Some(1)).unwrap();
        for length in [0, 999, 1001, u32::MAX] {
            let mut wrong = packed.clone();
            wrong[..4].copy_from_slice(&length.to_le_bytes());
            assert_eq!(unpack(&wrong), None, "{length}");
        }
        assert_eq!(unpack(&packed[..3]), None);
        assert_eq!(unpack(&packed[..packed.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn unpacks_what_was_packed(words in prop::collection::vec("[a-d]{1,6}", 0..400)) {
            let reply = words.concat().into_bytes();
            if let Some(packed) = pack(&reply, Some(1)) {
                prop_assert!(packed.len() + reply.len() / 8 <= reply.len());
                prop_assert_eq!(unpack(&packed).unwrap(), reply);
            }
        }

        #[test]
        fn whatever_stands_there_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(reply) = unpack(&bytes) {
                prop_assert!(reply.len() <= RATIO_MAX * (bytes.len() + 1));
            }
        }
    }
}
