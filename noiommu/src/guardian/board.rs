//! Memory that a driver and its guardian share: which devices there are, and whether the guardian lives.

use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{self, MapFlags, ProtFlags};
use zerocopy::FromZeros as _;

use super::record::Record;
use crate::memory::Vma;
use crate::{Error, Result, stats};

/// The most devices of one process.
pub(super) const SLOTS: usize = 256;

/// The guardian has died: what the kernel sets in the word of a robust futex (FUTEX_OWNER_DIED of *linux/futex.h*).
pub(super) const DIED: u32 = 0x4000_0000;

/// A slot without a device.
pub(super) const FREE: u32 = 0;
/// A device that cannot reach memory.
pub(super) const HELD: u32 = 1;
/// A device that may be doing DMA.
pub(super) const LOOSE: u32 = 2;

/// What both see. Zero bytes are one without devices, whose guardian has not begun.
///
/// The driver alone writes slots, under a lock of its process, and the guardian reads them when the driver is dead, so nobody
/// reads a record while it is written: one that was not finished is not told of by its state.
#[repr(C)]
pub(super) struct Board {
    head: Head,
    /// 0: not begun; the thread id of the guardian; with [`DIED`], it is no more.
    pub(super) guardian: AtomicU32,
    /// The guardian has a cgroup of its own.
    pub(super) apart: AtomicU32,
    slots: [Slot; SLOTS],
}

/// What a board begins with, for those who look at it from outside.
#[repr(C)]
struct Head {
    /// [`MAGIC`]: a board of this layout.
    magic: AtomicU64,
    /// The driver, by the id that it has in its own PID namespace.
    driver: AtomicU32,
    /// The driver is gone, and the guardian at work.
    rescuing: AtomicU32,
}

/// What the file is called that a board is in, as /proc/PID/maps shows it.
pub(crate) const BOARD: &CStr = c"noiommu-guardian";

/// The last digit is the layout. The first word of a board.
const MAGIC: u64 = u64::from_le_bytes(*b"noguard1");

/// A board, seen from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// The driver, and the guardian's only thread, by the ids that they have in the driver's PID namespace.
    pub(crate) driver: u32,
    pub(crate) guardian: u32,
    /// The guardian has died before its driver.
    pub(crate) dead: bool,
    /// It has left the driver's cgroup.
    pub(crate) apart: bool,
    /// The driver is gone, and the guardian at work.
    pub(crate) rescuing: bool,
    /// Devices that may be doing DMA.
    pub(crate) loose: u32,
}

/// Looks at a board that another process has mapped; `None`: it is no board of this layout.
///
/// # Errors
/// What copying it answers.
pub(crate) fn look(process: u32, vma: &Vma) -> std::io::Result<Option<Seen>> {
    // A mapping is of whole pages.
    if vma.end - vma.start != size_of::<Board>().next_multiple_of(rustix::param::page_size()) {
        return Ok(None);
    }
    let [words] = stats::copy::<1>(process, vma, size_of::<Board>())?;
    // Half a word, by its offset in the board.
    let at = |offset: usize| {
        let halves = words.get(offset / 8).copied().unwrap_or(0).to_ne_bytes();
        let [a, b, c, d] = halves.as_chunks().0[offset % 8 / 4];
        u32::from_ne_bytes([a, b, c, d])
    };
    let word = at(offset_of!(Board, guardian));
    let state = |slot| at(offset_of!(Board, slots) + slot * size_of::<Slot>() + offset_of!(Slot, state));
    Ok((words.first() == Some(&MAGIC)).then(|| Seen {
        driver: at(offset_of!(Board, head.driver)),
        guardian: word & !DIED & !WAITERS,
        dead: word & DIED != 0,
        apart: at(offset_of!(Board, apart)) != 0,
        rescuing: at(offset_of!(Board, head.rescuing)) != 0,
        loose: (0..SLOTS).filter(|slot| state(*slot) == LOOSE).count() as u32,
    }))
}

/// Somebody waits for a robust futex (FUTEX_WAITERS of *linux/futex.h*).
const WAITERS: u32 = 0x8000_0000;

#[repr(C)]
struct Slot {
    state: AtomicU32,
    record: UnsafeCell<Record>,
}

