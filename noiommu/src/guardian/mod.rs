//! When a driver dies, its device may still be writing: somebody has to keep the memory where it is until the device is quiet.
//!
//! A process that ends, however it does, loses its pins, and the kernel gives its pages to others. A device without an IOMMU that
//! has been told to write there goes on. With VFIO and uio the kernel stops it at the last close (as far as bus mastering or a
//! reset does); with bare sysfs files nobody does.
//!
//! So when the first real device is opened whose memory the engine pins, the kit starts a *guardian*: a small process of its own
//! session and, where it may, its own cgroup, with the driver's privileges. It shares the driver's table of descriptors, so that
//! it has every ring that pins memory, and every device, from the moment they are opened. It sleeps until the driver's death, by
//! whatever cause, or until the driver becomes another program (exec). Then it makes each device quiet that may be doing DMA:
//! by the [recipe](crate::Device::set_quiet_recipe) that the driver has given, a reset where the device has one, bus mastering off
//! and read back; and only then lets go of the memory. A line in the kernel's log and on standard error tells of each rescue:
//!
//! ```text
//! noiommu-guardian: 0000:00:04.0: process 713 is gone; made quiet: stopped by its driver's recipe, reset, bus mastering off
//! ```
//!
//! A device that cannot be made quiet keeps its memory pinned, and the guardian goes on trying.
//!
//! The guardian's own death is seen by the driver: from then on nothing is mapped and no device is let loose
//! ([`ErrorKind::NoGuardian`]) until [`restart`] has started another.
//!
//! # Who may not be ended with the driver
//! Signals of a terminal do not reach the guardian, but who kills *all* processes of a cgroup or of a PID namespace (a service
//! manager where the guardian could not leave the cgroup, Kubernetes, `docker kill`) kills both. There it runs as a service of its own,
//! outside: `noiommu guardian --listen`, which drivers use where its socket is ([`SOCKET`]).
//!
//! # The environment
//! `NOIOMMU_GUARDIAN` is `own` (a process of the driver's own), `service` (or `service:` and the path of a socket), or `waived`: no
//! guardian, for who accepts what happens then. Unset: the service where its socket is there, else a process of the driver's own.
//! In a program, [`Context::waive_guardian`](crate::Context::waive_guardian) waives it.

mod board;
mod cgroup;
mod last;
mod memory;
mod own;
mod record;
mod rescue;
mod watch;

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use noiommu_core::Errno;

use self::board::{Board, DIED};
use self::own::Own;
use self::record::Record;
use crate::device::{QuietStep, Remains, Window};
use crate::{Error, ErrorKind, Result};

/// Where the service listens, if not told otherwise.
pub const SOCKET: &str = "/run/noiommu/guardian.sock";

/// The environment variable that chooses.
const VARIABLE: &str = "NOIOMMU_GUARDIAN";

/// What to do where there is no guardian.
const WAIVER: &str = "run it as a service of its own (noiommu guardian --listen); or, where memory may be corrupted when the driver dies, do \
     without: NOIOMMU_GUARDIAN=waived, or Context::waive_guardian()";

/// Who guards this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Status {
    /// Nobody: no real device has been opened so far that needs it.
    None,
    /// A process of its own.
    Own {
        /// Its id.
        process: u32,
        /// It has left the cgroup, so that ending all of that does not end it.
        apart: bool,
    },
    /// The service.
    Service,
    /// The guardian that there was has died: see [`restart`].
    Dead,
}

/// What the kit is told to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    /// A process of its own.
    Own,
    /// Nobody.
    Waived,
}

impl Choice {
    /// What the environment says.
    ///
    /// # Errors
    /// EINVAL: a word that is none of those that there are.
    pub(crate) fn of_environment() -> Result<Self> {
        Self::parse(std::env::var(VARIABLE).ok().as_deref())
    }

    fn parse(text: Option<&str>) -> Result<Self> {
        match text.map(str::trim) {
            None | Some("" | "own") => Ok(Self::Own),
            Some("waived") => Ok(Self::Waived),
            Some(other) => Err(Error::argument(format!("{VARIABLE} is {other:?}"))
                .with_remedy("it is own, service, service:PATH or waived")),
        }
    }
}

/// The guardian of this process.
struct Current {
    /// The process that has it: a forked child has none.
    process: u32,
    board: &'static Board,
    own: Own,
}

static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

/// The word that tells of the guardian's death, once there is one: looked at before each pin, at the cost of two loads.
static ALIVE: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());

fn current() -> MutexGuard<'static, Option<Current>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The guardian of this process, started if there is none.
fn ensure(current: &mut Option<Current>) -> Result<&mut Current> {
    let process = crate::process::id();
    if current.as_ref().is_none_or(|current| current.process != process) {
        // That of a parent stays the parent's.
        let board = Board::new()?;
        let own = own::start(board)?;
        begun(board, own);
        *current = Some(Current { process, board, own });
    }
    match current {
        Some(current) if current.board.is_dead() => Err(dead()),
        Some(current) => Ok(current),
        None => Err(Errno::EIO.into()),
    }
}

