//! Where things are: the workspace, its target directory, the cache outside of it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command;

/// The directories a task works with.
pub(crate) struct Project {
    /// The workspace's root.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, where what a run leaves behind goes too.
    pub(crate) target: PathBuf,
    /// What is expensive to get again (kernels, tools), kept outside of the tree and shared between trees.
    pub(crate) cache: PathBuf,
}

impl Project {
    /// Asks cargo and the environment.
    pub(crate) fn find() -> Result<Self> {
        let text =
            command::output(Command::new(cargo()).args(["metadata", "--no-deps", "--format-version", "1"]))?;
        let metadata: Value = serde_json::from_str(&text).context("`cargo metadata` answered no JSON")?;
        let path = |key: &str| {
            let path = metadata[key].as_str().with_context(|| format!("`cargo metadata` tells no {key}"))?;
            Ok::<_, anyhow::Error>(PathBuf::from(path))
        };
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")?, cache: cache()? })
    }

    /// A cargo command at the workspace's root.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(cargo());
        command.current_dir(&self.root);
        command
    }

    /// Where run `name` leaves its logs.
    pub(crate) fn run_dir(&self, name: &str) -> PathBuf {
        self.target.join("vm").join(name)
    }
}

/// The cargo that runs this task, so that a chosen toolchain is kept.
fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// `NOIOMMU_CACHE`, or `noiommu` in the user's cache directory.
fn cache() -> Result<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(cache) = env::var_os("NOIOMMU_CACHE").filter(|value| !value.is_empty()) {
        // Relative paths are made absolute here, since commands run in other directories.
        return std::path::absolute(Path::new(&cache)).context("NOIOMMU_CACHE");
    }
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("noiommu"))
        .context(
            "neither NOIOMMU_CACHE, XDG_CACHE_HOME nor HOME says where the cache goes: set NOIOMMU_CACHE",
        )
}
