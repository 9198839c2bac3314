//! Rescues since the machine was started, as guardians have noted them down.
//!
//! A guardian that has made a dead driver's device quiet appends a line to a file in /run. It does so after its work, with two calls
//! that wait for nobody, and does without where it cannot: a driver that does not run as root is not counted, and its rescue is in the
//! kernel's log alone. From [`LONG`] on lines have no more than their first word, so that the count stays right and the file small.

use std::ffi::CStr;

use crate::{Error, Result, files};

/// The directory, and the file in it.
pub(crate) const DIRECTORY: &CStr = c"/run/noiommu";
pub(crate) const FILE: &CStr = c"/run/noiommu/rescues";

/// Bytes of the file from which on lines are short.
pub(crate) const LONG: u64 = 1 << 20;

/// How a rescue ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum RescueOutcome {
    /// The device was made quiet.
    Quiet,
    /// It was not at first; its memory stays pinned, and a rescue that succeeds later has a line of its own.
    NotQuiet,
    /// The driver had closed what the device is reached by.
    Lost,
}

impl RescueOutcome {
    /// The word that a line begins with.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::NotQuiet => "not-quiet",
            Self::Lost => "lost",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Quiet, Self::NotQuiet, Self::Lost].into_iter().find(|outcome| outcome.name() == word)
    }
}

/// A device whose driver has died.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Rescue {
    /// How it ended.
    pub outcome: RescueOutcome,
    /// When, in seconds since 1970; `None` for this and what follows: not noted, as there were too many.
    pub time: Option<u64>,
    /// The device.
    pub device: Option<String>,
    /// The driver's process, by the id that it had in its guardian's PID namespace.
    pub process: Option<u32>,
    /// What was done to the device.
    pub how: Option<String>,
}

impl Rescue {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(5, ' ');
        let outcome = RescueOutcome::of(words.next()?)?;
        Some(Self {
            outcome,
            time: words.next().and_then(|word| word.parse().ok()),
            device: words.next().map(str::to_owned),
            process: words.next().and_then(|word| word.parse().ok()),
            how: words.next().map(str::to_owned),
        })
    }
}

/// The rescues since the machine was started, the first one first.
///
/// # Errors
/// What reading the file answers; that there is none means that there was no rescue.
pub fn rescues() -> Result<Vec<Rescue>> {
    let path = FILE.to_string_lossy();
    let read = files::if_there(files::read(path.as_ref().as_ref()));
    let text =
        read.map_err(|error| Error::system(format_args!("reading {path}"), error))?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&text).lines().filter_map(Rescue::parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let all = Rescue::parse("quiet 1764435000 0000:00:04.0 713 reset, bus mastering off").unwrap();
        assert_eq!((all.outcome, all.time), (RescueOutcome::Quiet, Some(1_764_435_000)));
        assert_eq!((all.device.as_deref(), all.process), (Some("0000:00:04.0"), Some(713)));
        assert_eq!(all.how.as_deref(), Some("reset, bus mastering off"));
        let short = Rescue::parse("not-quiet").unwrap();
        assert_eq!((short.outcome, short.time, short.device), (RescueOutcome::NotQuiet, None, None));
        assert_eq!((Rescue::parse(""), Rescue::parse("nonsense 1")), (None, None));
    }
}
