//! A cgroup with little memory, for processes that are to run out of it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Where the scenario has mounted cgroups.
const ROOT: &str = "/sys/fs/cgroup";

/// Its directory.
const GROUP: &str = "/sys/fs/cgroup/oom";

/// Bytes that it has.
pub(super) const MOST: usize = 16 << 20;

/// Makes it.
pub(super) fn make() -> Result<()> {
    write(&Path::new(ROOT).join("cgroup.subtree_control"), "+memory")?;
    fs::create_dir_all(GROUP).context(GROUP)?;
    write(&Path::new(GROUP).join("memory.max"), &MOST.to_string())
}

/// Puts this process into it.
pub(super) fn enter() -> Result<()> {
    write(&Path::new(GROUP).join("cgroup.procs"), "0")
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {text} to {}", file.display()))
}
