//! Objects, domains and GET_PA, as the kernel's rules have them.
#![cfg(not(loom))]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use noiommu_core::platform::Caller;
use noiommu_core::table::format::Access;
use noiommu_core::{Context, CopyRequest, Errno, Iova, IovaRange, MapRequest, ObjectId, PhysAddr, Place};
use proptest::prelude::*;
use support::{Fake, place};

const ROOT: Caller = Caller { raw_io: true, ipc_lock: true, resource: true };

fn context() -> Context<Fake> {
    Context::new(Fake::default())
}

fn request(place: Place, va: u64, length: u64) -> MapRequest<u64> {
    MapRequest { backing: va, address: va, length, access: Access::READ_WRITE, place }
}

fn map(context: &mut Context<Fake>, ioas: ObjectId, iova: u64, va: u64, length: u64) -> Result<u64, Errno> {
    context.map(ioas, ROOT, request(Place::Fixed(Iova(iova)), va, length)).map(|iova| iova.0)
}

fn pa(context: &Context<Fake>, ioas: ObjectId, iova: u64, length: u64) -> Result<(u64, u64), Errno> {
    context.get_pa(ROOT, ioas, Iova(iova), length).map(|(address, length)| (address.0, length))
}

fn range(first: u64, length: u64) -> IovaRange {
    IovaRange::with_length(Iova(first), length).unwrap()
}

#[test]
fn ids_count_from_one_and_the_lowest_free_is_next() {
    let mut context = context();
    let ids: Vec<_> = (0..3).map(|_| context.ioas_alloc().unwrap().0).collect();
    assert_eq!(ids, [1, 2, 3]);
    context.destroy(ObjectId(1)).unwrap();
    context.destroy(ObjectId(2)).unwrap();
    assert_eq!(context.bind().unwrap(), ObjectId(1));
    assert_eq!(context.ioas_alloc().unwrap(), ObjectId(2));
    assert_eq!(context.ioas_alloc().unwrap(), ObjectId(4));
    for id in [0, 5, u32::MAX] {
        assert_eq!(context.destroy(ObjectId(id)), Err(Errno::ENOENT));
    }
}

#[test]
fn devices_on_one_ioas_share_an_automatic_hwpt() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    let (first, second) = (context.bind().unwrap(), context.bind().unwrap());
    let hwpt = context.attach(first, ioas).unwrap();
    assert_eq!(context.attach(second, ioas), Ok(hwpt));
    assert_eq!(context.attach(second, ioas), Ok(hwpt), "again to the same");
    for busy in [ioas, hwpt, first] {
        assert_eq!(context.destroy(busy), Err(Errno::EBUSY));
    }
    context.detach(first).unwrap();
    context.detach(first).unwrap();
    assert_eq!(context.destroy(hwpt), Err(Errno::EBUSY));
    context.detach(second).unwrap();
    assert_eq!(context.destroy(hwpt), Err(Errno::ENOENT), "gone with the last device");
    context.destroy(ioas).unwrap();
    // To a second IOAS: replaced.
    let (a, b) = (context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap());
    context.attach(first, a).unwrap();
    context.attach(first, b).unwrap();
    context.destroy(a).unwrap();
    assert_eq!(context.destroy(b), Err(Errno::EBUSY));
    context.unbind(first).unwrap();
    context.destroy(b).unwrap();
}

#[test]
fn wrong_objects() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    let device = context.bind().unwrap();
    let none = ObjectId(77);
    assert_eq!(context.attach(none, ioas), Err(Errno::ENOENT));
    assert_eq!(context.attach(ioas, ioas), Err(Errno::ENOENT));
    assert_eq!(context.attach(device, none), Err(Errno::ENOENT));
    assert_eq!(context.attach(device, device), Err(Errno::EINVAL));
    assert_eq!(context.hwpt_alloc(device, device, None), Err(Errno::EINVAL));
    assert_eq!(context.hwpt_alloc(device, none, None), Err(Errno::EINVAL));
    assert_eq!(context.hwpt_alloc(ioas, ioas, None), Err(Errno::ENOENT));
    assert_eq!(map(&mut context, device, 0, 0, 4096), Err(Errno::ENOENT));
    assert_eq!(context.unmap(device, IovaRange::ALL), Err(Errno::ENOENT));
    assert_eq!(pa(&context, device, 0, 1), Err(Errno::ENOENT));
    assert_eq!(context.detach(ioas), Err(Errno::ENOENT));
    assert_eq!(context.unbind(ioas), Err(Errno::ENOENT));
}

