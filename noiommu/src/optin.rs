//! The administrator's unsafe opt-in.
//!
//! Without an IOMMU, whoever drives a device can make it read and write any memory of the machine. The kernel's own
//! no-IOMMU mode therefore wants `enable_unsafe_noiommu_mode` set and taints the kernel; so does the engine: a file in
//! /run, which only root can write and which is gone after a restart, says yes, and opening a device sets the same taint.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use noiommu_core::Errno;

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

/// Gives the opt-in, until the next restart. Only root can.
///
/// # Errors
/// What the file system answers; EACCES without root.
pub fn enable() -> Result<()> {
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

/// Takes the opt-in back. Devices that are open stay open.
///
/// # Errors
/// What the file system answers; EACCES without root.
pub fn disable() -> Result<()> {
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
