//! What the tests of the engine share.
#![allow(dead_code)]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use noiommu_core::platform::{Caller, PhysRun, Pins, Platform};
use noiommu_core::table::format::Access;
use noiommu_core::table::{Frame, Slot, Table, TableMemory};
use noiommu_core::{Errno, PhysAddr};

/// Places of the index. Miri takes long for each slot of the tables there.
const PLACES: usize = if cfg!(miri) { 1 } else { 64 };

/// Frames on the heap, in chunks that double, so that none ever moves.
#[derive(Debug)]
pub(crate) struct HeapFrames {
    chunks: [OnceLock<Box<[Frame]>>; 24],
    /// Frames that may still be handed out; counts down, then `grow` fails.
    budget: Option<AtomicU64>,
    /// The index, mostly of the first [`PLACES`] of 2 MiB: tests go beyond.
    words: Box<[Slot]>,
    entries: Box<[Slot]>,
}

impl Default for HeapFrames {
    fn default() -> Self {
        Self::reaching(PLACES)
    }
}

impl HeapFrames {
    /// An arena whose index has so many places.
    pub(crate) fn reaching(places: usize) -> Self {
        let words = (0..places).map(|_| Slot::new()).collect();
        let entries = (0..places * 512).map(|_| Slot::new()).collect();
        Self { chunks: Default::default(), budget: None, words, entries }
    }

    /// An arena that grows by one frame at a time.
    pub(crate) fn one_by_one() -> Self {
        Self { budget: Some(AtomicU64::new(u64::MAX)), ..Self::default() }
    }

    /// An arena that runs out after `frames`, and has no index.
    pub(crate) fn limited(frames: u64) -> Self {
        let budget = Some(AtomicU64::new(frames));
        Self { budget, words: Box::default(), entries: Box::default(), ..Self::default() }
    }
}

impl TableMemory for HeapFrames {
    fn frame(&self, number: u64) -> Option<&Frame> {
        // Chunk k holds frames 2^k - 1 .. 2^(k+1) - 1.
        let chunk = (number + 1).ilog2();
        self.chunks.get(chunk as usize)?.get()?.get((number + 1 - (1 << chunk)) as usize)
    }

    fn grow(&self, frames: u64) -> Result<u64, Errno> {
        if self.budget.as_ref().is_some_and(|budget| frames > budget.load(Ordering::Relaxed)) {
            return Err(Errno::ENOMEM);
        }
        let chunk = frames.ilog2();
        let Some(slot) = self.chunks.get(chunk as usize) else { return Err(Errno::ENOMEM) };
        slot.get_or_init(|| (0..1u64 << chunk).map(|_| Frame::new()).collect());
        // One at a time where a budget counts, else the chunk whole.
        Ok(if self.budget.is_some() { frames } else { (1 << (chunk + 1)) - 1 })
    }

    fn words(&self) -> &[Slot] {
        &self.words
    }

    fn entries(&self) -> &[Slot] {
        &self.entries
    }
}

/// Runs what it is given, which allocates and cannot fail, or answers false instead.
pub(crate) type Allocate = fn(&mut dyn FnMut()) -> bool;

/// The result of `make`, unless `allocate` refuses.
fn allocated<R>(allocate: Option<Allocate>, make: impl Fn() -> R) -> Result<R, Errno> {
    let mut made = None;
    let mut run = || made = Some(make());
    match allocate {
        Some(allocate) => allocate(&mut run).then_some(()).ok_or(Errno::ENOMEM)?,
        None => run(),
    }
    made.ok_or(Errno::ENOMEM)
}

/// A platform whose physical memory is made up: page `n` of a backing lies at a scattered, computable place.
#[derive(Default)]
pub(crate) struct Fake {
    /// Bytes pinned at present.
    pub(crate) pinned: Rc<Cell<u64>>,
    /// Pins that may still be made; then pinning fails with EFAULT.
    pub(crate) pins_left: Cell<Option<u32>>,
    /// Whether learning the addresses fails with EIO in the middle.
    pub(crate) addresses_fail: Cell<bool>,
    /// Whether pins name a page less than they hold.
    pub(crate) short: Cell<bool>,
    /// Runs the platform's own allocations, or refuses: an ENOMEM on purpose.
    pub(crate) allocate: Option<Allocate>,
}

/// Frames with a say in whether they grow.
#[derive(Default)]
pub(crate) struct AskingFrames(HeapFrames, Option<Allocate>);

impl TableMemory for AskingFrames {
    fn frame(&self, number: u64) -> Option<&Frame> {
        self.0.frame(number)
    }

    fn grow(&self, frames: u64) -> Result<u64, Errno> {
        allocated(self.1, || self.0.grow(frames))?
    }

    fn words(&self) -> &[Slot] {
        self.0.words()
    }

    fn entries(&self) -> &[Slot] {
        self.0.entries()
    }

    fn prepare_words(&self, _: usize, _: usize) -> Result<(), Errno> {
        allocated(self.1, || ())
    }

    fn prepare_table(&self, _: usize) -> Result<(), Errno> {
        allocated(self.1, || ())
    }
}

/// The physical place of a page: 4 pages in a row, then elsewhere.
pub(crate) fn place(va: u64) -> u64 {
    let page = va >> 12;
    ((page >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 28 << 14) | (page & 3) << 12 | va & 0xfff
}

pub(crate) struct FakePins {
    va: u64,
    length: u64,
    pinned: Rc<Cell<u64>>,
    fail: bool,
    short: bool,
}

impl Drop for FakePins {
    fn drop(&mut self) {
        self.pinned.set(self.pinned.get() - self.length);
    }
}

impl Pins for FakePins {
    type Error = Errno;

    fn runs(&self, sink: &mut dyn FnMut(&[PhysRun]) -> Result<(), Errno>) -> Result<(), Errno> {
        let pages = self.length >> 12;
        // One, two, three at a time.
        let (mut page, mut batch) = (0, 1);
        let end = if self.fail { pages / 2 } else { pages - u64::from(self.short) };
        while page < end {
            let next = (page + batch).min(end);
            let run = |page| PhysRun { address: PhysAddr(place(self.va + (page << 12))), length: 4096 };
            // No allocation: the tests refuse those of the engine.
            let runs = [run(page), run(page + 1), run(page + 2)];
            sink(&runs[..(next - page) as usize])?;
            (page, batch) = (next, batch % 3 + 1);
        }
        if self.fail { Err(Errno::EIO) } else { Ok(()) }
    }
}

impl Platform for Fake {
    type Error = Errno;
    type Backing = u64;
    type Pins = FakePins;
    type Memory = AskingFrames;
    type Table = Arc<Table<AskingFrames>>;

    fn new_table(&self) -> Result<Self::Table, Errno> {
        // One frame at a time, so that each is an allocation of its own.
        let frames = || AskingFrames(HeapFrames::one_by_one(), self.allocate);
        allocated(self.allocate, || Arc::new(Table::new(frames())))
    }

    fn is_file(&self, va: &u64) -> bool {
        *va & 1 != 0
    }

    fn pin(&self, va: &u64, offset: u64, length: u64, _: Access, _: Caller) -> Result<FakePins, Errno> {
        if let Some(left) = self.pins_left.get() {
            self.pins_left.set(Some(left.checked_sub(1).ok_or(Errno::EFAULT)?));
        }
        self.pinned.set(self.pinned.get() + length);
        Ok(FakePins {
            va: (*va & !0xfff) + offset,
            length,
            pinned: self.pinned.clone(),
            fail: self.addresses_fail.get(),
            short: self.short.get(),
        })
    }
}
