//! Ways to make the kernel move pages.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};

use rustix::param::page_size;

use super::Error;
use super::pool::{CHUNK, Chunk, Pool};

/// Which recipes a run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Recipe {
    /// Compaction, and collapse too in rounds where that moved too few
    Auto,
    /// Compaction of all memory (/proc/sys/vm/compact_memory)
    Compaction,
    /// Collapse into huge pages (MADV_COLLAPSE, Linux 6.1 and later)
    Collapse,
}

impl Recipe {
    /// Its name in output.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Compaction => "compaction",
            Self::Collapse => "collapse",
        }
    }
}

/// The switch that makes the kernel compact all memory.
#[derive(Debug)]
pub(crate) struct Compactor {
    /// /proc/sys/vm/compact_memory.
    switch: File,
}

impl Compactor {
    /// Opens the switch.
    pub(crate) fn open() -> Result<Self, Error> {
        let path = "/proc/sys/vm/compact_memory";
        match OpenOptions::new().write(true).open(path) {
            Ok(switch) => Ok(Self { switch }),
            Err(error) => Err(Error::new(
                format!("cannot open {path}: {error}"),
                match error.kind() {
                    io::ErrorKind::PermissionDenied => "run it as root (sudo noiommu proof pins)",
                    io::ErrorKind::NotFound => {
                        "this kernel has no compaction (CONFIG_COMPACTION): use --recipe collapse"
                    }
                    io::ErrorKind::ReadOnlyFilesystem => {
                        "/proc/sys is read-only: run it outside the container"
                    }
                    _ => "mount /proc, or use --recipe collapse",
                },
            )),
        }
    }

    /// Compacts all zones of all nodes; returns when it is done.
    pub(crate) fn compact(&mut self) -> Result<(), Error> {
        self.switch.write_all(b"1").map_err(|error| {
            Error::new(
                format!("the kernel did not compact memory: {error}"),
                "try again, or use --recipe collapse",
            )
        })
    }

    /// Whether compaction may move mlocked pages here; realtime kernels forbid it by default.
    pub(crate) fn moves_mlocked() -> bool {
        fs::read_to_string("/proc/sys/vm/compact_unevictable_allowed").map_or(true, |text| text.trim() != "0")
    }
}

/// Whether this kernel can collapse a chunk: it knows the call, and its huge pages are as large as a chunk.
pub(crate) fn can_collapse() -> bool {
    let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    huge.is_ok_and(|size| size.trim() == CHUNK.to_string()) && knows_collapse()
}

/// Asks the kernel to collapse an empty range, which does nothing where the advice is known.
fn knows_collapse() -> bool {
    // SAFETY: a range of no bytes touches nothing.
    unsafe { libc::madvise(page_size() as *mut libc::c_void, 0, libc::MADV_COLLAPSE) == 0 }
}

/// Collapses each chunk into a huge page, which copies its bytes to another place. A chunk with pinned pages is
/// refused by the kernel (EAGAIN or EBUSY), which is just what is to be seen, so no answer is an error here: the
/// frames tell.
pub(crate) fn collapse(pool: &Pool, chunks: impl Iterator<Item = Chunk>) {
    for chunk in chunks {
        // A chunk that is a huge page already would be left alone.
        let _ = pool.split(chunk);
        let _ = pool.allow_huge(chunk, true);
        // SAFETY: the chunk is mapped, and collapsing changes only where its bytes lie.
        let _ = unsafe { libc::madvise(pool.address(chunk).as_ptr().cast(), CHUNK, libc::MADV_COLLAPSE) };
        let _ = pool.allow_huge(chunk, false);
    }
}
