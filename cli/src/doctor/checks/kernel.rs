//! The kernel itself and how it was booted.

use super::{Check, Status};
use crate::doctor::facts::Facts;

pub(super) fn age(facts: &Facts) -> Check {
    let why = "long-term pins from user space can be relied on from Linux 5.15 on";
    let check = |status| Check::new("kernel", why, status, format!("Linux {}", facts.release));
    match facts.too_old {
        None => check(Status::Ok),
        Some(_) => check(Status::Problem).remedy("# install a newer kernel and boot it"),
    }
}

pub(super) fn encryption(facts: &Facts) -> Check {
    let why = "a device cannot read or write encrypted memory by its physical address";
    match &facts.encryption {
        None => Check::new("encryption", why, Status::Ok, "memory is not encrypted by SEV or TDX"),
        Some(refused) => Check::new("encryption", why, Status::Problem, &refused.cause).remedy(
            "# outside: start this guest without SEV or TDX; its devices work with the kernel's drivers",
        ),
    }
}

pub(super) fn lockdown(facts: &Facts) -> Check {
    let why = "in lockdown the kernel keeps everybody from BARs and config space in sysfs; VFIO still works";
    let check = |status, found: String| Check::new("lockdown", why, status, found);
    let asked = facts.command_line.split_ascii_whitespace().find(|word| word.starts_with("lockdown="));
    match (&facts.lockdown, asked) {
        (Some(mode), _) if facts.is_locked_down() => {
            // Once on, it is on until the next boot.
            let remedy = match asked {
                Some(word) => format!("# boot parameter: boot without {word}"),
                None if facts.secure_boot == Some(true) => {
                    "# firmware: turn Secure Boot off, which locks this kernel down".to_owned()
                }
                None => "# boot parameter: boot with lockdown=none".to_owned(),
            };
            let status = if facts.kernel_can() { Status::Note } else { Status::Problem };
            check(status, format!("the kernel is locked down ({mode})")).remedy(remedy)
        }
        (Some(mode), _) => check(Status::Ok, mode.clone()),
        (None, Some(word)) => check(Status::Note, format!("{word} is asked for; securityfs does not tell"))
            .remedy("mount -t securityfs securityfs /sys/kernel/security"),
        (None, None) => check(Status::NotApplicable, "no lockdown, as far as securityfs tells".to_owned()),
    }
}

pub(super) fn secure_boot(facts: &Facts) -> Check {
    let why = "distributions lock the kernel down when Secure Boot is on";
    let (status, found) = match facts.secure_boot {
        None => (Status::NotApplicable, "no EFI variables"),
        Some(false) => (Status::Ok, "off"),
        Some(true) if facts.is_locked_down() => (Status::Note, "on, and the kernel is locked down"),
        Some(true) => (Status::Ok, "on, but the kernel is not locked down"),
    };
    Check::new("secure-boot", why, status, found)
}
