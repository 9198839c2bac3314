//! Things under small numbers, any free number next: a growing array with a list of the free places in it. For nodes of
//! trees and for areas, which come and go by the million.

use crate::{Errno, TryVec};

/// No node; ends the list of free places.
pub(crate) const NONE: u32 = u32::MAX;

/// A store of things (nodes), named by their place. Room is made by [`Slab::reserve`] alone; taking a node out of reserved room
/// does not fail.
pub(crate) struct Slab<N> {
    places: TryVec<Place<N>>,
    /// The first free place, or [`NONE`].
    free: u32,
    /// How many free places the list holds.
    spare: usize,
}

struct Place<N> {
    /// The next free place; of meaning only while this one is free.
    next: u32,
    node: N,
}

impl<N> Slab<N> {
    pub(crate) const fn new() -> Self {
        Self { places: TryVec::new(), free: NONE, spare: 0 }
    }

    /// Makes sure that the next `count` calls of [`Slab::put`] succeed.
    ///
    /// # Errors
    /// ENOMEM; nothing has changed.
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), Errno> {
        let fresh = count.saturating_sub(self.spare);
        // Numbers stay below NONE.
        if self.places.len().saturating_add(fresh) > NONE as usize {
            return Err(Errno::ENOMEM);
        }
        self.places.try_reserve(fresh)
    }

    /// Stores `node` and says where.
    ///
    /// # Errors
    /// ENOMEM, never after a sufficient [`Slab::reserve`].
    pub(crate) fn put(&mut self, node: N) -> Result<u32, Errno> {
        let free = self.free;
        if let Some(place) = self.places.get_mut(free as usize) {
            self.free = place.next;
            self.spare = self.spare.wrapping_sub(1);
            place.node = node;
            return Ok(free);
        }
        let number = u32::try_from(self.places.len()).map_err(|_| Errno::ENOMEM)?;
        self.places.try_push(Place { next: NONE, node })?;
        Ok(number)
    }

    /// Frees the place of a node that nothing names any more. The node itself stays until the place is used anew: what
    /// owns something must have been taken out.
    pub(crate) fn free(&mut self, number: u32) {
        if let Some(place) = self.places.get_mut(number as usize) {
            place.next = self.free;
            self.free = number;
            self.spare = self.spare.wrapping_add(1);
        }
    }

    pub(crate) fn get(&self, number: u32) -> Option<&N> {
        Some(&self.places.get(number as usize)?.node)
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut N> {
        Some(&mut self.places.get_mut(number as usize)?.node)
    }

    /// Nodes in use, found by counting the free list.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        let mut free = 0;
        let mut number = self.free;
        while let Some(place) = self.places.get(number as usize) {
            free += 1;
            number = place.next;
        }
        assert_eq!(free, self.spare);
        self.places.len() - free
    }
}
