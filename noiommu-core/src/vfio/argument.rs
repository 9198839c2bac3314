//! Structures of arguments, between the caller's memory and ours.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Errno, UserMemory};

/// Reads the first `length` bytes of a structure; the rest is zero.
///
/// # Errors
/// EFAULT.
pub(crate) fn read<T>(user: &dyn UserMemory, address: u64, length: usize) -> Result<T, Errno>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let mut value = T::new_zeroed();
    user.read(address, value.as_mut_bytes().get_mut(..length).unwrap_or_default())?;
    Ok(value)
}

/// Writes the first `length` bytes of a structure, all of it where it has fewer.
///
/// # Errors
/// EFAULT.
pub(crate) fn write<T>(user: &dyn UserMemory, address: u64, value: &T, length: usize) -> Result<(), Errno>
where
    T: IntoBytes + Immutable,
{
    let bytes = value.as_bytes();
    user.write(address, bytes.get(..length).unwrap_or(bytes))
}
