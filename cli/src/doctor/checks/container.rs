//! Containers, and what they hide.

use super::{Check, Status};
use crate::doctor::facts::Facts;

pub(super) fn container(facts: &Facts) -> Check {
    let why = "a container hides capabilities, nodes and files that a driver needs, unless it is told not to";
    let check = |status, found: String| Check::new("container", why, status, found);
    if facts.rights.container.is_empty() {
        return check(Status::Ok, "none".to_owned());
    }
    let hints = facts.rights.container.join(", ");
    if facts.kernel_can() && facts.nodes.is_empty() {
        return check(Status::Note, format!("a container without /dev/vfio ({hints})")).remedy(
            "# outside: start the container with --device=/dev/vfio/vfio and the nodes of its devices",
        );
    }
    check(Status::Note, format!("a container ({hints}); what it lacks is told in the other lines"))
}

pub(super) fn sysfs(facts: &Facts) -> Check {
    let why = "devices are claimed, enabled and reset through files in /sys";
    if facts.sys_is_read_only {
        Check::new("sysfs", why, Status::Problem, "/sys is mounted read-only")
            .remedy("mount -o remount,rw /sys")
    } else {
        Check::new("sysfs", why, Status::Ok, "/sys can be written")
    }
}
