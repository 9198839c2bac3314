//! Canaries: freed buffers that are kept for a while, filled with a pattern, to see whether a device writes to them.

use std::collections::VecDeque;
use std::fmt;
use std::panic::Location;
use std::time::{Duration, Instant};

use noiommu_core::Iova;

use super::mapping::Owned;
use super::quarantine::Given;
use crate::buffer::DmaBuffer;

/// Bytes looked at in one go.
const BLOCK: usize = 4096;
/// Bytes of what was found that are kept.
const SAMPLE: usize = 16;
/// Late writes that are kept until they are asked for; further ones are logged.
const KEPT: usize = 1000;

/// A device has written to a buffer after it was freed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct LateWrite {
    /// The devices that were attached to the IOAS when the buffer was freed, or later: one of them did it. (Without an IOMMU a
    /// device of another IOAS could have, too.)
    pub devices: Vec<String>,
    /// Where the buffer had been mapped.
    pub iova: Iova,
    /// Its bytes.
    pub length: u64,
    /// The call that had mapped it.
    pub by: &'static Location<'static>,
    /// It was [reclaimed](crate::Mapping::reclaim), not dropped.
    pub reclaimed: bool,
    /// Time from the freeing to the finding; the write was somewhere between.
    pub age: Duration,
    /// When it was looked at.
    pub occasion: Occasion,
    /// The first byte of it that has changed.
    pub offset: u64,
    /// How many have.
    pub changed: u64,
    /// What is there now, from the first changed byte on: at most 16 bytes.
    pub found: Vec<u8>,
}

/// When a freed buffer was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Occasion {
    /// As it made room for others that were freed later.
    Left,
    /// When no attached device could do DMA any more.
    Quiet,
    /// Somebody [asked](crate::Ioas::check_freed).
    Asked,
    /// At the end of the IOAS, or of watching.
    End,
}

impl fmt::Display for LateWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { iova, length, by, age, offset, changed, .. } = self;
        let how = if self.reclaimed { "reclaimed" } else { "dropped" };
        let devices = if self.devices.is_empty() { "none".to_owned() } else { self.devices.join(", ") };
        let seen = match self.occasion {
            Occasion::Left => "as it made room for others",
            Occasion::Quiet => "when the devices were quiet",
            Occasion::Asked => "when asked",
            Occasion::End => "at the end",
        };
        writeln!(
            f,
            "a device has written to a freed buffer: {changed} of {length} bytes, from byte {offset:#x} on"
        )?;
        writeln!(f, "  mapping  {length} bytes at IOVA {iova}, mapped at {by}")?;
        writeln!(f, "  freed    {how} {age:.1?} before this was seen, {seen}")?;
        writeln!(f, "  devices  {devices}")?;
        write!(f, "  found   ")?;
        self.found.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

/// Freed buffers under watch, the oldest first.
#[derive(Default)]
pub(super) struct Watch {
    limit: u64,
    bytes: u64,
    entries: VecDeque<Watched>,
    found: Vec<LateWrite>,
    /// How many buffers have been watched: no two have the same pattern.
    count: u64,
}

struct Watched {
    given: Given,
    reclaimed: bool,
    when: Instant,
    devices: Vec<String>,
    seed: u64,
}

/// What leaves the watch, with whether it was reclaimed.
type Left = Vec<(Given, bool)>;

