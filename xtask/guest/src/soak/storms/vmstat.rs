//! What the kernel has done to memory, as it counts it.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};

const FILE: &str = "/proc/vmstat";

/// Beginnings of the names that are of interest.
const NAMES: [&str; 8] =
    ["compact_", "pgmigrate_", "thp_", "pgsteal_", "pswp", "pgscan_", "ksm_", "pgmajfault"];

/// All counters of interest.
pub(super) fn read() -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(FILE).context(FILE)?;
    let counters = text.lines().filter_map(|line| line.split_once(' '));
    let wanted = counters.filter(|(name, _)| NAMES.iter().any(|prefix| name.starts_with(prefix)));
    Ok(wanted.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
}

/// By how much each has grown, those that did not left out.
pub(super) fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Value {
    let grown = after
        .iter()
        .map(|(name, value)| (name, value.saturating_sub(before.get(name).copied().unwrap_or(0))));
    Value::Object(
        grown.filter(|(_, by)| *by > 0).map(|(name, by)| (name.clone(), by.into())).collect::<Map<_, _>>(),
    )
}
