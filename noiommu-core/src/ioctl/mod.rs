//! The ioctl face of /dev/iommu: bytes in, bytes out, errno.
//!
//! Checks come in the kernel's order, so that a call with several mistakes gets the kernel's answer; what a failed call has
//! done by then is what the kernel has done by then. The order was learned by asking Linux 7.3, and is held to its recorded
//! answers.

pub(crate) mod argument;
mod compat;
mod hardware;
mod ioas;
mod map;
mod objects;

use noiommu_uapi::ioctl::IOMMUFD_CMD_BASE;
use noiommu_uapi::iommufd::*;
use noiommu_uapi::{Call, CallFile};

use self::argument::Argument;
use crate::platform::{Caller, Platform};
use crate::{Context, Errno, ObjectId, UserMemory};

/// The process that calls, as far as an ioctl looks at it.
pub trait Process<B> {
    /// Its memory.
    fn memory(&self) -> &dyn UserMemory;

    /// What it may do.
    fn caller(&self) -> Caller;

    /// Names its memory from `address` on, a multiple of 4 KiB. Nothing is looked at yet.
    fn user_backing(&self, address: u64) -> B;

    /// Names the memory of an open file of its, from the page on that holds the byte at `start`; `length` bytes from there will be
    /// mapped, at least one.
    ///
    /// # Errors
    /// EBADF: no such descriptor. For memory of a device: EINVAL: it has not so many bytes; ENODEV: it has been taken back.
    fn file_backing(&self, descriptor: i32, start: u64, length: u64) -> Result<B, Errno>;

    /// Gives it a new descriptor for a fault queue. When that is closed, [`Context::fault_queue_closed`] is due.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    fn open_fault_queue(&self, queue: ObjectId) -> Result<i32, Errno>;

    /// Takes back a descriptor that it has not been told of.
    fn take_back(&self, descriptor: i32);
}

impl<P: Platform> Context<P> {
    /// Answers an ioctl on /dev/iommu; the result is the call's return value.
    ///
    /// # Errors
    /// The kernel's. ENOTTY: a call that Linux 7.3 does not know here; EFAULT: a bad pointer; EINVAL: a structure too short;
    /// E2BIG: one longer than known, with something in its tail; EOPNOTSUPP: unknown flags, or something in a reserved field.
    pub fn ioctl(
        &mut self,
        process: &dyn Process<P::Backing>,
        request: u32,
        argument: u64,
    ) -> Result<u32, P::Error> {
        // Calls below are VFIO's, and so is everything beyond the last one. The size is read before the rest of the number is
        // looked at.
        let command = request as u8;
        if !(IOMMUFD_CMD_BASE..=IOMMU_IOAS_NOIOMMU_GET_PA as u8).contains(&command) {
            return self.vfio_compat(process, request, argument);
        }
        let argument = Argument::new(process.memory(), argument)?;
        let call = Call::by_number(CallFile::Iommufd, request).ok_or(Errno::ENOTTY)?;
        if argument.size() < call.min_size() {
            return Err(Errno::EINVAL.into());
        }
        match request {
            IOMMU_DESTROY => self.ioctl_destroy(&argument)?,
            IOMMU_IOAS_ALLOC => self.ioctl_ioas_alloc(&argument)?,
            IOMMU_IOAS_ALLOW_IOVAS => self.ioctl_allow_iovas(&argument)?,
            IOMMU_IOAS_IOVA_RANGES => self.ioctl_iova_ranges(&argument)?,
            IOMMU_IOAS_MAP => self.ioctl_map(process, &argument)?,
            IOMMU_IOAS_MAP_FILE => self.ioctl_map_file(process, &argument)?,
            IOMMU_IOAS_COPY => self.ioctl_copy(&argument)?,
            IOMMU_IOAS_UNMAP => self.ioctl_unmap(&argument)?,
            IOMMU_IOAS_NOIOMMU_GET_PA => self.ioctl_get_pa(process, &argument)?,
            IOMMU_IOAS_CHANGE_PROCESS => self.ioctl_change_process(&argument)?,
            IOMMU_OPTION => self.ioctl_option(process, &argument)?,
            IOMMU_VFIO_IOAS => self.ioctl_vfio_ioas(&argument)?,
            IOMMU_HWPT_ALLOC => self.ioctl_hwpt_alloc(&argument)?,
            IOMMU_FAULT_QUEUE_ALLOC => self.ioctl_fault_queue_alloc(process, &argument)?,
            IOMMU_GET_HW_INFO => self.ioctl_get_hw_info(&argument)?,
            IOMMU_HWPT_SET_DIRTY_TRACKING => self.ioctl_set_dirty_tracking(&argument)?,
            IOMMU_HWPT_GET_DIRTY_BITMAP => self.ioctl_get_dirty_bitmap(&argument)?,
            IOMMU_HWPT_INVALIDATE => self.ioctl_invalidate(&argument)?,
            IOMMU_VIOMMU_ALLOC => self.ioctl_viommu_alloc(&argument)?,
            IOMMU_VDEVICE_ALLOC => self.ioctl_vdevice_alloc(&argument)?,
            IOMMU_VEVENTQ_ALLOC => self.ioctl_veventq_alloc(&argument)?,
            IOMMU_HW_QUEUE_ALLOC => self.ioctl_hw_queue_alloc(&argument)?,
            _ => return Err(Errno::ENOTTY.into()),
        }
        Ok(0)
    }
}
