//! How a process tells what it has: a small file of shared memory that it maps, and others find.
//!
//! The file has no name in any directory and no descriptor stays open for it: it is there as long as the process has it mapped, however
//! the process ends, and goes with exec. A forked child, which has its parent's page too, makes one of its own when it has something
//! to tell. No lock is taken and nothing waits; whoever reads the page cannot change it by that. Where it cannot be made, the
//! numbers are counted where nobody sees them, and nothing else fails.

use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use noiommu_core::Totals;
use rustix::mm;

use super::page::{NAME, Page, Row};
use super::{ContextKind, Guard, file};

/// The environment variable that says whether to tell at all.
const VARIABLE: &str = "NOIOMMU_STATS";

/// The page of this process, or of the parent that it was forked from; null: none so far.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(std::ptr::null_mut());

/// Where is counted what nobody sees.
static UNSEEN: Page = Page::new();

/// The page of this process, made if there is none.
pub(super) fn page() -> &'static Page {
    match own() {
        Some(page) => page,
        None => make(),
    }
}

/// The page of this process, if there is one.
#[inline]
pub(super) fn own() -> Option<&'static Page> {
    // SAFETY: null, or a page that stays for the process's life.
    let page = unsafe { PAGE.load(Ordering::Acquire).as_ref() }?;
    (page.head.process.load(Ordering::Relaxed) == crate::process::id()).then_some(page)
}

#[cold]
fn make() -> &'static Page {
    let before = PAGE.load(Ordering::Acquire);
    let process = crate::process::id();
    let wanted = std::env::var_os(VARIABLE).is_none_or(|value| value != "off");
    let made = if wanted { map() } else { Ok(None) };
    let page = match made {
        Ok(Some(page)) => page,
        Ok(None) => &UNSEEN,
        Err(error) => {
            tracing::warn!(%error, "noiommu top will not see this process");
            &UNSEEN
        }
    };
    page.begin(process);
    let place = std::ptr::from_ref(page).cast_mut();
    match PAGE.compare_exchange(before, place, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => page,
        Err(theirs) => {
            // Another thread was first.
            if !std::ptr::eq(page, &UNSEEN) {
                // SAFETY: mapped by `map`, and nobody else has been told of it.
                let _ = unsafe { mm::munmap(place.cast(), size_of::<Page>()) };
            }
            // SAFETY: a page that stays for the process's life.
            unsafe { &*theirs }
        }
    }
}

/// A page in a file that others can find.
fn map() -> std::io::Result<Option<&'static Page>> {
    let place = file::shared(NAME, size_of::<Page>())?;
    // SAFETY: mapped, aligned to a page, zeroed, which is a valid value; never unmapped once others have been told of it.
    Ok(Some(unsafe { &*place.cast::<Page>() }))
}

/// A context's row, as long as the context lives.
pub(crate) struct Told {
    kind: ContextKind,
    /// Null: there was no row left. In a forked child, its parent's until it tells something itself.
    row: AtomicPtr<Row>,
    /// What was told last, by `maps` and the like that only grow: nothing is stored where nothing has changed.
    last: [AtomicU64; 6],
    process: AtomicU32,
}

impl Told {
    /// A new context.
    pub(crate) fn new(kind: ContextKind) -> Self {
        let told = Self {
            kind,
            row: AtomicPtr::new(std::ptr::null_mut()),
            last: Default::default(),
            process: AtomicU32::new(0),
        };
        told.begin();
        told
    }

    /// Takes a row in this process's page.
    fn begin(&self) -> Option<&'static Row> {
        let page = page();
        let row = page.take(self.kind as u32);
        if row.is_none() {
            page.head.without_row.fetch_add(1, Ordering::Relaxed);
        }
        self.row.store(
            row.map_or(std::ptr::null_mut(), |row| std::ptr::from_ref(row).cast_mut()),
            Ordering::Relaxed,
        );
        self.process.store(crate::process::id(), Ordering::Relaxed);
        row
    }

    fn row(&self) -> Option<&'static Row> {
        // SAFETY: null, or a row of a page, which stays for the process's life.
        unsafe { self.row.load(Ordering::Relaxed).as_ref() }
    }

    /// Tells what the context has. Its owner has it locked.
    #[inline]
    pub(crate) fn tell(&self, totals: &Totals) {
        let now =
            [totals.ioases, totals.areas, totals.bytes, totals.table_frames, totals.maps, totals.unmaps];
        let same = now.iter().zip(&self.last).all(|(now, last)| *now == last.load(Ordering::Relaxed));
        if same {
            return;
        }
        for (now, last) in now.iter().zip(&self.last) {
            last.store(*now, Ordering::Relaxed);
        }
        let row = if self.process.load(Ordering::Relaxed) == crate::process::id() {
            self.row()
        } else {
            self.begin()
        };
        if let Some(row) = row {
            row.write(totals);
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // A forked child has its parent's row, and leaves it alone.
        if self.process.load(Ordering::Relaxed) != crate::process::id() {
            return;
        }
        let head = &page().head;
        match self.row() {
            Some(row) => {
                let [.., maps, unmaps] = &self.last;
                head.maps.fetch_add(maps.load(Ordering::Relaxed), Ordering::Relaxed);
                head.unmaps.fetch_add(unmaps.load(Ordering::Relaxed), Ordering::Relaxed);
                row.free();
            }
            None => {
                head.without_row.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Counts something that is there as long as this is.
#[derive(Debug)]
pub(crate) struct Counted {
    what: What,
    slots: u64,
    bytes: u64,
    process: u32,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Pins,
    Device,
}

impl Counted {
    /// Pinned memory, held by so many buffers of rings or sockets.
    pub(crate) fn pins(slots: u64, bytes: u64) -> Self {
        Self::new(What::Pins, slots, bytes)
    }

    /// A device that is open.
    pub(crate) fn device() -> Self {
        Self::new(What::Device, 1, 0)
    }

    fn new(what: What, slots: u64, bytes: u64) -> Self {
        let counted = Self { what, slots, bytes, process: crate::process::id() };
        let head = &page().head;
        match what {
            What::Pins => {
                head.pin_slots.fetch_add(slots, Ordering::Relaxed);
                head.pin_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            What::Device => {
                head.devices.fetch_add(1, Ordering::Relaxed);
            }
        }
        counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // In a forked child it was never this process's.
        if self.process != crate::process::id() {
            return;
        }
        let head = &page().head;
        match self.what {
            What::Pins => {
                head.pin_slots.fetch_sub(self.slots, Ordering::Relaxed);
                head.pin_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
            }
            What::Device => {
                head.devices.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Counts addresses that IOMMU_IOAS_NOIOMMU_GET_PA has answered. No system call is made for it where this process has told
/// something before; where it has not, they are not counted.
#[inline]
pub fn count_lookups(count: u64) {
    if let Some(page) = own() {
        page.head.lookups.fetch_add(count, Ordering::Relaxed);
    }
}

/// Tells who guards this process.
pub(crate) fn tell_guard(guard: Guard, process: u32) {
    let head = &page().head;
    head.guardian.store(process, Ordering::Relaxed);
    head.guard.store(guard as u32, Ordering::Release);
}
