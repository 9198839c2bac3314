//! Physical frame numbers of this process's pages, read in bulk from /proc/self/pagemap.
//!
//! By the proof itself, not by the library whose pins it judges: a fault in the one must not hide a fault in the other.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Error;

/// One page's entry in the pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The page is in memory, in this frame.
    Frame(u64),
    /// The page is in memory, but the kernel does not tell where (no CAP_SYS_ADMIN).
    Hidden,
    /// The page is not mapped now: never touched, swapped out, or just on the move.
    Absent,
}

impl Entry {
    /// Reads the 64 bits of an entry.
    fn decode(bits: u64) -> Self {
        const PRESENT: u64 = 1 << 63;
        const FRAME: u64 = (1 << 55) - 1;
        match (bits & PRESENT != 0, bits & FRAME) {
            (false, _) => Self::Absent,
            // Frame 0 is never given to a process: it is how the kernel hides the number.
            (true, 0) => Self::Hidden,
            (true, frame) => Self::Frame(frame),
        }
    }
}

/// The open pagemap of this process.
#[derive(Debug)]
pub(crate) struct Pagemap {
    /// /proc/self/pagemap.
    file: File,
    /// Bytes per page.
    page_size: usize,
}

impl Pagemap {
    /// Opens it. Whether frame numbers are shown is known only after the first read.
    pub(crate) fn open(page_size: usize) -> Result<Self, Error> {
        let file = File::open("/proc/self/pagemap").map_err(|error| {
            Error::new(
                format!("cannot open /proc/self/pagemap: {error}"),
                "mount /proc, and use a kernel with CONFIG_PROC_PAGE_MONITOR",
            )
        })?;
        Ok(Self { file, page_size })
    }

    /// Fails early when the kernel does not show frame numbers to this process.
    pub(crate) fn check_shown(&self) -> Result<(), Error> {
        let touched = [1_u8];
        match self.read(touched.as_ptr().addr(), 1)?[0] {
            Entry::Hidden => Err(hidden()),
            Entry::Frame(_) | Entry::Absent => Ok(()),
        }
    }

    /// The entries of `pages` pages from `address` on, in one read.
    pub(crate) fn read(&self, address: usize, pages: usize) -> Result<Vec<Entry>, Error> {
        let mut bytes = vec![0; pages * 8];
        self.file.read_exact_at(&mut bytes, (address / self.page_size * 8) as u64).map_err(|error| {
            Error::new(format!("cannot read /proc/self/pagemap: {error}"), "run as root, outside a sandbox")
        })?;
        Ok(bytes
            .chunks_exact(8)
            .map(|entry| Entry::decode(u64::from_ne_bytes(entry.try_into().unwrap_or_default())))
            .collect())
    }
}

/// The error for frames that the kernel does not show.
pub(crate) fn hidden() -> Error {
    Error::new(
        "the kernel hides physical frame numbers from this process (they need CAP_SYS_ADMIN)",
        "run it as root of the machine, with sudo; root of a container is not enough",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_apart() {
        assert_eq!(Entry::decode(0), Entry::Absent);
        // Swapped: bit 62, and the low bits mean something else.
        assert_eq!(Entry::decode(1 << 62 | 0x1234), Entry::Absent);
        assert_eq!(Entry::decode(1 << 63), Entry::Hidden);
        // Soft-dirty (55) and exclusive (56) are not part of the frame.
        assert_eq!(Entry::decode(1 << 63 | 3 << 55 | 0x1234), Entry::Frame(0x1234));
    }

    #[test]
    fn a_touched_page_is_present_and_an_untouched_one_is_not() {
        let page_size = rustix::param::page_size();
        let pagemap = Pagemap::open(page_size).unwrap();
        let stack = [1_u8; 16];
        let present = pagemap.read(stack.as_ptr().addr(), 1).unwrap()[0];
        assert_ne!(present, Entry::Absent);
        // Page zero is never mapped.
        assert_eq!(pagemap.read(0, 1).unwrap()[0], Entry::Absent);
    }
}
