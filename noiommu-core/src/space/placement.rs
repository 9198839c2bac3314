//! Automatic IOVAs: where a mapping goes that does not ask for a fixed address.

use crate::space::gap::Fit;
use crate::{Errno, Iova, IovaRange, IovaSpace};

/// The granule of the kernel's uAPI: what automatic IOVAs keep of an address is its offset in such a page.
const PAGE: u64 = 4096;

/// Where automatic IOVAs lie: never in the first page nor in the last.
const WINDOW: IovaRange = match IovaRange::new(Iova(PAGE), Iova(u64::MAX - PAGE)) {
    Some(window) => window,
    None => IovaRange::ALL,
};

/// The ranges that automatic IOVAs are restricted to (`IOMMU_IOAS_ALLOW_IOVAS`). Without any, everything is allowed.
pub struct AllowedRanges {
    /// Ordered and without overlaps by nature; the areas carry nothing.
    ranges: IovaSpace<()>,
}

impl AllowedRanges {
    /// No restriction; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: IovaSpace::new() }
    }

    /// Replaces the ranges, given in any order. O(n log n).
    ///
    /// # Errors
    /// EINVAL when two of them share an IOVA, ENOMEM, and the first error among `ranges`. The old ranges are in force then as
    /// before.
    pub fn replace(&mut self, ranges: impl Iterator<Item = Result<IovaRange, Errno>>) -> Result<(), Errno> {
        let mut fresh = IovaSpace::new();
        for range in ranges {
            fresh
                .insert(range?, ())
                .map_err(|error| if error == Errno::EEXIST { Errno::EINVAL } else { error })?;
        }
        self.ranges = fresh;
        Ok(())
    }

    /// The ranges in order of address; none when everything is allowed. O(n) in all.
    pub fn iter(&self) -> impl Iterator<Item = IovaRange> + '_ {
        self.ranges.iter().map(|area| area.range)
    }

    /// The same with ranges that touch as one, as the kernel has it: a mapping may lie across their border.
    fn joined(&self) -> impl Iterator<Item = IovaRange> + '_ {
        let mut ranges = self.iter().peekable();
        core::iter::from_fn(move || {
            let mut joined = ranges.next()?;
            let touches = |next: &IovaRange, last: Iova| last.checked_add(1) == Some(next.first());
            // Not `next_if`, which asserts.
            while let Some(next) = ranges.peek().copied().filter(|next| touches(next, joined.last())) {
                joined = IovaRange::new(joined.first(), next.last())?;
                ranges.next();
            }
            Some(joined)
        })
    }
}

impl Default for AllowedRanges {
    fn default() -> Self {
        Self::new()
    }
}

/// What an automatic IOVA is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// Bytes to map.
    pub length: u64,
    /// The user address, or the offset in the file.
    pub address: u64,
    /// The largest alignment worth having, a power of two: 2 MiB, or 4 KiB without transparent huge pages.
    pub max_alignment: u64,
    /// What the IOAS demands of every IOVA, a power of two: 4096 while a domain exists, otherwise 1.
    pub iova_alignment: u64,
}

impl Placement {
    /// What this asks of a hole. O(1).
    ///
    /// The alignment is that of the length (rounded up to a power of two), as far as the address has it too, so that
    /// large pages of the memory can become large leaves.
    ///
    /// # Errors
    /// EOVERFLOW for a length of 0 or of half the address space, EINVAL when the address is aligned less than the IOAS
    /// demands.
    fn fit(self) -> Result<Fit, Errno> {
        const TOO_LONG: u64 = u64::MAX >> 1;
        if self.length == 0 || self.length >= TOO_LONG {
            return Err(Errno::EOVERFLOW);
        }
        let by_length = self.length.checked_next_power_of_two().ok_or(Errno::EOVERFLOW)?;
        let by_address = match self.address {
            0 => u64::MAX,
            address => address & address.wrapping_neg(),
        };
        let alignment = by_length.min(by_address).min(self.max_alignment);
        if alignment < self.iova_alignment {
            return Err(Errno::EINVAL);
        }
        Ok(Fit { length: self.length, alignment, page_offset: self.address & (PAGE - 1) })
    }
}

/// The IOVA for a mapping without a fixed one: the lowest that fits in what is allowed and free. The page at 0 and the
/// last page of the address space are never used.
///
/// O(log n) per allowed range, plus the holes passed over for their alignment (see [`IovaSpace::find_gap`]).
///
/// # Errors
/// EOVERFLOW for a length of 0 or of half the address space, EINVAL when the address is aligned less than the IOAS
/// demands, ENOSPC when nothing fits.
pub fn automatic_iova<T: Copy, const N: usize>(
    space: &IovaSpace<T, N>,
    allowed: &AllowedRanges,
    request: Placement,
) -> Result<Iova, Errno> {
    let fit = request.fit()?;
    // Holes count from the first place in the window that fits, as the kernel has it: with an offset in the page this can be
    // lower than what a hole that begins there would give.
    let search = |window: IovaRange| {
        let first = fit.place(window)?;
        space.find_gap(IovaRange::new(first, window.last())?, fit)
    };
    let found = if allowed.ranges.is_empty() {
        search(WINDOW)
    } else {
        allowed.joined().filter_map(within_window).find_map(search)
    };
    found.ok_or(Errno::ENOSPC)
}

/// The part of an allowed range where automatic IOVAs may lie.
fn within_window(range: IovaRange) -> Option<IovaRange> {
    IovaRange::new(range.first().max(WINDOW.first()), range.last().min(WINDOW.last()))
}
