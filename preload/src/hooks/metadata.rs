//! What a file is: `stat` and its kind, `access`, links.

use std::ffi::{CString, c_char, c_int, c_long, c_uint, c_void};
use std::ptr;

use libc::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, size_t, ssize_t, stat as Stat, statx as Statx};
use noiommu::Errno;
use noiommu_core::UserMemory as _;

use super::{interpose, kernel, library};
use crate::copy::Memory;
use crate::overlay::{Attributes, Entry, What};
use crate::paths::{self, returned, route};
use crate::raw::{self, errno};
use crate::table::{self, Open};
use crate::{gate, process, state};

interpose! {
    fn stat(path: *const c_char, into: *mut Stat) -> c_int {
        stat_at(AT_FDCWD, path, into, 0)
    }

    fn stat64(path: *const c_char, into: *mut Stat) -> c_int {
        stat_at(AT_FDCWD, path, into, 0)
    }

    fn lstat(path: *const c_char, into: *mut Stat) -> c_int {
        stat_at(AT_FDCWD, path, into, AT_SYMLINK_NOFOLLOW)
    }

    fn lstat64(path: *const c_char, into: *mut Stat) -> c_int {
        stat_at(AT_FDCWD, path, into, AT_SYMLINK_NOFOLLOW)
    }

    fn fstat(fd: c_int, into: *mut Stat) -> c_int {
        stat_descriptor(fd, into)
    }

    fn fstat64(fd: c_int, into: *mut Stat) -> c_int {
        stat_descriptor(fd, into)
    }

    fn fstatat(directory: c_int, path: *const c_char, into: *mut Stat, flags: c_int) -> c_int {
        stat_at(directory, path, into, flags)
    }

    fn fstatat64(directory: c_int, path: *const c_char, into: *mut Stat, flags: c_int) -> c_int {
        stat_at(directory, path, into, flags)
    }

    // The names that programs built with an older C library call. The version is that of the structure; there is one.
    fn __xstat(_version: c_int, path: *const c_char, into: *mut Stat) -> c_int {
        stat_at(AT_FDCWD, path, into, 0)
    }

    fn __xstat64(_version: c_int, path: *const c_char, into: *mut Stat) -> c_int {
        stat_at(AT_FDCWD, path, into, 0)
    }

    fn __lxstat(_version: c_int, path: *const c_char, into: *mut Stat) -> c_int {
        stat_at(AT_FDCWD, path, into, AT_SYMLINK_NOFOLLOW)
    }

    fn __lxstat64(_version: c_int, path: *const c_char, into: *mut Stat) -> c_int {
        stat_at(AT_FDCWD, path, into, AT_SYMLINK_NOFOLLOW)
    }

    fn __fxstat(_version: c_int, fd: c_int, into: *mut Stat) -> c_int {
        stat_descriptor(fd, into)
    }

    fn __fxstat64(_version: c_int, fd: c_int, into: *mut Stat) -> c_int {
        stat_descriptor(fd, into)
    }

    fn __fxstatat(_version: c_int, directory: c_int, path: *const c_char, into: *mut Stat, flags: c_int) -> c_int {
        stat_at(directory, path, into, flags)
    }

    fn __fxstatat64(_version: c_int, directory: c_int, path: *const c_char, into: *mut Stat, flags: c_int) -> c_int {
        stat_at(directory, path, into, flags)
    }

    fn statx(directory: c_int, path: *const c_char, flags: c_int, mask: c_uint, into: *mut Statx) -> c_int {
        let kernel = |directory, path| kernel!(SYS_statx, directory, path, flags, mask, into);
        let fill = |attributes: Attributes| write(into, &long_form(&attributes));
        described(directory, path, flags, kernel, fill)
    }

    fn access(path: *const c_char, wanted: c_int) -> c_int {
        let kernel = |directory, path| kernel!(SYS_faccessat, directory, path, wanted);
        may(AT_FDCWD, path, wanted, 0, kernel)
    }

    fn faccessat(directory: c_int, path: *const c_char, wanted: c_int, flags: c_int) -> c_int {
        let kernel = |directory, path| library!(faccessat(directory, path, wanted, flags)).into();
        may(directory, path, wanted, flags, kernel)
    }

    fn euidaccess(path: *const c_char, wanted: c_int) -> c_int {
        let kernel = |directory, path| library!(faccessat(directory, path, wanted, libc::AT_EACCESS)).into();
        may(AT_FDCWD, path, wanted, libc::AT_EACCESS, kernel)
    }

    fn eaccess(path: *const c_char, wanted: c_int) -> c_int {
        // SAFETY: the same function.
        unsafe { euidaccess(path, wanted) }
    }

    fn readlink(path: *const c_char, into: *mut c_char, room: size_t) -> ssize_t {
        read_link(AT_FDCWD, path, into, room)
    }

    fn readlinkat(directory: c_int, path: *const c_char, into: *mut c_char, room: size_t) -> ssize_t {
        read_link(directory, path, into, room)
    }

    fn __readlink_chk(path: *const c_char, into: *mut c_char, room: size_t, _size: size_t) -> ssize_t {
        read_link(AT_FDCWD, path, into, room)
    }

    fn __readlinkat_chk(
        directory: c_int, path: *const c_char, into: *mut c_char, room: size_t, _size: size_t,
    ) -> ssize_t {
        read_link(directory, path, into, room)
    }

    fn realpath(path: *const c_char, into: *mut c_char) -> *mut c_char {
        real_path(path, into)
    }

    fn __realpath_chk(path: *const c_char, into: *mut c_char, _size: size_t) -> *mut c_char {
        real_path(path, into)
    }

    fn canonicalize_file_name(path: *const c_char) -> *mut c_char {
        real_path(path, ptr::null_mut())
    }

    // What lists of directories ask for; nodes in /dev have none.
    fn getxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: size_t) -> ssize_t {
        let kernel = |_, path| kernel!(SYS_getxattr, path, name, value, size);
        route(AT_FDCWD, path, true, kernel, |_| Err(errno(libc::ENODATA))) as ssize_t
    }

    fn lgetxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: size_t) -> ssize_t {
        let kernel = |_, path| kernel!(SYS_lgetxattr, path, name, value, size);
        route(AT_FDCWD, path, false, kernel, |_| Err(errno(libc::ENODATA))) as ssize_t
    }

    fn listxattr(path: *const c_char, list: *mut c_char, size: size_t) -> ssize_t {
        let kernel = |_, path| kernel!(SYS_listxattr, path, list, size);
        route(AT_FDCWD, path, true, kernel, |_| Ok(0)) as ssize_t
    }

    fn llistxattr(path: *const c_char, list: *mut c_char, size: size_t) -> ssize_t {
        let kernel = |_, path| kernel!(SYS_llistxattr, path, list, size);
        route(AT_FDCWD, path, false, kernel, |_| Ok(0)) as ssize_t
    }

    // Nodes cannot be changed; what is behind their descriptors could be, and must not.
    fn chmod(path: *const c_char, mode: libc::mode_t) -> c_int {
        change_at(AT_FDCWD, path, 0, |directory, path| kernel!(SYS_fchmodat, directory, path, mode))
    }

    fn fchmod(fd: c_int, mode: libc::mode_t) -> c_int {
        change(fd, || kernel!(SYS_fchmod, fd, mode))
    }

    fn fchmodat(directory: c_int, path: *const c_char, mode: libc::mode_t, flags: c_int) -> c_int {
        let kernel = |directory, path| library!(fchmodat(directory, path, mode, flags)).into();
        change_at(directory, path, flags, kernel)
    }

    fn chown(path: *const c_char, user: libc::uid_t, group: libc::gid_t) -> c_int {
        change_at(AT_FDCWD, path, 0, |directory, path| kernel!(SYS_fchownat, directory, path, user, group, 0))
    }

    fn lchown(path: *const c_char, user: libc::uid_t, group: libc::gid_t) -> c_int {
        let flags = AT_SYMLINK_NOFOLLOW;
        let kernel = |directory, path| kernel!(SYS_fchownat, directory, path, user, group, flags);
        change_at(AT_FDCWD, path, flags, kernel)
    }

    fn fchown(fd: c_int, user: libc::uid_t, group: libc::gid_t) -> c_int {
        change(fd, || kernel!(SYS_fchown, fd, user, group))
    }

    fn fchownat(
        directory: c_int, path: *const c_char, user: libc::uid_t, group: libc::gid_t, flags: c_int,
    ) -> c_int {
        let kernel = |directory, path| kernel!(SYS_fchownat, directory, path, user, group, flags);
        change_at(directory, path, flags, kernel)
    }

    fn utimensat(directory: c_int, path: *const c_char, times: *const libc::timespec, flags: c_int) -> c_int {
        if path.is_null() {
            return returned(Err(Errno::EINVAL)) as c_int;
        }
        let kernel = |directory, path| kernel!(SYS_utimensat, directory, path, times, flags);
        change_at(directory, path, flags, kernel)
    }

    fn futimens(fd: c_int, times: *const libc::timespec) -> c_int {
        if fd < 0 {
            return returned(Err(Errno::EBADF)) as c_int;
        }
        change(fd, || kernel!(SYS_utimensat, fd, ptr::null::<c_char>(), times, 0))
    }

    fn fsetxattr(fd: c_int, name: *const c_char, value: *const c_void, size: size_t, flags: c_int) -> c_int {
        change(fd, || kernel!(SYS_fsetxattr, fd, name, value, size, flags))
    }

    fn fremovexattr(fd: c_int, name: *const c_char) -> c_int {
        change(fd, || kernel!(SYS_fremovexattr, fd, name))
    }

    fn fchdir(fd: c_int) -> c_int {
        if table::get(fd).is_some_and(|kept| matches!(kept.what, Open::Directory(_))) {
            return returned(Err(errno(libc::ENOENT))) as c_int;
        }
        kernel!(SYS_fchdir, fd) as c_int
    }
}

