//! What the rules need of a device and of the world around it.

use super::Address;
use crate::{Errno, TryVec};

/// An address range of a device, as the system has assigned it; `size` 0 where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resource {
    /// The first physical address (or port); 0 where none is assigned.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Memory or ports.
    pub space: Space,
    /// A BAR of 64 bits, which takes the next one's place too.
    pub wide: bool,
    /// Reading it has no side effects.
    pub prefetchable: bool,
    /// The caller may map it: memory that shares no page with anything else.
    pub mappable: bool,
}

/// What a BAR is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Space {
    /// Memory.
    #[default]
    Memory,
    /// I/O ports.
    Ports,
}

/// The two kinds of interrupts that are messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Messages {
    /// MSI.
    Msi,
    /// MSI-X.
    Msix,
}

/// A PCI device and its surroundings. All numbers are in the machine's byte order; offsets and widths have been checked:
/// an access is of 1, 2 or 4 bytes (registers: 8 too), aligned to its width and inside of its space.
pub trait Backend {
    /// An eventfd that is held for the device.
    type Event;
    /// A standing order to tell when an eventfd is signalled; dropping it ends the order.
    type Watch;

    /// Bytes of a page of the system, a power of two.
    fn page_size(&self) -> u64;

    /// Bytes of config space: 256 or 4096.
    fn config_size(&self) -> u16;

    /// Reads config space.
    ///
    /// # Errors
    /// The system's, for a device that is gone.
    fn config_read(&self, offset: u16, width: u8) -> Result<u32, Errno>;

    /// Writes config space.
    ///
    /// # Errors
    /// As for [`Backend::config_read`].
    fn config_write(&self, offset: u16, width: u8, value: u32) -> Result<(), Errno>;

    /// BAR `index` (0 to 5), or the expansion ROM (6).
    fn resource(&self, index: u8) -> Resource;

    /// Reads registers of a BAR in one access.
    ///
    /// # Errors
    /// The system's, for a device that is gone.
    fn register_read(&self, bar: u8, offset: u64, width: u8) -> Result<u64, Errno>;

    /// Writes registers of a BAR in one access.
    ///
    /// # Errors
    /// As for [`Backend::register_read`].
    fn register_write(&self, bar: u8, offset: u64, width: u8, value: u64) -> Result<(), Errno>;

    /// Bytes of the expansion ROM that hold images; `None`: none that is valid.
    fn rom_size(&self) -> Option<u64>;

    /// Reads the expansion ROM's images.
    ///
    /// # Errors
    /// As for [`Backend::register_read`].
    fn rom_read(&self, offset: u64, width: u8) -> Result<u32, Errno>;

    /// Reads vital product data, 4 bytes of it.
    ///
    /// # Errors
    /// The system's.
    fn vpd_read(&self, address: u16) -> Result<u32, Errno>;

    /// Writes vital product data.
    ///
    /// # Errors
    /// The system's.
    fn vpd_write(&self, address: u16, value: u32) -> Result<(), Errno>;

    /// Resets the function, its config space being put back afterwards.
    ///
    /// # Errors
    /// ENOTTY: there is no way to reset it; EAGAIN: not now; the system's.
    fn reset(&self) -> Result<(), Errno>;

    /// Tells which functions a reset of its slot or bus resets, itself included.
    ///
    /// # Errors
    /// ENODEV: there is no such reset; ENOMEM.
    fn reset_scope(&self, functions: &mut TryVec<Address>) -> Result<(), Errno>;

    /// Resets its slot or bus, the config spaces being put back afterwards.
    ///
    /// # Errors
    /// The system's.
    fn reset_bus(&self) -> Result<(), Errno>;

    /// Waits so many milliseconds, as the device needs after a change of its power state.
    fn pause(&self, milliseconds: u32);

    /// The widths of atomic operations that the device's memory requests can rely on up to the root: `VFIO_PCI_ATOMIC_COMP*`.
    fn atomic_operations(&self) -> u32;

    /// Whether it is a physical function that can have virtual ones (and the system knows of SR-IOV).
    fn is_physical_function(&self) -> bool;

    /// Holds the eventfd at a descriptor of the caller.
    ///
    /// # Errors
    /// EBADF: there is none; EINVAL: it is no eventfd.
    fn event(&self, descriptor: i32) -> Result<Self::Event, Errno>;

    /// Signals an eventfd.
    fn signal(&self, event: &Self::Event);

    /// Has [`PciDevice::watched`](super::PciDevice::watched) called with `token` whenever the eventfd at a descriptor of
    /// the caller is signalled, and takes the signal off it.
    ///
    /// # Errors
    /// As for [`Backend::event`].
    fn watch(&self, descriptor: i32, token: u64) -> Result<Self::Watch, Errno>;

    /// Whether the device's interrupt line arrives here.
    fn has_line(&self) -> bool;

    /// Begins to deliver the line: whenever it is asserted and not masked, it gets masked (by the bit in the command
    /// register) and `event` signalled. Replaces an earlier event.
    ///
    /// # Errors
    /// The system's.
    fn line_connect(&self, event: Option<&Self::Event>) -> Result<(), Errno>;

    /// Ends it.
    fn line_disconnect(&self);

    /// Whether messages of this kind arrive here, so that the device's capability for them counts.
    fn has_messages(&self, kind: Messages) -> bool;

    /// Whether vectors of MSI-X can be had one by one, after it was enabled.
    fn has_dynamic_vectors(&self) -> bool;

    /// Enables messages with `vectors` vectors and answers how many there are: fewer, and it is not enabled.
    ///
    /// # Errors
    /// ENOSPC: none at all; ERANGE: for 0.
    fn messages_enable(&self, kind: Messages, vectors: u32) -> Result<u32, Errno>;

    /// What a vector signals from now on.
    ///
    /// # Errors
    /// The system's.
    fn messages_connect(&self, kind: Messages, vector: u32, event: Option<&Self::Event>)
    -> Result<(), Errno>;

    /// Disables messages.
    fn messages_disable(&self, kind: Messages);
}
