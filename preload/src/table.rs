//! Which descriptors are served, and by what.
//!
//! Looking up takes no lock, so that every call on every descriptor of the program may do it, in signal handlers too: an array of
//! atomics by descriptor number, in pieces that are made when needed and never freed, holds the index of a slot, and the slot holds
//! an open file description and counts who uses it. Slots are never freed either: a reader that comes too late finds one that is
//! empty or taken again, and notices, as it looks at the descriptor again once it counts.
//!
//! A kernel's descriptor stands behind each served one, a placeholder (see `hooks/open.rs`), so numbers, limits and what others
//! do to descriptors are the kernel's. Changes of a descriptor and of its note here are made together, under one lock.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use noiommu::Errno;
use noiommu::serve::File;

use crate::gate;
use crate::overlay::Entry;
use crate::raw::without_signals;

/// An open file description: what descriptors after `dup` share.
pub(crate) struct Description {
    /// What is open.
    pub(crate) what: Open,
    /// The flags of `open` that say what may be done: the access mode.
    pub(crate) access: c_int,
    /// Where `read` and `write` go on.
    pub(crate) position: AtomicU64,
}

/// What a served descriptor is open on.
pub(crate) enum Open {
    /// A served file, with its node in /dev; one that another file gave has none.
    File(File, Option<&'static Entry>),
    /// A node by O_PATH.
    Path(&'static Entry),
    /// A directory that the kernel does not have.
    Directory(&'static Entry),
}

impl Description {
    /// The file, when it is one that calls can be made on.
    pub(crate) fn file(&self) -> Option<&File> {
        match &self.what {
            Open::File(file, _) => Some(file),
            Open::Path(_) | Open::Directory(_) => None,
        }
    }

    /// The place in the file system, where there is one.
    pub(crate) fn entry(&self) -> Option<&'static Entry> {
        match self.what {
            Open::File(_, entry) => entry,
            Open::Path(entry) | Open::Directory(entry) => Some(entry),
        }
    }
}

const PIECE: usize = 1024;
const PIECES: usize = 1024;
/// Descriptors from here on are not served. The kernel's own limit begins here too (fs.nr_open).
const LIMIT: usize = PIECE * PIECES;

type Notes = [AtomicU32; PIECE];

/// The notes: 0, or twice the slot's number (counted from 1) plus one for a descriptor that is closed on exec, or [`ENGINES`].
static NOTES: [AtomicPtr<Notes>; PIECES] = [const { AtomicPtr::new(ptr::null_mut()) }; PIECES];

/// The note of a descriptor that is the engine's own.
const ENGINES: u32 = u32::MAX;

/// How many descriptors are noted.
static NOTED: AtomicUsize = AtomicUsize::new(0);

struct Slot {
    /// Who uses it: each descriptor and each call under way. 0: free.
    references: AtomicU32,
    description: UnsafeCell<Option<Description>>,
}

// SAFETY: the description is written by one thread while `references` is 0 and nobody else can come (`Kept::new`, `Kept::drop`), and
// read by those that are counted. Descriptions themselves are Send and Sync.
unsafe impl Sync for Slot {}

const SLOTS_PER_PIECE: usize = 256;

static SLOTS: [AtomicPtr<[Slot; SLOTS_PER_PIECE]>; LIMIT / SLOTS_PER_PIECE] =
    [const { AtomicPtr::new(ptr::null_mut()) }; LIMIT / SLOTS_PER_PIECE];

/// The numbers of free slots, and of the first that was never used.
static FREE: Mutex<(Vec<u32>, u32)> = Mutex::new((Vec::new(), 0));

/// Held while a descriptor and its note change together.
static CHANGE: Mutex<()> = Mutex::new(());

/// The piece behind a place of an array of pieces, made if it is not there yet.
fn piece<T>(place: &'static AtomicPtr<T>, make: impl FnOnce() -> T) -> &'static T {
    let mut found = place.load(Ordering::Acquire);
    if found.is_null() {
        let new = Box::into_raw(Box::new(make()));
        match place.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => found = new,
            Err(other) => {
                // SAFETY: made above, and nobody has seen it.
                drop(unsafe { Box::from_raw(new) });
                found = other;
            }
        }
    }
    // SAFETY: pieces come from a box and are never freed.
    unsafe { &*found }
}

/// The note of a descriptor, unless none near it was ever served.
#[inline]
fn note(fd: c_int) -> Option<&'static AtomicU32> {
    let fd = fd as u32 as usize;
    let notes = NOTES.get(fd / PIECE)?.load(Ordering::Acquire);
    if notes.is_null() {
        return None;
    }
    // SAFETY: pieces come from a box and are never freed.
    unsafe { (*notes).get(fd % PIECE) }
}

/// The slot that a note names.
#[inline]
fn number(note: u32) -> Option<u32> {
    if note == ENGINES { None } else { (note >> 1).checked_sub(1) }
}

fn slot(number: u32) -> Option<&'static Slot> {
    let number = number as usize;
    let slots = SLOTS.get(number / SLOTS_PER_PIECE)?;
    let make = || {
        std::array::from_fn(|_| Slot { references: AtomicU32::new(0), description: UnsafeCell::new(None) })
    };
    piece(slots, make).get(number % SLOTS_PER_PIECE)
}

