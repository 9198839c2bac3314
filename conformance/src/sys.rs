//! The system calls, as calls of libc's symbols: a preload library intercepts exactly these.
//!
//! Only what no provider serves (fork, capabilities, waiting) goes another way.

use std::ffi::{CString, c_int, c_void};
use std::io;

/// The last call's error.
pub(crate) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// A call's answer: its value, or the errno.
pub(crate) type Call<T> = Result<T, i32>;

fn check(value: i64) -> Call<i64> {
    if value == -1 { Err(errno()) } else { Ok(value) }
}

fn c_path(path: &str) -> Call<CString> {
    CString::new(path).map_err(|_| libc::EINVAL)
}

/// By which symbol a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opener {
    Open,
    Open64,
    OpenAt,
    OpenAt64,
}

pub(crate) fn open(path: &str, flags: c_int, by: Opener) -> Call<i32> {
    let path = c_path(path)?;
    // SAFETY: the path is a string with its end, and no mode is needed without O_CREAT.
    let fd = unsafe {
        match by {
            Opener::Open => libc::open(path.as_ptr(), flags),
            Opener::Open64 => libc::open64(path.as_ptr(), flags),
            Opener::OpenAt => libc::openat(libc::AT_FDCWD, path.as_ptr(), flags),
            Opener::OpenAt64 => libc::openat64(libc::AT_FDCWD, path.as_ptr(), flags),
        }
    };
    check(fd.into()).map(|fd| fd as i32)
}

pub(crate) fn close(fd: i32) -> Call<i64> {
    // SAFETY: closing a descriptor touches no memory; cases close only what they opened.
    check(unsafe { libc::close(fd) }.into())
}

pub(crate) fn close_range(first: u32, last: u32) -> Call<i64> {
    // SAFETY: as for `close`.
    check(unsafe { libc::close_range(first, last, 0) }.into())
}

pub(crate) fn dup(fd: i32) -> Call<i32> {
    // SAFETY: no memory is touched.
    check(unsafe { libc::dup(fd) }.into()).map(|fd| fd as i32)
}

pub(crate) fn dup3(from: i32, to: i32, flags: Option<c_int>) -> Call<i32> {
    // SAFETY: no memory is touched.
    let fd = unsafe {
        match flags {
            Some(flags) => libc::dup3(from, to, flags),
            None => libc::dup2(from, to),
        }
    };
    check(fd.into()).map(|fd| fd as i32)
}

pub(crate) fn fcntl(fd: i32, command: c_int, argument: c_int) -> Call<i64> {
    // SAFETY: only commands with an integer argument are used.
    check(unsafe { libc::fcntl(fd, command, argument) }.into())
}

pub(crate) fn ioctl(fd: i32, request: u64, argument: u64) -> Call<i64> {
    // SAFETY: the argument is an address within the case's own scratch memory, or one that is meant to be bad; what the call
    // may write stays within the case's memory.
    check(unsafe { libc::ioctl(fd, request as libc::Ioctl, argument) }.into())
}

pub(crate) fn pread(fd: i32, into: u64, length: usize, offset: Option<i64>) -> Call<i64> {
    let at = into as *mut c_void;
    // SAFETY: the address is a case's own buffer of that length, or meant to be bad.
    check(unsafe {
        match offset {
            Some(offset) => libc::pread(fd, at, length, offset),
            None => libc::read(fd, at, length),
        }
    } as i64)
}

pub(crate) fn pwrite(fd: i32, from: u64, length: usize, offset: Option<i64>) -> Call<i64> {
    let at = from as *const c_void;
    // SAFETY: as for `pread`.
    check(unsafe {
        match offset {
            Some(offset) => libc::pwrite(fd, at, length, offset),
            None => libc::write(fd, at, length),
        }
    } as i64)
}

