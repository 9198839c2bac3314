//! The NVMe driver against the kernel's: what one of them writes the other one reads, and how fast both are.
//!
//! `noiommu-guest nvme verify short|long PROVIDER...` goes once through each provider and leaves a line of JSON in [`ACCOUNTS`] for
//! each; `noiommu-guest nvme bench ROUNDS MILLISECONDS` leaves the figures there. `noiommu-guest nvme ours ...` is what both have in a
//! process of its own: a driver, from taking the device to giving it back.

mod bench;
mod kernel;
mod ours;
mod verify;

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::matrix;

/// Vendor and device id of QEMU's controller.
const ID: (u16, u16) = (0x1b36, 0x0010);

/// Where the accounts go, a line of JSON each.
const ACCOUNTS: &str = "/output/nvme";

/// The provider that a program is to use, if not the best.
const PROVIDER: &str = "NOIOMMU_PROVIDER";

/// Runs what the words ask for.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["ours", what, address, ref rest @ ..] => ours::run(what, address, rest),
        ["verify", form, ref providers @ ..] => verify::run(form, providers),
        ["bench", rounds, milliseconds] => bench::run(rounds.parse()?, milliseconds.parse()?),
        _ => bail!("usage: nvme verify short|long PROVIDER... | nvme bench ROUNDS MILLISECONDS"),
    }
}

/// The controller's PCI address.
fn address() -> Result<String> {
    matrix::addresses(ID)?.into_iter().next().context("no NVMe controller in this machine")
}

/// Has a process of its own drive the device, which `provider` has; answers what it tells.
fn drive(provider: &str, what: &str, address: &str, words: &[&str]) -> Result<Value> {
    let mut program = Command::new("/proc/self/exe");
    program.args(["nvme", "ours", what, address]).args(words).stdout(Stdio::piped());
    if provider != "auto" {
        program.env(PROVIDER, provider);
    }
    let ran = program.output().context("running a driver")?;
    ensure!(ran.status.success(), "{what} by {provider}: {}", String::from_utf8_lossy(&ran.stderr).trim());
    serde_json::from_slice(&ran.stdout).context("what a driver tells is no JSON")
}
