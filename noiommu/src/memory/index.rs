//! Room for the index of a page table: words and tables at places that follow from the IOVA alone.

use std::sync::atomic::{AtomicU64, Ordering};

use noiommu_core::Errno;
use noiommu_core::table::{Frame, Slot};
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

/// Places to reserve room for, of 2 MiB each: 256 GiB of IOVAs, which are given out from below, for which 513 MiB of address space are
/// taken, and no memory. More would cost those who search all memory of the process, as simulated devices on real memory do.
const MOST: usize = 1 << 17;
/// With less than this, 8 GiB of IOVAs, there is no use in trying.
const FEWEST: usize = 1 << 12;
/// Words in a page, which stand for 1 GiB.
const WORDS_OF_PAGE: usize = PAGE / size_of::<Slot>();
/// Entries of a table.
const ENTRIES: usize = size_of::<Frame>() / size_of::<Slot>();
const PAGE: usize = 4096;
/// What a place takes.
const PLACE: usize = size_of::<Slot>() + size_of::<Frame>();

/// The memory of an index. The kernel supplies what is touched; what is not reads as zero.
#[derive(Debug)]
pub(super) struct IndexMemory {
    words: *mut Slot,
    entries: *mut Slot,
    places: usize,
    /// So many for each place.
    count: usize,
    /// The pages of words that are there for good, a bit each.
    prepared: Box<[AtomicU64]>,
}

// SAFETY: addresses that belong to this value alone; what lies there is made of atomics.
unsafe impl Send for IndexMemory {}
// SAFETY: as above.
unsafe impl Sync for IndexMemory {}

impl IndexMemory {
    /// As many places as the process's limits allow: none at the worst, which costs lookups their speed.
    pub(super) fn new() -> Self {
        let mut places = MOST;
        let base = loop {
            match reserve(places * PLACE) {
                Ok(base) => break base,
                Err(_) if places > FEWEST => places /= 2,
                Err(_) => {
                    tracing::debug!("no address space for an index: each lookup walks the page table");
                    let (words, entries) = (std::ptr::dangling_mut(), std::ptr::dangling_mut());
                    return Self { words, entries, places: 0, count: 0, prepared: Box::default() };
                }
            }
        };
        let words: *mut Slot = base.cast();
        // SAFETY: the tables lie behind the words, which fill whole pages.
        let entries = unsafe { words.add(places) };
        let prepared = (0..(places / WORDS_OF_PAGE).div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, entries, places, count: places * ENTRIES, prepared }
    }

    #[inline]
    pub(super) fn words(&self) -> &[Slot] {
        // SAFETY: so many are mapped, readable and writable, zeroed by the kernel (a slot that says nothing is all zero), and stay so
        // until this is dropped, which the borrow excludes; of none, a dangling pointer is right.
        unsafe { std::slice::from_raw_parts(self.words, self.places) }
    }

    #[inline]
    pub(super) fn entries(&self) -> &[Slot] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.entries, self.count) }
    }

    /// See [`TableMemory::prepare_words`](noiommu_core::table::TableMemory::prepare_words).
    pub(super) fn prepare_words(&self, first: usize, last: usize) -> Result<(), Errno> {
        let last = last / WORDS_OF_PAGE;
        let mut page = first / WORDS_OF_PAGE;
        while page <= last {
            let begin = page;
            while page <= last && !self.is_prepared(page) {
                page += 1;
            }
            if page > begin {
                // SAFETY: pages of words.
                unsafe { populate(self.words.add(begin * WORDS_OF_PAGE).cast(), (page - begin) * PAGE) }?;
                (begin..page).for_each(|page| self.set_prepared(page));
            }
            page += 1;
        }
        Ok(())
    }

    fn is_prepared(&self, page: usize) -> bool {
        self.prepared.get(page / 64).is_some_and(|bits| bits.load(Ordering::Relaxed) & 1 << (page % 64) != 0)
    }

    fn set_prepared(&self, page: usize) {
        if let Some(bits) = self.prepared.get(page / 64) {
            bits.fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
    }

    /// See [`TableMemory::prepare_table`](noiommu_core::table::TableMemory::prepare_table).
    pub(super) fn prepare_table(&self, place: usize) -> Result<(), Errno> {
        if place >= self.places {
            return Err(Errno::ENOMEM);
        }
        // SAFETY: a table of the index.
        unsafe { populate(self.entries.add(place * ENTRIES).cast(), size_of::<Frame>()) }
    }

    /// See [`TableMemory::release_table`](noiommu_core::table::TableMemory::release_table).
    pub(super) fn release_table(&self, place: usize) {
        if place < self.places {
            // SAFETY: a table of the index, all zero before and after. Where memory is locked this is refused, and it stays.
            let _ = unsafe {
                mm::madvise(
                    self.entries.add(place * ENTRIES).cast(),
                    size_of::<Frame>(),
                    Advice::LinuxDontNeed,
                )
            };
        }
    }
}