pub(crate) fn lseek(fd: i32, offset: i64, whence: c_int) -> Call<i64> {
    // SAFETY: no memory is touched.
    check(unsafe { libc::lseek(fd, offset, whence) })
}

/// `poll` of one descriptor: the events that came.
pub(crate) fn poll(fd: i32, events: i16, milliseconds: c_int) -> Call<i16> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one entry, which lives through the call.
    check(unsafe { libc::poll(&raw mut entry, 1, milliseconds) }.into())?;
    Ok(entry.revents)
}

pub(crate) fn eventfd(initial: u32) -> Call<i32> {
    // SAFETY: no memory is touched.
    check(unsafe { libc::eventfd(initial, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }.into())
        .map(|fd| fd as i32)
}

pub(crate) fn pipe() -> Call<(i32, i32)> {
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }.into())?;
    Ok((ends[0], ends[1]))
}

pub(crate) fn memfd(flags: u32) -> Call<i32> {
    // SAFETY: the name is a string with its end.
    check(unsafe { libc::memfd_create(c"case".as_ptr(), flags | libc::MFD_CLOEXEC) }.into())
        .map(|fd| fd as i32)
}

pub(crate) fn ftruncate(fd: i32, length: i64) -> Call<i64> {
    // SAFETY: no memory is touched; a case that truncates what it has mapped is meant to see what follows.
    check(unsafe { libc::ftruncate(fd, length) }.into())
}

/// `mmap`, at `at` exactly where it is not 0.
pub(crate) fn mmap(
    at: u64,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: i32,
    offset: i64,
) -> Call<u64> {
    // SAFETY: an address is given only within the range that the runner keeps for the buffers of cases.
    let address = unsafe { libc::mmap(at as *mut c_void, length, protection, flags, fd, offset) };
    if address == libc::MAP_FAILED { Err(errno()) } else { Ok(address as u64) }
}

pub(crate) fn munmap(at: u64, length: usize) -> Call<i64> {
    // SAFETY: only memory of the case itself is given, which no Rust value lives in.
    check(unsafe { libc::munmap(at as *mut c_void, length) }.into())
}

pub(crate) fn mprotect(at: u64, length: usize, protection: c_int) -> Call<i64> {
    // SAFETY: as for `munmap`.
    check(unsafe { libc::mprotect(at as *mut c_void, length, protection) }.into())
}

pub(crate) fn madvise(at: u64, length: usize, advice: c_int) -> Call<i64> {
    // SAFETY: as for `munmap`.
    check(unsafe { libc::madvise(at as *mut c_void, length, advice) }.into())
}

/// Moves one page of a mapping to `to`, replacing what is there.
pub(crate) fn move_page(from: u64, to: u64, length: usize) -> Call<i64> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both are memory of the case itself.
    let address = unsafe { libc::mremap(from as *mut c_void, length, length, flags, to as *mut c_void) };
    if address == libc::MAP_FAILED { Err(errno()) } else { Ok(0) }
}

/// Reads the number of `width` bytes (1, 2, 4, 8) at `at`, in one access where it is aligned.
pub(crate) fn load(at: u64, width: usize) -> u64 {
    if !at.is_multiple_of(width.max(1) as u64) {
        return get(at, width).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    }
    // SAFETY: an address of the case's own memory; one that is not there kills the case's process, which is its answer.
    unsafe {
        match width {
            1 => (at as *const u8).read_volatile().into(),
            2 => (at as *const u16).read_volatile().into(),
            4 => (at as *const u32).read_volatile().into(),
            _ => (at as *const u64).read_volatile(),
        }
    }
}

/// Writes it.
pub(crate) fn store(at: u64, width: usize, value: u64) {
    if !at.is_multiple_of(width.max(1) as u64) {
        return put(at, value.to_le_bytes().get(..width).unwrap_or_default());
    }
    // SAFETY: as for `load`.
    unsafe {
        match width {
            1 => (at as *mut u8).write_volatile(value as u8),
            2 => (at as *mut u16).write_volatile(value as u16),
            4 => (at as *mut u32).write_volatile(value as u32),
            _ => (at as *mut u64).write_volatile(value),
        }
    }
}

