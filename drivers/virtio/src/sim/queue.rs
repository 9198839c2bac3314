//! A queue as the device has it (2.7).

use noiommu::sim::{Aborted, Bus};

/// 2.7.5, flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A queue: what the driver has written to its registers, and how far the device is.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Queue {
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    /// Descriptors, available ring and used ring.
    pub(super) parts: [u64; 3],
    /// Chains taken from the available ring, and entries written to the used ring. Both wrap.
    taken: u16,
    used: u16,
}

/// A request: what the driver gives and what it has room for, in pieces of memory.
#[derive(Clone, Default, Debug)]
pub struct Chain {
    /// The number of its first descriptor.
    pub(super) head: u16,
    pub(super) given: Vec<(u64, u32)>,
    pub(super) room: Vec<(u64, u32)>,
}

impl Chain {
    /// All bytes that the driver gives.
    ///
    /// # Errors
    /// Nobody is there on the bus.
    pub fn read(&self, bus: &mut Bus<'_>) -> Result<Vec<u8>, Aborted> {
        let mut all = Vec::new();
        for &(address, length) in &self.given {
            let start = all.len();
            all.resize(start + length as usize, 0);
            bus.read(address, &mut all[start..])?;
        }
        Ok(all)
    }

    /// Bytes that the driver has room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room.iter().map(|(_, length)| *length as usize).sum()
    }

    /// Writes bytes where the driver has room, from `offset` on; how many found room.
    ///
    /// # Errors
    /// Nobody is there on the bus.
    pub fn write(&self, mut offset: usize, mut from: &[u8], bus: &mut Bus<'_>) -> Result<u32, Aborted> {
        let mut written = 0;
        for &(address, length) in &self.room {
            let skip = offset.min(length as usize);
            offset -= skip;
            let (now, rest) = from.split_at(from.len().min(length as usize - skip));
            bus.write(address + skip as u64, now)?;
            written += now.len() as u32;
            from = rest;
        }
        Ok(written)
    }
}

impl Queue {
    /// As after a reset, with so many descriptors.
    pub(super) fn new(size: u16) -> Self {
        Self { size, ..Self::default() }
    }

    /// Whether the driver has made another chain available.
    pub(super) fn has_more(&self, bus: &mut Bus<'_>) -> bool {
        self.enabled
            && bus.fetch(self.parts[1] + 2).is_ok_and(|bytes| u16::from_le_bytes(bytes) != self.taken)
    }

    /// Takes the next chain; `None`: there is none, or it is none that could be.
    pub(super) fn take(&mut self, bus: &mut Bus<'_>) -> Option<Chain> {
        if !self.has_more(bus) {
            return None;
        }
        let slot = u64::from(self.taken % self.size.max(1));
        let head = u16::from_le_bytes(bus.fetch(self.parts[1] + 4 + 2 * slot).ok()?);
        self.taken = self.taken.wrapping_add(1);
        let mut chain = Chain { head, ..Chain::default() };
        let mut next = head;
        // A chain is no longer than the table.
        for _ in 0..self.size {
            let bytes: [u8; 16] = bus.fetch(self.parts[0] + 16 * u64::from(next)).ok()?;
            let address = u64::from_le_bytes(bytes[..8].try_into().ok()?);
            let length = u32::from_le_bytes(bytes[8..12].try_into().ok()?);
            let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
            if flags & WRITE != 0 { &mut chain.room } else { &mut chain.given }.push((address, length));
            if flags & NEXT == 0 {
                return Some(chain);
            }
            next = u16::from_le_bytes([bytes[14], bytes[15]]);
        }
        None
    }

    /// Tells the driver that a chain has been used, by an entry and by `step` more of them.
    pub(super) fn give_back(&mut self, id: u32, length: u32, step: u16, bus: &mut Bus<'_>) {
        let entry = self.parts[2] + 4 + 8 * u64::from(self.used % self.size.max(1));
        self.used = self.used.wrapping_add(step);
        let _ = bus.write(entry, &[id.to_le_bytes(), length.to_le_bytes()].concat());
        let _ = bus.write(self.parts[2] + 2, &self.used.to_le_bytes());
    }

    /// Says whether notifications are wanted.
    pub(super) fn want(&self, wanted: bool, bus: &mut Bus<'_>) {
        if self.enabled {
            let _ = bus.write(self.parts[2], &u16::from(!wanted).to_le_bytes());
        }
    }
}
