//! Config space as the caller sees it: an image of what is virtual, over the device's own.

mod effects;
mod layout;
mod permissions;

use self::permissions::{Access, HEADER, Row};
use super::{Backend, PciDevice, Space};
use crate::{Errno, TryVec, UserMemory};

/// Bytes of the header.
const HEADER_SIZE: u16 = 0x40;
/// Bytes of the config space of conventional PCI.
const STANDARD_SIZE: u16 = 0x100;
/// Where the extended capabilities begin.
const EXTENDED: u16 = 0x100;
/// The owner of bytes outside of the header and all capabilities: id 0 is the header, and ids end well below this.
const NOBODY: u8 = 0xff;

pub(super) const COMMAND: u16 = 0x04;
pub(super) const COMMAND_PORTS: u16 = 1 << 0;
pub(super) const COMMAND_MEMORY: u16 = 1 << 1;
pub(super) const COMMAND_MASTER: u16 = 1 << 2;
pub(super) const COMMAND_LINE_MASKED: u16 = 1 << 10;
/// Where BAR 0 is; the others follow.
pub(super) const BARS: u16 = 0x10;
pub(super) const ROM: u16 = 0x30;
pub(super) const PIN: u16 = 0x3d;
pub(super) const CAPABILITY_POWER: u8 = permissions::id::POWER;
pub(super) const CAPABILITY_MSI: u8 = permissions::id::MSI;
pub(super) const CAPABILITY_EXPRESS: u8 = permissions::id::EXPRESS;
pub(super) const CAPABILITY_MSIX: u8 = permissions::id::MSIX;

/// Config space of an open device.
pub(super) struct ConfigSpace {
    /// What the caller sees where it does not see the device.
    image: TryVec<u8>,
    /// The id of the capability that each byte belongs to.
    owners: TryVec<u8>,
    /// How MSI is accessed, by the flags of the first such capability.
    msi: Option<&'static [Row]>,
}

impl ConfigSpace {
    /// Looks at the device. `line`: whether its interrupt line arrives; where not, it has no pin.
    pub(super) fn new(backend: &impl Backend, line: bool) -> Result<Self, Errno> {
        let mut config = Self { image: TryVec::new(), owners: TryVec::new(), msi: None };
        for _ in 0..backend.config_size() {
            config.image.try_push(0)?;
            config.owners.try_push(NOBODY)?;
        }
        config.lay_out(backend)?;
        if !line {
            config.set_image(PIN, 1, 0);
        }
        Ok(config)
    }

    pub(super) fn size(&self) -> u16 {
        self.image.len() as u16
    }

    fn owner(&self, at: u16) -> u8 {
        self.owners.get(usize::from(at)).copied().unwrap_or(NOBODY)
    }

    /// The image's bytes as a number.
    pub(super) fn image(&self, at: u16, width: u8) -> u32 {
        let mut bytes = [0; 4];
        for (byte, at) in bytes.iter_mut().take(width.into()).zip(at..) {
            *byte = self.image.get(usize::from(at)).copied().unwrap_or(0);
        }
        u32::from_le_bytes(bytes)
    }

    pub(super) fn set_image(&mut self, at: u16, width: u8, value: u32) {
        for (byte, at) in value.to_le_bytes().into_iter().take(width.into()).zip(at..) {
            if let Some(place) = self.image.get_mut(usize::from(at)) {
                *place = byte;
            }
        }
    }

    /// The command register as the caller has set it.
    pub(super) fn command(&self) -> u16 {
        self.image(COMMAND, 2) as u16
    }

    /// Where the first capability of this kind is; hidden ones are not found.
    pub(super) fn find(&self, which: u8) -> Option<u16> {
        (HEADER_SIZE..STANDARD_SIZE).find(|&at| self.owner(at) == which)
    }

    /// Where the run of bytes of one capability that begins at `start` ends.
    pub(super) fn end(&self, start: u16) -> u16 {
        let owner = self.owner(start);
        (start..self.size()).find(|&at| self.owner(at) != owner).unwrap_or(self.size())
    }

    fn first_msi(&mut self, wide: bool, masks: bool) {
        self.msi.get_or_insert(permissions::msi(wide, masks));
    }

