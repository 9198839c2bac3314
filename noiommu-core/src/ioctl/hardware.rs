//! Calls that mean something with an IOMMU alone: each looks at its arguments and objects as far as the kernel does, and
//! refuses.

use noiommu_uapi::iommufd::*;

use super::argument::Argument;
use crate::platform::Platform;
use crate::{Context, Errno, Iova, IovaRange, ObjectId, ObjectKind};

/// The most events that a vEVENTQ may hold.
const MOST_EVENTS: u32 = 1 << 19;

/// The most entries of one HWPT_INVALIDATE, and the longest that one may be.
const MOST_ENTRIES: u32 = 1 << 19;
const LONGEST_ENTRY: u32 = 4096;

impl<P: Platform> Context<P> {
    pub(super) fn ioctl_get_hw_info(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let call: IommuHwInfo = argument.structure()?;
        if call.flags & !IOMMU_HW_INFO_FLAG_INPUT_TYPE != 0 || call.__reserved != [0; 3] {
            return Err(Errno::EOPNOTSUPP);
        }
        self.expect(call.dev_id, ObjectKind::Device)?;
        Err(Errno::EOPNOTSUPP)
    }

    pub(super) fn ioctl_set_dirty_tracking(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let call: IommuHwptSetDirtyTracking = argument.structure()?;
        if call.flags & !IOMMU_HWPT_DIRTY_TRACKING_ENABLE != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.expect(call.hwpt_id, ObjectKind::Hwpt)?;
        Err(Errno::EOPNOTSUPP)
    }

    pub(super) fn ioctl_get_dirty_bitmap(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let call: IommuHwptGetDirtyBitmap = argument.structure()?;
        if call.flags & !IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR != 0 || call.__reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.expect(call.hwpt_id, ObjectKind::Hwpt)?;
        let range = IovaRange::with_length(Iova(call.iova), call.length)?;
        let ends = call.iova | range.last().0.wrapping_add(1);
        // An HWPT is there, so IOVAs are multiples of a page.
        let granules = call.page_size.wrapping_sub(1) | 0xfff;
        if call.page_size == 0 || ends & granules != 0 {
            return Err(Errno::EINVAL);
        }
        Err(Errno::EOPNOTSUPP)
    }

    pub(super) fn ioctl_invalidate(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let mut call: IommuHwptInvalidate = argument.structure()?;
        let no_entries = call.data_uptr == 0 || call.entry_len == 0;
        let refusal = if call.__reserved != 0 {
            Errno::EOPNOTSUPP
        } else if call.entry_num != 0
            && (no_entries || call.entry_len > LONGEST_ENTRY || call.entry_num > MOST_ENTRIES)
        {
            Errno::EINVAL
        } else if self.kind(ObjectId(call.hwpt_id)).is_none() {
            Errno::ENOENT
        } else {
            // Only nested page tables and vIOMMUs have something to invalidate.
            Errno::EINVAL
        };
        call.entry_num = 0;
        argument.respond(&call)?;
        Err(refusal)
    }

    pub(super) fn ioctl_viommu_alloc(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let call: IommuViommuAlloc = argument.structure()?;
        if call.flags != 0 || call.r#type == IOMMU_VIOMMU_TYPE_DEFAULT {
            return Err(Errno::EOPNOTSUPP);
        }
        self.expect(call.dev_id, ObjectKind::Device)?;
        Err(Errno::EOPNOTSUPP)
    }

    pub(super) fn ioctl_vdevice_alloc(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let _: IommuVdeviceAlloc = argument.structure()?;
        // No vIOMMU can be had, so no id names one.
        Err(Errno::ENOENT)
    }

    pub(super) fn ioctl_veventq_alloc(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let call: IommuVeventqAlloc = argument.structure()?;
        if call.flags != 0 || call.__reserved != 0 || call.r#type == IOMMU_VEVENTQ_TYPE_DEFAULT {
            return Err(Errno::EOPNOTSUPP);
        }
        if call.veventq_depth == 0 || call.veventq_depth > MOST_EVENTS {
            return Err(Errno::EINVAL);
        }
        Err(Errno::ENOENT)
    }

    pub(super) fn ioctl_hw_queue_alloc(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let call: IommuHwQueueAlloc = argument.structure()?;
        if call.flags != 0 || call.r#type == IOMMU_HW_QUEUE_TYPE_DEFAULT {
            return Err(Errno::EOPNOTSUPP);
        }
        IovaRange::with_length(Iova(call.nesting_parent_iova), call.length)?;
        Err(Errno::ENOENT)
    }

    fn expect(&self, id: u32, kind: ObjectKind) -> Result<(), Errno> {
        if self.kind(ObjectId(id)) == Some(kind) { Ok(()) } else { Err(Errno::ENOENT) }
    }
}
