//! The seam through which the proof gets its pins.

use std::ptr::NonNull;

/// Something that can pin memory of this process, so that the kernel may not move it.
pub(crate) trait Pinner {
    /// Keeps the pages pinned; dropping it unpins them.
    type Pin;

    /// Pins the pages of `length` bytes at `address`, or says why it cannot.
    fn pin(&self, address: NonNull<u8>, length: usize) -> Result<Self::Pin, String>;

    /// How the pages are pinned, for people.
    fn name(&self) -> &str;
}
