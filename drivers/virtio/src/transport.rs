//! How the crate's drivers reach the device: its own trait, on the kit's registers.
//!
//! The crate has a transport for PCI, too. It is not used, because it
//!
//! * wants pointers to registers, and behind the kit's there need not be one (a page of a BAR with an MSI-X table, a simulated device);
//! * believes the device: one that tells a notification past the end of its BAR is a panic, one with a structure at the end of 32 bits
//!   is an access anywhere, and one that has been pulled out is waited for without an end;
//! * does not know of devices behind an IOMMU, which refuse a driver that does not say that it does.

use std::sync::Arc;

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error as CrateError, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::registers::{MOST_READS, Registers};

/// A device as the crate sees it. What goes wrong, and cannot be told by the trait, ends the use of the device
/// ([`Registers::check`]).
#[derive(Clone, Debug)]
pub(crate) struct KitTransport {
    registers: Arc<Registers>,
    kind: DeviceType,
}

impl KitTransport {
    pub(crate) fn new(registers: &Arc<Registers>, kind: DeviceType) -> Self {
        Self { registers: registers.clone(), kind }
    }

    /// A field of the configuration of the kind: aligned as far as 4.1.3.1 has accesses, and within it.
    fn field(&self, offset: usize, align: usize, size: usize) -> Result<u64, CrateError> {
        let length = self.registers.specific_length().ok_or(CrateError::ConfigSpaceMissing)?;
        let end = offset.checked_add(size).map(|end| end as u64);
        match end {
            Some(end) if end <= length && align <= 4 && offset.is_multiple_of(align) => Ok(offset as u64),
            Some(_) if align <= 4 && offset.is_multiple_of(align) => Err(CrateError::ConfigSpaceTooSmall),
            _ => Err(CrateError::InvalidParam),
        }
    }
}

impl Transport for KitTransport {
    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn read_device_features(&mut self) -> u64 {
        self.registers.noted(self.registers.offered(), 0)
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.registers.noted(self.registers.accept(driver_features), ());
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.registers.noted(self.registers.most_descriptors(queue), 0).into()
    }

    fn notify(&mut self, queue: u16) {
        self.registers.noted(self.registers.notify(queue), ());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.registers.noted(self.registers.status(), 0).into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        // The status has 8 bits.
        self.registers.noted(self.registers.set_status(status.bits() as u8), ());
    }

    fn set_guest_page_size(&mut self, _: u32) {
        // Of devices of before version 1.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let made = self.registers.make_queue(queue, size, [descriptors, driver_area, device_area]);
        self.registers.noted(made, ());
    }

    fn queue_unset(&mut self, _: u16) {
        // 4.1.4.3.2: a queue goes with the device's reset, which comes before its memory is given up.
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.registers.noted(self.registers.is_queue_enabled(queue), true)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(self.registers.noted(self.registers.reason(), 0).into())
    }

    fn read_config_generation(&self) -> u32 {
        self.registers.noted(self.registers.generation(), 0)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, CrateError> {
        let place = self.field(offset, align_of::<T>(), size_of::<T>())?;
        let mut value = T::new_zeroed();
        let read = self.registers.read_specific(place, align_of::<T>(), value.as_mut_bytes());
        self.registers.noted(read, ());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), CrateError> {
        let place = self.field(offset, align_of::<T>(), size_of::<T>())?;
        let written = self.registers.write_specific(place, align_of::<T>(), value.as_bytes());
        self.registers.noted(written, ());
        Ok(())
    }

    fn read_consistent<T>(&self, read: impl Fn() -> Result<T, CrateError>) -> Result<T, CrateError> {
        // Not for as long as the device likes.
        for _ in 0..MOST_READS {
            let before = self.read_config_generation();
            let value = read();
            if before == self.read_config_generation() {
                return value;
            }
        }
        self.registers.violation("its configuration changes whenever it is read");
        Err(CrateError::IoError)
    }
}
