//! Areas of an IOAS, and where automatic ones go.

use std::collections::BTreeMap;

use noiommu_core::Errno;
use noiommu_core::table::format::Access;

use super::{Model, Named, Slice, Wanted};
use crate::world::{Backing, PAGE, Pages};

/// An area; where it begins is its key.
#[derive(Clone, Debug)]
pub(crate) struct Area {
    pub(crate) last: u64,
    /// Its memory, and the offset of its first byte there.
    pub(super) named: usize,
    pub(super) start: u64,
    pub(super) access: Access,
}

/// An IOAS.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ioas {
    pub(crate) areas: BTreeMap<u64, Area>,
    pub(super) allowed: Vec<(u64, u64)>,
    pub(super) small_pages: bool,
}

impl Ioas {
    /// The area that covers an IOVA.
    pub(crate) fn at(&self, iova: u64) -> Option<(u64, &Area)> {
        self.areas.iter().find(|(first, area)| **first <= iova && iova <= area.last).map(|(k, v)| (*k, v))
    }

    /// The lowest area that overlaps a range.
    fn overlapping(&self, first: u64, last: u64) -> Option<u64> {
        self.areas.iter().find(|(start, area)| **start <= last && first <= area.last).map(|(start, _)| *start)
    }

    /// The lowest IOVA for memory at `address`, tried hole by hole.
    fn automatic(&self, address: u64, length: u64, alignment: u64) -> Result<u64, Errno> {
        if length >= u64::MAX / 2 {
            return Err(Errno::EOVERFLOW);
        }
        let by_address = if address == 0 { u64::MAX } else { 1 << address.trailing_zeros() };
        let wanted = length.next_power_of_two().min(by_address).min(2 << 20);
        if wanted < alignment {
            return Err(Errno::EINVAL);
        }
        // The place in a hole. A hole that ends where the area would begin takes not even one byte.
        let place = |first: u64, last: u64| {
            let iova = first.checked_next_multiple_of(wanted)? | (address % PAGE);
            (iova < last && last - iova >= length - 1).then_some(iova)
        };
        let mut windows = self.allowed.clone();
        if windows.is_empty() {
            windows.push((0, u64::MAX));
        }
        windows.sort_unstable();
        // Those that touch are one.
        windows.dedup_by(|next, before| {
            let touches = before.1.checked_add(1) == Some(next.0);
            if touches {
                before.1 = next.1;
            }
            touches
        });
        for (first, last) in windows {
            // Neither the first page nor the last.
            let (first, last) = (first.max(PAGE), last.min(u64::MAX - PAGE));
            // Holes begin where the area would be if there were nothing else, and behind areas.
            let Some(first) = place(first, last) else { continue };
            let behind = self.areas.values().filter_map(|area| area.last.checked_add(1));
            for start in std::iter::once(first).chain(behind) {
                if !(first..=last).contains(&start) || self.at(start).is_some() {
                    continue;
                }
                let end = self.areas.keys().find(|next| **next > start).map_or(u64::MAX, |next| next - 1);
                if let Some(iova) = place(start, end.min(last)) {
                    return Ok(iova);
                }
            }
        }
        Err(Errno::ENOSPC)
    }
}

impl Model {
    /// Notes memory that a MAP names; `address` lies in its first page.
    pub(super) fn name(&mut self, backing: Backing, writable: bool) -> usize {
        self.named.push(Named { backing, writable, pinned: BTreeMap::new() });
        self.named.len() - 1
    }

    /// The address or file offset of an offset in some memory.
    fn address(&self, named: usize, offset: u64) -> u64 {
        match self.named[named].backing.at(offset) {
            Backing::User(address) => address,
            Backing::File(start) => start,
        }
    }

    /// Pins those small pages of a slice that are not pinned.
    fn pin(&mut self, pages: &Pages, (named, start, length): Slice) -> Result<(), Errno> {
        let memory = &mut self.named[named];
        let mut at = start;
        while at < start + length {
            if memory.pinned.contains_key(&at) {
                at += PAGE;
                continue;
            }
            let (place, bytes) = pages.place(memory.backing.at(at), memory.writable)?;
            if bytes == PAGE {
                memory.pinned.insert(at, place);
            }
            at += bytes.min(start + length - at);
        }
        Ok(())
    }

