//! Where table frames live.

use super::format::SLOTS;
use crate::Errno;
use crate::sync::{AtomicU64, Ordering};

/// An entry of a table, or a word of the index. One that says nothing is all zero.
#[repr(transparent)]
#[derive(Debug)]
pub struct Slot(AtomicU64);

impl Slot {
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

    #[inline]
    pub(super) fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    /// By the writer only. Who sees it sees what was stored before.
    #[inline]
    pub(super) fn store(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

/// A 4 KiB table frame: 512 entries.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Frame {
    pub(super) slots: [Slot; SLOTS],
}

impl Frame {
    /// A frame of empty entries, all of its bytes zero.
    #[must_use]
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { slots: [const { Slot::new() }; SLOTS] }
    }

    /// A frame of empty entries.
    #[must_use]
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { slots: core::array::from_fn(|_| Slot::new()) }
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

/// An arena of table frames, numbered from 0, shared by one writer and any number of readers.
///
/// Frames are type-stable: once available, a frame stays a frame at its place until the arena is dropped, whatever it
/// is used for in the meantime. A reader may therefore look at a frame that has been taken out of use or put to
/// another; it reads stale entries, notices by the table's epoch and begins again.
pub trait TableMemory {
    /// The frame with this number, `None` when the arena has not grown that far.
    fn frame(&self, number: u64) -> Option<&Frame>;

    /// Makes at least `frames` frames available and answers how many there are now. New ones are all zero. Called by
    /// the table's writer only, never by two threads at a time.
    ///
    /// # Errors
    /// ENOMEM; what was available stays so.
    fn grow(&self, frames: u64) -> Result<u64, Errno>;

    /// Memory for an index of the IOVAs from 0 on, as far as there is room: a word for each 2 MiB of them. It stays at its place until
    /// the arena is dropped, and is all zero at first. None: each lookup is a walk.
    fn words(&self) -> &[Slot] {
        &[]
    }

    /// And the entries of a table for each word, one for each 4 KiB. What is not prepared may be read, and is all zero.
    fn entries(&self) -> &[Slot] {
        &[]
    }

    /// Makes sure that the words from `first` to `last`, which there are, can be written. Called by the table's writer only, as
    /// the two below.
    ///
    /// # Errors
    /// ENOMEM.
    fn prepare_words(&self, first: usize, last: usize) -> Result<(), Errno> {
        let _ = (first, last);
        Ok(())
    }

    /// Makes sure that the table of a word, which is all zero, can be written.
    ///
    /// # Errors
    /// ENOMEM.
    fn prepare_table(&self, place: usize) -> Result<(), Errno> {
        let _ = place;
        Ok(())
    }

    /// Gives back the memory of the table of a word, which is all zero and stays so. Readers may still be in it.
    fn release_table(&self, place: usize) {
        let _ = place;
    }
}
