//! Memory whose pages are not adjacent: holes of one page each, for whoever asks for memory next.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::ptr::{NonNull, null_mut};

use anyhow::{Context as _, Result, ensure};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;

/// Of an entry of the pagemap, the frame.
pub(super) const FRAME: u64 = (1 << 55) - 1;
/// Whether the page is in memory.
pub(super) const PRESENT: u64 = 1 << 63;

/// Memory of which every odd frame has been given back. As long as this lives, none of these can join a neighbour, and the kernel, which gives
/// out its smallest free pieces first, gives them to whoever touches new memory.
pub(super) struct Holes {
    memory: NonNull<u8>,
    length: usize,
}

impl Holes {
    /// Makes `bytes` of holes, and somewhat more for what is not the caller's, in no order.
    pub(super) fn new(bytes: usize) -> Result<Self> {
        let length = 2 * (bytes + bytes / 8);
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let memory = unsafe { mm::mmap_anonymous(null_mut(), length, protection, flags) }.context("mmap")?;
        let holes = Self { memory: NonNull::new(memory.cast()).context("mmap")?, length };
        // SAFETY: advice about memory of our own. A kernel without huge pages refuses, and has none.
        let _ = unsafe { mm::madvise(memory, length, Advice::LinuxNoHugepage) };
        // SAFETY: as above: touched, nothing is written.
        unsafe { mm::madvise(memory, length, Advice::LinuxPopulateWrite) }.context("touching memory")?;

        let entries = holes.entries()?;
        let mut odd: Vec<usize> = Vec::with_capacity(entries.len() / 2);
        for (page, entry) in entries.iter().enumerate() {
            ensure!(entry & PRESENT != 0 && entry & FRAME != 0, "page {page} has no frame: {entry:#x}");
            if entry & 1 != 0 {
                odd.push(page);
            }
        }
        shuffle(&mut odd);
        for page in odd {
            // SAFETY: a page of our own, which nothing relies on.
            unsafe { mm::madvise(memory.cast::<u8>().add(page * PAGE).cast(), PAGE, Advice::LinuxDontNeed) }
                .context("giving a page back")?;
        }
        Ok(holes)
    }

    /// What the pagemap says of all pages.
    fn entries(&self) -> Result<Vec<u64>> {
        let mut bytes = vec![0; self.length / PAGE * 8];
        let at = self.memory.as_ptr() as u64 / PAGE as u64 * 8;
        File::open("/proc/self/pagemap")
            .and_then(|file| file.read_exact_at(&mut bytes, at))
            .context("/proc/self/pagemap")?;
        Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_ne_bytes(*entry)).collect())
    }
}

impl Drop for Holes {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody else knows of it.
        let _ = unsafe { mm::munmap(self.memory.as_ptr().cast(), self.length) };
    }
}

/// Puts a list into an order that looks like none, and is the same each time.
fn shuffle(list: &mut [usize]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..list.len()).rev() {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        list.swap(last, (state % (last as u64 + 1)) as usize);
    }
}
