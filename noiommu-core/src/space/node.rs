//! One node of the tree: up to `N` entries in order of address, leaves and inner nodes alike.
//!
//! The last IOVAs lie packed in a column of their own, so that a search reads few cache lines: where an address belongs
//! is how many entries end before it.

use core::mem;

/// What a node holds per entry, besides the last IOVA.
pub(super) trait Entry: Copy {
    /// The lowest IOVA in it.
    fn first(&self) -> u64;

    /// Bytes of the largest hole inside it: between two areas of it.
    fn hole(&self) -> u64;
}

/// An area, in a leaf.
#[derive(Clone, Copy)]
pub(super) struct Held<T> {
    pub(super) first: u64,
    pub(super) value: T,
}

impl<T: Copy> Entry for Held<T> {
    fn first(&self) -> u64 {
        self.first
    }

    fn hole(&self) -> u64 {
        0
    }
}

/// A child, in an inner node: the number of the child's node and what [`Node::extent`] says of it.
#[derive(Clone, Copy)]
pub(super) struct Branch {
    pub(super) first: u64,
    pub(super) hole: u64,
    pub(super) child: u32,
}

impl Entry for Branch {
    fn first(&self) -> u64 {
        self.first
    }

    fn hole(&self) -> u64 {
        self.hole
    }
}

/// What an inner node keeps of a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// The lowest IOVA of its first area.
    pub(super) first: u64,
    /// The highest IOVA of its last area.
    pub(super) last: u64,
    /// Bytes of the largest hole between two of its areas, 0 when all touch.
    pub(super) hole: u64,
}

impl Extent {
    /// The entry for the child with this extent.
    pub(super) const fn branch(self, child: u32) -> Branch {
        Branch { first: self.first, hole: self.hole, child }
    }
}

/// Ends the column of last IOVAs from `len` on: no address lies behind it, so a search need not know `len`, and
/// takes a fixed number of steps.
const UNUSED: u64 = u64::MAX;

/// The entries `0..len` ascend and do not overlap. Behind them `lasts` holds [`UNUSED`] and `entries` leftovers.
#[derive(Clone, Copy)]
pub(super) struct Node<E, const N: usize> {
    len: usize,
    lasts: [u64; N],
    entries: [E; N],
}

impl<E: Entry, const N: usize> Node<E, N> {
    /// The number of entries up to which a node is small: merged with a neighbour where that leaves as many free.
    ///
    /// Looking at a neighbour costs cache misses, so larger nodes do not; and what stays free keeps an insertion and a
    /// removal in turn from splitting and merging in turn.
    pub(super) const SMALL: usize = N >> 2;

    /// The most entries of a merged node.
    pub(super) const MERGED: usize = N.wrapping_sub(Self::SMALL);

    /// A node with one entry.
    pub(super) fn new(last: u64, entry: E) -> Self {
        const { assert!(N >= 4, "a node cut in two, or nearly empty, needs a few entries") };
        let mut node = Self { len: 0, lasts: [UNUSED; N], entries: [entry; N] };
        node.open(0, last, entry);
        node
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_full(&self) -> bool {
        self.len >= N
    }

    /// The entries from `at` on, with their last IOVAs.
    pub(super) fn from(&self, at: usize) -> impl Iterator<Item = (u64, E)> + '_ {
        let lasts = self.lasts.get(at..self.len).unwrap_or(&[]);
        let entries = self.entries.get(at..).unwrap_or(&[]);
        lasts.iter().copied().zip(entries.iter().copied())
    }

    pub(super) fn get(&self, at: usize) -> Option<(u64, E)> {
        if at < self.len { Some((*self.lasts.get(at)?, *self.entries.get(at)?)) } else { None }
    }

    /// Overwrites the entry at `at` in place.
    pub(super) fn set(&mut self, at: usize, last: u64, entry: E) {
        if let (Some(l), Some(e)) = (self.lasts.get_mut(at), self.entries.get_mut(at)) {
            *l = last;
            *e = entry;
        }
    }

    /// The place of the first entry that ends at or after `iova`; [`Node::len`] when all end before.
    pub(super) fn seek(&self, iova: u64) -> usize {
        self.lasts.partition_point(|&last| last < iova)
    }