/// Copies bytes into the case's memory.
pub(crate) fn put(at: u64, bytes: &[u8]) {
    for (address, byte) in (at..).zip(bytes) {
        store(address, 1, (*byte).into());
    }
}

/// Copies bytes out of it.
pub(crate) fn get(at: u64, length: usize) -> Vec<u8> {
    (at..).take(length).map(|address| load(address, 1) as u8).collect()
}

pub(crate) fn fork() -> Call<i32> {
    // SAFETY: the runner has one thread when it forks, and the child goes on with its own copy of everything.
    check(unsafe { libc::fork() }.into()).map(|pid| pid as i32)
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

pub(crate) fn wait(pid: i32) -> Call<Ended> {
    let mut status = 0;
    loop {
        // SAFETY: there is room for the status.
        match check(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into()) {
            Ok(_) if libc::WIFSIGNALED(status) => return Ok(Ended::Signal(libc::WTERMSIG(status))),
            Ok(_) => return Ok(Ended::Code(libc::WEXITSTATUS(status))),
            Err(libc::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process at once; nothing of it is needed any more.
    unsafe { libc::_exit(code) }
}

/// Kills a process, or with a negative number a process group.
pub(crate) fn kill(pid: i32) -> Call<i64> {
    // SAFETY: only processes that the runner made are named.
    check(unsafe { libc::kill(pid, libc::SIGKILL) }.into())
}

/// Puts this process in a group of its own, and has it killed when its parent ends.
pub(crate) fn alone() {
    // SAFETY: no memory is touched.
    unsafe {
        libc::setpgid(0, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
}

pub(crate) fn is_root() -> bool {
    // SAFETY: no memory is touched.
    unsafe { libc::geteuid() == 0 }
}

/// Sets the soft limit of locked memory, in bytes.
pub(crate) fn limit_memlock(bytes: u64) -> Call<i64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives through both calls.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit).into())?;
        limit.rlim_cur = bytes;
        limit.rlim_max = limit.rlim_max.max(bytes);
        check(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit).into())
    }
}

/// The capability sets of this process: effective, permitted, inheritable; twice, for capabilities 0 to 31 and 32 to 63.
type Capabilities = [[u32; 3]; 2];

/// Version 3 of the calls' structures, and this thread.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

fn capabilities() -> Call<Capabilities> {
    let mut header = CAPABILITY_HEADER;
    let mut sets = Capabilities::default();
    // SAFETY: header and sets have the layout of version 3 of the call.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) })?;
    Ok(sets)
}

/// Whether the capability with that number is effective.
pub(crate) fn has_capability(number: u32) -> bool {
    let sets = capabilities().unwrap_or_default();
    sets.get(number as usize / 32).is_some_and(|set| set[0] & 1 << (number % 32) != 0)
}

/// Takes the capability with that number out of the effective set, or puts it back.
pub(crate) fn capability(number: u32, raise: bool) -> Call<i64> {
    let mut sets = capabilities()?;
    if let Some(set) = sets.get_mut(number as usize / 32) {
        let bit = 1 << (number % 32);
        if raise {
            set[0] |= bit;
        } else {
            set[0] &= !bit;
        }
    }
    let mut header = CAPABILITY_HEADER;
    // SAFETY: as for the call that gets them.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) })
}

/// Becomes another user and keeps the capabilities.
pub(crate) fn become_user(user: u32) -> Call<i64> {
    // SAFETY: no memory is touched.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        check(libc::setresuid(user, user, user).into())?;
        // A process that changes its user cannot be looked at through proc any more; the runner still wants to.
        check(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0).into())?;
    }
    for number in 0..=40 {
        // What the permitted set does not have cannot be raised; that is no concern here.
        let _ = capability(number, true);
    }
    Ok(0)
}

