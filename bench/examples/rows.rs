//! Scratch.
use noiommu_bench::{GROUPS, Settings, suite};
fn main() {
    let only = std::env::args().skip(1).collect();
    let settings = Settings { only, ..Settings::default() };
    for (_, rows) in suite::run(GROUPS, &settings, &mut |_| {}) {
        for r in rows {
            println!(
                "{:30} {:?} {:?} {:?}",
                r.subject.name,
                r.figure.map(|f| (f.value * 1000.0).round() / 1000.0),
                r.subject.mark,
                r.parts.iter().map(|p| (p.value * 100.0).round() / 100.0).collect::<Vec<_>>()
            );
        }
    }
}
