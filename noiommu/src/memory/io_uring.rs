//! Pins by io_uring registered buffers.
//!
//! A slot of a ring's sparse buffer table holds one buffer of at most 1 GiB; filling a slot pins it, clearing the slot
//! lets it go. Rings are kept and their slots used again.
//!
//! Two kinds of rings, because kernels 6.12 to 6.18 search the ring's whole table each time a huge page is registered
//! (measured: 38 us per 2 MiB with 16,384 empty slots): huge pages go to rings of few slots, and a buffer never mixes
//! page sizes.

use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, PoisonError};

use io_uring::IoUring;
use noiommu_core::Errno;

use super::pagemap::Piece;
use super::pin::{Pin, PinKind, PinSource, refused};
use crate::error::{ErrorKind, errno_of};
use crate::guardian::Held as HeldByGuardian;
use crate::{Error, Result};

/// The kernel's limit for one buffer.
const LONGEST_BUFFER: usize = 1 << 30;
/// Slots of the first ring, which every process has: the kernel clears the room for them when it is made.
const FIRST_SLOTS: u32 = 1024;
/// Slots of a further ring for small pages: the kernel's limit.
const SMALL_SLOTS: u32 = 16384;
/// Slots of a ring for huge pages.
const HUGE_SLOTS: u32 = 64;

/// The rings of a process.
#[derive(Clone)]
pub(crate) struct IoUringPins {
    rings: Arc<Mutex<Rings>>,
    /// The process whose memory the rings pin.
    process: u32,
}

#[derive(Default)]
struct Rings {
    small: Vec<Ring>,
    huge: Vec<Ring>,
}

impl Rings {
    fn of(&mut self, huge: bool) -> &mut Vec<Ring> {
        if huge { &mut self.huge } else { &mut self.small }
    }
}

struct Ring {
    /// Dropped before the ring is closed.
    _held: Option<HeldByGuardian>,
    ring: IoUring,
    free: Vec<u32>,
    /// Slots never used yet begin here.
    fresh: u32,
    slots: u32,
}

impl Ring {
    fn new(slots: u32) -> std::io::Result<Self> {
        let ring = IoUring::new(1)?;
        let submitter = ring.submitter();
        match undisturbed(|| submitter.register_buffers_sparse(slots)) {
            // Kernels before 5.19 know no sparse tables; empty entries make the same.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => empty_table(&ring, slots)?,
            other => other?,
        }
        Ok(Self { _held: None, ring, free: Vec::new(), fresh: 0, slots })
    }

    /// The same, held by the guardian if there is one.
    fn held(slots: u32) -> Result<Self> {
        let ring = Self::new(slots).map_err(|error| unavailable(&error))?;
        Ok(Self { _held: Some(HeldByGuardian::new(ring.ring.as_raw_fd())?), ..ring })
    }

    fn take_slot(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            (self.fresh < self.slots).then(|| {
                self.fresh += 1;
                self.fresh - 1
            })
        })
    }

    fn set(&self, slot: u32, address: usize, length: usize) -> std::io::Result<()> {
        let buffer = libc::iovec { iov_base: address as *mut _, iov_len: length };
        undisturbed(|| {
            // SAFETY: registering reads nothing of the buffer and no operation is ever submitted on these rings, so
            // nothing is written through them; the pages stay alive by the pin itself.
            unsafe { self.ring.submitter().register_buffers_update(slot, &[buffer], None) }
        })
    }
}

