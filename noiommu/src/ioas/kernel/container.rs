//! A container of VFIO's groups with an IOMMU behind it (type 1, second version).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use noiommu_core::table::format::Access;
use noiommu_core::{Iova, IovaRange};
use noiommu_uapi::vfio::container::*;
use zerocopy::FromBytes as _;

use super::{KernelDomain, Views, length, not_mapped};
use crate::ioctl::call_with;
use crate::memory::Backing;
use crate::{Error, Result};

/// A container that an IOAS maps into, for as long as devices of it are attached.
pub(in crate::ioas) struct Container {
    file: Arc<OwnedFd>,
    /// Attached devices.
    pub(in crate::ioas) devices: usize,
    views: Views,
}

impl Container {
    pub(in crate::ioas) fn new(file: Arc<OwnedFd>) -> Self {
        Self { file, devices: 1, views: Views::default() }
    }

    pub(in crate::ioas) fn is(&self, file: &Arc<OwnedFd>) -> bool {
        Arc::ptr_eq(&self.file, file)
    }
}

impl KernelDomain for Container {
    fn map(&mut self, range: IovaRange, backing: &Backing, offset: u64, access: Access) -> Result<()> {
        let vaddr = self.views.address(range, backing, offset, length(range))?;
        let mut call = VfioIommuType1DmaMap {
            argsz: size_of::<VfioIommuType1DmaMap>() as u32,
            flags: flags(access),
            vaddr,
            iova: range.first().0,
            size: length(range),
        };
        call_with(&self.file, VFIO_IOMMU_MAP_DMA, &mut call).map_err(|errno| {
            self.views.forget(range);
            not_mapped("the VFIO container", range, Some(vaddr), errno)
        })?;
        Ok(())
    }

    fn unmap(&mut self, range: IovaRange) {
        let mut call = VfioIommuType1DmaUnmap {
            argsz: size_of::<VfioIommuType1DmaUnmap>() as u32,
            flags: 0,
            iova: range.first().0,
            size: length(range),
        };
        let answer = call_with(&self.file, VFIO_IOMMU_UNMAP_DMA, &mut call);
        if answer.is_err() || call.size != length(range) {
            tracing::error!(?range, ?answer, "a mapping of the kit was gone from the VFIO container");
        }
        self.views.forget(range);
    }

    fn usable(&self) -> Result<Vec<IovaRange>> {
        let mut bytes = vec![0u8; size_of::<VfioIommuType1Info>()];
        loop {
            let argsz = bytes.len() as u32;
            bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
            call_with(&self.file, VFIO_IOMMU_GET_INFO, bytes.as_mut_slice()).map_err(|errno| {
                Error::system("VFIO_IOMMU_GET_INFO", std::io::Error::from_raw_os_error(errno.raw()))
            })?;
            let wanted = u32::from_ne_bytes(bytes[..4].try_into().unwrap_or_default());
            if wanted <= argsz {
                return Ok(usable_ranges(&bytes));
            }
            bytes = vec![0; wanted as usize];
        }
    }
}

/// What devices may do, as VFIO names it.
fn flags(access: Access) -> u32 {
    let read = if access.read { VFIO_DMA_MAP_FLAG_READ } else { 0 };
    read | if access.write { VFIO_DMA_MAP_FLAG_WRITE } else { 0 }
}

/// The ranges that the answer to VFIO_IOMMU_GET_INFO tells; everything where it tells none (before Linux 5.4).
fn usable_ranges(bytes: &[u8]) -> Vec<IovaRange> {
    let everything = || vec![IovaRange::ALL];
    let Ok((info, _)) = VfioIommuType1Info::read_from_prefix(bytes) else { return everything() };
    if info.flags & VFIO_IOMMU_INFO_CAPS == 0 {
        return everything();
    }
    let mut at = info.cap_offset as usize;
    // Offsets only grow, so the chain ends.
    while let Some((head, rest)) = bytes
        .get(at..)
        .filter(|_| at > 0)
        .and_then(|bytes| VfioIommuType1InfoCapIovaRange::read_from_prefix(bytes).ok())
    {
        if head.header.id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let size = size_of::<VfioIovaRange>();
            let ranges = rest.chunks_exact(size).take(head.nr_iovas as usize);
            return ranges
                .filter_map(|bytes| {
                    let range = VfioIovaRange::read_from_bytes(bytes).ok()?;
                    IovaRange::new(Iova(range.start), Iova(range.end))
                })
                .collect();
        }
        let next = head.header.next as usize;
        if next <= at {
            break;
        }
        at = next;
    }
    everything()
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;

    fn info(ranges: &[(u64, u64)], before: usize) -> Vec<u8> {
        let mut info = VfioIommuType1Info::new_zeroed();
        info.flags = VFIO_IOMMU_INFO_CAPS;
        info.cap_offset = 24;
        let mut bytes = info.as_bytes().to_vec();
        // Capabilities of other kinds first: id 3, 16 bytes each.
        for index in 0..before {
            bytes.extend_from_slice(&[3, 0, 1, 0]);
            bytes.extend_from_slice(&(24 + 16 * (index as u32 + 1)).to_ne_bytes());
            bytes.extend_from_slice(&[0xff; 8]);
        }
        bytes.extend_from_slice(&[1, 0, 1, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&(ranges.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for (first, last) in ranges {
            bytes.extend_from_slice(&first.to_ne_bytes());
            bytes.extend_from_slice(&last.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn ranges_are_found_behind_other_capabilities() {
        let ranges = [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)];
        let expected: Vec<IovaRange> =
            ranges.iter().filter_map(|(first, last)| IovaRange::new(Iova(*first), Iova(*last))).collect();
        for before in 0..3 {
            assert_eq!(usable_ranges(&info(&ranges, before)), expected);
        }
        // None told, cut off, or in a circle: no restriction is known, and nothing hangs.
        assert_eq!(usable_ranges(VfioIommuType1Info::new_zeroed().as_bytes()), [IovaRange::ALL]);
        let mut circle = info(&ranges, 1);
        circle[28..32].copy_from_slice(&24u32.to_ne_bytes());
        assert_eq!(usable_ranges(&circle), [IovaRange::ALL]);
        for length in 0..info(&ranges, 1).len() {
            let _ = usable_ranges(&info(&ranges, 1)[..length]);
        }
    }
}
