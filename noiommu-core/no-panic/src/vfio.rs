//! A device that answers anything.

use core::hint::black_box;

use noiommu_core::vfio::pci::{
    Address, Backend, Bound, Export, Messages, Neighbours, PciDevice, PhysicalRange, Resource, Space,
    Surroundings,
};
use noiommu_core::{Errno, TryVec, UserMemory};

use super::unknown;

struct Anything;

fn outcome<T>(value: T) -> Result<T, Errno> {
    if unknown() & 1 == 0 { Ok(value) } else { Err(Errno::from_raw(unknown() as i32).unwrap_or(Errno::EIO)) }
}

impl UserMemory for Anything {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        into.fill(address as u8);
        outcome(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        black_box((address, from));
        outcome(())
    }
}

impl Neighbours for Anything {
    fn through_cdev(&self) -> bool {
        unknown() & 1 == 0
    }

    fn bound(&self, _: Address) -> Bound {
        if unknown() & 1 == 0 { Bound::Here(unknown() as u32) } else { Bound::NotServed }
    }

    fn group_of(&self, _: Address) -> Option<u32> {
        outcome(unknown() as u32).ok()
    }

    fn group_at(&self, _: i32) -> Result<u32, Errno> {
        outcome(unknown() as u32)
    }
}

impl Export for Anything {
    fn export(&self, ranges: &[PhysicalRange], flags: u32) -> Result<i32, Errno> {
        black_box((ranges, flags));
        outcome(unknown() as i32)
    }
}

impl Backend for Anything {
    type Event = u64;
    type Watch = u64;

    fn page_size(&self) -> u64 {
        unknown()
    }

    fn config_size(&self) -> u16 {
        unknown() as u16
    }

    fn config_read(&self, _: u16, _: u8) -> Result<u32, Errno> {
        outcome(unknown() as u32)
    }

    fn config_write(&self, offset: u16, width: u8, value: u32) -> Result<(), Errno> {
        black_box((offset, width, value));
        outcome(())
    }

    fn resource(&self, _: u8) -> Resource {
        Resource {
            start: unknown(),
            size: unknown(),
            space: if unknown() & 1 == 0 { Space::Memory } else { Space::Ports },
            wide: unknown() & 1 == 0,
            prefetchable: unknown() & 1 == 0,
            mappable: unknown() & 1 == 0,
        }
    }

    fn register_read(&self, _: u8, _: u64, _: u8) -> Result<u64, Errno> {
        outcome(unknown())
    }

    fn register_write(&self, bar: u8, offset: u64, width: u8, value: u64) -> Result<(), Errno> {
        black_box((bar, offset, width, value));
        outcome(())
    }

    fn rom_size(&self) -> Option<u64> {
        outcome(unknown()).ok()
    }

    fn rom_read(&self, _: u64, _: u8) -> Result<u32, Errno> {
        outcome(unknown() as u32)
    }

    fn vpd_read(&self, _: u16) -> Result<u32, Errno> {
        outcome(unknown() as u32)
    }

    fn vpd_write(&self, _: u16, _: u32) -> Result<(), Errno> {
        outcome(())
    }

    fn reset(&self) -> Result<(), Errno> {
        outcome(())
    }

    fn reset_scope(&self, functions: &mut TryVec<Address>) -> Result<(), Errno> {
        for _ in 0..unknown() {
            functions.try_push(Address {
                segment: unknown() as u16,
                bus: unknown() as u8,
                devfn: unknown() as u8,
            })?;
        }
        outcome(())
    }

    fn reset_bus(&self) -> Result<(), Errno> {
        outcome(())
    }

    fn pause(&self, milliseconds: u32) {
        black_box(milliseconds);
    }

    fn atomic_operations(&self) -> u32 {
        unknown() as u32
    }

    fn is_physical_function(&self) -> bool {
        unknown() & 1 == 0
    }

    fn event(&self, _: i32) -> Result<u64, Errno> {
        outcome(unknown())
    }

    fn signal(&self, event: &u64) {
        black_box(event);
    }

    fn watch(&self, _: i32, _: u64) -> Result<u64, Errno> {
        outcome(unknown())
    }

    fn has_line(&self) -> bool {
        unknown() & 1 == 0
    }

    fn line_connect(&self, event: Option<&u64>) -> Result<(), Errno> {
        black_box(event);
        outcome(())
    }

    fn line_disconnect(&self) {}

    fn has_messages(&self, _: Messages) -> bool {
        unknown() & 1 == 0
    }

    fn has_dynamic_vectors(&self) -> bool {
        unknown() & 1 == 0
    }

    fn messages_enable(&self, _: Messages, _: u32) -> Result<u32, Errno> {
        outcome(unknown() as u32)
    }

    fn messages_connect(&self, _: Messages, vector: u32, event: Option<&u64>) -> Result<(), Errno> {
        black_box((vector, event));
        outcome(())
    }

    fn messages_disable(&self, _: Messages) {}
}

pub(super) fn devices() {
    let Ok(mut device) = PciDevice::open(Anything) else { return };
    for _ in 0..unknown() {
        let around = Surroundings { user: &Anything, neighbours: &Anything, export: &Anything };
        let _ = black_box(device.ioctl(around, unknown() as u32, unknown()));
        let _ = black_box(device.read(&Anything, unknown(), unknown(), unknown()));
        let _ = black_box(device.write(&Anything, unknown(), unknown(), unknown()));
        let _ = black_box(device.map(unknown(), unknown(), unknown() & 1 == 0));
        device.watched(unknown());
        black_box((
            device.mappings_answer(),
            device.memory_enabled(),
            device.revocations(),
            device.backend(),
        ));
    }
    device.close();
}
