//! A driver for NVMe controllers in user space, on the *noiommu* kit: queues of one's own, with or without an IOMMU.
//!
//! A program takes the controller, starts it, and gives each of its threads a queue. Memory need not be contiguous: a command is
//! given a list of pages. The same code drives a controller by whichever way the kit has to it.
//!
//! ```no_run
//! use noiommu::Context;
//! use noiommu_nvme::{Settings, Stopped};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = Context::new()?;
//! let ioas = context.ioas()?;
//! let stopped = Stopped::new(context.open("0000:00:05.0")?, &ioas)?;
//! // SAFETY: nobody else writes to the device; the driver keeps the rest of the promise (see `Stopped::device`).
//! unsafe { stopped.device().enable_bus_master()? };
//! let controller = stopped.start(&Settings::default())?;
//!
//! let namespace = controller.namespace(1)?;
//! let region = controller.region(1 << 20)?;
//! let mut queue = controller.queue()?;
//! queue.read(&namespace, 0, (1 << 20) / u64::from(namespace.block_size()), &region, 0)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Who owns memory
//! A [`Region`] is memory for data. A command that is outstanding has a share of it, and the share ends with its completion, or
//! when the controller has said that it is stopped. Memory that a controller may still reach, because it neither answers nor stops,
//! stays pinned until its device is quiet, or for ever.
//!
//! # A controller is not believed
//! What it tells of itself is checked before it is used. A completion of a command that it was not given, or of another queue,
//! or with a head past the end of the queue, ends all use of it until it has been reset ([`Violation`]).
//!
//! # Not there
//! Metadata and protection information, namespaces that are managed or formatted, SGLs, and queues that are not contiguous.
//!
//! Source of all formats: *NVM Express Base Specification 1.4*; sections are named where they are used.

#![forbid(unsafe_code)]

mod admin;
mod command;
mod controller;
mod core;
mod error;
mod identify;
mod pages;
mod pair;
mod prp;
mod queue;
mod region;
mod registers;
mod settings;
mod shadow;
#[cfg(feature = "sim")]
pub mod sim;
mod slots;
mod status;

pub use self::controller::{Controller, Stopped};
pub use self::error::{Error, ErrorKind, Failure, Result, Violation};
pub use self::identify::{Identity, Namespace};
pub use self::queue::{Completion, Queue, Token};
pub use self::region::Region;
pub use self::settings::Settings;
pub use self::status::Status;
