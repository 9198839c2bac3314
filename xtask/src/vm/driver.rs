//! `cargo xtask vm driver`: anybody's driver in a guest with a stock kernel, on an emulated device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::guest::{self, Scenario};
use super::pack::Tree;
use super::{HOST_PACKAGES, apt, kernel};
use crate::command;
use crate::project::Project;
use crate::ui::Work;

/// Where the device is on the guest's bus: no other one is put there by QEMU itself.
const SLOT: &str = "10";

/// The same as an address.
const ADDRESS: &str = "0000:00:10.0";

/// Where the guest's script finds what to run: the program and its arguments, a line each.
const COMMAND: &str = "driver";

/// What the script left of the program's output.
const SAID: &str = "said";

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct Driver {
    /// A package of this workspace, whose program of the same name is built; or the path of a program
    program: String,

    /// Arguments for it, after the address of the device
    arguments: Vec<String>,

    /// The device, as QEMU's -device has it. `drive=disk` and `netdev=net` are there for those that want one
    #[arg(long, default_value = super::EDU)]
    device: String,

    #[command(flatten)]
    stock: super::Stock,
}

impl Driver {
    /// The program of a package of this workspace, on an edu device.
    pub(crate) fn of(package: &str) -> Self {
        let (arguments, device) = (Vec::new(), super::EDU.to_owned());
        Self { program: package.to_owned(), arguments, device, stock: super::Stock::default() }
    }
}

/// Boots the guest, binds the device, runs the program with its address, and prints what it said.
pub(crate) fn driver(project: &Project, options: &Driver) -> Result<()> {
    ensure!(
        !options.device.contains("addr="),
        "--device {}: the guest's script looks for the device at {ADDRESS}, so leave out addr=",
        options.device
    );
    apt::install(&HOST_PACKAGES)?;
    let kernel = kernel::stock(project, options.stock.suite.as_deref())?;
    let program = program(project, &options.program)?;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut files = Tree::default();
    add_stripped(&mut files, project, &program)?;
    add_stripped(&mut files, project, &build(project, "noiommu-cli", "noiommu")?)?;
    let command: String =
        [&name].into_iter().chain(&options.arguments).flat_map(|word| [word, "\n"]).collect();
    files.add_text(COMMAND, &command);

    // One guest a process, so what its description borrows may live as long.
    let device: &'static str = format!("{},addr={SLOT}", options.device).leak();
    let devices: &'static [&'static str] = vec![device].leak();
    let wants = |word| options.device.split(',').any(|part| part == word);
    let scenario = Scenario {
        name: "driver",
        arguments: vec![ADDRESS],
        devices,
        drives: if wants("drive=disk") { &["disk"] } else { &[] },
        nets: if wants("netdev=net") { &["net"] } else { &[] },
        append: &[],
        witnessed: false,
    };
    let output = guest::run(project, &scenario, &kernel, files, &options.stock.run)?;
    let said = fs::read_to_string(output.join(SAID)).context("the guest handed over no output")?;
    print!("{said}");
    Ok(())
}

/// The program that is meant: one at a path, or that of a package, built like `cargo build` does.
fn program(project: &Project, meant: &str) -> Result<PathBuf> {
    if meant.contains('/') {
        let path = std::path::absolute(meant)?;
        ensure!(path.is_file(), "there is no program {meant}");
        return Ok(path);
    }
    build(project, meant, meant)
}

/// Builds a program in the profile in which it is tried out on the host too, so that little is built anew.
fn build(project: &Project, package: &str, program: &str) -> Result<PathBuf> {
    let work = Work::start(format!("building {program}"));
    command::output(project.cargo().args(["build", "--package", package, "--bin", program]))?;
    work.finish();
    Ok(project.target.join("debug").join(program))
}

/// Adds a program without its symbols, which are most of it, and the shared objects that it loads.
fn add_stripped(files: &mut Tree, project: &Project, program: &Path) -> Result<()> {
    let to = project.target.join("vm/stripped");
    fs::create_dir_all(&to).with_context(|| format!("{}", to.display()))?;
    let stripped = to.join(program.file_name().context("a program without a name")?);
    command::output(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    files.add_programs(&[stripped])
}