#[test]
fn memory_is_pinned_while_a_domain_exists() {
    let mut context = context();
    let pinned = context.platform().pinned.clone();
    let ioas = context.ioas_alloc().unwrap();
    let device = context.bind().unwrap();
    map(&mut context, ioas, 0x1000, 0x7000_0000, 0x3000).unwrap();
    assert_eq!((pinned.get(), pa(&context, ioas, 0x1000, 1)), (0, Err(Errno::EOPNOTSUPP)));
    context.attach(device, ioas).unwrap();
    assert_eq!(pinned.get(), 0x3000);
    assert_eq!(pa(&context, ioas, 0x1010, u64::MAX), Ok((place(0x7000_0010), 0x2ff0)));
    map(&mut context, ioas, 0x10000, 0x7100_0000, 0x1000).unwrap();
    assert_eq!(pinned.get(), 0x4000);
    // A manual HWPT keeps it all when the device goes.
    let hwpt = context.hwpt_alloc(device, ioas, None).unwrap();
    context.detach(device).unwrap();
    assert_eq!((pinned.get(), pa(&context, ioas, 0x1000, 1)), (0x4000, Ok((place(0x7000_0000), 1))));
    assert_eq!(context.attach(device, hwpt), Ok(hwpt));
    assert_eq!(context.destroy(hwpt), Err(Errno::EBUSY));
    context.detach(device).unwrap();
    context.destroy(hwpt).unwrap();
    assert_eq!((pinned.get(), context.usage(ioas).unwrap().table_frames), (0, 0));
    assert_eq!(pa(&context, ioas, 0x1000, 1), Err(Errno::EOPNOTSUPP));
    context.attach(device, ioas).unwrap();
    assert_eq!(context.unmap(ioas, IovaRange::ALL), Ok(0x4000));
    assert_eq!(pinned.get(), 0);
}

#[test]
fn get_pa_checks_in_order() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    let nobody = Caller::default();
    let bad = ObjectId(9);
    assert_eq!(context.get_pa(nobody, bad, Iova(u64::MAX), 0), Err(Errno::EPERM));
    assert_eq!(pa(&context, bad, u64::MAX, 0), Err(Errno::EINVAL));
    assert_eq!(pa(&context, bad, u64::MAX, 1), Err(Errno::EOVERFLOW));
    assert_eq!(pa(&context, bad, 0, 1), Err(Errno::ENOENT));
    assert_eq!(pa(&context, ioas, 0, 1), Err(Errno::ENOENT));
}

#[test]
fn the_ends_of_the_space_are_usable() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    let device = context.bind().unwrap();
    context.attach(device, ioas).unwrap();
    map(&mut context, ioas, 0, 0x1000, 0x1000).unwrap();
    map(&mut context, ioas, u64::MAX - 0xfff, 0x2000, 0x1000).unwrap();
    assert_eq!(pa(&context, ioas, 0, 1).unwrap().0, place(0x1000));
    assert_eq!(pa(&context, ioas, u64::MAX - 1, 10).unwrap(), (place(0x2000) + 0xffe, 2));
    assert_eq!(map(&mut context, ioas, u64::MAX - 0xfff, 0, 0x2000), Err(Errno::EOVERFLOW));
    assert_eq!(context.unmap(ioas, range(u64::MAX - 0xfff, 0x1000)), Ok(0x1000));
}

#[test]
fn alignment_is_1_without_a_domain_and_4096_with_one() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    let device = context.bind().unwrap();
    map(&mut context, ioas, 0x1001, 0x5001, 0x10).unwrap();
    assert_eq!(context.attach(device, ioas), Err(Errno::EADDRINUSE));
    assert_eq!(context.unmap(ioas, range(0x1001, 0x10)), Ok(0x10));
    map(&mut context, ioas, 0x1000, 0x5008, 0x1000).unwrap();
    assert_eq!(context.attach(device, ioas), Err(Errno::EADDRINUSE), "misaligned in its memory alone");
    context.unmap(ioas, IovaRange::ALL).unwrap();
    context.attach(device, ioas).unwrap();
    for (iova, va, length) in [(0x1001, 0, 0x1000), (0x1000, 1, 0x1000), (0x1000, 0, 0x1001)] {
        assert_eq!(map(&mut context, ioas, iova, va, length), Err(Errno::EINVAL));
    }
    context.detach(device).unwrap();
    map(&mut context, ioas, 1, 0, 1).unwrap();
}

