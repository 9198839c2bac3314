//! Drivers are killed in the middle of DMA, and then all memory that is to be had is churned by others who check every byte.
//!
//! The plan in [`PLAN`] says what is done: a seed, then a line for each row of the host's table ([`plan`]). One after the other,
//! drivers ([`driver`], with devices that are [`busy`]) are started and die ([`victims`]); other processes take memory ([`churn`],
//! told to by [`churners`]); and what guardians say is read from the kernel's log ([`rescues`]). What came of it is left in
//! [`FOUND`], a line of JSON for each kill, and in [`LEFT`]; the host judges.

mod busy;
pub(super) mod churn;
mod churners;
pub(super) mod driver;
mod ohci;
mod plan;
mod processes;
mod rescues;
mod victims;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use noiommu::optin;
use serde_json::{Value, json};

use self::churners::{Churners, Foreign};
use self::plan::{Pace, Row};
use self::rescues::Rescues;
use self::victims::{Service, Victim};
use super::cgroup::{DOOMED, OOM, OOM_MOST};
use super::chance::Chance;
use super::{memory, progress};
use crate::matrix::driver::PATIENCE;
use crate::matrix::{addresses, bind};

/// What is to be done.
const PLAN: &str = "/plan";
/// What came of it.
const FOUND: &str = "/output/kills";
/// What is left in the end.
const LEFT: &str = "/output/left";

/// Does all of the plan.
pub(super) fn run() -> Result<()> {
    let plan = fs::read_to_string(PLAN).context(PLAN)?;
    let (seed, rows) = plan.split_once('\n').context("an empty plan")?;
    let rows: Vec<Row> = rows.lines().map(Row::parse).collect::<Result<_>>()?;
    OOM.make(Some(OOM_MOST))?;
    DOOMED.make(None)?;
    optin::enable()?;
    let _service = rows.iter().any(|row| row.guard == "service").then(Service::start).transpose()?;
    let mut soak = Soak {
        churners: Churners::start()?,
        rescues: Rescues::follow()?,
        chance: Chance::new(seed.parse().context("the seed")?),
    };
    let places = prepare(&rows)?;
    let before = (processes::running()?, memory::pins()?);
    let total: u32 = rows.iter().map(|row| row.kills).sum();
    let mut found: Vec<Value> = Vec::new();
    // Written at the end, and nothing is in the meantime: it would be memory that a device might hit.
    for row in &rows {
        for _ in 0..row.kills {
            let (number, place) = (found.len() as u64, &places[row.kind.name]);
            let what = || {
                format!("kill {number}: {} by {}, {} ({})", row.kind.name, row.provider, row.way, row.guard)
            };
            found.push(soak.kill(row, place, number).with_context(what)?);
            progress::tell(found.len() as u64, total.into())?;
        }
    }
    let left = left(&before.0, before.1)?;
    let lines: String = found.iter().map(|value| format!("{value}\n")).collect();
    fs::write(FOUND, lines).context(FOUND)?;
    fs::write(LEFT, format!("{left}\n")).context(LEFT)
}

/// What there is that was not there before all kills, when what is about to end has had its time: processes, and pins.
fn left(before: &BTreeSet<u32>, pins: u64) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let more: Vec<u32> = processes::running()?.difference(before).copied().collect();
        let pinned = memory::pins()?.saturating_sub(pins);
        if more.is_empty() && pinned == 0 || Instant::now() > deadline {
            let name = |process| processes::name(process).ok();
            return Ok(
                json!({"processes": more.into_iter().filter_map(name).collect::<Vec<_>>(), "pins": pinned}),
            );
        }
        sleep(Duration::from_millis(20));
    }
}

/// Gives each device its bytes, and takes it from the kernel's driver. Answers where they are.
fn prepare(rows: &[Row]) -> Result<BTreeMap<&'static str, String>> {
    let mut places = BTreeMap::new();
    for kind in rows.iter().map(|row| row.kind) {
        if places.contains_key(kind.name) {
            continue;
        }
        let place =
            addresses(kind.id)?.into_iter().next().with_context(|| format!("no {} here", kind.name))?;
        (kind.prepare)(&place).with_context(|| format!("preparing {}", kind.name))?;
        bind(&place, "sysfs")?;
        places.insert(kind.name, place);
    }
    Ok(places)
}

/// What goes on through all kills.
struct Soak {
    churners: Churners,
    rescues: Rescues,
    chance: Chance,
}

impl Soak {
    /// One driver lives and dies.
    fn kill(&mut self, row: &Row, place: &str, number: u64) -> Result<Value> {
        let (began, pace) = (Instant::now(), Pace::of(row.kind));
        let before = processes::running()?;
        let mut driver = Victim::start(row, place)?;
        let process = driver.process();
        let mut doomed = vec![process];
        if row.way == "both" {
            doomed.extend(processes::running()?.difference(&before).filter(|other| **other != process));
            ensure!(doomed.len() > 1, "there is no guardian to be killed");
            // Either one first.
            doomed.rotate_left((number % 2) as usize);
        }
        // Anywhere in what the device is doing.
        sleep(Duration::from_micros(self.chance.below(15_000)));
        driver.die(&row.way, &doomed)?;

        let mut foreign = Foreign::default();
        let died = Instant::now();
        self.churn(&pace, 0, &mut foreign)?;
        let mut lines = self.rescues.new_lines()?;
        while row.is_rescued() && !lines.iter().any(|line| rescues::is_about(line, place, process)) {
            // That it never comes is for the host to judge.
            if died.elapsed() > PATIENCE {
                break;
            }
            sleep(Duration::from_millis(5));
            lines.extend(self.rescues.new_lines()?);
        }
        let waited = died.elapsed();
        self.churn(&pace, 1, &mut foreign)?;
        driver.end()?;
        if !row.is_guarded() {
            // Before what it may be writing to goes to somebody else.
            victims::quiet(row, place)?;
        }
        self.churners.tell("check", &mut foreign)?;
        self.churners.tell("release", &mut foreign)?;
        lines.extend(self.rescues.new_lines()?);
        let (ours, others): (Vec<_>, Vec<_>) =
            lines.into_iter().partition(|line| rescues::is_about(line, place, process));
        Ok(json!({
            "device": row.kind.name,
            "provider": row.provider,
            "guard": row.guard,
            "way": row.way,
            "process": process,
            "foreign": foreign.bytes(),
            "first": foreign.first,
            "rescues": ours,
            "others": others,
            "rescued_ms": waited.as_millis() as u64,
            "ms": began.elapsed().as_millis() as u64,
        }))
    }

    /// Rounds of taking memory, for the first or the second time, and a check of all of it.
    fn churn(&mut self, pace: &Pace, time: usize, foreign: &mut Foreign) -> Result<()> {
        for pages in pace.rounds(time) {
            let salt = self.chance.any() as u32;
            self.churners.tell(&format!("grow {pages} {salt}"), foreign)?;
            sleep(pace.pause());
        }
        self.churners.tell("check", foreign)
    }
}
