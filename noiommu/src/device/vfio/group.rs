//! VFIO's groups and containers.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use noiommu_core::Errno;
use noiommu_uapi::vfio::container::*;
use noiommu_uapi::vfio::group::*;
use rustix::fs::OFlags;
use zerocopy::FromZeros as _;

use super::{Link, failed, not_opened};
use crate::ioctl::{call, call_with};
use crate::{Error, ErrorKind, Result, files};

const CONTAINER: &str = "/dev/vfio/vfio";

/// The node of a device's group.
pub(super) struct Node {
    path: PathBuf,
    /// The device stands behind an IOMMU.
    pub(super) confined: bool,
}

/// The node of the group that a device is in, by what its directory in sysfs tells.
pub(super) fn find(directory: &Path) -> Option<Node> {
    let group = directory.join("iommu_group");
    let number = files::link_name(&group)?;
    let confined = !super::super::sysfs::is_dummy_group(&group);
    let path = Path::new("/dev/vfio").join(if confined { number } else { format!("noiommu-{number}") });
    files::exists(&path).then_some(Node { path, confined })
}

/// A group that is open here, in a container of its own. The kernel lets a group be opened once, so all of its devices that this
/// process has share this.
pub(super) struct Group {
    /// Closed first: the container keeps its IOMMU for as long as a group is in it.
    group: OwnedFd,
    container: Arc<OwnedFd>,
    /// The devices of it that are open here.
    members: Mutex<Vec<String>>,
}

/// The groups that are open in this process, by the paths of their nodes.
static OPEN: Mutex<Vec<(PathBuf, Weak<Group>)>> = Mutex::new(Vec::new());

/// How many milliseconds a group may take to close: here, where another thread is at it, or elsewhere, where the guardian of a process
/// that died makes its device quiet.
const CLOSING: u32 = 500;

/// Opens a device of a group.
pub(super) fn open(name: &str, directory: &Path, node: &Node) -> Result<(OwnedFd, Link)> {
    let member = Member::new(Group::shared(name, directory, node)?, name)?;
    let group = member.group();
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    let device = call_with(&group.group, VFIO_GROUP_GET_DEVICE_FD, text.as_mut_slice()).map_err(|errno| {
        if errno == Errno::EBUSY { super::busy(name) } else { failed("opening", name, errno) }
    })?;
    let device = i32::try_from(device).map_err(|_| Error::from(Errno::EIO))?;
    // SAFETY: the kernel has answered a new descriptor, which nobody else knows of.
    let device = unsafe { OwnedFd::from_raw_fd(device) };
    Ok((device, Link::Group { member, confined: node.confined }))
}

/// A device of a group that is open here. The kernel would open it any number of times; the kit drives it once.
pub(super) struct Member {
    group: Arc<Group>,
    name: String,
}

impl Member {
    fn new(group: Arc<Group>, name: &str) -> Result<Self> {
        let mut members = group.members.lock().unwrap_or_else(PoisonError::into_inner);
        if members.iter().any(|member| member == name) {
            return Err(super::busy(name));
        }
        members.push(name.to_owned());
        drop(members);
        Ok(Self { group, name: name.to_owned() })
    }

    pub(super) fn group(&self) -> &Arc<Group> {
        &self.group
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut members = self.group.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| *member != self.name);
    }
}

