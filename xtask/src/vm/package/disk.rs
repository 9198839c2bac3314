//! A disk with a fresh Debian on it, of the machine's own release: made once, kept in the cache by what it is made of.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::super::kernel::{self, Kernel};
use super::super::witness::to_hex;
use crate::command;
use crate::project::Project;
use crate::ui::Work;

/// What is on it besides the essential packages: what a machine that boots has. kmod comes with every kernel of Debian's.
const PACKAGES: &str = "systemd-sysv,udev,kmod,procps";

/// MiB of the disk. Its file is sparse.
const SIZE: u32 = 700;

/// So that a boot is not the first one, at which systemd would enable units by itself.
const MACHINE_ID: &str = "6e6f696f6d6d752d746573742d677565";

/// The disk, from the cache or put there now.
pub(super) fn get(project: &Project, kernel: &Kernel) -> Result<PathBuf> {
    let modules = kernel.modules.as_deref().context("this kernel comes without modules")?;
    let release = codename()?;
    // As of a day: the mirror's newer packages make no new disk, so that what passed yesterday passes today.
    let (_, source) = kernel::source_of(&release)?;
    let recipe = format!("{release} {PACKAGES} {SIZE} {MACHINE_ID} {} {}", kernel.origin, HOOKS.join("\n"));
    let key = to_hex(&Sha256::digest(recipe))[..16].to_owned();
    let home = project.cache.join("disks").join(format!("debian-{release}-{key}"));
    let disk = home.join("root.img");
    if !disk.is_file() {
        make(&home, &release, &source, modules, &kernel.release)?;
    }
    Ok(disk)
}

/// What is done in the new tree (`$1`) before it becomes a disk.
const HOOKS: [&str; 7] = [
    r#"mkdir -p "$1/lib/modules" && cp -r "$NOIOMMU_MODULES" "$1/lib/modules/""#,
    r#"chroot "$1" depmod "$NOIOMMU_RELEASE""#,
    r#"echo "$NOIOMMU_MACHINE_ID" > "$1/etc/machine-id""#,
    r#"echo guest > "$1/etc/hostname""#,
    // Without what is mounted in it while the packages are configured: /proc, /sys and devices.
    r#"mkdir "$NOIOMMU_TREE" && tar -C "$1" --one-file-system -cf - . | tar -C "$NOIOMMU_TREE" -xpf -"#,
    // What keeps services from being started and daemons from being found while it is made.
    r#"cd "$NOIOMMU_TREE" && rm -f usr/sbin/policy-rc.d && if [ -e sbin/start-stop-daemon.REAL ]; then mv sbin/start-stop-daemon.REAL sbin/start-stop-daemon; fi"#,
    r#"mke2fs -q -F -t ext4 -L root -d "$NOIOMMU_TREE" "$NOIOMMU_DISK" "$NOIOMMU_SIZE" && rm -rf "$NOIOMMU_TREE""#,
];

fn make(home: &Path, release: &str, source: &str, modules: &Path, kernel: &str) -> Result<()> {
    let scratch = home.with_extension(format!("partial-{}", process::id()));
    let result = (|| {
        fs::create_dir_all(&scratch)?;
        let (sources, disk) = (scratch.join("debian.sources"), scratch.join("root.img"));
        fs::write(&sources, source)?;
        File::create(&disk)?;
        let work =
            Work::start(format!("making a disk with a fresh Debian {release} (once; a minute or two)"));
        // Files of other users are made, and the hooks write into the cache: root's work.
        let mut make = Command::new(if rustix::process::geteuid().is_root() { "env" } else { "sudo" });
        if !rustix::process::geteuid().is_root() {
            make.args(["-n", "--preserve-env", "env"]);
        }
        make.args(["mmdebstrap", "--mode=root"]);
        make.args(["--quiet", "--variant=minbase", "--format=null"])
            .arg(format!("--include={PACKAGES}"))
            .args(["--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/locale/*"])
            .args(HOOKS.iter().map(|hook| format!("--customize-hook={hook}")))
            .args([release, "-"])
            .arg(&sources)
            .env("NOIOMMU_MODULES", modules)
            .env("NOIOMMU_RELEASE", kernel)
            .env("NOIOMMU_MACHINE_ID", MACHINE_ID)
            .env("NOIOMMU_DISK", &disk)
            .env("NOIOMMU_TREE", scratch.join("tree"))
            .env("NOIOMMU_SIZE", format!("{SIZE}M"));
        command::output(&mut make)?;
        ensure!(fs::metadata(&disk)?.len() > 0, "mmdebstrap made no disk");
        work.finish();
        match fs::rename(&scratch, home) {
            Err(_) if home.is_dir() => Ok(()),
            renamed => renamed.context("moving the disk to its place"),
        }
    })();
    let _ = fs::remove_dir_all(&scratch);
    result
}

fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no VERSION_CODENAME")?.trim_matches('"').to_owned())
}

/// A copy that a guest may write to, with holes where the disk has them.
pub(super) fn copy(disk: &Path, to: &Path) -> Result<()> {
    command::output(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).args([disk, to]))?;
    Ok(())
}
