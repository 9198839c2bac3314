//! Reading, writing and mapping regions.

use noiommu_uapi::vfio::pci::*;

use super::info::{REGION_MASK, REGION_SHIFT};
use super::{Backend, PciDevice, Space};
use crate::{Errno, UserMemory};

/// The largest transfer of one call, as of any file of the kernel: what fits an `int`, in whole pages of 4 KiB.
const LARGEST: u64 = 0x7fff_f000;
/// The ROM's index among the resources.
const ROM: u8 = 6;

/// What a mapping of a region is to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mappable {
    /// Which BAR.
    pub bar: u8,
    /// Where in the BAR it begins, a multiple of the page size.
    pub offset: u64,
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// A transfer between the caller's memory and registers.
struct Transfer<'a> {
    direction: Direction,
    user: &'a dyn UserMemory,
    /// In the caller's memory.
    address: u64,
    /// In the BAR.
    offset: u64,
    length: u64,
    /// Registers that are not there for the caller: they read as ones, and writes to them are dropped.
    hole: core::ops::Range<u64>,
    /// Bytes of the widest access.
    widest: u8,
}

impl<B: Backend> PciDevice<B> {
    /// `pread`: answers the bytes read.
    ///
    /// # Errors
    /// EINVAL for an offset in no region, or past a BAR's end; EFAULT, also past the end of config space; EIO for registers
    /// while the device's memory is off; ENOMEM for a ROM without a valid image.
    pub fn read(
        &mut self,
        user: &dyn UserMemory,
        address: u64,
        length: u64,
        offset: u64,
    ) -> Result<u64, Errno> {
        self.transfer(Direction::Read, user, address, length, offset)
    }

    /// `pwrite`: answers the bytes written.
    ///
    /// # Errors
    /// As for [`PciDevice::read`]; EINVAL for the ROM.
    pub fn write(
        &mut self,
        user: &dyn UserMemory,
        address: u64,
        length: u64,
        offset: u64,
    ) -> Result<u64, Errno> {
        self.transfer(Direction::Write, user, address, length, offset)
    }

