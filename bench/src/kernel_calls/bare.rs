//! The kernel calls that mapping cannot do without, as short as they can be made: the floor.

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use io_uring::IoUring;

use super::memory::Memory;
use crate::measure::black_box;

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
/// Pagemap entries read in a call. Larger buffers leave the first level of the cache, smaller ones make more calls.
const BATCH: usize = 8192;

/// A ring whose slots pin, and the pagemap.
pub struct Bare {
    ring: IoUring,
    pagemap: File,
    entries: Vec<u8>,
}

impl Bare {
    /// A ring of so many slots.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn new(slots: u32) -> Result<Self> {
        let ring = IoUring::new(1)?;
        ring.submitter().register_buffers_sparse(slots)?;
        let pagemap = File::open("/proc/self/pagemap")?;
        Ok(Self { ring, pagemap, entries: vec![0; BATCH * 8] })
    }

    /// Pins memory in a slot.
    ///
    /// # Errors
    /// What the kernel answers.
    #[inline]
    pub fn pin(&self, slot: u32, address: usize, length: usize) -> Result<()> {
        self.update(slot, address, length)
    }

    /// Lets go of it.
    ///
    /// # Errors
    /// What the kernel answers.
    #[inline]
    pub fn unpin(&self, slot: u32) -> Result<()> {
        self.update(slot, 0, 0)
    }

    fn update(&self, slot: u32, address: usize, length: usize) -> Result<()> {
        let buffer = libc::iovec { iov_base: address as *mut _, iov_len: length };
        // SAFETY: registering reads nothing of the buffer, and no operation is submitted on this ring.
        unsafe { self.ring.submitter().register_buffers_update(slot, &[buffer], None) }
    }

    /// Reads the entry of every page.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn read_entries(&mut self, address: usize, length: usize) -> Result<()> {
        let (first, pages) = (address / PAGE, length.div_ceil(PAGE));
        for page in (0..pages).step_by(BATCH) {
            let bytes = &mut self.entries[..(pages - page).min(BATCH) * 8];
            self.pagemap.read_exact_at(bytes, (first + page) as u64 * 8)?;
            black_box(bytes);
        }
        Ok(())
    }

    /// Has the kernel tell that huge pages map all of it, and reads the entry of each one's first page.
    ///
    /// # Errors
    /// What the kernel answers; that not all of it is mapped so.
    pub fn read_huge_entries(&mut self, memory: &Memory) -> Result<()> {
        let mut regions = [ScanRegion::default(); 1];
        let (start, end) = (memory.address() as u64, (memory.address() + memory.len()) as u64);
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            start,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_mask: PAGE_IS_HUGE,
            return_mask: PAGE_IS_HUGE,
            ..ScanArgument::default()
        };
        // SAFETY: the argument and the vector it names live through the call, which writes at most `vec_len` regions.
        let count = unsafe { libc::ioctl(self.pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        if count < 0 {
            return Err(Error::last_os_error());
        }
        if count != 1 || (regions[0].start, regions[0].end) != (start, end) {
            return Err(Error::other("not all of the memory is mapped by huge pages"));
        }
        for address in (memory.address()..memory.address() + memory.len()).step_by(HUGE) {
            let entry = &mut self.entries[..8];
            self.pagemap.read_exact_at(entry, (address / PAGE) as u64 * 8)?;
            black_box(entry);
        }
        Ok(())
    }
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
