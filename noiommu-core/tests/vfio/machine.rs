//! A device of memory: it takes every write, and notes them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use noiommu_core::vfio::pci::{
    Address, Backend, Bound, Export, Messages, Neighbours, PhysicalRange, Resource,
};
use noiommu_core::{Errno, TryVec, UserMemory};

/// Where the caller's argument is; nothing else of its memory is there.
pub(crate) const ARGUMENT: u64 = 0x1_0000;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) config: RefCell<Vec<u8>>,
    /// Writes of config space since the last look: offset, width, value.
    pub(crate) config_writes: RefCell<Vec<(u16, u8, u32)>>,
    pub(crate) register_writes: RefCell<Vec<(u8, u64, u8, u64)>>,
    pub(crate) resources: [Resource; 7],
    pub(crate) rom: Option<(u64, Vec<u8>)>,
    pub(crate) can_reset: bool,
    pub(crate) scope: Vec<Address>,
    pub(crate) resets: Cell<u32>,
    pub(crate) line: bool,
    pub(crate) messages: bool,
    /// Most vectors of MSI that the machine gives.
    pub(crate) msi_limit: u32,
    pub(crate) dynamic: bool,
    pub(crate) connected: RefCell<HashMap<u32, i32>>,
    pub(crate) enabled: Cell<Option<Messages>>,
    pub(crate) events: RefCell<HashMap<i32, u64>>,
}

#[derive(Clone, Default)]
pub(crate) struct Machine(pub(crate) Rc<State>);

impl State {
    pub(crate) fn config_number(&self, offset: u16, width: u8) -> u32 {
        let mut bytes = [0; 4];
        let start = usize::from(offset);
        bytes[..width.into()].copy_from_slice(&self.config.borrow()[start..start + usize::from(width)]);
        u32::from_le_bytes(bytes)
    }
}

fn check(offset: u64, width: u8, size: u64) {
    assert!(matches!(width, 1 | 2 | 4 | 8), "width {width}");
    assert_eq!(offset % u64::from(width), 0, "misaligned");
    assert!(offset + u64::from(width) <= size, "{width} bytes at {offset:#x} of {size:#x}");
}

impl Backend for Machine {
    type Event = i32;
    type Watch = i32;

    fn page_size(&self) -> u64 {
        4096
    }

    fn config_size(&self) -> u16 {
        self.0.config.borrow().len() as u16
    }

    fn config_read(&self, offset: u16, width: u8) -> Result<u32, Errno> {
        check(offset.into(), width, self.0.config.borrow().len() as u64);
        Ok(self.0.config_number(offset, width))
    }

    fn config_write(&self, offset: u16, width: u8, value: u32) -> Result<(), Errno> {
        check(offset.into(), width, self.0.config.borrow().len() as u64);
        self.0.config_writes.borrow_mut().push((offset, width, value));
        let start = usize::from(offset);
        self.0.config.borrow_mut()[start..start + usize::from(width)]
            .copy_from_slice(&value.to_le_bytes()[..width.into()]);
        Ok(())
    }

    fn resource(&self, index: u8) -> Resource {
        self.0.resources[usize::from(index)]
    }

    fn register_read(&self, bar: u8, offset: u64, width: u8) -> Result<u64, Errno> {
        check(offset, width, self.resource(bar).size);
        Ok(0)
    }

    fn register_write(&self, bar: u8, offset: u64, width: u8, value: u64) -> Result<(), Errno> {
        check(offset, width, self.resource(bar).size);
        self.0.register_writes.borrow_mut().push((bar, offset, width, value));
        Ok(())
    }

    fn rom_size(&self) -> Option<u64> {
        self.0.rom.as_ref().map(|(size, _)| *size)
    }

    fn rom_read(&self, offset: u64, width: u8) -> Result<u32, Errno> {
        let (size, known) = self.0.rom.as_ref().unwrap();
        check(offset, width, *size);
        let mut bytes = [0; 4];
        for (byte, at) in bytes.iter_mut().take(width.into()).zip(offset as usize..) {
            *byte = known.get(at).copied().unwrap_or(0);
        }
        Ok(u32::from_le_bytes(bytes))
    }

    fn vpd_read(&self, address: u16) -> Result<u32, Errno> {
        Ok(address.into())
    }

    fn vpd_write(&self, _: u16, _: u32) -> Result<(), Errno> {
        Err(Errno::EIO)
    }

