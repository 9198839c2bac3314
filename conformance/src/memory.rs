//! The buffers of a case: memory at known places, of known kinds, whose physical frames the runner knows.
//!
//! Addresses and contiguity are made, not met: buffers lie at fixed addresses, so that the alignment of an address (which
//! decides about automatic IOVAs) is the same in every run, and small buffers are put together page by page, so that which
//! pages are neighbours in physical memory is the same too.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::sys;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Bytes of a huge page.
pub(crate) const HUGE: u64 = 2 << 20;
/// Where buffers begin: far from everything that the system puts into a process by itself.
const BASE: u64 = 0x20_0000_0000;
/// Buffers up to that many pages are put together page by page.
const ARRANGED: u64 = 64;

/// A buffer.
#[derive(Debug)]
struct Buffer {
    name: String,
    address: u64,
    length: u64,
    /// The frames of its pages when they were last looked at; 0: not in memory.
    frames: Vec<u64>,
}

/// A memfd, whose pages have frames too.
#[derive(Debug)]
struct Memfd {
    name: String,
    fd: i32,
}

/// What a buffer is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Private memory, written to once.
    Touched,
    /// Private memory that has no pages yet.
    Untouched,
    /// Memory shared with forked children, written to once.
    Shared,
    /// Pages of hugetlb.
    Hugetlb,
    /// Transparent huge pages.
    Thp,
    /// A file's pages: descriptor, offset, whether shared.
    File(i32, i64, bool),
}

/// All of a case's memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    buffers: Vec<Buffer>,
    memfds: Vec<Memfd>,
    /// Frames that pages had before: frame to buffer and offset.
    old: HashMap<u64, (String, u64)>,
    /// This process's own pagemap.
    pagemap: Option<File>,
    next: u64,
}

impl Memory {
    /// The address of that buffer.
    pub(crate) fn address(&self, name: &str) -> Option<u64> {
        self.buffers.iter().rev().find(|buffer| buffer.name == name).map(|buffer| buffer.address)
    }

    /// A place for `length` bytes whose address is aligned to exactly `alignment`, no more (up to 2 MiB).
    pub(crate) fn place(&mut self, length: u64, alignment: u64) -> u64 {
        let address = BASE + self.next + if alignment >= HUGE { 0 } else { alignment };
        // Always some unmapped room between two buffers.
        self.next += (length + alignment).next_multiple_of(HUGE) + HUGE;
        address
    }

    /// Makes a buffer. `runs` says how many pages at a time are neighbours in physical memory, over and over; no pages of two
    /// runs are.
    pub(crate) fn make(
        &mut self,
        name: &str,
        length: u64,
        address: u64,
        kind: Kind,
        runs: Option<&[u64]>,
    ) -> Result<(), i32> {
        let pages = length / PAGE;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let (flags, fd, offset) = match kind {
            Kind::Touched | Kind::Untouched | Kind::Thp => (private, -1, 0),
            Kind::Shared => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0),
            Kind::Hugetlb => (private | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB, -1, 0),
            Kind::File(fd, offset, true) => (libc::MAP_SHARED, fd, offset),
            Kind::File(fd, offset, false) => (libc::MAP_PRIVATE, fd, offset),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        sys::mmap(address, length as usize, access, flags | libc::MAP_FIXED_NOREPLACE, fd, offset)?;
        if matches!(kind, Kind::Touched | Kind::Untouched) {
            // The answer is only about kernels without transparent huge pages.
            let _ = sys::madvise(address, length as usize, libc::MADV_NOHUGEPAGE);
        }
        if kind == Kind::Touched && (runs.is_some() || pages <= ARRANGED) {
            self.arrange(address, pages, runs.unwrap_or(&[1]))?;
        }
        if kind == Kind::Thp {
            let _ = sys::madvise(address, length as usize, libc::MADV_HUGEPAGE);
        }
        match kind {
            Kind::Untouched => {}
            // Only looked at: what the file holds stays.
            Kind::File(..) => {
                let _ = sys::madvise(address, length as usize, libc::MADV_POPULATE_READ);
            }
            _ => touch(address, length),
        }
        if kind == Kind::Thp {
            for at in (address..address + length).step_by(HUGE as usize) {
                sys::madvise(at, HUGE as usize, libc::MADV_COLLAPSE)?;
            }
        }
        self.buffers.push(Buffer { name: name.to_owned(), address, length, frames: vec![0; pages as usize] });
        self.look();
        Ok(())
    }

    /// Notes a range that something else mapped (a device's memory) under a name.
    pub(crate) fn adopt(&mut self, name: &str, address: u64, length: u64) {
        self.buffers.push(Buffer { name: name.to_owned(), address, length, frames: Vec::new() });
    }

