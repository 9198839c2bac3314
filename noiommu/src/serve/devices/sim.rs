//! The simulated edu device, with which everything works on a machine without devices. Its BAR can be mapped where the faults of
//! the program are served: nothing else would notice accesses to it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use noiommu_core::vfio::pci::{Address, Backend, Messages, Resource};
use noiommu_core::{Errno, TryVec};

use super::ServedDevice;
use super::event::{Event, Watch, Watcher};
use super::served::{Mappable, Served, Way};
use crate::device::InterruptKind;
use crate::memory::SimulatedMemory;
use crate::process;
use crate::serve::touches_are_served;
use crate::sim::{At, Edu, Machine, Pace, Signal, Whose};

/// An edu device that reaches made-up memory, or the real memory of this process. It keeps its registers while nobody has it open;
/// a forked child gets one of its own.
pub(in crate::serve) fn edu(memory: Option<&Arc<SimulatedMemory>>) -> Box<dyn ServedDevice> {
    Box::new(Served::new(BySimulation { memory: memory.cloned(), device: Mutex::new(None) }))
}

struct BySimulation {
    memory: Option<Arc<SimulatedMemory>>,
    /// The process that made the device, and the device; its thread is that process's.
    device: Mutex<Option<(u32, Arc<Machine<Edu>>)>>,
}

impl Way for BySimulation {
    type Backend = Simulated;

    fn open(&self, watcher: Watcher) -> Result<Simulated, Errno> {
        let mut kept = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let device = match &*kept {
            Some((process, device)) if *process == process::id() => device.clone(),
            _ => {
                let memory = self.memory.clone().map_or(Whose::Process, Whose::Simulated);
                let made = Machine::new(Edu::default(), memory, Pace::OwnThread);
                let made = Arc::new(made.map_err(|error| error.errno())?);
                let inherited = kept.replace((process::id(), made.clone()));
                // Its thread is not here to be waited for.
                std::mem::forget(inherited);
                made
            }
        };
        Ok(Simulated { device, watcher })
    }
}

struct Simulated {
    device: Arc<Machine<Edu>>,
    watcher: Watcher,
}

fn signal(event: Option<&Event>) -> Option<Signal> {
    let event = event?.clone();
    Some(Arc::new(move || event.signal()))
}

impl Mappable for Simulated {
    fn file(&self, _: u8) -> Result<Option<OwnedFd>, Errno> {
        Ok(None)
    }
}

impl Backend for Simulated {
    type Event = Event;
    type Watch = Watch;

    fn page_size(&self) -> u64 {
        rustix::param::page_size() as u64
    }

    fn config_size(&self) -> u16 {
        256
    }

    fn config_read(&self, offset: u16, width: u8) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        let part = bytes.get_mut(..width.into()).ok_or(Errno::EINVAL)?;
        self.device.config_read(offset, part).map_err(|error| error.errno())?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn config_write(&self, offset: u16, width: u8, value: u32) -> Result<(), Errno> {
        let bytes = value.to_le_bytes();
        let part = bytes.get(..width.into()).ok_or(Errno::EINVAL)?;
        self.device.config_write(offset, part).map_err(|error| error.errno())
    }

    fn resource(&self, index: u8) -> Resource {
        match self.device.resource(index) {
            (_, 0) => Resource::default(),
            (start, size) => Resource { start, size, mappable: touches_are_served(), ..Resource::default() },
        }
    }

    fn register_read(&self, bar: u8, offset: u64, width: u8) -> Result<u64, Errno> {
        Ok(self.device.register_read(At { bar, offset, width }))
    }

    fn register_write(&self, bar: u8, offset: u64, width: u8, value: u64) -> Result<(), Errno> {
        self.device.register_write(At { bar, offset, width }, value);
        Ok(())
    }

    fn rom_size(&self) -> Option<u64> {
        None
    }

    fn rom_read(&self, _: u64, _: u8) -> Result<u32, Errno> {
        Err(Errno::EIO)
    }

    fn vpd_read(&self, _: u16) -> Result<u32, Errno> {
        Err(Errno::EIO)
    }

    fn vpd_write(&self, _: u16, _: u32) -> Result<(), Errno> {
        Err(Errno::EIO)
    }

    fn reset(&self) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    fn reset_scope(&self, _: &mut TryVec<Address>) -> Result<(), Errno> {
        Err(Errno::ENODEV)
    }

    fn reset_bus(&self) -> Result<(), Errno> {
        Err(Errno::ENODEV)
    }

    fn pause(&self, milliseconds: u32) {
        std::thread::sleep(Duration::from_millis(milliseconds.into()));
    }

    fn atomic_operations(&self) -> u32 {
        0
    }

    fn is_physical_function(&self) -> bool {
        false
    }

    fn event(&self, descriptor: i32) -> Result<Event, Errno> {
        Event::new(descriptor)
    }

    fn signal(&self, event: &Event) {
        event.signal();
    }

    fn watch(&self, descriptor: i32, token: u64) -> Result<Watch, Errno> {
        self.watcher.watch(descriptor, token)
    }

    fn has_line(&self) -> bool {
        true
    }

    fn line_connect(&self, event: Option<&Event>) -> Result<(), Errno> {
        self.device.connect_line(signal(event));
        Ok(())
    }

    fn line_disconnect(&self) {
        self.device.disconnect();
    }

    fn has_messages(&self, kind: Messages) -> bool {
        kind == Messages::Msi
    }

    fn has_dynamic_vectors(&self) -> bool {
        false
    }

    fn messages_enable(&self, _: Messages, vectors: u32) -> Result<u32, Errno> {
        match vectors {
            0 => Err(Errno::ERANGE),
            1 => {
                self.device.connect_messages(InterruptKind::Msi, vec![None]);
                Ok(1)
            }
            _ => Ok(1),
        }
    }

    fn messages_connect(&self, _: Messages, _: u32, event: Option<&Event>) -> Result<(), Errno> {
        self.device.connect_messages(InterruptKind::Msi, vec![signal(event)]);
        Ok(())
    }

    fn messages_disable(&self, _: Messages) {
        self.device.disconnect();
    }
}
