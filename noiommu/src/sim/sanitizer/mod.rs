//! The DMA sanitizer: every access of a simulated device is held against what is mapped.

mod ledger;
mod report;
mod stand_in;

use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use noiommu_core::table::Segment;
use noiommu_core::{IovaRange, PhysAddr};

use self::ledger::{Ledger, Verdict};
pub use self::report::{Fault, Freed, Freeing, Hint, Mapped, Neighbour, Report};
use self::stand_in::StandIn;
use super::Direction;
use super::memory::{Who, by_pages, read_page, write_page};
use crate::memory::SimulatedMemory;
use crate::process;

/// Reports that are kept; further ones are counted.
const KEPT: usize = 1000;

/// What happens when a device reaches memory that is not its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// The test fails: the access is not carried out, and the next call that touches the device, maps memory or drops the
    /// device panics with the report, until somebody has [taken](Sanitizer::take_reports) it; at last the end of the context
    /// does. A thread that is panicking already is let be.
    #[default]
    Fail,
    /// The access is not carried out, the report is kept to be read.
    Report,
    /// The report is kept, and the access is carried out as hardware would: into whatever is mapped there, or, where nothing
    /// is, into a stand-in for other memory (16 MiB at most), so that nothing of the test's process is harmed.
    Corrupt,
}

/// Watches the bus of simulated devices on simulated memory: it knows what is mapped, what was and until when, and by whom. Every
/// access ([`Bus::read`](super::Bus::read), [`Bus::write`](super::Bus::write)) has to lie within one contiguous run of one mapping of the IOAS
/// that the device is attached to, and not write where the device may only read; else there is a [`Report`].
///
/// Memory that a driver has dropped while bus mastering was on is kept until the device is quiet, so a device that reaches it
/// harms nobody: by default that is no fault. [`Sanitizer::tell_dropped`] makes it one.
///
/// ```
/// use noiommu::sim::{Edu, Fault, Mode};
/// use noiommu::Context;
///
/// # fn main() -> noiommu::Result<()> {
/// let context = Context::simulated();
/// let sanitizer = context.sanitizer().expect("memory is simulated");
/// sanitizer.set_mode(Mode::Report);
/// let (ioas, slot) = (context.ioas()?, context.sim_device(Edu::default())?);
/// let device = slot.open()?;
/// device.attach(&ioas)?;
/// // SAFETY: this device reaches what it should not, which on simulated memory is what is shown.
/// unsafe { device.enable_bus_master()? };
/// slot.act(|_, bus| assert!(bus.write(0x1234_5000, &[1, 2, 3]).is_err()));
/// let reports = sanitizer.take_reports();
/// assert!(matches!(reports[0].fault, Fault::NeverMapped));
/// println!("{}", reports[0]);
/// # Ok(())
/// # }
/// ```
pub struct Sanitizer {
    memory: Arc<SimulatedMemory>,
    state: Mutex<State>,
    /// There are reports, and the mode is to fail by them.
    failed: AtomicBool,
    /// The process whose devices these are.
    process: u32,
}

/// Locked while a device is on the bus, so that nothing it has been allowed is unmapped under it.
#[derive(Default)]
struct State {
    mode: Mode,
    tell_dropped: bool,
    ledger: Ledger,
    reports: Vec<Report>,
    left_out: u64,
    stand_in: StandIn,
}

