//! The memory behind areas: shared by the areas that COPY makes of it, pinned while one of them is in a table.

use crate::platform::{Caller, PhysRun, Pins, Platform};
use crate::slab::{NONE, Slab};
use crate::table::format::Access;
use crate::{Errno, Iova, IovaRange, PhysAddr, Totals};

/// Takes runs, with the offset of the first of them.
type OffsetSink<'a> = dyn FnMut(u64, &[PhysRun]) -> Result<(), Errno> + 'a;

/// Memory that one MAP named; offsets in it count from the start of the page that its address lies in.
struct Pages<P: Platform> {
    backing: P::Backing,
    /// The user address or file offset of offset 0, a multiple of 4 KiB.
    base: u64,
    writable: bool,
    /// Privilege counts as it was at MAP, also for pins that a later attach makes.
    caller: Caller,
    /// Areas, and calls at work, that name this memory.
    users: u32,
    /// The first of the areas that are in a table now, linked by [`Area::next`].
    filled: u32,
    /// A stretch that is pinned. Nearly all memory has one at the most, which is found without another look elsewhere.
    pinned: Option<Stretch<P::Pins>>,
    /// The first of further ones, linked by [`Further::next`].
    further: u32,
}

/// A pinned part of some memory. Every filled area that overlaps it counts as a user; it goes with the last of them.
struct Stretch<T> {
    start: u64,
    end: u64,
    users: u32,
    pins: T,
}

impl<T> Stretch<T> {
    /// Counts a user more or less where a slice overlaps it.
    fn use_for(&mut self, slice: Slice, more: bool) {
        if self.start < slice.end() && slice.start < self.end {
            self.users = if more { self.users.saturating_add(1) } else { self.users.saturating_sub(1) };
        }
    }
}

/// One of several stretches of some memory.
struct Further<T> {
    stretch: Stretch<T>,
    next: u32,
}

/// A slice of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    /// The memory's number.
    pub(crate) pages: u32,
    /// The first byte's offset in it.
    pub(crate) start: u64,
    /// Bytes, at least 1.
    pub(crate) length: u64,
}

impl Slice {
    /// The offset after the last byte. Slices lie within an address space, so this does not wrap.
    const fn end(self) -> u64 {
        self.start.wrapping_add(self.length)
    }

    /// The part that begins `offset` bytes into this one.
    pub(crate) const fn part(self, offset: u64, length: u64) -> Self {
        Self { pages: self.pages, start: self.start.wrapping_add(offset), length }
    }
}

/// What an area maps, and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    pub(crate) slice: Slice,
    pub(crate) first: Iova,
    pub(crate) access: Access,
    /// The number of the table of the area's IOAS.
    pub(crate) table: u32,
    pub(crate) filled: bool,
    /// The next filled area of the same memory; of meaning only while this one is filled.
    next: u32,
}

impl Area {
    pub(crate) const fn new(slice: Slice, first: Iova, access: Access, table: u32) -> Self {
        Self { slice, first, access, table, filled: false, next: NONE }
    }
}

/// All memory of a context, its areas, and the tables in which pinned memory's places can be read.
///
/// Invariant: an offset of some memory that a filled area covers is pinned, and every table that holds the area says where.
/// So a further area of that memory takes the places from there: the memory is charged once, and a user who has replaced
/// what the address holds since gets what was pinned, as in the kernel.
pub(crate) struct Store<P: Platform> {
    pages: Slab<Option<Pages<P>>>,
    areas: Slab<Area>,
    further: Slab<Option<Further<P::Pins>>>,
    tables: Slab<Option<P::Table>>,
    /// What there is, counted as it comes and goes.
    pub(crate) totals: Totals,
}

impl<P: Platform> Store<P> {
    pub(crate) const fn new() -> Self {
        Self {
            pages: Slab::new(),
            areas: Slab::new(),
            further: Slab::new(),
            tables: Slab::new(),
            totals: Totals::NONE,
        }
    }

