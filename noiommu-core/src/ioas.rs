//! An IOAS: areas of the IOVA space, and the table that says where their memory is.

use crate::pages::{Area, Slice, Store};
use crate::platform::{PhysRun, Platform};
use crate::space::{AllowedRanges, IovaSpace, Placement, automatic_iova};
use crate::table::TableWriter;
use crate::table::format::Access;
use crate::{Errno, Iova, IovaRange};

/// The granule of the page table, and so of everything mapped while a domain exists.
pub(crate) const GRANULE: u64 = 4096;

/// Where a mapping shall stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At this IOVA (IOMMU_IOAS_MAP_FIXED_IOVA).
    Fixed(Iova),
    /// Wherever there is room in the allowed ranges.
    Automatic,
}

/// Where the areas go on behind one in `range`; nowhere at the end of the range.
fn behind(area: IovaRange, range: IovaRange) -> Option<Iova> {
    area.last().checked_add(1).filter(|next| *next <= range.last())
}

/// An I/O address space. Its areas live in the context's [`Store`], under the numbers that are the values of `space`.
pub(crate) struct Ioas<P: Platform> {
    space: IovaSpace<u32>,
    allowed: AllowedRanges,
    writer: TableWriter<P::Memory, P::Table>,
    /// The number of the table in the store.
    table: u32,
    /// Domains (HWPTs) on this IOAS. All would hold the same entries, so one table serves them; it is filled while there
    /// is at least one.
    domains: u32,
    /// Leaves of a page each, so that areas can be cut anywhere (IOMMU_OPTION_HUGE_PAGES).
    small_pages: bool,
}

impl<P: Platform> Ioas<P> {
    pub(crate) fn new(platform: &P, store: &mut Store<P>) -> Result<Self, P::Error> {
        let writer = TableWriter::new(platform.new_table()?)?;
        let table = store.add_table(writer.table().clone())?;
        Ok(Self {
            space: IovaSpace::new(),
            allowed: AllowedRanges::new(),
            writer,
            table,
            domains: 0,
            small_pages: false,
        })
    }

    /// The end of it; unmaps what is left.
    pub(crate) fn close(&mut self, store: &mut Store<P>) {
        let _ = self.unmap(store, IovaRange::ALL);
        store.remove_table(self.table);
    }

    pub(crate) fn table(&self) -> &P::Table {
        self.writer.table()
    }

    pub(crate) fn areas(&self) -> usize {
        self.space.len()
    }

    pub(crate) fn table_frames(&self) -> u64 {
        self.writer.frames_in_use()
    }

    pub(crate) fn domains(&self) -> u32 {
        self.domains
    }

    /// What every IOVA and length must be a multiple of at present.
    pub(crate) fn alignment(&self) -> u64 {
        if self.domains > 0 || self.small_pages { GRANULE } else { 1 }
    }

    pub(crate) fn small_pages(&self) -> bool {
        self.small_pages
    }

    /// Leaves of one page from now on, or of any size. Only an IOAS with nothing in its table can be changed to small ones,
    /// and only areas of whole pages allow it.
    pub(crate) fn set_small_pages(&mut self, store: &Store<P>, small: bool) -> Result<(), Errno> {
        if small && !self.small_pages {
            if self.domains > 0 && !self.space.is_empty() {
                return Err(Errno::EINVAL);
            }
            self.check_whole_pages(store)?;
        }
        self.small_pages = small;
        Ok(())
    }

    pub(crate) fn allow_iovas(
        &mut self,
        ranges: impl Iterator<Item = Result<IovaRange, Errno>>,
    ) -> Result<(), Errno> {
        self.allowed.replace(ranges)
    }

