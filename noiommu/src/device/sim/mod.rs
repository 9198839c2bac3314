//! Simulated devices: models in this process that reach memory by physical addresses alone.

mod bus;
mod edu;

use std::sync::{Arc, Mutex, PoisonError};

use noiommu_core::Errno;

use self::bus::Bus;
use self::edu::Edu;
use super::bar::Registers;
use super::config::{COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY};
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
struct SimDevice {
    config: Config,
    registers: Arc<Edu>,
}

/// An edu device that reaches the process's real memory, or made-up memory.
pub(crate) fn edu(simulated: Option<&Arc<SimulatedMemory>>) -> Result<Box<dyn Backend>> {
    let bus: Box<dyn Bus> = match simulated {
        Some(memory) => Box::new(bus::SimulatedBus(memory.clone())),
        None => Box::new(bus::PagemapBus::new()?),
    };
    let mut config = [0; CONFIG_SIZE];
    config[..4].copy_from_slice(&edu::ID);
    config[0x08] = edu::REVISION;
    // Class 0x00ff, as QEMU's; an interrupt pin and an address for BAR 0, as firmware gives.
    config[0x0a..0x0c].copy_from_slice(&[0xff, 0x00]);
    config[0x10..0x14].copy_from_slice(&0xfea0_0000u32.to_le_bytes());
    config[0x3d] = 1;
    let config: Config = Arc::new(Mutex::new(config));
    let registers = Edu::new(bus, config.clone())?;
    Ok(Box::new(SimDevice { config, registers }))
}

/// What config writes may change.
fn writable(offset: usize) -> u8 {
    match offset {
        0x04 => (COMMAND_MEMORY | COMMAND_BUS_MASTER) as u8,
        0x05 => 0x04,
        0x0c | 0x3c => 0xff,
        // BAR 0: a memory BAR of 1 MiB.
        0x12 => 0xf0,
        0x13 => 0xff,
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

    fn reset(&self) -> Result<bool> {
        // QEMU's edu has no reset that a driver could ask for.
        Ok(false)
    }
}

fn past_config() -> Error {
    Error::argument("past the end of a config space of 256 bytes")
}
