//! Memory of served files that the program has mapped. Each piece keeps its file open, as the kernel does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::raw::without_signals;
use crate::table::Kept;

/// A range of addresses, its end excluded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Range {
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

impl Range {
    /// The pages that `length` bytes from `begin` on touch; `None` where that is no range.
    pub(crate) fn pages(begin: u64, length: u64) -> Option<Self> {
        const PAGE: u64 = 4096;
        let end = begin.checked_add(length)?.checked_next_multiple_of(PAGE)?;
        (end > begin).then_some(Self { begin, end })
    }
}

/// The mappings by their first address: where each ends, and its file. They do not overlap.
static MAPS: Mutex<BTreeMap<u64, (u64, Kept)>> = Mutex::new(BTreeMap::new());

/// All mappings that ever were are in here, so that other memory is told from them without a lock.
static LOWEST: AtomicU64 = AtomicU64::new(u64::MAX);
static HIGHEST: AtomicU64 = AtomicU64::new(0);

/// Whether some of a range may be ours.
#[inline]
pub(crate) fn may_be_in(begin: u64, length: u64) -> bool {
    let highest = HIGHEST.load(Ordering::Relaxed);
    highest != 0 && begin < highest && begin.saturating_add(length) > LOWEST.load(Ordering::Relaxed)
}

/// The mappings, while nobody else changes them.
pub(crate) struct Maps<'a>(&'a mut BTreeMap<u64, (u64, Kept)>);

/// Runs `work`, which changes the program's address space together with these notes. What it gives back is dropped after it, so
/// files that are released are to be part of that.
pub(crate) fn change<R>(work: impl FnOnce(Maps<'_>) -> R) -> R {
    without_signals(|| work(Maps(&mut MAPS.lock().unwrap_or_else(PoisonError::into_inner))))
}

/// Forgets all of them.
pub(crate) fn forget_all() -> Vec<Kept> {
    change(|mut maps| maps.cut(Range { begin: 0, end: u64::MAX }).into_iter().map(|(_, kept)| kept).collect())
}

impl Maps<'_> {
    /// Takes a range out; gives back what was in it.
    pub(crate) fn cut(&mut self, range: Range) -> Vec<(Range, Kept)> {
        let touched: Vec<u64> = self
            .0
            .range(..range.end)
            .rev()
            .take_while(|&(_, &(end, _))| end > range.begin)
            .map(|(&begin, _)| begin)
            .collect();
        let mut out = Vec::new();
        for begin in touched {
            let Some((end, kept)) = self.0.remove(&begin) else { continue };
            if begin < range.begin {
                self.0.insert(begin, (range.begin, kept.clone()));
            }
            if end > range.end {
                self.0.insert(range.end, (end, kept.clone()));
            }
            out.push((Range { begin: begin.max(range.begin), end: end.min(range.end) }, kept));
        }
        out
    }

    /// Notes a mapping; gives back what it replaced.
    pub(crate) fn insert(&mut self, range: Range, kept: Kept) -> Vec<(Range, Kept)> {
        let replaced = self.cut(range);
        LOWEST.fetch_min(range.begin, Ordering::Relaxed);
        HIGHEST.fetch_max(range.end, Ordering::Relaxed);
        self.0.insert(range.begin, (range.end, kept));
        replaced
    }

    /// The file mapped at an address.
    pub(crate) fn at(&self, address: u64) -> Option<&Kept> {
        let (_, (end, kept)) = self.0.range(..=address).next_back()?;
        (*end > address).then_some(kept)
    }
}
