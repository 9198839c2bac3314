//! Memory to be mapped, of the kinds that there are.

use std::io::Result;
use std::ptr::NonNull;

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::random::Random;

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;

/// What memory is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Pages of 4 KiB, touched in order, so that many are neighbours in physical memory too.
    Fresh,
    /// Pages of 4 KiB, touched in random order, so that hardly any is.
    Scattered,
    /// Transparent huge pages.
    Transparent,
    /// Reserved huge pages of 2 MiB.
    Reserved,
}

/// Private memory of this process, touched.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    length: usize,
    /// What is mapped, with the room in which it was aligned.
    mapped: (usize, usize),
}

impl Memory {
    /// Memory of so many bytes, whole pages of its kind.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn new(kind: Kind, length: usize) -> Result<Self> {
        let reserved = kind == Kind::Reserved;
        let spare = if reserved { 0 } else { HUGE };
        let mut flags = MapFlags::PRIVATE;
        if reserved {
            flags |= MapFlags::HUGETLB | MapFlags::from_bits_retain(libc::MAP_HUGE_2MB as u32);
        }
        let (protection, whole) = (ProtFlags::READ | ProtFlags::WRITE, length + spare);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), whole, protection, flags)? };
        let address = (start as usize).next_multiple_of(HUGE);
        // SAFETY: within the mapping, which is longer by one huge page or aligned to one.
        let aligned = unsafe { start.cast::<u8>().add(address - start as usize) };
        let start_of = NonNull::new(aligned).ok_or_else(|| std::io::Error::other("mapped at 0"))?;
        let memory = Self { start: start_of, length, mapped: (start as usize, whole) };
        match kind {
            Kind::Transparent => memory.advise(Advice::LinuxHugepage)?,
            Kind::Fresh | Kind::Scattered => memory.advise(Advice::LinuxNoHugepage)?,
            Kind::Reserved => {}
        }
        if kind == Kind::Scattered {
            memory.touch_at_random();
        }
        memory.advise(Advice::LinuxPopulateWrite)?;
        if kind == Kind::Transparent {
            memory.collapse();
        }
        Ok(memory)
    }

    fn advise(&self, advice: Advice) -> Result<()> {
        // SAFETY: of these kinds of advice none changes what the memory holds.
        let advised = unsafe { mm::madvise(self.start.as_ptr().cast(), self.length, advice) };
        advised.map_err(Into::into)
    }

    /// Makes each huge page one that was not to be had when it was touched.
    fn collapse(&self) {
        const MADV_COLLAPSE: i32 = 25;
        for offset in (0..self.length).step_by(HUGE) {
            // SAFETY: within the memory; collapsing keeps its contents. Whether it worked is seen by who needs it.
            unsafe { libc::madvise(self.start.as_ptr().add(offset).cast(), HUGE, MADV_COLLAPSE) };
        }
    }

    fn touch_at_random(&self) {
        let mut random = Random::new(self.length as u64);
        let mut pages: Vec<usize> = (0..self.length / PAGE).collect();
        random.shuffle(&mut pages);
        for page in pages {
            // SAFETY: within the memory, of which nobody else knows.
            unsafe { self.start.add(page * PAGE).write_volatile(1) };
        }
    }

    /// Where it is.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The same as a number.
    #[must_use]
    pub fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing borrows it any more.
        let _ = unsafe { mm::munmap(self.mapped.0 as *mut _, self.mapped.1) };
    }
}
