//! The calls of a VFIO container on an iommufd: they work on the IOAS that IOMMU_VFIO_IOAS names.

use core::mem::{offset_of, size_of};

use noiommu_uapi::vfio::VfioInfoCapHeader;
use noiommu_uapi::vfio::container::*;
use zerocopy::IntoBytes;

use super::Process;
use super::argument::read;
use crate::platform::{Caller, Platform};
use crate::table::format::{self, Access};
use crate::{Context, Errno, Iova, IovaRange, MapRequest, ObjectId, Place, UserMemory};

/// The second version of type 1, which cannot unmap in the middle of what was mapped.
const TYPE1_V2: u32 = VFIO_TYPE1v2_IOMMU;

/// Bytes of the structure that must be there: up to the page sizes.
const INFO_MIN: usize = offset_of!(VfioIommuType1Info, cap_offset);
const MAP_MIN: u32 = size_of::<VfioIommuType1DmaMap>() as u32;
const UNMAP_MIN: u32 = size_of::<VfioIommuType1DmaUnmap>() as u32;

/// Capabilities begin at multiples of this.
const CAP_ALIGNMENT: usize = 8;

impl<P: Platform> Context<P> {
    pub(super) fn vfio_compat(
        &mut self,
        process: &dyn Process<P::Backing>,
        request: u32,
        argument: u64,
    ) -> Result<u32, P::Error> {
        match request {
            VFIO_GET_API_VERSION => Ok(VFIO_API_VERSION),
            VFIO_CHECK_EXTENSION => Ok(self.check_extension(argument)?),
            VFIO_SET_IOMMU => Ok(self.set_iommu(process.caller(), argument)?),
            VFIO_IOMMU_GET_INFO => Ok(self.container_info(process.memory(), argument)?),
            VFIO_IOMMU_MAP_DMA => self.map_dma(process, argument),
            VFIO_IOMMU_UNMAP_DMA => Ok(self.unmap_dma(process.memory(), argument)?),
            _ => Err(Errno::ENOTTY.into()),
        }
    }

    fn compat(&self) -> Result<ObjectId, Errno> {
        self.compat_ioas().ok_or(Errno::ENODEV)
    }

    fn check_extension(&self, extension: u64) -> Result<u32, Errno> {
        match u32::try_from(extension) {
            Ok(VFIO_TYPE1_IOMMU | TYPE1_V2 | VFIO_UNMAP_ALL) => Ok(u32::from(!self.is_no_iommu_container())),
            Ok(VFIO_NOIOMMU_IOMMU) => Ok(1),
            // Coherence is what an IOMMU enforces, and no domain here does.
            Ok(VFIO_DMA_CC_IOMMU) => Ok(u32::from(!self.has_domain(self.compat()?)?)),
            _ => Ok(0),
        }
    }

    fn set_iommu(&mut self, caller: Caller, kind: u64) -> Result<u32, Errno> {
        let kind = u32::try_from(kind).map_err(|_| Errno::EINVAL)?;
        match (kind, self.is_no_iommu_container()) {
            (VFIO_NOIOMMU_IOMMU, true) if !caller.raw_io => return Err(Errno::EPERM),
            (VFIO_NOIOMMU_IOMMU, true) => {}
            // The first version could unmap in the middle of what was mapped: small pages make that possible.
            (VFIO_TYPE1_IOMMU, false) => self.set_large_pages(self.compat()?, false)?,
            (TYPE1_V2, false) => _ = self.compat()?,
            _ => return Err(Errno::EINVAL),
        }
        Ok(0)
    }

    fn map_dma(&mut self, process: &dyn Process<P::Backing>, argument: u64) -> Result<u32, P::Error> {
        let call: VfioIommuType1DmaMap = read(process.memory(), argument)?;
        let known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
        if call.argsz < MAP_MIN || call.flags & !known != 0 {
            return Err(Errno::EINVAL.into());
        }
        let access = Access {
            read: call.flags & VFIO_DMA_MAP_FLAG_READ != 0,
            write: call.flags & VFIO_DMA_MAP_FLAG_WRITE != 0,
        };
        let request = MapRequest {
            backing: process.user_backing(call.vaddr & !0xfff),
            address: call.vaddr,
            length: call.size,
            access,
            place: Place::Fixed(Iova(call.iova)),
        };
        // Even with neither access, which only this call can ask for; a table has no such leaves, so that will not be filled.
        self.map_with(self.compat()?, process.caller(), request)?;
        Ok(0)
    }

