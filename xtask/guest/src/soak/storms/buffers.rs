//! The buffers: one of each kind of pages, half of it written by the program and left so, half of it for devices to write.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use noiommu::{Contiguity, DmaBuffer, Error, Ioas, Mapping, PageKind};
use serde_json::{Value, json};

use super::super::chance::Chance;
use crate::matrix::driver::PAGE;
use crate::witness::Witness;

/// Bytes of a buffer: two huge pages.
pub(super) const SIZE: usize = 4 << 20;

/// Bytes of it that devices only read.
pub(super) const SOURCE: usize = SIZE / 2;

/// Bytes of the drive that are used: the beginning of the witness's stream.
pub(super) const DRIVE: usize = 4 << 20;

/// Where a buffer's own bytes begin in the witness's stream: behind the drive's.
const STREAM: u64 = 1 << 32;

/// Reserved huge pages: what a buffer needs, and as much for each child that is forked meanwhile, to which the kernel gives copies
/// of those that are pinned.
const RESERVED: &str = "16";
const RESERVE: &str = "/proc/sys/vm/nr_hugepages";

/// A buffer.
pub(super) struct Buffer {
    /// What it is made of.
    pub(super) name: &'static str,
    pub(super) mapping: Mapping,
    /// What the first half holds.
    pub(super) source: Vec<u8>,
    /// Where that is in the witness's stream.
    stream: u64,
}

/// Buffers of base pages, of transparent huge pages and of reserved ones.
pub(super) fn all(ioas: &Ioas, witness: &Witness) -> Result<Vec<Buffer>> {
    let kinds = [
        (Contiguity::Pages, PageKind::Base, "0"),
        (Contiguity::Best, PageKind::TransparentHuge, "0"),
        (Contiguity::Huge, PageKind::Hugetlb2M, RESERVED),
    ];
    let buffer = |(number, (contiguity, kind, reserved)): (u64, (Contiguity, PageKind, &str))| {
        // Whoever may have reserved pages is given these first.
        fs::write(RESERVE, reserved).context(RESERVE)?;
        let buffer = DmaBuffer::new(SIZE, contiguity)?;
        ensure!(buffer.pages() == kind, "a buffer of {}, not of {}", buffer.pages().name(), kind.name());
        let mapping = ioas.map(buffer).map_err(Error::from)?;
        let stream = STREAM * (number + 1);
        let source = witness.stream(stream, SOURCE);
        memory(&mapping)?.write(0, &source)?;
        Ok(Buffer { name: kind.name(), mapping, source, stream })
    };
    (0..).zip(kinds).map(buffer).collect()
}

/// A mapping's memory.
pub(super) fn memory(mapping: &Mapping) -> Result<&DmaBuffer> {
    mapping.buffer().context("a mapping without a buffer")
}

impl Buffer {
    /// Its memory.
    pub(super) fn memory(&self) -> Result<&DmaBuffer> {
        memory(&self.mapping)
    }

    /// What the first half holds now.
    pub(super) fn still(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; SOURCE];
        self.memory()?.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Some page of the first half: its physical address, its bytes, and where they are in the witness's stream.
    pub(super) fn piece(&self, chance: &mut Chance) -> Result<(u64, usize, u64)> {
        let offset = chance.below((SOURCE / PAGE) as u64) * PAGE as u64;
        let mut at = 0;
        for segment in self.mapping.segments()? {
            if offset < at + segment.length {
                return Ok((segment.address.0 + (offset - at), PAGE, self.stream + offset));
            }
            at += segment.length;
        }
        anyhow::bail!("a mapping that ends before {offset:#x}")
    }

    /// Where a byte of the first half is in the witness's stream.
    pub(super) fn stream(&self, offset: u64) -> u64 {
        self.stream + offset
    }

    /// What it is, for the report.
    pub(super) fn tell(&self) -> Value {
        let pieces = self.mapping.segments().map_or(0, |segments| segments.len());
        json!({"pages": self.name, "bytes": SIZE, "segments": pieces})
    }
}
