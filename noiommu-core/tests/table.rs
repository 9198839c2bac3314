//! The page table against independent models: a plain map of pages, and a plain list of what was mapped.
#![cfg(not(loom))]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use noiommu_core::platform::PhysRun;
use noiommu_core::table::format::{self, Access};
use noiommu_core::table::{Table, TableWriter, Translation};
use noiommu_core::{Errno, Iova, IovaRange, PhysAddr};
use proptest::prelude::*;
use support::HeapFrames;

type Shared = Arc<Table<HeapFrames>>;

fn table() -> (Shared, TableWriter<HeapFrames, Shared>) {
    let table = Arc::new(Table::new(HeapFrames::default()));
    (table.clone(), TableWriter::new(table).unwrap())
}

fn range(first: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova(first), Iova(last)).unwrap()
}

const RW: Access = Access::READ_WRITE;

#[test]
fn starts_at_level_2_and_grows_with_the_iova() {
    for (last_page, level) in
        [(0, 2), ((1u64 << 39) - 4096, 2), (1 << 39, 3), (1 << 48, 4), (1 << 57, 5), (u64::MAX - 4095, 5)]
    {
        let (table, mut writer) = table();
        assert_eq!(table.top_level(), None);
        writer.map(Iova(last_page), PhysAddr(0x5000), 4096, RW, true).unwrap();
        assert_eq!(table.top_level(), Some(level), "{last_page:#x}");
        // And from a low start upwards: the old tables stay reachable.
        if last_page >= 0x10000 {
            writer.map(Iova(0x1000), PhysAddr(0x6000), 4096, RW, true).unwrap();
            assert_eq!(table.lookup(Iova(0x1008)).unwrap().address, PhysAddr(0x6008));
        }
        assert_eq!(table.lookup(Iova(last_page + 4095)).unwrap().address, PhysAddr(0x5fff));
        writer.unmap(IovaRange::ALL).unwrap();
        assert_eq!((table.top_level(), writer.frames_in_use()), (None, 0));
    }
}

#[test]
fn grown_top_comes_down_again() {
    let (table, mut writer) = table();
    writer.map(Iova(0), PhysAddr(0), 4096, RW, true).unwrap();
    let frames = writer.frames_in_use();
    writer.map(Iova(u64::MAX - 4095), PhysAddr(0x1000), 4096, RW, true).unwrap();
    assert_eq!(table.top_level(), Some(5));
    writer.unmap(range(u64::MAX - 4095, u64::MAX)).unwrap();
    assert_eq!((table.top_level(), writer.frames_in_use()), (Some(2), frames));
    assert_eq!(table.lookup(Iova(5)).unwrap().address, PhysAddr(5));
}

#[test]
fn entries_as_the_specification_has_them() {
    let (table, mut writer) = table();
    // 4 KiB, then 2 MiB natural, then 4 MiB over two slots, 1 GiB, 4 GiB over four slots.
    for (iova, pa, length, level, entry) in [
        (0x1000, 0x1234_5000, 0x1000, 0, 0x7000_0000_1234_5001),
        (0x20_0000, 0x4020_0000, 0x20_0000, 1, 0x7000_0000_4020_0001),
        (0x40_0000, 0x40_0000, 0x40_0000, 1, 0x7000_0000_005f_fe01),
        (0x4000_0000, 0x4000_0000, 0x4000_0000, 2, 0x7000_0000_4000_0001),
        (0x1_0000_0000, 0x1_0000_0000, 0x1_0000_0000u64, 2, 0x7000_0001_7fff_fe01),
    ] {
        writer.map(Iova(iova), PhysAddr(pa), length, RW, true).unwrap();
        for at in [iova, iova + length - 1] {
            let (found_level, found) = table.entry(Iova(at)).unwrap();
            assert_eq!((found_level, format::hardware_bits(found)), (level, entry), "at {at:#x}");
        }
    }
}

