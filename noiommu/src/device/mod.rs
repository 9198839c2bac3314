//! Devices: attached to an IOAS, driven through their BARs, made quiet in the end.

mod bar;
mod config;
mod facts;
mod fuzzing;
mod interrupt;
mod open;
mod quiet;
mod reach;
mod recipe;
mod register;
mod remains;
pub(crate) mod sysfs;
mod uio;
mod vfio;
mod view;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use noiommu_core::{Errno, ObjectId};

pub use self::bar::Bar;
pub(crate) use self::bar::Registers;
use self::config::ConfigSpace;
pub(crate) use self::config::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, COMMAND_RESERVED, TRANSACTIONS_PENDING, mask_line,
};
pub use self::facts::Removal;
#[doc(hidden)]
pub use self::fuzzing::play_device;
pub(crate) use self::interrupt::Source;
pub use self::interrupt::{Interrupt, InterruptKind, Interrupts};
pub(crate) use self::open::{Choice, open};
pub use self::quiet::Quiet;
pub use self::reach::DmaRange;
use self::reach::Reach;
pub(crate) use self::recipe::MOST_STEPS;
pub use self::recipe::QuietStep;
use self::recipe::Recipe;
pub use self::register::{ReadOnly, ReadWrite, Readable, Register, Writable, WriteOnly};
pub(crate) use self::remains::{Remains, Reset, Window};
pub(crate) use self::sysfs::{MappedBar, SysfsDevice, SysfsResource};
pub use self::view::{DmaAddr, DmaSegment, DmaView};
use crate::guardian::{self, Ward};
use crate::ioas::{self, Ioas};
use crate::stats::Counted;
use crate::{Error, ErrorKind, Result, context};

/// How a device is reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[non_exhaustive]
pub enum Provider {
    /// A model in this process.
    Sim,
    /// A PCI device without a driver, through its files in sysfs; memory by the engine.
    Sysfs,
    /// The same with the kernel's uio_pci_generic as a helper: it has the interrupt line, and the last close of a process that
    /// dies turns bus mastering off.
    Uio,
    /// VFIO's group without an IOMMU; memory by the engine.
    GroupNoIommu,
    /// VFIO's group and type 1 container: behind an IOMMU, the device is given IOVAs.
    Group,
    /// VFIO's cdev without an IOMMU (Linux 7.3): memory and addresses by the kernel's own iommufd.
    CdevNoIommu,
    /// VFIO's cdev and iommufd: behind an IOMMU, the device is given IOVAs.
    Cdev,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Sim, Self::Sysfs, Self::Uio, Self::GroupNoIommu, Self::Group, Self::CdevNoIommu, Self::Cdev];

    /// Its name in output, and in `NOIOMMU_PROVIDER`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Sysfs => "sysfs",
            Self::Uio => "uio",
            Self::GroupNoIommu => "group-noiommu",
            Self::Group => "group",
            Self::CdevNoIommu => "cdev-noiommu",
            Self::Cdev => "cdev",
        }
    }

    /// Whether the device stands behind an IOMMU, which confines it.
    #[must_use]
    pub fn is_confined(self) -> bool {
        matches!(self, Self::Group | Self::Cdev)
    }
}

/// The seam between the kit and a way to reach a PCI device. What it offers is not trusted to be quiet: the kit reads back.
pub(crate) trait Backend: Send + Sync {
    /// What people call the device: its PCI address.
    fn name(&self) -> &str;

    fn provider(&self) -> Provider;

    /// Its directory in sysfs; `None`: it has none.
    fn directory(&self) -> Option<&Path> {
        None
    }

    /// Reads config space; `offset` and length lie within it.
    fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()>;

    /// Writes config space.
    fn config_write(&self, offset: u16, from: &[u8]) -> Result<()>;

    /// The registers of a memory BAR.
    fn bar(&self, index: u8) -> Result<Arc<dyn Registers>>;

    /// The same, with writes that may be combined and reach the device late and out of order.
    fn bar_write_combining(&self, index: u8) -> Result<Arc<dyn Registers>> {
        let _ = index;
        Err(Error::new(
            ErrorKind::Unsupported,
            Errno::EOPNOTSUPP,
            format!(
                "{}: the provider {} maps no BAR for combined writes",
                self.name(),
                self.provider().name()
            ),
        )
        .with_remedy("sysfs and uio do, where the BAR is prefetchable"))
    }

