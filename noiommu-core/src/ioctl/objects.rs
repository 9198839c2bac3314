//! Objects and options: DESTROY, HWPT_ALLOC, FAULT_QUEUE_ALLOC, OPTION, VFIO_IOAS, CHANGE_PROCESS.

use core::mem::offset_of;

use noiommu_uapi::iommufd::*;
use zerocopy::IntoBytes;

use super::Process;
use super::argument::Argument;
use crate::platform::{Caller, Platform};
use crate::{Context, Errno, ObjectId, ObjectKind};

impl<P: Platform> Context<P> {
    pub(super) fn ioctl_destroy(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let call: IommuDestroy = argument.structure()?;
        self.destroy(ObjectId(call.id))
    }

    pub(super) fn ioctl_hwpt_alloc(&mut self, argument: &Argument<'_>) -> Result<(), P::Error> {
        let mut call: IommuHwptAlloc = argument.structure()?;
        if call.__reserved != 0 {
            return Err(Errno::EOPNOTSUPP.into());
        }
        if (call.data_type == IOMMU_HWPT_DATA_NONE) != (call.data_len == 0) {
            return Err(Errno::EINVAL.into());
        }
        let (device, below) = (ObjectId(call.dev_id), ObjectId(call.pt_id));
        if self.kind(device) != Some(ObjectKind::Device) {
            return Err(Errno::ENOENT.into());
        }
        match self.kind(below) {
            Some(ObjectKind::Ioas) => {}
            // A nested page table: there is nobody to walk it.
            Some(ObjectKind::Hwpt) => return Err(Errno::EOPNOTSUPP.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        // A fault queue alone can be had: it stays empty.
        if call.flags & !IOMMU_HWPT_FAULT_ID_VALID != 0 || call.data_len != 0 {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let faults = (call.flags != 0).then_some(ObjectId(call.fault_id));
        let hwpt = self.hwpt_alloc(device, below, faults)?;
        call.out_hwpt_id = hwpt.0;
        argument.respond(&call).inspect_err(|_| {
            let _ = self.destroy(hwpt);
        })?;
        Ok(())
    }

    pub(super) fn ioctl_fault_queue_alloc(
        &mut self,
        process: &dyn Process<P::Backing>,
        argument: &Argument<'_>,
    ) -> Result<(), Errno> {
        let mut call: IommuFaultAlloc = argument.structure()?;
        if call.flags != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let queue = self.fault_queue_alloc()?;
        let mut opened = None;
        let told = process.open_fault_queue(queue).and_then(|descriptor| {
            opened = Some(descriptor);
            // Descriptors are not negative.
            (call.out_fault_id, call.out_fault_fd) = (queue.0, descriptor.unsigned_abs());
            argument.respond(&call)
        });
        if told.is_err() {
            self.fault_queue_closed(queue);
            let _ = self.destroy(queue);
            if let Some(descriptor) = opened {
                process.take_back(descriptor);
            }
        }
        told
    }

    pub(super) fn ioctl_option(
        &mut self,
        process: &dyn Process<P::Backing>,
        argument: &Argument<'_>,
    ) -> Result<(), Errno> {
        let mut call: IommuOption = argument.structure()?;
        if call.__reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match call.option_id {
            IOMMU_OPTION_RLIMIT_MODE => self.rlimit_mode(process.caller(), &mut call)?,
            IOMMU_OPTION_HUGE_PAGES => self.huge_pages(&mut call)?,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        argument.write_at(offset_of!(IommuOption, val64), call.val64.as_bytes())
    }

    fn rlimit_mode(&mut self, caller: Caller, call: &mut IommuOption) -> Result<(), Errno> {
        if call.object_id != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match call.op {
            IOMMU_OPTION_OP_GET => {
                call.val64 = u64::from(self.charges_process());
                Ok(())
            }
            IOMMU_OPTION_OP_SET => {
                // Privilege and emptiness come before the value: set it as it is, to have both looked at.
                let process = if call.val64 > 1 { self.charges_process() } else { call.val64 == 1 };
                self.set_charges_process(caller, process)?;
                if call.val64 > 1 { Err(Errno::EINVAL) } else { Ok(()) }
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn huge_pages(&mut self, call: &mut IommuOption) -> Result<(), Errno> {
        let ioas = ObjectId(call.object_id);
        let large = self.large_pages(ioas)?;
        match (call.op, call.val64) {
            (IOMMU_OPTION_OP_GET, _) => {
                call.val64 = u64::from(large);
                Ok(())
            }
            (IOMMU_OPTION_OP_SET, 0 | 1) => self.set_large_pages(ioas, call.val64 == 1),
            (IOMMU_OPTION_OP_SET, _) => Err(Errno::EINVAL),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    pub(super) fn ioctl_vfio_ioas(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let mut call: IommuVfioIoas = argument.structure()?;
        if call.__reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match call.op {
            IOMMU_VFIO_IOAS_GET => {
                call.ioas_id = self.compat_ioas().ok_or(Errno::ENODEV)?.0;
                argument.respond(&call)
            }
            IOMMU_VFIO_IOAS_SET => self.set_compat_ioas(Some(ObjectId(call.ioas_id))),
            IOMMU_VFIO_IOAS_CLEAR => self.set_compat_ioas(None),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    pub(super) fn ioctl_change_process(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let call: IommuIoasChangeProcess = argument.structure()?;
        if call.__reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.change_process()
    }
}
