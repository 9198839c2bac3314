//! The administrator's unsafe opt-in.
//!
//! Without an IOMMU, whoever drives a device can make it read and write any memory of the machine. The kernel's own
//! no-IOMMU mode therefore wants `enable_unsafe_noiommu_mode` set and taints the kernel; so does the engine: a file in
//! /run, which only root can write and which is gone after a restart, says yes, and opening a device sets the same taint.
//! Both are given and taken back together: whoever allows the one has allowed the other in effect.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use noiommu_core::Errno;

use crate::kernel::{self, Module};
use crate::memory::kernel_release;
use crate::{Error, ErrorKind, Result, files};

/// Where the opt-in is kept.
const DIRECTORY: &str = "/run/noiommu";
const FILE: &str = "enable_unsafe_noiommu_mode";
/// TAINT_USER: "userspace asked for something unsafe".
const TAINT_USER: u64 = 1 << 6;

/// What the opt-in means, for the one who gives it.
pub const WARNING: &str = "\
UNSAFE: without an IOMMU nothing confines a device. A program that drives one can make it read and
write all memory of this machine, the kernel's included; a mistake in a driver corrupts memory
silently. The kernel will be marked as tainted (flag U) when a device is opened.";

fn path() -> PathBuf {
    Path::new(DIRECTORY).join(FILE)
}

/// Whether the opt-in is given.
#[must_use]
pub fn is_enabled() -> bool {
    is_given(&path(), 0)
}

/// The file counts when it says yes and nobody but `owner` could have written it.
fn is_given(path: &Path, owner: u32) -> bool {
    let trusted = |path: &Path| {
        files::metadata(path).is_ok_and(|metadata| {
            let link = metadata.st_mode & libc::S_IFMT == libc::S_IFLNK;
            !link && metadata.st_uid == owner && metadata.st_mode & 0o022 == 0
        })
    };
    path.parent().is_some_and(trusted)
        && trusted(path)
        && files::read_text(path).is_ok_and(|text| text == "Y")
}

/// The kernel's own no-IOMMU mode, `enable_unsafe_noiommu_mode` of VFIO: on or off; `None` where VFIO is not loaded, or
/// always wants an IOMMU.
#[must_use]
pub fn kernel_mode() -> Option<bool> {
    kernel::unsafe_mode(Path::new("/"))
}

/// Gives the opt-in, until the next restart, and turns the kernel's own mode on where there is one. Only root can.
///
/// # Errors
/// What the file system answers; EACCES without root.
pub fn enable() -> Result<()> {
    load_vfio();
    set_kernel_mode(Path::new("/"), true)?;
    give()
}

/// VFIO has the parameter once it is loaded. That it cannot be loaded keeps nobody from the engine.
fn load_vfio() {
    if kernel_mode().is_none()
        && Module::find(Path::new("/"), &kernel_release(), "vfio") == Module::Loadable
        && let Err(error) = kernel::modprobe("vfio")
    {
        tracing::warn!(%error, "the kernel's VFIO could not be loaded, so its own no-IOMMU mode stays off: modprobe vfio");
    }
}

/// Writes the parameter of the machine whose files are below `root`, if it has it.
fn set_kernel_mode(root: &Path, on: bool) -> Result<()> {
    let Some(is_on) = kernel::unsafe_mode(root) else { return Ok(()) };
    let failed = |error: Error| {
        error.with_remedy(
            "run it as root, where /sys can be written (not in a container with a read-only /sys)",
        )
    };
    if is_on != on {
        let value = if on { "Y" } else { "N" };
        files::write_line(&root.join(kernel::UNSAFE_MODE.trim_start_matches('/')), value).map_err(
            |error| failed(Error::system(format_args!("writing {value} to {}", kernel::UNSAFE_MODE), error)),
        )?;
    }
    match kernel::unsafe_mode(root) {
        Some(is_on) if is_on == on => Ok(()),
        _ => Err(failed(Error::new(
            ErrorKind::System,
            Errno::EIO,
            format!("{} did not take what was written", kernel::UNSAFE_MODE),
        ))),
    }
}

/// Writes the engine's file.
fn give() -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::system(format_args!("writing {}", path().display()), error).with_remedy("run it as root")
    };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY).map_err(failed)?;
    let mut file = tempfile_in(DIRECTORY).map_err(failed)?;
    file.1.write_all(b"Y\n").map_err(failed)?;
    fs::rename(&file.0, path()).map_err(failed)?;
    if !is_enabled() {
        return Err(Error::new(
            ErrorKind::NotEnabled,
            Errno::EPERM,
            format!("{} is not root's alone", path().display()),
        )
        .with_remedy(format!("make {DIRECTORY} belong to root and be writable by nobody else")));
    }
    Ok(())
}

