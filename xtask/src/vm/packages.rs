//! Packages of the distribution that are unpacked into the cache, not installed.

use std::fs;
use std::path::PathBuf;
use std::process::{self, Command};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::apt::{Apt, Package};
use super::kernel;
use super::witness::to_hex;
use crate::command;
use crate::project::Project;
use crate::ui::Work;

/// A package of the machine's own suite with those that it depends on, as far as their names begin with one of `prefixes`, unpacked
/// into one directory. `None`: there is no such package. The answer has the version, too.
pub(crate) fn unpacked(
    project: &Project,
    name: &str,
    prefixes: &[&str],
) -> Result<Option<(PathBuf, String)>> {
    kernel::with_lists(project, None, |apt| {
        let Some(all) = closure(apt, name, prefixes)? else { return Ok(None) };
        let version = all.first().context("a package without itself")?.version.clone();
        let hashes: String = all.iter().map(|package| package.sha256.as_str()).collect();
        let key = to_hex(&Sha256::digest(hashes))[..16].to_owned();
        let home = project.cache.join("packages").join(format!("{name}-{key}"));
        if !home.is_dir() {
            fetch(apt, &all, &home)?;
        }
        Ok(Some((home, version)))
    })
}

/// The package first, then what it needs.
fn closure(apt: &Apt, name: &str, prefixes: &[&str]) -> Result<Option<Vec<Package>>> {
    let Some(first) = apt.candidate(name)? else { return Ok(None) };
    let mut all = vec![first];
    let mut looked = 0;
    while let Some(package) = all.get(looked) {
        looked += 1;
        for needed in package.depends.clone() {
            let wanted = prefixes.iter().any(|prefix| needed.starts_with(prefix));
            if !wanted || all.iter().any(|package| package.name == needed) {
                continue;
            }
            match apt.candidate(&needed)? {
                Some(package) => all.push(package),
                None => bail!("{name} needs {needed}, which the package lists do not know"),
            }
        }
    }
    Ok(Some(all))
}

fn fetch(apt: &Apt, packages: &[Package], home: &std::path::Path) -> Result<()> {
    // Beside its place, so that it gets there by one rename.
    let scratch = home.with_extension(format!("partial-{}", process::id()));
    let result = (|| {
        let tree = scratch.join("tree");
        fs::create_dir_all(&tree)?;
        for package in packages {
            let download = scratch.join(&package.name);
            fs::create_dir_all(&download)?;
            let deb = apt.download(package, &download)?;
            let hash = kernel::sha256(&deb)?;
            ensure!(hash == package.sha256, "{} has SHA-256 {hash}, not {}", deb.display(), package.sha256);
            let work = Work::start(format!("unpacking {}", package.name));
            command::output(Command::new("dpkg-deb").arg("--extract").args([&deb, &tree]))?;
            work.finish();
        }
        match fs::rename(&tree, home) {
            Err(_) if home.is_dir() => Ok(()),
            renamed => renamed.context("moving the unpacked packages to their place"),
        }
    })();
    let _ = fs::remove_dir_all(&scratch);
    result
}
