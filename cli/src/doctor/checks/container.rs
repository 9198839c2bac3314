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

pub(super) fn guardian(facts: &Facts) -> Check {
    let why = "when a driver dies, its guardian makes the device quiet before the memory is given to others";
    let check = |status, found: &str| Check::new("guardian", why, status, found);
    if facts.has_guardian_service {
        return check(Status::Ok, "its service listens");
    }
    if facts.cgroups_are_read_only || facts.rights.user != 0 {
        return check(
            Status::Note,
            "a process of the driver's own, in the driver's cgroup: who ends all of that at once ends both",
        )
        .remedy("# outside of the driver's cgroup or container: noiommu guardian --listen (its --help has a unit)");
    }
    check(Status::Ok, "a process of the driver's own, in a cgroup of its own")
}
