//! What `bind --config` has done, so that `unbind --config` takes back that and no more: a file for each device that it bound,
//! and one for the opt-in, in a directory of /run that is root's alone. A restart forgets it, as it undoes it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use rustix::fs::FlockOperation;

/// Where it is kept.
const DIRECTORY: &str = "/run/noiommu/configured";
/// The file that says that the opt-in was given by a file, too.
const OPT_IN: &str = "enable";
/// The file that is locked.
const LOCK: &str = ".lock";

/// The memory, locked: of two calls at once (the unit and a udev rule) one waits.
#[derive(Debug)]
pub(super) struct Memory {
    directory: PathBuf,
    _lock: File,
}

impl Memory {
    /// Opens it, with a new directory where there is none.
    pub(super) fn open() -> io::Result<Self> {
        Self::open_in(DIRECTORY.into())
    }

    /// Opens it where there is something in it. Nothing is made.
    pub(super) fn open_if_there() -> io::Result<Option<Self>> {
        match fs::symlink_metadata(DIRECTORY) {
            Ok(_) => Self::open().map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_in(directory: PathBuf) -> io::Result<Self> {
        if let Some(parent) = directory.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // What is in it is done as root.
        let metadata = fs::symlink_metadata(&directory)?;
        let me = rustix::process::geteuid().as_raw();
        if !metadata.is_dir() || metadata.uid() != me || metadata.mode() & 0o022 != 0 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not root's alone"));
        }
        let mut options = fs::OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(directory.join(LOCK))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))?;
        Ok(Self { directory, _lock: lock })
    }

    /// The addresses of the devices in it, in order.
    pub(super) fn devices(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.contains(':') {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether a device is in it.
    pub(super) fn has_device(&self, address: &str) -> bool {
        self.directory.join(address).exists()
    }

    /// Whether the opt-in is in it.
    pub(super) fn has_opt_in(&self) -> bool {
        self.directory.join(OPT_IN).exists()
    }

    /// Puts a device in.
    pub(super) fn add_device(&self, address: &str) -> io::Result<()> {
        self.add(address)
    }

    /// Puts the opt-in in.
    pub(super) fn add_opt_in(&self) -> io::Result<()> {
        self.add(OPT_IN)
    }

    /// Takes a device out.
    pub(super) fn remove_device(&self, address: &str) -> io::Result<()> {
        self.remove(address)
    }

    /// Takes the opt-in out.
    pub(super) fn remove_opt_in(&self) -> io::Result<()> {
        self.remove(OPT_IN)
    }

    fn add(&self, name: &str) -> io::Result<()> {
        let path = self.directory.join(name);
        fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_keeps_what_was_put_in() {
        let parent = std::env::temp_dir().join(format!("noiommu-configured-{}", std::process::id()));
        let directory = parent.join("configured");
        let memory = Memory::open_in(directory.clone()).unwrap();
        assert_eq!(memory.devices().unwrap(), Vec::<String>::new());
        for address in ["0000:00:05.0", "0000:00:04.0", "0000:00:04.0"] {
            memory.add_device(address).unwrap();
        }
        memory.add_opt_in().unwrap();
        assert_eq!(memory.devices().unwrap(), ["0000:00:04.0", "0000:00:05.0"]);
        assert!(memory.has_device("0000:00:04.0") && memory.has_opt_in());
        memory.remove_device("0000:00:04.0").unwrap();
        memory.remove_device("0000:00:04.0").unwrap();
        memory.remove_opt_in().unwrap();
        assert!(!memory.has_device("0000:00:04.0") && !memory.has_opt_in());
        drop(memory);
        // What others could have written is not believed.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(Memory::open_in(directory).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        fs::remove_dir_all(&parent).unwrap();
    }
}
