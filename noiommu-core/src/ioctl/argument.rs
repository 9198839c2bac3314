//! The structure that a call's argument points to: longer or shorter than the one known here, as versions differ.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Errno, UserMemory};

/// A structure in the caller's memory whose first field is its size.
pub(crate) struct Argument<'a> {
    memory: &'a dyn UserMemory,
    address: u64,
    size: u32,
}

impl<'a> Argument<'a> {
    /// Reads the size.
    ///
    /// # Errors
    /// EFAULT.
    pub(crate) fn new(memory: &'a dyn UserMemory, address: u64) -> Result<Self, Errno> {
        Ok(Self { memory, address, size: read(memory, address)? })
    }

    /// Bytes that the caller says there are.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    pub(crate) fn memory(&self) -> &'a dyn UserMemory {
        self.memory
    }

    /// The structure, with zeroes for what the caller's is too short for.
    ///
    /// # Errors
    /// E2BIG: the caller's is longer, and not all zero beyond; EFAULT.
    pub(crate) fn structure<T: FromBytes + IntoBytes>(&self) -> Result<T, Errno> {
        let mut structure = T::new_zeroed();
        let known = structure.as_mut_bytes();
        let given = self.size as usize;
        if given > known.len() {
            self.check_tail(known.len() as u64, u64::from(self.size))?;
        }
        let length = given.min(known.len());
        if let Some(part) = known.get_mut(..length) {
            self.memory.read(self.address, part)?;
        }
        Ok(structure)
    }

    /// Writes the structure back, as far as the caller has room.
    ///
    /// # Errors
    /// EFAULT.
    pub(crate) fn respond<T: IntoBytes + Immutable>(&self, structure: &T) -> Result<(), Errno> {
        let known = structure.as_bytes();
        let length = (self.size as usize).min(known.len());
        self.memory.write(self.address, known.get(..length).unwrap_or(known))
    }

    /// Writes a part of it back.
    ///
    /// # Errors
    /// EFAULT.
    pub(crate) fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        self.memory.write(self.address.wrapping_add(offset as u64), bytes)
    }

    /// E2BIG unless the bytes from `from` to `to` are all zero. The first byte decides that is not, or that cannot be read.
    fn check_tail(&self, from: u64, to: u64) -> Result<(), Errno> {
        let mut at = from;
        let mut buffer = [0; 256];
        let mut most = buffer.len() as u64;
        while at < to {
            let length = to.wrapping_sub(at).min(most);
            let Some(part) = buffer.get_mut(..length as usize) else { return Err(Errno::EFAULT) };
            let address = self.address.checked_add(at).ok_or(Errno::EFAULT)?;
            match self.memory.read(address, part) {
                Ok(()) if part.iter().any(|&byte| byte != 0) => return Err(Errno::E2BIG),
                Ok(()) => at = at.wrapping_add(length),
                // Byte by byte from here on, to find which comes first.
                Err(_) if length > 1 => most = 1,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Reads a value at `address`.
///
/// # Errors
/// EFAULT.
pub(crate) fn read<T: FromBytes + IntoBytes>(memory: &dyn UserMemory, address: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    memory.read(address, value.as_mut_bytes())?;
    Ok(value)
}