fn begun(board: &'static Board, own: Own) {
    ALIVE.store(std::ptr::from_ref(&board.guardian).cast_mut(), Ordering::Release);
    let apart = board.apart.load(Ordering::Relaxed) != 0;
    tracing::info!(process = own.process, apart, "a guardian has been started");
    if !apart {
        tracing::warn!(
            "the guardian is in the driver's cgroup: where all of that is ended at once, run it as a service (noiommu guardian --listen)"
        );
    }
}

/// The error of a guardian that is no more.
fn dead() -> Error {
    Error::new(ErrorKind::NoGuardian, Errno::ESRCH, "the guardian of this process has died").with_remedy(
        "find out who ended it; noiommu::guardian::restart() starts another, or drop the devices and open them again in a new process",
    )
}

/// Refuses to go on where the guardian has died; where there never was one, nothing is refused.
///
/// # Errors
/// [`ErrorKind::NoGuardian`].
#[inline]
pub(crate) fn check() -> Result<()> {
    let word = ALIVE.load(Ordering::Acquire);
    // SAFETY: null, or the word of a board, which stays for the process's life.
    match unsafe { word.as_ref() } {
        Some(word) if word.load(Ordering::Relaxed) & DIED != 0 => Err(dead()),
        _ => Ok(()),
    }
}

/// Who guards this process.
#[must_use]
pub fn status() -> Status {
    match &*current() {
        Some(current) if current.process == crate::process::id() => {
            if current.board.is_dead() {
                Status::Dead
            } else {
                let apart = current.board.apart.load(Ordering::Relaxed) != 0;
                Status::Own { process: current.own.process, apart }
            }
        }
        _ => Status::None,
    }
}

/// Starts another guardian in the place of one that has died, for all devices that are open. Does nothing where the guardian lives,
/// and where there never was one.
///
/// It is forked from this process, whose pinned memory the kernel copies for a moment: with much of it that takes time and
/// memory.
///
/// # Errors
/// [`ErrorKind::NoGuardian`]: why it could not be started.
pub fn restart() -> Result<()> {
    let mut current = current();
    let Some(current) = current.as_mut().filter(|current| current.process == crate::process::id()) else {
        return Ok(());
    };
    if current.board.is_dead() {
        own::reap(current.own.process.cast_signed());
        // The board has all devices on it, as they are.
        current.own = own::start(current.board)?;
        begun(current.board, current.own);
    }
    Ok(())
}

/// A device that is guarded. Dropping it takes it out: it is quiet then, or nobody's.
pub(crate) struct Ward {
    slot: usize,
    record: Box<Record>,
    /// What it is reached by, open for as long as it is told of.
    _remains: Remains,
    windows: Vec<(u8, Window)>,
}

impl Ward {
    /// Has a device guarded, quiet so far.
    ///
    /// # Errors
    /// [`ErrorKind::NoGuardian`]: there is none, and none can be started.
    pub(crate) fn new(name: &str, remains: Remains) -> Result<Self> {
        let record = Box::new(Record::new(name, &remains));
        let mut current = current();
        let current = ensure(&mut current)?;
        if !own::shares_descriptors(current.own.process) {
            return Err(left());
        }
        let slot = current.board.add(&record).ok_or_else(|| {
            Error::new(
                ErrorKind::NoGuardian,
                Errno::ENOSPC,
                "a guardian has place for 256 devices of a process",
            )
            .with_remedy("drive some of them from another process")
        })?;
        Ok(Self { slot, record, _remains: remains, windows: Vec::new() })
    }

    /// Changes what is told of the recipe: at most [`MOST_STEPS`](crate::device::MOST_STEPS) steps, with how to reach their BARs.
    pub(crate) fn set_recipe(&mut self, steps: &[QuietStep], windows: Vec<(u8, Window)>) {
        self.record.set_recipe(steps, &windows);
        if let Some(current) = &*current() {
            current.board.replace(self.slot, &self.record);
        }
        // Closed after it is not told of any more.
        self.windows = windows;
    }

    /// From now on the device may be doing DMA.
    ///
    /// # Errors
    /// [`ErrorKind::NoGuardian`]: the guardian has died.
    pub(crate) fn let_loose(&self) -> Result<()> {
        check()?;
        self.set_loose(true);
        Ok(())
    }

    /// The device has been made quiet.
    pub(crate) fn now_quiet(&self) {
        self.set_loose(false);
    }

    fn set_loose(&self, loose: bool) {
        if let Some(current) = &*current() {
            current.board.set_loose(self.slot, loose);
        }
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        if let Some(current) = &*current()
            && current.process == crate::process::id()
        {
            current.board.remove(self.slot);
        }
    }
}

/// The error of a program that has left the table of descriptors that its guardian shares.
fn left() -> Error {
    Error::new(
        ErrorKind::NoGuardian,
        Errno::EBADF,
        "this thread has a table of descriptors of its own (unshare), of which the guardian knows nothing",
    )
    .with_remedy("call unshare(CLONE_FILES) before the first device is opened, or not at all")
}

/// Says that a descriptor has been opened that pins memory, before any address of that memory is told.
///
/// # Errors
/// [`ErrorKind::NoGuardian`]: there is a guardian, and it does not have the descriptor.
pub(crate) fn hold(_file: RawFd) -> Result<()> {
    match &*current() {
        Some(current) if current.process == crate::process::id() => {
            if own::shares_descriptors(current.own.process) { Ok(()) } else { Err(left()) }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