#[test]
fn half_a_terabyte_is_two_leaves() {
    let (table, mut writer) = table();
    writer.map(Iova(0), PhysAddr(0), 1 << 39, RW, true).unwrap();
    assert_eq!(writer.frames_in_use(), 1);
    assert_eq!(table.lookup(Iova(0)).unwrap().length, 1 << 38);
    assert_eq!(table.run(Iova(0), u64::MAX).unwrap().length, 1 << 39);
}

#[test]
fn bad_requests_change_nothing() {
    let (table, mut writer) = table();
    for (iova, pa, length, errno) in [
        (0x800, 0, 0x1000, Errno::EINVAL),
        (0, 0x800, 0x1000, Errno::EINVAL),
        (0, 0, 0x1800, Errno::EINVAL),
        (0, 0, 0, Errno::EINVAL),
        (u64::MAX - 4095, 0, 0x2000, Errno::EOVERFLOW),
        (0, (1 << 52) - 0x1000, 0x2000, Errno::EINVAL),
        (0, u64::MAX - 4095, 0x2000, Errno::EINVAL),
    ] {
        assert_eq!(writer.map(Iova(iova), PhysAddr(pa), length, RW, true), Err(errno));
    }
    assert_eq!((table.top_level(), writer.frames_in_use()), (None, 0));

    writer.map(Iova(0x20_0000), PhysAddr(0x20_0000), 0x20_0000, RW, true).unwrap();
    let frames = writer.frames_in_use();
    // Collides in the middle, after a first part went in: that part comes out again.
    assert_eq!(writer.map(Iova(0x1f_f000), PhysAddr(0), 0x2000, RW, true), Err(Errno::EEXIST));
    assert_eq!(writer.map(Iova(0x20_1000), PhysAddr(0), 0x1000, RW, true), Err(Errno::EEXIST));
    assert_eq!(table.lookup(Iova(0x1f_f000)), None);
    // Cutting a leaf at either end is refused whole.
    for cut in [range(0x20_1000, 0x3f_ffff), range(0x20_0000, 0x3f_efff), range(0, 0x20_0fff)] {
        assert_eq!(writer.unmap(cut), Err(Errno::EINVAL));
    }
    assert_eq!(table.lookup(Iova(0x20_0000)).unwrap().length, 0x20_0000);
    assert_eq!(writer.frames_in_use(), frames);
}

#[test]
fn one_bad_run_is_all_of_them() {
    let (table, mut writer) = table();
    let run = |address: u64, length: u64| PhysRun { address: PhysAddr(address), length };
    let pages: Vec<_> = (0..700).map(|page| run(0x10_0000 + page * 0x2000, 0x1000)).collect();
    let mut map = |at: u64, behind: PhysRun| {
        let runs = [&pages[..], &[behind], &pages[..3]].concat();
        let outcome = writer.map_runs(Iova(at), &runs, RW, true);
        (outcome, writer.frames_in_use())
    };
    for bad in
        [run(0x800, 0x1000), run(0, 0x1800), run(0, 0), run(1 << 52, 0x1000), run(u64::MAX - 0xfff, 0x1000)]
    {
        assert_eq!(map(0x1f_0000, bad), (Err(Errno::EINVAL), 0), "{bad:?}");
    }
    // It ends, or its last run does, where the IOVA space does.
    let space = 0u64.wrapping_sub(703 << 12);
    assert_eq!(map(space, run(0x5000, 0x1000)), (Err(Errno::EOVERFLOW), 0));
    assert_eq!(map(space, run(0x5000, 0x4000)), (Err(Errno::EOVERFLOW), 0));
    assert_eq!(table.address(Iova(0x1f_0000)), None);
    assert_eq!(map(space - 0x1000, run(0x5000, 0x1000)).0, Ok(()));
    assert_eq!(table.address(Iova(u64::MAX)), Some(PhysAddr(0x10_4fff)));
    writer.unmap(IovaRange::ALL).unwrap();
    assert_eq!((writer.map_runs(Iova(0x1234), &[], RW, true), writer.frames_in_use()), (Ok(()), 0));
}

