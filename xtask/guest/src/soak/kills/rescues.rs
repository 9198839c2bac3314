//! What guardians say in the kernel's log: one line for each rescue.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, Result, bail};

/// The kernel's log, one record for each read.
const LOG: &str = "/dev/kmsg";

/// What each line of a guardian begins with.
const GUARDIAN: &str = "noiommu-guardian: ";

/// The most bytes of a record.
const RECORD: usize = 8192;

/// The kernel's log from some moment on.
pub(super) struct Rescues {
    log: File,
}

impl Rescues {
    /// From now on.
    pub(super) fn follow() -> Result<Self> {
        let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(LOG).context(LOG)?;
        log.seek(SeekFrom::End(0)).context(LOG)?;
        Ok(Self { log })
    }

    /// The guardians' lines since the last time.
    pub(super) fn new_lines(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = [0; RECORD];
        loop {
            match self.log.read(&mut record) {
                Ok(0) => return Ok(lines),
                Ok(length) => lines.extend(line(&String::from_utf8_lossy(&record[..length]))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nothing is counted that was not read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                    bail!("the kernel's log was overwritten before it was read")
                }
                Err(error) => return Err(error).context(LOG),
            }
        }
    }
}

/// The message of a record, if it is a guardian's: numbers, a semicolon, the message, and on further lines what else is known.
fn line(record: &str) -> Option<String> {
    let (_, message) = record.split_once(';')?;
    let message = message.lines().next()?;
    message.starts_with(GUARDIAN).then(|| message.to_owned())
}

/// Whether a line is about this device and this process.
pub(super) fn is_about(line: &str, address: &str, process: u32) -> bool {
    let words = |separator: fn(char) -> bool| {
        line.split(separator).map(|word| word.trim_matches([',', '.', ';', ':', '(', ')']))
    };
    words(char::is_whitespace).any(|word| word == address)
        && words(|letter: char| !letter.is_ascii_digit()).any(|word| word == process.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let record = "12,513,98765,-;noiommu-guardian: 0000:00:01.0: process 214 died\n SUBSYSTEM=x\n";
        let told = line(record).unwrap();
        assert_eq!(told, "noiommu-guardian: 0000:00:01.0: process 214 died");
        assert!(is_about(&told, "0000:00:01.0", 214));
        assert!(!is_about(&told, "0000:00:01.0", 21) && !is_about(&told, "0000:00:02.0", 214));
        assert!(line("6,1,2,-;Out of memory: Killed process 214\n").is_none());
        assert!(line("nonsense").is_none());
    }
}