impl Group {
    /// The group that is open here, or is opened now.
    fn shared(name: &str, directory: &Path, node: &Node) -> Result<Arc<Self>> {
        for _ in 0..CLOSING {
            let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
            let known = open.iter().find(|(path, _)| *path == node.path).map(|(_, group)| group.upgrade());
            if let Some(Some(group)) = known {
                return Ok(group);
            }
            match Self::new(name, directory, node) {
                Ok(group) => {
                    let group = Arc::new(group);
                    open.retain(|(_, group)| group.strong_count() > 0);
                    open.push((node.path.clone(), Arc::downgrade(&group)));
                    return Ok(group);
                }
                Err(error) if error.kind() == ErrorKind::Busy && (known.is_some() || !node.confined) => {}
                Err(error) => return Err(error),
            }
            drop(open);
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(super::busy(name))
    }

    fn new(name: &str, directory: &Path, node: &Node) -> Result<Self> {
        let path = Path::new(CONTAINER);
        let container = files::open(path, OFlags::RDWR).map_err(|error| not_opened(path, name, &error))?;
        // SAFETY: no argument.
        let version = unsafe { call(&container, VFIO_GET_API_VERSION, 0) }
            .map_err(|errno| failed("asking the VFIO container for", name, errno))?;
        if version != i64::from(VFIO_API_VERSION) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                Errno::ENOTTY,
                format!("VFIO speaks version {version} here, not {VFIO_API_VERSION}"),
            ));
        }
        let group =
            files::open(&node.path, OFlags::RDWR).map_err(|error| not_opened(&node.path, name, &error))?;
        let mut status =
            VfioGroupStatus { argsz: size_of::<VfioGroupStatus>() as u32, ..VfioGroupStatus::new_zeroed() };
        call_with(&group, VFIO_GROUP_GET_STATUS, &mut status)
            .map_err(|errno| failed("asking about the group of", name, errno))?;
        if status.flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(not_viable(name, directory));
        }
        call_with(&group, VFIO_GROUP_SET_CONTAINER, &mut container.as_raw_fd())
            .map_err(|errno| failed("putting into a container the group of", name, errno))?;
        let kind = if node.confined { VFIO_TYPE1v2_IOMMU } else { VFIO_NOIOMMU_IOMMU };
        // SAFETY: the argument is a number.
        unsafe { call(&container, VFIO_SET_IOMMU, kind.into()) }.map_err(|errno| {
            let error = failed("choosing the IOMMU of", name, errno);
            match errno {
                Errno::EPERM if node.confined => error.with_remedy(
                    "the IOMMU does not confine interrupts; where that is acceptable: \
                     echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
                ),
                Errno::EPERM => error.with_remedy("run it with CAP_SYS_RAWIO, as root for one"),
                Errno::ENODEV if node.confined => error.with_remedy("modprobe vfio_iommu_type1"),
                _ => error,
            }
        })?;
        Ok(Self { group, container: Arc::new(container), members: Mutex::default() })
    }

    /// The container, which maps memory for the group's devices where they stand behind an IOMMU.
    pub(super) fn container(&self) -> &Arc<OwnedFd> {
        &self.container
    }

    /// The group's own descriptor, which proves to the kernel that it is ours.
    pub(super) fn descriptor(&self) -> i32 {
        self.group.as_raw_fd()
    }
}

/// The groups with these numbers that are open in this process; `None` for one that is not.
pub(super) fn opened(numbers: &[u32]) -> Vec<Option<Arc<Group>>> {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let find = |number: &u32| {
        let nodes = [format!("/dev/vfio/{number}"), format!("/dev/vfio/noiommu-{number}")];
        let known = open.iter().find(|(path, _)| nodes.iter().any(|node| path == Path::new(node)));
        known.and_then(|(_, group)| group.upgrade())
    };
    numbers.iter().map(find).collect()
}

/// Another device of the group has a driver of the kernel's: names it.
fn not_viable(name: &str, directory: &Path) -> Error {
    let devices = directory.join("iommu_group/devices");
    let others = files::names(&devices).unwrap_or_default().into_iter().filter_map(|other| {
        let driver = files::link_name(&devices.join(&other).join("driver"))?;
        (!matches!(&*driver, "vfio-pci" | "pcieport")).then(|| format!("{other} ({driver})"))
    });
    let others: Vec<String> = others.collect();
    Error::new(
        ErrorKind::Busy,
        Errno::EBUSY,
        format!("{name} shares its IOMMU group with devices that the kernel drives: {}", others.join(", ")),
    )
    .with_remedy("bind them too: noiommu bind")
}
