//! The queues as the controller has them.

use noiommu::sim::Bus;

/// A submission queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Submission {
    pub(super) address: u64,
    pub(super) entries: u16,
    /// Its completion queue.
    pub(super) completion: u16,
    /// Where the driver puts the next command; where the controller takes the next one.
    pub(super) tail: u16,
    pub(super) head: u16,
}

impl Submission {
    /// Takes the next command.
    pub(super) fn take(&mut self, bus: &mut Bus<'_>) -> Option<[u8; 64]> {
        if self.head == self.tail || self.entries == 0 {
            return None;
        }
        let entry = bus.fetch(self.address + u64::from(self.head) * 64).ok()?;
        self.head = (self.head + 1) % self.entries;
        Some(entry)
    }
}

/// A completion queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Completions {
    pub(super) address: u64,
    pub(super) entries: u16,
    /// By which vector it interrupts, if it does.
    pub(super) vector: Option<u16>,
    /// Where the controller puts the next completion; which the driver has taken.
    pub(super) tail: u16,
    pub(super) head: u16,
    /// Whether the phase is 0 on this turn.
    pub(super) turned: bool,
}

impl Completions {
    pub(super) fn is_full(&self) -> bool {
        self.entries == 0 || (self.tail + 1) % self.entries == self.head
    }

    /// Whether something is there that the driver has not taken.
    pub(super) fn is_pending(&self) -> bool {
        self.head != self.tail
    }

    /// Puts an entry there, with the phase of this turn, and tells how it was.
    pub(super) fn put(&mut self, mut entry: [u8; 16], bus: &mut Bus<'_>) {
        entry[14] = entry[14] & !1 | u8::from(!self.turned);
        // The words before the phase come first.
        let at = self.address + u64::from(self.tail) * 16;
        let (first, last) = entry.split_at(12);
        if bus.write(at, first).and_then(|()| bus.write(at + 12, last)).is_err() {
            return;
        }
        self.tail += 1;
        if self.tail == self.entries {
            (self.tail, self.turned) = (0, !self.turned);
        }
    }
}

/// A command, as its fields are read from 64 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a>(pub(super) &'a [u8; 64]);

impl Entry<'_> {
    pub(super) fn opcode(&self) -> u8 {
        self.0[0]
    }

    pub(super) fn identifier(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    pub(super) fn namespace(&self) -> u32 {
        self.word(1)
    }

    pub(super) fn prp(&self) -> [u64; 2] {
        [6, 8].map(|word| u64::from(self.word(word)) | u64::from(self.word(word + 1)) << 32)
    }

    /// Word `index` of 32 bits.
    pub(super) fn word(&self, index: usize) -> u32 {
        let at = index * 4;
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}