    /// Resets the device, if there is a way; tells whether there was.
    fn reset(&self) -> Result<bool>;

    /// Whether the kernel makes the device as quiet as it can when its last descriptor is closed, and waits for that where the
    /// device is being removed.
    fn is_quieted_by_close(&self) -> bool {
        false
    }

    /// Resets the bus or slot that the device is on.
    fn hot_reset(&self) -> Result<()> {
        Err(Error::new(
            ErrorKind::Unsupported,
            Errno::EOPNOTSUPP,
            format!("{}: the provider {} cannot reset a bus", self.name(), self.provider().name()),
        )
        .with_remedy("vfio-pci can: noiommu bind"))
    }

    /// How many vectors of a kind there are.
    fn interrupt_count(&self, kind: InterruptKind) -> Result<u32> {
        let _ = kind;
        Ok(0)
    }

    /// Why there are none.
    fn why_no_interrupts(&self, kind: InterruptKind) -> String {
        let _ = kind;
        "which the device does not have".to_owned()
    }

    /// Enables the first `count` vectors, of as many as there are; nothing is enabled yet. A line that comes is masked then.
    fn enable_interrupts(&self, kind: InterruptKind, count: u32) -> Result<Vec<Source>> {
        let _ = (kind, count);
        Err(Errno::EOPNOTSUPP.into())
    }

    /// Turns all vectors of a kind off.
    fn disable_interrupts(&self, kind: InterruptKind) {
        let _ = kind;
    }

    /// Masks a vector, or lets it through.
    fn mask_interrupt(&self, kind: InterruptKind, index: u32, masked: bool) -> Result<()> {
        let _ = (kind, index, masked);
        Err(Errno::EOPNOTSUPP.into())
    }

    /// Somebody is about to wait for an interrupt.
    fn about_to_wait(&self) {}

    /// The device uses the engine's addresses in this IOAS from now on; `None`: in none.
    fn attached(&self, ioas: Option<u32>) {
        let _ = ioas;
    }

    /// Something that becomes readable when the device is about to go; `None`: the provider is not told.
    fn removal(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }

    /// Whose addresses it uses.
    fn addressing(&self) -> Addressing {
        Addressing::Engine
    }

    /// VFIO_DEVICE_ATTACH_IOMMUFD_PT, for one with [`Addressing::Iommufd`]: in place of what it was attached to.
    fn attach_pt(&self, id: u32) -> Result<()> {
        let _ = id;
        Err(Errno::EOPNOTSUPP.into())
    }

    /// VFIO_DEVICE_DETACH_IOMMUFD_PT.
    fn detach_pt(&self) {}

    /// What a guardian makes the device quiet by when this process has died; `None`: it needs none, being simulated or the
    /// business of the kernel's own interfaces.
    fn remains(&self) -> Result<Option<Remains>> {
        Ok(None)
    }

    /// How a guardian reaches the registers of a memory BAR; for a device with [remains](Self::remains).
    fn window(&self, index: u8) -> Result<Window> {
        let _ = index;
        Err(Errno::EOPNOTSUPP.into())
    }
}

/// Whose addresses a device uses.
#[derive(Clone, Debug)]
pub(crate) enum Addressing {
    /// Physical ones, of memory that the engine has pinned.
    Engine,
    /// The kernel's iommufd, in which it is bound as `device`.
    Iommufd {
        /// Its object there.
        device: u32,
    },
    /// The container of its group: IOVAs.
    Container(Arc<OwnedFd>),
}

/// A device, claimed by this process.
///
/// Dropping it makes it quiet first; only then is the memory of dropped mappings let go. If it cannot be proved quiet,
/// its IOAS and all memory in it stay pinned until the process ends, and an error is logged. A device that is being removed may
/// not be reset any more, so this is what becomes of its memory.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::{Context, Contiguity, DmaBuffer};
///
/// let context = Context::simulated();
/// let ioas = context.ioas()?;
/// let device = context.sim_edu()?; // a real one: context.open("0000:00:04.0")?
/// assert_eq!(device.id()?, (0x1234, 0x11e8));
/// device.attach(&ioas)?;
///
/// let mapping = ioas.map(DmaBuffer::new(4096, Contiguity::Pages)?)?;
/// let registers = device.bar(0)?;
/// // SAFETY: nothing is written to the device that makes it reach memory.
/// unsafe { device.enable_bus_master()? };
/// drop(mapping);
/// assert_eq!(ioas.quarantined(), 1, "it might still reach it");
/// assert!(device.quiesce()?.bus_master_off);
/// assert_eq!(ioas.quarantined(), 0);
/// # drop(registers);
/// # Ok(())
/// # }
/// ```
pub struct Device {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    context: Arc<context::Inner>,
    backend: Box<dyn Backend>,
    id: ObjectId,
    state: Mutex<State>,
    _counted: Counted,
}

