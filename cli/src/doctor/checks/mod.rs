//! The checks: each a function of the facts, which says what was found, why it matters, and the line that mends it.

mod container;
mod device;
mod kernel;
mod memory;
mod pins;
mod privileges;
mod provider;
mod vfio;

use super::facts::{Facts, PciDevice};

pub(super) use device::of_device;
pub(super) use privileges::may_drive;

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// It works, but could be better.
    Note,
    /// It does not work.
    Problem,
    /// Nothing that concerns this machine.
    NotApplicable,
}

impl Status {
    /// Its name in output for programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
            Self::NotApplicable => "not-applicable",
        }
    }
}

/// A check and its result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Check {
    pub(super) name: &'static str,
    pub(super) status: Status,
    /// What was found.
    pub(crate) found: String,
    /// Why it matters.
    pub(super) why: &'static str,
    /// A line for a root shell that mends it; one that begins with `#` cannot be typed, and says what to do.
    pub(crate) remedy: Option<String>,
}

impl Check {
    fn new(name: &'static str, why: &'static str, status: Status, found: impl Into<String>) -> Self {
        Self { name, status, found: found.into(), why, remedy: None }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    fn maybe_remedy(mut self, remedy: Option<String>) -> Self {
        self.remedy = remedy;
        self
    }

    pub(crate) fn is_problem(&self) -> bool {
        self.status == Status::Problem
    }
}

/// The checks of the machine and of this process, in the order in which they are told.
const ALL: &[fn(&Facts) -> Check] = &[
    kernel::age,
    kernel::encryption,
    kernel::lockdown,
    kernel::secure_boot,
    vfio::options,
    vfio::iommu,
    vfio::parameter,
    vfio::opt_in,
    vfio::opt_in_files,
    vfio::vfio_pci,
    vfio::uio,
    vfio::nodes,
    privileges::capabilities,
    privileges::user_namespace,
    container::container,
    container::sysfs,
    container::guardian,
    pins::frames,
    pins::io_uring,
    pins::af_xdp,
    pins::memlock,
    pins::proof,
    memory::huge_pages,
    memory::thp,
    provider::machine,
];

/// All checks of the machine.
pub(super) fn of_machine(facts: &Facts) -> Vec<Check> {
    ALL.iter().map(|check| check(facts)).collect()
}

/// A device by its address, if it is there.
fn find<'a>(facts: &'a Facts, address: &str) -> Option<&'a PciDevice> {
    facts.devices.iter().find(|device| device.address == address)
}

#[cfg(test)]
mod tests;
