//! Micro-benchmarks of lookups: for work on one of their ways, with a baseline kept from before it.
//!
//! ```sh
//! cargo bench --package noiommu-bench --bench lookup -- --save-baseline before
//! cargo bench --package noiommu-bench --bench lookup -- --baseline before 4k
//! ```
//!
//! The marks are held by `noiommu bench`, which repeats each loop at several places of the code; this is the magnifying glass beside it.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use noiommu_bench::lookup::Micro;

fn lookups(criterion: &mut Criterion) {
    for kind in Micro::KINDS {
        let micro = Micro::new(kind).expect("there is memory for its tables");
        let mut group = criterion.benchmark_group(kind);
        group.throughput(Throughput::Elements(Micro::LOOKUPS as u64));
        for (name, way) in Micro::WAYS {
            group.bench_function(name, |bencher| bencher.iter(|| micro.look(way)));
        }
        group.finish();
    }
}

criterion_group!(benches, lookups);
criterion_main!(benches);
