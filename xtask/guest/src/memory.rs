//! Memory whose physical addresses hold: mapped, pinned through io_uring, looked up in pagemap.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};

use anyhow::{Context, Result, bail};

/// The page size of every machine these guests emulate.
pub(crate) const PAGE: usize = 4096;

/// `IORING_REGISTER_BUFFERS`, which takes a long-term pin on every page of the buffers.
const REGISTER_BUFFERS: libc::c_long = 0;

/// Zeroed pages that the kernel may not move while this lives.
pub(crate) struct PinnedPages {
    start: NonNull<u8>,
    len: usize,
    // Closing the ring gives the pins back; the pages are unmapped first, which changes nothing about that.
    _ring: OwnedFd,
}

impl PinnedPages {
    /// Maps and pins `pages` pages.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let len = pages * PAGE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("mmap");
        }
        let ring = pin(start, len)?;
        let start = NonNull::new(start.cast()).context("mmap answered address 0")?;
        Ok(Self { start, len, _ring: ring })
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> usize {
        self.len / PAGE
    }

    /// Copies `bytes` to `offset`.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset);
        for (at, &byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping, by the assertion; volatile because a device may read it meanwhile.
            unsafe { self.start.add(offset + at).write_volatile(byte) };
        }
    }

    /// Copies `len` bytes out from `offset` on.
    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: inside the mapping, by the assertion; volatile because a device may write it meanwhile.
        (offset..offset + len).map(|at| unsafe { self.start.add(at).read_volatile() }).collect()
    }

    /// The physical address of each page, as the kernel tells it now.
    pub(crate) fn physical(&self) -> Result<Vec<u64>> {
        let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
        let first = self.start.as_ptr().addr() / PAGE * 8;
        let mut entries = vec![0; self.pages() * 8];
        pagemap.read_exact_at(&mut entries, first as u64).context("/proc/self/pagemap")?;
        let (entries, _) = entries.as_chunks::<8>();
        entries
            .iter()
            .map(|entry| {
                let entry = u64::from_le_bytes(*entry);
                let frame = entry & ((1 << 55) - 1);
                // Without CAP_SYS_ADMIN the kernel says "present" and frame 0.
                if entry >> 63 == 0 || frame == 0 {
                    bail!("pagemap tells no frame (entry {entry:#x}): this needs CAP_SYS_ADMIN");
                }
                Ok(frame * PAGE as u64)
            })
            .collect()
    }
}

impl Drop for PinnedPages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nothing refers into it after this.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Registers the memory as an io_uring buffer; the pages stay where they are until the ring is closed.
fn pin(start: *mut libc::c_void, len: usize) -> Result<OwnedFd> {
    // `struct io_uring_params` is 120 bytes; none of what it answers is needed here.
    let mut params = [0_u64; 15];
    // SAFETY: the structure has the kernel's size and is all zeros, which asks for a plain ring.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if ring < 0 {
        return Err(std::io::Error::last_os_error()).context("io_uring_setup");
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    let owned = unsafe { OwnedFd::from_raw_fd(ring as i32) };
    let buffer = libc::iovec { iov_base: start, iov_len: len };
    // SAFETY: one iovec is passed, it is only read, and it names memory that is mapped.
    let done =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring, REGISTER_BUFFERS, &raw const buffer, 1) };
    if done < 0 {
        return Err(std::io::Error::last_os_error()).context("io_uring cannot pin (IORING_REGISTER_BUFFERS)");
    }
    Ok(owned)
}
