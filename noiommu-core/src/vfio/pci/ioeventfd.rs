//! Registers that are written whenever an eventfd is signalled.

use noiommu_uapi::vfio::device::*;
use noiommu_uapi::vfio::pci::*;

use super::info::{REGION_MASK, REGION_SHIFT};
use super::{Backend, PciDevice};
use crate::vfio::argument;
use crate::{Errno, UserMemory};

/// As many for a device as the kernel allows.
const MOST: usize = 1000;

/// What is written where.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Write {
    bar: u8,
    offset: u64,
    width: u8,
    value: u64,
}

/// A standing order.
pub(super) struct Order<W> {
    write: Write,
    token: u64,
    _watch: W,
}

impl<B: Backend> PciDevice<B> {
    pub(super) fn ioeventfd(&mut self, user: &dyn UserMemory, argument: u64) -> Result<i64, Errno> {
        /// Up to `fd`.
        const REQUIRED: usize = 28;
        let order: VfioDeviceIoeventfd = argument::read(user, argument, REQUIRED)?;
        let width = order.flags & VFIO_DEVICE_IOEVENTFD_SIZE_MASK;
        if order.argsz < REQUIRED as u32 || order.flags != width || !width.is_power_of_two() || order.fd < -1
        {
            return Err(Errno::EINVAL);
        }
        let bar = u32::try_from(order.offset.wrapping_shr(REGION_SHIFT)).unwrap_or(u32::MAX);
        if bar > VFIO_PCI_BAR5_REGION_INDEX {
            return Err(Errno::EINVAL);
        }
        let write = Write {
            bar: bar as u8,
            offset: order.offset & REGION_MASK,
            width: width as u8,
            value: order.data,
        };
        let end = write.offset.wrapping_add(width.into());
        let hole = self.hole(write.bar);
        // The MSI-X table cannot be written this way either.
        if end > self.backend.resource(write.bar).size
            || (!hole.is_empty() && end > hole.start && write.offset < hole.end)
        {
            return Err(Errno::EINVAL);
        }
        if let Some(index) = self.orders.iter().position(|order| order.write == write) {
            if order.fd != -1 {
                return Err(Errno::EEXIST);
            }
            self.orders.swap_remove(index);
            return Ok(0);
        }
        if order.fd < 0 {
            return Err(Errno::ENODEV);
        }
        if self.orders.len() >= MOST {
            return Err(Errno::ENOSPC);
        }
        self.orders.try_reserve(1)?;
        let token = self.next_token;
        let watch = self.backend.watch(order.fd, token)?;
        self.next_token = token.wrapping_add(1);
        self.orders.try_push(Order { write, token, _watch: watch })?;
        Ok(0)
    }

    /// The eventfd of an order was signalled.
    pub(super) fn order_watched(&self, token: u64) {
        let Some(order) = self.orders.iter().find(|order| order.token == token) else { return };
        let Write { bar, offset, width, value } = order.write;
        if self.check_memory(self.backend.resource(bar).space).is_err() {
            return;
        }
        // Nobody hears of errors. An offset that is no multiple of the width is written in parts.
        if offset & u64::from(width).wrapping_sub(1) == 0 {
            let _ = self.backend.register_write(bar, offset, width, value);
        } else {
            for (byte, offset) in value.to_le_bytes().into_iter().take(width.into()).zip(offset..) {
                let _ = self.backend.register_write(bar, offset, 1, byte.into());
            }
        }
    }
}
