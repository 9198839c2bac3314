//! A process that has all rights but the one to lock memory without limit, as a user that nobody else is: what it has locked is
//! counted for it alone.

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Becomes that, for this thread, those that it starts and what it executes. Not run, it says why and answers false.
pub(crate) fn give_up_locking(user: u32) -> bool {
    // SAFETY: plain system calls. Names, ids and rights of this process alone.
    let user_set = unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_setresuid, user, user, user) == 0
    };
    let Ok(had) = rustix::thread::capabilities(None) else { return false };
    let rights = had.permitted - CapabilitySet::IPC_LOCK;
    let all = CapabilitySets { effective: rights, permitted: rights, inheritable: rights };
    if !user_set
        || !rights.contains(CapabilitySet::SYS_ADMIN)
        || rustix::thread::set_capabilities(None, all).is_err()
    {
        eprintln!("not run: it takes root to become a user of one's own");
        return false;
    }
    for right in rights.iter() {
        rustix::thread::configure_capability_in_ambient_set(right, true).unwrap();
    }
    // Its own files in /proc are its own again.
    // SAFETY: as above.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }, 0);
    true
}

/// A user id that no other process has: made of this one's id.
pub(crate) fn nobody_else() -> u32 {
    0x4000_0000 + std::process::id()
}

/// Sets the soft limit, the hard one staying as it is; answers the limit before.
pub(crate) fn limit(resource: Resource, to: Option<u64>) -> Option<u64> {
    let before = rustix::process::getrlimit(resource);
    rustix::process::setrlimit(resource, Rlimit { current: to, maximum: before.maximum }).unwrap();
    before.current
}
