//! What speaks against taking a device from its driver.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use noiommu_core::Errno;
use rustix::fs::{FlockOperation, OFlags};

use crate::pci::{self, Iommu, PciDevice, Root};
use crate::{Error, ErrorKind, Result, files};

use super::offers::VFIO_PCI;

/// What to say of a bridge.
pub(super) fn bridge(name: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        Errno::EOPNOTSUPP,
        format!("{name} is a bridge: without its driver, what lies behind it may be cut off"),
    )
    .with_remedy("bind the device behind it; `noiommu list` shows the devices that can be bound")
}

fn busy(cause: String) -> Error {
    Error::new(ErrorKind::Busy, Errno::EBUSY, cause)
}

/// Refuses a device that is in use by the system, or of which nobody can tell.
pub(super) fn in_use(root: &Root, device: &PciDevice) -> Result<()> {
    match pci::uses_of(root, device)?.first() {
        Some(used) => Err(busy(format!("{} is in use: {used}", device.address))
            .with_remedy(format!("{}; or --force, if the machine can do without", used.remedy()))),
        None => Ok(()),
    }
}

/// Refuses a device whose neighbours would suffer or stand in the way: functions of the same device that a driver has, and
/// devices of the same IOMMU group. Those in `together` are about to be bound too.
pub(super) fn neighbours(root: &Root, device: &PciDevice, together: &[String]) -> Result<()> {
    let has_foreign_driver = |address: &String| {
        let other = match pci::device_of(root, address) {
            Ok(other) => other,
            Err(error) if error.kind() == ErrorKind::NoDevice => return Ok(false),
            Err(error) => return Err(error),
        };
        let foreign = other.driver.as_deref().is_some_and(|driver| driver != VFIO_PCI);
        Ok(foreign && !other.is_bridge && !together.contains(address))
    };
    let foreign = |addresses: &[String]| {
        let mut found = Vec::new();
        for address in addresses {
            if has_foreign_driver(address)? {
                found.push(address.clone());
            }
        }
        Ok::<_, Error>(found)
    };
    let name = &device.address;
    let tell = |others: Vec<String>, why: &str| {
        if others.is_empty() {
            return Ok(());
        }
        let list = others.join(" ");
        Err(busy(format!("{name}: {why}: {list}")).with_remedy(format!(
            "bind them together: noiommu bind {name} {list}; or --force for this one alone"
        )))
    };
    if let Iommu::Group(group) = device.iommu {
        let directory = root.at("/sys/kernel/iommu_groups").join(group.to_string()).join("devices");
        let members = files::if_there(files::names(&directory)).map_err(|error| {
            Error::system(format_args!("reading {}", directory.display()), error).with_remedy("try again")
        })?;
        let members: Vec<_> = members.unwrap_or_default().into_iter().filter(|it| it != name).collect();
        tell(
            foreign(&members)?,
            &format!("its IOMMU group {group} cannot be opened while the kernel's drivers have others of it"),
        )?;
    }
    let others = foreign(&device.siblings)?;
    tell(others, "the kernel's drivers have other functions of the same device, which a reset would hit")
}

/// Locks the device as the kit does while it drives it, so that nobody does meanwhile.
pub(super) fn lock(root: &Root, device: &PciDevice) -> Result<OwnedFd> {
    let path = root.device(&device.address).join("config");
    let config = files::open(&path, OFlags::RDONLY).map_err(|error| {
        Error::system(format_args!("opening {}", path.display()), error).with_remedy("run it as root")
    })?;
    rustix::fs::flock(&config, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        busy(format!("{} is in use by another process of noiommu", device.address))
            .with_remedy("end the program that drives it")
    })?;
    Ok(config)
}

/// Refuses a device whose nodes a process has open: the kernel would wait for it to close them, however long.
pub(super) fn open_nodes(root: &Root, device: &PciDevice) -> Result<()> {
    let nodes = nodes(root, device);
    if nodes.is_empty() {
        return Ok(());
    }
    let processes = files::names(&root.at("/proc")).unwrap_or_default();
    for process in processes.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let directory = root.at("/proc").join(process).join("fd");
        for fd in files::names(&directory).unwrap_or_default() {
            let Ok(target) = std::fs::read_link(directory.join(fd)) else { continue };
            if nodes.contains(&target) {
                let comm = files::read_text(&root.at("/proc").join(process).join("comm")).unwrap_or_default();
                return Err(busy(format!(
                    "{}: process {process} ({comm}) has {} open",
                    device.address,
                    target.display()
                ))
                .with_remedy("end it: the kernel waits for it before it gives up the device"));
            }
        }
    }
    Ok(())
}

/// The nodes in /dev through which a device is driven from user space, as they are.
pub(super) fn nodes(root: &Root, device: &PciDevice) -> Vec<PathBuf> {
    let directory = root.device(&device.address);
    let mut nodes = Vec::new();
    if device.driver.as_deref() == Some(VFIO_PCI) {
        match device.iommu {
            Iommu::Dummy(group) => nodes.push(format!("/dev/vfio/noiommu-{group}")),
            Iommu::Group(group) => nodes.push(format!("/dev/vfio/{group}")),
            Iommu::None => {}
        }
        let names = files::names(&directory.join("vfio-dev")).unwrap_or_default();
        nodes.extend(names.iter().map(|name| format!("/dev/vfio/devices/{name}")));
    }
    let names = files::names(&directory.join("uio")).unwrap_or_default();
    nodes.extend(names.iter().map(|name| format!("/dev/{name}")));
    nodes.into_iter().filter(|node| files::exists(&root.at(node))).map(PathBuf::from).collect()
}
