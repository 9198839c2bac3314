//! An IOAS: areas of the IOVA space, the memory behind them, and the table that says where it is.

use crate::platform::{Caller, PhysRun, Pins, Platform};
use crate::slab::Slab;
use crate::space::{AllowedRanges, IovaSpace, Placement, automatic_iova};
use crate::table::TableWriter;
use crate::table::format::Access;
use crate::{Errno, Iova, IovaRange};

/// The granule of the page table, and so of everything mapped while a domain exists.
const GRANULE: u64 = 4096;

/// Where a mapping shall stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At this IOVA (IOMMU_IOAS_MAP_FIXED_IOVA).
    Fixed(Iova),
    /// Wherever there is room in the allowed ranges.
    Automatic,
}

/// What IOMMU_IOAS_MAP and IOMMU_IOAS_MAP_FILE ask for.
#[derive(Debug)]
pub struct MapRequest<B> {
    /// The memory.
    pub backing: B,
    /// Its user address or file offset: automatic placement keeps its alignment.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// What devices may do with it; at least one of the two.
    pub access: Access,
    /// Where.
    pub place: Place,
}

/// The memory of one area.
struct Pages<P: Platform> {
    backing: P::Backing,
    address: u64,
    length: u64,
    access: Access,
    /// Privilege counts as it was at MAP, also for pins made by a later attach.
    caller: Caller,
    /// Held while a domain exists.
    pins: Option<P::Pins>,
}

pub(crate) struct Ioas<P: Platform> {
    space: IovaSpace<u32>,
    allowed: AllowedRanges,
    /// What each area maps, under the number that is the area's value in `space`; `None` in places that are free.
    pages: Slab<Option<Pages<P>>>,
    writer: TableWriter<P::Memory, P::Table>,
    /// Domains (HWPTs) on this IOAS. All would hold the same entries, so one table serves them; it is filled while there
    /// is at least one.
    domains: u32,
}

