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
//! It takes the table of descriptors for the driver's threads' and its own: a program that shares its table with other processes
//! (clone with CLONE_FILES) shall drop its devices before it ends.
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
mod client;
mod fuzzing;
mod last;
mod memory;
mod own;
mod record;
mod rescue;
mod service;
mod sys;
mod watch;
mod wire;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use noiommu_core::Errno;

pub(crate) use self::board::{BOARD, Seen, look};
use self::board::{Board, DIED};
use self::client::Client;
#[doc(hidden)]
pub use self::fuzzing::play_service;
use self::own::Own;
use self::record::Record;
pub use self::service::Service;
use crate::device::{QuietStep, Remains, Window};
use crate::stats::{Guard, tell_guard};
use crate::{Error, ErrorKind, Result};

/// Where the service listens, if not told otherwise.
pub const SOCKET: &str = "/run/noiommu/guardian.sock";

/// The environment variable that chooses.
const VARIABLE: &str = "NOIOMMU_GUARDIAN";

/// What to do where there is no guardian.
const WAIVER: &str = "run it as a service of its own (noiommu guardian --listen); or, where memory may be corrupted when the driver dies, do \
     without: NOIOMMU_GUARDIAN=waived, or Context::waive_guardian()";

/// Who guards this process.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::guardian::{self, Status};
///
/// match guardian::status() {
///     // Nothing is mapped any more until there is another.
///     Status::Dead => guardian::restart()?,
///     // Simulated devices need none: they die with the process.
///     Status::None => {}
///     Status::Own { process, .. } => println!("guarded by process {process}"),
///     _ => {}
/// }
/// # Ok(())
/// # }
/// ```
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
    /// The service where it is there, else a process of its own.
    Best,
    /// A process of its own.
    Own,
    /// The service that listens here.
    Service(PathBuf),
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
            None | Some("") => Ok(Self::Best),
            Some("own") => Ok(Self::Own),
            Some("service") => Ok(Self::Service(SOCKET.into())),
            Some("waived") => Ok(Self::Waived),
            Some(other) => match other.strip_prefix("service:") {
                Some(path) if !path.is_empty() => Ok(Self::Service(path.into())),
                _ => Err(Error::argument(format!("{VARIABLE} is {other:?}"))
                    .with_remedy("it is own, service, service:PATH or waived")),
            },
        }
    }
}

/// The guardian of this process.
struct Current {
    /// The process that has it: a forked child has none.
    process: u32,
    board: &'static Board,
    keeper: Keeper,
}

/// Who it is.
enum Keeper {
    Own(Own),
    Service { path: PathBuf, client: Client },
}

/// Something that is open here and pins memory.
struct Holder {
    file: RawFd,
    /// What the service calls it.
    number: Option<u32>,
}

/// What the guardian of a process has to know, under one lock.
#[derive(Default)]
struct State {
    current: Option<Current>,
    holders: Vec<Holder>,
}

static STATE: Mutex<State> = Mutex::new(State { current: None, holders: Vec::new() });

/// The word that tells of the guardian's death, once there is one: looked at before each pin, at the cost of two loads.
static ALIVE: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The guardian of this process, if it has one.
    fn current(&self) -> Option<&Current> {
        self.current.as_ref().filter(|current| current.process == crate::process::id())
    }

    /// The guardian of this process, started if there is none.
    fn ensure(&mut self, choice: &Choice) -> Result<&Current> {
        if self.current().is_none() {
            // That of a parent stays the parent's; and so do what it has open, and what it calls it.
            let board = Board::new()?;
            self.holders.iter_mut().for_each(|holder| holder.number = None);
            let keeper = match choice {
                Choice::Service(path) => Keeper::service(path, board, &mut self.holders)?,
                Choice::Best if crate::files::exists(Path::new(SOCKET)) => {
                    match Keeper::service(Path::new(SOCKET), board, &mut self.holders) {
                        Ok(keeper) => keeper,
                        Err(error) => {
                            tracing::warn!(%error, "a guardian of the process's own takes the place of the service");
                            Keeper::Own(own::start(board)?)
                        }
                    }
                }
                _ => Keeper::Own(own::start(board)?),
            };
            let current = Current { process: crate::process::id(), board, keeper };
            current.begun();
            self.current = Some(current);
        }
        match self.current() {
            Some(current) if current.board.is_dead() => Err(dead()),
            Some(current) => Ok(current),
            None => Err(Errno::EIO.into()),
        }
    }
}

impl Keeper {
    fn service(path: &Path, board: &'static Board, holders: &mut [Holder]) -> Result<Self> {
        Ok(Self::Service { path: path.to_owned(), client: Client::new(path, board, holders)? })
    }
}

impl Current {
    fn begun(&self) {
        ALIVE.store(std::ptr::from_ref(&self.board.guardian).cast_mut(), Ordering::Release);
        match &self.keeper {
            Keeper::Own(own) => {
                tell_guard(Guard::Own, own.process);
                let apart = self.board.apart.load(Ordering::Relaxed) != 0;
                tracing::info!(process = own.process, apart, "a guardian has been started");
                if !apart {
                    tracing::warn!(
                        "the guardian is in the driver's cgroup: where all of that is ended at once, run it as a service \
                         (noiommu guardian --listen)"
                    );
                }
            }
            Keeper::Service { path, .. } => {
                tell_guard(Guard::Service, 0);
                tracing::info!(socket = %path.display(), "the guardian's service has been told");
            }
        }
    }

