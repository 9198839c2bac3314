//! What the engine needs of a machine and of a process, one by one: for programs that tell an administrator what is missing.
//!
//! [`Context::new`] asks the same questions, in this order, and stops at the first that is answered wrongly.

use std::path::Path;

use crate::memory::{self, Pagemap};
use crate::{Context, Contiguity, DmaBuffer, Error, ErrorKind, PinChoice, PinKind, Result};

/// Refuses a kernel, by its release, on which pins from user space cannot be relied on.
///
/// # Errors
/// [`ErrorKind::KernelTooOld`].
pub fn check_kernel(release: &str) -> Result<()> {
    memory::check_release(release)
}

/// Refuses a guest with encrypted memory, by the text of /proc/cpuinfo and the nodes in the directory `dev`.
///
/// # Errors
/// [`ErrorKind::EncryptedGuest`].
pub fn check_encryption(cpuinfo: &str, dev: &Path) -> Result<()> {
    memory::check_encryption(cpuinfo, dev)
}

/// Whether the kernel shows this process where its pages are.
///
/// # Errors
/// [`ErrorKind::NoPhysicalAddresses`]: /proc/self/pagemap cannot be opened, or answers frame 0 for a page that is in memory.
pub fn check_frames() -> Result<()> {
    memory::check_frames(&Pagemap::open()?)
}

/// Whether this process may use a source of pins, and which one it is.
///
/// # Errors
/// [`ErrorKind::NoPinSource`], with what refuses it as its errno.
pub fn check_pins(choice: PinChoice) -> Result<PinKind> {
    memory::source(choice, rustix::param::page_size()).map(|source| source.kind())
}

/// Pins one page for real, learns its address, asks anew, and lets it go.
///
/// # Errors
/// What keeps the engine from doing so here.
pub fn prove_pins(choice: PinChoice) -> Result<PinKind> {
    let context = Context::with_pins(choice)?;
    let ioas = context.ioas()?;
    let buffer = DmaBuffer::new(rustix::param::page_size(), Contiguity::Pages)?;
    let mapping = ioas.map(buffer).map_err(Error::from)?;
    if mapping.segments()?.is_empty() || mapping.moved_pages()? != Some(0) {
        let cause = "a pinned page has no address, or has got another one";
        return Err(Error::new(ErrorKind::System, noiommu_core::Errno::EIO, cause));
    }
    ioas.pin_kind()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_can_do_is_told_as_such() {
        // Whatever this process may do: the parts and the whole agree.
        let whole = Context::new().map(|context| context.pin_kind());
        let parts = check_frames().and_then(|()| check_pins(PinChoice::Best));
        assert_eq!(whole.is_ok(), parts.is_ok() && check_kernel(&crate::kernel_release()).is_ok());
        if let Ok(Ok(kind)) = whole {
            assert_eq!(prove_pins(PinChoice::Best), Ok(kind));
            assert_eq!(parts, Ok(kind));
        }
    }
}
