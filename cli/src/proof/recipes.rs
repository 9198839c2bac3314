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
                    io::ErrorKind::PermissionDenied => "run it as root of the machine, with sudo",
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
        drain_free_lists();
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

/// Makes each CPU hand its private list of free pages back to the common ones, where compaction looks for holes.
///
/// Since Linux 6.7 such a list may hold an eighth of a zone, more than all the holes of a round, and then a
/// compaction moves nothing. Each refresh of the statistics shrinks the lists a little and harms no one. Kernels
/// before that have short lists, and without root the compaction fails with a better message than this could give.
pub(crate) fn drain_free_lists() {
    /// Refreshes between two looks: enough to bring a list's limit down by a factor of 20.
    const REFRESHES: usize = 24;
    /// Looks at most; each takes some milliseconds.
    const LOOKS: usize = 50;
    let listed = || fs::read_to_string("/proc/zoneinfo").map_or(0, |text| listed_pages(&text));
    let mut before = listed();
    for _ in 0..LOOKS {
        for _ in 0..REFRESHES {
            let _ = fs::read("/proc/sys/vm/stat_refresh");
        }
        let now = listed();
        if now.saturating_mul(100) > before.saturating_mul(95) {
            break;
        }
        before = now;
    }
}

/// Free pages in the private lists of all CPUs, as /proc/zoneinfo tells them.
fn listed_pages(zoneinfo: &str) -> u64 {
    let counts = zoneinfo.lines().filter_map(|line| line.trim().strip_prefix("count:"));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_free_lists_are_summed() {
        let zoneinfo = "    cpu: 0\n              count:    4631\n              high:     4668\n              batch: 63\n    \
                        cpu: 1\n              count:    7753\n";
        assert_eq!(listed_pages(zoneinfo), 4631 + 7753);
        assert_eq!(listed_pages(""), 0);
    }
}