#[test]
fn requests_that_make_no_sense() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    assert_eq!(map(&mut context, ioas, 0x1000, 0, 0), Err(Errno::EINVAL));
    let none = MapRequest {
        access: Access { read: false, write: false },
        ..request(Place::Fixed(Iova(0x1000)), 0x1000, 0x1000)
    };
    assert_eq!(context.map(ioas, ROOT, none), Err(Errno::EINVAL));
    map(&mut context, ioas, 0x1000, 0, 0x2000).unwrap();
    assert_eq!(map(&mut context, ioas, 0x2fff, 0, 1), Err(Errno::EEXIST));
    assert_eq!(context.map(ioas, ROOT, request(Place::Automatic, 0, u64::MAX / 2)), Err(Errno::EOVERFLOW));
}

#[test]
fn unmap_takes_whole_areas_from_below() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    assert_eq!(context.unmap(ioas, IovaRange::ALL), Ok(0));
    assert_eq!(context.unmap(ioas, range(0, 0x1000)), Err(Errno::ENOENT));
    for iova in [0x1000, 0x2000, 0x4000] {
        map(&mut context, ioas, iova, 0x9000, 0x1000).unwrap();
    }
    assert_eq!(context.unmap(ioas, range(0x1800, 0x100)), Err(Errno::ENOENT), "part of one");
    assert_eq!(context.unmap(ioas, range(0x1000, 0x3800)), Err(Errno::ENOENT), "two, and part of the third");
    assert_eq!(context.usage(ioas).unwrap().areas, 1, "the two are gone all the same");
    assert_eq!(context.unmap(ioas, range(0, 0x10000)), Ok(0x1000));
}

#[test]
fn failed_pins_leave_nothing() {
    let mut context = context();
    let pinned = context.platform().pinned.clone();
    let ioas = context.ioas_alloc().unwrap();
    let device = context.bind().unwrap();
    for (iova, length) in [(0x1000, 0x3000), (0x10_0000, 0x4000), (1 << 40, 0x1000)] {
        map(&mut context, ioas, iova, iova, length).unwrap();
    }
    for pins in 0..3 {
        context.platform().pins_left.set(Some(pins));
        assert_eq!(context.attach(device, ioas), Err(Errno::EFAULT));
        assert_eq!((pinned.get(), context.usage(ioas).unwrap().table_frames), (0, 0));
    }
    context.platform().pins_left.set(None);
    context.platform().addresses_fail.set(true);
    assert_eq!(context.attach(device, ioas), Err(Errno::EIO));
    context.platform().addresses_fail.set(false);
    context.platform().short.set(true);
    assert_eq!(context.attach(device, ioas), Err(Errno::EIO));
    context.platform().short.set(false);
    assert_eq!((pinned.get(), context.usage(ioas).unwrap().table_frames), (0, 0));
    context.attach(device, ioas).unwrap();
    let frames = context.usage(ioas).unwrap();
    context.platform().addresses_fail.set(true);
    assert_eq!(map(&mut context, ioas, 0x20_0000, 0, 0x4000), Err(Errno::EIO));
    assert_eq!((pinned.get(), context.usage(ioas).unwrap()), (0x8000, frames));
    assert_eq!(pa(&context, ioas, 0x20_0000, 1), Err(Errno::ENOENT));
}

fn copy(
    context: &mut Context<Fake>,
    from: ObjectId,
    iova: u64,
    length: u64,
    to: ObjectId,
    at: u64,
) -> Result<u64, Errno> {
    let place = Place::Fixed(Iova(at));
    let access = Access::READ_WRITE;
    let request = CopyRequest { source: from, source_iova: Iova(iova), length, access, place };
    context.copy(to, request).map(|iova| iova.0)
}