/// A table that was full of leaves of 2 MiB and went as a whole is used anew for something else, and says nothing of what was in it.
#[test]
#[cfg_attr(miri, ignore = "hundreds of thousands of slots")]
fn a_full_table_comes_back_empty() {
    for first in [0, 1 << 30, 1 << 39] {
        // It is known by its words, of which there are to be some beyond the first.
        let table = Arc::new(Table::new(HeapFrames::reaching(3 * 512)));
        let mut writer = TableWriter::new(table.clone()).unwrap();
        let scattered: Vec<_> =
            (0..512).map(|n| PhysRun { address: PhysAddr((600 - n) << 22), length: 2 << 20 }).collect();
        for turn in 0..3u64 {
            writer.map_runs(Iova(first), &scattered, RW, true).unwrap();
            for n in [0, 1, 255, 511] {
                let at = first + (n << 21) + 5;
                assert_eq!(table.address(Iova(at)), Some(PhysAddr(((600 - n) << 22) + 5)));
                assert_eq!(table.lookup(Iova(at)).unwrap().address, PhysAddr(((600 - n) << 22) + 5));
            }
            // In the middle of more, or alone.
            let beside = (turn == 1).then_some(first + (1 << 30));
            if let Some(beside) = beside {
                writer.map(Iova(beside), PhysAddr(0x7000), 0x1000, RW, true).unwrap();
            }
            writer.unmap(range(first, first + (1 << 30) - 1)).unwrap();
            assert_eq!(beside.and_then(|at| table.address(Iova(at))), beside.map(|_| PhysAddr(0x7000)));
            writer.unmap(IovaRange::ALL).unwrap();
            assert_eq!((table.top_level(), writer.frames_in_use()), (None, 0));
            // As a top, as a table of 2 MiB leaves elsewhere, and of pages beyond the index.
            for other in [first, 5 << 30, 7 << 39] {
                writer.map(Iova(other + (9 << 21)), PhysAddr(2 << 20), 2 << 20, RW, true).unwrap();
                writer.map(Iova(other), PhysAddr(0x5000), 0x1000, RW, true).unwrap();
                for n in (1..512).filter(|n| *n != 9) {
                    let at = Iova(other + (n << 21));
                    assert_eq!((table.lookup(at), table.address(at)), (None, None));
                }
                assert_eq!(table.segments(range(other, other + 0x1fff)).count(), 2, "a page and a hole");
                writer.unmap(range(other, other + (1 << 30) - 1)).unwrap();
            }
            assert_eq!((table.top_level(), writer.frames_in_use()), (None, 0));
        }
    }
}

#[test]
fn one_writer() {
    let (table, writer) = table();
    assert_eq!(TableWriter::new(table.clone()).err(), Some(Errno::EBUSY));
    drop(writer);
    assert_eq!(TableWriter::new(table).err(), Some(Errno::EBUSY));
}

#[test]
fn runs_join_adjacent_leaves_and_stop_at_area_borders() {
    let (table, mut writer) = table();
    // One area of three runs: [0x1000..0x3000) and [0x3000..0x5000) adjacent, [0x5000..0x6000) elsewhere.
    writer.map(Iova(0x1000), PhysAddr(0x11000), 0x2000, RW, false).unwrap();
    writer.map(Iova(0x3000), PhysAddr(0x13000), 0x2000, RW, false).unwrap();
    writer.map(Iova(0x5000), PhysAddr(0x99000), 0x1000, RW, true).unwrap();
    // A second area whose memory follows that of the first.
    writer.map(Iova(0x6000), PhysAddr(0x9a000), 0x1000, RW, true).unwrap();
    let run = |iova, limit| table.run(Iova(iova), limit).map(|run| (run.address.0, run.length));
    assert_eq!(run(0x1000, u64::MAX), Some((0x11000, 0x4000)));
    assert_eq!(run(0x1234, u64::MAX), Some((0x11234, 0x3dcc)));
    assert_eq!(run(0x1234, 0x10), Some((0x11234, 0x10)));
    assert_eq!(run(0x5000, u64::MAX), Some((0x99000, 0x1000)), "not into the next area");
    assert_eq!(run(0x6fff, u64::MAX), Some((0x9afff, 1)));
    assert_eq!((run(0x7000, 1), run(0x1000, 0)), (None, None));
    let segments: Vec<_> = table.segments(range(0x2800, 0x6fff)).collect();
    let brief: Vec<_> = segments.iter().map(|s| s.map(|s| (s.iova.0, s.address.0, s.length))).collect();
    assert_eq!(
        brief,
        [Ok((0x2800, 0x12800, 0x2800)), Ok((0x5000, 0x99000, 0x1000)), Ok((0x6000, 0x9a000, 0x1000))]
    );
    let holed: Vec<_> = table.segments(range(0x6000, 0x7fff)).collect();
    assert_eq!((holed.len(), holed[1]), (2, Err(Errno::ENOENT)));
}

