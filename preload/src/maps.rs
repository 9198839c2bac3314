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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::Overlay;
    use crate::table::{self, Open};
    use noiommu::serve::{Node, NodeKind};

    /// A file to be mapped, told from others by its access mode.
    fn kept(name: i32) -> Kept {
        let kind = NodeKind::Iommufd;
        let node = Node { path: "/dev/iommu".into(), kind, mode: 0o600, major: 1, minor: 2 };
        let overlay: &'static Overlay = Box::leak(Box::new(Overlay::new(vec![node], 0)));
        table::describe(Open::Path(overlay.get(b"/dev/iommu").unwrap()), name).unwrap()
    }

    fn all(map: &BTreeMap<u64, (u64, Kept)>) -> Vec<(u64, u64, i32)> {
        map.iter().map(|(&begin, (end, kept))| (begin, *end, kept.access)).collect()
    }

    #[test]
    fn ranges() {
        assert_eq!(Range::pages(0x1000, 1), Some(Range { begin: 0x1000, end: 0x2000 }));
        assert_eq!(Range::pages(0x1000, 0x1001), Some(Range { begin: 0x1000, end: 0x3000 }));
        assert_eq!(Range::pages(0x1000, 0), None);
        assert_eq!(Range::pages(0x1000, u64::MAX), None);
    }

    #[test]
    fn cut_and_replaced() {
        let range = |begin, end| Range { begin, end };
        let mut map = BTreeMap::new();
        let mut maps = Maps(&mut map);
        assert!(maps.insert(range(10, 20), kept(1)).is_empty());
        assert!(maps.insert(range(20, 30), kept(2)).is_empty());
        assert_eq!(maps.at(19).map(|kept| kept.access), Some(1));
        assert_eq!(maps.at(20).map(|kept| kept.access), Some(2));
        assert!(maps.at(9).is_none() && maps.at(30).is_none());
        assert!(maps.cut(range(0, 10)).is_empty() && maps.cut(range(30, 99)).is_empty());
        // Across both, from the middle to the middle.
        let mut out: Vec<_> =
            maps.cut(range(15, 25)).into_iter().map(|(range, kept)| (range, kept.access)).collect();
        out.sort_by_key(|(range, _)| range.begin);
        assert_eq!(out, [(range(15, 20), 1), (range(20, 25), 2)]);
        assert_eq!(all(maps.0), [(10, 15, 1), (25, 30, 2)]);
        // A hole in one.
        assert_eq!(maps.cut(range(12, 13)).len(), 1);
        assert_eq!(all(maps.0), [(10, 12, 1), (13, 15, 1), (25, 30, 2)]);
        // One over all.
        assert_eq!(maps.insert(range(11, 40), kept(3)).len(), 3);
        assert_eq!(all(maps.0), [(10, 11, 1), (11, 40, 3)]);
        assert_eq!(maps.cut(range(0, u64::MAX)).len(), 2);
        assert!(map.is_empty());
    }
}
