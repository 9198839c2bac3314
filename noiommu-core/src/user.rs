//! The memory of whoever calls, as the uAPI reaches it: by address, with EFAULT where there is none.

use crate::Errno;

/// Reads and writes the caller's memory; a bad address is an answer, never a crash.
pub trait UserMemory {
    /// Fills `into` with the bytes at `address`.
    ///
    /// # Errors
    /// EFAULT: some of the bytes cannot be read; `into` may be partly filled then.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno>;

    /// Writes `from` to `address`.
    ///
    /// # Errors
    /// EFAULT: some of the bytes cannot be written; those before may have been.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno>;
}
