//! Modules of stock kernels, for guests that want more than what is built in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use super::pack::Tree;

/// Where the guest's `load-modules` looks for them.
const PLACE: &str = "modules";

/// Puts modules and what they depend on into `files`, numbered in the order in which they are to be loaded. What is built
/// into the kernel is left out.
pub(super) fn add(kernel: &Kernel, names: &[&str], files: &mut Tree) -> Result<()> {
    let Some(home) = &kernel.modules else { return Ok(()) };
    let mut modules = Modules { files: Vec::new(), builtin: Vec::new(), order: Vec::new() };
    find(home, &mut modules.files)?;
    let builtin = fs::read_to_string(home.join("modules.builtin")).context("modules.builtin")?;
    modules.builtin = builtin.lines().map(|line| name(Path::new(line))).collect();
    for name in names {
        modules.want(name)?;
    }
    for (number, path) in modules.order.iter().enumerate() {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        files.add(format!("{PLACE}/{number:02}-{file}"), 0o644, path)?;
    }
    Ok(())
}

/// The modules of a kernel.
struct Modules {
    files: Vec<PathBuf>,
    builtin: Vec<String>,
    /// Those wanted so far: each after those that it depends on.
    order: Vec<PathBuf>,
}

impl Modules {
    fn want(&mut self, wanted: &str) -> Result<()> {
        let wanted = wanted.replace('-', "_");
        if self.builtin.contains(&wanted) {
            return Ok(());
        }
        let Some(path) = self.files.iter().find(|path| name(path) == wanted).cloned() else {
            bail!("this kernel has no module {wanted}");
        };
        if self.order.contains(&path) {
            return Ok(());
        }
        for needed in depends(&contents(&path)?) {
            self.want(&needed)?;
        }
        self.order.push(path);
        Ok(())
    }
}

/// All modules below a directory.
fn find(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), found)?;
        } else if entry.file_name().to_string_lossy().contains(".ko") {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// The name of the module in a file: dashes and underscores are the same.
fn name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let output =
            Command::new("xz").args(["-dc"]).arg(path).output().context("xz: apt-get install xz-utils")?;
        if !output.status.success() {
            bail!("{} does not unpack", path.display());
        }
        return Ok(output.stdout);
    }
    fs::read(path).with_context(|| format!("{}", path.display()))
}

/// What a module says that it depends on: a string of its section `.modinfo`, `depends=A,B`.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let text = &module[at + KEY.len()..];
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let text = String::from_utf8_lossy(&text[..end]);
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read() {
        assert_eq!(
            depends(b"\x7fELF..\0license=GPL\0depends=uio,virtio_ring\0name=x\0"),
            ["uio", "virtio_ring"]
        );
        assert_eq!(depends(b"\0depends=\0name=x\0"), Vec::<String>::new());
        assert_eq!(depends(b"nothing"), Vec::<String>::new());
    }

    #[test]
    fn names_are_told_from_files() {
        assert_eq!(name(Path::new("kernel/drivers/vfio/pci/vfio-pci.ko.xz")), "vfio_pci");
        assert_eq!(name(Path::new("uio.ko")), "uio");
    }
}
