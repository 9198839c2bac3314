//! The drive as the kernel's own driver has it: a block device.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::pattern;
use crate::matrix::driver::PATIENCE;

/// Bytes of a piece.
const PIECE: usize = 256 << 10;

/// Waits for the block device that the kernel makes of the device at `address`, as `find` finds it; its name.
pub(crate) fn wait_for(address: &str, find: impl Fn() -> Option<String>) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(name) = find()
            // There is a node before there is a drive behind it.
            && size(&name).is_ok_and(|bytes| bytes > 0)
        {
            return Ok(name);
        }
        ensure!(Instant::now() < deadline, "the kernel's driver makes no block device of {address}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Its node.
pub(crate) fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

/// Opens it past the page cache.
pub(crate) fn open_direct(name: &str, write: bool) -> Result<File> {
    let node = node(name);
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(&node)
        .with_context(|| format!("{}", node.display()))
}

/// Memory at a multiple of a page, as O_DIRECT wants it.
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub(crate) fn new(length: usize) -> Self {
        let bytes = vec![0; length + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Self { bytes, start, length }
    }

    pub(crate) fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// Bytes of a block device.
pub(crate) fn size(name: &str) -> Result<u64> {
    Ok(open_direct(name, false)?.seek(SeekFrom::End(0))?)
}

/// Reads all of it and compares every byte with the pattern; how many there are.
pub(crate) fn verify(name: &str, seed: u64) -> Result<u64> {
    let (file, size) = (open_direct(name, false)?, size(name)?);
    let mut memory = Aligned::new(PIECE);
    for start in (0..size).step_by(PIECE) {
        let piece = &mut memory.get()[..PIECE.min((size - start) as usize)];
        file.read_exact_at(piece, start).context("reading by the kernel's driver")?;
        let wrong = pattern::first_wrong(seed, start, piece);
        ensure!(wrong.is_none(), "the kernel's driver finds another byte at {wrong:?}");
    }
    Ok(size)
}

/// Writes the pattern everywhere; how many bytes that are.
pub(crate) fn write(name: &str, seed: u64) -> Result<u64> {
    let (file, size) = (open_direct(name, true)?, size(name)?);
    let mut memory = Aligned::new(PIECE);
    for start in (0..size).step_by(PIECE) {
        let piece = &mut memory.get()[..PIECE.min((size - start) as usize)];
        pattern::fill(seed, start, piece);
        file.write_all_at(piece, start).context("writing by the kernel's driver")?;
    }
    file.sync_all().context("flushing by the kernel's driver")?;
    Ok(size)
}
