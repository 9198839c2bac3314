//! What lookups are measured by: plain tables of two and of three levels, the shape that the fastest of the others use.
//!
//! An array has an entry for each GiB of the IOVA space; an entry is a table of 512 slots of 2 MiB; in the table of three levels a
//! slot may be a table of 512 pages. They know nothing but addresses: no access rights, no ends of areas, no larger leaves, no
//! readers beside a writer. So they are the least that a table can do, and about the fastest.

/// What a slot without memory holds.
const EMPTY: u64 = 0;
/// Set in a slot with memory; its address has no bits below 12.
const LEAF: u64 = 1;

type Slots = [u64; 512];

/// Leaves of 2 MiB alone.
pub(super) struct TwoLevels {
    top: Box<[Option<Box<Slots>>]>,
}

impl TwoLevels {
    /// An empty table for so many bytes of IOVAs from 0 on.
    #[must_use]
    pub(super) fn new(bytes: u64) -> Self {
        Self { top: (0..bytes.div_ceil(1 << 30)).map(|_| None).collect() }
    }

    /// Puts 2 MiB of memory at `address` to `iova`, both multiples of 2 MiB. Does nothing beyond the end.
    pub(super) fn map(&mut self, iova: u64, address: u64) {
        if let Some(table) = self.top.get_mut((iova >> 30) as usize) {
            table.get_or_insert_with(|| Box::new([EMPTY; 512]))[(iova >> 21 & 511) as usize] = address | LEAF;
        }
    }

    /// The address of an IOVA.
    #[inline(always)]
    #[must_use]
    pub(super) fn address(&self, iova: u64) -> Option<u64> {
        let table = self.top.get((iova >> 30) as usize)?.as_ref()?;
        let slot = table[(iova >> 21 & 511) as usize];
        if slot == EMPTY { None } else { Some((slot ^ LEAF) | (iova & 0x1f_ffff)) }
    }
}

/// Leaves of 2 MiB, and of 4 KiB below.
pub(super) struct ThreeLevels {
    top: Box<[Option<Box<Slots>>]>,
    /// The tables of pages. A slot of 2 MiB points into a box of it.
    pages: Vec<Box<Slots>>,
}

impl ThreeLevels {
    /// An empty table for so many bytes of IOVAs from 0 on.
    #[must_use]
    pub(super) fn new(bytes: u64) -> Self {
        Self { top: (0..bytes.div_ceil(1 << 30)).map(|_| None).collect(), pages: Vec::new() }
    }

    /// Puts `bytes` of memory at `address` to `iova`, all multiples of 4 KiB. Does nothing beyond the end.
    pub(super) fn map(&mut self, iova: u64, address: u64, bytes: u64) {
        let mut done = 0;
        while done < bytes {
            let (at, to) = (iova + done, address + done);
            let Some(table) = self.top.get_mut((at >> 30) as usize) else { return };
            let slot = &mut table.get_or_insert_with(|| Box::new([EMPTY; 512]))[(at >> 21 & 511) as usize];
            if (at | to) & 0x1f_ffff == 0 && bytes - done >= 1 << 21 {
                *slot = to | LEAF;
                done += 1 << 21;
                continue;
            }
            if *slot == EMPTY {
                self.pages.push(Box::new([EMPTY; 512]));
                *slot =
                    self.pages.last_mut().map_or(EMPTY, |pages| std::ptr::from_mut::<Slots>(pages) as u64);
            }
            // SAFETY: a slot that is no leaf and not empty holds the address of a box in `pages`, of which no reference is about.
            unsafe { (*(*slot as *mut Slots))[(at >> 12 & 511) as usize] = to | LEAF };
            done += 4096;
        }
    }

    /// The address of an IOVA.
    #[inline(always)]
    #[must_use]
    pub(super) fn address(&self, iova: u64) -> Option<u64> {
        let table = self.top.get((iova >> 30) as usize)?.as_ref()?;
        let slot = table[(iova >> 21 & 511) as usize];
        if slot & LEAF != 0 {
            return Some((slot ^ LEAF) | (iova & 0x1f_ffff));
        }
        if slot == EMPTY {
            return None;
        }
        // SAFETY: the address of a box in `pages`, which lives as long as `self`.
        let page = unsafe { (*(slot as *const Slots))[(iova >> 12 & 511) as usize] };
        if page == EMPTY { None } else { Some((page ^ LEAF) | (iova & 0xfff)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_mapped() {
        let mut two = TwoLevels::new(2 << 30);
        two.map(1 << 30, 5 << 21);
        assert_eq!(two.address((1 << 30) + 7), Some((5 << 21) + 7));
        assert_eq!(
            (two.address(0), two.address((1 << 30) + (1 << 21)), two.address(2 << 30)),
            (None, None, None)
        );

        let mut three = ThreeLevels::new(2 << 30);
        // One page before a border of 2 MiB, a whole slot, one page behind it; then a slot that is not aligned in memory.
        three.map((1 << 30) - 4096, (7 << 21) - 4096, (1 << 21) + 8192);
        three.map(1 << 22, 4096, 1 << 21);
        for (iova, address) in [
            ((1 << 30) - 1, Some((7 << 21) - 1)),
            (1 << 30, Some(7 << 21)),
            ((1 << 30) + (1 << 21) + 4095, Some((8 << 21) + 4095)),
            ((1 << 30) + (1 << 21) + 4096, None),
            ((1 << 30) - 4097, None),
            ((1 << 22) + 5000, Some(4096 + 5000)),
            (1 << 21, None),
        ] {
            assert_eq!(three.address(iova), address, "{iova:#x}");
        }
    }
}
