//! Where a process's memory is: its mappings, and the frames behind them, as contiguous runs.
//!
//! To look at, and to draw (`noiommu map`): nothing is pinned by it, so what it tells was so at a moment, and need not be any more. A
//! driver asks its [`Mapping`](crate::Mapping).
//!
//! ```no_run
//! use noiommu::frames::{self, Target};
//!
//! # fn main() -> noiommu::Result<()> {
//! for mapping in frames::mappings(Target::Own)? {
//!     let frames = frames::walk(Target::Own, mapping.start..mapping.end)?;
//!     println!("{:#x}: {} runs", mapping.start, frames.runs.len());
//! }
//! # Ok(())
//! # }
//! ```

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use noiommu_core::{Errno, PhysAddr};

use crate::error::{ErrorKind, errno_of};
use crate::memory::{Content, HUGE, PageEntry, Vma, contents, hidden_frames, read_maps_of};
use crate::{Error, Result};

/// Entries read at a time: 64 KiB.
const BATCH: u64 = 8192;

/// Whose memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// This process's.
    Own,
    /// That of the process with this id.
    Process(u32),
}

impl Target {
    fn file(self, name: &str) -> String {
        match self {
            Self::Own => format!("/proc/self/{name}"),
            Self::Process(process) => format!("/proc/{process}/{name}"),
        }
    }

    fn refused(self, file: &str, error: &std::io::Error) -> Error {
        let errno = errno_of(error);
        let what = format!("{}: {error}", self.file(file));
        match (self, errno) {
            (Self::Process(process), Errno::ENOENT | Errno::ESRCH) => {
                Error::new(ErrorKind::Argument, Errno::ESRCH, format!("there is no process {process}"))
                    .with_remedy("ps lists those that there are; in a container, only its own")
            }
            (_, Errno::EACCES | Errno::EPERM) => Error::new(ErrorKind::NotPermitted, errno, what)
                .with_remedy("run it as root, or with CAP_SYS_PTRACE and CAP_SYS_ADMIN"),
            (_, Errno::ENOENT) => Error::new(ErrorKind::NoPhysicalAddresses, errno, what)
                .with_remedy("mount /proc, and use a kernel with CONFIG_PROC_PAGE_MONITOR"),
            _ => Error::new(ErrorKind::System, errno, what),
        }
    }
}

/// A mapping of a process, as /proc/PID/maps lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct VirtualArea {
    /// The first byte.
    pub start: u64,
    /// The byte after the last one.
    pub end: u64,
    /// Whether it may be read.
    pub readable: bool,
    /// Whether it may be written.
    pub writable: bool,
    /// Whether what is written is seen by others who map the same.
    pub shared: bool,
    /// A file, or what the kernel calls it (`[heap]`); empty: anonymous memory.
    pub name: String,
}

/// A stretch of memory that is contiguous in the process and in physical space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where it begins in the process.
    pub start: u64,
    /// Where it begins in physical space.
    pub address: PhysAddr,
    /// Bytes.
    pub length: u64,
    /// Bytes of it that huge pages of 2 MiB or more map; 0 where the kernel does not tell (before Linux 6.7).
    pub huge: u64,
    /// It is of a file, or of memory that others may map.
    pub shared: bool,
}

/// What is behind a range of a process's memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Frames {
    /// The runs, in order of their place in the process.
    pub runs: Vec<Run>,
    /// Bytes in swap space, or on their way to another frame.
    pub swapped: u64,
    /// Bytes that were read but never written: all of these are one page of zeros. Told apart from Linux 6.7 on.
    pub zero: u64,
    /// Bytes that nothing is behind so far.
    pub absent: u64,
}

impl Frames {
    /// Bytes of all runs.
    #[must_use]
    pub fn present(&self) -> u64 {
        self.runs.iter().map(|run| run.length).sum()
    }

    fn push(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some(last)
                if last.start + last.length == run.start
                    && last.address.0 + last.length == run.address.0
                    && last.shared == run.shared =>
            {
                last.length += run.length;
                last.huge += run.huge;
            }
            _ => self.runs.push(run),
        }
    }
}

