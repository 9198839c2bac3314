//! `cargo xtask vm bench`: the rows of the benchmark that need a kernel of choice, measured in guests.
//!
//! Each [`Scenario`] of [`SCENARIOS`] boots one guest, which leaves lines of JSON; rows are made of them here, and shown as
//! `noiommu bench` shows its own.

mod get_pa;
mod map;
mod nvme;

use std::env;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use noiommu_bench::render::{self, Look};
use noiommu_bench::{Group, Row};
use serde_json::Value;

use super::guest::{self, Options};
use super::kernel::Kernel;
use super::pack::Tree;
use super::{Choice, EDU, OnKernel, UNSAFE_NOIOMMU, Variant};
use crate::project::Project;
use crate::ui;

/// Exit code when a mark was missed by more than the noise.
const MISSED: u8 = 1;
/// Exit code when something could not be measured.
const NOT_MEASURED: u8 = 2;

/// Options of the benchmark.
#[derive(Args, Debug)]
#[command(after_help = "\
Every mark is a ratio of two things measured in the same guest, in turn. A guest is emulated: its absolute times mean nothing.

Exit codes:
  0  every mark met, or missed by less than the noise
  1  a mark missed by more than the noise
  2  wrong arguments, or something could not be measured")]
pub(crate) struct Bench {
    /// Fewer rounds, more noise: as `cargo xtask test` runs it
    #[arg(long)]
    short: bool,

    /// Only rows whose names begin like this; can be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Print the result as one JSON object, and nothing else on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    run: Options,
}

impl Bench {
    /// The short form of the rows whose names begin like this.
    pub(crate) fn short_of(name: &str) -> Self {
        Self { only: vec![name.to_owned()], ..Self::default() }
    }
}

/// The short form.
impl Default for Bench {
    fn default() -> Self {
        Self { short: true, only: Vec::new(), json: false, run: Options::default() }
    }
}

/// Rows that one guest measures.
struct Scenario {
    /// The rows, known before. (Its `run` is that of the guest.)
    group: Group,
    /// The scenario's script in `xtask/guest/scenarios`, which is given the word `short` or `long`, and leaves `/output/lines`.
    script: &'static str,
    /// What it boots.
    kernel: Choice,
    /// Values of QEMU's `-device`.
    devices: &'static [&'static str],
    /// Drives, for devices to have.
    drives: &'static [&'static str],
    /// Words for the kernel.
    append: &'static [&'static str],
    /// What the guest has on board.
    pack: fn(&Project, &Kernel, &mut Tree) -> Result<()>,
    /// What the lines say.
    rows: fn(&[Value]) -> Result<Vec<Row>>,
}

/// The guests, in the order in which they run.
const SCENARIOS: &[Scenario] = &[map::SCENARIO, get_pa::SCENARIO, nvme::SCENARIO];

/// The bit of a [`Group`] that guests have no use for.
const IN_A_GUEST: fn(&noiommu_bench::Settings, &mut dyn FnMut(Row)) = |_, _| {};

/// Measures, tells, and answers the exit code.
pub(crate) fn bench(project: &Project, options: &Bench) -> ExitCode {
    match measure(project, options) {
        Ok(groups) if groups.is_empty() => {
            eprintln!("error: no row has a name that begins with {}", options.only.join(", "));
            ExitCode::from(NOT_MEASURED)
        }
        Ok(groups) => tell(&groups, options.json),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(NOT_MEASURED)
        }
    }
}

/// Whether every mark is met, or missed by less than the noise: for `cargo xtask test`.
///
/// # Errors
/// A mark was missed, or a row could not be measured.
pub(crate) fn holds(project: &Project, options: &Bench) -> Result<()> {
    let groups = measure(project, options)?;
    tell(&groups, options.json);
    for row in groups.iter().flat_map(|(_, rows)| rows) {
        let name = &row.subject.name;
        ensure!(!row.fails(), "{name} misses its mark by more than the noise");
        if let Err(why) = &row.figure {
            anyhow::bail!("{name} was not measured: {why}");
        }
    }
    Ok(())
}

type Groups = Vec<(&'static Group, Vec<Row>)>;

/// Boots the guests whose rows are wanted. A guest that fails leaves rows that say so, and the next one runs.
fn measure(project: &Project, options: &Bench) -> Result<Groups> {
    let settings =
        noiommu_bench::Settings { short: options.short, only: options.only.clone(), program: None };
    let mut groups = Vec::new();
    for scenario in SCENARIOS {
        let mut wanted = (scenario.group.subjects)();
        wanted.retain(|subject| settings.wants(&subject.name));
        if wanted.is_empty() {
            continue;
        }
        let kernel = OnKernel::new(scenario.kernel, false).kernel(project)?;
        let mut files = Tree::default();
        (scenario.pack)(project, &kernel, &mut files)?;
        let guest = guest::Scenario {
            name: scenario.script,
            arguments: vec![settings.choose("short", "long")],
            devices: scenario.devices,
            drives: scenario.drives,
            nets: &[],
            append: scenario.append,
            witnessed: false,
        };
        let mut run = options.run.clone();
        // What the guest has found is the result, not that its script ended.
        run.apart = true;
        let found = guest::run(project, &guest, &kernel, files, &run).and_then(|output| {
            let text = fs::read_to_string(output.join("lines")).context("the guest left no lines")?;
            let lines = text.lines().map(serde_json::from_str).collect::<serde_json::Result<Vec<Value>>>();
            (scenario.rows)(&lines.context("the guest's lines are no JSON")?)
        });
        let rows = wanted.iter().map(|subject| match &found {
            Ok(rows) => {
                let row = rows.iter().find(|row| row.subject.name == subject.name).cloned();
                row.unwrap_or_else(|| subject.not_measured("the guest has not told"))
            }
            Err(error) => subject.not_measured(format!("{error:#}")),
        });
        groups.push((&scenario.group, rows.collect()));
    }
    Ok(groups)
}

/// Prints the rows; the exit code that they mean.
fn tell(groups: &Groups, json: bool) -> ExitCode {
    let rows: Vec<Row> = groups.iter().flat_map(|(_, rows)| rows).cloned().collect();
    if json {
        println!("{}", render::json(&rows));
    } else {
        for line in render::lines(groups, Look::new(ui::width(), blocks())) {
            ui::print_styled(&line);
        }
        ui::print_styled(&render::verdict(&rows));
    }
    match () {
        () if rows.iter().any(Row::fails) => ExitCode::from(MISSED),
        () if rows.iter().any(|row| !row.is_measured()) => ExitCode::from(NOT_MEASURED),
        () => ExitCode::SUCCESS,
    }
}

/// Whether the locale's characters include blocks to draw with.
fn blocks() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(|name| env::var(name).ok());
    let utf8 = |name: String| name.to_ascii_uppercase().replace('-', "").contains("UTF8");
    locale.into_iter().find(|value| !value.is_empty()).is_some_and(utf8)
}

/// The numbers of a list.
fn numbers(value: &Value) -> Result<Vec<f64>> {
    let list = value.as_array().filter(|list| !list.is_empty()).context("no list of numbers")?;
    list.iter().map(|number| number.as_f64().context("no number")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_their_groups() {
        let mut names = Vec::new();
        for scenario in SCENARIOS {
            for subject in (scenario.group.subjects)() {
                assert!(subject.name.starts_with(scenario.group.name), "{}", subject.name);
                assert!(!names.contains(&subject.name), "{} occurs twice", subject.name);
                names.push(subject.name);
            }
        }
    }
}
