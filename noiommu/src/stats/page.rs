//! The page in which a process tells what it has: its layout, which other programs read.
//!
//! Numbers are plain atomics of the machine's order, so none of them is ever read half. What belongs together in a row is kept by a
//! sequence: odd while it is being written. Layouts change with [`VERSION`]; who reads another one takes nothing from it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use noiommu_core::Totals;

/// What the file is called, as /proc/PID/maps shows it.
pub(super) const NAME: &std::ffi::CStr = c"noiommu-stats";
/// What a page begins with.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"noiommu\0");
/// The layout that is written here.
pub(super) const VERSION: u32 = 1;
/// Contexts that a page has rows for. What further ones have is not told, and that there are such is.
pub(super) const ROWS: usize = 127;

/// A row that is nobody's.
const FREE: u32 = 0;

/// All that a process tells. Zero bytes, but for the head, are a process without contexts.
#[repr(C)]
pub(super) struct Page {
    pub(super) head: Head,
    rows: [Row; ROWS],
}

/// What is the process's, and not one context's.
#[repr(C, align(128))]
pub(super) struct Head {
    /// [`MAGIC`], put last: without it the page is nothing yet.
    pub(super) magic: AtomicU64,
    pub(super) version: AtomicU32,
    /// The process, by the id that it has in its own PID namespace.
    pub(super) process: AtomicU32,
    /// Buffers of rings and sockets that pin memory, and the bytes of memory in them.
    pub(super) pin_slots: AtomicU64,
    pub(super) pin_bytes: AtomicU64,
    /// Devices that are open.
    pub(super) devices: AtomicU64,
    /// Addresses asked for by IOMMU_IOAS_NOIOMMU_GET_PA.
    pub(super) lookups: AtomicU64,
    /// Maps and unmaps of contexts that have ended.
    pub(super) maps: AtomicU64,
    pub(super) unmaps: AtomicU64,
    /// Contexts that have no row.
    pub(super) without_row: AtomicU64,
    /// Who guards it: see [`Guard`](super::Guard).
    pub(super) guard: AtomicU32,
    /// The guardian's process, where it has one of its own.
    pub(super) guardian: AtomicU32,
}

/// A context.
#[repr(C, align(128))]
pub(super) struct Row {
    /// [`FREE`], or what kind of context it is.
    kind: AtomicU32,
    sequence: AtomicU32,
    ioases: AtomicU64,
    areas: AtomicU64,
    bytes: AtomicU64,
    table_frames: AtomicU64,
    maps: AtomicU64,
    unmaps: AtomicU64,
}

// Part of the layout.
const _: () = assert!(size_of::<Page>() == 16 << 10 && size_of::<Row>() == 128 && size_of::<Head>() == 128);

impl Page {
    /// One that belongs to no process.
    pub(super) const fn new() -> Self {
        // SAFETY: atomics, for which zeros are a value.
        unsafe { std::mem::zeroed() }
    }

    /// Makes it the page of a process; complete when this returns.
    pub(super) fn begin(&self, process: u32) {
        let before = self.head.process.load(Ordering::Relaxed);
        if before != 0 && before != process {
            // A forked child's copy of what its parent counted.
            self.clear();
        }
        self.head.version.store(VERSION, Ordering::Relaxed);
        self.head.process.store(process, Ordering::Relaxed);
        self.head.magic.store(MAGIC, Ordering::Release);
    }

    fn clear(&self) {
        self.rows.iter().for_each(Row::free);
        let Head { pin_slots, pin_bytes, devices, lookups, maps, unmaps, without_row, .. } = &self.head;
        for number in [pin_slots, pin_bytes, devices, lookups, maps, unmaps, without_row] {
            number.store(0, Ordering::Relaxed);
        }
        self.head.guard.store(0, Ordering::Relaxed);
    }

    /// Takes a free row for a context.
    pub(super) fn take(&self, kind: u32) -> Option<&Row> {
        self.rows.iter().find(|row| {
            let free = row.kind.compare_exchange(FREE, kind, Ordering::Acquire, Ordering::Relaxed);
            free.is_ok()
        })
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }
}

impl Row {
    /// Tells what a context has. By one thread at a time: whoever has the context locked.
    #[inline]
    pub(super) fn write(&self, totals: &Totals) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // The odd number is seen by whoever sees any of the numbers below.
        fence(Ordering::Release);
        self.ioases.store(totals.ioases, Ordering::Relaxed);
        self.areas.store(totals.areas, Ordering::Relaxed);
        self.bytes.store(totals.bytes, Ordering::Relaxed);
        self.table_frames.store(totals.table_frames, Ordering::Relaxed);
        self.maps.store(totals.maps, Ordering::Relaxed);
        self.unmaps.store(totals.unmaps, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// What was told last, all of one moment; `None`: it is being written.
    pub(super) fn read(&self) -> Option<Totals> {
        let before = self.sequence.load(Ordering::Acquire);
        let totals = self.numbers();
        fence(Ordering::Acquire);
        (before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before).then_some(totals)
    }

    /// The numbers, each whole, whatever moments they are of.
    pub(super) fn numbers(&self) -> Totals {
        Totals {
            ioases: self.ioases.load(Ordering::Relaxed),
            areas: self.areas.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            table_frames: self.table_frames.load(Ordering::Relaxed),
            maps: self.maps.load(Ordering::Relaxed),
            unmaps: self.unmaps.load(Ordering::Relaxed),
        }
    }

    /// Its context's kind; `None`: it has none.
    pub(super) fn kind(&self) -> Option<u32> {
        Some(self.kind.load(Ordering::Acquire)).filter(|kind| *kind != FREE)
    }

    /// The number that changes with each writing.
    pub(super) fn sequence(&self) -> u32 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Gives it back, empty.
    pub(super) fn free(&self) {
        self.write(&Totals::NONE);
        self.kind.store(FREE, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_and_given_back() {
        let page = Page::new();
        for _ in 0..ROWS {
            assert!(page.take(1).is_some());
        }
        assert!(page.take(1).is_none());
        page.rows[5].free();
        assert_eq!(page.take(2).and_then(Row::kind), Some(2));
    }

    /// What is read is what was written in one go, whoever reads when.
    #[test]
    fn a_row_is_of_one_moment() {
        const READS: u64 = 10_000;
        let page = Page::new();
        let row = page.take(1).unwrap();
        let (reads, mut last) = (AtomicU64::new(0), 0);
        let written = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut n = 0;
                while reads.load(Ordering::Relaxed) < READS {
                    n += 1;
                    row.write(&Totals { ioases: n, areas: n, bytes: n, table_frames: n, maps: n, unmaps: n });
                }
                n
            });
            while reads.load(Ordering::Relaxed) < READS {
                let Some(found) = row.read() else { continue };
                reads.fetch_add(1, Ordering::Relaxed);
                let Totals { ioases, areas, bytes, table_frames, maps, unmaps } = found;
                assert!(
                    [areas, bytes, table_frames, maps, unmaps].iter().all(|it| *it == ioases),
                    "{found:?}"
                );
                assert!(ioases >= last, "{ioases} after {last}");
                last = ioases;
            }
            writer.join().unwrap()
        });
        assert_eq!(row.read().map(|found| found.maps), Some(written));
    }
}
