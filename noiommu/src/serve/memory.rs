//! The engine's memory where it is served: pinned in the name of whoever calls, in whatever process that is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use noiommu_core::platform::{Caller, PhysRun, Pins, Platform};
use noiommu_core::table::Table;
use noiommu_core::table::format::Access;
use noiommu_core::{Errno, PhysAddr};
use rustix::process::Resource;

use super::devices::BarBuffer;
use super::file::File;
use crate::memory::{Arena, Backing, HostPins, Memory, PinChoice, PinKind, SimulatedMemory};
use crate::{Error, Result, process};

const PAGE: u64 = 4096;

/// Memory for all contexts of a server; clones are the same.
///
/// Pins belong to the process that made them: a forked child gets a source of its own when it first pins something.
#[derive(Clone)]
pub(super) struct ServedMemory {
    state: Arc<Mutex<State>>,
    simulated: Option<Arc<SimulatedMemory>>,
    /// Pages pinned for callers who are not exempt from RLIMIT_MEMLOCK, where the kernel does not count them itself.
    charged: Arc<AtomicU64>,
}

struct State {
    process: u32,
    memory: Arc<Memory>,
    /// The source was made with CAP_IPC_LOCK: the kernel charges nothing that is pinned with it.
    exempt: bool,
}

impl ServedMemory {
    /// Real memory of this process.
    ///
    /// # Errors
    /// Those of [`Memory::real`].
    pub(super) fn real() -> Result<Self> {
        Ok(Self { state: Arc::new(Mutex::new(State::new()?)), simulated: None, charged: Arc::default() })
    }

    /// Made-up memory, for simulated devices.
    pub(super) fn simulated() -> Self {
        let memory = Memory::simulated();
        let simulated = memory.as_simulated().cloned();
        // Nothing that is made up counts.
        let state = State { process: process::id(), memory: Arc::new(memory), exempt: false };
        Self { state: Arc::new(Mutex::new(state)), simulated, charged: Arc::default() }
    }

    /// The made-up memory, for the bus of simulated devices; `None` on real memory.
    pub(super) fn as_simulated(&self) -> Option<&Arc<SimulatedMemory>> {
        self.simulated.as_ref()
    }

    /// How memory is pinned, in a word.
    pub(super) fn pin_kind(&self) -> &'static str {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .memory
            .pin_kind()
            .map_or("none", PinKind::name)
    }

    /// Has this process's source made now, with the privileges of now. If it cannot be, the first pin tells.
    pub(super) fn prepare(&self) {
        let _ = self.source();
    }

    /// This process's source, and whether we have to count what it pins.
    fn source(&self) -> Result<(Arc<Memory>, bool)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.process != process::id() && self.simulated.is_none() {
            *state = State::new()?;
        }
        Ok((state.memory.clone(), state.exempt))
    }
}

impl State {
    fn new() -> Result<Self> {
        let exempt = crate::memory::caller().ipc_lock;
        Ok(Self { process: process::id(), memory: Arc::new(Memory::real(PinChoice::Best)?), exempt })
    }
}

/// Memory that a call has named.
pub(super) enum ServedBacking {
    /// Of a process or a file.
    Memory(Backing),
    /// Of a device: a part of a BAR that was exported as a dma-buf.
    Bar(BarSlice),
}

/// A part of an exported part of a BAR.
pub(super) struct BarSlice {
    file: File,
    start: u64,
    /// The buffer's epoch when it was named; in another one the memory has been away.
    epoch: u64,
}

impl BarSlice {
    /// The memory of `file`, an exported part of a BAR, from the page on that holds `start`; `None` for another file.
    pub(super) fn new(file: &File, start: u64, length: u64) -> Option<std::result::Result<Self, Errno>> {
        let buffer = file.as_any().downcast_ref::<BarBuffer>()?;
        let size: u64 = buffer.ranges().iter().map(|range| range.length).sum();
        if start.checked_add(length).is_none_or(|end| end > size) {
            return Some(Err(Errno::EINVAL));
        }
        let slice = |epoch| Self { file: file.clone(), start: start & !(PAGE - 1), epoch };
        Some(buffer.epoch().map(slice).ok_or(Errno::ENODEV))
    }

