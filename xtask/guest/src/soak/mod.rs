//! Soak tests: what must not happen, for as long as one likes. `guardian`: driver processes are killed in the middle of DMA.
//! `storms`: all of memory is in motion while DMA goes on.

mod cgroup;
mod chance;
mod drive;
mod kills;
mod memory;
mod nvme;
mod pattern;
mod progress;
mod storms;

use anyhow::{Result, bail};

/// Runs what the words ask for: `guardian` and `storms SECONDS` by scenarios, the rest by this program for itself.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["guardian"] => kills::run(),
        ["storms", seconds] => storms::run(seconds),
        ["storm", name, seed] => storms::other(name, seed),
        ["driver", kind, address, way] => kills::driver::run(kind, address, way),
        ["quiet", kind, address] => kills::driver::quiet(kind, address),
        ["churn", cpu] => kills::churn::run(cpu),
        _ => bail!("soak what? {words:?}"),
    }
}
