//! Conformance with Linux 7.3: sequences of iommufd and VFIO calls, what the real kernel answered, and a runner that asks any
//! provider the same through plain libc calls.
//!
//! The cases are text in `cases/`, by section; [`parse`](self) reads them, every case runs in a process of its own, and each
//! step's answer is one line of text that stands behind the step as the kernel gave it. What cannot be the same in user space
//! stands in `listed.txt`, with the answer that comes instead.

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
