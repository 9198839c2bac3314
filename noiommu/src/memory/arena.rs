//! Table frames in a reserved stretch of address space, so that none ever moves.

use std::sync::atomic::{AtomicU64, Ordering};

use noiommu_core::Errno;
use noiommu_core::table::{Frame, Slot, TableMemory};
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

use super::index::IndexMemory;
use crate::{Error, Result};

const FRAME: usize = size_of::<Frame>();
/// Frames to reserve room for: 64 GiB of tables, which map 32 TiB of scattered pages. Only address space is taken.
const MOST_FRAMES: u64 = 1 << 24;
/// With less than this (64 MiB) there is no use in trying.
const FEWEST_FRAMES: u64 = 1 << 14;
/// Frames made available at a time: one 256 KiB step.
const STEP: u64 = 64;

/// The table memory of one IOAS.
#[derive(Debug)]
pub(crate) struct Arena {
    base: *mut Frame,
    reserved: u64,
    /// Frames below this number are readable and writable.
    available: AtomicU64,
    index: IndexMemory,
}

// SAFETY: `base` is an address that belongs to this arena alone; what lies there is made of atomics.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves address space, as much as the process's limits allow.
    pub(crate) fn new() -> Result<Self> {
        let mut reserved = MOST_FRAMES;
        loop {
            // SAFETY: a new private mapping at a place of the kernel's choice touches nothing that exists.
            let mapped = unsafe {
                mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    reserved as usize * FRAME,
                    ProtFlags::empty(),
                    MapFlags::PRIVATE | MapFlags::NORESERVE,
                )
            };
            match mapped {
                Ok(base) => {
                    let base = base.cast();
                    let (available, index) = (AtomicU64::new(0), IndexMemory::new());
                    return Ok(Self { base, reserved, available, index });
                }
                Err(_) if reserved > FEWEST_FRAMES => reserved /= 2,
                Err(error) => {
                    return Err(Error::system("reserving address space for a page table", error)
                        .with_remedy("raise RLIMIT_AS (ulimit -v)"));
                }
            }
        }
    }
}

impl TableMemory for Arena {
    #[inline]
    fn frame(&self, number: u64) -> Option<&Frame> {
        if number >= self.available.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: frames below `available` lie in the reservation, are readable and writable, were zeroed by the kernel
        // (an empty frame is all zeros) and stay so until the arena is dropped, which the borrow excludes.
        Some(unsafe { &*self.base.add(number as usize) })
    }

    fn grow(&self, frames: u64) -> std::result::Result<u64, Errno> {
        let available = self.available.load(Ordering::Relaxed);
        if frames <= available {
            return Ok(available);
        }
        // Twice as much each time up to 16 MiB, so that large tables take few calls.
        let wanted = frames.max(available + available.clamp(STEP, 64 * STEP)).min(self.reserved);
        if frames > wanted {
            return Err(Errno::ENOMEM);
        }
        // SAFETY: within the reservation, see the bound above.
        let start = unsafe { self.base.add(available as usize) }.cast();
        let length = (wanted - available) as usize * FRAME;
        // SAFETY: these pages belong to the arena and nobody has been given one yet.
        unsafe { mm::mprotect(start, length, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(|_| Errno::ENOMEM)?;
        // Want of memory shall show here as ENOMEM, not later as a fatal fault. Kernels that cannot (EINVAL) may fault.
        let populated = rustix::io::retry_on_intr(|| {
            // SAFETY: populating writes nothing.
            unsafe { mm::madvise(start, length.min(STEP as usize * FRAME), Advice::LinuxPopulateWrite) }
        });
        match populated {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(_) => return Err(Errno::ENOMEM),
        }
        self.available.store(wanted, Ordering::Release);
        Ok(wanted)
    }

    #[inline]
    fn words(&self) -> &[Slot] {
        self.index.words()
    }

    #[inline]
    fn entries(&self) -> &[Slot] {
        self.index.entries()
    }

    fn prepare_words(&self, first: usize, last: usize) -> std::result::Result<(), Errno> {
        self.index.prepare_words(first, last)
    }

    fn prepare_table(&self, place: usize) -> std::result::Result<(), Errno> {
        self.index.prepare_table(place)
    }

    fn release_table(&self, place: usize) {
        self.index.release_table(place);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the reservation is this arena's, and with `&mut self` no frame of it is borrowed.
        let _ = unsafe { mm::munmap(self.base.cast(), self.reserved as usize * FRAME) };
    }
}

#[cfg(test)]
impl Arena {
    pub(super) fn index_memory(&self) -> &IndexMemory {
        &self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_in_place_to_its_end() {
        let arena = Arena::new().unwrap();
        assert!(arena.frame(0).is_none());
        let first = arena.grow(1).unwrap();
        assert!(first >= 1 && arena.frame(first).is_none());
        let address = std::ptr::from_ref(arena.frame(0).unwrap());
        let more = arena.grow(first + 1000).unwrap();
        assert!(more > first + 999 && arena.frame(more - 1).is_some());
        assert_eq!(std::ptr::from_ref(arena.frame(0).unwrap()), address);
        assert_eq!(arena.grow(1).unwrap(), more);
        assert_eq!(arena.grow(arena.reserved + 1), Err(Errno::ENOMEM));
    }
}
