//! Physical frames of this process's pages, from /proc/self/pagemap.
//!
//! Entry format and PAGEMAP_SCAN: the kernel's *Documentation/admin-guide/mm/pagemap.rst*.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use noiommu_core::{Errno, PhysAddr};

use crate::error::{ErrorKind, errno_of};
use crate::{Error, Result};

const PRESENT: u64 = 1 << 63;
const FILE_OR_SHARED: u64 = 1 << 61;
const PFN: u64 = (1 << 55) - 1;
/// Entries read at a time: 64 KiB.
const BATCH: usize = 8192;
/// A PMD-mapped huge page, on kernels with 4 KiB pages.
pub(crate) const HUGE: usize = 2 << 20;

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageEntry(u64);

impl PageEntry {
    /// Where the page is, if it is in memory and the kernel tells.
    pub(crate) fn frame(self, page_size: usize) -> Option<PhysAddr> {
        // A present page with PFN 0 is what a reader without CAP_SYS_ADMIN is shown; frame 0 itself is never handed out.
        (self.0 & PRESENT != 0 && self.0 & PFN != 0).then(|| PhysAddr((self.0 & PFN) * page_size as u64))
    }

    /// Whether the page is in memory, but its place hidden.
    fn hidden(self) -> bool {
        self.0 & PRESENT != 0 && self.0 & PFN == 0
    }

    /// Whether the page belongs to a file or to shared memory.
    fn file_or_shared(self) -> bool {
        self.0 & FILE_OR_SHARED != 0
    }
}

/// A piece of an address range: mapped by huge pages throughout, or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) address: usize,
    pub(crate) length: usize,
    pub(crate) huge: bool,
}

/// The pagemap of this process.
#[derive(Debug)]
pub(crate) struct Pagemap {
    /// Open since this process id: the file shows the memory of whoever opened it, so a forked child opens its own.
    file: Mutex<(u32, Arc<File>)>,
    page_size: usize,
}

impl Pagemap {
    pub(crate) fn open() -> Result<Self> {
        let pagemap = Self {
            file: Mutex::new((crate::process::id(), Arc::new(open_file()?))),
            page_size: rustix::param::page_size(),
        };
        Ok(pagemap)
    }

    pub(crate) fn page_size(&self) -> usize {
        self.page_size
    }

    fn file(&self) -> Result<Arc<File>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let process = crate::process::id();
        if file.0 != process {
            *file = (process, Arc::new(open_file()?));
        }
        Ok(file.1.clone())
    }

    /// The entry of the page at `address`.
    pub(crate) fn entry(&self, address: usize) -> Result<PageEntry> {
        let mut bytes = [0; 8];
        let file = self.file()?;
        self.read(&file, address / self.page_size, &mut bytes)?;
        Ok(PageEntry(u64::from_ne_bytes(bytes)))
    }

    /// The entries of `pages` pages from `address` on.
    pub(crate) fn entries(&self, address: usize, pages: usize) -> Result<Vec<PageEntry>> {
        let file = self.file()?;
        let mut bytes = vec![0; pages * 8];
        self.read(&file, address / self.page_size, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|&entry| PageEntry(u64::from_ne_bytes(entry))).collect())
    }

    fn read(&self, file: &File, page: usize, bytes: &mut [u8]) -> Result<()> {
        file.read_exact_at(bytes, page as u64 * 8).map_err(|e| Error::system("reading /proc/self/pagemap", e))
    }

    /// Hands the physical runs of `length` bytes at `address` to `sink`, which are pinned, and tells whether there was a page
    /// of a file or of shared memory among them. Neighbouring pages that are neighbours in memory too are told as one. A huge page is believed to be contiguous because the kernel says that
    /// it maps it as one, now that it is pinned; everything else is read page by page.
    pub(crate) fn runs(
        &self,
        address: usize,
        length: usize,
        sink: &mut dyn FnMut(PhysAddr, u64) -> Result<()>,
    ) -> Result<bool> {
        let file = self.file()?;
        let mut file_or_shared = false;
        let mut joined: Option<(PhysAddr, u64)> = None;
        let mut add = |place: PhysAddr, bytes: u64| {
            if let Some((start, so_far)) = &mut joined
                && start.checked_add(*so_far) == Some(place)
            {
                *so_far += bytes;
                return Ok(());
            }
            match joined.replace((place, bytes)) {
                Some((start, bytes)) => sink(start, bytes),
                None => Ok(()),
            }
        };
        let mut buffer = Vec::new();
        for piece in self.pieces_of(&file, address, length) {
            let step = if piece.huge { HUGE } else { self.page_size };
            let mut at = piece.address;
            let end = piece.address + piece.length;
            while at < end {
                let in_page = at % step;
                let pages = if piece.huge { 1 } else { (end - (at - in_page)).div_ceil(step).min(BATCH) };
                buffer.resize(pages * 8, 0);
                self.read(&file, (at - in_page) / self.page_size, &mut buffer)?;
                for entry in buffer.as_chunks().0 {
                    let entry = PageEntry(u64::from_ne_bytes(*entry));
                    let Some(frame) = entry.frame(self.page_size) else { return Err(no_frame(entry, at)) };
                    file_or_shared |= entry.file_or_shared();
                    let bytes = (step - at % step).min(end - at);
                    add(PhysAddr(frame.0 + (at % step) as u64), bytes as u64)?;
                    at += bytes;
                }
            }
        }
        if let Some((start, bytes)) = joined {
            sink(start, bytes)?;
        }
        Ok(file_or_shared)
    }

    /// Splits a range where its page size changes. On a kernel that cannot tell (before 6.7), or whose base page is not
    /// 4 KiB, it is one piece that is not huge, which is always right and only slower.
    pub(crate) fn pieces(&self, address: usize, length: usize) -> Result<Vec<Piece>> {
        let file = self.file()?;
        Ok(self.pieces_of(&file, address, length))
    }

    fn pieces_of(&self, file: &File, address: usize, length: usize) -> Vec<Piece> {
        let plain = || vec![Piece { address, length, huge: false }];
        // Whole huge pages alone are of interest.
        let (Some(first), last) = (address.checked_next_multiple_of(HUGE), (address + length) / HUGE * HUGE)
        else {
            return plain();
        };
        if self.page_size != 4096 || first >= last {
            return plain();
        }
        let Some(regions) = scan_huge(file, first, last) else { return plain() };
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = address;
        for (start, end) in regions {
            let (start, end) = (start.next_multiple_of(HUGE), end / HUGE * HUGE);
            if start >= end {
                continue;
            }
            if at < start {
                pieces.push(Piece { address: at, length: start - at, huge: false });
            }
            match pieces.last_mut() {
                Some(before) if before.huge && before.address + before.length == start => {
                    before.length += end - start;
                }
                _ => pieces.push(Piece { address: start, length: end - start, huge: true }),
            }
            at = end;
        }
        if at < address + length {
            pieces.push(Piece { address: at, length: address + length - at, huge: false });
        }
        pieces
    }
}

