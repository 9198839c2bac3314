//! Objects under ids, the lowest free id next, as the kernel numbers them.

use crate::{Errno, TryVec};

/// A table of values by index; finding the lowest free one takes a look at each, which the few objects of a context allow.
#[derive(Debug)]
pub(crate) struct Ids<T> {
    slots: TryVec<Option<T>>,
    /// No free slot lies below this index.
    lowest_free: usize,
}

impl<T> Ids<T> {
    pub(crate) const fn new() -> Self {
        Self { slots: TryVec::new(), lowest_free: 0 }
    }

    /// Makes sure that the next [`Ids::insert`] cannot fail.
    pub(crate) fn reserve(&mut self) -> Result<(), Errno> {
        self.slots.try_reserve(1)
    }

    /// Puts `value` at the lowest free index.
    pub(crate) fn insert(&mut self, value: T) -> Result<u32, Errno> {
        let free = self.slots.iter().skip(self.lowest_free).position(Option::is_none);
        let index = free.map_or(self.slots.len(), |more| self.lowest_free.wrapping_add(more));
        let number = u32::try_from(index).map_err(|_| Errno::ENOMEM)?;
        match self.slots.get_mut(index) {
            Some(slot) => *slot = Some(value),
            None => self.slots.try_push(Some(value))?,
        }
        self.lowest_free = index.wrapping_add(1);
        Ok(number)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(usize::try_from(index).ok()?)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(usize::try_from(index).ok()?)?.as_mut()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten()
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let index = usize::try_from(index).ok()?;
        let value = self.slots.get_mut(index)?.take()?;
        self.lowest_free = self.lowest_free.min(index);
        Some(value)
    }
}
