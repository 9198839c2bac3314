//! How simulated devices find memory: by physical address, at the time of the access, without the engine's records.

use std::collections::HashMap;
use std::os::raw::c_void;
use std::sync::Arc;

use noiommu_core::PhysAddr;

use crate::Result;
use crate::memory::{Pagemap, SimulatedMemory, read_maps};

/// Memory as a device sees it. An access that finds no memory answers false, and has changed nothing past the last page
/// that it found.
pub(super) trait Bus: Send {
    fn read(&mut self, place: PhysAddr, into: &mut [u8]) -> bool;

    fn write(&mut self, place: PhysAddr, from: &[u8]) -> bool;
}

/// Made-up memory.
pub(super) struct SimulatedBus(pub(super) Arc<SimulatedMemory>);

impl Bus for SimulatedBus {
    fn read(&mut self, place: PhysAddr, into: &mut [u8]) -> bool {
        by_pages(place, into.len(), |place, range| {
            let Some((address, room)) = self.0.find(place) else { return 0 };
            let bytes = &mut into[range];
            let length = bytes.len().min(room);
            copy_from_process(address, &mut bytes[..length])
        })
    }

    fn write(&mut self, place: PhysAddr, from: &[u8]) -> bool {
        by_pages(place, from.len(), |place, range| {
            let Some((address, room)) = self.0.find(place) else { return 0 };
            let bytes = &from[range];
            copy_to_process(address, &bytes[..bytes.len().min(room)])
        })
    }
}

/// The real memory of this process, found through /proc/self/pagemap: the page that has the frame right now. A page that
/// has moved away from its frame is not found there, as a real device would not find it.
///
/// Memory that this process has unmapped is not found either, though a pin still keeps its frame: a real device would
/// reach it.
pub(super) struct PagemapBus {
    pagemap: Pagemap,
    /// Where frames were at the last search: looked at again each time before it is believed.
    seen: HashMap<u64, usize>,
}

impl PagemapBus {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { pagemap: Pagemap::open()?, seen: HashMap::new() })
    }

    fn holds(&self, page: usize, frame: PhysAddr) -> bool {
        self.pagemap.entry(page).is_ok_and(|entry| entry.frame(self.pagemap.page_size()) == Some(frame))
    }

    /// The address in this process of the byte at `place`, and the bytes that follow it in its page.
    fn find(&mut self, place: PhysAddr) -> Option<(usize, usize)> {
        let page_size = self.pagemap.page_size();
        let offset = place.0 as usize % page_size;
        let frame = PhysAddr(place.0 - offset as u64);
        let page = match self.seen.get(&frame.0) {
            Some(&page) if self.holds(page, frame) => page,
            _ => self.search(frame)?,
        };
        Some((page + offset, page_size - offset))
    }

    /// Reads the pagemap of everything writable and notes where each frame is now; answers the page that has `frame`.
    fn search(&mut self, frame: PhysAddr) -> Option<usize> {
        const PAGES: usize = 8192;
        let page_size = self.pagemap.page_size();
        self.seen.clear();
        for vma in read_maps() {
            if !vma.readable || !vma.writable {
                continue;
            }
            for start in (vma.start..vma.end).step_by(PAGES * page_size) {
                let pages = ((vma.end - start) / page_size).min(PAGES);
                // A mapping may go while this looks: then the frame is not in it.
                let Ok(entries) = self.pagemap.entries(start, pages) else { continue };
                for (page, entry) in (start..).step_by(page_size).zip(entries) {
                    if let Some(frame) = entry.frame(page_size) {
                        self.seen.insert(frame.0, page);
                    }
                }
            }
        }
        self.seen.get(&frame.0).copied()
    }
}

impl Bus for PagemapBus {
    fn read(&mut self, place: PhysAddr, into: &mut [u8]) -> bool {
        by_pages(place, into.len(), |place, range| {
            let Some((address, room)) = self.find(place) else { return 0 };
            let bytes = &mut into[range];
            let length = bytes.len().min(room);
            copy_from_process(address, &mut bytes[..length])
        })
    }

    fn write(&mut self, place: PhysAddr, from: &[u8]) -> bool {
        by_pages(place, from.len(), |place, range| {
            let Some((address, room)) = self.find(place) else { return 0 };
            let bytes = &from[range];
            copy_to_process(address, &bytes[..bytes.len().min(room)])
        })
    }
}

/// Runs `part` over `length` bytes; it answers how many it did, 0 for a failure.
fn by_pages(
    place: PhysAddr,
    length: usize,
    mut part: impl FnMut(PhysAddr, std::ops::Range<usize>) -> usize,
) -> bool {
    let mut done = 0;
    while done < length {
        let Some(at) = place.checked_add(done as u64) else { return false };
        match part(at, done..length) {
            0 => return false,
            bytes => done += bytes,
        }
    }
    true
}

/// Copies out of this process's memory, by address. Through the kernel, so that memory which goes away meanwhile is an
/// error and not a crash; answers the bytes copied.
fn copy_from_process(address: usize, into: &mut [u8]) -> usize {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: into.len() };
    // SAFETY: writes to `into` alone, which is borrowed for the call; whatever `remote` names is only read, and checked
    // by the kernel.
    let copied = unsafe {
        libc::process_vm_readv(std::process::id().cast_signed(), &raw const local, 1, &raw const remote, 1, 0)
    };
    usize::try_from(copied).unwrap_or(0)
}

/// Copies into this process's memory, by address, as a device does: see [`copy_from_process`].
fn copy_to_process(address: usize, from: &[u8]) -> usize {
    let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: from.len() };
    // SAFETY: this is the model of a device that writes to memory. It does so only with bus mastering on, and who turned
    // that on has promised (`Device::enable_bus_master`) that the addresses are those of live mappings, which nothing in
    // this process holds a reference to.
    let copied = unsafe {
        libc::process_vm_writev(
            std::process::id().cast_signed(),
            &raw const local,
            1,
            &raw const remote,
            1,
            0,
        )
    };
    usize::try_from(copied).unwrap_or(0)
}