impl Watch {
    /// Buffers that were dropped, not reclaimed.
    pub(super) fn dropped(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.reclaimed).count()
    }

    /// Whether it can be watched: files and borrowed memory are others' to write to.
    pub(super) fn takes(&self, given: &Given) -> bool {
        matches!(&given.memory, Owned::Buffer(buffer) if buffer.mapped_length() as u64 <= self.limit)
    }

    pub(super) fn push(&mut self, given: Given, devices: &[String], reclaimed: bool) -> Left {
        self.count += 1;
        let seed = self.count.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ given.range.first().0;
        let entry = Watched { given, reclaimed, when: Instant::now(), devices: devices.to_vec(), seed };
        entry.fill();
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        self.shrink()
    }

    fn shrink(&mut self) -> Left {
        let mut left = Vec::new();
        while self.bytes > self.limit
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= entry.bytes();
            self.look(&entry, if self.limit == 0 { Occasion::End } else { Occasion::Left });
            left.push((entry.given, entry.reclaimed));
        }
        left
    }

    pub(super) fn set_limit(&mut self, bytes: u64) -> Left {
        self.limit = bytes;
        self.shrink()
    }

    pub(super) fn end(&mut self) -> Left {
        self.set_limit(0)
    }

    /// A device more that may be the one.
    pub(super) fn attached(&mut self, device: &str) {
        for entry in &mut self.entries {
            if !entry.devices.iter().any(|name| name == device) {
                entry.devices.push(device.to_owned());
            }
        }
    }

    /// Looks at all.
    pub(super) fn check(&mut self, occasion: Occasion) {
        let entries = std::mem::take(&mut self.entries);
        for entry in &entries {
            if self.look(entry, occasion) {
                entry.fill();
            }
        }
        self.entries = entries;
    }

    pub(super) fn take(&mut self) -> Vec<LateWrite> {
        std::mem::take(&mut self.found)
    }

    /// Looks at one; tells whether it was written to.
    fn look(&mut self, entry: &Watched, occasion: Occasion) -> bool {
        let Some(late) = entry.look(occasion) else { return false };
        tracing::error!("{late}");
        if self.found.len() < KEPT {
            self.found.push(late);
        }
        true
    }
}

impl Watched {
    fn buffer(&self) -> Option<&DmaBuffer> {
        match &self.given.memory {
            Owned::Buffer(buffer) => Some(buffer),
            Owned::File { .. } | Owned::Borrowed => None,
        }
    }

    fn bytes(&self) -> u64 {
        self.buffer().map_or(0, |buffer| buffer.mapped_length() as u64)
    }

    /// Blocks of the buffer: where each begins, and its bytes.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let length = self.buffer().map_or(0, DmaBuffer::len);
        (0..length).step_by(BLOCK).map(move |start| (start, BLOCK.min(length - start)))
    }

    /// What a block holds that nobody has written to: no word occurs twice, nor does any in two buffers.
    fn pattern(&self, start: usize) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        for (word, at) in block.chunks_exact_mut(8).zip(start as u64 / 8..) {
            let mut value = self.seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(value ^ value >> 31).to_le_bytes());
        }
        block
    }

    fn fill(&self) {
        let Some(buffer) = self.buffer() else { return };
        for (start, length) in self.blocks() {
            // Within the buffer.
            let _ = buffer.write(start, &self.pattern(start)[..length]);
        }
    }

    fn look(&self, occasion: Occasion) -> Option<LateWrite> {
        let buffer = self.buffer()?;
        let mut block = [0; BLOCK];
        let (mut first, mut changed) = (None, 0);
        for (start, length) in self.blocks() {
            let block = &mut block[..length];
            buffer.read(start, block).ok()?;
            let pattern = self.pattern(start);
            if *block == pattern[..length] {
                continue;
            }
            let wrong = (0..length).filter(|&at| block[at] != pattern[at]);
            changed += wrong.clone().count() as u64;
            if first.is_none() {
                first = wrong.map(|at| start + at).next();
            }
        }
        let offset = first?;
        let mut found = vec![0; SAMPLE.min(buffer.len() - offset)];
        buffer.read(offset, &mut found).ok()?;
        Some(LateWrite {
            devices: self.devices.clone(),
            iova: self.given.range.first(),
            length: self.given.length,
            by: self.given.by,
            reclaimed: self.reclaimed,
            age: self.when.elapsed(),
            occasion,
            offset: offset as u64,
            changed,
            found,
        })
    }
}
