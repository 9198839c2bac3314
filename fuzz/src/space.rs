//! IOVA space and the placement of mappings, against `rangemap` and a search through its gaps.

use std::ops::RangeInclusive;

use arbitrary::{Arbitrary, Unstructured};
use noiommu_core::{AllowedRanges, Area, Errno, Fit, Iova, IovaRange, IovaSpace, Placement, automatic_iova};
use rangemap::RangeInclusiveMap;

use crate::steps;

/// The most steps of one sequence.
const MOST: usize = 400;

/// An IOVA, as steps name it: few places, so that they meet again.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Place {
    Low(u8),
    Page(u8),
    High(u8),
    HighPage(u8),
    /// The first or last IOVA of an area, or one beside it.
    OfArea {
        which: u8,
        last: bool,
        beside: i8,
    },
    Any(u64),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Length {
    Bytes(u8),
    Pages(u8),
    PowerOfTwo(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Step {
    Insert {
        first: Place,
        length: Length,
    },
    /// Areas side by side, or with holes of a page between them: makes the tree grow.
    InsertMany {
        first: Place,
        count: u8,
        holes: bool,
        downwards: bool,
    },
    Remove {
        which: u8,
    },
    RemoveAt {
        first: Place,
    },
    /// Every so many-th area.
    RemoveMany {
        step: u8,
    },
    Split {
        last: Place,
    },
    Look {
        at: Place,
    },
    Overlaps {
        first: Place,
        length: Length,
    },
    FindGap {
        first: Place,
        length: Length,
        fit: Wanted,
    },
    Allow {
        ranges: Vec<(Place, Length)>,
    },
    Automatic {
        length: Length,
        address: Place,
        max: u8,
        least: bool,
    },
}

/// What a gap is for.
#[derive(Arbitrary, Debug, Clone, Copy)]
struct Wanted {
    length: Length,
    alignment: u8,
    offset: u8,
}

/// A space, with nodes of a size, and the oracle.
struct Both<const N: usize> {
    space: IovaSpace<u32, N>,
    /// Every area has a value of its own, so that none are joined.
    oracle: RangeInclusiveMap<u64, u32>,
    allowed: AllowedRanges,
    /// The same, in order.
    windows: Vec<IovaRange>,
    value: u32,
}

/// Runs the steps that `bytes` mean; the first byte chooses the size of the tree's nodes.
///
/// # Panics
/// Where the space and the oracle part ways.
pub fn run(bytes: &[u8], tell: bool) -> usize {
    match bytes.split_first() {
        Some((size, bytes)) if size % 2 == 0 => Both::<4>::new().run(bytes, tell),
        Some((_, bytes)) => Both::<32>::new().run(bytes, tell),
        None => 0,
    }
}

fn range(first: u64, length: u64) -> Option<IovaRange> {
    IovaRange::new(Iova(first), Iova(first.checked_add(length.checked_sub(1)?)?))
}

fn bounds(range: IovaRange) -> RangeInclusive<u64> {
    range.first().0..=range.last().0
}

fn area((range, value): (&RangeInclusive<u64>, &u32)) -> Option<Area<u32>> {
    let range = IovaRange::new(Iova(*range.start()), Iova(*range.end()))?;
    Some(Area { range, value: *value })
}

impl<const N: usize> Both<N> {
    fn new() -> Self {
        Self {
            space: IovaSpace::with_fan_out(),
            oracle: RangeInclusiveMap::new(),
            allowed: AllowedRanges::new(),
            windows: Vec::new(),
            value: 0,
        }
    }

    fn run(mut self, bytes: &[u8], tell: bool) -> usize {
        let number = steps::each(Unstructured::new(bytes), tell, MOST, |step| self.step(step));
        self.compare();
        // Taken out one by one, it is empty.
        let firsts: Vec<u64> = self.oracle.iter().map(|(range, _)| *range.start()).collect();
        for (left, first) in (0..firsts.len()).rev().zip(firsts) {
            assert!(self.space.remove(Iova(first)).is_some(), "{first:#x} is not there");
            assert_eq!(self.space.len(), left);
        }
        number
    }

    fn nth(&self, which: u8) -> Option<RangeInclusive<u64>> {
        let at = usize::from(which) % self.space.len().max(1);
        self.oracle.iter().nth(at).map(|(range, _)| range.clone())
    }

    fn place(&self, place: Place) -> u64 {
        match place {
            Place::Low(bytes) => bytes.into(),
            Place::Page(page) => u64::from(page) << 12,
            Place::High(bytes) => u64::MAX - u64::from(bytes),
            Place::HighPage(page) => (u64::MAX - 0xfff) - (u64::from(page) << 12),
            Place::OfArea { which, last, beside } => {
                let area = self.nth(which).unwrap_or(0..=0);
                let at = if last { *area.end() } else { *area.start() };
                at.wrapping_add_signed(beside.into())
            }
            Place::Any(at) => at,
        }
    }

    fn length(length: Length) -> u64 {
        match length {
            Length::Bytes(bytes) => bytes.into(),
            Length::Pages(pages) => u64::from(pages) << 12,
            Length::PowerOfTwo(log) => 1 << (log % 64),
            Length::Any(bytes) => bytes,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Insert { first, length } => {
                if let Some(range) = range(self.place(first), Self::length(length)) {
                    self.insert(range);
                }
            }
            Step::InsertMany { first, count, holes, downwards } => {
                let first = self.place(first);
                for number in 0..u64::from(count) {
                    let offset = (number * if holes { 2 } else { 1 }) << 12;
                    let at = if downwards { first.checked_sub(offset) } else { first.checked_add(offset) };
                    if let Some(range) = at.and_then(|at| range(at, 0x1000)) {
                        self.insert(range);
                    }
                }
            }
            Step::Remove { which } => {
                let Some(range) = self.nth(which) else { return };
                self.remove(*range.start());
            }
            Step::RemoveAt { first } => self.remove(self.place(first)),
            Step::RemoveMany { step } => {
                let firsts: Vec<_> = self.oracle.iter().map(|(range, _)| *range.start()).collect();
                firsts.into_iter().step_by(usize::from(step % 7) + 1).for_each(|first| self.remove(first));
            }
            Step::Split { last } => self.split(self.place(last)),
            Step::Look { at } => self.look(self.place(at)),
            Step::Overlaps { first, length } => {
                let Some(range) = range(self.place(first), Self::length(length)) else { return };
                assert_eq!(self.space.overlaps(range), self.oracle.overlaps(&bounds(range)), "{range:?}");
            }
            Step::FindGap { first, length, fit } => {
                let Some(within) = range(self.place(first), Self::length(length)) else { return };
                let alignment = 1u64 << (fit.alignment % 64);
                // As placement asks: an offset in a page, which is a multiple of the alignment.
                let page_offset = (u64::from(fit.offset) << 4) & 0xfff & !(alignment.saturating_sub(1));
                let fit = Fit { length: Self::length(fit.length), alignment, page_offset };
                assert_eq!(
                    self.space.find_gap(within, fit),
                    self.find_gap(within, fit),
                    "{within:?}, {fit:?}"
                );
            }
            Step::Allow { ref ranges } => self.allow(ranges),
            Step::Automatic { length, address, max, least } => self.automatic(Placement {
                length: Self::length(length),
                address: self.place(address),
                max_alignment: 1 << (max % 32),
                iova_alignment: if least { 4096 } else { 1 },
            }),
        }
    }

    fn insert(&mut self, range: IovaRange) {
        self.value += 1;
        let told = self.space.insert(range, self.value);
        if self.oracle.overlaps(&bounds(range)) {
            assert_eq!(told, Err(Errno::EEXIST), "{range:?}");
        } else {
            assert_eq!(told, Ok(()), "{range:?}");
            self.oracle.insert(bounds(range), self.value);
        }
        self.look(range.first().0);
        self.look(range.last().0);
    }

    fn remove(&mut self, first: u64) {
        let there =
            self.oracle.get_key_value(&first).filter(|(range, _)| *range.start() == first).and_then(area);
        assert_eq!(self.space.remove(Iova(first)), there, "{first:#x}");
        if let Some(area) = there {
            self.oracle.remove(bounds(area.range));
        }
        self.look(first);
    }

    fn split(&mut self, last: u64) {
        self.value += 1;
        let told = self.space.split(Iova(last), self.value);
        let whole = self.oracle.get_key_value(&last).map(|(range, _)| range.clone());
        match whole.filter(|range| *range.end() != last) {
            None => assert_eq!(told, Err(Errno::ENOENT), "{last:#x}"),
            Some(range) => {
                assert_eq!(told, Ok(()), "{last:#x}");
                self.oracle.insert(last + 1..=*range.end(), self.value);
            }
        }
        self.look(last);
        self.look(last.wrapping_add(1));
    }

    fn look(&self, at: u64) {
        for iova in [at.wrapping_sub(1), at, at.wrapping_add(1)] {
            assert_eq!(
                self.space.find(Iova(iova)),
                self.oracle.get_key_value(&iova).and_then(area),
                "{iova:#x}"
            );
            let next = self.oracle.overlapping(iova..=u64::MAX).next().and_then(area);
            assert_eq!(self.space.at_or_after(Iova(iova)), next, "from {iova:#x} on");
        }
    }

    /// The lowest place by going through all gaps.
    fn find_gap(&self, within: IovaRange, fit: Fit) -> Option<Iova> {
        let outer = bounds(within);
        let place = |gap: RangeInclusive<u64>| {
            let (first, last) = (u128::from(*gap.start()), u128::from(*gap.end()));
            let aligned = first.next_multiple_of(fit.alignment.into());
            if fit.length == 0 || aligned > u128::from(u64::MAX) {
                return None;
            }
            let iova = aligned | u128::from(fit.page_offset);
            // The kernel's search wants more than one IOVA of a gap behind the alignment.
            let end = iova + u128::from(fit.length.max(2)) - 1;
            (end <= last).then_some(Iova(iova as u64))
        };
        self.oracle.gaps(&outer).find_map(place)
    }

    fn allow(&mut self, ranges: &[(Place, Length)]) {
        let ranges: Vec<_> = ranges
            .iter()
            .filter_map(|(first, length)| range(self.place(*first), Self::length(*length)))
            .collect();
        let mut sorted = ranges.clone();
        sorted.sort_by_key(|range| range.first());
        let overlap = sorted.windows(2).any(|pair| pair[0].overlaps(pair[1]));
        let told = self.allowed.replace(ranges.into_iter().map(Ok));
        assert_eq!(told, if overlap { Err(Errno::EINVAL) } else { Ok(()) }, "{sorted:?}");
        if !overlap {
            self.windows = sorted;
        }
        assert!(self.allowed.iter().eq(self.windows.iter().copied()));
    }

    fn automatic(&self, request: Placement) {
        let told = automatic_iova(&self.space, &self.allowed, request);
        assert_eq!(told, self.place_automatically(request), "{request:?} in {:?}", self.windows);
        if let Ok(iova) = told {
            let range = range(iova.0, request.length).expect("it ends within the space");
            assert!(!self.oracle.overlaps(&bounds(range)), "{range:?} is taken");
        }
    }

    fn place_automatically(&self, request: Placement) -> Result<Iova, Errno> {
        if request.length == 0 || request.length >= u64::MAX >> 1 {
            return Err(Errno::EOVERFLOW);
        }
        let by_address = if request.address == 0 { u64::MAX } else { 1 << request.address.trailing_zeros() };
        let alignment = request.length.next_power_of_two().min(request.max_alignment).min(by_address);
        if alignment < request.iova_alignment {
            return Err(Errno::EINVAL);
        }
        let fit = Fit { length: request.length, alignment, page_offset: request.address % 4096 };
        // Ranges that touch are one; the first page and the last are nobody's.
        let mut windows: Vec<(u64, u64)> = Vec::new();
        for window in &self.windows {
            let (first, last) = (window.first().0, window.last().0);
            match windows.last_mut() {
                Some(before) if before.1.checked_add(1) == Some(first) => before.1 = last,
                _ => windows.push((first, last)),
            }
        }
        if windows.is_empty() {
            windows.push((0, u64::MAX));
        }
        let search = |(first, last): (u64, u64)| {
            let window = IovaRange::new(Iova(first.max(0x1000)), Iova(last.min(u64::MAX - 0x1000)))?;
            // From the first place that fits if nothing were there.
            let first = fit.place(window)?;
            self.find_gap(IovaRange::new(first, window.last())?, fit)
        };
        windows.into_iter().find_map(search).ok_or(Errno::ENOSPC)
    }

    fn compare(&self) {
        assert_eq!(self.space.len(), self.oracle.iter().count());
        assert_eq!(self.space.is_empty(), self.oracle.is_empty());
        assert!(self.space.iter().eq(self.oracle.iter().filter_map(area)), "areas differ");
    }
}
