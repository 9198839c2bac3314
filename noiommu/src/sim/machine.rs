//! A model at work: its registers for the processor, and the time that it has for itself.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::bus::{Outside, shared};
use super::memory::{Memory, PagemapBus, SanitizedBus, SimulatedBus};
use super::sanitizer::Sanitizer;
use super::wires::{Signal, Wires};
use super::{At, Bus, Identity, Model, Work};
use crate::device::{InterruptKind, Registers};
use crate::memory::SimulatedMemory;
use crate::{Error, Result, process};

/// Pieces of work in a row after which a model that never stops is let be.
const ENOUGH: usize = 100_000;

/// When a model does its [work](Model::work).
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::Context;
/// use noiommu::sim::{Edu, Pace};
///
/// // No thread: the device works when it is touched, so a test comes out the same each time.
/// let slot = Context::simulated().sim_device_at(Edu::default(), Pace::OnTouch)?;
/// let registers = slot.open()?.bar(0)?;
/// registers.write_u32(0x08, 5)?; // edu: factorial
/// while registers.read_u32(0x20)? & 1 != 0 {}
/// assert_eq!(registers.read_u32(0x08)?, 120);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pace {
    /// In a thread of its own, like a device.
    #[default]
    OwnThread,
    /// At once: when a register write or a config write returns, all is done that there was to do. For drivers that poll
    /// memory. Nothing depends on time.
    AtOnce,
    /// When the driver looks: before each register access one piece, before a wait for an interrupt as many as bring one.
    /// Nothing depends on time.
    OnTouch,
    /// When the test says so: [`Slot::step`](super::Slot::step). Nothing depends on time.
    Stepped,
}

/// Which memory a device reaches.
pub(crate) enum Whose {
    /// The real memory of this process.
    Process,
    /// Made-up memory.
    Simulated(Arc<SimulatedMemory>),
    /// The same, looked after.
    Sanitized(Arc<Sanitizer>),
}

/// A model, its bus, and its thread. The last share of it ends the thread.
pub(crate) struct Machine<M: Model> {
    core: Arc<Core<M>>,
    worker: Option<JoinHandle<()>>,
    /// The process that has the thread.
    process: u32,
    sanitizer: Option<Arc<Sanitizer>>,
}

pub(super) struct Core<M> {
    pub(super) outside: Outside,
    identity: Identity,
    pace: Pace,
    /// Threads that wait for the model: the worker lets them go first.
    waiting: AtomicUsize,
    /// Something to do, or nothing to do any more.
    changed: Condvar,
    state: Mutex<State<M>>,
}

/// Locked before anything else of the device.
pub(super) struct State<M> {
    memory: Box<dyn Memory>,
    due: Due,
    hung: bool,
    gone: bool,
    stop: bool,
    /// What the model said as it panicked in its thread.
    broken: Option<String>,
    model: M,
}

/// When the next piece of work is due.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    Never,
    Now,
    At(Instant),
}

