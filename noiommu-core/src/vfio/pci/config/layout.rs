//! Which capability each byte of config space belongs to, found by walking the device's lists once.
//!
//! Nothing that the device says is believed further than its config space reaches.

use super::permissions::{extended, id};
use super::{ConfigSpace, EXTENDED, HEADER_SIZE, NOBODY, STANDARD_SIZE};
use crate::Errno;
use crate::vfio::pci::Backend;

const STATUS: u16 = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const FIRST: u16 = 0x34;
/// No capability has fewer bytes.
const SMALLEST: u16 = 4;

/// A type of PCI Express functions: endpoints that are part of the root complex, and have no link.
const ROOT_COMPLEX_ENDPOINT: u32 = 9;

impl ConfigSpace {
    /// Walks both lists, fills the image, and takes what is hidden out of the lists.
    pub(super) fn lay_out(&mut self, backend: &impl Backend) -> Result<(), Errno> {
        self.owner_mut(0, HEADER_SIZE, 0);
        self.fill(backend, 0, HEADER_SIZE)?;
        if self.capabilities(backend)? {
            self.extended_capabilities(backend)?;
        }
        Ok(())
    }

    /// Tells whether there is an extended list.
    fn capabilities(&mut self, backend: &impl Backend) -> Result<bool, Errno> {
        if backend.config_read(STATUS, 2)? as u16 & STATUS_CAPABILITIES == 0 {
            return Ok(false);
        }
        let (mut has_extended, mut shown) = (false, false);
        let mut link = FIRST;
        let mut at = backend.config_read(FIRST, 1)? as u16;
        // A list that does not end is cut off after as many as there is room for.
        for _ in 0..(STANDARD_SIZE - HEADER_SIZE).wrapping_shr(2) {
            // Nor may a list claim a part of the header, whose virtual bits would be the caller's then.
            if at < HEADER_SIZE || at == STANDARD_SIZE.wrapping_sub(1) {
                break;
            }
            let which = backend.config_read(at, 1)? as u8;
            let next = backend.config_read(at.wrapping_add(1), 1)?;
            let length = self.capability_length(backend, which, at, &mut has_extended)?;
            if length == 0 {
                self.set_image(link, 1, next);
            } else {
                self.owner_mut(at, length, which);
                self.fill(backend, at, length)?;
                if which == id::POWER {
                    // Nothing wakes the system in the caller's name.
                    let control = self.image(at.wrapping_add(2), 2) & !0xf800;
                    self.set_image(at.wrapping_add(2), 2, control);
                    let state = self.image(at.wrapping_add(4), 2) & !0x8100;
                    self.set_image(at.wrapping_add(4), 2, state);
                }
                link = at.wrapping_add(1);
                shown = true;
            }
            at = next as u16;
        }
        if !shown {
            let status = self.image(STATUS, 2) & !u32::from(STATUS_CAPABILITIES);
            self.set_image(STATUS, 2, status);
        }
        Ok(has_extended)
    }

    /// The bytes of a capability; 0 hides it.
    fn capability_length(
        &mut self,
        backend: &impl Backend,
        which: u8,
        at: u16,
        has_extended: &mut bool,
    ) -> Result<u16, Errno> {
        let read = |offset: u16, width| self.device(backend, at.wrapping_add(offset), width);
        Ok(match which {
            id::POWER | id::VPD => 8,
            id::AGP | id::MSIX => 12,
            id::ADVANCED_FEATURES => 6,
            id::VENDOR => read(2, 1)? as u16,
            id::SATA => {
                if read(4, 1)? & 0xf == 0xf {
                    16
                } else {
                    8
                }
            }
            id::HYPERTRANSPORT => {
                if read(3, 1)? & 0xe0 != 0 {
                    24
                } else {
                    28
                }
            }
            id::MSI => {
                let flags = read(2, 2)?;
                let (wide, masks) = (flags & 0x80 != 0, flags & 0x100 != 0);
                self.first_msi(wide, masks);
                10 + if wide { 4 } else { 0 } + if masks { 10 } else { 0 }
            }
            id::PCI_X => {
                if read(2, 2)? & 0x3000 == 0 {
                    8
                } else {
                    *has_extended = self.has_extended(backend)?;
                    24
                }
            }
            id::EXPRESS => {
                let flags = read(2, 2)?;
                *has_extended = self.has_extended(backend)?;
                match (flags & 0xf, flags.wrapping_shr(4) & 0xf) {
                    (1, ROOT_COMPLEX_ENDPOINT) => 12,
                    (1, _) => 20,
                    (_, ROOT_COMPLEX_ENDPOINT) => 44,
                    _ => 52,
                }
            }
            _ => 0,
        })
    }

    fn has_extended(&self, backend: &impl Backend) -> Result<bool, Errno> {
        Ok(self.size() > STANDARD_SIZE && backend.config_read(EXTENDED, 4)? != 0)
    }

