//! How far memory is contiguous: one call of `Ioas::lookup` beside a plain table, of which each slot is asked.

use noiommu::Iova;

use super::baseline::TwoLevels;
use super::space::{Plan, Space};
use super::{plans, two_levels};
use crate::measure::{compare, nanoseconds_each};
use crate::row::{Mark, Row, Subject, Unit};
use crate::suite::{Group, Settings};

/// Contiguous runs.
pub const GROUP: Group =
    Group { name: "run", what: "Contiguous run of 64 GiB, by one Ioas::lookup", subjects, run };

const BYTES: u64 = 64 << 30;

/// What is measured, and in which memory.
type Case = (Subject, fn(u64, u64) -> Plan);

const CASES: &[Case] = &[
    (
        Subject::marked(
            "run/2m/64g",
            "in adjacent 2 MiB leaves: to a plain table of two levels asked slot by slot",
            Unit::Ratio,
            Mark::AtMost(0.3),
        ),
        plans::adjacent,
    ),
    (
        Subject::marked(
            "run/whole/64g",
            "in leaves as large as can be: to a plain table of two levels asked slot by slot",
            Unit::Ratio,
            Mark::AtMost(0.01),
        ),
        plans::whole,
    ),
];

fn subjects() -> Vec<Subject> {
    CASES.iter().map(|case| case.0.clone()).collect()
}

fn run(settings: &Settings, sink: &mut dyn FnMut(Row)) {
    for (subject, plan) in CASES {
        if settings.wants(&subject.name) {
            sink(measure(settings, subject, *plan).unwrap_or_else(|why| subject.not_measured(why)));
        }
    }
}

fn measure(settings: &Settings, subject: &Subject, plan: fn(u64, u64) -> Plan) -> Result<Row, String> {
    let space = Space::planned(BYTES, plan).map_err(|error| error.to_string())?;
    let first = space.first();
    let baseline = two_levels(&space);
    let ours = || {
        space
            .ioas
            .lookup(Iova(std::hint::black_box(first)), BYTES)
            .map(|found| (found.address.0, found.length))
    };
    let theirs = || step(&baseline, std::hint::black_box(first), BYTES);
    if ours() != theirs() || ours().is_none_or(|found| found.1 != BYTES) {
        return Err(format!("the engine has {:x?}, the baseline {:x?}", ours(), theirs()));
    }
    let timed = |one: &dyn Fn() -> Option<(u64, u64)>| {
        nanoseconds_each(1, || {
            std::hint::black_box(one());
        })
    };
    let rounds = compare(settings.choose(21, 201), &mut [&mut || timed(&ours), &mut || timed(&theirs)]);
    Ok(subject.ratio(rounds.ratio(0, 1)).part("engine", rounds.median(0)).part("baseline", rounds.median(1)))
}

/// The address of an IOVA and the contiguous bytes from there on, slot by slot.
fn step(table: &TwoLevels, iova: u64, limit: u64) -> Option<(u64, u64)> {
    let address = table.address(iova)?;
    let mut length = ((1 << 21) - (iova & 0x1f_ffff)).min(limit);
    while length < limit && table.address(iova + length) == Some(address + length) {
        length += 1 << 21;
    }
    Some((address, length.min(limit)))
}