    fn buffer(&self) -> Option<&BarBuffer> {
        self.file.as_any().downcast_ref()
    }

    fn is_revoked(&self) -> bool {
        self.buffer().and_then(BarBuffer::epoch) != Some(self.epoch)
    }

    /// Where `length` bytes from `offset` on are.
    fn runs(&self, offset: u64, length: u64) -> Vec<PhysRun> {
        let ranges = self.buffer().map(BarBuffer::ranges).unwrap_or_default();
        let (mut skip, mut left) = (self.start.saturating_add(offset), length);
        let mut runs = Vec::new();
        for range in ranges {
            let length = range.length.saturating_sub(skip).min(left);
            if length > 0 {
                runs.push(PhysRun { address: PhysAddr(range.start.0.saturating_add(skip)), length });
            }
            skip = skip.saturating_sub(range.length);
            left -= length;
        }
        runs
    }
}

impl Platform for ServedMemory {
    type Error = Error;
    type Backing = ServedBacking;
    type Pins = ServedPins;
    type Memory = Arena;
    type Table = Arc<Table<Arena>>;

    fn huge_page(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).memory.transparent()
    }

    fn is_file(&self, backing: &ServedBacking) -> bool {
        matches!(backing, ServedBacking::Memory(Backing::File(..)))
    }

    fn is_revoked(&self, backing: &ServedBacking) -> bool {
        matches!(backing, ServedBacking::Bar(slice) if slice.is_revoked())
    }

    fn new_table(&self) -> Result<Self::Table> {
        Ok(Arc::new(Table::new(Arena::new()?)))
    }

    fn pin(
        &self,
        backing: &ServedBacking,
        offset: u64,
        length: u64,
        access: Access,
        caller: Caller,
    ) -> Result<ServedPins> {
        let backing = match backing {
            ServedBacking::Memory(backing) => backing,
            // A BAR stays where it is, and nobody is charged for it.
            ServedBacking::Bar(slice) => return Ok(ServedPins::Bar(slice.runs(offset, length))),
        };
        let (memory, exempt) = self.source()?;
        let pins = memory.pin(backing, offset, length, access, caller)?;
        // As in the kernel: what cannot be pinned is told before what may not be.
        let charge = match exempt && !caller.ipc_lock {
            true => Some(Charge::new(&self.charged, length / PAGE)?),
            false => None,
        };
        Ok(ServedPins::Memory { pins, _charge: charge })
    }
}

/// Memory that stays where it is.
pub(super) enum ServedPins {
    /// Pinned for the process that pinned it.
    Memory { pins: HostPins, _charge: Option<Charge> },
    /// A BAR.
    Bar(Vec<PhysRun>),
}

impl Pins for ServedPins {
    type Error = Error;

    fn runs(&self, sink: &mut dyn FnMut(&[PhysRun]) -> std::result::Result<(), Errno>) -> Result<()> {
        match self {
            Self::Memory { pins, .. } => pins.runs(sink),
            Self::Bar(runs) => Ok(sink(runs)?),
        }
    }
}

/// Pages that count as locked until this is dropped.
pub(super) struct Charge {
    charged: Arc<AtomicU64>,
    pages: u64,
}

impl Charge {
    /// # Errors
    /// ENOMEM: over RLIMIT_MEMLOCK.
    fn new(charged: &Arc<AtomicU64>, pages: u64) -> Result<Self> {
        let limit = rustix::process::getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX) / PAGE;
        let within = |now: u64| now.checked_add(pages).filter(|&after| after <= limit);
        let counted = charged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        counted.map_err(|_| Error::from(Errno::ENOMEM))?;
        Ok(Self { charged: charged.clone(), pages })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.charged.fetch_sub(self.pages, Ordering::Relaxed);
    }
}
