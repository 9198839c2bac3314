//! Soak tests: what must not happen, for as long as one likes. `guardian`: driver processes are killed in the middle of DMA.

mod busy;
mod cgroup;
mod churn;
mod drive;
mod driver;
mod kills;
mod nvme;
mod ohci;
mod processes;
mod progress;
mod rescues;

use anyhow::{Result, bail};

/// Runs what the words ask for: `guardian` by the scenario, the rest by this program for itself.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["guardian"] => kills::run(),
        ["driver", kind, address, way] => driver::run(kind, address, way),
        ["quiet", kind, address] => driver::quiet(kind, address),
        ["churn", cpu] => churn::run(cpu),
        _ => bail!("soak what? {words:?}"),
    }
}
