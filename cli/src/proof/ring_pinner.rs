//! The smallest pinner there is: one io_uring per pin, with the memory as its only registered buffer.
//!
//! It stands in until the library's own pinning is plugged in.

use std::io;
use std::ptr::NonNull;

use io_uring::IoUring;

use super::Pinner;

/// Pins with registered buffers (FOLL_LONGTERM inside the kernel).
#[derive(Debug)]
pub(crate) struct RingPinner;

/// A ring that holds one registered buffer.
pub(crate) struct RingPin(IoUring);

impl Pinner for RingPinner {
    type Pin = RingPin;

    fn pin(&self, address: NonNull<u8>, length: usize) -> Result<RingPin, String> {
        let told = |what: &str, error: io::Error| match error.raw_os_error() {
            Some(libc::EPERM) => format!("{what}: {error} (is sysctl kernel.io_uring_disabled 0?)"),
            Some(libc::ENOMEM) => format!("{what}: {error} (is RLIMIT_MEMLOCK large enough?)"),
            Some(libc::ENOSYS) => format!("{what}: {error} (the kernel was built without io_uring)"),
            _ => format!("{what}: {error}"),
        };
        let ring = IoUring::new(1).map_err(|error| told("io_uring_setup", error))?;
        let buffer = libc::iovec { iov_base: address.as_ptr().cast(), iov_len: length };
        // SAFETY: no request is ever submitted to this ring, so the kernel never reads or writes the buffer: it
        // only holds references to its pages. An address that is not mapped is answered with EFAULT.
        unsafe { ring.submitter().register_buffers(&[buffer]) }
            .map_err(|error| told("registering a buffer with io_uring", error))?;
        Ok(RingPin(ring))
    }

    fn name(&self) -> &str {
        "io_uring registered buffers (FOLL_LONGTERM)"
    }
}

impl Drop for RingPin {
    fn drop(&mut self) {
        // Closing a ring unpins later, from a work queue; unregistering does it now. When it fails, closing is next.
        let _ = self.0.submitter().unregister_buffers();
    }
}
