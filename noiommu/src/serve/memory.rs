//! The engine's memory where it is served: pinned in the name of whoever calls, in whatever process that is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use noiommu_core::Errno;
use noiommu_core::platform::{Caller, PhysRun, Pins, Platform};
use noiommu_core::table::Table;
use noiommu_core::table::format::Access;
use rustix::process::Resource;

use crate::memory::{Arena, Backing, HostPins, Memory, PinChoice, SimulatedMemory};
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner).memory.pin_kind().name()
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

impl Platform for ServedMemory {
    type Error = Error;
    type Backing = Backing;
    type Pins = ServedPins;
    type Memory = Arena;
    type Table = Arc<Table<Arena>>;

    fn huge_page(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).memory.huge_page()
    }

    fn is_file(&self, backing: &Backing) -> bool {
        matches!(backing, Backing::File(..))
    }

    fn new_table(&self) -> Result<Self::Table> {
        Ok(Arc::new(Table::new(Arena::new()?)))
    }

    fn pin(
        &self,
        backing: &Backing,
        offset: u64,
        length: u64,
        access: Access,
        caller: Caller,
    ) -> Result<ServedPins> {
        let (memory, exempt) = self.source()?;
        let pins = memory.pin(backing, offset, length, access, caller)?;
        // As in the kernel: what cannot be pinned is told before what may not be.
        let charge = match exempt && !caller.ipc_lock {
            true => Some(Charge::new(&self.charged, length / PAGE)?),
            false => None,
        };
        Ok(ServedPins { pins, _charge: charge })
    }
}

/// Pinned memory of the process that pinned it.
pub(super) struct ServedPins {
    pins: HostPins,
    _charge: Option<Charge>,
}

impl Pins for ServedPins {
    type Error = Error;

    fn runs(&self, sink: &mut dyn FnMut(PhysRun) -> std::result::Result<(), Errno>) -> Result<()> {
        self.pins.runs(sink)
    }
}

/// Pages that count as locked until this is dropped.
struct Charge {
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
