//! How long it takes from starting a process to its first address.

use std::process::Command;

use noiommu::{Context, Contiguity, DmaBuffer, PinChoice};

use crate::measure::{Rounds, try_compare_several};
use crate::row::{Row, Subject, Unit};
use crate::suite::Settings;

/// The argument with which the program does [`child`] and nothing else.
pub const ARGUMENT: &str = "bench-first-address";

pub(crate) const FIRST_ADDRESS: Subject = Subject::told(
    "first/address",
    "From starting a process to the physical address of a pinned page of its own.",
    Unit::Nanoseconds,
);

/// What is done on the way, in order.
const STEPS: [&str; 6] =
    ["start the process", "open the engine", "make an IOAS", "get a page", "pin and map it", "look it up"];

/// What the process does that is measured: it writes when it had done each of the steps, in nanoseconds of the monotonic clock.
///
/// # Errors
/// Those of the kit.
pub fn child() -> noiommu::Result<()> {
    let started = now();
    let context = Context::with_pins(PinChoice::Best)?;
    let opened = now();
    let ioas = context.ioas()?;
    let made = now();
    let buffer = DmaBuffer::new(4096, Contiguity::Pages)?;
    let touched = now();
    let mapping = ioas.map(buffer)?;
    let mapped = now();
    let found = ioas.lookup(mapping.iova(), 4096).is_some();
    let looked_up = now();
    if found {
        println!("{started} {opened} {made} {touched} {mapped} {looked_up}");
    }
    Ok(())
}

pub(super) fn run(settings: &Settings, sink: &mut dyn FnMut(Row)) {
    let Some(program) = &settings.program else {
        sink(FIRST_ADDRESS.not_measured("the program to start is not known"));
        return;
    };
    let mut process = || {
        let begin = now();
        let output = Command::new(program).arg(ARGUMENT).output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let times: Vec<f64> = text.split_whitespace().filter_map(|time| time.parse().ok()).collect();
        let Ok(times) = <[f64; STEPS.len()]>::try_from(times) else {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        };
        let mut before = begin as f64;
        Ok(times.map(|time| time - std::mem::replace(&mut before, time)))
    };
    let rounds = settings.choose(20, 100);
    match try_compare_several(rounds, &mut [&mut process]) {
        Ok(steps) => sink(row(&steps)),
        Err(why) => sink(FIRST_ADDRESS.not_measured(why)),
    }
}

fn row(steps: &[Rounds; STEPS.len()]) -> Row {
    let rounds = steps[0].figures(0).len();
    let whole = |round: usize| steps.iter().map(|step| step.figures(0)[round]).sum::<f64>();
    let whole = crate::measure::Ratio::of(&(0..rounds).map(whole).collect::<Vec<_>>());
    let row = FIRST_ADDRESS.ratio(whole);
    STEPS.iter().zip(steps).fold(row, |row, (label, step)| row.part(*label, step.median(0)))
}

/// Nanoseconds of the monotonic clock, which is one for all processes.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
