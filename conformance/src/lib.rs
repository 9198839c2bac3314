//! Conformance with Linux 7.3: sequences of iommufd and VFIO calls, what the real kernel answered, and a runner that asks any
//! provider the same through plain libc calls.
//!
//! The cases are text in `cases/SECTION/TOPIC.txt`, built into the program. Every case runs in a process of its own, and each
//! step's answer is one line of text, which stands behind the step as the kernel gave it. Recording writes answers and never
//! steps. What cannot be the same in user space stands in `listed.txt`, with the answer that comes instead.
//!
//! # The language
//! `case NAME` and `setup NAME` begin blocks, `needs ...` says what must be there: a role (`edu`, `edu2`, `nvme`, `nic`: QEMU's
//! devices with a node in /dev/vfio/devices), `ROLE.group`, `iommu`, `container`, `hugetlb`, `thp`, `CAP_...`. `use NAME` runs a setup and
//! answers nothing unless it fails. A step without `=>` answers nothing when all is well.
//!
//! | steps | what they do |
//! |---|---|
//! | `IOMMU_...`, `VFIO_...`, `ioctl` | any ioctl by its fields, answering what changed: see `src/ioctl.rs` |
//! | `open close close-range dup dup2 fcntl lseek read write pread pwrite poll eventfd stat fstat access list readlink contents socketpair pass receive` | files: `src/steps/files.rs` |
//! | `buf munmap mprotect dontneed remove touch lock unlock again move fill check put get ranges show-ranges memfd truncate seal frame physical` | memory: `src/steps/buffers.rs` |
//! | `mmap load store edu-dma master` | devices: `src/steps/device.rs` |
//! | `drop raise user memlock` | who asks: `src/steps/rights.rs` |
//! | `fork child wait resume join kill thread exec sleep` | processes: `src/process.rs` |
//! | `repeat let show use` | the language itself: `src/steps.rs` |
//!
//! Values are expressions of numbers, constants (`src/names.rs`), `$variables`, buffers (their addresses) and descriptors.
//! `=> killed by SIGBUS` and `=> timeout` are answers like others.
//!
//! # What is compared
//! Errnos by name, every field that differs from what was passed, ids and IOVAs by value. What is not reproducible is told by what
//! it is: `pa(b+0x123)` is the frame that pagemap shows for that byte of buffer `b` now, `pa(old b)` one that it had before,
//! `pa(elsewhere)` one that this process has never seen, `pa(edu BAR0+0x0)` a device's; descriptors are `fd`. Buffers lie at
//! fixed addresses, and small ones have frames none of which are neighbours unless `runs=` says how many are, so that alignments
//! and contiguous lengths are the same in every run.

mod cases;
pub mod command;
mod fuzz;
mod ioctl;
mod listed;
mod memory;
mod names;
mod parse;
mod process;
mod report;
mod roles;
mod runner;
mod steps;
mod sys;
mod world;

pub use command::Command;
pub use fuzz::Fuzz;
