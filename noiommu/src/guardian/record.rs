//! What a guardian knows of a device: enough to make it quiet when nobody else is left.
//!
//! A record is plain bytes, in one place for the guardian that shares memory with the driver and for the one that is told by
//! messages. It is not believed: whatever bytes are in it, reading them is safe, and what they ask for is done to the descriptors
//! that the driver itself has.

use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Duration;

use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use crate::device::{MOST_STEPS, QuietStep, Remains, Reset, Window};

/// A descriptor that is none.
const NONE: i32 = -1;

/// The device's own reset: a file of sysfs to write to, or an ioctl of VFIO.
const RESET_FILE: u32 = 1;
const RESET_VFIO: u32 = 2;

/// How a BAR is reached: mapped from the file, or read and written through it.
const WINDOW_MAPPED: u32 = 1;
const WINDOW_TRANSFER: u32 = 2;

const STEP_WRITE: u8 = 1;
const STEP_UPDATE: u8 = 2;
const STEP_WAIT: u8 = 3;

/// A device, as its driver told.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Record {
    /// Its PCI address, filled up with zeros.
    name: [u8; 24],
    /// Where config space begins in `config`.
    config_offset: u64,
    config: i32,
    reset: i32,
    /// RESET_*; 0: there is none.
    reset_by: u32,
    /// Where in config space the Device Status register of PCI Express is; 0: nowhere.
    express_status: u32,
    bars: [Bar; 6],
    step_count: u64,
    steps: [Step; MOST_STEPS],
}

/// A BAR that the recipe needs.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Bar {
    offset: u64,
    length: u64,
    file: i32,
    /// WINDOW_*; 0: it is not needed.
    by: u32,
    /// Where the BAR begins in its first page.
    shift: u64,
}

/// A step of the recipe.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Step {
    /// STEP_*.
    kind: u8,
    bar: u8,
    width: u8,
    reserved: u8,
    /// Milliseconds.
    timeout: u32,
    offset: u64,
    /// What is cleared, or looked at.
    mask: u64,
    value: u64,
}

/// A register window as a record has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Mapped from `offset` on, which is that of a page; the BAR begins `shift` bytes behind.
    Mapped { file: RawFd, offset: u64, shift: usize, length: u64 },
    /// At `offset` of the file.
    Transfer { file: RawFd, offset: u64, length: u64 },
}

/// How a record's device is reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ResetBy {
    File(RawFd),
    Vfio(RawFd),
}

impl Record {
    /// A device, without a recipe.
    pub(super) fn new(name: &str, remains: &Remains) -> Self {
        let mut record = Self::new_zeroed();
        for (byte, from) in record.name.iter_mut().zip(name.bytes()) {
            *byte = from;
        }
        record.config = remains.config.as_raw_fd();
        record.config_offset = remains.config_offset;
        record.express_status = remains.express_status.into();
        (record.reset, record.reset_by) = match &remains.reset {
            None => (NONE, 0),
            Some(Reset::File(file)) => (file.as_raw_fd(), RESET_FILE),
            Some(Reset::Vfio(file)) => (file.as_raw_fd(), RESET_VFIO),
        };
        record.bars.iter_mut().for_each(|bar| bar.file = NONE);
        record
    }

    /// The recipe, in place of what was there: at most [`MOST_STEPS`] steps, with the windows of their BARs.
    pub(super) fn set_recipe(&mut self, steps: &[QuietStep], windows: &[(u8, Window)]) {
        for bar in &mut self.bars {
            *bar = Bar { file: NONE, ..Bar::new_zeroed() };
        }
        for (index, window) in windows {
            let Some(bar) = self.bars.get_mut(usize::from(*index)) else { continue };
            *bar = Bar {
                offset: window.offset,
                length: window.length,
                file: window.file.as_raw_fd(),
                by: if window.mapped { WINDOW_MAPPED } else { WINDOW_TRANSFER },
                shift: window.shift as u64,
            };
        }
        self.step_count = 0;
        for (into, step) in self.steps.iter_mut().zip(steps) {
            *into = Step::from(*step);
            self.step_count += 1;
        }
    }

    /// The device's name.
    pub(super) fn name(&self) -> &str {
        let length = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        // Printable, so that nobody writes lines of his own into a log by it.
        match self.name.get(..length) {
            Some(name) if name.iter().all(u8::is_ascii_graphic) => std::str::from_utf8(name).unwrap_or("?"),
            _ => "?",
        }
    }

    /// The file of config space, and where it begins there.
    pub(super) fn config(&self) -> Option<(RawFd, u64)> {
        (self.config >= 0).then_some((self.config, self.config_offset))
    }

    /// How it is reset, if at all.
    pub(super) fn reset(&self) -> Option<ResetBy> {
        match self.reset_by {
            RESET_FILE if self.reset >= 0 => Some(ResetBy::File(self.reset)),
            RESET_VFIO if self.reset >= 0 => Some(ResetBy::Vfio(self.reset)),
            _ => None,
        }
    }

