//! The space against an independent model: a `BTreeMap` and a linear search in 128-bit arithmetic.
#![allow(clippy::integer_division)]

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::node::{Entry, Extent, Node};
use super::tree::MAX_HEIGHT;
use super::{AllowedRanges, Area, Fit, IovaSpace, Placement, automatic_iova};
use crate::{Errno, Iova, IovaRange};

impl<T: Copy, const N: usize> IovaSpace<T, N> {
    /// Every invariant of the tree.
    pub(super) fn check(&self) {
        let mut leaves = 0;
        let mut inner = 0;
        let mut areas = 0;
        if self.is_empty() {
            assert_eq!((self.height, self.hole, self.ends()), (0, 0, None));
        } else {
            assert!(self.height <= MAX_HEIGHT);
            let extent = self.check_node(self.root, self.height, &mut leaves, &mut inner, &mut areas);
            assert_eq!((self.hole, self.ends()), (extent.hole, Some((extent.first, extent.last))));
            if self.height > 0 {
                assert!(self.inner.get(self.root).unwrap().len() >= 2, "a root with a single child");
            }
        }
        assert_eq!(areas, self.len());
        assert_eq!(leaves, self.leaves.in_use(), "leaves lost or used twice");
        assert_eq!(inner, self.inner.in_use(), "inner nodes lost or used twice");
    }

    fn check_node(
        &self,
        number: u32,
        height: usize,
        leaves: &mut usize,
        inner: &mut usize,
        areas: &mut usize,
    ) -> Extent {
        if height == 0 {
            let leaf = self.leaves.get(number).unwrap();
            *leaves += 1;
            *areas += leaf.len();
            return check_order(leaf);
        }
        *inner += 1;
        let node = self.inner.get(number).unwrap();
        for (last, branch) in node.from(0) {
            let extent = self.check_node(branch.child, height - 1, leaves, inner, areas);
            assert_eq!(extent, Extent { first: branch.first, last, hole: branch.hole });
        }
        check_order(node)
    }
}

/// Order within a node, and its extent worked out anew.
fn check_order<E: Entry, const N: usize>(node: &Node<E, N>) -> Extent {
    assert!((1..=N).contains(&node.len()), "{} entries of {N}", node.len());
    let entries: Vec<_> = node.from(0).collect();
    assert_eq!(entries.len(), node.len());
    assert!(node.ends_clean());
    for (last, entry) in &entries {
        assert!(entry.first() <= *last);
    }
    let between = entries.windows(2).map(|pair| {
        assert!(pair[0].0 < pair[1].1.first());
        pair[1].1.first() - pair[0].0 - 1
    });
    let inside = entries.iter().map(|(_, entry)| entry.hole());
    let extent = Extent {
        first: entries[0].1.first(),
        last: entries[entries.len() - 1].0,
        hole: between.chain(inside).max().unwrap(),
    };
    assert_eq!(node.extent(), Some(extent));
    extent
}

/// First IOVA to last IOVA and value.
#[derive(Default)]
struct Model(BTreeMap<u64, (u64, u32)>);

