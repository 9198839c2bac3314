//! The index: a word for each 2 MiB of the IOVA space, by which a lookup needs one load instead of a walk.
//!
//! The table is the truth; the index repeats what it says of a slot of 2 MiB, decoded, in an array that is looked up by the IOVA
//! alone:
//!
//! | word | meaning |
//! |---|---|
//! | 0 | not said here: nothing is mapped, or the walk tells (a leaf of 1 TiB and more is not repeated 2^19 times) |
//! | physical address + 1 | a leaf covers the slot, which begins at this address: a multiple of 2 MiB |
//! | frame number * 4096 + 2 | leaves below 2 MiB: their table |
//!
//! A word stands for the same slot for as long as the table lives. So one load is one state of the table, and a leaf's word needs no
//! look at the epoch; what a table's word leads to may be recycled, as in a walk, and does.

use super::TableMemory;
use crate::Errno;
use crate::sync::{AtomicU64, Ordering};

/// log2 of what a word stands for: 2 MiB.
pub(super) const SLOT_SHIFT: u32 = 21;
/// What is added to a leaf's address.
const LEAF: u64 = 1;
/// What is added to a table's frame, shifted.
const TABLE: u64 = 2;
/// log2 of the smallest leaf that is not repeated: 1 TiB.
const TOO_LARGE: u32 = 40;
/// The bits in which words differ by kind.
const KIND: u64 = 0xfff;

/// A word of the index.
#[repr(transparent)]
#[derive(Debug)]
pub struct IndexWord(AtomicU64);

impl IndexWord {
    /// One that says nothing, all of its bytes zero.
    #[must_use]
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One that says nothing.
    #[must_use]
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Default for IndexWord {
    fn default() -> Self {
        Self::new()
    }
}

/// What a word says, as it was loaded.
#[derive(Clone, Copy)]
pub(super) struct Word(u64);

impl Word {
    /// The word for an IOVA; one that says nothing where the index does not reach.
    #[inline]
    pub(super) fn of(memory: &impl TableMemory, iova: u64) -> Self {
        let word = usize::try_from(iova >> SLOT_SHIFT).ok().and_then(|slot| memory.index().get(slot));
        Self(word.map_or(0, |word| word.0.load(Ordering::Acquire)))
    }

    /// The physical address of an IOVA in the slot, where a leaf covers it.
    #[inline]
    pub(super) fn address(self, iova: u64) -> Option<u64> {
        let base = self.0.wrapping_sub(LEAF);
        (base & KIND == 0).then(|| base.wrapping_add(iova & ((1 << SLOT_SHIFT) - 1)))
    }

    /// The frame of the table below.
    #[inline]
    pub(super) fn table(self) -> Option<u64> {
        let frame = self.0.wrapping_sub(TABLE);
        (frame & KIND == 0).then_some(frame >> 12)
    }
}

/// Makes room in the index for what begins at `iova` and is `bytes` long.
///
/// # Errors
/// ENOMEM.
pub(super) fn prepare(memory: &impl TableMemory, iova: u64, last: u64) -> Result<(), Errno> {
    let (first, last) = (iova >> SLOT_SHIFT, last >> SLOT_SHIFT);
    let most = (memory.index().len() as u64).wrapping_sub(1);
    if memory.index().is_empty() || first > most {
        Ok(())
    } else {
        memory.prepare_index(first, last.min(most))
    }
}

/// Says that a leaf of 2^`size` bytes at `base` is at `iova`; smaller ones than a slot are their table's.
pub(super) fn set_leaf(memory: &impl TableMemory, iova: u64, size: u32, base: u64) {
    each_slot(memory, iova, size, |offset| base.wrapping_add(offset).wrapping_add(LEAF));
}

/// Says nothing of a leaf's slots any more.
pub(super) fn clear_leaf(memory: &impl TableMemory, iova: u64, size: u32) {
    each_slot(memory, iova, size, |_| 0);
}

/// Says that leaves smaller than the slot of `iova` are in the table of this frame.
pub(super) fn set_table(memory: &impl TableMemory, iova: u64, frame: u64) {
    store(memory, iova >> SLOT_SHIFT, (frame << 12).wrapping_add(TABLE));
}

/// Says nothing of the slot of `iova` any more.
pub(super) fn clear_table(memory: &impl TableMemory, iova: u64) {
    store(memory, iova >> SLOT_SHIFT, 0);
}

fn each_slot(memory: &impl TableMemory, iova: u64, size: u32, word: impl Fn(u64) -> u64) {
    if !(SLOT_SHIFT..TOO_LARGE).contains(&size) {
        return;
    }
    let first = iova >> SLOT_SHIFT;
    let count = 1u64 << (size.wrapping_sub(SLOT_SHIFT) & 63);
    for slot in 0..count {
        if !store(memory, first.wrapping_add(slot), word(slot << SLOT_SHIFT)) {
            return;
        }
    }
}

/// Stores a word; false where the index does not reach.
fn store(memory: &impl TableMemory, slot: u64, value: u64) -> bool {
    let word = usize::try_from(slot).ok().and_then(|slot| memory.index().get(slot));
    if let Some(word) = word {
        word.0.store(value, Ordering::Release);
    }
    word.is_some()
}