/// A change of what a descriptor is open on.
fn change(fd: c_int, kernel: impl Fn() -> c_long) -> c_int {
    let answer = if table::is_served(fd) { returned(Err(errno(libc::EROFS))) } else { kernel() };
    answer as c_int
}

/// A change of what is at a path.
fn change_at(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    kernel: impl Fn(c_int, *const c_char) -> c_long,
) -> c_int {
    if flags & AT_EMPTY_PATH != 0 && table::is_served(directory) && is_empty(path) {
        return returned(Err(errno(libc::EROFS))) as c_int;
    }
    let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
    route(directory, path, follow, kernel, |_| Err(errno(libc::EROFS))) as c_int
}

fn write<T>(into: *mut T, from: &T) -> Result<c_long, Errno> {
    // SAFETY: plain numbers, zeroed before they were filled in; as many bytes as it has.
    let bytes = unsafe { std::slice::from_raw_parts(ptr::from_ref(from).cast::<u8>(), size_of::<T>()) };
    Memory::new().write(into as u64, bytes)?;
    Ok(0)
}

/// `fstatat`.
fn stat_at(directory: c_int, path: *const c_char, into: *mut Stat, flags: c_int) -> c_int {
    let kernel = |directory, path| kernel!(SYS_newfstatat, directory, path, into, flags);
    described(directory, path, flags, kernel, |attributes| write(into, &short_form(&attributes)))
}

