//! The C library's own functions, behind the ones that stand in front of them.
//!
//! Wanted where a system call alone is not what the function does: where a thread can be cancelled, and where the C library
//! keeps something of its own (directory streams, files of stdio).

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::transmute;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{
    DIR, FILE, dirent, glob_t, iovec, mode_t, msghdr, off_t, pthread_attr_t, pthread_t, sigset_t, size_t,
    ssize_t, uid_t,
};

use crate::hooks::Start;

/// What stands for a function that this C library does not have: ENOSYS.
extern "C" fn absent() -> isize {
    crate::raw::set_errno(libc::ENOSYS);
    -1
}

fn find(name: &CStr) -> *mut c_void {
    // SAFETY: a name that ends with a NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    if found.is_null() { absent as *mut c_void } else { found }
}

macro_rules! real {
    ($($name:ident as $symbol:literal: $type:ty;)*) => {
        $(
            #[doc = concat!("The C library's `", stringify!($name), "`.")]
            pub(crate) fn $name() -> $type {
                static FOUND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
                let mut found = FOUND.load(Ordering::Relaxed);
                if found.is_null() {
                    found = find($symbol);
                    FOUND.store(found, Ordering::Relaxed);
                }
                // SAFETY: the function of that name has this type (its header); where it is missing, what stands for it takes
                // no argument and answers -1.
                unsafe { transmute::<*mut c_void, $type>(found) }
            }
        )*

        /// Finds them all, so that none has to be looked for in a signal handler.
        pub(crate) fn find_all() {
            $($name();)*
        }
    };
}

type Compare = Option<unsafe extern "C" fn(*mut *const dirent, *mut *const dirent) -> c_int>;
type Select = Option<unsafe extern "C" fn(*const dirent) -> c_int>;
type GlobError = Option<extern "C" fn(*const c_char, c_int) -> c_int>;

