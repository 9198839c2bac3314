//! Calls that change who the program is: whether it has CAP_SYS_RAWIO is asked anew after them.

use std::ffi::{c_int, c_void};

use libc::uid_t;

use super::{interpose, library};
use crate::thread;

/// The C library's function, and what is known of any thread forgotten: it acts on all of them.
macro_rules! becoming {
    ($name:ident($($argument:expr),*)) => {{
        let answer = library!($name($($argument),*));
        thread::changed();
        answer
    }};
}

interpose! {
    fn setuid(user: uid_t) -> c_int {
        becoming!(setuid(user))
    }

    fn seteuid(user: uid_t) -> c_int {
        becoming!(seteuid(user))
    }

    fn setreuid(real: uid_t, effective: uid_t) -> c_int {
        becoming!(setreuid(real, effective))
    }

    fn setresuid(real: uid_t, effective: uid_t, saved: uid_t) -> c_int {
        becoming!(setresuid(real, effective, saved))
    }

    fn capset(header: *mut c_void, data: *const c_void) -> c_int {
        becoming!(capset(header, data))
    }
}