/// `fstat`.
fn stat_descriptor(fd: c_int, into: *mut Stat) -> c_int {
    match table::get(fd) {
        None => kernel!(SYS_fstat, fd, into) as c_int,
        Some(kept) => {
            let attributes = of_open(kept.entry());
            returned(gate::engine(|| write(into, &short_form(&attributes)))) as c_int
        }
    }
}

/// What is told of an open file.
fn of_open(entry: Option<&Entry>) -> Attributes {
    // The kernel has a file without a node for devices that a group gave: of no type.
    entry.map_or(
        Attributes { mode: 0o600, owner: 0, size: 0, links: 1, inode: 1, device: 1, node: (0, 0), born: 0 },
        Entry::attributes,
    )
}

/// `fstatat` and `statx`: of a path, or with AT_EMPTY_PATH of a descriptor.
fn described(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    kernel: impl Fn(c_int, *const c_char) -> c_long,
    fill: impl Fn(Attributes) -> Result<c_long, Errno>,
) -> c_int {
    if flags & AT_EMPTY_PATH != 0
        && let Some(kept) = table::get(directory)
        && is_empty(path)
    {
        let attributes = of_open(kept.entry());
        return returned(gate::engine(|| fill(attributes))) as c_int;
    }
    let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
    route(directory, path, follow, kernel, |entry| fill(entry.attributes())) as c_int
}

/// Whether a path is there and has nothing in it. (A null one counts as that for newer kernels.)
fn is_empty(path: *const c_char) -> bool {
    path.is_null()
        || gate::engine(|| Memory::new().string(path as u64, &mut [0; 2]).is_ok_and(<[u8]>::is_empty))
}

fn short_form(from: &Attributes) -> Stat {
    // SAFETY: all zeros is one.
    let mut to: Stat = unsafe { std::mem::zeroed() };
    to.st_dev = from.device;
    to.st_ino = from.inode;
    to.st_mode = from.mode;
    to.st_nlink = from.links.into();
    to.st_uid = from.owner;
    to.st_rdev = libc::makedev(from.node.0, from.node.1);
    to.st_size = from.size as i64;
    to.st_blksize = 4096;
    to.st_atime = from.born;
    to.st_mtime = from.born;
    to.st_ctime = from.born;
    to
}

