//! Readers and the writer on real threads: what the model checker explores in the small, here in the large (and under
//! Miri, which adds its own weak memory and looks for data races).
#![cfg(not(loom))]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use noiommu_core::table::format::Access;
use noiommu_core::table::{Table, TableWriter};
use noiommu_core::{Iova, IovaRange, PhysAddr};
use support::HeapFrames;

const RW: Access = Access::READ_WRITE;

/// Two generations of memory for the same IOVAs: whoever sees a mix of both, sees a wrong run.
fn place(generation: u64, page: u64) -> u64 {
    // The first half of a generation is contiguous, and continues in the second half of the other generation.
    let half = if page < 4 { generation % 2 } else { 1 - generation % 2 };
    (half * 1000 + page) << 12
}

#[test]
fn runs_are_never_of_two_generations() {
    let rounds = if cfg!(miri) { 4 } else { 100_000 };
    let table = Arc::new(Table::new(HeapFrames::default()));
    let mut writer = TableWriter::new(table.clone()).unwrap();
    writer.map(Iova(1 << 30), PhysAddr(0x7000), 0x1000, RW, true).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (table, stop) = (table.clone(), stop.clone());
            thread::spawn(move || {
                let mut seen = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(table.lookup(Iova((1 << 30) + 5)).unwrap().address, PhysAddr(0x7005));
                    if let Some(run) = table.run(Iova(0), u64::MAX) {
                        assert!([place(0, 0), place(1, 0)].contains(&run.address.0));
                        // In both generations, page 3 is not followed by page 4.
                        assert!(run.length <= 4 << 12, "{run:?}");
                        seen += 1;
                    }
                }
                seen
            })
        })
        .collect();
    for generation in 0..rounds {
        for page in 0..8 {
            let at = PhysAddr(place(generation, page));
            writer.map(Iova(page << 12), at, 0x1000, RW, page == 7).unwrap();
        }
        // Tables come and go, at the top too.
        writer.map(Iova(1 << 39), PhysAddr(generation << 12), 0x1000, RW, true).unwrap();
        writer.unmap(IovaRange::new(Iova(1 << 39), Iova((1 << 39) + 0xfff)).unwrap()).unwrap();
        writer.unmap(IovaRange::new(Iova(0), Iova(0x7fff)).unwrap()).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        let seen = reader.join().unwrap();
        assert!(seen > 0 || cfg!(miri), "the reader never met a mapping");
    }
}
