//! Features: what of them a plain PCI device has.

use noiommu_uapi::vfio::feature::*;

use super::{Backend, Export, PciDevice, PhysicalRange, Space};
use crate::vfio::argument;
use crate::{Errno, PhysAddr, TryVec, UserMemory};

/// Bytes of the structure that every feature's own follows.
const FIXED: u64 = 8;

/// A call for a feature, checked.
struct Request<'a> {
    user: &'a dyn UserMemory,
    flags: u32,
    /// Where the feature's own structure is, and its bytes.
    data: u64,
    length: u32,
}

impl Request<'_> {
    /// Whether it is to be carried out; no: the caller only asked whether it could be.
    ///
    /// # Errors
    /// EINVAL: it cannot be got (or set), it is neither, or `length` bytes are not there.
    fn check(&self, supported: u32, length: u32) -> Result<bool, Errno> {
        let asked = self.flags & (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET);
        if asked & !supported != 0 {
            return Err(Errno::EINVAL);
        }
        if self.flags & VFIO_DEVICE_FEATURE_PROBE != 0 {
            return Ok(false);
        }
        if asked == 0 || self.length < length { Err(Errno::EINVAL) } else { Ok(true) }
    }
}

impl<B: Backend> PciDevice<B> {
    pub(super) fn feature(
        &mut self,
        user: &dyn UserMemory,
        export: &dyn Export,
        argument: u64,
    ) -> Result<i64, Errno> {
        let feature: VfioDeviceFeature = argument::read(user, argument, FIXED as usize)?;
        let Some(length) = feature.argsz.checked_sub(FIXED as u32) else { return Err(Errno::EINVAL) };
        let both = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET;
        let known = VFIO_DEVICE_FEATURE_MASK | VFIO_DEVICE_FEATURE_PROBE | both;
        let flags = feature.flags;
        if flags & !known != 0 || flags & (both | VFIO_DEVICE_FEATURE_PROBE) == both {
            return Err(Errno::EINVAL);
        }
        let request = Request { user, flags, data: argument.wrapping_add(FIXED), length };
        match flags & VFIO_DEVICE_FEATURE_MASK {
            VFIO_DEVICE_FEATURE_PCI_VF_TOKEN => self.token(&request),
            VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY => {
                if request.check(VFIO_DEVICE_FEATURE_SET, 0)? {
                    self.enter_low_power(None)?;
                }
                Ok(0)
            }
            VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP => {
                if !request.check(VFIO_DEVICE_FEATURE_SET, 8)? {
                    return Ok(0);
                }
                let entry: VfioDeviceLowPowerEntryWithWakeup = argument::read(user, request.data, 8)?;
                if entry.wakeup_eventfd < 0 {
                    return Err(Errno::EINVAL);
                }
                let wakeup = self.backend.event(entry.wakeup_eventfd)?;
                self.enter_low_power(Some(wakeup))?;
                Ok(0)
            }
            VFIO_DEVICE_FEATURE_LOW_POWER_EXIT => {
                if request.check(VFIO_DEVICE_FEATURE_SET, 0)? {
                    self.low_power = None;
                }
                Ok(0)
            }
            VFIO_DEVICE_FEATURE_DMA_BUF => self.dma_buf(&request, export),
            // Known for devices that migrate, which this is not.
            #[allow(non_upper_case_globals)]
            VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 => Err(Errno::EINVAL),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// A token that virtual functions ask for. There are none here, so nobody asks.
    fn token(&self, request: &Request<'_>) -> Result<i64, Errno> {
        if !self.backend.is_physical_function() {
            return Err(Errno::ENOTTY);
        }
        if request.check(VFIO_DEVICE_FEATURE_SET, 16)? {
            request.user.read(request.data, &mut [0; 16])?;
        }
        Ok(0)
    }

    /// The device may sleep now. It does not here: nothing is lost but the power saved, and nothing has to wake it.
    fn enter_low_power(&mut self, wakeup: Option<B::Event>) -> Result<(), Errno> {
        self.revoke();
        if self.low_power.is_some() {
            return Err(Errno::EINVAL);
        }
        self.low_power = Some(wakeup);
        Ok(())
    }

    fn dma_buf(&self, request: &Request<'_>, export: &dyn Export) -> Result<i64, Errno> {
        /// As many of 16 bytes as fit the largest allocation of the kernel, 4 MiB.
        const MOST: u32 = (4 << 20) >> 4;
        if !request.check(VFIO_DEVICE_FEATURE_GET, 16)? {
            return Ok(0);
        }
        let wanted: VfioDeviceFeatureDmaBuf = argument::read(request.user, request.data, 16)?;
        if wanted.nr_ranges == 0 || wanted.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let resource = match u8::try_from(wanted.region_index) {
            Ok(bar @ 0..6) => self.backend.resource(bar),
            _ => return Err(Errno::ENODEV),
        };
        if resource.size == 0 {
            return Err(Errno::ENODEV);
        }
        if wanted.nr_ranges > MOST {
            return Err(Errno::ENOMEM);
        }
        let mut ranges = TryVec::new();
        for index in 0..u64::from(wanted.nr_ranges) {
            let at = request.data.wrapping_add(16).wrapping_add(index.wrapping_mul(16));
            ranges.try_push(argument::read::<VfioRegionDmaRange>(request.user, at, 16)?)?;
        }
        let inside_page = self.backend.page_size().wrapping_sub(1);
        let mut total = 0u64;
        for range in ranges.iter() {
            if range.length == 0 || (range.offset | range.length) & inside_page != 0 {
                return Err(Errno::EINVAL);
            }
            total = total.checked_add(range.length).ok_or(Errno::EINVAL)?;
        }
        // The kernel keeps a flag in the length's uppermost bit. Ports are no memory.
        if total > i64::MAX as u64 || resource.space != Space::Memory {
            return Err(Errno::EINVAL);
        }
        let end = resource.start.wrapping_add(resource.size);
        let mut places = TryVec::new();
        for range in ranges.iter() {
            let start = resource.start.checked_add(range.offset).ok_or(Errno::EOVERFLOW)?;
            if start.checked_add(range.length).ok_or(Errno::EOVERFLOW)? > end {
                return Err(Errno::EINVAL);
            }
            places.try_push(PhysicalRange { start: PhysAddr(start), length: range.length })?;
        }
        export.export(&places, wanted.open_flags).map(i64::from)
    }
}
