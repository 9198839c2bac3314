//! `DmaView::address`, what a driver asks for its descriptors, beside a plain table.

use super::address::{row, timed};
use super::space::{Plan, Space};
use super::{Lookup, agree, independent, places, plans, three_levels, two_levels};

use super::layout::{PAIRS, copies};
use crate::row::{Mark, Row, Subject, Unit};
use crate::suite::{Group, Settings};

/// Addresses from the view of a mapping.
pub const GROUP: Group = Group {
    name: "view",
    what: "Address of an offset, by the view that a device has of a mapping",
    subjects,
    run,
};

/// Offsets of one round. They stay in the first cache, with the table of 2 MiB pages: it is lookups that are timed, not their list.
const PLACES: usize = 1 << 10;

/// What is measured, and in which memory.
type Case = (Subject, fn() -> Plan);

/// Buffers in one piece, of 2 MiB pages and of 4 KiB pages; and long ones, whose tables are of 2 MiB blocks.
const CASES: &[Case] = &[
    (
        marked(
            "view/whole/16m",
            "a buffer of 16 MiB in one piece, random offsets: to a plain table of two levels",
        ),
        || plans::whole(0, 16 << 20),
    ),
    (
        marked(
            "view/2m/16m",
            "a buffer of 16 MiB in scattered 2 MiB pages, random offsets: to a plain table of two levels",
        ),
        || plans::scattered(8, 1 << 21),
    ),
    (
        marked(
            "view/4k/16m",
            "a buffer of 16 MiB in scattered 4 KiB pages, random offsets: to a plain table of three levels",
        ),
        || plans::scattered(1 << 12, 4096),
    ),
    (
        Subject::told(
            "view/2m/1g",
            "a buffer of 1 GiB in scattered 2 MiB pages, random offsets: to a plain table of two levels",
            Unit::Ratio,
        ),
        || plans::scattered(512, 1 << 21),
    ),
    (
        Subject::told(
            "view/4k/64m",
            "a buffer of 64 MiB in scattered 4 KiB pages, random offsets: to a plain table of three levels",
            Unit::Ratio,
        ),
        || plans::scattered(1 << 14, 4096),
    ),
];

const fn marked(name: &'static str, what: &'static str) -> Subject {
    Subject::marked(name, what, Unit::Ratio, Mark::AtMost(0.4))
}

fn subjects() -> Vec<Subject> {
    CASES.iter().map(|case| case.0.clone()).collect()
}

fn run(settings: &Settings, sink: &mut dyn FnMut(Row)) {
    for (subject, plan) in CASES {
        if settings.wants(&subject.name) {
            sink(measure(settings, subject, plan()).unwrap_or_else(|why| subject.not_measured(why)));
        }
    }
}

fn measure(settings: &Settings, subject: &Subject, plan: Plan) -> Result<Row, String> {
    let pages = plan.first().is_some_and(|piece| piece.1 < 1 << 21);
    let space = Space::new(plan).map_err(|error| error.to_string())?;
    if pages {
        against(settings, subject, &space, &three_levels(&space))
    } else {
        against(settings, subject, &space, &two_levels(&space))
    }
}

fn against<B: Lookup>(
    settings: &Settings,
    subject: &Subject,
    space: &Space,
    baseline: &B,
) -> Result<Row, String> {
    let view = space.view().map_err(|error| error.to_string())?;
    let offsets = places(0, space.bytes(), PLACES);
    let iovas: Vec<u64> = offsets.iter().map(|offset| space.first() + offset).collect();
    agree(&space.ioas, baseline, &iovas)?;
    if let Some((offset, iova)) = offsets
        .iter()
        .zip(&iovas)
        .find(|&(&offset, &iova)| Lookup::address(&view, offset) != baseline.address(iova))
    {
        return Err(format!("the view has something else at {offset:#x} than the baseline at {iova:#x}"));
    }
    let rounds = settings.choose(3, 20) * PAIRS;
    Ok(row(
        subject,
        rounds,
        &mut timed(copies!(quick, independent, noiommu::DmaView), &view, &offsets),
        &mut timed(copies!(slow, independent, B), baseline, &iovas),
    ))
}
