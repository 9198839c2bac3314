//! A device as the kernel's vfio-pci driver presents it: what programs are told, what they may change, what is hidden.
//!
//! The order of checks is the kernel's, as programs can see it; kernel behaviour measured, device by device
//! (*tests/vfio* keeps what a real one answered).

mod backend;
mod config;
mod feature;
mod info;
mod interrupts;
mod ioeventfd;
mod neighbours;
mod power;
mod regions;
mod reset;
mod saved;

use noiommu_uapi::vfio::device::*;
use noiommu_uapi::vfio::feature::VFIO_DEVICE_FEATURE;
use noiommu_uapi::vfio::pci::*;

pub use self::backend::{Backend, Messages, Resource, Space};
use self::config::{
    BARS, CAPABILITY_MSIX, COMMAND, COMMAND_LINE_MASKED, COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace, ROM,
    read_register,
};
use self::interrupts::Active;
use self::ioeventfd::Order;
pub use self::neighbours::{Address, Bound, Neighbours};
pub use self::regions::Mappable;
pub use self::reset::{check_hot_reset, hot_reset_info};
use self::saved::Saved;
use crate::{Errno, PhysAddr, TryVec, UserMemory};

/// A run of a device's memory in physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhysicalRange {
    /// Where it begins.
    pub start: PhysAddr,
    /// Bytes.
    pub length: u64,
}

/// Makes descriptors for parts of a BAR.
pub trait Export {
    /// A new descriptor for these ranges, opened with these flags of `open`.
    ///
    /// # Errors
    /// EMFILE; ENOMEM.
    fn export(&self, ranges: &[PhysicalRange], flags: u32) -> Result<i32, Errno>;
}

/// What a call has to do with, besides the device.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The caller's memory.
    pub user: &'a dyn UserMemory,
    /// How the device was opened, and whose its neighbours are.
    pub neighbours: &'a dyn Neighbours,
    /// Makes descriptors for it.
    pub export: &'a dyn Export,
}

/// Where the MSI-X table is.
#[derive(Clone, Copy)]
struct VectorTable {
    bar: u8,
    offset: u64,
    size: u64,
}

/// A PCI device that is open.
///
/// Invariant: what is virtual is never written to the device, so its BARs stay where the system has put them, whatever the
/// caller writes.
pub struct PciDevice<B: Backend> {
    backend: B,
    config: ConfigSpace,
    /// How the device was, to be put back.
    saved: Saved,
    /// The BARs and the ROM's as the system assigned them.
    bars: [u32; 7],
    can_reset: bool,
    msix_table: Option<VectorTable>,
    /// The power state, 0 to 3.
    power: u8,
    /// How the device was when it fell asleep, where it loses that.
    asleep: Option<Saved>,
    interrupt: Active<B>,
    /// The bit in the device's command register masks its line.
    line_maskable: bool,
    /// The caller's bit in the command register masks the line.
    line_off: bool,
    msi_vectors_log2: u8,
    error_event: Option<B::Event>,
    request_event: Option<B::Event>,
    orders: TryVec<Order<B::Watch>>,
    next_token: u64,
    /// The caller allowed the device to sleep.
    low_power: Option<Option<B::Event>>,
    /// How often the device's memory has gone away from those who hold a part of it.
    revocations: u64,
    revoked: bool,
}

impl<B: Backend> PciDevice<B> {
    /// Opens a device that is enabled: bus mastering off, reset where it can be, looked at.
    ///
    /// # Errors
    /// EAGAIN: it cannot be reset now; ENOMEM; the device's.
    pub fn open(backend: B) -> Result<Self, Errno> {
        change_command(&backend, COMMAND_MASTER, 0)?;
        let can_reset = match backend.reset() {
            Ok(()) => true,
            Err(Errno::EAGAIN) => return Err(Errno::EAGAIN),
            Err(_) => false,
        };
        // Before PCI 2.3 the bit was reserved. Left off in the end: the line is not masked.
        let maskable = change_command(&backend, 0, COMMAND_LINE_MASKED)? & COMMAND_LINE_MASKED != 0;
        change_command(&backend, COMMAND_LINE_MASKED, 0)?;
        let line = backend.has_line() && maskable;
        let config = ConfigSpace::new(&backend, line)?;
        let mut bars = [0; 7];
        for (bar, at) in bars.iter_mut().zip((BARS..BARS.wrapping_add(24)).step_by(4).chain([ROM])) {
            *bar = backend.config_read(at, 4)?;
        }
        let msix_table = match config.find(CAPABILITY_MSIX) {
            Some(start) if start & 3 == 0 && backend.has_messages(Messages::Msix) => {
                let flags = read_register(&backend, start.wrapping_add(2), 2)?;
                let place = read_register(&backend, start.wrapping_add(4), 4)?;
                let vectors = u64::from(flags & 0x7ff).wrapping_add(1);
                let offset = u64::from(place & !7);
                Some(VectorTable { bar: (place & 7) as u8, offset, size: vectors.wrapping_mul(16) })
            }
            _ => None,
        };
        let saved = Saved::new(&backend, &config)?;
        let mut device = Self {
            backend,
            config,
            saved,
            bars,
            can_reset,
            msix_table,
            power: 0,
            asleep: None,
            interrupt: Active::None,
            line_maskable: maskable,
            line_off: false,
            msi_vectors_log2: 0,
            error_event: None,
            request_event: None,
            orders: TryVec::new(),
            next_token: 1,
            low_power: None,
            revocations: 0,
            revoked: false,
        };
        device.memory_changed();
        Ok(device)
    }

