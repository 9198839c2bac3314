//! Sources of pins: who makes the kernel hold pages where they are (FOLL_LONGTERM).

use noiommu_core::Errno;

use super::pagemap::Piece;
use super::{af_xdp, io_uring};
use crate::error::{ErrorKind, errno_of};
use crate::{Error, Result};

/// How memory is pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum PinKind {
    /// io_uring registered buffers.
    IoUring,
    /// The memory of an AF_XDP socket (umem).
    AfXdp,
    /// Made-up physical memory: nothing is pinned, no real device can use it.
    Simulated,
    /// The kernel's own iommufd or VFIO container.
    Kernel,
}

impl PinKind {
    /// Its name in output for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::AfXdp => "af_xdp",
            Self::Simulated => "simulated",
            Self::Kernel => "kernel",
        }
    }
}

/// Something that can pin pages of this process.
///
/// A page is pinned from the return of [`PinSource::pin`] until the answer is dropped, whatever becomes of the mapping
/// in between (munmap, MADV_DONTNEED, fork, truncation).
pub(crate) trait PinSource: Send + Sync {
    fn kind(&self) -> PinKind;

    /// Pins `pieces`, all or none. `huge` in a piece is a hint.
    fn pin(&self, pieces: &[Piece]) -> Result<Pin>;
}

/// Pinned pages; let go of on drop.
pub(crate) enum Pin {
    IoUring { slots: io_uring::Held },
    AfXdp { sockets: Vec<af_xdp::Held> },
}

impl Pin {
    /// Buffers of rings, or sockets, that hold them.
    pub(crate) fn slots(&self) -> usize {
        match self {
            Self::IoUring { slots } => slots.count(),
            Self::AfXdp { sockets } => sockets.len(),
        }
    }
}

/// What a refused pin of `length` bytes at `address` means; `doing` names the source.
pub(crate) fn refused(doing: &str, address: usize, length: usize, error: &std::io::Error) -> Error {
    let errno = errno_of(error);
    let what = format!("{doing}: {length} bytes at {address:#x}");
    // First what the memory itself tells: a source may answer ENOMEM for a hole.
    if let Some((kind, why, remedy)) = super::maps::why_not_pinned(address, length) {
        return Error::new(kind, Errno::EFAULT, format!("{what}: {why}")).with_remedy(remedy);
    }
    match errno {
        // AF_XDP tells the limit as ENOBUFS.
        Errno::ENOMEM | Errno::ENOBUFS => Error::new(
            ErrorKind::MemlockLimit,
            Errno::ENOMEM,
            format!("{what} would pass the limit of locked memory (RLIMIT_MEMLOCK), or the machine's memory"),
        )
        .with_remedy("raise the limit (ulimit -l, LimitMEMLOCK= in a systemd unit), give the program CAP_IPC_LOCK, or map less"),
        _ => Error::new(ErrorKind::BadMemory, errno, format!("{what}: {error}")),
    }
}
