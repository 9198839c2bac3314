//! The engine's memory: what it maps is pinned here, and its tables live here.

mod af_xdp;
mod arena;
mod host;
mod index;
mod io_uring;
mod maps;
mod pagemap;
mod pin;
mod scan;
mod simulated;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use noiommu_core::platform::{Caller, PhysRun, Pins, Platform};
use noiommu_core::table::Table;
use noiommu_core::table::format::Access;
use noiommu_core::{Errno, PhysAddr};
use rustix::fs::SealFlags;
use rustix::mm::{self, MapFlags, ProtFlags};
use rustix::thread::CapabilitySet;

pub use self::host::kernel_release;
pub(crate) use self::host::{check_encryption, check_frames, check_release};
pub(crate) use self::maps::{Vma, huge_bytes, read as read_maps, read_of as read_maps_of};
use self::pagemap::Pieces;
pub(crate) use self::pagemap::{HUGE, PageEntry, Pagemap, hidden_frames};
use self::pin::Pin;
pub use self::pin::PinKind;
pub(crate) use self::pin::PinSource;
pub(crate) use self::pin::refused;
pub(crate) use self::scan::{Content, contents};
pub(crate) use self::simulated::SimulatedMemory;
use crate::error::ErrorKind;
use crate::stats::Counted;
use crate::{Error, Result, guardian};
pub(crate) use arena::Arena;

/// Memory to be mapped.
#[derive(Clone, Debug)]
pub(crate) enum Backing {
    /// At this address of the process.
    User(usize),
    /// In a file of shared memory, from this offset.
    File(Arc<OwnedFd>, u64),
}

/// What the engine runs on in this process.
pub(crate) struct Memory {
    source: Source,
    /// The size of a transparent huge page, or of a page where there are none.
    transparent: u64,
}

enum Source {
    Real {
        pins: Box<dyn PinSource>,
        pagemap: Arc<Pagemap>,
    },
    Simulated(Arc<SimulatedMemory>),
    /// Nothing is pinned, and addresses are what somebody says.
    Told(Arc<Frames>),
    /// The engine cannot pin here, for this reason: what is mapped is the business of the kernel's own interfaces.
    Missing(Box<Error>),
}

/// Says where the memory at an address, so many bytes long, is to be: pieces of an address and a length.
pub(crate) type Frames = dyn Fn(usize, usize) -> Vec<(PhysAddr, u64)> + Send + Sync;

/// Which pin source to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum PinChoice {
    /// io_uring where the process may use it, AF_XDP otherwise.
    #[default]
    Best,
    /// io_uring alone.
    IoUring,
    /// AF_XDP alone.
    AfXdp,
}

impl Memory {
    /// Real memory of this process.
    pub(crate) fn real(choice: PinChoice) -> Result<Self> {
        host::check_machine()?;
        let pagemap = Pagemap::open()?;
        host::check_frames(&pagemap)?;
        let pins = source(choice, pagemap.page_size())?;
        tracing::debug!(pin = pins.kind().name(), "memory is pinned for real");
        let thp = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        let transparent = if thp { HUGE as u64 } else { 4096 };
        Ok(Self { source: Source::Real { pins, pagemap: Arc::new(pagemap) }, transparent })
    }

    /// Made-up physical memory; only simulated devices can use it.
    pub(crate) fn simulated() -> Self {
        Self { source: Source::Simulated(Arc::default()), transparent: HUGE as u64 }
    }

    /// No memory at all: addresses are what `frames` says.
    pub(crate) fn told(frames: Arc<Frames>) -> Self {
        Self { source: Source::Told(frames), transparent: HUGE as u64 }
    }

    /// No memory that the engine could pin, and why.
    pub(crate) fn missing(why: Error) -> Self {
        Self { source: Source::Missing(Box::new(why)), transparent: HUGE as u64 }
    }

    /// What the kernel's own iommufd aligns IOVAs to at the most.
    pub(crate) fn transparent(&self) -> u64 {
        self.transparent
    }

    /// How the engine pins; the reason where it cannot.
    pub(crate) fn pin_kind(&self) -> Result<PinKind> {
        match &self.source {
            Source::Real { pins, .. } => Ok(pins.kind()),
            Source::Simulated(_) | Source::Told(_) => Ok(PinKind::Simulated),
            Source::Missing(why) => Err((**why).clone()),
        }
    }

    /// The made-up memory, for the bus of simulated devices; `None` on real memory.
    pub(crate) fn as_simulated(&self) -> Option<&Arc<SimulatedMemory>> {
        match &self.source {
            Source::Simulated(memory) => Some(memory),
            Source::Real { .. } | Source::Told(_) | Source::Missing(_) => None,
        }
    }

