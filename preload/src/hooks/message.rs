//! Descriptors sent to other processes: served ones cannot be, as what they are open on lives in this one.

use std::ffi::{c_int, c_uint};
use std::mem::offset_of;

use libc::{cmsghdr, mmsghdr, msghdr, ssize_t};
use noiommu::Errno;
use noiommu_core::UserMemory as _;

use super::{cancellable, interpose};
use crate::copy::Memory;
use crate::paths::returned;
use crate::{gate, table};

interpose! {
    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        if table::is_any() && has_served(message as u64) {
            return returned(Err(Errno::EINVAL)) as ssize_t;
        }
        cancellable!(sendmsg, SYS_sendmsg(fd, message, flags))
    }

    fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
        /// As many as the kernel takes.
        const MOST: c_uint = 1024;
        let each = (0..u64::from(count.min(MOST))).map(|number| (messages as u64).wrapping_add(number * size_of::<mmsghdr>() as u64));
        if table::is_any() && each.into_iter().any(has_served) {
            return returned(Err(Errno::EINVAL)) as c_int;
        }
        cancellable!(sendmmsg, SYS_sendmmsg(fd, messages, count, flags))
    }
}

/// Whether a message carries a served descriptor. What cannot be read is the kernel's to refuse.
fn has_served(message: u64) -> bool {
    gate::engine(|| find_served(message)).unwrap_or(false)
}

fn find_served(message: u64) -> Result<bool, Errno> {
    /// More than the kernel takes of control data.
    const MOST: usize = 1 << 20;
    let memory = Memory::new();
    let word = |address: u64| -> Result<u64, Errno> {
        let mut bytes = [0; 8];
        memory.read(address, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    };
    let control = word(message.wrapping_add(offset_of!(msghdr, msg_control) as u64))?;
    let length = word(message.wrapping_add(offset_of!(msghdr, msg_controllen) as u64))? as usize;
    if control == 0 || length > MOST {
        return Ok(false);
    }
    let mut bytes = vec![0; length];
    memory.read(control, &mut bytes)?;
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, c_int::from_ne_bytes);
    let mut rest = bytes.as_slice();
    while let Some((header, _)) = rest.split_at_checked(size_of::<cmsghdr>()) {
        let size = header.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)) as usize;
        let Some(data) = rest.get(size_of::<cmsghdr>()..size) else { break };
        let is_rights =
            number(&header[8..12]) == libc::SOL_SOCKET && number(&header[12..16]) == libc::SCM_RIGHTS;
        if is_rights && data.chunks_exact(4).any(|fd| table::is_served(number(fd))) {
            return Ok(true);
        }
        rest = rest.get(size.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(false)
}
