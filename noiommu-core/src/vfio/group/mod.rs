//! The group of a device, or none: who may use the device through it, and how that excludes its cdev.
//!
//! A device without an IOMMU has a group of its own, or none at all where only cdevs were made for such devices
//! ([`crate::vfio::config`]). None is no special case for who deals with the device: there is nothing to open, so nothing is
//! excluded, and the steps of its life do nothing.

mod arguments;

use super::config::GroupNode;
use crate::Errno;

pub use arguments::{Text, descriptor, get_status, names, text};

/// A group with one device in it.
#[derive(Debug)]
struct Group {
    node: GroupNode,
    /// The device can be found in it.
    registered: bool,
    /// The device was taken from it for good; the node is gone, an open file may remain.
    removed: bool,
    /// The file is open; only one at a time.
    open: bool,
    /// The group is in a container.
    container: bool,
    /// Files of the device that were got from the group.
    devices: u32,
    /// Files of the device that are bound as cdevs.
    cdevs: u32,
}

/// What a device knows of its group. Not `Sync` by itself: the owner locks.
///
/// Files got from the group keep the group's file open, and cdevs that blocked the group unblock it: both the owner sees to.
#[derive(Debug)]
pub struct DeviceGroup(Option<Group>);

impl DeviceGroup {
    /// The group of a device that has just been probed, the device not yet in it; `None` for a device without one.
    #[must_use]
    pub const fn new(node: Option<GroupNode>) -> Self {
        match node {
            Some(node) => Self(Some(Group {
                node,
                registered: false,
                removed: false,
                open: false,
                container: false,
                devices: 0,
                cdevs: 0,
            })),
            None => Self(None),
        }
    }

    /// What kind of group it is; `None` for none, or no longer one.
    #[must_use]
    pub fn node(&self) -> Option<GroupNode> {
        self.0.as_ref().filter(|group| !group.removed).map(|group| group.node)
    }

    /// The device can be found in the group from now on.
    pub fn register(&mut self) {
        if let Some(group) = &mut self.0 {
            group.registered = true;
        }
    }

    /// The device can no longer be found in the group. Files of it go on.
    pub fn unregister(&mut self) {
        if let Some(group) = &mut self.0 {
            group.registered = false;
        }
    }

    /// The device leaves the group, which is gone with it: its node, and its container.
    pub fn remove(&mut self) {
        if let Some(group) = &mut self.0 {
            group.registered = false;
            group.removed = true;
            group.container = false;
        }
    }

    /// The group's file is opened; `raw_io` tells whether the caller has CAP_SYS_RAWIO.
    ///
    /// # Errors
    /// ENODEV: there is no group (any more); EPERM: a no-IOMMU group, and no CAP_SYS_RAWIO; EBUSY: a cdev of the device is
    /// bound, or the file is open.
    pub fn open(&mut self, raw_io: bool) -> Result<(), Errno> {
        let group = self.group_mut()?;
        if group.node == GroupNode::Noiommu && !raw_io {
            return Err(Errno::EPERM);
        }
        if group.cdevs > 0 || group.open {
            return Err(Errno::EBUSY);
        }
        group.open = true;
        Ok(())
    }

    /// The group's file is closed, after all files that were got from it; the container is left.
    pub fn close(&mut self) {
        if let Some(group) = &mut self.0 {
            group.open = false;
            group.container = false;
        }
    }

