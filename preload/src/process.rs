//! Whose descriptors these are: a child of `vfork` has its own, but shares the memory in which ours are noted.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::raw::system;

/// The process whose descriptors the table notes.
static OWNER: AtomicI32 = AtomicI32::new(0);

fn id() -> i32 {
    // SAFETY: takes nothing, and always succeeds.
    unsafe { system!(SYS_getpid) as i32 }
}

/// From here on the table notes this process's descriptors: at the start, and in a forked child, whose table is its own copy.
pub(crate) fn adopt() {
    OWNER.store(id(), Ordering::Relaxed);
}

/// Whether this thread has CAP_DAC_OVERRIDE: may read and write any file.
pub(crate) fn overrides() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::DAC_OVERRIDE))
}

/// Whether this is a child that shares the memory of its parent and not the descriptors (`vfork`, `posix_spawn`): what it does to
/// its descriptors must not be noted. A child made without the C library's `fork` is taken for one, too.
pub(crate) fn is_borrowed() -> bool {
    OWNER.load(Ordering::Relaxed) != id()
}