    /// EINVAL for what the kernel cannot enter into its table: memory without access, and at the end of the space memory that is
    /// not in one piece.
    fn check_table(
        &self,
        pages: &Pages,
        (named, start, length): Slice,
        one_piece: bool,
        access: Access,
    ) -> Result<(), Errno> {
        let (first, mut at) = self.place(pages, named, start);
        while one_piece && at < length {
            let (place, bytes) = self.place(pages, named, start + at);
            if place != first + at {
                return Err(Errno::EINVAL);
            }
            at += bytes;
        }
        if some(access) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Pins everything in an IOAS, or nothing.
    pub(super) fn pin_all(&mut self, pages: &Pages, ioas: u32) -> Result<(), Errno> {
        self.check_whole_pages(ioas)?;
        let slice = |(first, area): (&u64, &super::Area)| (area.named, area.start, area.last - first + 1);
        let small = self.ioas(ioas)?.small_pages;
        let areas = self.ioas(ioas)?.areas.iter();
        let areas: Vec<(Slice, bool, Access)> =
            areas.map(|area| (slice(area), area.1.last == u64::MAX && !small, area.1.access)).collect();
        let pinned = areas.into_iter().try_for_each(|(slice, one_piece, access)| {
            self.pin(pages, slice)?;
            self.check_table(pages, slice, one_piece, access)
        });
        if pinned.is_err() {
            self.settle();
        }
        pinned
    }

    /// EADDRINUSE unless all areas consist of whole pages.
    pub(super) fn check_whole_pages(&self, ioas: u32) -> Result<(), Errno> {
        let whole = |(first, area): (&u64, &Area)| {
            (first | area.last.wrapping_sub(*first).wrapping_add(1) | area.start) % PAGE == 0
        };
        if self.ioas(ioas)?.areas.iter().all(whole) { Ok(()) } else { Err(Errno::EADDRINUSE) }
    }

    /// MAP, from where its memory is known.
    pub(super) fn map(
        &mut self,
        pages: &Pages,
        id: u32,
        backing: fn(u64) -> Backing,
        address: u64,
        wanted: &Wanted,
    ) -> Result<u64, Errno> {
        self.ioas(id)?;
        if let Backing::User(_) = backing(0) {
            address.checked_add(wanted.length).ok_or(Errno::EOVERFLOW)?;
        }
        if wanted.length == 0 || wanted.length > u64::MAX - PAGE {
            return Err(Errno::EINVAL);
        }
        let named = self.name(backing(address / PAGE * PAGE), wanted.access.write);
        self.map_slices(pages, id, &[(named, address % PAGE, wanted.length)], wanted)
    }

    pub(super) fn map_slices(
        &mut self,
        pages: &Pages,
        id: u32,
        slices: &[Slice],
        wanted: &Wanted,
    ) -> Result<u64, Errno> {
        let (alignment, ioas) = (self.alignment(id)?, self.ioas(id)?);
        let length = wanted.length;
        if length == 0 || !length.is_multiple_of(alignment) {
            return Err(Errno::EINVAL);
        }
        let iova = match wanted.iova {
            Some(iova) if iova % alignment != 0 => return Err(Errno::EINVAL),
            Some(iova) => iova,
            None => ioas.automatic(self.address(slices[0].0, slices[0].1), length, alignment)?,
        };
        let last = iova.checked_add(length - 1).ok_or(Errno::EOVERFLOW)?;
        if ioas.overlapping(iova, last).is_some() {
            return Err(Errno::EEXIST);
        }
        for (named, start, _) in slices {
            if wanted.access.write && !self.named[*named].writable {
                return Err(Errno::EPERM);
            }
            if !(start % PAGE).is_multiple_of(alignment) {
                return Err(Errno::EINVAL);
            }
        }
        if self.has_domain(id) {
            let one_piece = last == u64::MAX && !self.ioas(id)?.small_pages;
            let pinned = slices.iter().zip(1..).try_for_each(|(slice, number)| {
                self.pin(pages, *slice)?;
                self.check_table(pages, *slice, one_piece && number == slices.len(), wanted.access)
            });
            if pinned.is_err() {
                self.settle();
                return pinned.map(|()| 0);
            }
        }
        let ioas = self.ioas_mut(id)?;
        let mut at = iova;
        for (named, start, length) in slices {
            ioas.areas.insert(
                at,
                Area { last: at + (length - 1), named: *named, start: *start, access: wanted.access },
            );
            at = at.wrapping_add(*length);
        }
        Ok(iova)
    }

    /// COPY.
    pub(super) fn copy(
        &mut self,
        pages: &Pages,
        to: u32,
        from: u32,
        iova: u64,
        wanted: &Wanted,
    ) -> Result<u64, Errno> {
        let source = self.ioas(from)?;
        let last = last_of(iova, wanted.length)?;
        let (mut slices, mut at) = (Vec::new(), iova);
        loop {
            let (first, area) = source.at(at).ok_or(Errno::ENOENT)?;
            let end = area.last.min(last);
            slices.push((area.named, area.start + (at - first), end - at + 1));
            if end == last {
                break;
            }
            at = end + 1;
        }
        self.ioas(to)?;
        self.map_slices(pages, to, &slices, wanted)
    }

    /// Unmaps whole areas from the lowest on: the bytes, and whether one lay in the range only partly.
    pub(super) fn unmap(&mut self, id: u32, first: u64, last: u64) -> Result<(u64, bool), Errno> {
        let ioas = self.ioas_mut(id)?;
        let (mut bytes, mut cut) = (0_u64, false);
        while let Some(start) = ioas.overlapping(first, last) {
            let end = ioas.areas[&start].last;
            if start < first || end > last {
                cut = true;
                break;
            }
            ioas.areas.remove(&start);
            bytes = bytes.wrapping_add(end - start + 1);
        }
        self.settle();
        Ok((bytes, cut))
    }

    /// Makes an area end at `last`.
    pub(super) fn cut(&mut self, id: u32, last: u64) -> Result<(), Errno> {
        let (alignment, filled) = (self.alignment(id)?, self.has_domain(id));
        let ioas = self.ioas_mut(id)?;
        let Some((first, area)) = ioas.at(last).map(|(first, area)| (first, area.clone())) else {
            return Ok(());
        };
        if last == first || last == area.last {
            return Ok(());
        }
        let start = area.start + (last + 1 - first);
        let aligned = (last + 1).is_multiple_of(alignment) && start.is_multiple_of(alignment);
        if !aligned || filled && !ioas.small_pages {
            return Err(Errno::EINVAL);
        }
        ioas.areas.insert(first, Area { last, ..area.clone() });
        ioas.areas.insert(last + 1, Area { start, ..area });
        Ok(())
    }

    /// Whether some memory is a file's.
    pub(super) fn is_file(&self, area: &Area) -> bool {
        matches!(self.named[area.named].backing, Backing::File(_))
    }
}

/// The last byte of a range.
pub(super) fn last_of(first: u64, length: u64) -> Result<u64, Errno> {
    first.checked_add(length.checked_sub(1).ok_or(Errno::EINVAL)?).ok_or(Errno::EOVERFLOW)
}

/// Whether access is asked for at all.
pub(super) fn some(access: Access) -> bool {
    access.read || access.write
}