    fn reset(&self) -> Result<(), Errno> {
        self.0.resets.set(self.0.resets.get() + 1);
        if self.0.can_reset { Ok(()) } else { Err(Errno::ENOTTY) }
    }

    fn reset_scope(&self, functions: &mut TryVec<Address>) -> Result<(), Errno> {
        if self.0.scope.is_empty() {
            return Err(Errno::ENODEV);
        }
        self.0.scope.iter().try_for_each(|&at| functions.try_push(at))
    }

    fn reset_bus(&self) -> Result<(), Errno> {
        self.0.resets.set(self.0.resets.get() + 1);
        // QEMU's ports reset the bus, and then report no link that the kernel waits for.
        Err(Errno::ENOTTY)
    }

    fn pause(&self, _: u32) {}

    fn atomic_operations(&self) -> u32 {
        0
    }

    fn is_physical_function(&self) -> bool {
        false
    }

    fn event(&self, descriptor: i32) -> Result<i32, Errno> {
        match descriptor {
            100..110 => Ok(descriptor),
            0..3 => Err(Errno::EINVAL),
            _ => Err(Errno::EBADF),
        }
    }

    fn signal(&self, event: &i32) {
        *self.0.events.borrow_mut().entry(*event).or_default() += 1;
    }

    fn watch(&self, descriptor: i32, _: u64) -> Result<i32, Errno> {
        self.event(descriptor)
    }

    fn has_line(&self) -> bool {
        self.0.line
    }

    fn line_connect(&self, _: Option<&i32>) -> Result<(), Errno> {
        Ok(())
    }

    fn line_disconnect(&self) {}

    fn has_messages(&self, _: Messages) -> bool {
        self.0.messages
    }

    fn has_dynamic_vectors(&self) -> bool {
        self.0.dynamic
    }

    fn messages_enable(&self, kind: Messages, vectors: u32) -> Result<u32, Errno> {
        if vectors == 0 {
            return Err(Errno::ERANGE);
        }
        let granted = if kind == Messages::Msi { vectors.min(self.0.msi_limit) } else { vectors };
        if granted == vectors {
            assert_eq!(self.0.enabled.replace(Some(kind)), None);
        }
        Ok(granted)
    }

    fn messages_connect(&self, kind: Messages, vector: u32, event: Option<&i32>) -> Result<(), Errno> {
        assert_eq!(self.0.enabled.get(), Some(kind));
        match event {
            Some(&event) => assert_eq!(self.0.connected.borrow_mut().insert(vector, event), None),
            None => assert!(self.0.connected.borrow_mut().remove(&vector).is_some()),
        }
        Ok(())
    }

    fn messages_disable(&self, kind: Messages) {
        assert_eq!(self.0.enabled.replace(None), Some(kind));
        assert!(self.0.connected.borrow().is_empty());
    }
}

/// The caller's memory: the argument alone.
#[derive(Default)]
pub(crate) struct User(pub(crate) RefCell<Vec<u8>>);

impl User {
    fn range(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>, Errno> {
        let start = address.checked_sub(ARGUMENT).ok_or(Errno::EFAULT)? as usize;
        match start.checked_add(length) {
            Some(end) if end <= self.0.borrow().len() => Ok(start..end),
            _ => Err(Errno::EFAULT),
        }
    }
}

impl UserMemory for User {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let range = self.range(address, into.len())?;
        into.copy_from_slice(&self.0.borrow()[range]);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let range = self.range(address, from.len())?;
        self.0.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }
}

/// The recordings were made through the cdev, with this device bound alone.
pub(crate) struct Alone {
    pub(crate) at: Option<Address>,
    pub(crate) id: u32,
}

impl Neighbours for Alone {
    fn through_cdev(&self) -> bool {
        true
    }

    fn bound(&self, address: Address) -> Bound {
        if self.at == Some(address) { Bound::Here(self.id) } else { Bound::NotServed }
    }

    fn group_of(&self, _: Address) -> Option<u32> {
        None
    }

    fn group_at(&self, _: i32) -> Result<u32, Errno> {
        Err(Errno::EBADF)
    }
}

/// Descriptor 200, whatever it is for.
pub(crate) struct Exported;

impl Export for Exported {
    fn export(&self, ranges: &[PhysicalRange], _: u32) -> Result<i32, Errno> {
        assert!(!ranges.is_empty());
        Ok(200)
    }
}
