//! What this process may do.

use super::{Check, Status};
use crate::doctor::facts::{Capability, Facts, IPC_LOCK, Rights, SYS_ADMIN, SYS_RAWIO};

/// What a driver needs, besides those that only spare it a limit.
const NEEDED: [Capability; 2] = [SYS_ADMIN, SYS_RAWIO];

pub(super) fn capabilities(facts: &Facts) -> Check {
    judge(&facts.rights, &NEEDED)
}

/// Whether devices may be opened.
pub(crate) fn may_drive(rights: &Rights) -> Check {
    judge(rights, &[SYS_RAWIO])
}

fn judge(rights: &Rights, needed: &[Capability]) -> Check {
    let name = "capabilities";
    let why = "CAP_SYS_ADMIN shows physical addresses, CAP_SYS_RAWIO opens devices without an IOMMU";
    let names = |list: &[Capability]| list.iter().map(|one| one.name).collect::<Vec<_>>();
    let missing: Vec<Capability> = needed.iter().copied().filter(|&one| !rights.effective.has(one)).collect();
    if missing.is_empty() {
        let spare = if rights.effective.has(IPC_LOCK) { " CAP_IPC_LOCK" } else { "" };
        return Check::new(name, why, Status::Ok, format!("{}{spare}", names(needed).join(" ")));
    }
    let lost: Vec<Capability> = missing.iter().copied().filter(|&one| !rights.bounding.has(one)).collect();
    let found = format!("user {} lacks {}", rights.user, names(&missing).join(" "));
    let check = Check::new(name, why, Status::Problem, found);
    if lost.is_empty() {
        // Files of devices and of the pagemap are root's, which a program with capabilities is not.
        let program = rights.program.display();
        return check.remedy(format!(
            "setcap cap_sys_admin,cap_sys_rawio,cap_ipc_lock,cap_dac_override=ep {}",
            quoted(&program.to_string())
        ));
    }
    // What has been taken from the bounding set, nothing started from here can get back.
    let names = names(&lost);
    check.remedy(if rights.container.is_empty() {
        format!(
            "# run it as root outside of this service; in its unit: CapabilityBoundingSet={}",
            names.join(" ")
        )
    } else {
        let short = names.iter().filter_map(|name| name.strip_prefix("CAP_"));
        let words: Vec<String> = short.map(|name| format!("--cap-add={name}")).collect();
        format!("# outside: start the container with {}", words.join(" "))
    })
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+".contains(letter);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

pub(super) fn user_namespace(facts: &Facts) -> Check {
    let why = "capabilities of a user namespace do not count for pages and devices of the machine";
    let check = |status, found: String| Check::new("user-namespace", why, status, found);
    if facts.rights.uid_map.is_empty() {
        check(Status::NotApplicable, "the kernel has none".to_owned())
    } else if facts.rights.is_first_user_namespace() {
        check(Status::Ok, "the first one".to_owned())
    } else {
        let map: Vec<&str> = facts.rights.uid_map.split_ascii_whitespace().collect();
        check(Status::Problem, format!("not the first one (uid_map: {})", map.join(" "))).remedy(
            "# outside: run it as root of the machine; a container without --userns (rootful podman, docker)",
        )
    }
}
