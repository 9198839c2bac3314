//! The page table and its writer, against a map of leaves.
//!
//! A leaf is the largest power of two that both addresses are aligned to and the length has room for, but for 2^39 bytes, which
//! the format cannot say. By that the model knows which leaves there must be, which ranges cut one, how high the table is, and
//! what a lookup finds at any address.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use arbitrary::{Arbitrary, Unstructured};
use noiommu_core::table::format::{self, Access};
use noiommu_core::table::{Table, TableWriter};
use noiommu_core::{Errno, Iova, IovaRange, PhysAddr};

use crate::steps;
use crate::world::Frames;

/// The most steps of one sequence.
const MOST: usize = 48;
/// The most leaves of a mapping: more say nothing new.
const MOST_LEAVES: usize = 1200;

/// An address, as steps name it.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Place {
    /// A page from where tables begin and end.
    Near { border: u8, pages: i16 },
    /// A multiple of a power of two.
    Multiple { log: u8, times: u8 },
    /// Where a leaf of the table begins, or some bytes from there.
    OfLeaf { which: u8, bytes: i16 },
    /// Behind a leaf.
    BehindLeaf { which: u8 },
    /// Anywhere.
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Step {
    Map { at: Place, to: Memory, length: Length, access: u8, area_end: bool },
    Unmap { first: Place, length: Length },
    UnmapArea { which: u8 },
    UnmapAll,
    EndArea { at: Place },
    Look { at: Place, limit: Length },
    Segments { at: Place, length: Length },
    Frames { left: Option<u8> },
}