/// Makes a call again that a signal has ended.
fn undisturbed<T>(call: impl Fn() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// A table of empty entries, for kernels 5.13 to 5.18.
fn empty_table(ring: &IoUring, slots: u32) -> std::io::Result<()> {
    let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let (buffers, tags) = (vec![nothing; slots as usize], vec![0; slots as usize]);
    // SAFETY: the entries name no memory.
    undisturbed(|| unsafe { ring.submitter().register_buffers2(&buffers, &tags) })
}

/// A filled slot.
struct Slot {
    huge: bool,
    ring: usize,
    slot: u32,
}

/// Slots that hold one mapping; cleared on drop.
pub(crate) struct Held {
    rings: Arc<Mutex<Rings>>,
    process: u32,
    /// Most mappings have but one, and need no room elsewhere for it.
    first: Option<Slot>,
    others: Vec<Slot>,
}

impl Held {
    fn push(&mut self, slot: Slot) {
        match self.first {
            None => self.first = Some(slot),
            Some(_) => self.others.push(slot),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A forked child shares the rings, and would let go of its parent's pages.
        if crate::process::id() != self.process {
            return;
        }
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        for Slot { huge, ring, slot } in self.first.take().into_iter().chain(self.others.drain(..)) {
            if let Some(ring) = rings.of(huge).get_mut(ring) {
                // A slot that cannot be cleared keeps its pages pinned and is not used again: a leak, but no lie.
                match ring.set(slot, 0, 0) {
                    Ok(()) => ring.free.push(slot),
                    Err(error) => {
                        tracing::error!(%error, "an io_uring slot could not be cleared; its pages stay pinned")
                    }
                }
            }
        }
    }
}

impl IoUringPins {
    /// Opens a first ring, to see whether the kernel allows it.
    pub(crate) fn new() -> Result<Self> {
        let ring = Ring::held(FIRST_SLOTS)?;
        let rings = Rings { small: vec![ring], huge: Vec::new() };
        Ok(Self { rings: Arc::new(Mutex::new(rings)), process: crate::process::id() })
    }
}

fn unavailable(error: &std::io::Error) -> Error {
    let errno = errno_of(error);
    let (why, remedy) = match errno {
        Errno::EPERM | Errno::EACCES => (
            "io_uring is switched off for this process (kernel.io_uring_disabled, or a seccomp filter)",
            "sysctl kernel.io_uring_disabled=0, or allow io_uring_setup and io_uring_register in the container's seccomp profile",
        ),
        Errno::ENOSYS => ("this kernel has no io_uring", "use a kernel with CONFIG_IO_URING"),
        Errno::ENOMEM => (
            "RLIMIT_MEMLOCK does not even cover the ring",
            "raise the limit (ulimit -l) or give the program CAP_IPC_LOCK",
        ),
        _ => ("io_uring cannot be set up", "check the open-file limit (ulimit -n)"),
    };
    Error::new(ErrorKind::NoPinSource, errno, format!("{why}: {error}")).with_remedy(remedy)
}

impl PinSource for IoUringPins {
    fn kind(&self) -> PinKind {
        PinKind::IoUring
    }

    fn pin(&self, pieces: &[Piece]) -> Result<Pin> {
        // Dropped on every early return, which lets go of what is pinned so far; the lock is not held then.
        let mut held =
            Held { rings: self.rings.clone(), process: self.process, first: None, others: Vec::new() };
        for piece in pieces {
            let mut done = 0;
            while done < piece.length {
                let length = (piece.length - done).min(LONGEST_BUFFER);
                let part = Piece { address: piece.address + done, length, huge: piece.huge };
                held.push(pin_part(&self.rings, part)?);
                done += length;
            }
        }
        Ok(Pin::IoUring { slots: held })
    }
}

fn pin_part(rings: &Mutex<Rings>, part: Piece) -> Result<Slot> {
    let mut rings = rings.lock().unwrap_or_else(PoisonError::into_inner);
    let huge = part.huge;
    let kind = rings.of(huge);
    let free = kind.iter_mut().enumerate().rev().find_map(|(index, ring)| Some((index, ring.take_slot()?)));
    let (index, slot) = match free {
        Some(free) => free,
        None => {
            let mut ring = Ring::held(if huge { HUGE_SLOTS } else { SMALL_SLOTS })?;
            let slot = ring.take_slot().unwrap_or(0);
            kind.push(ring);
            (kind.len() - 1, slot)
        }
    };
    let Some(ring) = kind.get_mut(index) else { return Err(Errno::EIO.into()) };
    match ring.set(slot, part.address, part.length) {
        Ok(()) => Ok(Slot { huge, ring: index, slot }),
        Err(error) => {
            ring.free.push(slot);
            Err(refused("pinning with io_uring", part.address, part.length, &error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Piece {
        // Leaked on purpose: a page of its own for each call.
        let memory = vec![0u8; 8192].leak();
        Piece { address: (memory.as_ptr() as usize).next_multiple_of(4096), length: 4096, huge: false }
    }

    #[test]
    fn slots_are_used_again_and_rings_kept() {
        let pins = IoUringPins::new().unwrap();
        let count = |pins: &IoUringPins| {
            let rings = pins.rings.lock().unwrap();
            (rings.small.len(), rings.small[0].fresh, rings.small[0].free.len())
        };
        let part = page();
        for _ in 0..100 {
            drop(pins.pin(&[part, part]).unwrap());
        }
        assert_eq!(count(&pins), (1, 2, 2));
    }

    #[test]
    fn a_failing_piece_lets_go_of_the_others() {
        let pins = IoUringPins::new().unwrap();
        let bad = Piece { address: 4096, length: 4096, huge: false };
        let error = pins.pin(&[page(), page(), bad]).err().unwrap();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::BadMemory, Errno::EFAULT));
        assert_eq!(pins.rings.lock().unwrap().small[0].free.len(), 3);
    }

    /// The table that kernels before 5.19 get works on all.
    #[test]
    fn empty_entries_make_a_sparse_table() {
        let ring = IoUring::new(1).unwrap();
        empty_table(&ring, 16).unwrap();
        let ring = Ring { _held: None, ring, free: Vec::new(), fresh: 0, slots: 16 };
        let part = page();
        ring.set(7, part.address, part.length).unwrap();
        ring.set(7, 0, 0).unwrap();
        assert!(ring.set(16, part.address, part.length).is_err());
    }

    #[test]
    fn more_than_one_ring() {
        let pins = IoUringPins::new().unwrap();
        let part = Piece { huge: true, ..page() };
        let held = pins.pin(&[part; HUGE_SLOTS as usize + 1]).unwrap();
        assert_eq!(pins.rings.lock().unwrap().huge.len(), 2);
        drop(held);
        let _held = pins.pin(&[part; 2 * HUGE_SLOTS as usize]).unwrap();
        assert_eq!(pins.rings.lock().unwrap().huge.len(), 2);
    }
}
