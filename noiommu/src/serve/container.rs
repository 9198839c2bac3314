//! /dev/vfio/vfio: the container of groups. Without an IOMMU it maps nothing; it is there because a group needs one.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use noiommu_core::Errno;
use noiommu_uapi::vfio::container::*;

use super::file::{Caller, FileOperations};

/// A container, as its file and its groups share it.
#[derive(Default)]
pub(super) struct Container {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    groups: u32,
    /// VFIO_NOIOMMU_IOMMU has been chosen.
    set: bool,
}

impl Container {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_group(&self) {
        self.state().groups += 1;
    }

    /// With the last group the choice is gone, too.
    pub(super) fn remove_group(&self) {
        let mut state = self.state();
        state.groups = state.groups.saturating_sub(1);
        state.set &= state.groups > 0;
    }

    /// Whether an extension can be had. Before a group is in it, a container offers what any driver of IOMMUs would; with a
    /// no-IOMMU group, nothing but that.
    fn offers(&self, extension: u64) -> bool {
        const TYPE1_V2: u32 = VFIO_TYPE1v2_IOMMU;
        match u32::try_from(extension) {
            Ok(VFIO_NOIOMMU_IOMMU) => true,
            Ok(VFIO_TYPE1_IOMMU | TYPE1_V2 | VFIO_UNMAP_ALL) => self.state().groups == 0,
            _ => false,
        }
    }

    pub(super) fn is_set(&self) -> bool {
        self.state().set
    }

    fn set_iommu(&self, kind: u64) -> Result<(), Errno> {
        let mut state = self.state();
        if state.groups == 0 || state.set {
            return Err(Errno::EINVAL);
        }
        if kind != u64::from(VFIO_NOIOMMU_IOMMU) {
            return Err(Errno::ENODEV);
        }
        if !crate::memory::caller().raw_io {
            return Err(Errno::EPERM);
        }
        state.set = true;
        Ok(())
    }
}

/// An open container.
pub(super) struct ContainerFile(pub(super) Arc<Container>);

impl FileOperations for ContainerFile {
    fn ioctl(&self, _: Caller<'_>, request: u32, argument: u64) -> Result<i64, Errno> {
        match request {
            VFIO_GET_API_VERSION => Ok(i64::from(VFIO_API_VERSION)),
            VFIO_CHECK_EXTENSION => Ok(i64::from(self.0.offers(argument))),
            VFIO_SET_IOMMU => self.0.set_iommu(argument).map(|()| 0),
            // What maps belongs to an IOMMU, and asks for one to be chosen first.
            _ if self.0.is_set() => Err(Errno::ENOTTY),
            _ => Err(Errno::EINVAL),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
