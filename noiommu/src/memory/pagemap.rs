//! Physical frames of this process's pages, from /proc/self/pagemap.
//!
//! Entry format: the kernel's *Documentation/admin-guide/mm/pagemap.rst*.

use std::fs::File;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use noiommu_core::platform::PhysRun;
use noiommu_core::{Errno, PhysAddr};

use super::scan;
use crate::error::{ErrorKind, errno_of};
use crate::{Error, Result};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
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

    /// An entry, as the file has it.
    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_ne_bytes(bytes))
    }

    /// Whether the page is in swap space, or on its way elsewhere.
    pub(crate) fn swapped(self) -> bool {
        self.0 & (PRESENT | SWAPPED) == SWAPPED
    }

    /// Whether the page is in memory, but its place hidden.
    pub(crate) fn hidden(self) -> bool {
        self.0 & PRESENT != 0 && self.0 & PFN == 0
    }

    /// Whether the page belongs to a file or to shared memory.
    pub(crate) fn file_or_shared(self) -> bool {
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

    /// Hands the physical runs of memory that is pinned to `sink`, several at a time, and tells whether there was a page of a file
    /// or of shared memory among them. Neighbouring pages that are neighbours in memory too are told as one run. A huge page is
    /// believed to be contiguous because the kernel says that it maps it as one, now that it is pinned; everything else is read
    /// page by page.
    pub(crate) fn runs(
        &self,
        pieces: &[Piece],
        sink: &mut dyn FnMut(&[PhysRun]) -> Result<()>,
    ) -> Result<bool> {
        // One page is asked for so often that it is worth a way of its own.
        if let &[Piece { address, length, .. }] = pieces
            && address % self.page_size + length <= self.page_size
        {
            let entry = self.entry(address)?;
            let Some(frame) = entry.frame(self.page_size) else { return Err(no_frame(entry, address)) };
            let address = PhysAddr(frame.0 + (address % self.page_size) as u64);
            sink(&[PhysRun { address, length: length as u64 }])?;
            return Ok(entry.file_or_shared());
        }
        let file = self.file()?;
        let pages = pieces.iter().map(|piece| piece.length).sum::<usize>().div_ceil(self.page_size) + 1;
        let mut runs = Runs::new(pages, sink);
        let mut bytes = Vec::new();
        let mut seen = 0;
        for piece in pieces {
            if !piece.huge {
                seen |= self.pages(&file, *piece, &mut bytes, &mut runs)?;
                continue;
            }
            // It was huge before it was pinned. What counts is what it is since.
            for piece in self.proved(&file, *piece).iter() {
                seen |= match piece.huge {
                    true => self.huge_pages(&file, *piece, &mut runs)?,
                    false => self.pages(&file, *piece, &mut bytes, &mut runs)?,
                };
            }
        }
        runs.flush()?;
        Ok(PageEntry(seen).file_or_shared())
    }

    /// Reads every entry of a piece. Answers all bits that were seen.
    fn pages(&self, file: &File, piece: Piece, bytes: &mut Vec<u8>, runs: &mut Runs<'_>) -> Result<u64> {
        let (mut at, end) = (piece.address, piece.address + piece.length);
        let mut before = at % self.page_size;
        let mut seen = 0;
        while at < end {
            let first = at - before;
            bytes.resize((end - first).div_ceil(self.page_size).min(BATCH) * 8, 0);
            self.read(file, first / self.page_size, bytes)?;
            for entry in bytes.as_chunks().0 {
                let entry = PageEntry(u64::from_ne_bytes(*entry));
                let Some(frame) = entry.frame(self.page_size) else { return Err(no_frame(entry, at)) };
                seen |= entry.0;
                let length = (self.page_size - before).min(end - at);
                runs.push(frame.0 + before as u64, length as u64)?;
                (at, before) = (at + length, 0);
            }
        }
        Ok(seen)
    }

    /// Reads one entry for each huge page of a piece, which is made of such.
    fn huge_pages(&self, file: &File, piece: Piece, runs: &mut Runs<'_>) -> Result<u64> {
        let mut seen = 0;
        for at in (piece.address..piece.address + piece.length).step_by(HUGE) {
            let mut bytes = [0; 8];
            self.read(file, at / self.page_size, &mut bytes)?;
            let entry = PageEntry(u64::from_ne_bytes(bytes));
            let Some(frame) = entry.frame(self.page_size) else { return Err(no_frame(entry, at)) };
            seen |= entry.0;
            runs.push(frame.0, HUGE as u64)?;
        }
        Ok(seen)
    }

    /// Splits a range where its page size changes, as it is at present. On a kernel that cannot tell (before 6.7), or whose base page
    /// is not 4 KiB, it is one piece that is not huge, which is always right and only slower.
    pub(crate) fn pieces(&self, address: usize, length: usize) -> Result<Pieces> {
        let whole = Piece { address, length, huge: false };
        Ok(match self.whole_huge_pages(whole) {
            Some((first, last)) if scan::is_worth_it(first, last) => {
                split(whole, scan::find_huge(&*self.file()?, first, last))
            }
            _ => Pieces::One([whole]),
        })
    }

    /// The same for a range that is pinned by now, with nothing taken on trust.
    fn proved(&self, file: &File, piece: Piece) -> Pieces {
        match self.whole_huge_pages(piece) {
            Some((first, last)) => split(piece, scan::all_huge(file, first, last)),
            None => Pieces::One([Piece { huge: false, ..piece }]),
        }
    }

    /// Where whole huge pages could be in a range: these alone are of interest.
    fn whole_huge_pages(&self, Piece { address, length, .. }: Piece) -> Option<(usize, usize)> {
        let (first, last) = (address.checked_next_multiple_of(HUGE)?, (address + length) / HUGE * HUGE);
        (self.page_size == 4096 && first < last).then_some((first, last))
    }
}

