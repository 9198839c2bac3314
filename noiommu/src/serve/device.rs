//! A served device, as all its openers share it, and the world it lives in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use noiommu_core::vfio::pci::{Address, Bound, Neighbours};
use noiommu_core::{Errno, ObjectId};

use super::devices::{ServedDevice, Session};
use super::file::Caller;
use super::group::{Group, GroupFile};
use super::iommufd::Iommufd;
use super::memory::ServedMemory;
use crate::process;
use crate::stats::Counted;

/// All that a server serves.
pub(super) struct World {
    pub(super) memory: ServedMemory,
    pub(super) devices: Vec<Arc<Device>>,
}

/// A device, whoever has it open.
pub(super) struct Device {
    /// Its name in the bus's directory in sysfs: what VFIO_GROUP_GET_DEVICE_FD takes.
    pub(super) name: String,
    /// Where it is.
    pub(super) address: Address,
    /// Its group, which may be none.
    pub(super) group: Arc<Group>,
    pub(super) served: Box<dyn ServedDevice>,
    pub(super) state: Mutex<State>,
}

/// Who has a device open.
#[derive(Default)]
pub(super) struct State {
    /// Descriptors that may use it.
    opened: u32,
    /// The process that opened it first.
    process: u32,
    /// The iommufd that it is bound to, and its number there.
    bound: Option<(Arc<Iommufd>, ObjectId)>,
    /// While it is open.
    counted: Option<Counted>,
}

impl Device {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// BIND: one opener at a time. Answers the device's number in the iommufd.
    pub(super) fn bind(&self, iommufd: &Arc<Iommufd>) -> Result<ObjectId, Errno> {
        let mut state = self.state();
        if state.opened > 0 {
            return Err(Errno::EINVAL);
        }
        let id = iommufd.context().bind()?;
        if let Err(error) = self.served.open_first() {
            let _ = iommufd.context().unbind(id);
            // Another process has it: an opener more, as far as anybody can tell.
            return Err(if error == Errno::EBUSY { Errno::EINVAL } else { error });
        }
        (state.opened, state.process) = (1, process::id());
        state.counted = Some(Counted::device());
        state.bound = Some((iommufd.clone(), id));
        Ok(id)
    }

    /// The end of a binding. The device is quiet before its memory is let go.
    pub(super) fn unbind(&self) {
        let mut state = self.state();
        self.close_last(&state);
        state.opened = 0;
        state.counted = None;
        if let Some((iommufd, id)) = state.bound.take() {
            let _ = iommufd.context().unbind(id);
        }
    }

    /// What it is bound to.
    pub(super) fn binding(&self) -> Option<(Arc<Iommufd>, ObjectId)> {
        self.state().bound.clone()
    }

    /// An opener more through the group; any number.
    pub(super) fn open_through_group(
        &self,
        check: impl FnOnce(u32) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut state = self.state();
        check(state.opened)?;
        if state.opened == 0 {
            self.served.open_first()?;
            state.process = process::id();
            state.counted = Some(Counted::device());
        }
        state.opened += 1;
        Ok(())
    }

    /// An opener less.
    pub(super) fn close_through_group(&self) {
        let mut state = self.state();
        state.opened = state.opened.saturating_sub(1);
        if state.opened == 0 {
            state.counted = None;
            self.close_last(&state);
        }
    }

    /// A forked child has inherited the device, but not the say: its parent goes on with it.
    fn close_last(&self, state: &State) {
        if state.process == process::id() {
            self.served.close_last();
        }
    }
}

/// A device as one of its openers sees it and its neighbours.
pub(super) struct View<'a> {
    pub(super) world: &'a World,
    pub(super) device: &'a Device,
    pub(super) through_cdev: bool,
    pub(super) caller: Caller<'a>,
}

impl View<'_> {
    pub(super) fn session(&self) -> Session<'_> {
        Session { caller: self.caller, neighbours: self }
    }

    fn at(&self, address: Address) -> Option<&Arc<Device>> {
        self.world.devices.iter().find(|device| device.address == address)
    }
}

impl Neighbours for View<'_> {
    fn through_cdev(&self) -> bool {
        self.through_cdev
    }

    fn bound(&self, address: Address) -> Bound {
        let Some(other) = self.at(address) else { return Bound::NotServed };
        let Some((ours, _)) = self.device.binding() else { return Bound::Elsewhere };
        match other.binding() {
            Some((theirs, id)) if Arc::ptr_eq(&ours, &theirs) => Bound::Here(id.0),
            // Every device has a group of its own, so no other device of it can be bound.
            _ => Bound::Elsewhere,
        }
    }

    fn group_of(&self, address: Address) -> Option<u32> {
        self.at(address).map(|device| &device.group).filter(|group| group.exists()).map(|group| group.number)
    }

    fn group_at(&self, descriptor: i32) -> Result<u32, Errno> {
        let file = self.caller.descriptors.get(descriptor).map_err(|error| match error {
            Errno::EBADFD => Errno::EINVAL,
            other => other,
        })?;
        let group = file.as_any().downcast_ref::<GroupFile>().ok_or(Errno::EINVAL)?;
        Ok(group.group().number)
    }
}