    /// Closes it: bus mastering off, interrupts off, reset where it can be, put back as it was. Errors are those of a device
    /// that is gone, which is quiet.
    pub fn close(mut self) -> B {
        self.revoke();
        self.set_power(0);
        let _ = change_command(&self.backend, COMMAND_MASTER, 0);
        self.disable_interrupts();
        // No line while it is reset, and neither decoding nor mastering.
        let _ = self.backend.config_write(COMMAND, 2, COMMAND_LINE_MASKED.into());
        if self.can_reset {
            let _ = self.backend.reset();
        } else if self.is_alone_on_bus() {
            let _ = self.backend.reset_bus();
        }
        let _ = self.saved.restore(&self.backend, &self.config);
        self.backend
    }

    fn is_alone_on_bus(&self) -> bool {
        let mut functions = TryVec::new();
        self.backend.reset_scope(&mut functions).is_ok() && functions.len() == 1
    }

    /// The device beneath.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Every call of a device but those that bind and attach it; answers the call's return value.
    ///
    /// # Errors
    /// The kernel's; ENOTTY for calls that it does not know.
    pub fn ioctl(&mut self, around: Surroundings<'_>, request: u32, argument: u64) -> Result<i64, Errno> {
        let user = around.user;
        match request {
            VFIO_DEVICE_GET_INFO => self.get_info(user, argument),
            VFIO_DEVICE_GET_REGION_INFO => self.get_region_info(user, argument),
            VFIO_DEVICE_GET_IRQ_INFO => self.get_irq_info(user, argument),
            VFIO_DEVICE_SET_IRQS => self.set_irqs(user, argument),
            VFIO_DEVICE_RESET => self.reset(),
            VFIO_DEVICE_GET_PCI_HOT_RESET_INFO => {
                hot_reset_info(user, around.neighbours, argument, |all| self.backend.reset_scope(all))
            }
            VFIO_DEVICE_PCI_HOT_RESET => self.hot_reset(user, around.neighbours, argument),
            VFIO_DEVICE_IOEVENTFD => self.ioeventfd(user, argument),
            VFIO_DEVICE_FEATURE => self.feature(user, around.export, argument),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// An eventfd that [`Backend::watch`] was asked to watch was signalled. Tokens of ended watches are ignored.
    pub fn watched(&mut self, token: u64) {
        if !self.unmask_watched(token) {
            self.order_watched(token);
        }
    }

    /// Whether the caller can reach the device's memory: it has turned it on, and the device is awake.
    #[must_use]
    pub fn memory_enabled(&self) -> bool {
        self.power < power::D3 && self.config.command() & COMMAND_MEMORY != 0
    }

    /// Whether registers that are mapped answer; where not, they are SIGBUS.
    #[must_use]
    pub fn mappings_answer(&self) -> bool {
        self.memory_enabled() && self.low_power.is_none()
    }

    /// How often the device's memory has gone away (turned off, asleep, reset) since it was opened. Who holds a part of it,
    /// exported, holds it no longer when this changes.
    #[must_use]
    pub fn revocations(&self) -> u64 {
        self.revocations
    }

    /// The device's memory goes away, if only for a moment.
    fn revoke(&mut self) {
        if !self.revoked {
            self.revoked = true;
            self.revocations = self.revocations.wrapping_add(1);
        }
    }

    /// Whether it is there has, or may have, changed.
    fn memory_changed(&mut self) {
        if self.memory_enabled() {
            self.revoked = false;
        } else {
            self.revoke();
        }
    }
}

/// Clears and sets bits of the device's command register, and reads it back.
fn change_command(backend: &impl Backend, clear: u16, set: u16) -> Result<u16, Errno> {
    let command = backend.config_read(COMMAND, 2)? as u16;
    let wanted = command & !clear | set;
    if wanted != command {
        backend.config_write(COMMAND, 2, wanted.into())?;
    }
    Ok(backend.config_read(COMMAND, 2)? as u16)
}