    /// Where the Device Status register of PCI Express is.
    pub(super) fn express_status(&self) -> Option<u16> {
        u16::try_from(self.express_status).ok().filter(|at| (0x40..0xfff).contains(at))
    }

    /// Where a BAR is that the recipe needs.
    pub(super) fn place(&self, bar: u8) -> Option<Place> {
        let bar = self.bars.get(usize::from(bar)).filter(|bar| bar.file >= 0)?;
        let (file, offset, length) = (bar.file, bar.offset, bar.length);
        match bar.by {
            WINDOW_MAPPED => {
                Some(Place::Mapped { file, offset, shift: usize::try_from(bar.shift).ok()?, length })
            }
            WINDOW_TRANSFER => Some(Place::Transfer { file, offset, length }),
            _ => None,
        }
    }

    /// The recipe. A step that is none is left out, and told by `None`.
    pub(super) fn steps(&self) -> impl Iterator<Item = Option<QuietStep>> + '_ {
        let count = usize::try_from(self.step_count).unwrap_or(usize::MAX);
        self.steps.iter().take(count).map(Step::decode)
    }

    /// The descriptors that it names, in an order of its own; the same one may come more than once.
    pub(super) fn files(&self) -> impl Iterator<Item = RawFd> + '_ {
        let bars = self.bars.iter().map(|bar| bar.file);
        [self.config, self.reset].into_iter().chain(bars).filter(|file| *file >= 0)
    }

    /// Puts others in the place of its descriptors.
    pub(super) fn map_files(&mut self, mut other: impl FnMut(RawFd) -> Option<RawFd>) {
        let bars = self.bars.iter_mut().map(|bar| &mut bar.file);
        for file in [&mut self.config, &mut self.reset].into_iter().chain(bars) {
            *file = if *file >= 0 { other(*file).unwrap_or(NONE) } else { NONE };
        }
    }
}

impl From<QuietStep> for Step {
    fn from(step: QuietStep) -> Self {
        let mut made = Self::new_zeroed();
        (made.bar, made.offset, made.width) = step.place();
        match step {
            QuietStep::Write { value, .. } => (made.kind, made.value) = (STEP_WRITE, value),
            QuietStep::Update { clear, set, .. } => {
                (made.kind, made.mask, made.value) = (STEP_UPDATE, clear, set);
            }
            QuietStep::Wait { mask, value, timeout, .. } => {
                (made.kind, made.mask, made.value) = (STEP_WAIT, mask, value);
                made.timeout = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
            }
        }
        made
    }
}

impl Step {
    /// The step that the bytes say; `None`: none that could be done.
    fn decode(&self) -> Option<QuietStep> {
        let Self { kind, bar, width, offset, mask, value, .. } = *self;
        let step = match kind {
            STEP_WRITE => QuietStep::Write { bar, offset, width, value },
            STEP_UPDATE => QuietStep::Update { bar, offset, width, clear: mask, set: value },
            STEP_WAIT => {
                let timeout = Duration::from_millis(self.timeout.into());
                QuietStep::Wait { bar, offset, width, mask, value, timeout }
            }
            _ => return None,
        };
        step.is_sound().then_some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_survive_being_bytes() {
        let steps = [
            QuietStep::Write { bar: 0, offset: 0x14, width: 4, value: 7 },
            QuietStep::Update { bar: 5, offset: 8, width: 8, clear: u64::MAX, set: 1 },
            QuietStep::Wait {
                bar: 2,
                offset: 3,
                width: 1,
                mask: 3,
                value: 1,
                timeout: Duration::from_secs(65),
            },
        ];
        let mut record = Record::new_zeroed();
        record.set_recipe(&steps, &[]);
        let bytes = record.as_bytes().to_vec();
        let read = Record::read_from_bytes(&bytes).unwrap();
        assert_eq!(read.steps().collect::<Vec<_>>(), steps.map(Some));
        assert_eq!(read.files().count(), 2, "config space and reset are descriptor 0 in zeroed bytes");
    }

    #[test]
    fn bytes_are_not_believed() {
        let mut record = Record::new_zeroed();
        record.step_count = u64::MAX;
        assert_eq!(record.steps().filter(Option::is_none).count(), MOST_STEPS);
        record.steps[0] = Step { kind: STEP_WRITE, width: 3, ..Step::new_zeroed() };
        record.steps[1] = Step { kind: STEP_WAIT, width: 4, timeout: u32::MAX, ..Step::new_zeroed() };
        record.steps[2] = Step { kind: STEP_WRITE, width: 4, offset: 2, ..Step::new_zeroed() };
        assert!(record.steps().all(|step| step.is_none()));
        record.name = *b"0000:00:04.0\n<0>panic!!!";
        assert_eq!(record.name(), "?");
        record.name = *b"0000:00:04.0\0<0>panic!!!";
        assert_eq!(record.name(), "0000:00:04.0");
        record.express_status = 0xffff;
        assert_eq!(record.express_status(), None);
        record.bars[1] = Bar { file: 4, by: 9, ..Bar::new_zeroed() };
        assert_eq!((record.place(1), record.place(200)), (None, None));
    }
}
