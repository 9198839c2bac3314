//! Devices in software: a driver is tested and fuzzed in plain `cargo test`, without hardware, without root.
//!
//! Write a [`Model`] of the device, plug it into a context on simulated memory ([`Context::sim_device`]), and open it as often
//! as you like: the driver gets a [`Device`] like any other, with registers, config space, interrupts and DMA. Memory is at
//! physical addresses that are deliberately scattered, and a [`Sanitizer`] watches the bus: a device that is made to reach
//! memory which is not its own makes the test fail, with a report of what it reached and who had mapped it.
//!
//! ```
//! use std::time::Duration;
//! use noiommu::sim::{At, Bus, Identity, Model, Work};
//! use noiommu::{Context, Contiguity, Device, DmaBuffer, Error, Ioas, Result};
//!
//! /// A device that adds up bytes: the address at 0x00, how many at 0x08; the sum at 0x10, all ones until it is known.
//! #[derive(Default)]
//! struct Adder {
//!     address: u64,
//!     count: u64,
//!     sum: u64,
//! }
//!
//! impl Model for Adder {
//!     fn identity(&self) -> Identity {
//!         Identity::new("adder", 0x1234, 0x0add).bar(0, 4096).msi(1)
//!     }
//!
//!     fn read(&mut self, at: At, _: &mut Bus<'_>) -> u64 {
//!         if at.offset == 0x10 { self.sum } else { u64::MAX }
//!     }
//!
//!     fn write(&mut self, at: At, value: u64, _: &mut Bus<'_>) {
//!         match at.offset {
//!             0x00 => self.address = value,
//!             0x08 => (self.count, self.sum) = (value, u64::MAX),
//!             _ => {}
//!         }
//!     }
//!
//!     fn work(&mut self, bus: &mut Bus<'_>) -> Work {
//!         let mut bytes = vec![0; std::mem::take(&mut self.count) as usize];
//!         if !bytes.is_empty() && bus.read(self.address, &mut bytes).is_ok() {
//!             self.sum = bytes.iter().map(|&byte| u64::from(byte)).sum();
//!             bus.raise(0);
//!         }
//!         Work::Idle
//!     }
//! }
//!
//! /// The driver: the sum of a buffer's bytes, by the device.
//! fn add_up(device: &Device, ioas: &Ioas, buffer: DmaBuffer) -> Result<u64> {
//!     let registers = device.bar(0)?;
//!     device.attach(ioas)?;
//!     let mapping = ioas.map(buffer)?;
//!     let view = mapping.for_device(device)?;
//!     // SAFETY: the device is given segments of the view, which outlives its work on them.
//!     unsafe { device.enable_bus_master()? };
//!     let mut sum = 0;
//!     for segment in view.segments() {
//!         registers.write_u64(0x00, segment.address.bits())?;
//!         registers.write_u64(0x08, segment.length)?;
//!         let part = (0..1000).find_map(|_| {
//!             std::thread::sleep(Duration::from_millis(1));
//!             registers.read_u64(0x10).ok().filter(|&part| part != u64::MAX)
//!         });
//!         let Some(part) = part else {
//!             device.quiesce()?;
//!             return Err(Error::timeout(device.name(), "adding"));
//!         };
//!         sum += part;
//!     }
//!     Ok(sum)
//! }
//!
//! # fn main() -> Result<()> {
//! // The test.
//! let context = Context::simulated();
//! let (ioas, slot) = (context.ioas()?, context.sim_device(Adder::default())?);
//! let buffer = DmaBuffer::new(10_000, Contiguity::Pages)?;
//! buffer.fill(0, 10_000, 3)?;
//! assert_eq!(add_up(&slot.open()?, &ioas, buffer)?, 30_000);
//! # Ok(())
//! # }
//! ```
//!
//! Had the driver given the device all 10,000 bytes at the address of the first, as drivers do that have only ever seen
//! contiguous memory, the test would have failed with:
//!
//! ```text
//! DMA sanitizer: sim:adder reads past the end of a contiguous run
//!   access   read of 10000 bytes at 0x3c7139e000; byte 0x2000 of it, at 0x3c713a0000, is the first that is wrong
//!   mapping  10000 bytes at IOVA 0x1000, mapped at src/lib.rs:45:24
//!   place    begins at byte 0x0 of it
//!   memory   [#######################################|!!!!!!!!]  . the run, # the access in it, ! past it
//!   next     byte 0x2000 of the mapping is at 0x78e02d4000
//!   remedy   give the device one descriptor for each segment of Mapping::for_device
//! ```
//!
//! # Time
//! By default a model works in a thread of its own, as a device does. A test that must come out the same each time, a fuzzer
//! above all, chooses another [`Pace`] ([`Context::sim_device_at`]): then there is no thread, and the model's work is done when
//! the driver touches it, or step by step as the test says.
//!
//! # Trouble
//! [`Slot::hang`] makes the device stand still (the driver's timeouts), [`Slot::unplug`] takes it away, and [`Slot::act`] has the
//! model do what no driver told it.

mod bus;
mod claim;
mod edu;
mod identity;
mod machine;
mod memory;
mod model;
mod sanitizer;
mod slot;
mod wires;

use std::sync::{Arc, Mutex, PoisonError};

pub use self::bus::{Aborted, Bus};
pub use self::edu::Edu;
pub use self::identity::Identity;
pub use self::machine::Pace;
pub(crate) use self::machine::{Machine, Whose};
pub use self::model::{At, Model, Work};
pub(crate) use self::sanitizer::Creator;
pub use self::sanitizer::{Fault, Freed, Freeing, Hint, Mapped, Mode, Neighbour, Report, Sanitizer};
pub use self::slot::Slot;
pub(crate) use self::wires::Signal;
use crate::device::Device;
use crate::{Context, Result};

/// The config space that the processor and the device both see.
#[derive(Clone)]
struct Config(Arc<Mutex<Vec<u8>>>);

impl Config {
    fn with<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Which way an access goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Direction {
    /// The device reads memory.
    Read,
    /// The device writes memory.
    Write,
}

impl Direction {
    /// Its name in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl Context {
    /// Plugs in a model, which works in a thread of its own. On simulated memory the [`Sanitizer`] watches it; on real memory
    /// it reaches the pages of this process, by their real addresses.
    ///
    /// # Errors
    /// EINVAL for an [`Identity`] that cannot be; want of threads; on real memory, what keeps this process from looking at it.
    pub fn sim_device<M: Model>(&self, model: M) -> Result<Slot<M>> {
        self.sim_device_at(model, Pace::OwnThread)
    }

    /// The same, with a say in when the model works.
    ///
    /// # Errors
    /// As for [`Context::sim_device`].
    pub fn sim_device_at<M: Model>(&self, model: M, pace: Pace) -> Result<Slot<M>> {
        let memory = match self.sanitizer() {
            Some(sanitizer) => Whose::Sanitized(sanitizer.clone()),
            // Addresses that are made up without memory: no access finds any.
            None if self.is_simulated() => Whose::Simulated(Arc::default()),
            None => Whose::Process,
        };
        Ok(Slot::new(self.inner(), Machine::new(model, memory, pace)?))
    }

    /// A simulated [`Edu`] device (QEMU's, as its documentation has it), open.
    ///
    /// # Errors
    /// Want of memory or of threads.
    pub fn sim_edu(&self) -> Result<Device> {
        self.sim_device(Edu::default())?.open()
    }

    /// What watches the devices of simulated memory; `None` on real memory.
    #[must_use]
    pub fn sanitizer(&self) -> Option<&Arc<Sanitizer>> {
        self.inner().sanitizer()
    }
}
