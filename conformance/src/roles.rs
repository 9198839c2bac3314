//! Which devices play the parts that cases speak of: `edu`, `edu2`, `nvme`, `nic`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::names;
use crate::process;
use crate::sys::{self, Ended};

/// A device that a case may open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its PCI address, as in `0000:00:03.0`.
    pub(crate) address: String,
    /// Its directory in sysfs.
    pub(crate) sysfs: PathBuf,
    /// The name of its node in /dev/vfio/devices, where it has one.
    pub(crate) cdev: Option<String>,
    /// The number of its group, where it has one.
    pub(crate) group: Option<String>,
    /// Whether it is a model in the process that answers.
    pub(crate) simulated: bool,
}

/// The devices by role, and which nodes there are besides theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roles {
    devices: BTreeMap<String, Device>,
    /// Whether there is /dev/iommu.
    pub(crate) iommu: bool,
    /// Whether there is /dev/vfio/vfio.
    pub(crate) container: bool,
}

/// Vendor and device of QEMU's models, and the role they play.
const MODELS: &[(&str, &str, &str)] =
    &[("0x1234", "0x11e8", "edu"), ("0x1b36", "0x0010", "nvme"), ("0x8086", "0x10d3", "nic")];

/// The directory in sysfs with all PCI devices.
const PCI: &str = "/sys/bus/pci/devices";

impl Roles {
    /// The devices that VFIO drives here, and those named (role, PCI address) in their place. A process of its own looks: a
    /// provider that begins its work in whoever looks at its nodes must not have begun when cases are forked from this one.
    ///
    /// # Errors
    /// There is no such process to be had, or it died.
    pub(crate) fn find_apart(named: &[(String, String)]) -> Result<Self, String> {
        let problem = |errno| format!("looking for devices: {}", names::errno(errno));
        let (from, to) = sys::pipe().map_err(problem)?;
        let pid = match sys::fork().map_err(problem)? {
            0 => {
                let text = Self::find(named).told();
                let _ = sys::pwrite(to, text.as_ptr() as u64, text.len(), None);
                sys::exit(0)
            }
            pid => pid,
        };
        let _ = sys::close(to);
        let mut text = Vec::new();
        let mut piece = [0_u8; 4096];
        while let Ok(count @ 1..) = sys::pread(from, piece.as_mut_ptr() as u64, piece.len(), None) {
            text.extend_from_slice(piece.get(..count as usize).unwrap_or_default());
        }
        let _ = sys::close(from);
        match sys::wait(pid) {
            Ok(Ended::Code(0)) => Ok(Self::heard(&String::from_utf8_lossy(&text))),
            ended => Err(format!("looking for devices: {}", process::ending(ended))),
        }
    }

    /// As text, a line each.
    fn told(&self) -> String {
        let mut lines = vec![format!("nodes {} {}", self.iommu, self.container)];
        for (role, device) in &self.devices {
            let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
            let (cdev, group) = (or_none(&device.cdev), or_none(&device.group));
            lines.push(format!("{role} {} {cdev} {group} {}", device.address, device.simulated));
        }
        lines.join("\n")
    }

    /// Out of such text.
    fn heard(text: &str) -> Self {
        let mut roles = Self::default();
        for line in text.lines() {
            let some = |name: &str| (name != "-").then(|| name.to_owned());
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["nodes", iommu, container] => {
                    (roles.iommu, roles.container) = (*iommu == "true", *container == "true");
                }
                [role, address, cdev, group, simulated] => {
                    let sysfs = Path::new(PCI).join(address);
                    let (cdev, group, simulated) = (some(cdev), some(group), *simulated == "true");
                    let device = Device { address: (*address).to_owned(), sysfs, cdev, group, simulated };
                    roles.devices.insert((*role).to_owned(), device);
                }
                _ => {}
            }
        }
        roles
    }

    fn find(named: &[(String, String)]) -> Self {
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
        let there = |path| fs::metadata(path).is_ok();
        Self { devices: roles, iommu: there("/dev/iommu"), container: there("/dev/vfio/vfio") }
    }

    /// The device of that role.
    pub(crate) fn get(&self, role: &str) -> Option<&Device> {
        self.devices.get(role)
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&String, &Device)> {
        self.devices.iter()
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
        let place = fs::canonicalize(&sysfs).unwrap_or_default();
        let simulated = place.starts_with("/sys/devices/noiommu-sim");
        Self { address: address.to_owned(), sysfs, cdev, group, simulated }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard() {
        let device = |address: &str, cdev: Option<&str>, group: Option<&str>| Device {
            address: address.to_owned(),
            sysfs: Path::new(PCI).join(address),
            cdev: cdev.map(str::to_owned),
            group: group.map(str::to_owned),
            simulated: group.is_none(),
        };
        let devices = BTreeMap::from([
            ("edu".to_owned(), device("0000:00:02.0", Some("noiommu-vfio0"), Some("0"))),
            ("nic".to_owned(), device("0000:00:05.0", None, Some("3"))),
        ]);
        let roles = Roles { devices, iommu: true, container: false };
        assert_eq!(Roles::heard(&roles.told()), roles);
    }
}
