//! What a model says that it is, and the config space that comes of it.
//!
//! Source: PCI Local Bus Specification 3.0, 6.1 (header), 6.2.5 (BARs), 6.8 (MSI and MSI-X); PCI Express Base Specification,
//! 7.5.3.

use crate::{Error, Result};

/// Bytes of config space of a conventional device, and of one of PCI Express.
const CONVENTIONAL: usize = 256;
const EXPRESS: usize = 4096;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE: usize = 0x0c;
const BARS: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// Where capabilities begin.
const BEHIND_HEADER: usize = 0x40;

const CAPABILITY_MSI: u8 = 0x05;
const CAPABILITY_EXPRESS: u8 = 0x10;
const CAPABILITY_MSIX: u8 = 0x11;

/// Where firmware would have put BARs of 32 and of 64 bits: from here on, upwards.
const LOW_BARS: u64 = 0xfe20_0000;
const LOW_END: u64 = 0xff00_0000;
const HIGH_BARS: u64 = 0x40_0000_0000;

/// What a device is: its name, its config space, its BARs and its interrupts.
///
/// Begins as a conventional PCI device with nothing but its ids. A call that cannot be is kept in mind and comes out as an
/// error where the device is plugged in.
///
/// ```
/// use noiommu::sim::Identity;
///
/// let nic = Identity::new("nic", 0x1234, 0x0001)
///     .class(0x02_00_00)
///     .express()
///     .bar64(0, 0x4000)
///     .msix(4, 0, 0x2000)
///     .resettable();
/// # let _ = nic;
/// ```
#[derive(Clone, Debug)]
pub struct Identity {
    pub(super) name: String,
    pub(super) config: Vec<u8>,
    /// Which bits the processor may change.
    pub(super) writable: Vec<u8>,
    /// Where each BAR is said to be and its bytes; 0: there is none.
    pub(super) bars: [(u64, u64); 6],
    /// Vectors, and where the capability is.
    pub(super) msi: Option<(u32, usize)>,
    pub(super) msix: Option<(u32, usize)>,
    pub(super) has_line: bool,
    pub(super) has_reset: bool,
    next_capability: usize,
    /// Where the last capability says which one comes next.
    link: usize,
    next_low: u64,
    next_high: u64,
    wrong: Option<String>,
}

impl Identity {
    /// A device of this vendor and device id; `name` is what people call it (`sim:` is put before it).
    #[must_use]
    pub fn new(name: &str, vendor: u16, device: u16) -> Self {
        let mut identity = Self {
            name: format!("sim:{name}"),
            config: vec![0; CONVENTIONAL],
            writable: vec![0; CONVENTIONAL],
            bars: [(0, 0); 6],
            msi: None,
            msix: None,
            has_line: false,
            has_reset: false,
            next_capability: BEHIND_HEADER,
            link: CAPABILITIES,
            next_low: LOW_BARS,
            next_high: HIGH_BARS,
            wrong: None,
        };
        identity.put(0, &vendor.to_le_bytes(), 0);
        identity.put(2, &device.to_le_bytes(), 0);
        // As firmware leaves it: ports and memory decoded. The processor may change these and bus mastering, whether errors
        // are told, and whether the line is masked.
        identity.put(COMMAND, &[0x03, 0x01], 0);
        identity.writable[COMMAND..COMMAND + 2].copy_from_slice(&[0x07, 0x05]);
        identity.writable[CACHE_LINE] = 0xff;
        identity
    }

