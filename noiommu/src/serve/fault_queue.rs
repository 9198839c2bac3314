//! The file of a fault queue: a device without an IOMMU has no page faults, so there is never one to read or to answer.

use std::any::Any;
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use noiommu_core::{Errno, ObjectId};
use noiommu_uapi::iommufd::{IommuHwptPageResponse, IommuHwptPgfault};
use zerocopy::{FromZeros, IntoBytes};

use super::file::{Caller, FileKind, FileOperations};
use super::iommufd::Iommufd;

/// An open fault queue.
pub(super) struct FaultQueueFile {
    iommufd: Arc<Iommufd>,
    queue: ObjectId,
    /// The queue is gone already, and its number may be another's.
    abandoned: AtomicBool,
}

impl FaultQueueFile {
    pub(super) fn new(iommufd: Arc<Iommufd>, queue: ObjectId) -> Self {
        Self { iommufd, queue, abandoned: AtomicBool::new(false) }
    }

    /// Closing the file does nothing from now on.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl FileOperations for FaultQueueFile {
    fn ioctl(&self, _: Caller<'_>, _: u32, _: u64) -> Result<i64, Errno> {
        Err(Errno::ENOTTY)
    }

    fn kind(&self) -> FileKind {
        FileKind::Queue
    }

    fn read(&self, _: Caller<'_>, _: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        whole(length, offset, size_of::<IommuHwptPgfault>())?;
        Ok(0)
    }

    fn write(&self, caller: Caller<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        whole(length, offset, size_of::<IommuHwptPageResponse>())?;
        if length == 0 {
            return Ok(0);
        }
        let mut response = IommuHwptPageResponse::new_zeroed();
        caller.user.read(address, response.as_mut_bytes())?;
        // Whatever it says, it answers a fault that nobody was told of.
        Err(Errno::EINVAL)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for FaultQueueFile {
    fn drop(&mut self) {
        if !self.abandoned.load(Ordering::Relaxed) {
            self.iommufd.context().fault_queue_closed(self.queue);
        }
    }
}

/// Whether a read or write is of whole elements; faults have no place in the file.
fn whole(length: u64, offset: u64, size: usize) -> Result<(), Errno> {
    if offset != 0 || !length.is_multiple_of(size as u64) { Err(Errno::ESPIPE) } else { Ok(()) }
}
