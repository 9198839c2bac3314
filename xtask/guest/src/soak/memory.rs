//! How much memory there is, and how much of it is pinned.

use std::fs;

use anyhow::{Context as _, Result};

/// Bytes that can be had without swapping.
pub(super) fn available() -> Result<u64> {
    let kib = number("/proc/meminfo", "MemAvailable:")?;
    Ok(kib << 10)
}

/// Pins that are held now, by anybody: a page that is pinned twice counts twice.
pub(super) fn pins() -> Result<u64> {
    let count = |name| number("/proc/vmstat", name);
    // Read in this order, it never comes out as less than nothing.
    let released = count("nr_foll_pin_released")?;
    Ok(count("nr_foll_pin_acquired")?.saturating_sub(released))
}

/// The number behind a name, in a file of names and numbers.
fn number(file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    let word = text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next())?
    });
    let word = word.with_context(|| format!("{file} has no {name}"))?;
    word.parse().with_context(|| format!("{name} in {file}"))
}
