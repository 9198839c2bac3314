//! The index: where an IOVA has its answer in memory whose place follows from the IOVA alone, so that a lookup needs no walk.
//!
//! For each 2 MiB of the IOVA space, as far as the index reaches, it has a word, and a place for the table of level 0:
//!
//! | word | meaning |
//! |---|---|
//! | 0 | nothing is said: nothing is mapped there, or the walk tells |
//! | physical address | a leaf covers the 2 MiB, which begin at this address, a multiple of 2 MiB |
//! | 2^63 + slots in use | smaller leaves are mapped there: their table is the one at this place |
//! | 2^63 + 2^62 + turn | nothing is mapped there, and the table at this place is kept to be used again, until a turn comes round |
//!
//! So as a signed number a word is positive where it is an address: one test, and one that compilers take for likely. Not said is a leaf
//! at address 0, and one of 1 TiB and more, which would be repeated 2^19 times.
//!
//! The table is the truth. A word repeats, decoded, what it says of 2 MiB; the tables of level 0 at their places *are* those of the
//! table, which its entries name by the numbers from [`PLACED`] on.
//!
//! # Why a lookup by it needs no epoch
//! A word, and a slot of a table at its place, stand for the same IOVAs for as long as the table lives: what is loaded is what was true
//! of them at one moment. Elsewhere a frame goes from hand to hand, and what a walk finds in it may be about other IOVAs. Where the
//! two loads of a lookup are of different moments they find no memory in the worst case, and the walk decides.

use super::TableMemory;
use super::format::{self, SLOTS};
use super::memory::Slot;
use crate::Errno;
use crate::sync::Ordering;

/// The frame number of the table at the first place. Those of other frames are below.
pub(super) const PLACED: u64 = 1 << 39;
/// log2 of what a word stands for: 2 MiB.
pub(super) const SLOT_SHIFT: u32 = 21;
/// A table, to which the number of slots in use is added.
const TABLE: u64 = 1 << 63;
/// A table that is kept, to which its turn is added.
const KEPT: u64 = TABLE | 1 << 62;
/// log2 of the smallest leaf that is not repeated: 1 TiB.
const TOO_LARGE: u32 = 40;

/// The physical address of an IOVA, where the index says it.
///
/// Loads are relaxed: the address is all that is loaded, and nothing is followed.
#[inline]
pub(super) fn address(memory: &impl TableMemory, iova: u64) -> Option<u64> {
    let word = memory.words().get(place(iova))?.load(Ordering::Relaxed);
    if word.cast_signed() > 0 {
        return Some(word | iova & ((1 << SLOT_SHIFT) - 1));
    }
    // Whatever else the word says: a table that is not in use has no entries.
    let page = usize::try_from(iova >> format::PAGE_SHIFT).unwrap_or(usize::MAX);
    let entry = memory.entries().get(page)?.load(Ordering::Relaxed);
    format::address_in_lowest(entry, iova)
}

/// The entries of the table at a place.
#[inline]
pub(super) fn table(memory: &impl TableMemory, place: usize) -> Option<&[Slot; SLOTS]> {
    memory.entries().get(place.wrapping_mul(SLOTS)..)?.first_chunk()
}

/// The place of an IOVA: one that no slice has where it has no number here.
#[inline]
fn place(iova: u64) -> usize {
    usize::try_from(iova >> SLOT_SHIFT).unwrap_or(usize::MAX)
}

/// The frame number of the table at a place.
fn placed(place: usize) -> u64 {
    PLACED | place as u64
}

/// The place whose table has a frame number; `None`: it is a frame like others.
#[inline]
pub(super) fn place_of(number: u64) -> Option<usize> {
    (number & PLACED != 0).then_some((number ^ PLACED) as usize)
}

/// Makes sure that the words for 2^`size` bytes from `iova` on can be written, as far as the index reaches.
///
/// # Errors
/// ENOMEM.
pub(super) fn prepare(memory: &impl TableMemory, iova: u64, size: u32) -> Result<(), Errno> {
    let first = place(iova);
    let last = first.saturating_add(1usize << (size.saturating_sub(SLOT_SHIFT) & 63)).saturating_sub(1);
    match memory.words().len().checked_sub(1) {
        Some(most) if first <= most && size < TOO_LARGE => memory.prepare_words(first, last.min(most)),
        _ => Ok(()),
    }
}

