//! What a device was before it was bound: a file for each in /run, written before anything is changed.
//!
//! The directory is root's alone, and a file comes by renaming, so what is there is whole and can be trusted. It is gone
//! after a restart, and so is what it would restore.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use noiommu_core::Errno;

use crate::device::sysfs;
use crate::pci::{PciDevice, Root};
use crate::{Error, ErrorKind, Result, files};

const DIRECTORY: &str = "/run/noiommu/bindings";

/// What there was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) address: String,
    /// Vendor and device: another device in the same place is not the one that is remembered.
    pub(super) id: (u16, u16),
    pub(super) driver: Option<String>,
    pub(super) driver_override: Option<String>,
}

impl Record {
    /// The device as it is.
    pub(super) fn of(device: &PciDevice) -> Self {
        Self {
            address: device.address.clone(),
            id: (device.vendor, device.device),
            driver: device.driver.clone(),
            driver_override: device.driver_override.clone(),
        }
    }

    fn text(&self) -> String {
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        format!(
            "id={:04x}:{:04x}\ndriver={}\ndriver_override={}\n",
            self.id.0,
            self.id.1,
            name(&self.driver),
            name(&self.driver_override)
        )
    }

    fn parse(address: &str, text: &str) -> Option<Self> {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        // Names become paths.
        let name = |key: &str| {
            let text = value(key)?;
            (!text.contains('/') && text != "..").then(|| (!text.is_empty()).then(|| text.to_owned()))
        };
        let (vendor, device) = value("id")?.split_once(':')?;
        let number = |text| u16::from_str_radix(text, 16).ok();
        Some(Self {
            address: address.to_owned(),
            id: (number(vendor)?, number(device)?),
            driver: name("driver")?,
            driver_override: name("driver_override")?,
        })
    }

    /// Writes it, in place of an earlier one.
    pub(super) fn write(&self, root: &Root) -> io::Result<()> {
        let directory = root.at(DIRECTORY);
        if let Some(parent) = directory.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !is_trusted(&directory) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the directory is not ours alone"));
        }
        // A name that is no address: what a crash leaves half written is nobody's record.
        let new = directory.join(format!(".{}.new", self.address));
        let _ = fs::remove_file(&new);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(self.text().as_bytes())?;
        fs::rename(&new, path(root, &self.address))
    }
}

fn path(root: &Root, address: &str) -> PathBuf {
    root.at(DIRECTORY).join(address)
}

/// Nobody but us (root, outside of tests) could have written there.
fn is_trusted(directory: &Path) -> bool {
    let owner = rustix::process::geteuid().as_raw();
    let trusted = |path: &Path| {
        files::metadata(path).is_ok_and(|metadata| {
            let is_directory = metadata.st_mode & libc::S_IFMT == libc::S_IFDIR;
            is_directory && metadata.st_uid == owner && metadata.st_mode & 0o022 == 0
        })
    };
    trusted(directory) && directory.parent().is_some_and(trusted)
}

/// What is remembered of the device at an address.
pub(super) fn read(root: &Root, address: &str) -> Result<Option<Record>> {
    let path = path(root, address);
    let text = match files::read_text(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Error::system(format_args!("reading {}", path.display()), error)
                .with_remedy("run it as root"));
        }
    };
    if !is_trusted(&root.at(DIRECTORY)) {
        return Err(Error::new(
            ErrorKind::System,
            Errno::EPERM,
            format!("{DIRECTORY} is not root's alone, so what it remembers cannot be trusted"),
        )
        .with_remedy(format!("look at {}, bind the driver by hand, and remove it", path.display())));
    }
    match Record::parse(address, &text) {
        Some(record) => Ok(Some(record)),
        None => Err(Error::new(ErrorKind::System, Errno::EINVAL, format!("{} is damaged", path.display()))
            .with_remedy("bind the driver by hand, and remove it")),
    }
}

/// Forgets a device.
pub(super) fn remove(root: &Root, address: &str) -> io::Result<()> {
    match fs::remove_file(path(root, address)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The addresses of all that is remembered.
pub(super) fn addresses(root: &Root) -> Result<Vec<String>> {
    match files::names(&root.at(DIRECTORY)) {
        Ok(names) => {
            Ok(names.into_iter().filter(|name| sysfs::normalize(name).as_deref() == Some(name)).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => {
            Err(Error::system(format_args!("reading {DIRECTORY}"), error).with_remedy("run it as root"))
        }
    }
}