impl Sanitizer {
    pub(crate) fn new(memory: Arc<SimulatedMemory>) -> Self {
        Self { memory, state: Mutex::default(), failed: AtomicBool::new(false), process: process::id() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens from now on ([`Mode::Fail`] at the start); what has been reported and not taken stays.
    pub fn set_mode(&self, mode: Mode) {
        let mut state = self.state();
        state.mode = mode;
        self.failed.store(mode == Mode::Fail && !state.reports.is_empty(), Ordering::Release);
    }

    /// Whether a device's access to memory that was dropped, and is kept for it until it is quiet, is a fault too
    /// ([`Fault::Dropped`]). A driver that drops its buffers before its device wants this off.
    pub fn tell_dropped(&self, tell: bool) {
        self.state().tell_dropped = tell;
    }

    /// What has been reported and not taken, the oldest first. Of a flood the first 1000 are kept.
    #[must_use]
    pub fn reports(&self) -> Vec<Report> {
        self.state().reports.clone()
    }

    /// The same, taken: a test that goes by [`Mode::Fail`] does not fail by them any more.
    #[must_use = "a report that nobody reads is a fault that nobody sees"]
    pub fn take_reports(&self) -> Vec<Report> {
        let mut state = self.state();
        self.failed.store(false, Ordering::Release);
        state.left_out = 0;
        std::mem::take(&mut state.reports)
    }

    /// Fails the test by what has been reported. Not called with a lock held, nor where a panic would leave work undone.
    pub(crate) fn raise(&self) {
        // A forked child's copy is the parent's to tell.
        if !self.failed.load(Ordering::Acquire) || thread::panicking() || process::id() != self.process {
            return;
        }
        let state = self.state();
        let Some(first) = state.reports.first() else { return };
        let more = state.reports.len() as u64 - 1 + state.left_out;
        let more = if more > 0 { format!("\n  ({more} more)") } else { String::new() };
        let text = format!("{first}{more}");
        drop(state);
        panic!("{text}");
    }

    /// Something has been mapped: `range` of which the first `length` bytes were asked for.
    pub(crate) fn mapped(
        &self,
        mapped: Mapped,
        range: IovaRange,
        virtual_address: Option<u64>,
        runs: &[Segment],
    ) {
        self.state().ledger.mapped(mapped, range, virtual_address, runs);
    }

    /// The owner of what is mapped there has given it up.
    pub(crate) fn freed(&self, ioas: u32, range: IovaRange, how: Freeing) {
        self.state().ledger.freed(ioas, range, how);
    }

    /// It is about to be unmapped. Returns when no device is at it.
    pub(crate) fn unmapped(&self, ioas: u32, range: IovaRange) {
        self.state().ledger.unmapped(ioas, range);
    }

    pub(in crate::sim) fn read(&self, who: Who<'_>, place: PhysAddr, into: &mut [u8]) -> bool {
        let mut state = self.state();
        if !self.allows(&mut state, who, Direction::Read, place, into.len() as u64) {
            return false;
        }
        by_pages(place, into.len(), |place, range| {
            match read_page(&self.memory, place, &mut into[range.clone()]) {
                0 => state.stand_in.read(place, &mut into[range]),
                read => read,
            }
        })
    }

    pub(in crate::sim) fn write(&self, who: Who<'_>, place: PhysAddr, from: &[u8]) -> bool {
        let mut state = self.state();
        if !self.allows(&mut state, who, Direction::Write, place, from.len() as u64) {
            return false;
        }
        by_pages(place, from.len(), |place, range| {
            match write_page(&self.memory, place, &from[range.clone()]) {
                0 => state.stand_in.write(place, &from[range]),
                written => written,
            }
        })
    }

    pub(in crate::sim) fn not_mastering(
        &self,
        who: Who<'_>,
        direction: Direction,
        place: PhysAddr,
        length: u64,
    ) {
        let mut state = self.state();
        let report = state.ledger.report(who, direction, place, length, 0, Fault::NotMastering);
        self.add(&mut state, report);
    }

    /// Whether the access is to be carried out. It is reported if it is wrong.
    fn allows(
        &self,
        state: &mut State,
        who: Who<'_>,
        direction: Direction,
        place: PhysAddr,
        length: u64,
    ) -> bool {
        let (fault, at) = match state.ledger.judge(who.ioas, direction, place, length) {
            Verdict::Right => return true,
            Verdict::Dropped(_) if !state.tell_dropped => return true,
            Verdict::Dropped(fault) => (fault, 0),
            Verdict::Wrong(fault, at) => (fault, at),
        };
        let report = state.ledger.report(who, direction, place, length, at, fault);
        self.add(state, report);
        state.mode == Mode::Corrupt
    }

    fn add(&self, state: &mut State, report: Report) {
        tracing::error!("{report}");
        if state.reports.len() < KEPT {
            state.reports.push(report);
        } else {
            state.left_out += 1;
        }
        if state.mode == Mode::Fail {
            self.failed.store(true, Ordering::Release);
        }
    }
}

impl std::fmt::Debug for Sanitizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("Sanitizer")
            .field("mode", &state.mode)
            .field("reports", &state.reports.len())
            .finish_non_exhaustive()
    }
}

/// Where the caller of a public function is.
pub(crate) type Creator = &'static Location<'static>;
