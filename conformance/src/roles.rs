//! Which devices play the parts that cases speak of: `edu`, `edu2`, `nvme`, `nic`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A device that a case may open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Device {
    /// Its PCI address, as in `0000:00:03.0`.
    pub(crate) address: String,
    /// Its directory in sysfs.
    pub(crate) sysfs: PathBuf,
    /// The name of its node in /dev/vfio/devices, where it has one.
    pub(crate) cdev: Option<String>,
    /// The number of its group, where it has one.
    pub(crate) group: Option<String>,
}

/// The devices by role.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roles(BTreeMap<String, Device>);

/// Vendor and device of QEMU's models, and the role they play.
const MODELS: &[(&str, &str, &str)] =
    &[("0x1234", "0x11e8", "edu"), ("0x1b36", "0x0010", "nvme"), ("0x8086", "0x10d3", "nic")];

/// The directory in sysfs with all PCI devices.
const PCI: &str = "/sys/bus/pci/devices";

impl Roles {
    /// The devices that VFIO drives here, and those named (role, PCI address) in their place.
    pub(crate) fn find(named: &[(String, String)]) -> Self {
        let mut roles = BTreeMap::new();
        let mut addresses: Vec<String> = fs::read_dir(PCI)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        addresses.sort();
        for address in addresses {
            let directory = Path::new(PCI).join(&address);
            let read = |file| fs::read_to_string(directory.join(file)).unwrap_or_default().trim().to_owned();
            let (vendor, model) = (read("vendor"), read("device"));
            let role = MODELS.iter().find(|(v, m, _)| *v == vendor && *m == model).map(|(_, _, role)| *role);
            let device = Device::at(&address);
            if let (Some(role), true) = (role, device.cdev.is_some() || device.group.is_some()) {
                let numbered = (1_u32..).map(|n| if n == 1 { role.to_owned() } else { format!("{role}{n}") });
                if let Some(name) = numbered.into_iter().find(|name| !roles.contains_key(name)) {
                    roles.insert(name, device);
                }
            }
        }
        for (role, address) in named {
            roles.insert(role.clone(), Device::at(address));
        }
        Self(roles)
    }

    /// The device of that role.
    pub(crate) fn get(&self, role: &str) -> Option<&Device> {
        self.0.get(role)
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&String, &Device)> {
        self.0.iter()
    }
}

impl Device {
    fn at(address: &str) -> Self {
        let sysfs = Path::new(PCI).join(address);
        let cdev = fs::read_dir(sysfs.join("vfio-dev"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .min();
        // A device driven by something else has a group too, on machines with an IOMMU.
        let driver = fs::read_link(sysfs.join("driver")).unwrap_or_default();
        let group = fs::read_link(sysfs.join("iommu_group"))
            .ok()
            .filter(|_| driver.file_name().is_some_and(|name| name == "vfio-pci"))
            .and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
        Self { address: address.to_owned(), sysfs, cdev, group }
    }

    /// The path of its node in /dev/vfio/devices.
    pub(crate) fn cdev_path(&self) -> Option<String> {
        self.cdev.as_ref().map(|name| format!("/dev/vfio/devices/{name}"))
    }

    /// The path of its group's node.
    pub(crate) fn group_path(&self) -> Option<String> {
        self.group.as_ref().map(|number| format!("/dev/vfio/noiommu-{number}"))
    }
}
