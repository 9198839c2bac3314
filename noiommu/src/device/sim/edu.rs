//! The edu device, modelled after its documentation (QEMU, docs/specs/edu.rst).
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | identification, 0xRRrr00ed: major and minor version |
//! | 0x04 | liveness: reads back inverted |
//! | 0x08 | factorial: write n, read n! when the status says it is done |
//! | 0x20 | status: bit 0 computing, bit 7 interrupt when done |
//! | 0x24, 0x60, 0x64 | interrupt status, raise, acknowledge: an interrupt while it is not 0 |
//! | 0x80, 0x88, 0x90 | DMA source, destination, count |
//! | 0x98 | DMA command: bit 0 start and running, bit 1 direction (0: to the device), bit 2 interrupt when done |
//!
//! Registers below 0x80 take accesses of 4 bytes, those above of 4 or 8. The device's own buffer is 4096 bytes at 0x40000
//! in its address space.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use noiommu_core::PhysAddr;

use super::bus::Bus;
use super::wires::Wires;
use super::{Config, bus_master_on};
use crate::device::bar::Registers;
use crate::{Error, Result};

/// Vendor 0x1234, device 0x11e8.
pub(super) const ID: [u8; 4] = [0x34, 0x12, 0xe8, 0x11];
pub(super) const REVISION: u8 = 0x10;

const IDENTIFICATION: u64 = 0x0100_00ed;
const BAR_SIZE: u64 = 1 << 20;
const BUFFER: u64 = 0x4_0000;
const BUFFER_SIZE: u64 = 4096;

const STATUS_COMPUTING: u64 = 1;
const STATUS_INTERRUPT: u64 = 0x80;
const FACTORIAL_DONE: u64 = 0x001;
const DMA_DONE: u64 = 0x100;
const DMA_RUN: u64 = 1;
const DMA_FROM_DEVICE: u64 = 2;
const DMA_INTERRUPT: u64 = 4;

/// The device: registers for the processor, and a thread that does its work.
pub(super) struct Edu {
    shared: Arc<Shared>,
    worker: Option<thread::JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Something to do, or nothing to do any more.
    changed: Condvar,
    config: Config,
    wires: Arc<Wires>,
}

#[derive(Default)]
struct State {
    liveness: u64,
    factorial: u64,
    status: u64,
    interrupts: u64,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    /// The worker is on the bus.
    busy: bool,
    stop: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Edu {
    pub(super) fn new(bus: Box<dyn Bus>, config: Config, wires: Arc<Wires>) -> Result<Arc<Self>> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), config, wires });
        let worker = {
            let shared = shared.clone();
            thread::Builder::new()
                .name("sim:edu".to_owned())
                .spawn(move || work(&shared, bus))
                .map_err(|error| Error::system("starting the simulated device", error))?
        };
        Ok(Arc::new(Self { shared, worker: Some(worker) }))
    }

    /// Returns when no access to memory is under way.
    pub(super) fn settle(&self) {
        let mut state = self.shared.state();
        while state.busy {
            state = self.shared.wait(state);
        }
    }
}

