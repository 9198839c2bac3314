//! What of a device outlives the process that drives it: descriptors by which somebody else can make it quiet.

use std::os::fd::OwnedFd;
use std::sync::Arc;

/// How to reach a device's config space, and how to reset it.
pub(crate) struct Remains {
    /// The file that config space is in.
    pub(crate) config: Arc<OwnedFd>,
    /// Where it begins there.
    pub(crate) config_offset: u64,
    /// Where in it the Device Status register of PCI Express is; 0: nowhere.
    pub(crate) express_status: u16,
    /// The device's own reset.
    pub(crate) reset: Option<Reset>,
}

/// How a device is reset.
pub(crate) enum Reset {
    /// By writing to a file of sysfs.
    File(Arc<OwnedFd>),
    /// By VFIO_DEVICE_RESET.
    Vfio(Arc<OwnedFd>),
}

/// How to reach the registers of a BAR.
pub(crate) struct Window {
    pub(crate) file: Arc<OwnedFd>,
    /// Where the BAR is in the file; of a page, where it is to be mapped.
    pub(crate) offset: u64,
    /// Bytes of the BAR.
    pub(crate) length: u64,
    /// Where it begins in its first page, where it is to be mapped.
    pub(crate) shift: usize,
    /// It is to be mapped, or else to be read and written through the file.
    pub(crate) mapped: bool,
}
