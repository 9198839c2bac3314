//! Calls on open files.

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::sync::atomic::Ordering;

use libc::{iovec, off_t, size_t, ssize_t};
use noiommu::Errno;
use noiommu::serve::{Caller, File, FileKind};
use noiommu_core::UserMemory as _;
use noiommu_uapi::iommufd::IOMMU_IOAS_NOIOMMU_GET_PA;

use super::{Program, cancellable, descriptor, engine, interpose, kernel, library};
use crate::copy::Memory;
use crate::paths::returned;
use crate::raw::errno;
use crate::table::{self, Kept};
use crate::{gate, quick};

/// As many bytes as the kernel moves at once.
const MOST: u64 = (i32::MAX as u64) & !4095;

/// The call of the kernel's that answers a descriptor.
const VFIO_GROUP_GET_DEVICE_FD: u32 = 0x3b6a;

// What the kernel answers for every file before the file is asked.
const FIGETBSZ: u32 = 2;
const FIOQSIZE: u32 = 0x5460;
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;

interpose! {
    fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
        let Some(kept) = table::get(fd) else {
            let answer = kernel!(SYS_ioctl, fd, request, argument) as c_int;
            return if request as u32 == VFIO_GROUP_GET_DEVICE_FD { engine::keep(answer) } else { answer };
        };
        let Some(file) = kept.file() else {
            return kernel!(SYS_ioctl, fd, request, argument) as c_int;
        };
        if request as u32 == IOMMU_IOAS_NOIOMMU_GET_PA && quick::get_pa(file, argument) {
            return 0;
        }
        // The kernel takes 32 bits of it.
        let answer = match request as u32 {
            request if request == libc::FIOCLEX as u32 => {
                descriptor::set_close_on_exec(fd, true);
                Ok(0)
            }
            request if request == libc::FIONCLEX as u32 => {
                descriptor::set_close_on_exec(fd, false);
                Ok(0)
            }
            request
                if request == libc::FIONBIO as u32
                    || request == libc::FIOASYNC as u32
                    || matches!(request, FIGETBSZ | FIOQSIZE | FS_IOC_GETFLAGS | FS_IOC_SETFLAGS) =>
            {
                return kernel!(SYS_ioctl, fd, request, argument) as c_int;
            }
            request => ask(|caller| file.ioctl(caller, request, argument as u64)),
        };
        returned(answer) as c_int
    }

    fn read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t {
        match served(fd) {
            Some(kept) => moved(&kept, Way::Read, buffer as u64, length, None),
            None => cancellable!(read, SYS_read(fd, buffer, length)),
        }
    }

    fn __read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t {
        // SAFETY: the same function.
        unsafe { read(fd, buffer, length) }
    }

    fn write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t {
        match served(fd) {
            Some(kept) => moved(&kept, Way::Write, buffer as u64, length, None),
            None => cancellable!(write, SYS_write(fd, buffer, length)),
        }
    }

    fn __write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t {
        // SAFETY: the same function.
        unsafe { write(fd, buffer, length) }
    }

    fn pread(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t) -> ssize_t {
        match served(fd) {
            Some(kept) => moved(&kept, Way::Read, buffer as u64, length, Some(offset)),
            None => cancellable!(pread, SYS_pread64(fd, buffer, length, offset)),
        }
    }

    fn pread64(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t) -> ssize_t {
        // SAFETY: the same function.
        unsafe { pread(fd, buffer, length, offset) }
    }

    fn __pread64(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t) -> ssize_t {
        // SAFETY: the same function.
        unsafe { pread(fd, buffer, length, offset) }
    }

    fn pwrite(fd: c_int, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t {
        match served(fd) {
            Some(kept) => moved(&kept, Way::Write, buffer as u64, length, Some(offset)),
            None => cancellable!(pwrite, SYS_pwrite64(fd, buffer, length, offset)),
        }
    }

    fn pwrite64(fd: c_int, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t {
        // SAFETY: the same function.
        unsafe { pwrite(fd, buffer, length, offset) }
    }

    fn __pwrite64(fd: c_int, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t {
        // SAFETY: the same function.
        unsafe { pwrite(fd, buffer, length, offset) }
    }

    fn __read_chk(fd: c_int, buffer: *mut c_void, length: size_t, room: size_t) -> ssize_t {
        if table::is_served(fd) && length <= room {
            // SAFETY: the same function, once the length is found good.
            return unsafe { read(fd, buffer, length) };
        }
        library!(read_chk(fd, buffer, length, room))
    }

    fn __pread_chk(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t, room: size_t) -> ssize_t {
        if table::is_served(fd) && length <= room {
            // SAFETY: the same function, once the length is found good.
            return unsafe { pread(fd, buffer, length, offset) };
        }
        library!(pread_chk(fd, buffer, length, offset, room))
    }

    fn __pread64_chk(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t, room: size_t) -> ssize_t {
        // SAFETY: the same function.
        unsafe { __pread_chk(fd, buffer, length, offset, room) }
    }

    fn readv(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
        match served(fd) {
            Some(kept) => moved_pieces(&kept, Way::Read, pieces, count, None, 0),
            None => cancellable!(readv, SYS_readv(fd, pieces, count)),
        }
    }

    fn writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
        match served(fd) {
            Some(kept) => moved_pieces(&kept, Way::Write, pieces, count, None, 0),
            None => cancellable!(writev, SYS_writev(fd, pieces, count)),
        }
    }

    fn preadv(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t {
        match served(fd) {
            Some(kept) => moved_pieces(&kept, Way::Read, pieces, count, Some(offset), 0),
            None => cancellable!(preadv, SYS_preadv(fd, pieces, count, offset)),
        }
    }

    fn preadv64(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t {
        // SAFETY: the same function.
        unsafe { preadv(fd, pieces, count, offset) }
    }

    fn pwritev(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t {
        match served(fd) {
            Some(kept) => moved_pieces(&kept, Way::Write, pieces, count, Some(offset), 0),
            None => cancellable!(pwritev, SYS_pwritev(fd, pieces, count, offset)),
        }
    }

    fn pwritev64(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t {
        // SAFETY: the same function.
        unsafe { pwritev(fd, pieces, count, offset) }
    }

    fn preadv2(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        match served(fd) {
            // -1: where the file stands.
            Some(kept) => {
                let offset = Some(offset).filter(|&offset| offset != -1);
                moved_pieces(&kept, Way::Read, pieces, count, offset, flags)
            }
            None => library!(preadv2(fd, pieces, count, offset, flags)),
        }
    }

    fn preadv64v2(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        // SAFETY: the same function.
        unsafe { preadv2(fd, pieces, count, offset, flags) }
    }

    fn pwritev2(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        match served(fd) {
            Some(kept) => {
                let offset = Some(offset).filter(|&offset| offset != -1);
                moved_pieces(&kept, Way::Write, pieces, count, offset, flags)
            }
            None => library!(pwritev2(fd, pieces, count, offset, flags)),
        }
    }

    fn pwritev64v2(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        // SAFETY: the same function.
        unsafe { pwritev2(fd, pieces, count, offset, flags) }
    }

    fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t {
        match served(fd) {
            Some(_) => returned(Err(errno(libc::ESPIPE))),
            None => kernel!(SYS_lseek, fd, offset, whence),
        }
    }

    fn lseek64(fd: c_int, offset: off_t, whence: c_int) -> off_t {
        // SAFETY: the same function.
        unsafe { lseek(fd, offset, whence) }
    }
}

/// The served file behind a descriptor; directories of ours and O_PATH are the kernel's to refuse.
#[inline]
fn served(fd: c_int) -> Option<Kept> {
    table::get(fd).filter(|kept| kept.file().is_some())
}

/// A call of the engine, on behalf of the program.
pub(crate) fn ask<R>(call: impl FnOnce(Caller<'_>) -> Result<R, Errno>) -> Result<R, Errno> {
    gate::engine(|| {
        let memory = Memory::new();
        call(Caller { user: &memory, descriptors: &Program })
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}

impl Way {
    /// Whether a file opened like that can be read or written.
    fn is_open(self, access: c_int) -> bool {
        let other = if self == Self::Read { libc::O_WRONLY } else { libc::O_RDONLY };
        access & libc::O_ACCMODE != other
    }

    fn ask(
        self,
        file: &File,
        caller: Caller<'_>,
        address: u64,
        length: u64,
        offset: u64,
    ) -> Result<u64, Errno> {
        match self {
            Self::Read => file.read(caller, address, length, offset),
            Self::Write => file.write(caller, address, length, offset),
        }
    }
}

/// `read`, `write`, and with an offset `pread`, `pwrite`: the checks that the kernel makes for every file, then the file.
fn moved(kept: &Kept, way: Way, address: u64, length: size_t, offset: Option<off_t>) -> ssize_t {
    let pieces = [(address, length as u64)];
    let moved = start(kept, way, offset).and_then(|begin| {
        // No address of a program has the upper bit; the kernel looks at the whole range before it asks the file.
        if address.checked_add(length as u64).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Errno::EFAULT);
        }
        if begin.checked_add(length as u64).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Errno::EINVAL);
        }
        through(kept, way, &pieces, begin, offset.is_none())
    });
    returned(moved.map(|bytes| bytes as c_long)) as ssize_t
}

/// `readv` and its kind.
fn moved_pieces(
    kept: &Kept,
    way: Way,
    pieces: *const iovec,
    count: c_int,
    offset: Option<off_t>,
    flags: c_int,
) -> ssize_t {
    let moved = start(kept, way, offset).and_then(|begin| {
        let pieces = gate::engine(|| import(pieces as u64, count))?;
        if flags & !libc::RWF_HIPRI != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        through(kept, way, &pieces, begin, offset.is_none())
    });
    returned(moved.map(|bytes| bytes as c_long)) as ssize_t
}

/// Where it begins, once the file can be read or written at all.
fn start(kept: &Kept, way: Way, offset: Option<off_t>) -> Result<u64, Errno> {
    let begin = match offset {
        Some(offset) => u64::try_from(offset).map_err(|_| Errno::EINVAL)?,
        None => kept.position.load(Ordering::Relaxed),
    };
    let kind = kept.file().map_or(FileKind::Calls, |file| file.kind());
    if kind == FileKind::Queue && offset.is_some() {
        return Err(errno(libc::ESPIPE));
    }
    if !way.is_open(kept.access) {
        return Err(Errno::EBADF);
    }
    if kind == FileKind::Calls { Err(Errno::EINVAL) } else { Ok(begin) }
}

/// Piece after piece, until one is not moved whole. `stands`: the file remembers where it went to.
fn through(kept: &Kept, way: Way, pieces: &[(u64, u64)], begin: u64, stands: bool) -> Result<u64, Errno> {
    let Some(file) = kept.file() else { return Err(Errno::EBADF) };
    let mut total = 0_u64;
    let mut outcome = Ok(());
    for &(address, length) in pieces {
        let length = length.min(MOST.saturating_sub(total));
        match ask(|caller| way.ask(file, caller, address, length, begin.wrapping_add(total))) {
            Ok(bytes) => {
                total = total.saturating_add(bytes);
                if bytes != length || total >= MOST {
                    break;
                }
            }
            Err(errno) => {
                outcome = Err(errno);
                break;
            }
        }
    }
    if stands && total > 0 {
        kept.position.store(begin.wrapping_add(total), Ordering::Relaxed);
    }
    if total > 0 { Ok(total) } else { outcome.map(|()| 0) }
}

/// The pieces of memory that a program's array names.
fn import(array: u64, count: c_int) -> Result<Vec<(u64, u64)>, Errno> {
    /// As many as the kernel takes.
    const MOST_PIECES: usize = 1024;
    let count = usize::try_from(count).ok().filter(|&count| count <= MOST_PIECES).ok_or(Errno::EINVAL)?;
    let mut bytes = vec![0; count * size_of::<iovec>()];
    Memory::new().read(array, &mut bytes)?;
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
    let (pieces, _) = bytes.as_chunks::<{ size_of::<iovec>() }>();
    let pieces: Vec<_> = pieces.iter().map(|piece| (word(&piece[..8]), word(&piece[8..]))).collect();
    if pieces.iter().any(|&(_, length)| length > i64::MAX as u64) {
        return Err(Errno::EINVAL);
    }
    Ok(pieces)
}
