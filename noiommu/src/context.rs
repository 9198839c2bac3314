//! The engine opened: what one process maps and attaches.

use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use noiommu_core as core;
use noiommu_core::PhysAddr;
use rustix::fs::OFlags;

use crate::device::{self, Device, Provider};
use crate::ioas::Ioas;
use crate::memory::{Memory, Pagemap, PinChoice, PinKind};
use crate::sim::Sanitizer;
use crate::stats::{ContextKind, Told};
use crate::{Error, ErrorKind, Result, files, guardian};

/// The kernel's iommufd.
const IOMMUFD: &str = "/dev/iommu";
/// Containers of VFIO's groups.
const CONTAINER: &str = "/dev/vfio/vfio";

/// An engine: the process's IOASes and devices. Cheap to clone; all clones are one engine.
///
/// It belongs to the process that opened it. After a fork the parent goes on as before; in the child, mapping and turning
/// on bus mastering are refused, and dropping what it inherited does nothing to the parent's pins and devices.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::{Context, ErrorKind};
///
/// // Real memory, where this process may see it; else simulated, which tests use anyway.
/// let context = match Context::new() {
///     Ok(context) => context,
///     Err(error) if error.kind() == ErrorKind::NoPhysicalAddresses => Context::simulated(),
///     Err(error) => return Err(error),
/// };
/// let ioas = context.ioas()?;
/// assert_eq!(ioas.usage().areas, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    engine: Mutex<core::Context<Memory>>,
    pin_kind: Result<PinKind>,
    /// Nothing of the kernel's is to serve: memory is pinned by the engine from the moment it is mapped.
    engine_alone: bool,
    /// The kernel's iommufd, once a device needs it.
    iommufd: Mutex<Option<Arc<OwnedFd>>>,
    /// What watches the devices of simulated memory.
    sanitizer: Option<Arc<Sanitizer>>,
    pagemap: Option<Arc<Pagemap>>,
    /// What others see of it.
    told: Told,
    /// Devices that are opened have no guardian.
    guardian_waived: AtomicBool,
    /// The last thing of a context on simulated memory.
    _reports: ReportsAtEnd,
    /// The process that opened it. Pins and devices are that process's: in a forked child nothing here does anything.
    process: u32,
}

impl Inner {
    /// The engine, locked. A thread that panicked in it has left no rule broken: the engine cannot panic itself.
    pub(crate) fn engine(&self) -> Engine<'_> {
        Engine { context: self.engine.lock().unwrap_or_else(PoisonError::into_inner), told: &self.told }
    }

    /// Whether this is a forked child of the process that opened the engine.
    pub(crate) fn is_forked(&self) -> bool {
        crate::process::id() != self.process
    }

    /// Where this process's pages are; `None` on made-up memory.
    pub(crate) fn pagemap(&self) -> Option<&Pagemap> {
        self.pagemap.as_deref()
    }

    /// Whether nothing but the engine can have what is mapped.
    pub(crate) fn is_engine_alone(&self) -> bool {
        self.engine_alone
    }

    /// How the engine pins; why it cannot.
    pub(crate) fn pin_kind(&self) -> Result<PinKind> {
        self.pin_kind.clone()
    }

    /// The kernel's iommufd: one for all devices and IOASes.
    pub(crate) fn iommufd(&self) -> Result<Arc<OwnedFd>> {
        let mut held = self.iommufd.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(iommufd) = &*held {
            return Ok(iommufd.clone());
        }
        let opened = files::open(Path::new(IOMMUFD), OFlags::RDWR).map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let error = Error::system(format_args!("opening {IOMMUFD}"), error);
            error.with_remedy(if missing {
                "modprobe iommufd, where the kernel has it (CONFIG_IOMMUFD)"
            } else {
                "run it as root, or let the user open it"
            })
        });
        Ok(held.insert(Arc::new(opened?)).clone())
    }

    /// Who is to guard a device that is opened now.
    ///
    /// # Errors
    /// EINVAL: the environment says something that means nothing.
    pub(crate) fn guardian(&self) -> Result<guardian::Choice> {
        let choice = guardian::Choice::of_environment()?;
        Ok(if self.guardian_waived.load(Ordering::Relaxed) { guardian::Choice::Waived } else { choice })
    }

    pub(crate) fn sanitizer(&self) -> Option<&Arc<Sanitizer>> {
        self.sanitizer.as_ref()
    }

    /// In a test that is to fail by the sanitizer's reports: fails. Not where a panic would leave something undone.
    pub(crate) fn raise_reports(&self) {
        if let Some(sanitizer) = &self.sanitizer {
            sanitizer.raise();
        }
    }

    /// The same when the answer is dropped.
    pub(crate) fn reports_at_end(&self) -> ReportsAtEnd {
        ReportsAtEnd(self.sanitizer.clone())
    }
}

