//! What is left to do when a driver has died: its devices are made quiet, and a line in the log tells of each.
//!
//! Takes no memory from the heap.

use std::fmt::{self, Write as _};

use super::board::{Board, SLOTS, blank};
use super::record::Record;
use super::rescue::{self, Outcome};
use super::sys;
use crate::stats::{RESCUES, RESCUES_DIRECTORY, RESCUES_LONG, RescueOutcome};

/// How many milliseconds to wait before a device that is not quiet is tried again.
pub(super) const AGAIN: u32 = 5000;

/// Makes all devices quiet that may be doing DMA. Returns when all are: until then the caller holds what pins memory.
pub(super) fn rescue_all(board: &Board, driver: i32) {
    let mut record = blank();
    for slot in 0..SLOTS {
        if board.loose(slot, &mut record) {
            rescue::mark(&record);
        }
    }
    let mut first = true;
    loop {
        let mut loud = false;
        for slot in 0..SLOTS {
            if board.loose(slot, &mut record) {
                let outcome = rescue::rescue(&record);
                if outcome.is_quiet() || outcome.lost {
                    tell(&record, driver, outcome);
                    board.remove(slot);
                } else {
                    loud = true;
                    if first {
                        tell(&record, driver, outcome);
                    }
                }
            }
        }
        if !loud {
            return;
        }
        if std::mem::take(&mut first) {
            // Nobody shall wait for the end of a pipe as long as this may take.
            sys::close(libc::STDERR_FILENO);
        }
        sys::pause(AGAIN);
    }
}

/// Writes a line about a device to the kernel's log and to the driver's standard error.
pub(super) fn tell(record: &Record, driver: i32, outcome: Outcome) {
    let name = record.name();
    let mut line = Line::new();
    // Text that does not fit is cut off; it does.
    let _ = if outcome.is_quiet() {
        write!(line, "noiommu-guardian: {name}: process {driver} is gone; made quiet: {outcome}")
    } else if outcome.lost {
        write!(line, "noiommu-guardian: {name}: process {driver} is gone; NOT QUIET: {outcome}")
    } else {
        write!(
            line,
            "noiommu-guardian: {name}: process {driver} is gone; NOT QUIET: {outcome}; its memory stays pinned by process {} until it is \
             (reset or remove the device)",
            sys::process()
        )
    };
    let _ = line.write_char('\n');
    // Whatever is under the number: a line to it is what standard error is for.
    sys::write(libc::STDERR_FILENO, line.text());
    if let Some(log) = sys::open(c"/dev/kmsg", libc::O_WRONLY) {
        sys::write(log, line.text());
        sys::close(log);
    }
    note(record, driver, outcome);
}

/// Notes it down for those who count: see [`stats::rescues`](crate::stats::rescues).
fn note(record: &Record, driver: i32, outcome: Outcome) {
    sys::make_directory(RESCUES_DIRECTORY);
    let Some(file) = sys::open_end(RESCUES) else { return };
    let word = match outcome {
        _ if outcome.is_quiet() => RescueOutcome::Quiet,
        Outcome { lost: true, .. } => RescueOutcome::Lost,
        _ => RescueOutcome::NotQuiet,
    };
    let mut line = Line::new();
    let _ = line.write_str(word.name());
    if sys::length(file).is_some_and(|length| length < RESCUES_LONG) {
        let _ = write!(line, " {} {} {driver} {outcome}", sys::now(), record.name());
    }
    let _ = line.write_char('\n');
    // One write, so that lines of several guardians do not mix.
    sys::write(file, line.text());
    sys::close(file);
}

/// A line of text, of bounded length.
struct Line {
    bytes: [u8; 400],
    length: usize,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; 400], length: 0 }
    }

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let Some(place) = self.bytes.get_mut(self.length) else { return Err(fmt::Error) };
            *place = byte;
            self.length += 1;
        }
        Ok(())
    }
}
