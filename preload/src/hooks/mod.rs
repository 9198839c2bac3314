//! The functions of the C library that this one stands in front of.
//!
//! Each looks whether it is meant (a served descriptor, a path of ours) and hands the call on if not: to the kernel, or to the
//! C library's own function where a thread can be cancelled in it.

mod descriptor;
mod directory;
mod engine;
mod identity;
mod io;
mod map;
mod message;
mod metadata;
mod number;
mod open;
mod signal;

use std::ffi::c_int;

pub(crate) use engine::Start;

use noiommu::Errno;
use noiommu::serve::{Descriptors, File, FileKind};

use crate::raw::{self, result, system};
use crate::table::{self, Open};
use crate::{gate, maps};

/// Defines functions under the names of the C library.
///
/// They are exported from the shared library only: the crate's own tests keep the C library that they have. All of them are unsafe
/// as the functions that they stand for are, and promise what those promise. A panic in one ends the process.
macro_rules! interpose {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $answer:ty)? $body:block)*) => {$(
        $(#[$attribute])*
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[cfg_attr(test, allow(dead_code))]
        pub(crate) unsafe extern "C" fn $name($($argument: $type),*) $(-> $answer)? $body
    )*};
}
use interpose;

/// The program's call, as it is, to the kernel.
macro_rules! kernel {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: the program's own call, which promises what the system call asks for.
        crate::raw::answer(unsafe { crate::raw::system!($number $(, $argument)*) })
    };
}
use kernel;

/// The program's call, as it is, to the C library.
macro_rules! library {
    ($name:ident($($argument:expr),*)) => {
        // SAFETY: the program's own call, which promises what the function asks for.
        unsafe { crate::real::$name()($($argument),*) }
    };
}
use library;

/// The program's call, as it is, to a function of the C library in which a thread can be cancelled. Before our constructor has run
/// it is not looked for: the dynamic linker may need memory for that, and the call may come from an allocator.
macro_rules! cancellable {
    ($name:ident, $number:ident($($argument:expr),*)) => {
        if crate::state::is_early() {
            crate::hooks::kernel!($number $(, $argument)*) as _
        } else {
            crate::hooks::library!($name($($argument),*))
        }
    };
}
use cancellable;

/// The descriptors of this process.
pub(crate) struct Program;

impl Descriptors for Program {
    fn get(&self, descriptor: i32) -> Result<File, Errno> {
        match table::get(descriptor) {
            Some(kept) => match &kept.what {
                Open::File(file, _) => Ok(file.clone()),
                Open::Path(_) => Err(Errno::EBADF),
                Open::Directory(_) => Err(Errno::EBADFD),
            },
            None => {
                // SAFETY: asks for the flags of a descriptor.
                let flags = result(unsafe { system!(SYS_fcntl, descriptor, libc::F_GETFL) })?;
                // A descriptor by O_PATH is none for most calls.
                let is_path = flags & libc::O_PATH as usize != 0;
                Err(if is_path { Errno::EBADF } else { Errno::EBADFD })
            }
        }
    }

    fn install(&self, file: File) -> Result<i32, Errno> {
        let fd = match file.kind() {
            FileKind::Queue => open::queue_placeholder()?,
            FileKind::Calls | FileKind::Bytes => open::placeholder(libc::O_RDWR, 0)?,
        };
        open::note(fd, table::describe(Open::File(file, None), libc::O_RDWR), true)
    }

    fn remove(&self, descriptor: i32) {
        // The note goes first: once the kernel has closed it, the number may be another file's.
        drop(table::change(|change| {
            let file = change.clear(descriptor);
            raw::close(descriptor);
            file
        }));
    }
}

/// Forgets everything that is served, and releases it.
pub(crate) fn close_all() {
    gate::engine(|| {
        let all: Vec<_> = table::change(|change| {
            let served = change.served(0, c_int::MAX as u32);
            served.into_iter().filter_map(|fd| change.clear(fd)).collect()
        });
        drop(all);
        drop(maps::forget_all());
    });
}