/// Pieces of a range, in order.
#[derive(Debug)]
pub(crate) enum Pieces {
    /// All of it is one.
    One([Piece; 1]),
    Several(Vec<Piece>),
}

impl Deref for Pieces {
    type Target = [Piece];

    fn deref(&self) -> &[Piece] {
        match self {
            Self::One(piece) => piece,
            Self::Several(pieces) => pieces,
        }
    }
}

/// Cuts a range at the huge parts of it.
fn split(whole: Piece, huge: Option<Vec<(usize, usize)>>) -> Pieces {
    let Piece { address, length, .. } = whole;
    let Some(huge) = huge.filter(|huge| !huge.is_empty()) else {
        return Pieces::One([Piece { huge: false, ..whole }]);
    };
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = address;
    for (start, end) in huge {
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
    match pieces[..] {
        [piece] => Pieces::One([piece]),
        _ => Pieces::Several(pieces),
    }
}

/// Runs on their way to a sink: neighbours in memory become one, and many are handed over at a time.
struct Runs<'a> {
    held: Vec<PhysRun>,
    sink: &'a mut dyn FnMut(&[PhysRun]) -> Result<()>,
}

impl<'a> Runs<'a> {
    /// Runs handed over at a time: 8 KiB.
    const MOST: usize = 512;

    /// There will be `most` runs at the most.
    fn new(most: usize, sink: &'a mut dyn FnMut(&[PhysRun]) -> Result<()>) -> Self {
        Self { held: Vec::with_capacity(most.min(Self::MOST)), sink }
    }

    #[inline]
    fn push(&mut self, address: u64, length: u64) -> Result<()> {
        if let Some(last) = self.held.last_mut() {
            if last.address.0 + last.length == address {
                last.length += length;
                return Ok(());
            }
            if self.held.len() >= Self::MOST {
                self.flush()?;
            }
        }
        self.held.push(PhysRun { address: PhysAddr(address), length });
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let handed = (self.sink)(&self.held);
        self.held.clear();
        handed
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
            assert_eq!(*pagemap.pieces(address, length).unwrap(), [Piece { address, length, huge: false }]);
        }
    }
}
