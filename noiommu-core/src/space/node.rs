//! One node of the tree: up to `N` entries in order of address, leaves and inner nodes alike.
//!
//! The first IOVAs lie packed in a column of their own, so that a search reads few cache lines.

use core::mem;

/// What a node holds per entry, besides the first IOVA.
pub(super) trait Entry: Copy {
    /// The highest IOVA in it.
    fn last(&self) -> u64;

    /// Bytes of the largest hole inside it: between two areas of it.
    fn hole(&self) -> u64;
}

/// An area, in a leaf.
#[derive(Clone, Copy)]
pub(super) struct Held<T> {
    pub(super) last: u64,
    pub(super) value: T,
}

impl<T: Copy> Entry for Held<T> {
    fn last(&self) -> u64 {
        self.last
    }

    fn hole(&self) -> u64 {
        0
    }
}

/// A child, in an inner node: the number of the child's node and what [`Node::extent`] says of it.
#[derive(Clone, Copy)]
pub(super) struct Branch {
    pub(super) last: u64,
    pub(super) hole: u64,
    pub(super) child: u32,
}

impl Entry for Branch {
    fn last(&self) -> u64 {
        self.last
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
        Branch { last: self.last, hole: self.hole, child }
    }
}

/// The entries `0..len` are in use, ascend and do not overlap; the rest holds leftovers.
#[derive(Clone, Copy)]
pub(super) struct Node<E, const N: usize> {
    len: usize,
    firsts: [u64; N],
    entries: [E; N],
}

impl<E: Entry, const N: usize> Node<E, N> {
    /// A node with one entry.
    pub(super) const fn new(first: u64, entry: E) -> Self {
        // Splitting and merging leave no node empty and none too full from four entries on.
        const { assert!(N >= 4) };
        Self { len: 1, firsts: [first; N], entries: [entry; N] }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_full(&self) -> bool {
        self.len >= N
    }

    fn firsts(&self) -> &[u64] {
        self.firsts.get(..self.len).unwrap_or(&[])
    }

    /// The entries from `at` on, with their first IOVAs.
    pub(super) fn from(&self, at: usize) -> impl Iterator<Item = (u64, E)> + '_ {
        let firsts = self.firsts().get(at..).unwrap_or(&[]);
        let entries = self.entries.get(at..).unwrap_or(&[]);
        firsts.iter().copied().zip(entries.iter().copied())
    }

    pub(super) fn get(&self, at: usize) -> Option<(u64, E)> {
        Some((*self.firsts().get(at)?, *self.entries.get(at)?))
    }

    /// Overwrites the entry at `at` in place.
    pub(super) fn set(&mut self, at: usize, first: u64, entry: E) {
        if let (Some(f), Some(e)) = (self.firsts.get_mut(at), self.entries.get_mut(at)) {
            *f = first;
            *e = entry;
        }
    }

    /// The place of the first entry that ends at or after `iova`; [`Node::len`] when all end before.
    pub(super) fn seek(&self, iova: u64) -> usize {
        let after = self.firsts().partition_point(|&first| first <= iova);
        // Of the entries that begin at or before `iova`, only the last can reach it.
        let Some(before) = after.checked_sub(1) else { return 0 };
        match self.entries.get(before) {
            Some(entry) if entry.last() >= iova => before,
            _ => after,
        }
    }

    /// The extent of all entries together; `None` for an empty node.
    pub(super) fn extent(&self) -> Option<Extent> {
        let mut entries = self.from(0);
        let (first, entry) = entries.next()?;
        let mut extent = Extent { first, last: entry.last(), hole: entry.hole() };
        for (first, entry) in entries {
            // Wraps never: entries ascend without overlap.
            let between = first.wrapping_sub(extent.last).wrapping_sub(1);
            extent.hole = extent.hole.max(between).max(entry.hole());
            extent.last = entry.last();
        }
        Some(extent)
    }

    /// Puts an entry at `at`. A full node is cut in two, and the upper part, which the caller has to link in, answered.
    /// In a node cut at its end (`append`, for the last node of a level) the lower part stays full, so that areas made
    /// in ascending order fill their nodes.
    pub(super) fn insert(&mut self, at: usize, first: u64, entry: E, append: bool) -> Option<Self> {
        if !self.is_full() {
            self.open(at, first, entry);
            return None;
        }
        if append && at == N {
            return Some(Self::new(first, entry));
        }
        let half = N >> 1;
        let mut upper = Self::new(first, entry);
        upper.len = 0;
        upper.append(self.from(half));
        self.len = half;
        match at.checked_sub(half) {
            Some(at) if at > 0 => upper.open(at, first, entry),
            _ => self.open(at, first, entry),
        }
        Some(upper)
    }

    /// Puts an entry at `at` of a node that is not full.
    fn open(&mut self, at: usize, first: u64, entry: E) {
        if let (Some(firsts), Some(entries)) =
            (self.firsts.get_mut(at..=self.len), self.entries.get_mut(at..=self.len))
        {
            shift_up(firsts, first);
            shift_up(entries, entry);
            self.len = self.len.wrapping_add(1);
        }
    }

    /// Takes the entry at `at` out.
    pub(super) fn remove(&mut self, at: usize) -> Option<(u64, E)> {
        let removed = self.get(at)?;
        shift_down(self.firsts.get_mut(at..self.len)?);
        shift_down(self.entries.get_mut(at..self.len)?);
        self.len = self.len.wrapping_sub(1);
        Some(removed)
    }

    /// Adds entries that lie above all that are here, as far as they fit.
    pub(super) fn append(&mut self, more: impl Iterator<Item = (u64, E)>) {
        let firsts = self.firsts.iter_mut().skip(self.len);
        let entries = self.entries.iter_mut().skip(self.len);
        let mut len = self.len;
        for ((f, e), (first, entry)) in firsts.zip(entries).zip(more) {
            *f = first;
            *e = entry;
            len = len.wrapping_add(1);
        }
        self.len = len;
    }
}

/// Puts `value` first and moves all others one up; the last falls out.
fn shift_up<V>(column: &mut [V], value: V) {
    let mut carried = value;
    for slot in column {
        carried = mem::replace(slot, carried);
    }
}

/// Moves all but the first one down; the last stays in its place too.
fn shift_down<V: Copy>(column: &mut [V]) {
    let Some(&last) = column.last() else { return };
    let mut carried = last;
    for slot in column.iter_mut().rev() {
        carried = mem::replace(slot, carried);
    }
}