impl Model {
    fn areas(&self) -> impl Iterator<Item = Area<u32>> + '_ {
        self.0.iter().map(|(&first, &(last, value))| Area { range: range(first, last), value })
    }

    fn at_or_after(&self, iova: u64) -> Option<Area<u32>> {
        let before = self.0.range(..=iova).next_back().filter(|(_, area)| area.0 >= iova);
        before
            .or_else(|| self.0.range(iova..).next())
            .map(|(&first, &(last, value))| Area { range: range(first, last), value })
    }

    fn overlaps(&self, range: IovaRange) -> bool {
        self.0.range(..=range.last().0).next_back().is_some_and(|(_, area)| area.0 >= range.first().0)
    }

    fn insert(&mut self, range: IovaRange, value: u32) -> Result<(), Errno> {
        if self.overlaps(range) {
            return Err(Errno::EEXIST);
        }
        self.0.insert(range.first().0, (range.last().0, value));
        Ok(())
    }

    fn remove(&mut self, first: u64) -> Option<Area<u32>> {
        let (last, value) = self.0.remove(&first)?;
        Some(Area { range: range(first, last), value })
    }

    fn find_gap(&self, within: IovaRange, fit: Fit) -> Option<Iova> {
        let (low, high) = (i128::from(within.first().0), i128::from(within.last().0));
        let mut start = 0_i128;
        let ends = self.0.iter().map(|(&first, area)| (i128::from(first), i128::from(area.0)));
        for (first, last) in ends.chain([(1 << 64, 1 << 64)]) {
            let hole = (start.max(low), (first - 1).min(high));
            start = last + 1;
            if hole.0 > hole.1 {
                continue;
            }
            let alignment = i128::from(fit.alignment);
            let candidate = (hole.0 + alignment - 1) / alignment * alignment;
            if candidate >= 1 << 64 {
                continue;
            }
            let candidate = candidate | i128::from(fit.page_offset);
            if candidate < hole.1 && hole.1 - candidate >= i128::from(fit.length) - 1 {
                return Some(Iova(u64::try_from(candidate).unwrap()));
            }
        }
        None
    }

    fn automatic(&self, allowed: &[IovaRange], request: Placement) -> Result<Iova, Errno> {
        if request.length == 0 || request.length >= u64::MAX / 2 {
            return Err(Errno::EOVERFLOW);
        }
        let mut alignment = request.length.next_power_of_two().min(request.max_alignment);
        if request.address != 0 {
            alignment = alignment.min(1 << request.address.trailing_zeros());
        }
        if alignment < request.iova_alignment {
            return Err(Errno::EINVAL);
        }
        let fit = Fit { length: request.length, alignment, page_offset: request.address % 4096 };
        let mut windows = allowed.to_vec();
        if windows.is_empty() {
            windows.push(IovaRange::ALL);
        }
        windows.sort_by_key(|window| window.first());
        // What touches is one.
        windows.dedup_by(|next, before| {
            let touches = before.last().0.checked_add(1) == Some(next.first().0);
            if touches {
                *before = range(before.first().0, next.last().0);
            }
            touches
        });
        for window in windows {
            let (first, last) = (window.first().0.max(0x1000), window.last().0.min(u64::MAX - 0x1000));
            if first > last {
                continue;
            }
            // From the first place that fits if nothing were there.
            let Some(first) = fit.place(range(first, last)) else { continue };
            if let Some(iova) = self.find_gap(range(first.0, last), fit) {
                return Ok(iova);
            }
        }
        Err(Errno::ENOSPC)
    }
}

fn range(first: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova(first), Iova(last)).unwrap()
}

/// A space and its model, changed and compared together.
struct Pair<const N: usize> {
    space: IovaSpace<u32, N>,
    model: Model,
}

impl<const N: usize> Pair<N> {
    fn new() -> Self {
        Self { space: IovaSpace::with_fan_out(), model: Model::default() }
    }

    fn insert(&mut self, range: IovaRange, value: u32) -> Result<(), Errno> {
        let result = self.space.insert(range, value);
        assert_eq!(result, self.model.insert(range, value), "insert {range:?}");
        self.look_at(range.first().0);
        self.look_at(range.last().0);
        result
    }

    fn remove(&mut self, first: u64) {
        assert_eq!(self.space.remove(Iova(first)), self.model.remove(first), "remove {first:#x}");
        self.look_at(first);
    }

    fn look_at(&self, iova: u64) {
        for iova in [iova.wrapping_sub(1), iova, iova.wrapping_add(1)] {
            let expected = self.model.at_or_after(iova);
            assert_eq!(self.space.at_or_after(Iova(iova)), expected, "at or after {iova:#x}");
            let expected = expected.filter(|area| area.range.contains(Iova(iova)));
            assert_eq!(self.space.find(Iova(iova)), expected, "find {iova:#x}");
        }
    }

    fn find_gap(&self, within: IovaRange, fit: Fit) {
        assert_eq!(self.space.find_gap(within, fit), self.model.find_gap(within, fit), "{within:?} {fit:?}");
    }

    fn automatic(&self, allowed: &[IovaRange], request: Placement) -> Result<Iova, Errno> {
        let mut ranges = AllowedRanges::new();
        ranges.replace(allowed.iter().copied().map(Ok)).unwrap();
        let result = automatic_iova(&self.space, &ranges, request);
        assert_eq!(result, self.model.automatic(allowed, request), "{request:?} in {allowed:?}");
        result
    }

