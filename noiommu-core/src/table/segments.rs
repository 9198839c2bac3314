//! All addresses of a range, piece by piece.

use super::{Segment, Table, TableMemory, format};
use crate::sync::Ordering;
use crate::{Errno, IovaRange, PhysAddr};

/// The contiguous pieces of an IOVA range; made by [`Table::segments`].
#[derive(Debug)]
pub struct Segments<'a, M> {
    table: &'a Table<M>,
    rest: Option<IovaRange>,
}

impl<'a, M: TableMemory> Segments<'a, M> {
    pub(super) fn new(table: &'a Table<M>, range: IovaRange) -> Self {
        Self { table, rest: Some(range) }
    }
}

impl<M: TableMemory> Table<M> {
    /// The place of `iova` and the bytes from there to the end of its page, at most `limit`, where the index shows that no more than
    /// those are contiguous: of scattered memory each page is such a one, and it takes two loads. `None`: nothing is shown.
    ///
    /// The answer is that of one entry, which stands for this page as long as the table lives. The entry behind it only says that
    /// there is nothing to join.
    #[inline]
    fn lone_page(&self, iova: u64, limit: u64) -> Option<(PhysAddr, u64)> {
        let page = usize::try_from(iova >> format::PAGE_SHIFT).ok()?;
        let [entry, behind] = self.memory.entries().get(page..)?.first_chunk()?;
        let (entry, behind) = (entry.load(Ordering::Relaxed), behind.load(Ordering::Relaxed));
        let offset = iova & format::PAGE_MASK;
        let rest = format::PAGE_MASK.wrapping_sub(offset).wrapping_add(1);
        if !format::is_page(entry) || (limit > rest && !format::ends_run(entry, behind)) {
            return None;
        }
        Some((PhysAddr(format::page_address(entry) | offset), rest.min(limit)))
    }
}

impl<M: TableMemory> Iterator for Segments<'_, M> {
    type Item = Result<Segment, Errno>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.take()?;
        let iova = rest.first();
        // All 2^64 bytes have no length; no run is that long, so the largest number serves.
        let limit = rest.length().unwrap_or(u64::MAX);
        let run = || self.table.run(iova, limit).map(|run| (run.address, run.length));
        let Some((address, length)) = self.table.lone_page(iova.0, limit).or_else(run) else {
            return Some(Err(Errno::ENOENT));
        };
        self.rest = iova.checked_add(length).and_then(|next| IovaRange::new(next, rest.last()));
        Some(Ok(Segment { iova, address, length }))
    }
}

impl<M: TableMemory> core::iter::FusedIterator for Segments<'_, M> {}
