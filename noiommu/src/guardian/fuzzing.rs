//! The service's end of the protocol, played by a fuzzer: any bytes, any descriptors with them.

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use noiommu_core::Errno;
use rustix::fs::MemfdFlags;

use super::record::{Place, Record};
use super::rescue;
use super::service::{Session, World};
use super::wire::LONGEST;
use crate::device::QuietStep;

/// Bytes of the files that stand for devices: what lies behind would be a bus error, which the service keeps away by taking files of
/// devices alone.
const SIZE: u64 = 1 << 30;

/// Descriptors that are there, and those that are not.
struct Made {
    file: OwnedFd,
}

impl Made {
    fn another(&self) -> Result<OwnedFd, Errno> {
        self.file.try_clone().map_err(|_| Errno::EMFILE)
    }
}

impl World for Made {
    fn fetch(&mut self, file: RawFd) -> Result<OwnedFd, Errno> {
        if file % 4 == 3 { Err(Errno::EBADF) } else { self.another() }
    }

    fn pins(&self, file: &OwnedFd) -> bool {
        file.as_raw_fd() % 3 != 0
    }

    fn is_device(&self, _: &OwnedFd) -> bool {
        true
    }
}

/// Plays messages that are made of `data`, and then the driver's death: nothing panics, hangs or stays open.
///
/// A message is a byte that tells how many descriptors come with it (the lower four bits) and whether the rest is a whole message or
/// the beginning of one (the highest bit), two bytes for its length, and its bytes, filled up with zeros where `data` ends.
#[doc(hidden)]
pub fn play_service(mut data: &[u8]) {
    let Ok(file) = rustix::fs::memfd_create("noiommu-fuzz", MemfdFlags::CLOEXEC) else { return };
    if rustix::fs::ftruncate(&file, SIZE).is_err() {
        return;
    }
    let mut world = Made { file };
    let mut session = Session::new();
    while let Some(([how, low, high], rest)) = data.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([*low, *high])) % (LONGEST + 2);
        let (bytes, rest) = rest.split_at(length.min(rest.len()));
        let mut message = bytes.to_vec();
        if how & 0x80 == 0 {
            message.resize(length, 0);
        }
        let files = (0..how & 15).filter_map(|_| world.another().ok()).collect();
        let reply = session.answer(&mut world, &message, files);
        assert!(reply.errno < 4096, "no error of the kernel's: {reply:?}");
        data = rest;
    }
    for record in session.loose().filter(|record| is_short(record)) {
        let outcome = rescue::rescue(record);
        assert!(!(outcome.is_quiet() && outcome.unreachable), "{outcome}");
    }
}

/// Whether a rescue takes no long time, and stays within the files.
fn is_short(record: &Record) -> bool {
    let waits = record.steps().flatten().map(|step| match step {
        QuietStep::Wait { timeout, .. } => timeout.as_millis(),
        _ => 0,
    });
    let inside = |bar| match record.place(bar) {
        Some(Place::Mapped { offset, shift, length, .. }) => offset
            .checked_add(length)
            .and_then(|end| end.checked_add(shift as u64))
            .is_some_and(|end| end <= SIZE),
        _ => true,
    };
    waits.sum::<u128>() < 3 && record.express_status().is_none() && (0..6).all(inside)
}