    fn access(&self, at: u16) -> Access {
        match self.owner(at) {
            NOBODY => Access::Device,
            which if at >= EXTENDED => permissions::extended_capability(which),
            0 => Access::Bits(HEADER),
            permissions::id::MSI => Access::Bits(self.msi.unwrap_or_default()),
            which => permissions::capability(which),
        }
    }

    /// Bytes of the next access at `at` when `left` are wanted: aligned, and of one capability.
    fn chunk(&self, at: u16, left: u64) -> u8 {
        let owner = self.owner(at);
        let mut same = 1u16;
        while at.wrapping_add(same) & 3 != 0 && self.owner(at.wrapping_add(same)) == owner {
            same = same.wrapping_add(1);
        }
        width(at, left.min(same.into()) as u16)
    }

    /// The (virtual, writable) bits of an access at `offset` in a capability.
    fn bits(rows: &[Row], offset: u16, width: u8) -> (u32, u32) {
        let (mut virtual_bits, mut writable) = ([0; 4], [0; 4]);
        for ((v, w), offset) in virtual_bits.iter_mut().zip(&mut writable).take(width.into()).zip(offset..) {
            (*v, *w) = permissions::byte(rows, offset);
        }
        (u32::from_le_bytes(virtual_bits), u32::from_le_bytes(writable))
    }

    fn read(&mut self, backend: &impl Backend, at: u16, width: u8) -> Result<u32, Errno> {
        let offset = at.wrapping_sub(self.start(at));
        let virtual_bits = match self.access(at) {
            Access::Device => 0,
            Access::Bits(rows) => {
                if is_bar(at) {
                    self.size_bars(backend);
                }
                Self::bits(rows, offset, width).0
            }
            // The links: the first 4 bytes of an extended capability, the first 2 of any other.
            Access::ReadOnly | Access::WriteThrough if at >= EXTENDED => {
                if offset < 4 {
                    u32::MAX
                } else {
                    0
                }
            }
            Access::ReadOnly | Access::WriteThrough => match offset {
                0 => 0xffff,
                1 => 0xff,
                _ => 0,
            },
        } & mask(width);
        let image = self.image(at, width) & virtual_bits;
        if virtual_bits == mask(width) {
            return Ok(image);
        }
        Ok(image | backend.config_read(at, width)? & !virtual_bits)
    }

    /// Writes what may be written, to the image and to the device.
    fn write(&mut self, backend: &impl Backend, at: u16, width: u8, value: u32) -> Result<(), Errno> {
        let rows = match self.access(at) {
            Access::ReadOnly => return Ok(()),
            Access::WriteThrough | Access::Device => return backend.config_write(at, width, value),
            Access::Bits(rows) => rows,
        };
        let offset = at.wrapping_sub(self.start(at));
        let (virtual_bits, writable) = Self::bits(rows, offset, width);
        let here = virtual_bits & writable;
        if here != 0 {
            let image = self.image(at, width) & !here | value & here;
            self.set_image(at, width, image);
        }
        let there = writable & !virtual_bits;
        if there != 0 {
            let device = backend.config_read(at, width)?;
            backend.config_write(at, width, device & !there | value & there)?;
        }
        Ok(())
    }

    /// Makes the BARs in the image look like a device's: address bits below the size are zero, the lowest tell the kind.
    /// A caller that writes all ones learns the size.
    fn size_bars(&mut self, backend: &impl Backend) {
        let mut index = 0u8;
        while index < 6 {
            let at = BARS.wrapping_add(u16::from(index).wrapping_mul(4));
            let resource = backend.resource(index);
            index = index.wrapping_add(1);
            if resource.start == 0 {
                self.set_image(at, 4, 0);
                continue;
            }
            let mask = !resource.size.wrapping_sub(1);
            let kind = match resource.space {
                Space::Ports => 1,
                Space::Memory => {
                    (if resource.wide { 4 } else { 0 }) | (if resource.prefetchable { 8 } else { 0 })
                }
            };
            let bar = self.image(at, 4) & mask as u32 | kind;
            self.set_image(at, 4, bar);
            // By this bit, as a reader takes it; in a BAR of 4 ports it is an address bit, and misread by the kernel too.
            if bar & 4 != 0 && index < 6 {
                let upper = at.wrapping_add(4);
                self.set_image(upper, 4, self.image(upper, 4) & mask.wrapping_shr(32) as u32);
                index = index.wrapping_add(1);
            }
        }
        let rom = backend.resource(6);
        let bar = match rom.start {
            0 => 0,
            // With the enable bit.
            _ => self.image(ROM, 4) & (!rom.size.wrapping_sub(1) as u32 | 1),
        };
        self.set_image(ROM, 4, bar);
    }
}