    /// The first IOVA of the first entry and the last one of the last; `None` for an empty node.
    pub(super) fn ends(&self) -> Option<(u64, u64)> {
        let (_, first) = self.get(0)?;
        let (last, _) = self.get(self.len.checked_sub(1)?)?;
        Some((first.first(), last))
    }

    /// The extent of all entries together; `None` for an empty node.
    pub(super) fn extent(&self) -> Option<Extent> {
        let mut entries = self.from(0);
        let (last, entry) = entries.next()?;
        let mut extent = Extent { first: entry.first(), last, hole: entry.hole() };
        for (last, entry) in entries {
            let between = hole_between(extent.last, entry.first());
            extent.hole = extent.hole.max(between).max(entry.hole());
            extent.last = last;
        }
        Some(extent)
    }

    /// Bytes between the entry before `at` and the one at `at`; `None` where one of them is not in this node.
    pub(super) fn hole_before(&self, at: usize) -> Option<u64> {
        let (last, _) = self.get(at.checked_sub(1)?)?;
        let (_, entry) = self.get(at)?;
        Some(hole_between(last, entry.first()))
    }

    /// Puts an entry at `at`. A full node is cut in two, and the upper part, which the caller has to link in, answered.
    /// In a node cut at its end (`append`, for the last node of a level) the lower part stays full, so that areas made
    /// in ascending order fill their nodes.
    pub(super) fn insert(&mut self, at: usize, last: u64, entry: E, append: bool) -> Option<Self> {
        if !self.is_full() {
            self.open(at, last, entry);
            return None;
        }
        if append && at == N {
            return Some(Self::new(last, entry));
        }
        let half = N >> 1;
        let mut upper = Self { len: 0, lasts: [UNUSED; N], entries: [entry; N] };
        upper.append(self.from(half));
        self.lasts.iter_mut().skip(half).for_each(|last| *last = UNUSED);
        self.len = half;
        match at.checked_sub(half) {
            Some(at) if at > 0 => upper.open(at, last, entry),
            _ => self.open(at, last, entry),
        }
        Some(upper)
    }

    /// Puts an entry at `at` of a node that is not full.
    fn open(&mut self, at: usize, last: u64, entry: E) {
        if let (Some(lasts), Some(entries)) =
            (self.lasts.get_mut(at..=self.len), self.entries.get_mut(at..=self.len))
        {
            shift_up(lasts, last);
            shift_up(entries, entry);
            self.len = self.len.wrapping_add(1);
        }
    }

    /// Takes the entry at `at` out.
    pub(super) fn remove(&mut self, at: usize) -> Option<(u64, E)> {
        let removed = self.get(at)?;
        shift_down(self.lasts.get_mut(at..self.len)?, UNUSED);
        shift_down(self.entries.get_mut(at..self.len)?, removed.1);
        self.len = self.len.wrapping_sub(1);
        Some(removed)
    }

    /// Adds entries that lie above all that are here, as far as they fit.
    pub(super) fn append(&mut self, more: impl Iterator<Item = (u64, E)>) {
        let lasts = self.lasts.iter_mut().skip(self.len);
        let entries = self.entries.iter_mut().skip(self.len);
        let mut len = self.len;
        for ((l, e), (last, entry)) in lasts.zip(entries).zip(more) {
            *l = last;
            *e = entry;
            len = len.wrapping_add(1);
        }
        self.len = len;
    }

    /// Whether all behind the entries is [`UNUSED`].
    #[cfg(test)]
    pub(super) fn ends_clean(&self) -> bool {
        self.lasts[self.len..].iter().all(|&last| last == UNUSED)
    }
}

/// Bytes between the end of an entry and the beginning of the next one. Wraps never: entries ascend without overlap.
const fn hole_between(last: u64, first: u64) -> u64 {
    first.wrapping_sub(last).wrapping_sub(1)
}

/// Puts `value` first and moves all others one up; the last falls out.
fn shift_up<V>(column: &mut [V], value: V) {
    let mut carried = value;
    for slot in column {
        carried = mem::replace(slot, carried);
    }
}

/// Puts `value` last and moves all others one down; the first falls out.
fn shift_down<V>(column: &mut [V], value: V) {
    let mut carried = value;
    for slot in column.iter_mut().rev() {
        carried = mem::replace(slot, carried);
    }
}
