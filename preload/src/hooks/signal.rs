//! Handlers of SIGSEGV and SIGBUS, which stand behind ours.

use std::ffi::c_int;

use super::{interpose, library};
use crate::{fault, state};

interpose! {
    fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
        if state::is_on() && fault::is_ours(signal) {
            // SAFETY: the program's own call.
            return unsafe { fault::change(signal, new, old) };
        }
        library!(sigaction(signal, new, old))
    }

    fn __sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
        // SAFETY: the same function.
        unsafe { sigaction(signal, new, old) }
    }

    fn signal(signal: c_int, handler: usize) -> usize {
        if state::is_on() && fault::is_ours(signal) {
            return fault::change_handler(signal, handler, libc::SA_RESTART);
        }
        library!(signal(signal, handler))
    }

    fn bsd_signal(number: c_int, handler: usize) -> usize {
        // SAFETY: the same function.
        unsafe { signal(number, handler) }
    }

    fn ssignal(number: c_int, handler: usize) -> usize {
        // SAFETY: the same function.
        unsafe { signal(number, handler) }
    }

    fn sysv_signal(signal: c_int, handler: usize) -> usize {
        if state::is_on() && fault::is_ours(signal) {
            return fault::change_handler(signal, handler, libc::SA_RESETHAND | libc::SA_NODEFER);
        }
        library!(sysv_signal(signal, handler))
    }

    fn __sysv_signal(signal: c_int, handler: usize) -> usize {
        // SAFETY: the same function.
        unsafe { sysv_signal(signal, handler) }
    }
}