    fn transfer(
        &mut self,
        direction: Direction,
        user: &dyn UserMemory,
        address: u64,
        length: u64,
        offset: u64,
    ) -> Result<u64, Errno> {
        // Offsets of files are signed.
        if offset.checked_add(length).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Errno::EINVAL);
        }
        let length = length.min(LARGEST);
        if length == 0 {
            return Ok(0);
        }
        let within = offset & REGION_MASK;
        match (u32::try_from(offset.wrapping_shr(REGION_SHIFT)).unwrap_or(u32::MAX), direction) {
            (VFIO_PCI_CONFIG_REGION_INDEX, Direction::Read) => {
                self.config_read(user, address, length, within)?;
                Ok(length)
            }
            (VFIO_PCI_CONFIG_REGION_INDEX, Direction::Write) => {
                self.config_write(user, address, length, within)?;
                Ok(length)
            }
            (bar @ VFIO_PCI_BAR0_REGION_INDEX..=VFIO_PCI_BAR5_REGION_INDEX, _) => self.bar(
                bar as u8,
                Transfer {
                    direction,
                    user,
                    address,
                    offset: within,
                    length,
                    hole: self.hole(bar as u8),
                    widest: 8,
                },
            ),
            (VFIO_PCI_ROM_REGION_INDEX, Direction::Read) => {
                let hole = self.backend.rom_size().unwrap_or(0)..self.backend.resource(ROM).size;
                self.bar(ROM, Transfer { direction, user, address, offset: within, length, hole, widest: 4 })
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// The MSI-X table, where the BAR has it.
    pub(super) fn hole(&self, bar: u8) -> core::ops::Range<u64> {
        match self.msix_table {
            Some(table) if table.bar == bar => table.offset..table.offset.saturating_add(table.size),
            _ => 0..0,
        }
    }

    fn bar(&self, bar: u8, mut transfer: Transfer<'_>) -> Result<u64, Errno> {
        let resource = self.backend.resource(bar);
        if resource.start == 0 || transfer.offset >= resource.size {
            return Err(Errno::EINVAL);
        }
        transfer.length = transfer.length.min(resource.size.wrapping_sub(transfer.offset));
        if bar == ROM && self.backend.rom_size().is_none() {
            return Err(Errno::ENOMEM);
        }
        let total = transfer.length;
        while transfer.length != 0 {
            let done = self.one_access(bar, resource.space, &transfer)?;
            transfer.length = transfer.length.saturating_sub(done);
            transfer.offset = transfer.offset.wrapping_add(done);
            transfer.address = transfer.address.wrapping_add(done);
        }
        Ok(total)
    }

    /// The widest aligned access that fits, or a run of the hole; answers its bytes.
    fn one_access(&self, bar: u8, space: Space, transfer: &Transfer<'_>) -> Result<u64, Errno> {
        let Transfer { user, address, offset, length, ref hole, .. } = *transfer;
        let room = if offset < hole.start {
            length.min(hole.start.wrapping_sub(offset))
        } else if offset >= hole.end {
            length
        } else {
            0
        };
        if room == 0 {
            let run = length.min(hole.end.wrapping_sub(offset));
            if transfer.direction == Direction::Read {
                fill_with_ones(user, address, run)?;
            }
            return Ok(run);
        }
        let width = [8u8, 4, 2]
            .into_iter()
            .find(|&width| {
                width <= transfer.widest
                    && u64::from(width) <= room
                    && offset & u64::from(width).wrapping_sub(1) == 0
            })
            .unwrap_or(1);
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..width.into()).unwrap_or_default();
        match transfer.direction {
            Direction::Read => {
                self.check_memory(space)?;
                let value = match bar {
                    ROM => self.backend.rom_read(offset, width)?.into(),
                    _ => self.backend.register_read(bar, offset, width)?,
                };
                for (byte, value) in part.iter_mut().zip(value.to_le_bytes()) {
                    *byte = value;
                }
                user.write(address, part)?;
            }
            Direction::Write => {
                user.read(address, part)?;
                self.check_memory(space)?;
                self.backend.register_write(bar, offset, width, u64::from_le_bytes(bytes))?;
            }
        }
        Ok(width.into())
    }

    /// EIO for memory while the caller has it off, or the device asleep.
    pub(super) fn check_memory(&self, space: Space) -> Result<(), Errno> {
        if space == Space::Memory && !self.memory_enabled() { Err(Errno::EIO) } else { Ok(()) }
    }

    /// What `mmap` of `length` bytes at `offset` shows.
    ///
    /// # Errors
    /// EINVAL for private mappings (`shared` false), for what is no BAR that can be mapped, and past its last page.
    pub fn map(&self, offset: u64, length: u64, shared: bool) -> Result<Mappable, Errno> {
        let page = self.backend.page_size();
        let bar = u8::try_from(offset.wrapping_shr(REGION_SHIFT)).map_err(|_| Errno::EINVAL)?;
        if !shared || bar >= ROM {
            return Err(Errno::EINVAL);
        }
        let resource = self.backend.resource(bar);
        let round =
            |bytes: u64| bytes.checked_add(page.wrapping_sub(1)).map(|end| end & !page.wrapping_sub(1));
        let within = offset & REGION_MASK;
        let (end, size) = (round(within.saturating_add(length)), round(resource.size));
        match (end, size) {
            (Some(end), Some(size)) if resource.mappable && resource.size != 0 && end <= size => {
                Ok(Mappable { bar, offset: within })
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

fn fill_with_ones(user: &dyn UserMemory, address: u64, length: u64) -> Result<(), Errno> {
    let mut done = 0u64;
    while done < length {
        let part = length.wrapping_sub(done).min(64);
        user.write(address.wrapping_add(done), [0xff; 64].get(..part as usize).unwrap_or_default())?;
        done = done.wrapping_add(part);
    }
    Ok(())
}
