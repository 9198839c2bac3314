//! What runs inside the guests of `cargo xtask vm`: one subcommand for each scenario.

mod edu;
mod memory;
mod witness;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use edu::Edu;
use memory::{PAGE, PinnedPages};
use witness::Witness;

fn main() -> ExitCode {
    let scenario = std::env::args().nth(1).unwrap_or_default();
    let run = match scenario.as_str() {
        "stock-edu" => stock_edu,
        _ => {
            eprintln!("usage: noiommu-guest stock-edu");
            return ExitCode::from(2);
        }
    };
    // A scenario that fails leaves its session without `done`, which by itself fails the run.
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("noiommu-guest {scenario}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Pinned memory is where it is said to be: seen by the CPU, by a device and by the host, before and after compaction.
fn stock_edu() -> Result<()> {
    let mut witness = Witness::connect("stock-edu")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("/proc/sys/kernel/osrelease")?;
    witness.note(&format!("kernel {}", release.trim()))?;

    // The first half holds what the CPU wrote; the second is where the device stores.
    let mut pages = PinnedPages::new(16)?;
    let half = pages.pages() / 2;
    let before = pages.physical()?;
    for page in 0..half {
        let at = page * PAGE;
        pages.write(at, &witness.stream(at as u64, PAGE));
    }
    for (page, &pa) in before.iter().take(half).enumerate() {
        witness.expect_stream(pa, PAGE, (page * PAGE) as u64)?;
    }
    if witness.peek(before[0], 64)? != pages.read(0, 64) {
        bail!("the witness reads other bytes at {:#x} than this program does", before[0]);
    }

    let mut edu = Edu::open()?;
    // Off the start of the page, so that a lost in-page offset shows; the halves of the run lie around a compaction.
    let (offset, len) = (0x123, 777);
    let mut moved = 0;
    for (page, compact) in [(0, false), (1, true)] {
        let (source, target) = (before[page] + offset as u64, before[half + page] + offset as u64);
        edu.fetch(source, len)?;
        if compact {
            fs::write("/proc/sys/vm/compact_memory", "1").context("/proc/sys/vm/compact_memory")?;
        }
        edu.store(target, len)?;
        let sent = (page * PAGE + offset) as u64;
        witness.expect_stream(target, len, sent)?;
        if pages.read((half + page) * PAGE + offset, len) != witness.stream(sent, len) {
            bail!("what the device stored at {target:#x} is not in this program's memory");
        }
        moved += 2 * len;
    }

    if pages.physical()? != before {
        bail!("pinned pages moved under compaction");
    }
    witness.result(&format!(r#"{{"pages": {}, "bytes_moved": {moved}}}"#, pages.pages()))?;
    drop(edu);
    witness.done(0)
}
