//! Every allocation of the IOVA space made to fail in turn: ENOMEM, and nothing has changed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ptr;

use noiommu_core::{AllowedRanges, Errno, Fit, Iova, IovaRange, IovaSpace};

thread_local! {
    /// Allocations of this thread that still succeed; `None`: all.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

struct Failing;

fn refuse() -> bool {
    LEFT.with(|left| match left.get() {
        None => false,
        Some(0) => true,
        Some(count) => {
            left.set(Some(count - 1));
            false
        }
    })
}

// SAFETY: all is the system's allocator, but for null answers, which every caller must expect.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, handed on.
        if refuse() { ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise, handed on.
        if refuse() { ptr::null_mut() } else { unsafe { System.realloc(memory, layout, size) } }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Does something with memory for `count` allocations only.
fn with_allocations<R>(count: u32, work: impl FnOnce() -> R) -> R {
    LEFT.set(Some(count));
    let result = work();
    LEFT.set(None);
    result
}

/// Repeats something with one allocation more each time until it succeeds, and answers how often it failed.
fn fail_in_turn(mut work: impl FnMut() -> Result<(), Errno>, mut unchanged: impl FnMut()) -> u32 {
    for count in 0.. {
        match with_allocations(count, &mut work) {
            Ok(()) => return count,
            Err(error) => {
                assert_eq!(error, Errno::ENOMEM);
                unchanged();
            }
        }
    }
    unreachable!()
}

fn page(number: u64) -> IovaRange {
    IovaRange::with_length(Iova(number * 0x1000), 0x1000).unwrap()
}

fn assert_same<const N: usize>(space: &IovaSpace<u32, N>, model: &BTreeMap<u64, u32>) {
    assert_eq!(space.len(), model.len());
    let areas = space.iter().map(|area| (area.range, area.value));
    assert!(areas.eq(model.iter().map(|(&number, &value)| (page(number), value))));
    // The holes are known too: the lowest one of two pages.
    let hole =
        (0..).find(|number| !model.contains_key(number) && !model.contains_key(&(number + 1))).unwrap();
    let fit = Fit { length: 0x2000, alignment: 0x1000, page_offset: 0 };
    assert_eq!(space.find_gap(IovaRange::ALL, fit), Some(Iova(hole * 0x1000)));
}

fn insertions_fail<const N: usize>(order: impl Iterator<Item = u64>) {
    let mut model = BTreeMap::new();
    let mut space = IovaSpace::<u32, N>::with_fan_out();
    let mut failures = 0;
    for (value, number) in (0..).zip(order) {
        let cell = Cell::new(Some(&mut space));
        // Both closures look at the one space, never at once.
        failures += fail_in_turn(
            || {
                let space = cell.take().unwrap();
                let result = space.insert(page(number), value);
                cell.set(Some(space));
                result
            },
            || {
                let space = cell.take().unwrap();
                assert_same(space, &model);
                cell.set(Some(space));
            },
        );
        model.insert(number, value);
    }
    assert_same(&space, &model);
    assert!(failures > 10, "only {failures} allocations");

    // Removing allocates nothing, and neither does an insertion that is refused.
    for &number in model.keys().filter(|number| *number % 3 != 0) {
        with_allocations(0, || space.remove(page(number).first())).unwrap();
    }
    model.retain(|number, _| number % 3 == 0);
    assert_same(&space, &model);
    for &number in model.keys() {
        assert_eq!(with_allocations(0, || space.insert(page(number), 0)), Err(Errno::EEXIST));
    }
    assert_same(&space, &model);
}

#[test]
fn insertions_fail_and_change_nothing() {
    insertions_fail::<4>(0..3000);
    insertions_fail::<4>((0..3000).rev());
    insertions_fail::<4>((0..3000).map(|n| n * 1777 % 4001));
    insertions_fail::<32>((0..20_000).map(|n| n * 7919 % 20_011));
}

#[test]
fn allowed_ranges_fail_and_stay() {
    let mut allowed = AllowedRanges::new();
    allowed.replace([Ok(page(3))].into_iter()).unwrap();
    let cell = Cell::new(Some(&mut allowed));
    let failures = fail_in_turn(
        || {
            let allowed = cell.take().unwrap();
            let result = allowed.replace((0..5000).map(|n| Ok(page(n * 2))));
            cell.set(Some(allowed));
            result
        },
        || {
            let allowed = cell.take().unwrap();
            assert!(allowed.iter().eq([page(3)]));
            cell.set(Some(allowed));
        },
    );
    assert!(failures > 5);
    assert_eq!(allowed.iter().count(), 5000);
}