    fn compare(&self) {
        self.space.check();
        assert_eq!(self.space.len(), self.model.0.len());
        assert_eq!(self.space.is_empty(), self.model.0.is_empty());
        assert!(self.space.iter().eq(self.model.areas()));
    }
}

/// Addresses where things happen: both ends of the space, few enough to meet again.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0_u64..80,
        4 => (0_u64..80).prop_map(|page| page * 0x1000),
        3 => (0_u64..0x8000).prop_map(|iova| 0x1000 + iova),
        1 => (0_u64..16).prop_map(|n| n << 20),
        2 => (0_u64..80).prop_map(|down| u64::MAX - down),
        2 => (0_u64..80).prop_map(|page| (page * 0x1000).wrapping_neg().wrapping_sub(0x1000)),
        1 => any::<u64>(),
        1 => Just(0),
        1 => Just(u64::MAX),
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => Just(1),
        4 => 1_u64..20,
        4 => (1_u64..6).prop_map(|pages| pages * 0x1000),
        2 => 1_u64..0x6000,
        1 => (0_u32..64).prop_map(|bit| 1 << bit),
        1 => any::<u64>(),
    ]
}

fn some_range() -> impl Strategy<Value = IovaRange> {
    prop_oneof![
        20 => (address(), length())
            .prop_map(|(first, length)| range(first, first.saturating_add(length.saturating_sub(1)))),
        2 => (address(), address()).prop_map(|(a, b)| range(a.min(b), a.max(b))),
        1 => Just(IovaRange::ALL),
    ]
}

fn fit() -> impl Strategy<Value = Fit> {
    (length(), 0_u32..22, any::<u64>(), any::<bool>()).prop_map(|(length, bit, offset, with_offset)| {
        let alignment = 1_u64 << bit;
        let page_offset = if with_offset { offset & 0xfff & !(alignment - 1) } else { 0 };
        Fit { length, alignment, page_offset }
    })
}

fn placement() -> impl Strategy<Value = Placement> {
    let length = prop_oneof![8 => length(), 1 => Just(0), 1 => u64::MAX / 2 - 2..u64::MAX / 2 + 3];
    let max_alignment = prop_oneof![Just(2 << 20), Just(4096)];
    let iova_alignment = prop_oneof![Just(1), Just(4096)];
    (length, address(), max_alignment, iova_alignment).prop_map(
        |(length, address, max_alignment, iova_alignment)| Placement {
            length,
            address,
            max_alignment,
            iova_alignment,
        },
    )
}

#[derive(Clone, Debug)]
enum Op {
    Insert(IovaRange),
    /// An area right behind an existing one, or right before it.
    InsertBeside(prop::sample::Index, u64, bool),
    /// An area that fills the hole behind an existing one.
    Fill(prop::sample::Index),
    Remove(prop::sample::Index),
    RemoveAt(u64),
    Look(u64),
    Overlaps(IovaRange),
    FindGap(IovaRange, Fit),
    Automatic(Vec<IovaRange>, Placement),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => some_range().prop_map(Op::Insert),
        6 => (any::<prop::sample::Index>(), length(), any::<bool>())
            .prop_map(|(index, length, behind)| Op::InsertBeside(index, length, behind)),
        1 => any::<prop::sample::Index>().prop_map(Op::Fill),
        7 => any::<prop::sample::Index>().prop_map(Op::Remove),
        1 => address().prop_map(Op::RemoveAt),
        1 => address().prop_map(Op::Look),
        2 => some_range().prop_map(Op::Overlaps),
        4 => (some_range(), fit()).prop_map(|(within, fit)| Op::FindGap(within, fit)),
        1 => fit().prop_map(|fit| Op::FindGap(IovaRange::ALL, fit)),
        5 => (prop::collection::vec(some_range(), 0..4), placement())
            .prop_map(|(allowed, request)| Op::Automatic(allowed, request)),
    ]
}

/// The ranges that overlap none before them.
fn without_overlaps(ranges: &[IovaRange]) -> Vec<IovaRange> {
    let mut kept: Vec<IovaRange> = Vec::new();
    for range in ranges {
        if kept.iter().all(|other| !other.overlaps(*range)) {
            kept.push(*range);
        }
    }
    kept
}