real! {
    openat as c"openat": unsafe extern "C" fn(c_int, *const c_char, c_int, mode_t) -> c_int;
    close as c"close": unsafe extern "C" fn(c_int) -> c_int;
    read as c"read": unsafe extern "C" fn(c_int, *mut c_void, size_t) -> ssize_t;
    read_chk as c"__read_chk": unsafe extern "C" fn(c_int, *mut c_void, size_t, size_t) -> ssize_t;
    pread_chk as c"__pread_chk": unsafe extern "C" fn(c_int, *mut c_void, size_t, off_t, size_t) -> ssize_t;
    write as c"write": unsafe extern "C" fn(c_int, *const c_void, size_t) -> ssize_t;
    pread as c"pread64": unsafe extern "C" fn(c_int, *mut c_void, size_t, off_t) -> ssize_t;
    pwrite as c"pwrite64": unsafe extern "C" fn(c_int, *const c_void, size_t, off_t) -> ssize_t;
    readv as c"readv": unsafe extern "C" fn(c_int, *const iovec, c_int) -> ssize_t;
    writev as c"writev": unsafe extern "C" fn(c_int, *const iovec, c_int) -> ssize_t;
    preadv as c"preadv64": unsafe extern "C" fn(c_int, *const iovec, c_int, off_t) -> ssize_t;
    pwritev as c"pwritev64": unsafe extern "C" fn(c_int, *const iovec, c_int, off_t) -> ssize_t;
    preadv2 as c"preadv64v2": unsafe extern "C" fn(c_int, *const iovec, c_int, off_t, c_int) -> ssize_t;
    pwritev2 as c"pwritev64v2": unsafe extern "C" fn(c_int, *const iovec, c_int, off_t, c_int) -> ssize_t;
    fcntl as c"fcntl": unsafe extern "C" fn(c_int, c_int, usize) -> c_int;
    sendmsg as c"sendmsg": unsafe extern "C" fn(c_int, *const msghdr, c_int) -> ssize_t;
    sendmmsg as c"sendmmsg": unsafe extern "C" fn(c_int, *mut libc::mmsghdr, c_uint, c_int) -> c_int;
    faccessat as c"faccessat": unsafe extern "C" fn(c_int, *const c_char, c_int, c_int) -> c_int;
    fchmodat as c"fchmodat": unsafe extern "C" fn(c_int, *const c_char, mode_t, c_int) -> c_int;
    realpath as c"realpath": unsafe extern "C" fn(*const c_char, *mut c_char) -> *mut c_char;
    fopen as c"fopen64": unsafe extern "C" fn(*const c_char, *const c_char) -> *mut FILE;
    fdopen as c"fdopen": unsafe extern "C" fn(c_int, *const c_char) -> *mut FILE;
    fclose as c"fclose": unsafe extern "C" fn(*mut FILE) -> c_int;
    opendir as c"opendir": unsafe extern "C" fn(*const c_char) -> *mut DIR;
    fdopendir as c"fdopendir": unsafe extern "C" fn(c_int) -> *mut DIR;
    closedir as c"closedir": unsafe extern "C" fn(*mut DIR) -> c_int;
    readdir as c"readdir64": unsafe extern "C" fn(*mut DIR) -> *mut dirent;
    readdir_r as c"readdir64_r": unsafe extern "C" fn(*mut DIR, *mut dirent, *mut *mut dirent) -> c_int;
    rewinddir as c"rewinddir": unsafe extern "C" fn(*mut DIR);
    telldir as c"telldir": unsafe extern "C" fn(*mut DIR) -> std::ffi::c_long;
    seekdir as c"seekdir": unsafe extern "C" fn(*mut DIR, std::ffi::c_long);
    scandir as c"scandir64": unsafe extern "C" fn(*const c_char, *mut *mut *mut dirent, Select, Compare) -> c_int;
    glob as c"glob": unsafe extern "C" fn(*const c_char, c_int, GlobError, *mut glob_t) -> c_int;
    sigaction as c"sigaction": unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
    signal as c"signal": unsafe extern "C" fn(c_int, usize) -> usize;
    pthread_create as c"pthread_create": unsafe extern "C" fn(*mut pthread_t, *const pthread_attr_t, Start, *mut c_void) -> c_int;
    sysv_signal as c"sysv_signal": unsafe extern "C" fn(c_int, usize) -> usize;
    sigprocmask as c"sigprocmask": unsafe extern "C" fn(c_int, *const sigset_t, *mut sigset_t) -> c_int;
    pthread_sigmask as c"pthread_sigmask": unsafe extern "C" fn(c_int, *const sigset_t, *mut sigset_t) -> c_int;
    sighold as c"sighold": unsafe extern "C" fn(c_int) -> c_int;
    sigset as c"sigset": unsafe extern "C" fn(c_int, usize) -> usize;
    sigblock as c"sigblock": unsafe extern "C" fn(c_int) -> c_int;
    sigsetmask as c"sigsetmask": unsafe extern "C" fn(c_int) -> c_int;
    longjmp as c"longjmp": unsafe extern "C" fn(*mut c_void, c_int) -> !;
    longjmp_chk as c"__longjmp_chk": unsafe extern "C" fn(*mut c_void, c_int) -> !;
    setcontext as c"setcontext": unsafe extern "C" fn(*const c_void) -> c_int;
    swapcontext as c"swapcontext": unsafe extern "C" fn(*mut c_void, *const c_void) -> c_int;
    setuid as c"setuid": unsafe extern "C" fn(uid_t) -> c_int;
    seteuid as c"seteuid": unsafe extern "C" fn(uid_t) -> c_int;
    setreuid as c"setreuid": unsafe extern "C" fn(uid_t, uid_t) -> c_int;
    setresuid as c"setresuid": unsafe extern "C" fn(uid_t, uid_t, uid_t) -> c_int;
    capset as c"capset": unsafe extern "C" fn(*mut c_void, *const c_void) -> c_int;
}
