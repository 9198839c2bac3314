//! /dev/vfio/noiommu-N: the group that a device without an IOMMU gets, and its devices opened through it.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use noiommu_core::Errno;
use noiommu_core::vfio::group::{self, Exclusion};
use noiommu_uapi::vfio::device::VFIO_DEVICE_BIND_IOMMUFD;
use noiommu_uapi::vfio::group::*;

use super::container::{Container, ContainerFile};
use super::device::{Device, View, World};
use super::file::{Caller, File, FileKind, FileOperations, MmapRequest};
use super::iommufd::{Iommufd, IommufdFile};

/// A group, whoever has it open.
pub(super) struct Group {
    pub(super) number: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    exclusion: Exclusion,
    iommu: Iommu,
}

/// What stands for the IOMMU of a group: a container, or an iommufd in a container's place.
#[derive(Default)]
enum Iommu {
    #[default]
    None,
    Container {
        container: Arc<Container>,
        /// Devices opened through the group.
        devices: u32,
    },
    Iommufd(Arc<Iommufd>),
}

impl Group {
    pub(super) fn new(number: u32) -> Arc<Self> {
        Arc::new(Self { number, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the group from being opened while a device of its is bound by its own node.
    ///
    /// # Errors
    /// EBUSY: it is open.
    pub(super) fn block(&self) -> Result<(), Errno> {
        self.state().exclusion.block()
    }

    /// The end of [`Group::block`].
    pub(super) fn unblock(&self) {
        self.state().exclusion.unblock();
    }
}

/// An open group node; there is one at a time.
pub(super) struct GroupFile {
    world: Arc<World>,
    group: Arc<Group>,
    this: Weak<Self>,
}

impl GroupFile {
    /// # Errors
    /// EPERM: no CAP_SYS_RAWIO; EBUSY: open already, or a device is bound by its own node.
    pub(super) fn open(world: &Arc<World>, group: &Arc<Group>) -> Result<Arc<Self>, Errno> {
        if !crate::memory::caller().raw_io {
            return Err(Errno::EPERM);
        }
        group.state().exclusion.open()?;
        Ok(Arc::new_cyclic(|this| Self { world: world.clone(), group: group.clone(), this: this.clone() }))
    }

    pub(super) fn group(&self) -> &Arc<Group> {
        &self.group
    }

    fn get_status(&self, caller: Caller<'_>, argument: u64) -> Result<(), Errno> {
        group::get_status(caller.user, argument, || !matches!(self.group.state().iommu, Iommu::None))
    }

    fn set_container(&self, caller: Caller<'_>, argument: u64) -> Result<(), Errno> {
        let descriptor = group::descriptor(caller.user, argument)?;
        // A file that is not served here is no container either, but that is told last.
        let file = match caller.descriptors.get(descriptor) {
            Err(Errno::EBADFD) => None,
            other => Some(other?),
        };
        let mut state = self.group.state();
        if !matches!(state.iommu, Iommu::None) {
            return Err(Errno::EINVAL);
        }
        let file = file.ok_or(Errno::EBADFD)?;
        state.iommu = if let Some(container) = file.as_any().downcast_ref::<ContainerFile>() {
            if !crate::memory::caller().raw_io {
                return Err(Errno::EPERM);
            }
            container.0.add_group();
            Iommu::Container { container: container.0.clone(), devices: 0 }
        } else if let Some(iommufd) = file.as_any().downcast_ref::<IommufdFile>() {
            iommufd.0.context().set_no_iommu_container()?;
            Iommu::Iommufd(iommufd.0.clone())
        } else {
            return Err(Errno::EBADFD);
        };
        Ok(())
    }

    fn unset_container(&self) -> Result<(), Errno> {
        let mut state = self.group.state();
        match &state.iommu {
            Iommu::None => return Err(Errno::EINVAL),
            Iommu::Container { devices: 1.., .. } => return Err(Errno::EBUSY),
            Iommu::Container { container, .. } => container.remove_group(),
            Iommu::Iommufd(_) => {}
        }
        state.iommu = Iommu::None;
        Ok(())
    }

    fn get_device_fd(&self, caller: Caller<'_>, argument: u64) -> Result<i64, Errno> {
        let text = group::text(caller.user, argument)?;
        let mut found = None;
        for device in &self.world.devices {
            let here = device.group.as_ref().is_some_and(|group| Arc::ptr_eq(group, &self.group));
            if here && group::names(&device.name, text.as_bytes())? {
                found = Some(device);
                break;
            }
        }
        let file: File = Arc::new(self.open_device(found.ok_or(Errno::ENODEV)?)?);
        caller.descriptors.install(file).map(i64::from)
    }

    fn open_device(&self, device: &Arc<Device>) -> Result<GroupDeviceFile, Errno> {
        let privileged = crate::memory::caller().raw_io;
        let mut state = self.group.state();
        let mut holds = None;
        match &mut state.iommu {
            Iommu::None => return Err(Errno::EINVAL),
            Iommu::Iommufd(iommufd) => {
                let compat = iommufd.context().compat_ioas().is_some();
                device.open_through_group(|opened| {
                    // A user who has an IOAS for VFIO's calls expects translation.
                    if opened == 0 && (!privileged || compat) { Err(Errno::EPERM) } else { Ok(()) }
                })?;
            }
            Iommu::Container { container, devices } => {
                device.open_through_group(|opened| match (opened, container.is_set()) {
                    (1.., _) => Ok(()),
                    (0, false) => Err(Errno::EINVAL),
                    (0, true) if privileged => Ok(()),
                    (0, true) => Err(Errno::EPERM),
                })?;
                *devices += 1;
                // The device keeps its group open.
                holds = self.this.upgrade();
            }
        }
        drop(state);
        Ok(GroupDeviceFile { world: self.world.clone(), device: device.clone(), group: holds })
    }
}

impl FileOperations for GroupFile {
    fn ioctl(&self, caller: Caller<'_>, request: u32, argument: u64) -> Result<i64, Errno> {
        match request {
            VFIO_GROUP_GET_DEVICE_FD => self.get_device_fd(caller, argument),
            VFIO_GROUP_GET_STATUS => self.get_status(caller, argument).map(|()| 0),
            VFIO_GROUP_SET_CONTAINER => self.set_container(caller, argument).map(|()| 0),
            VFIO_GROUP_UNSET_CONTAINER => self.unset_container().map(|()| 0),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for GroupFile {
    fn drop(&mut self) {
        let mut state = self.group.state();
        if let Iommu::Container { container, .. } = &state.iommu {
            container.remove_group();
        }
        state.iommu = Iommu::None;
        state.exclusion.close();
    }
}

/// A device opened through its group.
struct GroupDeviceFile {
    world: Arc<World>,
    device: Arc<Device>,
    /// The group's file, as long as a container stands behind it.
    group: Option<Arc<GroupFile>>,
}

impl GroupDeviceFile {
    fn view<'a>(&'a self, caller: Caller<'a>) -> View<'a> {
        View { world: &self.world, device: &self.device, through_cdev: false, caller }
    }
}

impl FileOperations for GroupDeviceFile {
    fn ioctl(&self, caller: Caller<'_>, request: u32, argument: u64) -> Result<i64, Errno> {
        if request == VFIO_DEVICE_BIND_IOMMUFD {
            // Its argument is looked at before it is refused.
            noiommu_core::vfio::binding::Bind::read(caller.user, argument)?;
            return Err(Errno::EINVAL);
        }
        self.device.served.ioctl(self.view(caller).session(), request, argument)
    }

    fn kind(&self) -> FileKind {
        FileKind::Bytes
    }

    fn read(&self, caller: Caller<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        self.device.served.read(self.view(caller).session(), address, length, offset)
    }

    fn write(&self, caller: Caller<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        self.device.served.write(self.view(caller).session(), address, length, offset)
    }

    unsafe fn mmap(&self, request: MmapRequest) -> Result<u64, Errno> {
        // SAFETY: passed on from the caller.
        unsafe { self.device.served.mmap(request) }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for GroupDeviceFile {
    fn drop(&mut self) {
        self.device.close_through_group();
        if let Some(group) = &self.group
            && let Iommu::Container { devices, .. } = &mut group.group.state().iommu
        {
            *devices = devices.saturating_sub(1);
        }
    }
}