fn run<const N: usize>(ops: &[Op]) {
    let mut pair = Pair::<N>::new();
    for (value, op) in (0..).zip(ops) {
        let existing = |index: &prop::sample::Index| {
            let areas = &pair.model.0;
            (!areas.is_empty())
                .then(|| areas.iter().nth(index.index(areas.len())).unwrap())
                .map(|(&first, &(last, _))| (first, last))
        };
        match op {
            Op::Insert(range) => drop(pair.insert(*range, value)),
            Op::InsertBeside(index, length, behind) => {
                let Some((first, last)) = existing(index) else { continue };
                let more = length.saturating_sub(1);
                let beside = if *behind {
                    last.checked_add(1).map(|first| range(first, first.saturating_add(more)))
                } else {
                    first.checked_sub(1).map(|last| range(last.saturating_sub(more), last))
                };
                beside.map(|range| pair.insert(range, value));
            }
            Op::Fill(index) => {
                let Some((_, last)) = existing(index) else { continue };
                let next = pair.model.0.range(last..).find(|(first, _)| **first > last);
                let end = next.map_or(u64::MAX, |(first, _)| first - 1);
                if last < end {
                    pair.insert(range(last + 1, end), value).unwrap();
                }
            }
            Op::Remove(index) => {
                let Some((first, _)) = existing(index) else { continue };
                pair.remove(first);
            }
            Op::RemoveAt(first) => pair.remove(*first),
            Op::Look(iova) => pair.look_at(*iova),
            Op::Overlaps(range) => assert_eq!(pair.space.overlaps(*range), pair.model.overlaps(*range)),
            Op::FindGap(within, fit) => pair.find_gap(*within, *fit),
            Op::Automatic(allowed, request) => {
                if let Ok(iova) = pair.automatic(&without_overlaps(allowed), *request) {
                    pair.insert(IovaRange::with_length(iova, request.length).unwrap(), value).unwrap();
                }
            }
        }
        pair.compare();
    }
    // And down to nothing, from alternating ends.
    let mut firsts: Vec<u64> = pair.model.0.keys().copied().collect();
    while !firsts.is_empty() {
        let first = if firsts.len().is_multiple_of(2) { firsts.remove(0) } else { firsts.pop().unwrap() };
        pair.remove(first);
        pair.compare();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 100 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(ops in prop::collection::vec(op(), 1..250)) {
        run::<4>(&ops);
        run::<5>(&ops);
        run::<32>(&ops);
    }

    #[test]
    fn allowed_ranges_refuse_overlaps_and_stay(ranges in prop::collection::vec(some_range(), 0..6)) {
        let old = [range(5, 9), range(1, 2)];
        let mut allowed = AllowedRanges::new();
        allowed.replace(old.into_iter().map(Ok)).unwrap();
        let result = allowed.replace(ranges.iter().copied().map(Ok));
        let mut expected = ranges.clone();
        if without_overlaps(&ranges).len() == ranges.len() {
            assert_eq!(result, Ok(()));
        } else {
            assert_eq!(result, Err(Errno::EINVAL));
            expected = old.to_vec();
        }
        expected.sort_by_key(|range| range.first());
        assert!(allowed.iter().eq(expected));
    }
}

/// A small generator of numbers (xorshift), the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn shuffle<V>(&mut self, values: &mut [V]) {
        for n in (1..values.len()).rev() {
            values.swap(n, self.below(n + 1));
        }
    }
}

/// Ways to fill and to empty a space, at depth.
#[test]
fn orders() {
    const COUNT: u64 = 1500;
    let mut numbers = Numbers(42);
    let ascending: Vec<u64> = (0..COUNT).collect();
    let mut descending = ascending.clone();
    descending.reverse();
    let mut random = ascending.clone();
    numbers.shuffle(&mut random);
    let inwards: Vec<u64> = (0..COUNT / 2).flat_map(|n| [n, COUNT - 1 - n]).collect();
    let mut outwards = inwards.clone();
    outwards.reverse();
    let orders = [ascending, descending, random, inwards, outwards];
    for fill in &orders {
        for empty in &orders {
            let mut pair = Pair::<4>::new();
            // Every other area touches the next one.
            let first = |n: u64| n * 0x3000 + n % 2 * 0x1000;
            for (step, &n) in fill.iter().enumerate() {
                pair.insert(range(first(n), first(n) + 0x1fff), n as u32).unwrap();
                if step % 97 == 0 {
                    pair.compare();
                }
            }
            pair.compare();
            for (step, &n) in empty.iter().enumerate() {
                pair.remove(first(n));
                if step % 97 == 0 {
                    pair.compare();
                    let fit = Fit { length: 0x1001 + n % 3 * 0x2000, alignment: 0x1000, page_offset: 0 };
                    pair.find_gap(IovaRange::ALL, fit);
                }
            }
            pair.compare();
            assert!(pair.space.is_empty());
        }
    }
}