    /// Takes note of an IOAS's table; answers its number.
    pub(crate) fn add_table(&mut self, table: P::Table) -> Result<u32, Errno> {
        let number = self.tables.put(Some(table))?;
        self.totals.ioases = self.totals.ioases.wrapping_add(1);
        Ok(number)
    }

    pub(crate) fn remove_table(&mut self, number: u32) {
        if let Some(table) = self.tables.get_mut(number) {
            *table = None;
            self.tables.free(number);
            self.totals.ioases = self.totals.ioases.wrapping_sub(1);
        }
    }

    /// Takes note of how many frames a table has, and had before.
    pub(crate) fn count_frames(&mut self, before: u64, after: u64) {
        self.totals.table_frames = self.totals.table_frames.wrapping_add(after.wrapping_sub(before));
    }

    /// Memory with one user, the caller, who lets it go with [`Store::release`].
    pub(crate) fn add_pages(
        &mut self,
        backing: P::Backing,
        base: u64,
        writable: bool,
        caller: Caller,
    ) -> Result<u32, Errno> {
        self.pages.put(Some(Pages {
            backing,
            base,
            writable,
            caller,
            users: 1,
            filled: NONE,
            pinned: None,
            further: NONE,
        }))
    }

    /// A user more.
    pub(crate) fn hold(&mut self, pages: u32) {
        if let Some(pages) = self.pages_mut(pages) {
            pages.users = pages.users.saturating_add(1);
        }
    }

    /// A user less; the memory goes with the last one.
    pub(crate) fn release(&mut self, number: u32) {
        let Some(pages) = self.pages_mut(number) else { return };
        pages.users = pages.users.saturating_sub(1);
        if pages.users == 0
            && let Some(place) = self.pages.get_mut(number)
        {
            *place = None;
            self.pages.free(number);
        }
    }

    /// The user address or file offset of a slice's first byte.
    pub(crate) fn address(&self, slice: Slice) -> u64 {
        self.pages(slice.pages).map_or(0, |pages| pages.base).wrapping_add(slice.start)
    }

    pub(crate) fn is_writable(&self, pages: u32) -> bool {
        self.pages(pages).is_some_and(|pages| pages.writable)
    }

    /// Names the memory.
    pub(crate) fn backing(&self, pages: u32) -> Option<&P::Backing> {
        self.pages(pages).map(|pages| &pages.backing)
    }

    /// Whether an area's memory has been taken back.
    pub(crate) fn is_revoked(&self, platform: &P, area: u32) -> bool {
        let backing = self.area(area).and_then(|area| self.backing(area.slice.pages));
        backing.is_some_and(|backing| platform.is_revoked(backing))
    }

    /// A new area, which becomes a user of its memory.
    pub(crate) fn add_area(&mut self, area: Area) -> Result<u32, Errno> {
        let number = self.areas.put(area)?;
        self.hold(area.slice.pages);
        self.totals.areas = self.totals.areas.wrapping_add(1);
        self.totals.bytes = self.totals.bytes.wrapping_add(area.slice.length);
        Ok(number)
    }

    /// Forgets an area that is not filled.
    pub(crate) fn remove_area(&mut self, number: u32) {
        if let Some(area) = self.area(number) {
            self.areas.free(number);
            self.release(area.slice.pages);
            self.totals.areas = self.totals.areas.wrapping_sub(1);
            self.totals.bytes = self.totals.bytes.wrapping_sub(area.slice.length);
        }
    }

    pub(crate) fn area(&self, number: u32) -> Option<Area> {
        self.areas.get(number).copied()
    }

