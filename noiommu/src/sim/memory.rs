//! How simulated devices find memory: by physical address, at the time of the access, without the engine's records.

use std::collections::HashMap;
use std::os::raw::c_void;
use std::sync::Arc;

use noiommu_core::PhysAddr;

use super::Direction;
use super::sanitizer::Sanitizer;
use crate::Result;
use crate::memory::{Pagemap, SimulatedMemory, read_maps};

/// Who is on the bus.
#[derive(Clone, Copy)]
pub(super) struct Who<'a> {
    /// The device's name.
    pub(super) device: &'a str,
    /// The IOAS that it is attached to.
    pub(super) ioas: Option<u32>,
}

/// Memory as a device sees it, bus mastering being on. An access that finds no memory answers false, and has changed nothing
/// past the last page that it found.
pub(super) trait Memory: Send {
    fn read(&mut self, who: Who<'_>, place: PhysAddr, into: &mut [u8]) -> bool;

    fn write(&mut self, who: Who<'_>, place: PhysAddr, from: &[u8]) -> bool;

    /// The device was to reach memory, and its driver has never turned bus mastering on.
    fn not_mastering(&mut self, who: Who<'_>, direction: Direction, place: PhysAddr, length: u64) {
        let Who { device, .. } = who;
        tracing::warn!(device, "{} of {length} bytes at {place} with bus mastering off", direction.name());
    }
}

/// Tells of an access that found nobody; answers what it is given.
fn told(who: Who<'_>, direction: Direction, place: PhysAddr, length: usize, found: bool) -> bool {
    if !found {
        tracing::error!(
            device = who.device,
            "{} of {length} bytes found no memory at {place}",
            direction.name()
        );
    }
    found
}

/// Made-up memory, of which nobody keeps a record.
pub(super) struct SimulatedBus(pub(super) Arc<SimulatedMemory>);

impl Memory for SimulatedBus {
    fn read(&mut self, who: Who<'_>, place: PhysAddr, into: &mut [u8]) -> bool {
        let found = by_pages(place, into.len(), |place, range| read_page(&self.0, place, &mut into[range]));
        told(who, Direction::Read, place, into.len(), found)
    }

    fn write(&mut self, who: Who<'_>, place: PhysAddr, from: &[u8]) -> bool {
        let found = by_pages(place, from.len(), |place, range| write_page(&self.0, place, &from[range]));
        told(who, Direction::Write, place, from.len(), found)
    }
}

/// Reads up to the end of a page of made-up memory; answers the bytes, 0 where there is none.
pub(super) fn read_page(memory: &SimulatedMemory, place: PhysAddr, into: &mut [u8]) -> usize {
    let Some((address, room)) = memory.find(place) else { return 0 };
    let length = into.len().min(room);
    copy_from_process(address, &mut into[..length])
}

/// The same for writing.
pub(super) fn write_page(memory: &SimulatedMemory, place: PhysAddr, from: &[u8]) -> usize {
    let Some((address, room)) = memory.find(place) else { return 0 };
    copy_to_process(address, &from[..from.len().min(room)])
}

/// Made-up memory that the sanitizer looks after.
pub(super) struct SanitizedBus(pub(super) Arc<Sanitizer>);

impl Memory for SanitizedBus {
    fn read(&mut self, who: Who<'_>, place: PhysAddr, into: &mut [u8]) -> bool {
        self.0.read(who, place, into)
    }

    fn write(&mut self, who: Who<'_>, place: PhysAddr, from: &[u8]) -> bool {
        self.0.write(who, place, from)
    }

    fn not_mastering(&mut self, who: Who<'_>, direction: Direction, place: PhysAddr, length: u64) {
        self.0.not_mastering(who, direction, place, length);
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

impl Memory for PagemapBus {
    fn read(&mut self, who: Who<'_>, place: PhysAddr, into: &mut [u8]) -> bool {
        let found = by_pages(place, into.len(), |place, range| {
            let Some((address, room)) = self.find(place) else { return 0 };
            let bytes = &mut into[range];
            let length = bytes.len().min(room);
            copy_from_process(address, &mut bytes[..length])
        });
        told(who, Direction::Read, place, into.len(), found)
    }

    fn write(&mut self, who: Who<'_>, place: PhysAddr, from: &[u8]) -> bool {
        let found = by_pages(place, from.len(), |place, range| {
            let Some((address, room)) = self.find(place) else { return 0 };
            let bytes = &from[range];
            copy_to_process(address, &bytes[..bytes.len().min(room)])
        });
        told(who, Direction::Write, place, from.len(), found)
    }
}

/// Runs `part` over `length` bytes; it answers how many it did, 0 for a failure.
pub(super) fn by_pages(
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
