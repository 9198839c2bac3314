//! A device that answers what it likes, and notes what is done to it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use arbitrary::Arbitrary;
use noiommu_core::vfio::pci::{
    Address, Backend, Bound, Export, Messages, Neighbours, PhysicalRange, Resource, Space,
};
use noiommu_core::{Errno, PhysAddr, TryVec, UserMemory};

/// Where the caller's argument is; nothing else of its memory is there.
pub(super) const ARGUMENT: u64 = 0x1_0000;
/// Accesses that a step may make: as many as a list that names itself is long, each time for a capability that is as long as config
/// space (as in the kernel, which does not look for such lists either).
const MOST_ACCESSES: u64 = 960 * 1100;
/// Of the header: ids, BARs, subsystem and ROM, line and pin.
const VIRTUAL: [std::ops::Range<u16>; 4] = [0..4, 0x10..0x28, 0x2c..0x34, 0x3c..0x3e];

/// What the device is like at the beginning.
#[derive(Arbitrary, Debug)]
pub(super) struct Hostile {
    /// What is not said otherwise: these bytes, again and again.
    filling: [u8; 8],
    header: [u8; 16],
    express: bool,
    /// Ids of capabilities, where they are, and what is in them.
    capabilities: Vec<(u8, u8, [u8; 6])>,
    extended: Vec<(u16, u16, [u8; 8])>,
    lists: bool,
    can_reset: bool,
    line: bool,
    dynamic: bool,
    scope: u8,
    vectors: u8,
    bars: [u8; 3],
}

impl Hostile {
    fn config(&self) -> Vec<u8> {
        let size = if self.express { 4096 } else { 256 };
        let mut config: Vec<u8> = self.filling.iter().copied().cycle().take(size).collect();
        config[..16].copy_from_slice(&self.header);
        if !self.lists {
            return config;
        }
        config[6] |= 0x10;
        let mut link = 0x34;
        for (id, at, bytes) in self.capabilities.iter().take(48) {
            let at = usize::from(*at).clamp(0x40, 0xf8);
            config[link] = at as u8;
            config[at] = *id % 0x18;
            config[at + 1] = 0;
            config[at + 2..at + 8].copy_from_slice(bytes);
            link = at + 1;
        }
        let mut link = None;
        for (id, at, bytes) in self.extended.iter().take(200).filter(|_| self.express) {
            let at = match link {
                None => 0x100,
                Some(_) => usize::from(at & 0xffc).clamp(0x100, 0xff4),
            };
            if let Some(link) = link {
                // The upper 12 bits of the head before.
                let head = config[link] & 0xf;
                config[link] = head | ((at as u16) << 4) as u8;
                config[link + 1] = (at >> 4) as u8;
            }
            config[at..at + 4].copy_from_slice(&(u32::from(id % 0x34) | 0x1_0000).to_le_bytes());
            config[at + 4..at + 12].copy_from_slice(bytes);
            link = Some(at + 2);
        }
        config
    }
}

pub(super) struct State {
    config: RefCell<Vec<u8>>,
    /// The same as it was at first.
    first: Vec<u8>,
    resources: [Resource; 7],
    can_reset: bool,
    line: bool,
    dynamic: bool,
    vectors: u32,
    scope: u8,
    /// Bits that come and go by themselves.
    lies: Cell<u8>,
    /// Whether it has ever answered what was not written to it.
    has_lied: Cell<bool>,
    fails: Cell<bool>,
    gone: Cell<bool>,
    accesses: Cell<u64>,
    enabled: Cell<Option<Messages>>,
    connected: RefCell<HashMap<u32, i32>>,
    line_connected: Cell<bool>,
}

#[derive(Clone)]
pub(super) struct Machine(Rc<State>);

impl Machine {
    pub(super) fn new(hostile: Hostile) -> Self {
        let mut resources = [Resource::default(); 7];
        let size = |log: u8| if log.is_multiple_of(20) { 0 } else { 1 << (2 + log % 20) };
        resources[0] = Resource {
            start: 0xfe00_0000,
            size: size(hostile.bars[0]),
            mappable: hostile.bars[0] & 0x40 != 0,
            wide: hostile.bars[0] & 0x20 != 0,
            ..Resource::default()
        };
        resources[2] = Resource {
            start: 0xc000,
            size: size(hostile.bars[1]),
            space: Space::Ports,
            ..Resource::default()
        };
        resources[6] = Resource { start: 0xfd00_0000, size: size(hostile.bars[2]), ..Resource::default() };
        Self(Rc::new(State {
            config: RefCell::new(hostile.config()),
            first: hostile.config(),
            resources,
            can_reset: hostile.can_reset,
            line: hostile.line,
            dynamic: hostile.dynamic,
            vectors: hostile.vectors.into(),
            scope: hostile.scope,
            lies: Cell::new(0),
            has_lied: Cell::new(false),
            fails: Cell::new(false),
            gone: Cell::new(false),
            accesses: Cell::new(0),
            enabled: Cell::new(None),
            connected: RefCell::default(),
            line_connected: Cell::new(false),
        }))
    }

