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
        let mut windows = self.allowed.clone();
        if windows.is_empty() {
            windows.push((0, u64::MAX));
        }
        windows.sort_unstable();
        for (first, last) in windows {
            // Neither the first page nor the last.
            let (first, last) = (first.max(PAGE), last.min(u64::MAX - PAGE));
            // Holes begin at the window's beginning and behind areas.
            let behind = self.areas.values().filter_map(|area| area.last.checked_add(1));
            for start in std::iter::once(first).chain(behind) {
                if !(first..=last).contains(&start) || self.at(start).is_some() {
                    continue;
                }
                let hole_end =
                    self.areas.keys().find(|next| **next > start).map_or(u64::MAX, |next| next - 1);
                let hole_end = hole_end.min(last);
                let Some(iova) = start.checked_next_multiple_of(wanted) else { continue };
                let iova = iova | address % PAGE;
                // A hole that ends where the area would begin takes not even one byte.
                if iova < hole_end && hole_end - iova >= length - 1 {
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

    /// Pins everything in an IOAS, or nothing.
    pub(super) fn pin_all(&mut self, pages: &Pages, ioas: u32) -> Result<(), Errno> {
        self.check_whole_pages(ioas)?;
        let slice = |(first, area): (&u64, &super::Area)| (area.named, area.start, area.last - first + 1);
        let slices: Vec<Slice> = self.ioas(ioas)?.areas.iter().map(slice).collect();
        let pinned = slices.into_iter().try_for_each(|slice| self.pin(pages, slice));
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
        backing: impl FnOnce(u64) -> Backing,
        address: u64,
        wanted: &Wanted,
    ) -> Result<u64, Errno> {
        self.ioas(id)?;
        address.checked_add(wanted.length).ok_or(Errno::EOVERFLOW)?;
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
        if length == 0 || length % alignment != 0 {
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
            if start % PAGE % alignment != 0 {
                return Err(Errno::EINVAL);
            }
        }
        if self.has_domain(id) {
            let pinned = slices.iter().try_for_each(|slice| self.pin(pages, *slice));
            if pinned.is_err() {
                self.settle();
                return pinned.map(|()| 0);
            }
        }
        let ioas = self.ioas_mut(id)?;
        let mut at = iova;
        for (named, start, length) in slices {
            ioas.areas.insert(at, Area { last: at + (length - 1), named: *named, start: *start });
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
        if (last + 1) % alignment != 0 || start % alignment != 0 || filled && !ioas.small_pages {
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
