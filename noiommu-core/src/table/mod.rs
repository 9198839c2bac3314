//! The software AMDv1 page table of an IOAS: one writer, lock-free readers.
//!
//! # How readers stay right without a lock
//! * Frames are type-stable ([`TableMemory`]), so following a stale link is never out of bounds: whatever a frame is
//!   used for, its slots hold entries of this format.
//! * Every entry is stored with release and loaded with acquire order: who sees a link sees the table behind it.
//! * The *epoch* counts removals. The writer raises it when a removal has unlinked its last frame, before any of these
//!   can be used anew. A reader loads it before and after; equal values mean that nothing it saw had been recycled
//!   under it, and that no area was replaced by another between two of its steps. A raised epoch makes it begin again:
//!   readers never wait for a writer that sleeps, and write nothing.
//! * Mapping raises nothing: new leaves only add. A run that meets a map or an unmap of its own area under way may be
//!   shorter than the area allows; what it tells is true all the same.
//!
//! The last leaf of an area carries [`format::AREA_END`], so that area borders count without a look at the areas.

pub mod format;
mod index;
mod memory;
mod segments;
mod writer;

use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::{Iova, IovaRange, PhysAddr};
use format::{Access, Entry, Leaf};
pub use memory::{Frame, Slot, TableMemory};
pub use segments::Segments;
pub use writer::TableWriter;

/// A page table from IOVA to physical address, as its readers see it.
///
/// Changed by the one [`TableWriter`] it can have.
#[derive(Debug)]
pub struct Table<M> {
    memory: M,
    /// 0 while nothing is mapped, else an entry pointing to the top table, one level above it.
    root: AtomicU64,
    epoch: AtomicU64,
    claimed: AtomicBool,
}

/// What one lookup finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The physical address of the IOVA asked for.
    pub address: PhysAddr,
    /// Bytes from there on that are contiguous in physical memory, at least 1.
    pub length: u64,
    /// What the device may do with them.
    pub access: Access,
}

/// A piece of an IOVA range that is contiguous in physical memory and lies in one area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where it begins in the IOVA space.
    pub iova: Iova,
    /// Where it begins in physical memory.
    pub address: PhysAddr,
    /// Bytes, at least 1.
    pub length: u64,
}

/// A table that a walk has reached, kept to step to a neighbouring leaf without beginning at the top.
struct Cursor<'a> {
    slots: &'a [Slot; format::SLOTS],
    level: u32,
}

/// Slots that are compared at a time.
const STRIDE: usize = 2 * HALF;
const HALF: usize = 4;

impl Cursor<'_> {
    /// Bytes behind the leaf that ends at `last` that the slots behind it continue, in this table and with leaves of the same
    /// kind: those entries differ by nothing but the address, which a subtraction shows. Up to about `limit`, and never the last
    /// leaf of an area, which has a bit of its own: 0 is always a right answer, that leaves the work to the walk.
    ///
    /// Decoding each leaf costs as much as a lookup in a table of two levels; this is a quarter of one.
    fn adjacent(&self, last: u64, limit: u64) -> u64 {
        let shift = format::slot_shift(self.level) & 63;
        let size = 1u64 << shift;
        let slot = format::slot_of(last, self.level);
        let Some((first, rest)) = self.slots.get(slot..).and_then(<[_]>::split_first) else { return 0 };
        let mut entry = first.load(Ordering::Acquire);
        if !format::fills_one_slot(entry) {
            return 0;
        }
        let wanted = usize::try_from(limit >> shift).unwrap_or(usize::MAX);
        let rest = rest.get(..wanted).unwrap_or(rest);
        let mut count = 0usize;
        for stride in rest.as_chunks::<STRIDE>().0 {
            // Two halves, so that a sum need not wait for seven others.
            let (low, high) = stride.split_at(HALF);
            let (mut first, mut second) = (entry, entry.wrapping_add(size.wrapping_mul(HALF as u64)));
            let mut differ = 0;
            for (low, high) in low.iter().zip(high) {
                first = first.wrapping_add(size);
                second = second.wrapping_add(size);
                differ |= (low.load(Ordering::Acquire) ^ first) | (high.load(Ordering::Acquire) ^ second);
            }
            if differ != 0 {
                break;
            }
            entry = second;
            count = count.wrapping_add(STRIDE);
        }
        // Those of the stride that is not whole, or goes on elsewhere.
        for slot in rest.get(count..).unwrap_or_default() {
            entry = entry.wrapping_add(size);
            if slot.load(Ordering::Acquire) != entry {
                break;
            }
            count = count.wrapping_add(1);
        }
        (count as u64) << shift
    }
}

impl<M: TableMemory> Table<M> {
    /// An empty table whose frames will come from `memory`.
    #[must_use]
    pub fn new(memory: M) -> Self {
        Self { memory, root: AtomicU64::new(0), epoch: AtomicU64::new(0), claimed: AtomicBool::new(false) }
    }

    /// The arena that holds the frames.
    #[must_use]
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The physical address of `iova`; `None` when nothing is mapped there.
    ///
    /// One load of the [index](TableMemory::words) where a leaf of 2 MiB or more is mapped, two that do not wait for each other below
    /// that, a walk where the index says nothing. No lock, no store.
    #[must_use]
    #[inline]
    pub fn address(&self, iova: Iova) -> Option<PhysAddr> {
        self.indexed_address(iova).or_else(|| self.lookup(iova).map(|found| found.address))
    }

    /// The same by the index alone: `None` also where it does not reach, or does not say.
    #[must_use]
    #[inline]
    pub fn indexed_address(&self, iova: Iova) -> Option<PhysAddr> {
        index::address(&self.memory, iova.0).map(PhysAddr)
    }

