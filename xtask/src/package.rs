//! `cargo xtask package`: the package for Debian and what is like it. What it consists of is in `cli/Cargo.toml` and `packaging`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::project::Project;
use crate::ui::Work;
use crate::{command, vm};

/// The program that packs, in the version that the metadata is written for.
const CARGO_DEB: &str = "3.8.0";

/// What it needs of the host: strip, dpkg-shlibdeps (which tells the libraries that the programs need), and xz.
const HOST_PACKAGES: [&str; 3] = ["binutils", "dpkg-dev", "xz-utils"];

/// How the package is made.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Have lintian look at it, which is installed if it is missing
    #[arg(long, conflicts_with = "crates")]
    lintian: bool,

    /// Make the packages of the published crates instead, as cargo would publish them
    #[arg(long)]
    crates: bool,
}

/// Makes the package, twice, since the same tree is to give the same bytes, and says where it is.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    if options.crates {
        return crates(project);
    }
    let deb = build(project)?;
    let work = Work::start("packing once more");
    let again = project.target.join("debian/noiommu-again.deb");
    pack(project, &again)?;
    work.finish();
    ensure!(fs::read(&deb)? == fs::read(&again)?, "two packages of one tree differ: {}", again.display());
    fs::remove_file(again)?;
    if options.lintian {
        vm::install(&["lintian"])?;
        command::inherit(Command::new("lintian").args(["--fail-on", "error,warning", "--info"]).arg(&deb))?;
    }
    println!("{}", deb.display());
    Ok(())
}

/// The crates that are published, in the order in which they can be.
pub(crate) const PUBLISHED: [&str; 7] = [
    "noiommu-uapi",
    "noiommu-core",
    "noiommu",
    "noiommu-edu",
    "noiommu-nvme",
    "noiommu-virtio",
    "noiommu-conformance",
];

/// Makes their packages, and has cargo say whether anything is missing in their metadata. Nothing is published.
pub(crate) fn crates(project: &Project) -> Result<()> {
    let mut cargo = project.cargo();
    // Building them is what all other steps do; that what is packed is enough shows in that all sources are in it.
    cargo.args(["package", "--no-verify", "--allow-dirty", "--locked", "--target-dir"]);
    cargo.arg(project.target.join("crates"));
    for name in PUBLISHED {
        cargo.args(["--package", name]);
    }
    let output = cargo.output().context("cargo package")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo package failed:\n{}", command::tail(&said, 20));
    ensure!(!said.contains("manifest has no"), "metadata is missing:\n{}", command::tail(&said, 20));
    let mut metadata = project.cargo();
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&command::output(&mut metadata)?)?;
    let packages = metadata["packages"].as_array().context("`cargo metadata` tells no packages")?;
    for name in PUBLISHED {
        let package = packages.iter().find(|package| package["name"] == name);
        let package = package.with_context(|| format!("there is no crate {name}"))?;
        for key in ["description", "license", "repository", "readme", "rust_version"] {
            ensure!(package[key].is_string(), "{name} has no {key}");
        }
        for key in ["keywords", "categories"] {
            ensure!(package[key].as_array().is_some_and(|list| !list.is_empty()), "{name} has no {key}");
        }
        ensure!(package["publish"].is_null(), "{name} is not to be published");
    }
    println!("{} crates are ready to be published: {}", PUBLISHED.len(), PUBLISHED.join(", "));
    Ok(())
}

/// Makes the package and answers where it is.
pub(crate) fn build(project: &Project) -> Result<PathBuf> {
    vm::install(&HOST_PACKAGES)?;
    cargo_deb(project)?;
    let work = Work::start("building what is packed");
    let mut cargo = project.cargo();
    cargo.args([
        "build",
        "--release",
        "--locked",
        "--package",
        "noiommu-cli",
        "--package",
        "noiommu-preload",
    ]);
    command::output(&mut cargo)?;
    work.finish();
    prepare(project)?;

    let deb = project.target.join("debian/noiommu.deb");
    let work = Work::start("packing");
    pack(project, &deb)?;
    work.finish();
    Ok(deb)
}

