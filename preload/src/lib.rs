//! `libnoiommu_preload.so`: iommufd and VFIO without an IOMMU for programs that were written for Linux 7.3, on any Linux kernel.
//!
//! Loaded before a program's C library (`LD_PRELOAD`), it stands in front of the functions by which the program reaches /dev/iommu and
//! the nodes in /dev/vfio, and answers them by [`noiommu::serve`] in the same process. Everything else goes on to the kernel: a
//! program that never touches these nodes pays one load of an atomic, and one that was not started with [`VARIABLE`] set pays
//! that too. `noiommu serve -- PROGRAM` sets all of this up.
//!
//! # How it is built
//! | module | what is there |
//! |---|---|
//! | `state` | whether the library was asked for; the server, started when first needed |
//! | `server` | the seam to the engine |
//! | `overlay`, `paths` | what is visible in /dev and /sys; where a path leads |
//! | `table` | which descriptors are served, found without a lock |
//! | `maps` | device memory that the program has mapped |
//! | `copy`, `fault` | the program's memory by addresses that may be wrong; SIGSEGV and SIGBUS |
//! | `quick`, `thread` | GET_PA without a system call; what a thread knows of itself for that |
//! | `touch` | registers of simulated devices, mapped |
//! | `gate`, `process` | forks while others are in the engine; children of `vfork` |
//! | `hooks` | the functions of the C library |
//! | `real`, `raw` | what is behind them: the C library's own, and the kernel |
//!
//! # What stays different
//! - Served descriptors end at `exec`, with and without FD_CLOEXEC: the engine is part of the process. For the same reason they
//!   cannot be sent to another process (`sendmsg` with SCM_RIGHTS answers EINVAL), and a child of `vfork` cannot open nodes (EAGAIN).
//! - A process that dies by a signal or `_exit` runs none of the engine; what `exit` does, the guardian does then.
//! - What bypasses the C library's names is not seen: `syscall` instructions in the program, io_uring requests on served
//!   descriptors and stdio on them (both find /dev/null), file actions of `posix_spawn` that open, `ftw` and `fts`, static programs.
//! - Directories that only we have cannot be the working directory (ENOENT). Nodes cannot be changed (EROFS).
//! - A link of the program's own to one of our nodes is followed once anything of ours has been looked for by name.
//! - The engine has descriptors of its own. They have high numbers; for the program they are closed (EBADF, and EBUSY for `dup2`
//!   onto one), and count for its limit. What a signal handler opens while it interrupts the engine is taken for the engine's.
//! - In signal handlers `close` and `dup` are safe, but for the last `close` of a file; other calls on served files are not.
//! - SIGSEGV and SIGBUS have a handler of ours, which calls the program's; one put in its place by `sigset` or around the C library
//!   makes bad addresses crash. `open` with a bad address, in a thread that blocks SIGSEGV, is a crash, too.
//! - For GET_PA a thread remembers that these signals arrive and that it has CAP_SYS_RAWIO (`quick.rs`). What takes either away around
//!   the C library's names is missed: a bad address crashes then, or the privilege still counts. So is the mask of a signal handler,
//!   while that runs.

mod copy;
mod fault;
mod gate;
mod hooks;
mod maps;
mod overlay;
mod paths;
mod process;
mod quick;
mod raw;
mod real;
mod server;
mod state;
mod table;
mod thread;
#[cfg(target_arch = "x86_64")]
mod touch;

pub use noiommu::serve::VARIABLE;
pub use server::{Serve, Start};
pub use state::serve_with;
