//! What a guardian asks the kernel for, without the C library in between.
//!
//! A guardian runs in a process that has given up nearly all of its memory, and perhaps one where the C library's names are those of a
//! program that is served: so nothing here takes memory from the heap or calls anybody. What fails is told by `None` or `false`,
//! and a call that a signal would end is none, as all signals are blocked.

use std::ffi::{CStr, c_void};
use std::os::fd::RawFd;
use std::ptr;

use crate::raw::{self, system};

/// The kernel's answer, if it is no error.
fn answer(answer: isize) -> Option<usize> {
    raw::result(answer).ok()
}

/// Opens a file, closed on exec.
pub(super) fn open(path: &CStr, flags: i32) -> Option<RawFd> {
    // SAFETY: the path ends with a zero.
    let opened = unsafe { system!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags | libc::O_CLOEXEC, 0) };
    answer(opened).and_then(|file| RawFd::try_from(file).ok())
}

/// Closes a descriptor, if it is open. By its number alone: an owner of it would take one that is not open for a fault of the
/// program's.
pub(super) fn close(file: RawFd) {
    // SAFETY: a number; nobody here uses what is open under it.
    unsafe { system!(SYS_close, file) };
}

/// Whether a descriptor is open.
pub(super) fn is_open(file: RawFd) -> bool {
    // SAFETY: numbers alone.
    answer(unsafe { system!(SYS_fcntl, file, libc::F_GETFD, 0) }).is_some()
}

/// Gives a descriptor a number of at least `floor`, in place of the one that it has; where that cannot be, it keeps it.
pub(super) fn raise(file: RawFd, floor: i32) -> RawFd {
    // SAFETY: numbers alone.
    let raised = answer(unsafe { system!(SYS_fcntl, file, libc::F_DUPFD_CLOEXEC, floor) });
    match raised.and_then(|raised| RawFd::try_from(raised).ok()) {
        Some(raised) => {
            close(file);
            raised
        }
        None => file,
    }
}

/// Reads what comes next; answers how many bytes.
pub(super) fn read(file: RawFd, into: &mut [u8]) -> Option<usize> {
    // SAFETY: the memory is borrowed for the call, and as long as told.
    answer(unsafe { system!(SYS_read, file, into.as_mut_ptr(), into.len()) })
}

/// Writes all of it in one call; answers whether that was done.
pub(super) fn write(file: RawFd, from: &[u8]) -> bool {
    // SAFETY: as for `read`.
    answer(unsafe { system!(SYS_write, file, from.as_ptr(), from.len()) }) == Some(from.len())
}

/// Opens a file to write at its end, which is made if it is not there; a link is not followed.
pub(super) fn open_end(path: &CStr) -> Option<RawFd> {
    let flags = libc::O_WRONLY
        | libc::O_APPEND
        | libc::O_CREAT
        | libc::O_NOFOLLOW
        | libc::O_NONBLOCK
        | libc::O_CLOEXEC;
    // SAFETY: the path ends with a zero.
    let opened = unsafe { system!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o644) };
    answer(opened).and_then(|file| RawFd::try_from(file).ok())
}

/// Where a file ends.
pub(super) fn length(file: RawFd) -> Option<u64> {
    // SAFETY: numbers alone.
    answer(unsafe { system!(SYS_lseek, file, 0, libc::SEEK_END) }).map(|length| length as u64)
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let mut time = [0i64; 2];
    // SAFETY: a `timespec` is two numbers of 64 bits, and is here.
    unsafe { system!(SYS_clock_gettime, libc::CLOCK_REALTIME, time.as_mut_ptr()) };
    time[0]
}

/// Reads all of it at an offset; answers whether that was done.
pub(super) fn read_at(file: RawFd, into: &mut [u8], offset: u64) -> bool {
    // SAFETY: as for `read`.
    answer(unsafe { system!(SYS_pread64, file, into.as_mut_ptr(), into.len(), offset) }) == Some(into.len())
}

/// Writes all of it at an offset; answers whether that was done.
pub(super) fn write_at(file: RawFd, from: &[u8], offset: u64) -> bool {
    // SAFETY: as for `read`.
    answer(unsafe { system!(SYS_pwrite64, file, from.as_ptr(), from.len(), offset) }) == Some(from.len())
}

/// What a link says, cut off where it does not fit.
pub(super) fn read_link<'a>(path: &CStr, into: &'a mut [u8]) -> &'a [u8] {
    // SAFETY: the path ends with a zero; the memory is borrowed for the call, and as long as told.
    let length = answer(unsafe {
        system!(SYS_readlinkat, libc::AT_FDCWD, path.as_ptr(), into.as_mut_ptr(), into.len())
    });
    length.and_then(|length| into.get(..length)).unwrap_or(&[])
}

