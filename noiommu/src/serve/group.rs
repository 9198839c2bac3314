//! /dev/vfio/noiommu-N: the group that a device without an IOMMU gets, and its devices opened through it.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use noiommu_core::Errno;
use noiommu_core::vfio::config::GroupNode;
use noiommu_core::vfio::group::{self, DeviceGroup};
use noiommu_uapi::vfio::device::VFIO_DEVICE_BIND_IOMMUFD;
use noiommu_uapi::vfio::group::*;

use super::container::{Container, ContainerFile};
use super::device::{Device, View, World};
use super::file::{Caller, File, FileKind, FileOperations, MmapRequest, Touch};
use super::iommufd::{Iommufd, IommufdFile};

/// The group of a device, or none: a device without one goes through its whole life all the same.
pub(super) struct Group {
    pub(super) number: u32,
    state: Mutex<State>,
}

struct State {
    /// Who may do what.
    life: DeviceGroup,
    iommu: Iommu,
}

/// What stands for the IOMMU of a group: a container, or an iommufd in a container's place.
#[derive(Default)]
enum Iommu {
    #[default]
    None,
    Container(Arc<Container>),
    Iommufd(Arc<Iommufd>),
}

impl Group {
    /// The group of a device that has just been found.
    pub(super) fn new(number: u32, node: Option<GroupNode>) -> Arc<Self> {
        let mut life = DeviceGroup::new(node);
        life.register();
        Arc::new(Self { number, state: Mutex::new(State { life, iommu: Iommu::None }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the group from being opened while its device is bound by its own node.
    ///
    /// # Errors
    /// EBUSY: it is open.
    pub(super) fn block(&self) -> Result<(), Errno> {
        self.state().life.block()
    }

    /// The end of [`Group::block`].
    pub(super) fn unblock(&self) {
        self.state().life.unblock();
    }

    /// Whether there is one.
    pub(super) fn exists(&self) -> bool {
        self.state().life.node().is_some()
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
        group.state().life.open(crate::memory::caller().raw_io)?;
        Ok(Arc::new_cyclic(|this| Self { world: world.clone(), group: group.clone(), this: this.clone() }))
    }

    pub(super) fn group(&self) -> &Arc<Group> {
        &self.group
    }

    fn get_status(&self, caller: Caller<'_>, argument: u64) -> Result<(), Errno> {
        group::get_status(caller.user, argument, || self.group.state().life.has_container())
    }

    fn set_container(&self, caller: Caller<'_>, argument: u64) -> Result<(), Errno> {
        let descriptor = group::descriptor(caller.user, argument)?;
        // A file that is not served here is no container either, but that is told last.
        let file = match caller.descriptors.get(descriptor) {
            Err(Errno::EBADFD) => None,
            other => Some(other?),
        };
        let mut state = self.group.state();
        if state.life.has_container() {
            return Err(Errno::EINVAL);
        }
        let file = file.ok_or(Errno::EBADFD)?;
        let iommu = if let Some(container) = file.as_any().downcast_ref::<ContainerFile>() {
            if !crate::memory::caller().raw_io {
                return Err(Errno::EPERM);
            }
            state.life.set_container()?;
            container.0.add_group();
            Iommu::Container(container.0.clone())
        } else if let Some(iommufd) = file.as_any().downcast_ref::<IommufdFile>() {
            iommufd.0.context().set_no_iommu_container()?;
            state.life.set_container()?;
            Iommu::Iommufd(iommufd.0.clone())
        } else {
            return Err(Errno::EBADFD);
        };
        state.iommu = iommu;
        Ok(())
    }

    fn unset_container(&self) -> Result<(), Errno> {
        let mut state = self.group.state();
        state.life.unset_container()?;
        state.leave();
        Ok(())
    }

    fn get_device_fd(&self, caller: Caller<'_>, argument: u64) -> Result<i64, Errno> {
        let text = group::text(caller.user, argument)?;
        let mut found = None;
        for device in &self.world.devices {
            if Arc::ptr_eq(&device.group, &self.group) && group::names(&device.name, text.as_bytes())? {
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
        match &state.iommu {
            Iommu::None => return Err(Errno::EINVAL),
            Iommu::Iommufd(iommufd) => {
                let compat = iommufd.context().compat_ioas().is_some();
                device.open_through_group(|opened| {
                    // A user who has an IOAS for VFIO's calls expects translation.
                    if opened == 0 && (!privileged || compat) { Err(Errno::EPERM) } else { Ok(()) }
                })?;
            }
            Iommu::Container(container) => {
                let set = container.is_set();
                state.life.open_device()?;
                let opened = device.open_through_group(|opened| match (opened, set) {
                    (1.., _) => Ok(()),
                    (0, false) => Err(Errno::EINVAL),
                    (0, true) if privileged => Ok(()),
                    (0, true) => Err(Errno::EPERM),
                });
                opened.inspect_err(|_| state.life.close_device())?;
                // The device keeps its group open.
                holds = self.this.upgrade();
            }
        }
        drop(state);
        Ok(GroupDeviceFile { world: self.world.clone(), device: device.clone(), group: holds })
    }
}

impl State {
    /// Leaves the container.
    fn leave(&mut self) {
        if let Iommu::Container(container) = std::mem::take(&mut self.iommu) {
            container.remove_group();
        }
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
        state.leave();
        state.life.close();
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

    fn touch(&self, touch: Touch) -> Option<u64> {
        self.device.served.touch(touch)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for GroupDeviceFile {
    fn drop(&mut self) {
        self.device.close_through_group();
        if let Some(file) = &self.group {
            file.group.state().life.close_device();
        }
    }
}