    fn extended_capabilities(&mut self, backend: &impl Backend) -> Result<(), Errno> {
        /// The link in the first 4 bytes of an extended capability.
        const LINK: u32 = 0xffc << 20;
        let mut last = None;
        let mut shown = false;
        let mut at = EXTENDED;
        for _ in 0..(self.size().saturating_sub(EXTENDED)).wrapping_shr(2) {
            if at < EXTENDED {
                break;
            }
            let header = backend.config_read(at, 4)?;
            let which = header as u16;
            let mut length = self.extended_length(backend, which, at)?;
            let hidden = length == 0;
            if hidden {
                if let Some(last) = last {
                    let skipping = self.image(last, 4) & !LINK | header & LINK;
                    self.set_image(last, 4, skipping);
                    at = (header & LINK).wrapping_shr(20) as u16;
                    continue;
                }
                // The list begins here, whatever this is: shown as nothing, with the link.
                length = SMALLEST;
            }
            self.owner_mut(at, length, which as u8);
            self.fill(backend, at, length)?;
            if hidden {
                let link = self.image(at, 4) & LINK;
                self.set_image(at, 4, link);
            } else {
                shown = true;
            }
            last = Some(at);
            at = (header & LINK).wrapping_shr(20) as u16;
        }
        if !shown {
            self.set_image(EXTENDED, 4, 0);
        }
        Ok(())
    }

    /// The bytes of an extended capability; 0 hides it.
    fn extended_length(&self, backend: &impl Backend, which: u16, at: u16) -> Result<u16, Errno> {
        let read = |offset: u16, width| self.device(backend, at.wrapping_add(offset), width);
        let bytes = match which {
            extended::ERRORS => 0x2c,
            extended::SERIAL_NUMBER => 12,
            extended::POWER_BUDGET | extended::PAGE_REQUEST => 16,
            extended::ROUTING_ID | extended::ADDRESS_TRANSLATION | extended::LATENCY => 8,
            extended::SR_IOV => 64,
            extended::MULTICAST => 40,
            extended::VENDOR | extended::DESIGNATED_VENDOR => read(4, 4)?.wrapping_shr(20),
            extended::VIRTUAL_CHANNEL | extended::VIRTUAL_CHANNEL_9 | extended::MULTI_FUNCTION_CHANNEL => {
                virtual_channel_length(read(4, 4)?, read(8, 4)?)
            }
            extended::ACCESS_CONTROL => match read(4, 1)? & 0x20 {
                0 => 8,
                // A vector of egress control bits, 256 where their number does not fit its 8 bits.
                _ => match read(5, 1)? {
                    0 => 8 + 32,
                    bits => (bits.wrapping_add(31) & !31).wrapping_shr(3).wrapping_add(8),
                },
            },
            extended::RESIZABLE_BAR => (read(8, 1)? & 0xe0).wrapping_shr(2).wrapping_add(4),
            extended::POWER_ALLOCATION => (read(4, 1)? & 0x1f).wrapping_add(16 + 1),
            extended::PROCESSING_HINTS => {
                let hints = read(4, 4)?;
                match hints & 0x600 {
                    // A table of steering tags in the capability.
                    0x200 => (hints & 0x07ff_0000).wrapping_shr(15).wrapping_add(12 + 2),
                    _ => 12,
                }
            }
            _ => 0,
        };
        Ok(bytes as u16)
    }

    /// Marks bytes as those of a capability; a later one takes bytes away from an earlier.
    fn owner_mut(&mut self, at: u16, length: u16, which: u8) {
        let range = usize::from(at)..usize::from(at).saturating_add(length.into()).min(self.owners.len());
        if let Some(bytes) = self.owners.get_mut(range) {
            bytes.fill(which);
        }
    }

    /// Copies the device's bytes into the image, in accesses as wide as they can be.
    fn fill(&mut self, backend: &impl Backend, at: u16, length: u16) -> Result<(), Errno> {
        let end = at.saturating_add(length).min(self.size());
        let mut at = at;
        while at < end {
            let width = super::width(at, end.wrapping_sub(at));
            let value = backend.config_read(at, width)?;
            self.set_image(at, width, value);
            at = at.wrapping_add(width.into());
        }
        Ok(())
    }

    /// The device's bytes; all ones past the end of its config space, as nobody answers there. In accesses that are
    /// aligned, wherever a capability has been put.
    fn device(&self, backend: &impl Backend, at: u16, width: u8) -> Result<u32, Errno> {
        let mut bytes = [0xff; 4];
        for (byte, at) in bytes.iter_mut().take(width.into()).zip(at..self.size()) {
            if at & u16::from(width).wrapping_sub(1) == 0 && at.saturating_add(width.into()) <= self.size() {
                return backend.config_read(at, width);
            }
            *byte = backend.config_read(at, 1)? as u8;
        }
        Ok(u32::from_le_bytes(bytes) & super::mask(width))
    }

    /// The start of the run of bytes of one capability that `at` lies in. Two capabilities of one kind that follow each
    /// other directly count as one, here as in the kernel.
    pub(super) fn start(&self, at: u16) -> u16 {
        let owner = self.owner(at);
        if owner == 0 || owner == NOBODY {
            return if owner == 0 { 0 } else { at };
        }
        let base = if at >= EXTENDED { EXTENDED } else { HEADER_SIZE };
        let mut start = at;
        while start > base && self.owner(start.wrapping_sub(1)) == owner {
            start = start.wrapping_sub(1);
        }
        start
    }
}

/// By its two capability registers: the number of channels, and the phases of the arbitration table.
fn virtual_channel_length(first: u32, second: u32) -> u32 {
    let phases = match second & 0xe {
        bits if bits & 8 != 0 => 128u32,
        bits if bits & 4 != 0 => 64,
        bits if bits & 2 != 0 => 32,
        _ => 0,
    };
    let registers = (first & 7).wrapping_add(1).wrapping_mul(12).wrapping_add(16);
    match phases {
        0 => registers,
        // 4 bits a phase, behind the registers at the next multiple of 16 bytes.
        _ => (registers.wrapping_add(15) & !15).wrapping_add(phases.wrapping_shr(1)),
    }
}
