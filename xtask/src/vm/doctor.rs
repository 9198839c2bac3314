//! `noiommu doctor` in guests that are set up wrongly on purpose: what is wrong is found, and what is told mends it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::guest::{self, Scenario};
use super::kernel::Kernel;
use super::pack::{self, Tree};
use super::{Choice, EDU, OnKernel, STOCK_PROGRAMS, apt};
use crate::command;
use crate::project::Project;

/// Where a package of the kernel has the modules that doctor has loaded, and what they need: in the order of loading.
const MODULES: [&str; 2] = ["kernel/drivers/uio/uio.ko", "kernel/drivers/uio/uio_pci_generic.ko"];

/// Boots the guest as it comes; a stock kernel once more, locked down, which no command mends.
pub(crate) fn doctor(project: &Project, options: &OnKernel) -> Result<()> {
    let kernel = options.kernel(project)?;
    boot(project, options, &kernel, "settings", &[])?;
    if matches!(options.kernel, Choice::Stock) {
        boot(project, options, &kernel, "lockdown", &["lockdown=integrity"])?;
    }
    Ok(())
}

fn boot(
    project: &Project,
    options: &OnKernel,
    kernel: &Kernel,
    part: &'static str,
    append: &'static [&'static str],
) -> Result<()> {
    let mut files = Tree::default();
    files.add_programs(&pack::build_static(project, &STOCK_PROGRAMS)?)?;
    apt::install(&["libcap2-bin"])?;
    files.add_programs(&[setcap().context("no setcap: apt-get install libcap2-bin")?])?;
    add_modules(&mut files, project, kernel)?;
    let scenario = Scenario {
        name: "doctor",
        arguments: vec![part],
        devices: &[EDU],
        drives: &[],
        nets: &[],
        append,
        witnessed: false,
    };
    guest::run(project, &scenario, kernel, files, &options.stock.run)?;
    Ok(())
}

/// The program that gives capabilities to files, of the package libcap2-bin.
fn setcap() -> Option<PathBuf> {
    command::which("setcap").or_else(|| Some(PathBuf::from("/usr/sbin/setcap")).filter(|path| path.is_file()))
}

/// Adds the kernel's configuration, and modules with the list that modprobe reads, where the kernel comes with modules.
fn add_modules(files: &mut Tree, project: &Project, kernel: &Kernel) -> Result<()> {
    let release = &kernel.release;
    let Some(home) = kernel.image.parent().and_then(Path::parent) else { return Ok(()) };
    let config = home.join(format!("boot/config-{release}"));
    if config.is_file() {
        files.add(format!("boot/config-{release}"), 0o644, &config)?;
    }
    let modules = home.join("lib/modules").join(release);
    if !modules.join("kernel").is_dir() {
        return Ok(());
    }
    for module in MODULES {
        let (plain, packed) = (modules.join(module), modules.join(format!("{module}.xz")));
        let file = if plain.is_file() { plain } else { unpacked(project, &packed)? };
        files.add(format!("lib/modules/{release}/{module}"), 0o644, &file)?;
    }
    let [uio, generic] = MODULES;
    files.add_text(format!("lib/modules/{release}/modules.dep"), &format!("{uio}:\n{generic}: {uio}\n"));
    Ok(())
}

/// A module that is packed with xz, unpacked.
fn unpacked(project: &Project, packed: &Path) -> Result<PathBuf> {
    let busybox = command::which("busybox").context("no busybox: apt-get install busybox-static")?;
    let output = Command::new(busybox).arg("xzcat").arg(packed).output().context("busybox xzcat")?;
    anyhow::ensure!(output.status.success(), "{} cannot be unpacked", packed.display());
    let directory = project.target.join("guest/modules");
    fs::create_dir_all(&directory)?;
    let to = directory.join(packed.file_stem().context("a module without a name")?);
    fs::write(&to, output.stdout)?;
    Ok(to)
}