fn tempfile_in(directory: &str) -> std::io::Result<(PathBuf, fs::File)> {
    let path = Path::new(directory).join(format!(".{FILE}.{}", std::process::id()));
    let _ = fs::remove_file(&path);
    let options =
        std::os::unix::fs::OpenOptionsExt::mode(fs::OpenOptions::new().write(true).create_new(true), 0o644)
            .open(&path)?;
    Ok((path, options))
}

/// Takes the opt-in back, and turns the kernel's own mode off where there is one. Devices that are open stay open, and those
/// that vfio-pci has stay with it.
///
/// # Errors
/// What the file system answers; EACCES without root. Each of the two is tried.
pub fn disable() -> Result<()> {
    let kernel = set_kernel_mode(Path::new("/"), false);
    take_back().and(kernel)
}

/// Removes the engine's file.
fn take_back() -> Result<()> {
    match fs::remove_file(path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::system(format_args!("removing {}", path().display()), error)
                .with_remedy("run it as root"))
        }
        _ => Ok(()),
    }
}

/// Refuses unless the opt-in is given.
pub(crate) fn require() -> Result<()> {
    if is_enabled() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NotEnabled,
        Errno::EPERM,
        "the unsafe no-IOMMU mode is not enabled on this machine",
    )
    .with_remedy("the administrator enables it with `noiommu enable` (as root), and takes it back with `noiommu disable`"))
}

/// Whether the kernel carries the taint of the unsafe mode.
#[must_use]
pub fn is_tainted() -> bool {
    let text = files::read_text(Path::new("/proc/sys/kernel/tainted")).unwrap_or_default();
    text.parse::<u64>().is_ok_and(|taint| taint & TAINT_USER != 0)
}

/// What the kernel does when a no-IOMMU device is opened: a line in its log, and the taint.
pub(crate) fn taint(device: &str) {
    let process = std::process::id();
    let record = format!(
        "<4>noiommu: {device}: opened for user-space DMA without an IOMMU by process {process}; tainting kernel"
    );
    let _ = files::write_line(Path::new("/dev/kmsg"), &record);
    let _ = files::write_line(Path::new("/proc/sys/kernel/tainted"), &TAINT_USER.to_string());
    if !is_tainted() {
        tracing::warn!(device, "the kernel could not be marked as tainted (/proc/sys/kernel/tainted)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    #[test]
    fn the_kernels_mode_is_written_and_read_back() {
        let root = std::env::temp_dir().join(format!("noiommu-optin-mode-{}", std::process::id()));
        let parameter = root.join(kernel::UNSAFE_MODE.trim_start_matches('/'));
        // No VFIO: nothing to be done.
        set_kernel_mode(&root, true).unwrap();
        fs::create_dir_all(parameter.parent().unwrap()).unwrap();
        let text = || fs::read_to_string(&parameter).unwrap();
        for (before, on, after) in
            [("N\n", true, "Y\n"), ("Y\n", true, "Y\n"), ("Y\n", false, "N\n"), ("N\n", false, "N\n")]
        {
            fs::write(&parameter, before).unwrap();
            set_kernel_mode(&root, on).unwrap();
            assert_eq!(text(), after);
        }
        // What cannot be written, and what takes nothing: each told with a remedy.
        fs::remove_file(&parameter).unwrap();
        std::os::unix::fs::symlink("/dev/null", &parameter).unwrap();
        let error = set_kernel_mode(&root, true).unwrap_err();
        assert!(error.cause().contains("did not take") && error.remedy().is_some(), "{error}");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn only_a_file_that_nobody_else_can_write_counts() {
        let directory = std::env::temp_dir().join(format!("noiommu-optin-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let file = directory.join(FILE);
        let me = fs::metadata(&directory).unwrap().uid();
        assert!(!is_given(&file, me));
        fs::write(&file, "Y\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(is_given(&file, me));
        assert!(!is_given(&file, me + 1), "somebody else's");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(!is_given(&file, me));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&file, "N\n").unwrap();
        assert!(!is_given(&file, me));
        fs::write(&file, "Y\n").unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!is_given(&file, me), "anyone could put it there");
        fs::remove_dir_all(&directory).unwrap();
    }
}
