//! PCI config space: the command register and the capabilities that matter for being quiet.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification, chapter 7.5. Everything read here
//! comes from a device and is not believed further than it can be checked.

use noiommu_core::Errno;

use super::Backend;
use super::interrupt::InterruptKind;
use crate::{Error, ErrorKind, Result};

/// The command register.
pub(crate) const COMMAND: u16 = 0x04;
/// Memory space decoding.
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
/// Bus mastering.
pub(crate) const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Always 0.
pub(crate) const COMMAND_RESERVED: u16 = 0xf800;
/// Interrupt Disable: the line is masked.
const COMMAND_LINE_MASKED: u16 = 1 << 10;
/// In the Device Status register of the PCI Express capability.
pub(crate) const TRANSACTIONS_PENDING: u16 = 1 << 5;

const STATUS: u16 = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const HEADER_TYPE: u16 = 0x0e;
const BARS: u16 = 0x10;
/// The first capability of PCI Express config space.
const EXTENDED_CAPABILITIES: u16 = 0x100;
const CAPABILITIES: u16 = 0x34;
const CAPABILITY_POWER: u8 = 0x01;
const CAPABILITY_EXPRESS: u8 = 0x10;
const EXPRESS_DEVICE_STATUS: u16 = 0x0a;
const POWER_CONTROL: u16 = 0x04;
/// Which interrupt pin the device has; 0: none.
pub(super) const INTERRUPT_PIN: u16 = 0x3d;
/// The largest config space there is, of PCI Express.
const SIZE: usize = 4096;

/// The config space of a device.
#[derive(Clone, Copy)]
pub(super) struct ConfigSpace<'a>(pub(super) &'a dyn Backend);

