//! `Ioas::address` beside a plain table.

use std::borrow::Cow;

use super::space::{Plan, Space};
use super::{Lookup, agree, dependent, independent, places, plans, three_levels, two_levels};

use super::layout::{PAIRS, copies};
use crate::measure::{compare, nanoseconds_each};
use crate::row::{Mark, Row, Subject, Unit};
use crate::suite::{Group, Settings};

/// Lookups in an IOAS.
pub const GROUP: Group =
    Group { name: "lookup", what: "Address of an IOVA, by Ioas::address", subjects, run };

/// Lookups in one round: their places take no more than a part of the second cache.
const PLACES: usize = 1 << 14;

/// What is mapped.
struct Case {
    name: &'static str,
    what: &'static str,
    plan: fn() -> Plan,
    /// What the baseline needs for it.
    levels: u32,
    most: f64,
}

const CASES: &[Case] = &[
    Case {
        name: "2m/1g",
        what: "1 GiB of scattered 2 MiB leaves",
        plan: || plans::scattered(512, 1 << 21),
        levels: 2,
        most: 1.05,
    },
    Case {
        name: "2m/16g",
        what: "16 GiB of scattered 2 MiB leaves",
        plan: || plans::scattered(16 << 9, 1 << 21),
        levels: 2,
        most: 1.05,
    },
    Case {
        name: "2m/64g",
        what: "64 GiB of scattered 2 MiB leaves",
        plan: || plans::scattered(64 << 9, 1 << 21),
        levels: 2,
        most: 1.05,
    },
    Case {
        name: "mixed/16g",
        what: "16 GiB of leaves from 4 KiB to 16 MiB",
        plan: || plans::mixed(16 << 30),
        levels: 3,
        most: 1.15,
    },
    Case {
        name: "4k/1g",
        what: "1 GiB of scattered 4 KiB pages",
        plan: || plans::scattered(1 << 18, 4096),
        levels: 3,
        most: 1.05,
    },
];

fn subject(case: &Case, way: &str, how: &str) -> Subject {
    let levels = if case.levels == 2 { "two" } else { "three" };
    Subject {
        name: Cow::Owned(format!("lookup/{}/{way}", case.name)),
        what: Cow::Owned(format!("{}, {how}: to a plain table of {levels} levels", case.what)),
        unit: Unit::Ratio,
        mark: Some(Mark::AtMost(case.most)),
    }
}

fn pair(case: &Case) -> [Subject; 2] {
    [
        subject(case, "independent", "random places"),
        subject(case, "dependent", "each place known by the last answer"),
    ]
}

fn subjects() -> Vec<Subject> {
    CASES.iter().flat_map(pair).collect()
}

fn run(settings: &Settings, sink: &mut dyn FnMut(Row)) {
    for case in CASES {
        let subjects = pair(case);
        if !subjects.iter().any(|subject| settings.wants(&subject.name)) {
            continue;
        }
        let rows = Space::new((case.plan)()).map_err(|error| error.to_string()).and_then(|space| match case
            .levels
        {
            2 => rows(settings, &subjects, &space, &two_levels(&space)),
            _ => rows(settings, &subjects, &space, &three_levels(&space)),
        });
        match rows {
            Ok(rows) => rows.into_iter().for_each(&mut *sink),
            Err(why) => subjects.iter().for_each(|subject| sink(subject.not_measured(why.clone()))),
        }
    }
}

fn rows<B: Lookup>(
    settings: &Settings,
    subjects: &[Subject; 2],
    space: &Space,
    baseline: &B,
) -> Result<[Row; 2], String> {
    let places = places(space.first(), space.bytes(), PLACES);
    agree(&space.ioas, baseline, &places)?;
    let rounds = settings.choose(3, 20) * PAIRS;
    let [first, second] = subjects;
    Ok([
        row(
            first,
            rounds,
            &mut timed(copies!(quick, independent, noiommu::Ioas), &space.ioas, &places),
            &mut timed(copies!(slow, independent, B), baseline, &places),
        ),
        row(
            second,
            rounds,
            &mut timed(copies!(quick, dependent, noiommu::Ioas), &space.ioas, &places),
            &mut timed(copies!(slow, dependent, B), baseline, &places),
        ),
    ])
}

/// Lookups of all places, one after the other.
type Search<L> = fn(&L, &[u64]) -> Option<u64>;

/// A round of lookups: nanoseconds of each.
pub(super) fn timed<'a, L>(
    mut copies: super::layout::Copies<Search<L>>,
    of: &'a L,
    places: &'a [u64],
) -> impl FnMut() -> f64 + 'a
where
    L: 'a,
{
    move || {
        let copy = copies.take();
        let turns = PLACES.div_ceil(places.len());
        nanoseconds_each(turns * places.len(), || {
            for _ in 0..turns {
                std::hint::black_box(copy(of, places));
            }
        })
    }
}

/// The row of two that were timed.
pub(super) fn row(
    subject: &Subject,
    rounds: usize,
    ours: &mut dyn FnMut() -> f64,
    baseline: &mut dyn FnMut() -> f64,
) -> Row {
    let rounds = compare(rounds, &mut [ours, baseline]);
    subject.ratio(rounds.ratio(0, 1)).part("engine", rounds.median(0)).part("baseline", rounds.median(1))
}
