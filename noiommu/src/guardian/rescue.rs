//! Making a device quiet that nobody drives any more.
//!
//! This runs in a process that has given up nearly all of its memory, so nothing here takes memory from the heap, and no error of
//! the kit's is made: a call that fails is a step that was not done.

use std::fmt;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use noiommu_core::Errno;
use noiommu_uapi::vfio::device::VFIO_DEVICE_RESET;
use rustix::fs::FlockOperation;

use super::record::{Place, Record, ResetBy, borrow};
use crate::device::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, COMMAND_RESERVED, MappedBar, QuietStep, Registers,
    TRANSACTIONS_PENDING,
};
use crate::{Result, ioctl};

/// What was done to a device, and what was seen of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Outcome {
    /// Its config space cannot be read: nobody can tell what it does.
    pub(super) unreachable: bool,
    /// Its driver has closed what it was reached by, and so most likely what pinned its memory: nothing is left to be done.
    pub(super) lost: bool,
    /// It answers with ones: it is not there any more.
    pub(super) gone: bool,
    /// What its driver's recipe waits for came; `None`: there is no recipe.
    pub(super) recipe: Option<bool>,
    /// It was reset; `None`: it has no reset.
    pub(super) reset: Option<bool>,
    /// Bus mastering was read back as off.
    pub(super) bus_master_off: bool,
    /// Transactions were still pending after all that; `None`: it has no such bit.
    pub(super) pending: Option<bool>,
}

impl Outcome {
    /// Whether that proves it quiet: bus mastering off, and of what is there to stop it by, recipe or reset, one has worked.
    pub(super) fn is_quiet(self) -> bool {
        let stopped = match (self.recipe, self.reset) {
            (None, None) => self.pending != Some(true),
            (recipe, reset) => reset == Some(true) || recipe == Some(true) && self.pending != Some(true),
        };
        self.gone || !self.unreachable && self.bus_master_off && stopped
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.gone {
            return f.write_str("it is gone");
        }
        if self.lost {
            return f.write_str("its driver has closed the descriptors that it is reached by");
        }
        if self.unreachable {
            return f.write_str("its config space cannot be reached");
        }
        f.write_str(match self.recipe {
            Some(true) => "stopped by its driver's recipe, ",
            Some(false) => "not stopped by its driver's recipe, ",
            None => "",
        })?;
        f.write_str(match self.reset {
            Some(true) => "reset, ",
            Some(false) => "not to be reset, ",
            None => "",
        })?;
        if self.pending == Some(true) {
            f.write_str("transactions pending, ")?;
        }
        f.write_str(if self.bus_master_off { "bus mastering off" } else { "bus mastering still on" })
    }
}

/// The config space of a device, by descriptor.
#[derive(Clone, Copy)]
struct Config<'a> {
    file: BorrowedFd<'a>,
    offset: u64,
}

impl Config<'_> {
    fn read(self, at: u16) -> Option<u16> {
        let mut bytes = [0; 2];
        let place = self.offset.checked_add(at.into())?;
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(self.file, &mut bytes, place));
        (read == Ok(bytes.len())).then_some(u16::from_le_bytes(bytes))
    }

    fn write(self, at: u16, value: u16) -> bool {
        let Some(place) = self.offset.checked_add(at.into()) else { return false };
        let written =
            rustix::io::retry_on_intr(|| rustix::io::pwrite(self.file, &value.to_le_bytes(), place));
        written == Ok(2)
    }

    /// Clears and sets bits of the command register, and reads it back.
    fn change_command(self, clear: u16, set: u16) -> Option<u16> {
        let command = self.read(COMMAND)?;
        self.write(COMMAND, command & !clear | set);
        self.read(COMMAND)
    }

    /// As `ConfigSpace::is_gone`.
    fn is_gone(self) -> Option<bool> {
        Some(self.read(0)? == u16::MAX || self.read(COMMAND)? & COMMAND_RESERVED == COMMAND_RESERVED)
    }

    /// Whether transactions are pending, for as long as a second.
    fn is_pending(self, status: u16) -> Option<bool> {
        for _ in 0..1000 {
            if self.read(status)? & TRANSACTIONS_PENDING == 0 {
                return Some(false);
            }
            pause(1);
        }
        Some(true)
    }
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Tells whoever wants the device that it is being made quiet: the lock by which it is claimed becomes a shared one.
pub(super) fn mark(record: &Record) {
    if let Some((file, _)) = record.config() {
        // SAFETY: not negative; closed by this thread alone.
        let _ = rustix::fs::flock(unsafe { borrow(file) }, FlockOperation::NonBlockingLockShared);
    }
}

/// Makes the device quiet, by whatever there is.
///
/// First by its driver's recipe, while it can still do what it has to for that; then bus mastering off, reset, and off again,
/// as a reset puts back what was there before.
pub(super) fn rescue(record: &Record) -> Outcome {
    let mut outcome = Outcome::default();
    let reached = quiet(record, &mut outcome);
    outcome.unreachable = reached.is_none();
    // SAFETY: not negative; that it may not be open is what is asked.
    let is_open = |file| rustix::io::fcntl_getfd(unsafe { borrow(file) }).is_ok();
    outcome.lost = outcome.unreachable && !record.config().is_some_and(|(file, _)| is_open(file));
    outcome
}

