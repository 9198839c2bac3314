//! What the engine asks the C library for, as part of a program that does not know of it: its descriptors stand out of the
//! program's way and are not the program's to close (pinned pages would be let go under a device), and its threads see none of the
//! program's signals.
//!
//! That is why the engine reaches the kernel through the C library's names, and not around them (`rustix/use-libc`).

use std::ffi::{c_char, c_int, c_uint, c_void};

use libc::{pthread_attr_t, pthread_t, rlimit};

use super::{interpose, kernel, library};
use crate::raw::{self, result, system, without_signals};
use crate::{gate, table};

interpose! {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
        keep(kernel!(SYS_socket, domain, kind, protocol) as c_int)
    }

    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int {
        keep(kernel!(SYS_memfd_create, name, flags) as c_int)
    }

    fn eventfd(initial: c_uint, flags: c_int) -> c_int {
        keep(kernel!(SYS_eventfd2, initial, flags) as c_int)
    }

    fn pthread_create(
        thread: *mut pthread_t, attributes: *const pthread_attr_t, start: Start, argument: *mut c_void,
    ) -> c_int {
        if !gate::is_inside() {
            return library!(pthread_create(thread, attributes, start, argument));
        }
        let begin = Box::into_raw(Box::new((start, argument)));
        // A thread begins with the mask of the one that makes it.
        let answer = without_signals(|| library!(pthread_create(thread, attributes, run_inside, begin.cast())));
        if answer != 0 {
            // SAFETY: made above, and no thread has begun with it.
            drop(unsafe { Box::from_raw(begin) });
        }
        answer
    }
}

/// What a thread begins with.
pub(crate) type Start = extern "C" fn(*mut c_void) -> *mut c_void;

extern "C" fn run_inside(begin: *mut c_void) -> *mut c_void {
    gate::stay_inside();
    // SAFETY: made by `pthread_create` above for this thread alone.
    let (start, argument) = *unsafe { Box::from_raw(begin.cast::<(Start, *mut c_void)>()) };
    start(argument)
}

/// A descriptor just made: if by the engine, it gets a higher number, and is noted as the engine's.
pub(crate) fn keep(fd: c_int) -> c_int {
    if fd < 0 || !gate::is_inside() {
        return fd;
    }
    let mut limit = rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is here.
    unsafe { system!(SYS_prlimit64, 0, libc::RLIMIT_NOFILE, std::ptr::null::<rlimit>(), &raw mut limit) };
    // High enough for programs that use `select`, and not so high that the kernel's table grows for it.
    let floor = (limit.rlim_cur / 2).min(1024);
    // SAFETY: a descriptor of our own.
    let high = result(unsafe { system!(SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, floor) });
    let kept = match high {
        Ok(high) => {
            raw::close(fd);
            high as c_int
        }
        Err(_) => fd,
    };
    table::change(|change| change.set_engines(kept));
    kept
}
