//! One page, mapped and unmapped again and again.

use std::io;
use std::ptr::NonNull;

use noiommu::{Context, Iova, IovaRange, PinChoice};
use noiommu_core::table::format::Access;
use noiommu_core::table::{Table, TableWriter};
use noiommu_core::{AllowedRanges, IovaSpace, Placement, automatic_iova};

use super::bare::Bare;
use super::memory::{Kind, Memory};
use crate::arena::Fixed;
use crate::measure::{black_box, nanoseconds_each, try_compare_several};
use crate::row::{Mark, Row, Subject, Unit};
use crate::suite::Settings;

const PAGE: usize = 4096;
/// Pages in a round, and as many slots of the bare ring.
const PAGES: usize = 256;

const ONE: Subject = Subject::told(
    "map/one",
    "Map one touched 4 KiB page and unmap it, again and again; and the same calls bare.",
    Unit::Nanoseconds,
);

const RINGS: Subject = Subject::marked(
    "map/one/rings",
    "Rings opened while a page is mapped and unmapped 10,000 times.",
    Unit::Count,
    Mark::AtMost(0.0),
);

pub(super) fn subjects() -> Vec<Subject> {
    vec![ONE, RINGS]
}

pub(super) fn run(settings: &Settings, sink: &mut dyn FnMut(Row)) {
    for (subject, measure) in [(ONE, one as fn(&Settings) -> io::Result<Row>), (RINGS, rings)] {
        if settings.wants(&subject.name) {
            sink(measure(settings).unwrap_or_else(|error| subject.not_measured(error.to_string())));
        }
    }
}

fn one(settings: &Settings) -> io::Result<Row> {
    let memory = Memory::new(Kind::Scattered, PAGES * PAGE)?;
    let page = |number: usize| memory.address() + number * PAGE;
    let context = Context::with_pins(PinChoice::IoUring).map_err(io::Error::other)?;
    let ioas = context.ioas().map_err(io::Error::other)?;
    let mut bare = Bare::new(16384)?;
    // What the engine does besides, by the same code on its own.
    let mut space = IovaSpace::<u32>::new();
    let mut writer = TableWriter::new(Box::new(Table::new(Fixed::new(64)))).map_err(io::Error::other)?;
    let mut round = || {
        let mut failed = Ok(());
        let mut all = |work: &mut dyn FnMut(usize) -> io::Result<()>| {
            nanoseconds_each(PAGES, || {
                if failed.is_ok() {
                    failed = (0..PAGES).try_for_each(work);
                }
            })
        };
        let engine = all(&mut |number| {
            let start = NonNull::new(page(number) as *mut u8).ok_or(io::ErrorKind::InvalidInput)?;
            // SAFETY: the memory outlives the mapping, and nobody unmaps or replaces it meanwhile.
            drop(black_box(unsafe { ioas.map_borrowed(start, PAGE) }.map_err(io::Error::other)?));
            Ok(())
        });
        let pin = all(&mut |number| bare.pin(number as u32, page(number), PAGE));
        let read = all(&mut |number| bare.read_entries(page(number), PAGE));
        let unpin = all(&mut |number| bare.unpin(number as u32));
        let space = all(&mut |number| in_space(&mut space, page(number) as u64));
        let table = all(&mut |number| in_table(&mut writer, number as u64));
        failed.map(|()| [engine, pin, read, unpin, space, table])
    };
    let rounds = settings.choose(50, 300);
    let [engine, pin, read, unpin, space, table] = try_compare_several(rounds, &mut [&mut round])?;
    let named = [
        ("pin", &pin),
        ("read its place", &read),
        ("let go", &unpin),
        ("find and free an IOVA", &space),
        ("enter and take out", &table),
    ];
    let known: f64 = named.iter().map(|(_, part)| part.median(0)).sum();
    let bare: f64 = named[..3].iter().map(|(_, part)| part.median(0)).sum();
    let row = ONE.row(engine.median(0), engine.spread(0));
    let row = named.iter().fold(row, |row, (label, part)| row.part(*label, part.median(0)));
    Ok(row.part("the rest (locks, bookkeeping)", engine.median(0) - known).part_in(
        "against the bare calls",
        engine.median(0) / bare,
        Unit::Ratio,
    ))
}

/// What the IOVA space does for a mapping.
fn in_space(space: &mut IovaSpace<u32>, address: u64) -> io::Result<()> {
    let length = PAGE as u64;
    let wish = Placement { length, address, max_alignment: 2 << 20, iova_alignment: length };
    let first = automatic_iova(space, &AllowedRanges::new(), wish).map_err(io::Error::other)?;
    let range = IovaRange::with_length(first, length).map_err(io::Error::other)?;
    space.insert(range, 7).map_err(io::Error::other)?;
    black_box(space.remove(first));
    Ok(())
}

/// What the table does for it.
fn in_table(writer: &mut TableWriter<Fixed, Box<Table<Fixed>>>, number: u64) -> io::Result<()> {
    let (iova, length) = (Iova(0x1000), PAGE as u64);
    let place = noiommu::PhysAddr(((number * 0x1_2345) & 0xfffff) << 12);
    writer.map(iova, place, length, Access::READ_WRITE, true).map_err(io::Error::other)?;
    let range = IovaRange::with_length(iova, length).map_err(io::Error::other)?;
    writer.unmap(range).map_err(io::Error::other)
}

fn rings(_: &Settings) -> io::Result<Row> {
    let memory = Memory::new(Kind::Fresh, PAGE)?;
    let context = Context::with_pins(PinChoice::IoUring).map_err(io::Error::other)?;
    let ioas = context.ioas().map_err(io::Error::other)?;
    let before = open_rings()?;
    let mut most = before;
    for turn in 0..10_000 {
        // SAFETY: the memory outlives the mapping, and nobody unmaps or replaces it meanwhile.
        let mapping = unsafe { ioas.map_borrowed(memory.start(), PAGE) }.map_err(io::Error::other)?;
        if turn % 1000 == 0 {
            most = most.max(open_rings()?);
        }
        drop(mapping);
    }
    Ok(RINGS.row((most.max(open_rings()?) - before) as f64, 0.0))
}

/// Rings of this process.
fn open_rings() -> io::Result<usize> {
    let mut rings = 0;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let target = std::fs::read_link(entry?.path());
        rings += usize::from(target.is_ok_and(|target| target.to_string_lossy().contains("[io_uring]")));
    }
    Ok(rings)
}