/// The one leaf that is as large as what a top table of its size of address reaches.
#[test]
fn a_leaf_of_all_that_a_level_reaches() {
    let (table, mut writer) = table();
    for before in [false, true] {
        if before {
            writer.map(Iova(1 << 48), PhysAddr(0x1000), 0x1000, RW, true).unwrap();
            writer.unmap(range(1 << 48, (1 << 48) + 0xfff)).unwrap();
        }
        writer.map(Iova(0), PhysAddr(0), 1 << 48, RW, true).unwrap();
        assert_eq!(table.lookup(Iova(1)).unwrap().length, (1 << 48) - 1);
        assert_eq!(table.run(Iova((1 << 48) - 1), u64::MAX).unwrap().address, PhysAddr((1 << 48) - 1));
        assert_eq!(table.lookup(Iova(1 << 48)), None);
        writer.unmap(range(0, (1 << 48) - 1)).unwrap();
        assert_eq!((table.top_level(), writer.frames_in_use()), (None, 0));
    }
}

/// Wherever it lies: the tables on the way do not reach what the top reaches.
#[test]
fn an_area_is_cut_at_any_leaf() {
    for base in [0, 0xca000, 1 << 21, 1 << 30, 1 << 39, 1 << 48, 1 << 57, u64::MAX - 0x3f_ffff] {
        let (table, mut writer) = table();
        writer.map(Iova(base), PhysAddr(0x10_0000), 0x4000, RW, true).unwrap();
        let first = table.lookup(Iova(base)).unwrap().length;
        assert!(first < 0x4000 || base.is_multiple_of(0x4000));
        if first == 0x4000 {
            writer.unmap(IovaRange::ALL).unwrap();
            writer.map(Iova(base), PhysAddr(0x10_1000), 0x4000, RW, true).unwrap();
        }
        assert_eq!(table.run(Iova(base), u64::MAX).unwrap().length, 0x4000);
        let first = table.lookup(Iova(base)).unwrap().length;
        writer.end_area(Iova(base + first - 1)).unwrap();
        assert_eq!(table.run(Iova(base), u64::MAX).unwrap().length, first, "{base:#x}");
        assert_eq!(
            writer.end_area(Iova(base + first)).is_err(),
            table.lookup(Iova(base + first)).unwrap().length > 1
        );
        assert_eq!(writer.end_area(Iova(base.wrapping_sub(1))), Err(Errno::ENOENT));
    }
}

#[test]
fn memory_of_the_table() {
    // 1 GiB of contiguous memory: at most one table beyond the top; scattered and dense: <= 8.1 bytes a page.
    let (_, mut writer) = table();
    writer.map(Iova(0x4000_0000), PhysAddr(0x4000_0000), 1 << 30, RW, true).unwrap();
    assert!(writer.frames_in_use() <= 2);
    writer.unmap(IovaRange::ALL).unwrap();
    let pages = 64 * 512;
    for page in 0..pages {
        writer.map(Iova(page << 12), PhysAddr((pages - page) << 13), 4096, RW, page == pages - 1).unwrap();
    }
    assert!(writer.frames_in_use() * 4096 * 10 <= pages * 81 + 2 * 40960, "{}", writer.frames_in_use());
}

