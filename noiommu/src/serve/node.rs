//! The nodes that stand in /dev though the kernel has none.

use std::path::PathBuf;

/// What a node is, and what else in sysfs tells programs about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// `/dev/iommu`.
    Iommufd,
    /// `/dev/vfio/vfio`.
    Container,
    /// `/dev/vfio/N` or `/dev/vfio/noiommu-N`.
    Group {
        /// The number of the group in `/sys/kernel/iommu_groups`.
        number: u32,
        /// The sysfs directories of the devices in it, under /sys/devices. Where a device has no `iommu_group` link, it gets one.
        devices: Vec<PathBuf>,
    },
    /// `/dev/vfio/devices/noiommu-vfioN`.
    Device {
        /// The device's sysfs directory, under /sys/devices; `vfio-dev/noiommu-vfioN` appears in it.
        directory: PathBuf,
        /// Files of the directory and what they say, where there really is no such directory: a simulated device.
        attributes: Vec<(String, String)>,
    },
}

/// A device node that this process sees though the kernel has none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Where it is, under /dev.
    pub path: PathBuf,
    /// What it is.
    pub kind: NodeKind,
    /// Its permission bits; root owns it.
    pub mode: u32,
    /// The device number, as `stat` and the `dev` file tell it.
    pub major: u32,
    /// The lower half of it.
    pub minor: u32,
}