// SAFETY: records are written under the lock of whoever has the board and read by nobody else in this process; see above.
unsafe impl Sync for Slot {}

impl Board {
    /// A new one, for the rest of this process's life.
    ///
    /// # Errors
    /// Want of memory.
    pub(super) fn new() -> Result<&'static Self> {
        // Where it cannot have a name, others do not see it.
        let memory = stats::shared(BOARD, size_of::<Self>()).or_else(|error| {
            tracing::debug!(%error, "noiommu top will not see the guardian");
            // SAFETY: a new mapping at a place of the kernel's choice.
            unsafe {
                mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    size_of::<Self>(),
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::SHARED,
                )
            }
        });
        let memory = memory.map_err(|error| Error::system("memory for a guardian", error))?;
        // SAFETY: mapped, aligned to a page, zeroed, which is a valid value, and never unmapped in this process.
        let board = unsafe { &*memory.cast::<Self>() };
        board.head.driver.store(crate::process::id(), Ordering::Relaxed);
        board.head.magic.store(MAGIC, Ordering::Release);
        Ok(board)
    }

    /// Tells that the driver is gone and the guardian at work.
    pub(super) fn begin_rescue(&self) {
        self.head.rescuing.store(1, Ordering::Relaxed);
    }

    /// Where it is, and its bytes.
    pub(super) fn range(&self) -> (usize, usize) {
        (std::ptr::from_ref(self) as usize, size_of::<Self>())
    }

    /// Puts a device into a free slot; `None`: there is none.
    pub(super) fn add(&self, record: &Record) -> Option<usize> {
        let index = self.slots.iter().position(|slot| slot.state.load(Ordering::Relaxed) == FREE)?;
        self.write(index, record);
        self.slots.get(index)?.state.store(HELD, Ordering::Release);
        Some(index)
    }

    /// Replaces the record of a device. One that is loose is not told of for that moment.
    pub(super) fn replace(&self, index: usize, record: &Record) {
        let Some(slot) = self.slots.get(index) else { return };
        let state = slot.state.swap(FREE, Ordering::AcqRel);
        self.write(index, record);
        slot.state.store(state, Ordering::Release);
    }

    fn write(&self, index: usize, record: &Record) {
        if let Some(slot) = self.slots.get(index) {
            // SAFETY: see [`Board`]: nobody reads it now.
            unsafe { slot.record.get().write(*record) };
        }
    }

    /// Tells whether a device may be doing DMA.
    pub(super) fn set_loose(&self, index: usize, loose: bool) {
        if let Some(slot) = self.slots.get(index) {
            slot.state.store(if loose { LOOSE } else { HELD }, Ordering::Release);
        }
    }

    /// Takes a device out.
    pub(super) fn remove(&self, index: usize) {
        if let Some(slot) = self.slots.get(index) {
            slot.state.store(FREE, Ordering::Release);
        }
    }

    /// The state of a slot.
    pub(super) fn state(&self, index: usize) -> u32 {
        self.slots.get(index).map_or(FREE, |slot| slot.state.load(Ordering::Acquire))
    }

    /// Copies a record, and answers its state. For whoever has the lock.
    pub(super) fn get(&self, index: usize, into: &mut Record) -> u32 {
        if let Some(slot) = self.slots.get(index) {
            // SAFETY: see [`Board`]: this is the driver's own lock.
            *into = unsafe { slot.record.get().read() };
        }
        self.state(index)
    }

    /// Copies the record of a device that may be doing DMA; false: there is none in the slot. For when nobody writes any more.
    pub(super) fn loose(&self, index: usize, into: &mut Record) -> bool {
        let Some(slot) = self.slots.get(index).filter(|slot| slot.state.load(Ordering::Acquire) == LOOSE)
        else {
            return false;
        };
        // SAFETY: see [`Board`]: the driver is dead, or this is its own lock.
        *into = unsafe { slot.record.get().read() };
        true
    }

    /// Whether the guardian has ended.
    pub(super) fn is_dead(&self) -> bool {
        self.guardian.load(Ordering::Relaxed) & DIED != 0
    }
}

/// A record to copy into.
pub(super) fn blank() -> Record {
    Record::new_zeroed()
}
