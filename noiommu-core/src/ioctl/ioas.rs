//! IOASes and their IOVAs: IOAS_ALLOC, ALLOW_IOVAS, IOVA_RANGES.

use core::mem::size_of;

use noiommu_uapi::iommufd::{IommuIoasAlloc, IommuIoasAllowIovas, IommuIoasIovaRanges, IommuIovaRange};
use zerocopy::IntoBytes;

use super::argument::{Argument, read};
use crate::platform::Platform;
use crate::{Context, Errno, Iova, IovaRange, ObjectId};

impl<P: Platform> Context<P> {
    pub(super) fn ioctl_ioas_alloc(&mut self, argument: &Argument<'_>) -> Result<(), P::Error> {
        let mut call: IommuIoasAlloc = argument.structure()?;
        if call.flags != 0 {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let id = self.ioas_alloc()?;
        call.out_ioas_id = id.0;
        argument.respond(&call).inspect_err(|_| {
            let _ = self.destroy(id);
        })?;
        Ok(())
    }

    pub(super) fn ioctl_allow_iovas(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let call: IommuIoasAllowIovas = argument.structure()?;
        if call.__reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let ranges = (0..u64::from(call.num_iovas)).map(|index| {
            let offset = index.wrapping_mul(size_of::<IommuIovaRange>() as u64);
            let range: IommuIovaRange = read(argument.memory(), call.allowed_iovas.wrapping_add(offset))?;
            // A range of a single IOVA is refused, too.
            let range = (range.start < range.last).then_some(range).ok_or(Errno::EINVAL)?;
            IovaRange::new(Iova(range.start), Iova(range.last)).ok_or(Errno::EINVAL)
        });
        self.allow_iovas(ObjectId(call.ioas_id), ranges)
    }

    pub(super) fn ioctl_iova_ranges(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let mut call: IommuIoasIovaRanges = argument.structure()?;
        if call.__reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        call.out_iova_alignment = self.iova_alignment(ObjectId(call.ioas_id))?;
        let room = call.num_iovas;
        // Without an IOMMU no IOVA is reserved: one range is all.
        call.num_iovas = 1;
        if room > 0 {
            let all = IommuIovaRange { start: 0, last: u64::MAX };
            argument.memory().write(call.allowed_iovas, all.as_bytes())?;
        }
        argument.respond(&call)?;
        if room > 0 { Ok(()) } else { Err(Errno::EMSGSIZE) }
    }
}