    /// Notes a memfd under a name.
    pub(crate) fn adopt_file(&mut self, name: &str, fd: i32) {
        self.memfds.push(Memfd { name: name.to_owned(), fd });
    }

    /// Puts pages of a larger pool where a buffer shall be, in an order in which the frames run as `runs` says.
    fn arrange(&mut self, address: u64, pages: u64, runs: &[u64]) -> Result<(), i32> {
        let lengths: Vec<u64> = {
            let mut left = pages;
            let mut lengths = Vec::new();
            for run in runs.iter().cycle() {
                if left == 0 {
                    break;
                }
                lengths.push((*run).clamp(1, left));
                left -= (*run).clamp(1, left);
            }
            lengths
        };
        // More pages than needed let runs be found, and gaps be left between them; ever more where memory is fragmented.
        for pool_pages in [pages * 4 + 512, 8192, 65536, 65536] {
            if self.arrange_from(address, &lengths, pool_pages)? {
                return Ok(());
            }
            // What other programs have left scattered can be moved together, by those who may ask for it.
            let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
        }
        Err(libc::ENOMEM)
    }

    /// The same from a pool of that many pages; false where it does not hold what is needed.
    fn arrange_from(&mut self, address: u64, lengths: &[u64], pool_pages: u64) -> Result<bool, i32> {
        let pool = self.place(pool_pages * PAGE, PAGE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        sys::mmap(pool, (pool_pages * PAGE) as usize, access, flags, -1, 0)?;
        let _ = sys::madvise(pool, (pool_pages * PAGE) as usize, libc::MADV_NOHUGEPAGE);
        touch(pool, pool_pages * PAGE);
        // Frame and address, in the order of frames.
        let frames = self.entries(pool, pool_pages);
        let mut supply: Vec<(u64, u64)> = frames.into_iter().zip((pool..).step_by(PAGE as usize)).collect();
        supply.sort_unstable();
        let mut longest_first: Vec<usize> = (0..lengths.len()).collect();
        longest_first.sort_by_key(|run| std::cmp::Reverse(lengths.get(*run).copied().unwrap_or(0)));
        let mut chosen: Vec<Vec<u64>> = vec![Vec::new(); lengths.len()];
        let mut at = 0;
        // Each piece of the supply is used for one run, and the frame after it left out, so that no two runs touch.
        let mut spare: Vec<Vec<(u64, u64)>> = Vec::new();
        while at < supply.len() {
            let mut end = at + 1;
            while end < supply.len() && supply[end].0 == supply[end - 1].0 + 1 && supply[end].0 != 0 {
                end += 1;
            }
            spare.push(supply[at..end].to_vec());
            at = end;
        }
        for run in longest_first {
            let length = lengths[run] as usize;
            let Some(piece) =
                spare.iter_mut().filter(|piece| piece.len() >= length).min_by_key(|piece| piece.len())
            else {
                let _ = sys::munmap(pool, (pool_pages * PAGE) as usize);
                return Ok(false);
            };
            chosen[run] = piece.drain(..length).map(|(_, address)| address).collect();
            if !piece.is_empty() {
                piece.remove(0);
            }
        }
        for (from, to) in chosen.into_iter().flatten().zip((address..).step_by(PAGE as usize)) {
            sys::move_page(from, to, PAGE as usize)?;
        }
        // Frames of the rest of the pool must not become those of buffers made later in another order: they go.
        let _ = sys::munmap(pool, (pool_pages * PAGE) as usize);
        Ok(true)
    }

    /// Opens the pagemap again: the file shows the memory of whoever opened it.
    pub(crate) fn forked(&mut self) {
        self.pagemap = None;
        self.open();
    }

    /// Opens the pagemap, as long as this process may see frames.
    pub(crate) fn open(&mut self) {
        if self.pagemap.is_none() {
            self.pagemap = File::open("/proc/self/pagemap").ok().map(|file| {
                // Out of the way of the descriptors that cases count.
                match sys::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 900) {
                    // SAFETY: the descriptor was just made, and nothing else knows it.
                    Ok(fd) => unsafe { std::os::fd::FromRawFd::from_raw_fd(fd as i32) },
                    Err(_) => file,
                }
            });
        }
    }

