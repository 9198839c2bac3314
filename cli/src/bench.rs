//! `noiommu bench`: what the engine costs, each figure beside its mark.

use std::process::ExitCode;

use noiommu_bench::render::{self, Look};
use noiommu_bench::{GROUPS, Row, Settings, suite};

use crate::ui::{PatientBar, locale_has_blocks, print_lines, width};
use crate::{Failure, tell_failure};

/// Exit code when a mark was missed by more than the noise.
const MISSED: u8 = 1;
/// Exit code when something was not measured.
const NOT_MEASURED: u8 = 2;

/// Measure what the engine costs, and hold it against its marks
///
/// Every mark is a ratio of two things measured in the same run, in turn: the engine, and the same work done the shortest way
/// there is (a bare table, the bare system calls). So a mark means the same on every machine. Run it as root on a machine that
/// does nothing else; the release build is the one that counts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
How to read a row:
  name  bar  value  mark  verdict  ~noise
  The line across the bar is the mark. The noise is what the rounds of this run differ by (half their interquartile range);
  a value over its mark by less than that is `in noise`, by more `MISSED`. Below it: what it is, and what it is made of.

Rows whose mark is `told` are there to be known. What cannot be measured here (no root, no huge pages) says so, and makes
the exit code 2: it is never taken for a success.

Exit codes:
  0  every mark met, or missed by less than the noise
  1  a mark missed by more than the noise
  2  wrong arguments, or something could not be measured

Examples:
  noiommu bench --list                   what is measured, and the marks
  noiommu bench --only map --only unmap  rows whose names begin with these
  noiommu bench --json | jq -c '.marks[] | select(.met | not)'")]
pub(crate) struct Options {
    /// Fewer rounds and less memory: less than a minute in all, with more noise
    #[arg(long)]
    short: bool,
    /// Only rows whose names begin like this; can be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
    /// Say what would be measured, and measure nothing
    #[arg(long)]
    list: bool,
}

/// Measures, and tells.
pub(crate) fn run(options: &Options) -> ExitCode {
    let program = std::env::current_exe().ok();
    let settings = Settings { short: options.short, only: options.only.clone(), program };
    let wanted = suite::wanted(GROUPS, &settings);
    if wanted.is_empty() {
        let names = options.only.join(", ");
        let cause = format!("no row has a name that begins with {names}");
        let remedy = Some("noiommu bench --list shows the names");
        tell_failure(options.json, &Failure { kind: "Argument", errno: None, cause: &cause, remedy });
        return ExitCode::from(NOT_MEASURED);
    }
    let look = Look::new(width(), locale_has_blocks());
    if options.list {
        if options.json {
            let rows: Vec<Row> = wanted
                .iter()
                .flat_map(|(_, subjects)| subjects.iter().map(|subject| subject.not_measured("--list")))
                .collect();
            print_lines(&[render::json(&rows)]);
        } else {
            print_lines(&render::list(&wanted, look));
        }
        return ExitCode::SUCCESS;
    }
    let bar = PatientBar::new();
    let groups = suite::run(GROUPS, &settings, &mut |progress| {
        bar.step(progress.done as u64, progress.total as u64, progress.what);
    });
    bar.finish();
    let rows: Vec<Row> = groups.iter().flat_map(|(_, rows)| rows).cloned().collect();
    if options.json {
        print_lines(&[render::json(&rows)]);
    } else {
        if cfg!(debug_assertions) {
            print_lines(&[
                "This is a debug build: its figures mean nothing. cargo run --release -- bench",
                "",
            ]);
        }
        print_lines(&render::lines(&groups, look));
        print_lines(&[render::verdict(&rows)]);
    }
    ExitCode::from(match () {
        () if rows.iter().any(Row::fails) => MISSED,
        () if rows.iter().any(|row| !row.is_measured()) => NOT_MEASURED,
        () => 0,
    })
}

/// What is started to be measured itself.
pub(crate) fn first_address() -> ExitCode {
    match noiommu_bench::kernel_calls::first::child() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::failed(false, &error),
    }
}