impl<M: Model> Core<M> {
    /// The model, when it is between two pieces of its work.
    fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        state
    }

    /// Does something with the model and its bus.
    fn act<T>(&self, state: &mut State<M>, act: impl FnOnce(&mut M, &mut Bus<'_>) -> T) -> T {
        let State { memory, model, .. } = state;
        act(model, &mut Bus { outside: &self.outside, memory: &mut **memory })
    }

    /// One piece of work, if one is due; tells whether it was.
    fn piece(&self, state: &mut State<M>) -> bool {
        if state.due == Due::Never || state.hung || state.gone {
            return false;
        }
        // What is written meanwhile cannot be: it is locked.
        state.due = Due::Never;
        state.due = match self.act(state, Model::work) {
            Work::Idle => Due::Never,
            Work::More => Due::Now,
            Work::After(time) => Instant::now().checked_add(time).map_or(Due::Never, Due::At),
        };
        true
    }

    /// The processor has written something.
    fn touched(&self, state: &mut State<M>) {
        state.due = Due::Now;
        match self.pace {
            Pace::OwnThread => self.changed.notify_all(),
            Pace::AtOnce => {
                for _ in 0..ENOUGH {
                    if !self.piece(state) {
                        break;
                    }
                }
            }
            Pace::OnTouch | Pace::Stepped => {}
        }
    }

    /// A register is about to be accessed. A model that broke down in its thread breaks down here again, where somebody notices.
    fn look(&self, state: &mut MutexGuard<'_, State<M>>) {
        if let Some(why) = state.broken.take() {
            state.broken = Some(why.clone());
            if !thread::panicking() {
                panic!("the model of {} panicked: {why}", self.outside.name);
            }
        }
        if self.pace == Pace::OnTouch {
            self.piece(state);
        }
    }

    /// The device's own time.
    fn run(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.stop {
            let wait = match state.due {
                _ if state.hung || state.gone => None,
                Due::Never => None,
                Due::Now => Some(None),
                Due::At(time) => Some(time.checked_duration_since(Instant::now())),
            };
            match wait {
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Some(time)) if !time.is_zero() => {
                    let waited = self.changed.wait_timeout(state, time);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Some(_) => {
                    self.piece(&mut state);
                    drop(state);
                    // A lock is not fair by itself, and a device that always has something to do would keep the processor out.
                    while self.waiting.load(Ordering::Acquire) > 0 {
                        thread::yield_now();
                    }
                    state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// What a panic said.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".to_owned())
}

impl<M: Model> Machine<M> {
    /// # Errors
    /// EINVAL for an identity that cannot be; want of threads; on real memory, what keeps this process from looking at it.
    pub(crate) fn new(model: M, memory: Whose, pace: Pace) -> Result<Self> {
        let identity = model.identity().checked()?;
        let (memory, sanitizer): (Box<dyn Memory>, _) = match memory {
            Whose::Process => (Box::new(PagemapBus::new()?), None),
            Whose::Simulated(memory) => (Box::new(SimulatedBus(memory)), None),
            Whose::Sanitized(sanitizer) => (Box::new(SanitizedBus(sanitizer.clone())), Some(sanitizer)),
        };
        let config = shared(identity.config.clone());
        let place = |messages: Option<(u32, usize)>| messages.map(|(_, at)| at);
        let wires = Wires::new(config.clone(), place(identity.msi), place(identity.msix));
        let outside = Outside::new(identity.name.clone(), config, wires);
        let (due, hung, gone, stop) = (Due::Never, false, false, false);
        let state = Mutex::new(State { memory, due, hung, gone, stop, broken: None, model });
        let waiting = AtomicUsize::new(0);
        let core = Arc::new(Core { outside, identity, pace, waiting, changed: Condvar::new(), state });
        let worker = if pace == Pace::OwnThread {
            let (core, name) = (core.clone(), core.outside.name.clone());
            let run = move || {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| core.run())) {
                    let mut state = core.lock();
                    state.broken = Some(message(&*panic));
                    state.gone = true;
                    drop(state);
                    resume_unwind(panic);
                }
            };
            let started = thread::Builder::new().name(name).spawn(run);
            Some(started.map_err(|error| Error::system("starting the simulated device", error))?)
        } else {
            None
        };
        Ok(Self { core, worker, process: process::id(), sanitizer })
    }

    /// In a test that is to fail by the sanitizer's report: fails. With no lock held.
    pub(super) fn raise(&self) {
        if let Some(sanitizer) = &self.sanitizer {
            sanitizer.raise();
        }
    }

    pub(super) fn outside(&self) -> &Outside {
        &self.core.outside
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.core.identity
    }

    /// Where BAR `index` is said to be, and its bytes; 0: there is none.
    pub(crate) fn resource(&self, index: u8) -> (u64, u64) {
        self.identity().bars.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// Has the line signal something whenever it comes, masked then.
    pub(crate) fn connect_line(&self, signal: Option<Signal>) {
        self.outside().wires.connect_line(signal);
    }

    /// Enables so many messages, and has each signal something.
    pub(crate) fn connect_messages(&self, kind: InterruptKind, signals: Vec<Option<Signal>>) {
        self.outside().wires.connect_messages(kind, signals);
    }

    /// Disconnects line or messages.
    pub(crate) fn disconnect(&self) {
        self.outside().wires.disconnect();
    }

    pub(crate) fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        if self.core.lock().gone {
            into.fill(0xff);
            return Ok(());
        }
        self.outside().config.with(|config| {
            let from = config.get(offset.into()..usize::from(offset) + into.len());
            into.copy_from_slice(from.ok_or_else(|| past_config(config.len()))?);
            Ok(())
        })
    }

    pub(crate) fn config_write(&self, offset: u16, from: &[u8]) -> Result<()> {
        let start = usize::from(offset);
        let outside = self.outside();
        // First of all, so that what the device begins from here on sees it.
        outside.config.with(|config| {
            let end = config.len();
            let bytes = config.get_mut(start..start + from.len()).ok_or_else(|| past_config(end))?;
            let masks = &self.identity().writable[start..start + from.len()];
            for ((byte, &value), mask) in bytes.iter_mut().zip(from).zip(masks) {
                *byte = *byte & !mask | value & mask;
            }
            Ok::<_, Error>(())
        })?;
        if outside.is_master() {
            outside.mastered.store(true, Ordering::Release);
        }
        outside.wires.look();
        // A device that masters no more has no transaction under way when the write returns: they are made under the lock.
        let mut state = self.core.lock();
        if !state.gone {
            self.core.act(&mut state, |model, bus| model.config_written(offset, from.len(), bus));
            self.core.touched(&mut state);
        }
        Ok(())
    }

    pub(crate) fn register_read(&self, at: At) -> u64 {
        let mut state = self.core.lock();
        self.core.look(&mut state);
        let value =
            if state.gone { u64::MAX } else { self.core.act(&mut state, |model, bus| model.read(at, bus)) };
        value & narrow(at.width)
    }

    pub(crate) fn register_write(&self, at: At, value: u64) {
        let mut state = self.core.lock();
        self.core.look(&mut state);
        if !state.gone {
            self.core.act(&mut state, |model, bus| model.write(at, value & narrow(at.width), bus));
            self.core.touched(&mut state);
        }
    }

    /// Registers of BAR `index`, if it is there.
    pub(super) fn registers(self: &Arc<Self>, index: u8) -> Option<Arc<dyn Registers>> {
        let (_, size) = self.resource(index);
        (size > 0).then(|| Arc::new(BarOf { machine: self.clone(), bar: index, size }) as _)
    }

    /// Resets the device, if it can be; tells whether.
    pub(super) fn reset(&self) -> bool {
        if !self.identity().has_reset {
            return false;
        }
        let mut state = self.core.lock();
        if !state.gone {
            state.model.reset();
            state.due = Due::Never;
            state.hung = false;
        }
        true
    }

    /// Does something with the model and its bus, between two pieces of work.
    pub(super) fn act<T>(&self, act: impl FnOnce(&mut M, &mut Bus<'_>) -> T) -> T {
        self.core.act(&mut self.core.lock(), act)
    }

    /// One piece of work, if one is due; tells whether it was.
    pub(super) fn step(&self) -> bool {
        self.core.piece(&mut self.core.lock())
    }

    /// Before the driver waits for an interrupt: where it has the say, as much work as brings one.
    pub(super) fn about_to_wait(&self) {
        if self.core.pace != Pace::OnTouch {
            return;
        }
        let told = self.outside().wires.told();
        for _ in 0..ENOUGH {
            if self.outside().wires.told() != told || !self.step() {
                break;
            }
        }
    }

    /// The device stands still, or goes on.
    pub(super) fn set_hung(&self, hung: bool) {
        let mut state = self.core.lock();
        state.hung = hung;
        self.core.changed.notify_all();
    }

    /// The device is not there any more.
    pub(super) fn unplug(&self) {
        self.core.lock().gone = true;
    }
}

impl<M: Model> Drop for Machine<M> {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        if self.process != process::id() {
            // A forked child: the thread is the parent's.
            std::mem::forget(worker);
            return;
        }
        self.core.lock().stop = true;
        self.core.changed.notify_all();
        if let Err(panic) = worker.join()
            && !thread::panicking()
        {
            // A model that broke down is no passed test.
            resume_unwind(panic);
        }
    }
}

/// A BAR of a machine.
struct BarOf<M: Model> {
    machine: Arc<Machine<M>>,
    bar: u8,
    size: u64,
}

impl<M: Model> Registers for BarOf<M> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, width: u8) -> Result<u64> {
        let value = self.machine.register_read(At { bar: self.bar, offset, width });
        self.machine.raise();
        Ok(value)
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Result<()> {
        self.machine.register_write(At { bar: self.bar, offset, width }, value);
        self.machine.raise();
        Ok(())
    }
}

/// The bits of so many bytes.
fn narrow(width: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 8)))
}

fn past_config(size: usize) -> Error {
    Error::argument(format!("past the end of a config space of {size} bytes"))
}