/// Places where tables end or begin, ends of the space included.
fn interesting_base() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX - ((1 << 23) - 1)),
        Just((1u64 << 39) - (1 << 22)),
        Just((1u64 << 48) - (1 << 22)),
        Just((1u64 << 57) - (1 << 22)),
        Just((1u64 << 21) - (1 << 15)),
        Just((1u64 << 30) - (1 << 22)),
        any::<u64>().prop_map(|at| at & !0x3f_ffff & (u64::MAX >> 1)),
    ]
}

/// The plain map of pages: one entry per 4 KiB, and the last page of each area.
#[derive(Default)]
struct Pages {
    map: BTreeMap<u64, (u64, Access, bool)>,
}

impl Pages {
    fn run(&self, iova: u64, limit: u64) -> Option<(u64, u64, Access)> {
        let &(pa, access, mut end) = self.map.get(&(iova >> 12))?;
        let (address, mut length) = (pa + (iova & 0xfff), 0x1000 - (iova & 0xfff));
        while length < limit && !end {
            let Some(next) = iova.checked_add(length) else { break };
            match self.map.get(&(next >> 12)) {
                Some(&(pa, _, last)) if pa == address + length => {
                    length += 0x1000;
                    end = last;
                }
                _ => break,
            }
        }
        (limit > 0).then_some((address, length.min(limit), access))
    }
}

/// Where a piece begins and is, and its bytes.
type Piece = Result<(u64, u64, u64), Errno>;

/// Of the list of pieces, as many as are looked at.
const MOST_PIECES: usize = 100;

impl Pages {
    /// The pieces of `length` bytes from `iova` on, or of those that there are above it.
    fn pieces(&self, iova: u64, length: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let (mut at, mut rest) = (Some(iova), length.min((u64::MAX - iova).saturating_add(1)));
        while let Some(here) = at.filter(|_| rest > 0 && pieces.len() < MOST_PIECES) {
            let Some((address, length, _)) = self.run(here, rest) else {
                pieces.push(Err(Errno::ENOENT));
                break;
            };
            pieces.push(Ok((here, address, length)));
            at = here.checked_add(length);
            rest -= length;
        }
        pieces
    }
}

/// The same by the table.
fn pieces(table: &Shared, iova: u64, length: u64) -> Vec<Piece> {
    let Some(last) = length.checked_sub(1) else { return Vec::new() };
    let segments = table.segments(range(iova, iova.saturating_add(last))).take(MOST_PIECES);
    segments.map(|piece| piece.map(|piece| (piece.iova.0, piece.address.0, piece.length))).collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// Areas of pieces: (pages, where in physical memory, follow the piece before).
    Map {
        at: u64,
        pieces: Vec<(u64, u64, bool)>,
        access: u8,
        /// By one call.
        together: bool,
    },
    Unmap {
        pick: usize,
    },
    Look {
        at: u64,
        limit: u64,
    },
}

