//! Where the kernel's files are: below `/`, or below a made-up tree.

use std::path::{Path, PathBuf};

/// The directory that /sys, /proc, /dev, /run and /lib are in.
#[derive(Clone, Debug)]
pub(crate) struct Root(PathBuf);

impl Root {
    /// This machine.
    pub(crate) fn real() -> Self {
        Self(PathBuf::from("/"))
    }

    /// A made-up machine.
    #[cfg(test)]
    pub(crate) fn of(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A path that begins with a slash, in it.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The directory of a PCI device.
    pub(crate) fn device(&self, address: &str) -> PathBuf {
        self.at("/sys/bus/pci/devices").join(address)
    }

    /// The directory of a driver of PCI devices.
    pub(crate) fn driver(&self, name: &str) -> PathBuf {
        self.at("/sys/bus/pci/drivers").join(name)
    }
}