/// The next entries of a directory, as bytes; see *getdents64(2)*.
pub(super) fn entries(directory: RawFd, into: &mut [u64]) -> &[u8] {
    // SAFETY: the memory is borrowed for the call, aligned for entries, and as long as told.
    let length = answer(unsafe { system!(SYS_getdents64, directory, into.as_mut_ptr(), size_of_val(into)) });
    let length = length.unwrap_or(0).min(size_of_val(into));
    // SAFETY: initialized, and borrowed for as long as the answer is.
    unsafe { std::slice::from_raw_parts(into.as_ptr().cast(), length) }
}

/// Makes a directory for everybody to read.
pub(super) fn make_directory(path: &CStr) {
    // SAFETY: the path ends with a zero.
    unsafe { system!(SYS_mkdirat, libc::AT_FDCWD, path.as_ptr(), 0o755) };
}

/// `flock`; answers whether it was done.
pub(super) fn lock(file: RawFd, how: i32) -> bool {
    // SAFETY: numbers alone.
    answer(unsafe { system!(SYS_flock, file, how) }).is_some()
}

/// An ioctl without an argument, and the number of its error.
pub(super) fn ioctl(file: RawFd, request: u32) -> Result<(), i32> {
    // SAFETY: numbers alone: the request takes no address.
    match unsafe { system!(SYS_ioctl, file, request, 0) } {
        error @ -4095..0 => Err(error.unsigned_abs() as i32),
        _ => Ok(()),
    }
}

/// The domain of a socket.
pub(super) fn socket_domain(file: RawFd) -> Option<i32> {
    let (mut domain, mut length) = (0i32, size_of::<i32>() as u32);
    // SAFETY: both are here, and as long as told.
    let told = unsafe {
        system!(SYS_getsockopt, file, libc::SOL_SOCKET, libc::SO_DOMAIN, &raw mut domain, &raw mut length)
    };
    answer(told).map(|_| domain)
}

/// Maps registers.
pub(super) fn map(file: RawFd, offset: u64, length: usize) -> Option<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let mapped = unsafe {
        system!(SYS_mmap, ptr::null::<c_void>(), length, protection, libc::MAP_SHARED, file, offset)
    };
    answer(mapped).map(|address| address as *mut u8)
}

/// Unmaps memory.
///
/// # Safety
/// Nobody uses it any more.
pub(super) unsafe fn unmap(start: usize, length: usize) {
    // SAFETY: as the caller promises.
    unsafe { system!(SYS_munmap, start, length) };
}

/// Sleeps.
pub(super) fn pause(milliseconds: u32) {
    let seconds = i64::from(milliseconds / 1000);
    let time = [seconds, i64::from(milliseconds % 1000) * 1_000_000];
    // SAFETY: a `timespec` is two numbers of 64 bits.
    unsafe { system!(SYS_nanosleep, time.as_ptr(), ptr::null::<c_void>()) };
}

/// A descriptor of a process that becomes readable at its end.
pub(super) fn open_process(process: i32) -> Option<RawFd> {
    // SAFETY: numbers alone.
    let opened = answer(unsafe { system!(SYS_pidfd_open, process, 0) });
    opened.and_then(|file| RawFd::try_from(file).ok())
}

/// Waits for a descriptor to become readable; answers whether anything was told before the time was over.
pub(super) fn wait_readable(file: RawFd, milliseconds: u32) -> bool {
    let mut wanted = libc::pollfd { fd: file, events: libc::POLLIN, revents: 0 };
    let time = [i64::from(milliseconds / 1000), i64::from(milliseconds % 1000) * 1_000_000];
    // SAFETY: one structure, and a `timespec` of two numbers; no signal mask.
    let told = unsafe { system!(SYS_ppoll, &raw mut wanted, 1, time.as_ptr(), ptr::null::<c_void>(), 0) };
    answer(told) != Some(0)
}

/// This process.
pub(super) fn process() -> i32 {
    // SAFETY: no argument.
    unsafe { system!(SYS_getpid) as i32 }
}

/// This thread.
pub(super) fn thread() -> i32 {
    // SAFETY: no argument.
    unsafe { system!(SYS_gettid) as i32 }
}

/// The parent of this process.
pub(super) fn parent() -> i32 {
    // SAFETY: no argument.
    unsafe { system!(SYS_getppid) as i32 }
}

/// Whether two threads have one table of descriptors; `None`: the kernel does not tell (kcmp is not built in, or not allowed).
pub(super) fn same_descriptors(one: i32, other: i32) -> Option<bool> {
    /// KCMP_FILES of *linux/kcmp.h*.
    const FILES: i32 = 2;
    // SAFETY: numbers alone.
    match unsafe { system!(SYS_kcmp, one, other, FILES, 0, 0) } {
        0 => Some(true),
        1..=3 => Some(false),
        _ => None,
    }
}

/// A session of its own, and a name.
pub(super) fn set_apart(name: &CStr) {
    // SAFETY: numbers, and a text that ends with a zero.
    unsafe {
        system!(SYS_setsid);
        system!(SYS_prctl, libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0);
    }
}