/// Says that a leaf of 2^`size` bytes at `base` is at `iova`; smaller ones than 2 MiB are their table's.
pub(super) fn set_leaf(memory: &impl TableMemory, iova: u64, size: u32, base: u64) {
    each_slot(memory, iova, size, |offset| base.wrapping_add(offset));
}

/// Says nothing any more of the 2^`shift` bytes from `iova` on, of a leaf of 2^`size` bytes.
pub(super) fn clear_slot(memory: &impl TableMemory, iova: u64, shift: u32, size: u32) {
    if size < TOO_LARGE {
        each_slot(memory, iova, shift, |_| 0);
    }
}

/// The words from that of `iova` on.
pub(super) fn words_from(memory: &impl TableMemory, iova: u64) -> &[Slot] {
    memory.words().get(place(iova)..).unwrap_or_default()
}

/// Takes the leaves out at the beginning of some slots of level 1, whose words these are: as far as the words say that there are
/// leaves. Answers how many these were.
pub(super) fn clear_leaves(words: &[Slot], slots: &[Slot]) -> usize {
    let mut cleared = 0usize;
    for (word, slot) in words.iter().zip(slots) {
        if word.load(Ordering::Relaxed).cast_signed() <= 0 {
            break;
        }
        word.store(0);
        slot.store(0);
        cleared = cleared.wrapping_add(1);
    }
    cleared
}

fn each_slot(memory: &impl TableMemory, iova: u64, size: u32, word: impl Fn(u64) -> u64) {
    if !(SLOT_SHIFT..TOO_LARGE).contains(&size) {
        return;
    }
    let first = place(iova);
    let count = 1usize << (size.wrapping_sub(SLOT_SHIFT) & 63);
    let words = memory.words();
    let words = words.get(first..first.wrapping_add(count).min(words.len())).unwrap_or_default();
    let mut offset = 0u64;
    for slot in words {
        slot.store(word(offset));
        offset = offset.wrapping_add(1 << SLOT_SHIFT);
    }
}

/// Puts the table at the place of `iova` into use, without entries, and answers its frame number; `None` where the index does not
/// reach.
///
/// # Errors
/// ENOMEM.
pub(super) fn take_table(memory: &impl TableMemory, iova: u64) -> Result<Option<u64>, Errno> {
    let place = place(iova);
    let (Some(word), Some(_)) = (memory.words().get(place), table(memory, place)) else { return Ok(None) };
    prepare(memory, iova, SLOT_SHIFT)?;
    if word.load(Ordering::Relaxed) & KEPT != KEPT {
        memory.prepare_table(place)?;
    }
    word.store(TABLE);
    Ok(Some(placed(place)))
}

/// Slots in use of the table at a place, which is in use.
pub(super) fn live(memory: &impl TableMemory, place: usize) -> u32 {
    // The number of slots: the upper half does not count.
    memory.words().get(place).map_or(0, |word| word.load(Ordering::Relaxed)) as u32
}

/// Says how many slots are in use of the table at a place, which is in use.
pub(super) fn set_live(memory: &impl TableMemory, place: usize, live: u32) {
    if let Some(word) = memory.words().get(place) {
        word.store(TABLE | u64::from(live));
    }
}

/// Takes the table at a place out of use, and keeps it until its turn. It has no entries.
pub(super) fn keep_table(memory: &impl TableMemory, place: usize, turn: u32) {
    if let Some(word) = memory.words().get(place) {
        word.store(KEPT | u64::from(turn));
    }
}

/// Gives the memory of a table back, if it is one that is kept until this turn. One that has been used since is not, nor one that is
/// kept anew.
pub(super) fn release_kept(memory: &impl TableMemory, place: usize, turn: u32) {
    if let Some(word) = memory.words().get(place)
        && word.load(Ordering::Relaxed) == KEPT | u64::from(turn)
    {
        memory.release_table(place);
        word.store(0);
    }
}
