//! Readers against the writer, in every interleaving and memory order that the model checker finds:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p noiommu-core --test readers`.
#![cfg(loom)]

use std::sync::Arc;

use loom::thread;
use noiommu_core::table::format::Access;
use noiommu_core::table::{Frame, Slot, Table, TableMemory, TableWriter};
use noiommu_core::{Errno, Iova, IovaRange, PhysAddr};

/// A handful of frames, there from the beginning.
struct Frames(Vec<Frame>, Vec<Slot>, Vec<Slot>);

impl TableMemory for Frames {
    fn frame(&self, number: u64) -> Option<&Frame> {
        self.0.get(number as usize)
    }

    fn grow(&self, frames: u64) -> Result<u64, Errno> {
        if frames <= self.0.len() as u64 { Ok(self.0.len() as u64) } else { Err(Errno::ENOMEM) }
    }

    fn words(&self) -> &[Slot] {
        &self.1
    }

    fn entries(&self) -> &[Slot] {
        &self.2
    }
}

type Shared = Arc<Table<Frames>>;

const RW: Access = Access::READ_WRITE;

fn range(first: u64, length: u64) -> IovaRange {
    IovaRange::with_length(Iova(first), length).unwrap()
}

/// Runs `write` beside `read` in all orders; `prepare` comes before both.
fn explore(
    frames: usize,
    words: usize,
    prepare: impl Fn(&mut TableWriter<Frames, Shared>) + Sync + Send + 'static,
    write: impl Fn(&mut TableWriter<Frames, Shared>) + Sync + Send + Copy + 'static,
    read: impl Fn(&Table<Frames>) + Sync + Send + Copy + 'static,
) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.max_branches = 100_000;
    model.check(move || {
        let table = Arc::new(Table::new(Frames(
            (0..frames).map(|_| Frame::new()).collect(),
            (0..words).map(|_| Slot::new()).collect(),
            (0..words * 512).map(|_| Slot::new()).collect(),
        )));
        let mut writer = TableWriter::new(table.clone()).unwrap();
        prepare(&mut writer);
        let reader = thread::spawn(move || read(&table));
        write(&mut writer);
        reader.join().unwrap();
    });
}

/// A frame goes from one leaf table to another: a reader on its way to the old one must not take what the new one holds.
#[test]
fn recycled_frame_is_noticed() {
    explore(
        3,
        0,
        |writer| writer.map(Iova(0), PhysAddr(0xa000), 0x1000, RW, true).unwrap(),
        |writer| {
            writer.unmap(range(0, 0x1000)).unwrap();
            writer.map(Iova(1 << 21), PhysAddr(0xb000), 0x1000, RW, true).unwrap();
        },
        |table| {
            if let Some(found) = table.lookup(Iova(0)) {
                assert_eq!((found.address, found.length), (PhysAddr(0xa000), 0x1000));
            }
            if let Some(found) = table.lookup(Iova(1 << 21)) {
                assert_eq!((found.address, found.length), (PhysAddr(0xb000), 0x1000));
            }
        },
    );
}

/// The top grows and comes down while a reader looks at what stays mapped all the time: it is always found.
#[test]
fn what_stays_mapped_is_always_found() {
    explore(
        7,
        0,
        |writer| {
            writer.map(Iova(0), PhysAddr(0x4000_0000), 0x4000_0000, RW, true).unwrap();
            writer.map(Iova(1 << 39), PhysAddr(0x4000_0000), 0x4000_0000, RW, true).unwrap();
        },
        |writer| {
            writer.unmap(range(1 << 39, 0x4000_0000)).unwrap();
            writer.map(Iova(1 << 39), PhysAddr(0x8000_0000), 0x4000_0000, RW, true).unwrap();
        },
        |table| assert_eq!(table.lookup(Iova(5)).map(|found| found.address), Some(PhysAddr(0x4000_0005))),
    );
}

/// One area goes, another comes in its place: a run is of the one or of the other, never of both.
#[test]
fn run_is_of_one_state() {
    explore(
        4,
        0,
        |writer| {
            // Two pages, not adjacent in memory.
            writer.map(Iova(0), PhysAddr(0x1000), 0x1000, RW, false).unwrap();
            writer.map(Iova(0x1000), PhysAddr(0x9000), 0x1000, RW, true).unwrap();
        },
        |writer| {
            writer.unmap(range(0, 0x2000)).unwrap();
            // The new second page would continue the old first one.
            writer.map(Iova(0x1000), PhysAddr(0x2000), 0x1000, RW, true).unwrap();
        },
        |table| {
            if let Some(found) = table.run(Iova(0), u64::MAX) {
                assert_eq!((found.address, found.length), (PhysAddr(0x1000), 0x1000));
            }
        },
    );
}

/// A map that fails half-way takes its tables out again; they are used anew while a reader may stand in one of them.
#[test]
fn tables_of_a_failed_map_are_recycled_too() {
    explore(
        5,
        0,
        |writer| writer.map(Iova(0), PhysAddr(0xa000), 0x1000, RW, true).unwrap(),
        |writer| {
            // A level-1 and a level-0 table are there for it, a second level-0 table is not.
            let failed = writer.map(Iova(0x4000_0000), PhysAddr(0x1000), 0x20_1000, RW, true);
            assert_eq!(failed, Err(Errno::ENOMEM));
            writer.map(Iova(1 << 21), PhysAddr(0xb000), 0x1000, RW, true).unwrap();
        },
        |table| {
            if let Some(found) = table.lookup(Iova(0x4000_0000)) {
                assert_eq!(found.address, PhysAddr(0x1000));
            }
            assert_eq!(table.lookup(Iova(0x6000_0000)), None);
        },
    );
}

/// The index leads to a table whose frame goes to another one: an address is that of the IOVA, or none.
#[test]
fn the_index_leads_to_recycled_frames_too() {
    explore(
        3,
        2,
        |writer| writer.map(Iova(0), PhysAddr(0xa000), 0x1000, RW, true).unwrap(),
        |writer| {
            writer.unmap(range(0, 0x1000)).unwrap();
            writer.map(Iova(1 << 21), PhysAddr(0xb000), 0x1000, RW, true).unwrap();
        },
        |table| {
            let (first, second) = (table.address(Iova(0)), table.address(Iova(1 << 21)));
            assert!(matches!(first, None | Some(PhysAddr(0xa000))), "{first:?}");
            assert!(matches!(second, None | Some(PhysAddr(0xb000))), "{second:?}");
        },
    );
}

/// A slot of the index goes from a table to a leaf, while a leaf elsewhere stays: it is always found.
#[test]
fn the_index_always_has_what_stays_mapped() {
    explore(
        4,
        2,
        |writer| {
            writer.map(Iova(0), PhysAddr(0x20_0000), 0x20_0000, RW, true).unwrap();
            writer.map(Iova(0x20_0000), PhysAddr(0x5000), 0x1000, RW, true).unwrap();
        },
        |writer| {
            writer.unmap(range(0x20_0000, 0x1000)).unwrap();
            writer.map(Iova(0x20_0000), PhysAddr(0x40_0000), 0x20_0000, RW, true).unwrap();
        },
        |table| {
            let found = table.address(Iova(0x20_0000));
            assert!(matches!(found, None | Some(PhysAddr(0x5000 | 0x40_0000))), "{found:?}");
            assert_eq!(table.address(Iova(5)), Some(PhysAddr(0x20_0005)));
        },
    );
}
