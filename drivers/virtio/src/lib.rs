//! Virtio block devices and network cards in user space: the drivers of the crate `virtio-drivers`, which were written for kernels, on
//! the *noiommu* kit, with or without an IOMMU.
//!
//! ```no_run
//! use noiommu::Context;
//! use noiommu_virtio::{SECTOR, VirtioDevice};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = Context::new()?;
//! let ioas = context.ioas()?;
//! let mut disk = VirtioDevice::open(context.open("0000:00:05.0")?, &ioas)?.block()?;
//! let mut sector = [0; SECTOR];
//! disk.read(3, &mut sector)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is whose
//! The crate has the protocol: how a device is started, its rings, its requests. From the kit it has memory (`hal`, `pool`) and
//! registers (`transport`). Here is besides what a program in user space needs of both: that a device which does not answer is not
//! waited for without an end, and that none of what it says leads anywhere.
//!
//! # Memory
//! A buffer of the caller's is ordinary memory. The device is given copies of it, in memory that is pinned and was mapped once for
//! all; a request costs two copies and no system call. All of it belongs to the device: it goes when that is quiet (its reset, which
//! the kit is told of as a recipe, ends all its work), and waits in the kit's quarantine until then.
//!
//! # A device is not believed
//! The crate keeps its own copy of what it has told the device, and so cannot be led to other memory by the rings. What it does not
//! check is checked here: numbers of requests that were not given or are done already, lengths of frames that none has, places for
//! notifications and structures past their BARs, a configuration that changes for ever, a status that was never written. Such a
//! device is reset and used no more ([`ErrorKind::Violation`]); so is one that does not answer in time ([`ErrorKind::Timeout`]).
//!
//! What cannot be told: that a device says it has read a sector, and has not. What it leaves out of a buffer is as it was before, and
//! nothing of another request.
//!
//! # Not there
//! Interrupts: devices are polled. Other kinds of devices, several queues of one kind, and devices of before version 1.
//!
//! Source of all formats: *Virtual I/O Device Version 1.2*; sections are named where they are used.

mod block;
mod device;
mod error;
mod hal;
mod hosted;
mod net;
mod pool;
mod registers;
#[cfg(feature = "sim")]
pub mod sim;
mod structure;
mod transport;

pub use self::block::{Block, SECTOR};
pub use self::device::{Kind, VirtioDevice};
pub use self::error::{Error, ErrorKind, Result};
pub use self::net::{FRAME, Net};