    /// Has the guardian know what the board has in a slot.
    fn tell(&self, slot: usize) -> Result<()> {
        match &self.keeper {
            // It sees the board itself.
            Keeper::Own(_) => Ok(()),
            Keeper::Service { client, .. } => client.tell(self.board, slot),
        }
    }

    /// Has the guardian hold what pins memory; answers what it calls it.
    fn hold(&self, file: RawFd) -> Result<Option<u32>> {
        match &self.keeper {
            Keeper::Own(own) if own::shares_descriptors(own.process) => Ok(None),
            Keeper::Own(_) => Err(left()),
            Keeper::Service { client, .. } => client.hold(file).map(Some),
        }
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
    match state().current() {
        None => Status::None,
        Some(current) if current.board.is_dead() => Status::Dead,
        Some(current) => match &current.keeper {
            Keeper::Own(own) => {
                let apart = current.board.apart.load(Ordering::Relaxed) != 0;
                Status::Own { process: own.process, apart }
            }
            Keeper::Service { .. } => Status::Service,
        },
    }
}

/// Puts another guardian in the place of one that has died, for all devices that are open and all memory that is pinned. Does nothing
/// where the guardian lives, and where there never was one.
///
/// A process of the driver's own is forked from it, and the kernel copies pinned memory for that, for a moment: with much of it
/// that takes time and memory.
///
/// # Errors
/// [`ErrorKind::NoGuardian`]: why it could not be started.
pub fn restart() -> Result<()> {
    let mut state = state();
    let state = &mut *state;
    let process = crate::process::id();
    let Some(current) = state.current.as_mut().filter(|current| current.process == process) else {
        return Ok(());
    };
    if current.board.is_dead() {
        // The board has all devices on it, as they are.
        match &mut current.keeper {
            Keeper::Own(own) => {
                own::reap(own.process.cast_signed());
                *own = own::start(current.board)?;
            }
            Keeper::Service { path, client } => {
                *client = Client::new(path, current.board, &mut state.holders)?;
            }
        }
        current.begun();
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
    pub(crate) fn new(name: &str, remains: Remains, choice: &Choice) -> Result<Self> {
        let record = Box::new(Record::new(name, &remains));
        let mut state = state();
        let current = state.ensure(choice)?;
        if matches!(&current.keeper, Keeper::Own(own) if !own::shares_descriptors(own.process)) {
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

    /// The same as the environment says; `None`: waived.
    ///
    /// # Errors
    /// As for [`Ward::new`]; EINVAL: the environment says something that means nothing.
    pub(crate) fn by_environment(name: &str, remains: Remains) -> Result<Option<Self>> {
        match Choice::of_environment()? {
            Choice::Waived => Ok(None),
            choice => Self::new(name, remains, &choice).map(Some),
        }
    }

    /// Changes what is told of the recipe: at most [`MOST_STEPS`](crate::device::MOST_STEPS) steps, with how to reach their BARs.
    ///
    /// # Errors
    /// [`ErrorKind::NoGuardian`]: the guardian has died, or does not take it; it knows what it knew then.
    pub(crate) fn set_recipe(&mut self, steps: &[QuietStep], windows: Vec<(u8, Window)>) -> Result<()> {
        let mut record = self.record.clone();
        record.set_recipe(steps, &windows);
        if let Some(current) = state().current() {
            current.board.replace(self.slot, &record);
            current.tell(self.slot).inspect_err(|_| current.board.replace(self.slot, &self.record))?;
        }
        // What was before is closed after it is not told of any more.
        (self.record, self.windows) = (record, windows);
        Ok(())
    }

    /// From now on the device may be doing DMA.
    ///
    /// # Errors
    /// [`ErrorKind::NoGuardian`]: the guardian has died.
    pub(crate) fn let_loose(&self) -> Result<()> {
        check()?;
        let state = state();
        let Some(current) = state.current() else { return Err(dead()) };
        current.board.set_loose(self.slot, true);
        current.tell(self.slot).inspect_err(|_| current.board.set_loose(self.slot, false))
    }

    /// The device has been made quiet.
    pub(crate) fn now_quiet(&self) {
        if let Some(current) = state().current() {
            current.board.set_loose(self.slot, false);
            // One that has not heard of it makes it quiet once more.
            let _ = current.tell(self.slot);
        }
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        if let Some(current) = state().current() {
            current.board.remove(self.slot);
            let _ = current.tell(self.slot);
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

/// A descriptor that pins memory, which the guardian holds too if there is one, or will once there is.
#[derive(Debug)]
pub(crate) struct Held(RawFd);

impl Held {
    /// Tells of it, before any address of that memory is told. It must be dropped before the descriptor is closed.
    ///
    /// # Errors
    /// [`ErrorKind::NoGuardian`]: there is a guardian, and it does not have the descriptor.
    pub(crate) fn new(file: RawFd) -> Result<Self> {
        let mut state = state();
        let number = match state.current() {
            Some(current) => current.hold(file)?,
            None => None,
        };
        state.holders.push(Holder { file, number });
        Ok(Self(file))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = state();
        let Some(at) = state.holders.iter().position(|holder| holder.file == self.0) else { return };
        let holder = state.holders.swap_remove(at);
        if let Some(number) = holder.number
            && let Some(Current { keeper: Keeper::Service { client, .. }, .. }) = state.current()
        {
            client.release(number);
        }
    }
}

#[cfg(test)]
mod tests;