/// The same, where it has been made: always so for the number of a note.
#[inline]
fn known_slot(number: u32) -> Option<&'static Slot> {
    let number = number as usize;
    let slots = SLOTS.get(number / SLOTS_PER_PIECE)?.load(Ordering::Acquire);
    if slots.is_null() {
        return None;
    }
    // SAFETY: pieces come from a box and are never freed.
    unsafe { (*slots).get(number % SLOTS_PER_PIECE) }
}

/// An open file description that stays while this does.
pub(crate) struct Kept {
    number: u32,
    slot: &'static Slot,
}

impl Kept {
    /// A new description in a slot of its own.
    fn new(description: Description) -> Result<Self, Errno> {
        let number = without_signals(|| {
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            free.0.pop().unwrap_or_else(|| {
                free.1 += 1;
                free.1 - 1
            })
        });
        let slot = slot(number).ok_or(Errno::ENOMEM)?;
        // SAFETY: the number was free, so the slot has no references, and nobody else was given it.
        unsafe { *slot.description.get() = Some(description) };
        slot.references.store(1, Ordering::Release);
        Ok(Self { number, slot })
    }

    /// Counts one more user of the slot, if it has any.
    #[inline]
    fn count(number: u32) -> Option<Self> {
        let slot = known_slot(number)?;
        let more = |count: u32| (count > 0).then(|| count + 1);
        slot.references.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).ok()?;
        Some(Self { number, slot })
    }

    /// The end of the description, whose last reference is gone.
    #[cold]
    fn release(&self) {
        // SAFETY: that was the last reference, and none can be made from 0; the number is given away only below.
        let last = unsafe { (*self.slot.description.get()).take() };
        without_signals(|| FREE.lock().unwrap_or_else(PoisonError::into_inner).0.push(self.number));
        // The file is released here: a part of the engine.
        gate::engine(|| drop(last));
    }

    /// As a note: this reference is the descriptor's from now on.
    fn into_note(self, close_on_exec: bool) -> u32 {
        let note = ((self.number + 1) << 1) | u32::from(close_on_exec);
        std::mem::forget(self);
        note
    }

    /// The reference that a note was.
    fn from_note(note: u32) -> Option<Self> {
        let number = number(note)?;
        Some(Self { number, slot: slot(number)? })
    }
}

impl Clone for Kept {
    fn clone(&self) -> Self {
        self.slot.references.fetch_add(1, Ordering::Relaxed);
        Self { number: self.number, slot: self.slot }
    }
}

impl Deref for Kept {
    type Target = Description;

    fn deref(&self) -> &Description {
        // SAFETY: a slot with references holds a description (`Kept::new` stores it first), and nobody writes it.
        unsafe { (*self.slot.description.get()).as_ref().unwrap_unchecked() }
    }
}

impl Drop for Kept {
    #[inline]
    fn drop(&mut self) {
        if self.slot.references.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.release();
        }
    }
}

/// Whether any descriptor is noted.
#[inline]
pub(crate) fn is_any() -> bool {
    NOTED.load(Ordering::Relaxed) > 0
}

/// Whether this descriptor is served.
#[inline]
pub(crate) fn is_served(fd: c_int) -> bool {
    note(fd).is_some_and(|note| number(note.load(Ordering::Acquire)).is_some())
}