fn is_bar(at: u16) -> bool {
    (BARS..BARS.wrapping_add(24)).contains(&at) || (ROM..ROM.wrapping_add(4)).contains(&at)
}

/// The widest access at `at` of at most `left` bytes.
fn width(at: u16, left: u16) -> u8 {
    if left >= 4 && at & 3 == 0 {
        4
    } else if left >= 2 && at & 1 == 0 {
        2
    } else {
        1
    }
}

/// The bits of an access.
fn mask(width: u8) -> u32 {
    match width {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}

/// Reads a register of a capability, wherever the device has put it.
///
/// # Errors
/// EINVAL where that is misaligned or past the end; the device's.
pub(super) fn read_register(backend: &impl Backend, at: u16, width: u8) -> Result<u32, Errno> {
    check_register(backend, at, width)?;
    backend.config_read(at, width)
}

/// Writes a register of a capability, as [`read_register`].
pub(super) fn write_register(backend: &impl Backend, at: u16, width: u8, value: u32) -> Result<(), Errno> {
    check_register(backend, at, width)?;
    backend.config_write(at, width, value)
}

fn check_register(backend: &impl Backend, at: u16, width: u8) -> Result<(), Errno> {
    let width = u16::from(width);
    match at.checked_add(width) {
        Some(end) if end <= backend.config_size() && at & width.wrapping_sub(1) == 0 => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

impl<B: Backend> PciDevice<B> {
    /// Checks a range of config space: all of it or EFAULT.
    fn config_range(&self, offset: u64, length: u64) -> Result<u16, Errno> {
        let size = u64::from(self.config.size());
        match offset.checked_add(length) {
            Some(end) if end <= size && offset < size => Ok(offset as u16),
            _ => Err(Errno::EFAULT),
        }
    }

    /// Reads config space into the caller's memory.
    ///
    /// # Errors
    /// EFAULT past its end, too; the device's. Bytes before may have been written.
    pub(super) fn config_read(
        &mut self,
        user: &dyn UserMemory,
        address: u64,
        length: u64,
        offset: u64,
    ) -> Result<(), Errno> {
        let start = self.config_range(offset, length)?;
        let mut done = 0;
        while done < length {
            let at = start.wrapping_add(done as u16);
            let width = self.config.chunk(at, length.wrapping_sub(done));
            let bytes = self.config.read(&self.backend, at, width)?.to_le_bytes();
            let bytes = bytes.get(..width.into()).unwrap_or_default();
            user.write(address.wrapping_add(done), bytes)?;
            done = done.wrapping_add(width.into());
        }
        Ok(())
    }

    /// Writes config space from the caller's memory.
    ///
    /// # Errors
    /// As for [`PciDevice::config_read`]; what comes before has been written.
    pub(super) fn config_write(
        &mut self,
        user: &dyn UserMemory,
        address: u64,
        length: u64,
        offset: u64,
    ) -> Result<(), Errno> {
        let start = self.config_range(offset, length)?;
        let mut done = 0;
        while done < length {
            let at = start.wrapping_add(done as u16);
            let width = self.config.chunk(at, length.wrapping_sub(done));
            // What cannot be written is not even read.
            if !matches!(self.config.access(at), Access::ReadOnly) {
                let mut bytes = [0; 4];
                let room = bytes.get_mut(..width.into()).unwrap_or_default();
                user.read(address.wrapping_add(done), room)?;
                self.config_change(at, width, u32::from_le_bytes(bytes))?;
            }
            done = done.wrapping_add(width.into());
        }
        Ok(())
    }
}
