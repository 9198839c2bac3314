//! Resets: of the function alone, and of all functions on its bus or slot.

use noiommu_uapi::vfio::pci::*;
use zerocopy::IntoBytes;

use super::{Backend, Bound, Neighbours, PciDevice};
use crate::vfio::argument;
use crate::{Errno, TryVec, UserMemory};

/// Bytes of both structures for resets of a bus.
const FIXED: usize = 12;

impl<B: Backend> PciDevice<B> {
    pub(super) fn reset(&mut self) -> Result<i64, Errno> {
        if !self.can_reset {
            return Err(Errno::EINVAL);
        }
        self.revoke();
        self.set_power(0);
        self.revoke();
        let outcome = self.backend.reset();
        self.memory_changed();
        outcome.map(|()| 0)
    }

    fn reset_scope(&self) -> Result<TryVec<super::Address>, Errno> {
        let mut functions = TryVec::new();
        self.backend.reset_scope(&mut functions)?;
        Ok(functions)
    }

    pub(super) fn get_hot_reset_info(
        &self,
        user: &dyn UserMemory,
        neighbours: &dyn Neighbours,
        argument: u64,
    ) -> Result<i64, Errno> {
        let mut info: VfioPciHotResetInfo = argument::read(user, argument, FIXED)?;
        let Some(room) = info.argsz.checked_sub(FIXED as u32) else { return Err(Errno::EINVAL) };
        info.flags = 0;
        let functions = self.reset_scope()?;
        info.count = functions.len() as u32;
        if u64::from(info.count) > u64::from(room.wrapping_shr(3)) {
            argument::write(user, argument, &info, FIXED)?;
            return Err(Errno::ENOSPC);
        }
        let through_cdev = neighbours.through_cdev();
        if through_cdev {
            info.flags = VFIO_PCI_HOT_RESET_FLAG_DEV_ID | VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED;
        }
        let mut devices = TryVec::new();
        for &at in functions.iter() {
            let group_id = if !through_cdev {
                neighbours.group_of(at).ok_or(Errno::EPERM)?
            } else {
                match neighbours.bound(at) {
                    Bound::Here(id) => id,
                    Bound::ByGroup => VFIO_PCI_DEVID_OWNED as u32,
                    Bound::Elsewhere | Bound::NotServed => {
                        info.flags &= !VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED;
                        VFIO_PCI_DEVID_NOT_OWNED as u32
                    }
                }
            };
            devices.try_push(VfioPciDependentDevice {
                group_id,
                segment: at.segment,
                bus: at.bus,
                devfn: at.devfn,
            })?;
        }
        user.write(argument.wrapping_add(FIXED as u64), devices.as_bytes())?;
        argument::write(user, argument, &info, FIXED)?;
        Ok(0)
    }

    pub(super) fn hot_reset(
        &mut self,
        user: &dyn UserMemory,
        neighbours: &dyn Neighbours,
        argument: u64,
    ) -> Result<i64, Errno> {
        let reset: VfioPciHotReset = argument::read(user, argument, FIXED)?;
        let through_cdev = neighbours.through_cdev();
        // Groups prove that the devices are the caller's; whoever opened a cdev has none.
        if reset.argsz < FIXED as u32 || reset.flags != 0 || (reset.count != 0) == through_cdev {
            return Err(Errno::EINVAL);
        }
        let functions = self.reset_scope()?;
        if through_cdev {
            let owned = |&at| matches!(neighbours.bound(at), Bound::Here(_) | Bound::ByGroup);
            if !functions.iter().all(owned) {
                return Err(Errno::EINVAL);
            }
        } else {
            if reset.count as usize > functions.len() {
                return Err(Errno::EINVAL);
            }
            let groups = groups(user, neighbours, argument.wrapping_add(FIXED as u64), reset.count)?;
            let owned = |&at| {
                neighbours.bound(at) != Bound::NotServed
                    && neighbours.group_of(at).is_some_and(|group| groups.contains(&group))
            };
            if !functions.iter().all(owned) {
                return Err(Errno::EINVAL);
            }
        }
        self.revoke();
        self.set_power(0);
        self.revoke();
        let outcome = self.backend.reset_bus();
        self.memory_changed();
        outcome.map(|()| 0)
    }
}

/// The numbers of the groups whose descriptors are at `address`.
fn groups(
    user: &dyn UserMemory,
    neighbours: &dyn Neighbours,
    address: u64,
    count: u32,
) -> Result<TryVec<u32>, Errno> {
    let mut descriptors = TryVec::new();
    for index in 0..u64::from(count) {
        let mut bytes = [0; 4];
        user.read(address.wrapping_add(index.wrapping_mul(4)), &mut bytes)?;
        descriptors.try_push(i32::from_ne_bytes(bytes))?;
    }
    let mut groups = TryVec::new();
    for &descriptor in descriptors.iter() {
        groups.try_push(neighbours.group_at(descriptor)?)?;
    }
    Ok(groups)
}
