//! Processes of this guest, as /proc shows them.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal};

/// All processes that run a program: not the kernel's threads, nor what is dead and not waited for.
pub(super) fn running() -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(number) = name.parse::<u32>() else { continue };
        if fs::read_link(path.join("exe")).is_ok() {
            found.insert(number);
        }
    }
    Ok(found)
}

/// The name of the program that a process runs, as far as the kernel keeps it.
pub(super) fn name(number: u32) -> Result<String> {
    let path = format!("/proc/{number}/comm");
    Ok(fs::read_to_string(&path).context(path)?.trim().to_owned())
}

/// Kills at once.
pub(super) fn kill(number: u32) -> Result<()> {
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw).context("no process has such a number")?;
    rustix::process::kill_process(pid, Signal::KILL).with_context(|| format!("killing process {number}"))
}