/// Whether this descriptor is the engine's own.
#[inline]
pub(crate) fn is_engines(fd: c_int) -> bool {
    note(fd).is_some_and(|note| note.load(Ordering::Acquire) == ENGINES)
}

/// What a served descriptor is open on; `None` for all others.
#[inline]
pub(crate) fn get(fd: c_int) -> Option<Kept> {
    let note = note(fd)?;
    loop {
        let noted = note.load(Ordering::Acquire);
        let number = number(noted)?;
        // Counted after the slot was emptied, or filled anew: then the note is another one by now.
        if let Some(kept) = Kept::count(number)
            && note.load(Ordering::Acquire) >> 1 == noted >> 1
        {
            return Some(kept);
        }
    }
}

/// Whether a served descriptor is closed on exec.
pub(crate) fn closes_on_exec(fd: c_int) -> bool {
    is_served(fd) && note(fd).is_some_and(|note| note.load(Ordering::Acquire) & 1 != 0)
}

/// The right to change notes, with the descriptors that they are of.
pub(crate) struct Change(());

/// Runs `work`, which changes descriptors and their notes, while nobody else does. What `work` gives back is dropped after it, so
/// files that it closed are to be part of that.
pub(crate) fn change<R>(work: impl FnOnce(&Change) -> R) -> R {
    without_signals(|| {
        let _held = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        work(&Change(()))
    })
}

impl Change {
    /// Notes a descriptor; what it was noted as is given back.
    ///
    /// # Errors
    /// EMFILE: the number is too large to be served.
    pub(crate) fn set(&self, fd: c_int, kept: Kept, close_on_exec: bool) -> Result<Option<Kept>, Errno> {
        let place = Self::place(fd).ok_or(Errno::EMFILE)?;
        Ok(Self::swap(place, kept.into_note(close_on_exec)))
    }

    /// Notes a descriptor as the engine's own, where that can be noted.
    pub(crate) fn set_engines(&self, fd: c_int) {
        if let Some(place) = Self::place(fd) {
            drop(Self::swap(place, ENGINES));
        }
    }

    /// Forgets a descriptor; what it was noted as is given back.
    pub(crate) fn clear(&self, fd: c_int) -> Option<Kept> {
        Self::swap(note(fd)?, 0)
    }

    fn place(fd: c_int) -> Option<&'static AtomicU32> {
        let number = fd as u32 as usize;
        let notes = piece(NOTES.get(number / PIECE)?, || [const { AtomicU32::new(0) }; PIECE]);
        notes.get(number % PIECE)
    }

    fn swap(place: &AtomicU32, new: u32) -> Option<Kept> {
        let old = place.swap(new, Ordering::AcqRel);
        match (old, new) {
            (0, 1..) => NOTED.fetch_add(1, Ordering::Relaxed),
            (1.., 0) => NOTED.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        Kept::from_note(old)
    }

    /// Notes whether a served descriptor is closed on exec.
    pub(crate) fn set_close_on_exec(&self, fd: c_int, close: bool) {
        if let Some(note) = note(fd).filter(|_| is_served(fd)) {
            if close {
                note.fetch_or(1, Ordering::AcqRel);
            } else {
                note.fetch_and(!1, Ordering::AcqRel);
            }
        }
    }

    /// The served descriptors in `first..=last`, in their order.
    pub(crate) fn served(&self, first: u32, last: u32) -> Vec<c_int> {
        Self::all(first, last, is_served)
    }

    /// The engine's own descriptors in `first..=last`, in their order.
    pub(crate) fn engines(&self, first: u32, last: u32) -> Vec<c_int> {
        Self::all(first, last, is_engines)
    }

    fn all(first: u32, last: u32, is: impl Fn(c_int) -> bool) -> Vec<c_int> {
        let mut all = Vec::new();
        for (number, notes) in (0..).zip(&NOTES) {
            let base = number * PIECE as u32;
            if notes.load(Ordering::Acquire).is_null() || base > last || base + (PIECE as u32 - 1) < first {
                continue;
            }
            let range = base.max(first)..=(base + (PIECE as u32 - 1)).min(last);
            all.extend(range.map(|fd| fd as c_int).filter(|&fd| is(fd)));
        }
        all
    }
}