fn open_file() -> Result<File> {
    File::open("/proc/self/pagemap").map_err(|error| {
        Error::new(ErrorKind::NoPhysicalAddresses, errno_of(&error), format!("/proc/self/pagemap: {error}"))
            .with_remedy("mount /proc, and use a kernel with CONFIG_PROC_PAGE_MONITOR")
    })
}

fn no_frame(entry: PageEntry, address: usize) -> Error {
    if entry.hidden() {
        hidden_frames()
    } else {
        Error::new(
            ErrorKind::BadMemory,
            Errno::EFAULT,
            format!("the page at {address:#x} went away while it was being mapped"),
        )
        .with_remedy("do not unmap or replace memory during the call")
    }
}

/// The error of a process that is shown PFN 0 for every page.
pub(crate) fn hidden_frames() -> Error {
    Error::new(
        ErrorKind::NoPhysicalAddresses,
        Errno::EPERM,
        "the kernel shows this process no physical addresses (/proc/self/pagemap answers PFN 0)",
    )
    .with_remedy("run it as root or with CAP_SYS_ADMIN in the first user namespace: setcap cap_sys_admin,cap_ipc_lock,cap_sys_rawio+ep PROGRAM")
}

/// PAGEMAP_SCAN's argument (struct pm_scan_arg, Linux 6.7).
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
/// PAGE_IS_HUGE: mapped by a PMD or larger.
const PAGE_IS_HUGE: u64 = 1 << 6;

/// The parts of `first..last` that huge pages map, in order; `None` where the kernel cannot tell.
fn scan_huge(file: &File, first: usize, last: usize) -> Option<Vec<(usize, usize)>> {
    let mut found = Vec::new();
    let mut regions = [ScanRegion::default(); 64];
    let mut start = first as u64;
    while start < last as u64 {
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            start,
            end: last as u64,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_mask: PAGE_IS_HUGE,
            return_mask: PAGE_IS_HUGE,
            ..ScanArgument::default()
        };
        // SAFETY: the argument and the vector it names live through the call, which writes at most `vec_len` regions.
        let count = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        let regions = regions.get(..usize::try_from(count).ok()?)?;
        found.extend(regions.iter().map(|region| (region.start as usize, region.end as usize)));
        if argument.walk_end <= start {
            break;
        }
        start = argument.walk_end;
    }
    Some(found)
}

const _: () = assert!(size_of::<ScanArgument>() == 0x60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_hide_and_tell() {
        assert_eq!(PageEntry(PRESENT | 5).frame(4096), Some(PhysAddr(5 * 4096)));
        assert_eq!(PageEntry(PRESENT).frame(4096), None);
        assert_eq!(PageEntry(5).frame(4096), None, "swapped out: the bits are a swap entry");
        assert!(PageEntry(PRESENT).hidden() && !PageEntry(0).hidden());
        assert_eq!(no_frame(PageEntry(PRESENT), 0).kind(), ErrorKind::NoPhysicalAddresses);
        assert_eq!(no_frame(PageEntry(0), 0).kind(), ErrorKind::BadMemory);
    }

    #[test]
    fn ranges_without_a_whole_huge_page_are_one_piece() {
        let pagemap = Pagemap::open().unwrap();
        for (address, length) in [(0x1000, 0x1000), (HUGE - 0x1000, HUGE), (HUGE, HUGE - 0x1000)] {
            assert_eq!(pagemap.pieces(address, length).unwrap(), [Piece { address, length, huge: false }]);
        }
    }
}
