//! What there is to know of a device besides what it does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Device, Inner};
use crate::{ErrorKind, Result, files};

/// Becomes readable when the device is about to be taken away ([`AsFd`], for poll, epoll or an asynchronous runtime): the
/// process shall stop using it and drop it, for which the kernel waits.
#[derive(Debug)]
pub struct Removal(OwnedFd);

impl AsFd for Removal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Inner {
    /// What a provider answers: whatever its error is, on a device that is gone it means that.
    pub(super) fn checked<T>(&self, answer: Result<T>) -> Result<T> {
        let gone = || self.config().is_gone().unwrap_or_else(|error| error.kind() == ErrorKind::NoDevice);
        answer.map_err(|error| match error.kind() {
            ErrorKind::System if gone() => self.config().gone(),
            _ => error,
        })
    }
}

impl Device {
    /// Whether the device answers no more: it was unplugged, or has lost power.
    ///
    /// # Errors
    /// What the provider answers, but for ENODEV.
    pub fn is_gone(&self) -> Result<bool> {
        match self.inner().config().is_gone() {
            Err(error) if error.kind() == ErrorKind::NoDevice => Ok(true),
            answer => answer,
        }
    }

    /// Something to wait for that tells of the device's removal; `None`: the provider is not told (sysfs, uio), and
    /// [`Device::is_gone`] is to be asked now and then. There is one at a time: a later one takes the place of the earlier.
    ///
    /// # Errors
    /// What the provider answers.
    pub fn removal(&self) -> Result<Option<Removal>> {
        Ok(self.inner().backend.removal()?.map(Removal))
    }

    /// The NUMA node that the device is near to; `None`: it has none, or there is but one.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        let directory = self.inner().backend.directory()?;
        // -1 for none.
        files::read_text(&directory.join("numa_node")).ok()?.parse().ok()
    }

    /// Where in config space the capability with this id is; `None`: nowhere.
    ///
    /// # Errors
    /// What the provider answers.
    pub fn find_capability(&self, id: u8) -> Result<Option<u16>> {
        self.inner().config().capability(id)
    }

    /// All capabilities with this id, in the order of the device's list: virtio has several of one.
    ///
    /// # Errors
    /// What the provider answers.
    pub fn find_capabilities(&self, id: u8) -> Result<Vec<u16>> {
        self.inner().config().capabilities(id)
    }

    /// Where in config space the extended capability (of PCI Express) with this id is; `None`: nowhere.
    ///
    /// # Errors
    /// What the provider answers.
    pub fn find_extended_capability(&self, id: u16) -> Result<Option<u16>> {
        self.inner().config().extended_capability(id)
    }

    /// The registers of memory BAR `index`, with writes that the processor may combine, and that reach the device late and out
    /// of order: for memory of the device that is written in bulk. A [barrier](crate::barrier::doorbell) sends them on.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: the provider maps none so (VFIO), or the BAR is not
    /// prefetchable; as for [`Device::bar`].
    pub fn bar_write_combining(&self, index: u8) -> Result<super::Bar> {
        let inner = self.inner();
        Ok(super::Bar::new(inner, index, inner.checked(inner.backend.bar_write_combining(index))?))
    }
}
