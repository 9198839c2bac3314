//! The calls of a group: `/dev/vfio/N`, or `/dev/vfio/noiommu-N` for a device without an IOMMU.

use crate::ioctl::vfio;
use crate::layout::structures;

/// Tells the state of the group: [`VfioGroupStatus`].
pub const VFIO_GROUP_GET_STATUS: u32 = vfio(3);
/// Puts the group into a container; the argument points to the container's descriptor (`i32`).
pub const VFIO_GROUP_SET_CONTAINER: u32 = vfio(4);
/// Takes the group out of its container; no argument.
pub const VFIO_GROUP_UNSET_CONTAINER: u32 = vfio(5);
/// Opens a device of the group; the argument points to its name, ended by a zero byte. Answers a descriptor.
pub const VFIO_GROUP_GET_DEVICE_FD: u32 = vfio(6);

/// All devices of the group can be used.
pub const VFIO_GROUP_FLAGS_VIABLE: u32 = 1 << 0;
/// The group is in a container.
pub const VFIO_GROUP_FLAGS_CONTAINER_SET: u32 = 1 << 1;

structures! {
    /// Argument of [`VFIO_GROUP_GET_STATUS`].
    struct VfioGroupStatus = vfio_group_status, 8 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// Out: `VFIO_GROUP_FLAGS_*`.
        4 => flags: u32,
    }
}
