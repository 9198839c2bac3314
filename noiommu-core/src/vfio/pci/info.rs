//! What the device is, and its regions.

use noiommu_uapi::vfio::VfioInfoCapHeader;
use noiommu_uapi::vfio::device::*;
use noiommu_uapi::vfio::pci::*;
use zerocopy::IntoBytes;

use super::{Backend, PciDevice};
use crate::vfio::argument;
use crate::{Errno, UserMemory};

/// A region begins at its index times this in the file.
pub(super) const REGION_SHIFT: u32 = 40;
/// What of an offset in the file is an offset in the region.
pub(super) const REGION_MASK: u64 = (1 << REGION_SHIFT) - 1;
/// Bytes of the info structures, as this kernel knows them.
const DEVICE_INFO: u32 = size_of::<VfioDeviceInfo>() as u32;
const REGION_INFO: u32 = size_of::<VfioRegionInfo>() as u32;

impl<B: Backend> PciDevice<B> {
    pub(super) fn get_info(&self, user: &dyn UserMemory, argument: u64) -> Result<i64, Errno> {
        /// Up to `num_irqs`: what was there before capabilities were.
        const REQUIRED: u32 = 16;
        let mut info: VfioDeviceInfo = argument::read(user, argument, REQUIRED as usize)?;
        if info.argsz < REQUIRED {
            return Err(Errno::EINVAL);
        }
        let length = info.argsz as usize;
        info.flags = VFIO_DEVICE_FLAGS_PCI | if self.can_reset { VFIO_DEVICE_FLAGS_RESET } else { 0 };
        info.num_regions = VFIO_PCI_NUM_REGIONS;
        info.num_irqs = VFIO_PCI_NUM_IRQS;
        let atomic = self.backend.atomic_operations();
        if atomic != 0 {
            let header = header(VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP);
            let capability = VfioDeviceInfoCapPciAtomicComp { header, flags: atomic, reserved: 0 };
            info.flags |= VFIO_DEVICE_FLAGS_CAPS;
            info.cap_offset = chain(user, argument, &mut info.argsz, DEVICE_INFO, capability.as_bytes())?;
        }
        argument::write(user, argument, &info, length)?;
        Ok(0)
    }

    pub(super) fn get_region_info(&self, user: &dyn UserMemory, argument: u64) -> Result<i64, Errno> {
        let mut info: VfioRegionInfo = argument::read(user, argument, REGION_INFO as usize)?;
        if info.argsz < REGION_INFO {
            return Err(Errno::EINVAL);
        }
        let read_write = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        (info.size, info.flags) = match info.index {
            VFIO_PCI_BAR0_REGION_INDEX..=VFIO_PCI_BAR5_REGION_INDEX => {
                let resource = self.backend.resource(info.index as u8);
                let mappable = resource.size != 0 && resource.mappable;
                let has_table =
                    mappable && self.msix_table.is_some_and(|table| u32::from(table.bar) == info.index);
                (
                    resource.size,
                    (if resource.size != 0 { read_write } else { 0 })
                        | (if mappable { VFIO_REGION_INFO_FLAG_MMAP } else { 0 })
                        | (if has_table { VFIO_REGION_INFO_FLAG_CAPS } else { 0 }),
                )
            }
            // The size of the BAR, and nothing where no image in it is valid.
            VFIO_PCI_ROM_REGION_INDEX => match self.backend.rom_size() {
                Some(_) => (self.backend.resource(6).size, VFIO_REGION_INFO_FLAG_READ),
                None => (0, 0),
            },
            VFIO_PCI_CONFIG_REGION_INDEX => (self.config.size().into(), read_write),
            // No legacy VGA, and no regions of certain devices.
            _ => return Err(Errno::EINVAL),
        };
        info.offset = u64::from(info.index).wrapping_shl(REGION_SHIFT);
        if info.flags & VFIO_REGION_INFO_FLAG_CAPS != 0 {
            let capability = header(VFIO_REGION_INFO_CAP_MSIX_MAPPABLE);
            info.cap_offset = chain(user, argument, &mut info.argsz, REGION_INFO, capability.as_bytes())?;
        }
        argument::write(user, argument, &info, REGION_INFO as usize)?;
        Ok(0)
    }
}

fn header(id: u16) -> VfioInfoCapHeader {
    VfioInfoCapHeader { id, version: 1, next: 0 }
}

/// Writes the one capability behind a structure of `size` bytes and answers where it is; where it does not fit, answers 0 and
/// tells in `argsz` what would.
fn chain(
    user: &dyn UserMemory,
    argument: u64,
    argsz: &mut u32,
    size: u32,
    capability: &[u8],
) -> Result<u32, Errno> {
    let needed = size.wrapping_add(capability.len() as u32);
    if *argsz < needed {
        *argsz = needed;
        return Ok(0);
    }
    user.write(argument.wrapping_add(size.into()), capability)?;
    Ok(size)
}