impl ConfigSpace<'_> {
    pub(super) fn read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        self.check(offset, into.len())?;
        self.0.config_read(offset, into)
    }

    fn check(&self, offset: u16, length: usize) -> Result<()> {
        if usize::from(offset) + length > SIZE {
            return Err(Error::argument(format!(
                "{length} bytes at {offset:#x} pass the end of config space"
            )));
        }
        Ok(())
    }

    pub(super) fn read_u16(&self, offset: u16) -> Result<u16> {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn read_u32(&self, offset: u16) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Clears and sets bits of the command register and reads it back.
    pub(super) fn change_command(&self, clear: u16, set: u16) -> Result<u16> {
        let command = self.read_u16(COMMAND)?;
        let wanted = command & !clear | set;
        if wanted != command {
            self.0.config_write(COMMAND, &wanted.to_le_bytes())?;
        }
        self.read_u16(COMMAND)
    }

    /// Writes bytes, except that bus mastering and the decoding of memory stay as they are.
    pub(super) fn write_keeping_decoding(&self, offset: u16, from: &[u8]) -> Result<()> {
        self.check(offset, from.len())?;
        let mut bytes = from.to_vec();
        if let Some(byte) =
            usize::from(COMMAND).checked_sub(usize::from(offset)).and_then(|at| bytes.get_mut(at))
        {
            let mask = (COMMAND_BUS_MASTER | COMMAND_MEMORY) as u8;
            *byte = *byte & !mask | self.read_u16(COMMAND)? as u8 & mask;
        }
        self.0.config_write(offset, &bytes)
    }

    /// Whether the register of BAR `index` is that of a memory BAR, or of a part of one.
    pub(super) fn is_memory_bar(&self, index: u8) -> Result<bool> {
        // PCI Local Bus Specification 3.0, 6.2.5.1: bit 0 tells ports, bits 1 and 2 a BAR of 64 bits, which takes two registers.
        let mut at = 0;
        while at < index {
            let bar = self.read_u32(BARS + 4 * u16::from(at))?;
            at += if bar & 1 == 0 && bar & 6 == 4 { 2 } else { 1 };
        }
        Ok(at == index && self.read_u32(BARS + 4 * u16::from(index))? & 1 == 0)
    }

    /// Whether the device answers no more: all ones, which no vendor id is. VFIO answers for the ids itself, so bits of the
    /// command register that are 0 in every device are looked at too (PCI Local Bus Specification 3.0, 6.2.2).
    pub(super) fn is_gone(&self) -> Result<bool> {
        Ok(self.read_u16(0)? == u16::MAX || self.read_u16(COMMAND)? & COMMAND_RESERVED == COMMAND_RESERVED)
    }

    /// Whether the header is not that of an endpoint.
    pub(super) fn is_bridge(&self) -> Result<bool> {
        let mut header = [0];
        self.read(HEADER_TYPE, &mut header)?;
        Ok(header != [0xff] && header[0] & 0x7f != 0)
    }

    pub(super) fn gone(&self) -> Error {
        Error::new(ErrorKind::NoDevice, Errno::ENODEV, format!("{} does not answer any more", self.0.name()))
            .with_remedy("it was removed or lost power: open it again when it is back")
    }

    /// Where the first capability with this id is; `None`: nowhere.
    pub(super) fn capability(&self, id: u8) -> Result<Option<u16>> {
        Ok(self.capabilities(id)?.first().copied())
    }

    /// Where the capabilities with this id are, in the order of the list. A list that does not end is cut off.
    pub(super) fn capabilities(&self, id: u8) -> Result<Vec<u16>> {
        let mut found_at = Vec::new();
        if self.read_u16(STATUS)? & STATUS_CAPABILITIES == 0 {
            return Ok(found_at);
        }
        let mut at = self.read_u16(CAPABILITIES)? & 0xfc;
        // 48 capabilities of 4 bytes fill the space behind the header.
        for _ in 0..48 {
            if at < 0x40 || found_at.contains(&at) {
                break;
            }
            let [found, next] = self.read_u16(at)?.to_le_bytes();
            if found == id {
                found_at.push(at);
            }
            at = u16::from(next) & 0xfc;
        }
        Ok(found_at)
    }

    /// Where the extended capability with this id is; `None`: nowhere. A list that does not end is cut off.
    pub(super) fn extended_capability(&self, id: u16) -> Result<Option<u16>> {
        // A conventional device has none, and may answer anything behind its 256 bytes.
        if self.capability(CAPABILITY_EXPRESS)?.is_none() {
            return Ok(None);
        }
        let mut at = EXTENDED_CAPABILITIES;
        // So many headers of 4 bytes fill the space.
        for _ in 0..(SIZE as u16 - EXTENDED_CAPABILITIES) / 4 {
            // PCI Express Base Specification, 7.6.3: id in bits 0-15, version in 16-19, the next one in 20-31.
            let head = self.read_u32(at)?;
            if head == 0 || head == u32::MAX {
                break;
            }
            if head as u16 == id {
                return Ok(Some(at));
            }
            at = (head >> 20) as u16 & 0xffc;
            if at < EXTENDED_CAPABILITIES {
                break;
            }
        }
        Ok(None)
    }

    /// Where a register of 2 bytes of a capability is. One that claims to pass the end of its space is none.
    fn in_capability(&self, id: u8, register: u16) -> Result<Option<u16>> {
        let at = self.capability(id)?.map(|at| at + register);
        Ok(at.filter(|at| at + 2 <= EXTENDED_CAPABILITIES))
    }

    /// Where the Device Status register of PCI Express is.
    pub(super) fn express_status_offset(&self) -> Result<Option<u16>> {
        self.in_capability(CAPABILITY_EXPRESS, EXPRESS_DEVICE_STATUS)
    }

    /// Puts the device into D0 and reads back; without a power capability it is always there.
    pub(super) fn power_up(&self) -> Result<()> {
        let Some(control) = self.in_capability(CAPABILITY_POWER, POWER_CONTROL)? else { return Ok(()) };
        let value = self.read_u16(control)?;
        if value & 3 != 0 {
            self.0.config_write(control, &(value & !3).to_le_bytes())?;
            // PCI Power Management Specification 1.2, 5.6.1: 10 ms from D3hot to the first access.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        if self.read_u16(control)? & 3 != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                Errno::EIO,
                format!("{} does not leave its power-saving state", self.0.name()),
            )
            .with_remedy("write \"on\" to its power/control in sysfs and try again"));
        }
        Ok(())
    }
}

/// Masks the line in the command register, or lets it through; other kinds cannot be masked there.
pub(crate) fn mask_line(device: &dyn Backend, kind: InterruptKind, masked: bool) -> Result<()> {
    if kind != InterruptKind::Intx {
        return Err(Error::new(
            ErrorKind::Unsupported,
            Errno::EOPNOTSUPP,
            format!("{}: {} interrupts cannot be masked here", device.name(), kind.name()),
        )
        .with_remedy("mask them in the device's own registers"));
    }
    let (clear, set) = if masked { (0, COMMAND_LINE_MASKED) } else { (COMMAND_LINE_MASKED, 0) };
    ConfigSpace(device).change_command(clear, set)?;
    Ok(())
}