#[test]
fn copies_share_memory_and_pins() {
    let mut context = context();
    let pinned = context.platform().pinned.clone();
    let (a, b) = (context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap());
    let (first, second) = (context.bind().unwrap(), context.bind().unwrap());
    map(&mut context, a, 0x10000, 0x5000_0000, 0x4000).unwrap();
    map(&mut context, a, 0x14000, 0x6000_0000, 0x4000).unwrap();
    assert_eq!(copy(&mut context, a, 0x12000, 0x7000, b, 0), Err(Errno::ENOENT), "a hole at the end");
    assert_eq!(context.usage(b).unwrap().areas, 0);
    // Two areas, the inner halves.
    assert_eq!(copy(&mut context, a, 0x12000, 0x4000, b, 0x1000), Ok(0x1000));
    assert_eq!(context.usage(b).unwrap().areas, 2);
    context.attach(second, b).unwrap();
    assert_eq!(pinned.get(), 0x4000);
    assert_eq!(pa(&context, b, 0x1000, u64::MAX), Ok((place(0x5000_2000), 0x2000)));
    assert_eq!(pa(&context, b, 0x3000, 1), Ok((place(0x6000_0000), 1)));
    context.attach(first, a).unwrap();
    assert_eq!(pinned.get(), 0x8000, "what is pinned is not pinned again");
    assert_eq!(pa(&context, a, 0x13000, u64::MAX), Ok((place(0x5000_3000), 0x1000)));
    context.detach(second).unwrap();
    assert_eq!(pinned.get(), 0x8000, "the other area needs it still");
    context.unmap(a, IovaRange::ALL).unwrap();
    assert_eq!((pinned.get(), context.usage(b).unwrap().areas), (0, 2));
    context.attach(second, b).unwrap();
    assert_eq!((pinned.get(), pa(&context, b, 0x4fff, 9)), (0x4000, Ok((place(0x6000_1fff), 1))));
}

#[test]
fn only_what_is_not_pinned_yet_is_pinned() {
    let mut context = context();
    let pinned = context.platform().pinned.clone();
    let (a, b) = (context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap());
    let (first, second) = (context.bind().unwrap(), context.bind().unwrap());
    map(&mut context, a, 0x10000, 0x5000_0000, 0x5000).unwrap();
    // The second and the fourth page of five.
    copy(&mut context, a, 0x11000, 0x1000, b, 0x1000).unwrap();
    copy(&mut context, a, 0x13000, 0x1000, b, 0x2000).unwrap();
    context.attach(second, b).unwrap();
    assert_eq!(pinned.get(), 0x2000);
    context.attach(first, a).unwrap();
    assert_eq!(pinned.get(), 0x5000);
    assert_eq!(pa(&context, a, 0x13000, u64::MAX), Ok((place(0x5000_3000), 0x1000)));
    context.unmap(b, range(0x1000, 0x1000)).unwrap();
    assert_eq!(pinned.get(), 0x5000);
    context.detach(first).unwrap();
    assert_eq!(pinned.get(), 0x1000);
}

#[test]
fn a_copy_takes_the_places_of_what_is_pinned() {
    let mut context = context();
    let (a, b) = (context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap());
    let (first, second) = (context.bind().unwrap(), context.bind().unwrap());
    context.attach(first, a).unwrap();
    context.attach(second, b).unwrap();
    map(&mut context, a, 0x10000, 0x5000_0000, 0x4000).unwrap();
    // Nothing may be pinned any more: all is there already.
    context.platform().pins_left.set(Some(0));
    assert_eq!(copy(&mut context, a, 0x11000, 0x3000, b, 0x9000), Ok(0x9000));
    assert_eq!(pa(&context, b, 0x9000, u64::MAX), Ok((place(0x5000_1000), 0x3000)));
    assert_eq!(map(&mut context, a, 0x20000, 0x7000_0000, 0x1000), Err(Errno::EFAULT));
}

#[test]
fn a_copy_cannot_write_what_was_mapped_without() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    let access = Access { read: true, write: false };
    let read_only = MapRequest { access, ..request(Place::Fixed(Iova(0x1000)), 0x1000, 0x1000) };
    context.map(ioas, ROOT, read_only).unwrap();
    assert_eq!(
        copy(&mut context, ioas, 0x1000, 0x1000, ioas, 0x1000),
        Err(Errno::EEXIST),
        "the place comes first"
    );
    assert_eq!(copy(&mut context, ioas, 0x1000, 0x1000, ioas, 0x5000), Err(Errno::EPERM));
    assert_eq!(context.usage(ioas).unwrap().areas, 1);
}