    pub(super) fn shared(&self) -> &Rc<State> {
        &self.0
    }

    /// A byte of config space is another one from now on.
    pub(super) fn change(&self, at: u16, value: u8) {
        let mut config = self.0.config.borrow_mut();
        let size = config.len();
        config[usize::from(at) % size] = value;
        self.0.has_lied.set(true);
    }

    /// From now on these bits are different at every second look.
    pub(super) fn lie(&self, how: u8) {
        self.0.lies.set(how);
        self.0.has_lied.set(true);
    }

    pub(super) fn fail(&self, fails: bool) {
        self.0.fails.set(fails);
        self.0.has_lied.set(true);
    }

    /// It answers ones from now on.
    pub(super) fn go(&self) {
        self.0.gone.set(true);
        self.0.has_lied.set(true);
    }

    /// The step at hand is over.
    pub(super) fn rested(&self, step: &str) {
        let accesses = self.0.accesses.replace(0);
        assert!(accesses < MOST_ACCESSES, "{accesses} accesses: {step}");
    }

    /// The device is closed: what an honest one was told stays told.
    pub(super) fn closed(&self) {
        assert_eq!(self.0.enabled.get(), None, "messages stay enabled");
        assert!(!self.0.line_connected.get(), "the line stays connected");
        assert!(self.0.connected.borrow().is_empty());
        let command = self.0.config.borrow()[4];
        assert!(self.0.has_lied.get() || command & 4 == 0, "it masters the bus still");
    }

