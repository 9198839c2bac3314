//! The calls of a VFIO container on /dev/iommu.

use noiommu_core::Errno;
use noiommu_core::table::format::Access;
use noiommu_uapi::vfio::container::*;
use zerocopy::{FromBytes, IntoBytes};

use super::calls::Expected;
use super::{Model, Setting, Wanted};
use crate::world::{Backing, Memory};

fn read<T: FromBytes + IntoBytes>(memory: &Memory, address: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    memory.read(address, value.as_mut_bytes())?;
    Ok(value)
}

impl Model {
    pub(super) fn container(
        &mut self,
        setting: &Setting<'_>,
        memory: &mut Memory,
        request: u32,
        argument: u64,
    ) -> Expected {
        Expected::Exactly(match request {
            VFIO_GET_API_VERSION => Ok(0),
            VFIO_CHECK_EXTENSION => self.check_extension(argument),
            VFIO_SET_IOMMU => self.set_iommu(setting, argument).map(|()| 0),
            VFIO_IOMMU_MAP_DMA => self.map_dma(setting, memory, argument).map(|()| 0),
            VFIO_IOMMU_UNMAP_DMA => self.unmap_dma(memory, argument).map(|()| 0),
            VFIO_IOMMU_GET_INFO => return Expected::AsToItsResult(self.container_info(memory, argument)),
            _ => Err(Errno::ENOTTY),
        })
    }

    fn compat(&self) -> Result<u32, Errno> {
        self.compat.ok_or(Errno::ENODEV)
    }

    fn check_extension(&self, extension: u64) -> Result<u32, Errno> {
        const TYPE1: [u64; 3] = [VFIO_TYPE1_IOMMU as u64, VFIO_TYPE1v2_IOMMU as u64, VFIO_UNMAP_ALL as u64];
        Ok(match extension {
            extension if TYPE1.contains(&extension) => u32::from(!self.group),
            extension if extension == u64::from(VFIO_NOIOMMU_IOMMU) => 1,
            extension if extension == u64::from(VFIO_DMA_CC_IOMMU) => {
                u32::from(!self.has_domain(self.compat()?))
            }
            _ => 0,
        })
    }

    fn set_iommu(&mut self, setting: &Setting<'_>, kind: u64) -> Result<(), Errno> {
        match (u32::try_from(kind).map_err(|_| Errno::EINVAL)?, self.group) {
            (VFIO_NOIOMMU_IOMMU, true) if setting.caller.raw_io => Ok(()),
            (VFIO_NOIOMMU_IOMMU, true) => Err(Errno::EPERM),
            (VFIO_TYPE1_IOMMU, false) => self.compat().and_then(|ioas| self.set_large_pages(ioas, false)),
            (kind, false) if kind == VFIO_TYPE1v2_IOMMU => self.compat().map(|_| ()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn map_dma(&mut self, setting: &Setting<'_>, memory: &Memory, argument: u64) -> Result<(), Errno> {
        let call: VfioIommuType1DmaMap = read(memory, argument)?;
        let (read, write) = (VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE);
        if call.argsz < 32 || call.flags & !(read | write) != 0 {
            return Err(Errno::EINVAL);
        }
        let access = Access { read: call.flags & read != 0, write: call.flags & write != 0 };
        let wanted = Wanted { length: call.size, iova: Some(call.iova), access };
        let ioas = self.compat()?;
        self.map(setting.pages, ioas, Backing::User, call.vaddr, &wanted).map(|_| ())
    }

    fn unmap_dma(&mut self, memory: &mut Memory, argument: u64) -> Result<(), Errno> {
        let mut call: VfioIommuType1DmaUnmap = read(memory, argument)?;
        if call.argsz < 24 || call.flags & !VFIO_DMA_UNMAP_FLAG_ALL != 0 {
            return Err(Errno::EINVAL);
        }
        let ioas = self.compat()?;
        let mut outcome = Ok(());
        let last = if call.flags != 0 {
            if call.iova != 0 || call.size != 0 {
                return Err(Errno::EINVAL);
            }
            Ok(u64::MAX)
        } else {
            if self.ioas(ioas)?.small_pages {
                self.cut(ioas, call.iova.wrapping_add(call.size).wrapping_sub(1))?;
                if call.iova != 0 {
                    self.cut(ioas, call.iova - 1)?;
                }
            }
            super::space::last_of(call.iova, call.size)
        };
        let mut bytes = 0;
        match last {
            Ok(last) => {
                let cut;
                (bytes, cut) = self.unmap(ioas, call.iova, last)?;
                if cut {
                    outcome = Err(Errno::ENOENT);
                }
            }
            Err(error) => outcome = Err(error),
        }
        call.size = bytes;
        memory.write(argument, call.as_bytes())?;
        outcome
    }

    /// Whether it answers. Its capabilities are written piece by piece, so all of its room is needed.
    fn container_info(&self, memory: &Memory, argument: u64) -> Result<u32, Errno> {
        const HEAD: usize = 16;
        let mut head = [0; HEAD];
        memory.read(argument, &mut head)?;
        let room = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if room < HEAD {
            return Err(Errno::EINVAL);
        }
        self.compat()?;
        // Two capabilities of 12 and 16 bytes with a range of 16 behind 24 bytes, each at a multiple of 8.
        let total = 24 + 16 + 16 + 16;
        let written = [24, 36, total].into_iter().filter(|end| *end <= room).max().unwrap_or(room);
        let mut there = vec![0; written];
        memory.read(argument, &mut there)?;
        if memory.writable { Ok(0) } else { Err(Errno::EFAULT) }
    }
}