/// The mappings of a process, lowest first.
///
/// # Errors
/// [`ErrorKind::Argument`]: no such process; [`ErrorKind::NotPermitted`].
pub fn mappings(target: Target) -> Result<Vec<VirtualArea>> {
    let process = match target {
        Target::Own => None,
        Target::Process(process) => Some(process),
    };
    let read = read_maps_of(process).map_err(|error| target.refused("maps", &error))?;
    let area = |vma: Vma| VirtualArea {
        start: vma.start as u64,
        end: vma.end as u64,
        readable: vma.readable,
        writable: vma.writable,
        shared: vma.shared,
        name: vma.path,
    };
    // The kernel's own page in the upper half of the address space is none of the process's.
    Ok(read.into_iter().map(area).filter(|area| area.end <= 1 << 63).collect())
}

/// What is behind a range of a process's memory. Parts of it that are not mapped count as absent.
///
/// # Errors
/// [`ErrorKind::NoPhysicalAddresses`]: the kernel does not show them to this process; [`ErrorKind::NotPermitted`];
/// [`ErrorKind::Argument`]: no such process, or a range that is none.
pub fn walk(target: Target, range: Range<u64>) -> Result<Frames> {
    let file = File::open(target.file("pagemap")).map_err(|error| target.refused("pagemap", &error))?;
    let page = rustix::param::page_size() as u64;
    let start = range.start / page * page;
    let end = range.end.checked_next_multiple_of(page).filter(|end| start < *end && *end <= 1 << 63);
    let end = end.ok_or_else(|| {
        Error::argument(format!("{:#x}-{:#x} is no range of memory", range.start, range.end))
            .with_remedy("give the first byte and the one after the last, START-END")
    })?;
    let mut walk = Walk { target, file: &file, page, frames: Frames::default(), bytes: Vec::new() };
    let mut each = |first: usize, last: usize, content: Content| {
        let (first, last) = (first as u64, last as u64);
        match content {
            Content::Present { huge } => walk.pages(first, last, huge)?,
            Content::Zero => walk.frames.zero += last - first,
            Content::Swapped => walk.frames.swapped += last - first,
        }
        Ok(())
    };
    match contents::<Error>(&file, start as usize, end as usize, &mut each) {
        Some(told) => told?,
        // A kernel that cannot tell where nothing is.
        None => walk.pages(start, end, false)?,
    }
    let mut frames = walk.frames;
    frames.absent = (end - start) - frames.present() - frames.swapped - frames.zero;
    Ok(frames)
}

/// A walk under way.
struct Walk<'a> {
    target: Target,
    file: &'a File,
    page: u64,
    frames: Frames,
    bytes: Vec<u8>,
}

