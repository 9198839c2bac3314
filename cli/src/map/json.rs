//! The figures for programs.

use serde_json::{Value, json};

use super::figures::Figures;
use super::subject::{Part, Subject};

/// All of it; with every run, if they are asked for.
pub(super) fn object(subject: &Subject, runs: bool) -> String {
    let figures = Figures::of(subject);
    let missing = subject.missing.as_ref().map(crate::error_json);
    let mut object = json!({
        "subject": subject.title,
        "detail": subject.detail,
        "simulated": subject.simulated,
        "missing": missing,
        "page_size": rustix::param::page_size(),
    });
    if let (Value::Object(object), Value::Object(figures)) = (&mut object, of(&figures)) {
        object.extend(figures);
        object.insert("parts".to_owned(), subject.parts.iter().map(part).collect());
        if runs {
            object.insert("run_list".to_owned(), subject.runs().map(run).collect());
        }
    }
    object.to_string()
}

fn of(figures: &Figures) -> Value {
    let histogram: Vec<_> = figures
        .histogram
        .iter()
        .map(|(power, bin)| json!({ "at_least": 1u64 << power, "runs": bin.runs, "bytes": bin.bytes }))
        .collect();
    json!({
        "bytes": figures.bytes,
        "pages": figures.pages,
        "runs": figures.runs,
        "longest_run": figures.longest,
        "share_in_runs_of_2_mib": figures.share_in_huge_runs(),
        "mapped_by_huge_pages": figures.huge_pages,
        "shared": figures.shared,
        "swapped": figures.swapped,
        "zero_page": figures.zero,
        "absent": figures.absent,
        "histogram": histogram,
    })
}

fn part(part: &Part) -> Value {
    let figures = Figures::of_part(part);
    json!({
        "start": part.start,
        "end": part.end,
        "name": part.name,
        "bytes": figures.bytes,
        "runs": figures.runs,
        "longest_run": figures.longest,
        "share_in_runs_of_2_mib": figures.share_in_huge_runs(),
        "swapped": figures.swapped,
        "absent": figures.absent,
    })
}

fn run(run: &noiommu::frames::Run) -> Value {
    json!({ "start": run.start, "address": run.address.0, "length": run.length, "huge": run.huge, "shared": run.shared })
}
