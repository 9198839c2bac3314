//! Readers side by side, and a writer now and then.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use noiommu::Ioas;

use super::space::Space;
use super::{independent, places, plans};
use crate::measure::compare;
use crate::row::{Mark, Row, Subject, Unit};
use crate::suite::{Group, Settings};

/// Lookups by several threads.
pub const GROUP: Group =
    Group { name: "threads", what: "Lookups by two threads, beside a writer", subjects, run };

const TWO: Subject = Subject::marked(
    "threads/2/4k",
    "lookups a second of two threads in scattered 4 KiB pages, while a third maps and unmaps: to those of one",
    Unit::Ratio,
    Mark::AtLeast(1.8),
);

/// Bytes of scattered pages: their table stays in the second cache, so that threads do not wait for memory but for each other, if
/// for anything.
const BYTES: u64 = 64 << 20;
const PLACES: usize = 1 << 12;
/// How long each count is.
const WINDOW: Duration = Duration::from_millis(40);
/// How long the writer sleeps between a map with its unmap and the next.
const REST: Duration = Duration::from_millis(2);

fn subjects() -> Vec<Subject> {
    vec![TWO]
}

fn run(settings: &Settings, sink: &mut dyn FnMut(Row)) {
    sink(measure(settings).unwrap_or_else(|why| TWO.not_measured(why)));
}

fn measure(settings: &Settings) -> Result<Row, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Err("one processor has no two threads side by side".to_owned());
    }
    let space = Space::new(plans::scattered(BYTES >> 12, 4096)).map_err(|error| error.to_string())?;
    let places = places(space.first(), space.bytes(), PLACES);
    let (stop, changes, busy) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let begin = Instant::now();
    let rounds = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(REST);
                let began = Instant::now();
                if space.map_and_unmap_a_page().is_ok() {
                    changes.fetch_add(1, Ordering::Relaxed);
                }
                busy.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
            }
        });
        let rounds = compare(
            settings.choose(7, 31),
            &mut [&mut || lookups(&space.ioas, &places, 1), &mut || lookups(&space.ioas, &places, 2)],
        );
        stop.store(true, Ordering::Relaxed);
        rounds
    });
    let changes = changes.into_inner();
    if changes == 0 {
        return Err("the writer could not map".to_owned());
    }
    let share = busy.into_inner() as f64 / begin.elapsed().as_nanos() as f64;
    Ok(TWO
        .ratio(rounds.ratio(1, 0))
        .part("one thread, a lookup", 1.0 / rounds.median(0))
        .part("two threads, a lookup", 1.0 / rounds.median(1))
        .note(format!("{changes} maps and unmaps beside, {:.2}% of a processor's time", share * 100.0)))
}

/// Lookups a nanosecond of so many threads.
fn lookups(ioas: &Ioas, places: &[u64], threads: usize) -> f64 {
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let begin = Instant::now();
                    let mut count = 0;
                    while begin.elapsed() < WINDOW {
                        std::hint::black_box(independent::<0, Ioas>(ioas, places));
                        count += places.len();
                    }
                    count as f64 / begin.elapsed().as_nanos() as f64
                })
            })
            .collect();
        all.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    })
}
