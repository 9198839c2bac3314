//! Handlers of SIGSEGV and SIGBUS, which stand behind ours; and what may change the signal mask of a thread, which then asks anew
//! whether these two arrive.

use std::ffi::{c_int, c_void};

use libc::sigset_t;

use super::{interpose, library};
use crate::{fault, state, thread};

/// The C library's function, and the thread's mask is not known any more.
macro_rules! masking {
    ($name:ident($($argument:expr),*)) => {{
        let answer = library!($name($($argument),*));
        thread::forget();
        answer
    }};
}

/// The same for a function that goes on elsewhere, perhaps with the mask of then.
macro_rules! jumping {
    ($name:ident($($argument:expr),*)) => {{
        thread::forget();
        library!($name($($argument),*))
    }};
}

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

    fn sigprocmask(how: c_int, new: *const sigset_t, old: *mut sigset_t) -> c_int {
        masking!(sigprocmask(how, new, old))
    }

    fn pthread_sigmask(how: c_int, new: *const sigset_t, old: *mut sigset_t) -> c_int {
        masking!(pthread_sigmask(how, new, old))
    }

    fn sighold(signal: c_int) -> c_int {
        masking!(sighold(signal))
    }

    fn sigset(signal: c_int, handler: usize) -> usize {
        masking!(sigset(signal, handler))
    }

    fn sigblock(mask: c_int) -> c_int {
        masking!(sigblock(mask))
    }

    fn sigsetmask(mask: c_int) -> c_int {
        masking!(sigsetmask(mask))
    }

    fn longjmp(place: *mut c_void, value: c_int) -> ! {
        jumping!(longjmp(place, value))
    }

    fn _longjmp(place: *mut c_void, value: c_int) -> ! {
        jumping!(longjmp(place, value))
    }

    fn siglongjmp(place: *mut c_void, value: c_int) -> ! {
        jumping!(longjmp(place, value))
    }

    fn __longjmp_chk(place: *mut c_void, value: c_int) -> ! {
        jumping!(longjmp_chk(place, value))
    }

    fn setcontext(context: *const c_void) -> c_int {
        jumping!(setcontext(context))
    }

    fn swapcontext(old: *mut c_void, new: *const c_void) -> c_int {
        thread::forget();
        // Comes back when somebody goes on with `old`, on whatever thread that is.
        masking!(swapcontext(old, new))
    }
}