/// The engine, locked. What it has is told when it is given back.
pub(crate) struct Engine<'a> {
    context: MutexGuard<'a, core::Context<Memory>>,
    told: &'a Told,
}

impl Deref for Engine<'_> {
    type Target = core::Context<Memory>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.context
    }
}

impl DerefMut for Engine<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.context
    }
}

impl Drop for Engine<'_> {
    #[inline]
    fn drop(&mut self) {
        self.told.tell(&self.context.totals());
    }
}

/// Fails a test that is to fail, when everything else has been done.
pub(crate) struct ReportsAtEnd(Option<Arc<Sanitizer>>);

impl Drop for ReportsAtEnd {
    fn drop(&mut self) {
        if let Some(sanitizer) = &self.0 {
            sanitizer.raise();
        }
    }
}

impl Context {
    /// This process's real memory, pinned by whoever serves the devices that are opened: the kernel where it can, the engine
    /// (with the best pin source) elsewhere.
    ///
    /// # Errors
    /// [`ErrorKind::KernelTooOld`], [`ErrorKind::EncryptedGuest`], [`ErrorKind::NoPhysicalAddresses`],
    /// [`ErrorKind::NoPinSource`]: each says what to do. On a machine with VFIO these come later, from what needs the engine.
    pub fn new() -> Result<Self> {
        let has_vfio = [IOMMUFD, CONTAINER].iter().any(|node| files::exists(Path::new(node)));
        match Memory::real(PinChoice::Best) {
            Err(error) if has_vfio => Ok(Self::on(Memory::missing(error), false)),
            memory => Ok(Self::on(memory?, !has_vfio)),
        }
    }

    /// The engine on this process's real memory, with a pin source of choice: memory is pinned by it from the moment it is
    /// mapped, whichever devices are attached.
    ///
    /// # Errors
    /// [`ErrorKind::KernelTooOld`], [`ErrorKind::EncryptedGuest`], [`ErrorKind::NoPhysicalAddresses`],
    /// [`ErrorKind::NoPinSource`]: each says what to do.
    pub fn with_pins(choice: PinChoice) -> Result<Self> {
        Ok(Self::on(Memory::real(choice)?, true))
    }

    /// The engine on made-up physical memory: no privileges, nothing pinned, [simulated devices](crate::sim) only. For tests,
    /// and to look around.
    ///
    /// A device that reaches memory which is not its own makes the test fail, by a panic: see [`Sanitizer`].
    #[must_use]
    pub fn simulated() -> Self {
        Self::on(Memory::simulated(), true)
    }