#[test]
fn areas_of_small_pages_can_be_cut() {
    let mut context = context();
    let pinned = context.platform().pinned.clone();
    let ioas = context.ioas_alloc().unwrap();
    let device = context.bind().unwrap();
    context.attach(device, ioas).unwrap();
    map(&mut context, ioas, 0x10000, 0x5000_0000, 0x8000).unwrap();
    assert_eq!(context.set_large_pages(ioas, false), Err(Errno::EINVAL), "something is mapped");
    assert_eq!(context.cut(ioas, Iova(0x11fff)), Err(Errno::EINVAL));
    context.unmap(ioas, IovaRange::ALL).unwrap();
    context.set_large_pages(ioas, false).unwrap();
    map(&mut context, ioas, 0x10000, 0x5000_0000, 0x8000).unwrap();
    assert_eq!(context.cut(ioas, Iova(0x11000)), Err(Errno::EINVAL), "inside a page");
    for at in [0x11fff, 0x17fff, 0x10000, 0x9000] {
        context.cut(ioas, Iova(at)).unwrap();
    }
    assert_eq!(context.usage(ioas).unwrap().areas, 2);
    let totals = context.totals();
    assert_eq!(
        (totals.areas, totals.bytes, totals.maps, totals.unmaps),
        (2, 0x8000, 2, 1),
        "one map, cut in two"
    );
    assert_eq!(pa(&context, ioas, 0x10000, u64::MAX), Ok((place(0x5000_0000), 0x2000)), "not past the cut");
    assert_eq!(pa(&context, ioas, 0x12000, u64::MAX), Ok((place(0x5000_2000), 0x2000)));
    assert_eq!(context.unmap(ioas, range(0x10000, 0x2000)), Ok(0x2000));
    assert_eq!(pinned.get(), 0x8000, "pinned in one piece, so kept in one piece");
    assert_eq!(pa(&context, ioas, 0x14000, u64::MAX), Ok((place(0x5000_4000), 0x4000)));
    assert_eq!(context.unmap(ioas, IovaRange::ALL), Ok(0x6000));
    assert_eq!((pinned.get(), context.usage(ioas).unwrap().table_frames), (0, 0));
    let totals = context.totals();
    assert_eq!(
        (totals.areas, totals.bytes, totals.maps, totals.unmaps, totals.table_frames),
        (0, 0, 2, 3, 0)
    );
}

#[test]
fn the_choice_of_small_pages_asks_for_whole_ones() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    map(&mut context, ioas, 0x1001, 0x5001, 0x10).unwrap();
    assert_eq!(context.set_large_pages(ioas, false), Err(Errno::EADDRINUSE));
    assert_eq!(context.large_pages(ioas), Ok(true));
    context.unmap(ioas, IovaRange::ALL).unwrap();
    context.set_large_pages(ioas, false).unwrap();
    assert_eq!(context.iova_alignment(ioas), Ok(4096));
    assert_eq!(map(&mut context, ioas, 0x1001, 0x5001, 0x10), Err(Errno::EINVAL));
    context.set_large_pages(ioas, true).unwrap();
    assert_eq!(context.iova_alignment(ioas), Ok(1));
}

#[test]
fn pasid_zero_is_the_device_by_another_name() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    let device = context.bind().unwrap();
    assert_eq!(context.attach_pasid(device, ioas, 1), Err(Errno::EINVAL));
    assert_eq!(context.attach_pasid(device, ObjectId(9), 1), Err(Errno::ENOENT));
    assert_eq!(context.attach_pasid(device, ioas, 1 << 31), Err(Errno::ENOSPC));
    context.attach_pasid(device, ioas, 0).unwrap();
    assert_eq!(context.attach(device, ioas), Err(Errno::EBUSY));
    context.detach(device).unwrap();
    assert_eq!(context.has_domain(ioas), Ok(true));
    context.detach_pasid(device, 0).unwrap();
    assert_eq!(context.has_domain(ioas), Ok(false));
}

