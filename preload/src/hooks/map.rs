//! Mapping memory, and taking mappings away.

use std::ffi::{c_int, c_long, c_void};

use libc::{off_t, size_t};
use noiommu::Errno;
use noiommu::serve::MmapRequest;

use super::{interpose, kernel};
use crate::gate;
use crate::maps::{self, Range};
use crate::paths::returned;
use crate::raw::{result, system};
use crate::table::{self, Kept};

/// The two bits that say whether a mapping is shared.
const MAP_TYPE: c_int = 0xf;

interpose! {
    fn mmap(
        address: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t,
    ) -> *mut c_void {
        let kept = if flags & libc::MAP_ANONYMOUS != 0 { None } else { table::get(fd) };
        if let Some(kept) = kept.filter(|kept| kept.file().is_some()) {
            let request = MmapRequest {
                address: address as u64,
                length: length as u64,
                protection,
                flags,
                offset: offset as u64,
            };
            return returned(map(&kept, request)) as *mut c_void;
        }
        let fixed = flags & libc::MAP_FIXED != 0 && flags & libc::MAP_FIXED_NOREPLACE == 0;
        if !fixed || gate::is_inside() || !maps::may_be_in(address as u64, length as u64) {
            return kernel!(SYS_mmap, address, length, protection, flags, fd, offset) as *mut c_void;
        }
        let answer = over(address as u64, length as u64, || {
            // SAFETY: the program's own call.
            result(unsafe { system!(SYS_mmap, address, length, protection, flags, fd, offset) })
        });
        returned(answer) as *mut c_void
    }

    fn mmap64(
        address: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t,
    ) -> *mut c_void {
        // SAFETY: the same function.
        unsafe { mmap(address, length, protection, flags, fd, offset) }
    }

    fn munmap(address: *mut c_void, length: size_t) -> c_int {
        if gate::is_inside() || !maps::may_be_in(address as u64, length as u64) {
            return kernel!(SYS_munmap, address, length) as c_int;
        }
        let answer = over(address as u64, length as u64, || {
            // SAFETY: the program's own call.
            result(unsafe { system!(SYS_munmap, address, length) })
        });
        returned(answer) as c_int
    }

    fn mremap(
        old: *mut c_void, old_length: size_t, new_length: size_t, flags: c_int, new: *mut c_void,
    ) -> *mut c_void {
        let fixed = flags & libc::MREMAP_FIXED != 0;
        let concerned = maps::may_be_in(old as u64, old_length.max(1) as u64)
            || fixed && maps::may_be_in(new as u64, new_length as u64);
        if gate::is_inside() || !concerned {
            return kernel!(SYS_mremap, old, old_length, new_length, flags, new) as *mut c_void;
        }
        let call = || {
            // SAFETY: the program's own call.
            result(unsafe { system!(SYS_mremap, old, old_length, new_length, flags, new) })
        };
        let answer = gate::engine(|| {
            let (answer, _released) = maps::change(|mut maps| {
                let source = maps.at(old as u64).cloned();
                let answer = call();
                let mut released = Vec::new();
                if let Ok(new) = answer {
                    // An old length of 0 makes a second mapping of the same; DONTUNMAP keeps the old one.
                    if flags & libc::MREMAP_DONTUNMAP == 0
                        && let Some(range) = Range::pages(old as u64, old_length as u64)
                    {
                        released.extend(maps.cut(range));
                    }
                    if let Some(range) = Range::pages(new as u64, new_length as u64) {
                        released.extend(match source.clone() {
                            Some(kept) => maps.insert(range, kept),
                            None => maps.cut(range),
                        });
                    }
                }
                (answer, (released, source))
            });
            answer
        });
        returned(answer.map(|address| address as c_long)) as *mut c_void
    }
}

/// A call that takes a range away when it succeeds.
fn over(begin: u64, length: u64, call: impl FnOnce() -> Result<usize, Errno>) -> Result<c_long, Errno> {
    gate::engine(|| {
        let (answer, _released) = maps::change(|mut maps| {
            let answer = call();
            let range = Range::pages(begin, length).filter(|_| answer.is_ok());
            (answer, range.map(|range| maps.cut(range)))
        });
        answer.map(|value| value as c_long)
    })
}

/// `mmap` of a served file: the checks that the kernel makes for every file, then the file.
fn map(kept: &Kept, mut request: MmapRequest) -> Result<c_long, Errno> {
    const PAGE: u64 = 4096;
    let Some(file) = kept.file() else { return Err(Errno::EBADF) };
    if !request.offset.is_multiple_of(PAGE) || request.length == 0 || request.flags & libc::MAP_HUGETLB != 0 {
        return Err(Errno::EINVAL);
    }
    let length = request.length.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)?;
    if length > i64::MAX as u64 {
        return Err(Errno::ENOMEM);
    }
    // Offsets are unsigned for device files, and counted in pages.
    if (request.offset / PAGE).checked_add(length / PAGE).is_none_or(|end| end > u64::MAX / PAGE) {
        return Err(Errno::EOVERFLOW);
    }
    let access = kept.access & libc::O_ACCMODE;
    match request.flags & MAP_TYPE {
        libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE => {
            if access == libc::O_RDONLY {
                if request.protection & libc::PROT_WRITE != 0 {
                    return Err(Errno::EACCES);
                }
                // To a driver it is no shared mapping, as nothing can be written through it.
                request.flags = request.flags & !MAP_TYPE | libc::MAP_PRIVATE;
            }
        }
        libc::MAP_PRIVATE => {}
        _ => return Err(Errno::EINVAL),
    }
    if access == libc::O_WRONLY {
        return Err(Errno::EACCES);
    }
    let mut request = request;
    if access == libc::O_RDONLY {
        // Nobody could write to what is shared so: to the kernel, it is not shared.
        request.flags = request.flags & !MAP_TYPE | libc::MAP_PRIVATE;
    }
    gate::engine(|| {
        let (answer, _released) = maps::change(|mut maps| {
            // SAFETY: the program's own call.
            let answer = unsafe { file.mmap(request) };
            let range = answer.ok().and_then(|address| Range::pages(address, length));
            (answer, range.map(|range| maps.insert(range, kept.clone())))
        });
        answer.map(|address| address as c_long)
    })
}
