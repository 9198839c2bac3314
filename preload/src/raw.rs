//! System calls without the C library, whose names are ours here.

use std::ffi::{c_int, c_long};

use noiommu::Errno;
pub(crate) use noiommu::raw::{call, result};

/// `system!(SYS_name, arguments...)`: the call, in an unsafe context; the value, or a negative error number.
macro_rules! system {
    ($number:ident $(, $argument:expr)*) => {
        noiommu::raw::call(libc::$number, noiommu::raw::registers([$(noiommu::raw::Argument::register($argument)),*]))
    };
}
pub(crate) use system;

/// The kernel's answer as the C library gives it: -1 and `errno`.
#[inline(always)]
pub(crate) fn answer(answer: isize) -> c_long {
    if (-4095..0).contains(&answer) {
        set_errno(answer.wrapping_neg() as c_int);
        return -1;
    }
    answer as c_long
}

/// An error number by its number in the C headers.
pub(crate) const fn errno(number: c_int) -> Errno {
    match Errno::from_raw(number) {
        Some(errno) => errno,
        None => Errno::EIO,
    }
}

/// The calling thread's `errno`.
pub(crate) fn last_errno() -> c_int {
    // SAFETY: the place is the thread's own and always there.
    unsafe { *libc::__errno_location() }
}

/// Sets the calling thread's `errno`.
pub(crate) fn set_errno(number: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = number };
}

/// Closes a descriptor of our own.
pub(crate) fn close(fd: c_int) {
    // SAFETY: nobody else uses it.
    unsafe { system!(SYS_close, fd) };
}

/// Runs `work` while no signal is delivered to this thread, so that no handler of the program meets a lock that its own thread
/// holds.
pub(crate) fn without_signals<R>(work: impl FnOnce() -> R) -> R {
    const SIZE: usize = size_of::<u64>();
    let all = u64::MAX;
    let mut before = 0_u64;
    // SAFETY: both sets are here and of the kernel's size.
    let blocked =
        unsafe { system!(SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const all, &raw mut before, SIZE) };
    let result = work();
    if blocked == 0 {
        // SAFETY: as above.
        unsafe {
            system!(
                SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const before,
                std::ptr::null_mut::<u64>(),
                SIZE
            )
        };
    }
    result
}
