//! Looking for room: the lowest hole that takes a new area.

use crate::space::tree::{MAX_HEIGHT, Step};
use crate::{Iova, IovaRange, IovaSpace};

/// What a new area asks of a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fit {
    /// Bytes of the area. Nothing fits 0.
    pub length: u64,
    /// A power of two that the IOVA is rounded up to, before the offset comes in.
    pub alignment: u64,
    /// The offset in a page: bits set in the IOVA after rounding. 0 or a multiple of the alignment.
    pub page_offset: u64,
}

impl Fit {
    /// The IOVA that a hole gives such an area, or `None` when it does not fit. O(1).
    ///
    /// A hole whose aligned IOVA is also its last does not fit, not even one byte: so the kernel has it.
    #[must_use]
    pub fn place(self, hole: IovaRange) -> Option<Iova> {
        let below = self.alignment.wrapping_sub(1);
        let aligned = hole.first().checked_add(below)?.0 & !below;
        let iova = aligned | self.page_offset;
        let more = self.length.checked_sub(1)?;
        let behind = hole.last().0.checked_sub(iova)?;
        (behind >= more.max(1)).then_some(Iova(iova))
    }

    /// Bytes that a hole must have for [`Fit::place`] to find anything.
    fn least_hole(self) -> u64 {
        self.length.max(2)
    }
}

/// The state of a search: all below `floor` is out of the question.
struct Search {
    floor: u64,
    last: u64,
    fit: Fit,
}

/// Where a search stands at an area or a child.
enum Verdict {
    /// The hole before it takes the area, here.
    Found(Iova),
    /// It lies above the window: nothing more to see.
    Over,
    /// On with it.
    On,
}

impl Search {
    /// Looks at the hole between `floor` and a used range that begins at `first`.
    fn before(&mut self, first: u64) -> Verdict {
        if let Some(end) = first.checked_sub(1)
            && let Some(iova) = self.up_to(end)
        {
            return Verdict::Found(iova);
        }
        self.floor = self.floor.max(first);
        if first > self.last { Verdict::Over } else { Verdict::On }
    }

    /// Places the area in the hole from `floor` to `end` or to the end of the window.
    fn up_to(&self, end: u64) -> Option<Iova> {
        let hole = IovaRange::new(Iova(self.floor), Iova(end.min(self.last)))?;
        self.fit.place(hole)
    }

    /// Goes on behind `last`; `None` at the end of the address space.
    fn skip(&mut self, last: u64) -> Option<()> {
        self.floor = self.floor.max(last.checked_add(1)?);
        Some(())
    }
}

impl<T: Copy, const N: usize> IovaSpace<T, N> {
    /// The lowest IOVA within the window `within` that [`Fit::place`] finds in a hole (cut to the window), or `None`.
    ///
    /// O(1) where no hole between areas is long enough. Else O(log n), plus the holes below the answer that are long enough and do
    /// not fit for their alignment: children whose largest hole is too short are passed over unseen.
    #[must_use]
    pub fn find_gap(&self, within: IovaRange, fit: Fit) -> Option<Iova> {
        let mut search = Search { floor: within.first().0, last: within.last().0, fit };
        if self.is_empty() {
            return search.up_to(u64::MAX);
        }
        let least = fit.least_hole();
        if self.hole < least {
            // Nothing fits between areas.
            let (first, last) = self.ends()?;
            return match search.before(first) {
                Verdict::Found(iova) => Some(iova),
                Verdict::Over => None,
                Verdict::On => {
                    search.skip(last)?;
                    search.up_to(u64::MAX)
                }
            };
        }
        let mut path = [Step::NOWHERE; MAX_HEIGHT];
        let mut depth = 0;
        let mut enter = Some(self.root);
        // Each turn either enters a node or goes on in the inner node above.
        loop {
            if let Some(number) = enter.take() {
                if depth < self.height {
                    let at = self.inner.get(number)?.seek(search.floor);
                    *path.get_mut(depth)? = Step { node: number, at: u32::try_from(at).ok()? };
                    depth = depth.wrapping_add(1);
                } else {
                    let leaf = self.leaves.get(number)?;
                    for (last, held) in leaf.from(leaf.seek(search.floor)) {
                        match search.before(held.first) {
                            Verdict::Found(iova) => return Some(iova),
                            Verdict::Over => return None,
                            Verdict::On => search.skip(last)?,
                        }
                    }
                }
            }
            let Some(above) = depth.checked_sub(1) else { break };
            let step = path.get_mut(above)?;
            let node = self.inner.get(step.node)?;
            for (last, branch) in node.from(step.at as usize) {
                step.at = step.at.wrapping_add(1);
                match search.before(branch.first) {
                    Verdict::Found(iova) => return Some(iova),
                    Verdict::Over => return None,
                    Verdict::On if branch.hole >= least => {
                        enter = Some(branch.child);
                        break;
                    }
                    Verdict::On => search.skip(last)?,
                }
            }
            if enter.is_none() {
                depth = above;
            }
        }
        search.up_to(u64::MAX)
    }
}