    /// The engine on no memory at all: physical addresses are what `frames` says of an address of this process and a length, and
    /// nothing looks at the memory. To measure the engine with more memory than the machine has; no device can be opened.
    #[doc(hidden)]
    #[must_use]
    pub fn with_frames(
        frames: impl Fn(usize, usize) -> Vec<(PhysAddr, u64)> + Send + Sync + 'static,
    ) -> Self {
        Self::on(Memory::told(Arc::new(frames)), true)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    fn on(memory: Memory, engine_alone: bool) -> Self {
        let pin_kind = memory.pin_kind();
        let sanitizer = memory.as_simulated().map(|memory| Arc::new(Sanitizer::new(memory.clone())));
        let _reports = ReportsAtEnd(sanitizer.clone());
        let pagemap = memory.pagemap().cloned();
        let engine = Mutex::new(core::Context::new(memory));
        let process = crate::process::id();
        let real = !matches!(pin_kind, Ok(PinKind::Simulated));
        let told = Told::new(if real { ContextKind::Kit } else { ContextKind::Simulated });
        Self {
            inner: Arc::new(Inner {
                engine,
                pin_kind,
                engine_alone,
                iommufd: Mutex::default(),
                sanitizer,
                pagemap,
                told,
                guardian_waived: AtomicBool::new(false),
                process,
                _reports,
            }),
        }
    }

    /// How the engine pins memory. See [`Ioas::pin_kind`] for who does it in an IOAS.
    ///
    /// # Errors
    /// Why the engine cannot pin here, which matters to devices that it serves alone.
    pub fn pin_kind(&self) -> Result<PinKind> {
        self.inner.pin_kind()
    }

    /// Whether physical memory is made up.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        matches!(self.inner.pin_kind, Ok(PinKind::Simulated))
    }

    /// Does without a [guardian] for devices that are opened from now on. When the process dies while one of them
    /// is doing DMA, the kernel gives its memory to others, and the device writes into it: silently, whatever is there by then. Of no
    /// meaning to devices that the kernel's own interfaces serve alone.
    pub fn waive_guardian(&self) {
        self.inner.guardian_waived.store(true, Ordering::Relaxed);
    }

    /// A new, empty IOAS.
    ///
    /// # Errors
    /// Want of memory.
    pub fn ioas(&self) -> Result<Ioas> {
        Ioas::new(&self.inner)
    }

    /// A real PCI device, by its address (`0000:00:04.0`), through the best of what is bound to it: VFIO's cdev or group
    /// where the driver vfio-pci is, uio_pci_generic or bare sysfs files where no driver is. [`Device::provider`] tells which
    /// it is; `noiommu bind` binds. The environment variable `NOIOMMU_PROVIDER` (names of [`Provider`]s, separated by commas)
    /// leaves the choice to these.
    ///
    /// The device is claimed for this process, enabled, and has bus mastering off. With the first one whose memory the engine pins, a
    /// [guardian] is started, which is forked from this process: open devices before you map much memory, which
    /// the kernel copies for a moment then.
    ///
    /// # Errors
    /// [`ErrorKind::NoDevice`]; [`ErrorKind::Busy`]: another driver or another process has it;
    /// [`ErrorKind::NotEnabled`]: the administrator has not given the unsafe opt-in; [`ErrorKind::HasIommu`]: it stands
    /// behind an IOMMU, and VFIO has not got it; [`ErrorKind::NoGuardian`]: nobody would make it quiet when this process dies;
    /// [`ErrorKind::Unsupported`]: not to be had by the providers asked for, or this
    /// engine's memory is simulated; what keeps the engine from pinning, where the device needs it. The device is as before
    /// then.
    pub fn open(&self, address: &str) -> Result<Device> {
        self.open_by(address, &device::Choice::of_environment()?)
    }

    /// The same through one provider, whatever the environment says.
    ///
    /// # Errors
    /// As for [`Context::open`].
    pub fn open_with(&self, address: &str, provider: Provider) -> Result<Device> {
        self.open_by(address, &device::Choice::only(provider))
    }

    fn open_by(&self, address: &str, choice: &device::Choice) -> Result<Device> {
        if self.is_simulated() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                core::Errno::EOPNOTSUPP,
                "a real device cannot reach simulated memory",
            )
            .with_remedy("open the engine on real memory: Context::new()"));
        }
        // Asked for before anything is done to the device.
        let engine = || self.pin_kind().map(drop);
        let backend = device::open(address, choice, &engine, || self.inner.iommufd())?;
        Device::new(&self.inner, backend)
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("pins", &self.inner.pin_kind).finish_non_exhaustive()
    }
}