/// Packs what is built.
fn pack(project: &Project, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file without a directory")?)?;
    let mut pack = Command::new(cargo_deb(project)?);
    pack.current_dir(&project.root)
        .args(["--no-build", "--locked", "--package", "noiommu-cli", "--output"])
        .arg(to)
        .env("SOURCE_DATE_EPOCH", changed(project)?);
    command::output(&mut pack)?;
    Ok(())
}

/// The manual pages and the completions, and the binaries without what only debuggers read, where the package takes them from.
fn prepare(project: &Project) -> Result<()> {
    let release = project.target.join("release");
    let (program, place) = (release.join("noiommu"), release.join("package"));
    // What an earlier tree had made is not to be in it.
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place)?;
    let man = place.join("man");
    command::output(Command::new(&program).arg("man").arg(&man))?;
    // Without a name and a time in it, so that the same page gives the same bytes.
    let pages = fs::read_dir(&man)?.map(|page| Ok(page?.path())).collect::<Result<Vec<_>>>()?;
    command::output(Command::new("gzip").args(["-9", "--no-name", "--force"]).args(&pages))?;
    for name in ["noiommu", "libnoiommu_preload.so"] {
        let mut strip = Command::new("strip");
        strip.args(["--strip-unneeded", "--remove-section=.comment", "-o"]).arg(place.join(name));
        command::output(strip.arg(release.join(name)))?;
    }
    for shell in ["bash", "zsh", "fish"] {
        let text = command::output(Command::new(&program).args(["completions", shell]))?;
        fs::write(place.join(format!("noiommu.{shell}")), text)?;
    }
    Ok(())
}

/// When the tree was changed last, in seconds; without git, when the changelog was.
fn changed(project: &Project) -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(&project.root).args(["log", "-1", "--format=%ct"]);
    if let Ok(time) = command::output(&mut git) {
        return Ok(time.trim().to_owned());
    }
    let mut parse = Command::new("dpkg-parsechangelog");
    parse.current_dir(&project.root).args([
        "--file",
        "packaging/debian/changelog",
        "--show-field",
        "Timestamp",
    ]);
    Ok(command::output(&mut parse)?.trim().to_owned())
}

/// The program that packs, from the cache or put there now.
fn cargo_deb(project: &Project) -> Result<PathBuf> {
    install(project, "cargo-deb", CARGO_DEB, &["--no-default-features"])
}

/// A program of cargo's in the cache, built there if it is missing.
pub(crate) fn install(project: &Project, name: &str, version: &str, more: &[&str]) -> Result<PathBuf> {
    let tools = project.cache.join("tools");
    let home = tools.join(format!("{name}-{version}"));
    let program = home.join("bin").join(name);
    if !program.is_file() {
        let scratch = tools.join(format!("partial-{}", process::id()));
        let work = Work::start(format!("installing {name} {version} (once; some minutes)"));
        // Beside its place, and moved there when it is whole.
        let installed = install_to(project, name, version, more, &scratch).and_then(|()| {
            let _ = fs::remove_dir_all(&home);
            fs::rename(&scratch, &home).with_context(|| format!("moving {name} to its place"))
        });
        let _ = fs::remove_dir_all(&scratch);
        installed?;
        work.finish();
    }
    Ok(program)
}

fn install_to(project: &Project, name: &str, version: &str, more: &[&str], scratch: &Path) -> Result<()> {
    let target = scratch.join("target");
    let mut cargo = project.cargo();
    cargo.args(["install", name, "--locked", "--version", version, "--root"]).arg(scratch);
    cargo.args(more).arg("--target-dir").arg(&target);
    command::output(&mut cargo)?;
    Ok(fs::remove_dir_all(target)?)
}
