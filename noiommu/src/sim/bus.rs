//! The bus as a device sees it: memory by physical address, its config space, its interrupts.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use noiommu_core::PhysAddr;

use super::memory::{Memory, Who};
use super::wires::Wires;
use super::{Config, Direction};
use crate::device::{COMMAND, COMMAND_BUS_MASTER};

/// No IOAS.
const DETACHED: u32 = u32::MAX;

/// What a device has to do with besides itself.
pub(super) struct Outside {
    pub(super) name: String,
    pub(super) config: Config,
    pub(super) wires: Wires,
    /// A driver has the device.
    pub(super) open: AtomicBool,
    /// Bus mastering has been on since it has.
    pub(super) mastered: AtomicBool,
    ioas: AtomicU32,
}

impl Outside {
    pub(super) fn new(name: String, config: Config, wires: Wires) -> Self {
        let (open, mastered) = Default::default();
        Self { name, config, wires, open, mastered, ioas: AtomicU32::new(DETACHED) }
    }

    /// The IOAS that the device is attached to.
    pub(super) fn set_ioas(&self, ioas: Option<u32>) {
        self.ioas.store(ioas.unwrap_or(DETACHED), Ordering::Release);
    }

    pub(super) fn is_master(&self) -> bool {
        self.config.with(|bytes| bytes[usize::from(COMMAND)] & COMMAND_BUS_MASTER as u8 != 0)
    }

    fn who(&self) -> Who<'_> {
        let ioas = Some(self.ioas.load(Ordering::Acquire)).filter(|ioas| *ioas != DETACHED);
        Who { device: &self.name, ioas }
    }
}

/// An access to memory that nobody answered: no memory is there, bus mastering is off, or the sanitizer has stopped it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody answered on the bus")
    }
}

impl std::error::Error for Aborted {}

/// A device's hands: memory by address, its own config space, its interrupts. Given to a model with every call.
pub struct Bus<'a> {
    pub(super) outside: &'a Outside,
    pub(super) memory: &'a mut dyn Memory,
}

impl Bus<'_> {
    /// Reads memory. What one call reads is one access for the sanitizer: it lies within one contiguous run of one mapping, or
    /// is told.
    ///
    /// # Errors
    /// [`Aborted`]; `into` is all ones then, as what a bus answers for nobody.
    pub fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Aborted> {
        into.fill(0xff);
        if into.is_empty() {
            return Ok(());
        }
        self.may_master(Direction::Read, address, into.len())?;
        if self.memory.read(self.outside.who(), PhysAddr(address), into) {
            return Ok(());
        }
        into.fill(0xff);
        Err(Aborted)
    }

    /// Writes memory; the same.
    ///
    /// # Errors
    /// [`Aborted`]; nothing, or what lies before the first page that is not there, has been written then.
    pub fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Aborted> {
        if from.is_empty() {
            return Ok(());
        }
        self.may_master(Direction::Write, address, from.len())?;
        if self.memory.write(self.outside.who(), PhysAddr(address), from) { Ok(()) } else { Err(Aborted) }
    }

    /// Reads as many bytes as the answer has: `u32::from_le_bytes(bus.fetch(address)?)`.
    ///
    /// # Errors
    /// As for [`Bus::read`].
    pub fn fetch<const BYTES: usize>(&mut self, address: u64) -> Result<[u8; BYTES], Aborted> {
        let mut bytes = [0; BYTES];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// With bus mastering off nothing leaves the device. That it was never on since a driver has the device is the driver's
    /// omission, and told; turned off again, it is how a device is made quiet.
    fn may_master(&mut self, direction: Direction, address: u64, length: usize) -> Result<(), Aborted> {
        if self.outside.is_master() {
            return Ok(());
        }
        if self.outside.open.load(Ordering::Acquire) && !self.outside.mastered.load(Ordering::Acquire) {
            self.memory.not_mastering(self.outside.who(), direction, PhysAddr(address), length as u64);
        }
        Err(Aborted)
    }

    /// Whether bus mastering is on.
    #[must_use]
    pub fn is_master(&self) -> bool {
        self.outside.is_master()
    }

    /// Interrupts: by message `vector` where messages are enabled, else by the line, which stays asserted until
    /// [`Bus::lower`]. A message with a vector that the driver has not enabled goes nowhere. Messages are writes to memory:
    /// with bus mastering off they go nowhere either.
    pub fn raise(&mut self, vector: u32) {
        self.outside.wires.raise(vector);
    }

    /// The line is not asserted any more.
    pub fn lower(&mut self) {
        self.outside.wires.lower();
    }

    /// How many messages the driver has enabled; 0: it is the line that interrupts, if anything.
    #[must_use]
    pub fn vectors(&self) -> u32 {
        self.outside.wires.vectors()
    }

    /// Reads the device's own config space. What lies past its end is 0.
    pub fn config(&self, offset: u16, into: &mut [u8]) {
        self.outside.config.with(|bytes| {
            into.fill(0);
            let from = bytes.get(offset.into()..).unwrap_or_default();
            let length = from.len().min(into.len());
            into[..length].copy_from_slice(&from[..length]);
        });
    }

    /// Writes the device's own config space, read-only parts included, as the device itself can. What lies past its end is
    /// left out; the bus-master bit stays as the driver has set it.
    pub fn set_config(&mut self, offset: u16, from: &[u8]) {
        self.outside.config.with(|bytes| {
            let master = bytes[usize::from(COMMAND)] & COMMAND_BUS_MASTER as u8;
            let into = bytes.get_mut(offset.into()..).unwrap_or_default();
            let length = into.len().min(from.len());
            into[..length].copy_from_slice(&from[..length]);
            let command = &mut bytes[usize::from(COMMAND)];
            *command = *command & !(COMMAND_BUS_MASTER as u8) | master;
        });
    }
}

impl fmt::Debug for Bus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the bus of {}", self.outside.name)
    }
}

/// Config space bytes, seen by the processor and by the device.
pub(super) fn shared(bytes: Vec<u8>) -> Config {
    Config(std::sync::Arc::new(Mutex::new(bytes)))
}
