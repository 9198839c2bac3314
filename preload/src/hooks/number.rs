//! `syscall`: the calls by number that programs make where their C library has no function yet.

use std::ffi::{c_char, c_int, c_long};

use libc::AT_FDCWD;
use noiommu_core::UserMemory as _;

use super::{descriptor, engine, interpose, io, map, message, metadata, open};
use crate::copy::Memory;
use crate::paths::route;
use crate::{gate, raw, thread};

interpose! {
    fn syscall(
        number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize,
    ) -> c_long {
        let (fd, second) = (a as c_int, b as c_int);
        // SAFETY: the program's own call, by the function that does the same.
        unsafe {
            match number {
                libc::SYS_ioctl => io::ioctl(fd, b as u64, c).into(),
                libc::SYS_close => descriptor::close(fd).into(),
                libc::SYS_close_range => descriptor::close_range(a as u32, b as u32, c as c_int).into(),
                libc::SYS_dup => descriptor::dup(fd).into(),
                #[cfg(target_arch = "x86_64")]
                libc::SYS_dup2 => descriptor::dup2(fd, second).into(),
                libc::SYS_dup3 => descriptor::dup3(fd, second, c as c_int).into(),
                libc::SYS_fcntl => descriptor::fcntl(fd, second, c).into(),
                libc::SYS_openat => open::open_at(fd, b as *const c_char, c as c_int, d as u32).into(),
                #[cfg(target_arch = "x86_64")]
                libc::SYS_open => open::open_at(AT_FDCWD, a as *const c_char, second, c as u32).into(),
                libc::SYS_openat2 => open_by_structure(fd, b as *const c_char, c, d),
                libc::SYS_read => io::read(fd, b as _, c) as c_long,
                libc::SYS_write => io::write(fd, b as _, c) as c_long,
                libc::SYS_pread64 => io::pread(fd, b as _, c, d as i64) as c_long,
                libc::SYS_pwrite64 => io::pwrite(fd, b as _, c, d as i64) as c_long,
                libc::SYS_readv => io::readv(fd, b as _, c as c_int) as c_long,
                libc::SYS_writev => io::writev(fd, b as _, c as c_int) as c_long,
                libc::SYS_lseek => io::lseek(fd, b as i64, c as c_int),
                libc::SYS_mmap => map::mmap(a as _, b, c as c_int, d as c_int, e as c_int, f as i64) as c_long,
                libc::SYS_munmap => map::munmap(a as _, b).into(),
                libc::SYS_mremap => map::mremap(a as _, b, c, d as c_int, e as _) as c_long,
                libc::SYS_fstat => metadata::fstat(fd, b as _).into(),
                libc::SYS_newfstatat => metadata::fstatat(fd, b as _, c as _, d as c_int).into(),
                libc::SYS_statx => metadata::statx(fd, b as _, c as c_int, d as u32, e as _).into(),
                #[cfg(target_arch = "x86_64")]
                libc::SYS_stat => metadata::stat(a as _, b as _).into(),
                #[cfg(target_arch = "x86_64")]
                libc::SYS_lstat => metadata::lstat(a as _, b as _).into(),
                #[cfg(target_arch = "x86_64")]
                libc::SYS_access => metadata::access(a as _, second).into(),
                libc::SYS_faccessat => metadata::faccessat(fd, b as _, c as c_int, 0).into(),
                libc::SYS_faccessat2 => metadata::faccessat(fd, b as _, c as c_int, d as c_int).into(),
                #[cfg(target_arch = "x86_64")]
                libc::SYS_readlink => metadata::readlink(a as _, b as _, c) as c_long,
                libc::SYS_sendmsg => message::sendmsg(fd, b as _, c as c_int) as c_long,
                libc::SYS_readlinkat => metadata::readlinkat(fd, b as _, c as _, d) as c_long,
                libc::SYS_io_uring_setup | libc::SYS_memfd_create | libc::SYS_socket => {
                    engine::keep(raw::answer(raw::call(number, [a, b, c, d, e, f])) as c_int).into()
                }
                libc::SYS_rt_sigprocmask => {
                    let answer = raw::answer(raw::call(number, [a, b, c, d, e, f]));
                    thread::forget();
                    answer
                }
                libc::SYS_capset | libc::SYS_setuid | libc::SYS_setreuid | libc::SYS_setresuid => {
                    let answer = raw::answer(raw::call(number, [a, b, c, d, e, f]));
                    thread::changed();
                    answer
                }
                number => raw::answer(raw::call(number, [a, b, c, d, e, f])),
            }
        }
    }
}

/// `openat2`: its structure begins with the flags and the mode.
fn open_by_structure(directory: c_int, path: *const c_char, structure: usize, size: usize) -> c_long {
    let kernel = |directory, path| super::kernel!(SYS_openat2, directory, path, structure, size);
    let mut words = [0; 16];
    let flags = if size < words.len() {
        None
    } else {
        let read = gate::engine(|| Memory::new().read(structure as u64, &mut words));
        read.ok().and_then(|()| words.first_chunk()).map(|flags| u64::from_ne_bytes(*flags) as c_int)
    };
    let Some(flags) = flags else { return kernel(directory, path) };
    let follow = flags & libc::O_NOFOLLOW == 0;
    route(directory, path, follow, kernel, |entry| open::open_entry(entry, flags, 0).map(Into::into))
}