/// `None`: config space did not answer.
fn quiet(record: &Record, outcome: &mut Outcome) -> Option<()> {
    let (file, offset) = record.config()?;
    // SAFETY: not negative; closed by this thread alone.
    let config = Config { file: unsafe { borrow(file) }, offset };
    if config.is_gone()? {
        outcome.gone = true;
        return Some(());
    }
    if record.steps().next().is_some() {
        // Registers answer only while memory is decoded.
        config.change_command(0, COMMAND_MEMORY)?;
        outcome.recipe = Some(run_recipe(record));
    }
    config.change_command(COMMAND_BUS_MASTER, 0)?;
    outcome.reset = record.reset().map(reset);
    if config.is_gone()? {
        outcome.gone = true;
        return Some(());
    }
    outcome.bus_master_off = config.change_command(COMMAND_BUS_MASTER, 0)? & COMMAND_BUS_MASTER == 0;
    outcome.pending = match record.express_status() {
        Some(status) => Some(config.is_pending(status)?),
        None => None,
    };
    Some(())
}

fn reset(by: ResetBy) -> bool {
    match by {
        ResetBy::File(file) => {
            // SAFETY: not negative; closed by this thread alone.
            let file = unsafe { borrow(file) };
            rustix::io::retry_on_intr(|| rustix::io::pwrite(file, b"1\n", 0)) == Ok(2)
        }
        ResetBy::Vfio(file) => {
            // SAFETY: as above.
            let file = unsafe { borrow(file) };
            // EAGAIN: somebody else has the device's lock for a moment.
            for _ in 0..100 {
                // SAFETY: no argument.
                match unsafe { ioctl::call(&file, VFIO_DEVICE_RESET, 0) } {
                    Ok(_) => return true,
                    Err(Errno::EAGAIN | Errno::EINTR) => pause(10),
                    Err(_) => return false,
                }
            }
            false
        }
    }
}

/// Does all steps that can be done; answers whether all could, and what they wait for came.
fn run_recipe(record: &Record) -> bool {
    // Mapped once: a BAR can be large.
    let mut bars: [Option<Reached>; 6] = [const { None }; 6];
    let mut came = true;
    for step in record.steps() {
        came &= step.is_some_and(|step| run_step(record, &mut bars, step).unwrap_or(false));
    }
    came
}

fn run_step(record: &Record, bars: &mut [Option<Reached>; 6], step: QuietStep) -> Option<bool> {
    let index = step.place().0;
    let bar = bars.get_mut(usize::from(index))?;
    if bar.is_none() {
        *bar = Reached::new(record.place(index)?);
    }
    let registers = bar.as_ref()?.registers();
    // Nothing here answers an error.
    if step.fits(registers.size()) { step.run(registers).ok() } else { None }
}

/// A BAR that has been reached.
enum Reached {
    Mapped(MappedBar),
    Transfer(Transfer),
}

impl Reached {
    fn new(place: Place) -> Option<Self> {
        match place {
            Place::Mapped { file, offset, shift, length } => {
                // SAFETY: not negative; closed by this thread alone.
                let file = unsafe { borrow(file) };
                MappedBar::of_file(&file, offset, shift, length).ok().map(Self::Mapped)
            }
            Place::Transfer { file, offset, length } => {
                Some(Self::Transfer(Transfer { file, offset, length }))
            }
        }
    }

    fn registers(&self) -> &dyn Registers {
        match self {
            Self::Mapped(bar) => bar,
            Self::Transfer(transfer) => transfer,
        }
    }
}

/// Registers that are read and written through a file. What fails reads as ones, and is not written.
struct Transfer {
    file: RawFd,
    offset: u64,
    length: u64,
}

impl Registers for Transfer {
    fn size(&self) -> u64 {
        self.length
    }

    fn read(&self, offset: u64, width: u8) -> Result<u64> {
        let mut bytes = [0; 8];
        let (Some(part), Some(place)) =
            (bytes.get_mut(..usize::from(width)), self.offset.checked_add(offset))
        else {
            return Ok(u64::MAX);
        };
        // SAFETY: not negative; closed by this thread alone.
        let file = unsafe { borrow(self.file) };
        let whole =
            rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *part, place)) == Ok(width.into());
        Ok(if whole { u64::from_le_bytes(bytes) } else { u64::MAX })
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Result<()> {
        let bytes = value.to_le_bytes();
        if let (Some(part), Some(place)) = (bytes.get(..usize::from(width)), self.offset.checked_add(offset))
        {
            // SAFETY: as above.
            let file = unsafe { borrow(self.file) };
            let _ = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, part, place));
        }
        Ok(())
    }
}
