//! The oldest compiler that the published crates are for, as `rust-version` tells, and a compiler that is older still to show it.
//!
//! Compilers come from the distribution's packages, and the one that is wanted is not among them. The older one that is lacks a few
//! things that the crates use and the wanted one has: chains of `let`, and some small functions, which it has behind features. With those
//! on, it finds everything else that came later, in the language and in the standard library.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::package::PUBLISHED;
use crate::project::Project;
use crate::{command, vm};

/// The packages with the compiler, by the releases of the distribution.
const PACKAGES: [&str; 2] = ["rustc-web", "rustc"];
/// What it needs besides.
const NEEDED: [&str; 2] = ["libstd-rust", "libllvm"];
/// The version of the compiler.
const VERSION: &str = "1.85.";
/// What it has behind features: chains of `let` and chunks of slices are there since 1.88, the others since 1.86 or 1.87.
const FEATURES: &str =
    "let_chains,const_str_split_at,unsigned_is_multiple_of,integer_sign_cast,slice_as_chunks";

/// The packages that use them: ours, and those of others that are for 1.88, too.
const WITH_FEATURES: &str = "noiommu*|hdrhistogram|safe-mmio|virtio-drivers";

/// What comes as a package of the distribution, and is built with the same compiler.
const PACKAGED: [&str; 2] = ["noiommu-preload", "noiommu-cli"];

/// Checks them. The answer is why it could not, if it could not.
pub(crate) fn check(project: &Project) -> Result<Option<String>> {
    let mut found = None;
    for package in PACKAGES {
        if let Some((tree, version)) = vm::unpacked(project, package, &NEEDED)?
            && version.starts_with(VERSION)
        {
            found = Some((tree, version));
            break;
        }
    }
    let Some((tree, version)) = found else {
        return Ok(Some(format!("this machine's apt has no compiler {VERSION}*: Debian 12 and 13 have")));
    };
    let rustc = tree.join("usr/bin/rustc");
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    let told = command::output(Command::new(&rustc).arg("--version").env("LD_LIBRARY_PATH", &libraries));
    let told = match told {
        Ok(told) => told,
        Err(error) => {
            return Ok(Some(format!("the compiler of rustc {version} does not run here: {error:#}")));
        }
    };
    let scratch = project.target.join("msrv");
    fs::create_dir_all(&scratch)?;
    let (own, wrapper) = (scratch.join("rustc"), scratch.join("with-feature"));
    // Its libraries are for itself: cargo and the programs that it starts have their own.
    let exec = |more: &str| {
        let (libraries, rustc) = (libraries.display(), rustc.display());
        format!("#!/bin/sh\nLD_LIBRARY_PATH='{libraries}' exec '{rustc}' {more}\n")
    };
    script(&own, &exec("\"$@\""))?;
    let bootstrap = format!(
        "#!/bin/sh\ncase $CARGO_PKG_NAME in\n{WITH_FEATURES}) ;;\n*) exec \"$@\" ;;\nesac\n\
         RUSTC_BOOTSTRAP=1 exec \"$@\" '-Zcrate-attr=feature({FEATURES})'\n"
    );
    script(&wrapper, &bootstrap)?;
    println!("{} checks them", told.trim());
    let check = |wrapper: Option<&Path>, packages: &[&str], target: &str| {
        let mut cargo = project.cargo();
        cargo.args(["check", "--locked", "--ignore-rust-version", "--target-dir"]).arg(scratch.join(target));
        for package in packages {
            cargo.args(["--package", package]);
        }
        cargo.env("RUSTC", &own).env_remove("RUSTUP_TOOLCHAIN");
        if let Some(wrapper) = wrapper {
            cargo.env("RUSTC_WRAPPER", wrapper);
        }
        cargo
    };
    command::inherit(&mut check(Some(&wrapper), &[&PUBLISHED[..], &PACKAGED].concat(), "target"))?;
    // That it is an older compiler, and that it would see what came later: without the features it refuses the first of them. Elsewhere,
    // since cargo goes by the compiler, not by its wrapper.
    let refused = check(None, &PUBLISHED[..1], "control").output().context("cargo check")?;
    let said = String::from_utf8_lossy(&refused.stderr);
    if refused.status.success() || !said.contains("unstable") && !said.contains("not yet stable") {
        bail!("the older compiler does not miss {FEATURES}:\n{}", command::tail(&said, 20));
    }
    ensure!(
        declared(project)? == "1.88",
        "rust-version is not 1.88, the first with {FEATURES}: look at msrv.rs"
    );
    Ok(None)
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// What the workspace declares.
fn declared(project: &Project) -> Result<String> {
    let text = fs::read_to_string(project.root.join("Cargo.toml"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("rust-version = "));
    Ok(line.context("the workspace has no rust-version")?.trim_matches('"').to_owned())
}