    /// Pins what of an area's memory is not pinned yet, and hands the physical runs to `sink`, in order, several at a time with
    /// the offset in the area of the first of them, together exactly its length.
    ///
    /// After an error the caller takes what `sink` got out of its table, then calls [`Store::let_go`].
    pub(crate) fn fill(
        &mut self,
        platform: &P,
        number: u32,
        sink: &mut OffsetSink<'_>,
    ) -> Result<(), P::Error> {
        let area = self.area(number).ok_or(Errno::EIO)?;
        let slice = area.slice;
        // What is revoked has no places; the area counts as filled all the same.
        let mut at = if self.is_revoked(platform, number) { slice.end() } else { slice.start };
        while at < slice.end() {
            let mut given = 0u64;
            let offset = at.wrapping_sub(slice.start);
            let (covered, until) = self.covered(slice, at);
            let length = until.wrapping_sub(at);
            let mut counting = |runs: &[PhysRun]| {
                // A source that names more memory than it was asked for is broken.
                let more = runs.iter().try_fold(0u64, |sum, run| sum.checked_add(run.length));
                let after = more.and_then(|more| given.checked_add(more)).filter(|&after| after <= length);
                let after = after.ok_or(Errno::EIO)?;
                sink(offset.wrapping_add(given), runs)?;
                given = after;
                Ok(())
            };
            match covered {
                Some(other) => self.places(other, at, until, &mut counting)?,
                None => self.pin(platform, slice.pages, at, until)?.runs(&mut counting)?,
            }
            // Or less: better no mapping than half of one.
            if given != length {
                return Err(Errno::EIO.into());
            }
            at = until;
        }
        self.use_stretches(slice, true);
        let pages = self.pages.get_mut(slice.pages).and_then(Option::as_mut).ok_or(Errno::EIO)?;
        if let Some(area) = self.areas.get_mut(number) {
            (area.filled, area.next) = (true, pages.filled);
            pages.filled = number;
        }
        Ok(())
    }

    /// The end of [`Store::fill`], once the area is out of its table: lets go of pins that no other area needs.
    pub(crate) fn unfill(&mut self, number: u32) {
        let Some(area) = self.area(number).filter(|area| area.filled) else { return };
        self.unlink(number, area);
        self.use_stretches(area.slice, false);
        self.let_go(area.slice.pages);
    }

    /// Lets go of the stretches of some memory that no area uses.
    pub(crate) fn let_go(&mut self, pages: u32) {
        let Some(pages) = self.pages.get_mut(pages).and_then(Option::as_mut) else { return };
        if pages.pinned.as_ref().is_some_and(|stretch| stretch.users == 0) {
            pages.pinned = None;
        }
        let (mut link, mut before) = (pages.further, NONE);
        while let Some(further) = self.further.get(link).and_then(Option::as_ref) {
            let next = further.next;
            if further.stretch.users > 0 {
                before = link;
            } else {
                match self.further.get_mut(before).and_then(Option::as_mut) {
                    Some(before) => before.next = next,
                    None => pages.further = next,
                }
                if let Some(place) = self.further.get_mut(link) {
                    drop(place.take());
                    self.further.free(link);
                }
            }
            link = next;
        }
    }

    /// Cuts an area in two, `at` bytes in, and answers the number of the upper part.
    ///
    /// # Errors
    /// ENOMEM; nothing has changed.
    pub(crate) fn split(&mut self, number: u32, at: u64) -> Result<u32, Errno> {
        let whole = self.area(number).ok_or(Errno::ENOENT)?;
        let rest = whole.slice.length.wrapping_sub(at);
        let slice = whole.slice.part(at, rest);
        let upper = Area { slice, first: Iova(whole.first.0.wrapping_add(at)), ..whole };
        let upper = self.add_area(upper)?;
        if let Some(lower) = self.areas.get_mut(number) {
            lower.slice.length = at;
            // The upper part has been counted on top of the whole.
            self.totals.bytes = self.totals.bytes.wrapping_sub(rest);
            if whole.filled {
                lower.next = upper;
            }
        }
        if whole.filled {
            self.use_stretches(whole.slice, false);
            self.use_stretches(whole.slice.part(0, at), true);
            self.use_stretches(slice, true);
        }
        Ok(upper)
    }

    /// Undoes [`Store::split`].
    pub(crate) fn join(&mut self, number: u32, upper: u32) {
        let (Some(lower), Some(upper_area)) = (self.area(number), self.area(upper)) else { return };
        if upper_area.filled {
            self.unlink(upper, upper_area);
            self.use_stretches(lower.slice, false);
            self.use_stretches(upper_area.slice, false);
        }
        self.remove_area(upper);
        if let Some(lower) = self.areas.get_mut(number) {
            lower.slice.length = lower.slice.length.wrapping_add(upper_area.slice.length);
            self.totals.bytes = self.totals.bytes.wrapping_add(upper_area.slice.length);
            let whole = lower.slice;
            if lower.filled {
                self.use_stretches(whole, true);
            }
        }
    }

