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
//! | `gate`, `process` | forks while others are in the engine; children of `vfork` |
//! | `hooks` | the functions of the C library |
//! | `real`, `raw` | what is behind them: the C library's own, and the kernel |
//!
//! # What stays different
//! - Served descriptors end at `exec`, with and without FD_CLOEXEC: the engine is part of the process. For the same reason they
//!   cannot be sent to another process (`sendmsg` with SCM_RIGHTS answers EINVAL).
//! - A process that dies by a signal or `_exit` runs none of the engine; what `exit` does, the guardian does then.
//! - What bypasses the C library is not seen: `syscall` instructions in the program, io_uring requests on served descriptors
//!   (which find /dev/null), static programs, `chdir` into a directory that only we have, `ftw` and `fts` of the C library.
//! - Served files are not for signal handlers, but for `close` and `dup`.
//! - `open` with a bad address for the path, in a thread that blocks SIGSEGV, is a crash.

mod copy;
mod fault;
mod gate;
mod hooks;
mod maps;
mod overlay;
mod paths;
mod process;
mod raw;
mod real;
mod server;
mod state;
mod table;

pub use noiommu::serve::VARIABLE;
pub use server::{Serve, Start};
pub use state::serve_with;