    fn unmap_dma(&mut self, memory: &dyn UserMemory, argument: u64) -> Result<u32, Errno> {
        let mut call: VfioIommuType1DmaUnmap = read(memory, argument)?;
        if call.argsz < UNMAP_MIN || call.flags & !VFIO_DMA_UNMAP_FLAG_ALL != 0 {
            return Err(Errno::EINVAL);
        }
        let ioas = self.compat()?;
        let (unmapped, outcome) = if call.flags & VFIO_DMA_UNMAP_FLAG_ALL != 0 {
            if call.iova != 0 || call.size != 0 {
                return Err(Errno::EINVAL);
            }
            self.unmap_counting(ioas, IovaRange::ALL)?
        } else {
            if !self.large_pages(ioas)? {
                self.cut(ioas, Iova(call.iova.wrapping_add(call.size).wrapping_sub(1)))?;
                if let Some(before) = call.iova.checked_sub(1) {
                    self.cut(ioas, Iova(before))?;
                }
            }
            match IovaRange::with_length(Iova(call.iova), call.size) {
                Ok(range) => self.unmap_counting(ioas, range)?,
                Err(error) => (0, Err(error)),
            }
        };
        // Told in any case, and a range without anything in it is fine.
        call.size = unmapped;
        memory.write(argument, call.as_bytes())?;
        outcome.map(|()| 0)
    }

    fn container_info(&self, memory: &dyn UserMemory, argument: u64) -> Result<u32, Errno> {
        let mut info = VfioIommuType1Info::default();
        let Some(head) = info.as_mut_bytes().get_mut(..INFO_MIN) else { return Err(Errno::EFAULT) };
        memory.read(argument, head)?;
        let room = info.argsz as usize;
        if room < INFO_MIN {
            return Err(Errno::EINVAL);
        }
        let ioas = self.compat()?;
        info.iova_pgsizes = match self.has_domain(ioas)? {
            true => format::PAGE_SIZES,
            false => !0xfff,
        };
        let capability = |id| VfioInfoCapHeader { id, version: 1, next: 0 };
        let available = VfioIommuType1InfoDmaAvail {
            header: capability(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL),
            avail: u32::MAX,
        };
        let ranges = VfioIommuType1InfoCapIovaRange {
            header: capability(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE),
            nr_iovas: 1,
            reserved: 0,
        };
        let all = VfioIovaRange { start: 0, end: u64::MAX };

        // Each is written if it fits, and named by the one before it if it begins within the room.
        let first = size_of::<VfioIommuType1Info>();
        let second = first.wrapping_add(size_of_val(&available).next_multiple_of(CAP_ALIGNMENT));
        let array = second.wrapping_add(size_of_val(&ranges));
        let total = array.wrapping_add(size_of_val(&all));
        let at = |offset: usize| argument.wrapping_add(offset as u64);
        if room >= first.wrapping_add(size_of_val(&available)) {
            memory.write(at(first), available.as_bytes())?;
        }
        if room >= total {
            memory.write(at(array), all.as_bytes())?;
            memory.write(at(second), ranges.as_bytes())?;
        }
        if room >= second {
            let next = first.wrapping_add(offset_of!(VfioInfoCapHeader, next));
            memory.write(at(next), (second as u32).as_bytes())?;
        }
        if room >= total {
            info.cap_offset = first as u32;
        }
        info.argsz = total as u32;
        info.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
        let bytes = info.as_bytes();
        memory.write(argument, bytes.get(..room.min(bytes.len())).unwrap_or(bytes))?;
        Ok(0)
    }
}
