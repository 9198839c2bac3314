//! Which provider serves, and why not a better one.

use super::{Check, Status};
use crate::doctor::facts::{Facts, Module, PciDevice, SYS_RAWIO};

/// The ways to a device, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// VFIO with the IOMMU that the device has.
    Iommu,
    /// The kernel's no-IOMMU cdevs: it pins and maps itself.
    Cdev,
    /// The kernel's no-IOMMU groups, with the engine for memory.
    Group,
    /// The device's files in sysfs, with uio_pci_generic for its interrupt line.
    Uio,
    /// The device's files in sysfs alone.
    Sysfs,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Iommu => "VFIO with the IOMMU",
            Self::Cdev => "cdev",
            Self::Group => "group",
            Self::Uio => "sysfs with uio_pci_generic",
            Self::Sysfs => "sysfs",
        }
    }

    fn needs_pins(self) -> bool {
        matches!(self, Self::Group | Self::Uio | Self::Sysfs)
    }
}

/// The best way to devices without an IOMMU, or to this one; or why there is none.
///
/// This alone decides; all that is told of providers comes from here.
pub(super) fn offered(facts: &Facts, device: Option<&PciDevice>) -> Result<Way, &'static str> {
    let way = way(facts, device)?;
    if !facts.rights.effective.has(SYS_RAWIO) {
        Err("this process lacks CAP_SYS_RAWIO")
    } else if way.needs_pins() && facts.proof.is_err() {
        Err("memory cannot be pinned here")
    } else {
        Ok(way)
    }
}

fn way(facts: &Facts, device: Option<&PciDevice>) -> Result<Way, &'static str> {
    if let Some(device) = device {
        if device.is_bridge {
            return Err("it is a bridge");
        }
        match device.driver.as_deref() {
            Some("vfio-pci") if device.has_iommu => return Ok(Way::Iommu),
            _ if device.has_iommu => return Err("it is behind an IOMMU, and vfio-pci has it not"),
            Some("vfio-pci") if device.has_noiommu_cdev => return Ok(Way::Cdev),
            Some("vfio-pci") if device.has_noiommu_group => return Ok(Way::Group),
            None => {}
            Some(_) => return Err("a driver has it"),
        }
    } else if facts.vfio.unsafe_mode && facts.vfio_pci != Module::Absent {
        if facts.vfio.options.cdev_noiommu {
            return Ok(Way::Cdev);
        }
        if facts.vfio.options.group_noiommu {
            return Ok(Way::Group);
        }
    }
    if facts.is_locked_down() {
        Err("the kernel is locked down, and VFIO does not serve")
    } else if facts.sys_is_read_only {
        Err("/sys is mounted read-only")
    } else if !facts.opted_in {
        Err("the unsafe mode is not enabled")
    } else if facts.uio_pci_generic == Module::Loaded {
        Ok(Way::Uio)
    } else {
        Ok(Way::Sysfs)
    }
}

/// What stands between this and a better way.
fn not_better(facts: &Facts, way: Way) -> Option<String> {
    let cdev = if !facts.vfio.options.cdev_noiommu {
        "cdev: this kernel's VFIO has none without an IOMMU"
    } else if !facts.vfio.unsafe_mode {
        "cdev: enable_unsafe_noiommu_mode is off"
    } else {
        "cdev: vfio-pci is not there"
    };
    match way {
        Way::Iommu | Way::Cdev => None,
        Way::Group | Way::Uio => Some(cdev.to_owned()),
        Way::Sysfs => Some(format!("{cdev}; no uio_pci_generic is loaded")),
    }
}

pub(super) fn machine(facts: &Facts) -> Check {
    let why = "the best way to devices without an IOMMU that there is at present";
    match offered(facts, None) {
        Ok(way) => {
            let better = not_better(facts, way).map_or(String::new(), |better| format!(" (not {better})"));
            Check::new("provider", why, Status::Ok, format!("{}{better}", way.name()))
        }
        Err(reason) => Check::new("provider", why, Status::Problem, format!("none: {reason}"))
            .remedy("# mend the other problems, which are the cause"),
    }
}
