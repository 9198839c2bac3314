//! Lookups as functions of their own, for a look at their machine code: `cargo xtask test --only lookup-code` shows that they take no
//! lock and store nothing but on their stack. Two that do so on purpose show that it would be seen.

use std::sync::atomic::{AtomicU64, Ordering};

use noiommu::{DmaAddr, DmaView, Ioas, Iova, PhysAddr};

/// `Ioas::address`, as it is compiled into a driver.
#[inline(never)]
fn address(ioas: &Ioas, iova: Iova) -> Option<PhysAddr> {
    ioas.address(iova)
}

/// `DmaView::address`, as it is compiled into a driver.
#[inline(never)]
fn view(view: &DmaView, offset: u64) -> Option<DmaAddr> {
    view.address(offset)
}

/// A lookup that counts itself, as no lookup may.
#[inline(never)]
fn control_counts(ioas: &Ioas, iova: Iova, count: &AtomicU64) -> Option<PhysAddr> {
    count.fetch_add(1, Ordering::Relaxed);
    ioas.address(iova)
}

/// A lookup that leaves a trace, as no lookup may.
#[inline(never)]
fn control_stores(ioas: &Ioas, iova: Iova, last: &AtomicU64) -> Option<PhysAddr> {
    last.store(iova.0, Ordering::Relaxed);
    ioas.address(iova)
}

/// Keeps them in the program.
pub(super) fn keep() {
    std::hint::black_box((address as fn(_, _) -> _, view as fn(_, _) -> _));
    std::hint::black_box((control_counts as fn(_, _, _) -> _, control_stores as fn(_, _, _) -> _));
}