    /// Where this process's pages are; `None` on made-up memory.
    pub(crate) fn pagemap(&self) -> Option<&Arc<Pagemap>> {
        match &self.source {
            Source::Real { pagemap, .. } => Some(pagemap),
            Source::Simulated(_) | Source::Told(_) | Source::Missing(_) => None,
        }
    }

    fn pin_range(&self, address: usize, length: usize, view: Option<View>) -> Result<HostPins> {
        let held = match &self.source {
            Source::Simulated(memory) => Held::Simulated(memory.pin(address, length)),
            Source::Told(frames) => Held::Told(frames(address, length)),
            Source::Missing(why) => return Err((**why).clone()),
            Source::Real { pins, pagemap } => {
                // Where there was one that would keep the memory, there must be one.
                guardian::check()?;
                let pieces = pagemap.pieces(address, length)?;
                let pin = pins.pin(&pieces)?;
                let counted = Counted::pins(pin.slots() as u64, length as u64);
                Held::Real { pagemap: pagemap.clone(), pieces, _pin: pin, _counted: counted }
            }
        };
        Ok(HostPins { held, view })
    }
}

/// Opens a source of pins.
pub(crate) fn source(choice: PinChoice, page_size: usize) -> Result<Box<dyn PinSource>> {
    let io_uring = || io_uring::IoUringPins::new().map(|pins| Box::new(pins) as Box<dyn PinSource>);
    let af_xdp = || af_xdp::AfXdpPins::new(page_size).map(|pins| Box::new(pins) as Box<dyn PinSource>);
    match choice {
        PinChoice::IoUring => io_uring(),
        PinChoice::AfXdp => af_xdp(),
        PinChoice::Best => {
            io_uring().or_else(|first| af_xdp().map_err(|second| no_pin_source(&first, &second)))
        }
    }
}

fn no_pin_source(io_uring: &Error, af_xdp: &Error) -> Error {
    // A process that is out of descriptors lacks those, not a way to pin: the caller may close some and come again.
    if matches!(io_uring.errno(), Errno::EMFILE | Errno::ENFILE) {
        return io_uring.clone();
    }
    Error::new(
        ErrorKind::NoPinSource,
        Errno::EOPNOTSUPP,
        format!("there is no way to pin memory here: {}; {}", io_uring.cause(), af_xdp.cause()),
    )
    .with_remedy(format!(
        "either {}, or {}",
        io_uring.remedy().unwrap_or("enable io_uring"),
        af_xdp.remedy().unwrap_or("enable AF_XDP")
    ))
}

fn dax() -> Error {
    Error::new(ErrorKind::Dax, Errno::EOPNOTSUPP, "memory of a DAX device or file has no ordinary pages")
        .with_remedy("use anonymous memory, a memfd or hugetlb pages")
}

/// What IOVAs are aligned to at the most: 1 GiB, which one table of 2 MiB leaves maps.
pub(crate) const LARGEST_ALIGNMENT: u64 = 1 << 30;

impl Platform for Memory {
    type Error = Error;
    type Backing = Backing;
    type Pins = HostPins;
    type Memory = Arena;
    type Table = Arc<Table<Arena>>;

    fn huge_page(&self) -> u64 {
        LARGEST_ALIGNMENT
    }

    fn is_file(&self, backing: &Backing) -> bool {
        matches!(backing, Backing::File(..))
    }

    fn new_table(&self) -> Result<Self::Table> {
        Ok(Arc::new(Table::new(Arena::new()?)))
    }

    // Pins from user space are for writing always, whatever the device may do; and the kernel charges the memory itself,
    // by the privileges of whoever opened the source.
    fn pin(&self, backing: &Backing, offset: u64, length: u64, _: Access, _: Caller) -> Result<HostPins> {
        let overflow = || Error::from(Errno::EOVERFLOW);
        let length = usize::try_from(length).map_err(|_| overflow())?;
        match backing {
            Backing::User(address) => {
                let offset = usize::try_from(offset).map_err(|_| overflow())?;
                let address = address.checked_add(offset).ok_or_else(overflow)?;
                address.checked_add(length).ok_or_else(overflow)?;
                self.pin_range(address, length, None)
            }
            Backing::File(file, start) => {
                let start = start.checked_add(offset).ok_or_else(overflow)?;
                let view = View::new(file, start, length)?;
                self.pin_range(view.start(), length, Some(view))
            }
        }
    }
}