struct State {
    attached: Option<Arc<ioas::Inner>>,
    /// Bus mastering has been turned on since the device was last quiet.
    master: bool,
    reach: Reach,
    /// What interrupts are enabled.
    interrupts: Option<InterruptKind>,
    /// What makes it quiet by its own registers.
    recipe: Recipe,
    /// What the guardian knows of it; `None`: it needs none, or it was waived.
    ward: Option<Ward>,
}

impl Inner {
    pub(crate) fn name(&self) -> &str {
        self.backend.name()
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> ConfigSpace<'_> {
        ConfigSpace(&*self.backend)
    }

    /// Takes the device from its IOAS, which is answered.
    fn detach(&self, state: &mut State) -> Option<Arc<ioas::Inner>> {
        let ioas = state.attached.take()?;
        ioas.detach(&*self.backend, self.id);
        Some(ioas)
    }
}

impl Device {
    pub(crate) fn new(context: &Arc<context::Inner>, backend: Box<dyn Backend>) -> Result<Self> {
        let ward = match backend.remains()? {
            Some(remains) => match context.guardian()? {
                guardian::Choice::Waived => None,
                choice => Some(Ward::new(backend.name(), remains, &choice)?),
            },
            None => None,
        };
        let id = context.engine().bind()?;
        let state = Mutex::new(State {
            attached: None,
            master: false,
            reach: Reach::default(),
            interrupts: None,
            recipe: Recipe::default(),
            ward,
        });
        let device = Self {
            inner: Arc::new(Inner {
                context: context.clone(),
                backend,
                id,
                state,
                _counted: Counted::device(),
            }),
        };
        // Whoever had it before may have left bus mastering on. From here on a failure drops the device, quietly.
        device.inner.config().change_command(COMMAND_BUS_MASTER, COMMAND_MEMORY)?;
        Ok(device)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// What people call it: its PCI address, or the name of the model.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.backend.name()
    }

