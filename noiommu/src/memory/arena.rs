//! Table frames in a reserved stretch of address space, so that none ever moves.

use std::sync::atomic::{AtomicU64, Ordering};

use noiommu_core::Errno;
use noiommu_core::table::{Frame, IndexWord, TableMemory};
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

use crate::{Error, Result};

const FRAME: usize = size_of::<Frame>();
/// Frames to reserve room for: 64 GiB of tables, which map 32 TiB of scattered pages. Only address space is taken.
const MOST_FRAMES: u64 = 1 << 24;
/// With less than this (64 MiB) there is no use in trying.
const FEWEST_FRAMES: u64 = 1 << 14;
/// Frames made available at a time: one 256 KiB step.
const STEP: u64 = 64;

/// Words of the index to reserve room for: 64 MiB, which stand for 16 TiB of IOVAs. Only address space is taken.
const MOST_WORDS: usize = 1 << 23;
/// Words in a page of the index, which stand for 1 GiB.
const WORDS_OF_PAGE: usize = 4096 / size_of::<IndexWord>();

/// The table memory of one IOAS.
#[derive(Debug)]
pub(crate) struct Arena {
    base: *mut Frame,
    reserved: u64,
    /// Frames below this number are readable and writable.
    available: AtomicU64,
    /// Words of the index, readable and writable, of which the kernel supplies what is touched.
    index: *mut IndexWord,
    words: usize,
    /// The pages of the index that are there for good, a bit each.
    prepared: Box<[AtomicU64]>,
}

// SAFETY: `base` and `index` are addresses that belong to this arena alone; what lies there is made of atomics.
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
                    let (index, words) = Self::reserve_index();
                    let bits = (words / WORDS_OF_PAGE).div_ceil(64);
                    let prepared = (0..bits).map(|_| AtomicU64::new(0)).collect();
                    return Ok(Self { base, reserved, available: AtomicU64::new(0), index, words, prepared });
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

impl Arena {
    /// Room for the index, and how many words it has: none where there is no address space, which costs lookups their speed.
    fn reserve_index() -> (*mut IndexWord, usize) {
        let length = MOST_WORDS * size_of::<IndexWord>();
        // SAFETY: a new private mapping at a place of the kernel's choice touches nothing that exists.
        let mapped = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let Ok(index) = mapped else { return (std::ptr::dangling_mut(), 0) };
        // Huge pages would take 2 MiB for what needs 4 KiB.
        // SAFETY: advice about the mapping just made.
        let _ = unsafe { mm::madvise(index, length, Advice::LinuxNoHugepage) };
        (index.cast(), MOST_WORDS)
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
    fn index(&self) -> &[IndexWord] {
        // SAFETY: the words are mapped, readable and writable, zeroed by the kernel (a word that says nothing is all zero) and stay so
        // until the arena is dropped, which the borrow excludes; none: a dangling pointer is right for a slice of none.
        unsafe { std::slice::from_raw_parts(self.index, self.words) }
    }

    fn prepare_index(&self, first: u64, last: u64) -> std::result::Result<(), Errno> {
        for page in first as usize / WORDS_OF_PAGE..=last as usize / WORDS_OF_PAGE {
            let Some(bits) = self.prepared.get(page / 64) else { return Err(Errno::ENOMEM) };
            let bit = 1 << (page % 64);
            if bits.load(Ordering::Relaxed) & bit != 0 {
                continue;
            }
            // SAFETY: a page of the index: populating writes nothing.
            let populated = unsafe {
                let start = self.index.add(page * WORDS_OF_PAGE).cast();
                mm::madvise(start, 4096, Advice::LinuxPopulateWrite)
            };
            // As for frames.
            match populated {
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(_) => return Err(Errno::ENOMEM),
            }
            bits.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the reservation is this arena's, and with `&mut self` no frame of it is borrowed.
        let _ = unsafe { mm::munmap(self.base.cast(), self.reserved as usize * FRAME) };
        if self.words != 0 {
            // SAFETY: as above.
            let _ = unsafe { mm::munmap(self.index.cast(), self.words * size_of::<IndexWord>()) };
        }
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