fn long_form(from: &Attributes) -> Statx {
    // SAFETY: all zeros is one.
    let mut to: Statx = unsafe { std::mem::zeroed() };
    to.stx_mask = libc::STATX_BASIC_STATS;
    to.stx_blksize = 4096;
    to.stx_nlink = from.links;
    to.stx_uid = from.owner;
    to.stx_mode = from.mode as u16;
    to.stx_ino = from.inode;
    to.stx_size = from.size;
    to.stx_atime.tv_sec = from.born;
    to.stx_mtime.tv_sec = from.born;
    to.stx_ctime.tv_sec = from.born;
    (to.stx_rdev_major, to.stx_rdev_minor) = from.node;
    (to.stx_dev_major, to.stx_dev_minor) = (libc::major(from.device), libc::minor(from.device));
    to
}

/// `faccessat`.
fn may(
    directory: c_int,
    path: *const c_char,
    wanted: c_int,
    flags: c_int,
    kernel: impl Fn(c_int, *const c_char) -> c_long,
) -> c_int {
    let ours = |entry: &'static Entry| {
        if wanted & !7 != 0 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: these take nothing, and always succeed.
        let (user, group, overrides) = unsafe {
            if flags & libc::AT_EACCESS != 0 {
                (libc::geteuid(), libc::getegid(), process::overrides())
            } else {
                // Asked for the real user, the kernel counts the capabilities that user would have.
                (libc::getuid(), libc::getgid(), libc::getuid() == 0)
            }
        };
        if entry.allows(user, group, overrides, wanted as u32) { Ok(0) } else { Err(Errno::EACCES) }
    };
    route(directory, path, flags & AT_SYMLINK_NOFOLLOW == 0, kernel, ours) as c_int
}

/// `readlinkat`.
fn read_link(directory: c_int, path: *const c_char, into: *mut c_char, room: size_t) -> ssize_t {
    let kernel = |directory, path| {
        let length = kernel!(SYS_readlinkat, directory, path, into, room);
        // The kernel's answer for one of ours among /proc/self/fd is the placeholder behind it.
        if length > 0 && table::is_any() && state::is_on() && !gate::is_inside() {
            return gate::engine(|| read_descriptor_link(directory, path, into, room)).unwrap_or(length);
        }
        length
    };
    let ours = |entry: &'static Entry| match &entry.what {
        What::Link(target) => write_link(target, into, room),
        _ => Err(Errno::EINVAL),
    };
    route(directory, path, false, kernel, ours) as ssize_t
}

fn write_link(target: &[u8], into: *mut c_char, room: size_t) -> Result<c_long, Errno> {
    if room == 0 {
        return Err(Errno::EINVAL);
    }
    let target = target.get(..room).unwrap_or(target);
    Memory::new().write(into as u64, target)?;
    Ok(target.len() as c_long)
}

/// The link to a served descriptor, where the path leads to one.
fn read_descriptor_link(
    directory: c_int,
    path: *const c_char,
    into: *mut c_char,
    room: size_t,
) -> Option<c_long> {
    let kept = paths::descriptor_link(directory, path)?;
    let target = kept.entry().map_or(b"anon_inode:[vfio-device]".as_slice(), |entry| &entry.path);
    write_link(target, into, room).ok()
}

/// `realpath`.
fn real_path(path: *const c_char, into: *mut c_char) -> *mut c_char {
    let kernel = |_, path| match library!(realpath(path, into)) {
        found if found.is_null() => -1,
        found => found as c_long,
    };
    let ours = |entry: &'static Entry| {
        let path = CString::new(entry.path.as_slice()).map_err(|_| errno(libc::ENOENT))?;
        let bytes = path.as_bytes_with_nul();
        let into = if into.is_null() {
            // SAFETY: the program frees it, as it does what the C library gives.
            unsafe { libc::malloc(bytes.len()) as u64 }
        } else {
            into as u64
        };
        if into == 0 {
            return Err(Errno::ENOMEM);
        }
        Memory::new().write(into, bytes)?;
        Ok(into as c_long)
    };
    if path.is_null() {
        raw::set_errno(libc::EINVAL);
        return ptr::null_mut();
    }
    match route(AT_FDCWD, path, true, kernel, ours) {
        -1 => ptr::null_mut(),
        found => found as *mut c_char,
    }
}
