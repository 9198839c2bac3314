//! /dev/vfio/devices/noiommu-vfioN: a device that is bound to an iommufd by its own descriptor.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use noiommu_core::vfio::binding::{Attach, Bind, Detach};
use noiommu_core::{Errno, ObjectId};
use noiommu_uapi::vfio::device::{
    VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_DETACH_IOMMUFD_PT,
};

use super::device::{Device, View, World};
use super::file::{Caller, FileKind, FileOperations, MmapRequest, Touch};
use super::iommufd::{Iommufd, IommufdFile};

/// An open device node.
pub(super) struct CdevFile {
    world: Arc<World>,
    device: Arc<Device>,
    /// This opener has bound the device and may use it.
    bound: AtomicBool,
    /// Only one of this opener's threads binds at a time.
    binding: Mutex<()>,
}

impl CdevFile {
    /// # Errors
    /// EPERM: no CAP_SYS_RAWIO.
    pub(super) fn open(world: &Arc<World>, device: &Arc<Device>) -> Result<Self, Errno> {
        if !crate::memory::caller().raw_io {
            return Err(Errno::EPERM);
        }
        Ok(Self {
            world: world.clone(),
            device: device.clone(),
            bound: AtomicBool::new(false),
            binding: Mutex::new(()),
        })
    }

    fn bind(&self, caller: Caller<'_>, argument: u64) -> Result<(), Errno> {
        let bind = Bind::read(caller.user, argument)?;
        let group = &self.device.group;
        group.block()?;
        let _one = self.binding.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = self.bind_blocked(caller, &bind);
        if bound.is_err() {
            group.unblock();
        }
        bound
    }

    fn bind_blocked(&self, caller: Caller<'_>, bind: &Bind) -> Result<(), Errno> {
        if self.bound.load(Ordering::Acquire) {
            return Err(Errno::EINVAL);
        }
        bind.check_token(caller.user)?;
        let file = caller.descriptors.get(bind.iommufd)?;
        let iommufd = file.as_any().downcast_ref::<IommufdFile>().ok_or(Errno::EBADFD)?;
        let id = self.device.bind(&iommufd.0)?;
        bind.respond(caller.user, id).inspect_err(|_| self.device.unbind())?;
        self.bound.store(true, Ordering::Release);
        Ok(())
    }

    /// The iommufd and the device's number in it; this opener has bound it.
    fn binding(&self) -> Result<(Arc<Iommufd>, ObjectId), Errno> {
        self.device.binding().ok_or(Errno::EINVAL)
    }

    fn attach(&self, caller: Caller<'_>, argument: u64) -> Result<(), Errno> {
        let attach = Attach::read(caller.user, argument)?;
        let (iommufd, id) = self.binding()?;
        let mut context = iommufd.context();
        let hwpt = match attach.pasid {
            None => context.attach(id, attach.to),
            Some(pasid) => context.attach_pasid(id, attach.to, pasid),
        };
        let hwpt = hwpt.map_err(|error| {
            tracing::debug!(%error, "a device is not attached");
            error.errno()
        })?;
        attach.respond(caller.user, hwpt).inspect_err(|_| {
            let _ = context.detach(id);
        })
    }

    fn detach(&self, caller: Caller<'_>, argument: u64) -> Result<(), Errno> {
        let detach = Detach::read(caller.user, argument)?;
        let (iommufd, id) = self.binding()?;
        let mut context = iommufd.context();
        match detach.pasid {
            None => context.detach(id),
            Some(pasid) => context.detach_pasid(id, pasid),
        }
    }

    fn usable(&self) -> Result<(), Errno> {
        if self.bound.load(Ordering::Acquire) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn view<'a>(&'a self, caller: Caller<'a>) -> View<'a> {
        View { world: &self.world, device: &self.device, through_cdev: true, caller }
    }
}

impl FileOperations for CdevFile {
    fn ioctl(&self, caller: Caller<'_>, request: u32, argument: u64) -> Result<i64, Errno> {
        if request == VFIO_DEVICE_BIND_IOMMUFD {
            return self.bind(caller, argument).map(|()| 0);
        }
        self.usable()?;
        match request {
            VFIO_DEVICE_ATTACH_IOMMUFD_PT => self.attach(caller, argument).map(|()| 0),
            VFIO_DEVICE_DETACH_IOMMUFD_PT => self.detach(caller, argument).map(|()| 0),
            _ => self.device.served.ioctl(self.view(caller).session(), request, argument),
        }
    }

    fn kind(&self) -> FileKind {
        FileKind::Bytes
    }

    fn read(&self, caller: Caller<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        self.usable()?;
        self.device.served.read(self.view(caller).session(), address, length, offset)
    }

    fn write(&self, caller: Caller<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        self.usable()?;
        self.device.served.write(self.view(caller).session(), address, length, offset)
    }

    unsafe fn mmap(&self, request: MmapRequest) -> Result<u64, Errno> {
        self.usable()?;
        // SAFETY: passed on from the caller.
        unsafe { self.device.served.mmap(request) }
    }

    fn touch(&self, touch: Touch) -> Option<u64> {
        self.device.served.touch(touch)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for CdevFile {
    fn drop(&mut self) {
        if *self.bound.get_mut() {
            self.device.unbind();
            self.device.group.unblock();
        }
    }
}
