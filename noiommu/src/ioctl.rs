//! Ioctls of the kernel's, by number: the structures are `noiommu-uapi`'s.

use std::ffi::c_void;
use std::os::fd::AsFd;

use noiommu_core::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use zerocopy::{FromBytes, IntoBytes};

/// An ioctl as the caller made it.
struct Forward {
    request: u32,
    argument: u64,
}

// SAFETY: the number is the one that was asked for, and nothing is done with the answer.
unsafe impl Ioctl for Forward {
    type Output = i64;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.request as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument as *mut c_void
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i64> {
        Ok(out.into())
    }
}

/// Calls a file with a number as argument, or with an address that is the business of whoever calls.
///
/// # Errors
/// What the kernel answers.
///
/// # Safety
/// Where the request reads or writes at the argument, that is memory which is the caller's to be read or written so.
pub(crate) unsafe fn call(file: &impl AsFd, request: u32, argument: u64) -> Result<i64, Errno> {
    // SAFETY: as the caller promises.
    let answer = unsafe { rustix::ioctl::ioctl(file, Forward { request, argument }) };
    answer.map_err(|error| Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::EIO))
}

/// Calls a file with a structure of ours, which tells its own size to the kernel (`size` or `argsz`) or has the one that the
/// request implies.
///
/// # Errors
/// What the kernel answers, but never EINTR: a call that a signal has ended has done nothing, and is made again.
pub(crate) fn call_with<T: IntoBytes + FromBytes + ?Sized>(
    file: &impl AsFd,
    request: u32,
    argument: &mut T,
) -> Result<i64, Errno> {
    let address = argument.as_mut_bytes().as_mut_ptr() as u64;
    loop {
        // SAFETY: the memory is borrowed for the call, is as long as it says, and any bytes are fine in it. Addresses inside
        // are read by the kernel alone, which checks them.
        match unsafe { call(file, request, address) } {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}
