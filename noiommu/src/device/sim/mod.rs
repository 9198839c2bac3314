//! Simulated devices: models in this process that reach memory by physical addresses alone.

mod bus;
mod edu;
mod wires;

use std::sync::{Arc, Mutex, PoisonError};

use noiommu_core::Errno;
use rustix::event::{EventfdFlags, eventfd};

use self::bus::Bus;
use self::edu::Edu;
pub(crate) use self::wires::Signal;
use self::wires::{MSI_FLAGS, Wires};
use super::bar::Registers;
use super::config::{COMMAND, COMMAND_BUS_MASTER};
use super::interrupt::{InterruptKind, Source};
use super::{Backend, Provider};
use crate::memory::SimulatedMemory;
use crate::{Error, ErrorKind, Result};

/// The config space of a conventional PCI device.
const CONFIG_SIZE: usize = 256;

/// The config space that the processor and the device both see.
type Config = Arc<Mutex<[u8; CONFIG_SIZE]>>;

fn bus_master_on(config: &Config) -> bool {
    let config = config.lock().unwrap_or_else(PoisonError::into_inner);
    config[usize::from(COMMAND)] & COMMAND_BUS_MASTER as u8 != 0
}

/// A simulated device on a simulated bus.
pub(crate) struct SimDevice {
    config: Config,
    registers: Arc<Edu>,
    wires: Arc<Wires>,
}

/// An edu device that reaches the process's real memory, or made-up memory.
pub(crate) fn edu(simulated: Option<&Arc<SimulatedMemory>>) -> Result<SimDevice> {
    let bus: Box<dyn Bus> = match simulated {
        Some(memory) => Box::new(bus::SimulatedBus(memory.clone())),
        None => Box::new(bus::PagemapBus::new()?),
    };
    let mut config = [0; CONFIG_SIZE];
    config[..4].copy_from_slice(&edu::ID);
    // As firmware leaves QEMU's: decoding on, an address for BAR 0, an interrupt line.
    config[0x04..0x08].copy_from_slice(&[0x03, 0x01, 0x10, 0x00]);
    config[0x08] = edu::REVISION;
    // Class 0x00ff.
    config[0x0a..0x0c].copy_from_slice(&[0xff, 0x00]);
    config[0x10..0x14].copy_from_slice(&(BAR as u32).to_le_bytes());
    // Subsystem, and the first capability: MSI with an address of 64 bits, one vector.
    config[0x2c..0x30].copy_from_slice(&[0xf4, 0x1a, 0x00, 0x11]);
    config[0x34] = 0x40;
    config[0x3c..0x3e].copy_from_slice(&[0x0a, 0x01]);
    config[0x40..0x44].copy_from_slice(&[0x05, 0x00, 0x80, 0x00]);
    let config: Config = Arc::new(Mutex::new(config));
    let wires = Arc::new(Wires::new(config.clone()));
    let registers = Edu::new(bus, config.clone(), wires.clone())?;
    Ok(SimDevice { config, registers, wires })
}

/// Where BAR 0 is said to be.
const BAR: u64 = 0xfe20_0000;

impl SimDevice {
    /// Where BAR 0 is said to be, and its bytes.
    pub(crate) fn resource(&self) -> (u64, u64) {
        (BAR, self.registers.size())
    }

    /// Has the line signal something whenever it comes, masked then.
    pub(crate) fn connect_line(&self, signal: Option<Signal>) {
        self.wires.connect_line(signal);
    }

    /// Enables messages, and has the one that there is signal something.
    pub(crate) fn connect_message(&self, signal: Option<Signal>) {
        self.wires.connect_message(signal);
    }

    /// Disconnects line or messages.
    pub(crate) fn disconnect(&self) {
        self.wires.disconnect();
    }
}

/// What config writes may change.
fn writable(offset: usize) -> u8 {
    match offset {
        // Ports, memory, mastering; errors reported, line masked.
        0x04 => 0x07,
        0x05 => 0x05,
        0x0c | 0x3c => 0xff,
        // BAR 0: a memory BAR of 1 MiB.
        0x12 => 0xf0,
        0x13 => 0xff,
        // MSI: enabled, and how many vectors; address and data.
        MSI_FLAGS => 0x71,
        0x44 => 0xfc,
        0x45..0x4e => 0xff,
        // What is nobody's is memory, in QEMU.
        0x4e.. => 0xff,
        _ => 0,
    }
}

impl Backend for SimDevice {
    fn name(&self) -> &str {
        "sim:edu"
    }

    fn provider(&self) -> Provider {
        Provider::Sim
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let from = config.get(offset.into()..usize::from(offset) + into.len());
        into.copy_from_slice(from.ok_or_else(past_config)?);
        Ok(())
    }

    fn config_write(&self, offset: u16, from: &[u8]) -> Result<()> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::from(offset);
        let bytes = config.get_mut(start..start + from.len()).ok_or_else(past_config)?;
        for (index, (byte, &value)) in bytes.iter_mut().zip(from).enumerate() {
            let mask = writable(start + index);
            *byte = *byte & !mask | value & mask;
        }
        drop(config);
        self.wires.look();
        // A device that masters no more has no transaction under way when the write returns.
        self.registers.settle();
        Ok(())
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Registers>> {
        if index != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                Errno::EINVAL,
                format!("sim:edu has no memory BAR {index}"),
            ));
        }
        Ok(self.registers.clone())
    }

    fn interrupt_count(&self, kind: InterruptKind) -> Result<u32> {
        Ok(u32::from(kind != InterruptKind::Msix))
    }

    fn enable_interrupts(&self, kind: InterruptKind, _: u32) -> Result<Vec<Source>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::system("eventfd", error))?;
        let held = event.try_clone().map_err(|error| Error::system("eventfd", error))?;
        let signal: Signal = Arc::new(move || {
            // A counter that is full has been signalled.
            let _ = rustix::io::write(&held, &1u64.to_ne_bytes());
        });
        match kind {
            InterruptKind::Intx => self.connect_line(Some(signal)),
            _ => self.connect_message(Some(signal)),
        }
        Ok(vec![Source::eventfd(event)])
    }

    fn disable_interrupts(&self, _: InterruptKind) {
        self.disconnect();
    }

    fn mask_interrupt(&self, kind: InterruptKind, _: u32, masked: bool) -> Result<()> {
        super::config::mask_line(self, kind, masked)
    }

    fn reset(&self) -> Result<bool> {
        // QEMU's edu has no reset that a driver could ask for.
        Ok(false)
    }
}

fn past_config() -> Error {
    Error::argument("past the end of a config space of 256 bytes")
}
