//! Which other devices a reset of the whole bus would hit, and whose they are.

use crate::Errno;

/// Where a PCI function is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    /// The PCI domain.
    pub segment: u16,
    /// The bus in it.
    pub bus: u8,
    /// Device (5 bits) and function (3 bits).
    pub devfn: u8,
}

/// Whose a device is, as seen from an iommufd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// It is bound to this iommufd under this object id.
    Here(u32),
    /// It is bound to nothing, but another device of its group is bound to this iommufd.
    ByGroup,
    /// It is served, but neither of the above.
    Elsewhere,
    /// It is not served as a VFIO device at all.
    NotServed,
}

/// How the device that is called was opened, and whose its neighbours are.
pub trait Neighbours {
    /// Whether it was opened as `/dev/vfio/devices/*` (and bound) rather than through its group.
    fn through_cdev(&self) -> bool;

    /// Whose the device at `address` is, as seen from the iommufd that the called device is bound to. Asked for every
    /// device on the bus, the called one included; for a device opened through its group only [`Bound::NotServed`] counts.
    fn bound(&self, address: Address) -> Bound;

    /// The number of the group of the device at `address`; `None`: it has none.
    fn group_of(&self, address: Address) -> Option<u32>;

    /// The number of the group that is open at a descriptor of the caller.
    ///
    /// # Errors
    /// EBADF: no such descriptor; EINVAL: it is no open group.
    fn group_at(&self, descriptor: i32) -> Result<u32, Errno>;
}
