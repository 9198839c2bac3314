//! How much memory there is.

use std::fs;

use anyhow::{Context as _, Result};

const FILE: &str = "/proc/meminfo";

/// Bytes that can be had without swapping.
pub(super) fn available() -> Result<u64> {
    let text = fs::read_to_string(FILE).context(FILE)?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("MemAvailable")?;
    Ok(kib << 10)
}
