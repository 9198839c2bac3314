//! Other processes' memory, which nobody but they may write: each takes pages, fills them with a pattern of its own, and checks
//! every byte.
//!
//! One process for each processor, bound to it, since a page that is freed goes first to whoever asks next on the same one. It is
//! told what to do in lines, and answers each by a line:
//!
//! | it is told | it answers | |
//! |---|---|---|
//! | `grow PAGES SALT` | `ok` | takes more pages, and fills them |
//! | `check` | `foreign BYTES PLACE` | how many bytes of all that it has are not its own; the first place with such: a page's offset and 16 bytes |
//! | `release` | `ok` | gives everything back |
//!
//! Nothing is given back before that: a page that a device writes must not go on to somebody who does not look, such as the kernel.

use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::ptr::NonNull;

use anyhow::{Context as _, Result, bail};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::matrix::driver::PAGE;

/// Words of a page.
const WORDS: usize = PAGE / 8;

/// Answers lines until there are no more.
pub(super) fn run(cpu: &str) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu.parse().context("the processor's number")?);
    sched_setaffinity(None, &cpus).context("sched_setaffinity")?;
    let mut regions: Vec<Region> = Vec::new();
    for line in stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["grow", pages, salt] => {
                regions.push(Region::new(pages.parse()?, salt.parse()?)?);
                "ok".to_owned()
            }
            ["check"] => {
                let mut found = Foreign::default();
                regions.iter().for_each(|region| region.check(&mut found));
                format!("foreign {} {}", found.bytes, found.first.as_deref().unwrap_or("-"))
            }
            ["release"] => {
                regions.clear();
                "ok".to_owned()
            }
            _ => bail!("churn does not know {line:?}"),
        };
        let mut out = stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// What was found that is not this process's own.
#[derive(Default)]
struct Foreign {
    bytes: u64,
    /// Where and what, of the first.
    first: Option<String>,
}

/// Single pages, filled.
struct Region {
    start: NonNull<u64>,
    pages: usize,
    salt: u64,
}

impl Region {
    fn new(pages: usize, salt: u64) -> Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                pages * PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .context("mmap")?;
        let region = Self { start: NonNull::new(start.cast()).context("mmap answers 0")?, pages, salt };
        // SAFETY: advice about the mapping just made. Huge pages would not be those that a driver gave back.
        unsafe { madvise(start, pages * PAGE, Advice::LinuxNoHugepage) }.context("MADV_NOHUGEPAGE")?;
        for page in 0..pages {
            let pattern = region.pattern(page);
            for word in 0..WORDS {
                // SAFETY: within the mapping, which is writable and this value's alone; aligned, as it begins at a page.
                unsafe {
                    region.start.add(page * WORDS + word).write_volatile(pattern.wrapping_add(word as u64))
                };
            }
        }
        Ok(region)
    }

    /// The first word of a page; the others count up from it.
    fn pattern(&self, page: usize) -> u64 {
        (self.salt << 32 | page as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn check(&self, found: &mut Foreign) {
        for page in 0..self.pages {
            let pattern = self.pattern(page);
            for word in 0..WORDS {
                // SAFETY: as above. A device may be writing there, which is what this is about: the access is volatile.
                let is = unsafe { self.start.add(page * WORDS + word).read_volatile() };
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
            let is = unsafe { self.start.add(page * WORDS + at).read_volatile() };
            text +=
                &is.to_le_bytes().iter().fold(String::from(" "), |hex, byte| hex + &format!("{byte:02x}"));
        }
        text
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.pages * PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_checked() {
        let region = Region::new(3, 7).unwrap();
        let mut found = Foreign::default();
        region.check(&mut found);
        assert_eq!((found.bytes, &found.first), (0, &None));
        // SAFETY: within the region.
        unsafe {
            let bytes = region.start.cast::<u8>();
            for at in [0, PAGE + 0x80, 3 * PAGE - 1] {
                let byte = bytes.add(at);
                byte.write_volatile(!byte.read_volatile());
            }
        }
        region.check(&mut found);
        assert_eq!(found.bytes, 3);
        assert!(found.first.unwrap().starts_with("0x0 "));
    }
}
