//! Which process this is, known without a system call.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// The id of this process. Pins belong to one, and a forked child must notice that it is another.
///
/// Kept in a page that the kernel empties in a forked child (MADV_WIPEONFORK), so that asking costs a load and cannot be
/// fooled by a fork that the C library does not know of.
pub(crate) fn id() -> u32 {
    static KEPT: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();
    let Some(kept) = KEPT.get_or_init(page) else { return std::process::id() };
    match kept.load(Ordering::Relaxed) {
        // New here: the first call of this process.
        0 => {
            let id = std::process::id();
            kept.store(id, Ordering::Relaxed);
            id
        }
        id => id,
    }
}

/// A page that reads as zero in a forked child; `None` where the kernel cannot do that (before 4.14).
fn page() -> Option<&'static AtomicU32> {
    let length = rustix::param::page_size();
    // SAFETY: a new mapping at a place of the kernel's choice.
    let page = unsafe {
        mm::mmap_anonymous(
            std::ptr::null_mut(),
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    }
    .ok()?;
    // SAFETY: advice about the page just made.
    if unsafe { mm::madvise(page, length, Advice::LinuxWipeOnFork) }.is_err() {
        // SAFETY: nobody knows of the page yet.
        let _ = unsafe { mm::munmap(page, length) };
        return None;
    }
    // SAFETY: the page is aligned, zeroed, never unmapped from here on, and only ever used as this atomic.
    Some(unsafe { AtomicU32::from_ptr(page.cast()) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_process() {
        assert_eq!(super::id(), std::process::id());
        assert_eq!(super::id(), std::process::id());
    }
}
