//! PCI devices as sysfs shows them: what they are, who drives them, what stands before them, what uses them.
//!
//! Looking changes nothing and needs no rights, except that only root sees which processes have a device's nodes open.

mod root;
#[cfg(test)]
pub(crate) mod tests;
mod uses;

use std::fmt;
use std::io;
use std::path::Path;

pub(crate) use self::root::Root;
pub use self::uses::Use;
use crate::device::sysfs;
use crate::files::{self, if_there};
use crate::{Error, Result};

/// The base class of bridges.
const CLASS_BRIDGE: u32 = 0x06;

/// What stands between a device and memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Iommu {
    /// Nothing: the device is given physical addresses.
    None,
    /// An IOMMU; the device is in this group.
    Group(u32),
    /// Nothing; the group is the one that VFIO's no-IOMMU mode made up.
    Dummy(u32),
}

impl Iommu {
    /// Whether a real one is there.
    #[must_use]
    pub fn is_real(self) -> bool {
        matches!(self, Self::Group(_))
    }
}

impl fmt::Display for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Group(group) => write!(f, "group {group}"),
            Self::Dummy(_) => f.write_str("none (VFIO)"),
        }
    }
}

/// A PCI device.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PciDevice {
    /// `domain:bus:device.function`.
    pub address: String,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Vendor id of the subsystem.
    pub subsystem_vendor: u16,
    /// Device id of the subsystem.
    pub subsystem_device: u16,
    /// Base class, subclass and programming interface, a byte each.
    pub class: u32,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The one driver that may have it.
    pub driver_override: Option<String>,
    /// What stands between it and memory.
    pub iommu: Iommu,
    /// Its NUMA node, where there are any.
    pub numa_node: Option<u32>,
    /// Whether it leads to other devices, by class or by the layout of its config space.
    pub is_bridge: bool,
    /// The addresses of the other functions of the same device.
    pub siblings: Vec<String>,
    /// Whether it has an interrupt line (INTx); `None` where config space cannot be read.
    pub has_line: Option<bool>,
}

/// All PCI devices of this machine, in order of their addresses.
///
/// # Errors
/// What sysfs answers. A machine without PCI has no devices, which is no error.
pub fn devices() -> Result<Vec<PciDevice>> {
    devices_of(&Root::real())
}

/// The PCI device at an address; the domain may be left out.
///
/// # Errors
/// EINVAL when it is no address; [`ErrorKind::NoDevice`](crate::ErrorKind::NoDevice) when nothing is there.
pub fn device(address: &str) -> Result<PciDevice> {
    device_of(&Root::real(), address)
}

/// What uses a device, so that taking its driver away would do harm. Empty: nothing that can be told from outside.
///
/// # Errors
/// As for [`device`]; where /sys or /proc cannot be read, so that nobody can tell.
pub fn uses(address: &str) -> Result<Vec<Use>> {
    let root = Root::real();
    uses_of(&root, &device_of(&root, address)?)
}

pub(crate) fn uses_of(root: &Root, device: &PciDevice) -> Result<Vec<Use>> {
    uses::of(root, device).map_err(|error| {
        Error::system(format_args!("looking whether {} is in use", device.address), error)
            .with_remedy("try again; as root, /sys and /proc can be read")
    })
}

pub(crate) fn devices_of(root: &Root) -> Result<Vec<PciDevice>> {
    let directory = root.at("/sys/bus/pci/devices");
    if !files::exists(&directory) {
        return Ok(Vec::new());
    }
    let names = files::names(&directory)
        .map_err(|error| Error::system(format_args!("reading {}", directory.display()), error))?;
    let mut devices = Vec::new();
    for name in &names {
        // One that vanishes between the two looks is none.
        devices.extend(read(root, name, &names).map_err(|error| unreadable(name, error))?);
    }
    Ok(devices)
}

pub(crate) fn device_of(root: &Root, address: &str) -> Result<PciDevice> {
    let name = sysfs::normalize(address).ok_or_else(|| sysfs::no_address(address))?;
    let names = if_there(files::names(&root.at("/sys/bus/pci/devices")));
    let device = names.and_then(|names| read(root, &name, &names.unwrap_or_default()));
    device.map_err(|error| unreadable(&name, error))?.ok_or_else(|| sysfs::no_device(&name))
}

fn unreadable(name: &str, error: io::Error) -> Error {
    Error::system(format_args!("looking at {name} in sysfs"), error).with_remedy("try again, as root")
}

/// A number of sysfs, hexadecimal with `0x` or decimal; `None` where there is no such file, or no number in it.
fn number(path: &Path) -> io::Result<Option<u32>> {
    let text = if_there(files::read_text(path))?.unwrap_or_default();
    Ok(match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    })
}

/// The override of a device; sysfs shows "(null)" for none.
pub(crate) fn driver_override(directory: &Path) -> io::Result<Option<String>> {
    let text = if_there(files::read_text(&directory.join("driver_override")))?;
    Ok(text.filter(|text| !text.is_empty() && text != "(null)"))
}

/// Looks at a device; `None`: there is none. What cannot be read is an error: by what is told here devices are taken from their
/// drivers and given back.
fn read(root: &Root, name: &str, names: &[String]) -> io::Result<Option<PciDevice>> {
    let directory = root.device(name);
    let id =
        |file: &str| Ok::<_, io::Error>(number(&directory.join(file))?.and_then(|id| u16::try_from(id).ok()));
    let (Some(class), Some(vendor), Some(device)) =
        (number(&directory.join("class"))?, id("vendor")?, id("device")?)
    else {
        return Ok(None);
    };
    let Some((slot, _)) = name.rsplit_once('.') else { return Ok(None) };
    // The first 64 bytes are everybody's; a device that does not answer is a device all the same.
    let config = files::read_start(&directory.join("config"), 64).unwrap_or_default();
    let header = config.get(0x0e).map(|header| header & 0x7f);
    let is_sibling =
        |other: &&String| other.rsplit_once('.').is_some_and(|(it, _)| it == slot) && *other != name;
    Ok(Some(PciDevice {
        address: name.to_owned(),
        vendor,
        device,
        subsystem_vendor: id("subsystem_vendor")?.unwrap_or(0),
        subsystem_device: id("subsystem_device")?.unwrap_or(0),
        class,
        driver: files::link(&directory.join("driver"))?,
        driver_override: driver_override(&directory)?,
        iommu: iommu(&directory)?,
        // -1 is none.
        numa_node: number(&directory.join("numa_node"))?,
        is_bridge: class >> 16 == CLASS_BRIDGE || matches!(header, Some(1 | 2)),
        siblings: names.iter().filter(is_sibling).cloned().collect(),
        has_line: config.get(0x3d).map(|pin| *pin != 0),
    }))
}

/// What stands before the device in `directory`.
fn iommu(directory: &Path) -> io::Result<Iommu> {
    let group = directory.join("iommu_group");
    let dummy = sysfs::is_dummy_group(&group);
    let group = files::link(&group)?.and_then(|group| group.parse().ok());
    let real = if_there(files::metadata(&directory.join("iommu")))?.is_some();
    Ok(match group {
        Some(group) if dummy && !real => Iommu::Dummy(group),
        Some(group) => Iommu::Group(group),
        // An IOMMU without a group was never seen; it is one all the same.
        None if real => Iommu::Group(u32::MAX),
        None => Iommu::None,
    })
}
