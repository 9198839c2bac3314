//! Where this process's pages are, by /proc/self/pagemap, not by the kit whose pins are on trial.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};

use crate::matrix::driver::PAGE;

const PAGEMAP: &str = "/proc/self/pagemap";

/// *Documentation/admin-guide/mm/pagemap.rst* of the kernel: the page is in memory, and its frame.
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// The frames of pages from an address on; `None` for one that is not in memory, as when it is on the move.
pub(super) fn frames(address: usize, pages: usize) -> Result<Vec<Option<u64>>> {
    let mut bytes = vec![0; pages * 8];
    let file = File::open(PAGEMAP).context(PAGEMAP)?;
    file.read_exact_at(&mut bytes, (address / PAGE * 8) as u64).context(PAGEMAP)?;
    let (entries, _) = bytes.as_chunks::<8>();
    let frame = |entry: u64| (entry & PRESENT != 0).then_some(entry & FRAME);
    Ok(entries.iter().map(|entry| frame(u64::from_ne_bytes(*entry))).collect())
}
