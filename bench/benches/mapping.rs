//! Micro-benchmarks of mapping: for work on one of its parts, with a baseline kept from before it.
//!
//! ```sh
//! cargo bench --package noiommu-bench -- --save-baseline before
//! cargo bench --package noiommu-bench -- --baseline before areas
//! ```
//!
//! The marks are held by `noiommu bench`; this is the magnifying glass beside it.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use noiommu::{Context, Contiguity, DmaBuffer, Ioas, PinChoice};
use noiommu_bench::areas::Space;
use noiommu_bench::kernel_calls::bare::Bare;
use noiommu_bench::kernel_calls::memory::{Kind, Memory};

/// Areas on frames that are made up: the engine alone.
fn areas(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("areas");
    for (name, count) in [("1k", 1000), ("1m", 1_000_000)] {
        let mut space = Space::new(count).expect("there is memory for areas");
        group.bench_function(format!("{name}/one-more"), |bencher| bencher.iter(|| space.one_more()));
        group.bench_function(format!("{name}/any"), |bencher| bencher.iter(|| space.any()));
    }
    group.finish();
}

/// The engine on real memory; says why not.
fn real() -> Option<Ioas> {
    match Context::with_pins(PinChoice::IoUring).and_then(|context| context.ioas()) {
        Ok(ioas) => Some(ioas),
        Err(error) => {
            eprintln!("not measured here: {error}");
            None
        }
    }
}

/// One page, with the kernel in it.
fn page(criterion: &mut Criterion) {
    let (Some(ioas), Ok(mut bare)) = (real(), Bare::new(64)) else { return };
    let mut group = criterion.benchmark_group("page");
    let mut buffer = DmaBuffer::new(4096, Contiguity::Pages).ok();
    group.bench_function("map and unmap", |bencher| {
        bencher.iter(|| {
            let mapped = ioas.map(buffer.take().expect("it has come back")).expect("a page is mapped");
            buffer = mapped.reclaim().expect("no view of it exists");
        });
    });
    let memory = Memory::new(Kind::Fresh, 4096).expect("there is a page");
    group.bench_function("bare", |bencher| {
        bencher.iter(|| {
            bare.pin(0, memory.address(), memory.len())?;
            bare.read_entries(memory.address(), memory.len())?;
            bare.unpin(0)
        });
    });
    group.finish();
}

/// Much memory at once.
fn much(criterion: &mut Criterion) {
    let Some(ioas) = real() else { return };
    let mut group = criterion.benchmark_group("64 MiB");
    for (name, kind, page) in [("4k", Kind::Scattered, 4096), ("2m", Kind::Transparent, 2 << 20)] {
        let Ok(memory) = Memory::new(kind, 64 << 20) else { continue };
        // SAFETY: the memory outlives the mappings, and nobody unmaps or replaces it meanwhile.
        let map = || unsafe { ioas.map_borrowed(memory.start(), memory.len()) }.expect("it is mapped");
        group.throughput(Throughput::Elements((memory.len() / page) as u64));
        group.bench_function(format!("{name}/map"), |bencher| {
            bencher.iter_with_large_drop(|| black_box(map()))
        });
        group.bench_function(format!("{name}/unmap"), |bencher| {
            bencher.iter_batched(map, drop, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, areas, page, much);
criterion_main!(benches);