    /// Every area, in order, as its range and its number in the store.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (IovaRange, u32)> + '_ {
        self.space.iter().map(|area| (area.range, area.value))
    }

    /// Maps slices of memory one behind the other; together `length` bytes, which the caller knows to be so. Each becomes an
    /// area; all or none.
    pub(crate) fn map(
        &mut self,
        platform: &P,
        store: &mut Store<P>,
        slices: &[Slice],
        length: u64,
        place: Place,
        access: Access,
    ) -> Result<Iova, P::Error> {
        let mask = self.alignment().wrapping_sub(1);
        if length == 0 || length & mask != 0 {
            return Err(Errno::EINVAL.into());
        }
        let first = match place {
            Place::Fixed(iova) if iova.0 & mask != 0 => return Err(Errno::EINVAL.into()),
            Place::Fixed(iova) => iova,
            Place::Automatic => {
                let address = slices.first().map_or(0, |slice| store.address(*slice));
                let max_alignment = platform.huge_page();
                let wish = Placement { address, length, max_alignment, iova_alignment: self.alignment() };
                automatic_iova(&self.space, &self.allowed, wish)?
            }
        };
        let range = IovaRange::with_length(first, length)?;
        if self.space.overlaps(range) {
            return Err(Errno::EEXIST.into());
        }
        let mapped = self
            .insert(store, slices, first, access)
            .map_err(P::Error::from)
            .and_then(|()| self.fill_range(platform, store, range));
        if mapped.is_err() {
            // Nothing else lies in the range.
            self.remove_range(store, range);
        } else {
            store.totals.maps = store.totals.maps.wrapping_add(1);
        }
        mapped.map(|()| first)
    }

    /// Makes an area of each slice; after an error, of those before it.
    fn insert(
        &mut self,
        store: &mut Store<P>,
        slices: &[Slice],
        first: Iova,
        access: Access,
    ) -> Result<(), Errno> {
        let mut at = first.0;
        for &slice in slices {
            if access.write && !store.is_writable(slice.pages) {
                return Err(Errno::EPERM);
            }
            if slice.start & (GRANULE - 1) & self.alignment().wrapping_sub(1) != 0 {
                return Err(Errno::EINVAL);
            }
            let number = store.add_area(Area::new(slice, Iova(at), access, self.table))?;
            let inserted = IovaRange::with_length(Iova(at), slice.length)
                .and_then(|range| self.space.insert(range, number));
            if let Err(error) = inserted {
                store.remove_area(number);
                return Err(error);
            }
            at = at.wrapping_add(slice.length);
        }
        Ok(())
    }

    /// Unmaps the whole areas in `range`, from the lowest on; answers the bytes, and ENOENT where an area that only partly
    /// lies in the range has ended it.
    pub(crate) fn unmap(&mut self, store: &mut Store<P>, range: IovaRange) -> (u64, Result<(), Errno>) {
        let mut bytes = 0u64;
        let mut from = Some(range.first());
        while let Some(area) = from.and_then(|from| self.space.at_or_after(from)) {
            if !range.overlaps(area.range) {
                break;
            }
            if !range.covers(area.range) {
                return (bytes, Err(Errno::ENOENT));
            }
            self.remove(store, area.range, area.value);
            store.totals.unmaps = store.totals.unmaps.wrapping_add(1);
            // Areas that fill the space add up to 2^64 bytes, which the uAPI answers as 0.
            bytes = bytes.wrapping_add(area.range.length().unwrap_or(0));
            from = behind(area.range, range);
        }
        (bytes, Ok(()))
    }

    /// The slices of memory behind a range without holes.
    ///
    /// # Errors
    /// ENOENT: a hole; what `sink` answers.
    pub(crate) fn slices(
        &self,
        store: &Store<P>,
        range: IovaRange,
        sink: &mut dyn FnMut(Slice) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut at = range.first();
        loop {
            let area = self.space.find(at).ok_or(Errno::ENOENT)?;
            let slice = store.area(area.value).ok_or(Errno::EIO)?.slice;
            let offset = at.0.wrapping_sub(area.range.first().0);
            let last = area.range.last().min(range.last());
            sink(slice.part(offset, last.0.wrapping_sub(at.0).wrapping_add(1)))?;
            if last == range.last() {
                return Ok(());
            }
            at = Iova(last.0.wrapping_add(1));
        }
    }

    /// Cuts the area that covers `last` behind it, so that it becomes two; nothing is to be done where an area ends there or
    /// none is.
    ///
    /// # Errors
    /// EINVAL: the cut is inside a page, or inside what may be one large leaf; ENOMEM.
    pub(crate) fn cut(&mut self, store: &mut Store<P>, last: Iova) -> Result<(), Errno> {
        let Some(area) = self.space.find(last) else { return Ok(()) };
        // The kernel leaves an area alone that begins there, too.
        if last == area.range.first() || last == area.range.last() {
            return Ok(());
        }
        let start = Iova(last.0.wrapping_add(1));
        let offset = start.0.wrapping_sub(area.range.first().0);
        let whole = store.area(area.value).ok_or(Errno::EIO)?;
        let mask = self.alignment().wrapping_sub(1);
        if (start.0 | whole.slice.start.wrapping_add(offset)) & mask != 0
            || (whole.filled && !self.small_pages)
        {
            return Err(Errno::EINVAL);
        }
        let upper = store.split(area.value, offset)?;
        if let Err(error) = self.space.split(last, upper) {
            store.join(area.value, upper);
            return Err(error);
        }
        if whole.filled {
            self.writer.end_area(last)?;
        }
        Ok(())
    }

    /// A domain more. The first pins and maps all areas; if one of them cannot be, none is.
    pub(crate) fn add_domain(&mut self, platform: &P, store: &mut Store<P>) -> Result<(), P::Error> {
        if self.domains == 0 {
            self.check_whole_pages(store)?;
        }
        self.domains = self.domains.saturating_add(1);
        if self.domains == 1 {
            self.fill_range(platform, store, IovaRange::ALL).inspect_err(|_| self.domains = 0)?;
        }
        Ok(())
    }

    /// A domain less. With the last one, the table is emptied and every pin let go.
    pub(crate) fn remove_domain(&mut self, store: &mut Store<P>) {
        self.domains = self.domains.saturating_sub(1);
        if self.domains == 0 {
            self.empty_range(store, IovaRange::ALL);
        }
    }

    /// The number of the area that covers `iova`.
    pub(crate) fn find(&self, iova: Iova) -> Option<u32> {
        self.space.find(iova).map(|area| area.value)
    }

    /// EADDRINUSE where an area does not consist of whole pages.
    fn check_whole_pages(&self, store: &Store<P>) -> Result<(), Errno> {
        let mask = GRANULE - 1;
        let whole = |(range, number): (IovaRange, u32)| {
            let start = store.area(number).map_or(1, |area| area.slice.start);
            (range.first().0 | range.length().unwrap_or(0) | start) & mask == 0
        };
        if self.alignment() == GRANULE || self.iter().all(whole) { Ok(()) } else { Err(Errno::EADDRINUSE) }
    }

    /// Pins and maps every area in `range`, while there is a domain; all or none.
    fn fill_range(&mut self, platform: &P, store: &mut Store<P>, range: IovaRange) -> Result<(), P::Error> {
        if self.domains == 0 {
            return Ok(());
        }
        let mut from = Some(range.first());
        while let Some(area) = from.and_then(|from| self.space.at_or_after(from)) {
            if !range.overlaps(area.range) {
                break;
            }
            if let Err(error) = self.fill(platform, store, area.range, area.value) {
                self.empty_range(store, range);
                return Err(error);
            }
            from = behind(area.range, range);
        }
        Ok(())
    }

    /// Undoes [`Ioas::fill`] for those areas in `range` that are filled.
    fn empty_range(&mut self, store: &mut Store<P>, range: IovaRange) {
        let mut from = Some(range.first());
        while let Some(area) = from.and_then(|from| self.space.at_or_after(from)) {
            if !range.overlaps(area.range) {
                break;
            }
            self.empty(store, area.range, area.value);
            from = behind(area.range, range);
        }
    }

    fn remove_range(&mut self, store: &mut Store<P>, range: IovaRange) {
        while let Some(area) = self.space.at_or_after(range.first()).filter(|area| range.overlaps(area.range))
        {
            self.remove(store, area.range, area.value);
        }
    }

    fn remove(&mut self, store: &mut Store<P>, range: IovaRange, number: u32) {
        self.empty(store, range, number);
        self.space.remove(range.first());
        store.remove_area(number);
    }

    /// Pins the memory of an area and enters it into the table; all or nothing.
    fn fill(
        &mut self,
        platform: &P,
        store: &mut Store<P>,
        range: IovaRange,
        number: u32,
    ) -> Result<(), P::Error> {
        let area = store.area(number).ok_or(Errno::EIO)?;
        let before = self.writer.frames_in_use();
        let Self { writer, small_pages, .. } = self;
        // Where the space ends, 7.3 takes what comes first for the whole area and then has nowhere to go on with: unless pages
        // go in one by one, it must be contiguous.
        let in_one_piece = range.last() == IovaRange::ALL.last() && !*small_pages;
        let mut first = None;
        let mut done = 0u64;
        let mut enter = |offset: u64, runs: &[PhysRun]| {
            if !area.access.read && !area.access.write {
                return Err(Errno::EINVAL);
            }
            // Offsets stay below the area's length, which the store has checked.
            let mut at = offset;
            if !in_one_piece && !*small_pages {
                // Scattered memory has as many runs as pages: no more than this for each.
                let after = runs.iter().fold(at, |sum, run| sum.wrapping_add(run.length));
                let iova = Iova(range.first().0.wrapping_add(at));
                writer.map_runs(iova, runs, area.access, after == area.slice.length)?;
                done = after;
                return Ok(());
            }
            for run in runs {
                let expected = first.get_or_insert(run.address).checked_add(at);
                if in_one_piece && expected != Some(run.address) {
                    return Err(Errno::EINVAL);
                }
                let piece = if *small_pages { GRANULE } else { run.length };
                let mut entered = 0;
                while entered < run.length {
                    let address = run.address.checked_add(entered).ok_or(Errno::EIO)?;
                    let iova = Iova(range.first().0.wrapping_add(at).wrapping_add(entered));
                    let after = at.wrapping_add(entered).wrapping_add(piece);
                    writer.map(iova, address, piece, area.access, after == area.slice.length)?;
                    entered = entered.wrapping_add(piece);
                    done = after;
                }
                at = at.wrapping_add(run.length);
            }
            Ok(())
        };
        let filled = store.fill(platform, number, &mut enter);
        if filled.is_err() {
            // The pins are let go after the last address has left the table, never before.
            if let Ok(filled) = IovaRange::with_length(range.first(), done) {
                let _ = writer.unmap(filled);
            }
            store.let_go(area.slice.pages);
        }
        store.count_frames(before, self.writer.frames_in_use());
        filled
    }

    /// Takes an area out of the table, then lets its pins go.
    fn empty(&mut self, store: &mut Store<P>, range: IovaRange, number: u32) {
        if store.area(number).is_some_and(|area| area.filled) {
            let before = self.writer.frames_in_use();
            self.writer.unmap_area(range);
            store.count_frames(before, self.writer.frames_in_use());
            store.unfill(number);
        }
    }
}
