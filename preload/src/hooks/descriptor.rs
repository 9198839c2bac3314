//! Descriptors: closing, copying, flags.

use std::ffi::{c_int, c_long, c_uint};

use noiommu::Errno;

use super::{cancellable, engine, interpose, kernel};
use crate::paths::returned;
use crate::raw::{result, system};
use crate::{gate, process, table};

interpose! {
    fn close(fd: c_int) -> c_int {
        if table::is_engines(fd) && !process::is_borrowed() {
            return close_engines(fd);
        }
        if !table::is_served(fd) {
            return cancellable!(close, SYS_close(fd));
        }
        let answer = changed(|change| {
            // The note goes first: once the kernel has closed it, the number may be another file's.
            let closed = note_unless_borrowed(|| change.clear(fd));
            // SAFETY: the program's own call.
            (result(unsafe { system!(SYS_close, fd) }), closed)
        });
        returned(answer.map(|_| 0)) as c_int
    }

    fn __close(fd: c_int) -> c_int {
        // SAFETY: the same function.
        unsafe { close(fd) }
    }

    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        if !table::is_any() {
            return kernel!(SYS_close_range, first, last, flags) as c_int;
        }
        let answer = changed(|change| {
            let answer = close_others(change, first, last, flags);
            let served = if answer.is_ok() { change.served(first, last) } else { Vec::new() };
            let closed = note_unless_borrowed(|| {
                if flags as c_uint & libc::CLOSE_RANGE_CLOEXEC != 0 {
                    served.iter().for_each(|&fd| change.set_close_on_exec(fd, true));
                    None
                } else {
                    Some(served.iter().filter_map(|&fd| change.clear(fd)).collect::<Vec<_>>())
                }
            });
            (answer, closed)
        });
        returned(answer.map(|_| 0)) as c_int
    }

    fn closefrom(first: c_int) {
        // SAFETY: the same, without an answer.
        unsafe { close_range(first.max(0) as c_uint, c_uint::MAX, 0) };
    }

    fn dup(fd: c_int) -> c_int {
        if !table::is_served(fd) {
            return engine::keep(kernel!(SYS_dup, fd) as c_int);
        }
        duplicate(fd, 0, false)
    }

    fn dup2(fd: c_int, to: c_int) -> c_int {
        if fd == to {
            // The number, when it is a descriptor.
            let flags = kernel!(SYS_fcntl, fd, libc::F_GETFD);
            return if flags < 0 { -1 } else { to };
        }
        replace(fd, to, 0)
    }

    fn __dup2(fd: c_int, to: c_int) -> c_int {
        // SAFETY: the same function.
        unsafe { dup2(fd, to) }
    }

    fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
        replace(fd, to, flags)
    }

    fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
        control(fd, command, argument)
    }

    fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
        control(fd, command, argument)
    }

    fn __fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
        control(fd, command, argument)
    }
}

/// `close` of a descriptor of the engine's: for the program there is none of that number.
fn close_engines(fd: c_int) -> c_int {
    if !gate::is_inside() {
        return returned(Err(Errno::EBADF)) as c_int;
    }
    let answer = changed(|change| {
        let note = change.clear(fd);
        // SAFETY: the engine's own call.
        (result(unsafe { system!(SYS_close, fd) }), note)
    });
    returned(answer.map(|_| 0)) as c_int
}

/// `close_range`, with the engine's descriptors left out.
fn close_others(change: &table::Change, first: c_uint, last: c_uint, flags: c_int) -> Result<usize, Errno> {
    // SAFETY: the program's own call.
    let close = |first: c_uint, last: c_uint| result(unsafe { system!(SYS_close_range, first, last, flags) });
    let spared = if process::is_borrowed() { Vec::new() } else { change.engines(first, last) };
    let mut begin = first;
    let mut answer = Ok(0);
    for fd in spared.into_iter().map(|fd| fd as c_uint) {
        if begin < fd {
            answer = answer.and(close(begin, fd - 1));
        }
        begin = fd + 1;
    }
    if begin > last && begin > first { answer } else { answer.and_then(|_| close(begin, last)) }
}

/// Changes descriptors and notes together. What `work` gives back besides its answer is released after it.
fn changed<T, Released>(work: impl FnOnce(&table::Change) -> (T, Released)) -> T {
    gate::engine(|| table::change(work).0)
}

/// A child of `vfork` changes its own descriptors and leaves its parent's notes alone.
fn note_unless_borrowed<T>(note: impl FnOnce() -> Option<T>) -> Option<T> {
    if process::is_borrowed() { None } else { note() }
}

/// `fcntl`.
fn control(fd: c_int, command: c_int, argument: usize) -> c_int {
    if !table::is_served(fd) {
        let answer = cancellable!(fcntl, SYS_fcntl(fd, command, argument));
        return if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
            engine::keep(answer)
        } else {
            answer
        };
    }
    match command {
        libc::F_DUPFD => duplicate(fd, argument, false),
        libc::F_DUPFD_CLOEXEC => duplicate(fd, argument, true),
        libc::F_GETFD => c_int::from(table::closes_on_exec(fd)) * libc::FD_CLOEXEC,
        libc::F_SETFD => {
            set_close_on_exec(fd, argument & libc::FD_CLOEXEC as usize != 0);
            0
        }
        _ => kernel!(SYS_fcntl, fd, command, argument) as c_int,
    }
}

/// Notes whether the program wants a served descriptor closed on exec. (The kernel's flag is always set.)
pub(crate) fn set_close_on_exec(fd: c_int, close: bool) {
    changed(|change| {
        if !process::is_borrowed() {
            change.set_close_on_exec(fd, close);
        }
        ((), ())
    });
}

/// A served descriptor once more, under the lowest free number from `lowest` on.
fn duplicate(fd: c_int, lowest: usize, close_on_exec: bool) -> c_int {
    let answer = changed(|change| {
        // SAFETY: the program's own call.
        let new = unsafe { system!(SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, lowest) };
        let answer = result(new).and_then(|new| {
            let new = new as c_int;
            let noted =
                note_unless_borrowed(|| table::get(fd)).map(|kept| change.set(new, kept, close_on_exec));
            match noted {
                Some(Err(errno)) => {
                    crate::raw::close(new);
                    Err(errno)
                }
                noted => Ok((new, noted)),
            }
        });
        match answer {
            Ok((new, stale)) => (Ok(c_long::from(new)), Some(stale)),
            Err(errno) => (Err(errno), None),
        }
    });
    returned(answer) as c_int
}

/// `dup3`, and `dup2` of two different descriptors.
fn replace(fd: c_int, to: c_int, flags: c_int) -> c_int {
    if table::is_engines(to) && !process::is_borrowed() {
        return returned(Err(Errno::EBUSY)) as c_int;
    }
    if !table::is_served(fd) && !table::is_served(to) {
        return kernel!(SYS_dup3, fd, to, flags) as c_int;
    }
    let answer = changed(|change| {
        let source = table::get(fd);
        // What is served never outlives an exec; the note has the program's wish.
        let kernels = if source.is_some() { flags | libc::O_CLOEXEC } else { flags };
        // SAFETY: the program's own call.
        let answer: Result<usize, Errno> = result(unsafe { system!(SYS_dup3, fd, to, kernels) });
        let replaced = match answer {
            Ok(_) => note_unless_borrowed(|| match source {
                Some(source) => change.set(to, source, flags & libc::O_CLOEXEC != 0).ok().flatten(),
                None => change.clear(to),
            }),
            Err(_) => None,
        };
        (answer, replaced)
    });
    returned(answer.map(|fd| fd as c_long)) as c_int
}
