//! One device: who has it, and what would serve it.

use super::provider::{Way, offered};
use super::{Check, Status, find};
use crate::doctor::facts::{Facts, Module, PciDevice};

/// The checks of the device at an address, as sysfs writes it.
pub(crate) fn of_device(facts: &Facts, address: &str) -> Vec<Check> {
    let Some(device) = find(facts, address) else {
        return vec![
            Check::new(
                "device",
                "what is not there cannot be driven",
                Status::Problem,
                format!("no {address}"),
            )
            .remedy("echo 1 > /sys/bus/pci/rescan"),
        ];
    };
    vec![driver(device), overridden(device), iommu(facts, device), resets(device), served(facts, device)]
}

fn driver(device: &PciDevice) -> Check {
    let why = "a device is driven by one driver at a time";
    let check = |status, found: String| Check::new("device-driver", why, status, found);
    let address = &device.address;
    match device.driver.as_deref() {
        None => check(Status::Ok, format!("{address}: no driver has it")),
        Some("vfio-pci") => check(Status::Ok, format!("{address}: vfio-pci has it")),
        Some(_) if device.is_bridge => {
            check(Status::NotApplicable, format!("{address} is a bridge: what is behind it needs its driver"))
        }
        // Whether something uses the device, nobody but its user knows.
        Some(driver) => check(Status::Problem, format!("{address}: {driver} has it"))
            .remedy(format!("echo {address} > /sys/bus/pci/devices/{address}/driver/unbind")),
    }
}

fn overridden(device: &PciDevice) -> Check {
    let why = "driver_override names the only driver that may take the device";
    let check = |status, found: String| Check::new("device-override", why, status, found);
    let address = &device.address;
    match device.driver_override.as_deref() {
        None => check(Status::Ok, "none".to_owned()),
        Some("vfio-pci" | "uio_pci_generic") => {
            check(Status::Ok, device.driver_override.clone().unwrap_or_default())
        }
        Some(name) if device.is_bound => check(Status::Ok, format!("{name}: `noiommu bind` has bound it")),
        Some(name) => check(Status::Note, format!("{name}: a driver that ended badly may have left it"))
            .remedy(format!("echo > /sys/bus/pci/devices/{address}/driver_override")),
    }
}

fn iommu(facts: &Facts, device: &PciDevice) -> Check {
    let why = "physical addresses are no use to a device behind an IOMMU";
    let check = |status, found| Check::new("device-iommu", why, status, found);
    if !device.has_iommu {
        return check(Status::Ok, "none: it takes physical addresses");
    }
    if device.driver.as_deref() == Some("vfio-pci") {
        return check(Status::Ok, "it is behind an IOMMU, and VFIO confines it to what is mapped");
    }
    let check = check(Status::Problem, "it is behind an IOMMU, and vfio-pci has it not");
    if facts.vfio_pci == Module::Absent {
        return check.remedy("# boot parameter: intel_iommu=off amd_iommu=off");
    }
    check.remedy(to_vfio(facts, device))
}

/// The line that gives a device to vfio-pci.
fn to_vfio(facts: &Facts, device: &PciDevice) -> String {
    let address = &device.address;
    let directory = format!("/sys/bus/pci/devices/{address}");
    let load = if facts.vfio_pci == Module::Loaded { "" } else { "modprobe vfio-pci && " };
    let unbind = device.driver.as_ref().map(|_| format!("echo {address} > {directory}/driver/unbind && "));
    format!(
        "{load}echo vfio-pci > {directory}/driver_override && {}echo {address} > /sys/bus/pci/drivers_probe",
        unbind.unwrap_or_default()
    )
}

fn resets(device: &PciDevice) -> Check {
    let why = "a reset is the surest way to make a device quiet";
    if device.resets.is_empty() {
        Check::new("device-reset", why, Status::Note, "there is none: bus mastering is turned off, no more")
    } else {
        Check::new("device-reset", why, Status::Ok, device.resets.join(", "))
    }
}

fn served(facts: &Facts, device: &PciDevice) -> Check {
    let why = "what would serve this device at present";
    match offered(facts, Some(device)) {
        Ok(Way::Iommu) => {
            Check::new("device-provider", why, Status::Note, "VFIO with its IOMMU; none without")
        }
        Ok(way) => Check::new("device-provider", why, Status::Ok, way.name()),
        // The kernel's own mode is on: it only has to be given the device.
        Err(reason)
            if device.driver.is_none()
                && !device.is_bridge
                && matches!(offered(facts, None), Ok(Way::Cdev | Way::Group)) =>
        {
            Check::new(
                "device-provider",
                why,
                Status::Problem,
                format!("none: {reason}, and vfio-pci has it not"),
            )
            .remedy(to_vfio(facts, device))
        }
        Err(reason) => Check::new("device-provider", why, Status::Problem, format!("none: {reason}"))
            .remedy("# mend the other problems, which are the cause"),
    }
}
