//! The kernel's uio_pci_generic, where it is there, as a helper: it hands on the interrupt line of a device that is claimed,
//! and turns bus mastering off when the last descriptor of it is closed, however the process ends.
//!
//! See *Documentation/driver-api/uio-howto.rst* of the kernel. Its handler masks the line by the bit in the command register;
//! whoever wants the next interrupt clears it in config space.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, Once};

use rustix::fs::OFlags;

use super::config::{INTERRUPT_PIN, mask_line};
use super::interrupt::{InterruptKind, Source};
use super::sysfs::{CLAIM, NO_MESSAGES};
use super::{Backend, Provider, Registers, Remains, SysfsDevice, Window};
use crate::{Error, Result, files, kernel};

/// Its directory among the drivers of the bus.
const DRIVER: &str = "/sys/bus/pci/drivers/uio_pci_generic";
const NAME: &str = "uio_pci_generic";
const PROBE: &str = "/sys/bus/pci/drivers_probe";

/// Whether the helper is bound to a device in our name: a process that was killed has left it so, as the override tells,
/// which is put back to ours once the helper is bound.
pub(super) fn is_left_behind(directory: &Path) -> bool {
    files::link_name(&directory.join("driver")).as_deref() == Some(NAME)
        && files::read_text(&directory.join("driver_override")).is_ok_and(|text| text == CLAIM)
}

/// Takes the helper away from a device.
pub(super) fn unbind(name: &str) {
    let _ = files::write_line(&Path::new(DRIVER).join("unbind"), name);
}

/// Whether the kernel has the helper, loaded now if need be.
fn is_there() -> bool {
    /// Asked for once: a module that is not there does not come.
    static LOAD: Once = Once::new();
    let there = || files::exists(Path::new(DRIVER));
    if !there() {
        LOAD.call_once(|| {
            let _ = kernel::modprobe(NAME);
        });
    }
    there()
}

impl SysfsDevice {
    /// Binds the helper and opens it; `None` where there is none, or where it refuses the device: one without a line, or whose
    /// line cannot be masked. It stays bound until the device is given back.
    pub(crate) fn bind_helper(&mut self) -> Option<OwnedFd> {
        if self.helper || !is_there() {
            return None;
        }
        self.write("driver_override", NAME).ok()?;
        let _ = files::write_line(Path::new(PROBE), self.name());
        let bound = files::link_name(&self.directory().join("driver")).as_deref() == Some(NAME);
        let _ = self.write("driver_override", CLAIM);
        self.helper = bound;
        let opened = self.open_helper().filter(|_| bound);
        if bound && opened.is_none() {
            self.unbind_helper();
        }
        opened
    }

    fn open_helper(&self) -> Option<OwnedFd> {
        let named = files::names(&self.directory().join("uio")).ok()?.into_iter().next()?;
        files::open(&Path::new("/dev").join(named), OFlags::RDWR).ok()
    }

    /// The end of [`SysfsDevice::bind_helper`].
    pub(super) fn unbind_helper(&mut self) {
        if std::mem::take(&mut self.helper) {
            unbind(self.name());
        }
    }
}

/// A claimed device with the helper bound to it.
pub(super) struct UioDevice {
    /// Closed first: the last close of it turns bus mastering off, which is off by then where the process goes on.
    line: Arc<OwnedFd>,
    /// How many interrupts of it were seen, modulo 2^32.
    seen: Arc<Mutex<u32>>,
    device: SysfsDevice,
}

impl UioDevice {
    /// Binds the helper; where there is none or it does not take the device, that comes back.
    pub(super) fn new(mut device: SysfsDevice) -> std::result::Result<Self, SysfsDevice> {
        match device.bind_helper() {
            Some(line) => Ok(Self { line: Arc::new(line), seen: Arc::default(), device }),
            None => Err(device),
        }
    }
}

impl Backend for UioDevice {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn provider(&self) -> Provider {
        Provider::Uio
    }

    fn directory(&self) -> Option<&Path> {
        Backend::directory(&self.device)
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        self.device.config_read(offset, into)
    }

    fn config_write(&self, offset: u16, from: &[u8]) -> Result<()> {
        self.device.config_write(offset, from)
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Registers>> {
        self.device.bar(index)
    }

    fn bar_write_combining(&self, index: u8) -> Result<Arc<dyn Registers>> {
        self.device.bar_write_combining(index)
    }

    fn reset(&self) -> Result<bool> {
        self.device.reset()
    }

    fn remains(&self) -> Result<Option<Remains>> {
        self.device.remains()
    }

    fn window(&self, index: u8) -> Result<Window> {
        self.device.window(index)
    }

    fn interrupt_count(&self, kind: InterruptKind) -> Result<u32> {
        // A device without a pin, or whose pin leads nowhere, is taken by the helper as well.
        let mut pin = [0];
        self.config_read(INTERRUPT_PIN, &mut pin)?;
        let number = files::read_text(&self.device.directory().join("irq")).unwrap_or_default();
        Ok(u32::from(kind == InterruptKind::Intx && pin != [0] && number != "0"))
    }

    fn why_no_interrupts(&self, kind: InterruptKind) -> String {
        match kind {
            InterruptKind::Intx => "as its line leads nowhere",
            InterruptKind::Msi | InterruptKind::Msix => NO_MESSAGES,
        }
        .to_owned()
    }

    fn enable_interrupts(&self, kind: InterruptKind, _: u32) -> Result<Vec<Source>> {
        let source = Source::uio(self.line.clone(), self.seen.clone());
        // What came before does not count.
        source.take().map_err(|error| {
            Error::system(format_args!("reading the interrupt line of {}", self.name()), error)
        })?;
        mask_line(self, kind, false)?;
        Ok(vec![source])
    }

    fn disable_interrupts(&self, kind: InterruptKind) {
        if let Err(error) = mask_line(self, kind, true) {
            tracing::warn!(device = self.name(), %error, "the interrupt line stays on");
        }
    }

    fn mask_interrupt(&self, kind: InterruptKind, _: u32, masked: bool) -> Result<()> {
        mask_line(self, kind, masked)
    }
}