impl<P: Platform> Ioas<P> {
    pub(crate) fn new(platform: &P) -> Result<Self, P::Error> {
        Ok(Self {
            space: IovaSpace::new(),
            allowed: AllowedRanges::new(),
            pages: Slab::new(),
            writer: TableWriter::new(platform.new_table()?)?,
            domains: 0,
        })
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
    fn alignment(&self) -> u64 {
        if self.domains > 0 { GRANULE } else { 1 }
    }

    pub(crate) fn allow_iovas(
        &mut self,
        ranges: impl Iterator<Item = IovaRange> + Clone,
    ) -> Result<(), Errno> {
        self.allowed.replace(ranges)
    }

    pub(crate) fn map(
        &mut self,
        platform: &P,
        caller: Caller,
        request: MapRequest<P::Backing>,
    ) -> Result<Iova, P::Error> {
        let MapRequest { backing, address, length, access, place } = request;
        if !access.read && !access.write {
            return Err(Errno::EINVAL.into());
        }
        let alignment = self.alignment();
        let first = match place {
            Place::Fixed(iova) => iova,
            Place::Automatic => automatic_iova(
                &self.space,
                &self.allowed,
                Placement { address, length, max_alignment: platform.huge_page(), iova_alignment: alignment },
            )?,
        };
        let range = IovaRange::with_length(first, length)?;
        if (first.0 | length) & alignment.wrapping_sub(1) != 0 {
            return Err(Errno::EINVAL.into());
        }
        let pages = Pages { backing, address, length, access, caller, pins: None };
        let index = self.pages.put(Some(pages))?;
        let outcome = match self.space.insert(range, index) {
            Err(error) => Err(error.into()),
            Ok(()) if self.domains > 0 => self.fill(platform, range, index).inspect_err(|_| {
                self.space.remove(first);
            }),
            Ok(()) => Ok(()),
        };
        if let Err(error) = outcome {
            self.forget(index);
            return Err(error);
        }
        Ok(first)
    }

    /// Unmaps the whole areas in `range`, from the lowest on; answers the bytes. An area that only partly lies in the
    /// range ends it with ENOENT, and so does a range without any area, unless it is the whole space.
    pub(crate) fn unmap(&mut self, range: IovaRange) -> Result<u64, Errno> {
        let mut bytes = 0u64;
        let mut found = range == IovaRange::ALL;
        let mut from = Some(range.first());
        while let Some(area) = from.and_then(|from| self.space.at_or_after(from)) {
            if !range.overlaps(area.range) {
                break;
            }
            if !range.covers(area.range) {
                return Err(Errno::ENOENT);
            }
            self.empty(area.range, area.value);
            self.space.remove(area.range.first());
            self.forget(area.value);
            found = true;
            // Two areas that fill the space would add up to 2^64 bytes, which the uAPI answers as 0 too.
            bytes = bytes.wrapping_add(area.range.length().unwrap_or(0));
            from = area.range.last().checked_add(1);
        }
        if found { Ok(bytes) } else { Err(Errno::ENOENT) }
    }

    /// A domain more. The first pins and maps all areas; if one of them cannot be, none is.
    pub(crate) fn add_domain(&mut self, platform: &P) -> Result<(), P::Error> {
        if self.domains == 0
            && let Err((error, reached)) = self.fill_all(platform)
        {
            self.empty_all(reached);
            return Err(error);
        }
        self.domains = self.domains.saturating_add(1);
        Ok(())
    }

    /// A domain less. With the last one, the table is emptied and every pin let go.
    pub(crate) fn remove_domain(&mut self) {
        self.domains = self.domains.saturating_sub(1);
        if self.domains == 0 {
            self.empty_all(Some(Iova(u64::MAX)));
        }
    }

    /// Whether an area covers `iova`.
    pub(crate) fn maps(&self, iova: Iova) -> bool {
        self.space.find(iova).is_some()
    }

    /// Pins and maps every area; on error, tells the last IOVA of the areas done before it.
    fn fill_all(&mut self, platform: &P) -> Result<(), (P::Error, Option<Iova>)> {
        let mut done = None;
        let mut from = Some(Iova(0));
        while let Some(area) = from.and_then(|from| self.space.at_or_after(from)) {
            let range = area.range;
            let length = range.length().unwrap_or(0);
            if (range.first().0 | length) & (GRANULE - 1) != 0 {
                return Err((Errno::EADDRINUSE.into(), done));
            }
            self.fill(platform, range, area.value).map_err(|error| (error, done))?;
            done = Some(range.last());
            from = range.last().checked_add(1);
        }
        Ok(())
    }

    /// Undoes [`Ioas::fill`] for the areas up to `last`.
    fn empty_all(&mut self, last: Option<Iova>) {
        let Some(last) = last else { return };
        let mut from = Some(Iova(0));
        while let Some(area) = from.and_then(|from| self.space.at_or_after(from)) {
            if area.range.first() > last {
                break;
            }
            self.empty(area.range, area.value);
            from = area.range.last().checked_add(1);
        }
    }

    /// Pins the memory of an area and enters it into the table; all or nothing.
    fn fill(&mut self, platform: &P, range: IovaRange, index: u32) -> Result<(), P::Error> {
        let Self { pages, writer, .. } = self;
        let pages = pages.get_mut(index).and_then(Option::as_mut).ok_or(Errno::EIO)?;
        if pages.address & (GRANULE - 1) != 0 {
            return Err(Errno::EINVAL.into());
        }
        let pins = platform.pin(&pages.backing, pages.length, pages.access, pages.caller)?;
        let mut done = 0u64;
        let entered = pins
            .runs(&mut |PhysRun { address, length }| {
                let after = done.checked_add(length).filter(|&after| after <= pages.length);
                let after = after.ok_or(Errno::EIO)?;
                let iova = Iova(range.first().0.wrapping_add(done));
                writer.map(iova, address, length, pages.access, after == pages.length)?;
                done = after;
                Ok(())
            })
            // A source that names less memory than it pinned is broken: better no mapping than half of one.
            .and_then(|()| if done == pages.length { Ok(()) } else { Err(Errno::EIO.into()) });
        match entered {
            Ok(()) => {
                pages.pins = Some(pins);
                Ok(())
            }
            Err(error) => {
                // The pins are let go after the last address has left the table, never before.
                if let Ok(filled) = IovaRange::with_length(range.first(), done) {
                    let _ = writer.unmap(filled);
                }
                drop(pins);
                Err(error)
            }
        }
    }

    /// Takes an area out of the table, then lets its pins go.
    fn empty(&mut self, range: IovaRange, index: u32) {
        let pages = self.pages.get_mut(index).and_then(Option::as_mut);
        if let Some(pins) = pages.and_then(|pages| pages.pins.take()) {
            // Areas consist of whole leaves, so no leaf lies across the ends and this cannot be refused.
            let _ = self.writer.unmap(range);
            drop(pins);
        }
    }

    /// Drops what an area mapped and frees its number.
    fn forget(&mut self, index: u32) {
        if let Some(pages) = self.pages.get_mut(index) {
            *pages = None;
            self.pages.free(index);
        }
    }
}
