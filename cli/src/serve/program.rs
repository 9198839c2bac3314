//! The program to be run: where it is, and whether a library can be preloaded into it.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::{env, io};

use super::Refusal;

/// The program's file, looked for in PATH when its name has no slash.
pub(super) fn find(name: &OsStr) -> Result<PathBuf, Refusal> {
    let is_there = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    let found = if name.as_bytes().contains(&b'/') {
        Some(PathBuf::from(name)).filter(|path| is_there(path))
    } else {
        let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        env::split_paths(&path).map(|directory| directory.join(name)).find(|path| is_there(path))
    };
    found.ok_or_else(|| {
        Refusal::new(
            format!("{}: no such program", name.to_string_lossy()),
            "name an executable file, after `--`, as in: noiommu serve -- ./program arguments",
        )
    })
}

/// Whether the dynamic linker will load our library into the program.
///
/// A program that only starts others (a shell, a script) is looked at alone: what it starts is its own affair.
pub(super) fn check(program: &Path) -> Result<(), Refusal> {
    let failed =
        |error: io::Error| Refusal::new(format!("{}: {error}", program.display()), "make it readable");
    privileged(program)?;
    let file = File::open(program).map_err(failed)?;
    match Kind::of(&file).map_err(failed)? {
        Kind::Dynamic(linker) if linker.windows(4).any(|window| window == b"musl") => Err(Refusal::new(
            format!("{} is linked with musl, and the library with the GNU C library", program.display()),
            "build it for the GNU C library",
        )),
        Kind::Dynamic(_) => Ok(()),
        Kind::Static => Err(Refusal::new(
            format!("{} is statically linked, so nothing can be preloaded into it", program.display()),
            "link it dynamically (in Go: CGO_ENABLED=1 and -linkmode=external; in Rust: a gnu target without +crt-static)",
        )),
        Kind::Foreign => Err(Refusal::new(
            format!("{} is for another kind of processor than noiommu", program.display()),
            "build noiommu for the same one, or the program for this",
        )),
        // One step: an interpreter is a binary (or the kernel goes on, which is rare enough).
        Kind::Script(interpreter) => {
            let file = File::open(&interpreter).map_err(|error| {
                Refusal::new(
                    format!("{}: {}: {error}", program.display(), interpreter.display()),
                    "install it",
                )
            })?;
            match Kind::of(&file).map_err(failed)? {
                Kind::Static => Err(Refusal::new(
                    format!(
                        "{} is statically linked, so nothing can be preloaded into it",
                        interpreter.display()
                    ),
                    "run the script with another interpreter",
                )),
                _ => Ok(()),
            }
        }
        Kind::Unknown => Err(Refusal::new(
            format!("{} is neither a program nor a script that begins with `#!`", program.display()),
            "run it through its interpreter, as in: noiommu serve -- sh script",
        )),
    }
}

/// The dynamic linker preloads nothing into programs that give rights to who starts them.
fn privileged(program: &Path) -> Result<(), Refusal> {
    let metadata = fs::metadata(program).map_err(|error| {
        Refusal::new(format!("{}: {error}", program.display()), "name a program that is there")
    })?;
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let gains = metadata.mode() & libc::S_ISUID != 0 && metadata.uid() != user
        || metadata.mode() & libc::S_ISGID != 0 && metadata.gid() != group;
    let has_capabilities = CString::new(program.as_os_str().as_bytes()).is_ok_and(|path| {
        // SAFETY: strings that end with a NUL, and no place for a value: asks for its size only.
        unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
    });
    // Root has all of the file's capabilities already.
    if gains || (has_capabilities && user != 0) {
        return Err(Refusal::new(
            format!(
                "{} runs with more rights than you have, so nothing is preloaded into it",
                program.display()
            ),
            "run it as the user that it becomes (root), or a copy of it without these rights",
        ));
    }
    Ok(())
}

/// What a file is that can be executed.
#[derive(PartialEq, Eq, Debug)]
enum Kind {
    /// With the path of its dynamic linker.
    Dynamic(Vec<u8>),
    Static,
    /// For another kind of processor.
    Foreign,
    /// With its interpreter.
    Script(PathBuf),
    Unknown,
}

