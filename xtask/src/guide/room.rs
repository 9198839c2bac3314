//! The reader's clone: this tree, as it would be committed, in a directory of its own.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::project::Project;

/// The name that `git clone` gives it.
const NAME: &str = "noiommu";

/// Copies every file that git knows or would add, with the times when they were written: cargo then takes what it has built of
/// this tree for what it would build of that one, which is the same.
pub(super) fn make(project: &Project) -> Result<PathBuf> {
    let room = project.target.join("guide/room");
    if room.exists() {
        fs::remove_dir_all(&room).with_context(|| format!("removing {}", room.display()))?;
    }
    let clone = room.join(NAME);
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(&project.root);
    let names = command::output(&mut git).context("the guide is followed in a clone, made by git")?;
    let mut copied = 0;
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        let from = project.root.join(name);
        // One that was deleted and is not committed so.
        if from.is_file() {
            copy(&from, &clone.join(name)).with_context(|| name.to_owned())?;
            copied += 1;
        }
    }
    // Build scripts look at the times of directories, too; those are set last, when nothing is put into them any more.
    let mut directories: Vec<&Path> =
        names.split('\0').flat_map(|name| Path::new(name).ancestors().skip(1)).collect();
    directories.sort();
    directories.dedup();
    for directory in directories.into_iter().rev().filter(|directory| clone.join(directory).is_dir()) {
        keep_time(&project.root.join(directory), &File::open(clone.join(directory))?)?;
    }
    ensure!(copied > 0, "git knows no file of {}", project.root.display());
    Ok(clone)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file without a directory")?)?;
    fs::copy(from, to)?;
    keep_time(from, &File::options().write(true).open(to)?)
}

fn keep_time(from: &Path, to: &File) -> Result<()> {
    let modified = fs::metadata(from)?.modified()?;
    to.set_times(FileTimes::new().set_modified(modified))?;
    Ok(())
}