    /// Writes a part of config space that is there; `mask` for all of its bytes.
    fn put(&mut self, offset: usize, bytes: &[u8], mask: u8) {
        self.config[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.writable[offset..offset + bytes.len()].fill(mask);
    }

    fn refuse(mut self, why: String) -> Self {
        self.wrong.get_or_insert(why);
        self
    }

    /// Its class code, of 24 bits.
    #[must_use]
    pub fn class(mut self, class: u32) -> Self {
        self.put(CLASS, &class.to_le_bytes()[..3], 0);
        self
    }

    /// Its revision.
    #[must_use]
    pub fn revision(mut self, revision: u8) -> Self {
        self.put(REVISION, &[revision], 0);
        self
    }

    /// Its subsystem's vendor and device id.
    #[must_use]
    pub fn subsystem(mut self, vendor: u16, device: u16) -> Self {
        self.put(SUBSYSTEM, &vendor.to_le_bytes(), 0);
        self.put(SUBSYSTEM + 2, &device.to_le_bytes(), 0);
        self
    }

    /// A memory BAR of 32 bits: `size` is a power of two, at least 16.
    #[must_use]
    pub fn bar(self, index: u8, size: u64) -> Self {
        self.any_bar(index, size, false)
    }

    /// A memory BAR of 64 bits, which takes this register and the next.
    #[must_use]
    pub fn bar64(self, index: u8, size: u64) -> Self {
        self.any_bar(index, size, true)
    }

    fn any_bar(mut self, index: u8, size: u64, wide: bool) -> Self {
        let at = usize::from(index);
        let registers = if wide { 2 } else { 1 };
        let taken = |at: usize| {
            let before = at.checked_sub(1).and_then(|before| self.bars.get(before).map(|bar| (before, bar)));
            self.bars[at].1 != 0
                || before.is_some_and(|(before, bar)| bar.1 != 0 && self.config[BARS + 4 * before] & 6 == 4)
        };
        if at + registers > 6 || (at..at + registers).any(taken) {
            return self.refuse(format!("BAR {index} does not fit, or is there already"));
        }
        let (next, end) =
            if wide { (&mut self.next_high, u64::MAX >> 1) } else { (&mut self.next_low, LOW_END) };
        if !size.is_power_of_two() || size < 16 || size > end {
            return self
                .refuse(format!("BAR {index}: {size} bytes are no power of two from 16 on, or too many"));
        }
        let start = next.next_multiple_of(size);
        if start.checked_add(size).is_none_or(|after| after > end) {
            return self.refuse(format!("BAR {index}: no room for {size} bytes below 4 GiB: use bar64"));
        }
        *next = start + size;
        self.bars[at] = (start, size);
        let kind = if wide { 4 } else { 0 };
        let (bytes, mask) = ((start | kind).to_le_bytes(), (!(size - 1) & !0xf).to_le_bytes());
        let (place, length) = (BARS + 4 * at, 4 * registers);
        self.config[place..place + length].copy_from_slice(&bytes[..length]);
        self.writable[place..place + length].copy_from_slice(&mask[..length]);
        self
    }

    /// An interrupt line.
    #[must_use]
    pub fn line(mut self) -> Self {
        self.has_line = true;
        self.put(INTERRUPT_LINE, &[0x0a], 0xff);
        self.put(INTERRUPT_PIN, &[0x01], 0);
        self
    }

    /// MSI: 1, 2, 4, 8, 16 or 32 vectors.
    #[must_use]
    pub fn msi(mut self, vectors: u32) -> Self {
        if !vectors.is_power_of_two() || vectors > 32 || self.msi.is_some() {
            return self.refuse(format!("MSI: {vectors} vectors, or for the second time"));
        }
        // Addresses of 64 bits; how many vectors it can have, as a power of two.
        let flags = 0x80 | (vectors.trailing_zeros() << 1) as u8;
        let (mut body, mut mask) = ([0; 12], [0xff; 12]);
        (body[0], body[1]) = (flags, 0);
        // Enabled, and how many of the vectors; an address of a word.
        (mask[0], mask[1], mask[2]) = (0x71, 0, 0xfc);
        let at = self.next_capability;
        self.msi = Some((vectors, at));
        self.capability(CAPABILITY_MSI, &body, &mask)
    }

    /// MSI-X: up to 2048 vectors, with the table at `offset` of BAR `bar` and the pending bits behind it. Accesses to both
    /// reach the model as others do.
    #[must_use]
    pub fn msix(mut self, vectors: u32, bar: u8, offset: u32) -> Self {
        let pending = u64::from(offset) + 16 * u64::from(vectors);
        let end = pending + u64::from(vectors).div_ceil(64) * 8;
        let fits = self.bars.get(usize::from(bar)).is_some_and(|(_, size)| end <= *size);
        if !(1..=2048).contains(&vectors) || !offset.is_multiple_of(8) || !fits || self.msix.is_some() {
            return self.refuse(format!(
                "MSI-X: {vectors} vectors at {offset:#x} do not fit BAR {bar} (make the BAR first), or for the second time"
            ));
        }
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(vectors as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(offset | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending as u32 | u32::from(bar)).to_le_bytes());
        let mut mask = [0; 10];
        // Enabled, and all masked.
        mask[1] = 0xc0;
        let at = self.next_capability;
        self.msix = Some((vectors, at));
        self.capability(CAPABILITY_MSIX, &body, &mask)
    }

    /// A PCI Express endpoint, with config space of 4096 bytes.
    #[must_use]
    pub fn express(mut self) -> Self {
        if self.config.len() == EXPRESS {
            return self.refuse("PCI Express for the second time".to_owned());
        }
        self.config.resize(EXPRESS, 0);
        self.writable.resize(EXPRESS, 0);
        let mut body = [0; 58];
        // Version 2, an endpoint.
        body[0] = 0x02;
        let mut mask = [0; 58];
        // Device Control.
        mask[6..8].fill(0xff);
        self.capability(CAPABILITY_EXPRESS, &body, &mask)
    }

    /// A capability of any kind, behind those that are there: `body` begins behind its id and its link; `writable` has a byte
    /// of bits that the processor may change for each of its bytes (what is missing is read-only).
    #[must_use]
    pub fn capability(mut self, id: u8, body: &[u8], writable: &[u8]) -> Self {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        if end > CONVENTIONAL || writable.len() > body.len() {
            return self.refuse(format!("capability {id:#x} does not fit into config space"));
        }
        self.config[STATUS] |= STATUS_CAPABILITIES;
        self.config[self.link] = at as u8;
        self.link = at + 1;
        self.put(at, &[id, 0], 0);
        self.put(at + 2, body, 0);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.next_capability = end.next_multiple_of(4);
        self
    }

    /// Bytes of config space as they are, with the bits that the processor may change (what is missing is read-only): for
    /// what has no call of its own.
    #[must_use]
    pub fn config(mut self, offset: u16, bytes: &[u8], writable: &[u8]) -> Self {
        let at = usize::from(offset);
        if at + bytes.len() > self.config.len() || writable.len() > bytes.len() {
            return self.refuse(format!("{} bytes at {offset:#x} pass the end of config space", bytes.len()));
        }
        self.put(at, bytes, 0);
        self.writable[at..at + writable.len()].copy_from_slice(writable);
        self
    }

    /// It can be reset alone.
    #[must_use]
    pub fn resettable(mut self) -> Self {
        self.has_reset = true;
        self
    }

    /// What was wrong with it, if anything.
    pub(super) fn checked(self) -> Result<Self> {
        match self.wrong {
            Some(why) => Err(Error::argument(format!("{}: {why}", self.name))),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_capabilities_lie_as_the_specification_has_it() {
        let identity = Identity::new("x", 0x1af4, 0x1041)
            .class(0x02_00_00)
            .bar(0, 0x1000)
            .bar64(2, 1 << 33)
            .express()
            .msi(4)
            .msix(3, 0, 0x800)
            .checked()
            .unwrap();
        let config = &identity.config;
        assert_eq!(config[..4], [0xf4, 0x1a, 0x41, 0x10]);
        assert_eq!(config[0x09..0x0c], [0, 0, 2]);
        assert_eq!(identity.writable[0x10..0x14], [0x00, 0xf0, 0xff, 0xff]);
        assert_eq!(config[0x18] & 0xf, 4);
        assert_eq!(identity.writable[0x18..0x20], [0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
        // The list: Express, MSI, MSI-X, the end.
        let mut at = usize::from(config[0x34]);
        for id in [0x10, 0x05, 0x11] {
            assert_eq!(config[at], id);
            at = config[at + 1].into();
        }
        assert_eq!(at, 0);
        let (_, msi) = identity.msi.unwrap();
        assert_eq!(config[msi + 2..msi + 4], [0x84, 0x00]);
        let (_, msix) = identity.msix.unwrap();
        assert_eq!(config[msix + 2..msix + 12], [2, 0, 0x00, 0x08, 0, 0, 0x30, 0x08, 0, 0]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let new = || Identity::new("x", 1, 1);
        for wrong in [
            new().bar(6, 16),
            new().bar(0, 24),
            new().bar(0, 8),
            new().bar(0, 1 << 30),
            new().bar(0, 16).bar(0, 16),
            new().bar64(5, 16),
            new().bar64(0, 16).bar(1, 16),
            new().bar(1, 16).bar64(0, 16),
            new().msi(3),
            new().msi(64),
            new().msi(1).msi(1),
            new().msix(1, 0, 0),
            new().bar(0, 0x1000).msix(256, 0, 0),
            new().bar(0, 0x1000).msix(0, 0, 0),
            new().express().express(),
            new().capability(9, &[0; 200], &[]),
            new().capability(9, &[0; 2], &[0; 3]),
            new().config(255, &[0; 2], &[]),
        ] {
            assert!(wrong.clone().checked().is_err(), "{wrong:?}");
        }
    }
}
