//! What the calls of a group ask for, and what they answer.

use core::mem::size_of;

use noiommu_uapi::vfio::group::*;
use zerocopy::IntoBytes;

use crate::ioctl::argument::read;
use crate::{Errno, TryVec, UserMemory};

/// The longest name of a device that VFIO_GROUP_GET_DEVICE_FD takes, its end included.
const LONGEST_NAME: usize = 4096;

/// VFIO_GROUP_GET_STATUS. A no-IOMMU group is viable always; `has_iommu` tells whether something stands for its IOMMU.
///
/// # Errors
/// EFAULT; EINVAL: too short.
pub fn get_status(
    memory: &dyn UserMemory,
    argument: u64,
    has_iommu: impl FnOnce() -> bool,
) -> Result<(), Errno> {
    let mut status: VfioGroupStatus = read(memory, argument)?;
    if (status.argsz as usize) < size_of::<VfioGroupStatus>() {
        return Err(Errno::EINVAL);
    }
    status.flags = VFIO_GROUP_FLAGS_VIABLE;
    if has_iommu() {
        status.flags |= VFIO_GROUP_FLAGS_CONTAINER_SET;
    }
    memory.write(argument, status.as_bytes())
}

/// The descriptor that the argument of VFIO_GROUP_SET_CONTAINER points to.
///
/// # Errors
/// EFAULT.
pub fn descriptor(memory: &dyn UserMemory, argument: u64) -> Result<i32, Errno> {
    read(memory, argument)
}

/// The text that the argument of VFIO_GROUP_GET_DEVICE_FD points to.
#[derive(Debug, Default)]
pub struct Text(TryVec<u8>);

impl Text {
    /// Its bytes, without the end.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Reads the text.
///
/// # Errors
/// EFAULT; EINVAL: longer than a page; ENOMEM.
pub fn text(memory: &dyn UserMemory, argument: u64) -> Result<Text, Errno> {
    let mut text = TryVec::new();
    while text.len() < LONGEST_NAME {
        // Byte by byte: what lies behind the end may not be there.
        let at = argument.checked_add(text.len() as u64).ok_or(Errno::EFAULT)?;
        match read::<u8>(memory, at)? {
            0 => return Ok(Text(text)),
            byte => text.try_push(byte)?,
        }
    }
    Err(Errno::EINVAL)
}

/// Whether a text names the PCI device called `name`: its name, and spaces behind it. A token may stand there for a virtual
/// function; any other device takes none.
///
/// # Errors
/// EINVAL: the name is right, but something follows.
pub fn names(name: &str, text: &[u8]) -> Result<bool, Errno> {
    let Some(rest) = text.strip_prefix(name.as_bytes()) else { return Ok(false) };
    if rest.first().is_some_and(|&byte| byte != b' ') {
        return Ok(false);
    }
    if rest.iter().all(|&byte| byte == b' ') { Ok(true) } else { Err(Errno::EINVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_tokens() {
        const NAME: &str = "0000:00:04.0";
        let token = "01234567-89ab-cdef-0123-456789abcdef";
        let ask = |text: &str| names(NAME, text.as_bytes());
        assert_eq!(ask(NAME), Ok(true));
        assert_eq!(ask("0000:00:04.0 "), Ok(true));
        for other in ["", "0000:00:04", "0000:00:05.0", "0000:00:04.0x", "00000:00:04.0"] {
            assert_eq!(ask(other), Ok(false), "{other}");
        }
        for wrong in ["vf_token=", "x", &std::format!("vf_token={token}")] {
            assert_eq!(ask(&std::format!("{NAME} {wrong}")), Err(Errno::EINVAL), "{wrong}");
        }
    }
}
