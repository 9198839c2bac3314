//! The single steps that binding is made of. Each is one thing that the kernel does whole or not at all, so a crash leaves the
//! machine between two of them.

use std::fmt;
use std::io;

use super::record::{self, Record};
use crate::pci::Root;
use crate::{files, kernel};

/// A step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Act {
    /// Loads a module.
    Load(String),
    /// Writes down what was there.
    Remember(Record),
    /// Says which driver alone may have the device; `None`: any that fits.
    Override(Option<String>),
    /// Takes the device from its driver.
    Release,
    /// Has the kernel look for a driver.
    Probe,
    /// Gives the device to a driver.
    Attach(String),
    /// Removes what was written down.
    Forget,
}

/// Who does them: the kernel, or one made up.
pub(super) trait Actor {
    fn act(&self, root: &Root, address: &str, act: &Act) -> io::Result<()>;
}

/// The kernel.
pub(super) struct Kernel;

impl Actor for Kernel {
    fn act(&self, root: &Root, address: &str, act: &Act) -> io::Result<()> {
        let device = root.device(address);
        match act {
            Act::Load(module) => kernel::modprobe(module),
            Act::Remember(record) => record.write(root),
            // An empty line takes an override away.
            Act::Override(driver) => {
                files::write_line(&device.join("driver_override"), driver.as_deref().unwrap_or(""))
            }
            Act::Release => files::write_line(&device.join("driver/unbind"), address),
            Act::Probe => files::write_line(&root.at("/sys/bus/pci/drivers_probe"), address),
            Act::Attach(driver) => files::write_line(&root.driver(driver).join("bind"), address),
            Act::Forget => record::remove(root, address),
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(module) => write!(f, "load the module {module}"),
            Self::Remember(record) => match &record.driver {
                Some(driver) => write!(f, "remember its driver {driver}"),
                None => f.write_str("remember that it has no driver"),
            },
            Self::Override(Some(driver)) => write!(f, "set its driver_override to {driver}"),
            Self::Override(None) => f.write_str("clear its driver_override"),
            Self::Release => f.write_str("take it from its driver"),
            Self::Probe => f.write_str("have the kernel look for a driver"),
            Self::Attach(driver) => write!(f, "give it to the driver {driver}"),
            Self::Forget => f.write_str("forget what was remembered"),
        }
    }
}
