//! What the author of a model writes.

use std::time::Duration;

use super::{Bus, Identity};

/// A device in software: what its registers answer, and what it does in its own time.
///
/// All methods are called one at a time, so a model needs no locks. A method that takes long keeps the processor waiting at the
/// device's registers, as a slow device does; what takes time belongs into [`Model::work`], in pieces.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::Context;
/// use noiommu::sim::{At, Bus, Identity, Model};
///
/// /// A device with one register, which counts how often it was read.
/// struct Counter(u64);
///
/// impl Model for Counter {
///     fn identity(&self) -> Identity {
///         Identity::new("counter", 0x1234, 0x0001).bar(0, 4096)
///     }
///
///     fn read(&mut self, at: At, _: &mut Bus<'_>) -> u64 {
///         self.0 += u64::from(at.offset == 0);
///         self.0
///     }
///
///     fn write(&mut self, _: At, _: u64, _: &mut Bus<'_>) {}
/// }
///
/// let device = Context::simulated().sim_device(Counter(0))?.open()?;
/// let registers = device.bar(0)?;
/// assert_eq!((registers.read_u32(0)?, registers.read_u32(0)?), (1, 2));
/// # Ok(())
/// # }
/// ```
pub trait Model: Send + 'static {
    /// What the device is: asked once, when it is plugged in.
    fn identity(&self) -> Identity;

    /// Reads a register, as the processor does: the lower [`At::width`] bytes of the answer count.
    fn read(&mut self, at: At, bus: &mut Bus<'_>) -> u64;

    /// Writes a register, as the processor does.
    fn write(&mut self, at: At, value: u64, bus: &mut Bus<'_>);

    /// Does a piece of what the device does by itself: fetch a descriptor, move some bytes, interrupt. Called after every
    /// write to a register or to config space, and then for as long as it answers that there is more; when, is a matter of
    /// the [`Pace`](super::Pace). Register accesses come between two pieces, never within one.
    fn work(&mut self, bus: &mut Bus<'_>) -> Work {
        let _ = bus;
        Work::Idle
    }

    /// Puts everything back as it is after power-on. Called where [`Identity::resettable`] says that there is a reset; config
    /// space is put back by the slot.
    fn reset(&mut self) {}

    /// Config space has been written by the processor, `length` bytes at `offset`; what may be changed there has been
    /// ([`Bus::config`] reads it). Bus mastering is looked after by the bus.
    fn config_written(&mut self, offset: u16, length: usize, bus: &mut Bus<'_>) {
        let _ = (offset, length, bus);
    }
}

/// Where a register access goes. It lies within the BAR and is aligned to its width.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At {
    /// Which BAR, from 0.
    pub bar: u8,
    /// Bytes from its beginning.
    pub offset: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
}

/// Whether a device has more to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Nothing, until the processor writes something.
    Idle,
    /// Another piece, as soon as may be.
    More,
    /// Another piece, after this time, or when the processor writes something. Where the test has the say (any other
    /// [`Pace`](super::Pace) than `OwnThread`), nobody waits and it is the same as `More`.
    After(Duration),
}