fn steps(pages: u64) -> impl Strategy<Value = Vec<Step>> {
    let piece = (
        prop_oneof![1..8u64, Just(512u64), 1..600u64],
        prop_oneof![0..64u64, (0..64u64).prop_map(|n| n * 512), (0..1u64 << 39)],
        any::<bool>(),
    );
    // Scattered memory: page by page through several tables, and a longer piece now and then.
    let page = (
        prop_oneof![60 => Just(1u64), 1 => 1..600u64],
        (0..1u64 << 39),
        prop_oneof![7 => Just(false), 1 => Just(true)],
    );
    let pieces =
        prop_oneof![3 => prop::collection::vec(piece, 1..5), 1 => prop::collection::vec(page, 1..1300)];
    let map = (0..pages, pieces, 1..4u8, any::<bool>())
        .prop_map(|(at, pieces, access, together)| Step::Map { at, pieces, access, together });
    let look = (0..pages << 12, prop_oneof![1..5000u64, Just(u64::MAX), Just(0)])
        .prop_map(|(at, limit)| Step::Look { at, limit });
    let unmap = any::<usize>().prop_map(|pick| Step::Unmap { pick });
    prop::collection::vec(prop_oneof![3 => map, 2 => unmap, 6 => look], 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 400 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_map_of_pages(base in interesting_base(), steps in steps(2048)) {
        let (table, mut writer) = table();
        let mut model = Pages::default();
        let mut areas: Vec<(u64, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Map { at, pieces, access, together } => {
                    let access = Access { read: access & 1 != 0, write: access & 2 != 0 };
                    let first = base + (at << 12);
                    let pages: u64 = pieces.iter().map(|piece| piece.0).sum();
                    let Some(last) = first.checked_add((pages << 12) - 1) else { continue };
                    let free = (first >> 12..=last >> 12).all(|page| !model.map.contains_key(&page));
                    let mut iova = first;
                    let mut before = 0;
                    if together {
                        let mut runs = Vec::new();
                        let mut mapped = Vec::new();
                        for (index, &(count, pa, follow)) in pieces.iter().enumerate() {
                            let (pa, end) = (if follow { before } else { pa << 12 }, index + 1 == pieces.len());
                            runs.push(PhysRun { address: PhysAddr(pa), length: count << 12 });
                            mapped.extend((0..count).map(|page| (
                                (iova >> 12) + page, (pa + (page << 12), access, end && page + 1 == count)
                            )));
                            before = pa + (count << 12);
                            iova = iova.wrapping_add(count << 12);
                        }
                        prop_assert_eq!(
                            writer.map_runs(Iova(first), &runs, access, true),
                            if free { Ok(()) } else { Err(Errno::EEXIST) }
                        );
                        // Or all is as before, which the looks at it tell.
                        if free { areas.push((first, last)); model.map.extend(mapped); }
                        continue;
                    }
                    let mut outcome = Ok(());
                    for (index, &(count, pa, follow)) in pieces.iter().enumerate() {
                        let pa = if follow { before } else { pa << 12 };
                        let end = index + 1 == pieces.len();
                        outcome = writer.map(Iova(iova), PhysAddr(pa), count << 12, access, end);
                        if outcome.is_err() { break; }
                        for page in 0..count {
                            model.map.insert((iova >> 12) + page, (pa + (page << 12), access, end && page + 1 == count));
                        }
                        before = pa + (count << 12);
                        iova = iova.wrapping_add(count << 12);
                    }
                    match outcome {
                        Ok(()) => { prop_assert!(free); areas.push((first, last)); }
                        Err(error) => {
                            prop_assert!(!free && error == Errno::EEXIST);
                            // As the engine does: what this area has so far comes out.
                            if iova > first {
                                writer.unmap(range(first, iova - 1)).unwrap();
                                for page in first >> 12..=(iova - 1) >> 12 { model.map.remove(&page); }
                            }
                        }
                    }
                }
                Step::Unmap { pick } => {
                    if areas.is_empty() { continue; }
                    let (first, last) = areas.swap_remove(pick % areas.len());
                    writer.unmap(range(first, last)).unwrap();
                    for page in first >> 12..=last >> 12 { model.map.remove(&page); }
                }
                Step::Look { at, limit } => {
                    let iova = base + at;
                    let found = table.run(Iova(iova), limit).map(|t| (t.address.0, t.length, t.access));
                    prop_assert_eq!(found, model.run(iova, limit));
                    prop_assert_eq!(pieces(&table, iova, limit), model.pieces(iova, limit));
                    prop_assert_eq!(table.lookup(Iova(iova)).map(|t| t.address.0), model.run(iova, 1).map(|t| t.0));
                    prop_assert_eq!(table.address(Iova(iova)), table.lookup(Iova(iova)).map(|t| t.address));
                }
            }
        }
        for page in model.map.keys() {
            prop_assert_eq!(
                table.run(Iova(page << 12), u64::MAX).map(|t| (t.address.0, t.length, t.access)),
                model.run(page << 12, u64::MAX)
            );
        }
        writer.unmap(IovaRange::ALL).unwrap();
        prop_assert_eq!((table.top_level(), writer.frames_in_use()), (None, 0));
    }

    /// Every leaf size, any place of the 64-bit space, against a list of what was mapped.
    #[test]
    fn agrees_with_a_list_of_runs(
        runs in prop::collection::vec((any::<u64>(), any::<u64>(), 12..52u32, 12..52u32, 1..9u64, any::<u64>()), 1..24),
        looks in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..24),
    ) {
        let (table, mut writer) = table();
        let mut list: Vec<(u64, u64, u64)> = Vec::new();
        for (iova, pa, iova_align, pa_align, count, _) in &runs {
            let length = count << iova_align.min(pa_align).min(&48);
            let iova = iova & !((1u64 << iova_align) - 1);
            let pa = pa & !((1u64 << pa_align) - 1) & ((1 << 52) - 1);
            // Keep the number of leaves small: a piece no longer than eight of the smaller alignment.
            let Some(last) = iova.checked_add(length - 1) else { continue };
            let fits = pa + length <= 1 << 52;
            let free = list.iter().all(|&(first, _, bytes)| last < first || iova > first + (bytes - 1));
            let expected = if !fits { Err(Errno::EINVAL) } else if !free { Err(Errno::EEXIST) } else { Ok(()) };
            prop_assert_eq!(writer.map(Iova(iova), PhysAddr(pa), length, RW, true), expected);
            if expected.is_ok() { list.push((iova, pa, length)); }
        }
        let model = |iova: u64| list.iter().find(|&&(first, _, bytes)| first <= iova && iova - first < bytes)
            .map(|&(first, pa, bytes)| (pa + (iova - first), bytes - (iova - first)));
        for (index, random) in looks {
            for iova in [random, if list.is_empty() { 0 } else {
                let (first, _, bytes) = list[index.index(list.len())];
                first + random % bytes
            }] {
                let found = table.run(Iova(iova), u64::MAX).map(|t| (t.address.0, t.length));
                prop_assert_eq!(found, model(iova));
                if let Some(Translation { address, length, .. }) = table.lookup(Iova(iova)) {
                    prop_assert_eq!(Some(address.0), model(iova).map(|m| m.0));
                    prop_assert!(length <= model(iova).unwrap().1);
                }
            }
        }
        let last = list.pop();
        for (first, pa, bytes) in list {
            writer.unmap(range(first, first + (bytes - 1))).unwrap();
            prop_assert_eq!(table.lookup(Iova(first)), None);
            prop_assert_eq!(table.address(Iova(first)), None);
            if let Some((kept, at, _)) = last {
                prop_assert_eq!(table.address(Iova(kept)), Some(PhysAddr(at)));
                prop_assert_eq!(table.lookup(Iova(kept)).map(|t| t.address.0), Some(at), "lost after {:#x}->{:#x}", first, pa);
            }
        }
        writer.unmap(IovaRange::ALL).unwrap();
        prop_assert_eq!(writer.frames_in_use(), 0);
    }

    /// Out of frames at any point: ENOMEM, and the table as before.
    #[test]
    fn out_of_frames_leaves_the_table_as_before(budget in 0..12u64, at in interesting_base(), length in 1..2048u64) {
        let table = Arc::new(Table::new(HeapFrames::limited(budget)));
        let mut writer = TableWriter::new(table.clone()).unwrap();
        let kept = writer.map(Iova(0x7000_0000), PhysAddr(0x1000), 0x3000, RW, true).is_ok();
        let before = (table.top_level(), writer.frames_in_use());
        // An odd page offset: all leaves are of 4 KiB, many tables.
        let Some(first) = at.checked_add(0x80_0000) else { return Ok(()) };
        match writer.map(Iova(first), PhysAddr(0x1000), length << 12, RW, true) {
            Ok(()) => writer.unmap(range(first, first + ((length << 12) - 1))).unwrap(),
            Err(error) => prop_assert_eq!(error, Errno::ENOMEM),
        }
        prop_assert_eq!((table.top_level(), writer.frames_in_use()), before);
        prop_assert_eq!(table.lookup(Iova(0x7000_1000)).is_some(), kept);
        prop_assert_eq!(table.lookup(Iova(first)), None);
    }
}
