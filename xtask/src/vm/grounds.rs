//! The guests in which a driver of ours is held against the kernel's own: kernels, and what is expected to provide devices there.

use anyhow::{Result, anyhow, ensure};
use serde_json::Value;

use super::kernel::{self, Kernel};
use super::{Choice, Variant, refkernel};
use crate::project::Project;

/// A guest: a kernel, with an IOMMU or without.
pub(super) struct Ground {
    pub(super) name: &'static str,
    kernel: Choice,
    /// Whether it has an IOMMU.
    pub(super) confined: bool,
    pub(super) rows: &'static [Row],
}

/// What is asked for, and what provides the device then.
pub(super) type Row = (&'static str, &'static str);

pub(super) const GROUNDS: [Ground; 6] = [
    Ground {
        name: "stock",
        kernel: Choice::Stock,
        confined: false,
        rows: &[("auto", "uio"), ("sysfs", "sysfs")],
    },
    Ground {
        name: "legacy",
        kernel: Choice::Built(Variant::Legacy),
        confined: false,
        rows: &[("auto", "group-noiommu")],
    },
    Ground {
        name: "reference",
        kernel: Choice::Built(Variant::Reference),
        confined: false,
        rows: &[("auto", "cdev-noiommu"), ("group-noiommu", "group-noiommu")],
    },
    Ground {
        name: "cdev-only",
        kernel: Choice::Built(Variant::CdevOnly),
        confined: false,
        rows: &[("auto", "cdev-noiommu")],
    },
    Ground {
        name: "reference-iommu",
        kernel: Choice::Built(Variant::Reference),
        confined: true,
        rows: &[("auto", "cdev")],
    },
    Ground {
        name: "legacy-iommu",
        kernel: Choice::Built(Variant::Legacy),
        confined: true,
        rows: &[("auto", "group")],
    },
];

/// Words for kernels with an IOMMU. Interrupts are not remapped in these kernels.
pub(super) const CONFINED: [&str; 3] =
    ["intel_iommu=on", "iommufd.allow_unsafe_interrupts=1", "vfio_iommu_type1.allow_unsafe_interrupts=1"];

/// Their names, in order.
pub(super) fn names() -> Vec<&'static str> {
    GROUNDS.iter().map(|ground| ground.name).collect()
}

/// Those with these names; all, if there are none.
pub(super) fn chosen(names: &[String]) -> Vec<&'static Ground> {
    let wanted = |ground: &&Ground| names.is_empty() || names.iter().any(|name| name == ground.name);
    GROUNDS.iter().filter(wanted).collect()
}

impl Ground {
    /// What it boots.
    pub(super) fn kernel(&self, project: &Project) -> Result<Kernel> {
        match self.kernel {
            Choice::Stock => kernel::stock(project, None),
            Choice::Built(variant) => refkernel::get(project, variant),
        }
    }

    /// Holds the accounts that a guest has left, one for each row and in their order, against what `row` expects: what is not as it
    /// has to be.
    pub(super) fn judge(&self, accounts: &[Value], row: impl Fn(&Row, &Value) -> Result<()>) -> Vec<String> {
        let mut faults = Vec::new();
        let mut found = accounts.iter();
        for expected in self.rows {
            let judged = match found.next() {
                Some(account) => row(expected, account),
                None => Err(anyhow!("there is no account of it")),
            };
            if let Err(error) = judged {
                faults.push(format!("{} {}: {error:#}", self.name, expected.1));
            }
        }
        faults.extend(found.map(|account| format!("{}: nobody expects {account}", self.name)));
        faults
    }
}

/// An error where a value is not the one that is wanted.
pub(super) fn expect(value: &Value, wanted: Value, what: &str) -> Result<()> {
    ensure!(*value == wanted, "{what} is {value}, not {wanted}");
    Ok(())
}

/// How a provider interrupts.
pub(super) fn interrupts(provider: &str) -> Option<&'static str> {
    match provider {
        "sysfs" => None,
        "uio" => Some("INTx"),
        _ => Some("MSI-X"),
    }
}
