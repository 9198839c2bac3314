//! Where a path of the program leads: to the kernel's files or to ours.
//!
//! Names are looked at before the kernel is asked, so that one of ours wins over a node that is there but dead (a /dev/vfio/vfio
//! without its module); but only names that can be ours, and everything else is the kernel's. What the kernel does not find is
//! looked at once more: it may be reached through a link, or by a number.

use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::path::Path;

use noiommu::Errno;

use crate::overlay::Entry;
use crate::raw::{self, errno, result, system};
use crate::table::{self, Open};
use crate::{copy, gate, state};

/// Where a path leads.
pub(crate) enum Target {
    /// The kernel's, by the same path.
    Kernel,
    /// Ours.
    Ours(&'static Entry),
    /// The kernel's, but through directories or links of ours: the path without them.
    Elsewhere(CString),
    /// Nowhere.
    Failed(Errno),
}

/// Does a call on a path: `kernel` where the kernel has it, `ours` where we do.
///
/// `kernel` takes the directory and the path, and answers as the C library does (-1 and `errno`).
pub(crate) fn route(
    directory: c_int,
    path: *const c_char,
    follow: bool,
    kernel: impl Fn(c_int, *const c_char) -> c_long,
    ours: impl FnOnce(&'static Entry) -> Result<c_long, Errno>,
) -> c_long {
    if !state::is_on() || gate::is_inside() {
        return kernel(directory, path);
    }
    let mut target = look(directory, path, follow);
    if matches!(target, Target::Kernel) {
        let answer = kernel(directory, path);
        if answer != -1 || raw::last_errno() != libc::ENOENT {
            return answer;
        }
        target = look_again(directory, path, follow);
    }
    let answer = match target {
        Target::Kernel => Err(errno(libc::ENOENT)),
        Target::Ours(entry) => gate::engine(|| ours(entry)),
        Target::Elsewhere(path) => return kernel(libc::AT_FDCWD, path.as_ptr()),
        Target::Failed(errno) => Err(errno),
    };
    returned(answer)
}

/// An answer as the C library gives it.
pub(crate) fn returned(answer: Result<c_long, Errno>) -> c_long {
    answer.unwrap_or_else(|errno| {
        raw::set_errno(errno.raw());
        -1
    })
}

/// Where a path leads, before the kernel is asked.
///
/// The bytes of the path are read with the fix-up and without a look at the signal mask: a bad address answers EFAULT here too, but
/// kills a thread that blocks SIGSEGV; the addresses that everybody tries are left to the kernel.
pub(crate) fn look(directory: c_int, path: *const c_char, follow: bool) -> Target {
    const FIRST_PAGE: usize = 4096;
    if (path as usize) < FIRST_PAGE || (path as isize) < 0 {
        return Target::Kernel;
    }
    let mut begin = [0; 6];
    if copy::string(path as u64, &mut begin).is_none() {
        return Target::Kernel;
    }
    let in_ours = directory != libc::AT_FDCWD && is_our_directory(directory);
    match &begin {
        b"/dev/\0" | b"/sys/\0" | b"/proc\0" => return Target::Kernel,
        [b'/', b'd', b'e', b'v', b'/', _] | [b'/', b's', b'y', b's', b'/', _] => {}
        [b'/', b'p', b'r', b'o', b'c', b'/'] if table::is_any() => {}
        // Not written as everybody does.
        [b'/', b'/' | b'.', ..] => {}
        [b'/', ..] => return Target::Kernel,
        [0, ..] => return Target::Kernel,
        _ => {}
    }
    let mut short = [0; 256];
    let mut long;
    let Some(length) = copy::string(path as u64, &mut short) else { return Target::Kernel };
    let text = if length < short.len() {
        short.get(..length)
    } else {
        long = [0; libc::PATH_MAX as usize];
        let Some(length) = copy::string(path as u64, &mut long) else { return Target::Kernel };
        if length == long.len() {
            return Target::Kernel;
        }
        long.get(..length)
    };
    let text = text.unwrap_or_default();
    let through_descriptor = table::is_any() && has_descriptor(text);
    if in_ours || through_descriptor || (state::is_telling(text) && is_near(directory, text)) {
        gate::engine(|| resolve(directory, text, follow, in_ours))
    } else {
        Target::Kernel
    }
}

/// Where a path leads that the kernel has not found.
///
/// Before the server was needed for something, only by what the path says: a program that looks for many things which are not there
/// makes no more system calls than it would. After that links and numbers count as well.
fn look_again(directory: c_int, path: *const c_char, follow: bool) -> Target {
    let mut buffer = [0; libc::PATH_MAX as usize];
    let Some(length) = copy::string(path as u64, &mut buffer) else { return Target::Kernel };
    let text = buffer.get(..length).unwrap_or_default();
    let dangling = || {
        // A slash behind the name of a link means what it leads to.
        let end = text.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
        let link: Vec<u8> = text.iter().take(end).copied().chain([0]).collect();
        let mut target = [0_u8; 1];
        // SAFETY: a string that ends with a NUL, and a buffer that is here.
        unsafe { system!(SYS_readlinkat, directory, link.as_ptr(), target.as_mut_ptr(), target.len()) > 0 }
    };
    let is_worth = || state::is_started() && (is_near(directory, text) || (follow && dangling()));
    if text.is_empty() || !(state::is_telling(text) || is_worth()) {
        return Target::Kernel;
    }
    gate::engine(|| resolve(directory, text, follow, false))
}

/// Whether a path, with its `..` taken literally, is in a directory that can have something of ours.
fn is_near(directory: c_int, path: &[u8]) -> bool {
    let Some(mut at) = base(directory, path) else { return false };
    for component in path.split(|&byte| byte == b'/') {
        step(&mut at, component);
    }
    at.starts_with(b"/dev/") || at.starts_with(b"/sys/")
}

/// Whether a path looks like one to a descriptor: `/proc/self/fd/3`, `/dev/fd/3`.
fn has_descriptor(path: &[u8]) -> bool {
    let number = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let digits = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
    digits && path.windows(4).any(|window| window == b"/fd/")
}

fn is_our_directory(fd: c_int) -> bool {
    table::get(fd).is_some_and(|kept| matches!(kept.what, Open::Directory(_)))
}

/// The path that a relative one starts from, empty for the root; `None` when that is not known.
fn base(directory: c_int, path: &[u8]) -> Option<Vec<u8>> {
    if path.starts_with(b"/") {
        return Some(Vec::new());
    }
    let base = if directory == libc::AT_FDCWD {
        current_directory()?
    } else if let Some(entry) = table::get(directory).and_then(|kept| kept.entry()) {
        entry.path.clone()
    } else {
        of_descriptor(directory)?
    };
    if base == b"/" { Some(Vec::new()) } else { Some(base).filter(|base| base.starts_with(b"/")) }
}

fn current_directory() -> Option<Vec<u8>> {
    let mut buffer = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is here.
    result(unsafe { system!(SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) }).ok()?;
    Some(CStr::from_bytes_until_nul(&buffer).ok()?.to_bytes().to_vec())
}

/// The path of what a descriptor of the kernel is open on.
pub(crate) fn of_descriptor(fd: c_int) -> Option<Vec<u8>> {
    read_link(format!("/proc/self/fd/{fd}").as_bytes())
}

/// The text of a link of the kernel's.
fn read_link(path: &[u8]) -> Option<Vec<u8>> {
    let path = CString::new(path).ok()?;
    let mut buffer = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: a string that ends with a NUL, and a buffer that is here.
    let answer =
        unsafe { system!(SYS_readlinkat, libc::AT_FDCWD, path.as_ptr(), buffer.as_mut_ptr(), buffer.len()) };
    let length = result(answer).ok()?;
    buffer.get(..length).map(<[u8]>::to_vec)
}

/// Goes one component further, links not looked at.
fn step(at: &mut Vec<u8>, component: &[u8]) {
    match component {
        b"" | b"." => {}
        b".." => at.truncate(at.iter().rposition(|&byte| byte == b'/').unwrap_or(0)),
        name => {
            at.push(b'/');
            at.extend_from_slice(name);
        }
    }
}

/// The served descriptor that a path without links in it, `/proc/<this process>/fd/N`, stands for.
fn descriptor_at(path: &[u8]) -> Option<table::Kept> {
    let path = Path::new(std::str::from_utf8(path).ok()?);
    let own = format!("/proc/{}", std::process::id());
    let fd = path.file_name()?.to_str()?.parse::<c_int>().ok()?;
    let directory = path.parent()?;
    (directory.ends_with("fd") && directory.starts_with(own)).then(|| table::get(fd))?
}

/// Follows a path as the kernel does, with our directories, nodes and links among the kernel's.
fn resolve(directory: c_int, path: &[u8], follow: bool, in_ours: bool) -> Target {
    match walk(directory, path, follow) {
        Ok(Walked { at, ours }) => {
            if let Some(entry) = state::entry(&at) {
                return Target::Ours(entry);
            }
            match CString::new(at) {
                Ok(path) if ours || in_ours => Target::Elsewhere(path),
                _ => Target::Kernel,
            }
        }
        Err(errno) => Target::Failed(errno),
    }
}

/// The served descriptor that a path names as a link of /proc: `readlink` of it is not to tell what the kernel has there.
pub(crate) fn descriptor_link(directory: c_int, path: *const c_char) -> Option<table::Kept> {
    let mut buffer = [0; 256];
    let length = copy::string(path as u64, &mut buffer).filter(|&length| length < 256)?;
    let text = buffer.get(..length)?;
    if !has_descriptor(text) {
        return None;
    }
    descriptor_at(&walk(directory, text, false).ok()?.at)
}

struct Walked {
    /// Where it ended.
    at: Vec<u8>,
    /// Whether it passed something that is ours.
    ours: bool,
}

fn walk(directory: c_int, path: &[u8], follow: bool) -> Result<Walked, Errno> {
    /// As many links as the kernel follows.
    const LINKS: usize = 40;
    let no_directory = || errno(libc::ENOTDIR);
    let split = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|&byte| byte == b'/').rev().filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
    };
    let mut at = base(directory, path).ok_or(errno(libc::ENOENT))?;
    let mut ours = false;
    let mut links = 0;
    let mut ahead = split(path);
    // A path that ends with a slash names what its last link leads to, and that is a directory.
    let to_directory = path.ends_with(b"/") || path.ends_with(b"/.");
    let mut turn = |at: &mut Vec<u8>, ahead: &mut Vec<Vec<u8>>, target: &[u8]| {
        links += 1;
        if target.starts_with(b"/") {
            at.clear();
        }
        ahead.extend(split(target));
        if links > LINKS { Err(errno(libc::ELOOP)) } else { Ok(()) }
    };
    while let Some(name) = ahead.pop() {
        if name == b"." || name == b".." {
            step(&mut at, &name);
            continue;
        }
        let mut next = at.clone();
        step(&mut next, &name);
        let is_last = ahead.is_empty();
        let follows = !is_last || follow || to_directory;
        if let Some(entry) = state::entry(&next) {
            ours = true;
            match &entry.what {
                crate::overlay::What::Link(target) if follows => {
                    turn(&mut at, &mut ahead, target)?;
                    continue;
                }
                crate::overlay::What::Directory => {}
                _ if !is_last || to_directory => return Err(no_directory()),
                _ => {}
            }
        } else if let Some(kept) = follows.then(|| descriptor_at(&next)).flatten() {
            let entry = kept.entry().ok_or(errno(libc::ENXIO))?;
            ours = true;
            turn(&mut at, &mut ahead, &entry.path)?;
            continue;
        } else if let Some(target) = follows.then(|| read_link(&next)).flatten() {
            turn(&mut at, &mut ahead, &target)?;
            continue;
        }
        at = next;
    }
    if at.is_empty() {
        at.push(b'/');
    }
    Ok(Walked { at, ours })
}