    /// Whether the group's file is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.as_ref().is_some_and(|group| group.open)
    }

    /// VFIO_GROUP_SET_CONTAINER's part here.
    ///
    /// # Errors
    /// EINVAL: it is in one; ENODEV: there is no group (any more).
    pub fn set_container(&mut self) -> Result<(), Errno> {
        if self.has_container() {
            return Err(Errno::EINVAL);
        }
        self.group_mut()?.container = true;
        Ok(())
    }

    /// VFIO_GROUP_UNSET_CONTAINER's part here.
    ///
    /// # Errors
    /// EINVAL: it is in none; EBUSY: a file of the device is open that was got from the group.
    pub fn unset_container(&mut self) -> Result<(), Errno> {
        match &mut self.0 {
            Some(Group { container: true, devices: 1.., .. }) => Err(Errno::EBUSY),
            Some(group @ Group { container: true, .. }) => {
                group.container = false;
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Whether the group is in a container; an iommufd in a container's place is one.
    #[must_use]
    pub fn has_container(&self) -> bool {
        self.0.as_ref().is_some_and(|group| group.container)
    }

    /// VFIO_GROUP_GET_DEVICE_FD's part here: a file of the device.
    ///
    /// # Errors
    /// ENODEV: the device is not in the group; EINVAL: the group is in no container; EMFILE: no more can be counted.
    pub fn open_device(&mut self) -> Result<(), Errno> {
        let group = self.group_mut()?;
        if !group.registered {
            return Err(Errno::ENODEV);
        }
        if !group.container {
            return Err(Errno::EINVAL);
        }
        group.devices = group.devices.checked_add(1).ok_or(Errno::EMFILE)?;
        Ok(())
    }

    /// A file that [`DeviceGroup::open_device`] allowed is closed.
    pub fn close_device(&mut self) {
        if let Some(group) = &mut self.0 {
            group.devices = group.devices.saturating_sub(1);
        }
    }

    /// A cdev of the device is about to be bound: the group cannot be opened until [`DeviceGroup::unblock`].
    ///
    /// # Errors
    /// EBUSY: the group's file is open; EMFILE: no more can be counted.
    pub fn block(&mut self) -> Result<(), Errno> {
        let Some(group) = &mut self.0 else { return Ok(()) };
        if group.open {
            return Err(Errno::EBUSY);
        }
        group.cdevs = group.cdevs.checked_add(1).ok_or(Errno::EMFILE)?;
        Ok(())
    }

    /// What [`DeviceGroup::block`] allowed is over: the cdev is closed, or could not be bound.
    pub fn unblock(&mut self) {
        if let Some(group) = &mut self.0 {
            group.cdevs = group.cdevs.saturating_sub(1);
        }
    }

    /// The group, while it has its device.
    fn group_mut(&mut self) -> Result<&mut Group, Errno> {
        self.0.as_mut().filter(|group| !group.removed).ok_or(Errno::ENODEV)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed(node: GroupNode) -> DeviceGroup {
        let mut group = DeviceGroup::new(Some(node));
        group.register();
        group
    }

    #[test]
    fn a_device_without_a_group_goes_through_its_whole_life() {
        let mut group = DeviceGroup::new(None);
        group.register();
        assert_eq!(group.node(), None);
        assert!(!group.has_container() && !group.is_open());
        // Two openers may both try to bind; who is second is told by the device, not here.
        assert_eq!(group.block(), Ok(()));
        assert_eq!(group.block(), Ok(()));
        // Nothing to open, and no container to put it in.
        for raw_io in [false, true] {
            assert_eq!(group.open(raw_io), Err(Errno::ENODEV));
        }
        assert_eq!(group.set_container(), Err(Errno::ENODEV));
        assert_eq!(group.unset_container(), Err(Errno::EINVAL));
        assert_eq!(group.open_device(), Err(Errno::ENODEV));
        for _ in 0..3 {
            // Once more than blocked.
            group.unblock();
        }
        assert_eq!(group.block(), Ok(()));
        group.unblock();
        group.close_device();
        group.close();
        group.unregister();
        group.remove();
        group.remove();
        assert_eq!(group.block(), Ok(()));
        assert!(!group.has_container() && group.node().is_none());
    }

    #[test]
    fn the_group_and_the_cdev_exclude_each_other() {
        for node in [GroupNode::Iommu, GroupNode::Noiommu] {
            let mut group = probed(node);
            // The cdev first.
            assert_eq!(group.block(), Ok(()));
            assert_eq!(group.open(true), Err(Errno::EBUSY));
            assert_eq!(group.block(), Ok(()));
            group.unblock();
            assert_eq!(group.open(true), Err(Errno::EBUSY), "one is still bound");
            group.unblock();
            // The group first.
            assert_eq!(group.open(true), Ok(()));
            assert_eq!(group.block(), Err(Errno::EBUSY));
            assert_eq!(group.open(true), Err(Errno::EBUSY), "one file at a time");
            group.close();
            // What was refused has left nothing behind.
            assert_eq!(group.block(), Ok(()));
            group.unblock();
            assert_eq!(group.open(true), Ok(()));
        }
    }

    #[test]
    fn no_order_of_calls_lets_both_in() {
        for sequence in 0..4_u32.pow(9) {
            let mut group = probed(GroupNode::Noiommu);
            let (mut open, mut cdevs) = (false, 0);
            for step in 0..9 {
                match sequence >> (2 * step) & 3 {
                    0 => {
                        let free = !open && cdevs == 0;
                        assert_eq!(group.open(true), if free { Ok(()) } else { Err(Errno::EBUSY) });
                        open |= free;
                    }
                    1 => {
                        assert_eq!(group.block(), if open { Err(Errno::EBUSY) } else { Ok(()) });
                        cdevs += u32::from(!open);
                    }
                    2 if open => {
                        group.close();
                        open = false;
                    }
                    3 if cdevs > 0 => {
                        group.unblock();
                        cdevs -= 1;
                    }
                    _ => {}
                }
                assert!(!(open && cdevs > 0) && group.is_open() == open);
            }
        }
    }

    #[test]
    fn a_no_iommu_group_asks_for_the_capability_before_it_looks_further() {
        let mut group = probed(GroupNode::Noiommu);
        assert_eq!(group.open(false), Err(Errno::EPERM));
        assert_eq!(group.block(), Ok(()));
        assert_eq!(group.open(false), Err(Errno::EPERM));
        group.unblock();
        assert!(!group.is_open());
        assert_eq!(group.open(true), Ok(()));
        // Behind an IOMMU nobody is asked.
        assert_eq!(probed(GroupNode::Iommu).open(false), Ok(()));
    }

    #[test]
    fn devices_are_got_from_a_group_in_a_container() {
        let mut group = probed(GroupNode::Noiommu);
        assert_eq!(group.open(true), Ok(()));
        assert_eq!(group.open_device(), Err(Errno::EINVAL));
        assert_eq!(group.unset_container(), Err(Errno::EINVAL));
        assert_eq!(group.set_container(), Ok(()));
        assert_eq!(group.set_container(), Err(Errno::EINVAL));
        assert!(group.has_container());
        assert_eq!(group.open_device(), Ok(()));
        assert_eq!(group.open_device(), Ok(()));
        assert_eq!(group.unset_container(), Err(Errno::EBUSY));
        group.close_device();
        assert_eq!(group.unset_container(), Err(Errno::EBUSY));
        group.close_device();
        assert_eq!(group.unset_container(), Ok(()));
        assert!(!group.has_container());
        assert_eq!(group.set_container(), Ok(()));
        group.close();
        assert!(!group.has_container() && !group.is_open(), "left with the file");
    }

    #[test]
    fn a_removed_device_leaves_a_dead_group() {
        let mut group = probed(GroupNode::Noiommu);
        assert_eq!(group.open(true), Ok(()));
        assert_eq!(group.set_container(), Ok(()));
        group.unregister();
        assert_eq!(group.node(), Some(GroupNode::Noiommu));
        assert_eq!(group.open_device(), Err(Errno::ENODEV), "not found");
        group.remove();
        assert_eq!(group.node(), None);
        assert!(!group.has_container());
        assert_eq!(group.set_container(), Err(Errno::ENODEV));
        assert!(group.is_open(), "the file that was open is open still");
        group.close();
        assert_eq!(group.open(true), Err(Errno::ENODEV));
        assert_eq!(group.open(false), Err(Errno::ENODEV));
    }
}