/// Pinned memory of this process.
pub(crate) struct HostPins {
    // Let go before the view is unmapped; the other order would be right too.
    held: Held,
    view: Option<View>,
}

enum Held {
    Real { pagemap: Arc<Pagemap>, pieces: Pieces, _pin: Pin, _counted: Counted },
    Simulated(simulated::SimulatedPins),
    Told(Vec<(PhysAddr, u64)>),
}

impl Pins for HostPins {
    type Error = Error;

    fn runs(
        &self,
        sink: &mut dyn FnMut(&[PhysRun]) -> std::result::Result<(), Errno>,
    ) -> std::result::Result<(), Error> {
        match &self.held {
            Held::Real { pagemap, pieces, .. } => {
                let file_or_shared = pagemap.runs(pieces, &mut |runs| Ok(sink(runs)?))?;
                // Only memory of files can be DAX, and a look at the list of mappings is slow; a view is of shared memory,
                // as has been seen when it was made.
                if file_or_shared && self.view.is_none() {
                    for piece in pieces.iter() {
                        if maps::has_dax(piece.address, piece.length)? {
                            return Err(dax());
                        }
                    }
                }
                Ok(())
            }
            Held::Simulated(pins) => Ok(sink(&pins.runs())?),
            Held::Told(runs) => {
                let runs = runs.iter().map(|&(address, length)| PhysRun { address, length });
                Ok(sink(&runs.collect::<Vec<_>>())?)
            }
        }
    }
}

/// A stretch of a file mapped into this process, to be pinned.
pub(crate) struct View {
    address: *mut u8,
    length: usize,
    /// Bytes before those that are asked for.
    before: usize,
}

// SAFETY: an address range that belongs to this value alone and is never looked into.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// Where the stretch that was asked for begins.
    pub(crate) fn start(&self) -> usize {
        self.address as usize + self.before
    }

    /// Maps a stretch of a file of shared memory.
    ///
    /// # Errors
    /// EINVAL: no shared memory, or past its end; EPERM: sealed; what mmap answers.
    pub(crate) fn new(file: &OwnedFd, offset: u64, length: usize) -> Result<Self> {
        // What has seals is shared memory, hugetlb included: what MAP_FILE takes. Nothing else can be pinned for long.
        let seals = rustix::fs::fcntl_get_seals(file.as_fd()).map_err(|error| {
            Error::new(ErrorKind::BadMemory, Errno::EINVAL, format!("the file is no shared memory: {error}"))
                .with_remedy("use a memfd (hugetlb is fine) or a file on tmpfs or hugetlbfs")
        })?;
        if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
            return Err(Error::new(
                ErrorKind::ReadOnlyMemory,
                Errno::EPERM,
                "the file is sealed against writing; read-only memory cannot be pinned from user space",
            )
            .with_remedy("map it before sealing it, or copy it into a DmaBuffer"));
        }
        let status = rustix::fs::fstat(file).map_err(|error| Error::system("fstat", error))?;
        let size = status.st_size as u64;
        if offset.checked_add(length as u64).is_none_or(|end| end > size) {
            return Err(Error::new(
                ErrorKind::BadMemory,
                Errno::EINVAL,
                format!("{length} bytes at {offset:#x} pass the end of the file ({size} bytes)"),
            ));
        }
        // Files of huge pages can be mapped in these alone; their size is what such a file tells as its block.
        let block = u64::try_from(status.st_blksize).unwrap_or(0).max(1).next_power_of_two();
        let before = offset & (block - 1);
        let whole = usize::try_from((before + length as u64).next_multiple_of(block));
        let whole = whole.map_err(|_| Error::from(Errno::EOVERFLOW))?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let address = unsafe {
            mm::mmap(
                std::ptr::null_mut(),
                whole,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                offset - before,
            )
        };
        let address = address.map_err(|error| {
            let error =
                Error::system(format_args!("mapping {length} bytes at {offset:#x} of the file"), error);
            match error.errno() {
                Errno::EACCES => error.with_remedy("open it for reading and writing"),
                _ => error,
            }
        })?;
        Ok(Self { address: address.cast(), length: whole, before: before as usize })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and nobody else knows of it.
        let _ = unsafe { mm::munmap(self.address.cast(), self.length) };
    }
}

/// What this process may do, as the engine's rules ask.
pub(crate) fn caller() -> Caller {
    let effective = host::capabilities();
    Caller {
        raw_io: effective.contains(CapabilitySet::SYS_RAWIO),
        ipc_lock: effective.contains(CapabilitySet::IPC_LOCK),
        resource: effective.contains(CapabilitySet::SYS_RESOURCE),
    }
}

#[cfg(test)]
mod tests;
