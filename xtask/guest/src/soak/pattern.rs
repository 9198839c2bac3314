//! Anonymous memory with a pattern in it, every byte of which can be checked: whatever else is found was written by somebody else.

use std::ptr::NonNull;

use anyhow::{Context as _, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::matrix::driver::PAGE;

/// Words of a page.
const WORDS: usize = PAGE / 8;

/// Pages, each filled with words that count up from one that tells the page and a salt.
pub(super) struct Pattern {
    memory: Memory,
    salt: u64,
}

/// What was found that is not the pattern.
#[derive(Default)]
pub(super) struct Foreign {
    /// Bytes of it.
    pub(super) bytes: u64,
    /// Where and what, of the first: the offset in the page and 16 bytes.
    pub(super) first: Option<String>,
}

impl Pattern {
    /// Single pages, filled.
    pub(super) fn of_pages(pages: usize, salt: u64) -> Result<Self> {
        let memory = Memory::new(pages * PAGE)?;
        memory.advise(0, pages, Advice::LinuxNoHugepage)?;
        let pattern = Self { memory, salt };
        pattern.fill(0, pages);
        Ok(pattern)
    }

    /// Whole huge pages, as far as the kernel has them, filled.
    pub(super) fn of_huge_pages(pages: usize, salt: u64) -> Result<Self> {
        let memory = Memory::new(pages * PAGE)?;
        memory.advise(0, pages, Advice::LinuxHugepage)?;
        let pattern = Self { memory, salt };
        pattern.fill(0, pages);
        Ok(pattern)
    }

    /// How many pages.
    pub(super) fn pages(&self) -> usize {
        self.memory.length / PAGE
    }

    /// Where a page is.
    pub(super) fn address(&self, page: usize) -> NonNull<u8> {
        self.memory.at(page)
    }

    /// Advice about some pages.
    pub(super) fn advise(&self, first: usize, pages: usize, advice: Advice) -> Result<()> {
        self.memory.advise(first, pages, advice)
    }

    /// Makes one huge page of what [`HUGE`] bytes from a page on are made of now; answers whether the kernel did.
    pub(super) fn collapse(&self, first: usize) -> bool {
        assert!(first * PAGE + HUGE <= self.memory.length, "this memory only");
        // SAFETY: within the memory; collapsing changes only where its bytes lie.
        unsafe { libc::madvise(self.memory.at(first).as_ptr().cast(), HUGE, libc::MADV_COLLAPSE) == 0 }
    }

    /// Writes the pattern.
    pub(super) fn fill(&self, first: usize, pages: usize) {
        for page in first..first + pages {
            let (start, pattern) = (self.memory.at(page).cast::<u64>(), self.word(page));
            for word in 0..WORDS {
                // SAFETY: within the memory, which is writable and this value's alone; aligned, as it begins at a page.
                unsafe { start.add(word).write_volatile(pattern.wrapping_add(word as u64)) };
            }
        }
    }

    /// The first word of a page.
    fn word(&self, page: usize) -> u64 {
        (self.salt << 32 | page as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Compares some pages.
    pub(super) fn check(&self, first: usize, pages: usize, found: &mut Foreign) {
        for page in first..first + pages {
            let (start, pattern) = (self.memory.at(page).cast::<u64>(), self.word(page));
            for word in 0..WORDS {
                // SAFETY: as above. A device may be writing there, which is what this is about: the access is volatile.
                let is = unsafe { start.add(word).read_volatile() };
                let differing = is ^ pattern.wrapping_add(word as u64);
                if differing != 0 {
                    found.bytes += differing.to_le_bytes().iter().filter(|byte| **byte != 0).count() as u64;
                    found.first.get_or_insert_with(|| self.place(page, word));
                }
            }
        }
    }

    /// A place in a page and what is there, for people.
    fn place(&self, page: usize, word: usize) -> String {
        let mut text = format!("{:#x}", word * 8);
        for at in (word..WORDS).take(2) {
            // SAFETY: as above.
            let is = unsafe { self.memory.at(page).cast::<u64>().add(at).read_volatile() };
            text +=
                &is.to_le_bytes().iter().fold(String::from(" "), |hex, byte| hex + &format!("{byte:02x}"));
        }
        text
    }
}

/// Bytes of a huge page.
pub(super) const HUGE: usize = 2 << 20;

/// Anonymous private memory at a multiple of a huge page, unmapped when dropped.
struct Memory {
    mapped: NonNull<u8>,
    /// Bytes mapped.
    whole: usize,
    start: NonNull<u8>,
    length: usize,
}

impl Memory {
    fn new(length: usize) -> Result<Self> {
        let whole = length + HUGE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let mapped = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                whole,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let mapped = NonNull::new(mapped.context("mmap")?.cast::<u8>()).context("mmap answers 0")?;
        let skip = mapped.addr().get().next_multiple_of(HUGE) - mapped.addr().get();
        // SAFETY: less than a huge page, by which more is mapped than is used.
        let start = unsafe { mapped.add(skip) };
        Ok(Self { mapped, whole, start, length })
    }

    fn at(&self, page: usize) -> NonNull<u8> {
        assert!(page * PAGE < self.length, "page {page} is not in here");
        // SAFETY: within the mapping.
        unsafe { self.start.add(page * PAGE) }
    }

    fn advise(&self, first: usize, pages: usize, advice: Advice) -> Result<()> {
        assert!((first + pages) * PAGE <= self.length, "advice is for this memory only");
        // SAFETY: the range is within the mapping, to which no reference exists: pages that become zero are other bytes.
        unsafe { madvise(self.at(first).as_ptr().cast(), pages * PAGE, advice) }
            .with_context(|| format!("{advice:?}"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it any more.
        let _ = unsafe { munmap(self.mapped.as_ptr().cast(), self.whole) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_checked() {
        let pattern = Pattern::of_pages(3, 7).unwrap();
        let mut found = Foreign::default();
        pattern.check(0, 3, &mut found);
        assert_eq!((found.bytes, &found.first), (0, &None));
        for (page, at) in [(0, 0), (1, 0x80), (2, PAGE - 1)] {
            // SAFETY: within the page.
            unsafe {
                let byte = pattern.address(page).add(at);
                byte.write_volatile(!byte.read_volatile());
            }
        }
        pattern.check(0, 3, &mut found);
        assert_eq!(found.bytes, 3);
        assert!(found.first.unwrap().starts_with("0x0 "));
        pattern.fill(0, 3);
        let mut found = Foreign::default();
        pattern.check(0, 3, &mut found);
        assert_eq!(found.bytes, 0);
    }
}
