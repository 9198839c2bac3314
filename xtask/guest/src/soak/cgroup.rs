//! Cgroups with little memory, below where the scenario has mounted them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup.
#[derive(Clone, Copy)]
pub(super) struct Cgroup(&'static str);

/// Where processes are that nobody has put elsewhere.
pub(super) const TOP: Cgroup = Cgroup(".");
/// For processes that are to run out of memory.
pub(super) const OOM: Cgroup = Cgroup("oom");
/// For processes that are killed all at once.
pub(super) const DOOMED: Cgroup = Cgroup("doomed");
/// For a process that has more memory than it may, and so swaps all the time.
pub(super) const SQUEEZED: Cgroup = Cgroup("squeezed");
/// For a driver whose memory the kernel is to take back as well as it can.
pub(super) const RECLAIMED: Cgroup = Cgroup("reclaimed");

/// Bytes that [`OOM`] has.
pub(super) const OOM_MOST: usize = 16 << 20;

impl Cgroup {
    /// Makes it, with so many bytes of memory at most.
    pub(super) fn make(self, most: Option<usize>) -> Result<()> {
        write(&Path::new(ROOT).join("cgroup.subtree_control"), "+memory")?;
        fs::create_dir_all(self.directory()).context(self.0)?;
        most.map_or(Ok(()), |most| write(&self.directory().join("memory.max"), &most.to_string()))
    }

    /// Puts this process into it.
    pub(super) fn enter(self) -> Result<()> {
        write(&self.directory().join("cgroup.procs"), "0")
    }

    /// Kills all processes in it at once.
    pub(super) fn kill(self) -> Result<()> {
        write(&self.directory().join("cgroup.kill"), "1")
    }

    /// Has the kernel take back so many bytes of it; answers whether it found as many.
    pub(super) fn reclaim(self, bytes: usize) -> bool {
        write(&self.directory().join("memory.reclaim"), &bytes.to_string()).is_ok()
    }

    fn directory(self) -> PathBuf {
        Path::new(ROOT).join(self.0)
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {text} to {}", file.display()))
}
