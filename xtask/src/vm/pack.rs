//! What a guest has on board: programs, the shared objects they need, scripts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::initramfs::Archive;
use crate::command;
use crate::project::Project;
use crate::ui::Work;

/// The target of the guest's static programs.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Directories that a guest has even if they are empty.
const DIRECTORIES: [&str; 8] = ["bin", "dev", "output", "proc", "run", "scenarios", "sys", "tmp"];

/// Files for a guest, by their paths there, without the leading slash.
#[derive(Default)]
pub(super) struct Tree {
    files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Tree {
    /// Adds the file at `from` as `path`, with these permission bits.
    pub(super) fn add(&mut self, path: impl Into<String>, mode: u32, from: &Path) -> Result<()> {
        let contents = fs::read(from).with_context(|| format!("{}", from.display()))?;
        self.files.insert(path.into(), (mode, contents));
        Ok(())
    }

    /// Adds a file with this text.
    pub(super) fn add_text(&mut self, path: impl Into<String>, text: &str) {
        self.files.insert(path.into(), (0o644, text.as_bytes().to_vec()));
    }

    /// Adds programs to `bin`, and every shared object that the dynamic ones load, where their loader looks for it.
    pub(super) fn add_programs(&mut self, programs: &[PathBuf]) -> Result<()> {
        for program in programs {
            self.add(format!("bin/{}", name(program)), 0o755, program)?;
            self.add_needed(program)?;
        }
        Ok(())
    }

    /// Adds shared objects where `noiommu` is installed with them, and what they load in turn.
    pub(super) fn add_libraries(&mut self, libraries: &[PathBuf]) -> Result<()> {
        for library in libraries {
            self.add(format!("lib/noiommu/{}", name(library)), 0o755, library)?;
            self.add_needed(library)?;
        }
        Ok(())
    }

    fn add_needed(&mut self, binary: &Path) -> Result<()> {
        for object in needed(binary)? {
            // Through links, which a guest has no use for.
            self.add(object.trim_start_matches('/'), 0o755, Path::new(&object))?;
        }
        Ok(())
    }

    /// Every directory that holds a file, parents first.
    fn directories(&self) -> BTreeSet<&str> {
        let parents = self.files.keys().flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]));
        DIRECTORIES.into_iter().chain(parents).collect()
    }
}

/// Writes the initramfs: busybox, init (unless `files` have their own), the scenario, its helpers, and `files`.
pub(super) fn write(project: &Project, scenario: &str, mut files: Tree, to: &Path) -> Result<()> {
    let guest = project.root.join("xtask/guest");
    let busybox = command::which("busybox").context("no busybox: apt-get install busybox-static")?;
    files.add("bin/busybox", 0o755, &busybox)?;
    if !files.files.contains_key("init") {
        files.add("init", 0o755, &guest.join("init"))?;
    }
    files.add(format!("scenarios/{scenario}"), 0o644, &guest.join("scenarios").join(scenario))?;
    for script in fs::read_dir(guest.join("bin")).context("xtask/guest/bin")? {
        let script = script?.path();
        files.add(format!("bin/{}", name(&script)), 0o755, &script)?;
    }

    let mut archive = Archive::new(BufWriter::new(File::create(to)?));
    for directory in files.directories() {
        archive.directory(directory)?;
    }
    // The kernel opens the console for init before anything mounts /dev.
    archive.character_device("dev/console", 5, 1)?;
    archive.symlink("bin/sh", "busybox")?;
    for (path, (mode, contents)) in &files.files {
        archive.file(path, *mode, contents)?;
    }
    archive.finish()?;
    Ok(())
}

/// Builds programs (package and binary) that need no shared object, and answers where they are.
pub(super) fn build_static(project: &Project, programs: &[(&str, &str)]) -> Result<Vec<PathBuf>> {
    let work = Work::start("building the guest's programs");
    // A directory of its own: other flags in the same one would rebuild everything at every turn.
    let target = project.target.join("guest");
    let mut cargo = project.cargo();
    cargo.args(["build", "--release", "--target", GUEST_TARGET, "--target-dir"]).arg(&target);
    for (package, _) in programs {
        cargo.args(["--package", package]);
    }
    // The encoded form wins over every other place where flags may be set.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    command::output(&mut cargo)?;
    work.finish();
    let built = target.join(GUEST_TARGET).join("release");
    Ok(programs.iter().map(|(_, binary)| built.join(binary)).collect())
}

/// Builds programs or shared objects (package and file) like those that people get, and answers where they are.
pub(super) fn build(project: &Project, files: &[(&str, &str)]) -> Result<Vec<PathBuf>> {
    let work = Work::start("building what the guest shall run");
    let mut cargo = project.cargo();
    cargo.args(["build", "--release"]);
    for (package, _) in files {
        cargo.args(["--package", package]);
    }
    command::output(&mut cargo)?;
    work.finish();
    Ok(files.iter().map(|(_, file)| project.target.join("release").join(file)).collect())
}

/// Compiles `tests/c/NAME.c`, linked dynamically, and answers where the program is.
pub(super) fn compile_c(project: &Project, name: &str) -> Result<PathBuf> {
    let out = project.target.join("guest/c");
    fs::create_dir_all(&out)?;
    let program = out.join(name);
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(project.root.join("tests/c").join(format!("{name}.c")));
    command::output(&mut cc)?;
    Ok(program)
}

/// The shared objects that a binary needs, those that they need included: absolute paths on this machine.
fn needed(binary: &Path) -> Result<Vec<String>> {
    let mut ldd = Command::new("ldd");
    ldd.env("LC_ALL", "C").arg(binary);
    // A binary of ours that ldd cannot tell anything about is a static one, for which it fails.
    let Ok(text) = command::output(&mut ldd) else { return Ok(Vec::new()) };
    parse_ldd(&text).with_context(|| format!("{}", binary.display()))
}

/// Reads lines of `NAME => PATH (ADDRESS)` or `PATH (ADDRESS)`; the kernel's own object has no path.
fn parse_ldd(text: &str) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        ensure!(!line.ends_with("=> not found"), "{line}");
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        if path.starts_with('/') {
            let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
            paths.push(path.to_owned());
        }
    }
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f1)\n";
        assert_eq!(
            parse_ldd(text).unwrap(),
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert_eq!(parse_ldd("\tstatically linked\n").unwrap(), Vec::<String>::new());
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut tree = Tree::default();
        tree.files.insert("lib/x86_64-linux-gnu/libc.so.6".to_owned(), (0o755, Vec::new()));
        tree.files.insert("init".to_owned(), (0o755, Vec::new()));
        let directories: Vec<&str> = tree.directories().into_iter().collect();
        let place = |name| directories.iter().position(|directory| *directory == name).unwrap();
        assert!(place("lib") < place("lib/x86_64-linux-gnu"));
        assert_eq!(directories.len(), DIRECTORIES.len() + 2);
    }
}