#[test]
fn fault_queues_hold_each_other() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    let device = context.bind().unwrap();
    let queue = context.fault_queue_alloc().unwrap();
    assert_eq!(context.hwpt_alloc(device, ioas, Some(ioas)), Err(Errno::ENOENT));
    assert_eq!(context.has_domain(ioas), Ok(false));
    let hwpt = context.hwpt_alloc(device, ioas, Some(queue)).unwrap();
    context.fault_queue_closed(queue);
    assert_eq!(context.destroy(queue), Err(Errno::EBUSY));
    context.destroy(hwpt).unwrap();
    context.destroy(queue).unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    Copy { from: u64, pages: u64, at: u64 },
    Map { at: Option<u64>, va: u64, pages: u64 },
    Unmap { first: u64, pages: u64 },
    Attach { device: usize },
    Detach { device: usize },
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 300 }, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any order of operations: addresses, pins and areas are those of a plain map from page to page.
    #[test]
    fn agrees_with_a_plain_map(ops in prop::collection::vec(prop_oneof![
        4 => (prop::option::of(0..64u64), 0..1u64 << 20, 1..9u64).prop_map(|(at, va, pages)| Op::Map { at, va, pages }),
        2 => (0..64u64, 1..12u64, 0..64u64).prop_map(|(from, pages, at)| Op::Copy { from, pages, at }),
        2 => (0..64u64, 1..33u64).prop_map(|(first, pages)| Op::Unmap { first, pages }),
        2 => (0..2usize).prop_map(|device| Op::Attach { device }),
        1 => (0..2usize).prop_map(|device| Op::Detach { device }),
    ], 1..60)) {
        let mut context = context();
        let pinned = context.platform().pinned.clone();
        let ioas = context.ioas_alloc().unwrap();
        let devices = [context.bind().unwrap(), context.bind().unwrap()];
        let mut attached = [false; 2];
        // First page -> (pages, VA page).
        let mut model: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let (mut pieces, mut copied) = (Vec::new(), false);
        for op in ops {
            match op {
                Op::Map { at, va, pages } => {
                    let free = at.is_none_or(|at| model.iter().all(|(&first, &(count, _))| at + pages <= first || first + count <= at));
                    let place = at.map_or(Place::Automatic, |at| Place::Fixed(Iova(at << 12)));
                    match context.map(ioas, ROOT, request(place, va << 12, pages << 12)) {
                        Ok(iova) => {
                            prop_assert!(free && at.is_none_or(|at| at << 12 == iova.0) && iova.0 & 0xfff == 0);
                            prop_assert!(model.iter().all(|(&first, &(count, _))| (iova.0 >> 12) + pages <= first || first + count <= iova.0 >> 12));
                            model.insert(iova.0 >> 12, (pages, va));
                        }
                        Err(error) => prop_assert!(!free && error == Errno::EEXIST),
                    }
                }
                Op::Copy { from, pages, at } => {
                    let page_of = |page: u64| model.range(..=page).next_back()
                        .filter(|&(&first, &(count, _))| page < first + count).map(|(&first, &(count, va))| (first, first + count, va + page - first));
                    let whole = (from..from + pages).all(|page| page_of(page).is_some());
                    let free = model.iter().all(|(&first, &(count, _))| at + pages <= first || first + count <= at);
                    let expected = if !whole { Err(Errno::ENOENT) } else if !free { Err(Errno::EEXIST) } else { Ok(at << 12) };
                    prop_assert_eq!(copy(&mut context, ioas, from << 12, pages << 12, ioas, at << 12), expected);
                    let mut page = from;
                    while expected.is_ok() && page < from + pages {
                        let (_, end, va) = page_of(page).unwrap();
                        let count = end.min(from + pages) - page;
                        pieces.push((at + page - from, (count, va)));
                        page += count;
                    }
                    copied |= !pieces.is_empty();
                    model.extend(pieces.drain(..));
                }
                Op::Unmap { first, pages } => {
                    let touched: Vec<_> = model.iter().filter(|&(&at, &(count, _))| at < first + pages && first < at + count)
                        .map(|(&at, &(count, _))| (at, count)).collect();
                    let mut expected = if touched.is_empty() { Err(Errno::ENOENT) } else { Ok(0) };
                    for (at, count) in touched {
                        if at < first || at + count > first + pages { expected = Err(Errno::ENOENT); break; }
                        model.remove(&at);
                        expected = expected.map(|bytes| bytes + (count << 12));
                    }
                    prop_assert_eq!(context.unmap(ioas, range(first << 12, pages << 12)), expected);
                }
                Op::Attach { device } => { context.attach(devices[device], ioas).unwrap(); attached[device] = true; }
                Op::Detach { device } => { context.detach(devices[device]).unwrap(); attached[device] = false; }
            }
            let live = attached.contains(&true);
            let (usage, totals) = (context.usage(ioas).unwrap(), context.totals());
            prop_assert_eq!(usage.areas, model.len());
            prop_assert_eq!((totals.ioases, totals.areas, totals.table_frames), (1, usage.areas as u64, usage.table_frames));
            prop_assert_eq!(totals.bytes, model.values().map(|area| area.0 << 12).sum::<u64>());
            // Copies share; how much, the sequences above say. At most every area has its own, at least every page has one.
            let most: u64 = model.values().map(|area| area.0 << 12).sum();
            let pages: BTreeSet<u64> = model.values().flat_map(|&(count, va)| va..va + count).collect();
            match live {
                false => prop_assert_eq!(pinned.get(), 0),
                true if copied => prop_assert!(pinned.get() >= (pages.len() as u64) << 12),
                true => prop_assert_eq!(pinned.get(), most),
            }
            for (&first, &(count, va)) in &model {
                for page in 0..count {
                    let found = pa(&context, ioas, ((first + page) << 12) + 5, 1);
                    let expected = if live { Ok((place(((va + page) << 12) + 5), 1)) } else { Err(Errno::EOPNOTSUPP) };
                    prop_assert_eq!(found, expected);
                }
                // Never past the area's end, joined as far as pages are adjacent.
                if live {
                    let mut run = 1;
                    while run < count && place((va + run) << 12) == place(va << 12) + (run << 12) { run += 1; }
                    prop_assert_eq!(pa(&context, ioas, first << 12, u64::MAX), Ok((place(va << 12), run << 12)));
                }
            }
            if !live { prop_assert_eq!(context.usage(ioas).unwrap().table_frames, 0); }
        }
        prop_assert!(place(0x1234) <= PhysAddr::MAX.0);
    }
}

