//! The kernel's uio_pci_generic, where it is there, as a helper: it hands on the interrupt line of a device that is claimed,
//! and turns bus mastering off when the last descriptor of it is closed, however the process ends.
//!
//! See *Documentation/driver-api/uio-howto.rst* of the kernel. Its handler masks the line by the bit in the command register;
//! whoever wants the next interrupt clears it in config space.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::OFlags;

use super::sysfs::CLAIM;
use super::{Backend as _, SysfsDevice};
use crate::files;

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

impl SysfsDevice {
    /// Binds the helper and opens it; `None` where there is none, or where it refuses the device: one without a line, or whose
    /// line cannot be masked. It stays bound until the device is given back.
    pub(crate) fn bind_helper(&mut self) -> Option<OwnedFd> {
        if !files::exists(Path::new(DRIVER)) || self.helper {
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
