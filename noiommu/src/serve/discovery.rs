//! Which devices can be served here, and by what.

use std::fs;
use std::path::{Path, PathBuf};

use noiommu_core::Errno;
use noiommu_core::vfio::pci::Address;

use super::devices::{self, ServedDevice};
use super::memory::ServedMemory;
use crate::device::sysfs;
use crate::{Error, ErrorKind, Result};

const DEVICES: &str = "/sys/bus/pci/devices";
const NODES: &str = "/dev/vfio/devices";
const GROUPS: &str = "/sys/kernel/iommu_groups";
const KERNEL_OPT_IN: &str = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";

/// How many simulated devices there are.
const SIMULATED: u8 = 2;

/// What sysfs tells of QEMU's edu device.
const SIMULATED_ATTRIBUTES: [(&str, &str); 8] = [
    ("vendor", "0x1234\n"),
    ("device", "0x11e8\n"),
    ("subsystem_vendor", "0x1af4\n"),
    ("subsystem_device", "0x1100\n"),
    ("revision", "0x10\n"),
    ("class", "0x00ff00\n"),
    ("driver_override", "vfio-pci\n"),
    ("resource", "0x00000000fea00000 0x00000000feafffff 0x0000000000040200\n"),
];

/// The class of bridges, in the upper byte: nobody serves those.
const BRIDGE: u32 = 0x06;

/// A device that can be served.
pub(super) struct Found {
    name: String,
    directory: PathBuf,
    address: Address,
    by: By,
}

enum By {
    /// A model in this process.
    Simulation,
    /// The kernel's own no-IOMMU group of this number.
    Group(u32),
    /// The device's files in sysfs; its group would be the first unused one from here on.
    Sysfs(u32),
}

/// Whether the kernel has no-IOMMU device nodes itself: then there is nothing to serve.
#[must_use]
pub fn kernel_serves() -> bool {
    let entries = fs::read_dir(NODES).into_iter().flatten().flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.any(|name| name.starts_with("noiommu-vfio"))
}

/// The simulated devices.
pub(super) fn simulated() -> Vec<Found> {
    let found = |slot: u8| {
        let name = format!("ffff:00:{:02x}.0", slot + 1);
        let directory = Path::new("/sys/devices/noiommu-sim").join(&name);
        let address = Address { segment: 0xffff, bus: 0, devfn: (slot + 1) << 3 };
        Found { name, directory, address, by: By::Simulation }
    };
    (0..SIMULATED).map(found).collect()
}

/// Real devices: those named, or all that have no IOMMU and that nobody uses.
pub(super) fn real(named: &[String]) -> Result<Vec<Found>> {
    let mut names: Vec<String> = if named.is_empty() {
        let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    } else {
        let full = |name: &String| sysfs::normalize(name).ok_or_else(|| sysfs::no_address(name));
        named.iter().map(full).collect::<Result<_>>()?
    };
    names.sort();
    names.dedup();
    let unused = first_unused_group();
    let mut all = Vec::new();
    for name in names {
        match look_at(&name, unused) {
            Ok(found) => all.push(found),
            Err(error) if named.is_empty() => tracing::debug!(%error, "not served"),
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn look_at(name: &str, unused_group: u32) -> Result<Found> {
    let link = Path::new(DEVICES).join(name);
    let directory = fs::canonicalize(&link).map_err(|_| sysfs::no_device(name))?;
    let address = devices::parse_address(name).ok_or_else(|| sysfs::no_address(name))?;
    sysfs::refuse_iommu(name, &directory)?;
    let class = fs::read_to_string(directory.join("class")).unwrap_or_default();
    if class
        .trim()
        .strip_prefix("0x")
        .and_then(|hex| u32::from_str_radix(hex, 16).ok())
        .map(|class| class >> 16)
        == Some(BRIDGE)
    {
        return Err(Error::new(ErrorKind::Unsupported, Errno::EOPNOTSUPP, format!("{name} is a bridge")));
    }
    let by = match kernel_group(&directory) {
        Some(number) => By::Group(number),
        None => {
            sysfs::refuse_driver(name, &directory)?;
            By::Sysfs(unused_group)
        }
    };
    Ok(Found { name: name.to_owned(), directory, address, by })
}

/// The number of the no-IOMMU group that the kernel has given to a device of vfio-pci.
fn kernel_group(directory: &Path) -> Option<u32> {
    let group = directory.join("iommu_group");
    if !sysfs::is_dummy_group(&group) {
        return None;
    }
    fs::read_link(group).ok()?.file_name()?.to_str()?.parse().ok()
}

/// The lowest group number above all that there are.
fn first_unused_group() -> u32 {
    let entries = fs::read_dir(GROUPS).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.max().map_or(0, |last| last.saturating_add(1))
}

/// What serves them, in a few words.
pub(super) fn describe(all: &[Found]) -> String {
    let names = |which: fn(&By) -> bool| {
        all.iter().filter(|found| which(&found.by)).map(|found| found.name.as_str()).collect::<Vec<_>>()
    };
    let kinds = [
        (names(|by| matches!(by, By::Simulation)), "simulated"),
        (names(|by| matches!(by, By::Group(_))), "through the kernel's VFIO group"),
        (names(|by| matches!(by, By::Sysfs(_))), "through sysfs"),
    ];
    let told: Vec<String> = kinds
        .iter()
        .filter(|(names, _)| !names.is_empty())
        .map(|(names, how)| format!("{} {how}", names.join(" ")))
        .collect();
    if told.is_empty() { "no device".to_owned() } else { told.join(", ") }
}

impl Found {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn address(&self) -> Address {
        self.address
    }

    /// Whether the administrator has allowed it in the kernel already: the group is there for no other reason.
    pub(super) fn is_enabled_by_kernel(&self) -> bool {
        matches!(self.by, By::Group(_))
            && fs::read_to_string(KERNEL_OPT_IN).is_ok_and(|value| value.trim() == "Y")
    }

    /// The number of its group, as the device number `index`.
    pub(super) fn group_number(&self, index: u32) -> u32 {
        match self.by {
            By::Group(number) => number,
            By::Sysfs(unused) => unused.saturating_add(index),
            By::Simulation => first_unused_group().saturating_add(index),
        }
    }

    /// What its directory in sysfs tells, where there really is none.
    pub(super) fn attributes(&self) -> Vec<(String, String)> {
        match self.by {
            By::Simulation => {
                SIMULATED_ATTRIBUTES.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect()
            }
            By::Group(_) | By::Sysfs(_) => Vec::new(),
        }
    }

    pub(super) fn serve(&self, memory: &ServedMemory) -> Result<Box<dyn ServedDevice>> {
        match self.by {
            By::Simulation => Ok(devices::simulated_edu(memory.as_simulated())),
            By::Group(number) => Ok(devices::by_group(&self.name, number)),
            By::Sysfs(_) => Ok(devices::by_sysfs(&self.name)),
        }
    }
}