/// 100,000 areas at random, with removals in between, and all removed at random.
#[test]
fn many() {
    fn fill_and_empty<const N: usize>() {
        let mut numbers = Numbers(7);
        let mut pair = Pair::<N>::new();
        let mut firsts = Vec::new();
        while firsts.len() < 100_000 {
            let first = numbers.next() >> 20 & !0xfff;
            if pair.insert(range(first, first + (numbers.next() & 0xffff)), 0).is_ok() {
                firsts.push(first);
            }
            if numbers.below(10) == 0 && !firsts.is_empty() {
                let first = firsts.swap_remove(numbers.below(firsts.len()));
                pair.remove(first);
            }
        }
        pair.compare();
        for bit in 0..40 {
            let fit = Fit { length: 1 << bit, alignment: (1 << bit).min(2 << 20), page_offset: 0 };
            pair.find_gap(range(0x1000, u64::MAX - 0x1000), fit);
            pair.find_gap(range(1 << 40, 3 << 40), fit);
        }
        numbers.shuffle(&mut firsts);
        for (step, first) in firsts.into_iter().enumerate() {
            pair.remove(first);
            if step % 10_000 == 0 {
                pair.compare();
            }
        }
        pair.compare();
    }
    fill_and_empty::<4>();
    fill_and_empty::<32>();
}

/// Areas made in ascending order, as automatic IOVAs are, leave their nodes full.
#[test]
fn ascending_areas_are_packed() {
    let mut space = IovaSpace::<u32>::new();
    for n in 0..32_000 {
        space.insert(range(n * 2, n * 2), 0).unwrap();
    }
    space.check();
    assert_eq!(space.leaves.in_use(), 1000);
}

/// An insertion and a removal in turn neither split nor merge in turn, wherever they are between areas.
#[test]
fn splits_and_merges_do_not_alternate() {
    for count in 30..70 {
        let mut space = IovaSpace::<u32>::new();
        for n in 0..count {
            space.insert(range(n * 2, n * 2), 0).unwrap();
        }
        for n in 1..count {
            let new = n * 2 - 1;
            let mut counts = Vec::new();
            for _ in 0..4 {
                space.insert(range(new, new), 0).unwrap();
                counts.push(space.leaves.in_use());
                space.remove(Iova(new)).unwrap();
                counts.push(space.leaves.in_use());
            }
            let changes = counts.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert!(changes <= 1, "{count} areas, at {new:#x}: {counts:?}");
        }
    }
}

#[test]
fn the_whole_space() {
    let mut space = IovaSpace::new();
    let anything = Fit { length: 1, alignment: 1, page_offset: 0 };
    assert_eq!(space.find_gap(IovaRange::ALL, anything), Some(Iova(0)));
    space.insert(IovaRange::ALL, 'a').unwrap();
    space.check();
    assert_eq!(space.find_gap(IovaRange::ALL, anything), None);
    assert_eq!(space.insert(range(u64::MAX, u64::MAX), 'b'), Err(Errno::EEXIST));
    for iova in [0, 1, 1 << 63, u64::MAX] {
        assert_eq!(space.find(Iova(iova)), Some(Area { range: IovaRange::ALL, value: 'a' }));
    }
    assert_eq!(space.remove(Iova(1)), None);
    assert_eq!(space.remove(Iova(0)).map(|area| area.value), Some('a'));
    assert!(space.is_empty());
    space.insert(range(0, 0), 'c').unwrap();
    space.insert(range(u64::MAX, u64::MAX), 'd').unwrap();
    assert!(space.iter().map(|area| area.value).eq(['c', 'd']));
    // A length of 2^63 at its own alignment: the upper half is short of one byte.
    let half = Fit { length: 1 << 63, alignment: 1 << 63, page_offset: 0 };
    assert_eq!(space.find_gap(IovaRange::ALL, half), None);
    assert_eq!(space.find_gap(IovaRange::ALL, Fit { alignment: 1, ..half }), Some(Iova(1)));
}