    /// The frames of `pages` pages from `address` on; 0 for a page that is not in memory.
    fn entries(&self, address: u64, pages: u64) -> Vec<u64> {
        const PRESENT: u64 = 1 << 63;
        let mut bytes = vec![0; pages as usize * 8];
        let read = self.pagemap.as_ref().map(|file| file.read_exact_at(&mut bytes, address / PAGE * 8));
        let Some(Ok(())) = read else {
            return vec![0; pages as usize];
        };
        let entries = bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_ne_bytes(*entry));
        entries.map(|entry| if entry & PRESENT == 0 { 0 } else { entry & ((1 << 55) - 1) }).collect()
    }

    /// Looks where all pages are now, and remembers where those that moved were.
    pub(crate) fn look(&mut self) {
        let now: Vec<Vec<u64>> = self
            .buffers
            .iter()
            .map(|buffer| self.entries(buffer.address, buffer.frames.len() as u64))
            .collect();
        for (buffer, frames) in self.buffers.iter_mut().zip(now) {
            for ((old, new), offset) in buffer.frames.iter().zip(&frames).zip((0..).step_by(PAGE as usize)) {
                if *old != 0 && old != new {
                    self.old.insert(*old, (buffer.name.clone(), offset));
                }
            }
            buffer.frames = frames;
        }
    }

    /// Remembers where the pages of a memfd are, before they go.
    pub(crate) fn look_at_file(&mut self, name: &str) {
        for (frame, offset) in self.file_frames(name) {
            self.old.insert(frame, (name.to_owned(), offset));
        }
    }

    /// The frames of a memfd's pages, with their offsets.
    fn file_frames(&self, name: &str) -> Vec<(u64, u64)> {
        let Some(memfd) = self.memfds.iter().find(|memfd| memfd.name == name) else { return Vec::new() };
        let Ok(length) = sys::lseek(memfd.fd, 0, libc::SEEK_END) else { return Vec::new() };
        let length = (length as u64).next_multiple_of(PAGE);
        if length == 0 {
            return Vec::new();
        }
        let Ok(window) = sys::mmap(0, length as usize, libc::PROT_READ, libc::MAP_SHARED, memfd.fd, 0) else {
            return Vec::new();
        };
        // Pages that are there become visible by it; holes are filled, which no case can tell.
        let _ = sys::madvise(window, length as usize, libc::MADV_POPULATE_READ);
        let frames = self.entries(window, length / PAGE);
        let _ = sys::munmap(window, length as usize);
        frames.into_iter().zip((0..).step_by(PAGE as usize)).filter(|(frame, _)| *frame != 0).collect()
    }

    /// A physical address in the words of the case: which byte of which buffer it is.
    pub(crate) fn physical(&mut self, address: u64, roles: &crate::roles::Roles) -> String {
        self.look();
        let (frame, within) = (address / PAGE, address % PAGE);
        let tell = |name: &str, offset: u64| match offset + within {
            0 => name.to_owned(),
            offset => format!("{name}+{offset:#x}"),
        };
        for buffer in &self.buffers {
            if let Some(page) = buffer.frames.iter().position(|other| *other == frame) {
                return format!("pa({})", tell(&buffer.name, page as u64 * PAGE));
            }
        }
        for memfd in &self.memfds {
            if let Some((_, offset)) = self.file_frames(&memfd.name).iter().find(|(other, _)| *other == frame)
            {
                return format!("pa({})", tell(&memfd.name, *offset));
            }
        }
        if let Some((name, offset)) = self.old.get(&frame) {
            return format!("pa(old {})", tell(name, *offset));
        }
        for (role, device) in roles.all() {
            let resources = std::fs::read_to_string(device.sysfs.join("resource")).unwrap_or_default();
            for (bar, line) in resources.lines().take(6).enumerate() {
                let mut ends =
                    line.split(' ').map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16));
                if let (Some(Ok(start)), Some(Ok(end))) = (ends.next(), ends.next())
                    && start != 0
                    && (start..=end).contains(&address)
                {
                    return format!("pa({role} BAR{bar}+{:#x})", address - start);
                }
            }
        }
        // A frame that this process has never seen: another process's, or nobody's.
        "pa(elsewhere)".to_owned()
    }

    /// Forgets all but the first buffers, and what is known of pages that are gone.
    pub(crate) fn keep(&mut self, buffers: usize) {
        for buffer in self.buffers.drain(buffers.min(self.buffers.len())..) {
            let _ = sys::munmap(buffer.address, buffer.length as usize);
        }
        let end = self.buffers.last().map_or(0, |last| last.address + last.length - BASE);
        self.next = end.next_multiple_of(HUGE) + HUGE;
        self.look();
        self.old.clear();
    }

    /// The frame of the page at `address` now; 0 where there is none.
    pub(crate) fn frame(&self, address: u64) -> u64 {
        self.entries(address, 1).first().copied().unwrap_or(0)
    }

    /// The names of buffers, for values that point into them.
    pub(crate) fn pointer(&self, address: u64) -> Option<String> {
        let buffer = self
            .buffers
            .iter()
            .find(|buffer| (buffer.address..buffer.address + buffer.length).contains(&address))?;
        Some(match address - buffer.address {
            0 => buffer.name.clone(),
            offset => format!("{}+{offset:#x}", buffer.name),
        })
    }
}

/// Writes to every page.
pub(crate) fn touch(address: u64, length: u64) {
    for at in (address..address + length).step_by(PAGE as usize) {
        sys::store(at, 1, 0);
    }
}
