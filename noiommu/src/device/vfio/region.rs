//! Regions of a device's file: config space and BARs.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use noiommu_core::Errno;
use noiommu_uapi::vfio::device::*;
use rustix::io::retry_on_intr;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::super::bar::Registers;
use super::super::sysfs::MappedBar;
use crate::ioctl::call_with;
use crate::{Error, Result};

/// Where a region is in the file, and what of it can be mapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Region {
    pub(super) offset: u64,
    /// Bytes; 0: there is none.
    pub(super) size: u64,
    /// The parts that can be mapped, (offset in the region, bytes), in order.
    parts: Vec<(u64, u64)>,
}

impl Region {
    /// VFIO_DEVICE_GET_REGION_INFO.
    pub(super) fn of(device: &OwnedFd, index: u32) -> Result<Self, Errno> {
        let mut bytes = vec![0; size_of::<VfioRegionInfo>()];
        loop {
            let argsz = bytes.len() as u32;
            let ask = VfioRegionInfo { argsz, index, ..VfioRegionInfo::new_zeroed() };
            bytes[..size_of::<VfioRegionInfo>()].copy_from_slice(ask.as_bytes());
            call_with(device, VFIO_DEVICE_GET_REGION_INFO, bytes.as_mut_slice())?;
            let (info, _) = VfioRegionInfo::read_from_prefix(&bytes).map_err(|_| Errno::EIO)?;
            // With capabilities it is longer, and tells so.
            if info.argsz <= argsz {
                return Ok(Self { offset: info.offset, size: info.size, parts: parts(&info, &bytes) });
            }
            bytes = vec![0; info.argsz as usize];
        }
    }
}

/// The parts of a region that can be mapped: all of it, or those of the sparse capability.
fn parts(info: &VfioRegionInfo, bytes: &[u8]) -> Vec<(u64, u64)> {
    if info.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
        return Vec::new();
    }
    let mut at = if info.flags & VFIO_REGION_INFO_FLAG_CAPS == 0 { 0 } else { info.cap_offset as usize };
    while at > 0
        && let Some((head, rest)) =
            bytes.get(at..).and_then(|bytes| VfioRegionInfoCapSparseMmap::read_from_prefix(bytes).ok())
    {
        if head.header.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let areas = rest.chunks_exact(size_of::<VfioRegionSparseMmapArea>()).take(head.nr_areas as usize);
            let areas = areas.filter_map(|bytes| VfioRegionSparseMmapArea::read_from_bytes(bytes).ok());
            // A part that passes the end of the region is none.
            let inside = |area: &VfioRegionSparseMmapArea| {
                area.size > 0 && area.offset.checked_add(area.size).is_some_and(|end| end <= info.size)
            };
            return areas.filter(inside).map(|area| (area.offset, area.size)).collect();
        }
        let next = head.header.next as usize;
        // Offsets only grow, so the chain ends.
        at = if next > at { next } else { 0 };
    }
    vec![(0, info.size)]
}

/// The registers of a BAR: mapped where that is allowed, read and written through the file elsewhere.
pub(super) struct RegionBar {
    mapped: Vec<(u64, MappedBar)>,
    device: Arc<OwnedFd>,
    offset: u64,
    size: u64,
    name: String,
}

impl RegionBar {
    pub(super) fn new(device: &Arc<OwnedFd>, region: &Region, name: &str) -> Result<Self> {
        let mut mapped = Vec::new();
        for &(offset, size) in &region.parts {
            let part = MappedBar::of_file(device, region.offset + offset, 0, size);
            mapped
                .push((offset, part.map_err(|error| Error::system(format_args!("mapping {name}"), error))?));
        }
        let (offset, size) = (region.offset, region.size);
        Ok(Self { mapped, device: device.clone(), offset, size, name: name.to_owned() })
    }

    /// The mapped part that an access lies in, and where in it.
    fn part(&self, offset: u64, width: u8) -> Option<(&MappedBar, u64)> {
        self.mapped.iter().find_map(|(start, part)| {
            let inside = offset.checked_sub(*start)?;
            (inside + u64::from(width) <= part.size()).then_some((part, inside))
        })
    }

    fn failed(&self, doing: &str, outcome: rustix::io::Result<usize>) -> Error {
        let error = outcome.err().map_or(std::io::ErrorKind::UnexpectedEof.into(), std::io::Error::from);
        Error::system(format_args!("{doing} {}", self.name), error)
    }
}

impl Registers for RegionBar {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, width: u8) -> Result<u64> {
        if let Some((part, inside)) = self.part(offset, width) {
            return part.read(inside, width);
        }
        let mut bytes = [0; 8];
        let into = &mut bytes[..usize::from(width).min(8)];
        match retry_on_intr(|| rustix::io::pread(&*self.device, &mut *into, self.offset + offset)) {
            Ok(length) if length == into.len() => Ok(u64::from_le_bytes(bytes)),
            outcome => Err(self.failed("reading", outcome)),
        }
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Result<()> {
        if let Some((part, inside)) = self.part(offset, width) {
            return part.write(inside, width, value);
        }
        let bytes = value.to_le_bytes();
        let from = &bytes[..usize::from(width).min(8)];
        match retry_on_intr(|| rustix::io::pwrite(&*self.device, from, self.offset + offset)) {
            Ok(length) if length == from.len() => Ok(()),
            outcome => Err(self.failed("writing", outcome)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32, cap_offset: u32) -> VfioRegionInfo {
        VfioRegionInfo { flags, cap_offset, size: 0x4000, ..VfioRegionInfo::new_zeroed() }
    }

    fn capability(id: u16, next: u32, areas: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = [id.to_ne_bytes(), 1u16.to_ne_bytes()].concat();
        bytes.extend_from_slice(&next.to_ne_bytes());
        bytes.extend_from_slice(&(areas.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for (offset, size) in areas {
            bytes.extend_from_slice(&offset.to_ne_bytes());
            bytes.extend_from_slice(&size.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn what_can_be_mapped() {
        let (map, caps) = (VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_CAPS);
        let whole = vec![(0, 0x4000)];
        let head = info(map | caps, 32);
        let with = |capabilities: &[u8]| [head.as_bytes(), capabilities].concat();
        assert_eq!(parts(&info(0, 0), &[]), vec![]);
        assert_eq!(parts(&info(map, 0), &[]), whole);
        // The MSI-X table may be mapped: a capability of 8 bytes at the end.
        assert_eq!(parts(&head, &with(&[3, 0, 1, 0, 0, 0, 0, 0])), whole);
        // Around the table, behind another capability.
        let areas = [(0, 0x1000), (0x2000, 0x2000)];
        let sparse = capability(1, 0, &areas);
        let behind = [capability(2, 48, &[]), sparse.clone()].concat();
        for bytes in [with(&sparse), with(&behind)] {
            assert_eq!(parts(&head, &bytes), areas);
        }
        // Nothing of it; parts past the end; a chain in a circle; a list that is cut off.
        assert_eq!(parts(&head, &with(&capability(1, 0, &[]))), vec![]);
        let wrong = [(0x3000, 0x2000), (u64::MAX, 2), (0, 0), (0x1000, 0x1000)];
        assert_eq!(parts(&head, &with(&capability(1, 0, &wrong))), [(0x1000, 0x1000)]);
        assert_eq!(parts(&head, &with(&capability(2, 32, &[]))), whole);
        for length in 0..with(&behind).len() {
            let _ = parts(&head, &with(&behind)[..length]);
        }
    }
}
