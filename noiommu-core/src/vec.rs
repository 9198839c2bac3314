//! A vector whose growth can fail: the one collection of the engine.
//!
//! It is `alloc`'s vector without its aborting half: nothing here allocates but [`TryVec::try_reserve`], and nothing
//! indexes without a check, so no panic is reachable.

use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

use crate::Errno;

/// A growable array. Growing answers ENOMEM where `Vec` would abort the process.
#[derive(Debug)]
pub struct TryVec<T>(Vec<T>);

impl<T> TryVec<T> {
    /// An empty vector; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Makes room for `more` further elements.
    ///
    /// # Errors
    /// ENOMEM; the vector is as before.
    pub fn try_reserve(&mut self, more: usize) -> Result<(), Errno> {
        self.0.try_reserve(more).map_err(|_| Errno::ENOMEM)
    }

    /// Appends `value`.
    ///
    /// # Errors
    /// ENOMEM; the vector is as before and `value` dropped.
    pub fn try_push(&mut self, value: T) -> Result<(), Errno> {
        self.try_reserve(1)?;
        let length = self.0.len();
        let slot = self.0.spare_capacity_mut().first_mut().ok_or(Errno::ENOMEM)?;
        slot.write(value);
        // SAFETY: the element at `length` lies within the capacity and was written just now.
        unsafe { self.0.set_len(length.wrapping_add(1)) };
        Ok(())
    }
}

impl<T> TryVec<T> {
    /// Takes out the element at `index`, whose place the last one takes; nothing where there is none.
    pub fn swap_remove(&mut self, index: usize) -> Option<T> {
        let last = self.0.len().checked_sub(1)?;
        if index > last {
            return None;
        }
        self.0.swap(index, last);
        self.0.pop()
    }
}

impl<T> Default for TryVec<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Deref for TryVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for TryVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
