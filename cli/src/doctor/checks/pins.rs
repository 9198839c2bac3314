//! Whether pages can be pinned and found.

use noiommu::ErrorKind;
use noiommu_core::Errno;

use super::{Check, Status};
use crate::doctor::facts::{Facts, IPC_LOCK, Refused, SYS_ADMIN};
use crate::ui;

/// Less locked memory than this does not hold the rings and buffers of a driver.
const LEAST_MEMLOCK: u64 = 16 << 20;

pub(super) fn frames(facts: &Facts) -> Check {
    let why = "without an IOMMU a device must be told where in memory a page is";
    let check = |status, found: &str| Check::new("pagemap", why, status, found);
    let Err(refused) = &facts.frames else { return check(Status::Ok, "shows physical addresses") };
    let check = check(Status::Problem, &refused.cause);
    if refused.errno != Errno::EPERM {
        return check.maybe_remedy(refused.remedy.as_ref().map(|remedy| format!("# {remedy}")));
    }
    let cause = if !facts.rights.effective.has(SYS_ADMIN) { "capabilities" } else { "user-namespace" };
    check.remedy(format!("# see {cause}, which is the cause"))
}

pub(super) fn io_uring(facts: &Facts) -> Check {
    let why = "its registered buffers are the best way to pin pages";
    let check = |status, found: String| Check::new("io_uring", why, status, found);
    let Err(refused) = &facts.io_uring else {
        return check(Status::Ok, "can be used".to_owned());
    };
    let instead = facts.af_xdp.is_ok();
    let status = if instead { Status::Note } else { Status::Problem };
    let instead = if instead { "; AF_XDP serves instead" } else { "" };
    let disabled = facts.io_uring_disabled.unwrap_or(0);
    let (found, remedy) = match refused.errno {
        Errno::EPERM | Errno::EACCES
            if disabled == 2 || disabled == 1 && !facts.rights.effective.has(SYS_ADMIN) =>
        {
            (
                format!("switched off: kernel.io_uring_disabled is {disabled}"),
                "sysctl -w kernel.io_uring_disabled=0".to_owned(),
            )
        }
        errno
            if facts.rights.is_filtered && matches!(errno, Errno::EPERM | Errno::EACCES | Errno::ENOSYS) =>
        {
            (
                format!("a seccomp filter refuses it ({})", errno.name().unwrap_or("an error")),
                "# outside: allow io_uring_setup and io_uring_register in the seccomp profile".to_owned(),
            )
        }
        Errno::ENOSYS => {
            ("this kernel has none".to_owned(), "# boot a kernel with CONFIG_IO_URING".to_owned())
        }
        Errno::ENOMEM => (
            "the limit of locked memory does not even cover a ring".to_owned(),
            "ulimit -l unlimited".to_owned(),
        ),
        _ => (refused.cause.clone(), told(refused)),
    };
    check(status, format!("{found}{instead}")).remedy(remedy)
}

pub(super) fn af_xdp(facts: &Facts) -> Check {
    let why = "the memory of its sockets pins pages where io_uring is switched off";
    let check = |status, found: &str| Check::new("af_xdp", why, status, found);
    match &facts.af_xdp {
        Ok(_) if facts.io_uring.is_ok() => check(Status::Ok, "could be used"),
        Ok(_) => check(Status::Ok, "can be used"),
        // Only the second source: without it nothing is missing.
        Err(_) if facts.io_uring.is_ok() => check(Status::NotApplicable, "not to be had; io_uring serves"),
        Err(refused) => check(Status::Note, &refused.cause).remedy(told(refused)),
    }
}

/// The kit's own advice, which is no command.
fn told(refused: &Refused) -> String {
    format!("# {}", refused.remedy.as_deref().unwrap_or("see the kernel's log: dmesg"))
}

pub(super) fn memlock(facts: &Facts) -> Check {
    let why = "pinned memory counts against RLIMIT_MEMLOCK, unless the program has CAP_IPC_LOCK";
    let check = |status, found: String| Check::new("memlock", why, status, found);
    if facts.rights.effective.has(IPC_LOCK) && facts.rights.is_first_user_namespace() {
        return check(Status::Ok, "CAP_IPC_LOCK: no limit".to_owned());
    }
    // Of the shell that starts the program; a unit of systemd has LimitMEMLOCK=infinity for it.
    let remedy = "ulimit -l unlimited";
    match facts.memlock {
        None => check(Status::Ok, "no limit".to_owned()),
        Some(limit) if limit < LEAST_MEMLOCK => {
            check(Status::Problem, format!("limited to {}, without CAP_IPC_LOCK", ui::bytes(limit)))
                .remedy(remedy)
        }
        Some(limit) => check(Status::Note, format!("limited to {}, without CAP_IPC_LOCK", ui::bytes(limit)))
            .remedy(remedy),
    }
}

pub(super) fn proof(facts: &Facts) -> Check {
    let why = "one page pinned, looked up and let go: the whole way, for real";
    let check = |status, found: String| Check::new("proof", why, status, found);
    match &facts.proof {
        Ok(kind) => check(Status::Ok, format!("a page was pinned by {} and found", kind.name())),
        Err(refused) => {
            let cause = match refused.kind {
                ErrorKind::NoPhysicalAddresses => "pagemap",
                ErrorKind::NoPinSource => "io_uring",
                ErrorKind::MemlockLimit => "memlock",
                ErrorKind::EncryptedGuest => "encryption",
                ErrorKind::KernelTooOld => "kernel",
                _ => return check(Status::Problem, refused.cause.clone()).remedy(told(refused)),
            };
            check(Status::Problem, refused.cause.clone()).remedy(format!("# see {cause}, which is the cause"))
        }
    }
}
