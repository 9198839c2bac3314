//! The floor: the kernel's calls that pin memory and tell where it is, as bare as they come, and nothing done with the answers.

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};

use super::scatter::{FRAME, PAGE, PRESENT};

/// Of io_uring_register: a table of buffers, and its end.
const REGISTER_BUFFERS: u32 = 0;
const UNREGISTER_BUFFERS: u32 = 1;

/// Bytes of the structure that io_uring_setup fills in.
const PARAMETERS: usize = 120;

/// Entries of the pagemap that are read at a time.
const BATCH: usize = 4096;

/// A ring, for what it pins, and the pagemap.
pub(super) struct Bare {
    ring: OwnedFd,
    pagemap: File,
    entries: Vec<u8>,
}

impl Bare {
    pub(super) fn new() -> Result<Self> {
        let mut parameters = [0_u8; PARAMETERS];
        // SAFETY: the structure is here, and zero but for what the kernel writes.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
        ensure!(ring >= 0, "io_uring_setup: {}", std::io::Error::last_os_error());
        // SAFETY: a new descriptor.
        let ring = unsafe { OwnedFd::from_raw_fd(ring as i32) };
        let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
        Ok(Self { ring, pagemap, entries: vec![0; BATCH * 8] })
    }

    /// Pins memory and reads where each page of it is.
    pub(super) fn map(&mut self, memory: usize, length: usize) -> Result<()> {
        let buffer = libc::iovec { iov_base: memory as *mut libc::c_void, iov_len: length };
        self.register(REGISTER_BUFFERS, (&raw const buffer).cast(), 1)?;
        let mut seen = PRESENT;
        for page in (0..length / PAGE).step_by(BATCH) {
            let entries = &mut self.entries[..BATCH.min(length / PAGE - page) * 8];
            self.pagemap.read_exact_at(entries, ((memory / PAGE + page) * 8) as u64)?;
            for entry in entries.as_chunks().0 {
                let entry = u64::from_ne_bytes(*entry);
                seen &= if entry & FRAME == 0 { 0 } else { entry };
            }
        }
        ensure!(seen & PRESENT != 0, "a page that is pinned has no frame");
        Ok(())
    }

    /// Lets it go.
    pub(super) fn unmap(&self) -> Result<()> {
        self.register(UNREGISTER_BUFFERS, std::ptr::null(), 0)
    }

    fn register(&self, what: u32, argument: *const libc::c_void, count: u32) -> Result<()> {
        // SAFETY: the argument is what the operation takes: buffers of memory of this process, or nothing.
        let answer = unsafe {
            libc::syscall(libc::SYS_io_uring_register, self.ring.as_raw_fd(), what, argument, count)
        };
        ensure!(answer >= 0, "io_uring_register {what}: {}", std::io::Error::last_os_error());
        Ok(())
    }
}