    /// Counts an access, and refuses it where the device fails.
    fn access(&self, offset: u64, width: u8, size: u64) -> Result<(), Errno> {
        assert!(matches!(width, 1 | 2 | 4 | 8), "width {width}");
        assert_eq!(offset % u64::from(width), 0, "misaligned: {offset:#x}");
        assert!(offset + u64::from(width) <= size, "{width} bytes at {offset:#x} of {size:#x}");
        self.0.accesses.set(self.0.accesses.get() + 1);
        assert!(self.0.accesses.get() < MOST_ACCESSES, "it does not end");
        if self.0.fails.get() { Err(Errno::EIO) } else { Ok(()) }
    }
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
        self.access(offset.into(), width, self.config_size().into())?;
        if self.0.gone.get() {
            return Ok(u32::MAX >> (32 - 8 * u32::from(width)));
        }
        let mut bytes = [0; 4];
        let start = usize::from(offset);
        let part = &mut bytes[..width.into()];
        part.copy_from_slice(&self.0.config.borrow()[start..start + usize::from(width)]);
        if self.0.accesses.get() % 2 == 1 {
            part.iter_mut().for_each(|byte| *byte ^= self.0.lies.get());
        }
        Ok(u32::from_le_bytes(bytes))
    }

    fn config_write(&self, offset: u16, width: u8, value: u32) -> Result<(), Errno> {
        self.access(offset.into(), width, self.config_size().into())?;
        // A write that is wider than what it changes puts back what the device has just told of the rest; after a reset, what
        // it told at first comes back.
        for (at, byte) in (offset..).zip(value.to_le_bytes()).take(width.into()) {
            let own = self.0.config.borrow()[usize::from(at)];
            let gone = if self.0.gone.get() { 0xff } else { own };
            let told = [own, own ^ self.0.lies.get(), gone, self.0.first[usize::from(at)]];
            let is_virtual = VIRTUAL.iter().any(|range| range.contains(&at));
            assert!(!is_virtual || told.contains(&byte), "{byte:#x} is written to {at:#x}, which is virtual");
        }
        let start = usize::from(offset);
        self.0.config.borrow_mut()[start..start + usize::from(width)]
            .copy_from_slice(&value.to_le_bytes()[..width.into()]);
        Ok(())
    }

    fn resource(&self, index: u8) -> Resource {
        self.0.resources[usize::from(index)]
    }

    fn register_read(&self, bar: u8, offset: u64, width: u8) -> Result<u64, Errno> {
        self.access(offset, width, self.resource(bar).size)?;
        Ok(0x0123_4567_89ab_cdef)
    }

    fn register_write(&self, bar: u8, offset: u64, width: u8, _: u64) -> Result<(), Errno> {
        self.access(offset, width, self.resource(bar).size)
    }

    fn rom_size(&self) -> Option<u64> {
        Some(self.0.resources[6].size / 2).filter(|size| *size > 0)
    }

    fn rom_read(&self, offset: u64, width: u8) -> Result<u32, Errno> {
        self.access(offset, width, self.rom_size().unwrap_or(0))?;
        Ok(0x55aa)
    }

    fn vpd_read(&self, address: u16) -> Result<u32, Errno> {
        self.access(0, 4, 4)?;
        Ok(address.into())
    }

    fn vpd_write(&self, _: u16, _: u32) -> Result<(), Errno> {
        self.access(0, 4, 4)
    }

    fn reset(&self) -> Result<(), Errno> {
        if self.0.can_reset { Ok(()) } else { Err(Errno::ENOTTY) }
    }

    fn reset_scope(&self, functions: &mut TryVec<Address>) -> Result<(), Errno> {
        if self.0.scope == 0 {
            return Err(Errno::ENODEV);
        }
        (0..self.0.scope).try_for_each(|devfn| functions.try_push(Address { segment: 0, bus: 1, devfn }))
    }

    fn reset_bus(&self) -> Result<(), Errno> {
        self.reset()
    }

    fn pause(&self, milliseconds: u32) {
        assert!(milliseconds <= 1000, "a pause of {milliseconds} ms");
    }

    fn atomic_operations(&self) -> u32 {
        0
    }

    fn is_physical_function(&self) -> bool {
        self.0.dynamic
    }

    fn event(&self, descriptor: i32) -> Result<i32, Errno> {
        match descriptor {
            100..110 => Ok(descriptor),
            0..3 => Err(Errno::EINVAL),
            _ => Err(Errno::EBADF),
        }
    }

    fn signal(&self, _: &i32) {}

    fn watch(&self, descriptor: i32, _: u64) -> Result<i32, Errno> {
        self.event(descriptor)
    }

    fn has_line(&self) -> bool {
        self.0.line
    }

    fn line_connect(&self, _: Option<&i32>) -> Result<(), Errno> {
        self.0.line_connected.set(true);
        Ok(())
    }

    fn line_disconnect(&self) {
        self.0.line_connected.set(false);
    }

    fn has_messages(&self, _: Messages) -> bool {
        true
    }

    fn has_dynamic_vectors(&self) -> bool {
        self.0.dynamic
    }

    fn messages_enable(&self, kind: Messages, vectors: u32) -> Result<u32, Errno> {
        if vectors == 0 {
            return Err(Errno::ERANGE);
        }
        let granted = vectors.min(self.0.vectors);
        if granted == 0 {
            return Err(Errno::ENOSPC);
        }
        if granted == vectors {
            assert_eq!(self.0.enabled.replace(Some(kind)), None, "enabled twice");
        }
        Ok(granted)
    }

    fn messages_connect(&self, kind: Messages, vector: u32, event: Option<&i32>) -> Result<(), Errno> {
        assert_eq!(self.0.enabled.get(), Some(kind), "connected without being enabled");
        assert!(vector < 4096, "vector {vector}");
        match event {
            Some(&event) => assert_eq!(self.0.connected.borrow_mut().insert(vector, event), None),
            None => assert!(self.0.connected.borrow_mut().remove(&vector).is_some()),
        }
        Ok(())
    }

    fn messages_disable(&self, kind: Messages) {
        assert_eq!(self.0.enabled.replace(None), Some(kind), "disabled without being enabled");
        assert!(self.0.connected.borrow().is_empty(), "disabled while connected");
    }
}

/// The caller's memory: the argument alone.
pub(super) struct User(pub(super) RefCell<Vec<u8>>);

impl User {
    fn range(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>, Errno> {
        let start = address.checked_sub(ARGUMENT).ok_or(Errno::EFAULT)?;
        let end = start.checked_add(length as u64).filter(|end| *end <= self.0.borrow().len() as u64);
        Ok(start as usize..end.ok_or(Errno::EFAULT)? as usize)
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

/// Nobody else is bound.
pub(super) struct Alone;

impl Neighbours for Alone {
    fn through_cdev(&self) -> bool {
        true
    }

    fn bound(&self, address: Address) -> Bound {
        match address.devfn {
            0 => Bound::Here(1),
            _ => Bound::NotServed,
        }
    }

    fn group_of(&self, address: Address) -> Option<u32> {
        (address.devfn % 2 == 1).then_some(7)
    }

    fn group_at(&self, descriptor: i32) -> Result<u32, Errno> {
        if descriptor == 105 { Ok(7) } else { Err(Errno::EBADF) }
    }
}

/// Descriptor 200, whatever it is for.
pub(super) struct Exported;

impl Export for Exported {
    fn export(&self, ranges: &[PhysicalRange], _: u32) -> Result<i32, Errno> {
        assert!(!ranges.is_empty());
        for PhysicalRange { start, length } in ranges {
            let inside = *start >= PhysAddr(0xfe00_0000) && start.0 + length <= 0xfe00_0000 + (1 << 22);
            assert!(inside && *length > 0, "{length:#x} bytes at {start} are exported");
        }
        Ok(200)
    }
}