impl Walk<'_> {
    /// Reads the entries of a part. `huge`: huge pages map it.
    fn pages(&mut self, first: u64, last: u64, huge: bool) -> Result<()> {
        let mut at = first;
        while at < last {
            // One entry tells of all of a huge page, if the part begins with one.
            let whole = huge && at.is_multiple_of(HUGE as u64) && last - at >= HUGE as u64;
            let count = if whole { 1 } else { ((last - at) / self.page).min(BATCH) };
            self.bytes.resize(count as usize * 8, 0);
            match self.file.read_exact_at(&mut self.bytes, at / self.page * 8) {
                Ok(()) => {}
                // The process has ended meanwhile, or what was there is gone: nothing is behind it.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(self.target.refused("pagemap", &error)),
            }
            let length = if whole { HUGE as u64 } else { self.page };
            for entry in self.bytes.as_chunks().0 {
                let entry = PageEntry::from_bytes(*entry);
                if entry.hidden() {
                    return Err(hidden_frames());
                }
                if let Some(address) = entry.frame(self.page as usize) {
                    let huge = if huge { length } else { 0 };
                    self.frames.push(Run {
                        start: at,
                        address,
                        length,
                        huge,
                        shared: entry.file_or_shared(),
                    });
                } else if entry.swapped() {
                    self.frames.swapped += length;
                }
                at += length;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, Contiguity, DmaBuffer, PinChoice};

    #[test]
    fn mappings_have_what_is_there() {
        let here = std::ptr::from_ref(&BATCH) as u64;
        let own = mappings(Target::Own).unwrap();
        assert!(own.iter().any(|area| area.readable && area.start <= here && here < area.end));
        assert_eq!(mappings(Target::Process(std::process::id())).unwrap().first(), own.first());
        let error = mappings(Target::Process(u32::MAX / 2)).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::Argument, Errno::ESRCH));
        assert!(
            walk(Target::Own, Range { start: 8192, end: 4096 }).is_err()
                && walk(Target::Own, 0..u64::MAX).is_err()
        );
    }

    /// What is pinned is where the engine says, run for run.
    #[test]
    fn runs_are_those_of_the_engine() {
        let Ok(context) = Context::with_pins(PinChoice::Best) else {
            eprintln!("not run: no memory can be pinned here");
            return;
        };
        let ioas = context.ioas().unwrap();
        for contiguity in [Contiguity::Pages, Contiguity::Best] {
            let mapping = ioas.map(DmaBuffer::new(8 << 20, contiguity).unwrap()).unwrap();
            let start = mapping.buffer().unwrap().address() as u64;
            let frames = walk(Target::Own, start..start + (8 << 20)).unwrap();
            assert_eq!((frames.present(), frames.swapped, frames.absent), (8 << 20, 0, 0));
            let told: Vec<_> =
                frames.runs.iter().map(|run| (run.start - start, run.address, run.length)).collect();
            let known = mapping.segments().unwrap();
            let known: Vec<_> =
                known.iter().map(|it| (it.iova.0 - mapping.iova().0, it.address, it.length)).collect();
            assert_eq!(told, known, "{contiguity:?}");
            // Read entry by entry, as where the kernel does not tell what is where (before Linux 6.7).
            let file = File::open("/proc/self/pagemap").unwrap();
            let (target, page) = (Target::Own, rustix::param::page_size() as u64);
            let mut walk = Walk { target, file: &file, page, frames: Frames::default(), bytes: Vec::new() };
            walk.pages(start, start + (8 << 20), false).unwrap();
            let plain: Vec<_> =
                walk.frames.runs.iter().map(|run| (run.start - start, run.address, run.length)).collect();
            assert_eq!(plain, told, "{contiguity:?}");
        }
    }

    #[test]
    fn what_was_never_touched_is_absent() {
        if crate::machine::check_frames().is_err() {
            eprintln!("not run: physical addresses are hidden");
            return;
        }
        const LENGTH: usize = 64 << 20;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED);
        let start = memory as u64;
        // Two pages are written to. No huge page takes their place, as all but these are read alone.
        for page in [3, 7] {
            // SAFETY: within the mapping, which is this test's alone.
            unsafe {
                assert_eq!(libc::madvise(memory, LENGTH, libc::MADV_NOHUGEPAGE), 0);
                memory.cast::<u8>().add(page * 4096).write_volatile(1);
            }
        }
        // SAFETY: as above.
        let zero = unsafe { memory.cast::<u8>().add(20 * 4096).read_volatile() };
        assert_eq!(zero, 0);
        let frames = walk(Target::Own, start..start + LENGTH as u64).unwrap();
        let places: Vec<_> = frames.runs.iter().map(|run| (run.start - start) / 4096).collect();
        // Before Linux 6.7 the page of zeros is not told apart.
        let expected: &[u64] = if frames.zero > 0 { &[3, 7] } else { &[3, 7, 20] };
        assert_eq!(places, expected, "{frames:?}");
        assert_eq!(frames.absent, LENGTH as u64 - 3 * 4096);
        // SAFETY: the test's own mapping, of which nothing is used any more.
        unsafe { libc::munmap(memory, LENGTH) };
    }
}
