//! User-space DMA without an IOMMU, done right.
//!
//! A driver in user space gives its device *physical* addresses where there is no IOMMU. That is right only while the
//! pages behind them stay where they are, which `mlock` does not promise. Here memory is pinned for real, kept in an IOAS
//! with the page table that Linux 7.3 uses for the same purpose, and looked up as physical addresses.
//!
//! ```
//! use noiommu::{Context, Contiguity, DmaBuffer};
//!
//! # fn main() -> noiommu::Result<()> {
//! let context = Context::simulated(); // on real memory: Context::new()?
//! let ioas = context.ioas()?;
//! let device = context.sim_edu()?; // a real one: context.open("0000:00:04.0")?
//! device.attach(&ioas)?;
//!
//! let mapping = ioas.map(DmaBuffer::new(64 * 1024, Contiguity::Best)?)?;
//! for segment in mapping.for_device(&device)?.segments() {
//!     println!("{} bytes at {}", segment.length, segment.address);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Where safety ends
//! A device can be told to write anywhere, so [`Device::enable_bus_master`] is `unsafe`: the one promise of a driver.
//! Everything else is safe, and memory that a device may still reach is never given back to the system. See SOUNDNESS.md.

pub mod barrier;
pub mod binding;
mod buffer;
mod context;
mod device;
mod error;
mod files;
pub mod frames;
pub mod guardian;
mod ioas;
mod ioctl;
pub mod kernel;
pub mod machine;
mod memory;
pub mod optin;
pub mod pci;
mod process;
#[doc(hidden)]
pub mod raw;
pub mod serve;
pub mod sim;
pub mod stats;

pub use buffer::{Contiguity, DmaBuffer, PageKind};
pub use context::Context;
#[doc(hidden)]
pub use device::play_device;
pub use device::{
    Bar, Device, DmaAddr, DmaRange, DmaSegment, DmaView, Interrupt, InterruptKind, Interrupts, Provider,
    Quiet, QuietStep, ReadOnly, ReadWrite, Readable, Register, Removal, Writable, WriteOnly,
};
pub use error::{Error, ErrorKind, Result};
pub use ioas::{Ioas, LateWrite, MapError, Mapping, Occasion};
pub use memory::{PinChoice, PinKind, kernel_release};
pub use noiommu_core::table::{Segment, Translation};
pub use noiommu_core::{Errno, Iova, IovaRange, PhysAddr, Usage};