impl Kind {
    fn of(file: &File) -> io::Result<Self> {
        /// As much as the kernel looks at.
        const BEGIN: usize = 256;
        let mut begin = Vec::new();
        file.take(BEGIN as u64).read_to_end(&mut begin)?;
        if let Some(line) = begin.strip_prefix(b"#!") {
            let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
            let name =
                line.split(|byte| b" \t".contains(byte)).find(|word| !word.is_empty()).unwrap_or_default();
            return Ok(Self::Script(Path::new(OsStr::from_bytes(name)).into()));
        }
        if !begin.starts_with(b"\x7fELF") {
            return Ok(Self::Unknown);
        }
        // This program is of the kind that the library is of.
        let mut own = [0; 20];
        File::open("/proc/self/exe")?.read_exact(&mut own)?;
        // Class, byte order and machine.
        if begin.get(4..6) != own.get(4..6) || begin.get(18..20) != own.get(18..20) {
            return Ok(Self::Foreign);
        }
        Ok(Self::linker(file, &begin)?.map_or(Self::Static, Self::Dynamic))
    }

    /// The dynamic linker that a program names in its PT_INTERP segment.
    fn linker(file: &File, header: &[u8]) -> io::Result<Option<Vec<u8>>> {
        const PT_INTERP: u64 = 3;
        let number = |bytes: &[u8], place: usize, size: usize| -> u64 {
            let bytes = bytes.get(place..place + size).unwrap_or_default();
            // Of this machine's order, which the header was compared with.
            let order = |word, byte: &u8| (word << 8) | u64::from(*byte);
            if cfg!(target_endian = "little") {
                bytes.iter().rev().fold(0, order)
            } else {
                bytes.iter().fold(0, order)
            }
        };
        let (offset, size, count) = (number(header, 32, 8), number(header, 54, 2), number(header, 56, 2));
        for index in 0..count {
            let mut segment = [0; 56];
            file.read_exact_at(&mut segment, offset.saturating_add(index * size))?;
            if number(&segment, 0, 4) == PT_INTERP {
                let length = number(&segment, 32, 8).min(libc::PATH_MAX as u64);
                let mut path = vec![0; length as usize];
                file.read_exact_at(&mut path, number(&segment, 8, 8))?;
                path.retain(|&byte| byte != 0);
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(bytes: &[u8]) -> Kind {
        let path = env::temp_dir().join(format!("noiommu-kind-{}-{}", std::process::id(), bytes.len()));
        fs::write(&path, bytes).unwrap();
        let kind = Kind::of(&File::open(&path).unwrap()).unwrap();
        fs::remove_file(path).unwrap();
        kind
    }

    #[test]
    fn kinds() {
        let own = fs::read("/proc/self/exe").unwrap();
        assert!(matches!(kind(&own), Kind::Dynamic(linker) if linker.starts_with(b"/lib")));
        assert_eq!(kind(b"#! /bin/sh -e\necho"), Kind::Script("/bin/sh".into()));
        assert_eq!(kind(b"#!/bin/sh"), Kind::Script("/bin/sh".into()));
        assert_eq!(kind(b"echo"), Kind::Unknown);
        assert_eq!(kind(b""), Kind::Unknown);
        // The same without segments, and for another machine.
        let mut changed = own.clone();
        changed[56..58].fill(0);
        assert_eq!(kind(&changed[..4096]), Kind::Static);
        changed[18] ^= 1;
        assert_eq!(kind(&changed[..4097]), Kind::Foreign);
    }

    #[test]
    fn programs() {
        assert!(find(OsStr::new("sh")).is_ok_and(|path| path.is_absolute()));
        assert!(find(OsStr::new("/bin/sh")).is_ok());
        for nothing in ["/nothing", "nothing-by-this-name", "/etc", "/etc/passwd"] {
            assert!(find(OsStr::new(nothing)).is_err(), "{nothing}");
        }
        assert!(check(Path::new("/bin/sh")).is_ok());
        assert!(check(Path::new("/etc/passwd")).is_err());
    }
}