impl Drop for IndexMemory {
    fn drop(&mut self) {
        if self.places != 0 {
            // SAFETY: the mapping is this value's, and with `&mut self` nothing of it is borrowed.
            let _ = unsafe { mm::munmap(self.words.cast(), self.places * PLACE) };
        }
    }
}

/// Readable and writable address space, without memory behind it so far.
fn reserve(length: usize) -> rustix::io::Result<*mut std::ffi::c_void> {
    // In a program that locks all its memory to come (mlockall), what is mapped writable is there at once, all of it. So it is
    // mapped without access, let off, and made writable then.
    // SAFETY: a new private mapping at a place of the kernel's choice touches nothing that exists.
    let base = unsafe {
        mm::mmap_anonymous(
            std::ptr::null_mut(),
            length,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?;
    // SAFETY: the mapping just made, of which nobody knows.
    let writable = unsafe {
        mm::munlock(base, length)
            .and_then(|()| mm::mprotect(base, length, MprotectFlags::READ | MprotectFlags::WRITE))
    };
    if let Err(error) = writable {
        // SAFETY: as above.
        let _ = unsafe { mm::munmap(base, length) };
        return Err(error);
    }
    // A huge page would take 2 MiB for what needs 4 KiB.
    // SAFETY: advice about the mapping just made.
    let _ = unsafe { mm::madvise(base, length, Advice::LinuxNoHugepage) };
    Ok(base)
}

/// Makes pages be there, so that want of memory shows as ENOMEM, not later as a fatal fault. Kernels that cannot (EINVAL) may fault.
///
/// # Safety
/// `start` begins pages of an index, `length` bytes long.
unsafe fn populate(start: *mut std::ffi::c_void, length: usize) -> Result<(), Errno> {
    // SAFETY: populating writes nothing.
    let populated =
        rustix::io::retry_on_intr(|| unsafe { mm::madvise(start, length, Advice::LinuxPopulateWrite) });
    match populated {
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(_) => Err(Errno::ENOMEM),
    }
}

#[cfg(test)]
mod tests {
    use noiommu_core::table::format::Access;
    use noiommu_core::table::{Table, TableWriter};
    use noiommu_core::{Iova, IovaRange, PhysAddr};

    use super::super::Arena;
    use super::*;

    fn resident(index: &IndexMemory, place: usize) -> bool {
        let mut there = 0u8;
        // SAFETY: a page of the index, and a byte for it.
        let result =
            unsafe { libc::mincore(index.entries.add(place * ENTRIES).cast(), PAGE, &raw mut there) };
        assert_eq!(result, 0);
        there & 1 != 0
    }

    /// Memory is there while a table is in use, and for a while after.
    #[test]
    fn memory_comes_and_goes() {
        let table: &Table<Arena> = Box::leak(Box::new(Table::new(Arena::new().unwrap())));
        let mut writer = TableWriter::new(table).unwrap();
        let at = |place: u64| Iova(place << 21);
        let index = table.memory().index_memory();
        assert!(index.places >= FEWEST && !resident(index, 7));
        let mut map = |place: u64| {
            writer.map(at(place), PhysAddr(0x5000), 4096, Access::READ_WRITE, true).unwrap();
            assert_eq!(
                (table.address(at(place)), resident(index, place as usize)),
                (Some(PhysAddr(0x5000)), true)
            );
            writer.unmap(IovaRange::with_length(at(place), 4096).unwrap()).unwrap();
            assert_eq!((table.address(at(place)), resident(index, place as usize)), (None, true));
        };
        map(7);
        map(7);
        for place in 1000..2000 {
            map(place);
        }
        assert!(!resident(index, 7) && !resident(index, 1000) && resident(index, 1999));
        let kept = (0..index.places).filter(|&place| place < 4096 && resident(index, place)).count();
        assert!(kept <= 512, "{kept}");
        map(7);
        assert_eq!(writer.frames_in_use(), 0);
    }
}
