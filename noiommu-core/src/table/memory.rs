//! Where table frames live.

use super::format::SLOTS;
use super::index::IndexWord;
use crate::Errno;
use crate::sync::AtomicU64;

/// A 4 KiB table frame: 512 entries.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Frame {
    pub(super) slots: [AtomicU64; SLOTS],
}

impl Frame {
    /// A frame of empty entries, all of its bytes zero.
    #[must_use]
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { slots: [const { AtomicU64::new(0) }; SLOTS] }
    }

    /// A frame of empty entries.
    #[must_use]
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { slots: core::array::from_fn(|_| AtomicU64::new(0)) }
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

    /// Words for the index, one for each 2 MiB of the IOVA space from 0 on, as far as there is room; all zero at first. They stay
    /// at their place until the arena is dropped. None: each lookup is a walk.
    fn index(&self) -> &[IndexWord] {
        &[]
    }

    /// Makes sure that the words from `first` to `last`, which are in the index, can be written. Called by the table's writer only.
    ///
    /// # Errors
    /// ENOMEM.
    fn prepare_index(&self, first: u64, last: u64) -> Result<(), Errno> {
        let _ = (first, last);
        Ok(())
    }
}