    /// How it is reached.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.inner.backend.provider()
    }

    /// Vendor and device id.
    ///
    /// # Errors
    /// [`ErrorKind::NoDevice`] when it is gone.
    pub fn id(&self) -> Result<(u16, u16)> {
        let config = self.inner.config();
        let id = (config.read_u16(0)?, config.read_u16(2)?);
        if id.0 == u16::MAX { Err(config.gone()) } else { Ok(id) }
    }

    /// Reads config space.
    ///
    /// # Errors
    /// EINVAL past its end; what the provider answers.
    pub fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        self.inner.checked(self.inner.config().read(offset, into))
    }

    /// Writes config space. The bus-master bit keeps its value: it is turned on by [`Device::enable_bus_master`] and off
    /// by [`Device::quiesce`] alone. So does memory decoding, without which registers that are mapped could not be reached; a
    /// driver that puts the device into a power-saving state or moves a BAR must not touch its registers meanwhile: through
    /// VFIO that ends the process by SIGBUS.
    ///
    /// # Errors
    /// EINVAL past its end; what the provider answers.
    pub fn config_write(&self, offset: u16, from: &[u8]) -> Result<()> {
        self.refuse_forked()?;
        // Under the lock, so that nobody turns it on or off between the reading and the writing.
        let _state = self.inner.state();
        self.inner.checked(self.inner.config().write_keeping_decoding(offset, from))
    }

    /// The registers of memory BAR `index` (0 to 5). While it lives the device stays claimed, dropped or not.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when there is no such BAR or it is no memory BAR; what the provider answers.
    pub fn bar(&self, index: u8) -> Result<Bar> {
        Ok(Bar::new(&self.inner, index, self.inner.checked(self.inner.backend.bar(index))?))
    }

    /// Attaches the device to an IOAS, in place of the one it was attached to.
    ///
    /// # Errors
    /// EBUSY while the device may be doing DMA ([`Device::quiesce`] it first); EINVAL for an IOAS of another context.
    pub fn attach(&self, ioas: &Ioas) -> Result<()> {
        self.refuse_forked()?;
        let mut state = self.inner.state();
        if !Arc::ptr_eq(&self.inner.context, ioas.inner().context()) {
            return Err(Error::argument("the device and the IOAS belong to two contexts"));
        }
        if state.master {
            return Err(self.still_mastering("attached elsewhere"));
        }
        let inner = &*self.inner;
        if state.attached.as_ref().is_some_and(|before| Arc::ptr_eq(before, ioas.inner())) {
            return Ok(());
        }
        // It does no DMA, so nothing is missed in between.
        let before = inner.detach(&mut state);
        if let Err(error) = ioas.inner().attach(&*inner.backend, inner.id) {
            state.attached = before.filter(|before| before.attach(&*inner.backend, inner.id).is_ok());
            return Err(error);
        }
        state.attached = Some(ioas.inner().clone());
        Ok(())
    }

    /// Detaches the device.
    ///
    /// # Errors
    /// EBUSY while the device may be doing DMA ([`Device::quiesce`] it first).
    pub fn detach(&self) -> Result<()> {
        self.refuse_forked()?;
        let mut state = self.inner.state();
        if state.master {
            return Err(self.still_mastering("detached"));
        }
        self.inner.detach(&mut state);
        Ok(())
    }

    fn still_mastering(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Busy,
            Errno::EBUSY,
            format!("{} cannot be {what} while its bus mastering is on", self.name()),
        )
        .with_remedy("quiesce() it first")
    }

    /// Lets the device reach memory: turns bus mastering on.
    ///
    /// # Errors
    /// EINVAL while it is not attached to an IOAS; ENODEV when it is gone; what the provider answers.
    ///
    /// # Safety
    /// This is the one promise of a driver: until the device is quiet again, all that is written to the device makes it
    /// reach no memory but that of live mappings of the IOAS it is attached to, by the addresses and lengths that
    /// [`Mapping::for_device`](crate::Mapping::for_device) gave (by the machine's [DMA ranges](Device::set_dma_ranges), where
    /// the bus has its own); and a mapping is [reclaimed](crate::Mapping::reclaim)
    /// only when the device has finished with it. Without an IOMMU nothing else stands between a device and any memory of
    /// the machine.
    pub unsafe fn enable_bus_master(&self) -> Result<()> {
        if self.inner.context.is_forked() {
            return Err(ioas::forked());
        }
        let mut state = self.inner.state();
        let Some(ioas) = &state.attached else {
            return Err(Error::argument(format!("{} is not attached to an IOAS", self.name()))
                .with_remedy("attach() it before turning on bus mastering"));
        };
        if !state.master {
            // First: from here on the guardian makes it quiet, and memory that is given up waits.
            if let Some(ward) = &state.ward {
                ward.let_loose()?;
            }
            ioas.add_master();
            state.master = true;
        }
        let config = self.inner.config();
        let command = config.change_command(0, COMMAND_BUS_MASTER | COMMAND_MEMORY)?;
        if config.is_gone()? {
            return Err(config.gone());
        }
        if command & COMMAND_BUS_MASTER == 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                Errno::EIO,
                format!("{}: bus mastering does not stay on", self.name()),
            ));
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.inner.context.is_forked() {
            // The parent's device: its claim and its IOAS are not this process's to give up.
            std::mem::forget(self.inner.clone());
            return;
        }
        // Declared first: when all is done.
        let _reports = self.inner.context.reports_at_end();
        let mut state = self.inner.state();
        match self.inner.quiesce(&mut state) {
            Ok(_) => {}
            Err(error) if state.master => {
                tracing::error!(device = self.inner.backend.name(), %error, "the memory of a device stays pinned");
                // Shares that are never given back: neither its IOAS nor any mapping in it can go.
                std::mem::forget(state.attached.take());
                if !self.inner.backend.is_quieted_by_close() {
                    // Nor does anybody else get the device.
                    std::mem::forget(self.inner.clone());
                }
                return;
            }
            // It never was let loose, so nothing waits for it.
            Err(error) => tracing::warn!(device = self.inner.backend.name(), %error, "closing"),
        }
        // Before the device is closed, which these keep open.
        state.recipe = Recipe::default();
        state.ward = None;
        self.inner.detach(&mut state);
        let mut engine = self.inner.context.engine();
        let _ = engine.unbind(self.inner.id);
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.name())
            .field("provider", &self.provider())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
