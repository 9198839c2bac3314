//! Making a device quiet that nobody drives any more.
//!
//! This runs in a process that has given up nearly all of its memory, so nothing here takes memory from the heap, and no error of
//! the kit's is made: a call that fails is a step that was not done.

use std::fmt;
use std::os::fd::RawFd;

use noiommu_uapi::vfio::device::VFIO_DEVICE_RESET;

use super::record::{Place, Record, ResetBy};
use super::sys;
use crate::device::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, COMMAND_RESERVED, QuietStep, TRANSACTIONS_PENDING,
};

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
struct Config {
    file: RawFd,
    offset: u64,
}

impl Config {
    fn read(self, at: u16) -> Option<u16> {
        let mut bytes = [0; 2];
        let place = self.offset.checked_add(at.into())?;
        sys::read_at(self.file, &mut bytes, place).then_some(u16::from_le_bytes(bytes))
    }

    fn write(self, at: u16, value: u16) -> bool {
        let place = self.offset.checked_add(at.into());
        place.is_some_and(|place| sys::write_at(self.file, &value.to_le_bytes(), place))
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
            sys::pause(1);
        }
        Some(true)
    }
}

/// Tells whoever wants the device that it is being made quiet: the lock by which it is claimed becomes a shared one.
pub(super) fn mark(record: &Record) {
    if let Some((file, _)) = record.config() {
        sys::lock(file, libc::LOCK_SH | libc::LOCK_NB);
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
    outcome.lost = outcome.unreachable && !record.config().is_some_and(|(file, _)| sys::is_open(file));
    outcome
}

/// `None`: config space did not answer.
fn quiet(record: &Record, outcome: &mut Outcome) -> Option<()> {
    let (file, offset) = record.config()?;
    let config = Config { file, offset };
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
        ResetBy::File(file) => sys::write_at(file, b"1\n", 0),
        ResetBy::Vfio(file) => {
            // EAGAIN: somebody else has the device's lock for a moment.
            for _ in 0..100 {
                match sys::ioctl(file, VFIO_DEVICE_RESET) {
                    Ok(()) => return true,
                    Err(libc::EAGAIN | libc::EINTR) => sys::pause(10),
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

/// Does a step; answers whether what it waits for came. `None`: its registers cannot be reached.
fn run_step(record: &Record, bars: &mut [Option<Reached>; 6], step: QuietStep) -> Option<bool> {
    let (index, offset, width) = step.place();
    let bar = bars.get_mut(usize::from(index))?;
    if bar.is_none() {
        *bar = Reached::new(record.place(index)?);
    }
    let bar = bar.as_ref().filter(|bar| step.fits(bar.size()))?;
    match step {
        QuietStep::Write { value, .. } => bar.write(offset, width, value),
        QuietStep::Update { clear, set, .. } => {
            let value = bar.read(offset, width);
            bar.write(offset, width, value & !clear | set);
        }
        QuietStep::Wait { mask, value, timeout, .. } => {
            let mut left = timeout.as_millis();
            while bar.read(offset, width) & mask != value {
                if left == 0 {
                    return Some(false);
                }
                sys::pause(1);
                left -= 1;
            }
        }
    }
    Some(true)
}

/// A BAR that has been reached.
enum Reached {
    /// Registers at `first`, in `mapped` bytes that begin at `base`.
    Mapped {
        base: *mut u8,
        mapped: usize,
        first: *mut u8,
        size: u64,
    },
    Transfer {
        file: RawFd,
        offset: u64,
        size: u64,
    },
}

impl Reached {
    fn new(place: Place) -> Option<Self> {
        match place {
            Place::Transfer { file, offset, length } => Some(Self::Transfer { file, offset, size: length }),
            Place::Mapped { file, offset, shift, length } => {
                let mapped = usize::try_from(length).ok()?.checked_add(shift)?;
                let base = sys::map(file, offset, mapped)?;
                // SAFETY: within what has been mapped, or just behind it where there is nothing.
                let first = unsafe { base.add(shift) };
                Some(Self::Mapped { base, mapped, first, size: length })
            }
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Mapped { size, .. } | Self::Transfer { size, .. } => *size,
        }
    }

    /// Reads a register in one access; ones where it does not answer. The access is aligned, and within the BAR.
    fn read(&self, offset: u64, width: u8) -> u64 {
        match *self {
            // SAFETY: within the mapping, as the caller says. Whatever a record says of where the BAR begins, it need not be aligned.
            Self::Mapped { first, .. } => unsafe {
                let at = first.add(offset as usize);
                match width {
                    1 => at.read_volatile().into(),
                    2 if at.cast::<u16>().is_aligned() => {
                        u16::from_le(at.cast::<u16>().read_volatile()).into()
                    }
                    4 if at.cast::<u32>().is_aligned() => {
                        u32::from_le(at.cast::<u32>().read_volatile()).into()
                    }
                    8 if at.cast::<u64>().is_aligned() => u64::from_le(at.cast::<u64>().read_volatile()),
                    _ => u64::MAX,
                }
            },
            Self::Transfer { file, offset: start, .. } => {
                let mut bytes = [0; 8];
                let part = bytes.get_mut(..width.into());
                let read = part
                    .zip(start.checked_add(offset))
                    .is_some_and(|(part, place)| sys::read_at(file, part, place));
                if read { u64::from_le_bytes(bytes) } else { u64::MAX }
            }
        }
    }

    /// Writes a register in one access, as for [`read`](Self::read).
    fn write(&self, offset: u64, width: u8, value: u64) {
        match *self {
            // SAFETY: as for `read`.
            Self::Mapped { first, .. } => unsafe {
                let at = first.add(offset as usize);
                match width {
                    1 => at.write_volatile(value as u8),
                    2 if at.cast::<u16>().is_aligned() => {
                        at.cast::<u16>().write_volatile((value as u16).to_le());
                    }
                    4 if at.cast::<u32>().is_aligned() => {
                        at.cast::<u32>().write_volatile((value as u32).to_le());
                    }
                    8 if at.cast::<u64>().is_aligned() => at.cast::<u64>().write_volatile(value.to_le()),
                    _ => {}
                }
            },
            Self::Transfer { file, offset: start, .. } => {
                let bytes = value.to_le_bytes();
                if let (Some(part), Some(place)) = (bytes.get(..width.into()), start.checked_add(offset)) {
                    sys::write_at(file, part, place);
                }
            }
        }
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        if let Self::Mapped { base, mapped, .. } = *self {
            // SAFETY: mapped by `new`, and nobody else knows of it.
            unsafe { sys::unmap(base as usize, mapped) };
        }
    }
}
