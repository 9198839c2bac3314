//! What the kernel offers for devices: IOMMU, VFIO, UIO, and who has allowed what.

use super::{Check, Status};
use crate::config::ModeSource;
use crate::doctor::facts::{Facts, Module};

pub(super) fn options(facts: &Facts) -> Check {
    let why =
        "with them VFIO itself serves devices without an IOMMU; without, the engine does, through sysfs";
    let options = facts.vfio.options;
    let words = [(options.group_noiommu, "groups"), (options.cdev_noiommu, "cdevs")];
    let words: Vec<&str> = words.iter().filter(|(on, _)| *on).map(|&(_, word)| word).collect();
    let source = &facts.vfio.source;
    if words.is_empty() {
        Check::new(
            "kernel-options",
            why,
            Status::NotApplicable,
            format!("no VFIO without an IOMMU ({source})"),
        )
    } else {
        let found = format!("VFIO without an IOMMU: {} ({source})", words.join(" and "));
        Check::new("kernel-options", why, Status::Ok, found)
    }
}

pub(super) fn iommu(facts: &Facts) -> Check {
    let why = "a device behind an IOMMU is confined, and takes no physical addresses";
    let behind = facts.devices.iter().filter(|device| device.has_iommu).count();
    let asked: Vec<&str> = facts
        .command_line
        .split_ascii_whitespace()
        .filter(|word| ["iommu=", "intel_iommu=", "amd_iommu="].iter().any(|name| word.starts_with(name)))
        .collect();
    let asked = if asked.is_empty() { String::new() } else { format!(" (booted with {})", asked.join(" ")) };
    let all = facts.devices.len();
    match behind {
        0 => Check::new(
            "iommu",
            why,
            Status::Ok,
            format!("none of {all} PCI devices is behind an IOMMU{asked}"),
        ),
        _ => {
            let found = format!("{behind} of {all} PCI devices are behind an IOMMU{asked}");
            Check::new("iommu", why, Status::Note, found).remedy(
                "# use these through VFIO with the IOMMU; or, boot parameter: intel_iommu=off amd_iommu=off",
            )
        }
    }
}

pub(super) fn parameter(facts: &Facts) -> Check {
    const NAME: &str = "vfio-parameter";
    let why = "VFIO takes devices without an IOMMU only when its enable_unsafe_noiommu_mode is on";
    if !facts.kernel_can() {
        return Check::new(NAME, why, Status::NotApplicable, "this kernel's VFIO always needs an IOMMU");
    }
    if facts.vfio.unsafe_mode {
        return Check::new(NAME, why, Status::Ok, "enable_unsafe_noiommu_mode is on");
    }
    // With the engine's own opt-in there is another way to all devices, but for a locked kernel.
    let other = facts.opted_in && !facts.is_locked_down();
    let status = if other { Status::Note } else { Status::Problem };
    let (found, remedy) = match (facts.vfio.mode_source, facts.vfio_module) {
        (ModeSource::NoParameter, Module::Loadable) => {
            ("VFIO is not loaded", "modprobe vfio enable_unsafe_noiommu_mode=1")
        }
        (ModeSource::NoParameter, _) => (
            "VFIO is not there",
            "# boot a kernel with CONFIG_VFIO and CONFIG_VFIO_NOIOMMU, or: noiommu enable",
        ),
        _ => (
            "enable_unsafe_noiommu_mode is off",
            "echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
        ),
    };
    Check::new(NAME, why, status, found).remedy(remedy)
}

pub(super) fn opt_in(facts: &Facts) -> Check {
    let why = "the engine drives real devices only when the administrator has allowed the unsafe mode";
    let check = |status, found| Check::new("opt-in", why, status, found);
    if facts.opted_in {
        check(Status::Ok, "given")
    } else if facts.kernel_can() && facts.vfio.unsafe_mode {
        check(Status::Note, "not given; devices of vfio-pci need the kernel's parameter alone")
            .remedy("noiommu enable")
    } else {
        check(Status::Problem, "not given").remedy("noiommu enable")
    }
}

pub(super) fn opt_in_files(facts: &Facts) -> Check {
    const NAME: &str = "opt-in-files";
    let why = "an opt-in that others than root could have written does not count";
    if facts.opt_in_files.is_empty() {
        return Check::new(NAME, why, Status::NotApplicable, "there is no /run/noiommu yet");
    }
    match facts.opt_in_files.iter().find(|file| file.owner != 0 || file.is_link || file.mode & 0o022 != 0) {
        None => Check::new(NAME, why, Status::Ok, "/run/noiommu is root's alone"),
        Some(file) => {
            let found = format!("{} is user {}'s, mode {:o}", file.path, file.owner, file.mode);
            Check::new(NAME, why, Status::Problem, found).remedy("rm -r /run/noiommu && noiommu enable")
        }
    }
}

pub(super) fn vfio_pci(facts: &Facts) -> Check {
    let why = "devices come to VFIO through the driver vfio-pci";
    let check = |status, found| Check::new("vfio-pci", why, status, found);
    let wanted = facts.kernel_can() || facts.devices.iter().any(|device| device.has_iommu);
    match facts.vfio_pci {
        _ if !wanted => check(Status::NotApplicable, "of no use: its VFIO needs an IOMMU, and there is none"),
        Module::Loaded => check(Status::Ok, "there"),
        Module::Loadable => check(Status::Note, "not loaded").remedy("modprobe vfio-pci"),
        Module::Absent => check(Status::Note, "this kernel has none, or its modules are not installed"),
    }
}

pub(super) fn uio(facts: &Facts) -> Check {
    let why = "it gives interrupts to devices without VFIO, and turns bus mastering off when a driver dies";
    let check = |status, found| Check::new("uio_pci_generic", why, status, found);
    match facts.uio_pci_generic {
        Module::Loaded => check(Status::Ok, "there"),
        Module::Loadable => check(Status::Note, "not loaded").remedy("modprobe uio_pci_generic"),
        Module::Absent => check(Status::Note, "this kernel has none, or its modules are not installed"),
    }
}

pub(super) fn nodes(facts: &Facts) -> Check {
    let why = "whoever may open these nodes of VFIO and iommufd can drive devices";
    let check = |status, found: String| Check::new("nodes", why, status, found);
    if facts.nodes.is_empty() {
        return check(Status::NotApplicable, "no node of VFIO or iommufd".to_owned());
    }
    let paths = |which: &dyn Fn(u32) -> bool| {
        let chosen = facts.nodes.iter().filter(|node| !node.is_link && which(node.mode));
        chosen.map(|node| node.path.as_str()).collect::<Vec<_>>()
    };
    // The container's node alone gives nothing, and is everybody's by the kernel's own choice.
    let open: Vec<&str> =
        paths(&|mode| mode & 0o002 != 0).into_iter().filter(|&path| path != "/dev/vfio/vfio").collect();
    if !open.is_empty() {
        return check(Status::Problem, format!("everybody may write {}", open.join(" ")))
            .remedy(format!("chmod o= {}", open.join(" ")));
    }
    check(Status::Ok, paths(&|_| true).join(" "))
}
