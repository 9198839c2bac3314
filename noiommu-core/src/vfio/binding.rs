//! A device and its iommufd: what BIND, ATTACH and DETACH ask for, read and checked in the kernel's order.

use core::mem::offset_of;

use noiommu_uapi::vfio::device::*;
use zerocopy::IntoBytes;

use crate::ioctl::argument::{Argument, read};
use crate::{Errno, ObjectId, UserMemory};

/// VFIO_DEVICE_BIND_IOMMUFD.
#[derive(Clone, Copy, Debug)]
pub struct Bind {
    /// The iommufd's descriptor, not negative.
    pub iommufd: i32,
    /// Where the token is that goes with it, if there is one: 16 bytes.
    pub token: Option<u64>,
    argument: u64,
}

impl Bind {
    /// Reads the argument.
    ///
    /// # Errors
    /// EFAULT; EINVAL: too short, a negative descriptor, unknown flags; E2BIG: something in the tail.
    pub fn read(memory: &dyn UserMemory, argument: u64) -> Result<Self, Errno> {
        let structure = Argument::new(memory, argument)?;
        if (structure.size() as usize) < offset_of!(VfioDeviceBindIommufd, token_uuid_ptr) {
            return Err(Errno::EINVAL);
        }
        let call: VfioDeviceBindIommufd = structure.structure()?;
        if call.iommufd < 0 || call.flags & !VFIO_DEVICE_BIND_FLAG_TOKEN != 0 {
            return Err(Errno::EINVAL);
        }
        let token = (call.flags & VFIO_DEVICE_BIND_FLAG_TOKEN != 0).then_some(call.token_uuid_ptr);
        Ok(Self { iommufd: call.iommufd, token, argument })
    }

    /// Looks at the token. A device that is no virtual function, and whose functions share none, takes none.
    ///
    /// # Errors
    /// EFAULT: it cannot be read; EINVAL: there is one.
    pub fn check_token(&self, memory: &dyn UserMemory) -> Result<(), Errno> {
        let Some(address) = self.token else { return Ok(()) };
        let _: [u8; 16] = read(memory, address)?;
        Err(Errno::EINVAL)
    }

    /// Tells the device's id.
    ///
    /// # Errors
    /// EFAULT: the binding is to be undone.
    pub fn respond(&self, memory: &dyn UserMemory, device: ObjectId) -> Result<(), Errno> {
        let offset = offset_of!(VfioDeviceBindIommufd, out_devid) as u64;
        memory.write(self.argument.wrapping_add(offset), device.0.as_bytes())
    }
}

/// VFIO_DEVICE_ATTACH_IOMMUFD_PT.
#[derive(Clone, Copy, Debug)]
pub struct Attach {
    /// What to attach to.
    pub to: ObjectId,
    /// By which PASID; `None`: the device itself.
    pub pasid: Option<u32>,
    argument: u64,
}

impl Attach {
    /// Reads the argument.
    ///
    /// # Errors
    /// EFAULT; EINVAL: too short, unknown flags.
    pub fn read(memory: &dyn UserMemory, argument: u64) -> Result<Self, Errno> {
        const SHORT: usize = offset_of!(VfioDeviceAttachIommufdPt, pasid);
        let mut call = VfioDeviceAttachIommufdPt::default();
        let pasid = read_pasid(memory, argument, call.as_mut_bytes(), SHORT, VFIO_DEVICE_ATTACH_PASID)?;
        Ok(Self { to: ObjectId(call.pt_id), pasid: pasid.then_some(call.pasid), argument })
    }

    /// Tells the page table that the device is attached to.
    ///
    /// # Errors
    /// EFAULT: the device is to be detached.
    pub fn respond(&self, memory: &dyn UserMemory, hwpt: ObjectId) -> Result<(), Errno> {
        let offset = offset_of!(VfioDeviceAttachIommufdPt, pt_id) as u64;
        memory.write(self.argument.wrapping_add(offset), hwpt.0.as_bytes())
    }
}

/// VFIO_DEVICE_DETACH_IOMMUFD_PT.
#[derive(Clone, Copy, Debug)]
pub struct Detach {
    /// By which PASID; `None`: the device itself.
    pub pasid: Option<u32>,
}

impl Detach {
    /// Reads the argument.
    ///
    /// # Errors
    /// EFAULT; EINVAL: too short, unknown flags.
    pub fn read(memory: &dyn UserMemory, argument: u64) -> Result<Self, Errno> {
        const SHORT: usize = offset_of!(VfioDeviceDetachIommufdPt, pasid);
        let mut call = VfioDeviceDetachIommufdPt::default();
        let pasid = read_pasid(memory, argument, call.as_mut_bytes(), SHORT, VFIO_DEVICE_DETACH_PASID)?;
        Ok(Self { pasid: pasid.then_some(call.pasid) })
    }
}

/// Reads a structure that begins with its size and flags, whose last field, from `short` on, is there only if the flag
/// `with` says so; tells whether.
fn read_pasid(
    memory: &dyn UserMemory,
    argument: u64,
    call: &mut [u8],
    short: usize,
    with: u32,
) -> Result<bool, Errno> {
    let whole = call.len();
    let (head, rest) = call.split_at_mut_checked(short).ok_or(Errno::EINVAL)?;
    memory.read(argument, head)?;
    let word = |at: usize| {
        let bytes = head.get(at..at.wrapping_add(4)).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        bytes.map(u32::from_ne_bytes).ok_or(Errno::EINVAL)
    };
    let (size, flags) = (word(0)? as usize, word(4)?);
    if size < short || flags & !with != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & with == 0 {
        return Ok(false);
    }
    if size < whole {
        return Err(Errno::EINVAL);
    }
    memory.read(argument.wrapping_add(short as u64), rest)?;
    Ok(true)
}