/// Makes a description, with one reference: the one that is given back.
///
/// # Errors
/// ENOMEM: there are too many.
pub(crate) fn describe(what: Open, access: c_int) -> Result<Kept, Errno> {
    Kept::new(Description { what, access, position: AtomicU64::new(0) })
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use noiommu::serve::{Caller, FileOperations};

    use super::*;

    /// A file that knows whether it is still open.
    struct Counted {
        open: AtomicBool,
        alive: Arc<AtomicUsize>,
    }

    impl FileOperations for Counted {
        fn ioctl(&self, _: Caller<'_>, _: u32, _: u64) -> Result<i64, Errno> {
            Ok(i64::from(self.open.load(Ordering::SeqCst)))
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.open.store(false, Ordering::SeqCst);
            self.alive.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn new(alive: &Arc<AtomicUsize>) -> Kept {
        alive.fetch_add(1, Ordering::SeqCst);
        let file = Arc::new(Counted { open: AtomicBool::new(true), alive: alive.clone() });
        describe(Open::File(file, None), libc::O_RDWR).unwrap()
    }

    fn is_open(kept: &Kept) -> bool {
        let counted = kept.file().unwrap().as_any().downcast_ref::<Counted>().unwrap();
        counted.open.load(Ordering::SeqCst)
    }

    // Descriptors that the test process does not have, so that nothing else touches their notes.

    #[test]
    fn a_file_lives_until_its_last_user() {
        const FD: c_int = 5000;
        let alive = Arc::new(AtomicUsize::new(0));
        assert!(get(FD).is_none() && !is_served(FD));
        assert!(change(|change| change.set(FD, new(&alive), true)).unwrap().is_none());
        assert!(is_served(FD) && closes_on_exec(FD) && is_any());
        change(|change| change.set_close_on_exec(FD, false));
        assert!(!closes_on_exec(FD));
        let user = get(FD).unwrap();
        assert_eq!(change(|change| change.served(4990, 5010)), [FD]);
        let replaced = change(|change| change.set(FD, new(&alive), false)).unwrap();
        assert_eq!(alive.load(Ordering::SeqCst), 2);
        drop(replaced);
        assert!(is_open(&user) && alive.load(Ordering::SeqCst) == 2);
        drop(user);
        assert_eq!(alive.load(Ordering::SeqCst), 1);
        drop(change(|change| change.clear(FD)));
        assert!(alive.load(Ordering::SeqCst) == 0 && get(FD).is_none());
        assert!(change(|change| change.clear(FD)).is_none());
    }

    #[test]
    fn the_engines_are_not_served() {
        const FD: c_int = 5100;
        change(|change| change.set_engines(FD));
        assert!(is_engines(FD) && !is_served(FD) && get(FD).is_none() && !closes_on_exec(FD));
        assert_eq!(
            change(|change| (change.engines(5000, 5200), change.served(5100, 5100))),
            (vec![FD], vec![])
        );
        change(|change| {
            change.set_close_on_exec(FD, false);
            assert!(change.clear(FD).is_none());
        });
        assert!(!is_engines(FD));
    }

    #[test]
    fn numbers_that_cannot_be_served() {
        let alive = Arc::new(AtomicUsize::new(0));
        for fd in [LIMIT as c_int, c_int::MAX, -1] {
            assert_eq!(change(|change| change.set(fd, new(&alive), false)).err(), Some(Errno::EMFILE));
            assert!(get(fd).is_none() && !is_served(fd) && !is_engines(fd));
        }
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }

    /// Readers, and others that change what the descriptors are open on: whoever finds a file finds it open.
    #[test]
    fn readers_and_changes_at_once() {
        const FIRST: c_int = 6000;
        let alive = Arc::new(AtomicUsize::new(0));
        thread::scope(|scope| {
            for seed in 0..4 {
                let alive = alive.clone();
                scope.spawn(move || {
                    for round in 0..20_000 {
                        let fd = FIRST + (round * 7 + seed) % 3;
                        match (round + seed) % 4 {
                            0 => drop(change(|change| change.set(fd, new(&alive), false)).unwrap()),
                            1 => drop(change(|change| change.clear(fd))),
                            _ => {
                                if let Some(kept) = get(fd) {
                                    assert!(is_open(&kept));
                                    assert!(is_open(&kept.clone()));
                                }
                            }
                        }
                    }
                });
            }
        });
        drop(change(|change| (FIRST..FIRST + 3).map(|fd| change.clear(fd)).collect::<Vec<_>>()));
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }
}