/// Linux 7.3 computes the end of the first run behind the last IOVA as 0, and finds nothing left for the second.
#[test]
fn at_the_end_of_the_space_memory_is_contiguous_or_refused() {
    let mut context = context();
    let ioas = context.ioas_alloc().unwrap();
    let device = context.bind().unwrap();
    context.attach(device, ioas).unwrap();
    let two = u64::MAX - 0x1fff;
    assert_ne!(place(0x7000) + 0x1000, place(0x8000), "the fourth page and the fifth are apart");
    assert_eq!(map(&mut context, ioas, two, 0x7000, 0x2000), Err(Errno::EINVAL));
    assert_eq!(context.platform().pinned.get(), 0);
    assert_eq!(map(&mut context, ioas, two, 0x4000, 0x2000), Ok(two));
    assert_eq!(pa(&context, ioas, two, u64::MAX), Ok((place(0x4000), 0x2000)));
    context.unmap(ioas, IovaRange::ALL).unwrap();
    assert_eq!(map(&mut context, ioas, two - 0x1000, 0x7000, 0x2000), Ok(two - 0x1000), "a page before it");
    context.unmap(ioas, IovaRange::ALL).unwrap();
    // Page by page it goes well, and so does memory that is not looked at yet.
    context.set_large_pages(ioas, false).unwrap();
    assert_eq!(map(&mut context, ioas, two, 0x7000, 0x2000), Ok(two));
    context.unmap(ioas, IovaRange::ALL).unwrap();
    context.set_large_pages(ioas, true).unwrap();
    context.detach(device).unwrap();
    assert_eq!(map(&mut context, ioas, two, 0x7000, 0x2000), Ok(two));
    assert_eq!(context.attach(device, ioas), Err(Errno::EINVAL));
    assert_eq!(context.platform().pinned.get(), 0);
}
