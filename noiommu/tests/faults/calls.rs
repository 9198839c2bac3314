//! System calls: how each can fail, and what is known of the others.

use libc::c_long;

use crate::supervisor::Fault::{self, Errno, Nothing};

/// The ways in which calls of the kit, and of what it is built on, can fail.
pub(crate) fn failures(nr: c_long, of_device: bool) -> &'static [Fault] {
    const NO_MEMORY: Fault = Errno(libc::ENOMEM);
    match nr {
        libc::SYS_openat | libc::SYS_open => {
            &[Errno(libc::ENOENT), Errno(libc::EACCES), Errno(libc::EMFILE), Errno(libc::EINTR), NO_MEMORY]
        }
        libc::SYS_read | libc::SYS_pread64 => &[Errno(libc::EIO), Errno(libc::EINTR), Nothing],
        libc::SYS_write => &[Errno(libc::EIO), Errno(libc::EINTR)],
        libc::SYS_ioctl => &[Errno(libc::ENOTTY), Errno(libc::EFAULT), Errno(libc::EINTR), NO_MEMORY],
        libc::SYS_close => &[Errno(libc::EIO), Errno(libc::EINTR)],
        libc::SYS_process_vm_readv | libc::SYS_process_vm_writev => {
            &[Errno(libc::EFAULT), Errno(libc::EPERM)]
        }
        // What a thread does to begin and to end is the standard library's, which does not go on without: see the test of
        // allocations for what that means.
        _ if of_device => &[],
        libc::SYS_fstat
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_readlink
        | libc::SYS_readlinkat => &[Errno(libc::EACCES), NO_MEMORY, Errno(libc::EIO)],
        libc::SYS_getdents64 => &[Errno(libc::EIO), NO_MEMORY, Nothing],
        libc::SYS_mkdir | libc::SYS_unlink | libc::SYS_rename => &[Errno(libc::EACCES), Errno(libc::ENOSPC)],
        libc::SYS_flock => &[Errno(libc::EAGAIN), Errno(libc::ENOLCK)],
        libc::SYS_pwrite64 => &[Errno(libc::EIO), Errno(libc::EINTR)],
        libc::SYS_fcntl => &[Errno(libc::EINVAL), Errno(libc::EMFILE)],
        libc::SYS_lseek => &[Errno(libc::EINVAL)],
        libc::SYS_mmap => &[NO_MEMORY, Errno(libc::EAGAIN), Errno(libc::EPERM)],
        libc::SYS_munmap | libc::SYS_mprotect | libc::SYS_munlock | libc::SYS_brk | libc::SYS_mremap => {
            &[NO_MEMORY]
        }
        libc::SYS_madvise => {
            &[NO_MEMORY, Errno(libc::EINVAL), Errno(libc::EAGAIN), Errno(libc::EFAULT), Errno(libc::EINTR)]
        }
        libc::SYS_io_uring_setup => {
            &[NO_MEMORY, Errno(libc::EPERM), Errno(libc::ENOSYS), Errno(libc::EMFILE)]
        }
        libc::SYS_io_uring_register => &[
            NO_MEMORY,
            Errno(libc::EFAULT),
            Errno(libc::EINVAL),
            Errno(libc::EBUSY),
            Errno(libc::EOPNOTSUPP),
            Errno(libc::EINTR),
        ],
        libc::SYS_socket => &[Errno(libc::EMFILE), Errno(libc::EPERM), Errno(libc::EAFNOSUPPORT)],
        libc::SYS_setsockopt => &[Errno(libc::ENOBUFS), NO_MEMORY, Errno(libc::EFAULT), Errno(libc::EBUSY)],
        libc::SYS_eventfd2 | libc::SYS_memfd_create => &[Errno(libc::EMFILE), NO_MEMORY],
        libc::SYS_ftruncate => &[Errno(libc::EINVAL), Errno(libc::EINTR)],
        libc::SYS_clone3 | libc::SYS_clone => &[Errno(libc::EAGAIN), NO_MEMORY],
        libc::SYS_poll | libc::SYS_ppoll => &[NO_MEMORY, Errno(libc::EINTR)],
        libc::SYS_getrandom => &[Errno(libc::EINTR), Errno(libc::ENOSYS)],
        libc::SYS_capget => &[Errno(libc::EPERM)],
        libc::SYS_prctl => &[Errno(libc::EINVAL)],
        _ => &[],
    }
}

/// The same, but for failures that are lies: that there is nothing, where there is something.
pub(crate) fn honest_failures(nr: c_long, of_device: bool) -> &'static [Fault] {
    match nr {
        libc::SYS_openat | libc::SYS_open => {
            &[Errno(libc::EACCES), Errno(libc::EMFILE), Errno(libc::EINTR), Errno(libc::ENOMEM)]
        }
        libc::SYS_read | libc::SYS_pread64 => &[Errno(libc::EIO), Errno(libc::EINTR)],
        libc::SYS_getdents64 => &[Errno(libc::EIO), Errno(libc::ENOMEM)],
        _ => failures(nr, of_device),
    }
}

/// The calls that a signal can end early, which then have done nothing.
pub(crate) fn interruptions(nr: c_long, _: bool) -> &'static [Fault] {
    match nr {
        libc::SYS_openat
        | libc::SYS_read
        | libc::SYS_pread64
        | libc::SYS_write
        | libc::SYS_ioctl
        | libc::SYS_close
        | libc::SYS_madvise
        | libc::SYS_io_uring_register
        | libc::SYS_poll
        | libc::SYS_ppoll
        | libc::SYS_getrandom => &[Errno(libc::EINTR)],
        _ => &[],
    }
}

/// Calls that cannot fail, or whose failure is nobody's to notice: they ask for a number, yield, or wait for another thread.
pub(crate) const HARMLESS: &[c_long] = &[
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_geteuid,
    libc::SYS_gettid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_restart_syscall,
    libc::SYS_uname,
    libc::SYS_clock_nanosleep,
    libc::SYS_prlimit64,
];
