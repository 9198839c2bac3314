//! Shared memory with a name by which others find it: no descriptor and no directory has it, only /proc/PID/maps.

use std::ffi::{CStr, c_void};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::retry_on_intr;
use rustix::mm::{self, MapFlags, ProtFlags};

/// Maps zeroed memory that is in a file called `name`, which nobody can cut off any more.
///
/// # Errors
/// What the system answers; nothing is left behind then.
pub(crate) fn shared(name: &CStr, length: usize) -> std::io::Result<*mut c_void> {
    // Closed at the end: the mapping keeps it.
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    retry_on_intr(|| rustix::fs::ftruncate(&file, length as u64))?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    Ok(unsafe { mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, &file, 0) }?)
}
