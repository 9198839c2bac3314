//! Opening.

use std::ffi::{CStr, c_char, c_int, c_long};
use std::ptr;

use libc::{AT_FDCWD, FILE, mode_t};
use noiommu::Errno;

use super::{cancellable, interpose, library};
use crate::overlay::{Entry, What};
use crate::paths::route;
use crate::raw::{self, errno, result, system};
use crate::table::{self, Kept, Open};
use crate::{copy, gate, process, state};

interpose! {
    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        open_at(AT_FDCWD, path, flags, mode)
    }

    fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        open_at(AT_FDCWD, path, flags, mode)
    }

    fn __open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        open_at(AT_FDCWD, path, flags, mode)
    }

    fn __open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        open_at(AT_FDCWD, path, flags, mode)
    }

    fn openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        open_at(directory, path, flags, mode)
    }

    fn openat64(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        open_at(directory, path, flags, mode)
    }

    fn __open_2(path: *const c_char, flags: c_int) -> c_int {
        open_at(AT_FDCWD, path, flags, 0)
    }

    fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
        open_at(AT_FDCWD, path, flags, 0)
    }

    fn __openat_2(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
        open_at(directory, path, flags, 0)
    }

    fn __openat64_2(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
        open_at(directory, path, flags, 0)
    }

    fn creat(path: *const c_char, mode: mode_t) -> c_int {
        open_at(AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode)
    }

    fn creat64(path: *const c_char, mode: mode_t) -> c_int {
        open_at(AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode)
    }

    fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
        open_stream(path, mode)
    }

    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE {
        open_stream(path, mode)
    }

    fn fclose(stream: *mut FILE) -> c_int {
        if !table::is_any() || stream.is_null() {
            return library!(fclose(stream));
        }
        // SAFETY: the program's stream, open until the call below.
        let fd = unsafe { libc::fileno(stream) };
        if !table::is_served(fd) || process::is_borrowed() {
            return library!(fclose(stream));
        }
        // The C library closes the descriptor itself.
        let (answer, closed) = table::change(|change| (library!(fclose(stream)), change.clear(fd)));
        drop(closed);
        answer
    }
}

/// `openat`.
pub(crate) fn open_at(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let kernel = |directory: c_int, path: *const c_char| -> c_long {
        let fd: c_int = cancellable!(openat, SYS_openat(directory, path, flags, mode));
        super::engine::keep(fd).into()
    };
    let follow = flags & libc::O_NOFOLLOW == 0;
    route(directory, path, follow, kernel, |entry| open_entry(entry, flags, mode).map(Into::into)) as c_int
}

/// `fopen`: the C library makes the stream from a descriptor that we open.
fn open_stream(path: *const c_char, mode: *const c_char) -> *mut FILE {
    let kernel = |_, path| match library!(fopen(path, mode)) {
        stream if stream.is_null() => -1,
        stream => stream as c_long,
    };
    let ours = |entry: &'static Entry| {
        let mut buffer = [0; 16];
        let memory = copy::Memory::new();
        let flags = stream_flags(memory.string(mode as u64, &mut buffer)?)?;
        let fd = open_entry(entry, flags, 0o666)?;
        let stream = library!(fdopen(fd, mode));
        if stream.is_null() {
            // SAFETY: the descriptor just opened.
            unsafe { super::descriptor::close(fd) };
            return Err(Errno::ENOMEM);
        }
        Ok(stream as c_long)
    };
    // A path that is not the kernel's by its own name is taken by its name without links.
    match route(AT_FDCWD, path, true, kernel, ours) {
        -1 => ptr::null_mut(),
        stream => stream as *mut FILE,
    }
}

/// The flags of `open` for a mode of `fopen`.
fn stream_flags(mode: &[u8]) -> Result<c_int, Errno> {
    let (first, rest) = mode.split_first().ok_or(Errno::EINVAL)?;
    let mut flags = match first {
        b'r' => libc::O_RDONLY,
        b'w' => libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC,
        b'a' => libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND,
        _ => return Err(Errno::EINVAL),
    };
    for letter in rest.iter().take_while(|&&letter| letter != b',') {
        match letter {
            b'+' => flags = flags & !libc::O_ACCMODE | libc::O_RDWR,
            b'x' => flags |= libc::O_EXCL,
            b'e' => flags |= libc::O_CLOEXEC,
            _ => {}
        }
    }
    Ok(flags)
}

