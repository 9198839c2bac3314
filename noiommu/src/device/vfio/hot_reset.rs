//! Resets of the whole bus or slot that a device is on.

use std::os::fd::OwnedFd;

use noiommu_core::Errno;
use noiommu_uapi::vfio::pci::*;
use zerocopy::{FromBytes as _, FromZeros, IntoBytes as _};

use super::{failed, group};
use crate::ioctl::call_with;
use crate::{Error, ErrorKind, Result};

/// Resets the bus or slot; all devices on it must be open in this process.
pub(super) fn reset(device: &OwnedFd, name: &str) -> Result<()> {
    let (by_id, devices) = dependents(device, name)?;
    // Groups are held until the reset is done. Devices that were opened as cdevs prove by their iommufd that they are ours.
    let mut groups = Vec::new();
    let mut in_the_way = Vec::new();
    if by_id {
        in_the_way.extend(devices.iter().filter(|other| other.group_id as i32 == VFIO_PCI_DEVID_NOT_OWNED));
    } else {
        let mut numbers: Vec<u32> = devices.iter().map(|other| other.group_id).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for (number, opened) in numbers.iter().zip(group::opened(&numbers)) {
            match opened {
                Some(group) => groups.push(group),
                None => in_the_way.extend(devices.iter().filter(|other| other.group_id == *number)),
            }
        }
    }
    if !in_the_way.is_empty() {
        let names: Vec<String> = in_the_way.into_iter().map(address).collect();
        return Err(Error::new(
            ErrorKind::Busy,
            Errno::EBUSY,
            format!("a reset of the bus of {name} would reset {} too", names.join(", ")),
        )
        .with_remedy("open these in this process first"));
    }
    let descriptors: Vec<i32> = groups.iter().map(|group| group.descriptor()).collect();
    let argsz = (size_of::<VfioPciHotReset>() + size_of_val(&descriptors[..])) as u32;
    let head = VfioPciHotReset { argsz, flags: 0, count: descriptors.len() as u32 };
    let mut memory = head.as_bytes().to_vec();
    memory.extend_from_slice(descriptors.as_bytes());
    call_with(device, VFIO_DEVICE_PCI_HOT_RESET, memory.as_mut_slice())
        .map_err(|errno| failed("resetting the bus of", name, errno))?;
    Ok(())
}

/// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: the devices that would be reset, and whether they are told by ids rather than groups.
fn dependents(device: &OwnedFd, name: &str) -> Result<(bool, Vec<VfioPciDependentDevice>)> {
    let (head, each) = (size_of::<VfioPciHotResetInfo>(), size_of::<VfioPciDependentDevice>());
    let mut room = 8;
    loop {
        let mut memory = vec![0; head + room * each];
        let ask = VfioPciHotResetInfo { argsz: memory.len() as u32, ..VfioPciHotResetInfo::new_zeroed() };
        memory[..head].copy_from_slice(ask.as_bytes());
        let answer = call_with(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, memory.as_mut_slice());
        let (info, rest) =
            VfioPciHotResetInfo::read_from_prefix(&memory).map_err(|_| Error::from(Errno::EIO))?;
        match answer {
            Ok(_) => {
                let devices = rest.chunks_exact(each).take(info.count as usize);
                let devices = devices.filter_map(|bytes| VfioPciDependentDevice::read_from_bytes(bytes).ok());
                return Ok((info.flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0, devices.collect()));
            }
            // It tells how many there are.
            Err(Errno::ENOSPC) if info.count as usize > room => room = info.count as usize,
            Err(Errno::ENODEV | Errno::ENOTTY) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    Errno::ENOTTY,
                    format!("there is no bus or slot around {name} that can be reset"),
                ));
            }
            Err(errno) => return Err(failed("asking what a reset would reset besides", name, errno)),
        }
    }
}

/// Where a device is, as people write it.
fn address(device: &VfioPciDependentDevice) -> String {
    let VfioPciDependentDevice { segment, bus, devfn, .. } = *device;
    format!("{segment:04x}:{bus:02x}:{:02x}.{}", devfn >> 3, devfn & 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_sysfs_does() {
        let device = VfioPciDependentDevice { segment: 1, bus: 0x2a, devfn: 0xfb, ..FromZeros::new_zeroed() };
        assert_eq!(address(&device), "0001:2a:1f.3");
    }
}
