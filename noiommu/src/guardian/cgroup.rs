//! A cgroup of the guardian's own, so that neither the memory limit of the driver's nor whoever ends all of it hits the guardian.
//!
//! Takes no memory from the heap.

use rustix::fs::{CWD, Mode, OFlags};

/// Where all guardians are, in the cgroup tree of version 2. It stays: it costs nothing, and the next guardian uses it.
const GROUP: &std::ffi::CStr = c"/sys/fs/cgroup/noiommu-guardians";
const MEMBERS: &std::ffi::CStr = c"/sys/fs/cgroup/noiommu-guardians/cgroup.procs";
const OOM: &std::ffi::CStr = c"/proc/self/oom_score_adj";

/// Moves this process into the guardians' cgroup; answers whether it is there. Without the privilege, or on a machine whose tree
/// is of version 1 or read-only (a container), it stays where it is.
pub(super) fn leave() -> bool {
    let _ = rustix::fs::mkdir(GROUP, Mode::from_raw_mode(0o755));
    // 0: whoever writes it.
    let left = write(MEMBERS, b"0\n");
    // The last to be killed for want of memory: it has hardly any, and its end would be the memory's.
    write(OOM, b"-1000\n");
    left
}

fn write(path: &std::ffi::CStr, text: &[u8]) -> bool {
    let file = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    file.is_ok_and(|file| rustix::io::write(&file, text) == Ok(text.len()))
}