    /// The physical address of `iova` and the bytes up to the end of its leaf; `None` when nothing is mapped there.
    ///
    /// One walk, no lock, no store.
    #[must_use]
    #[inline]
    pub fn lookup(&self, iova: Iova) -> Option<Translation> {
        self.consistent(|| {
            let (leaf, _) = self.walk(iova.0)?;
            Some(translate(leaf, iova.0))
        })
    }

    /// The physical address of `iova` and the contiguous bytes from there on, over as many leaves of its area as are
    /// adjacent in physical memory, at most `limit`. `None` when nothing is mapped there or `limit` is 0.
    ///
    /// One step per leaf, no lock, no store.
    #[must_use]
    pub fn run(&self, iova: Iova, limit: u64) -> Option<Translation> {
        self.consistent(|| self.run_once(iova.0, limit))
    }

    /// The contiguous pieces of `range`, in order. Each is true at the moment it is produced; a hole ends the list with
    /// ENOENT.
    #[must_use]
    pub fn segments(&self, range: IovaRange) -> Segments<'_, M> {
        Segments::new(self, range)
    }

    /// The level (from 0) and the entry that a walk to `iova` ends at, for dumps and comparisons; `None` when nothing is
    /// mapped. See [`format::hardware_bits`].
    #[must_use]
    pub fn entry(&self, iova: Iova) -> Option<(u32, u64)> {
        self.consistent(|| {
            let (_, cursor) = self.walk(iova.0)?;
            let slot = cursor.slots.get(format::slot_of(iova.0, cursor.level))?;
            Some((cursor.level, slot.load(Ordering::Acquire)))
        })
    }

    /// The level of the top table, counted from 0; `None` while nothing is mapped.
    #[must_use]
    pub fn top_level(&self) -> Option<u32> {
        let root = self.root.load(Ordering::Acquire);
        unpack_root(root).map(|(_, level)| level)
    }

    /// Runs `read` until no removal has happened meanwhile.
    #[inline]
    fn consistent<R>(&self, read: impl Fn() -> R) -> R {
        let mut before = self.epoch.load(Ordering::Acquire);
        loop {
            let result = read();
            // The entry loads in `read` have acquire order: having seen a store made after the epoch was raised, this
            // load sees the raised epoch.
            let after = self.epoch.load(Ordering::Acquire);
            if before == after {
                return result;
            }
            before = after;
        }
    }

    fn run_once(&self, iova: u64, limit: u64) -> Option<Translation> {
        let (mut leaf, mut cursor) = self.walk(iova)?;
        let mut run = translate(leaf, iova);
        // Physical addresses have 52 bits, so adjacent leaves of a run add up to 2^52 bytes at the most: no overflow.
        while run.length < limit && !leaf.area_end {
            let more = cursor
                .adjacent(iova.wrapping_add(run.length).wrapping_sub(1), limit.wrapping_sub(run.length));
            run.length = run.length.wrapping_add(more);
            let Some(next) = iova.checked_add(run.length).filter(|_| run.length < limit) else { break };
            // The leaf before ends where `next` begins; in another table unless the index has not wrapped to 0.
            let step = if format::slot_of(next, cursor.level) != 0 {
                self.descend(next, cursor)
            } else {
                self.walk(next)
            };
            let Some((following, at)) = step else { break };
            if following.base != run.address.0.wrapping_add(run.length) {
                break;
            }
            run.length = run.length.wrapping_add(1u64 << (following.size & 63));
            (leaf, cursor) = (following, at);
        }
        run.length = run.length.min(limit);
        (run.length > 0).then_some(run)
    }

    /// The entries of a frame: of a table at its place in the index, or of one of the others.
    #[inline]
    fn frame(&self, number: u64) -> Option<&[Slot; format::SLOTS]> {
        match index::place_of(number) {
            Some(place) => index::table(&self.memory, place),
            None => self.memory.frame(number).map(|frame| &frame.slots),
        }
    }

    #[inline]
    fn walk(&self, iova: u64) -> Option<(Leaf, Cursor<'_>)> {
        let (frame, level) = unpack_root(self.root.load(Ordering::Acquire))?;
        if !format::reaches(level, iova) {
            return None;
        }
        self.descend(iova, Cursor { slots: self.frame(frame)?, level })
    }

    #[inline]
    fn descend<'a>(&'a self, iova: u64, mut at: Cursor<'a>) -> Option<(Leaf, Cursor<'a>)> {
        loop {
            let slot = at.slots.get(format::slot_of(iova, at.level))?;
            match format::decode(slot.load(Ordering::Acquire), at.level) {
                Entry::Empty => return None,
                Entry::Leaf(leaf) => return Some((leaf, at)),
                // In a recycled frame the levels need not fit together: the count down still ends.
                Entry::Table { frame } => {
                    at = Cursor { level: at.level.checked_sub(1)?, slots: self.frame(frame)? }
                }
            }
        }
    }
}

#[inline]
fn translate(leaf: Leaf, iova: u64) -> Translation {
    let mask = leaf.offset_mask();
    Translation {
        address: PhysAddr(leaf.base | iova & mask),
        length: mask.wrapping_sub(iova & mask).wrapping_add(1),
        access: leaf.access,
    }
}

/// The root word is an entry one level above the top table (the "paging mode" of the specification's device table).
fn pack_root(frame: u64, level: u32) -> u64 {
    format::table_entry(level.wrapping_add(1), frame)
}

#[inline]
fn unpack_root(root: u64) -> Option<(u64, u32)> {
    match format::decode(root, 0) {
        Entry::Table { frame } => Some((frame, format::table_level(root).checked_sub(1)?)),
        _ => None,
    }
}