/// What `stat` says of a file: type and permissions, and the number of the device it is.
pub(crate) fn stat(path: &str) -> Call<(u32, u64)> {
    let path = c_path(path)?;
    let mut about = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: there is room for the answer, which the call fills when it succeeds; zeroes are a valid one too.
    unsafe {
        check(libc::stat(path.as_ptr(), about.as_mut_ptr()).into())?;
        let about = about.assume_init();
        Ok((about.st_mode, about.st_rdev))
    }
}

pub(crate) fn fstat(fd: i32) -> Call<(u32, u64)> {
    let mut about = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: as for `stat`.
    unsafe {
        check(libc::fstat(fd, about.as_mut_ptr()).into())?;
        let about = about.assume_init();
        Ok((about.st_mode, about.st_rdev))
    }
}

pub(crate) fn access(path: &str, mode: c_int) -> Call<i64> {
    let path = c_path(path)?;
    // SAFETY: the path is a string with its end.
    check(unsafe { libc::access(path.as_ptr(), mode) }.into())
}

pub(crate) fn mlock(at: u64, length: usize) -> Call<i64> {
    // SAFETY: pins pages, touches no memory.
    check(unsafe { libc::mlock(at as *const c_void, length) }.into())
}

pub(crate) fn munlock(at: u64, length: usize) -> Call<i64> {
    // SAFETY: as for `mlock`.
    check(unsafe { libc::munlock(at as *const c_void, length) }.into())
}

/// Gives a file of that length all its pages.
pub(crate) fn fallocate(fd: i32, length: i64) -> Call<i64> {
    // SAFETY: no memory is touched.
    check(unsafe { libc::fallocate(fd, 0, 0, length) }.into())
}

/// Two sockets that are connected, and which never wait.
pub(crate) fn socketpair() -> Call<(i32, i32)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: there is room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }.into())?;
    Ok((ends[0], ends[1]))
}

/// Room for the header of one control message and a descriptor in it, aligned as the header.
type Control = [u64; 4];

/// Lets `then` work with a message of one byte that has room for a descriptor.
fn with_message<T>(then: impl FnOnce(&mut libc::msghdr) -> T) -> T {
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control: Control = [0; 4];
    // SAFETY: zeroes are a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: only computes a length.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<i32>() as u32) } as _;
    then(&mut message)
}

/// Sends a descriptor through a socket.
pub(crate) fn send_file(socket: i32, file: i32) -> Call<i64> {
    with_message(|message| {
        // SAFETY: the message has room for one header and a descriptor.
        unsafe {
            if let Some(header) = libc::CMSG_FIRSTHDR(message).as_mut() {
                header.cmsg_level = libc::SOL_SOCKET;
                header.cmsg_type = libc::SCM_RIGHTS;
                header.cmsg_len = libc::CMSG_LEN(size_of::<i32>() as u32) as _;
                libc::CMSG_DATA(header).cast::<i32>().write_unaligned(file);
            }
            check(libc::sendmsg(socket, message, 0) as i64)
        }
    })
}

/// Takes the descriptor that comes through a socket.
pub(crate) fn receive_file(socket: i32) -> Call<i32> {
    with_message(|message| {
        // SAFETY: what the call writes fits into the message's room, and the header is looked at only where there is one.
        unsafe {
            check(libc::recvmsg(socket, message, 0) as i64)?;
            let header = libc::CMSG_FIRSTHDR(message);
            if header.is_null() {
                Err(libc::ENODATA)
            } else {
                Ok(libc::CMSG_DATA(header).cast::<i32>().read_unaligned())
            }
        }
    })
}

/// Takes a file's pages away; its length stays.
pub(crate) fn punch(fd: i32, offset: i64, length: i64) -> Call<i64> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is touched.
    check(unsafe { libc::fallocate(fd, mode, offset, length) }.into())
}
