//! What the tutorial ends with is the driver that the project has.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::project::Project;

/// The project's own.
const OURS: &str = "drivers/edu/src";

/// What the reader has written.
const THEIRS: &str = "drivers/my-edu/src";

/// Files that differ, but for the name of the package and what the comment at the top says of it.
pub(super) fn check(project: &Project, clone: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let ours = project.root.join(OURS);
    for entry in fs::read_dir(&ours).with_context(|| format!("{}", ours.display()))? {
        let name = entry?.file_name();
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("{}", path.display()));
        let (mine, other) = (read(&ours.join(&name))?, read(&clone.join(THEIRS).join(&name))?);
        if body(&mine) != body(&other.replace("my_edu", "noiommu_edu").replace("my-edu", "noiommu-edu")) {
            faults.push(format!("{OURS}/{0} is not what the tutorial makes of {THEIRS}/{0}", name.display()));
        }
    }
    Ok(faults)
}

/// All behind the comment at the top.
fn body(text: &str) -> String {
    text.lines().skip_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n")
}