#[test]
fn a_candidate_at_the_end_of_a_hole_does_not_fit() {
    let space = IovaSpace::<u32>::new();
    let fit = Fit { length: 1, alignment: 1, page_offset: 0 };
    assert_eq!(space.find_gap(range(7, 7), fit), None);
    assert_eq!(space.find_gap(range(7, 8), fit), Some(Iova(7)));
    assert_eq!(space.find_gap(range(7, 8), Fit { alignment: 8, ..fit }), None);
    assert_eq!(space.find_gap(range(0, 10), Fit { length: 0, ..fit }), None);
}

#[test]
fn automatic_iovas_as_the_kernel_gives_them() {
    let mut space = IovaSpace::<u32>::new();
    let mut allowed = AllowedRanges::new();
    let page = Placement { length: 4096, address: 0x7000, max_alignment: 2 << 20, iova_alignment: 4096 };
    let ask =
        |space: &IovaSpace<u32>, allowed: &AllowedRanges, request| automatic_iova(space, allowed, request);

    assert_eq!(ask(&space, &allowed, page), Ok(Iova(0x1000)));
    assert_eq!(ask(&space, &allowed, Placement { length: 0, ..page }), Err(Errno::EOVERFLOW));
    assert_eq!(ask(&space, &allowed, Placement { length: u64::MAX / 2, ..page }), Err(Errno::EOVERFLOW));
    assert_eq!(ask(&space, &allowed, Placement { length: 0x2000, ..page }), Ok(Iova(0x1000)));
    // By the length alone at address 0, and never above the maximum.
    let huge = Placement { length: 4 << 20, address: 0, ..page };
    assert_eq!(ask(&space, &allowed, huge), Ok(Iova(2 << 20)));
    assert_eq!(ask(&space, &allowed, Placement { max_alignment: 4096, ..huge }), Ok(Iova(0x1000)));
    // The offset in the page stays; a domain wants whole pages.
    let odd = Placement { address: 0x7010, ..page };
    assert_eq!(ask(&space, &allowed, odd), Err(Errno::EINVAL));
    assert_eq!(ask(&space, &allowed, Placement { iova_alignment: 1, ..odd }), Ok(Iova(0x1010)));
    assert_eq!(ask(&space, &allowed, Placement { length: 100, ..page }), Err(Errno::EINVAL));

    space.insert(range(0x1000, 0x1fff), 0).unwrap();
    space.insert(range(0x3000, 0x3fff), 0).unwrap();
    assert_eq!(ask(&space, &allowed, page), Ok(Iova(0x2000)));
    assert_eq!(ask(&space, &allowed, Placement { length: 0x2000, ..page }), Ok(Iova(0x4000)));

    // Ranges in any order, lowest first; the first and the last page are out of reach.
    let last_page = range(u64::MAX - 0xfff, u64::MAX);
    allowed.replace([last_page, range(0x10000, 0x10fff), range(0, 0xfff)].into_iter().map(Ok)).unwrap();
    assert_eq!(ask(&space, &allowed, page), Ok(Iova(0x10000)));
    space.insert(range(0x10000, 0x10000), 0).unwrap();
    assert_eq!(ask(&space, &allowed, page), Err(Errno::ENOSPC));
    // Ranges that touch are one.
    let touching = [range(0x21000, 0x21fff), range(0x20000, 0x20fff), range(0x23000, 0x23fff)];
    allowed.replace(touching.into_iter().map(Ok)).unwrap();
    assert_eq!(ask(&space, &allowed, Placement { length: 0x2000, ..page }), Ok(Iova(0x20000)));
    assert_eq!(ask(&space, &allowed, Placement { length: 0x3000, ..page }), Err(Errno::ENOSPC));
    allowed.replace(core::iter::empty()).unwrap();
    assert_eq!(ask(&space, &allowed, page), Ok(Iova(0x2000)));
}
