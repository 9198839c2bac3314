//! VFIO's character devices: one for each device, bound to an iommufd.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noiommu_core::Errno;
use noiommu_uapi::vfio::device::*;
use rustix::fs::OFlags;
use zerocopy::FromZeros as _;

use super::{Link, not_opened};
use crate::ioctl::call_with;
use crate::{Error, Result, files};

/// Where the nodes are.
const NODES: &str = "/dev/vfio/devices";

/// A node of a device.
pub(super) struct Node {
    path: PathBuf,
    /// The device stands behind an IOMMU.
    pub(super) confined: bool,
}

/// The node of a device, by what its directory in sysfs tells.
pub(super) fn find(directory: &Path) -> Option<Node> {
    let names = files::names(&directory.join("vfio-dev")).ok()?;
    let name = names.into_iter().find(|name| name.starts_with("vfio") || name.starts_with("noiommu-vfio"))?;
    let path = Path::new(NODES).join(&name);
    files::exists(&path).then(|| Node { path, confined: !name.starts_with("noiommu-") })
}

/// Opens a node and binds it to the iommufd.
pub(super) fn open(name: &str, node: &Node, iommufd: &Arc<OwnedFd>) -> Result<(OwnedFd, Link)> {
    let device =
        files::open(&node.path, OFlags::RDWR).map_err(|error| not_opened(&node.path, name, &error))?;
    let mut bind = VfioDeviceBindIommufd {
        argsz: size_of::<VfioDeviceBindIommufd>() as u32,
        iommufd: iommufd.as_raw_fd(),
        ..VfioDeviceBindIommufd::new_zeroed()
    };
    match call_with(&device, VFIO_DEVICE_BIND_IOMMUFD, &mut bind) {
        Ok(_) => {
            let link = Link::Cdev { _iommufd: iommufd.clone(), id: bind.out_devid, confined: node.confined };
            Ok((device, link))
        }
        // Another descriptor of it is bound, or its group is open.
        Err(Errno::EINVAL | Errno::EBUSY) => Err(super::busy(name)),
        Err(errno) => Err(unsafe_interrupts(super::failed("binding an iommufd to", name, errno))),
    }
}

/// What EPERM means where an IOMMU is: its interrupts are not remapped, so a device could send any.
fn unsafe_interrupts(error: Error) -> Error {
    match error.errno() {
        Errno::EPERM => error.with_remedy(
            "the IOMMU does not confine interrupts; where that is acceptable: \
             echo 1 > /sys/module/iommufd/parameters/allow_unsafe_interrupts",
        ),
        _ => error,
    }
}

/// VFIO_DEVICE_ATTACH_IOMMUFD_PT.
pub(super) fn attach(device: &OwnedFd, name: &str, id: u32) -> Result<()> {
    let mut attach = VfioDeviceAttachIommufdPt {
        argsz: size_of::<VfioDeviceAttachIommufdPt>() as u32,
        pt_id: id,
        ..VfioDeviceAttachIommufdPt::new_zeroed()
    };
    call_with(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut attach)
        .map_err(|errno| unsafe_interrupts(super::failed("attaching an address space to", name, errno)))?;
    Ok(())
}

/// VFIO_DEVICE_DETACH_IOMMUFD_PT.
pub(super) fn detach(device: &OwnedFd, name: &str) {
    let mut detach = VfioDeviceDetachIommufdPt {
        argsz: size_of::<VfioDeviceDetachIommufdPt>() as u32,
        ..VfioDeviceDetachIommufdPt::new_zeroed()
    };
    if let Err(errno) = call_with(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &mut detach) {
        tracing::warn!(device = name, %errno, "not detached");
    }
}
