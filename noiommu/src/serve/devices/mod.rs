//! Served devices: what stands behind an open device node, once the device is bound or got from its group.
//!
//! The node itself (who may open it, BIND, ATTACH and DETACH, one user at a time) belongs to `cdev` and `group`; every other
//! call ends here.

mod buffer;
mod event;
mod group;
mod served;
mod sim;
mod sysfs;

use noiommu_core::Errno;
use noiommu_core::vfio::pci::{Address, Neighbours};

pub use self::buffer::BarBuffer;
pub(super) use self::group::device as by_group;
pub(super) use self::served::map_file;
pub(super) use self::sim::edu as simulated_edu;
pub(super) use self::sysfs::device as by_sysfs;
use super::{Caller, MmapRequest, Touch};

/// What `domain:bus:device.function` says, as sysfs writes it.
pub(super) fn parse_address(text: &str) -> Option<Address> {
    if crate::device::sysfs::normalize(text).as_deref() != Some(text) {
        return None;
    }
    let number = |range| u8::from_str_radix(text.get(range)?, 16).ok();
    Some(Address {
        segment: u16::from_str_radix(text.get(..4)?, 16).ok()?,
        bus: number(5..7)?,
        devfn: number(8..10)? << 3 | number(11..12)?,
    })
}

/// A call on an open device: who calls, and how the device was opened.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    /// The caller's memory and descriptors.
    pub caller: Caller<'a>,
    /// How it was opened, and whose the devices next to it are.
    pub neighbours: &'a dyn Neighbours,
}

/// A device behind its node. All methods but [`ServedDevice::open_first`] are called while it is open only.
pub trait ServedDevice: Send + Sync {
    /// The first opener has bound it (or got it from its group): it is claimed and enabled, bus mastering off, and reset
    /// where it can be.
    ///
    /// # Errors
    /// The kernel's for a device that cannot be enabled; EBUSY where something else has claimed it. It is not open then.
    fn open_first(&self) -> Result<(), Errno>;

    /// The last one has closed it, mappings of its BARs included: bus mastering off, reset where it can be, given back.
    fn close_last(&self);

    /// `ioctl`, every call but BIND, ATTACH and DETACH; answers the call's return value.
    ///
    /// # Errors
    /// The kernel's; ENOTTY for calls that it does not know.
    fn ioctl(&self, session: Session<'_>, request: u32, argument: u64) -> Result<i64, Errno>;

    /// `read` and `pread` of `length` bytes at `offset` into the caller's memory at `address`; answers the bytes read.
    ///
    /// # Errors
    /// EINVAL for offsets in no region; EFAULT; EIO for registers of a device whose memory is off.
    fn read(&self, session: Session<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno>;

    /// `write` and `pwrite`, the other way.
    ///
    /// # Errors
    /// As for [`ServedDevice::read`].
    fn write(&self, session: Session<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno>;

    /// `mmap`; answers the address. Who calls this keeps the device open as long as the mapping is there.
    ///
    /// # Errors
    /// EINVAL for what cannot be mapped; those of `mmap` itself.
    ///
    /// # Safety
    /// That of `mmap` itself: with MAP_FIXED it replaces what the caller has at the address.
    unsafe fn mmap(&self, request: MmapRequest) -> Result<u64, Errno>;

    /// An access to a mapping without memory behind it: see [`FileOperations::touch`](super::FileOperations::touch).
    fn touch(&self, touch: Touch) -> Option<u64> {
        let _ = touch;
        None
    }
}

#[cfg(test)]
mod tests;
