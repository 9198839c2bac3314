//! Resets: of the function alone, and of all functions on its bus or slot.

use noiommu_uapi::vfio::pci::*;
use zerocopy::IntoBytes;

use super::{Address, Backend, Bound, Neighbours, PciDevice};
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

    pub(super) fn hot_reset(
        &mut self,
        user: &dyn UserMemory,
        neighbours: &dyn Neighbours,
        argument: u64,
    ) -> Result<i64, Errno> {
        check_hot_reset(user, neighbours, argument, |functions| self.backend.reset_scope(functions))?;
        self.revoke();
        self.set_power(0);
        self.revoke();
        let outcome = self.backend.reset_bus();
        self.memory_changed();
        outcome.map(|()| 0)
    }
}

/// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO for a device whose reset hits the functions that `scope` tells.
///
/// # Errors
/// EFAULT; EINVAL for too short an argument; ENOSPC where the functions do not fit, with their number told; EPERM for a
/// function without a group; those of `scope`.
pub fn hot_reset_info(
    user: &dyn UserMemory,
    neighbours: &dyn Neighbours,
    argument: u64,
    scope: impl FnOnce(&mut TryVec<Address>) -> Result<(), Errno>,
) -> Result<i64, Errno> {
    let mut info: VfioPciHotResetInfo = argument::read(user, argument, FIXED)?;
    let Some(room) = info.argsz.checked_sub(FIXED as u32) else { return Err(Errno::EINVAL) };
    info.flags = 0;
    let mut functions = TryVec::new();
    scope(&mut functions)?;
    info.count = functions.len() as u32;
    if info.count > room.wrapping_shr(3) {
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
        let Address { segment, bus, devfn } = at;
        devices.try_push(VfioPciDependentDevice { group_id, segment, bus, devfn })?;
    }
    user.write(argument.wrapping_add(FIXED as u64), devices.as_bytes())?;
    argument::write(user, argument, &info, FIXED)?;
    Ok(0)
}

/// Whether VFIO_DEVICE_PCI_HOT_RESET may reset the functions that `scope` tells: all of them are the caller's.
///
/// # Errors
/// EFAULT; EINVAL for a wrong argument or functions that are not the caller's; EBADF for a descriptor; those of `scope`.
pub fn check_hot_reset(
    user: &dyn UserMemory,
    neighbours: &dyn Neighbours,
    argument: u64,
    scope: impl FnOnce(&mut TryVec<Address>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let reset: VfioPciHotReset = argument::read(user, argument, FIXED)?;
    let through_cdev = neighbours.through_cdev();
    // Groups prove that the devices are the caller's; whoever opened a cdev has none.
    if reset.argsz < FIXED as u32 || reset.flags != 0 || (reset.count != 0) == through_cdev {
        return Err(Errno::EINVAL);
    }
    let mut functions = TryVec::new();
    scope(&mut functions)?;
    let owned = if through_cdev {
        functions.iter().all(|&at| matches!(neighbours.bound(at), Bound::Here(_) | Bound::ByGroup))
    } else {
        if reset.count as usize > functions.len() {
            return Err(Errno::EINVAL);
        }
        let groups = groups(user, neighbours, argument.wrapping_add(FIXED as u64), reset.count)?;
        functions.iter().all(|&at| {
            neighbours.bound(at) != Bound::NotServed
                && neighbours.group_of(at).is_some_and(|group| groups.contains(&group))
        })
    };
    if owned { Ok(()) } else { Err(Errno::EINVAL) }
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
