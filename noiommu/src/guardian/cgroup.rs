//! A cgroup of the guardian's own, so that neither the memory limit of the driver's nor whoever ends all of it hits the guardian.
//!
//! Takes no memory from the heap.

use std::ffi::CStr;

use super::sys;

/// A tree of cgroups, by paths of it: what tells that it is one, the guardians' group in it, and that one's members. The group stays:
/// it costs nothing, and the next guardian uses it.
struct Tree {
    root: &'static CStr,
    group: &'static CStr,
    members: &'static CStr,
}

macro_rules! tree {
    ($path:literal) => {
        Tree {
            root: to_c_str(concat!($path, "/cgroup.procs\0")),
            group: to_c_str(concat!($path, "/noiommu-guardians\0")),
            members: to_c_str(concat!($path, "/noiommu-guardians/cgroup.procs\0")),
        }
    };
}

const fn to_c_str(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => c"",
    }
}

/// Version 2, by itself or beside version 1; and of version 1 those that limit memory and tell services apart.
const TREES: [Tree; 4] = [
    tree!("/sys/fs/cgroup"),
    tree!("/sys/fs/cgroup/unified"),
    tree!("/sys/fs/cgroup/memory"),
    tree!("/sys/fs/cgroup/systemd"),
];

const OOM: &CStr = c"/proc/self/oom_score_adj";

/// Moves this process into the guardians' cgroups; answers whether it is there, in all trees that there are. Without the privilege, or
/// where trees are read-only (a container), it stays where it is.
pub(super) fn leave() -> bool {
    let (mut trees, mut left) = (0, 0);
    for tree in &TREES {
        let Some(root) = sys::open(tree.root, libc::O_RDONLY) else { continue };
        sys::close(root);
        trees += 1;
        sys::make_directory(tree.group);
        // 0: whoever writes it.
        left += i32::from(write(tree.members, b"0\n"));
    }
    // The last to be killed for want of memory: it has hardly any, and its end would be the memory's.
    write(OOM, b"-1000\n");
    trees > 0 && left == trees
}

fn write(path: &CStr, text: &[u8]) -> bool {
    let Some(file) = sys::open(path, libc::O_WRONLY) else { return false };
    let written = sys::write(file, text);
    sys::close(file);
    written
}
