//! Mapping and unmapping much memory at once.

use std::time::Instant;

use noiommu::{Context, Ioas, PinChoice};

use super::bare::Bare;
use super::memory::{Kind, Memory};
use crate::measure::{Rounds, try_compare_several};
use crate::row::{Mark, Row, Subject, Unit};
use crate::suite::Settings;

/// A kind of memory, mapped and unmapped.
struct Case {
    kind: Kind,
    map: Subject,
    unmap: Subject,
}

const fn case(
    kind: Kind,
    [map, unmap]: [&'static str; 2],
    [mapping, unmapping]: [&'static str; 2],
    most: f64,
) -> Case {
    Case {
        kind,
        map: Subject::marked(map, mapping, Unit::Ratio, Mark::AtMost(most)),
        unmap: Subject::marked(unmap, unmapping, Unit::Ratio, Mark::AtMost(1.2)),
    }
}

const CASES: [Case; 4] = [
    case(
        Kind::Scattered,
        ["map/4k/scattered", "map/4k/scattered/unmap"],
        [
            "Map touched 4 KiB pages, hardly two of them neighbours: against pinning them and reading their places, bare.",
            "Unmap them: against letting the pins go, bare.",
        ],
        1.15,
    ),
    case(
        Kind::Fresh,
        ["map/4k/fresh", "map/4k/fresh/unmap"],
        [
            "Map touched 4 KiB pages as they come from the kernel, in runs: against pinning them and reading their places, bare.",
            "Unmap them: against letting the pins go, bare.",
        ],
        1.15,
    ),
    case(
        Kind::Transparent,
        ["map/2m/thp", "map/2m/thp/unmap"],
        [
            "Map transparent huge pages: against pinning them, having the kernel tell that they are huge, and reading the place of each, bare.",
            "Unmap them: against letting the pins go, bare.",
        ],
        1.25,
    ),
    case(
        Kind::Reserved,
        ["map/2m/hugetlb", "map/2m/hugetlb/unmap"],
        [
            "Map reserved huge pages: against pinning them, having the kernel tell that they are huge, and reading the place of each, bare.",
            "Unmap them: against letting the pins go, bare.",
        ],
        1.25,
    ),
];

pub(super) fn subjects() -> Vec<Subject> {
    CASES.into_iter().flat_map(|case| [case.map, case.unmap]).collect()
}

pub(super) fn run(settings: &Settings, sink: &mut dyn FnMut(Row)) {
    for case in CASES {
        if ![&case.map, &case.unmap].iter().any(|subject| settings.wants(&subject.name)) {
            continue;
        }
        match measure(&case, settings) {
            Ok(rows) => rows.into_iter().for_each(&mut *sink),
            Err(why) => {
                [case.map, case.unmap].iter().for_each(|subject| sink(subject.not_measured(why.clone())))
            }
        }
    }
}

/// One kind; why not.
fn measure(case: &Case, settings: &Settings) -> Result<[Row; 2], String> {
    let huge = matches!(case.kind, Kind::Transparent | Kind::Reserved);
    let small = settings.choose(64 << 20, 256 << 20);
    let mut bare =
        Bare::new(if huge { 64 } else { 16384 }).map_err(|error| format!("the bare calls: {error}"))?;
    let memory = if huge { huge_memory(case.kind, &mut bare)? } else { memory(case.kind, small)? };
    let length = memory.len();
    let context = Context::with_pins(PinChoice::IoUring).map_err(|error| error.to_string())?;
    let ioas = context.ioas().map_err(|error| error.to_string())?;
    let mut engine = || engine(&ioas, &memory);
    let mut floor = || {
        let begin = Instant::now();
        bare.pin(0, memory.address(), memory.len())?;
        if huge {
            bare.read_huge_entries(&memory)?
        } else {
            bare.read_entries(memory.address(), memory.len())?
        }
        let mapped = begin.elapsed();
        let begin = Instant::now();
        bare.unpin(0)?;
        Ok([mapped.as_nanos() as f64, begin.elapsed().as_nanos() as f64])
    };
    let rounds = settings.choose(30, 100);
    let [map, unmap] = try_compare_several(rounds, &mut [&mut engine, &mut floor])
        .map_err(|error: std::io::Error| error.to_string())?;
    let pages = (length / if huge { 2 << 20 } else { 4096 }) as f64;
    let row = |subject: &Subject, rounds: &Rounds| {
        subject
            .ratio(rounds.ratio(0, 1))
            .part("the engine", rounds.median(0) / pages)
            .part("bare", rounds.median(1) / pages)
            .note(format!("a page, of {} MiB", length >> 20))
    };
    Ok([row(&case.map, &map), row(&case.unmap, &unmap)])
}

fn memory(kind: Kind, length: usize) -> Result<Memory, String> {
    Memory::new(kind, length).map_err(|error| format!("{} MiB of such memory: {error}", length >> 20))
}

/// As much as one buffer of a ring holds, or what there is of it: huge pages are few, and what is done once for a mapping counts
/// among them.
fn huge_memory(kind: Kind, bare: &mut Bare) -> Result<Memory, String> {
    let mut why = String::new();
    for length in [1 << 30, 512 << 20, 256 << 20, 128 << 20] {
        let memory = memory(kind, length).and_then(|memory| match bare.read_huge_entries(&memory) {
            Ok(()) => Ok(memory),
            Err(error) => Err(format!("{} MiB of such memory: {error}", length >> 20)),
        });
        match memory {
            Ok(memory) => return Ok(memory),
            Err(error) => why = error,
        }
    }
    Err(why)
}

fn engine(ioas: &Ioas, memory: &Memory) -> std::io::Result<[f64; 2]> {
    let begin = Instant::now();
    // SAFETY: the memory outlives the mapping, and nobody unmaps or replaces it meanwhile.
    let mapping =
        unsafe { ioas.map_borrowed(memory.start(), memory.len()) }.map_err(std::io::Error::other)?;
    let mapped = begin.elapsed();
    let begin = Instant::now();
    drop(mapping);
    Ok([mapped.as_nanos() as f64, begin.elapsed().as_nanos() as f64])
}