/// Where memory is.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Memory {
    /// At the same address, below 2^52: as congruent as can be.
    Congruent,
    /// Right behind the memory of a leaf.
    Behind {
        which: u8,
    },
    At(Place),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Length {
    Pages(u8),
    PowerOfTwo { log: u8, less_pages: u8 },
    OfLeaf { which: u8 },
    Any(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Leaf {
    base: u64,
    log: u32,
    access: Access,
    area_end: bool,
}

impl Leaf {
    fn bytes(self) -> u64 {
        1 << self.log
    }
}

#[derive(Clone, Default)]
struct Model {
    /// By their first IOVA.
    leaves: BTreeMap<u64, Leaf>,
}

impl Model {
    fn at(&self, iova: u64) -> Option<(u64, Leaf)> {
        let (first, leaf) = self.leaves.range(..=iova).next_back()?;
        (iova - first < leaf.bytes()).then_some((*first, *leaf))
    }

    /// The first leaf that has an IOVA in `first..=last`.
    fn overlaps(&self, first: u64, last: u64) -> bool {
        self.at(first).is_some() || self.leaves.range(first..=last).next().is_some()
    }

    /// The leaves that a mapping is made of; `None`: more than are worth it.
    fn split(iova: u64, base: u64, length: u64) -> Option<Vec<(u64, u64, u32)>> {
        let (mut leaves, mut done) = (Vec::new(), 0);
        while done < length {
            let (iova, base) = (iova + done, base + done);
            let log = (iova | base).trailing_zeros().min((length - done).ilog2()).min(51);
            let log = if log == 39 { 38 } else { log };
            leaves.push((iova, base, log));
            if leaves.len() > MOST_LEAVES {
                return None;
            }
            done += 1 << log;
        }
        Some(leaves)
    }

    fn run(&self, iova: u64, limit: u64) -> Option<(u64, u64, Access)> {
        let (first, leaf) = self.at(iova)?;
        let address = leaf.base + (iova - first);
        let (mut length, mut end) = (leaf.bytes() - (iova - first), leaf.area_end);
        while length < limit && !end {
            let next = iova.checked_add(length).and_then(|next| self.leaves.get(&next));
            match next {
                Some(next) if next.base == address + length => {
                    length += next.bytes();
                    end = next.area_end;
                }
                _ => break,
            }
        }
        (limit > 0).then_some((address, length.min(limit), leaf.access))
    }

    /// The level of the top table.
    fn top(&self) -> Option<u32> {
        let (first, leaf) = self.leaves.last_key_value()?;
        let last = first + (leaf.bytes() - 1);
        // A leaf lies in a table whose slots are not larger than it: of 2^48 bytes, above what reaches just so far.
        let largest = self.leaves.values().map(|leaf| (leaf.log - 12) / 9).max()?;
        (format::TOP_LEVEL_START.max(largest)..=format::TOP_LEVEL_MAX).find(|level| {
            // 9 bits a level, from bit 12 on.
            let bits = 12 + 9 * (level + 1);
            bits >= 64 || last >> bits == 0
        })
    }

    fn nth(&self, which: u8) -> Option<(u64, Leaf)> {
        let at = usize::from(which) % self.leaves.len().max(1);
        self.leaves.iter().nth(at).map(|(first, leaf)| (*first, *leaf))
    }

    fn place(&self, place: Place) -> u64 {
        match place {
            Place::Near { border, pages } => {
                let border = [0u64, 1 << 21, 1 << 30, 1 << 39, 1 << 48, 1 << 57, 1 << 52, 1 << 63]
                    [usize::from(border % 8)];
                border.wrapping_add_signed(i64::from(pages) << 12)
            }
            Place::Multiple { log, times } => u64::from(times) << (12 + log % 52),
            Place::OfLeaf { which, bytes } => {
                self.nth(which).map_or(0, |(first, _)| first).wrapping_add_signed(bytes.into())
            }
            Place::BehindLeaf { which } => {
                self.nth(which).map_or(0, |(first, leaf)| first.wrapping_add(leaf.bytes()))
            }
            Place::Any(address) => address,
        }
    }

    fn length(&self, length: Length) -> u64 {
        match length {
            Length::Pages(pages) => u64::from(pages) << 12,
            Length::PowerOfTwo { log, less_pages } => {
                (1u64 << (12 + log % 52)).wrapping_sub(u64::from(less_pages) << 12)
            }
            Length::OfLeaf { which } => self.nth(which).map_or(0x1000, |(_, leaf)| leaf.bytes()),
            Length::Any(bytes) => bytes,
        }
    }
}

type Shared = Rc<Table<Frames>>;

struct Both {
    table: Shared,
    writer: TableWriter<Frames, Shared>,
    model: Model,
    left: Rc<Cell<Option<u64>>>,
}

/// Runs the steps that `bytes` mean.
///
/// # Panics
/// Where the table and the model part ways.
pub fn run(bytes: &[u8], tell: bool) -> usize {
    let left = Rc::new(Cell::new(None));
    let table = Rc::new(Table::new(Frames::limited(left.clone())));
    let writer = TableWriter::new(table.clone()).expect("it is the first");
    let mut both = Both { table, writer, model: Model::default(), left };
    let number = steps::each(Unstructured::new(bytes), tell, MOST, |step| {
        both.step(step);
        both.compare(step);
    });
    both.writer.unmap(IovaRange::ALL).expect("it cuts nothing");
    assert_eq!((both.table.top_level(), both.writer.frames_in_use()), (None, 0), "not empty");
    number
}

impl Both {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Map { at, to, length, access, area_end } => {
                let access = Access { read: access & 1 != 0, write: access & 2 != 0 };
                let (iova, length) = (self.model.place(at), self.model.length(length));
                let base = match to {
                    Memory::Congruent => iova & ((1 << 52) - 1),
                    Memory::Behind { which } => {
                        self.model.nth(which).map_or(0, |(_, leaf)| leaf.base.wrapping_add(leaf.bytes()))
                    }
                    Memory::At(place) => self.model.place(place),
                };
                self.map(iova, base, length, access, area_end);
            }
            Step::Unmap { first, length } => {
                let (first, length) = (self.model.place(first), self.model.length(length));
                self.unmap(first, first.saturating_add(length.saturating_sub(1)));
            }
            Step::UnmapArea { which } => {
                let Some((first, leaf)) = self.model.nth(which) else { return };
                self.unmap(first, first + (leaf.bytes() - 1));
            }
            Step::UnmapAll => self.unmap(0, u64::MAX),
            Step::EndArea { at } => {
                let last = self.model.place(at).wrapping_sub(1);
                let told = self.writer.end_area(Iova(last));
                let expected = match self.model.at(last) {
                    None => Err(Errno::ENOENT),
                    Some((first, leaf)) if last - first != leaf.bytes() - 1 => Err(Errno::EINVAL),
                    Some((first, _)) => {
                        if let Some(leaf) = self.model.leaves.get_mut(&first) {
                            leaf.area_end = true;
                        }
                        Ok(())
                    }
                };
                assert_eq!(told, expected, "{step:x?}");
            }
            Step::Look { at, limit } => self.look(self.model.place(at), self.model.length(limit)),
            Step::Segments { at, length } => {
                let (first, length) = (self.model.place(at), self.model.length(length).max(1));
                self.segments(first, first.saturating_add(length - 1));
            }
            Step::Frames { left } => self.left.set(left.map(u64::from)),
        }
    }

    fn map(&mut self, iova: u64, base: u64, length: u64, access: Access, area_end: bool) {
        let last = iova.checked_add(length.wrapping_sub(1));
        let expected = if length == 0 {
            Err(Errno::EINVAL)
        } else if last.is_none() {
            Err(Errno::EOVERFLOW)
        } else if (iova | base | length) & 0xfff != 0
            || base.checked_add(length - 1).is_none_or(|last| last >> 52 != 0)
        {
            Err(Errno::EINVAL)
        } else {
            Ok(last.unwrap_or(0))
        };
        let leaves = match expected {
            Ok(_) => match Model::split(iova, base, length) {
                Some(leaves) => leaves,
                // Too many to be worth it.
                None => return,
            },
            Err(_) => Vec::new(),
        };
        let expected = expected
            .and_then(|last| if self.model.overlaps(iova, last) { Err(Errno::EEXIST) } else { Ok(()) });
        let told = self.writer.map(Iova(iova), PhysAddr(base), length, access, area_end);
        if told == Err(Errno::ENOMEM) && self.left.get() == Some(0) {
            return;
        }
        assert_eq!(told, expected, "map {length:#x} bytes at {iova:#x} to {base:#x}");
        if told.is_ok() {
            let count = leaves.len();
            for (at, (iova, base, log)) in leaves.into_iter().enumerate() {
                let area_end = area_end && at + 1 == count;
                self.model.leaves.insert(iova, Leaf { base, log, access, area_end });
            }
        }
    }

    fn unmap(&mut self, first: u64, last: u64) {
        let Some(range) = IovaRange::new(Iova(first), Iova(last)) else { return };
        let begins_inside = self.model.at(first).is_some_and(|(start, _)| start != first);
        let ends_inside = self.model.at(last).is_some_and(|(start, leaf)| last - start != leaf.bytes() - 1);
        let expected = if begins_inside || ends_inside { Err(Errno::EINVAL) } else { Ok(()) };
        assert_eq!(self.writer.unmap(range), expected, "unmap {first:#x} to {last:#x}");
        if expected.is_ok() {
            self.model.leaves.retain(|start, _| !(first..=last).contains(start));
        }
    }

    fn look(&self, iova: u64, limit: u64) {
        let found = self.table.run(Iova(iova), limit).map(|it| (it.address.0, it.length, it.access));
        assert_eq!(found, self.model.run(iova, limit), "{iova:#x}, at most {limit:#x}");
        assert_eq!(self.table.address(Iova(iova)).map(|it| it.0), self.model.run(iova, 1).map(|it| it.0));
        let leaf = self.table.lookup(Iova(iova)).map(|it| (it.address.0, it.length, it.access));
        let expected = self
            .model
            .at(iova)
            .map(|(first, leaf)| (leaf.base + (iova - first), leaf.bytes() - (iova - first), leaf.access));
        assert_eq!(leaf, expected, "{iova:#x}");
        let entry = self.table.entry(Iova(iova));
        assert_eq!(entry.is_some(), expected.is_some());
    }

    /// The pieces of a range, up to the first hole.
    fn segments(&self, first: u64, last: u64) {
        let Some(range) = IovaRange::new(Iova(first), Iova(last)) else { return };
        let mut at = Some(first);
        for segment in self.table.segments(range) {
            let iova = at.expect("a piece behind the end");
            let limit = (last - iova).saturating_add(1);
            match (segment, self.model.run(iova, limit)) {
                (Ok(segment), Some((address, length, _))) => {
                    assert_eq!((segment.iova.0, segment.address.0, segment.length), (iova, address, length));
                    at = iova.checked_add(length).filter(|next| *next <= last);
                }
                (told, expected) => {
                    assert_eq!((told, expected), (Err(Errno::ENOENT), None), "at {iova:#x}");
                    return;
                }
            }
        }
        assert_eq!(at, None, "pieces are missing");
    }

    /// What can be seen without changing it, at the borders of all leaves.
    fn compare(&self, step: &Step) {
        assert_eq!(self.table.top_level(), self.model.top(), "after {step:x?}");
        assert_eq!(self.writer.frames_in_use() == 0, self.model.leaves.is_empty(), "after {step:x?}");
        for (first, leaf) in self.model.leaves.iter().take(64) {
            let last = first + (leaf.bytes() - 1);
            for iova in [first.wrapping_sub(1), *first, first + leaf.bytes() / 2, last, last.wrapping_add(1)]
            {
                self.look(iova, u64::MAX);
            }
        }
        self.look(0, u64::MAX);
        self.look(u64::MAX, u64::MAX);
    }
}
