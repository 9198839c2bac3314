//! Small files of the kernel, as /sys and /proc have them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};

/// Opens a file, closed on exec.
pub(crate) fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::io::retry_on_intr(|| fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()))?)
}

/// What was read, or `None` where there is nothing to read: everything else that can go wrong is no answer.
pub(crate) fn if_there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether there is something there; a link that leads nowhere is something.
pub(crate) fn exists(path: &Path) -> bool {
    metadata(path).is_ok()
}

/// What `lstat` tells.
pub(crate) fn metadata(path: &Path) -> io::Result<fs::Stat> {
    Ok(fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// All of a file.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_all(&open(path, OFlags::RDONLY)?)
}

/// The first bytes of a file, at most `length`.
pub(crate) fn read_start(path: &Path, length: usize) -> io::Result<Vec<u8>> {
    let file = open(path, OFlags::RDONLY)?;
    let mut bytes = vec![0; length];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut bytes))?;
    bytes.truncate(read);
    Ok(bytes)
}

/// What is left of an open file.
pub(crate) fn read_all(file: &impl AsFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(file, &mut part))? {
            0 => return Ok(bytes),
            length => bytes.extend_from_slice(&part[..length]),
        }
    }
}

/// A file of text, without the white space around it.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read(path)?).trim().to_owned())
}

/// Writes a line, in one write: each is a command of its own to sysfs.
pub(crate) fn write_line(path: &Path, text: &str) -> io::Result<()> {
    let line = format!("{text}\n");
    let file = open(path, OFlags::WRONLY)?;
    let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, line.as_bytes()))?;
    if written == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// The last part of what a link says; `None` where it cannot be read, for whatever reason.
pub(crate) fn link_name(path: &Path) -> Option<String> {
    link(path).ok()?
}

/// The last part of what a link says; `None` where there is no link.
pub(crate) fn link(path: &Path) -> io::Result<Option<String>> {
    let target = if_there(fs::readlinkat(CWD, path, Vec::new()).map_err(io::Error::from))?;
    Ok(target.and_then(|target| target.to_string_lossy().rsplit('/').next().map(str::to_owned)))
}

/// The names in a directory, in order.
pub(crate) fn names(directory: &Path) -> io::Result<Vec<String>> {
    let open = open(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(&open)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