/// Opens what is ours.
pub(crate) fn open_entry(entry: &'static Entry, flags: c_int, mode: mode_t) -> Result<c_int, Errno> {
    let close_on_exec = flags & libc::O_CLOEXEC != 0;
    let is_path = flags & libc::O_PATH != 0;
    match &entry.what {
        What::Link(_) => Err(errno(libc::ELOOP)),
        What::Text(text) => open_text(text, flags),
        What::Directory => {
            if flags & libc::O_CREAT != 0 || (!is_path && flags & libc::O_ACCMODE != libc::O_RDONLY) {
                return Err(errno(libc::EISDIR));
            }
            refuse_borrowed()?;
            // A directory in which nothing can be made or removed, by a call that is not looked at here.
            let fd = open_kernel(c"/proc/self/fdinfo", flags | libc::O_DIRECTORY, 0)?;
            note(fd, table::describe(Open::Directory(entry), flags), close_on_exec)
        }
        What::Node(node) => {
            refuse_borrowed()?;
            let fd = placeholder(flags, mode)?;
            let opened = gate::engine(|| {
                if is_path {
                    return table::describe(Open::Path(entry), flags);
                }
                let wanted = match flags & libc::O_ACCMODE {
                    libc::O_RDONLY => 4,
                    libc::O_WRONLY => 2,
                    _ => 6,
                };
                // SAFETY: takes nothing, and always succeeds.
                if !unsafe { entry.allows(libc::geteuid(), libc::getegid(), process::overrides(), wanted) } {
                    return Err(Errno::EACCES);
                }
                let served = state::served();
                let file = served.server.open(node, flags)?;
                state::announce(served);
                table::describe(Open::File(file, Some(entry)), flags & libc::O_ACCMODE)
            });
            note(fd, opened, close_on_exec)
        }
    }
}

/// A child of `vfork` cannot note what it opens: the table is its parent's.
fn refuse_borrowed() -> Result<(), Errno> {
    if process::is_borrowed() { Err(Errno::EAGAIN) } else { Ok(()) }
}

/// The kernel's descriptor behind a served one: of /dev/null, which answers `poll`, `select` and `epoll_ctl` as these nodes do,
/// knows as few calls as they, and refuses the flags of `open` that they refuse. It never outlives an exec.
pub(crate) fn placeholder(flags: c_int, mode: mode_t) -> Result<c_int, Errno> {
    open_kernel(c"/dev/null", flags, mode)
}

/// The same for a queue: `poll` finds it ready to be written, and with nothing to read.
pub(crate) fn queue_placeholder() -> Result<c_int, Errno> {
    // SAFETY: numbers only.
    let fd = result(unsafe { system!(SYS_eventfd2, 0, libc::EFD_CLOEXEC) })?;
    Ok(fd as c_int)
}

fn open_kernel(path: &CStr, flags: c_int, mode: mode_t) -> Result<c_int, Errno> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: a string that ends with a NUL.
    let fd = result(unsafe { system!(SYS_openat, AT_FDCWD, path.as_ptr(), flags, mode) })?;
    Ok(fd as c_int)
}

/// Notes what a new descriptor is open on; closes it when there is nothing.
pub(crate) fn note(fd: c_int, opened: Result<Kept, Errno>, close_on_exec: bool) -> Result<c_int, Errno> {
    let noted = opened.and_then(|kept| table::change(|change| change.set(fd, kept, close_on_exec)));
    match noted {
        Ok(_) => Ok(fd),
        Err(errno) => {
            raw::close(fd);
            Err(errno)
        }
    }
}

/// A file of sysfs: a memory file of the kernel's, opened again as the program wants it.
fn open_text(text: &str, flags: c_int) -> Result<c_int, Errno> {
    if flags & (libc::O_CREAT | libc::O_EXCL) == libc::O_CREAT | libc::O_EXCL {
        return Err(Errno::EEXIST);
    }
    if flags & libc::O_DIRECTORY != 0 {
        return Err(errno(libc::ENOTDIR));
    }
    if flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_RDONLY {
        return Err(Errno::EACCES);
    }
    // SAFETY: a string that ends with a NUL.
    let answer = unsafe { system!(SYS_memfd_create, c"sysfs".as_ptr(), libc::MFD_CLOEXEC) };
    let file = result(answer)? as c_int;
    let again = format!("/proc/self/fd/{file}\0");
    // The other flags are about what is not there: creating, links, terminals.
    let flags = flags & (libc::O_CLOEXEC | libc::O_PATH | libc::O_NONBLOCK);
    // SAFETY: the bytes are here, and the string ends with a NUL.
    let opened = unsafe {
        result(system!(SYS_write, file, text.as_ptr(), text.len()))
            .and_then(|_| result(system!(SYS_fchmod, file, 0o444)))
            .and_then(|_| result(system!(SYS_openat, AT_FDCWD, again.as_ptr(), flags, 0)))
    };
    raw::close(file);
    let opened = opened? as c_int;
    // The lowest number that is free is the memory file's.
    // SAFETY: both descriptors are ours.
    let lowest = unsafe {
        system!(
            SYS_fcntl,
            opened,
            if flags & libc::O_CLOEXEC != 0 { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD },
            0
        )
    };
    match result(lowest) {
        Ok(lowest) if (lowest as c_int) < opened => {
            raw::close(opened);
            Ok(lowest as c_int)
        }
        Ok(higher) => {
            raw::close(higher as c_int);
            Ok(opened)
        }
        Err(_) => Ok(opened),
    }
}