    /// From `at` on: the filled area whose memory covers it, or none, and up to where that holds.
    fn covered(&self, slice: Slice, at: u64) -> (Option<Area>, u64) {
        let mut until = slice.end();
        let mut link = self.pages(slice.pages).map_or(NONE, |pages| pages.filled);
        while let Some(other) = self.areas.get(link) {
            let (start, end) = (other.slice.start, other.slice.end());
            if start <= at && at < end {
                return (Some(*other), until.min(end));
            }
            if start > at {
                until = until.min(start);
            }
            link = other.next;
        }
        (None, until)
    }

    /// The places of `at..until`, read in the table of a filled area that covers them.
    fn places(
        &self,
        area: Area,
        at: u64,
        until: u64,
        sink: &mut dyn FnMut(&[PhysRun]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let table = self.tables.get(area.table).and_then(Option::as_ref).ok_or(Errno::EIO)?;
        let first = Iova(area.first.0.wrapping_add(at.wrapping_sub(area.slice.start)));
        for segment in table.segments(IovaRange::with_length(first, until.wrapping_sub(at))?) {
            let segment = segment?;
            sink(&[PhysRun { address: PhysAddr(segment.address.0), length: segment.length }])?;
        }
        Ok(())
    }

    /// Pins `at..until` as a stretch without users.
    fn pin(&mut self, platform: &P, number: u32, at: u64, until: u64) -> Result<&P::Pins, P::Error> {
        let pages = self.pages.get_mut(number).and_then(Option::as_mut).ok_or(Errno::EIO)?;
        if pages.pinned.is_some() {
            // Before the pin, so that a pinned stretch always has its place.
            self.further.reserve(1)?;
        }
        let access = Access { read: true, write: pages.writable };
        let pins = platform.pin(&pages.backing, at, until.wrapping_sub(at), access, pages.caller)?;
        let stretch = Stretch { start: at, end: until, users: 0, pins };
        if pages.pinned.is_none() {
            return Ok(&pages.pinned.insert(stretch).pins);
        }
        pages.further = self.further.put(Some(Further { stretch, next: pages.further }))?;
        let further = self.further.get(pages.further).and_then(Option::as_ref).ok_or(Errno::EIO)?;
        Ok(&further.stretch.pins)
    }

    /// Counts a user more or less at every stretch that a slice overlaps.
    fn use_stretches(&mut self, slice: Slice, more: bool) {
        let Some(pages) = self.pages.get_mut(slice.pages).and_then(Option::as_mut) else { return };
        if let Some(stretch) = &mut pages.pinned {
            stretch.use_for(slice, more);
        }
        let mut link = pages.further;
        while let Some(further) = self.further.get_mut(link).and_then(Option::as_mut) {
            further.stretch.use_for(slice, more);
            link = further.next;
        }
    }

    /// Takes a filled area out of its memory's list.
    fn unlink(&mut self, number: u32, area: Area) {
        let Some(pages) = self.pages.get_mut(area.slice.pages).and_then(Option::as_mut) else { return };
        if pages.filled == number {
            pages.filled = area.next;
        } else {
            let mut link = pages.filled;
            while let Some(before) = self.areas.get_mut(link) {
                if before.next == number {
                    before.next = area.next;
                    break;
                }
                link = before.next;
            }
        }
        if let Some(area) = self.areas.get_mut(number) {
            (area.filled, area.next) = (false, NONE);
        }
    }

    fn pages(&self, number: u32) -> Option<&Pages<P>> {
        self.pages.get(number)?.as_ref()
    }

    fn pages_mut(&mut self, number: u32) -> Option<&mut Pages<P>> {
        self.pages.get_mut(number)?.as_mut()
    }
}