impl Drop for Edu {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.changed.notify_all();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// The device's own time: everything that takes longer than a register access.
fn work(shared: &Shared, mut bus: Box<dyn Bus>) {
    let mut buffer = [0u8; BUFFER_SIZE as usize];
    let mut state = shared.state();
    while !state.stop {
        if state.status & STATUS_COMPUTING != 0 {
            let product = (1..=state.factorial as u32).fold(1u32, u32::wrapping_mul);
            state.factorial = product.into();
            state.status &= !STATUS_COMPUTING;
            if state.status & STATUS_INTERRUPT != 0 {
                state.interrupts |= FACTORIAL_DONE;
                shared.wires.raise();
            }
        } else if state.command & DMA_RUN != 0 {
            state.busy = true;
            let (source, destination, count, command) =
                (state.source, state.destination, state.count, state.command);
            drop(state);
            // With bus mastering off nothing moves, and the device takes that for done.
            if bus_master_on(&shared.config) {
                transfer(&mut *bus, &mut buffer, source, destination, count, command);
            }
            state = shared.state();
            state.busy = false;
            state.command &= !DMA_RUN;
            if command & DMA_INTERRUPT != 0 {
                state.interrupts |= DMA_DONE;
                shared.wires.raise();
            }
            shared.changed.notify_all();
        } else {
            state = shared.wait(state);
        }
    }
}

fn transfer(bus: &mut dyn Bus, buffer: &mut [u8], source: u64, destination: u64, count: u64, command: u64) {
    let from_device = command & DMA_FROM_DEVICE != 0;
    let (inside, place) = if from_device { (source, destination) } else { (destination, source) };
    let range = inside.checked_sub(BUFFER).and_then(|start| {
        let end = start.checked_add(count)?;
        (end <= BUFFER_SIZE).then_some(start as usize..end as usize)
    });
    let Some(range) = range else {
        tracing::error!("sim:edu: DMA of {count} bytes at {inside:#x} lies outside of the device's buffer");
        return;
    };
    let bytes = &mut buffer[range];
    let found = if from_device {
        bus.write(PhysAddr(place), bytes)
    } else {
        // What a bus answers where nobody is: all ones.
        bytes.fill(0xff);
        bus.read(PhysAddr(place), bytes)
    };
    if !found {
        tracing::error!("sim:edu: DMA of {count} bytes found no memory at {place:#x}");
    }
}

/// Replaces a register or, with 4 bytes, one half of it.
fn put(register: &mut u64, offset: u64, width: u8, value: u64) {
    *register = match (width, offset & 4) {
        (8, _) => value,
        (_, 0) => *register & !0xffff_ffff | value & 0xffff_ffff,
        _ => *register & 0xffff_ffff | value << 32,
    };
}

impl Registers for Edu {
    fn size(&self) -> u64 {
        BAR_SIZE
    }

    fn read(&self, offset: u64, width: u8) -> Result<u64> {
        if !accepts(offset, width) {
            // Narrow accesses do not reach the device; wide ones of narrow registers read as ones.
            return Ok(if width < 4 { 0 } else { u64::MAX });
        }
        let state = self.shared.state();
        let value = match offset & !4 {
            _ if offset < 0x80 => match offset {
                0x00 => IDENTIFICATION,
                0x04 => state.liveness,
                0x08 => state.factorial,
                0x20 => state.status,
                0x24 => state.interrupts,
                _ => u64::MAX,
            },
            0x80 => state.source,
            0x88 => state.destination,
            0x90 => state.count,
            0x98 => state.command,
            _ => u64::MAX,
        };
        Ok(if offset >= 0x80 && offset & 4 != 0 { value >> 32 } else { value })
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Result<()> {
        if !accepts(offset, width) {
            return Ok(());
        }
        let mut state = self.shared.state();
        match offset {
            0x04 => state.liveness = !value & 0xffff_ffff,
            0x08 if state.status & STATUS_COMPUTING == 0 => {
                state.factorial = value;
                state.status |= STATUS_COMPUTING;
            }
            0x20 => {
                state.status = state.status & !STATUS_INTERRUPT | value & STATUS_INTERRUPT;
            }
            0x60 => {
                state.interrupts |= value;
                if state.interrupts != 0 {
                    self.shared.wires.raise();
                }
            }
            0x64 => {
                state.interrupts &= !value;
                if state.interrupts == 0 {
                    self.shared.wires.lower();
                }
            }
            // While it runs, the DMA registers do not change.
            0x80..0xa0 if state.command & DMA_RUN != 0 => {}
            0x80..0x88 => put(&mut state.source, offset, width, value),
            0x88..0x90 => put(&mut state.destination, offset, width, value),
            0x90..0x98 => put(&mut state.count, offset, width, value),
            0x98..0xa0 => put(&mut state.command, offset, width, value),
            _ => {}
        }
        self.shared.changed.notify_all();
        Ok(())
    }
}

/// Whether the device answers an access of this width.
fn accepts(offset: u64, width: u8) -> bool {
    width == 4 || width == 8 && (0x80..0xa0).contains(&offset)
}
